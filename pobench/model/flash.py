"""FlashAttention 2 over padded rows, on a GPU: `model.attention: flash_attention_2`, with the package `flash-attn`.

It takes calls without a mask, in which every token sees all before it: padded rows, whose pads stand behind, and the reading of
one sequence. All other calls (padded prompts, a growing cache, sliding windows) go to the model's base kind. Its kernels
compute in bf16, so it is proven there, and no run in fp32 takes it.
"""

from __future__ import annotations

import importlib.util
from functools import cache
from typing import Any

import torch
from torch import Tensor

from pobench.errors import PobenchError
from pobench.model.attention import base_kind, can_change, current_kind, register_over
from pobench.model.products import product_type

NAME = "flash_attention_2"
# not called flash: transformers would take the name for kernels of its own
_NAME = "fused_over_sdpa"


def missing(attention: str, layout: str, precision: str) -> list[str]:
    """What speaks against it here, one line each; [] for another kind of attention.

    layout, precision: of the train section; "auto" is what suits.
    """
    if attention != NAME:
        return []
    faults = []
    if not torch.cuda.is_available():
        faults.append(f"model.attention: {NAME} needs a GPU, and there is none; allowed here: auto, sdpa, eager")
    elif importlib.util.find_spec("flash_attn") is None:
        faults.append(f"model.attention: {NAME}: flash-attn is not installed; pip install 'pobench[flash-attention]'")
    if layout == "shared_prefix":
        faults.append(f"train.layout: shared_prefix needs masks, and {NAME} reads none; allowed here: auto, padded")
    if precision == "fp32":
        faults.append(f"train.precision: {NAME} computes in bf16; allowed here: auto, bf16")
    return faults


def use_flash(model: Any) -> None:
    """Let the model's layers take calls without a mask to FlashAttention.

    Raises PobenchError for a model whose attention cannot be exchanged, or is eager: such a model makes a mask for every call,
    so none would come to FlashAttention.
    """
    if not can_change(model) or base_kind(model) != "sdpa":
        reason = "is eager" if can_change(model) else "cannot be exchanged"
        raise PobenchError(f"model.attention: {NAME}: this model's attention {reason}; allowed here: auto")
    _register()
    model.set_attn_implementation(_NAME)


def takes_flash(model: Any) -> bool:
    """Whether the model's layers call FlashAttention now."""
    return current_kind(model) == _NAME


@cache
def _register() -> None:
    register_over({"sdpa": _NAME}, _flash_or)


def _flash_or(base: Any) -> Any:
    def attention(module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **how: Any) -> Any:
        narrow = product_type(query) in (torch.bfloat16, torch.float16)
        whole = attention_mask is None and query.shape[2] == key.shape[2] > 1 and getattr(module, "is_causal", True)
        plain = not how.get("dropout") and how.get("s_aux") is None and how.get("softcap") is None
        if narrow and whole and plain:
            return _flash(query, key, value, how.get("scaling")), None
        return base(module)(module, query, key, value, attention_mask, **how)

    return attention


def _flash(query: Tensor, key: Tensor, value: Tensor, scaling: float | None) -> Tensor:
    """(rows, width, heads, features) of query (rows, heads, width, features), key and value (rows, fewer heads, …)."""
    from flash_attn import flash_attn_func

    dtype = product_type(query)
    q, k, v = (t.transpose(1, 2).to(dtype) for t in (query, key, value))
    y: Tensor = flash_attn_func(q, k, v, softmax_scale=scaling, causal=True)
    return y
