"""The judge of setting `tiny`: a small generated world in which every answer can be checked exactly.

An instruction asks for things of one topic and puts demands on the answer: "name three animals, no bird,
alphabetically, ending with moth". An answer is well formed in one of three styles:

    commas      ant, fox, moth
    and         ant and fox and moth
    sentences   the ant is a bug. the fox is a mammal. the moth is a bug.

The demands are the keys of the row's `check`; `topic`, `least` and `most` are always there:

    topic       every thing is of this topic, no thing is repeated, and every sentence is true
    least, most bounds of the number of things (`most: null`: no upper bound)
    without     no thing is of this group          only    every thing is of this group
    order       one of ORDERS                      style   one of STYLES
    first, last the answer begins or ends with this thing

    grade = demands met / demands;   pass = every demand met (grade 1)

The bounds count as one demand. An answer that is not well formed (empty, cut off, a word of no topic) has the grade 0.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from pobench.errors import PobenchError, nearest
from pobench.registry import register_judge

# The lexicon: topic → group → things. Every word occurs once, so a thing names its group and topic.
TOPICS: dict[str, dict[str, tuple[str, ...]]] = {
    "animals": {
        "mammal": ("fox", "rabbit", "bear"),
        "bird": ("crow", "owl", "pigeon"),
        "bug": ("beetle", "moth", "ant"),
    },
    "foods": {
        "fruit": ("pear", "fig", "cherry"),
        "vegetable": ("carrot", "spinach", "leek"),
        "grain": ("rice", "barley", "rye"),
    },
    "objects": {
        "vessel": ("bowl", "cup", "kettle"),
        "cutter": ("knife", "chisel", "axe"),
        "seat": ("throne", "bench", "sofa"),
    },
    "clothes": {
        "hat": ("cap", "helmet", "beret"),
        "shoe": ("sandal", "boot", "clog"),
        "coat": ("jacket", "parka", "cloak"),
    },
    "instruments": {
        "string": ("harp", "violin", "lute"),
        "drum": ("snare", "timpani", "bongo"),
        "horn": ("tuba", "cornet", "trumpet"),
    },
}
TOPIC_OF = {thing: topic for topic, groups in TOPICS.items() for things in groups.values() for thing in things}
GROUP_OF = {thing: group for groups in TOPICS.values() for group, things in groups.items() for thing in things}
STYLES = ("commas", "and", "sentences")

# order → the sort key of a thing, and whether the order is descending; things with equal keys may come in any order.
ORDERS: dict[str, tuple[Callable[[str], Any], bool]] = {
    "alphabetical": (str, False),
    "reversed": (str, True),
    "shortest": (len, False),
}


class Answer(NamedTuple):
    """A well-formed answer: its things in order, its style ("" for a single bare thing, which fits both list styles),
    and the (thing, group) claims of its sentences."""

    things: tuple[str, ...]
    style: str
    claims: tuple[tuple[str, str], ...]


def write(things: Sequence[str], style: str, claims: Mapping[str, str] = GROUP_OF) -> str:
    """The answer that lists `things` in `style`. claims: thing → group, for sentences. The inverse of `parse`."""
    if style == "sentences":
        return " ".join(f"the {thing} is a {claims[thing]}." for thing in things)
    return {"commas": ", ", "and": " and "}[style].join(things)


def parse(text: str) -> Answer | None:
    """Parse `text`; None if it is not well formed. White space does not matter, case does."""
    words = re.findall(r"\w+|[^\w\s]", text)
    if words[:1] == ["the"]:
        sentences = [words[i : i + 6] for i in range(0, len(words), 6)]
        for sentence in sentences:
            if len(sentence) != 6 or [sentence[i] for i in (0, 2, 3, 5)] != ["the", "is", "a", "."]:
                return None
        things, style = tuple(s[1] for s in sentences), "sentences"
        claims = tuple((s[1], s[4]) for s in sentences)
    else:
        joints = set(words[1::2])
        if len(words) % 2 == 0 or not (joints <= {","} or joints == {"and"}):  # an even number: empty or cut off
            return None
        things, claims = tuple(words[::2]), ()
        style = {",": "commas", "and": "and"}.get(next(iter(joints), ""), "")
    return Answer(things, style, claims) if all(thing in TOPIC_OF for thing in things) else None


def demands(check: Mapping[str, Any], answer: Answer) -> dict[str, bool]:
    """For every demand of `check`, whether the answer meets it."""
    things = answer.things
    of_topic = all(TOPIC_OF[thing] == check["topic"] for thing in things)
    true = all(GROUP_OF[thing] == group for thing, group in answer.claims)
    met = {
        "topic": of_topic and true and len(set(things)) == len(things),
        "count": check["least"] <= len(things) <= (math.inf if check["most"] is None else check["most"]),
    }
    if "without" in check:
        met["without"] = all(GROUP_OF[thing] != check["without"] for thing in things)
    if "only" in check:
        met["only"] = all(GROUP_OF[thing] == check["only"] for thing in things)
    if "order" in check:
        key, falls = ORDERS[check["order"]]
        keys = [key(thing) for thing in things]
        met["order"] = keys == sorted(keys, reverse=falls)
    if "first" in check:
        met["first"] = things[0] == check["first"]
    if "last" in check:
        met["last"] = things[-1] == check["last"]
    if "style" in check:
        met["style"] = answer.style == check["style"] or (answer.style == "" and check["style"] != "sentences")
    return met


def check_faults(check: Mapping[str, Any]) -> list[str]:
    """The faults of a `check`, one plain sentence each; empty if it is valid."""
    groups = {group for topic_groups in TOPICS.values() for group in topic_groups}
    allowed: dict[str, Any] = {
        "topic": TOPICS, "without": groups, "only": groups, "order": ORDERS, "style": STYLES,
        "first": TOPIC_OF, "last": TOPIC_OF,
    }  # fmt: skip
    faults = [f"{key}: missing" for key in ("topic", "least", "most") if key not in check]
    for key, value in check.items():
        if key in ("least", "most"):
            if not (isinstance(value, int) and value >= 1) and not (key == "most" and value is None):
                faults.append(f"{key}: got {value!r}, allowed is a whole number from 1{' or null' * (key == 'most')}")
        elif key not in allowed:
            faults.append(f"{key}: no demand of this world{nearest(key, [*allowed, 'least', 'most'])}")
        elif value not in allowed[key]:
            faults.append(
                f"{key}: got {value!r}{nearest(str(value), allowed[key])} Allowed: {', '.join(sorted(allowed[key]))}"
            )
    return faults


class TinyWorldJudge:
    """Scores an answer by the demands of its row. Deterministic, free, offline.

    graded: the score is the grade; otherwise 1 if all demands are met, else 0.
    """

    name = "tiny_world"

    def __init__(self, graded: bool = True) -> None:
        self.graded = graded

    def score(self, row: Mapping[str, Any], text: str, finished: bool = True) -> float:
        """The score in [0, 1], 1 = pass; 0 for an unfinished answer; nan if the row has no `check`. Raises as `grade`."""
        grade = self.grade(row, text, finished)
        return grade if self.graded or math.isnan(grade) else float(grade == 1)

    def grade(self, row: Mapping[str, Any], text: str, finished: bool = True) -> float:
        """The share of demands met; 0 for an unfinished answer; nan if the row has no `check`.

        Raises PobenchError that lists the faults of an invalid check.
        """
        check = row.get("check")
        if not check:
            return math.nan
        faults = check_faults(check)
        if faults:
            raise PobenchError(
                f"row {row.get('id')!r}: its check cannot be judged:\n" + "\n".join(f"  {f}" for f in faults)
            )
        answer = parse(text) if finished else None
        if answer is None:
            return 0.0
        met = demands(check, answer).values()
        return sum(met) / len(met)


@register_judge("tiny_world", aliases=("tiny",), offline=True)
def tiny_world(*, graded: bool = True) -> TinyWorldJudge:
    """Exact checks of the generated world. graded: the score is the grade, 1 = pass; otherwise only 1 or 0."""
    return TinyWorldJudge(graded)
