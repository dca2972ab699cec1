"""A client for a chat model behind an OpenAI-compatible address, with a cache of replies, retries and a cost cap.

    client = Client(model="gpt-4-turbo", base_url=None)
    client.estimate(requests)     the cost of the requests, at most
    client.ask(requests)          replies, in the order of the requests

Every reply is stored at once, under a hash of the request and the model. So a call that is interrupted and repeated pays
only for the rest. A server's address counts with its port, so that two servers with one model's name share no replies.

The key is read from the environment, and no file or message contains it: it is masked in whatever a server says.

What a server refuses and a reply can do without is left out from then on, and said: log-probabilities, the temperature (which
o-series models and GPT-5 fix), the seed, and the system turn, whose words then stand in the user's.
"""

from __future__ import annotations

import base64
import email.utils
import hashlib
import json
import math
import os
import random
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, quote, urlsplit

from pobench import printing
from pobench.errors import CorruptError, PobenchError
from pobench.files import read_marker, sealed, write_text
from pobench.judging.replies import Reply, blamed, error_in, parse, refuses_system, without_system
from pobench.sources import cache_folder

OPENAI = "https://api.openai.com/v1"
BYTES_A_TOKEN, TOKENS_A_MESSAGE = 4, 4  # of English text in a GPT-4-class vocabulary: estimates
LONGEST_WAIT = 600.0  # seconds; a request whose server asks for more fails
# Stop after three failures of any kind before the first reply, and after twenty time-outs in a row later. Refusals by a
# server that has replied before do not count: each is about one request, which may be too long or break a rule.
FAILURES_AT_ONCE, FAILURES_IN_A_ROW = 3, 20
RETRIED = (408, 409, 429)  # and 5xx
ADAPTED = (
    200,
    400,
    403,
    422,
    500,
    501,
)  # servers answer so to an argument that they do not know; 200: an error in the reply
REFUSED = (401, 402, 404)  # the key, the credit, the address or the model is wrong, whatever the request
# What a request can do without, and what is said when a server refuses it.
OPTIONAL = {
    "logprobs": "the server gives no logprobs; no further request asks for them",
    "temperature": "the server takes no temperature but its own; no further request names one",
    "seed": "the server takes no seed; no further request names one",
}
NO_SYSTEM = "the model takes no system turn; the words stand in the user's turn from now on"
LIMITS = ("max_completion_tokens", "max_tokens")
OURS = ("model", "messages", "stream", "n", "logprobs", "top_logprobs")  # never among the further arguments
SECRET = re.compile(r'"[^"]*(?:(?:api|access|auth).?(?:key|token)|authorization|secret|password)[^"]*":', re.IGNORECASE)
SHOWN = 300  # characters of a server's words in a message
LIKE_A_KEY = 20  # characters of a variable's name in mixed case
SHORTEST_KEY = 7  # characters; a shorter one is a placeholder such as "none", and a word of many replies


@dataclass(frozen=True)
class Request:
    """One question. logprobs: how many alternatives of each token to ask for; 0: none."""

    messages: tuple[dict[str, str], ...]  # role, content
    max_tokens: int
    temperature: float = 0.0
    logprobs: int = 0
    seed: int | None = None


@dataclass(frozen=True)
class Cost:
    """The cost of requests, at most, without replies in the cache. prompt_tokens: estimated from the text. completion_tokens:
    the allowed maximum. dollars: nan if the price is not known."""

    requests: int
    cached: int
    prompt_tokens: int
    completion_tokens: int
    dollars: float

    def __str__(self) -> str:
        price = "price not known" if math.isnan(self.dollars) else f"at most about ${self.dollars:.2f}"
        return (
            f"{self.requests} requests, {self.cached} of them answered before; about {self.prompt_tokens:,} tokens in "
            f"(estimated from the text), at most {self.completion_tokens:,} out; {price}"
        )


@dataclass
class Spent:
    """What a client has paid for so far. dollars: nan if the price is not known."""

    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    dollars: float = 0.0

    def __str__(self) -> str:
        price = "price not known" if math.isnan(self.dollars) else f"${self.dollars:.4f}"
        return f"{self.requests} requests, {self.prompt_tokens:,} tokens in, {self.completion_tokens:,} out, {price}"


class Client:
    """Asks one model.

    base_url: default `OPENAI_BASE_URL`, else OpenAI's. key_variable: the environment variable with the key; it may be unset
    if the server needs no key. concurrency: requests at a time. retries: per request, if the server is busy, broken or
    silent; the wait doubles each time, with jitter, and all requests respect a Retry-After. timeout: seconds without a
    byte. price_in, price_out: dollars per million tokens; nan: not known. max_cost: dollars that this client may spend.
    extra: further arguments of every request; those that a request has already are replaced. cache: folder of the replies.
    Raises PobenchError that lists all faults of these arguments.
    """

    def __init__(
        self,
        *,
        model: str,
        base_url: str | None = None,
        key_variable: str = "OPENAI_API_KEY",
        concurrency: int = 8,
        retries: int = 5,
        timeout: float = 120,
        price_in: float = math.nan,
        price_out: float = math.nan,
        max_cost: float | None = None,
        extra: Mapping[str, Any] | None = None,
        cache: Path | None = None,
    ) -> None:
        self.model, self.base_url, self.extra = model, address(base_url), dict(extra or {})
        self.key_variable, self.concurrency, self.retries, self.timeout = key_variable, concurrency, retries, timeout
        self.price_in, self.price_out, self.max_cost = price_in, price_out, max_cost
        self.cache = cache or cache_folder() / "replies"
        self._check()
        self.spent = Spent(dollars=self._dollars(0, 0))
        self._on_way, self._reserved = 0, 0.0  # requests in flight, and the dollars they may cost
        self._left_out: set[str] = set()  # what the server refused or ignored
        self.notes: list[str] = []  # sentences about that
        self._failed_in_a_row, self._proven, self._resume_at = 0, False, 0.0
        self._stop = threading.Event()
        self._budget = threading.Condition()  # guards all of the above
        self._connection: Any = None

    def _check(self) -> None:
        faults = []
        if not self.model:
            faults.append("model: name the model that is to be asked")
        if self._masked(self.model) != self.model:
            faults.append("model: the model's name is needed, never the key")
        url = _split(self.base_url)
        if url.scheme not in ("http", "https") or not url.hostname:
            faults.append("base_url: an address such as http://localhost:8000/v1 is needed")
        elif not identity(self.base_url):
            faults.append("base_url: its port is no number up to 65535")
        if url.username or url.password or url.query or self._masked(self.base_url) != self.base_url:
            # not shown: it may be a key
            faults.append("base_url: no user, password, query or key; the key comes from the environment alone")
        faults += self._extra_faults()
        if not re.fullmatch(r"[A-Za-z_]\w*", self.key_variable) or _is_key(self.key_variable):  # not shown either
            faults.append("key_variable: the NAME of an environment variable is needed, never the key itself")
        limits = {"concurrency": (self.concurrency, 1), "retries": (self.retries, 0), "timeout": (self.timeout, 1e-3)}
        faults += [
            f"{name}: got {got}, allowed is at least {least:g}"
            for name, (got, least) in limits.items()
            if not got >= least
        ]
        if self.max_cost is not None and (math.isnan(self.price_in) or math.isnan(self.price_out)):
            faults.append("max_cost: needs price_in and price_out, in dollars per million tokens")
        if faults:
            raise PobenchError("\n  ".join(["the endpoint's settings are wrong:", *faults]))

    def _extra_faults(self) -> list[str]:
        faults = [f"extra.{name}: pobench sets it itself" for name in OURS if name in self.extra]
        for name in LIMITS:
            if name in self.extra and not (type(self.extra[name]) is int and self.extra[name] >= 1):
                faults.append(f"extra.{name}: a whole number from 1 on is needed")
        try:
            text = json.dumps(self.extra)
        except (TypeError, ValueError):
            return [*faults, "extra: names and values as in JSON are needed"]
        if SECRET.search(text) or self._masked(text) != text:
            faults.append("extra: no key; it comes from the environment alone")
        return faults

    # -- before

    def estimate(self, requests: Sequence[Request]) -> Cost:
        """The cost of `ask` for these requests, at most."""
        unpaid = {
            key: r for key, r in zip(map(self._key, requests), requests, strict=True) if not self._file(key).is_file()
        }
        ins, outs = sum(map(_tokens, unpaid.values())), sum(map(self.limit, unpaid.values()))
        return Cost(len(requests), len(requests) - len(unpaid), ins, outs, self._dollars(ins, outs))

    def limit(self, request: Request) -> int:
        """The tokens that a reply may have."""
        return allowed_tokens(request.max_tokens, self.extra)

    def _dollars(self, prompt_tokens: float, completion_tokens: float) -> float:
        return (prompt_tokens * self.price_in + completion_tokens * self.price_out) / 1e6

    # -- asking

    def ask(
        self,
        requests: Sequence[Request],
        *,
        progress: Callable[[int, int], None] | None = None,
        say: Callable[[str], None] | None = None,
    ) -> list[Reply]:
        """The replies, in the order of the requests; equal requests are paid for once. progress(done, all). say: receives
        sentences for the terminal.

        A single request that fails has the reason in `Reply.error`. Raises PobenchError if no request can succeed: the key
        or the model is refused, the cap is reached, or only failures come back. Replies so far are stored, and repeating
        the call continues; also after Ctrl-C, which waits for the requests in flight.
        """
        keys = [self._key(request) for request in requests]
        replies = {key: stored for key in dict.fromkeys(keys) if (stored := self._stored(key)) is not None}
        left = {key: request for key, request in zip(keys, requests, strict=True) if key not in replies}
        times = Counter(keys)
        done = sum(times[key] for key in replies)
        report = progress or (lambda done, total: None)
        report(done, len(keys))
        if left:
            self._connect()
            self._stop.clear()
            self._failed_in_a_row, self._proven = 0, bool(replies) or self.spent.requests > 0
            tell = say or (lambda text: None)
            pool = ThreadPoolExecutor(min(self.concurrency, len(left)), thread_name_prefix="ask")
            try:
                futures = {pool.submit(self._answer, key, request, tell): key for key, request in left.items()}
                for future in as_completed(futures):
                    key = futures[future]
                    replies[key] = future.result()
                    done += times[key]
                    report(done, len(keys))
            finally:
                self._stop.set()  # waiting requests give up; requests in flight are paid for and stored
                with self._budget:
                    self._budget.notify_all()
                pool.shutdown(wait=True, cancel_futures=True)
        return [replies[key] for key in keys]

    def _connect(self) -> None:
        if self._connection is not None:
            return
        import openai

        key = self._key_of_server
        if not key and urlsplit(self.base_url).hostname == urlsplit(OPENAI).hostname:
            raise PobenchError(f"no key: set the environment variable {self.key_variable}, or name another base_url")
        self._connection = openai.OpenAI(
            api_key=key or "none",
            base_url=self.base_url,
            timeout=self.timeout,
            max_retries=0,  # the retries are ours
        )

    def _answer(self, key: str, request: Request, say: Callable[[str], None]) -> Reply:
        """One reply, paid for and stored, or a Reply with the error."""
        bound = self._reserve(request)
        reply = Reply("", error="stopped")
        try:
            reply = self._persist(request, say)
        except PobenchError:
            self._stop.set()  # now, so that no further request is sent
            raise
        finally:
            self._settle(bound, reply)
        if not reply.error:
            self._store(key, reply)
        return reply

    def _persist(self, request: Request, say: Callable[[str], None]) -> Reply:
        import openai

        attempt = 0
        while True:
            if self._stop.wait(max(0.0, self._resume_at - time.monotonic())):
                return Reply("", error="stopped")
            left_out, after = frozenset(self._left_out), None
            body = self._body(request, left_out)
            try:
                return self._send(body, request, say)
            except openai.APIStatusError as error:
                status, why = error.status_code, self._clean(error)
                if status in ADAPTED and (self._adapt(body, error.body, why, say) or left_out != self._left_out):
                    continue  # refused because of something that is now left out
                exhausted = "insufficient_quota" in why
                if status in REFUSED or exhausted or (status == 403 and not self._proven):
                    raise PobenchError(self._refusal(status, why)) from None
                if status not in RETRIED and 400 <= status < 500:
                    return self._failed(f"refused with status {status}: {why[:SHOWN]}", math.inf)
                after = _retry_after(error.response.headers)
            except openai.APIConnectionError as error:  # time-outs too
                why = self._clean(error)
            # not JSON, JSON too deep to read, or not a chat completion
            except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
                why = f"the server's answer is no chat completion ({type(error).__name__})"
            if attempt == self.retries or (after or 0) > LONGEST_WAIT:
                return self._failed(f"no reply after {attempt + 1} attempts: {why[:SHOWN]}", FAILURES_IN_A_ROW)
            self._wait(attempt, after)
            attempt += 1

    def _body(self, request: Request, left_out: frozenset[str]) -> dict[str, Any]:
        """The request's JSON without the model's name."""
        messages = without_system(request.messages) if "system" in left_out else list(request.messages)
        renamed = "max_tokens" in left_out or "max_completion_tokens" in self.extra
        body: dict[str, Any] = {"messages": messages, LIMITS[0] if renamed else LIMITS[1]: self.limit(request)}
        if request.logprobs > 0 and "logprobs" not in left_out:
            body |= {"logprobs": True, "top_logprobs": request.logprobs}
        if "temperature" not in left_out:
            body["temperature"] = request.temperature
        if request.seed is not None and "seed" not in left_out:
            body["seed"] = request.seed
        return body | {name: value for name, value in self.extra.items() if name not in LIMITS}

    def _send(self, body: Mapping[str, Any], request: Request, say: Callable[[str], None]) -> Reply:
        import openai

        arguments = {name: value for name, value in body.items() if name != "messages"}
        raw = self._connection.chat.completions.with_raw_response.create(
            model=self.model, messages=body["messages"], extra_body=arguments
        )
        answered = raw.http_response.json()
        if found := error_in(answered):
            status, words, inner = found
            error = openai.APIStatusError(
                f"an error in place of a reply: {words}", response=raw.http_response, body=inner
            )
            error.status_code = status
            raise error
        reply = self._without_key(parse(answered, self.limit(request)))
        if "logprobs" in body and reply.text and not reply.top:
            self._leave_out("logprobs", OPTIONAL["logprobs"], say)
        return replace(
            reply,
            prompt_tokens=reply.prompt_tokens or _tokens(request),
            completion_tokens=reply.completion_tokens or _text_tokens(reply.text),
        )

    def _adapt(self, body: Mapping[str, Any], error: Any, why: str, say: Callable[[str], None]) -> bool:
        """Whether the server refused something that can be left out or renamed; if so, do that from now on."""
        where = blamed(error, why)
        for name, sentence in OPTIONAL.items():
            refused = re.search(rf"(?<![a-z]){name}(?![a-z])", where, re.IGNORECASE)
            if refused and name in body and name not in self.extra:
                return self._leave_out(name, sentence, say)
        if "max_tokens" in body and "max_completion_tokens" in why and "context" not in why:
            return self._leave_out("max_tokens", "", say)
        if body["messages"][0]["role"] == "system" and refuses_system(why):
            return self._leave_out("system", NO_SYSTEM, say)
        return False

    def _leave_out(self, what: str, sentence: str, say: Callable[[str], None]) -> bool:
        with self._budget:
            fresh = what not in self._left_out
            self._left_out.add(what)
        if fresh and sentence:
            self.notes.append(f"{self.model}: {sentence}")
            say(self.notes[-1])
        return True

    def _wait(self, attempt: int, after: float | None) -> None:
        """Wait before the next attempt. If the server says how long, no request is sent before that."""
        if after is not None:
            with self._budget:
                self._resume_at = max(self._resume_at, time.monotonic() + after)
        jittered = min(60.0, 2.0**attempt) * random.uniform(0.5, 1.0)
        self._stop.wait(random.uniform(0.0, 0.5) if after is not None else jittered)

    def _failed(self, why: str, bearable: float) -> Reply:
        """A Reply with the error. bearable: how many such failures in a row are accepted from a server that has replied.

        Raises PobenchError if there were more.
        """
        with self._budget:
            self._failed_in_a_row += 1
            limit = bearable if self._proven else FAILURES_AT_ONCE
            many = self._failed_in_a_row >= limit and not self._stop.is_set()
        if many:
            raise PobenchError(
                f"{self.model}: {self._failed_in_a_row} requests in a row failed, so the rest was not sent. The last one: "
                f"{why}\nreplies that came are kept; repeating the command continues"
            )
        return Reply("", error=why)

    def _refusal(self, status: int, why: str) -> str:
        remedy = {
            401: f"check the key in {self.key_variable}",
            403: f"check what the key in {self.key_variable} may do",
            404: "check the model's name and base_url",
        }.get(status, "check the account's credit")
        words = f"{self.model}: the server refuses to answer (status {status}): {why[:SHOWN]}"
        return f"{words}\n{remedy}; replies that came are kept"

    def _clean(self, error: Exception) -> str:
        """The error as one printable line, without the key, which some servers echo."""
        code = getattr(error, "code", None)  # such as insufficient_quota
        text = " ".join([*(str(error) or type(error).__name__).split(), *([f"({code})"] if code else [])])
        return self._masked("".join(c if c.isprintable() else "�" for c in text))

    # -- the key

    @property
    def _key_of_server(self) -> str:
        return os.environ.get(self.key_variable, "").strip()

    def _masked(self, text: str) -> str:
        for form in _forms(self._key_of_server):
            text = text.replace(form, "(key)")
        return text

    def _without_key(self, reply: Reply) -> Reply:
        """The reply as it may be stored and shown."""
        top = {self._masked(token): logprob for token, logprob in reply.top.items()}
        return replace(reply, text=self._masked(reply.text), top=top)

    # -- the budget

    def _reserve(self, request: Request) -> float:
        """Reserve the dollars that the request may cost, and return them. Raises PobenchError if the cap has no room."""
        cap = math.inf if self.max_cost is None else self.max_cost
        bound = self._dollars(_tokens(request), self.limit(request))
        with self._budget:
            while self.spent.dollars + self._reserved + bound > cap and not self._stop.is_set():  # false for nan
                if not self._on_way:
                    raise PobenchError(
                        f"{self.model}: the cap of ${cap:.2f} is reached: ${self.spent.dollars:.4f} spent on "
                        f"{self.spent.requests} requests, ${cap - self.spent.dollars:.4f} left, and the next may "
                        f"cost ${bound:.4f}. Replies that came are kept; repeating the command continues"
                    )
                self._budget.wait()
            self._on_way += 1
            self._reserved += bound
        return bound

    def _settle(self, bound: float, reply: Reply) -> None:
        with self._budget:
            self._on_way -= 1
            self._reserved = self._reserved - bound if self._on_way else 0.0
            if not reply.error:
                self._failed_in_a_row, self._proven = 0, True
                self.spent.requests += 1
                self.spent.prompt_tokens += reply.prompt_tokens
                self.spent.completion_tokens += reply.completion_tokens
                self.spent.dollars = self._dollars(self.spent.prompt_tokens, self.spent.completion_tokens)
            self._budget.notify_all()

    # -- the cache

    def _key(self, request: Request) -> str:
        causes = {"model": self.model, "server": identity(self.base_url), **asdict(request)}
        causes |= {"extra": self.extra} if self.extra else {}
        return hashlib.sha256(json.dumps(causes, sort_keys=True).encode()).hexdigest()

    def _file(self, key: str) -> Path:
        return self.cache / key[:2] / f"{key}.json"

    def _stored(self, key: str) -> Reply | None:
        """The stored reply; None, with a sentence, where it is damaged."""
        file = self._file(key)
        if not file.is_file():
            return None
        try:
            return self._without_key(replace(Reply(**read_marker(file)), cached=True))
        except (CorruptError, ValueError, TypeError, AttributeError) as error:
            fault = error if isinstance(error, CorruptError) else CorruptError(file, "it holds no reply")
            printing.say(f"{fault}; it is asked for again")
            return None

    def _store(self, key: str, reply: Reply) -> None:
        stored = {k: v for k, v in asdict(reply).items() if k not in ("cached", "error")}
        try:
            write_text(self._file(key), json.dumps(sealed(stored), ensure_ascii=False) + "\n")
        except OSError as error:
            raise PobenchError(
                f"replies cannot be stored in {str(self.cache)!r} ({error.strerror}); make room, or set POBENCH_CACHE"
            ) from error


@lru_cache(maxsize=8)
def _forms(key: str) -> tuple[str, ...]:
    """What gives a key away, longest first: itself, also in an address, in base64 behind any other text, and either half, as
    some servers print one."""
    if len(key) < SHORTEST_KEY:
        return ()
    forms = {key, quote(key, safe="")}
    for before in range(3):
        inner = base64.b64encode(b"\0" * before + key.encode()).decode().rstrip("=")[4 * (before > 0) : -1]
        forms |= {inner, inner.replace("+", "-").replace("/", "_")}
    half = len(key) // 2
    forms |= {key[:half], key[half:]} if half >= SHORTEST_KEY else set()
    return tuple(sorted(forms, key=lambda form: -len(form)))


def address(base_url: str | None) -> str:
    """The address in use: the given one, else `OPENAI_BASE_URL`, else OpenAI's."""
    return base_url or os.environ.get("OPENAI_BASE_URL") or OPENAI


def identity(base_url: str) -> str:
    """The address as a cause of replies: host, port and path, without case; the port 443 is not named, and this machine's
    usual names are one, "local". "" if the port is none."""
    url = _split(base_url)
    try:
        port = url.port or (80 if url.scheme == "http" else 443)
    except ValueError:
        return ""
    host = (url.hostname or "").lower()
    # a name to compare with, nothing is bound
    host = "local" if host in ("localhost", "127.0.0.1", "0.0.0.0", "::1") else host  # nosec B104
    return f"{host}{'' if port == 443 else f':{port}'}{url.path.rstrip('/')}"


def _split(base_url: str) -> SplitResult:
    """The parts of an address; all empty for a bracket without its other."""
    try:
        return urlsplit(base_url)
    except ValueError:
        return urlsplit("")


def _is_key(name: str) -> bool:
    """Whether the name of a variable that is not set looks like a key itself, as tokens of hubs do: hf_aBcD…"""
    return len(name) >= LIKE_A_KEY and name not in os.environ and name != name.upper()


def allowed_tokens(max_tokens: int, extra: Mapping[str, Any]) -> int:
    """The limit of a reply's tokens: the further arguments' own, else `max_tokens`."""
    return int(next((extra[name] for name in LIMITS if name in extra), max_tokens))


def _tokens(request: Request) -> int:
    """The estimated number of prompt tokens."""
    return sum(_text_tokens(str(m["content"])) + TOKENS_A_MESSAGE for m in request.messages)


def _text_tokens(text: str) -> int:
    return math.ceil(len(text.encode("utf-8", "replace")) / BYTES_A_TOKEN)


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that the server asks to wait, given as a number or a date; None without a readable Retry-After."""
    value = headers.get("retry-after", "").strip()
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except (TypeError, ValueError):
        return None
