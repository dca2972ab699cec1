"""Every key of a setting as data, read from the schema: what it means, its allowed values and its default."""

from __future__ import annotations

import json
import typing
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from pydantic import BaseModel
from pydantic_core import to_jsonable_python

from pobench.settings.schema import RUNTIME, Section, Setting, TunedConfig


class Key(NamedTuple):
    """One key. name: as `--set` takes it; `data.sources[].weight` is one of each entry of a list. default: as YAML writes it;
    "" where a setting must say it, and of a section, whose keys have their own. decides: whether it decides a result."""

    name: str
    allowed: str
    default: str
    decides: bool
    meaning: str


class KeySection(NamedTuple):
    """A section and its keys. name: "" is the file itself. read_by: for people."""

    name: str
    about: str
    read_by: str
    keys: tuple[Key, ...]


def key_sections() -> list[KeySection]:
    """All sections in the order of the schema, each behind the one that holds it."""
    return [*_sections("", Setting), *_sections("losses.NAME.tuned", TunedConfig)]


def meanings(kind: type[BaseModel]) -> dict[str, str]:
    """Key of a section → what it means, on one line; keys of which nothing is written are left out."""
    return {name: " ".join(f.description.split()) for name, f in kind.model_fields.items() if f.description}


def section_within(kind: type[BaseModel], name: str) -> type[BaseModel] | None:
    """The schema of the section that a key holds, or of each entry of its list; None for a plain value."""
    annotation = kind.model_fields[name].annotation
    kinds = (annotation, *typing.get_args(annotation))
    return next((k for k in kinds if isinstance(k, type) and issubclass(k, BaseModel)), None)


def _sections(name: str, kind: type[Section]) -> Iterator[KeySection]:
    shown, meaning = kind.model_json_schema()["properties"], meanings(kind)
    before = f"{name}." if name else ""
    keys = [
        Key(f"{before}{key}", _allowed(shown[key]), _default(kind, key), RUNTIME not in field.metadata, meaning[key])
        for key, field in kind.model_fields.items()
    ]
    yield KeySection(name, " ".join((kind.__doc__ or "").split()), kind.read_by, tuple(keys))
    for key in kind.model_fields:
        inner = section_within(kind, key)
        if inner is not None and issubclass(inner, Section):
            yield from _sections(before + key + ("[]" if shown[key].get("type") == "array" else ""), inner)


def _default(kind: type[Section], key: str) -> str:
    field = kind.model_fields[key]
    if field.is_required() or field.validate_default or isinstance(field.default, BaseModel):
        return ""
    default = field.get_default(call_default_factory=True, validated_data={})  # that may depend on other keys
    return json.dumps(to_jsonable_python(default))


NUMBERS = {"integer": "whole number", "number": "number"}
SIGNS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
MOST = 10**9  # an end this far off, which many whole numbers have, is not printed


def _allowed(schema: Mapping[str, Any]) -> str:
    """The values that a JSON schema allows, in words."""
    if "$ref" in schema:
        return "a section"
    if "anyOf" in schema:
        return " or ".join(map(_allowed, schema["anyOf"]))
    if "const" in schema or "enum" in schema:
        return ", ".join(schema.get("enum", [schema.get("const")]))
    kind = schema["type"]
    if kind == "array":
        inner = _allowed(schema["items"])
        return "list of " + {"a section": "sections", "whole number": "whole numbers"}.get(inner, inner)
    if kind not in NUMBERS:
        return {"boolean": "true, false", "string": "text", "object": "mapping", "null": "null"}[kind]
    ends = [f"{sign} {schema[end]:,.12g}" for end, sign in SIGNS.items() if end in schema and abs(schema[end]) < MOST]
    return " ".join([NUMBERS[kind], ", ".join(ends)]).strip()
