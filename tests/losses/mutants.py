"""A mutation trial: break the losses on purpose, one small change at a time, and count which mutants the tests kill.

    python tests/losses/mutants.py [NAMES]

Mutations are made in the syntax tree of a loss's own function, and of every function of `list_math`, `shared_margins` and
`dispersion`,
which are names too: a sign turned, a factor dropped, a sum taken for a mean (or the other way round), the two responses
exchanged, a detached reward replaced, an `and` for an `or`, a tie let in or out. Each mutant runs the tests of tests/losses for
its loss in a forked process; one that passes them all is printed, and the exit status is 1.
"""

from __future__ import annotations

import ast
import contextlib
import copy
import importlib.util
import io
import multiprocessing
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch  # noqa: F401 (before the fork, so that a mutant costs a second, not ten)

HERE = Path(__file__).parent
POBENCH = HERE.parents[1] / "pobench"
LOSSES = HERE.parents[1] / "losses"
TESTS = (
    "test_lists.py",
    "test_whole_batches.py",
    "test_values.py",
    "test_laws.py",
    "test_settings.py",
    "test_vocabulary.py",
)
EXCHANGED = {"total": "mean", "mean": "total", "chosen": "rejected", "rejected": "chosen"}
OPPOSITE: dict[type, type] = {
    **{ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult},
    **{ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd},
    **{ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt},
}
# Modules that losses compute with: file → the losses whose tests try it, as pytest's `-k` names them.
SHARED = {"list_math": "list or a_pair_is", "shared_margins": "gamma_po", "dispersion": "mallows"}


def mutations(node: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    """(what was done, the changed node) for one node."""
    if isinstance(node, ast.BinOp) and type(node.op) in OPPOSITE:
        turned = copy.deepcopy(node)
        turned.op = OPPOSITE[type(node.op)]()
        yield f"{ast.unparse(node)}  →  {ast.unparse(turned)}", turned
        if isinstance(node.op, ast.Mult):
            yield f"{ast.unparse(node)}  →  {ast.unparse(node.right)}", node.right
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.Invert):
        yield f"{ast.unparse(node)}  →  {ast.unparse(node.operand)}", node.operand
    elif isinstance(node, ast.Compare) and type(node.ops[0]) in OPPOSITE:
        turned = copy.deepcopy(node)
        turned.ops = [OPPOSITE[type(node.ops[0])](), *node.ops[1:]]
        yield f"{ast.unparse(node)}  →  {ast.unparse(turned)}", turned
    elif isinstance(node, ast.Attribute) and node.attr in EXCHANGED:
        changed = copy.deepcopy(node)
        changed.attr = EXCHANGED[node.attr]
        yield f"{ast.unparse(node)}  →  {ast.unparse(changed)}", changed


def file_of(name: str) -> Path:
    return (POBENCH if name in SHARED else LOSSES) / f"{name}.py"


def statements(tree: ast.Module, name: str) -> list[ast.stmt]:
    """Those of the functions that are mutated: the loss's own, or every one of a module of `SHARED`."""
    functions = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef) and (n.name == name or name in SHARED)]
    assert functions
    return [statement for function in functions for statement in function.body]


def mutants(name: str) -> Iterator[tuple[str, str]]:
    """(what was done, the module's changed source) for every mutation."""
    tree = ast.parse(file_of(name).read_text(encoding="utf-8"))
    inside = [n for statement in statements(tree, name) for n in ast.walk(statement)]
    for place, node in enumerate(inside):
        for what, changed in mutations(node):
            other = copy.deepcopy(tree)
            target = [n for statement in statements(other, name) for n in ast.walk(statement)][place]
            yield what, ast.unparse(ast.fix_missing_locations(_Swap(target, changed).visit(other)))


class _Swap(ast.NodeTransformer):
    def __init__(self, target: ast.AST, changed: ast.AST) -> None:
        self.target, self.changed = target, changed

    def visit(self, node: ast.AST) -> ast.AST:
        return copy.deepcopy(self.changed) if node is self.target else super().visit(node)


def survives(name: str, source: str) -> bool:
    """Whether the tests pass with the mutant in the loss's place, or have not failed in five minutes."""
    context = multiprocessing.get_context("fork")
    child = context.Process(target=_try, args=(name, source))
    child.start()
    child.join(300)
    if child.is_alive():
        child.kill()
        return True
    return child.exitcode == 0


def _try(name: str, source: str) -> None:
    module_name = f"pobench.{name}" if name in SHARED else f"pobench.losses.{name}"
    spec = importlib.util.spec_from_loader(module_name, loader=None)
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module  # the registry finds this one when it looks through the folder
    try:
        exec(compile(source, f"<mutant of {name}>", "exec"), module.__dict__)
    except Exception:
        sys.exit(1)
    quiet = ["-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-o", "addopts="]
    wanted = SHARED.get(name) or " or ".join(
        (name, "reductions", "gradient", "pulls", "swapping", "before", "ranks", "likelihood")
    )
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        status = pytest.main([*quiet, *(str(HERE / t) for t in TESTS), "-k", wanted])
    sys.exit(int(status))


def trial(names: list[str]) -> list[tuple[str, str]]:
    """Run the trial, printing a line for each loss; returns the survivors as (loss, what was done)."""
    left = []
    for name in names:
        started, tried = time.monotonic(), 0
        for what, source in mutants(name):
            tried += 1
            if survives(name, source):
                left.append((name, what))
                print(f"{name}: SURVIVES  {what}", flush=True)
        print(f"{name}: {tried} mutants, {time.monotonic() - started:.0f} s", flush=True)
    return left


def every_name() -> list[str]:
    return [*sorted(p.stem for p in LOSSES.glob("*.py") if p.stem != "__init__"), *SHARED]


if __name__ == "__main__":
    asked = sys.argv[1:] or every_name()
    survivors = trial(asked)
    total = sum(1 for name in asked for _ in mutants(name))
    print(f"{total} mutants of {len(asked)} names, {total - len(survivors)} killed, {len(survivors)} survive")
    sys.exit(bool(survivors))
