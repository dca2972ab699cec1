"""Chains: a loss's arms over the rounds of iterative training, each trained from the models of the one before."""

from __future__ import annotations

import re
from typing import NamedTuple

import pandas as pd

from pobench.results.arms import Arm, arms_of, round_of


class Chain(NamedTuple):
    """One loss over its rounds. label: of its last round, without the round. arms: of the rounds 1, 2, … in order."""

    loss: str
    label: str
    arms: tuple[Arm, ...]


def chains_of(runs: pd.DataFrame) -> list[Chain]:
    """The chains of the frame `runs` that have two rounds or more, by label."""
    facts = {str(row["run"]): row for row in runs.reindex(columns=["run", "round", "begins"]).to_dict("records")}
    every = {run: arm for arm in arms_of(runs, every_round=True) for run in arm.runs}
    chains = []
    for last in arms_of(runs):
        arms = [every[last.runs[0]]]
        while round_of(facts[arms[0].runs[0]]) > 1:
            before = {every[run].id: every[run] for r in arms[0].runs if (run := str(facts[r]["begins"])) in every}
            if len(before) != 1:
                break  # its earlier rounds are not among these runs
            arms = [*before.values(), *arms]
        if len(arms) > 1:
            label = re.sub(r"\(round \d+(, )?", "(", last.label).removesuffix(" ()")
            chains.append(Chain(last.loss, label, tuple(arms)))
    return sorted(chains, key=lambda chain: (chain.label, chain.arms[-1].id))
