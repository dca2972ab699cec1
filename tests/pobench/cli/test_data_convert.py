"""`pobench data convert` writes what was read, and nothing where a row is refused."""

from __future__ import annotations

import json

from typer.testing import CliRunner

from pobench.cli.main import app


def test_convert_writes_mapped_pairs_and_refuses_unmapped_ones(tmp_path) -> None:
    source, out = tmp_path / "mine.jsonl", tmp_path / "pairs.jsonl"
    source.write_text(json.dumps({"input": "Why?", "chosen": "Sure, so.", "rejected": "Sure, no.", "id": "a"}) + "\n")
    mapped = ["--set", "data.columns.prompt=input"]
    command = ["data", "convert", str(source), "--out", str(out)]
    assert CliRunner().invoke(app, command).exit_code != 0 and not out.exists()
    before = source.read_text()
    assert CliRunner().invoke(app, ["data", "convert", str(source), "--out", str(source), *mapped]).exit_code != 0
    assert source.read_text() == before
    done = CliRunner().invoke(app, [*command, *mapped])
    assert done.exit_code == 0, done.output
    assert json.loads(out.read_text()) == {
        "id": "a",
        "prompt": [{"role": "user", "content": "Why?"}],
        "chosen": "Sure, so.",
        "rejected": "Sure, no.",
        "row": 1,
    }
