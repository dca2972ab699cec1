"""Thousands of stored runs, and what planning, reading and reporting on them takes.

    python benchmarks/many_runs.py --like RUNS --count 10000 --out FILE

Nothing is trained. The stored runs of `tiny` lend their frames, steps, scores and facts to all, in turn: every run gets the
name, the configuration and the causes that its own values would give it, so that a plan finds it finished. The copies are links
to the same bytes. Then each command is run in a process of its own: seconds of a processor (user and system) and the peak of
memory are measured.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import resource
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import cycle
from pathlib import Path
from typing import Any

import peers
from children import in_child

from pobench.errors import PobenchError
from pobench.identity import PROTOCOL, name_of
from pobench.results.run_folder import RunFolder, run_names
from pobench.results.scores import VECTORS, scores_of
from pobench.runs.command import FILE, Command, Entry
from pobench.runs.jobs import place_of
from pobench.runs.plan import Plan, make_plan
from pobench.runs.task import Task
from pobench.settings.job import Job
from pobench.settings.resolve import resolve, resolve_names

SETTING, SEEDS, LOSSES = "tiny", 3, "paper"
STAGES = ("train", "heldout", "answers", "judge")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--like", type=Path, required=True, help="a folder of runs with a finished one of `tiny`")
    parser.add_argument("--count", type=int, default=1000, help="about so many runs")
    parser.add_argument("--keep", type=Path, help="make the runs in this folder and leave them there")
    parser.add_argument("--commands", default=",".join(COMMANDS), help="of these: " + ", ".join(COMMANDS))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    parser.add_argument("--out", type=Path, help="also write that object to a file")
    peers.run_script(measure, parser)


def measure(given: argparse.Namespace) -> dict[str, Any]:
    if unknown := [name for name in given.commands.split(",") if name not in COMMANDS]:
        raise PobenchError(f"--commands: unknown {unknown[0]!r}; known: {', '.join(COMMANDS)}")
    with contextlib.ExitStack() as stack:
        root = given.keep or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        made = in_child(spent_on, make_runs, root, given.like, given.count)
        peers.say(f"{made['value']} runs made: {made['seconds']:.1f} s of a processor")
        rows = {}
        for name in given.commands.split(","):
            rows[name] = in_child(spent_on, COMMANDS[name], root, given.count)
            peers.say(f"{name}: {rows[name]['seconds']:.1f} s of a processor, peak {rows[name]['peak'] / 1e9:.2f} GB")
    return {"benchmark": "many_runs", "runs": made["value"], "made": made, "commands": rows}


def spent_on(work: Callable[..., Any], *arguments: Any) -> dict[str, Any]:
    """The value of `work`, the seconds of processor it took with its children, and this process's peak in bytes."""
    started = sum(os.times()[:4])
    began = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()):
        value = work(*arguments)
    peak = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return {
        "value": value,
        "seconds": sum(os.times()[:4]) - started,
        "wall": time.perf_counter() - began,
        "peak": peak * 1024,
    }


# ---------------------------------------------------------------- making runs
def jobs_of(count: int) -> list[Job]:
    """About `count` jobs: the paper's losses, three seeds each, at as many learning rates as it takes."""
    names, _ = resolve_names(LOSSES)
    rates = max(1, round(count / (SEEDS * len(names))))
    seeds = [42 + i for i in range(SEEDS)]
    return [
        job
        for i in range(rates)
        for job in resolve(SETTING, LOSSES, seeds=seeds, overrides={"train.lr": f"{1e-5 * (1 + i):.6g}"})
    ]


def make_runs(root: Path, like: Path, count: int) -> int:
    """Write the runs of a plan as if each had been trained and evaluated. Returns their number."""
    plan = make_plan(jobs_of(count), root, STAGES, dry=True)
    models = stored_runs(like)
    sources = {"loss": cycle(models), "start": cycle([RunFolder(like, models[0].config["start"])])}
    seen = set()
    for task in plan.tasks:
        if task.kind in sources and task.run not in seen:
            seen.add(task.run)
            write_run(task, next(sources[task.kind]))
    write_jobs(root, [task for task in plan.tasks if task.kind == "loss"])
    return sum(task.kind == "loss" for task in plan.tasks) // 2


def stored_runs(root: Path) -> list[RunFolder]:
    """The finished runs of `SETTING`, with their scores. Raises PobenchError if there is none."""
    found = []
    for name in run_names(root):
        folder = RunFolder(root, name)
        finished = {stage for stage, node in folder.shown.items() if folder.node(node).finished}
        whole = {"heldout", "answers", "judge"} <= finished
        if name.startswith(f"{SETTING}/") and whole and folder.trained is not None and scores_of(root, name):
            found.append(folder)
    if not found:
        raise PobenchError(f"--like {str(root)!r}: no finished run of {SETTING}")
    return found


def write_run(task: Task, like: RunFolder) -> None:
    """The run of a task, with the frames of `like`."""
    folder = RunFolder(task.runs, task.run)
    folder.path.mkdir(parents=True)
    folder.write_config(task.job, task.kind, task.start)
    for name in ("environment.json", "scores.json", VECTORS):  # those of the same frames are the same
        os.link(like.path / name, folder.path / name)
    weights = None
    if task.kind == "loss":
        trained = like.trained
        assert trained is not None
        os.link(like.path / "steps.jsonl", folder.path / "steps.jsonl")
        (folder.path / "model").mkdir()
        for name in trained["files"]:
            if name.startswith("model/"):
                os.link(like.path / name, folder.path / name)
        write(folder.path / "trained.json", {**trained, "causes": task.causes})
        weights = name_of({k: v for k, v in trained["files"].items() if k.startswith("model/")})
    shown = {}
    for stage in ("heldout", "answers", "judge"):
        node, source = task.nodes[stage], like.node(like.shown[stage])
        home = folder.path / node.name
        home.mkdir()
        files = source.about["files"]
        for name in files:
            os.link(source.path / name, home / name)
        about = {
            "protocol": PROTOCOL,
            "causes": node.causes,
            "model": weights,
            "read": source.about["read"],
            "files": files,
        }
        write(home / "node.json", about)
        shown[stage] = node.name
    write(folder.path / "shown.json", shown)


def write_jobs(root: Path, tasks: Sequence[Task]) -> None:
    """The jobs of these tasks, as a command of this machine has done them, and those of training as submitted ones too."""
    entries = [
        replace(Entry.of(task, 60.0), state="finished", began=0.0, ended=50.0 + i % 20) for i, task in enumerate(tasks)
    ]
    Command(root / SETTING / FILE, (*entries[:-1], replace(entries[-1], state="waiting")), began=0.0).write()
    for task in tasks:
        if "train" in task.stages:
            place = place_of(task) / "1"
            place.mkdir(parents=True)
            about = {
                "title": task.title,
                "kind": task.kind,
                "run": task.run,
                "stages": task.stages,
                "executor": "slurm",
            }
            write(place / "job.json", {**about, "settings": {}, "after": [], "time": 0.0})
            write(place / "submitted.json", {"id": "1", "time": 0.0})
            write(place / "started.json", {"host": "node", "pid": 1, "times": 1, "time": 0.0})
            write(place / "ended.json", {"status": "finished", "reason": "", "time": 0.0})


def write(path: Path, value: Any) -> None:
    """As the project's own writers do, without waiting for the disk."""
    path.write_text(json.dumps(value, indent=1, default=dict))


# ---------------------------------------------------------------- what is measured
def plan(root: Path, count: int) -> int:
    """`pobench run --dry-run` of all of them: nothing is left."""
    made: Plan = make_plan(jobs_of(count), root, STAGES, dry=True)
    left = [task.run for task in made.left if task.kind == "loss"]
    if left:
        raise PobenchError(f"{len(left)} jobs are left, the first {left[0]}")
    return len(made.tasks)


def load(root: Path, count: int) -> int:
    """`pobench.load_frames`."""
    from pobench.results.load import load_frames

    return len(load_frames(root)["runs"])


def find(root: Path, count: int) -> str:
    """A run by the beginning of its name, as every command that takes one does."""
    from pobench.results.run_folder import find_run

    return find_run(root, next(iter(run_names(root))))


def list_runs(root: Path, count: int) -> int:
    """`pobench list runs --json`."""
    from pobench.cli.list import list_

    with contextlib.redirect_stdout(io.StringIO()) as printed:
        list_("runs", runs=str(root), as_json=True)
    return len(json.loads(printed.getvalue()))


def status(root: Path, count: int) -> int:
    """`pobench status`."""
    from pobench.cli.status import status as show

    with contextlib.redirect_stdout(io.StringIO()) as printed:
        show(root)
    return len(printed.getvalue())


def tables(root: Path, count: int) -> str:
    """`pobench analyze --figures NAMES`: what a report says in numbers, without its pictures."""
    from pobench.cli.analyze import write_report

    return str(write_report(root, None, ",".join(TABLES), root / "report-of-tables", "csv,md,tex")[0])


def analyze(root: Path, count: int) -> str:
    """`pobench analyze`: every figure and table, the page, the summary."""
    from pobench.cli.analyze import write_report

    return str(write_report(root, None, "all", root / "report")[0])


def share(root: Path, count: int) -> str:
    """`pobench share`: the report as a site, with a page a run."""
    from pobench.workflows.share import share as write_site

    return str(write_site(str(root), root / "site", None))


TABLES = (
    "main-table",
    "claims",
    "checks",
    "settings-table",
    "seed-spread",
    "variance",
    "looked-before",
    "training-health",
)
COMMANDS: dict[str, Callable[[Path, int], Any]] = {
    "plan": plan,
    "list": list_runs,
    "status": status,
    "find": find,
    "load": load,
    "tables": tables,
    "analyze": analyze,
    "share": share,
}


if __name__ == "__main__":
    main()
