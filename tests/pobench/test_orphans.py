"""A process ends with the one that started it."""

from __future__ import annotations

import subprocess
import sys

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
