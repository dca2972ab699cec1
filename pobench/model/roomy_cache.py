"""A layer's cache of keys and values that is written in place, and not copied at every token."""

from __future__ import annotations

from typing import Any

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

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Add the keys and values of further tokens, (rows, heads, tokens, features); returns those of all."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        filled = self.get_seq_length()
        tokens = filled + key_states.shape[-2]
        if self.room is None or tokens > self.room[0].shape[-2]:
            self._make_room((key_states, value_states), max(self.tokens, tokens), filled)
        assert self.room is not None
        for room, states in zip(self.room, (key_states, value_states), strict=True):
            room[:, :, filled:tokens] = states
        self.keys, self.values = (room[:, :, :tokens] for room in self.room)
        return self.keys, self.values

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep these rows alone."""
        filled = self.get_seq_length()
        if self.room is None or not filled:
            return
        kept = self.keys[indices], self.values[indices]
        self._make_room(kept, self.room[0].shape[-2], 0)
        for room, states in zip(self.room, kept, strict=True):
            room[:, :, :filled] = states
        self.keys, self.values = (room[:, :, :filled] for room in self.room)

    def _make_room(self, like: tuple[Tensor, Tensor], tokens: int, filled: int) -> None:
        """Memory for so many tokens of rows as in `like`, holding the first `filled` tokens of the cache."""
        fresh = [states.new_empty((*states.shape[:2], tokens, states.shape[-1])) for states in like]
        for room, states in zip(fresh, (self.keys, self.values), strict=True):
            if filled:
                room[:, :, :filled] = states
        self.room = fresh[0], fresh[1]
