"""Look for a judge's key in all that a whole command leaves: `python -m tests.campaigns.planted_key`.

A model is trained and judged by an endpoint on this machine that repeats the key in its replies, in their tokens, in headers
and in errors: whole, in base64, as an address spells it, and by halves. Then a report is written, and the runs are shared as a
site. Every file of runs, cache, report and site, and all that the commands printed, is searched for any of these, Parquet and
packed pictures included.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import gzip
import os
import re
import sys
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import pandas as pd
import yaml

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1] / "pobench"))

from openai_server import Failure, OpenAIServer, says  # type: ignore[import-not-found]

from tests.faults.forked import Ended, pobench
from tests.faults.world import make_world

KEY = "sk-planted/0123456789+abcdefXYZ"
VARIABLE = "PLANTED_KEY"
FIGURES = "settings-table"


def forms() -> list[str]:
    """What gives the key away."""
    plain = KEY.encode()
    spelled = [base64.b64encode(before + plain).decode()[4:-4] for before in (b"", b"u", b"us", b"user:")]
    half = len(KEY) // 2
    return [
        KEY,
        quote(KEY, safe=""),
        KEY[:half],
        KEY[half:],
        *spelled,
        *(s.replace("+", "-").replace("/", "_") for s in spelled),
    ]


class Echo(OpenAIServer):
    """Answers, and tells the key wherever it can. Every third request meets an error that does."""

    def __init__(self) -> None:
        super().__init__(self.reply)
        self.count = 0

    def reply(self, body: dict[str, Any]) -> dict[str, Any]:
        half = len(KEY) // 2
        coded = [base64.b64encode(before + KEY.encode()).decode() for before in (b"", b"u", b"us", b"user:")]
        told = [
            KEY,
            quote(KEY, safe=""),
            KEY[:half],
            KEY[half:],
            *coded,
            base64.urlsafe_b64encode(KEY.encode()).decode(),
        ]
        reply = says(f"A {' '.join(told)}", A=-0.1, B=-2.0, **{KEY: -5.0}) | {
            "id": KEY,
            "model": KEY,
            "system_fingerprint": KEY,
        }
        reply["choices"][0]["message"]["refusal"] = None
        reply[KEY] = told
        return reply

    def refusal(self, body: dict[str, Any]) -> Failure | None:
        self.count += 1
        if self.count % 3:
            return None
        words = f"no right for {KEY}, {quote(KEY, safe='')}, {base64.b64encode(KEY.encode()).decode()}, {KEY[: len(KEY) // 2]}"
        error = {"error": {"message": words, "code": KEY, "param": KEY, "type": KEY}}
        status = (500, 403, 429, 200)[self.count // 3 % 4]
        return lambda handler: handler.send(status, error, X_Request_Id=KEY, Retry_After="0", WWW_Authenticate=KEY)


class Found(NamedTuple):
    """files, bytes: how much was searched. where: what holds a form of the key."""

    files: int
    bytes: int
    where: list[str]


def search(folder: Path, printed: str = "") -> Found:
    """Look into every file, and into what was printed."""
    words = [form.encode() for form in forms()]
    files, size, where = 0, 0, []
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        files, size = files + 1, size + file.stat().st_size
        texts = [file.read_bytes(), os.fsencode(file.name), *_inside(file)]
        where += [f"{file.relative_to(folder)}: {word!r}" for word in words if any(word in text for text in texts)]
    where += [f"what was printed: {word!r}" for word in words if word in printed.encode()]
    return Found(files, size, where)


def _inside(file: Path) -> Iterator[bytes]:
    """What a file holds packed."""
    data = file.read_bytes()
    if file.suffix in (".parquet", ".arrow"):
        with contextlib.suppress(ValueError, OSError):
            yield pd.read_parquet(file).to_csv().encode("utf-8", "replace")
    for packed in re.findall(rb"[A-Za-z0-9+/]{200,}={0,2}", data):
        with contextlib.suppress(ValueError):
            plain = base64.b64decode(packed[: len(packed) // 4 * 4])
            yield plain
            for unpack in (gzip.decompress, lambda d: zlib.decompress(d, -15), zlib.decompress):
                with contextlib.suppress(OSError, EOFError, zlib.error):
                    yield unpack(plain)


def whole_run(folder: Path) -> tuple[list[Ended], int]:
    """Train, judge, report and share below the folder. Returns how the commands ended, and the number of requests."""
    setting = make_world(folder / "world", epochs=1)
    judge = {"model": "judge", "key_variable": VARIABLE, "retries": 4, "price_in": 1.0, "price_out": 1.0}
    with Echo() as server:
        values = yaml.safe_load(setting.read_text())
        values["judge"] = {"name": "endpoint", "settings": {**judge, "base_url": server.url}}
        setting.write_text(yaml.safe_dump(values))
        runs = ("--runs", str(folder / "runs"))
        run = ("run", "--losses", "dpo,simpo", "--setting", str(setting), *runs)
        commands: list[tuple[str, ...]] = [
            (*run, "--dry-run"), (*run, "--opponents", "all"), (*run, "--json"),
            ("analyze", *runs, "--format", "all", "--figures", FIGURES),
            ("share", str(folder / "runs"), "--out", str(folder / "site")),
            ("doctor",), ("status", *runs), ("list", "runs", *runs),
        ]  # fmt: skip
        variables = {VARIABLE: KEY, "POBENCH_CACHE": str(folder / "cache")}
        ended = [pobench(command, variables, figures=FIGURES) for command in commands]
    return ended, server.count


def main() -> None:
    """Exit status 1 where the key is found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keep", type=Path, help="a folder that keeps all")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.keep or Path(temporary)
        ended, requests = whole_run(folder)
        printed = "\n".join(one.words for one in ended)
        found = search(folder, printed)
    print(f"commands ended with {[one.status for one in ended]}")
    print(
        f"{requests} requests; {found.files} files of {found.bytes / 1e6:.1f} MB and {len(printed)} characters searched"
    )
    print("\n".join(found.where) or f"none of {len(forms())} forms of the key")
    sys.exit(bool(found.where))


if __name__ == "__main__":
    main()
