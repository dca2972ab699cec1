"""Answers on a GPU, each engine in a process of its own: pobench's loop, transformers' `generate`, vLLM.

The same prompts, greedy, and no token ends an answer, so that all make the same number of tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peers import Work, load_pairs, now

from pobench.model.device import make_accelerator
from pobench.model.generate import Decoding, generate, in_precision, left_padded
from pobench.model.load import load_model
from pobench.model.vllm import speaker_of

AT_ONCE = 64  # answers in a batch


class Numbers:
    """What decoding needs of a chat whose answers are numbers: no token ends a turn."""

    eos_token_id, end = None, -1

    @property
    def tokenizer(self) -> Numbers:
        return self

    def decode(self, ids: list[int], **how: Any) -> str:
        return " ".join(map(str, ids))


def answer(work: Work, engine: str, prompts: int, new_tokens: int) -> dict[str, Any]:
    """Tokens a second, and seconds before the first answer could begin. engine: "pobench", "generate" or "vllm"."""
    torch.set_num_threads(work.threads)
    accelerator = make_accelerator(work.precision)
    device, precision = accelerator.device, "bf16" if accelerator.mixed_precision == "bf16" else "fp32"
    asked = [list(p.prompt) for p in load_pairs(Path(work.pairs))[:prompts]]
    model = load_model(Path(work.model), dtype=torch.float32).to(device).eval()
    model.generation_config.eos_token_id = None
    decoding = Decoding(new_tokens, precision=precision)
    started = now(device)
    if engine == "generate":
        in_precision(model, precision)
        by_generate(model, asked[:AT_ONCE], 2)  # kernels are chosen here
        ready = now(device)
        tokens = sum(by_generate(model, asked[i : i + AT_ONCE], new_tokens) for i in range(0, len(asked), AT_ONCE))
        ended = now(device)
    else:
        with speaker_of(
            model, {"pobench": "transformers", "vllm": "vllm"}[engine], precision, AT_ONCE, folder=Path(work.model)
        ) as (speaker, at_once):
            generate(speaker, Numbers(), asked[:AT_ONCE], Decoding(2, precision=precision), batch_size=at_once)
            ready = now(device)
            answers = generate(speaker, Numbers(), asked, decoding, batch_size=at_once)
            ended = now(device)
        tokens = sum(a.tokens for a in answers)
    peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
    return {
        "tokens_per_second": tokens / (ended - ready),
        "answered_tokens": tokens,
        "answers": len(asked),
        "seconds": ended - ready,
        "ready_seconds": ready - started,
        "peak_memory": None if engine == "vllm" else peak,  # vLLM's engine is another process
    }


@torch.inference_mode()
def by_generate(model: Any, prompts: Sequence[Sequence[int]], new_tokens: int) -> int:
    """Tokens that transformers' own loop makes of one batch."""
    ids, mask, _ = left_padded(prompts, 0, model.device).values()
    made = model.generate(
        input_ids=ids,
        attention_mask=mask,
        max_new_tokens=new_tokens,
        do_sample=False,
        pad_token_id=0,
        eos_token_id=None,
    )
    return int(made[:, ids.shape[1] :].numel())
