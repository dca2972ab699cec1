"""The laws of a loss of lists on lists of two to five answers, ties and pads among them, and of a loss of single answers on
answers of which more are desirable than not. `pobench check` tries them behind the laws of pairs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import product
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pobench.registry import Loss
from pobench.types import AnswerInputs, ListInputs, Responses, SequenceLogps, TokenLogps, Unit
from pobench.units import ends

STEP = 1e-4  # nats, of a finite difference
Verdict = tuple[str, str]  # "holds", "fails" or "note", and a sentence with the numbers


class Lists(NamedTuple):
    """Lists to try a loss on. reference: the same with other sums. scores: (prompts, k), nan at pads."""

    policy: Responses
    reference: Responses
    scores: Tensor

    def inputs(self, policy: Responses, beside: Mapping[str, Any]) -> ListInputs:
        tokens, batch, value = (beside[name] for name in ("tokens", "batch", "value"))
        return ListInputs(policy, self.reference, tokens, self.scores.to(policy.total.dtype), batch, value)

    def map(self, change: Callable[[Tensor], Tensor]) -> Lists:
        """With every tensor changed alike."""
        policy, reference = (Responses(*map(change, part)) for part in (self.policy, self.reference))
        return Lists(policy, reference, change(self.scores))

    def take(self, lists: Tensor) -> Lists:
        """Some of them, no wider than the longest."""
        width = int(self.policy.mask[lists].sum(1).max())
        return self.map(lambda tensor: tensor[lists, :width])


class Answers(NamedTuple):
    """Single answers to try a loss on. scores, density_ratio: (answers,)."""

    policy: SequenceLogps
    reference: SequenceLogps
    scores: Tensor
    label: Tensor
    density_ratio: Tensor

    def inputs(self, policy: SequenceLogps, beside: Mapping[str, Any]) -> AnswerInputs:
        kl, tokens, batch, value = (beside[name] for name in ("kl", "tokens", "batch", "value"))
        scores, ratio = (values.to(policy.total.dtype) for values in (self.scores, self.density_ratio))
        return AnswerInputs(policy, self.label, self.reference, kl, tokens, scores, batch, ratio, value)

    def take(self, answers: Tensor) -> Answers:
        policy, reference = (SequenceLogps(*(t[answers] for t in part)) for part in (self.policy, self.reference))
        return Answers(policy, reference, *(values[answers] for values in self[2:]))


class Tried(NamedTuple):
    """A loss at some rows. loss: (rows,). rewards, slopes: in the shape of the policy's sums; slopes: of the summed loss by
    these."""

    loss: Tensor
    rewards: Tensor
    slopes: Tensor


def tried(
    loss: Loss,
    settings: Mapping[str, Any],
    at: Any,
    *,
    whole: Any = None,
    place: Tensor | None = None,
    kl: float = 1.0,
    phase: float = 0.0,
    value_phase: float = 0.0,
) -> Tried:
    """whole: the batch of which the rows are a part; None: they are all of it. place: where the rows stand in it. phase: how
    tokens share a sum. value_phase: which prompts have a larger value."""
    total = at.policy.total.clone().requires_grad_()
    policy, of = at.policy._replace(total=total), at if whole is None else whole
    batch = loss.batch_of(of.policy, of.reference, settings, None, getattr(of, "label", None))
    if place is not None and batch is not None:
        batch = batch._replace(place=place)
    tokens = None
    if "tokens" in loss.needs:
        tokens = TokenLogps.spread(policy, at.reference if "reference" in loss.needs else None, phase)
    lengths = policy.length * policy.mask if loss.unit == "lists" else policy.length
    value = value_near(lengths.view(len(total), -1).sum(1).to(total.dtype), value_phase)
    beside = {"kl": torch.tensor(kl, dtype=total.dtype), "tokens": tokens, "batch": batch, "value": value}
    output = loss.on(at.inputs(policy, beside), **settings)
    (slopes,) = (
        torch.autograd.grad(output.loss.sum(), [total], materialize_grads=True)
        if output.loss.requires_grad
        else [torch.zeros_like(total)]
    )
    return Tried(output.loss.detach(), output[1].detach(), slopes)


def value_near(lengths: Tensor, phase: float) -> Tensor:
    """Values of prompts to try a loss on, near the middle of ratings from 0 to 1: a row's own, whatever rows stand beside it.
    lengths: (rows,) tokens of its answers, as the values' type."""
    return 0.5 + torch.sin(lengths + phase) / 5


# ---------------------------------------------------------------- rows to try a loss on
RANKS = (
    (1, 2, 3, 4),
    (4, 2, 1, 3),
    (1, 2, 2, 4),
    (2, 1, 1),
    (1, 2),
    (3, 1, 2),
    (2, 5, 1, 4, 3),
    (1, 1, 3, 4, 4),
    (1, 1),
)


def lists(ranks: Sequence[Sequence[int]] = RANKS, seed: int = 7) -> Lists:
    """Of 1 to 90 tokens, some nats from the reference, rated as they are ranked."""
    draw = torch.Generator().manual_seed(seed)
    shape = len(ranks), max(map(len, ranks))
    rank = torch.zeros(shape, dtype=torch.int64)
    for row, of_list in zip(rank, ranks, strict=True):
        row[: len(of_list)] = torch.tensor(of_list)
    mask = rank > 0
    length = torch.where(mask, torch.randint(1, 90, shape, generator=draw), 1)
    total = -length * (0.05 + torch.rand(shape, generator=draw, dtype=torch.float64)) * mask
    moved = 6 * torch.randn(shape, generator=draw, dtype=torch.float64) * mask
    scores = (1 - rank.double() / 10).masked_fill(~mask, math.nan)
    return Lists(Responses(total, length, rank, mask), Responses(total - moved, length, rank, mask), scores)


def misranked(steps: int = 12) -> Lists:
    """Lists of three, ranked the wrong way by the policy and by its moves from the reference, a little and by far."""
    apart = torch.logspace(-1, 1.5, steps, dtype=torch.float64)[:, None]
    rank = torch.tensor([1, 2, 3]).expand(steps, 3)
    length, mask = torch.full((steps, 3), 40), torch.ones(steps, 3, dtype=torch.bool)
    total, base = -60 + apart * torch.tensor([-1.0, 0.0, 1.0]), torch.full((steps, 3), -60.0, dtype=torch.float64)
    return Lists(Responses(total, length, rank, mask), Responses(base, length, rank, mask), 1 - rank / 10)


def far_lists() -> Lists:
    """Sums of -1e4 and nearly 0 nats in lists of three, ordered, tied and tied throughout, and the shortest lists."""
    sums = torch.tensor(list(product((-1e4, -1e-3), repeat=6)), dtype=torch.float64)
    ranks = torch.tensor([(1, 2, 3), (1, 1, 3), (1, 1, 1), (2, 1, 0)]).repeat(16, 1)
    mask = ranks > 0
    length = torch.where(mask, torch.tensor([1, 7, 900]), 1)
    policy, reference = (Responses(part * mask, length, ranks, mask) for part in (sums[:, :3], sums[:, 3:]))
    return Lists(policy, reference, (1 - ranks / 10).double().masked_fill(~mask, math.nan))


def answers(n: int = 13, seed: int = 8) -> Answers:
    """Of 1 to 90 tokens, some nats from the reference; two thirds are desirable."""
    draw = torch.Generator().manual_seed(seed)
    label = torch.arange(n) % 3 > 0
    length = torch.randint(1, 90, (n,), generator=draw)
    total = -length * (0.05 + torch.rand(n, generator=draw, dtype=torch.float64))
    moved = 6 * torch.randn(n, generator=draw, dtype=torch.float64)
    scores = 0.5 * label + 0.5 * torch.rand(n, generator=draw, dtype=torch.float64)
    reference = SequenceLogps(total - moved, length)
    return Answers(SequenceLogps(total, length), reference, scores, label, ratios_of(length))


def ratios_of(length: Tensor) -> Tensor:
    """Density ratios from 0.05 to 12.8 in the shape of the lengths, to try a loss on; each is told by its answer's length."""
    return 0.05 * 2.0 ** (length % 9).double()


def far_answers() -> Answers:
    """Sums of -1e4 and nearly 0 nats, desirable and not, of one token and of many."""
    rows = torch.tensor(list(product((-1e4, -1e-3), (-1e4, -1e-3), (1, 900), (0, 1))), dtype=torch.float64).T
    policy, reference, length, label = rows
    length = length.long()
    far = torch.where(length > 1, 1e13, 1e-13)  # about as far as they go
    return Answers(SequenceLogps(policy, length), SequenceLogps(reference, length), 0.9 * label, label.bool(), far)


# ---------------------------------------------------------------- laws
Law = Callable[[Loss, Mapping[str, Any]], Verdict]
OWN: dict[Unit, list[tuple[str, Law]]] = {"pairs": [], "lists": [], "answers": []}
_ROWS: dict[Unit, Callable[[], Any]] = {"lists": lists, "answers": answers}
_FAR: dict[Unit, Callable[[], Any]] = {"lists": far_lists, "answers": far_answers}


def own_law(name: str, *units: Unit) -> Callable[[Law], Law]:
    """Register a law of losses of these units."""

    def register(function: Law) -> Law:
        for unit in units:
            OWN[unit].append((f"{unit}: {name}", function))
        return function

    return register


@own_law("one value each", "lists", "answers")
def _shapes(loss: Loss, settings: Mapping[str, Any]) -> Verdict:
    at = _ROWS[loss.unit]()
    for n in (1, 5):
        output = tried(loss, settings, at.take(torch.arange(n)))  # raises for other shapes
        if wrong := [f"{name} {t.dtype}" for name, t in output._asdict().items() if t.dtype != torch.float64]:
            return "fails", f"fp64 sums give {', '.join(wrong)}: digits are lost"
    return "holds", f"a loss each, and a reward an answer, of 1 and of 5 {loss.unit}"


@own_law("each stands for itself", "lists", "answers")
def _alone(loss: Loss, settings: Mapping[str, Any]) -> Verdict:
    at = _ROWS[loss.unit]()
    together, n = tried(loss, settings, at), len(at.policy.total)
    worst = 0.0
    for i in range(n):
        place = torch.tensor([i])
        alone = tried(loss, settings, at.take(place), whole=at, place=place)
        for mine, ours in zip(alone, together, strict=True):
            here = ours[place] if ours.ndim == 1 else ours[place, : mine.shape[1]]
            worst = max(worst, relative(_real(at, place, mine), _real(at, place, here)))
    if not worst <= 1e-12:
        return "fails", (
            f"a loss or slope depends on the {loss.unit} beside it, or on pads (relative {worst:.1g}): the objective would "
            "change with the micro-batch; ask for `batch` where the others count"
        )
    return "holds", f"{n} {loss.unit} together give what each gives alone{_beside(loss)}"


@own_law("the order of the rows", "answers")
def _rows_in_any_order(loss: Loss, settings: Mapping[str, Any]) -> Verdict:
    at = answers()
    order = torch.randperm(len(at.label), generator=torch.Generator().manual_seed(1))
    here, there = tried(loss, settings, at), tried(loss, settings, at.take(order))
    off = max(relative(b, a[order]) for a, b in zip(here, there, strict=True))
    if off > 1e-9:
        what = "the batch's order" if "batch" in loss.needs else "an answer's place"
        return "note", f"{what} counts (relative {off:.1g})"
    return "holds", "answers in another order give the same"


@own_law("the order in which a list is written", "lists")
def _lists_in_any_order(loss: Loss, settings: Mapping[str, Any]) -> Verdict:
    at = lists()
    width = at.policy.total.shape[1]
    draw = torch.Generator().manual_seed(2)
    keys = torch.rand(at.policy.total.shape, generator=draw) + (~at.policy.mask)  # pads stay on the right
    order = keys.argsort(1)
    turned = at.map(lambda tensor: tensor.gather(1, order))
    here, there = tried(loss, settings, at), tried(loss, settings, turned)
    tied = torch.tensor([len(set(ranks)) < len(ranks) for ranks in RANKS])
    off = {}
    for kind, which in (("ordered", ~tied), ("tied", tied)):
        mask = at.policy.mask.gather(1, order)[which]
        off[kind] = max(
            relative(there.loss[which], here.loss[which]),
            *(
                relative(b[which] * mask, a.gather(1, order)[which] * mask)
                for a, b in ((here.rewards, there.rewards), (here.slopes, there.slopes))
            ),
        )
    if off["ordered"] > 1e-9:
        return "fails", (
            f"answers of a list in another order, each with its rank, give another loss, slope or reward "
            f"(relative {off['ordered']:.1g}): read `rank`, not the place"
        )
    if off["tied"] > 1e-9:
        return "note", f"which of two tied answers stands first counts (relative {off['tied']:.1g})"
    return (
        "holds",
        f"lists of up to {width} answers, ties too, give the same in any order, and their rewards move along",
    )


@own_law("pads", "lists")
def _pads(loss: Loss, settings: Mapping[str, Any]) -> Verdict:
    at = lists()
    n, width = at.policy.total.shape
    pads = (0.0, 1, 9, False)  # of sums, lengths, ranks, and the mask
    policy, reference = (Responses(*map(_wider, part, pads)) for part in (at.policy, at.reference))
    wide = Lists(policy, reference, _wider(at.scores, math.nan))
    here, there = tried(loss, settings, at), tried(loss, settings, wide)
    off = max(
        relative(there.loss, here.loss),
        relative(there.slopes[:, :width], here.slopes),
        relative((there.rewards[:, :width] * at.policy.mask), here.rewards * at.policy.mask),
    )
    slopes = [*there.slopes[:, width:].flatten().tolist(), *here.slopes[~at.policy.mask].tolist()]
    if not off <= 1e-12 or any(slopes):
        return "fails", (
            f"three more pads change the loss, a slope or a reward (relative {off:.1g}), or a pad has a slope "
            f"(up to {max(map(abs, slopes)):.1g}): read `mask`"
        )
    return "holds", f"{n} lists with three more pads give the same, and no pad has a slope"


@own_law("the gradient is the value's", "lists", "answers")
def _derivative(loss: Loss, settings: Mapping[str, Any]) -> Verdict:
    at = _ROWS[loss.unit]()
    place = torch.arange(len(at.policy.total))
    got = tried(loss, settings, at, whole=at, place=place)
    columns = [torch.ones_like(got.slopes)] if got.slopes.ndim == 1 else [*_columns(at.policy.mask)]
    worst, floor = 0.0, 1e-4 * max(float(got.slopes.abs().max()), 1e-12)
    for moved in columns:
        up, down = (
            tried(loss, settings, _moved(at, sign * STEP * moved), whole=at, place=place).loss for sign in (1, -1)
        )
        slope = (got.slopes * moved).sum(1) if moved.ndim == 2 else got.slopes
        off = ((up - down) / (2 * STEP) - slope).abs()
        rounding = 1e-12 * (up.abs() + down.abs()) / STEP
        worst = max(worst, float(torch.where(off <= rounding, 0.0, off / slope.abs().clamp(min=floor)).max()))
    if not worst <= 1e-4:
        return (
            "fails",
            f"autograd's slope and the loss's own differ by {worst:.1g} relative: is something detached that should not be?",
        )
    return (
        "holds",
        f"autograd agrees with finite differences at {len(place)} {loss.unit}, to 1e-4 relative or what rounding leaves",
    )


@own_law("the batch's part of the gradient", "lists", "answers")
def _of_the_batch(loss: Loss, settings: Mapping[str, Any]) -> Verdict:
    if "batch" not in loss.needs:
        return "holds", "no loss depends on the batch"
    at = _ROWS[loss.unit]()
    got, worst = tried(loss, settings, at), 0.0
    real = torch.ones_like(at.policy.total, dtype=torch.bool) if loss.unit == "answers" else at.policy.mask
    for place in real.nonzero():
        moved = torch.zeros_like(at.policy.total).index_put(tuple(place), torch.tensor(STEP, dtype=torch.float64))
        up, down = (float(tried(loss, settings, _moved(at, sign * moved)).loss.sum()) for sign in (1, -1))
        worst = max(worst, abs((up - down) / (2 * STEP) - float(got.slopes[tuple(place)])))
    worst /= max(float(got.slopes.abs().max()), 1e-12)
    if worst > 1e-4:
        return "note", (
            f"a step holds the batch's values fixed; the slope of the whole batch's mean loss differs by {worst:.1g} of the "
            "largest"
        )
    return "holds", "the gradient is that of the whole batch's mean loss, to 1e-4"


@own_law("it pulls the right way", "lists", "answers")
def _direction(loss: Loss, settings: Mapping[str, Any]) -> Verdict:
    if loss.unit == "lists":
        at = misranked()
        slopes = tried(loss, settings, at, kl=0.0).slopes
        best, worst = (slopes[end].view(len(slopes), -1).sum(1) for end in ends(at.policy))
        right, drawn = (best < 0) & (worst > 0), best - worst < 0
        where = f"of {len(right)} lists ranked the wrong way"
        what = "a step raises the best answer and lowers the worst"
    else:
        rows = answers()
        slopes = tried(loss, settings, rows, kl=0.0).slopes
        right = drawn = torch.where(rows.label, slopes < 0, slopes > 0)
        where, what = f"of {len(right)} answers", "a step raises a desirable answer and lowers another"
    if not drawn.any():
        return "fails", f"at none {where} {what}: a wrong sign?"
    if not right.all():
        return "note", f"at {int(right.sum())} {where} {what}"
    return "holds", f"at all {where} {what}"


@own_law("finite at the extremes", "lists", "answers")
def _finite(loss: Loss, settings: Mapping[str, Any]) -> Verdict:
    at = _FAR[loss.unit]()
    parts = [at]
    if loss.unit == "answers":  # batches of one kind too
        parts += [at.take(side.nonzero()[:, 0]) for side in (at.label, ~at.label)]
    for dtype, kl, part in product(
        (torch.float32, torch.float64), (0.0, 1e4, -1e4) if "kl" in loss.needs else (0.0,), parts
    ):
        policy, reference = (p._replace(total=p.total.to(dtype)) for p in part[:2])
        here = part._replace(policy=policy, reference=reference)
        got = tried(loss, settings, here, kl=kl)
        for what, values in got._asdict().items():
            bad = ~_real(here, torch.arange(len(got.loss)), values).isfinite()
            if bad.any():
                row = int(bad.nonzero()[0, 0])
                sums = ", ".join(
                    f"{name} {p.total[row].tolist()}" for name, p in (("policy", policy), ("reference", reference))
                )
                kind = (
                    f"ranks {policy.rank[row].tolist()}" if loss.unit == "lists" else f"label {bool(part.label[row])}"
                )
                return "fails", f"{what} is not finite in {str(dtype).removeprefix('torch.')} at {sums}, {kind}"
    return "holds", f"value, rewards and slopes at {len(at.policy.total)} extreme {loss.unit}, fp32 and fp64"


@own_law("it uses what it asks for", "lists", "answers")
def _needs(loss: Loss, settings: Mapping[str, Any]) -> Verdict:
    at = _ROWS[loss.unit]()
    here, shift = tried(loss, settings, at), torch.linspace(-3, 4, at.policy.total.numel(), dtype=torch.float64).sin()
    shift = shift.view(at.policy.total.shape) * (at.policy.mask if loss.unit == "lists" else 1)
    all_of = torch.arange(len(here.loss))
    known = at._replace(reference=at.reference._replace(total=at.reference.total - 2 * shift))

    def changed() -> Iterator[tuple[str, Tried]]:
        yield "reference", tried(loss, settings, known)
        yield "kl", tried(loss, settings, at, kl=9.0)
        yield "tokens", tried(loss, settings, at, phase=2.0)
        yield "value", tried(loss, settings, at, value_phase=2.0)
        yield "scores", tried(loss, settings, at._replace(scores=at.scores * 0.5 + shift / 10))
        yield "batch", tried(loss, settings, at, whole=_moved(known, shift), place=all_of)
        if loss.unit == "answers":
            yield "label", tried(loss, settings, at._replace(label=~at.label))
            yield "density_ratio", tried(loss, settings, at._replace(density_ratio=at.density_ratio.flip(0)))

    unused = [name for name, there in changed() if name in loss.needs and torch.equal(there.loss, here.loss)]
    if unused:
        return "fails", f"the loss asks for {' and '.join(unused)} and does not use it: drop the parameter"
    return "holds", f"asks for {', '.join(sorted(loss.needs))}"


def _columns(mask: Tensor) -> Iterator[Tensor]:
    """One answer of each list at a time, (prompts, k) of 0 and 1."""
    for j in range(mask.shape[1]):
        column = torch.zeros(mask.shape, dtype=torch.float64)
        column[:, j] = mask[:, j].double()
        yield column


def _moved(at: Any, by: Tensor) -> Any:
    return at._replace(policy=at.policy._replace(total=at.policy.total + by))


def _wider(tensor: Tensor, pad: float) -> Tensor:
    return torch.cat([tensor, torch.full((len(tensor), 3), pad, dtype=tensor.dtype)], dim=1)


def _real(at: Any, rows: Tensor, values: Tensor) -> Tensor:
    """The values of these rows, 0 at pads."""
    if values.ndim == 1:
        return values
    return values.masked_fill(~at.policy.mask[rows, : values.shape[1]], 0)


def _beside(loss: Loss) -> str:
    return ", beside the same batch" if "batch" in loss.needs else ""


def relative(a: Tensor, b: Tensor) -> float:
    """The largest difference, relative to the largest value; inf where one is not finite."""
    off = float(((a - b).abs().max() / torch.maximum(b.abs().max(), torch.tensor(1e-30, dtype=b.dtype))).detach())
    return off if math.isfinite(off) else math.inf
