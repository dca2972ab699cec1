"""THE loop. It knows no loss by name, nor whether it trains on pairs or on demonstrations: see `objectives.py`.

Per optimiser step: a batch, split into micro-batches by tokens. The objective is a sum over its items divided by the
size of the whole batch (a number known before the first micro-batch), so neither the split nor the number of processes
changes it. It is a function of one sum of log-probabilities per response; its gradient with respect to those is taken
first and then sent through the model.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from pobench.errors import PobenchError
from pobench.model.layouts import Batch
from pobench.model.logps import ResponseLogps
from pobench.model.policy_sums import Scorer, arithmetic, scorer_for
from pobench.registry import Loss
from pobench.settings.schema import LoopConfig, TrainConfig
from pobench.training import checkpoint
from pobench.training.memory import (
    Choice,
    choose,
    give_back_freed_memory,
    keep_few_kernels,
    keep_large_tensors_apart,
    peak_memory,
)
from pobench.training.objectives import Compute, Objective, PreferenceObjective, Start
from pobench.training.reference import ReferenceCache
from pobench.types import Group, TokenPair

STEPS_BETWEEN_TRIMS = 4  # every step would cost a third of its time in touching the pages again


class NonFiniteError(PobenchError):
    """A loss or gradient that is no number: training stops at that step, before the weights change."""


def learning_rate(config: LoopConfig, step: int, total: int) -> float:
    """Of optimiser step `step` (0-based) out of `total`: linear warm-up, then the schedule, as in transformers."""
    warmup = math.ceil(config.warmup_ratio * total)
    if step < warmup:
        return config.lr * step / max(1, warmup)
    if config.schedule == "constant":
        return config.lr
    done = (step - warmup) / max(1, total - warmup)
    return config.lr * (1 - done if config.schedule == "linear" else 0.5 * (1 + math.cos(math.pi * done)))


def make_optimizer(policy: torch.nn.Module, config: LoopConfig) -> torch.optim.AdamW:
    """AdamW over fp32 weights; matrices decay, vectors (norms, biases) do not. Raises PobenchError for other weights."""
    trained = [p for p in policy.parameters() if p.requires_grad]
    odd = {str(p.dtype) for p in trained if p.dtype != torch.float32}
    if odd:
        raise PobenchError(
            f"trained weights are {', '.join(sorted(odd))}; they must be float32: "
            "an Adam-sized step is lost in rounding otherwise"
        )
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [g for g in groups if g["params"]],
        lr=config.lr,
        betas=(config.adam_beta1, config.adam_beta2),
        eps=config.adam_epsilon,
        fused=True,
    )


@dataclass
class Trained:
    """What training took. seconds: wall time of the steps, resumed parts included. peak_memory: bytes, of this process."""

    steps: int
    seconds: float
    peak_memory: int
    tokens: int
    layout: str
    layout_reason: str
    step0_gap: float  # mean |policy - reference| a token on the first pairs, nats; nan for a reference-free loss
    micro_tokens: int
    gradient_checkpointing: bool
    memory_reason: str  # why so many tokens, and why checkpointing or not


def train(
    accelerator: Accelerator,
    model: Any,
    pairs: Sequence[TokenPair],
    epochs: Sequence[Sequence[int]],
    loss: Loss,
    settings: Mapping[str, Any],
    config: TrainConfig,
    *,
    folder: Path,
    references: Callable[[str], ReferenceCache] | None = None,
    mismatched: Sequence[int] | None = None,
    log: Callable[[dict[str, Any]], None] = lambda row: None,
    say: Callable[[str], None] = lambda text: None,
    rewind: Callable[[int], None] = lambda step: None,
    watch: Callable[[Compute], dict[str, float]] | None = None,
) -> Trained:
    """Train `model` in place on `pairs`, in the order of `epochs` (indices into pairs, one sequence an epoch).

    settings, references, mismatched: as `PreferenceObjective` takes them. The rest, and what is raised: as `minimise`.
    """
    objective = PreferenceObjective(pairs, loss, settings, references, mismatched)
    batches = [
        (epoch + min(at + config.batch_size, len(order)) / len(order), list(order[at : at + config.batch_size]))
        for epoch, order in enumerate(epochs)
        for at in range(0, len(order), config.batch_size)
    ]
    return minimise(
        accelerator, model, objective, batches, config, folder=folder, log=log, say=say, rewind=rewind, watch=watch,
        watch_every=config.evaluate_every,
    )  # fmt: skip


def minimise(
    accelerator: Accelerator,
    model: Any,
    objective: Objective,
    batches: Sequence[tuple[float, list[int]]],
    config: LoopConfig,
    *,
    folder: Path,
    log: Callable[[dict[str, Any]], None] = lambda row: None,
    say: Callable[[str], None] = lambda text: None,
    rewind: Callable[[int], None] = lambda step: None,
    watch: Callable[[Compute], dict[str, float]] | None = None,
    watch_every: int = 0,
) -> Trained:
    """Train `model` in place, a step a batch.

    batches: (epochs done after it, indices of its items). folder: where checkpoints live. log: takes one row of metrics a
    step (main process only). say: takes a sentence on a choice that was measured. rewind: called with the step a resume
    starts from. watch: called every `watch_every` steps and after the last (0: never), in every process, with the policy's
    `Scorer.compute`; what it returns is logged with the step, and its time is no training time.
    Raises NonFiniteError (weights unchanged by that step), PobenchError.
    """
    device, world, rank = accelerator.device, accelerator.num_processes, accelerator.process_index
    if device.type == "cpu" and accelerator.mixed_precision == "no":
        # Narrow products and casts come and go all the time: to touch fresh pages for each costs more than holes do.
        keep_large_tensors_apart()
    elif device.type == "cpu":
        keep_few_kernels()
    for module in model.modules():  # dropout off: the reference has none either
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    model.train()
    policy = ResponseLogps(model.to(device), config.head_tile, compiled=config.compile)
    optimizer = make_optimizer(policy, config)
    groups = objective.groups
    scorer, reason = scorer_for(policy, policy, groups, config, device, say)
    saved = checkpoint.latest(folder)
    choice = _micro_batch(accelerator, policy, config, groups, scorer, checkpoint.about(saved) if saved else {})
    scorer.budget = choice.micro_tokens
    if "auto" in (config.micro_tokens, config.gradient_checkpointing):
        on = "with" if choice.gradient_checkpointing else "without"
        say(f"micro-batches of {choice.micro_tokens} tokens, {on} activation checkpointing: {choice.reason}")
    prepared, optimizer = accelerator.prepare(policy, optimizer)
    scorer.policy = prepared

    exact = accelerator.mixed_precision == "no" and model.dtype == torch.float32
    how = arithmetic(accelerator, scorer, model)
    gap = objective.start(Start(accelerator, scorer.compute, how, exact, batches[0][1]))

    done, seconds = 0, 0.0
    if saved is not None:
        about = checkpoint.load(saved, accelerator.unwrap_model(prepared), _plain(optimizer))
        done, seconds = about["step"], about["seconds"]
    rewind(done)

    # On a CPU the gradients keep their place between steps. Freed and taken anew among activations of ever other shapes,
    # they would tear glibc's heap into holes.
    keep_gradients = device.type == "cpu"
    if keep_gradients:
        for parameter in policy.parameters():
            parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
        policy.arithmetic.in_place = world == 1

    last_save = time.monotonic()
    for step in range(done, len(batches)):
        started = time.monotonic()
        epoch, batch = batches[step]
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(config, step, len(batches))
        mine, size = batch[rank::world], objective.size(batch)
        beside = objective.begin_step(accelerator, scorer.compute, mine, len(batch))
        sums = torch.zeros(len(objective.names), dtype=torch.float64, device=device)
        micro = list(scorer.micro_batches([groups[i] for i in mine or batch[:1]]))
        with policy.arithmetic.unchanged_weights():
            for m, (indices, forward) in enumerate(micro):
                last = m == len(micro) - 1
                accelerator.gradient_state._set_sync_gradients(last)
                with contextlib.nullcontext() if last else accelerator.no_sync(prepared):
                    totals = forward()
                    if not mine:  # a short last batch leaves this process idle; it still takes part in the reduction
                        accelerator.backward((totals * 0).sum())
                        continue
                    slope, logged = objective.measure([mine[i] for i in indices], totals)
                    sums += logged.to(device)
                    # A data-parallel wrapper averages over processes; we want the sum over them, divided by the whole
                    # batch.
                    accelerator.backward((totals * slope).sum() * (world / size))
        values = dict(zip(objective.names, (accelerator.reduce(sums, "sum") / size).tolist(), strict=True))
        norm = accelerator.clip_grad_norm_(prepared.parameters(), config.max_grad_norm)
        grad_norm = float(norm) if norm is not None else math.nan
        if not (math.isfinite(values["loss"]) and math.isfinite(grad_norm)):
            raise NonFiniteError(
                f"step {step + 1}: loss {values['loss']:g}, gradient norm {grad_norm:g}; {objective.named(batch)}. "
                "The last checkpoint is kept; try a smaller learning rate"
            )
        optimizer.step()
        optimizer.zero_grad(set_to_none=not keep_gradients)
        if device.type == "cpu" and step % STEPS_BETWEEN_TRIMS == 0:
            give_back_freed_memory()
        took = time.monotonic() - started
        seconds += took
        if watch is not None and watch_every and ((step + 1) % watch_every == 0 or step + 1 == len(batches)):
            beside = {**beside, **watch(scorer.compute)}
        if accelerator.is_main_process:
            log(
                {
                    "step": step + 1,
                    "epoch": epoch,
                    **values,
                    **beside,
                    "lr": learning_rate(config, step, len(batches)),
                    "grad_norm": grad_norm,
                    "seconds": took,
                    objective.unit: size,
                    "steps": len(batches),
                }
            )
        if time.monotonic() - last_save >= config.checkpoint_seconds and step + 1 < len(batches):
            if device.type == "cpu":
                give_back_freed_memory()  # saving needs some of its own
            if accelerator.is_main_process:
                facts = {"seconds": seconds, "memory": choice._asdict()}
                checkpoint.save(folder, step + 1, accelerator.unwrap_model(prepared), _plain(optimizer), facts)
            accelerator.wait_for_everyone()
            last_save = time.monotonic()
    tokens = sum(groups[i].tokens for _, batch in batches for i in batch)
    return Trained(len(batches), seconds, peak_memory(device), tokens, scorer.layout.name, reason, gap, *choice)


def _plain(optimizer: Any) -> torch.optim.Optimizer:
    return getattr(optimizer, "optimizer", optimizer)


def _micro_batch(
    accelerator: Accelerator,
    policy: ResponseLogps,
    config: LoopConfig,
    groups: Sequence[Group],
    scorer: Scorer,
    resumed: Mapping[str, Any],
) -> Choice:
    """Tokens of a micro-batch and checkpointing: as the setting says, as the run began, or by a probe; switched on here.

    The smallest choice of all processes is everyone's.
    """
    model, switched_on = policy.model, False

    def checkpointing(on: bool) -> None:
        nonlocal switched_on
        if on and not switched_on:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        elif switched_on and not on:
            model.gradient_checkpointing_disable()
        switched_on = on

    def step(batch: Batch) -> None:
        with accelerator.autocast():
            totals = policy(batch)
        totals.sum().backward()

    if config.micro_tokens != "auto" and config.gradient_checkpointing != "auto":
        choice = Choice(config.micro_tokens, config.gradient_checkpointing, "as the setting says")
    elif "memory" in resumed:
        choice = Choice(**resumed["memory"])
    else:
        trained = [p for p in policy.parameters() if p.requires_grad]
        for parameter in trained:
            parameter.grad = torch.zeros_like(parameter)
        policy.arithmetic.in_place = (
            policy.model.device.type == "cpu" and accelerator.num_processes == 1
        )  # as in the steps
        moments = sum(2 * p.nbytes for p in trained)
        window, device = scorer.window, scorer.device
        mine = choose(config, groups, scorer.layout, window, device, step, checkpointing, later=moments)
        policy.zero_grad(set_to_none=True)
        least = torch.tensor([mine.micro_tokens, not mine.gradient_checkpointing], device=device)
        tokens, without = accelerator.gather(least).view(-1, 2).min(dim=0).values.tolist()
        choice = Choice(tokens, not without, mine.reason)
    checkpointing(choice.gradient_checkpointing)
    return choice
