"""The client of a chat model over the network: what is paid for, what is kept, and what is never said."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from openai_server import LONG, OpenAIServer, garbage, hangs, hangs_up, refuses, says

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
    return Client(**{"model": "judge", "base_url": server.url, "timeout": LONG, **about})


def files_below(folder: Path) -> list[Path]:
    return [p for p in folder.rglob("*") if p.is_file()]


# ---------------------------------------------------------------- what is paid for


def test_replies_come_in_the_order_of_the_requests_and_several_are_on_their_way_at_once(server) -> None:
    together = threading.Barrier(8)  # no reply before eight requests are there
    echo = server.answer
    server.answer = lambda body: [together.wait(LONG), echo(body)][1]
    seen: list[tuple[int, int]] = []
    replies = client_of(server).ask([question(i) for i in range(24)], progress=lambda *p: seen.append(p))
    assert [r.text for r in replies] == [str(i) for i in range(24)]
    assert seen[0] == (0, 24) and seen[-1] == (24, 24)
    assert server.most_at_once == 8


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


def test_one_address_is_one_server_whatever_its_spelling() -> None:
    assert identity("http://127.0.0.1:8000/v1") == identity("http://localhost:8000/v1/") == "local:8000/v1"
    assert identity("http://[::1]:8000/v1") == identity("http://0.0.0.0:8000/v1") == "local:8000/v1"
    assert identity("https://API.example.org/v1") == identity("https://api.example.org:443/v1") == "api.example.org/v1"
    addresses = ["http://api.example.org/v1", "https://api.example.org/v1", "https://api.example.org:8443/v1"]
    addresses += [
        "https://api.example.com/v1",
        "https://api.example.org/v2",
        "http://localhost/v1",
        "http://127.0.0.2/v1",
    ]
    assert len({identity(address) for address in addresses}) == len(addresses)


def test_two_servers_with_one_models_name_share_no_replies() -> None:
    with OpenAIServer(lambda body: says("A")) as one, OpenAIServer(lambda body: says("B")) as other:
        assert [client_of(one).ask([question("a")])[0].text, client_of(other).ask([question("a")])[0].text] == [
            "A",
            "B",
        ]


def test_what_was_paid_at_openais_address_is_found_under_the_key_that_it_always_had() -> None:
    key = Client(model="judge")._key(question("a", logprobs=5))
    assert key == "99a9acfca234b34da55ed43e3a915a76c2d57a0c863fcfd19e177526c4f977aa"


def test_a_damaged_reply_is_named_and_asked_for_again(server, tmp_path, capsys) -> None:
    client_of(server).ask([question("a")])
    (stored,) = files_below(tmp_path / "cache")
    for damaged, paid in (('{"text": "a"', 2), ('{"words": "a"}', 3)):
        stored.write_text(damaged)
        assert client_of(server).ask([question("a")])[0].text == "a"
        assert server.paid == paid and f"{str(stored)!r} is damaged" in capsys.readouterr().err


def test_a_reply_that_the_limit_cut_within_a_character_is_paid_for_once(server) -> None:
    server.answer = lambda body: says("well done \ud83d")
    client_of(server).ask([question("a")])
    assert client_of(server).ask([question("a")])[0].text == "well done ?" and server.paid == 1


CALL = """
import sys
from pobench.judging.client import Client, Request
requests = [Request(({"role": "user", "content": str(i)},), 8) for i in range(12)]
Client(model="judge", base_url=sys.argv[1], concurrency=2).ask(requests)
"""


def test_a_call_that_is_killed_and_repeated_pays_for_the_rest_alone(server, tmp_path) -> None:
    server.hold_after(3)
    call = subprocess.Popen([sys.executable, "-c", CALL, server.url], env=dict(os.environ))
    server.wait_for(lambda: server.held == 2, call)  # both threads have stored what they got before
    call.kill()
    call.wait()
    server.release()
    server.wait_for(lambda: server.at_once == 0)  # requests of the dead process end at the server
    stored = list((tmp_path / "cache/replies").rglob("*.json"))
    assert len(stored) == 3 and all(json.loads(p.read_text())["text"] for p in stored)
    assert server.paid == 5
    replies = client_of(server).ask([question(i) for i in range(12)])
    assert [r.text for r in replies] == [str(i) for i in range(12)]
    assert server.paid == 5 + 12 - 3


def test_ctrl_c_waits_for_what_is_on_its_way_and_the_repeated_call_pays_for_the_rest_alone(server, tmp_path) -> None:
    """The signal is raised in the main thread itself: one sent by another thread is lost where it arrives just before the
    main thread begins to wait."""
    client = client_of(server, concurrency=2)

    def press(done: int, total: int) -> None:
        if done == 3:
            server.wait_for(lambda: server.held == 2)
            signal.raise_signal(signal.SIGINT)

    def let_go() -> None:
        client._stop.wait()  # the call gives up, and waits for both
        server.release()

    server.hold_after(3)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    releaser = threading.Thread(target=let_go, daemon=True)
    releaser.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            client.ask([question(i) for i in range(12)], progress=press)
    finally:
        signal.signal(signal.SIGINT, before)
    releaser.join()
    stored = len(files_below(tmp_path / "cache"))
    assert stored == server.paid == 5
    assert [r.text for r in client_of(server).ask([question(i) for i in range(12)])] == [str(i) for i in range(12)]
    assert server.paid == 12


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
    server.failures = [hangs]
    # as many attempts as it takes until a reply comes within the time, however slow this machine is
    assert client_of(server, timeout=0.2, retries=200).ask([question("a")])[0].text == "a"
    assert len(server.bodies) >= 2


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
    server.failures = [refuses(400, "no such mode")] * 50
    with pytest.raises(PobenchError, match=r"3 requests in a row failed.*no such mode"):
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


def o_series(status: int) -> OpenAIServer:
    """Refuses what OpenAI's reasoning models refuse, in OpenAI's words and one thing at a time."""
    words = {
        "max_tokens": "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' "
        "instead.",
        "temperature": "Unsupported value: 'temperature' does not support 0.0 with this model. Only the default (1) value is "
        "supported.",
        "logprobs": "You are not allowed to request logprobs from this model",
        "seed": "Unsupported parameter: 'seed' is not supported with this model.",
        "system": "Unsupported value: 'messages[0].role' does not support 'system' with this model.",
    }

    class Strict(OpenAIServer):
        def refusal(self, body: dict[str, Any]) -> Any:
            roles = {message["role"] for message in body["messages"]}
            wrong = next((name for name in words if name in body or name in roles), None)
            return None if wrong is None else refuses(403 if wrong == "logprobs" else status, words[wrong])

    return Strict(lambda body: says(body["messages"][-1]["content"]))


@pytest.mark.parametrize("status", [400, 403])
def test_a_reasoning_model_is_asked_without_what_it_refuses_and_all_is_said(status) -> None:
    told: list[str] = []
    with o_series(status) as server:
        client = client_of(server, concurrency=4)
        system = ({"role": "system", "content": "Be brief."}, {"role": "user", "content": "a"})
        requests = [Request(system, 8, logprobs=5, seed=1), *(question(i, logprobs=5, seed=1) for i in range(12))]
        replies = client.ask(requests, say=told.append)
    assert [r.text for r in replies] == ["Be brief.\n\na", *map(str, range(12))]
    assert set(server.bodies[-1]) == {"model", "messages", "max_completion_tokens"}
    assert server.bodies[-1]["max_completion_tokens"] == 8
    assert server.paid == 13 and client.spent.requests == 13
    assert sorted(told) == sorted(client.notes) and len(told) == 4
    for what in ("logprobs", "temperature", "seed", "system turn"):
        assert sum(what in sentence for sentence in told) == 1


@pytest.mark.parametrize(
    "words",
    [
        "System role not supported",  # Gemma's template, from vLLM and SGLang
        "Conversation roles must alternate user/assistant/user/assistant/...",  # Mistral's
        "Only user and assistant roles are supported!",
        "Unsupported role: system",
        "'developer role' is not supported by this model",
        "Developer instruction is not enabled for models/gemma-3-27b-it",  # Google's server
    ],
)
def test_a_model_without_a_system_role_reads_the_words_in_the_users_turn(server, words) -> None:
    server.failures = [refuses(400, words)]
    request = Request(({"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}), 8)
    assert client_of(server).ask([request])[0].text == "Be brief.\n\nHi"
    assert server.bodies[-1]["messages"] == [{"role": "user", "content": "Be brief.\n\nHi"}]


def test_a_refusal_that_names_the_argument_is_believed_before_its_words(server) -> None:
    """A validator's words may repeat the whole request."""
    detail = [
        {
            "loc": ["body", "messages"],
            "msg": "too many",
            "input": {"temperature": 0.0, "logprobs": True, "max_tokens": 8},
        }
    ]
    server.failures = [lambda handler: handler.send(422, {"detail": detail})]
    (first,) = client_of(server).ask([question("a", logprobs=5)])
    assert "refused with status 422" in first.error and len(server.bodies) == 1


def test_a_context_that_is_too_long_for_the_limit_is_no_other_spelling_of_it(server) -> None:
    words = (
        "'max_tokens' or 'max_completion_tokens' is too large: 8. This model's maximum context length is 2048 tokens"
    )
    server.failures = [refuses(400, words)]
    assert "too large" in client_of(server).ask([question("a")])[0].error
    assert len(server.bodies) == 1


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"error": {"message": "upstream is busy", "code": 502}}, "upstream is busy"),
        ({"error": "out of memory"}, "out of memory"),
        ({"object": "error", "message": "no slot is free", "code": 503}, "no slot is free"),
        ({"choices": [{"error": {"message": "cut"}, "message": {"content": ""}}]}, "cut"),
        ({"detail": "this key may not use the model"}, "this key may not use the model"),
        ({"success": False, "msg": "quota is used up"}, "quota is used up"),
        ({"errors": [{"text": "odd"}]}, "odd"),
        ({"error": {"message": "Provider returned error", "metadata": {"raw": "its own words"}}}, "its own words"),
    ],
)
def test_an_error_in_place_of_a_reply_shows_the_servers_words(server, body, words) -> None:
    server.failures = [lambda handler: handler.send(200, body)] * 2
    (reply,) = client_of(server, retries=1).ask([question("a")])
    assert reply.error.startswith("no reply after 2 attempts: an error in place of a reply: ") and words in reply.error


def test_the_code_in_an_error_of_status_200_is_the_status_that_counts(server) -> None:
    def error(code: int, message: str) -> Any:
        return lambda handler: handler.send(200, {"error": {"message": message, "code": code}})

    server.failures = [error(429, "slow down"), error(400, "temperature is not supported"), error(400, "too long")]
    client = client_of(server)
    (reply,) = client.ask([question("a")])
    assert "refused with status 400" in reply.error and "too long" in reply.error
    assert len(server.bodies) == 3 and "temperature" not in server.bodies[-1]
    server.failures = [error(401, "no such key")]
    with pytest.raises(PobenchError, match=r"(?s)no such key.*check the key"):
        client.ask([question("a")])


def test_further_arguments_go_along_and_are_a_cause_of_the_reply(server) -> None:
    client_of(server).ask([question("a")])
    extra = {"reasoning_effort": "low", "temperature": 1}
    client_of(server, extra=extra).ask([question("a")])
    client_of(server, extra={**extra, "reasoning_effort": "high"}).ask([question("a")])
    assert server.paid == 3
    assert [(b.get("reasoning_effort"), b["temperature"]) for b in server.bodies] == [
        (None, 0.0),
        ("low", 1),
        ("high", 1),
    ]


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_a_limit_among_the_further_arguments_is_the_limit_that_is_paid_for(server, name) -> None:
    client = client_of(server, extra={name: 500}, price_in=0, price_out=1e6)
    assert client.estimate([question("a")]).dollars == 500
    client.ask([question("a")])
    assert {k: v for k, v in server.bodies[0].items() if "tokens" in k} == {name: 500}


def test_a_further_argument_that_is_refused_is_not_left_out_in_silence(server) -> None:
    server.failures = [refuses(400, "temperature must be below 2")]
    (reply,) = client_of(server, extra={"temperature": 3}).ask([question("a")])
    assert "temperature must be below 2" in reply.error


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


def test_a_key_that_the_server_repeats_is_masked_in_the_reply_and_in_what_is_stored(server, tmp_path) -> None:
    server.answer = lambda body: says(f"{KEY}: A", **{KEY: -0.5, "B": -1.0})
    request = question("a", logprobs=5)
    for reply in (*client_of(server).ask([request]), *client_of(server).ask([request])):  # new, and from the cache
        assert reply.text == "(key): A" and KEY not in str(reply)
    (stored,) = files_below(tmp_path)
    assert KEY not in stored.read_text()
    stored.write_text(stored.read_text().replace("(key)", KEY))  # as earlier versions stored it
    assert KEY not in str(client_of(server).ask([request]))
    server.failures = [
        lambda handler: handler.send(200, {"error": {"message": f"Authorization: Bearer {KEY}", "code": 400}})
    ]
    (failed,) = client_of(server).ask([question("b")])
    assert "Bearer (key)" in failed.error


@pytest.mark.parametrize(
    "settings",
    [
        {"extra": {"user": KEY}},
        {"extra": {"extra_headers": {"Authorization": "Bearer another"}}},
        {"extra": {"api_key": "another"}},
        {"base_url": f"http://localhost/{KEY}/v1"},
        {"model": KEY},
        {"key_variable": "hf_aBcDeFgHiJkLmNoPqRsTuVwXyZ"},  # it could be the name of a variable, and looks like a key
    ],
)
def test_a_key_among_the_settings_is_refused_unseen(settings) -> None:
    with pytest.raises(PobenchError, match=r"key") as refused:
        Client(**{"model": "judge", **settings})
    assert "hf_" not in str(refused.value) and KEY not in str(refused.value) and "another" not in str(refused.value)


def test_further_arguments_that_cannot_be_are_named() -> None:
    with pytest.raises(PobenchError) as refused:
        Client(model="judge", extra={"stream": True, "max_tokens": 0})
    assert "extra.stream: pobench sets it itself" in str(refused.value)
    assert "extra.max_tokens: a whole number from 1 on is needed" in str(refused.value)
    with pytest.raises(PobenchError, match="extra: names and values as in JSON"):
        Client(model="judge", extra={"date": {1, 2}})
    with pytest.raises(PobenchError, match="an address such as"):
        Client(model="judge", base_url="http://[::1/v1")
    with pytest.raises(PobenchError, match="its port is no number"):
        Client(model="judge", base_url="http://localhost:80000/v1")


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
