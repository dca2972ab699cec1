"""Damages every kind of stored file in four ways, and looks who finds it and whether the repeated command makes it anew.

    python -m tests.faults.damage                 some minutes of one core
    python -m tests.faults.damage --only model    kinds whose name holds a word

A case copies a finished folder of runs and its cache, damages one file, and asks three: `doctor --verify`, a report (all
frames are read), and the repeated command. Each has to name the file, to do without it, or to make it anew; the command must
end with the results of the undamaged folder or refuse in one sentence.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from pobench.errors import PobenchError
from pobench.results.load import load_frames
from pobench.runs import execute
from pobench.runs.plan import make_plan
from pobench.runs.stages import DEFAULT
from pobench.runs.verify import verify
from pobench.runs.worker import run
from pobench.settings.resolve import resolve
from tests.faults.world import make_world, results


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 0xFF
    file.write_bytes(data)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "a flipped byte": flip,
    "cut to half": lambda file: file.write_bytes(file.read_bytes()[: file.stat().st_size // 2]),
    "empty": lambda file: file.write_bytes(b""),
    "gone": Path.unlink,
}
OF_A_MODEL = (
    "model.safetensors",
    "config.json",
    "tokenizer.json",
)  # its other files are read and checked by the same code
DIGITS = re.compile(r"[0-9a-f]{12}")


class Case(NamedTuple):
    """verify, report: "named", "" (nothing was noticed), or "crashed: …". again: of the repeated command: "anew" (results as
    before), "refused: …", "failed: …", "differs: …" or "crashed: …"."""

    kind: str
    damage: str
    verify: str
    report: str
    again: str

    @property
    def fault(self) -> bool:
        """Whether somebody crashed, or a wrong result was taken for a right one."""
        accepted = self.again.startswith(("anew", "refused"))
        return not accepted or any(found.startswith("crashed") for found in (self.verify, self.report))


def repeat(setting: Path, folder: Path) -> list[str]:
    """Do what is left of the command, in this process; why its runs failed."""
    os.environ["POBENCH_CACHE"] = str(folder / "cache")
    execute._fork = lambda *tasks: max(map(run, tasks))

    def plan() -> object:
        return make_plan(resolve(str(setting), "dpo"), folder / "runs", DEFAULT)

    outcomes = execute.plan_and_execute(plan)[1]  # type: ignore[arg-type]
    return [outcome.reason for outcome in outcomes if outcome.status == "failed"]


def cases(only: str = "") -> Iterator[Case]:
    """One for each kind of stored file and each damage."""
    with tempfile.TemporaryDirectory() as temporary:
        base = Path(temporary)
        setting = make_world(base / "world", epochs=1)
        whole = base / "whole"
        if failed := repeat(setting, whole):
            raise RuntimeError(f"the undisturbed command failed: {failed}")
        expected = found_in(whole)
        kinds: dict[str, Path] = {}
        for file in sorted(path for path in whole.rglob("*") if path.is_file() and path.suffix != ".lease"):
            if file.parent.name == "model" and file.name not in OF_A_MODEL:
                continue
            kinds.setdefault(DIGITS.sub("…", str(file.relative_to(whole))), file.relative_to(whole))
        for kind, file in kinds.items():
            for damage, do in DAMAGES.items() if only in kind else ():
                place = base / "whole"  # paths are as they were: the intact folder waits beside
                shutil.move(whole, base / "intact")
                shutil.copytree(base / "intact", place)
                do(place / file)
                yield Case(kind, damage, *ask(place, file, setting, expected))
                shutil.rmtree(place)
                shutil.move(base / "intact", whole)


def ask(place: Path, file: Path, setting: Path, expected: dict[str, str]) -> tuple[str, str, str]:
    """What `doctor --verify`, a report and the repeated command make of it."""

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
            load_frames(place / "runs")
        return printed.getvalue()

    def again() -> str:
        if failed := repeat(setting, place):
            return f"failed: {failed[0][:200]}"
        found = found_in(place)
        unread = {name for name in expected if name.startswith("reference/")} - set(
            found
        )  # sums of what is trained already
        changed = [n for n in sorted({*found, *expected} - unread) if found.get(n) != expected.get(n)]
        return f"differs: {', '.join(changed)}" if changed else "anew"

    told = named(lambda: "\n".join(verify(place / "runs").faults)), named(report)
    try:
        return *told, again()
    except PobenchError as error:
        return *told, f"refused: {str(error)[:200]}"
    except Exception as error:
        return *told, f"crashed: {type(error).__name__}: {str(error)[:200]}"


def found_in(folder: Path) -> dict[str, str]:
    return results(folder / "runs", folder / "cache")


def table(done: list[Case]) -> str:
    """File × damage × who finds it × what the repeated command makes of it, in Markdown; alike damages in one row."""
    rows: dict[tuple[str, ...], list[str]] = {}
    for case in done:
        rows.setdefault((case.kind, case.verify, case.report, case.again), []).append(case.damage)
    lines = ["| file | damage | `doctor --verify` | report | repeated command |", "|---|---|---|---|---|"]
    lines += [
        f"| `{kind}` | {', '.join(damages)} | {found or '–'} | {report or '–'} | {again} |"
        for (kind, found, report, again), damages in rows.items()
    ]
    return "\n".join(lines)


def main() -> None:
    """Exits with status 1 where somebody crashed or took a wrong result for a right one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="")
    done = []
    for case in cases(parser.parse_args().only):
        done.append(case)
        print(f"{len(done)}: {' · '.join(found or '–' for found in case)}", file=sys.stderr, flush=True)
    print(table(done))
    faults = [case for case in done if case.fault]
    print(f"{len(done)} cases, {len(faults)} faults")
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()
