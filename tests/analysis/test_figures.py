"""Every figure and table: draws what it says, keeps its looks, and gives up politely."""

from __future__ import annotations

import ast
import math
import re
from itertools import pairwise
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import pytest

from pobench import registry
from pobench.reporting import colour_vision, plot
from pobench.reporting.draw import draw
from pobench.reporting.looks import RESERVED_COLOURS, RESERVED_MARKERS, look_of
from pobench.results import metrics, pair_values, stats
from pobench.results.comparable import ordered, split
from pobench.results.derived import Frames
from pobench.types import Estimate

NAMES = registry.figures.names()
ROOT = Path(__file__).parents[2]
OF_STUDIES = {  # they want several settings of a loss
    "sweep",
    "margin-density",
    "length-bias",
    "seed-spread",
    "variance",
    "looked-before",
    "tuning",
    "tuning-table",
    "tuned-values",
    "kl-in-training",
    "gradient-norm",
    "head-to-head-pairs",
    "beside-dpo-benchmark",
    "beside-paper",  # of a setting of the paper
    "beside-paper-downstream",
    "claims-across-settings",
    "gains-across-settings",
    "rounds",
    "rounds-table",
    "heldout-by-source",  # of several data sets
    "density-ratios",  # of single answers
}


@pytest.fixture(scope="module")
def drawn(frames) -> dict:
    """Everything that the synthetic frames allow."""
    found = {}
    for name in NAMES:
        try:
            found[name] = draw(registry.figures.get(name), frames)
        except plot.NothingToDraw:
            assert name in OF_STUDIES
    return found


@pytest.fixture(scope="module")
def empty(frames) -> Frames:
    return Frames({key: frame.iloc[:0] for key, frame in frames.items()})


@pytest.fixture(scope="module")
def blank(frames) -> Frames:
    """The frames with nan for every number that was measured."""
    made = {}
    for key, frame in frames.items():
        frame = frame.copy()
        if key not in ("runs", "audit"):
            numeric = frame.select_dtypes("number").columns.difference(["sample", "step", "n"])
            frame[numeric] = frame[numeric].astype(float) * np.nan
        made[key] = frame
    return Frames(made)


@pytest.fixture(scope="module")
def least(synthetic) -> Frames:
    """One run with one pair and one prompt."""
    made = synthetic.make_frames({"dpo": synthetic.LOSSES["dpo"]}, prompts=1, samples=1, pairs=1, steps=1)
    return Frames({**made, "scores": metrics.complete(made)})


@pytest.fixture(scope="module")
def start_alone(frames) -> Frames:
    run = frames["runs"].loc[frames["runs"]["loss"] == "start", "run"].iloc[0]
    return Frames({k: f[f["run"] == run] if "run" in f else f for k, f in frames.items()})


def test_the_shipped_figures_and_tables_are_all_there() -> None:
    assert set(NAMES) >= {
        "training-curves", "both-rewards", "margin-vs-length", "logp-vs-length", "reward-vs-likelihood", "heldout-accuracy",
        "kl", "pass-rate", "answer-length", "main-table", "pass-by-kind", "who-beats-whom", "settings-table", "sweep",
        "training-health", "cost", "data-audit", "claims", "margin-density", "time-and-memory", "length-normalisation",
        "length-bias", "seed-spread",
    }  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_every_figure_says_what_to_look_for(name) -> None:
    shown = registry.figures.get(name)
    assert shown.title and len(shown.doc) > 60 and shown.doc.rstrip().endswith((".", ")"))
    assert not shown.doc.startswith('"')


def test_every_figure_gives_a_picture_and_the_numbers_behind_it(drawn) -> None:
    for name, found in drawn.items():
        if registry.figures.get(name).kind == "figure":
            assert isinstance(found, plot.Drawing) and len(found.data), name
        else:
            assert isinstance(found, pd.DataFrame) and len(found), name


def test_a_pointer_finds_numbers_in_every_figure(drawn) -> None:
    for name, made in drawn.items():
        if isinstance(made, plot.Drawing):
            found = plot.hints(made.figure)
            assert found, name
            assert any(re.search(r"\d", hint.text) for hint in found) and all(hint.text.strip() for hint in found), name


@pytest.mark.parametrize("name", NAMES)
def test_nothing_at_all_is_said_in_a_sentence(name, empty) -> None:
    with pytest.raises(plot.NothingToDraw) as reason:
        draw(registry.figures.get(name), empty)
    assert str(reason.value).endswith(".") and len(str(reason.value)) > 15


@pytest.mark.parametrize("name", NAMES)
def test_nan_everywhere_never_crashes(name, blank) -> None:
    try:
        draw(registry.figures.get(name), blank)
    except plot.NothingToDraw as reason:
        assert str(reason).endswith(".")


@pytest.mark.parametrize("name", NAMES)
def test_one_run_with_one_pair_and_one_prompt_never_crashes(name, least) -> None:
    try:
        found = draw(registry.figures.get(name), least)
    except plot.NothingToDraw as reason:
        assert str(reason).endswith(".")
    else:
        if isinstance(found, plot.Drawing):
            plot.svg(found.figure)


@pytest.mark.parametrize("name", NAMES)
def test_only_the_start_model_never_crashes(name, start_alone) -> None:
    try:
        draw(registry.figures.get(name), start_alone)
    except plot.NothingToDraw as reason:
        assert str(reason).endswith(".")


def test_the_same_frames_give_the_same_bytes(frames) -> None:
    shown = registry.figures.get("reward-vs-likelihood")
    first, second = (draw(shown, frames) for _ in range(2))
    assert plot.png(first.figure) == plot.png(second.figure)
    assert plot.svg(first.figure) == plot.svg(second.figure)
    assert plot.csv(first.data) == plot.csv(second.data)
    assert b"Matplotlib" not in plot.png(first.figure) and "<dc:date>" not in plot.svg(first.figure)


def test_drawing_leaves_matplotlib_as_it_was(frames) -> None:
    with matplotlib.rc_context({"font.size": 31.0, "axes.facecolor": "red"}):
        found = draw(registry.figures.get("kl"), frames)
        assert matplotlib.rcParams["font.size"] == 31.0
        assert plot.png(found.figure) == plot.png(draw(registry.figures.get("kl"), frames).figure)


def test_seeds_are_one_dot_and_faint_ones(seeded) -> None:
    found = draw(registry.figures.get("pass-rate"), seeded).data
    simpo = found[found["label"] == "SimPO"]
    assert list(simpo["of"]) == ["all", "seed", "seed"]
    assert simpo["value"].iloc[0] == pytest.approx(simpo["value"].iloc[1:].mean())
    assert simpo["n"].iloc[0] == 16


# ---------------------------------------------------------------- the numbers in the pictures


def test_the_pass_rate_shown_is_the_mean_over_prompts(drawn, frames) -> None:
    data = drawn["pass-rate"].data.set_index("label")
    judged = frames["verdicts"].merge(frames["runs"][["run", "title"]])
    expected = judged.groupby(["title", "prompt"])["score"].mean().groupby("title").mean()
    for label in data.index:
        assert data.loc[label, "value"] == pytest.approx(expected[label])


def test_simpos_own_two_orders_are_one(drawn) -> None:
    data = drawn["reward-vs-likelihood"].data.set_index(["label", "cell"])["value"]
    assert data["SimPO", "reward only"] == data["SimPO", "likelihood only"] == 0
    assert data["SimPO w/o LN", "reward only"] + data["SimPO w/o LN", "likelihood only"] > 0.1
    assert data.groupby("label").sum().tolist() == pytest.approx([1.0] * data.index.levels[0].size)


def test_the_length_bound_loss_shows_its_correlation(drawn) -> None:
    data = drawn["logp-vs-length"].data
    rho = {label: stats.spearman(g["chosen_length"], g["per_token"]).value for label, g in data.groupby("label")}
    assert rho["SimPO w/o LN"] > rho["SimPO"] + 0.3


def test_who_beats_whom_corrects_over_all_pairs(synthetic) -> None:
    made = synthetic.make_frames(seeds=(1, 2, 3), prompts=60, pairs=4, steps=2)
    data = draw(registry.figures.get("who-beats-whom"), made).data
    assert len(data) == 6 * 5 // 2 and set(data["seeds"]) == {3}
    decided = data[data["p_holm"] < 0.05]
    assert 0 < len(decided) < len(data) and ((decided["low"] > 0) | (decided["high"] < 0)).all()
    assert ((data["low"] > 0) | (data["high"] < 0)).to_numpy() == pytest.approx((data["p"] < 0.05).to_numpy())


def test_one_run_beats_nobody(drawn) -> None:
    data = drawn["who-beats-whom"].data
    assert len(data) == 6 * 5 // 2 and data[["p", "p_holm"]].isna().all(axis=None)


def test_training_pairs_are_drawn_beside_the_held_out_ones_where_they_were_scored(frames) -> None:
    """Figs. 2a and 4b of the paper are of training pairs."""
    held = frames["heldout"]
    trained = held.assign(
        pair="train-" + held["pair"], chosen_reward=held["chosen_reward"] + 500.0
    )  # all are ranked right
    for name in ("margin-vs-length", "reward-vs-likelihood"):
        before = draw(registry.figures.get(name), frames).data
        assert set(before["pairs"]) == {"held-out"}
        data = draw(registry.figures.get(name), Frames({**frames.stored, "trainpairs": trained})).data
        assert set(data["pairs"]) == {"held-out", "training"}
        pd.testing.assert_frame_equal(data[data["pairs"] == "held-out"].reset_index(drop=True), before)
        of_training = data[data["pairs"] == "training"]
        if name == "margin-vs-length":
            by_length = data.pivot_table(index=["loss", "x"], columns="pairs", values="value")
            assert (by_length["training"] - by_length["held-out"]).to_numpy() == pytest.approx(500.0, rel=1e-6)
        else:
            wrong = of_training[of_training["cell"].isin(["likelihood only", "both wrong"])]
            assert (wrong["value"] == 0).all() and len(wrong)


def test_fig_2a_measures_every_model_by_the_reward_of_simpo_on_one_scale(frames) -> None:
    drawing = draw(registry.figures.get("simpo-margin-vs-length"), frames)
    visible = [ax for ax in drawing.figure.axes if ax.get_visible()]
    assert len({ax.get_ylim() for ax in visible}) == 1 and "start" in set(drawing.data["loss"])
    rewarded = frames["heldout"].assign(chosen_reward=frames["heldout"]["chosen_reward"] + 100.0)
    other = Frames({**frames.stored, "heldout": rewarded})
    pd.testing.assert_frame_equal(draw(registry.figures.get("simpo-margin-vs-length"), other).data, drawing.data)
    held = frames["heldout"][frames["heldout"]["run"] == next(iter(frames["runs"]["run"]))]
    expected = 2.0 * (held["chosen_logp"] / held["chosen_length"] - held["rejected_logp"] / held["rejected_length"])
    assert pair_values.simpo_margin(held).to_numpy() == pytest.approx(expected.to_numpy())


def test_fixed_bins_have_the_width_that_was_asked_for(frames) -> None:
    data = draw(registry.figures.get("margin-vs-length"), frames, width=100).data
    assert set((data["high_edge"] - data["low_edge"]).round(6)) == {100.0}
    assert set(data["low_edge"] % 100) == {0.0}


def test_bins_by_quantile_hold_about_equal_counts_and_all_points() -> None:
    def binned(x: np.ndarray) -> pd.DataFrame:
        pairs = pd.Series([f"pair-{k}" for k in range(len(x))])
        return plot.binned(x, 2 * x, pairs, pairs.map(lambda pair: "run"), bins=8)

    x = np.random.default_rng(0).exponential(size=80)
    bins = binned(x)
    assert bins["n"].sum() == 80 and set(bins["n"]) == {10}
    assert bins["value"].to_numpy() == pytest.approx(2 * bins["x"].to_numpy())
    assert len(binned(np.array([1.0]))) == 1
    assert binned(np.array([])).empty


def test_a_collapse_is_called_one(drawn) -> None:
    table = drawn["training-health"].set_index("Loss")
    warned = table.loc["SimPO w/o LN", "Warnings"]
    for sign in ("winners lost", "times as long", "repetition", "cut off", "less varied"):
        assert sign in warned
    assert table.loc["SimPO", "Warnings"] == "" and table.loc["SimPO", "Both sides"] == "both fell"
    assert table.loc["KTO", "Both sides"] == "moved apart"


def test_a_sweep_needs_one_numeric_setting_that_differs(synthetic) -> None:
    title, _, *rest = synthetic.LOSSES["dpo"]
    parts = [
        synthetic.make_frames({"dpo": (title, {"beta": b}, *rest)}, prompts=8, pairs=12, steps=2) for b in (0.01, 0.1)
    ]
    both = {k: pd.concat([p[k] for p in parts], ignore_index=True) for k in parts[0]}
    both["runs"] = both["runs"].drop_duplicates("run")
    both["scores"] = metrics.complete(both)
    found = draw(registry.figures.get("sweep"), both).data
    assert set(found["at"]) == {0.01, 0.1} and set(found["setting"]) == {"beta"}
    title, _, *rest = synthetic.LOSSES["simpo"]
    made = [
        synthetic.make_frames({"simpo": (title, {"gamma": g}, *rest)}, prompts=2, pairs=2, steps=1) for g in (0.5, 1.0)
    ]
    trained = [both["runs"], *(frames["runs"] for frames in made)]  # whose answers are not judged yet
    later = {**both, "runs": pd.concat(trained, ignore_index=True).drop_duplicates("run")}
    assert set(draw(registry.figures.get("sweep"), later).data["loss"]) == {"dpo"}


def test_the_main_table_stands_in_the_order_of_the_gain(drawn) -> None:
    table = drawn["main-table"]
    gains = [
        0.0 if label == "Start model" else e.value
        for label, e in zip(table["Loss"], table["pass_rate_gain"], strict=True)
    ]
    assert gains == sorted(gains, reverse=True)
    assert all(isinstance(e, Estimate) for e in table["pass_rate"])


# ---------------------------------------------------------------- looks


def luminance(colour: str) -> float:
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


SHIPPED = [n for n in registry.list_losses() if registry.get_loss(n).function.__module__.startswith("pobench.losses.")]
LOOKS = {name: look_of(name) for name in ("start", *SHIPPED)}


@pytest.mark.parametrize("colour", [look.colour for look in LOOKS.values()] + list(RESERVED_COLOURS))
@pytest.mark.parametrize("page", ["#fefefe", "#14171b"])
def test_colours_can_be_seen_by_day_and_by_night(colour, page) -> None:
    light, dark = sorted([luminance(colour), luminance(page)], reverse=True)
    assert (light + 0.05) / (dark + 0.05) >= 3


def test_a_marker_of_letters_is_drawn_as_these_and_not_with_its_dollar_signs() -> None:
    lettered = [registry.get_loss(name) for name in SHIPPED if str(registry.get_loss(name).marker).startswith("$")]
    widest = {}
    for loss in lettered:
        low, high = look_of(loss.name).marker.get_extents().get_points()
        assert low + high == pytest.approx([0, 0], abs=1e-6), "a marker stands on its point"
        widest[loss.name] = (high - low)[0] / (high - low)[1]
    assert len(lettered) > 20 and max(widest.values()) < 1.6, "three signs are twice as wide as high"


def test_every_shipped_loss_has_a_look_of_its_own() -> None:
    without = [name for name in SHIPPED if not registry.get_loss(name).colour]
    assert not without, f"give register_loss a colour and a marker: {', '.join(without)}"
    assert len({look.colour for look in LOOKS.values()}) == len({look.marker for look in LOOKS.values()}) == len(LOOKS)


PAPER = ["simpo_sft", *(name for name in SHIPPED if registry.get_loss(name).in_paper)]


@pytest.mark.parametrize("vision", colour_vision.VISIONS)
def test_the_papers_losses_differ_in_colour_for_every_kind_of_eyes(vision) -> None:
    assert len(PAPER) == 13
    apart = colour_vision.distances([LOOKS[name].colour for name in PAPER], vision)
    near = [f"{PAPER[i]} and {PAPER[j]}: {apart[i, j]:.1f}" for i, j in np.argwhere(np.triu(apart < 10, 1)) if i < j]
    assert near == []


def test_losses_of_like_colours_differ_in_marker_and_dash_taken_together() -> None:
    names = list(LOOKS)
    near = colour_vision.least_distances([LOOKS[name].colour for name in names]) < 10
    alike = [
        (names[i], names[j]) for i, j in np.argwhere(np.triu(near, 1)) if LOOKS[names[i]][1:] == LOOKS[names[j]][1:]
    ]
    assert near.sum() > 2 * len(names) and alike == []
    assert len({look.dash for look in LOOKS.values()}) > 4


def test_colour_differences_are_those_of_the_published_test_data() -> None:
    """Sharma, Wu, Dalal 2005, Table 1, pairs 1, 7, 14, 25 and 34: hue, grey, a half turn of hue, and dark colours."""
    pairs = np.array(
        [
            [[50, 2.6772, -79.7751], [50, 0, -82.7485]],
            [[50, 0, 0], [50, -1, 2]],
            [[50, 2.5, 0], [50, 0, -2.5]],
            [[60.2574, -34.0099, 36.2677], [60.4626, -34.1751, 39.4387]],
            [[2.0776, 0.0795, -1.1350], [0.9033, -0.0636, -0.5514]],
        ]
    )
    found = colour_vision.ciede2000(pairs[:, 0], pairs[:, 1])
    assert found == pytest.approx([2.0425, 2.3669, 4.3065, 1.2644, 0.9082], abs=1e-4)


def test_red_and_green_are_one_colour_to_a_deuteranope_and_grey_stays_grey() -> None:
    red, green, grey = "#c05712", "#808000", "#808080"
    trichromat, deuteranope = (colour_vision.distances([red, green, grey], v) for v in ("trichromat", "deuteranope"))
    assert trichromat[0, 1] > 4 * deuteranope[0, 1]
    assert deuteranope[0, 2] > 10 and deuteranope.diagonal() == pytest.approx([0, 0, 0])


# ---------------------------------------------------------------- names at the ends of lines


def test_names_keep_their_distance_and_move_as_little_as_they_can() -> None:
    assert plot.apart([0.2, 0.5, 0.8], 0.1) == pytest.approx([0.2, 0.5, 0.8])
    assert plot.apart([0.5, 0.5], 0.1) == pytest.approx([0.45, 0.55])  # half a gap each
    assert plot.apart([0.98, 0.99, 1.0], 0.1) == pytest.approx([0.8, 0.9, 1.0])
    assert plot.apart([0.3, 0.31, 0.9], 0.1) == pytest.approx([0.255, 0.355, 0.9])


def test_lines_are_named_at_their_ends_and_no_name_stands_on_another(worlds) -> None:
    made = worlds.make(1, only={"start", "simpo", "dpo", "dpo_ln"}, seeds=(1,))
    made["scores"] = metrics.complete(made)
    figure = draw(registry.figures.get("length-bias"), made).figure
    assert not figure.legends
    for ax in figure.axes:
        names = [text for text in ax.texts if text.get_label() == plot._LINE_NAME]
        assert {name.get_text() for name in names} == {"simpo", "dpo", "dpo_ln"}
        heights = sorted(name.xyann[1] * ax.bbox.height for name in names)
        assert all(b - a > plot.NAME_SIZE / 72 * figure.dpi for a, b in pairwise(heights))


def test_a_users_loss_always_gets_the_same_look_out_of_the_reserved_part() -> None:
    mine = look_of("my_loss")
    assert mine == look_of("my_loss")
    assert mine.colour in RESERVED_COLOURS and mine.marker in RESERVED_MARKERS
    assert not set(RESERVED_COLOURS) & {look.colour for look in LOOKS.values()}
    assert not set(RESERVED_MARKERS) & {look.marker for look in LOOKS.values()}
    assert len({look_of(f"loss {i}") for i in range(50)}) > 10


def test_hostile_names_are_drawn_as_text(synthetic) -> None:
    title = "$\\frac{<script>\udcff & co"
    one = synthetic.make_frames({"mine": ("mine", {}, *synthetic.LOSSES["dpo"][2:])}, prompts=4, pairs=6, steps=2)
    one["runs"]["title"] = pd.Series(["start", title], dtype=object)
    one["scores"] = metrics.complete(one)
    for name in ("pass-rate", "who-beats-whom", "training-curves"):
        svg = plot.svg(draw(registry.figures.get(name), one).figure)
        assert "<script" not in plot.inline_svg(svg, "x", name)


def test_lines_of_a_picture_are_steps_that_add_up_to_its_points() -> None:
    line = "M 1.04 2 \nL 3.26 2.51 \nL 3.06 0.4 \nL 3.1 0.4 \nM 5 5 \nL 5.5 5 \nz\n"
    inline = plot.inline_svg(
        f'<svg viewBox="0 0 9 9"><path d="{line}"/><path d="M 0.25 1.25 \nC 1 1 2 2 3 3 \nL 4 4 \n"/></svg>', "x", "y"
    )
    assert re.findall(r' d="([^"]*)"', inline) == [
        "M1 2l2.3 .5-.2-2.1 0 0M5 5l.5 0z ",
        "M 0.25 1.25 C 1 1 2 2 3 3 L 4 4 ",
    ]


def test_content_knows_only_what_it_may() -> None:
    allowed = {"types", "stats", "plot", "registry"}
    for path in (ROOT / "analysis").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module == "pobench":
                assert {a.name for a in node.names} <= allowed, path.name
            assert not (isinstance(node, ast.Import) and any("pyplot" in a.name for a in node.names)), path.name


def test_a_missing_number_is_not_drawn_as_zero() -> None:
    assert math.isnan(plot.estimate_columns(Estimate.missing())["value"])


def test_a_model_stands_under_every_loss_whose_inputs_are_stored_and_the_others_are_named(drawn, frames) -> None:
    found = drawn["cross-loss"]
    data = found.data.set_index(["trained", "evaluated"])
    expected = frames["heldout"].merge(frames["runs"][["run", "title"]])
    margin = 0.1 * (
        (expected["chosen_logp"] - expected["reference_chosen_logp"])
        - (expected["rejected_logp"] - expected["reference_rejected_logp"])
    )
    by_hand = np.log1p(np.exp(-margin)).groupby(expected["title"]).mean()
    assert data.loc[("IPO", "dpo"), "value"] == pytest.approx(by_hand["IPO"], rel=1e-4)
    assert data.loc[("Start model", "dpo"), "value"] == pytest.approx(math.log(2), rel=1e-6)
    assert math.isnan(data.loc[("DPO", "kto"), "value"]) and data.loc[("DPO", "kto"), "n"] == 0
    texts = [t.get_text() for t in found.figure.axes[0].texts]
    not_stored = {"kl", "scores", "value", "collision", "entropy", "forward_kl"}
    unknown = [n for n in registry.list_losses() if registry.get_loss(n).needs & not_stored]
    assert len(texts) == 6 * (len(registry.list_losses()) - len(unknown)) and "–" not in texts
    assert len(found.notes.partition("not stored: ")[2].split(", ")) == len(unknown) and "KTO" in found.notes
    shares = draw(registry.figures.get("cross-loss"), frames, metric="reward_accuracy").data["value"].dropna()
    assert shares.between(0, 1).all()


# ---------------------------------------------------------------- beside DPO, beside the paper


def test_a_benchmarks_gain_is_paired_by_question(synthetic) -> None:
    made = synthetic.make_frames(
        {name: synthetic.LOSSES[name] for name in ("simpo", "dpo")}, prompts=8, pairs=4, steps=2
    )
    run_of = dict(zip(made["runs"]["loss"], made["runs"]["run"], strict=True))
    rng = np.random.default_rng(0)
    hard = rng.normal(size=400)
    won = {loss: (hard + rng.normal(size=400) > 0).astype(float) for loss in ("simpo", "dpo")}
    half = {loss: 196 * values.std(ddof=1) / 20 for loss, values in won.items()}
    facts = {"benchmark": "arena_hard", "metric": "win_rate", "judge": "j", "n": 400, "setting": "tiny", "seed": 1}
    made["benchmarks"] = pd.DataFrame(
        [
            {"run": run_of[loss], "loss": loss, "value": 100 * v.mean(), **facts}
            | {"low": 100 * v.mean() - half[loss], "high": 100 * v.mean() + half[loss]}
            for loss, v in won.items()
        ]
    )
    made["questions"] = pd.concat(
        pd.DataFrame({"run": run_of[loss], "question": range(400), "score": 100 * v}).assign(
            benchmark="arena_hard", metric="win_rate", judge="j", weight=1.0, group=""
        )
        for loss, v in won.items()
    )

    def width(frames: dict[str, pd.DataFrame]) -> float:
        data = draw(registry.figures.get("gains-over-dpo"), frames).data
        row = data[data["quantity"].str.startswith("Arena-Hard") & (data["loss"] == "simpo")].iloc[0]
        return float(row["high"] - row["low"]) / 2

    paired = 196 * (won["simpo"] - won["dpo"]).std(ddof=1) / 20
    assert width(made) == pytest.approx(paired, rel=0.03)
    assert width({name: f for name, f in made.items() if name != "questions"}) > 1.2 * paired


def test_gains_over_dpo_are_paired_and_the_start_model_stands_among_them(drawn, frames) -> None:
    data = drawn["gains-over-dpo"].data.set_index("label")
    judged = frames["verdicts"].merge(frames["runs"][["run", "title"]]).groupby(["title", "prompt"])["score"].mean()
    assert data.loc["SimPO", "value"] == pytest.approx(100 * (judged["SimPO"] - judged["DPO"]).mean())
    assert "DPO" not in data.index and data.loc["Start model", "n"] == 24


def test_the_cells_beside_dpo_are_the_joint_outcomes(drawn, frames) -> None:
    data = drawn["beside-dpo"].data
    assert data.groupby("label")["value"].sum().tolist() == pytest.approx([1.0] * 4)
    judged = frames["verdicts"].merge(frames["runs"][["run", "title"]]).groupby(["title", "prompt"])["score"].mean()
    start = judged["Start model"]
    both = ((judged["SimPO"] > start) & (judged["DPO"] > start)).mean()
    cell = data[(data["label"] == "SimPO") & (data["rival"] == "wins") & (data["this"] == "wins")]
    assert cell["value"].item() == pytest.approx(both)
    (place,) = (text.get_position() for text in drawn["beside-dpo"].figure.axes[0].texts[2:3])
    assert place[0] > 2 > 1 > place[1], "across wins, down loses: right of and above the diagonal, as the caption says"
    doc = " ".join(registry.figures.get("beside-dpo").doc.split())
    assert "Right of and above it the loss does better" in doc


def test_simpos_pull_falls_with_length_more_than_dpos(drawn) -> None:
    data = drawn["gradient-weight"].data
    chosen = data[data["side"] == "chosen"].groupby("label")
    fall = {label: g["value"].iloc[-1] / g["value"].iloc[0] for label, g in chosen}
    assert fall["SimPO"] < min(0.5, fall["DPO"])  # DPO's falls too here: long pairs are the ones it has learned


@pytest.fixture(scope="module")
def of_the_paper(synthetic) -> Frames:
    """Runs that carry the name of one of the paper's settings, with a benchmark."""
    made = synthetic.make_frames(setting="mistral-base", prompts=6, pairs=20, steps=2)
    judges = (("gpt-4-1106-preview", 0.0), ("a-judge", 50.0))
    rows = [
        {"run": r["run"], "setting": "mistral-base", "loss": r["loss"], "seed": r["seed"], "benchmark": "alpaca_eval",
         "metric": "lc_win_rate", "value": v, "low": v - 2, "high": v + 3, "n": 805, "judge": judge, "name": "AlpacaEval 2",
         "limit": math.nan}
        for r in made["runs"].to_dict("records") for judge, more in judges for v in [10.0 + len(r["loss"]) + more]
    ]  # fmt: skip
    return Frames({**made, "scores": metrics.complete(made), "benchmarks": pd.DataFrame(rows)})


def test_table_10_comes_first_and_what_another_table_says_stands_beside_it(of_the_paper) -> None:
    table = draw(registry.figures.get("beside-paper"), of_the_paper).set_index("Model")
    lc = "AlpacaEval LC, %"
    assert table.loc["SimPO", f"{lc}: paper"] == 21.4 and table.loc["SimPO", f"{lc}: also"] == 21.5
    assert table.loc["CPO", "Arena-Hard WR, %: paper"] == 5.8 and table.loc["CPO", "Arena-Hard WR, %: also"] == 6.9
    assert math.isnan(table.loc["DPO", f"{lc}: also"])
    assert table.loc["SimPO", f"{lc}: ours"] == Estimate(15.0, 13.0, 18.0, 805)  # the GPT-4-class judge's
    assert table.loc["RRHF", f"{lc}: ours"].n == 0 and table.loc["SimPO, γ = 0", f"{lc}: ours"].n == 0
    assert table.loc["SimPO w/o LN", "ρ(log-prob, length): paper"] == 0.82
    assert table.loc["SimPO w/o LN", "ρ(log-prob, length): ours"].n == 20
    assert "gpt-4-1106-preview" in table.attrs["notes"]


def test_downstream_numbers_of_the_paper_stand_without_any_of_ours(of_the_paper) -> None:
    table = draw(registry.figures.get("beside-paper-downstream"), of_the_paper).set_index("Model")
    assert table.loc["KTO", "average, %: paper"] == 63.42 and table.loc["KTO", "average, %: ours"].n == 0


def test_zero_shot_numbers_are_zeroevals_where_it_ran_and_mt_bench_has_a_column_a_judge(of_the_paper) -> None:
    dpo = next(row for row in of_the_paper["runs"].to_dict("records") if row["loss"] == "dpo")
    named = {"run": dpo["run"], "setting": "gemma2-instruct", "loss": "dpo", "seed": dpo["seed"]}
    known = {**named, "low": math.nan, "high": math.nan}
    results = [
        ("downstream", "gsm8k_zero_shot", "", "downstream tasks", 50.0),
        ("downstream", "mmlu_zero_shot", "", "downstream tasks", 51.0),
        ("zeroeval", "gsm8k", "", "ZeroEval", 60.0),
        ("mt_bench", "score", "gpt-4", "MT-Bench", 7.5),
        ("mt_bench", "score", "gpt-4-1106-preview", "MT-Bench", 6.5),
    ]
    names = ("benchmark", "metric", "judge", "name", "value")
    rows = [{**known, **dict(zip(names, r, strict=True)), "n": 80, "limit": math.nan} for r in results]
    runs = of_the_paper["runs"].assign(setting="gemma2-instruct")
    frames = Frames({**of_the_paper.stored, "runs": runs, "benchmarks": pd.DataFrame(rows)})
    below = draw(registry.figures.get("beside-paper-downstream"), frames).set_index("Model").loc["Gemma-2-9B-DPO"]
    assert below["gsm8k_zero_shot, %: ours"].value == 60 and below["mmlu_zero_shot, %: ours"].value == 51
    main = draw(registry.figures.get("main-table"), frames).set_index("Loss").loc["DPO"]
    assert main["MT-Bench by gpt-4"].value == 7.5 and main["MT-Bench by gpt-4-1106-preview"].value == 6.5


def test_a_setting_that_the_paper_does_not_have_is_told_which_it_has(frames) -> None:
    with pytest.raises(plot.NothingToDraw, match=r"nothing of the setting tiny; it has .*mistral-base"):
        draw(registry.figures.get("beside-paper"), frames)


def test_gains_on_a_benchmark_stand_beside_the_papers(of_the_paper) -> None:
    data = draw(registry.figures.get("gains-over-dpo"), of_the_paper).data
    lc = data[data["quantity"].str.startswith("AlpacaEval")].set_index("label")
    assert lc.loc["SimPO", "paper"] == pytest.approx(21.4 - 15.1)


# ---------------------------------------------------------------- studies on the page


def test_time_counts_the_reference_once_where_it_is_stored_and_in_the_steps_where_it_is_not(synthetic) -> None:
    made = synthetic.make_frames(prompts=8, pairs=20, steps=2)
    runs = made["runs"][made["runs"]["loss"].isin(["start", "dpo", "simpo"])]
    dpo = runs[runs["loss"] == "dpo"]
    live = dpo.assign(run="t/dpo-live", reference="every_step", seconds=130.0, reference_seconds=0.0, peak_memory=3e9)
    both = pd.concat([runs.assign(reference="", reference_seconds=0.0), live], ignore_index=True)
    both.loc[both["run"] == dpo["run"].iloc[0], ["reference", "seconds", "reference_seconds"]] = ["cached", 90.0, 30.0]
    data = draw(registry.figures.get("time-and-memory"), {**made, "runs": both}).data
    minutes = data[(data["quantity"] == "whole_seconds") & (data["of"] == "all")].set_index("label")["value"]
    assert minutes["DPO"] == pytest.approx((90 + 30) / 60) and minutes["DPO, in every step"] == pytest.approx(130 / 60)
    assert minutes["SimPO"] == pytest.approx(runs[runs["loss"] == "simpo"]["seconds"].iloc[0] / 60)
    table = draw(registry.figures.get("cost"), {**made, "runs": both})
    assert list(table["Reference"]) == ["cached", "every_step", "none"]


def test_kl_in_training_starts_at_the_reference_and_shows_what_was_measured(frames) -> None:
    steps = frames["steps"].assign(**{"heldout/kl": lambda s: (0.01 * s["step"]).where(s["step"] % 4 == 0)})
    found = draw(registry.figures.get("kl-in-training"), {**frames.stored, "steps": steps})
    assert set(found.data["step"]) == {4, 8, 12} and set(found.data["label"]) == {
        "SimPO",
        "DPO",
        "KTO",
        "IPO",
        "SimPO w/o LN",
    }
    assert all(line.get_ydata()[0] == 0 for ax in found.figure.axes for line in ax.lines if len(line.get_ydata()) > 2)


def test_a_gradients_norm_is_drawn_where_the_model_was_asked(frames) -> None:
    held = frames["heldout"]
    norms = held[["run", "pair"]].assign(chosen_norm=2.0, rejected_norm=1.0, product=0.0)
    data = draw(registry.figures.get("gradient-norm"), {**Frames({**frames.stored, "norms": norms})}).data
    dpo = frames["gradients"].merge(frames["runs"][["run", "loss"]]).query("loss == 'dpo'")
    by_hand = np.hypot(2 * dpo["chosen_weight"], dpo["rejected_weight"])
    assert data.loc[data["loss"] == "dpo", "norm"].to_numpy() == pytest.approx(
        (by_hand / by_hand.mean()).to_numpy(), rel=1e-4
    )


def test_of_many_arms_the_losses_at_home_are_drawn_and_a_note_says_so(synthetic) -> None:
    title, settings, *rest = synthetic.LOSSES["simpo"]
    few = synthetic.make_frames(prompts=4, pairs=8, steps=2)
    studied = [
        synthetic.make_frames({"simpo": (title, {**settings, "gamma": 0.1 * g}, *rest)}, prompts=4, pairs=8, steps=2)
        for g in range(11, 24)
    ]
    many = {k: pd.concat([few[k], *(frames[k] for frames in studied)], ignore_index=True) for k in few}
    many["runs"] = many["runs"].drop_duplicates("run")
    (comparable,) = split(ordered(many))

    def drawn_of(name: str) -> plot.Drawing | pd.DataFrame:
        return draw(shown := registry.figures.get(name), comparable.shown_in(shown))

    found = drawn_of("logp-vs-length")
    labels = [ax.get_title(loc="left").strip() for ax in found.figure.axes if ax.get_visible()]
    assert len(labels) == 6 and labels.count("SimPO") == 1
    assert "13 more" in found.notes
    table = drawn_of("settings-table")
    assert len(table) == 18 and "notes" not in table.attrs
    assert len(drawn_of("main-table")) == 6
    (comparable,) = split(ordered(few))
    assert "more" not in drawn_of("logp-vs-length").notes and comparable.home is comparable.every_arm


def test_panels_that_share_a_scale_have_the_same_limits(drawn) -> None:
    axes = [ax for ax in drawn["logp-vs-length"].figure.axes if ax.get_visible()]
    assert len({ax.get_xlim() for ax in axes}) == len({ax.get_ylim() for ax in axes}) == 1
    assert len({ax.get_ylim() for ax in drawn["margin-vs-length"].figure.axes if ax.get_visible()}) > 1


# ---------------------------------------------------------------- axes of values


@pytest.mark.parametrize(
    "values",
    [
        [1e-4, 3e-4, 6e-4, 1e-3],  # rates of a search
        [3e-7, 5e-7, 6e-7, 8e-7, 1e-6],
        [0.0, 0.5, 1.0, 2.0, 4.0],
        [0.01, 0.05, 0.1],
        [1.0, 1.01, 1.02, 100.0],
        [2.0],
    ],
)
def test_labels_of_a_setting_never_touch_and_name_both_ends(values) -> None:
    with plot.style():
        figure = plot.Figure(figsize=(plot.WIDTH, 1.75), layout="constrained")
        ax = figure.subplots(1, 5)[0]
        ax.plot(values, values, "o")
        plot.value_axis(ax, values)
        figure.draw_without_rendering()
        boxes = [label.get_window_extent() for label in ax.get_xticklabels()]
    ticks = list(ax.get_xticks())
    assert ticks[0] == min(values) and ticks[-1] == max(values)
    assert all(left.x1 < right.x0 for left, right in pairwise(boxes))


@pytest.mark.parametrize(
    ("value", "said"),
    [(3e-4, "3e−4"), (0.0025, "0.0025"), (1.5e-7, "1.5e−7"), (0.0, "0"), (2.0, "2"), (10.0, "10"), (0.05, "0.05")],
)
def test_a_value_is_said_in_few_characters(value, said) -> None:
    assert plot.brief(value) == said
