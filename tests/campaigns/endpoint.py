"""The endpoint judge under load and fault: `python -m tests.campaigns.endpoint --count N --seed S`.

A loopback server meets every request with a fault drawn by the seed, or answers it. For each client: every reply is the one
that the server gave for that question, or is counted as missing; nothing that was answered is asked and paid for again; no
more requests are on their way than allowed; the cap holds to the cent.
"""

from __future__ import annotations

import argparse
import math
import os
import random
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1] / "pobench"))

from openai_server import Failure, OpenAIServer, garbage, hangs_up, refuses, says  # type: ignore[import-not-found]

from pobench.errors import PobenchError
from pobench.judging.client import Client, Request

KEY = "sk-planted-0123456789abcdef"
AT_ONCE = 16
PRICE_IN, PRICE_OUT = 1000.0, 2000.0  # dollars per million tokens, so that a reply of 10 + 1 tokens costs 1.2 cents
PAID = (10 * PRICE_IN + 1 * PRICE_OUT) / 1e6


def half(handler: Any) -> None:
    """Half a body, and the connection breaks off."""
    handler.leave()
    handler.send_response(200)
    handler.send_header("Content-Type", "application/json")
    handler.send_header("Content-Length", "500")
    handler.end_headers()
    handler.wfile.write(b'{"id": "1", "choices": [{"mess')
    handler.close_connection = True


def error_in_200(handler: Any) -> None:
    handler.send(200, {"error": {"message": "overloaded", "code": 503}})


def echoes_key(handler: Any) -> None:
    """An error that repeats the key."""
    handler.send(500, {"error": {"message": f"internal error with {handler.headers['Authorization']}"}})


def empty_choices(handler: Any) -> None:
    handler.send(200, {"id": "1", "choices": []})


def is_list(handler: Any) -> None:
    handler.send(200, "[1, 2]")


def deep_body(handler: Any) -> None:
    handler.send(200, "[" * 100_000)


PASSING: dict[str, Failure] = {  # a repeated request may have its reply
    "429 with Retry-After": refuses(429, "slow down", Retry_After="0"),
    "500": 500,
    "503": 503,
    "408": 408,
    "half a body": half,
    "garbage": garbage,
    "the connection breaks": hangs_up,
    "an error in a 200": error_in_200,
    "an error that repeats the key": echoes_key,
    "no choices": empty_choices,
    "a list": is_list,
    "a deep body": deep_body,
}
FINAL: dict[str, Failure] = {"403": 403, "400": 400, "413": 413}  # this one request is refused


class Faulty(OpenAIServer):
    """Draws what each request meets, from the request's own words and how often it came, so that threads change nothing."""

    def __init__(self, seed: int, share: float, never: frozenset[int]) -> None:
        super().__init__(self.reply)
        self.seed, self.share, self.never = seed, share, never
        self.tries, self.met = Counter[str](), Counter[str]()
        self.sold = Counter[str]()

    def reply(self, body: dict[str, Any]) -> dict[str, Any]:
        asked = body["messages"][-1]["content"]
        with self.changed:
            self.sold[asked] += 1
        return says(answer_of(asked)) | {"id": random.choice(["1", "another", ""])}

    def refusal(self, body: dict[str, Any]) -> Failure | None:
        asked = body["messages"][-1]["content"]
        self.tries[asked] += 1
        draw = random.Random(f"{self.seed} {asked} {self.tries[asked]}")
        kind = None
        if int(asked.split()[-1]) in self.never:
            kind = random.Random(f"{self.seed} {asked}").choice(list(FINAL))
        elif draw.random() < self.share and self.tries[asked] <= 4:
            kind = draw.choice(list(PASSING))
        self.met["an answer" if kind is None else kind] += 1
        return None if kind is None else (PASSING | FINAL)[kind]


def answer_of(asked: str) -> str:
    """The reply that a question has: another for each."""
    return "AB"[int(asked.split()[-1]) % 2] + f"\n{asked}"


class Seen(NamedTuple):
    """What became of a client's requests. faults: sentences about what must not be."""

    right: int
    missing: int
    met: Counter[str]
    faults: list[str]


def meet(seed: int, folder: Path, requests: int = 40) -> Seen:
    """One client against one server, twice: the second call asks for what the first did not get."""
    draw = random.Random(f"client {seed}")
    share, capped = draw.choice([0.0, 0.2, 0.4]), draw.random() < 0.4
    never = frozenset(draw.sample(range(4, requests), draw.randint(0, 4)))
    cap = round(draw.uniform(0.2, 0.6), 2) if capped else None
    asked = [
        Request(({"role": "user", "content": f"Which is better, number {i}"},), max_tokens=4) for i in range(requests)
    ]
    faults: list[str] = []
    replies: list[Any] = []
    with Faulty(seed, share, never) as server:
        spent = 0.0
        for _ in range(2):
            client = Client(
                model="judge", base_url=server.url, key_variable="PLANTED_KEY", concurrency=AT_ONCE, retries=6, max_cost=cap,
                price_in=PRICE_IN, price_out=PRICE_OUT, cache=folder / f"replies-{seed}",
            )  # fmt: skip
            client._wait = lambda attempt, after: None  # type: ignore[method-assign]  # how long it waits is tested elsewhere
            if not server.paid:
                client._proven = True
            try:
                replies = client.ask(asked)
            except PobenchError as error:
                faults += [f"the key in a message: {error}"] if KEY in str(error) else []
                replies = []
            if cap is not None and client.spent.dollars > cap + 1e-9:
                faults.append(f"${client.spent.dollars} spent of ${cap}")
            spent += client.spent.dollars
        if not math.isclose(spent, server.paid * PAID, abs_tol=1e-6):
            faults.append(f"${spent:.4f} counted, ${server.paid * PAID:.4f} paid")
        if twice := [text for text, times in server.sold.items() if times > 1]:
            faults.append(f"paid twice: {twice[:3]}")
        if server.most_at_once > AT_ONCE:
            faults.append(f"{server.most_at_once} at once")
        met = server.met
    right = missing = 0
    for request, reply in zip(asked, replies, strict=bool(replies)):
        text = request.messages[-1]["content"]
        if reply.error:
            missing += 1
            faults += [f"the key in an error: {reply.error}"] if KEY in reply.error else []
        elif reply.text != answer_of(text):
            faults.append(f"{text!r} has the reply {reply.text!r}")
        else:
            right += 1
    faults += [
        f"the key in {file.name}" for file in folder.rglob("*") if file.is_file() and KEY.encode() in file.read_bytes()
    ]
    return Seen(right, missing, met, faults)


def campaign(count: int, seed: int, folder: Path) -> list[Seen]:
    """`count` clients."""
    os.environ["PLANTED_KEY"] = KEY
    try:
        return [meet(seed + i, folder) for i in range(count)]
    finally:
        del os.environ["PLANTED_KEY"]


def main() -> None:
    """Print what the requests met and what came of it; exit status 1 if anything must not be."""
    parser = argparse.ArgumentParser(description="The endpoint judge under load and fault.")
    parser.add_argument("--count", type=int, default=50, help="clients, of 40 requests each, asked twice")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        seen = campaign(given.count, given.seed, Path(folder))
    met = sum((one.met for one in seen), Counter[str]())
    print("| what a request met | times |\n|---|---|")
    print("\n".join(f"| {kind} | {times} |" for kind, times in met.most_common()))
    print(f"\n{sum(s.right for s in seen)} replies right, {sum(s.missing for s in seen)} counted as missing")
    faults = [fault for one in seen for fault in one.faults]
    print("\n".join(faults) or "0 wrong, 0 paid twice, 0 above the limits", file=sys.stderr if faults else sys.stdout)
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()
