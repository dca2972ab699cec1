"""Exports of annotation tools, in which people have compared answers: Argilla and Label Studio.

Only submitted annotations count. Several annotators of one row vote (`RowReader.best_and_worst`).
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from itertools import zip_longest
from typing import Any

from pobench.data.column_map import is_empty, text_columns
from pobench.data.public_shapes import Shape, better_of, needs
from pobench.data.row_reader import PROMPTS, Draft, RowReader, number_or_none
from pobench.data.rows import _short

_NOT_SUBMITTED = "a draft, discarded or skipped annotation left out"
_INCOMPLETE = "an incomplete annotation left out"
_RATING = "-rating"  # ANSWER-rating is the question that rates ANSWER
_AS_ROWS = "write rows of prompt, answers: [{answer, rank}]"


# ---------------------------------------------------------------- Argilla
def _questions(row: Mapping[str, Any]) -> dict[str, list[Mapping[str, Any]]]:
    """Question → its responses {user_id, value, status}. Argilla 1 keeps them in the question's column, Argilla 2 spreads them
    over three."""
    questions, cells = dict[str, list[Mapping[str, Any]]](), dict(row)
    for name, value in cells.items():
        if name.endswith(".responses") and f"{name}.status" in cells:
            columns = (cells.get(f"{name}{part}") or () for part in (".users", "", ".status"))
            questions[name.removesuffix(".responses")] = [
                {"user_id": user, "value": given, "status": status} for user, given, status in zip_longest(*columns)
            ]
            continue
        responses = _objects(value, {"user_id", "value", "status"})
        if responses or (responses == [] and f"{name}-suggestion" in cells):
            questions[name] = responses
    return questions


def _objects(value: Any, keys: AbstractSet[str]) -> list[Mapping[str, Any]] | None:
    """A list of objects that have these keys; None for any other cell. Parquet may keep such a list as one object of lists."""
    if isinstance(value, Mapping) and value.keys() == keys and all(isinstance(cells, list) for cells in value.values()):
        value = [dict(zip(value, cells, strict=True)) for cells in zip_longest(*value.values())]
    found = isinstance(value, list) and all(isinstance(each, Mapping) and each.keys() >= keys for each in value)
    return value if found else None


def _is_argilla(row: Mapping[str, Any]) -> bool:
    """Whether a row has Argilla's questions; beside a chosen and a rejected answer, whether one of them compares answers."""
    questions = _questions(row)
    named = row.keys() >= {"chosen", "rejected"}
    return _is_nested(row) or bool(questions and (not named or any(_comparing(row, questions))))


def _comparing(
    row: Mapping[str, Any], questions: Mapping[str, Sequence[Mapping[str, Any]]]
) -> tuple[list[str], list[str]]:
    """The ranking questions, and the rating questions of two or more answers."""
    rankings = [name for name, given in questions.items() if any(_ranks(r["value"]) for r in given)]
    ratings = [name for name in questions if name.endswith(_RATING) and name.removesuffix(_RATING) in row]
    return rankings, ratings if len(ratings) > 1 else []


def _is_nested(row: Mapping[str, Any]) -> bool:
    """Whether a row is what Argilla 2's `to_json` writes."""
    return isinstance(row.get("fields"), Mapping) and isinstance(row.get("responses"), Mapping)


def _ranks(value: Any) -> dict[str, float | None] | None:
    """Answer → rank, 1 for the best; None if the value is no ranking."""
    places = _objects(value, {"rank", "value"})
    return {str(place["value"]): number_or_none(place["rank"]) for place in places} if places else None


def _column(row: Mapping[str, Any], name: str) -> str:
    """The column that a ranking means: of this name, else the only one that differs in case, spaces, - and _ alone."""
    plain = re.compile(r"[\s_-]+")
    alike = [column for column in row if plain.sub("", column).lower() == plain.sub("", name).lower()]
    return alike[0] if name not in row and len(alike) == 1 else name


def _read_argilla(row: RowReader) -> Draft | None:
    """A ranking question whose values are the names of fields, or a rating question `ANSWER-rating` for each answer. The
    scores are the means of its ratings over the annotators who rated all answers; ranks are no ratings."""
    if _is_nested(row.row):
        fix = "export `dataset.records.to_datasets()`, which has it"
        return row.fault("responses", f"responses without a status (submitted, draft, discarded); {fix}")
    questions = _questions(row.row)
    if not any(questions.values()):
        return row.unjudged()
    votes = _votes(row, questions)
    if votes is None:
        return None
    votes = [{_column(row.row, name): number for name, number in vote.items()} for vote in votes]
    unknown = [name for vote in votes for name in vote if name not in row.row]
    if unknown:
        fix = f"call the columns as the ranking does, or {_AS_ROWS}"
        return row.fault(unknown[0], f"a ranked answer that is no column; {fix}", f"columns {_short([*row.row])}")
    names = [name for name, text in row.row.items() if any(name in vote for vote in votes) and not is_empty(text)]
    given = [[number for name in names if (number := vote.get(name)) is not None] for vote in votes]
    complete = [vote for vote in given if len(vote) == len(names) > 1]
    if len(complete) < len(votes):
        row.notes.append(_INCOMPLETE)
    if not complete:
        return row.unjudged()
    for name in names:
        row.row.get(name)
    if not any(name in row.row for name in PROMPTS):
        return row.no_prompt("compared answers without a prompt")
    ranked, _ = _comparing(row.row, questions)
    means = None if ranked else [sum(numbers) / len(complete) for numbers in zip(*complete, strict=True)]
    return row.ranked([(name, row.row[name]) for name in names], complete, scores=means)


def _votes(
    row: RowReader, questions: Mapping[str, Sequence[Mapping[str, Any]]]
) -> list[dict[str, float | None]] | None:
    """Of each annotator whose response is submitted: answer → a number, more is better. Records a fault if no question compares
    answers, or if several do."""
    rankings, ratings = _comparing(row.row, questions)
    for name, given in questions.items():
        answers = next((r["value"] for r in given if isinstance(r["value"], list) and r["value"]), [None])
        if f"{name}.responses" in row.row and all(isinstance(answer, str) and answer in row.row for answer in answers):
            lost = "Argilla 2 exports the answers of a ranking without their ranks, in an order that means nothing"
            fix = (
                f"data.ignore=[{name}.responses] reads the ratings"
                if ratings
                else f"take the ranks from the server's API and {_AS_ROWS}"
            )
            return row.fault(name, f"{lost}; {fix}", _short(answers))
    if not rankings and not ratings:
        fix = f"no ranking, and no question ANSWER{_RATING} for each answer; write rows of prompt, chosen, rejected"
        return row.fault("", fix, f"the questions {', '.join(questions)}")
    if len(rankings) + bool(ratings) > 1:
        names = [*rankings, *ratings]
        fix = f"data.ignore=[{','.join(names[1:])}] leaves only the first"
        return row.fault(names[0], f"several questions compare the answers; {fix}", ", ".join(names))
    votes = defaultdict[Any, dict[str, float | None]](dict)
    for name in rankings or ratings:
        for part in ("", ".responses", ".responses.users", ".responses.status"):
            row.row.get(f"{name}{part}")
        for place, response in enumerate(questions[name]):
            if response["status"] != "submitted":
                row.notes.append(_NOT_SUBMITTED)
            elif rankings:
                ranks = _ranks(response["value"]) or {}
                votes[place] = {answer: None if rank is None else -rank for answer, rank in ranks.items()}
            else:
                votes[response.get("user_id")][name.removesuffix(_RATING)] = number_or_none(response["value"])
    return list(votes.values())


# ---------------------------------------------------------------- Label Studio
def _side(row: RowReader, field: str, values: Sequence[Any]) -> float | None:
    """What one annotation says: 1 if the left answer is better, -1 if the right one; a fault for anything else."""
    selected = [value["selected"] for value in values if isinstance(value, Mapping) and "selected" in value]
    if not selected or any(side not in ("left", "right") for side in selected):
        return row.fault(field, "selected is neither left nor right", _short(selected or values))
    if len(set(selected)) > 1:
        return row.fault(field, "one annotation selects both answers; keep one Pairwise control", _short(selected))
    return 1.0 if selected[0] == "left" else -1.0


def _read_label_studio(row: RowReader) -> Draft | None:
    """A task: `data`, and annotations with `selected: left | right`."""
    data, annotations = row.row.opened("data"), row.row["annotations"]
    if not isinstance(data, Mapping) or any(name not in data for name in ("prompt", "answer1", "answer2")):
        return row.fault("data", "without prompt, answer1, answer2", _short(data))
    if not isinstance(annotations, list) or not all(isinstance(a, Mapping) for a in annotations):
        return row.wrong("annotations", "not a list of annotations", annotations)
    done = [a for a in annotations if not (a.get("was_cancelled") or a.get("skipped"))]
    if len(done) < len(annotations):
        row.notes.append(_NOT_SUBMITTED)
    results = [[r.get("value") for r in a.get("result") or () if isinstance(r, Mapping)] for a in done]
    if not all(results):
        row.notes.append(_INCOMPLETE)
    sides = [_side(row, "annotations", values) for values in results if values]
    votes = [(side, -side) for side in sides if side is not None]
    if len(votes) < len(sides) or not votes:
        return None if sides else row.unjudged()
    if (places := row.best_and_worst(votes)) is None:
        return None
    names = ("data.answer1", "data.answer2")
    return row.pair([row.answer(names[i], row.row[names[i]]) for i in places], row.prompt("data.prompt"))


def _read_label_studio_min(row: RowReader) -> Draft | None:
    """One annotation of a task; the control's column holds `[{"selected": "left"}]`, in CSV as text."""
    controls = {name: values for name, cell in row.row.items() if (values := _pairwise(cell))}
    if is_empty(row.row["annotation_id"]):
        return row.unjudged()
    if not controls:
        asked = [name for name in text_columns(row.row) if name not in ("prompt", "answer1", "answer2")]
        fix = 'no column holds a Pairwise choice such as [{"selected": "left"}]; write rows of prompt, chosen, rejected'
        return row.fault("", fix, f"text in {', '.join(asked) or 'no other column'}")
    if len(controls) > 1:
        fix = f"several controls compare the answers; data.ignore=[{','.join([*controls][1:])}] leaves only the first"
        return row.fault(next(iter(controls)), fix)
    ((control, values),) = controls.items()
    row.row.get(control)
    return better_of(row, "prompt", "answer1", "answer2", _side(row, control, values))


def _pairwise(cell: Any) -> list[Mapping[str, Any]]:
    """The values of a Pairwise control; [] for any other cell."""
    try:
        values = json.loads(cell) if isinstance(cell, str) and "selected" in cell else cell
    except (ValueError, RecursionError):
        return []
    found = isinstance(values, list) and all(isinstance(value, Mapping) and "selected" in value for value in values)
    return values if found else []


ROW_BY_ROW = "Label Studio, JSON-MIN"  # every annotation of a task stands in a row of its own
ANNOTATION_SHAPES = (
    Shape(
        "Argilla",
        (),
        "prompt, ANSWER, ANSWER, and a question with responses of user_id, value, status: a ranking, or ANSWER-rating",
        _read_argilla,
        source="argilla-io/argilla 1.29, feedback/integrations/huggingface/dataset.py, and for_preference_modeling: 1 is the "
        "best; the data sets argilla/oasst_response_comparison and argilla/mistral-vs-llama; 2.x, records/_io/_generic.py, "
        "and responses.py and issues 5677 and 5712 on its lost ranks; argilla-io/distilabel, steps/argilla/preference.py: "
        "ANSWER-rating",
        fits=_is_argilla,
    ),
    Shape(
        "Label Studio",
        needs("data", "annotations"),
        "data with prompt, answer1, answer2; annotations with selected: left or right",
        _read_label_studio,
        source="HumanSignal/label-studio, its template Human Preference collection for RLHF",
    ),
    Shape(
        ROW_BY_ROW,
        needs("prompt", "answer1", "answer2", "annotation_id"),
        'prompt, answer1, answer2, annotation_id, and the control\'s column with [{"selected": "left"}]',
        _read_label_studio_min,
        source="HumanSignal/label-studio-sdk, converter/converter.py: convert_to_json_min",
    ),
)
