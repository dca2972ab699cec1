"""The decorators of losses and modifiers."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from pobench.errors import PobenchError, _normal
from pobench.registry.expressions import losses, modifiers
from pobench.registry.loss import Loss, Marker, Modifier, Move
from pobench.registry.named import settings_of
from pobench.registry.signature import supplied_inputs, undeclared, update_faults

if TYPE_CHECKING:
    from pobench.types import LossOutput, State

Function = TypeVar("Function", bound=Callable[..., Any])


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
        supplied, faults = supplied_inputs(signature)
        settings = settings_of(function)
        if update is not None:
            faults += update_faults(update, supplied, settings)
        faults += undeclared(settings, units=units, ranges=ranges, meanings=meanings, defaults=defaults)
        for other, at in (becomes or {}).items():
            own = {key: value for key, value in at.items() if not key.startswith(f"{other}.")}
            faults += undeclared(settings, becomes=own)
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
    moves: Callable[..., float | Move] | None = None,
    leads: bool = False,
) -> Callable[[Callable[..., LossOutput]], Callable[..., LossOutput]]:
    """Register a modifier of losses under `name`: `f(loss, *inputs, **settings) -> LossOutput`, see `Modifier`.

    source, aliases, title, units, meanings, defaults, canonical: as of `register_loss`. of_ratios: it fits losses that read
    policy and reference by their difference alone; others are refused. weighs: it only multiplies each pair's loss, so that it
    fits losses of tokens too. moves: it moves the reference towards the policy; a function (step, *, settings of the modifier
    by their names) → the share of the policy that the reference takes behind that step, counted from 1 (0: it stays), or a
    `Move`.
    leads: its moves may have a lead, so that an average of the policy and the policy's start are kept beside the reference.
    A modifier that takes `tokens` hands on changed ones as well as their sums.
    Raises PobenchError as `register_loss`.
    """

    def register(function: Callable[..., LossOutput]) -> Callable[..., LossOutput]:
        signature = inspect.signature(function)
        first, rest = next(iter(signature.parameters), ""), list(signature.parameters.values())[1:]
        taken, faults = supplied_inputs(signature.replace(parameters=rest), whole=False)
        if first != "loss":
            faults.insert(0, f"{first or 'no parameter'}: the first parameter is `loss`, the loss that is modified")
        settings = settings_of(function)
        faults += undeclared(settings, units=units, meanings=meanings, defaults=defaults)
        if moves is not None and list(inspect.signature(moves).parameters) != ["step", *settings]:
            faults.append(f"moves: takes (step, *, {', '.join(settings) or 'no setting'})")
        if leads and moves is None:
            faults.append("leads: it says of `moves` that a move may have a lead, and `moves` is not given")
        if _normal(name) in losses._aliases:
            faults.append(f"{name!r} is the name of a loss; choose another")
        if faults:
            raise PobenchError(f"modifier {name!r} cannot be registered:\n" + "\n".join(f"  {f}" for f in faults))
        doc = inspect.getdoc(function) or sys.modules[function.__module__].__doc__ or ""
        shown = (dict(units or {}), dict(meanings or {}), dict(defaults or {}))
        needs = frozenset(taken) - {"policy"}
        facts = (*shown, tuple(taken), of_ratios, weighs, canonical, moves, leads)
        modifiers.add(Modifier(name, function, source, needs, settings, doc, title or name, *facts), aliases)
        return function

    return register
