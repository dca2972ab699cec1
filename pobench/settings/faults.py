"""Checks of settings. Each fault is one plain line: where, what was given, what is allowed, and the nearest known name."""

from __future__ import annotations

import typing
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import pydantic
from pydantic import BaseModel, ConfigDict

from pobench.composition import own_settings
from pobench.errors import PobenchError, nearest
from pobench.registry import Loss, Modifier, NamedFunction, judges, wrong_output
from pobench.settings.keys import meanings, section_within
from pobench.settings.schema import Setting, TrainConfig


def unknown_loss_key(where: str, part: Loss | Modifier, key: str) -> list[str]:
    """One fault if `key` is neither a setting of the loss or modifier nor, for a loss, a field of `train`; else none."""
    trained = TrainConfig.model_fields if isinstance(part, Loss) else {}
    if key in part.settings or key in trained:
        return []
    takes = ", ".join(part.settings) or "no setting"
    known = {**(meanings(TrainConfig) if trained else {}), **part.meanings}
    close = nearest(key, [*part.settings, *trained], known)
    return [f"{where}: {part.name} has no {key!r}{close} It takes {takes}{', and fields of train' if trained else ''}"]


def check_loss_settings(loss: Loss, values: Mapping[str, Any], *, result: bool = True) -> list[str]:
    """Faults of a loss's settings and of the loss: check the signature's annotations, then call it on four harmless pairs.

    result: also check the output and the inputs after that call, see `broken_contract`.
    """
    if loss.parts:
        faults = []
        for part in loss.parts:
            faults += _annotation_faults(part, own_settings(part.name, values), f"{part.name}.")
    else:
        faults = _annotation_faults(loss, values, f"{loss.name}.")
    if faults:
        return faults
    settings = {**loss.settings, **values}
    try:
        broken = broken_contract(loss, settings)
    except PobenchError as error:
        prefixes = (f"{loss.name}:", f"{loss.name}.", f"{loss.name} ")
        return [line if line.startswith(prefixes) else f"{loss.name}: {line}" for line in str(error).splitlines()]
    except Exception as error:
        return [f"{loss.name} with {dict(values)}: {type(error).__name__}: {error}"]
    return [broken] if broken and result else []


# Sums in nats and lengths in tokens of (chosen, rejected): equal, ranked correctly, ranked wrongly, far from the reference.
# Four pairs, because a hinge loss is flat on some of them.
HARMLESS = (
    ((-10.0, -10.0), (10, 10), (-10.0, -10.0)),
    ((-12.0, -30.0), (10, 20), (-14.0, -28.0)),
    ((-30.0, -12.0), (20, 10), (-28.0, -14.0)),
    ((-9.0, -60.0), (12, 40), (-40.0, -45.0)),
)


def broken_contract(loss: Loss, settings: Mapping[str, Any]) -> str:
    """The rule that a loss breaks on four harmless pairs, as one sentence; "" if it breaks none.

    A loss must return tensors of its unit's type and shapes (of pairs, a LossOutput of (pairs,)), its `loss` must have a
    gradient with respect to the policy's sums, and its inputs must stay unchanged. Raises what the loss raises.
    """
    import torch

    from pobench.types import Inputs, Pair, SequenceLogps, TokenLogps, Vocabulary
    from pobench.units import read

    sums, lengths, reference_sums = (torch.tensor(rows) for rows in zip(*HARMLESS, strict=True))
    policy_sums = sums.requires_grad_() * 1.0  # not a leaf, as in training: a leaf refuses to be changed in place

    def pair(totals: torch.Tensor) -> Pair:
        return Pair(*(SequenceLogps(totals[:, side], lengths[:, side]) for side in (0, 1)))

    kl, scores = torch.zeros(()), torch.tensor([[8.0, 5.0], [5.0, 4.5], [9.0, 1.0], [3.0, 2.0]])
    value = torch.tensor([6.0, 5.0, 5.0, 2.5], requires_grad=True) * 1.0
    tensors = {"the policy's sums": policy_sums, "lengths": lengths, "the reference's sums": reference_sums, "kl": kl}
    tensors |= {"scores": scores, "value": value}
    before = {what: tensor.detach().clone() for what, tensor in tensors.items()}
    policy, reference = pair(policy_sums), pair(reference_sums)
    tokens = TokenLogps.spread(policy, reference if "reference" in loss.needs else None)
    batch = loss.batch_of(policy, reference, settings)
    inputs = Inputs(policy, reference, kl, tokens, scores, batch, *Vocabulary.spread(policy), value)
    if fault := _reads_more_than_ratios(loss, inputs, settings):
        return fault
    given = read(loss.unit, inputs)
    output = loss.function(*loss.named(given), **settings)
    if changed := [what for what, tensor in tensors.items() if not torch.equal(tensor.detach(), before[what])]:
        return f"loss {loss.name!r} changes its input in place ({', '.join(changed)}); others still need it: make a new tensor"
    if fault := wrong_output(output, given, loss.unit):
        return f"loss {loss.name!r} must return {fault}"
    if not output.loss.requires_grad:
        return (
            f"loss {loss.name!r} must return a loss that can be differentiated by the policy's sums; its `loss` is detached "
            "from them (by detach(), item(), numpy or no_grad), so nothing would be learned"
        )
    by_value = torch.autograd.grad(output.loss.sum(), value, allow_unused=True)[0]
    if loss.trains_value and (by_value is None or not by_value.any()):
        return f"loss {loss.name!r} asks for `value` and has no slope by it, so its value model would learn nothing"
    return ""


def _reads_more_than_ratios(loss: Loss, inputs: Any, settings: Mapping[str, Any]) -> str:
    """The sentence that refuses a modifier of ratios around a loss that reads the policy's sums by themselves; else "".

    inputs: all that a loss can ask for, a `pobench.types.Inputs`."""
    import torch

    from pobench.composed import Composed

    def shifted(pair: Any) -> Any:
        return pair._replace(chosen=pair.chosen._replace(total=pair.chosen.total - 2.5))

    first = torch.zeros(inputs.tokens.mask.shape)
    first[:, 0, 0] = 2.5  # the chosen answer's first token has what its sum has less
    known = None if inputs.tokens.reference is None else inputs.tokens.reference - first
    tokens = inputs.tokens._replace(policy=inputs.tokens.policy - first, reference=known)
    moved = inputs._replace(policy=shifted(inputs.policy), reference=shifted(inputs.reference), tokens=tokens)
    for modifier, inner in loss.function.within_ratios() if isinstance(loss.function, Composed) else ():
        before, after = (inner(*(getattr(at, name) for name in inner.takes), **settings).loss for at in (inputs, moved))
        if not torch.allclose(before, after, rtol=1e-4, atol=1e-4):
            return (
                f"{loss.name}: {modifier.name} fits a loss that reads policy and reference by their difference alone, and "
                f"{inner.terms[0][1][-1].name} reads the policy's log-probability itself"
            )
    return ""


def judge_faults(
    name: str, values: Mapping[str, Any], where: str = "judge.name", prefix: str = "judge.settings."
) -> list[str]:
    """Faults of a judge's name and settings: check the factory's annotations, then make the judge, which asks nobody yet.

    where, prefix: the keys by which the user gives the name and the settings.
    """
    try:
        judge = judges.get(name)
    except PobenchError as error:
        return [f"{where}: {error}"]
    known = ", ".join(judge.settings) or "none"
    faults = [
        f"{prefix}{k}: {judge.name} has no such setting{nearest(k, judge.settings)} Known: {known}"
        for k in values
        if k not in judge.settings
    ] or _annotation_faults(judge, values, prefix)
    if not faults:
        try:
            judge(**values)
        except PobenchError as error:
            faults.append(str(error))
    return faults


def _annotation_faults(declared: Loss | Modifier | NamedFunction, values: Mapping[str, Any], prefix: str) -> list[str]:
    """Faults of values that the signature's annotations do not allow."""
    try:
        _declared(declared.function, declared.name, tuple(declared.settings))(**values)
    except pydantic.ValidationError as error:
        return explain(error, prefix)
    return []


@lru_cache(maxsize=256)  # making one takes milliseconds, and every job of a study asks again
def _declared(function: Callable[..., Any], name: str, settings: tuple[str, ...]) -> type[BaseModel]:
    """What the signature's annotations allow these settings to be."""
    try:
        hints = typing.get_type_hints(function, include_extras=True)
    except Exception:  # a plug-in's annotation may name an unknown type; the trial call still checks the value
        hints = {}
    fields: dict[str, Any] = {setting: (hints.get(setting, Any), None) for setting in settings}
    # strict: the function gets the value as it stands
    config = ConfigDict(extra="ignore", protected_namespaces=(), strict=True)
    return pydantic.create_model(f"{name} settings", __config__=config, **fields)


def explain(error: pydantic.ValidationError, prefix: str = "", schema: type[BaseModel] = Setting) -> list[str]:
    """The faults of a pydantic error, one plain line each: where, what was given, what is allowed, the nearest known key.

    prefix: stands in front of each location. schema: the model that was validated.
    """
    lines = []
    for fault in error.errors():
        where = prefix + ".".join(str(part) for part in fault["loc"])
        if fault["type"] == "extra_forbidden":
            section = _schema_at(schema, fault["loc"][:-1])
            known, key = section.model_fields, str(fault["loc"][-1])
            lines.append(f"{where}: unknown key{nearest(key, known, meanings(section))} Known: {', '.join(known)}")
        elif fault["type"] == "missing":
            lines.append(f"{where}: missing; this setting must say it")
        else:
            reason = fault["msg"].removeprefix("Value error, ")
            lines.append(f"{where}: got {fault['input']!r}; {reason[0].lower()}{reason[1:]}")
    return lines


def _schema_at(schema: type[BaseModel], path: Sequence[str | int]) -> type[BaseModel]:
    """The schema of the section at `path`."""
    for part in path:
        if isinstance(part, int):  # a place in a list of such sections
            continue
        schema = section_within(schema, str(part)) or schema
    return schema
