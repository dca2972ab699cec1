"""A process of a job, that a launcher starts: `python -m pobench.runs.rank MODULE FILE` calls the `main` of the module.

It watches the launcher from its first moment, as the imports of the module take seconds: one whose launcher is killed in them
would wait for the others for many minutes.
"""

from __future__ import annotations

import importlib
import sys

from pobench.runs.pool import watch_launcher


def main() -> None:
    watch_launcher()
    del sys.argv[0]
    importlib.import_module(sys.argv[0]).main()


if __name__ == "__main__":
    main()
