"""The entry of the command line: it finds the command, and turns errors into messages and exit statuses.

Exit status: 0 all done · 1 some job failed, the rest is complete · 2 the command, a setting or the data is wrong
(one plain message, nothing written), or pobench itself · 130 interrupted, resumable.
"""

from __future__ import annotations

import errno
import os
import sys
from typing import Annotated

import typer

from pobench.cli.group import STYLE, CommandFiles
from pobench.errors import PobenchError
from pobench.printing import say
from pobench.training import leaving

FULL = (errno.ENOSPC, errno.EDQUOT)  # a disk, or what one may take of it


class Commands(CommandFiles):
    files = (
        "run",
        "analyze",
        "study",
        "tune",
        "plan",
        "status",
        "watch",
        "cancel",
        "list",
        "check",
        "data",
        "score",
        "judge",
        "export",
        "push",
        "diff",
        "share",
        "merge",
        "doctor",
        "new",
        "cache",
    )


app = typer.Typer(cls=Commands, **STYLE | {"add_completion": True})


def _print_version(show: bool) -> None:
    if show:
        import pobench

        say(f"pobench {pobench.__version__}", out=True)
        raise typer.Exit()


@app.callback()
def pobench_(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Which preference-optimization loss is really better, on your model and your data?"""


def main() -> None:
    """The `pobench` command."""
    debug = "--debug" in sys.argv
    if debug:
        os.environ["POBENCH_DEBUG"] = "1"
    else:
        _silence()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        with leaving.listening():  # SIGTERM ends a command as Ctrl-C does
            app(standalone_mode=True)
    except PobenchError as error:
        if debug:
            raise
        say(f"pobench: {error}")
        sys.exit(2)
    except Exception as error:
        if debug:
            raise
        say(f"pobench: {_unforeseen(error)}")
        sys.exit(2)
    except KeyboardInterrupt:
        say("interrupted; repeat the command to continue")
        sys.exit(130)


def _unforeseen(error: Exception) -> str:
    """One sentence for an error that no check foresaw: of a file or folder, or else a fault of pobench."""
    if isinstance(error, OSError) and error.strerror:
        room = "; make room, and repeat the command: it goes on" if error.errno in FULL else ""
        return error.strerror + (f": {str(error.filename)!r}" if error.filename is not None else "") + room
    kind = type(error).__name__
    return f"{kind}: {error}\nthis is not foreseen; the same command with --debug shows where it happens, for a report"


def _silence() -> None:
    """Hide the warnings of libraries."""
    import logging
    import warnings

    warnings.filterwarnings("ignore")
    logging.getLogger("transformers").setLevel(logging.ERROR)


if __name__ == "__main__":
    main()
