"""Answers for the page's reader: packed within a limit, whole in files beside it."""

from __future__ import annotations

import base64
import gzip
import json
from pathlib import Path

import pandas as pd
import pytest

from pobench.reporting.answers import pack_answers, pack_benchmarks, write_answers
from pobench.reporting.page import build_report
from pobench.results.comparable import ordered, split


@pytest.fixture(scope="module")
def comparable(synthetic):
    losses = {name: synthetic.LOSSES[name] for name in ("simpo", "dpo")}
    return split(ordered(synthetic.make_frames(losses, seeds=(1, 2), prompts=12, samples=2, pairs=4, steps=2)))[0]


def read(packed: str) -> dict:
    return json.loads(gzip.decompress(base64.b64decode(packed)))


def test_each_models_first_answers_are_packed_and_counted(comparable) -> None:
    packed = pack_answers(comparable.home)
    data = read(packed.content)
    assert packed.note == (
        "This page holds 36 of 120 answers: of 3 models the lowest seed’s first sample, to 12 of 12 prompts."
    )
    assert [arm["label"] for arm in data["arms"]] == ["Start model", "DPO", "SimPO"]
    stored = comparable.frames["answers"].set_index(["run", "prompt", "sample"])["text"]
    judged = comparable.frames["verdicts"].set_index(["run", "prompt", "sample"])["score"]
    for arm in data["arms"]:
        for (prompt, *_), text, score in zip(data["prompts"], arm["text"], arm["score"], strict=True):
            assert text == stored[arm["run"], prompt, 0] and score == judged[arm["run"], prompt, 0]
    assert packed == pack_answers(comparable.home), "the same bytes twice"


def test_a_limit_keeps_whole_prompts_of_every_model(comparable) -> None:
    whole = pack_answers(comparable.home)
    limit = len(whole.content) * 2 // 3
    fewer = pack_answers(comparable.home, limit)
    data = read(fewer.content)
    count = len(data["prompts"])
    assert 0 < count < 12 and len(fewer.content) <= limit
    assert all(len(arm["text"]) == count for arm in data["arms"])
    assert f"This page holds {3 * count} of 120 answers" in fewer.note and f"{count} of 12 prompts" in fewer.note
    assert data["prompts"] == read(whole.content)["prompts"][:count]
    assert pack_answers(comparable.home, 10) is None


def test_files_beside_the_page_hold_every_answer(comparable, tmp_path) -> None:
    listed = json.loads(write_answers(comparable, tmp_path)[""].read_text("utf-8"))
    files = [tmp_path / arm["file"] for arm in listed["arms"]]
    assert sorted([tmp_path / "index.json", *files]) == sorted(tmp_path.iterdir()) and len(files) == 3
    prompts = [prompt for prompt, *_ in listed["prompts"]]
    held = {
        (entry["run"], prompt, entry["sample"]): text
        for file in files
        for entry in json.loads(file.read_text("utf-8"))["answers"]
        for prompt, text in zip(prompts, entry["text"], strict=True)
    }
    assert held == comparable.frames["answers"].set_index(["run", "prompt", "sample"])["text"].to_dict()


def test_a_judge_that_compares_gives_flips_and_verdicts_on_two_losses(synthetic) -> None:
    losses = {name: synthetic.LOSSES[name] for name in ("simpo", "dpo")}
    frames = synthetic.make_frames(losses, prompts=3, samples=1, pairs=4, steps=2)
    verdicts = frames["verdicts"]
    trained = ~verdicts["run"].str.contains("start")
    frames["verdicts"] = verdicts[trained].assign(judge="gpt", against="start", score=0.25, flipped=1.0)
    dpo, simpo = sorted(frames["verdicts"]["run"].unique())
    battle = {
        "run": dpo,
        "opponent": simpo,
        "prompt": "prompt-001",
        "sample": 0,
        "judge": "gpt",
        "score": 0.75,
        "flipped": 0.0,
    }
    frames["comparisons"] = pd.DataFrame(
        [{**battle, "forward": 0.7, "backward": 0.8, "longer": 1.0, "tokens": 4, "opponent_tokens": 3}]
    )
    data = read(pack_answers(split(ordered(frames))[0].home).content)
    assert data["compares"] and data["judge"] == "gpt"
    assert [arm.get("flipped") for arm in data["arms"]] == [None, [1, 1, 1], [1, 1, 1]]
    (met,) = data["battles"]
    at = [prompt for prompt, *_ in data["prompts"]].index("prompt-001")
    assert (met["first"], met["second"], met["score"][at], met["flipped"][at]) == (1, 2, 0.75, 0)
    assert sum(score is not None for score in met["score"]) == 1


def test_a_page_asks_for_files_only_where_they_were_written(synthetic, tmp_path) -> None:
    losses = {"dpo": synthetic.LOSSES["dpo"]}
    frames = synthetic.make_frames(losses, prompts=3, samples=2, pairs=4, steps=2)
    served = build_report(frames, tmp_path, figures=["settings-table"], formats=["html", "answers"])
    html = served.read_text("utf-8")
    assert "connect-src 'self'" in html and 'data-beside="tiny/answers/index.json"' in html
    assert (tmp_path / "tiny/answers/index.json").is_file()


def _is_beside(index: Path, packed: dict) -> None:
    """What is packed of a benchmark stands in files, too, whose index is given."""
    listed = json.loads(index.read_text("utf-8"))
    assert {name: listed[name] for name in ("judge", "compares", "against")} == {
        name: packed[name] for name in ("judge", "compares", "against")
    }
    assert sorted(listed["prompts"]) == sorted(packed["prompts"])
    texts = {arm["label"]: arm["text"] for arm in packed["arms"]}
    assert {arm["label"] for arm in listed["arms"]} == set(texts)
    for arm in listed["arms"]:
        (entry,) = json.loads((index.parent / arm["file"]).read_text("utf-8"))["answers"]
        assert entry["text"] == texts[arm["label"]]
        assert ("score" in entry) == ("reason" in entry) == (arm["loss"] != "baseline")


def test_a_judges_reasons_and_a_benchmarks_baseline_are_packed_and_in_files(synthetic, tmp_path) -> None:
    losses = {name: synthetic.LOSSES[name] for name in ("simpo", "dpo")}
    frames = synthetic.make_frames(losses, prompts=3, samples=1, pairs=4, steps=2)
    frames["verdicts"]["reason"] = [f"because {i}" for i in range(len(frames["verdicts"]))]
    rows = [
        {
            **{"run": run, "benchmark": "arena_hard", "judge": "gpt", "question": question, "kind": "", "score": 1.0},
            **{"prompt": "Why?", "text": f"{run} says so", "baseline": "it is so", "reason": "shorter"},
        }
        for run in frames["runs"]["run"]
        for question in ("u1", "u2")
    ]
    frames["benchmark_answers"] = pd.DataFrame(rows)
    group = split(ordered(frames))[0]
    home = group.home
    reasons = frames["verdicts"].set_index(["run", "prompt"])["reason"]
    data = read(pack_answers(home).content)
    for arm in data["arms"]:
        assert arm["reason"] == [reasons[arm["run"], prompt] for prompt, *_ in data["prompts"]]
    (packed,) = pack_benchmarks(home)
    _is_beside(write_answers(group, tmp_path)[packed.name], read(packed.content))
    assert packed.note.startswith("arena_hard, 2 of 2 questions: the baseline’s answers and those of 3 models")
    beside = read(packed.content)
    assert (
        beside["against"] == beside["arms"][0]["loss"] == "baseline" and beside["arms"][0]["text"] == ["it is so"] * 2
    )
    assert [arm["reason"] for arm in beside["arms"][1:]] == [["shorter"] * 2] * 3
    del frames["benchmark_answers"]
    assert pack_benchmarks(split(ordered(frames))[0].home) == []
