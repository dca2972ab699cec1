"""Lay groups of token sequences out in a batch, as shared-prefix rows or as one padded row a sequence, and share micro-batches
out to processes (`plan_step`).

A `Group` is one prompt with any number of responses. Both layouts give, for every response token, the flat position of its
predecessor (for a response's first token, the prompt's last). `logps.py` computes log-probabilities from that.

    shared_prefix   [prompt | chosen | rejected] in one row, several groups a row. The prompt is computed once; each
                    response sees the prompt and itself. Position ids restart behind the prompt. What the prompts of all
                    groups begin with, such as a system message, is computed once for all of them:
                    [root | rest of prompt 1 | chosen 1 | rejected 1 | rest of prompt 2 | …]
    padded          [prompt | response], one row each, padded on the right: for models that take no custom mask.
"""

from __future__ import annotations

import heapq
from bisect import bisect_left, insort
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from pobench.registry import layouts, register_layout
from pobench.types import Group

PAD = 0  # any valid id: a pad is never attended to by a token and never predicted
# The width of rows is a multiple of this. A processor's matrix kernels are compiled for each shape and cached. Recurring widths
# reuse them, which saves memory, and more time than the pads cost.
WIDTH_STEP = 32
LEAST_SHARED = 8  # tokens that prompts begin with alike, from which on these are laid out, or read for answers, once
# What `member` holds instead of a group's index: for a pad, and for a token that all groups of the row begin with.
NO_GROUP, ALL_GROUPS = -1, -2


class Place(NamedTuple):
    """The place of a group in a row: its prompt from `start` on, without the row's root, then its responses. prompt,
    responses: numbers of tokens."""

    row: int
    start: int
    prompt: int
    responses: tuple[int, ...]


@dataclass(frozen=True)
class Batch:
    """A micro-batch on its device.

    input_ids, position_ids: (rows, width). member: (rows, width) the group of each token, NO_GROUP for a pad, ALL_GROUPS in
    the root; None: the model makes its own causal mask. branch: (rows, width) 0 for the prompt, k for its k-th response.
    window: the model's sliding window in positions, or None.
    previous: (tokens,) flat index into rows × width of each response token's predecessor.
    target: (tokens,) the response tokens' ids. sequence: (tokens,) the response each belongs to, counted group by group.
    responses: the number of responses. places: of the groups, where each lies in one row. root: the number of tokens at the
    start of the row that all prompts begin with; 0 if there are several rows.
    """

    input_ids: Tensor
    position_ids: Tensor
    member: Tensor | None
    branch: Tensor | None
    window: int | None
    previous: Tensor
    target: Tensor
    sequence: Tensor
    responses: int
    places: tuple[Place, ...] = ()
    root: int = 0

    def to(self, device: torch.device) -> Batch:
        tensors = {f.name: v for f in fields(self) if isinstance(v := getattr(self, f.name), Tensor)}
        moved: dict[str, Any] = {name: v.to(device, non_blocking=True) for name, v in tensors.items()}
        return replace(self, **moved)

    def sees(self, window: int | None = None) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
        """A function of indices (row, head, query, key) that tells whether the query may attend to the key: the key has to be
        an earlier token of its prompt, root included, or of its own response, less than `window` positions before it. Indices
        broadcast."""
        member, branch, position = self.member, self.branch, self.position_ids
        assert member is not None and branch is not None

        def sees(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            key_branch, key_member, query_member = branch[row, key], member[row, key], member[row, query]
            visible = (
                ((query_member == key_member) | (key_member == ALL_GROUPS))
                & ((key_branch == 0) | (key_branch == branch[row, query]))
                & (query >= key)
            )
            # A pad attends to itself alone: a row of a mask without any True is NaN in a softmax.
            visible = visible & ((query_member != NO_GROUP) | (query == key))
            return visible if window is None else visible & (position[row, query] - position[row, key] < window)

        return sees

    def mask(self, window: int | None = None) -> Tensor:
        """(rows, 1, width, width) bool: `sees` as a matrix."""
        rows, width = self.input_ids.shape
        row, at = (torch.arange(n, device=self.input_ids.device) for n in (rows, width))
        return self.sees(window)(row[:, None, None], row, at[:, None], at)[:, None]


class Layout(Protocol):
    """Plans micro-batches under a token budget, and builds each."""

    name: str

    def root(self, groups: Sequence[Group]) -> int:
        """How many tokens that all prompts begin with are laid out once for these groups in one micro-batch."""
        ...

    def tokens(self, group: Group) -> int:
        """The tokens that a group alone takes from a budget, without pads."""
        ...

    def plan(self, groups: Sequence[Group], budget: int) -> list[list[int]]:
        """Split the groups (by index) into micro-batches of at most `budget` tokens, pads included. A group larger than that
        gets its own."""
        ...

    def collate(self, groups: Sequence[Group], window: int | None = None) -> Batch:
        """Lay the groups out; responses are numbered in their order. window: sliding-window size in tokens, if any."""
        ...


def get_layout(name: str, **settings: Any) -> Layout:
    """A layout by name; settings: its own. Raises UnknownNameError."""
    return layouts.get(name)(**settings)


# ---------------------------------------------------------------- one plan for all processes
# The dummy group of a process that has no groups in a turn: one row of two tokens, whose result is dropped.
NOTHING = Group((PAD,), ((PAD,),))


def plan_step(groups: Sequence[Group], world: int, layout: Layout, budget: int) -> list[list[list[int]]]:
    """For every process, its micro-batches (indices of groups), turn by turn. All have the same number, some of them empty.

    The plan depends on the groups' tokens alone, so all processes make the same plan without communication. With one process
    it is the layout's own plan. With several, the total tokens of any two processes, without what all prompts begin with,
    differ by at most the largest group, and micro-batches of similar size share a turn, because sharded weights are gathered
    once a turn.
    """
    if world == 1:
        return [layout.plan(groups, budget)]
    root = layout.root(groups)
    tokens = [layout.tokens(g) - root for g in groups]
    by_process = _plan_by_process(groups, tokens, world, layout, budget)
    fewest = max(1, -(-sum(tokens) // (world * max(1, budget - root))))
    return _plan_by_turn(groups, tokens, world, layout, budget, range(fewest, len(by_process[0]) + 1)) or by_process


def _plan_by_process(
    groups: Sequence[Group], tokens: Sequence[int], world: int, layout: Layout, budget: int
) -> list[list[list[int]]]:
    """Deal the groups to processes, then let the layout cut each process's share. tokens: of each group, without the root."""
    plans = []
    for share in _longest_first(tokens, world):
        cut = [[share[i] for i in batch] for batch in layout.plan([groups[i] for i in share], budget)]
        plans.append(sorted(cut, key=lambda batch: -sum(tokens[i] for i in batch)))
    turns = max(map(len, plans))
    return [plan + [[] for _ in range(turns - len(plan))] for plan in plans]


def _plan_by_turn(
    groups: Sequence[Group], tokens: Sequence[int], world: int, layout: Layout, budget: int, allowed: range
) -> list[list[list[int]]] | None:
    """Deal the groups to few micro-batches, and these to processes, similar sizes in one turn. None if that takes more turns
    than are allowed. tokens: of each group, without the root."""
    turns = allowed.start
    while turns < allowed.stop:
        batches = _longest_first(tokens, world * turns)
        if all(len(batch) < 2 or len(layout.plan([groups[i] for i in batch], budget)) == 1 for batch in batches):
            break
        turns += 1 + turns // 64  # larger steps where a pass over a whole data set has thousands of turns
    else:
        return None
    load = {id(batch): sum(tokens[i] for i in batch) for batch in batches}
    batches.sort(key=lambda batch: -load[id(batch)])
    plans: list[list[list[int]]] = [[] for _ in range(world)]
    totals = [0] * world
    for turn in range(turns):
        lightest_first = sorted(range(world), key=lambda process: (totals[process], process))
        for process, batch in zip(lightest_first, batches[turn * world : (turn + 1) * world], strict=True):
            plans[process].append(batch)
            totals[process] += load[id(batch)]
    return plans


def _longest_first(tokens: Sequence[int], bins: int) -> list[list[int]]:
    """Deal the indices to `bins`, the longest first, each to the bin with the fewest tokens."""
    dealt: list[list[int]] = [[] for _ in range(bins)]
    loads = [(0, b) for b in range(bins)]
    for i in sorted(range(len(tokens)), key=lambda i: (-tokens[i], i)):
        load, b = loads[0]
        dealt[b].append(i)
        heapq.heapreplace(loads, (load + tokens[i], b))
    return dealt


# ---------------------------------------------------------------- the layouts
@register_layout("shared_prefix")
class SharedPrefix:
    """A row holds a prompt and its responses. Short groups share a row, up to the width of the longest group.

    one_row: put all groups of a micro-batch into one row. It suits attention that skips pairs of groups, whose cost does not
    grow with the row's width. rooted: put what all their prompts begin with into that row once.
    """

    name = "shared_prefix"

    def __init__(self, *, width_step: int = WIDTH_STEP, one_row: bool = False, rooted: bool = True) -> None:
        """width_step: a row's width is a multiple of it."""
        self.width_step, self.one_row, self.rooted = width_step, one_row, rooted

    def root(self, groups: Sequence[Group]) -> int:
        shared = common_beginning([g.prompt for g in groups]) if self.one_row and self.rooted else 0
        return shared if shared >= LEAST_SHARED else 0

    def tokens(self, group: Group) -> int:
        return group.tokens

    def plan(self, groups: Sequence[Group], budget: int) -> list[list[int]]:
        """Place the longest groups first. With `one_row`, each goes into the fullest micro-batch that has room for it."""
        order = sorted(range(len(groups)), key=lambda i: (-groups[i].tokens, i))
        if self.one_row:
            root = self.root(groups)
            return _best_fit(order, groups, budget // self.width_step * self.width_step - root, root)
        # The first (longest) group of a micro-batch sets the width of its rows.
        batches: list[list[int]] = []
        room: list[int] = []  # free tokens in each row of the open micro-batch
        width = rows_left = 0
        for i in order:
            need = groups[i].tokens
            row = next((r for r, free in enumerate(room) if free >= need), None)
            if row is None and rows_left > 0:
                room.append(width)
                rows_left -= 1
                row = len(room) - 1
            if row is None:
                width = self._width(need)
                room = [width if width <= budget else need]
                rows_left = max(1, budget // width) - 1
                batches.append([])
                row = 0
            room[row] -= need
            batches[-1].append(i)
        return batches

    def collate(self, groups: Sequence[Group], window: int | None = None) -> Batch:
        root = self.root(groups)
        tokens = [g.tokens - root for g in groups]
        width = self._width(root + sum(tokens) if self.one_row else max(tokens))
        every = range(len(groups))
        rows = [list(every)] if self.one_row else _first_fit(every, groups, width)  # as planned

        first = [0]
        for group in groups:
            first.append(first[-1] + len(group.responses))
        ids = torch.full((len(rows), width), PAD)
        position = torch.zeros((len(rows), width), dtype=torch.long)
        member = torch.full((len(rows), width), NO_GROUP)
        branch = torch.zeros((len(rows), width), dtype=torch.long)  # 0: prompt, k: its k-th response
        if root:
            ids[0, :root] = torch.tensor(groups[0].prompt[:root])
            position[0, :root] = torch.arange(root)
            member[0, :root] = ALL_GROUPS
        places: list[Place] = []
        # one list for each response, in the order of responses
        previous: list[list[int]] = [[] for _ in range(first[-1])]
        for r, row_groups in enumerate(rows):
            at = root
            for i in row_groups:
                prompt, responses = groups[i].prompt, groups[i].responses
                p = len(prompt)
                own = p - root
                places.append(Place(r, at, own, tuple(map(len, responses))))
                ids[r, at : at + own] = torch.tensor(prompt[root:], dtype=torch.long)
                position[r, at : at + own] = torch.arange(root, p)
                member[r, at : at + tokens[i]] = i
                last_of_prompt = r * width + (at + own if own else root) - 1
                at += own
                for k, response in enumerate(responses):
                    n = len(response)
                    ids[r, at : at + n] = torch.tensor(response)
                    position[r, at : at + n] = torch.arange(p, p + n)
                    branch[r, at : at + n] = k + 1
                    here = r * width + at
                    previous[first[i] + k] = [last_of_prompt, *range(here, here + n - 1)]
                    at += n
        return _batch(ids, position, member, branch, window, previous, groups, tuple(places), root)

    def _width(self, tokens: int) -> int:
        return -(-tokens // self.width_step) * self.width_step


def common_beginning(prompts: Sequence[tuple[int, ...]]) -> int:
    """How many tokens all of several prompts begin with; 0 of a single prompt."""
    if len(prompts) < 2:
        return 0
    one, other = min(prompts), max(prompts)  # what these two begin with, those between them do too
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def _best_fit(order: Sequence[int], groups: Sequence[Group], size: int, root: int) -> list[list[int]]:
    """As `_first_fit`, but each group goes, without its root, into the fullest bin with room for it, found by bisection."""
    bins: list[list[int]] = []
    room: list[tuple[int, int]] = []  # (free tokens, bin), sorted
    for i in order:
        need = groups[i].tokens - root
        at = bisect_left(room, (need, 0))
        if at < len(room):
            free, place = room.pop(at)
        else:
            free, place = max(size, need), len(bins)
            bins.append([])
        bins[place].append(i)
        insort(room, (free - need, place))
    return bins


def _first_fit(order: Sequence[int], groups: Sequence[Group], size: int) -> list[list[int]]:
    """Put the groups (by index), in this order, each into the first bin of `size` tokens with room for it. A group larger than
    `size` gets its own bin."""
    bins: list[list[int]] = []
    room: list[int] = []
    for i in order:
        need = groups[i].tokens
        place = next((b for b, free in enumerate(room) if free >= need), len(bins))
        if place == len(bins):
            bins.append([])
            room.append(max(size, need))
        bins[place].append(i)
        room[place] -= need
    return bins


@register_layout("padded")
class Padded:
    """One row for each response, with the prompt repeated, padded on the right."""

    name = "padded"

    def root(self, groups: Sequence[Group]) -> int:
        return 0

    def tokens(self, group: Group) -> int:
        """The prompt counts once for each response."""
        return len(group.responses) * len(group.prompt) + sum(map(len, group.responses))

    def plan(self, groups: Sequence[Group], budget: int) -> list[list[int]]:
        def width(i: int) -> int:
            return len(groups[i].prompt) + max(map(len, groups[i].responses))

        batches: list[list[int]] = []
        rows = widest = 0
        for i in sorted(range(len(groups)), key=lambda i: (-width(i), i)):
            if not batches or (rows + len(groups[i].responses)) * widest > budget:
                batches.append([])
                rows, widest = 0, width(i)
            batches[-1].append(i)
            rows += len(groups[i].responses)
        return batches

    def collate(self, groups: Sequence[Group], window: int | None = None) -> Batch:
        sequences = [(g.prompt, r) for g in groups for r in g.responses]
        width = max(len(p) + len(r) for p, r in sequences)
        ids = torch.full((len(sequences), width), PAD)
        previous = []
        for r, (prompt, response) in enumerate(sequences):
            n = len(prompt) + len(response)
            ids[r, :n] = torch.tensor(prompt + response)
            start = r * width + len(prompt) - 1
            previous.append(list(range(start, start + len(response))))
        position = torch.arange(width).expand(len(sequences), width)
        # The model's own causal (and sliding-window) mask is enough: pads come after every token, so no token sees one, and
        # without a padding mask no row of the mask can be empty.
        return _batch(ids, position, None, None, None, previous, groups)


def _spans_of(tokens: Sequence[int], spans: Sequence[tuple[int, int]]) -> list[int]:
    return [token for start, stop in spans for token in tokens[start:stop]]


def _batch(
    ids: Tensor,
    position: Tensor,
    member: Tensor | None,
    branch: Tensor | None,
    window: int | None,
    previous: list[list[int]],
    groups: Sequence[Group],
    places: tuple[Place, ...] = (),
    root: int = 0,
) -> Batch:
    responses: list[Sequence[int]] = [r for g in groups for r in g.responses]
    if any(g.learnt for g in groups):
        spans = [s for g in groups for s in ([g.learnt] if g.learnt else [((0, len(r)),) for r in g.responses])]
        previous = [_spans_of(sequence, learnt) for sequence, learnt in zip(previous, spans, strict=True)]
        responses = [_spans_of(response, learnt) for response, learnt in zip(responses, spans, strict=True)]
    return Batch(
        input_ids=ids,
        position_ids=position,
        member=member,
        branch=branch,
        window=window,
        previous=torch.tensor([i for sequence in previous for i in sequence]),
        target=torch.tensor([token for response in responses for token in response]),
        sequence=torch.repeat_interleave(torch.tensor([len(r) for r in responses])),
        responses=len(responses),
        places=places,
        root=root,
    )
