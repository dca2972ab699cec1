"""SFT: train a start model on demonstrated conversations, with the common training loop.

    loss = - Σ log π(assistant token) / assistant tokens,   both sums over the whole optimiser batch

A conversation is one sequence. Only the assistant's turns are learnt, each with its end-of-turn token, and each token has
the same weight however the batch is split. Conversations may share a row, but do not see each other (`layouts.py`).
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pydantic
import torch
from accelerate import Accelerator

from pobench.data.demonstrations import Demonstrations, tokenise
from pobench.errors import PobenchError
from pobench.model.device import make_accelerator
from pobench.model.sharding import RowFiles
from pobench.settings.faults import explain
from pobench.settings.schema import SftConfig
from pobench.training.loop import Trained, minimise
from pobench.training.objectives import LikelihoodObjective
from pobench.types import Group


# ---------------------------------------------------------------- batches, and the loop
def batches(groups: Sequence[Group], config: SftConfig) -> list[tuple[float, list[int]]]:
    """For every optimiser step: (epochs done after it, indices of its conversations). Equal seeds give equal orders."""
    steps = []
    for epoch in range(config.epochs):
        order = list(range(len(groups)))
        if config.shuffle:
            order = torch.randperm(len(groups), generator=torch.Generator().manual_seed(config.seed + epoch)).tolist()
        done = 0
        for batch in _packed(order, groups, config) if config.packing else _in_parts(order, config.batch_size):
            done += len(batch)
            steps.append((epoch + done / len(order), batch))
    return steps


def _in_parts(order: list[int], size: int) -> Iterator[list[int]]:
    return (order[at : at + size] for at in range(0, len(order), size))


def _packed(order: list[int], groups: Sequence[Group], config: SftConfig) -> Iterator[list[int]]:
    """Batches of as many conversations as fit into `batch_size` rows of `max_length` tokens, filled row by row."""
    batch: list[int] = []
    rows = room = 0
    for i in order:
        if groups[i].tokens > room:
            if rows == config.batch_size:
                yield batch
                batch, rows = [], 0
            rows, room = rows + 1, config.max_length
        room -= groups[i].tokens
        batch.append(i)
    yield batch


def learn(
    accelerator: Accelerator,
    model: Any,
    demonstrations: Demonstrations,
    config: SftConfig,
    *,
    folder: Path,
    log: Callable[[dict[str, Any]], None] = lambda row: None,
    say: Callable[[str], None] = lambda text: None,
    rewind: Callable[[int], None] = lambda step: None,
    content: str = "",
    rows: RowFiles | None = None,
) -> Trained:
    """Train `model` in place on the conversations. Keywords and errors: see `loop.minimise`."""
    groups = demonstrations.groups
    steps = batches(groups, config)
    objective = LikelihoodObjective(groups)
    return minimise(
        accelerator, model, objective, steps, config, folder=folder, log=log, say=say, rewind=rewind, content=content,
        rows=rows,
    )  # fmt: skip


@dataclass(frozen=True)
class SftResult:
    """The result of `sft`. losses: one per step, nats per learnt token. turns, over_long: see `Demonstrations`.
    tokens: tokens computed, prompts included, pads not."""

    losses: list[float]
    turns: int
    over_long: int
    tokens: int
    seconds: float


def sft(
    model: Any,
    tokenizer: Any,
    rows: Sequence[Mapping[str, Any]],
    *,
    progress: Callable[[int, int], None] | None = None,
    **settings: Any,
) -> SftResult:
    """Train `model` in place on rows in memory, in fp32, without checkpoints.

    rows: see `tokenise`. settings: fields of SftConfig; `lr` is required. progress: called with (steps done, all steps).
    Raises PobenchError for wrong settings or rows, for weights that are not fp32, and for a loss or gradient that is not
    finite.
    """
    try:
        config = SftConfig(
            **{"source": "rows in memory", "precision": "fp32", "checkpoint_seconds": math.inf, **settings}
        )
    except pydantic.ValidationError as error:
        raise PobenchError("\n".join(explain(error, "sft.", SftConfig))) from None
    numbered = list(enumerate(rows, start=1))
    made = tokenise(tokenizer, numbered, source="sft", max_length=config.max_length, on_bad_row=config.on_bad_row)
    losses: list[float] = []

    def log(row: dict[str, Any]) -> None:
        losses.append(row["loss"])
        if progress is not None:
            progress(row["step"], row["steps"])

    with tempfile.TemporaryDirectory() as folder:
        done = learn(make_accelerator(config.precision), model, made, config, folder=Path(folder), log=log)
    return SftResult(losses, made.turns, made.over_long, done.tokens, done.seconds)
