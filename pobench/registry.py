"""Registries of losses, judges, benchmarks, figures and layouts: registered by decorator, found by name or alias.

A loss is declared by its signature. Positional parameters name its inputs (`SUPPLIED`), and keyword parameters with defaults
are its settings.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import json
import math
import pkgutil
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from pobench.columns import FRAMES
from pobench.composition import MARKS, SFT, Term, faults_of, own_settings, parse, spelled
from pobench.errors import PobenchError, UnknownNameError, _normal, nearest
from pobench.files import name_fault

if TYPE_CHECKING:  # torch comes with the losses, when they are first looked up
    from pobench.types import AnswerBatch, Batch, Entropy, ListBatch, Logps, LossOutput, Pair, State, TokenLogps, Unit

if TYPE_CHECKING:
    from torch import Tensor


class Named(Protocol):
    @property
    def name(self) -> str: ...


T = TypeVar("T", bound=Named)
Kind = TypeVar("Kind")
Function = TypeVar("Function", bound=Callable[..., Any])


class Registry(Generic[T]):
    """Items of one kind by name and alias. The first look-up imports every file of `package`."""

    def __init__(
        self, kind: str, package: str, entry_points: str | None = None, reserved: frozenset[str] = frozenset()
    ) -> None:
        self.kind, self.package, self.entry_points, self.reserved = kind, package, entry_points, reserved
        self._items: dict[str, T] = {}
        self._aliases: dict[str, str] = {}
        self._loaded = False

    def add(self, item: T, aliases: Iterable[str] = ()) -> None:
        """Register `item`. Raises PobenchError if its name names no file, is reserved, or belongs to another item."""
        if fault := name_fault(item.name, self.reserved):
            raise PobenchError(f"{self.kind}: {fault}")
        taken = self._items.get(item.name)
        if taken is not None and _home(taken) != _home(item):
            raise PobenchError(f"{self.kind} {item.name!r} is registered twice: {_home(taken)} and {_home(item)}")
        for alias in (item.name, *aliases):
            owner = self._aliases.setdefault(_normal(alias), item.name)
            if owner != item.name:
                raise PobenchError(f"{self.kind} {item.name!r}: the name {alias!r} belongs to {owner!r} already")
        self._items[item.name] = item

    def get(self, name: str) -> T:
        """The item called `name`. Raises UnknownNameError with the nearest name and all known names."""
        self._load()
        try:
            return self._items[self._aliases[_normal(name)]]
        except KeyError:
            known = ", ".join(self.names())
            raise UnknownNameError(
                f"unknown {self.kind} {name!r}{nearest(name, self.names())} Known: {known}"
            ) from None

    def canonical(self, name: Any) -> str:
        """The registered name for a name or alias in any spelling; an unknown name stays unchanged."""
        self._load()
        return self._aliases.get(_normal(str(name)), str(name))

    def names(self) -> list[str]:
        """All names, sorted, without aliases."""
        self._load()
        return sorted(self._items)

    def aliases(self, name: str) -> list[str]:
        """The other names of `name`, normalised."""
        return sorted(a for a, owner in self._aliases.items() if owner == name and a != _normal(name))

    def files(self) -> list[Path]:
        """The files of the package in order of their names, without importing them."""
        package = importlib.util.find_spec(self.package)
        folders = (package.submodule_search_locations if package else None) or []
        names = [module.name for module in pkgutil.iter_modules(folders)]
        return [path for folder in folders for name in names if (path := Path(folder) / f"{name}.py").is_file()]

    def only_files(self) -> bool:
        """Whether all items come from the package's files: no plug-in and no installed package has added one."""
        return not self._items and not (self.entry_points and _installed(self.entry_points))

    def _load(self) -> None:
        if self._loaded:
            return
        self._loaded = True
        package = importlib.import_module(self.package)
        for module in pkgutil.iter_modules(getattr(package, "__path__", ())):
            importlib.import_module(f"{self.package}.{module.name}")
        for entry in _installed(self.entry_points) if self.entry_points else ():
            try:
                entry.load()
            except (Exception, SystemExit) as error:
                raise PobenchError(f"the installed plug-in {entry.value!r} {_fails(error)}") from error


def _installed(group: str) -> list[Any]:
    """The entry points of `group` that installed packages declare."""
    from importlib.metadata import entry_points

    return list(entry_points(group=group))


def _home(item: Any) -> str:
    function = getattr(item, "function", item)
    return f"{getattr(function, '__module__', '?')}.{getattr(function, '__qualname__', '?')}"


def _settings(signature: inspect.Signature) -> dict[str, Any]:
    return {p.name: p.default for p in signature.parameters.values() if p.kind is p.KEYWORD_ONLY}


# ---------------------------------------------------------------- losses
Marker = str | tuple[int, int, int]  # matplotlib's name of a marker, or (points, style, angle)
# The inputs that training can pass to a loss, in this order.
SUPPLIED = (
    *("policy", "responses", "response", "label", "reference", "kl", "tokens", "scores", "batch"),
    *("collision", "entropy", "forward_kl"),
)
# By what a loss has one value of, what it can ask for: the fields of `Inputs`, `ListInputs` and `AnswerInputs` in
# `pobench.types`. It must ask for the first.
INPUTS_OF: dict[Unit, tuple[str, ...]] = {
    "pairs": ("policy", "reference", "kl", "tokens", "scores", "batch", "collision", "entropy", "forward_kl"),
    "lists": ("responses", "reference", "tokens", "scores", "batch"),
    "answers": ("response", "label", "reference", "kl", "tokens", "scores", "batch"),
}
REFERENCED = ("reference", "kl", "forward_kl")  # inputs that the reference model gives
BY_TOKEN = ("tokens", "collision", "entropy", "forward_kl")  # inputs that a pair's sums do not give
READ_AS = {"pairs": "", "lists": "a pair is read as a list of two", "answers": "a pair is read as two labelled answers"}
OUTPUT_OF = {  # the type that it returns, and the shapes for n pairs, lists or answers
    "pairs": ("LossOutput", "one value per pair, ({n},)"),
    "lists": ("ListOutput", "one loss per list, ({n},), and one reward per answer, {rewards}"),
    "answers": ("AnswerOutput", "one value per answer, ({n},)"),
}
GRADIENT = "\nGradient:\n"  # this line of a loss's docstring separates its formula from its gradient


def _indented(text: str) -> str:
    return "\n".join(line.strip() for line in text.splitlines() if line.startswith("    ") and line.strip())


@dataclass(frozen=True)
class Loss:
    """A registered loss: its function, and the facts from its signature, docstring and registration."""

    name: str
    function: Callable[..., Any]
    source: str
    needs: frozenset[str]  # its inputs besides `policy`: a subset of `SUPPLIED`
    settings: Mapping[str, Any]  # setting -> default
    doc: str
    units: Mapping[str, str] = field(default_factory=dict)  # setting -> unit
    ranges: Mapping[str, Any] = field(default_factory=dict)  # setting -> published search range
    meanings: Mapping[str, str] = field(default_factory=dict)  # setting -> what it does, if its name does not say it
    defaults: Mapping[str, str] = field(default_factory=dict)  # setting -> where its default comes from
    in_paper: bool = False  # one of the twelve of the SimPO paper
    title: str = ""  # as a table prints it
    alternatives: tuple[tuple[str, ...], ...] = ()  # groups of settings that name one number: at most one may be given
    canonical: Callable[[Mapping[str, Any]], dict[str, Any]] = (
        dict  # settings -> the same in canonical form (γ instead of γ/β)
    )
    colour: str = ""  # in every figure, "#rrggbb"; "": derived from the name, see `pobench.reporting.looks`
    marker: Marker = ""
    update: Callable[..., State] | None = None  # of what it carries over steps: f(batch, *, settings) -> state
    parts: tuple[Loss | Modifier, ...] = ()  # of an expression: the losses and modifiers that it names
    becomes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # other loss -> settings at which it is that

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What the function returns: a LossOutput; of lists a ListOutput, of answers an AnswerOutput."""
        return self.function(*args, **kwargs)

    @property
    def unit(self) -> Unit:
        """What it has one value of."""
        return next((unit for unit, inputs in INPUTS_OF.items() if inputs[0] in self.needs), "pairs")

    def key(self, setting: str) -> str:
        """What `--set` calls a setting: `dpo.beta`."""
        return setting if self.parts else f"{self.name}.{setting}"

    @property
    def reads_reference(self) -> bool:
        """Whether it needs log-probabilities of the reference model."""
        return not self.needs.isdisjoint(REFERENCED)

    @property
    def runs_reference(self) -> bool:
        """Whether it needs whole distributions of the reference model, which are not stored: a frozen start model computes them
        in every step."""
        return "forward_kl" in self.needs or {"entropy", "reference"} <= self.needs

    @property
    def moves_reference(self) -> bool:
        """Whether the reference model moves towards the policy, so that no stored sums of it serve."""
        return any(map(_moves, self.parts))

    def taken_by_reference(self, step: int, settings: Mapping[str, Any]) -> float:
        """The share of the policy that the reference takes behind a step, counted from 1; 0: it stays as it is."""
        shares = [
            part.moves(step, **own_settings(part.name, settings))
            for part in self.parts
            if isinstance(part, Modifier) and part.moves is not None
        ]
        return max(shares, default=0.0)

    def lacks(self, *inputs: Any) -> list[str]:
        """The inputs that it needs and that are not among these: pairs', in the order of `pobench.types.Inputs`."""
        at_hand = {name for name, value in zip(INPUTS_OF["pairs"], inputs, strict=False) if value is not None}
        return [name for name in INPUTS_OF["pairs"] if name in self.needs - at_hand]

    def arguments(self, *inputs: Any) -> list[Any]:
        """The inputs that the function's signature names, in its order. inputs: pairs', in the order of `pobench.types.Inputs`;
        the last ones may be left out. A loss of lists gets each pair as a list of two, one of answers as two labelled answers.
        Raises PobenchError for one that it needs and that is None."""
        from pobench.types import Inputs  # with torch
        from pobench.units import read

        return self.named(read(self.unit, Inputs(*inputs)))

    def named(self, given: Any) -> list[Any]:
        """As `arguments`, of the inputs of its own unit: an `Inputs`, a `ListInputs` or an `AnswerInputs`."""
        values = given._asdict()
        if lacking := [name for name in values if name in self.needs and values[name] is None]:
            raise PobenchError(f"loss {self.name!r} needs {' and '.join(lacking)}, which it was not given")
        return [values[name] for name in SUPPLIED if name in values and name in {"policy", *self.needs}]

    def on(self, given: Any, **settings: Any) -> Any:
        """What the function returns for the inputs of its own unit: an `Inputs`, a `ListInputs` or an `AnswerInputs`. Raises
        PobenchError as `evaluate`."""
        named = self.named(given)
        before = [tensor._version for tensor in _tensors(named)]
        output = self.function(*named, **settings)
        if before != [tensor._version for tensor in _tensors(named)]:
            raise PobenchError(
                f"loss {self.name!r} changes the tensors that it is given; it must return new ones (a + b, not a += b)"
            )
        if fault := wrong_output(output, given, self.unit):
            raise PobenchError(f"loss {self.name!r} must return {fault}")
        return output

    def by_pair(self, output: Any) -> LossOutput:
        """What the function returned for `arguments`, as one value a pair."""
        if self.unit == "pairs":
            return output
        from pobench.units import of_pairs  # with torch

        return of_pairs(output)

    def evaluate(
        self,
        policy: Pair,
        reference: Pair | None = None,
        kl: Tensor | None = None,
        tokens: TokenLogps | None = None,
        scores: Tensor | None = None,
        batch: Batch | ListBatch | AnswerBatch | None = None,
        collision: Tensor | None = None,
        entropy: Entropy | None = None,
        forward_kl: Tensor | None = None,
        **settings: Any,
    ) -> LossOutput:
        """Call the function with the inputs that its signature names. A loss of lists gives its list's loss, one of answers the
        mean of both answers' losses. Raises PobenchError for an input that is missing, and unless the function returns
        floating-point tensors of its unit's type and shapes (`OUTPUT_OF`), at least as precise as the policy's sums."""
        from pobench.types import Inputs  # with torch
        from pobench.units import read

        given = Inputs(policy, reference, kl, tokens, scores, batch, collision, entropy, forward_kl)
        return self.by_pair(self.on(read(self.unit, given), **settings))

    def batch_of(
        self,
        policy: Logps,
        reference: Any,
        settings: Mapping[str, Any],
        state: State | None = None,
        label: Tensor | None = None,
    ) -> Any:
        """The whole optimiser batch as this loss gets it (`Batch`, `ListBatch` or `AnswerBatch`), every unit in its place; None
        if it does not ask for `batch`.

        policy, reference: the sums of all its pairs; or of all its lists or answers, for a loss of those. state: after the step
        before; None at the first. label: of answers. Raises PobenchError if `update` returns what JSON does not hold.
        """
        if "batch" not in self.needs:
            return None
        from pobench.units import whole_batch  # with torch

        batch = whole_batch(self.unit, policy, reference if "reference" in self.needs else None, label, state or {})
        if self.parts:
            states = {
                part.name: part.batch_of(
                    policy, reference, own_settings(part.name, settings), batch.state.get(part.name)
                )
                for part in self.parts
                if isinstance(part, Loss) and "batch" in part.needs
            }
            return batch._replace(state={name: of_part.state for name, of_part in states.items() if of_part})
        if self.update is None:
            return batch
        new = self.update(batch, **{name: settings[name] for name in _settings(inspect.signature(self.update))})
        try:
            return batch._replace(state=json.loads(json.dumps(new)))  # as a resumed run will have it
        except TypeError as error:
            raise PobenchError(
                f"loss {self.name!r}: `update` must return numbers, texts and lists of them: {error}"
            ) from None

    @property
    def formula(self) -> str:
        """The objective: the indented line(s) of the docstring before `Gradient:`."""
        return _formula_of(self.doc)

    @property
    def gradient(self) -> str:
        """The indented line(s) after `Gradient:`, one `name = expression` each; "" if the docstring has none.

        `chosen` and `rejected` are the derivatives of the loss with respect to the policy's two sums; other names are
        auxiliary.
        """
        return _indented(self.doc.partition(GRADIENT)[2])


def wrong_output(output: Any, given: Any, unit: Unit = "pairs") -> str:
    """The fault of what a loss's function returned, as `a tensor each; got loss as a float`; "" if there is none.

    given: the inputs that the loss got: an `Inputs`, a `ListInputs` or an `AnswerInputs`.
    """
    from torch import Tensor, promote_types

    from pobench import types

    name, sizes = OUTPUT_OF[unit]
    kind = getattr(types, name)
    if not isinstance(output, kind):
        return f"{name}({', '.join(kind._fields)}); got {_described(output)}"
    tensors = output._asdict()
    if wrong := [f"{name} as {_described(t)}" for name, t in tensors.items() if not isinstance(t, Tensor)]:
        return f"a tensor each; got {', '.join(wrong)}"
    totals = given.policy.chosen.total if unit == "pairs" else given[0].total
    shapes = {name: tuple(totals.shape) if name == "rewards" else (len(totals),) for name in tensors}
    if wrong := [f"{name} {tuple(t.shape)}" for name, t in tensors.items() if t.shape != shapes[name]]:
        return f"{sizes.format(n=len(totals), rewards=tuple(totals.shape))}; got {', '.join(wrong)}"
    if wrong := [f"{name} {t.dtype}" for name, t in tensors.items() if promote_types(t.dtype, totals.dtype) != t.dtype]:
        return f"numbers as precise as the sums it is given, {totals.dtype}; got {', '.join(wrong)}"
    return ""


def _described(value: Any) -> str:
    """The kind of a value for a message: `a tuple of 3`, `a tensor`, `None`."""
    if value is None:
        return "None: is its `return` missing?"
    kind = type(value)
    name = "numpy array" if kind.__module__ == "numpy" and kind.__name__ == "ndarray" else kind.__name__
    size = f" of {len(value)}" if isinstance(value, tuple | list) else ""
    return f"{'an' if name[0].lower() in 'aeiou' else 'a'} {'tensor' if name == 'Tensor' else name}{size}"


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


@dataclass(frozen=True)
class Modifier:
    """A registered modifier of a loss: a function `f(loss, *inputs, **settings) -> LossOutput`.

    loss: the loss within it, a `pobench.composed.Inner`.
    """

    name: str
    function: Callable[..., LossOutput]
    source: str
    needs: frozenset[str]  # the inputs besides `policy` that it reads itself
    settings: Mapping[str, Any]
    doc: str
    title: str
    units: Mapping[str, str] = field(default_factory=dict)
    meanings: Mapping[str, str] = field(default_factory=dict)
    defaults: Mapping[str, str] = field(default_factory=dict)
    takes: tuple[str, ...] = ()  # the inputs of its signature, in order
    of_ratios: bool = False  # it fits losses that read policy and reference by their difference alone
    weighs: bool = False  # it multiplies a pair's loss and changes no input
    canonical: Callable[[Mapping[str, Any]], dict[str, Any]] = dict  # as of a loss
    # f(step, *, settings) -> the share of the policy that the reference takes behind that step
    moves: Callable[..., float] | None = None


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


def _tensors(values: Any) -> Iterator[Any]:
    """Those in nested tuples whose changes in place are counted."""
    if isinstance(values, tuple | list):
        for value in values:
            yield from _tensors(value)
    elif hasattr(values, "is_inference") and not values.is_inference():
        yield values


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
        changing = [modifier for modifier in around if not (_moves(modifier) or modifier.weighs)]
        needs = frozenset[str]() if term.loss == SFT else parts[term.loss].needs
        for name in sorted(needs & {"batch", *BY_TOKEN}) if changing else ():
            if leaving := [modifier.name for modifier in changing if name not in modifier.takes]:
                yield f"{leaving[-1]} changes a pair's sums, and {term.loss} reads {name}, which stay as they are"
        if "batch" in needs and (weighing := [part.name for part in around if part.weighs]):
            yield f"{weighing[-1]} weighs each pair's loss, and {term.loss} reads batch: a pair has no loss of its own there"
        for outer, inner in combinations([part for part in around if not _moves(part)], 2):
            if outer.weighs:
                continue
            for name in sorted(inner.needs & {*BY_TOKEN} - {"tokens"} - {*outer.takes}):
                yield f"{outer.name} changes a pair's sums, and {inner.name} reads {name}, which stay as they are"
            if "tokens" not in outer.takes and "tokens" in inner.takes:
                yield (
                    f"{outer.name} changes a pair's sums, which {inner.name} adds up anew from the tokens; write "
                    f"{inner.name} around {outer.name}"
                )


def _moves(part: Loss | Modifier) -> bool:
    return isinstance(part, Modifier) and part.moves is not None


def _moved(terms: Iterable[Term], parts: Mapping[str, Loss | Modifier]) -> Iterator[str]:
    """A fault for a modifier that moves the reference around what reads none, or beside a term that reads it unmoved, or beside
    another that moves it."""
    movers: list[str] = []
    unmoved: list[str] = []
    for term in terms:
        names = [name for name in (*term.modifiers, term.loss) if name != SFT]
        moving = [name for name in names if _moves(parts[name])]
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
    formulas = [f"    {p.name}: {line}" for p in parts.values() for line in _formula_of(p.doc).splitlines()]
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


def _formula_of(doc: str) -> str:
    return _indented(doc.partition(GRADIENT)[0])


def register_loss(
    name: str,
    *,
    source: str,
    aliases: Iterable[str] = (),
    title: str = "",
    units: Mapping[str, str] | None = None,
    ranges: Mapping[str, Any] | None = None,
    meanings: Mapping[str, str] | None = None,
    defaults: Mapping[str, str] | None = None,
    in_paper: bool = False,
    alternatives: tuple[tuple[str, ...], ...] = (),
    canonical: Callable[[Mapping[str, Any]], dict[str, Any]] = dict,
    colour: str = "",
    marker: Marker = "",
    update: Callable[..., State] | None = None,
    becomes: Mapping[str, Mapping[str, Any]] | None = None,
) -> Callable[[Function], Function]:
    """Register a loss function under `name`.

    source: of the formula. units: setting -> unit. ranges: setting -> published search range. meanings: setting -> what it
    does. defaults: setting -> source of its default, or "not published". alternatives: groups of settings that name one
    number (γ, γ/β). canonical: brings such settings into one form. colour, marker: in every figure, "#rrggbb" and a
    matplotlib marker; both or neither. update: what the loss carries over steps, a function (batch, *, settings of the loss by
    their names) → state; `batch.state` is that of the step before, {} at the first, and the loss finds the new one there.
    becomes: name of another loss -> settings of this one at which the two are equal, in value and slopes. Settings that both
    have are then the same in both; `other.setting` gives one of the other's that differs.
    Raises PobenchError if a positional parameter is not one of `SUPPLIED`, if they are of no one unit (`INPUTS_OF`), or if a
    setting has no default or the name of an input.
    """

    def register(function: Function) -> Function:
        signature = inspect.signature(function)
        supplied, faults = _supplied(signature)
        settings = _settings(signature)
        if update is not None:
            faults += _update_faults(update, supplied, settings)
        faults += _undeclared(settings, units=units, ranges=ranges, meanings=meanings, defaults=defaults)
        for other, at in (becomes or {}).items():
            own = {key: value for key, value in at.items() if not key.startswith(f"{other}.")}
            faults += _undeclared(settings, becomes=own)
        if _normal(name) in modifiers._aliases:
            faults.append(f"{name!r} is the name of a modifier; choose another")
        if bool(colour) != bool(marker):
            faults.append("colour and marker: a look is both of them")
        if colour and not re.fullmatch("#[0-9a-f]{6}", colour):
            faults.append(f"colour: got {colour!r}; six hexadecimal digits are needed, as in '#2a78d6'")
        if faults:
            raise PobenchError(f"loss {name!r} cannot be registered:\n" + "\n".join(f"  {f}" for f in faults))
        # Not inspect.getdoc for the module: it would remove the formula's indentation.
        doc = inspect.getdoc(function) or sys.modules[function.__module__].__doc__ or ""
        loss = Loss(
            name,
            function,
            source,
            frozenset(supplied) - {"policy"},
            settings,
            doc,
            dict(units or {}),
            dict(ranges or {}),
            dict(meanings or {}),
            dict(defaults or {}),
            in_paper,
            title or name,
            alternatives,
            canonical,
            colour,
            marker,
            update,
            becomes=dict(becomes or {}),
        )
        losses.add(loss, aliases)
        return function

    return register


def register_modifier(
    name: str,
    *,
    source: str,
    aliases: Iterable[str] = (),
    title: str = "",
    units: Mapping[str, str] | None = None,
    meanings: Mapping[str, str] | None = None,
    defaults: Mapping[str, str] | None = None,
    of_ratios: bool = False,
    weighs: bool = False,
    canonical: Callable[[Mapping[str, Any]], dict[str, Any]] = dict,
    moves: Callable[..., float] | None = None,
) -> Callable[[Callable[..., LossOutput]], Callable[..., LossOutput]]:
    """Register a modifier of losses under `name`: `f(loss, *inputs, **settings) -> LossOutput`, see `Modifier`.

    source, aliases, title, units, meanings, defaults, canonical: as of `register_loss`. of_ratios: it fits losses that read
    policy and reference by their difference alone; others are refused. weighs: it only multiplies each pair's loss, so that it
    fits losses of tokens too. moves: it moves the reference towards the policy; a
    function (step, *, settings of the modifier by their names) → the share of the policy that the reference takes behind that
    step, counted from 1; 0: it stays. A modifier that takes `tokens` hands on changed ones as well as their sums.
    Raises PobenchError as `register_loss`.
    """

    def register(function: Callable[..., LossOutput]) -> Callable[..., LossOutput]:
        signature = inspect.signature(function)
        first, rest = next(iter(signature.parameters), ""), list(signature.parameters.values())[1:]
        taken, faults = _supplied(signature.replace(parameters=rest), whole=False)
        if first != "loss":
            faults.insert(0, f"{first or 'no parameter'}: the first parameter is `loss`, the loss that is modified")
        settings = _settings(signature)
        faults += _undeclared(settings, units=units, meanings=meanings, defaults=defaults)
        if moves is not None and list(inspect.signature(moves).parameters) != ["step", *settings]:
            faults.append(f"moves: takes (step, *, {', '.join(settings) or 'no setting'})")
        if _normal(name) in losses._aliases:
            faults.append(f"{name!r} is the name of a loss; choose another")
        if faults:
            raise PobenchError(f"modifier {name!r} cannot be registered:\n" + "\n".join(f"  {f}" for f in faults))
        doc = inspect.getdoc(function) or sys.modules[function.__module__].__doc__ or ""
        shown = (dict(units or {}), dict(meanings or {}), dict(defaults or {}))
        needs = frozenset(taken) - {"policy"}
        facts = (*shown, tuple(taken), of_ratios, weighs, canonical, moves)
        modifiers.add(Modifier(name, function, source, needs, settings, doc, title or name, *facts), aliases)
        return function

    return register


def _undeclared(settings: Mapping[str, Any], **declared: Mapping[str, Any] | None) -> list[str]:
    """A fault for each fact of a registration that is about no setting of the function."""
    return [
        f"{what}: {key!r} is no setting of it{nearest(key, settings)}"
        for what, facts in declared.items()
        for key in facts or {}
        if key not in settings
    ]


def _supplied(signature: inspect.Signature, *, whole: bool = True) -> tuple[list[str], list[str]]:
    """The parameters that the harness fills, and the faults of the signature. whole: of a loss; else of a modifier."""
    supplied, faults = [], []
    for p in signature.parameters.values():
        if p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD):
            faults.append(f"*{p.name}: the harness cannot fill a catch-all parameter; name what the loss uses")
        elif p.kind is p.KEYWORD_ONLY:
            if p.name in SUPPLIED:
                faults.append(f"{p.name}: is an input, which the harness supplies; it goes before '*'")
            elif p.default is p.empty:
                faults.append(f"{p.name}: a setting needs a default value")
        elif p.name not in SUPPLIED:
            faults.append(
                f"{p.name}: the harness supplies {', '.join(SUPPLIED)}; a setting goes behind '*' with a default"
                f"{nearest(p.name, SUPPLIED)}"
            )
        else:
            supplied.append(p.name)
    if not faults and supplied != [s for s in SUPPLIED if s in supplied]:
        faults.append(f"parameters stand in the order {', '.join(SUPPLIED)}; got {', '.join(supplied)}")
    if not faults:
        faults += _unit_faults(supplied) if whole else _foreign(supplied, "pairs", "a modifier changes")
    return supplied, faults


def _unit_faults(supplied: Sequence[str]) -> list[str]:
    """The fault of a loss's inputs if they are of no unit or of several, or those that its unit has not."""
    firsts = {inputs[0]: unit for unit, inputs in INPUTS_OF.items() if inputs[0] in supplied}
    choice = ", ".join(f"`{inputs[0]}` of {unit}" for unit, inputs in INPUTS_OF.items())
    if not firsts:
        return [f"policy: a loss needs the policy's log-probabilities as its first parameter, one of {choice}"]
    if len(firsts) > 1:
        return [f"{', '.join(firsts)}: a loss takes one of {choice}"]
    (unit,) = firsts.values()
    return _foreign(supplied, unit, "this is")


def _foreign(supplied: Iterable[str], unit: Unit, what: str) -> list[str]:
    return [
        f"{name}: {what} a loss of {unit}, which is given {', '.join(INPUTS_OF[unit])}"
        for name in supplied
        if name not in INPUTS_OF[unit]
    ]


def _update_faults(update: Callable[..., Any], supplied: Iterable[str], settings: Iterable[str]) -> list[str]:
    """The faults of the signature of a loss's `update`."""
    parameters = inspect.signature(update).parameters.values()
    faults = [] if "batch" in supplied else ["update: the loss finds its state in `batch`, which it does not ask for"]
    if [p.name for p in parameters if p.kind is not p.KEYWORD_ONLY] != ["batch"]:
        faults.append("update: takes `batch`, and behind '*' settings of the loss")
    return faults + [
        f"update: {p.name!r} is no setting of the loss{nearest(p.name, settings)}"
        for p in parameters
        if p.kind is p.KEYWORD_ONLY and p.name not in settings
    ]


def get_loss(name: str) -> Loss:
    """The loss called `name` or one of its aliases; a callable. Raises UnknownNameError."""
    return losses.get(name)


def list_losses() -> list[str]:
    """The names of all registered losses, sorted."""
    return losses.names()


# ---------------------------------------------------------------- figures and tables
@dataclass(frozen=True)
class Figure:
    """A registered figure or table: a function whose parameters name the frames that it reads."""

    name: str
    function: Callable[..., Any]
    kind: str  # "figure" | "table"
    title: str
    paper: str  # where the paper shows it ("Fig. 2a"), "" for ours
    frames: tuple[str, ...]
    settings: Mapping[str, Any]
    doc: str
    order: int = 100
    optional: frozenset[str] = frozenset()  # frames that may be absent or empty; the function gets None then
    every_arm: bool = False  # it compares several settings of one loss, see `pobench.reporting.plot.draw`
    chapter: str = "more"  # of the page, one of CHAPTERS
    every_setting: bool = False  # it compares settings, and reads the frames of all
    by_run: frozenset[str] = frozenset()  # frames that it gets as `pobench.results.rows.Rows`, not read yet

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(*args, **kwargs)


figures: Registry[Figure] = Registry("figure", "pobench.analysis")

# Chapters of a report page in order: name → title.
CHAPTERS = {
    "answer": "The answer",  # its first figure stands beside the card on the first screen
    "results": "Results",
    "paper": "The paper’s claims",
    "training": "Is training healthy?",
    "length": "Likelihood and length",
    "more": "More figures",
    "methods": "What was run",
}


def _register_shown(
    kind: str,
    name: str,
    title: str,
    chapter: str,
    paper: str,
    order: int,
    aliases: Iterable[str],
    every_arm: bool,
    every_setting: bool,
) -> Callable[..., Any]:
    if chapter not in CHAPTERS:
        raise PobenchError(
            f"{kind} {name!r}: unknown chapter {chapter!r}{nearest(chapter, CHAPTERS)} Known: {', '.join(CHAPTERS)}"
        )

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        signature = inspect.signature(function)
        frame_names = tuple(p.name for p in signature.parameters.values() if p.kind is not p.KEYWORD_ONLY)
        unknown = [a for a in frame_names if a not in FRAMES]
        if unknown:
            raise PobenchError(f"{kind} {name!r} asks for {', '.join(unknown)}; frames are {', '.join(FRAMES)}")
        doc = inspect.getdoc(function) or inspect.getdoc(sys.modules[function.__module__]) or ""
        optional = frozenset(a for a in frame_names if signature.parameters[a].default is not inspect.Parameter.empty)
        shown = Figure(
            name,
            function,
            kind,
            title,
            paper,
            frame_names,
            _settings(signature),
            doc,
            order,
            optional,
            every_arm,
            chapter,
            every_setting,
            frozenset(a for a in frame_names if "Rows" in str(signature.parameters[a].annotation)),
        )
        figures.add(shown, aliases)
        return function

    return register


def register_figure(
    name: str,
    *,
    title: str,
    chapter: str = "more",
    paper: str = "",
    order: int = 100,
    aliases: Iterable[str] = (),
    every_arm: bool = False,
    every_setting: bool = False,
) -> Callable[..., Any]:
    """Register a figure: `f(frame, …) -> Drawing`; see `pobench.reporting.plot.Drawing`. The parameters name frames; a
    frame with the default None may be absent. One annotated `Rows` is not read: the figure asks for the rows of single arms.

    chapter: of the report page, one of `CHAPTERS`. order: place in the chapter, small numbers first. paper: the figure of
    the SimPO paper that it corresponds to. every_arm: it compares several settings of one loss and always gets all of
    them. every_setting: it shows several settings of `pobench run --setting`, and gets the frames of all of them. Raises
    PobenchError for an unknown chapter or frame.
    """
    return _register_shown("figure", name, title, chapter, paper, order, aliases, every_arm, every_setting)


def register_table(
    name: str,
    *,
    title: str,
    chapter: str = "more",
    paper: str = "",
    order: int = 100,
    aliases: Iterable[str] = (),
    every_arm: bool = False,
    every_setting: bool = False,
) -> Callable[..., Any]:
    """Register a table: `f(frame, …) -> DataFrame` of Estimates and plain values. Arguments as for `register_figure`."""
    return _register_shown("table", name, title, chapter, paper, order, aliases, every_arm, every_setting)


# ---------------------------------------------------------------- claims
@dataclass(frozen=True)
class Claim:
    """A claim of the paper: the true value of a statistic lies between `above` and `below`; see `pobench.results.claims`."""

    name: str
    function: Callable[..., Any]  # the statistic: f(Evidence) -> Measured
    says: str
    statistic: str
    unit: str
    subject: str  # one of `SUBJECTS`
    paper: float | None  # the same statistic of the paper's printed numbers; None: not printed
    where: str  # their table or figure; "" for a claim of ours
    above: float
    below: float
    smallest: float  # the smallest effect of interest, in the statistic's unit
    neutral: float  # the value of "no difference"
    identity: bool  # true by the loss's definition: a check of the program, not evidence
    across: bool  # compares settings: its function takes the `Settings` of all groups of runs, not the evidence of one

    @property
    def order(self) -> tuple[int, bool]:
        """The place in a table: by subject, claims of ours last."""
        return SUBJECTS.index(self.subject), not self.where


SUBJECTS = (
    *("Quality of answers", "Length", "Rewards and likelihoods", "Several settings", "Benchmarks", "Time and memory"),
    "Of your own",
)
claims: Registry[Claim] = Registry("claim", "pobench.analysis")

FAR = math.inf


def register_claim(
    name: str,
    *,
    says: str,
    statistic: str,
    unit: str,
    subject: str = SUBJECTS[-1],
    paper: float | None = None,
    where: str = "",
    above: float = -FAR,
    below: float = FAR,
    smallest: float | None = None,
    neutral: float = 0.0,
    identity: bool = False,
    across: bool = False,
) -> Callable[..., Any]:
    """Register a claim, a function `f(Evidence) -> Measured`; `pobench.results.claims` makes the usual ones. across: it
    compares settings, and is `f(Settings) -> Measured`, see `pobench.results.across`.

    subject: one of `SUBJECTS`. above, below: ends of the claimed range, in `unit`. smallest: the smallest effect of interest;
    default: a quarter of the paper's effect. Raises PobenchError where neither is given, and where the range has no end.
    """

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        if above == -FAR and below == FAR:
            raise PobenchError(f"claim {name!r} excludes nothing: give `above` or `below`")
        if smallest is None and not paper:
            raise PobenchError(
                f"claim {name!r} has no number of the paper: give `smallest`, the smallest effect of interest"
            )
        least = abs((paper or 0.0) - neutral) / 4 if smallest is None else smallest
        facts = (says, statistic, unit, subject, paper, where, above, below, least, neutral, identity, across)
        claims.add(Claim(name, function, *facts))
        return function

    return register


# ---------------------------------------------------------------- judges, benchmarks, executors and layouts
@dataclass(frozen=True)
class NamedFunction:
    """A registered factory of a judge or a layout; `settings` are its keyword defaults."""

    name: str
    function: Callable[..., Any]
    settings: Mapping[str, Any]
    doc: str

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(*args, **kwargs)


@dataclass(frozen=True)
class JudgeType(NamedFunction):
    """A registered factory of a judge. runtime: settings that change no verdict. free: a verdict costs nothing. compares: a
    verdict is about two answers. offline: it needs neither a network nor a second model. canonical: settings -> the same as
    they count in a result's name."""

    runtime: frozenset[str] = frozenset()
    canonical: Callable[[Mapping[str, Any]], dict[str, Any]] = dict
    free: bool = False
    compares: bool = False
    offline: bool = False

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The judge. Raises PobenchError if it lacks the method that its registration promises."""
        judge = self.function(*args, **kwargs)
        if self.compares and not hasattr(judge, "judge"):
            raise PobenchError(f"judge {self.name!r} is registered with compares=True, but has no method `judge`")
        if not self.compares and not hasattr(judge, "score"):
            remedy = "; if it compares two answers, register it with compares=True" if hasattr(judge, "judge") else ""
            raise PobenchError(f"judge {self.name!r} has no method `score`{remedy}")
        return judge


@dataclass(frozen=True)
class BenchmarkType:
    """A registered benchmark: a pydantic class whose fields are its settings."""

    name: str
    function: type[Any]

    def __call__(self, **settings: Any) -> Any:
        return self.function(**settings)


@dataclass(frozen=True)
class ExecutorType:
    """A registered executor: a pydantic class whose fields are its settings."""

    name: str
    function: type[Any]


executors: Registry[ExecutorType] = Registry("executor", "pobench.runs.executors")
benchmarks: Registry[BenchmarkType] = Registry("benchmark", "pobench.judging.benchmarks")
judges: Registry[JudgeType] = Registry("judge", "pobench.judging")
layouts: Registry[NamedFunction] = Registry("layout", "pobench.model.layouts")


def register_judge(
    name: str,
    *,
    aliases: Iterable[str] = (),
    runtime: Iterable[str] = (),
    canonical: Callable[[Mapping[str, Any]], dict[str, Any]] = dict,
    free: bool = False,
    compares: bool = False,
    offline: bool = False,
) -> Callable[..., Any]:
    """Register a judge factory: `f(**settings) -> Judge`; see `pobench.judging`.

    runtime: settings that change no verdict (time-outs, prices); runs that differ only in these are the same run.
    canonical: brings the other settings into the form that counts in a result's name. free: a verdict costs nothing, so
    cost estimates leave it out. compares: the judge compares two answers to one prompt instead of scoring one. offline: it
    needs neither a network nor a second model, so a rehearsal uses it unchanged; implies free.
    """

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        settings, doc = _settings(inspect.signature(function)), inspect.getdoc(function) or ""
        facts = (frozenset(runtime), canonical, free or offline, compares, offline)
        judge = JudgeType(name, function, settings, doc, *facts)
        judges.add(judge, aliases)
        return function

    return register


def register_benchmark(name: str, *, aliases: Iterable[str] = ()) -> Callable[[type[Kind]], type[Kind]]:
    """Register a benchmark: a subclass of `pobench.judging.benchmarks.base.Benchmark`; its fields are its settings."""

    def register(kind: type[Kind]) -> type[Kind]:
        kind.name = name  # type: ignore[attr-defined]
        benchmarks.add(BenchmarkType(name, kind), aliases)
        return kind

    return register


def register_executor(name: str, *, aliases: Iterable[str] = ()) -> Callable[[type[Kind]], type[Kind]]:
    """Register an executor: a subclass of `pobench.runs.executor.Executor`; its fields are its settings."""

    def register(kind: type[Kind]) -> type[Kind]:
        kind.name = name  # type: ignore[attr-defined]
        executors.add(ExecutorType(name, kind), aliases)
        return kind

    return register


def register_layout(name: str, *, aliases: Iterable[str] = ()) -> Callable[..., Any]:
    """Register a layout: a class whose instances turn TokenPairs into a batch; see `pobench.model.layouts`."""

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        settings, doc = _settings(inspect.signature(function)), inspect.getdoc(function) or ""
        layouts.add(NamedFunction(name, function, settings, doc), aliases)
        return function

    return register


# ---------------------------------------------------------------- plug-ins
def load_plugin(path: str | Path) -> None:
    """Import a user's file that registers losses, judges or figures. Raises PobenchError if the import fails.

    The module is named by its path, so that two files of one name are two modules.
    """
    path = Path(path)
    if not path.is_file():
        raise PobenchError(f"--plugin: no file {str(path)!r}")
    name = f"pobench_plugin_{path.stem}_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:8]}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise PobenchError(f"--plugin: {str(path)!r} is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except (PobenchError, KeyboardInterrupt):
        raise
    except BaseException as error:  # SystemExit, or a kind of its own
        raise PobenchError(f"--plugin: {str(path)!r} {_fails(error)}") from error


def _fails(error: BaseException) -> str:
    return f"fails at import: {type(error).__name__}: {error}"
