"""Claims about length: of the answers, of what a loss finds likely, and of the labels."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import pandas as pd

from pobench.registry import register_claim
from pobench.results.arms import Line, of_arm, settings_of
from pobench.results.claims import (
    along,
    between,
    gap,
    least,
    level,
    only_where,
    percent_more,
    pull_and_length,
    rho_gap,
    share_by_length,
)
from pobench.results.evidence import UNMEASURED, Evidence, Measured, characters, tokens, trained
from pobench.results.pair_values import OfRows, likelihood_margin, longer, margin, simpo_margin

claim = partial(register_claim, subject="Length")

RHO = "ρ"
BINS = 8  # of length difference, with equal numbers of pairs, as in the figure; the paper's are 100 tokens wide
LOSSES = ("rrhf", "slic_hf", "dpo", "ipo", "cpo", "kto", "orpo", "rdpo", "simpo")


# ---------------------------------------------------------------- margins and likelihoods
def least_by_bin(e: Evidence, loss: str, value: OfRows) -> Measured:
    """The lowest of a number's means over training pairs, in bins of their length difference."""
    arm = e.arm(loss)
    rows = e.rows("trainpairs", arm)
    if arm is None or rows.empty:
        return UNMEASURED
    pairs = rows.drop_duplicates("pair").set_index("pair")
    difference = longer(pairs)
    edges = np.unique(np.quantile(difference, np.linspace(0, 1, BINS + 1))[1:-1])
    bin_of = pd.Series(np.searchsorted(edges, difference, side="right"), difference.index)
    values = e.pairs(arm, value, trained=True)
    inside = bin_of.loc[values.index.get_level_values(1)].to_numpy()
    return Measured(least([[(1.0, values[inside == k])] for k in np.unique(inside)], e, bounds=None), (arm,))


claim(
    "margin-positive-everywhere",
    says="SimPO's margin is positive whatever the length difference",
    statistic=f"mean reward margin of training pairs in the lowest of {BINS} bins of length difference",
    unit="own unit",
    above=0,
    paper=0.32,
    where="Mistral-Base, Fig. 2a at −200 tokens",
)(lambda e: least_by_bin(e, "simpo", margin))


@claim(
    "margin-rises-everywhere",
    says="SimPO raises the margin whatever the length difference",
    statistic=f"SimPO's reward margin minus that of the start model, training pairs, in the lowest of {BINS} bins of length "
    "difference",
    unit="own unit",
    above=0,
    paper=0.45,
    where="Mistral-Base, Fig. 2a at −200 tokens",
)
def margin_rises_everywhere(e: Evidence) -> Measured:
    arm = e.arm("simpo")
    beta = None if arm is None else settings_of(of_arm(e.runs, arm).iloc[0]).get("beta")
    if beta is None:
        return UNMEASURED

    def gain(rows: pd.DataFrame) -> pd.Series:
        return margin(rows) - beta * likelihood_margin(rows, "reference_")

    return least_by_bin(e, "simpo", gain)


# Fig. 2a draws three models on one scale: about −9 for the model without LN where the winner is 200 tokens shorter, +9 where it
# is 200 tokens longer. The model's own reward, a sum, falls with every token, so it has the other sign there; the figure's
# reward must be SimPO's, the mean. The paper does not say so: this is inferred.
claim(
    "no-ln-margin-negative",
    says="Without length normalisation the margin is negative where the winner is shorter",
    statistic="mean margin of SimPO's reward (β = 2) under SimPO w/o LN, training pairs with the shorter winner",
    unit="2 nats a token",
    below=0,
    paper=-8.91,
    smallest=0.08,  # as `margin-positive-everywhere`, whose unit it has: a quarter of −8.91 would ask for a model that broke
    where="Mistral-Base, Fig. 2a at −200 tokens",
)(level("simpo_no_ln", trained(lambda rows: simpo_margin(rows).where(longer(rows) < 0))))

claim(
    "rho-no-ln-above-dpo",
    says="Likelihood follows length more without length normalisation than for DPO",
    statistic="ρ(log-prob per token, length), SimPO w/o LN − DPO",
    unit=RHO,
    above=0,
    paper=0.23,
    where="Mistral-Base, Table 6",
)(rho_gap("simpo_no_ln", "dpo"))

claim(
    "rho-dpo-above-simpo",
    says="Likelihood follows length more for DPO than for SimPO",
    statistic="ρ(log-prob per token, length), DPO − SimPO",
    unit=RHO,
    above=0,
    paper=0.25,
    where="Mistral-Base, Table 6",
)(rho_gap("dpo", "simpo"))

claim(
    "rho-simpo-near-start",
    says="SimPO leaves the start model's correlation with length as it was",
    statistic="ρ(log-prob per token, length), SimPO − start; claimed: within ±0.1 (our bound)",
    unit=RHO,
    above=-0.1,
    below=0.1,
    smallest=0.1,
    paper=0.01,
    where="Mistral-Base, Table 6 and Fig. 6a",
)(rho_gap("simpo", "start"))

claim(
    "pull-falls-with-length",
    says="SimPO pulls less on each token of a longer answer; DPO does not",
    statistic="ρ(size of the loss's derivative by a held-out winner's log-probability, its length), SimPO − DPO",
    unit=RHO,
    below=0,
    smallest=0.1,  # as the claim on SimPO's likelihoods and lengths
    where="the analysis of gradients, in formulas",
)(rho_gap("simpo", "dpo", pull_and_length))


# ---------------------------------------------------------------- lengths of answers
claim(
    "ln-shortens-answers",
    says="Length normalisation shortens SimPO's answers",
    statistic="tokens of an answer, SimPO beside SimPO w/o LN",
    unit="% longer",
    below=0,
    paper=-17.9,
    where="Arena-Hard, Mistral-Base, Table 11",
)(percent_more("simpo", "simpo_no_ln", tokens))

claim(
    "length-is-not-quality",
    says="Across methods, length does not predict quality",
    statistic="mean score, what a line over the losses' mean lengths says the longest adds to the shortest, in % of the "
    "distance from the best loss to the worst; claimed: within ±50 (our bound)",
    unit="%",
    above=-50,
    below=50,
    smallest=50,
    paper=12.3,
    where="LC and characters, Mistral-Base, Table 10",
)(share_by_length(LOSSES))

claim(
    "cpo-half-again-as-long",
    says="CPO's answers are half again as long as SimPO's",
    statistic="tokens of an answer, CPO beside SimPO; claimed: at least a quarter more (our bound)",
    unit="% longer",
    above=25,
    paper=50.6,
    where="Arena-Hard, Mistral-Instruct, Table 10 (Mistral-Base: 17.7)",
)(percent_more("cpo", "simpo", tokens))

claim(
    "simpo-little-longer-tokens",
    says="SimPO's answers are little longer than DPO's",
    statistic="tokens of an answer, SimPO beside DPO; claimed: at most 15 % more (our bound)",
    unit="% longer",
    below=15,
    paper=9.0,
    where="Arena-Hard, mean of four settings, Table 10 (Llama-3-Base: 25.0)",
)(percent_more("simpo", "dpo", tokens))

claim(
    "simpo-little-longer-characters",
    says="SimPO's answers are at most a quarter longer than DPO's",
    statistic="characters of an answer, SimPO beside DPO; claimed: at most 30 % more (our bound)",
    unit="% longer",
    below=30,
    paper=26.5,
    where="AlpacaEval 2, Mistral-Base, the largest of Table 10",
)(percent_more("simpo", "dpo", characters))


# ---------------------------------------------------------------- labels that prefer length
BIASED = 55.0  # %: the training pairs whose winner is longer, above which the data count as length-biased (our bound)


def longer_winners(e: Evidence) -> float:
    """The share of DPO's training pairs whose winner is longer, in %; nan where none is stored."""
    rows = e.rows("trainpairs", e.arm("dpo"))
    if rows.empty:
        return float("nan")
    pairs = rows.drop_duplicates("pair")
    return float(100 * (0.5 + 0.5 * np.sign(longer(pairs))).mean())


claim(
    "ln-helps-dpo",
    says="Length normalisation helps DPO where winners are longer",
    statistic=f"mean score, DPO w/ LN − DPO, where more than {BIASED:g} % of the training pairs have the longer winner",
    unit="points",
    above=0,
    paper=5.9,
    where="LC points, Mistral-Base, Table 15",
)(only_where(gap("dpo_ln", "dpo"), lambda e: longer_winners(e) > BIASED))

claim(
    "ln-no-help-dpo-unbiased",
    says="Length normalisation does not help DPO where winners are no longer",
    statistic=f"mean score, DPO w/ LN − DPO, where at most {BIASED:g} % of the training pairs have the longer winner; claimed: "
    "below one point (our bound)",
    unit="points",
    below=1,
    paper=-5.1,
    where="LC points, Mistral-Instruct, Table 15",
)(only_where(gap("dpo_ln", "dpo"), lambda e: longer_winners(e) <= BIASED))


def over_bias(e: Evidence, losses: Sequence[str]) -> list[Line]:
    """Each loss's line over the length biases that all were trained with, from none on; empty if these are fewer than two."""
    lines = [line for loss in losses if (line := e.line(loss, "length_bias"))]
    shared = set.intersection(*({value for value, _ in line.points} for line in lines)) if lines else set()
    if len(lines) < len(losses) or 0.0 not in shared or len(shared) < 2:
        return []
    return [line._replace(points=tuple(point for point in line.points if point[0] in shared)) for line in lines]


@claim(
    "ln-helps-dpo-under-bias",
    says="Length normalisation helps DPO where labels prefer length",
    statistic="mean score at the largest length bias, DPO w/ LN − DPO",
    unit="points",
    above=0,
    smallest=1.5,  # a quarter of what it gives DPO in Table 15
)
def ln_helps_dpo_under_bias(e: Evidence) -> Measured:
    lines = over_bias(e, ("dpo_ln", "dpo"))
    return between(e, *(line.ends[1] for line in lines)) if lines else UNMEASURED


@claim(
    "bias-lengthens-dpo-more",
    says="A length bias of the labels lengthens DPO's answers more than SimPO's",
    statistic="tokens of an answer, what the largest length bias adds by a line over all of them: SimPO − DPO",
    unit="tokens",
    below=0,
    smallest=2,  # tokens; worlds answer in 20 to 40
)
def bias_lengthens_dpo_more(e: Evidence) -> Measured:
    lines = over_bias(e, ("simpo", "dpo"))
    parts = [
        (sign * weight, values)
        for sign, line in zip((1.0, -1.0), lines, strict=False)
        for weight, values in along(e, line, tokens)
    ]
    return Measured(e.contrast(parts), tuple(line.ends[0] for line in lines)) if parts else UNMEASURED
