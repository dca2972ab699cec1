"""What a stage is: a name, what it reads and writes, what decides its result, and whether processes may share it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pobench.identity import name_of
from pobench.settings.job import Job
from pobench.settings.schema import LoopConfig


@dataclass(frozen=True)
class Node:
    """A stage's result, named by what it is made from."""

    stage: str
    causes: Mapping[str, Any]

    @property
    def name(self) -> str:
        """`<stage>-<12 hex>`, its folder."""
        return f"{self.stage}-{name_of({'stage': self.stage, **self.causes})}"


@dataclass(frozen=True)
class Content:
    """Digests of what a plan's results are made from, besides the values of its jobs.

    weights: of the start model (of one that an SFT stage will make: that stage's name). pairs, heldout: of the token pairs,
    their ids included. prompts: of the ids and token ids that the model is asked with; None where nothing is asked.
    rows: of the prompts' rows as a judge reads them. scores, heldout_scores: of the pairs' ratings. precision: what `auto`
    comes to on this machine, "bf16" or "fp32".
    own: "lists" or "answers", where the data have them → (digest of the items, of their ratings). without: "train" or
    "heldout", where the data have no such pairs.
    source: a registered function's kind and name → the digest of its code. rendering: of the chat template and tokenizer
    (`Chat.digest`). begins: of the last round's model, from which a later round trains; "" where the start model is it.
    embedder: a model that embeds prompts → the digest of its weights.
    """

    weights: str
    pairs: str
    heldout: str
    prompts: str | None
    rows: str | None
    precision: str
    source: Callable[[str, str], str]
    rendering: str
    scores: str = ""
    heldout_scores: str = ""
    own: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    without: frozenset[str] = frozenset()
    begins: str = ""
    embedder: Callable[[str], str] = str

    def items_of(self, unit: str) -> str:
        """The digest of what a loss of this unit is trained on."""
        return self.own[unit][0] if unit in self.own else self.pairs

    def scores_of(self, unit: str) -> str:
        """The digest of its ratings."""
        return self.own[unit][1] if unit in self.own else self.scores

    def compared_to(self, job: Job) -> str:
        """The weights that a loss with a reference is trained against."""
        return self.begins if self.begins and job.rounds.reference == "last" else self.weights

    def precise(self, wanted: str) -> str:
        """A precision without `auto`."""
        return self.precision if wanted == "auto" else wanted

    def rounding(self, config: LoopConfig) -> dict[str, str]:
        """Where weights are split over processes and computed in bf16, each is rounded when it is gathered, which is another
        arithmetic than autocast over fp32 weights: `{"gathered": "bf16"}`. Else nothing."""
        rounded = config.sharding == "fsdp2" and self.precise(config.precision) == "bf16"
        return {"gathered": "bf16"} if rounded else {}


@dataclass(frozen=True)
class Stage:
    """One entry of the list in `pobench.runs.stages`. Its file says what it does; commands and pages read it from that list.

    name: what `--stages` takes. does: one line for people. reads: stages whose results it needs. writes: what it leaves in
    its folder. decided_by: what decides its result, in words; causes: the same as data, None where a job has no such stage.
    read: digests of the stored results that it reads, None for one that is not there; its own result is used only while they
    are the same. shared: whether the processes of a training job work on it together; else one process does. cut: by rows, into
    shards that any number of processes compute (`pobench.shards`). optional: it runs only where it is named, by the
    option `named_by`. prepares: it makes the start model or the pairs by which runs are named, so it stands before them.
    per_run: it stands behind one trained model; else runs share it.
    many: whether studies and searches, with their many jobs, run it.
    """

    name: str
    does: str
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    decided_by: str
    run: Callable[[Any], None]  # of a `pobench.runs.context.Context`
    causes: Callable[[Job, Content], Mapping[str, Any] | None] = lambda job, content: None
    read: Callable[[Any], Mapping[str, str | None]] = lambda task: {}  # of a `pobench.runs.task.Task`
    shared: bool = False
    cut: bool = False
    optional: bool = False
    named_by: str = "--stages"
    prepares: bool = False
    per_run: bool = True
    many: bool = True
