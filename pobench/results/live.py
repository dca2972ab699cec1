"""A training that is watched: its curves, from the end of `steps.jsonl`, and what should worry one, in a sentence each."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pobench.results.health import DROP, METRICS, alarms
from pobench.types import Estimate

MOST_POINTS = 400  # of a curve
CURVES = ("loss", "rewards/chosen", "rewards/rejected", "heldout/kl", "kl", "grad_norm", "heldout/accuracy")
READ = (*CURVES, "logps/chosen_per_token")
# Limits of the alarms while training, chosen by hand; no test of significance. `DROP` is that of the report.
WINDOW = 20  # steps at the beginning and at the end that are compared; of a shorter training a quarter
STEEP = 10.0  # times the median gradient norm
WARM = 10  # steps before a gradient norm counts
EVALUATIONS = 3  # in a row below one half


class Alarm(NamedTuple):
    """name: the same for the same sign. sentence: what was seen, and why it matters."""

    name: str
    sentence: str


class StepLog:
    """The rows of a `steps.jsonl` that grows: each call of `refresh` reads what is new."""

    def __init__(self, path: Path) -> None:
        self.path, self.rows = path, list[dict[str, float | None]]()
        self._read, self._inode = 0, 0

    def refresh(self) -> None:
        """Read on; from the beginning where the file was written anew, as it is when a training resumes."""
        try:
            about = self.path.stat()
        except FileNotFoundError:
            self.rows, self._read = [], 0
            return
        if about.st_ino != self._inode or about.st_size < self._read:
            self.rows, self._read, self._inode = [], 0, about.st_ino
        with self.path.open("rb") as file:
            file.seek(self._read)
            new = file.read(about.st_size - self._read)
        whole = new[: new.rfind(b"\n") + 1]
        self._read += len(whole)
        for line in whole.splitlines():
            try:
                row = json.loads(line)
                self.rows.append({"step": float(row["step"]), **{name: _number(row.get(name)) for name in READ}})
            except (ValueError, KeyError, TypeError, AttributeError):
                continue

    def curves(self) -> dict[str, list[tuple[float, float]]]:
        """Name → (step, value), of the curves that have values."""
        found = {name: [(r["step"], r[name]) for r in self.rows if r[name] is not None] for name in CURVES}
        return {name: thinned(points) for name, points in found.items() if points}  # type: ignore[arg-type]


def thinned(points: Sequence[tuple[float, float]], most: int = MOST_POINTS) -> list[tuple[float, float]]:
    """At most so many points: each the mean of as many neighbours, at the last one's step."""
    each = math.ceil(len(points) / most) if points else 1
    parts = [points[at : at + each] for at in range(0, len(points), each)]
    return [(part[-1][0], statistics.fmean(value for _, value in part)) for part in parts]


def training_alarms(rows: Sequence[Mapping[str, float | None]]) -> list[Alarm]:
    """What the logged steps of a training show. rows: of a `StepLog`."""
    found = [_not_a_number(rows), _both_fall(rows), _steep(rows), _worse_than_chance(rows)]
    return [alarm for alarm in found if alarm is not None]


def _not_a_number(rows: Sequence[Mapping[str, float | None]]) -> Alarm | None:
    step = next((row["step"] for row in rows if row["loss"] is None), None)
    if step is None:
        return None
    return Alarm("nan", f"The loss of step {step:.0f} is no number: nothing that follows can be trusted.")


def _both_fall(rows: Sequence[Mapping[str, float | None]]) -> Alarm | None:
    chosen, rejected = _change(rows, "rewards/chosen"), _change(rows, "rewards/rejected")
    lost = _change(rows, "logps/chosen_per_token")
    if not (chosen < 0 and rejected < 0 and lost < DROP):
        return None
    return Alarm(
        "both-fall",
        f"Both rewards fall, and the chosen answers lost {-lost:.2f} nats a token (more than {-DROP:g}): each of their "
        f"tokens is {math.exp(-lost):.1f} times less likely than at the beginning, so what should be preferred is unlearned.",
    )


def _steep(rows: Sequence[Mapping[str, float | None]]) -> Alarm | None:
    norms = [(row["step"], norm) for row in rows[WARM:] if (norm := row["grad_norm"]) is not None]
    if len(norms) < WARM:
        return None
    median = statistics.median(norm for _, norm in norms)
    step, most = max(norms, key=lambda one: one[1])
    if not most > STEEP * median > 0:
        return None
    return Alarm(
        "gradient",
        f"The gradient norm of step {step:.0f} was {most:.3g}, {most / median:.0f} times its median: one batch moved the "
        "model far; a lower learning rate or a look at that batch may help.",
    )


def _worse_than_chance(rows: Sequence[Mapping[str, float | None]]) -> Alarm | None:
    accuracies = [value for row in rows if (value := row["heldout/accuracy"]) is not None][-EVALUATIONS:]
    if len(accuracies) < EVALUATIONS or max(accuracies) >= 0.5:
        return None
    return Alarm(
        "chance",
        f"The last {EVALUATIONS} looks at the held-out pairs ranked {statistics.fmean(accuracies):.0%} of them right: worse "
        "than chance, so chosen and rejected may be swapped, or the step too large.",
    )


def _change(rows: Sequence[Mapping[str, float | None]], name: str) -> float:
    """The mean of the last steps minus that of the first; nan where there are too few."""
    values = [value for row in rows if (value := row[name]) is not None]
    size = min(WINDOW, len(values) // 4)
    return statistics.fmean(values[-size:]) - statistics.fmean(values[:size]) if size else math.nan


def answer_alarms(own: Iterable[Mapping[str, Any]], start: Iterable[Mapping[str, Any]]) -> list[Alarm]:
    """The report's signs of collapse (`pobench.results.health`), in sentences. own, start: rows of the frame `scores`, of a run
    and of its start model."""
    mine, theirs = _estimates(own), _estimates(start)
    return [Alarm(alarm.metric, _sentence(alarm.metric, mine, theirs)) for alarm in alarms(mine, theirs)]


def _sentence(metric: str, own: Mapping[str, Estimate], start: Mapping[str, Estimate]) -> str:
    now, before = own[metric].value, start[metric].value
    if metric == "chosen_logp_shift":
        less = f"{math.exp(-now):.1f} times less likely"
        return f"Held-out chosen answers lost {-now:.2f} nats a token: each of their tokens is {less}."
    if metric == "length_tokens":
        return f"Answers are {now / before:.1f} times as long as the start model's ({now:.0f} against {before:.0f} tokens)."
    if metric == "repetition":
        return (
            f"Answers repeat themselves: {now:.0%} of their 4-grams stood earlier, {before:.0%} in the start model's."
        )
    if metric == "unfinished":
        return f"{now:.0%} of the answers are cut off at the token limit, {before:.0%} of the start model's."
    return f"Answers became alike: {now:.0%} of their word pairs are distinct, {before:.0%} of the start model's."


def _estimates(rows: Iterable[Mapping[str, Any]]) -> dict[str, Estimate]:
    values = {row["metric"]: row["value"] for row in rows}
    return {name: Estimate(_or_nan(values.get(name)), math.nan, math.nan, 0) for name in METRICS}


def _or_nan(value: float | None) -> float:
    return math.nan if value is None else value


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None
