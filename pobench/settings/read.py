"""Read a setting's YAML: follow `extends`, and keep the comments, which name the sources of the numbers."""

from __future__ import annotations

import importlib.resources
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pobench.errors import PobenchError, nearest
from pobench.files import name_fault
from pobench.registry import get_loss, judges
from pobench.settings.plain_yaml import plain_yaml

if TYPE_CHECKING:
    import yaml


# Of a loss's section, beside its values: where they come from, `values: paper` or the record of a search
# (`pobench.settings.schema.TunedConfig`).
OF_VALUES = ("values", "tuned")
OF_SEARCH = ("model", "sft", "data")  # a search is made for the sources that these sections name
# of `data`: dropped when other sources are named
OF_SOURCES = ("sources", "stopping", "subset", "split", "revision", "columns", "ignore", "held_out", "held_out_split")
NOT_A_SETTING = ("report", "rehearsal")  # other folders below RUNS


# ---------------------------------------------------------------- reading
def setting_folder() -> Path:
    """The folder of the shipped settings."""
    return Path(str(importlib.resources.files("pobench.experiments"))) / "settings"


def list_settings() -> list[str]:
    """Names of the shipped settings, sorted."""
    return sorted(p.stem for p in setting_folder().glob("*.yaml"))


def describe_settings() -> list[dict[str, str]]:
    """The rows of `pobench list settings`. Looks up no loss and no judge, so it imports nothing heavy."""
    rows = []
    for name in list_settings():
        values: dict[str, Any] = {}
        for layer, _ in _layers(name):
            described = {key: value for key, value in layer.items() if key in ("model", "data", "description")}
            values, _ = _extended(values, {}, described, {})
        model, data = values["model"]["source"], values["data"]["source"]
        rows.append({"name": name, "model": model, "data": data, "description": values.get("description", "")})
    return rows


def read_setting(name: str) -> tuple[dict[str, Any], dict[str, str]]:
    """The raw values of a setting (a shipped name or a YAML path), and the comment behind each value by key.

    Raises PobenchError for an unknown name, naming the nearest, or for YAML that does not parse.
    """
    (values, comments), *layers = _layers(name)
    for layer in layers:
        values, comments = _extended(values, comments, *layer)
    return values, comments


def _layers(name: str, above: tuple[Path, ...] = ()) -> list[tuple[dict[str, Any], dict[str, str]]]:
    """The values and comments of each file of a setting, the base of `extends` first, the setting's own file last.

    above: the files that extend this one, in order.
    """
    path = _setting_path(name)
    if path.resolve() in above:
        circle = " → ".join(str(p) for p in (*above[above.index(path.resolve()) :], path.resolve()))
        raise PobenchError(f"--setting: `extends` goes in a circle: {circle}")
    try:
        text = path.read_text(encoding="utf-8")
    except (ValueError, OSError) as error:
        raise PobenchError(f"--setting: {str(path)!r} cannot be read: {error}") from None
    values, node = plain_yaml(text, f"--setting: {str(path)!r}")
    if not isinstance(values, dict):
        raise PobenchError(f"--setting: {str(path)!r} holds no mapping of sections")
    values.setdefault("name", path.stem)
    if fault := name_fault(values["name"], NOT_A_SETTING):
        raise PobenchError(f"--setting: {str(path)!r}: name: {fault}")
    layer = values, _comments(node, text.splitlines())
    if "extends" not in values:
        return [layer]
    base = values.pop("extends")
    if not isinstance(base, str):
        raise PobenchError(f"--setting: {str(path)!r}: extends: got {base!r}; the name or file of a setting is needed")
    if Path(base).suffix in (".yaml", ".yml"):
        base = str(path.parent / base)
    return [*_layers(base, (*above, path.resolve())), layer]


def _setting_path(name: str) -> Path:
    path, known = Path(name), list_settings()
    if path.suffix in (".yaml", ".yml"):
        if not os.path.isfile(path):
            raise PobenchError(f"--setting: no file {str(path)!r}")
        return path
    if name not in known:
        shown = name if len(name) < 80 else f"{name[:76]}…"
        raise PobenchError(
            f"unknown setting {shown!r}{nearest(shown, known)} Known: {', '.join(known)}; or a path to a YAML file"
        )
    return setting_folder() / f"{name}.yaml"


def _extended(
    base: dict[str, Any], base_comments: dict[str, str], values: dict[str, Any], comments: dict[str, str]
) -> tuple[dict[str, Any], dict[str, str]]:
    """`base` overridden by `values`, key by key within sections and losses. A later layer wins wholly: its `train.lr` also
    takes the place of a loss's own `lr` of `base`, as `--set train.lr` does."""
    merged = dict(base)
    named = {section: {**_mapping(base.get(section)), **_mapping(values.get(section))} for section in OF_SEARCH}
    if sources_of(named) != sources_of(base):
        merged["losses"] = {name: _untuned(own) for name, own in _mapping(base.get("losses")).items()}
    replaced: set[str] = set()
    for name, lost in _overridden(merged, _mapping(values.get("train"))).items():
        kept = {k: v for k, v in merged["losses"][name].items() if k not in (*lost, *OF_VALUES)}
        merged["losses"] = {**merged["losses"], name: kept}
        replaced |= {f"losses.{name}.{key}" for key in lost}
    for section, section_values in values.items():
        inherited_values = merged.get(section)
        if section == "losses" and isinstance(section_values, dict):
            loss_sections = dict(_mapping(inherited_values))
            for name, loss_values in section_values.items():
                other_names = _other_names(name, _mapping(loss_values))
                inherited = {k: v for k, v in _mapping(loss_sections.get(name)).items() if k not in other_names}
                own = _mapping(loss_values)
                if own:  # where the inherited values come from says nothing about these
                    inherited = {k: v for k, v in inherited.items() if k not in OF_VALUES}
                if isinstance(loss_values, dict):
                    loss_values = inherited | loss_values
                loss_sections[name] = inherited if loss_values is None else loss_values
                replaced |= {f"losses.{name}.{key}" for key in (*own, *other_names)}
            merged[section] = loss_sections
        elif isinstance(section_values, dict) and isinstance(inherited_values, dict):
            dropped = of_another_judge(inherited_values, section_values) if section == "judge" else set()
            dropped |= of_other_sources(inherited_values, section_values) if section == "data" else set()
            merged[section] = {k: v for k, v in inherited_values.items() if k not in dropped} | section_values
            replaced |= {f"{section}.{key}" for key in (*section_values, *dropped)}
        else:
            merged[section] = section_values
            replaced.add(section)
    return merged, {k: v for k, v in base_comments.items() if k not in replaced} | comments


def _overridden(base: Mapping[str, Any], train: Mapping[str, Any]) -> dict[str, set[str]]:
    """Loss → its own fields of `train` that a later layer's section `train` takes the place of, for every loss whose values
    that section changes."""
    shared, lost = _mapping(base.get("train")), dict[str, set[str]]()
    for name, own in _mapping(base.get("losses")).items():
        own = _mapping(own)
        fields = {key for key in own.keys() & train.keys() if own[key] != train[key]}
        if fields or ("lr" in train and train["lr"] != own.get("lr", shared.get("lr"))):
            lost[name] = fields
    return lost


def _mapping(value: Any) -> dict[str, Any]:
    """`value` if it is a mapping, else {}: `resolve` reports the wrong type."""
    return value if isinstance(value, dict) else {}


def sources_of(values: Mapping[str, Any]) -> list[Any]:
    """What a setting's values are tuned for: the sources of its start model and of its pairs."""
    sections = [_mapping(values.get(section)) for section in OF_SEARCH]
    return [section.get("sources") or section.get("source") for section in sections]


def _untuned(values: Any) -> Any:
    """A loss's values without the record of a search, which was made for another start model or other pairs."""
    return {k: v for k, v in values.items() if k != "tuned"} if isinstance(values, dict) else values


def _other_names(loss: str, values: Mapping[str, Any]) -> set[str]:
    """Settings that are another name of a given number (gamma, gamma_beta_ratio)."""
    try:
        groups = get_loss(loss).alternatives
    except PobenchError:  # `resolve` reports the unknown loss
        return set()
    return {name for group in groups for name in group if name not in values and any(g in values for g in group)}


def of_another_judge(inherited: Mapping[str, Any], section: Mapping[str, Any]) -> set[str]:
    """Keys of the inherited judge section to drop because `section` names another judge."""
    same = "name" not in section or judges.canonical(section["name"]) == judges.canonical(inherited.get("name"))
    return set() if same else {"settings"}


def of_other_sources(inherited: Mapping[str, Any], section: Mapping[str, Any]) -> set[str]:
    """Keys of the inherited data section to drop because `section` names several sources instead of one, or one instead of
    several."""
    if section.get("sources") and not inherited.get("sources"):
        return {"source", *OF_SOURCES}
    return set(OF_SOURCES) if section.get("source") and inherited.get("sources") else set()


def _comments(node: yaml.Node, lines: list[str], prefix: str = "") -> dict[str, str]:
    import yaml

    comments: dict[str, str] = {}
    if not isinstance(node, yaml.MappingNode):
        return comments
    for key, value in node.value:
        path = f"{prefix}{key.value}"
        if isinstance(value, yaml.MappingNode) and not value.flow_style:
            comments |= _comments(value, lines, f"{path}.")
            continue
        rest = lines[value.end_mark.line][value.end_mark.column :] if value.end_mark.line < len(lines) else ""
        comment = rest.partition("#")[2].strip()
        if comment:
            comments[path] = comment
            if isinstance(value, yaml.MappingNode):
                comments |= {f"{path}.{k.value}": comment for k, _ in value.value}
    return comments
