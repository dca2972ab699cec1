"""Turn preferences into token pairs: render, tokenise, apply the length limits, and audit every row that is left out.

    Found -> tokenize -> (TokenRows, Audit) -> split by prompt -> data_order

The prompt of a pair has exactly the token ids that generation uses. A token that would cross the border between prompt and
answer is split there, as in generation (`Chat.answered`). So neither answer loses a token to the prompt, and training and
generation see the same prompt.

The response length |y| counts the answer and its end-of-turn token; text that the template writes after that token is cut.
With `count_header`, a pair has the ids of the SimPO repository's trainer: |y| also counts the assistant's header, the text
that the template writes after the end-of-turn token, and the end-of-text token, if the text does not end with it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import islice
from typing import Any, Literal, NamedTuple

from pobench.data.audit import UNKNOWN, Audit, refuse_unknown
from pobench.data.chat import CHECKED, Answered, Chat
from pobench.data.rows import Fault, Found, Preference, refuse, shared_start
from pobench.data.token_rows import TokenRows, TokenWriter
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
    origin: str = "",
    progress: Callable[[int], None] | None = None,
) -> tuple[TokenRows[TokenPair], Audit]:
    """Token pairs of the preferences, and the audit of rows that were left out or changed.

    tokenizer: a transformers tokenizer, or a `Chat`.
    max_length: tokens of the prompt and the longer response. max_prompt_length: tokens of the prompt.
    truncation: "drop" makes an over-long row a bad row; "cut" keeps the end of the prompt (and its
        beginning-of-text token) and the beginning of a response, which still ends with its end-of-turn token; a pair
        whose answers become identical is left out and noted.
    count_header: a response is all that the template writes for the assistant's message, and the end-of-text token, as in the
        SimPO repository: the pair's prompt ends before the header.
    on_bad_row: "stop" raises one PobenchError that lists every bad row, including rows that could not be read; "drop"
        continues and counts them in the audit.
    template: "plain", a Jinja file or Jinja text; replaces the tokenizer's own template.
    origin: the name of the data set, which every pair carries as its source.
    progress: called with the number of preferences done since the last call.

    Raises PobenchError for bad rows, impossible lengths, or a missing chat template, if no pair is left, if 5 % or more of
    the tokens are unknown to the tokenizer, or if the prompt of one of the first pairs differs between training and
    generation (`check_prompt`).
    """
    if not 0 < max_prompt_length < max_length - 1:
        raise PobenchError(
            f"data.max_prompt_length is {max_prompt_length}, data.max_length {max_length}: a prompt needs at least one "
            "token, and at least two of the whole must be left for the response"
        )
    loaded = preferences if isinstance(preferences, Found) else Found(list(preferences), rows=len(preferences))
    chat = tokenizer if isinstance(tokenizer, Chat) else Chat(tokenizer, template)
    faults, notes = list(loaded.faults), {note: list(rows) for note, rows in loaded.notes.items()}
    writer, first = TokenWriter(TokenPair), list[Preference]()
    remaining = iter(loaded.preferences)
    while chunk := list(islice(remaining, 1024)):
        rendered = []
        for preference in chunk:
            texts = _render(chat, preference, count_header)
            if isinstance(texts, Fault):
                faults.append(texts)
            else:
                rendered.append((preference, texts))
        ids_of_rendered = _ids(chat, [texts for _, texts in rendered], count_header)
        for (preference, _), ids in zip(rendered, ids_of_rendered, strict=True):
            made = _cut(chat, preference, ids, max_length, max_prompt_length, truncation)
            faults += made.faults
            for note in made.notes:
                notes.setdefault(note, []).append(preference.row)
            if made.pair is not None:
                parts = (made.pair.prompt, made.pair.chosen, made.pair.rejected)
                if chat.unknown is not None and any(chat.unknown in ids for ids in parts):
                    notes.setdefault(UNKNOWN, []).append(preference.row)
                writer.add(made.pair._replace(source=origin))
                first += [preference] if len(first) < CHECKED else []
        if progress is not None:
            progress(len(chunk))
    faults.sort(key=lambda fault: fault.row)
    if on_bad_row == "stop":
        refuse(faults, source=loaded.source, rows=loaded.rows)
    pairs = writer.rows()
    audit = Audit.of(pairs, loaded, faults, notes, chat.unknown)
    if not pairs:
        examples = "".join(f"\n  {fault}" for fault in faults[:3])
        raise PobenchError(f"{loaded.source}: no pair is left\n{audit.text()}{examples}")
    refuse_unknown(loaded.source, audit.unknown)
    cut_to = max_prompt_length if truncation == "cut" else None
    check_prompt(inspected(pairs[:CHECKED], first, chat, count_header=count_header, cut_to=cut_to), chat)
    return pairs, audit


class _Texts(NamedTuple):
    """A rendered preference. prompt: with the generation prompt. bare: without it, if the header counts towards |y|."""

    prompt: str
    bare: str
    chosen: str
    rejected: str


def _render(chat: Chat, preference: Preference, count_header: bool) -> _Texts | Fault:
    try:
        prompt = chat.prompt(preference.prompt)
        bare = chat.prompt(preference.prompt, ask=False) if count_header else prompt
        answers = (preference.chosen, preference.rejected)
        chosen, rejected = (chat.conversation(preference.prompt, a, whole=count_header) for a in answers)
    except Exception as error:  # a template is a program; most raise TemplateError for roles that they do not support
        return Fault(preference.row, "prompt", "the chat template refuses the conversation", str(error)[:120])
    if fault := chat.fault_of(preference, prompt, chosen, rejected):
        return fault
    behind = [chat.behind(prompt, text) for text in (chosen, rejected)]  # never None: `fault_of` has checked it
    return _Texts(prompt, bare, *map(str, behind))


class _Ids(NamedTuple):
    """`_Texts` as token ids. border: index in the prompt's ids where |y| begins. whole: the answers go on behind their
    end-of-turn token."""

    chosen: Answered | None
    rejected: Answered | None
    border: int
    whole: bool


def _ids(chat: Chat, texts: Sequence[_Texts], whole: bool) -> list[_Ids]:
    answers = [(t.prompt, answer) for t in texts for answer in (t.chosen, t.rejected)]
    answered = iter(chat.answered(answers, whole=whole))
    bare = list(dict.fromkeys(t.bare for t in texts if t.bare != t.prompt))
    of_bare = dict(zip(bare, chat.ids(bare), strict=True))
    sequences = []
    for text in texts:
        chosen, rejected = next(answered), next(answered)
        border = 0 if chosen is None else len(chosen.prompt)
        if chosen is not None and text.bare in of_bare:
            border = shared_start(of_bare[text.bare], chosen.prompt)
        sequences.append(_Ids(chosen, rejected, border, whole))
    return sequences


class _Made(NamedTuple):
    pair: TokenPair | None
    faults: list[Fault]
    notes: list[str]


MERGED = "a token across the border of prompt and answer was split there"
CUT_PROMPT, CUT_RESPONSE = "prompt cut to its end", "response cut to its beginning"
CUT_TO_IDENTICAL = "left out: answers identical after the cut"


def _cut(
    chat: Chat, preference: Preference, ids: _Ids, max_length: int, max_prompt_length: int, truncation: Truncation
) -> _Made:
    """Split prompt and responses at the border, check them, then apply the length limits."""
    if ids.chosen is None or ids.rejected is None:
        name = "chosen" if ids.chosen is None else "rejected"
        return _Made(
            None, [Fault(preference.row, name, "no tokens spell the answer after the prompt's tokens", "")], []
        )
    prompt_ids, border = ids.chosen.prompt, ids.border
    prompt, header = prompt_ids[:border], prompt_ids[border:]
    chosen, rejected = header + ids.chosen.answer, header + ids.rejected.answer
    row, notes = preference.row, [MERGED] if ids.chosen.merged or ids.rejected.merged else []
    if chat.opening.strip():
        notes.append(f"answers follow {chat.opening!r}, which only the generation prompt writes")
    if chat.lead.strip():
        notes.append(f"answers begin with {chat.lead!r}, which the generation prompt does not write")
    tail = _tail(ids.chosen.answer, chat.end) if ids.whole else ()
    ending = (chat.end, *tail)
    faults = [
        Fault(row, name, "response without exactly one end-of-turn token, at its end", f"{response.count(chat.end)}")
        for name, response in (("chosen", chosen), ("rejected", rejected))
        if response[-len(ending) :] != ending or response.count(chat.end) != ending.count(chat.end)
    ]
    bos_count = 0 if chat.bos is None else 1
    if not chat.opens_turns and chat.bos is not None and prompt.count(chat.bos) != bos_count:
        faults.append(Fault(row, "prompt", "not exactly one beginning-of-text token", str(prompt.count(chat.bos))))
    if chosen == rejected:
        unknown = 0 if chat.unknown is None else chosen.count(chat.unknown)
        got = f"{len(chosen)} tokens" + (f", {unknown} of them unknown to the tokenizer" if unknown else "")
        faults.append(Fault(row, "rejected", "identical answers once tokenised", got))
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
        if room < len(header) + len(ending):
            return _Made(None, [Fault(row, "prompt", "no room for an answer after the prompt", f"{room} tokens")], [])
        if max(len(chosen), len(rejected)) > room:
            notes.append(CUT_RESPONSE)
            kept = room - len(ending)
            chosen, rejected = (r if len(r) <= room else r[:kept] + ending for r in (chosen, rejected))
        if chosen == rejected:
            return _Made(None, [], [CUT_TO_IDENTICAL])
    pair = TokenPair(preference.id, prompt, chosen, rejected, preference.scores)
    return _Made(None if faults else pair, faults, notes)


def _tail(answer: tuple[int, ...], end: int) -> tuple[int, ...]:
    """What follows the end-of-turn token."""
    return answer[answer.index(end) + 1 :] if end in answer else ()


# ---------------------------------------------------------------- the same prompt in training and generation
class Inspected(NamedTuple):
    """A pair and the prompt that generation would use, all as token ids.

    prompt: everything before the answer's own first token, in training. chosen, rejected: the answers' own tokens. asked:
    the prompt in generation, cut like the pair's prompt. counted_from: index in the prompt where |y| begins.
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
    """Each pair with the prompt ids that `chat` would use in generation. preferences: must contain those of the pairs.

    cut_to: `max_prompt_length` if longer prompts were cut to their end, else None.
    """
    prompts = {preference.id: preference.prompt for preference in preferences}
    inspections = []
    for pair in pairs:
        prompt_ids = chat.prompt_ids(prompts[pair.id])
        border = (
            shared_start(chat.prompt_ids(prompts[pair.id], ask=False), prompt_ids) if count_header else len(prompt_ids)
        )
        if cut_to is not None and border > cut_to:
            prefix = _kept(chat)
            prompt_ids = prompt_ids[:prefix] + prompt_ids[prefix + border - cut_to :]
        chosen, rejected = pair.prompt + pair.chosen, pair.prompt + pair.rejected
        at = len(prompt_ids)
        # If only one of the two sides starts with the generation prompt, show the other one: it has the fault.
        prompt = chosen[:at] if rejected[:at] == prompt_ids else rejected[:at]
        inspections.append(Inspected(pair.id, prompt, chosen[at:], rejected[at:], prompt_ids, len(pair.prompt)))
    return inspections


def check_prompt(rows: Sequence[Inspected], chat: Chat) -> None:
    """Raises PobenchError at the first pair whose prompt differs between training and generation."""
    for row in rows:
        chat.check_prompt(f"pair {row.id!r}", row.asked, row.prompt)


def _kept(chat: Chat) -> int:
    """Number of first tokens that are kept when a prompt is cut to its end: the beginning-of-text token."""
    return 1 if chat.bos is not None and not chat.opens_messages else 0
