"""Faults of settings as plain lines: where, what was got, what is allowed, the nearest known name."""

from __future__ import annotations

import typing
from collections.abc import Mapping, Sequence
from typing import Any

import pydantic
from pydantic import BaseModel, ConfigDict

from pobench.errors import PobenchError, nearest
from pobench.registry import Loss, NamedFunction, judges
from pobench.settings.schema import Setting, TrainConfig


def unknown_loss_key(where: str, loss: Loss, key: str) -> list[str]:
    """The fault of a key that is neither a setting of the loss nor a field of train; none otherwise."""
    if key in loss.settings or key in TrainConfig.model_fields:
        return []
    takes = ", ".join(loss.settings) or "no setting"
    close = nearest(key, [*loss.settings, *TrainConfig.model_fields])
    return [f"{where}: {loss.name} has no {key!r}{close} It takes {takes}, and fields of train"]


def check_loss_settings(loss: Loss, given: Mapping[str, Any]) -> list[str]:
    """Faults of a loss's settings: by the annotations of its signature, then by calling it on one harmless pair."""
    faults = _annotation_faults(loss, given, f"{loss.name}.")
    if faults:
        return faults
    import torch

    from pobench.types import Pair, SequenceLogps

    zero, ten = torch.full((1,), -10.0), torch.full((1,), 10.0)
    pair = Pair(SequenceLogps(zero, ten), SequenceLogps(zero, ten))
    try:
        loss(*loss.asked(pair, pair, torch.zeros(())), **{**loss.settings, **given})
    except PobenchError as error:
        named = (f"{loss.name}:", f"{loss.name}.", f"{loss.name} ")
        return [line if line.startswith(named) else f"{loss.name}: {line}" for line in str(error).splitlines()]
    except Exception as error:
        return [f"{loss.name} with {dict(given)}: {type(error).__name__}: {error}"]
    return []


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
