"""Setting + losses + seeds + --set → jobs; every fault of all of them in one message."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pydantic
import yaml

from pobench.errors import PobenchError, nearest
from pobench.registry import benchmarks, get_loss, losses
from pobench.settings.faults import _unknown_loss_key, check_loss_settings, explain, judge_faults
from pobench.settings.job import Job
from pobench.settings.read import _of_another_judge, read_setting
from pobench.settings.schema import COMMANDS, SECTIONS, Setting, TrainConfig


def parse_overrides(pairs: Sequence[str]) -> dict[str, Any]:
    """`["train.lr=5e-6", …]` → {"train.lr": 5e-06, …}. Raises PobenchError naming every one that is no KEY=VALUE."""
    return _parsed(pairs, "--set", "SECTION.KEY=VALUE, such as train.lr=5e-6 or simpo.beta=2.5", dotted=True)


def parse_settings(pairs: Sequence[str], option: str) -> dict[str, Any]:
    """`["model=NAME", …]`, of a judge, as `option` gives them → {"model": "NAME", …}. Raises as `parse_overrides`."""
    return _parsed(pairs, option, "KEY=VALUE, such as model=NAME", dotted=False)


def _parsed(pairs: Sequence[str], option: str, expected: str, *, dotted: bool) -> dict[str, Any]:
    found: dict[str, Any] = {}
    faults = []
    for text in pairs:
        key, equals, value = text.partition("=")
        if not equals or not key.strip() or (dotted and "." not in key):
            faults.append(f"{option} {text!r}: expected {expected}")
            continue
        found[key.strip()] = _scalar(value)
    if faults:
        raise PobenchError("\n".join(faults))
    return found


def _scalar(text: str) -> Any:
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        return text
    if isinstance(value, str):  # YAML 1.1 reads 5e-6 as text
        try:
            return float(value)
        except ValueError:
            return value
    return value


def resolve_names(names: str | Iterable[str]) -> tuple[list[str], list[str]]:
    """`"simpo, r-dpo"`, `"paper"` or `"all"` → (registered names in order, a fault for every unknown one)."""
    asked = [n.strip() for n in names.split(",")] if isinstance(names, str) else list(names)
    resolved: list[str] = []
    faults = []
    for name in asked:
        if name == "all":
            resolved += losses.names()
        elif name == "paper":
            resolved += [n for n in losses.names() if losses.get(n).in_paper]
        elif name:
            try:
                resolved.append(get_loss(name).name)
            except PobenchError as error:
                faults.append(str(error))
    if not resolved and not faults:
        faults.append("--losses: name at least one loss, or `paper`, or `all`")
    return list(dict.fromkeys(resolved)), faults


def resolve(
    setting: str,
    loss_names: str | Iterable[str],
    *,
    seeds: Sequence[int] | None = None,
    overrides: Mapping[str, Any] | None = None,
    data: str | None = None,
    model: str | None = None,
    benchmark_names: str | None = None,
) -> list[Job]:
    """Jobs for every loss × seed. benchmark_names: comma-separated, in place of those that the setting names; "none".

    Raises PobenchError that lists every fault of names, keys and values together.
    """
    names, faults = resolve_names(loss_names)
    values: dict[str, Any] = {}
    comments: dict[str, str] = {}
    try:
        values, comments = read_setting(setting)
    except PobenchError as error:
        faults.append(str(error))
    origin = {key: f"{setting}: {comment}" for key, comment in comments.items()}
    values = json.loads(json.dumps(values))  # a deep copy, and proof that it is plain data

    def put(section: str, key: str, value: Any, where: str) -> None:
        values.setdefault(section, {})[key] = value
        origin[f"{section}.{key}"] = where

    if model is not None:
        values["model"] = {"source": model}
        values.pop("sft", None)  # what is named is a finished start model
        origin["model.source"] = "--model"
    if data is not None:
        kept = {
            k: v
            for k, v in values.get("data", {}).items()
            if k not in ("split", "revision", "held_out", "held_out_split")
        }
        values["data"] = {**kept, "source": data}
        origin["data.source"] = "--data"

    per_loss: dict[str, dict[str, Any]] = {}
    given_losses = values.get("losses") or {}
    if isinstance(given_losses, dict):
        for name, given in given_losses.items():
            try:
                registered = get_loss(name).name
            except PobenchError as error:
                faults.append(f"losses.{name}: {error}")
                continue
            per_loss[registered] = dict(given or {})
            for key in given or {}:
                origin.setdefault(
                    f"{registered}.{key}",
                    comments.get(f"losses.{name}.{key}", "") and f"{setting}: {comments[f'losses.{name}.{key}']}",
                )
    values["losses"] = per_loss

    judge = values.get("judge")
    judge = judge if isinstance(judge, dict) else {}  # what it is instead, `Setting` says
    for key in _of_another_judge(judge, _below("judge", overrides or {})):
        judge.pop(key, None)
        origin = {k: v for k, v in origin.items() if not k.startswith(f"judge.{key}")}

    sections = {**SECTIONS, **COMMANDS}
    forced: dict[str, Any] = {}  # train fields from the command line outrank a loss's own
    for key, value in (overrides or {}).items():
        section, _, rest = key.removeprefix("losses.").partition(".")
        if section == "benchmarks":
            _put_inside(values, key.split("."), value)
        elif section in sections:
            fields = sections[section].model_fields
            if rest.partition(".")[0] not in fields:
                faults.append(
                    f"--set {key}: {section} has no {rest!r}{nearest(rest, fields)} Known: {', '.join(fields)}"
                )
            elif "." in rest:
                outer, inner = rest.split(".", 1)
                inside = values.setdefault(section, {}).get(outer)
                values[section][outer] = {**(inside if isinstance(inside, dict) else {}), inner: value}
                origin[key] = "--set"
            else:
                put(section, rest, value, "--set")
                if section == "train":
                    forced[rest] = value
        else:
            try:
                loss = get_loss(section)
            except PobenchError:
                known = [*sections, "benchmarks", *losses.names()]
                faults.append(f"--set {key}: {section!r} is neither a section nor a loss{nearest(section, known)}")
                continue
            mine = per_loss.setdefault(loss.name, {})
            for group in loss.alternatives:  # of two names of one number (gamma, gamma_beta_ratio) the YAML's gives way
                for other in group if rest in group else ():
                    if origin.get(f"{loss.name}.{other}") != "--set":
                        mine.pop(other, None)
            mine[rest] = value
            origin[f"{loss.name}.{rest}"] = "--set"
            faults += _unknown_loss_key(f"--set {key}", loss, rest)

    parsed: Setting | None = None
    if values.get("name"):
        try:
            parsed = Setting.model_validate(values)
        except pydantic.ValidationError as error:
            faults += explain(error)
    chosen: dict[str, dict[str, Any]] = {}
    if parsed is not None:
        chosen, wrong = _benchmarks(parsed.benchmarks, benchmark_names)
        faults += wrong
    jobs: list[Job] = []
    for name in names:
        loss = get_loss(name)
        given = per_loss.get(name, {})
        mine = {k: v for k, v in given.items() if k in loss.settings}
        faults += [
            f
            for k in given
            for f in _unknown_loss_key(f"losses.{name}.{k}", loss, k)
            if f"--set {name}.{k}" not in " ".join(faults)
        ]
        checked = check_loss_settings(loss, mine)
        faults += checked
        if parsed is None or checked:
            continue
        own = {k: v for k, v in given.items() if k in TrainConfig.model_fields and k not in forced}
        train_values = {**parsed.train.model_dump(), **own, **forced}
        try:
            train = TrainConfig.model_validate(train_values)
        except pydantic.ValidationError as error:
            faults += explain(error, f"losses.{name}.")
            continue
        keep = {k: v for k, v in origin.items() if v and (k.partition(".")[0] in SECTIONS or k.startswith(f"{name}."))}
        keep |= {f"train.{k}": origin.get(f"{name}.{k}") or f"{setting}: of {name}" for k in own}
        settings = loss.canonical({**loss.settings, **mine})
        jobs += [
            Job(
                parsed.name,
                name,
                seed,
                settings,
                parsed.model,
                parsed.data,
                train,
                parsed.answers,
                parsed.judge,
                keep,
                parsed.sft,
                chosen,
            )
            for seed in (seeds or parsed.seeds)
        ]
    if parsed is not None and parsed.judge.name is not None:
        faults += judge_faults(parsed.judge.name, parsed.judge.settings)
    if faults:
        raise PobenchError("\n".join(dict.fromkeys(faults)))
    return jobs


def section_of(values: Mapping[str, Any], name: str, overrides: Mapping[str, Any]) -> dict[str, Any]:
    """The section `name`, one of `COMMANDS`, of a setting's raw values, with what `--set` says of it.

    Keys that the section does not have are left to `resolve`, which names them.
    """
    section = json.loads(json.dumps(values.get(name) or {}))
    for key, value in _below(name, overrides).items():
        if key.partition(".")[0] in COMMANDS[name].model_fields:
            _put_inside(section, key.split("."), value)
    return dict(section)


def _below(section: str, overrides: Mapping[str, Any]) -> dict[str, Any]:
    prefix = f"{section}."
    return {key.removeprefix(prefix): value for key, value in overrides.items() if key.startswith(prefix)}


def _put_inside(values: dict[str, Any], path: Sequence[str], value: Any) -> None:
    """values[path[0]][path[1]]… = value, with the mappings on the way."""
    *outer, last = path
    for key in outer:
        inside = values.get(key)
        values[key] = values = dict(inside) if isinstance(inside, dict) else {}
    values[last] = value


def _benchmarks(
    given: Mapping[str, Mapping[str, Any]], names: str | None
) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """Benchmark → every setting of it, for those that are given or, in their place, named; and the faults."""
    wanted = list(given) if names is None else [n.strip() for n in names.split(",") if n.strip() not in ("", "none")]
    chosen, faults = {}, []
    settings: dict[str, Mapping[str, Any]] = {}
    for name in dict.fromkeys([*given, *wanted]):
        try:
            settings[benchmarks.get(name).name] = given.get(name, settings.get(benchmarks.get(name).name, {}))
        except PobenchError as error:
            faults.append(f"{'benchmarks' if name in given else '--benchmarks'}: {error}")
    asked = {benchmarks.get(name).name for name in wanted} if not faults else set()
    for name, values in settings.items():
        kind = benchmarks.get(name).function
        try:
            parsed = kind(**values)
        except pydantic.ValidationError as error:
            faults += explain(error, f"benchmarks.{name}.", kind)
            continue
        if name in asked:
            chosen[name] = parsed.model_dump(mode="json")
    return chosen, faults
