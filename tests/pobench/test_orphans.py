"""A process ends with the one that started it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from pobench.orphans import STARTER, has_ended

COMMAND = """
import multiprocessing, os, signal, sys
from concurrent.futures import ProcessPoolExecutor
from pobench.orphans import end_with_and_at_signals

def work(_):
    print("at work", flush=True)
    signal.pause()

signal.signal(signal.SIGTERM, signal.SIG_IGN)
pool = ProcessPoolExecutor(1, multiprocessing.get_context("fork"), end_with_and_at_signals, (os.getpid(),))
pool.submit(work, 0)
sys.stdin.readline()
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_process_of_a_pool_ends_with_the_command_that_is_killed() -> None:
    command = subprocess.Popen(
        [sys.executable, "-c", COMMAND], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert command.stdin is not None and command.stdout is not None
    assert command.stdout.readline() == "at work\n"
    command.stdin.write("\n")
    command.stdin.flush()
    assert command.stdout.read() == ""  # the pool's process holds this pipe as long as it lives
    assert command.wait(600) == -9


def test_a_process_whose_parent_is_gone_before_it_asks_ends_at_once() -> None:
    code = "import os; from pobench.orphans import end_with; end_with(os.getpid()); print('lives')"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=600)
    assert (ended.returncode, ended.stdout) == (
        -9 if sys.platform == "linux" else 0,
        "" if sys.platform == "linux" else "lives\n",
    )


def test_a_process_of_a_job_whose_launcher_was_killed_while_it_was_imported_ends(tmp_path) -> None:
    (tmp_path / "waits.py").write_text("import threading\nmain = threading.Event().wait\n")
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait(600)
    paths = os.pathsep.join([str(tmp_path), str(Path(__file__).parents[2])])
    ended = subprocess.run(
        [sys.executable, "-m", "pobench.runs.rank", "waits", "file"],
        env={**os.environ, "PYTHONPATH": paths, STARTER: str(gone.pid)}, timeout=600,
    )  # fmt: skip
    assert ended.returncode == -9


def test_a_process_that_nobody_has_asked_how_it_ended_has_ended() -> None:
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    assert process.stdin is not None and not has_ended(process.pid)
    process.stdin.close()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert has_ended(process.pid)
    process.wait(600)
    assert has_ended(process.pid)
