"""Recognise the layout (`Shape`) of a preference file and read its rows as preferences."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

from pobench.data.annotation_shapes import ANNOTATION_SHAPES, ROW_BY_ROW
from pobench.data.column_map import ColumnCheck, is_empty, map_columns, text_columns
from pobench.data.public_shapes import PUBLIC_SHAPES, UNPAIRED, UNPAIRED_SHAPES, Shape, better_of, named, needs
from pobench.data.row_reader import (
    CONTRADICTED,
    OUTVOTED,
    PROMPTS,
    TIE,
    Draft,
    Listed,
    RowReader,
    dense_ranks,
    number_or_none,
)
from pobench.data.rows import (
    ANSWERS,
    RANKS,
    SCORES,
    Fault,
    Found,
    Labelled,
    Message,
    Preference,
    Ranking,
    Row,
    RowStream,
    _short,
    pair_id,
    places_of_pairs,
    refuse,
    shared_start,
)
from pobench.data.spool import Mapped, Spool
from pobench.data.turns import markup_inside
from pobench.errors import PobenchError, nearest
from pobench.row_files import RowFiles
from pobench.settings.schema import PairsFrom

_TEXTS = ("response", "text", "content", "completion", "output", "generation")
_TIES = ("status", "winner", "preference", "label", "verdict", "tie", "is_tie")  # columns that may call a row a tie
_WHICH = ("preference", "label", "winner", "choice", "better", "score", "rating", "rank", "ranks", *SCORES)
_SCORE_IN_ANSWER = ("score", "overall_score", "rating", "fine-grained_score")
_CHOSEN_SCORE = re.compile(r"(?=.*(?:score|rating|reward))(.*?)chosen(.*)", re.IGNORECASE)


class _Numbered(NamedTuple):
    row: int
    id: str | None  # the row's own
    draft: Draft


# ---------------------------------------------------------------- shapes
def _read_shared(row: RowReader) -> Draft | None:
    """`chosen` and `rejected` contain the prompt: as messages, HH-RLHF transcripts, or texts with a common beginning."""
    both = [row.row["chosen"], row.row["rejected"]]
    chosen, rejected = (row.answer(name, row.row[name]) for name in ("chosen", "rejected"))
    if chosen is None or rejected is None or chosen.head or rejected.head:
        return row.pair([chosen, rejected])
    if row.other_texts() or not all(isinstance(value, str) for value in both):
        return row.no_prompt("answers without an earlier message")
    cut = shared_start(*both)
    while cut and not all(value[cut : cut + 1].isspace() for value in both):  # back to the end of a shared word
        cut -= 1
    if not both[0][:cut].strip():
        return row.fault("prompt", "missing field", "chosen and rejected that share no beginning")
    if name := markup_inside(both[0]) or markup_inside(both[0][:cut]):
        return row.templated("chosen", name, both[0])
    row.notes.append("prompt taken from the words both answers begin with")
    return Draft((Message("user", both[0][:cut]),), both[0][cut:], both[1][cut:])


def _read_alpaca(row: RowReader) -> Draft | None:
    """`preference` 1 or 2. AlpacaEval also writes values between them, and a tie as 1.5, in older files as 0."""
    preference = number_or_none(row.row["preference"])
    if preference is None or not (preference == 0 or 1 <= preference <= 2):
        return row.wrong("preference", "preference is neither 1 nor 2", row.row["preference"])
    return better_of(row, None, "output_1", "output_2", 1.5 - preference if preference else 0)


def _read_listed(row: RowReader) -> Draft | None:
    """`output: [better, worse]`."""
    value = row.row["output"]
    if not isinstance(value, list) or len(value) != 2:
        return row.wrong("output", "not a list of two answers", value)
    ignore = "data.ignore=[{}] if the first output is the better one"
    if marks := [name for name in ("generator", "generators", "model", "models", "model_name") if name in row.row]:
        got = f"`{marks[0]}` names who wrote them, and no column says which is better; {ignore.format(','.join(marks))}"
        return row.fault("output", "two outputs without a preference", got)
    if marks := [name for name in _WHICH if not is_empty(row.row.peek(name))]:
        got = f"`{marks[0]}` may say which is better; {ignore.format(','.join(marks))}"
        return row.fault("output", "two outputs beside a column that is not read", got)
    return row.pair([row.answer(f"output[{i}]", text) for i, text in enumerate(value)], row.prompt())


def _read_ratings(row: RowReader) -> Draft | None:
    """Rated or ranked answers; no pair and no list if all are equal."""
    name = next(k for k in (*ANSWERS, "response") if k in row.row)
    answers = row.row[name]
    if not isinstance(answers, list) or len(answers) < 2:
        return row.wrong(name, "not a list of two or more answers", answers)
    scores: Any
    one_scale = True  # of all rows
    if all(isinstance(answer, Mapping) for answer in answers):
        scores, one_scale = _scores_of(row, answers)
        answers = [next((a[k] for k in _TEXTS if k in a), None) for a in answers]
    else:
        scores = next((row.row[k] for k in SCORES if k in row.row), None)
    ranks = next((row.row[k] for k in RANKS if k in row.row), None)
    places = None if ranks is None else _numbers(row, name, "rank", ranks, len(answers))
    numbers = None if ranks is not None and scores is None else _numbers(row, name, "score", scores, len(answers))
    if row.faults:
        return None
    vote = numbers if places is None else [-place for place in places]
    assert vote is not None
    fields = [(f"{name}[{i}]", text) for i, text in enumerate(answers)]
    return row.ranked(fields, [vote], scores=numbers if one_scale else None)


def _numbers(row: RowReader, name: str, what: str, values: Any, count: int) -> list[float] | None:
    """One number an answer; records a fault for anything else. what: "score" or "rank"."""
    if not isinstance(values, list) or len(values) != count:
        return row.fault(name, f"not one {what} per answer", f"{count} answers, {what}s {_short(values)}")
    numbers = [number for value in values if (number := number_or_none(value)) is not None]
    if len(numbers) < count:
        return row.fault(name, f"{what} is no number", _short(next(v for v in values if number_or_none(v) is None)))
    return numbers


def _scores_of(row: RowReader, answers: Sequence[Mapping[str, Any]]) -> tuple[list[Any], bool]:
    """The scores of rated answers, and whether they are on the scale of other rows. UltraFeedback wrote some overall scores of
    1 as 10; a fine-grained score of 2 or less, on its scale from 1 to 5, gives them away. Such a row is ordered by its
    fine-grained scores."""
    fine = [number_or_none(answer.get("fine-grained_score")) for answer in answers]
    overall = [number_or_none(answer.get("overall_score")) for answer in answers]
    if any(o == 10 and f is not None and f <= 2 for o, f in zip(overall, fine, strict=True)):
        row.notes.append(
            "an overall score of 10 beside a fine-grained score of 2 or less: read by the fine-grained scores"
        )
        return list(fine), False
    return [next((a[k] for k in _SCORE_IN_ANSWER if a.get(k) is not None), None) for a in answers], True


_BOTH = (("chosen",), ("rejected",))
SHAPES = (
    *ANNOTATION_SHAPES,
    *PUBLIC_SHAPES,
    Shape(
        "preference",
        (PROMPTS, *_BOTH),
        "prompt, chosen, rejected",
        named("chosen", "rejected"),
        source="huggingface/trl, docs: dataset formats, preference with an explicit prompt",
    ),
    Shape(
        "shared prompt",
        _BOTH,
        "chosen, rejected that both begin with the prompt (messages or transcripts)",
        _read_shared,
        source="the data set's card, Anthropic/hh-rlhf; huggingface/trl, docs: dataset formats, implicit prompt",
    ),
    Shape(
        "alpaca",
        (("instruction", *PROMPTS), ("output_1",), ("output_2",), ("preference",)),
        "instruction, input, output_1, output_2, preference (1 or 2)",
        _read_alpaca,
        source="the data sets' cards, tatsu-lab/alpaca_farm and tatsu-lab/alpaca_eval",
    ),
    Shape(
        "ratings in a list",
        (PROMPTS, ANSWERS, SCORES),
        "prompt, responses, scores",
        _read_ratings,
        source="princeton-nlp/SimPO, on_policy_data_gen; argilla-io/distilabel, UltraFeedback",
    ),
    Shape(
        "ranks in a list",
        (PROMPTS, ANSWERS, RANKS),
        "prompt, responses, ranks (the lowest is the best)",
        _read_ratings,
        source="ours, for lists without ratings",
    ),
    Shape(
        "rated completions",
        (PROMPTS, ANSWERS),
        "instruction, completions with response and score",
        _read_ratings,
        source="the data set's card, openbmb/UltraFeedback",
    ),
    *UNPAIRED_SHAPES,
    Shape(
        "RRHF",
        needs("prompt", "response", "scores"),
        "prompt, response: [answer, …], scores",
        _read_ratings,
        source="GanjinZero/RRHF, data_generation/scoring_responses.py",
        fits=lambda row: isinstance(row["response"], list),
    ),
    Shape(
        "two outputs",
        (("instruction", *PROMPTS), ("output",)),
        "instruction, output: [better, worse]",
        _read_listed,
        source="hiyouga/LLaMA-Factory, data/README.md of its first releases",
        fits=lambda row: not isinstance(row.get("output"), str),  # with one output it is supervised data
    ),
)


_UNKNOWN = 255  # in place of a shape's


def shape_of(row: Mapping[str, Any]) -> Shape | None:
    """The first known shape whose fields the row has; None if no shape fits."""
    return next((shape for shape in SHAPES if not shape.missing(row) and shape.fits(row)), None)


# ---------------------------------------------------------------- recognition
Columns = Mapping[str, str | Sequence[str]]


def load_preferences(
    files: RowFiles | Path | str,
    *,
    columns: Columns | None = None,
    ignore: Sequence[str] = (),
    duplicates: Literal["drop", "keep"] = "drop",
    pairs_from: PairsFrom = "best_worst",
) -> Found:
    """`recognise` of the rows of files, which are read twice and not held.

    Raises PobenchError if a file cannot be read or none of the rows is known.
    """
    name = files.name if isinstance(files, RowFiles) else Path(files).name
    rows = RowStream(files)
    return recognise(rows, source=name, columns=columns, ignore=ignore, duplicates=duplicates, pairs_from=pairs_from)


def recognise(
    rows: Iterable[Row],
    *,
    source: str = "rows",
    columns: Columns | None = None,
    ignore: Sequence[str] = (),
    duplicates: Literal["drop", "keep"] = "drop",
    pairs_from: PairsFrom = "best_worst",
) -> Found:
    """Rows as preferences, and as the lists or single answers that they are. The file's shape is the shape of most rows; a row
    of another shape is a fault.

    columns, ignore: see `map_columns`. duplicates: "drop" keeps the first of equal rows. Duplicates are noted either way.
    pairs_from: which pairs are made of a list (`places_of_pairs`).
    Rows that contradict an earlier one (the same two answers swapped) are noted and kept. A non-empty column of
    `WITH_MEANING` that the shape does not read is a fault. Raises PobenchError if there are no rows, if `columns` names a
    column that no row has, or if no row has a known shape.

    rows: read twice; those of an iterator, which can be read once, are held. Annotations in rows of their own and unpaired rows
    are held too, as any two of them may belong together; the texts of others lie in a `Spool`.
    """
    rows = list(rows) if isinstance(rows, Iterator) else rows
    seen = _Seen.of(rows, columns or {}, ignore, source)
    shape, faults, notes, unread = seen.shape, seen.faults, defaultdict[str, list[int]](list), Counter[str]()
    drafts = _drafts(seen.fitting(rows, columns or {}, ignore), shape, ignore, faults, notes, unread)
    if shape.name == ROW_BY_ROW:
        drafts = _voted(drafts, notes)
    bare = _without_repeated_prompts(drafts, notes)
    drop = duplicates == "drop"
    answers: Sequence[Labelled] = ()
    lists: Sequence[Ranking] = ()
    if shape.name == UNPAIRED:
        labelled = _with_an_answer(bare, faults)
        answers, bare = _labelled(labelled, notes, drop), _pair_up(labelled, notes)
    different: Iterable[_Numbered] = _with_two_answers(bare, faults)
    if any(numbered.draft.listed is not None for numbered in drafts):
        different = Spool.of(different)
        lists = _rankings(different, notes, drop, noted=pairs_from != "best_worst")
    if lists and pairs_from != "best_worst":
        pairs = Spool.of(pairs_of_lists(lists, pairs_from)).or_list()
    else:
        pairs = _unique(different, notes, drop)
    faults.sort(key=lambda fault: fault.row)
    about = (dict(notes), seen.rows, shape.name, source, dict(sorted(unread.items())))
    return Found(pairs, faults, *about, lists, answers, pairs_from)


def _drafts(
    rows: Iterable[tuple[int, Mapping[str, Any]]],
    shape: Shape,
    ignore: Sequence[str],
    faults: list[Fault],
    notes: defaultdict[str, list[int]],
    unread: Counter[str],
) -> Sequence[_Numbered]:
    """What the rows of a shape say. faults, notes, unread: take what is found."""
    drafts = Spool[_Numbered]()
    for number, row in rows:
        reader = RowReader(number, row, ignore)
        scores = _scores_beside(reader)
        draft = reader.tie() if _is_tie(reader, shape, scores) else shape.read(reader)
        if draft is not None and draft.scores is None:
            draft = draft._replace(scores=scores[0] if scores else _scores_of_generated(reader, draft))
        if draft is not None and not reader.faults:
            reader.check_unread(draft)
            unread.update(reader.row.unread().keys() - {"id"})
            if not reader.faults:
                drafts.append(_Numbered(number, _own_id(row), draft))
        for note in dict.fromkeys(reader.notes) if not reader.faults else ():
            notes[note].append(number)
        faults += reader.faults
    return drafts


@dataclass
class _Seen:
    """What a first look at the rows of a file tells. shapes: of each readable row, the place of its shape in `SHAPES`, or
    `_UNKNOWN`. shape: of most."""

    rows: int
    faults: list[Fault]
    shapes: bytearray
    shape: Shape

    @classmethod
    def of(cls, rows: Iterable[Row], columns: Columns, ignore: Sequence[str], source: str) -> _Seen:
        count, faults, shapes, check = 0, list[Fault](), bytearray(), ColumnCheck(columns)
        first: tuple[int, Mapping[str, Any]] | None = None
        for number, row in rows:
            count += 1
            if isinstance(row, Fault):
                faults.append(row)
                continue
            check.see(row)
            row = map_columns(row, columns, ignore) if columns or ignore else row
            first = first or (number, row)
            own = shape_of(row)
            shapes.append(_UNKNOWN if own is None else SHAPES.index(own))
        if not count:
            raise PobenchError(f"{source}: no rows")
        check.refuse(source)
        return cls(count, faults, shapes, _shape_of_file(shapes, first, faults, source))

    def fitting(
        self, rows: Iterable[Row], columns: Columns, ignore: Sequence[str]
    ) -> Iterator[tuple[int, Mapping[str, Any]]]:
        """The rows of the file's shape; a fault for every other one."""
        shape, places = self.shape, iter(self.shapes)
        for number, row in rows:
            if isinstance(row, Fault):
                continue
            row = map_columns(row, columns, ignore) if columns or ignore else row
            place = next(places)
            own = None if place == _UNKNOWN else SHAPES[place]
            part = own is not None and own.needs and set(own.needs) <= set(shape.needs)
            if own is not None and own is not shape and not part:
                text = f"another shape than the rest of the file ({shape.example})"
                self.faults.append(Fault(number, "", text, _fields(row)))
            elif missing := shape.missing(row):
                got = [(name, _fields(row) + nearest(name, row).rstrip("?")) for name in missing]
                self.faults += [Fault(number, name, "missing field", fields) for name, fields in got]
            else:
                yield number, row


def _is_tie(reader: RowReader, shape: Shape, scores: Sequence[tuple[float, float]]) -> bool:
    """Whether the row's own columns call it a tie: equal scores of both answers, or a status or winner `tie`. Notes scores that
    contradict the order of the answers. scores: see `_scores_beside`."""
    for name in _TIES if shape.name != UNPAIRED else ():
        word = str(reader.row.peek(name)).strip().lower()
        if word in ("tie", "tied", "equal", "draw", "both") or ("tie" in name and word in ("true", "1", "1.0", "yes")):
            return True
    if any(a < b for a, b in scores):
        reader.notes.append(CONTRADICTED)
    return any(a == b for a, b in scores)


def _scores_beside(reader: RowReader) -> list[tuple[float, float]]:
    """(chosen, rejected) of every two columns, or column of two, that rate both answers, in the order of the columns; then of
    every two fields of `meta`, where the pairs of `best_against_worst` have them."""
    row = reader.row
    scores = [tuple(number_or_none(row[name]) for name in pair) for pair in _rating_names(row)]
    for name in ("rating", "ratings", "scores"):
        if name in row and "chosen" in row and isinstance(row[name], (list, tuple)) and len(row[name]) == 2:
            scores.append(tuple(sorted((number_or_none(value) for value in row[name]), key=lambda v: -(v or 0))))
    for name in ("score", "scores", "rating", "ratings", "reward", "rewards"):
        if isinstance(both := row.peek(name), Mapping) and both.keys() >= {"chosen", "rejected"}:
            scores.append((number_or_none(both["chosen"]), number_or_none(both["rejected"])))
    if isinstance(meta := row.peek("meta"), Mapping):
        scores += [tuple(number_or_none(meta[name]) for name in pair) for pair in _rating_names(meta)]
    return [(a, b) for a, b in scores if a is not None and b is not None]


def _scores_of_generated(reader: RowReader, draft: Draft) -> tuple[float, float] | None:
    """The ranker's (chosen, rejected) scores of pairs on policy, whose rows have all answers with their scores; None where one
    of the two is not among them or has none. They call no row a tie: the pair was made by them."""
    names = ("all_generated_responses", "all_rm_scores")
    if not all(isinstance(reader.row.peek(name), list) for name in names):
        return None
    texts, scores = (reader.row[name] for name in names)
    known = {str(text).strip(): number_or_none(score) for text, score in zip(texts, scores, strict=False)}
    chosen, rejected = (known.get(text.strip()) for text in (draft.chosen, draft.rejected))
    return None if chosen is None or rejected is None else (chosen, rejected)


def _rating_names(fields: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Every two names that rate the chosen and the rejected answer."""
    matches = ((name, _CHOSEN_SCORE.fullmatch(name)) for name in fields)
    pairs = [(name, f"{match[1]}rejected{match[2]}") for name, match in matches if match]
    return [pair for pair in pairs if pair[1] in fields]


def _without_repeated_prompts(drafts: Sequence[_Numbered], notes: defaultdict[str, list[int]]) -> Iterable[_Numbered]:
    """The drafts without a prompt that an answer repeats at its start, where most rows of the file repeat theirs. In files
    whose other rows do not, the answers keep their words, and the rows are noted."""
    rows = defaultdict[int, list[int]](list)  # number of answers that repeat the prompt → rows
    for numbered in drafts:
        rows[len(_repeats(numbered.draft))].append(numbered.row)
    repeating = sorted(row for answers, numbers in rows.items() if answers for row in numbers)
    if 2 * len(repeating) > len(drafts):
        for answers, numbers in rows.items():
            notes[_REPEATED[answers]] += numbers
        return map(_stripped, drafts)
    if repeating:
        notes["an answer begins with the prompt, unlike in most rows; kept as it is"] += repeating
    return drafts


def _stripped(numbered: _Numbered) -> _Numbered:
    """A draft without the prompt that its answers repeat."""
    draft = numbered.draft
    words = draft.prompt[-1].content.strip()

    def bare(text: str) -> str:
        return text.lstrip()[len(words) :].lstrip() if _begins_with(text.lstrip(), words) else text

    cut: dict[str, Any] = {name: bare(getattr(draft, name)) for name in _repeats(draft)}
    if draft.listed is not None:
        cut["listed"] = draft.listed._replace(texts=tuple(map(bare, draft.listed.texts)))
    return numbered._replace(draft=draft._replace(**cut))


_REPEATED = (
    "prompt not repeated by the answers, unlike in most rows",
    "prompt repeated at the start of one answer, taken off",
    "prompt repeated at the start of both answers, taken off",
)


def _repeats(draft: Draft) -> list[str]:
    """Which answers begin with the user's last turn."""
    asked = draft.prompt[-1].content.strip()
    return [name for name in ("chosen", "rejected") if _begins_with(getattr(draft, name).lstrip(), asked)]


def _begins_with(text: str, words: str) -> bool:
    """Whether a text begins with these words, which end where a word of the text ends."""
    behind = text[len(words) : len(words) + 1]
    return text.startswith(words) and (not behind.strip() or not words[-1].isalnum())


def _with_an_answer(drafts: Iterable[_Numbered], faults: list[Fault]) -> list[_Numbered]:
    """The drafts of single answers that are not empty; a fault for every other one."""
    kept = []
    for numbered in drafts:
        if numbered.draft.chosen.strip():
            kept.append(numbered)
        else:
            faults.append(Fault(numbered.row, "completion", "empty answer", "nothing behind the repeated prompt"))
    return kept


def _with_two_answers(drafts: Iterable[_Numbered], faults: list[Fault]) -> Iterator[_Numbered]:
    """The drafts with two different answers; a fault for every other one."""
    for numbered in drafts:
        row, _, draft = numbered
        empty = [name for name in ("chosen", "rejected") if not getattr(draft, name).strip()]
        if draft.chosen.strip() == draft.rejected.strip():
            faults.append(Fault(row, "rejected", "identical answers", _short(draft.rejected)))
        elif empty:
            faults.append(Fault(row, empty[0], "empty answer", "nothing behind the repeated prompt"))
        else:
            yield numbered


def _shape_of_file(
    shapes: bytearray, first: tuple[int, Mapping[str, Any]] | None, faults: Sequence[Fault], source: str
) -> Shape:
    """The shape of most rows, the first among equals. first: readable row, for the message."""
    counts = Counter(shapes)
    del counts[_UNKNOWN]
    if counts:
        return SHAPES[counts.most_common(1)[0][0]]
    if first is None:
        refuse(faults, source=source, rows=len(faults))
    assert first is not None
    number, row = first
    close = max(SHAPES, key=lambda shape: (len(shape.own(row)), -len(shape.missing(row))))
    if not {name for name in close.own(row) if name not in PROMPTS}:
        close = next(shape for shape in SHAPES if shape.name == "preference")
    lines = [f"  {name!r} is missing{nearest(name, row)}" for name in close.missing(row)]
    texts = [name for name in text_columns(row) if name not in close.own(row)]
    if lines and texts:
        fixes = " ".join(f"data.columns.{name}=COLUMN" for name in close.missing(row))
        lines.append(
            f"Rename or add the columns, or map them: --set {fixes}, with COLUMN one of {', '.join(map(repr, texts))}."
        )
    if not lines:  # instruction and one output
        lines = ["  'output' holds one answer; a preference needs two: a chosen and a rejected one"]
    known = "\n".join(f"  {shape.example}" for shape in SHAPES)
    raise PobenchError(
        f"{source}: no row has a known shape. Row {number} holds {_fields(row)}. The nearest shape is {close.example}:\n"
        + "\n".join(lines)
        + f"\nKnown shapes:\n{known}"
    )


def _voted(drafts: Sequence[_Numbered], notes: defaultdict[str, list[int]]) -> list[_Numbered]:
    """One draft of each task, where its annotations stand in rows of their own: the one that most of them say."""
    tasks = defaultdict[Any, list[_Numbered]](list)
    for numbered in drafts:
        answers = frozenset((numbered.draft.chosen, numbered.draft.rejected))
        tasks[numbered.id, numbered.draft.prompt, answers].append(numbered)
    kept = []
    for rows in tasks.values():
        agreeing = [numbered for numbered in rows if numbered.draft.content == rows[0].draft.content]
        other = [numbered for numbered in rows if numbered.draft.content != rows[0].draft.content]
        if len(agreeing) == len(other):
            notes[TIE] += [numbered.row for numbered in rows]
            continue
        kept.append(max(agreeing, other, key=len)[0])
        if other:
            notes[OUTVOTED].append(kept[-1].row)
        if len(rows) > 1:
            notes["another annotation of a task"] += [numbered.row for numbered in rows if numbered is not kept[-1]]
    return sorted(kept, key=lambda numbered: numbered.row)


UNMET = "single answer without a partner at its prompt: in no pair"


def _pair_up(drafts: Sequence[_Numbered], notes: dict[str, list[int]]) -> list[_Numbered]:
    """Pair the first good answer to a prompt with the first bad one, the second with the second; note the rest."""
    sides: dict[tuple[Message, ...], tuple[list[_Numbered], list[_Numbered]]] = {}
    for numbered in drafts:
        sides.setdefault(numbered.draft.prompt, ([], []))[0 if numbered.draft.label else 1].append(numbered)
    pairs, unpaired = [], []
    for good, bad in sides.values():
        matches = list(zip(good, bad, strict=False))
        pairs += [_Numbered(g.row, None, Draft(*g.draft[:2], b.draft.chosen)) for g, b in matches]
        unpaired += [numbered.row for numbered in good[len(matches) :] + bad[len(matches) :]]
    if unpaired:
        notes[UNMET] = sorted(unpaired)
    return sorted(pairs, key=lambda pair: pair.row)


def _labelled(drafts: Iterable[_Numbered], notes: defaultdict[str, list[int]], drop: bool) -> Sequence[Labelled]:
    """Single answers without duplicates (where `drop`), each under an id of its own; see `_unique`."""
    kept, seen = Spool[tuple[str, _Numbered]](), set[bytes]()
    for numbered in drafts:
        row, own, draft = numbered
        content = _digest((draft.prompt, draft.chosen, draft.label))
        if content in seen:
            notes["duplicated row"].append(row)
            if drop:
                continue
        elif _digest((draft.prompt, draft.chosen, not draft.label)) in seen:
            notes["contradicts an earlier row"].append(row)
        seen.add(content)
        kept.append((own or content[:8].hex(), numbered))

    def labelled(name: str, numbered: _Numbered) -> Labelled:
        row, _, draft = numbered
        return Labelled(name, draft.prompt, draft.chosen, bool(draft.label), row, draft.score)

    return _each_named(kept, labelled)


REPEATED_ANSWER = "an answer left out of its list: it repeats another"


def _rankings(
    drafts: Iterable[_Numbered], notes: defaultdict[str, list[int]], drop: bool, *, noted: bool
) -> Sequence[Ranking]:
    """The drafts' lists without duplicates (where `drop`), which are noted unless their pairs are. A list's id is that of the
    pair of its best and worst answer."""
    kept, seen = Spool[tuple[str, tuple[_Numbered, Listed]]](), set[bytes]()
    for numbered in drafts:
        row, own, draft = numbered
        if draft.listed is None:
            continue
        listed = _different(draft.listed)
        if len(listed.texts) < len(draft.listed.texts):
            notes[REPEATED_ANSWER].append(row)
        content = _digest((draft.prompt, sorted(zip(listed.texts, listed.ranks, strict=True))))
        if content in seen and noted:
            notes["duplicated row"].append(row)
        if not (drop and content in seen):
            kept.append((own or _digest(draft[:3])[:8].hex(), (numbered, listed)))
        seen.add(content)

    def ranking(name: str, entry: tuple[_Numbered, Listed]) -> Ranking:
        (row, _, draft), listed = entry
        return Ranking(name, draft.prompt, listed.texts, listed.ranks, row, listed.scores)

    return _each_named(kept, ranking)


def _different(listed: Listed) -> Listed:
    """The list without answers that repeat another. Of equal ones the first stays; the best and the worst answer always do."""
    ((best, worst),) = places_of_pairs(listed.ranks, "best_worst")
    seen = dict[str, int]()
    for place in (best, worst, *range(len(listed.texts))):
        seen.setdefault(listed.texts[place].strip(), place)
    places = sorted(seen.values())
    texts, scores = listed.texts, listed.scores
    ranks = dense_ranks([listed.ranks[i] for i in places])
    return Listed(tuple(texts[i] for i in places), ranks, scores and tuple(scores[i] for i in places))


def pairs_of_lists(lists: Iterable[Ranking], how: PairsFrom) -> Iterator[Preference]:
    """The pairs of lists, list by list; the ids are those that `read_items` gives them."""
    for one in lists:
        for i, j in places_of_pairs(one.ranks, how):
            scores = None if one.scores is None else (one.scores[i], one.scores[j])
            yield Preference(pair_id(one.id, i, j), one.prompt, one.answers[i], one.answers[j], one.row, scores)


def _unique(drafts: Iterable[_Numbered], notes: defaultdict[str, list[int]], drop: bool) -> Sequence[Preference]:
    """Preferences without duplicates (where `drop`), each under an id of its own: the row's, or the first 16 hex digits of a
    hash of its text; see `_each_named`."""
    kept, seen = Spool[tuple[str, _Numbered]](), set[bytes]()
    for numbered in drafts:
        row, own, draft = numbered
        content = _digest(draft[:3])
        if content in seen:
            notes["duplicated row"].append(row)
            if drop:
                continue
        elif _digest((draft.prompt, draft.rejected, draft.chosen)) in seen:
            notes["contradicts an earlier row"].append(row)
        seen.add(content)
        kept.append((own or content[:8].hex(), numbered))

    def preference(name: str, numbered: _Numbered) -> Preference:
        row, _, draft = numbered
        return Preference(name, *draft[:3], row, draft.scores)

    return _each_named(kept, preference)


Entry = TypeVar("Entry")
Made = TypeVar("Made")


def _each_named(entries: Spool[tuple[str, Entry]], make: Callable[[str, Entry], Made]) -> Sequence[Made]:
    """What `make` makes of every entry and a name of its own.

    A repeated name names a group: its members are `name#1`, `name#2`, … in row order.
    """
    once, repeated = set[str](), set[str]()
    for name, _ in entries:
        (repeated if name in once else once).add(name)
    ids = _ids_of_groups((name for name, _ in entries), once - repeated, repeated) if repeated else {}

    def made(place: int) -> Made:
        name, entry = entries[place]
        return make(ids.get(place, name), entry)

    rows = Mapped(made, range(len(entries)))
    return list(rows) if entries.in_memory else rows


def _ids_of_groups(names: Iterable[str], taken: set[str], repeated: set[str]) -> dict[int, str]:
    """Place → id of the rows whose name is repeated. taken: the names of the others."""
    found, count = dict[int, str](), Counter[str]()
    for place, group in enumerate(names):
        if group in repeated:
            while (name := f"{group}#{count[group] + 1}") in taken:  # another row's own id
                count[group] += 1
            count[group] += 1
            taken.add(name)
            found[place] = name
    return found


# ---------------------------------------------------------------- words for messages
def _digest(content: Sequence[Any]) -> bytes:
    return hashlib.sha256(json.dumps(content, ensure_ascii=True).encode()).digest()[:16]


def _own_id(row: Mapping[str, Any]) -> str | None:
    """The row's `id` if it is a number or printable text, as it appears in files, tables and messages."""
    own = row.get("id")
    usable = isinstance(own, (str, int)) and not isinstance(own, bool) and str(own).strip() and str(own).isprintable()
    return str(own) if usable else None


def _fields(row: Mapping[str, Any]) -> str:
    return "the fields " + (", ".join(_short(k, 24) for k in list(row)[:12]) or "(none)")
