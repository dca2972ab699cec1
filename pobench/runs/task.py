"""One unit of work: stages of one run, done by one process (or by all processes of a training job together)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from pobench.judging.benchmarks.base import Benchmark, Spoken
from pobench.registry import benchmarks, get_loss
from pobench.results.arms import GREEK, show_setting
from pobench.results.run_folder import RunFolder
from pobench.runs.stage import Node
from pobench.settings.job import Job, Round
from pobench.settings.schema import COMMANDS, SECTIONS, Section, TunedConfig
from pobench.shards import ALONE, Share


class Stands(NamedTuple):
    """Where a task stands among those of its command. own, behind: seconds that it, and those which are to come, are expected
    to take; nan where it is not known. shares: others run at the same time."""

    own: float
    behind: float
    shares: bool


@dataclass(frozen=True)
class Task:
    """kind: "sft" makes the start model, "onpolicy" pairs of its answers, "reference" its sums or density ratios of prompts,
    "start" evaluates it, "loss" trains from it and evaluates, "pair" judges two losses' answers against each other.

    run: `<setting>/<loss>-<12 hex>`, its folder below `runs`; of a pair `<setting>/pair-<12 hex>`. sides: of a pair, the runs
    of both losses. stages: what is to do, in order; none is left where it is empty. nodes: stage → its result, of every stage
    that the job has (`reference:<set>` of the reference's, `density_ratio:answers` of the ratios, `start:answers` of the start
    model's answers that a judge compares with). start: the start model's run. data: the folder of the token pairs. references:
    set of sequences → folder of its sums, and `density_ratio` → that of the ratios. causes: of the run itself. rendering,
    precision: the chat (`Chat.digest`) and the precision that the model generates with; empty where the plan did not read the
    model. share: which of the processes that evaluate the run together this one is.
    command: the file that says what else its command does (`pobench.runs.command`), and number: `job 7 of 29` of it; "" where
    none was written. stands: how long it and the others take; None where its process is to read that there.
    """

    job: Job
    kind: str
    runs: Path
    run: str
    stages: tuple[str, ...]
    data: Path
    nodes: Mapping[str, Node] = field(default_factory=dict)
    start: str = ""
    references: Mapping[str, Path] = field(default_factory=dict)
    causes: Mapping[str, Any] = field(default_factory=dict)
    plugins: tuple[str, ...] = ()
    rendering: str = ""
    precision: str = ""
    sides: tuple[str, ...] = ()
    share: Share = ALONE
    command: str = ""
    number: str = ""
    stands: Stands | None = None

    @property
    def spoken(self) -> Spoken | None:
        """What decides the run's answers to a benchmark; None where the plan did not read the model."""
        if not self.rendering:
            return None
        return Spoken(self.rendering, self.precision, RunFolder(self.runs, self.run).weights)

    def generates_in(self, auto: str) -> str:
        """The precision of generated text. auto: what `auto` comes to on this machine."""
        adapter = self.job.train.adapter if self.kind == "loss" else None
        if adapter is not None and (adapter.quantize != "none" or adapter.base_precision == "bf16"):
            return "bf16"  # the base is stored in bf16 or narrower, and an adapter over it is not merged
        return auto if self.job.answers.precision == "auto" else self.job.answers.precision

    @property
    def done(self) -> bool:
        """Whether nothing is left to do."""
        return not self.stages

    @property
    def title(self) -> str:
        titles = {
            "start": "start model",
            "sft": f"SFT of {self.job.model.source}",
            "onpolicy": "pairs of the start model's own answers",
            "reference": "reference pass of the start model",
        }
        if "density_ratio" in self.references:
            titles["reference"] = "density ratios of the prompts"
        if self.job.round.number > 1:
            titles |= self._titles_of_round()
        against = "".join(f" against {side.rpartition('/')[2].rpartition('-')[0]}" for side in self.sides[1:])
        return titles.get(self.kind, f"{self.job.loss}{self._varied()}{against}, seed {self.job.seed}")

    def _titles_of_round(self) -> dict[str, str]:
        """Kind → title, of what belongs to a round after the first."""
        number = self.job.round.number
        name = f"{self.job.loss}{self._varied()}, seed {self.job.seed}"
        own = {"onpolicy": f"pairs of {name}, round {number}: answers of round {number - 1}"}
        own["reference"] = f"reference pass of {name}, round {number}"
        return own if self.kind == "pair" else {**own, "loss": f"{name}, round {number}"}

    def _varied(self) -> str:
        """What tells jobs of one loss apart: the values that a study, a search or the command line gave."""
        loss = get_loss(self.job.loss)
        own = ("train.lr", *(loss.key(name) for name in self.job.loss_settings))
        keys = [k for k, how in self.job.origin.items() if how.startswith("study ") or (how == "--set" and k in own)]
        alternatives = {name: group for group in loss.alternatives for name in group}
        values: dict[str, Any] = {}
        for key in keys:
            prefix, _, name = key.rpartition(".")
            names = [n.rpartition(".")[2] for n in alternatives.get(key) or alternatives.get(name) or (name,)]
            values |= {n: self.job.value(f"{prefix}.{n}") for n in names}
        shown = [f"{GREEK.get(k, k)} = {show_setting(v)}" for k, v in values.items() if v is not None]
        return f" ({', '.join(shown)})" if shown else ""

    @property
    def benchmarks(self) -> list[Benchmark]:
        """Those that the stage runs; none where it is not asked for."""
        return benchmarks_of(self.job, self.stages)

    def dump(self, path: Path) -> None:
        """Write the task as JSON, for processes that a launcher starts."""
        about = {"origin": dict(self.job.origin), "benchmarks": dict(self.job.benchmarks)}
        about |= {name: getattr(self.job, name).model_dump(mode="json") for name in ("onpolicy", "rounds")}
        about["round"] = asdict(self.job.round)
        job = {**self.job.values(), **self.job.provenance(), **about}
        nodes = {name: asdict(node) for name, node in self.nodes.items()}
        plain = {
            "runs": str(self.runs),
            "data": str(self.data),
            "references": {k: str(v) for k, v in self.references.items()},
        }
        path.write_text(json.dumps({**asdict(self), "job": job, "nodes": nodes, **plain}))

    @classmethod
    def load(cls, path: Path) -> Task:
        values = json.loads(path.read_text())
        job = values["job"]
        schemas: dict[str, type[Section]] = {**SECTIONS, **COMMANDS, "tuned": TunedConfig}
        parsed = {name: schema.model_validate(job[name]) for name, schema in schemas.items() if job.get(name)}
        changes = {
            "job": Job(**{**job, **parsed, "round": Round(**job["round"])}),
            "runs": Path(values["runs"]),
            "data": Path(values["data"]),
            "stages": tuple(values["stages"]),
            "plugins": tuple(values["plugins"]),
            "sides": tuple(values["sides"]),
            "share": Share(*values["share"]),
            "stands": Stands(*values["stands"]) if values.get("stands") else None,
            "nodes": {name: Node(**node) for name, node in values["nodes"].items()},
            "references": {name: Path(folder) for name, folder in values["references"].items()},
        }
        return cls(**{**values, **changes})


def benchmarks_of(job: Job, stages: Sequence[str]) -> list[Benchmark]:
    """Those that a job's setting names, if their stage is among `stages`, drawn by the job's seed."""
    settings_of = job.benchmarks if "benchmarks" in stages else {}
    return [benchmarks.get(name)(**settings).drawn_by(job.seed) for name, settings in settings_of.items()]
