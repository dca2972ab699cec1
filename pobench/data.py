"""Preferences as token pairs: one rendering, one cut, one order, and an audit of everything that was left out.

    Found -> tokenize -> (TokenPairs, Audit) -> split_by_prompt -> data_order

The chat template renders prompt + answer as a whole, and the whole is tokenised. The prompt of a pair is the longest
beginning that three token sequences share: the prompt that asks for an answer, prompt + chosen, prompt + rejected.
So no answer loses a token to the other, and a token merged across the border belongs to the answers.
|y| counts the response and its end-of-turn token; whatever the template writes behind that token is taken off.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import cycle, islice
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np
import pandas as pd
from jinja2 import TemplateError

from pobench.published import LLAMA3_TEMPLATE, ZEPHYR_TEMPLATE
from pobench.registry import PobenchError
from pobench.rows import Fault, Found, Message, Preference, refuse, shared_start
from pobench.types import TokenPair

# ---------------------------------------------------------------- chat templates

PLAIN_TEMPLATE = (
    "{{ bos_token if bos_token and bos_token != eos_token else '' }}"
    "{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{ message['content'] + '\n\n' }}"
    "{% elif message['role'] == 'user' %}{{ 'User: ' + message['content'] + '\n\n' }}"
    "{% else %}{{ 'Assistant: ' + message['content'] + eos_token + '\n\n' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)

SHIPPED_TEMPLATES = {"plain": PLAIN_TEMPLATE, "zephyr": ZEPHYR_TEMPLATE, "llama3": LLAMA3_TEMPLATE}

# Some templates write today's date into the system message, so the same data would give other tokens tomorrow.
_FIXED_DATE = (
    "{% macro strftime_now(format) %}"
    "{{ {'%Y-%m-%d': '2024-07-26', '%d %B %Y': '26 July 2024', '%B %d, %Y': 'July 26, 2024'}"
    ".get(format, '26 Jul 2024') }}{% endmacro %}\n"
)


def chat_template(tokenizer: Any, template: str | None = None) -> str:
    """The Jinja text to render with: `template` (a shipped name, a file, or Jinja itself), else the tokenizer's own.

    Shipped, for base models: "plain" (`User: …`, `Assistant: …` and the end-of-text token), and those that SFT models
    were made with, "zephyr" and "llama3". Raises PobenchError if there is none, or the file is absent.
    """
    if template in SHIPPED_TEMPLATES:
        text = SHIPPED_TEMPLATES[template]
    elif template and "{" in template:
        text = template
    elif template:
        if not Path(template).is_file():
            shipped = ", ".join(map(repr, SHIPPED_TEMPLATES))
            raise PobenchError(f"model.chat_template: no file {template!r}; give {shipped}, a file, or Jinja text")
        text = Path(template).read_text(encoding="utf-8")
    elif tokenizer.chat_template is None:
        raise PobenchError(
            "the tokenizer has no chat template, as is usual for a base model; set model.chat_template to 'plain' "
            "(User: … Assistant: …) or to a Jinja file"
        )
    else:
        text = tokenizer.get_chat_template()
    return _FIXED_DATE + text if "strftime_now" in text and not text.startswith(_FIXED_DATE) else text


def with_system(template: str, message: str | None) -> str:
    """The template with a system message in front of every conversation that has none; None: as it is."""
    if message is None:
        return template
    first = "{'role': 'system', 'content': " + json.dumps(message, ensure_ascii=False) + "}"
    put = "{% set messages = [" + first + "] + messages %}"
    return "{% if messages[0]['role'] != 'system' %}" + put + "{% endif %}" + template


class Renderer:
    """A tokenizer and its chat template, probed once: how a turn ends, and which tokens stand in front.

    Training and generation use the same instance, so that the model answers the prompts it was trained on.
    end: the id of the end-of-turn token. after: text that the template writes behind it. bos: the id that every
    sequence starts with, or None.

    Raises PobenchError if there is no chat template, it cannot render one question and answer, or neither template nor
    tokenizer knows an end-of-turn token.
    """

    def __init__(self, tokenizer: Any, template: str | None = None) -> None:
        self.tokenizer, self.template = tokenizer, chat_template(tokenizer, template)
        special = {t.content: i for i, t in tokenizer.added_tokens_decoder.items() if t.special}
        special |= dict(zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True))
        # longest first, so that the pattern names the whole token
        words = "|".join(re.escape(word) for word in sorted(special, key=len, reverse=True) if word)
        self.special = re.compile(words or r"(?!)")
        self.special_ids = frozenset(special.values())
        self._interned = list(
            range(max(tokenizer.get_vocab().values()) + 1)
        )  # one int object per id: a third of the memory of a large set
        question, answer = (Message("user", "Ready?"),), "Quite ready."
        self.bos: int | None = None
        self.after = ""
        try:
            prompt, whole = self.prompt(question), self.conversation(question, answer)
            tail = whole[whole.rindex(answer) + len(answer) :]
        except (TemplateError, ValueError) as error:
            raise PobenchError(f"the chat template cannot render one question and its answer: {error}") from error
        self.end, self.after, self.adds_end = self._turn_end(tail, special)
        starts = tokenizer("x", add_special_tokens=True)["input_ids"]
        bos = tokenizer.bos_token_id
        (ids,) = self.ids([prompt])
        if bos is not None and (starts[:1] == [bos] or ids[:1] == (bos,)):
            self.bos = bos
        if ids[:2] == (bos, bos):
            raise PobenchError(f"the chat template writes the beginning-of-text token {tokenizer.bos_token!r} twice")
        # in ChatML the "beginning-of-text" token may open every turn; then it cannot be counted
        (ids,) = self.ids([whole])
        self.opens_turns = bos is not None and ids.count(bos) > 1

    def _turn_end(self, tail: str, special: dict[str, int]) -> tuple[int, str, bool]:
        if found := self.special.search(tail):
            return special[found.group()], tail[found.end() :], False
        if self.tokenizer.eos_token_id is None:
            raise PobenchError("neither the chat template nor the tokenizer has an end-of-turn token")
        return self.tokenizer.eos_token_id, tail[len(tail.rstrip()) :], True

    def prompt(self, messages: Sequence[Message], *, ask: bool = True) -> str:
        """The text up to the answer; ask: with the generation prompt, usually the assistant's header."""
        turns = [{"role": m.role, "content": m.content} for m in messages]
        return self.tokenizer.apply_chat_template(
            turns, chat_template=self.template, tokenize=False, add_generation_prompt=ask
        )

    def conversation(self, messages: Sequence[Message], answer: str) -> str:
        """The text of prompt and answer, up to and including the end-of-turn token where the template writes one."""
        text = self.prompt((*messages, Message("assistant", answer)), ask=False)
        return text.removesuffix(self.after) if self.after else text

    def prompt_ids(self, messages: Sequence[Message]) -> tuple[int, ...]:
        """The token ids a model is asked with: exactly what `tokenize` puts before an answer."""
        return self.ids([self.prompt(messages)])[0]

    def ids(self, texts: Sequence[str]) -> list[tuple[int, ...]]:
        """Token ids; special tokens are those of the template, and the beginning-of-text token where it wrote none."""
        if not texts:
            return []
        batch = self.tokenizer(
            list(texts),
            add_special_tokens=False,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,
        )["input_ids"]
        intern = self._interned.__getitem__
        ids = [tuple(map(intern, sequence)) for sequence in batch]
        return ids if self.bos is None else [s if s[:1] == (self.bos,) else (self.bos, *s) for s in ids]

    def pair_ids(self, texts: Sequence[tuple[str, str, str]]) -> list[tuple[tuple[int, ...], ...]]:
        """(prompt, prompt + chosen, prompt + rejected) as texts -> the same as ids, answers closed by `end`."""
        prompts = list(dict.fromkeys(prompt for prompt, _, _ in texts))
        ids = iter(self.ids([*prompts, *(t for _, *both in texts for t in both)]))
        of_prompt = dict(zip(prompts, ids, strict=False))
        end = (self.end,) if self.adds_end else ()
        return [(of_prompt[prompt], next(ids) + end, next(ids) + end) for prompt, _, _ in texts]

    def fault_of(self, preference: Preference, prompt: str, chosen: str, rejected: str) -> Fault | None:
        """What the rendering did to the text that must not happen to it."""
        row, ask = preference.row, preference.prompt[-1].content.strip()
        written = [(f"prompt[{i}]", m.content, prompt) for i, m in enumerate(preference.prompt)]
        for name, text, whole in (
            *written,
            ("chosen", preference.chosen, chosen),
            ("rejected", preference.rejected, rejected),
        ):
            if found := self.special.search(text):
                return Fault(row, name, "holds a special token of the tokenizer as text", repr(found.group()))
            if text.strip() not in whole:
                return Fault(row, name, "the chat template drops or changes text", repr(text.strip()[:40]))
        asked = prompt.rindex(ask) + len(ask)
        if not (chosen.startswith(prompt[:asked]) and rejected.startswith(prompt[:asked])):
            return Fault(row, "prompt", "the chat template writes the prompt differently once an answer follows", "")
        return None


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


# ---------------------------------------------------------------- audit


@dataclass(frozen=True)
class Audit:
    """What a data set holds, and what was left out of it.

    rows: read from the file. pairs: ready for training. faults: why rows were left out. notes: what else was left out
    or changed -> row numbers. lengths: (pairs,) each of "prompt", "chosen", "rejected", in `unit`.
    """

    rows: int
    pairs: int
    faults: list[Fault]
    notes: dict[str, list[int]]
    lengths: dict[str, np.ndarray] = field(repr=False)
    unit: str = "tokens"
    source: str = "rows"
    shape: str = ""

    @classmethod
    def of(
        cls,
        items: Sequence[TokenPair] | Sequence[Preference],
        found: Found,
        faults: list[Fault],
        notes: dict[str, list[int]],
    ) -> Audit:
        """The audit of token pairs, or of preferences, whose lengths are then in characters."""
        as_text = bool(items) and isinstance(items[0], Preference)
        prompts = [sum(len(m.content) for m in i.prompt) if isinstance(i, Preference) else len(i.prompt) for i in items]
        lengths = {
            "prompt": np.array(prompts, dtype=np.int64),
            "chosen": np.array([len(i.chosen) for i in items], dtype=np.int64),
            "rejected": np.array([len(i.rejected) for i in items], dtype=np.int64),
        }
        unit = "characters" if as_text else "tokens"
        return cls(found.rows, len(items), faults, notes, lengths, unit, found.source, found.shape)

    @classmethod
    def of_file(cls, found: Found) -> Audit:
        """The audit of a file that no tokenizer has seen: lengths in characters."""
        return cls.of(found.preferences, found, found.faults, found.notes)

    @property
    def chosen_longer(self) -> float:
        """The share of pairs, in [0, 1], whose chosen answer is the longer one; equal lengths count half."""
        chosen, rejected = self.lengths["chosen"], self.lengths["rejected"]
        return float(np.mean((chosen > rejected) + 0.5 * (chosen == rejected))) if self.pairs else float("nan")

    def frame(self) -> pd.DataFrame:
        """fault, count (rows), rows (JSON list of row numbers): one line per kind of fault, then per kind of note.

        The first two lines, `rows read` and `pairs kept`, are the totals, without row numbers.
        """
        kinds: dict[str, list[int]] = {}
        for fault in self.faults:
            kinds.setdefault(fault.problem, []).append(fault.row)
        lines = [("rows read", self.rows, "[]"), ("pairs kept", self.pairs, "[]")]
        for kind, rows in [*kinds.items(), *self.notes.items()]:
            unique = sorted(set(rows))
            lines.append((kind, len(unique), json.dumps(unique)))
        return pd.DataFrame(lines, columns=["fault", "count", "rows"])

    def quantiles(self) -> pd.DataFrame:
        """Quantiles of the lengths, in `unit`: a line each for prompt, chosen, rejected; nan where there is no pair."""
        at = {"min": 0.0, "5 %": 0.05, "25 %": 0.25, "median": 0.5, "75 %": 0.75, "95 %": 0.95, "max": 1.0}
        values = {
            name: np.quantile(lengths, list(at.values())) if len(lengths) else np.full(len(at), np.nan)
            for name, lengths in self.lengths.items()
        }
        return pd.DataFrame.from_dict(values, orient="index", columns=list(at))

    def text(self) -> str:
        """The audit as plain lines for a terminal."""
        share = f"{self.chosen_longer:.1%}" if self.pairs else "–"
        lines = [
            f"{self.source}: {self.rows} rows"
            + (f" ({self.shape})" if self.shape else "")
            + f", {self.pairs} pairs kept",
            f"  chosen is the longer answer in {share} of {self.pairs} pairs",
            f"  {self.unit:<12}" + "".join(f"{name:>9}" for name in self.quantiles().columns),
        ]
        for name, row in self.quantiles().iterrows():
            lines.append(f"  {name:<12}" + "".join(f"{'–' if np.isnan(v) else f'{v:.0f}':>9}" for v in row))
        frame = self.frame().iloc[2:]
        for kind, count, rows in frame.itertuples(index=False):
            numbers = json.loads(rows)
            some = ", ".join(map(str, numbers[:8])) + (", …" if len(numbers) > 8 else "")
            lines.append(f"  {count:>6}  {kind}: row{'s' if count > 1 else ''} {some}")
        if frame.empty:
            lines.append("  no row was left out")
        return "\n".join(lines)


# ---------------------------------------------------------------- split, subset, order

Item = TypeVar("Item", TokenPair, Preference)


def split_by_prompt(
    items: Sequence[Any], fraction: float, seed: int, key: Callable[[Any], str]
) -> tuple[list[Any], list[Any]]:
    """(training, held-out): a prompt goes to one side, whole, by the hash of its text and the seed.

    So added, removed or reordered rows move no other row, and no tokenizer has a say. `fraction` of the prompts is held
    out on average, and at least one prompt stands on either side. key: an item's prompt as a `text_key`.
    Raises PobenchError if the fraction is outside (0, 1) or all items share one prompt.
    """
    if not 0 < fraction < 1:
        raise PobenchError(f"the held-out share is {fraction}; a share between 0 and 1 is needed")
    places = [_uniform("split", seed, key(item)) for item in items]
    if len(set(places)) < 2:
        raise PobenchError(f"{len(items)} pairs with {len(set(places))} prompt cannot be split by prompt")
    border = min(max(fraction, math.nextafter(min(places), 1)), max(places))
    training = [item for item, place in zip(items, places, strict=True) if place >= border]
    return training, [item for item, place in zip(items, places, strict=True) if place < border]


def subset(items: Sequence[Item], max_pairs: int | None, seed: int = 0) -> list[Item]:
    """`max_pairs` items by the hash of their id and the seed, in their old order: 100 of them are among any 200."""
    if max_pairs is None or max_pairs >= len(items):
        return list(items)
    ranks = sorted(range(len(items)), key=lambda i: _hash("subset", seed, items[i].id))
    return [items[i] for i in sorted(ranks[:max_pairs])]


def bias_labels(items: Sequence[Item], share: float, seed: int) -> list[Item]:
    """For a seeded random `share` of the items the longer answer becomes the chosen one, whatever the label said.

    Length in characters for preferences, in tokens for token pairs. Raises PobenchError if share is outside [0, 1].
    """
    if not 0 <= share <= 1:
        raise PobenchError(f"data.length_bias is {share}; a share in [0, 1] is needed")

    def biased(item: Item) -> Item:
        if not decided_by_length(item, share, seed) or len(item.chosen) >= len(item.rejected):
            return item
        return item._replace(chosen=item.rejected, rejected=item.chosen)  # type: ignore[return-value]

    return [biased(item) for item in items]


def decided_by_length(item: Preference | TokenPair, share: float, seed: int) -> bool:
    """Whether the item belongs to the seeded random `share` whose labels length decides; a larger share holds a
    smaller one."""
    return _uniform("length bias", seed, item.id) < share


@dataclass(frozen=True)
class Order:
    """In which order training meets the pairs. epochs: one (pairs,) array of indices each. digest: hex sha256 of the
    pairs' ids in that order, over all epochs; equal digests mean equal orders of equal data."""

    epochs: list[np.ndarray]
    digest: str


def data_order(pairs: Sequence[TokenPair], seed: int, epochs: int) -> Order:
    """One order per (data, seed), the same for every loss; more epochs begin with the same ones.

    By hash, not by a random generator: the same on every machine and version of numpy.
    """
    digest, orders = hashlib.sha256(), []
    for epoch in range(epochs):
        ranks = sorted(range(len(pairs)), key=lambda i: (_hash("order", seed, epoch, pairs[i].id), i))
        orders.append(np.array(ranks, dtype=np.int64))
        digest.update("\n".join([f"epoch {epoch}", *(pairs[i].id for i in ranks), ""]).encode())
    return Order(orders, digest.hexdigest())


def data_digest(pairs: Iterable[TokenPair]) -> str:
    """Hex sha256 over the token ids of the pairs, in their order; ids of rows do not enter."""
    digest = hashlib.sha256()
    for pair in pairs:
        for ids in pair[1:]:
            digest.update(len(ids).to_bytes(4, "little") + np.asarray(ids, dtype="<i4").tobytes())
    return digest.hexdigest()


def mismatch(pairs: Sequence[TokenPair]) -> list[int]:
    """For each pair the index of a partner with another prompt, whose answers are then paired with this prompt (KTO).

    Fixed by the data alone, so one reference pass serves all seeds. Every pair is a partner once, unless more than half
    of them share one prompt. Raises PobenchError if all do.
    """
    keys = [(_hash("mismatch", _ids_digest(pair.prompt)), _hash(data_digest([pair]), pair.id)) for pair in pairs]
    order = sorted(range(len(pairs)), key=keys.__getitem__)  # pairs of one prompt stand together
    sizes = Counter(prompt for prompt, _ in keys)
    if len(sizes) < 2:
        raise PobenchError(f"{len(pairs)} pairs share one prompt; mismatched pairs (KTO) need at least two prompts")
    (common, largest), *_ = sizes.most_common(1)
    if 2 * largest <= len(pairs):  # a step as long as the largest group leads out of every group
        partner_of = dict(zip(order, order[largest:] + order[:largest], strict=True))
    else:
        crowd, others = ([i for i in order if (keys[i][0] == common) is inside] for inside in (True, False))
        partner_of = dict(zip(crowd, cycle(others), strict=False)) | dict(zip(others, crowd, strict=False))
    return [partner_of[i] for i in range(len(pairs))]


def text_key(prompt: Iterable[Message]) -> str:
    """What makes two prompts the same as text: roles and words, without case and runs of white space."""
    return json.dumps([(m.role, " ".join(m.content.casefold().split())) for m in prompt])


def _ids_digest(ids: Sequence[int]) -> str:
    return hashlib.sha256(np.asarray(ids, dtype="<i4").tobytes()).hexdigest()


def _hash(*parts: object) -> str:
    return hashlib.sha256("\x1f".join(map(str, parts)).encode("utf-8", "surrogatepass")).hexdigest()


def _uniform(*parts: object) -> float:
    """In [0, 1), by hash."""
    return int(_hash(*parts)[:13], 16) / 16**13
