"""What the signature of a loss may ask for, what its function returns, and the faults of both."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pobench.errors import nearest

if TYPE_CHECKING:
    from pobench.types import Unit


# The inputs that training can pass to a loss, in this order.
SUPPLIED = (
    *("policy", "responses", "response", "label", "reference", "kl", "tokens", "scores", "batch"),
    *("collision", "entropy", "forward_kl", "density_ratio", "value"),
)
# By what a loss has one value of, what it can ask for: the fields of `Inputs`, `ListInputs` and `AnswerInputs` in
# `pobench.types`. It must ask for the first.
INPUTS_OF: dict[Unit, tuple[str, ...]] = {
    "pairs": ("policy", "reference", "kl", "tokens", "scores", "batch", "collision", "entropy", "forward_kl", "value"),
    "lists": ("responses", "reference", "tokens", "scores", "batch", "value"),
    "answers": ("response", "label", "reference", "kl", "tokens", "scores", "batch", "density_ratio", "value"),
}
REFERENCED = ("reference", "kl", "forward_kl")  # inputs that the reference model gives
BY_TOKEN = ("tokens", "collision", "entropy", "forward_kl")  # inputs that a pair's sums do not give
READ_AS = {"pairs": "", "lists": "a pair is read as a list of two", "answers": "a pair is read as two labelled answers"}
OUTPUT_OF = {  # the type that it returns, and the shapes for n pairs, lists or answers
    "pairs": ("LossOutput", "one value per pair, ({n},)"),
    "lists": ("ListOutput", "one loss per list, ({n},), and one reward per answer, {rewards}"),
    "answers": ("AnswerOutput", "one value per answer, ({n},)"),
}


def supplied_inputs(signature: inspect.Signature, *, whole: bool = True) -> tuple[list[str], list[str]]:
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


def update_faults(update: Callable[..., Any], supplied: Iterable[str], settings: Iterable[str]) -> list[str]:
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


def undeclared(settings: Mapping[str, Any], **declared: Mapping[str, Any] | None) -> list[str]:
    """A fault for each fact of a registration that is about no setting of the function."""
    return [
        f"{what}: {key!r} is no setting of it{nearest(key, settings)}"
        for what, facts in declared.items()
        for key in facts or {}
        if key not in settings
    ]


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
