"""What a model can read, a token id below its embeddings and a position below its context, compared with what it will be
given. A model with rotary positions computes beyond its context in silence, and its numbers there mean nothing."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pobench.data.chat import Chat
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
    without a limit."""

    embeddings: int | None
    positions: int | None

    @classmethod
    def of(cls, folder: Path, *, trust_remote_code: bool = False) -> Capacity:
        """Of the model in `folder`, by its config.json; what loading reports about an unknown kind is left to loading."""
        from transformers import AutoConfig

        try:
            config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code).get_text_config()
        except (ValueError, OSError, KeyError, TypeError, AttributeError):
            return cls(None, None)
        return cls(getattr(config, "vocab_size", None), _positions(config))

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
        return faults


def _positions(config: Any) -> int | None:
    """The context, with the stretch of its rotary positions where `max_position_embeddings` does not count it yet."""
    limit = getattr(config, "max_position_embeddings", None)
    if not limit or limit < 0 or getattr(config, "alibi", False):
        return None
    rotary = getattr(config, "rope_parameters", None) or {}
    kinds = [
        rotary,
        *(kind for kind in rotary.values() if isinstance(kind, dict)),
    ]  # one for each kind of layer, or one
    stretched = [(k.get("original_max_position_embeddings") or limit) * (k.get("factor") or 1) for k in kinds]
    return int(max(limit, *stretched))
