"""Faults of settings as plain lines: where, what was got, what is allowed, the nearest known name."""

from __future__ import annotations

import typing
from collections.abc import Mapping, Sequence
from typing import Any

import pydantic
from pydantic import BaseModel, ConfigDict

from pobench.errors import PobenchError, nearest
from pobench.registry import Loss, NamedFunction, judges, wrong_output
from pobench.settings.schema import Setting, TrainConfig


def unknown_loss_key(where: str, loss: Loss, key: str) -> list[str]:
    """The fault of a key that is neither a setting of the loss nor a field of train; none otherwise."""
    if key in loss.settings or key in TrainConfig.model_fields:
        return []
    takes = ", ".join(loss.settings) or "no setting"
    close = nearest(key, [*loss.settings, *TrainConfig.model_fields])
    return [f"{where}: {loss.name} has no {key!r}{close} It takes {takes}, and fields of train"]


def check_loss_settings(loss: Loss, given: Mapping[str, Any], *, result: bool = True) -> list[str]:
    """Faults of a loss's settings, and of the loss itself: by the annotations of its signature, then by calling it on
    four harmless pairs.

    result: also what it returns there and what it does to its inputs, see `broken_contract`.
    """
    faults = _annotation_faults(loss, given, f"{loss.name}.")
    if faults:
        return faults
    settings = {**loss.settings, **given}
    try:
        broken = broken_contract(loss, settings)
    except PobenchError as error:
        named = (f"{loss.name}:", f"{loss.name}.", f"{loss.name} ")
        return [line if line.startswith(named) else f"{loss.name}: {line}" for line in str(error).splitlines()]
    except Exception as error:
        return [f"{loss.name} with {dict(given)}: {type(error).__name__}: {error}"]
    return [broken] if broken and result else []


# Sums in nats and lengths in tokens of (chosen, rejected): alike, ranked rightly, ranked wrongly, far from the reference.
# Several, as a hinge is flat at some of them.
HARMLESS = (
    ((-10.0, -10.0), (10, 10), (-10.0, -10.0)),
    ((-12.0, -30.0), (10, 20), (-14.0, -28.0)),
    ((-30.0, -12.0), (20, 10), (-28.0, -14.0)),
    ((-9.0, -60.0), (12, 40), (-40.0, -45.0)),
)


def broken_contract(loss: Loss, settings: Mapping[str, Any]) -> str:
    """What a loss does at four harmless pairs that no loss may, as one sentence; "" where nothing is wrong.

    It must return a LossOutput of (pairs,) tensors, whose `loss` has a gradient by the policy's sums, and leave its
    inputs as they are. Raises what the loss raises.
    """
    import torch

    from pobench.types import Pair, SequenceLogps

    sums, lengths, reference_sums = (torch.tensor(rows) for rows in zip(*HARMLESS, strict=True))
    given = sums.requires_grad_() * 1.0  # as in training, no leaf: a leaf refuses to be changed in place

    def pair(totals: torch.Tensor) -> Pair:
        return Pair(*(SequenceLogps(totals[:, side], lengths[:, side]) for side in (0, 1)))

    kl = torch.zeros(())
    inputs = {"the policy's sums": given, "lengths": lengths, "the reference's sums": reference_sums, "kl": kl}
    before = {what: tensor.detach().clone() for what, tensor in inputs.items()}
    policy = pair(given)
    output = loss.function(*loss.asked(policy, pair(reference_sums), kl), **settings)
    if changed := [what for what, tensor in inputs.items() if not torch.equal(tensor.detach(), before[what])]:
        return f"loss {loss.name!r} changes its input in place ({', '.join(changed)}); others still need it: make a new tensor"
    if fault := wrong_output(output, policy.chosen.total):
        return f"loss {loss.name!r} must return {fault}"
    if not output.loss.requires_grad:
        return (
            f"loss {loss.name!r} must return a loss that can be differentiated by the policy's sums; its `loss` is detached "
            "from them (by detach(), item(), numpy or no_grad), so nothing would be learned"
        )
    return ""


def judge_faults(
    name: str, given: Mapping[str, Any], where: str = "judge.name", prefix: str = "judge.settings."
) -> list[str]:
    """Faults of a judge's name and settings: by the annotations of its factory, then by making it, which asks nobody.

    where, prefix: what the user gives the name and the settings by.
    """
    try:
        judge = judges.get(name)
    except PobenchError as error:
        return [f"{where}: {error}"]
    known = ", ".join(judge.settings) or "none"
    faults = [
        f"{prefix}{k}: {judge.name} has no such setting{nearest(k, judge.settings)} Known: {known}"
        for k in given
        if k not in judge.settings
    ] or _annotation_faults(judge, given, prefix)
    if not faults:
        try:
            judge(**given)
        except PobenchError as error:
            faults.append(str(error))
    return faults


def _annotation_faults(declared: Loss | NamedFunction, given: Mapping[str, Any], prefix: str) -> list[str]:
    """Of settings whose values are not what the signature's annotations allow."""
    try:
        hints = typing.get_type_hints(declared.function, include_extras=True)
    except Exception:  # a plug-in's annotation may name what cannot be looked up; the trial call still checks it
        hints = {}
    fields: dict[str, Any] = {name: (hints.get(name, Any), default) for name, default in declared.settings.items()}
    config = ConfigDict(extra="ignore", protected_namespaces=())
    try:
        pydantic.create_model(f"{declared.name} settings", __config__=config, **fields)(**given)
    except pydantic.ValidationError as error:
        return explain(error, prefix)
    return []


def explain(error: pydantic.ValidationError, prefix: str = "", schema: type[BaseModel] = Setting) -> list[str]:
    """Of a pydantic error: one plain line a fault: where, what was got, what is allowed, the nearest known key.

    prefix: of where; schema: what was validated.
    """
    lines = []
    for fault in error.errors():
        where = prefix + ".".join(str(part) for part in fault["loc"])
        if fault["type"] == "extra_forbidden":
            known = _schema_at(schema, fault["loc"][:-1]).model_fields
            lines.append(f"{where}: unknown key{nearest(str(fault['loc'][-1]), known)} Known: {', '.join(known)}")
        elif fault["type"] == "missing":
            lines.append(f"{where}: missing; this setting must say it")
        else:
            reason = fault["msg"].removeprefix("Value error, ")
            lines.append(f"{where}: got {fault['input']!r}; {reason[0].lower()}{reason[1:]}")
    return lines


def _schema_at(schema: type[BaseModel], path: Sequence[str | int]) -> type[BaseModel]:
    """The schema of a section within a section."""
    for part in path:
        declared = schema.model_fields[str(part)].annotation
        kinds = [k for k in (declared, *typing.get_args(declared)) if isinstance(k, type) and issubclass(k, BaseModel)]
        schema = kinds[0] if kinds else schema
    return schema
