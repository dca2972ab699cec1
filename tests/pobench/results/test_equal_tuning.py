"""Which arms had equal chances, by where their values come from."""

from __future__ import annotations

import itertools

import pandas as pd
import pytest

from pobench.columns import FRAMES
from pobench.results.arms import Arm
from pobench.results.equal_tuning import equally_tuned, values_of

ROWS = {  # arm: loss, values, trials of its runs
    "start": ("start", [("", None)]),
    "tuned": ("simpo", [("tuned", 8)]),
    "tuned too": ("dpo", [("tuned", 8), ("tuned", 8)]),
    "tuned longer": ("ipo", [("tuned", 12)]),
    "tuned once": ("cpo", [("tuned", 1)]),
    "default": ("kto", [("default", None)]),
    "default too": ("orpo", [("default", None)]),
    "paper": ("rdpo", [("paper", None)]),
    "paper too": ("rrhf", [("paper", None)]),
    "by hand": ("slic_hf", [("set", None)]),
    "by hand too": ("repo", [("set", None)]),
    "mixed": ("nca_pair", [("tuned", 8), ("set", None)]),
    "mixed too": ("rso", [("tuned", 8), ("set", None)]),
    "earlier": ("bco_pair", [(None, None)]),
    "earlier too": ("exo_pair", [(None, None)]),
}
ARMS = {
    name: Arm(name, loss, name, tuple(f"t/{loss}-{i}" for i in range(len(runs)))) for name, (loss, runs) in ROWS.items()
}
RUNS = FRAMES["runs"].of(
    {"run": run, "loss": loss, "values": values, "trials": trials}
    for name, (loss, runs) in ROWS.items()
    for run, (values, trials) in zip(ARMS[name].runs, runs, strict=True)
)
ALIKE = {("tuned", "tuned too"), ("default", "default too"), ("paper", "paper too")}


@pytest.mark.parametrize(("a", "b"), itertools.combinations([name for name in ROWS if name != "start"], 2))
def test_losses_compare_where_both_were_searched_alike_or_not_at_all(a, b) -> None:
    assert equally_tuned(RUNS, ARMS[a], ARMS[b]) == equally_tuned(RUNS, ARMS[b], ARMS[a]) == ((a, b) in ALIKE)


@pytest.mark.parametrize("other", ROWS)
def test_a_start_model_goes_with_any_arm(other) -> None:
    assert equally_tuned(RUNS, ARMS["start"], ARMS[other]) and equally_tuned(RUNS, ARMS[other], ARMS["start"])


def test_arms_of_one_loss_differ_in_the_value_that_is_compared() -> None:
    assert equally_tuned(RUNS, ARMS["tuned"], ARMS["by hand"]._replace(loss="simpo"))


def test_a_reader_is_told_where_the_values_come_from() -> None:
    told = {name: values_of(RUNS, arm) for name, arm in ARMS.items()}
    assert told["start"] == "–" and told["tuned too"] == "tuned (8 trials)" and told["tuned once"] == "tuned (1 trial)"
    assert (told["default"], told["paper"], told["by hand"]) == ("default", "paper", "set by hand")
    assert told["mixed"] == "set by hand, tuned (8 trials)" and told["earlier"] == "not stored"


def test_frames_without_the_columns_say_that_nothing_is_stored() -> None:
    bare = RUNS[["run", "loss"]]
    assert values_of(bare, ARMS["tuned"]) == "not stored" and not equally_tuned(bare, ARMS["tuned"], ARMS["tuned too"])
    assert isinstance(RUNS["trials"].dtype, type(pd.Series([1.0]).dtype))
