"""Frames of a made-up study in which every claim of the scorecard is known to be true, or known to be false."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pandas as pd

from pobench.results.frame_files import counted

PAIRS, PROMPTS, SEEDS = 160, 150, (1, 2, 3)
SIMPO, DPO = {"beta": 2.0, "gamma": 1.0}, {"beta": 0.5}
WORDS = [f"{word:03d}" for word in range(100)]
LIKELIHOOD_TERM = ("cpo", "orpo")
PLACE = {"simpo": 2, "dpo": -2, "ipo": 1, "cpo": -1, "orpo": 0}  # of a loss on every benchmark


def arms(s: int, longer: bool) -> list[dict[str, Any]]:
    """What is planted. s: 1 as the paper says, -1 the contrary, 0 no difference at all. longer: most winners are."""
    score, away = 0.5 + 0.2 * s, 0.25 * s
    simpo = {
        "loss": "simpo", "settings": SIMPO, "score": score, "slope": {1: 0.3, 0: 0.3, -1: 2.5}[s], "disagree": 0.3 * (s < 0),
        "margin": {1: 2.0, 0: 0.5, -1: -1.0}[s], "lean": 0.5 * (s < 0), "kl": {1: 0.5, 0: 0.5, -1: 1.5}[s],
        "tokens": {1: 42, 0: 40, -1: 60}[s], "repeats": s < 0, "reference": "",
    }  # fmt: skip
    dpo = {
        "loss": "dpo", "settings": DPO, "slope": {1: 0.8, 0: 0.3, -1: 0.8}[s], "disagree": {1: 0.5, 0: 0.33, -1: 0.05}[s],
        "margin": {1: 0.2, 0: 0.5, -1: 1.0}[s], "reference": "cached", "memory": 1 - 0.2 * (s < 0),
        "seconds": 1 - 0.2 * (s < 0), "reference_seconds": 10 * (s > 0),
    }  # fmt: skip
    of_dpo_ln = 0.5 + 0.2 * s * (1 if longer else -1)
    return [
        simpo,
        dpo,
        {**dpo, "reference": "every_step", "memory": 1 + 0.2 * s, "seconds": 1 + 0.2 * s, "reference_seconds": 0, "cost": True},
        {
            **simpo, "settings": {"beta": 2.0, "gamma": 0.0}, "score": score - away, "margin": 0.5 - 0.4 * s, "winner": 0.2 * s,
            "spread": 1 - 0.4 * s, "wide": 3 - 2.5 * s,
        },
        {
            **simpo, "settings": {"beta": 2.0, "gamma": 3.0}, "score": score - away, "margin": 0.5 + 1.0 * s,
            "winner": -0.4 * s, "spread": 1 + 0.6 * s, "wide": 3 + 2.5 * s,
        },
        {**simpo, "settings": {"beta": 10.0, "gamma": 1.0}, "score": score - away, "kl": simpo["kl"] - 0.15 * s},
        {**simpo, "lr": 1e-3, "score": score + 0.2 * s},
        {**simpo, "bias": 1.0},
        {**dpo, "settings": {"beta": 5.0}, "score": 0.5 - 0.2 * s, "kl": 0.5 - 0.4 * s},
        {**dpo, "bias": 1.0, "tokens": 40 + 10 * s},
        {"loss": "dpo_ln", "score": of_dpo_ln},
        {"loss": "dpo_ln", "score": of_dpo_ln, "bias": 1.0},
        {"loss": "dpo_gamma", "settings": DPO, "score": 0.5 - 0.2 * s},
        {"loss": "simpo_sft", "settings": SIMPO, "score": score - 0.2 * s},
        {"loss": "ipo", "score": 0.5 - 0.02 * abs(s), "tokens": 40 + (s > 0)},
        {"loss": "cpo", "tokens": {1: 63, 0: 40, -1: 50}[s]},
        {"loss": "orpo", "tokens": {1: 30, 0: 40, -1: 45}[s]},
        {
            "loss": "simpo_no_ln", "score": score - 0.4 * s, "tokens": {1: 55, 0: 40, -1: 45}[s], "repeats": s > 0,
            "slope": {1: 2.5, 0: 0.3, -1: 0.0}[s], "margin": {1: 0.0, 0: 0.0, -1: 4.0}[s], "lean": 3.0 * (s > 0),
            "disagree": 0.2 * (s >= 0),
        },
    ]  # fmt: skip


class World:
    """The frames while they are being made."""

    def __init__(self, s: int, setting: str, longer: bool, shift: float, seed: int) -> None:
        self.s, self.setting, self.shift = s, setting, shift
        self.rng = np.random.default_rng(seed)
        most, fewest = (60, 40) if longer else (40, 60)
        self.chosen, self.rejected = self.rng.integers(10, most, PAIRS), self.rng.integers(10, fewest, PAIRS)
        self.hard, self.alike = self.rng.normal(0, 0.1, PROMPTS), self.rng.normal(size=PAIRS)  # what all models share
        self.parts: dict[str, list[Any]] = {
            name: [] for name in ("runs", "heldout", "trainpairs", "answers", "verdicts", "benchmarks", "gradients")
        }

    def add(self, run: str, arm: dict[str, Any], seed: int) -> None:
        self.parts["runs"].append(self.about(run, arm, seed))
        if arm.get("cost"):
            return
        for name in ("heldout", "trainpairs"):
            self.parts[name].append(self.pairs(run, arm))
        self.parts["gradients"].append(self.pull(run, arm))
        self.answers(run, arm)
        if arm.get("bias", 0.0) == 0.0:
            self.parts["benchmarks"] += self.benchmarks(run, arm, seed)

    def pairs(self, run: str, arm: dict[str, Any]) -> pd.DataFrame:
        rng, chosen, rejected = self.rng, self.chosen, self.rejected
        length = (chosen - chosen.mean()) / chosen.std()
        longer = (chosen - rejected) / (chosen - rejected).std()
        mixed = arm.get("slope", 0.3) * length + self.alike + 0.2 * rng.normal(size=PAIRS)
        per_token = -1.5 + 0.1 * arm.get("wide", 3) * mixed + arm.get("winner", 0.0)
        margin = (
            arm.get("margin", 0.5) + arm.get("lean", 0.0) * longer + arm.get("spread", 1.0) * rng.normal(size=PAIRS)
        )
        crossed = rng.random(PAIRS) < arm.get("disagree", 0.2)
        other = per_token - 0.2 * np.sign(margin) * np.where(crossed, -1, 1)
        rewards = (margin, np.zeros(PAIRS)) if arm["loss"] != "start" else (np.full(PAIRS, np.nan),) * 2
        before = arm.get("kl", 0.5) + rng.normal(0, 0.1, PAIRS)
        return pd.DataFrame(
            {
                "run": run, "pair": [f"pair-{i}" for i in range(PAIRS)], "chosen_logp": per_token * chosen,
                "rejected_logp": other * rejected, "chosen_length": chosen, "rejected_length": rejected,
                "reference_chosen_logp": (per_token + before) * chosen, "reference_rejected_logp": (other + before) * rejected,
                "loss": np.nan, "chosen_reward": rewards[0], "rejected_reward": rewards[1],
            }
        )  # fmt: skip

    def pull(self, run: str, arm: dict[str, Any]) -> pd.DataFrame:
        falls = arm["loss"] == ("simpo" if self.s >= 0 else "dpo") or self.s == 0
        size = (1 / self.chosen if falls else 1) * self.rng.uniform(0.5, 1.5, PAIRS)
        pairs = [f"pair-{i}" for i in range(PAIRS)]
        frame = {"run": run, "evaluated": arm["loss"], "pair": pairs, "chosen_length": self.chosen}
        return pd.DataFrame(
            {**frame, "rejected_length": self.rejected, "chosen_weight": -size, "rejected_weight": size}
        )

    def answers(self, run: str, arm: dict[str, Any]) -> None:
        tokens = np.clip(self.rng.normal(arm.get("tokens", 40), 6, PROMPTS).round(), 8, 99).astype(int)
        texts = [" ".join(WORDS[: t // 2] * 2 if arm.get("repeats") else WORDS[:t]) for t in tokens]
        prompts = {"run": run, "prompt": [f"prompt-{i}" for i in range(PROMPTS)], "sample": 0}
        shown = {"kind": "", "topic": "", "text": texts, "tokens": tokens, "finished": True}
        self.parts["answers"].append(pd.DataFrame({**prompts, **shown}))
        passed = arm.get("score", 0.5) + self.shift + self.hard + self.rng.normal(0, 0.1, PROMPTS)
        judged = {"judge": "verifiable", "score": np.clip(passed, 0, 1), "against": ""}
        self.parts["verdicts"].append(pd.DataFrame({**prompts, **judged}))

    def benchmarks(self, run: str, arm: dict[str, Any], seed: int) -> list[dict[str, Any]]:
        s, loss, place = self.s, arm["loss"], PLACE.get(arm["loss"], 0)
        trained = loss != "start"
        spread, half = {1: (0.1, 0.5), 0: (2.0, 1.0), -1: (1.0, 0.1)}[s]  # of MT-Bench
        fell = trained * (-10 * s + 8 * s * (loss in (*LIKELIHOOD_TERM, "simpo_sft")))
        rate = -15 * s * (arm.get("lr", 3e-4) > 3e-4)
        values = {
            ("alpaca_eval", "lc_win_rate"): (40 + 2.0 * place + 5 * s, 1.0),
            ("alpaca_eval", "win_rate"): (40 + 2.0 * place, 1.0),
            ("arena_hard", "win_rate"): (30 + 2.0 * place, 1.0),
            ("mt_bench", "score"): (7 + spread * place, half),
            ("downstream", "mmlu"): (60 - 10 * trained * (s < 0), 1.0),
            **{("downstream", task): (60 + 5 * s * trained, 1.0) for task in ("arc_challenge", "hellaswag", "truthfulqa_mc2")},
            ("downstream", "gsm8k"): (50 + fell, 1.0),
            ("downstream", "gsm8k_zero_shot"): (50 + rate, 1.0),
            ("downstream", "mmlu_zero_shot"): (50 + rate, 1.0),
        }  # fmt: skip
        rows = []
        for (benchmark, metric), (mean, width) in values.items():
            value = mean + trained * self.rng.normal(0, 0.02 if benchmark == "mt_bench" else 0.2)
            about = {"run": run, "setting": self.setting, "loss": loss, "seed": seed, "benchmark": benchmark}
            rows.append(
                {**about, "metric": metric, "value": value, "low": value - width, "high": value + width, "n": 100}
            )
        return [{**row, "judge": "", "name": row["benchmark"], "limit": np.nan} for row in rows]

    def about(self, run: str, arm: dict[str, Any], seed: int) -> dict[str, Any]:
        trained, noise = arm["loss"] != "start", self.rng.uniform(0.999, 1.001, 2)
        return {
            "run": run, "setting": self.setting, "kind": "loss" if trained else "start", "loss": arm["loss"],
            "title": arm["loss"], "seed": seed, "settings": json.dumps(arm.get("settings", {})),
            "lr": arm.get("lr", 3e-4) if trained else np.nan, "epochs": 1.0, "batch_size": 16,
            "start": f"{self.setting}/start-00000000", "pairs": 500, "seconds": 60 * arm.get("seconds", 1.0) * noise[0],
            "peak_memory": round(1e9 * arm.get("memory", 1.0) * noise[1]), "reference": arm.get("reference", ""),
            "reference_seconds": float(arm.get("reference_seconds", 0)), "tokens": 80_000, "status": "finished",
            "reason": "", "order": "", "protocol": 1, "length_bias": arm.get("bias", 0.0) if trained else np.nan,
            "values": "default" if trained else "", "trials": np.nan, "tuned": "{}",
        }  # fmt: skip


def make(
    s: int,
    *,
    only: set[str] | None = None,
    setting: str = "made",
    longer: bool = True,
    shift: float = 0.0,
    seeds: tuple[int, ...] = SEEDS,
    seed: int = 5,
) -> dict[str, pd.DataFrame]:
    """The frames of the world. only: losses to keep. longer: most training winners are. shift: of every trained score."""
    world = World(s, setting, longer, shift, seed)
    start = {"loss": "start", "score": (0.5 if s == 0 else 0.4) - shift}
    for place, arm in enumerate([start, *arms(s, longer)]):
        if only is not None and arm["loss"] not in only:
            continue
        for number in (-1,) if arm["loss"] == "start" else seeds:
            code = f"{place:04x}{number:04x}" if number > 0 else "00000000"
            world.add(f"{setting}/{arm['loss']}-{code}", arm, number)
    frames = {}
    for name, part in world.parts.items():
        frames[name] = pd.DataFrame(part) if name in ("runs", "benchmarks") else pd.concat(part, ignore_index=True)
    return {**frames, "answers": counted(frames["answers"])}
