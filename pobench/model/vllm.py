"""Answers through vLLM, where it is installed and there is a GPU: token ids in, token ids out.

The prompts, the tokens that end an answer and the seed of every (prompt, sample) are those of `generate`; the kernels are
not. So an answer comes again on the same machine and versions as far as vLLM keeps its promise, and even a greedy one may
differ from that of transformers where two tokens are all but equally likely.
"""

from __future__ import annotations

import contextlib
import gc
import importlib.util
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from pobench.errors import PobenchError
from pobench.model.generate import Decoding, in_precision, key_of

AT_ONCE = 4096  # answers handed over together; vLLM makes its own batches of them


def missing(engine: str) -> list[str]:
    """What this machine lacks for `answers.engine`, one plain line each; nothing for "auto" and "transformers"."""
    if engine != "vllm":
        return []
    lacking = []
    if importlib.util.find_spec("vllm") is None:
        lacking.append("answers.engine: vllm is not installed; pip install vllm")
    if not torch.cuda.is_available():
        lacking.append("answers.engine: vllm needs a GPU, and there is none; allowed here: auto, transformers")
    return lacking


@contextlib.contextmanager
def speaker_of(model: Any, engine: str, precision: str, batch_size: int) -> Iterator[tuple[Any, int]]:
    """(what `generate` is given, its batch size): `model` itself, or the same weights behind vLLM, `model` waiting in
    the processor's memory meanwhile.

    The model is cast to `precision` in place and stays so: an owner that needs wider weights afterwards loads them again.
    engine: "auto" takes vLLM where it can. Raises PobenchError where "vllm" is asked for and cannot be had.
    """
    faults = missing("vllm" if engine == "auto" else engine)
    if any(".lora_" in name for name, _ in model.named_parameters()):
        faults.append("answers.engine: vllm takes no adapter over weights that are narrower than fp32")
    if engine == "vllm" and faults:
        raise PobenchError("\n".join(faults))
    in_precision(model, precision)
    if engine == "transformers" or faults:
        yield model, batch_size
        return
    device = model.device
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        model.to("cpu")
        torch.cuda.empty_cache()
        try:
            served = Served(folder, model.generation_config, precision)
            try:
                yield served, AT_ONCE
            finally:
                served.close()
        finally:
            model.to(device)


class Served:
    """A model folder behind vLLM, as `generate` takes it."""

    def __init__(self, folder: str, generation_config: Any, precision: str) -> None:
        from vllm import LLM

        self.generation_config = generation_config
        dtype = {"bf16": "bfloat16", "fp32": "float32"}[precision]
        # generation_config "vllm": sampling defaults of the model's own file must not meddle.
        self._llm = LLM(model=folder, dtype=dtype, skip_tokenizer_init=True, generation_config="vllm")

    def decode(
        self, rows: Sequence[Sequence[int]], samples: Sequence[int], stops: Sequence[int], decoding: Decoding
    ) -> list[list[int]]:
        """The tokens of each row's answer, its stop token included. rows: the prompts' tokens. samples: which of its
        prompt's answers each is."""
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
        """Give the GPU's memory back."""
        with contextlib.suppress(AttributeError):  # it has a process of its own, or it has not
            self._llm.llm_engine.engine_core.shutdown()
        del self._llm
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
