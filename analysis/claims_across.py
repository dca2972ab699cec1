"""Claims that compare settings: another start model, or pairs that another ranker chose."""

from __future__ import annotations

from functools import partial

from pobench.registry import register_claim
from pobench.results.across import gap_change, setting_gap
from pobench.results.claims import QUALITY

claim = partial(register_claim, subject="Several settings")

POINTS = "points"
LOSSES = ("rrhf", "slic_hf", "dpo", "ipo", "cpo", "kto", "orpo", "rdpo", "simpo")

claim(
    "instruct-above-base",
    says="Instruct models score higher than Base models after the same training",
    statistic="mean score of the paper's losses, `llama3-instruct` − `llama3-base` (or the same of Mistral)",
    unit=POINTS,
    above=0,
    paper=19.6,
    where="LC points, Llama-3, mean of nine losses, Table 10",
    across=True,
)(setting_gap([("llama3-instruct", "llama3-base"), ("mistral-instruct", "mistral-base")], LOSSES))

claim(
    "orpo-needs-sft",
    says="ORPO is better from an SFT model than from the base model",
    statistic="mean score of ORPO, `X` − a setting `X-raw` that starts from the base model, X = `mistral-base`, `llama3-base`",
    unit=POINTS,
    above=0,
    smallest=QUALITY,
    where="in words",
    across=True,
)(setting_gap([("mistral-base", "mistral-base-raw"), ("llama3-base", "llama3-base-raw")], ("orpo",)))

claim(
    "better-ranker-narrows-gap",
    says="A better ranker of the pairs narrows SimPO's lead over DPO",
    statistic="mean score, SimPO − DPO: `llama3-instruct-v0.2` − `llama3-instruct`",
    unit=POINTS,
    below=0,
    paper=-2.6,
    where="raw WR points, Tables 10 and 12 (LC: +1.1)",
    across=True,
)(gap_change("llama3-instruct-v0.2", "llama3-instruct", ("simpo", "dpo")))
