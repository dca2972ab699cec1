"""Losses of the whole vocabulary against their formulas in 350 digits, from the logits on: value and gradient by each logit."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import pytest
import torch
from mpmath import exp, log, mpf
from oracles import exact, nls

from pobench.registry import get_loss, list_losses, modifiers
from pobench.types import Entropy, Pair, SequenceLogps, TokenLogps, by_token

VOCABULARY = 4
OF_VOCABULARY = {"collision", "entropy", "forward_kl"}


class World(NamedTuple):
    """One pair. policy, reference: (side, token, entry) logits of the next token. tokens: (side, token) the token there."""

    policy: list[list[list[Any]]]
    reference: list[list[list[Any]]]
    tokens: list[list[int]]


def drawn(seed: int, lengths: tuple[int, int] = (2, 3)) -> World:
    draw = random.Random(seed)

    def logits() -> list[list[list[float]]]:
        return [[[draw.gauss(0, 2) for _ in range(VOCABULARY)] for _ in range(n)] for n in lengths]

    return World(logits(), logits(), [[draw.randrange(VOCABULARY) for _ in range(n)] for n in lengths])


# ---------------------------------------------------------------- in 350 digits
def distribution(logits: Sequence[Any]) -> list[Any]:
    """Logarithms of probabilities."""
    total = log(sum(exp(mpf(z)) for z in logits))
    return [mpf(z) - total for z in logits]


def summed(models: list[list[list[Any]]], tokens: list[list[int]]) -> list[Any]:
    return [
        sum(distribution(z)[y] for z, y in zip(side, of_side, strict=True))
        for side, of_side in zip(models, tokens, strict=True)
    ]


def divergence(world: World, side: int) -> Any:
    """Σ_t KL(reference || policy)."""
    total = mpf(0)
    for z, y in zip(world.policy[side], world.reference[side], strict=True):
        p, q = distribution(z), distribution(y)
        total += sum(exp(b) * (b - a) for a, b in zip(p, q, strict=True))
    return total


def ratios(world: World) -> list[Any]:
    ours, theirs = summed(world.policy, world.tokens), summed(world.reference, world.tokens)
    return [a - b for a, b in zip(ours, theirs, strict=True)]


def tdpo1(now: World, before: World, beta: Any) -> Any:
    u, v = ratios(now)
    return nls(beta * (u - v - (divergence(now, 1) - divergence(now, 0))))


def tdpo2(now: World, before: World, beta: Any, alpha: Any) -> Any:
    u, v = ratios(now)
    return nls(beta * (u - v - alpha * (divergence(now, 1) - divergence(before, 0))))


def scaled(now: World, dispersion_scale: Any, average: bool, reference_free: bool) -> Any:
    entropies = [
        sum(-sum(exp(b) * b for b in distribution(y)) for y in side) / len(side) / log(mpf(VOCABULARY))
        for side in now.reference
    ]
    x = summed(now.policy, now.tokens) if reference_free else ratios(now)
    x = [total / len(side) for total, side in zip(x, now.tokens, strict=True)] if average else x
    return -dispersion_scale * log(sum(entropies) / 2) * (x[0] - x[1])


def mallows_dpo(now: World, before: World, beta: Any, **of: Any) -> Any:
    return nls(beta * scaled(now, **of))


def mallows_ipo(now: World, before: World, tau: Any, **of: Any) -> Any:
    return (scaled(now, **of) - 1 / (2 * tau)) ** 2


def wpo_dpo(now: World, before: World, **of: Any) -> Any:
    aligned = mpf(0)
    for side, tokens in zip(before.policy, before.tokens, strict=True):
        for z, y in zip(side, tokens, strict=True):
            p = distribution(z)
            aligned += (p[y] - log(sum(exp(2 * a) for a in p))) / len(side)
    u, v = ratios(now)
    return exp(min(mpf(0), aligned)) * nls(of["dpo.beta"] * (u - v))


MALLOWS: list[dict[str, Any]] = [
    {"dispersion_scale": 0.5, "average": True, "reference_free": False},
    {"dispersion_scale": 0.29, "average": False, "reference_free": True},
]
FORMULAS: dict[str, tuple[Callable[..., Any], list[dict[str, Any]]]] = {
    "tdpo1": (tdpo1, [{"beta": 0.1}, {"beta": 1.0}]),
    "tdpo2": (tdpo2, [{"beta": 0.1, "alpha": 0.5}, {"beta": 1.0, "alpha": 2.0}]),
    "mallows_dpo": (mallows_dpo, [{"beta": 0.7, **of} for of in MALLOWS]),
    "mallows_ipo": (mallows_ipo, [{"tau": 0.4, **of} for of in MALLOWS]),
    "wpo(dpo)": (wpo_dpo, [{"dpo.beta": 0.1}, {"dpo.beta": 2.0}]),
}


# ---------------------------------------------------------------- by autograd, in fp64
def computed(name: str, world: World, settings: dict[str, Any]) -> tuple[Any, list[Any]]:
    """(loss, its gradient by the policy's logits, side by side)."""
    loss = get_loss(name)
    lengths = torch.tensor([[len(tokens) for tokens in world.tokens]])
    leaves = [torch.tensor(side, dtype=torch.float64, requires_grad=True) for side in world.policy]
    p = torch.cat([leaf.log_softmax(-1) for leaf in leaves])
    q = torch.cat([torch.tensor(side, dtype=torch.float64).log_softmax(-1) for side in world.reference])
    at = torch.tensor([y for side in world.tokens for y in side])[:, None]
    tokens = TokenLogps.of(lengths, p.gather(1, at)[:, 0], q.gather(1, at)[:, 0])

    def pair(values: Any) -> Pair:
        return Pair(*map(SequenceLogps, values.sum(-1).unbind(1), lengths.unbind(1)))

    own, known = (by_token(lengths, -(x.exp() * x).sum(1)).detach() for x in (p, q))
    output = loss.evaluate(
        pair(tokens.policy),
        pair(tokens.reference),
        collision=by_token(lengths, (2 * p).logsumexp(1)).detach(),
        entropy=Entropy(own, known, float(log(VOCABULARY))),
        forward_kl=by_token(lengths, (q.exp() * (q - p)).sum(1)),
        **settings,
    )
    return output.loss, list(torch.autograd.grad(output.loss.sum(), leaves))


def test_every_loss_and_modifier_of_the_vocabulary_has_a_formula_of_logits() -> None:
    asking = {name for name in list_losses() if get_loss(name).needs & OF_VOCABULARY}
    around = {part.name for name in FORMULAS for part in get_loss(name).parts}
    assert asking == set(FORMULAS) & set(list_losses())
    assert {name for name in modifiers.names() if modifiers.get(name).needs & OF_VOCABULARY} <= around


@pytest.mark.parametrize("name", FORMULAS)
@pytest.mark.parametrize("seed", [1, 2])
def test_value_and_gradient_by_logits_agree_with_the_formula(name: str, seed: int) -> None:
    formula, several = FORMULAS[name]
    world, h = drawn(seed), mpf(10) ** -30
    for settings in several:
        given = {key: exact(value) for key, value in settings.items()}
        here = formula(world, world, **given)
        loss, gradients = computed(name, world, settings)
        assert loss.item() == pytest.approx(float(here), rel=1e-12)
        for side in (0, 1):
            for t, v in ((0, 1), (len(world.policy[side]) - 1, VOCABULARY - 1)):
                moved = [[list(z) for z in of_side] for of_side in world.policy]
                moved[side][t][v] = mpf(moved[side][t][v]) + h
                slope = (formula(world._replace(policy=moved), world, **given) - here) / h
                assert gradients[side][t, v].item() == pytest.approx(float(slope), rel=1e-10, abs=1e-14)


def test_the_divergence_of_the_chosen_answer_is_held_in_tdpo2_alone() -> None:
    world = drawn(3)
    slopes = [computed(name, world, {"beta": 1.0})[1][0] for name in ("tdpo1", "tdpo2", "dpo")]
    direction = [slope / slope.norm() for slope in slopes]
    torch.testing.assert_close(direction[1], direction[2])
    assert (direction[0] - direction[2]).norm() > 0.05


def test_a_pair_as_likely_as_the_policys_own_samples_has_the_whole_loss() -> None:
    world = drawn(4)
    sure = [[[6.0 if v == y else 0.0 for v in range(VOCABULARY)] for y in side] for side in world.tokens]
    world = world._replace(policy=sure)
    weighed, plain = (computed(name, world, {})[0] for name in ("wpo(dpo)", "dpo"))
    torch.testing.assert_close(weighed, plain, rtol=0, atol=0)
