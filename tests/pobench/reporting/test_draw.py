"""Figures and tables by name, in a notebook."""

from __future__ import annotations

import matplotlib.figure
import pandas as pd
import pytest

from pobench import figure, table
from pobench.errors import PobenchError
from pobench.reporting import plot
from pobench.reporting.page import build_report
from pobench.results import comparable
from pobench.results.derived import Frames


@pytest.fixture(scope="module")
def made(synthetic):
    two = {name: synthetic.LOSSES[name] for name in ("simpo", "dpo")}
    return [synthetic.make_frames(two, setting=s, prompts=6, pairs=20, steps=3) for s in ("tiny", "other")]


def test_a_figure_comes_as_matplotlibs(made) -> None:
    drawn = figure("margin-vs-length", Frames(made[0]), bins=3)
    assert isinstance(drawn, matplotlib.figure.Figure)
    assert [ax.get_title(loc="left").strip() for ax in drawn.axes if ax.get_visible()] == ["DPO", "SimPO"]


def test_a_figure_is_drawn_once_for_each_format(made, monkeypatch) -> None:
    drawn, renderers = figure("margin-vs-length", Frames(made[0]), bins=3), []
    once = matplotlib.figure.Figure.draw
    monkeypatch.setattr(matplotlib.figure.Figure, "draw", lambda self, to: (renderers.append(to), once(self, to))[1])
    assert plot.png(drawn) and plot.svg(drawn)
    assert len(renderers) == 2


def test_a_figure_shows_itself_in_a_notebook_with_the_same_bytes_twice(made) -> None:
    for name, options in (("margin-vs-length", {"bins": 3}), ("gains-over-dpo", {})):
        first, second = (figure(name, Frames(made[0]), **options)._repr_png_() for _ in range(2))
        assert first.startswith(b"\x89PNG") and first == second, name


def test_a_table_is_the_numbers_of_its_csv(made, tmp_path) -> None:
    shown = {name: table(name, made[0]) for name in ("main-table", "settings-table", "claims")}
    build_report(made[0], tmp_path, figures=list(shown), formats=["csv"])
    for name, numbers in shown.items():
        (stored,) = tmp_path.rglob(f"{name}.csv")
        assert plot.csv(numbers) == stored.read_bytes(), name
    simpo = shown["main-table"].set_index("Loss").loc["SimPO"]
    assert simpo["pass_rate_low"] < simpo["pass_rate"] < simpo["pass_rate_high"] and simpo["pass_rate_n"] == 6
    claim = shown["claims"].set_index("name").loc["simpo-above-dpo"]
    assert claim["low"] < claim["value"] < claim["high"] and claim["verdict"] == "one run"
    assert shown["claims"].attrs["notes"].startswith("Of ")


def test_plain_dicts_do_and_scores_are_made_where_they_lack(made) -> None:
    assert len(table("main-table", made[0])) == 3


def test_which_arms_are_shown_is_chosen_once_for_all_figures_of_a_report(made, tmp_path, monkeypatch) -> None:
    calls = []
    choose = comparable._at_home
    monkeypatch.setattr(comparable, "_at_home", lambda every_arm: calls.append(1) or choose(every_arm))
    both = {name: pd.concat([f[name] for f in made], ignore_index=True) for name in made[0]}
    build_report(both, tmp_path, figures=["kl", "main-table", "settings-table"], formats=["csv", "md"])
    assert len(calls) == 2  # settings


def test_of_several_settings_one_must_be_chosen(made) -> None:
    both = {name: pd.concat([f[name] for f in made], ignore_index=True) for name in made[0]}
    with pytest.raises(PobenchError, match=r"other; tiny.*setting="):
        figure("kl", both)
    assert figure("kl", both, setting="other").axes
    with pytest.raises(PobenchError, match="shows all settings of the frames: leave out setting='other'"):
        table("claims-across-settings", both, setting="other")


def test_a_wrong_call_says_everything_that_is_wrong(made) -> None:
    with pytest.raises(PobenchError) as fault:
        figure("main-table", made[0], bin=3)
    assert "no option 'bin'" in str(fault.value) and "pobench.table('main-table', frames)" in str(fault.value)
    with pytest.raises(PobenchError, match=r"did you mean .main-table."):
        figure("main-tabel", made[0])
    with pytest.raises(PobenchError, match=r"sweep cannot be drawn: No loss was trained with several values"):
        figure("sweep", made[0])
