"""pobench: which preference-optimization objective is really better, on your model and your data?

from pobench import get_loss, Pair, SequenceLogps, LossOutput, register_loss, register_modifier, list_losses, run
from pobench import load_frames, figure, table
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pobench.errors import PobenchError
    from pobench.registry import get_loss, list_losses, register_loss, register_modifier
    from pobench.reporting.draw import figure, table
    from pobench.results.load import load_frames
    from pobench.runs.execute import run_setting as run
    from pobench.types import (
        AnswerBatch,
        AnswerOutput,
        Batch,
        ListBatch,
        ListOutput,
        LossOutput,
        Pair,
        Responses,
        SequenceLogps,
        TokenLogps,
    )

    __version__: str

__all__ = [
    "AnswerBatch",
    "AnswerOutput",
    "Batch",
    "ListBatch",
    "ListOutput",
    "LossOutput",
    "Pair",
    "PobenchError",
    "Responses",
    "SequenceLogps",
    "TokenLogps",
    "figure",
    "get_loss",
    "list_losses",
    "load_frames",
    "register_loss",
    "register_modifier",
    "run",
    "table",
]

_HOMES = {  # name → where it is defined. Imported when it is asked for: help and lists should not wait for torch
    "AnswerBatch": "pobench.types:AnswerBatch",
    "AnswerOutput": "pobench.types:AnswerOutput",
    "Batch": "pobench.types:Batch",
    "ListBatch": "pobench.types:ListBatch",
    "ListOutput": "pobench.types:ListOutput",
    "LossOutput": "pobench.types:LossOutput",
    "Pair": "pobench.types:Pair",
    "PobenchError": "pobench.errors:PobenchError",
    "Responses": "pobench.types:Responses",
    "SequenceLogps": "pobench.types:SequenceLogps",
    "TokenLogps": "pobench.types:TokenLogps",
    "figure": "pobench.reporting.draw:figure",
    "get_loss": "pobench.registry:get_loss",
    "list_losses": "pobench.registry:list_losses",
    "load_frames": "pobench.results.load:load_frames",
    "register_loss": "pobench.registry:register_loss",
    "register_modifier": "pobench.registry:register_modifier",
    "run": "pobench.runs.execute:run_setting",
    "table": "pobench.reporting.draw:table",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":  # pyproject.toml says it, and the installed package's metadata repeats it
        from importlib.metadata import version

        return version("pobench")
    if name not in _HOMES:
        raise AttributeError(f"module 'pobench' has no attribute {name!r}")
    module, _, attribute = _HOMES[name].partition(":")
    value = getattr(importlib.import_module(module), attribute)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, "__version__"})
