"""Two reports beside each other: what is the same is counted, what moved is shown, and nothing is compared by its place."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from stores import start_run, trained_run
from typer.testing import CliRunner

from pobench.cli.diff import app
from pobench.errors import PobenchError
from pobench.results.run_folder import SEALED, SEALED_BY
from pobench.workflows.diff import differences, sentences


@pytest.fixture
def before(tmp_path: Path) -> Path:
    root = tmp_path / "before"
    start_run(root)
    trained_run(root, "simpo-0123456789ab")
    trained_run(root, "ipo-0123456789ab", passed=0.0)
    return root


def test_a_copy_differs_in_nothing(before, tmp_path) -> None:
    shutil.copytree(before, tmp_path / "after")
    (found,) = differences(str(before), str(tmp_path / "after"))
    assert found.same == 10 and not (found.moved or found.verdicts or found.made_with or found.only_before)
    assert sentences(found) == [f"All {found.same} numbers of losses that both have are the same."]


def test_what_only_one_has_what_moved_and_what_it_was_made_with_are_told_apart(before, tmp_path) -> None:
    after = tmp_path / "after"
    start_run(after)
    changed = trained_run(after, "simpo-aaaaaaaaaaaa", passed=0.0)  # the same values and another result
    trained_run(after, "dpo-0123456789ab")
    changed.write_json("environment.json", {"packages": {"torch": "9\x1b[31m"}})
    (found,) = differences(str(before), str(after))
    assert (found.only_before, found.only_after) == (["IPO"], ["DPO"])
    moved = {number.metric: number for number in found.moved if number.arm == "SimPO"}
    assert (moved["pass_rate"].before.value, moved["pass_rate"].after.value) == (1.0, 0.0)
    # three of three and none of three: [0.29, 1] and [0, 0.71]
    assert not moved["pass_rate"].apart and moved["pass_rate_gain"].before.n == 3
    assert ("torch", "–", "9\x1b[31m") in found.made_with
    printed = CliRunner().invoke(app, [str(before), str(after)])
    assert printed.exit_code == 0 and "\x1b" not in printed.output and "Only in the first: IPO." in printed.output
    machine = json.loads(CliRunner().invoke(app, [str(before), str(after), "--json"]).output)
    assert [number["metric"] for number in machine[0]["moved"]] == [number.metric for number in found.moved]


def test_a_loss_with_other_values_is_compared_and_the_values_are_named(before, tmp_path) -> None:
    after = tmp_path / "after"
    shutil.copytree(before, after)
    config = after / "tiny/simpo-0123456789ab/config.yaml"
    text = config.read_text().rpartition(SEALED_BY)[0].removeprefix(SEALED)
    config.write_text(text.replace("  beta: ", "  beta: 1", 1))
    (found,) = differences(str(before), str(after))
    assert not found.only_before and not found.only_after and found.same == 10
    (row,) = [row for row in found.made_with if row[0] == "simpo.beta"]
    assert row[2] == f"1{row[1]}"


def test_both_sources_that_cannot_be_read_are_named_at_once(tmp_path) -> None:
    with pytest.raises(PobenchError) as refused:
        differences(str(tmp_path / "one"), str(tmp_path / "other"))
    assert "/one'" in str(refused.value) and "/other'" in str(refused.value) and list(tmp_path.iterdir()) == []
