"""Every loss once more, from the printed formula, in 350 digits; nothing here is shared with the code under test.

A new loss needs one row in `ORACLES`: its formula, the settings it is tried at, and by hand its value and its reward at
`WORKED`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from mpmath import exp, log, log1p, mp, mpf

mp.dps = 350  # a slope of 1e-290 is the difference of two values near 1


class Case(NamedTuple):
    """One pair: summed nats under policy (w, l) and reference (rw, rl), lengths in tokens; kl in nats."""

    w: float
    l: float  # noqa: E741 (the contract's own name)
    rw: float
    rl: float
    nw: int
    nl: int
    kl: float = 0.0


class Pull(NamedTuple):
    """Where a loss by its design lowers a chosen answer or raises a rejected one, and a case where it does."""

    where: Callable[..., bool]  # of a case's log-ratios (chosen, rejected), in nats, and the loss's settings
    witness: Case


class Row(NamedTuple):
    """One loss. Few losses need more than the first four.

    settings: each complete; the first is that of `worked` and `reward`. worked: the loss at `WORKED`. reward: the chosen
    answer's there, in the unit that the docstring states. pull: where the loss pulls the other way. unranked: a case where
    it pulls the right way, if it does not at `UNRANKED`. cancels: its slopes are differences of two terms, so what is
    left has the digits of the larger term.
    """

    formula: Callable[..., Any]
    settings: Sequence[dict[str, Any]]
    worked: float
    reward: float
    pull: Pull | None = None
    unranked: Case | None = None
    cancels: bool = False


# Means -1 and -3 nats a token; log-ratios +4 and -2, so their difference is 6 nats; 0.5 and -0.25 a token.
WORKED = Case(w=-8.0, l=-24.0, rw=-12.0, rl=-22.0, nw=8, nl=8, kl=10.0)


def nls(x: Any) -> Any:
    """-log σ(x), exact far into both tails."""
    return log1p(exp(-x)) if x > 0 else log1p(exp(x)) - x


def sigma(x: Any) -> Any:
    return 1 / (1 + exp(-x))


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


def cpo(c: Case, beta: float, sft_weight: float, sft_reduction: str) -> Any:
    return nls(beta * (c.w - c.l)) + sft_weight * nll(c, sft_reduction)


def kto(c: Case, beta: float, desirable_weight: float, undesirable_weight: float) -> Any:
    z = max(mpf(0), beta * c.kl)
    return desirable_weight * sigma(z - beta * (c.w - c.rw)) + undesirable_weight * sigma(beta * (c.l - c.rl) - z)


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


def drifted(chosen: float, rejected: float) -> Case:
    """A pair of equal lengths whose two answers have moved from the reference, in nats."""
    return Case(-40.0 + chosen, -40.0 + rejected, -40.0, -40.0, 20, 20, 0.0)


def past_the_flip_rate(w: float, l: float, beta: float, label_smoothing: float) -> bool:  # noqa: E741
    """The margin is past the one at which as many pairs are labelled wrongly as the flip rate says."""
    return beta * (w - l) > math.log(1 / label_smoothing - 1)


# An unranked pair inside every hinge, short of every target.
UNRANKED = Case(-60.0, -58.0, -60.5, -59.0, 20, 22, 0.0)

SUM, MEAN = {"sft_reduction": "sum"}, {"sft_reduction": "mean"}

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
ROWS = {**ORACLES, **EXPRESSIONS}


def exact(value: Any) -> Any:
    """Floats as the numbers they are, in full; the rest as it is."""
    return mpf(value) if isinstance(value, float) else value


def value(name: str, case: Case, settings: dict[str, Any]) -> Any:
    given = {k: exact(v) for k, v in settings.items()}
    return ROWS[name].formula(Case(*(mpf(x) for x in case)), **given)


def slope(name: str, case: Case, settings: dict[str, Any], by: str, here: Any, side: int) -> float:
    """The one-sided derivative by `w` or `l`, to the right (side 1) or to the left (-1). here: the loss at the case."""
    h = side * mpf(10) ** -30
    return float((value(name, case._replace(**{by: mpf(getattr(case, by)) + h}), settings) - here) / h)
