"""How many positions a model reads, by its configuration.

Two kinds of rotary positions choose their frequencies by the longest sequence of a batch: "longrope" (one of two sets) and
"dynamic" (a new set for each length beyond the context). Left to itself, a sequence's log-probability then depends on its
neighbours. pobench computes with the frequencies of one length, a run's `max_length`, everywhere: see `pobench.model.rope`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def context_of(config: Any) -> int | None:
    """The most tokens that a model reads, with the stretch of its rotary positions where `max_position_embeddings` does not
    count it yet; None without a limit. config: of transformers, for text."""
    limit = getattr(config, "max_position_embeddings", None)
    if not limit or limit < 0 or getattr(config, "alibi", False):
        return None
    stretched = [
        (kind.get("original_max_position_embeddings") or limit) * (kind.get("factor") or 1) for kind in _rotary(config)
    ]
    return int(max(limit, *stretched))


def rope_reach(config: Any, length: int) -> int | None:
    """The most tokens of a sequence that has the rotary frequencies of one with `length` tokens; None where a model's
    frequencies are the same at every length.

    `rope_reach(config, 1)` is the border up to which neighbours change nothing.
    """
    reaches = [_reach(config, kind, length) for kind in _rotary(config)]
    return min((reach for reach in reaches if reach is not None), default=None)


def _reach(config: Any, kind: Mapping[str, Any], length: int) -> int | None:
    name = kind.get("rope_type") or kind.get("type") or ""
    border = kind.get("original_max_position_embeddings") or getattr(config, "original_max_position_embeddings", None)
    limit = getattr(config, "max_position_embeddings", None)
    if name == "longrope" and (border := border or limit):
        return int(border if length <= border else max(length, context_of(config) or 0))
    if "dynamic" in name and limit:
        return int(max(length, limit))
    return None


def _rotary(config: Any) -> list[Mapping[str, Any]]:
    """The parameters of the rotary positions: of all layers, or of each kind of layer."""
    parameters = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    return [parameters, *(kind for kind in parameters.values() if isinstance(kind, Mapping))]
