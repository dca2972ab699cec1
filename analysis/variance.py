"""Table `variance`: where the noise of a mean score and of a difference of two losses comes from."""

from __future__ import annotations

from dataclasses import asdict

import pandas as pd

from pobench.registry import register_table
from pobench.reporting.plot import NothingToDraw
from pobench.results.arms import arms_of
from pobench.results.next_command import closest_open, sentence
from pobench.results.variance import PARTS, Components, median, noise_of

MOST_PAIRS = 15  # rows of single pairs on the page; of more, the CSV has them
TITLES = dict(zip(PARTS, ("Prompt", "Seed", "Prompt × seed", "Decoding", "Judge"), strict=True))


@register_table("variance", title="Where the noise comes from", chapter="results", order=26)
def variance(
    runs: pd.DataFrame,
    verdicts: pd.DataFrame,
    answers: pd.DataFrame | None = None,
    comparisons: pd.DataFrame | None = None,
) -> pd.DataFrame:
    """Standard deviations in points that one prompt, one seed, one prompt with one seed, one sampled answer and one reading
    of the judge give a score, by analysis of variance (unbiased estimates; a negative one is set to 0). For the mean score
    of each loss with two seeds or more, and for the difference of two over the seeds that both have, from which what both
    share has cancelled. A dash: it cannot be told apart; with one sample a prompt, decoding is part of prompt × seed, and a
    judge that gave one verdict an answer is part of decoding. Mostly: the largest share of the variance of this mean, so
    what to have more of. Medians over losses and over pairs are first; `pobench plan` computes from them."""
    noise = noise_of(runs, verdicts, answers, arms_of(runs), comparisons)
    if not noise.of_arms:
        raise NothingToDraw("No loss was judged with two seeds or more.")
    alone = [(arm.label, "", found) for arm, found in noise.of_arms.items()]
    pairs = [(ours.label, theirs.label, found) for (ours, theirs), found in noise.of_pairs.items()]
    first = [(f"Median of {len(alone)} losses", "", median([found for *_, found in alone]))]
    if pairs:
        first.append((f"Median of {len(pairs)} pairs", "each other", median([found for *_, found in pairs])))
    shown = [*first, *alone, *(pairs if len(pairs) <= MOST_PAIRS else [])]
    table = pd.DataFrame([_row(*entry) for entry in shown])
    table.attrs["data"] = pd.DataFrame([_stored(*entry) for entry in [*first, *alone, *pairs]])
    closest = closest_open(runs, verdicts, answers, arms_of(runs), comparisons)
    table.attrs["notes"] = " ".join([*_notes([*alone, *pairs], len(pairs)), *([sentence(closest)] if closest else [])])
    return table


Entry = tuple[str, str, Components]  # label, label of what is subtracted ("": nothing), components


def _row(label: str, minus: str, found: Components) -> dict[str, object]:
    shares = {name: share for name, share in found.shares().items() if share == share}
    largest = max(shares, key=lambda name: shares[name], default="")
    deviations = {TITLES[name]: getattr(found, name) ** 0.5 for name in PARTS}
    mostly = f"{TITLES[largest].lower()} {shares[largest]:.0%}" if largest else "–"
    counts = {"Prompts": found.prompts, "Seeds": found.seeds, "Samples": found.samples}
    return {
        "Loss": label,
        "Minus": minus,
        **counts,
        **{f"σ {k.lower()}": v for k, v in deviations.items()},
        "Mostly": mostly,
    }


def _stored(label: str, minus: str, found: Components) -> dict[str, object]:
    shares = {f"share_{name}": share for name, share in found.shares().items()}
    return {"Loss": label, "minus": minus, **asdict(found), **shares, "negative": " ".join(found.negative)}


def _notes(entries: list[Entry], pairs: int) -> list[str]:
    notes = []
    below = [name for *_, found in entries for name in found.negative]
    if below:
        each = ", ".join(f"{TITLES[name].lower()} {below.count(name)}" for name in PARTS if name in below)
        notes.append(f"Estimates below 0, set to 0, of {len(entries)} losses and pairs: {each}.")
    if pairs > MOST_PAIRS:
        notes.append(f"The CSV has each of the {pairs} pairs.")
    return notes
