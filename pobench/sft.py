"""The SFT stage: a start model learns to answer, from demonstrations.

    loss = - Σ log π(response token) / response tokens,   both sums over the whole optimiser batch

Every assistant turn is one prompt (all that stands before it) with one response, so only assistant tokens are learnt,
and each counts the same however the batch is split. Turns share rows without seeing each other: `layouts.py`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from pobench.layouts import Group, get_layout
from pobench.logps import ResponseLogps, choose_layout
from pobench.registry import PobenchError


@dataclass(frozen=True)
class SftResult:
    """What a stage did. losses: one per step, nats per response token. turns: learnt from in each epoch.
    over_long: turns left out because they exceed `max_length`. tokens: useful tokens computed, prompts included."""

    losses: list[float]
    turns: int
    over_long: int
    tokens: int
    seconds: float


def sft(
    model: Any,
    tokenizer: Any,
    rows: Sequence[Mapping[str, Any]],
    *,
    lr: float,
    epochs: int = 1,
    batch_size: int = 128,
    warmup_ratio: float = 0.1,
    weight_decay: float = 0.0,
    max_grad_norm: float = 1.0,
    adam_beta2: float = 0.999,
    max_length: int = 2048,
    micro_tokens: int = 4096,
    layout: str = "auto",
    shuffle: bool = True,
    seed: int = 42,
    progress: Callable[[int, int], None] | None = None,
) -> SftResult:
    """Train `model` in place: AdamW on fp32 weights, cosine schedule with warm-up, no dropout.

    rows: `{"messages": […]}`, or `{"prompt": text or messages, "response": text}`. batch_size: assistant turns per
    optimiser step; a short last batch is weighted right. max_length: tokens of prompt + response. micro_tokens: tokens
    of a micro-batch, pads included. shuffle: False keeps the rows' order (a curriculum). progress: called with (steps done, steps in all). The same seed on the same machine
    gives the same weights.
    Raises PobenchError for weights that are not fp32, for rows that cannot be learnt from, and for a loss or gradient
    that is not finite.
    """
    low = sorted({str(p.dtype) for p in model.parameters() if p.dtype != torch.float32})
    if low:
        raise PobenchError(f"sft: weights must be fp32, got {', '.join(low)}; small steps are lost in shorter formats")
    everything = tokenise(tokenizer, rows)
    groups = [g for g in everything if g.tokens <= max_length]
    if not groups:
        raise PobenchError(f"sft: nothing to learn from; {len(everything)} turns, all over {max_length} tokens")

    model.eval()  # dropout off, as in every other stage
    policy = ResponseLogps(model)
    device = next(model.parameters()).device
    rule = get_layout(choose_layout(policy, groups, layout)[0])
    optimiser = torch.optim.AdamW(
        model.parameters(), lr=lr, betas=(0.9, adam_beta2), weight_decay=weight_decay, fused=device.type == "cuda"
    )
    steps = epochs * math.ceil(len(groups) / batch_size)
    warmup = math.ceil(warmup_ratio * steps)

    def scale(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))

    started, losses, tokens = time.perf_counter(), [], 0
    for epoch in range(epochs):
        order = list(range(len(groups)))
        if shuffle:
            order = torch.randperm(len(groups), generator=torch.Generator().manual_seed(seed + epoch)).tolist()
        for at in range(0, len(order), batch_size):
            batch = [groups[i] for i in order[at : at + batch_size]]
            learnt = sum(len(g.responses[0]) for g in batch)
            total = 0.0
            for part in rule.plan(batch, micro_tokens):
                micro = rule.collate([batch[i] for i in part], policy.window).to(device)
                loss = -policy(micro).sum() / learnt
                loss.backward()
                total += loss.item()
            norm = torch.nn.utils.clip_grad_norm_(model.parameters(), max_grad_norm)
            if not (math.isfinite(total) and math.isfinite(norm)):
                raise PobenchError(
                    f"sft: step {len(losses) + 1} of {steps}: loss {total}, gradient norm {norm}; stopped"
                )
            for group in optimiser.param_groups:
                group["lr"] = lr * scale(len(losses))
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
            losses.append(total)
            tokens += sum(g.tokens for g in batch)
            if progress is not None:
                progress(len(losses), steps)
    return SftResult(losses, len(groups), len(everything) - len(groups), tokens, time.perf_counter() - started)


def tokenise(tokenizer: Any, rows: Sequence[Mapping[str, Any]]) -> list[Group]:
    """One Group per assistant turn. Raises PobenchError listing every row without a turn to learn from."""
    groups, faults = [], []
    for number, row in enumerate(rows):
        try:
            groups += _turns(tokenizer, _messages(row))
        except ValueError as error:
            faults.append(f"  row {number}: {error}")
    if faults:
        raise PobenchError("sft: rows that cannot be learnt from:\n" + "\n".join(faults))
    return groups


def _messages(row: Mapping[str, Any]) -> list[dict[str, str]]:
    if "messages" in row:
        return list(row["messages"])
    if "prompt" not in row or "response" not in row:
        raise ValueError(
            f"expected `messages`, or `prompt` and `response`; got {', '.join(map(str, row)) or 'nothing'}"
        )
    prompt = row["prompt"]
    before = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
    return [*before, {"role": "assistant", "content": row["response"]}]


def _turns(tokenizer: Any, messages: Sequence[Mapping[str, str]]) -> list[Group]:
    turns = []
    for i, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        if i == 0 or not message["content"].strip():
            raise ValueError("an assistant turn without a prompt" if i == 0 else "an empty assistant turn")
        prompt = _ids(tokenizer, messages[:i], add_generation_prompt=True)
        whole = _ids(tokenizer, messages[: i + 1], add_generation_prompt=False)
        shared = next(
            (k for k, (a, b) in enumerate(zip(prompt, whole, strict=False)) if a != b), min(len(prompt), len(whole))
        )
        response = whole[shared:]
        if tokenizer.eos_token_id in response:  # what a template writes behind the end of turn is not the assistant's
            response = response[: response.index(tokenizer.eos_token_id) + 1]
        turns.append(Group(tuple(whole[:shared]), (tuple(response),)))
    if not turns:
        raise ValueError("no assistant turn")
    return turns


def _ids(tokenizer: Any, messages: Sequence[Mapping[str, str]], add_generation_prompt: bool) -> list[int]:
    text = tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=add_generation_prompt)
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])
