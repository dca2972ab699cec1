"""The server that forks the workers outlives a signal to every process of a command, and ends with the command."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pobench.training import leaving

COMMAND = """
import multiprocessing, os, signal, sys
from multiprocessing import forkserver
from pobench.training import leaving


def worker(connection):
    with leaving.listening():
        try:
            leaving.unblock()
            connection.send("ready")
            signal.pause()
        except leaving.Leave:
            connection.send(leaving.asked())


def another(connection):
    connection.send(os.getppid())


if __name__ == "__main__":
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["pobench.runs.fork_server"])
    with leaving.listening(), leaving.held():
        here, there = context.Pipe()
        first = context.Process(target=worker, args=(there,))
        first.start()
        assert here.recv() == "ready"
        os.killpg(0, int(sys.argv[1]))
        received = here.recv()
        first.join()
        second = context.Process(target=another, args=(there,))
        second.start()
        print(received, first.exitcode, here.recv() == forkserver._forkserver._forkserver_pid, flush=True)
    os._exit(0)  # nothing is said to the server
"""


@pytest.mark.parametrize("number", leaving.SIGNALS)
def test_a_signal_to_the_whole_group_reaches_the_worker_and_leaves_the_server(number: signal.Signals, tmp_path) -> None:
    (tmp_path / "command.py").write_text(COMMAND)
    paths = os.pathsep.join([str(Path(__file__).parents[3]), os.environ.get("PYTHONPATH", "")])
    # The server has the command's standard output, so this returns when both have ended.
    ended = subprocess.run(
        [sys.executable, str(tmp_path / "command.py"), str(int(number))],
        env={**os.environ, "PYTHONPATH": paths}, start_new_session=True, stdout=subprocess.PIPE, text=True, timeout=600,
    )  # fmt: skip
    assert ended.stdout.split() == [str(int(number)), "0", "True"]
