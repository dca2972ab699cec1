"""The reference pass: log-probabilities of the start model, made once for every loss, seed and learning rate.

Four sets of sequences, each a folder of its own in the cache: the held-out pairs (every run reports KL), the training
pairs (losses that ask for `reference`), their single tokens (losses that ask for `tokens`, too), and the mismatched pairs
(losses that ask for `kl`). Where the data have lists or single answers, losses of these read sets of their own, by the same
rules. In later rounds of iterative training all but the first may be of the last round's model.
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
# Unit of a loss → its set.
TOKENS = {"pairs": "tokens", "lists": "list_tokens", "answers": "answer_tokens"}
MISMATCHED = {"pairs": "mismatched", "answers": "mismatched_answers"}
# Set → that of the training pairs, where the data have no lists or answers, and the unit.
_LIKE_PAIRS = {
    "lists": ("pairs", "lists"),
    "list_tokens": ("tokens", "lists"),
    "answers": ("pairs", "answers"),
    "answer_tokens": ("tokens", "answers"),
    "mismatched_answers": ("mismatched", "answers"),
}


def sets_of(job: Job, kind: str, stages: tuple[str, ...]) -> list[str]:
    """Which sets of sequences these stages of a run read: "heldout"; "pairs", "lists", "answers" or one of `TOKENS`; one of
    `MISMATCHED`."""
    loss = get_loss(job.loss) if kind == "loss" else None
    watched = kind == "loss" and "train" in stages and job.train.evaluate_every > 0
    sets = ["heldout"] if "heldout" in stages or watched else []
    if loss is not None and "train" in stages and job.train.reference == "cached":
        by_token = {"reference", "tokens"} <= loss.needs
        sets += [TOKENS[loss.unit] if by_token else loss.unit] if loss.reads_reference else []
        sets += [MISMATCHED[loss.unit]] if "kl" in loss.needs else []
    if "trainpairs" in stages:
        sets += ["pairs"]
    return list(dict.fromkeys(sets))


def node_of(job: Job, content: Content, which: str) -> Node:
    """The folder of one set. The digits depend on weights, sequences and arithmetic, and on nothing else; so where lists and
    answers are read of the training pairs, their sums are those of the pairs."""
    of_pairs, unit = _LIKE_PAIRS.get(which, (which, "pairs"))
    if unit not in content.own:
        which = of_pairs
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
    held = which == "heldout"  # measured against the start model in every round
    weights, sequences = (
        (content.weights, content.heldout) if held else (content.compared_to(job), content.items_of(unit))
    )
    return Node("reference", {"weights": weights, "set": which, "sequences": sequences, **arithmetic})


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
