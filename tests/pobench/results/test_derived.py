"""Frames that are made from others, on first use."""

from __future__ import annotations

import pandas as pd

from pobench.results import metrics
from pobench.results.comparable import ordered, side_by_side, split


def test_scores_are_made_once_and_only_where_they_are_read(synthetic, monkeypatch) -> None:
    made, complete, asked = synthetic.make_frames(prompts=4, pairs=4, steps=2), metrics.complete, []
    monkeypatch.setattr(metrics, "complete", lambda *frames, **seed: asked.append(seed) or complete(*frames, **seed))
    (group,) = split(ordered(made), seed=7)
    both = side_by_side([group, group])
    assert "scores" in group.frames and "scores" in list(group.frames) and not asked
    scores = group.frames["scores"]
    pd.testing.assert_frame_equal(scores, complete(ordered(made), seed=7))
    two = group.frames.of_runs(made["runs"]["run"][:2])
    assert set(two["scores"]["run"]) == set(made["runs"]["run"][:2])
    assert len(both.frames["scores"]) == 2 * len(scores)
    assert asked == [{"seed": 7}]
