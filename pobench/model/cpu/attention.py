"""The attention `parts_over_sdpa`: it computes shared-prefix rows part by part, for layers that keep their own forward.

Calls whose mask carries parts (`prefix_attention.py`) are computed by parts; all other calls go to `sdpa`.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from torch import Tensor

from pobench.model.attention import base_kind, can_change, current_kind
from pobench.model.cpu.prefix_attention import PrefixAttention, parts_under, whole_mask
from pobench.model.products import product_type

_NAME = "parts_over_sdpa"


def use_parts(model: Any) -> None:
    """Let the layers of a model on a processor take masks that carry parts, if its attention is `sdpa` and can be exchanged.
    Otherwise nothing changes."""
    if can_change(model) and current_kind(model) == base_kind(model) == "sdpa":
        _register()
        model.set_attn_implementation(_NAME)


def takes_parts(model: Any) -> bool:
    """Whether the model's layers take masks that carry parts now."""
    return current_kind(model) == _NAME


@cache
def _register() -> None:
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(_NAME, _parts_or(sdpa_attention_forward))
    AttentionMaskInterface.register(_NAME, sdpa_mask)


def _parts_or(base: Any) -> Any:
    def attention(module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **how: Any) -> Any:
        parts = None if attention_mask is None else parts_under(attention_mask)
        if parts is None or how.get("dropout") or how.get("position_bias") is not None:
            matrix = None if attention_mask is None else whole_mask(attention_mask)
            return base(module, query, key, value, matrix, **how)
        scale = how.get("scaling")
        scale = query.shape[-1] ** -0.5 if scale is None else scale
        dtype = product_type(query)
        by_token = (t.to(dtype).transpose(1, 2) for t in (query, key, value))
        return PrefixAttention.apply(*by_token, scale, parts), None

    return attention
