# ruff: noqa: B023, E501, RUF005 (changes are called in the turn that makes them; tables of values are wide)
"""Give pobench bad input of every class, and count what it does: `python -m tests.campaigns.bad_input --count N --seed S`.

A case is a good input with one change that is known to spoil it, or a good input as it is. pobench must refuse the first with one
message (PobenchError, or the command line's own error), write nothing, and end; it must take the second.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import itertools
import json
import os
import random
import resource
import shutil
import signal
import string
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple, get_args
from unittest import mock

import yaml

from pobench.errors import PobenchError

Outcome = str  # refused, accepted, traceback, wrong accept, wrong refusal, written, hang
WRONG = ("traceback", "wrong accept", "wrong refusal", "written", "hang")
PROCESSOR_SECONDS = 60  # of one case; more is a hang
WAITED = 300  # seconds for a case that does not even compute


class Case(NamedTuple):
    """label: what was done to the input. give: hands it to pobench; its files are there before. good: whether it must be taken;
    None where both are right."""

    label: str
    give: Callable[[], Any]
    good: bool | None = False


Cases = Callable[[random.Random, Path], Iterator[Case]]
CLASSES: dict[str, Cases] = {}


def cases(name: str) -> Callable[[Cases], Cases]:
    """Register the endless cases of a class."""

    def register(function: Cases) -> Cases:
        CLASSES[name] = function
        return function

    return register


class Hang(BaseException):
    """A case took more than PROCESSOR_SECONDS."""


class WrongAccept(Exception):
    """Bad input was taken."""


def outcome(case: Case, folder: Path) -> tuple[Outcome, str]:
    """What pobench does with a case, and a line about it. folder: that of its files, which is also the current one."""

    def hang(*_: Any) -> None:
        raise Hang

    before = _files(folder)
    signal.signal(signal.SIGPROF, hang)
    signal.signal(signal.SIGALRM, hang)
    signal.setitimer(signal.ITIMER_PROF, PROCESSOR_SECONDS)
    signal.setitimer(signal.ITIMER_REAL, WAITED)
    try:
        case.give()
        seen, words = "accepted", ""
    except PobenchError as error:
        seen, words = "refused", str(error)
        if not words.strip():
            seen, words = "traceback", "an empty message"
    except WrongAccept as error:
        seen, words = "wrong accept", str(error)
    except Hang:
        return "hang", f"more than {PROCESSOR_SECONDS} processor seconds, or {WAITED} of waiting"
    except BaseException as error:
        return "traceback", f"{type(error).__name__}: {error}"
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
    if seen == "refused" and _files(folder) != before:
        return "written", f"{sorted(set(_files(folder)) ^ set(before))[:3]}"
    if seen == "accepted" and case.good is False:
        return "wrong accept", ""
    if seen == "refused" and case.good is True:
        return "wrong refusal", words
    return seen, words


def _files(folder: Path) -> dict[str, tuple[int, int]]:
    return {
        str(p): (p.lstat().st_size, p.lstat().st_mtime_ns)
        for p in folder.rglob("*")
        if not p.is_dir() and p.suffix != ".pyc"
    }


# ---------------------------------------------------------------- spoiling
NO_TEXT: tuple[Any, ...] = (None, 3, -0.5, True, {}, [], "", "  \n\t", "\ud800 half", [3], {"a": 1}, [[]], [None])
NO_MESSAGES: tuple[Any, ...] = (
    [{"role": "tool", "content": "x"}],
    [{"role": "assistant"}],
    [{"role": "assistant", "content": None}],
    [{"content": "x"}],
    [{"role": ["user"], "content": "x"}],
    [{"role": "user", "content": {"text": "x"}}],
    [{"role": "user", "content": "\udfff"}],
    [{"role": "user", "content": " "}],
    [{"role": "user", "content": "x", "tool_calls": [{"id": "1"}]}],
)
NO_NUMBER: tuple[Any, ...] = (None, "first", [], {}, [1], float("nan"), float("inf"), -float("inf"), "", "1,5")
NO_LIST: tuple[Any, ...] = (None, 3, "text", {}, True, 2.5)


def deep(levels: int, kind: str = "[]") -> str:
    """JSON or flow YAML of so many levels."""
    return kind[0] * levels + kind[1] * levels if kind == "[]" else '{"a":' * levels + "1" + "}" * levels


def words(draw: random.Random, most: int = 6) -> str:
    return " ".join(
        "".join(draw.choices(string.ascii_lowercase, k=draw.randint(2, 7))) for _ in range(draw.randint(1, most))
    )


def dump(rows: Sequence[Any]) -> str:
    return "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)


# ---------------------------------------------------------------- preference rows
def _pair(draw: random.Random) -> dict[str, Any]:
    return {"prompt": f"say {words(draw)}", "chosen": f"good {words(draw)}", "rejected": f"bad {words(draw)}"}


def _chat(draw: random.Random) -> dict[str, Any]:
    turn = {"prompt": "user", "chosen": "assistant", "rejected": "assistant"}
    return {k: [{"role": turn[k], "content": text}] for k, text in _pair(draw).items()}


def _texts(draw: random.Random) -> list[str]:
    return [f"{i} {words(draw)}" for i in range(draw.randint(2, 4))]


def _ranked(draw: random.Random) -> dict[str, Any]:
    answers = [{"text": t, "rank": i + 1, "score": 9.0 - i} for i, t in enumerate(_texts(draw))]
    return {"prompt": words(draw), "answers": answers}


def _in_columns(name: str, draw: random.Random) -> dict[str, Any]:
    texts = _texts(draw)
    values = [float(i + 1) if name == "ranks" else 9.5 - i for i in range(len(texts))]
    return {"prompt": words(draw), "responses": texts, name: values}


def _label(draw: random.Random) -> dict[str, Any]:
    return {"prompt": words(draw), "completion": words(draw), "label": draw.random() < 0.5}


def _spoil_text(name: str, draw: random.Random, row: dict[str, Any]) -> str:
    if draw.random() < 0.15:
        del row[name]
        return f"no {name}"
    row[name] = copy.deepcopy(draw.choice(NO_TEXT + NO_MESSAGES))
    return f"{name} {row[name]!r}"


def _spoil_list(draw: random.Random, row: dict[str, Any]) -> str:
    answers = row["answers"]
    place = draw.choice([0, len(answers) - 1])  # one in the middle is left out, and noted
    kind = draw.choice(["no list", "text", "rank", "no rank", "one"])
    if kind == "no list":
        row["answers"] = copy.deepcopy(draw.choice(NO_LIST))
    elif kind == "text":
        answers[place]["text"] = copy.deepcopy(draw.choice(NO_TEXT))
    elif kind == "rank":
        answers[place]["rank"] = copy.deepcopy(draw.choice(NO_NUMBER))
    elif kind == "no rank":
        del answers[place]["rank"], answers[place]["score"]
    else:
        row["answers"] = answers[:1]
    return f"answers: {kind} {json.dumps(row['answers'])[:60]}"


def _spoil_columns(name: str, draw: random.Random, row: dict[str, Any]) -> str:
    kind = draw.choice(["no list", "number", "short", "long", "text", "no texts"])
    values, place = row[name], draw.choice([0, len(row[name]) - 1])
    if kind == "no list":
        row[name] = copy.deepcopy(draw.choice(NO_LIST[1:]))
    elif kind == "number":
        values[place] = copy.deepcopy(draw.choice(NO_NUMBER))
    elif kind == "short":
        values.pop()
    elif kind == "long":
        values.append(1.0)
    elif kind == "text":
        row["responses"][place] = copy.deepcopy(draw.choice(NO_TEXT))
    else:
        row["responses"] = copy.deepcopy(draw.choice(NO_LIST))
    return f"{name}: {kind} {json.dumps(row)[:80]}"


def _spoil_label(draw: random.Random, row: dict[str, Any]) -> str:
    if draw.random() < 0.5:
        return _spoil_text(draw.choice(["prompt", "completion"]), draw, row)
    row["label"] = copy.deepcopy(draw.choice([None, "maybe", 2, 7.5, [], {}, [True], "", float("nan"), -3]))
    return f"label {row['label']!r}"


def _either(*spoils: Callable[[random.Random, dict[str, Any]], str]) -> Callable[[random.Random, dict[str, Any]], str]:
    return lambda draw, row: draw.choice(spoils)(draw, row)


_SIDES = [partial(_spoil_text, name) for name in ("prompt", "chosen", "rejected")]
_PROMPT = _SIDES[0]
ROWS: dict[str, tuple[Callable[..., dict[str, Any]], Callable[..., str]]] = {
    "pairs": (_pair, _either(*_SIDES)),
    "chat pairs": (_chat, _either(*_SIDES)),
    "answers with ranks": (_ranked, _either(_PROMPT, _spoil_list, _spoil_list)),
    "ranks": (partial(_in_columns, "ranks"), _either(_PROMPT, *[partial(_spoil_columns, "ranks")] * 2)),
    "scores": (partial(_in_columns, "scores"), _either(_PROMPT, *[partial(_spoil_columns, "scores")] * 2)),
    "labels": (_label, _spoil_label),
}


def read_pairs(path: Path, bad: int | None) -> None:
    """Read a file's rows as training does. bad: the number of a row that must not come out of it."""
    from pobench.data.rows import refuse
    from pobench.data.shapes import load_preferences

    found = load_preferences(path)
    refuse(found.faults, source=found.source, rows=found.rows)
    taken = {row.row for rows in (found.preferences, found.lists, found.answers) for row in rows}
    noted = {int(number) for numbers in found.notes.values() for number in numbers}
    if bad is not None and bad in taken - noted:
        raise WrongAccept(f"row {bad} was taken")


def _rows(kind: str, draw: random.Random, folder: Path) -> Iterator[Case]:
    make, spoil = ROWS[kind]
    path = folder / "pairs.jsonl"
    while True:
        rows: list[Any] = [make(draw) for _ in range(5)]
        if kind == "labels":
            rows[0]["label"], rows[1]["label"], rows[1]["prompt"] = True, False, rows[0]["prompt"]
        good = draw.random() < 0.1
        place = draw.randint(2, 4)
        label = "as it is" if good else spoil(draw, rows[place])
        path.write_text(dump(rows))
        # a row that is left out with a note is not taken either
        yield Case(f"{kind}: {label}", partial(read_pairs, path, None if good else place + 1), True if good else None)


for _kind in ROWS:
    cases(f"rows: {_kind}")(partial(_rows, _kind))


@cases("rows: bytes")
def _bytes(draw: random.Random, folder: Path) -> Iterator[Case]:
    while True:
        rows = [_pair(draw) for _ in range(4)]
        text, at = dump(rows).encode(), draw.randint(1, 60)
        bad: list[tuple[str, str, bytes]] = [
            ("a line cut off", "jsonl", text[: -at - 3]),
            ("no UTF-8", "jsonl", text[:at] + b"\xff\xfe\xc3" + text[at:]),
            ("nothing", "jsonl", b""),
            ("only spaces", "jsonl", b" \n\n"),
            ("a number", "jsonl", b"3\n" + text),
            ("a list", "jsonl", b"[1, 2]\n" + text),
            ("deep lists", "jsonl", text + f'{{"prompt": "x", "chosen": {deep(200_000)}, "rejected": "y"}}\n'.encode()),
            ("deep objects", "json", deep(150_000, "{}").encode()),
            ("a huge number", "jsonl", text + b'{"prompt": "x", "chosen": ' + b"9" * 6000 + b', "rejected": "y"}\n'),
            ("no Parquet", "parquet", text),
            ("a Parquet cut off", "parquet", b"PAR1" + text[:at] + b"PAR1"),
            ("no Arrow", "arrow", text),
            ("no gzip", "jsonl.gz", text),
            ("a gzip cut off", "jsonl.gz", b"\x1f\x8b\x08\x00" + text[:at]),
            ("no JSON", "json", text[: -at - 3]),
            ("a CSV with too many cells", "csv", b"prompt,chosen,rejected\na,b,c,d\n"),
            ("a CSV with a column twice", "csv", b"prompt,chosen,chosen\na,b,c\n"),
            ("a CSV without a known column", "csv", b"x,y\na,b\n"),
            ("another ending", "exe", text),
        ]
        label, ending, content = draw.choice(bad)
        path = folder / f"pairs.{ending}"
        path.write_bytes(content)
        yield Case(label, partial(read_pairs, path, None))
        path.unlink()


@cases("rows: any JSON")
def _any_json(draw: random.Random, folder: Path) -> Iterator[Case]:
    """Rows that hypothesis makes: nothing is known of them but that reading ends in rows or in one message."""
    path = folder / "pairs.jsonl"
    while True:
        for rows in drawn(draw.randrange(2**32), 50):
            if draw.random() < 0.7:  # good rows in which one value is anything, so that the shape is known
                rows = [_pair(draw) | dict(list(row.items())[:1]) for row in rows] + [_pair(draw) for _ in range(4)]
            path.write_text(dump(rows))
            yield Case("any JSON", partial(read_pairs, path, None), None)


def drawn(seed: int, count: int) -> list[list[Any]]:
    """Lists of rows under pobench's names of columns, with any JSON in them, as hypothesis draws it."""
    from hypothesis import HealthCheck, Phase, given, settings
    from hypothesis import seed as seeded
    from hypothesis import strategies as st

    from pobench.settings.schema import COLUMNS

    leaf = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12)
    roles = st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant", "system", "x"]), "content": leaf})
    value = st.recursive(
        leaf | roles,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    )
    made: list[list[Any]] = []

    @seeded(seed)
    @settings(max_examples=count, database=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
    @given(st.lists(st.dictionaries(st.sampled_from(COLUMNS), value, max_size=6), min_size=1, max_size=4))
    def draw_rows(rows: list[Any]) -> None:
        made.append(json.loads(json.dumps(rows)))

    draw_rows()
    return made


# ---------------------------------------------------------------- conversations and human answers
OF_TINY = """
rabbit owl fox crow beetle hat cap helmet beret jacket coat animals clothes please list the and is a
"""
KNOWN = tuple(OF_TINY.split())


def known(draw: random.Random) -> str:
    """Some of the words that the tokenizer of tiny knows."""
    return " ".join(draw.sample(KNOWN, draw.randint(3, 6)))


def _conversation(draw: random.Random) -> dict[str, Any]:
    if draw.random() < 0.3:
        return {"prompt": known(draw), "response": known(draw)}
    roles = ["user", "assistant"] * draw.randint(1, 2)
    return {"messages": [{"role": role, "content": known(draw)} for role in roles]}


def _spoil_conversation(draw: random.Random, row: dict[str, Any]) -> str:
    if "messages" not in row:
        name = draw.choice(["prompt", "response"])
        row[name] = copy.deepcopy(draw.choice(NO_TEXT[:-1]))
        return f"{name} {row[name]!r}"
    turns = row["messages"]
    kind = draw.choice(["no list", "turn", "role", "content", "special", "no answer", "answer first", "gone"])
    if kind == "no list":
        row["messages"] = copy.deepcopy(draw.choice((*NO_LIST, [], "", [[]], [None], [3])))
    elif kind == "turn":
        turns[0] = copy.deepcopy(draw.choice((None, 3, "text", [], {}, {"role": "user"}, {"content": "x"})))
    elif kind == "role":
        turns[0]["role"] = draw.choice((None, 3, [], {}, True))
    elif kind == "content":
        turns[-1]["content"] = copy.deepcopy(draw.choice((None, 3, [], {}, "", "  \n", ["x"], {"text": "x"})))
    elif kind == "special":
        turns[-1]["content"] = f"{_tokenizer().eos_token} x"
    elif kind == "no answer":
        row["messages"] = turns[:1]
    elif kind == "answer first":
        row["messages"] = turns[1:]
    else:
        del row["messages"]
    return f"{kind} {json.dumps(row)[:70]}"


def _read_conversations(path: Path) -> None:
    from pobench.data.chat import Chat
    from pobench.data.demonstrations import tokenise
    from pobench.data.rows import read_rows

    tokenise(Chat(_tokenizer()), read_rows(path), source="sft.source")


def _files_of(
    name: str,
    makes: Sequence[tuple[Callable[..., dict[str, Any]], Callable[..., str]]],
    give: Callable[[Path], Any],
    draw: random.Random,
    folder: Path,
) -> Iterator[Case]:
    """Files of rows of one shape each, of which one row is spoiled."""
    path = folder / "rows.jsonl"
    while True:
        make, spoil = draw.choice(makes)
        rows, good = [make(draw) for _ in range(5)], draw.random() < 0.1
        label = "as it is" if good else spoil(draw, rows[draw.randint(2, 4)])
        path.write_text(dump(rows))
        yield Case(f"{name}: {label}"[:90], partial(give, path), good)


@cases("rows: conversations")
def _conversations(draw: random.Random, folder: Path) -> Iterator[Case]:
    yield from _files_of("conversations", [(_conversation, _spoil_conversation)], _read_conversations, draw, folder)


def _read_human_answers(path: Path) -> None:
    from pobench.data.human_answers import human_answers
    from pobench.settings.resolve import resolve

    changes = {"onpolicy.pairs": "human_over_own", "onpolicy.human_answers": str(path)}
    human_answers(resolve("tiny", "dpo", overrides=changes)[0])


@cases("rows: human answers")
def _human_answers(draw: random.Random, folder: Path) -> Iterator[Case]:
    def ended(draw: random.Random) -> dict[str, Any]:
        return {"messages": [{"role": role, "content": known(draw)} for role in ("user", "assistant")]}

    def spoil(draw: random.Random, row: dict[str, Any]) -> str:
        kind = draw.choice(["turn", "content", "no answer", "no list"])
        if kind == "turn":
            row["messages"][0] = copy.deepcopy(
                draw.choice((None, 3, "text", [], {}, {"role": "user"}, {"content": "x"}))
            )
        elif kind == "content":
            row["messages"][-1]["content"] = copy.deepcopy(draw.choice((None, 3, [], {}, ["x"], {"text": "x"})))
        elif kind == "no answer":
            row["messages"] = row["messages"][:1]
        else:
            row["messages"] = copy.deepcopy(draw.choice((*NO_LIST, [], [[]], [None])))
        return f"{kind} {json.dumps(row)[:70]}"

    makes: list[tuple[Callable[..., dict[str, Any]], Callable[..., str]]] = [
        (ended, spoil),
        (_pair, _either(_PROMPT, partial(_spoil_text, "chosen"))),
    ]
    yield from _files_of("human answers", makes, _read_human_answers, draw, folder)


# ---------------------------------------------------------------- data, the loss that trains on them, and their pairs
class Trains(NamedTuple):
    """rows: all of a file. loss: that is to train on them. good: whether it can; None where both are right."""

    rows: list[dict[str, Any]]
    loss: str
    good: bool | None
    label: str


def _units(draw: random.Random) -> Trains:
    """Ratings, ranks and labels, each with a loss that reads them or cannot."""
    prompts = [" ".join(three) for three in draw.sample(list(itertools.combinations(KNOWN, 3)), 12)]
    pairs = [{"prompt": p, "chosen": f"hat {known(draw)}", "rejected": f"cap {known(draw)}"} for p in prompts]
    rated = [{**pair, "score_chosen": 9.0, "score_rejected": 1.0 + i % 3} for i, pair in enumerate(pairs)]
    lists = [
        {"prompt": p, "responses": [f"{k} {known(draw)}" for k in KNOWN[:3]], "scores": [3, 1, 2]} for p in prompts
    ]
    tied = [{**row, "scores": [2, 2, 2]} for row in lists]
    singles = [{"prompt": p, "completion": known(draw), "label": i % 2 > 0} for i, p in enumerate(prompts * 2)]
    both = [{**row, "label": i < 12} for i, row in enumerate(singles)]
    scored = [{**row, "score": i % 5} for i, row in enumerate(both)]
    of_one_kind = [{**row, "label": True} for row in singles]
    of_one_prompt = [{**row, "prompt": "please list animals"} for row in pairs]
    return draw.choice([
        Trains(rated, "odpo", True, "ratings"), Trains(pairs, "odpo", False, "no ratings"),
        Trains(rated[:6] + pairs[6:], "odpo", None, "ratings of some"), Trains(lists, "plackett_luce", True, "lists"),
        Trains(tied, "plackett_luce", False, "ties"), Trains(tied, "dpo", False, "ties"), Trains(lists, "dpo", True, "lists"),
        Trains(both, "bco_udm", True, "labels"), Trains(scored, "dro_v", True, "labels with ratings"),
        Trains(both, "dro_v", False, "labels without ratings"), Trains(pairs, "dro_v", False, "pairs without ratings"),
        Trains(of_one_kind, "dpo", False, "one label"), Trains(of_one_kind, "bco_udm", None, "one label"),
        Trains(of_one_prompt, "kto", False, "one prompt"), Trains(pairs[:1], "dpo", False, "one pair"),
        Trains(pairs, "dpo", True, "pairs"), Trains(both, "dpo", True, "labels"),
    ])  # fmt: skip


BAD_CHANGES: tuple[tuple[str, str], ...] = (
    *(("data.pairs_from", v) for v in ("worst", "[]", "{}", "3", "true", "[all]", "best worst", "ALL")),
    *(("data.prompt_embedder", v) for v in ("/none", "builtin:nobody", "builtin:../x", "{}", "[a]", "none.gguf")),
    *(("train.value_learning_rate", v) for v in ("0", "-1", "nan", "inf", "x", "11", "[]", "{}")),
    *(("data.max_pairs", v) for v in ("0", "-1", "1.5", "x", "[]")),
    *(("data.held_out_fraction", v) for v in ("0", "1", "-0.1", "nan", "x")),
    ("data.held_out", "none.jsonl"), ("data.length_bias", "2"), ("data.truncation", "maybe"), ("data.max_length", "2"),
)  # fmt: skip


def _plan(path: Path, loss: str, changes: Sequence[str] = ()) -> None:
    """As `pobench run --dry-run` of a training on a file."""
    from pobench.runs.plan import make_plan
    from pobench.settings.resolve import parse_overrides, resolve

    values = parse_overrides(["data.held_out_fraction=0.3", *changes])
    jobs = resolve("tiny", loss, data=str(path), overrides=values)
    make_plan(jobs, path.parent / "runs", ("train",), dry=True)


@cases("data and losses")
def _data_and_losses(draw: random.Random, folder: Path) -> Iterator[Case]:
    path = folder / "rows.jsonl"
    while True:
        trains, kind = _units(draw), draw.choice(["", "", "pairs_from", "change"])
        change, good = "", trains.good
        if kind == "pairs_from":
            change = f"data.pairs_from={draw.choice(['all', 'adjacent', 'best_worst'])}"
        elif kind == "change":
            key, value = draw.choice(BAD_CHANGES)
            unread = key == "data.prompt_embedder" and value[0] not in "[{" and trains.loss != "bco_udm"
            change, good = f"{key}={value}", None if unread else False
        path.write_text(dump(trains.rows))
        give = partial(_plan, path, trains.loss, [change] if change else [])
        yield Case(f"{trains.label}, {trains.loss}, {change}", give, good)


# ---------------------------------------------------------------- prompts
@cases("prompts")
def _prompts(draw: random.Random, folder: Path) -> Iterator[Case]:
    from pobench.data.prompts import prompt_rows

    path = folder / "prompts.jsonl"
    while True:
        rows: list[Any] = [{"id": f"p{i}", "prompt": words(draw)} for i in range(4)]
        row, good = rows[draw.randint(1, 3)], draw.random() < 0.1
        spoils: list[dict[str, Any]] = [
            *({"prompt": value} for value in NO_TEXT[:-1] + NO_MESSAGES),
            {"id": "p0"},
            {"prompt": "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"},
            {"prompt": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]},
            {"system": "be brief"},
            {"input": "more"},
        ]
        change = {} if good else copy.deepcopy(draw.choice(spoils))
        row |= change
        path.write_text(dump(rows))
        yield Case(f"prompts: {change!r}", partial(prompt_rows, str(path), None, "answers.source"), good)


# ---------------------------------------------------------------- settings
def _good_setting() -> dict[str, Any]:
    return {
        "name": "mine",
        "model": {"source": "builtin:tiny"},
        "data": {"source": "builtin:tiny/pairs.jsonl"},
        "train": {"lr": 1e-3, "batch_size": 4},
        "answers": {"source": "builtin:tiny/eval_prompts.jsonl"},
        "judge": {"name": "tiny_world"},
        "losses": {"dpo": {"beta": 0.1}},
    }


@cache
def fields() -> list[tuple[str, str, bool]]:
    """(section, field, whether it holds plain text or a number) of every section of a setting."""
    from pydantic import BaseModel

    from pobench.settings.resolve import SETTABLE

    found = []
    for section, schema in SETTABLE.items():
        for name, about in schema.model_fields.items():
            kinds = [about.annotation, *get_args(about.annotation)]
            scalar = not any(
                kind is Any or getattr(kind, "__origin__", kind) in (dict, list, tuple)
                or (isinstance(kind, type) and issubclass(kind, BaseModel))
                for kind in kinds
            )  # fmt: skip
            found.append((section, name, scalar))
    return found


BAD_VALUES: tuple[Any, ...] = ([[]], [["x"]], {"x": {"y": 1}}, [1, [2]])
BAD_SCALARS: tuple[Any, ...] = (*BAD_VALUES, {}, [], ["x"], {"a": 1})


def _resolve(path: Path) -> None:
    from pobench.settings.resolve import resolve

    resolve(str(path), "dpo")


@cases("settings: values")
def _setting_values(draw: random.Random, folder: Path) -> Iterator[Case]:
    path = folder / "mine.yaml"
    while True:
        values, good = _good_setting(), draw.random() < 0.05
        section, name, scalar = draw.choice(fields())
        kind = draw.choice(["value"] * 5 + ["key", "section", "losses", "name"])
        label = kind
        if good:
            label = "as it is"
        elif kind == "value":
            value = copy.deepcopy(draw.choice(BAD_SCALARS if scalar else BAD_VALUES[:1] + (3, "a text", True)))
            values.setdefault(section, {})[name] = value
            label = f"{section}.{name}: {value!r}"
        elif kind == "key":
            values.setdefault(section, {})[f"{name}{draw.choice('xyz')}"] = 1
        elif kind == "section":
            values[draw.choice(["trian", "Model", "loss", "x", ""])] = {}
        elif kind == "losses":
            values["losses"] = draw.choice(
                [{"dpoo": {}}, {"dpo": {"bta": 1}}, {"dpo": 3}, ["dpo"], 3, {"dpo": {"beta": "x"}}]
            )
        else:
            values["name"] = draw.choice(
                ["../up", "/etc/x", "a/b", "", ".x", "-x", 3, None, ["a"], "x" * 65, "a\nb", "report"]
            )
        path.write_text(yaml.safe_dump(values))
        known = _accepts_anything(section, name) if kind == "value" else False
        yield Case(label, partial(_resolve, path), True if good else None if known else False)


def _accepts_anything(section: str, name: str) -> bool:
    """Whether a field may hold what `BAD_VALUES` holds: a judge's settings, which only the judge knows, and a remark."""
    return (section, name) in {("data", "sources")} or name in (
        "settings",
        "ignore",
        "columns",
        "template_arguments",
        "note",
    )


@cases("settings: data.sources")
def _sources(draw: random.Random, folder: Path) -> Iterator[Case]:
    path = folder / "mine.yaml"
    while True:
        values = _good_setting()
        sources: list[Any] = [{"source": f"builtin:tiny/{n}_pairs.jsonl", "name": n, "weight": 2} for n in "ab"]
        values["data"] = {"sources": sources}
        spoils: list[tuple[str, Callable[[], Any]]] = [
            ("one name twice", lambda: sources[1].update(name="a")),
            ("a weight of some", lambda: sources[1].pop("weight")),
            ("a weight", lambda: sources[0].update(weight=draw.choice([0, -1, float("nan"), 1e9, "x", []]))),
            ("a name", lambda: sources[0].update(name=draw.choice(["../a", "a/b", "-", 3, [], "x" * 70]))),
            ("no source", lambda: sources[0].pop("source")),
            ("another key", lambda: sources[0].update(wieght=1)),
            ("source too", lambda: values["data"].update(source="builtin:tiny/pairs.jsonl")),
            ("columns", lambda: sources[0].update(columns=draw.choice([{"chosn": "a"}, 3, [1], {"chosen": 3}]))),
            ("no mapping", lambda: sources.append(draw.choice([3, None, "a", [], [{}]]))),
            ("no list", lambda: values["data"].update(sources=draw.choice([3, "a", {"a": 1}, {"source": "x"}]))),
            ("stopping", lambda: values["data"].update(stopping=draw.choice(["never", 3, []]))),
        ]
        good = draw.random() < 0.1
        label, spoil = ("as it is", lambda: None) if good else draw.choice(spoils)
        spoil()
        path.write_text(yaml.safe_dump(values))
        yield Case(f"data.sources: {label}", partial(_resolve, path), good)


BROKEN_YAML: tuple[str, ...] = (
    "a: &a [x, x, x, x, x, x, x, x, x]\n"
    + "".join(f"{c}: &{c} [{', '.join([f'*{b}'] * 9)}]\n" for b, c in zip("abcdefgh", "bcdefghi", strict=True)),
    "a: &a\n  b: *a\n",
    "a: 1\na: 2\n",
    "? [a]\n: 1\n",
    "1: x\n",
    "a: !!python/object/apply:os.system ['touch OWNED']\n",
    "a: !!python/name:os.system\n",
    "a: !!set {x}\n",
    "a: !!binary aGk=\n",
    "a: !mine x\n",
    "a: [1, 2\n",
    "a:\n\t- b\n",
    "--- 1\n--- 2\n",
    "a: *nobody\n",
    "%YAML 9.9\n--- \x00\n",
    f"a: {deep(5000)}\n",
    f"a: {deep(100_000)}\n",
    '{"a":' * 3000,
    "- a\n- b\n",
    "3\n",
    "",
    "a: '\n",
    "a: \x07\n",
    "<<: 3\n",
    "<<: [1]\n",
    "!!int 1:30",
    "extends: mine.yaml\n",
    "extends: nobody\n",
    "extends: [tiny]\n",
    "extends: ../../../../etc/passwd\n",
    "extends: x.yaml\n",
)


def _yaml_of(give: Callable[[Path], Any], draw: random.Random, folder: Path) -> Iterator[Case]:
    path = folder / "mine.yaml"
    while True:
        broken = draw.choice(BROKEN_YAML)
        noise = draw.choice(["", "", "# a comment\n", "\n\n"])
        if broken[:1] == "%" or draw.random() < 0.1:
            path.write_bytes((noise + broken).encode() + draw.choice([b"\xff", b"\x00", b"\xc3"]))
        else:
            path.write_text(noise + broken)
        yield Case(repr(broken[:60]), partial(give, path))


@cases("settings: YAML")
def _setting_yaml(draw: random.Random, folder: Path) -> Iterator[Case]:
    yield from _yaml_of(_resolve, draw, folder)


@cases("--set")
def _set(draw: random.Random, folder: Path) -> Iterator[Case]:
    from pobench.settings.resolve import parse_overrides, resolve

    def give(text: str) -> None:
        resolve("tiny", "dpo", overrides=parse_overrides([text]))

    while True:
        section, name, scalar = draw.choice(fields())
        kind = draw.choice(["value"] * 4 + ["key", "form", "section", "loss"])
        if kind == "value":
            while not scalar or _accepts_anything(section, name):
                section, name, scalar = draw.choice(fields())
            value = draw.choice(["[[]]", "{a: 1}", "[1, 2]", "{}", "[]", "[a, [b]]", "{a: {b: c}}"])
            text = f"{section}.{name}={value}"
        elif kind == "key":
            text = f"{section}.{draw.choice(['x', '_', name + 'q', '', '.', name.upper() + '0'])}=1"
        elif kind == "form":
            text = draw.choice(
                ["", "=", "=1", "train.lr", "train", "train=1", ".lr=1", "train.=1", "lr=1", "dpo=1", "\x1b[31m"]
            )
        elif kind == "section":
            text = f"{draw.choice(['trian', 'x', 'losses', '../train', 'Train '])}.{name}=1"
        else:
            text = draw.choice(["dpo.bta=1", "dpo.beta=x", "dpo.beta=[1]", "dpo.beta={}", "dpo.beta=true", "losses.dpo.x=1",
                                "train.lr=nan", "train.lr=inf", "train.lr=-1", "train.lr=0", "train.lr=abc", "train.epochs=0",
                                "train.batch_size=1.5", "train.batch_size=0", "data.held_out_fraction=1", "data.max_length=1",
                                "judge.name=nobody", "judge.settings.x=1", "model.template_arguments.messages=1",
                                "benchmarks.nobody.x=1", "train.batch_size=9" + "9" * 5000])  # fmt: skip
        yield Case(text[:80], partial(give, text))


# ---------------------------------------------------------------- grids and studies
def _spoiled_tree(draw: random.Random, tree: Any, value: Any) -> tuple[Any, str]:
    """A copy of nested values in which one value is another, and where."""
    tree, where = copy.deepcopy(tree), []
    node, holder, key = tree, None, None
    while isinstance(node, dict | list) and node and (holder is None or draw.random() < 0.8):
        holder, key = node, draw.choice(list(node) if isinstance(node, dict) else range(len(node)))
        where.append(str(key))
        node = node[key]
    holder[key] = copy.deepcopy(value)  # type: ignore[index]
    return tree, ".".join(where)


def _read_grid(path: Path) -> None:
    from pobench.workflows.grid import points_of, search_spaces

    for name, space in search_spaces(str(path), ["dpo", "simpo"]).items():
        points_of(space, name)


@cases("grids")
def _grids(draw: random.Random, folder: Path) -> Iterator[Case]:
    path, broken = folder / "mine.yaml", _yaml_of(_read_grid, draw, folder)
    many = list(range(1, 2001))
    while True:
        if draw.random() < 0.3:
            yield next(broken)
            continue
        grid: dict[str, Any] = {"lr": [1e-3, 1e-4], "losses": {"dpo": {"beta": [0.1, 0.5]}}}
        good = draw.random() < 0.1
        spoils: list[dict[str, Any]] = [
            *({"lr": v} for v in ([], "x", 3, None, [-1], [0], ["a"], [float("nan")], [float("inf")], [[1]], {})),
            *({"losses": v} for v in ([], "x", 3, {"dpoo": {}}, {"dpo": 3}, {"dpo": []}, {"dpo": {"bta": [1]}})),
            *({"losses": {"dpo": {"beta": v}}} for v in ([], "x", 3, None, {})),
            {"seeds": [1]},
            {"": 1},
            {"lr": [i / 1e4 for i in many], "losses": {"simpo": {"beta": many, "gamma": many}}},
        ]
        change = {} if good else draw.choice(spoils)
        path.write_text(yaml.safe_dump(grid | change))
        yield Case(f"grid: {str(change)[:60]}", partial(_read_grid, path), good)


def _read_study(path: Path) -> None:
    from pobench.workflows.study import expand
    from pobench.workflows.study_file import read_study

    expand(read_study(str(path)), "tiny")


@cases("studies")
def _studies(draw: random.Random, folder: Path) -> Iterator[Case]:
    path, broken = folder / "mine.yaml", _yaml_of(_read_study, draw, folder)
    while True:
        if draw.random() < 0.3:
            yield next(broken)
            continue
        grid = [{"losses": ["dpo"], "values": {"beta": [0.1, 0.5]}, "times": {"train.lr": [1, 2.0]}}]
        study: dict[str, Any] = {
            "title": "t",
            "question": "q",
            "figures": ["settings-table"],
            "seeds": [1],
            "grid": grid,
        }
        good = draw.random() < 0.1
        spoils: list[dict[str, Any]] = [
            *({"grid": v} for v in ([], {}, 3, "x", [3], [{}], [{"losses": "dpoo"}], [{"losses": 3}])),
            *({"grid": [{"losses": "dpo", "values": v}]} for v in (3, [], {"bta": [1]}, {"beta": 3}, {"beta": []},
              {"beta": [[]]}, {"beta": ["x"]}, {"trian.lr": [1]}, {"train.lr": [-1]}, {"train.x": [1]}, {"": [1]})),
            *({"grid": [{"losses": "dpo", "times": v}]} for v in (3, {"beta": ["x"]}, {"beta": []}, {"bta": [2]},
              {"train.precision": [2]}, {"train.lr": [float("nan")]}, {"train.lr": [0]}, {"train.lr": [-2]})),
            {"grid": [{"losses": "dpo", "values": {"beta": [1]}, "times": {"beta": [1]}}]},
            {"grid": [{"losses": "all", "values": {f"train.{k}": list(range(1, 3000)) for k in ("epochs", "batch_size", "warmup_steps")}}]},
            *({"seeds": v} for v in ([], ["x"], [1.5], 3, [None])),
            *({"figures": v} for v in ([], ["nobody"], [3], 3, None)),
            *({"claims": v} for v in (["nobody"], 3, [3])),
            *({"stages": v} for v in (["nobody"], 3, ["onpolicy"])),
            *({"settings": v} for v in (3, {"tiny": 3}, {"tiny": {"x": 1}}, {"tiny": {"grid": []}}, {"tiny": {"seeds": []}})),
            *({"set": v} for v in (3, {"train.lr": -1}, {"x.y": 1}, {"train": 1}, {"": 1})),
            *({"name": v} for v in ("../up", "", 3, "a/b", "x" * 80)),
            {"question": None},
            {"tilte": "x"},
        ]  # fmt: skip
        change = {} if good else draw.choice(spoils)
        path.write_text(yaml.safe_dump(study | change))
        yield Case(f"study: {str(change)[:70]}", partial(_read_study, path), good)


# ---------------------------------------------------------------- command lines
def _invoke(arguments: Sequence[str]) -> None:
    """Raises PobenchError if the command ends with a status other than 0."""
    from typer.testing import CliRunner

    from pobench.cli.main import app

    result = CliRunner().invoke(app, list(arguments))
    if isinstance(result.exception, OSError) and result.exception.strerror:  # `main` says it in one sentence
        raise PobenchError(str(result.exception))
    if isinstance(result.exception, Exception) and not isinstance(result.exception, SystemExit):
        raise result.exception
    if result.exit_code:
        raise PobenchError(result.output or "status " + str(result.exit_code))


@cache
def commands() -> dict[tuple[str, ...], Any]:
    """The words of every command → the command."""
    import typer

    from pobench.cli.group import app_of
    from pobench.cli.main import Commands

    found: dict[tuple[str, ...], Any] = {}

    def walk(words: tuple[str, ...], command: Any) -> None:
        inner = getattr(command, "commands", None)
        if inner:
            for name, one in inner.items():
                walk((*words, name), one)
        else:
            found[words] = command

    for name in Commands.files:
        if name == "watch":  # it waits for runs until it is stopped
            continue
        walk((name,), typer.main.get_command(app_of(name)))
    return found


BAD_OPTIONS: dict[str, tuple[str, ...]] = {
    "--losses": ("simp0", "", ",", "dpo+", "dpo**2", "9*", "dpo(", "nobody(dpo)", "\x1b[31m", "dpo+nan*sft"),
    "--setting": ("nobody", "", "none.yaml", "../tiny", "\x1b[2J", "x" * 5000, "/etc", ".yaml"),
    "--set": ("x", "=", "train.lr", "train.lr=-1", "nobody.x=1", "train.x=1", ""),
    "--seeds": ("x", "", ",", "1.5", "1,x"),
    "--stages": ("nobody", "", ","),
    "--plugin": ("none.py", "/etc", ""),
    "--executor": ("nobody", ""),
    "--executor-set": ("x", "=", ""),
    "--benchmarks": ("nobody",),
    "--judge": ("nobody", ""),
    "--figures": ("nobody",),
    "--format": ("exe", "doc"),
    "--model": ("nobody", "builtin:nobody", "builtin:../x", "package:x", "/etc/none"),
    "--data": ("none.jsonl", "builtin:nobody", "builtin:../../x"),
}
BASES: dict[tuple[str, ...], tuple[str, ...]] = {
    ("run",): ("--setting", "tiny", "--losses", "dpo", "--dry-run"),
    ("plan",): ("--setting", "tiny", "--losses", "dpo"),
    ("study",): ("seeds", "--setting", "tiny", "--dry-run"),
    ("tune",): ("--setting", "tiny", "--losses", "dpo", "--dry-run"),
}
POSITIONAL = ("nobody", "../..", "none.py", "none.jsonl", "", "\x1b[31m", "a" * 5000, "builtin:../x")


@cases("command lines")
def _command_lines(draw: random.Random, folder: Path) -> Iterator[Case]:
    everything = list(commands().items())
    while True:
        words, command = draw.choice(everything)
        options = [p for p in command.params if p.param_type_name == "option" and not p.hidden]
        arguments = [p for p in command.params if p.param_type_name == "argument"]
        numbers = [p for p in options if p.bare_type() in (int, float)]
        named = [p for p in options if set(p.opts) & BAD_OPTIONS.keys()]
        kind = draw.choice(["option", "word", *["number"] * bool(numbers), *["named"] * 3 * bool(named), "missing"])
        base = [*words, *BASES.get(words, ())]
        if kind == "option":
            line = [*base, draw.choice(["--nobody", "--sed", "-Z", "--=x", "--losss=dpo"])]
        elif kind == "number":
            line = [*base, draw.choice(numbers).opts[0], draw.choice(["x", "", "1e", "--", "NaNN", "0x", "1 2"])]
        elif kind == "named":
            option = draw.choice(named)
            line = [*base, option.opts[0], draw.choice(BAD_OPTIONS[next(o for o in option.opts if o in BAD_OPTIONS)])]
        elif kind == "missing":
            with_value = [p for p in options if not p.is_flag]
            if not with_value:
                continue
            line = [*base, draw.choice(with_value).opts[0]]
        else:
            least = draw.choice(POSITIONAL)
            line = [*words, *[least] * max(1, len(arguments))] if words not in BASES else [*base, least]
        yield Case(" ".join(line)[:90], partial(_invoke, line), None if _may_mean_something(words, line) else False)


def _may_mean_something(words: tuple[str, ...], line: Sequence[str]) -> bool:
    """Whether the command has a use for this: a repository to push to is not looked up before the run is, an empty text is no
    choice at all, and a model may lie anywhere."""
    return "" in line or words[0] in ("doctor", "list", "status") or (words[0] == "new" and line[-1] != "../..")


# ---------------------------------------------------------------- expressions and rounds
GOOD_LOSSES = ("dpo + 0.2*sft", "label_smoothing(dpo)", "ld(dpo), dpo + 0.8*bco_pair + sft", "simpo,dpo", "R-DPO")
BAD_LOSSES = (
    "dpo+", "+dpo", "0.2*", "*dpo", "dpo**2", "nan*dpo", "inf*dpo+sft", "1e999*dpo", f"{'9' * 5000}*dpo", "nobody(dpo)",
    "label_smoothing()", "label_smoothing(nobody)", "label_smoothing(dpo", "dpo)", "label_smoothing dpo", "dpo+nobody", "dpo;sft",
    "dpo,,sft+", "\x1b[31mdpo", "dpo\x00", "d" * 100_000, f"{'label_smoothing(' * 3000}dpo{')' * 3000}", "dpo" + "+dpo" * 3000 + "+",
    "__import__('os').system('touch OWNED')", "dpo.__class__", "{dpo}", "[dpo]", "'dpo'", "dpo if 1 else sft", "lambda: dpo",
)  # fmt: skip


def _resolve_losses(text: str) -> None:
    from pobench.settings.resolve import resolve

    resolve("tiny", text)


@cases("losses and modifiers")
def _losses(draw: random.Random, folder: Path) -> Iterator[Case]:
    while True:
        kind = draw.choice(["good", "bad", "bad", "bad", "changed"])
        text = draw.choice(BAD_LOSSES if kind == "bad" else GOOD_LOSSES)
        if kind == "changed":
            at = draw.randrange(len(text))
            text = (
                text[:at]
                + draw.choice(["", "(", ")", "+", "*", ",", "0", "é", "\u202e", " "])
                + text[at + draw.randint(0, 2) :]
            )
        yield Case(f"losses: {text[:60]!r}", partial(_resolve_losses, text), {"good": True, "bad": False}.get(kind))


BAD_PARTS = (
    "label_smoothing.rate=0.9", "label_smoothing.rate=-1", "label_smoothing.rate=nan", "label_smoothing.rate=x",
    "label_smoothing.rate=[1]", "label_smoothing.nobody=1", "ld.alpha=2", "ld.alpha={}", "ld.nobody=1", "dpo.beta=-1", "dpo.beta=x",
    "sft.weight=1", "nobody.rate=1", "label_smoothing=1", "label_smoothing(dpo).rate=0.1", "dpo+sft.beta=1",
)  # fmt: skip


def _resolve_parts(text: str, change: str) -> None:
    from pobench.settings.resolve import parse_overrides, resolve

    resolve("tiny", text, overrides=parse_overrides([change]))


def _expression(draw: random.Random, depth: int = 0) -> str:
    """A sum by the grammar, of whatever names; many are refused for what they mean."""
    inner = draw.choice(["dpo", "simpo", "ipo", "sft", "kto", "cpo", "orpo", "bco_pair", "plackett_luce", "tdpo2"])
    around = draw.choice(["label_smoothing", "ld", "sampo", "wpo", "tr", "humanline", "f_divergence"])
    term = f"{around}({_expression(draw, depth + 1)})" if depth < 3 and draw.random() < 0.4 else inner
    weight = draw.choice(["", "", "0.5*", "2 * ", "1e-3*"])
    rest = f" + {_expression(draw, depth + 1)}" if depth < 3 and draw.random() < 0.3 else ""
    return f"{weight}{term}{rest}"


@cases("losses and modifiers: settings")
def _parts(draw: random.Random, folder: Path) -> Iterator[Case]:
    around = "label_smoothing(dpo), ld(dpo)"
    while True:
        kind = draw.choice(["good", "bad", "bad", "grammar", "grammar"])
        if kind == "grammar":
            text = _expression(draw)
            yield Case(f"losses: {text[:60]!r}", partial(_resolve_losses, text), None)
            continue
        change = draw.choice(BAD_PARTS) if kind == "bad" else draw.choice(["label_smoothing.rate=0.2", "ld.alpha=0.3"])
        yield Case(f"{around}: {change}", partial(_resolve_parts, around, change), kind == "good")


BAD_ROUNDS = (
    ("--rounds", "0"), ("--rounds", "-1"), ("--rounds", "x"), ("--rounds", "1.5"), ("--rounds", ""), ("--rounds", "nan"),
    ("--rounds", "2", "--stages", "train"), ("--rounds", "2", "--set", "rounds.prompts=some"),
    ("--rounds", "2", "--set", "rounds.reference=best"), ("--rounds", "2", "--set", "rounds.nobody=1"),
    ("--rounds", "2", "--set", "onpolicy.samples=1"), ("--rounds", "2", "--set", "onpolicy.samples=x"),
    ("--rounds", "2", "--set", "onpolicy.ranker.name=nobody"), ("--rounds", "2", "--set", "onpolicy.held_out_fraction=2"),
    *(("--rounds", "2", "--set", f"onpolicy.pairs={v}") for v in ("human", "[]", "{}", "3", "own_over_human")),
    ("--rounds", "2", "--losses", "odpo", "--set", "onpolicy.pairs=human_over_own"),
    ("--rounds", "2", "--losses", "nobody(dpo)"), ("--rounds", "2", "--set", "train.adapter.r=8"),
    ("--rounds", "2", "--set", "onpolicy.held_out_fraction=0"), ("--rounds", "2", "--set", "rounds.prompts={}"),
    ("--rounds", "2", "--set", "onpolicy.human_answers=3"), ("--rounds", "2", "--set", "onpolicy.human_answers_split=[]"),
    ("--rounds", "2", "--set", "onpolicy.prompts=none.jsonl"), ("--rounds", "1000000000"), ("--rounds", "9" * 30),
)  # fmt: skip


@cases("rounds")
def _rounds(draw: random.Random, folder: Path) -> Iterator[Case]:
    base = ("run", "--setting", "tiny", "--losses", "dpo", "--dry-run")
    while True:
        line = (*base, *(("--rounds", "2") if (good := draw.random() < 0.05) else draw.choice(BAD_ROUNDS)))
        yield Case(
            " ".join(line)[:90], partial(_invoke, line), True if good else None if "none.jsonl" in line[-1] else False
        )


# ---------------------------------------------------------------- command lines around reports
STORED = "runs/tiny/dpo-0123456789ab"
BAD_LINES: tuple[tuple[str, ...], ...] = (
    ("share", "none"), ("share", "a-file"), ("share", "runs", "--out", "a-file"), ("share", "runs", "--out", "foreign"),
    ("share", "runs", "--setting", "nobody"), ("share", "runs", "--setting", "../runs"), ("share", "runs", "--plugin", "none.py"),
    ("push", "nobody", "--repo", "u/n"), ("push", "dpo", "--repo", "../x"), ("push", "dpo", "--repo", "u/n/x"),
    ("push", "dpo", "--repo", "u n"), ("push", "dpo"), ("push", "", "--repo", "u/n"), ("push", "dpo", "--repo", "\x1b[31m/x"),
    ("diff", "runs"), ("diff", "none", "nobody"), ("diff", "a-file", "a-file"), ("diff", "foreign", "runs"),
    ("diff", "runs", "runs", "--setting", "nobody"), ("diff", "\x1b[2J", "runs"),
    ("new", "nobody", "x"), ("new", "loss", "../x"), ("new", "loss", "a b"), ("new", "loss", "x" * 80), ("new", "loss", "-x"),
    ("new", "loss", ""), ("new", "loss", "dpo/x"), ("new", "loss", "a\nb"), ("new", "setting", "../../x"), ("new", "study", "/etc/x"),
    ("new", "judge", "x", "--out", "a-file"), ("new", "loss"), ("new", "loss", "é" * 200),
    ("watch", "--port", "99999"), ("watch", "--port", "-1"), ("watch", "--port", "x"), ("watch", "--runs"), ("watch", "--nobody"),
    ("merge", "runs"), ("merge", "runs", "none"), ("merge", "runs", "a-file"), ("merge", "a-file", "runs"),
    ("export", "nobody"), ("export", "dpo", "--out", "a-file"), ("export", "../.."), ("analyze", "--runs", "foreign"),
    ("analyze", "--runs", "runs", "--format", "exe"), ("analyze", "--runs", "runs", "--out", "a-file"),
    ("cache", "nobody"), ("cache", "prune"), ("cache", "prune", "--older-than"), ("cache", "prune", "--older-than", "-1"),
    ("cache", "prune", "--older-than", "x"), ("cache", "prune", "--older-than", "nan"), ("cache", "prune", "--max-size", "-0.1"),
    ("cache", "prune", "--max-size", "nan", "--dry-run"), ("cache", "prune", "--max-size", "1", "--runs", "none"),
    ("cache", "prune", "--older-than", "1", "--runs", "a-file"), ("cache", "list", "extra"),
    ("share", "runs", "--url", "javascript:alert(1)"), ("share", "runs", "--url", "nobody"), ("share", "runs", "runs"),
    ("push", "dpo", "--repo", "u/n", "--branch", "../x"), ("push", "dpo", "--repo", ""), ("diff", "runs", "runs", "runs"),
    ("diff", "", ""), ("watch", "extra", "more"), ("watch", "--port", ""), ("watch", "--port", "1e3"),
    ("data", "onpolicy", "--setting", "tiny-spin", "--ranker", "verifiable", "--out", "b.jsonl"),
    ("data", "onpolicy", "--setting", "tiny", "--samples", "0", "--out", "b.jsonl"),
    ("data", "inspect", "a-file", "--unit", "nobody"), ("data", "audit", "a-file", "--setting", "nobody"),
    ("list", "nobody"), ("data", "convert", "a-file", "--out", "b.jsonl"), ("data", "audit", "none.jsonl"),
)  # fmt: skip


@cases("command lines: reports")
def _report_lines(draw: random.Random, folder: Path) -> Iterator[Case]:
    """On a folder with a stored run, a file, and a folder that is neither runs nor a report."""
    run = folder / STORED
    run.mkdir(parents=True)
    (run / "config.yaml").write_text(yaml.safe_dump(_stored_config()))
    (folder / "a-file").write_text("x")
    (folder / "foreign").mkdir()
    (folder / "foreign/mine.txt").write_text("x")
    while True:
        line = draw.choice(BAD_LINES)
        noise = draw.choice([(), (), ("--debug",), ("--nobody",)])
        line = (line[0], *noise, *line[1:])  # behind the last option it would be its value
        yield Case(" ".join(line)[:90], partial(_invoke, line))


# ---------------------------------------------------------------- plug-ins
PLUGIN = '''
from torch.nn.functional import logsigmoid
from pobench.registry import register_loss
from pobench.types import LossOutput, Pair

@register_loss("campaign_loss", source="a test")
def campaign_loss(policy: Pair, *, beta: float = 1.0) -> LossOutput:
    """A logistic loss of sums.

        loss = -log sigmoid(beta (chosen - rejected))
    """
    chosen, rejected = beta * policy.chosen.total, beta * policy.rejected.total
    return LossOutput(-logsigmoid(chosen - rejected), chosen.detach(), rejected.detach())
'''
RETURN = "LossOutput(-logsigmoid(chosen - rejected), chosen.detach(), rejected.detach())"
SPOILED_PLUGINS: tuple[tuple[str, str], ...] = (
    *((PLUGIN.split("\n")[1], line) for line in ("raise ValueError('x')", "raise SystemExit(0)", "import nobody_at_all",
      "1/0", "exit()", "class E(BaseException): pass\nraise E()", "def f(:", "\x00", "assert False", "from . import x",
      "raise RecursionError", "f = lambda: f()\nf()", "raise RuntimeError('\\x1b[31m')", "import sys; sys.exit('bye')")),
    *(('"campaign_loss", ', f"{name!r}, ") for name in ("", "../x", "a b", "x" * 80, "paper", "all", "a/b", "dpo", "-x", "a\nb")),
    *((RETURN, text) for text in ("None", "3", "chosen", "chosen.mean()", "(chosen, rejected)", "[chosen] * 3", "'x'",
      "LossOutput(1.0, 2.0, 3.0)", "LossOutput(chosen.mean(), chosen, rejected)", "LossOutput(chosen.detach(), chosen, chosen)",
      "LossOutput(chosen.tolist(), chosen, rejected)", "LossOutput(chosen.long(), chosen, rejected)", "1 / 0", "undefined",
      "LossOutput(chosen[:1], chosen, rejected)", "LossOutput(chosen, rejected)", "LossOutput(chosen.double().numpy(), chosen, chosen)")),
    ("policy: Pair, *", "nobody: Pair, *"),
    ("policy: Pair, *, beta", "policy: Pair, beta"),
    ("chosen, rejected = beta", "policy.chosen.total.add_(1); chosen, rejected = beta"),
    ("float = 1.0", "float"),
    ('source="a test"', "source='x', needs=('nobody',)"),
    ('@register_loss("campaign_loss", source="a test")', "@register_loss"),
    ("def campaign_loss", "class campaign_loss: pass\n@register_loss('campaign_loss', source='x')\ndef campaign_loss2"),
)  # fmt: skip


def _load(path: Path) -> None:
    """As `pobench check --quick`, in this process: load the file, and call its loss on harmless pairs."""
    from pobench.settings.faults import check_loss_settings
    from pobench.workflows.check import losses_of

    with _forgetting():
        faults = [fault for loss in losses_of(str(path))[0] for fault in check_loss_settings(loss, {})]
        if faults:
            raise PobenchError("\n".join(faults))


@contextlib.contextmanager
def _forgetting() -> Iterator[None]:
    """Take out of the registries what was put in."""
    from pobench.registry import judges, losses, modifiers

    before = [(r, set(r.names()), dict(r._aliases)) for r in (losses, judges, modifiers)]
    try:
        yield
    finally:
        for registry, names, aliases in before:
            for name in set(registry.names()) - names:
                registry._items.pop(name)
            registry._aliases.clear()
            registry._aliases.update(aliases)


@cases("plug-ins")
def _plugins(draw: random.Random, folder: Path) -> Iterator[Case]:
    path = folder / "mine.py"
    while True:
        good = draw.random() < 0.1
        old, new = ("", "") if good else draw.choice(SPOILED_PLUGINS)
        assert old in PLUGIN
        if not good and draw.random() < 0.1:
            path.write_bytes(PLUGIN.encode() + b'\nx = "\xff\xfe"\n')
            new = "no UTF-8"
        else:
            path.write_text(PLUGIN.replace(old, new, 1) if old else PLUGIN)
        with contextlib.suppress(OSError):
            shutil.rmtree(folder / "__pycache__")
        yield Case(f"plug-in: {new[:60]!r}", partial(_load, path), good)


# ---------------------------------------------------------------- models
def _shipped_model() -> Path:
    import importlib.resources

    return Path(str(importlib.resources.files("pobench.experiments"))) / "models/tiny"


def _check_model(folder: Path) -> None:
    from pobench.data.chat import Chat
    from pobench.model.load import check_model
    from pobench.settings.schema import ModelConfig
    from pobench.sources import fetch_model

    model = fetch_model(str(folder))
    check_model(model)
    Chat.of(model, ModelConfig(source=str(folder)))


@cases("models")
def _models(draw: random.Random, folder: Path) -> Iterator[Case]:
    shipped, model = _shipped_model(), folder / "model"
    while True:
        shutil.rmtree(model, ignore_errors=True)
        shutil.copytree(shipped, model, copy_function=os.link)
        name = draw.choice(
            ["config.json", "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]
        )
        content = (shipped / name).read_bytes()
        (model / name).unlink()
        if draw.random() < 0.06:
            (model / name).write_bytes(content)
            yield Case("as it is", partial(_check_model, model), True)
            continue
        label, spoiled = _spoiled_model_file(draw, name, content)
        if spoiled is not None:
            (model / name).write_bytes(spoiled)
        lenient = name == "tokenizer_config.json"  # transformers does without much of it
        yield Case(f"{name}: {label}", partial(_check_model, model), None if lenient else False)


def _spoiled_model_file(draw: random.Random, name: str, content: bytes) -> tuple[str, bytes | None]:
    if name == "model.safetensors":
        n = int.from_bytes(content[:8], "little")
        return draw.choice([
            ("gone", None), ("empty", b""), ("half", content[: len(content) // 2]), ("cut", content[: -draw.randint(1, 999)]),
            ("a header too long", (2**62).to_bytes(8, "little") + content[8:]),
            ("a header of 0", (0).to_bytes(8, "little") + content[8:]),
            ("no JSON header", content[:8] + b"x" * n + content[8 + n :]),
            ("a pickle", b"\x80\x04\x95" + content[:500]),
            ("other names", content[:8] + content[8 : 8 + n].replace(b"layers.0", b"layers.7") + content[8 + n :]),
            ("other shapes", content[:8] + content[8 : 8 + n].replace(b'"shape":[', b'"shape":[9', 1)[:n] + content[8 + n :]),
        ])  # fmt: skip
    general: list[tuple[str, bytes | None]] = [
        ("gone", None), ("empty", b""), ("half", content[: len(content) // 2]), ("a list", b"[]"), ("a number", b"3"),
        ("null", b"null"), ("no UTF-8", b"\xff" + content), ("deep", deep(100_000).encode()), ("deep", deep(50_000, "{}").encode()),
    ]  # fmt: skip
    if name == "config.json":
        changes: list[dict[str, Any]] = [
            *({"model_type": v} for v in ("zzz", ["llama"], "t5", None, {}, 3, "bert-of-nobody", "../x")),
            *({"hidden_size": v} for v in ("wide", 32, -1, 0, None, [], 2.5)),
            *({"num_hidden_layers": v} for v in (5, 0, -1, "x", None, 10**12)),
            *({"num_attention_heads": v} for v in (0, -2, "x", 7)),
            *({"vocab_size": v} for v in (-1, 3, "x", 10**15)),
            {"rope_parameters": {"rope_type": "zzz"}}, {"hidden_act": "zzz"},
            {"intermediate_size": 10**9}, {"num_key_value_heads": 0},
        ]  # fmt: skip
        change = draw.choice(changes)
        general += [(str(change), json.dumps(json.loads(content) | change).encode())] * 12
    if name == "tokenizer.json":
        changes = [*({"model": v} for v in (None, 3, {}, {"type": "zzz"})), {"added_tokens": 3}, {"version": 9},
                   {"pre_tokenizer": 3}, {"normalizer": {"type": "zzz"}}]  # fmt: skip
        change = draw.choice(changes)
        general += [(str(change), json.dumps(json.loads(content) | change).encode())] * 8
    return draw.choice(general)


@cache
def _tokenizer() -> Any:
    from pobench.data.chat import load_tokenizer

    return load_tokenizer(_shipped_model())


TEMPLATES: tuple[str, ...] = (
    "{% for m in messages %}", "{{ messages | nobody }}", "{{ raise_exception('no') }}", "{{ 1 / 0 }}", "   ", "x",
    "{{ messages[0]['content'] }}", "{{ messages[5].content }}", "{{ messages[0].nobody.deeper }}", "{% include 'x' %}",
    "{{ ''.__class__.__mro__[1].__subclasses__() }}", "{{ cycler.__init__.__globals__.os.popen('touch OWNED') }}",
    "{{ messages.append(3) }}", "{% for i in range(10**9) %}x{% endfor %}", "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "{{ lipsum.__globals__['os'].system('touch OWNED') }}", "{% set x = namespace() %}{{ x.__init__.__globals__ }}",
    "{% import 'os' as os %}", "{{ undefined_function(messages) }}", "{{", "{% endfor %}", "{{ messages | length > 'a' }}",
    "{% for m in messages %}{{ m.role }}{% endfor %}", "{{ strftime_now() }}",
)  # fmt: skip


@cases("chat templates")
def _templates(draw: random.Random, folder: Path) -> Iterator[Case]:
    from pobench.data.chat import Chat

    own = _tokenizer().chat_template
    while True:
        if draw.random() < 0.1:
            yield Case("as it is", partial(Chat, _tokenizer(), own), True)
        if draw.random() < 0.5:
            template = draw.choice(TEMPLATES)
            yield Case(repr(template), partial(Chat, _tokenizer(), template))
            continue
        at = draw.randrange(len(own))
        kind = draw.choice(["cut", "drop", "insert"])
        new = {
            "cut": own[:at],
            "drop": own[:at] + own[at + draw.randint(1, 9) :],
            "insert": own[:at] + "{%" + own[at:],
        }[kind]
        yield Case(f"{kind} at {at}", partial(Chat, _tokenizer(), new), None)


# ---------------------------------------------------------------- judge replies
def _completion(draw: random.Random, text: str) -> dict[str, Any]:
    top = [{"token": "A", "logprob": -0.1}, {"token": "B", "logprob": -2.4}]
    logprobs = {"content": [{"token": text[:1], "logprob": -0.1, "top_logprobs": top}]}
    choice = {
        "index": 0,
        "finish_reason": "stop",
        "message": {"role": "assistant", "content": text},
        "logprobs": logprobs,
    }
    return {"id": "1", "choices": [choice], "usage": {"prompt_tokens": draw.randint(1, 99), "completion_tokens": 1}}


def _read_reply(body: Any, good: bool) -> None:
    """Read a body as the client does. Raises PobenchError where it holds no verdict."""
    import math

    from pobench.judging.pairwise import from_reply
    from pobench.judging.replies import error_in, parse

    try:
        if error_in(body):
            raise PobenchError("an error in place of a reply")
        reply = parse(body, 8)
    except (
        ValueError,
        TypeError,
        LookupError,
        AttributeError,
    ) as error:  # what the client takes for no chat completion
        raise PobenchError(f"no chat completion: {error!r}") from None
    verdict = from_reply(reply.answer, reply.top) if reply.answer else math.nan
    if math.isnan(verdict):
        raise PobenchError(f"no verdict: {reply.missing or reply.answer!r}")
    if not 0 <= verdict <= 1 or not all(
        type(n) is int and n >= 0 for n in (reply.prompt_tokens, reply.completion_tokens)
    ):
        raise WrongAccept(f"{verdict} {reply}")


NO_VERDICT = (
    "",
    " ",
    "C",
    "AB",
    "A or B",
    "A\nB",
    "neither",
    "<think>A",
    "</think>",
    "both",
    "A B",
    "Answer A: …",
    "\x00",
    "1",
)


@cases("judge replies")
def _replies(draw: random.Random, folder: Path) -> Iterator[Case]:
    junk = (None, 3, -1, "x", [], {}, [[]], [None], True, 1e400, "\ud800", float("nan"), -float("inf"), 10**400)
    while True:
        body: Any = _completion(draw, draw.choice("AB"))
        kind = draw.choice(["good", "text", "tree", "tree", "tree", "choice"])
        good: bool | None = kind == "good"
        label = kind
        if kind == "text":
            body["choices"][0]["message"]["content"] = draw.choice(NO_VERDICT)
            body["choices"][0].pop("logprobs")
        elif kind == "tree":
            body, label = _spoiled_tree(draw, body, draw.choice(junk))
            good = None  # a verdict without log-probabilities or usage stands
        elif kind == "choice":
            body["choices"] = draw.choice([[], None, 3, {}, [None], [[]], [{}], [{"message": None}], "A", [{"message": []}],
                                           [{"message": {"content": None}}], [{"message": {"content": ["A"]}}]])  # fmt: skip
        yield Case(f"reply: {label}", partial(_read_reply, body, bool(good)), good)


# ---------------------------------------------------------------- stored folders
@cases("stored folders")
def _stored(draw: random.Random, folder: Path) -> Iterator[Case]:
    """A run's folder whose configuration, marker or steps hold something else. Reading them ends in frames or in one message."""
    from pobench.results.load import load_frames

    job = _stored_config()
    run = folder / "runs/tiny/dpo-0123456789ab"
    run.mkdir(parents=True, exist_ok=True)
    junk = (None, 3, "x", [], {}, [[]], float("nan"), "\x1b[31m", -1, 10**400)
    while True:
        config, good = copy.deepcopy(job), draw.random() < 0.1
        kind = "as it is" if good else draw.choice(["tree", "tree", "text", "trained", "bytes"])
        text, trained = json.dumps(config), None
        if kind == "tree":
            spoiled, where = _spoiled_tree(draw, config, draw.choice(junk))
            text, kind = json.dumps(spoiled), f"config {where}"
        elif kind == "text":
            text = draw.choice(BROKEN_YAML)
        elif kind == "bytes":
            text = text[: draw.randint(1, len(text) - 5)]
        elif kind == "trained":
            trained = draw.choice(
                ["", "[]", "3", "null", "{", '{"files": 3}', '{"files": {"../../x": "a"}}', "\x00", deep(100_000)]
            )
        (run / "config.yaml").write_text(text, encoding="utf-8")
        (run / "trained.json").unlink(missing_ok=True)
        if trained is not None:
            (run / "trained.json").write_text(trained, encoding="utf-8")
        yield Case(
            f"stored: {kind} {trained or ''}"[:80], partial(load_frames, folder / "runs"), True if good else None
        )


@cases("stored folders: before the runs")
def _stored_before(draw: random.Random, folder: Path) -> Iterator[Case]:
    """Reference sums, density ratios, samples and a benchmark's manifest that hold something else. Reading them ends in values or
    in one message, and `doctor --verify` in a list."""
    from pobench.runs.verify import verify

    kept = _make_stored(folder)
    junk = (None, 3, "x", [], {}, [[]], float("nan"), -1, 10**400, "../../x", True)

    def give(read: Callable[[], Any]) -> None:
        with mock.patch.dict(os.environ, POBENCH_CACHE=str(folder / "cache")):
            verify(folder / "runs")
        read()

    while True:
        for path, (data, _) in kept.items():
            path.write_bytes(data)
        path = draw.choice(list(kept))
        data, read = kept[path]
        kind = draw.choice(["as it is", "tree", "tree", "tree", "bytes", "flip", "deep"])
        where = ""
        if kind == "tree" and path.suffix in (".json", ".jsonl"):
            first, mark, rest = data.partition(b"\n") if path.suffix == ".jsonl" else (data, b"", b"")
            value = json.loads(first)
            value.pop("seal", None)  # as of an earlier version
            spoiled, where = _spoiled_tree(draw, value, draw.choice(junk))
            path.write_bytes(json.dumps(spoiled).encode() + mark + rest)
        elif kind in ("bytes", "tree"):
            path.write_bytes(data[: draw.randrange(len(data))])
        elif kind == "flip":
            at = draw.randrange(len(data))
            path.write_bytes(data[:at] + bytes([data[at] ^ (1 << draw.randrange(8))]) + data[at + 1 :])
        elif kind == "deep":
            path.write_bytes(deep(100_000).encode())
        yield Case(f"{path.name}: {kind} {where}"[:80], partial(give, read), True if kind == "as it is" else None)


def _make_stored(folder: Path) -> dict[Path, tuple[bytes, Callable[[], Any]]]:
    """File → its bytes, and what reads it."""
    import torch

    from pobench.judging.ranking import Sample
    from pobench.model.generate import Decoding
    from pobench.results.manifest import claim, finish, holds
    from pobench.runs.sampling import Sampling
    from pobench.training.density_ratio import DensityRatios, compute_density_ratios
    from pobench.training.reference import ReferenceSums, _finish
    from pobench.types import TokenAnswer

    sums, ratios = folder / "cache/reference/0123456789ab", folder / "cache/density_ratio/0123456789ab"
    run, samples = (
        folder / "runs/tiny/dpo-0123456789ab/benchmarks/x/0123456789ab",
        folder / "runs/tiny/onpolicy-0123456789ab",
    )
    for path in (sums, ratios, run, samples):
        path.mkdir(parents=True)
    values = {bytes([i] * 32): -float(i) for i in range(5)}
    _finish(sums, values, {"causes": {"weights": "w"}, "arithmetic": "fp32", "seconds": 1.0})
    answers = [TokenAnswer(str(i), (i,), (i, 2), i % 2 > 0, 1.0) for i in range(6)]
    compute_density_ratios(ratios, answers, lambda prompts: torch.eye(len(prompts)), {"embedder": "w"})
    rows = [{"id": f"p{i}", "prompt": f"say {i}"} for i in range(3)]
    drawn = Sampling(
        rows, samples / "pairs.jsonl", {"source": "x", "digest": "y"}, Decoding(5, samples=1, precision="fp32")
    )
    drawn.append([Sample(f"p{i}", 0, f"answer {i}", 3, True) for i in range(3)], (0, 1))
    drawn.gather()
    claim(run, {"a": 1})
    (run / "answers.jsonl").write_text(dump([{"id": "a"}]))
    finish(run, "answers.jsonl")
    readers: dict[Path, Callable[[], Any]] = {
        sums: lambda: ReferenceSums.load(sums),
        ratios: lambda: DensityRatios.load(ratios),
        samples: drawn.read,
        run: lambda: holds(run, {"a": 1}, "answers.jsonl"),
    }
    found = {path: read for at, read in readers.items() for path in sorted(at.iterdir()) if path.is_file()}
    return {path: (path.read_bytes(), read) for path, read in found.items()}


@cache
def _stored_config() -> dict[str, Any]:
    """The configuration of a run of tiny, as a run's folder holds it."""
    from pobench.results.run_folder import RunFolder
    from pobench.settings.resolve import resolve

    with tempfile.TemporaryDirectory() as temporary:
        folder = RunFolder(Path(temporary), "tiny/dpo-0123456789ab")
        folder.write_config(resolve("tiny", "dpo")[0], "trained", "start-0123456789ab")
        return dict(yaml.safe_load((folder.path / "config.yaml").read_text()))


# ---------------------------------------------------------------- the campaign
class Tally(NamedTuple):
    """What became of the cases of a class. wrong: (outcome, label, words) of each that must not be."""

    counts: Counter[Outcome]
    wrong: list[tuple[Outcome, str, str]]
    seconds: float


def campaign(name: str, count: int, seed: int) -> Tally:
    """Try `count` cases of a class in a folder of their own."""
    counts, wrong = Counter[Outcome](), list[tuple[Outcome, str, str]]()
    began = resource.getrusage(resource.RUSAGE_SELF).ru_utime
    here = Path.cwd()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary).resolve() / "here"
        folder.mkdir()
        os.environ.setdefault("POBENCH_CACHE", str(Path(temporary) / "cache"))
        os.chdir(folder)
        try:
            made = CLASSES[name](random.Random(f"{seed} {name}"), folder)
            for _ in range(count):
                case = next(made)
                seen, words = outcome(case, folder)
                counts[seen] += 1
                if seen in WRONG:
                    wrong.append((seen, case.label, words))
                if (folder / "OWNED").exists():
                    wrong.append(("written", case.label, "a command of the input was run"))
                    (folder / "OWNED").unlink()
        finally:
            os.chdir(here)
    return Tally(counts, wrong, resource.getrusage(resource.RUSAGE_SELF).ru_utime - began)


def shares(count: int) -> dict[str, int]:
    """Class → its part of `count` cases."""
    each = count // len(CLASSES)
    return {name: each + (place < count % len(CLASSES)) for place, name in enumerate(CLASSES)}


def main() -> None:
    """Print a Markdown table of the classes; exit status 1 if a case went wrong."""
    parser = argparse.ArgumentParser(description="Give pobench bad input, and count what it does.")
    parser.add_argument("--count", type=int, default=3150, help="cases, of all classes together")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", help="one class alone")
    given = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    import logging
    import warnings

    warnings.filterwarnings("ignore")
    logging.disable(logging.ERROR)
    names = {given.only: given.count} if given.only else shares(given.count)
    kinds = ("refused", "accepted", *WRONG)
    print(
        "| class | cases | " + " | ".join(kinds) + " | processor seconds |\n|" + "---|" * (len(kinds) + 3), flush=True
    )
    total, wrong, seconds = Counter[Outcome](), list[tuple[Outcome, str, str]](), 0.0
    for name, count in names.items():
        tally = campaign(name, count, given.seed)
        print(
            f"| {name} | {count} | " + " | ".join(str(tally.counts[k]) for k in kinds) + f" | {tally.seconds:.1f} |",
            flush=True,
        )
        total, seconds = total + tally.counts, seconds + tally.seconds
        wrong += [(seen, f"{name}: {label}", words) for seen, label, words in tally.wrong]
    print(f"| all | {sum(names.values())} | " + " | ".join(str(total[k]) for k in kinds) + f" | {seconds:.1f} |")
    for seen, label, words in wrong:
        print(f"{seen}: {label!r}: {words[:300]!r}", file=sys.stderr)
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
