"""What the two MallowsPO losses compute with. A file of its own, so that the runs of other losses keep their names when it
changes."""

from __future__ import annotations

import torch
from torch import Tensor

from pobench.types import Entropy, Pair

LEAST_DISPERSION = 1e-6  # keeps the certainty finite


def relative_logps(policy: Pair, reference: Pair | None, average: bool) -> tuple[Tensor, Tensor]:
    """(pairs,) each, of chosen and rejected: the log-probability, less the reference's if there is one; a token's mean if
    `average`."""
    totals = [side.total for side in policy]
    if reference is not None:
        totals = [total - base.total for total, base in zip(totals, reference, strict=True)]
    chosen, rejected = (total / side.length if average else total for total, side in zip(totals, policy, strict=True))
    return chosen, rejected


def certainty(entropy: Entropy, policy: Pair, scale: float) -> Tensor:
    """(pairs,) MallowsPO's `-scale * log(dispersion)`: the dispersion is the mean of the two responses' mean entropies under
    the reference, as a share of the largest entropy. policy: for the lengths."""
    assert entropy.reference is not None
    lengths = torch.stack([side.length for side in policy], dim=1)
    dispersion = (entropy.reference.sum(-1) / lengths).mean(1) / entropy.largest
    return -scale * dispersion.clamp(min=LEAST_DISPERSION).log()
