"""The command line: it reads what people type, calls the instrument, and prints what came of it.

Exit status: 0 all done · 1 some job failed, the rest is complete · 2 the command, a setting or the data is wrong
(one plain message, nothing written) · 130 interrupted, resumable.
"""

from __future__ import annotations

import logging
import os
import sys
import warnings

from pobench.cli import data, list, run, score, study  # noqa: F401  each registers its commands
from pobench.cli.options import app, data_app, judge_app, score_app
from pobench.errors import PobenchError

app.add_typer(data_app, name="data")

app.add_typer(score_app, name="score")

app.add_typer(judge_app, name="judge")


def main() -> None:
    """The `pobench` command."""
    debug = "--debug" in sys.argv
    if debug:
        os.environ["POBENCH_DEBUG"] = "1"
    else:
        warnings.filterwarnings("ignore")
        logging.getLogger("transformers").setLevel(logging.ERROR)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        app(standalone_mode=True)
    except PobenchError as error:
        if debug:
            raise
        print(f"pobench: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted; repeat the command to continue", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
