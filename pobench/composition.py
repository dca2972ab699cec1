"""Expressions of losses: `[number*]term` joined by `+`, where a term is a loss or `modifier(term)`.

`ld(dpo)` is DPO on what `ld` makes of its inputs; `dpo + 0.8*bco_pair + sft` is a weighted sum. `sft` stands for the mean
negative log-probability of a chosen response's tokens, in a sum alone.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from pobench.errors import PobenchError

SFT = "sft"
MARKS = frozenset("+*()")  # a name that holds one of them is an expression
_TOKEN = re.compile(r"\s*(?:(?P<weight>(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)\s*\*|(?P<mark>[+*()])|(?P<name>[^+*()]+))")


class Term(NamedTuple):
    """`weight * outer(inner(loss))`; modifiers: ("outer", "inner"). loss: `sft` for the likelihood of the chosen response."""

    weight: float
    modifiers: tuple[str, ...]
    loss: str

    def __str__(self) -> str:
        text = "".join(f"{name}(" for name in self.modifiers) + self.loss + ")" * len(self.modifiers)
        return text if self.weight == 1 else f"{self.weight:.12g}*{text}"


def spelled(terms: Iterable[Term]) -> str:
    """The one spelling of an expression."""
    return " + ".join(map(str, terms))


def folder_name(expression: str) -> str:
    """An expression as the beginning of a folder's name: `ld(dpo)` → `ld-dpo`. Two expressions may share one; the digest that
    follows tells them apart."""
    return expression.replace(" ", "").replace("(", "-").replace("*", "-").replace(")", "")[:48].rstrip("-+")


def split(text: str) -> list[str]:
    """The expressions of a list: split at commas outside brackets, without blanks around; empty ones left out."""
    parts, depth = [""], 0
    for character in text:
        depth += (character == "(") - (character == ")")
        if character == "," and depth <= 0:
            parts.append("")
        else:
            parts[-1] += character
    return [part.strip() for part in parts if part.strip()]


def own_settings(part: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of one part among those of an expression, without its name in front."""
    return {key.removeprefix(f"{part}."): value for key, value in settings.items() if key.startswith(f"{part}.")}


def parse(text: str) -> list[Term]:
    """The terms of an expression, names as they are written. Raises PobenchError that says where it breaks off."""
    tokens = [(str(match.lastgroup), str(match[match.lastgroup or 0]).strip()) for match in _TOKEN.finditer(text)]
    tokens = [(kind, value) for kind, value in tokens if value]
    terms: list[Term] = []
    at = 0

    def fault(expected: str) -> PobenchError:
        got = f"got {tokens[at][1]!r}" if at < len(tokens) else "it ends"
        return PobenchError(
            f"{text!r}: behind {''.join(value for _, value in tokens[:at]) or 'its beginning'!r} {got}; expected {expected}, "
            "as in 'ld(dpo)' or 'dpo + 0.8*bco_pair + sft'"
        )

    def take(kind: str, value: str = "") -> str | None:
        nonlocal at
        if at < len(tokens) and tokens[at][0] == kind and (not value or tokens[at][1] == value):
            at += 1
            return tokens[at - 1][1]
        return None

    while True:
        weight = take("weight")
        names = []
        while True:
            name = take("name")
            if name is None:
                raise fault("the name of a loss or a modifier")
            names.append(name)
            if not take("mark", "("):
                break
        for _ in names[1:]:
            if not take("mark", ")"):
                raise fault("')'")
        terms.append(Term(1.0 if weight is None else float(weight), tuple(names[:-1]), names[-1]))
        if at == len(tokens):
            return terms
        if not take("mark", "+"):
            raise fault("'+' or the end")


def faults_of(terms: Sequence[Term]) -> list[str]:
    """What is wrong with terms whose names are known."""
    spellings = [str(term._replace(weight=1.0)) for term in terms]
    faults = [
        f"{name} stands in it more than once; give it one weight"
        for name in dict.fromkeys(spellings)
        if spellings.count(name) > 1
    ]
    faults += [
        f"the weight of {term._replace(weight=1.0)} is {term.weight:g}; expected a number above 0"
        for term in terms
        if not 0 < term.weight < math.inf
    ]
    for term in terms:
        repeated = [name for name in dict.fromkeys(term.modifiers) if term.modifiers.count(name) > 1]
        faults += [f"{name} is around {term.loss} more than once" for name in repeated]
        if term.loss == SFT and term.modifiers:
            faults.append(f"{term.modifiers[-1]} modifies a loss over pairs; {SFT} is none")
    if all(term.loss == SFT for term in terms):
        faults.append(f"{SFT} is a term of a sum, as in 'dpo + 0.2*sft'; the stage {SFT} trains on demonstrations")
    return faults
