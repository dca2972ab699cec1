"""Turn rows of text into token pairs, lists and answers: render, tokenise, apply the length limits, and audit every row that is
left out.

    Found -> read_items -> Items(pairs, lists, answers, audit) -> split_by_prompt -> data_order

The prompt of a pair has exactly the token ids that generation uses. A token that would cross the border between prompt and
answer is split there, as in generation (`Chat.answered`). So neither answer loses a token to the prompt, and training and
generation see the same prompt.

The response length |y| counts the answer and its end-of-turn token; text that the template writes after that token is cut.
With `count_header`, a pair has the ids of the SimPO repository's trainer: |y| also counts the assistant's header, the text
that the template writes after the end-of-turn token, and the end-of-text token, if the text does not end with it.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, Literal, NamedTuple

import numpy as np

from pobench.data.audit import UNKNOWN, Audit, refuse_unknown
from pobench.data.chat import CHECKED, Answered, Chat
from pobench.data.order import place_of, text_key
from pobench.data.row_reader import dense_ranks
from pobench.data.rows import (
    Fault,
    Found,
    Labelled,
    Message,
    Preference,
    Ranking,
    pair_id,
    places_of_pairs,
    refuse,
    shared_start,
)
from pobench.data.token_rows import TokenRows, TokenWriter
from pobench.errors import PobenchError
from pobench.settings.schema import PairsFrom
from pobench.types import Item, TokenAnswer, TokenList, TokenPair, Unit

# ---------------------------------------------------------------- tokenisation
Truncation = Literal["drop", "cut"]
OnBadRow = Literal["stop", "drop"]


# Of a row's prompt as text: a digest of its `text_key`, and its place in the split (`place_of`).
PROMPT = np.dtype([("key", "S16"), ("place", "<f8")])


class Items(NamedTuple):
    """What a file's rows are as token ids. lists, answers: where it has them; the pairs are then made of them. audit: of the
    rows that were left out or changed. prompts: of each of these rows, (rows,) `PROMPT`."""

    pairs: TokenRows[TokenPair]
    lists: TokenRows[TokenList]
    answers: TokenRows[TokenAnswer]
    audit: Audit
    prompts: Mapping[Unit, np.ndarray]

    @property
    def own(self) -> TokenRows[Any]:
        """What the file's rows are: lists or answers, else pairs."""
        return self.lists or self.answers or self.pairs


def tokenize(
    preferences: Found | Sequence[Preference], tokenizer: Any, **how: Any
) -> tuple[TokenRows[TokenPair], Audit]:
    """The pairs and the audit of `read_items`, with the same arguments."""
    items = read_items(preferences, tokenizer, **how)
    return items.pairs, items.audit


def read_items(
    preferences: Found | Sequence[Preference],
    tokenizer: Any,
    *,
    max_length: int = 2048,
    max_prompt_length: int = 1800,
    truncation: Truncation = "drop",
    count_header: bool = False,
    on_bad_row: OnBadRow = "stop",
    template: str | None = None,
    seed: int = 0,
    origin: str = "",
) -> Items:
    """Token pairs of the preferences, the lists and single answers that the file has, and the audit.

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
    seed: of the split. origin: the name of the data set, which every pair carries as its source.

    An answer that alone is bad leaves its list, and the row is noted; a bad row has no list.
    Raises PobenchError for bad rows, impossible lengths, or a missing chat template, if nothing is left, if 5 % or more of
    the tokens are unknown to the tokenizer, or if the prompt of one of the first items differs between training and
    generation (`check_prompt`).
    """
    if not 0 < max_prompt_length < max_length - 1:
        raise PobenchError(
            f"data.max_prompt_length is {max_prompt_length}, data.max_length {max_length}: a prompt needs at least one "
            "token, and at least two of the whole must be left for the response"
        )
    loaded = preferences if isinstance(preferences, Found) else Found(preferences, rows=len(preferences))
    chat = tokenizer if isinstance(tokenizer, Chat) else Chat(tokenizer, template)
    reader = _Reader(chat, loaded, _Limits(max_length, max_prompt_length, truncation, count_header), seed, origin)
    pairs, lists, answers = reader.read()
    faults = sorted(reader.faults, key=lambda fault: fault.row)
    if on_bad_row == "stop":
        refuse(faults, source=loaded.source, rows=loaded.rows)
    audit = Audit.of(pairs, loaded, faults, reader.notes, chat.unknown, lists or answers)
    items = Items(
        pairs, lists, answers, audit, {unit: np.frombuffer(rows, PROMPT) for unit, rows in reader.prompts.items()}
    )
    if not items.own:
        examples = "".join(f"\n  {fault}" for fault in faults[:3])
        raise PobenchError(f"{loaded.source}: no pair is left\n{audit.text()}{examples}")
    refuse_unknown(loaded.source, audit.unknown)
    cut_to = max_prompt_length if truncation == "cut" else None
    kinds: tuple[TokenRows[Any], ...] = (pairs, lists, answers)
    for kind in kinds:
        check_prompt(inspected(kind[:CHECKED], loaded, chat, count_header=count_header, cut_to=cut_to), chat)
    return items


class _Limits(NamedTuple):
    max_length: int
    max_prompt_length: int
    truncation: Truncation
    count_header: bool


class _Texts(NamedTuple):
    """A rendered row. prompt: with the generation prompt. bare: without it, if the header counts towards |y|. answers: None for
    one of a list that is left out."""

    prompt: str
    bare: str
    answers: tuple[str | None, ...]


class _Ids(NamedTuple):
    """`_Texts` as token ids. answers: None where no tokens spell one, or it is left out. border: index in the prompt's ids
    where |y| begins."""

    answers: tuple[Answered | None, ...]
    border: int


TextRow = Preference | Ranking | Labelled


def _answers_of(row: TextRow) -> list[tuple[str, str]]:
    """(field, text) of each answer."""
    if isinstance(row, Preference):
        return [("chosen", row.chosen), ("rejected", row.rejected)]
    if isinstance(row, Labelled):
        return [("completion", row.answer)]
    return [(f"answers[{i}]", text) for i, text in enumerate(row.answers)]


MERGED = "a token across the border of prompt and answer was split there"
CUT_PROMPT, CUT_RESPONSE = "prompt cut to its end", "response cut to its beginning"
CUT_TO_IDENTICAL = "left out: answers identical after the cut"
LEFT_LIST, NO_LIST = "an answer left out of its list: {}", "left out: a list without two answers of different rank"
NO_TOKENS = "no tokens spell the answer after the prompt's tokens"


class _Side(NamedTuple):
    """One answer behind its prompt, before the length limits. header: tokens of the assistant's header, if it counts towards
    |y|. ending: the end-of-turn token, and what counts behind it."""

    prompt: tuple[int, ...]
    response: tuple[int, ...]
    header: int
    ending: tuple[int, ...]
    faults: list[Fault]
    of_prompt: list[Fault]
    notes: list[str]


class _Reader:
    """Tokenises one file's rows; gathers faults and notes. prompts: the rows of `Items.prompts`, as bytes."""

    def __init__(self, chat: Chat, loaded: Found, limits: _Limits, seed: int, origin: str) -> None:
        self.chat, self.loaded, self.limits, self.seed, self.origin = chat, loaded, limits, seed, origin
        self.prompts: dict[Unit, bytearray] = {"pairs": bytearray(), "lists": bytearray(), "answers": bytearray()}
        self.faults = list(loaded.faults)
        self.notes = {note: list(rows) for note, rows in loaded.notes.items()}

    def read(self) -> tuple[TokenRows[TokenPair], TokenRows[TokenList], TokenRows[TokenAnswer]]:
        """Pairs, lists, answers. Pairs of single answers, which are held, and those that are not the best against the worst of
        a list are made of what is tokenised already."""
        loaded = self.loaded
        pairs, lists, answers = TokenWriter(TokenPair), TokenWriter(TokenList), TokenWriter(TokenAnswer)
        for row, ids in self._tokenized(loaded.answers):
            if (answer := self._answer(row, ids)) is not None:
                self._keep("answers", answers, row, answer)
        if loaded.answers:
            kept = answers.rows()
            self._met(kept, pairs)
            return pairs.rows(), lists.rows(), kept
        if not loaded.lists or loaded.pairs_from == "best_worst":
            for row, ids in self._tokenized(loaded.preferences):
                if (pair := self._pair(row, ids)) is not None:
                    self._keep("pairs", pairs, row, pair)
        bad = {fault.row for fault in self.faults}
        for row, ids in self._tokenized(one for one in loaded.lists if one.row not in bad):
            made, places = self._list(row, ids)
            if made is None:
                continue
            self._keep("lists", lists, row, made)
            for pair in _pairs_of(made, places, loaded.pairs_from):
                self._keep("pairs", pairs, row, pair)
        return pairs.rows(), lists.rows(), answers.rows()

    def _keep(self, unit: Unit, writer: TokenWriter[Any], row: TextRow, item: Any) -> None:
        writer.add(item._replace(source=self.origin) if unit == "pairs" else item)
        key = text_key(row.prompt)
        digest = hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()[:16]
        self.prompts[unit] += digest + struct.pack("<d", place_of(key, self.seed))

    def _note(self, row: int, *notes: str) -> None:
        for note in notes:
            self.notes.setdefault(note, []).append(row)

    def _known(self, row: int, *parts: tuple[int, ...]) -> None:
        """Note a row with tokens that the tokenizer does not know."""
        if self.chat.unknown is not None and any(self.chat.unknown in ids for ids in parts):
            self._note(row, UNKNOWN)

    # -- text to ids

    def _tokenized(self, rows: Iterable[Any]) -> Iterator[tuple[Any, _Ids]]:
        """The rows that the template renders, with their ids."""
        remaining = iter(rows)
        while chunk := list(islice(remaining, 1024)):
            rendered = [(row, texts) for row in chunk if (texts := self._render(row)) is not None]
            yield from zip([row for row, _ in rendered], self._ids([texts for _, texts in rendered]), strict=True)

    def _render(self, row: TextRow) -> _Texts | None:
        chat, whole, answers = self.chat, self.limits.count_header, _answers_of(row)
        try:
            prompt = chat.prompt(row.prompt)
            bare = chat.prompt(row.prompt, ask=False) if whole else prompt
            talks = [chat.conversation(row.prompt, text, whole=whole) for _, text in answers]
        except (
            Exception
        ) as error:  # a template is a program; most raise TemplateError for roles that they do not support
            self.faults.append(Fault(row.row, "prompt", "the chat template refuses the conversation", str(error)[:120]))
            return None
        answered = [(name, text, talk) for (name, text), talk in zip(answers, talks, strict=True)]
        out = set[int]()
        for part in [[one] for one in answered] if isinstance(row, Ranking) else [answered]:
            fault = chat.fault_of(row.row, row.prompt, prompt, part)
            if fault is not None and isinstance(row, Ranking) and not fault.field.startswith("prompt"):
                self._note(row.row, LEFT_LIST.format(fault.problem))
                out.add(answered.index(part[0]))
            elif fault is not None:
                self.faults.append(fault)
                return None
        behind = [None if i in out else chat.behind(prompt, talk) for i, talk in enumerate(talks)]
        return _Texts(prompt, bare, tuple(behind))  # of the others never None: `fault_of` has checked it

    def _ids(self, rows: Sequence[_Texts]) -> list[_Ids]:
        chat = self.chat
        texts = [(t.prompt, answer) for t in rows for answer in t.answers if answer is not None]
        answered = iter(chat.answered(texts, whole=self.limits.count_header))
        bare = list(dict.fromkeys(t.bare for t in rows if t.bare != t.prompt))
        of_bare = dict(zip(bare, chat.ids(bare), strict=True))
        sequences = []
        for text in rows:
            answers = tuple(None if answer is None else next(answered) for answer in text.answers)
            first = next((answer for answer in answers if answer is not None), None)
            border = 0 if first is None else len(first.prompt)
            if first is not None and text.bare in of_bare:
                border = shared_start(of_bare[text.bare], first.prompt)
            sequences.append(_Ids(answers, border))
        return sequences

    # -- ids to items

    def _pair(self, row: Preference, ids: _Ids) -> TokenPair | None:
        chosen, rejected = ids.answers
        if chosen is None or rejected is None:
            self.faults.append(Fault(row.row, "chosen" if chosen is None else "rejected", NO_TOKENS, ""))
            return None
        first, second = (self._side(row.row, n, a, ids.border) for n, a in (("chosen", chosen), ("rejected", rejected)))
        faults = [*first.faults, *second.faults, *first.of_prompt]
        if first.response == second.response:
            faults.append(self._identical(row.row, first.response))
        longer = max((first, "chosen"), (second, "rejected"), key=lambda one: len(one[0].response))
        faults += self._too_long(row.row, longer[1], *longer[0][:2], "over-long pair")
        made = self._fitted(row.row, [first, second], faults)
        if made is None:
            return None
        notes, prompt, (one, other) = made
        if one == other:
            self._note(row.row, CUT_TO_IDENTICAL)
            return None
        self._note(row.row, *notes)
        self._known(row.row, prompt, one, other)
        return TokenPair(row.id, prompt, one, other, row.scores)

    def _answer(self, row: Labelled, ids: _Ids) -> TokenAnswer | None:
        (answered,) = ids.answers
        if answered is None:
            self.faults.append(Fault(row.row, "completion", NO_TOKENS, ""))
            return None
        side = self._side(row.row, "completion", answered, ids.border)
        faults = [*side.faults, *side.of_prompt]
        faults += self._too_long(row.row, "completion", *side[:2], "over-long answer")
        made = self._fitted(row.row, [side], faults)
        if made is None:
            return None
        notes, prompt, (response,) = made
        self._note(row.row, *notes)
        self._known(row.row, prompt, response)
        return TokenAnswer(row.id, prompt, response, row.label, row.score)

    def _list(self, row: Ranking, ids: _Ids) -> tuple[TokenList | None, list[int]]:
        """A list, and the places that its answers have in the row."""
        sides = dict[int, _Side]()
        for place, (answered, (name, _)) in enumerate(zip(ids.answers, _answers_of(row), strict=True)):
            if answered is None:
                continue
            side = self._side(row.row, name, answered, ids.border)
            long = self._too_long(row.row, name, *side[:2], "over-long answer")
            if side.of_prompt or any(fault.field == "prompt" for fault in long):
                self._fitted(row.row, [side], [*side.of_prompt, *long])
                return None, []
            faults = [*side.faults, *long]
            same = any(side.response == other.response for other in sides.values())
            if faults or same:
                self._note(row.row, LEFT_LIST.format(faults[0].problem if faults else "it repeats another"))
            else:
                sides[place] = side
        if len({row.ranks[place] for place in sides}) < 2:
            self._note(row.row, NO_LIST)
            return None, []
        made = self._fitted(row.row, [*sides.values()], [])
        if made is None:
            return None, []
        notes, prompt, responses = made
        if len(set(responses)) < len(responses):
            self._note(row.row, CUT_TO_IDENTICAL)
            return None, []
        self._note(row.row, *notes)
        self._known(row.row, prompt, *responses)
        ranks = dense_ranks([row.ranks[place] for place in sides])
        scores = None if row.scores is None else tuple(row.scores[place] for place in sides)
        return TokenList(row.id, prompt, responses, ranks, scores), [*sides]

    def _met(self, answers: Iterable[TokenAnswer], pairs: TokenWriter[TokenPair]) -> None:
        """Keep the pairs of single answers that meet at a prompt."""
        ids = {answer.id: answer for answer in answers}
        of_text = {(row.prompt, row.answer): ids[row.id] for row in self.loaded.answers if row.id in ids}
        for row in self.loaded.preferences:
            chosen, rejected = (of_text.get((row.prompt, text)) for text in (row.chosen, row.rejected))
            if chosen is None or rejected is None:
                continue
            if chosen.response == rejected.response:
                self._note(row.row, CUT_TO_IDENTICAL)
                continue
            pair = TokenPair(row.id, chosen.prompt, chosen.response, rejected.response, row.scores)
            self._keep("pairs", pairs, row, pair)

    # -- checks and limits

    def _side(self, row: int, name: str, answered: Answered, border: int) -> _Side:
        chat = self.chat
        prompt, header = answered.prompt[:border], answered.prompt[border:]
        response = header + answered.answer
        notes = [MERGED] if answered.merged else []
        if chat.opening.strip():
            notes.append(f"answers follow {chat.opening!r}, which only the generation prompt writes")
        if chat.lead.strip():
            notes.append(f"answers begin with {chat.lead!r}, which the generation prompt does not write")
        tail = _tail(answered.answer, chat.end) if self.limits.count_header else ()
        ending = (chat.end, *tail)
        faults = []
        if response[-len(ending) :] != ending or response.count(chat.end) != ending.count(chat.end):
            problem = "response without exactly one end-of-turn token, at its end"
            faults = [Fault(row, name, problem, f"{response.count(chat.end)}")]
        of_prompt = []
        if not chat.opens_turns and chat.bos is not None and prompt.count(chat.bos) != 1:
            of_prompt = [Fault(row, "prompt", "not exactly one beginning-of-text token", str(prompt.count(chat.bos)))]
        return _Side(prompt, response, len(header), ending, faults, of_prompt, notes)

    def _identical(self, row: int, response: tuple[int, ...]) -> Fault:
        unknown = 0 if self.chat.unknown is None else response.count(self.chat.unknown)
        got = f"{len(response)} tokens" + (f", {unknown} of them unknown to the tokenizer" if unknown else "")
        return Fault(row, "rejected", "identical answers once tokenised", got)

    def _too_long(
        self, row: int, name: str, prompt: Sequence[int], response: Sequence[int], problem: str
    ) -> list[Fault]:
        """The fault of an over-long prompt or response; none where they are cut."""
        limits, longest = self.limits, len(prompt) + len(response)
        if limits.truncation == "drop" and len(prompt) > limits.max_prompt_length:
            return [
                Fault(row, "prompt", "over-long prompt", f"{len(prompt)} tokens; allowed {limits.max_prompt_length}")
            ]
        if limits.truncation == "drop" and longest > limits.max_length:
            return [Fault(row, name, problem, f"{longest} tokens; allowed {limits.max_length}")]
        return []

    def _fitted(
        self, row: int, sides: Sequence[_Side], faults: list[Fault]
    ) -> tuple[list[str], tuple[int, ...], tuple[tuple[int, ...], ...]] | None:
        """(notes, prompt, responses), cut to the limits; None where there are faults, which are kept."""
        limits, first = self.limits, sides[0]
        prompt, responses = first.prompt, tuple(side.response for side in sides)
        notes = list(dict.fromkeys(note for side in sides for note in side.notes))
        if limits.truncation == "cut" and not faults:
            if len(prompt) > limits.max_prompt_length:
                notes.append(CUT_PROMPT)
                head = prompt[: _kept(self.chat)]
                prompt = head + prompt[len(prompt) - limits.max_prompt_length + len(head) :]
            room = limits.max_length - len(prompt)
            if room < first.header + len(first.ending):
                faults = [Fault(row, "prompt", "no room for an answer after the prompt", f"{room} tokens")]
            elif max(map(len, responses)) > room:
                notes.append(CUT_RESPONSE)
                kept = room - len(first.ending)
                responses = tuple(r if len(r) <= room else r[:kept] + first.ending for r in responses)
        self.faults += faults
        return None if faults else (notes, prompt, responses)


def _pairs_of(made: TokenList, places: Sequence[int], how: PairsFrom) -> Iterator[TokenPair]:
    """The pairs of a list, but for that of its best and worst answer, which is tokenised as a pair. places: its answers' places
    in the row, by which the pairs are named."""
    for i, j in places_of_pairs(made.ranks, how) if how != "best_worst" else ():
        scores = None if made.scores is None else (made.scores[i], made.scores[j])
        name = pair_id(made.id, places[i], places[j])
        yield TokenPair(name, made.prompt, made.responses[i], made.responses[j], scores)


def _tail(answer: tuple[int, ...], end: int) -> tuple[int, ...]:
    """What follows the end-of-turn token."""
    return answer[answer.index(end) + 1 :] if end in answer else ()


# ---------------------------------------------------------------- the same prompt in training and generation
class Inspected(NamedTuple):
    """An item and the prompt that generation would use, all as token ids.

    prompt: everything before the answers' own first token, in training. responses: the answers' own tokens. asked: the
    prompt in generation, cut like the item's prompt. counted_from: index in the prompt where |y| begins.
    """

    item: Item
    prompt: tuple[int, ...]
    responses: tuple[tuple[int, ...], ...]
    asked: tuple[int, ...]
    counted_from: int

    @property
    def id(self) -> str:
        return self.item.id

    def row(self) -> dict[str, Any]:
        """Plain data: id, prompt, what was answered, asked, counted_from. Of a pair, chosen and rejected; of a list, answers
        with ids, rank and score; of a single answer, completion, label and score."""
        item, said = self.item, dict[str, Any]()
        if isinstance(item, TokenPair):
            said = dict(zip(("chosen", "rejected"), self.responses, strict=True))
        elif isinstance(item, TokenAnswer):
            said = {"completion": self.responses[0], "label": item.label, "score": item.score}
        else:
            scores = item.scores or [None] * len(item.ranks)
            rated = zip(self.responses, item.ranks, scores, strict=True)
            said = {"answers": [{"ids": ids, "rank": rank, "score": score} for ids, rank, score in rated]}
        return {
            "id": item.id,
            "prompt": self.prompt,
            **said,
            "asked": self.asked,
            "counted_from": self.counted_from,
        }


def inspected(
    items: Sequence[Item],
    loaded: Found | Sequence[Preference],
    chat: Chat,
    *,
    count_header: bool = False,
    cut_to: int | None = None,
) -> list[Inspected]:
    """Each item with the prompt ids that `chat` would use in generation. items: of one kind. loaded: the text that they were
    made of.

    cut_to: `max_prompt_length` if longer prompts were cut to their end, else None.
    """
    prompts = prompts_of(loaded if isinstance(loaded, Found) else Found(loaded), items)
    inspections = []
    for item in items:
        prompt_ids = chat.prompt_ids(prompts[item.id])
        border = (
            shared_start(chat.prompt_ids(prompts[item.id], ask=False), prompt_ids) if count_header else len(prompt_ids)
        )
        if cut_to is not None and border > cut_to:
            prefix = _kept(chat)
            prompt_ids = prompt_ids[:prefix] + prompt_ids[prefix + border - cut_to :]
        talks = [item.prompt + response for response in item.responses]
        at = len(prompt_ids)
        # If only some of the sides start with the generation prompt, show another one: it has the fault.
        prompt = next((talk[:at] for talk in talks if talk[:at] != prompt_ids), prompt_ids)
        inspections.append(Inspected(item, prompt, tuple(talk[at:] for talk in talks), prompt_ids, len(item.prompt)))
    return inspections


def prompts_of(loaded: Found, items: Sequence[Item]) -> dict[str, tuple[Message, ...]]:
    """Id → prompt as text, of rows that are what the items are: pairs, lists or answers."""
    if items and isinstance(items[0], TokenPair) and loaded.lists and loaded.pairs_from != "best_worst":
        of_list = {item.id: item.id.rpartition("#")[0] for item in items}  # see `pair_id`
        wanted = set(of_list.values())
        asked = {one.id: one.prompt for one in loaded.lists if one.id in wanted}
        return {pair: asked[one] for pair, one in of_list.items()}
    rows: Sequence[TextRow] = loaded.preferences
    if items and isinstance(items[0], TokenList):
        rows = loaded.lists
    elif items and isinstance(items[0], TokenAnswer):
        rows = loaded.answers
    wanted, found = {item.id for item in items}, dict[str, tuple[Message, ...]]()
    for row in rows if wanted else ():
        if row.id in wanted:
            found[row.id] = row.prompt
            if len(found) == len(wanted):
                break
    return found


def check_prompt(rows: Sequence[Inspected], chat: Chat) -> None:
    """Raises PobenchError at the first item whose prompt differs between training and generation."""
    for row in rows:
        kind = {TokenList: "list", TokenAnswer: "answer"}.get(type(row.item), "pair")
        chat.check_prompt(f"{kind} {row.id!r}", row.asked, row.prompt)


def _kept(chat: Chat) -> int:
    """Number of first tokens that are kept when a prompt is cut to its end: the beginning-of-text token."""
    return 1 if chat.bos is not None and not chat.opens_messages else 0
