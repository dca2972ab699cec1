"""Claims about the quality of answers: which loss is better, and which of its parts makes it so."""

from __future__ import annotations

from pobench.registry import register_claim
from pobench.results.claims import UNMEASURED, Evidence, Measured, between, gap, peak, smallest_gap, trend
from pobench.results.contrast import POINTS as SCALE

LC, POINTS = "LC points, Mistral-Base", "points"
RIVALS = ("rrhf", "slic_hf", "dpo", "ipo", "cpo", "kto", "orpo", "rdpo")  # the paper's Table 4

register_claim(
    "simpo-above-dpo",
    section="4.1",
    says="SimPO's answers score above DPO's",
    statistic="mean score, SimPO − DPO",
    unit=POINTS,
    above=0,
    paper=6.3,
    where=f"{LC}, Table 10",
)(gap("simpo", "dpo"))

register_claim(
    "simpo-above-best",
    section="4.1",
    says="SimPO's answers score above those of its best rival",
    statistic="mean score, SimPO − the best of the paper's other losses that were run and tuned alike",
    unit=POINTS,
    above=0,
    paper=4.0,
    where=f"{LC}, Table 10 (R-DPO)",
)(smallest_gap("simpo", RIVALS))

register_claim(
    "ln-helps-simpo",
    section="4.2",
    says="Length normalisation helps SimPO",
    statistic="mean score, SimPO − SimPO w/o LN",
    unit=POINTS,
    above=0,
    paper=9.6,
    where=f"{LC}, Table 5",
)(gap("simpo", "simpo_no_ln"))

register_claim(
    "score-peaks-in-gamma",
    section="4.3",
    says="Quality is best at a γ in between",
    statistic="mean score of SimPO at its best inner γ − that at the better of both ends",
    unit=POINTS,
    above=0,
    paper=4.7,
    where=f"{LC}, Fig. 3a",
)(peak("simpo", "gamma"))


@register_claim(
    "gamma-helps",
    section="4.2",
    says="A margin above zero helps SimPO",
    statistic="mean score, SimPO − SimPO at γ = 0",
    unit=POINTS,
    above=0,
    paper=4.7,
    where=f"{LC}, Table 5",
)
def gamma_helps(e: Evidence) -> Measured:
    line, home = e.line("simpo", "gamma"), e.arm("simpo")
    without = dict(line.points).get(0.0) if line else None
    return UNMEASURED if home is None or without in (None, home) else between(e, home, without)


register_claim(
    "score-falls-with-beta-dpo",
    section="4.4",
    says="DPO's answers score lower with a large β",
    statistic="mean score of DPO, trend over β",
    unit=POINTS,
    below=0,
    paper=-5.3,
    where=f"{LC}, Fig. 5b",
)(trend("dpo", "beta", bounds=SCALE))

register_claim(
    "score-falls-with-beta-simpo",
    section="4.4",
    says="SimPO's answers score lower with a large β",
    statistic="mean score of SimPO, trend over β",
    unit=POINTS,
    below=0,
    paper=-2.3,
    where=f"{LC}, Fig. 5b",
)(trend("simpo", "beta", bounds=SCALE))

register_claim(
    "ln-helps-dpo",
    section="I",
    says="Length normalisation helps DPO",
    statistic="mean score, DPO w/ LN − DPO",
    unit=POINTS,
    above=0,
    paper=5.9,
    where=f"{LC}, Table 15 (Mistral-Instruct: −5.1)",
)(gap("dpo_ln", "dpo"))

register_claim(
    "gamma-no-help-dpo",
    section="I",
    says="A margin gives DPO no gain to speak of",
    statistic="mean score, DPO w/ γ − DPO; claimed: below one point (our bound)",
    unit=POINTS,
    below=1,
    paper=0.1,
    smallest=1,
    where=f"{LC}, Table 15 (Mistral-Instruct: −3.8)",
)(gap("dpo_gamma", "dpo"))

register_claim(
    "sft-term-hurts",
    section="H",
    says="An SFT term costs SimPO quality",
    statistic="mean score, SimPO w/ SFT − SimPO",
    unit=POINTS,
    below=0,
    paper=-12.3,
    where="LC points, Llama-3-Instruct v0.2, Table 14",
)(gap("simpo_sft", "simpo"))

register_claim(
    "score-rises-with-rate",
    section="J",
    says="A larger learning rate scores higher",
    statistic="mean score of SimPO, trend over the learning rate",
    unit=POINTS,
    above=0,
    paper=14.2,
    where="LC points, Llama-3-Instruct v0.2, Table 16",
)(trend("simpo", "lr", bounds=SCALE))
