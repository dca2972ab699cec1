"""A slice of each campaign; `make campaigns` runs them whole."""

from __future__ import annotations

import base64
import gzip
from collections import Counter
from pathlib import Path

import pandas as pd
import pytest

from tests.campaigns import bad_input, endpoint, planted_key


@pytest.mark.parametrize("name", bad_input.CLASSES)
def test_bad_input_ends_in_one_message_and_nothing_is_written(name: str) -> None:
    tally = bad_input.campaign(name, 15, seed=7)
    assert tally.wrong == [] and sum(tally.counts.values()) == 15
    assert tally.counts["refused"]


@pytest.mark.slow
@pytest.mark.parametrize("name", bad_input.CLASSES)
def test_bad_input_of_another_seed_too(name: str) -> None:
    tally = bad_input.campaign(name, 150, seed=8)
    assert tally.wrong == []
    assert tally.counts["accepted"] or name in (
        "rows: bytes",
        "settings: YAML",
        "--set",
        "command lines",
        "command lines: reports",
    )


def test_the_campaign_sees_what_it_counts(tmp_path: Path) -> None:
    def seen(give, good: bool | None = False) -> str:
        return bad_input.outcome(bad_input.Case("", give, good), tmp_path)[0]

    def refuse() -> None:
        raise bad_input.PobenchError("no")

    def write() -> None:
        (tmp_path / "x").write_text("x")
        refuse()

    assert (seen(refuse), seen(refuse, True), seen(write)) == ("refused", "wrong refusal", "written")
    assert (seen(lambda: None), seen(lambda: None, True), seen(lambda: 1 / 0)) == (
        "wrong accept",
        "accepted",
        "traceback",
    )


def test_a_case_that_does_not_end_is_a_hang(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bad_input, "PROCESSOR_SECONDS", 0.1)

    def loop() -> None:
        while True:
            pass

    assert bad_input.outcome(bad_input.Case("", loop), tmp_path)[0] == "hang"


def _fits(seen: list[endpoint.Seen]) -> None:
    assert [fault for one in seen for fault in one.faults] == []
    met = sum((one.met for one in seen), Counter[str]())
    assert sum(one.right for one in seen) and len(met) > 8


def test_the_endpoint_judge_gets_every_reply_or_counts_it_as_missing_whatever_the_server_does(tmp_path: Path) -> None:
    _fits(endpoint.campaign(3, 100, tmp_path))


@pytest.mark.slow
def test_no_file_of_a_whole_run_and_no_word_that_was_printed_holds_the_key(tmp_path: Path) -> None:
    ended, requests = planted_key.whole_run(tmp_path)
    found = planted_key.search(tmp_path, "\n".join(one.words for one in ended))
    assert found.where == [] and found.files > 50 and requests > 5
    # a key that is refused ends a job, and the repeated command goes on
    assert ended[0].status == ended[2].status == 0, ended[2].message


def test_the_search_finds_a_key_in_every_form_and_in_packed_files(tmp_path: Path) -> None:
    key = planted_key.KEY.encode()
    hidden = {"plain.txt": b"x" + key, "coded.json": base64.b64encode(b"user:" + key), "half.log": key[: len(key) // 2]}
    hidden["page.html"] = base64.b64encode(gzip.compress(b"-" * 300 + key + bytes(range(256)), 0))
    for name, data in hidden.items():
        (tmp_path / name).write_bytes(data)
    pd.DataFrame({"text": [planted_key.KEY]}).to_parquet(tmp_path / "frame.parquet", compression="zstd")
    assert {where.partition(":")[0] for where in planted_key.search(tmp_path).where} == {*hidden, "frame.parquet"}


@pytest.mark.slow
def test_the_endpoint_judge_of_another_seed_too(tmp_path: Path) -> None:
    _fits(endpoint.campaign(40, 200, tmp_path))
