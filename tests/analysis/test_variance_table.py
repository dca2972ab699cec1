"""The table `variance`: medians first, every loss and pair behind them, and what was below 0."""

from __future__ import annotations

import numpy as np
import pytest

from pobench import registry
from pobench.reporting import plot
from pobench.reporting.draw import draw
from pobench.results.derived import Frames


@pytest.fixture(scope="module")
def several(synthetic) -> Frames:
    return Frames(synthetic.make_frames(seeds=(1, 2, 3), prompts=24, pairs=4, steps=2))


def test_medians_come_first_then_each_loss_and_each_pair(several) -> None:
    table = draw(registry.figures.get("variance"), several)
    assert list(table["Loss"][:2]) == ["Median of 5 losses", "Median of 10 pairs"] and len(table) == 2 + 5 + 10
    losses, pairs = table.iloc[2:7], table.iloc[7:]
    assert set(losses["Minus"]) == {""} and "" not in set(pairs["Minus"])
    for name in ("σ prompt", "σ seed", "σ prompt × seed", "σ decoding"):
        assert table[name][0] ** 2 == pytest.approx(np.median(losses[name] ** 2))
        assert table[name][1] ** 2 == pytest.approx(np.median(pairs[name] ** 2))
    assert table["σ judge"].isna().all()  # one verdict an answer
    # prompts are far more unlike than seeds, which have no effect at all here
    assert losses["Mostly"].str.startswith("prompt ").all()


def test_a_component_below_0_is_counted_in_the_note(several) -> None:
    table = draw(registry.figures.get("variance"), several)
    data = table.attrs["data"]
    below = data["negative"].str.split().explode().dropna().value_counts()
    assert below["seed"] > 0 and f"seed {below['seed']}" in table.attrs["notes"]
    assert (data.loc[data["negative"].str.contains("seed"), "seed"] == 0).all()


def test_pairs_of_many_losses_are_in_the_csv(synthetic) -> None:
    losses = {f"dpo_{k}": synthetic.LOSSES["dpo"] for k in range(7)}
    frames = Frames(synthetic.make_frames(losses, seeds=(1, 2), prompts=6, pairs=2, steps=1))
    table = draw(registry.figures.get("variance"), frames)
    assert len(table) == 2 + 7 and len(table.attrs["data"]) == 2 + 7 + 21
    assert "each of the 21 pairs" in table.attrs["notes"]


def test_one_seed_has_no_decomposition(synthetic) -> None:
    frames = Frames(synthetic.make_frames(prompts=6, pairs=2, steps=1))
    with pytest.raises(plot.NothingToDraw, match="two seeds"):
        draw(registry.figures.get("variance"), frames)
