"""The results of one folder of runs into another, by their content names (`pobench merge A B`).

A result is a piece that is there whole or not at all: token pairs, a trained model, a stage's result, a benchmark's files, a
look, a trial of a search. Pieces of one name were made from the same; where they hold other bytes, as machines compute
otherwise, nothing is merged and every such name is listed. What A lacks is copied under a temporary name, synced and renamed.
A run's `config.yaml`, by which readers find it, comes last, so who reads A meanwhile never sees half a run, and a merge that
was killed is repeated. What is derived (scores, reports) is not copied: it is computed from A.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pobench.errors import CorruptError, PobenchError
from pobench.files import corrupt_files, digests_of, read_marker, whole
from pobench.identity import changed
from pobench.locks import HeldError, hold, holder_of
from pobench.printing import size
from pobench.results.frame_files import is_frames
from pobench.results.manifest import manifest
from pobench.results.run_folder import RunFolder
from pobench.runs.execute import LOCK, alone
from pobench.runs.sampling import GATHERED
from pobench.training import checkpoint
from pobench.workflows.trials import TrialsMerge, merge_trials

# Files of a benchmark that may differ between two stores: a score is computed from the verdicts beside it, and a configuration
# is no cause of them.
DERIVED = {"score.json", "config.yaml"}


class Piece(NamedTuple):
    """A part of a store. content: what has to agree where two stores have it, as plain data. files: path below the store →
    sha256. entries: files and folders below the store, in the order in which they are put there; the last one says that the
    piece is whole."""

    content: Mapping[str, Any]
    files: Mapping[str, str]
    entries: tuple[str, ...]


class Merged(NamedTuple):
    """What a merge did. copied, there: numbers of results. runs: those that A had not. unfinished: runs of B that are not
    trained, which stay there. shown: runs of which A shows another result than B does. trials: copied."""

    copied: int
    there: int
    runs: list[str]
    unfinished: list[str]
    shown: list[str]
    trials: int


def merge(into: Path, other: Path) -> Merged:
    """Copy into one folder of runs what it lacks of another.

    Raises PobenchError, with nothing written: where a command is at work in one of them, a folder is none of runs, files of
    `other` are damaged, the disk is too small, or results of one name differ (it names all of them).
    """
    _refuse_folders(into, other)
    with contextlib.ExitStack() as locks:
        for store in _stores(other):
            for setting in _settings(other / store):
                locks.enter_context(alone(into / store / setting))
                locks.enter_context(_still(other / store / setting))
        ours, damaged = pieces_of(into, check=False)
        theirs, faults = pieces_of(other)
        faults = damaged + faults
        trials = [merge_trials(into / store, other / store) for store in _stores(other)]
        differing = _differing(ours, theirs) | {k: v for found in trials for k, v in found.differing.items()}
        if faults or differing:
            raise PobenchError(_refusal(into, other, faults, differing))
        lacking = {name: piece for name, piece in theirs.items() if name not in ours or _absent(into, other, piece)}
        _check_disk(into, other, lacking.values())
        return _copy(into, other, ours, theirs, lacking, trials)


def _copy(
    into: Path,
    other: Path,
    ours: Mapping[str, Piece],
    theirs: Mapping[str, Piece],
    lacking: Mapping[str, Piece],
    trials: Sequence[TrialsMerge],
) -> Merged:
    for name, piece in lacking.items():
        for entry in piece.entries if name not in ours else _absent(into, other, piece):
            if (other / entry).exists():  # a search keeps no weights
                _place(other / entry, into / entry)
    runs = [run for store in _stores(other) for run in _runs(other, store)]
    merged = [run for run in runs if any(name == run or name.startswith(f"{run}/") for name in theirs)]
    changed_runs = {run for run in merged for name in lacking if name == run or name.startswith(f"{run}/")}
    new = [run for run in merged if not (into / run / "config.yaml").is_file() and "/pair-" not in run]
    otherwise = [run for run in merged if not _point(into, other, run, forgive=run in changed_runs)]
    for found in trials:
        found.write()
    return Merged(
        copied=len(lacking),
        there=len(theirs) - len(lacking),
        runs=new,
        unfinished=[run for run in runs if run not in merged or _untrained(other, run)],
        shown=otherwise,
        trials=sum(found.copied for found in trials),
    )


# ---------------------------------------------------------------- what a folder of runs holds
def pieces_of(root: Path, *, check: bool = True) -> tuple[dict[str, Piece], list[str]]:
    """Name below `root` → finished piece, in the order in which they may be copied, and a sentence for each damaged file.

    check: hash every file; else no fault is looked for.
    """
    pieces: dict[str, Piece] = {}
    faults: list[str] = []
    for store in _stores(root):
        for folder in sorted(p for p in (root / store).glob("*/*") if p.is_dir()):
            try:
                pieces |= _pieces_in(root, folder)
            except CorruptError as error:
                faults.append(str(error))
    if check:
        faults += [str(f) for piece in pieces.values() for f in corrupt_files(root, _present(root, piece))]
    return pieces, faults


def _pieces_in(root: Path, folder: Path) -> dict[str, Piece]:
    name = folder.relative_to(root).as_posix()
    if folder.name.startswith(".") or folder.suffix == ".damaged":
        return {}
    if folder.name == "looks":
        paths = {f"{name}/{p.name}": p for p in sorted(folder.glob("*.json"))}
        return {key: Piece(read_marker(path), {}, (key,)) for key, path in paths.items()}
    if (folder / "data.json").is_file():
        return {name: _marked(name, read_marker(folder / "data.json"), "digests")}
    pieces = {}
    if (folder / "trained.json").is_file():
        pieces[name] = _trained(name, folder)
    elif (folder / "finished.json").is_file() and not (folder / "shown.json").is_file():
        pieces[name] = _of_protocol_1(name, folder)
    for marker in sorted(folder.glob("[!.]*-*/node.json")):
        if marker.parent.suffix != ".damaged":
            node = f"{name}/{marker.parent.name}"
            pieces[node] = _marked(node, read_marker(marker), "model", "read")
            if (samples := folder / f"pairs{GATHERED}").is_file():  # the answers that these pairs are made of
                pieces[node] = pieces[node]._replace(entries=(f"{name}/{samples.name}", *pieces[node].entries))
    for path in sorted(folder.glob("benchmarks/**/manifest.json")):
        stored = f"{name}/{path.parent.relative_to(folder).as_posix()}"
        pieces[stored] = _benchmark(stored, manifest(path.parent))
    return pieces


def _marked(name: str, about: Mapping[str, Any], *content: str) -> Piece:
    """A folder that is copied whole."""
    same = {"files": about["files"], **{key: about.get(key) for key in content}}
    return Piece(same, {f"{name}/{file}": digest for file, digest in about["files"].items()}, (name,))


def _trained(name: str, folder: Path) -> Piece:
    """A trained model. Its steps name the seconds that each took, so weights alone have to agree."""
    files = read_marker(folder / "trained.json")["files"]
    weights = {file: digest for file, digest in files.items() if file.startswith("model/")}
    entries = ("model", "steps.jsonl", "environment.json", "trained.json")
    listed = {f"{name}/{file}": digest for file, digest in files.items()}
    return Piece({"weights": weights}, listed, tuple(f"{name}/{entry}" for entry in entries))


def _of_protocol_1(name: str, folder: Path) -> Piece:
    files = {file: digest for file, digest in digests_of(folder).items() if file != "config.yaml"}
    entries = sorted({file.partition("/")[0] for file in files}, key=lambda file: (file == "finished.json", file))
    return Piece({"files": files}, {}, tuple(f"{name}/{entry}" for entry in entries))


def _benchmark(name: str, about: Mapping[str, Any]) -> Piece:
    files = {f"{name}/{file}": digest for file, digest in about.get("files", {}).items()}
    stored = {file: digest for file, digest in about.get("files", {}).items() if file not in DERIVED}
    entries = tuple(dict.fromkeys((f"{name}/config.yaml", *files, f"{name}/manifest.json")))
    return Piece({"made_from": about.get("made_from"), "files": stored}, files, entries)


def _stores(root: Path) -> list[str]:
    """The folders of runs in a folder of runs: itself, and the searches'."""
    return ["", *(p.relative_to(root).as_posix() for p in sorted(root.glob("*/tuning")) if p.is_dir())]


def _settings(store: Path) -> list[str]:
    named = {
        p.parent.parent.name for file in ("config.yaml", "data.json", "shown.json") for p in store.glob(f"*/*/{file}")
    }
    return sorted(name for name in named if not name.startswith("."))


def _runs(root: Path, store: str) -> list[str]:
    """Runs, and pairs of runs whose answers were judged, below `root`."""
    paths = {*(root / store).glob("*/*/config.yaml"), *(root / store).glob("*/pair-*/shown.json")}
    return sorted(path.parent.relative_to(root).as_posix() for path in paths)


def _untrained(root: Path, run: str) -> bool:
    known = any((root / run / file).is_file() for file in ("trained.json", "finished.json"))
    return not known and not Path(run).name.startswith(("start-", "pair-"))


# ---------------------------------------------------------------- what differs, and what is lacking
def _differing(ours: Mapping[str, Piece], theirs: Mapping[str, Piece]) -> dict[str, list[str]]:
    """Name → what differs, of pieces that both have. What stands behind a model that differs is not named again."""
    found: dict[str, list[str]] = {}
    for name, piece in theirs.items():
        behind = any(name.startswith(f"{other}/") for other in found)
        if name in ours and not behind and (keys := _changed(ours[name].content, piece.content)):
            found[name] = keys
    return found


def _changed(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[str]:
    """What differs of one content; of a benchmark's files, those that only one of both has do not count."""
    if "made_from" in theirs:
        common = ours["files"].keys() & theirs["files"].keys()
        ours, theirs = ({**side, "files": {k: side["files"][k] for k in common}} for side in (ours, theirs))
    return changed(ours, theirs)


def _absent(into: Path, other: Path, piece: Piece) -> list[str]:
    """What the first lacks of a piece that is finished in both: weights that a search did not keep, a benchmark's files."""
    if "weights" in piece.content:
        return [entry for entry in piece.entries[:1] if (other / entry).exists() and not (into / entry).exists()]
    files = [file for file in piece.files if not (into / file).exists()] if "made_from" in piece.content else []
    return [*files, piece.entries[-1]] if files else []


def _present(root: Path, piece: Piece) -> dict[str, str]:
    """The files of a piece that have to be there: all, but for weights that a search did not keep."""
    gone = "weights" in piece.content and not (root / piece.entries[0]).exists()
    return {k: v for k, v in piece.files.items() if not (gone and k.startswith(f"{piece.entries[0]}/"))}


def _refusal(into: Path, other: Path, faults: Sequence[str], differing: Mapping[str, Sequence[str]]) -> str:
    lines = list(faults)
    if differing:
        lines.append(f"{len(differing)} results have one name in {str(into)!r} and {str(other)!r}, and other content:")
        lines += [f"  {name}: {', '.join(keys)}" for name, keys in sorted(differing.items())]
        lines.append(
            "they were made from the same on machines that compute otherwise; move away the one that is not to count, "
            "and repeat the command that made it: what stands behind it is made anew"
        )
    return "\n".join([*lines, "nothing was written"])


def _check_disk(into: Path, other: Path, pieces: Iterable[Piece]) -> None:
    paths = [other / entry for piece in pieces for entry in piece.entries]
    files = [p for path in paths for p in (path.rglob("*") if path.is_dir() else [path]) if p.is_file()]
    needed, free = sum(p.stat().st_size for p in files), shutil.disk_usage(into).free
    if needed > free:
        raise PobenchError(
            f"{str(into)!r} has {size(free)} free, and what it lacks of {str(other)!r} takes "
            f"{size(needed)}; nothing was written"
        )


def _refuse_folders(into: Path, other: Path) -> None:
    faults = [f"no folder {str(path)!r}" for path in (into, other) if not path.is_dir()]
    faults += [f"{str(p)!r} holds frames as files, not runs" for p in (into, other) if is_frames(p)]
    here, there = into.resolve(), other.resolve()
    if here == there or here in there.parents or there in here.parents:
        faults.append(f"{str(into)!r} and {str(other)!r}: one is the other, or lies in it")
    if not faults and not any(_settings(other / store) for store in _stores(other)):
        faults.append(f"no stored runs in {str(other)!r}")
    if faults:
        raise PobenchError("\n".join(faults))


@contextlib.contextmanager
def _still(folder: Path) -> Iterator[None]:
    """No command begins in `folder`; where it may only be read, none is at work there. Raises PobenchError where one is."""
    with contextlib.ExitStack() as held:
        try:
            held.enter_context(hold(folder / LOCK))
        except HeldError as error:
            raise PobenchError(f"a command is at work in {str(folder)!r} ({error.holder}); wait for it") from None
        except OSError:
            if (holder := holder_of(folder / LOCK)) is not None:
                raise PobenchError(f"a command is at work in {str(folder)!r} ({holder}); wait for it") from None
        yield


# ---------------------------------------------------------------- copying
def _place(source: Path, target: Path) -> None:
    with whole(target) as partial:
        (shutil.copytree if source.is_dir() else shutil.copy2)(source, partial)


def _point(into: Path, other: Path, run: str, *, forgive: bool) -> bool:
    """Let a run show what is there: what A's newest command named, else what B's did; then let readers find it. Returns False
    where B shows another result of a stage than A does."""
    ours, theirs = RunFolder(into, run), RunFolder(other, run)
    known = ours.shown if ours.has("shown.json") else {}  # results are copied before it is said which of them are shown
    before = {stage: node for stage, node in known.items() if ours.node(node).finished}
    new = {stage: node for stage, node in theirs.shown.items() if stage not in before and theirs.node(node).finished}
    if new or (theirs.has("shown.json") and not ours.has("shown.json")):
        ours.write_json("shown.json", {**known, **new})
    if forgive:
        ours.forgive()
    if ours.trained is not None:
        checkpoint.clear(ours.path)
    config = f"{run}/config.yaml"
    if (other / config).is_file() and not (into / config).is_file():
        _place(other / config, into / config)
    return all(before[stage] == node for stage, node in theirs.shown.items() if stage in before)
