"""A pairwise judge: a causal language model on this machine. It compares the logits of the letters A and B.

Small models have weak opinions and strongly prefer one letter. Averaging both orders cancels that preference but adds no
knowledge: run `pobench judge check` on pairs that people have compared before you trust such a judge.

The first token of a reply is read, so it must be no thought's. Templates that take `enable_thinking` get it as false. Where
the template opens a thought all the same, or the model's likeliest first token does, the model thinks, greedily, for at most
`thought_tokens` tokens, and the letters are read behind the thought. A thought without an end has no verdict.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch

from pobench.data.chat import Chat, chat_template, load_tokenizer, with_values
from pobench.errors import PobenchError
from pobench.judging.pairwise import Comparison, Progress, Read, TwoOrders, question
from pobench.judging.replies import CLOSING, OPENING, closes_thought, opens_thought
from pobench.judging.weights import Precision, Weights, batches, longest
from pobench.model.generate import PRECISIONS, Decoding, decoder, left_padded, stop_tokens
from pobench.model.layouts import PAD
from pobench.model.load import load_model
from pobench.registry import register_judge
from pobench.settings.schema import Count

BLANKS = 3  # tokens of white space, at most, between a thought and the verdict


class LocalJudge(TwoOrders):
    """Asks for a letter and reads P(B) / (P(A) + P(B)) from the logits of the first reply token, without sampling."""

    def __init__(self, weights: Weights, batch_size: int = 8, thought_tokens: int = 1024) -> None:
        self.weights, self.batch_size, self.name = weights, batch_size, weights.name
        self.thought_tokens = thought_tokens

    @cached_property
    def model(self) -> Any:
        w = self.weights
        read = load_model(w.folder, dtype=w.dtype, attention=w.attention, trust_remote_code=w.trust_remote_code)
        return read.to(w.device)

    @cached_property
    def chat(self) -> Chat:
        tokenizer = load_tokenizer(self.weights.folder, trust_remote_code=self.weights.trust_remote_code)
        return Chat(tokenizer, with_values(chat_template(tokenizer), arguments={"enable_thinking": False}))

    @cached_property
    def marks(self) -> tuple[set[int], set[int]]:
        """Token ids that open a thought, and that close one; of marks that are single tokens."""
        vocabulary = self.chat.tokenizer.get_vocab()
        opening, closing = ({vocabulary[mark] for mark in marks if mark in vocabulary} for marks in (OPENING, CLOSING))
        return opening, closing

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
        for places in batches(prompts, self.batch_size, self.model, progress):
            for i, read in zip(places, self._verdicts([prompts[i] for i in places]), strict=True):
                reads[i] = read
        return reads

    def _verdicts(self, rows: Sequence[tuple[int, ...]]) -> list[Read]:
        """The verdicts of one batch of prompts; behind the thought, where one is opened."""
        logits = self._next(rows)
        reads = self._letters(logits)
        opened = opens_thought(self.chat.opening)
        thinks = [i for i, token in enumerate(logits.argmax(-1).tolist()) if opened or token in self.marks[0]]
        behind = self._behind_thoughts([rows[i] for i in thinks]) if thinks else []
        for i, row in zip(thinks, behind, strict=True):
            reads[i] = (
                Read(math.nan, f"the thought has no end within {self.thought_tokens} tokens") if not row else reads[i]
            )
        ended = {i: row for i, row in zip(thinks, behind, strict=True) if row}
        for i, read in zip(ended, self._letters(self._past_blanks([*ended.values()])) if ended else (), strict=True):
            reads[i] = read
        return reads

    def _next(self, rows: Sequence[tuple[int, ...]]) -> torch.Tensor:
        """Logits of the token after each row, (rows, vocabulary)."""
        batch = left_padded(rows, PAD, self.weights.device)
        last = torch.tensor([-1], device=self.weights.device)  # an index: see `pobench.model.generate`
        logits: torch.Tensor = self.model(**batch, use_cache=False, logits_to_keep=last).logits
        return logits[:, -1].float()

    def _letters(self, logits: torch.Tensor) -> list[Read]:
        a, b = (logits[:, ids].logsumexp(1) for ids in self.letters)
        return [*map(Read, torch.sigmoid((b - a).double()).tolist())]

    def _past_blanks(self, rows: list[tuple[int, ...]]) -> torch.Tensor:
        """As `_next`, behind the white space that the model writes first."""
        for _ in range(BLANKS):
            logits = self._next(rows)
            tokens = logits.argmax(-1).tolist()
            blank = [not self._spelled([token]).strip() for token in tokens]
            if not any(blank):
                return logits
            rows = [(*row, token) if b else row for row, token, b in zip(rows, tokens, blank, strict=True)]
        return self._next(rows)

    def _behind_thoughts(self, rows: Sequence[tuple[int, ...]]) -> list[tuple[int, ...]]:
        """The rows with their thoughts, up to the closing mark; () where a thought has no end."""
        room = longest(self.model) - max(map(len, rows)) - BLANKS
        if room < 1:
            return [()] * len(rows)
        precision = next(name for name, dtype in PRECISIONS.items() if dtype == self.weights.dtype)
        decoding = Decoding(min(self.thought_tokens, room), precision=precision)
        stops = sorted({*stop_tokens(self.model, self.chat), *self.marks[1]})
        with decoder(self.model, stops, decoding) as decode:
            replies = decode(rows, [0] * len(rows))
        return [self._through_thought(row, reply) for row, reply in zip(rows, replies, strict=True)]

    def _through_thought(self, row: tuple[int, ...], reply: Sequence[int]) -> tuple[int, ...]:
        def closed(count: int) -> bool:
            return closes_thought(self._spelled(reply[:count]))

        return (*row, *reply[: bisect_left(range(len(reply)), True, key=closed)]) if closed(len(reply)) else ()

    def _spelled(self, ids: Sequence[int]) -> str:
        return str(self.chat.tokenizer.decode(list(ids), skip_special_tokens=False))


@register_judge("local", runtime=("batch_size",), free=True, compares=True)
def local(
    *,
    model: str = "",
    revision: str | None = None,
    batch_size: Count = 8,
    precision: Precision = "auto",
    thought_tokens: Count = 1024,
    trust_remote_code: bool = False,
) -> LocalJudge:
    """A causal language model on this machine compares two answers by P(A) and P(B); both orders are averaged.

    model: a folder or hub name with a chat template. thought_tokens: of a thought, at most, where the model thinks.
    trust_remote_code: run code that comes with the model.
    """
    return LocalJudge(Weights(model, revision, precision, trust_remote_code), batch_size, thought_tokens)
