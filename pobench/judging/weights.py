"""Shared by judges that run a model on this machine: its source, its precision and device, and batches of prompts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch

from pobench.errors import PobenchError
from pobench.judging.pairwise import Progress
from pobench.model.device import bf16_pays
from pobench.model.load import attention_of
from pobench.positions import rope_reach
from pobench.sources import fetch_model

Precision = Literal["auto", "fp32", "bf16"]


@dataclass(frozen=True)
class Weights:
    """The judge's model. precision: of weights and arithmetic; auto: bf16 on a GPU that supports it, else fp32."""

    source: str
    revision: str | None = None
    precision: Precision = "auto"
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        if not self.source:
            raise PobenchError("judge.settings.model: name the judge's model, a folder or a hub name")

    @property
    def name(self) -> str:
        """The last part of the source, so that no path of this machine is stored in a result."""
        return Path(self.source).name

    @cached_property
    def folder(self) -> Path:
        option = "the judge's setting `model`"
        return fetch_model(self.source, revision=self.revision, trust_remote_code=self.trust_remote_code, option=option)

    @property
    def attention(self) -> str | None:
        return attention_of(self.folder)

    @property
    def device(self) -> torch.device:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")

    @property
    def dtype(self) -> torch.dtype:
        narrow = self.device.type == "cuda" and bf16_pays(self.device) if self.precision == "auto" else None
        return torch.bfloat16 if narrow or self.precision == "bf16" else torch.float32


def longest(model: Any) -> int:
    """The largest number of tokens that the model can read."""
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return int(limit) if limit and limit > 0 else 2**31


def batches(
    rows: Sequence[Sequence[int]], size: int, model: Any, progress: Progress | None = None
) -> Iterator[list[int]]:
    """Batches of row indices, at most `size` rows of similar length each; rows longer than `longest(model)` are left out.

    A batch lies on one side of the length at which rotary frequencies change, so a row is read as it would be alone. The
    longest rows come first, so that a lack of memory shows at once.
    """
    limit, border = longest(model), rope_reach(model.config.get_text_config(), 1) or 0
    order = sorted((i for i, row in enumerate(rows) if len(row) <= limit), key=lambda i: (-len(rows[i]), i))
    longer = sum(len(rows[i]) > border for i in order)
    done = len(rows) - len(order)
    for side in (order[:longer], order[longer:]):
        for start in range(0, len(side), size):
            batch = side[start : start + size]
            yield batch
            done += len(batch)
            if progress is not None:
                progress(done, len(rows))
