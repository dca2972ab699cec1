"""Writes docs/objectives-on-tiny.md, what became of every objective on setting `tiny`, from stored runs:

python -m pobench.reporting.objectives_page RUNS > docs/objectives-on-tiny.md
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import pandas as pd

from pobench.printing import say
from pobench.registry import get_loss, losses
from pobench.results.arms import arms_of
from pobench.results.contrast import Pair, gains
from pobench.results.load import load_frames

SETTING = "tiny"

INTRODUCTION = """\
# Every objective on `tiny`

<!-- Written by `python -m pobench.reporting.objectives_page RUNS` from stored runs. -->

A check that every objective trains, and **no ranking**: one seed each, and most at values that nobody searched. `tuned`: the
values that eight trials chose on `tiny`; `default`: those of the loss's own file, at the learning rate that the setting has
for all; `set`: with a value set by hand. The rows stand in the order of their names. Every loss trained on the same {pairs}
pairs, {batch} a step, for {epochs} epochs, and answered the same {prompts} prompts, {samples} samples each. A loss of lists
takes a pair as a list of two, a loss of single answers as two answers.

Gain: the mean share of answers that meet every demand, minus the start model's ({start} %), in points, paired by prompt; with
a 95 % interval for other prompts (n = {prompts}), not for other seeds. Time: of training, on one thread of a processor, in
seconds; other work slowed it, and waiting is left out.

`pobench run --losses all,rated --setting tiny --set answers.samples={samples} --stages train,answers,judge` makes
the runs{more}."""


def objectives_page(frames: Mapping[str, pd.DataFrame]) -> str:
    """The page as Markdown. frames: those of one setting, of which a loss has one run."""
    of_losses = frames["runs"][frames["runs"]["kind"] == "loss"]
    trained = of_losses[of_losses["seconds"].notna() & (of_losses["status"] != "failed")].sort_values("loss")
    found = gains(frames["runs"], frames["verdicts"], frames["answers"], arms_of(frames["runs"]))
    by_run = {pair.ours.runs[0]: pair for pair in found}
    judged = trained[trained["run"].isin(by_run)]
    lines = [
        "| objective | unit | needs | values | s | gain, points |",
        "| --- | --- | --- | --- | ---: | ---: |",
        *(_row(run, by_run[run["run"]]) for run in judged.to_dict("records")),
    ]
    return (
        "\n\n".join([_introduction(frames, judged), "\n".join(lines), *_not_there(of_losses, set(judged["loss"]))])
        + "\n"
    )


def _introduction(frames: Mapping[str, pd.DataFrame], judged: pd.DataFrame) -> str:
    """The words before the table. judged: the rows of `runs` that it has."""
    answers, verdicts = frames["answers"], frames["verdicts"]
    of_start = frames["runs"].loc[frames["runs"]["loss"] == "start", "run"]
    start = 100 * verdicts.loc[verdicts["run"].isin(of_start), "score"].mean()
    composed = [f"`{name}`" for name in judged["loss"] if name not in losses.names()]
    return INTRODUCTION.format(
        pairs=int(judged["pairs"].iloc[0]),
        batch=int(judged["batch_size"].iloc[0]),
        epochs=f"{judged['epochs'].iloc[0]:g}",
        prompts=answers["prompt"].nunique(),
        samples=answers["sample"].nunique(),
        start=f"{start:.1f}",
        more=f"; the modified ones are named as they stand: {', '.join(composed)}" if composed else "",
    )


def _row(run: Mapping[Any, Any], pair: Pair) -> str:
    """A row of the table. run: the row of `runs`."""
    loss = get_loss(str(run["loss"]))
    estimate = pair.gap.estimate
    interval = f"{estimate.value:+.1f} [{estimate.low:+.1f}, {estimate.high:+.1f}]".replace("-", "−")
    needs = ", ".join(f"`{name}`" for name in sorted(loss.needs)) or "–"
    cells = (f"`{loss.name}`", loss.unit, needs, run["values"], f"{run['seconds'] - run['waited']:.1f}", interval)
    return "| " + " | ".join(map(str, cells)) + " |"


def _not_there(of_losses: pd.DataFrame, there: set[str]) -> list[str]:
    """A paragraph on the losses that have no row, and why; none where every registered loss has one."""
    reasons = dict(zip(of_losses["loss"], of_losses["status"] + of_losses["reason"].map(_behind), strict=True))
    missing = [f"`{name}` ({reasons.get(name, 'not run')})" for name in losses.names() if name not in there]
    return [f"Without a row: {', '.join(missing)}."] if missing else []


def _behind(reason: Any) -> str:
    return f": {reason}" if isinstance(reason, str) and reason else ""


if __name__ == "__main__":
    say(objectives_page(load_frames(sys.argv[1], SETTING)), end="", out=True)
