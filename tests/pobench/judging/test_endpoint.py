"""The client of a chat model over the network: what is paid for, what is kept, and what is never said."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from openai_server import OpenAIServer, garbage, hangs, hangs_up, refuses, says

from pobench.errors import PobenchError
from pobench.judging import client as endpoint
from pobench.judging.client import Client, Request, identity

KEY = "sk-test-0123456789abcdef"


@pytest.fixture(autouse=True)
def quiet_environment(monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("POBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    monkeypatch.setattr(endpoint.random, "uniform", lambda low, high: 0.0)  # no waiting but what a server asks for


@pytest.fixture
def server() -> Iterator[OpenAIServer]:
    """Repeats what it was asked."""
    with OpenAIServer(lambda body: says(body["messages"][-1]["content"], A=-0.5, B=-1.0)) as running:
        yield running


def question(text: Any, **about: Any) -> Request:
    return Request(({"role": "user", "content": str(text)},), **{"max_tokens": 8, **about})


def client_of(server: OpenAIServer, **about: Any) -> Client:
    return Client(**{"model": "judge", "base_url": server.url, **about})


def files_below(folder: Path) -> list[Path]:
    return [p for p in folder.rglob("*") if p.is_file()]


# ---------------------------------------------------------------- what is paid for


def test_replies_come_in_the_order_of_the_requests_and_several_are_on_their_way_at_once(server) -> None:
    server.delay = 0.02
    seen: list[tuple[int, int]] = []
    replies = client_of(server).ask([question(i) for i in range(24)], progress=lambda *p: seen.append(p))
    assert [r.text for r in replies] == [str(i) for i in range(24)]
    assert seen[0] == (0, 24) and seen[-1] == (24, 24)
    assert 2 <= server.most_at_once <= 8


def test_what_was_answered_before_costs_nothing(server) -> None:
    requests = [question("a"), question("b")]
    first = client_of(server).ask(requests)
    client = client_of(server)
    again = client.ask([*requests, question("c")])
    assert server.paid == 3 and client.spent.requests == 1
    assert [r.cached for r in again] == [True, True, False]
    assert [(r.text, r.top, r.prompt_tokens) for r in again[:2]] == [(r.text, r.top, r.prompt_tokens) for r in first]


def test_equal_requests_are_paid_for_once(server) -> None:
    assert [r.text for r in client_of(server).ask([question("a"), question("b"), question("a")])] == ["a", "b", "a"]
    assert server.paid == 2


@pytest.mark.parametrize("change", [{"max_tokens": 9}, {"temperature": 1.0}, {"logprobs": 5}, {"seed": 1}])
def test_another_parameter_is_another_request(server, change) -> None:
    client_of(server).ask([question("a"), question("a", **change)])
    assert server.paid == 2


def test_another_model_is_asked_anew(server) -> None:
    client_of(server).ask([question("a")])
    client_of(server, model="other").ask([question("a")])
    assert server.paid == 2


def test_addresses_of_one_server_share_their_replies() -> None:
    assert identity("http://127.0.0.1:8000/v1") == identity("http://localhost:9/v1/") == "local/v1"
    assert identity("https://API.example.org/v1") == identity("http://api.example.org:443/v1")
    assert identity("https://api.example.org/v1") != identity("https://api.example.com/v1")


def test_a_damaged_reply_is_asked_for_again(server, tmp_path) -> None:
    client_of(server).ask([question("a")])
    (stored,) = files_below(tmp_path / "cache")
    stored.write_text('{"text": "a"')
    assert client_of(server).ask([question("a")])[0].text == "a"
    assert server.paid == 2


CALL = """
import sys
from pobench.judging.endpoint import Client, Request
requests = [Request(({"role": "user", "content": str(i)},), 8) for i in range(12)]
Client(model="judge", base_url=sys.argv[1], concurrency=2).ask(requests)
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_call_that_is_cut_off_and_repeated_pays_for_the_rest_alone(server, tmp_path, how) -> None:
    server.delay = 0.15
    (tmp_path / "call.py").write_text(CALL)
    call = subprocess.Popen(
        [sys.executable, str(tmp_path / "call.py"), server.url], env=dict(os.environ), stderr=subprocess.DEVNULL
    )
    cache = tmp_path / "cache/replies"
    while len(list(cache.rglob("*.json"))) < 3:  # whole ones: a partial file may end with the process
        assert call.poll() is None
        time.sleep(0.005)
    call.send_signal(how)
    call.wait(timeout=20)
    time.sleep(0.3)  # requests of the dead process end at the server
    stored, paid = len(list(cache.rglob("*.json"))), server.paid
    assert 3 <= stored < 12
    assert all(json.loads(p.read_text())["text"] for p in cache.rglob("*.json"))
    if how == signal.SIGINT:
        assert stored == paid  # what was on its way has been waited for
    replies = client_of(server).ask([question(i) for i in range(12)])
    assert [r.text for r in replies] == [str(i) for i in range(12)]
    assert server.paid - paid == 12 - stored


# ---------------------------------------------------------------- what fails


@pytest.mark.parametrize(
    "failures",
    [[500, 503], [429, 408, 409], [garbage, hangs_up], [lambda h: h.send(200, {"choices": []})]],
    ids=["broken", "busy", "garbage", "empty"],
)
def test_what_may_pass_is_tried_again(server, failures) -> None:
    server.failures = list(failures)
    assert client_of(server).ask([question("a")])[0].text == "a"
    assert len(server.bodies) == len(failures) + 1 and server.paid == 1


def test_a_silent_server_is_asked_again(server) -> None:
    server.failures = [hangs(0.5)]
    assert client_of(server, timeout=0.1).ask([question("a")])[0].text == "a"


def test_a_retry_after_is_honoured(server) -> None:
    server.failures = [refuses(429, "slow down", Retry_After="0.4")]
    started = time.monotonic()
    client_of(server, concurrency=1).ask([question("a"), question("b")])
    assert time.monotonic() - started >= 0.4


def test_waits_double_where_the_server_does_not_say(server, monkeypatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr(endpoint.random, "uniform", lambda low, high: waits.append(high) or 0.0)
    server.failures = [500] * 4
    client_of(server).ask([question("a")])
    assert waits == [1.0] * 4  # the share of 1, 2, 4 and 8 seconds that is waited: at most all of it, at least half
    assert [endpoint._retry_after({"retry-after": said}) for said in ("7", "-1", "", "soon")] == [7.0, 0.0, None, None]


def test_a_request_that_fails_for_itself_leaves_the_others_answered(server) -> None:
    server.answer = lambda body: says("fine")
    server.failures = [refuses(400, "the context is too long")]
    first, second = client_of(server, concurrency=1).ask([question("long"), question("short")])
    assert first.error.startswith("refused with status 400") and "the context is too long" in first.error
    assert first.text == "" and not first.cached
    assert second.text == "fine" and not second.error
    assert len(server.bodies) == 2, "a refusal is not retried"


def test_a_failure_is_not_kept(server) -> None:
    server.failures = [500]
    assert "no reply after 1 attempts" in client_of(server, retries=0).ask([question("a")])[0].error
    assert client_of(server).ask([question("a")])[0].text == "a"


def test_a_refused_key_is_one_message_that_does_not_repeat_it(server) -> None:
    server.failures = [refuses(401, f"wrong key: {KEY}")] * 50
    with pytest.raises(PobenchError, match="check the key in OPENAI_API_KEY") as refused:
        client_of(server).ask([question(i) for i in range(50)])
    assert KEY not in str(refused.value)
    assert len(server.bodies) <= 8


@pytest.mark.parametrize("message", ["no such model", "insufficient_quota"])
def test_what_no_request_can_help_stops_the_call(server, message) -> None:
    server.failures = [refuses(404 if "model" in message else 429, message, code=message)] * 50
    with pytest.raises(PobenchError, match=message):
        client_of(server).ask([question(i) for i in range(50)])
    assert len(server.bodies) <= 8


def test_a_server_that_answers_nothing_is_not_asked_to_the_end(server) -> None:
    server.failures = [refuses(400, "temperature must be 1")] * 50
    with pytest.raises(PobenchError, match=r"3 requests in a row failed.*temperature must be 1"):
        client_of(server, concurrency=1).ask([question(i) for i in range(50)])
    assert len(server.bodies) == 3


def test_requests_that_are_refused_for_themselves_do_not_stop_a_repeated_call(server) -> None:
    long = [question(f"long {i}") for i in range(30)]
    server.failures = [refuses(400, "the context is too long")] * 90
    client_of(server)._store(client_of(server)._key(question("short")), endpoint.Reply("stored"))
    replies = client_of(server).ask([question("short"), *long])
    assert replies[0].text == "stored" and all("too long" in r.error for r in replies[1:])


def test_a_server_that_falls_silent_is_not_asked_to_the_end(server) -> None:
    server.failures = []
    client = client_of(server, retries=0, concurrency=1)
    client.ask([question("a")])
    server.failures = [500] * 90
    with pytest.raises(PobenchError, match="20 requests in a row failed"):
        client.ask([question(i) for i in range(60)])
    assert len(server.bodies) == 21


@pytest.mark.parametrize("refusing", [True, False], ids=["refused", "not given"])
def test_a_server_without_logprobs_is_asked_without_them_from_then_on(server, refusing) -> None:
    server.logprobs = False
    server.failures = [refuses(400, "logprobs is not supported")] if refusing else []
    told: list[str] = []
    replies = client_of(server, concurrency=1).ask([question(i, logprobs=5) for i in range(3)], say=told.append)
    assert [(r.text, r.top) for r in replies] == [("0", {}), ("1", {}), ("2", {})]
    assert ["logprobs" in body for body in server.bodies] == ([True] if refusing else []) + [not refusing, False, False]
    assert told == ["judge: the server gives no logprobs; no further request asks for them"]


def test_a_model_that_spells_the_limit_otherwise_is_asked_its_way(server) -> None:
    server.failures = [refuses(400, "Unsupported parameter: 'max_tokens'; use 'max_completion_tokens' instead.")]
    client_of(server, concurrency=1).ask([question("a"), question("b")])
    assert [("max_tokens" in b, "max_completion_tokens" in b) for b in server.bodies] == [
        (True, False), (False, True), (False, True),
    ]  # fmt: skip


# ---------------------------------------------------------------- what it costs


def test_the_estimate_leaves_out_what_is_stored_and_says_when_the_price_is_not_known(server) -> None:
    requests = [question("x" * 400), question("y" * 400)]
    # 400 bytes / 4 + 4 of the message = 104 tokens in, 8 out; two dollars a million in, four out
    priced = client_of(server, price_in=2, price_out=4)
    assert priced.estimate(requests).dollars == pytest.approx(2 * (104 * 2 + 8 * 4) / 1e6)
    priced.ask(requests[:1])
    assert priced.estimate(requests) == endpoint.Cost(2, 1, 104, 8, pytest.approx((104 * 2 + 8 * 4) / 1e6))
    assert priced.spent.dollars == pytest.approx((10 * 2 + 1 * 4) / 1e6)  # as the server counted
    assert "price not known" in str(client_of(server).estimate(requests))


@pytest.mark.parametrize("concurrency", [1, 4])
def test_the_cap_is_not_passed_and_repeating_continues(server, concurrency) -> None:
    # one request: at most 5 tokens in and 8 out, 13 dollars at a dollar a token; 11 as the server counts
    price = {"price_in": 1e6, "price_out": 1e6, "max_cost": 40, "concurrency": concurrency}
    requests = [question(i) for i in range(6)]
    with pytest.raises(PobenchError, match=r"cap of \$40.00 is reached: \$33.0000 spent on 3 requests, \$7.0000 left"):
        client_of(server, **price).ask(requests)
    assert server.paid == 3
    assert [r.text for r in client_of(server, **price).ask(requests)] == [str(i) for i in range(6)]
    assert server.paid == 6


# ---------------------------------------------------------------- the key


def test_the_key_goes_to_the_server_and_nowhere_else(server, tmp_path) -> None:
    client_of(server).ask([question("a", logprobs=3)])
    assert server.keys == [f"Bearer {KEY}"]
    stored = files_below(tmp_path)
    assert stored and not [p for p in stored if KEY in p.read_text()]


def test_an_address_of_ones_own_needs_no_key_and_the_public_one_does(server, monkeypatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY")
    assert client_of(server).ask([question("a")])[0].text == "a"
    with pytest.raises(PobenchError, match="set the environment variable OPENAI_API_KEY"):
        Client(model="judge").ask([question("a")])


def test_all_that_is_wrong_is_listed_and_a_misplaced_key_is_not_shown() -> None:
    with pytest.raises(PobenchError) as refused:
        Client(model="", base_url=f"https://x:{KEY}@host/v1", key_variable=KEY, concurrency=0, max_cost=1)
    for what in ("model:", "base_url: no user", "key_variable:", "concurrency: got 0", "max_cost: needs price_in"):
        assert what in str(refused.value)
    assert KEY not in str(refused.value)
