"""How often the interval of prompts crossed with seeds holds the truth, and how often chance is called a difference."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
from scipy import stats as scipy_stats

from pobench.results import stats
from pobench.results.crossed import crossed, pool_seeds

DRAWS = 4000
NOISE = 2 * 100 * math.sqrt(0.95 * 0.05 / DRAWS)  # two standard errors of a coverage of 95 %, in points: 0.7
# standard deviation of a seed's effect, in that of one answer's residual
LUCK = (0.0, 0.05, 0.1, 0.2, 0.4, 1.0)


def tables(
    kind: str, prompts: int, seeds: int, luck: float, rng: np.random.Generator, draws: int = DRAWS
) -> tuple[np.ndarray, float]:
    """(draws, prompts, seeds) differences of two models, and the true mean."""
    shape = (draws, prompts, seeds)
    if kind == "continuous":
        effects = rng.normal(0, 0.5, (draws, prompts, 1)) + rng.normal(0, luck, (draws, 1, seeds))
        return 0.3 + effects + rng.normal(size=shape), 0.3
    hard = rng.normal(size=(draws, prompts, 1))  # both models find the same prompts hard

    def passed(ability: float) -> np.ndarray:
        own = rng.normal(0, 0.5, (draws, prompts, 1)) + rng.normal(0, luck, (draws, 1, seeds))
        return (hard + own + ability + rng.normal(size=shape) > 0).astype(float)

    truth = scipy_stats.norm.cdf(0.2 / math.sqrt(2.25 + luck**2)) - 0.5
    return passed(0.2) - passed(0.0), float(truth)


def coverage(kind: str, prompts: int, seeds: int, luck: float) -> float:
    """In per cent."""
    drawn, truth = tables(kind, prompts, seeds, luck, np.random.default_rng(7))
    found = [crossed([(1.0, table)]) for table in drawn]
    return 100 * float(np.mean([abs(one.value - truth) <= one.half_width() for one in found]))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["continuous", "binary"])
@pytest.mark.parametrize("seeds", [2, 3, 5])
@pytest.mark.parametrize("prompts", [60, 300])
def test_the_interval_covers_the_truth_as_often_as_it_says(kind, seeds, prompts) -> None:
    cells = {luck: coverage(kind, prompts, seeds, luck) for luck in LUCK}
    print(f"\n{kind}, {prompts} prompts, {seeds} seeds: {cells}")
    if seeds == 2:  # why two seeds decide nothing
        assert min(cells.values()) > 85
    else:
        assert min(cells.values()) >= 93 - NOISE and max(cells.values()) <= 98.5 + NOISE


def test_a_few_cells_of_the_coverage() -> None:
    drawn, truth = tables("continuous", 60, 3, 0.2, np.random.default_rng(1), draws=400)
    found = [crossed([(1.0, table)]) for table in drawn]
    assert 0.90 <= np.mean([abs(one.value - truth) <= one.half_width() for one in found]) <= 0.99


def share_of_families_with_an_error(lucks: Sequence[float], shared: float, families: int) -> float:
    """Equal models, every pair, Holm's correction. lucks: of each model, how far its seeds differ. shared: of a seed's luck,
    what all have in common."""
    rng, wrong = np.random.default_rng(3), 0
    sides = [(i, j) for i in range(len(lucks)) for j in range(i)]
    for _ in range(families):
        hard, common = rng.normal(0, 0.5, (100, 1)), rng.normal(0, 1, 3)
        own = [luck * (shared * common + math.sqrt(1 - shared**2) * rng.normal(0, 1, 3)) for luck in lucks]
        models = [hard + lucky + rng.normal(size=(100, 3)) for lucky in own]
        family = [crossed([(1.0, models[i] - models[j])]) for i, j in sides]
        found = zip(stats.holm([one.p_value() for one in pool_seeds(family, sides)]), family, strict=True)
        wrong += any(p < 0.05 and abs(one.value) > one.half_width() for p, one in found)
    return wrong / families


@pytest.mark.slow
@pytest.mark.parametrize("shared", [0.0, 0.7])
@pytest.mark.parametrize("luck", [0.0, 0.1, 0.2, 0.4, 1.0])
@pytest.mark.parametrize("losses", [3, 5, 13])
def test_chance_is_called_a_difference_in_fewer_than_one_family_of_twenty(losses, luck, shared) -> None:
    families = 400 if losses < 13 else 150
    found = share_of_families_with_an_error([luck] * losses, shared, families)
    print(f"\n{losses} losses, luck {luck}, shared {shared}: {100 * found:.1f} %")
    assert found < 0.05 + 2 * math.sqrt(0.05 * 0.95 / families)


@pytest.mark.slow
@pytest.mark.parametrize(
    "lucks", [[0.1, 0.1, 1.0], [0.1] * 4 + [1.0], [0.1] * 9 + [0.5, 1.0, 1.0], [0.1] * 6 + [0.3] * 6]
)
def test_losses_that_differ_in_luck_are_hardly_more_often_told_apart_by_chance(lucks) -> None:
    """Three seeds cannot show which loss is the unstable one, so a little more than 5 % is left."""
    found = share_of_families_with_an_error(lucks, 0.0, 400)
    print(f"\nlucks {lucks}: {100 * found:.1f} %")
    assert found < 0.07 + 2 * math.sqrt(0.07 * 0.93 / 400)
