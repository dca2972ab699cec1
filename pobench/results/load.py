"""Read a runs directory as frames, or frames that `pobench.results.frame_files` wrote. `pobench.results.run_folder` describes
the files of a run.

`load_frames` returns tidy frames, one observation a row, joined by `run`. `pobench.columns` describes each frame, and
docs/frames.md prints it. `pobench.results.derived` computes further frames from these on first use.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from pobench.columns import FRAMES, STORED
from pobench.errors import CorruptError, PobenchError, nearest
from pobench.files import read_marker
from pobench.registry import losses
from pobench.results.arms import arms_of
from pobench.results.derived import Frames
from pobench.results.earlier_looks import stored_looks
from pobench.results.frame_files import counted, is_frames, read_frames
from pobench.results.mirror import local_runs
from pobench.results.run_folder import RunFolder
from pobench.results.scores import scores_of


def load_frames(runs: str | Path = "runs", setting: str | None = None) -> Frames:
    """All stored runs as tidy frames, with the columns and types of `pobench.columns.FRAMES`.

    runs: a folder of runs, or one of frames as files (`pobench analyze --format parquet`), or an address of either that fsspec
    reads (`pobench.results.mirror`). setting: read only the runs of this
    setting. Raises PobenchError if no run is stored.
    """
    root = local_runs(runs)
    if is_frames(root):
        return _of_setting(Frames(read_frames(root)), root, setting)
    folders = sorted(p.parent for p in root.glob("*/*/config.yaml") if setting in (None, p.parent.parent.name))
    if not folders:
        raise _no_runs(root, setting, {p.parent.parent.name for p in root.glob("*/*/config.yaml")})
    parts: dict[str, list[pd.DataFrame]] = {frame.name: [] for frame in STORED}
    run_rows = []  # one frame of all: a frame of one row costs as much as one of thousands
    for path in folders:
        folder = RunFolder(root, f"{path.parent.name}/{path.name}")
        run_rows.append(_run_row(folder))
        if rows := folder.steps():
            parts["steps"].append(pd.DataFrame(rows).assign(run=folder.run))
        for name, home in folder.frames().items():
            if name in parts:
                parts[name].append(home.read_frame(name).assign(run=folder.run))
        results = folder.benchmark_results()
        parts["benchmarks"] += _benchmark_rows(results, run_rows[-1])
        parts["questions"] += _question_rows(results, folder.run)
        if rows := scores_of(root, folder.run):
            parts["scores"].append(pd.DataFrame(rows).assign(run=folder.run))
    parts["runs"].append(pd.DataFrame(run_rows))
    for name in sorted({p.parent.name for p in folders}):
        parts["comparisons"] += _comparisons(root, name)
        for audit in _audits(root / name):
            rows = pd.DataFrame(json.loads(audit.read_text()))
            parts["audit"].append(rows.assign(setting=name, data=audit.parent.name.removeprefix("data-")))
        parts["looks"].append(pd.DataFrame(stored_looks(root, name)))
    for trials in (root / "trials.csv", *sorted(root.glob("*/tuning/trials.csv"))):
        if trials.is_file():
            parts["tuning"].append(read_trials(trials))
    frames = {frame.name: frame.of(_joined(parts[frame.name])) for frame in STORED}
    return Frames({**frames, "answers": counted(frames["answers"])})


def _of_setting(frames: Frames, root: Path, setting: str | None) -> Frames:
    """The rows of one setting, or all. Raises PobenchError where it has none."""
    runs = frames["runs"]
    if setting is None:
        return frames
    if setting not in set(runs["setting"]):
        raise _no_runs(root, setting, set(runs["setting"]))
    own = runs[runs["setting"] == setting]
    kept = frames.of_runs([*own["run"], *(arm.id for arm in arms_of(own))])
    of_setting = {name: kept[name][kept[name]["setting"] == setting] for name in ("audit", "looks")}
    return Frames({**kept.stored, **of_setting})


def _no_runs(root: Path, setting: str | None, stored: set[str]) -> PobenchError:
    if setting and stored:
        hint = f"{nearest(setting, stored)} Known: {', '.join(sorted(stored))}"
        return PobenchError(f"no stored runs in {str(root)!r} for setting {setting!r}{hint}")
    return PobenchError(f"no stored runs in {str(root)!r}; `pobench run` makes some")


def read_trials(path: Path) -> pd.DataFrame:
    """The trials of a search, a file `trials.csv`, with the numbers that were written to the last digit."""
    text = {c.name: "str" for c in FRAMES["tuning"].columns if c.type in ("text", "JSON")}
    return pd.read_csv(path, keep_default_na=False, na_values=[""], dtype=text, float_precision="round_trip")


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


def _run_row(folder: RunFolder) -> dict[str, Any]:
    config = folder.config
    start = config["kind"] == "start"
    about = folder.trained or (folder.read_json("finished.json") if folder.has("finished.json") else {})
    failure = folder.failure
    name = "start" if start else config["loss"]
    reference = "" if start else config["train"].get("reference", "cached")
    try:
        title = "start model" if start else losses.get(name).title
        reference = reference if not start and losses.get(name).reads_reference else ""
    except PobenchError:  # a plug-in that is not loaded now
        title, reference = about.get("title", name), about.get("reference", "")
    return {
        "run": folder.run,
        "setting": config["setting"],
        "kind": config["kind"],
        "loss": name,
        "title": title,
        "seed": -1 if start else config["seed"],
        "settings": json.dumps({} if start else config["loss_settings"]),
        "lr": math.nan if start else config["train"]["lr"],
        "epochs": math.nan if start else config["train"]["epochs"],
        "batch_size": math.nan if start else config["train"]["batch_size"],
        "start": config["start"],
        "pairs": about.get("pairs", math.nan),
        "seconds": about.get("seconds", math.nan),
        "waited": about.get("waited", math.nan),
        "reference": reference,
        "reference_seconds": about.get("reference_seconds", math.nan if reference == "cached" else 0.0),
        "peak_memory": about.get("peak_memory", math.nan),
        "tokens": about.get("tokens", math.nan),
        "status": "failed" if failure else "finished" if _finished(folder, start) else "unfinished",
        "reason": failure or "",
        "order": about.get("order", ""),
        "protocol": config["protocol"],
        "note": config["model"].get("note", ""),
        "environment": json.dumps(folder.read_json("environment.json") if folder.has("environment.json") else {}),
        "sources": json.dumps({} if start else _sources(config["origin"], config["loss"])),
        "length_bias": math.nan if start else config["data"].get("length_bias", 0.0),
        "others": sum(map(folder.others, folder.shown)),
        **_values_from(config, start),
    }


def _values_from(config: Mapping[str, Any], start: bool) -> dict[str, Any]:
    """The columns that say where the values come from; earlier versions did not store it."""
    tuned = config.get("tuned") or {}
    origin = "" if start else config.get("values_from", "")
    return {"values": origin, "trials": tuned.get("trials", math.nan), "tuned": json.dumps(tuned)}


def _finished(folder: RunFolder, start: bool) -> bool:
    """Whether the model is trained, and the results of heldout, answers and judge that the newest command named are stored."""
    if not folder.shown:
        return folder.has("finished.json")
    needed = [name for stage, name in folder.shown.items() if stage in ("heldout", "answers", "judge")]
    return (start or folder.trained is not None) and all(folder.node(name).finished for name in needed)


def _sources(origin: Mapping[str, str], loss: str) -> dict[str, str]:
    """Setting → where its value comes from, for the loss's own settings and for lr, epochs and batch_size."""
    of_loss = {key.removeprefix(f"{loss}."): where for key, where in origin.items() if key.startswith(f"{loss}.")}
    return {**{f: origin[f"train.{f}"] for f in ("lr", "epochs", "batch_size") if f"train.{f}" in origin}, **of_loss}
