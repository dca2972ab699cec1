"""Sentences below a report's card: what failed, what weakens its numbers, and the facts in its first line."""

from __future__ import annotations

import pandas as pd

from pobench.reporting.card import Finding, few
from pobench.reporting.tables import clean, listing, show_number
from pobench.results.arms import begun_from, judges_of
from pobench.results.claims import VERDICTS
from pobench.results.comparable import Comparable, Selection
from pobench.results.scores import DISTINCT

ROUNDS = (
    "A loss trained in rounds stands with its last one, which has pairs of its own; “Rounds of training” shows all."
)


def summarise(
    comparable: Comparable,
    claims: pd.DataFrame | None = None,
    looks: pd.DataFrame | None = None,
) -> list[Finding]:
    """What the card leaves out: failures, what weakens the numbers, and how many of the paper's claims have which verdict.

    claims, looks: the tables `claims` and `looked-before`, if they were drawn. Failures include every arm.
    """
    home, every_arm = comparable.home, comparable.every_arm
    sentences = [*_failures(every_arm), *_sentence("bad", "Looks", looks), *scorecard(claims)]
    if home.left_out:
        sentences.append(Finding("note", "Variants of settings", home.left_out))
    if begun_from(every_arm.frames["runs"]):
        sentences.append(Finding("note", "Rounds", ROUNDS))
    return [*sentences, *_not_judged(every_arm), *_data_order(every_arm)]


def _sentence(tone: str, head: str, table: pd.DataFrame | None) -> list[Finding]:
    """The sentence that a table has for the summary, if any."""
    text = "" if table is None else clean(str(table.attrs.get("summary", "")))
    return [Finding(tone, head, text)] if text else []


def _not_judged(selection: Selection) -> list[Finding]:
    rows = selection.frames.rows("verdicts")
    blank, number = (0, 0) if rows is None else rows.blank("score")
    if not blank:
        return []
    text = f"The judge gave no score for {blank} of {number} answers; they are left out."
    return [Finding("note", "Not judged", text)]


def _data_order(selection: Selection) -> list[Finding]:
    runs = selection.frames["runs"]
    runs = runs[runs["round"].fillna(1) == 1]  # in later rounds each loss has pairs of its own
    orders = runs[runs["loss"] != "start"].dropna(subset=["order"]).query("order != ''")
    alike = orders.groupby(["seed", "epochs"], dropna=False)  # more epochs are another order by what they are
    if (alike["order"].nunique() == 1).all():
        return []
    text = "Runs with the same seed saw pairs in different orders, which may cause part of any difference."
    return [Finding("bad", "Data order", text)]


# ---------------------------------------------------------------- the paper's claims
def scorecard(claims: pd.DataFrame | None) -> list[Finding]:
    """The number of claims with each verdict, and the first of those that were decided, in the table's order."""
    if claims is None:
        return []
    by_verdict = {
        verdict: [f"“{clean(str(claim))}”" for claim in g["Claim"]] for verdict, g in claims.groupby("Verdict")
    }
    measured = len(claims) - len(by_verdict.get("not measured", []))
    counts = []
    for verdict in ("supported", "contradicted"):
        titles = by_verdict.get(verdict, [])
        first = f" ({'; '.join(titles[:2])}{'; …' if titles[2:] else ''})" if titles else ""
        counts.append(f"{len(titles) or 'none'} {verdict}{first}")
    counts += [f"{len(by_verdict[v])} {v}" for v in VERDICTS[2:-1] if v in by_verdict]
    text = f"{measured} of {len(claims)} were measured: {', '.join(counts)}."
    return [Finding("note", "The paper’s claims", text)]


# ---------------------------------------------------------------- failures and warnings
MOST_NAMED = 3  # losses in one sentence


def _failures(selection: Selection) -> list[Finding]:
    """One sentence for each reason, with the losses and seeds that it concerns; of many, the first `MOST_NAMED`."""
    seeds_of: dict[tuple[str, str, str], list[str]] = {}
    runs = selection.frames["runs"]
    left = {row["run"]: row for row in runs[runs["status"] != "finished"].to_dict("records")}
    for arm in selection.arms if left else ():
        for row in sorted((left[run] for run in arm.runs if run in left), key=lambda row: int(row["seed"])):
            reason = "" if row["reason"] is None or pd.isna(row["reason"]) else clean(str(row["reason"]), 400).strip()
            head = "Failed" if row["status"] == "failed" else "Not finished"
            seeds = seeds_of.setdefault((head, clean(arm.label), reason), [])
            seeds += [str(row["seed"])] if len(arm.runs) > 1 else []
    alike: dict[tuple[str, str], list[str]] = {}
    for (head, label, reason), seeds in seeds_of.items():
        which = f" (seed{'s' if len(seeds) > 1 else ''} {listing(seeds)})" if seeds else ""
        alike.setdefault((head, reason), []).append(f"{label}{which}")
    sentences = []
    for (head, reason), labels in alike.items():
        further = len(labels) - MOST_NAMED
        text = "; ".join(labels[:MOST_NAMED]) + (f" and {further} more" if further > 0 else "")
        text += f": {reason}" if reason else ""
        sentences.append(Finding("bad", head, text if text.endswith(".") else f"{text}."))
    return sentences


def both_fell(health: pd.DataFrame | None) -> str:
    """For which losses both log-probabilities fell, and whether the gap still widened; "" if that is not known."""
    if health is None:
        return ""
    moved = [(clean(str(a)), str(b)) for a, b in zip(health["Loss"], health["Both sides"], strict=True) if b]
    if not moved:
        return ""
    fell = [loss for loss, how in moved if how.startswith("both fell")]
    wrong = [loss for loss, how in moved if how.endswith(("no gap", "wrong way"))]
    text = f"Here, on held-out pairs, both fell for {listing(few(fell)) or 'no loss'}."
    if wrong:
        return text + f" {listing(few(wrong))} learned no gap between the two: look into it."
    return text + " Every loss widened the gap between the two."


# ---------------------------------------------------------------- facts
def facts(comparable: Comparable) -> str:
    """The number of losses, seeds, pairs and prompts, the judge and the protocol, in one line."""
    runs, frames = comparable.frames["runs"], comparable.frames
    trained = runs[runs["loss"] != "start"]
    parts = [_count(trained["loss"].nunique(), "loss", "losses")]
    variants = len(comparable.every_arm.trained)
    if variants > trained["loss"].nunique():
        parts.append(f"{variants} variants of settings")
    parts.append(_count(trained["seed"].nunique(), "seed", "seeds"))
    read = trained["trained_on"].fillna("").replace("", "pairs")
    for unit in ("pairs", "lists", "answers"):  # of pairs, also those that losses of lists or of answers read
        of_unit = trained[read.str.startswith(unit)]
        if counts := sorted({int(count) for count in of_unit["pairs"].dropna()}):
            few_many = dict.fromkeys((counts[0], counts[-1]))
            parts.append(f"{'–'.join(map(show_number, few_many))} training {unit}")
    for name, column, one, many in (
        ("heldout", "pair", "held-out pair", "held-out pairs"),
        ("answers", "prompt", "prompt", "prompts"),
    ):
        if rows := frames.rows(name):
            parts.append(_count(rows.distinct(*DISTINCT[name][0])[column].nunique(), one, many))
    if judges := (judges_of(rows) if (rows := frames.rows("verdicts")) else []):
        parts.append(f"judged by {clean(listing(judges))}")
    if comparable.protocol:
        parts.append(f"protocol {comparable.protocol}")
    return " · ".join(parts)


# ---------------------------------------------------------------- words
def _count(number: int, one: str, many: str) -> str:
    return f"{show_number(number)} {one if number == 1 else many}"
