"""A small OpenAI-compatible server for tests: it answers as it is told, fails as it is told, and counts what it sold.

    with OpenAIServer(lambda body: says("A", A=-0.1, B=-2.4)) as server:
        Client(model="judge", base_url=server.url) …
        server.paid, server.bodies, server.keys

`failures` are met first, one a request, in order: a status, or a function of the request handler.

No test waits for a length of time: `hold_after(3)` answers three requests and holds the others until `release()`, and
`wait_for(lambda: server.held == 2)` returns when they are there.
"""

from __future__ import annotations

import itertools
import json
import subprocess
import threading
from collections.abc import Callable, Iterable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Body = dict[str, Any]
LONG = 3600.0  # seconds: no machine is so slow, so a test that waits as long has a fault


def says(text: str, /, **top: float) -> Body:
    """A chat completion of ten tokens in, one out. top: alternatives of the first token, in nats."""
    choice: Body = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}
    if top:
        given = [{"token": token, "logprob": logprob, "bytes": None} for token, logprob in top.items()]
        choice["logprobs"] = {"content": [{"token": text[:1], "logprob": 0.0, "top_logprobs": given}]}
    usage = {"prompt_tokens": 10, "completion_tokens": 1, "total_tokens": 11}
    return {"id": "1", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice], "usage": usage}


class _Http(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128  # connections at once, none of which may be refused and tried again a second later


class OpenAIServer:
    """answer: of a request's JSON body; its logprobs are left out unless asked for. holds: whether a request is held until
    `release()`."""

    def __init__(
        self,
        answer: Callable[[Body], Body],
        *,
        failures: Iterable[Failure] = (),
        holds: Callable[[Body], bool] = lambda body: False,
        logprobs: bool = True,
    ) -> None:
        self.answer, self.failures, self.holds, self.logprobs = answer, list(failures), holds, logprobs
        self.bodies: list[Body] = []  # of all requests, failed ones too
        self.keys: list[str] = []
        self.paid = 0  # completions sent
        self.held = self.releases = 0  # requests that wait for `release()`, and how often it was called
        self.at_once = self.most_at_once = 0  # requests without a reply
        self.closing = threading.Event()
        self.changed = threading.Condition()  # guards all of the above
        self._http = _Http(("127.0.0.1", 0), type("Handler", (_Handler,), {"told": self}))

    def refusal(self, body: Body) -> Failure | None:
        """The failure that this request meets; a subclass may look at it."""
        return self.failures.pop(0) if self.failures else None

    def hold_after(self, replies: int) -> None:
        """Answer this many requests, and hold the others."""
        place = itertools.count()
        self.holds = lambda body: next(place) >= replies

    def release(self) -> None:
        """Answer what is held, and hold no more."""
        with self.changed:
            self.holds, self.held, self.releases = lambda body: False, 0, self.releases + 1
            self.changed.notify_all()

    def wait_for(self, condition: Callable[[], bool], process: subprocess.Popen[Any] | None = None) -> None:
        """Return when the condition holds, which is asked after every request and reply. process: what sends them; if it ends
        before, the test fails."""

        def watch(process: subprocess.Popen[Any]) -> None:
            process.wait()
            with self.changed:
                self.changed.notify_all()

        if process is not None:
            threading.Thread(target=watch, args=(process,), daemon=True).start()
        with self.changed:
            self.changed.wait_for(lambda: condition() or (process and process.poll() is not None), LONG)
            assert condition(), "it never came"

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._http.server_address[1]}/v1"

    def __enter__(self) -> OpenAIServer:
        threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self.closing.set()
        self.release()
        self._http.shutdown()
        self._http.server_close()


class _Handler(BaseHTTPRequestHandler):
    told: OpenAIServer
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        told = self.told
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with told.changed:
            told.bodies.append(body)
            told.keys.append(self.headers.get("Authorization", ""))
            failure = told.refusal(body)
            told.at_once += 1
            told.most_at_once = max(told.most_at_once, told.at_once)
            told.changed.notify_all()
        self.replied = False
        try:
            if isinstance(failure, int):
                self.send(failure, {"error": {"message": f"scripted failure {failure}"}})
            elif failure is not None:
                failure(self)
            else:
                self.complete(body)
        except (BrokenPipeError, ConnectionResetError):
            pass  # the client hung up
        finally:
            self.leave()

    def complete(self, body: Body) -> None:
        told = self.told
        with told.changed:
            if told.holds(body):
                told.held += 1
                told.changed.notify_all()
                releases = told.releases
                told.changed.wait_for(lambda: told.releases > releases)
        reply = told.answer(body)
        if not (body.get("logprobs") and told.logprobs):
            reply["choices"][0].pop("logprobs", None)
        with told.changed:
            told.paid += 1
        self.send(200, reply)

    def leave(self) -> None:
        """The request has its reply: called before that is sent, so that no next request of the client comes earlier."""
        with self.told.changed:
            self.told.at_once -= not self.replied
            self.replied = True
            self.told.changed.notify_all()

    def send(self, status: int, reply: Body | str, **headers: str) -> None:
        self.leave()
        content = (reply if isinstance(reply, str) else json.dumps(reply)).encode()
        self.send_response(status)
        for name, value in {
            "Content-Type": "application/json",
            "Content-Length": str(len(content)),
            **{name.replace("_", "-"): value for name, value in headers.items()},
        }.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *about: object) -> None:
        pass


Failure = int | Callable[[_Handler], None]


def refuses(status: int, message: str, code: str | None = None, **headers: str) -> Failure:
    """A status with its message, and headers such as Retry_After="1"."""
    return lambda handler: handler.send(status, {"error": {"message": message, "code": code}}, **headers)


def garbage(handler: _Handler) -> None:
    """Status 200, and no JSON."""
    handler.send(200, "<html>gateway</html>")


def hangs(handler: _Handler) -> None:
    """Silence until the server closes."""
    handler.told.closing.wait()
    handler.close_connection = True


def hangs_up(handler: _Handler) -> None:
    """The connection breaks off."""
    handler.close_connection = True
    handler.connection.close()
