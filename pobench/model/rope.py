"""Rotary positions at the frequencies of one length, whatever lies beside a sequence in its batch.

"longrope" (Phi-3) and "dynamic" NTK choose their frequencies by the largest position of a batch. Here every batch has one
more position, that of a run's longest allowed sequence, while a model's own code makes the rotations; the rotation of that
position is dropped. So the model computes a short sequence as it would beside the longest one.
"""

from __future__ import annotations

import inspect
from typing import Any

from torch import Tensor, nn

from pobench.errors import PobenchError
from pobench.positions import rope_reach


def fix_rope(model: Any, length: int) -> None:
    """Let `model` compute with the rotary frequencies of a sequence of `length` tokens, if they depend on a batch.

    Raises PobenchError if they do beyond a border below `length`, in code that takes no positions.
    """
    config = model.config.get_text_config()
    border = rope_reach(config, 1)
    if border is None:
        return
    rotary = [module for module in model.modules() if _is_rotary(module)]
    if not rotary and length > border:
        raise PobenchError(
            f"{type(model).__name__} chooses its rotary frequencies by the longest sequence of a batch, in code of its own "
            f"that cannot be held at one length: a sum would depend on its neighbours. Up to {border} tokens it does not: set "
            f"max_length={border}"
        )
    for module in rotary:
        module.register_forward_pre_hook(_OneMore(length, _arguments(module).index("position_ids")), with_kwargs=True)
        module.register_forward_hook(_without_it)
    model.rope_length = length


def held_reach(model: Any) -> int | None:
    """The most tokens of a sequence at the frequencies at which the model is held; None if they are the same at every
    length."""
    length = getattr(model, "rope_length", None)
    return None if length is None else rope_reach(model.config.get_text_config(), length)


def _is_rotary(module: nn.Module) -> bool:
    return any("inv_freq" in name for name in module._buffers) and "position_ids" in _arguments(module)


def _arguments(module: nn.Module) -> list[str]:
    return list(inspect.signature(module.forward).parameters)


class _OneMore:
    """A hook before the rotations: adds the last position of a sequence of `length` tokens. at: the place of the positions
    among the arguments."""

    def __init__(self, length: int, at: int) -> None:
        self.last, self.at = length - 1, at

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        if "position_ids" in kwargs:
            return args, {**kwargs, "position_ids": self._longer(kwargs["position_ids"])}
        return (*args[: self.at], self._longer(args[self.at]), *args[self.at + 1 :]), kwargs

    def _longer(self, positions: Tensor) -> Tensor:
        """(…, tokens) → (…, tokens + 1)."""
        return nn.functional.pad(positions, (0, 1), value=self.last)


def _without_it(module: nn.Module, args: Any, output: Any) -> Any:
    """A hook behind the rotations, (…, tokens + 1, features) each."""
    if isinstance(output, tuple):
        return tuple(part[..., :-1, :] for part in output)
    return output[..., :-1, :]
