"""Claims about rewards, likelihoods and the distance from the start model."""

from __future__ import annotations

from functools import partial

from pobench.registry import register_claim
from pobench.results.claims import gap, level, tenfold_gap, trend
from pobench.results.contrast import POINTS as SCALE
from pobench.results.evidence import held, trained
from pobench.results.pair_values import accuracy, disagreement, from_mean, kl, margin, winner

claim = partial(register_claim, subject="Rewards and likelihoods")

NATS, POINTS = "nats/token", "points"

claim(
    "accuracy-rises-with-gamma",
    says="A larger γ ranks more held-out pairs right",
    statistic="reward accuracy of SimPO, trend over γ",
    unit=POINTS,
    above=0,
    paper=1.27,
    where="Mistral-Base, Fig. 3a",
)(trend("simpo", "gamma", held(accuracy), SCALE))

claim(
    "winners-fall-with-gamma",
    says="A larger γ makes winners less likely",
    statistic="log-probability of held-out winners under SimPO, trend over γ",
    unit=NATS,
    below=0,
    paper=-1.28,
    smallest=0.05,  # a model far from the paper's moves less; 5 % of a winner's probability per token
    where="Mistral-Base, Fig. 3c",
)(trend("simpo", "gamma", held(winner)))

claim(
    "gamma-flattens-margins",
    says="A larger γ spreads the margins out",
    statistic="distance of a held-out pair's margin from the mean margin of SimPO, trend over γ",
    unit="own unit",
    above=0,
    smallest=0.34,  # a quarter of what the peaks of Fig. 3b (0.343 and 0.138) say of normal densities: 0.318 / peak
    where="Mistral-Base, Fig. 3b",
)(trend("simpo", "gamma", held(from_mean(margin))))

claim(
    "gamma-flattens-likelihoods",
    says="A larger γ spreads the winners' likelihoods out",
    statistic="distance of a held-out winner's log-prob per token from its mean under SimPO, trend over γ",
    unit=NATS,
    above=0,
    smallest=0.1,  # a quarter of what the peaks of Fig. 3c (1.036 and 0.438) say of normal densities: 0.318 / peak
    where="Mistral-Base, Fig. 3c",
)(trend("simpo", "gamma", held(from_mean(winner))))

claim(
    "dpo-disagrees",
    says="DPO's reward and likelihood disagree on about half of the pairs",
    statistic="share of training pairs that DPO's reward and log-prob per token rank differently; "
    "claimed: between a third and two thirds (our bounds)",
    unit="%",
    above=100 / 3,
    below=200 / 3,
    neutral=50,  # where the two have nothing to do with each other
    smallest=100 / 6,
    paper=48.3,
    where="Mistral-Base, Fig. 4b",
)(level("dpo", trained(disagreement), (0.0, 100.0)))

claim(
    "simpo-agrees",
    says="SimPO's reward and likelihood never disagree",
    statistic="share of held-out pairs that SimPO's reward and log-prob per token rank differently; claimed: below 1 % (ties)",
    unit="%",
    below=1,
    smallest=1,
    paper=0,
    where="Mistral-Base, Fig. 6b",
    identity=True,
)(level("simpo", held(disagreement), (0.0, 100.0)))

claim(
    "accuracy-simpo-above-dpo",
    says="SimPO ranks more held-out pairs right than DPO",
    statistic="reward accuracy, SimPO − DPO",
    unit=POINTS,
    above=0,
    paper=2.3,
    where="Mistral-Base, Fig. 4c",
)(gap("simpo", "dpo", held(accuracy)))

claim(
    "kl-falls-with-beta-dpo",
    says="A larger β keeps DPO nearer to the start model",
    statistic="KL on held-out winners under DPO, trend over β",
    unit=NATS,
    below=0,
    paper=-0.393,
    where="Mistral-Base, Fig. 5a",
)(trend("dpo", "beta", held(kl)))

claim(
    "kl-falls-with-beta-simpo",
    says="A larger β keeps SimPO nearer to the start model",
    statistic="KL on held-out winners under SimPO, trend over β",
    unit=NATS,
    below=0,
    paper=-0.116,
    where="Mistral-Base, Fig. 5a",
)(trend("simpo", "beta", held(kl)))

claim(
    "kl-falls-more-with-beta-dpo",
    says="A larger β keeps DPO near the start model more than it does SimPO",
    statistic="KL on held-out winners, what a tenfold β adds by its line: DPO − SimPO",
    unit=NATS,
    below=0,
    paper=-0.227,
    where="Mistral-Base, Fig. 5a",
)(tenfold_gap("dpo", "simpo", "beta", held(kl)))

claim(
    "kl-simpo-low",
    says="SimPO stays near the start model without being held there",
    statistic="KL on held-out winners under SimPO; claimed: below 1 (our bound)",
    unit=NATS,
    below=1,
    paper=0.536,
    where="Mistral-Base, Fig. 5a",
)(level("simpo", held(kl)))
