"""One run's folder: its files are written whole, and a run is finished when its marker is there."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from pobench.files import nan_as_null, whole, write_json, write_text
from pobench.settings.job import PROTOCOL, Job


class RunFolder:
    """One job's folder. Every file appears whole, except `steps.jsonl`, which grows a line a step."""

    def __init__(self, runs: Path, run: str) -> None:
        self.path = runs / run
        self.run = run

    # -- state

    @property
    def finished(self) -> bool:
        """Whether every stage is done."""
        return (self.path / "finished.json").is_file()

    @property
    def failure(self) -> str | None:
        """Why the last attempt failed, or None."""
        path = self.path / "failed.json"
        return str(json.loads(path.read_text())["reason"]) if path.is_file() else None

    def fail(self, reason: str) -> None:
        self.write_json("failed.json", {"reason": reason})

    def finish(self, about: Mapping[str, Any]) -> None:
        """The completion marker, written last."""
        (self.path / "failed.json").unlink(missing_ok=True)
        self.write_json("finished.json", {"protocol": PROTOCOL, **about})

    def has(self, name: str) -> bool:
        return (self.path / name).exists()

    # -- files

    def write_config(self, job: Job, kind: str) -> None:
        """`config.yaml`: every value, and where each that is no default comes from."""
        values = {
            **job.values(),
            "kind": kind,
            "protocol": PROTOCOL,
            "start": job.start_run,
            "origin": dict(job.origin),
        }
        write_text(self.path / "config.yaml", yaml.safe_dump(values, sort_keys=False, allow_unicode=True))

    def write_json(self, name: str, value: Any) -> None:
        write_json(self.path / name, value)

    def read_json(self, name: str) -> Any:
        return json.loads((self.path / name).read_text(encoding="utf-8"))

    def write_frame(self, name: str, frame: pd.DataFrame) -> None:
        with whole(self.path / f"{name}.parquet") as partial:
            frame.to_parquet(partial, index=False)

    def read_frame(self, name: str) -> pd.DataFrame:
        return pd.read_parquet(self.path / f"{name}.parquet")

    def benchmark_results(self) -> list[dict[str, Any]]:
        """The stored `score.json` of each benchmark by each judge: that of most questions, and of these the latest."""
        best: dict[tuple[str, str], dict[str, Any]] = {}
        for path in sorted(self.path.glob("benchmarks/**/score.json")):
            result = json.loads(path.read_text(encoding="utf-8"))
            key = result["benchmark"], result["judge"]
            best[key] = max(best.get(key, result), result, key=lambda r: (r["asked"], r["made"]))
        return [best[key] for key in sorted(best)]

    # -- steps

    def log_step(self, row: Mapping[str, Any]) -> None:
        with (self.path / "steps.jsonl").open("a") as file:
            file.write(json.dumps(nan_as_null(row)) + "\n")

    def rewind_steps(self, step: int) -> None:
        """Forget what was logged after `step`, and a line cut short by a kill."""
        kept = [json.dumps(row) for row in self.steps() if row["step"] <= step]
        write_text(self.path / "steps.jsonl", "".join(line + "\n" for line in kept))

    def steps(self) -> list[dict[str, Any]]:
        path = self.path / "steps.jsonl"
        rows = []
        for line in path.read_text().splitlines() if path.is_file() else ():
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError:  # the last line of a killed run
                break
        return rows
