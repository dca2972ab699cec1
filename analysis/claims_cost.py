"""Claims about time and memory, ratios of costs in which 1 is no difference."""

from __future__ import annotations

from pobench.registry import register_claim
from pobench.results.claims import cost_ratio

register_claim(
    "reference-free-is-faster",
    section="4.4",
    says="SimPO trains faster than DPO",
    statistic="seconds of all training steps, SimPO / DPO, over seeds; the reference's pass, done once and stored, not in it",
    unit="ratio",
    below=1,
    neutral=1,
    paper=0.82,
    where="Llama-3-Base, Fig. 5c",
)(cost_ratio("simpo", "dpo", "seconds"))

register_claim(
    "reference-free-is-smaller",
    section="4.4",
    says="SimPO needs less memory than DPO",
    statistic="peak memory, SimPO / DPO, over seeds",
    unit="ratio",
    below=1,
    neutral=1,
    paper=0.9,
    where="Llama-3-Base, Fig. 5c",
)(cost_ratio("simpo", "dpo", "peak_memory"))
