"""Synthetic frames of the store's contract, from a fixed seed: a world in which it is known who is better."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import NamedTuple

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


class Effect(NamedTuple):
    """What a loss does to the model: by how much the pass rate rises, how far log-probabilities move with length, up on winners
    and on losers, per token, and the factor of the answers' length."""

    gain: float = 0.0
    slope: float = 0.0
    up: float = 0.0
    down: float = 0.0
    longer: float = 1.0


class World:
    """Pairs, prompts and a start model that knows them to some degree. Rows are drawn in the order of the calls."""

    def __init__(self, setting: str, prompts: int, samples: int, pairs: int, seed: int) -> None:
        self.setting, self.start = setting, f"{setting}/start-{seed:08x}"
        self.prompts, self.samples, self.pairs = prompts, samples, pairs
        self.rng = rng = np.random.default_rng(seed)
        self.base_pass = {k: 0.25 + 0.5 * i / len(KINDS) for i, k in enumerate(KINDS)}
        self.hard = rng.normal(0, 0.15, prompts)
        self.chosen_length, self.rejected_length = rng.integers(20, 200, pairs), rng.integers(20, 260, pairs)
        self.reference_chosen = -self.chosen_length * rng.normal(1.3, 0.25, pairs)
        self.reference_rejected = -self.rejected_length * rng.normal(1.35, 0.25, pairs)

    def run_row(self, run: str, loss: str, title: str, seed: int, settings: dict, reason: str, protocol: int) -> dict:
        trained = loss != "start"
        return {
            "run": run, "setting": self.setting, "kind": "loss" if trained else "start", "loss": loss, "title": title,
            "seed": seed, "settings": json.dumps(settings), "lr": 5e-6 if trained else np.nan,
            "epochs": 1.0 if trained else np.nan, "batch_size": 8 if trained else np.nan, "start": self.start,
            "pairs": 320 if trained else np.nan, "seconds": float(self.rng.uniform(80, 140)) if trained else np.nan,
            "peak_memory": 2.1e9 if trained else np.nan, "tokens": 81_000 if trained else np.nan,
            "status": "failed" if reason else "finished", "reason": reason, "order": "5f2c91ab" if trained else "",
            "protocol": protocol, "values": "default" if trained else "", "tuned": "{}",
        }  # fmt: skip

    def step_rows(self, run: str, loss: str, effect: Effect, steps: int, last: int) -> Iterator[dict]:
        """Rows of the first `last` of `steps` steps."""
        rng = self.rng
        for t in range(1, last + 1):
            done = t / steps
            chosen, rejected = effect.up * 60 * done + rng.normal(0, 1), effect.down * 60 * done + rng.normal(0, 1)
            yield {
                "run": run, "step": t, "epoch": done, "loss": np.log(2) * np.exp(-done) + rng.normal(0, 0.04),
                "lr": 5e-6 * (1 - done), "grad_norm": float(np.exp(rng.normal(1.5, 0.3))),
                "rewards/chosen": 0.1 * chosen, "rewards/rejected": 0.1 * rejected,
                "rewards/margins": 0.1 * (chosen - rejected),
                "rewards/accuracies": float(np.clip(0.5 + 0.25 * done + rng.normal(0, 0.08), 0, 1)),
                "logps/chosen": -110 * 1.3 + chosen, "logps/rejected": -140 * 1.35 + rejected,
                "logps/chosen_per_token": -1.3 + chosen / 110, "logps/rejected_per_token": -1.35 + rejected / 140,
                "saturated": 0.01, "kl": 0.2 * done if loss == "kto" else np.nan, "seconds": 2.0 * t,
            }  # fmt: skip

    def heldout_rows(self, run: str, loss: str, effect: Effect) -> Iterator[dict]:
        noise = self.rng.normal(0, 0.15, (2, self.pairs))
        lean = effect.slope * (self.chosen_length - 110) / 110
        lean_rejected = effect.slope * (self.rejected_length - 140) / 110
        moved = loss != "start"
        shifts = (effect.up + noise[0] + lean, effect.down + noise[1] + lean_rejected) if moved else (0.0, 0.0)
        chosen = self.reference_chosen + self.chosen_length * shifts[0]
        rejected = self.reference_rejected + self.rejected_length * shifts[1]
        beta = 2.0 if loss.startswith("simpo") else 0.1
        if loss == "simpo":
            rewards = beta * chosen / self.chosen_length, beta * rejected / self.rejected_length
        else:
            rewards = beta * (chosen - self.reference_chosen), beta * (rejected - self.reference_rejected)
        for i in range(self.pairs):
            own = (rewards[0][i], rewards[1][i]) if moved else (np.nan, np.nan)
            yield {
                "run": run, "pair": f"pair-{i:04d}", "chosen_logp": chosen[i], "rejected_logp": rejected[i],
                "chosen_length": self.chosen_length[i], "rejected_length": self.rejected_length[i],
                "reference_chosen_logp": self.reference_chosen[i], "reference_rejected_logp": self.reference_rejected[i],
                "loss": float(np.log1p(np.exp(own[1] - own[0]))) if moved else np.nan,
                "chosen_reward": own[0], "rejected_reward": own[1],
            }  # fmt: skip

    def answer_rows(self, run: str, effect: Effect) -> Iterator[tuple[dict, dict]]:
        """Each answer with its verdict."""
        rng, longer = self.rng, effect.longer
        for p in range(self.prompts):
            kind = KINDS[p % len(KINDS)]
            for s in range(self.samples):
                length = max(3, int(rng.normal(28, 8) * longer))
                words = [str(w) for w in rng.choice(WORDS, length)]
                if longer > 2:
                    words = words[:6] * (length // 6 + 1)
                ended = bool(rng.random() > (0.3 if longer > 2 else 0.04))
                answer = {
                    "run": run, "prompt": f"prompt-{p:03d}", "sample": s, "kind": kind, "topic": f"topic {p % 7}",
                    "instruction": f"Write about topic {p % 7}: {kind}.", "text": " ".join(words).capitalize() + ".",
                    "tokens": int(length * 1.3) + 1, "finished": ended,
                }  # fmt: skip
                rate = np.clip(self.base_pass[kind] + self.hard[p] + effect.gain, 0.02, 0.98)
                passed = float(rng.random() < rate)
                verdict = {"run": run, "prompt": answer["prompt"], "sample": s, "judge": "verifiable", "score": passed}
                yield answer, verdict


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
    world = World(setting, prompts, samples, pairs, rng_seed)
    rows: dict[str, list[dict]] = {name: [] for name in ("runs", "steps", "heldout", "answers", "verdicts")}

    def evaluate(run: str, loss: str, effect: Effect) -> None:
        rows["heldout"] += world.heldout_rows(run, loss, effect)
        for answer, verdict in world.answer_rows(run, effect):
            rows["answers"].append(answer)
            rows["verdicts"].append(verdict)

    rows["runs"].append(world.run_row(world.start, "start", "Start model", -1, {}, "", protocol))
    evaluate(world.start, "start", Effect())
    for loss, (title, settings, *effect_of) in losses.items():
        effect = Effect(*effect_of)
        for seed in seeds:
            run = f"{setting}/{loss}-{abs(hash_of(loss, settings, seed)):08x}"
            reason = "the loss became nan at step 14" if loss in failed else ""
            rows["runs"].append(world.run_row(run, loss, title, seed, settings, reason, protocol))
            rows["steps"] += world.step_rows(run, loss, effect, steps, steps // 3 if reason else steps)
            if not reason:
                evaluate(run, loss, effect)
    rows["audit"] = [
        {"setting": setting, "fault": "identical answers", "count": 3, "rows": "[12, 40, 77]"},
        {"setting": setting, "fault": "over-long prompt", "count": 1, "rows": "[201]"},
    ]
    return {name: FRAMES[name].of(made) for name, made in rows.items()}


def hash_of(*parts: object) -> int:
    """A number that does not change from one process to the next."""
    import hashlib

    return int(hashlib.sha256(repr(parts).encode()).hexdigest()[:8], 16)
