"""The training loop, for every loss and for SFT. What it minimises is an `Objective` (`objectives.py`).

Each optimiser step takes one batch. `plan_step` cuts it into micro-batches by tokens, with the same number in every process.
The objective is a sum over the items, divided by the size of the whole batch. That size is known before the first
micro-batch, so neither the cut nor the number of processes changes the result. The objective depends on one sum of
log-probabilities per response, or on each token's and what else is computed there: the loop takes its gradient by these values
first, then sends that through the model.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from pobench.errors import PobenchError
from pobench.model.layouts import Batch
from pobench.model.logps import ResponseLogps
from pobench.model.policy_sums import SumScorer, sum_scorer
from pobench.model.sharding import RowFiles, give_back, is_sharded, shard
from pobench.model.value import PromptValue
from pobench.model.vocabulary import Beside
from pobench.registry import Loss
from pobench.settings.schema import LoopConfig, TrainConfig
from pobench.training import checkpoint, leaving
from pobench.training.clock import Spent
from pobench.training.density_ratio import DensityRatios
from pobench.training.memory import (
    Choice,
    checkpoint_activations,
    choose,
    give_back_freed_memory,
    keep_few_kernels,
    keep_large_tensors_apart,
    peak_memory,
)
from pobench.training.objectives import Objective, PreferenceObjective
from pobench.training.reference import EveryStep, ReferenceSums
from pobench.training.saving import Pace, Saver, saves_beside
from pobench.types import Item
from pobench.units import in_a_batch

STEPS_BETWEEN_TRIMS = 4  # trimming every step costs a third of its time, because freed pages are touched again


class NonFiniteError(PobenchError):
    """A loss or gradient is nan or infinite. Training stops at that step, before the weights change."""


def warmup_steps(config: LoopConfig, total: int) -> int:
    """Steps before the one at the full rate; at most all but one, so that every run reaches it."""
    return min(math.ceil(config.warmup_ratio * total), total - 1)


def learning_rate(config: LoopConfig, step: int, total: int) -> float:
    """The rate of optimiser step `step` (from 0) of `total`: linear warm-up, then the schedule. It is never 0.

    The warm-up rises as in Rafailov et al.'s DPO code, by (step + 1) / (warm-up + 1); that of transformers begins with a
    step at rate 0. After the warm-up both are the same.
    """
    warmup = warmup_steps(config, total)
    if step < warmup:
        return config.lr * (step + 1) / (warmup + 1)
    if config.schedule == "constant":
        return config.lr
    done = (step - warmup) / (total - warmup)
    return config.lr * (1 - done if config.schedule == "linear" else 0.5 * (1 + math.cos(math.pi * done)))


def make_optimizer(policy: torch.nn.Module, config: LoopConfig) -> torch.optim.AdamW:
    """AdamW over fp32 weights; matrices decay, vectors (norms, biases) do not. A group's `share` times the step's rate is its
    own: 1, or for a value model `value_learning_rate` / `lr`. Raises PobenchError for other types."""
    trained = [p for p in policy.parameters() if p.requires_grad]
    narrow = {str(p.dtype) for p in trained if p.dtype != torch.float32}
    if narrow:
        raise PobenchError(
            f"trained weights are {', '.join(sorted(narrow))}; they must be float32: "
            "narrower types round away steps as small as Adam's"
        )
    value = policy.value if isinstance(policy, ResponseLogps) else None
    of_value = set() if value is None else {*value.parameters()}
    share = (getattr(config, "value_learning_rate", None) or config.lr) / config.lr
    groups = [
        {"params": [p for p in part if (p.ndim >= 2) == matrices], "weight_decay": decay, "share": own}
        for part, own in (
            ([p for p in trained if p not in of_value], 1.0),
            ([p for p in trained if p in of_value], share),
        )
        for matrices, decay in ((True, config.weight_decay), (False, 0.0))
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
    """Facts about a finished training. seconds: wall time of all steps, also of those before a resume. waited: those of them in
    which other work had the processor, see `clock`. peak_memory: bytes, of this process. tokens: computed in all steps."""

    steps: int
    seconds: float
    waited: float
    peak_memory: int
    tokens: int
    layout: str
    layout_reason: str
    step0_gap: float  # mean |policy - reference| a token on the first pairs, nats; nan for a reference-free loss
    micro_tokens: int
    gradient_checkpointing: bool
    memory_reason: str  # why this number of tokens, and why activation checkpointing or not


def train(
    accelerator: Accelerator,
    model: Any,
    items: Sequence[Item],
    epochs: Sequence[Sequence[int]],
    loss: Loss,
    settings: Mapping[str, Any],
    config: TrainConfig,
    *,
    folder: Path,
    reference: ReferenceSums | EveryStep | None = None,
    mismatched: Sequence[int] | None = None,
    seed: int = 0,
    begins_elsewhere: bool = False,
    density_ratios: DensityRatios | None = None,
    log: Callable[[dict[str, Any]], None] = lambda row: None,
    say: Callable[[str], None] = lambda text: None,
    rewind: Callable[[int], None] = lambda step: None,
    watch: Callable[[SumScorer], dict[str, float]] | None = None,
    content: str = "",
    rows: RowFiles | None = None,
) -> Trained:
    """Train `model` in place on `items`, in the order of `epochs` (indices into items, one sequence an epoch), with a batch of
    `batch_size` pairs or lists, or of twice as many single answers.

    settings, reference, mismatched, seed, begins_elsewhere, density_ratios: see `PreferenceObjective`. All else: see
    `minimise`.
    """
    objective = PreferenceObjective(
        items, loss, settings, reference, mismatched, seed, begins_elsewhere, density_ratios
    )
    size = in_a_batch(items, config.batch_size)
    batches = [
        (epoch + min(at + size, len(order)) / len(order), list(order[at : at + size]))
        for epoch, order in enumerate(epochs)
        for at in range(0, len(order), size)
    ]
    return minimise(
        accelerator, model, objective, batches, config, folder=folder, log=log, say=say, rewind=rewind, watch=watch,
        watch_every=config.evaluate_every, content=content, rows=rows,
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
    watch: Callable[[SumScorer], dict[str, float]] | None = None,
    watch_every: int = 0,
    content: str = "",
    rows: RowFiles | None = None,
) -> Trained:
    """Train `model` in place, one optimiser step a batch. Gradients and moments are freed at the end.

    batches: (epochs done after it, indices of its items). folder: of the checkpoints. log: takes one row of metrics a step,
    in the main process. say: takes a sentence, on a choice that was measured or a checkpoint that was refused. rewind:
    called with the step that training starts from. watch: called every `watch_every` steps and after the last (0: never),
    in every process, with the scorer of the policy; what it returns is logged with the step, and its time does not count as
    training time. content: the name of what the job is made from; only a checkpoint of the same content is resumed. rows:
    what fills a model that is an outline (`pobench.model.sharding`).
    Several processes hold a copy each, or with `sharding: fsdp2` a share each of weights, gradients and moments.
    Raises NonFiniteError (that step has not changed the weights), PobenchError; Leave, after a checkpoint, where the system
    has asked a process to leave.
    """
    _note_a_cut_warmup(config, len(batches), say)
    run = _Run.set_up(accelerator, model, objective, config, folder, content, say, rows)
    try:
        gap = objective.start(run.scorer, batches[0][1], exact=run.exact)
        done, spent = run.resume(folder, content, say)
        rewind(done)
        run.make_room_for_gradients()
        leaving.hold()  # until the checkpoint behind a step
        stands = done  # the step of the last checkpoint
        with run.saver(folder, content).finishing() as saver:
            for step in range(done, len(batches)):
                started = Spent.so_far()
                epoch, batch = batches[step]
                rate = learning_rate(config, step, len(batches))
                # ------------------------------------------------ the step
                beside = objective.begin_step(run.scorer, batch, step + 1)
                values = run.forward_backward(batch)
                norms = run.clip()
                run.refuse_non_finite(step, batch, values["loss"], norms)
                run.step(rate)
                objective.end_step(run.policy, step + 1)
                # ------------------------------------------------ memory, watching, logging, checkpoints
                run.trim(step)
                took = Spent.so_far().since(started)
                spent = spent.plus(took)
                if watch is not None and watch_every and ((step + 1) % watch_every == 0 or step + 1 == len(batches)):
                    beside = {**beside, **watch(run.scorer)}
                if accelerator.is_main_process:
                    row = {"step": step + 1, "epoch": epoch, **values, **beside, "lr": rate, **norms}
                    log({**row, "seconds": took.seconds, objective.unit: objective.size(batch), "steps": len(batches)})
                if step + 1 < len(batches):
                    stands = run.save_if_due(saver, step + 1, spent, stands, say)
    finally:
        leaving.let_go()
        run.release()
    tokens = sum(objective.groups[i].tokens for _, batch in batches for i in batch)
    peak, scorer = peak_memory(accelerator.device), run.scorer
    layout, reason = scorer.layout.name, scorer.layout_reason
    return Trained(len(batches), spent.seconds, spent.waited, peak, tokens, layout, reason, gap, *run.choice)


def _refuse_unlike_steps(accelerator: Accelerator, folder: Path, step: int) -> None:
    """Raises PobenchError, in all processes, unless all have the checkpoint of one step."""
    steps = accelerator.gather(torch.tensor([step], device=accelerator.device)).tolist()
    if len(set(steps)) > 1:
        raise PobenchError(f"{str(folder)!r}: the processes resume from different steps: {steps}")


def _note_a_cut_warmup(config: LoopConfig, steps: int, say: Callable[[str], None]) -> None:
    warmup = math.ceil(config.warmup_ratio * steps)
    if warmup > warmup_steps(config, steps):
        say(
            f"training has {steps} {'step' if steps == 1 else 'steps'}, too short for its warm-up of {warmup}: "
            "the last step is at the full rate. A smaller batch_size or more epochs give more steps"
        )


# ---------------------------------------------------------------- the parts of a step
@dataclass
class _Run:
    """A model in training. policy: the model as sums of log-probabilities. prepared: the policy as Accelerate wraps it; only
    forward passes with a gradient call it. exact: whether the arithmetic is fp32 throughout."""

    accelerator: Accelerator
    objective: Objective
    config: LoopConfig
    policy: ResponseLogps
    prepared: Any
    optimizer: Any
    scorer: SumScorer
    choice: Choice
    exact: bool

    @classmethod
    def set_up(
        cls,
        accelerator: Accelerator,
        model: Any,
        objective: Objective,
        config: LoopConfig,
        folder: Path,
        content: str,
        say: Callable[[str], None],
        rows: RowFiles | None,
    ) -> _Run:
        """Move the model to its device, or split it over all; choose the layout and the size of micro-batches; make the
        optimiser."""
        if accelerator.device.type == "cpu" and accelerator.mixed_precision == "no":
            # In fp32 only: bf16 casts many tensors, and fresh pages for each would cost more than a fragmented heap.
            keep_large_tensors_apart()
        elif accelerator.device.type == "cpu":
            keep_few_kernels()
        policy = _placed(accelerator, model.train(), config, rows, valued=objective.valued)
        if policy.dropout.note:
            say(policy.dropout.note)
        objective.follow(policy)
        scorer = sum_scorer(policy, objective.groups, config, accelerator, say)
        saved = checkpoint.latest(folder, content)
        state = checkpoint.about(saved) if saved else {}
        _refuse_unlike_steps(accelerator, folder, state.get("step", 0))  # before a probe, which all make or none
        choice = _micro_batch(config, objective, scorer, state)
        scorer.budget = choice.micro_tokens
        if "auto" in (config.micro_tokens, config.gradient_checkpointing):
            how = "with" if choice.gradient_checkpointing else "without"
            say(f"micro-batches of {choice.micro_tokens} tokens, {how} activation checkpointing: {choice.reason}")
        prepared: Any = policy
        optimizer: Any = make_optimizer(policy, config)
        if not is_sharded(policy):
            prepared, optimizer = accelerator.prepare(policy, optimizer)
        exact = accelerator.mixed_precision == "no" and policy.dtype == torch.float32
        return cls(accelerator, objective, config, policy, prepared, optimizer, scorer, choice, exact)

    def resume(self, folder: Path, content: str, say: Callable[[str], None]) -> tuple[int, Spent]:
        """(steps done, the time they took) of the checkpoint that training goes on from; no step, no time without one."""
        state = checkpoint.resume(folder, self.policy, self.plain_optimizer, content, say, self.objective.moving)
        done = state["step"] if state else 0
        self.objective.state = state.get("objective", {}) if state else {}
        spent = Spent(state["seconds"], state.get("waited", math.nan)) if state else Spent()
        _refuse_unlike_steps(self.accelerator, folder, done)
        return done, spent

    def make_room_for_gradients(self) -> None:
        """On a CPU, allocate the gradients once and keep them between steps. Freed and allocated again among activations of
        changing shapes, they would fragment glibc's heap."""
        if self.keeps_gradients:
            for parameter in self.policy.parameters():
                parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
            self.policy.arithmetic.in_place = self.accelerator.num_processes == 1

    @contextlib.contextmanager
    def turn(self, *, last: bool) -> Iterator[None]:
        """Around one micro-batch. Copies of the weights add their gradients up over processes in the last one only; shards do
        in each, as no process has room for a whole gradient."""
        self.accelerator.gradient_state._set_sync_gradients(last)
        if isinstance(self.policy, FSDPModule):
            self.policy.set_is_last_backward(last)
            yield
            return
        with contextlib.nullcontext() if last else self.accelerator.no_sync(self.prepared):
            yield

    def forward_backward(self, batch: Sequence[int]) -> dict[str, float]:
        """Add the gradient of the batch to the parameters'. Returns the logged means over the whole batch."""
        accelerator, objective, scorer = self.accelerator, self.objective, self.scorer
        groups = [objective.groups[i] for i in batch]
        size, world = objective.size(batch), accelerator.num_processes
        sums = torch.zeros(len(objective.names), dtype=torch.float64, device=accelerator.device)
        plan = scorer.plan(groups, gradient=True)[scorer.rank]
        with self.policy.arithmetic.unchanged_weights(kept=self.policy.arithmetic.in_place):
            for turn, indices in enumerate(plan, start=1):
                with self.turn(last=turn == len(plan)):
                    rows = scorer.collate([groups[i] for i in indices])
                    outputs = _outputs(self.prepared(rows, *_asked_of(objective, rows)))
                    if not indices:  # no items in this turn, but every process must join the sum of gradients
                        accelerator.backward(_added((values * 0).sum() for values in outputs))
                        continue
                    measured = objective.measure([batch[i] for i in indices], *outputs)
                    sums += measured.logged.to(sums.device)
                    # A data-parallel wrapper averages over processes; we want the sum over them, divided by the whole
                    # batch.
                    pulled = ((value * slope).sum() for value, slope in zip(outputs, measured.slopes, strict=True))
                    accelerator.backward(_added(pulled) * (world / size))
        return objective.means(accelerator.reduce(sums, "sum").tolist(), batch)

    def clip(self) -> dict[str, float]:
        """Clip the policy's gradient to `max_grad_norm`, and a value model's by itself. Returns the norms before that."""
        models = {"grad_norm": self.policy.model, "value_grad_norm": self.policy.value}
        norms = {
            name: torch.nn.utils.clip_grad_norm_(model.parameters(), self.config.max_grad_norm)
            for name, model in models.items()
            if model is not None
        }
        return {name: float(norm.full_tensor() if isinstance(norm, DTensor) else norm) for name, norm in norms.items()}

    def refuse_non_finite(self, step: int, batch: Sequence[int], loss: float, norms: Mapping[str, float]) -> None:
        if not (math.isfinite(loss) and all(map(math.isfinite, norms.values()))):
            shown = ", ".join(
                f"{name.replace('grad', 'gradient').replace('_', ' ')} {n:g}" for name, n in norms.items()
            )
            raise NonFiniteError(
                f"step {step + 1}: loss {loss:g}, {shown}; {self.objective.describe(batch)}. "
                "The last checkpoint is kept; try a smaller learning rate"
            )

    def step(self, rate: float) -> None:
        """Update the weights and reset the gradient."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["share"]
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=not self.keeps_gradients)

    def trim(self, step: int) -> None:
        if self.accelerator.device.type == "cpu" and step % STEPS_BETWEEN_TRIMS == 0:
            give_back_freed_memory()

    def saver(self, folder: Path, content: str) -> Saver:
        accelerator, config, moving = self.accelerator, self.config, self.objective.moving
        return Saver(
            folder, content, self.policy, self.plain_optimizer, Pace(config.checkpoint_seconds, config.checkpoint_share),
            writes=accelerator.is_main_process, beside=saves_beside(accelerator, self.policy, config, moving), moving=moving,
            keep=config.keep_checkpoints,
        )  # fmt: skip

    def save_if_due(self, saver: Saver, step: int, spent: Spent, stands: int, say: Callable[[str], None]) -> int:
        """Behind a step: finish the checkpoint on its way once its bytes are written, and begin one where it is due. Where any
        process is asked to leave, raises Leave behind a whole one; or without, where the last one took longer than the system
        waits. Returns the step of the newest checkpoint, that on its way included. stands: the same before."""
        asked, grace = leaving.asked() is not None, self.config.grace_seconds
        late = asked and saver.pace.took > leaving.time_left(grace)
        due, leave, late, written = self.agreed(saver.pace.due, asked, late, saver.written)
        if written:
            saver.finish()
        if leave and late:
            lost = f"{step - stands} step{'s' * (step - stands != 1)}"
            say(
                f"asked to leave, and a checkpoint takes {saver.pace.took:.0f} s, longer than the system waits "
                f"(train.grace_seconds: {grace:g}): that of step {stands} stands, and {lost} will be made again"
            )
        elif due or leave:
            if self.accelerator.device.type == "cpu":
                give_back_freed_memory()  # saving needs memory too
            facts = {**spent._asdict(), "memory": self.choice._asdict()}
            if self.objective.state:
                facts["objective"] = self.objective.state
            saver.save(step, facts, wait=leave)
            stands = step
            if not saver.pace.begun:
                self.accelerator.wait_for_everyone()
        if leave:
            raise leaving.Leave
        return stands

    def agreed(self, due: bool, leave: bool, late: bool, written: bool) -> tuple[bool, bool, bool, bool]:
        """Whether a checkpoint is due, as the main process says, for clocks differ; whether any process is to leave; whether
        any has no time left for one; whether all have written theirs. All processes save and leave, or none."""
        if self.accelerator.num_processes == 1:
            return due, leave, late, written
        everyone = self.accelerator.gather(torch.tensor([[due, leave, late, written]], device=self.accelerator.device))
        return bool(everyone[0, 0]), bool(everyone[:, 1].any()), bool(everyone[:, 2].any()), bool(everyone[:, 3].all())

    def release(self) -> None:
        """Free gradients, moments and the wrapper; the caller keeps the model."""
        self.policy.arithmetic.in_place = False
        self.policy.dropout.restore()
        self.plain_optimizer.state.clear()
        for parameter in self.policy.parameters():
            parameter.grad = None
        give_back(self.policy)
        self.prepared = self.optimizer = None
        self.accelerator.free_memory()
        if self.accelerator.device.type == "cpu":
            give_back_freed_memory()

    @property
    def keeps_gradients(self) -> bool:
        return self.accelerator.device.type == "cpu" and not is_sharded(self.policy)

    @property
    def plain_optimizer(self) -> torch.optim.Optimizer:
        """Without Accelerate's wrapper."""
        plain: torch.optim.Optimizer = getattr(self.optimizer, "optimizer", self.optimizer)
        return plain


def _asked_of(objective: Objective, rows: Batch) -> tuple[bool, Beside | None, bool]:
    """What a forward pass over a micro-batch computes, as the arguments of `ResponseLogps.forward` behind the batch."""
    return objective.per_token, objective.vocabulary(rows), objective.valued


def _added(numbers: Iterable[torch.Tensor]) -> torch.Tensor:
    """0-d. numbers: 0-d."""
    return torch.stack([*numbers]).sum()


def _outputs(output: Any) -> tuple[torch.Tensor, ...]:
    """The outputs of a forward pass, which `Objective.measure` takes."""
    return output if isinstance(output, tuple) else (output,)


def _placed(
    accelerator: Accelerator, model: Any, config: LoopConfig, rows: RowFiles | None, *, valued: bool
) -> ResponseLogps:
    """The model as a function, on its device or split over all processes; with a value model, if it shall be `valued`."""
    several, narrow = accelerator.num_processes > 1, accelerator.mixed_precision == "bf16"
    split = config.sharding == "fsdp2" and several
    if config.sharding == "fsdp2" and narrow and not several:
        raise PobenchError(
            "sharding: fsdp2 in bf16 rounds weights as one process does not, and this is one process; use sharding: none"
        )
    if split and valued:
        raise PobenchError("a value model beside a policy is not split over devices; use sharding: none")
    if not split:
        model.to(accelerator.device)
    value = PromptValue(model) if valued else None
    policy = ResponseLogps(model, config.head_tile, compiled=config.compile, device=accelerator.device)
    policy.value = value
    if split:
        shard(policy, accelerator.device, torch.bfloat16 if narrow else torch.float32, rows)
    return policy


def _micro_batch(config: LoopConfig, objective: Objective, scorer: SumScorer, resumed: Mapping[str, Any]) -> Choice:
    """Choose the tokens of a micro-batch and activation checkpointing, and switch the latter on: by the setting, by the
    checkpoint, or by a probe. All processes take the smallest of their choices.

    resumed: the state of the job's newest checkpoint; {} without one.
    """
    policy, accelerator = scorer.policy, scorer.accelerator
    models, switched_on = [policy.model, *([policy.value.body] if policy.value else [])], False

    def checkpointing(on: bool) -> None:
        nonlocal switched_on
        for model in models if on != switched_on else ():
            checkpoint_activations(model, on)
        switched_on = on

    def step(batch: Batch) -> None:
        with scorer.autocast():
            outputs = _outputs(policy(batch, *_asked_of(objective, batch)))
        _added(values.sum() for values in outputs).backward()

    if config.micro_tokens != "auto" and config.gradient_checkpointing != "auto":
        choice = Choice(config.micro_tokens, config.gradient_checkpointing, "as the setting says")
    elif "memory" in resumed:
        choice = Choice(**resumed["memory"])
    else:
        trained, split = [p for p in policy.parameters() if p.requires_grad], is_sharded(policy)
        for parameter in trained if not split else ():
            parameter.grad = torch.zeros_like(parameter)
        # The probe adds gradients in place where the steps do.
        policy.arithmetic.in_place = accelerator.device.type == "cpu" and accelerator.num_processes == 1
        moments = sum(2 * (p.to_local() if isinstance(p, DTensor) else p).nbytes for p in trained)
        if config.checkpoint_async is True and accelerator.device.type == "cpu":
            moments += checkpoint.state_bytes(policy, objective.moving)  # the copy that is written
        window, device, most = scorer.window, accelerator.device, scorer.most if split else None
        here = choose(config, objective.groups, scorer.layout, window, device, step, checkpointing, moments, most)
        policy.zero_grad(set_to_none=True)
        least = torch.tensor([here.micro_tokens, not here.gradient_checkpointing], device=device)
        tokens, without = accelerator.gather(least).view(-1, 2).min(dim=0).values.tolist()
        choice = Choice(tokens, not without, here.reason)
    checkpointing(choice.gradient_checkpointing)
    return choice
