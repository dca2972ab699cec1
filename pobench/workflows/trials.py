"""Stored trials: those of a search's folder, in Optuna's journal, and those of a file, so that a search of the same content
does not make them again.

A journal is a file that grows by whole lines; machines may share its file system, as no SQLite file may.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from pobench.columns import FRAMES
from pobench.errors import CorruptError
from pobench.files import whole, write_bytes, write_text
from pobench.printing import say
from pobench.results.load import digest_fault, digest_file, read_trials
from pobench.settings.job import Job
from pobench.sources import fetch_rows
from pobench.spreadsheet import csv_bytes
from pobench.workflows.grid import Point, Space


def made_before(source: str | None) -> pd.DataFrame:
    """The finished trials of `tune.trials`, rows of the frame `tuning`. Raises PobenchError where there is no such file."""
    if source is None:
        return FRAMES["tuning"].of()
    paths = fetch_rows(source, option="--set tune.trials=PATH").paths
    trials = FRAMES["tuning"].of(pd.concat([read_trials(path) for path in paths], ignore_index=True))
    return trials[trials["status"] == "finished"]


def trial_of(point: Point, job: Job, space: Space, before: pd.DataFrame) -> Any:
    """The finished Optuna trial of a cell of a grid; None where none of the rows has its values.

    job: of the cell. before: trials of the same study, whose name is a digest of all that decides their results.
    """
    from optuna.trial import create_trial

    settings = {k: v for k, v in job.loss_settings.items() if v is not None}
    for row in before.to_dict("records"):
        if row["lr"] == job.train.lr and json.loads(row["settings"]) == settings:
            measured = {k: None if pd.isna(row[k]) else row[k] for k in ("value", "low", "high", "n", "start")}
            attrs = {"point": point, "runs": str(row["runs"]).split(), "settings": settings, "lr": row["lr"]}
            return create_trial(
                params=dict(point),
                distributions=distributions(space, "grid"),
                value=row["value"],
                user_attrs={**attrs, "measured": measured},
            )
    return None


def distributions(space: Space, sampler: str) -> dict[str, Any]:
    """The values of each setting for a sampler: the grid's own, or a range between the smallest and the largest, logarithmic
    where all are positive."""
    from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution

    chosen: dict[str, BaseDistribution] = {}
    for key, values in space.items():
        numbers = [v for v in values if isinstance(v, int | float) and not isinstance(v, bool)]
        if sampler == "grid" or len(numbers) < len(values) or len(set(numbers)) < 2:
            chosen[key] = CategoricalDistribution(values)
        else:
            chosen[key] = FloatDistribution(float(min(numbers)), float(max(numbers)), log=min(numbers) > 0)
    return chosen


# ---------------------------------------------------------------- the journal of a search
JOURNAL, DATABASE = "optuna.log", "optuna.db"


def open_trials(folder: Path) -> Any:
    """Optuna's storage of a search's folder, to be written by one command. Trials of an earlier version (`optuna.db`, SQLite)
    are read once, into a new journal; their file stays."""
    journal, database = folder / JOURNAL, folder / DATABASE
    if journal.is_file() and (fault := _journal_fault(journal)):
        say(
            f"{CorruptError(journal, fault)}; it is set aside, and its trials are made again, of the runs that are stored"
        )
        journal.rename(journal.with_name(f"{JOURNAL}.damaged"))
        digest_file(journal).unlink(missing_ok=True)
    if not journal.is_file() and database.is_file():
        with whole(journal) as partial:
            _copy_studies(_database(database), _journal(partial))
    if journal.is_file() and not (stored := journal.read_bytes()).endswith(b"\n"):
        write_bytes(journal, stored[: stored.rfind(b"\n") + 1])  # a line that a killed command left incomplete
    journal.with_name(f"{JOURNAL}.lock").unlink(missing_ok=True)  # and its lock: no other command is at work here
    return _journal(journal)


def _journal_fault(journal: Path) -> str:
    """Why a journal cannot be gone on with; "" if it can."""
    if fault := digest_fault(journal):
        return fault
    data = journal.read_bytes()
    try:
        for line in data[: data.rfind(b"\n") + 1].splitlines():
            json.loads(line)
    except ValueError as error:
        return f"it cannot be read ({type(error).__name__})"
    return ""


def stored_trials(folder: Path) -> Any:
    """The same, in memory, of a folder that is only read; None where it holds no search."""
    from optuna.storages import InMemoryStorage

    stored = next((path for name in (JOURNAL, DATABASE) if (path := folder / name).is_file()), None)
    if stored is None:
        return None
    storage = InMemoryStorage()
    with tempfile.TemporaryDirectory() as copy:
        shutil.copy2(stored, copy)
        if digest_file(stored).is_file():
            shutil.copy2(digest_file(stored), copy)
        _copy_studies(open_trials(Path(copy)), storage)
    return storage


def _journal(path: Path) -> Any:
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    return JournalStorage(JournalFileBackend(str(path)))


def _database(path: Path) -> Any:
    from optuna.storages import RDBStorage

    return RDBStorage(f"sqlite:///{path.absolute()}")


def _copy_studies(source: Any, target: Any) -> None:
    import optuna

    for name in sorted(optuna.get_all_study_names(source)):
        optuna.copy_study(from_study_name=name, from_storage=source, to_storage=target)


def ended(study: Any) -> list[Any]:
    """The trials that came to a value, or to a reason why there is none, in their order."""
    from optuna.trial import TrialState

    trials = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.FAIL))
    return [t for t in trials if t.state == TrialState.COMPLETE or "reason" in t.user_attrs]


def trial_rows(storage: Any, counted: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """Rows of the frame `tuning`: every trial of every study. counted: study → the trials that its choice is made from;
    default: all that finished."""
    import optuna
    from optuna.trial import TrialState

    rows = []
    for name in sorted(optuna.get_all_study_names(storage)):
        study = optuna.load_study(study_name=name, storage=storage)
        tried = ended(study)
        done = [t for t in tried if t.state == TrialState.COMPLETE]
        sign = 1 if study.direction == optuna.study.StudyDirection.MINIMIZE else -1
        best = min(counted.get(name, done), key=rank(sign), default=None)
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


def write_trials(path: Path, storage: Any, counted: Mapping[str, Sequence[Any]] | None = None) -> None:
    """Write `trials.csv`: all trials of a search's folder. Beside it lies its digest, as `sha256sum` writes one."""
    data = csv_bytes(FRAMES["tuning"].of(trial_rows(storage, counted or {})))
    digest = digest_file(path)
    digest.unlink(missing_ok=True)
    write_bytes(path, data)
    write_text(digest, f"{hashlib.sha256(data).hexdigest()}  {path.name}\n")
    if (journal := path.with_name(JOURNAL)).is_file():
        logged = journal.read_bytes()
        write_text(
            digest_file(journal), f"{hashlib.sha256(logged).hexdigest()}  {JOURNAL}, of its bytes: {len(logged)}\n"
        )


def rank(sign: int) -> Callable[[Any], tuple[float, float, int]]:
    """The sort key of trials, best first; a tie goes to the smaller learning rate."""
    return lambda trial: (sign * trial.value, trial.user_attrs["lr"], trial.number)


# ---------------------------------------------------------------- trials of two folders
@dataclass(frozen=True)
class TrialsMerge:
    """What one search's folder lacks of another. differing: a trial that both have → that its value differs. studies: study →
    its trials that are lacking. file: a `trials.csv` of no search, which is copied."""

    folder: Path
    differing: dict[str, list[str]] = field(default_factory=dict)
    source: Any = None
    studies: dict[str, list[Any]] = field(default_factory=dict)
    file: Path | None = None

    @property
    def copied(self) -> int:
        return sum(map(len, self.studies.values()))

    def write(self) -> None:
        import optuna

        if self.file is not None:
            write_bytes(self.folder / self.file.name, self.file.read_bytes())
        if not self.copied:
            return
        storage = open_trials(self.folder)
        for name, trials in self.studies.items():
            theirs = optuna.load_study(study_name=name, storage=self.source)
            ours = optuna.create_study(
                storage=storage, study_name=name, direction=theirs.direction, load_if_exists=True
            )
            for key, value in theirs.user_attrs.items():
                ours.set_user_attr(key, value)
            for trial in trials:
                ours.add_trial(trial)
        write_trials(self.folder / "trials.csv", storage)


def merge_trials(into: Path, other: Path) -> TrialsMerge:
    """What a search's folder lacks of another's trials: of a study, named by content, those at values that it has not tried.
    Nothing is written."""
    import optuna

    source, table = stored_trials(other), other / "trials.csv"
    if source is None:
        return _merge_table(into, table) if table.is_file() else TrialsMerge(into)
    storage = stored_trials(into)
    known = optuna.get_all_study_names(storage) if storage is not None else []
    differing: dict[str, list[str]] = {}
    studies = {}
    for name in sorted(optuna.get_all_study_names(source)):
        trials = ended(optuna.load_study(study_name=name, storage=source))
        ours = ended(optuna.load_study(study_name=name, storage=storage)) if name in known else []
        tried = {_values(trial) for trial in ours}
        done = {_values(trial): trial.value for trial in ours if trial.value is not None}
        studies[name] = [t for t in trials if _values(t) not in (tried if t.value is None else done)]
        for trial in trials:
            value = done.get(_values(trial), trial.value)
            if None not in (value, trial.value) and value != trial.value:
                differing[f"{name}, trial at {_values(trial)}"] = [f"value {value:g} and {trial.value:g}"]
    return TrialsMerge(into, differing, source, studies)


def _merge_table(into: Path, table: Path) -> TrialsMerge:
    ours = into / table.name
    if not ours.is_file():
        return TrialsMerge(into, file=table)
    same = ours.read_bytes() == table.read_bytes()
    return TrialsMerge(into, {} if same else {str(ours): ["its trials"]})


def _values(trial: Any) -> str:
    return json.dumps(trial.user_attrs.get("point", trial.params), sort_keys=True)
