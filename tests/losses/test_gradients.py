"""Every loss's docstring states its gradient; here the statement is read, worked out in 60 digits, and held to autograd."""

from __future__ import annotations

import ast
import math
import operator
import random
import re
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from mpmath import mp, mpf
from oracles import ORACLES, Case, collected, dispersion

from pobench.registry import Loss, get_loss, list_losses
from pobench.types import LossOutput, Pair, SequenceLogps

LOSSES = [name for name in list_losses() if "batch" not in get_loss(name).needs]  # those: test_whole_batches.py
HOW_TO = """loss {name!r} states no gradient. Write into its docstring, after the prose and before `Reward:`

Gradient:
    chosen = <d loss / d chosen sum>
    rejected = <d loss / d rejected sum>
    s = <auxiliary definitions, any number>

in chosen, rejected, reference_chosen, reference_rejected, |chosen|, |rejected|, kl, score_chosen, score_rejected, value,
kl_chosen, kl_rejected (sums of `forward_kl`), entropy (the reference's mean one, a share of the largest), the settings,
and {functions}"""


# ---------------------------------------------------------------- reading the statement


def sigmoid(x: Any) -> Any:
    return 1 / (1 + mp.exp(-x))


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "sigmoid": sigmoid,
    "log": mp.log,
    "exp": mp.exp,
    "log1p": mp.log1p,
    "expm1": mp.expm1,
    "sqrt": mp.sqrt,
    "sign": mp.sign,
    "abs": abs,
    "max": max,
    "min": min,
}
OPERATORS: dict[type, Callable[..., Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Pow: operator.pow,
    ast.USub: operator.neg,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
}


SUMS = ("chosen", "rejected", "reference_chosen", "reference_rejected")


class Statement:
    """The `Gradient:` lines of a docstring at given numbers. Text is parsed and walked, never executed."""

    def __init__(self, lines: Mapping[str, str], numbers: Mapping[str, Any]) -> None:
        self.numbers = numbers
        self.trees = {
            name: ast.parse(re.sub(r"\|(chosen|rejected)\|", r"length_\1", text), mode="eval").body
            for name, text in lines.items()
        }

    def of(self, name: str) -> Any:
        return self.work(self.trees[name])

    def work(self, node: ast.expr) -> Any:
        match node:
            case ast.Constant(value=bool() | str() as value):
                return value
            case ast.Constant(value=int() | float() as value):
                return mpf(value)
            case ast.Name(id=name) if name in self.numbers:  # so `chosen` on a right-hand side is the sum
                return self.numbers[name]
            case ast.Name(id=name) if name in self.trees:
                return self.of(name)
            case ast.BinOp(left=left, op=op, right=right) if type(op) in OPERATORS:
                return OPERATORS[type(op)](self.work(left), self.work(right))
            case ast.UnaryOp(op=op, operand=operand) if type(op) in OPERATORS:
                return OPERATORS[type(op)](self.work(operand))
            case ast.Compare(left=left, ops=[op], comparators=[right]) if type(op) in OPERATORS:
                return OPERATORS[type(op)](self.work(left), self.work(right))
            case ast.Call(func=ast.Name(id="where"), args=[condition, yes, no], keywords=[]):
                return self.work(yes if self.work(condition) else no)
            case ast.Call(func=ast.Name(id=name), args=args, keywords=[]) if name in FUNCTIONS:
                return FUNCTIONS[name](*map(self.work, args))
        raise ValueError(f"not understood: {ast.unparse(node)}")


def definitions(gradient: str) -> dict[str, str]:
    """Name → right-hand side, of the lines of `Loss.gradient`. A line without ` = ` goes on from the one before."""
    found: dict[str, str] = {}
    for line in gradient.splitlines():
        name, equals, text = line.partition(" = ")
        if equals and name.isidentifier():
            found[name] = text
        else:
            last = next(reversed(found))
            found[last] = f"{found[last]} {line}"
    return found


def stated(loss: Loss, case: Case, settings: Mapping[str, Any]) -> tuple[float, float]:
    """(by chosen, by rejected) as the docstring says. γ and its like are spelled out first, as in a run's record."""
    numbers = {k: mpf(v) if type(v) is float else v for k, v in loss.canonical({**loss.settings, **settings}).items()}
    for name, value in zip(
        (*SUMS, "length_chosen", "length_rejected", "kl", "score_chosen", "score_rejected", "value"),
        case,
        strict=True,
    ):
        numbers[name] = mpf(value)
    numbers |= {f"kl_{side}": collected("forward_kl", n) for side, n in (("chosen", case.nw), ("rejected", case.nl))}
    numbers["entropy"] = dispersion(case)
    with mp.workdps(60):
        statement = Statement(definitions(loss.gradient), numbers)
        return float(statement.of("chosen")), float(statement.of("rejected"))


# ---------------------------------------------------------------- the tests


def cases(n: int) -> list[Case]:
    draw = random.Random(20230518)
    found = []
    for _ in range(n):
        nw, nl = draw.randint(1, 300), draw.randint(1, 300)
        w, l = -nw * draw.uniform(0.01, 3), -nl * draw.uniform(0.01, 3)  # noqa: E741
        found.append(Case(w, l, w - draw.gauss(0, 9), l - draw.gauss(0, 9), nw, nl, draw.gauss(2, 6)))
    return found


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_states_its_gradient(name) -> None:
    lines = definitions(get_loss(name).gradient)
    assert {"chosen", "rejected"} <= set(lines), HOW_TO.format(name=name, functions=", ".join([*FUNCTIONS, "where"]))


@pytest.mark.parametrize("name", [n for n in LOSSES if get_loss(n).gradient])
def test_the_stated_gradient_is_autograds(name, evaluate) -> None:
    loss = get_loss(name)
    seen = set()
    for settings in ({}, *ORACLES[name].settings):
        for case in cases(20):
            got = evaluate(name, case, **settings)
            by_w, by_l = stated(loss, case, settings)
            assert got.by_w.item() == pytest.approx(by_w, rel=1e-9, abs=1e-200), (settings, case)
            assert got.by_l.item() == pytest.approx(by_l, rel=1e-9, abs=1e-200), (settings, case)
            seen.add((by_w, by_l))
    assert len(seen) > 1


def test_a_wrong_statement_is_found_out(evaluate) -> None:
    case = cases(1)[0]
    numbers = {"beta": 0.1, "chosen": case.w, "rejected": case.l}
    assert Statement({"chosen": "-beta * s", "s": "sigmoid(chosen - rejected)"}, numbers).of("chosen") < 0
    by_w = evaluate("cpo", case, sft_weight=0.0).by_w.item()
    assert by_w != pytest.approx(float(Statement({"chosen": "beta * 0.5"}, numbers).of("chosen")))


@pytest.mark.parametrize(
    "text",
    ["__import__('os')", "open(chosen)", "chosen.real", "(lambda: 1)()", "[chosen]", "unheard_of", "f'{chosen}'"],
)
def test_a_statement_is_worked_out_and_never_executed(text) -> None:
    with pytest.raises(ValueError, match="not understood"):
        Statement({"chosen": text}, {"chosen": 1.0}).of("chosen")


def test_where_takes_one_side_only() -> None:
    lines = {"chosen": "where(kind == 'sum', max(1, |chosen|) ** 2, log(-1) / 0)", "rejected": "-where(true, 1, 2)"}
    statement = Statement(lines, {"kind": "sum", "length_chosen": mpf(3), "true": True})
    assert (statement.of("chosen"), statement.of("rejected")) == (9, -1)
    assert math.isclose(float(Statement({"s": "expm1(0.5)"}, {}).of("s")), math.expm1(0.5))


def test_a_loss_of_a_users_own_needs_no_statement(monkeypatch: pytest.MonkeyPatch) -> None:
    from pobench import registry

    for place, value in {"_items": {}, "_aliases": {}, "_loaded": True}.items():
        monkeypatch.setattr(registry.losses, place, value)

    def mine(policy: Pair, *, beta: float = 1.0) -> LossOutput:
        """Mine.

        loss = -chosen
        """
        return LossOutput(-beta * policy.chosen.total, policy.chosen.mean, policy.rejected.mean)

    registry.register_loss("mine", source="here")(mine)
    ones = SequenceLogps(torch.ones(2), torch.ones(2))
    assert get_loss("mine").gradient == ""
    assert get_loss("mine")(Pair(ones, ones)).loss.tolist() == [-1.0, -1.0]
