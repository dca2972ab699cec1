"""A pairwise judge: a chat model behind an OpenAI-compatible address. `client.py` sends the requests."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import Field

from pobench.judging.benchmarks.verdict_files import short
from pobench.judging.client import LIMITS, Client, Cost, Request, address, allowed_tokens, identity
from pobench.judging.pairwise import Comparison, Progress, Read, TwoOrders, from_reply, question, reason_in
from pobench.judging.replies import Reply
from pobench.registry import register_judge
from pobench.settings.schema import Count
from pobench.types import Positive

Dollars = Annotated[float, Field(ge=0, le=1e9)] | None


class EndpointJudge(TwoOrders):
    """Shows both answers to a chat model and reads its letter: from the log-probabilities of the first token if the server
    gives them and the reply begins with the letter, else from the text. Neither a thought nor a reply that is cut off is
    read."""

    def __init__(self, client: Client, max_tokens: int, logprobs: int) -> None:
        self.client, self.max_tokens, self.logprobs = client, max_tokens, logprobs
        self.name = client.model

    def read(self, shown: Sequence[Comparison], progress: Progress | None = None) -> list[Read]:
        return [self._read(reply) for reply in self.client.ask([self._request(c) for c in shown], progress=progress)]

    @property
    def notes(self) -> list[str]:
        """What the server did not take, and what is done without it."""
        return self.client.notes

    def estimate(self, comparisons: Sequence[Comparison]) -> Cost:
        """The cost of the verdicts in both orders, at most."""
        both = [one for c in comparisons if c.a != c.b for one in (c, c.swapped)]
        return self.client.estimate([self._request(c) for c in both])

    def _request(self, shown: Comparison) -> Request:
        messages = ({"role": "user", "content": question(shown)},)
        return Request(messages, self.max_tokens, logprobs=self.logprobs)

    def _read(self, reply: Reply) -> Read:
        if reply.error:
            return Read(math.nan, reply.error)
        if reply.missing:
            limit = allowed_tokens(self.max_tokens, self.client.extra)
            where = "extra" if any(name in self.client.extra for name in LIMITS) else "max_tokens"
            return Read(math.nan, f"{reply.missing}: raise judge.settings.{where}, now {limit} tokens")
        second = from_reply(reply.answer, reply.top)
        error = f"neither A nor B: {short(reply.answer)}" if math.isnan(second) else ""
        return Read(second, error, reason_in(reply.text))


def _canonical(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings with the address that is asked, also if the environment names it, in one spelling."""
    return {**settings, "base_url": identity(address(settings.get("base_url")))}


@register_judge(
    "endpoint",
    runtime=("key_variable", "concurrency", "retries", "timeout", "price_in", "price_out", "max_cost"),
    canonical=_canonical,
    compares=True,
)
def endpoint(
    *,
    model: str = "",
    base_url: str | None = None,
    key_variable: str = "OPENAI_API_KEY",
    max_tokens: Count = 16,
    logprobs: Annotated[int, Field(ge=0, le=20)] = 5,
    concurrency: Annotated[int, Field(ge=1, le=1000)] = 8,
    retries: Annotated[int, Field(ge=0, le=1000)] = 5,
    timeout: Positive = 120.0,
    price_in: Dollars = None,
    price_out: Dollars = None,
    max_cost: Dollars = None,
    extra: dict[str, Any] | None = None,
) -> EndpointJudge:
    """A chat model at an OpenAI-compatible address compares two answers; both orders are averaged.

    base_url: default OpenAI's. key_variable: the environment variable with the key. max_tokens: of a reply; more for a
    reasoning model. logprobs: alternatives of the first token to request; 0: read only the text. price_in, price_out:
    dollars per million tokens. max_cost: dollars that one call may spend. extra: further arguments of every request, such
    as reasoning_effort.
    """
    client = Client(
        model=model,
        base_url=base_url,
        key_variable=key_variable,
        concurrency=concurrency,
        retries=retries,
        timeout=timeout,
        price_in=math.nan if price_in is None else price_in,
        price_out=math.nan if price_out is None else price_out,
        max_cost=max_cost,
        extra=extra,
    )
    return EndpointJudge(client, max_tokens, logprobs)
