"""Held-out log-probabilities of the policy and the reference, and the run's own loss and rewards, one row a pair."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pobench.runs.stage import Content, Stage
from pobench.settings.job import Job

if TYPE_CHECKING:
    import pandas as pd
    import torch

    from pobench.runs.context import Context
    from pobench.types import TokenPair


def causes(job: Job, content: Content) -> Mapping[str, Any]:
    return {"pairs": content.heldout, "precision": content.precise(job.train.precision), "layout": job.train.layout}


def run(context: Context) -> None:
    context.store("heldout", {"heldout": context.heldout_frame()})


STAGE = Stage(
    name="heldout",
    does="log-probabilities of the held-out pairs",
    reads=("reference", "train"),
    writes=("heldout.parquet",),
    decided_by="trained weights, token ids of the held-out pairs",
    run=run,
    causes=causes,
)


# ---------------------------------------------------------------- the frame
def pairs_frame(pairs: Sequence[TokenPair], totals: torch.Tensor, reference: torch.Tensor) -> pd.DataFrame:
    """One row a pair. totals, reference: (pairs, 2 or 3) nats of the chosen, the rejected and the mismatched answer, if
    there is one; rewards are nan until a loss gives them."""
    import pandas as pd
    import torch

    sums = ("chosen_logp", "rejected_logp", "mismatched_logp")
    blank = torch.full((len(pairs),), math.nan)
    policy_of, reference_of = (dict(zip(sums, [*t.T, blank], strict=False)) for t in (totals, reference))
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
        }
    )


def heldout_means(frame: pd.DataFrame) -> dict[str, float]:
    """What a step logs of the held-out pairs, means over them: KL(reference ‖ policy) on winners and their
    log-probability, both in nats per token; accuracy (a tie counts half) and margin of the loss's own reward."""
    per_token = frame["chosen_logp"] / frame["chosen_length"]
    gap = frame["chosen_reward"] - frame["rejected_reward"]
    return {
        "heldout/kl": float((frame["reference_chosen_logp"] / frame["chosen_length"] - per_token).mean()),
        "heldout/chosen_per_token": float(per_token.mean()),
        "heldout/accuracy": float(((gap > 0) + 0.5 * (gap == 0)).where(gap.notna()).mean()),
        "heldout/margin": float(gap.mean()),
    }
