"""Claims about length: of the answers, of what a loss finds likely, and of the labels."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pobench.registry import register_claim
from pobench.results import stats
from pobench.results.arms import Arm, of_arm
from pobench.results.claims import UNMEASURED, Evidence, Measured, between, gap, level, margin, rho_gap, tokens, trained
from pobench.results.contrast import Contrast

RHO = "ρ"
BINS = 8  # of length difference, with equal numbers of pairs, as in the figure; the paper's are 100 tokens wide


@register_claim(
    "margin-positive-everywhere",
    section="4.2",
    says="SimPO's margin is positive whatever the length difference",
    statistic=f"mean reward margin of training pairs in the lowest of {BINS} bins of length difference",
    unit="own unit",
    above=0,
    paper=0.32,
    where="Mistral-Base, Fig. 2a at −200 tokens",
)
def margin_positive_everywhere(e: Evidence) -> Measured:
    arm = e.arm("simpo")
    rows = None if e.trainpairs is None or arm is None else of_arm(e.trainpairs, arm)
    if rows is None or rows.empty:
        return UNMEASURED
    longer = (rows["chosen_length"] - rows["rejected_length"]).to_numpy(float)
    values, pair, run = margin(rows).to_numpy(float), rows["pair"].to_numpy(), rows["run"].to_numpy()
    edges = np.unique(np.quantile(longer, np.linspace(0, 1, BINS + 1))[1:-1])
    inside = [np.searchsorted(edges, longer, side="right") == k for k in range(len(edges) + 1)]
    lowest = stats.least([(values[i], pair[i], run[i]) for i in inside if i.any()])
    return Measured(Contrast(lowest, rows["run"].nunique(), rows["run"].nunique()))


@register_claim(
    "no-ln-margin-negative",
    section="4.2",
    says="Without length normalisation the margin is negative where the winner is shorter",
    statistic="mean reward margin of SimPO w/o LN over training pairs with the shorter winner",
    unit="own unit",
    below=0,
    paper=-8.91,
    where="Mistral-Base, Fig. 2a at −200 tokens",
)
def no_ln_margin_negative(e: Evidence) -> Measured:
    shorter = trained(lambda rows: margin(rows).where(rows["chosen_length"] < rows["rejected_length"]))
    return level("simpo_no_ln", shorter)(e)


register_claim(
    "rho-no-ln-above-dpo",
    section="4.2",
    says="Likelihood follows length more without length normalisation than for DPO",
    statistic="ρ(log-prob per token, length), SimPO w/o LN − DPO",
    unit=RHO,
    above=0,
    paper=0.23,
    where="Mistral-Base, Table 6",
)(rho_gap("simpo_no_ln", "dpo"))

register_claim(
    "rho-dpo-above-simpo",
    section="4.2",
    says="Likelihood follows length more for DPO than for SimPO",
    statistic="ρ(log-prob per token, length), DPO − SimPO",
    unit=RHO,
    above=0,
    paper=0.25,
    where="Mistral-Base, Table 6",
)(rho_gap("dpo", "simpo"))

register_claim(
    "rho-simpo-near-start",
    section="4.2",
    says="SimPO leaves the start model's correlation with length as it was",
    statistic="ρ(log-prob per token, length), SimPO − start; claimed: within ±0.1 (our bound)",
    unit=RHO,
    above=-0.1,
    below=0.1,
    smallest=0.1,
    paper=0.01,
    where="Mistral-Base, Table 6 and Fig. 6a",
)(rho_gap("simpo", "start"))

register_claim(
    "ln-shortens-answers",
    section="4.2",
    says="Length normalisation shortens SimPO's answers",
    statistic="tokens of an answer, SimPO − SimPO w/o LN",
    unit="tokens",
    below=0,
    paper=-152,
    smallest=2,  # as a share of the answer's length (a quarter of the paper's 152 of some 630); worlds answer in 20 to 40
    where="Arena-Hard, Mistral-Base, Table 11",
)(gap("simpo", "simpo_no_ln", tokens, None))


def at_bias(e: Evidence, losses: Sequence[str]) -> list[tuple[Arm, Arm]]:
    """For each loss its arms without and with the largest length bias that all were trained with; empty if none."""
    lines = [line for loss in losses if (line := e.line(loss, "length_bias"))]
    shared = set.intersection(*({value for value, _ in line.points} for line in lines)) if lines else set()
    if len(lines) < len(losses) or 0.0 not in shared or max(shared) <= 0:
        return []
    return [(dict(line.points)[0.0], dict(line.points)[max(shared)]) for line in lines]


@register_claim(
    "ln-helps-dpo-under-bias",
    says="Length normalisation helps DPO where labels prefer length",
    statistic="mean score at the largest length bias, DPO w/ LN − DPO",
    unit="points",
    above=0,
    smallest=1.5,  # a quarter of what it gives DPO in Table 15
)
def ln_helps_dpo_under_bias(e: Evidence) -> Measured:
    arms = at_bias(e, ("dpo_ln", "dpo"))
    return between(e, arms[0][1], arms[1][1]) if arms else UNMEASURED


@register_claim(
    "bias-lengthens-dpo-more",
    says="A length bias of the labels lengthens DPO's answers more than SimPO's",
    statistic="tokens of an answer, what the largest length bias adds: SimPO − DPO",
    unit="tokens",
    below=0,
    smallest=2,  # as `ln-shortens-answers`
)
def bias_lengthens_dpo_more(e: Evidence) -> Measured:
    arms = at_bias(e, ("simpo", "dpo"))
    if not arms:
        return UNMEASURED
    (simpo, simpo_biased), (dpo, dpo_biased) = arms
    signs = ((1.0, simpo_biased), (-1.0, simpo), (-1.0, dpo_biased), (1.0, dpo))
    return Measured(e.contrast([(sign, e.tokens(arm)) for sign, arm in signs]), (simpo, dpo))
