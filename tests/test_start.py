"""docs/start.md, typed by a newcomer: each of its commands runs in an empty folder, in the order of the page."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.pobench.small_chat_model import save_chat_model

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/start.md").read_text(encoding="utf-8")
INSTALLING = ("python3 -m venv ", "source ")  # the tests run in an environment that is installed already
# A real model takes up to half an hour. The page calls it optional, and here it is planned alone: everything is read, nothing
# is trained.
PLANNED = "--setting smollm2"


def lines_of(page: str) -> Iterator[str]:
    """What the page's blocks of commands have one type; a block of another language has its name behind the fence."""
    for language, block in re.findall(r"^```(\w*)\n(.*?)^```$", page, re.MULTILINE | re.DOTALL):
        yield from (line for line in block.splitlines() if not language and not line.startswith(INSTALLING))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What the page supposes a reader to have: pairs, one of them the page's own, and a model."""
    (row,) = re.findall(r"^```json\n(.*?)\n```$", PAGE, re.MULTILINE)
    pair = json.loads(row)
    pairs = [pair, *({**pair, "prompt": f"Name colour number {i} of a rainbow."} for i in range(40))]
    (tmp_path / "pairs.jsonl").write_text("".join(f"{json.dumps(p)}\n" for p in pairs), encoding="utf-8")
    save_chat_model(tmp_path / "my/model", max_position_embeddings=4096)
    (tmp_path / "bin").mkdir()
    command = tmp_path / "bin/pobench"
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m pobench.cli "$@"\n', encoding="utf-8")
    command.chmod(0o755)
    return tmp_path


def test_the_page_has_the_commands_that_it_promises() -> None:
    lines = list(lines_of(PAGE))
    assert len(lines) >= 9 and all(line.startswith("pobench ") for line in lines)
    assert re.search(r"^Optional[^`]*```\npobench run [^`]*--setting smollm2$", PAGE, re.MULTILINE)


@pytest.mark.slow
def test_every_command_of_the_page_does_what_it_says(folder: Path) -> None:
    environment = {
        **os.environ,
        "PATH": f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
    }
    environment.pop("POBENCH_ROOT", None)
    printed: dict[str, str] = {}
    for line in lines_of(PAGE):
        shell = f"{line} --dry-run" if PLANNED in line else line
        done = subprocess.run(["bash", "-c", shell], cwd=folder, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, f"{shell}\n{done.stdout}\n{done.stderr}"
        printed[line.partition("#")[0].strip()] = done.stdout
    assert (folder / "runs/report/report.html").is_file() and (folder / "mine.py").is_file()
    trained = sorted(path.parent.name.partition("-")[0] for path in (folder / "runs/tiny").glob("*/trained.json"))
    assert trained == ["dpo", "dpo", "dpo", "mine", "simpo", "simpo", "simpo"], "what is stored is not made again"
    assert (
        printed["pobench run --losses simpo,dpo --setting tiny"].splitlines()[-1] == "report: runs/report/report.html"
    )
