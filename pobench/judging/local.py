"""A pairwise judge: a causal language model on this machine. It compares the logits of the letters A and B.

Small models have weak opinions and strongly prefer one letter. Averaging both orders cancels that preference but adds no
knowledge: run `pobench judge check` on pairs that people have compared before you trust such a judge.

The first token of a reply is read, so it must be no thought's: templates that take `enable_thinking` get it as false, and a
model whose template opens a thought all the same is refused.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch

from pobench.data.chat import Chat, chat_template, load_tokenizer, with_values
from pobench.errors import PobenchError
from pobench.judging.pairwise import Comparison, Progress, Read, TwoOrders, question
from pobench.judging.replies import opens_thought
from pobench.judging.weights import Precision, Weights, batches, longest
from pobench.model.generate import left_padded
from pobench.model.layouts import PAD
from pobench.model.load import load_model
from pobench.registry import register_judge
from pobench.settings.schema import Count


class LocalJudge(TwoOrders):
    """Asks for a letter and reads P(B) / (P(A) + P(B)) from the logits of the first reply token, without sampling."""

    def __init__(self, weights: Weights, batch_size: int = 8) -> None:
        self.weights, self.batch_size, self.name = weights, batch_size, weights.name

    @cached_property
    def model(self) -> Any:
        w = self.weights
        read = load_model(w.folder, dtype=w.dtype, attention=w.attention, trust_remote_code=w.trust_remote_code)
        return read.to(w.device)

    @cached_property
    def chat(self) -> Chat:
        tokenizer = load_tokenizer(self.weights.folder, trust_remote_code=self.weights.trust_remote_code)
        chat = Chat(tokenizer, with_values(chat_template(tokenizer), arguments={"enable_thinking": False}))
        if opens_thought(chat.opening):
            raise PobenchError(
                f"judge model {self.name!r} begins every reply with a thought, and this judge reads the first token of a "
                "reply; name a model that answers at once, or serve this one and use the judge `endpoint`"
            )
        return chat

    @cached_property
    def letters(self) -> list[list[int]]:
        """Token ids of A and of B, each with and without a space before it."""
        first_ids = []
        for letter in "AB":
            spelled = [self.chat.tokenizer(text, add_special_tokens=False).input_ids for text in (letter, f" {letter}")]
            first_ids.append(sorted({ids[0] for ids in spelled if len(ids) == 1}))
        if not all(first_ids):
            raise PobenchError(f"judge model {self.name!r}: its tokenizer has no token for the letters A and B")
        return first_ids

    @torch.inference_mode()
    def read(self, shown: Sequence[Comparison], progress: Progress | None = None) -> list[Read]:
        """P(B) for each comparison; nan if the question is longer than the model reads."""
        # `lead`: the empty thought that some templates write before an answer; the verdict stands behind it
        prompts = self.chat.ids([self.chat.prompt(question(c)) + self.chat.lead for c in shown])
        limit = longest(self.model)
        reads = [Read(math.nan, f"{len(ids)} tokens; the model reads {limit}") for ids in prompts]
        last = torch.tensor([-1], device=self.weights.device)  # an index: see `pobench.model.generate`
        for places in batches(prompts, self.batch_size, self.model, progress):
            batch = left_padded([prompts[i] for i in places], PAD, self.weights.device)
            logits = (
                self.model(**batch, use_cache=False, logits_to_keep=last).logits[:, -1].float()
            )  # (rows, vocabulary)
            a, b = (logits[:, ids].logsumexp(1) for ids in self.letters)
            for i, probability in zip(places, torch.sigmoid((b - a).double()).tolist(), strict=True):
                reads[i] = Read(probability)
        return reads


@register_judge("local", runtime=("batch_size",), free=True, compares=True)
def local(
    *,
    model: str = "",
    revision: str | None = None,
    batch_size: Count = 8,
    precision: Precision = "auto",
    trust_remote_code: bool = False,
) -> LocalJudge:
    """A causal language model on this machine compares two answers by P(A) and P(B); both orders are averaged.

    model: a folder or hub name with a chat template. trust_remote_code: run code that comes with the model.
    """
    return LocalJudge(Weights(model, revision, precision, trust_remote_code), batch_size)
