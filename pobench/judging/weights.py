"""Shared by judges that run a model on this machine: its source, its precision and device, and batches of prompts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch

from pobench.errors import PobenchError
from pobench.judging.pairwise import Progress
from pobench.model.device import bf16_pays
from pobench.model.load import attention_of, refuse_not_finite
from pobench.positions import rope_reach
from pobench.sources import fetch_model, weights_fault

Precision = Literal["auto", "fp32", "bf16"]
SHARD_BATCHES = 8  # of a judge with weights, in a shard


def rows_of_shard(judge: Any) -> int:
    """How many answers or comparisons a shard holds, about."""
    return SHARD_BATCHES * int(getattr(judge, "batch_size", 1))


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


def read_weights(weights: Weights, make: Callable[[dict[str, torch.Tensor]], torch.nn.Module], kind: str) -> Any:
    """A module with the folder's safetensors as its weights, in the judge's precision, on its device, ready to judge.

    make: builds the module; it gets the weights by name. kind: of the model, for the message. Raises PobenchError where the
    folder's weights are not those of the module.
    """
    from accelerate import init_empty_weights
    from safetensors.torch import load_file

    files = sorted(weights.folder.glob("*.safetensors"))
    state = {
        name: tensor.to(weights.dtype)
        for file in files
        for name, tensor in load_file(file, device=weights.device.type).items()
        if not name.endswith(".position_ids")  # a constant that older versions of transformers stored
    }
    with init_empty_weights(include_buffers=False):
        model = make(state)
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    found = {
        "missing_keys": shapes.keys() - state.keys(),
        "unexpected_keys": state.keys() - shapes.keys(),
        "mismatched_keys": [(n, t.shape, shapes[n]) for n, t in state.items() if shapes.get(n, t.shape) != t.shape],
    }
    if fault := weights_fault(found):
        raise PobenchError(f"{weights.name!r} is no {kind}: {fault}")
    model.load_state_dict(state, assign=True)
    refuse_not_finite(model, f"{kind} {weights.name!r}")
    return model.to(weights.device).eval()


def longest(model: Any) -> int:
    """The largest number of tokens that the model can read."""
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return int(limit) if limit and limit > 0 else 2**31


def batches(
    rows: Sequence[Sequence[int]],
    size: int,
    model: Any,
    progress: Progress | None = None,
    limit: int | None = None,
) -> Iterator[list[int]]:
    """Batches of row indices, at most `size` rows of similar length each; rows longer than `limit` are left out, by default
    `longest(model)`.

    A batch lies on one side of the length at which rotary frequencies change, so a row is read as it would be alone. The
    longest rows come first, so that a lack of memory shows at once.
    """
    limit = longest(model) if limit is None else limit
    border = rope_reach(model.config.get_text_config(), 1) or 0
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
