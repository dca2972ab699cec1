"""AlpacaEval 2 from stored annotations: the official numbers on real data, and no number on data that is not it."""

from __future__ import annotations

import csv
import json
import logging
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from pobench.errors import PobenchError
from pobench.judging.benchmarks import alpaca_eval_score as alpaca_eval
from pobench.judging.benchmarks import verdict_files as stored

REAL = Path(__file__).parents[4] / "../shared/data/alpaca_eval"
needs_data = pytest.mark.skipif(not REAL.is_dir(), reason="real annotations are not part of the project")
Rows = list[dict[str, Any]]


@pytest.fixture
def rows(monkeypatch) -> Rows:
    """805 made-up annotations, whose instructions and baseline answers stand for the real ones."""
    rng = random.Random(1)
    made = [
        {
            "instruction": f"Instruction {i}",
            "output_1": f"baseline {i} " + "x" * rng.randrange(200),
            "generator_1": "gpt4_1106_preview",
            "output_2": f"ours {i} " + "y" * rng.randrange(200),
            "generator_2": "mine",
            "annotator": "weighted_alpaca_eval_gpt4_turbo",
            "preference": 1 + rng.random(),
        }
        for i in range(805)
    ]
    table = [[stored.fingerprint(r["instruction"]), stored.fingerprint(r["output_1"])] for r in made]
    monkeypatch.setattr(alpaca_eval, "fingerprints", lambda name: table)
    return made


@pytest.fixture
def save(tmp_path) -> Callable[[Rows], Path]:
    def write(rows: Rows) -> Path:
        path = tmp_path / "annotations.json"
        path.write_text(json.dumps(rows))
        return path

    return write


@pytest.fixture
def gamed(tmp_path) -> Path:
    """A folder with a made-up df_gamed.csv under its official name, and the difficulties that belong to it."""
    rng = np.random.default_rng(0)
    difficulty = rng.normal(size=805)
    parts = [
        pd.DataFrame(
            {
                "index": range(805),
                "preference": 1 / (1 + np.exp(-1.5 * np.tanh(-longer))),
                "std_delta_len": longer,
                "instruction_difficulty": difficulty,
                "not_gamed_baseline": False,
                "model": name,
            }
        )
        for name, longer in (("verbose", -rng.random(805)), ("concise", rng.random(805)))
    ]
    folder = tmp_path / "length"
    folder.mkdir()
    pd.concat(parts).to_csv(folder / "df_gamed.csv", index=False)
    pd.DataFrame({"index": range(805), "instruction_difficulty": difficulty}).to_csv(
        folder / "instruction_difficulty.csv", index=False
    )
    return folder


# ---------------------------------------------------------------- the official numbers


@needs_data
@pytest.mark.parametrize("model", ["FuseChat-Llama-3.1-8B-Instruct", "alpaca-7b", "gemma-2b-it"])
def test_real_annotations_give_the_leaderboards_row(model) -> None:
    with (REAL / "leaderboards/leaderboard_weighted_alpaca_eval_gpt4_turbo.csv").open() as file:
        official = next(row for row in csv.DictReader(file) if row[""] == model)
    scored = alpaca_eval.score(REAL / f"results/{model}/annotations.json", length_control=REAL)
    ours = scored.values
    assert ours["win_rate"] == pytest.approx(float(official["win_rate"]), abs=1e-9)
    assert ours["standard_error"] == pytest.approx(float(official["standard_error"]), abs=1e-9)
    assert ours["discrete_win_rate"] == pytest.approx(float(official["discrete_win_rate"]), abs=1e-9)
    assert ours["lc_win_rate"] == pytest.approx(float(official["length_controlled_winrate"]), abs=0.2)
    assert ours["lc_standard_error"] == pytest.approx(float(official["lc_standard_error"] or "nan"), abs=0.01) or (
        not official["lc_standard_error"]  # the leaderboard has none for some models
    )
    assert (ours["n"], ours["avg_length"]) == (int(official["n_total"]), int(official["avg_length"]))
    assert scored.benchmark == "AlpacaEval 2 (reconstructed)"  # the files in that folder are stand-ins


@needs_data
def test_the_shipped_fingerprints_are_those_of_the_reference() -> None:
    reference = json.loads((REAL / "reference/alpaca_eval_gpt4_baseline.json").read_text())
    marks = [[stored.fingerprint(r["instruction"]), stored.fingerprint(r["output"])] for r in reference]
    assert marks == stored.fingerprints("alpaca_eval")


def test_every_fingerprint_is_distinct() -> None:
    table = stored.fingerprints("alpaca_eval")
    assert len(table) == 805 and len({m for row in table for m in row}) == 1610


# ---------------------------------------------------------------- what is not AlpacaEval 2


def shuffled(rows: Rows) -> Rows:
    return random.Random(0).sample(rows, len(rows))


def renamed(rows: Rows) -> Rows:
    return [{"Preference" if k == "preference" else k: v for k, v in row.items()} for row in rows]


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (shuffled, ("out of order", "row 1 holds instruction")),
        (lambda rows: rows[:400] + rows[401:], ("got 804", "absent: instruction 401")),
        (lambda rows: [*rows[:-1], rows[0]], ("absent: instruction 805", "repeated: row 805")),
        (lambda rows: [*rows[:3], {**rows[3], "instruction": "Another?"}, *rows[4:]], ("row 4: none", "'Another?'")),
        (
            lambda rows: [{**r, "generator_1": "text_davinci_003"} for r in rows],
            ("'text_davinci_003'", "--length-only"),
        ),
        (lambda rows: [{**rows[0], "output_1": "mine"}, *rows[1:]], ("'output_1'", "row 1", "not the leaderboard's")),
        (renamed, ("rows 1–805, 'preference': missing; is it 'Preference'?",)),
        (lambda rows: [{**rows[0], "generator_2": "other"}, *rows[1:]], ("'other' (from row 1)", "'mine'")),
        (lambda rows: [{**rows[0], "preference": 2.5}, *rows[1:]], ("row 1, 'preference'", "got 2.5")),
        (lambda rows: [{**rows[0], "preference": True}, *rows[1:]], ("row 1, 'preference'", "got True")),
        (lambda rows: [{**rows[0], "preference": "model"}, *rows[1:]], ("row 1, 'preference'", "got 'model'")),
        (lambda rows: [{**rows[0], "preference": 10**400}, *rows[1:]], ("row 1, 'preference'",)),
        (lambda rows: [{**rows[0], "output_2": None}, *rows[1:]], ("row 1, 'output_2': text is needed; got None",)),
        (lambda rows: [{**rows[0], "annotator": "a"}, *rows[1:]], ("'annotator'", "'a' (from row 1)")),
        (lambda rows: [], ("holds no rows",)),
        (lambda rows: ["text", *rows[1:]], ("row 1: not a row",)),
    ],
)
def test_anything_else_is_refused(spoil, expected, rows, save, gamed) -> None:
    with pytest.raises(PobenchError) as refused:
        alpaca_eval.score(save(spoil(rows)), length_control=gamed)
    assert all(word in str(refused.value) for word in expected), refused.value


def test_all_faults_are_in_one_message(rows, save) -> None:
    rows[1]["preference"], rows[2]["output_2"], rows[3]["generator_1"] = -1, 5, "x\x1b[31m"
    with pytest.raises(PobenchError) as refused:
        alpaca_eval.score(save(rows))
    text = str(refused.value)
    assert "row 2, 'preference'" in text and "row 3, 'output_2'" in text and "'generator_1'" in text
    assert "\x1b" not in text


def test_another_judge_does_not_get_the_name(rows, save, gamed) -> None:
    judged = [{**row, "annotator": "claude"} for row in rows]
    assert alpaca_eval.score(save(judged), length_control=gamed).benchmark.endswith("not AlpacaEval 2")
    assert alpaca_eval.score(save(rows), length_control=gamed).benchmark == "AlpacaEval 2"


# ---------------------------------------------------------------- missing verdicts, ties


def test_a_missing_preference_is_dropped_and_counted(rows, save, gamed) -> None:
    rows[0]["preference"], rows[1]["preference"] = None, math.nan
    scored = alpaca_eval.score(save(rows), length_control=gamed)
    rest = [row["preference"] - 1 for row in rows[2:]]
    assert scored.values["win_rate"] == pytest.approx(100 * sum(rest) / 803)
    assert (scored.values["n"], scored.values["dropped"]) == (803, 2)
    assert any("2 of 805" in note for note in scored.notes)


def test_no_preference_at_all_is_nan_with_n_zero(rows, save, gamed) -> None:
    found = alpaca_eval.score(save([{**row, "preference": None} for row in rows]), length_control=gamed).as_json()
    assert found["n"] == 0 and found["win_rate"] is None and found["lc_win_rate"] is None
    assert found["length_only_win_rate"] == {"value": None, "low": None, "high": None, "n": 0}


def test_zero_is_the_old_way_to_write_a_tie(rows, save, gamed) -> None:
    tied = [{**row, "preference": 0} for row in rows]
    assert alpaca_eval.score(save(tied), length_control=gamed).values["win_rate"] == 50


@pytest.mark.parametrize(("preference", "rate"), [(1.0, 0.0), (2.0, 100.0)])
def test_one_side_may_win_everything(preference, rate, rows, save, gamed) -> None:
    found = alpaca_eval.score(save([{**r, "preference": preference} for r in rows]), length_control=gamed)
    assert found.values["win_rate"] == rate and abs(found.values["lc_win_rate"] - rate) < 5
    low, high = found.values["win_rate_interval"]
    assert low <= rate <= high and high - low > 0  # 805 of 805 is no certainty


# ---------------------------------------------------------------- the files of the GLM


def test_stand_ins_are_accepted_and_said(rows, save, gamed) -> None:
    (gamed / "df_gamed.csv").rename(gamed / "df_gamed_surrogate.csv")
    (gamed / "instruction_difficulty.csv").rename(gamed / "instruction_difficulty_recovered.csv")
    scored = alpaca_eval.score(save(rows), length_control=gamed)
    assert scored.benchmark == "AlpacaEval 2 (reconstructed)" and scored.values["reconstructed"]
    assert any("df_gamed_surrogate.csv" in note for note in scored.notes)


def test_without_the_hub_the_raw_rate_is_left_and_lc_is_missing(rows, save, monkeypatch) -> None:
    def no_hub() -> Path:
        raise OSError("no network")

    monkeypatch.setattr(alpaca_eval, "_from_hub", no_hub)
    scored = alpaca_eval.score(save(rows))
    assert scored.as_json()["lc_win_rate"] is None and scored.values["win_rate"] > 0
    assert any("--length-control" in note for note in scored.notes) and not scored.values["reconstructed"]


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (lambda f: f.iloc[:700], "700 rows"),
        (lambda f: f.sample(frac=1, random_state=0), "0 to 804 in this order"),
        (lambda f: f.drop(columns="std_delta_len"), "'std_delta_len': missing"),
        (lambda f: f.assign(preference=2.0), "rows 2–1611, 'preference': a number"),
        (lambda f: f.assign(instruction_difficulty="x"), "'instruction_difficulty': a number"),
        (lambda f: f.assign(not_gamed_baseline=True), "'not_gamed_baseline'"),
    ],
)
def test_a_damaged_df_gamed_is_refused(spoil, expected, rows, save, gamed) -> None:
    spoil(pd.read_csv(gamed / "df_gamed.csv")).to_csv(gamed / "df_gamed.csv", index=False)
    with pytest.raises(PobenchError, match=expected):
        alpaca_eval.score(save(rows), length_control=gamed)


def test_difficulties_that_disagree_are_noted(rows, save, gamed) -> None:
    assert not any("disagrees" in note for note in alpaca_eval.score(save(rows), length_control=gamed).notes)
    path = gamed / "instruction_difficulty.csv"
    table = pd.read_csv(path)
    table.assign(instruction_difficulty=table["instruction_difficulty"] + 1).to_csv(path, index=False)
    assert any("disagrees" in note for note in alpaca_eval.score(save(rows), length_control=gamed).notes)


def test_a_folder_without_df_gamed_is_refused(rows, save, tmp_path) -> None:
    with pytest.raises(PobenchError, match="df_gamed_surrogate"):
        alpaca_eval.score(save(rows), length_control=tmp_path)


# ---------------------------------------------------------------- manners


def test_scoring_writes_nothing_beside_alpaca_eval_and_leaves_settings_as_they_were(rows, save, gamed) -> None:
    sklearn = pytest.importorskip("sklearn")
    package = Path(pytest.importorskip("sklearn").__file__).parents[1] / "alpaca_eval"

    def files() -> dict[str, int]:
        found = [p for p in package.rglob("*") if p.is_file() and "__pycache__" not in p.parts]
        return {str(p): p.stat().st_mtime_ns for p in found}

    alpaca_eval.module.cache_clear()
    before = files(), logging.getLogger().level, sklearn.get_config()
    assert before[0]
    alpaca_eval.score(save(rows), length_control=gamed)
    assert (files(), logging.getLogger().level, sklearn.get_config()) == before


# ---------------------------------------------------------------- other prompts, other opponents


def test_other_prompts_have_a_length_only_win_rate_that_is_not_called_lc(save) -> None:
    rng = random.Random(2)
    rows = []
    for i in range(300):  # the judge wants length and nothing else: P(longer wins) = 0.8
        ours, theirs = rng.randrange(50, 150), rng.randrange(10, 110)
        won = rng.random() < (0.8 if ours > theirs else 0.2)
        names = {"generator_1": "theirs", "generator_2": "ours"}
        rows.append({"instruction": str(i), "output_1": "a" * theirs, "output_2": "b" * ours, **names})
        rows[-1]["preference"] = 1 + won
    scored = alpaca_eval.score(save(rows), length_only=True)
    only = scored.values["length_only_win_rate"]
    assert scored.values["win_rate"] > 58 and only.low < 50 < only.high and only.n == 300
    assert math.isnan(scored.values["lc_win_rate"]) and "AlpacaEval" not in scored.benchmark
    assert "LC" not in [line.title for line in scored.lines]


# ---------------------------------------------------------------- answers, and the command


def test_answers_are_written_in_the_order_of_the_805(rows, tmp_path) -> None:
    answers = {row["instruction"]: row["output_2"] for row in shuffled(rows)}
    alpaca_eval.write_answers(tmp_path / "outputs.json", answers, model="mine")
    written = json.loads((tmp_path / "outputs.json").read_text())
    assert [w["instruction"] for w in written] == [row["instruction"] for row in rows]
    assert written[7] == {"instruction": "Instruction 7", "output": rows[7]["output_2"], "generator": "mine"}


def test_incomplete_answers_are_not_written(rows, tmp_path) -> None:
    answers = {row["instruction"]: "text" for row in rows[1:]} | {"Another?": "text"}
    with pytest.raises(PobenchError, match=r"(?s)instruction 1 of 805.*'Another\?'"):
        alpaca_eval.write_answers(tmp_path / "outputs.json", answers, model="mine")
    assert not list(tmp_path.iterdir())


def test_the_command_prints_a_table_or_json(rows, save, gamed, pobench_cli, tmp_path) -> None:
    path = str(save([{**row, "generator_2": "mine [bold]\x1b[2J"} for row in rows]))
    status, out, _ = pobench_cli("score", "alpaca_eval", path, "--length-control", str(gamed))
    assert status == 0 and "LC win rate, %" in out and "mine [bold]" in out and "\x1b" not in out
    status, out, _ = pobench_cli("score", "alpaca_eval", path, "--length-control", str(gamed), "--json")
    found = json.loads(out)
    wanted = {"win_rate", "lc_win_rate", "standard_error", "lc_standard_error", "n", "avg_length"}
    assert status == 0 and wanted <= found.keys() and found["n"] == 805
    status, _, err = pobench_cli("score", "alpaca_eval", str(save(shuffled(rows))))
    assert status == 2 and "out of order" in err and "Traceback" not in err
    assert pobench_cli("score", "alpaca_eval", "none.json")[0] == 2
