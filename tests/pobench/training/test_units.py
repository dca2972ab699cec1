"""Losses of lists and of single answers on true lists and answers: what they are given, what a step logs, how it is cut."""

from __future__ import annotations

import copy
import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from pobench.data.order import mismatch
from pobench.errors import PobenchError
from pobench.model.layouts import get_layout
from pobench.model.logps import ResponseLogps
from pobench.registry import get_loss, load_plugin, register_loss
from pobench.results.cross_loss import evaluate
from pobench.training.objectives import PreferenceObjective, mismatched_groups
from pobench.training.reference import EveryStep, ReferenceSums, sequence_keys
from pobench.types import (
    AnswerBatch,
    AnswerOutput,
    Group,
    Inputs,
    ListOutput,
    Pair,
    Responses,
    SequenceLogps,
    TokenAnswer,
    TokenList,
    TokenLogps,
    TokenPair,
)
from pobench.workflows.check_units import _of_the_batch
from pobench.workflows.invariance import small_items

LISTS = [
    TokenList("l0", (1, 2), ((3,), (4, 5), (6, 7, 8, 9)), (2, 1, 3), (3.0, 5.0, 1.0)),
    TokenList("l1", (3,), ((4, 4), (5,)), (1, 1), (2.0, 2.0)),
    TokenList("l2", (4,), ((1,), (2,), (3,), (4,)), (2, 1, 4, 2), (2.0, 7.0, 0.0, 2.0)),
]
ANSWERS = [
    TokenAnswer("a0", (1, 2), (3,), True, 4.0),
    TokenAnswer("a1", (3,), (4, 5), True, 3.0),
    TokenAnswer("a2", (3,), (5,), False, 1.0),
    TokenAnswer("a3", (4,), (6, 7), True, 5.0),
]


def known(items, totals, mismatched=()) -> ReferenceSums:
    """Reference sums as given, response by response, and -1 of each mismatched answer."""
    keys = [key for item in items for key in sequence_keys(Group.of(item))]
    borrowed = [
        key for group in (mismatched_groups(items, mismatched) if mismatched else []) for key in sequence_keys(group)
    ]
    return ReferenceSums({**dict.fromkeys(borrowed, -1.0), **dict(zip(keys, totals, strict=True))}, "made up")


def measured(
    objective: PreferenceObjective, rows: list[int], values: list[float]
) -> tuple[list[float], dict[str, float]]:
    """(slopes, what a step logs) of a batch that is one micro-batch."""
    got = objective.measure(rows, torch.tensor(values))
    return got.slope.tolist(), objective.means(got.logged.tolist(), rows)


# ---------------------------------------------------------------- lists
def test_a_list_of_three_and_a_tie_of_two_give_what_arithmetic_gives() -> None:
    objective = PreferenceObjective(LISTS, get_loss("plackett_luce"), {"beta": 0.5}, known(LISTS, [-4.0] * 9))
    slopes, logged = measured(objective, [1, 0], [-1.0, -7.0, -2.0, -6.0, -8.0])
    # Rewards of l0: 0.5·(-2 + 4) = 1, 0.5·(-6 + 4) = -1, 0.5·(-8 + 4) = -2; its order is second, first, third:
    # log(1 + e^2 + e^-1) + log(1 + e^-3) = 2.16985 + 0.04859. l1 ties, so its loss is 0. The mean of both is 1.10922.
    first = math.log(1 + math.exp(2) + math.exp(-1)) + math.log(1 + math.exp(-3))
    assert logged["loss"] == pytest.approx(first / 2) == pytest.approx(1.10922, abs=1e-5)
    assert slopes[:2] == [0, 0] and sum(slopes) == pytest.approx(0, abs=1e-6)
    assert logged["rewards/chosen"] == pytest.approx((-1 + 0) / 2)  # of l1 the mean of 1.5 and -1.5
    assert logged["rewards/rejected"] == pytest.approx((-2 + 0) / 2)
    assert (logged["rewards/margins"], logged["rewards/accuracies"]) == (pytest.approx(0.5), pytest.approx(0.75))
    assert logged["logps/chosen"] == pytest.approx((-6 - 4) / 2) and logged["logps/rejected"] == pytest.approx(-6)
    assert logged["logps/chosen_per_token"] == pytest.approx((-3 + (-0.5 - 7) / 2) / 2)
    assert logged["saturated"] == 0.5  # l1 pulls at nothing


def test_a_loss_of_lists_is_given_pads_on_the_right_and_no_more_than_its_lists_need(forget) -> None:
    seen = []

    @register_loss("t_seen", source="here")
    def t_seen(responses: Responses, reference: Responses, tokens: TokenLogps, scores: torch.Tensor) -> ListOutput:
        seen.append((responses, reference, tokens, scores))
        return ListOutput(responses.total.sum(1), responses.total.detach())

    class Tokens(ReferenceSums):
        def tokens(self, groups):
            return -torch.ones(sum(g.learnt_tokens for g in groups))

    objective = PreferenceObjective(LISTS, get_loss("t_seen"), {}, Tokens(known(LISTS, [-4.0] * 9)._totals, "made up"))
    slope = objective.measure([1, 0], -torch.arange(1.0, 11.0)).slope
    ((responses, reference, tokens, scores),) = seen
    assert responses.total.tolist() == [[-3, -3, 0], [-4, -11, -34]] and slope.tolist() == [1.0] * 10
    assert responses.length.tolist() == [[2, 1, 1], [1, 2, 4]] and responses.rank.tolist() == [[1, 1, 0], [2, 1, 3]]
    assert responses.mask.tolist() == [[True, True, False], [True] * 3]
    assert reference.total.tolist() == [[-4, -4, 0], [-4] * 3] and scores[1].tolist() == [3, 5, 1]
    assert scores[0, :2].tolist() == [2, 2] and scores[0, 2].isnan()
    assert tokens.policy.shape == (2, 3, 4) and tokens.mask.sum(-1).tolist() == [[2, 1, 0], [1, 2, 4]]
    assert tokens.policy[1].tolist() == [[-4, 0, 0, 0], [-5, -6, 0, 0], [-7, -8, -9, -10]]
    objective.measure([1], -torch.ones(3))
    assert seen[-1][0].total.shape == (1, 2)


# ---------------------------------------------------------------- answers
def test_answers_are_logged_by_their_labels_each_mean_over_its_own_count() -> None:
    partners = mismatch(ANSWERS)
    objective = PreferenceObjective(
        ANSWERS, get_loss("kto_unpaired"), {"beta": 0.1}, known(ANSWERS, [-12.0] * 4, partners), partners
    )
    objective.kl = torch.tensor(10.0)
    slopes, logged = measured(objective, [0, 1, 2, 3], [-8.0, -8.0, -16.0, -2.0])
    # z = 1; rewards are 0.4, 0.4, -0.4 and 1: 1 - σ(-0.6) twice, 1 - σ(1.4) = 0.19781611 of the undesirable, 1 - σ(0) = 0.5
    assert logged["loss"] == pytest.approx((2 * 0.64565631 + 0.19781611 + 0.5) / 4)
    assert logged["rewards/chosen"] == pytest.approx((0.4 + 0.4 + 1.0) / 3) == pytest.approx(0.6)
    assert logged["rewards/rejected"] == pytest.approx(-0.4) and logged["rewards/margins"] == pytest.approx(1.0)
    assert logged["logps/chosen"] == pytest.approx(-6) and logged["logps/rejected"] == pytest.approx(-16)
    assert logged["logps/chosen_per_token"] == pytest.approx((-8 - 4 - 1) / 3)
    assert math.isnan(logged["rewards/accuracies"]) and [slope < 0 for slope in slopes] == [True, True, False, True]
    desirable = measured(objective, [0, 1], [-8.0, -8.0])[1]
    assert math.isnan(desirable["rewards/rejected"]) and math.isnan(desirable["rewards/margins"])
    assert desirable["rewards/chosen"] == pytest.approx(0.4)


def test_an_answers_kl_is_of_its_prompt_with_the_answer_to_another_prompt() -> None:
    partners = mismatch(ANSWERS)
    groups = mismatched_groups(ANSWERS, partners)
    assert [g.prompt for g in groups] == [a.prompt for a in ANSWERS]
    assert [g.responses for g in groups] == [ANSWERS[j].responses for j in partners]
    assert all(ANSWERS[j].prompt != a.prompt for a, j in zip(ANSWERS, partners, strict=True))
    with pytest.raises(PobenchError, match="2 answers share one prompt"):
        mismatch(ANSWERS[1:3])


def test_a_loss_reads_rows_of_its_own_unit_or_pairs_and_of_one_kind(forget) -> None:
    pair = TokenPair("p", (1,), (2,), (3,))
    dpo, lists = get_loss("simpo"), get_loss("plackett_luce")
    for loss, items in ((dpo, LISTS), (dpo, ANSWERS), (lists, ANSWERS), (lists, [pair, LISTS[0]])):
        with pytest.raises(PobenchError, match="reads rows of one kind"):
            PreferenceObjective(items, loss, loss.settings)
    with pytest.raises(PobenchError, match=r"t_rated needs scores, and 1 of 4 answers have none: a0"):
        register_loss("t_rated", source="here")(lambda response, scores: AnswerOutput(response.total, response.total))
        PreferenceObjective([ANSWERS[0]._replace(score=None), *ANSWERS[1:]], get_loss("t_rated"), {})


# ---------------------------------------------------------------- rows and batches
def test_small_rows_are_lists_of_two_to_five_with_ties_and_more_desirable_answers_than_others() -> None:
    lists, answers = small_items("lists"), small_items("answers")
    assert {len(item.responses) for item in lists} == {2, 3, 4, 5} and len(lists) == 11 and len(answers) == 22
    assert {len(set(item.ranks)) < len(item.ranks) for item in lists} == {True, False}
    assert all(len(item.ranks) == len(item.responses) == len(item.scores) for item in lists)
    assert 0 < sum(not answer.label for answer in answers) < 11


@pytest.mark.parametrize(
    ("layout", "how"), [("shared_prefix", {}), ("shared_prefix", {"one_row": True}), ("padded", {})]
)
def test_the_answers_of_a_list_share_a_row_and_each_has_the_sum_it_has_alone(layout, how, start_model) -> None:
    groups = [Group.of(item) for item in small_items("lists")]
    policy = ResponseLogps(copy.deepcopy(start_model))
    batch = get_layout(layout, **how).collate(groups)
    answers = [place.responses for place in batch.places]
    lengths = [tuple(map(len, g.responses)) for g in groups]
    assert sorted(answers) == (sorted(lengths) if layout == "shared_prefix" else [])
    assert not how or answers == lengths  # several rows hold them in another order
    assert len(batch.places) == (11 if layout == "shared_prefix" else 0)
    alone = [policy(get_layout("padded").collate([Group(g.prompt, (r,))])) for g in groups for r in g.responses]
    torch.testing.assert_close(policy(batch), torch.cat(alone), atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", ["t_list_of_a_batch", "kto_unpaired", "t_answers_of_tokens"])
def test_a_reference_of_every_step_gives_lists_and_answers_what_the_stored_one_gives(
    name, fit, start_model, scorer_of, losses_that_ask
) -> None:
    items = small_items(get_loss(name).unit)
    _, _, stored = fit(items, name)
    live_sums = EveryStep(scorer_of(copy.deepcopy(start_model)))
    _, trained, live = fit(items, name, folder="live", reference=live_sums)
    assert trained.steps == 3 and trained.step0_gap < 1e-5 and trained.layout == "shared_prefix"
    for ours, theirs in zip(live, stored, strict=True):
        for metric in ("loss", "rewards/chosen", "rewards/margins", "kl", "grad_norm"):
            assert ours[metric] == pytest.approx(theirs[metric], rel=1e-4, abs=1e-6, nan_ok=True), metric


def test_the_law_tells_which_losses_have_the_gradient_of_their_whole_batch(losses_that_ask) -> None:
    names = ("t_list_of_a_batch", "t_answers_of_a_batch", "t_bco_answers", "plackett_luce")
    verdicts = [_of_the_batch(get_loss(name), get_loss(name).settings)[0] for name in names]
    assert verdicts == ["holds", "holds", "note", "holds"]


def test_what_is_carried_over_steps_is_made_of_every_answer_of_a_batch_with_its_label(forget, fit) -> None:
    items, seen = small_items("answers"), []

    def update(batch: AnswerBatch) -> dict[str, int]:
        seen.append(
            (batch.label.tolist(), batch.policy.length.tolist(), batch.place.tolist(), batch.state.get("steps", 0))
        )
        return {"steps": batch.state.get("steps", 0) + 1}

    @register_loss("t_steps", source="here", update=update)
    def t_steps(response: SequenceLogps, label: torch.Tensor, batch: AnswerBatch) -> AnswerOutput:
        assert torch.equal(batch.label[batch.place], label) and batch.state["steps"] == len(seen)
        assert torch.allclose(batch.policy.total[batch.place], response.total, atol=1e-4)
        return AnswerOutput(-response.mean, response.mean.detach())

    fit(items, "t_steps", micro_tokens=40)
    parts = (items[:8], items[8:16], items[16:])
    assert seen == [
        ([a.label for a in part], [len(a.response) for a in part], list(range(len(part))), step)
        for step, part in enumerate(parts)
    ]


def test_held_out_pairs_give_a_loss_of_lists_or_of_answers_all_that_it_asks_for(losses_that_ask) -> None:
    policy = Pair(*(SequenceLogps(torch.tensor(t), torch.tensor([3, 4])) for t in ([-8.0, -9.0], [-16.0, -19.0])))
    known = Pair(*(SequenceLogps(torch.full((2,), -12.0), torch.tensor([3, 4])) for _ in range(2)))
    inputs = Inputs(policy, known, scores=torch.tensor([[0.9, 0.1], [0.5, 0.5]]))
    bco = evaluate(get_loss("t_bco_answers"), {"beta": 0.1}, inputs)
    # rewards 0.4, -0.4 and 0.3, -0.7: their mean is -0.1; the first pair's loss is the mean of -log σ(0.5) and -log σ(0.3)
    assert bco.loss[0].item() == pytest.approx((math.log1p(math.exp(-0.5)) + math.log1p(math.exp(-0.3))) / 2)
    rated = evaluate(get_loss("t_rated_answers"), {"beta": 0.1}, inputs)
    assert rated.loss[0].item() == pytest.approx(((0.4 - 2) ** 2 + (-0.4 + 2) ** 2) / 2)
    whole = evaluate(get_loss("t_list_of_a_batch"), {"beta": 0.1}, inputs)
    # chances σ(0.8) and σ(1.0): -log of their mean
    chances = [1 / (1 + math.exp(-x)) for x in (0.8, 1.0)]
    assert whole.loss.tolist() == pytest.approx([-math.log(sum(chances) / 2)] * 2)
    assert evaluate(get_loss("t_list_of_tokens"), {"beta": 0.1}, inputs).loss.isnan().all()  # tokens are not stored


# ---------------------------------------------------------------- whole jobs
def rows_of(kind: str) -> list[dict[str, Any]]:
    if kind == "lists":
        return [
            {
                "id": str(i),
                "prompt": f"say w{i}",
                "responses": [f"w{i} w1", "w2", f"w{i} w3 w4"],
                "ranks": [2, 1, 2 + i % 2],
            }
            for i in range(10)
        ]
    return [
        {"id": f"{i}-{j}", "prompt": f"say w{i}", "completion": f"w{i} w{j}", "label": (i + j) % 3 > 0}
        for i in range(10)
        for j in range(1 + i % 3)
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "unit"), [("plackett_luce", "lists"), ("kto_unpaired", "answers"), ("t_answers_of_tokens", "answers")]
)
def test_a_job_trains_on_the_lists_or_answers_of_its_file(name, unit, work_here, tmp_path, losses_that_ask) -> None:
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows_of(unit)))
    source = str(tmp_path / "rows.jsonl")
    folder: Path = work_here(name, ("train", "heldout"), plugins=[losses_that_ask], data__source=source)
    trained = json.loads((folder / "trained.json").read_text())
    steps = [json.loads(line) for line in (folder / "steps.jsonl").read_text().splitlines()]
    assert "pairs" not in trained and sum(row[unit] for row in steps) == trained[unit] > 4
    assert trained["reference"] == "cached" and trained["step0_gap"] < 1e-5
    assert [row[unit] for row in steps[:-1]] == [4 if unit == "lists" else 8] * (len(steps) - 1)


@pytest.mark.parametrize("name", ["my_ratings", "my_bco"])
def test_the_files_on_the_page_of_python_train_on_lists_and_on_single_answers(name, fit, forget, tmp_path) -> None:
    page = (Path(__file__).parents[3] / "docs/python.md").read_text(encoding="utf-8")
    (file,) = [b for b in re.findall(r"^```python\n(.*?)^```$", page, re.M | re.S) if f'@register_loss("{name}"' in b]
    (tmp_path / f"{name}.py").write_text(file, encoding="utf-8")
    load_plugin(tmp_path / f"{name}.py")
    _, trained, rows = fit(small_items(get_loss(name).unit), name, epochs=4, lr=1e-2)
    assert trained.steps == 12 and rows[-1]["loss"] < rows[0]["loss"] and rows[-1]["rewards/margins"] > 0.01
