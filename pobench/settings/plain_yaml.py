"""The one reader of what people write in YAML: settings, studies, grids and the values of `--set`.

Plain values are read by the core schema of YAML 1.2 (its specification, section 10.3.2), as other current tools read them.
PyYAML follows YAML 1.1, which takes `1:30` for 90, `010` for 8, `1_000` for 1000, `yes` for true, `2024-01-01` for a date and
`5e-6` for text. Here the first three, `yes` and the date are text, `010` is 10 and `5e-6` a number.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any

from pobench.errors import PobenchError

if TYPE_CHECKING:
    import yaml

MOST_NODES, DEEPEST = 100_000, 64  # of one YAML, aliases followed; those that ship have some 150 values, five deep
_TAG = "tag:yaml.org,2002:"
_PLAIN = ("str", "int", "float", "bool", "null", "map", "seq", "merge")
_CORE = {  # what an unquoted scalar is, the first that matches; else text. Merge keys (`<<`) are kept from YAML 1.1.
    "null": r"null|Null|NULL|~|",
    "bool": r"true|True|TRUE|false|False|FALSE",
    "int": r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+",
    "float": r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
    "merge": r"<<",
}


@cache
def _loader() -> type[Any]:
    """PyYAML's safe loader with the core schema."""
    import yaml  # here, so that completion of names does without it

    base: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

    forms = [(_TAG + kind, re.compile(rf"(?:{form})\Z")) for kind, form in _CORE.items()]
    Core: Any = type("Core", (base,), {"yaml_implicit_resolvers": {None: forms}})

    def value(kind: str, read: Any) -> Any:
        def construct(loader: Any, node: yaml.Node) -> Any:
            text = loader.construct_scalar(node)
            if not re.fullmatch(_CORE[kind], text):  # `!!int 1:30`
                raise ValueError(f"line {node.start_mark.line + 1}: {text!r} is not written as YAML 1.2 writes {kind}")
            return read(text)

        return construct

    Core.add_constructor(_TAG + "bool", value("bool", lambda text: text.lower() == "true"))
    Core.add_constructor(_TAG + "int", value("int", lambda text: int(text, 0 if text[:2] in ("0o", "0x") else 10)))
    Core.add_constructor(_TAG + "float", value("float", lambda text: float(re.sub(r"\.(?=[in])", "", text.lower()))))
    return Core  # type: ignore[no-any-return]


def plain_yaml(text: str, where: str) -> tuple[Any, Any]:
    """The values of a YAML text, as JSON could hold them, and its node (None if it is empty). where: begins the message.

    Raises PobenchError for what is not YAML, and, with its line, for a set, bytes, a key that is no text or occurs twice, an
    alias that stands in its own anchor, and more than `MOST_NODES` values or `DEEPEST` levels.
    """
    values, node = _parsed(text, where)
    return _copied(values), node  # the values are the caller's to change


def _copied(values: Any) -> Any:
    """A copy of plain data."""
    if isinstance(values, dict):
        return {key: _copied(value) for key, value in values.items()}
    return [_copied(value) for value in values] if isinstance(values, list) else values


@lru_cache(maxsize=64)  # of texts: a study reads the same few files for each of its jobs
def _parsed(text: str, where: str) -> tuple[Any, Any]:
    import yaml

    try:
        depth, kind = 0, _loader()
        for event in yaml.parse(text, Loader=kind):  # composing the nodes recurses in C, where too deep is a crash
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > DEEPEST:
                raise PobenchError(f"{where}: more than {DEEPEST} levels, one in another")
        loader = kind(text)
        node = loader.get_single_node()
        if node is None:
            return None, None
        if fault := next(_not_plain(node), ""):
            raise PobenchError(f"{where}: {fault}")
        return loader.construct_document(node), node
    except (yaml.YAMLError, ValueError, KeyError, AttributeError) as error:
        raise PobenchError(f"{where} cannot be read: {error}") from None


def _not_plain(document: yaml.Node) -> Iterator[str]:
    """What a YAML holds that is no plain data, as `line 3: …`. Each node is looked at once, however often it is named."""
    import yaml

    sizes: dict[int, int] = {}  # of nodes with everything below them; 0 while they are being counted
    depths: dict[int, int] = {}

    def count(node: yaml.Node) -> Iterator[str]:
        line = f"line {node.start_mark.line + 1}"
        if node.tag.removeprefix(_TAG) not in _PLAIN:
            given = f" ({node.value})" if isinstance(node, yaml.ScalarNode) else ""
            yield f"{line}: {node.tag.replace(_TAG, '!!')}{given} is no plain value; if text is meant, put it in quotes"
        inner: list[yaml.Node] = []
        keys: set[str] = set()
        for part in () if isinstance(node, yaml.ScalarNode) else node.value:
            inner += part if isinstance(part, tuple) else [part]
            if not isinstance(part, tuple):
                continue
            key, at = part[0], f"line {part[0].start_mark.line + 1}"
            if not isinstance(key, yaml.ScalarNode):
                yield f"{at}: a key must be text"
            elif key.tag.removeprefix(_TAG) not in ("str", "merge"):
                yield f"{at}: a key must be text; put {key.value} in quotes"
            elif key.value in keys:
                yield f"{at}: the key {key.value!r} occurs twice; the earlier value would be lost"
            else:
                keys.add(key.value)
        sizes[id(node)] = 0
        for one in inner:
            if id(one) not in sizes:
                yield from count(one)
            if not sizes[id(one)]:
                yield f"{line}: an alias stands inside its own anchor"
                return
        sizes[id(node)] = 1 + sum(sizes[id(one)] for one in inner)
        depths[id(node)] = 1 + max((depths[id(one)] for one in inner), default=0)
        if sizes[id(node)] > MOST_NODES or depths[id(node)] > DEEPEST:
            yield f"{line}: more than {MOST_NODES:,} values or {DEEPEST} levels, once every alias is followed"

    return count(document)
