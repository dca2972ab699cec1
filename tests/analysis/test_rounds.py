"""Losses trained in rounds: the last round stands for the loss, and one figure and one table show all."""

from __future__ import annotations

import pandas as pd
import pytest

from pobench import registry
from pobench.columns import FRAMES
from pobench.reporting.draw import draw
from pobench.reporting.plot import NothingToDraw
from pobench.reporting.summary import ROUNDS, summarise
from pobench.results import metrics
from pobench.results.arms import arms_of, lines_of, score_of
from pobench.results.comparable import ordered, split
from pobench.results.derived import Frames
from pobench.results.rounds import chains_of

LATER = {"kto": 2, "ipo": 3}  # the synthetic losses that are made rounds of DPO


@pytest.fixture(scope="module")
def frames(synthetic) -> Frames:
    """Two seeds of SimPO in one round, and of DPO in three; pairs differ between the seeds of a later round."""
    four = {name: synthetic.LOSSES[name] for name in ("simpo", "dpo", *LATER)}
    made = synthetic.make_frames(four, seeds=(1, 2), prompts=16, pairs=40, steps=8)
    runs = made["runs"].astype({"begins": object, "recipe": object, "rounds_reference": object})
    before = {seed: run for run, loss, seed in runs[["run", "loss", "seed"]].itertuples(index=False) if loss == "dpo"}
    settings = runs.loc[runs["loss"] == "dpo", "settings"].iloc[0]
    for loss, number in LATER.items():
        for at in runs.index[runs["loss"] == loss]:
            seed = runs.loc[at, "seed"]
            begins, before[seed] = before[seed], runs.loc[at, "run"]
            facts = {"loss": "dpo", "title": "DPO", "settings": settings, "round": number, "begins": begins}
            facts |= {"recipe": "0a1b2c", "rounds_reference": "last", "pairs": 300 + seed, "order": f"of {at}"}
            runs.loc[at, list(facts)] = list(facts.values())
    made["runs"] = FRAMES["runs"].of(runs)
    return Frames({**made, "scores": metrics.complete(Frames(made))})


def test_the_last_round_stands_for_the_loss_with_all_its_seeds(frames) -> None:
    labels = {arm.label: len(arm.runs) for arm in arms_of(frames["runs"])}
    assert labels == {"Start model": 1, "SimPO": 2, "DPO (round 3)": 2}
    every = {arm.label: len(arm.runs) for arm in arms_of(frames["runs"], every_round=True)}
    assert every == {**labels, "DPO": 2, "DPO (round 2)": 2}


def test_a_round_that_has_not_finished_leaves_the_one_before_it_in_its_place(frames) -> None:
    runs = frames["runs"].copy()
    runs.loc[runs["round"] == 3, "status"] = "unfinished"
    assert "DPO (round 2)" in [arm.label for arm in arms_of(runs)]


def test_runs_of_earlier_versions_are_of_round_1_and_keep_their_arms(synthetic) -> None:
    runs = synthetic.make_frames(seeds=(1, 2), prompts=1, samples=1, pairs=1, steps=1)["runs"]
    columns = ["round", "begins", "rounds_reference", "recipe"]
    now = runs.assign(round=1, begins="", rounds_reference="", recipe="")
    assert arms_of(runs.drop(columns=columns)) == arms_of(runs) == arms_of(now)


def test_a_chain_goes_from_its_first_round_to_its_last(frames) -> None:
    (chain,) = chains_of(frames["runs"])
    assert (chain.loss, chain.label) == ("dpo", "DPO")
    runs = frames["runs"].set_index("run")
    assert [{*runs.loc[list(arm.runs), "round"].fillna(1)} for arm in chain.arms] == [{1}, {2}, {3}]


def test_two_ways_to_go_on_from_one_round_are_two_chains(frames) -> None:
    runs = frames["runs"].copy()
    other = runs[runs["round"] == 2].assign(run=lambda f: f["run"] + "b", rounds_reference="start")
    chains = chains_of(pd.concat([runs, other], ignore_index=True))
    assert [(chain.label, len(chain.arms)) for chain in chains] == [
        ("DPO (reference model = last)", 3),
        ("DPO (reference model = start)", 2),
    ]
    assert chains[0].arms[0] == chains[1].arms[0]


def test_the_figure_has_every_round_of_every_seed_as_it_is_scored(frames) -> None:
    drawn = draw(registry.figures.get("rounds"), frames)
    rates = drawn.data[drawn.data["metric"] == "pass_rate"]
    assert sorted(rates["round"]) == sorted([1, 2, 3] * 3) and (rates["of"] == "all").sum() == 3
    (chain,) = chains_of(frames["runs"])
    for number, arm in enumerate(chain.arms, start=1):
        row = rates[(rates["round"] == number) & (rates["of"] == "all")].iloc[0]
        estimate = score_of(frames["scores"], arm, "pass_rate")
        assert (row["value"], row["low"], row["high"]) == (estimate.value, estimate.low, estimate.high)


def test_the_table_has_a_row_a_round_with_the_reference_and_the_pairs_of_its_seeds(frames) -> None:
    runs = frames["runs"].assign(reference="cached")
    table = draw(registry.figures.get("rounds-table"), Frames({**frames, "runs": runs}))
    assert list(table["Round"]) == [1, 2, 3] and list(table["Reference"]) == ["start", "last", "last"]
    assert list(table["Pairs"]) == [320.0, 301.5, 301.5] and list(table["Seeds"]) == [2, 2, 2]


def test_one_round_is_nothing_to_draw(frames) -> None:
    once = Frames({**frames, "runs": frames["runs"][frames["runs"]["round"].isna()]})
    for name in ("rounds", "rounds-table"):
        with pytest.raises(NothingToDraw, match="--rounds 3"):
            draw(registry.figures.get(name), once)


def test_captions_and_summary_say_that_the_last_round_is_shown(frames) -> None:
    (group,) = split(ordered(frames))
    for name, noted in (("main-table", True), ("rounds-table", False), ("settings-table", False)):
        shown = registry.figures.get(name)
        notes = draw(shown, group.shown_in(shown)).attrs.get("notes", "")
        assert ("Of rounds of training the last is shown." in notes) == noted, name
    assert ROUNDS in [finding.text for finding in summarise(group)]


def test_every_round_is_in_the_table_of_settings_and_none_in_a_sweep(frames) -> None:
    table = draw(registry.figures.get("settings-table"), frames)
    assert {"DPO", "DPO (round 2)", "DPO (round 3)", "SimPO"} <= set(table["Loss"])
    assert lines_of(frames["runs"]) == []


def test_the_order_of_the_data_is_compared_in_the_first_round_alone(frames) -> None:
    (group,) = split(ordered(frames))
    assert not [finding for finding in summarise(group) if "order" in finding.head.lower()]
