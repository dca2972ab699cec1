"""Answers: chat prompts in, sampled or greedy texts out, on whatever device the model is on.

One plain decoding loop over the model's own forward and key-value cache. Prompts of like length go together,
left-padded; answers that have ended leave the batch, so a long one does not hold up sixty short ones.

The random numbers of an answer come from (seed, sample, the prompt's tokens) alone. So neither batch size, nor order,
nor the other prompts, nor an interruption change what is drawn; and two models answer the same prompt with the same
random numbers, which takes noise out of their comparison. (Floating-point sums still depend on the batch's shape;
where two tokens are all but equally likely, that can decide. So an interrupted or shared-out call keeps the shapes.)
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pobench.errors import PobenchError

Message = Mapping[str, str]
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}
# Of a batch's prompts, pads included: rows share their width, and a few prompts of thousands of tokens would ask for more
# memory than a batch of short ones. Sixty-four prompts of 512 tokens are still one batch.
MOST_TOKENS = 32_768
_NUCLEUS = 1024  # candidates looked at before a whole vocabulary is sorted


class Answer(NamedTuple):
    """One answer. prompt: its index among the prompts. tokens: generated, the end-of-turn token included."""

    prompt: int
    sample: int
    text: str
    tokens: int
    finished: bool  # the model ended it; False: cut off at max_new_tokens


@dataclass(frozen=True)
class Decoding:
    """How answers are drawn: all that decides what is said.

    temperature 0 is greedy. top_p: the smallest set of tokens whose probability reaches it is drawn from. precision:
    "fp32" or "bf16", the weights' type while answering. Raises PobenchError that lists what is out of range.
    """

    max_new_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    samples: int = 1  # of every prompt
    seed: int = 0
    precision: str = "fp32"

    def __post_init__(self) -> None:
        rules = {
            "max_new_tokens": (self.max_new_tokens >= 1, "at least 1"),
            "temperature": (self.temperature >= 0, "at least 0 (0 is greedy)"),
            "top_p": (0 < self.top_p <= 1, "above 0, at most 1"),
            "samples": (self.samples >= 1, "at least 1"),
            "precision": (self.precision in PRECISIONS, f"one of {', '.join(PRECISIONS)}"),
        }
        faults = [f"  {k}: {getattr(self, k)!r}; {allowed}" for k, (holds, allowed) in rules.items() if not holds]
        if faults:
            raise PobenchError("answers cannot be generated:\n" + "\n".join(faults))


def generate(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Sequence[Message]],
    decoding: Decoding,
    *,
    batch_size: int = 64,
    progress: Callable[[int, int], None] | None = None,
) -> list[Answer]:
    """The answers to each chat prompt, ordered by prompt, then sample; the model itself is left as it is.

    model: of transformers, or whatever has a `generation_config` and a `decode` of its own (`pobench.model.vllm`).

    progress(done, all): called after each batch, in answers.
    """
    answers: list[Answer] = []
    for batch in generate_batches(model, tokenizer, prompts, decoding, batch_size=batch_size):
        answers += batch
        if progress is not None:
            progress(len(answers), len(prompts) * decoding.samples)
    return sorted(answers)


def generate_batches(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Sequence[Message]],
    decoding: Decoding,
    *,
    batch_size: int = 64,
    skip: Callable[[int, int], bool] = lambda prompt, sample: False,
    share: tuple[int, int] = (0, 1),
) -> Iterator[list[Answer]]:
    """`generate`, batch by batch as they are done; answers for which skip(prompt, sample) holds are left out.

    share: (i, n) takes every n-th batch from the i-th on: of n processes each does one share. Batches are laid out
    before anything is skipped or shared out, so neither changes the shape of a sum, and the answers are the same to
    the last bit.
    """
    if batch_size < 1:
        raise PobenchError(f"answers cannot be generated:\n  batch_size: {batch_size}; at least 1")
    encoded = [prompt_tokens(tokenizer, messages) for messages in prompts]
    asked = sorted(
        ((p, s) for p in range(len(prompts)) for s in range(decoding.samples)), key=lambda a: (len(encoded[a[0]]), a)
    )
    batches = _batches(asked, [len(encoded[p]) for p, _ in asked], batch_size)
    mine = [batch for batch in batches[share[0] :: share[1]] if not all(skip(*a) for a in batch)]
    if not mine:
        return
    stops = stop_tokens(model, tokenizer)
    with _decoder(model, tokenizer, stops, decoding) as decode:
        for batch in mine:
            spoken = decode([encoded[p] for p, _ in batch], [s for _, s in batch])
            said = (_answer(tokenizer, p, s, ids, stops) for (p, s), ids in zip(batch, spoken, strict=True))
            yield [answer for answer in said if not skip(answer.prompt, answer.sample)]


def _batches(asked: Sequence[tuple[int, int]], lengths: Sequence[int], batch_size: int) -> list[list[tuple[int, int]]]:
    """Cut what is asked, shortest prompt first, into batches of at most `batch_size` and of `MOST_TOKENS`, pads included;
    a prompt that is longer by itself has a batch of its own."""
    batches: list[list[tuple[int, int]]] = []
    for answer, longest in zip(asked, lengths, strict=True):
        if not batches or len(batches[-1]) == batch_size or (len(batches[-1]) + 1) * longest > MOST_TOKENS:
            batches.append([])
        batches[-1].append(answer)
    return batches


def prompt_tokens(tokenizer: Any, messages: Sequence[Message]) -> list[int]:
    """The chat as token ids, up to where the assistant's answer begins; special tokens once, from the template."""
    text = tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True)
    return list(tokenizer(text, add_special_tokens=False).input_ids)


def left_padded(rows: Sequence[Sequence[int]], pad: int, device: torch.device) -> dict[str, Tensor]:
    """input_ids, attention_mask and position_ids, (rows, tokens) each: the last column is every row's last token."""
    width = max(map(len, rows))
    ids = torch.tensor([[pad] * (width - len(row)) + list(row) for row in rows], device=device)
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=device)
    return {"input_ids": ids, "attention_mask": mask, "position_ids": (mask.cumsum(-1) - 1).clamp(min=0)}


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
Decode = Callable[[Sequence[Sequence[int]], Sequence[int]], list[list[int]]]


@contextlib.contextmanager
def _decoder(model: Any, tokenizer: Any, stops: Sequence[int], decoding: Decoding) -> Iterator[Decode]:
    """(prompts' tokens, which of its prompt's answers each is) → each answer's tokens, its stop token included."""
    if hasattr(model, "decode"):
        yield lambda rows, samples: model.decode(rows, samples, stops, decoding)
        return
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else stops[0]
    speaker = _in_precision(model, PRECISIONS[decoding.precision])
    was_training = speaker.training
    speaker.eval()
    try:
        yield lambda rows, samples: _decode(speaker, rows, samples, pad, stops, decoding)
    finally:
        speaker.train(was_training)


@torch.inference_mode()
def _decode(
    model: Any,
    rows: Sequence[Sequence[int]],
    samples: Sequence[int],
    pad: int,
    stops: Sequence[int],
    decoding: Decoding,
) -> list[list[int]]:
    """The tokens of each row's answer, its stop token included. rows: the prompts' tokens. samples: which of its
    prompt's answers each is."""
    device = model.device
    ids, mask, position = left_padded(rows, pad, device).values()
    longest = ids.shape[1]
    ends = torch.tensor(list(stops), device=device)
    count = decoding.max_new_tokens
    uniform = None
    if decoding.temperature > 0:
        draws = [_draws(decoding.seed, sample, row, count) for row, sample in zip(rows, samples, strict=True)]
        uniform = torch.as_tensor(np.stack(draws), dtype=torch.float32, device=device)  # (rows, count) in [0, 1)
    cache = _cache(model.config, longest + count, static=device.type == "cuda")
    # An index, not the number 1: a slice of the hidden states is not contiguous, and torch would then multiply each row
    # with a copy of the head of its own.
    last = torch.tensor([-1], device=device)
    alive = torch.arange(len(rows), device=device)  # which row of the input each row of the batch is
    ended = torch.zeros(len(rows), dtype=torch.bool, device=device)
    spoken = torch.full((len(rows), count), -1, device=device)
    for step in range(count):
        logits = model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=position,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=last,
        ).logits[:, -1]
        if uniform is None:
            token = logits.argmax(-1)
        else:
            token = pick(logits, decoding.temperature, decoding.top_p, uniform[alive, step])
        spoken[alive[~ended], step] = token[~ended]
        ended |= torch.isin(token, ends)
        left = int((~ended).sum())
        if left == 0:
            break
        # Shrinking copies the cache, so it waits until an eighth of the rows has ended.
        if left <= len(ended) * 7 // 8:
            keep = (~ended).nonzero().squeeze(-1)
            _keep(cache, keep)
            alive, mask, position, token, ended = alive[keep], mask[keep], position[keep], token[keep], ended[keep]
        ids = token[:, None]
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=-1)
        position = position[:, -1:] + 1
    return [[t for t in row if t >= 0] for row in spoken.tolist()]


def _cache(config: Any, tokens: int, static: bool) -> Any:
    """Of keys and values. static: with room for all tokens from the start, where a growing one is copied at every step;
    only for layers that keep keys and values and nothing else."""
    from transformers import DynamicCache, StaticCache
    from transformers.cache_utils import StaticLayer, StaticSlidingWindowLayer

    cache = StaticCache(config=config, max_cache_len=tokens) if static else None
    if cache is not None and all(type(layer) in (StaticLayer, StaticSlidingWindowLayer) for layer in cache.layers):
        return cache
    return DynamicCache(config=config)


def _keep(cache: Any, rows: Tensor) -> None:
    from transformers import StaticCache

    if not isinstance(cache, StaticCache):
        cache.batch_select_indices(rows)
        return
    layers: Any = cache.layers
    for layer in layers:
        layer.keys, layer.values = layer.keys[rows], layer.values[rows]


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
    return np.random.default_rng(list(key_of(seed, sample, prompt))).random(count, dtype=np.float32)


def key_of(seed: int, sample: int, prompt: Sequence[int]) -> bytes:
    """32 bytes that belong to this prompt (its tokens) and sample: the source of all that is random about the answer."""
    return hashlib.sha256(f"{seed} {sample} {list(prompt)}".encode()).digest()


def _answer(tokenizer: Any, prompt: int, sample: int, ids: list[int], stops: Sequence[int]) -> Answer:
    finished = bool(ids) and ids[-1] in stops
    text = tokenizer.decode(ids[:-1] if finished else ids, skip_special_tokens=True)
    return Answer(prompt, sample, text, len(ids), finished)


def _in_precision(model: Any, dtype: torch.dtype) -> Any:
    """The model itself where its weights have this type, else a copy that has."""
    if next(model.parameters()).dtype == dtype:
        return model
    return copy.deepcopy(model).to(dtype).requires_grad_(False)
