"""The table `heldout-by-source`: a row for each loss and data set, where held-out pairs come from several."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from pobench import registry
from pobench.columns import FRAMES
from pobench.reporting import plot
from pobench.reporting.draw import draw
from pobench.results.derived import Frames


def test_each_source_has_the_accuracy_and_the_margin_of_its_pairs(synthetic) -> None:
    frames = synthetic.make_frames(prompts=4, pairs=6, steps=1)
    held = frames["heldout"]
    places = held.groupby("run").cumcount()
    frames["heldout"] = held.assign(
        source=np.where(places < 4, "web", "books"), chosen_reward=np.where(places < 4, 1.0, 0.0), rejected_reward=0.5
    )
    table = draw(registry.figures.get("heldout-by-source"), Frames(frames))
    assert list(table["Source"][:2]) == ["books", "web"] and list(table["Pairs"][:2]) == [2, 4]
    assert [e.value for e in table["reward_accuracy"][:2]] == [0.0, 1.0]
    assert [e.value for e in table["margin"][:2]] == [-0.5, 0.5]
    assert not table["Loss"].str.contains("start").any()


def test_pairs_of_one_source_have_no_such_table_and_old_frames_have_the_column(synthetic) -> None:
    frames = synthetic.make_frames(prompts=4, pairs=3, steps=1)
    with pytest.raises(plot.NothingToDraw, match="one source"):
        draw(registry.figures.get("heldout-by-source"), Frames(frames))
    old = pd.DataFrame([{"run": "a/b", "pair": "1", "chosen_logp": -1.0}])
    assert FRAMES["heldout"].of(old)["source"].isna().all()
