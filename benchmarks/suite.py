"""Losses of pairs, one epoch each, compared with as many TRL runs.

    python benchmarks/suite.py --model tiny --pairs 64 --out FILE

pobench's side is measured: the time of `train`, with the one reference pass. TRL's side is an ESTIMATE from measured steps of
its DPOTrainer, because TRL has no single trainer for all these losses. A loss without a reference counts as a DPO step
without one. KTO's mismatched pairs and the start of trainers are not counted for TRL.

    as it comes   reference-based: the reference computed in every step; others: the same trainer without it
    at its best   reference precomputed, once for each reference-based run: TRL's cache key depends on all its arguments,
                  the loss and the output folder included; `best_reference_kept` estimates one pass for all runs
"""

from __future__ import annotations

import argparse
import gc
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import peers
from children import in_child
from peers import Work, run_pobench, say
from trl_side import fastest_micro, need_trl, reference_cost, run_trl
from trl_variants import Variant

from pobench.errors import PobenchError
from pobench.registry import get_loss, list_losses
from pobench.settings.job import Job
from pobench.training.reference import MARKER, ReferenceSums


def main() -> None:
    parser = peers.parser_of(__doc__, model="tiny", pairs=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--warm-up", type=int, default=2, help="TRL's steps before the clock starts")
    parser.add_argument("--best-micro", type=int, help="pairs a forward pass of TRL at its best; default: by a trial")
    peers.run_script(measure, parser)


GIVEN = {"reference", "kl", "batch"}  # what a loss may ask for here: stored sums, and what a batch has anyway


def suited() -> list[str]:
    """The registered losses that ask for no more than `GIVEN`: none of ratings, tokens, distributions, lists or answers."""
    return [name for name in list_losses() if get_loss(name).needs <= GIVEN and not get_loss(name).moves_reference]


class Round(NamedTuple):
    """ours: of `run_suite`. theirs: variant → of `run_trl`."""

    ours: dict[str, Any]
    theirs: dict[str, dict[str, Any]]


def measure(given: argparse.Namespace) -> dict[str, Any]:
    check_options(given)
    need_trl()
    job = job_of(given, "dpo")
    pairs = peers.pairs_of(job, given.pairs)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        peers.save_pairs(place / "pairs.json", pairs)
        trl = peers.work_of(given, job, place / "pairs.json", place, warm_up=given.warm_up)
        micro, trials = (given.best_micro, {}) if given.best_micro is not None else fastest_micro(trl)
        rounds = [one_round(given, trl, micro, place / f"round {turn + 1}") for turn in range(given.rounds)]
    return {
        "benchmark": "suite",
        **peers.common(given, job),
        "pairs": given.pairs,
        "rounds": given.rounds,
        "trl_estimated": True,
        "trl_best_micro": micro,
        **summary(rounds, list(trials.values()), given.pairs),
        "environment": rounds[0].ours["environment"],
    }


def check_options(given: argparse.Namespace) -> None:
    """Raises PobenchError for a number that does not fit."""
    if given.pairs < given.batch_size or given.pairs % given.batch_size:
        raise PobenchError(f"--pairs {given.pairs}: a multiple of --batch-size {given.batch_size} is needed")
    if given.best_micro is not None and (given.best_micro < 1 or given.batch_size % given.best_micro):
        raise PobenchError(f"--best-micro {given.best_micro}: a divisor of --batch-size {given.batch_size} is needed")
    if min(given.rounds, given.warm_up) < 1:
        raise PobenchError("--rounds and --warm-up: at least 1")


def job_of(given: argparse.Namespace, loss: str) -> Job:
    return peers.job_of(given.model, loss, data=given.data, lr=given.lr, max_length=given.max_length)


def one_round(given: argparse.Namespace, trl: Work, micro: int, own: Path) -> Round:
    """Every loss by pobench, then one run of each of TRL's variants. micro: pairs a forward pass of TRL at its best. own: a
    folder for the round's cache, which is empty at first: a round holds its reference pass."""
    own.mkdir()
    works = [peers.work_of(given, job_of(given, name), Path(trl.pairs), own) for name in suited()]
    ours = in_child(run_suite, works)
    say(f"{own.name}: {len(works)} losses in {ours['seconds']:.1f} s")
    variants = {
        "default": Variant(given.batch_size),
        "default_without_reference": Variant(given.batch_size, precomputed=True),
        "best": Variant.best(micro),
    }
    theirs = {}
    for name, variant in variants.items():
        theirs[name] = in_child(run_trl, replace(trl, variant=variant))
        say(f"{own.name}: TRL, {name}: {theirs[name]['seconds_per_pair']:.3g} s a pair")
    return Round(ours, theirs)


def summary(rounds: Sequence[Round], trials: Sequence[dict[str, Any]], pairs: int) -> dict[str, Any]:
    """Medians over the rounds, and what as many runs of TRL would take. trials: further runs of TRL, which tell what its
    reference pass costs."""
    ours = [each.ours for each in rounds]
    step = {name: statistics.median(each.theirs[name]["seconds"] for each in rounds) for name in rounds[0].theirs}
    reference = reference_cost([run for each in rounds for run in each.theirs.values()] + [*trials], pairs)
    names = list(ours[0]["losses"])
    needing = [name for name in names if "reference" in get_loss(name).needs]
    total = statistics.median(run["seconds"] for run in ours)
    estimate = estimates(step, reference, len(needing), len(names) - len(needing))
    return {
        "pobench_seconds": total,
        "losses": {name: statistics.median(run["losses"][name] for run in ours) for name in names},
        "reference_based": needing,
        "reference_seconds": statistics.median(run["reference_seconds"] for run in ours),
        "reference_passes": max(run["reference_passes"] for run in ours),
        "trl_seconds_one_run": step,
        "trl_reference_seconds": reference,
        "trl_seconds": estimate,
        "time_ratio": {name: total / seconds for name, seconds in estimate.items()},
    }


def run_suite(works: Sequence[Work]) -> dict[str, Any]:
    """Every work, one after the other, in this process. reference_passes: sequences computed, over distinct sequences."""
    gc.freeze()  # as every worker of pobench does, so that no training searches all that was imported for garbage
    runs = {work.loss: run_pobench(work) for work in works}
    distinct = distinct_sequences(Path(works[0].place) / "reference")
    return {
        "losses": {name: run["train_seconds"] for name, run in runs.items()},
        "seconds": sum(run["train_seconds"] for run in runs.values()),
        "reference_seconds": sum(run["reference_seconds"] for run in runs.values()),
        "reference_passes": sum(run["reference_computed"] for run in runs.values()) / distinct,
        "environment": next(iter(runs.values()))["environment"],
    }


def distinct_sequences(folder: Path) -> int:
    """How many (prompt, response) the caches of a folder hold, whichever of them."""
    keys: set[bytes] = set()
    for marker in folder.glob(f"*/{MARKER}"):
        keys |= ReferenceSums.load(marker.parent).keys
    return len(keys)


def estimates(step: dict[str, float], reference: float, needing: int, free: int) -> dict[str, float]:
    """Seconds of so many TRL runs. step: seconds of one run's steps, by variant. reference: of one reference pass."""
    best = (needing + free) * step["best"]
    return {
        "default": needing * step["default"] + free * step["default_without_reference"],
        "best": best + needing * reference,
        "best_reference_kept": best + reference,
    }


if __name__ == "__main__":
    main()
