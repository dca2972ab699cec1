"""Losses against each other: planted strengths come out in order, by a judge that compares and by an exact one."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats as scipy_stats
from scipy.special import expit

from pobench import registry
from pobench.columns import FRAMES
from pobench.reporting.draw import draw
from pobench.reporting.plot import NothingToDraw
from pobench.results.arms import arms_of
from pobench.results.contrast import all_pairs, met
from pobench.results.derived import Frames
from pobench.results.head_to_head import battles_of, compares
from pobench.results.variance import noise_of

PROMPTS = 150
STRENGTHS = {"start": 0.0, "dpo": 0.3, "ipo": 0.1, "simpo": 0.9}
TOKENS = {"start": 100, "dpo": 100, "ipo": 300, "simpo": 110}


def judged(likes_length: float = 0.0, *, opponents: bool = True, seeds: tuple[int, ...] = (1, 2)) -> Frames:
    """Frames of a judge that compares: every loss beside the start model, and each pair of losses once."""
    rng = np.random.default_rng(5)
    prompts = [f"p{i:03d}" for i in range(PROMPTS)]
    runs, answers, verdicts, comparisons = [], [], [], []

    def answer(run: str, loss: str) -> np.ndarray:
        runs.append({"run": run, "setting": "s", "kind": "start" if loss == "start" else "loss", "loss": loss,
                     "title": loss.upper(), "start": "s/start-0", "status": "finished", "protocol": 2,
                     "seed": int(run[-1]) if loss != "start" else -1})  # fmt: skip
        tokens = np.maximum(1, rng.normal(TOKENS[loss], 20, PROMPTS)).astype(int)
        texts = {"kind": "", "topic": "", "instruction": "", "text": "x", "finished": True}
        answers.append(pd.DataFrame({"run": run, "prompt": prompts, "sample": 0, "tokens": tokens, **texts}))
        return tokens

    def scores(a: str, b: str, ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
        chance = expit(STRENGTHS[a] - STRENGTHS[b] + likes_length * (ours - theirs) / (ours + theirs))
        return (rng.random(PROMPTS) < chance).astype(float)

    start = answer("s/start-0", "start")
    verdicts.append(pd.DataFrame({"run": "s/start-0", "prompt": prompts, "score": 0.5, "against": "start"}))
    for seed in seeds:
        lengths = {loss: answer(f"s/{loss}-{seed}", loss) for loss in ("dpo", "ipo", "simpo")}
        for loss, tokens in lengths.items():
            score = scores(loss, "start", tokens, start)
            verdicts.append(
                pd.DataFrame({"run": f"s/{loss}-{seed}", "prompt": prompts, "score": score, "against": "start"})
            )
        for a, b in combinations(lengths, 2):
            row = {"run": f"s/{a}-{seed}", "opponent": f"s/{b}-{seed}", "prompt": prompts, "flipped": 0.0}
            both = {"tokens": lengths[a], "opponent_tokens": lengths[b], "score": scores(a, b, lengths[a], lengths[b])}
            comparisons.append(pd.DataFrame({**row, **both}))
    made = {"runs": pd.DataFrame(runs), "answers": pd.concat(answers)}
    made["verdicts"] = pd.concat(verdicts).assign(sample=0, judge="big")
    if opponents:
        made["comparisons"] = pd.concat(comparisons).assign(sample=0, judge="big")
    return Frames({name: FRAMES[name].of(frame.reset_index(drop=True)) for name, frame in made.items()})


def drawn(frames: Any, name: str = "head-to-head") -> Any:
    return draw(registry.figures.get(name), frames)


def test_planted_strengths_come_out_with_intervals_over_prompts_and_seeds() -> None:
    data = drawn(judged()).data.query("quantity == 'all battles'").set_index("loss")
    planted = pd.Series(STRENGTHS)
    expected = {a: np.mean([expit(planted[a] - planted[b]) for b in planted.index if b != a]) for a in planted.index}
    assert data["value"].to_dict() == pytest.approx(expected, abs=0.05)
    assert ((data["low"] < data["value"]) & (data["value"] < data["high"])).all()
    assert set(data["n"]) == {PROMPTS} and data["value"].mean() == pytest.approx(0.5, abs=1e-6)
    assert data["elo_value"].sum() == pytest.approx(0, abs=1e-6)
    assert data["runs"].to_dict() == {"start": 1, "dpo": 2, "ipo": 2, "simpo": 2}


def test_who_wins_by_length_falls_at_equal_length() -> None:
    data = drawn(judged(likes_length=3.0)).data.set_index(["quantity", "loss"])
    plain, equal = data.loc["all battles"], data.loc["at equal length"]
    assert plain["value"].idxmax() == "ipo" and equal["value"].idxmax() == "simpo"
    assert (equal["length_weight"] > 0).all() and (plain["length_weight"] == 0).all()


def test_the_pairs_stand_with_their_wins_the_better_first() -> None:
    frames = judged()
    table = drawn(frames, "head-to-head-pairs")
    assert tuple(table.iloc[0, :2]) == ("SIMPO", "DPO") and len(table) == 3
    met = frames["comparisons"]
    own = met[met["run"].str.contains("dpo") & met["opponent"].str.contains("simpo")]
    assert table["Wins"][0].value == pytest.approx(100 * (1 - own["score"].mean())), "of SimPO, who stands second there"
    assert table["Wins"][0].n == PROMPTS and table["By all battles"][0].value == pytest.approx(
        table["Wins"][0].value, abs=6
    )
    assert table["At equal length"][0].n == PROMPTS and set(table["Flipped"]) == {0.0}


def test_who_beats_whom_asks_the_judge_that_saw_both_and_scipy_agrees() -> None:
    frames = judged(seeds=(1, 2, 3))
    # a judge who prefers DPO wherever it stands beside SimPO, though SimPO wins more often over the start model
    met, seen = frames["comparisons"], np.random.default_rng(0)
    own = met["run"].str.contains("dpo") & met["opponent"].str.contains("simpo")
    alike = np.tile((seen.random(PROMPTS) < 0.7).astype(float), 3)  # every seed alike: seeds add nothing
    met = met.assign(score=met["score"].mask(own))
    met.loc[own, "score"] = alike
    frames = Frames({**frames.stored, "comparisons": met})
    data = drawn(frames, "who-beats-whom").data.set_index(["row", "column"])
    pair = data.loc["SIMPO", "DPO"]
    wins = 100 * alike[:PROMPTS] - 50
    interval = scipy_stats.ttest_1samp(-wins, 0.0).confidence_interval(0.95)
    assert (pair["value"], pair["low"], pair["high"]) == pytest.approx((-wins.mean(), interval.low, interval.high))
    assert pair["direct"] and (pair["seeds"], pair["runs"], pair["n"]) == (3, 6, PROMPTS)
    assert not data.xs("Start model", level="column")["direct"].any()
    without = Frames({name: frame for name, frame in frames.stored.items() if name != "comparisons"})
    through_start = drawn(without, "who-beats-whom").data.set_index(["row", "column"])
    assert through_start.loc[("SIMPO", "DPO"), "value"] > 0 and not through_start["direct"].any()
    pairs = all_pairs(frames["runs"], frames["verdicts"], frames["answers"], arms_of(frames["runs"]), met)
    (one,) = [p for p in pairs if {p.ours.loss, p.theirs.loss} == {"simpo", "dpo"}]
    assert one.ours.loss == "simpo" and [arm.loss for arm in one.in_order] == ["dpo", "simpo"]


def test_a_verdict_reads_the_same_from_both_sides() -> None:
    frames = judged(seeds=(1,))
    arms = {arm.loss: arm for arm in arms_of(frames["runs"])}
    both = frames["comparisons"].assign(forward=0.9, backward=0.4)
    forth, back = (met(both, frames["verdicts"], arms[a], arms[b]) for a, b in (("dpo", "simpo"), ("simpo", "dpo")))
    assert (forth["score"].to_numpy() == 1 - back["score"].to_numpy()).all() and len(forth) == PROMPTS
    assert back[["forward", "backward"]].drop_duplicates().to_numpy() == pytest.approx(np.array([[0.6, 0.1]]))
    assert set(back["run"]) == {"s/simpo-1"}
    assert met(None, frames["verdicts"], arms["dpo"], arms["simpo"]).empty
    noise = noise_of(frames["runs"], frames["verdicts"], None, [arms["dpo"], arms["simpo"]], both)
    assert not noise.of_pairs, "one seed says nothing of seeds"


def test_without_opponents_there_is_nothing_to_draw() -> None:
    with pytest.raises(NothingToDraw, match="--opponents all"):
        drawn(judged(opponents=False))


def test_an_exact_judges_scores_are_battles_ties_half_and_length_counts_for_nothing(frames) -> None:
    assert not compares(frames["verdicts"])
    arms = arms_of(frames["runs"])
    battles = battles_of(frames["runs"], frames["verdicts"], frames["answers"], None, arms)
    assert len(battles.score) == len(list(combinations(arms, 2))) * frames["verdicts"]["prompt"].nunique()
    scores = frames["verdicts"].set_index(["run", "prompt", "sample"])["score"]
    first, second = (arms[k].runs[0] for k in (battles.first[0], battles.second[0]))
    prompt = battles.prompt[0]
    ours, theirs = (scores.loc[run, prompt].to_numpy() for run in (first, second))
    assert battles.score[0] == np.mean(0.5 + 0.5 * np.sign(ours - theirs))
    data = drawn(frames).data
    assert set(data["quantity"]) == {"all battles"}
    means = frames["verdicts"].merge(frames["runs"][["run", "loss"]]).groupby("loss")["score"].mean()
    assert data.set_index("loss")["value"].rank().to_dict() == means.rank().to_dict()


def test_a_pair_judged_twice_as_often_by_another_judge_is_not_mixed_in() -> None:
    frames = judged()
    other = frames["comparisons"].assign(judge="other", score=0.0)
    mixed = Frames({**frames.stored, "comparisons": pd.concat([frames["comparisons"], other], ignore_index=True)})
    pd.testing.assert_frame_equal(drawn(frames).data, drawn(mixed).data)


def test_wins_against_gpt_4_stand_beside_dpos_question_by_question() -> None:
    frames = judged(seeds=(1,))
    asked = {"dpo": [1.0, 0.9, 0.2, 0.0, 0.5, np.nan], "simpo": [1.0, 0.1, 0.8, 0.4, 0.9, 1.0]}
    rows = [
        {
            **{"run": f"s/{loss}-1", "benchmark": "alpaca_eval", "metric": "win_rate", "judge": "gpt-4"},
            **{"question": str(place), "score": 100 * score, "weight": 1.0, "group": ""},
        }
        for loss, scores in asked.items()
        for place, score in enumerate(scores)
    ]
    other_judge = [{**row, "judge": "another", "score": 0.0} for row in rows[:2] + rows[-2:]]
    questions = FRAMES["questions"].of([*rows, *other_judge])
    data = drawn(Frames({**frames.stored, "questions": questions}), "beside-dpo-benchmark").data
    cells = data.set_index(["loss", "rival", "this"])["value"]
    assert set(data["benchmark"]) == {"AlpacaEval's baseline"} and set(data["loss"]) == {"simpo"}
    fifth = {("wins", "wins"), ("wins", "loses"), ("loses", "wins"), ("loses", "loses"), ("ties", "wins")}
    for (_, down, across), share in cells.items():
        assert share == pytest.approx(0.2 if (down, across) in fifth else 0.0), "of the five that both were judged on"
    alone = Frames({**frames.stored, "questions": questions[questions["run"] == "s/simpo-1"]})
    with pytest.raises(NothingToDraw, match="DPO and another loss"):
        drawn(alone, "beside-dpo-benchmark")
