"""Help, version, completion and lists: at once, whatever the commands themselves have to import."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from collections import Counter
from pathlib import Path

import pytest

import pobench
from pobench.cli import shipped_losses
from pobench.cli.group import PANELS
from pobench.cli.main import Commands
from pobench.registry import Loss, Registry, losses

ROOT = Path(__file__).parents[3]
COMMAND_FILES = {
    path.stem for path in (ROOT / "pobench/cli").glob("*.py") if "\napp = typer.Typer(" in path.read_text()
}
SLOW = {"torch", "transformers", "accelerate", "datasets", "pandas", "numpy", "scipy", "matplotlib", "jinja2"}
CALL = """
import sys
from pobench.cli.main import main
sys.argv = ["pobench", *sys.argv[1:]]
try:
    main()
except SystemExit as end:
    print(end.code or 0, *sorted({name.partition(".")[0] for name in sys.modules}), file=sys.stderr)
"""


def started(*arguments: str, **environment: str) -> tuple[int, str, set[str]]:
    """Exit status, standard output, and the packages that a process of its own has imported."""
    process = subprocess.run(
        [sys.executable, "-c", CALL, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={"PATH": "", "PYTHONPATH": str(ROOT), "POBENCH_ROOT": str(ROOT), **environment},
    )
    status, *modules = process.stderr.splitlines()[-1].split()
    return int(status), process.stdout, set(modules)


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        ((), 0),
        (("--help",), 0),
        (("--version",), 0),
        (("run", "--help"), 0),
        (("data",), 0),
        (("data", "audit", "--help"), 0),
        (("rnu",), 2),
        (("run", "--seting", "tiny"), 2),
    ],
)
def test_what_needs_no_answer_imports_nothing_slow(arguments, status) -> None:
    ended, _, modules = started(*arguments)
    assert ended == status and "typer" in modules
    assert not modules & {*SLOW, "pydantic", "yaml", "rich"}


@pytest.mark.parametrize("kind", ["losses", "settings", "studies"])
def test_lists_of_shipped_files_import_none_of_the_libraries(kind) -> None:
    ended, listed, modules = started("list", kind, "--json")
    assert ended == 0 and listed.count('"name"') > 5
    assert not modules & SLOW


def test_a_plug_ins_loss_is_listed_beside_the_shipped_ones(tmp_path, pobench_cli, monkeypatch) -> None:
    for held in ("_items", "_aliases"):  # the plug-in's loss is forgotten again
        monkeypatch.setattr(losses, held, dict(getattr(losses, held)))
    plugin = tmp_path / "mine.py"
    plugin.write_text(
        "from pobench import LossOutput, Pair, register_loss\n"
        '@register_loss("my_own", source="this test")\n'
        "def my_own(policy: Pair) -> LossOutput:\n    return LossOutput(*[policy.chosen.mean] * 3)\n"
    )
    _, listed, _ = pobench_cli("list", "losses", "--json", "--plugin", str(plugin))
    assert '"my_own"' in listed and '"simpo"' in listed


@pytest.fixture(scope="module")
def declared() -> dict[str, tuple[Loss, list[str]]]:
    """Name → a shipped loss as its file declares it, and its other names."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shipped_losses, "losses", Registry("loss", losses.package, losses.entry_points))
        return {loss.name: (loss, aliases) for loss, aliases in shipped_losses.declared_losses() or ()}


def test_the_losses_that_files_declare_are_the_registered_ones(declared) -> None:
    assert list(declared) == losses.names()


@pytest.mark.parametrize("name", losses.names())
def test_a_loss_read_from_its_file_is_the_registered_one(name, declared) -> None:
    (loss, aliases), registered = declared[name], losses.get(name)
    assert aliases == losses.aliases(name)
    for part in ("title", "source", "needs", "doc", "formula", "gradient", "in_paper"):
        assert getattr(loss, part) == getattr(registered, part), part
    for part in ("settings", "units", "ranges", "meanings", "defaults"):
        assert list(getattr(loss, part).items()) == list(getattr(registered, part).items()), part


def test_where_a_declaration_is_more_than_literals_the_registry_is_asked(tmp_path, monkeypatch) -> None:
    (tmp_path / "a_package_of_losses").mkdir()
    (tmp_path / "a_package_of_losses/__init__.py").touch()
    (tmp_path / "a_package_of_losses/odd.py").write_text('@register_loss("odd", source=f"{1}")\ndef odd(policy): ...\n')
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(shipped_losses, "losses", Registry("loss", "a_package_of_losses"))
    assert shipped_losses.declared_losses() is None


def test_every_command_is_listed_by_the_first_lines_of_its_help(pobench_cli) -> None:
    assert set(Commands.files) == COMMAND_FILES - {"main"}
    status, listed, _ = pobench_cli()
    assert (status, listed) == pobench_cli("--help")[:2] and status == 0
    words = " ".join(listed.split())
    for name in Commands.files:
        status, text, _ = pobench_cli(name, "--help")
        about = " ".join(text.split("\n\n")[1].split())
        assert status == 0 and f"{name} {about}" in words


@pytest.mark.parametrize("name", ["run", "study", "tune", "analyze", "plan", "list"])
def test_a_big_commands_help_has_panels_and_examples_that_it_understands(name, pobench_cli) -> None:
    _, text, _ = pobench_cli(name, "--help")
    _, *panels = re.split(r"\n\n([A-Z][a-z ]+):\n", text)
    titled = dict(zip(panels[::2], panels[1::2], strict=True))
    assert set(titled) - {"Arguments", "Examples"} <= set(PANELS) and len(titled) > 2 and "Output" in titled
    shown = Counter(re.findall(r"^  (--[a-z-]+)", text, re.MULTILINE))
    assert set(shown.values()) == {1} and {"--help", "--debug"} <= set(shown)
    for line in titled["Examples"].strip().splitlines():
        assert line.strip().startswith(f"pobench {name}") and len(line) <= 80
        assert set(re.findall(r" (--[a-z-]+)", line)) <= set(shown), line


def test_the_version_stands_in_one_place(pobench_cli) -> None:
    written = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert pobench.__version__ == written
    assert pobench_cli("--version")[1] == f"pobench {written}\n"


def test_every_exported_name_is_there() -> None:
    assert all(getattr(pobench, name) is not None for name in pobench.__all__)
    assert set(pobench.__all__) <= set(dir(pobench))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = pobench.nothing


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("run --losses simpo,dpo_", ["simpo,dpo_gamma", "simpo,dpo_ln", "simpo,dpo_shift"]),
        ("run --setting smol", ["smollm2"]),
        ("study kl", ["kl-vs-beta"]),
        ("list stu", ["studies"]),
        ("list losses rrh", ["rrhf", "rrhf_list"]),
        ("exp", ["export"]),
        ("run --rehea", ["--rehearse"]),
    ],
)
def test_a_shell_is_offered_names(typed, offered) -> None:
    words = f"pobench {typed}"
    variables = {"COMP_WORDS": words, "COMP_CWORD": str(len(typed.split())), "_POBENCH_COMPLETE": "complete_bash"}
    _, printed, modules = started(**variables)
    assert printed.split() == offered
    unread = set() if typed.startswith("study") else {"pydantic", "yaml"}  # a study's fields are checked by pydantic
    assert not modules & {*SLOW, *unread}


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shells_completion_is_shown(shell) -> None:
    _, script, modules = started(_POBENCH_COMPLETE=f"source_{shell}")
    assert f"_POBENCH_COMPLETE=complete_{shell}" in script
    assert not modules & {*SLOW, "pydantic", "yaml"}


def test_completed_names_of_losses_are_names_of_losses() -> None:
    assert [path.stem for path in losses.files()] == losses.names()
