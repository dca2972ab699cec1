"""Measure what each input of a loss costs, in processor seconds a pair of a training step; prints a table.

    OMP_NUM_THREADS=1 python benchmarks/inputs.py

One loss, DPO, is asked for with each input in turn; the model is random, so the numbers say nothing but time. Reference passes
are made before the steps and timed apart; for `entropy` and `forward_kl` the reference runs in the steps.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import logsigmoid
from transformers import LlamaConfig, LlamaForCausalLM

from pobench.data.order import mismatch
from pobench.model.device import make_accelerator
from pobench.model.logps import ResponseLogps
from pobench.model.policy_sums import sum_scorer
from pobench.registry import Loss, get_loss, register_loss
from pobench.settings.schema import TrainConfig
from pobench.training.loop import train
from pobench.training.objectives import mismatched_groups
from pobench.training.reference import EveryStep, ReferenceSums
from pobench.types import Batch, Group, LossOutput, Pair, TokenLogps, TokenPair

VOCABULARY, HIDDEN, LAYERS = 4_000, 128, 3


def dpo(policy: Pair, reference: Pair) -> LossOutput:
    u, v = (0.1 * (ours.total - theirs.total) for ours, theirs in zip(policy, reference, strict=True))
    return LossOutput(-logsigmoid(u - v), u.detach(), v.detach())


@register_loss("with_tokens", source="a benchmark")
def with_tokens(policy: Pair, reference: Pair, tokens: TokenLogps) -> LossOutput:
    u, v = (0.1 * (tokens.policy - tokens.reference).sum(-1)).unbind(1)
    return LossOutput(-logsigmoid(u - v), u.detach(), v.detach())


@register_loss("with_scores", source="a benchmark")
def with_scores(policy: Pair, reference: Pair, scores: torch.Tensor) -> LossOutput:
    plain = dpo(policy, reference)
    return plain._replace(loss=plain.loss * (scores[:, 0] - scores[:, 1]))


@register_loss("with_batch", source="a benchmark")
def with_batch(policy: Pair, reference: Pair, batch: Batch) -> LossOutput:
    return dpo(policy, reference)._replace(loss=batch.share(lambda whole: dpo(whole, batch.reference).loss, policy))


@register_loss("with_value", source="a benchmark")
def with_value(policy: Pair, reference: Pair, value: torch.Tensor) -> LossOutput:
    plain = dpo(policy, reference)
    return plain._replace(loss=plain.loss + value**2 - value)


LOSSES = {  # what is asked for → the loss; the others are compared with the first
    "reference": "dpo",
    "policy alone": "simpo",
    "kl": "kto",
    "tokens": "with_tokens",
    "collision": "wpo(dpo)",
    "entropy": "mallows_dpo",
    "forward_kl": "tdpo1",
    "scores": "with_scores",
    "batch": "with_batch",
    "value": "with_value",
}


def pairs_of(count: int) -> list[TokenPair]:
    draw = random.Random(0)

    def ids(n: int) -> tuple[int, ...]:
        return tuple(draw.randrange(1, VOCABULARY) for _ in range(n))

    return [TokenPair(str(i), ids(80), ids(90 + i % 60), ids(150 - i % 60), (8.0, 5.0)) for i in range(count)]


def processor_seconds(work: Callable[[], Any]) -> tuple[Any, float]:
    started = time.process_time()
    return work(), time.process_time() - started


def measure(loss: Loss, pairs: list[TokenPair], steps: int) -> dict[str, float]:
    """Processor seconds a pair: of a step, the median; of the reference pass."""
    torch.manual_seed(0)
    shape = {
        "hidden_size": HIDDEN,
        "intermediate_size": 3 * HIDDEN,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
    }
    model = LlamaForCausalLM(LlamaConfig(vocab_size=VOCABULARY, tie_word_embeddings=True, **shape))
    accelerator = make_accelerator("fp32", cpu=True)
    config = TrainConfig(lr=1e-6, batch_size=len(pairs), precision="fp32", layout="shared_prefix", micro_tokens=2048)
    others = mismatch(pairs) if "kl" in loss.needs else None
    reference: ReferenceSums | EveryStep | None = None
    passed = 0.0
    if loss.runs_reference:
        frozen = ResponseLogps(copy.deepcopy(model).eval().requires_grad_(False))
        reference = EveryStep(sum_scorer(frozen, [*map(Group.of, pairs)], config, accelerator))
    elif loss.reads_reference:
        groups = [*map(Group.of, pairs), *(mismatched_groups(pairs, others) if others else [])]
        scorer = sum_scorer(ResponseLogps(model), groups, config, accelerator)
        by_token = "tokens" in loss.needs
        reference, passed = processor_seconds(lambda: ReferenceSums.of_groups(groups, scorer, per_token=by_token))
    spent = [time.process_time()]
    with tempfile.TemporaryDirectory() as folder:
        train(
            accelerator, model, pairs, [list(range(len(pairs)))] * (steps + 1), loss, loss.settings, config,
            folder=Path(folder), reference=reference, mismatched=others, log=lambda row: spent.append(time.process_time()),
        )  # fmt: skip
    took = [after - before for before, after in itertools.pairwise(spent[1:])]  # the first step warms up
    return {"step": statistics.median(took) / len(pairs), "pass": passed / len(pairs)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=8)
    parser.add_argument("--steps", type=int, default=5, help="of each loss, after one that warms up")
    given = parser.parse_args()
    pairs = pairs_of(given.pairs)
    of_dpo = 0.0
    for asked, name in LOSSES.items():
        seconds = measure(get_loss(name), pairs, given.steps)
        of_dpo = of_dpo or seconds["step"]
        row = {"asks for": asked, **{key: round(value, 4) for key, value in seconds.items()}}
        print(json.dumps({**row, "of DPO's step": round(seconds["step"] / of_dpo, 2)}), flush=True)


if __name__ == "__main__":
    main()
