"""Dropout, switched off as a whole: the policy computes by the same function as the reference, in training too.

transformers applies dropout in three ways: by `nn.Dropout` modules (GPT-2), by numbers that a module holds and hands to a
function (Llama's `attention_dropout`, OPT's `layerdrop`), and by numbers that a forward reads from the configuration
(GPT-J, Falcon, Persimmon). Routers may multiply by random numbers near 1 (Mixtral, DBRX) or draw their experts
(PhiMoE), which goes the same way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from torch import nn
from torch.nn.modules.dropout import _DropoutNd
from transformers import PretrainedConfig

# The widths of a router's random factors. PhiMoE's `router_jitter_noise` also decides what it computes in evaluation, and is
# no such width.
_JITTER = frozenset({"jitter_noise", "input_jitter_noise", "moe_jitter_eps"})


class SwitchedOff(NamedTuple):
    """rates: name → the largest rate that it had. restore: gives the configurations, which are saved beside trained weights,
    their values back; the modules' own rates stay zero."""

    rates: dict[str, float]
    restore: Callable[[], None]

    @property
    def note(self) -> str:
        """A sentence for people; "" if the model had no dropout."""
        if not self.rates:
            return ""
        rates = ", ".join(f"{name} {rate:g}" for name, rate in sorted(self.rates.items()))
        return f"the model's dropout is off in training, as it is in the reference: {rates}"


def switch_off_dropout(model: nn.Module) -> SwitchedOff:
    """Set every rate of dropout in `model` and in its configurations to zero."""
    rates: dict[str, float] = {}
    configurations: dict[int, PretrainedConfig] = {}
    for module in model.modules():
        if isinstance(module, _DropoutNd):
            rates |= {"dropout": max(module.p, rates.get("dropout", 0.0))} if module.p else {}
            module.p = 0.0
        for name in _rates(module):
            rates[name] = max(getattr(module, name), rates.get(name, 0.0))
            setattr(module, name, 0.0)
        if hasattr(module, "router_jitter_noise"):
            rates["draws of a router"] = 1.0
            module.register_forward_pre_hook(_as_in_evaluation)
        config = getattr(module, "config", None)
        if isinstance(config, PretrainedConfig):
            configurations |= {id(nested): nested for nested in _nested(config)}
    before = [(config, name, getattr(config, name)) for config in configurations.values() for name in _rates(config)]
    for config, name, rate in before:
        rates[name] = max(rate, rates.get(name, 0.0))
        setattr(config, name, 0.0)

    def restore() -> None:
        for config, name, rate in before:
            setattr(config, name, rate)

    return SwitchedOff(rates, restore)


def _as_in_evaluation(module: nn.Module, args: Any) -> None:
    """A hook: PhiMoE's router draws its experts while it trains, and takes the best ones in evaluation."""
    module.training = False


def _rates(holder: Any) -> list[str]:
    """Names of the attributes that hold a rate of dropout: `attention_dropout`, `attn_pdrop`, `layerdrop`, `drop_prob`, …"""
    rates = {name: value for name, value in vars(holder).items() if "drop" in name or name in _JITTER}
    return [name for name, value in rates.items() if isinstance(value, float) and value > 0]


def _nested(config: PretrainedConfig) -> Iterator[PretrainedConfig]:
    yield config
    for value in vars(config).values():
        if isinstance(value, PretrainedConfig):
            yield from _nested(value)
