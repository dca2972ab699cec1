"""Compare pobench's answers with transformers' `generate`: the same weights and prompts, greedy, in turn within one run.

    python benchmarks/answers.py --model smollm2 --dtype bf16 --rounds 2 --out FILE

    pobench           its loop, as many prompts at a time as it takes by itself
    generate          in left-padded batches of --batch-size, sorted by length
    generate_static   the same with a cache of fixed size
    continuous        transformers' continuous batching, on a machine where it runs

The prompts are the setting's own. An answer ends where the model ends it. Each program is a process of its own, and they answer
one block of prompts each in turn; the first block warms up. In bf16 sums are rounded by the shapes of a batch, so texts differ
and so do their lengths: a ratio is of seconds a token, above 1 where pobench is faster. In fp32 the answers are equal.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import peers
import torch
from children import FAULT, in_turn
from peers import StepClock, about_machine, highest_memory, libraries_memory, ratios, say, spread

from pobench.data.chat import Chat, load_tokenizer
from pobench.data.prompts import eval_prompts
from pobench.errors import PobenchError
from pobench.model.device import make_accelerator
from pobench.model.generate import PRECISIONS, Decoding, batches_of, generate, left_padded, stop_tokens
from pobench.model.layouts import PAD
from pobench.model.load import load_model
from pobench.settings.schema import ANSWERED_TOGETHER

GENERATE: dict[str, dict[str, Any]] = {"generate": {}, "generate_static": {"cache_implementation": "static"}}
SIDES = ("pobench", *GENERATE, "continuous")


def main() -> None:
    parser = peers.parser_of(__doc__, model="smollm2")
    parser.add_argument("--prompts", type=int, help="of the setting's; default: all")
    parser.add_argument("--new-tokens", type=int, help="the most of an answer; default: the setting's")
    parser.add_argument(
        "--sides", default=",".join(SIDES), help="comma-separated; pobench and generate have to be among them"
    )
    parser.add_argument("--rounds", type=int, default=2, help="times that every block is answered, behind the warm-up")
    parser.set_defaults(batch_size=64, dtype="bf16")
    peers.run_script(measure, parser)


def measure(given: argparse.Namespace) -> dict[str, Any]:
    job = peers.job_of(given.model, "simpo")
    faults = [
        f"--{name.replace('_', '-')}: at least 1" for name in ("batch_size", "rounds") if getattr(given, name) < 1
    ]
    sides = [side.strip() for side in given.sides.split(",")]
    faults += [f"--sides: no {side!r}; known: {', '.join(SIDES)}" for side in sides if side not in SIDES]
    faults += [f"--sides: {side} is needed" for side in SIDES[:2] if side not in sides]
    if faults or job.answers.source is None:
        raise PobenchError("\n".join(faults) or f"--model {given.model}: its setting has no prompts")
    new = given.new_tokens or job.decoding.max_new_tokens
    folder = peers.model_folder(job)
    chat = Chat(load_tokenizer(Path(folder)))
    asked = [chat.prompt_ids(row["messages"]) for row in eval_prompts(job.answers)][: given.prompts]
    blocks = [[asked[p] for p, _ in block] for block in batches_of(asked, 1, ANSWERED_TOGETHER)]
    with tempfile.TemporaryDirectory() as place:
        file = Path(place) / "blocks.json"
        file.write_text(json.dumps([*blocks[:1], *(blocks * given.rounds)]))
        shared = (folder, str(file), new, given.dtype, given.batch_size, given.threads)
        found = in_turn({side: (answer, (side, *shared)) for side in sides})
    ran = {side: run for side, run in found.items() if FAULT not in run}
    for side, run in found.items():
        say(
            f"{side}: {run.get(FAULT) or format(run['answered_tokens'] / sum(run['seconds']), '.4g') + ' tokens a second'}"
        )
    if "pobench" not in ran or "generate" not in ran:
        raise PobenchError("\n".join(f"{side}: {run[FAULT]}" for side, run in found.items() if FAULT in run))
    return {
        "benchmark": "answers",
        **peers.common(given, job),
        "data": Path(job.answers.source).name,
        "prompts": len(asked),
        "answered_together": ANSWERED_TOGETHER,
        "rounds": given.rounds,
        "max_new_tokens": new,
        "mean_prompt_tokens": sum(map(len, asked)) / len(asked),
        "sides": {side: _of_side(run, ran["pobench"]) for side, run in ran.items()},
        "faults": {side: run[FAULT] for side, run in found.items() if FAULT in run},
        "environment": ran["pobench"]["environment"],
    }


def _of_side(run: dict[str, Any], ours: dict[str, Any]) -> dict[str, Any]:
    """Its numbers over blocks, and how many times faster pobench is; at_equal_rate: with the machine's rate divided out."""
    per_token = [s / n for s, n in zip(run["seconds"], run["tokens"], strict=True)]
    of_ours = [s / n for s, n in zip(ours["seconds"], ours["tokens"], strict=True)]
    rate = run["matmul_flops"] / ours["matmul_flops"]
    blocks = zip(run["answers"], ours["answers"], strict=True)
    equal = [mine == theirs for block in blocks for mine, theirs in zip(*block, strict=True)]
    return {
        "ratio": ratios(per_token, of_ours),
        "ratio_at_equal_rate": ratios([seconds * rate for seconds in per_token], of_ours),
        "seconds": spread(run["seconds"]),
        "tokens_per_second": spread([1 / seconds for seconds in per_token]),
        "answered_tokens": run["answered_tokens"],
        "same_answers": sum(equal) / len(equal),
        "peak_memory": run["peak_memory"],
        "libraries_memory": run["libraries_memory"],
    }


# ---------------------------------------------------------------- in a process of its own
def answer(side: str, folder: str, blocks: str, new: int, dtype: str, batch_size: int, threads: int) -> dict[str, Any]:
    """Seconds and tokens of every block but the first, and the tokens of its answers, in the order of the prompts."""
    torch.set_num_threads(threads)
    accelerator = make_accelerator(dtype)
    libraries = libraries_memory(folder)
    model = load_model(Path(folder), dtype=PRECISIONS[dtype]).to(accelerator.device).eval()
    chat = Chat(load_tokenizer(Path(folder)))
    stops = stop_tokens(model, chat)
    asked: list[list[list[int]]] = json.loads(Path(blocks).read_text())
    clock = StepClock(dtype, accelerator.device, True)
    texts, tokens = [], []
    for block in asked:
        if side == "pobench":
            answered = generate(model, chat, block, Decoding(new, precision=dtype))
            texts.append([a.text for a in answered])
            tokens.append(sum(a.tokens for a in answered))
        else:
            given = (model, block, new, stops)
            made = by_continuous_batching(*given) if side == "continuous" else by_generate(side, *given, batch_size)
            texts.append([chat.tokenizer.decode(ids, skip_special_tokens=True) for ids in made])
            tokens.append(sum(map(len, made)))
        clock()
    return {
        "seconds": clock.steps()[1:],
        "tokens": tokens[1:],
        "answered_tokens": sum(tokens[1:]),
        "answers": texts[1:],
        "matmul_flops": clock.rate(),
        "peak_memory": highest_memory(accelerator.device),
        "libraries_memory": libraries,
        "environment": about_machine(accelerator),
    }


def by_continuous_batching(model: Any, prompts: Sequence[list[int]], new: int, stops: list[int]) -> list[list[int]]:
    """The tokens of each answer, the one that ends it included. Raises PobenchError where a prompt was not answered."""
    from transformers import GenerationConfig

    config = GenerationConfig(max_new_tokens=new, do_sample=False, eos_token_id=stops, pad_token_id=PAD)
    answered = model.generate_batch([*prompts], generation_config=config)
    made = [[*one.generated_tokens] for one in answered.values()]
    if faults := sorted({str(one.error) for one in answered.values() if one.error is not None}):
        raise PobenchError(f"continuous batching: {faults[0]}")
    if len(made) < len(prompts) or not all(made):
        raise PobenchError(f"continuous batching answered {sum(map(bool, made))} of {len(prompts)} prompts")
    return made


@torch.inference_mode()
def by_generate(
    side: str, model: Any, prompts: Sequence[list[int]], new: int, stops: list[int], batch_size: int
) -> list[list[int]]:
    """As `by_continuous_batching`, in batches."""
    made = []
    for start in range(0, len(prompts), batch_size):
        ids, mask, _ = left_padded(prompts[start : start + batch_size], PAD, model.device).values()
        rows = model.generate(
            input_ids=ids, attention_mask=mask, max_new_tokens=new, do_sample=False, pad_token_id=PAD, eos_token_id=stops,
            **GENERATE[side],
        )  # fmt: skip
        made += [_ended(row, stops) for row in rows[:, ids.shape[1] :].tolist()]
    return made


def _ended(row: list[int], stops: list[int]) -> list[int]:
    """Without the pads behind the token that ends it."""
    end = next((i for i, token in enumerate(row) if token in stops), len(row) - 1)
    return row[: end + 1]


if __name__ == "__main__":
    main()
