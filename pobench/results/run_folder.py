"""A run's folder: a trained model, and in it one folder for every result that a stage computed from that model.

    runs/<setting>/<loss>-<12 hex>/       a trained model: config.yaml, environment.json, steps.jsonl, model/, and
                                          trained.json, written last
        <stage>-<12 hex>/                 what a stage made of it: its frames, and node.json
        shown.json                        which of these the newest command named
    runs/<setting>/start-<12 hex>/        the start model: the same, without steps.jsonl and model/
    runs/<setting>/data-<12 hex>/         the token pairs that runs share, and their audit

The hex digits are a digest of causes (`pobench.identity`). `trained.json` and `node.json` hold the causes and the sha256 of
every file; files that do not match are never used. Folders of protocol 1 have their frames in the run folder itself.
"""

from __future__ import annotations

import copy
import hashlib
import io
import json
import re
from bisect import bisect_left
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from itertools import zip_longest
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from pobench.columns import FRAMES
from pobench.errors import CorruptError, PobenchError, nearest
from pobench.files import (
    OTHER_BYTES,
    SEAL,
    MarkedFolder,
    checked_bytes,
    corrupt_files,
    digests_of,
    nan_as_null,
    read_marker,
    sealed,
    sha256_of,
    unsealed,
    whole,
    write_json,
    write_text,
)
from pobench.identity import PROTOCOL, name_of
from pobench.printing import say
from pobench.results.manifest import manifest
from pobench.settings.job import Job
from pobench.sources import file_digest

SEALED = (
    "# The last line is a digest of those above.\n"  # a configuration's first line, so that a lost last one is missed
)
SEALED_BY = "# seal: "  # the beginning of the last line
VECTORS = "vectors.npz"  # beside `scores.json`, which has its digest
NODE_NAME = re.compile("[a-z_]+-[0-9a-f]{12}")
MOST_BRACKETS = 10_000  # of a configuration; those of long searches have some hundreds


class NodeFolder(MarkedFolder):
    """`<stage>-<12 hex>`: one result, its causes, and the digests of its files.

    about: causes, files → sha256, and the further facts of `write`.
    """

    marker = "node.json"

    def write(self, frames: Mapping[str, pd.DataFrame], causes: Mapping[str, Any], **about: Any) -> None:
        """Store some of `pobench.columns.FRAMES` under their names, without the column `run`: the folder says it.

        about: further facts on the result.
        """
        with whole(self.path) as partial:
            partial.mkdir(parents=True)
            for name, frame in frames.items():
                FRAMES[name].typed(frame).to_parquet(partial / f"{name}.parquet", index=False)
            node = {"protocol": PROTOCOL, "causes": dict(causes), **about, "files": digests_of(partial)}
            (partial / self.marker).write_text(json.dumps(sealed(node), indent=1), encoding="utf-8")

    @property
    def frames(self) -> list[str]:
        """The names of the frames in it."""
        return [Path(file).stem for file in self.about["files"] if file.endswith(".parquet")]

    def read_frame(self, name: str) -> pd.DataFrame:
        """Raises CorruptError where the stored bytes are not those that were written; protocol 1 stored no digests of them."""
        file = self.path / f"{name}.parquet"
        if not self.finished:
            return pd.read_parquet(file)
        return pd.read_parquet(io.BytesIO(checked_bytes(file, self.about["files"].get(file.name))))

    def made_from(self, model: str | None, read: Mapping[str, str | None]) -> bool:
        """Whether the result was made by these weights (`RunFolder.weights`), from results with these digests."""
        about = self.about
        return bool(about["model"] == model and about.get("read", {}) == dict(read))

    def digest(self, name: str) -> str | None:
        """The sha256 of a stored frame; None where none is stored."""
        return self.about["files"].get(f"{name}.parquet") if self.finished else None


class RunFolder:
    """A trained model's folder, or the start model's. Every file appears whole, except `steps.jsonl`, which grows."""

    def __init__(self, runs: Path, run: str) -> None:
        self.path = runs / run
        self.runs, self.run = runs, run

    # -- state

    @property
    def trained(self) -> dict[str, Any] | None:
        """The content of `trained.json`; None before training has finished, and for the start model."""
        path = self.path / "trained.json"
        return read_marker(path) if path.is_file() else None

    @property
    def failure(self) -> str | None:
        """Why the last attempt failed, or None."""
        path = self.path / "failed.json"
        return str(read_marker(path).get("reason", "")) if path.is_file() else None

    def fail(self, reason: str) -> None:
        self.write_json("failed.json", {"reason": reason})

    def forgive(self) -> None:
        """Forget an earlier failure, because a new attempt begins."""
        (self.path / "failed.json").unlink(missing_ok=True)

    def has(self, name: str) -> bool:
        return (self.path / name).exists()

    def finish_training(self, causes: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
        """Write `trained.json`, the last file: causes, facts about training, and the digests of the files that it wrote."""
        names = [p.relative_to(self.path).as_posix() for p in sorted((self.path / "model").rglob("*")) if p.is_file()]
        files = {
            name: file_digest(self.path / name) for name in names
        }  # remembered: a repeated command reads no weights
        if self.has("steps.jsonl"):
            files["steps.jsonl"] = sha256_of(self.path / "steps.jsonl")
        self.write_json("trained.json", {"protocol": PROTOCOL, "causes": dict(causes), **facts, "files": files})

    @property
    def weights(self) -> str | None:
        """A digest of the trained weights; None for the start model, whose weights are a cause themselves."""
        trained = self.trained
        return (
            None if trained is None else name_of({k: v for k, v in trained["files"].items() if k.startswith("model/")})
        )

    def corrupt_weights(self, *, read: bool = True) -> list[CorruptError]:
        """One for each file of the trained model whose bytes are not those that training wrote.

        read: False takes the word of a remembered digest where size, modification time and inode are as they were.
        """
        files = {k: v for k, v in (self.trained or {}).get("files", {}).items() if k.startswith("model/")}
        return corrupt_files(self.path, files, sha256_of if read else file_digest)

    # -- results behind the model

    def node(self, name: str) -> NodeFolder:
        """name: `<stage>-<12 hex>`."""
        return NodeFolder(self.path / name)

    @property
    def shown(self) -> dict[str, str]:
        """Stage → the node that the newest command named; {} for a folder of protocol 1. Raises CorruptError where it is not
        what was written, or is gone from a run that has results; drawn pairs have a folder too, and show nothing."""
        if self.has("shown.json"):
            return dict(self.read_json("shown.json"))
        if self.has("config.yaml") and next(self._finished_nodes(), None) is not None:
            raise CorruptError(self.path / "shown.json", "the file is gone")
        return {}

    def show(self, nodes: Mapping[str, str], without: Collection[str] = ()) -> None:
        """Record the nodes that a command names. Other stages keep theirs; where these are not known, the newest. without:
        stages of which nothing is shown, as the command neither found nor makes what it names."""
        try:
            before = self.shown
        except CorruptError as error:
            say(f"{error}; it is made anew")
            before, known = self.newest, {}
        else:
            known = before
        now = {stage: node for stage, node in {**before, **nodes}.items() if stage not in without}
        if now != known or not self.has("shown.json"):
            self.write_json("shown.json", now)

    @property
    def newest(self) -> dict[str, str]:
        """Stage → its finished node that was written last."""
        nodes = sorted(self._finished_nodes(), key=lambda path: path.stat().st_mtime_ns)
        return {path.name.rpartition("-")[0]: path.name for path in nodes}

    def _finished_nodes(self) -> Iterator[Path]:
        markers = self.path.glob("[!.]*-*/node.json")
        return (marker.parent for marker in markers if NODE_NAME.fullmatch(marker.parent.name))

    def others(self, stage: str) -> int:
        """The number of finished results of a stage that are stored but not shown."""
        shown = self.shown.get(stage)
        finished = [p.parent.name for p in self.path.glob(f"{stage}-*/node.json")]
        return len([name for name in finished if name != shown and not name.endswith(".damaged")])

    def frames(self) -> dict[str, NodeFolder]:
        """Frame → the folder that holds it, of the results that are shown and finished; of protocol 1 the run's own folder."""
        if not self.shown:
            return {path.stem: NodeFolder(self.path) for path in sorted(self.path.glob("*.parquet"))}
        nodes = []
        for node in map(self.node, self.shown.values()):
            if node.finished:
                nodes.append(node)
            elif node.path.is_dir():  # it appeared whole
                marker = node.path / node.marker
                raise CorruptError(marker, "the file is gone; repeat the command, and it is made anew")
        return {frame: node for node in nodes for frame in node.frames}

    # -- files

    def write_config(self, job: Job, kind: str, start: str) -> None:
        """Write `config.yaml`: every value, and the origin of each that is not a default. start: the start model's run."""
        about = {"kind": kind, "protocol": PROTOCOL, "start": start, **job.provenance(), "origin": dict(job.origin)}
        values = {**job.values(), **about, **job.facts_of_round()}
        text, path = SEALED + yaml.safe_dump(values, sort_keys=False, allow_unicode=True), self.path / "config.yaml"
        text += f"{SEALED_BY}{_sha256(text)}\n"
        if not path.is_file() or path.read_bytes() != text.encode():
            write_text(path, text)

    @property
    def config(self) -> dict[str, Any]:
        """`config.yaml`. Raises CorruptError where it holds no mapping of plain values."""
        path = self.path / "config.yaml"
        try:
            text = path.read_bytes().decode("utf-8")
            above, mark, seal = text.rpartition(SEALED_BY)
            if (mark and seal.strip() != _sha256(above)) or (text.startswith(SEALED) and not mark):
                raise CorruptError(path, OTHER_BYTES)
            return copy.deepcopy(_parsed(text))
        except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
            raise CorruptError(path, f"it cannot be read ({type(error).__name__})") from error

    def write_json(self, name: str, value: Mapping[str, Any]) -> None:
        write_json(self.path / name, sealed(value))

    def read_json(self, name: str) -> Any:
        """Raises CorruptError where it is not what was written."""
        path = self.path / name
        try:
            stored = json.loads(path.read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:
            raise CorruptError(path, f"it cannot be read ({type(error).__name__})") from error
        return unsealed(stored, path) if isinstance(stored, dict) else stored

    @property
    def unread(self) -> list[CorruptError]:
        """One error for each file beside the results that is not what was written, and without which a run is still one."""
        faults = []
        for name in ("environment.json", "scores.json", "failed.json"):
            try:
                if self.has(name):
                    self.read_json(name)
            except CorruptError as error:
                faults.append(error)
        with suppress(CorruptError, OSError):
            scores = self.read_json("scores.json")
            digest = scores.get("vectors") if isinstance(scores, dict) else None  # protocol 1 stored a list
            faults += corrupt_files(self.path, {} if digest is None else {VECTORS: digest})
        return faults

    def benchmark_results(self) -> list[dict[str, Any]]:
        """The stored `score.json` for each benchmark and judge: the one with the most questions, or the latest of these.

        Raises CorruptError where its bytes are not those that were written.
        """
        return [result for result, _ in self._benchmark_results()]

    def benchmark_answers(self) -> list[dict[str, Any]]:
        """Of the results of `benchmark_results` that have `beside.jsonl`, its rows, with benchmark and judge."""
        rows = []
        for result, folder in self._benchmark_results():
            named = {"benchmark": result["benchmark"], "judge": result["judge"]}
            digest = manifest(folder).get("files", {}).get("beside.jsonl")
            if digest is not None:
                lines = checked_bytes(folder / "beside.jsonl", digest).decode("utf-8").split("\n")
                rows += [{**named, **json.loads(line)} for line in lines if line]
        return rows

    def _benchmark_results(self) -> list[tuple[dict[str, Any], Path]]:
        """Those of `benchmark_results`, each with its folder."""
        best: dict[tuple[str, str], tuple[dict[str, Any], Path]] = {}
        for path in sorted(self.path.glob("benchmarks/**/score.json")):
            made = manifest(path.parent)
            if made and path.name not in made["files"]:
                continue  # unfinished
            result = json.loads(checked_bytes(path, made["files"][path.name]) if made else path.read_bytes())
            key = result["benchmark"], result["judge"]
            found = result, path.parent
            best[key] = max(best.get(key, found), found, key=lambda one: (one[0]["asked"], one[0]["made"]))
        return [best[key] for key in sorted(best)]

    # -- steps

    def log_step(self, row: Mapping[str, Any]) -> None:
        with (self.path / "steps.jsonl").open("a") as file:
            file.write(json.dumps(sealed(nan_as_null(row))) + "\n")

    def rewind_steps(self, step: int) -> None:
        """Remove the rows after `step`, and a last line that a kill cut short."""
        kept = [json.dumps(sealed(row)) for row in self.logged() if row["step"] <= step]
        write_text(self.path / "steps.jsonl", "".join(line + "\n" for line in kept))

    def steps(self) -> list[dict[str, Any]]:
        """What each step logged. Raises CorruptError where a step is missing or stands twice, and where training is done and
        the bytes are not those that it wrote."""
        path = self.path / "steps.jsonl"
        if (trained := self.trained) is not None and "steps.jsonl" in trained.get("files", {}):
            checked_bytes(path, trained["files"]["steps.jsonl"])
        rows = self.logged()
        if fault := step_fault([row["step"] for row in rows], len(rows)):
            raise CorruptError(path, fault)
        return rows

    def logged(self) -> list[dict[str, Any]]:
        """The rows of `steps.jsonl`, up to one that a kill cut short or that is not what was written."""
        path, rows = self.path / "steps.jsonl", list[dict[str, Any]]()
        for line in path.read_bytes().splitlines() if path.is_file() else ():
            try:
                row = json.loads(line)
                row = unsealed(row if isinstance(row, dict) else {SEAL: None}, path)
            except (ValueError, RecursionError, CorruptError):
                break
            if not isinstance(row.get("step"), int):
                break
            rows.append(row)
        return rows


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def step_fault(steps: Sequence[int], done: int) -> str:
    """Why these logged steps are not 1, 2, …, `done`, in words; "" where they are."""
    for expected, step in zip_longest(range(1, done + 1), steps):
        if step is None or (expected is not None and step > expected):
            return f"step {expected} is missing"
        if expected is None or step < expected:
            return f"step {step} stands twice"
    return ""


@lru_cache(maxsize=8)
def _parsed(text: str) -> dict[str, Any]:
    """A `config.yaml`. A report asks several times for that of every run, so the last ones are kept; by libyaml where there is
    one: ten times as fast. Raises what yaml raises, and ValueError for what libyaml would not survive."""
    if text.count("[") + text.count("{") > MOST_BRACKETS:  # libyaml recurses in C, where too deep is a crash
        raise ValueError("more lists and mappings than a configuration has")
    # both loaders are safe ones
    values = yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))  # nosec B506
    if not isinstance(values, dict):
        raise ValueError("no mapping")
    return values


# ---------------------------------------------------------------- names
def run_names(runs: Path) -> Iterator[str]:
    """`<setting>/<folder>` of every stored run."""
    for path in sorted(runs.glob("*/*/config.yaml")):
        yield f"{path.parent.parent.name}/{path.parent.name}"


LEAST_DIGITS = 6


def short_names(names: Iterable[str]) -> dict[str, str]:
    """Each run's name → its folder's name with as few of its digest's digits, at least `LEAST_DIGITS`, as begin no other run's
    name; a name without a digest stays whole. `find_run` takes the short ones."""
    folders = {name: name.rpartition("/")[2] for name in names}
    every = sorted(folders.values())
    short = {}
    for name, folder in folders.items():
        digest = re.search(r"(?<=-)[0-9a-f]{8,}$", folder)
        least = len(folder) if digest is None else digest.start() + LEAST_DIGITS
        ends = range(least, len(folder))
        short[name] = next((folder[:end] for end in ends if _begin(every, folder[:end]) == 1), folder)
    return short


def short_digests(digests: Iterable[str]) -> dict[str, str]:
    """Each digest → as few of its digits, at least `LEAST_DIGITS`, as begin no other."""
    every = sorted(set(digests))
    ends = {digest: range(LEAST_DIGITS, len(digest)) for digest in every}
    return {d: next((d[:end] for end in ends[d] if _begin(every, d[:end]) == 1), d) for d in every}


def _begin(every: Sequence[str], prefix: str) -> int:
    """How many of the sorted names begin so."""
    return bisect_left(every, prefix + "\U0010ffff") - bisect_left(every, prefix)


def find_run(runs: Path, name: str) -> str:
    """The run whose name begins with `name`, with or without the setting.

    Raises PobenchError if there is none (it names the nearest) or if there are several (it names all).
    """
    known = list(run_names(runs))
    matches = [run for run in known if name == run]
    matches = matches or [run for run in known if run.startswith(name) or run.partition("/")[2].startswith(name)]
    if len(matches) == 1:
        return matches[0]
    if matches:
        raise PobenchError(f"{name!r} begins the names of {len(matches)} runs: {', '.join(matches)}")
    raise PobenchError(f"no run {name!r}{nearest(name, known)} Known: {', '.join(known) or 'none'}")
