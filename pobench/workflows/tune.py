"""Fair tuning: every loss gets the same number of trials, scored on prompts or pairs that are neither trained on nor
reported.

    losses × (grid | sampler) → trials → jobs of `resolve` → runs below runs/<setting>/tuning → one objective

This file checks a search and plans it; `pobench.workflows.search` makes its trials. Optuna stores the trials in a
journal (`pobench.workflows.trials`), in one study for each loss, which is named by content as runs are: edited data, prompts,
weights or code start a new study, a moved file does not. So a killed command continues where it stopped, and no trial is
made twice.
`trials.csv` holds every trial, not only the best, and the report shows it; the chosen values become a YAML for
`pobench run --setting`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import pydantic

from pobench.columns import FRAMES
from pobench.data.order import text_key
from pobench.data.prompts import eval_prompts, prompt_rows
from pobench.data.rows import Message
from pobench.data.shapes import load_preferences
from pobench.errors import CorruptError, PobenchError, nearest, or_fault
from pobench.files import nan_as_null
from pobench.identity import changed, name_of
from pobench.registry import get_loss
from pobench.results.load import read_trials
from pobench.results.metrics import METRICS
from pobench.runs.cost import estimate_cost, is_local
from pobench.runs.plan import Plan, make_plan
from pobench.runs.stages import BY_NAME, MANY
from pobench.runs.task import Task
from pobench.settings.faults import explain
from pobench.settings.job import Job
from pobench.settings.read import read_setting
from pobench.settings.resolve import resolve, resolve_names, section_of
from pobench.settings.schema import SourceConfig, TuneConfig
from pobench.sources import fetch_rows
from pobench.workflows.grid import Point, Space, points_of, search_spaces
from pobench.workflows.trials import made_before

SAMPLERS = ("grid", "random", "tpe")


# ---------------------------------------------------------------- the plan
@dataclass(frozen=True)
class Search:
    """One loss's search. base: the job at the setting's own values, which every trial changes."""

    loss: str
    space: Space
    base: Job


@dataclass(frozen=True)
class Tuning:
    """Everything that a command will do. trials: the number for each loss. made_before: finished trials of `tune.trials`."""

    setting: str  # a name or a path, as in the command
    name: str
    about: TuneConfig
    searches: tuple[Search, ...]
    trials: int
    sampler: str
    seeds: tuple[int, ...]
    overrides: Mapping[str, Any]
    runs: Path
    plugins: tuple[str, ...] = ()
    made_before: pd.DataFrame = field(default_factory=FRAMES["tuning"].of, compare=False, repr=False)

    @property
    def runs_folder(self) -> Path:
        """The folder of the trials' runs."""
        return self.folder / self.name

    @property
    def folder(self) -> Path:
        return self.runs / self.name / "tuning"

    @property
    def csv(self) -> Path:
        return self.folder / "trials.csv"

    @property
    def chosen(self) -> Path:
        """The YAML of the chosen values, for `pobench run --setting`."""
        return self.folder / f"{self.name}-tuned.yaml"

    @property
    def stages(self) -> tuple[str, ...]:
        """What a trial does. Where a judge's verdicts choose, its held-out pairs are not asked for."""
        return tuple(s for s in MANY if s != "heldout" or not METRICS[self.about.metric].judged)

    def jobs(self, search: Search, point: Point) -> list[Job]:
        """The jobs of one trial, one for each seed. Raises PobenchError for values that the loss refuses."""
        swept = {("train.lr" if key == "lr" else f"{search.loss}.{key}"): value for key, value in point.items()}
        return resolve(self.setting, [search.loss], seeds=self.seeds, overrides={**self.overrides, **swept})


def plan_tuning(
    losses: str | Iterable[str],
    setting: str,
    *,
    trials: int | None = None,
    sampler: str = "grid",
    grid: str | None = None,
    metric: str | None = None,
    seeds: Sequence[int] | None = None,
    overrides: Mapping[str, Any] | None = None,
    runs: str | Path = "runs",
    plugins: Sequence[str] = (),
    dry: bool = False,
) -> Tuning:
    """Check the arguments and plan the search. Nothing is written.

    trials: the number for each loss; None: as many as the smallest grid has cells. sampler: "grid" (cells in a fixed order),
    "random" or "tpe" (between the smallest and the largest value, on a logarithmic scale). seeds: those of each trial; default:
    the setting's first. dry: data that is not on this machine is not downloaded, so its split is not checked.
    Raises PobenchError that lists every fault: names, values, too small a grid, an objective that nothing measures,
    tuning data that is trained on or reported.
    """
    names, faults = resolve_names(losses)
    about, section_faults = _tune_section(setting, overrides or {}, grid, metric)
    faults += section_faults
    if sampler not in SAMPLERS:
        faults.append(f"--sampler: unknown {sampler!r}{nearest(sampler, SAMPLERS)} Known: {', '.join(SAMPLERS)}")
    if trials is not None and trials < 1:
        faults.append(f"--trials: got {trials}; at least 1")
    changes = {**(overrides or {}), **_measured_on(about)}
    base = or_fault(faults, lambda: resolve(setting, names or "simpo", seeds=seeds, overrides=changes)) or []
    spaces = or_fault(faults, lambda: search_spaces(about.grid, names)) or {}
    before = or_fault(faults, lambda: made_before(about.trials))
    faults += _metric_faults(about, base[0] if base else None)
    cells = {name: math.prod(map(len, space.values())) for name, space in spaces.items()}
    trials_per_loss = trials or min(cells.values(), default=1)
    if sampler == "grid":
        faults += _cell_faults(cells, trials_per_loss)
    if faults:
        raise PobenchError("\n".join(dict.fromkeys(line for fault in faults for line in fault.splitlines())))
    tuning = Tuning(
        setting=setting,
        name=base[0].setting,
        about=about,
        searches=tuple(Search(name, spaces[name], next(j for j in base if j.loss == name)) for name in names),
        trials=trials_per_loss,
        sampler=sampler,
        seeds=tuple(seeds or (base[0].seed,)),
        overrides=changes,
        runs=Path(runs),
        plugins=tuple(plugins),
        made_before=FRAMES["tuning"].of() if before is None else before,
    )
    if not dry or all(
        map(is_local, filter(None, (about.prompts, about.pairs, *(part.source for part in base[0].data.parts))))
    ):
        check_disjoint(setting, about, overrides or {})
    if sampler == "grid":
        _resolve_cells(tuning)
    return tuning


def _resolve_cells(tuning: Tuning) -> None:
    """Raises PobenchError for values that a loss refuses, before the first trial."""
    for search in tuning.searches:
        for point in points_of(search.space, search.loss)[: tuning.trials]:
            tuning.jobs(search, point)


def _tune_section(
    setting: str, overrides: Mapping[str, Any], grid: str | None, metric: str | None
) -> tuple[TuneConfig, list[str]]:
    """The setting's `tune` section, changed by the command's options, and its faults. If the setting cannot be read, the
    defaults: `resolve` reports why."""
    about, faults = TuneConfig(), []
    try:
        about = TuneConfig.model_validate(section_of(read_setting(setting)[0], "tune", overrides))
        if about.prompts is None and about.pairs is None:
            faults.append(
                "tune: the setting names no tuning split; give its tune section `prompts` (answered and judged by every "
                "trial) or `pairs` (held out by every trial), neither trained on nor reported"
            )
        if about.grid is None and grid is None:
            faults.append("tune.grid: missing; name a grid of experiments/grids or a YAML file, or give --grid")
    except pydantic.ValidationError as error:
        faults += explain(error, "tune.", TuneConfig)
    except PobenchError:
        pass
    return about.model_copy(update={k: v for k, v in (("grid", grid), ("metric", metric)) if v is not None}), faults


def _cell_faults(cells: Mapping[str, int], trials: int) -> list[str]:
    """Faults of grids with fewer cells than trials. cells: loss → their number."""
    return [
        f"--trials {trials}: the grid of {name} has {count} cells; every loss gets the same number of trials, so ask "
        f"for at most {min(cells.values())}, widen the grid, or search between its ends with --sampler tpe"
        for name, count in cells.items()
        if count < trials
    ]


def _measured_on(about: TuneConfig) -> dict[str, Any]:
    """The overrides that put the tuning split in place of the reported prompts and pairs."""
    changes: dict[str, Any] = {"answers.source": about.prompts, "answers.split": about.prompts_split}
    changes["answers.subset"] = None
    if about.prompts is not None:
        changes["answers.max_prompts"] = about.max_prompts
    if about.pairs is not None:
        held = {"held_out": about.pairs, "held_out_split": about.pairs_split, "max_held_out": about.max_pairs}
        changes |= {f"data.{key}": value for key, value in held.items()}
    return changes


def _metric_faults(about: TuneConfig, job: Job | None) -> list[str]:
    """Faults of the objective. job: None where it could not be resolved, so that its judge is not known."""
    metric = METRICS.get(about.metric)
    if metric is None or not metric.better:
        known = [name for name, m in METRICS.items() if m.better]
        return [f"tune.metric: no objective {about.metric!r}{nearest(about.metric, known)} Known: {', '.join(known)}"]
    if job is not None and metric.judged and (about.prompts is None or job.judge.name is None):
        lacks = "tuning prompts (tune.prompts)" if about.prompts is None else "a judge (judge.name)"
        return [f"tune.metric: {about.metric} needs {lacks}; `reward_accuracy` is measured on pairs alone"]
    return []


# ---------------------------------------------------------------- the name of a study
def study_causes(tuning: Tuning, search: Search, plan: Plan) -> dict[str, Any]:
    """What decides the values of a loss's trials, as plain data: the causes of its runs and results, in which data, prompts,
    weights and source code count by content, without what the search varies.

    plan: of the searches' base jobs, with its content.
    """
    task = next(t for t in plan.tasks if t.kind == "loss" and t.job.loss == search.loss)
    training = {k: v for k, v in task.causes.items() if k != "seed"}
    training["train"] = {k: v for k, v in training["train"].items() if k != "lr"}
    training["settings"] = {k: v for k, v in training["settings"].items() if k not in searched_names(search)}
    results = {stage: dict(node.causes) for stage, node in task.nodes.items() if stage in tuning.stages}
    plan_of_search = {"space": search.space, "metric": tuning.about.metric, "seeds": list(tuning.seeds)}
    return dict(json.loads(json.dumps({"training": training, "results": results, "search": plan_of_search})))


def searched_names(search: Search) -> set[str]:
    """The settings that a search varies, under all their names: one that varies γ/β varies γ."""
    groups = [group for group in get_loss(search.loss).alternatives if set(group) & set(search.space)]
    return {*search.space, *(name for group in groups for name in group)}


def study_name(tuning: Tuning, search: Search, causes: Mapping[str, Any]) -> str:
    """`<loss>-<sampler>-<12 hex>`: the name of a loss's trials in the storage. causes: see `study_causes`."""
    return f"{search.loss}-{tuning.sampler}-{name_of(causes)}"


# The causes that are content, and what they are called. A judge's `answers` and `start` follow from other causes.
_CONTENT = {
    "training.source": "the loss's source code",
    "training.pairs": "the training pairs",
    "training.weights": "the start weights",
    "training.protocol": "the protocol",
    "training.train.precision": "the precision",
    "results.heldout.pairs": "the held-out pairs",
    "results.heldout.reference": "",  # it follows from the pairs, the weights and the precision
    "results.heldout.precision": "the precision",
    "results.answers.prompts": "the tuning prompts",
    "results.answers.precision": "the precision",
    "results.judge.rows": "the tuning prompts",
    "results.judge.source": "the judge's source code",
    "results.judge.answers": "",  # they follow from the causes above
    "results.judge.start": "",
}


def note_change(earlier: Mapping[str, Mapping[str, Any]], causes: Mapping[str, Any]) -> str:
    """A sentence where the same search was made before from other content; "" where none was.

    earlier: study → its causes, of the same loss and sampler; {} for one of an earlier version, which stored none.
    """
    differences = {study: changed(before, causes) for study, before in earlier.items() if before}
    same = {study: keys for study, keys in differences.items() if set(keys) <= set(_CONTENT)}
    if not same:
        unknown = [study for study, before in earlier.items() if not before]
        stored = f"the content behind {' and '.join(unknown)} is not stored, so its trials are not reused"
        return f"{stored}; they stay, and a new search begins" if unknown else ""
    study = min(same, key=lambda name: (len(same[name]), name))
    words = list(filter(None, dict.fromkeys(_CONTENT[key] for key in same[study])))
    return f"{' and '.join(words)} changed since the search {study}; its trials stay, and a new search begins"


# ---------------------------------------------------------------- the split
def check_disjoint(setting: str, about: TuneConfig, overrides: Mapping[str, Any]) -> None:
    """Raises PobenchError where a tuning prompt is trained on, held out and reported, or among the reported prompts.

    Training pairs may share a prompt with tuning pairs: every trial leaves them out of training.
    """
    job = resolve(setting, "simpo", overrides=overrides)[0]
    data, answers = job.data, job.answers
    own_heldout = bool(data.held_out_parts)
    faults: list[str] = []

    def read(keys: Callable[..., list[str]], *source: Any) -> list[str]:
        return or_fault(faults, lambda: keys(*source)) or []

    reported: dict[str, set[str]] = {}
    if answers.source is not None:
        prompts = read(lambda: _keys_of(eval_prompts(answers)))
        reported["reported prompts"] = set(prompts)
    if own_heldout:
        key = "data.held_out" if data.held_out else "data.source"
        reported["reported held-out pairs"] = {p for part in data.held_out_parts for p in read(_pair_keys, key, part)}
    training = {p for part in data.parts for p in read(_pair_keys, "data.source", part)}
    if about.prompts is not None:
        source, split, most = about.prompts, about.prompts_split, about.max_prompts
        tuned_on = read(lambda: _keys_of(prompt_rows(source, split, "tune.prompts")[:most]))
        faults += _shared("tune.prompts", tuned_on, {**reported, "training pairs": training})
    if about.pairs is not None:
        tuned_on = read(_pair_keys, "tune.pairs", data.part(about.pairs, about.pairs_split))
        # The held-out part of the training file is unknown until the split, so none of that file may be tuned on.
        used = reported if own_heldout else {**reported, "pairs to train on or hold out": training}
        faults += _shared("tune.pairs", tuned_on, used)
    if faults:
        raise PobenchError("\n".join(dict.fromkeys(faults)))


def _shared(key: str, tuned_on: Sequence[str], used: Mapping[str, set[str]]) -> list[str]:
    """Faults of tuning prompts that are also used elsewhere. used: use → the keys of its prompts."""
    faults = []
    for where, prompts in used.items():
        both = [prompt for prompt in dict.fromkeys(tuned_on) if prompt in prompts]
        if both:
            text = json.loads(both[0])[-1][1]
            faults.append(
                f"{key}: {len(both)} of {len(set(tuned_on))} prompts are among the {where}, so values would be chosen on "
                f"prompts that are {'trained on' if 'train' in where else 'reported'}; the first: {text[:60]!r}"
            )
    return faults


def _keys_of(rows: list[dict[str, Any]]) -> list[str]:
    """The keys of prompt rows; equal keys mean the same prompt."""
    return [text_key(Message(m["role"], m["content"]) for m in row["messages"]) for row in rows]


def _pair_keys(key: str, part: SourceConfig) -> list[str]:
    """The keys of the prompts of preference rows."""
    option = f"--set {key}=PATH"
    rows = fetch_rows(part.source, split=part.split, subset=part.subset, revision=part.revision, option=option)
    loaded = load_preferences(rows, columns=part.columns, ignore=part.ignore)
    prompts = [row.prompt for row in loaded.preferences] + [row.prompt for row in loaded.lists]
    return list(map(text_key, prompts + [row.prompt for row in loaded.answers]))


def describe_tuning(tuning: Tuning) -> dict[str, Any]:
    """The search as plain data: the values that are varied, and how many trials are done. Writes nothing."""
    done = _trials_done(tuning)
    losses = [
        {"loss": s.loss, "space": s.space, "cells": math.prod(map(len, s.space.values())), "done": done.get(s.loss, 0)}
        for s in tuning.searches
    ]
    return {
        "setting": tuning.name,
        "metric": tuning.about.metric,
        "split": tuning.about.prompts or f"{tuning.about.pairs} {tuning.about.pairs_split or ''}".strip(),
        "trials": tuning.trials,
        "sampler": tuning.sampler,
        "seeds": list(tuning.seeds),
        "losses": losses,
        "jobs": tuning.trials * len(tuning.seeds) * len(tuning.searches),
        "cost": _cost(tuning),
        "judge": tuning.searches[0].base.judge.name,
    }


def _trials_done(tuning: Tuning) -> dict[str, int]:
    """Loss → its finished trials; {} where the model or the pairs, by which the trials are named, are not at hand."""
    stored = []
    if tuning.csv.is_file():
        with suppress(CorruptError):  # it is written anew from the journal
            stored.append(read_trials(tuning.csv))
    trials = pd.concat([*stored, tuning.made_before], ignore_index=True)
    if trials.empty:
        return {}
    cells = trials[trials["status"] == "finished"].drop_duplicates(["study", "lr", "settings"])
    finished = cells.groupby("study").size()
    plan = make_plan([s.base for s in tuning.searches], tuning.folder, tuning.stages, tuning.plugins, dry=True)
    if plan.content is None:
        return {}
    studies = {s.loss: study_name(tuning, s, study_causes(tuning, s, plan)) for s in tuning.searches}
    return {loss: int(finished.get(study, 0)) for loss, study in studies.items()}


def _cost(tuning: Tuning) -> dict[str, Any]:
    """The cost of all trials, finished ones included, as if each took what its loss takes at the setting's own values."""
    folder = tuning.folder / "none"
    stages = tuple(name for name in tuning.stages if BY_NAME[name].per_run)
    tasks = [Task(s.base, "loss", folder, f"{tuning.name}/{s.base.key}", stages, folder) for s in tuning.searches]
    cost = estimate_cost(tasks, None)
    times = tuning.trials * len(tuning.seeds)
    values = {**cost.__dict__, "seconds": cost.seconds * times, "device_hours": cost.device_hours * times}
    return dict(nan_as_null(values))
