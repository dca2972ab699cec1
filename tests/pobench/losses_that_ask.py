"""Losses of a user who asks for more than the pair's sums; a plug-in of the tests."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from pobench import (
    AnswerBatch,
    AnswerOutput,
    Batch,
    ListBatch,
    ListOutput,
    LossOutput,
    Pair,
    Responses,
    SequenceLogps,
    TokenLogps,
    register_loss,
)


def log_ratios(policy: Pair, reference: Pair) -> tuple[Tensor, Tensor]:
    return policy.chosen.total - reference.chosen.total, policy.rejected.total - reference.rejected.total


# ---------------------------------------------------------------- scores
@register_loss("t_offset", source="arXiv 2402.10571, ODPO's offset without its logarithm")
def t_offset(policy: Pair, reference: Pair, scores: Tensor, *, beta: float = 0.1, alpha: float = 0.5) -> LossOutput:
    u, v = (beta * ratio for ratio in log_ratios(policy, reference))
    return LossOutput(-logsigmoid(u - v - alpha * (scores[:, 0] - scores[:, 1])), u.detach(), v.detach())


# ---------------------------------------------------------------- tokens
@register_loss("t_ld", source="arXiv 2409.06411: LD-DPO")
def t_ld(policy: Pair, reference: Pair, tokens: TokenLogps, *, beta: float = 0.1, alpha: float = 0.5) -> LossOutput:
    """Tokens of the longer answer behind the length of the shorter one count alpha."""
    shared = tokens.mask.all(dim=1, keepdim=True)
    u, v = (beta * ((tokens.policy - tokens.reference) * torch.where(shared, 1.0, alpha)).sum(-1)).unbind(1)
    return LossOutput(-logsigmoid(u - v), u.detach(), v.detach())


@register_loss("t_worst", source="a test: the least likely tokens count most, and no reference is read")
def t_worst(policy: Pair, tokens: TokenLogps, *, beta: float = 0.5) -> LossOutput:
    chosen, rejected = -beta * (-tokens.policy).masked_fill(~tokens.mask, -math.inf).logsumexp(-1).T
    return LossOutput(-logsigmoid(chosen - rejected), chosen.detach(), rejected.detach())


# ---------------------------------------------------------------- batch
@register_loss("t_aot", source="arXiv 2406.05882, paired")
def t_aot(policy: Pair, reference: Pair, batch: Batch, *, beta: float = 0.1) -> LossOutput:
    """Each pair's gap stands against the reference's gap of its own rank."""
    rank = (batch.policy.chosen.total - batch.policy.rejected.total).argsort().argsort()[batch.place]
    partner = (batch.reference.chosen.total - batch.reference.rejected.total).sort().values[rank]
    u, v = (beta * ratio.detach() for ratio in log_ratios(policy, reference))
    return LossOutput(-logsigmoid(beta * (policy.chosen.total - policy.rejected.total - partner)), u, v)


@register_loss("t_aot_unpaired", source="arXiv 2406.05882, unpaired")
def t_aot_unpaired(policy: Pair, reference: Pair, batch: Batch, *, beta: float = 0.1) -> LossOutput:
    def objective(of_batch: Pair) -> Tensor:
        u, v = (ratio.sort().values for ratio in log_ratios(of_batch, batch.reference))
        return -logsigmoid(beta * (u - v))

    u, v = (beta * ratio.detach() for ratio in log_ratios(policy, reference))
    return LossOutput(batch.share(objective, policy), u, v)


@register_loss("t_dr_dpo", source="arXiv 2407.07880")
def t_dr_dpo(policy: Pair, reference: Pair, batch: Batch, *, beta: float = 0.1, robustness: float = 1.0) -> LossOutput:
    def objective(of_batch: Pair) -> Tensor:
        u, v = log_ratios(of_batch, batch.reference)
        of_pairs = logsigmoid(beta * (u - v)) / robustness
        return -robustness * (torch.logsumexp(of_pairs, 0) - math.log(len(of_pairs)))

    u, v = (beta * ratio.detach() for ratio in log_ratios(policy, reference))
    return LossOutput(batch.share(objective, policy), u, v)


# ---------------------------------------------------------------- batch, with a state
def running(batch: Batch) -> dict[str, float]:
    """Moving averages of the gap's mean and spread, from 0."""
    u, v = log_ratios(batch.policy, batch.reference)
    now = {"mean": float((u - v).mean()), "spread": float((u - v).std(unbiased=False))}
    return {name: 0.9 * batch.state.get(name, 0.0) + 0.1 * value for name, value in now.items()}


@register_loss("t_beta_dpo", source="arXiv 2407.08639, which draws the pairs that it keeps", update=running)
def t_beta_dpo(policy: Pair, reference: Pair, batch: Batch, *, beta: float = 0.1, a: float = 0.6) -> LossOutput:
    """The batch's mean gap sets its beta; of the pairs, the fifth furthest from the moving average are left out."""
    u, v = log_ratios(batch.policy, batch.reference)
    far = (u - v - batch.state["mean"]).abs() / (batch.state["spread"] + 1e-6)
    kept = far <= far.quantile(0.8)
    own = max(0.001, beta * (1 + a * float((u - v)[kept].mean() - batch.state["mean"])))
    u, v = log_ratios(policy, reference)
    share = (kept.to(u.dtype) * len(kept) / kept.sum())[batch.place]
    return LossOutput(share * -logsigmoid(own * (u - v)), beta * u.detach(), beta * v.detach())


def running_mean(batch: Batch, *, beta: float) -> dict[str, float]:
    """Of all rewards so far."""
    rewards = beta * torch.cat(log_ratios(batch.policy, batch.reference))
    seen = batch.state.get("seen", 0)
    total = batch.state.get("mean", 0.0) * seen + float(rewards.sum())
    return {"seen": seen + len(rewards), "mean": total / (seen + len(rewards))}


@register_loss("t_bco", source="arXiv 2404.04656, pairs", update=running_mean)
def t_bco(policy: Pair, reference: Pair, batch: Batch, *, beta: float = 0.1) -> LossOutput:
    u, v = (beta * ratio for ratio in log_ratios(policy, reference))
    shift = batch.state["mean"]
    return LossOutput(-logsigmoid(u - shift) - logsigmoid(shift - v), u.detach(), v.detach())


# ---------------------------------------------------------------- lists
def against_shares(rewards: Tensor, wanted: Tensor, mask: Tensor) -> Tensor:
    """(prompts,) the cross-entropy of the rewards' softmax with that of `wanted`."""
    shares, target = (t.masked_fill(~mask, -math.inf).log_softmax(1) for t in (rewards, wanted))
    return -(target.exp() * shares).masked_fill(~mask, 0).sum(1)


@register_loss("t_rated_list", source="a test: ListNet with the data's ratings")
def t_rated_list(responses: Responses, reference: Responses, scores: Tensor, *, beta: float = 0.1) -> ListOutput:
    rewards = beta * (responses.total - reference.total)
    return ListOutput(against_shares(rewards, scores, responses.mask), rewards.detach())


@register_loss("t_list_of_tokens", source="a test: the shares of the answers' least likely tokens")
def t_list_of_tokens(responses: Responses, tokens: TokenLogps, *, beta: float = 0.5) -> ListOutput:
    least = -beta * (-tokens.policy).masked_fill(~tokens.mask, -1e9).logsumexp(-1)  # a pad has no token
    rewards = least.masked_fill(~responses.mask, 0)
    return ListOutput(against_shares(rewards, -responses.rank.to(rewards.dtype), responses.mask), rewards.detach())


@register_loss(
    "t_list_of_a_batch", source="a test: the logarithm of the batch's mean chance that the best answer is chosen"
)
def t_list_of_a_batch(responses: Responses, reference: Responses, batch: ListBatch, *, beta: float = 0.1) -> ListOutput:
    def objective(whole: Responses) -> Tensor:
        rewards = beta * (whole.total - batch.reference.total)
        best = whole.mask & (whole.rank == 1)
        chances = rewards.masked_fill(~whole.mask, -math.inf).softmax(1).masked_fill(~best, 0).sum(1)
        return -chances.mean().log()

    return ListOutput(batch.share(objective, responses), beta * (responses.total - reference.total).detach())


# ---------------------------------------------------------------- answers
def mean_reward(batch: AnswerBatch, *, beta: float) -> dict[str, float]:
    """Of all answers so far."""
    rewards = beta * (batch.policy.total - batch.reference.total).double()
    seen = batch.state.get("seen", 0)
    total = batch.state.get("mean", 0.0) * seen + float(rewards.sum())
    return {"seen": seen + len(rewards), "mean": total / (seen + len(rewards))}


@register_loss("t_bco_answers", source="arXiv 2404.04656, unpaired", update=mean_reward)
def t_bco_answers(
    response: SequenceLogps, label: Tensor, reference: SequenceLogps, batch: AnswerBatch, *, beta: float = 0.1
) -> AnswerOutput:
    rewards = beta * (response.total - reference.total)
    off = rewards - batch.state["mean"]
    return AnswerOutput(-logsigmoid(torch.where(label, off, -off)), rewards.detach())


@register_loss("t_rated_answers", source="a test: the reward is the rating's distance from a half")
def t_rated_answers(
    response: SequenceLogps, reference: SequenceLogps, scores: Tensor, *, beta: float = 0.1
) -> AnswerOutput:
    rewards = beta * (response.total - reference.total)
    return AnswerOutput((rewards - 5 * (scores - 0.5)).square(), rewards.detach())


@register_loss("t_answers_of_tokens", source="a test: tokens that have become less likely count twice")
def t_answers_of_tokens(
    response: SequenceLogps, label: Tensor, reference: SequenceLogps, tokens: TokenLogps, *, beta: float = 0.1
) -> AnswerOutput:
    ratios = tokens.policy - tokens.reference
    rewards = beta * (ratios + ratios.clamp(max=0)).sum(-1)
    return AnswerOutput(-logsigmoid(torch.where(label, rewards, -rewards)), rewards.detach())


@register_loss(
    "t_answers_of_a_batch", source="a test: the mean of the desirable answers must exceed that of the others"
)
def t_answers_of_a_batch(
    response: SequenceLogps, reference: SequenceLogps, batch: AnswerBatch, *, beta: float = 0.1
) -> AnswerOutput:
    def objective(whole: SequenceLogps) -> Tensor:
        rewards = beta * (whole.total - batch.reference.total)
        sides = [torch.where(side, rewards, 0).sum() / side.sum().clamp(min=1) for side in (batch.label, ~batch.label)]
        return -logsigmoid(sides[0] - sides[1])

    return AnswerOutput(batch.share(objective, response), beta * (response.total - reference.total).detach())


# ---------------------------------------------------------------- value
@register_loss("t_valued_pairs", source="a test: the mean rating of a pair is its value plus the mean reward")
def t_valued_pairs(policy: Pair, reference: Pair, scores: Tensor, value: Tensor, *, beta: float = 0.1) -> LossOutput:
    u, v = (beta * ratio for ratio in log_ratios(policy, reference))
    missed = scores[:, 0] - value - u, scores[:, 1] - value - v
    return LossOutput(missed[0] ** 2 + missed[1] ** 2, u.detach(), v.detach())


@register_loss("t_valued_lists", source="a test: the same of a list")
def t_valued_lists(
    responses: Responses, reference: Responses, scores: Tensor, value: Tensor, *, beta: float = 0.1
) -> ListOutput:
    rewards = beta * (responses.total - reference.total)
    missed = torch.where(responses.mask, scores.nan_to_num() - value[:, None] - rewards, 0)
    return ListOutput((missed**2).sum(1), rewards.detach())
