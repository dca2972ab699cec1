"""The objectives that the loop minimises: a preference loss of pairs, lists or answers, and the likelihood of demonstrations
(SFT).

An objective turns sums of log-probabilities into a gradient by these sums and into the metrics of a step. Metrics are sums
over items; the loop adds them up over processes, and the objective makes means of the whole batch of them. Their names
(`rewards/*`, `logps/*`) are the ones that dashboards expect.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from pobench.columns import SATURATED
from pobench.data.spool import Mapped
from pobench.errors import PobenchError
from pobench.model import layouts
from pobench.model.policy_sums import SumScorer
from pobench.model.vocabulary import OF_REFERENCE, Beside, Kind
from pobench.registry import STILL, Loss
from pobench.training.density_ratio import DensityRatios
from pobench.training.reference import EveryStep, Moving, ReferenceSums
from pobench.types import Entropy, Group, Item, State, TokenLogps, by_token
from pobench.units import ROWS, Rows, Told

STEP_METRICS = (
    "loss",
    "rewards/chosen",
    "rewards/rejected",
    "rewards/margins",
    "rewards/accuracies",
    "logps/chosen",
    "logps/rejected",
    "logps/chosen_per_token",
    "logps/rejected_per_token",
    "saturated",
)


# The metrics that are means over the rows that tell of a chosen answer, and over those that tell of a rejected one. The others
# are means over all.
_CHOSEN = ("rewards/chosen", "logps/chosen", "logps/chosen_per_token")
_REJECTED = ("rewards/rejected", "logps/rejected", "logps/rejected_per_token")


def step_sums(told: Told, weight: Tensor) -> Tensor:
    """(len(STEP_METRICS),) fp64 sums over the rows of a micro-batch.

    weight: (rows,) the sum of `|∂loss/∂ log π|` over a row's responses, per nat. A tie of rewards counts half.
    """
    won = (told.chosen_reward > told.rejected_reward).double()
    tied = (told.chosen_reward == told.rejected_reward).double()
    rows = (
        told.loss,
        told.chosen_reward,
        told.rejected_reward,
        told.chosen_reward - told.rejected_reward,
        won + tied / 2,
        told.chosen,
        told.rejected,
        told.chosen_mean,
        told.rejected_mean,
        (weight < SATURATED).double(),
    )
    return torch.stack([row.detach().double().sum() for row in rows])


def step_means(sums: Sequence[float], rows: int, chosen: int, rejected: int) -> dict[str, float]:
    """STEP_METRICS of a whole batch from its sums. chosen, rejected: how many of its rows tell of such an answer.

    Where a row tells of one answer alone, the margin is the difference of the means, and no accuracy is known.
    """
    divisors = {**dict.fromkeys(_CHOSEN, chosen), **dict.fromkeys(_REJECTED, rejected)}
    means = {
        name: total / n if (n := divisors.get(name, rows)) else math.nan
        for name, total in zip(STEP_METRICS, sums, strict=True)
    }
    if chosen == rejected == rows:
        return means
    margin = means["rewards/chosen"] - means["rewards/rejected"]
    return {**means, "rewards/margins": margin, "rewards/accuracies": math.nan}


class Measured(NamedTuple):
    """A micro-batch's result. slope: d objective / d value, in the shape of the values, where the objective is a sum over
    items; by_prompt: the same by the value model's. logged: (names,) fp64 sums."""

    slope: Tensor
    logged: Tensor
    by_prompt: Tensor | None = None

    @property
    def slopes(self) -> Iterator[Tensor]:
        """By each output of the forward pass."""
        yield self.slope
        if self.by_prompt is not None:
            yield self.by_prompt


class Objective(Protocol):
    """What the loop minimises. groups: the sequences of each item. names: the sums that are logged. unit: what `size` counts.
    per_token: whether it is measured by each token's log-probability, not by the responses' sums. valued: whether it is
    measured by each prompt's value, too, so that a value model is trained beside the policy. state: what it carries over steps,
    moving: weights beside the policy's that the steps move, by names of their own; a checkpoint stores both."""

    groups: Sequence[Group]
    names: Sequence[str]
    unit: str
    per_token: bool
    valued: bool
    state: State

    @property
    def moving(self) -> Mapping[str, Tensor]: ...

    def follow(self, policy: nn.Module) -> None:
        """Called once, before anything else, in every process, with the policy where it is trained."""
        ...

    def start(self, scorer: SumScorer, first: Sequence[int], *, exact: bool) -> float:
        """Called once, before step 1, in every process. first: indices of the first batch. exact: fp32 throughout.
        Returns the mean |policy - reference| a token, in nats; nan without a reference."""
        ...

    def begin_step(self, scorer: SumScorer, batch: Sequence[int], step: int) -> dict[str, float]:
        """Called before a step's first micro-batch, in every process. batch: indices of all its items. step: counted from 1.
        Returns further metrics to log."""
        ...

    def vocabulary(self, batch: layouts.Batch) -> Beside | None:
        """Called before each micro-batch's forward pass, in every process: what it computes beside the tokens'
        log-probabilities."""
        ...

    def end_step(self, policy: nn.Module, step: int) -> None:
        """Called when a step has changed the weights, in every process."""
        ...

    def size(self, batch: Sequence[int]) -> int:
        """The divisor of the objective's sum over a whole optimiser batch."""
        ...

    def means(self, sums: Sequence[float], batch: Sequence[int]) -> dict[str, float]:
        """What a step logs, `loss` among it, from the sums of `names` over the whole batch."""
        ...

    def measure(self, items: list[int], values: Tensor, of_prompts: Tensor | None = None) -> Measured:
        """values: (responses,) nats of these items' responses, in order, or by token, (tokens,); below those, what `vocabulary`
        asked for, (1 + kinds, tokens). of_prompts: (responses,) the value model's, where it is `valued`. Nothing is sent back
        through their graphs."""
        ...

    def describe(self, batch: Sequence[int]) -> str:
        """The items of a batch, for a message."""
        ...


def mismatched_groups(items: Sequence[Item], mismatched: Sequence[int]) -> list[Group]:
    """For each item, its prompt with an answer of another one, `mismatched[i]`. KTO estimates its kl from them.

    Of a pair the borrowed answer is alternately a chosen and a rejected one, so the estimate covers both.
    """
    borrowed = [items[j].responses for j in mismatched]
    return [Group(item.prompt, (of[i % len(of)],)) for i, (item, of) in enumerate(zip(items, borrowed, strict=True))]


class PreferenceObjective:
    """A registered loss of pairs, lists or single answers. It gets what its signature names, see `pobench.types.Inputs`,
    `ListInputs` and `AnswerInputs`. One of lists or of answers gets pairs read as those, where the items are pairs."""

    def __init__(
        self,
        items: Sequence[Item],
        loss: Loss,
        settings: Mapping[str, Any],
        reference: ReferenceSums | EveryStep | None = None,
        mismatched: Sequence[int] | None = None,
        seed: int = 0,
        begins_elsewhere: bool = False,
        density_ratios: DensityRatios | None = None,
    ) -> None:
        """settings: the loss's own. reference: the reference sums of the items' responses, for a loss that needs them, and of
        `mismatched_groups`, for a loss that needs `kl`; or what computes them, batch by batch. mismatched: for each item the
        index of the item that lends its answer, for a loss that needs `kl`. seed: of what is drawn anew in every step.
        begins_elsewhere: whether training begins from another model than the reference. density_ratios: of the prompts of
        single answers, for a loss that asks for `density_ratio`.

        Raises PobenchError if the loss does not read such items, or needs sums or scores that are missing.
        """
        self.items, self.loss, self.settings, self.reference = items, loss, settings, reference
        self.begins_elsewhere = begins_elsewhere
        self.rows: Rows = ROWS[loss.unit](items)
        self.unit: str = self.rows.name
        self.groups: Sequence[Group] = Mapped(Group.of, items)
        self.borrowed: list[Group] = []
        self.known: Tensor | None = None  # (responses,) of all items, as `Rows` has them
        self.known_borrowed: Tensor | None = None
        self.kl: Tensor | None = None
        self.kinds = kinds_of(loss)
        self.per_token = bool(self.kinds) or "tokens" in loss.needs
        self.valued = loss.trains_value
        self.names: Sequence[str] = (*STEP_METRICS, *(["value"] if self.valued else []))
        self.largest_entropy = math.nan
        self.step_tokens: dict[int, Tensor] = {}  # item → its tokens under a reference that computes them in every step
        self.batch: Any = None  # of this step
        self.places: dict[int, Tensor] = {}  # item → its places in that batch
        self.state: State = {}
        self.scores = self.rows.ratings(loss.name) if "scores" in loss.needs else None
        self.density_ratio = self._ratios(density_ratios) if "density_ratio" in loss.needs else None
        self.seed, self.step = seed, 0
        if not loss.reads_reference:
            return
        if reference is None:
            raise PobenchError(f"{loss.name} needs {' and '.join(sorted(loss.needs))}, and there are no reference sums")
        if loss.moves_reference and not isinstance(reference, Moving):
            raise PobenchError(f"{loss.name} moves its reference; pass `reference`, a model in `Moving`")
        self.known = torch.full((len(self.rows.lengths),), math.nan)
        if "kl" in loss.needs:
            if mismatched is None:
                raise PobenchError(f"{loss.name} needs kl; pass `mismatched`, the items that lend their answers")
            self.borrowed = mismatched_groups(items, mismatched)
            self.known_borrowed = torch.full((len(items),), math.nan)
        if isinstance(reference, ReferenceSums):
            if loss.runs_reference:
                raise PobenchError(
                    f"{loss.name} compares whole distributions with the reference's, which are not stored; "
                    "pass a frozen start model, `EveryStep`"
                )
            self._read_reference(range(len(items)))
            self._read_borrowed(range(len(items)))

    def _ratios(self, density_ratios: DensityRatios | None) -> Tensor:
        """(responses,) density ratios of the prompts of all items; 1 where the items are pairs, whose answers share their
        prompts. Raises PobenchError where there are none."""
        if self.rows.pairs:
            return torch.ones(len(self.rows.lengths))
        if density_ratios is None:
            raise PobenchError(
                f"{self.loss.name} needs density_ratio; pass `density_ratios`, those of the items' prompts"
            )
        return density_ratios.of(item.prompt for item in self.items).float()

    def _read_reference(self, items: Sequence[int]) -> None:
        """Take the reference sums of these items: of all at once from a store, of a batch from a model in its step."""
        if self.reference is None or self.known is None:
            return
        groups, at = [self.groups[i] for i in items], self.rows.of(items)
        if isinstance(self.reference, EveryStep) and self.per_token and "reference" in self.loss.needs:
            self._take_tokens(items, self.reference.tokens(groups))
        else:
            self.known[at] = self.reference.of(groups).float()

    def _take_tokens(self, items: Sequence[int], tokens: Tensor) -> None:
        """tokens: (tokens,) nats of these items under the reference."""
        assert self.known is not None
        at, lengths = self.rows.of(items), [self.groups[i].learnt_tokens for i in items]
        self.known[at] = _sums(tokens, self.rows.lengths[at])
        self.step_tokens |= dict(zip(items, tokens.split(lengths), strict=True))

    def _read_borrowed(self, items: Sequence[int]) -> None:
        """As `_read_reference`, of the mismatched items."""
        if self.reference is not None and self.known_borrowed is not None:
            self.known_borrowed[list(items)] = self.reference.of([self.borrowed[i] for i in items]).float()

    @property
    def moving(self) -> Mapping[str, Tensor]:
        return self.reference.weights if isinstance(self.reference, Moving) else {}

    def follow(self, policy: nn.Module) -> None:
        if isinstance(self.reference, Moving):
            self.reference.follow(policy, leads=self.loss.leads_reference)

    def start(self, scorer: SumScorer, first: Sequence[int], *, exact: bool) -> float:
        """Raises PobenchError if the reference sums are not those of the policy before step 1, or if the reference runs in
        another layout."""
        self.largest_entropy = math.log(scorer.policy.vocabulary)
        if self.known is None or self.reference is None or self.begins_elsewhere:
            return math.nan
        probed = list(first[:8])
        if isinstance(self.reference, EveryStep):
            ours, theirs = scorer.rows, self.reference.scorer.rows
            if self.loss.runs_reference and ours != theirs:
                raise PobenchError(
                    f"{self.loss.name} compares the policy with the reference in the same rows, and their layouts differ: "
                    f"{ours}, {theirs}; set train.layout: padded"
                )
            self._read_reference(probed)
            self._read_borrowed(probed)
        sums, at = scorer.sums([self.groups[i] for i in probed]), self.rows.of(probed)
        gap = float(((sums - self.known[at]).abs() / self.rows.lengths[at]).mean())
        tolerance = 1e-4 if exact else 5e-2  # bf16 rounds differently in rows of other widths
        if not gap < tolerance:
            raise PobenchError(
                f"before step 1 policy and reference differ by {gap:.2g} nats a token (allowed {tolerance:g}): the "
                f"reference sums, computed in {self.reference.arithmetic}, are not those of this model as it is trained, "
                f"in {scorer.arithmetic}; compute them anew from the start weights"
            )
        return gap

    def begin_step(self, scorer: SumScorer, batch: Sequence[int], step: int) -> dict[str, float]:
        """Compute what the loss asks for of the whole batch. kl: the unclamped mean of log π - log π_ref over its mismatched
        items, in nats, detached."""
        self.step = step
        if isinstance(self.reference, EveryStep):
            self.step_tokens = {}
            if "reference" not in self.kinds or "batch" in self.loss.needs:  # else they come with the micro-batches
                self._read_reference(batch)
            self._read_borrowed(batch)
        if "batch" in self.loss.needs:
            self._take_batch(scorer, batch)
        if self.known_borrowed is None:
            return {"kl": math.nan}
        sums = scorer.sums([self.borrowed[i] for i in batch])
        kl = (sums - self.known_borrowed[list(batch)].double()).mean()
        self.kl = kl.to(scorer.accelerator.device).float()
        return {"kl": float(self.kl)}

    def vocabulary(self, batch: layouts.Batch) -> Beside | None:
        if not self.kinds:
            return None
        if OF_REFERENCE.isdisjoint(self.kinds):
            return Beside(self.kinds)
        assert isinstance(self.reference, EveryStep)  # as it was asked for
        return Beside(self.kinds, self.reference.positions(batch))

    def end_step(self, policy: nn.Module, step: int) -> None:
        """Move the reference, if the loss does and this is a step behind which it moves."""
        move = self.loss.move_of_reference(step, self.settings)
        if isinstance(self.reference, Moving) and move != STILL:
            self.reference.take(policy, move)

    def _take_batch(self, scorer: SumScorer, batch: Sequence[int]) -> None:
        """Score the whole batch without gradient, and take the state a step further."""
        device = scorer.accelerator.device
        sums = scorer.sums([self.groups[i] for i in batch]).float().to(device)
        label = self.rows.label(batch)
        self.batch = self.loss.batch_of(
            self.rows.logps(batch, sums),
            self._reference_of(batch, device),
            self.settings,
            self.state,
            None if label is None else label.to(device),
        )
        places = self.rows.places(batch).split([len(self.rows.places([i])) for i in batch])
        self.places, self.state = dict(zip(batch, places, strict=True)), self.batch.state

    def _reference_of(self, items: Sequence[int], device: torch.device) -> Any:
        return None if self.known is None else self.rows.logps(items, self.known[self.rows.of(items)].to(device))

    def _tokens_of(self, items: Sequence[int], policy: Tensor) -> TokenLogps:
        """policy: (tokens,) nats."""
        known = None
        if "reference" in self.loss.needs and self.reference is not None:
            every_step = isinstance(self.reference, EveryStep)
            groups = [self.groups[i] for i in items]
            known = torch.cat([self.step_tokens[i] for i in items]) if every_step else self.reference.tokens(groups)
            known = known.to(policy.device)
        lengths = self.rows.shaped(items, self.rows.lengths[self.rows.of(items)], 0)
        draw = torch.tensor([drawn_number(self.seed, self.step, self.items[i].id) for i in items])
        return TokenLogps.of(lengths.to(policy.device), policy, known)._replace(draw=draw)

    def size(self, batch: Sequence[int]) -> int:
        return len(batch)

    def measure(self, items: list[int], values: Tensor, of_prompts: Tensor | None = None) -> Measured:
        leaf, at = values.detach().requires_grad_(), self.rows.of(items)
        leaves = [leaf] if of_prompts is None else [leaf, of_prompts.detach().requires_grad_()]
        by_kind = dict(zip(self.kinds, leaf[1:], strict=True)) if self.kinds else {}
        own = leaf[0] if self.kinds else leaf
        if "reference" in by_kind:
            self._take_tokens(items, by_kind["reference"].detach().cpu())
        lengths = self.rows.lengths[at].to(leaf.device)
        policy = self.rows.logps(items, _sums(own, lengths) if self.per_token else own)
        beside = {**self._beside(items, own), **self._of_vocabulary(items, by_kind)}
        if self.valued:
            beside["value"] = self.rows.of_prompts(items, leaves[1])
        inputs = self.rows.inputs(items, policy, self._reference_of(items, leaf.device), beside)
        output = self.loss.on(inputs, **self.settings)
        told = self.rows.told(items, policy, output)
        slope, *by_prompt = torch.autograd.grad(told.loss.sum(), leaves)
        pull = (slope[0] if self.kinds else slope).abs()
        if self.per_token:
            pull = _sums(pull, lengths) / lengths  # the mean of a response's tokens
        logged = step_sums(told, _sums(pull, self.rows.counts[items].to(leaf.device)))
        if not by_prompt:
            return Measured(slope, logged)
        first = leaves[1].detach()[lengths.new_tensor(self.rows.firsts(items))]
        return Measured(slope, torch.cat([logged, first.double().sum()[None]]), by_prompt[0])

    def _beside(self, items: list[int], values: Tensor) -> dict[str, Any]:
        """What the loss may ask for beside sums: kl, tokens, scores, batch, density_ratio."""
        tokens = self._tokens_of(items, values) if "tokens" in self.loss.needs else None
        scores, batch = None, None
        if self.scores is not None:
            scores = self.rows.shaped(items, self.scores[self.rows.of(items)], math.nan).to(values)
        if self.batch is not None:
            batch = self.batch._replace(place=torch.cat([self.places[i] for i in items]).to(values.device))
        beside = {"kl": self.kl, "tokens": tokens, "scores": scores, "batch": batch}
        if self.density_ratio is not None:
            beside["density_ratio"] = self.density_ratio[self.rows.of(items)].to(values)
        return beside

    def _of_vocabulary(self, items: list[int], by_kind: Mapping[Kind, Tensor]) -> dict[str, Any]:
        """The fields of `Vocabulary` that the loss asks for. by_kind: (tokens,) each."""
        if not by_kind:
            return {}
        device = next(iter(by_kind.values())).device
        lengths = self.rows.shaped(items, self.rows.lengths[self.rows.of(items)], 0).to(device)
        return vocabulary_inputs(lengths, by_kind, self.largest_entropy)

    def means(self, sums: Sequence[float], batch: Sequence[int]) -> dict[str, float]:
        means = step_means(sums[: len(STEP_METRICS)], len(batch), *self.rows.divisors(batch))
        return {**means, "value": sums[-1] / len(batch)} if self.valued else means

    def describe(self, batch: Sequence[int]) -> str:
        return f"{self.unit} in the batch: {_some([self.items[i].id for i in batch])}"


def _sums(values: Tensor, counts: Tensor) -> Tensor:
    """(responses,) sums of (tokens,) values, added up as the model adds them; or (items,) ones of (responses,) values.
    counts: how many are added up for each."""
    return values.new_zeros(len(counts)).index_add(0, torch.repeat_interleave(counts), values)


def vocabulary_inputs(lengths: Tensor, by_kind: Mapping[Kind, Tensor], largest: float) -> dict[str, Any]:
    """The fields of `Vocabulary` that are made of these kinds. lengths: (pairs, 2). by_kind: (tokens,) each. largest: of an
    entropy."""
    padded = {kind: by_token(lengths, values) for kind, values in by_kind.items()}
    found: dict[str, Any] = {"forward_kl": padded["forward_kl"]} if "forward_kl" in padded else {}
    if "collision" in padded:
        found["collision"] = padded["collision"].detach()
    if "entropy" in padded:
        of_reference = padded["reference_entropy"].detach() if "reference_entropy" in padded else None
        found["entropy"] = Entropy(padded["entropy"].detach(), of_reference, largest)
    return found


def kinds_of(loss: Loss) -> tuple[Kind, ...]:
    """What the head computes for a loss beside the tokens' log-probabilities."""
    asked: dict[Kind, bool] = {
        "collision": "collision" in loss.needs,
        "entropy": "entropy" in loss.needs,
        "reference": loss.runs_reference,
        "reference_entropy": {"entropy", "reference"} <= loss.needs,
        "forward_kl": "forward_kl" in loss.needs,
    }
    return tuple(kind for kind, is_asked in asked.items() if is_asked)


def drawn_number(seed: int, step: int, item: str) -> int:
    """A random number below 2^63 for an item in a step, the same in whatever micro-batch or process the item is."""
    digest = hashlib.sha256(f"{seed} {step} {item}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


class LikelihoodObjective:
    """loss = -Σ log π(learnt token) / learnt tokens. Both sums run over the whole optimiser batch, so each token has the same
    weight however the batch is split."""

    names: Sequence[str] = ("loss",)
    unit = "tokens"
    per_token = valued = False

    def __init__(self, groups: Sequence[Group]) -> None:
        """groups: each has one response; `Group.learnt` may select a part of it."""
        self.groups = groups
        self.state: State = {}
        self.moving: Mapping[str, Tensor] = {}

    def follow(self, policy: nn.Module) -> None:
        pass

    def start(self, scorer: SumScorer, first: Sequence[int], *, exact: bool) -> float:
        return math.nan

    def begin_step(self, scorer: SumScorer, batch: Sequence[int], step: int) -> dict[str, float]:
        return {}

    def vocabulary(self, batch: layouts.Batch) -> Beside | None:
        return None

    def end_step(self, policy: nn.Module, step: int) -> None:
        pass

    def size(self, batch: Sequence[int]) -> int:
        return sum(self.groups[i].learnt_tokens for i in batch)

    def means(self, sums: Sequence[float], batch: Sequence[int]) -> dict[str, float]:
        return {name: total / self.size(batch) for name, total in zip(self.names, sums, strict=True)}

    def measure(self, items: list[int], values: Tensor, of_prompts: Tensor | None = None) -> Measured:
        return Measured(torch.full_like(values, -1.0), -values.detach().double().sum()[None])

    def describe(self, batch: Sequence[int]) -> str:
        return f"conversations in the batch: {_some([str(i + 1) for i in batch])}"


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:8]) + (" …" if len(names) > 8 else "")
