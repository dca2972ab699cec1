"""The kinds of attention that a model's layers call, and masks that are added to scores.

transformers looks an attention function up by the name in the model's configuration. pobench registers two more kinds.
Each takes one further form of mask, and passes every other call (one sequence, padded rows, answers) to the kind that the
model had before. The names show both: `flex_over_sdpa` (`flex.py`, GPUs), `parts_over_sdpa` (`cpu/`, processors).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor


def current_kind(model: Any) -> str:
    """The name of the attention that the model's layers call now."""
    name: str = model.config.get_text_config()._attn_implementation
    return name


def base_of(kind: str) -> str:
    """The transformers kind that one of pobench's kinds extends; for any other kind, the kind itself."""
    return kind.rpartition("_over_")[2]


def base_kind(model: Any) -> str:
    """The attention that serves calls without a mask of pobench's own form: `sdpa`, `eager`, …"""
    return base_of(current_kind(model))


def can_change(model: Any) -> bool:
    """Whether transformers can exchange this model's attention after loading."""
    return bool(getattr(model, "_can_set_attn_implementation", lambda: False)())


def use_matrices(model: Any) -> None:
    """Switch the model's layers back to their base kind, which takes masks as matrices."""
    if current_kind(model) != base_kind(model):
        model.set_attn_implementation(base_kind(model))


def register_over(names: Mapping[str, str], over: Callable[[Callable[[Any], Any]], Any]) -> None:
    """Register a kind over each base, whose masks it takes. names: base, `sdpa` or `eager` → the kind's name. over(base): the
    kind's function, which passes calls on to `base(module)`."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward
    from transformers.masking_utils import eager_mask, sdpa_mask

    bases: dict[str, tuple[Callable[[Any], Any], Any]] = {
        "sdpa": (lambda module: sdpa_attention_forward, sdpa_mask),
        # Every architecture defines its own eager attention, in the Python module of its layers.
        "eager": (lambda module: sys.modules[type(module).__module__].eager_attention_forward, eager_mask),
    }
    for base, name in names.items():
        function, mask = bases[base]
        AttentionInterface.register(name, over(function))
        AttentionMaskInterface.register(name, mask)


def added_mask(visible: Tensor, dtype: torch.dtype) -> Tensor:
    """A mask to add to the scores: 0 where `visible`, elsewhere the smallest number of the type."""
    return torch.zeros(visible.shape, dtype=dtype, device=visible.device).masked_fill_(~visible, torch.finfo(dtype).min)
