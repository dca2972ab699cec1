"""`pobench watch`: what a command does, as one page that a browser on this machine shows while it runs.

The server answers on loopback alone, to requests that name loopback, and reads nothing but what stands in its tables: the path
of a request is a key, and never the name of a file.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import importlib.resources
import json
import math
import sys
import threading
import time
from collections.abc import Callable
from functools import cache
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qs, urlsplit

from pobench.errors import PobenchError
from pobench.files import nan_as_null
from pobench.progress import read_progress
from pobench.results.live import Alarm, StepLog, answer_alarms, training_alarms
from pobench.results.run_folder import RunFolder
from pobench.results.scores import scores_of
from pobench.runs.command import Command, Entry, commands_below
from pobench.runs.job_rows import progress_text

ADDRESS = "127.0.0.1"
HOSTS = ("127.0.0.1", "localhost", "[::1]")  # what a browser on this machine, or behind a tunnel, calls it
FRESH = 1.0  # seconds for which a look at the folders holds
ROUNDED = 5  # seconds, of the time at which all is done: a smaller change is none
TYPES = {
    ".html": "text/html; charset=utf-8", ".css": "text/css; charset=utf-8", ".js": "text/javascript; charset=utf-8",
    ".json": "application/json", ".png": "image/png", ".svg": "image/svg+xml", ".csv": "text/csv; charset=utf-8",
    ".md": "text/plain; charset=utf-8", ".tex": "text/plain; charset=utf-8", ".parquet": "application/octet-stream",
    ".gz": "application/gzip",
}  # fmt: skip


class Board:
    """What stands on the page. Its methods may be called by several threads."""

    def __init__(self, runs: Path) -> None:
        self.runs, self.boot = runs.absolute(), f"{time.time_ns():x}"
        self._lock, self._looked, self._number = threading.Lock(), -math.inf, 0
        self._jobs: dict[str, dict[str, Any]] = {}
        self._changed: dict[str, int] = {}  # job → the number of the look that found it changed
        self._logs: dict[str, StepLog] = {}
        self._alarms: dict[tuple[str, float], list[Alarm]] = {}
        self._facts: dict[str, Any] = {}
        self._folders: dict[int, str] = {}  # number of a job → its run's folder

    @property
    def report(self) -> Path:
        return self.runs / "report" / "report.html"

    @property
    def ended(self) -> bool:
        """Whether nothing is under way and the report is there, newer than the last job."""
        self.look()
        return bool(self._facts["ended"] and self._facts["report"])

    def state(self, since: str = "") -> dict[str, Any]:
        """The facts of the command, and the jobs that changed since a version; all for "", and where others were planned."""
        self.look()
        boot, _, number = since.partition("-")
        known = int(number) if boot == self.boot and number.isdigit() else -1
        with self._lock:
            jobs = [job for place, job in self._jobs.items() if self._changed[place] > known]
            return {"version": f"{self.boot}-{self._number}", "whole": known < 0, **self._facts, "jobs": jobs}

    def curves(self, number: int) -> dict[str, Any] | None:
        """Of the job that stands at a place of the list, from 1."""
        self.look()
        with self._lock:
            job = next((job for job in self._jobs.values() if job["number"] == number), None)
            log = self._logs.get(self._folders[number]) if job else None
            return None if job is None else {"number": number, "curves": log.curves() if log else {}}

    def look(self) -> None:
        """Read the folders, unless that was done a moment ago."""
        with self._lock:
            if time.monotonic() - self._looked < FRESH:
                return
            self._look()
            self._looked = time.monotonic()

    def _look(self) -> None:
        every = commands_below(self.runs)
        shown = [command for command in every if command.under_way] or every[-1:]
        facts, jobs = self._facts_of(shown), dict[str, dict[str, Any]]()
        for command in shown:
            for job, seconds in zip(command.jobs, command.expected(time.time()), strict=True):
                jobs[job.place] = self._job(job, seconds, len(jobs) + 1)
                self._folders[len(jobs)] = job.folder
        if set(self._jobs) - set(jobs):  # another command
            self.boot, self._changed = f"{time.time_ns():x}", {}
            self._jobs = {}
        changed = {place for place, job in jobs.items() if self._jobs.get(place) != job}
        if changed or facts != self._facts or len(jobs) != len(self._jobs):
            self._number += 1
            self._changed |= dict.fromkeys(changed, self._number)
        self._jobs, self._facts = jobs, facts

    def _facts_of(self, commands: list[Command]) -> dict[str, Any]:
        now = time.time()
        left = [command.left(now) for command in commands if command.under_way]
        seconds = max((one.seconds for one in left), default=0.0)
        ends = [job.ended for command in commands for job in command.jobs if not math.isnan(job.ended)]
        there = self.report.is_file() and self.report.stat().st_mtime >= max(ends, default=0.0)
        return {
            "settings": sorted({command.path.parent.name for command in commands}),
            "ended": not left,
            "at_work": any(command.lives for command in commands),
            "report": there,
            "more": any(command.more for command in commands),
            "count": sum(len(command.jobs) for command in commands),
            "before": [title for command in commands for title in command.before],
            "done_at": None if math.isnan(seconds) else ROUNDED * round((now + seconds) / ROUNDED),
            "measured": max((one.n for one in left), default=0),
        }

    def _job(self, job: Entry, seconds: float, number: int) -> dict[str, Any]:
        running = job.state == "running"
        progress = read_progress(Path(job.folder)) if running else {}
        share = progress["done"] / progress["total"] if progress.get("total") else None
        return nan_as_null(
            {
                "number": number, "title": job.title, "run": job.run, "kind": job.kind,
                "stages": job.stage_states(), "state": job.state, "began": job.began, "ended": job.ended,
                "expected": _rounded(seconds), "reason": job.reason, "doing": progress.get("title", ""), "share": share,
                "progress": progress_text(Path(job.folder)) if running else "", "left": _rounded(progress.get("left")),
                "alarms": [alarm.sentence for alarm in self._alarms_of(job)], "curves": "train" in job.stages,
            }
        )  # type: ignore[no-any-return]  # fmt: skip

    def _alarms_of(self, job: Entry) -> list[Alarm]:
        """Of a job that trains, by its steps; of one that has evaluated a run, by its scores; and why it failed."""
        failed = [Alarm("failed", f"It failed: {job.reason}")] if job.state == "failed" else []
        if "train" in job.stages and job.state != "waiting":
            log = self._logs.setdefault(job.folder, StepLog(Path(job.folder) / "steps.jsonl"))
            log.refresh()
            return failed + training_alarms(log.rows)
        if job.kind != "loss" or job.state != "finished":
            return failed
        key = (job.place, job.ended)
        if key not in self._alarms:
            self._alarms[key] = _alarms_of_scores(job)
        return self._alarms[key]


def _rounded(seconds: float | None) -> float | None:
    """To two digits, so that an estimate that hardly changed is not sent again."""
    return None if seconds is None or math.isnan(seconds) else float(f"{seconds:.2g}")


def _alarms_of_scores(job: Entry) -> list[Alarm]:
    root = Path(job.folder).parents[1]
    with contextlib.suppress(PobenchError, OSError, KeyError, ValueError):  # the report says what is wrong with them
        start = RunFolder(root, job.run).config["start"]
        return answer_alarms(scores_of(root, job.run), scores_of(root, start))
    return []


# ---------------------------------------------------------------- pages
class Answer(NamedTuple):
    """What a request gets. policy: the Content-Security-Policy; "" for a page that carries its own."""

    status: HTTPStatus
    body: bytes = b""
    kind: str = TYPES[".json"]
    where: str = ""
    policy: str = "default-src 'none'; frame-ancestors 'none'"


@cache
def page() -> Answer:
    """The page: it runs its own script and style, named by their digests, and asks this server alone."""
    folder = importlib.resources.files("pobench.reports")
    text, style, script = ((folder / f"watch.{kind}").read_text("utf-8") for kind in ("html", "css", "js"))
    body = text.replace("/* style */", style).replace("/* script */", script)
    policy = (
        f"default-src 'none'; style-src 'sha256-{_digest(style)}'; script-src 'sha256-{_digest(script)}'; "
        "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return Answer(HTTPStatus.OK, body.encode(), TYPES[".html"], policy=policy)


def _digest(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


class Site:
    """Path → answer. The files of the report are listed once they are there; no other path leads to the disk."""

    def __init__(self, board: Board) -> None:
        self.board = board
        self._files: dict[str, Path] = {}
        self._listed: float = math.nan

    def answer(self, target: str) -> Answer:
        """target: of a GET request, path and query."""
        parts = urlsplit(target)
        query = {name: values[0] for name, values in parse_qs(parts.query).items()}
        routes: dict[str, Callable[[], Answer]] = {
            "/": lambda: _to("/report/report.html") if self.board.ended else page(),
            "/jobs": page,
            "/state.json": lambda: _json(self.board.state(query.get("since", ""))),
            "/curves.json": lambda: self._curves(query.get("job", "")),
            "/report": lambda: _to("/report/report.html"),
        }
        if (route := routes.get(parts.path)) is not None:
            return route()
        file = self._report_files().get(parts.path)
        if file is None:
            return Answer(HTTPStatus.NOT_FOUND)
        try:
            return Answer(HTTPStatus.OK, file.read_bytes(), TYPES[file.suffix], policy="")
        except OSError:  # the report is just being written anew
            return Answer(HTTPStatus.NOT_FOUND)

    def _curves(self, number: str) -> Answer:
        curves = self.board.curves(int(number)) if number.isdecimal() and len(number) < 7 else None
        return Answer(HTTPStatus.NOT_FOUND) if curves is None else _json(curves)

    def _report_files(self) -> dict[str, Path]:
        """`/report/…` → file, of those that the report wrote; no links."""
        folder = self.board.report.parent
        written = self.board.report.stat().st_mtime if self.board.report.is_file() else math.nan
        if written != self._listed:
            files = [path for path in folder.rglob("*") if path.suffix in TYPES and _inside(path, folder)]
            self._files = {f"/report/{path.relative_to(folder).as_posix()}": path for path in files}
            self._listed = written
        return self._files


def _inside(path: Path, folder: Path) -> bool:
    """Whether a path leads to a file in the folder, through no link."""
    return path.is_file() and path.resolve() == folder.resolve() / path.relative_to(folder)


def _to(path: str) -> Answer:
    return Answer(HTTPStatus.FOUND, where=path)


def _json(values: Any) -> Answer:
    return Answer(HTTPStatus.OK, json.dumps(nan_as_null(values), ensure_ascii=True).encode())


# ---------------------------------------------------------------- the server
def is_loopback(host: str | None) -> bool:
    """Whether a request's `Host` names this machine: a page elsewhere whose name was made to lead here does not."""
    name, colon, port = (host or "").rpartition(":")
    if not colon or host in HOSTS:
        name, port = host or "", "0"
    return name.lower() in HOSTS and port.isdecimal()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 60
    site: Site

    def version_string(self) -> str:
        return "pobench"

    def do_GET(self) -> None:
        if not is_loopback(self.headers.get("Host")):
            self._send(Answer(HTTPStatus.FORBIDDEN))
            return
        self._send(self.site.answer(self.path))

    do_HEAD = do_GET

    def _refuse(self) -> None:
        self.close_connection = True  # its body is not read
        self._send(Answer(HTTPStatus.METHOD_NOT_ALLOWED))

    do_POST = do_PUT = do_PATCH = do_DELETE = do_OPTIONS = do_TRACE = do_CONNECT = _refuse

    def _send(self, answer: Answer) -> None:
        tag = f'"{hashlib.sha256(answer.body).hexdigest()[:24]}"'
        same = answer.status is HTTPStatus.OK and self.headers.get("If-None-Match") == tag
        self.send_response(HTTPStatus.NOT_MODIFIED if same else answer.status)
        headers = {
            "ETag": tag, "Cache-Control": "no-cache", "X-Content-Type-Options": "nosniff", "Location": answer.where,
            "Referrer-Policy": "no-referrer", "Cross-Origin-Resource-Policy": "same-origin",
            "Content-Security-Policy": answer.policy,
            "Allow": "GET, HEAD" if answer.status is HTTPStatus.METHOD_NOT_ALLOWED else "",
        }  # fmt: skip
        for name, value in headers.items():
            if value:
                self.send_header(name, value)
        if not same:
            self.send_header("Content-Type", answer.kind)
            self.send_header("Content-Length", str(len(answer.body)))
        self.end_headers()
        if not same and self.command != "HEAD":
            self.wfile.write(answer.body)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: a page asks every two seconds."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that goes away in the middle of an answer is no fault; all else is printed."""
        if not isinstance(sys.exception(), ConnectionError | TimeoutError):
            super().handle_error(request, client_address)


def make_server(runs: Path, port: int = 0) -> ThreadingHTTPServer:
    """The server of the page, bound to loopback; `server_port` says where. port: 0 for a free one. Raises PobenchError where
    the port is taken."""
    handler = type("Handler", (_Handler,), {"site": Site(Board(runs))})
    try:
        return _Server((ADDRESS, port), handler)
    except (OSError, OverflowError) as error:
        raise PobenchError(f"--port {port}: {getattr(error, 'strerror', None) or error}; 0 finds a free one") from None
