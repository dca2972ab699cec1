"""A client for a chat model behind an OpenAI-compatible address, with a cache of replies, retries and a cost cap.

    client = Client(model="gpt-4-turbo", base_url=None)
    client.estimate(requests)     the cost of the requests, at most
    client.ask(requests)          replies, in the order of the requests

Every reply is stored at once, under a hash of the request and the model. So a call that is interrupted and repeated pays
only for the rest. The key is read from the environment for the first request, and no file or message contains it. The
cache knows every address on this machine as "local", whatever its port: local servers that serve different models under
one name need separate caches.
"""

from __future__ import annotations

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
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pobench.errors import PobenchError
from pobench.files import write_text
from pobench.sources import cache_folder

OPENAI = "https://api.openai.com/v1"
BYTES_A_TOKEN, TOKENS_A_MESSAGE = 4, 4  # of English text in a GPT-4-class vocabulary: estimates
LONGEST_WAIT = 600.0  # seconds; a request whose server asks for more fails
# Stop after three failures of any kind before the first reply, and after twenty time-outs in a row later. Refusals by a
# server that has replied before do not count: each is about one request, which may be too long or break a rule.
FAILURES_AT_ONCE, FAILURES_IN_A_ROW = 3, 20
RETRIED = (408, 409, 429)  # and 5xx
ADAPTED = (400, 422, 500, 501)  # servers answer so to an argument that they do not know
REFUSED = (401, 402, 404)  # the key, the credit, the address or the model is wrong, whatever the request


@dataclass(frozen=True)
class Request:
    """One question. logprobs: how many alternatives of each token to ask for; 0: none."""

    messages: tuple[dict[str, str], ...]  # role, content
    max_tokens: int
    temperature: float = 0.0
    logprobs: int = 0
    seed: int | None = None


@dataclass(frozen=True)
class Reply:
    """A reply. top: alternatives of the first token → log-probability in nats; {} if the server gives none. error: why there
    is no reply after all retries."""

    text: str
    top: Mapping[str, float] = field(default_factory=dict)
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached: bool = False
    error: str = ""


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
    cache: folder of the replies.
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
        cache: Path | None = None,
    ) -> None:
        self.model = model
        self.base_url = base_url or os.environ.get("OPENAI_BASE_URL") or OPENAI
        self.key_variable, self.concurrency, self.retries, self.timeout = key_variable, concurrency, retries, timeout
        self.price_in, self.price_out, self.max_cost = price_in, price_out, max_cost
        self.cache = cache or cache_folder() / "replies"
        self._check()
        self.spent = Spent(dollars=self._dollars(0, 0))
        self._on_way, self._reserved = 0, 0.0  # requests in flight, and the dollars they may cost
        self._unsupported: set[str] = set()  # arguments that the server refused or ignored
        self._failed_in_a_row, self._proven, self._resume_at = 0, False, 0.0
        self._stop = threading.Event()
        self._budget = threading.Condition()  # guards all of the above
        self._connection: Any = None

    def _check(self) -> None:
        faults = []
        if not self.model:
            faults.append("model: name the model that is to be asked")
        url = urlsplit(self.base_url)
        if url.scheme not in ("http", "https") or not url.hostname:
            faults.append("base_url: an address such as http://localhost:8000/v1 is needed")
        if url.username or url.password or url.query:  # not shown: it may be a key
            faults.append("base_url: no user, password or query; the key comes from the environment alone")
        if not re.fullmatch(r"[A-Za-z_]\w*", self.key_variable):  # not shown either
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

    # -- before

    def estimate(self, requests: Sequence[Request]) -> Cost:
        """The cost of `ask` for these requests, at most."""
        unpaid = {
            key: r for key, r in zip(map(self._key, requests), requests, strict=True) if not self._file(key).is_file()
        }
        ins, outs = sum(map(_tokens, unpaid.values())), sum(r.max_tokens for r in unpaid.values())
        return Cost(len(requests), len(requests) - len(unpaid), ins, outs, self._dollars(ins, outs))

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

        key = os.environ.get(self.key_variable, "").strip()
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
            unsupported = frozenset(self._unsupported)
            after = None
            try:
                return self._send(request, say)
            except openai.APIStatusError as error:
                status, why = error.status_code, self._clean(error)
                if status in ADAPTED and (self._adapt(request, why, say) or unsupported != self._unsupported):
                    continue  # refused because of an argument that is now left out
                exhausted = "insufficient_quota" in why
                if status in REFUSED or exhausted or (status == 403 and not self._proven):
                    raise PobenchError(self._refusal(status, why)) from None
                if status not in RETRIED and status < 500:
                    return self._failed(f"refused with status {status}: {why}", math.inf)
                after = _retry_after(error.response.headers)
            except openai.APIConnectionError as error:  # time-outs too
                why = self._clean(error)
            except (ValueError, TypeError, LookupError, AttributeError) as error:  # not JSON, or not a chat completion
                why = f"the server's answer is no chat completion ({type(error).__name__})"
            if attempt == self.retries or (after or 0) > LONGEST_WAIT:
                return self._failed(f"no reply after {attempt + 1} attempts: {why}", FAILURES_IN_A_ROW)
            self._wait(attempt, after)
            attempt += 1

    def _send(self, request: Request, say: Callable[[str], None]) -> Reply:
        limit = "max_completion_tokens" if "max_tokens" in self._unsupported else "max_tokens"
        body: dict[str, Any] = {limit: request.max_tokens, "temperature": request.temperature}
        wants = request.logprobs > 0 and "logprobs" not in self._unsupported
        if wants:
            body |= {"logprobs": True, "top_logprobs": request.logprobs}
        if request.seed is not None:
            body["seed"] = request.seed
        raw = self._connection.chat.completions.with_raw_response.create(
            model=self.model, messages=list(request.messages), extra_body=body
        )
        reply = _parse(raw.http_response.json(), request)
        if wants and reply.text and not reply.top:
            self._leave_out("logprobs", say)
        return reply

    def _adapt(self, request: Request, why: str, say: Callable[[str], None]) -> bool:
        """Whether the server refused an argument that can be left out or renamed; if so, do that from now on."""
        if request.logprobs and "logprobs" in why and "logprobs" not in self._unsupported:
            return self._leave_out("logprobs", say)
        if "max_completion_tokens" in why and "max_tokens" not in self._unsupported:
            return self._leave_out("max_tokens", lambda text: None)
        return False

    def _leave_out(self, argument: str, say: Callable[[str], None]) -> bool:
        with self._budget:
            fresh = argument not in self._unsupported
            self._unsupported.add(argument)
        if fresh:
            say(f"{self.model}: the server gives no {argument}; no further request asks for them")
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
        return (
            f"{self.model}: the server refuses to answer (status {status}): {why}\n{remedy}; replies that came are kept"
        )

    def _clean(self, error: Exception) -> str:
        """The error as one printable line, without the key, which some servers echo."""
        code = getattr(error, "code", None)  # such as insufficient_quota
        text = " ".join([*(str(error) or type(error).__name__).split(), *([f"({code})"] if code else [])])
        text = "".join(c if c.isprintable() else "�" for c in text)
        key = self._connection.api_key
        return text.replace(key, "(key)")[:300] if len(key) > 6 else text[:300]

    # -- the budget

    def _reserve(self, request: Request) -> float:
        """Reserve the dollars that the request may cost, and return them. Raises PobenchError if the cap has no room."""
        cap = math.inf if self.max_cost is None else self.max_cost
        bound = self._dollars(_tokens(request), request.max_tokens)
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
        return hashlib.sha256(json.dumps(causes, sort_keys=True).encode()).hexdigest()

    def _file(self, key: str) -> Path:
        return self.cache / key[:2] / f"{key}.json"

    def _stored(self, key: str) -> Reply | None:
        try:
            return replace(Reply(**json.loads(self._file(key).read_text(encoding="utf-8"))), cached=True)
        except (OSError, ValueError, TypeError):  # absent or damaged: ask again
            return None

    def _store(self, key: str, reply: Reply) -> None:
        stored = {k: v for k, v in asdict(reply).items() if k not in ("cached", "error")}
        try:
            write_text(self._file(key), json.dumps(stored, ensure_ascii=False) + "\n")
        except OSError as error:
            raise PobenchError(
                f"replies cannot be stored in {str(self.cache)!r} ({error.strerror}); make room, or set POBENCH_CACHE"
            ) from error


def identity(base_url: str) -> str:
    """The address as the cache knows it: without scheme, port and case, and "local" for any name of this machine."""
    url = urlsplit(base_url)
    host = (url.hostname or "").lower()
    if host in ("localhost", "0.0.0.0", "::1") or host.startswith("127."):
        host = "local"
    return f"{host}{url.path.rstrip('/')}"


def _tokens(request: Request) -> int:
    """The estimated number of prompt tokens."""
    return sum(
        math.ceil(len(str(m["content"]).encode("utf-8", "replace")) / BYTES_A_TOKEN) + TOKENS_A_MESSAGE
        for m in request.messages
    )


def _parse(body: Any, request: Request) -> Reply:
    """The reply in a response body. Raises LookupError, TypeError, ValueError or AttributeError if it is not a chat
    completion."""
    choice, usage = body["choices"][0], body.get("usage") or {}
    text = choice["message"].get("content") or ""
    if not isinstance(text, str):
        raise TypeError("content is no text")
    tokens = (choice.get("logprobs") or {}).get("content") or []
    alternatives = tokens[0].get("top_logprobs") or [] if tokens else []
    top = {str(a["token"]): float(a["logprob"]) for a in reversed(alternatives) if math.isfinite(float(a["logprob"]))}
    return Reply(
        text,
        dict(sorted(top.items(), key=lambda item: -item[1])),
        int(usage.get("prompt_tokens") or _tokens(request)),
        int(usage.get("completion_tokens") or math.ceil(len(text.encode("utf-8", "replace")) / BYTES_A_TOKEN)),
    )


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
