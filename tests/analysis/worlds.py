"""Frames of a made-up study in which every claim of the scorecard is known to be true, or known to be false."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd

PAIRS, PROMPTS = 240, 150
START = "made/start-00000000"
SIMPO, DPO = {"beta": 2.0, "gamma": 1.0}, {"beta": 0.5}


def arms(s: float) -> list[dict]:
    """What is planted. s: 1 as the paper says, -1 the contrary, 0 no difference at all."""
    score, away = 0.5 + 0.2 * s, 0.25 * s
    simpo = {
        "loss": "simpo", "settings": SIMPO, "score": score, "slope": {1: 0.3, 0: 0.3, -1: 2.5}[s], "disagree": 0.3 * (s < 0),
        "margin": {1: 1.0, 0: 0.5, -1: 0.0}[s], "lean": 0.5 * (s < 0), "kl": 0.5,
    }  # fmt: skip
    dpo = {
        "loss": "dpo", "settings": DPO, "slope": {1: 0.8, 0: 0.3, -1: 0.8}[s], "disagree": {1: 0.5, 0: 0.33, -1: 0.05}[s],
        "margin": {1: 0.2, 0: 0.5, -1: 1.0}[s], "kl": 0.5, "cost": 1 + 0.2 * s,
    }  # fmt: skip
    three = {"seeds": (1, 2, 3)}
    return [
        {**simpo, **three},
        {**dpo, **three},
        {**simpo, "settings": {"beta": 2.0, "gamma": 0.0}, "score": score - away, "margin": 0.5 - 0.4 * s, "winner": 0.2 * s},
        {**simpo, "settings": {"beta": 2.0, "gamma": 3.0}, "score": score - away, "margin": 0.5 + 1.0 * s, "winner": -0.4 * s},
        {**simpo, "settings": {"beta": 10.0, "gamma": 1.0}, "score": score - away, "kl": 0.5 - 0.3 * s},
        {**simpo, "lr": 1e-3, "score": score + 0.2 * s},
        {**simpo, "bias": 1.0},
        {**dpo, "settings": {"beta": 5.0}, "score": 0.5 - 0.2 * s, "kl": 0.5 - 0.4 * s},
        {**dpo, "bias": 1.0, "tokens": 40 + 10 * s},
        {"loss": "dpo_ln", "score": 0.5 + 0.2 * s},
        {"loss": "dpo_ln", "score": 0.5 + 0.2 * s, "bias": 1.0},
        {"loss": "dpo_gamma", "score": 0.5 - 0.2 * s},
        {"loss": "simpo_sft", "score": score - 0.2 * s},
        {"loss": "ipo", "score": 0.5 - 0.05 * abs(s)},
        {
            "loss": "simpo_no_ln", "score": score - 0.2 * s, "tokens": 40 + 10 * s, "slope": {1: 2.5, 0: 0.3, -1: 0.0}[s],
            "margin": {1: 0.0, 0: 0.0, -1: 1.0}[s], "lean": 3.0 * (s > 0),
        },
    ]  # fmt: skip


def make(s: float, *, only: set[str] | None = None, seed: int = 5) -> dict[str, pd.DataFrame]:
    """The frames of the world. only: losses to keep."""
    rng = np.random.default_rng(seed)
    chosen, rejected = rng.integers(10, 60, (2, PAIRS))
    length = (chosen - chosen.mean()) / chosen.std()
    longer = (chosen - rejected) / (chosen - rejected).std()
    hard, alike = rng.normal(0, 0.1, PROMPTS), rng.normal(size=PAIRS)  # what all models share
    runs, heldout, answers, verdicts = [], [], [], []

    def evaluate(run: str, arm: dict) -> None:
        per_token = (
            -1.5
            + 0.1 * (arm.get("slope", 0.3) * length + alike + 0.2 * rng.normal(size=PAIRS))
            + arm.get("winner", 0.0)
        )
        margin = arm.get("margin", 0.5) + arm.get("lean", 0.0) * longer + rng.normal(size=PAIRS)
        crossed = rng.random(PAIRS) < arm.get("disagree", 0.2)
        other = per_token - 0.2 * np.sign(margin) * np.where(crossed, -1, 1)
        rewards = (margin, np.zeros(PAIRS)) if arm["loss"] != "start" else (np.full(PAIRS, np.nan),) * 2
        heldout.append(
            pd.DataFrame(
                {
                    "run": run, "pair": [f"pair-{i}" for i in range(PAIRS)], "chosen_logp": per_token * chosen,
                    "rejected_logp": other * rejected, "chosen_length": chosen, "rejected_length": rejected,
                    "reference_chosen_logp": (per_token + arm.get("kl", 0.5) + rng.normal(0, 0.1, PAIRS)) * chosen,
                    "reference_rejected_logp": other * rejected, "loss": np.nan, "chosen_reward": rewards[0],
                    "rejected_reward": rewards[1],
                }
            )
        )  # fmt: skip
        tokens = np.maximum(3, rng.normal(arm.get("tokens", 40), 8, PROMPTS)).round()
        prompts = {"run": run, "prompt": [f"prompt-{i}" for i in range(PROMPTS)], "sample": 0}
        answers.append(
            pd.DataFrame({**prompts, "kind": "", "topic": "", "text": "a b", "tokens": tokens, "finished": True})
        )
        passed = np.clip(arm.get("score", 0.5) + hard + rng.normal(0, 0.2, PROMPTS), 0, 1)
        verdicts.append(pd.DataFrame({**prompts, "judge": "verifiable", "score": passed}))

    def about(run: str, arm: dict, seed: int) -> dict:
        trained = arm["loss"] != "start"
        return {
            "run": run, "setting": "made", "kind": "loss" if trained else "start", "loss": arm["loss"], "title": arm["loss"],
            "seed": seed, "settings": json.dumps(arm.get("settings", {})), "lr": arm.get("lr", 3e-4) if trained else np.nan,
            "epochs": 1.0, "batch_size": 16, "start": START, "pairs": 500,
            "seconds": 60 * arm.get("cost", 1.0) * rng.uniform(0.99, 1.01),
            "peak_memory": 1e9 * arm.get("cost", 1.0) * rng.uniform(0.99, 1.01), "tokens": 80_000, "status": "finished",
            "reason": "", "order": "", "protocol": 1, "length_bias": arm.get("bias", 0.0) if trained else np.nan,
            "values": "default" if trained else "", "trials": np.nan, "tuned": "{}",
        }  # fmt: skip

    for place, arm in enumerate([{"loss": "start"}, *arms(s)]):
        if only is not None and arm["loss"] not in only:
            continue
        for number in (-1,) if arm["loss"] == "start" else arm.get("seeds", (1,)):
            run = START if arm["loss"] == "start" else f"made/{arm['loss']}-{place:04x}{number:04x}"
            runs.append(about(run, arm, number))
            evaluate(run, arm)
    parts = {"heldout": heldout, "answers": answers, "verdicts": verdicts}
    return {"runs": pd.DataFrame(runs), **{name: pd.concat(part, ignore_index=True) for name, part in parts.items()}}
