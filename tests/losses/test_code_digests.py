"""A run is named by the code of its loss, so a change of that code gives new names to stored runs. `code_digests.csv` holds the
digests of today's code; a change that is meant goes into it, and into the CHANGELOG, by

    python tests/losses/test_code_digests.py
"""

from __future__ import annotations

import csv
from pathlib import Path

from pobench.identity import code_digest
from pobench.registry import get_loss, list_losses, modifiers

WRITTEN = Path(__file__).with_name("code_digests.csv")


def digests() -> dict[str, str]:
    """Loss or modifier → the first twelve digits of its code's digest."""
    named = {**{name: get_loss(name) for name in list_losses()}, **{m: modifiers.get(m) for m in modifiers.names()}}
    return {name: code_digest(found.function)[:12] for name, found in sorted(named.items())}


def test_no_stored_run_loses_its_name_by_accident() -> None:
    with WRITTEN.open(newline="") as file:
        written = {row["name"]: row["digest"] for row in csv.DictReader(file)}
    now = digests()
    renamed = sorted(name for name in written if name in now and written[name] != now[name])
    assert renamed == [], "stored runs of these get new names; if that is meant, write the digests anew and say so"
    assert sorted(now) == sorted(written), "write the digests anew: python tests/losses/test_code_digests.py"


if __name__ == "__main__":
    with WRITTEN.open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([("name", "digest"), *digests().items()])
