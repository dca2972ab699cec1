"""Synthetic frames of the store's contract, from a fixed seed: a world in which it is known who is better."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd

from pobench.columns import FRAMES

LOSSES = {
    # name: (title, settings, gain in pass rate, slope of log-prob on length, shift of winners, of losers, longer by)
    "simpo": ("SimPO", {"beta": 2.0, "gamma": 1.0}, 0.22, 0.0, -0.10, -0.45, 1.15),
    "dpo": ("DPO", {"beta": 0.1}, 0.12, 0.15, -0.05, -0.25, 1.3),
    "kto": ("KTO", {"beta": 0.1, "desirable_weight": 1.0, "undesirable_weight": 1.0}, 0.08, 0.1, 0.05, -0.05, 1.0),
    "ipo": ("IPO", {"tau": 0.1, "average": False}, 0.02, 0.05, 0.01, -0.02, 1.0),
    "simpo_no_ln": ("SimPO w/o LN", {"beta": 0.1, "gamma": 1.0}, -0.12, 0.6, -0.9, -1.2, 2.2),
}
KINDS = ("at most 20 words", "no commas", "three bullet points", "all lower case")
WORDS = [
    "the",
    "a",
    "sea",
    "is",
    "blue",
    "and",
    "cold",
    "wind",
    "blows",
    "over",
    "old",
    "hills",
    "where",
    "sheep",
    "graze",
    "near",
    "quiet",
    "stones",
    "today",
]


def make_frames(
    losses: dict[str, tuple] = LOSSES,
    *,
    setting: str = "tiny",
    seeds: tuple[int, ...] = (1,),
    prompts: int = 48,
    samples: int = 2,
    pairs: int = 120,
    steps: int = 40,
    protocol: int = 1,
    rng_seed: int = 7,
    failed: tuple[str, ...] = (),
) -> dict[str, pd.DataFrame]:
    """Frames of one start model and of each loss with each seed; `failed` losses stop after a third of their steps."""
    rng = np.random.default_rng(rng_seed)
    start = f"{setting}/start-{rng_seed:08x}"
    base_pass = {k: 0.25 + 0.5 * i / len(KINDS) for i, k in enumerate(KINDS)}
    hard = rng.normal(0, 0.15, prompts)
    chosen_length, rejected_length = rng.integers(20, 200, pairs), rng.integers(20, 260, pairs)
    reference_chosen = -chosen_length * rng.normal(1.3, 0.25, pairs)
    reference_rejected = -rejected_length * rng.normal(1.35, 0.25, pairs)

    runs, step_rows, heldout, answers, verdicts = [], [], [], [], []

    def evaluate(run: str, gain: float, slope: float, up: float, down: float, longer: float, loss: str) -> None:
        noise = rng.normal(0, 0.15, (2, pairs))
        lean = slope * (chosen_length - 110) / 110
        lean_rejected = slope * (rejected_length - 140) / 110
        shifts = (up + noise[0] + lean, down + noise[1] + lean_rejected) if loss != "start" else (0.0, 0.0)
        chosen = reference_chosen + chosen_length * shifts[0]
        rejected = reference_rejected + rejected_length * shifts[1]
        for i in range(pairs):
            beta = 2.0 if loss.startswith("simpo") else 0.1
            per_token = loss == "simpo"
            rewards = (
                (beta * chosen[i] / chosen_length[i], beta * rejected[i] / rejected_length[i])
                if per_token
                else (beta * (chosen[i] - reference_chosen[i]), beta * (rejected[i] - reference_rejected[i]))
            )
            if loss == "start":
                rewards = (np.nan, np.nan)
            heldout.append(
                {
                    "run": run, "pair": f"pair-{i:04d}", "chosen_logp": chosen[i], "rejected_logp": rejected[i],
                    "chosen_length": chosen_length[i], "rejected_length": rejected_length[i],
                    "reference_chosen_logp": reference_chosen[i], "reference_rejected_logp": reference_rejected[i],
                    "loss": np.nan if loss == "start" else float(np.log1p(np.exp(rewards[1] - rewards[0]))),
                    "chosen_reward": rewards[0], "rejected_reward": rewards[1],
                }
            )  # fmt: skip
        for p in range(prompts):
            kind = KINDS[p % len(KINDS)]
            for s in range(samples):
                length = max(3, int(rng.normal(28, 8) * longer))
                words = [str(w) for w in rng.choice(WORDS, length)]
                if longer > 2:
                    words = words[:6] * (length // 6 + 1)
                ended = bool(rng.random() > (0.3 if longer > 2 else 0.04))
                answers.append(
                    {
                        "run": run, "prompt": f"prompt-{p:03d}", "sample": s, "kind": kind, "topic": f"topic {p % 7}",
                        "instruction": f"Write about topic {p % 7}: {kind}.",
                        "text": " ".join(words).capitalize() + ".",
                        "tokens": int(length * 1.3) + 1, "finished": ended,
                    }
                )  # fmt: skip
                passed = float(rng.random() < np.clip(base_pass[kind] + hard[p] + gain, 0.02, 0.98))
                verdicts.append(
                    {"run": run, "prompt": f"prompt-{p:03d}", "sample": s, "judge": "verifiable", "score": passed}
                )

    def run_row(run: str, loss: str, title: str, seed: int, settings: dict, status: str, reason: str) -> dict:
        trained = loss != "start"
        return {
            "run": run, "setting": setting, "kind": "loss" if trained else "start", "loss": loss, "title": title,
            "seed": seed, "settings": json.dumps(settings), "lr": 5e-6 if trained else np.nan,
            "epochs": 1.0 if trained else np.nan, "batch_size": 8 if trained else np.nan, "start": start,
            "pairs": 320 if trained else np.nan, "seconds": float(rng.uniform(80, 140)) if trained else np.nan,
            "peak_memory": 2.1e9 if trained else np.nan, "tokens": 81_000 if trained else np.nan, "status": status,
            "reason": reason, "order": "5f2c91ab" if trained else "", "protocol": protocol,
            "values": "default" if trained else "", "tuned": "{}",
        }  # fmt: skip

    runs.append(run_row(start, "start", "Start model", -1, {}, "finished", ""))
    evaluate(start, 0.0, 0.0, 0.0, 0.0, 1.0, "start")
    for loss, (title, settings, gain, slope, up, down, longer) in losses.items():
        for seed in seeds:
            run = f"{setting}/{loss}-{abs(hash_of(loss, settings, seed)):08x}"
            bad = loss in failed
            runs.append(
                run_row(run, loss, title, seed, settings, "failed" if bad else "finished",
                        "the loss became nan at step 14" if bad else "")
            )  # fmt: skip
            for t in range(1, (steps // 3 if bad else steps) + 1):
                done = t / steps
                chosen, rejected = up * 60 * done + rng.normal(0, 1), down * 60 * done + rng.normal(0, 1)
                step_rows.append(
                    {
                        "run": run, "step": t, "epoch": done, "loss": np.log(2) * np.exp(-done) + rng.normal(0, 0.04),
                        "lr": 5e-6 * (1 - done), "grad_norm": float(np.exp(rng.normal(1.5, 0.3))),
                        "rewards/chosen": 0.1 * chosen, "rewards/rejected": 0.1 * rejected,
                        "rewards/margins": 0.1 * (chosen - rejected),
                        "rewards/accuracies": float(np.clip(0.5 + 0.25 * done + rng.normal(0, 0.08), 0, 1)),
                        "logps/chosen": -110 * 1.3 + chosen, "logps/rejected": -140 * 1.35 + rejected,
                        "logps/chosen_per_token": -1.3 + chosen / 110,
                        "logps/rejected_per_token": -1.35 + rejected / 140,
                        "saturated": 0.01, "kl": 0.2 * done if loss == "kto" else np.nan, "seconds": 2.0 * t,
                    }
                )  # fmt: skip
            if not bad:
                evaluate(run, gain, slope, up, down, longer, loss)
    audit = [
        {"setting": setting, "fault": "identical answers", "count": 3, "rows": "[12, 40, 77]"},
        {"setting": setting, "fault": "over-long prompt", "count": 1, "rows": "[201]"},
    ]
    rows = {
        "runs": runs,
        "steps": step_rows,
        "heldout": heldout,
        "answers": answers,
        "verdicts": verdicts,
        "audit": audit,
    }
    return {name: FRAMES[name].of(made) for name, made in rows.items()}


def hash_of(*parts: object) -> int:
    """A number that does not change from one process to the next."""
    import hashlib

    return int(hashlib.sha256(repr(parts).encode()).hexdigest()[:8], 16)
