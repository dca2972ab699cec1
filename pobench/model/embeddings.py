"""Embeddings of prompts: the mean over a prompt's tokens of a frozen model's last hidden states."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pobench.errors import PobenchError
from pobench.sources import weights_fault

TOKENS = 8192  # of a batch of prompts, pads included
LONGEST = 2048  # tokens of a prompt, for a model that names no limit


@torch.no_grad()
def embed(
    model: Any,
    prompts: Sequence[Sequence[int]],
    advance: Callable[[int], None] = lambda prompts: None,
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> Tensor:
    """(prompts, features) fp32, on the CPU. model: one that gives hidden states, in evaluation mode, on its device. prompts:
    token ids, none empty. advance: called with the number of prompts done since the last call.

    Shorter prompts of a batch are padded on the right and masked, so that a causal model and an encoder read each as it would
    be alone. Raises PobenchError where the model gives no hidden states, or values that are not finite.
    """
    embedded: dict[int, Tensor] = {}
    for batch in _batches([len(prompt) for prompt in prompts]):
        rows = [torch.tensor(prompts[i], device=model.device) for i in batch]
        ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
        mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
        with autocast():
            states = getattr(model(input_ids=ids, attention_mask=mask), "last_hidden_state", None)
        if states is None:
            raise PobenchError(f"{type(model).__name__} gives no hidden states, so it cannot embed prompts")
        means = (states.float() * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        embedded |= dict(zip(batch, means.cpu(), strict=True))
        advance(len(batch))
    whole = torch.stack([embedded[i] for i in range(len(prompts))])
    if not whole.isfinite().all():
        raise PobenchError(f"{type(model).__name__} embeds prompts with values that are not finite")
    return whole


def _batches(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Indices of prompts of similar length, the longest first, so that a lack of memory shows at once."""
    batch: list[int] = []
    for i in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        if batch and lengths[batch[0]] * (len(batch) + 1) > TOKENS:
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch


def load_embedder(folder: Path, device: torch.device) -> tuple[Any, Callable[[Sequence[str]], list[list[int]]]]:
    """The model in `folder`, in fp32 and evaluation mode, and what makes token ids of texts for it, cut at the length that it
    reads. No code that comes with the model runs. Raises PobenchError if it cannot be loaded."""
    from transformers import AutoModel, AutoTokenizer

    try:
        read: Any = AutoModel.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
        tokenizer = AutoTokenizer.from_pretrained(folder)
    except Exception as error:  # transformers and safetensors raise a dozen unrelated types
        raise PobenchError(f"data.prompt_embedder: {str(folder)!r} cannot be loaded: {error}") from error
    model, found = read
    lacking = {name for name in found["missing_keys"] if not name.startswith("pooler.")}  # its output is not used
    if fault := weights_fault({**found, "missing_keys": lacking, "unexpected_keys": set()}):  # those of a head
        raise PobenchError(f"data.prompt_embedder: {str(folder)!r}: {fault}")
    model = model.to(device).eval()
    limit = min(int(tokenizer.model_max_length), getattr(model.config, "max_position_embeddings", None) or LONGEST)

    def tokenise(texts: Sequence[str]) -> list[list[int]]:
        ids = tokenizer(list(texts), truncation=True, max_length=limit, padding=False)["input_ids"]
        return [row or [tokenizer.eos_token_id or 0] for row in ids]

    return model, tokenise
