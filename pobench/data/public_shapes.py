"""The layouts of public preference files, each with the few lines that read it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pobench.data.row_reader import CONTRADICTED, PROMPTS, Answer, Draft, RowReader, number_or_none
from pobench.data.rows import _short, shared_start

_LEFT_OUT = "turns behind the first different answer left out"


def _any(row: Mapping[str, Any]) -> bool:
    return True


@dataclass(frozen=True)
class Shape:
    """A known layout of columns. needs: groups of names; a row must have one name of each group. source: where it is described.
    fits: what else must hold of a row, where names do not suffice."""

    name: str
    needs: tuple[tuple[str, ...], ...]
    example: str
    read: Callable[[RowReader], Draft | None]
    source: str
    fits: Callable[[Mapping[str, Any]], bool] = _any

    def missing(self, row: Mapping[str, Any]) -> list[str]:
        """The first name of each group of which the row has none."""
        return [group[0] for group in self.needs if not any(name in row for name in group)]

    def own(self, row: Mapping[str, Any]) -> list[str]:
        """The row's name in each group of which it has one."""
        return [
            next(name for name in group if name in row) for group in self.needs if any(name in row for name in group)
        ]


def needs(*names: str) -> tuple[tuple[str, ...], ...]:
    """Groups of one name each."""
    return tuple((name,) for name in names)


def better_of(
    row: RowReader,
    prompt: str | None,
    first: str,
    second: str,
    choice: float | None,
    scores: tuple[float | None, float | None] = (None, None),
) -> Draft | None:
    """The pair of two columns. choice: above 0 the first is better, below 0 the second, 0 is a tie, None a fault. scores: their
    ratings, None where there is none."""
    if choice is None:
        return None
    if choice == 0:
        return row.tie()
    names, (better, worse) = ((first, second), scores) if choice > 0 else ((second, first), scores[::-1])
    rated = None if better is None or worse is None else (better, worse)
    return row.pair([row.answer(name, row.row[name]) for name in names], row.prompt(prompt), rated)


def _index(row: RowReader, field: str) -> int | None:
    """A column that holds 0 or 1."""
    number = number_or_none(row.row[field])
    return int(number) if number in (0, 1) else row.wrong(field, "neither 0 nor 1", row.row[field])


# ---------------------------------------------------------------- two answers and a verdict
def _read_pku(row: RowReader) -> Draft | None:
    better = _index(row, "better_response_id")
    return better_of(row, None, "response_0", "response_1", None if better is None else 1 - 2 * better)


def _read_shp(row: RowReader) -> Draft | None:
    """`labels` 1: answer A got more votes."""
    label = _index(row, "labels")
    a, b = (number_or_none(row.row.get(name)) for name in ("score_A", "score_B"))
    if label is not None and a is not None and b is not None and (a - b) * (2 * label - 1) < 0:
        row.notes.append(CONTRADICTED)
    return better_of(row, "history", "human_ref_A", "human_ref_B", None if label is None else 2 * label - 1, (a, b))


def _read_helpsteer2(row: RowReader) -> Draft | None:
    """A negative strength: the first is better."""
    return better_of(row, None, "response_1", "response_2", _strength(row, "preference_strength"))


def _read_helpsteer3(row: RowReader) -> Draft | None:
    return better_of(row, "context", "response1", "response2", _strength(row, "overall_preference"))


def _strength(row: RowReader, field: str) -> float | None:
    """HelpSteer's strength from -3 (the first is much better) to 3, with its sign turned."""
    strength = number_or_none(row.row[field])
    if strength is None or abs(strength) > 3:
        return row.wrong(field, "not from -3 to 3", row.row[field])
    return -strength


def _read_webgpt(row: RowReader) -> Draft | None:
    """Scores in [-1, 1], of which one is the other's negative."""
    first, second = scores = row.number_of("score_0"), row.number_of("score_1")
    question = row.row.opened("question")
    prompt = "question.full_text" if isinstance(question, Mapping) and "full_text" in question else "question"
    choice = None if first is None or second is None else first - second
    return better_of(row, prompt, "answer_0", "answer_1", choice, scores)


def _winner(row: RowReader) -> float | None:
    """1: model a won, -1: model b, 0: a tie of any kind."""
    value = row.row["winner"]
    word = str(value).strip().lower()
    if word.startswith("tie") or word in ("both_bad", "bothbad", "both"):
        return 0
    sides = {"model_a": 1, "a": 1, "model_b": -1, "b": -1}
    return sides[word] if word in sides else row.wrong("winner", "winner is neither model_a, model_b nor a tie", value)


def _read_arena(row: RowReader) -> Draft | None:
    """The last turn that both conversations share is the prompt's last."""
    winner = _winner(row)
    if winner == 0:
        return row.tie()
    names = ("conversation_a", "conversation_b") if (winner or 0) > 0 else ("conversation_b", "conversation_a")
    talks = [talk for name in names if (talk := row.messages(name, row.row[name])) is not None]
    if winner is None or len(talks) < 2:
        return None
    shared = shared_start(*talks)
    while shared and talks[0][shared - 1].role != "user":
        shared -= 1
    ends = [talk[shared : shared + 1] for talk in talks]
    if not shared or not all(end and end[0].role == "assistant" for end in ends):
        return row.fault("conversation_b", "prompt differs between the two conversations", _short(talks[0][:1]))
    if any(len(talk) > shared + 1 for talk in talks):
        row.notes.append(_LEFT_OUT)
    return row.pair([Answer((), end[0].content) for end in ends], talks[0][:shared])


def _read_kaggle(row: RowReader) -> Draft | None:
    """`prompt`, `response_a`, `response_b` hold lists of turns as JSON text, or plain text."""
    if "winner" in row.row:
        winner = _winner(row)
    else:
        votes = [_index(row, name) for name in ("winner_model_a", "winner_model_b")]
        winner = None if None in votes else (votes[0] or 0) - (votes[1] or 0)
    asked, first, second = _turn_lists([row.row[name] for name in ("prompt", "response_a", "response_b")])
    if winner is None or winner == 0:
        return row.tie() if winner == 0 else None
    if not len(asked) == len(first) == len(second):
        return row.fault("response_a", "not one answer for each question", f"{len(asked)}, {len(first)}, {len(second)}")
    same = 0
    while same < len(asked) - 1 and first[same] == second[same]:
        same += 1
    if same < len(asked) - 1:
        row.notes.append(_LEFT_OUT)
    turns = [
        {"role": r, "content": t}
        for pair in zip(asked[:same], first, strict=False)
        for r, t in zip(("user", "assistant"), pair, strict=True)
    ]
    prompt = row.messages("prompt", [*turns, {"role": "user", "content": asked[same]}], "empty prompt")
    answers = (("response_a", first[same]), ("response_b", second[same]))
    return row.pair(
        [Answer((), text) if (text := row.text(n, t)) else None for n, t in answers[:: int(winner)]], prompt
    )


def _turn_lists(cells: Sequence[Any]) -> list[list[Any]]:
    """The turns of each cell: lists, lists written as JSON where all cells are, or else one text each."""
    decoded = list[Any]()
    for cell in cells:
        try:
            decoded.append(json.loads(cell) if isinstance(cell, str) else cell)
        except (ValueError, RecursionError):
            decoded.append(cell)
    lists = all(isinstance(cell, (list, tuple)) and cell for cell in decoded)
    return [list(cell) for cell in decoded] if lists else [[cell] for cell in cells]


# ---------------------------------------------------------------- better and worse under other names
def named(chosen: str, rejected: str, prompt: str | None = None) -> Callable[[RowReader], Draft | None]:
    """Reads two columns that hold the better and the worse answer. prompt: the prompt's, by default the first of `PROMPTS`."""

    def read(row: RowReader) -> Draft | None:
        return row.pair([row.answer(name, row.row[name]) for name in (chosen, rejected)], row.prompt(prompt))

    return read


def _read_openai(row: RowReader) -> Draft | None:
    """OpenAI and Azure: the prompt is `input.messages`."""
    given = row.row.opened("input")
    if not isinstance(given, Mapping) or "messages" not in given:
        return row.fault("input", "without messages; data.columns.prompt=input, if it is the prompt", _short(given))
    return named("preferred_output", "non_preferred_output", "input.messages")(row)


def _read_swift(row: RowReader) -> Draft | None:
    """ms-swift: the last turn of `messages` is the better answer."""
    chosen = row.answer("messages", row.row["messages"])
    name = next(n for n in ("rejected_response", "rejected_messages") if n in row.row)
    rejected = row.answer(name, row.row[name])
    return None if chosen is None else row.pair([chosen._replace(head=()), rejected], chosen.head)


# ---------------------------------------------------------------- ranked lists
def _ranked(prompt: str | None, listed: str, *texts: str) -> Callable[[RowReader], Draft | None]:
    """Reads a list of objects with the text under one of these names and `rank`, of which the best has the lowest, or `score`,
    of which it has the highest; `score` rates the answers, where all have one."""

    def read(row: RowReader) -> Draft | None:
        answers = row.row[listed]
        if not isinstance(answers, list) or len(answers) < 2 or not all(isinstance(a, Mapping) for a in answers):
            return row.wrong(listed, "not a list of two or more ranked answers", answers)
        scores = [score for answer in answers if (score := number_or_none(answer.get("score"))) is not None]
        rated = scores if len(scores) == len(answers) else None
        votes = rated
        if rated is None or any("rank" in answer for answer in answers):
            votes = [-rank for answer in answers if (rank := number_or_none(answer.get("rank"))) is not None]
        if votes is None or len(votes) < len(answers):
            return row.fault(listed, "rank is no number", _short([answer.get("rank") for answer in answers]))
        names = [next((name for name in texts if name in answer), texts[0]) for answer in answers]
        fields = [(f"{listed}[{i}].{name}", answers[i].get(name)) for i, name in enumerate(names)]
        return row.ranked(fields, [votes], prompt, rated)

    return read


def _of_objects(listed: str) -> Callable[[Mapping[str, Any]], bool]:
    """Whether a column does not hold a list of texts, which another shape reads."""

    def fits(row: Mapping[str, Any]) -> bool:
        answers = row[listed]
        return not (isinstance(answers, (list, tuple)) and answers and isinstance(answers[0], str))

    return fits


# ---------------------------------------------------------------- one answer and a label
def label_of(row: Mapping[str, Any]) -> bool | None:
    """Whether an unpaired answer is good; None if its label says neither."""
    value = next((row[name] for name in LABELS if name in row), None)
    if (number := number_or_none(value)) is not None:
        return {1.0: True, 0.0: False, -1.0: False}.get(number)
    return {"true": True, "desirable": True, "false": False, "undesirable": False}.get(str(value).strip().lower())


def _read_unpaired(row: RowReader) -> Draft | None:
    """One answer, put on both sides; pairing later uses the label to choose the side. `score` rates it, if it is a number."""
    column = next(name for name in LABELS if name in row.row)
    value, label = row.row[column], label_of(row.row)
    if label is None:
        row.wrong(column, "label is neither true nor false (1 or 0, desirable or undesirable)", value)
    score = number_or_none(row.row.peek("score"))
    if score is not None:
        row.row.get("score")
    name = next(n for n in ("completion", "messages", "conversations", "output") if n in row.row)
    answer = row.answer(name, row.row[name])
    if name in ("messages", "conversations"):
        draft = None if answer is None else row.pair([answer, answer])
    else:
        draft = row.pair([answer, answer], row.prompt())
    return None if draft is None else draft._replace(label=label, score=score)


LABELS = ("label", "kto_tag")
UNPAIRED = "unpaired"
PUBLIC_SHAPES = (
    Shape(
        "OpenAI preferences",
        needs("input", "preferred_output", "non_preferred_output"),
        "input.messages, preferred_output, non_preferred_output",
        _read_openai,
        source="platform.openai.com/docs/guides/direct-preference-optimization",
    ),
    Shape(
        "ms-swift",
        (("messages",), ("rejected_response", "rejected_messages")),
        "messages, rejected_response",
        _read_swift,
        source="modelscope/ms-swift, docs: custom datasets, RLHF",
    ),
    Shape(
        "ms-swift, query",
        needs("query", "response", "rejected_response"),
        "query, response, rejected_response",
        named("response", "rejected_response", "query"),
        source="modelscope/ms-swift, docs: custom datasets, RLHF",
    ),
    Shape(
        "PKU-SafeRLHF",
        needs("prompt", "response_0", "response_1", "better_response_id"),
        "prompt, response_0, response_1, better_response_id (0 or 1)",
        _read_pku,
        source="the data set's card, PKU-Alignment/PKU-SafeRLHF",
    ),
    Shape(
        "SHP",
        needs("history", "human_ref_A", "human_ref_B", "labels"),
        "history, human_ref_A, human_ref_B, labels",
        _read_shp,
        source="the data set's card, stanfordnlp/SHP",
    ),
    Shape(
        "HelpSteer2",
        needs("prompt", "response_1", "response_2", "preference_strength"),
        "prompt, response_1, response_2, preference_strength (negative: the first is better)",
        _read_helpsteer2,
        source="the data set's card, nvidia/HelpSteer2, its folder preference",
    ),
    Shape(
        "HelpSteer3",
        needs("context", "response1", "response2", "overall_preference"),
        "context, response1, response2, overall_preference (negative: the first is better)",
        _read_helpsteer3,
        source="the data set's card, nvidia/HelpSteer3",
    ),
    Shape(
        "WebGPT",
        needs("question", "answer_0", "answer_1", "score_0", "score_1"),
        "question, answer_0, answer_1, score_0, score_1",
        _read_webgpt,
        source="the data set's card, openai/webgpt_comparisons",
    ),
    Shape(
        "arena",
        needs("conversation_a", "conversation_b", "winner"),
        "conversation_a, conversation_b, winner",
        _read_arena,
        source="the data set's card, lmsys/chatbot_arena_conversations",
    ),
    Shape(
        "arena of Kaggle",
        (*needs("prompt", "response_a", "response_b"), ("winner_model_a", "winner"), ("winner_model_b", "winner")),
        "prompt, response_a, response_b, winner_model_a, winner_model_b",
        _read_kaggle,
        source="Kaggle, LMSYS - Chatbot Arena Human Preference Predictions",
    ),
    Shape(
        "Nectar",
        needs("prompt", "answers"),
        "prompt, answers with answer (or text), rank or score, or both",
        _ranked("prompt", "answers", "answer", "text"),
        source="the data set's card, berkeley-nest/Nectar; what `pobench data convert --unit lists` writes",
        fits=_of_objects("answers"),
    ),
    Shape(
        "NeMo-RL",
        needs("context", "completions"),
        "context, completions with completion and rank",
        _ranked("context", "completions", "completion"),
        source="NVIDIA-NeMo/RL, docs/guides/dpo.md",
    ),
    Shape(
        "NeMo-Aligner",
        (PROMPTS, *needs("chosen_response", "rejected_response")),
        "prompt, chosen_response, rejected_response",
        named("chosen_response", "rejected_response"),
        source="NVIDIA/NeMo-Aligner, docs: DPO",
    ),
    Shape(
        "Stack Exchange pairs",
        needs("question", "response_j", "response_k"),
        "question, response_j (better), response_k",
        named("response_j", "response_k"),
        source="the data set's card, lvwerra/stack-exchange-paired",
    ),
    Shape(
        "Orca pairs of Argilla",
        needs("input", "chosen", "rejected", "system", "generations"),
        "system, input, chosen, rejected, generations",
        named("chosen", "rejected", "input"),
        source="the data set's card, argilla/distilabel-intel-orca-dpo-pairs",
    ),
)
UNPAIRED_SHAPES = (
    Shape(
        UNPAIRED,
        (PROMPTS, ("completion",), ("label",)),
        "prompt, completion, label (true or false)",
        _read_unpaired,
        source="huggingface/trl, docs: dataset formats, unpaired preference",
    ),
    Shape(
        UNPAIRED,
        (("messages", "conversations"), LABELS),
        "messages, label or kto_tag (true or false)",
        _read_unpaired,
        source="hiyouga/LLaMA-Factory, data/README.md: sharegpt format, KTO",
    ),
    Shape(
        UNPAIRED,
        needs("instruction", "output", "kto_tag"),
        "instruction, output, kto_tag (true or false)",
        _read_unpaired,
        source="hiyouga/LLaMA-Factory, data/README.md: alpaca format, KTO",
    ),
)
