"""pobench: which preference-optimization objective is really better, on your model and your data?

from pobench import get_loss, Pair, SequenceLogps, LossOutput, register_loss, list_losses, run, load_frames, figure, table
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pobench.errors import PobenchError
from pobench.registry import get_loss, list_losses, register_loss
from pobench.types import LossOutput, Pair, SequenceLogps

if TYPE_CHECKING:
    from pobench.reporting.draw import figure, table
    from pobench.results.load import load_frames
    from pobench.runs.execute import run_setting as run

__version__ = "0.1.0"
__all__ = [
    "LossOutput",
    "Pair",
    "PobenchError",
    "SequenceLogps",
    "figure",
    "get_loss",
    "list_losses",
    "load_frames",
    "register_loss",
    "run",
    "table",
]


def __getattr__(name: str) -> Any:
    """What brings transformers, pandas or matplotlib along: a file that defines a loss should not wait for them."""
    if name == "run":
        from pobench.runs.execute import run_setting

        return run_setting
    if name == "load_frames":
        from pobench.results.load import load_frames

        return load_frames
    if name in ("figure", "table"):
        from pobench.reporting import draw

        return getattr(draw, name)
    raise AttributeError(f"module 'pobench' has no attribute {name!r}")
