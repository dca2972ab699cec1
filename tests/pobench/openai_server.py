"""A small OpenAI-compatible server for tests: it answers as it is told, fails as it is told, and counts what it sold.

    with OpenAIServer(lambda body: says("A", A=-0.1, B=-2.4)) as server:
        Client(model="judge", base_url=server.url) …
        server.paid, server.bodies, server.keys

`failures` are met first, one a request, in order: a status, or a function of the request handler.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Body = dict[str, Any]


def says(text: str, /, **top: float) -> Body:
    """A chat completion of ten tokens in, one out. top: alternatives of the first token, in nats."""
    choice: Body = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}
    if top:
        given = [{"token": token, "logprob": logprob, "bytes": None} for token, logprob in top.items()]
        choice["logprobs"] = {"content": [{"token": text[:1], "logprob": 0.0, "top_logprobs": given}]}
    usage = {"prompt_tokens": 10, "completion_tokens": 1, "total_tokens": 11}
    return {"id": "1", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice], "usage": usage}


class OpenAIServer:
    """answer: of a request's JSON body; its logprobs are left out unless asked for. delay: seconds before each answer."""

    def __init__(
        self,
        answer: Callable[[Body], Body],
        *,
        failures: Iterable[Failure] = (),
        delay: float = 0.0,
        logprobs: bool = True,
    ) -> None:
        self.answer, self.failures, self.delay, self.logprobs = answer, list(failures), delay, logprobs
        self.bodies: list[Body] = []  # of all requests, failed ones too
        self.keys: list[str] = []
        self.paid = 0  # completions sent
        self.at_once = self.most_at_once = 0
        self._lock = threading.Lock()
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"told": self}))
        self._http.daemon_threads = True

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._http.server_address[1]}/v1"

    def __enter__(self) -> OpenAIServer:
        threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self._http.shutdown()
        self._http.server_close()


class _Handler(BaseHTTPRequestHandler):
    told: OpenAIServer
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        told = self.told
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with told._lock:
            told.bodies.append(body)
            told.keys.append(self.headers.get("Authorization", ""))
            failure = told.failures.pop(0) if told.failures else None
            told.at_once += 1
            told.most_at_once = max(told.most_at_once, told.at_once)
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
            with told._lock:
                told.at_once -= 1

    def complete(self, body: Body) -> None:
        time.sleep(self.told.delay)
        reply = self.told.answer(body)
        if not (body.get("logprobs") and self.told.logprobs):
            reply["choices"][0].pop("logprobs", None)
        with self.told._lock:
            self.told.paid += 1
        self.send(200, reply)

    def send(self, status: int, reply: Body | str, **headers: str) -> None:
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


def hangs(seconds: float) -> Failure:
    """Silence, then an answer that nobody may be waiting for."""
    return lambda handler: time.sleep(seconds) or handler.send(200, says("late"))


def hangs_up(handler: _Handler) -> None:
    """The connection breaks off."""
    handler.close_connection = True
    handler.connection.close()
