"""Claims about the quality of answers: which loss is better, and which of its parts makes it so."""

from __future__ import annotations

from functools import partial

from pobench.registry import register_claim
from pobench.results.arms import Arm
from pobench.results.claims import QUALITY, between, gap, only_where, peak, smallest_gain, smallest_gap, trend
from pobench.results.contrast import POINTS as SCALE
from pobench.results.evidence import UNMEASURED, Evidence, Measured, repetition

claim = partial(register_claim, subject="Quality of answers")

LC, POINTS = "LC points, Mistral-Base", "points"
RIVALS = ("rrhf", "slic_hf", "dpo", "ipo", "cpo", "kto", "orpo", "rdpo")  # the paper's Table 4

claim(
    "every-method-helps",
    says="Every method scores above the start model",
    statistic="mean score, the least gain over the start model of the paper's losses that were run",
    unit=POINTS,
    above=0,
    paper=1.4,
    where=f"{LC}, Table 10 (CPO)",
)(smallest_gain((*RIVALS, "simpo")))

claim(
    "simpo-above-dpo",
    says="SimPO's answers score above DPO's",
    statistic="mean score, SimPO − DPO",
    unit=POINTS,
    above=0,
    paper=6.3,
    where=f"{LC}, Table 10",
)(gap("simpo", "dpo"))

claim(
    "simpo-above-best",
    says="SimPO's answers score above those of its best rival",
    statistic="mean score, SimPO − the best of the paper's other losses that were run and tuned alike",
    unit=POINTS,
    above=0,
    paper=4.0,
    where=f"{LC}, Table 10 (R-DPO)",
)(smallest_gap("simpo", RIVALS))

claim(
    "ln-helps-simpo",
    says="Length normalisation helps SimPO",
    statistic="mean score, SimPO − SimPO w/o LN",
    unit=POINTS,
    above=0,
    paper=9.6,
    where=f"{LC}, Table 5",
)(gap("simpo", "simpo_no_ln"))


@claim(
    "ln-matters-more-than-gamma",
    says="Taking length normalisation away hurts SimPO more than taking the margin away",
    statistic="mean score, SimPO at γ = 0 − SimPO w/o LN",
    unit=POINTS,
    above=0,
    paper=4.9,
    where=f"{LC}, Table 5",
)
def ln_matters_more_than_gamma(e: Evidence) -> Measured:
    without_gamma, without_ln, home = _at_zero(e), e.arm("simpo_no_ln"), e.arm("simpo")
    if without_gamma is None or without_ln is None or home is None:
        return UNMEASURED
    # both are SimPO with one part taken away, so it is SimPO that needs equal chances with the other loss
    return between(e, without_gamma, without_ln)._replace(arms=(home, without_ln))


claim(
    "no-ln-repeats",
    says="Without length normalisation answers repeat themselves",
    statistic="4-grams of an answer that stood earlier in it, SimPO w/o LN − SimPO",
    unit="% of 4-grams",
    above=0,
    smallest=2,  # one 4-gram in fifty; the paper shows such answers and counts none
    where="in words",
)(gap("simpo_no_ln", "simpo", repetition))

claim(
    "score-peaks-in-gamma",
    says="Quality is best at a γ in between",
    statistic="mean score of SimPO at its best inner γ − that at the better of both ends",
    unit=POINTS,
    above=0,
    paper=4.7,
    where=f"{LC}, Fig. 3a",
)(peak("simpo", "gamma"))


@claim(
    "gamma-helps",
    says="A margin above zero helps SimPO",
    statistic="mean score, SimPO − SimPO at γ = 0",
    unit=POINTS,
    above=0,
    paper=4.7,
    where=f"{LC}, Table 5",
)
def gamma_helps(e: Evidence) -> Measured:
    home, without = e.arm("simpo"), _at_zero(e)
    return UNMEASURED if home is None or without in (None, home) else between(e, home, without)


def _at_zero(e: Evidence) -> Arm | None:
    """SimPO at γ = 0 and its other values, where it was run."""
    line = e.line("simpo", "gamma")
    return dict(line.points).get(0.0) if line else None


def weak_start(e: Evidence) -> bool:
    """Whether the start model is no instruct model, and scores below half of the scale where it is graded by itself.

    The paper finds a small β better from Mistral-Base, and supposes that it is better from weak start models.
    """
    scores = e.score(e.start)
    return "instruct" not in e.setting and (scores.empty or float(scores.mean()) < 50.0)


claim(
    "score-falls-with-beta-dpo",
    says="From a weak start model, DPO's answers score lower with a larger β",
    statistic="mean score of DPO, trend over β from its own to ten times that, as in the paper; start model below 50 points",
    unit=POINTS,
    below=0,
    paper=-5.3,
    where=f"{LC}, Fig. 5b",
)(only_where(trend("dpo", "beta", bounds=SCALE, upto=10), weak_start))

claim(
    "score-falls-with-beta-simpo",
    says="From a weak start model, SimPO's answers score lower with a larger β",
    statistic="mean score of SimPO, trend over β from its own to five times that, as in the paper; start model below 50 points",
    unit=POINTS,
    below=0,
    paper=-2.3,
    where=f"{LC}, Fig. 5b",
)(only_where(trend("simpo", "beta", bounds=SCALE, upto=5), weak_start))

claim(
    "beta-ten-helps-llama3-instruct",
    says="From Llama-3-Instruct, SimPO scores higher with a β of about 10",
    statistic="mean score of SimPO on `llama3-instruct`, trend over β from its own 2.5 to five times that",
    unit=POINTS,
    above=0,
    smallest=QUALITY,
    where="in words, and the repository",
)(only_where(trend("simpo", "beta", bounds=SCALE, upto=5), lambda e: e.setting == "llama3-instruct"))

claim(
    "gamma-no-help-dpo",
    says="A margin gives DPO no gain to speak of",
    statistic="mean score, DPO w/ γ − DPO with the same β, or both tuned; claimed: below one point (our bound)",
    unit=POINTS,
    below=1,
    paper=0.1,
    smallest=1,
    where=f"{LC}, Table 15 (Mistral-Instruct: −3.8)",
)(gap("dpo_gamma", "dpo", same=("beta",)))

claim(
    "sft-term-hurts",
    says="An SFT term costs SimPO quality",
    statistic="mean score, SimPO w/ SFT − SimPO with the same β and γ, or both tuned",
    unit=POINTS,
    below=0,
    paper=-12.3,
    where="LC points, Llama-3-Instruct v0.2, Table 14",
)(gap("simpo_sft", "simpo", same=("beta", "gamma")))

claim(
    "score-rises-with-rate",
    says="A larger learning rate scores higher",
    statistic="mean score of SimPO, trend over the learning rate",
    unit=POINTS,
    above=0,
    paper=14.2,
    where="LC points, Llama-3-Instruct v0.2, Table 16",
)(trend("simpo", "lr", bounds=SCALE))

claim(
    "gemma-hardly-moves-with-rate",
    says="From Gemma-2, SimPO's quality hardly moves with the learning rate",
    statistic="mean score of SimPO on `gemma2-instruct`, trend over the learning rate; claimed: within ±3 (our bound)",
    unit=POINTS,
    above=-3,
    below=3,
    smallest=3,
    paper=-0.6,
    where="LC points, Gemma-2, Table 17",
)(only_where(trend("simpo", "lr", bounds=SCALE), lambda e: e.setting == "gemma2-instruct"))
