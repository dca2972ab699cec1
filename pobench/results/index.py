"""What is known of each stored run without its frames: its row of the frame `runs`, and where its frames lie.

All of it stands in a run's small files: configuration, markers, environment. Reading these takes a fraction of a
millisecond, understanding them several, so what they say is remembered in the cache folder under the digest of their content:
an entry whose files hold other bytes is never used, and one that nobody made is read from the run.
"""

from __future__ import annotations

import glob
import hashlib
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from pobench.errors import CorruptError, PobenchError, nearest
from pobench.files import whole
from pobench.identity import code_digest, name_of
from pobench.printing import say
from pobench.registry import losses
from pobench.results.run_folder import NodeFolder, RunFolder
from pobench.sources import cache_folder

SMALL = ("config.yaml", "environment.json", "failed.json", "finished.json", "shown.json", "trained.json")
FEWEST = 32  # runs of a setting; the entries of fewer are not remembered


class Home(NamedTuple):
    """Where a run's rows of a frame lie. folder: below the runs. sha256: None for protocol 1, which stored none. asked: a
    digest of what the rows are about, whatever seed answers are drawn by."""

    folder: str
    sha256: str | None
    asked: str


@dataclass(frozen=True)
class Entry:
    """row: of the frame `runs`, without what the registry says of its loss. homes: frame → where its rows lie, of the results
    that are shown and finished."""

    row: Mapping[str, Any]
    homes: Mapping[str, Home]

    @property
    def run(self) -> str:
        return str(self.row["run"])

    @property
    def start(self) -> str | None:
        """The run of its start model; None if it is one itself."""
        return None if self.row["kind"] == "start" else str(self.row["start"])

    def digests(self, *frames: str) -> dict[str, str | None]:
        """Frame → the sha256 of its rows, of those frames that it has."""
        return {frame: self.homes[frame].sha256 for frame in frames if frame in self.homes}


def run_row(entry: Entry) -> dict[str, Any]:
    """The run's row of the frame `runs`."""
    row = dict(entry.row)
    title, reference = row["title"], row["reference"]
    if row["kind"] != "start":
        with suppress(PobenchError):  # a plug-in that is not loaded now
            loss = losses.get(row["loss"])
            title, reference = loss.title, row["configured_reference"] if loss.reads_reference else ""
            if row["trained_on"].startswith("pairs") and loss.unit != "pairs":
                row["trained_on"] += f" read as {loss.unit}"
    seconds = row["reference_seconds"]
    row |= {"title": title, "reference": reference}
    row["reference_seconds"] = (math.nan if reference == "cached" else 0.0) if seconds is None else seconds
    return {name: value for name, value in row.items() if name != "configured_reference"}


# ---------------------------------------------------------------- of many runs
def entries(root: Path, setting: str | None = None, left_out: list[str] | None = None) -> Iterator[Entry]:
    """The entry of every stored run, or of a setting's, by name. left_out: takes the names of damaged runs."""
    left_out = [] if left_out is None else left_out
    by_setting: dict[str, list[str]] = {}
    if setting is not None and (setting in ("", "..") or Path(setting).name != setting):  # may lead out of the folder
        return
    for path in sorted(root.glob(f"{_literal(setting)}/*/config.yaml")):
        by_setting.setdefault(path.parent.parent.name, []).append(path.parent.name)
    for path in sorted(root.glob(f"{_literal(setting)}/*/shown.json")):  # a pair of losses has no configuration
        name = path.parent.name
        if name not in by_setting.get(path.parent.parent.name, ()) and not name.startswith("pair-"):
            config = CorruptError(
                path.with_name("config.yaml"), "the file is gone; repeat the command, and it is made anew"
            )
            leave_out(f"{path.parent.parent.name}/{name}", config, left_out)
    for name in sorted(by_setting):
        yield from _of_setting(root, name, by_setting[name], left_out)


def leave_out(run: str, error: CorruptError, left_out: list[str]) -> None:
    """Say that a damaged run is not read; the others are. left_out: takes its name."""
    left_out.append(run)
    say(f"{run} is left out: {error}")


def settings_below(root: Path) -> list[str]:
    """The settings that have stored runs."""
    return sorted({path.parent.parent.name for path in root.glob("*/*/config.yaml")})


def no_runs(root: Path, setting: str | None, stored: set[str]) -> PobenchError:
    """The fault of a folder without runs, or without those of a setting. stored: settings that have some."""
    if setting and stored:
        hint = f"{nearest(setting, stored)} Known: {', '.join(sorted(stored))}"
        return PobenchError(f"no stored runs in {str(root)!r} for setting {setting!r}{hint}")
    return PobenchError(f"no stored runs in {str(root)!r}; `pobench run` makes some")


def _literal(setting: str | None) -> str:
    return "*" if setting is None else glob.escape(setting)


def _of_setting(root: Path, setting: str, names: list[str], left_out: list[str]) -> Iterator[Entry]:
    file = _file(root, setting)
    known = _remembered(file) if len(names) >= FEWEST else {}
    texts: dict[str, str] = {}
    new = False
    for name in names:
        folder = RunFolder(root, f"{setting}/{name}")
        digest = _digest(folder)
        text = known.get(digest)
        entry = None if text is None else _entry(text)
        if entry is None or entry.run != folder.run:
            try:
                entry, new = read_entry(folder), True
            except CorruptError as error:
                leave_out(folder.run, error, left_out)
                continue
            text = json.dumps(asdict(entry))
        texts[digest] = str(text)
        yield entry
    if len(names) >= FEWEST and (new or len(texts) != len(known)):
        with suppress(OSError), whole(file, sync=False) as partial:  # without a writable cache they are read again
            frame = pd.DataFrame({"of": list(texts), "entry": list(texts.values())})
            frame.to_parquet(partial, index=False, compression="zstd", write_page_checksum=True)


def _file(root: Path, setting: str) -> Path:
    where = hashlib.sha256(os.fsencode(root.resolve() / setting)).hexdigest()[:24]
    return cache_folder() / "index" / f"{where}.parquet"


def _remembered(file: Path) -> dict[str, str]:
    """digest of a run's small files → its entry as JSON."""
    try:
        frame = pd.read_parquet(file, page_checksum_verification=True)
        return dict(zip(frame["of"].astype(object), frame["entry"].astype(object), strict=True))
    except (OSError, ValueError, KeyError):  # none, or half of one
        return {}


def _entry(text: str) -> Entry:
    stored = json.loads(text)
    return Entry(stored["row"], {frame: Home(*home) for frame, home in stored["homes"].items()})


@cache
def _code() -> bytes:
    return code_digest(read_entry).encode()


def _digest(folder: RunFolder) -> str:
    """Of the run's name, its small files, the markers of the results that are shown, and the names of the others."""
    digest = hashlib.sha256(_code() + os.fsencode(folder.run))
    inside = sorted(os.listdir(folder.path))
    data = {name: (folder.path / name).read_bytes() for name in SMALL if name in inside}
    shown: set[str] = set()
    with suppress(ValueError, AttributeError):
        shown = set(json.loads(data.get("shown.json", b"{}")).values())
    for name in inside:
        if name.endswith(".parquet"):  # of protocol 1
            data[name] = b""
        elif _is_result(name):
            with suppress(FileNotFoundError, NotADirectoryError):
                marker = folder.path / name / NodeFolder.marker
                data[f"{name}/"] = marker.read_bytes() if name in shown else str(marker.stat().st_size > 0).encode()
    for name, content in data.items():
        digest.update(f"\n{name} {len(content)}\n".encode())
        digest.update(content)
    return digest.hexdigest()


def _is_result(name: str) -> bool:
    stage, _, digest = name.rpartition("-")
    return bool(stage) and len(digest) == 12 and not name.startswith((".", "checkpoint-"))


# ---------------------------------------------------------------- of one run
def read_entry(folder: RunFolder) -> Entry:
    """The entry of a run, from its files. Raises CorruptError where a marker or the configuration cannot be read."""
    try:
        row = _row(folder)
        if wrong := [name for name in ("setting", "kind", "loss", "start") if not isinstance(row[name], str)]:
            raise TypeError(f"{wrong[0]} is no text")
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise CorruptError(
            folder.path / "config.yaml", f"it describes no run ({type(error).__name__}: {error})"
        ) from error
    return Entry(row, homes_of(folder))


def homes_of(folder: RunFolder) -> dict[str, Home]:
    """Frame → where the run's rows lie, of the results that are shown and finished."""
    homes = {}
    for frame, node in folder.frames().items():
        finished = node.finished  # protocol 1 stored no causes
        causes = node.about["causes"] if finished else {"folder": str(node.path)}
        asked = name_of({cause: value for cause, value in causes.items() if cause != "seed"})
        homes[frame] = Home(node.path.relative_to(folder.runs).as_posix(), node.digest(frame), asked)
    return homes


def _row(folder: RunFolder) -> dict[str, Any]:
    config = folder.config
    start = config["kind"] == "start"
    about = folder.trained or (folder.read_json("finished.json") if folder.has("finished.json") else {})
    failure = folder.failure
    name = "start" if start else config["loss"]
    reference = "" if start else config["train"].get("reference", "cached")
    unit = next((name for name in ("pairs", "lists", "answers") if name in about), "")
    pairs_from = "best_worst" if start else config["data"].get("pairs_from", "best_worst")
    return {
        "run": folder.run,
        "setting": config["setting"],
        "kind": config["kind"],
        "loss": name,
        "title": "start model" if start else about.get("title", name),
        "seed": -1 if start else config["seed"],
        "settings": json.dumps({} if start else config["loss_settings"]),
        "lr": math.nan if start else config["train"]["lr"],
        "epochs": math.nan if start else config["train"]["epochs"],
        "batch_size": math.nan if start else config["train"]["batch_size"],
        "start": config["start"],
        "round": config.get("round", 1),
        **{name: config.get(name, "") for name in ("begins", "rounds_reference", "recipe")},
        "pairs": about.get(unit, math.nan),
        "trained_on": f"pairs from {pairs_from}" if unit == "pairs" and pairs_from != "best_worst" else unit,
        "seconds": about.get("seconds", math.nan),
        "waited": about.get("waited", math.nan),
        "reference": "" if start else about.get("reference", ""),
        "configured_reference": reference,
        "reference_seconds": about.get("reference_seconds"),
        "peak_memory": about.get("peak_memory", math.nan),
        "tokens": about.get("tokens", math.nan),
        "status": "failed" if failure else "finished" if _finished(folder, start) else "unfinished",
        "reason": failure or "",
        "density_ratio": json.dumps(about.get("density_ratio", {})),
        "order": about.get("order", ""),
        "protocol": config["protocol"],
        "note": config["model"].get("note", ""),
        "environment": json.dumps(_environment(folder)),
        "sources": json.dumps({} if start else _sources(config["origin"], config["loss"], config["loss_settings"])),
        "length_bias": math.nan if start else config["data"].get("length_bias", 0.0),
        "others": sum(map(folder.others, {**folder.newest, **folder.shown})),
        **_values_from(config, start),
    }


def _environment(folder: RunFolder) -> Any:
    """Versions, machine and devices; a run without is a run all the same."""
    try:
        return folder.read_json("environment.json") if folder.has("environment.json") else {}
    except CorruptError as error:
        say(f"the environment of {folder.run} is left out: {error}")
        return {}


def _values_from(config: Mapping[str, Any], start: bool) -> dict[str, Any]:
    """The columns that say where the values come from; earlier versions did not store it."""
    if start:  # its configuration is that of the loss with which it was planned
        return {"values": "", "trials": math.nan, "tuned": "{}"}
    tuned, origin = config.get("tuned") or {}, config.get("values_from", "")
    return {"values": origin, "trials": tuned.get("trials", math.nan), "tuned": json.dumps(tuned)}


def _finished(folder: RunFolder, start: bool) -> bool:
    """Whether the model is trained, and the last of heldout, answers and judge that the newest command found or made is stored.
    They are made in this order. Earlier versions named those, too, that `--stages` left out."""
    if not folder.has("shown.json"):  # protocol 1
        return folder.has("finished.json")
    last = next((folder.shown[stage] for stage in ("judge", "answers", "heldout") if stage in folder.shown), None)
    return (start or folder.trained is not None) and (last is None or folder.node(last).finished)


def _sources(origin: Mapping[str, str], loss: str, settings: Iterable[str]) -> dict[str, str]:
    """Setting → where its value comes from, for the loss's own settings and for lr, epochs and batch_size."""
    of_train = {f: origin[f"train.{f}"] for f in ("lr", "epochs", "batch_size") if f"train.{f}" in origin}
    of_parts = {key: origin[key] for key in settings if key in origin}  # of an expression
    of_loss = {key.removeprefix(f"{loss}."): where for key, where in origin.items() if key.startswith(f"{loss}.")}
    return {**of_train, **of_parts, **of_loss}
