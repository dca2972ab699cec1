"""README and docs: pages written from the code are up to date, links lead somewhere, the tree, commands and example hold."""

from __future__ import annotations

import ast
import copy
import json
import re
import shlex
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import typer

from pobench.cli.group import app_of
from pobench.cli.key_page import key_page
from pobench.cli.main import Commands
from pobench.cli.options import parse_stages
from pobench.cli.stage_page import stage_page
from pobench.columns import FRAMES
from pobench.composition import split
from pobench.errors import or_fault
from pobench.registry import Registry, get_loss, list_losses, load_plugin, losses, modifiers, register_loss
from pobench.reporting import loss_page as page
from pobench.reporting.frame_page import frame_page
from pobench.reporting.loss_family import family_figure
from pobench.runs.executor import make_executor
from pobench.runs.opponents import with_opponents
from pobench.runs.stages import STAGES
from pobench.settings.faults import judge_faults
from pobench.settings.resolve import nested, parse_overrides, parse_settings, resolve, resolve_names
from pobench.types import LossOutput, Pair
from pobench.workflows.check import check
from pobench.workflows.study_file import read_study

ROOT = Path(__file__).parents[1]
WRITTEN = ROOT / "docs/losses.md"
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
NOTEBOOKS = sorted((ROOT / "docs").glob("*.ipynb"))
LOSSES = list_losses()
USAGE: Any = (
    typer.BadParameter.__base__
)  # what click raises for words that do not parse; typer may carry a click of its own


@pytest.fixture(scope="module")
def text() -> str:
    return page.loss_page()


@pytest.fixture
def empty(monkeypatch: pytest.MonkeyPatch) -> Registry[Any]:
    for place, value in {"_items": {}, "_aliases": {}, "_loaded": True}.items():
        monkeypatch.setattr(losses, place, value)
    return losses


def section(text: str, title: str) -> str:
    return text.partition(f"### {title}\n")[2].partition("\n### ")[0]


def test_the_written_page_is_todays(text) -> None:
    written = WRITTEN.read_text(encoding="utf-8") if WRITTEN.exists() else ""
    assert written == text, "docs/losses.md is stale: run `make docs`"


def test_the_written_figure_of_the_family_is_todays() -> None:
    assert (ROOT / "docs/losses-family.svg").read_text(encoding="utf-8") == family_figure(), "run `make docs`"


def test_the_page_of_peers_has_a_row_for_every_objective_and_modifier() -> None:
    table = (ROOT / "docs/peers.md").read_text(encoding="utf-8").partition("## What others have")[0]
    assert re.findall(r"^\| `(\w+)`", table, re.MULTILINE) == [*LOSSES, *modifiers.names()]


def test_the_written_page_of_frames_is_todays() -> None:
    written = WRITTEN.with_name("frames.md").read_text(encoding="utf-8")
    assert written == frame_page(), "docs/frames.md is stale: run `make docs`"
    for frame in FRAMES.values():
        assert f"\n## {frame.name}\n" in written and all(f"\n| `{name}` | " in written for name in frame.names)


def test_the_page_of_claims_is_what_the_registry_says() -> None:
    from pobench.cli.claim_page import claim_page

    written = WRITTEN.with_name("claims.md").read_text(encoding="utf-8")
    assert written == claim_page(), "docs/claims.md is stale: run `make docs`"


def test_the_written_page_of_stages_is_todays() -> None:
    written = WRITTEN.with_name("stages.md").read_text(encoding="utf-8")
    assert written == stage_page(), "docs/stages.md is stale: run `make docs`"
    assert re.findall(r"^## (.*)$", written, re.MULTILINE) == [stage.name for stage in STAGES]


def test_the_written_page_of_keys_is_todays() -> None:
    written = WRITTEN.with_name("keys.md").read_text(encoding="utf-8")
    assert written == key_page(), "docs/keys.md is stale: run `make docs`"
    rows = [line.replace("\\|", "").count("|") for line in written.splitlines() if line.startswith("| ")]
    assert len(rows) > 150 and set(rows) == {6}, "a cell holds a bar"


def test_the_page_is_the_same_twice(text) -> None:
    assert page.loss_page() == text


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_has_its_section(name, text) -> None:
    loss = get_loss(name)
    found = section(text, loss.title)
    assert loss.gradient in found
    for part in (f"`{name}`", "**Reward:**", "**Elsewhere:**", "**Beware:**", *loss.formula.splitlines()):
        assert part in found, f"{name}: the page lacks {part!r}"
    assert "TRL" in found, f"{name}: say in its docstring how TRL's version differs, or that TRL has none"


@pytest.mark.parametrize("name", LOSSES)
def test_every_setting_is_explained(name) -> None:
    loss = get_loss(name)
    unexplained = [s for s in loss.settings if s not in loss.meanings and s not in page.MEANINGS]
    assert not unexplained, f"{name}: give `meanings` of {', '.join(unexplained)} to register_loss"
    without_source = [s for s in loss.settings if s not in loss.defaults]
    assert not without_source, f"{name}: say in `defaults` where those of {', '.join(without_source)} come from"


def test_the_papers_losses_come_first(text) -> None:
    names = {get_loss(name).title: name for name in LOSSES}
    titles = re.findall(r"^### (.*)$", text, re.MULTILINE)
    assert [title for title in titles if title not in names] == modifiers.names()
    ours = [names[title] for title in titles if title in names]
    assert sorted(ours) == LOSSES
    last = max(ours.index(n) for n in LOSSES if get_loss(n).in_paper)
    assert set(ours[: last + 1]) == {*(n for n in LOSSES if get_loss(n).in_paper), "simpo_sft", "simpo_hinge"}


def test_every_row_of_a_table_has_its_columns(text) -> None:
    width = None
    for line in text.splitlines():
        if not line.startswith("| "):
            width = None
            continue
        cells = len(re.split(r"(?<!\\)\|", line))
        assert width in (None, cells), line
        width = cells


def test_links_of_the_summary_lead_to_sections(text) -> None:
    headings = {page._anchor(h) for h in re.findall(r"^#+ (.*)$", text, re.MULTILINE)}
    links = re.findall(r"\]\(#(.*?)\)", text.partition("\n## ")[0])
    assert len(links) == len(LOSSES) and set(links) <= headings


def test_the_weights_are_the_slopes_at_the_defaults() -> None:
    short, rightly, wrongly = page.TYPICAL
    # DPO, β = 0.1: -β σ(-β Δ) with Δ = 0, 40, -40 nats
    assert page.weights(get_loss("dpo"), short) == pytest.approx((-0.05, 0.05))
    assert page.weights(get_loss("dpo"), rightly) == pytest.approx((-0.1 * 0.0179862, 0.1 * 0.0179862), rel=1e-5)
    # SimPO, β = 2, γ = 1: the margin is 0, so -β σ(γ) / |w| = -2 · 0.7310586 / 30, and 2 · 0.7310586 / 150
    assert page.weights(get_loss("simpo"), short) == pytest.approx((-0.0487372, 0.0097474), rel=1e-5)
    # KTO at kl = 0: -β σ(2) σ(-2) = -0.1 · 0.1049936 a side at β · 20 nats
    assert page.weights(get_loss("kto"), wrongly) == pytest.approx((-0.0104994, 0.0104994), rel=1e-5)


def test_a_loss_of_a_users_own_gets_a_section_of_what_it_has(empty) -> None:
    @register_loss("mine", source="my | notebook")
    def mine(policy: Pair, *, steepness: float = 1.0) -> LossOutput:
        """Mine: as simple as can be.

            loss = -chosen

        Of no use.
        """
        return LossOutput(-steepness * policy.chosen.total, policy.chosen.mean, policy.rejected.mean)

    text = page.loss_page()
    assert "my \\| notebook |" in text
    found = section(text, "mine")
    assert "As simple as can be." in found and "Of no use." in found and "Gradient" not in found
    assert "| `steepness` | – | – | 1 | – | – |" in found
    assert "| ranked wrongly | 80 / 80 | -100 / -60 | – | -1 | 0 |" in found


def test_the_papers_page_names_figures_and_studies_that_exist() -> None:
    from pobench.registry import figures
    from pobench.workflows.study_file import list_studies

    rows = [
        line.split("|")[1:-1] for line in (WRITTEN.parent / "paper.md").read_text("utf-8").splitlines() if "|" in line
    ]
    named = [re.findall(r"`([a-z][a-z-]+)`", cell) for _, *cells in rows for cell in cells]
    drawn, made_by = {n for names in named[0::2] for n in names}, {n for names in named[1::2] for n in names}
    assert len(drawn) > 15 and drawn <= set(figures.names())
    assert len(made_by) > 6 and made_by <= set(list_studies())


# ---------------------------------------------------------------- README and the pages written by hand
def blocks(text: str) -> list[str]:
    """The fenced parts of a page."""
    return re.findall(r"^```\w*\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def test_every_link_leads_to_a_file_and_a_heading() -> None:
    links = [
        (path, link)
        for path in [*PAGES, ROOT / "CHANGELOG.md", ROOT / "reports/examples/README.md"]
        for link in re.findall(r"\]\(([^)\s]+)\)", path.read_text(encoding="utf-8"))
        if not re.match(r"https?:", link)
    ]
    assert len(links) > 50
    for path, link in links:
        name, _, heading = link.partition("#")
        target = path.parent / name if name else path
        assert target.exists(), f"{path.name}: no file {name}"
        if heading:
            titles = re.findall(r"^#+ (.*)$", target.read_text(encoding="utf-8"), re.MULTILINE)
            assert heading in {page._anchor(title) for title in titles}, f"{path.name}: no heading {link}"


def test_the_readme_lists_every_page() -> None:
    linked = set(re.findall(r"\]\((docs/[^)#]+)\)", PAGES[0].read_text(encoding="utf-8")))
    assert linked == {f"docs/{p.name}" for p in [*PAGES[1:], *NOTEBOOKS]}


def notebook_faults(notebook: dict[str, Any]) -> list[str]:
    """Where a notebook is not one of format 4.5, or holds more than its source."""
    faults = [key for key, value in {"nbformat": 4, "nbformat_minor": 5}.items() if notebook.get(key) != value]
    ids = [cell.get("id", "") for cell in notebook["cells"]]
    faults += [f"id {name!r}" for name in ids if not re.fullmatch(r"[\w-]{1,64}", name) or ids.count(name) > 1]
    for cell in notebook["cells"]:
        keys = {"cell_type", "id", "metadata", "source"}
        if cell["cell_type"] == "code":
            keys |= {"execution_count", "outputs"}
            faults += [f"output of {cell['id']}"] if cell.get("outputs") or cell.get("execution_count") else []
        faults += [f"keys of {cell['id']}"] if set(cell) != keys else []
    return faults


def run_cells(notebook: dict[str, Any]) -> dict[str, Any]:
    """Run the code cells in order in one namespace, as a notebook does: cell → the value of its last line, if it has one."""
    names: dict[str, Any] = {}
    shown = {}
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            body = ast.parse("".join(cell["source"]))
            last = ast.Expression(body.body.pop().value) if isinstance(body.body[-1], ast.Expr) else None
            exec(compile(body, cell["id"], "exec"), names)
            shown[cell["id"]] = last and eval(compile(last, cell["id"], "eval"), names)
    return shown


def test_the_notebook_runs_and_shows_frames_a_table_a_figure_and_a_claim(monkeypatch: pytest.MonkeyPatch) -> None:
    (path,) = NOTEBOOKS
    notebook = json.loads(path.read_text(encoding="utf-8"))
    assert notebook_faults(notebook) == []
    broken = copy.deepcopy(notebook)
    broken["cells"][1] |= {"id": "title", "outputs": [{}]}
    assert notebook_faults(broken) == ["id 'title'", "id 'title'", "output of title"]
    text = "".join("".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "markdown")
    links = re.findall(r"\]\(([^)\s]+)\)", text)
    assert links and not [link for link in links if not (path.parent / link).is_file()]
    monkeypatch.chdir(path.parent)  # where a notebook runs
    shown = run_cells(notebook)
    assert "<td>heldout</td><td>1,392 rows</td>" in shown["frames"]._repr_html_()
    assert len(shown["table"]) == 6 and (shown["table"]["pass_rate_low"] < shown["table"]["pass_rate"]).all()
    assert shown["figure"]._repr_png_().startswith(b"\x89PNG")
    assert shown["claim"]["verdict"] == "undecided" and shown["claim"]["low"] < 0 < shown["claim"]["high"]
    assert shown["own"].shape == (6, 4), "the start model has a column of its own: no seed"


def test_the_tests_that_the_page_of_faults_names_exist_and_every_fault_has_one() -> None:
    page_ = (ROOT / "docs/faults.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`(tests/\S+?)::(\w+)`", page_))
    tests = {file: re.findall(r"^def (test_\w+)", (ROOT / file).read_text("utf-8"), re.MULTILINE) for file, _ in named}
    assert len(named) > 90 and [f"{file}::{name}" for file, name in named if name not in tests[file]] == []
    rows = [
        line for line in page_.splitlines() if line.startswith("| ") and not line.startswith(("| kind", "| what |"))
    ]
    assert len(rows) > 40 and [row for row in rows if "::" not in row] == []


def rooms(tree: str) -> dict[str, set[str]]:
    """Folder → the modules that the README's tree names in it."""
    found: dict[str, set[str]] = {}
    folder = ""
    for line in tree.splitlines():
        if named := re.match(r"( *)([\w/]+/) +\S", line):
            folder = "pobench/" + named[2] if named[1] else named[2]
            found[folder] = set()
        else:
            found[folder] |= set(line.split())
    return found


def test_the_readme_counts_the_objectives() -> None:
    assert f"with any of {len(list_losses())} objectives" in (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_readmes_tree_names_every_file_in_its_room() -> None:
    tree = next(block for block in blocks(PAGES[0].read_text(encoding="utf-8")) if block.startswith("pobench/"))
    named = {folder: names for folder, names in rooms(tree).items() if folder.startswith("pobench/")}
    there: dict[str, set[str]] = {}
    for path in sorted((ROOT / "pobench").rglob("*.py")):
        if not path.stem.startswith("__"):
            there.setdefault(f"{path.parent.relative_to(ROOT)}/", set()).add(path.stem)
    assert named == there


def test_the_readmes_loss_runs_and_keeps_the_laws(empty, tmp_path) -> None:
    code = next(block for block in blocks(PAGES[0].read_text(encoding="utf-8")) if "@register_loss" in block)
    (tmp_path / "mine.py").write_text(code, encoding="utf-8")
    load_plugin(tmp_path / "mine.py")
    findings = list(check(empty.get("mine"), {}, [], steps=False))
    assert len(findings) > 8 and not [f for f in findings if f.verdict == "fails"]


def test_the_losses_on_the_page_of_python_keep_every_law(tmp_path, empty) -> None:
    page_ = (ROOT / "docs/python.md").read_text(encoding="utf-8")
    shown = [b for b in blocks(page_) if b.startswith("@register_loss")]
    head = """import torch
from torch import Tensor
from torch.nn.functional import logsigmoid
from pobench import AnswerOutput, Batch, ListOutput, LossOutput, Pair, Responses, SequenceLogps, TokenLogps, register_loss
"""
    (tmp_path / "shown.py").write_text("\n".join([head, *shown]), encoding="utf-8")
    load_plugin(tmp_path / "shown.py")
    for number, block in enumerate(b for b in blocks(page_) if b.startswith('"""') and "@register_loss" in b):
        (tmp_path / f"file{number}.py").write_text(block, encoding="utf-8")
        load_plugin(tmp_path / f"file{number}.py")
    assert empty.names() == [
        "my_aot",
        "my_bco",
        "my_hinge",
        "my_ld",
        "my_listnet",
        "my_price",
        "my_ratings",
        "my_value",
    ]
    for name in empty.names():
        assert not [f for f in check(empty.get(name), {}, [], steps=False) if f.verdict == "fails"]


def commands(page_: Path) -> Iterator[list[str]]:
    """The words of each `pobench` command that a page shows."""
    for block in blocks(page_.read_text(encoding="utf-8")):
        for line in block.replace("\\\n", " ").splitlines():
            if line.startswith("pobench ") and not line.startswith("pobench/"):
                yield [word for word in shlex.split(line, comments=True)[1:] if word not in ("…", "&")]


@cache
def command_called(name: str) -> Any:
    return typer.main.get_command(app_of(name))


def faults_of_command(words: list[str]) -> Iterator[str]:
    """What is wrong with a command: its options and values, and the settings, keys, losses, stages, studies and executors that
    they name. A file of the reader's own (`mine.yaml`, `--plugin mine.py`) is not there, and neither is what it registers."""
    if words[0] not in Commands.files:
        yield f"no command {words[0]}"
        return
    command, rest = command_called(words[0]), words[1:]
    if hasattr(command, "commands"):
        command, rest = command.commands[words[1]], rest[1:]
    try:
        given = command.make_context(words[0], rest).params
    except USAGE as error:
        yield error.format_message()
        return
    own = {path.stem for path in given.get("plugin") or ()}
    setting = given.get("setting") or "smollm2"
    setting = "smollm2" if setting.endswith(".yaml") else setting
    named = [name for name in split(given.get("losses") or "dpo") if name not in own]
    sets, faults = given.get("sets") or [], list[str]()
    if words[0] == "judge":
        faults += judge_faults(given["judge"], nested(parse_settings(sets, "--set")))
    else:
        sources = {key: given.get(key) for key in ("data", "model")} if words[0] == "run" else {}
        sources |= {"benchmark_names": given.get("benchmarks"), "overrides": parse_overrides(sets)}
        or_fault(faults, lambda: resolve(setting, named, **sources))
    or_fault(faults, lambda: with_opponents(named, given.get("opponents") or "start"))
    or_fault(faults, lambda: parse_stages(given.get("stages")))
    executor, of_executor = given.get("executor") or "local", given.get("executor_set") or []
    or_fault(faults, lambda: make_executor(executor, parse_settings(of_executor, "--executor-set")))
    if words[0] == "study":
        or_fault(faults, lambda: read_study(given["name"]))
    if words[0] == "check" and not given["target"].endswith(".py"):
        faults += resolve_names(given["target"])[1]
    yield from faults


def test_commands_on_the_pages_parse_and_name_what_there_is() -> None:
    shown = [(page_.name, words) for page_ in PAGES for words in commands(page_)]
    assert len(shown) > 60
    wrong = [f"{name}: pobench {shlex.join(words)}: {f}" for name, words in shown for f in faults_of_command(words)]
    assert wrong == []


@pytest.mark.parametrize(
    ("command", "fault"),
    [
        ("rum --losses dpo", "no command rum"),
        ("run --lossess dpo", "No such option: --lossess"),
        ("run --parallel two", "--parallel"),
        ("run --setting tyny", "did you mean 'tiny'?"),
        ("run --losses 'dpo + 0.2*stf'", "unknown loss 'stf'"),
        ("run --set train.lrr=1", "did you mean 'lr'?"),
        ("run --set train.lr=fast", "train.lr: got 'fast'"),
        ("run --stages train,held", "unknown stage 'held'"),
        ("run --opponents dppo", "--opponents: unknown loss"),
        ("run --benchmarks alpaca", "--benchmarks: unknown benchmark 'alpaca'"),
        ("run --executor slurm --executor-set partitoin=gpu", "did you mean 'partition'?"),
        ("run --plugin mine.py --losses mine,yours", "unknown loss 'yours'"),
        ("judge check --judge endpoint --set modle=NAME --data f.jsonl", "did you mean 'model'?"),
        ("study margins", "did you mean 'margin'?"),
        ("check 'ld(dop)'", "unknown loss 'dop'"),
    ],
)
def test_the_test_of_commands_sees(command, fault) -> None:
    assert fault in "\n".join(faults_of_command(shlex.split(command)))


def test_the_page_of_the_house_repeats_the_rule() -> None:
    tree = ast.parse((ROOT / "tests/test_house.py").read_text(encoding="utf-8"))
    tiers = next(
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "TIERS"
    )
    text = (ROOT / "docs/house.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (?:ground|\d) \| (.*) \|$", text, re.MULTILINE)
    assert [re.findall(r"`(\w+)`", row) for row in rows] == [line.split() for line in tiers.strip().splitlines()]
