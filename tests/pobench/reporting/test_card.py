"""The card: who leads, what is worse, cost and risks, how sure, and the next command, each from the frames."""

from __future__ import annotations

import json
import re

import numpy as np
import pandas as pd
import pytest

from pobench.reporting.card import Card, make_card
from pobench.results import metrics
from pobench.results.arms import arms_of, score_of
from pobench.results.comparable import Comparable, ordered, split


def comparable_of(made: dict, **changed: pd.DataFrame) -> Comparable:
    (comparable,) = split(ordered({**made, **changed}))
    return comparable


def said(card: Card) -> dict[str, str]:
    return {line.head: line.text for line in card.lines}


def world(synthetic, means: dict[str, float], seeds: tuple[int, ...] = (1, 2, 3), values: str = "tuned") -> dict:
    """Losses with these mean scores above the start model's, with little noise, tuned with eight trials each."""
    losses = {name: (name.upper(), {}, 0.0, *[0.0] * 3, 1.0) for name in means}
    made = synthetic.make_frames(losses, seeds=seeds, prompts=60, samples=1, pairs=6, steps=2)
    loss_of, rng = dict(zip(made["runs"]["run"], made["runs"]["loss"], strict=True)), np.random.default_rng(3)
    score = made["verdicts"]["run"].map(lambda run: 0.4 + means.get(loss_of[run], 0.0))
    made["verdicts"]["score"] = score + rng.normal(0, 0.05, len(score))
    trained = made["runs"]["loss"] != "start"
    made["runs"] = made["runs"].assign(
        values=np.where(trained, values, ""), trials=8.0 if values == "tuned" else np.nan
    )
    return made


def test_the_losses_that_none_beats_are_the_answer_and_the_others_clearly_worse(synthetic) -> None:
    card = make_card(comparable_of(world(synthetic, {"a": 0.3, "b": 0.3, "c": 0.1})))
    assert re.match(
        "2 of 3 losses cannot be told apart at the top: [AB] and [AB]. Both are better than the start model.",
        card.answer,
    )
    (number,) = re.findall(
        r"^C (−[\d.]+) points \(95 % interval −[\d.]+ to −[\d.]+\) beside [AB], n = 60 prompts",
        said(card)["Clearly worse"],
    )
    assert float(number.replace("−", "-")) == pytest.approx(-20, abs=2)
    assert "2 of 3 pairs differ by more than chance" in said(card)["How sure"]


def test_a_loss_that_beats_all_is_named_alone(synthetic) -> None:
    card = make_card(comparable_of(world(synthetic, {"a": 0.3, "b": 0.1, "c": 0.2})))
    assert card.answer == "A is better than each of the 2 other losses. It is better than the start model."
    assert "Next" not in said(card), "every pair is decided"


def test_with_one_seed_the_card_has_each_gain_and_the_command_that_adds_two(frames_of_one_seed) -> None:
    comparable = comparable_of(frames_of_one_seed)
    card = make_card(comparable)
    (simpo,) = [a for a in arms_of(frames_of_one_seed["runs"]) if a.loss == "simpo"]
    gain = score_of(comparable.frames["scores"], simpo, "pass_rate_gain")
    assert gain.low > 0  # in the synthetic world it is better by 22 points
    assert (
        card.answer == "No verdict between these losses yet: with one seed a loss, the luck of training is not known."
    )
    assert "Better than the start model" not in said(card)
    open_ = said(card)["No verdict on the start model"]
    assert f"SimPO +{100 * gain.value:.1f} points" in open_ and "One run of each" in open_
    assert "DPO +" in open_ and "KTO +" in open_ and "IPO" not in open_
    assert "cover other prompts, not the luck of a training run" in said(card)["How sure"]
    assert "SimPO w/o LN: winners lost" in said(card)["Risks"] and "answers 2.3 times as long (" in said(card)["Risks"]
    assert "`pobench tune --losses dpo,ipo,kto,simpo,simpo_no_ln --setting tiny`" in said(card)["Next"]
    assert "2 to 3 more seeds for each loss" in said(card)["Then"]
    assert said(card)["Then"].endswith("--setting tiny --seeds 1,2,3`")


@pytest.fixture(scope="module")
def frames_of_one_seed(synthetic) -> dict:
    made = synthetic.make_frames(prompts=64, samples=3, pairs=50, steps=12, failed=("ipo",))
    return {**made, "scores": metrics.complete(made)}


def test_the_minutes_of_a_command_are_those_of_the_stored_runs(synthetic) -> None:
    made = world(synthetic, {"a": 0.3, "b": 0.1}, seeds=(1,))
    seconds = {"a": 100.0, "b": 300.0}
    runs = made["runs"].assign(seconds=made["runs"]["loss"].map(seconds), waited=[np.nan, 10.0, 20.0])
    card = make_card(comparable_of(made, runs=runs))
    assert "2 more seeds for A and B" in said(card)["Next"]
    assert "12 min of training" in said(card)["Next"]  # 2 (100 - 10) + 2 (300 - 20) s
    assert "A 1.5 min (n = 1 run) to B 4.7 min (n = 1 run)" in said(card)["Cost"]


def test_times_on_unlike_parts_of_a_machine_are_not_ranked(synthetic) -> None:
    made = world(synthetic, {"a": 0.3, "b": 0.1, "c": 0.2}, seeds=(1,))
    half = {"device": "cpu", "threads": 1, "cores": 2, "jobs": 2}
    of = {"a": half, "b": half, "c": {"device": "cpu", "threads": 2, "cores": 2, "jobs": 1}}
    runs = made["runs"].assign(
        seconds=made["runs"]["loss"].map({"a": 100.0, "b": 300.0, "c": 60.0}),
        environment=made["runs"]["loss"].map(lambda loss: json.dumps(of.get(loss, half))),
    )
    alike = said(make_card(comparable_of(made, runs=runs[runs["loss"] != "c"])))["Cost"]
    assert alike.startswith("Training one run on 1 of 2 cores, 2 jobs at a time: A 1.7 min (n = 1 run) to B 5.0 min")
    apart = said(make_card(comparable_of(made, runs=runs)))["Cost"]
    assert (
        "on 1 of 2 cores, 2 jobs at a time, A 1.7 min (n = 1 run) to B 5.0 min (n = 1 run); on 2 cores, C 1.0 min"
        in apart
    )
    assert "Times on unlike parts of a machine are not compared" in apart


def test_losses_that_were_not_tuned_alike_have_no_verdict_and_are_tuned_first(synthetic) -> None:
    made = world(synthetic, {"a": 0.3, "b": 0.1})
    of_b = made["runs"]["loss"] == "b"
    runs = made["runs"].assign(
        values=made["runs"]["values"].mask(of_b, "default"), trials=made["runs"]["trials"].mask(of_b)
    )
    card = make_card(comparable_of(made, runs=runs))
    assert card.answer == "No verdict between these losses: they were not tuned alike."
    assert "The pair: not tuned alike" in said(card)["How sure"] and "Better than the start model" in said(card)
    assert "B has values that no such search chose" in said(card)["Next"]
    assert said(card)["Next"].endswith("`pobench tune --losses b --setting tiny --trials 8`")


def test_three_seeds_make_a_verdict_and_two_do_not(synthetic) -> None:
    cards = {n: make_card(comparable_of(world(synthetic, {"a": 0.3, "b": 0.1}, tuple(range(n))))) for n in (2, 3)}
    assert "A +" in said(cards[3])["Better than the start model"]
    assert "Better than the start model" not in said(cards[2])
    assert "Fewer than 3 seeds" in said(cards[2])["No verdict on the start model"]
    assert cards[2].answer == "No verdict between these losses yet: it needs 3 seeds."


def test_one_loss_is_compared_with_the_start_model_alone(synthetic) -> None:
    answers = {gain: make_card(comparable_of(world(synthetic, {"a": gain}))).answer for gain in (0.3, -0.3, 0.0)}
    assert answers == {
        0.3: "A is better than the start model.",
        -0.3: "A is worse than the start model.",
        0.0: "A cannot be told apart from the start model.",
    }


def test_without_an_effect_none_is_claimed(synthetic) -> None:
    card = make_card(comparable_of(world(synthetic, {"a": 0.0, "b": 0.0})))
    assert re.match("[AB] and [AB] cannot be told apart. None of them is shown to be better", card.answer)
    assert "Better than the start model" not in said(card)
    assert "four times in five" in said(card)["Not told apart from the start model"]


def test_without_verdicts_nothing_is_claimed_about_quality(frames_of_one_seed) -> None:
    bare = {k: f for k, f in frames_of_one_seed.items() if k not in ("verdicts", "scores", "answers")}
    card = make_card(comparable_of(bare))
    assert card.answer == "Nothing is known of the quality of these losses."
    assert "not judged" in said(card)["No judge"] and "SimPO" in said(card)["No judge"]


def test_many_losses_still_make_a_card_of_a_minute(synthetic) -> None:
    card = make_card(comparable_of(world(synthetic, {f"loss_{i:02d}": 0.3 - 0.05 * (i > 6) for i in range(12)})))
    text = " ".join([card.answer, *(f"{line.head} {line.text}" for line in card.lines)])
    assert len(text.split()) < 300  # a minute's reading
    counted = (
        r"12 of 12 losses, from \+[\d.]+ to \+[\d.]+ points\. The 3 furthest: LOSS_\d+ \+[\d.]+ points \(95 % interval"
    )
    assert re.match(counted, said(card)["Better than the start model"])
    assert "n = 60 prompts; the start model’s is " in said(card)["Better than the start model"]


def test_a_setting_and_a_sum_of_losses_are_quoted_for_the_shell(synthetic) -> None:
    made = world(synthetic, {"a": 0.3, "b": 0.1}, seeds=(1,))
    runs = made["runs"].assign(loss=made["runs"]["loss"].replace("b", "dpo + 0.2*sft"), setting="my; setting")
    assert (
        "--losses 'a,dpo + 0.2*sft' --setting 'my; setting'" in said(make_card(comparable_of(made, runs=runs)))["Next"]
    )
