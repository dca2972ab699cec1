"""Reading preference files: every known shape gives the same preference, and no bad row goes unnamed."""

from __future__ import annotations

import csv
import gzip
import json
import string
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pobench.data.prompts import prompt_rows
from pobench.data.rows import Fault, Found, Message, read_rows, refuse
from pobench.data.shapes import UNMET, load_preferences, recognise
from pobench.errors import PobenchError

SHARED = Path(__file__).parents[3] / "../shared/data"
QUESTION, GOOD, BAD = "Why is the sky blue?", "Air scatters blue light most.", "It mirrors the sea."
USER = {"role": "user", "content": QUESTION}


def said(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def write_lines(path: Path, *lines: Any) -> Path:
    raw = [line if isinstance(line, bytes) else json.dumps(line, ensure_ascii=False).encode() for line in lines]
    path.write_bytes(b"\n".join(raw) + b"\n")
    return path


def found_in(*rows: dict[str, Any]) -> Found:
    return recognise(enumerate(rows, start=1))


def faults_of(row: dict[str, Any]) -> list[Fault]:
    """The faults of one row in a file whose other row is good."""
    return [f for f in found_in({"prompt": "Hello?", "chosen": "Yes.", "rejected": "No."}, row).faults if f.row == 2]


# ---------------------------------------------------------------- shapes

SHAPES: dict[str, list[dict[str, Any]]] = {
    "strings": [{"prompt": QUESTION, "chosen": GOOD, "rejected": BAD}],
    "prompt as messages": [{"prompt": [USER], "chosen": GOOD, "rejected": BAD}],
    "all as messages": [{"prompt": [USER], "chosen": [said(GOOD)], "rejected": [said(BAD)]}],
    "shared messages": [{"chosen": [USER, said(GOOD)], "rejected": [USER, said(BAD)]}],
    "shared messages and the prompt": [
        {"prompt": QUESTION, "prompt_id": "7", "chosen": [USER, said(GOOD)], "rejected": [USER, said(BAD)]}
    ],
    "explicit messages that answers repeat": [
        {"prompt": [USER], "chosen": [USER, said(GOOD)], "rejected": [USER, said(BAD)]}
    ],
    "from and value": [
        {
            "conversations": [{"from": "human", "value": QUESTION}],
            "chosen": {"from": "gpt", "value": GOOD},
            "rejected": {"from": "gpt", "value": BAD},
        }
    ],
    "transcripts": [
        {
            "chosen": f"\n\nHuman: {QUESTION}\n\nAssistant: {GOOD}",
            "rejected": f"\n\nHuman: {QUESTION}\n\nAssistant: {BAD}",
        }
    ],
    "transcript prompt": [{"prompt": f"\n\nHuman: {QUESTION}\n\nAssistant:", "chosen": GOOD, "rejected": BAD}],
    "answers that repeat a string prompt": [
        {"prompt": QUESTION, "chosen": f"{QUESTION} {GOOD}", "rejected": f"{QUESTION}\n{BAD}"}
    ],
    "one beginning": [{"chosen": f"{QUESTION}\n{GOOD}", "rejected": f"{QUESTION}\n{BAD}"}],
    "question": [{"question": QUESTION, "chosen": GOOD, "rejected": BAD}],
    "alpaca 1": [{"instruction": QUESTION, "input": "", "output_1": GOOD, "output_2": BAD, "preference": 1}],
    "alpaca 2": [{"instruction": QUESTION, "output_1": BAD, "output_2": GOOD, "preference": 1.99}],
    "two outputs": [{"instruction": QUESTION, "input": None, "output": [GOOD, BAD]}],
    "scores": [{"prompt": QUESTION, "responses": ["Who knows.", BAD, GOOD], "scores": [2, 1, 3]}],
    "rated completions": [
        {
            "instruction": QUESTION,
            "completions": [{"response": BAD, "overall_score": 4.5}, {"response": GOOD, "overall_score": "8"}],
        }
    ],
    "unpaired": [
        {"prompt": QUESTION, "completion": GOOD, "label": True},
        {"prompt": QUESTION, "completion": BAD, "label": False},
    ],
    "text parts": [
        {"prompt": [{"role": "user", "content": [{"type": "text", "text": QUESTION}]}], "chosen": GOOD, "rejected": BAD}
    ],
}


@pytest.mark.parametrize("shape", SHAPES)
def test_every_known_shape_gives_the_same_preference(shape: str) -> None:
    found = found_in(*SHAPES[shape])
    assert found.faults == []
    (preference,) = found.preferences
    assert preference.prompt == (Message("user", QUESTION),)
    assert (preference.chosen.strip(), preference.rejected.strip(), preference.row) == (GOOD, BAD, 1)


def test_a_system_message_may_stand_first_as_a_message_or_a_field_even_empty() -> None:
    for system in ("Be brief.", ""):
        row = {"prompt": [{"role": "system", "content": system}, USER], "chosen": GOOD, "rejected": BAD}
        assert found_in(row).preferences[0].prompt == (Message("system", system), Message("user", QUESTION))
    row = {"system": "Be brief.", "question": QUESTION, "chosen": [USER, said(GOOD)], "rejected": [USER, said(BAD)]}
    assert found_in(row).preferences[0].prompt == (Message("system", "Be brief."), Message("user", QUESTION))


def test_an_alpaca_input_follows_its_instruction() -> None:
    row = {"instruction": "Translate.", "input": "Guten Tag", "output": ["Good day", "Hello"]}
    assert found_in(row).preferences[0].prompt[0].content == "Translate.\n\nGuten Tag"


def test_a_transcript_of_several_turns_keeps_them_all() -> None:
    start = "\n\nHuman: Hi\n\nAssistant: Hello!\n\nHuman: And now?\n\nAssistant:"
    (preference,) = found_in({"chosen": start + " Now this.", "rejected": start + " Now that."}).preferences
    assert preference.prompt == (Message("user", "Hi"), Message("assistant", "Hello!"), Message("user", "And now?"))


def test_texts_with_one_beginning_are_cut_at_the_end_of_a_shared_word() -> None:
    (preference,) = found_in({"chosen": "The sky is blue.", "rejected": "The sky is blackish."}).preferences
    assert preference.prompt[0].content == "The sky is"  # not "The sky is bl"
    assert (preference.chosen, preference.rejected) == (" blue.", " blackish.")


def test_answers_keep_their_words_when_only_some_rows_begin_with_the_prompt() -> None:
    rows = [
        {"prompt": "Hi", "chosen": "Hi there", "rejected": "Hi you"},
        {"prompt": "Why?", "chosen": "Because.", "rejected": "No."},
    ]
    assert found_in(*rows).preferences[0].chosen == "Hi there"


def test_a_bad_row_does_not_hide_that_the_file_repeats_its_prompts() -> None:
    rows = [
        {"prompt": "Why?", "chosen": "Why? Because.", "rejected": "Why? No."},
        {"prompt": "Why?", "chosen": None, "rejected": "Why? No."},
    ]
    assert found_in(*rows).preferences[0].chosen == "Because."


def test_ties_are_left_out_and_noted() -> None:
    rows = [
        {"prompt": "a", "responses": ["x", "y"], "scores": [1, 1]},
        {"prompt": "b", "responses": ["x", "y", "z"], "scores": [1, 2, 2]},
    ]
    found = found_in(*rows)
    assert found.notes == {"tie": [1]} and not found.faults
    assert found.preferences[0].chosen == "y"  # the first of the two best
    alpaca = {"instruction": "a", "output_1": "x", "output_2": "y", "preference": 1.5}
    assert found_in(alpaca).notes == {"tie": [1]}


def test_unpaired_rows_meet_within_their_prompt_and_the_rest_is_noted() -> None:
    rows = [
        {"prompt": "a", "completion": "a+", "label": "True"},
        {"prompt": "b", "completion": "b+", "label": 1},
        {"prompt": "a", "completion": "a-", "label": 0},
        {"prompt": "a", "completion": "a--", "label": False},
    ]
    found = found_in(*rows)
    assert [(p.chosen, p.rejected, p.row) for p in found.preferences] == [("a+", "a-", 1)]
    assert found.notes == {UNMET: [2, 4]}


def test_unpaired_rows_that_never_meet_stay_single_answers() -> None:
    rows = [{"prompt": "a", "completion": "x", "label": True}, {"prompt": "b", "completion": "y", "label": False}]
    found = found_in(*rows)
    assert not found.preferences and [(a.answer, a.label) for a in found.answers] == [("x", True), ("y", False)]


# ---------------------------------------------------------------- bad rows


@pytest.mark.parametrize(
    ("change", "field", "problem"),
    [
        ({"chosen": "  \n"}, "chosen", "empty answer"),
        ({"rejected": None}, "rejected", "null"),
        ({"chosen": 7}, "chosen", "not text"),
        ({"prompt": " "}, "prompt", "empty prompt"),
        ({"prompt": []}, "prompt", "empty prompt"),
        ({"rejected": f" {GOOD}"}, "rejected", "identical answers"),
        ({"prompt": [USER, said("Hm.")]}, "prompt", "wrong role order"),
        ({"prompt": [said("Hm."), USER]}, "prompt", "wrong role order"),
        ({"prompt": [USER, {"role": "system", "content": "x"}, USER]}, "prompt", "wrong role order"),
        ({"prompt": [{"role": "tool", "content": "x"}, USER]}, "prompt[0]", "unknown role"),
        ({"prompt": [{"role": ["user"], "content": "x"}]}, "prompt", "unknown role"),
        ({"prompt": ["Why?"]}, "prompt", "not a message"),
        ({"chosen": [USER]}, "chosen", "wrong role order"),
        ({"chosen": [said("")]}, "chosen", "empty answer"),
        ({"chosen": []}, "chosen", "empty answer"),
        ({"chosen": "\ud800 x"}, "chosen", "broken UTF-8"),
        ({"chosen": "[{'role': 'assistant', 'content': 'x'}]"}, "chosen", "chat messages written as text"),
        ({"chosen": [said("x"), USER, said("y")], "rejected": [USER, said("z")]}, "rejected", "prompt differs"),
        ({"chosen": [USER, said("x")], "rejected": [USER, said("y")]}, "prompt", "prompt differs from the one inside"),
    ],
)
def test_a_bad_row_is_named_by_field_and_problem(change: dict[str, Any], field: str, problem: str) -> None:
    base = {"prompt": "Another question?", "chosen": GOOD, "rejected": BAD}
    (fault,) = faults_of({**base, **change})
    assert (fault.row, fault.field) == (2, field)
    assert fault.problem.startswith(problem)


def test_all_faults_of_one_row_are_named() -> None:
    assert [(f.field, f.problem) for f in faults_of({"prompt": "", "chosen": None, "rejected": " "})] == [
        ("chosen", "null"),
        ("rejected", "empty answer"),
        ("prompt", "empty prompt"),
    ]


def test_a_missing_field_is_named_with_the_field_that_was_probably_meant() -> None:
    (fault,) = faults_of({"prompt": "Why?", "choosen": "x", "rejected": "y"})
    assert (fault.field, fault.problem) == ("chosen", "missing field")
    assert "did you mean 'choosen'" in fault.got
    # without its prompt the row would fit another known shape, but it is the prompt that is missing
    (fault,) = faults_of({"chosen": "x", "rejected": "y"})
    assert (fault.field, fault.problem) == ("prompt", "missing field")


def test_a_row_of_another_shape_is_a_fault() -> None:
    (fault,) = faults_of({"instruction": "Why?", "output_1": "x", "output_2": "y", "preference": 1})
    assert fault.problem.startswith("another shape than the rest of the file")


def test_an_unknown_shape_is_refused_with_the_fields_found_and_the_nearest_shape() -> None:
    with pytest.raises(PobenchError) as refused:
        found_in({"prompt": "Why?", "chosen": "x", "regected": "y"})
    message = str(refused.value)
    assert "Row 1 holds the fields 'prompt', 'chosen', 'regected'" in message
    assert "'rejected' is missing; did you mean 'regected'?" in message
    assert "prompt, completion, label" in message
    with pytest.raises(PobenchError, match="a preference needs two"):
        found_in({"instruction": "Why?", "output": "Because."})
    with pytest.raises(PobenchError, match="no row has a known shape"):
        found_in({"a": 1})
    with pytest.raises(PobenchError, match="no rows"):
        found_in()


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"prompt": "a", "responses": ["x"], "scores": [1]}, "not a list of two or more answers"),
        ({"prompt": "a", "responses": ["x", "y"], "scores": [1]}, "not one score per answer"),
        ({"prompt": "a", "responses": ["x", "y"], "scores": [1, "N/A"]}, "score is no number"),
        ({"prompt": "a", "responses": ["x", "y"], "scores": [1, float("nan")]}, "score is no number"),
        ({"prompt": "a", "output_1": "x", "output_2": "y", "preference": 3}, "preference is neither 1 nor 2"),
        ({"prompt": "a", "output_1": "x", "output_2": "y", "preference": None}, "null"),
        ({"prompt": "a", "output": ["x"]}, "not a list of two answers"),
        ({"prompt": "a", "completion": "x", "label": "perhaps"}, "label is neither true nor false"),
        ({"chosen": "abc", "rejected": "xyz"}, "missing field"),
        ({"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: c\n\nAssistant: d"}, "prompt differs"),
        ({"chosen": "\n\nHuman: a\n\nAssistant:", "rejected": "\n\nHuman: a\n\nAssistant: d"}, "empty answer"),
    ],
)
def test_other_shapes_name_their_faults_too(row: dict[str, Any], problem: str) -> None:
    assert [f.problem.startswith(problem) for f in found_in(row).faults] == [True]


def test_ten_kinds_of_bad_rows_make_one_message_that_lists_them_all(tmp_path: Path) -> None:
    good = {"prompt": "Why?", "chosen": "Because.", "rejected": "No."}
    lines = [
        good,
        {"prompt": "Why?", "chosen": "x"},
        {**good, "chosen": " "},
        {**good, "rejected": "Because."},
        {**good, "chosen": 3},
        {**good, "rejected": None},
        {**good, "prompt": ""},
        {**good, "prompt": [USER, said("x")]},
        {"prompt": [USER], "chosen": [USER, said("x")], "rejected": [{**USER, "content": "Eh?"}, said("y")]},
        b'{"prompt": "Why?", "chosen": ',
        b'{"prompt": "\xff", "chosen": "x", "rejected": "y"}',
        [1, 2],
    ]
    found = load_preferences(write_lines(tmp_path / "bad.jsonl", *lines))
    assert [p.row for p in found.preferences] == [1]
    with pytest.raises(PobenchError) as refused:
        refuse(found.faults, source=found.source, rows=found.rows)
    message = str(refused.value)
    assert message.startswith("bad.jsonl: 11 of 12 rows are bad")
    for row, problem in {
        2: "missing field", 3: "empty answer", 4: "identical answers", 5: "not text", 6: "null", 7: "empty prompt",
        8: "wrong role order", 9: "prompt differs", 10: "broken JSON", 11: "broken UTF-8", 12: "not a row",
    }.items():  # fmt: skip
        (line,) = [line for line in message.splitlines() if line.startswith((f"  row {row},", f"  row {row}:"))]
        assert problem in line


def test_a_long_list_of_faults_is_cut_and_counted() -> None:
    faults = [Fault(i, "chosen", "empty answer", "''") for i in range(1, 51)]
    with pytest.raises(PobenchError) as refused:
        refuse(faults, source="x", rows=60)
    assert "and 30 more" in str(refused.value) and "empty answer 50" in str(refused.value)
    refuse([], source="x", rows=60)


def test_untrusted_text_is_escaped_in_messages() -> None:
    (fault,) = faults_of({"prompt": "Why?", "chosen": ["\x1b[2J\u202e"], "rejected": "y"})
    assert "\x1b" not in str(fault) and "\u202e" not in str(fault)


# ---------------------------------------------------------------- duplicates and ids


def test_duplicates_are_noted_and_the_first_is_kept() -> None:
    row = {"prompt": "Why?", "chosen": "x", "rejected": "y"}
    swapped = {"prompt": "Why?", "chosen": "y", "rejected": "x"}
    found = found_in(row, row, swapped)
    assert [p.row for p in found.preferences] == [1, 3]
    assert found.notes == {"duplicated row": [2], "contradicts an earlier row": [3]}
    kept = recognise(enumerate([row, row], start=1), duplicates="keep").preferences
    assert len({p.id for p in kept}) == len(kept) == 2


def test_ids_come_from_the_row_or_its_text_and_are_unique() -> None:
    rows = [
        {"id": i, "prompt": p, "chosen": "x", "rejected": "y"}
        for i, p in [("a", "1"), ("a", "2"), (7, "3"), (None, "4")]
    ]
    ids = [p.id for p in found_in(*rows).preferences]
    assert ids[:3] == ["a#1", "a#2", "7"] and len(set(ids)) == 4
    assert found_in({**rows[0], "id": "\x1b[2J\ud800"}).preferences[0].id.isalnum()  # no id that could do harm
    assert found_in(*reversed(rows)).preferences[0].id == ids[3]  # a hash of the text: the place does not matter


def test_a_repeated_id_names_a_group_and_its_pairs_are_numbered_in_row_order() -> None:
    rows = [
        {"id": i, "prompt": "Why?", "chosen": f"x{n}", "rejected": "y"}
        for n, i in enumerate(["a", "b", "a", "a#2", "a"])
    ]
    found = found_in(*rows, rows[1])  # a duplicate is dropped before ids are counted: b stays b
    assert [p.id for p in found.preferences] == ["a#1", "b", "a#3", "a#2", "a#4"]  # a#2 is a row's own
    kept = recognise(enumerate([*rows[:2], rows[1]], start=1), duplicates="keep").preferences
    assert [p.id for p in kept] == ["a", "b#1", "b#2"]


def test_two_prompts_with_one_id_are_a_bad_row_and_a_repeated_prompt_counts_once(tmp_path) -> None:
    rows = [
        {"id": "q", "prompt": "Why?"},
        {"prompt": "How?"},
        {"id": "q", "prompt": [{"role": "user", "content": "Why?"}]},
    ]
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    read = prompt_rows(str(path), None, "answers.source")
    assert [(row["id"], row["messages"][0]["content"]) for row in read] == [("q", "Why?"), ("2", "How?")]
    path.write_text("".join(json.dumps(row) + "\n" for row in [*rows, {"id": "q", "prompt": "When?"}]))
    with pytest.raises(PobenchError, match=r"row 4: id 'q' is the id of another prompt, in row 1$"):
        prompt_rows(str(path), None, "answers.source")


# ---------------------------------------------------------------- files

ROW = {"prompt": [USER], "chosen": [said(GOOD)], "rejected": [said(BAD)]}


def _csv(path: Path) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(ROW))
        writer.writeheader()
        writer.writerow({name: json.dumps(value) for name, value in ROW.items()})


@pytest.mark.parametrize(
    ("name", "write", "number"),
    [
        ("rows.jsonl", lambda p: p.write_text("\n" + json.dumps(ROW)), 2),
        ("bom.jsonl", lambda p: p.write_text(json.dumps(ROW), encoding="utf-8-sig"), 1),
        ("crlf.jsonl", lambda p: p.write_bytes(json.dumps(ROW).encode() + b"\r\n"), 1),
        ("rows.jsonl.gz", lambda p: p.write_bytes(gzip.compress(json.dumps(ROW).encode())), 1),
        ("rows.json", lambda p: p.write_text(json.dumps([ROW])), 1),
        ("wrapped.json", lambda p: p.write_text(json.dumps({"data": [ROW]})), 1),
        ("lines.json", lambda p: p.write_text(json.dumps(ROW) + "\n" + json.dumps(ROW)), 1),
        ("rows.parquet", lambda p: pd.DataFrame([ROW]).to_parquet(p), 1),
        ("rows.csv", _csv, 2),
    ],
)
def test_every_kind_of_file_gives_the_same_rows(
    tmp_path: Path, name: str, write: Callable[[Path], Any], number: int
) -> None:
    write(tmp_path / name)
    found = load_preferences(tmp_path / name)
    assert found.faults == []
    (preference,) = found.preferences
    assert (preference.chosen, preference.row) == (GOOD, number)


def test_an_answer_that_looks_like_json_stays_text_in_csv(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text('prompt,chosen,rejected\nList two.,"[1, 2]","{""a"": 1}"\n')
    assert load_preferences(tmp_path / "rows.csv").preferences[0].chosen == "[1, 2]"


def test_a_csv_row_with_too_many_or_too_few_cells_is_a_fault(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("prompt,chosen,rejected\na,b,c\na,b,c,d\na,b\n")
    faults = load_preferences(tmp_path / "rows.csv").faults
    assert [(f.row, f.problem) for f in faults] == [(3, "more cells than columns"), (4, "null")]


def test_what_a_spreadsheet_writes_as_text_is_read_as_a_list_or_an_object(tmp_path: Path) -> None:
    asked = json.dumps({"full_text": "Why?"})
    cells = {"question": asked, "answer_0": "So.", "answer_1": "No.", "score_0": 1, "score_1": -1, "images": "[]"}
    pd.DataFrame([cells]).to_csv(tmp_path / "rows.csv", index=False)
    (pair,) = load_preferences(tmp_path / "rows.csv").preferences
    assert (pair.prompt, pair.chosen) == ((("user", "Why?"),), "So.")


@pytest.mark.parametrize(
    ("name", "raw"),
    [
        ("utf16.csv", "prompt,chosen,rejected\nä?,b,c\n".encode("utf-16")),
        ("zipped.jsonl", gzip.compress(b'{"prompt": "\\u00e4?", "chosen": "b", "rejected": "c"}')),
    ],
    ids=["UTF-16", "gzip"],
)
def test_a_file_is_read_by_its_first_bytes(name: str, raw: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(raw)
    assert load_preferences(tmp_path / name).preferences[0].prompt[0].content == "ä?"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("rows.csv", "prompt,chosen,chosen,rejected\na,b,x,c\n"),
        ("rows.jsonl", '{"prompt": "a", "chosen": "b", "chosen": "x", "rejected": "c"}\n'),
        ("rows.json", '[{"prompt": "a", "chosen": "b", "chosen": "x", "rejected": "c"}]'),
    ],
)
def test_a_name_that_stands_twice_is_refused(name: str, text: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(PobenchError, match=r"two columns are called 'chosen'|the key 'chosen' stands twice"):
        found = load_preferences(tmp_path / name)
        refuse(found.faults, source=name, rows=found.rows)


def test_broken_utf8_in_a_json_list_or_csv_is_a_fault_of_its_row_alone(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_bytes(b"prompt,chosen,rejected\na,b,c\na,\xff,c\n")
    (tmp_path / "rows.json").write_bytes(
        b'[{"prompt":"a","chosen":"b","rejected":"c"},{"prompt":"a","chosen":"\xff","rejected":"c"}]'
    )
    for name, row in (("rows.csv", 3), ("rows.json", 2)):
        found = load_preferences(tmp_path / name)
        assert [(f.row, f.problem) for f in found.faults] == [(row, "broken UTF-8")]
        assert len(found.preferences) == 1


def test_files_that_cannot_be_read_are_refused_plainly(tmp_path: Path) -> None:
    (tmp_path / "rows.parquet").write_text("no parquet")
    (tmp_path / "rows.jsonl.gz").write_text("no gzip")
    (tmp_path / "rows.json").write_text("[1, ")
    (tmp_path / "rows.txt").write_text("x")
    (tmp_path / "empty.jsonl").write_text("")
    for name in ("rows.parquet", "rows.jsonl.gz", "rows.json", "rows.txt", "empty.jsonl", "absent.jsonl"):
        with pytest.raises(PobenchError, match=name):
            load_preferences(tmp_path / name)


def test_a_file_of_broken_lines_alone_names_them(tmp_path: Path) -> None:
    with pytest.raises(PobenchError, match="row 2: broken JSON"):
        load_preferences(write_lines(tmp_path / "x.jsonl", b"{", b"{"))


# ---------------------------------------------------------------- properties

TEXT = st.text(st.characters(codec="utf-8"), min_size=1, max_size=40).filter(lambda t: bool(t.strip()))


@given(prompt=TEXT, chosen=TEXT, rejected=TEXT, follow=TEXT)
@settings(max_examples=60)
def test_text_survives_writing_and_reading(
    tmp_path_factory: pytest.TempPathFactory, prompt: str, chosen: str, rejected: str, follow: str
) -> None:
    prompt, answers = f"? {prompt}", (f"! {chosen} 1", f"! {rejected} 2")  # never equal, never the prompt again
    turns = [{"role": "user", "content": prompt}, said(follow), {"role": "user", "content": prompt}]
    row = {"prompt": turns, "chosen": answers[0], "rejected": [*turns, said(answers[1])]}
    path = write_lines(tmp_path_factory.mktemp("rows") / "rows.jsonl", row)
    (preference,) = load_preferences(path).preferences
    assert preference.prompt == (Message("user", prompt), Message("assistant", follow), Message("user", prompt))
    assert (preference.chosen, preference.rejected) == answers


@given(cells=st.tuples(TEXT, TEXT, TEXT))
@settings(max_examples=60)
def test_text_survives_a_spreadsheet(tmp_path_factory: pytest.TempPathFactory, cells: tuple[str, str, str]) -> None:
    row = dict(zip(("prompt", "chosen", "rejected"), (f"x{cell}" for cell in cells), strict=True))
    path = tmp_path_factory.mktemp("rows") / "rows.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(row))
        writer.writeheader()
        writer.writerows([row, row])
    assert read_rows(path) == [(2, row), (3, row)]


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(st.sampled_from(string.printable + "é\ud800"), max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["role", "content", "from", "value", "score", "text"]), inner, max_size=3)
        | st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant", "system"]), "content": inner})
    ),
    max_leaves=8,
)
FIELDS = [
    "prompt",
    "chosen",
    "rejected",
    "instruction",
    "input",
    "system",
    "completion",
    "label",
    "responses",
    "scores",
]
FIELDS += ["output", "output_1", "output_2", "preference", "completions", "conversations", "id"]


@given(rows=st.lists(st.dictionaries(st.sampled_from(FIELDS), JSON, min_size=2), min_size=1, max_size=4))
@settings(max_examples=80)
def test_no_row_however_odd_crashes_the_reader(rows: list[dict[str, Any]]) -> None:
    try:
        found = found_in(*rows)
    except PobenchError:
        return
    for preference in found.preferences:
        assert preference.chosen.strip() and preference.rejected.strip()
        assert preference.prompt[-1].role == "user"
    for fault in found.faults:
        str(fault).encode("utf-8")  # printable as it stands


# ---------------------------------------------------------------- real files


@pytest.mark.parametrize(("name", "rows"), [("hh_helpful", 1651), ("llmbar", 883)])
def test_the_shared_preference_files_load_without_a_fault(name: str, rows: int) -> None:
    path = SHARED / f"preferences/{name}.jsonl"
    if not path.is_file():
        pytest.skip(f"no shared data: {name}.jsonl")
    found = load_preferences(path)
    assert (found.rows, found.faults) == (rows, [])
    assert len(found.preferences) + len(found.notes.get("duplicated row", [])) == rows


def test_alpaca_evals_annotations_load_as_preferences() -> None:
    path = SHARED / "alpaca_eval/results/alpaca-7b/annotations.json"
    if not path.is_file():
        pytest.skip("no shared data: annotations.json")
    found = load_preferences(path)
    assert found.faults == [] and len(found.preferences) + len(found.notes["tie"]) == found.rows == 805


def test_row_numbers_are_the_ones_of_read_rows(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "x.jsonl", b"", {"a": 1}, b"", {"a": 2})
    assert [number for number, _ in read_rows(path)] == [2, 4]
