"""A layer's cache of keys and values that is written in place, and not copied at every token."""

from __future__ import annotations

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

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Add the keys and values of further tokens, (rows, heads, tokens, features); returns those of all."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        filled = self.get_seq_length()
        tokens = filled + key_states.shape[-2]
        if self.room is None or tokens > self.room[0].shape[-2]:
            kept = () if self.room is None else self._filled
            self.room = self._made_room((key_states, value_states), max(self.tokens, tokens), kept)
        for room, states in zip(self.room, (key_states, value_states), strict=True):
            room[:, :, filled:tokens] = states
        self.keys, self.values = (room[:, :, :tokens] for room in self.room)
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
            self.keys, self.values = (room[:, :, :filled] for room in self.room)
            return
        kept = tuple(states[indices] for states in self._filled)
        self.room = self._made_room(kept, self.room[0].shape[-2], kept)
        self.keys, self.values = (room[:, :, :filled] for room in self.room)

    @property
    def _filled(self) -> tuple[Tensor, Tensor]:
        """The keys and values of all tokens so far."""
        assert self.keys is not None and self.values is not None
        return self.keys, self.values

    def _made_room(self, like: tuple[Tensor, ...], tokens: int, kept: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        """Memory for so many tokens of rows as in `like`, which begins with `kept`."""
        keys, values = (states.new_empty((*states.shape[:2], tokens, states.shape[-1])) for states in like)
        for room, states in zip((keys, values), kept, strict=False):
            room[:, :, : states.shape[-2]] = states
        return keys, values
