"""Who may import whom. The table is the rule: arrows point down, no circle inside a room, no content by name."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

TIERS = """
    types errors columns registry files locks orphans printing progress row_files spreadsheet sources loss_math list_math shared_margins dispersion composition composed units identity positions adapter_folder shards
    settings
    data model results
    training judging reporting
    runs
    workflows
    cli
"""  # noqa: E501 (a room imports from the lines above its own; the names of one line, the first excepted, are strangers)
CONTENT = {  # folder: what it may import of pobench, and the packages besides Python's own
    "losses": ({"types", "registry", "loss_math", "list_math", "shared_margins", "dispersion", "composed"}, {"torch"}),
    "analysis": (
        {"types", "registry", "columns", "results", "reporting.plot", "reporting.looks"},
        {"numpy", "pandas", "matplotlib", "scipy"},
    ),
    "experiments": (
        (set(TIERS.split()) - {"cli"}) | {"load_frames", "run"},
        {"numpy", "pandas", "torch", "transformers", "tokenizers"},
    ),
    "reports": (set(), set()),
}
TIER = {room: depth for depth, line in enumerate(TIERS.strip().splitlines()) for room in line.split()}
PACKAGE = len(TIER)  # `pobench` itself, which names what it exports: above every room but the command line


def modules() -> dict[str, Path]:
    """Dotted name → file, of the instrument."""
    files = sorted((ROOT / "pobench").rglob("*.py"))
    return {".".join(p.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): p for p in files}


MODULES = modules()


@cache
def imports(path: Path) -> tuple[str, ...]:
    """Dotted names that a file imports, inside functions too; `from pobench.results import stats` names the module."""
    return tuple(_imports(path))


def _imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: relative import; write the full name"
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                yield full if full in MODULES or node.module == "pobench" else node.module or ""


def room(name: str) -> str | None:
    """`pobench.judging.client` → `judging`; `pobench.run`, a name of the package itself → `pobench`; others → None."""
    parts = name.split(".")
    if parts[0] != "pobench":
        return None
    return parts[1] if len(parts) > 1 and (parts[1] in TIER or parts[1] in CONTENT) else "pobench"


def depth(place: str | None) -> int:
    return PACKAGE if place == "pobench" else TIER[place or ""]


@pytest.mark.parametrize("module", MODULES)
def test_arrows_point_down(module) -> None:
    mine = room(module)
    assert mine == "pobench" or mine in TIER, f"{module}: name its room in {Path(__file__).name}"
    for name in imports(MODULES[module]):
        theirs = room(name)
        if theirs in CONTENT:  # the folder may be looked into for its files; no module of it is known by name
            assert theirs in ("experiments", "reports") and name.count(".") == 1, f"{module} imports content: {name}"
        elif theirs is not None and theirs != mine and not (mine == "cli" and theirs == "pobench"):
            ground = depth(mine) == depth(theirs) == 0
            assert ground or depth(theirs) < depth(mine), f"{module} imports {name}, which stands above or beside it"


def test_no_room_has_a_circle() -> None:
    arrows = {module: {n for n in imports(path) if n in MODULES} for module, path in MODULES.items()}
    left = dict(arrows)
    while ends := [module for module, theirs in left.items() if not theirs & set(left) - {module}]:
        for module in ends:
            del left[module]
    assert not left, f"these import each other: {', '.join(sorted(left))}"


OF_BENCHMARKS = {"alpaca_eval", "anthropic", "fastchat", "lm_eval", "openai", "psutil", "sklearn"}


def test_packages_of_benchmarks_are_imported_inside_the_functions_that_need_them() -> None:
    """The main job needs none of them, but for the classifier of a loss that asks for density ratios."""
    for module, path in MODULES.items():
        if not set(re.findall(r"\w+", text := path.read_text(encoding="utf-8"))) & OF_BENCHMARKS:
            continue
        body = ast.parse(text).body
        outside = [ast.unparse(node) for node in body if isinstance(node, (ast.Import, ast.ImportFrom))]
        assert not {line.split()[1].partition(".")[0] for line in outside} & OF_BENCHMARKS, module
        if not module.startswith("pobench.judging."):
            used = {name.partition(".")[0] for name in imports(path)} & OF_BENCHMARKS
            assert used <= ({"sklearn"} if module == "pobench.training.density_ratio" else set()), module


@pytest.mark.parametrize("folder", CONTENT)
def test_content_imports_what_its_row_names(folder) -> None:
    allowed, packages = CONTENT[folder]
    for path in (ROOT / folder).rglob("*.py"):
        for name in imports(path):
            package, _, inner = name.partition(".")
            if package == "pobench":
                assert any(f"{inner}.".startswith(f"{a}.") for a in allowed), f"{path.relative_to(ROOT)} imports {name}"
            else:
                assert package in packages | sys.stdlib_module_names, f"{path.relative_to(ROOT)} imports {name}"


def test_the_rule_sees_what_it_forbids(tmp_path) -> None:
    path = tmp_path / "bad.py"
    path.write_text(
        "import torch\nfrom pobench import run\nfrom pobench.results import stats\n"
        "def f():\n    from pobench.losses.dpo import dpo\n"
    )
    assert [(name, room(name)) for name in imports(path)] == [
        ("torch", None),
        ("pobench.run", "pobench"),
        ("pobench.results.stats", "results"),
        ("pobench.losses.dpo", "losses"),
    ]


CLOCKS = {"perf_counter", "process_time", "thread_time"}
WAITS = {"run", "call", "wait", "communicate", "join", "acquire"}
POLL, HANG = 0.05, 600.0  # seconds: between two looks for an event, and until what waits for ever is ended


def reads_a_clock(path: Path) -> Iterator[str]:
    """The calls of a test that a slow machine, or a fast one, would decide."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
            continue
        limits = [*node.args[:1], *(k.value for k in node.keywords if k.arg == "timeout")]
        seconds = [v.value for v in limits if isinstance(v, ast.Constant) and type(v.value) in (int, float)]
        name = node.func.attr
        if name in CLOCKS or (name == "sleep" and max(seconds, default=0) > POLL):
            yield f"{path.relative_to(path.parents[1])}:{node.lineno}: {name}"
        elif name in WAITS and min(seconds, default=HANG) < HANG:
            yield f"{path.relative_to(path.parents[1])}:{node.lineno}: {name} for {min(seconds)} s"


PICKLES = re.compile(
    r"\bpickle\.loads?\(|torch\.load\(|joblib|\bdill\b|allow_pickle=True|weights_only=False|yaml\.(?:unsafe_|full_)load"
)
ITS_OWN = "pobench/data/spool.py"  # reads a file without a name that it has written itself


def test_nothing_that_is_loaded_is_a_pickle() -> None:
    folders = ("pobench", "losses", "analysis", "experiments", "reports", "benchmarks")
    files = [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]
    read = {str(path.relative_to(ROOT)) for path in files if PICKLES.search(path.read_text(encoding="utf-8"))}
    assert read == {ITS_OWN}
    for line in ("pickle.load(file)", "torch.load(path)", "np.load(p, allow_pickle=True)", "yaml.unsafe_load(t)"):
        assert PICKLES.search(line)


def test_no_test_depends_on_how_fast_the_machine_is() -> None:
    tests = sorted((ROOT / "tests").rglob("test_*.py"))
    assert [call for path in tests for call in reads_a_clock(path)] == []


def test_the_rule_of_clocks_sees_what_it_forbids(tmp_path) -> None:
    path = tmp_path / "test_bad.py"
    path.write_text("time.sleep(9.0)\nprocess.wait(timeout=20)\nthread.join(5)\ntime.process_time()\n' '.join(words)\n")
    assert len(list(reads_a_clock(path))) == 4
    path.write_text("time.sleep(0.01)\nprocess.wait(timeout=600)\nthread.join()\nprinted.wait(600)\n")
    assert list(reads_a_clock(path)) == []
