"""Damages every kind of stored file in five ways, and looks who finds it and whether the repeated command makes it anew.

    python -m tests.faults.damage                    a few minutes of one core
    python -m tests.faults.damage --only model       kinds whose name holds a word
    python -m tests.faults.damage --place search     one of the folders alone
    python -m tests.faults.damage --json FILE        the cases as JSON, too

A folder is what one command leaves: runs and a cache. A case copies it, damages one file, and asks three: `doctor --verify`, a
report (all frames are read), and the repeated command. Each has to name the file, to do without it, or to make it anew; the
command must end with the results of the undamaged folder or refuse in one sentence, and `doctor --verify` must find nothing
after it.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from pobench.cli.analyze import write_report
from pobench.errors import PobenchError
from pobench.results.load import load_frames
from pobench.results.run_folder import RunFolder
from pobench.runs import execute
from pobench.runs.plan import make_plan
from pobench.runs.stages import ALL, DEFAULT
from pobench.runs.verify import verify
from pobench.runs.worker import run
from pobench.settings.resolve import resolve
from pobench.workflows.search import tune
from pobench.workflows.tune import plan_tuning
from tests.faults.world import digest_of, make_world, results


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 0xFF
    file.write_bytes(data)


def another_digit(file: Path) -> None:
    """A digit of text becomes another, which a parser does not see; else a bit flips."""
    data = bytearray(file.read_bytes())
    half = len(data) // 2
    places = sorted((abs(i - half), i) for i, byte in enumerate(data) if chr(byte) in "0123456789")
    data[places[0][1] if places else half] ^= 1
    file.write_bytes(data)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "a flipped byte": flip,
    "another digit": another_digit,
    "cut to half": lambda file: file.write_bytes(file.read_bytes()[: file.stat().st_size // 2]),
    "empty": lambda file: file.write_bytes(b""),
    "gone": Path.unlink,
}
OF_A_MODEL = ("model.safetensors", "config.json", "tokenizer.json")  # its other files are checked by the same code
ONE_OF = re.compile(r"[0-9a-f]{24}|[0-9a-f]{12}")  # the digits of a name: files that differ in these are of one kind


class Case(NamedTuple):
    """place: the folder. verify, report: "named", "" (nothing was noticed), or "crashed: …". again: of the repeated command:
    "anew" (results as before), "refused: …", "failed: …", "differs: …" or "crashed: …". after: what `doctor --verify` says."""

    place: str
    kind: str
    damage: str
    verify: str
    report: str
    again: str
    after: str

    @property
    def fault(self) -> bool:
        """Whether somebody crashed, or a wrong result was taken for a right one, or damage stays that nobody may mend."""
        steps = "steps.jsonl" in self.kind and self.verify == "named"  # the log of a finished training is not made anew
        accepted = steps or self.again.startswith("refused") or (self.again == "anew" and not self.after)
        return not accepted or any(found.startswith("crashed") for found in (self.verify, self.report))


# ---------------------------------------------------------------- folders, and the commands that make them
Again = Callable[
    [Path], list[str]
]  # does what is left of the command in a folder, in this process; why its runs failed


class Place(NamedTuple):
    """again: the command. begin: makes the folder that is damaged; None: the command does. of: a pattern of the files that are
    damaged; default: all."""

    again: Again
    begin: Again | None = None
    of: str = ""


def planned(setting: Path, losses: str, stages: tuple[str, ...], **options: Any) -> Again:
    """`pobench run`."""

    def again(folder: Path) -> list[str]:
        here(folder)
        jobs = resolve(str(setting), losses)
        outcomes = execute.plan_and_execute(lambda: make_plan(jobs, folder / "runs", stages, **options))[1]
        return [outcome.reason for outcome in outcomes if outcome.status == "failed"]

    return again


def here(folder: Path) -> None:
    os.environ["POBENCH_CACHE"] = str(folder / "cache")
    execute._fork = lambda *tasks: max(map(run, tasks))


def interrupted(again: Again) -> Again:
    """The command, until its sixth step."""

    def begin(folder: Path) -> list[str]:
        log = RunFolder.log_step

        def until(run_folder: RunFolder, row: Any) -> None:
            log(run_folder, row)
            if row["step"] == 6:
                raise KeyboardInterrupt

        RunFolder.log_step = until  # type: ignore[method-assign]
        try:
            with contextlib.suppress(KeyboardInterrupt):
                again(folder)
        finally:
            RunFolder.log_step = log  # type: ignore[method-assign]
        return []

    return begin


def changed(setting: Path, name: str, **sections: Any) -> Path:
    """A setting beside another, with other sections."""
    values = yaml.safe_load(setting.read_text()) | {"name": name} | sections
    path = setting.with_name(f"{name}.yaml")
    path.write_text(yaml.safe_dump(values))
    return path


def lines(path: Path, rows: list[Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def places(world: Path) -> dict[str, Place]:
    """Folder → how it is made: of two losses with all stages behind a model, of a training that was interrupted, of rounds on
    the model's own pairs, of a start model by SFT, of a search, and of a report's frames."""
    setting = make_world(world, epochs=1)
    whole_run = planned(setting, "dpo", DEFAULT)
    compared = changed(setting, "compared", judge={"name": "rehearsed"})
    stages = tuple(name for name in ALL if name not in ("sft", "onpolicy", "benchmarks"))
    ask = lines(world / "ask.jsonl", [{"id": f"a{i}", "prompt": f"say w{i}"} for i in range(30)])
    own = {"prompts": ask, "samples": 6, "temperature": 2.0, "max_new_tokens": 40, "precision": "fp32"}
    rounds = changed(setting, "rounds", onpolicy={**own, "ranker": {"name": "rehearsed"}, "held_out_fraction": 0.3})
    turns = [
        [{"role": r, "content": f"{c} w{i}"} for r, c in (("user", "say"), ("assistant", "w1"))] for i in range(12)
    ]
    chats = lines(world / "chats.jsonl", [{"messages": messages} for messages in turns])
    sft = changed(
        setting,
        "sft",
        sft={"source": chats, "lr": 1e-3, "batch_size": 4, "precision": "fp32", "checkpoint_seconds": 0.0},
    )
    (world / "grid.yaml").write_text(yaml.safe_dump({"lr": [1e-3, 1e-2], "losses": {"dpo": {"beta": [0.1]}}}))
    prompts = [
        {"id": f"t{i}", "prompt": f"say w{i}", "check": {"kind": "at_most_words", "n": 3}} for i in range(45, 48)
    ]
    asked = lines(world / "tune.jsonl", prompts)
    tuned = changed(
        setting, "tuned", tune={"prompts": asked, "grid": str(world / "grid.yaml"), "metric": "reward_accuracy"}
    )

    def search(folder: Path) -> list[str]:
        here(folder)
        return list(tune(plan_tuning("dpo", str(tuned), runs=folder / "runs")).failed)

    def report(folder: Path) -> list[str]:
        here(folder)
        whole_run(folder)
        with contextlib.redirect_stderr(io.StringIO()):
            write_report(folder / "runs", None, "settings-table", None, "parquet")
        return []

    return {
        "runs": Place(planned(compared, "dpo,simpo", stages, opponents="all")),
        "interrupted": Place(whole_run, interrupted(whole_run), "checkpoint-|steps.jsonl|environment"),
        "rounds": Place(planned(rounds, "dpo", ("onpolicy", "train", "heldout"), rounds=2), of="onpolicy"),
        "sft": Place(planned(sft, "dpo", ("sft", "train", "heldout")), of="cache/sft"),
        "search": Place(search, of="/tuning/[^/]*$"),
        "report": Place(report),
    }


# ---------------------------------------------------------------- cases
def cases(only: str = "", place: str = "", damage: str = "") -> Iterator[Case]:
    """One for each folder, each kind of stored file and each damage, of those whose names hold these words."""
    chosen = {name: do for name, do in DAMAGES.items() if damage in name}
    with tempfile.TemporaryDirectory() as temporary:
        base = Path(temporary)
        for name, made in places(base / "world").items():
            if place in ("", name):
                yield from _cases(name, made, base, only, chosen)


def _cases(
    name: str, made: Place, base: Path, only: str, damages: dict[str, Callable[[Path], object]]
) -> Iterator[Case]:
    whole = base / "whole"
    if failed := made.again(whole):
        raise RuntimeError(f"the undisturbed command failed: {failed}")
    expected = found_in(whole)
    if made.begin is not None:
        shutil.rmtree(whole)
        made.begin(whole)
    kinds: dict[str, Path] = {}
    for file in sorted(path for path in whole.rglob("*") if path.is_file() and path.suffix != ".lease"):
        part = file.relative_to(whole)
        of_report = "report" in part.parts
        if (file.parent.name == "model" and file.name not in OF_A_MODEL) or of_report is not (name == "report"):
            continue
        kind = ONE_OF.sub("…", str(part)).replace("simpo-", "dpo-")
        if re.search(made.of, kind) and only in kind:
            kinds.setdefault(kind, part)
    shutil.move(whole, base / "intact")
    for kind, file in kinds.items():
        for damage, do in damages.items():
            shutil.copytree(base / "intact", whole)  # paths are as they were
            do(whole / file)
            yield Case(name, kind, damage, *ask(whole, file, made.again, expected))
            shutil.rmtree(whole)
    shutil.rmtree(base / "intact")


def ask(place: Path, file: Path, again: Again, expected: dict[str, str]) -> tuple[str, str, str, str]:
    """What `doctor --verify`, a report, the repeated command, and `doctor --verify` behind it make of it."""
    here(place)

    def named(found: Callable[[], str]) -> str:
        try:
            text = found()
        except PobenchError as error:
            text = str(error)
        except Exception as error:
            return f"crashed: {type(error).__name__}: {error}"
        return "named" if file.name in text else text and f"said: {text[:200]}"

    def report() -> str:
        with contextlib.redirect_stderr(io.StringIO()) as printed:
            try:
                load_frames(place / "runs/report/frames" if "report" in file.parts else stored_in(place))
            except PobenchError as error:
                return printed.getvalue() + str(error)
        return printed.getvalue()

    def repeated() -> str:
        if failed := again(place):
            return f"failed: {failed[0][:200]}"
        found = found_in(place)
        # sums of what is trained already are not needed again
        unread = {name for name in expected if name.startswith("reference/")} - set(found)
        differing = [n for n in sorted({*found, *expected} - unread) if found.get(n) != expected.get(n)]
        return f"differs: {', '.join(differing)}" if differing else "anew"

    def verified() -> str:
        return "\n".join(verify(place / "runs").faults)

    told = named(verified), named(report)
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            done = repeated()
    except PobenchError as error:
        done = f"refused: {str(error)[:200]}"
    except Exception as error:
        done = f"crashed: {type(error).__name__}: {str(error)[:200]}"
    return *told, done, named(verified)


def found_in(folder: Path) -> dict[str, str]:
    found = results(stored_in(folder), folder / "cache")
    frames = [path for path in (folder / "runs/report/frames").glob("*.parquet") if path.name != "looks.parquet"]
    return found | {f"report {path.name}": digest_of(path.read_bytes()) for path in frames}


def stored_in(folder: Path) -> Path:
    """Where its runs lie: a search keeps those of its trials apart."""
    return next((folder / "runs").glob("*/tuning"), folder / "runs")


def table(done: list[Case]) -> str:
    """Folder × file × damage × who finds it × what the repeated command makes of it, in Markdown; alike damages in one row."""
    rows: dict[tuple[str, ...], list[str]] = {}
    for case in done:
        rows.setdefault((case.place, case.kind, case.verify, case.report, case.again), []).append(case.damage)
    lines = ["| folder | file | damage | `doctor --verify` | report | repeated command |", "|---|---|---|---|---|---|"]
    lines += [
        f"| {place} | `{kind}` | {', '.join(damages)} | {found or '–'} | {report or '–'} | {again} |"
        for (place, kind, found, report, again), damages in rows.items()
    ]
    return "\n".join(lines)


def counts(done: list[Case]) -> str:
    """By folder: how many files, cases, and what came of them, in Markdown."""
    lines = [
        "| folder | kinds of files | cases | made anew | refused | named by `doctor --verify` | faults |",
        "|---|---|---|---|---|---|---|",
    ]
    for place in dict.fromkeys(case.place for case in done):
        own = [case for case in done if case.place == place]
        ends = [case.again.partition(":")[0] for case in own]
        cells = (
            len({case.kind for case in own}), len(own), ends.count("anew"), ends.count("refused"),
            sum(case.verify == "named" for case in own), sum(case.fault for case in own),
        )  # fmt: skip
        lines.append(f"| {place} | " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def main() -> None:
    """Exits with status 1 where somebody crashed or took a wrong result for a right one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="")
    parser.add_argument("--place", default="")
    parser.add_argument("--damage", default="", help="those whose name holds a word")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    done = []
    for case in cases(given.only, given.place, given.damage):
        done.append(case)
        print(f"{len(done)}: {' · '.join(found or '–' for found in case)}", file=sys.stderr, flush=True)
    print(f"{table(done)}\n\n{counts(done)}")
    faults = [case for case in done if case.fault]
    print(f"{len(done)} cases, {len(faults)} faults")
    for case in faults:
        print(f"fault: {case}", file=sys.stderr)
    if given.json is not None:
        given.json.write_text(json.dumps([case._asdict() for case in done], indent=1) + "\n", encoding="utf-8")
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()
