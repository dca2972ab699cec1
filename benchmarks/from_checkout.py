"""Lets a benchmark run from a checkout that is not installed. Import it first: it acts when imported, in child processes too.

A package that pobench cannot do without and that is missing is named at once, not after minutes.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
NEEDED = (
    "torch", "transformers", "accelerate", "safetensors", "numpy", "pandas", "pyarrow", "pydantic",
    "yaml", "jinja2", "filelock",
)  # fmt: skip


def _use_checkout() -> None:
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        sys.exit(f"not installed: {', '.join(missing)}; pip install -e {ROOT} installs all that pobench needs")
    if importlib.util.find_spec("pobench") is None:
        sys.path.insert(0, str(ROOT))
    if importlib.util.find_spec("pobench.losses") is None:  # `pip install` maps these folders into the package
        import pobench

        pobench.__path__.append(str(ROOT))


_use_checkout()
