"""The command that would decide the closest open pair of losses, by the stored components of variance."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import pandas as pd

from pobench.results.arms import Arm, json_object, of_arm, settings_of, show_setting
from pobench.results.contrast import Pair, all_pairs
from pobench.results.crossed import LEVEL, VERDICT_SEEDS
from pobench.results.variance import median, noise_of

MOST_SEEDS = 20  # fewer than these are proposed


class Closest(NamedTuple):
    """The undecided pair of losses whose difference is largest relative to what its runs can detect. detects: in points, after
    Holm's correction; seeds: how many would decide it four times in five, None where no number below `MOST_SEEDS` would."""

    pair: Pair
    detects: float
    seeds: int | None
    command: str


def closest_open(
    runs: pd.DataFrame,
    verdicts: pd.DataFrame,
    answers: pd.DataFrame | None,
    arms: Sequence[Arm],
    comparisons: pd.DataFrame | None = None,
) -> Closest | None:
    """None where no pair of trained arms is open, or none has two seeds, so that the luck of training is not known.

    Holm's next threshold is the error divided by the number of pairs that are still open, so a pair needs more seeds among
    many than it needs alone.
    """
    pairs = [
        p for p in all_pairs(runs, verdicts, answers, arms, comparisons) if not (p.ours.is_start or p.theirs.is_start)
    ]
    open_ = [p for p in pairs if not p.differs and p.gap.crossed is not None]
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
    command = run_command(runs, both, seeds_to_run(runs, both, seeds or MOST_SEEDS))
    return Closest(pair, detects, seeds, f"{command} --opponents all" if pair.direct else command)


def sentence(closest: Closest) -> str:
    """For a report."""
    pair = closest.pair
    value = f"{pair.gap.estimate.value:+.1f}".replace("-", "−")
    head = (
        f"Closest to a verdict of the open pairs: {pair.ours.label} − {pair.theirs.label} ({value} points with "
        f"{pair.gap.seeds} seeds, which would show {closest.detects:.1f} among all pairs four times in five)."
    )
    if closest.seeds is None:
        return f"{head} No number of seeds below {MOST_SEEDS} would decide it; more prompts or samples might."
    return f"{head} If it is as large as it looks, this would decide it: `{closest.command}`"


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
    words = ["pobench run", f"--losses {','.join(str(row['loss']) for row in rows)}"]
    words += [f"--setting {setting or rows[0]['setting']}", f"--seeds {','.join(map(str, seeds))}"]
    return " ".join([*words, *(f"--set {value}" for value in values)])
