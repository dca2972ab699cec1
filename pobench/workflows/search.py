"""Makes the trials of a planned search (`pobench.workflows.tune`), loss by loss in turn, and writes every trial and the
chosen values. Each trial is an ordinary run below `runs/<setting>/tuning`."""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
from filelock import FileLock, Timeout

from pobench.columns import FRAMES
from pobench.errors import PobenchError
from pobench.files import nan_as_null, write_text
from pobench.results.metrics import METRICS, score
from pobench.results.run_folder import RunFolder
from pobench.results.scores import read, scored_frames, scores_of
from pobench.runs.execute import execute
from pobench.runs.plan import make_plan
from pobench.runs.stages import MANY
from pobench.workflows.grid import Space, points_of
from pobench.workflows.tune import Search, Tuning, note_change, study_causes, study_name


# ---------------------------------------------------------------- the search
@dataclass(frozen=True)
class Best:
    """The values chosen for a loss. searched: the settings that were varied. value: the objective; low, high: its 95 %
    interval; start: the start model's value; run: the chosen trial's first run."""

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
    """The result of a command. failed: `loss: reason`, one for each failed trial."""

    best: list[Best]
    failed: list[str]
    made: int  # trials made by this command
    csv: Path
    chosen: Path


def tune(tuning: Tuning, *, keep_models: bool = False, announce: Callable[[str], None] = lambda text: None) -> Tuned:
    """Make the trials that are left, losses in turn, and write every trial and the chosen values.

    keep_models: keep the trained weights of finished trials, not only their numbers. A failed trial does not stop the
    others; it counts in this command and the next one tries it again. Raises PobenchError while another command searches
    the same setting; KeyboardInterrupt.
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
        self.first = make_plan([s.base for s in tuning.searches], tuning.folder, MANY, tuning.plugins)
        self.studies = {s.loss: self._study(s) for s in tuning.searches}
        sft = tuple(t for t in self.first.tasks if t.kind == "sft")
        for outcome in execute(replace(self.first, tasks=sft), announce=announce):
            if outcome.status == "failed":
                raise PobenchError(f"the start model of the search could not be made: {outcome.reason}")
        self.failed: list[str] = []
        self.made = 0

    def _study(self, search: Search) -> Any:
        """The loss's study, created or continued, with this command's grid cells queued. Says what changed if the same
        search was made before from other content."""
        import optuna
        from optuna.trial import TrialState

        causes = study_causes(self.tuning, search, self.first)
        name = study_name(self.tuning, search, causes)
        earlier = self._earlier(search)
        if name not in earlier and (note := note_change(earlier, causes)):
            self.announce(f"{search.loss}: {note}")
        study = optuna.create_study(
            storage=self.storage,
            study_name=name,
            direction="maximize" if self.better == "higher" else "minimize",
            load_if_exists=True,
        )
        about = {"loss": search.loss, "metric": self.tuning.about.metric, "sampler": self.tuning.sampler}
        for key, value in {**about, "setting": self.tuning.name, "causes": causes}.items():
            study.set_user_attr(key, value)
        for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):  # left by a killed command
            study.tell(trial.number, state=TrialState.FAIL)
        if self.tuning.sampler == "grid":
            known = [t.user_attrs.get("point", t.system_attrs.get("fixed_params"))
                     for t in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.WAITING))]  # fmt: skip
            for point in points_of(search.space, search.loss)[: self.tuning.trials]:
                if point not in known:
                    study.enqueue_trial(point)
        return study

    def _earlier(self, search: Search) -> dict[str, dict[str, Any]]:
        """The stored studies of the loss and the sampler, each with its causes."""
        import optuna

        attributes = {s.study_name: s.user_attrs for s in optuna.get_all_study_summaries(self.storage)}
        same = {"loss": search.loss, "sampler": self.tuning.sampler}
        return {name: attrs.get("causes", {}) for name, attrs in attributes.items() if same.items() <= attrs.items()}

    def _done(self, study: Any) -> int:
        from optuna.trial import TrialState

        return len(study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)))

    def work(self) -> Tuned:
        failed = dict.fromkeys(self.studies, 0)  # by this command; each took a turn
        for turn in range(self.tuning.trials):
            for search in self.tuning.searches:
                study = self.studies[search.loss]
                if self._done(study) + failed[search.loss] <= turn:
                    failed[search.loss] += not self._trial(search, study)
                    self._write()
        return Tuned(self._write(), self.failed, self.made, self.tuning.csv, self.tuning.chosen)

    def _write(self) -> list[Best]:
        """Write all trials and the values chosen so far."""
        write_text(self.tuning.csv, FRAMES["tuning"].of(self._rows()).to_csv(index=False))
        best = [b for s in self.tuning.searches if (b := self._best(s)) is not None]
        if best:
            write_text(self.tuning.chosen, overlay(self.tuning, best))
        return best

    def _trial(self, search: Search, study: Any) -> bool:
        """Make one trial. Returns False where it failed."""
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
            plan = make_plan(jobs, self.tuning.folder, MANY, self.tuning.plugins, like=self.first)
            outcomes = {o.run: o for o in execute(plan)}
            reasons = [f"{outcomes[r].reason}" for r in outcomes if outcomes[r].status == "failed"]
        except PobenchError as error:  # a sampled value may lie outside the loss's range
            jobs, plan, reasons = [], None, [str(error)]
        runs = list(dict.fromkeys(t.run for t in plan.tasks if t.kind == "loss")) if plan is not None else []
        trial.set_user_attr("runs", runs)
        measured = self._measure(plan.tasks[-1].start, runs) if plan is not None and not reasons else {}
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
        trial.set_user_attr("measured", nan_as_null(measured))
        study.tell(trial, measured["value"])
        if not self.keep_models:
            for run in runs:
                shutil.rmtree(self.tuning.folder / run / "model", ignore_errors=True)
        return True

    def _sampler(self, study: Any) -> Any:
        """A sampler seeded by the number of trials, so that a continued search does not draw the first values again."""
        import optuna

        number = len(study.get_trials(deepcopy=False))
        seed = int(hashlib.sha256(f"{study.study_name} {number}".encode()).hexdigest()[:8], 16)
        if self.tuning.sampler == "tpe":
            return optuna.samplers.TPESampler(seed=seed, n_startup_trials=max(2, self.tuning.trials // 3))
        return optuna.samplers.RandomSampler(seed=seed)  # for a grid it draws nothing: every cell is queued

    def _measure(self, start: str, runs: Sequence[str]) -> dict[str, float]:
        """The objective's value, low, high and n over all seeds, and the start model's value."""
        metric, root = self.tuning.about.metric, self.tuning.folder
        several = len(runs) > 1  # seeds are pooled, with prompts as the clusters of the interval
        rows = score(_frames_of(root, runs), _frames_of(root, [start])) if several else scores_of(root, runs[0])
        row, before = _row_of(rows, metric), _row_of(scores_of(root, start), metric)
        return {
            **{k: row.get(k, math.nan) for k in ("value", "low", "high", "n")},
            "start": before.get("value", math.nan),
        }

    def _choose_from(self, search: Search) -> list[Any]:
        """The finished trials that the choice is made from: the same number for every loss, even if an earlier command made
        more for one."""
        from optuna.trial import TrialState

        done = self.studies[search.loss].get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        if self.tuning.sampler == "grid":
            cells = points_of(search.space, search.loss)[: self.tuning.trials]
            return [trial for trial in done if trial.user_attrs["point"] in cells]
        return list(done[: self.tuning.trials])

    def _best(self, search: Search) -> Best | None:
        done = self._choose_from(search)
        if not done:
            return None
        trial = min(done, key=_rank(-1 if self.better == "higher" else 1))
        attrs = trial.user_attrs
        measured = _null_as_nan(attrs["measured"])
        # γ is stored as an absolute value, even where its ratio to β was searched
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
        """Rows of the frame `tuning`: every trial of every search on this setting, earlier commands included."""
        import optuna
        from optuna.trial import TrialState

        rows = []
        counted = {self.studies[search.loss].study_name: self._choose_from(search) for search in self.tuning.searches}
        for name in sorted(optuna.get_all_study_names(self.storage)):
            study = optuna.load_study(study_name=name, storage=self.storage)
            trials = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.FAIL))
            done = [t for t in trials if t.state == TrialState.COMPLETE]
            tried = [t for t in trials if t in done or "reason" in t.user_attrs]
            sign = 1 if study.direction == optuna.study.StudyDirection.MINIMIZE else -1
            best = min(counted.get(name, done), key=_rank(sign), default=None)
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


def _frames_of(root: Path, runs: Sequence[str]) -> dict[str, pd.DataFrame]:
    """The frames behind scores, of several runs together."""
    parts: dict[str, list[pd.DataFrame]] = {}
    for run in runs:
        for name, frame in read(scored_frames(RunFolder(root, run)), run).items():
            parts.setdefault(name, []).append(frame)
    return {name: pd.concat(frames, ignore_index=True) for name, frames in parts.items()}


def _rank(sign: int) -> Callable[[Any], tuple[float, float, int]]:
    """The sort key of trials, best first; a tie goes to the smaller learning rate."""
    return lambda trial: (sign * trial.value, trial.user_attrs["lr"], trial.number)


def _row_of(rows: Iterable[Mapping[str, Any]], metric: str) -> dict[str, float]:
    """The row of a metric; with several judges, of the first `<metric>@<judge>`."""
    matches = [r for r in rows if r["metric"] == metric] or [r for r in rows if r["metric"].partition("@")[0] == metric]
    return _null_as_nan(matches[0]) if matches else {}


def _null_as_nan(numbers: Mapping[str, Any]) -> dict[str, Any]:
    return {name: math.nan if value is None else value for name, value in numbers.items()}


def _distributions(space: Space, sampler: str) -> dict[str, Any]:
    """The values of each setting for a sampler: the grid's own, or a range between the smallest and the largest, logarithmic
    where all are positive."""
    from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution

    distributions: dict[str, BaseDistribution] = {}
    for key, values in space.items():
        numbers = [v for v in values if isinstance(v, int | float) and not isinstance(v, bool)]
        if sampler == "grid" or len(numbers) < len(values) or len(set(numbers)) < 2:
            distributions[key] = CategoricalDistribution(values)
        else:
            distributions[key] = FloatDistribution(float(min(numbers)), float(max(numbers)), log=min(numbers) > 0)
    return distributions


# ---------------------------------------------------------------- the chosen values
def overlay(tuning: Tuning, best: Sequence[Best]) -> str:
    """A setting that extends the tuned one with the chosen values; a comment beside each names its run."""
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
        comment = (
            f"tuning: {about.metric} {b.value:.3g}{interval}, n = {b.n}, the best of {b.trials} trials; run {b.run}"
        )
        lines += [f"  {b.loss}:", f"    lr: {_yaml(b.lr)}  # {comment}"]
        for key, value in b.settings.items():
            comment = f"tuning: run {b.run}" if key in b.searched else "not searched"
            lines.append(f"    {key}: {_yaml(value)}  # {comment}")
    return "\n".join(lines) + "\n"


def _yaml(value: Any) -> str:
    """YAML 1.1 reads 5e-7 as text, 5.0e-7 as a number."""
    if not isinstance(value, float):
        return json.dumps(value)
    text = repr(value)
    head, e, tail = text.partition("e")
    return text if not e or "." in head else f"{head}.0e{tail}"
