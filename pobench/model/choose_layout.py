"""Choose the layout of rows, the layers and the attention for a model. Each choice is first proven against the untouched
model, on a few groups."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pobench.errors import PobenchError
from pobench.model.flex import BLOCK
from pobench.model.layouts import LEAST_SHARED
from pobench.model.liger import NAME as LIGER
from pobench.model.logps import ResponseLogps
from pobench.model.rope import held_reach
from pobench.model.sharding import forget, give_back, is_sharded
from pobench.positions import context_of, rope_reach
from pobench.types import Group

PROVEN_ON = 12  # tokens of a prompt's beginning, of its end and of each response that a layout is proven on
NARROW_TOLERANCE = 5e-2  # nats a token, where products are narrower than fp32


@torch.no_grad()
def plain_logps(model: Any, group: Group) -> Tensor:
    """(responses,) nats by the model's own logits, one sequence at a time, with an fp64 log-softmax: the standard to compare
    with."""
    sums = []
    device = next(model.parameters()).device
    for response in group.responses:
        ids = torch.tensor([group.prompt + response], device=device)
        logits = model(input_ids=ids, use_cache=False).logits[0, len(group.prompt) - 1 : -1].double()
        logp = torch.log_softmax(logits, -1).gather(1, ids[0, len(group.prompt) :, None])
        sums.append(logp.sum())
    return torch.stack(sums)


def choose_layout(
    policy: ResponseLogps,
    groups: Sequence[Group],
    layout: str = "auto",
    *,
    most: Callable[[float], float] | None = None,
    autocast: Callable[[], AbstractContextManager[Any]] | None = None,
) -> tuple[str, str]:
    """(layout name, reason). `auto` takes the shared prefix if its sums on the first groups equal those of the untouched model,
    one sequence at a time; where rotary frequencies depend on a length, on groups of both sides too. A model whose
    attention ignores a custom mask gets the padded layout.

    The policy is left with the fastest layers and attention that pass. Attention by blocks (tried in two sizes, on a GPU with
    the backward pass) or by parts is tried before matrices, exchanged layers before the model's own, Liger's kernels before
    all without. The reason names what failed.

    most: the largest of all processes' values; they then take a way only if it passes in each of them, as their micro-batches
    must be planned alike. None: this process chooses by itself. autocast: around a pass in training, where its products are
    narrower than the weights; kernels that are compiled for a type are tried in it too.

    Raises PobenchError if even the padded layout disagrees with the model's own logits (an unknown kind of head).
    """
    proof = _Proof(policy, _telling(policy, groups), most or float, autocast)
    try:
        return _choose(proof, policy, layout)
    finally:
        give_back(policy)


def _choose(proof: _Proof, policy: ResponseLogps, layout: str) -> tuple[str, str]:
    first = _Way(policy.attention, policy.has_exchanged_layers, policy.kernels)
    ways = ("padded", "shared_prefix") if first.attention == "flash" else ("shared_prefix", "padded")
    for name in ways if layout == "auto" else (layout,):
        for way in _ways(policy, name, first):
            if why := proof.of(name, way):
                return name, "; ".join([why, *proof.faults])
    raise PobenchError(
        "the log-probabilities of this model cannot be computed exactly:\n  " + "\n  ".join(proof.faults)
    )


class _Way(NamedTuple):
    """How a policy computes: the kind of attention, whether layers are exchanged, and the kernels of norms and MLPs."""

    attention: str
    exchanged: bool
    kernels: str


def _ways(policy: ResponseLogps, name: str, first: _Way) -> Iterator[str]:
    """The ways to compute a layout, fastest first, in words. The policy is switched to a way before it is yielded.

    first: as the policy computed at first.
    """
    two = first.attention == "flash" if name == "padded" else True
    kinds = dict.fromkeys([first.attention, "matrices"] if two else [policy.attention])
    for kernels in dict.fromkeys([first.kernels, "none"]):
        if policy.kernels != kernels:
            policy.use_kernels(kernels)
        for own in (False, True) if first.exchanged else (False,):
            if own:
                policy.use_own_layers()
            elif first.exchanged and not policy.has_exchanged_layers:
                policy.use_exchanged_layers()
            for kind in kinds:
                policy.use_attention(kind)
                by = [f"by {kind}"] if kind == "flash" or (name == "shared_prefix" and kind != "matrices") else []
                by += ["with Liger's kernels"] if kernels == LIGER else []
                yield " ".join([*by, *(["with the model's own layers"] if own else [])])


class _Proof:
    """Compares a policy with the untouched model. faults: one line for each way that disagreed."""

    def __init__(
        self,
        policy: ResponseLogps,
        groups: Sequence[Group],
        most: Callable[[float], float],
        autocast: Callable[[], AbstractContextManager[Any]] | None,
    ) -> None:
        self.policy, self.groups, self.most, self.autocast = policy, list(groups), most, autocast
        self.faults: list[str] = []
        self._plain: dict[Group, Tensor] = {}

    def of(self, name: str, way: str) -> str:
        """How closely the layout agrees, in words; "" if it does not agree, here or in another process, and then a fault is
        added."""
        exact = share = math.inf  # share: of the difference that is allowed
        fault = ""
        try:
            exact = _worst(self._difference(name, trial) for trial in self._trials(name))
            share = exact / self._tolerance
            if self.autocast is not None and self._compiles and self.policy.attention != "flash":
                share = _worst((share, self._difference(name, self.groups, self.autocast) / NARROW_TOLERANCE))
        except Exception as error:
            if not (self._compiles or isinstance(error, TypeError | ValueError | RuntimeError | LookupError)):
                raise  # only these types tell that a mask or shape is not supported; compiled kernels may raise any
            forget(self.policy)
            exact, share, fault = math.inf, math.inf, f"{type(error).__name__}: {error}"
        if self.most(share) < 1:
            by = (
                way.replace("by blocks", "by blocks of attention")
                .replace("by flash", "by FlashAttention")
                .replace("by parts", "")
                .strip()
            )
            return f"{by}{', ' if by else ''}equals one sequence at a time to {exact:.0e} nats a token"
        in_bf16 = ", and in bf16 by more than it may" if exact < self._tolerance else ""
        differs = f"differs by {exact:.2g} nats a token{in_bf16}"
        fault = fault or ("does not pass in another process" if share < 1 else differs)
        self.faults.append(f"{f'{name} {way}'.rstrip()}: {fault}")
        return ""

    @property
    def _compiles(self) -> bool:
        """Whether the policy computes by kernels that are compiled for types and sizes."""
        return self.policy.attention in ("blocks", "flash") or self.policy.kernels == LIGER

    def _trials(self, name: str) -> list[list[Group]]:
        """The groups of each comparison."""
        trials, blocks = [self.groups], name == "shared_prefix" and self.policy.attention == "blocks"
        most = _reach(self.policy.model)
        # Kernels are compiled for the first width of rows, and again when the width changes: both are tried.
        if blocks:
            trials.append([*(_longer(g, most) for g in self.groups), *self.groups])
        rooted = _rooted(self.groups, BLOCK if blocks else 0)
        if blocks and max(map(_extent, rooted)) > most:
            rooted = _rooted(self.groups, 0)
        layout = self.policy.layout(name)
        if layout.root(rooted) and not layout.root(self.groups):
            trials.append(rooted)
        return trials

    @property
    def _tolerance(self) -> float:
        """Nats a token: what the arithmetic allows that is tried."""
        exact = self.policy.dtype == torch.float32 and self.policy.attention != "flash"
        return 1e-4 if exact else NARROW_TOLERANCE

    def _difference(
        self, name: str, groups: Sequence[Group], autocast: Callable[[], AbstractContextManager[Any]] | None = None
    ) -> float:
        """The largest difference from one sequence at a time, nats a token. autocast: around the policy's pass."""
        policy = self.policy
        plain = torch.cat([self._plain_of(g) for g in groups])
        tokens = torch.tensor([len(r) for g in groups for r in g.responses], device=plain.device)
        device, flash = policy.model.device.type, policy.attention == "flash"
        # its kernels know no fp32, so it is tried in the precision that it is used in
        narrow = torch.autocast(device, torch.bfloat16) if flash and policy.autocast else contextlib.nullcontext()
        with torch.set_grad_enabled(self._compiles and device != "cpu"), narrow if autocast is None else autocast():
            sums = policy(policy.layout(name).collate(groups, policy.window).to(plain.device))
            if sums.requires_grad and is_sharded(policy):  # every process must join the sums of gradients
                sums.sum().backward()
                policy.zero_grad(set_to_none=True)
            elif sums.requires_grad:
                torch.autograd.grad(sums.sum(), next(p for p in policy.parameters() if p.requires_grad))
        return ((sums.detach() - plain).abs() / tokens).max().item()

    def _plain_of(self, group: Group) -> Tensor:
        if group not in self._plain:
            with self.policy.untouched() as model:
                self._plain[group] = self.policy.within_forward(lambda: plain_logps(model, group))
        return self._plain[group]


def _telling(policy: ResponseLogps, groups: Sequence[Group]) -> list[Group]:
    """The groups to compare on: the first two, cut short where that tells enough. And the shortest and the longest, whole, if
    they lie on two sides of the length at which the model's rotary frequencies change."""
    config = policy.model.config.get_text_config()
    border = rope_reach(config, 1)
    ends = [] if border is None else [min(groups, key=_extent), max(groups, key=_extent)]
    straddle = border is not None and _extent(ends[0]) <= border < _extent(ends[1])
    # A model that looks only so far, by a window or by chunks, is asked about groups as long as they are; so is one whose
    # tolerance is wide, or whose kernels are made for sizes. For attention by blocks a few of them are enough, and all that a
    # trial on whole groups would keep for its backward pass might not fit.
    reach = min(filter(None, (policy.window, getattr(config, "attention_chunk_size", None))), default=math.inf)
    exact = policy.dtype == torch.float32 and policy.attention in ("parts", "matrices") and policy.kernels != LIGER
    first = groups[:2]
    if (exact or policy.attention == "blocks") and reach >= max(map(_extent, groups)):
        first = [_cut(g, PROVEN_ON if exact else BLOCK) for g in first]
    return [g._replace(learnt=()) for g in dict.fromkeys([*first, *(ends if straddle else [])])]


def _cut(group: Group, n: int = PROVEN_ON) -> Group:
    """The group with the middle of a long prompt and the ends of long responses left out: n tokens of each part are left. A
    mask or a position that is ignored shows in a dozen tokens, and a trial costs as many seconds as it has tokens."""
    prompt = group.prompt
    prompt = prompt if len(prompt) <= 2 * n else prompt[:n] + prompt[-n:]
    return group._replace(prompt=prompt, responses=tuple(r[:n] for r in group.responses))


def _extent(group: Group) -> int:
    return len(group.prompt) + max(map(len, group.responses))


def _rooted(groups: Sequence[Group], beyond: int) -> list[Group]:
    """Two groups whose prompts begin alike with more than `beyond` tokens, made of the first one and the last, both cut. Their
    prompts end in unlike ways."""
    one, other = _cut(groups[0]), _cut(groups[-1])
    tokens = beyond + LEAST_SHARED
    begin = (one.prompt * tokens)[:tokens]
    end = other.prompt if other.prompt != one.prompt else other.prompt + other.prompt[:1]
    return [one._replace(prompt=begin + one.prompt), other._replace(prompt=begin + end)]


def _longer(group: Group, most: float) -> Group:
    """The group with its prompt repeated, so that it fills more than one further block, as far as `most` tokens allow."""
    room = most - max(map(len, group.responses))
    times = min(1 + -(-2 * BLOCK // len(group.prompt)), room / len(group.prompt))
    return group._replace(prompt=group.prompt * max(1, int(times)))


def _reach(model: Any) -> float:
    """The most tokens of a sequence that may be made up: further positions may not exist, or have other rotary frequencies."""
    config = model.config.get_text_config()
    reach = held_reach(model)
    reach = rope_reach(config, 1) if reach is None else reach
    return min(filter(None, (context_of(config), reach)), default=math.inf)


def _worst(numbers: Iterable[float]) -> float:
    """The largest; nan if one is, which Python's own `max` may pass over."""
    return torch.tensor([*numbers], dtype=torch.float64).max().item()
