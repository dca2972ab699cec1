"""Fair tuning: for every loss the same number of trials, judged on prompts or pairs that are neither trained on nor
reported.

    losses × (grid | sampler) → trials → jobs of `config.resolve` → runs below runs/<setting>/tuning → one objective

Optuna keeps the trials (`optuna.db`, SQLite); each is an ordinary run, named by its configuration, so nothing is ever
computed twice: a killed command goes on where it stopped, and a trial that another search has made is reused. The
whole grid, not only its best cell, is kept as `trials.csv`, which the report shows; the chosen values become a YAML
that `pobench run --setting` takes.
"""

from __future__ import annotations

import hashlib
import importlib.resources
import itertools
import json
import math
import os
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import pydantic
import yaml
from filelock import FileLock, Timeout

from pobench.config import Job, TuneConfig, digest, explain, read_setting, resolve, resolve_names, section_of
from pobench.cost import estimate_cost, is_local
from pobench.data import text_key
from pobench.files import write_text
from pobench.plan import Plan, execute, make_plan
from pobench.prepare import prompt_rows
from pobench.registry import Loss, PobenchError, get_loss, nearest, or_fault
from pobench.rows import Message, load_preferences
from pobench.scores import METRICS, score
from pobench.sources import fetch_rows
from pobench.store import COLUMNS, RunFolder
from pobench.worker import HOME_STAGES, Task

SAMPLERS = ("grid", "random", "tpe")
COLUMN_NAMES = COLUMNS["tuning"].split()


# ---------------------------------------------------------------- what is searched

Point = dict[str, Any]  # "lr" or a setting of the loss → value
Space = dict[str, list[Any]]


class Grid(pydantic.BaseModel):
    """One YAML of experiments/grids. lr: for every loss; losses: name → setting → values, `lr` among them if its own."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)

    lr: list[float] = pydantic.Field(min_length=1)
    losses: dict[str, dict[str, list[Any]]] = {}


def grid_folder() -> Path:
    """Where the shipped grids stand."""
    return Path(str(importlib.resources.files("pobench.experiments"))) / "grids"


def read_grid(name: str) -> Grid:
    """A shipped grid or a YAML path. Raises PobenchError that lists what is wrong with it."""
    path = Path(name) if Path(name).suffix in (".yaml", ".yml") else grid_folder() / f"{name}.yaml"
    if not path.is_file():
        known = sorted(p.stem for p in grid_folder().glob("*.yaml"))
        raise PobenchError(
            f"tune.grid: no grid {name!r}{nearest(name, known)} Known: {', '.join(known)}; or a YAML path"
        )
    try:
        return Grid.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except yaml.YAMLError as error:
        raise PobenchError(f"tune.grid: {str(path)!r} cannot be read: {error}") from None
    except pydantic.ValidationError as error:
        raise PobenchError("\n".join(explain(error, f"{path.name}: ", Grid))) from None


def search_space(loss: Loss, grid: Grid) -> Space:
    """Learning rates × the loss's own settings: those that the grid names, else those with a published range.

    Raises PobenchError for a setting that the loss does not have.
    """
    named = {get_loss(name).name: values for name, values in grid.losses.items()}
    own = named.get(loss.name)
    if own is None:
        own = {name: list(values) for name, values in loss.ranges.items() if len(tuple(values or ())) > 1}
    unknown = [key for key in own if key != "lr" and key not in loss.settings]
    if unknown:
        raise PobenchError(
            f"tune.grid: {loss.name} has no {', '.join(map(repr, unknown))}; it takes {', '.join(loss.settings) or 'none'}"
        )
    return {"lr": list(grid.lr), **{key: list(values) for key, values in own.items()}}


def search_spaces(grid: str | None, names: Sequence[str]) -> dict[str, Space]:
    """Of each loss; none without a grid. Raises PobenchError for a grid that cannot be read, and as `search_space`."""
    if grid is None:
        return {}
    read = read_grid(grid)
    return {name: search_space(get_loss(name), read) for name in names}


def points_of(space: Space, loss: str) -> list[Point]:
    """Every cell of the grid, in an order that hashes fix: the first N are a fair sample of it, among any first M > N."""
    cells = [dict(zip(space, values, strict=True)) for values in itertools.product(*space.values())]
    return sorted(cells, key=lambda cell: hashlib.sha256(json.dumps([loss, cell], sort_keys=True).encode()).hexdigest())


# ---------------------------------------------------------------- the plan


@dataclass(frozen=True)
class Search:
    """One loss's search. study: its name in the storage; another question (data, grid, metric) has another name."""

    loss: str
    space: Space
    study: str
    base: Job


@dataclass(frozen=True)
class Tuning:
    """Everything a command will do. trials: of each loss."""

    setting: str  # as it was given: a name or a path
    name: str
    about: TuneConfig
    searches: tuple[Search, ...]
    trials: int
    sampler: str
    seeds: tuple[int, ...]
    overrides: Mapping[str, Any]
    runs: Path
    plugins: tuple[str, ...] = ()

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

    def jobs(self, search: Search, point: Point) -> list[Job]:
        """The jobs of one trial, one a seed. Raises PobenchError for values that the loss refuses."""
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
    """Check what is asked, and lay it out; nothing is written.

    trials: of each loss; None: as many as the smallest grid has cells. sampler: "grid" (cells in a fixed order),
    "random" or "tpe" (between the grid's ends, logarithmically). seeds: of each trial; default: the setting's first.
    dry: data that is not on this machine is not fetched, so its split is not checked.
    Raises PobenchError that lists every fault: names, values, too small a grid, an objective that nothing measures,
    tuning data that is trained on or reported.
    """
    names, faults = resolve_names(losses)
    about = TuneConfig()
    try:
        about = TuneConfig.model_validate(section_of(read_setting(setting)[0], "tune", overrides or {}))
        if about.prompts is None and about.pairs is None:
            faults.append(
                "tune: the setting names no tuning split; give its tune section `prompts` (answered and judged by every "
                "trial) or `pairs` (held out by every trial), neither trained on nor reported"
            )
        if about.grid is None and grid is None:
            faults.append("tune.grid: missing; name a grid of experiments/grids or a YAML file, or give --grid")
    except pydantic.ValidationError as error:
        faults += explain(error, "tune.", TuneConfig)
    except PobenchError:  # an unknown setting: `resolve` says it
        pass
    about = about.model_copy(update={k: v for k, v in (("grid", grid), ("metric", metric)) if v is not None})
    if sampler not in SAMPLERS:
        faults.append(f"--sampler: unknown {sampler!r}{nearest(sampler, SAMPLERS)} Known: {', '.join(SAMPLERS)}")
    if trials is not None and trials < 1:
        faults.append(f"--trials: got {trials}; at least 1")
    changes = {**(overrides or {}), **_measured_on(about)}
    base = or_fault(faults, lambda: resolve(setting, names or "simpo", seeds=seeds, overrides=changes)) or []
    spaces = or_fault(faults, lambda: search_spaces(about.grid, names)) or {}
    faults += _metric_faults(about, base[0] if base else None)
    cells = {name: math.prod(map(len, space.values())) for name, space in spaces.items()}
    wanted = trials or min(cells.values(), default=1)
    if sampler == "grid":
        faults += [
            f"--trials {wanted}: the grid of {name} has {count} cells; every loss gets the same number of trials, so ask "
            f"for at most {min(cells.values())}, widen the grid, or search between its ends with --sampler tpe"
            for name, count in cells.items()
            if count < wanted
        ]
    if faults:
        raise PobenchError("\n".join(dict.fromkeys(line for fault in faults for line in fault.splitlines())))
    chosen_seeds = tuple(seeds or (base[0].seed,))
    tuning = Tuning(
        setting, base[0].setting, about, (), wanted, sampler, chosen_seeds, changes, Path(runs), tuple(plugins)
    )
    searches = []
    for name in names:
        job = next(j for j in base if j.loss == name)
        named = f"{name}-{sampler}-{_question(job, spaces[name], about.metric, chosen_seeds)}"
        searches.append(Search(name, spaces[name], named, job))
    tuning = replace(tuning, searches=tuple(searches))
    if not dry or all(map(is_local, filter(None, (about.prompts, about.pairs, base[0].data.source)))):
        check_disjoint(setting, about, overrides or {})
    for search in searches if sampler == "grid" else ():  # values that a loss refuses are known before the first trial
        for point in points_of(search.space, search.loss)[:wanted]:
            tuning.jobs(search, point)
    return tuning


def _question(job: Job, space: Space, metric: str, seeds: Sequence[int]) -> str:
    """8 hex of what decides the values of a search's trials; what the search itself varies is no part of it."""
    values = job.values()
    values["train"].pop("lr")
    values["loss_settings"] = {k: v for k, v in job.loss_settings.items() if k not in space}
    return digest({**values, "search": [space, metric, list(seeds)]})


def _measured_on(about: TuneConfig) -> dict[str, Any]:
    """What a trial answers and holds out, in place of what is reported."""
    changes: dict[str, Any] = {"answers.source": about.prompts, "answers.split": about.prompts_split}
    if about.prompts is not None:
        changes["answers.max_prompts"] = about.max_prompts
    if about.pairs is not None:
        held = {"held_out": about.pairs, "held_out_split": about.pairs_split, "max_held_out": about.max_pairs}
        changes |= {f"data.{key}": value for key, value in held.items()}
    return changes


def _metric_faults(about: TuneConfig, job: Job | None) -> list[str]:
    """job: None where it could not be resolved, so its judge is not known."""
    metric = METRICS.get(about.metric)
    if metric is None or not metric.better:
        known = [name for name, m in METRICS.items() if m.better]
        return [f"tune.metric: no objective {about.metric!r}{nearest(about.metric, known)} Known: {', '.join(known)}"]
    if job is not None and metric.judged and (about.prompts is None or job.judge.name is None):
        lacks = "tuning prompts (tune.prompts)" if about.prompts is None else "a judge (judge.name)"
        return [f"tune.metric: {about.metric} needs {lacks}; `reward_accuracy` is measured on pairs alone"]
    return []


# ---------------------------------------------------------------- the split


def check_disjoint(setting: str, about: TuneConfig, overrides: Mapping[str, Any]) -> None:
    """Raises PobenchError where a tuning prompt is trained on, held out and reported, or among the reported prompts.

    Training pairs that share a prompt with tuning pairs are no fault: every trial leaves them out of training.
    """
    job = resolve(setting, "simpo", overrides=overrides)[0]
    data, answers = job.data, job.answers
    own_heldout = data.held_out is not None or data.held_out_split is not None
    faults: list[str] = []

    def read(keys: Callable[..., list[str]], *which: Any) -> list[str]:
        return or_fault(faults, lambda: keys(*which)) or []

    used: dict[str, set[str]] = {}
    if answers.source is not None:
        used["reported prompts"] = set(
            read(_asked, "answers.source", answers.source, answers.split, answers.max_prompts)
        )
    if own_heldout:
        split, key = data.held_out_split or data.split, "data.held_out" if data.held_out else "data.source"
        used["reported held-out pairs"] = set(read(_paired, key, data.held_out or data.source, split, data.revision))
    training = set(read(_paired, "data.source", data.source, data.split, data.revision))
    if about.prompts is not None:
        mine = read(_asked, "tune.prompts", about.prompts, about.prompts_split, about.max_prompts)
        faults += _shared("tune.prompts", mine, {**used, "training pairs": training})
    if about.pairs is not None:
        mine = read(_paired, "tune.pairs", about.pairs, about.pairs_split, None)
        # A held-out part of the training file is not known before it is split: none of that file may be tuned on.
        faults += _shared(
            "tune.pairs", mine, used if own_heldout else {**used, "pairs to train on or hold out": training}
        )
    if faults:
        raise PobenchError("\n".join(dict.fromkeys(faults)))


def _shared(key: str, mine: Sequence[str], used: Mapping[str, set[str]]) -> list[str]:
    faults = []
    for where, theirs in used.items():
        both = [prompt for prompt in dict.fromkeys(mine) if prompt in theirs]
        if both:
            text = json.loads(both[0])[-1][1]
            faults.append(
                f"{key}: {len(both)} of {len(set(mine))} prompts are among the {where}, so what is chosen on them would "
                f"be chosen on what is {'trained on' if 'train' in where else 'reported'}; the first: {text[:60]!r}"
            )
    return faults


def _asked(key: str, source: str, split: str | None, most: int | None) -> list[str]:
    """What makes prompts the same, of prompt rows. key: of the setting that names the source."""
    rows = prompt_rows(source, split, key)[:most]
    return [text_key(Message(m["role"], m["content"]) for m in row["messages"]) for row in rows]


def _paired(key: str, source: str, split: str | None, revision: str | None) -> list[str]:
    """The same, of preference rows."""
    rows = fetch_rows(source, split=split, revision=revision, option=f"--set {key}=PATH")
    found = load_preferences(rows)
    return [text_key(preference.prompt) for preference in found.preferences]


def describe_tuning(tuning: Tuning) -> dict[str, Any]:
    """The search as plain data: what is varied, and how many trials are done. Touches nothing."""
    done: dict[str, int] = {}
    if tuning.csv.is_file():
        trials = pd.read_csv(tuning.csv)
        done = trials[trials["status"] == "finished"].groupby("study").size().to_dict()
    losses = [
        {"loss": s.loss, "space": s.space, "cells": math.prod(map(len, s.space.values())), "done": done.get(s.study, 0)}
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


def _cost(tuning: Tuning) -> dict[str, Any]:
    """Of all trials, finished ones included, as if each took what its loss takes at the setting's own values."""
    tasks = [Task(s.base, "loss", tuning.folder, HOME_STAGES, tuning.folder) for s in tuning.searches]
    cost = estimate_cost([replace(task, runs=tuning.folder / "none") for task in tasks], None)
    times = tuning.trials * len(tuning.seeds)
    values = {**cost.__dict__, "seconds": cost.seconds * times, "device_hours": cost.device_hours * times}
    return {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in values.items()}


# ---------------------------------------------------------------- the search


@dataclass(frozen=True)
class Best:
    """What was chosen for a loss. searched: which of its settings were varied. value: of the objective; low, high: its 95 %
    interval; start: the start model's own."""

    loss: str
    settings: Mapping[str, Any]
    searched: tuple[str, ...]
    lr: float
    value: float
    low: float
    high: float
    start: float
    n: int
    trials: int
    run: str


@dataclass(frozen=True)
class Tuned:
    """What a search left behind. failed: `loss: reason`, one a failed trial."""

    best: list[Best]
    failed: list[str]
    made: int  # trials made now; those of earlier commands are not repeated
    csv: Path
    chosen: Path


def tune(tuning: Tuning, *, keep_models: bool = False, announce: Callable[[str], None] = lambda text: None) -> Tuned:
    """Make the trials that are left, one loss after the other in turn, and write the grid and the chosen values.

    keep_models: the trained weights of a finished trial stay; else only its numbers do. A trial that fails leaves the
    others running, counts for this command, and is tried again by the next. Raises PobenchError when another search is
    at work on the same setting; KeyboardInterrupt.
    """
    tuning.folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(tuning.folder / ".tune.lock", blocking=False):
            return _Tuner(tuning, keep_models, announce).work()
    except Timeout:
        raise PobenchError(f"another `pobench tune` is at work in {str(tuning.folder)!r}; wait for it") from None


class _Tuner:
    def __init__(self, tuning: Tuning, keep_models: bool, announce: Callable[[str], None]) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self.tuning, self.keep_models, self.announce = tuning, keep_models, announce
        self.better = METRICS[tuning.about.metric].better
        self.storage = optuna.storages.RDBStorage(f"sqlite:///{(tuning.folder / 'optuna.db').absolute()}")
        self.studies = {s.loss: self._study(s) for s in tuning.searches}
        plan = make_plan([s.base for s in tuning.searches], tuning.folder, HOME_STAGES)
        self.prepared = plan.prepared
        for outcome in execute(replace(plan, tasks=tuple(t for t in plan.tasks if t.kind == "sft")), announce=announce):
            if outcome.status == "failed":
                raise PobenchError(f"the start model of the search could not be made: {outcome.reason}")
        self.failed: list[str] = []
        self.made = 0

    def _study(self, search: Search) -> Any:
        """The loss's study, as a killed command left it, with this command's cells waiting."""
        import optuna
        from optuna.trial import TrialState

        study = optuna.create_study(
            storage=self.storage,
            study_name=search.study,
            direction="maximize" if self.better == "higher" else "minimize",
            load_if_exists=True,
        )
        about = {"loss": search.loss, "metric": self.tuning.about.metric, "sampler": self.tuning.sampler}
        for key, value in {**about, "setting": self.tuning.name}.items():
            study.set_user_attr(key, value)
        for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):  # a killed command's
            study.tell(trial.number, state=TrialState.FAIL)
        if self.tuning.sampler == "grid":
            known = [t.user_attrs.get("point", t.system_attrs.get("fixed_params"))
                     for t in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.WAITING))]  # fmt: skip
            for point in points_of(search.space, search.loss)[: self.tuning.trials]:
                if point not in known:
                    study.enqueue_trial(point)
        return study

    def _done(self, study: Any) -> int:
        from optuna.trial import TrialState

        return len(study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)))

    def work(self) -> Tuned:
        gone = dict.fromkeys(self.studies, 0)  # failed now: they used up a turn
        for turn in range(self.tuning.trials):
            for search in self.tuning.searches:
                study = self.studies[search.loss]
                if self._done(study) + gone[search.loss] <= turn:
                    gone[search.loss] += not self._trial(search, study)
                    self._write()
        return Tuned(self._write(), self.failed, self.made, self.tuning.csv, self.tuning.chosen)

    def _write(self) -> list[Best]:
        """The grid and the chosen values so far, after every trial."""
        write_text(self.tuning.csv, pd.DataFrame(self._rows(), columns=COLUMN_NAMES).to_csv(index=False))
        best = [b for s in self.tuning.searches if (b := self._best(s)) is not None]
        if best:
            write_text(self.tuning.chosen, overlay(self.tuning, best))
        return best

    def _trial(self, search: Search, study: Any) -> bool:
        """Make one trial. False: it failed."""
        from optuna.trial import TrialState

        study.sampler = self._sampler(study)
        trial = study.ask(_distributions(search.space, self.tuning.sampler))
        point = dict(trial.params)
        trial.set_user_attr("point", point)
        self.made += 1
        shown = ", ".join(
            f"{key} {value:g}" if isinstance(value, float) else f"{key} {value}" for key, value in point.items()
        )
        self.announce(f"{search.loss}: trial {self._done(study) + 1} of {self.tuning.trials} ({shown})")
        try:
            jobs = self.tuning.jobs(search, point)
            outcomes = {o.run: o for o in execute(self._plan(jobs))}
            reasons = [f"{outcomes[r].reason}" for r in outcomes if outcomes[r].status == "failed"]
        except PobenchError as error:  # a sampler may leave the range that a loss takes
            jobs, reasons = [], [str(error)]
        runs = [job.run for job in jobs]
        trial.set_user_attr("runs", runs)
        measured = self._measure(jobs) if jobs and not reasons else {}
        if not reasons and math.isnan(measured.get("value", math.nan)):
            reasons = [f"no {self.tuning.about.metric} was measured"]
        if reasons:
            trial.set_user_attr("reason", reasons[0])
            study.tell(trial, state=TrialState.FAIL)
            self.failed.append(f"{search.loss} ({shown}): {reasons[0]}")
            return False
        first = jobs[0]
        trial.set_user_attr("settings", {k: v for k, v in first.loss_settings.items() if v is not None})
        trial.set_user_attr("lr", first.train.lr)
        trial.set_user_attr("measured", {k: _plain(v) for k, v in measured.items()})
        study.tell(trial, measured["value"])
        if not self.keep_models:
            for run in runs:
                shutil.rmtree(self.tuning.folder / run / "model", ignore_errors=True)
        return True

    def _sampler(self, study: Any) -> Any:
        """Seeded by how many trials there are, so that a resumed search does not draw the first ones again."""
        import optuna

        number = len(study.get_trials(deepcopy=False))
        seed = int(hashlib.sha256(f"{study.study_name} {number}".encode()).hexdigest()[:8], 16)
        if self.tuning.sampler == "tpe":
            return optuna.samplers.TPESampler(seed=seed, n_startup_trials=max(2, self.tuning.trials // 3))
        return optuna.samplers.RandomSampler(seed=seed)  # of a grid, every trial's values are given

    def _plan(self, jobs: Sequence[Job]) -> Plan:
        """The trial's jobs over token pairs that were made once."""
        assert self.prepared is not None
        data = self.tuning.folder / self.tuning.name / f"data-{self.prepared.digest[:8]}"
        tasks = [Task(jobs[0], "start", self.tuning.folder, HOME_STAGES, data, self.tuning.plugins)]
        tasks += [Task(job, "loss", self.tuning.folder, HOME_STAGES, data, self.tuning.plugins) for job in jobs]
        return Plan(tuple(tasks), self.prepared)

    def _measure(self, jobs: Sequence[Job]) -> dict[str, float]:
        """value, low, high, n of the objective over all seeds, and the start model's own value."""
        metric = self.tuning.about.metric
        start = RunFolder(self.tuning.folder, jobs[0].start_run)
        folders = [RunFolder(self.tuning.folder, job.run) for job in jobs]
        if len(folders) == 1:
            rows = folders[0].read_json("scores.json")
        else:  # seeds pooled: prompts stay the clusters of the interval
            frames = {}
            for name in ("heldout", "answers", "verdicts"):
                parts = [f.read_frame(name).assign(run=f.run) for f in folders if f.has(f"{name}.parquet")]
                if parts:
                    frames[name] = pd.concat(parts, ignore_index=True)
            begun = {n: start.read_frame(n).assign(run=start.run) for n in frames if start.has(f"{n}.parquet")}
            rows = score(frames, begun or None)
        found = _row_of(rows, metric)
        before = _row_of(start.read_json("scores.json"), metric) if start.has("scores.json") else {}
        return {
            **{k: found.get(k, math.nan) for k in ("value", "low", "high", "n")},
            "start": before.get("value", math.nan),
        }

    def _choose_from(self, search: Search) -> list[Any]:
        """The finished trials that count: of a loss that an earlier command gave more, no more than of the others."""
        from optuna.trial import TrialState

        done = self.studies[search.loss].get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        if self.tuning.sampler == "grid":
            asked = points_of(search.space, search.loss)[: self.tuning.trials]
            return [trial for trial in done if trial.user_attrs["point"] in asked]
        return list(done[: self.tuning.trials])

    def _best(self, search: Search) -> Best | None:
        done = self._choose_from(search)
        if not done:
            return None
        trial = min(done, key=_rank(-1 if self.better == "higher" else 1))
        attrs = trial.user_attrs
        measured = {k: math.nan if v is None else v for k, v in attrs["measured"].items()}
        # γ is recorded absolute, whichever way it was searched
        varied = {"gamma" if key == "gamma_beta_ratio" else key for key in search.space}
        return Best(
            search.loss,
            attrs["settings"],
            tuple(key for key in attrs["settings"] if key in varied),
            attrs["lr"],
            measured["value"],
            measured["low"],
            measured["high"],
            measured["start"],
            int(measured["n"]),
            len(done),
            attrs["runs"][0],
        )

    def _rows(self) -> list[dict[str, Any]]:
        """Every trial of every search on this setting, those of earlier commands too: a tuning frame's rows."""
        import optuna
        from optuna.trial import TrialState

        rows = []
        asked = {search.study: self._choose_from(search) for search in self.tuning.searches}
        for name in sorted(optuna.get_all_study_names(self.storage)):
            study = optuna.load_study(study_name=name, storage=self.storage)
            trials = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.FAIL))
            done = [t for t in trials if t.state == TrialState.COMPLETE]
            tried = [t for t in trials if t in done or "reason" in t.user_attrs]
            sign = 1 if study.direction == optuna.study.StudyDirection.MINIMIZE else -1
            best = min(asked.get(name, done), key=_rank(sign), default=None)
            for trial in tried:
                attrs, measured = trial.user_attrs, trial.user_attrs.get("measured", {})
                rows.append(
                    {
                        **{key: study.user_attrs[key] for key in ("setting", "loss", "metric", "sampler")},
                        "study": name,
                        "trial": trial.number,
                        "lr": attrs.get("lr", trial.params.get("lr")),
                        "settings": json.dumps(attrs.get("settings", attrs.get("point", {})), sort_keys=True),
                        **{key: measured.get(key) for key in ("value", "low", "high", "n", "start")},
                        "better": "lower" if sign == 1 else "higher",
                        "chosen": best is not None and trial.number == best.number,
                        "status": "finished" if trial in done else "failed",
                        "reason": attrs.get("reason", ""),
                        "runs": " ".join(attrs.get("runs", [])),
                    }
                )
        return sorted(rows, key=lambda row: (row["loss"], row["study"], row["trial"]))


def _rank(sign: int) -> Callable[[Any], tuple[float, float, int]]:
    """What trials are sorted by, the best first; of equal ones that with the smaller learning rate."""
    return lambda trial: (sign * trial.value, trial.user_attrs["lr"], trial.number)


def _row_of(rows: Iterable[Mapping[str, Any]], metric: str) -> dict[str, float]:
    """The metric's row; with a judge's name behind it where there are several judges."""
    found = [r for r in rows if r["metric"] == metric] or [r for r in rows if r["metric"].partition("@")[0] == metric]
    return {k: math.nan if v is None else v for k, v in found[0].items()} if found else {}


def _plain(value: float) -> float | None:
    return None if isinstance(value, float) and math.isnan(value) else value


def _distributions(space: Space, sampler: str) -> dict[str, Any]:
    """A cell of the grid, or between its ends: logarithmically, for every setting of which all values are positive."""
    from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution

    found: dict[str, BaseDistribution] = {}
    for key, values in space.items():
        numbers = [v for v in values if isinstance(v, int | float) and not isinstance(v, bool)]
        if sampler == "grid" or len(numbers) < len(values) or len(set(numbers)) < 2:
            found[key] = CategoricalDistribution(values)
        else:
            found[key] = FloatDistribution(float(min(numbers)), float(max(numbers)), log=min(numbers) > 0)
    return found


# ---------------------------------------------------------------- the chosen values


def overlay(tuning: Tuning, best: Sequence[Best]) -> str:
    """A setting that extends the tuned one by the chosen values; the comment behind each names the run it comes from."""
    about = tuning.about
    split = about.prompts or about.pairs
    base = tuning.setting
    if Path(base).suffix in (".yaml", ".yml"):
        base = os.path.relpath(Path(base).absolute(), tuning.folder.absolute())
    lines = [
        f"# Chosen by `pobench tune`: {about.metric} on {split}, {tuning.trials} trials of each loss ({tuning.sampler}).",
        f"# Every trial, not only the best, is in {tuning.csv.name} beside this file.",
        f"name: {tuning.name}-tuned",
        f"extends: {json.dumps(base)}",
        "losses:",
    ]
    for b in best:
        interval = "" if math.isnan(b.low) else f" [{b.low:.3g}, {b.high:.3g}]"
        found = f"tuning: {about.metric} {b.value:.3g}{interval}, n = {b.n}, the best of {b.trials} trials; run {b.run}"
        lines += [f"  {b.loss}:", f"    lr: {_yaml(b.lr)}  # {found}"]
        for key, value in b.settings.items():
            found = f"tuning: run {b.run}" if key in b.searched else "not searched"
            lines.append(f"    {key}: {_yaml(value)}  # {found}")
    return "\n".join(lines) + "\n"


def _yaml(value: Any) -> str:
    """YAML 1.1 reads 5e-7 as text, 5.0e-7 as a number."""
    if not isinstance(value, float):
        return json.dumps(value)
    text = repr(value)
    head, e, tail = text.partition("e")
    return text if not e or "." in head else f"{head}.0e{tail}"
