"""The scorecard finds what was planted, the contrary of the paper's claims included, and nothing where nothing is."""

from __future__ import annotations

import importlib.util
import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from pobench import registry
from pobench.errors import PobenchError
from pobench.registry import Claim
from pobench.reporting import plot
from pobench.reporting.draw import draw, table
from pobench.results import claims, few_runs, metrics, pair_values
from pobench.results.across import Settings
from pobench.results.arms import home_of, lines_of, of_arm
from pobench.results.contrast import POINTS, Contrast, contrast
from pobench.results.crossed import crossed
from pobench.results.evidence import Evidence, Measured
from pobench.results.frame_files import counted
from pobench.types import Estimate
from pobench.workflows.study_file import list_studies, read_study

TABLES = Path(__file__).parents[2] / "../shared/paper/tables.json"
COLUMNS = [
    *("name", "claim", "verdict", "value", "low", "high", "unit", "n", "seeds", "runs", "comparable"),
    *("smallest_effect", "power", "statistic", "paper", "where"),
]
ELSEWHERE = {"ln-no-help-dpo-unbiased", "beta-ten-helps-llama3-instruct", "gemma-hardly-moves-with-rate"}

Frames = dict[str, pd.DataFrame]


def table_of(frames: Frames, name: str = "claims") -> pd.DataFrame:
    """The table's CSV, by name."""
    return draw(registry.figures.get(name), frames).attrs["data"].set_index("name")


def rows_of(frames: Frames, *names: str) -> pd.DataFrame:
    """The rows of some claims."""
    rows = importlib.import_module(registry.figures.get("claims").function.__module__)._rows
    return rows([registry.claims.get(name) for name in names], Evidence(**frames)).set_index("name")


def verdict_of(frames: Frames, name: str) -> str:
    return rows_of(frames, name).loc[name, "verdict"]


def all_claims() -> list[Claim]:
    return [registry.claims.get(name) for name in registry.claims.names()]


@pytest.fixture(scope="module")
def world(worlds) -> Frames:
    """The world as the paper says. Do not change it."""
    return worlds.make(1)


@pytest.fixture(scope="module")
def shown(world) -> pd.DataFrame:
    """The table of the world, as the page prints it."""
    return draw(registry.figures.get("claims"), world)


@pytest.fixture(scope="module")
def true_world(shown) -> pd.DataFrame:
    return shown.attrs["data"].set_index("name")


@pytest.fixture(scope="module")
def few_losses(worlds) -> Frames:
    """The start model, SimPO, DPO, and DPO with a margin. Do not change it."""
    return worlds.make(1, only={"start", "simpo", "dpo", "dpo_gamma"})


# ---------------------------------------------------------------- what was planted
@pytest.mark.parametrize(("sign", "expected"), [(1, "supported"), (-1, "contradicted")])
def test_every_claim_gets_the_verdict_that_was_planted(worlds, true_world, sign, expected) -> None:
    table = true_world if sign == 1 else table_of(worlds.make(sign))
    other = table[table["verdict"] != expected]
    assert set(other.index) == ELSEWHERE, other[["verdict", "value", "low", "high"]].to_string()
    assert set(other["verdict"]) == {"not measured"}


def test_where_nothing_differs_little_is_decided_and_much_is_equivalent(worlds) -> None:
    table = table_of(worlds.make(0))
    # margins are above 0 for every loss of this world
    of_difference = [
        c.name for c in all_claims() if c.neutral in (c.above, c.below) and not c.name.startswith("margin-")
    ]
    verdicts = table["verdict"].reindex(of_difference).dropna()
    decided = verdicts[verdicts.isin(["supported", "contradicted"])]
    assert len(verdicts) > 35 and len(decided) <= 3, decided  # one in twenty may be decided by chance
    assert (verdicts == "no effect").sum() >= 12
    equivalent = table[table["verdict"] == "no effect"]
    neutral = pd.Series({c.name: c.neutral for c in all_claims()}).reindex(equivalent.index)
    assert (equivalent["low"] > neutral - equivalent["smallest_effect"]).all()
    assert (equivalent["high"] < neutral + equivalent["smallest_effect"]).all()


@pytest.mark.parametrize(("sign", "expected"), [(1, "supported"), (-1, "contradicted")])
def test_without_biased_pairs_dpo_gains_nothing_by_length_normalisation(worlds, sign, expected) -> None:
    both = ("ln-no-help-dpo-unbiased", "ln-helps-dpo")
    unbiased = worlds.make(sign, longer=False, only={"start", "dpo", "dpo_ln"})
    assert list(rows_of(unbiased, *both)["verdict"]) == [expected, "not measured"]
    del unbiased["trainpairs"]  # nothing says whether winners are longer
    assert list(rows_of(unbiased, *both)["verdict"]) == ["not measured", "not measured"]


def test_claims_on_one_model_are_measured_on_its_settings_alone(worlds) -> None:
    llama = worlds.make(-1, setting="llama3-instruct", only={"start", "simpo"})  # a larger β scores higher there
    assert verdict_of(llama, "beta-ten-helps-llama3-instruct") == "supported"
    assert verdict_of(llama, "score-falls-with-beta-simpo") == "not measured"
    name = "gemma-hardly-moves-with-rate"
    still, moved = (rows_of(worlds.make(s, setting="gemma2-instruct", only={"start", "simpo"}), name) for s in (0, 1))
    assert moved.loc[name, "verdict"] == "contradicted"
    assert still.loc[name, "verdict"] in ("supported", "undecided") and abs(still.loc[name, "value"]) < 3


def test_from_a_strong_start_model_nothing_is_said_of_beta(few_losses) -> None:
    verdicts = few_losses["verdicts"].copy()
    assert verdict_of(few_losses, "score-falls-with-beta-simpo") == "supported"
    verdicts.loc[verdicts["run"].str.contains("/start-"), "score"] = 0.6
    assert verdict_of({**few_losses, "verdicts": verdicts}, "score-falls-with-beta-simpo") == "not measured"


def test_what_was_not_run_is_not_measured(few_losses) -> None:
    runs = few_losses["runs"]
    simpo = {**few_losses, "runs": runs[runs["loss"].isin(["start", "simpo"])]}
    alone = ("margin-positive-everywhere", "kl-simpo-low", "kl-falls-with-beta-simpo", "simpo-above-dpo")
    table = rows_of(simpo, *alone)
    assert list(table["verdict"]) == ["supported"] * 3 + ["not measured"]
    missing = table.loc["simpo-above-dpo"]
    assert missing["n"] == 0 and missing["comparable"] == ""
    assert math.isnan(missing["value"]) and math.isnan(missing["power"])


def test_without_a_judge_the_held_out_claims_still_stand(few_losses) -> None:
    held = {name: few_losses[name] for name in ("runs", "heldout")}
    table = rows_of(held, "accuracy-simpo-above-dpo", "simpo-above-dpo", "simpo-little-longer-tokens")
    assert list(table["verdict"]) == ["supported", "not measured", "not measured"]


# ---------------------------------------------------------------- the rule
CLAIM = Claim("c", lambda e: None, "", "", "", "", 2.0, "", 0.0, math.inf, 0.5, 0.0, False, False)


@pytest.mark.parametrize(
    ("low", "value", "high", "n", "seeds", "comparable", "expected"),
    [
        (0.6, 0.7, 0.8, 9, 3, True, "supported"),
        (0.1, 0.7, 0.8, 9, 3, True, "supported"),
        (-0.8, -0.7, -0.1, 9, 3, True, "contradicted"),
        (-0.1, 0.2, 0.8, 9, 3, True, "undecided"),
        (0.0, 0.2, 0.8, 9, 3, True, "undecided"),  # one pair that differs gives such an interval
        (-0.8, -0.2, 0.0, 9, 3, True, "undecided"),
        (-0.4, 0.0, 0.4, 9, 3, True, "no effect"),
        (0.1, 0.2, 0.4, 9, 3, True, "no effect"),  # surely above 0, and surely too small to matter
        (-0.5, 0.0, 0.4, 9, 3, True, "undecided"),  # touches the smallest effect
        (0.6, 0.7, 0.8, 9, 2, True, "undecided"),
        (-0.4, 0.0, 0.4, 9, 2, True, "undecided"),
        (0.6, 0.7, 0.8, 9, 1, True, "one run"),
        (math.nan, 0.7, math.nan, 1, 1, True, "one run"),
        (math.nan, 0.7, math.nan, 3, 3, True, "undecided"),
        (0.6, 0.7, 0.8, 9, 3, False, "not comparable"),
        (0.6, 0.7, 0.8, 9, 1, False, "not comparable"),
        (math.nan, math.nan, math.nan, 0, 0, False, "not measured"),
    ],
)
def test_each_verdict_has_its_one_reason(low, value, high, n, seeds, comparable, expected) -> None:
    measured = Measured(Contrast(Estimate(value, low, high, n), seeds, 2 * seeds))
    assert claims.verdict(CLAIM, measured, comparable) == expected and expected in claims.VERDICTS


def test_a_claim_between_two_bounds_is_contradicted_on_either_side() -> None:
    between = replace(CLAIM, above=-0.1, below=0.1, smallest=0.1)
    found = [Measured(Contrast(Estimate(v, v - 0.01, v + 0.01, 9), 3, 6)) for v in (-0.2, 0.0, 0.1, 0.2)]
    words = [claims.verdict(between, measured, True) for measured in found]
    assert words == ["contradicted", "supported", "undecided", "contradicted"]


def test_losses_that_were_not_tuned_alike_are_not_comparable(few_losses) -> None:
    runs = few_losses["runs"].copy()
    runs.loc[runs["loss"] == "dpo", ["values", "trials"]] = ["tuned", 8.0]
    row = rows_of({**few_losses, "runs": runs}, "simpo-above-dpo").iloc[0]
    assert row["verdict"] == "not comparable" and row["comparable"] == "no" and row["low"] > 0
    assert verdict_of({**few_losses, "runs": runs}, "kl-falls-with-beta-dpo") == "supported"  # within one loss
    runs.loc[runs["loss"] == "simpo", ["values", "trials"]] = ["tuned", 8.0]
    assert verdict_of({**few_losses, "runs": runs}, "simpo-above-dpo") == "supported"


def test_a_margin_is_judged_at_dpos_own_beta_or_where_both_were_tuned(few_losses) -> None:
    runs = few_losses["runs"].copy()
    assert verdict_of(few_losses, "gamma-no-help-dpo") == "supported"
    runs.loc[runs["loss"] == "dpo_gamma", "settings"] = json.dumps({"beta": 2.0})
    assert verdict_of({**few_losses, "runs": runs}, "gamma-no-help-dpo") == "not comparable"
    runs.loc[runs["loss"] != "start", ["values", "trials"]] = ["tuned", 8.0]
    assert verdict_of({**few_losses, "runs": runs}, "gamma-no-help-dpo") == "supported"


OF_EACH_KIND = (
    "simpo-above-dpo", "score-peaks-in-gamma", "kl-falls-with-beta-dpo", "kl-falls-more-with-beta-dpo", "every-method-helps",
    "margin-positive-everywhere", "simpo-little-longer-tokens", "kl-simpo-low", "lc-above-raw-simpo", "gsm8k-falls",
    "lower-rate-keeps-gsm8k", "reference-free-is-faster",
)  # fmt: skip


@pytest.mark.parametrize(("seeds", "expected"), [(2, "undecided"), (1, "one run")])
def test_fewer_than_three_seeds_decide_nothing(few_losses, seeds, expected) -> None:
    first = few_losses["runs"]["seed"] <= seeds
    table = rows_of({**few_losses, "runs": few_losses["runs"][first]}, *OF_EACH_KIND)
    assert set(table["verdict"]) == {expected} and set(table["seeds"]) == {seeds}


def test_the_smaller_count_of_seeds_counts_and_all_runs_of_both_sides_are_used(few_losses) -> None:
    lost = (few_losses["runs"]["loss"] == "dpo") & (few_losses["runs"]["seed"] == 3)
    row = rows_of({**few_losses, "runs": few_losses["runs"][~lost]}, "simpo-above-dpo").iloc[0]
    assert (row["seeds"], row["runs"], row["verdict"]) == (2, 5, "undecided")
    assert row["statistic"].endswith("2 seeds on one side, 3 on another"), "different numbers of seeds are said"
    whole = rows_of(few_losses, "simpo-above-dpo").iloc[0]
    assert "seeds" not in whole["statistic"]


def test_a_length_bias_is_judged_by_all_points_of_its_line(worlds, world) -> None:
    biased = world["runs"]["length_bias"] == 1.0
    # not the middle, which has no weight in a least-squares line over three points
    between = world["runs"][biased].assign(length_bias=0.25, run=lambda runs: runs["run"] + "-half")
    tokens = world["answers"][world["answers"]["run"].isin(world["runs"].loc[biased, "run"])]
    longer = tokens.assign(
        run=tokens["run"] + "-half", tokens=tokens["tokens"] + 30 * tokens["run"].str.contains("dpo-")
    )
    bent = {
        **world,
        "runs": pd.concat([world["runs"], between], ignore_index=True),
        "answers": pd.concat([world["answers"], longer], ignore_index=True),
    }
    ends, line = (rows_of(made, "bias-lengthens-dpo-more").iloc[0]["value"] for made in (world, bent))
    assert line != pytest.approx(ends, abs=0.01), "a point between the ends counts"


# ---------------------------------------------------------------- power
def test_power_is_the_share_of_simulated_studies_that_support_the_claim() -> None:
    rng, claim = np.random.default_rng(3), replace(CLAIM, paper=0.13, smallest=0.01)
    supported, expected = [], []
    for _ in range(300):
        table = 0.13 + rng.normal(0, 0.3, (40, 1)) + rng.normal(0, 0.02, (1, 5)) + rng.normal(0, 0.3, (40, 5))
        found = crossed([(1.0, table)])
        half = found.half_width()
        estimate = Estimate(found.value, found.value - half, found.value + half, 40)
        measured = Measured(Contrast(estimate, 5, 5, found))
        supported.append(claims.verdict(claim, measured, True) == "supported")
        expected.append(claims.power(claim, measured))
    assert 0.4 < np.mean(supported) < 0.8
    assert np.mean(expected) == pytest.approx(np.mean(supported), abs=0.08)


def test_power_counts_the_way_from_the_bound_to_the_papers_number() -> None:
    found = Contrast(Estimate(0.0, -1.96, 1.96, 9), 3, 6)  # a standard error of 1
    at = {paper: claims.power(replace(CLAIM, paper=paper), Measured(found)) for paper in (0.0, 1.96, 3.92)}
    assert at[0.0] == pytest.approx(0.025, abs=1e-4) and at[1.96] == pytest.approx(0.5, abs=1e-4)
    assert at[3.92] == pytest.approx(0.975, abs=1e-4)
    below = replace(CLAIM, above=-math.inf, below=1.0, paper=-0.96)
    assert claims.power(below, Measured(found)) == pytest.approx(0.5, abs=1e-4)
    assert math.isnan(claims.power(replace(CLAIM, below=9.0), Measured(found)))  # between two bounds
    assert math.isnan(claims.power(CLAIM, Measured(replace(found, seeds=2))))
    without = replace(CLAIM, paper=None, smallest=1.96)
    assert claims.power(without, Measured(found)) == pytest.approx(0.5, abs=1e-4)


# ---------------------------------------------------------------- statistics by hand
def values(table: np.ndarray, seeds: Sequence[int] = (1, 2, 3)) -> pd.Series:
    """(prompts, seeds) as an arm's values."""
    frame = pd.DataFrame(table, columns=list(seeds))
    return frame.unstack().rename_axis(["seed", "prompt"])


@pytest.fixture(scope="module")
def evidence(worlds) -> Evidence:
    return Evidence(worlds.make(1, only={"start"})["runs"])


def test_a_difference_is_the_plain_one_paired_by_prompt_and_seed(worlds, world, true_world) -> None:
    home = {loss: home_of(world["runs"], loss) for loss in ("simpo", "dpo")}
    means = {k: 100 * of_arm(world["verdicts"], arm)["score"].mean() for k, arm in home.items()}
    ours = true_world.loc["simpo-above-dpo"]
    assert ours["value"] == pytest.approx(means["simpo"] - means["dpo"]) and ours["n"] == worlds.PROMPTS
    assert (ours["seeds"], ours["runs"]) == (3, 6)
    right = [100 * (of_arm(world["heldout"], home[k])["chosen_reward"] > 0).mean() for k in ("simpo", "dpo")]
    assert true_world.loc["accuracy-simpo-above-dpo", "value"] == pytest.approx(right[0] - right[1])


def test_the_least_of_several_contrasts_is_corrected_on_its_upper_side(evidence) -> None:
    rng = np.random.default_rng(0)
    ours, theirs = values(rng.normal(1, 1, (50, 3))), [values(rng.normal(m, 1, (50, 3))) for m in (0.0, 0.6, 0.2)]
    parts = [[(1.0, ours), (-1.0, other)] for other in theirs]
    plain = [contrast(p, POINTS) for p in parts]
    at_bonferroni = [contrast(p, POINTS, level=1 - 0.05 / 3) for p in parts]
    found = claims.least(parts, evidence)
    assert found.estimate.value == pytest.approx(ours.mean() - theirs[1].mean())
    assert found.estimate.low == pytest.approx(min(p.estimate.low for p in plain))
    assert found.estimate.high == pytest.approx(min(p.estimate.high for p in at_bonferroni))
    assert (found.seeds, found.runs) == (3, 6)
    assert claims.least([*parts, [(1.0, ours), (-1.0, ours.iloc[:0])]], evidence).estimate.n == 0


def test_a_peak_is_the_best_inner_point_over_the_better_end(world) -> None:
    e = Evidence(world["runs"], verdicts=world["verdicts"])
    line = e.line("simpo", "gamma", points=3)
    assert line is not None and [v for v, _ in line.points] == [0.0, 1.0, 3.0]
    means = {v: e.score(arm).mean() for v, arm in line.points}
    found = claims.peak("simpo", "gamma")(e).found
    assert found.estimate.value == pytest.approx(means[1.0] - max(means[0.0], means[3.0]))
    assert (found.seeds, found.runs) == (3, 6) and found.estimate.low > 0
    short = Evidence(world["runs"][world["runs"]["settings"].map(lambda s: json.loads(s).get("gamma") != 3.0)])
    assert claims.peak("simpo", "gamma")(short) == Measured()


def test_a_trend_is_the_rise_of_a_least_squares_line() -> None:
    at, y = np.array([0.4, 0.5, 1.0]), np.array([38.8, 44.6, 53.7])
    line = np.polyfit(np.log(at), y, 1)
    assert claims.slope(at) @ y == pytest.approx(line[0] * np.log(1.0 / 0.4))
    with_zero = np.array([0.0, 0.8, 1.6])  # no logarithm of 0
    assert claims.slope(with_zero) @ y == pytest.approx(np.polyfit(with_zero, y, 1)[0] * 1.6)


def test_a_trend_upward_begins_at_the_losss_own_value(world) -> None:
    e = Evidence(world["runs"])
    assert [v for v, _ in claims.upward(e, "dpo", "beta", 10).points] == [0.5, 5.0]
    assert claims.upward(e, "dpo", "beta", 9) is None  # its own value alone
    assert claims.upward(e, "ipo", "beta", 10) is None


def test_what_a_tenfold_value_adds_is_by_the_lines_own_range(world) -> None:
    e = Evidence(world["runs"], heldout=world["heldout"])
    kl = {}
    for loss in ("dpo", "simpo"):
        (low, a), (high, b) = e.line(loss, "beta").points
        of = [of_arm(world["heldout"], arm) for arm in (a, b)]
        mean = [((f["reference_chosen_logp"] - f["chosen_logp"]) / f["chosen_length"]).mean() for f in of]
        kl[loss] = (mean[1] - mean[0]) / math.log10(high / low)
    found = registry.claims.get("kl-falls-more-with-beta-dpo").function(e).found
    assert found.estimate.value == pytest.approx(kl["dpo"] - kl["simpo"]) and found.runs == 12


def test_per_cent_more_is_a_ratio_of_means_with_fiellers_width(evidence) -> None:
    rng = np.random.default_rng(1)
    a, b = rng.normal(60, 5, (200, 3)), rng.normal(40, 5, (200, 3))
    e = replace_values(evidence, {"simpo": values(a), "dpo": values(b)})
    found = claims.percent_more("simpo", "dpo", lambda e, arm: e.score(arm))(e).found.estimate
    assert found.value == pytest.approx(100 * (a.mean() / b.mean() - 1))
    # relative errors of two independent means add: 100 · 1.5 · √(5²/60² + 5²/40²) / √600
    se = 150 * math.sqrt(25 / 3600 + 25 / 1600) / math.sqrt(600)
    assert (found.high - found.low) / 2 == pytest.approx(2 * se, rel=0.35)


def replace_values(e: Evidence, by_loss: dict[str, pd.Series]) -> Evidence:
    """Evidence whose arms are made of these scores."""
    row = e.runs.iloc[0].to_dict()
    runs = [
        {**row, "run": f"made/{loss}-{seed}", "kind": "loss", "loss": loss, "seed": seed, "values": "default"}
        for loss in by_loss
        for seed in (1, 2, 3)
    ]
    made = Evidence(pd.DataFrame(runs), verdicts=pd.DataFrame({"run": [], "judge": []}))
    made._known.update({("score", made.arm(loss).id): scores for loss, scores in by_loss.items()})
    return made


def test_few_runs_agree_with_scipy() -> None:
    ours, theirs = [61.2, 60.4, 62.0, 61.1], [58.0, 59.1, 57.2]
    found = few_runs.few([few_runs.Few(1.0, ours), few_runs.Few(-1.0, theirs)])
    welch = scipy_stats.ttest_ind(ours, theirs, equal_var=False).confidence_interval(0.95)
    assert (found.estimate.low, found.estimate.high) == pytest.approx((welch.low, welch.high))
    assert (found.seeds, found.runs) == (3, 7)
    fixed = few_runs.few([few_runs.Few(1.0, ours), few_runs.Few(-1.0, [58.0], fixed=True)])
    one = scipy_stats.ttest_1samp(ours, 58.0).confidence_interval(0.95)
    assert (fixed.estimate.low, fixed.estimate.high) == pytest.approx((one.low - 58.0, one.high - 58.0))
    assert (fixed.seeds, fixed.runs) == (4, 4)
    single = few_runs.few([few_runs.Few(1.0, ours), few_runs.Few(-1.0, [58.0])])
    assert single.seeds == 1 and math.isnan(single.estimate.low)
    assert few_runs.few([few_runs.Few(1.0, [])]).estimate.n == 0
    assert math.isnan(few_runs.few([few_runs.Few(1.0, [3.0, 3.0, 3.0])]).estimate.low)  # no variance is no certainty


def test_a_reference_is_counted_both_ways(few_losses) -> None:
    names = [claim.name for claim in all_claims() if claim.function.__qualname__.startswith("cost_ratio")]
    table = rows_of({"runs": few_losses["runs"]}, *names)
    assert table.loc["reference-free-is-faster", "value"] == pytest.approx(1 / 1.2, rel=0.01)
    assert table.loc["reference-free-is-faster-than-cached", "value"] == pytest.approx(60 / 70, rel=0.01)
    assert table.loc["cached-reference-needs-no-memory", "value"] == pytest.approx(1.0, abs=0.01)
    earlier = few_losses["runs"].drop(
        columns=["reference", "reference_seconds"]
    )  # nothing says how the sums came about
    assert set(rows_of({"runs": earlier}, *names)["verdict"]) == {"not measured"} and len(names) == 4


def test_a_time_beside_other_work_decides_no_claim(few_losses) -> None:
    runs, names = few_losses["runs"], ["reference-free-is-faster-than-cached", "cached-reference-needs-no-memory"]
    quiet = rows_of({"runs": runs.assign(waited=0.01 * runs["seconds"])}, *names)
    crowded = rows_of({"runs": runs.assign(waited=0.3 * runs["seconds"])}, *names)
    assert quiet.equals(rows_of({"runs": runs}, *names)) and "not comparable" not in set(quiet["verdict"])
    assert (
        crowded.loc[names[0], "verdict"] == "not comparable"
        and crowded.loc[names[0], "value"] == quiet.loc[names[0], "value"]
    )
    assert crowded.loc[names[1]].equals(quiet.loc[names[1]]), "memory is the same beside other work"
    one = runs.assign(waited=(runs["seed"] == runs["seed"].max()) * 0.3 * runs["seconds"])
    assert rows_of({"runs": one}, *names).loc[names[0], "runs"] == quiet.loc[names[0], "runs"] - 2


def test_times_on_unlike_parts_of_a_machine_decide_no_claim(few_losses) -> None:
    runs, names = few_losses["runs"], ["reference-free-is-faster-than-cached", "cached-reference-needs-no-memory"]
    half, whole = ({"device": "cpu", "threads": n, "cores": 2, "jobs": 3 - n} for n in (1, 2))
    alike = rows_of({"runs": runs.assign(environment=json.dumps(half))}, *names)
    assert alike.equals(rows_of({"runs": runs}, *names)) and "not comparable" not in set(alike["verdict"])
    mixed = runs["loss"].map(lambda loss: json.dumps(whole if loss == "dpo" else half))
    unlike = rows_of({"runs": runs.assign(environment=mixed)}, *names)
    assert unlike.loc[names[0], ["verdict", "value"]].tolist() == ["not comparable", alike.loc[names[0], "value"]]
    assert unlike.loc[names[1]].equals(alike.loc[names[1]]), "memory is the same"


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({"device": "cpu", "threads": 1, "cores": 2, "jobs": 2}, "on 1 of 2 cores, 2 jobs at a time"),
        ({"device": "cpu", "threads": 2, "cores": 2, "jobs": 1}, "on 2 cores"),
        ({"device": "cpu", "threads": 4, "cores": 2}, "on 4 threads on 2 cores"),
        ({"device": "cpu", "threads": 1}, "on 1 thread"),
        ({"device": "cpu", "threads": 1, "processes": 2, "cores": 2}, "on 2 cores, in 2 processes"),
        ({"device": "NVIDIA H200", "threads": 8, "processes": 2, "jobs": 4}, "on 2 × NVIDIA H200, 4 jobs at a time"),
        ({"device": "cpu", "threads": "many", "jobs": None}, ""),
        ({}, ""),
    ],
)
def test_what_a_run_had_of_a_machine_is_said_in_words(environment, words) -> None:
    assert list(few_runs.timed_on(pd.DataFrame({"environment": [json.dumps(environment)]}))) == [words]
    assert list(few_runs.timed_on(pd.DataFrame({"run": ["a"]}))) == [""]


def test_repetition_counts_four_words_that_stood_before() -> None:
    found = counted(pd.DataFrame({"text": ["a b c d A b c d", "a b c d e", "a b c"]}))
    assert list(found["repeated"])[:2] == pytest.approx([1 / 5, 0.0])  # of the first's five 4-grams, one stood before
    assert math.isnan(found["repeated"][2]) and list(found["characters"]) == [15, 9, 5]


def test_separation_is_the_spread_of_losses_over_their_intervals(world) -> None:
    rows = world["benchmarks"]
    rows = rows[rows["benchmark"].isin(["mt_bench", "arena_hard"])].copy()
    rows["value"] = np.where(rows["benchmark"] == "mt_bench", 1.0, 10.0) * rows["loss"].map(
        dict.fromkeys(rows["loss"], 0)
    )
    for place, loss in enumerate(("simpo", "dpo", "ipo")):
        own = rows["loss"] == loss
        rows.loc[own, "value"] = np.where(rows["benchmark"] == "mt_bench", 1.0, 10.0)[own] * place
    rows["low"], rows["high"] = rows["value"] - 2, rows["value"] + 2
    e = Evidence(world["runs"], benchmarks=rows)
    ratio = few_runs.separation_ratio(("simpo", "dpo", "ipo"), ("mt_bench", "score"), [("arena_hard", "win_rate")])
    assert ratio(e).found.estimate.value == pytest.approx(0.1)
    assert (
        few_runs.separation_ratio(("simpo", "dpo"), ("mt_bench", "score"), [("arena_hard", "win_rate")])(e).found.seeds
        == 0
    )


def by_question(world: Frames, scores: dict[str, np.ndarray], result: tuple[str, str], **more: object) -> Evidence:
    """The evidence of runs that stored their questions; scores: loss → (questions, seeds), the start model's (questions, 1)."""
    runs = world["runs"][world["runs"]["loss"].isin(list(scores))]
    runs = runs[~runs.duplicated(["loss", "seed"])].sort_values(["loss", "seed"])
    rows, numbers = [], []
    for loss, own in runs.groupby("loss"):
        for run, column in zip(own["run"], scores[loss].T, strict=True):
            about = {"run": run, "benchmark": result[0], "metric": result[1], "judge": ""}
            told = pd.DataFrame(
                {"question": [f"q{k}" for k in range(len(column))], "score": column, "weight": 1.0, "group": ""}
            )
            rows.append(told.assign(**{**about, **more}))
            weight = rows[-1]["weight"]
            numbers.append({**about, "value": (column * weight).sum() / weight.sum(), "seed": 0, "loss": loss})
    return Evidence(runs, benchmarks=pd.DataFrame(numbers), questions=pd.concat(rows, ignore_index=True))


def test_benchmarks_are_paired_by_question_as_scipy_pairs_them(few_losses) -> None:
    rng = np.random.default_rng(0)
    hard = rng.normal(0, 20, (200, 1))
    scores = {
        "dpo": 50 + hard + rng.normal(0, 5, (200, 1)) + np.zeros(3),  # every seed answers alike
        "simpo": 52 + hard + rng.normal(0, 5, (200, 1)) + np.zeros(3),
    }
    gap = few_runs.benchmark_gap("simpo", "dpo", "downstream", "mmlu")
    e = by_question(few_losses, scores, ("downstream", "mmlu"))
    found = gap(e)
    paired = scipy_stats.ttest_rel(scores["simpo"][:, 0], scores["dpo"][:, 0]).confidence_interval(0.95)
    estimate = found.found.estimate
    assert (estimate.low, estimate.high) == pytest.approx((paired.low, paired.high))
    assert (estimate.n, found.found.seeds, found.found.runs, found.remark) == (200, 3, 6, "")
    grouped = by_question(few_losses, scores, ("downstream", "mmlu"), group=[f"g{k // 4}" for k in range(200)])
    assert gap(grouped).found.crossed.prompts.freedom == 49, "questions about one passage are one unit"
    without = replace(e, questions=None)
    alone = gap(without)
    assert (
        alone.found.estimate.value == pytest.approx(estimate.value)
        and "no" in alone.remark
        and alone.found.estimate.n == 3
    )
    one_missing = replace(e, questions=e.questions[e.questions["run"] != e.questions["run"].iloc[0]])
    assert gap(one_missing).remark == few_runs.SEEDS_ALONE, "all runs or none"


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 1000))
def test_questions_that_count_more_give_the_benchmarks_own_number(few_losses, seed) -> None:
    rng = np.random.default_rng(seed)
    scores = {loss: rng.choice([0.0, 50.0, 100.0], (12, 3)) for loss in ("simpo", "dpo")}
    e = by_question(few_losses, scores, ("arena_hard", "win_rate"), weight=rng.integers(1, 7, 12).astype(float))
    found = few_runs.benchmark_gap("simpo", "dpo", "arena_hard", "win_rate")(e)
    means = [e.benchmark(e.arm(loss), "arena_hard", "win_rate").mean() for loss in ("simpo", "dpo")]
    assert found.found.estimate.value == pytest.approx(means[0] - means[1], abs=1e-9) and not found.remark


def test_separation_is_wider_where_questions_are_resampled(few_losses) -> None:
    rng, losses, results = (
        np.random.default_rng(1),
        ("simpo", "dpo", "dpo_gamma"),
        (("mt_bench", "score"), ("arena_hard", "win_rate")),
    )
    parts = []
    for result, questions in zip(results, (20, 200), strict=True):
        apart = {loss: 10 * k + rng.normal(0, 20, (questions, 3)) for k, loss in enumerate(losses)}
        parts.append(by_question(few_losses, apart, result))
    rows = pd.concat([part.benchmarks for part in parts])
    rows = (
        rows.assign(low=rows["value"] - 2, high=rows["value"] + 2)
        .drop(columns="seed")
        .merge(parts[0].runs[["run", "seed"]])
    )
    e = Evidence(
        parts[0].runs, benchmarks=rows, questions=pd.concat([part.questions for part in parts], ignore_index=True)
    )
    measure = few_runs.separation_ratio(losses, results[0], results[1:])
    paired, alone = measure(e), measure(replace(e, questions=None))
    assert paired.found.estimate.value == pytest.approx(alone.found.estimate.value)
    assert (paired.remark, alone.remark) == ("", few_runs.SEEDS_ALONE)
    assert paired.found.estimate.n == 20 and 0 < paired.found.estimate.low < paired.found.estimate.value


# ---------------------------------------------------------------- settings side by side
@pytest.fixture(scope="module")
def llama3(worlds) -> tuple[Frames, Frames]:
    """The same losses from an Instruct model, and from a Base model, where all score lower."""
    losses = {"start", "simpo", "dpo", "orpo"}
    instruct, base = (
        worlds.make(s, setting=f"llama3-{name}", only=losses) for s, name in ((1, "instruct"), (-1, "base"))
    )
    return tuple({name: made[name] for name in ("runs", "verdicts", "answers")} for made in (instruct, base))


def across(name: str, *made: Frames) -> tuple[str, Contrast]:
    """The verdict on a claim about several settings, and its contrast."""
    frames = {key: pd.concat([one[key] for one in made], ignore_index=True) for key in made[0]}
    settings = Settings.of(frames["runs"], {key: frames[key] for key in ("verdicts", "answers")})
    claim = registry.claims.get(name)
    measured = claim.function(settings)
    return claims.verdict(claim, measured, settings.comparable(measured)), measured.found


def test_settings_are_compared_where_both_have_runs(llama3) -> None:
    instruct, base = llama3
    e = [Evidence(made["runs"], verdicts=made["verdicts"]) for made in llama3]
    means = [np.mean([x.score(x.arm(loss)).mean() for loss in ("simpo", "dpo", "orpo")]) for x in e]
    verdict, found = across("instruct-above-base", instruct, base)
    assert verdict == "supported" and found.estimate.value == pytest.approx(means[0] - means[1])
    assert (found.seeds, found.runs) == (3, 18)
    assert across("instruct-above-base", instruct)[0] == "not measured"
    assert across("better-ranker-narrows-gap", instruct, base)[0] == "not measured"
    both = {name: pd.concat([instruct[name], base[name]], ignore_index=True) for name in instruct}
    printed = table("claims-across-settings", both).set_index("name")
    assert printed.loc["instruct-above-base", "verdict"] == "supported" and len(printed) == 3
    with pytest.raises(PobenchError, match="cannot be drawn: These are runs of one setting"):
        table("claims-across-settings", instruct)


def test_scores_beside_each_settings_own_start_model_are_no_common_measure(llama3) -> None:
    instruct, base = llama3
    beside = {**base, "verdicts": base["verdicts"].assign(against="start")}
    other = {**base, "verdicts": base["verdicts"].assign(judge="mine")}
    assert across("instruct-above-base", instruct, beside)[0] == "not measured"
    assert across("instruct-above-base", instruct, other)[0] == "not measured"


def test_a_better_ranker_and_an_sft_model_are_settings_too(llama3) -> None:
    instruct, base = llama3

    def renamed(made: Frames, setting: str, add: float = 0.0) -> Frames:
        frames = {name: frame.copy() for name, frame in made.items()}
        for frame in frames.values():
            frame["run"] = f"{setting}/" + frame["run"].str.partition("/")[2]
        frames["runs"]["setting"], frames["runs"]["start"] = setting, f"{setting}/start-00000000"
        frames["verdicts"]["score"] += add
        return frames

    # SimPO is 20 points above DPO on one, 20 below on the other
    verdict, found = across("better-ranker-narrows-gap", instruct, renamed(base, "llama3-instruct-v0.2"))
    assert verdict == "supported" and found.estimate.value == pytest.approx(-40, abs=4) and found.runs == 12
    raw = renamed(base, "mistral-base-raw", -0.1)
    assert across("orpo-needs-sft", renamed(base, "mistral-base"), raw)[1].estimate.value == pytest.approx(10)


# ---------------------------------------------------------------- what the table holds
def test_there_are_forty_claims_and_more_each_with_a_name_and_a_sentence_of_its_own() -> None:
    real = [claim for claim in all_claims() if not claim.identity]
    assert len(real) >= 40 and len({claim.says for claim in real}) == len(real)
    for claim in real:
        assert claim.smallest > 0 and claim.statistic and claim.unit, claim.name
        assert claim.where or claim.paper is None, claim.name  # what the paper prints has a place there
        assert claim.subject in registry.SUBJECTS[:-1], claim.name
        if claim.paper is not None:
            assert claim.above < claim.paper < claim.below, claim.name  # the paper's own number supports it


def test_a_claim_needs_a_range_and_a_smallest_effect() -> None:
    facts = {"says": "", "statistic": "", "unit": ""}
    with pytest.raises(PobenchError, match="excludes nothing"):
        registry.register_claim("mine", **facts, paper=1.0)(lambda e: None)
    with pytest.raises(PobenchError, match="smallest"):
        registry.register_claim("mine", **facts, above=0)(lambda e: None)
    assert "mine" not in registry.claims.names()


def test_the_tables_csv_has_exactly_its_columns(shown) -> None:
    rows = shown.attrs["data"]
    assert list(rows.columns) == COLUMNS and set(rows["comparable"]) == {"yes", ""}
    assert dict(zip(shown["Name"], shown["Verdict"], strict=True)) == dict(
        zip(rows["name"], rows["verdict"], strict=True)
    )
    unmeasured = list(shown["Verdict"] == "not measured")
    assert unmeasured == sorted(unmeasured), "on the page, what is measured stands first"
    assert f"{len(rows) - len(ELSEWHERE)} supported, {len(ELSEWHERE)} not measured" in shown.attrs["notes"]
    assert "(100 %)" in shown.attrs["notes"]


def test_where_no_claim_is_measured_there_is_no_table(worlds) -> None:
    with pytest.raises(plot.NothingToDraw):
        table_of({"runs": worlds.make(1, only={"start"})["runs"]})


def test_identities_are_checks_and_no_claims(few_losses, true_world) -> None:
    identities = [claim for claim in all_claims() if claim.identity]
    assert {claim.name for claim in identities} == {"simpo-agrees"}
    assert not {claim.name for claim in identities} & set(true_world.index)
    checked = draw(registry.figures.get("checks"), few_losses)
    assert list(checked["Identity"]) == [claim.says for claim in identities] and list(checked[""]) == ["holds"]
    held = few_losses["heldout"].copy()
    held["chosen_reward"] = -held["chosen_reward"]
    assert list(draw(registry.figures.get("checks"), {**few_losses, "heldout": held})[""]) == ["does not hold"]


def test_every_claim_is_asked_by_a_study_and_every_study_asks_known_claims() -> None:
    asked = [name for study in list_studies() for name in read_study(study).claims]
    assert set(asked) == {claim.name for claim in all_claims() if not claim.identity}


def test_where_no_pair_changes_its_side_nothing_is_decided(few_losses) -> None:
    held = few_losses["heldout"].copy()
    held["chosen_reward"], held["rejected_reward"] = 1.0, 0.0  # every pair right, whatever γ
    row = rows_of({"runs": few_losses["runs"], "heldout": held}, "accuracy-rises-with-gamma").iloc[0]
    assert row["value"] == 0 and row["low"] < 0 < row["high"] and row["verdict"] == "undecided"


def test_the_papers_numbers_are_the_printed_ones() -> None:
    if not TABLES.is_file():
        pytest.skip("the paper's tables are not here")
    expected = papers_numbers(json.loads(TABLES.read_text()))
    printed = {claim.name: claim.paper for claim in all_claims() if claim.paper is not None}
    assert set(printed) == set(expected)
    for name, value in printed.items():
        near = 0.0051 if name.startswith(("ref", "kl-", "rho")) else 0.051
        assert value == pytest.approx(expected[name], abs=near), name


def rise(at: Sequence[float], numbers: Sequence[float]) -> float:
    """The trend of printed points."""
    return float(np.dot(claims.slope(at), numbers))


def papers_numbers(t: dict) -> dict[str, float]:
    """Each claim's statistic of the paper's printed numbers."""
    digitised, rho, lengths = t["figures_digitised"], t["table6_spearman"], t["table11"]["Mistral-Base"]
    return {
        **quality_in_print(t, digitised),
        **downstream_in_print(t),
        "margin-positive-everywhere": min(digitised["fig2a"]["SimPO"]["y"]),
        "margin-rises-everywhere": min(np.subtract(*(digitised["fig2a"][k]["y"] for k in ("SimPO", "SFT")))),
        "no-ln-margin-negative": digitised["fig2a"]["SimPO_wo_LN"]["y"][0],
        "rho-no-ln-above-dpo": rho["SimPO w/o LN"] - rho["DPO"],
        "rho-dpo-above-simpo": rho["DPO"] - rho["SimPO"],
        "rho-simpo-near-start": rho["SimPO"] - rho["SFT (Fig 6a)"],
        "ln-shortens-answers": 100 * (lengths["SimPO"]["AH_len"] / lengths["SimPO w/o LN"]["AH_len"] - 1),
        **likelihood_in_print(digitised),
        "reference-free-is-faster": digitised["fig5c"]["SimPO"]["min"] / digitised["fig5c"]["DPO"]["min"],
        "reference-free-is-smaller": digitised["fig5c"]["SimPO"]["peak_gb"] / digitised["fig5c"]["DPO"]["peak_gb"],
    }


NINE = ("RRHF", "SLiC-HF", "DPO", "IPO", "CPO", "KTO", "ORPO", "R-DPO", "SimPO")
SETTINGS = ("Mistral-Base", "Mistral-Instruct", "Llama-3-Base", "Llama-3-Instruct")


def quality_in_print(t: dict, digitised: dict) -> dict[str, float]:
    whole = {setting: {loss: row for loss, row in rows.items()} for setting, rows in t["table10"]["data"].items()}
    base, instruct, nine = (
        whole["Mistral-Base"],
        whole["Mistral-Instruct"],
        [whole["Mistral-Base"][loss] for loss in NINE],
    )
    lc = {loss: row[0] for loss, row in base.items()}
    five, fifteen = t["table5"]["data"]["Mistral-Base"], t["table15"]["data"]
    gamma, beta = digitised["fig3a"], digitised["fig5b"]
    v02, sixteen, seventeen = t["table12"]["data"], t["table16"]["data"], t["table17"]["data"]
    rates = [4e-7, 5e-7, 1e-6]
    by_rate = [sixteen[f"SimPO lr={lr}"][0] for lr in ("4e-7", "5e-7", "1e-6 (released)")]
    gemma = [seventeen[f"SimPO lr={lr}"][0] for lr in ("6e-7", "8e-7 (released)", "1e-6")]
    mean_lc = {setting: np.mean([whole[setting][loss][0] for loss in NINE]) for setting in SETTINGS}
    best_to_worst = max(row[0] for row in nine) - min(row[0] for row in nine)
    return {
        "every-method-helps": min(lc[loss] for loss in NINE) - lc["SFT"],
        "simpo-above-dpo": lc["SimPO"] - lc["DPO"],
        "simpo-above-best": lc["SimPO"] - max(lc[loss] for loss in NINE if loss != "SimPO"),
        "ln-helps-simpo": five["SimPO"][0] - five["SimPO w/o LN"][0],
        "gamma-helps": five["SimPO"][0] - five["SimPO gamma=0"][0],
        "ln-matters-more-than-gamma": five["SimPO gamma=0"][0] - five["SimPO w/o LN"][0],
        "score-peaks-in-gamma": max(gamma["AE2_LC"][1:3]) - max(gamma["AE2_LC"][0], gamma["AE2_LC"][-1]),
        "score-falls-with-beta-dpo": beta["DPO b=0.1"][0] - beta["DPO b=0.01"][0],
        "score-falls-with-beta-simpo": beta["SimPO b=10"][0] - beta["SimPO b=2"][0],
        "ln-helps-dpo": fifteen["Mistral-Base"]["DPO w/ LN"][0] - fifteen["Mistral-Base"]["DPO"][0],
        "ln-no-help-dpo-unbiased": fifteen["Mistral-Instruct"]["DPO w/ LN"][0] - fifteen["Mistral-Instruct"]["DPO"][0],
        "gamma-no-help-dpo": fifteen["Mistral-Base"]["DPO w/ gamma"][0] - fifteen["Mistral-Base"]["DPO"][0],
        "sft-term-hurts": t["table14"]["w/ SFT"][0] - t["table14"]["SimPO v0.2"][0],
        "score-rises-with-rate": rise(rates, by_rate),
        "gemma-hardly-moves-with-rate": rise([6e-7, 8e-7, 1e-6], gemma),
        "lc-above-raw-simpo": base["SimPO"][0] - base["SimPO"][1],
        "length-is-not-quality": 100 * rise([row[3] for row in nine], [row[0] for row in nine]) / best_to_worst,
        "cpo-half-again-as-long": 100 * (instruct["CPO"][7] / instruct["SimPO"][7] - 1),
        "simpo-little-longer-tokens": np.mean([100 * (w["SimPO"][7] / w["DPO"][7] - 1) for w in whole.values()]),
        "simpo-little-longer-characters": max(100 * (w["SimPO"][3] / w["DPO"][3] - 1) for w in whole.values()),
        "instruct-above-base": mean_lc["Llama-3-Instruct"] - mean_lc["Llama-3-Base"],
        "better-ranker-narrows-gap": (v02["SimPO v0.2"][1] - v02["DPO"][1])
        - (whole["Llama-3-Instruct"]["SimPO"][1] - whole["Llama-3-Instruct"]["DPO"][1]),
    }


def likelihood_in_print(digitised: dict) -> dict[str, float]:
    gamma, cells, kl = digitised["fig3a"], digitised["fig4b_dpo_contingency_k"], digitised["fig5a"]
    dpo, simpo = kl["DPO_b0_1"][-1] - kl["DPO_b0_01"][-1], kl["SimPO_b10"][-1] - kl["SimPO_b2"][-1]
    right = digitised["fig4c"]["Mistral-Base"]
    return {
        "accuracy-rises-with-gamma": rise(gamma["gamma"], gamma["reward_accuracy"]),
        "winners-fall-with-gamma": rise(digitised["fig3c"]["gamma"], digitised["fig3c"]["mean"]),
        "dpo-disagrees": 100 * (cells["rw>rl,pw<pl"] + cells["rw<rl,pw>pl"]) / sum(cells.values()),
        "simpo-agrees": digitised["fig6b_simpo_contingency_k"]["off_diagonal"],
        "accuracy-simpo-above-dpo": 100 * (right["SimPO"] - right["DPO"]),
        "kl-falls-with-beta-dpo": dpo,
        "kl-falls-with-beta-simpo": simpo,
        "kl-falls-more-with-beta-dpo": dpo / math.log10(0.1 / 0.01) - simpo / math.log10(10 / 2),
        "kl-simpo-low": kl["SimPO_b2"][-1],
    }


def downstream_in_print(t: dict) -> dict[str, float]:
    columns, data, thirteen = t["table9"]["columns"], t["table9"]["data"], t["table13_v0.2"]["data"]
    likelihood_term = ("RRHF", "SLiC-HF", "CPO", "ORPO")
    others = tuple(loss for loss in NINE if loss not in likelihood_term)

    def mean(losses: Sequence[str], task: str) -> float:
        return float(np.mean([data[s][loss][columns.index(task)] for s in SETTINGS for loss in losses]))

    rates, rows = [4e-7, 5e-7, 1e-6], [f"SimPO lr={lr}" for lr in ("4e-7", "5e-7", "1e-6 (released)")]
    by_rate = {k: rise(rates, [t["table16"]["data"][row][k] for row in rows]) for k in (1, 2)}
    return {
        "mmlu-kept": mean(NINE, "MMLU") - mean(("SFT",), "MMLU"),
        "arc-rises": mean(NINE, "ARC") - mean(("SFT",), "ARC"),
        "hellaswag-rises": mean(NINE, "HellaSwag") - mean(("SFT",), "HellaSwag"),
        "truthfulqa-rises": mean(NINE, "TruthfulQA") - mean(("SFT",), "TruthfulQA"),
        "gsm8k-falls": mean(others, "GSM8K") - mean(("SFT",), "GSM8K"),
        "sft-terms-keep-gsm8k": mean(likelihood_term, "GSM8K") - mean(others, "GSM8K"),
        "sft-term-keeps-gsm8k-simpo": thirteen["SimPO w/ SFT"][5] - thirteen["SimPO"][5],
        "lower-rate-keeps-gsm8k": by_rate[1],
        "lower-rate-keeps-mmlu": by_rate[2],
    }


# ---------------------------------------------------------------- arms, lines and figures of the same world
def test_the_arm_with_the_most_seeds_stands_for_a_loss_and_biased_labels_never_do(worlds, world) -> None:
    runs = world["runs"]
    simpo = home_of(runs, "simpo")
    assert len(simpo.runs) == 3 and set(of_arm(runs, simpo)["length_bias"]) == {0.0}
    one_each = runs[runs["seed"] < 2]
    centre = of_arm(one_each, home_of(one_each, "simpo")).iloc[0]
    assert json.loads(centre["settings"]) == worlds.SIMPO and centre["lr"] == 3e-4 and centre["length_bias"] == 0


def test_the_settings_own_values_stand_for_a_loss_though_others_have_more_seeds(world) -> None:
    runs = world["runs"].copy()
    gammas = runs["settings"].map(lambda text: json.loads(text).get("gamma"))
    runs["sources"] = ["{}" if g == 3.0 else json.dumps({"gamma": "study margin"}) for g in gammas]
    home = of_arm(runs, home_of(runs, "simpo")).iloc[0]
    assert json.loads(home["settings"])["gamma"] == 3.0


def test_lines_are_arms_that_differ_in_one_setting_alone(world) -> None:
    lines = {(line.loss, line.setting): [v for v, _ in line.points] for line in lines_of(world["runs"])}
    assert lines[("simpo", "gamma")] == [0.0, 1.0, 3.0]
    assert lines[("simpo", "beta")] == [2.0, 10.0] and lines[("simpo", "lr")] == [3e-4, 1e-3]
    assert lines[("dpo", "length_bias")] == [0.0, 1.0] and ("ipo", "beta") not in lines


def test_the_figures_of_the_studies_are_drawn(worlds) -> None:
    made = worlds.make(1, only={"start", "simpo", "dpo", "dpo_ln"}, seeds=(1,))
    made["scores"] = metrics.complete(made)
    drawn = {name: draw(registry.figures.get(name), made) for name in ("margin-density", "length-bias", "sweep")}
    assert set(drawn["margin-density"].data["gamma"]) == {0.0, 1.0, 3.0}
    area = (
        drawn["margin-density"]
        .data.groupby(["quantity", "gamma"])[["at", "density"]]
        .apply(lambda f: (f["density"] * f["at"].diff().fillna(0)).sum())
    )
    assert area.to_numpy() == pytest.approx(1.0, abs=0.02)
    biased = drawn["length-bias"].data
    assert set(biased["loss"]) == {"simpo", "dpo", "dpo_ln"} and set(biased["at"]) == {0.0, 1.0}
    tokens = biased[(biased["loss"] == "dpo") & (biased["quantity"] == "length_tokens")].set_index("at")["value"]
    assert tokens[1.0] - tokens[0.0] == pytest.approx(10, abs=2)
    assert {("simpo", "gamma"), ("simpo", "lr"), ("dpo", "beta")} <= set(
        drawn["sweep"].data[["loss", "setting"]].itertuples(index=False, name=None)
    )


def test_seeds_say_how_large_a_difference_must_be(few_losses) -> None:
    runs = few_losses["runs"]
    homes = [run for loss in ("simpo", "dpo") for run in home_of(runs, loss).runs]
    table = draw(registry.figures.get("seed-spread"), {**few_losses, "runs": runs[runs["run"].isin(homes)]})
    table = table.set_index("Loss")
    assert len(table) == 2 and set(table["Seeds"]) == {3}
    assert (table["Needed"] > 0).all()
    assert set(table["Rank kept"]) == {100.0}  # twenty points apart


def test_a_shorter_winner_has_the_larger_sum_and_still_the_smaller_reward_of_simpo() -> None:
    rows = {"chosen_logp": -20.0, "chosen_length": 10, "rejected_logp": -45.0, "rejected_length": 30}
    (value,) = pair_values.simpo_margin(pd.DataFrame([rows]))
    assert value == pytest.approx(2.0 * (-2.0 + 1.5))  # of the sums: +25, whatever a model has learned about length
