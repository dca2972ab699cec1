"""What a chat model's server sends back, read: the reply, the thought before it, the first token's alternatives, an error.

Servers differ, and bug reports tell how:

- A thought stands in a field of its own (`reasoning_content` of vLLM, SGLang and DeepSeek, `reasoning` of OpenRouter) or in the
  text between marks, the first of which may stand in the model's chat template instead. In both cases the log-probabilities may
  begin with the thought's tokens (sgl-project/sglang, issue 25055).
- The limit of tokens may cut a thought off: the content is null, empty, or a thought without a closing mark.
- Gateways answer with status 200 and an `error` in place of the reply. Its code is the status that counts, and the words of the
  server behind the gateway stand in `metadata.raw`.
- Some send a log-probability of null, or `true` in place of all of them.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

THOUGHTS = ("reasoning_content", "reasoning", "reasoning_details", "thinking")  # fields of a message
_NAMES = "think|thinking|thought|reasoning|seed:think"
_OPENING = re.compile(
    rf"\s*(?:<(?:{_NAMES})>|◁think▷|\[THINK\]|<\|START_THINKING\|>|<\|channel\|>analysis)", re.IGNORECASE
)
_CLOSING = re.compile(
    rf"</(?:{_NAMES})>|◁/think▷|\[/THINK\]|<\|END_THINKING\|>|<\|channel\|>final<\|message\|>", re.IGNORECASE
)
OPENING = ("<think>", "<thinking>", "<thought>", "<reasoning>", "[THINK]", "<|channel|>")  # as tokenizers have them
CLOSING = ("</think>", "</thinking>", "</thought>", "</reasoning>", "[/THINK]")  # gpt-oss closes with several tokens
_CUT_OFF = (
    "length",
    "max_tokens",
    "model_length",
    "max_output_tokens",
)  # finish reasons: OpenAI's, Google's, Mistral's
MOST_TOKENS = 10**9  # of a reply or a request: a larger count is a fault of the server
ROUNDING = 0.01  # nats above 0 that a log-probability may have; more is no log-probability


@dataclass(frozen=True)
class Reply:
    """A reply. text: as the server sent it, a thought in it included. top: alternatives of the text's first token →
    log-probability in nats; {} if the server gives none. cut_off: whether the limit of tokens ended it; never for a limit of
    one. error: why there is no reply after all retries."""

    text: str
    top: Mapping[str, float] = field(default_factory=dict)
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cut_off: bool = False
    cached: bool = False
    error: str = ""

    @property
    def answer(self) -> str:
        """The text behind the thought; "" if the limit cut the reply off: what it was going to say is not known."""
        return "" if self.cut_off else without_thought(self.text)

    @property
    def missing(self) -> str:
        """Why there is no answer; "" if there is one."""
        if self.error or self.answer:
            return self.error
        if self.cut_off:
            return "the limit of tokens cut the reply off"
        return "the reply is a thought without an answer" if self.text.strip() else "the reply is empty"


def opens_thought(text: str) -> bool:
    """Whether a text begins with a thought that has no end."""
    return _OPENING.match(text) is not None and _CLOSING.search(text) is None


def closes_thought(text: str) -> bool:
    """Whether a thought ends in a text."""
    return _CLOSING.search(text) is not None


def without_thought(text: str) -> str:
    """What stands behind the last thought; "" if a thought has no end. A thought may lack its opening mark."""
    return "" if opens_thought(text) else _CLOSING.split(text)[-1].strip()


def parse(body: Any, limit: int) -> Reply:
    """The reply in a response's body; a count of tokens that the server does not state is 0. limit: of the reply's tokens.

    Raises LookupError, TypeError, ValueError or AttributeError if the body is no chat completion. Log-probabilities that
    cannot be read are left out.
    """
    choice, usage = body["choices"][0], body.get("usage") or {}
    message = choice["message"]
    text = _text(message.get("content")) or _text(message.get("refusal"))
    counts = usage.get("completion_tokens_details") or {}
    thought = any(message.get(name) for name in THOUGHTS) or bool(counts.get("reasoning_tokens"))
    return Reply(
        text,
        {} if thought else _alternatives(choice.get("logprobs"), text),
        _count(usage.get("prompt_tokens")),
        _count(usage.get("completion_tokens")),
        cut_off=limit > 1 and str(choice.get("finish_reason")).lower() in _CUT_OFF,
    )


def _count(stated: Any) -> int:
    """A count of tokens; 0 for what is none. A count below 0 would give back what was paid for others."""
    return stated if type(stated) is int and 0 <= stated <= MOST_TOKENS else 0


def _text(content: Any) -> str:
    """The content as text. Some servers send a list of parts, with the thought as one of them."""
    if isinstance(content, list):
        return "".join(part["text"] for part in content if part.get("type") == "text")
    if not isinstance(content or "", str):
        raise TypeError("content is no text")
    return content or ""


def _alternatives(logprobs: Any, text: str) -> dict[str, float]:
    """The alternatives of the token that the text begins with, the likeliest first; {} if they cannot be read or if the tokens
    begin with another text, such as a thought."""
    try:
        first = next(token for token in logprobs["content"] if token["token"].strip())
        given = {str(a["token"]): float(a["logprob"]) for a in reversed(first["top_logprobs"])}
        begins = text.lstrip().startswith(first["token"].strip())
    except (LookupError, TypeError, ValueError, AttributeError, StopIteration):
        return {}
    if not begins or not all(logprob <= ROUNDING for logprob in given.values()):  # nan too
        return {}
    finite = {token: logprob for token, logprob in given.items() if math.isfinite(logprob)}
    return dict(sorted(finite.items(), key=lambda item: -item[1]))


# ---------------------------------------------------------------- errors
def error_in(body: Any) -> tuple[int, str, Any] | None:
    """The error that stands in a body of status 200 in place of a reply: the status that it names, else 200; its words; and
    the error itself. None if there is none."""
    if not isinstance(body, dict):
        return None
    choices = body.get("choices")
    first = choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], dict) else {}
    alone = body if body.get("object") == "error" or not choices else None
    error = body.get("error") or first.get("error") or alone
    if not error:
        return None
    if not isinstance(error, dict):
        return 200, str(error), error
    code, metadata = str(error.get("code")), error.get("metadata")
    status = int(code) if re.fullmatch("[45][0-9][0-9]", code) else 200
    raw = metadata.get("raw") if isinstance(metadata, dict) else None
    words = error.get("message") or error.get("detail") or error.get("msg")
    return status, " ".join(str(part) for part in (words, raw) if part) or json.dumps(error), error


def blamed(error: Any, words: str) -> str:
    """Where an error names the argument that it refuses: in `param`, in the places that a validator lists, else in its words.
    A validator's words may repeat the whole request."""
    if isinstance(error, dict):
        if isinstance(error.get("param"), str) and error["param"]:
            return str(error["param"])
        if isinstance(error.get("detail"), list):
            return " ".join(str(part) for d in error["detail"] if isinstance(d, dict) for part in d.get("loc") or ())
    return words


# ---------------------------------------------------------------- models without a system role
# Gemma's and Mistral's templates, o1-mini, Google's server
_NO_SYSTEM = re.compile(
    r"(?:system|developer) (?:role|message|prompt|instruction)|['\"]system['\"]|role:? (?:system|developer)|"
    r"roles must alternate|only user and assistant roles",
    re.IGNORECASE,
)


def refuses_system(words: str) -> bool:
    """Whether an error says that the model takes no system turn."""
    return _NO_SYSTEM.search(words) is not None


def without_system(messages: Sequence[Mapping[str, str]]) -> list[dict[str, str]]:
    """The messages with the words of a system turn at the head of the user's first turn."""
    given = [dict(message) for message in messages]
    if len(given) < 2 or given[0]["role"] != "system":
        return given
    system, first, *rest = given
    return [{**first, "content": f"{system['content']}\n\n{first['content']}"}, *rest]
