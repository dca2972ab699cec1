"""Frames as files: a report computed from them has the numbers of the report that wrote them, to the byte."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from pyarrow import parquet

from pobench.errors import PobenchError
from pobench.reporting.page import build_report
from pobench.results.frame_files import counted, is_frames
from pobench.results.load import load_frames

NUMBERS = ["claims", "who-beats-whom", "main-table", "variance"]


@pytest.fixture(scope="module")
def frames(synthetic) -> dict[str, pd.DataFrame]:
    """Of three losses and three seeds, whose log-probabilities are 32-bit numbers, as a model's are."""
    losses = {name: synthetic.LOSSES[name] for name in ("simpo", "dpo", "simpo_no_ln")}
    frames = synthetic.make_frames(losses, seeds=(42, 43, 44), prompts=12, samples=2, pairs=12, steps=2)
    numbers = frames["heldout"].select_dtypes("float").columns
    frames["heldout"][numbers] = frames["heldout"][numbers].astype("float32").astype("float64")
    return frames


@pytest.fixture(scope="module")
def report(frames, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    build_report(frames, folder, figures=NUMBERS, formats=("csv", "parquet"))
    return folder


def test_claims_and_comparisons_from_the_files_are_those_from_the_runs(report, tmp_path) -> None:
    build_report(load_frames(report / "frames"), tmp_path, figures=NUMBERS, formats=("csv", "parquet"))
    first, again = (
        {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*.*"))}
        for folder in (report, tmp_path)
    )
    assert {"tiny/tables/claims.csv", "tiny/figures/who-beats-whom.csv", "frames/verdicts.parquet"} <= first.keys()
    assert first == again
    claims = pd.read_csv(report / "tiny/tables/claims.csv").set_index("name")
    of_texts = claims.loc[["no-ln-repeats", "simpo-little-longer-characters"], "n"]
    assert (of_texts > 0).all(), "also those that are counted from texts"


def test_the_files_hold_no_text_and_no_number_is_rounded(frames, report) -> None:
    stored = load_frames(report / "frames")
    assert stored["answers"]["text"].isna().all() and stored["steps"].empty and stored["heldout"]["loss"].isna().all()
    for name, kept in (("heldout", "chosen_logp"), ("verdicts", "score"), ("runs", "seconds")):
        sort = ["run"] + [c for c in ("pair", "prompt", "sample") if c in stored[name]]
        ours = frames[name].sort_values(sort, ignore_index=True)
        pd.testing.assert_series_equal(stored[name].sort_values(sort, ignore_index=True)[kept], ours[kept])
    types = {
        name: str(parquet.read_schema(report / "frames/heldout.parquet").field(name).type) for name in ("chosen_logp",)
    }
    assert types == {"chosen_logp": "float"}
    assert str(parquet.read_schema(report / "frames/runs.parquet").field("seconds").type) == "double", (
        "not exact in 32 bits"
    )


def test_what_is_counted_from_texts_is_counted_once_and_missing_without_a_text() -> None:
    texts = ["A b c d a b c d", "ein Ü", None]
    answers = counted(pd.DataFrame({"text": texts, "characters": np.nan, "repeated": np.nan}))
    # five 4-grams: abcd bcda cdab dabc abcd, the last of which stood before
    assert answers["characters"].tolist()[:2] == [15, 5] and answers["repeated"][0] == pytest.approx(0.2)
    assert answers["repeated"].isna().tolist() == [False, True, True] and np.isnan(answers["characters"][2])
    without = answers.assign(text=None)
    pd.testing.assert_frame_equal(counted(without), without)


def test_a_folder_of_frames_is_analyzed_like_runs_one_setting_at_a_time(
    report, synthetic, pobench_cli, tmp_path
) -> None:
    small = {"simpo": synthetic.LOSSES["simpo"]}
    parts = [synthetic.make_frames(small, setting=name, prompts=4, pairs=5, steps=2) for name in ("a", "b")]
    both = {name: pd.concat([part[name] for part in parts], ignore_index=True) for name in parts[0]}
    build_report(both, tmp_path, figures=["main-table"], formats=("parquet",))
    folder = tmp_path / "frames"
    assert is_frames(folder) and not is_frames(tmp_path)
    alone = load_frames(folder, "b")
    assert set(alone["runs"]["setting"]) == set(alone["audit"]["setting"]) == {"b"}
    assert set(alone["verdicts"]["run"]) <= set(alone["runs"]["run"])
    with pytest.raises(PobenchError, match=r"for setting 'c'.*Known: a, b"):
        load_frames(folder, "c")
    before = sorted(folder.rglob("*"))
    command = ("analyze", "--runs", str(folder), "--figures", "main-table", "--out", str(tmp_path / "again"))
    status, _, err = pobench_cli(*command, "--setting", "a", "--format", "md")
    assert status == 0, err
    assert (tmp_path / "again/summary.md").read_text().startswith("## a\n") and sorted(folder.rglob("*")) == before
    status, _, err = pobench_cli(*command, "--format", "md,parket")
    assert status == 2 and "unknown 'parket'; did you mean 'parquet'" in err
