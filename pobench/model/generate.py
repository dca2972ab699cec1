"""Generate answers: prompts as token ids in, sampled or greedy texts out, on the model's device.

A plain decoding loop over the model's own forward and key-value cache. Prompts of similar length are batched, left-padded.
Answers that have ended leave the batch, so one long answer does not hold up sixty short ones. What prompts begin with alike is
read once.

`pobench.data.chat.Chat` makes the prompts' ids. The model answers in the type of its weights: its owner loads it in that type
(`load_model(dtype=…)`) or casts it in place (`in_precision`), so there is no second copy of the weights.

The random numbers of an answer depend on (seed, sample, the prompt's tokens) alone. So batch size, order, other prompts and
interruptions do not change them, and two models answer a prompt with the same random numbers, which reduces the noise of their
comparison. Floating-point sums still depend on the batch's shape, and that can decide between two almost equally likely
tokens. So interrupted and shared calls keep the shapes, unless memory is so short that a batch is decoded in parts.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from pobench.errors import PobenchError
from pobench.model.attention import base_of
from pobench.model.device import free_memory
from pobench.model.layouts import LEAST_SHARED, PAD, common_beginning
from pobench.model.packed import packed_layers
from pobench.settings.schema import ANSWERED_TOGETHER

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}
# The most prompt tokens of a batch, pads included: a few prompts of thousands of tokens take as much memory as a batch of short
# ones. 256 prompts of 128 tokens are still one batch. The limit does not depend on the machine's memory, so batches are
# the same everywhere.
MOST_TOKENS = 32_768
SHARE = 0.8  # of the free memory, for a batch's cache and arithmetic
READ_TOGETHER = 64  # rows, of similar length
# Rows that have ended leave a batch once they are this share of it: less where only rows that move are copied than where the
# whole cache is. Still less would compile kernels for more numbers of rows.
ENDED, ENDED_OF_COPIED = 1 / 64, 1 / 8
_NUCLEUS = 1024  # most likely tokens; the whole vocabulary is sorted only if these do not reach top_p


class Answer(NamedTuple):
    """One answer. prompt: its index among the prompts. tokens: generated, the end-of-turn token included."""

    prompt: int
    sample: int
    text: str
    tokens: int
    finished: bool  # the model ended it; False: cut off at max_new_tokens


@dataclass(frozen=True)
class Decoding:
    """The settings of decoding, all of which decide the answers.

    temperature: 0 is greedy. top_p: draw from the smallest set of tokens whose probability reaches it. precision: "fp32" or
    "bf16", the type of the model's weights (see `in_precision`). Raises PobenchError that lists the values out of range.
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


class ChatTokens(Protocol):
    """The part of `pobench.data.chat.Chat` that decoding needs. end: the id of the token that ends a turn."""

    tokenizer: Any
    end: int


def generate(
    model: Any,
    chat: ChatTokens,
    prompts: Sequence[Sequence[int]],
    decoding: Decoding,
    *,
    batch_size: int = ANSWERED_TOGETHER,
    progress: Callable[[int, int], None] | None = None,
) -> list[Answer]:
    """The answers to each prompt, ordered by prompt, then sample. The model is unchanged.

    model: of transformers, or an object with a `generation_config` and its own `decode` (`pobench.model.vllm`). prompts: token
    ids, from `Chat.prompt_ids`. batch_size: the most rows; if so many do not fit into the free memory, a batch is decoded in
    parts.

    progress(done, all): called after each batch, in answers.
    Raises PobenchError if the model's weights are not of the type `decoding.precision`.
    """
    answers: list[Answer] = []
    for batch in generate_batches(model, chat, prompts, decoding, batch_size=batch_size):
        answers += batch
        if progress is not None:
            progress(len(answers), len(prompts) * decoding.samples)
    return sorted(answers)


def generate_batches(
    model: Any,
    chat: ChatTokens,
    prompts: Sequence[Sequence[int]],
    decoding: Decoding,
    *,
    batch_size: int = ANSWERED_TOGETHER,
    skip: Callable[[int, int], bool] = lambda prompt, sample: False,
    share: tuple[int, int] = (0, 1),
) -> Iterator[list[Answer]]:
    """As `generate`, but yields each batch when it is done, without answers for which skip(prompt, sample) holds.

    share: (i, n) takes every n-th batch, from the i-th on; each of n processes takes one share. Batches are made before
    skipping and sharing, so neither changes the shape of a sum, and the answers are the same to the last bit.
    """
    if batch_size < 1:
        raise PobenchError(f"answers cannot be generated:\n  batch_size: {batch_size}; at least 1")
    batches = batches_of(prompts, decoding.samples, batch_size)
    left = [batch for batch in batches[share[0] :: share[1]] if not all(skip(*a) for a in batch)]
    if not left:
        return
    stops = stop_tokens(model, chat)
    with decoder(model, stops, decoding) as decode:
        for batch in left:
            responses = decode([prompts[p] for p, _ in batch], [s for _, s in batch])
            answers = (_answer(chat.tokenizer, p, s, ids, stops) for (p, s), ids in zip(batch, responses, strict=True))
            yield [answer for answer in answers if not skip(answer.prompt, answer.sample)]


def batches_of(prompts: Sequence[Sequence[int]], samples: int, batch_size: int) -> list[list[tuple[int, int]]]:
    """The (prompt, sample) pairs of each batch of `generate_batches`."""
    requests = sorted(
        ((p, s) for p in range(len(prompts)) for s in range(samples)), key=lambda a: (len(prompts[a[0]]), a)
    )
    return _batches(requests, [len(prompts[p]) for p, _ in requests], batch_size)


def _batches(
    requests: Sequence[tuple[int, int]], lengths: Sequence[int], batch_size: int
) -> list[list[tuple[int, int]]]:
    """Cut the (prompt, sample) pairs, shortest prompt first, into batches of at most `batch_size` rows and `MOST_TOKENS`
    tokens, pads included. A longer prompt gets its own batch."""
    batches: list[list[tuple[int, int]]] = []
    for request, longest in zip(requests, lengths, strict=True):
        if not batches or len(batches[-1]) == batch_size or (len(batches[-1]) + 1) * longest > MOST_TOKENS:
            batches.append([])
        batches[-1].append(request)
    return batches


def left_padded(rows: Sequence[Sequence[int]], pad: int, device: torch.device) -> dict[str, Tensor]:
    """input_ids, attention_mask and position_ids, (rows, tokens) each: the last column is every row's last token."""
    width = max(map(len, rows))
    ids = torch.tensor([[pad] * (width - len(row)) + list(row) for row in rows], device=device)
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=device)
    return {"input_ids": ids, "attention_mask": mask, "position_ids": (mask.cumsum(-1) - 1).clamp(min=0)}


def stop_tokens(model: Any, chat: ChatTokens) -> list[int]:
    """Ids that end an answer: the model's, the tokenizer's, and the one that closes a turn of the chat."""
    configured = getattr(model.generation_config, "eos_token_id", None)
    ids = [*configured] if isinstance(configured, (list, tuple)) else [configured]
    return sorted({i for i in (*ids, chat.tokenizer.eos_token_id, chat.end) if i is not None})


# ---------------------------------------------------------------- precision and memory
def in_precision(model: Any, precision: str) -> Any:
    """Cast the model's weights to "fp32" or "bf16", in place, one after the other, so there is no second copy; returns it.

    Weights of that type stay as they are, and so do values that are computed, not stored (the frequencies of rotary
    positions). The result equals what `load_model` reads in that type. A cast to bf16 cannot be undone; load the model again
    for fp32 weights.
    """
    dtype = PRECISIONS[precision]
    if _dtype_of(model) == dtype:
        return model
    model.requires_grad_(False)
    with torch.no_grad():
        for weight in model.parameters():
            weight.data, weight.grad = weight.data.to(dtype), None
        for module in model.modules():
            for name, buffer in module._buffers.items():
                if buffer is not None and buffer.is_floating_point() and name not in module._non_persistent_buffers_set:
                    module._buffers[name] = buffer.to(dtype)
    return model


def _dtype_of(model: Any) -> torch.dtype:
    """The type of the first weight. An adapter's weights, which come later, may be wider than the base's."""
    dtype: torch.dtype = next(model.parameters()).dtype
    return dtype


def cache_bytes(config: Any, dtype: torch.dtype) -> int | None:
    """Bytes of a token's keys and values in the cache: 2 x layers x key heads x their width. None if the configuration does not
    give these numbers."""
    text = config.get_text_config()
    layers, heads = getattr(text, "num_hidden_layers", None), getattr(text, "num_attention_heads", None)
    if not layers or not heads:
        return None
    width = getattr(text, "head_dim", None) or text.hidden_size // heads
    return int(2 * layers * (getattr(text, "num_key_value_heads", None) or heads) * width * dtype.itemsize)


def row_bytes(config: Any, dtype: torch.dtype, prompt: int, new: int) -> int | None:
    """An upper estimate of the bytes that an answer of `new` tokens to a prompt of `prompt` tokens takes beside the weights:
    its cache, the states and the attention of one layer while the prompt is read, and the logits of a token."""
    text = config.get_text_config()
    token = cache_bytes(config, dtype)
    if token is None:
        return None
    hidden = int(text.hidden_size)
    states = 8 * hidden + 3 * int(getattr(text, "intermediate_size", None) or 4 * hidden)
    # Eager attention holds all scores twice, in fp32; other kinds hold the mask alone.
    eager = base_of(getattr(text, "_attn_implementation", None) or "") == "eager"
    scores = 8 * int(text.num_attention_heads) if eager else dtype.itemsize
    return int(
        (prompt + new) * token
        + prompt * states * dtype.itemsize
        + prompt * (prompt + new) * scores
        + 4 * 4 * int(text.vocab_size)
    )


def _rows_at_once(model: Any, prompt: int, new: int, free: int | None) -> int | None:
    """How many rows fit into `free` bytes: a power of two, so that a little more or less memory gives the same shapes. None if
    unknown."""
    needed = row_bytes(model.config, _dtype_of(model), prompt, new)
    if needed is None or free is None:
        return None
    fitting = int(SHARE * free) // needed
    return 1 << (fitting.bit_length() - 1) if fitting > 1 else 1


# ---------------------------------------------------------------- the loop
Decode = Callable[[Sequence[Sequence[int]], Sequence[int]], list[list[int]]]


@contextlib.contextmanager
def decoder(model: Any, stops: Sequence[int], decoding: Decoding) -> Iterator[Decode]:
    """A function (prompts' tokens, sample numbers) → the tokens of each answer, stop token included. Raises PobenchError as
    `generate`."""
    if hasattr(model, "decode"):
        yield lambda rows, samples: model.decode(rows, samples, stops, decoding)
        return
    dtype = _dtype_of(model)
    if dtype != PRECISIONS[decoding.precision]:
        raise PobenchError(
            f"answers cannot be generated:\n  precision: the model's weights are {dtype}, not {decoding.precision}; "
            "load them in that type, or cast them in place (pobench.model.generate.in_precision)"
        )
    was_training = model.training
    model.eval()

    def decode(rows: Sequence[Sequence[int]], samples: Sequence[int]) -> list[list[int]]:
        room = _rows_at_once(model, max(map(len, rows)), decoding.max_new_tokens, free) or len(rows)
        responses: list[list[int]] = []
        for start in range(0, len(rows), room):
            part = slice(start, start + room)
            responses += _decode(model, rows[part], samples[part], stops, decoding)
        return responses

    try:
        with packed_layers(model):
            free = free_memory(model.device)
            yield decode
    finally:
        model.train(was_training)


@torch.inference_mode()
def _decode(
    model: Any,
    rows: Sequence[Sequence[int]],
    samples: Sequence[int],
    stops: Sequence[int],
    decoding: Decoding,
) -> list[list[int]]:
    """The tokens of each row's answer, stop token included. rows: the prompts' tokens. samples: the sample's number for each
    row."""
    device = model.device
    ends = torch.tensor(list(stops), device=device)
    count = decoding.max_new_tokens
    uniform = None
    if decoding.temperature > 0:
        draws = [_draws(decoding.seed, sample, row, count) for row, sample in zip(rows, samples, strict=True)]
        uniform = torch.as_tensor(np.stack(draws), dtype=torch.float32, device=device)  # (rows, count) in [0, 1)
    cache, logits, mask, position = _read(model, rows, count)
    share = ENDED if _moves_few(cache) else ENDED_OF_COPIED
    alive = torch.arange(len(rows), device=device)  # which row of the input each row of the batch is
    ended = torch.zeros(len(rows), dtype=torch.bool, device=device)
    responses = torch.full((len(rows), count), -1, device=device)
    for step in range(count):
        if not bool(logits.amax(-1).isfinite().all()):
            raise PobenchError(
                f"answers cannot be generated:\n  token {step + 1} of an answer has no finite logits in "
                f"{decoding.precision}; a model that overflows there may do in fp32 (--set answers.precision=fp32)"
            )
        if uniform is None:
            token = logits.float().argmax(-1)  # a processor finds the largest of narrower numbers five times as slowly
        else:
            token = pick(logits, decoding.temperature, decoding.top_p, uniform[alive, step])
        responses[alive[~ended], step] = token[~ended]
        ended |= torch.isin(token, ends)
        left = int((~ended).sum())
        if left == 0 or step == count - 1:
            break
        if len(ended) - left >= share * len(ended):
            keep = _closed_up(ended)
            _keep(cache, keep)
            alive, mask, position, token, ended = alive[keep], mask[keep], position[keep], token[keep], ended[keep]
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=-1)
        position = position + 1
        logits = _forward(model, cache, token[:, None], mask, position)
    return [[t for t in row if t >= 0] for row in responses.tolist()]


def _closed_up(ended: Tensor) -> Tensor:
    """(rows left,) the row that each of them is now. It keeps its place, or takes that of one that has ended, so few move."""
    left = int((~ended).sum())
    source = torch.arange(left, device=ended.device)
    source[ended[:left]] = (~ended[left:]).nonzero().squeeze(-1) + left
    return source


class _Read(NamedTuple):
    """Prompts that have been read. cache: of their keys and values. logits: (rows, vocabulary) of each row's next token. mask:
    (rows, tokens). position: (rows, 1) of the last token."""

    cache: Any
    logits: Tensor
    mask: Tensor
    position: Tensor


def _read(model: Any, rows: Sequence[Sequence[int]], count: int) -> _Read:
    """Read the prompts of all rows, with room for `count` more tokens of each. Where their caches can be put side by side,
    `READ_TOGETHER` rows at a time: they come by length, so few pads are read."""
    if len(rows) <= READ_TOGETHER or not _moves_few(_cache(model.config, 0, static=_takes_static(model))):
        return _read_together(model, rows, count)
    parts = [_read_together(model, rows[at : at + READ_TOGETHER], 0) for at in range(0, len(rows), READ_TOGETHER)]
    width = max(part.mask.shape[1] for part in parts)
    masks = [torch.nn.functional.pad(part.mask, (width - part.mask.shape[1], 0)) for part in parts]
    logits, positions = ([getattr(part, name) for part in parts] for name in ("logits", "position"))
    cache = _joined([part.cache for part in parts], width + count)
    return _Read(cache, torch.cat(logits), torch.cat(masks), torch.cat(positions))


def _read_together(model: Any, rows: Sequence[Sequence[int]], count: int) -> _Read:
    """Read the prompts of these rows in one pass. A prompt that several of them ask is read once, and what all of them begin
    with (a chat's system text) once for all."""
    place = {prompt: i for i, prompt in enumerate(dict.fromkeys(map(tuple, rows)))}
    prompts = list(place)
    begins = _common_beginning(prompts)
    device, width = model.device, max(map(len, prompts))
    cache = _cache(model.config, width + count, static=_takes_static(model))
    if begins < LEAST_SHARED or not _holds_keys_alone(cache):
        begins = 0
    own, mask, position = left_padded([prompt[begins:] for prompt in prompts], PAD, device).values()
    if begins:
        first, of_first, at = left_padded([prompts[0][:begins]], PAD, device).values()
        _forward(model, cache, first, of_first, at)
        _keep(cache, torch.zeros(len(prompts), dtype=torch.long, device=device))
        mask, position = torch.cat([of_first.expand(len(prompts), -1), mask], dim=-1), position + begins
    logits = _forward(model, cache, own, mask, position)
    position = position[:, -1:]
    if len(prompts) < len(rows):
        asks = torch.tensor([place[tuple(row)] for row in rows], device=device)
        _keep(cache, asks)
        logits, mask, position = logits[asks], mask[asks], position[asks]
    return _Read(cache, logits, mask, position)


def _common_beginning(prompts: Sequence[tuple[int, ...]]) -> int:
    """As `common_beginning`, but each prompt keeps a token of its own, from which its answer's first token is predicted."""
    return min(common_beginning(prompts), min(map(len, prompts)) - 1)


def _forward(model: Any, cache: Any, ids: Tensor, mask: Tensor, position: Tensor) -> Tensor:
    """(rows, vocabulary) logits behind the last of `ids`, (rows, tokens), whose keys and values join the cache."""
    # An index, not the number 1: that would slice the hidden states, which makes them non-contiguous, and torch would copy the
    # head for each row.
    last = torch.tensor([-1], device=ids.device)
    logits: Tensor = model(
        input_ids=ids,
        attention_mask=mask,
        position_ids=position,
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=last,
    ).logits[:, -1]
    return logits


def _takes_static(model: Any) -> bool:
    """Whether answers are made with a static cache: on a GPU, by models whose code reads one of them as it is meant. Where a
    model cuts its own window or its own bias of positions (ALiBi) to the keys that it is given, it would count those that are
    not filled yet."""
    own_bias = getattr(model.config, "alibi", False) or model.config.model_type == "bloom"
    return model.device.type == "cuda" and getattr(model, "_can_compile_fullgraph", False) and not own_bias


def _cache(config: Any, tokens: int, static: bool) -> Any:
    """The cache of keys and values, with room for all tokens from the start: a growing cache is copied at every step. static: a
    layer gives out all its room, the part that is not filled yet too, so that shapes recur. Only for layers whose cache holds
    keys and values alone."""
    from transformers import DynamicCache, StaticCache
    from transformers.cache_utils import DynamicLayer, StaticLayer, StaticSlidingWindowLayer

    from pobench.model.roomy_cache import RoomyLayer

    cache: Any = StaticCache(config=config, max_cache_len=tokens) if static else None
    if cache is not None and all(type(layer) in (StaticLayer, StaticSlidingWindowLayer) for layer in cache.layers):
        return cache
    cache = DynamicCache(config=config)
    cache.layers = [RoomyLayer(tokens) if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


def _holds_keys_alone(cache: Any) -> bool:
    """Whether all layers keep every token's keys and values, so that pads may stand between a beginning and what follows: a
    window would count them, and a recurrent state would take them in."""
    from transformers.cache_utils import StaticLayer

    from pobench.model.roomy_cache import RoomyLayer

    return bool(cache.layers) and all(type(layer) in (RoomyLayer, StaticLayer) for layer in cache.layers)


def _moves_few(cache: Any) -> bool:
    """Whether all layers copy only the rows that change their places."""
    from pobench.model.roomy_cache import RoomyLayer

    return bool(cache.layers) and all(type(layer) is RoomyLayer for layer in cache.layers)


def _joined(caches: Sequence[Any], tokens: int) -> Any:
    """The rows of all caches in one, with room for so many tokens; only for layers that `_moves_few` tells of."""
    from pobench.model.roomy_cache import RoomyLayer

    one, layers = caches[0], []
    while one.layers:  # each part of a layer is freed once it is copied
        layers.append(RoomyLayer.joined([cache.layers.pop(0) for cache in caches], tokens))
    one.layers = layers
    return one


def _keep(cache: Any, rows: Tensor) -> None:
    """Let the rows of the cache be these of its rows, which may repeat."""
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
    """(count,) uniform numbers that depend on seed, prompt and sample alone."""
    return np.random.default_rng(list(key_of(seed, sample, prompt))).random(count, dtype=np.float32)


def key_of(seed: int, sample: int, prompt: Sequence[int]) -> bytes:
    """32 bytes from seed, prompt (its tokens) and sample: the seed of the answer's random numbers."""
    return hashlib.sha256(f"{seed} {sample} {list(prompt)}".encode()).digest()


def _answer(tokenizer: Any, prompt: int, sample: int, ids: list[int], stops: Sequence[int]) -> Answer:
    finished = bool(ids) and ids[-1] in stops
    text = tokenizer.decode(ids[:-1] if finished else ids, skip_special_tokens=True)
    return Answer(prompt, sample, text, len(ids), finished)
