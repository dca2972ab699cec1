"""A stranger's path is what the README says, and what a person writes in between fits what `pobench new` writes."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from pobench.registry import load_plugin, losses
from pobench.settings.resolve import resolve
from pobench.workflows.check import check
from pobench.workflows.new import write_new

ROOT = Path(__file__).parents[2]
README, START = ((ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "docs/start.md"))


@pytest.fixture
def first_hour() -> Any:
    return importlib.import_module("first_hour")


def test_its_commands_are_those_of_the_readme(first_hour: Any, tmp_path: Path) -> None:
    assert f"`{first_hour.INSTALL.command}`" in README
    _, next_ = write_new("setting", "ours", tmp_path)
    shown = [line.partition("#")[0].strip() for line in (README + START).splitlines()]
    shown += [line.replace(str(tmp_path / "ours.yaml"), "ours.yaml") for line in next_]
    typed = [step.command for step in first_hour.steps_of("smollm2")]
    assert [command for command in typed if command not in shown] == ["pobench new setting ours"]
    assert "pobench new loss mine " in README and "also: new setting" in README
    assert all(0 < step.limit <= 3600 for step in [first_hour.CLONE, first_hour.INSTALL, *first_hour.steps_of("tiny")])


def test_its_loss_is_another_than_the_new_file_has_and_keeps_the_laws(
    first_hour: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for place, value in {"_items": {}, "_aliases": {}, "_loaded": True}.items():
        monkeypatch.setattr(losses, place, value)
    file, _ = write_new("loss", "mine", tmp_path)
    first_hour.write_loss(tmp_path)
    load_plugin(file)
    loss = losses.get("mine")
    assert loss.settings["margin"] == 1.0 and "max(0, margin" in loss.formula
    findings = list(check(loss, {}, [], steps=False))
    assert len(findings) > 8 and not [found for found in findings if found.verdict == "fails"]
    with pytest.raises(ValueError, match="stands 0 times"):
        first_hour.write_loss(tmp_path)


@pytest.mark.parametrize(("setting", "judge"), [("tiny", "tiny_world"), ("smollm2", "verifiable")])
def test_its_setting_reads_its_own_pairs(
    first_hour: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, setting: str, judge: str
) -> None:
    monkeypatch.chdir(tmp_path)
    write_new("setting", "ours", tmp_path)
    first_hour.write_pairs(tmp_path)
    first_hour.write_setting(tmp_path, setting)
    (job,) = resolve("ours.yaml", "dpo")
    assert Path(job.data.source).name == "my_pairs.jsonl" and job.data.held_out is None and job.judge.name == judge
    rows = [json.loads(line) for line in (tmp_path / "my_pairs.jsonl").read_text("utf-8").splitlines()]
    assert len({row["prompt"] for row in rows}) == len(rows) == 54
    assert all(row["chosen"] != row["rejected"] for row in rows)


def test_a_step_ends_at_its_limit_and_says_how_it_ended(first_hour: Any, tmp_path: Path) -> None:
    commands = {"sleep 1000": 0.1, "exit 3": 600.0, "true": 600.0}
    ended = [first_hour.typed(c, tmp_path, dict(os.environ), s, tmp_path / "log")[0] for c, s in commands.items()]
    assert ended == [first_hour.OVER, "exit status 3", first_hour.DONE]


def test_what_a_command_has_started_ends_with_it(first_hour: Any) -> None:
    begun = subprocess.Popen(
        ["bash", "-c", "sleep 1000 & echo $!; wait"], stdout=subprocess.PIPE, start_new_session=True
    )
    assert begun.stdout is not None
    child = int(begun.stdout.readline())
    first_hour.end(begun)
    assert begun.stdout.read() == b"", "nobody holds its output any more"
    with contextlib.suppress(FileNotFoundError):
        assert Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[0] == "Z"


def test_the_path_ends_at_the_first_step_that_fails_and_what_came_before_is_kept(
    first_hour: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = [first_hour.Step(name, command, 60) for name, command in {"a": "true", "b": "false", "c": "true"}.items()]
    monkeypatch.setattr(first_hour, "CLONE", first_hour.Step("clone", "mkdir clone", 60))
    monkeypatch.setattr(first_hour, "steps_of", lambda setting: steps)
    monkeypatch.setattr(first_hour, "about_machine", lambda folder, environment: {"threads": 2})
    kept: list[str] = []
    result = first_hour.walk(tmp_path, "tiny", True, lambda known: kept.append(json.dumps(known)))
    assert [(step["name"], step["ended"]) for step in result["steps"]] == [
        ("clone", "done"), ("a", "done"), ("b", "exit status 1"),
    ]  # fmt: skip
    assert result["site"] is None and len(kept) == 4 and json.loads(kept[-1]) == result
    page = importlib.import_module("page")
    rows = page.KINDS["first_hour"].rows(result)
    assert [row["ended"] for row in rows] == ["done", "done", "exit status 1", ""] and "not reached" in rows[-1][
        "command"
    ]


def test_a_link_of_the_site_that_leads_nowhere_is_named(first_hour: Any, tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "index.html").write_text(
        '<a href="runs/a.html#x">a</a> <a href="#y">y</a> <a href="https://x.org/z">z</a>'
    )
    (tmp_path / "runs/a.html").write_text(
        '<img src="../card.png"> <a href="b%20c.html">b</a> <a href="../index.html">i</a>'
    )
    (tmp_path / "runs/b c.html").write_text("<p>no link</p>")
    found = first_hour.opened(tmp_path)
    assert (found["pages"], found["files"], found["absent"]) == (3, 3, ["runs/a.html: ../card.png"])
