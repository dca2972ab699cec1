"""Frames that are made from others, on first use."""

from __future__ import annotations

import pandas as pd
import pytest

from pobench.columns import FRAMES
from pobench.results import metrics
from pobench.results.comparable import ordered, side_by_side, split
from pobench.results.derived import Frames
from pobench.results.rows import Rows


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


def test_frames_say_what_they_hold_a_line_a_frame_and_make_nothing_for_it(synthetic) -> None:
    made = synthetic.make_frames(prompts=4, pairs=4, steps=2)
    frames = Frames(
        made, {"mine": lambda: pytest.fail("made")}, {"scores": Rows("scores", ["a"], lambda *_: pytest.fail("read"))}
    )
    head, *lines = repr(frames).splitlines()
    assert head == "Frames of 6 runs; setting: 'tiny'"
    assert [line.split()[0] for line in lines] == [name if name in FRAMES else repr(name) for name in frames]
    said = {line.split()[0]: " ".join(line.split()[1:]) for line in lines}
    assert said["answers"] == f"{len(made['answers'])} rows an answer of a run to an evaluation prompt"
    assert (
        said["scores"].startswith("read when asked for a metric of a run") and said["'mine'"] == "made when asked for"
    )
    assert said["gradients"].startswith("made when asked for a held-out pair")
    assert len(frames["gradients"]) and f"{len(frames['gradients'])} rows" in repr(frames)
    for name in ("runs", "steps", "verdicts"):
        cells = f"<tr><td>{name}</td><td>{len(made[name])} rows</td><td>{FRAMES[name].row}</td></tr>"
        assert cells in frames._repr_html_().replace("&#x27;", "'")


def test_names_from_data_do_nothing_where_frames_are_printed(synthetic) -> None:
    made = synthetic.make_frames({}, setting="<img src=x>\x1b[2J\n&", prompts=1, pairs=1)
    frames = Frames({**made, "<b>\x1b": made["runs"]})
    assert "\x1b" not in repr(frames) and repr(frames).count("\n") == len(frames)
    html = frames._repr_html_()
    assert "<img" not in html and "<b>" not in html and "&lt;img src=x&gt;" in html and "&lt;b&gt;" in html
    assert "\x1b" not in html
    several = Frames({"runs": pd.concat([made["runs"].assign(setting=f"s{i}") for i in range(11)])})
    assert repr(several).splitlines()[0].endswith("'s7' and 3 more")
    assert repr(Frames({})).splitlines()[0] == "Frames"
