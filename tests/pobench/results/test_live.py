"""What the steps of a training say while it runs: curves that stay small, and alarms with their reasons."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pobench.results.live import StepLog, answer_alarms, thinned, training_alarms


def log_of(path: Path, steps: int, **columns: Any) -> StepLog:
    """A log in which a column is a function of the step, or absent."""
    rows = [
        {"step": k, "loss": 0.5, "grad_norm": 2.0, **{n: f(k) for n, f in columns.items()}} for k in range(1, steps + 1)
    ]
    path.write_text("".join(json.dumps({name.replace("__", "/"): v for name, v in row.items()}) + "\n" for row in rows))
    log = StepLog(path)
    log.refresh()
    return log


def names(log: StepLog) -> list[str]:
    return [alarm.name for alarm in training_alarms(log.rows)]


def test_a_log_is_read_on_where_it_grew_and_anew_where_it_was_rewritten(tmp_path) -> None:
    path = tmp_path / "steps.jsonl"
    log = log_of(path, 3)
    with path.open("a") as file:
        file.write('{"step": 4, "loss": 0.4}\n{"step": 5, "lo')
    log.refresh()
    assert [row["step"] for row in log.rows] == [1, 2, 3, 4] and log.rows[3]["grad_norm"] is None
    with path.open("a") as file:
        file.write('ss": 0.3}\n')
    log.refresh()
    assert log.curves()["loss"][-1] == (5, 0.3)
    other = tmp_path / "other.jsonl"
    log_of(other, 2)
    other.replace(path)
    log.refresh()
    assert len(log.rows) == 2
    path.unlink()
    log.refresh()
    assert log.rows == []


def test_a_curve_has_at_most_its_number_of_points_and_keeps_its_mean() -> None:
    values = np.random.default_rng(0).normal(size=1000)
    assert values.std() > 0
    points = thinned([(k, v) for k, v in enumerate(values, 1)], 400)
    assert len(points) == 334 and points[0] == (3, pytest.approx(values[:3].mean())) and points[-1][0] == 1000
    assert thinned([(1.0, 2.0)]) == [(1.0, 2.0)] and thinned([]) == []


def test_both_rewards_may_fall_as_long_as_the_chosen_answers_lose_little(tmp_path) -> None:
    fall = {"rewards__chosen": lambda k: -k / 10, "rewards__rejected": lambda k: -k / 5}
    assert names(log_of(tmp_path / "a", 80, **fall, logps__chosen_per_token=lambda k: -1 - k / 1000)) == []
    log = log_of(tmp_path / "b", 80, **fall, logps__chosen_per_token=lambda k: -1 - k / 100)
    (alarm,) = training_alarms(log.rows)
    # the means of the last and the first 20 steps lie 60 steps apart: 0.60 nats, e^0.60 = 1.8
    assert alarm.name == "both-fall" and "lost 0.60 nats a token" in alarm.sentence and "1.8 times" in alarm.sentence
    rising = {**fall, "rewards__chosen": lambda k: k / 10}
    assert names(log_of(tmp_path / "c", 80, **rising, logps__chosen_per_token=lambda k: -1 - k / 100)) == []


def test_a_gradient_ten_times_its_median_and_accuracy_below_chance_are_named(tmp_path) -> None:
    spike = log_of(tmp_path / "a", 60, grad_norm=lambda k: 30.0 if k == 41 else 2.0)
    (alarm,) = training_alarms(spike.rows)
    assert alarm.sentence.startswith("The gradient norm of step 41 was 30, 15 times its median")
    assert names(log_of(tmp_path / "b", 60, grad_norm=lambda k: 19.0 if k == 41 else 2.0)) == []
    assert names(log_of(tmp_path / "c", 60, grad_norm=lambda k: 30.0 if k == 3 else 2.0)) == [], "the warm-up"
    wrong = log_of(tmp_path / "d", 60, heldout__accuracy=lambda k: 0.4 if k > 20 else 0.6)
    assert names(wrong) == ["chance"] and "40% of them" in training_alarms(wrong.rows)[0].sentence
    once = log_of(tmp_path / "e", 60, heldout__accuracy=lambda k: 0.4 if k > 58 else 0.6)
    assert names(once) == []
    assert names(log_of(tmp_path / "f", 4, loss=lambda k: None if k == 4 else 0.5)) == ["nan"]


def test_answers_are_compared_with_the_start_models_by_the_reports_limits() -> None:
    def rows(**values: float | None) -> list[dict[str, Any]]:
        return [{"metric": name, "value": value} for name, value in values.items()]

    start = rows(length_tokens=40.0, repetition=0.01, distinct_2=0.9, unfinished=0.0)
    calm = rows(length_tokens=50.0, repetition=0.05, distinct_2=0.85, unfinished=0.05, chosen_logp_shift=-0.4)
    assert answer_alarms(calm, start) == []
    worse = rows(length_tokens=90.0, repetition=0.2, distinct_2=0.7, unfinished=0.3, chosen_logp_shift=-0.7)
    found = {alarm.name: alarm.sentence for alarm in answer_alarms(worse, start)}
    assert found["length_tokens"] == "Answers are 2.2 times as long as the start model's (90 against 40 tokens)."
    assert (
        len(found) == 5 and "20% of their 4-grams" in found["repetition"] and "2.0 times" in found["chosen_logp_shift"]
    )
    assert answer_alarms(rows(length_tokens=None), start) == [], "missing is no alarm"
