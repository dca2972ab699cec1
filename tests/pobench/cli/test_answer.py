"""What a command ends with: a line a loss in the page's forms, and the page's card."""

from __future__ import annotations

import pytest

from pobench.cli.answer import print_answers
from pobench.reporting.card import make_card
from pobench.reporting.page import build_report
from pobench.results import metrics
from pobench.results.comparable import ordered, split


@pytest.fixture(scope="module")
def frames(synthetic) -> dict:
    made = synthetic.make_frames(prompts=40, samples=1, pairs=20, steps=2, seeds=(1, 2, 3))
    return {**made, "scores": metrics.complete(made)}


def printed(capsys, *arguments) -> str:
    print_answers(*arguments)
    return capsys.readouterr().out


def test_a_loss_has_one_line_of_the_pages_numbers_within_80_columns(frames, capsys) -> None:
    runs = frames["runs"]
    two = set(runs.loc[runs["loss"].isin(["simpo", "dpo"]), "run"])
    heads, units, *lines = printed(capsys, frames, two).partition("\n\n")[0].splitlines()
    assert heads.split() == ["pass", "rate", "gain", "accuracy", "length"] and units.split() == [
        "%",
        "points",
        "%",
        "tokens",
    ]
    assert [line[:11].strip() for line in lines] == ["SimPO", "DPO", "Start model"], (
        "those of the command, and the start"
    )
    assert all(len(line.rstrip()) <= 80 for line in [heads, *lines])
    (group,) = split(ordered(frames))
    scores = group.frames["scores"].set_index(["run", "metric"])
    (simpo,) = [arm for arm in group.home.arms if arm.loss == "simpo"]
    gain = scores.loc[simpo.id, "pass_rate_gain"]
    shown = [metrics.METRICS["pass_rate_gain"].show(gain[end]) for end in ("value", "low", "high")]
    assert "{} [{}, {}]".format(*shown) in lines[0] and shown[0].startswith("+")


def test_the_card_is_that_of_the_page_and_of_the_summary(frames, tmp_path, capsys) -> None:
    (group,) = split(ordered(frames))
    card = make_card(group)
    page = build_report(frames, tmp_path, figures=["gains", "main-table"], formats=["html", "md"]).read_text("utf-8")
    shown = {
        "terminal": printed(capsys, frames),
        "summary.md": (tmp_path / "summary.md").read_text("utf-8").replace("\\", ""),
        "page": page.replace("<code>", "`").replace("</code>", "`").replace("&#39;", "'"),
    }
    for where, text in shown.items():
        words = " ".join(text.split())
        assert card.answer in words, where
        for line in card.lines:
            sentence, _, command = line.text.partition(" `")
            assert line.head in words and sentence in words and command.rstrip("`") in words, (where, line.head)


def test_a_command_stands_on_a_line_of_its_own_to_be_copied(frames, capsys) -> None:
    lines = printed(capsys, frames).splitlines()
    (command,) = [line.strip() for line in lines if line.strip().startswith("pobench run")]
    assert command.startswith("pobench run --losses ") and "--setting tiny --seeds 1,2,3,4" in command
