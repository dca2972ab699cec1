"""One command at a time, on any file system that machines share; a holder that is gone is told by host, process and time."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from pobench import locks
from pobench.locks import HeldError, hold, holder_of

HOLDER = """
import sys
from pathlib import Path
from pobench.locks import hold
with hold(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def other(tmp_path):
    """A process of its own that holds the lock, and the lock."""
    path = tmp_path / ".lease"
    pipe = subprocess.PIPE
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(path)], stdin=pipe, stdout=pipe, text=True)
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    yield process, path
    process.kill()
    process.communicate()


def of_another_host(path: Path) -> None:
    """Write the lock anew, as a machine that is not this one wrote it."""
    record = path.read_text()
    path.unlink()
    path.write_text(record.replace(socket.gethostname(), "node7"))


def test_a_second_command_is_refused_with_host_process_and_time_until_the_first_has_ended(other) -> None:
    process, path = other
    with pytest.raises(HeldError) as refused, hold(path):
        pass
    assert f"process {process.pid} on {socket.gethostname()}, alive at " in str(refused.value)
    process.communicate("")
    assert not path.exists()
    with hold(path):
        assert str(os.getpid()) in str(holder_of(path))
    assert holder_of(path) is None


def test_a_holder_of_this_machine_that_was_killed_loses_the_lock_at_once(other) -> None:
    process, path = other
    process.kill()
    process.communicate()
    assert path.exists()
    with hold(path):
        assert str(os.getpid()) in str(holder_of(path))


@pytest.mark.parametrize("wait", [False, True])
def test_a_lock_whose_holder_was_killed_before_it_wrote_its_name_is_taken_over(wait, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(locks, "EMPTY", 0.05)
    monkeypatch.setattr(locks, "SECONDS", 1.2)
    path = tmp_path / ".lease"
    path.touch()
    with hold(path, wait=wait):
        assert str(os.getpid()) in str(holder_of(path))


def test_who_waits_names_the_holder_and_goes_on_when_it_has_ended(other, monkeypatch, capsys) -> None:
    process, path = other
    monkeypatch.setattr(locks, "say", lambda text: (print(text), process.communicate("")))
    monkeypatch.setattr(locks, "SECONDS", 1.2)
    path.write_text(path.read_text().replace("duration=120.0", "duration=1.2"))
    with hold(path, wait=True):
        assert str(os.getpid()) in str(holder_of(path))
    assert f"is held by process {process.pid} on " in capsys.readouterr().out


def test_a_holder_of_another_machine_loses_the_lock_after_a_time_without_a_sign_of_life(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(locks, "SECONDS", 0.3)
    path = tmp_path / ".lease"
    with hold(path):
        record = path.read_text()
    path.write_text(record.replace(socket.gethostname(), "node7"))
    with hold(path):
        assert socket.gethostname() in str(holder_of(path))


def test_a_holder_of_another_machine_that_still_works_keeps_the_lock(other, monkeypatch, capsys) -> None:
    process, path = other
    of_another_host(path)
    seen = iter([1, 1, 2])
    monkeypatch.setattr(locks, "_touched", lambda path: next(seen, 2))
    with pytest.raises(HeldError, match=f"process {process.pid} on node7"), hold(path):
        pass
    assert "waiting for a sign that it still works" in capsys.readouterr().err


def test_who_lost_the_lock_stops(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(locks, "SECONDS", 0.06)
    stopped: list[str] = []
    monkeypatch.setattr(locks._thread, "interrupt_main", lambda: stopped.append("stopped"))
    path = tmp_path / ".lease"
    with hold(path):
        path.unlink()
        while not stopped:
            pass
    assert "another command has taken it" in capsys.readouterr().err
