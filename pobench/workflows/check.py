"""The laws that a preference loss must obey to be compared fairly (`pobench check`). Each gives a verdict and the numbers.

The verdict is `holds` or `fails`, or `note` for a property that a reader should know and that is neither right nor wrong.
Most laws evaluate the function on pairs in fp64 (and fp32 at the extremes); the last ones compare whole training steps of
a small random model, with the same batch split in different ways (`pobench.workflows.invariance`). A loss of lists or of
answers is tried on pairs, on lists or answers of its own (`pobench.workflows.check_units`), and in steps on such rows.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from pobench.errors import PobenchError
from pobench.registry import Loss, Modifier, Move, load_plugin, losses
from pobench.settings.faults import broken_contract
from pobench.settings.resolve import resolve_names
from pobench.types import Inputs, LossOutput, Pair, SequenceLogps, TokenLogps, Vocabulary
from pobench.units import places_in, read
from pobench.workflows.check_units import OWN, ratios_of, relative, value_near
from pobench.workflows.invariance import SPLITS, TOLERANCE, WHOLE, difference, take_steps, take_steps_in_two_processes


class Finding(NamedTuple):
    """One law's verdict on one loss. seen: a sentence with the numbers."""

    law: str
    verdict: Literal["holds", "fails", "note"]
    seen: str


class Numbers(NamedTuple):
    """The inputs of a loss, each (pairs,): summed log-probabilities in nats under policy and reference, lengths in tokens, the
    data's ratings."""

    chosen: Tensor
    rejected: Tensor
    reference_chosen: Tensor
    reference_rejected: Tensor
    chosen_length: Tensor
    rejected_length: Tensor
    chosen_score: Tensor
    rejected_score: Tensor

    @classmethod
    def of(cls, *sums_and_lengths: Tensor, draw: torch.Generator | None = None) -> Numbers:
        """With ratings from 0 to 1 on both sides of a half, so that they may be scores or chances to win. draw: what draws
        them; None: 0.8 and 0.3."""
        n = len(sums_and_lengths[0])
        halves = torch.tensor([[0.3], [0.3]]).expand(2, n) if draw is None else torch.rand(2, n, generator=draw) / 2
        return cls(*[*sums_and_lengths, (0.5 + halves[0]).double(), halves[1].double()])

    @property
    def pairs(self) -> tuple[Pair, Pair]:
        """(policy, reference)."""
        lengths = self.chosen_length, self.rejected_length
        policy, reference = (map(SequenceLogps, sums, lengths) for sums in (self[:2], self[2:4]))
        return Pair(*policy), Pair(*reference)

    def take(self, index: Any) -> Numbers:
        return Numbers(*(t[index] for t in self))

    def swapped(self) -> Numbers:
        return Numbers(*(self[i] for i in (1, 0, 3, 2, 5, 4, 7, 6)))

    def to(self, dtype: torch.dtype) -> Numbers:
        return Numbers(*[t.to(dtype) if t.is_floating_point() else t for t in self])


class Beside(NamedTuple):
    """The whole batch in which some pairs stand. place: (pairs,) where."""

    batch: Numbers
    place: Tensor

    @classmethod
    def all_of(cls, batch: Numbers) -> Beside:
        return cls(batch, torch.arange(len(batch.chosen)))


class Evaluated(NamedTuple):
    """A loss at some pairs. by_chosen, by_rejected: (pairs,) derivatives of the summed loss by the policy's sums."""

    output: LossOutput
    by_chosen: Tensor
    by_rejected: Tensor


class Subject:
    """A loss with its settings."""

    def __init__(self, loss: Loss, changes: Mapping[str, Any] | None = None) -> None:
        self.loss, self.settings = loss, {**loss.settings, **(changes or {})}

    def __call__(
        self,
        at: Numbers,
        kl: float = 0.0,
        beside: Beside | None = None,
        phases: Mapping[str, float] = MappingProxyType({}),
        **changes: Any,
    ) -> LossOutput:
        """beside: the whole batch, of which the pairs are a part; None: they are all of it. phases: an input by token,
        or `value` → which tokens or prompts have more of it."""
        settings = {**self.settings, **changes}
        scores = torch.stack((at.chosen_score, at.rejected_score), dim=1)
        batch = self.loss.batch_of(*(beside.batch if beside else at).pairs, settings)
        if beside and batch is not None:
            batch = batch._replace(place=places_in(self.loss.unit, beside.place))
        tokens = None
        if "tokens" in self.loss.needs:
            policy, reference = at.pairs
            known = reference if "reference" in self.loss.needs else None
            tokens = TokenLogps.spread(policy, known, phases.get("tokens", 0.0))
        vocabulary = Vocabulary.spread(at.pairs[0], phases)
        if torch.equal(at.chosen, at.reference_chosen) and torch.equal(at.rejected, at.reference_rejected):
            assert vocabulary.forward_kl is not None
            vocabulary = vocabulary._replace(
                forward_kl=torch.zeros_like(vocabulary.forward_kl)
            )  # the policy is the reference
        inputs = Inputs(*at.pairs, torch.tensor(kl, dtype=at[0].dtype), tokens, scores, batch)
        lengths = (at.chosen_length + at.rejected_length).to(at[0].dtype)
        inputs = inputs._replace(value=value_near(lengths, phases.get("value", 0.0)), **vocabulary._asdict())
        given: Any = read(self.loss.unit, inputs)
        if "density_ratio" in self.loss.needs:  # of other prompts than a pair's one
            given = given._replace(density_ratio=ratios_of(given.response.length).to(at[0].dtype))
        return self.loss.by_pair(self.loss(*self.loss.named(given), **settings))

    def evaluate(self, at: Numbers, kl: float = 0.0, beside: Beside | None = None, **changes: Any) -> Evaluated:
        leaves = [t.clone().requires_grad_() for t in at[:2]]
        output = self(at._replace(chosen=leaves[0], rejected=leaves[1]), kl, beside, **changes)
        if not output.loss.requires_grad:
            return Evaluated(output, *(torch.zeros_like(t) for t in leaves))
        return Evaluated(output, *torch.autograd.grad(output.loss.sum(), leaves, materialize_grads=True))


# ---------------------------------------------------------------- pairs to try a loss on
def _uniform(n: int, draw: torch.Generator) -> Callable[[float, float], Tensor]:
    """A function (low, high) → (n,) uniform numbers, drawn from `draw`."""

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(n, generator=draw, dtype=torch.float64)

    return uniform


def ordinary(n: int = 64, seed: int = 0) -> Numbers:
    """Random pairs: 5 to 400 tokens, 0.05 to 3 nats a token, up to some nats away from the reference."""
    draw = torch.Generator().manual_seed(seed)
    uniform = _uniform(n, draw)
    lengths = [uniform(5, 401).floor() for _ in range(2)]
    policy = [-length * uniform(0.05, 3) for length in lengths]
    moved = [torch.randn(n, generator=draw, dtype=torch.float64) * 6 for _ in range(2)]
    reference = [(total - by).clamp(max=0) for total, by in zip(policy, moved, strict=True)]
    return Numbers.of(*policy, *reference, *(length.long() for length in lengths), draw=draw)


def misranked(clearly: bool = False, n: int = 32, seed: int = 1) -> Numbers:
    """Pairs ranked the wrong way, both by the policy and relative to the reference: a little (0.04 nats a token, under 2
    nats relative to the reference), or clearly (0.6 nats a token, 20 to 60 nats each)."""
    uniform = _uniform(n, torch.Generator().manual_seed(seed))
    length = uniform(20, 200).floor()
    mean, apart = -uniform(0.4, 2.0), 0.3 if clearly else 0.02
    chosen, rejected = length * (mean - apart), length * (mean + apart)
    moved = uniform(20, 60) if clearly else uniform(0.1, 0.8)
    return Numbers.of(chosen, rejected, chosen + moved, rejected - moved, length.long(), length.long())


def extremes() -> Numbers:
    """Sums of -1e4 and nearly 0 nats in every combination, one token and many, with equal, contradictory and far ratings."""
    rows = [(*sums, *n) for sums in product((-1e4, -1e-3), repeat=4) for n in ((1, 1), (7, 900))]
    columns = torch.tensor(rows, dtype=torch.float64).T
    gaps = torch.tensor([0.0, 1.0, -2.0, 1e3, 1e-6], dtype=torch.float64).repeat(len(rows))[: len(rows)]
    return Numbers(*[*columns[:4], *columns[4:].long(), 5 + gaps, torch.full_like(gaps, 5.0)])


def equal() -> Numbers:
    """Pairs of two equal answers, with the policy at the reference and away from it; one-token answers too."""
    total = torch.tensor([-40.0, -40.0, -1.0, -0.01], dtype=torch.float64)
    before = torch.tensor([-40.0, -43.0, -1.5, -0.01], dtype=torch.float64)
    length = torch.tensor([20, 20, 1, 1])
    return Numbers.of(total, total, before, before, length, length)


def untrained(n: int = 400, seed: int = 2) -> Numbers:
    """Realistic pairs before the first step (policy = reference): 30 to 600 tokens, 0.3 to 1.5 nats a token."""
    uniform = _uniform(n, torch.Generator().manual_seed(seed))
    lengths = [uniform(30, 601).floor() for _ in range(2)]
    totals = [-length * uniform(0.3, 1.5) for length in lengths]
    return Numbers.of(
        *totals, *totals, *(length.long() for length in lengths), draw=torch.Generator().manual_seed(seed)
    )


# ---------------------------------------------------------------- laws of the function
LAWS: list[tuple[str, Callable[[Subject], tuple[str, str]]]] = []


def law(name: str) -> Callable[[Callable[[Subject], tuple[str, str]]], Callable[[Subject], tuple[str, str]]]:
    """Register a law: a function Subject → (verdict, sentence with the numbers)."""

    def register(function: Callable[[Subject], tuple[str, str]]) -> Callable[[Subject], tuple[str, str]]:
        LAWS.append((name, function))
        return function

    return register


@law("one value per pair")
def _shapes(subject: Subject) -> tuple[str, str]:
    if broken := broken_contract(subject.loss, subject.settings):
        return "fails", broken
    for n in (1, 5):
        output = subject(ordinary(n))
        wrong = [f"{k} {tuple(t.shape)}" for k, t in output._asdict().items() if t.shape != (n,)]
        if wrong:
            return "fails", f"of {n} pairs: {', '.join(wrong)}; each must be ({n},), the harness takes the mean itself"
        wrong = [f"{k} {t.dtype}" for k, t in output._asdict().items() if t.dtype != torch.float64]
        if wrong:
            return "fails", f"fp64 sums give {', '.join(wrong)}: digits are lost"
    return "holds", "loss and both rewards are (pairs,), in the precision they are handed"


@law("a pair stands for itself")
def _alone(subject: Subject) -> tuple[str, str]:
    pairs = ordinary(16)
    together, kl = subject.evaluate(pairs, 2.0), 2.0
    alone = [subject.evaluate(pairs.take(slice(i, i + 1)), kl, Beside(pairs, torch.tensor([i]))) for i in range(16)]
    worst = 0.0
    for field in ("loss", "chosen_reward", "rejected_reward"):
        each = torch.cat([getattr(a.output, field) for a in alone])
        worst = max(worst, relative(getattr(together.output, field), each))
    worst = max(worst, relative(together.by_chosen, torch.cat([a.by_chosen for a in alone])))
    worst = max(worst, relative(together.by_rejected, torch.cat([a.by_rejected for a in alone])))
    if worst > 1e-12:
        return "fails", (
            f"a pair's loss or gradient depends on the pairs beside it (relative {worst:.1g}): the objective would change"
            " with the micro-batch; take means over one response's tokens, never over the pairs, or ask for `batch`"
        )
    where = ", beside the same batch" if "batch" in subject.loss.needs else ""
    return "holds", f"16 pairs together give what each gives alone{where}"


@law("the gradient reaches both responses")
def _flow(subject: Subject) -> tuple[str, str]:
    got = subject.evaluate(joined(misranked(), ordinary()), 1.0)
    dead = [name for name, g in (("chosen", got.by_chosen), ("rejected", got.by_rejected)) if not g.abs().any()]
    if dead:
        return "fails", f"the loss does not depend on the {' or the '.join(dead)} response's log-probability"
    return (
        "holds",
        f"mean |slope| {got.by_chosen.abs().mean():.3g} by the chosen sum, {got.by_rejected.abs().mean():.3g} by the rejected",
    )


@law("it pulls the right way")
def _direction(subject: Subject) -> tuple[str, str]:
    parts, wrong_everywhere = [], True
    for clearly in (False, True):
        got = subject.evaluate(misranked(clearly))
        where = f"of {len(got.by_chosen)} pairs ranked {'clearly' if clearly else 'a little'} the wrong way"
        joins, raises = got.by_chosen - got.by_rejected >= 0, got.by_rejected < 0
        wrong_everywhere &= bool((joins | raises).all())
        for count, what in (
            (int(joins.sum()), "a step draws the answers together"),
            (int((raises & ~joins).sum()), "a step raises the rejected response"),
            (int(((got.by_chosen > 0) & ~joins).sum()), "a step lowers both responses, the rejected one more"),
        ):
            if count:
                parts.append(f"at {count} {where} {what}")
    if wrong_everywhere:
        return "fails", f"{'; '.join(parts)}: a wrong sign?"
    if parts:
        return "note", "; ".join(parts)
    return "holds", "at 64 pairs ranked the wrong way a step raises the chosen and lowers the rejected response"


@law("the gradient is the value's")
def _derivative(subject: Subject) -> tuple[str, str]:
    pairs, h = ordinary(48, seed=3), 1e-4
    beside = Beside.all_of(pairs)  # which stays
    got = subject.evaluate(pairs, 1.0, beside)
    worst, scale = 0.0, 0.0
    for field, gradient in (("chosen", got.by_chosen), ("rejected", got.by_rejected)):
        here = getattr(pairs, field)
        up, down = (subject(pairs._replace(**{field: here + s * h}), 1.0, beside).loss.detach() for s in (1, -1))
        slope = (up - down) / (2 * h)
        scale = max(scale, float(gradient.abs().max()))
        off = (slope - gradient).abs() / torch.maximum(
            gradient.abs(), torch.full_like(gradient, 1e-4 * max(scale, 1e-12))
        )
        rounding = 1e-12 * (up.abs() + down.abs()) / h  # the rounding error of the difference of two fp64 values
        worst = max(worst, float(torch.where((slope - gradient).abs() <= rounding, 0.0, off).max()))
    weighing = [part.name for part in subject.loss.parts if isinstance(part, Modifier) and part.weighs]
    if worst > 1e-4 and weighing:
        return (
            "note",
            f"a step follows the pairs with the weights of {' and '.join(weighing)} held fixed, as is its design",
        )
    if worst > 1e-4:
        return (
            "fails",
            f"autograd's slope and the loss's own differ by {worst:.1g} relative: is something detached that should not be?",
        )
    return "holds", "autograd agrees with finite differences at 48 pairs, to 1e-4 relative or what rounding leaves"


@law("the batch's part of the gradient")
def _of_the_batch(subject: Subject) -> tuple[str, str]:
    if "batch" not in subject.loss.needs:
        return "holds", "a pair's loss does not depend on the batch"
    pairs, h = ordinary(12, seed=5), 1e-4
    got = subject.evaluate(pairs, 1.0)
    worst = 0.0
    for field, gradient in (("chosen", got.by_chosen), ("rejected", got.by_rejected)):
        for i in range(12):
            step = torch.zeros(12, dtype=torch.float64)
            step[i] = h
            up, down = (
                float(subject(pairs._replace(**{field: getattr(pairs, field) + sign * step}), 1.0).loss.detach().sum())
                for sign in (1, -1)
            )
            worst = max(worst, abs((up - down) / (2 * h) - float(gradient[i])) / float(gradient.abs().max()))
    if worst > 1e-4:
        return "note", (
            f"a step follows the pairs with the batch's values held fixed, as KTO's does with kl; the slope of the whole "
            f"batch's mean loss differs by {worst:.1g} of the largest"
        )
    return "holds", "the pairs' gradients are the gradient of the whole batch's mean loss, at 12 pairs to 1e-4"


@law("finite at the extremes")
def _finite(subject: Subject) -> tuple[str, str]:
    for dtype in (torch.float32, torch.float64):
        for kl in (0.0, 1e4, -1e4) if "kl" in subject.loss.needs else (0.0,):
            at = extremes().to(dtype)
            got = subject.evaluate(at, kl)
            bad = _not_finite(got)
            if bad is not None:
                what, i = bad
                rated = "scores" in subject.loss.needs
                shown = Numbers._fields if rated else Numbers._fields[:-2]
                numbers = ", ".join(f"{name} {float(getattr(at, name)[i]):g}" for name in shown)
                return (
                    "fails",
                    f"{what} is {_value(got, what, i):g} in {str(dtype).removeprefix('torch.')} at {numbers}",
                )
    return "holds", f"value, rewards and slopes at {len(extremes().chosen)} extreme pairs, fp32 and fp64"


@law("equal responses")
def _equal(subject: Subject) -> tuple[str, str]:
    for dtype in (torch.float32, torch.float64):
        got = subject.evaluate(equal().to(dtype))
        bad = _not_finite(got)
        if bad is not None:
            return (
                "fails",
                f"{bad[0]} is {_value(got, *bad):g} where both answers have the same log-probability and length",
            )
    return "holds", "finite where the two answers cannot be told apart, one-token answers too"


@law("it uses what it asks for")
def _needs(subject: Subject) -> tuple[str, str]:
    pairs = ordinary()
    unused = []
    if "reference" in subject.loss.needs:
        shift = torch.linspace(-5, -1, len(pairs.chosen), dtype=torch.float64)
        moved = pairs._replace(reference_chosen=pairs.reference_chosen + shift)
        if torch.equal(subject(pairs, 1.0).loss, subject(moved, 1.0).loss):
            unused.append("reference")
    if "kl" in subject.loss.needs and torch.equal(subject(pairs, 1.0).loss, subject(pairs, 9.0).loss):
        unused.append("kl")
    for name in ("tokens", "value", *Vocabulary._fields):
        if name in subject.loss.needs:
            elsewhere = subject(pairs, 1.0, phases={name: 2.0})
            unused += [name] if torch.equal(subject(pairs, 1.0).loss, elsewhere.loss) else []
    if "scores" in subject.loss.needs:
        moved = pairs._replace(chosen_score=pairs.chosen_score + 1)
        if torch.equal(subject(pairs, 1.0).loss, subject(moved, 1.0).loss):
            unused.append("scores")
    if "batch" in subject.loss.needs:
        shift = torch.linspace(-3, 4, len(pairs.chosen), dtype=torch.float64).sin()
        moved = pairs._replace(chosen=pairs.chosen + shift, reference_rejected=pairs.reference_rejected - 2 * shift)
        fixed, other = (subject(pairs, 1.0, Beside.all_of(batch)).loss for batch in (pairs, moved))
        if torch.equal(fixed, other):
            unused.append("batch")
    if unused:
        return (
            "fails",
            f"the loss asks for {' and '.join(unused)} and does not use it: drop the parameter, which saves what it costs",
        )
    needs = ", ".join(sorted(subject.loss.needs)) or "the policy alone"
    return "holds", f"asks for {needs}"


@law("every setting counts")
def _settings(subject: Subject) -> tuple[str, str]:
    pairs = joined(ordinary(), misranked())
    if "tokens" in subject.loss.needs:  # what clamps single tokens needs some that have moved far
        pairs = joined(pairs, misranked(clearly=True))
    base, dead, tried = subject(pairs, 1.0).loss, [], []
    for name, value in subject.settings.items():
        if isinstance(value, bool):
            other: Any = not value
        elif isinstance(value, int):
            other = value + max(1, value // 2)
        elif isinstance(value, float):
            other = value * 1.5 if value else 0.1
        else:
            continue  # one of several words, or another name of the same setting
        tried.append(name)
        changed = {**subject.settings, name: other}
        same = torch.equal(subject(pairs, 1.0, **{name: other}).loss, base)
        if same and _moved_by(subject.loss, changed) == _moved_by(subject.loss, subject.settings):
            dead.append(f"{name} ({value} or {other})")
    if dead:
        return "fails", f"{', '.join(dead)} changes nothing"
    return "holds", f"{', '.join(tried) or 'no number to set'}"


def _moved_by(loss: Loss, settings: Mapping[str, Any]) -> list[Move]:
    """How the reference moves behind each of the first steps, by these settings."""
    return [loss.move_of_reference(step, settings) for step in range(1, 2001)] if loss.moves_reference else []


@law("a reward belongs to its response")
def _rewards(subject: Subject) -> tuple[str, str]:
    pairs = ordinary()
    here, there = subject(pairs, 1.0), subject(pairs.swapped(), 1.0)
    off = max(relative(here.chosen_reward, there.rejected_reward), relative(here.rejected_reward, there.chosen_reward))
    if off > 1e-9:
        return (
            "note",
            f"swapping the two answers does not swap their rewards (relative {off:.1g}), so reward accuracy is no ranking",
        )
    return "holds", "swapping the two answers swaps their rewards"


@law("before the first step")
def _first(subject: Subject) -> tuple[str, str]:
    got = subject.evaluate(untrained())
    value, weight = got.output.loss.detach(), (got.by_chosen.abs() + got.by_rejected.abs())
    spread = "the same for every pair" if value.std() < 1e-9 else f"{value.min():.4g} to {value.max():.4g}"
    return "note", f"loss {value.mean():.4g} ({spread}); mean gradient weight {weight.mean():.3g} a pair"


@law("length")
def _length(subject: Subject) -> tuple[str, str]:
    lengths = torch.tensor([10, 100, 1000])
    n = lengths.double()

    def reward(nats: float, moved: float) -> list[float]:
        total = nats * n
        at = Numbers.of(total, total, total - moved * n, total - moved * n, lengths, lengths)
        return subject(at).chosen_reward.detach().tolist()

    def tells(values: Sequence[float]) -> str:
        first, _, last = values
        if math.isclose(first, last, rel_tol=1e-6, abs_tol=1e-9):
            return "does not change with length"
        return f"{'grows' if abs(last) > abs(first) else 'shrinks'} with length: " + ", ".join(
            f"{v:.4g}" for v in values
        )

    if "reference" in subject.loss.needs:
        return (
            "note",
            f"0.1 nats a token above the reference, at 10, 100, 1000 tokens: the reward {tells(reward(-1.0, 0.1))}",
        )
    return "note", f"at -1 nat a token and 10, 100, 1000 tokens the reward {tells(reward(-1.0, 0.0))}"


@law("saturation")
def _saturation(subject: Subject) -> tuple[str, str]:
    pairs = untrained()
    got = subject.evaluate(pairs)
    weight = got.by_chosen.abs() * pairs.chosen_length + got.by_rejected.abs() * pairs.rejected_length
    idle = float((weight <= 0.01 * weight.max()).double().mean())
    return (
        "note",
        f"{idle:.0%} of {len(weight)} realistic pairs start with under a hundredth of the heaviest pair's weight",
    )


def joined(*several: Numbers) -> Numbers:
    return Numbers(*(torch.cat(columns) for columns in zip(*several, strict=True)))


def _not_finite(got: Evaluated) -> tuple[str, int] | None:
    tensors = {
        **got.output._asdict(),
        "slope by the chosen sum": got.by_chosen,
        "slope by the rejected sum": got.by_rejected,
    }
    for what, t in tensors.items():
        bad = (~t.detach().isfinite()).nonzero()
        if len(bad):
            return what, int(bad[0, 0]) if bad.ndim == 2 and bad.shape[1] else 0
    return None


def _value(got: Evaluated, what: str, i: int) -> float:
    tensors = {
        **got.output._asdict(),
        "slope by the chosen sum": got.by_chosen,
        "slope by the rejected sum": got.by_rejected,
    }
    return float(tensors[what].detach().reshape(-1)[i])


# ---------------------------------------------------------------- the training step
def _steps(subject: Subject, plugins: Sequence[str]) -> Iterator[Finding]:
    name = "a batch may be cut in any way"
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        try:
            reference = take_steps(subject.loss, subject.settings, WHOLE, folder)
            off = {s.name: difference(take_steps(subject.loss, subject.settings, s, folder), reference) for s in SPLITS}
        except PobenchError as error:
            yield Finding(name, "fails", f"training stops: {' '.join(str(error).split())}")
            return
    if not (reference.gradient.norm(dim=1) > 0).all():
        yield Finding(name, "note", "no gradient on these pairs: nothing could be compared")
        return
    worst = max(off, key=lambda s: math.inf if math.isnan(off[s]) else off[s])
    if not off[worst] <= TOLERANCE:
        yield Finding(
            name,
            "fails",
            f"{worst} differs from {WHOLE.name} by {off[worst]:.1g} relative (allowed {TOLERANCE:g}) in loss or gradient",
        )
    else:
        ways = ", ".join(off)
        yield Finding(name, "holds", f"as {WHOLE.name}, to {off[worst]:.0e} relative: {ways}; a short last batch too")
    name = "two processes train as one"
    try:
        changed = {subject.loss.name: subject.settings}
        one, two = take_steps_in_two_processes([subject.loss.name], plugins, changed)[subject.loss.name]
    except Exception as error:
        yield Finding(name, "fails", f"{type(error).__name__}: {' '.join(str(error).split())[-300:]}")
        return
    off_two = difference(two, one)
    verdict: Literal["holds", "fails"] = "holds" if off_two <= TOLERANCE else "fails"
    yield Finding(name, verdict, f"loss and gradient differ by {off_two:.1g} relative (allowed {TOLERANCE:g}), gloo")


def laws_of(subject: Subject) -> Iterator[tuple[str, Callable[[], tuple[str, str]]]]:
    """The laws that a loss is held to, each with what tries it: of pairs, then of its own unit."""
    yield from ((name, partial(function, subject)) for name, function in LAWS)
    yield from ((name, partial(own, subject.loss, subject.settings)) for name, own in OWN[subject.loss.unit])


def check(
    loss: Loss, changes: Mapping[str, Any] | None = None, plugins: Sequence[str] = (), *, steps: bool = True
) -> Iterator[Finding]:
    """Check every law on a loss, one by one. changes: settings that differ from the defaults. plugins: files that other
    processes import to register the loss. steps: also take training steps (about twenty seconds)."""
    subject = Subject(loss, changes)
    trainable = True
    for name, tell in laws_of(subject):
        try:
            verdict, seen = tell()
        except Exception as error:  # a user's loss may raise anything; the other laws still run
            verdict, seen = "fails", f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        trainable = trainable and not (name == LAWS[0][0] and verdict == "fails")
        yield Finding(name, verdict, seen)  # type: ignore[arg-type]
    if steps and trainable:
        yield from _steps(subject, plugins)


def losses_of(target: str) -> tuple[list[Loss], list[str]]:
    """(losses, plug-in files) of a list of names or of a Python file that registers losses. Raises PobenchError."""
    if not target.endswith(".py"):
        names, faults = resolve_names(target)
        if faults:
            raise PobenchError("\n".join(faults))
        return [losses.get(name) for name in names], []
    before = set(losses.names())
    load_plugin(target)
    loaded = [losses.get(name) for name in losses.names() if name not in before]
    if not loaded:
        raise PobenchError(f"{target!r} registers no loss; decorate a function with @register_loss(…)")
    return loaded, [str(Path(target).absolute())]
