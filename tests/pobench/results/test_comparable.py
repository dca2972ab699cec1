"""A judge that compares, in a whole job: trained answers beside the start model's, both orders, no key on disk."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from openai_server import OpenAIServer, says

from pobench.errors import PobenchError
from pobench.registry import load_plugin
from pobench.reporting.page import build_report
from pobench.results import metrics
from pobench.results.load import load_frames
from pobench.settings.resolve import resolve

KEY = "sk-test-0123456789abcdef"
PLAIN_JUDGE = """
from pobench.registry import register_judge

class FirstLetter:
    name = "first-letter"
    def judge(self, prompt, a, b):
        return 0.5 + 0.5 * ((b > a) - (b < a))

@register_judge("first-letter", compares=True)
def first_letter():
    return FirstLetter()
"""
BETWEEN_MARKS = re.compile(r"<answer ([AB]) (\w{8})>\n(.*?)\n</answer \1 \2>", re.DOTALL)


def alphabetical(body: dict[str, Any]) -> dict[str, Any]:
    """The answer that comes later in the alphabet is better; without logprobs."""
    answers = {letter: text for letter, _, text in BETWEEN_MARKS.findall(body["messages"][0]["content"])}
    return says(max(answers, key=lambda letter: answers[letter]))


@pytest.fixture
def judged(work_here, monkeypatch):
    """Train with a loud learning rate, so that answers change, and be judged by `answer`: (run folder, server)."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)

    def run(answer: Any, **overrides: Any) -> tuple[Path, OpenAIServer]:
        with OpenAIServer(answer) as server:
            settings = {
                "judge__name": "endpoint",
                "judge__settings__model": "big",
                "judge__settings__base_url": server.url,
            }
            return work_here("simpo", train__lr=0.05, train__epochs=3, **settings, **overrides), server

    return run


def start_of(folder: Path) -> Path:
    (start,) = folder.parent.glob("start-*")
    return start


def rows_of(folder: Path) -> dict[str, dict[str, Any]]:
    return {row["metric"]: row for row in json.loads((folder / "scores.json").read_text())["rows"]}


def stored(folder: Path, frame: str) -> Path:
    (path,) = folder.glob(f"*-*/{frame}.parquet")
    return path


def test_trained_answers_are_compared_with_the_start_models_and_the_start_model_wins_half(judged) -> None:
    folder, server = judged(alphabetical, answers__temperature=0.8)  # each draws by a seed of its own
    ours, theirs = (
        pd.read_parquet(stored(f, "answers")).set_index("prompt")["text"] for f in (folder, start_of(folder))
    )
    verdicts = pd.read_parquet(stored(folder, "verdicts")).set_index("prompt")
    expected = {p: 0.5 + 0.5 * ((ours[p] > theirs[p]) - (ours[p] < theirs[p])) for p in ours.index}
    assert verdicts["score"].to_dict() == expected
    assert set(verdicts["judge"]) == {"big"} and set(verdicts["against"]) == {"start"}
    differing = sum(ours[p] != theirs[p] for p in ours.index)
    assert differing and server.paid == 2 * differing
    assert list(pd.read_parquet(stored(start_of(folder), "verdicts"))["score"]) == [0.5] * 3
    rows = rows_of(folder)
    mean = sum(expected.values()) / 3
    assert rows["pass_rate_gain"]["value"] == pytest.approx(mean - 0.5) and rows["win_rate"]["value"] == pytest.approx(
        mean
    )
    assert (rows["position_flips"]["value"], rows["position_flips"]["n"], rows["win_rate"]["n"]) == (0.0, 3, 3)
    assert rows["pass_rate"]["value"] is None and rows_of(start_of(folder))["pass_rate"]["n"] == 0
    assert set(load_frames(folder.parents[1])["runs"]["status"]) == {"finished"}


def test_a_judge_of_places_wins_nothing_and_is_found_out(judged) -> None:
    folder, _ = judged(lambda body: says("A"))
    verdicts = pd.read_parquet(stored(folder, "verdicts"))
    assert set(verdicts["score"]) == {0.5}
    rows = rows_of(folder)
    assert rows["win_rate"]["value"] == 0.5 and rows["position_flips"]["value"] > 0


def test_the_report_tells_wins_flips_and_length_of_a_judge_that_compares(judged, tmp_path) -> None:
    judged(alphabetical)
    report = build_report(load_frames(tmp_path / "runs"), tmp_path / "report", figures=["main-table"])
    html = report.read_text(encoding="utf-8")
    for said in ("Wins over start", "Longer than start", "Position flips", "judged by big"):
        assert said in html
    assert "Pass rate" not in re.sub(r"<[^>]+>", "", html.partition("<table")[2].partition("</thead>")[0])


def test_an_unreadable_judge_gives_nothing_measured(judged) -> None:
    folder, _ = judged(lambda body: says("Well."))
    verdicts = pd.read_parquet(stored(folder, "verdicts"))
    assert verdicts["score"].isna().any() and set(verdicts["score"].dropna()) <= {0.5}
    assert rows_of(folder)["win_rate"]["n"] == verdicts["score"].notna().sum()


def test_the_key_is_in_no_file_of_a_run_or_of_the_cache(judged, tmp_path) -> None:
    judged(alphabetical)
    files = [p for p in tmp_path.rglob("*") if p.is_file()]
    assert len([p for p in files if p.parent.parent.name == "replies"]) > 1
    assert not [p for p in files if KEY.encode() in p.read_bytes()]
    assert os.environ["OPENAI_API_KEY"] == KEY


def test_settings_that_a_judge_cannot_have_are_refused_before_anything_is_written(setting, tmp_path) -> None:
    wrong = {"judge.name": "endpoint", "judge.settings.concurrency": 0, "judge.settings.retries": "many"}
    with pytest.raises(PobenchError) as refused:
        resolve(str(tmp_path / "small.yaml"), "simpo", overrides=wrong)
    assert "judge.settings.concurrency: got 0" in str(refused.value) and "judge.settings.retries" in str(refused.value)
    misplaced = {"judge.name": "endpoint", "judge.settings.key_variable": KEY, "judge.settings.model": "m"}
    with pytest.raises(PobenchError, match="NAME of an environment variable") as refused:
        resolve(str(tmp_path / "small.yaml"), "simpo", overrides=misplaced)
    assert KEY not in str(refused.value)


def test_without_the_start_models_answers_it_is_said_what_to_do(work_here, tmp_path) -> None:
    scripted = tmp_path / "scripted.py"
    scripted.write_text(PLAIN_JUDGE)
    load_plugin(scripted)
    folder = work_here("simpo", judge__name="first-letter")
    shutil.rmtree(stored(start_of(folder), "answers").parent)
    shutil.rmtree(stored(folder, "verdicts").parent)
    with pytest.raises(AssertionError, match="compare with the start model's answers"):
        work_here("simpo", ("judge",), judge__name="first-letter")


def test_what_changes_no_verdict_is_no_part_of_a_runs_identity(setting, tmp_path) -> None:
    def run_of(**settings: Any) -> str:
        given = {f"judge.settings.{key}": value for key, value in settings.items()}
        overrides = {"judge.name": "endpoint", "judge.settings.model": "m", **given}
        return resolve(str(tmp_path / "small.yaml"), "simpo", overrides=overrides)[0].key

    assert run_of() == run_of(concurrency=2, price_in=1.0, price_out=2.0, max_cost=3.0, timeout=9.0, key_variable="KEY")
    assert len({run_of(), run_of(model="n"), run_of(base_url="http://localhost/v1"), run_of(logprobs=0)}) == 4


def test_flips_and_length_are_averaged_over_prompts_then_counted() -> None:
    frame = pd.DataFrame(
        {
            "run": "r", "prompt": ["a", "a", "b", "c"], "sample": [0, 1, 0, 0], "judge": "big", "against": "start",
            "score": [1.0, 0.5, 0.0, math.nan], "flipped": [0.0, 1.0, 1.0, math.nan], "longer": [1.0, 1.0, 0.0, 0.5],
        }
    )  # fmt: skip
    start = frame.assign(run="s", score=0.5)[["run", "prompt", "sample", "judge", "score", "against"]]
    rows = {row["metric"]: row for row in metrics.score({"verdicts": frame}, {"verdicts": start})}
    # flips: a (0 + 1) / 2, b 1, c not measured; longer: a 1, b 0, c 0.5; gain: a 0.75 - 0.5, b 0 - 0.5
    assert (rows["position_flips"]["value"], rows["position_flips"]["n"]) == (0.75, 2)
    assert (rows["longer_wins"]["value"], rows["longer_wins"]["n"]) == (0.5, 3)
    assert (rows["pass_rate_gain"]["value"], rows["win_rate"]["value"], rows["win_rate"]["n"]) == (-0.125, 0.5, 2)
