"""The page of all claims, docs/claims.md, printed by `pobench list claims --markdown` from the registry."""

from __future__ import annotations

import math
from itertools import groupby

from pobench.registry import Claim, claims

INTRODUCTION = """\
# The claims

<!-- Written by `make docs` from analysis/claims_*.py; edit those files. -->

What the paper says (Meng, Xia, Chen 2024, arXiv 2405.14734) and what runs can decide, in our words. Each claim is a
statistic and the range in which it lies if the claim is true. How runs decide it, and what the seven verdicts mean:
[paper.md](paper.md#how-the-claims-are-decided). `pobench list claims` prints these names; the table `claims` of a report
has their verdicts.

The *smallest effect* is a quarter of the paper's own effect, or named beside the claim where the paper prints no number for
it. *Paper* is the same statistic of the paper's printed tables and figures."""


def claim_page() -> str:
    """The page as Markdown: a table for each subject, then identities."""
    real = [claim for claim in ordered() if not claim.identity]
    parts = [INTRODUCTION]
    for subject, members in groupby(real, key=lambda claim: claim.subject):
        parts += [f"## {subject}", _table(list(members))]
    identities = [claim for claim in ordered() if claim.identity]
    parts += ["## True by definition", "A check of the program, in the report's table `checks`; no evidence."]
    return "\n\n".join([*parts, _table(identities)]) + "\n"


def ordered() -> list[Claim]:
    """Every claim, by subject."""
    return sorted((claims.get(name) for name in claims.names()), key=lambda claim: (claim.order, claim.name))


def claimed(claim: Claim) -> str:
    """The range: `> 0`, `−0.1 to 0.1`."""
    if math.isinf(claim.below):
        return f"> {_number(claim.above)}"
    return (
        f"< {_number(claim.below)}" if math.isinf(claim.above) else f"{_number(claim.above)} to {_number(claim.below)}"
    )


def _table(members: list[Claim]) -> str:
    lines = ["| claim | statistic | claimed | smallest effect | paper |", "| --- | --- | --- | --- | --- |"]
    for c in members:
        paper = ", ".join(
            filter(None, ("not printed" if c.paper is None else _number(c.paper), c.where or "a claim of ours"))
        )
        where = " Several settings." if c.across else ""
        effect = f"{_number(c.smallest)} {c.unit}"
        lines.append(f"| {c.says}.{where} `{c.name}` | {c.statistic} | {claimed(c)} | {effect} | {paper} |")
    return "\n".join(lines)


def _number(value: float) -> str:
    return f"{value:.3g}".replace("-", "−")
