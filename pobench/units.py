"""What a loss is given, by its unit: pairs, ranked lists or labelled answers.

`Rows` of a unit make a loss's inputs of rows of training data and of their responses' values. Where pairs are all there is
(held-out pairs, stored sums), `read` makes the inputs of a loss of lists or of answers of those of a loss of pairs: a pair is a
list of two, or two answers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from pobench.errors import PobenchError
from pobench.types import (
    AnswerBatch,
    AnswerInputs,
    AnswerOutput,
    Batch,
    Inputs,
    Item,
    ListBatch,
    ListInputs,
    ListOutput,
    Logps,
    LossOutput,
    Pair,
    Responses,
    SequenceLogps,
    State,
    TokenAnswer,
    TokenList,
    TokenLogps,
    TokenPair,
    Unit,
)


# ---------------------------------------------------------------- pairs read as lists or as answers
def pair_of(totals: Tensor, lengths: Tensor) -> Pair:
    """(2 × pairs,) in the order chosen, rejected, chosen, … → a Pair of (pairs,) each."""
    return Pair(SequenceLogps(totals[0::2], lengths[0::2]), SequenceLogps(totals[1::2], lengths[1::2]))


def as_list(pair: Pair) -> Responses:
    """Each pair as a list of two: chosen, of rank 1, and rejected, of rank 2."""
    total, length = (torch.stack(sides, dim=1) for sides in zip(*pair, strict=True))
    rank = torch.tensor([1, 2], device=total.device).expand(total.shape)
    return Responses(total, length, rank, torch.ones_like(rank, dtype=torch.bool))


def as_answers(pair: Pair) -> SequenceLogps:
    """(2 × pairs,) answers in the order chosen, rejected, chosen, …"""
    return SequenceLogps(*(torch.stack(sides, dim=1).flatten() for sides in zip(*pair, strict=True)))


def read(unit: Unit, given: Inputs) -> Inputs | ListInputs | AnswerInputs:
    """The inputs of a loss of a unit, made of those of pairs. Its `batch` is that of the unit already (`Loss.batch_of`)."""
    batch: Any = given.batch
    if unit == "pairs":
        return given
    if unit == "lists":
        known = None if given.reference is None else as_list(given.reference)
        return ListInputs(as_list(given.policy), known, given.tokens, given.scores, batch, given.value)
    answers, known_answers = as_answers(given.policy), None if given.reference is None else as_answers(given.reference)
    scores, tokens = None if given.scores is None else given.scores.flatten(), given.tokens
    if tokens is not None:
        known_tokens = None if tokens.reference is None else tokens.reference.flatten(0, 1)
        tokens = TokenLogps(tokens.policy.flatten(0, 1), known_tokens, tokens.mask.flatten(0, 1))
    value = None if given.value is None else given.value.repeat_interleave(2)
    labels, ratios = _labels(answers.total), torch.ones_like(answers.total)  # a pair's answers share their prompt
    return AnswerInputs(answers, labels, known_answers, given.kl, tokens, scores, batch, ratios, value)


def _labels(answers: Tensor) -> Tensor:
    """Of answers in the order chosen, rejected, chosen, …"""
    return torch.tensor([True, False], device=answers.device).repeat(len(answers) // 2)


def of_pairs(output: ListOutput | AnswerOutput) -> LossOutput:
    """What a loss of lists or of answers gave, by pair: a list's loss, or the mean of the two answers' losses."""
    if isinstance(output, ListOutput):
        return LossOutput(output.loss, *output.rewards.unbind(1))
    return LossOutput(output.loss.view(-1, 2).mean(1), output.reward[0::2], output.reward[1::2])


def places_in(unit: Unit, pairs: Tensor) -> Tensor:
    """The places of these pairs' lists or answers in a batch of them. pairs: places in a batch of pairs."""
    return torch.stack([2 * pairs, 2 * pairs + 1], dim=1).flatten() if unit == "answers" else pairs


def whole_batch(unit: Unit, policy: Logps, reference: Any, label: Tensor | None, state: State) -> Any:
    """A whole optimiser batch, detached, every unit in its place. policy, reference: of pairs or of the unit. label: of answers
    that are not of pairs."""
    if isinstance(policy, Pair) and unit != "pairs":
        convert: Callable[[Pair], Logps] = as_list if unit == "lists" else as_answers
        policy, reference = convert(policy), None if reference is None else convert(reference)
    if isinstance(policy, Pair):
        detached = Pair(*(side._replace(total=side.total.detach()) for side in policy))
        total = policy.chosen.total
        return Batch(detached, reference, torch.arange(len(total), device=total.device), state)
    policy = policy._replace(total=policy.total.detach())
    place = torch.arange(len(policy.total), device=policy.total.device)
    if isinstance(policy, Responses):
        return ListBatch(policy, reference, place, state)
    return AnswerBatch(policy, reference, _labels(policy.total) if label is None else label, place, state)


# ---------------------------------------------------------------- rows of training data
class Told(NamedTuple):
    """What a step logs of rows, (rows,) each: the loss, and of the chosen and the rejected answer the reward, the summed
    log-probability in nats, and its mean by token. Without gradient but for the loss."""

    loss: Tensor
    chosen_reward: Tensor
    rejected_reward: Tensor
    chosen: Tensor
    rejected: Tensor
    chosen_mean: Tensor
    rejected_mean: Tensor


class Rows:
    """Rows of training data as a loss of pairs reads them. The values of all responses stand in one flat tensor, row by row;
    those of some rows are picked by `of`, and take the loss's shape by `shaped`."""

    unit: ClassVar[Unit] = "pairs"
    kinds: ClassVar[tuple[type, ...]] = (TokenPair,)

    def __init__(self, items: Sequence[Item]) -> None:
        """Raises PobenchError for rows that a loss of this unit does not read, and for rows of two kinds."""
        kinds = {type(item) for item in items}
        if len(kinds) > 1 or not kinds <= {*self.kinds}:
            names, allowed = (" and ".join(sorted(k.__name__ for k in of)) for of in (kinds, self.kinds))
            raise PobenchError(f"a loss of {self.unit} reads rows of one kind, {allowed}; got {names}")
        self.items = items
        self.pairs = kinds <= {TokenPair}  # whether each row is a pair
        self.counts = torch.tensor([len(item.responses) for item in items])
        self.lengths = torch.tensor([len(r) for item in items for r in item.responses])
        self._first = (self.counts.cumsum(0) - self.counts).tolist()

    def of(self, rows: Iterable[int]) -> Tensor:
        """(responses,) where the responses of these rows stand among all."""
        return torch.cat([torch.arange(self._first[i], self._first[i] + int(self.counts[i])) for i in rows])

    def firsts(self, rows: Sequence[int]) -> list[int]:
        """(rows,) where the first response of each stands among those of all these rows."""
        return [0, *self.counts[list(rows)].cumsum(0).tolist()][:-1]

    def shaped(self, rows: Sequence[int], values: Tensor, pad: float = 0.0) -> Tensor:
        """(responses,) of these rows → in the shape of the loss's own: here (pairs, 2)."""
        return values.view(-1, 2)

    def of_prompts(self, rows: Sequence[int], values: Tensor) -> Tensor:
        """(responses,) of these rows, the same for all to one prompt → as the loss gets them, one a pair or a list."""
        return self.shaped(rows, values)[:, 0]

    def logps(self, rows: Sequence[int], totals: Tensor) -> Any:
        """The loss's first input, from these rows' sums, (responses,)."""
        return pair_of(totals, self.lengths[self.of(rows)].to(totals.device))

    def inputs(self, rows: Sequence[int], policy: Any, reference: Any, beside: dict[str, Any]) -> Any:
        """What a loss may ask for of these rows. policy, reference: of `logps`. beside: kl, tokens, scores, batch, value, and
        of answers density_ratio."""
        return Inputs(policy, reference, **beside)

    def places(self, rows: Sequence[int]) -> Tensor:
        """The places in a batch of these rows of what the loss has one value of, row by row."""
        return torch.arange(len(rows))

    def label(self, rows: Sequence[int]) -> Tensor | None:
        """Of answers, (answers,)."""
        return None

    def told(self, rows: Sequence[int], policy: Any, output: Any) -> Told:
        """policy: of `logps`. output: what the loss returned for these rows."""
        return _told(policy, output)

    def divisors(self, rows: Sequence[int]) -> tuple[int, int]:
        """How many of these rows tell of a chosen answer, and of a rejected one."""
        return len(rows), len(rows)

    def ratings(self, name: str) -> Tensor:
        """(responses,) fp64, of all rows. name: of the loss that needs them, for a message. Raises PobenchError that names rows
        without."""
        of_rows = [item.score if isinstance(item, TokenAnswer) else item.scores for item in self.items]
        if missing := [item.id for item, scores in zip(self.items, of_rows, strict=True) if scores is None]:
            some = ", ".join(missing[:8]) + (" …" if len(missing) > 8 else "")
            raise PobenchError(
                f"{name} needs scores, and {len(missing)} of {len(of_rows)} {self.name} have none: {some}"
            )
        flat = [s for scores in of_rows for s in (scores if isinstance(scores, tuple) else (scores,))]
        return torch.tensor(flat, dtype=torch.float64)

    @property
    def name(self) -> Unit:
        """What the rows are."""
        return "pairs" if self.pairs else self.unit


def _told(policy: Pair, output: LossOutput) -> Told:
    sides = (policy.chosen.total, policy.rejected.total, policy.chosen.mean, policy.rejected.mean)
    return Told(*output, *(side.detach() for side in sides))


class ListRows(Rows):
    """Rows as a loss of lists reads them: lists, padded on the right to the longest of the rows at hand; or pairs, each a list
    of two. Chosen are the answers of the best rank, rejected those of the worst: their mean, where several tie."""

    unit = "lists"
    kinds = (TokenPair, TokenList)

    def __init__(self, items: Sequence[Item]) -> None:
        super().__init__(items)
        ranks = [item.ranks if isinstance(item, TokenList) else (1, 2) for item in items]
        self._ranks = torch.tensor([rank for of_row in ranks for rank in of_row])

    def shaped(self, rows: Sequence[int], values: Tensor, pad: float = 0.0) -> Tensor:
        """(prompts, k)."""
        mask = self._mask(rows).to(values.device)
        return values.new_full(mask.shape, pad).masked_scatter(mask, values)

    def logps(self, rows: Sequence[int], totals: Tensor) -> Responses:
        at, device = self.of(rows), totals.device
        length = self.shaped(rows, self.lengths[at].to(device), 1)
        rank = self.shaped(rows, self._ranks[at].to(device), 0)
        return Responses(self.shaped(rows, totals), length, rank, self._mask(rows).to(device))

    def inputs(self, rows: Sequence[int], policy: Any, reference: Any, beside: dict[str, Any]) -> ListInputs:
        return ListInputs(policy, reference, **{name: value for name, value in beside.items() if name != "kl"})

    def told(self, rows: Sequence[int], policy: Responses, output: ListOutput) -> Told:
        best, worst = ends(policy)

        def sides(values: Tensor) -> list[Tensor]:
            return [values.detach().masked_fill(~end, 0).sum(1) / end.sum(1) for end in (best, worst)]

        return Told(output.loss, *sides(output.rewards), *sides(policy.total), *sides(policy.mean))

    def _mask(self, rows: Sequence[int]) -> Tensor:
        counts = self.counts[list(rows)]
        return torch.arange(int(counts.max())) < counts[:, None]


def ends(lists: Responses) -> tuple[Tensor, Tensor]:
    """Which responses of each list have its best rank, and which its worst, (prompts, k) bool each."""
    best = lists.rank.masked_fill(~lists.mask, torch.iinfo(lists.rank.dtype).max).amin(1, keepdim=True)
    worst = lists.rank.masked_fill(~lists.mask, 0).amax(1, keepdim=True)
    return lists.mask & (lists.rank == best), lists.mask & (lists.rank == worst)


class AnswerRows(Rows):
    """Rows as a loss of single answers reads them: labelled answers, or pairs, each two answers, whose mean loss is the row's.
    Chosen are the desirable answers, rejected the others."""

    unit = "answers"
    kinds = (TokenPair, TokenAnswer)

    def __init__(self, items: Sequence[Item]) -> None:
        super().__init__(items)
        labels = [(item.label,) if isinstance(item, TokenAnswer) else (True, False) for item in items]
        self._labels = torch.tensor([label for of_row in labels for label in of_row])

    def shaped(self, rows: Sequence[int], values: Tensor, pad: float = 0.0) -> Tensor:
        """(answers,)."""
        return values

    def of_prompts(self, rows: Sequence[int], values: Tensor) -> Tensor:
        """(answers,)."""
        return values

    def logps(self, rows: Sequence[int], totals: Tensor) -> SequenceLogps:
        return SequenceLogps(totals, self.lengths[self.of(rows)].to(totals.device))

    def inputs(self, rows: Sequence[int], policy: Any, reference: Any, beside: dict[str, Any]) -> AnswerInputs:
        return AnswerInputs(policy, self.label(rows).to(policy.total.device), reference, **beside)

    def places(self, rows: Sequence[int]) -> Tensor:
        return torch.arange(int(self.counts[list(rows)].sum()))

    def label(self, rows: Sequence[int]) -> Tensor:
        return self._labels[self.of(rows)]

    def told(self, rows: Sequence[int], policy: SequenceLogps, output: AnswerOutput) -> Told:
        if self.pairs:
            return _told(pair_of(*policy), of_pairs(output))
        label = self.label(rows).to(policy.total.device)

        def sides(values: Tensor) -> list[Tensor]:
            return [torch.where(side, values.detach(), 0) for side in (label, ~label)]

        return Told(output.loss, *sides(output.reward), *sides(policy.total), *sides(policy.mean))

    def divisors(self, rows: Sequence[int]) -> tuple[int, int]:
        label = self.label(rows)
        return int(label.sum()), int((~label).sum())


ROWS: dict[Unit, type[Rows]] = {rows.unit: rows for rows in (Rows, ListRows, AnswerRows)}


def in_a_batch(items: Sequence[Item], batch_size: int) -> int:
    """How many rows a batch has: as many pairs or lists as the setting says, or twice as many single answers."""
    return 2 * batch_size if items and isinstance(items[0], TokenAnswer) else batch_size
