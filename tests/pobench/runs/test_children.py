"""Children of a command: stopped at the moments at which a signal could be lost, then hit by one, then let go on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

# What the children do, and where they stop: in `here` a process writes its number, and goes on once `on` is there.
WORK = """
import os, signal, sys, threading, time
from pathlib import Path
from pobench.runs import children
from pobench.training import leaving

HERE = Path(__file__).parent

def stop(name="here"):
    whole = HERE / f"{name}.tmp"
    whole.write_text(str(os.getpid()))
    whole.rename(HERE / name)
    while not (HERE / "on").exists():
        time.sleep(0.01)

class Stops:
    def __setstate__(self, state):
        stop()

    def __getstate__(self):
        return {"one": 1}

def begin(*_):
    (HERE / "began").touch()
    return 0

def wait(*_):
    (HERE / "waits").touch()
    threading.Event().wait()
    return 0

def kill_server(*_):
    os.kill(os.getppid(), signal.SIGKILL)
    return wait()

def leave_a_thread(*_):
    children.LOOK = 0.1
    threading.Thread(target=threading.Event().wait).start()
    return 0

def call(function):
    return function()

def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)
"""
COMMAND = """
import sys, threading
import work
from work import *
from pobench.runs.pool import pool

if __name__ == "__main__":
    try:
        with leaving.listening():
            {body}
    except KeyboardInterrupt:
        sys.exit(130)
"""
SLOW_SERVER = "import work; work.stop('importing')"
DEAD_SERVER = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"


@pytest.fixture
def command(tmp_path) -> Iterator[Callable[[str], subprocess.Popen[str]]]:
    """Start a command of some Python. Its output ends when the last of its processes has ended."""
    started: list[subprocess.Popen[str]] = []
    (tmp_path / "work.py").write_text(WORK)
    (tmp_path / "slow_server.py").write_text(SLOW_SERVER)
    (tmp_path / "dead_server.py").write_text(DEAD_SERVER)

    def start(body: str) -> subprocess.Popen[str]:
        (tmp_path / "command.py").write_text(COMMAND.format(body=body.replace("\n", "\n            ")))
        paths = os.pathsep.join([str(tmp_path), str(Path(__file__).parents[3]), os.environ.get("PYTHONPATH", "")])
        process = subprocess.Popen(
            [sys.executable, str(tmp_path / "command.py")], env={**os.environ, "PYTHONPATH": paths},
            start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def until(path: Path) -> int:
    """Wait for a file; returns the number in it, or 0."""
    while not path.exists():
        time.sleep(0.01)
    return int(path.read_text() or 0)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR2])
def test_a_signal_to_a_child_that_does_not_listen_yet_reaches_it_when_it_does(number, command, tmp_path) -> None:
    process = command("print(children.run_each(wait, [(Stops(),)], []), flush=True)")
    os.kill(until(tmp_path / "here"), number)
    (tmp_path / "on").touch()
    assert process.communicate(timeout=600)[0] == "130\n" and not (tmp_path / "waits").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_command_whose_child_does_not_listen_yet_leaves(number, command, tmp_path) -> None:
    process = command("children.run_each(wait, [(Stops(),)], [])")
    until(tmp_path / "here")
    os.killpg(process.pid, number)
    (tmp_path / "on").touch()
    process.communicate(timeout=600)
    assert process.returncode == 130 and not (tmp_path / "waits").exists()


def test_a_child_whose_start_was_interrupted_does_not_begin_and_the_next_one_does(command, tmp_path) -> None:
    process = command("""
try:
    children.run_each(begin, [()], ["slow_server"])
except leaving.Leave:
    leaving._State.asked = None
print("left", flush=True)
(HERE / "on").touch()
print(children.run_each(os.path.exists, [(HERE / "began",)], []), flush=True)""")
    until(tmp_path / "importing")
    os.kill(process.pid, signal.SIGINT)
    assert process.communicate(timeout=600)[0] == "left\n0\n" and not (tmp_path / "began").exists()


def test_a_pool_that_is_interrupted_while_it_starts_a_child_ends(command, tmp_path) -> None:
    process = command("""
with pool(2) as submit:
    submit(children.run_each, wait, [()], ["slow_server"])
    while not (HERE / "importing").exists():
        time.sleep(0.01)
    threading.Timer(0.1, (HERE / "on").touch).start()
    raise KeyboardInterrupt""")
    process.communicate(timeout=600)
    assert process.returncode == 130


def test_a_server_that_is_begun_early_imports_beside_the_command_and_forks_its_first_child(command, tmp_path) -> None:
    process = command("""
children.start_server(["slow_server"])
stop("command")
print(children.run_each(begin, [()], ["slow_server"]), (HERE / "importing").read_text(), flush=True)
print(children.run_each(os.path.exists, [(HERE / "began",)], []), flush=True)""")
    until(tmp_path / "command")
    server = until(tmp_path / "importing")  # while the command stands still
    (tmp_path / "on").touch()
    assert process.communicate(timeout=600)[0] == f"0 {server}\n1\n"


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere it ends when it has imported")
def test_a_server_that_is_not_needed_after_all_ends_with_the_command(command, tmp_path) -> None:
    process = command(
        'children.start_server(["slow_server"])\nwhile not (HERE / "importing").exists():\n    time.sleep(0.01)'
    )
    assert process.communicate(timeout=600) == ("", "") and process.returncode == 0


@pytest.mark.parametrize("of", ["kill_server, [()], []", "wait, [()], ['dead_server']"])
def test_a_server_that_is_killed_is_known_as_that_at_work_and_while_it_imports(of, command) -> None:
    process = command(f"print(children.run_each({of}) == children.SERVER_GONE, flush=True)")
    assert process.communicate(timeout=600)[0] == "True\n"


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere it ends when it has imported")
def test_a_server_that_imports_ends_with_a_command_that_is_killed(command, tmp_path) -> None:
    process = command('children.run_each(wait, [()], ["slow_server"])')
    until(tmp_path / "importing")
    process.kill()
    assert process.communicate(timeout=600) == ("", "")  # as soon as nobody has the pipes any more


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere it ends when it has imported")
def test_a_server_whose_command_has_ended_before_python_began_imports_nothing_more() -> None:
    script = "import pobench.runs.fork_server; print('goes on')"
    server = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "POBENCH_STARTER": str(2**22)},
        capture_output=True,
        text=True,
    )
    assert (server.returncode, server.stdout) == (-signal.SIGKILL, "")


def test_a_child_that_is_gone_is_not_waited_for_where_the_server_does_not_say_so(command, tmp_path) -> None:
    process = command("""
from multiprocessing import forkserver
children.LOOK = 0.2
def stop_server():
    until_it_waits = HERE / "waits"
    while not until_it_waits.exists():
        time.sleep(0.01)
    server = forkserver._forkserver._forkserver_pid
    (child,) = children._started
    os.kill(server, signal.SIGSTOP)
    os.kill(child.pid, signal.SIGKILL)
threading.Thread(target=stop_server).start()
print(children.run_each(wait, [()], []) == children.SERVER_GONE, flush=True)
os.kill(forkserver._forkserver._forkserver_pid, signal.SIGCONT)""")
    assert process.communicate(timeout=600)[0] == "True\n"


def test_a_thread_that_a_library_left_does_not_keep_a_child_that_is_done(command) -> None:
    process = command("print(children.run_each(leave_a_thread, [()], []), flush=True)")
    assert process.communicate(timeout=600)[0] == "0\n"


def test_of_several_children_one_that_is_killed_ends_the_others(command) -> None:
    process = command("print(children.run_each(call, [(wait,), (die,)], []), flush=True)")
    assert process.communicate(timeout=600)[0] == "-9\n"
