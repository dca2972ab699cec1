"""Makes the trials of a planned search (`pobench.workflows.tune`), loss by loss in turn, and writes every trial and the
chosen values. Each trial is an ordinary run below `runs/<setting>/tuning`."""

from __future__ import annotations

import contextlib
import hashlib
import math
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from pobench.errors import PobenchError
from pobench.files import nan_as_null, write_text
from pobench.locks import HeldError, hold
from pobench.results.metrics import METRICS, score_vectors
from pobench.results.scores import scores_of, vectors_in
from pobench.runs.execute import Outcome, alone, execute
from pobench.runs.executor import Executor, make_executor
from pobench.runs.plan import Plan, make_plan
from pobench.runs.pool import pool
from pobench.settings.job import Job
from pobench.workflows.chosen import Best, overlay
from pobench.workflows.grid import points_of
from pobench.workflows.trials import distributions, ended, open_trials, rank, trial_of, write_trials
from pobench.workflows.tune import Search, Tuning, note_change, searched_names, study_causes, study_name


# ---------------------------------------------------------------- the search
@dataclass(frozen=True)
class Tuned:
    """The result of a command. failed: `loss: reason`, one for each failed trial."""

    best: list[Best]
    failed: list[str]
    made: int  # trials made by this command
    csv: Path
    chosen: Path


@dataclass(frozen=True)
class Trial:
    """A trial that has begun. asked: Optuna's. shown: its values, for people. plan: of its jobs; None where the loss refuses
    the values, which `fault` says."""

    search: Search
    asked: Any
    shown: str
    jobs: Sequence[Job]
    plan: Plan | None
    fault: str = ""

    @property
    def runs(self) -> list[str]:
        """The runs that it trains, one for each seed."""
        tasks = self.plan.tasks if self.plan is not None else ()
        return list(dict.fromkeys(task.run for task in tasks if task.kind == "loss"))


class _Made(NamedTuple):
    """What a trial came to: the objective's value, low, high, n and start, or the reasons why there is none."""

    measured: dict[str, float]
    reasons: list[str]


def tune(
    tuning: Tuning,
    *,
    keep_models: bool = False,
    parallel: int = 1,
    executor: Executor | None = None,
    announce: Callable[[str], None] = lambda text: None,
) -> Tuned:
    """Make the trials that are left, losses in turn, and write every trial and the chosen values.

    keep_models: keep the trained weights of finished trials, not only their numbers. parallel: trials that run at one time,
    each in a process of its own. The values that are tried depend on it with tpe alone, and never on which trial ends
    first. executor: where their jobs run; default: on this machine. A failed trial does not stop the others; it counts in this
    command and the next one tries it again. Raises PobenchError while another command searches the same setting;
    KeyboardInterrupt.
    """
    tuning.folder.mkdir(parents=True, exist_ok=True)
    try:
        with hold(tuning.folder / ".tune.lease"), alone(tuning.runs_folder):
            return _Tuner(tuning, keep_models, parallel, executor or make_executor("local", {}), announce).work()
    except HeldError as held:
        where = str(tuning.folder)
        raise PobenchError(f"another `pobench tune` is at work in {where!r} ({held.holder}); wait for it") from None


class _Tuner:
    def __init__(
        self, tuning: Tuning, keep_models: bool, parallel: int, executor: Executor, announce: Callable[[str], None]
    ) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self.tuning, self.keep_models, self.parallel, self.announce = tuning, keep_models, parallel, announce
        self.executor, self.executors = executor, list[Executor]()
        self.better = METRICS[tuning.about.metric].better
        self.storage = open_trials(tuning.folder)
        self.first = self._plan([s.base for s in tuning.searches])
        self.studies = {s.loss: self._study(s) for s in tuning.searches}
        self.failed: list[str] = []
        self.made = 0

    def _plan(self, jobs: Sequence[Job], like: Plan | None = None) -> Plan:
        """The plan of jobs, without the results that a trial does not need."""
        stages = self.tuning.stages
        plan = make_plan(jobs, self.tuning.folder, stages, self.tuning.plugins, like=like)
        tasks = (
            replace(t, nodes={k: node for k, node in t.nodes.items() if ":" in k or k in stages}) for t in plan.tasks
        )
        return replace(plan, tasks=tuple(tasks))

    def _prepare(self) -> None:
        """Make what all trials share: the start model, its reference sums and its evaluation."""
        shared = tuple(t for t in self.first.tasks if t.kind != "loss")
        for outcome in self._execute(replace(self.first, tasks=shared)):
            if outcome.status == "failed":
                raise PobenchError(f"the start model of the search could not be made: {outcome.reason}")
        self.first = self._plan([s.base for s in self.tuning.searches])

    def _execute(self, plan: Plan) -> list[Outcome]:
        """Run a plan, in whichever thread."""
        executor = self.executor.fresh()
        self.executors.append(executor)
        return execute(plan, executor=executor, held=(self.tuning.runs_folder,))

    @contextlib.contextmanager
    def _stopping(self) -> Iterator[None]:
        """Where the search is interrupted, its threads wait for no more jobs."""
        try:
            yield
        except BaseException:
            for executor in self.executors:
                executor.stop()
            raise

    def _study(self, search: Search) -> Any:
        """The loss's study, created or continued, with this command's grid cells queued. Says what changed if the same
        search was made before from other content."""
        import optuna

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
        self._queue(search, study)
        return study

    def _queue(self, search: Search, study: Any) -> None:
        """Queue the values that come next: of a grid the cells that are left, in its order; else those of the trials that a
        killed command had begun, which are tried once more and find what is done of them.

        Cells that the setting's file of trials holds are taken from there.
        """
        from optuna.trial import TrialState

        grid = self.tuning.sampler == "grid"
        begun, waiting = (
            study.get_trials(deepcopy=False, states=(state,)) for state in (TrialState.RUNNING, TrialState.WAITING)
        )
        points = [{**t.system_attrs.get("fixed_params", {}), **t.params} for t in (*begun, *waiting)]
        left = [point for point in points if point.keys() == search.space.keys()]
        if grid:
            done = [t.user_attrs["point"] for t in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))]
            left = [point for point in points_of(search.space, search.loss)[: self.tuning.trials] if point not in done]
        if not begun and points == left:
            return
        for trial in (*begun, *waiting):
            self.storage.set_trial_state_values(trial._trial_id, state=TrialState.FAIL)
        before = self.tuning.made_before
        before = before[before["study"] == study.study_name]
        for point in left:
            job = None if before.empty or not grid else self.tuning.jobs(search, point)[0]
            made = None if job is None else trial_of(point, job, search.space, before)
            study.enqueue_trial(point) if made is None else study.add_trial(made)

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
        running: dict[Future[_Made], Trial] = {}  # in the order in which they began
        rests_on_results = self.tuning.sampler == "tpe"

        def settle(most: int) -> None:
            """Store what trials came to, in the order in which they began, until at most `most` run. Where later values rest
            on results, only as many are stored as make room, so the values do not depend on which trial ends first."""
            in_order = rests_on_results or not most
            while True:
                done = [future for future in running if future.done()]
                for future in done:
                    future.result()  # one that was interrupted ends the search
                while running and (first := next(iter(running))) in done and (len(running) > most or not in_order):
                    trial = running.pop(first)
                    failed[trial.search.loss] += not self._finish(trial, first.result())
                    self._write()
                left = [future for future in running if in_order or future not in done]
                if len(left) <= most:
                    return
                wait(left[:1] if in_order else left, return_when=FIRST_COMPLETED)

        with pool(self.parallel) as submit, self._stopping():
            for turn in range(self.tuning.trials):
                for search in self.tuning.searches:
                    settle(self.parallel - 1)
                    begun = sum(trial.search is search for trial in running.values())
                    if self._done(self.studies[search.loss]) + failed[search.loss] + begun <= turn:
                        trial = self._begin(search)
                        running[submit(self._make, trial)] = trial
            settle(0)
        return Tuned(self._write(), self.failed, self.made, self.tuning.csv, self.tuning.chosen)

    def _write(self) -> list[Best]:
        """Write all trials and the values chosen so far."""
        counted = {self.studies[search.loss].study_name: self._choose_from(search) for search in self.tuning.searches}
        write_trials(self.tuning.csv, self.storage, counted)
        best = [b for s in self.tuning.searches if (b := self._best(s)) is not None]
        if best:
            write_text(self.tuning.chosen, overlay(self.tuning, best))
        return best

    def _begin(self, search: Search) -> Trial:
        """The next trial of a loss: its values, and the plan of its runs."""
        from optuna.trial import TrialState

        if not self.made:
            self._prepare()
        study = self.studies[search.loss]
        study.sampler = self._sampler(study)
        asked = study.ask(distributions(search.space, self.tuning.sampler))
        point = dict(asked.params)
        asked.set_user_attr("point", point)
        self.made += 1
        shown = ", ".join(
            f"{key} {value:g}" if isinstance(value, float) else f"{key} {value}" for key, value in point.items()
        )
        number = self._done(study) + len(study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)))
        self.announce(f"{search.loss}: trial {number} of {self.tuning.trials} ({shown})")
        try:
            jobs = self.tuning.jobs(search, point)
            return Trial(search, asked, shown, jobs, self._plan(jobs, like=self.first))
        except PobenchError as error:  # a sampled value may lie outside the loss's range
            return Trial(search, asked, shown, [], None, str(error))

    def _make(self, trial: Trial) -> _Made:
        """Run a trial's plan, in whichever thread. Returns the objective, or the reasons why there is none."""
        if trial.plan is None:
            return _Made({}, [trial.fault])
        try:
            outcomes = self._execute(trial.plan)
        except PobenchError as error:
            return _Made({}, [str(error)])
        reasons = [outcome.reason for outcome in outcomes if outcome.status == "failed"]
        measured = {} if reasons else self._measure(trial.plan.tasks[-1].start, trial.runs)
        if not reasons and math.isnan(measured.get("value", math.nan)):
            reasons = [f"no {self.tuning.about.metric} was measured"]
        return _Made(measured, reasons)

    def _finish(self, trial: Trial, made: _Made) -> bool:
        """Store what a trial came to. Returns False where it failed."""
        from optuna.trial import TrialState

        study, asked = self.studies[trial.search.loss], trial.asked
        asked.set_user_attr("runs", trial.runs)
        if made.reasons:
            asked.set_user_attr("reason", made.reasons[0])
            study.tell(asked, state=TrialState.FAIL)
            self.failed.append(f"{trial.search.loss} ({trial.shown}): {made.reasons[0]}")
            return False
        first = trial.jobs[0]
        asked.set_user_attr("settings", {k: v for k, v in first.loss_settings.items() if v is not None})
        asked.set_user_attr("lr", first.train.lr)
        asked.set_user_attr("measured", nan_as_null(made.measured))
        if not self.keep_models:  # before the trial counts as done: a command that is killed between leaves none behind
            for run in trial.runs:
                shutil.rmtree(self.tuning.folder / run / "model", ignore_errors=True)
        study.tell(asked, made.measured["value"])
        return True

    def _sampler(self, study: Any) -> Any:
        """A sampler seeded by the number of trials that were made or run, so that a continued search draws the values that an
        undisturbed one draws."""
        import optuna
        from optuna.trial import TrialState

        number = len(ended(study)) + len(study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)))
        seed = int(hashlib.sha256(f"{study.study_name} {number}".encode()).hexdigest()[:8], 16)
        if self.tuning.sampler == "tpe":
            return optuna.samplers.TPESampler(seed=seed, n_startup_trials=max(2, self.tuning.trials // 3))
        return optuna.samplers.RandomSampler(seed=seed)  # for a grid it draws nothing: every cell is queued

    def _measure(self, start: str, runs: Sequence[str]) -> dict[str, float]:
        """The objective's value, low, high and n over all seeds, and the start model's value."""
        metric, root = self.tuning.about.metric, self.tuning.folder
        several = len(runs) > 1  # seeds are pooled, with prompts as the clusters of the interval
        rows = _pooled(root, runs, start) if several else scores_of(root, runs[0])
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
        trial = min(done, key=rank(-1 if self.better == "higher" else 1))
        attrs = trial.user_attrs
        measured = _null_as_nan(attrs["measured"])
        varied = searched_names(search)
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
            self._tried(search),
            attrs["runs"][0],
            self.studies[search.loss].study_name,
        )

    def _tried(self, search: Search) -> int:
        """How many trials the choice was made from, those that failed among them: a value that breaks has had its turn."""
        tried = ended(self.studies[search.loss])
        if self.tuning.sampler == "grid":
            points = [trial.user_attrs["point"] for trial in tried]
            return sum(point in points for point in points_of(search.space, search.loss)[: self.tuning.trials])
        return min(len(tried), self.tuning.trials)


def _pooled(root: Path, runs: Sequence[str], start: str) -> list[dict[str, Any]]:
    """The rows of scores of several runs together."""
    return score_vectors([vectors_in(root, run) for run in runs], [vectors_in(root, start)])


def _row_of(rows: Iterable[Mapping[str, Any]], metric: str) -> dict[str, float]:
    """The row of a metric; with several judges, of the first `<metric>@<judge>`."""
    matches = [r for r in rows if r["metric"] == metric] or [r for r in rows if r["metric"].partition("@")[0] == metric]
    return _null_as_nan(matches[0]) if matches else {}


def _null_as_nan(numbers: Mapping[str, Any]) -> dict[str, Any]:
    return {name: math.nan if value is None else value for name, value in numbers.items()}
