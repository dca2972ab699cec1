"""Dropout, switched off as a whole: the policy computes by the same function as the reference, in training too.

transformers applies dropout in three ways: by `nn.Dropout` modules (GPT-2), by numbers that a module holds and hands to a
function (Llama's `attention_dropout`, OPT's `layerdrop`), and by numbers that a forward reads from the configuration
(GPT-J, Falcon, Persimmon).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from torch import nn
from torch.nn.modules.dropout import _DropoutNd
from transformers import PretrainedConfig


def switch_off_dropout(model: nn.Module) -> Callable[[], None]:
    """Set every rate of dropout in `model` and in its configurations to zero.

    The configurations are saved beside trained weights, so the returned function gives them their values back. The modules'
    own rates stay zero.
    """
    configurations: dict[int, PretrainedConfig] = {}
    for module in model.modules():
        if isinstance(module, _DropoutNd):
            module.p = 0.0
        for name in _rates(module):
            setattr(module, name, 0.0)
        config = getattr(module, "config", None)
        if isinstance(config, PretrainedConfig):
            configurations |= {id(nested): nested for nested in _nested(config)}
    before = [(config, name, getattr(config, name)) for config in configurations.values() for name in _rates(config)]
    for config, name, _ in before:
        setattr(config, name, 0.0)

    def restore() -> None:
        for config, name, rate in before:
            setattr(config, name, rate)

    return restore


def _rates(holder: Any) -> list[str]:
    """Names of the attributes that hold a rate of dropout: `attention_dropout`, `attn_pdrop`, `layerdrop`, `drop_prob`, …"""
    return [name for name, value in vars(holder).items() if "drop" in name and isinstance(value, float) and value > 0]


def _nested(config: PretrainedConfig) -> Iterator[PretrainedConfig]:
    yield config
    for value in vars(config).values():
        if isinstance(value, PretrainedConfig):
            yield from _nested(value)
