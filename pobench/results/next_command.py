"""The command that would decide more, with the minutes of training that it takes by the stored runs' own times.

Losses that were not tuned alike are tuned first; losses with too few seeds get more; then the closest open pair of losses
gets as many as would decide it, by the stored components of variance.
"""

from __future__ import annotations

import math
import shlex
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from pobench.results.arms import Arm, arms_of, homes_of, json_object, of_arm, settings_of, show_setting
from pobench.results.contrast import Pair, all_pairs
from pobench.results.crossed import LEVEL, VERDICT_SEEDS
from pobench.results.equal_tuning import trials_of, values_of
from pobench.results.few_runs import working_seconds
from pobench.results.variance import median, noise_of
from pobench.types import Estimate

MOST_SEEDS = 20  # fewer than these are proposed


class Closest(NamedTuple):
    """The undecided pair of losses that were tuned alike whose difference is largest relative to what its runs can detect.
    detects: in points, after Holm's correction; seeds: how many would decide it four times in five, None where no number below
    `MOST_SEEDS` would; seconds: of training that the command takes, nan where not known."""

    pair: Pair
    detects: float
    seeds: int | None
    command: str
    seconds: float = math.nan


def closest_open(
    runs: pd.DataFrame,
    verdicts: pd.DataFrame,
    answers: pd.DataFrame | None,
    arms: Sequence[Arm],
    comparisons: pd.DataFrame | None = None,
) -> Closest | None:
    """None where no pair of trained arms that were tuned alike is open, or none has two seeds, so that the luck of training is
    not known.

    Holm's next threshold is the error divided by the number of pairs that are still open, so a pair needs more seeds among
    many than it needs alone.
    """
    pairs = [
        p for p in all_pairs(runs, verdicts, answers, arms, comparisons) if not (p.ours.is_start or p.theirs.is_start)
    ]
    open_ = [p for p in pairs if p.comparable and not p.differs and p.gap.crossed is not None]
    tested = sum(p.gap.decides for p in open_)
    reach = []
    for pair in open_:
        level = 1 - (1 - LEVEL) / (tested + (not pair.gap.decides))
        found = pair.tested or pair.gap.crossed
        detects = found.detectable(level) if found is not None else 0.0
        if detects > 0:
            reach.append((abs(pair.gap.estimate.value) / detects, detects, level, pair))
    if not reach:
        return None
    _, detects, level, pair = max(reach, key=lambda found: found[0])
    both = (pair.ours, pair.theirs)
    own = noise_of(runs, verdicts, answers, both, comparisons).of_pairs
    of_pairs = own or noise_of(runs, verdicts, answers, arms, comparisons).of_pairs  # it may share fewer than two seeds
    if not of_pairs:
        return None
    noise = median(list(of_pairs.values()))
    more = range(max(VERDICT_SEEDS, pair.gap.seeds + 1), MOST_SEEDS)
    needs = (noise.detectable(seeds, pair.gap.estimate.n, noise.samples, level) for seeds in more)
    seeds = next((k for k, need in zip(more, needs, strict=True) if need <= abs(pair.gap.estimate.value)), None)
    numbers = seeds_to_run(runs, both, seeds or MOST_SEEDS)
    command = run_command(runs, both, numbers) + (" --opponents all" if pair.direct else "")
    return Closest(pair, detects, seeds, command, training_seconds(runs, both, numbers))


def sentence(closest: Closest) -> str:
    """For a report."""
    pair, gap = closest.pair, closest.pair.gap
    winner, loser = (arm.label for arm in pair.in_order)
    e = (
        gap.estimate
        if pair.ours is pair.in_order[0]
        else Estimate(-gap.estimate.value, -gap.estimate.high, -gap.estimate.low, 0)
    )
    value, low, high = (f"{end:+.1f}".replace("-", "−") for end in (e.value, e.low, e.high))
    basis = f"{value} points [{low}, {high}], n = {gap.estimate.n}, {gap.seeds} seeds"
    if closest.seeds is None:
        return (
            f"{winner} and {loser} are the open pair that is closest to a verdict ({basis}), and no number of seeds below "
            f"{MOST_SEEDS} would separate them: more prompts or samples might; in practice they may be the same."
        )
    more = closest.seeds - gap.seeds
    return (
        f"{more} more seed{'s'[: more != 1]} would separate {winner} from {loser} four times in five, if the difference stays "
        f"as it is ({basis}): {cost(closest.seconds)}. `{closest.command}`"
    )


# ---------------------------------------------------------------- what to do next
def next_steps(
    runs: pd.DataFrame,
    verdicts: pd.DataFrame,
    answers: pd.DataFrame | None,
    comparisons: pd.DataFrame | None = None,
) -> list[str]:
    """A sentence with a command for each step that would decide more, the first first; [] where every pair is decided."""
    homes = list(homes_of(runs).values())
    steps = [_tune(runs, homes)]
    few = [arm for arm in homes if len(_finished(runs, arm)) < VERDICT_SEEDS]
    if few:
        steps.append(_more_seeds(runs, few))
    elif closest := closest_open(runs, verdicts, answers, arms_of(runs), comparisons):
        steps.append(sentence(closest))
    return [step for step in steps if step]


def _tune(runs: pd.DataFrame, arms: Sequence[Arm]) -> str:
    """The search that gives losses equal chances; "" where they have them."""
    trials = {arm: trials_of(runs, arm) for arm in arms}
    most = max(trials.values(), default=0)
    lacking = [arm for arm in arms if trials[arm] < max(most, 1)]
    if len(arms) < 2 or not lacking or {values_of(runs, arm) for arm in arms} == {"paper"}:
        return ""
    first = of_arm(runs, lacking[0]).iloc[0]
    words = ["pobench tune", "--losses", shlex.quote(",".join(arm.loss for arm in lacking))]
    words += ["--setting", shlex.quote(str(first["setting"]))] + ([f"--trials {most}"] if most else [])
    each = sum(_seconds_of_one(runs, arm) for arm in lacking)
    time = cost(each * most) if most else f"{cost(each)} for each trial of {'both' if len(lacking) == 2 else 'all'}"
    who = " and ".join(arm.label for arm in lacking) if len(lacking) < 3 else f"{len(lacking)} losses"
    verb = "has" if len(lacking) == 1 else "have"
    return f"Tune first, with equal trials: {who} {verb} values that no such search chose ({time}). `{' '.join(words)}`"


def _more_seeds(runs: pd.DataFrame, arms: Sequence[Arm]) -> str:
    """The command after which all of these have enough seeds for a verdict."""
    numbers = seeds_to_run(runs, arms, VERDICT_SEEDS)
    lacking = sorted({VERDICT_SEEDS - len(_finished(runs, arm)) for arm in arms})
    more = " to ".join(map(str, lacking))
    who = "each loss" if len(arms) > 2 else " and ".join(arm.label for arm in arms)
    time = cost(training_seconds(runs, arms, numbers))
    return (
        f"{more} more seed{'s'[: more != '1']} for {who} would cover the luck of training and allow a verdict: {time}. "
        f"`{run_command(runs, arms, numbers)}`"
    )


def training_seconds(runs: pd.DataFrame, arms: Iterable[Arm], seeds: Sequence[int]) -> float:
    """Seconds of training that these seeds lack, each run as long as its loss's finished ones; nan where one has none."""
    return sum(len(set(seeds) - _finished(runs, arm)) * _seconds_of_one(runs, arm) for arm in arms)


def _seconds_of_one(runs: pd.DataFrame, arm: Arm) -> float:
    """The mean over the arm's finished runs."""
    known = working_seconds(of_arm(runs, arm)).dropna()
    return float(known.mean()) if len(known) else math.nan


def _finished(runs: pd.DataFrame, arm: Arm) -> set[int]:
    """Its seeds that are trained."""
    rows = of_arm(runs, arm)
    done = rows["status"].eq("finished") if "status" in rows else np.full(len(rows), True)
    return {int(seed) for seed in rows.loc[done, "seed"]}


def cost(seconds: float) -> str:
    """`14 min of training`, by the stored runs' own times."""
    if math.isnan(seconds):
        return "time not known"
    if seconds < 90:
        return f"{seconds:.0f} s of training"
    minutes = seconds / 60
    return f"{minutes:.0f} min of training" if minutes < 120 else f"{minutes / 60:.1f} h of training"


# ---------------------------------------------------------------- commands
def seeds_to_run(runs: pd.DataFrame, arms: Iterable[Arm], count: int) -> list[int]:
    """So many seeds: those that most of the arms have, then the next numbers."""
    stored = Counter(int(seed) for arm in arms for seed in of_arm(runs, arm)["seed"])
    first = sorted(stored, key=lambda seed: (-stored[seed], seed))[:count]
    beyond = max(stored, default=0) + 1
    return sorted([*first, *range(beyond, beyond + count - len(first))])


def run_command(
    runs: pd.DataFrame, arms: Sequence[Arm], seeds: Sequence[int], setting: str | None = None, sets: Sequence[str] = ()
) -> str:
    """`pobench run` for the arms with these seeds. Values that their runs took from `--set` or a study are set again; those of
    training only where all arms share them. setting: as typed; default: the runs' own. sets: further KEY=VALUE."""
    rows = [of_arm(runs, arm).iloc[0].to_dict() for arm in arms]
    own, common = [], []
    for row in rows:
        sources = {key: str(where) for key, where in json_object(row.get("sources")).items()}
        varied = [key for key, where in sources.items() if where.startswith(("--set", "study "))]
        own += [f"{row['loss']}.{k}={show_setting(v)}" for k, v in settings_of(row).items() if k in varied]
        common.append({f"train.{k}={show_setting(row[k])}" for k in ("lr", "epochs", "batch_size") if k in varied})
    values = [*own, *sorted(set.intersection(*common)), *sets]
    words = ["pobench run", "--losses", shlex.quote(",".join(str(row["loss"]) for row in rows))]
    words += ["--setting", shlex.quote(str(setting or rows[0]["setting"])), f"--seeds {','.join(map(str, seeds))}"]
    return " ".join([*words, *(f"--set {shlex.quote(value)}" for value in values)])
