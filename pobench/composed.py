"""The function of an expression of losses (`pobench.composition`): what its terms give, added up."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from pobench.composition import own_settings
from pobench.types import LossOutput, Pair


class Part(NamedTuple):
    """A function of an expression: a loss's, or a modifier's, which gets the inner loss first. takes: the names of its inputs,
    in order. of_ratios: the inner loss must read policy and reference by their difference alone."""

    name: str
    function: Callable[..., LossOutput]
    takes: tuple[str, ...]
    of_ratios: bool = False


@dataclass(frozen=True)
class Composed:
    """The function of an expression. It is called as a loss's function is: inputs in order, then settings by name, each behind
    its part's name (`dpo.beta`)."""

    takes: tuple[str, ...]
    terms: tuple[tuple[float, tuple[Part, ...]], ...]  # (weight, modifiers from the outside, the loss last; (): sft)

    def within_ratios(self) -> list[tuple[Part, Composed]]:
        """Each modifier that fits losses of ratios alone, and the loss within it."""
        chains = [(parts, i) for _, parts in self.terms for i, part in enumerate(parts) if part.of_ratios]
        return [(parts[i], Composed(self.takes, ((1.0, parts[i + 1 :]),))) for parts, i in chains]

    def __call__(self, *inputs: Any, **settings: Any) -> LossOutput:
        """The weighted sum of the terms, in loss and rewards."""
        given = dict(zip(self.takes, inputs, strict=True))
        outputs = [(weight, _evaluate(parts, given, settings)) for weight, parts in self.terms]
        return LossOutput(*(sum(weight * output[i] for weight, output in outputs) for i in range(3)))  # type: ignore[arg-type]


@dataclass(frozen=True)
class Inner:
    """The loss within a modifier: `loss()` is that loss on what it would be given, `loss(policy=…)` with another policy."""

    parts: tuple[Part, ...]
    given: Mapping[str, Any]
    settings: Mapping[str, Any]

    def __call__(self, **changed: Any) -> LossOutput:
        return _evaluate(self.parts, {**self.given, **changed}, self.settings)

    def swapped(self) -> LossOutput:
        """The loss of the pair with its two responses exchanged, under policy and reference."""
        pairs = {name: Pair(*reversed(value)) for name, value in self.given.items() if isinstance(value, Pair)}
        return self(**pairs)


def _evaluate(parts: tuple[Part, ...], given: Mapping[str, Any], settings: Mapping[str, Any]) -> LossOutput:
    if not parts:
        return _likelihood(given["policy"])
    part, *inner = parts
    if (batch := given.get("batch")) is not None:
        given = {**given, "batch": batch._replace(state=batch.state.get(part.name, {}))}
    inputs = [given[name] for name in part.takes]
    around = [Inner(tuple(inner), given, settings)] if inner else []
    return part.function(*around, *inputs, **own_settings(part.name, settings))


def _likelihood(policy: Pair) -> LossOutput:
    """-log π of the chosen response, a token's mean; no reward."""
    none = policy.chosen.total.detach() * 0
    return LossOutput(-policy.chosen.mean, none, none)
