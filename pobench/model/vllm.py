"""Answers through vLLM, if it is installed and there is a GPU: token ids in, token ids out.

Prompts, stop tokens and the seed of every (prompt, sample) are the same as in `generate`, but the kernels differ. Answers
are reproducible on the same machine and versions as far as vLLM is. Even a greedy answer may differ from transformers',
where two tokens are almost equally likely.
"""

from __future__ import annotations

import contextlib
import gc
import importlib.util
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from pobench.errors import PobenchError
from pobench.model.generate import Decoding, in_precision, key_of
from pobench.model.rope import held_reach

MEMORY_SHARE = 0.9  # vLLM's own default
AT_ONCE = 4096  # answers in one call; vLLM batches them itself


def missing(engine: str) -> list[str]:
    """What this machine lacks for `answers.engine`, one line each; [] for "auto" and "transformers"."""
    if engine != "vllm":
        return []
    faults = []
    if importlib.util.find_spec("vllm") is None:
        faults.append("answers.engine: vllm is not installed; pip install 'pobench[vllm]'")
    if not torch.cuda.is_available():
        faults.append("answers.engine: vllm needs a GPU, and there is none; allowed here: auto, transformers")
    return faults


@contextlib.contextmanager
def speaker_of(
    model: Any,
    engine: str,
    precision: str,
    batch_size: int,
    *,
    folder: Path | None = None,
    memory_share: float = MEMORY_SHARE,
) -> Iterator[tuple[Any, int]]:
    """(model to pass to `generate`, batch size): `model` itself, or vLLM with the same weights. `model` is moved to the CPU
    while vLLM runs.

    folder: where these weights are stored, in any precision; vLLM reads them there. None: they are stored nowhere (a merged
    adapter), and are written for it in `precision`. memory_share: of the GPU's whole memory, for vLLM's weights and cache.

    The model is cast to `precision` in place and stays so; load it again for wider weights. engine: "auto" takes vLLM if
    possible. Raises PobenchError if "vllm" is wanted and this machine or model does not support it.
    """
    faults = missing("vllm" if engine == "auto" else engine)
    if any(".lora_" in name for name, _ in model.named_parameters()):
        faults.append("answers.engine: vllm takes no adapter over weights that are narrower than fp32")
    if held_reach(model) is not None:
        faults.append(
            "answers.engine: vllm chooses this model's rotary frequencies by other lengths than training does"
        )
    if engine == "vllm" and faults:
        raise PobenchError("\n".join(faults))
    in_precision(model, precision)
    if engine == "transformers" or faults:
        yield model, batch_size
        return
    device = model.device
    with tempfile.TemporaryDirectory() as temporary:
        if folder is None:
            model.save_pretrained(temporary)
        model.to("cpu")
        torch.cuda.empty_cache()
        try:
            served = Served(str(folder or temporary), model.generation_config, precision, memory_share)
            try:
                yield served, AT_ONCE
            finally:
                served.close()
        finally:
            model.to(device)


class Served:
    """A model folder loaded by vLLM, with the interface that `generate` expects."""

    def __init__(self, folder: str, generation_config: Any, precision: str, memory_share: float = MEMORY_SHARE) -> None:
        from vllm import LLM

        self.generation_config = generation_config
        dtype = {"bf16": "bfloat16", "fp32": "float32"}[precision]
        # generation_config "vllm" ignores the sampling defaults in the model's own file.
        self._llm = LLM(
            model=folder,
            dtype=dtype,
            skip_tokenizer_init=True,
            generation_config="vllm",
            gpu_memory_utilization=memory_share,
        )

    def decode(
        self, rows: Sequence[Sequence[int]], samples: Sequence[int], stops: Sequence[int], decoding: Decoding
    ) -> list[list[int]]:
        """The tokens of each row's answer, stop token included. rows: the prompts' tokens. samples: the sample's number for
        each row."""
        from vllm import SamplingParams

        how = [
            SamplingParams(
                temperature=decoding.temperature,
                top_p=decoding.top_p,
                max_tokens=decoding.max_new_tokens,
                seed=int.from_bytes(key_of(decoding.seed, sample, row)[:4], "big") >> 1,
                stop_token_ids=list(stops),
                detokenize=False,
            )
            for row, sample in zip(rows, samples, strict=True)
        ]
        prompts = [{"prompt_token_ids": list(row)} for row in rows]
        return [list(answer.outputs[0].token_ids) for answer in self._llm.generate(prompts, how, use_tqdm=False)]

    def close(self) -> None:
        """Free the GPU's memory."""
        with contextlib.suppress(AttributeError):  # only some versions run the engine in a process of its own
            self._llm.llm_engine.engine_core.shutdown()
        del self._llm
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
