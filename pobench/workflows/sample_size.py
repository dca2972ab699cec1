"""How many seeds, prompts and samples detect a difference between losses on a setting, and for how much time.

Computed from the verdicts of stored runs: the median of the components of variance over the pairs of losses
(`pobench.results.variance`), put into the same interval that a comparison gets (`pobench.results.crossed`).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from pobench.errors import PobenchError
from pobench.files import nan_as_null
from pobench.results.arms import Arm, homes_of, of_arm
from pobench.results.crossed import LEVEL, POWER
from pobench.results.derived import Frames
from pobench.results.next_command import run_command, seeds_to_run
from pobench.results.variance import Components, median, noise_of
from pobench.runs.cost import answering_seconds, asked_prompts
from pobench.settings.job import Job

SEEDS = (3, 5, 8, 12)
SAMPLES = (1, 4, 16)
FRACTIONS = (1.0, 0.5, 0.25)  # of the setting's prompts


class Design(NamedTuple):
    """detects: the smallest difference that it sees four times in five, in points. seconds: of making all of it; left: without
    the stored runs that it uses; both nan where not known."""

    seeds: int
    prompts: int
    samples: int
    detects: float
    seconds: float
    left: float


@dataclass(frozen=True)
class SampleSize:
    """losses: arms that are compared with each other. pairs: how many pairs the components are the median of. designs: the
    whole grid; job: of the setting as it is now."""

    setting: str
    difference: float
    losses: tuple[Arm, ...]
    pairs: int
    components: Components
    designs: tuple[Design, ...]
    job: Job
    runs: pd.DataFrame

    @property
    def enough(self) -> list[Design]:
        """The designs that detect the difference, the cheapest first; where no time is known, the smallest."""
        found = [design for design in self.designs if design.detects <= self.difference]
        return sorted(found, key=lambda d: (_last(d.left), _last(d.seconds), d.seeds * d.prompts * d.samples, d.seeds))

    @property
    def best(self) -> Design:
        """The design that detects the smallest difference."""
        return min(self.designs, key=lambda design: design.detects)

    def command(self, design: Design, setting: str | None = None) -> str:
        """`pobench run` of a design. setting: as typed, a name or a path."""
        every = max(d.prompts for d in self.designs)
        sets = [f"answers.samples={design.samples}"] if design.samples != self.job.answers.samples else []
        sets += [f"answers.max_prompts={design.prompts}"] if design.prompts < every else []
        return run_command(self.runs, self.losses, seeds_to_run(self.runs, self.losses, design.seeds), setting, sets)

    def describe(self, setting: str | None = None) -> dict[str, Any]:
        """As plain data, nan as null."""
        enough = self.enough
        designs = [{k: nan_as_null(v) for k, v in d._asdict().items()} | {"enough": d in enough} for d in self.designs]
        return {
            "setting": self.setting,
            "difference": self.difference,
            "power": POWER,
            "level": LEVEL,
            "losses": [arm.loss for arm in self.losses],
            "pairs": self.pairs,
            "components": {k: nan_as_null(v) for k, v in asdict(self.components).items()},
            "designs": designs,
            "command": self.command(enough[0], setting) if enough else None,
        }


def comparable_runs(frames: Mapping[str, pd.DataFrame]) -> Frames:
    """The finished runs of the newest protocol, and of the start model that most of them have."""
    runs = frames["runs"]
    trained = runs[(runs["status"] == "finished") & (runs["loss"] != "start")]
    trained = trained[trained["protocol"] == trained["protocol"].max()]
    if len(trained):
        trained = trained[trained["start"] == trained["start"].mode().iloc[0]]
    return Frames(frames).of_runs(trained["run"])


def sample_size(
    frames: Mapping[str, pd.DataFrame], job: Job, difference: float, names: Sequence[str] | None = None
) -> SampleSize:
    """The grid of designs for the losses' home arms. frames: of `comparable_runs`. job: of the setting. names: losses; default:
    all that are stored with two seeds. Raises PobenchError where the stored verdicts do not say how far seeds differ."""
    arms = [arm for loss, arm in sorted(homes_of(frames["runs"]).items()) if names is None or loss in names]
    stored = frames["runs"], frames["verdicts"], frames.get("answers")
    noise = noise_of(*stored, arms, frames.get("comparisons")) if len(frames["verdicts"]) else None
    kept = [arm for arm in arms if noise is not None and arm in noise.of_arms]
    pairs = [] if noise is None else [found for pair, found in noise.of_pairs.items() if set(pair) <= set(kept)]
    lacking = [name for name in names or () if name not in {arm.loss for arm in kept}]
    if lacking or not pairs:
        known = ", ".join(arm.loss for arm in kept) or "none"
        what = f"{', '.join(lacking)}: not judged" if lacking else "no two losses were judged"
        raise PobenchError(
            f"{what} with two seeds or more on {job.setting}, so how far seeds differ is not known; with as many: {known}. "
            f"First: pobench run --losses {','.join(names or ('simpo', 'dpo'))} --setting {job.setting} --seeds 42,43,44"
        )
    typical = median(pairs)
    designs = tuple(_designs(frames["runs"], kept, typical, job))
    return SampleSize(job.setting, difference, tuple(kept), len(pairs), typical, designs, job, frames["runs"])


def _designs(runs: pd.DataFrame, arms: Sequence[Arm], typical: Components, job: Job) -> Iterator[Design]:
    members = pd.concat([of_arm(runs, arm) for arm in arms])
    training = float(members["seconds"].median())
    every = asked_prompts(job)
    every = typical.prompts if math.isnan(every) else int(every)
    stored = (typical.prompts, round(typical.samples))
    seeds_of = [{int(seed) for seed in of_arm(runs, arm)["seed"]} for arm in arms]
    for seeds in SEEDS:
        wanted, models = set(seeds_to_run(runs, arms, seeds)), seeds * len(arms)
        trained = sum(len(wanted & own) for own in seeds_of)
        for fraction, samples in itertools.product(FRACTIONS, _samples(typical, job)):
            prompts = max(2, round(fraction * every))
            answering = answering_seconds(job, prompts, samples)
            answered = trained if (prompts, samples) == stored else -1  # the start model answers anew as well
            yield Design(
                seeds,
                prompts,
                samples,
                typical.detectable(seeds, prompts, samples),
                models * training + (models + 1) * answering,
                (models - trained) * training + (models - answered) * answering,
            )


def _samples(typical: Components, job: Job) -> list[int]:
    """How many answers a prompt: one where decoding is greedy, as stored where one more would add what is not known."""
    stored = max(1, round(typical.samples))
    if job.answers.temperature == 0.0:
        return [1]
    return [stored] if np.isnan(typical.decoding) else sorted({*SAMPLES, stored})


def _last(value: float) -> float:
    return math.inf if math.isnan(value) else value
