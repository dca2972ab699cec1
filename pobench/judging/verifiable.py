"""The verifiable judge: checks by program whether the answer meets the instruction's demand. Deterministic, free, offline.

A prompt's row holds its demand as data:

    {"id": "…", "prompt": "Describe bees without any commas.",
     "check": {"kind": "no_commas", "about": ["bee", "hive", "pollinat*"]}}

`kind` names a check below; the other keys, except `about`, are its parameters. The score is 1.0 if the demand is met, else
0.0; nan for a row without a check. An answer fails any check if it

- is unfinished,
- is too short: it has fewer distinct words than its kind needs (five, unless the demand allows less),
- repeats itself: one word three times in a row, a longer line twice, or fewer than 40 % distinct words,
- is off topic: none of the `about` words (if given) occurs in it. A word also matches with a plural or possessive ending;
  a word that ends in `*` matches with any ending.

So a model cannot raise its pass rate by empty answers, by repetition, or with one stock answer for all prompts.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from pobench.errors import PobenchError, nearest
from pobench.registry import register_judge

Check = Callable[..., bool]


class NamedCheck(NamedTuple):
    met: Check  # (text, **parameters) -> bool
    least: int  # distinct words that a real answer needs; lower if the demand allows fewer


checks: dict[str, NamedCheck] = {}


def _check(least: int = 5) -> Callable[[Check], Check]:
    def register(function: Check) -> Check:
        checks[function.__name__] = NamedCheck(function, least)
        return function

    return register


# ---------------------------------------------------------------- the parts of a text
def words(text: str) -> list[str]:
    """The words: runs of letters or digits, with apostrophes and hyphens inside a word."""
    return re.findall(r"[^\W_]+(?:['’\-][^\W_]+)*", text)


def lines(text: str) -> list[str]:
    """The lines that are not blank, stripped."""
    return [line.strip() for line in text.splitlines() if line.strip()]


_ABBREVIATION = re.compile(r"\b(?:e\.g|i\.e|etc|vs|approx|Dr|Mr|Mrs|Ms|St|No|U\.S|U\.K|[A-Z])\.(?=\s+\S)")


def sentences(text: str) -> list[str]:
    """The sentences: parts with a word that end with `.`, `!`, `?` or a line break.

    Abbreviations and decimals end no sentence. A mark before a small letter (`"Run!" she said.`) does not either, unless
    the text has no capitals.
    """
    text = _ABBREVIATION.sub(lambda m: m[0].replace(".", ""), text)
    end = r"(?<=[.!?])[\"'”’)*]*\s+" + ("" if text == text.lower() else r"(?![a-z])")
    return [s for line in lines(text) for s in re.split(end, line) if words(s)]


def _bare(text: str) -> str:
    """The text in lower case, without quotation marks, emphasis and white space at both ends."""
    return text.strip().strip("\"'“”‘’*_ \n").casefold()


def _has_word(text: str, word: str) -> int:
    """How often `word` (or a phrase) occurs in `text` as a whole word, in any case."""
    return len(re.findall(rf"(?<!\w){re.escape(word)}(?!\w)", text, flags=re.IGNORECASE))


# ---------------------------------------------------------------- length and shape
@_check(least=3)
def at_most_words(text: str, n: int) -> bool:
    return len(words(text)) <= n


@_check()
def at_least_words(text: str, n: int) -> bool:
    return len(words(text)) >= n


@_check()
def between_words(text: str, low: int, high: int) -> bool:
    return low <= len(words(text)) <= high


@_check()
def exact_sentences(text: str, n: int) -> bool:
    """n sentences of at least three words, the last one with a closing mark, and no list."""
    found = sentences(text)
    closed = re.search(r"[.!?][\"'”’)*]*$", text.strip()) is not None
    return len(found) == n and closed and all(len(words(s)) >= 3 for s in found) and not _items(text)


@_check()
def exact_paragraphs(text: str, n: int) -> bool:
    """n blocks of at least five words between blank lines."""
    blocks = [b for b in re.split(r"\n\s*\n", text.strip()) if b.strip()]
    return len(blocks) == n and all(len(words(b)) >= 5 for b in blocks)


_BULLET = re.compile(r"^[-*•]\s+(?=\S)")
_NUMBER = re.compile(r"^(\d+)[.)]\s+(?=\S)")


def _items(text: str) -> list[str]:
    """The text after the mark of each bulleted or numbered line."""
    marked = [m for line in lines(text) for m in (re.match(r"^(?:[-*•]|\d+[.)])\s+(\S.*)", line),) if m]
    return [m[1] for m in marked]


def _distinct(items: Sequence[str]) -> bool:
    return all(words(i) for i in items) and len({_bare(i) for i in items}) == len(items)


@_check(least=3)
def bullet_points(text: str, n: int) -> bool:
    """n different lines marked `-`, `*` or `•`, and no numbered ones."""
    marked = [line for line in lines(text) if _BULLET.match(line)]
    return len(marked) == n and len(_items(text)) == n and _distinct(_items(text))


@_check(least=3)
def numbered_list(text: str, n: int) -> bool:
    """n different lines numbered 1 to n, and no bulleted ones."""
    numbers = [int(m[1]) for line in lines(text) if (m := _NUMBER.match(line))]
    return numbers == list(range(1, n + 1)) and len(_items(text)) == n and _distinct(_items(text))


@_check(least=3)
def comma_list(text: str, n: int) -> bool:
    """Nothing but n different items of one to three words on one line, with commas between them."""
    items = [re.sub(r"^and\s+", "", i.strip(" .\n")) for i in text.strip().split(",")]
    return len(lines(text)) == 1 and len(items) == n and _distinct(items) and all(len(words(i)) <= 3 for i in items)


@_check()
def labelled_lines(text: str, labels: Sequence[str]) -> bool:
    """One line for each label, in order, `Label: some words`, and nothing else."""
    found = lines(text)
    return len(found) == len(labels) and all(
        re.match(rf"^[*_]*{re.escape(label)}[*_]*:[*_]*\s+\S", line, re.IGNORECASE) and len(words(line)) >= 3
        for line, label in zip(found, labels, strict=True)
    )


@_check(least=3)
def json_keys(text: str, keys: Sequence[str]) -> bool:
    """One JSON object with exactly these keys, none of its values empty; a code fence around it is allowed."""
    inside = re.fullmatch(r"```(?:json)?\s*(.*?)\s*```", text.strip(), flags=re.DOTALL)
    try:
        value = json.loads(inside[1] if inside else text)
    except (ValueError, RecursionError):
        return False
    return (
        isinstance(value, dict)
        and sorted(value) == sorted(keys)
        and all(v not in ("", None, [], {}) for v in value.values())
    )


# ---------------------------------------------------------------- letters and marks
@_check()
def no_commas(text: str) -> bool:
    return not re.search(r"[,，،、]", text)


@_check()
def no_digits(text: str) -> bool:
    return not re.search(r"\d", text)


@_check()
def lowercase(text: str) -> bool:
    return text == text.lower()


@_check()
def uppercase(text: str) -> bool:
    return text == text.upper()


@_check()
def quoted(text: str) -> bool:
    """The whole answer between double quotation marks, with none inside."""
    return re.fullmatch(r"[\"“][^\"“”]+[\"”]", text.strip()) is not None


@_check()
def one_bold(text: str) -> bool:
    """Exactly one word or phrase between double asterisks, and other words besides it."""
    bold = re.findall(r"\*\*([^*\n]+)\*\*", text)
    return len(bold) == 1 and len(words(bold[0])) > 0 and len(words(text)) > len(words(bold[0]))


@_check(least=4)
def one_question(text: str) -> bool:
    """A single question: one question mark, at the end of the only sentence."""
    return text.count("?") == 1 and _bare(text).endswith("?") and len(sentences(text)) == 1


@_check()
def ends_with_question(text: str) -> bool:
    """The answer ends with a question mark and has at least two sentences."""
    return _bare(text).endswith("?") and len(sentences(text)) >= 2


@_check()
def ends_with_exclamation(text: str) -> bool:
    return _bare(text).endswith("!")


# ---------------------------------------------------------------- words
@_check()
def begins_with(text: str, phrase: str) -> bool:
    start = _bare(text)
    return start.startswith(phrase.casefold()) and not start[len(phrase) : len(phrase) + 1].isalnum()


@_check()
def ends_with(text: str, phrase: str) -> bool:
    """The answer ends with the phrase, before any mark, and has at least five words before it."""
    end = _bare(text).rstrip(".!?\"'”’* ")
    phrase = phrase.casefold().rstrip(".!? ")
    return end.endswith(phrase) and len(words(end)) - len(words(phrase)) >= 5 and not end[: -len(phrase)][-1:].isalnum()


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
    """Whether the text has at least `least` distinct words and does not repeat itself; see the module's docstring."""
    spoken = [w.casefold() for w in words(text)]
    if len(set(spoken)) < max(least, 0.4 * len(spoken)):
        return False
    if any(a == b == c for a, b, c in zip(spoken, spoken[1:], spoken[2:], strict=False)):
        return False
    long_lines = [_bare(s) for s in sentences(text) if len(words(s)) >= 4]
    return len(set(long_lines)) == len(long_lines)


def _speaks_of(text: str, word: str) -> bool:
    ending = r"\w*" if word.endswith("*") else r"(?:e?s|['’]s?)?"
    return re.search(rf"(?<!\w){re.escape(word.rstrip('*'))}{ending}(?!\w)", text, re.IGNORECASE) is not None


def obeys(text: str, check: Mapping[str, Any]) -> bool:
    """Whether `text` meets `check` and is a real answer.

    Raises PobenchError if `check` has an unknown kind or unknown parameters.
    """
    parameters = {k: v for k, v in check.items() if k not in ("kind", "about")}
    kind = check.get("kind", "")
    if kind not in checks:
        raise PobenchError(f"unknown check {kind!r}{nearest(str(kind), checks)} Known: {', '.join(sorted(checks))}")
    met, least = checks[kind]
    about = check.get("about") or ()
    try:
        if not met(text, **parameters):
            return False
    except TypeError as error:
        raise PobenchError(f"check {kind!r}: {error}") from error
    return says_something(text, least) and (not about or any(_speaks_of(text, word) for word in about))


class Verifiable:
    """Scores an answer 1.0 or 0.0 by the check in its prompt's row; nan for a row without a check."""

    name = "verifiable"

    def score(self, row: Mapping[str, Any], text: str, finished: bool = True) -> float:
        check = row.get("check")
        if not check:
            return float("nan")
        return float(finished and obeys(text, check))


@register_judge("verifiable", offline=True)
def verifiable() -> Verifiable:
    """Exact checks of the demand in the instruction."""
    return Verifiable()
