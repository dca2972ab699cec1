"""Which layout of rows a model takes: the packed one where it is proven to give the same numbers, else padded rows."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from pobench.errors import PobenchError
from pobench.model.cpu.attention import BLOCK, take_matrices, takes_blocks, takes_parts
from pobench.model.layouts import Layout
from pobench.model.logps import ResponseLogps
from pobench.types import Group


@torch.no_grad()
def plain_logps(model: Any, group: Group) -> Tensor:
    """(responses,) nats by the model's own logits, one sequence at a time, fp64 log-softmax: the yardstick."""
    sums = []
    device = next(model.parameters()).device
    for response in group.responses:
        ids = torch.tensor([group.prompt + response], device=device)
        logits = model(input_ids=ids, use_cache=False).logits[0, len(group.prompt) - 1 : -1].double()
        logp = torch.log_softmax(logits, -1).gather(1, ids[0, len(group.prompt) :, None])
        sums.append(logp.sum())
    return torch.stack(sums)


def _longer(group: Group) -> Group:
    """With a prompt that fills more than one further block."""
    times = 1 + -(-2 * BLOCK // len(group.prompt))
    return group._replace(prompt=group.prompt * times)


def choose_layout(policy: ResponseLogps, groups: Sequence[Group], wanted: str = "auto") -> tuple[str, str]:
    """(layout name, why). `auto` takes the shared prefix where the model proves, on the first groups, that it computes the
    same sums as one sequence at a time; models whose attention ignores a custom mask get the padded layout. Attention
    by blocks (in two sizes, and on a GPU with the backward pass) or by parts is tried first; where it fails, the model goes
    back to matrices.

    Raises PobenchError if even the padded layout disagrees with the model's own logits (an unknown kind of head).
    """
    trial = list(groups[:2])
    tolerance = 1e-4 if policy.model.dtype == torch.float32 else 5e-2
    faults = []

    @cache
    def plain(g: Group) -> Tensor:
        return plain_logps(policy.model, g)

    def furthest(layout: Layout, groups: Sequence[Group], backward: bool) -> float:
        """The largest difference from one sequence at a time, nats a token."""
        sums = torch.cat([plain(g) for g in groups])
        tokens = torch.tensor([len(r) for g in groups for r in g.responses], device=sums.device)
        with torch.set_grad_enabled(backward):
            ours = policy(layout.collate(groups, policy.window).to(sums.device))
            if ours.requires_grad:
                torch.autograd.grad(ours.sum(), next(p for p in policy.parameters() if p.requires_grad))
        return ((ours.detach() - sums).abs() / tokens).max().item()

    def proven(name: str) -> str:
        """How well it agrees; "" where it does not, with a fault noted."""
        blocks = name == "shared_prefix" and takes_blocks(policy.model)
        parts = name == "shared_prefix" and takes_parts(policy.model)
        how = " by blocks" if blocks else " by parts" if parts else ""
        layout, called = policy.layout(name), name + how
        # Kernels are compiled for one width of a row, and once more for widths that change.
        trials = [trial, [*map(_longer, trial), *trial]] if blocks else [trial]
        try:
            off = max(furthest(layout, t, blocks and policy.model.device.type != "cpu") for t in trials)
        except Exception as error:
            if not (blocks or isinstance(error, TypeError | ValueError | RuntimeError | KeyError)):
                raise  # where kernels are compiled, anything may go wrong; elsewhere these tell of a mask not taken
            faults.append(f"{called}: {type(error).__name__}: {error}")
            return ""
        if off < tolerance:
            return (
                f"{'by blocks of attention, ' if blocks else ''}equals one sequence at a time to {off:.0e} nats a token"
            )
        faults.append(f"{called}: differs by {off:.2g} nats a token")
        return ""

    for name in ("shared_prefix", "padded") if wanted == "auto" else (wanted,):
        why = proven(name)
        if not why and name == "shared_prefix" and (takes_blocks(policy.model) or takes_parts(policy.model)):
            take_matrices(policy.model)
            why = proven(name)
        if why:
            return name, why + "".join(f"; {fault}" for fault in faults)
    raise PobenchError("the log-probabilities of this model cannot be computed exactly:\n  " + "\n  ".join(faults))
