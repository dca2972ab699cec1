"""ZeroEval's answers read and compared as ZeroEval reads and compares them: a reply's JSON, a number, a letter.

    answer_of(reply)        the value of `answer` in a reply's first whole JSON object, else behind the first `"answer":`
    same_number(a, b)       GSM8K: the first numbers of both, without $ and thousands' commas; fractions are worked out
    is_choice(answer, c)    MMLU-Redux: the letter alone, or in front of a bracket: "C", "C) candles"

A reply without an answer is wrong, and counted. Repository yuchenlin/ZeroEval, src/evaluation, of August 2024.
"""

from __future__ import annotations

import ast
import json
import operator
import re
from collections.abc import Callable
from typing import Any

# Where a reply holds no readable JSON: the value in quotes, then a word without, then a word behind an unquoted key.
_VALUES = (r'"answer"\s*:\s*"([^"]*)"', r'"answer"\s*:\s*([^,\s]*)', r"answer\s*:\s*([^,\s]*)")
_NUMBER = re.compile(r"-?\d+(\.\d+)?")
_OPERATORS: dict[type[ast.operator], Callable[[float, float], float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}


def answer_of(reply: str) -> str | None:
    """The answer in a model's reply; None where there is none, or an empty one."""
    found = _first_object(reply)
    if found is not None and "answer" in found:
        value = found["answer"]
    else:
        matches = (re.search(pattern, reply) for pattern in _VALUES)
        value = next((match[1] for match in matches if match), None)
    return None if value is None or value == "" else str(value)


def _first_object(reply: str) -> dict[str, Any] | None:
    """The first span whose braces are balanced, as JSON without its line ends; None where it is none."""
    start, depth = 0, 0
    for place, character in enumerate(reply):
        if character == "{":
            start, depth = (place, 1) if depth == 0 else (start, depth + 1)
        elif character == "}" and depth:
            depth -= 1
            if depth == 0:
                try:
                    found = json.loads(reply[start : place + 1].replace("\n", ""))
                except json.JSONDecodeError:
                    return None
                return found if isinstance(found, dict) else None
    return None


def same_number(answer: str, truth: str) -> bool:
    """Whether the first numbers of both are equal; never where one has none."""
    found, right = _NUMBER.search(_plain(answer)), _NUMBER.search(_plain(truth))
    return found is not None and right is not None and float(found[0]) == float(right[0])


def _plain(answer: str) -> str:
    """Without $ and commas; a term with a fraction bar as the number that it comes to."""
    text = answer.replace("$", "").replace(",", "").strip()
    if "/" not in text:
        return text
    try:
        return str(float(_worked_out(ast.parse(text, mode="eval").body)))
    except (SyntaxError, ValueError, ArithmeticError, RecursionError):
        return text


def _worked_out(term: ast.expr) -> float:
    """The value of a term of numbers. Raises ValueError for anything else."""
    if isinstance(term, ast.Constant) and isinstance(term.value, int | float):
        return term.value
    if isinstance(term, ast.UnaryOp) and isinstance(term.op, ast.USub):
        return -_worked_out(term.operand)
    if isinstance(term, ast.BinOp) and type(term.op) in _OPERATORS:
        return _OPERATORS[type(term.op)](_worked_out(term.left), _worked_out(term.right))
    raise ValueError("no term of numbers")


def is_choice(answer: str, letter: str) -> bool:
    """Whether an answer names the choice."""
    return answer == letter or f"{letter})" in answer
