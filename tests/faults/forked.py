"""`pobench` in a child of this process, which has imported all that a command needs: a second instead of ten."""

from __future__ import annotations

import io
import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

FIGURES = "settings-table"  # of the report behind a run; drawing all takes ten times as long as the run itself


class Ended(NamedTuple):
    """Of a command: its exit status (128 and more: killed), what it printed, and how long it took."""

    status: int
    words: str
    seconds: float

    @property
    def message(self) -> str:
        """The last line."""
        return next((line for line in reversed(self.words.splitlines()) if line.strip()), "")


def pobench(
    arguments: Sequence[str],
    variables: Mapping[str, str],
    *,
    figures: str = FIGURES,
    while_it_runs: Callable[[], bool] = lambda: True,
    limit: float = 600.0,
) -> Ended:
    """Run the command line, its tasks in the same child. while_it_runs: called until it returns True. limit: seconds until it
    is killed."""
    import pobench.cli.main
    import pobench.cli.run
    from pobench.cli.analyze import write_report
    from pobench.runs import execute
    from pobench.runs.worker import run

    began = time.monotonic()
    with tempfile.TemporaryFile("w+", errors="replace") as printed:
        child = os.fork()
        if not child:
            status = 70
            try:
                os.dup2(printed.fileno(), 1)
                os.dup2(printed.fileno(), 2)
                sys.stdout = sys.stderr = io.TextIOWrapper(
                    os.fdopen(1, "wb", closefd=False), errors="replace", line_buffering=True
                )
                os.environ.update(variables)
                execute._fork = lambda *tasks: max(map(run, tasks))
                pobench.cli.run.write_report = partial(_drawn, write_report, figures)  # type: ignore[assignment]
                sys.argv = ["pobench", *arguments]
                pobench.cli.main.main()
                status = 0
            except SystemExit as ended:
                status = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                os._exit(status)
        watching = True
        while not (done := os.waitpid(child, os.WNOHANG))[0]:
            watching = watching and not while_it_runs()
            if time.monotonic() - began > limit:
                os.kill(child, signal.SIGKILL)
            time.sleep(0.02)
        printed.seek(0)
        status = os.waitstatus_to_exitcode(done[1])
        return Ended(status if status >= 0 else 128 - status, printed.read(), time.monotonic() - began)


def _drawn(write: Callable[..., Any], figures: str, runs: Any, setting: Any, _: str, out: Any) -> Any:
    return write(runs, setting, figures, out)
