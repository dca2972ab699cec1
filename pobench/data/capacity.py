"""What a model can read, a token id below its embeddings and a position below its context, compared with what it will be
given. A model with rotary positions computes beyond its context in silence, and its numbers there mean nothing."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from pobench.data.chat import Chat
from pobench.positions import context_of, rope_reach
from pobench.types import Group


class Extent(NamedTuple):
    """largest: the largest token id of some sequences. longest: the most tokens of one, prompt and response together."""

    largest: int
    longest: int

    @classmethod
    def of(cls, groups: Iterable[Group]) -> Extent:
        """Of every response behind its prompt. (-1, 0) without groups."""
        largest, longest = -1, 0
        for prompt, responses, _ in groups:
            largest = max(largest, *prompt, *map(max, filter(None, responses)))
            longest = max(longest, len(prompt) + max(map(len, responses)))
        return cls(largest, longest)

    @classmethod
    def of_prompts(cls, prompts: Sequence[Sequence[int]], new: int) -> Extent:
        """Of prompts that are answered by at most `new` tokens."""
        return cls(max(map(max, prompts), default=-1), max(map(len, prompts), default=-new) + new)


class Capacity(NamedTuple):
    """embeddings: the number of token ids that a model knows. positions: the most tokens that it reads. None: not known, or
    without a limit. reach: the most tokens at the rotary frequencies that a run's `max_length` chooses; None if they are the
    same at every length."""

    embeddings: int | None
    positions: int | None
    reach: int | None = None

    @classmethod
    def of(cls, folder: Path, length: int, *, trust_remote_code: bool = False) -> Capacity:
        """Of the model in `folder`, by its config.json; what loading reports about an unknown kind is left to loading.

        length: the run's `max_length`.
        """
        from transformers import AutoConfig

        try:
            config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code).get_text_config()
        except (ValueError, OSError, KeyError, TypeError, AttributeError):
            return cls(None, None)
        return cls(getattr(config, "vocab_size", None), context_of(config), rope_reach(config, length))

    def faults(self, extent: Extent, what: str, chat: Chat, remedy: str) -> list[str]:
        """Why sequences of this extent cannot be read. what: names them. remedy: for those that are too long."""
        faults = []
        if self.embeddings is not None and extent.largest >= self.embeddings:
            token = chat.tokenizer.convert_ids_to_tokens(extent.largest)
            faults.append(
                f"{what}: token {token!r} has the id {extent.largest}, and the model has {self.embeddings} embeddings "
                f"(ids up to {self.embeddings - 1}): use the tokenizer that belongs to it, or store the model with "
                f"resize_token_embeddings({len(chat.tokenizer)})"
            )
        if self.positions is not None and extent.longest > self.positions:
            faults.append(f"{what}: {extent.longest} tokens, and the model reads {self.positions}; {remedy}")
        elif self.reach is not None and extent.longest > self.reach:
            faults.append(
                f"{what}: {extent.longest} tokens, and the rotary frequencies that max_length chooses reach {self.reach}; "
                f"{remedy}, or a max_length of {extent.longest}"
            )
        return faults
