"""THE loop. It knows no loss by name: a loss's signature says what to hand it.

Per optimiser step: a constant number of pairs, split into micro-batches by tokens. The objective is the sum over pairs
divided by the pairs of the whole batch (a number known before the first micro-batch), so neither the split nor the
number of processes changes it. Every loss is a function of two sums per pair; its gradient with respect to those
(`∂loss/∂w`, `∂loss/∂l`) is taken first and then sent through the model.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from pobench import checkpoint, metrics
from pobench.config import MICRO_TOKENS, TrainConfig
from pobench.layouts import Batch, Group, Layout, get_layout
from pobench.logps import ResponseLogps, choose_layout
from pobench.memory import Choice, choose, give_back_freed_memory, peak_memory
from pobench.metrics import evaluate_loss, pair_of
from pobench.reference import ReferenceCache
from pobench.registry import Loss, PobenchError
from pobench.types import TokenPair

STEPS_BETWEEN_TRIMS = 4  # every step would cost a third of its time in touching the pages again


class NonFiniteError(PobenchError):
    """A loss or gradient that is no number: training stops at that step, before the weights change."""


def bf16_pays(device: torch.device) -> bool:
    """Whether the processor multiplies bf16 natively."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    return False


def make_accelerator(precision: str = "auto", **kwargs: Any) -> Accelerator:
    """An Accelerator whose arithmetic is `precision`: bf16 autocast over fp32 weights, or fp32."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if precision == "auto":
        precision = "bf16" if bf16_pays(device) else "fp32"
    return Accelerator(mixed_precision="bf16" if precision == "bf16" else "no", cpu=device.type == "cpu", **kwargs)


def learning_rate(config: TrainConfig, step: int, total: int) -> float:
    """Of optimiser step `step` (0-based) out of `total`: linear warm-up, then the schedule, as in transformers."""
    warmup = math.ceil(config.warmup_ratio * total)
    if step < warmup:
        return config.lr * step / max(1, warmup)
    if config.schedule == "constant":
        return config.lr
    done = (step - warmup) / max(1, total - warmup)
    return config.lr * (1 - done if config.schedule == "linear" else 0.5 * (1 + math.cos(math.pi * done)))


def make_optimizer(policy: torch.nn.Module, config: TrainConfig) -> torch.optim.AdamW:
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


class Scorer:
    """Policy sums by groups: layout, budget and device in one place, for training, the reference and the held-out pairs."""

    def __init__(
        self, policy: torch.nn.Module, layout: Layout, window: int | None, budget: int, device: torch.device
    ) -> None:
        self.policy, self.layout, self.window, self.budget, self.device = policy, layout, window, budget, device

    def micro_batches(self, groups: Sequence[Group]) -> Iterator[tuple[list[int], Callable[[], Tensor]]]:
        """(indices of the groups, a call that gives their (responses,) sums), in a fixed order."""
        for indices in self.layout.plan(groups, self.budget):
            part = [groups[i] for i in indices]
            yield indices, lambda part=part: self.policy(self.layout.collate(part, self.window).to(self.device))  # type: ignore[misc]

    @torch.no_grad()
    def compute(self, groups: Sequence[Group]) -> Iterator[tuple[list[int], list[float]]]:
        """Sums without gradient, micro-batch by micro-batch, as (indices, sums of their responses in order)."""
        for indices, forward in self.micro_batches(groups):
            yield indices, forward().double().tolist()


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


def scorer_for(
    policy: ResponseLogps,
    prepared: torch.nn.Module,
    pairs: Sequence[TokenPair],
    config: TrainConfig,
    device: torch.device,
) -> tuple[Scorer, str]:
    """The layout chosen for this model and data, and why."""
    groups = [Group.of(p) for p in pairs[:2]]
    name, reason = choose_layout(policy, groups, config.layout)
    window = policy.window if name == "shared_prefix" else None
    budget = MICRO_TOKENS if config.micro_tokens == "auto" else config.micro_tokens
    return Scorer(prepared, get_layout(name), window, budget, device), reason


def arithmetic(accelerator: Accelerator, scorer: Scorer, model: Any) -> str:
    """What, besides the weights and the tokens, decides the digits of a sum: a part of the reference cache's name."""
    kind = "nf4" if getattr(model, "is_loaded_in_4bit", False) else str(model.dtype).removeprefix("torch.")
    narrow = "" if kind == "float32" else f" {kind} weights"
    return f"{accelerator.mixed_precision} {scorer.layout.name}{narrow}"


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
) -> Trained:
    """Train `model` in place on `pairs`, in the order of `epochs` (indices into pairs, one sequence an epoch).

    settings: the loss's own. folder: where checkpoints live. references: arithmetic → the cache of reference sums, for a
    loss that needs them. mismatched: for a loss that needs `kl`, for each pair the index of the pair whose answer is
    borrowed. log: takes one row of metrics a step (main process only). say: takes a sentence on a choice that was
    measured. rewind: called with the step a resume starts from.
    Raises NonFiniteError (weights unchanged by that step), PobenchError.
    """
    device, world, rank = accelerator.device, accelerator.num_processes, accelerator.process_index
    for module in model.modules():  # dropout off: the reference has none either
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    model.train()
    policy = ResponseLogps(model.to(device), config.head_tile)
    optimizer = make_optimizer(policy, config)
    scorer, reason = scorer_for(policy, policy, pairs, config, device)
    groups = [Group.of(p) for p in pairs]
    saved = checkpoint.latest(folder)
    choice = _micro_batch(accelerator, policy, config, groups, scorer, checkpoint.about(saved) if saved else {})
    scorer.budget = choice.micro_tokens
    if "auto" in (config.micro_tokens, config.gradient_checkpointing):
        on = "with" if choice.gradient_checkpointing else "without"
        say(f"micro-batches of {choice.micro_tokens} tokens, {on} activation checkpointing: {choice.reason}")
    prepared, optimizer = accelerator.prepare(policy, optimizer)
    scorer.policy = prepared

    batches = [  # (epochs done after it, indices of its pairs)
        (epoch + min(at + config.batch_size, len(order)) / len(order), list(order[at : at + config.batch_size]))
        for epoch, order in enumerate(epochs)
        for at in range(0, len(order), config.batch_size)
    ]
    lengths = torch.tensor([[len(p.chosen), len(p.rejected)] for p in pairs])
    borrowed: list[Group] = []
    if "kl" in loss.needs:
        assert mismatched is not None
        # Chosen and rejected answers take turns as the borrowed one, so that the estimate covers both.
        borrowed = [
            Group(p.prompt, ((pairs[j].chosen, pairs[j].rejected)[i % 2],))
            for i, (p, j) in enumerate(zip(pairs, mismatched, strict=True))
        ]

    gap = math.nan
    known: Tensor | None = None
    known_borrowed: Tensor | None = None
    if loss.needs:
        assert references is not None
        cache = references(arithmetic(accelerator, scorer, model))
        cache.fill([*groups, *borrowed][rank::world], scorer.compute)
        accelerator.wait_for_everyone()
        known = cache.get(groups).float().view(-1, 2)
        known_borrowed = cache.get(borrowed).float() if borrowed else None
        gap = _step0_gap(scorer, groups, known, lengths, batches[0][1][:8])
        exact = accelerator.mixed_precision == "no" and model.dtype == torch.float32
        tolerance = 1e-4 if exact else 5e-2  # bf16 rounds differently in rows of other widths
        if not gap < tolerance:
            raise PobenchError(
                f"before step 1 policy and reference differ by {gap:.2g} nats a token (allowed {tolerance:g}): "
                "the cached reference does not belong to this model or arithmetic; delete the cache's `reference` folder"
            )

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
        policy.add_in_place = world == 1

    last_save = time.monotonic()
    for step in range(done, len(batches)):
        started = time.monotonic()
        epoch, batch = batches[step]
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(config, step, len(batches))
        mine = batch[rank::world]
        kl = None
        if borrowed:
            assert known_borrowed is not None
            kl = _kl(accelerator, scorer, [borrowed[i] for i in mine], known_borrowed[mine], len(batch))

        sums = torch.zeros(len(metrics.NAMES), dtype=torch.float64, device=device)
        micro = list(scorer.micro_batches([groups[i] for i in mine or batch[:1]]))
        for m, (indices, forward) in enumerate(micro):
            last = m == len(micro) - 1
            accelerator.gradient_state._set_sync_gradients(last)
            with contextlib.nullcontext() if last else accelerator.no_sync(prepared):
                totals = forward()
                if not mine:  # a short last batch leaves this process idle; it still takes part in the reduction
                    accelerator.backward((totals * 0).sum())
                    continue
                here = [mine[i] for i in indices]
                leaf = totals.detach().requires_grad_()
                length = lengths[here].flatten().to(device)
                reference = None if known is None else pair_of(known[here].flatten().to(device), length)
                view = pair_of(leaf, length)
                output = evaluate_loss(loss, settings, view, reference, kl)
                (slope,) = torch.autograd.grad(output.loss.sum(), leaf)
                sums += metrics.step_sums(view, output, slope[0::2].abs() + slope[1::2].abs()).to(device)
                # A data-parallel wrapper averages over processes; we want the sum over them, divided by all pairs.
                accelerator.backward((totals * slope).sum() * (world / len(batch)))
        values = dict(zip(metrics.NAMES, (accelerator.reduce(sums, "sum") / len(batch)).tolist(), strict=True))
        norm = accelerator.clip_grad_norm_(prepared.parameters(), config.max_grad_norm)
        grad_norm = float(norm) if norm is not None else math.nan
        if not (math.isfinite(values["loss"]) and math.isfinite(grad_norm)):
            ids = ", ".join(pairs[i].id for i in batch[:8])
            raise NonFiniteError(
                f"step {step + 1}: loss {values['loss']:g}, gradient norm {grad_norm:g}; pairs in the batch: {ids}"
                f"{' …' if len(batch) > 8 else ''}. The last checkpoint is kept; try a smaller learning rate"
            )
        optimizer.step()
        optimizer.zero_grad(set_to_none=not keep_gradients)
        if device.type == "cpu" and step % STEPS_BETWEEN_TRIMS == 0:
            give_back_freed_memory()
        took = time.monotonic() - started
        seconds += took
        if accelerator.is_main_process:
            log(
                {
                    "step": step + 1,
                    "epoch": epoch,
                    **values,
                    "kl": math.nan if kl is None else float(kl),
                    "lr": learning_rate(config, step, len(batches)),
                    "grad_norm": grad_norm,
                    "seconds": took,
                    "pairs": len(batch),
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
    config: TrainConfig,
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
        policy.add_in_place = policy.model.device.type == "cpu" and accelerator.num_processes == 1  # as in the steps
        moments = sum(2 * p.nbytes for p in trained)
        window, device = scorer.window, scorer.device
        mine = choose(config, groups, scorer.layout, window, device, step, checkpointing, later=moments)
        policy.zero_grad(set_to_none=True)
        least = torch.tensor([mine.micro_tokens, not mine.gradient_checkpointing], device=device)
        tokens, without = accelerator.gather(least).view(-1, 2).min(dim=0).values.tolist()
        choice = Choice(tokens, not without, mine.reason)
    checkpointing(choice.gradient_checkpointing)
    return choice


def _step0_gap(scorer: Scorer, groups: Sequence[Group], known: Tensor, lengths: Tensor, first: list[int]) -> float:
    gaps = []
    for indices, sums in scorer.compute([groups[i] for i in first]):
        here = [first[i] for i in indices]
        gaps.append((torch.tensor(sums) - known[here].flatten()).abs() / lengths[here].flatten())
    return float(torch.cat(gaps).mean())


def _kl(accelerator: Accelerator, scorer: Scorer, borrowed: list[Group], known: Tensor, pairs: int) -> Tensor:
    """0-d: the unclamped mean of log π - log π_ref over the whole batch's mismatched pairs, in nats, detached."""
    total = torch.zeros((), dtype=torch.float64, device=accelerator.device)
    for indices, sums in scorer.compute(borrowed):
        total += (torch.tensor(sums, dtype=torch.float64) - known[indices].double()).sum().to(total.device)
    return (accelerator.reduce(total, "sum") / pairs).float()
