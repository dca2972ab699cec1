"""cDPO (conservative DPO): assumes that a share of the labels is swapped, so no pair is ever certain.

    loss = -(1 - label_smoothing) * log sigmoid(m) - label_smoothing * log sigmoid(-m)
    m = beta * (chosen - reference_chosen) - beta * (rejected - reference_rejected)

Mitchell 2023, "A note on DPO with noisy preferences and relationship to IPO" (no arXiv number); compared in
Chowdhury, Kini, Natarajan 2024, arXiv 2403.00409, Section 3.1. `label_smoothing` is the share of pairs whose two answers
are swapped. The optimum is finite: sigmoid(m) = 1 - label_smoothing.
Elsewhere: `label_smoothing` of the DPO authors' repository and of LLaMA-Factory; TRL had it under `loss_type="sigmoid"`
until it gave the name to its robust loss, and keeps it in its CPO trainer. At 0 it is DPO.
Beware: past its optimum the loss rises again and pulls the pair back.

Gradient:
    chosen = -beta * s
    rejected = beta * s
    s = sigmoid(-m) - label_smoothing
    m = beta * (chosen - reference_chosen) - beta * (rejected - reference_rejected)

Reward: beta * log-ratio to the reference.
"""

from __future__ import annotations

from torch.nn.functional import logsigmoid

from pobench.registry import register_loss
from pobench.types import FlipRate, LossOutput, Pair, Positive


@register_loss(
    "cdpo",
    title="cDPO",
    colour="#aa8a79",
    marker="8",
    aliases=("conservative DPO",),
    source="arXiv 2403.00409, Section 3.1",
    units={"beta": "per nat", "label_smoothing": "share of pairs, 0 to 0.5"},
    meanings={"label_smoothing": "how many pairs are taken to be the wrong way round"},
    defaults={
        "beta": "TRL's default; the note publishes none",
        "label_smoothing": "arXiv 2403.00409, Section 6: its flip rate; the note publishes none",
    },
    becomes={"dpo": {"label_smoothing": 0.0}},
)
def cdpo(policy: Pair, reference: Pair, *, beta: Positive = 0.1, label_smoothing: FlipRate = 0.1) -> LossOutput:
    chosen = beta * (policy.chosen.total - reference.chosen.total)
    rejected = beta * (policy.rejected.total - reference.rejected.total)
    right, wrong = -logsigmoid(chosen - rejected), -logsigmoid(rejected - chosen)
    loss = (1 - label_smoothing) * right + label_smoothing * wrong
    return LossOutput(loss, chosen.detach(), rejected.detach())
