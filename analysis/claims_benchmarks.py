"""Claims about published benchmarks: what they separate, and what preference training keeps of a model's other skills.

Differences are paired by question, and by seed, where the questions' scores are stored; see `pobench.results.few_runs`.
"""

from __future__ import annotations

from functools import partial

from pobench.registry import register_claim
from pobench.results.few_runs import benchmark_gap, benchmark_means, benchmark_trend, metric_gap, separation_ratio

claim = partial(register_claim, subject="Benchmarks")

POINTS, MEAN = "points", "mean of four settings, Table 9"
NO_TERM = ("dpo", "ipo", "kto", "rdpo", "simpo")
SFT_TERM = ("rrhf", "slic_hf", "cpo", "orpo")  # their losses hold a likelihood term on the winners
LOSSES = (*NO_TERM, *SFT_TERM)
START = ("start",)

claim(
    "lc-above-raw-simpo",
    says="Controlling for length raises SimPO's win rate",
    statistic="AlpacaEval 2, length-controlled − raw win rate of SimPO, run by run",
    unit=POINTS,
    above=0,
    paper=0.6,
    where="Mistral-Base, Table 10 (Mistral-Instruct: −2.7)",
)(metric_gap("simpo", "alpaca_eval", "lc_win_rate", "win_rate"))

claim(
    "mt-bench-separates-least",
    says="MT-Bench sets the methods apart least",
    statistic="standard deviation over losses / mean half of their intervals, MT-Bench / the least of AlpacaEval 2, Arena-Hard",
    unit="ratio",
    below=1,
    neutral=1,
    smallest=0.25,  # a quarter; the paper prints no interval for MT-Bench
    where="Table 4, in words",
)(separation_ratio(LOSSES, ("mt_bench", "score"), (("alpaca_eval", "win_rate"), ("arena_hard", "win_rate"))))

claim(
    "mmlu-kept",
    says="Preference training keeps what the start model knows",
    statistic="MMLU, mean of the paper's losses − start; claimed: within ±1 (our bound)",
    unit=POINTS,
    above=-1,
    below=1,
    smallest=1,
    paper=-0.32,
    where=MEAN,
)(benchmark_means(LOSSES, START, "downstream", "mmlu"))

for task, title, metric, number in (
    ("arc", "ARC", "arc_challenge", 1.48),
    ("hellaswag", "HellaSwag", "hellaswag", 1.11),
    ("truthfulqa", "TruthfulQA", "truthfulqa_mc2", 5.91),
):
    claim(
        f"{task}-rises",
        says=f"Preference training raises {title}",
        statistic=f"{title}, mean of the paper's losses − start",
        unit=POINTS,
        above=0,
        paper=number,
        where=MEAN,
    )(benchmark_means(LOSSES, START, "downstream", metric))

claim(
    "gsm8k-falls",
    says="Without a likelihood term, preference training lowers GSM8K",
    statistic="GSM8K, mean of DPO, IPO, KTO, R-DPO and SimPO − start",
    unit=POINTS,
    below=0,
    paper=-8.44,
    where=MEAN,
)(benchmark_means(NO_TERM, START, "downstream", "gsm8k"))

claim(
    "sft-terms-keep-gsm8k",
    says="Losses with a likelihood term keep more of GSM8K",
    statistic="GSM8K, mean of RRHF, SLiC-HF, CPO and ORPO − mean of the paper's other losses",
    unit=POINTS,
    above=0,
    paper=7.62,
    where=MEAN,
)(benchmark_means(SFT_TERM, NO_TERM, "downstream", "gsm8k"))

claim(
    "sft-term-keeps-gsm8k-simpo",
    says="An SFT term keeps more of GSM8K under SimPO",
    statistic="GSM8K, SimPO w/ SFT − SimPO",
    unit=POINTS,
    above=0,
    paper=8.41,
    where="Llama-3-Instruct v0.2, Table 13",
)(benchmark_gap("simpo_sft", "simpo", "downstream", "gsm8k"))

for task, of_zeroeval, title, number in (("gsm8k", "gsm8k", "GSM8K", -21.79), ("mmlu", "mmlu_redux", "MMLU", -8.2)):
    claim(
        f"lower-rate-keeps-{task}",
        says=f"A lower learning rate keeps more of {title}",
        statistic=f"zero-shot {title} of SimPO, trend over the learning rate",
        unit=POINTS,
        below=0,
        paper=number,
        where="Llama-3-Instruct v0.2, Table 16",
    )(benchmark_trend("simpo", "lr", ("zeroeval", of_zeroeval), ("downstream", f"{task}_zero_shot")))
