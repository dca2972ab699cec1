"""A command that goes on when its terminal is closed: `--detach` on this machine. Its job is the command."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from pobench.errors import PobenchError
from pobench.files import whole
from pobench.runs.jobs import JobFolder, claim, newest, states_of
from pobench.training import leaving

COMMAND = "pobench.cli"  # the module that a command line starts
MOST = 16 * 1024**2  # bytes of a log


def detach(folder: Path, arguments: Sequence[str]) -> JobFolder:
    """Start `pobench ARGUMENTS` beside this command. folder: of a setting, below that of the runs.

    Raises PobenchError while another such command is at work in it.
    """
    place = folder.absolute() / "jobs" / "command"
    before = newest(place)
    if before is not None and states_of([before])[before].under_way:
        raise PobenchError(f"a command is at work in {str(folder)!r} already (pobench status, pobench cancel)")
    facts = {"executor": "local", "settings": {}, "arguments": list(arguments), "run": "", "stages": []}
    job = claim(place, before, (), title=f"pobench {' '.join(arguments)}", kind="command", **facts)
    if job is None:
        raise PobenchError(f"another command has just begun in {str(folder)!r}")
    with (job.path / "command_log.err").open("ab") as err, (job.path / "command_log.out").open("ab") as out:
        command = [sys.executable, "-m", __name__, str(job.path)]
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=err, start_new_session=True)
    job.write("submitted", id=f"{socket.gethostname()}:{process.pid}")
    return job


def main() -> None:
    """`python -m pobench.runs.detached FOLDER`: run the command, hand on that it is to leave, and record how it ended."""
    job = JobFolder(Path(sys.argv[1]))
    job.restart(host=socket.gethostname(), pid=os.getpid())
    with leaving.listening(), leaving.held():
        process = subprocess.Popen([sys.executable, "-m", COMMAND, *job.about["arguments"]], cwd=job.about["folder"])
        told = False
        while process.poll() is None:
            time.sleep(0.1)
            for log in job.path.glob("*_log.???"):
                rotate(log)
            if leaving.asked() is not None and not told:
                told = True
                process.terminate()
    if told and process.returncode:
        job.end("cancelled")
    else:
        job.end(
            "failed" if process.returncode else "finished",
            f"exit status {process.returncode}" * bool(process.returncode),
        )
    sys.exit(process.returncode)


def rotate(log: Path, most: int = MOST) -> None:
    """Move what a log holds to `….old`, in place of what stood there, once it is larger than `most` bytes. The command goes on
    writing into the log, to which it appends."""
    if log.stat().st_size > most:
        with contextlib.suppress(OSError):  # a full disk: nothing is added to the log either
            with whole(log.with_name(f"{log.name}.old"), sync=False) as partial:
                shutil.copyfile(log, partial)
            os.truncate(log, 0)


if __name__ == "__main__":
    main()
