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
from jinja2 import TemplateError

from pobench.config import TrainConfig
from pobench.data import Renderer
from pobench.layouts import Group, get_layout
from pobench.logps import ResponseLogps, choose_layout
from pobench.registry import PobenchError
from pobench.rows import Message, shared_start
from pobench.train import NonFiniteError, learning_rate, make_optimizer


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
    of a micro-batch, pads included. shuffle: False keeps the order of the rows, for a curriculum. progress: called with
    (steps done, steps in all). The same seed on the same machine gives the same weights.
    Raises PobenchError for weights that are not fp32, for rows that cannot be learnt from, and for a loss or gradient
    that is not finite.
    """
    config = TrainConfig(
        lr=lr,
        epochs=epochs,
        batch_size=batch_size,
        warmup_ratio=warmup_ratio,
        weight_decay=weight_decay,
        max_grad_norm=max_grad_norm,
        adam_beta2=adam_beta2,
    )
    everything = tokenise(tokenizer, rows)
    groups = [g for g in everything if g.tokens <= max_length]
    if not groups:
        raise PobenchError(f"sft: nothing to learn from; {len(everything)} turns, all over {max_length} tokens")

    model.eval()  # dropout off, as in every other stage
    policy = ResponseLogps(model)
    device = next(model.parameters()).device
    rule = get_layout(choose_layout(policy, groups, layout)[0])
    optimizer = make_optimizer(policy, config)
    steps = epochs * math.ceil(len(groups) / batch_size)

    losses: list[float] = []
    started, tokens = time.perf_counter(), 0
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
            norm = float(torch.nn.utils.clip_grad_norm_(model.parameters(), max_grad_norm))
            if not (math.isfinite(total) and math.isfinite(norm)):
                raise NonFiniteError(
                    f"sft: step {len(losses) + 1} of {steps}: loss {total:g}, gradient norm {norm:g}; "
                    "try a smaller learning rate"
                )
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(config, len(losses), steps)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            losses.append(total)
            tokens += sum(g.tokens for g in batch)
            if progress is not None:
                progress(len(losses), steps)
    return SftResult(losses, len(groups), len(everything) - len(groups), tokens, time.perf_counter() - started)


def tokenise(tokenizer: Any, rows: Sequence[Mapping[str, Any]]) -> list[Group]:
    """One Group per assistant turn. Raises PobenchError listing every row without a turn to learn from."""
    renderer = tokenizer if isinstance(tokenizer, Renderer) else Renderer(tokenizer)
    texts: list[tuple[str, str, str]] = []
    faults = []
    for number, row in enumerate(rows, start=1):
        try:
            texts += _turns(renderer, _messages(row))
        except (ValueError, KeyError, TypeError, TemplateError) as error:
            faults.append(f"  row {number}: {error}")
    if faults:
        raise PobenchError("sft: rows that cannot be learnt from:\n" + "\n".join(faults))
    groups = []
    for asked, answered, _ in renderer.pair_ids(texts):
        border = shared_start(asked, answered)
        groups.append(Group(answered[:border], (answered[border:],)))
    return groups


def _messages(row: Mapping[str, Any]) -> list[Message]:
    if "messages" in row:
        return [Message(m["role"], m["content"]) for m in row["messages"]]
    if "prompt" not in row or "response" not in row:
        got = ", ".join(map(str, row)) or "nothing"
        raise ValueError(f"expected `messages`, or `prompt` and `response`; got {got}")
    prompt = row["prompt"]
    before = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    return [*(Message(m["role"], m["content"]) for m in before), Message("assistant", row["response"])]


def _turns(renderer: Renderer, messages: Sequence[Message]) -> list[tuple[str, str, str]]:
    """For each assistant turn the texts that `Renderer.pair_ids` takes; demonstrations have no second answer."""
    turns = []
    for i, message in enumerate(messages):
        if message.role != "assistant":
            continue
        if i == 0:
            raise ValueError("the assistant speaks before it is asked")
        if not message.content.strip():
            raise ValueError("an assistant turn is empty")
        answered = renderer.conversation(messages[:i], message.content)
        turns.append((renderer.prompt(messages[:i]), answered, answered))
    if not turns:
        raise ValueError("no assistant turn")
    return turns
