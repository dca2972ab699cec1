"""A layer's cache of keys and values that is written in place, and not copied at every token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicLayer


class RoomyLayer(DynamicLayer):
    """As transformers' growing layer, whose keys and values are (rows, heads, tokens so far, features): here they are the
    filled part of memory that has room for all tokens."""

    def __init__(self, tokens: int) -> None:
        """tokens: the most that a row will have. More are taken too, and copy the layer once."""
        super().__init__()
        self.tokens = tokens
        self.room: tuple[Tensor, Tensor] | None = None

    @classmethod
    def joined(cls, layers: Sequence[RoomyLayer], tokens: int) -> RoomyLayer:
        """The rows of all these layers, in order, with room for so many tokens. The last tokens of all rows stand side by side;
        what is before a shorter row's first token is 0."""
        whole = cls(tokens)
        parts = [layer._filled for layer in layers]
        whole.lazy_initialization(*parts[0])
        filled = max(keys.shape[-2] for keys, _ in parts)
        whole.room = _room(parts[0], sum(len(keys) for keys, _ in parts), max(tokens, filled))
        for room, states in zip(whole.room, zip(*parts, strict=True), strict=True):
            for rows, own in zip(room.split([len(part) for part in states]), states, strict=True):
                begins = filled - own.shape[-2]
                rows[:, :, :begins] = 0
                rows[:, :, begins:filled] = own
        whole._fill(filled)
        return whole

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Add the keys and values of further tokens, (rows, heads, tokens, features); returns those of all."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        filled = self.get_seq_length()
        tokens = filled + key_states.shape[-2]
        if self.room is None or tokens > self.room[0].shape[-2]:
            before = () if self.room is None else self._filled
            self.room = _room((key_states, value_states), len(key_states), max(self.tokens, tokens))
            self._copy(before)
        for room, states in zip(self.room, (key_states, value_states), strict=True):
            room[:, :, filled:tokens] = states
        self._fill(tokens)
        return self._filled

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep these rows alone; they may repeat. Where every row keeps its place, or takes that of one that is not kept, only
        these are copied."""
        filled = self.get_seq_length()
        if self.room is None or not filled:
            return
        left = len(indices)
        moved = (indices != torch.arange(left, device=indices.device)).nonzero().squeeze(-1)
        sources = indices[moved]
        if bool((sources >= left).all()):
            for room in self.room:
                room[moved, :, :filled] = room[sources, :, :filled]
            self.room = self.room[0][:left], self.room[1][:left]
        else:
            kept = tuple(states[indices] for states in self._filled)
            self.room = _room(kept, left, self.room[0].shape[-2])
            self._copy(kept)
        self._fill(filled)

    @property
    def _filled(self) -> tuple[Tensor, Tensor]:
        """The keys and values of all tokens so far."""
        assert self.keys is not None and self.values is not None
        return self.keys, self.values

    def _fill(self, tokens: int) -> None:
        """Let the room count as filled up to so many tokens."""
        assert self.room is not None
        self.keys, self.values = (room[:, :, :tokens] for room in self.room)

    def _copy(self, states: tuple[Tensor, ...]) -> None:
        """Begin the room with these."""
        for room, own in zip(self.room or (), states, strict=False):
            room[:, :, : own.shape[-2]] = own


def _room(like: Sequence[Tensor], rows: int, tokens: int) -> tuple[Tensor, Tensor]:
    """Memory for keys and values of so many rows and tokens, of heads and features as in `like`."""
    keys, values = (states.new_empty((rows, states.shape[1], tokens, states.shape[-1])) for states in like)
    return keys, values
