"""Tables `claims`, `claims-across-settings` and `checks`: the paper's testable claims with the verdict of these runs, and what
must hold by definition.

The claims themselves are in the other files of this folder (`claims_*.py`), each registered by its name; the rule of the
verdict is in `pobench/results/claims.py`.
"""

from __future__ import annotations

import math

import pandas as pd

from pobench.registry import Claim, register_table
from pobench.registry import claims as registered
from pobench.reporting import plot
from pobench.results.across import Settings
from pobench.results.claims import DECIDED, VERDICTS, power, verdict
from pobench.results.evidence import Evidence, Measured
from pobench.results.rows import Rows
from pobench.types import Estimate


@register_table("claims", title="The paper's claims on these runs", chapter="paper", order=2, every_arm=True)
def claims(
    runs: pd.DataFrame,
    heldout: Rows | None = None,
    answers: Rows | None = None,
    verdicts: Rows | None = None,
    trainpairs: Rows | None = None,
    benchmarks: pd.DataFrame | None = None,
    gradients: Rows | None = None,
    questions: pd.DataFrame | None = None,
) -> pd.DataFrame:
    """One rule decides every claim. Supported: the whole 95 % interval, for other prompts and other seeds, lies inside the
    claimed range; contradicted: it lies outside; no effect: it lies within the smallest effect of interest around zero,
    which is a quarter of the paper's own number; undecided: otherwise, or with two seeds; one run: a side has one seed;
    not comparable: the losses were not tuned alike; not measured: n = 0. Power: how often runs like these would support the
    claim if the paper's number were the true one here; below a half, these runs could hardly have shown it. Where a loss was
    trained with several values of its settings, the setting's own values count. Differences are paired by prompt, pair or
    question, and by seed. The paper measured other models with other judges: compare the side of a number, not its size.
    Each claim is tested by itself: of twenty that are false, one may be supported by chance."""
    evidence = Evidence(runs, heldout, answers, verdicts, trainpairs, benchmarks, gradients, questions)
    return _card([claim for claim in _ordered() if not claim.identity and not claim.across], evidence)


@register_table(
    "claims-across-settings",
    title="The paper's claims about several settings",
    chapter="paper",
    order=3,
    every_setting=True,
)
def claims_across_settings(runs: pd.DataFrame, verdicts: Rows, answers: Rows | None = None) -> pd.DataFrame:
    """The claims that compare runs of one setting with runs of another: another start model, or pairs that another ranker
    chose. Only scores of the same prompts by the same judge are compared, of a judge that grades each answer by itself. Rules
    and columns are those of each setting's own claims."""
    settings = Settings.of(runs, {"verdicts": verdicts, "answers": answers})
    if len(settings.groups) < 2:
        raise plot.NothingToDraw("These are runs of one setting; `pobench.table` draws it of all.")
    return _card([claim for claim in _ordered() if claim.across], settings)


@register_table("checks", title="What must hold by definition", chapter="training", order=60)
def checks(runs: pd.DataFrame, heldout: pd.DataFrame) -> pd.DataFrame:
    """Identities that follow from a loss's definition. They are no evidence for the paper: one that does not hold is a fault of
    the program or of its arithmetic."""
    evidence, rows = Evidence(runs, heldout), []
    for claim in _ordered():
        if claim.identity and (found := claim.function(evidence).found).estimate.n:
            holds = claim.above < found.estimate.value < claim.below
            word = "holds" if holds else "does not hold"
            rows.append(
                {
                    "Identity": claim.says,
                    "": word,
                    "Ours": found.estimate,
                    "Unit": claim.unit,
                    "Statistic": claim.statistic,
                }
            )
    if not rows:
        raise plot.NothingToDraw("No run measures any of the identities.")
    return pd.DataFrame(rows)


def _card(shown: list[Claim], evidence: Evidence | Settings) -> pd.DataFrame:
    """The table of these claims; its CSV is `attrs["data"]`. Raises NothingToDraw where none is measured."""
    rows = _rows(shown, evidence)
    counts = rows["verdict"].value_counts()
    measured = len(rows) - counts.get("not measured", 0)
    if not measured:
        raise plot.NothingToDraw("No run measures any of the paper's claims.")
    decided = sum(counts.get(v, 0) for v in DECIDED)
    table = _shown(rows.sort_values("verdict", key=lambda verdicts: verdicts == "not measured", kind="stable"))
    table.attrs["data"] = rows
    table.attrs["bounds"] = [_bounds(registered.get(name)) for name in table["Name"]]
    table.attrs["marks"] = {"supported": "up", "contradicted": "down"}
    if measured < len(rows):
        table.attrs["folded"] = (measured, f"{len(rows) - measured} claims that these runs do not measure")
    table.attrs["notes"] = (
        f"Of {len(rows)} claims: {', '.join(f'{counts[v]} {v}' for v in VERDICTS if v in counts)}. "
        f"Decided: {decided} of {measured} measured ({100 * decided / measured:.0f} %)."
    )
    return table


def _ordered() -> list[Claim]:
    return sorted((registered.get(name) for name in registered.names()), key=lambda claim: claim.order)


def _rows(shown: list[Claim], evidence: Evidence | Settings) -> pd.DataFrame:
    """A row for each claim, with the columns of `claims.csv`."""
    rows = []
    for claim in shown:
        measured = claim.function(evidence)
        ours, comparable = measured.found.estimate, evidence.comparable(measured)
        there = ours.n > 0
        rows.append(
            {
                "name": claim.name,
                "claim": claim.says,
                "verdict": verdict(claim, measured, comparable),
                "value": ours.value,
                "low": ours.low,
                "high": ours.high,
                "unit": claim.unit,
                "n": ours.n,
                "seeds": measured.found.seeds,
                "runs": measured.found.runs,
                "comparable": ("yes" if comparable else "no") if there else "",
                "smallest_effect": claim.smallest,
                "power": power(claim, measured) if there else math.nan,
                "statistic": "; ".join(filter(None, [claim.statistic, *(_remarks(measured) if there else ())])),
                "paper": "not printed" if claim.paper is None else _number(claim.paper),
                "where": claim.where,
            }
        )
    return pd.DataFrame(rows)


def _remarks(measured: Measured) -> tuple[str, str]:
    """What readers must know of these runs: what the interval rests on, and that sides have different numbers of seeds."""
    found = measured.found
    uneven = f"{found.seeds} seeds on one side, {found.most} on another" if found.most > found.seeds else ""
    return measured.remark, uneven


def _shown(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows as the page prints them."""
    there = rows["n"] > 0
    estimates = [Estimate(*numbers) for numbers in zip(*(rows[k] for k in ("value", "low", "high", "n")), strict=True)]
    return pd.DataFrame(
        {
            "Claim": rows["claim"],
            "Verdict": rows["verdict"],
            "Ours": pd.Series(estimates, rows.index, dtype=object),
            "Unit": rows["unit"],
            "Paper": [", ".join(filter(None, pair)) for pair in zip(rows["paper"], rows["where"], strict=True)],
            "Seeds": rows["seeds"].where(there),
            "Smallest effect": rows["smallest_effect"],
            "Power, %": 100 * rows["power"],
            "Statistic": rows["statistic"],
            "Name": rows["name"],
        }
    )


def _bounds(claim: Claim) -> list[float]:
    """The numbers beside which an interval decides the claim."""
    ends = (claim.neutral - claim.smallest, claim.neutral, claim.neutral + claim.smallest, claim.above, claim.below)
    return [end for end in ends if math.isfinite(end)]


def _number(value: float) -> str:
    return f"{value:g}".replace("-", "−")
