"""All losses and modifiers by name, and the losses that expressions of them describe (`pobench.composition`)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import combinations
from typing import Any

from pobench.composition import MARKS, SFT, Term, faults_of, own_settings, parse, spelled
from pobench.errors import PobenchError, UnknownNameError
from pobench.registry.loss import Loss, Modifier, formula_of
from pobench.registry.named import Registry
from pobench.registry.signature import BY_TOKEN, REFERENCED, SUPPLIED

# Names beside the losses' folders (`start-…`, `data-…`, `tuning`), in `--losses`, and in front of the dot of `--set`.
NOT_A_LOSS = frozenset(["start", "data", "tuning", "all", "paper", "rated", "none", "losses", "benchmarks"]) | {
    "model",
    "train",
    "answers",
    "judge",
    "sft",
    "tune",
    "onpolicy",
}


modifiers: Registry[Modifier] = Registry(
    "modifier", "pobench.losses.modifiers", entry_points="pobench.modifiers", reserved=NOT_A_LOSS
)


class Losses(Registry[Loss]):
    """Losses by name, and expressions of losses and modifiers (`pobench.composition`)."""

    def get(self, name: str) -> Loss:
        """The loss called `name`, or the loss that an expression describes. Raises UnknownNameError, and PobenchError that
        lists what is wrong with an expression."""
        return _composed(name) if MARKS & set(name) else super().get(name)

    def canonical(self, name: Any) -> str:
        """The registered name, or an expression's one spelling; what is neither stays unchanged."""
        if not MARKS & set(str(name)):
            return super().canonical(name)
        try:
            return _composed(str(name)).name
        except PobenchError:
            return str(name)


losses = Losses("loss", "pobench.losses", entry_points="pobench.losses", reserved=NOT_A_LOSS)


def get_loss(name: str) -> Loss:
    """The loss called `name` or one of its aliases; a callable. Raises UnknownNameError."""
    return losses.get(name)


def list_losses() -> list[str]:
    """The names of all registered losses, sorted."""
    return losses.names()


def part_of(name: str) -> Loss | Modifier:
    """The loss, expression or modifier called `name`. Raises UnknownNameError."""
    if modifiers.canonical(name) in modifiers.names():
        return modifiers.get(name)
    return losses.get(name)


def _composed(text: str) -> Loss:
    terms = [
        Term(
            t.weight,
            tuple(map(modifiers.canonical, t.modifiers)),
            SFT if t.loss.lower() == SFT else losses.canonical(t.loss),
        )
        for t in parse(text)
    ]
    parts: dict[str, Loss | Modifier] = {}
    faults: list[str] = []
    for term in terms:
        for name in (*term.modifiers, term.loss) if term.loss != SFT else term.modifiers:
            try:
                parts[name] = losses.get(name) if name == term.loss else modifiers.get(name)
            except UnknownNameError as error:
                faults.append(f"{text!r}: {error}")
    if not faults:
        found = *faults_of(terms), *_not_of_pairs(parts.values()), *_unmodified(terms, parts), *_moved(terms, parts)
        faults += [f"{text!r}: {fault}" for fault in found]
    if faults:
        raise PobenchError("\n".join(faults))
    return _loss_of(terms, parts)


def _not_of_pairs(parts: Iterable[Loss | Modifier]) -> Iterator[str]:
    for part in parts:
        if isinstance(part, Loss) and part.unit != "pairs":
            yield f"{part.name} is a loss of {part.unit}; sums and modifiers are of losses of pairs"


def _unmodified(terms: Iterable[Term], parts: Mapping[str, Loss | Modifier]) -> Iterator[str]:
    """A fault for each modifier around a loss or modifier that reads what it does not change."""
    for term in terms:
        around = [part for name in term.modifiers if isinstance(part := parts[name], Modifier)]
        changing = [modifier for modifier in around if not (modifier.moves_reference or modifier.weighs)]
        needs = frozenset[str]() if term.loss == SFT else parts[term.loss].needs
        for name in sorted(needs & {"batch", *BY_TOKEN}) if changing else ():
            if leaving := [modifier.name for modifier in changing if name not in modifier.takes]:
                yield f"{leaving[-1]} changes a pair's sums, and {term.loss} reads {name}, which stay as they are"
        if "batch" in needs and (weighing := [part.name for part in around if part.weighs]):
            yield f"{weighing[-1]} weighs each pair's loss, and {term.loss} reads batch: a pair has no loss of its own there"
        for outer, inner in combinations([part for part in around if not part.moves_reference], 2):
            if outer.weighs:
                continue
            for name in sorted(inner.needs & {*BY_TOKEN} - {"tokens"} - {*outer.takes}):
                yield f"{outer.name} changes a pair's sums, and {inner.name} reads {name}, which stay as they are"
            if "tokens" not in outer.takes and "tokens" in inner.takes:
                yield (
                    f"{outer.name} changes a pair's sums, which {inner.name} adds up anew from the tokens; write "
                    f"{inner.name} around {outer.name}"
                )


def _moved(terms: Iterable[Term], parts: Mapping[str, Loss | Modifier]) -> Iterator[str]:
    """A fault for a modifier that moves the reference around what reads none, or beside a term that reads it unmoved, or beside
    another that moves it."""
    movers: list[str] = []
    unmoved: list[str] = []
    for term in terms:
        names = [name for name in (*term.modifiers, term.loss) if name != SFT]
        moving = [name for name in names if parts[name].moves_reference]
        reads = any(not parts[name].needs.isdisjoint(REFERENCED) for name in names)
        if moving and not reads:
            yield f"{moving[0]} moves the reference, and {term.loss} reads none"
        if reads and not moving:
            unmoved.append(str(term._replace(weight=1.0)))
        movers += moving
    if movers and unmoved:
        yield f"{movers[0]} moves the one reference that all terms read; write {movers[0]} around {' and '.join(unmoved)}, too"
    if len(set(movers)) > 1:
        yield f"{' and '.join(dict.fromkeys(movers))} move the one reference; use one of them"


def _loss_of(terms: list[Term], parts: Mapping[str, Loss | Modifier]) -> Loss:
    """An expression as a loss: its settings are those of its parts, each behind the part's name."""
    from pobench.composed import Composed, Part  # with torch

    needs = frozenset().union(*(part.needs for part in parts.values()))

    def part(name: str) -> Part:
        one = parts[name]
        takes = (
            one.takes if isinstance(one, Modifier) else tuple(s for s in SUPPLIED if s == "policy" or s in one.needs)
        )
        return Part(name, one.function, takes, isinstance(one, Modifier) and one.of_ratios)

    def facts(kind: str) -> dict[str, Any]:
        return {f"{p.name}.{key}": value for p in parts.values() for key, value in getattr(p, kind, {}).items()}

    def canonical(settings: Mapping[str, Any]) -> dict[str, Any]:
        spelt: dict[str, Any] = {}
        for p in parts.values():
            own = own_settings(p.name, settings)
            spelt |= {f"{p.name}.{key}": v for key, v in p.canonical(own).items()}
        return spelt

    def title(term: Term) -> str:
        inner = "SFT" if term.loss == SFT else parts[term.loss].title
        whole = "".join(f"{parts[name].title}(" for name in term.modifiers) + inner + ")" * len(term.modifiers)
        return whole if term.weight == 1 else f"{term.weight:.12g} × {whole}"

    name = spelled(terms)
    chains = tuple(
        (t.weight, tuple(part(n) for n in (*t.modifiers, *((t.loss,) if t.loss != SFT else ())))) for t in terms
    )
    formulas = [f"    {p.name}: {line}" for p in parts.values() for line in formula_of(p.doc).splitlines()]
    return Loss(
        name=name,
        function=Composed(tuple(s for s in SUPPLIED if s == "policy" or s in needs), chains),
        source="; ".join(f"{p.name}: {p.source}" for p in parts.values()),
        needs=needs,
        settings=facts("settings"),
        doc=f"An expression of losses.\n\n    loss = {name}\n\n"
        + "\n".join(formulas)
        + "\n\nReward: the weighted sum of its parts' rewards; sft has none.",
        units=facts("units"),
        ranges=facts("ranges"),
        meanings=facts("meanings"),
        defaults=facts("defaults"),
        title=" + ".join(map(title, terms)),
        alternatives=tuple(
            tuple(f"{p.name}.{n}" for n in group)
            for p in parts.values()
            if isinstance(p, Loss)
            for group in p.alternatives
        ),
        canonical=canonical,
        parts=tuple(parts.values()),
    )
