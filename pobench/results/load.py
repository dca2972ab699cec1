"""Read a runs directory as frames, or frames that `pobench.results.frame_files` wrote. `pobench.results.run_folder` describes
the files of a run.

`load_frames` returns tidy frames, one observation a row, joined by `run`. `pobench.columns` describes each frame, and
docs/frames.md prints it. `pobench.results.derived` computes further frames from these on first use. `open_frames` returns the
same frames without reading those that have many rows a run: a report reads of these what it shows.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import pandas as pd

from pobench.columns import FRAMES, STORED
from pobench.errors import CorruptError, PobenchError
from pobench.files import OTHER_BYTES, checked_bytes, read_marker
from pobench.printing import say
from pobench.results.arms import arms_of
from pobench.results.derived import Frames
from pobench.results.earlier_looks import stored_looks
from pobench.results.frame_files import counted, is_frames, read_frames
from pobench.results.index import Entry, entries, leave_out, no_runs, run_row, settings_below
from pobench.results.mirror import local_runs
from pobench.results.rows import Read, Rows
from pobench.results.run_folder import RunFolder
from pobench.results.score_rows import ScoreRows
from pobench.results.scores import DISTINCT, Facts, Summary, entry_of, read_frame, summary_of
from pobench.spreadsheet import original

BY_RUN = ("heldout", "trainpairs", "norms", "answers", "verdicts", "benchmark_answers", "steps")  # read when asked for
STEPS = ("steps.jsonl", "trained.json")  # of a run that logged its steps
COUNTED = {"characters", "repeated"}  # columns of `answers` that are counted from the texts


def load_frames(runs: str | Path = "runs", setting: str | None = None) -> Frames:
    """All stored runs as tidy frames, with the columns and types of `pobench.columns.FRAMES`.

    runs: a folder of runs, or one of frames as files (`pobench analyze --format parquet`), or an address of either that fsspec
    reads (`pobench.results.mirror`). setting: read only the runs of this setting. Raises PobenchError if no run is stored.
    """
    frames = open_frames(runs, setting)
    return Frames({described.name: frames[described.name] for described in STORED})


def open_frames(runs: str | Path = "runs", setting: str | None = None) -> Frames:
    """The frames of `load_frames`, of which those of `BY_RUN` and `scores` are read when they are asked for, of the runs that
    they are asked for.

    A run whose files are damaged is left out with a sentence. Raises PobenchError if no run is stored, or none is whole.
    """
    root = local_runs(runs)
    if is_frames(root):
        return _of_setting(Frames(read_frames(root)), root, setting)
    store = Store(root, setting)
    if not store.entries and store.left_out:
        raise PobenchError(
            f"none of the {len(store.left_out)} stored runs in {str(root)!r} is whole; repeat the command that made them"
        )
    if not store.entries:
        raise no_runs(root, setting, set(settings_below(root)))
    parts: dict[str, list[pd.DataFrame]] = {name: [] for name in ("benchmarks", "questions", "comparisons")}
    parts |= {name: [] for name in ("audit", "looks", "tuning")}
    rows = [run_row(entry) for entry in store.entries.values()]  # a frame of one row costs as much as one of thousands
    for row in rows:
        results = RunFolder(root, row["run"]).benchmark_results()
        parts["benchmarks"] += _benchmark_rows(results, row)
        parts["questions"] += _question_rows(results, row["run"])
    for name in sorted({row["setting"] for row in rows}):
        parts["comparisons"] += _comparisons(root, name)
        for audit in _audits(root / name):
            try:
                faults = _audit(audit)
            except CorruptError as error:
                say(f"an audit is left out: {error}")
                continue
            parts["audit"].append(faults.assign(setting=name, data=audit.parent.name.removeprefix("data-")))
        parts["looks"].append(pd.DataFrame(stored_looks(root, name)))
    for trials in (root / "trials.csv", *sorted(root.glob("*/tuning/trials.csv"))):
        if trials.is_file():
            try:
                parts["tuning"].append(read_trials(trials))
            except CorruptError as error:
                say(f"trials are left out: {error}")
    stored = {name: FRAMES[name].of(_joined(own)) for name, own in parts.items()}
    every_run = FRAMES["runs"].of(pd.DataFrame(rows))
    by_run = {name: store.rows(name) for name in BY_RUN}
    return Frames(
        {"runs": every_run, **stored},
        by_run={**by_run, "scores": ScoreRows.stored(store.entries, store.summary)},
        left_out=store.left_out,
    )


class Store:
    """The stored runs below a folder: what is known of all, and the rows of each, read when they are asked for.

    facts: of every run; its summary is made where it lacks, and its frames' bytes are checked, once. left_out: damaged runs.
    """

    def __init__(self, root: Path, setting: str | None = None) -> None:
        self.root = root
        self.left_out: list[str] = []
        self._said: set[str] = set()
        self.entries = {entry.run: entry for entry in entries(root, setting, self.left_out)}
        self.summary = lru_cache(maxsize=64)(self._summary)  # an arm's runs are asked for their metrics one by one
        self.facts: dict[str, Facts] = {}
        for run in list(self.entries):
            try:
                self.facts[run] = self.summary(run).facts
            except CorruptError as error:
                leave_out(run, error, self.left_out)
                del self.entries[run]

    def rows(self, name: str) -> Rows:
        """A frame of these runs."""
        if name == "benchmark_answers":
            having = [run for run in self.entries if any((self.root / run).glob("benchmarks/*/*/*/beside.jsonl"))]
            return Rows(name, having, self._beside)
        if name == "steps":
            logged = (run for run in self.entries if any((self.root / run / file).is_file() for file in STEPS))
            return Rows(name, logged, self._steps)
        runs = [
            run for run, entry in self.entries.items() if name in entry.homes and self.facts[run].rows.get(name) != 0
        ]
        return StoredRows(name, runs, lambda run, columns: self._read(run, name, columns), self.facts)

    def _summary(self, run: str) -> Summary:
        entry = self.entries[run]
        start = None if entry.start is None else self.entries.get(entry.start) or self._elsewhere(entry.start)
        return summary_of(self.root, entry, start, check=run not in self.facts)

    def _elsewhere(self, run: str) -> Entry:
        """Of a start model in another setting's folder."""
        return entry_of(RunFolder(self.root, run))

    def _read(self, run: str, name: str, columns: Sequence[str] | None) -> pd.DataFrame:
        home = self.entries[run].homes[name]
        if columns is None:
            rows = read_frame(self.root, home, name).assign(run=run)
            return counted(FRAMES[name].of(rows)) if name == "answers" else rows
        wanted = [*columns, *(["text"] if COUNTED & set(columns) else [])]
        rows = read_frame(self.root, home, name, wanted).assign(run=run)
        return counted(rows) if COUNTED & set(columns) else rows

    def _beside(self, run: str, columns: Sequence[str] | None) -> pd.DataFrame:
        return self._whole("benchmark_answers", "the benchmarks' answers", run, RunFolder.benchmark_answers, columns)

    def _steps(self, run: str, columns: Sequence[str] | None) -> pd.DataFrame:
        return self._whole("steps", "the steps", run, RunFolder.steps, columns)

    def _whole(
        self,
        frame: str,
        what: str,
        run: str,
        rows: Callable[[RunFolder], list[dict[str, Any]]],
        columns: Sequence[str] | None,
    ) -> pd.DataFrame:
        """The run's rows; none, with a sentence, where they are damaged. columns: None is all that a row has."""
        try:
            found = rows(RunFolder(self.root, run))
        except CorruptError as error:
            self._say_once(f"{what} of {run} are left out: {error}")
            return FRAMES[frame].of()
        if columns is not None:
            found = [{name: row.get(name) for name in columns if name != "run"} for row in found]
        return pd.DataFrame(found).assign(run=run)

    def _say_once(self, text: str) -> None:
        """What is read again, for the next figure, is not said again."""
        if text not in self._said:
            self._said.add(text)
            say(text)


class StoredRows(Rows):
    """Rows of stored runs. facts: run → what is known of its frames without reading them."""

    def __init__(self, frame: str, runs: Iterable[str], read: Read, facts: Mapping[str, Facts]) -> None:
        super().__init__(frame, runs, read)
        self._facts = facts

    def _digest(self, run: str, columns: Sequence[str]) -> str | None:
        known = tuple(columns) in DISTINCT.get(self.frame, ())
        return self._facts[run].distinct.get(" ".join(columns)) if known else None

    def _blank(self, run: str, column: str) -> tuple[int, int]:
        facts = self._facts[run]
        known = (self.frame, column) == ("verdicts", "score") and self.frame in facts.rows
        return (facts.unjudged, facts.rows[self.frame]) if known else super()._blank(run, column)


def _of_setting(frames: Frames, root: Path, setting: str | None) -> Frames:
    """The rows of one setting, or all. Raises PobenchError where it has none."""
    runs = frames["runs"]
    if setting is None:
        return frames
    if setting not in set(runs["setting"]):
        raise no_runs(root, setting, set(runs["setting"]))
    own = runs[runs["setting"] == setting]
    kept = frames.of_runs([*own["run"], *(arm.id for arm in arms_of(own, every_round=True))])
    of_setting = {name: kept[name][kept[name]["setting"] == setting] for name in ("audit", "looks")}
    return Frames({**kept.stored, **of_setting})


def read_trials(path: Path) -> pd.DataFrame:
    """The trials of a search, a file `trials.csv`, with the numbers that were written to the last digit. Raises CorruptError
    where its bytes are not those of which a digest lies beside it, or are no table."""
    if fault := digest_fault(path):
        raise CorruptError(path, f"{fault}; `pobench tune` writes it anew")
    columns = FRAMES["tuning"].columns
    text = {c.name: "str" for c in columns if c.type in ("text", "JSON")}
    exact = {c.name: _number for c in columns if c.type == "float"}
    try:
        trials = pd.read_csv(path, keep_default_na=False, na_values=[""], dtype=text, converters=exact)
    except ValueError as error:  # also no UTF-8, and no columns
        raise CorruptError(path, f"it cannot be read ({type(error).__name__})") from error
    return trials.assign(**{name: trials[name].map(original, na_action="ignore") for name in text if name in trials})


def _number(text: str) -> float:
    """The number that was written, to its last digit, which not every version of pandas reads; nan of an empty field."""
    return float(text) if text else math.nan


def digest_file(path: Path) -> Path:
    """Of a file that is read by people and other programs too: where its digest lies."""
    return path.with_name(f"{path.name}.sha256")


def digest_fault(path: Path) -> str:
    """Why a file's bytes are not those of which a digest lies beside it; "" if they are, or none lies there. Of a file that
    grows it is one of the first bytes, whose number is its last word."""
    digest = digest_file(path)
    if not digest.is_file():
        return ""
    data, words = path.read_bytes(), digest.read_text(encoding="utf-8", errors="replace").split()
    length = len(data)
    if "bytes:" in words:
        length = int(words[-1]) if words[-1].isdecimal() else -1
    if 0 <= length <= len(data) and words and hashlib.sha256(data[:length]).hexdigest() == words[0]:
        return ""
    return f"{OTHER_BYTES}, by {digest.name}"


def _comparisons(root: Path, setting: str) -> list[pd.DataFrame]:
    """The verdicts on two losses' answers, of each pair those that the newest command named."""
    pairs = (
        RunFolder(root, f"{setting}/{path.parent.name}") for path in sorted((root / setting).glob("pair-*/shown.json"))
    )
    return [pair.frames()["comparisons"].read_frame("comparisons") for pair in pairs if "comparisons" in pair.frames()]


def _audits(folder: Path) -> list[Path]:
    """The audits of a setting's token pairs. Where folders differ in nothing but the code that read the rows, the one written
    last."""
    newest: dict[str, Path] = {}
    for audit in sorted(folder.glob("data-*/audit.json"), key=lambda path: path.stat().st_mtime):
        try:
            causes = read_marker(audit.with_name("data.json"))["causes"]
        except (CorruptError, KeyError):
            causes = {"folder": audit.parent.name}
        newest[json.dumps({**causes, "reader": ""}, sort_keys=True)] = audit
    return sorted(newest.values())


def _audit(path: Path) -> pd.DataFrame:
    """Raises CorruptError where it is not what was written."""
    marker = path.with_name("data.json")
    try:
        expected = read_marker(marker).get("files", {}).get(path.name) if marker.is_file() else None
        data = path.read_bytes() if expected is None else checked_bytes(path, expected)
        return pd.DataFrame(json.loads(data))
    except ValueError as error:
        raise CorruptError(path, f"it cannot be read ({type(error).__name__})") from error


def _joined(parts: Iterable[pd.DataFrame]) -> pd.DataFrame:
    parts = [p for p in parts if len(p)]
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()


def _benchmark_rows(results: Iterable[Mapping[str, Any]], run: Mapping[str, Any]) -> list[pd.DataFrame]:
    run_columns = {name: run[name] for name in ("run", "setting", "loss", "seed")}
    kept = ("benchmark", "judge", "name", "limit")
    return [pd.DataFrame(result["rows"]).assign(**run_columns, **{k: result[k] for k in kept}) for result in results]


def _question_rows(results: Iterable[Mapping[str, Any]], run: str) -> list[pd.DataFrame]:
    """Of the results that were stored question by question, as this version does."""
    return [
        pd.DataFrame(result["questions"]).assign(run=run, benchmark=result["benchmark"], judge=result["judge"])
        for result in results
        if "questions" in result
    ]
