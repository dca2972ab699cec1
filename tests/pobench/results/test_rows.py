"""Frames that are read run by run give what whole frames give; what is remembered of a run is used by content alone."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from stores import START, start_run, trained_run

from pobench import registry
from pobench.columns import STORED
from pobench.reporting.draw import draw
from pobench.results import index, load, scores
from pobench.results.arms import of_arm, score_of
from pobench.results.comparable import Comparable, ordered, split
from pobench.results.derived import Frames
from pobench.results.evidence import Evidence
from pobench.results.load import load_frames, open_frames
from pobench.results.metrics import METRICS
from pobench.results.rows import InMemory, Rows
from pobench.results.run_folder import RunFolder
from pobench.settings.resolve import resolve

TOPICS, SAMPLES, PAIRS = 24, 2, 20


def evaluate(folder: RunFolder, seed: int, start: bool) -> None:
    """Frames with everything that metrics read."""
    draw = np.random.default_rng(seed)
    prompts = [(f"p{k:02d}", f"t{k % TOPICS}", sample) for k in range(TOPICS + 6) for sample in range(SAMPLES)]
    answers = pd.DataFrame(prompts, columns=["prompt", "topic", "sample"])
    words = [" ".join(draw.choice(["a", "b", "c"], draw.integers(1, 9))) for _ in prompts]
    answers = answers.assign(
        kind="k", text=words, tokens=[len(w.split()) for w in words], finished=draw.random(60) < 0.9
    )
    verdicts = answers[["prompt", "sample"]].assign(judge="verifiable", score=draw.integers(0, 2, 60).astype(float))
    verdicts.loc[seed % 7, "score"] = np.nan
    sums = {
        f"{model}{side}_logp": -30 * draw.random(PAIRS)
        for model in ("", "reference_")
        for side in ("chosen", "rejected")
    }
    lengths = {f"{side}_length": draw.integers(1, 20, PAIRS) for side in ("chosen", "rejected")}
    rewards = {f"{side}_reward": draw.normal(size=PAIRS) * (np.nan if start else 1) for side in ("chosen", "rejected")}
    pairs = {"pair": [f"q{k // 2}#{k % 2}" for k in range(PAIRS)][::-1]}
    heldout = pd.DataFrame({**pairs, **sums, **lengths, **rewards, "loss": np.nan if start else 0.5})
    stages = {"answers": {"answers": answers}, "judge": {"verdicts": verdicts}, "heldout": {"heldout": heldout}}
    for stage, frames in stages.items():
        folder.node(f"{stage}-00000000000f").write(
            frames, {"asked": stage, "seed": seed}, model=folder.weights, read={}
        )
    folder.show({stage: f"{stage}-00000000000f" for stage in stages})


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A start model; SimPO with two values of γ and DPO, two seeds each."""
    monkeypatch.setenv("POBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(index, "FEWEST", 1)
    root = tmp_path / "runs"
    evaluate(start_run(root), 99, start=True)
    for place, (loss, gamma, seed) in enumerate(
        [("simpo", 1.0, 1), ("simpo", 1.0, 2), ("simpo", 2.0, 1), ("simpo", 2.0, 2), ("dpo", None, 1), ("dpo", None, 2)]
    ):
        folder = trained_run(root, f"{loss}-{place:012x}", seed=seed)
        (job,) = resolve("tiny", loss, seeds=[seed], overrides={} if gamma is None else {"simpo.gamma": gamma})
        folder.write_config(job, "loss", START)
        evaluate(folder, place, start=False)
    return root


def group(frames: Frames) -> Comparable:
    (found,) = split(ordered(frames))
    return found


def test_frames_read_run_by_run_hold_what_whole_frames_hold(runs: Path) -> None:
    whole, lean = group(load_frames(runs)), group(open_frames(runs))
    for described in STORED:
        pd.testing.assert_frame_equal(lean.frames[described.name], whole.frames[described.name], check_exact=True)
    for name in ("heldout", "answers", "verdicts", "steps"):
        one, all_rows = group(open_frames(runs)).frames.rows(name), InMemory(name, whole.frames[name])
        assert isinstance(one, Rows) and one.runs == all_rows.runs
        for arm in whole.every_arm.arms:
            pd.testing.assert_frame_equal(of_arm(one, arm), of_arm(all_rows, arm).reset_index(drop=True))
    verdicts = group(open_frames(runs)).frames.rows("verdicts")
    assert verdicts is not None and verdicts.blank("score") == InMemory("verdicts", whole.frames["verdicts"]).blank(
        "score"
    )
    assert verdicts.blank("score")[0] > 0


def test_scores_of_an_arm_are_the_same_one_by_one_and_together(runs: Path) -> None:
    whole, lean = group(load_frames(runs)), group(open_frames(runs))
    rows = lean.frames.rows("scores")
    assert rows is not None
    for arm in whole.every_arm.arms:
        for metric in METRICS:
            one, together = score_of(rows, arm, metric), score_of(whole.frames["scores"], arm, metric)
            assert repr(one) == repr(together), (arm, metric)


def test_claims_and_sweeps_are_the_same_from_rows_and_from_frames(runs: Path) -> None:
    for name in ("claims", "settings-table", "margin-density"):
        shown = registry.figures.get(name)
        both = [draw(shown, group(frames).shown_in(shown)) for frames in (load_frames(runs), open_frames(runs))]
        first, second = (found.attrs["data"] if shown.kind == "table" else found.data for found in both)
        pd.testing.assert_frame_equal(first, second, check_exact=True)


@pytest.fixture
def columns(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[list[str] | None]]:
    """What is read of frames, in order: the columns, None for all."""
    read: list[list[str] | None] = []
    reader = scores.read_frame

    def recorded(root, home, frame, columns=None):  # type: ignore[no-untyped-def]
        read.append(columns)
        return reader(root, home, frame, columns)

    for module in (scores, load):
        monkeypatch.setattr(module, "read_frame", recorded)
    yield read


def test_scores_of_stored_runs_need_no_frame_and_lengths_need_no_text(runs: Path, columns) -> None:  # type: ignore[no-untyped-def]
    open_frames(runs)
    assert len(columns) == 3 * 7 + 2 * 6 + 6, (
        "each run's frames once for its vectors, the start model's beside each loss"
    )
    columns.clear()
    lean = group(open_frames(runs))
    rows = lean.frames.rows("scores")
    assert rows is not None and all(score_of(rows, arm, "length_tokens").n for arm in lean.every_arm.arms)
    assert columns == []
    evidence = Evidence(lean.frames["runs"], answers=lean.frames.rows("answers"))
    assert len(evidence.answer(lean.every_arm.arms[1], "tokens"))
    assert columns and not any(read is None for read in columns[-2:])
    assert not any("text" in read for read in columns[-2:] if read is not None)
    characters = evidence.answer(lean.every_arm.arms[1], "characters")
    texts = of_arm(load_frames(runs)["answers"], lean.every_arm.arms[1])
    assert characters.mean() == pytest.approx(texts["text"].str.len().mean())


# ---------------------------------------------------------------- what is remembered
def test_an_entry_is_used_while_the_small_files_of_its_run_are_the_same(runs: Path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    first = list(index.entries(runs))
    known = list(map(repr, first))  # nan is not nan
    read: list[str] = []
    reader = index.read_entry
    monkeypatch.setattr(index, "read_entry", lambda folder: (read.append(folder.run), reader(folder))[1])
    assert list(map(repr, index.entries(runs))) == known and read == []
    changed = RunFolder(runs, first[0].run)
    changed.fail("the disk is full")
    again = {entry.run: entry for entry in index.entries(runs)}
    assert read == [changed.run] and again[changed.run].row["status"] == "failed"
    changed.forgive()
    read.clear()
    other = {"asked": "answers", "seed": 5}
    changed.node("answers-0000000000aa").write({"answers": pd.DataFrame([{"prompt": "p", "tokens": 1}])}, other)
    changed.show({"answers": "answers-0000000000aa"})
    entries = {entry.run: entry for entry in index.entries(runs)}
    assert read == [changed.run] and entries[changed.run].homes["answers"].folder.endswith("answers-0000000000aa")
    assert entries[changed.run].row["others"] == 3, "two results of answers and one of a judge"


def test_an_index_that_is_gone_or_cut_or_of_other_runs_is_made_anew(runs: Path, tmp_path: Path) -> None:
    first = list(map(repr, index.entries(runs)))
    (file,) = (tmp_path / "cache/index").glob("*.parquet")
    for spoiled in (b"", file.read_bytes()[:100], None):
        file.unlink() if spoiled is None else file.write_bytes(spoiled)
        assert list(map(repr, index.entries(runs))) == first and file.is_file()
    stored = pd.read_parquet(file)
    stored.assign(of=stored["of"].iloc[::-1].to_numpy()).to_parquet(file)  # entries under the digests of other runs
    assert list(map(repr, index.entries(runs))) == first


def test_vectors_and_scores_follow_the_frames_and_are_never_trusted_by_name(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = load_frames(runs)["scores"]
    folder = RunFolder(runs, "tiny/dpo-000000000004")
    stored = (folder.path / "scores.json").read_bytes(), (folder.path / "vectors.npz").read_bytes()
    (folder.path / "vectors.npz").write_bytes(b"other bytes")
    pd.testing.assert_frame_equal(load_frames(runs)["scores"], before)
    assert ((folder.path / "scores.json").read_bytes(), (folder.path / "vectors.npz").read_bytes()) == stored
    node = folder.node("answers-00000000000f")
    frame = node.read_frame("answers")
    node.write({"answers": frame.assign(tokens=7)}, node.about["causes"], model=folder.weights, read={})
    after = load_frames(runs)["scores"].set_index(["run", "metric"])["value"]
    assert after["tiny/dpo-000000000004", "length_tokens"] == 7
    assert (folder.path / "vectors.npz").read_bytes() != stored[1]
    file = node.path / "answers.parquet"
    file.write_bytes(file.read_bytes()[:-9] + b"\0" * 9)
    left = open_frames(runs)["runs"]["run"].tolist()
    assert folder.run not in left and len(left) == 6
    assert f"{folder.run} is left out: {str(file)!r} is damaged" in capsys.readouterr().err


# ---------------------------------------------------------------- a list of them
def test_runs_are_listed_with_state_and_the_rate_of_what_is_shown(runs: Path, pobench_cli) -> None:  # type: ignore[no-untyped-def]
    load_frames(runs)
    RunFolder(runs, "tiny/dpo-000000000004").fail("the disk is full")
    status, out, _ = pobench_cli("list", "runs", "--runs", runs, "--json")
    rows = {row["run"]: row for row in json.loads(out)}
    assert status == 0 and list(rows) == sorted(rows) and len(rows) == 7
    failed, other, start = (rows[f"tiny/{name}-{k:012x}"] for name, k in (("dpo", 4), ("dpo", 5), ("start", 0)))
    assert (failed["state"], other["state"]) == ("failed", "finished")
    assert (other["loss"], other["seed"], start["seed"], start["setting"]) == ("dpo", 2, None, "tiny")
    stored = {
        row["metric"]: row["value"] for row in json.loads((runs / other["run"] / "scores.json").read_text())["rows"]
    }
    assert other["pass_rate"] == stored["pass_rate"] > 0 and datetime.fromisoformat(other["when"])
    node = RunFolder(runs, other["run"]).node("answers-00000000000f")
    node.write({"answers": node.read_frame("answers").assign(tokens=7)}, node.about["causes"])
    out = pobench_cli("list", "runs", "--runs", runs)[1]
    lines = {line.split()[0]: line for line in out.splitlines()}
    assert "%" in lines[start["run"]] and "%" not in lines[other["run"]], "that score is of other answers"
    assert pobench_cli("list", "runs", "--runs", runs, "--setting", "tony")[0] == 2
