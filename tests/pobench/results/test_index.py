"""The row of a run, from its small files and what the registry says of its loss."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from pobench.analysis.settings_table import settings_table
from stores import trained_run

from pobench.results.arms import arms_of
from pobench.results.index import Entry, read_entry, run_row

ROW = {
    **{"run": "s/a", "setting": "s", "kind": "loss", "loss": "plackett_luce", "title": "", "settings": "{}", "seed": 1},
    **{"lr": 1e-6, "epochs": 1.0, "batch_size": 8, "pairs": 7, "length_bias": 0.0, "order": "a", "values": "default"},
    **{
        "reference": "",
        "reference_seconds": 0.0,
        "configured_reference": "cached",
        "tuned": "{}",
        "trials": float("nan"),
    },
}


@pytest.mark.parametrize(
    ("loss", "stored", "said"),
    [
        ("dpo", "pairs", "pairs"),
        ("plackett_luce", "pairs", "pairs read as lists"),
        ("kto_unpaired", "pairs", "pairs read as answers"),
        ("kto_unpaired", "pairs from all", "pairs from all read as answers"),
        ("plackett_luce", "lists", "lists"),
        ("kto_unpaired", "", ""),
        ("a_plugin_that_is_not_loaded", "pairs", "pairs"),
    ],
)
def test_a_run_says_what_it_was_trained_on_and_how_pairs_were_read(loss: str, stored: str, said: str) -> None:
    row = {"kind": "loss", "loss": loss, "title": loss, "reference": "", "reference_seconds": 0.0, "trained_on": stored}
    assert run_row(Entry({**row, "configured_reference": "cached"}, {}))["trained_on"] == said


def test_runs_on_lists_and_on_pairs_read_as_lists_are_two_arms_that_say_so() -> None:
    plain = run_row(entry := Entry({**ROW, "trained_on": "lists"}, {}))
    runs = pd.DataFrame([plain, run_row(Entry({**entry.row, "run": "s/b", "trained_on": "pairs"}, {}))])
    assert [arm.label for arm in arms_of(runs)] == [
        "Plackett-Luce (trained on = lists)",
        "Plackett-Luce (trained on = pairs read as lists)",
    ]
    of_lists = runs.assign(loss="dpo", title="DPO", trained_on=["pairs", "pairs from adjacent"])
    assert [arm.label for arm in arms_of(of_lists)] == [
        "DPO (trained on = pairs)",
        "DPO (trained on = pairs from adjacent)",
    ]
    pairs = runs.assign(loss="dpo", title="DPO", trained_on="pairs")
    assert len(arms_of(pairs)) == 1 and arms_of(pairs)[0].id == arms_of(pairs.drop(columns="trained_on"))[0].id


def test_the_table_of_settings_names_what_is_not_pairs() -> None:
    runs = pd.DataFrame([run_row(Entry({**ROW, "trained_on": read}, {})) for read in ("pairs", "lists")])
    table = settings_table(runs.assign(run=["s/a", "s/b"]))
    assert list(table["Pairs"]) == ["7 lists", "7 read as lists"] and set(table.columns) >= {"Loss", "Values"}


def test_a_run_without_heldout_pairs_is_finished_where_a_later_stage_is(tmp_path: Path) -> None:
    folder = trained_run(tmp_path, "dpo-0123456789ab")
    folder.show({"heldout": "heldout-aaaaaaaaaaaa"})  # `--stages train,answers,judge` names it, and makes none
    assert read_entry(folder).row["status"] == "finished"
    folder.show({"judge": "judge-bbbbbbbbbbbb"})
    assert read_entry(folder).row["status"] == "unfinished"
