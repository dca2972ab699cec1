"""The row of a run, from its small files and what the registry says of its loss."""

from __future__ import annotations

import pytest

from pobench.results.index import Entry, run_row


@pytest.mark.parametrize(
    ("loss", "stored", "said"),
    [
        ("dpo", "pairs", "pairs"),
        ("plackett_luce", "pairs", "pairs read as lists"),
        ("kto_unpaired", "pairs", "pairs read as answers"),
        ("plackett_luce", "lists", "lists"),
        ("kto_unpaired", "", ""),
        ("a_plugin_that_is_not_loaded", "pairs", "pairs"),
    ],
)
def test_a_run_says_what_it_was_trained_on_and_how_pairs_were_read(loss: str, stored: str, said: str) -> None:
    row = {"kind": "loss", "loss": loss, "title": loss, "reference": "", "reference_seconds": 0.0, "trained_on": stored}
    assert run_row(Entry({**row, "configured_reference": "cached"}, {}))["trained_on"] == said
