"""Every metric against arithmetic by hand, and the rows that `scores.json` holds."""

from __future__ import annotations

import json
import math

import pandas as pd
import pytest

from pobench.results import metrics


def heldout(**columns) -> pd.DataFrame:
    n = len(next(iter(columns.values())))
    base = {
        "run": "r", "pair": [f"p{i}" for i in range(n)], "chosen_logp": -10.0, "rejected_logp": -20.0, "chosen_length": 10,
        "rejected_length": 10, "reference_chosen_logp": -10.0, "reference_rejected_logp": -20.0, "loss": 0.5,
        "chosen_reward": 1.0, "rejected_reward": 0.0,
    }  # fmt: skip
    return pd.DataFrame({**base, **columns}, index=range(n))


def answers(*texts: str, prompts=None, tokens=5, finished=True) -> pd.DataFrame:
    n = len(texts)
    prompts = prompts or [f"p{i}" for i in range(n)]
    frame = pd.DataFrame({"run": "r", "prompt": prompts, "sample": range(n), "tokens": tokens, "finished": finished})
    return frame.assign(text=pd.Series(list(texts), dtype=object))


def verdicts(*values: float, prompts=None, judge="verifiable", run="r") -> pd.DataFrame:
    prompts = prompts or [f"p{i}" for i in range(len(values))]
    rows = {"run": run, "prompt": prompts, "sample": range(len(values)), "judge": judge, "score": values}
    return pd.DataFrame(rows)


def value(metric: str, frames: dict, start: dict | None = None) -> float:
    rows = {row["metric"]: row for row in metrics.score(frames, {} if start is None else start)}
    return math.nan if rows[metric]["value"] is None else rows[metric]["value"]


def test_pass_rate_is_the_mean_over_prompts_of_the_mean_over_samples() -> None:
    frames = {"verdicts": verdicts(1, 1, 1, 0, prompts=["a", "a", "a", "b"])}
    assert value("pass_rate", frames) == 0.5


def test_graded_score_is_the_mean_over_prompts_and_missing_where_no_judge_grades() -> None:
    judged = verdicts(1, 0, 0, prompts=["a", "a", "b"])
    # a: (1 + 0.5) / 2, b: 0.25
    assert value("grade", {"verdicts": judged.assign(grade=[1, 0.5, 0.25])}) == 0.5
    assert value("grade", {"verdicts": judged.assign(grade=[1, math.nan, 0.25])}) == 0.625
    rows = {row["metric"]: row for row in metrics.score({"verdicts": judged})}  # as stored before there were grades
    assert (rows["grade"]["value"], rows["grade"]["n"]) == (None, 0)


def test_gain_and_wins_are_paired_by_prompt() -> None:
    ours = {"verdicts": verdicts(1, 1, 0, 0.5, prompts=["a", "b", "c", "d"])}
    start = {"verdicts": verdicts(0, 1, 1, 1, prompts=["a", "b", "c", "x"], run="s")}
    # a +1, b 0, c -1; d and x have no partner
    assert value("pass_rate_gain", ours, start) == 0
    assert value("win_rate", ours, start) == 0.5


def test_a_prompt_without_a_verdict_is_left_out_and_n_says_so() -> None:
    rows = {row["metric"]: row for row in metrics.score({"verdicts": verdicts(1, math.nan, 0)})}
    assert (rows["pass_rate"]["value"], rows["pass_rate"]["n"]) == (0.5, 2)


def test_repetition_is_the_share_of_four_grams_seen_before() -> None:
    # "a b c d a b c d": 4-grams abcd bcda cdab dabc abcd: 5, of which 4 distinct
    assert value("repetition", {"answers": answers("A b c d a b c d")}) == pytest.approx(1 / 5)
    assert math.isnan(value("repetition", {"answers": answers("too short here")}))


def test_distinct_2_sees_samples_that_say_the_same() -> None:
    # bigrams: "one two", "two three" twice: 2 distinct of 4
    assert value("distinct_2", {"answers": answers("one two three", "one two three", prompts=["p", "p"])}) == 0.5
    assert value("distinct_2", {"answers": answers("one two three", "four five six", prompts=["p", "p"])}) == 1.0
    assert value("distinct_2", {"answers": answers("one two three", "one two three")}) == 1.0  # different prompts


def test_length_and_unfinished() -> None:
    frames = {"answers": answers("one two", "one two three four", tokens=[4, 8], finished=[True, False])}
    assert value("length_tokens", frames) == 6
    assert value("length_words", frames) == 3
    assert value("unfinished", frames) == 0.5


def test_metrics_of_held_out_pairs() -> None:
    frames = {
        "heldout": heldout(
            chosen_logp=[-12.0, -30.0],
            chosen_length=[10, 20],
            reference_chosen_logp=[-10.0, -20.0],
            rejected_logp=[-25.0, -25.0],
            chosen_reward=[1.0, 2.0],
            rejected_reward=[1.0, 0.5],
        )
    }
    assert value("kl_winners", frames) == pytest.approx((0.2 + 0.5) / 2)
    assert value("chosen_logp_shift", frames) == pytest.approx(-0.35)
    assert value("rejected_logp_shift", frames) == pytest.approx(-0.5)
    assert value("chosen_logp_per_token", frames) == pytest.approx((-1.2 - 1.5) / 2)
    assert value("reward_accuracy", frames) == 0.75  # a tie and a win
    assert value("margin", frames) == 0.75


def test_length_correlation_has_the_sign_of_the_trend() -> None:
    lengths = [10, 20, 30, 40]
    rising = heldout(chosen_length=lengths, chosen_logp=[-20.0, -30.0, -30.0, -20.0])
    assert value("length_correlation", {"heldout": rising}) == pytest.approx(1.0)


def test_the_start_model_has_no_metrics_against_itself() -> None:
    held = heldout(chosen_reward=[math.nan] * 3, rejected_reward=[math.nan] * 3)
    names = {row["metric"] for row in metrics.score({"heldout": held, "verdicts": verdicts(1, 0, 1)})}
    assert {"pass_rate", "chosen_logp_per_token", "length_correlation"} <= names
    assert not names & {"pass_rate_gain", "win_rate", "kl_winners", "reward_accuracy", "margin", "chosen_logp_shift"}


def test_nothing_measured_gives_none_and_n_zero_and_is_json() -> None:
    rows = metrics.score({}, {})
    assert {row["metric"] for row in rows} == set(metrics.METRICS)
    assert all(row["value"] is None and row["low"] is None and row["n"] == 0 for row in rows)
    json.dumps(rows, allow_nan=False)


def test_infinities_and_empty_answers_do_not_crash() -> None:
    held = heldout(chosen_logp=[-math.inf, -10.0], chosen_length=[10, 0], chosen_reward=[-math.inf, 1.0])
    rows = metrics.score({"heldout": held, "answers": answers("", "  ")}, {})
    json.dumps(rows, allow_nan=False)


def test_broken_unicode_counts_as_text() -> None:
    assert value("length_words", {"answers": answers("a \udcff b", "\x00")}) == 2


def test_a_second_judge_gets_numbers_of_its_own() -> None:
    both = pd.concat([verdicts(1, 1), verdicts(0, 0, judge="gpt")])
    rows = {row["metric"]: row["value"] for row in metrics.score({"verdicts": both})}
    assert (rows["pass_rate"], rows["pass_rate@gpt"]) == (1, 0)
    declared = metrics.metric("pass_rate@gpt")
    assert declared is not None and declared.title == "Pass rate (gpt)" and declared.better == "higher"
    assert metrics.metric("no_such_metric") is None


def test_every_metric_declares_its_meaning() -> None:
    for name, m in metrics.METRICS.items():
        assert m.name == name and m.title and m.unit and m.better in ("higher", "lower", "")
        assert len(m.definition) > 30 and m.definition.endswith(".")
        assert m.show(math.nan) == "–" and not m.show(-0.5).startswith("-")


def test_seeds_are_pooled_by_prompt_with_the_start_model_of_each() -> None:
    runs = pd.DataFrame(
        {
            "run": ["t/s", "t/a", "t/b"], "setting": "t", "loss": ["start", "dpo", "dpo"], "title": ["start", "DPO", "DPO"],
            "seed": [-1, 1, 2], "settings": "{}", "lr": 1e-6, "epochs": 1.0, "batch_size": 8, "pairs": 10, "start": "t/s",
            "status": "finished",
        }
    )  # fmt: skip
    judged = pd.concat(
        [verdicts(0, 0, 1, run="t/s"), verdicts(1, 0, 1, run="t/a"), verdicts(1, 1, 1, run="t/b")], ignore_index=True
    )
    table = metrics.complete({"runs": runs, "verdicts": judged})
    pooled = table[table["run"].str.contains("~") & (table["metric"] == "pass_rate_gain")].iloc[0]
    assert pooled["value"] == pytest.approx((1 / 3 + 2 / 3) / 2) and pooled["n"] == 3
    assert set(table["run"]) == {"t/s", "t/a", "t/b", pooled["run"]}
    # nothing is computed twice, and stored rows stay as they are
    again = metrics.complete({"runs": runs, "verdicts": judged, "scores": table[~table["run"].str.contains("~")]})
    assert len(again) == len(table)


def test_failed_runs_are_not_scored() -> None:
    runs = pd.DataFrame(
        {
            "run": ["t/a"], "setting": "t", "loss": "dpo", "title": "DPO", "seed": 1, "settings": "{}", "lr": 1e-6,
            "epochs": 1.0, "batch_size": 8, "pairs": 10, "start": "t/s", "status": "failed",
        }
    )  # fmt: skip
    assert metrics.complete({"runs": runs, "verdicts": verdicts(1, run="t/a")}).empty
