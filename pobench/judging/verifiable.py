"""The verifiable judge: checks by program whether the answer meets the instruction's demand. Deterministic, free, offline.

A prompt's row holds its demand as data:

    {"id": "…", "prompt": "Describe bees without any commas.",
     "check": {"kind": "no_commas", "about": ["bee", "hive", "pollinat*"]}}

`kind` names a check below; the other keys, except `about` and `sentences`, are its parameters. The score is 1.0 if the demand
is met, else 0.0; nan for a row without a check. An answer fails any check if it

- is unfinished,
- has fewer or more sentences than the instruction states (`"sentences": [least, most]`, if given),
- is too short: it has fewer distinct words with a letter than its kind needs (five, unless the demand allows less),
- repeats itself: one word three times in a row, a longer line twice, or fewer than 40 % distinct words,
- is off topic: none of the `about` words (if given) occurs in it. A word also matches with a plural or possessive ending;
  a word that ends in `*` matches with any ending.

So a model cannot raise its pass rate by empty answers, by repetition, or with one stock answer for all prompts.

All checks read the answer as a reader sees it (`plain`): Unicode NFKC, without invisible characters and markdown emphasis. Two
read the marks themselves, `one_bold` and `json_keys`; for them only the emphasis stays.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from pobench.errors import PobenchError, nearest
from pobench.registry import register_judge

Check = Callable[..., bool]


class NamedCheck(NamedTuple):
    met: Check  # (text, **parameters) -> bool
    least: int  # distinct words that a real answer needs
    cap: str = ""  # the parameter (a number, or a list by its length) that allows fewer
    reads_emphasis: bool = False

    def least_words(self, parameters: Mapping[str, Any]) -> int:
        allowed = parameters[self.cap] if self.cap else self.least
        return min(self.least, allowed if isinstance(allowed, int) else len(allowed))


checks: dict[str, NamedCheck] = {}


def _check(least: int = 5, cap: str = "", reads_emphasis: bool = False) -> Callable[[Check], Check]:
    def register(function: Check) -> Check:
        checks[function.__name__] = NamedCheck(function, least, cap, reads_emphasis)
        return function

    return register


# ---------------------------------------------------------------- the text as a reader sees it
_SAME = str.maketrans(
    {"’": "'", "‘": "'", "ʼ": "'", "‐": "-", "\ufe0e": "", "\ufe0f": ""}
)  # the last two choose a glyph
_EMPHASIS = re.compile(
    r"(?<![*\\])(?P<stars>\*{1,3})(?![\s*])(?P<starred>(?:(?!\n\s*\n)[^*])+?)(?<!\s)(?P=stars)(?!\*)"
    r"|(?<![^\W_])(?<![_\\])(?P<bars>_{1,3})(?![\s_])(?P<barred>(?:(?!\n\s*\n).)+?)(?<![\s_])(?P=bars)(?!\w)",
    re.DOTALL,
)


def plain(text: str, emphasis: bool = False) -> str:
    """The text in Unicode NFKC, without format characters (zero-width space, soft hyphen) and, unless `emphasis`, without
    the marks of markdown emphasis. Apostrophes and hyphens become the ASCII ones, `²` a 2, a no-break space a space."""
    text = "".join(c for c in unicodedata.normalize("NFKC", text).translate(_SAME) if unicodedata.category(c) != "Cf")
    if emphasis:
        return text
    for _ in range(2):  # bold in italics
        text = _EMPHASIS.sub(lambda m: m["starred"] or m["barred"], text)
    return text


# ---------------------------------------------------------------- the parts of a text
def words(text: str) -> list[str]:
    """The words: runs of letters or digits, with apostrophes and hyphens inside a word."""
    return re.findall(r"[^\W_]+(?:['’\-][^\W_]+)*", text)


def lines(text: str) -> list[str]:
    """The lines that are not blank, stripped."""
    return [line.strip() for line in text.splitlines() if line.strip()]


_MARK = re.compile(r"^(?:(?P<bullet>[-*+–—])\s+|(?P<dot>[•◦‣·∙●○▪■])\s*|(?P<number>\d+)[.)]\s+)(?=\S)")

# Abbreviations whose full stop never ends a sentence, those that need a number behind them, and those that end one before a
# capital. A single capital is an initial, unless a word follows that begins sentences more often than names.
_NO_END = re.compile(
    r"\b(?:e\.g|i\.e|vs|approx|cf|Dr|Mr|Mrs|Ms|Prof|St|Mt)\."
    r"|\b(?:No|Nos|Fig|Vol|Ch|Jan|Feb|Mar|Apr|Aug|Sept?|Oct|Nov|Dec)\.(?=\s+\d)"
    r"|\b(?:a\.m|p\.m|etc|Inc|Ltd|Co|Jr|Sr|U\.S|U\.K|Ph\.D|B\.C|A\.D)\.(?=\s+[a-z])"
    r"|(?<![\w'])[A-Z]\.(?=\s*[A-Z][.a-z])"
    r"(?!\s+(?:It|They|The|This|That|These|He|She|We|You|An?|In|And|But|So|I)\b)"
)
# A mark ends a sentence before white space, and between a small letter and a capital. Before a small letter, neither `...` nor
# a mark inside a quotation does (`"Run!" she said.`).
_END = re.compile(r"(?<=[.!?])[\"'”)*]*\s+(?![a-z\s])|(?<=[.!?])(?<!\.\.)\s+|(?<=[a-z][.!?])(?=[A-Z][a-z])")


def sentences(text: str) -> list[str]:
    """The sentences: parts with a word that end with `.`, `!`, `?` or a line break, without the mark of a list's item.

    Abbreviations and decimals end no sentence. A small letter may begin one.
    """
    parts = [_MARK.sub("", line) for line in lines(text)]
    parts = [_NO_END.sub(lambda m: m[0].replace(".", ""), line) for line in parts]
    return [s for line in parts for s in _END.split(line) if words(s)]


def _bare(text: str) -> str:
    """The text in lower case, without quotation marks, emphasis, emoji and white space at both ends."""
    ends = "\"'“”‘’*_" + "".join({c for c in text if c.isspace() or unicodedata.category(c) in ("So", "Sk")})
    return text.strip(ends).casefold()


def _phrase(phrase: str) -> str:
    """The pattern of a word or phrase, with any white space between its words."""
    return r"\s+".join(re.escape(word) for word in plain(phrase).split())


def _has_word(text: str, word: str) -> int:
    """How often `word` (or a phrase) occurs in `text` as a whole word, in any case."""
    return len(re.findall(rf"(?<![^\W_]){_phrase(word)}(?![^\W_])", text, flags=re.IGNORECASE))


# ---------------------------------------------------------------- length and shape
@_check(least=3, cap="n")
def at_most_words(text: str, n: int) -> bool:
    return len(words(text)) <= n


@_check()
def at_least_words(text: str, n: int) -> bool:
    return len(words(text)) >= n


@_check(cap="high")
def between_words(text: str, low: int, high: int) -> bool:
    return low <= len(words(text)) <= high


@_check()
def exact_sentences(text: str, n: int) -> bool:
    """n sentences of at least three words, the last one with a closing mark, and no list."""
    parts = sentences(text)
    closed = re.search(r"[.!?]\)?$", _bare(text)) is not None
    return len(parts) == n and closed and all(len(words(s)) >= 3 for s in parts) and not _items(text)


@_check()
def exact_paragraphs(text: str, n: int) -> bool:
    """n blocks of at least five words between blank lines."""
    blocks = [b for b in re.split(r"\n\s*\n", text.strip()) if b.strip()]
    return len(blocks) == n and all(len(words(b)) >= 5 for b in blocks)


def _items(text: str) -> list[tuple[str, str]]:
    """The mark (`-`, or a number without its dot) and the text of each bulleted or numbered line."""
    marked = [(m, line) for line in lines(text) if (m := _MARK.match(line))]
    return [(m["bullet"] or m["dot"] or m["number"], line[m.end() :]) for m, line in marked]


def _distinct(items: Sequence[str], most_words: int | None = None) -> bool:
    """Whether each item has a word, none more than `most_words`, and no two are the same."""
    counts = [len(words(i)) for i in items]
    fit = all(0 < count <= (most_words or count) for count in counts)
    return fit and len({_bare(i) for i in items}) == len(items)


@_check(least=3, cap="n")
def bullet_points(text: str, n: int, mark: str | None = None, item_words: int | None = None) -> bool:
    """n different lines with a bullet (`-`, `*`, `+`, `–`, `•`, …; `mark`: this one), of at most `item_words` words, and no
    numbered ones."""
    items = _items(text)
    bullets = all(not m.isdigit() and m == (mark or m) for m, _ in items)
    return bullets and len(items) == n and _distinct([item for _, item in items], item_words)


@_check(least=3, cap="n")
def numbered_list(text: str, n: int, item_words: int | None = None, last: bool = False) -> bool:
    """n different lines numbered 1 to n, of at most `item_words` words, and no bulleted ones; `last`: nothing behind them."""
    items = _items(text)
    ends = not last or (bool(items) and _MARK.match(lines(text)[-1]) is not None)
    numbers = [m.lstrip("0") for m, _ in items] == [str(i) for i in range(1, n + 1)]
    return numbers and ends and _distinct([item for _, item in items], item_words)


@_check(least=3, cap="n")
def comma_list(text: str, n: int) -> bool:
    """Nothing but n different items of one to three words on one line, with commas between them."""
    items = [re.sub(r"^and\s+", "", i.strip(" .\n")) for i in text.strip().split(",")]
    return len(lines(text)) == 1 and len(items) == n and _distinct(items, 3)


@_check()
def labelled_lines(text: str, labels: Sequence[str]) -> bool:
    """One line for each label, in order, `Label: some words`, and nothing else."""
    text_lines = lines(text)
    return len(text_lines) == len(labels) and all(
        re.match(rf"{_phrase(label)}:\s+\S", line, re.IGNORECASE) and len(words(line)) >= 3
        for line, label in zip(text_lines, labels, strict=True)
    )


@_check(least=3, cap="keys", reads_emphasis=True)
def json_keys(text: str, keys: Sequence[str]) -> bool:
    """One JSON object with exactly these keys, each once, none of its values empty; a code fence around it is allowed."""
    inside = re.fullmatch(r"```(?:json)?\s*(.*?)\s*```", text.strip(), flags=re.DOTALL | re.IGNORECASE)
    try:
        value = json.loads(inside[1] if inside else text, object_pairs_hook=lambda pairs: tuple(pairs))
    except (ValueError, RecursionError):
        return False
    return (
        isinstance(value, tuple)
        and sorted(key for key, _ in value) == sorted(plain(key, emphasis=True) for key in keys)
        and all(v not in ("", None, [], ()) for _, v in value)
    )


# ---------------------------------------------------------------- letters and marks
@_check()
def no_commas(text: str) -> bool:
    return not re.search(r"[,،、‚]", text)


@_check()
def no_digits(text: str) -> bool:
    return not re.search(r"\d", text)


@_check()
def lowercase(text: str) -> bool:
    return text.islower()


@_check()
def uppercase(text: str) -> bool:
    return text.isupper()


@_check()
def quoted(text: str) -> bool:
    """The whole answer between double quotation marks of one kind, with none inside."""
    return re.fullmatch(r"\"[^\"“”]+\"|“[^\"“”]+”", text.strip()) is not None


@_check(reads_emphasis=True)
def one_bold(text: str) -> bool:
    """Exactly one word or phrase between double asterisks, and other words besides it."""
    bold = re.findall(r"\*\*([^*\n]+)\*\*", text)
    return len(bold) == 1 and len(words(bold[0])) > 0 and len(words(text)) > len(words(bold[0]))


_OPENERS = (
    "who whose whom what which when where why how do does did is are was were am has have had can could may might must shall "
    "should will would don't doesn't didn't isn't aren't wasn't weren't can't couldn't won't wouldn't haven't hasn't"
)
_OPENER = rf"(?:{'|'.join(_OPENERS.split())})\b"
_ASKING = r"\b(?:ask|asks|asked|asking|wonder|wonders|wondered|say|says|said|question)\b"


def _framed(text: str) -> bool:
    """Whether other words present the question: `A child might ask: "…?"`, `Question: …?`, `One may ask why …?`."""
    text = re.sub(r"^[\"“](.*)[\"”]$", r"\1", text.strip(), flags=re.DOTALL)
    before = text.partition("?")[0]
    if before.count('"') % 2 or before.count("“") > before.count("”"):
        return True  # the question mark stands inside a quotation that is not the whole answer
    question = _bare(text)
    introduction, colon, _ = question.rpartition(": ")
    if re.match(_OPENER, question):  # `Which is true: …?` presents nothing, `What I ask is: …?` does
        return re.search(rf"(?:{_ASKING}|\bis|\bbe)$", introduction) is not None
    return bool(colon) or re.search(rf"{_ASKING}(?:\s*[,–—-]\s|\s+{_OPENER})", question) is not None


@_check(least=4)
def one_question(text: str) -> bool:
    """Nothing but a question: one question mark, at the end of the only sentence, and no words that present the question."""
    return text.count("?") == 1 and _bare(text).endswith("?") and len(sentences(text)) == 1 and not _framed(text)


@_check()
def ends_with_question(text: str) -> bool:
    """The answer ends with a question mark, not with `!?`, and has at least two sentences."""
    return re.search(r"[^!?]\?+$", _bare(text)) is not None and len(sentences(text)) >= 2


@_check()
def ends_with_exclamation(text: str) -> bool:
    """The answer ends with an exclamation mark, not with `?!`."""
    return re.search(r"[^!?]!+$", _bare(text)) is not None


# ---------------------------------------------------------------- words
@_check()
def begins_with(text: str, phrase: str) -> bool:
    """The answer begins with the phrase, as whole words: `In short-lived` does not begin with `In short`."""
    return re.match(rf"{_phrase(phrase)}(?![^\W_]|[-'][^\W_])", _bare(text), re.IGNORECASE) is not None


@_check()
def ends_with(text: str, phrase: str) -> bool:
    """The answer ends with the phrase, before any mark, and has at least five words before it."""
    ending = rf"(?<![^\W_])(?<![^\W_][-']){_phrase(phrase.rstrip('.!? '))}[.!?\"'”*\s]*$"
    match = re.search(ending, _bare(text), re.IGNORECASE)
    return match is not None and len(words(_bare(text)[: match.start()])) >= 5


@_check()
def contains_words(text: str, all_of: Sequence[str]) -> bool:
    return all(_has_word(text, w) for w in all_of)


@_check()
def avoids_words(text: str, none_of: Sequence[str]) -> bool:
    return not any(_has_word(text, w) for w in none_of)


@_check()
def word_times(text: str, word: str, n: int) -> bool:
    return _has_word(text, word) == n


# ---------------------------------------------------------------- the judge
def says_something(text: str, least: int = 5) -> bool:
    """Whether the text has at least `least` distinct words with a letter and does not repeat itself; see the module's
    docstring."""
    lowered = [w.casefold() for w in words(text)]
    distinct = set(lowered)
    if len(distinct) < 0.4 * len(lowered) or sum(any(c.isalpha() for c in w) for w in distinct) < max(least, 1):
        return False
    if any(a == b == c for a, b, c in zip(lowered, lowered[1:], lowered[2:], strict=False)):
        return False
    long_lines = [_bare(s) for s in sentences(text) if len(words(s)) >= 4]
    return len(set(long_lines)) == len(long_lines)


def _speaks_of(text: str, word: str) -> bool:
    ending = r"\w*" if word.endswith("*") else r"(?:e?s|'s?)?(?![^\W_])"
    return re.search(rf"(?<![^\W_]){_phrase(word.rstrip('*'))}{ending}", text, re.IGNORECASE) is not None


def meets(text: str, check: Mapping[str, Any]) -> bool:
    """Whether `text` meets what `check` states, its kind's demand and `sentences`.

    Raises PobenchError if `check` has an unknown kind or unknown parameters.
    """
    definition, parameters = _definition(check)
    try:
        least, most = check.get("sentences") or (0, len(text))
        met = definition.met(plain(text, definition.reads_emphasis), **parameters)
        return met and least <= len(sentences(plain(text))) <= most
    except (TypeError, ValueError) as error:
        raise PobenchError(f"check {check['kind']!r}: {error}") from error


def obeys(text: str, check: Mapping[str, Any]) -> bool:
    """Whether `text` meets `check` and is a real answer. Raises PobenchError as `meets` does."""
    if not meets(text, check):
        return False
    definition, parameters = _definition(check)
    text, about = plain(text), check.get("about") or ()
    return says_something(text, definition.least_words(parameters)) and (
        not about or any(_speaks_of(text, word) for word in about)
    )


def _definition(check: Mapping[str, Any]) -> tuple[NamedCheck, dict[str, Any]]:
    kind = check.get("kind", "")
    if kind not in checks:
        raise PobenchError(f"unknown check {kind!r}{nearest(str(kind), checks)} Known: {', '.join(sorted(checks))}")
    return checks[kind], {k: v for k, v in check.items() if k not in ("kind", "about", "sentences")}


class Verifiable:
    """Scores an answer 1.0 or 0.0 by the check in its prompt's row; nan for a row without a check."""

    name = "verifiable"

    def faults(self, rows: Iterable[Mapping[str, Any]]) -> list[str]:
        """The rows whose `check` could not be read, one line each."""
        found = []
        for row in rows:
            check = row.get("check")
            try:
                if check and not isinstance(check, Mapping):
                    raise PobenchError(f"no mapping of `kind` and its values; got {check!r}")
                self.score(row, "An answer.")
            except (PobenchError, TypeError, ValueError, AttributeError) as error:
                found.append(f"prompt {row['id']!r}: `check`: {error}")
        return found

    def score(self, row: Mapping[str, Any], text: str, finished: bool = True) -> float:
        check = row.get("check")
        if not check:
            return float("nan")
        return float(finished and obeys(text, check))


@register_judge("verifiable", offline=True)
def verifiable() -> Verifiable:
    """Exact checks of the demand in the instruction."""
    return Verifiable()
