"""A value model: V(x), one number for a prompt, beside a policy whose loss asks for it.

It is a copy of the body of the model that training begins from, with a linear head on the state of the prompt's last token.
The head begins at 0, and so does every value. The copy computes by the model's own code; dropout is off.
"""

from __future__ import annotations

import copy
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pobench.errors import PobenchError
from pobench.model.attention import use_matrices
from pobench.model.dropout import switch_off_dropout
from pobench.model.layouts import PAD, Batch


class Prompts(NamedTuple):
    """The prompts of a micro-batch. ids: (prompts, width), padded on the right. last: (prompts,) the place of each one's last
    token. owner: (responses,) the prompt of each response."""

    ids: Tensor
    last: Tensor
    owner: Tensor

    @classmethod
    def of(cls, batch: Batch) -> Prompts:
        """A prompt lies in its row in one piece, but for its root, and ends where its responses' first tokens are predicted."""
        responses = torch.arange(batch.responses, device=batch.sequence.device)
        ends, owner = batch.previous[torch.searchsorted(batch.sequence, responses)].unique(return_inverse=True)
        last = batch.position_ids.flatten()[ends]
        place = torch.arange(int(last.max()) + 1, device=ends.device)
        at = torch.where(place < batch.root, place, (ends - last)[:, None] + place)
        inside = place <= last[:, None]
        ids = batch.input_ids.flatten()[torch.where(inside, at, 0)]
        return cls(ids.masked_fill(~inside, PAD), last, owner)


class PromptValue(nn.Module):
    """A value model as a function from a micro-batch to (responses,) fp32 values, each of a response's prompt."""

    def __init__(self, model: Any) -> None:
        """model: a causal language model before its layers are exchanged. Raises PobenchError if it has frozen weights."""
        super().__init__()
        if any(not weight.requires_grad for weight in model.parameters()):
            raise PobenchError(
                "a value model begins as the policy and trains all of its weights; some of these are frozen"
            )
        self.body = copy.deepcopy(model.base_model)
        use_matrices(self.body)
        switch_off_dropout(self.body)
        weight = model.get_output_embeddings().weight
        self.head = nn.Linear(weight.shape[1], 1, device=weight.device)
        for parameter in self.head.parameters():
            nn.init.zeros_(parameter)

    def forward(self, batch: Batch) -> Tensor:
        prompts = Prompts.of(batch)
        states = self.body(input_ids=prompts.ids, use_cache=False).last_hidden_state
        ends = states[torch.arange(len(prompts.last), device=states.device), prompts.last]
        with torch.autocast(ends.device.type, enabled=False):
            values: Tensor = self.head(ends.float())[:, 0]
        return values[prompts.owner]
