"""Preferences as token pairs: one rendering, one cut, one order, and an audit of everything that was left out.

    Found -> tokenize -> (TokenPairs, Audit) -> split_by_prompt -> data_order

The chat template renders prompt + answer as a whole, and the whole is tokenised. The prompt of a pair is the longest
beginning that three token sequences share: the prompt that asks for an answer, prompt + chosen, prompt + rejected.
So no answer loses a token to the other, and a token merged across the border belongs to the answers.
|y| counts the response and its end-of-turn token; whatever the template writes behind that token is taken off.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import islice
from typing import Any, Literal, NamedTuple

from jinja2 import TemplateError

from pobench.data.audit import Audit
from pobench.data.chat import Renderer
from pobench.data.rows import Fault, Found, Preference, refuse, shared_start
from pobench.errors import PobenchError
from pobench.types import TokenPair

# ---------------------------------------------------------------- tokenisation
Truncation = Literal["drop", "cut"]
OnBadRow = Literal["stop", "drop"]


def tokenize(
    preferences: Found | Sequence[Preference],
    tokenizer: Any,
    *,
    max_length: int = 2048,
    max_prompt_length: int = 1800,
    truncation: Truncation = "drop",
    count_header: bool = False,
    on_bad_row: OnBadRow = "stop",
    template: str | None = None,
    progress: Callable[[int], None] | None = None,
) -> tuple[list[TokenPair], Audit]:
    """Preferences as token pairs, and the audit of what was left out or changed.

    tokenizer: a transformers tokenizer, or a `Renderer` around one.
    max_length: tokens of prompt + longer response. max_prompt_length: tokens of the prompt.
    truncation: "drop" makes an over-long row a bad row; "cut" keeps the end of the prompt (and its
        beginning-of-text token) and the beginning of a response, which still ends with its end-of-turn token; a pair
        whose answers become identical is left out and noted.
    count_header: the assistant's header belongs to the response, as in the authors' repository: the prompt is rendered
        without it, and |y| counts it.
    on_bad_row: "stop" raises one PobenchError that lists every bad row, those of reading included; "drop" goes on and
        counts them in the audit.
    template: "plain", a Jinja file or text, in place of the tokenizer's own.
    progress: called with the number of preferences done since the last call.

    Raises PobenchError for bad rows, impossible lengths, no usable chat template, or when no pair is left.
    """
    if not 0 < max_prompt_length < max_length - 1:
        raise PobenchError(
            f"data.max_prompt_length is {max_prompt_length}, data.max_length {max_length}: a prompt needs at least one "
            "token, and at least two of the whole must be left for the response"
        )
    found = preferences if isinstance(preferences, Found) else Found(list(preferences), rows=len(preferences))
    renderer = tokenizer if isinstance(tokenizer, Renderer) else Renderer(tokenizer, template)
    faults, notes = list(found.faults), {note: list(rows) for note, rows in found.notes.items()}
    pairs: list[TokenPair] = []
    remaining = iter(found.preferences)
    while chunk := list(islice(remaining, 1024)):
        rendered = []
        for preference in chunk:
            texts = _render(renderer, preference, count_header)
            if isinstance(texts, Fault):
                faults.append(texts)
            else:
                rendered.append((preference, texts))
        for (preference, _), ids in zip(rendered, renderer.pair_ids([texts for _, texts in rendered]), strict=True):
            made = _cut(renderer, preference, ids, max_length, max_prompt_length, truncation)
            faults += made.faults
            for note in made.notes:
                notes.setdefault(note, []).append(preference.row)
            if made.pair is not None:
                pairs.append(made.pair)
        if progress is not None:
            progress(len(chunk))
    faults.sort(key=lambda fault: fault.row)
    if on_bad_row == "stop":
        refuse(faults, source=found.source, rows=found.rows)
    audit = Audit.of(pairs, found, faults, notes)
    if not pairs:
        raise PobenchError(f"{found.source}: no pair is left\n{audit.text()}")
    return pairs, audit


def _render(renderer: Renderer, preference: Preference, count_header: bool) -> tuple[str, str, str] | Fault:
    try:
        prompt = renderer.prompt(preference.prompt, ask=not count_header)
        chosen, rejected = (
            renderer.conversation(preference.prompt, a) for a in (preference.chosen, preference.rejected)
        )
    except (TemplateError, ValueError, TypeError) as error:  # what templates raise for roles they do not take
        return Fault(preference.row, "prompt", "the chat template refuses the conversation", str(error)[:120])
    return renderer.fault_of(preference, prompt, chosen, rejected) or (prompt, chosen, rejected)


class _Made(NamedTuple):
    pair: TokenPair | None
    faults: list[Fault]
    notes: list[str]


MERGED = "a token merged across the border of prompt and response"
CUT_PROMPT, CUT_RESPONSE = "prompt cut to its end", "response cut to its beginning"
CUT_TO_IDENTICAL = "left out: answers identical once cut"


def _cut(
    renderer: Renderer,
    preference: Preference,
    ids: tuple[tuple[int, ...], ...],
    max_length: int,
    max_prompt_length: int,
    truncation: Truncation,
) -> _Made:
    """The border between prompt and responses, then the length policy."""
    asked, with_chosen, with_rejected = ids
    border = shared_start(asked, with_chosen, with_rejected)
    prompt, chosen, rejected = asked[:border], with_chosen[border:], with_rejected[border:]
    row, notes = preference.row, [MERGED] if border < len(asked) else []
    faults = [
        Fault(
            row, name, "response without exactly one end-of-turn token, at its end", f"{response.count(renderer.end)}"
        )
        for name, response in (("chosen", chosen), ("rejected", rejected))
        if response[-1:] != (renderer.end,) or response.count(renderer.end) != 1
    ]
    wanted = 0 if renderer.bos is None else 1
    if not renderer.opens_turns and renderer.bos is not None and prompt.count(renderer.bos) != wanted:
        faults.append(Fault(row, "prompt", "not exactly one beginning-of-text token", str(prompt.count(renderer.bos))))
    if chosen == rejected:
        faults.append(Fault(row, "rejected", "identical answers once tokenised", f"{len(chosen)} tokens"))
    longest = len(prompt) + max(len(chosen), len(rejected))
    if truncation == "drop":
        if len(prompt) > max_prompt_length:
            faults.append(
                Fault(row, "prompt", "over-long prompt", f"{len(prompt)} tokens; allowed {max_prompt_length}")
            )
        elif longest > max_length:
            name = "chosen" if len(chosen) >= len(rejected) else "rejected"
            faults.append(Fault(row, name, "over-long pair", f"{longest} tokens; allowed {max_length}"))
    elif not faults:
        if len(prompt) > max_prompt_length:
            notes.append(CUT_PROMPT)
            head = prompt[:1] if renderer.bos is not None and not renderer.opens_turns else ()
            prompt = head + prompt[len(prompt) - max_prompt_length + len(head) :]
        room = max_length - len(prompt)
        if max(len(chosen), len(rejected)) > room:
            notes.append(CUT_RESPONSE)
            chosen, rejected = (r if len(r) <= room else (*r[: room - 1], renderer.end) for r in (chosen, rejected))
        if chosen == rejected:
            return _Made(None, [], [CUT_TO_IDENTICAL])
    return _Made(None if faults else TokenPair(preference.id, prompt, chosen, rejected), faults, notes)
