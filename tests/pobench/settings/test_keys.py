"""Every key of a setting is described, and what is said of it is what the schema does."""

from __future__ import annotations

import ast
import inspect
import math
import re

from pydantic import BaseModel, ValidationError

from pobench.settings import schema
from pobench.settings.keys import key_sections, meanings
from pobench.settings.resolve import SETTABLE
from pobench.settings.schema import Section, TrainConfig

KINDS = [kind for kind in vars(schema).values() if isinstance(kind, type) and issubclass(kind, Section)]


def test_no_field_of_a_section_lacks_its_meaning() -> None:
    assert len(KINDS) > 12
    lacking = [(k.__name__, name) for k in KINDS for name in k.model_fields if len(meanings(k).get(name, "")) < 8]
    assert lacking == []


def test_the_test_of_meanings_sees_a_field_without_one() -> None:
    assert set(meanings(type("Bare", (BaseModel,), {"__annotations__": {"field": int}}))) == set()


def test_no_text_of_a_section_stands_below_something_that_is_no_field() -> None:
    """A text behind a comment or a method would be lost without a word."""
    for kind in KINDS:
        body = ast.parse(inspect.getsource(kind)).body[0].body  # type: ignore[attr-defined]
        texts = [node.value.value for node in body[1:] if isinstance(node, ast.Expr)]
        assert {" ".join(text.split()) for text in texts} <= set(meanings(kind).values()), kind.__name__


def test_every_settable_section_is_among_the_keys_and_says_who_reads_it() -> None:
    sections = {section.name: section for section in key_sections()}
    for name, kind in SETTABLE.items():
        assert [key.name for key in sections[name].keys] == [f"{name}.{field}" for field in kind.model_fields]
        assert sections[name].read_by and sections[name].about


def test_a_default_is_allowed_and_a_value_beyond_a_printed_end_is_not() -> None:
    beyond = {"≥": lambda end: end - 1, ">": lambda end: end, "≤": lambda end: end + 1, "<": lambda end: end}
    tried = 0
    for key in next(section for section in key_sections() if section.name == "train").keys:
        name = key.name.removeprefix("train.")
        for sign, end in re.findall(r"([≥>≤<]) ([\d,.]+)", key.allowed):
            value = beyond[sign](float(end.strip(",").replace(",", "")))
            try:
                TrainConfig.model_validate({"lr": 1e-6, name: int(value) if math.floor(value) == value else value})
            except ValidationError:
                tried += 1
            else:
                raise AssertionError(f"{key.name} = {value} is allowed, and the page says {key.allowed}")
    assert tried > 15


def test_a_key_decides_a_result_as_the_causes_say() -> None:
    sections = {section.name: section for section in key_sections()}
    decides = {key.name: key.decides for key in sections["train"].keys}
    causes = TrainConfig(lr=1e-6, reference="every_step", value_learning_rate=1e-6).causes()
    assert {name.removeprefix("train.") for name, yes in decides.items() if yes} == set(causes)
