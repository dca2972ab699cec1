"""The page of a command: what it says, what has changed, and whom the server answers."""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pobench.progress import Standing, progress, standing
from pobench.results.run_folder import RunFolder
from pobench.runs.command import Command, Entry
from pobench.workflows import watch
from pobench.workflows.watch import Board, is_loopback, make_server, page

RUN = "tiny/simpo-000000000001"
NAN = float("nan")


def jobs_of(runs: Path, states: tuple[str, ...]) -> tuple[Entry, ...]:
    """The start model's evaluation, and a training and its evaluation."""
    runs = runs.absolute()
    facts = [("start", "tiny/start-000000000000", "start model", ("answers",), "evaluate"),
             ("loss", RUN, "simpo, seed 1", ("train",), "train"),
             ("loss", RUN, "simpo, seed 1", ("answers", "judge"), "evaluate")]  # fmt: skip
    jobs = []
    for (kind, run, title, stages, what), state in zip(facts, states, strict=True):
        place, began = (
            str(runs / "tiny" / "jobs" / f"{run[5:]}.{what}"),
            NAN if state == "waiting" else time.time() - 20,
        )
        ended = time.time() if state in ("finished", "failed") else NAN
        nodes = {stage: f"{stage}-000000000001" for stage in stages if stage != "train"}
        jobs.append(Entry(place, run, title, kind, stages, str(runs / run), nodes, 40.0, state, began, ended))
    return tuple(jobs)


def store(runs: Path, *states: str) -> RunFolder:
    """A command of this process, with its jobs in these states; returns the folder of the run that it trains."""
    Command(runs.absolute() / "tiny" / "command.json", jobs_of(runs, states), began=1.0).write()
    return RunFolder(runs, RUN)


def row(step: int, **values: float) -> dict[str, float]:
    return {"step": step, "loss": 0.7 - step / 1000, "rewards/chosen": 0.1, "grad_norm": 2.0, "steps": 75, **values}


@pytest.fixture
def folder(tmp_path, monkeypatch) -> RunFolder:
    monkeypatch.setattr(watch, "FRESH", 0.0)
    folder = RunFolder(tmp_path, RUN)
    folder.path.mkdir(parents=True)
    return store(tmp_path, "finished", "running", "waiting")


def test_the_state_names_jobs_stages_and_the_time_left(folder) -> None:
    (folder.path / "answers-000000000001").mkdir()
    (folder.path / "answers-000000000001" / "node.json").write_text("{}")
    with standing(Standing(folder=folder.path)), progress("simpo, seed 1", 75, "steps"):
        state = Board(folder.runs).state()
    first, second, third = state["jobs"]
    assert state["count"] == 3 and not state["ended"] and state["measured"] == 1 and state["settings"] == ["tiny"]
    assert first["stages"] == [["answers", "done"]] and second["stages"] == [["train", "running"]]
    assert third["stages"] == [["answers", "done"], ["judge", "waiting"]], "its answers are stored already"
    assert second["progress"] == "step 0 of 75" and second["curves"] and not first["curves"]
    # an evaluation that was estimated at 40 s took 20; so will the next one, and a training of 40 s that began 20 s ago
    assert third["expected"] == 20 and state["done_at"] == pytest.approx(time.time() + 20, abs=60)
    assert str(folder.runs) not in json.dumps(state)


def test_only_what_has_changed_is_sent_again(folder) -> None:
    board = Board(folder.runs)
    first = board.state()
    assert first["whole"] and len(first["jobs"]) == 3
    again = board.state(first["version"])
    assert again["jobs"] == [] and again["version"] == first["version"] and not again["whole"]
    for step in range(1, 31):
        folder.log_step(row(step, grad_norm=50.0 if step == 25 else 2.0))
    changed = board.state(first["version"])
    assert [job["number"] for job in changed["jobs"]] == [2] and "step 25 was 50" in changed["jobs"][0]["alarms"][0]
    assert board.curves(2)["curves"]["loss"][-1] == (30, pytest.approx(0.67)) and board.curves(4) is None
    assert board.curves(1) == {"number": 1, "curves": {}}
    for strange in ("nonsense", f"{first['version'].split('-')[0]}-x", "0-1"):
        assert len(board.state(strange)["jobs"]) == 3


def test_many_jobs_and_losses_are_sent_once(folder) -> None:
    one = jobs_of(folder.runs, ("finished", "running", "waiting"))[1]
    jobs = [Entry(**{**one.__dict__, "place": f"{one.place}{k}", "state": "waiting"}) for k in range(200)]
    command = Command(folder.runs.absolute() / "tiny" / "command.json", (*jobs, one), began=1.0)
    command.write()
    board = Board(folder.runs)
    first = board.state()
    folder.log_step(row(1))
    folder.fail("out of memory")
    Command(
        command.path, (*jobs, Entry(**{**one.__dict__, "state": "failed", "reason": "out of memory"})), began=1.0
    ).write()
    later = board.state(first["version"])
    assert len(first["jobs"]) == 201 and [job["number"] for job in later["jobs"]] == [201]
    assert later["jobs"][0]["alarms"] == ["It failed: out of memory"] and len(json.dumps(later)) < 2000


def test_another_command_replaces_the_jobs(folder) -> None:
    board = Board(folder.runs)
    first = board.state()
    Command(
        folder.runs.absolute() / "tiny" / "command.json", jobs_of(folder.runs, ("waiting",) * 3)[1:], began=2.0
    ).write()
    second = board.state(first["version"])
    assert second["whole"] and [job["number"] for job in second["jobs"]] == [1, 2]


# ---------------------------------------------------------------- the server
@pytest.fixture
def port(folder) -> Iterator[int]:
    with make_server(folder.runs) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        assert server.server_address[0] == "127.0.0.1"
        yield server.server_port
        server.shutdown()


def request(port: int, path: str, method: str = "GET", **headers: str) -> tuple[http.client.HTTPResponse, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=600)
    connection.request(method, path, headers={name.replace("_", "-"): value for name, value in headers.items()})
    reply: Any = connection.getresponse()
    body = reply.read()
    connection.close()
    return reply, body


def test_the_server_answers_only_those_who_name_loopback(port) -> None:
    for host in ("evil.example", f"evil.example:{port}", "127.0.0.1.evil.example", "localhost:x", "", "10.0.0.1"):
        assert request(port, "/state.json", Host=host)[0].status == 403, host
    for host in ("127.0.0.1", f"localhost:{port}", "LOCALHOST:9", "[::1]:80"):
        assert request(port, "/state.json", Host=host)[0].status == 200, host
    assert not is_loopback(None)


@pytest.mark.parametrize(
    "path", ["/nothing", "/../tiny/command.json", "/tiny/command.json", "/report/", "/report/..%2f..%2fx", "//etc/passwd",
             "/curves.json", "/curves.json?job=9", "/curves.json?job=-1", "/report/%2e%2e/tiny/command.json"]
)  # fmt: skip
def test_no_path_leads_to_a_file_that_is_not_in_the_table(port, path) -> None:
    assert request(port, path)[0].status == 404


def test_only_questions_are_answered_and_a_head_has_no_body(port) -> None:
    for method in ("POST", "PUT", "DELETE", "OPTIONS"):
        reply, _ = request(port, "/state.json", method)
        assert reply.status == 405 and reply.headers["Allow"] == "GET, HEAD"
    reply, body = request(port, "/jobs", "HEAD")
    assert reply.status == 200 and body == b"" and int(reply.headers["Content-Length"]) == len(page().body)


def test_an_answer_that_is_known_is_not_sent_again(port) -> None:
    reply, body = request(port, "/jobs")
    tag = reply.headers["ETag"]
    assert b"pobench watch" in body and request(port, "/jobs", If_None_Match=tag)[0].status == 304
    policy = reply.headers["Content-Security-Policy"]
    assert "unsafe" not in policy and "connect-src 'self'" in policy and policy.count("'sha256-") == 2


def test_in_the_end_the_page_is_the_report(port, folder) -> None:
    assert request(port, "/")[0].status == 200
    assert request(port, "/report/report.html")[0].status == 404, "there is none yet"
    store(folder.runs, "finished", "finished", "finished")
    report = folder.runs / "report"
    (report / "tiny").mkdir(parents=True)
    (report / "tiny" / "loss.csv").write_text("a,b\n")
    (report / "secret.csv").symlink_to(folder.runs / "tiny" / "command.json")
    (report / "report.html").write_text("<h1>the report</h1>")
    reply, _ = request(port, "/")
    assert (reply.status, reply.headers["Location"]) == (302, "/report/report.html")
    assert request(port, "/report/report.html")[1] == b"<h1>the report</h1>"
    assert request(port, "/report/tiny/loss.csv")[1] == b"a,b\n"
    assert request(port, "/report/secret.csv")[0].status == 404, "links are not followed"
    assert request(port, "/jobs")[0].status == 200, "the list of jobs stays"
