"""Reads a study: one YAML of experiments/studies with a question, a grid and the figures to draw. Checks every field. Imports
no torch."""

from __future__ import annotations

import importlib.resources
import itertools
import math
from pathlib import Path
from typing import Any

import pydantic
from pydantic import BaseModel, ConfigDict, Field

from pobench.errors import PobenchError, nearest
from pobench.files import name_fault
from pobench.registry import claims, figures
from pobench.settings.plain_yaml import plain_yaml
from pobench.settings.resolve import resolve_names
from pobench.settings.schema import SECTIONS, Seed

MOST_JOBS = 10_000  # combinations of values of one entry of a grid; each is a job for every loss and seed


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Entry(_Strict):
    """A part of a grid: every loss with every combination of values.

    A key is a setting of the losses (`beta`) or of a section (`train.lr`, `data.length_bias`). values: used as they are.
    times: factors of the setting's own value, so that one grid suits models of every size.
    """

    losses: str | list[str]  # names, `paper`, `all` or `rated`
    values: dict[str, list[Any]] = {}
    times: dict[str, list[float]] = {}

    @property
    def own(self) -> list[str]:
        """The keys that are settings of the losses."""
        return [key for key in (*self.values, *self.times) if "." not in key]


class Variant(_Strict):
    """The changes of a study for one setting."""

    seeds: list[Seed] | None = Field(None, min_length=1)
    grid: list[Entry] | None = Field(None, min_length=1)
    set: dict[str, Any] = {}


class Study(_Strict):
    """One YAML of experiments/studies."""

    name: str
    title: str
    paper: str = ""  # the part of the paper that asks the question; "" for our own
    question: str
    claims: list[str] = []  # registered names, see docs/claims.md
    figures: list[str] = Field(min_length=1)
    seeds: list[Seed] | None = Field(None, min_length=1)  # None: the setting's
    grid: list[Entry] = Field(min_length=1)
    stages: list[str] = []  # beside those that every study runs
    set: dict[str, Any] = {}  # as `--set`, for all its jobs
    settings: dict[str, Variant] = {}

    @property
    def every_stage(self) -> tuple[str, ...]:
        """The stages of its jobs, in order."""
        from pobench.runs.stages import ALL, MANY  # they import pandas, and a list of studies does not need it

        return tuple(stage for stage in ALL if stage in MANY or stage in self.stages)


def study_folder() -> Path:
    """The folder of the shipped studies."""
    return Path(str(importlib.resources.files("pobench.experiments"))) / "studies"


def list_studies() -> list[str]:
    """Names of the shipped studies, sorted."""
    return sorted(path.stem for path in study_folder().glob("*.yaml"))


def read_study(name: str) -> Study:
    """A shipped study by name, or a YAML path. Raises PobenchError that lists everything wrong with it."""
    path = Path(name)
    if path.suffix not in (".yaml", ".yml"):
        path, known = study_folder() / f"{name}.yaml", list_studies()
        if name not in known:
            raise PobenchError(
                f"unknown study {name!r}{nearest(name, known)} Known: {', '.join(known)}; or a path to a YAML file"
            )
    study = _parse(path)
    faults = [f"study {str(path)!r}: name: {fault}"] if (fault := name_fault(study.name)) else []
    lookups = [(figures.get, figure) for figure in study.figures] + [(claims.get, claim) for claim in study.claims]
    for look_up, named in lookups:
        try:
            look_up(named)
        except PobenchError as error:
            faults.append(f"study {study.name}: {error}")
    faults += _stage_faults(study) if study.stages else []
    grids = [study.grid, *(v.grid for v in study.settings.values() if v.grid)]
    for entry in itertools.chain.from_iterable(grids):
        faults += [f"study {study.name}: {fault}" for fault in _entry_faults(entry)]
    if faults:
        raise PobenchError("\n".join(dict.fromkeys(faults)))
    return study


def _parse(path: Path) -> Study:
    """A study as in its file, before the names of figures and losses are looked up."""
    try:
        values, _ = plain_yaml(path.read_text(encoding="utf-8"), f"study {str(path)!r}")
    except (ValueError, OSError) as error:
        raise PobenchError(f"study {str(path)!r} cannot be read: {error}") from None
    if not isinstance(values, dict):
        raise PobenchError(f"study {str(path)!r} holds no mapping of fields")
    try:
        return Study.model_validate({"name": path.stem, **values})
    except pydantic.ValidationError as error:
        raise PobenchError("\n".join(f"study {path.stem}: {line}" for line in _explain(error))) from None


def _explain(error: pydantic.ValidationError) -> list[str]:
    fields = {**Study.model_fields, **Entry.model_fields}
    lines = []
    for fault in error.errors():
        where = ".".join(map(str, fault["loc"]))
        if fault["type"] == "extra_forbidden":
            lines.append(f"{where}: unknown key{nearest(str(fault['loc'][-1]), fields)} Known: {', '.join(fields)}")
        else:
            lines.append(f"{where}: got {fault['input']!r}; {fault['msg'][0].lower()}{fault['msg'][1:]}")
    return lines


def _stage_faults(study: Study) -> list[str]:
    from pobench.runs.stages import ALL, MANY, PREPARING

    unknown = [stage for stage in study.stages if stage not in ALL]
    before = sorted(PREPARING.intersection(study.stages).difference(MANY))
    why = "its pairs are made by `pobench run --stages` and named by --set data.source=FILE"
    return [f"study {study.name}: stages: {stage} stands before a study: {why}" for stage in before] + [
        f"study {study.name}: stages: no stage {s!r}{nearest(s, ALL)} Known: {', '.join(ALL)}" for s in unknown
    ]


def _entry_faults(entry: Entry) -> list[str]:
    both = sorted(set(entry.values) & set(entry.times))
    faults = [f"grid: {key} is in both `values` and `times`; give it once" for key in both]
    for key, values in [*entry.values.items(), *entry.times.items()]:
        section = key.partition(".")[0]
        if not values:
            faults.append(f"grid: {key} has no value")
        if "." in key and section not in SECTIONS:
            faults.append(
                f"grid: {key}: no section {section!r}{nearest(section, SECTIONS)} Known: {', '.join(SECTIONS)}"
            )
    if (jobs := math.prod(map(len, (*entry.values.values(), *entry.times.values())))) > MOST_JOBS:
        faults.append(f"grid: {jobs:,} combinations of values, more than {MOST_JOBS:,}; leave values out")
    return [*faults, *resolve_names(entry.losses)[1]]


def describe_studies() -> list[dict[str, Any]]:
    """What `pobench list studies` shows of every shipped study."""
    shipped = [_parse(study_folder() / f"{name}.yaml") for name in list_studies()]
    return [{"name": s.name, "title": s.title, "paper": s.paper or "ours", "claims": s.claims} for s in shipped]
