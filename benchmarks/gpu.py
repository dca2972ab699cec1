"""pobench's training step on one GPU: a random model of Llama's shape, pairs of UltraFeedback's proportions.

    python benchmarks/gpu.py --out benchmarks/results/gpu.json
    python benchmarks/gpu.py --small        tries the script on any machine; its numbers mean nothing

First a small model takes three steps in fp32 on the GPU and on the processor. Nothing is timed unless all losses agree to 1e-5.
Then the large model trains with pobench's layers and with layers by torch.compile, in turn, and is evaluated: pairs are scored
and prompts answered. It stops with a fault where attention by blocks (FlexAttention, in the precision of the run) is not used,
or where anything is compiled after the warm-up. The peak of memory stands beside the estimate of `--dry-run`.
"""

from __future__ import annotations

import argparse
import os
import random
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import peers
import torch
from peers import Work, in_child, ratios, run_pobench, say, spread

from pobench.errors import PobenchError
from pobench.model.device import make_accelerator
from pobench.model.flex import use_flex
from pobench.model.generate import Decoding, generate, in_precision
from pobench.model.load import load_model
from pobench.model.logps import ResponseLogps
from pobench.model.policy_sums import sum_scorer
from pobench.model.shape import shape_of
from pobench.registry import get_loss
from pobench.settings.faults import check_loss_settings
from pobench.settings.schema import TrainConfig
from pobench.training.memory_parts import LIBRARIES, Step, training_memory
from pobench.types import Group, TokenPair

PROPORTIONS = {"prompt": 150, "chosen": 300, "rejected": 250}  # mean tokens of a pair of UltraFeedback
SCATTER = 0.5  # a part's length is within this share of its mean
CHECKED_STEPS = 3
SIDES = {"lean layers": False, "compiled layers": True}
SHAPES: dict[str, dict[str, Any]] = {
    "random-1b": {  # Llama-3.2-1B's, 1.24 billion parameters
        "vocab_size": 128_256, "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,
        "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 64, "tie_word_embeddings": True,
    },
    "random-small": {
        "vocab_size": 512, "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32, "tie_word_embeddings": True,
    },
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="a tiny model and short pairs, on any device")
    parser.add_argument("--loss", default="simpo", help="a loss that needs no reference: its step is everyone's")
    parser.add_argument("--pairs", type=int, default=512, help="a multiple of --batch-size")
    parser.add_argument("--batch-size", type=int, default=128, help="pairs per optimiser step")
    parser.add_argument("--micro-tokens", type=int, default=16_384)
    parser.add_argument("--warm-up", type=int, default=3, help="steps before the clock starts; kernels compile in them")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dtype", choices=["bf16", "fp32"], default="bf16", help="of the arithmetic; weights are fp32")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    parser.add_argument("--out", type=Path, help="also write that object to a file")
    peers.run_script(measure, parser)


def measure(given: argparse.Namespace) -> dict[str, Any]:
    check(given)
    name, shrink = ("random-small", 10) if given.small else ("random-1b", 1)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        pairs = random_pairs(given.pairs, SHAPES[name]["vocab_size"], shrink)
        peers.save_pairs(place / "pairs.json", pairs)
        peers.save_pairs(place / "few.json", random_pairs(8, SHAPES["random-small"]["vocab_size"], 10))
        for model in {name, "random-small"}:
            make_model(place / model, SHAPES[model])
        work = Work(
            str(place / name), str(place / "pairs.json"), given.loss, dict(get_loss(given.loss).settings), 1e-6, folder,
            precision=given.dtype, batch_size=given.batch_size, micro_tokens=given.micro_tokens, threads=given.threads,
            warm_up=given.warm_up,
        )  # fmt: skip
        few = {"model": str(place / "random-small"), "pairs": str(place / "few.json"), "batch_size": 8}
        agreement = same_loss(replace(work, **few, lr=1e-3, precision="fp32", epochs=CHECKED_STEPS, warm_up=0))
        say(f"processor and device agree to {agreement['largest_relative_difference']:.1e}")
        runs: dict[str, list[dict[str, Any]]] = {side: [] for side in SIDES}
        for turn in range(given.rounds):
            for side in list(SIDES)[:: 1 if turn % 2 == 0 else -1]:
                runs[side].append(in_child(run_pobench, replace(work, compile=SIDES[side])))
                ended = runs[side][-1]
                refuse(ended, given)
                say(f"round {turn + 1}, {side}: {ended['seconds_per_pair']:.3g} s a pair, MFU {ended['mfu']:.2f}")
        evaluation = in_child(evaluate, work, *((4, 8) if given.small else (64, 512)))
    return {
        "benchmark": "a trial of gpu" if given.small else "gpu",  # the page takes no trial for a measurement
        "model": name,
        "parameters": runs["lean layers"][0]["shape"][-1],
        "data": f"random tokens, P:C:R = {':'.join(str(n // shrink) for n in PROPORTIONS.values())}",
        "loss": given.loss,
        "dtype": given.dtype,
        "batch_size": given.batch_size,
        "micro_tokens": given.micro_tokens,
        "pairs": given.pairs,
        "rounds": given.rounds,
        "mean_tokens": peers.lengths_of(pairs),
        "agreement": agreement,
        "memory": beside_estimate(SHAPES[name], given, pairs, runs["lean layers"]),
        "evaluation": evaluation,
        "ratio_compiled": ratios(*([run["seconds_per_pair"] for run in runs[side]] for side in SIDES)),
        "layout": {side: runs[side][0]["layout_reason"] for side in SIDES},
        "sides": {side: {key: spread([run[key] for run in runs[side]]) for key in MEASURED} for side in SIDES},
        "environment": runs["lean layers"][0]["environment"],
    }


MEASURED = ("seconds_per_pair", "useful_tokens_per_second", "mfu", "matmul_flops", "peak_memory", "state_memory")


def refuse(run: dict[str, Any], given: argparse.Namespace) -> None:
    """Raises PobenchError where a run did not measure what it should."""
    graphs, warm = run["graphs"], given.warm_up
    if (late := graphs[-1] - graphs[warm - 1]) > 0:
        steps = [i + 1 for i in range(warm, len(graphs)) if graphs[i] > graphs[i - 1]]
        raise PobenchError(
            f"{late} graphs were compiled after the warm-up of {warm} steps, in steps {', '.join(map(str, steps))}: their time "
            "would count as the step's; give a longer --warm-up, or find what changes the shape"
        )
    if not given.small and "blocks" not in run["layout_reason"]:
        raise PobenchError(f"attention by blocks was not used: {run['layout']}: {run['layout_reason']}")


def beside_estimate(
    config: dict[str, Any], given: argparse.Namespace, pairs: list[TokenPair], runs: list[dict[str, Any]]
) -> dict[str, Any]:
    """The peak of the allocator and the estimate that `--dry-run` prints, in bytes; error: estimate / measured - 1."""
    longest = max(len(p.prompt) + len(p.chosen) + len(p.rejected) for p in pairs)
    tokens = max(given.micro_tokens, longest)
    step = Step(tokens, tokens, gpu=torch.cuda.is_available(), narrow=given.dtype == "bf16")
    estimate = training_memory(shape_of({"model_type": "llama", **config}), step)
    measured = max(run["peak_memory"] - run["libraries_memory"] for run in runs)
    expected = estimate.total - LIBRARIES
    return {"estimate": expected, "measured": measured, "error": expected / measured - 1, "parts": estimate.parts}


class Numbers:
    """What decoding needs of a chat whose answers are numbers: no token ends a turn."""

    eos_token_id, end = None, -1

    @property
    def tokenizer(self) -> Numbers:
        return self

    def decode(self, ids: list[int], **how: Any) -> str:
        return " ".join(map(str, ids))


def evaluate(work: Work, prompts: int, new_tokens: int) -> dict[str, float]:
    """Tokens a second of scoring pairs and of answering prompts, in bf16 where the machine multiplies it."""
    torch.set_num_threads(work.threads)
    accelerator = make_accelerator(work.precision)
    device, pairs = accelerator.device, peers.load_pairs(Path(work.pairs))
    precision = "bf16" if accelerator.mixed_precision == "bf16" else "fp32"
    model = load_model(Path(work.model), dtype=torch.float32).to(device)
    use_flex(model, device=device)
    config = TrainConfig(lr=1e-6, micro_tokens=work.micro_tokens, precision=work.precision)
    groups = [Group.of(p) for p in pairs]
    scorer = sum_scorer(ResponseLogps(model), groups, config, accelerator)
    scorer.sums(groups[:8])  # kernels compile here
    started = peers.now(device)
    scorer.sums(groups)
    scoring = sum(g.tokens for g in groups) / (peers.now(device) - started)
    asked = [p.prompt for p in pairs[:prompts]]
    speaking = in_precision(model.eval(), precision)
    started = peers.now(device)
    answers = generate(speaking, Numbers(), asked, Decoding(new_tokens, precision=precision))
    seconds = peers.now(device) - started
    answered = sum(answer.tokens for answer in answers)
    return {
        "scored_tokens_per_second": scoring,
        "answered_tokens_per_second": answered / seconds,
        "answers": len(answers),
    }


def check(given: argparse.Namespace) -> None:
    """Raises PobenchError that lists all faults of the command line or the machine."""
    faults = [
        f"--{option.replace('_', '-')} {getattr(given, option)}: at least 1"
        for option in ("pairs", "batch_size", "micro_tokens", "warm_up", "rounds", "threads")
        if getattr(given, option) < 1
    ]
    if not faults and given.pairs % given.batch_size:
        faults.append(f"--pairs {given.pairs}: a multiple of --batch-size {given.batch_size} is needed")
    try:
        loss = get_loss(given.loss)
        faults += check_loss_settings(loss, {})
        if loss.needs:
            faults.append(f"--loss {loss.name}: it needs {', '.join(sorted(loss.needs))}; take one that needs nothing")
    except PobenchError as error:
        faults.append(f"--loss: {error}")
    if not (given.small or torch.cuda.is_available()):
        faults.append("this benchmark measures a GPU, and there is none; --small tries the script without")
    if faults:
        raise PobenchError("\n".join(faults))


def random_pairs(count: int, vocabulary: int, shrink: int) -> list[TokenPair]:
    """Pairs of random tokens. Their lengths are spread evenly around `PROPORTIONS` / shrink."""
    draw = random.Random(0)

    def part(mean: int) -> tuple[int, ...]:
        length = round(mean / shrink * draw.uniform(1 - SCATTER, 1 + SCATTER))
        return tuple(draw.randrange(1, vocabulary) for _ in range(max(1, length)))

    return [TokenPair(f"{i}", *map(part, PROPORTIONS.values())) for i in range(count)]


def make_model(folder: Path, shape: dict[str, Any]) -> None:
    """A model with random weights, the same every time."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**shape, max_position_embeddings=2048)).save_pretrained(folder)


def same_loss(work: Work) -> dict[str, Any]:
    """Raises PobenchError unless the losses on the processor and on the device agree at every step."""
    runs = {"processor": in_child(_on_processor, work), "device": in_child(run_pobench, work)}
    losses = {where: run["losses"] for where, run in runs.items()}
    return {"largest_relative_difference": peers.check_same_loss(losses), "losses": losses}


def _on_processor(work: Work) -> dict[str, Any]:
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # read when the GPU is first asked for
    return run_pobench(work)


if __name__ == "__main__":
    main()
