"""Every trainer of TRL against pobench, on short and long pairs, in fp32 and bf16: `vs_trl.py` once a cell.

    python benchmarks/against_trl.py                       all twenty cells; hours, and it may be stopped at any time
    python benchmarks/against_trl.py --trainers dpo,kto --tokens 160 --dtypes fp32

A cell that the file holds, measured under the same options, is not measured again; one that failed or took too long is. The
file is written after every cell, and the page of all results at the end. Each cell names its processor, so that cells of one
file may come from several machines.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

import page
import peers
from peers import say
from trl_side import need_trl
from trl_variants import TRAINERS

from pobench.errors import PobenchError
from pobench.files import write_text

FOLDER = Path(__file__).parent
# Options of vs_trl.py that every cell gets, and that must be the same for a stored cell to stand.
PASSED = (
    "model",
    "pairs",
    "batch_size",
    "rounds",
    "warm_up",
    "lr",
    "search",
    "search_seconds",
    "trial_pairs",
    "threads",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trainers", default=",".join(TRAINERS), help="comma-separated")
    parser.add_argument("--tokens", default="160,300", help="mean tokens of a pair, comma-separated")
    parser.add_argument("--dtypes", default="fp32,bf16", help="comma-separated")
    parser.add_argument("--model", default="smollm2", help="a shipped setting, a folder or a name")
    parser.add_argument("--pairs", type=int, default=16)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--warm-up", type=int, default=1)
    parser.add_argument("--lr", type=float, default=1e-5)
    parser.add_argument("--search", choices=["micro", "full"], default="full", help="TRL's options that are tried")
    parser.add_argument("--search-seconds", type=float, default=900.0, help="of a cell's search, at most")
    parser.add_argument("--trial-pairs", type=int, default=8)
    parser.add_argument("--cell-seconds", type=float, default=2400.0, help="of a whole cell, at most")
    parser.add_argument("--threads", type=int, default=int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count() or 1))
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    parser.add_argument("--out", type=Path, default=FOLDER / "results" / "against_trl.json")
    peers.run_script(measure, parser, show=table)


def measure(given: argparse.Namespace) -> dict[str, Any]:
    cells = cells_of(given)
    need_trl()
    asked = {name: getattr(given, name) for name in PASSED} | {"model": Path(given.model).name}
    found = stored(given.out)
    for place, cell in enumerate(cells):
        name = "-".join(map(str, cell.values()))
        kept = found["cells"].get(name)
        if kept is not None and kept.get("asked") == asked and "fault" not in kept:
            say(f"{name}: stored")
            continue
        say(f"{name}: cell {place + 1} of {len(cells)}")
        found["cells"][name] = {"asked": asked, **cell, **one_cell(given, cell)}
        write_text(given.out, json.dumps(with_heading(found), indent=1) + "\n")
    result = with_heading(found)
    if "environment" in result:
        write_text(given.out, json.dumps(result, indent=1) + "\n")
        page.build(given.out.parent)
    return result


def cells_of(given: argparse.Namespace) -> list[dict[str, Any]]:
    """Trainer, tokens and arithmetic of every cell. Raises PobenchError that lists what is wrong."""
    trainers, dtypes = ([part.strip() for part in text.split(",")] for text in (given.trainers, given.dtypes))
    faults = [f"--trainers: no {name!r}; known: {', '.join(TRAINERS)}" for name in trainers if name not in TRAINERS]
    faults += [f"--dtypes: no {name!r}; known: fp32, bf16" for name in dtypes if name not in ("fp32", "bf16")]
    try:
        tokens = [int(part) for part in given.tokens.split(",")]
    except ValueError:
        faults.append(f"--tokens {given.tokens!r}: whole numbers are needed, such as 160,300")
    if faults:
        raise PobenchError("\n".join(faults))
    return [
        {"trainer": trainer, "tokens": count, "dtype": dtype}
        for dtype, count, trainer in itertools.product(dtypes, tokens, trainers)
    ]


def stored(file: Path) -> dict[str, Any]:
    """What earlier calls measured. Raises PobenchError if the file holds something else."""
    if not file.is_file():
        return {"benchmark": "against_trl", "cells": {}}
    try:
        found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        found["cells"].items()
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise PobenchError(f"--out {str(file)!r} holds no cells of this benchmark; name another file") from error
    return found


def with_heading(found: dict[str, Any]) -> dict[str, Any]:
    """The result with what the page says above its table, taken from the cell that was measured last."""
    done = [cell for cell in found["cells"].values() if "fault" not in cell]
    if not done:
        return found
    last = done[-1]
    kept = {key: last["result"][key] for key in ("model", "data", "batch_size", "pairs", "environment")}
    return {**found, **kept, "dtype": ", ".join(sorted({cell["dtype"] for cell in done}))}


def one_cell(given: argparse.Namespace, cell: dict[str, Any]) -> dict[str, Any]:
    """{"result": of vs_trl} or {"fault": why there is none}."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "result.json"
        command = [sys.executable, str(FOLDER / "vs_trl.py"), "--json", "--out", str(out)]
        for name, value in {**{name: getattr(given, name) for name in PASSED}, **cell}.items():
            command += [f"--{name.replace('_', '-')}", str(value)]
        process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True
        )
        told: list[str] = []
        reader = threading.Thread(target=pass_on, args=(process, told), daemon=True)
        reader.start()
        try:
            process.wait(given.cell_seconds)
        except subprocess.TimeoutExpired:
            return {"fault": f"ended after {given.cell_seconds:.0f} s"}
        finally:
            end(process)
            reader.join(10)
        if process.returncode or not out.is_file():
            return {"fault": told[-1] if told else f"status {process.returncode}"}
        return {"result": json.loads(out.read_text())}


def pass_on(process: subprocess.Popen[str], told: list[str]) -> None:
    """Show what a command says while it runs, and keep it."""
    assert process.stderr is not None
    for line in process.stderr:
        say(line.rstrip())
        told.append(line.strip())


def end(process: subprocess.Popen[str]) -> None:
    """End a command and all that it started, if it still runs."""
    if process.poll() is None:
        process.terminate()  # it ends its children
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(30)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def table(result: dict[str, Any]) -> str:
    """A line a cell."""
    return "\n".join(
        f"{name:<18} {cell['fault'] if 'fault' in cell else page.cell_line(cell)}"
        for name, cell in result["cells"].items()
    )


if __name__ == "__main__":
    main()
