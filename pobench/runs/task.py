"""One unit of work: a job, the stages to run, and where it writes."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from pobench.errors import PobenchError
from pobench.judging.benchmarks.base import Benchmark
from pobench.registry import benchmarks, get_loss
from pobench.results.arms import GREEK, show_setting
from pobench.results.run_folder import RunFolder
from pobench.settings.job import Job
from pobench.settings.schema import AnswersConfig, DataConfig, JudgeConfig, ModelConfig, SftConfig, TrainConfig

INTERRUPTED = 130
HOME_STAGES = ("sft", "train", "heldout", "answers", "judge")
STAGES = (*HOME_STAGES, "benchmarks")


@dataclass(frozen=True)
class Task:
    """A job and where it runs. kind: "sft" makes the start model, "start" evaluates it, "loss" trains from it."""

    job: Job
    kind: str
    runs: Path
    stages: tuple[str, ...]
    data: Path  # folder written by `prepare`; of an SFT stage: its own
    plugins: tuple[str, ...] = ()

    @property
    def run(self) -> str:
        return {"loss": self.job.run, "start": self.job.start_run, "sft": self.data.name}[self.kind]

    @property
    def title(self) -> str:
        named = {"start": "start model", "sft": f"SFT of {self.job.model.source}"}
        return named.get(self.kind, f"{self.job.loss}{self._varied()}, seed {self.job.seed}")

    def _varied(self) -> str:
        """What tells jobs of one loss apart: the values that a study, a search or the command line gave."""
        own = ("train.lr", *(f"{self.job.loss}.{name}" for name in self.job.loss_settings))
        given = [k for k, how in self.job.origin.items() if how.startswith("study ") or (how == "--set" and k in own)]
        others = {name: group for group in get_loss(self.job.loss).alternatives for name in group}
        values: dict[str, Any] = {}
        for key in given:
            name = key.rpartition(".")[2]
            values |= {n: self.job.value(key.removesuffix(name) + n) for n in others.get(name, (name,))}
        shown = [f"{GREEK.get(k, k)} = {show_setting(v)}" for k, v in values.items() if v is not None]
        return f" ({', '.join(shown)})" if shown else ""

    @property
    def benchmarks(self) -> list[Benchmark]:
        """Those that the stage runs; none where it is not asked for."""
        return [] if self.kind == "sft" else benchmarks_of(self.job, self.stages)

    @property
    def done(self) -> bool:
        """Whether nothing is left to do."""
        folder = RunFolder(self.runs, self.run)
        with contextlib.suppress(PobenchError):  # questions that cannot be read are no questions answered
            asked = "norms" in self.stages and self.kind != "sft" and not folder.has("norms.parquet")
            return folder.finished and not asked and all(b.done(folder.path) for b in self.benchmarks)
        return False

    def dump(self, path: Path) -> None:
        values = {**self.job.values(), "origin": dict(self.job.origin), "benchmarks": dict(self.job.benchmarks)}
        path.write_text(json.dumps({**asdict(self), "job": values, "runs": str(self.runs), "data": str(self.data)}))

    @classmethod
    def load(cls, path: Path) -> Task:
        values = json.loads(path.read_text())
        job = values["job"]
        sections: dict[str, type[BaseModel]] = {
            "model": ModelConfig,
            "data": DataConfig,
            "train": TrainConfig,
            "answers": AnswersConfig,
            "judge": JudgeConfig,
            **({"sft": SftConfig} if job.get("sft") else {}),
        }
        parsed = {name: schema.model_validate(job[name]) for name, schema in sections.items()}
        return cls(
            Job(**{**job, **parsed}),
            values["kind"],
            Path(values["runs"]),
            tuple(values["stages"]),
            Path(values["data"]),
            tuple(values["plugins"]),
        )


def benchmarks_of(job: Job, stages: Sequence[str]) -> list[Benchmark]:
    """Those that a job's setting names, if their stage is among `stages`."""
    named = job.benchmarks if "benchmarks" in stages else {}
    return [benchmarks.get(name)(**settings) for name, settings in named.items()]
