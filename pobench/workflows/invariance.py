"""Compares training steps on one optimiser batch split in different ways: one micro-batch or eight, packed or padded, one
process or two.

Each way takes whole steps of a small random model with the real training loop, and the gradient is read where the
optimiser reads it. Two steps are compared, on a batch of eight pairs and on a short last batch of three, at weights that
have moved away from the reference. A loss of lists takes lists of two to five answers instead, one of answers twice as many
single answers.
"""

from __future__ import annotations

import copy
import math
import os
import random
import shutil
import socket
import tempfile
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_pre_hook
from transformers import LlamaConfig, LlamaForCausalLM

from pobench.data.order import mismatch
from pobench.model.device import make_accelerator
from pobench.model.layouts import LEAST_SHARED, Layout
from pobench.model.logps import ResponseLogps
from pobench.model.policy_sums import SumScorer
from pobench.model.value import PromptValue
from pobench.registry import Loss, get_loss, load_plugin
from pobench.settings.schema import TrainConfig
from pobench.training.density_ratio import DensityRatios, prompt_key
from pobench.training.loop import train
from pobench.training.objectives import mismatched_groups
from pobench.training.reference import EveryStep, Moving, ReferenceSums
from pobench.types import Group, Item, TokenAnswer, TokenList, TokenPair, Unit
from pobench.units import in_a_batch

PAIRS, BATCH = 11, 8  # two batches: eight, and a short last one of three
VOCABULARY = 61
TOLERANCE = 1e-5  # relative, in fp32
MOVE = 0.02  # the learning rate of the steps that lead away from the reference
STAND_STILL = 1e-30  # a rate that changes no fp32 weight


class Split(NamedTuple):
    """A way to cut a batch. micro_batches: how many the batch of eight becomes. head_tile: vocabulary entries."""

    name: str
    micro_batches: int
    layout: str = "shared_prefix"
    head_tile: int | None = None


WHOLE = Split("one micro-batch of eight", 1)
SPLITS = (
    Split("two micro-batches", 2),
    Split("eight micro-batches of one pair", 8),
    Split("padded rows, one micro-batch", 1, "padded"),
    Split("padded rows, eight micro-batches", 8, "padded"),
    Split("head tiles of fifty vocabulary entries", 2, head_tile=50),
)


class Steps(NamedTuple):
    """The results of two steps. loss: (2,) fp64. gradient: (2, parameters) fp32, as the optimiser gets it, not clipped."""

    loss: Tensor
    gradient: Tensor


def difference(steps: Steps, reference: Steps) -> float:
    """The largest relative difference of a loss or of a gradient (its norm); nan where something is not finite."""
    floor = 1e-2  # a loss near zero is a difference of larger numbers
    by_loss = (steps.loss - reference.loss).abs() / reference.loss.abs().clamp(min=floor)
    by_gradient = (steps.gradient - reference.gradient).norm(dim=1) / reference.gradient.norm(dim=1).clamp(min=1e-12)
    both = torch.cat([by_loss, by_gradient.double()])
    return float(both.max()) if both.isfinite().all() else math.nan


def small_model() -> Any:
    """A Llama of two layers with random weights large enough for its answers to differ; the same every time."""
    return copy.deepcopy(_small_model())


@cache
def _small_model() -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        config = LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=64,
            tie_word_embeddings=True,
        )
        model = LlamaForCausalLM(config)
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim > 1:
                p.mul_(5.0)
    return model


def small_pairs(n: int = PAIRS, seed: int = 1) -> list[TokenPair]:
    """Random pairs of a few tokens, one-token answers among them, with ratings. All prompts begin alike, as under a system
    message, so that a row's root is cut in every way, too."""
    draw = random.Random(seed)

    def ids(low: int, high: int) -> tuple[int, ...]:
        return tuple(draw.randrange(1, VOCABULARY) for _ in range(draw.randint(low, high)))

    beginning = tuple(range(1, LEAST_SHARED + 2))
    return [
        TokenPair(f"p{i}", beginning + ids(1, 5), ids(1, 9), ids(1, 9), (5.0 + i % 4, 1.0 + i % 5)) for i in range(n)
    ]


def small_items(unit: Unit, n: int = PAIRS, seed: int = 1) -> Sequence[Item]:
    """Random rows for a loss of a unit, as `small_pairs`: pairs; lists of two to five answers, ties among them; or 2n single
    answers, two thirds of them desirable."""
    pairs = small_pairs(n, seed)
    if unit == "pairs":
        return pairs
    if unit == "answers":
        halves = [(pair, side) for pair in pairs for side in (0, 1)]
        return [
            TokenAnswer(f"a{i}", pair.prompt, pair.responses[side], i % 3 > 0, (pair.scores or (0.0, 0.0))[side])
            for i, (pair, side) in enumerate(halves)
        ]
    more = [answer for pair in small_pairs(3 * n, seed + 1) for answer in pair.responses]
    return [
        TokenList(f"l{i}", pair.prompt, (*pair.responses, *more[6 * i : 6 * i + i % 4]), *_ranked(2 + i % 4, i))
        for i, pair in enumerate(pairs)
    ]


def _ranked(k: int, turn: int) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """(ranks, ratings) of k answers, the second and third best of some lists tied."""
    ranks = [1, 2, 2, 4, 5][:k] if turn % 3 else [1, 2, 3, 4, 5][:k]
    turned = [ranks[(i + turn) % k] for i in range(k)]
    return tuple(turned), tuple(6.0 - rank for rank in turned)


def small_reference(loss: Loss, items: Sequence[Item], layout: str) -> ReferenceSums | EveryStep | None:
    """What training with the loss reads of the small model as reference: sums, or the model itself, in that layout."""
    if loss.moves_reference:
        return Moving(_small_scorer(layout))
    if loss.runs_reference:
        return EveryStep(_small_scorer(layout))
    return _small_sums(tuple(items), "tokens" in loss.needs) if loss.reads_reference else None


def small_ratios(items: Sequence[Item]) -> DensityRatios:
    """Density ratios of the items' prompts, from 0.03 to 33."""
    prompts = dict.fromkeys(item.prompt for item in items)
    return DensityRatios({prompt_key(prompt): i % 8 - 3.5 for i, prompt in enumerate(prompts)})


def _small_scorer(layout: str) -> SumScorer:
    policy = ResponseLogps(small_model())
    return SumScorer(policy, policy.layout(layout), make_accelerator("fp32", cpu=True), alone=True)


@cache
def _small_sums(items: tuple[Item, ...], per_token: bool = False) -> ReferenceSums:
    """Every process computes all of them, once for all losses."""
    scorer = _small_scorer("shared_prefix")
    groups = [*map(Group.of, items), *mismatched_groups(items, mismatch(items))]
    return ReferenceSums.of_groups(groups, scorer, per_token=per_token)


def take_steps(loss: Loss, settings: Mapping[str, Any], split: Split, folder: Path) -> Steps:
    """The two steps, cut as `split` says. folder: shared by all splits of a loss, so that they start from one checkpoint.

    Raises whatever training raises: PobenchError for a loss of the wrong shape or without a number.
    """
    items = small_items(loss.unit)
    start = folder / "start"
    if not start.is_dir():
        _train(loss, settings, WHOLE, items, start, [range(len(items))], MOVE)  # leaves a checkpoint after step 1
    run = folder / split.name
    if _is_main():
        shutil.rmtree(run, ignore_errors=True)
        shutil.copytree(start, run, dirs_exist_ok=True)  # another process may have made the folder
    # Step 1 of this plan is done; then come the short batch of three and a batch of eight.
    epochs = [range(len(items)), range(in_a_batch(items, BATCH))]
    losses, gradients = _train(loss, settings, split, items, run, epochs, STAND_STILL)
    return Steps(torch.tensor(losses, dtype=torch.float64), torch.stack(gradients))


def take_steps_in_two_processes(
    names: Sequence[str], plugins: Sequence[str] = (), settings: Mapping[str, Mapping[str, Any]] | None = None
) -> dict[str, tuple[Steps, Steps]]:
    """Loss → (steps of one process, steps of two processes), by gloo on this machine, with every batch whole.

    settings: loss → values that differ from its defaults. Raises what the processes raise.
    """
    changes = {name: dict((settings or {}).get(name, {})) for name in names}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for plugin in plugins:
            load_plugin(plugin)
        alone = {}
        for name in names:
            loss = get_loss(name)
            alone[name] = take_steps(loss, {**loss.settings, **changes[name]}, WHOLE, folder / name)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        torch.multiprocessing.spawn(_process, (port, folder, changes, tuple(plugins)), nprocs=2)
        both = {}
        for name in names:
            tensors = load_file(folder / f"{name}.safetensors")
            both[name] = (alone[name], Steps(tensors["loss"], tensors["gradient"]))
        return both


def _process(
    rank: int, port: int, folder: Path, changes: Mapping[str, Mapping[str, Any]], plugins: Sequence[str]
) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "ACCELERATE_USE_CPU": "true"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    for plugin in plugins:
        load_plugin(plugin)
    for name, settings in changes.items():
        loss = get_loss(name)
        steps = take_steps(loss, {**loss.settings, **settings}, WHOLE._replace(name="two processes"), folder / name)
        if rank == 0:
            save_file(steps._asdict(), folder / f"{name}.safetensors")
    torch.distributed.destroy_process_group()


def _is_main() -> bool:
    return os.environ.get("RANK", "0") == "0"


def _train(
    loss: Loss,
    settings: Mapping[str, Any],
    split: Split,
    items: Sequence[Item],
    run: Path,
    epochs: Sequence[range],
    rate: float,
) -> tuple[list[float], list[Tensor]]:
    """Train a small model; the losses and gradients of the steps taken."""
    config = TrainConfig(
        lr=rate,
        batch_size=BATCH,
        schedule="constant",
        warmup_ratio=0.0,
        max_grad_norm=1e30,
        precision="fp32",
        layout=split.layout,  # type: ignore[arg-type]
        micro_tokens=_budget(split, items[: in_a_batch(items, BATCH)], valued=loss.trains_value),
        head_tile=split.head_tile,
        checkpoint_seconds=0.0 if rate == MOVE else 1e9,
    )
    accelerator = make_accelerator("fp32", cpu=True)
    run.mkdir(parents=True, exist_ok=True)
    accelerator.wait_for_everyone()
    rows: list[float] = []
    gradients: list[Tensor] = []

    def keep(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        trained = [p for group in optimizer.param_groups for p in group["params"]]
        gradients.append(
            torch.cat([torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten() for p in trained])
        )

    watching = register_optimizer_step_pre_hook(keep)
    try:
        train(
            accelerator,
            small_model(),
            items,
            [list(epoch) for epoch in epochs],
            loss,
            settings,
            config,
            folder=run,
            reference=small_reference(loss, items, split.layout),
            mismatched=mismatch(items),
            density_ratios=small_ratios(items),
            log=lambda row: rows.append(row["loss"]),
        )
    finally:
        watching.remove()
    return rows, gradients


def layout_of(split: Split, *, valued: bool = False) -> Layout:
    """As training lays rows out for the small model. valued: with a value model beside it."""
    policy = ResponseLogps(small_model())
    policy.value = PromptValue(small_model()) if valued else None
    return policy.layout(split.layout)


def _budget(split: Split, items: Sequence[Item], *, valued: bool = False) -> int:
    """The smallest token budget of a micro-batch that divides the items into no more micro-batches than the split has."""
    groups, layout = [Group.of(item) for item in items], layout_of(split, valued=valued)
    return next(b for b in range(1, 10_000) if len(layout.plan(groups, b)) <= split.micro_batches)
