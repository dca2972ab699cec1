"""Answers: chat prompts in, sampled or greedy texts out, on whatever device the model is on.

One plain decoding loop over the model's own forward and key-value cache. Prompts of like length go together,
left-padded; answers that have ended leave the batch, so a long one does not hold up sixty short ones.

The random numbers of an answer come from (seed, sample, the prompt's tokens) alone. So neither batch size, nor order,
nor the other prompts, nor an interruption change what is drawn; and two models answer the same prompt with the same
random numbers, which takes noise out of their comparison. (Floating-point sums still depend on the batch's shape;
where two tokens are all but equally likely, that can decide.)
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pobench.registry import PobenchError

Message = Mapping[str, str]
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}
_NUCLEUS = 1024  # candidates looked at before a whole vocabulary is sorted


class Answer(NamedTuple):
    """One answer. prompt: its index among the prompts. tokens: generated, the end-of-turn token included."""

    prompt: int
    sample: int
    text: str
    tokens: int
    finished: bool  # the model ended it; False: cut off at max_new_tokens


def generate(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Sequence[Message]],
    *,
    max_new_tokens: int,
    temperature: float = 0.0,
    top_p: float = 1.0,
    samples: int = 1,
    seed: int = 0,
    batch_size: int = 64,
    precision: str = "fp32",
    progress: Callable[[int, int], None] | None = None,
) -> list[Answer]:
    """`samples` answers to each chat prompt, ordered by prompt, then sample.

    temperature 0 is greedy. top_p: the smallest set of tokens whose probability reaches it is drawn from.
    precision: "fp32" or "bf16", the weights' type while answering (the model itself is left as it is).
    progress(done, all): called after each batch, in answers. Raises PobenchError for settings out of range.
    """
    answers: list[Answer] = []
    for batch in generate_batches(
        model,
        tokenizer,
        prompts,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_p=top_p,
        samples=samples,
        seed=seed,
        batch_size=batch_size,
        precision=precision,
    ):
        answers += batch
        if progress is not None:
            progress(len(answers), len(prompts) * samples)
    return sorted(answers)


def generate_batches(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Sequence[Message]],
    *,
    max_new_tokens: int,
    temperature: float = 0.0,
    top_p: float = 1.0,
    samples: int = 1,
    seed: int = 0,
    batch_size: int = 64,
    precision: str = "fp32",
    skip: Callable[[int, int], bool] = lambda prompt, sample: False,
) -> Iterator[list[Answer]]:
    """`generate`, batch by batch as they are done; answers for which skip(prompt, sample) holds are left out."""
    faults = [
        *([f"max_new_tokens: {max_new_tokens}; at least 1"] if max_new_tokens < 1 else []),
        *([f"temperature: {temperature}; at least 0 (0 is greedy)"] if temperature < 0 else []),
        *([f"top_p: {top_p}; above 0, at most 1"] if not 0 < top_p <= 1 else []),
        *([f"batch_size: {batch_size}; at least 1"] if batch_size < 1 else []),
        *([f"samples: {samples}; at least 1"] if samples < 1 else []),
        *([f"precision: {precision!r}; one of {', '.join(PRECISIONS)}"] if precision not in PRECISIONS else []),
    ]
    if faults:
        raise PobenchError("answers cannot be generated:\n" + "\n".join(f"  {f}" for f in faults))
    encoded = [prompt_tokens(tokenizer, messages) for messages in prompts]
    wanted = [(p, s) for p in range(len(prompts)) for s in range(samples) if not skip(p, s)]
    wanted.sort(key=lambda w: (len(encoded[w[0]]), w))
    if not wanted:
        return
    stops = stop_tokens(model, tokenizer)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else stops[0]
    speaker = _in_precision(model, PRECISIONS[precision])
    was_training = speaker.training
    speaker.eval()
    try:
        for start in range(0, len(wanted), batch_size):
            batch = wanted[start : start + batch_size]
            rows = [encoded[p] for p, _ in batch]
            draws = None
            if temperature > 0:
                draws = np.stack([_draws(seed, s, encoded[p], max_new_tokens) for p, s in batch])
            spoken = _decode(speaker, rows, pad, stops, max_new_tokens, temperature, top_p, draws)
            yield [_answer(tokenizer, p, s, ids, stops) for (p, s), ids in zip(batch, spoken, strict=True)]
    finally:
        speaker.train(was_training)


def prompt_tokens(tokenizer: Any, messages: Sequence[Message]) -> list[int]:
    """The chat as token ids, up to where the assistant's answer begins; special tokens once, from the template."""
    text = tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True)
    return list(tokenizer(text, add_special_tokens=False).input_ids)


def stop_tokens(model: Any, tokenizer: Any) -> list[int]:
    """Ids that end an answer: the model's, the tokenizer's, and the one its chat template closes a turn with."""
    configured = getattr(model.generation_config, "eos_token_id", None)
    ids = list(configured) if isinstance(configured, (list, tuple)) else [configured]
    ids.append(tokenizer.eos_token_id)
    chat = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "\x02answer\x03"}]
    closing = tokenizer.apply_chat_template(chat, tokenize=False).rpartition("\x03")[2]
    special = set(tokenizer.all_special_ids)
    ids.append(next((i for i in tokenizer(closing, add_special_tokens=False).input_ids if i in special), None))
    found = sorted({i for i in ids if i is not None})
    if not found:
        raise PobenchError("neither the model nor its tokenizer names a token that ends an answer")
    return found


# ---------------------------------------------------------------- the loop


@torch.inference_mode()
def _decode(
    model: Any,
    rows: Sequence[Sequence[int]],
    pad: int,
    stops: Sequence[int],
    max_new_tokens: int,
    temperature: float,
    top_p: float,
    draws: np.ndarray | None,
) -> list[list[int]]:
    """The tokens of each row's answer, its stop token included. draws: (rows, max_new_tokens) in [0, 1)."""
    from transformers import DynamicCache

    device = model.device
    longest = max(len(row) for row in rows)
    ids = torch.tensor([[pad] * (longest - len(row)) + list(row) for row in rows], device=device)
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows], device=device)
    position = (mask.cumsum(-1) - 1).clamp(min=0)
    ends = torch.tensor(list(stops), device=device)
    uniform = None if draws is None else torch.as_tensor(draws, dtype=torch.float32, device=device)
    cache = DynamicCache(config=model.config)
    # An index, not the number 1: a slice of the hidden states is not contiguous, and torch would then multiply each row
    # with a copy of the head of its own.
    last = torch.tensor([-1], device=device)
    alive = torch.arange(len(rows), device=device)  # which row of the input each row of the batch is
    ended = torch.zeros(len(rows), dtype=torch.bool, device=device)
    spoken = torch.full((len(rows), max_new_tokens), -1, device=device)
    for step in range(max_new_tokens):
        logits = model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=position,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=last,
        ).logits[:, -1]
        token = logits.argmax(-1) if uniform is None else pick(logits, temperature, top_p, uniform[alive, step])
        spoken[alive[~ended], step] = token[~ended]
        ended |= torch.isin(token, ends)
        left = int((~ended).sum())
        if left == 0:
            break
        # Shrinking copies the cache, so it waits until an eighth of the rows has ended.
        if left <= len(ended) * 7 // 8:
            keep = (~ended).nonzero().squeeze(-1)
            cache.batch_select_indices(keep)
            alive, mask, position, token, ended = alive[keep], mask[keep], position[keep], token[keep], ended[keep]
        ids = token[:, None]
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=-1)
        position = position[:, -1:] + 1
    return [[t for t in row if t >= 0] for row in spoken.tolist()]


def pick(logits: Tensor, temperature: float, top_p: float, uniform: Tensor) -> Tensor:
    """(rows,) token ids drawn from the nucleus of softmax(logits / temperature), by inverting its distribution.

    logits: (rows, vocabulary). uniform: (rows,) in [0, 1). The nucleus is the smallest set of most likely tokens
    whose probability reaches top_p; the token that crosses the line belongs to it.
    """
    logits = logits.float() / temperature
    total = logits.logsumexp(-1, keepdim=True)
    count = logits.shape[-1] if top_p >= 1 else min(_NUCLEUS, logits.shape[-1])
    top, ids = logits.topk(count, dim=-1)
    probability = (top - total).exp()
    if top_p < 1 and count < logits.shape[-1] and bool((probability.sum(-1) < top_p).any()):
        top, ids = logits.sort(dim=-1, descending=True)
        probability = (top - total).exp()
    before = probability.cumsum(-1) - probability
    probability = probability * (before < top_p)
    probability[:, 0].clamp_(min=torch.finfo(probability.dtype).tiny)
    cumulative = probability.cumsum(-1)
    place = (cumulative <= uniform[:, None] * cumulative[:, -1:]).sum(-1, keepdim=True)
    last = (probability > 0).sum(-1, keepdim=True) - 1
    return ids.gather(-1, torch.minimum(place, last)).squeeze(-1)


def _draws(seed: int, sample: int, prompt: Sequence[int], count: int) -> np.ndarray:
    """(count,) uniform numbers that belong to this prompt and sample, whatever else is generated."""
    key = hashlib.sha256(f"{seed} {sample} {list(prompt)}".encode()).digest()
    return np.random.default_rng(list(key)).random(count, dtype=np.float32)


def _answer(tokenizer: Any, prompt: int, sample: int, ids: list[int], stops: Sequence[int]) -> Answer:
    finished = bool(ids) and ids[-1] in stops
    text = tokenizer.decode(ids[:-1] if finished else ids, skip_special_tokens=True)
    return Answer(prompt, sample, text, len(ids), finished)


def _in_precision(model: Any, dtype: torch.dtype) -> Any:
    """The model itself where its weights have this type, else a copy that has."""
    if next(model.parameters()).dtype == dtype:
        return model
    return copy.deepcopy(model).to(dtype).requires_grad_(False)
