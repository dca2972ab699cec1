"""Where an arm's values come from stands beside its numbers, and a tuned number beside one that was not chosen by."""

from __future__ import annotations

import json

import pytest

from pobench import registry
from pobench.reporting import plot
from pobench.reporting.draw import draw
from pobench.reporting.tables import make_table
from pobench.results.derived import Frames

SEARCH = {"trials": 8, "metric": "pass_rate", "value": 0.7, "low": 0.6, "high": None, "n": 120, "study": "dpo-grid-1"}


@pytest.fixture(scope="module")
def tuned(seeded) -> Frames:
    """DPO's values chosen by a search, SimPO's at their defaults; two seeds of each."""
    runs = seeded["runs"].copy()
    of_dpo = runs["loss"] == "dpo"
    runs.loc[of_dpo, "values"], runs.loc[of_dpo, "trials"], runs.loc[of_dpo, "tuned"] = "tuned", 8.0, json.dumps(SEARCH)
    return Frames({**seeded, "runs": runs})


@pytest.mark.parametrize("name", ["main-table", "settings-table"])
def test_a_table_of_losses_says_where_their_values_come_from(name, tuned) -> None:
    table = draw(registry.figures.get(name), tuned).set_index("Loss")
    assert dict(table["Values"].drop("Start model", errors="ignore")) == {"DPO": "tuned (8 trials)", "SimPO": "default"}


@pytest.mark.parametrize("name", ["pass-rate", "gains-over-dpo"])
def test_the_numbers_behind_a_figure_of_losses_say_it_too(name, tuned) -> None:
    data = draw(registry.figures.get(name), tuned).data
    assert set(data.loc[data["loss"] == "simpo", "values"]) == {"default"}


def test_a_tuned_number_stands_beside_the_one_on_prompts_that_nothing_was_chosen_by(tuned) -> None:
    table = draw(registry.figures.get("tuned-values"), tuned)
    (row,) = table.to_dict("records")
    promised, given = row["pass_rate@tuning split"], row["pass_rate@reported"]
    assert (row["Loss"], row["Values"], row["Seeds"]) == ("DPO", "tuned (8 trials)", 2)
    assert (promised.value, promised.low, promised.n) == (0.7, 0.6, 120) and promised.high != promised.high
    of_dpo = draw(registry.figures.get("main-table"), tuned).set_index("Loss").loc["DPO", "pass_rate"]
    assert given == of_dpo and given.low < given.value < given.high
    heads = [head.title for head in make_table(table).heads]
    assert heads[2:4] == ["Pass rate (tuning split)", "Pass rate (reported)"]


def test_without_a_tuned_loss_the_table_says_so(seeded) -> None:
    with pytest.raises(plot.NothingToDraw, match="pobench tune"):
        draw(registry.figures.get("tuned-values"), seeded)
