"""The sizes of a model, from its configuration alone: an outline of it is made on the meta device, without any weight."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import nn

from pobench.model.load import outline


@dataclass(frozen=True)
class ModelShape:
    """Sizes that decide time and memory.

    parameters: all, a tied weight once. layers: decoder layers; layer: parameters of the largest. outside: parameters outside
    the layers: embedding, last norm, head. hidden, inner: features of the stream and of an MLP. query, key: features of all
    query heads, and of all key heads. heads: query heads. vocabulary: rows of the head. linear: weights in the layers' linear
    modules. adapted: name of a linear module → its inputs and outputs, summed over the layers.
    """

    parameters: int
    layers: int
    layer: int
    outside: int
    hidden: int
    inner: int
    query: int
    key: int
    heads: int
    vocabulary: int
    linear: int
    adapted: Mapping[str, int]

    def adapter_parameters(self, rank: int, targets: str | list[str]) -> int:
        """Weights of LoRA matrices of this rank beside the named linear modules ("all-linear": all in the layers)."""
        return rank * sum(n for name, n in self.adapted.items() if targets == "all-linear" or name in targets)


def shape_of(config: Mapping[str, Any]) -> ModelShape:
    """Of the causal language model with this configuration. Raises ValueError, KeyError, TypeError or AttributeError where
    transformers cannot build it without code of its own."""
    return _shape_of(json.dumps(config, sort_keys=True))


@cache
def _shape_of(config: str) -> ModelShape:
    model = outline(json.loads(config))
    kinds = set(model._no_split_modules or ())
    layers = [module for module in model.modules() if type(module).__name__ in kinds]
    linear = [(n.rpartition(".")[2], m) for layer in layers for n, m in layer.named_modules() if type(m) is nn.Linear]
    adapted: Counter[str] = Counter()
    for name, module in linear:
        adapted[name] += module.in_features + module.out_features
    text = model.config.get_text_config()
    heads, hidden = int(text.num_attention_heads), int(text.hidden_size)
    width = int(getattr(text, "head_dim", None) or hidden // heads)
    total, inside = _count([model]), _count(layers)
    return ModelShape(
        parameters=total,
        layers=len(layers) or int(text.num_hidden_layers),
        layer=max((_count([layer]) for layer in layers), default=0),
        outside=total - inside,
        hidden=hidden,
        inner=int(getattr(text, "intermediate_size", None) or 4 * hidden),
        query=heads * width,
        key=int(getattr(text, "num_key_value_heads", None) or heads) * width,
        heads=heads,
        vocabulary=int(text.vocab_size),
        linear=sum(module.weight.numel() for _, module in linear),
        adapted=dict(adapted),
    )


def _count(modules: list[Any]) -> int:
    weights: dict[int, torch.Tensor] = {id(p): p for module in modules for p in module.parameters()}
    return sum(p.numel() for p in weights.values())
