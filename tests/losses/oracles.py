"""Every loss once more, from the printed formula, in 350 digits; nothing here is shared with the code under test.

A new loss of pairs needs one row in `ORACLES`, a loss of whole batches one in `BATCHES`: its formula, the settings it is tried
at, and by hand its value and its reward at `WORKED`. A loss of lists needs its formula of a whole list in `LISTS` beside it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, NamedTuple

import torch
from mpmath import exp, log, log1p, mp, mpf

mp.dps = 350  # a slope of 1e-290 is the difference of two values near 1


class Case(NamedTuple):
    """One pair: summed nats under policy (w, l) and reference (rw, rl), lengths in tokens; kl in nats; ratings (sw, sl); V of
    the prompt."""

    w: float
    l: float  # noqa: E741 (the contract's own name)
    rw: float
    rl: float
    nw: int
    nl: int
    kl: float = 0.0
    sw: float = 2.0
    sl: float = 0.5
    value: float = 1.0


class Pull(NamedTuple):
    """Where a loss by its design lowers a chosen answer or raises a rejected one, and a case where it does."""

    where: Callable[..., bool]  # of what `of` makes of a case, and the loss's settings
    witness: Case
    of: Callable[[Case], tuple[float, float]] = lambda c: (c.w - c.rw, c.l - c.rl)  # log-ratios, in nats


class Row(NamedTuple):
    """One loss. Few losses need more than the first four.

    settings: each complete; the first is that of `worked` and `reward`. worked: the loss at `WORKED`. reward: the chosen
    answer's there, in the unit that the docstring states. pull: where the loss pulls the other way. unranked: a case where
    it pulls the right way, if it does not at `UNRANKED`. cancels: its slopes are differences of two terms, so what is
    left has the digits of the larger term. weight: a factor of the formula that carries no gradient.
    """

    formula: Callable[..., Any]
    settings: Sequence[dict[str, Any]]
    worked: float
    reward: float
    pull: Pull | None = None
    unranked: Case | None = None
    cancels: bool = False
    weight: Callable[..., Any] | None = None


GAP = 1.5  # between the ratings of a case that gives none
# Means -1 and -3 nats a token; log-ratios +4 and -2, so their difference is 6 nats; 0.5 and -0.25 a token.
WORKED = Case(w=-8.0, l=-24.0, rw=-12.0, rl=-22.0, nw=8, nl=8, kl=10.0)


def nls(x: Any) -> Any:
    """-log σ(x), exact far into both tails."""
    return log1p(exp(-x)) if x > 0 else log1p(exp(x)) - x


def sigma(x: Any) -> Any:
    return 1 / (1 + exp(-x))


def mean(values: Sequence[Any]) -> Any:
    return sum(values) / len(values)


def simpo(c: Case, beta: float, gamma: float) -> Any:
    return nls(beta * c.w / c.nw - beta * c.l / c.nl - gamma)


def simpo_no_ln(c: Case, beta: float, gamma: float) -> Any:
    return nls(beta * c.w - beta * c.l - gamma)


def simpo_sft(c: Case, beta: float, gamma: float, sft_weight: float, sft_reduction: str) -> Any:
    return simpo(c, beta, gamma) + sft_weight * nll(c, sft_reduction)


def dpo(c: Case, beta: float) -> Any:
    return nls(beta * (c.w - c.rw - c.l + c.rl))


def dpo_ln(c: Case, beta: float) -> Any:
    return nls(beta * ((c.w - c.rw) / c.nw - (c.l - c.rl) / c.nl))


def dpo_gamma(c: Case, beta: float, gamma: float) -> Any:
    return nls(beta * (c.w - c.rw - c.l + c.rl) - gamma)


def rdpo(c: Case, beta: float, alpha: float) -> Any:
    return nls(beta * (c.w - c.rw - c.l + c.rl) + alpha * (c.nw - c.nl))


def ipo(c: Case, tau: float, average: bool) -> Any:
    nw, nl = (c.nw, c.nl) if average else (1, 1)
    return ((c.w - c.rw) / nw - (c.l - c.rl) / nl - 1 / (2 * tau)) ** 2


def ipo_no_reference(c: Case, tau: float, sft_weight: float, sft_reduction: str) -> Any:
    return (c.w / c.nw - c.l / c.nl - 1 / (2 * tau)) ** 2 + sft_weight * nll(c, sft_reduction)


def cpo(c: Case, beta: float, sft_weight: float, sft_reduction: str) -> Any:
    return nls(beta * (c.w - c.l)) + sft_weight * nll(c, sft_reduction)


def kto(c: Case, beta: float, desirable_weight: float, undesirable_weight: float) -> Any:
    z = max(mpf(0), beta * c.kl)
    return desirable_weight * sigma(z - beta * (c.w - c.rw)) + undesirable_weight * sigma(beta * (c.l - c.rl) - z)


def kto_unpaired(c: Case, **settings: float) -> Any:
    return kto(c, **settings) / 2  # the mean of its two answers


def orpo(c: Case, odds_weight: float) -> Any:
    def odds(a: Any) -> Any:
        a = min(a, mpf("-1e-6"))
        return a - log1p(-exp(a))

    return -c.w / c.nw + odds_weight * nls(odds(c.w / c.nw) - odds(c.l / c.nl))


def rrhf(c: Case, sft_weight: float, sft_reduction: str) -> Any:
    return max(mpf(0), c.l / c.nl - c.w / c.nw) + sft_weight * nll(c, sft_reduction)


def slic_hf(c: Case, delta: float, sft_weight: float, sft_reduction: str) -> Any:
    return max(mpf(0), delta - c.w + c.l) + sft_weight * nll(c, sft_reduction)


def drift(c: Case) -> tuple[Any, Any]:
    """Log-ratios to the reference, in nats: of the chosen answer, of the rejected one."""
    return c.w - c.rw, c.l - c.rl


def cdpo(c: Case, beta: float, label_smoothing: float) -> Any:
    m = beta * (c.w - c.rw - c.l + c.rl)
    return (1 - label_smoothing) * nls(m) + label_smoothing * nls(-m)


def robust_dpo(c: Case, beta: float, label_smoothing: float) -> Any:
    m = beta * (c.w - c.rw - c.l + c.rl)
    return ((1 - label_smoothing) * nls(m) - label_smoothing * nls(-m)) / (1 - 2 * label_smoothing)


def rso(c: Case, beta: float) -> Any:
    return max(mpf(0), 1 - beta * (c.w - c.rw - c.l + c.rl))


def exo_pair(c: Case, beta: float, label_smoothing: float) -> Any:
    m = beta * (c.w - c.rw - c.l + c.rl)
    return sigma(m) * (-nls(m) - log(1 - label_smoothing)) + sigma(-m) * (-nls(-m) - log(label_smoothing))


def nca_pair(c: Case, beta: float) -> Any:
    w, l = drift(c)  # noqa: E741
    return nls(beta * w) + nls(-beta * w) / 2 + nls(-beta * l) / 2


def bco_pair(c: Case, beta: float) -> Any:
    w, l = drift(c)  # noqa: E741
    return nls(beta * w) + nls(-beta * l)


def apo_zero(c: Case, beta: float) -> Any:
    w, l = drift(c)  # noqa: E741
    return sigma(-beta * w) + sigma(beta * l)


def apo_down(c: Case, beta: float) -> Any:
    w, l = drift(c)  # noqa: E741
    return sigma(beta * w) + sigma(beta * (l - w))


def sppo_hard(c: Case, beta: float) -> Any:
    w, l = drift(c)  # noqa: E741
    return (w - 1 / (2 * beta)) ** 2 + (l + 1 / (2 * beta)) ** 2


def caldpo(c: Case, beta: float, calibration_weight: float) -> Any:
    w, l = drift(c)  # noqa: E741
    return nls(w - l) + calibration_weight * sppo_hard(c, beta)


def dpop(c: Case, beta: float, penalty_weight: float) -> Any:
    w, l = drift(c)  # noqa: E741
    return nls(beta * (w - l - penalty_weight * max(mpf(0), -w)))


def simper(c: Case) -> Any:
    return exp(min(mpf(0), c.l / c.nl)) - exp(min(mpf(0), c.w / c.nw))


def alphapo(c: Case, alpha: float, beta: float, gamma: float) -> Any:
    def reward(a: Any) -> Any:
        return beta * (1 - exp(min(mpf(80), -alpha * a))) / alpha if alpha else beta * a

    return nls(reward(c.w / c.nw) - reward(c.l / c.nl) - gamma)


def repo(c: Case, gamma: float) -> Any:
    return max(mpf(0), gamma - c.w / c.nw + c.l / c.nl)


def discopop(c: Case, beta: float, tau: float) -> Any:
    m = beta * (c.w - c.rw - c.l + c.rl)
    return sigma(-m / tau) * nls(m) + sigma(m / tau) * exp(-m)


def rpo(c: Case, beta: float, sft_weight: float, sft_reduction: str) -> Any:
    return dpo(c, beta) + sft_weight * nll(c, sft_reduction)


def nll(c: Case, sft_reduction: str) -> Any:
    return {"sum": -c.w, "mean": -c.w / c.nw}[sft_reduction]


def margin_of(c: Case, beta: Any) -> Any:
    return beta * (c.w - c.rw - c.l + c.rl)


def gpo_exponential(c: Case, beta: float) -> Any:
    m = margin_of(c, beta)
    return exp(min(mpf(20), -m)) * (1 + max(mpf(0), -m - 20))


def gpo_squared_hinge(c: Case, beta: float) -> Any:
    return max(mpf(0), 1 - margin_of(c, beta)) ** 2


def gpo_savage(c: Case, beta: float) -> Any:
    return sigma(-margin_of(c, beta)) ** 2


def chipo(c: Case, beta: float, reward_bound: float) -> Any:
    w, l = (beta * (x + exp(min(mpf(20), x))) for x in drift(c))  # noqa: E741
    return nls(min(2 * reward_bound, max(-2 * reward_bound, w - l)))


def dpo_shift(c: Case, beta: float, shift: float) -> Any:
    return nls(beta * (c.w - c.rw - shift * (c.l - c.rl)))


def simpo_hinge(c: Case, beta: float, gamma: float) -> Any:
    return max(mpf(0), 1 + gamma - beta * (c.w / c.nw - c.l / c.nl))


def odpo(c: Case, beta: float, alpha: float) -> Any:
    return nls(margin_of(c, beta) - alpha * log(max(mpf("1e-6"), c.sw - c.sl)))


def rebel(c: Case, eta: float) -> Any:
    return (margin_of(c, 1 / eta) - (c.sw - c.sl)) ** 2


def dro_v(c: Case, tau: float) -> Any:
    return mean([(s - c.value - tau * u) ** 2 / (2 * tau) for s, u in zip((c.sw, c.sl), drift(c), strict=True)])


def sppo_soft(c: Case, beta: float) -> Any:
    w, l = drift(c)  # noqa: E741
    return (w - (c.sw - mpf("0.5")) / beta) ** 2 + (l - (c.sl - mpf("0.5")) / beta) ** 2


def divergence(p: Any, q: Any) -> Any:
    """KL((p, 1 - p) || (q, 1 - q)) of two log-odds."""
    return sigma(p) * (nls(q) - nls(p)) + sigma(-p) * (nls(-q) - nls(-p))


def rpo_backward(c: Case, beta: float, reward_scale: float) -> Any:
    return divergence(reward_scale * (c.sw - c.sl), margin_of(c, beta))


def rpo_forward(c: Case, beta: float, reward_scale: float) -> Any:
    return divergence(margin_of(c, beta), reward_scale * (c.sw - c.sl))


def reward_distillation(c: Case, beta: float, reward_scale: float) -> Any:
    return (margin_of(c, beta) - reward_scale * (c.sw - c.sl)) ** 2


# ---------------------------------------------------------------- lists: a pair is one of two


class Answer(NamedTuple):
    """An answer of a list: its summed nats under policy and reference, its tokens, rank (1 is the best) and rating."""

    total: Any
    known: Any
    n: Any
    rank: Any
    score: Any

    @property
    def moved(self) -> Any:
        return self.total - self.known

    @property
    def mean(self) -> Any:
        return self.total / self.n

    def nll(self, sft_reduction: str) -> Any:
        return {"sum": -self.total, "mean": -self.mean}[sft_reduction]


def ordered(of: Sequence[Answer]) -> list[tuple[Answer, Answer]]:
    """Every pair of a better and a worse answer, by rank."""
    return [(i, j) for i in of for j in of if i.rank < j.rank]


def best_nll(of: Sequence[Answer], sft_reduction: str) -> Any:
    top = min(a.rank for a in of)
    return mean([a.nll(sft_reduction) for a in of if a.rank == top])


def plackett_luce(of: Sequence[Answer], beta: float) -> Any:
    """-log of the product of the choices: each answer's, among itself and those ranked below it."""
    return sum(
        log(exp(beta * i.moved) + sum((exp(beta * j.moved) for j in of if j.rank > i.rank), mpf(0))) - beta * i.moved
        for i in of
    )


def pro(of: Sequence[Answer], sft_weight: float, sft_reduction: str) -> Any:
    ranking = mpf(0)
    for i in of:
        gaps = [(i.score - j.score, j) for j in of if j.score < i.score]
        if gaps:
            own = i.mean * max(gap for gap, _ in gaps)
            ranking += log(exp(own) + sum(exp(j.mean * gap) for gap, j in gaps)) - own
    top = max(a.score for a in of)
    sft = mean([a.nll(sft_reduction) for a in of if a.score == top])
    return ranking + sft_weight * (len(of) - 1) ** 2 * sft


def lipo_lambda(of: Sequence[Answer], beta: float, rating_scale: float) -> Any:
    def key(a: Answer) -> tuple[Any, Any]:
        return round(float(a.moved), 3), a.score

    def discount(a: Answer) -> Any:
        return log(mpf(2 + sum(key(other) > key(a) for other in of)))  # 1 + place

    def gain(a: Answer) -> Any:
        return mpf(2) ** min(mpf(64), rating_scale * a.score) - 1

    return sum(
        (
            (gain(i) - gain(j)) * abs(1 / discount(i) - 1 / discount(j)) * nls(beta * (i.moved - j.moved))
            for i in of
            for j in of
            if i.score > j.score
        ),
        mpf(0),
    )


def shares_of(levels: Sequence[Any]) -> list[Any]:
    top = max(levels)
    grown = [exp(level - top) for level in levels]
    return [g / sum(grown) for g in grown]


def infonca(of: Sequence[Answer], beta: float, rating_temperature: float) -> Any:
    wanted = shares_of([a.score / rating_temperature for a in of])
    total = log(sum(exp(beta * a.moved) for a in of))
    return sum(p * (total - beta * a.moved) for p, a in zip(wanted, of, strict=True))


def nca_list(of: Sequence[Answer], beta: float, rating_temperature: float) -> Any:
    wanted = shares_of([a.score / rating_temperature for a in of])
    return sum(p * nls(beta * a.moved) + nls(-beta * a.moved) / len(of) for p, a in zip(wanted, of, strict=True))


def exo_rw(of: Sequence[Answer], beta: float, rating_temperature: float) -> Any:
    total = log(sum(exp(beta * a.moved) for a in of))
    wanted = log(sum(exp(a.score / rating_temperature) for a in of))
    return sum(
        exp(beta * a.moved - total) * (beta * a.moved - total - a.score / rating_temperature + wanted) for a in of
    )


def rrhf_list(of: Sequence[Answer], sft_weight: float, sft_reduction: str) -> Any:
    hinges = sum((max(mpf(0), j.mean - i.mean) for i, j in ordered(of)), mpf(0))
    return hinges + sft_weight * best_nll(of, sft_reduction)


def slic_list(of: Sequence[Answer], delta: float, sft_weight: float, sft_reduction: str) -> Any:
    def place(a: Answer) -> int:
        return sum(other.rank < a.rank for other in of)

    hinges = [max(mpf(0), delta * (place(j) - place(i)) - i.total + j.total) for i, j in ordered(of)]
    return sum(hinges, mpf(0)) + sft_weight * best_nll(of, sft_reduction)


def triple(of: Sequence[Answer]) -> list[tuple[Answer, Answer]]:
    """The pairs of a second best and a worst answer: those tied at place 2, or at place 1 where those are the worst."""
    ranks = sorted(a.rank for a in of)
    chosen = ranks[1] if ranks[1] < ranks[-1] else ranks[0]
    return [(i, j) for i, j in ordered(of) if i.rank == chosen and j.rank == ranks[-1]]


def tpo(of: Sequence[Answer], beta: float, sft_weight: float, sft_reduction: str) -> Any:
    contrast = mean([nls(beta * (i.total - j.total)) for i, j in triple(of)] or [mpf(0)])
    return contrast + sft_weight * best_nll(of, sft_reduction)


def tpo_l(of: Sequence[Answer], beta: float, gamma: float, sft_weight: float, sft_reduction: str) -> Any:
    contrast = mean([nls(beta * (i.mean - j.mean) - gamma) for i, j in triple(of)] or [mpf(0)])
    return contrast + sft_weight * best_nll(of, sft_reduction)


def tpo_hinge(of: Sequence[Answer], beta: float, sft_weight: float, sft_reduction: str) -> Any:
    contrast = mean([max(mpf(0), 1 - beta * (i.total - j.total)) for i, j in triple(of)] or [mpf(0)])
    return contrast + sft_weight * best_nll(of, sft_reduction)


def tpo_ipo(of: Sequence[Answer], tau: float, sft_weight: float, sft_reduction: str) -> Any:
    contrast = mean([(i.mean - j.mean - 1 / (2 * tau)) ** 2 for i, j in triple(of)] or [mpf(0)])
    return contrast + sft_weight * best_nll(of, sft_reduction)


LISTS: dict[str, Callable[..., Any]] = {
    f.__name__: f
    for f in (
        *(plackett_luce, pro, lipo_lambda, infonca, nca_list, exo_rw),
        *(rrhf_list, slic_list, tpo, tpo_l, tpo_hinge, tpo_ipo),
    )
}


def pair_of(name: str) -> Callable[..., Any]:
    """The formula of a loss of lists on a pair."""

    def formula(c: Case, **settings: Any) -> Any:
        return LISTS[name]([Answer(c.w, c.rw, c.nw, 1, c.sw), Answer(c.l, c.rl, c.nl, 2, c.sl)], **settings)

    return formula


def collected(what: str, n: int) -> Any:
    """The sum over a response of n tokens of what `Vocabulary.spread` hands to a loss for each."""
    base, height, ahead = {
        "collision": (-1, mpf(-1) / 2, 0.0),
        "reference entropy": (2, mpf(1), 1.0),
        "forward_kl": (mpf("0.02"), mpf("0.01"), 0.0),
    }[what]
    waves = torch.sin(torch.arange(int(n)) + ahead).double().tolist()
    return sum(base + height * mpf(wave) for wave in waves)


def dispersion(c: Case) -> Any:
    """The mean of the two answers' mean entropies under the reference, as a share of the largest, 10 nats."""
    return sum(collected("reference entropy", n) / int(n) for n in (c.nw, c.nl)) / 20


def tdpo1(c: Case, beta: float) -> Any:
    w, l = drift(c)  # noqa: E741
    return nls(beta * (w + collected("forward_kl", c.nw)) - beta * (l + collected("forward_kl", c.nl)))


def tdpo2(c: Case, beta: float, alpha: float) -> Any:
    w, l = drift(c)  # noqa: E741
    return nls(beta * (w - l - alpha * (collected("forward_kl", c.nl) - collected("forward_kl", c.nw))))


def mallows_margin(c: Case, dispersion_scale: float, average: bool, reference_free: bool) -> Any:
    w, l = (c.w, c.l) if reference_free else drift(c)  # noqa: E741
    return -dispersion_scale * log(dispersion(c)) * (w / c.nw - l / c.nl if average else w - l)


def mallows_dpo(c: Case, beta: float, **of: Any) -> Any:
    return nls(beta * mallows_margin(c, **of))


def mallows_ipo(c: Case, tau: float, **of: Any) -> Any:
    return (mallows_margin(c, **of) - 1 / (2 * tau)) ** 2


def drifted(chosen: float, rejected: float) -> Case:
    """A pair of equal lengths whose two answers have moved from the reference, in nats."""
    return Case(-40.0 + chosen, -40.0 + rejected, -40.0, -40.0, 20, 20, 0.0)


def past_the_flip_rate(w: float, l: float, beta: float, label_smoothing: float) -> bool:  # noqa: E741
    """The margin is past the one at which as many pairs are labelled wrongly as the flip rate says."""
    return beta * (w - l) > math.log(1 / label_smoothing - 1)


# An unranked pair inside every hinge, short of every target.
UNRANKED = Case(-60.0, -58.0, -60.5, -59.0, 20, 22, 0.0)

SUM, MEAN = {"sft_reduction": "sum"}, {"sft_reduction": "mean"}

PAST_ITS_MEANS = Pull(  # past a target of the means' difference
    lambda w, l, tau, **_: w - l > 1 / (2 * tau),  # noqa: E741
    Case(-1.0, -100.0, -1.0, -100.0, 20, 20),
    of=lambda c: (c.w / c.nw, c.l / c.nl),
)

ORACLES = {
    # 2·(-1) - 2·(-3) - 1 = 3; log(1 + e^-3) = 0.04858735
    "simpo": Row(simpo, [{"beta": 2.0, "gamma": 1.0}, {"beta": 10.0, "gamma": 3.0}], 0.0485873515737, -2.0),
    # 0.1·(-8 + 24) - 1 = 0.6; log(1 + e^-0.6) = 0.43748795
    "simpo_no_ln": Row(simpo_no_ln, [{"beta": 0.1, "gamma": 1.0}, {"beta": 2.0, "gamma": 0.0}], 0.437487950393, -0.8),
    # simpo's 0.04858735, and 0.25·8 = 2
    "simpo_sft": Row(
        simpo_sft,
        [{"beta": 2.0, "gamma": 1.0, "sft_weight": 0.25, **how} for how in (SUM, MEAN)],
        2.0485873515737,
        -2.0,
    ),
    # 0.1·6 = 0.6; log(1 + e^-0.6) = 0.43748795
    "dpo": Row(dpo, [{"beta": 0.1}, {"beta": 0.01}], 0.437487950393, 0.4),
    # 4·(0.5 + 0.25) = 3; log(1 + e^-3) = 0.04858735
    "dpo_ln": Row(dpo_ln, [{"beta": 4.0}, {"beta": 0.1}], 0.0485873515737, 2.0),
    # 0.1·6 - 0.6 = 0; log 2
    "dpo_gamma": Row(dpo_gamma, [{"beta": 0.1, "gamma": 0.6}, {"beta": 0.01, "gamma": 1.5}], 0.693147180560, 0.4),
    # 0.1·6 + 0.05·(8 - 8) = 0.6
    "rdpo": Row(rdpo, [{"beta": 0.1, "alpha": 0.05}, {"beta": 0.01, "alpha": 1.0}], 0.437487950393, 0.4),
    # (6 - 1/(2·0.1))² = 1
    "ipo": Row(
        ipo,
        [{"tau": 0.1, "average": False}, {"tau": 0.5, "average": True}],
        1.0,
        4.0,
        # past its target of the margin
        pull=Pull(lambda w, l, tau, **_: w - l > 1 / (2 * tau), drifted(4.0, -2.0)),  # noqa: E741
    ),
    # (-1 + 3 - 2.5)² = 0.25, and 0.4 of 1 nat a token
    "ipo_no_reference": Row(
        ipo_no_reference,
        [{"tau": 0.2, "sft_weight": 0.4, **how} for how in (MEAN, SUM)],
        0.65,
        -1.0,
        pull=PAST_ITS_MEANS,
    ),
    # log(1 + e^-1.6) = 0.18390074, and 1·8 = 8
    "cpo": Row(cpo, [{"beta": 0.1, "sft_weight": 1.0, **how} for how in (SUM, MEAN)], 8.1839007409, -0.8),
    # z = 0.1·10 = 1; 1 - σ(0.4 - 1) = 0.64565631, and 2·(1 - σ(1 + 0.2)) = 2·0.23147522
    "kto": Row(
        kto,
        [
            {"beta": 0.1, "desirable_weight": 1.0, "undesirable_weight": 2.0},
            {"beta": 0.05, "desirable_weight": 0.7, "undesirable_weight": 1.3},
        ],
        1.108606738,
        0.4,
    ),
    # half of KTO's
    "kto_unpaired": Row(
        kto_unpaired,
        [
            {"beta": 0.1, "desirable_weight": 1.0, "undesirable_weight": 2.0},
            {"beta": 0.05, "desirable_weight": 0.7, "undesirable_weight": 1.3},
        ],
        0.554303369,
        0.4,
    ),
    # of a list of two: DPO's
    "plackett_luce": Row(pair_of("plackett_luce"), [{"beta": 0.1}, {"beta": 0.01}], 0.437487950393, 0.4),
    # 1.5·(-1 + 3) = 3: 0.04858735; and 0.05·8
    "pro": Row(pair_of("pro"), [{"sft_weight": 0.05, **how} for how in (SUM, MEAN)], 0.4485873515737, -1.0),
    # 2^2 - 2^0.5 = 2.58578644, 1 / log 2 - 1 / log 3 = 0.53245581: 1.37681701·0.43748795
    "lipo_lambda": Row(
        pair_of("lipo_lambda"),
        [{"beta": 0.1, "rating_scale": 1.0}, {"beta": 0.01, "rating_scale": 0.2}],
        0.602340852617,
        0.4,
    ),
    # p = σ(1.5) = 0.81757448: 0.81757448·0.43748795 + 0.18242552·1.03748795
    "infonca": Row(
        pair_of("infonca"),
        [{"beta": 0.1, "rating_temperature": 1.0}, {"beta": 0.01, "rating_temperature": 0.5}],
        0.546943264547,
        0.4,
        # past the share that the ratings give
        pull=Pull(
            lambda w, l, beta, rating_temperature: beta * (w - l) > GAP / rating_temperature,  # noqa: E741
            drifted(100.0, -100.0),
        ),
        cancels=True,
    ),
    # 0.81757448·0.51301525 + 0.18242552·0.79813887 + 0.5·(0.91301525 + 0.59813887)
    "nca_list": Row(
        pair_of("nca_list"),
        [{"beta": 0.1, "rating_temperature": 1.0}, {"beta": 0.01, "rating_temperature": 0.5}],
        1.320606138468,
        0.4,
        # past an answer's own optimum, log 2p
        pull=Pull(
            lambda w, l, beta, rating_temperature: (  # noqa: E741
                beta * w > math.log(2 / (1 + math.exp(-min(700, GAP / rating_temperature))))
                or beta * l < math.log(2) - GAP / rating_temperature - math.log1p(math.exp(-GAP / rating_temperature))
            ),
            drifted(80.0, 0.0),
        ),
        cancels=True,
    ),
    # q = σ(0.6), p = σ(1.5)
    "exo_rw": Row(
        pair_of("exo_rw"),
        [{"beta": 0.1, "rating_temperature": 1.0}, {"beta": 0.5, "rating_temperature": 0.5}],
        0.082834651894,
        0.4,
        pull=Pull(
            lambda w, l, beta, rating_temperature: beta * (w - l) > GAP / rating_temperature,  # noqa: E741
            drifted(20.0, -20.0),
        ),
        cancels=True,
    ),
    # of a list of two: RRHF's, SLiC-HF's, and with other settings CPO's and SimPO with SFT's
    "rrhf_list": Row(pair_of("rrhf_list"), [{"sft_weight": 0.1, **how} for how in (SUM, MEAN)], 0.8, -1.0),
    "slic_list": Row(
        pair_of("slic_list"), [{"delta": 17.0, "sft_weight": 0.5, **how} for how in (SUM, MEAN)], 5.0, -8.0
    ),
    # 0.18390074, and half of 1 nat a token
    "tpo": Row(pair_of("tpo"), [{"beta": 0.1, "sft_weight": 0.5, **how} for how in (MEAN, SUM)], 0.6839007409, -0.8),
    # 0.04858735, and 0.25 of 1
    "tpo_l": Row(
        pair_of("tpo_l"),
        [{"beta": 2.0, "gamma": 1.0, "sft_weight": 0.25, **how} for how in (MEAN, SUM)],
        0.2985873515737,
        -2.0,
    ),
    # 1 - 0.05·16 = 0.2, and half of 1 nat a token
    "tpo_hinge": Row(
        pair_of("tpo_hinge"), [{"beta": 0.05, "sft_weight": 0.5, **how} for how in (MEAN, SUM)], 0.7, -0.4
    ),
    # IPO's without a reference
    "tpo_ipo": Row(
        pair_of("tpo_ipo"),
        [{"tau": 0.2, "sft_weight": 0.4, **how} for how in (MEAN, SUM)],
        0.65,
        -1.0,
        pull=PAST_ITS_MEANS,
    ),
    # half of APO-zero's
    "apo_zero_unpaired": Row(
        lambda c, beta: apo_zero(c, beta) / 2, [{"beta": 0.1}, {"beta": 0.01}], 0.425739171288, 0.4
    ),
    # odds(-1) = -1 - log(1 - e^-1) = -0.54132485, odds(-3) = -2.94893082, difference 2.40760597;
    # 1 + 0.5·log(1 + e^-2.40760597) = 1 + 0.5·0.08620574
    "orpo": Row(orpo, [{"odds_weight": 0.5}, {"odds_weight": 2.0}], 1.04310287, -1 - math.log(1 - math.exp(-1))),
    # max(0, -3 + 1) = 0, and 0.1·8
    "rrhf": Row(rrhf, [{"sft_weight": 0.1, **how} for how in (SUM, MEAN)], 0.8, -1.0),
    # max(0, 17 + 8 - 24) = 1, and 0.5·8
    "slic_hf": Row(slic_hf, [{"delta": 17.0, "sft_weight": 0.5, **how} for how in (SUM, MEAN)], 5.0, -8.0),
    # m = 0.6; 0.9·log(1 + e^-0.6) + 0.1·log(1 + e^0.6) = 0.9·0.43748795 + 0.1·1.03748795
    "cdpo": Row(
        cdpo,
        [{"beta": 0.1, "label_smoothing": 0.1}, {"beta": 0.01, "label_smoothing": 0.0}],
        0.497487950393,
        0.4,
        pull=Pull(past_the_flip_rate, drifted(20.0, -20.0)),
    ),
    # (0.9·0.43748795 - 0.1·1.03748795) / 0.8 = 0.28999036 / 0.8
    "robust_dpo": Row(
        robust_dpo,
        [{"beta": 0.1, "label_smoothing": 0.1}, {"beta": 0.01, "label_smoothing": 0.45}],
        0.362487950393,
        0.4,
    ),
    # 1 - 0.1·6 = 0.4
    "rso": Row(rso, [{"beta": 0.1}, {"beta": 0.5}], 0.4, 0.4),
    # q = σ(0.6) = 0.64565631; q·(-0.43748795 - log 0.9) + (1 - q)·(-1.03748795 - log 0.1)
    # = 0.64565631·(-0.33212743) + 0.35434369·1.26509714 = -0.21444017 + 0.44827919
    "exo_pair": Row(
        exo_pair,
        [{"beta": 0.1, "label_smoothing": 0.1}, {"beta": 0.5, "label_smoothing": 1e-3}],
        0.233839021692,
        0.4,
        pull=Pull(past_the_flip_rate, drifted(50.0, -50.0)),
    ),
    # log(1 + e^-0.4) = 0.51301525, log(1 + e^0.4) = 0.91301525, log(1 + e^-0.2) = 0.59813887;
    # 0.51301525 + 0.5·0.91301525 + 0.5·0.59813887
    "nca_pair": Row(
        nca_pair,
        [{"beta": 0.1}, {"beta": 0.01}],
        1.268592313291,
        0.4,
        # past its target of the chosen answer
        pull=Pull(lambda w, l, beta: beta * w > math.log(2), drifted(80.0, 0.0)),  # noqa: E741
    ),
    # 0.51301525 + 0.59813887
    "bco_pair": Row(bco_pair, [{"beta": 0.1}, {"beta": 0.01}], 1.111154121782, 0.4),
    # 1 - σ(0.4) = 0.40131234, σ(-0.2) = 0.45016600
    "apo_zero": Row(apo_zero, [{"beta": 0.1}, {"beta": 0.01}], 0.851478342575, 0.4),
    # σ(0.4) = 0.59868766, 1 - σ(0.6) = 0.35434369
    "apo_down": Row(
        apo_down,
        [{"beta": 0.1}, {"beta": 0.01}],
        0.953031353887,
        0.4,
        # the chosen answer is meant to fall while it is nearer to the reference than the margin is to 0
        pull=Pull(lambda w, l, beta: abs(w) <= abs(w - l) * (1 + 1e-12), drifted(1.0, -9.0)),  # noqa: E741
        unranked=drifted(30.0, 29.0),
        cancels=True,  # the chosen answer's two sigmoids pull against each other
    ),
    # targets ±5: (4 - 5)² + (-2 + 5)² = 1 + 9
    "sppo_hard": Row(
        sppo_hard,
        [{"beta": 0.1}, {"beta": 0.001}],
        10.0,
        0.4,
        # past a target of either answer
        pull=Pull(lambda w, l, beta: max(w, -l) > 1 / (2 * beta), drifted(0.0, -600.0)),  # noqa: E741
    ),
    # log(1 + e^-6) = 0.00247569, and 0.5·10
    "caldpo": Row(
        caldpo,
        [{"beta": 0.1, "calibration_weight": 0.5}, {"beta": 0.002, "calibration_weight": 1.0}],
        5.002475685,
        4.0,
        # past a target of either answer
        pull=Pull(lambda w, l, beta, **_: max(w, -l) > 1 / (2 * beta), drifted(300.0, 0.0)),  # noqa: E741
    ),
    # the chosen answer rose: DPO's 0.43748795
    "dpop": Row(
        dpop, [{"beta": 0.1, "penalty_weight": 50.0}, {"beta": 0.01, "penalty_weight": 1.5}], 0.437487950393, 0.4
    ),
    # e^-3 - e^-1 = 0.04978707 - 0.36787944
    "simper": Row(simper, [{}], -0.318092372803, math.exp(-1)),
    # r(-1) = 4·(1 - e^0.5)/0.5 = -5.18977017, r(-3) = 4·(1 - e^1.5)/0.5 = -27.85351256; 22.66374239 - 22 = 0.66374239;
    # log(1 + e^-0.66374240) = log 1.51492054
    "alphapo": Row(
        alphapo,
        [
            {"alpha": 0.5, "beta": 4.0, "gamma": 22.0},
            {"alpha": -0.25, "beta": 2.5, "gamma": 0.5},
            {"alpha": 0.0, "beta": 2.0, "gamma": 1.0},
        ],
        0.415363085402,
        8 * (1 - math.exp(0.5)),
    ),
    # 2.5 - (-1 + 3) = 0.5
    "repo": Row(repo, [{"gamma": 2.5}, {"gamma": 0.6}], 0.5, -1.0),
    # m = 0.6, m/τ = 1.2: σ(-1.2)·0.43748795 + σ(1.2)·e^-0.6 = 0.23147522·0.43748795 + 0.76852478·0.54881164
    "discopop": Row(
        discopop,
        [{"beta": 0.1, "tau": 0.5}, {"beta": 0.05, "tau": 0.05}],
        0.523042961866,
        0.4,
        # not convex: a ridge around no margin
        pull=Pull(lambda w, l, beta, tau: abs(beta * (w - l)) < 2.5 * tau, drifted(0.0, 0.0)),  # noqa: E741
        unranked=drifted(-40.0, 0.0),
    ),
    # e^-0.6
    "gpo_exponential": Row(gpo_exponential, [{"beta": 0.1}, {"beta": 0.01}], 0.548811636094, 0.4),
    # 0.4²
    "gpo_squared_hinge": Row(gpo_squared_hinge, [{"beta": 0.1}, {"beta": 0.01}], 0.16, 0.4),
    # 0.35434369²
    "gpo_savage": Row(gpo_savage, [{"beta": 0.1}, {"beta": 0.01}], 0.125559453318, 0.4),
    # 0.05 (4 + e^4) = 2.92990750, 0.05 (e^-2 - 2) = -0.09323324; log(1 + e^-3.02314074)
    "chipo": Row(
        chipo,
        [{"beta": 0.05, "reward_bound": 10.0}, {"beta": 0.005, "reward_bound": 1.0}],
        0.047501893741,
        2.929907501657,
    ),
    # 0.4 + 0.75·0.2
    "dpo_shift": Row(dpo_shift, [{"beta": 0.1, "shift": 0.75}, {"beta": 0.01, "shift": 1.0}], 0.455492481463, 0.4),
    # 1.5 - 0.5·2
    "simpo_hinge": Row(simpo_hinge, [{"beta": 0.5, "gamma": 0.5}, {"beta": 2.0, "gamma": 1.0}], 0.5, -0.5),
    # 0.6 - 0.5 log 1.5 = 0.39726745
    "odpo": Row(odpo, [{"beta": 0.1, "alpha": 0.5}, {"beta": 0.01, "alpha": 1.0}], 0.514112757218, 0.4),
    # (6/2 - 1.5)²
    "rebel": Row(
        rebel,
        [{"eta": 2.0}, {"eta": 1.0}],
        2.25,
        2.0,
        pull=Pull(lambda w, l, eta: (w - l) / eta > GAP, drifted(20.0, -20.0)),  # noqa: E741
    ),
    # (4 - 15)² + (-2 - 0)²; the rejected answer is rated 1/2, so its target is the reference
    "sppo_soft": Row(
        sppo_soft,
        [{"beta": 0.1}, {"beta": 0.001}],
        125.0,
        0.4,
        pull=Pull(lambda w, l, beta: w > GAP / beta or l < 0, drifted(0.0, -1.0)),  # noqa: E741
    ),
    # σ(1.5) = 0.81757448 against σ(0.6) = 0.64565631
    "rpo_backward": Row(
        rpo_backward,
        [{"beta": 0.1, "reward_scale": 1.0}, {"beta": 0.01, "reward_scale": 0.5}],
        0.071891701077,
        0.4,
        pull=Pull(lambda w, l, beta, reward_scale: beta * (w - l) > reward_scale * GAP, drifted(20.0, -20.0)),  # noqa: E741
        cancels=True,
    ),
    "rpo_forward": Row(
        rpo_forward,
        [{"beta": 0.1, "reward_scale": 1.0}, {"beta": 0.01, "reward_scale": 0.5}],
        0.082834651894,
        0.4,
        pull=Pull(lambda w, l, beta, reward_scale: beta * (w - l) > reward_scale * GAP, drifted(20.0, -20.0)),  # noqa: E741
        cancels=True,
    ),
    # (0.6 - 1.5)²
    "reward_distillation": Row(
        reward_distillation,
        [{"beta": 0.1, "reward_scale": 1.0}, {"beta": 0.01, "reward_scale": 2.0}],
        0.81,
        0.4,
        pull=Pull(lambda w, l, beta, reward_scale: beta * (w - l) > reward_scale * GAP, drifted(20.0, -20.0)),  # noqa: E741
    ),
    # (2 - 1 - 2)² = 1 and (0.5 - 1 + 1)² = 0.25, by 2·0.5; their mean
    "dro_v": Row(
        dro_v,
        [{"tau": 0.5}, {"tau": 1.0}, {"tau": 4.0}],
        0.625,
        2.0,
        pull=Pull(lambda w, l, tau: tau * w > 1.0 or tau * l < -0.5, drifted(20.0, -20.0)),  # noqa: E741
    ),
    # both answers diverge alike: DPO's
    "tdpo1": Row(tdpo1, [{"beta": 0.1}, {"beta": 0.01}], 0.437487950393, 0.1 * (4 + float(collected("forward_kl", 8)))),
    "tdpo2": Row(
        tdpo2,
        [{"beta": 0.1, "alpha": 0.5}, {"beta": 0.01, "alpha": 2.0}],
        0.437487950393,
        0.1 * (4 + float(collected("forward_kl", 8))),
    ),
    # mean reference entropy 2.19288637 of 10: certainty 0.5·1.51736644 = 0.75868322; log(1 + e^(-0.6·0.75868322))
    "mallows_dpo": Row(
        mallows_dpo,
        [
            {"beta": 0.1, "dispersion_scale": 0.5, "average": False, "reference_free": False},
            {"beta": 10.0, "dispersion_scale": 0.29, "average": True, "reference_free": True},
            {"beta": 2.0, "dispersion_scale": 0.29, "average": True, "reference_free": False},
        ],
        0.491223628704,
        0.4,
    ),
    # (6·0.75868322 - 5)²
    "mallows_ipo": Row(
        mallows_ipo,
        [
            {"tau": 0.1, "dispersion_scale": 0.5, "average": False, "reference_free": False},
            {"tau": 10.0, "dispersion_scale": 0.29, "average": True, "reference_free": True},
            {"tau": 0.5, "dispersion_scale": 1.0, "average": False, "reference_free": True},
        ],
        0.200615014353,
        4.0,
        pull=Pull(lambda w, l, **_: w > l, drifted(20.0, -20.0)),  # noqa: E741
    ),
    # 0.43748795, and 0.5·1
    "rpo": Row(rpo, [{"beta": 0.1, "sft_weight": 0.5, **how} for how in (MEAN, SUM)], 0.937487950393, 0.4),
}


# ---------------------------------------------------------------- expressions: one row at least for every modifier


def smoothed_dpo(c: Case, **of: Any) -> Any:
    m = of["dpo.beta"] * (c.w - c.rw - c.l + c.rl)
    return (1 - of["label_smoothing.rate"]) * nls(m) + of["label_smoothing.rate"] * nls(-m)


def f_dpo(c: Case, **of: Any) -> Any:
    alpha = of["f_divergence.alpha"]
    bend = {
        "reverse_kl": lambda x: x,
        "forward_kl": lambda x: 1 - exp(min(mpf(20), -x)),
        "jensen_shannon": lambda x: log(2) - log1p(exp(-x)),
        "alpha": lambda x: (1 - exp(min(mpf(20), -alpha * x))) / alpha,
    }[of["f_divergence.divergence"]]
    return nls(of["dpo.beta"] * (bend(c.w - c.rw) - bend(c.l - c.rl)))


def mpo(c: Case, **of: Any) -> Any:
    return dpo(c, of["dpo.beta"]) + mpf("0.8") * bco_pair(c, of["bco_pair.beta"]) - c.w / c.nw


@cache
def shares(n: int, phase: float) -> list[Any]:
    """Of a response of n tokens, the share of its sum that each token has, as `TokenLogps.spread` hands it to a loss."""
    wave = [mpf(x) for x in torch.sin(torch.arange(n) + phase).double().tolist()]
    level = sum(wave) / n
    return [(1 + (x - level) / 6) / n for x in wave]


def ld_dpo(c: Case, **of: Any) -> Any:
    def weighed(total: Any, n: Any, phase: float) -> Any:
        parts, shorter = shares(int(n), phase), int(min(c.nw, c.nl))
        return total * (sum(parts[:shorter]) + of["ld.alpha"] * sum(parts[shorter:]))

    u = weighed(c.w, c.nw, 0.0) - weighed(c.rw, c.nw, 1.0)
    return nls(of["dpo.beta"] * (u - weighed(c.l, c.nl, 0.0) + weighed(c.rl, c.nl, 1.0)))


def own_likelihood(c: Case, **of: Any) -> Any:
    """WPO's weight, of likelihoods and of what `Vocabulary.spread` hands to a loss."""
    aligned = (c.w - collected("collision", c.nw)) / c.nw + (c.l - collected("collision", c.nl)) / c.nl
    return exp(min(mpf(0), aligned))


def plain_dpo(c: Case, **of: Any) -> Any:
    return dpo(c, of["dpo.beta"])


def humanline_dpo(c: Case, **of: Any) -> Any:
    def clamped(total: Any, base: Any, n: Any) -> Any:
        ratios = [total * a - base * b for a, b in zip(shares(int(n), 0.0), shares(int(n), 1.0), strict=True)]
        return sum(min(max(x, of["humanline.low"]), of["humanline.high"]) for x in ratios)

    return nls(of["dpo.beta"] * (clamped(c.w, c.rw, c.nw) - clamped(c.l, c.rl, c.nl)))


def sampo_dpo(c: Case, **of: Any) -> Any:
    shorter = int(min(c.nw, c.nl))

    def taken(total: Any, n: Any, phase: float) -> Any:
        drawn = torch.randperm(int(n), generator=torch.Generator().manual_seed(0))[:shorter].tolist()
        parts = shares(int(n), phase)
        return total * sum(parts[i] for i in (range(shorter) if n == shorter else drawn))

    u = taken(c.w, c.nw, 0.0) - taken(c.rw, c.nw, 1.0)
    return nls(of["dpo.beta"] * (u - taken(c.l, c.nl, 0.0) + taken(c.rl, c.nl, 1.0)))


F_DPO = {"f_divergence.alpha": 0.5, "dpo.beta": 0.1}
EXPRESSIONS = {
    # 0.9·0.43748795 + 0.1·1.03748795
    "label_smoothing(dpo)": Row(smoothed_dpo, [{"label_smoothing.rate": 0.1, "dpo.beta": 0.1}], 0.497487950393, 0.4),
    # 2 (1 - e^-2) = 1.72932943, 2 (1 - e) = -3.43656366; log(1 + e^-0.51658931)
    "f_divergence(dpo)": Row(
        f_dpo,
        [{"f_divergence.divergence": d, **F_DPO} for d in ("alpha", "forward_kl", "jensen_shannon", "reverse_kl")],
        0.467846138369,
        0.172932943353,
    ),
    # 0.43748795 + 0.8·1.11115412 + 1
    "dpo + 0.8*bco_pair + sft": Row(mpo, [{"dpo.beta": 0.1, "bco_pair.beta": 0.1}], 2.32641124782, 0.72),
}
# log Σ p² is -1.03460830 on average, so the weight is e^(-1 - 3 + 2·1.03460830) = e^-1.93078341 = 0.14503453
EXPRESSIONS["wpo(dpo)"] = Row(
    plain_dpo, [{"dpo.beta": 0.1}, {"dpo.beta": 0.01}], 0.063450860583, 0.4, weight=own_likelihood
)
EXPRESSIONS["ld(dpo)"] = Row(  # equally long, so DPO's
    ld_dpo, [{"ld.alpha": 0.5, "dpo.beta": 0.1}, {"ld.alpha": 0.0, "dpo.beta": 0.01}], 0.437487950393, 0.4
)
EXPRESSIONS["sampo(dpo)"] = Row(sampo_dpo, [{"dpo.beta": 0.1}, {"dpo.beta": 0.01}], 0.437487950393, 0.4)  # the same
EXPRESSIONS["tr(dpo)"] = Row(  # the reference moves between steps
    lambda c, **of: dpo(c, of["dpo.beta"]), [{"tr.alpha": 0.6, "tr.every": 2, "dpo.beta": 0.1}], 0.437487950393, 0.4
)
EXPRESSIONS["bema(dpo)"] = Row(  # likewise
    lambda c, **of: dpo(c, of["dpo.beta"]), [{"bema.every": 2, "bema.lag": 1, "dpo.beta": 0.1}], 0.437487950393, 0.4
)
EXPRESSIONS["humanline(dpo)"] = Row(
    humanline_dpo,
    [
        {"humanline.low": -1.0, "humanline.high": 1.5, "dpo.beta": 0.1},
        {"humanline.low": -0.2, "humanline.high": 0.4, "dpo.beta": 0.1},
    ],
    0.437487950393,  # no token moves as far as a nat: DPO's
    0.4,
)
ROWS = {**ORACLES, **EXPRESSIONS}


def exact(value: Any) -> Any:
    """Floats as the numbers they are, in full; the rest as it is."""
    return mpf(value) if isinstance(value, float) else value


def value(name: str, case: Case, settings: dict[str, Any], held: Case | None = None) -> Any:
    """held: the case of the formula's weight; None: the same."""
    given, row = {k: exact(v) for k, v in settings.items()}, ROWS[name]
    here, at = (Case(*(mpf(x) for x in c)) for c in (case, held or case))
    return row.formula(here, **given) * (1 if row.weight is None else row.weight(at, **given))


def slope(name: str, case: Case, settings: dict[str, Any], by: str, here: Any, side: int) -> float:
    """The one-sided derivative by `w` or `l`, to the right (side 1) or to the left (-1). here: the loss at the case."""
    h = side * mpf(10) ** -30
    return float((value(name, case._replace(**{by: mpf(getattr(case, by)) + h}), settings, case) - here) / h)


# ---------------------------------------------------------------- losses of a whole batch


class Batch(NamedTuple):
    """A loss of a whole batch. formula: (cases, the same cases as the policy stands before the step, settings) → the mean loss;
    what it takes of the second has no gradient. worked: at `TWO`, with the first settings."""

    formula: Callable[..., Any]
    settings: Sequence[dict[str, Any]]
    worked: float


# Log-ratios (4, -2) and (-1, 1); gaps 16 and -2, of the reference 10 and 0; lengths 8, 8 and 4, 2.
TWO = [WORKED, Case(w=-5.0, l=-3.0, rw=-4.0, rl=-4.0, nw=4, nl=2)]


def spread(values: Sequence[Any]) -> Any:
    return mp.sqrt(mean([(v - mean(values)) ** 2 for v in values]))


def by_rank(values: Sequence[Any], ranked: Sequence[Any]) -> list[Any]:
    """`values` in the order in which `ranked` rises."""
    return [values[i] for i in sorted(range(len(ranked)), key=lambda i: ranked[i])]


def aot(cases: Sequence[Case], before: Sequence[Case], beta: float) -> Any:
    gaps = by_rank([c.w - c.l for c in cases], [c.w - c.l for c in before])
    return mean([nls(beta * (a - b)) for a, b in zip(gaps, sorted(c.rw - c.rl for c in cases), strict=True)])


def aot_unpaired(cases: Sequence[Case], before: Sequence[Case], beta: float) -> Any:
    sides = [by_rank([drift(c)[i] for c in cases], [drift(c)[i] for c in before]) for i in (0, 1)]
    return mean([nls(beta * (a - b)) for a, b in zip(*sides, strict=True)])


def dr_dpo(cases: Sequence[Case], before: Sequence[Case], beta: float, robustness: float) -> Any:
    return -robustness * log(mean([exp(-nls(margin_of(c, beta)) / robustness) for c in cases]))


def alpha_dpo(cases: Sequence[Case], before: Sequence[Case], beta: float, gamma_beta_ratio: float, alpha: float) -> Any:
    moved = [(c.w - c.rw) / c.nw - (c.l - c.rl) / c.nl for c in before]
    center, scale = mean(moved) / 10, max(mpf("1e-3"), spread(moved) / 10)  # the first step of an average from 0
    margins = [gamma_beta_ratio + alpha * (m - center) / scale for m in moved]
    return mean([nls(beta * (c.w / c.nw - c.l / c.nl - m)) for c, m in zip(cases, margins, strict=True)])


def bco_shift(cases: Sequence[Case], before: Sequence[Case], beta: float) -> Any:
    shift = mean([beta * x for c in before for x in drift(c)])
    return mean([nls(beta * drift(c)[0] - shift) + nls(shift - beta * drift(c)[1]) for c in cases])


def bco_unpaired(cases: Sequence[Case], before: Sequence[Case], beta: float) -> Any:
    """The mean over the answers of the pairs."""
    shift = mean([beta * x for c in before for x in drift(c)])
    sides = [(beta * drift(c)[0] - shift, shift - beta * drift(c)[1]) for c in cases]
    return mean([nls(ahead) for pair in sides for ahead in pair])


def bco_udm(cases: Sequence[Case], before: Sequence[Case], beta: float, min_ratio: float, max_ratio: float) -> Any:
    """As `bco_unpaired`, whose undesirable answers weigh more or less: the two answers of a pair share their prompt, so its
    density ratio is 1."""
    shift, weight = mean([beta * x for c in before for x in drift(c)]), min(max(mpf(1), min_ratio), max_ratio)
    sides = [(nls(beta * drift(c)[0] - shift), weight * nls(shift - beta * drift(c)[1])) for c in cases]
    return mean([part for pair in sides for part in pair])


def beta_dpo(cases: Sequence[Case], before: Sequence[Case], beta: float, strength: float) -> Any:
    """Of a batch of two, from which both are kept."""
    gap = mean([margin_of(c, 1) for c in before])
    ours = max(mpf("0.001"), beta * (1 + strength * gap * mpf("0.9")))  # the average from 0 is a tenth of it
    return mean([nls(ours * margin_of(c, 1)) for c in cases])


def shared_margins(gaps: Sequence[Any], gamma: Any, tau: Any) -> list[Any]:
    """γ-PO's, of a first batch: N γ p by 20 steps of mirror descent in p from the uniform one."""
    n, step = len(gaps), min(mpf("0.5") / tau, mpf(1))
    p = [mpf(1) / n] * n
    for _ in range(20):
        slopes = [tau * (1 + log(n * q)) + gamma * sigma(gamma * n * q - g) for q, g in zip(p, gaps, strict=True)]
        grown = [q * exp(-step * slope) for q, slope in zip(p, slopes, strict=True)]
        p = [q / sum(grown) for q in grown]
    return [gamma * n * q for q in p]


def gamma_po(cases: Sequence[Case], before: Sequence[Case], beta: float, gamma_beta_ratio: float, tau: float) -> Any:
    margins = shared_margins([beta * (c.w / c.nw - c.l / c.nl) for c in before], beta * gamma_beta_ratio, tau)
    return mean([nls(beta * (c.w / c.nw - c.l / c.nl) - m) for c, m in zip(cases, margins, strict=True)])


def gamma_po_dpo(cases: Sequence[Case], before: Sequence[Case], beta: float, gamma: float, tau: float) -> Any:
    margins = shared_margins([margin_of(c, beta) for c in before], gamma, tau)
    return mean([nls(margin_of(c, beta) - (m - gamma)) for c, m in zip(cases, margins, strict=True)])


BATCHES = {
    # ranks: -2 against 0, 16 against 10; log(1 + e^0.2) = 0.79813887, log(1 + e^-0.6) = 0.43748795
    "aot": Batch(aot, [{"beta": 0.1}, {"beta": 0.01}], 0.617813409934),
    # (-1, 4) against (-2, 1): 1 and 3; log(1 + e^-0.1) = 0.64439666, log(1 + e^-0.3) = 0.55435524
    "aot_unpaired": Batch(aot_unpaired, [{"beta": 0.1}, {"beta": 0.01}], 0.599375952271),
    # -log of the mean of σ(0.6) = 0.64565631 and σ(-0.2) = 0.45016600
    "dr_dpo": Batch(dr_dpo, [{"beta": 0.1, "robustness": 1.0}, {"beta": 0.1, "robustness": 0.3}], 0.601642132082),
    # moved: 0.75 and -0.75, mean 0, spread 0.075; margins 0.3 ± 1, means' gaps 2 and 0.25; nls(2·0.7), nls(2·0.95)
    "alpha_dpo": Batch(
        alpha_dpo,
        [
            {"beta": 2.0, "gamma_beta_ratio": 0.3, "alpha": 0.1},
            {"beta": 5.0, "gamma_beta_ratio": 0.0, "alpha": 0.01},
        ],
        0.179902084101,
    ),
    # the mean of 4, -2, -1, 1 is 0.5: shift 0.05
    "bco_shift": Batch(bco_shift, [{"beta": 0.1}, {"beta": 0.01}], 1.29936913555),
    # half of the pairs'
    "bco_unpaired": Batch(bco_unpaired, [{"beta": 0.1}, {"beta": 0.01}], 0.649684567775),
    # nls of 0.35, -0.15 and twice of 0.25, -0.05: 0.53338244, 0.77095705, 2·0.57593942, 2·0.71845966
    "bco_udm": Batch(
        bco_udm,
        [
            {"beta": 0.1, "min_ratio": 2.0, "max_ratio": 10.0},
            {"beta": 0.1, "min_ratio": 0.5, "max_ratio": 10.0},
            {"beta": 0.01, "min_ratio": 0.1, "max_ratio": 0.7},
        ],
        0.973284334748,
    ),
    # gaps 6 and -2, mean 2; beta 0.1 (1 + 0.6·1.8) = 0.208
    "beta_dpo": Batch(beta_dpo, [{"beta": 0.1, "strength": 0.6}, {"beta": 0.1, "strength": 0.0}], 0.587499901818),
    # gaps 4 and 0.5; margins x and 2 - x where log x + σ(x - 4) = log(2 - x) + σ(1.5 - x): 1.24641; nls(2.75359), nls(-0.25359)
    "gamma_po": Batch(
        gamma_po,
        [
            {"beta": 2.0, "gamma_beta_ratio": 0.5, "tau": 1.0},
            {"beta": 5.0, "gamma_beta_ratio": 0.3, "tau": 10.0},
        ],
        0.444855582108,
    ),
    # gaps 0.6 and -0.2; log x + σ(x - 0.6) = log(2 - x) + σ(2.2 - x): 1.07009; nls(0.52991), nls(-0.12991)
    "gamma_po_dpo": Batch(
        gamma_po_dpo,
        [
            {"beta": 0.1, "gamma": 1.0, "tau": 1.0},
            {"beta": 0.01, "gamma": 2.0, "tau": 3.0},
        ],
        0.611549704792,
    ),
}
