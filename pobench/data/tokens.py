"""Preferences as token pairs: one rendering, one cut, one order, and an audit of everything that was left out.

    Found -> tokenize -> (TokenPairs, Audit) -> split_by_prompt -> data_order

The prompt of a pair is what generation asks with, token for token, and its answers follow it as generation would write
them: a token that would stand on both sides of the border is split there (`Chat.answered`). So no answer loses a token to
the other, and a model is trained behind the ids that it is asked with. With `count_header` |y| begins in front of the
assistant's header; the ids are the same. |y| counts the response and its end-of-turn token; whatever the template writes
behind that token is taken off.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import islice
from typing import Any, Literal, NamedTuple

from jinja2 import TemplateError

from pobench.data.audit import Audit
from pobench.data.chat import CHECKED, Answered, Chat
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

    tokenizer: a transformers tokenizer, or a `Chat` around one.
    max_length: tokens of prompt + longer response. max_prompt_length: tokens of the prompt.
    truncation: "drop" makes an over-long row a bad row; "cut" keeps the end of the prompt (and its
        beginning-of-text token) and the beginning of a response, which still ends with its end-of-turn token; a pair
        whose answers become identical is left out and noted.
    count_header: the assistant's header belongs to the response, as in the authors' repository: a pair's prompt ends in
        front of it, and |y| counts it.
    on_bad_row: "stop" raises one PobenchError that lists every bad row, those of reading included; "drop" goes on and
        counts them in the audit.
    template: "plain", a Jinja file or text, in place of the tokenizer's own.
    progress: called with the number of preferences done since the last call.

    Raises PobenchError for bad rows, impossible lengths, no usable chat template, when no pair is left, or when one of the
    first pairs is trained behind other ids than it is asked with (`check_asked`).
    """
    if not 0 < max_prompt_length < max_length - 1:
        raise PobenchError(
            f"data.max_prompt_length is {max_prompt_length}, data.max_length {max_length}: a prompt needs at least one "
            "token, and at least two of the whole must be left for the response"
        )
    found = preferences if isinstance(preferences, Found) else Found(list(preferences), rows=len(preferences))
    chat = tokenizer if isinstance(tokenizer, Chat) else Chat(tokenizer, template)
    faults, notes = list(found.faults), {note: list(rows) for note, rows in found.notes.items()}
    pairs: list[TokenPair] = []
    first: list[Preference] = []
    remaining = iter(found.preferences)
    while chunk := list(islice(remaining, 1024)):
        rendered = []
        for preference in chunk:
            texts = _render(chat, preference, count_header)
            if isinstance(texts, Fault):
                faults.append(texts)
            else:
                rendered.append((preference, texts))
        for (preference, _), ids in zip(rendered, _ids(chat, [texts for _, texts in rendered]), strict=True):
            made = _cut(chat, preference, ids, max_length, max_prompt_length, truncation)
            faults += made.faults
            for note in made.notes:
                notes.setdefault(note, []).append(preference.row)
            if made.pair is not None:
                pairs.append(made.pair)
                first += [preference] if len(first) < CHECKED else []
        if progress is not None:
            progress(len(chunk))
    faults.sort(key=lambda fault: fault.row)
    if on_bad_row == "stop":
        refuse(faults, source=found.source, rows=found.rows)
    audit = Audit.of(pairs, found, faults, notes)
    if not pairs:
        raise PobenchError(f"{found.source}: no pair is left\n{audit.text()}")
    cut_to = max_prompt_length if truncation == "cut" else None
    check_asked(inspected(pairs[:CHECKED], first, chat, count_header=count_header, cut_to=cut_to), chat)
    return pairs, audit


class _Texts(NamedTuple):
    """A rendered preference. prompt: with the generation prompt. bare: without, where the header counts towards |y|."""

    prompt: str
    bare: str
    chosen: str
    rejected: str


def _render(chat: Chat, preference: Preference, count_header: bool) -> _Texts | Fault:
    try:
        prompt = chat.prompt(preference.prompt)
        bare = chat.prompt(preference.prompt, ask=False) if count_header else prompt
        chosen, rejected = (chat.conversation(preference.prompt, a) for a in (preference.chosen, preference.rejected))
    except (TemplateError, ValueError, TypeError) as error:  # what templates raise for roles they do not take
        return Fault(preference.row, "prompt", "the chat template refuses the conversation", str(error)[:120])
    if fault := chat.fault_of(preference, prompt, chosen, rejected):
        return fault
    behind = [chat.behind(prompt, text) for text in (chosen, rejected)]  # `fault_of` has seen that none is None
    return _Texts(prompt, bare, *map(str, behind))


class _Ids(NamedTuple):
    """`_Texts` as token ids. border: where |y| begins in the prompt's ids."""

    chosen: Answered | None
    rejected: Answered | None
    border: int


def _ids(chat: Chat, texts: Sequence[_Texts]) -> list[_Ids]:
    answered = iter(chat.answered([(t.prompt, answer) for t in texts for answer in (t.chosen, t.rejected)]))
    bare = list(dict.fromkeys(t.bare for t in texts if t.bare != t.prompt))
    of_bare = dict(zip(bare, chat.ids(bare), strict=True))
    found = []
    for text in texts:
        chosen, rejected = next(answered), next(answered)
        border = 0 if chosen is None else len(chosen.prompt)
        if chosen is not None and text.bare in of_bare:
            border = shared_start(of_bare[text.bare], chosen.prompt)
        found.append(_Ids(chosen, rejected, border))
    return found


class _Made(NamedTuple):
    pair: TokenPair | None
    faults: list[Fault]
    notes: list[str]


MERGED = "a token that would stand on both sides of the border of prompt and answer, split there"
CUT_PROMPT, CUT_RESPONSE = "prompt cut to its end", "response cut to its beginning"
CUT_TO_IDENTICAL = "left out: answers identical once cut"


def _cut(
    chat: Chat, preference: Preference, ids: _Ids, max_length: int, max_prompt_length: int, truncation: Truncation
) -> _Made:
    """The border between prompt and responses, then the length policy."""
    if ids.chosen is None or ids.rejected is None:
        name = "chosen" if ids.chosen is None else "rejected"
        return _Made(None, [Fault(preference.row, name, "no tokens spell the answer behind the prompt's own", "")], [])
    asked, border = ids.chosen.prompt, ids.border
    prompt, header = asked[:border], asked[border:]
    chosen, rejected = header + ids.chosen.answer, header + ids.rejected.answer
    row, notes = preference.row, [MERGED] if ids.chosen.merged or ids.rejected.merged else []
    if chat.opening.strip():
        notes.append(f"answers are trained behind {chat.opening!r}, which the generation prompt alone writes")
    if chat.lead.strip():
        notes.append(f"answers begin with {chat.lead!r}, which the generation prompt does not write")
    faults = [
        Fault(row, name, "response without exactly one end-of-turn token, at its end", f"{response.count(chat.end)}")
        for name, response in (("chosen", chosen), ("rejected", rejected))
        if response[-1:] != (chat.end,) or response.count(chat.end) != 1
    ]
    wanted = 0 if chat.bos is None else 1
    if not chat.opens_turns and chat.bos is not None and prompt.count(chat.bos) != wanted:
        faults.append(Fault(row, "prompt", "not exactly one beginning-of-text token", str(prompt.count(chat.bos))))
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
            head = prompt[: _kept(chat)]
            prompt = head + prompt[len(prompt) - max_prompt_length + len(head) :]
        room = max_length - len(prompt)
        if room <= len(header):
            return _Made(None, [Fault(row, "prompt", "no room for an answer behind the prompt", f"{room} tokens")], [])
        if max(len(chosen), len(rejected)) > room:
            notes.append(CUT_RESPONSE)
            chosen, rejected = (r if len(r) <= room else (*r[: room - 1], chat.end) for r in (chosen, rejected))
        if chosen == rejected:
            return _Made(None, [], [CUT_TO_IDENTICAL])
    return _Made(None if faults else TokenPair(preference.id, prompt, chosen, rejected), faults, notes)


# ---------------------------------------------------------------- trained behind what generation asks with
class Inspected(NamedTuple):
    """A pair beside what generation asks with, all in token ids.

    prompt: everything in front of an answer's own first token, as it is trained on. chosen, rejected: the answers' own
    tokens. asked: what generation puts there, cut as the pair's prompt is. counted_from: where |y| begins, counted from
    the first token of the prompt.
    """

    id: str
    prompt: tuple[int, ...]
    chosen: tuple[int, ...]
    rejected: tuple[int, ...]
    asked: tuple[int, ...]
    counted_from: int


def inspected(
    pairs: Sequence[TokenPair],
    preferences: Sequence[Preference],
    chat: Chat,
    *,
    count_header: bool = False,
    cut_to: int | None = None,
) -> list[Inspected]:
    """The pairs, each beside what `chat` asks with for its preference; `preferences` holds those of the pairs, by id.

    cut_to: `max_prompt_length` where longer prompts were cut to their end, else None.
    """
    prompts = {preference.id: preference.prompt for preference in preferences}
    found = []
    for pair in pairs:
        asked = chat.prompt_ids(prompts[pair.id])
        border = shared_start(chat.prompt_ids(prompts[pair.id], ask=False), asked) if count_header else len(asked)
        if cut_to is not None and border > cut_to:
            kept = _kept(chat)
            asked = asked[:kept] + asked[kept + border - cut_to :]
        chosen, rejected = pair.prompt + pair.chosen, pair.prompt + pair.rejected
        at = len(asked)
        # Of two answers that do not begin alike, the one that is not asked so is shown.
        prompt = chosen[:at] if rejected[:at] == asked else rejected[:at]
        found.append(Inspected(pair.id, prompt, chosen[at:], rejected[at:], asked, len(pair.prompt)))
    return found


def check_asked(rows: Sequence[Inspected], chat: Chat) -> None:
    """Raises PobenchError naming the first place where the ids in front of an answer are not those generation asks with."""
    for row in rows:
        chat.check_asked(f"pair {row.id!r}", row.asked, row.prompt)


def _kept(chat: Chat) -> int:
    """Tokens at the beginning of a prompt that stay when it is cut to its end."""
    return 1 if chat.bos is not None and not chat.opens_turns else 0
