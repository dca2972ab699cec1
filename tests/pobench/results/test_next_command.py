"""The next command: the closest open pair, how many seeds would decide it, and the words to type."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

from pobench.results.arms import Arm, arms_of
from pobench.results.contrast import all_pairs
from pobench.results.next_command import closest_open, run_command, seeds_to_run, sentence


def world(synthetic, gains: dict[str, float], seeds: int, spread: float, prompts: int = 60) -> tuple:
    """Runs of losses with these mean scores, equal on all prompts up to noise of 0.1, and a spread over seeds."""
    losses = {name: synthetic.LOSSES["dpo"] for name in gains}
    frames = synthetic.make_frames(
        losses, seeds=tuple(range(42, 42 + seeds)), prompts=prompts, samples=1, pairs=2, steps=1
    )
    runs, verdicts, rng = frames["runs"], frames["verdicts"].copy(), np.random.default_rng(3)
    loss_of = dict(zip(runs["run"], runs["loss"], strict=True))
    luck = {run: 0.5 + gains.get(loss, 0.0) + rng.normal(0, spread) for run, loss in loss_of.items()}
    verdicts["score"] = verdicts["run"].map(luck) + rng.normal(0, 0.1, len(verdicts))
    return runs, verdicts, arms_of(runs)


def test_the_closest_open_pair_gets_enough_seeds(synthetic) -> None:
    runs, verdicts, arms = world(synthetic, {"a": 0.0, "b": 0.004, "c": 0.03}, 3, 0.008)
    closest = closest_open(runs, verdicts, None, arms)
    assert closest is not None and closest.seeds is not None and 3 < closest.seeds < 20
    ratios = {}
    for pair in all_pairs(runs, verdicts, None, arms):
        if not (pair.ours.is_start or pair.theirs.is_start or pair.differs) and pair.gap.crossed:
            ratios[pair.ours.loss, pair.theirs.loss] = abs(pair.gap.estimate.value) / pair.gap.crossed.detectable()
    assert (closest.pair.ours.loss, closest.pair.theirs.loss) == max(ratios, key=ratios.__getitem__)
    listed = ",".join(str(42 + k) for k in range(closest.seeds))
    assert closest.command.endswith(f"--setting tiny --seeds {listed}") and closest.command in sentence(closest)


def test_a_difference_of_nothing_needs_more_than_seeds(synthetic) -> None:
    runs, verdicts, arms = world(synthetic, {"a": 0.0, "b": 0.0}, 3, 0.0, prompts=12)
    closest = closest_open(runs, verdicts, None, arms)
    assert closest is not None and closest.seeds is None
    assert "no number of seeds below 20 would separate them" in sentence(closest)


def test_nothing_is_proposed_where_all_is_decided_or_no_pair_has_two_seeds(synthetic) -> None:
    assert closest_open(*world(synthetic, {"a": 0.0, "b": 0.3}, 3, 0.001)[:2], None, []) is None
    runs, verdicts, arms = world(synthetic, {"a": 0.0, "b": 0.3}, 3, 0.001)
    assert closest_open(runs, verdicts, None, arms) is None
    runs, verdicts, arms = world(synthetic, {"a": 0.0, "b": 0.3}, 1, 0.001)
    assert closest_open(runs, verdicts, None, arms) is None


@pytest.fixture
def rows() -> tuple[pd.DataFrame, list[Arm]]:
    """DPO with two seeds and IPO with three; β was set, the learning rate of both too."""
    made = []
    for loss, settings, seeds in (("dpo", {"beta": 0.5}, (42, 7)), ("ipo", {"tau": 0.1}, (42, 43, 44))):
        sources = {"beta": "--set", "tau": "tiny: a sweep", "lr": "--set", "epochs": "tiny"}
        for seed in seeds:
            row = {"run": f"tiny/{loss}-{seed}", "setting": "tiny", "loss": loss, "title": loss, "seed": seed}
            made.append(
                {**row, "settings": json.dumps(settings), "sources": json.dumps(sources), "lr": 1e-5, "epochs": 2.0}
            )
    runs = pd.DataFrame(made)
    return runs, arms_of(runs)


def test_stored_seeds_come_first(rows) -> None:
    assert seeds_to_run(*rows, 1) == [42]  # the one that both have
    assert seeds_to_run(*rows, 4) == [7, 42, 43, 44]
    assert seeds_to_run(*rows, 6) == [7, 42, 43, 44, 45, 46]


def test_what_was_set_is_set_again(rows) -> None:
    assert run_command(*rows, [42, 43], "mine.yaml", ["answers.samples=4"]) == (
        "pobench run --losses dpo,ipo --setting mine.yaml --seeds 42,43 --set dpo.beta=0.5 --set train.lr=1e-05 "
        "--set answers.samples=4"
    )
    rows[0].loc[rows[0]["loss"] == "ipo", "lr"] = 2e-5  # one command cannot set two rates
    assert "train.lr" not in run_command(*rows, [42])
