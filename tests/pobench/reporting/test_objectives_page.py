"""The page of one run of every objective."""

from __future__ import annotations

from pobench.reporting.objectives_page import objectives_page
from tests.frames import make_frames


def test_every_judged_loss_has_a_row_and_the_others_are_named_with_the_reason() -> None:
    page = objectives_page(make_frames(failed=("kto",)))
    rows = {line.split("`")[1]: line for line in page.splitlines() if line.startswith("| `")}
    assert list(rows) == ["dpo", "ipo", "simpo", "simpo_no_ln"]
    assert "| pairs | `reference` |" in rows["dpo"] and "| pairs | – |" in rows["simpo"]
    (missing,) = (line for line in page.splitlines() if line.startswith("Without a row"))
    assert "`kto` (failed" in missing and "`orpo` (not run)" in missing and "`dpo`" not in missing


def test_the_gain_is_that_over_the_start_model_and_the_time_leaves_waiting_out() -> None:
    frames = make_frames()
    frames["runs"].loc[frames["runs"]["loss"] == "dpo", ["seconds", "waited"]] = (12.0, 7.5)
    means = 100 * frames["verdicts"].groupby("run")["score"].mean()
    gain = means[means.index.str.contains("/dpo-")].item() - means[means.index.str.contains("/start-")].item()
    (row,) = (line for line in objectives_page(frames).splitlines() if line.startswith("| `dpo`"))
    assert "| 4.5 |" in row and f"| {gain:+.1f} [" in row
