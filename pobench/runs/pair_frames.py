"""Sums of log-probabilities as a frame with one row a pair, and the means of it that a step logs."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pandas as pd
import torch

from pobench.types import TokenPair


def pairs_frame(
    pairs: Sequence[TokenPair], totals: torch.Tensor, reference: torch.Tensor, *, rated: bool = False
) -> pd.DataFrame:
    """One row a pair. totals, reference: (pairs, 2 or 3) nats of the chosen, the rejected and the mismatched answer, if
    there is one; rewards are nan until a loss gives them. rated: with the data's ratings, which the run's loss asks for. The
    pairs' sources stand in it where they have some."""
    sums = ("chosen_logp", "rejected_logp", "mismatched_logp")
    blank = torch.full((len(pairs),), math.nan)
    policy_of, reference_of = (dict(zip(sums, [*t.T, blank], strict=False)) for t in (totals, reference))
    scores = [p.scores or (math.nan, math.nan) for p in pairs]
    ratings = dict(zip(("chosen_score", "rejected_score"), zip(*scores, strict=True), strict=True)) if rated else {}
    sources = [p.source for p in pairs]
    return pd.DataFrame(
        {
            "pair": [p.id for p in pairs],
            "chosen_logp": policy_of["chosen_logp"].numpy(),
            "rejected_logp": policy_of["rejected_logp"].numpy(),
            "chosen_length": [len(p.chosen) for p in pairs],
            "rejected_length": [len(p.rejected) for p in pairs],
            **{f"reference_{name}": reference_of[name].numpy() for name in sums},
            "mismatched_logp": policy_of["mismatched_logp"].numpy(),
            "loss": math.nan,
            "chosen_reward": math.nan,
            "rejected_reward": math.nan,
            **ratings,
            **({"source": sources} if any(sources) else {}),
        }
    )


def heldout_means(frame: pd.DataFrame) -> dict[str, float]:
    """Means over the held-out pairs, which a step logs: KL(reference ‖ policy) on winners and their
    log-probability, both in nats per token; accuracy (a tie counts half) and margin of the loss's own reward."""
    per_token = frame["chosen_logp"] / frame["chosen_length"]
    gap = frame["chosen_reward"] - frame["rejected_reward"]
    return {
        "heldout/kl": float((frame["reference_chosen_logp"] / frame["chosen_length"] - per_token).mean()),
        "heldout/chosen_per_token": float(per_token.mean()),
        "heldout/accuracy": float(((gap > 0) + 0.5 * (gap == 0)).where(gap.notna()).mean()),
        "heldout/margin": float(gap.mean()),
    }
