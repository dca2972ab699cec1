"""Looks: stored by content, counted for each comparison, and intervals that hold at every one of them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from pobench import registry
from pobench.errors import CorruptError
from pobench.reporting import plot
from pobench.reporting.draw import draw
from pobench.results.arms import arms_of
from pobench.results.crossed import LEVEL, crossed
from pobench.results.derived import Frames
from pobench.results.earlier_looks import level_at, looks_at, record_look, stored_looks, warning


def files(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def frames(synthetic) -> dict[str, pd.DataFrame]:
    three = {name: synthetic.LOSSES[name] for name in ("dpo", "ipo", "kto")}
    return synthetic.make_frames(three, seeds=(1, 2, 3), prompts=12, samples=1, pairs=2, steps=1)


def finished(frames, losses: set[str], seeds: set[int]) -> pd.DataFrame:
    runs = frames["runs"]
    return runs[(runs["loss"] == "start") | (runs["loss"].isin(losses) & runs["seed"].isin(seeds))]


def after(tmp_path, frames, *looks: pd.DataFrame) -> pd.DataFrame:
    """The frame of these looks."""
    for look in looks:
        record_look(tmp_path, look, look)
    return pd.DataFrame(stored_looks(tmp_path, "tiny"), columns=["setting", "look", "run"])


def counted(looks: pd.DataFrame, frames) -> dict[tuple[str, str], int]:
    found = looks_at(looks, frames["runs"], arms_of(frames["runs"]))
    return {(a.loss, b.loss): count for (a, b), count in found.items()}


def test_the_same_runs_are_one_file_of_the_same_bytes(tmp_path, frames) -> None:
    record_look(tmp_path, frames["runs"], frames["runs"])
    once = files(tmp_path)
    shuffled = frames["runs"].sample(frac=1, random_state=1)
    record_look(tmp_path, shuffled, shuffled)
    assert files(tmp_path) == once and len(once) == 1
    assert json.loads(next(iter(once.values())))["runs"] == sorted(frames["runs"]["run"])


def test_only_finished_runs_are_looked_at(tmp_path, frames) -> None:
    runs = frames["runs"].copy()
    runs.loc[runs["seed"] == 3, "status"] = "failed"
    looks = after(tmp_path, frames, runs)
    assert set(looks["run"]) == set(runs.loc[runs["seed"] != 3, "run"])
    assert looks_at(looks, runs, arms_of(runs)) == {}  # what has failed since is no run that was added


def test_a_look_counts_where_runs_of_the_same_two_arms_were_added(tmp_path, frames) -> None:
    looks = after(tmp_path, frames, finished(frames, {"dpo", "ipo"}, {1, 2}), frames["runs"])
    assert counted(looks, frames) == {("start", "dpo"): 2, ("start", "ipo"): 2, ("dpo", "ipo"): 2}  # KTO is new


def test_looks_that_differ_in_other_arms_are_one(tmp_path, frames) -> None:
    looks = after(
        tmp_path,
        frames,
        finished(frames, {"dpo", "ipo"}, {1}),
        finished(frames, {"dpo", "ipo", "kto"}, {1}),
        frames["runs"],
    )
    assert counted(looks, frames)["dpo", "ipo"] == 2
    more = after(tmp_path, frames, finished(frames, {"dpo", "ipo"}, {1, 2}))
    assert counted(more, frames)["dpo", "ipo"] == 3


def test_a_later_look_changes_nothing_in_a_report_of_fewer_runs(tmp_path, frames) -> None:
    looks = after(tmp_path, frames, finished(frames, {"dpo", "ipo"}, {1, 2}), frames["runs"])
    fewer = {"runs": finished(frames, {"dpo", "ipo"}, {1, 2})}
    assert counted(looks[looks["run"].isin(fewer["runs"]["run"])], fewer) == {}


def test_a_report_of_some_seeds_is_a_look_at_all_that_were_there_and_at_no_other_arm(tmp_path, frames) -> None:
    record_look(tmp_path, finished(frames, {"dpo", "ipo"}, {1}), frames["runs"])
    looks = pd.DataFrame(stored_looks(tmp_path, "tiny"))
    assert set(looks["run"]) == set(finished(frames, {"dpo", "ipo"}, {1, 2, 3})["run"])
    assert counted(looks, frames) == {}  # no seed was added since


def test_a_folder_that_cannot_be_written_stores_no_look(tmp_path, frames, monkeypatch) -> None:
    def refuse(*_) -> None:
        raise PermissionError(30, "Read-only file system")

    monkeypatch.setattr("pobench.results.earlier_looks.write_json", refuse)
    record_look(tmp_path, frames["runs"], frames["runs"])
    assert files(tmp_path) == {}


def test_a_look_of_other_bytes_is_named(tmp_path, frames) -> None:
    record_look(tmp_path, frames["runs"], frames["runs"])
    (path,) = tmp_path.glob("tiny/looks/*.json")
    path.write_text(path.read_text().replace("dpo", "d"))
    with pytest.raises(CorruptError, match="remove it, and this look is not counted"):
        stored_looks(tmp_path, "tiny")


def test_the_errors_of_all_looks_together_stay_below_five_per_cent() -> None:
    spent = [1 - level_at(k) for k in range(1, 40)]
    assert sum(spent) == pytest.approx(1 - LEVEL) and sum(spent[:10]) < 1 - LEVEL
    assert spent == sorted(spent, reverse=True)


def test_intervals_at_any_time_hold_where_one_stops_at_the_first_success() -> None:
    # no difference; a look at 3, 4, … 10 seeds, and one stops as soon as an interval excludes 0
    rng, wrong, trials = np.random.default_rng(11), {"fixed": 0, "any time": 0}, 100
    for _ in range(trials):
        table = rng.normal(0, 5, (1, 10)) + rng.normal(0, 3, (30, 1)) + rng.normal(0, 10, (30, 10))
        found = [crossed([(1.0, table[:, :seeds])]) for seeds in range(3, 11)]
        wrong["fixed"] += any(abs(f.value) > f.half_width() for f in found)
        wrong["any time"] += any(abs(f.value) > f.half_width(level_at(k)) for k, f in enumerate(found, 1))
    assert wrong["fixed"] / trials > 0.07 > wrong["any time"] / trials


def test_the_table_has_both_intervals_and_the_warning(tmp_path, frames) -> None:
    looks = after(tmp_path, frames, finished(frames, {"dpo", "ipo"}, {1, 2}), frames["runs"])
    table = draw(registry.figures.get("looked-before"), Frames({**frames, "looks": looks}))
    assert list(zip(table["Loss"], table["Minus"], table["Looks"], strict=True)) == [
        ("DPO", "Start model", 2), ("IPO", "Start model", 2), ("DPO", "IPO", 2),
    ]  # fmt: skip
    for single, any_time in zip(table["At a single look"], table["At any time"], strict=True):
        assert single.value == any_time.value and any_time.low < single.low < single.high < any_time.high
    assert table.attrs["summary"] == warning(looks_at(looks, frames["runs"], arms_of(frames["runs"])))
    assert table.attrs["summary"].startswith("3 comparisons have runs that were added after a report, 2 looks")


def test_a_first_report_and_the_same_report_again_give_the_same_reason(tmp_path, frames) -> None:
    reasons = set()
    for looks in (pd.DataFrame(columns=["setting", "look", "run"]), after(tmp_path, frames, frames["runs"])):
        with pytest.raises(plot.NothingToDraw) as nothing:
            draw(registry.figures.get("looked-before"), Frames({**frames, "looks": looks}))
        reasons.add(str(nothing.value))
    assert reasons == {"No runs were added to a comparison after a report had shown it."}
