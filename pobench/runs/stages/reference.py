"""The reference pass: log-probabilities of the start model, made once for every loss, seed and learning rate.

Four sets of sequences, each a folder of its own in the cache: the held-out pairs (every run reports KL), the training
pairs (losses that ask for `reference`), their single tokens (losses that ask for `tokens`, too), and the mismatched pairs
(losses that ask for `kl`). Where the data have lists or single answers, losses of these read sets of their own.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pobench.registry import get_loss
from pobench.runs.stage import Content, Node, Stage
from pobench.settings.job import Job

if TYPE_CHECKING:
    from pobench.runs.context import Context

FOLDER = "reference"  # below the cache folder
MISMATCHED = {"pairs": "mismatched", "lists": "mismatched", "answers": "mismatched_answers"}  # unit of a loss → its set
_LIKE_PAIRS = {"lists": "pairs", "answers": "pairs", "mismatched_answers": "mismatched"}


def sets_of(job: Job, kind: str, stages: tuple[str, ...]) -> list[str]:
    """Which sets of sequences these stages of a run read: "heldout", "tokens", "mismatched" or "mismatched_answers", and "pairs",
    "lists" or "answers"."""
    loss = get_loss(job.loss) if kind == "loss" else None
    watched = kind == "loss" and "train" in stages and job.train.evaluate_every > 0
    sets = ["heldout"] if "heldout" in stages or watched else []
    if loss is not None and "train" in stages and job.train.reference == "cached":
        by_token = {"reference", "tokens"} <= loss.needs
        sets += [("tokens" if by_token else loss.unit)] if loss.reads_reference else []
        sets += [MISMATCHED[loss.unit]] if "kl" in loss.needs else []
    if "trainpairs" in stages:
        sets += ["pairs"]
    return list(dict.fromkeys(sets))


def node_of(job: Job, content: Content, which: str) -> Node:
    """The folder of one set. The digits depend on weights, sequences and arithmetic, and on nothing else; so where lists and
    answers are read of the training pairs, their sums are those of the pairs."""
    unit = "answers" if which == "mismatched_answers" else which
    if unit not in content.own:
        which = _LIKE_PAIRS.get(which, which)
    adapter = job.train.adapter
    base: tuple[str, ...] | None = None if adapter is None else (adapter.quantize, adapter.base_precision)
    if base is not None:  # a name with two words only holds sums that the base gave in fp32
        base = None if base == ("none", "fp32") else (*base, "itself")
    arithmetic = {
        "precision": content.precise(job.train.precision),
        "layout": job.train.layout,
        **job.model.layers,
        "compile": job.train.compile,
        "head_tile": job.train.head_tile,
        "base": base,
        **content.rounding(job.train),
    }
    sequences = content.heldout if which == "heldout" else content.items_of(unit)
    return Node("reference", {"weights": content.weights, "set": which, "sequences": sequences, **arithmetic})


def run(context: Context) -> None:
    """Fill what is missing of the sets that the task names."""
    for which, folder in context.task.references.items():
        context.fill_reference(which, Path(folder))


STAGE = Stage(
    name="reference",
    does="log-probabilities of the start model, shared by all losses, seeds and learning rates",
    reads=("sft", "onpolicy"),
    writes=("sums-<digest>.safetensors or tokens-<digest>.safetensors", "reference.json"),
    decided_by="start weights, token ids of the pairs, arithmetic (precision, layout, attention)",
    run=run,
    shared=True,
    per_run=False,
)
