"""Weights split over processes train as one process does, for every loss; any number of processes resumes a checkpoint."""

from __future__ import annotations

import json
import math
import random
import shutil
from collections.abc import Sequence
from concurrent.futures import wait
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM
from two_processes import in_processes

from pobench.data.order import mismatch
from pobench.model import adapters
from pobench.model.device import make_accelerator
from pobench.model.logps import ResponseLogps
from pobench.model.policy_sums import SumScorer
from pobench.model.sharding import is_sharded, shard, whole_weights
from pobench.registry import Loss, get_loss, list_losses
from pobench.settings.schema import AdapterConfig, TrainConfig
from pobench.training.loop import train
from pobench.training.objectives import mismatched_groups
from pobench.training.reference import EveryStep, Moving, ReferenceSums, compute_reference
from pobench.training.saving import Saver
from pobench.types import Group, TokenPair

PAIRS, BATCH, EPOCHS = 17, 4, 2  # ten steps; the fifth and the tenth have one pair, and nothing for the other processes
TOLERANCE = 1e-5  # relative, in fp32
SENSITIVE = {  # losses in which a rounding error of a sum counts more, and what they are allowed
    "dpop": 1e-4,  # its penalty begins where policy and reference are equal, which they are in step 1
    "alpha_dpo": 1e-4,  # it divides how far a pair has moved by the spread of that, both some rounding errors at first
    "rebel": 1e-4,  # the square of what is left of sums of some fifty nats, near its target
}


class Way(NamedTuple):
    """How the steps are taken. tied: whether head and embedding are one weight."""

    sharding: str = "none"
    tied: bool = True
    adapter: bool = False
    precision: str = "fp32"


def model_of(way: Way) -> Any:
    """A Llama whose rows do not divide by two or four everywhere: 61 words, norms of 12."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        config = LlamaConfig(
            vocab_size=61,
            hidden_size=12,
            intermediate_size=30,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=64,
            tie_word_embeddings=way.tied,
        )
        model = LlamaForCausalLM(config)
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim > 1:
                p.mul_(5.0)
    return model


def pairs_of_all_lengths() -> list[TokenPair]:
    draw = random.Random(3)

    def ids(most: int) -> tuple[int, ...]:
        return tuple(draw.randrange(1, 61) for _ in range(draw.randint(1, most)))

    return [TokenPair(f"p{i}", ids(12), ids(16), ids(16), (0.6 + i % 4 / 10, 0.1 + i % 3 / 10)) for i in range(PAIRS)]


class Stopped(Exception):
    pass


def take_steps(folder: Path, name: str, way: Way, stop: bool = False, **changes: Any) -> None:
    """Train, in all processes together; the first writes steps and weights. stop: end after the fifth step, with the checkpoint
    of the fourth."""
    accelerator = make_accelerator(way.precision, cpu=True)
    pairs, loss, model = pairs_of_all_lengths(), get_loss(name), model_of(way)
    adapted = adapters.attach(model, AdapterConfig(r=3, alpha=6), 5) if way.adapter else None
    rows: list[dict[str, Any]] = []
    watched = [Group.of(pair) for pair in pairs[:3]]

    def watch(scorer: SumScorer) -> dict[str, float]:
        assert is_sharded(scorer.policy) == (way.sharding == "fsdp2" and accelerator.num_processes > 1)
        if stop:
            raise Stopped
        return {"watched": float(scorer.sums(watched).sum())}

    config = TrainConfig(
        lr=1e-3, batch_size=BATCH, warmup_ratio=0.0, micro_tokens=40, evaluate_every=5, sharding=way.sharding,
        **{"checkpoint_seconds": math.inf, **changes},
    )  # fmt: skip
    train(
        accelerator,
        model,
        pairs,
        [range(PAIRS)] * EPOCHS,
        loss,
        {**loss.settings, **{key: 3 for key in loss.settings if key.endswith(".every")}},
        config,
        folder=folder,
        reference=reference_of(folder.parent / "reference", loss, way),
        mismatched=mismatch(pairs),
        log=rows.append,
        watch=watch,
    )
    weights = whole_weights(adapted or model, trained=way.adapter)
    if accelerator.is_main_process:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "steps.json").write_text(json.dumps(rows))
        save_file({k: v.contiguous() for k, v in weights.items()}, folder / "weights.safetensors")


def start_scorer(way: Way) -> SumScorer:
    """Of the start model, by all processes together."""
    accelerator = make_accelerator(way.precision, cpu=True)
    policy = ResponseLogps(model_of(way).eval().requires_grad_(False))
    if way.sharding == "fsdp2" and accelerator.num_processes > 1:
        shard(policy, accelerator.device, torch.float32)
    return SumScorer(policy, policy.layout("shared_prefix"), accelerator, budget=40)


def reference_of(folder: Path, loss: Loss, way: Way) -> ReferenceSums | EveryStep | None:
    if loss.moves_reference or loss.runs_reference:
        return (Moving if loss.moves_reference else EveryStep)(start_scorer(way))
    return ReferenceSums.load(folder) if loss.reads_reference else None


def reference_pass(folder: Path, way: Way) -> None:
    """The start model's sums."""
    pairs, scorer = pairs_of_all_lengths(), start_scorer(way)
    compute_reference(folder, [*map(Group.of, pairs), *mismatched_groups(pairs, mismatch(pairs))], scorer, {})


def work(folder: Path, names: Sequence[str], way: Way) -> None:
    reference_pass(folder / "reference", way)
    for name in names:
        take_steps(folder / name, name, way)


def stopped(folder: Path, name: str, way: Way, **changes: Any) -> None:
    """Five steps and a checkpoint after each; the last one stands behind the fourth."""
    with pytest.raises(Stopped):
        take_steps(folder / name, name, way, stop=True, checkpoint_seconds=0.0, **changes)


def stopped_beside(folder: Path, name: str, way: Way) -> None:
    """The same, but the fourth step's is on its way, and each was written while the step behind it computed."""
    stopped(folder, name, way, checkpoint_async=True)


def run(folder: Path, processes: int, names: Sequence[str], way: Way) -> None:
    folder.mkdir(exist_ok=True)
    work(folder, names, way) if processes == 1 else in_processes(processes, work, folder, names, way)


class Distance(NamedTuple):
    """The largest relative differences from one process: of a step's loss, of a gradient's norm, of the weights as a whole."""

    loss: float
    gradient: float
    weights: float


def distance(one: Path, other: Path, first: int = 1) -> Distance:
    """first: the step that the other began with."""
    rows, others = (json.loads((folder / "steps.json").read_text()) for folder in (one, other))
    assert [row["pairs"] for row in rows] == [4, 4, 4, 4, 1] * EPOCHS
    assert [row["step"] for row in others] == [*range(first, 5 * EPOCHS + 1)]
    rows = rows[first - 1 :]
    weights, moved = (load_file(folder / "weights.safetensors") for folder in (one, other))
    assert weights.keys() == moved.keys()
    difference = math.sqrt(sum(float((moved[k] - weights[k]).double().pow(2).sum()) for k in weights))
    size = math.sqrt(sum(float(w.double().pow(2).sum()) for w in weights.values()))

    def largest(name: str) -> float:
        pairs = [(a[name], b[name]) for a, b in zip(rows, others, strict=True) if not math.isnan(a.get(name, math.nan))]
        return max(abs(a - b) / max(abs(a), 1e-2) for a, b in pairs)

    assert largest("watched") <= TOLERANCE
    return Distance(largest("loss"), largest("grad_norm"), difference / size)


def reference_distance(one: Path, other: Path) -> float:
    sums, others = (ReferenceSums.load(folder / "reference") for folder in (one, other))
    assert sums.keys == others.keys and len(sums.keys) == 3 * PAIRS
    return max(abs(sums._totals[key] - others._totals[key]) / abs(sums._totals[key]) for key in sums.keys)


def assert_alike(one: Path, other: Path, names: Sequence[str]) -> None:
    assert reference_distance(one, other) <= TOLERANCE
    for name in names:
        assert max(distance(one / name, other / name)) <= TOLERANCE, (name, distance(one / name, other / name))


def test_two_processes_with_half_the_weights_each_train_as_one(tmp_path) -> None:
    names = ("simpo",)  # KTO, with its reference and kl: tests/pobench/runs/test_sharded_jobs.py
    run(tmp_path / "one", 1, names, Way())
    run(tmp_path / "two", 2, names, Way("fsdp2"))
    assert_alike(tmp_path / "one", tmp_path / "two", names)


SESSIONS: dict[str, dict[str, tuple[int, Way]]] = {
    "every weight": {
        "DDP, 2 processes": (2, Way("none")),
        "FSDP2, 2 processes": (2, Way("fsdp2")),
        "FSDP2, 4 processes": (4, Way("fsdp2")),
    },
    "head and embedding apart": {
        "FSDP2, 2 processes, untied head": (2, Way("fsdp2", tied=False)),
        "FSDP2, 4 processes, untied head": (4, Way("fsdp2", tied=False)),
    },
    "LoRA": {
        "DDP, 2 processes, LoRA": (2, Way("none", adapter=True)),
        "FSDP2, 2 processes, LoRA": (2, Way("fsdp2", adapter=True)),
        "FSDP2, 4 processes, LoRA": (4, Way("fsdp2", adapter=True)),
    },
}


@pytest.mark.slow
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_a_reference_that_runs_beside_the_policy_is_split_as_it_is(tied, tmp_path) -> None:
    names = ("mallows_dpo", "tdpo1")
    run(tmp_path / "one", 1, names, Way(tied=tied))
    run(tmp_path / "two", 2, names, Way("fsdp2", tied=tied))
    assert_alike(tmp_path / "one", tmp_path / "two", names)


@pytest.mark.slow
@pytest.mark.parametrize("session", SESSIONS)
def test_every_loss_trains_as_in_one_process(session, tmp_path, capsys) -> None:
    """Ten steps of 4, 4, 4, 4, 1 pairs, twice. Prints the table of docs/scaling.md."""
    if session == "LoRA":
        pytest.importorskip("peft", reason="pip install 'pobench[peft]'")
    split = [name for name in list_losses() if not get_loss(name).trains_value]
    names = split if session != "head and embedding apart" else ["kto", "orpo", "simpo"]
    tables = []
    for title, (processes, way) in SESSIONS[session].items():
        one, several = tmp_path / "one", tmp_path / title
        if not one.is_dir():
            run(one, 1, names, way._replace(sharding="none"))
        run(several, processes, names, way)
        found = {name: distance(one / name, several / name) for name in names}
        smooth = [d for name, d in found.items() if name not in SENSITIVE]
        worst = [f"{max(column):.0e}" for column in zip(*smooth, strict=True)]
        sums = reference_distance(one, several)
        with capsys.disabled():
            print(f"\n| {title} | {len(names)} | {sums:.0e} | {' | '.join(worst)} |", end=" ", flush=True)
        tables.append((title, sums, found))
    assert max(sums for _, sums, _ in tables) <= TOLERANCE
    far = [(title, name, d) for title, _, found in tables for name, d in found.items()]
    assert not [row for row in far if max(row[2]) > SENSITIVE.get(row[1], TOLERANCE)]


def resume(folder: Path, name: str, way: Way) -> None:
    take_steps(folder / name, name, way)


@pytest.mark.slow
@pytest.mark.parametrize("adapter", [False, True], ids=["every weight", "LoRA"])
def test_a_checkpoint_of_two_processes_is_resumed_by_four_and_by_one_and_the_other_way_round(adapter, tmp_path) -> None:
    if adapter:
        pytest.importorskip("peft", reason="pip install 'pobench[peft]'")
    plain, split = Way(adapter=adapter), Way("fsdp2", adapter=adapter)
    run(tmp_path / "whole", 1, ["kto"], plain)
    for start, first in (("by one", plain), ("by two", split)):
        folder = tmp_path / start
        shutil.copytree(tmp_path / "whole" / "reference", folder / "reference")
        stopped(folder, "kto", first) if first is plain else in_processes(2, stopped, folder, "kto", first)
        assert max(path.name for path in (folder / "kto").iterdir()) == "checkpoint-4"
    for start, processes, way in (
        ("by two", 4, split), ("by two", 2, split), ("by two", 1, plain), ("by two", 2, plain), ("by one", 2, split)
    ):  # fmt: skip
        folder = tmp_path / f"{start}, then {processes} {way.sharding}"
        shutil.copytree(tmp_path / start, folder)
        resume(folder, "kto", way) if processes == 1 else in_processes(processes, resume, folder, "kto", way)
        assert max(distance(tmp_path / "whole" / "kto", folder / "kto", first=5)) <= TOLERANCE, folder.name


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tr(kto)", "bema(kto)"])
def test_a_reference_that_moves_is_split_and_resumed_as_the_policy_is(name, tmp_path) -> None:
    split = Way("fsdp2")
    run(tmp_path / "one", 1, [name], Way())
    run(tmp_path / "still", 1, ["kto"], Way())
    assert distance(tmp_path / "one" / name, tmp_path / "still" / "kto").loss > 1e-3  # it has moved
    for title, way in (("DDP", Way()), ("FSDP2", split)):
        run(tmp_path / title, 2, [name], way)
        assert max(distance(tmp_path / "one" / name, tmp_path / title / name)) <= TOLERANCE, title
    folder = tmp_path / "by two"
    in_processes(2, stopped, folder, name, split)  # one step after the reference has moved
    for processes, way in ((2, split), (4, split), (1, Way())):
        again = tmp_path / f"then {processes}"
        shutil.copytree(folder, again)
        resume(again, name, way) if processes == 1 else in_processes(processes, resume, again, name, way)
        assert max(distance(tmp_path / "one" / name, again / name, first=5)) <= TOLERANCE, processes


@pytest.mark.slow
def test_a_checkpoint_that_two_processes_write_beside_their_steps_is_one(tmp_path, monkeypatch) -> None:
    run(tmp_path / "whole", 1, ["kto"], Way())
    folder = tmp_path / "two"
    shutil.copytree(tmp_path / "whole" / "reference", folder / "reference")
    monkeypatch.setattr(
        Saver, "written", property(lambda saver: saver._saving is None or bool(wait([saver._saving._files])))
    )
    in_processes(2, stopped_beside, folder, "kto", Way("fsdp2"))
    assert [path.name for path in (folder / "kto").glob("checkpoint-*")] == ["checkpoint-3"]
    for processes, way in ((2, Way("fsdp2")), (1, Way())):
        again = tmp_path / f"{processes} go on"
        shutil.copytree(folder, again)
        resume(again, "kto", way) if processes == 1 else in_processes(processes, resume, again, "kto", way)
        assert max(distance(tmp_path / "whole" / "kto", again / "kto", first=4)) <= TOLERANCE


@pytest.mark.slow
def test_a_damaged_file_of_one_process_is_refused_by_all(tmp_path) -> None:
    run(tmp_path / "whole", 1, ["simpo"], Way())
    in_processes(2, stopped, tmp_path / "two", "simpo", Way("fsdp2"))
    file = sorted((tmp_path / "two" / "simpo" / "checkpoint-4").glob("shard-00002-*"))[0]
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    in_processes(2, resume, tmp_path / "two", "simpo", Way("fsdp2"))
    assert max(distance(tmp_path / "whole" / "simpo", tmp_path / "two" / "simpo")) <= TOLERANCE  # from the first step
