"""Every loss once more, from the printed formula, in 350 digits; nothing here is shared with the code under test.

A new loss needs one row in `ORACLES`: its formula, the settings it is tried at, and its value at `WORKED`, by hand.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from mpmath import exp, log1p, mp, mpf

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


class Row(NamedTuple):
    formula: Callable[..., Any]
    settings: Sequence[dict[str, Any]]  # each complete; the first one is that of `worked`
    worked: float


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


def nll(c: Case, sft_reduction: str) -> Any:
    return {"sum": -c.w, "mean": -c.w / c.nw}[sft_reduction]


SUM, MEAN = {"sft_reduction": "sum"}, {"sft_reduction": "mean"}

ORACLES = {
    # 2·(-1) - 2·(-3) - 1 = 3; log(1 + e^-3) = 0.04858735
    "simpo": Row(simpo, [{"beta": 2.0, "gamma": 1.0}, {"beta": 10.0, "gamma": 3.0}], 0.0485873515737),
    # 0.1·(-8 + 24) - 1 = 0.6; log(1 + e^-0.6) = 0.43748795
    "simpo_no_ln": Row(simpo_no_ln, [{"beta": 0.1, "gamma": 1.0}, {"beta": 2.0, "gamma": 0.0}], 0.437487950393),
    # simpo's 0.04858735, and 0.25·8 = 2
    "simpo_sft": Row(
        simpo_sft,
        [{"beta": 2.0, "gamma": 1.0, "sft_weight": 0.25, **how} for how in (SUM, MEAN)],
        2.0485873515737,
    ),
    # 0.1·6 = 0.6; log(1 + e^-0.6) = 0.43748795
    "dpo": Row(dpo, [{"beta": 0.1}, {"beta": 0.01}], 0.437487950393),
    # 4·(0.5 + 0.25) = 3; log(1 + e^-3) = 0.04858735
    "dpo_ln": Row(dpo_ln, [{"beta": 4.0}, {"beta": 0.1}], 0.0485873515737),
    # 0.1·6 - 0.6 = 0; log 2
    "dpo_gamma": Row(dpo_gamma, [{"beta": 0.1, "gamma": 0.6}, {"beta": 0.01, "gamma": 1.5}], 0.693147180560),
    # 0.1·6 + 0.05·(8 - 8) = 0.6
    "rdpo": Row(rdpo, [{"beta": 0.1, "alpha": 0.05}, {"beta": 0.01, "alpha": 1.0}], 0.437487950393),
    # (6 - 1/(2·0.1))² = 1
    "ipo": Row(ipo, [{"tau": 0.1, "average": False}, {"tau": 0.5, "average": True}], 1.0),
    # log(1 + e^-1.6) = 0.18390074, and 1·8 = 8
    "cpo": Row(cpo, [{"beta": 0.1, "sft_weight": 1.0, **how} for how in (SUM, MEAN)], 8.1839007409),
    # z = 0.1·10 = 1; 1 - σ(0.4 - 1) = 0.64565631, and 2·(1 - σ(1 + 0.2)) = 2·0.23147522
    "kto": Row(
        kto,
        [
            {"beta": 0.1, "desirable_weight": 1.0, "undesirable_weight": 2.0},
            {"beta": 0.05, "desirable_weight": 1.0, "undesirable_weight": 1.0},
        ],
        1.108606738,
    ),
    # odds(-1) = -1 - log(1 - e^-1) = -0.54132485, odds(-3) = -2.94893082, difference 2.40760597;
    # 1 + 0.5·log(1 + e^-2.40760597) = 1 + 0.5·0.08620574
    "orpo": Row(orpo, [{"odds_weight": 0.5}, {"odds_weight": 2.0}], 1.04310287),
    # max(0, -3 + 1) = 0, and 0.1·8
    "rrhf": Row(rrhf, [{"sft_weight": 0.1, **how} for how in (SUM, MEAN)], 0.8),
    # max(0, 17 + 8 - 24) = 1, and 0.5·8
    "slic_hf": Row(slic_hf, [{"delta": 17.0, "sft_weight": 0.5, **how} for how in (SUM, MEAN)], 5.0),
}


def exact(value: Any) -> Any:
    """Floats as the numbers they are, in full; the rest as it is."""
    return mpf(value) if isinstance(value, float) else value


def value(name: str, case: Case, settings: dict[str, Any]) -> Any:
    given = {k: exact(v) for k, v in settings.items()}
    return ORACLES[name].formula(Case(*(mpf(x) for x in case)), **given)


def slopes(name: str, case: Case, settings: dict[str, Any], by: str) -> tuple[float, float]:
    """One-sided derivatives by `w` or `l`, smaller first: equal but at a kink, where subgradients lie between."""
    h = mpf(10) ** -30
    here = value(name, case, settings)
    right = (value(name, case._replace(**{by: mpf(getattr(case, by)) + h}), settings) - here) / h
    left = (here - value(name, case._replace(**{by: mpf(getattr(case, by)) - h}), settings)) / h
    return float(min(left, right)), float(max(left, right))
