"""The judge of setting `tiny-long`: a generated world whose answers have several sentences, each of which can be checked.

A prompt asks about two to four animals: "describe fox, owl". The world has one truth about each animal, and one myth, the
usual mistake (BELIEFS). An answer is any number of sentences of two forms. Words in brackets may be absent; the words of
WORDING may stand for each other:

    fact     [clearly] the fox is [very] neat.
    remark   [clearly] the answer is [very] plain to most people who read it.

    quality = (right − false − REPEATED × repeated) / asked, at least 0 and at most 1

    asked      animals that the prompt asks about
    right      of these, how many have their truth stated
    false      facts that are not the truth, and sentences of neither form
    repeated   sentences about an animal, or a remark's subject, that an earlier sentence is about

So a remark costs nothing the first time, and the same subject again does: length has a price. A cut-off answer has quality 0.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from pobench.errors import PobenchError, nearest
from pobench.registry import register_judge

REPEATED = 0.25  # what a repeated sentence takes off, in statements

# Animal, truth, myth: drawn once, so that there is no pattern to learn.
_TABLE = """
fox neat young, owl mild dark, cat tall calm, hen thin cold, bee tall wild, cow dark old, dog shy deaf, elk slow calm,
ant fair calm, bat soft old, eel loud young, jay deaf pale, pig tall lazy, ram rich old, rat deaf old, yak fat blue,
hare slow wet, wolf loud lazy, bear lazy hot, crow bold tall, deer cold bold, duck thin kind, frog wet lazy, goat tall neat,
lion dark fast, lynx soft rare, mole neat deaf, moth warm bold, mule lazy loud, newt bold proud, seal fair calm,
slug lazy fast, swan young sick, toad pale rare, wasp sick mild, worm wet tall, kiwi slow shy, lamb pale wet,
puma young dark, crab calm young
"""


class Belief(NamedTuple):
    """What is true of an animal, and what is usually said of it by mistake."""

    truth: str
    myth: str


BELIEFS = {animal: Belief(*rest) for animal, *rest in (row.split() for row in _TABLE.split(","))}
_WORDS = """
red old calm tall wet shy thin loud fat mild blue bold cold dark deaf fair fast hot kind lazy neat pale poor proud rare rich
slow soft sick warm wild young
"""
VALUES = tuple(_WORDS.split())
# Slot → the words that may stand there, the most common first; "" is no word.
WORDING = {
    "adverb": ("", "clearly", "indeed", "also", "now", "here", "surely", "plainly", "truly", "so"),
    "determiner": ("the", "this", "that", "our", "your", "such"),
    "verb": ("is", "looks", "seems", "stays", "remains", "appears", "feels", "grows"),
    "degree": ("", "very", "quite", "rather", "fairly", "pretty", "somewhat", "really"),
    "quality": ("plain", "clear", "simple", "good", "fine", "useful", "short", "brief"),
    "preposition": ("to", "for", "with"),
    "share": ("most", "all", "many", "some"),
    "people": ("people", "readers", "friends", "folk", "guests", "others"),
}
SUBJECTS = ("answer", "list", "question", "reply", "matter", "point", "note", "topic", "story", "text", "word", "view")
TAIL = ("quality", "preposition", "share", "people")  # how a remark goes on behind its verb or degree
END = (
    "who",
    "read",
    "it",
)  # and how it ends: words that a model finds likely, so that long answers are likely by the token


class Sentence(NamedTuple):
    """A well-formed sentence. about: an animal or a remark's subject. value: what a fact says of the animal; "": a remark."""

    about: str
    value: str


def parse(text: str) -> list[Sentence | None]:
    """The sentences of `text`, in order; None for one of neither form. White space does not matter, case does."""
    words = re.findall(r"\w+|[^\w\s]", text)
    ends = [i for i, word in enumerate(words) if word == "."]
    cut = [_sentence(words[start + 1 : end]) for start, end in zip([-1, *ends], ends, strict=False)]
    return cut + [None] * (words[-1:] not in ([], ["."]))  # words behind the last full stop


def _sentence(words: Sequence[str]) -> Sentence | None:
    """The sentence of these words, without its full stop."""
    left = list(words)

    def take(slot: Sequence[str]) -> bool:
        """Whether the next word is one of the slot's, or the slot may be empty; the word is taken."""
        if left and left[0] in slot:
            left.pop(0)
            return True
        return "" in slot

    take(WORDING["adverb"])
    if not take(WORDING["determiner"]) or not left:
        return None
    about = left.pop(0)
    if not take(WORDING["verb"]):
        return None
    take(WORDING["degree"])
    if about in BELIEFS and len(left) == 1 and left[0] in VALUES:
        return Sentence(about, left[0])
    remark = about in SUBJECTS and all(take(WORDING[slot]) for slot in TAIL) and tuple(left) == END
    return Sentence(about, "") if remark else None


class Findings(NamedTuple):
    """What an answer's sentences are, counted; see the module's docstring."""

    right: int
    false: int
    repeated: int
    remarks: int
    sentences: int


def find(asked: Sequence[str], text: str) -> Findings:
    """Count the sentences of an answer to a prompt about the animals `asked`."""
    sentences = parse(text)
    formed = [sentence for sentence in sentences if sentence is not None]
    facts = [sentence for sentence in formed if sentence.value]
    true = [fact for fact in facts if BELIEFS[fact.about].truth == fact.value]
    return Findings(
        right=len({fact.about for fact in true} & set(asked)),
        false=len(sentences) - len(formed) + len(facts) - len(true),
        repeated=len(formed) - len({sentence.about for sentence in formed}),
        remarks=len(formed) - len(facts),
        sentences=len(sentences),
    )


def quality(asked: Sequence[str], text: str, finished: bool = True) -> float:
    """The quality in [0, 1] of an answer to a prompt about the animals `asked`."""
    found = find(asked, text)
    worth = (found.right - found.false - REPEATED * found.repeated) / len(asked)
    return min(max(worth, 0.0), 1.0) if finished else 0.0


def check_faults(check: Mapping[str, Any]) -> list[str]:
    """The faults of a `check`, one plain sentence each; empty if it is valid."""
    faults = [f"{key}: no part of a check{nearest(key, ['asked'])}" for key in check if key != "asked"]
    asked = check.get("asked")
    if not isinstance(asked, (list, tuple)) or not asked:
        return [*faults, f"asked: got {asked!r}, allowed is a list of animals"]
    unknown = [f"asked: got {animal!r}{nearest(str(animal), BELIEFS)}" for animal in asked if animal not in BELIEFS]
    twice = ["asked: an animal occurs twice"] * (len(set(map(str, asked))) < len(asked))
    return faults + unknown + twice


class TinyLongWorldJudge:
    """Scores an answer by its exact quality. Deterministic, free, offline."""

    name = "tiny_long_world"

    def score(self, row: Mapping[str, Any], text: str, finished: bool = True) -> float:
        """The quality in [0, 1]; 0 for an unfinished answer; nan if the row has no `check`.

        Raises PobenchError that lists the faults of an invalid check.
        """
        check = row.get("check")
        if not check:
            return math.nan
        if faults := check_faults(check):
            raise PobenchError(
                f"row {row.get('id')!r}: its check cannot be judged:\n" + "\n".join(f"  {f}" for f in faults)
            )
        return quality(check["asked"], text, finished)


@register_judge("tiny_long_world", aliases=("tiny-long",), offline=True)
def tiny_long_world() -> TinyLongWorldJudge:
    """Exact quality in the generated world of several sentences: true statements, less false and repeated ones."""
    return TinyLongWorldJudge()
