"""Compare pobench's training step with one of TRL's trainers: the same pairs and the same maths, in turn within one run.

    python benchmarks/vs_trl.py --model smollm2 --data pairs.jsonl --pairs 64 --dtype fp32 --rounds 3 --out FILE
    python benchmarks/vs_trl.py --trainer kto --tokens 160 --search full --out FILE

    trl_default   the trainer as it comes: activation checkpointing, the reference computed in every step
    trl_best      reference precomputed, no checkpointing, grouped by length, the micro-batch that a trial found fastest, and
                  with `--search full` every other option that a trial found to pay

First all three train on the same few pairs in fp32. Nothing is timed unless all losses agree to 1e-5 at every step. Each is a
process of its own; where memory suffices for all at once, they take one step each in turn, else one run each. Between steps,
off the clock, each measures how fast the machine multiplies just then. A ratio is TRL's seconds / pobench's (above 1: pobench
is faster), `at_equal_rate` with that rate divided out; a memory ratio is pobench's / TRL's (below 1: pobench takes less).
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
import torch
from children import FAULT, in_child, in_turn
from peers import Work, ratios, run_pobench, say, spread
from random_inputs import cut_to
from trl_side import fastest_micro, need_trl, products_of, reference_cost, run_trl, search
from trl_variants import TRAINERS, TWINS, Variant, losses_of

from pobench.errors import PobenchError
from pobench.model.device import free_memory
from pobench.registry import get_loss
from pobench.settings.faults import check_loss_settings
from pobench.training.reference import sequence_keys
from pobench.types import Group

CHECKED_STEPS = 3
SIDES = ("pobench", "trl_default", "trl_best")
ROOM = 1.5  # a side's memory in the run, over that in the check of its loss on a few pairs


def main() -> None:
    parser = peers.parser_of(__doc__, model="smollm2", pairs=64)
    parser.add_argument("--trainer", choices=list(TRAINERS), default="dpo", help="TRL's; cpo: with its SimPO loss")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--losses", help=f"comma-separated, of {', '.join(TWINS)}; default: the trainer's own")
    parser.add_argument("--warm-up", type=int, default=2, help="steps before the clock starts")
    parser.add_argument("--tokens", type=int, help="mean tokens of a pair, cut from the data's text; default: as it is")
    parser.add_argument("--interleave", choices=["auto", "step", "run"], default="auto", help="auto: as memory allows")
    parser.add_argument("--search", choices=["micro", "full"], default="micro", help="TRL's options that are tried")
    parser.add_argument("--search-seconds", type=float, default=1800.0, help="of the full search")
    parser.add_argument("--trial-pairs", type=int, default=32, help="of every trial")
    parser.add_argument(
        "--best-micro", type=int, help="pairs a forward pass of trl_best; default: the fastest in a trial"
    )
    peers.run_script(measure, parser)


def measure(given: argparse.Namespace) -> dict[str, Any]:
    names = check(given)
    need_trl()
    job = peers.job_of(given.model, names[0], data=given.data, lr=given.lr, max_length=given.max_length)
    pairs = peers.pairs_of(job, given.pairs)
    if given.tokens is not None:
        pairs = cut_to(pairs, given.pairs, given.tokens, job.data.max_length)
    losses: dict[str, Any] = {}
    environment: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        peers.save_pairs(place / "pairs.json", pairs)
        for name in names:
            job = peers.job_of(given.model, name, data=given.data, lr=given.lr, max_length=given.max_length)
            settings = {**job.loss_settings, **TWINS[name].settings}
            work = peers.work_of(
                given, job, place / "pairs.json", place, settings=settings, variant=Variant(given.batch_size)
            )
            losses[name], environment = compare(given, work, say_as=name)
    return {
        "benchmark": "vs_trl",
        **peers.common(given, job),
        "trainer": TRAINERS[given.trainer][0],
        "pairs": given.pairs,
        "rounds": given.rounds,
        "warm_up_steps": given.warm_up,
        "mean_tokens": peers.lengths_of(pairs),
        "losses": losses,
        "environment": environment,
    }


def check(given: argparse.Namespace) -> list[str]:
    """The names of the losses. Raises PobenchError that lists all faults of the command line."""
    trainer, own = TRAINERS[given.trainer]
    faults, names = [], []
    for asked in filter(None, (n.strip() for n in (own if given.losses is None else given.losses).split(","))):
        try:
            name = get_loss(asked).name
        except PobenchError as error:
            faults.append(f"--losses: {error}")
            continue
        if name not in losses_of(given.trainer):
            faults.append(f"--losses: TRL's {trainer} has no {name!r}; it has {', '.join(losses_of(given.trainer))}")
        else:
            faults += check_loss_settings(get_loss(name), TWINS[name].settings)
            names.append(name)
    if not names and not faults:
        faults.append("--losses: name at least one")
    for option in ("rounds", "warm_up", "batch_size", "threads", "trial_pairs"):
        if getattr(given, option) < 1:
            faults.append(f"--{option.replace('_', '-')} {getattr(given, option)}: at least 1")
    if given.tokens is not None and given.tokens < 6:
        faults.append(f"--tokens {given.tokens}: at least 6, two for each part of a pair")
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
    agreement, peaks = same_loss(work)
    say(f"{say_as}: yes, to {agreement['largest_relative_difference']:.1e}; filling the reference cache")
    filled = in_child(run_pobench, replace(work, trained=work.batch_size))
    work = replace(work, warm_up=given.warm_up)
    best, trials, tried = best_variant(given, work)
    by_step = given.interleave == "step" or (given.interleave == "auto" and fits_at_once(peaks))
    runs: dict[str, list[dict[str, Any]]] = {side: [] for side in SIDES}
    side_of: dict[str, tuple[Callable[..., dict[str, Any]], Work]] = {
        "pobench": (run_pobench, work),
        "trl_default": (run_trl, work),
        "trl_best": (run_trl, replace(work, variant=best)),
    }
    for turn in range(given.rounds):
        order = SIDES[turn % 3 :] + SIDES[: turn % 3]  # nobody always comes first
        for side, ended in one_round({side: side_of[side] for side in order}, by_step).items():
            runs[side].append(ended)
            say(
                f"{say_as}: round {turn + 1}, {side}: {ended['seconds_per_pair']:.3g} s a pair, "
                f"peak {ended['peak_memory'] / 1e9:.2f} GB (load {os.getloadavg()[0]:.1f})"
            )
    again = sum(run["reference_computed"] for run in runs["pobench"])
    if again:
        raise PobenchError(f"the reference cache was not full: {again} sums were computed while the clock ran")
    return {
        "settings": work.settings,
        "trl_loss_type": TWINS[work.loss].loss_type,
        "agreement": agreement,
        "interleaved": "step by step" if by_step else "run by run",
        **summary(runs),
        "reference": {
            "pobench_seconds": filled["reference_seconds"],
            "pobench_responses": filled["reference_computed"],
            "trl_best_seconds": reference_cost([*runs["trl_best"], *trials.values()], given.pairs),
        },
        "trl_best": {
            **asdict(best),
            "trials": {n: {k: trial[k] for k in ("seconds_per_pair", "peak_memory")} for n, trial in trials.items()},
            "search": tried,
        },
        "layout": runs["pobench"][0]["layout"],
    }, runs["pobench"][0]["environment"]


def best_variant(
    given: argparse.Namespace, work: Work
) -> tuple[Variant, dict[int, dict[str, Any]], list[dict[str, Any]]]:
    """(TRL's fastest variant, the trials of the size of micro-batches, the trials of all other options)."""
    if given.search == "full":
        micro = given.best_micro or min(4, given.batch_size)
        while given.batch_size % micro:
            micro -= 1
        best, tried = search(work, Variant.best(micro), seconds=given.search_seconds, pairs=given.trial_pairs)
        return best, {}, tried
    if given.best_micro is not None:
        return Variant.best(given.best_micro), {}, []
    micro, trials = fastest_micro(work, given.trial_pairs)
    return Variant.best(micro), trials, []


def fits_at_once(peaks: dict[str, int]) -> bool:
    """Whether the memory of all sides is free now. peaks: of each, in bytes, on a few pairs."""
    free = free_memory(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    return free is not None and ROOM * sum(peaks.values()) < free


def one_round(sides: dict[str, tuple[Callable[..., dict[str, Any]], Work]], by_step: bool) -> dict[str, dict[str, Any]]:
    """A run of every side, in turn step by step or one after the other. Raises PobenchError if one fails."""
    if not by_step:
        return {side: in_child(*call) for side, call in sides.items()}
    found = in_turn({side: (function, (work,)) for side, (function, work) in sides.items()})
    faults = [f"{side}: {run[FAULT]}" for side, run in found.items() if FAULT in run]
    if faults:
        raise PobenchError("\n".join(faults))
    return found


def same_loss(work: Work) -> tuple[dict[str, Any], dict[str, int]]:
    """(how far the losses agree, the peak of memory of each side): all train on the first batch several times, in fp32. In
    step 1 policy = reference, in later steps not.

    Raises PobenchError when losses differ or the trainers were shown other tokens.
    """
    small = replace(
        work, precision="fp32", count=work.batch_size, epochs=CHECKED_STEPS, place=str(Path(work.place) / "check")
    )
    Path(small.place).mkdir(exist_ok=True)
    # TRL takes KTO's kl over a micro-batch; only where that is the whole batch is it pobench's.
    cut = work.batch_size if TWINS[work.loss].trainer == "kto" else min(2, work.batch_size)
    runs = {"pobench": in_child(run_pobench, small)}
    for side, variant in (("trl_default", work.variant), ("trl_best", Variant.best(cut))):
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
    }, {side: run["peak_memory"] for side, run in runs.items()}


def summary(runs: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """The ratios, and the numbers of each side, over rounds."""

    def of(side: str, key: str) -> list[float]:
        return [run[key] for run in runs[side]]

    def beyond(side: str, *known: str) -> list[float]:
        return [run["peak_memory"] - sum(run[key] for key in known) for run in runs[side]]

    def products(side: str) -> list[float]:
        return [products_of(run) for run in runs[side]]

    return {
        "ratio_default": ratios(of("trl_default", "seconds_per_pair"), of("pobench", "seconds_per_pair")),
        "ratio_best": ratios(of("trl_best", "seconds_per_pair"), of("pobench", "seconds_per_pair")),
        "ratio_default_at_equal_rate": ratios(products("trl_default"), products("pobench")),
        "ratio_best_at_equal_rate": ratios(products("trl_best"), products("pobench")),
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
