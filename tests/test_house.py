"""Who may import whom. The table is the rule: arrows point down, and nothing imports content by name."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

INSTRUMENT = """
    types
    registry files progress published
    numerics config sources rows layouts stats metrics checkpoint loss_page
    prefix_attention
    attention compiled cross_loss
    gradients lean
    frames
    data logps reference scores plot store
    adapters memory norms objectives
    tables parts
    findings
    inspection train generate
    sft invariance vllm_engine
    conformance
    judging
    ranking
    prepare
    rehearsal start_model
    worker
    cost
    plan
    report onpolicy
    study tune
    show
    __init__
    cli
"""  # a module imports rows above its own; `judging` is a folder, whose files may also know each other
CONTENT = {  # folder: the modules of pobench it may import, and the packages besides Python's own
    "losses": ({"types", "registry", "numerics"}, {"torch"}),
    "analysis": ({"types", "registry", "stats", "plot"}, {"numpy", "pandas", "matplotlib", "scipy"}),
    "experiments": (set(INSTRUMENT.split()) - {"cli"}, {"numpy", "pandas", "torch", "transformers", "tokenizers"}),
    "reports": (set(), set()),
}
LAYER = {module: depth for depth, line in enumerate(INSTRUMENT.strip().splitlines()) for module in line.split()}


def imports(path: Path) -> Iterator[str]:
    """Dotted names that a file imports, inside functions too; `from pobench import stats` is `pobench.stats`."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: relative import; write the full name"
            yield from (f"pobench.{a.name}" for a in node.names) if node.module == "pobench" else [node.module or ""]


def known(imported: str) -> str | None:
    """`pobench.judging.alpaca_eval` → `judging`, `pobench.run` (a name of the package itself) → `__init__`."""
    first, _, rest = imported.partition(".")
    if first != "pobench" or rest == "__version__":
        return None
    module = rest.partition(".")[0]
    return module if module in LAYER or module in CONTENT or (ROOT / f"pobench/{module}.py").exists() else "__init__"


def home(path: Path) -> str:
    return path.relative_to(ROOT / "pobench").parts[0].removesuffix(".py")


MODULES = sorted((ROOT / "pobench").rglob("*.py"))


def test_every_module_has_its_place_in_the_table() -> None:
    homeless = sorted({home(path) for path in MODULES} - set(LAYER))
    assert not homeless, f"name its row in tests/test_house.py: {', '.join(homeless)}"


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_arrows_point_down(path) -> None:
    mine = home(path)
    for name in imports(path):
        module = known(name)
        if module in CONTENT:  # the folder may be looked into for its files; no module of it is known by name
            assert module in ("experiments", "reports") and name.count(".") == 1, f"{mine} imports content: {name}"
        elif module is not None and module != mine:
            assert LAYER.get(module, len(LAYER)) < LAYER.get(mine, 0), (
                f"{mine} imports {module}, which stands above or beside it"
            )


@pytest.mark.parametrize("folder", CONTENT)
def test_content_imports_what_its_row_names(folder) -> None:
    modules, packages = CONTENT[folder]
    for path in (ROOT / folder).rglob("*.py"):
        for name in imports(path):
            module, package = known(name), name.partition(".")[0]
            if module is not None:
                assert module in modules, f"{path.relative_to(ROOT)} imports {name}"
            else:
                assert package in packages | sys.stdlib_module_names, f"{path.relative_to(ROOT)} imports {name}"


def test_the_rule_sees_what_it_forbids(tmp_path) -> None:
    path = tmp_path / "bad.py"
    path.write_text("import torch\nfrom pobench import run, stats\ndef f():\n    from pobench.losses.dpo import dpo\n")
    assert [(name, known(name)) for name in imports(path)] == [
        ("torch", None),
        ("pobench.run", "__init__"),
        ("pobench.stats", "stats"),
        ("pobench.losses.dpo", "losses"),
    ]
