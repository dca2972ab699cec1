"""A registered loss and a registered modifier: the function, and the facts from signature, docstring and registration."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from pobench.composition import own_settings
from pobench.errors import PobenchError
from pobench.registry.named import settings_of
from pobench.registry.signature import INPUTS_OF, REFERENCED, SUPPLIED, wrong_output

if TYPE_CHECKING:  # torch comes with the losses, when they are first looked up
    from torch import Tensor

    from pobench.types import AnswerBatch, Batch, Entropy, ListBatch, Logps, LossOutput, Pair, State, TokenLogps, Unit


Marker = str | tuple[int, int, int]  # matplotlib's name of a marker, or (points, style, angle)
GRADIENT = "\nGradient:\n"  # this line of a loss's docstring separates its formula from its gradient


class Move(NamedTuple):
    """How a reference model moves behind a step, weight by weight:

        average <- share * policy + (1 - share) * average
        reference <- average + lead * (policy - start)

    Where nothing ever leads (`Modifier.leads_reference`), the reference is the average, and begins as the reference model. Else
    average and start begin as the policy, and the reference stays where it is in steps without a share. restarts: average and
    start become the policy of this step, and nothing else moves.
    """

    share: float = 0.0
    lead: float = 0.0
    restarts: bool = False


STILL = Move()


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
    def trains_value(self) -> bool:
        """Whether a value model is trained beside the policy."""
        return "value" in self.needs

    @property
    def moves_reference(self) -> bool:
        """Whether the reference model moves towards the policy, so that no stored sums of it serve."""
        return any(part.moves_reference for part in self.parts)

    @property
    def leads_reference(self) -> bool:
        """Whether the reference is led beyond an average of the policy, which is then kept, with the policy's start."""
        return any(part.leads_reference for part in self.parts)

    def move_of_reference(self, step: int, settings: Mapping[str, Any]) -> Move:
        """How the reference moves behind a step, counted from 1."""
        for part in self.parts:
            if isinstance(part, Modifier) and part.moves is not None:  # there is one at most
                moved = part.moves(step, **own_settings(part.name, settings))
                move = moved if isinstance(moved, Move) else Move(moved)
                if (move.lead or move.restarts) and not part.leads_reference:
                    raise PobenchError(
                        f"{part.name}: its `moves` gave {move}; a lead needs `leads=True` where it is registered"
                    )
                return move if move.share or move.restarts else STILL
        return STILL

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
        value: Tensor | None = None,
        **settings: Any,
    ) -> LossOutput:
        """Call the function with the inputs that its signature names. A loss of lists gives its list's loss, one of answers the
        mean of both answers' losses. Raises PobenchError for an input that is missing, and unless the function returns
        floating-point tensors of its unit's type and shapes (`OUTPUT_OF`), at least as precise as the policy's sums."""
        from pobench.types import Inputs  # with torch
        from pobench.units import read

        given = Inputs(policy, reference, kl, tokens, scores, batch, collision, entropy, forward_kl, value)
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
        new = self.update(batch, **{name: settings[name] for name in settings_of(self.update)})
        try:
            return batch._replace(state=json.loads(json.dumps(new)))  # as a resumed run will have it
        except TypeError as error:
            raise PobenchError(
                f"loss {self.name!r}: `update` must return numbers, texts and lists of them: {error}"
            ) from None

    @property
    def formula(self) -> str:
        """The objective: the indented line(s) of the docstring before `Gradient:`."""
        return formula_of(self.doc)

    @property
    def gradient(self) -> str:
        """The indented line(s) after `Gradient:`, one `name = expression` each; "" if the docstring has none.

        `chosen` and `rejected` are the derivatives of the loss with respect to the policy's two sums; other names are
        auxiliary.
        """
        return _indented(self.doc.partition(GRADIENT)[2])


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
    # f(step, *, settings) -> how the reference moves behind that step; a number is a `Move.share`
    moves: Callable[..., float | Move] | None = None
    leads_reference: bool = False  # as of a loss

    @property
    def moves_reference(self) -> bool:
        """Whether the reference model moves towards the policy."""
        return self.moves is not None


def formula_of(doc: str) -> str:
    return _indented(doc.partition(GRADIENT)[0])


def _indented(text: str) -> str:
    return "\n".join(line.strip() for line in text.splitlines() if line.startswith("    ") and line.strip())


def _tensors(values: Any) -> Iterator[Any]:
    """Those in nested tuples whose changes in place are counted."""
    if isinstance(values, tuple | list):
        for value in values:
            yield from _tensors(value)
    elif hasattr(values, "is_inference") and not values.is_inference():
        yield values
