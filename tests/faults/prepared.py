"""Commands that start fast: forked from a process that has imported what `pobench run` imports, and so is the server that the
command starts. From then on they are what they are elsewhere.

    python -m tests.faults.prepared     reads a line of JSON a command: arguments, variables, file for what it says; writes its
                                        process number when it has begun, and its exit status when it has ended
"""

from __future__ import annotations

import ctypes
import faulthandler
import importlib
import json
import os
import signal
import sys
from contextlib import suppress
from multiprocessing import util
from typing import Any

IMPORTED = [
    "pobench.cli.main", "pobench.cli.run", "pobench.runs.execute", "pobench.runs.executors.local", "pobench.reporting.page",
    "pobench.reporting.draw", "pobench.cli.analyze", "accelerate", "transformers.models.llama.modeling_llama", "scipy.stats",
    "transformers.generation.utils", "matplotlib.backends.backend_agg", "matplotlib.backends.backend_svg", "pyarrow.parquet",
    "torch.distributed.elastic.multiprocessing", "rich.table", "rich.progress", "filelock",
]  # fmt: skip
SERVER = "forkserver"  # the name of a server's process


def main() -> None:
    """Returns when its input ends."""
    for name in IMPORTED:
        with suppress(ImportError):
            importlib.import_module(name)
    from pobench.registry import figures

    figures.names()
    print("ready", flush=True)
    for line in sys.stdin:
        process = os.fork()
        if process == 0:
            _run(**json.loads(line))
        print(process, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), flush=True)


def _run(arguments: list[str], variables: dict[str, str], file: str) -> None:
    """The command, in the process that was forked for it."""
    status: Any = 1
    try:
        os.setsid()
        for number, target in (
            (os.open(os.devnull, os.O_RDWR), (0, 1)),
            (os.open(file, os.O_WRONLY | os.O_CREAT), (2,)),
        ):
            for stream in target:
                os.dup2(number, stream)
        os.environ.update(variables)
        faulthandler.register(signal.SIGUSR1, all_threads=True)  # its server and workers inherit that
        sys.argv = ["pobench", *arguments]
        util.spawnv_passfds = _fork_server  # type: ignore[attr-defined]
        from pobench.cli.main import main as command

        command()
        status = 0
    except SystemExit as left:
        status = left.code or 0
    finally:
        util._exit_function()  # type: ignore[attr-defined]
        os._exit(status if isinstance(status, int) else 1)


_spawn = util.spawnv_passfds  # type: ignore[attr-defined]


def _fork_server(path: Any, arguments: list[Any], files: list[int]) -> int:
    """What starts a server, or multiprocessing's tracker of resources: the first is forked from this process."""
    code = str(arguments[-1])
    if SERVER not in code:
        return int(_spawn(path, arguments, files))
    if process := os.fork():
        return process
    with suppress(BaseException):
        from pobench.training import leaving

        leaving._State.listening, leaving._State.asked, leaving._State.held = False, None, False
        for number in leaving.SIGNALS:
            signal.signal(number, signal.SIG_DFL)
        ctypes.CDLL(None).prctl(15, SERVER.encode())  # PR_SET_NAME
        kept = sorted({0, 1, 2, *files})
        for low, high in zip(kept, [*kept[1:], os.sysconf("SC_OPEN_MAX")], strict=True):
            os.closerange(low + 1, min(high, 4096))
        exec(code, {})
    os._exit(0)


if __name__ == "__main__":
    main()
