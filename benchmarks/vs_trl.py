"""Compare pobench's training step with TRL's DPOTrainer: the same pairs and the same maths, in turn within one run.

    python benchmarks/vs_trl.py --model smollm2 --data pairs.jsonl --pairs 64 --dtype fp32 --rounds 3 --out FILE

    trl_default   the default trainer: activation checkpointing, the reference computed in every step
    trl_best      reference precomputed, no checkpointing, grouped by length, and the micro-batch that a trial found fastest

First all three train on the same few pairs in fp32. Nothing is timed unless all losses agree to 1e-5 at every step. A ratio
is TRL's seconds / pobench's (above 1: pobench is faster), a memory ratio pobench's / TRL's (below 1: pobench takes less).
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import peers
from peers import Variant, Work, in_child, ratios, run_pobench, run_trl, say, spread

from pobench.errors import PobenchError
from pobench.registry import get_loss
from pobench.settings.faults import check_loss_settings
from pobench.training.reference import sequence_keys
from pobench.types import Group

CHECKED_STEPS = 3
SIDES = ("pobench", "trl_default", "trl_best")


def main() -> None:
    parser = peers.parser_of(__doc__, model="smollm2", pairs=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--losses", default="dpo", help=f"comma-separated, of {', '.join(peers.TWINS)}")
    parser.add_argument("--warm-up", type=int, default=2, help="steps before the clock starts")
    parser.add_argument(
        "--best-micro", type=int, help="pairs a forward pass of trl_best; default: the fastest in a trial"
    )
    peers.run_script(measure, parser)


def measure(given: argparse.Namespace) -> dict[str, Any]:
    names = check(given)
    peers.need_trl()
    job = peers.job_of(given.model, names[0], data=given.data, lr=given.lr, max_length=given.max_length)
    pairs = peers.pairs_of(job, given.pairs)
    losses: dict[str, Any] = {}
    environment: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        peers.save_pairs(place / "pairs.json", pairs)
        for name in names:
            job = peers.job_of(given.model, name, data=given.data, lr=given.lr, max_length=given.max_length)
            settings = {**job.loss_settings, **peers.TWINS[name].settings}
            work = peers.work_of(
                given, job, place / "pairs.json", place, settings=settings, variant=Variant(given.batch_size)
            )
            losses[name], environment = compare(given, work, say_as=name)
    return {
        "benchmark": "vs_trl",
        **peers.common(given, job),
        "pairs": given.pairs,
        "rounds": given.rounds,
        "warm_up_steps": given.warm_up,
        "mean_tokens": peers.lengths_of(pairs),
        "losses": losses,
        "environment": environment,
    }


def check(given: argparse.Namespace) -> list[str]:
    """The names of the losses. Raises PobenchError that lists all faults of the command line."""
    faults, names = [], []
    for asked in filter(None, (n.strip() for n in given.losses.split(","))):
        try:
            name = get_loss(asked).name
        except PobenchError as error:
            faults.append(f"--losses: {error}")
            continue
        if name not in peers.TWINS:
            faults.append(f"--losses: TRL's DPOTrainer has no {name!r}; it has {', '.join(peers.TWINS)}")
        else:
            faults += check_loss_settings(get_loss(name), peers.TWINS[name].settings)
            names.append(name)
    if not names and not faults:
        faults.append("--losses: name at least one")
    for option in ("rounds", "warm_up", "batch_size", "threads"):
        if getattr(given, option) < 1:
            faults.append(f"--{option.replace('_', '-')} {getattr(given, option)}: at least 1")
    if given.batch_size > 0 and (given.pairs < 1 or given.pairs % given.batch_size):
        faults.append(f"--pairs {given.pairs}: a multiple of --batch-size {given.batch_size} is needed")
    if given.best_micro is not None and (given.best_micro < 1 or given.batch_size % given.best_micro):
        faults.append(f"--best-micro {given.best_micro}: a divisor of --batch-size {given.batch_size} is needed")
    if faults:
        raise PobenchError("\n".join(faults))
    return list(dict.fromkeys(names))


def compare(given: argparse.Namespace, work: Work, say_as: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """(the results of one loss, the environment)."""
    say(f"{say_as}: do all three compute the same loss?")
    agreement = same_loss(work)
    say(f"{say_as}: yes, to {agreement['largest_relative_difference']:.1e}; filling the reference cache")
    filled = in_child(run_pobench, replace(work, trained=work.batch_size))
    work = replace(work, warm_up=given.warm_up)
    trials: dict[int, dict[str, Any]] = {}
    micro = given.best_micro
    if micro is None:
        micro, trials = peers.fastest_micro(work)
    runs: dict[str, list[dict[str, Any]]] = {side: [] for side in SIDES}
    side_of: dict[str, tuple[Callable[..., dict[str, Any]], Work]] = {
        "pobench": (run_pobench, work),
        "trl_default": (run_trl, work),
        "trl_best": (run_trl, replace(work, variant=Variant.best(micro))),
    }
    for turn in range(given.rounds):
        for side in SIDES[turn % 3 :] + SIDES[: turn % 3]:  # nobody always comes first
            ended = in_child(*side_of[side])
            runs[side].append(ended)
            gigabytes = ended["peak_memory"] / 1e9
            say(
                f"{say_as}: round {turn + 1}, {side}: {ended['seconds_per_pair']:.3g} s a pair, peak {gigabytes:.2f} GB"
                f" (load {os.getloadavg()[0]:.1f})"
            )
    again = sum(run["reference_computed"] for run in runs["pobench"])
    if again:
        raise PobenchError(f"the reference cache was not full: {again} sums were computed while the clock ran")
    return {
        "settings": work.settings,
        "trl_loss_type": peers.TWINS[work.loss].loss_type,
        "agreement": agreement,
        **summary(runs),
        "reference": {
            "pobench_seconds": filled["reference_seconds"],
            "pobench_responses": filled["reference_computed"],
            "trl_best_seconds": peers.reference_cost([*runs["trl_best"], *trials.values()], given.pairs),
        },
        "trl_best": {
            **asdict(Variant.best(micro)),
            "trials": {n: {k: trial[k] for k in ("seconds_per_pair", "peak_memory")} for n, trial in trials.items()},
        },
        "layout": runs["pobench"][0]["layout"],
    }, runs["pobench"][0]["environment"]


def same_loss(work: Work) -> dict[str, Any]:
    """Train on the first batch several times, in fp32, on all sides. In step 1 policy = reference, in later steps not.

    Raises PobenchError when losses differ or the trainers were shown other tokens.
    """
    small = replace(
        work, precision="fp32", count=work.batch_size, epochs=CHECKED_STEPS, place=str(Path(work.place) / "check")
    )
    Path(small.place).mkdir(exist_ok=True)
    runs = {"pobench": in_child(run_pobench, small)}
    for side, variant in (("trl_default", work.variant), ("trl_best", Variant.best(min(2, work.batch_size)))):
        runs[side] = in_child(run_trl, replace(small, variant=variant), True)
    pairs = peers.load_pairs(Path(work.pairs))[: work.batch_size]
    ours = sorted({key.hex() for p in pairs for key in sequence_keys(Group.of(p))})
    for side in SIDES[1:]:
        if runs[side]["shown"] != ours:
            raise PobenchError(f"no timing: {side} was not shown the same token ids")
    losses = {side: run["losses"] for side, run in runs.items()}
    return {
        "same_token_ids": True,
        "largest_relative_difference": peers.check_same_loss(losses),
        "losses": losses,
        "pairs": len(pairs),
    }


def summary(runs: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """The ratios, and the numbers of each side, over rounds."""

    def of(side: str, key: str) -> list[float]:
        return [run[key] for run in runs[side]]

    def beyond(side: str, *known: str) -> list[float]:
        return [run["peak_memory"] - sum(run[key] for key in known) for run in runs[side]]

    return {
        "ratio_default": ratios(of("trl_default", "seconds_per_pair"), of("pobench", "seconds_per_pair")),
        "ratio_best": ratios(of("trl_best", "seconds_per_pair"), of("pobench", "seconds_per_pair")),
        "memory_ratio": ratios(of("pobench", "peak_memory"), of("trl_best", "peak_memory")),
        "memory_ratio_default": ratios(of("pobench", "peak_memory"), of("trl_default", "peak_memory")),
        "activation_ratio": ratios(beyond("pobench", "state_memory"), beyond("trl_best", "state_memory")),
        "activation_ratio_beyond_libraries": ratios(
            beyond("pobench", "state_memory", "libraries_memory"),
            beyond("trl_best", "state_memory", "libraries_memory"),
        ),
        "sides": {
            side: {
                key: spread(of(side, key))
                for key in (
                    "seconds_per_pair",
                    "useful_tokens_per_second",
                    "mfu",
                    "mfu_with_recomputed_head",
                    "matmul_flops",
                    "peak_memory",
                    "libraries_memory",
                    "state_memory",
                )
            }
            for side in SIDES
        },
    }


if __name__ == "__main__":
    main()
