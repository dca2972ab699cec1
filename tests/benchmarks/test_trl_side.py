"""TRL's trainers beside pobench, and the options that are tried. Nothing is timed."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pobench.data.order import mismatch
from pobench.registry import get_loss
from pobench.training.reference import sequence_keys
from pobench.types import Group, TokenPair


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("random")


@pytest.fixture
def work(folder: Path) -> Iterator[Any]:
    """A tiny model and four pairs."""
    inputs, peers = (importlib.import_module(name) for name in ("random_inputs", "peers"))
    if not (folder / "model").is_dir():
        inputs.make_model(folder / "model", inputs.SHAPES["random-tiny"])
        peers.save_pairs(folder / "pairs.json", inputs.random_pairs(4, 512, 20))
    values = {"batch_size": 4, "epochs": 3, "lr": 1e-3, "loss": "dpo", "settings": {}}
    yield peers.Work(model=str(folder / "model"), pairs=str(folder / "pairs.json"), place=str(folder), **values)


@pytest.mark.slow  # TRL is imported, and trains
@pytest.mark.parametrize("trainer", ["dpo", "cpo", "kto", "orpo", "bco"])
def test_every_trainer_computes_pobenchs_loss_on_the_same_tokens(trainer: str, work: Any) -> None:
    pytest.importorskip("trl")
    peers, trl_side, variants = (importlib.import_module(name) for name in ("peers", "trl_side", "trl_variants"))
    loss = variants.TRAINERS[trainer][1]
    work = replace(work, loss=loss, settings={**get_loss(loss).settings, **variants.TWINS[loss].settings})
    losses = {"pobench": peers.run_pobench(work)["losses"]}
    cut = 4 if trainer == "kto" else 2  # of KTO's kl TRL knows a micro-batch alone
    for name, variant in {"default": variants.Variant(4), "best": variants.Variant.best(cut)}.items():
        run = trl_side.run_trl(replace(work, variant=variant), True)
        losses[name] = run["losses"]
        pairs = peers.load_pairs(Path(work.pairs))
        assert run["shown"] == sorted({key.hex() for p in pairs for key in sequence_keys(Group.of(p))})
    assert peers.check_same_loss(losses) <= 1e-5


def test_the_rows_of_kto_borrow_the_answers_that_pobench_takes() -> None:
    trl_side = importlib.import_module("trl_side")
    pairs = [TokenPair(str(i), (i,) * (i + 1), (10 + i,), (20 + i, 20 + i)) for i in range(4)]
    rows = trl_side.columns_of("kto", pairs)
    partners = mismatch(pairs)
    borrowed = [list(pairs[partners[i]].responses[i % 2]) for i in range(4)]  # alternately a chosen and a rejected one
    assert rows["KL_completion_ids"] == [ids for ids in borrowed for _ in range(2)]
    assert rows["label"] == [True, False] * 4
    by_length = trl_side.columns_of("kto", pairs, by_length=True)
    assert [len(ids) for ids in by_length["prompt_ids"]] == [4, 4, 3, 3, 2, 2, 1, 1]
    # the same rows, whatever their order
    assert sorted(map(repr, zip(*rows.values(), strict=True))) == sorted(
        map(repr, zip(*by_length.values(), strict=True))
    )


def test_labels_of_cpo_and_orpo_leave_the_prompt_out() -> None:
    rows = importlib.import_module("trl_side").columns_of("orpo", [TokenPair("a", (1, 2), (3,), (4, 5))])
    assert rows["chosen_input_ids"] == [[1, 2, 3]] and rows["chosen_labels"] == [[-100, -100, 3]]
    assert rows["rejected_labels"] == [[-100, -100, 4, 5]] and rows["rejected_attention_mask"] == [[1] * 4]
    assert rows["length"] == [4]


def test_every_option_that_is_tried_changes_one_thing() -> None:
    variants = importlib.import_module("trl_variants")
    best = variants.Variant.best(4)
    options = variants.changes(best, [8, 4, 2], reference=True, gpu=["liger_kernel", "flash_attn"])
    for name, variant in options.items():
        assert sum(getattr(variant, key) != value for key, value in vars(best).items()) == 1, name
    without = variants.changes(best, [4], reference=False)
    assert len(options) - len(without) == 5  # two sizes, the reference, two packages of a GPU


def test_a_search_keeps_what_pays_and_names_what_did_not_run(work: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    trl_side, variants = (importlib.import_module(name) for name in ("trl_side", "trl_variants"))
    monkeypatch.setattr(trl_side, "padding_free_fault", lambda: "not available")
    asked = []

    def measured(function: Any, trial: Any, seconds: float) -> dict[str, float]:
        variant = trial.variant
        asked.append(variant)
        if variant.compiled:
            raise trl_side.PobenchError("no compiler")
        took = 10.0 - 2 * (variant.micro == 2) - 1 * (variant.workers == 2) + 5 * bool(variant.checkpointing)
        # the machine is twice as fast in the end: only its products count
        rate = 2.0 if variant.optimiser else 1.0
        return {"seconds_per_pair": took / rate, "matmul_flops": rate, "peak_memory": 1, "mfu": 0.5}

    monkeypatch.setattr(trl_side, "in_child", measured)
    best, rows = trl_side.search(work, variants.Variant.best(4), seconds=60)
    assert best == replace(variants.Variant.best(4), micro=2, workers=2)
    by_name = {row["option"]: row for row in rows}
    assert by_name["torch.compile"] == {"option": "torch.compile", "fault": "no compiler"}
    assert not by_name["AdamW tensor by tensor"].get("kept")  # half the seconds at twice the rate
    assert by_name["padding_free"]["fault"] == "not available"
    assert asked[-1].micro == 2 and asked[-1].workers == 2  # what paid stays on while the next is tried
    _, late = trl_side.search(work, variants.Variant.best(4), seconds=0)
    assert all("fault" in row for row in late)


def test_pairs_are_cut_from_the_texts_to_a_mean_length() -> None:
    inputs, peers = (importlib.import_module(name) for name in ("random_inputs", "peers"))
    pairs = [TokenPair("a", tuple(range(100, 150)), tuple(range(200, 260)), tuple(range(300, 370)))]
    cut = inputs.cut_to(pairs, 500, 160, 1000)
    # a part's length has a standard deviation of 0.66 of its mean (√(e^0.36 − 1)), the mean of 500 one of 3 %
    assert sum(peers.lengths_of(cut).values()) == pytest.approx(160, rel=0.08)
    assert cut == inputs.cut_to(pairs, 500, 160, 1000)
    assert {t // 100 for p in cut for t in p.chosen} == {2}
    run = [t for p in cut for t in p.prompt]
    assert run == [100 + i % 50 for i in range(len(run))]  # each part goes on where the last one ended
    assert max(len(p.prompt) + len(p.rejected) for p in inputs.cut_to(pairs, 500, 160, 90)) <= 90
