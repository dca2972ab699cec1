"""The exact judge of setting `tiny`, the instructions and demonstrations drawn from it, and what is shipped."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import math
import random
from pathlib import Path

import pytest

from pobench.data.shapes import load_preferences
from pobench.errors import PobenchError
from pobench.judging.tiny_world import GROUP_OF, STYLES, TOPIC_OF, TOPICS, TinyWorldJudge, demands, parse, write
from pobench.model.word_level import word_tokenizer
from pobench.registry import judges

ROOT = Path(__file__).parents[3]
DATA, MODEL = ROOT / "experiments/data/tiny", ROOT / "experiments/models/tiny"


def _recipe():
    spec = importlib.util.spec_from_file_location("tiny_recipe", ROOT / "experiments/recipes/tiny.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


tiny = _recipe()


def row(**check):
    return {"id": "r", "check": {"topic": "animals", "least": 2, "most": 3, **check}}


JUDGED = [  # check beside "two or three animals", answer, demands met of all
    ({}, "fox, owl", 2, 2),
    ({}, "fox and owl and moth", 2, 2),
    ({}, "the fox is a mammal. the owl is a bird.", 2, 2),
    ({}, "the fox is a mammal . the owl is a bird .", 2, 2),  # white space does not matter
    ({}, "fox", 1, 2),  # too few
    ({}, "fox, owl, moth, ant", 1, 2),  # too many
    ({}, "fox, fox", 1, 2),  # a thing comes twice: `topic`
    ({}, "fox, harp", 1, 2),  # a harp is no animal
    ({}, "the fox is a bird. the owl is a bird.", 1, 2),  # a false sentence
    ({}, "", 0, 2),
    ({}, "fox owl", 0, 2),
    ({}, "fox, owl,", 0, 2),
    ({}, "fox, owl and moth", 0, 2),  # two styles in one
    ({}, "fox, wolf", 0, 2),  # a word of no topic
    ({}, "Fox, owl", 0, 2),  # case matters
    ({}, "the fox is a mammal. the owl is", 0, 2),  # cut off
    ({"without": "bird"}, "fox, ant", 3, 3),
    ({"without": "bird"}, "fox, owl", 2, 3),
    ({"only": "bird"}, "crow, owl", 3, 3),
    ({"only": "bird"}, "crow, fox", 2, 3),
    ({"order": "alphabetical"}, "ant, fox, owl", 3, 3),
    ({"order": "alphabetical"}, "ant, owl, fox", 2, 3),
    ({"order": "reversed"}, "owl, fox, ant", 3, 3),
    ({"order": "shortest"}, "owl, fox, bear", 3, 3),  # equal lengths either way round
    ({"order": "shortest"}, "bear, fox", 2, 3),
    ({"first": "fox"}, "fox, owl", 3, 3),
    ({"first": "fox"}, "owl, fox", 2, 3),
    ({"last": "fox"}, "owl, fox", 3, 3),
    ({"style": "and"}, "fox and owl", 3, 3),
    ({"style": "and"}, "fox, owl", 2, 3),
    ({"style": "commas", "least": 1}, "fox", 3, 3),  # one bare thing is a list in either way
    ({"style": "sentences", "least": 1}, "fox", 2, 3),
    ({"without": "bird", "order": "alphabetical", "last": "moth", "style": "commas"}, "ant, fox, moth", 6, 6),
    ({"without": "bird", "order": "alphabetical", "last": "moth", "style": "commas"}, "owl and moth", 3, 6),
]


@pytest.mark.parametrize(("check", "answer", "met", "of"), JUDGED, ids=[f"{c} {a!r}" for c, a, _, _ in JUDGED])
def test_score_is_the_share_of_demands_met(check, answer, met, of) -> None:
    assert TinyWorldJudge().score(row(**check), answer) == met / of
    assert TinyWorldJudge(graded=False).score(row(**check), answer) == float(met == of)
    assert TinyWorldJudge(graded=False).grade(row(**check), answer) == met / of


def test_without_an_upper_bound_any_number_of_things_from_least_on_will_do() -> None:
    judge = judges.get("tiny_world")()
    everything = ", ".join(thing for thing, topic in TOPIC_OF.items() if topic == "animals")
    assert judge.score(row(most=None), everything) == 1.0


def test_a_row_without_a_check_has_no_score_and_an_unfinished_answer_fails() -> None:
    judge = TinyWorldJudge()
    for graded in (True, False):
        assert math.isnan(TinyWorldJudge(graded).score({"id": "r", "prompt": "hello"}, "fox, owl"))
        assert math.isnan(TinyWorldJudge(graded).grade({"id": "r", "prompt": "hello"}, "fox, owl"))
    assert judge.score(row(), "fox, owl", finished=False) == judge.grade(row(), "fox, owl", finished=False) == 0.0


def test_a_faulty_check_is_refused_with_every_fault_named() -> None:
    with pytest.raises(PobenchError) as error:
        TinyWorldJudge().score({"id": "r7", "check": {"topic": "animal", "least": 0, "ordr": "alphabetical"}}, "fox")
    said = str(error.value)
    assert all(
        part in said
        for part in ("'r7'", "'animal'", "'animals'", "least: got 0", "most: missing", "did you mean 'order'")
    )


def test_every_word_of_the_lexicon_occurs_once() -> None:
    words = [*TOPICS, *(w for groups in TOPICS.values() for g, things in groups.items() for w in (g, *things))]
    assert len(words) == len(set(words)) and len(TOPIC_OF) == len(GROUP_OF) == 45


def test_writing_and_reading_are_inverse() -> None:
    rng = random.Random(3)
    for style in STYLES:
        things = tuple(rng.sample(sorted(TOPIC_OF), 5))
        answer = parse(write(things, style))
        assert answer is not None and answer.things == things and answer.style == style
        assert dict(answer.claims) == ({t: GROUP_OF[t] for t in things} if style == "sentences" else {})


# ---------------------------------------------------------------- the recipe


def test_a_careful_author_meets_every_instruction_and_a_forgetful_one_does_not() -> None:
    rng, judge = random.Random(5), TinyWorldJudge(graded=False)
    rows = [tiny.draw_instruction(rng, None) for _ in range(400)]
    assert len({r["prompt"] for r in rows}) > 350  # the draws vary
    assert {r["kind"] for r in rows} == {"+".join(k) or "count" for k in tiny.kinds()}
    assert all(judge.score(r, tiny.demonstrate(rng, r["check"], faults=0.0)) == 1.0 for r in rows)
    passes = sum(judge.score(r, tiny.demonstrate(rng, r["check"])) for r in rows) / len(rows)
    assert 0.5 < passes < 0.9


def test_whether_a_demand_is_met_does_not_hang_on_length_alone() -> None:
    # Same instruction, two and twelve words, both pass: the count is free and so is the style.
    check = {"topic": "animals", "least": 2, "most": None}
    for text in ("fox, owl", "the fox is a mammal. the owl is a bird."):
        assert all(demands(check, parse(text)).values())


def test_novel_combinations_appear_in_no_demonstration_and_in_every_topic() -> None:
    rng = random.Random(7)
    drawn = [tiny.draw_instruction(rng) for _ in range(500)]
    assert not any((r["topic"], tuple(r["kind"].split("+"))) in tiny.NOVEL for r in drawn)
    assert {topic for topic, _ in tiny.NOVEL} == set(TOPICS)


def test_every_instruction_and_answer_is_made_of_known_words() -> None:
    tokenizer, rng = word_tokenizer(tiny.words(), tiny.CONTEXT), random.Random(11)
    for _ in range(300):
        r = tiny.draw_instruction(rng, None)
        for text in (r["prompt"], tiny.demonstrate(rng, r["check"]), *tiny.drill(rng)):
            ids = tokenizer(text, add_special_tokens=False)["input_ids"]
            assert tokenizer.unk_token_id not in ids, text
            assert tokenizer(tokenizer.decode(ids), add_special_tokens=False)["input_ids"] == ids


def test_the_same_seed_draws_the_same_world() -> None:
    first, second, other = (tiny.prompts(random.Random(seed)) for seed in (1, 1, 2))
    assert first == second and first != other


# ---------------------------------------------------------------- what is shipped


def _lines(name: str) -> list[dict]:
    path = DATA / name
    if not path.is_file():
        pytest.skip(f"{name} has not been made; run experiments/recipes/tiny.py")
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_shipped_prompts_are_those_of_the_recipe() -> None:
    for split, rows in tiny.prompts(random.Random(tiny.SEED)).items():
        assert _lines(f"{split}_prompts.jsonl")[: None if split != "heldout" else len(rows)] == rows
    prompts = [row["prompt"] for split in tiny.PROMPTS for row in _lines(f"{split}_prompts.jsonl")]
    assert len(set(prompts)) == len(prompts), "no instruction occurs twice"


@pytest.mark.slow
def test_held_out_prompts_are_those_of_the_recipe_and_no_demonstration_has_one() -> None:
    splits, shown = tiny.draw_world()
    assert splits["heldout"] == _lines("heldout_prompts.jsonl") and len(splits["heldout"]) == tiny.HELDOUT
    assert not {row["prompt"] for row in splits["heldout"]} & {row["prompt"] for row in shown}
    assert len(shown) == sum(tiny.CURRICULUM.values())


def test_shipped_pairs_are_judged_right_and_their_prompts_lie_apart() -> None:
    judge, texts = TinyWorldJudge(), {}
    for name, split in (("pairs.jsonl", "train"), ("heldout_pairs.jsonl", "heldout")):
        rows = {r["id"]: r for r in _lines(f"{split}_prompts.jsonl")}
        pairs = _lines(name)
        for pair in pairs:
            chosen, rejected = (judge.score(rows[pair["id"]], pair[side]) for side in ("chosen", "rejected"))
            assert (chosen, rejected) == (pair["meta"]["chosen_score"], pair["meta"]["rejected_score"])
            assert chosen > rejected
        texts[split] = {pair["prompt"][0]["content"] for pair in pairs}
    texts["eval"] = {r["prompt"] for r in _lines("eval_prompts.jsonl")}
    assert not texts["train"] & texts["heldout"] and not texts["eval"] & (texts["train"] | texts["heldout"])
    assert len(_lines("pairs.jsonl")) >= 400 and len(_lines("heldout_pairs.jsonl")) == 1_200


def test_shipped_lists_and_labelled_answers_are_judged_right_and_answer_the_training_prompts() -> None:
    rows = {r["prompt"]: r for r in _lines("train_prompts.jsonl")}
    lists, singles = _lines("lists.jsonl"), _lines("unpaired.jsonl")
    for one in lists:
        answers = {a["text"]: a["score"] for a in one["answers"]}
        assert rows[one["prompt"]]["id"] == one["id"] and tiny.LIST <= len(answers) == len(one["answers"]) <= 5
        assert answers == {text: TinyWorldJudge().score(rows[one["prompt"]], text) for text in answers}
        assert len(set(answers.values())) > 1, "a list of ties alone orders nothing"
    for one in singles:
        score = TinyWorldJudge().score(rows[one["prompt"]], one["completion"])
        assert one == {"prompt": one["prompt"], "completion": one["completion"], "label": score == 1.0, "score": score}
    pairs = {r["id"]: {r["chosen"], r["rejected"]} for r in _lines("pairs.jsonl")}
    assert all(pairs[one["id"]] <= {a["text"] for a in one["answers"]} for one in lists if one["id"] in pairs)


@pytest.mark.parametrize("name", ["pairs", "heldout_pairs", "lists"])
def test_every_shipped_row_is_read_with_its_ratings(name) -> None:
    found = load_preferences(DATA / f"{name}.jsonl")
    assert not found.faults and all(
        pair.scores is not None and pair.scores[0] > pair.scores[1] for pair in found.preferences
    )
    assert all(one.scores is not None for one in found.lists) and bool(found.lists) is (name == "lists")
    singles = load_preferences(DATA / "unpaired.jsonl").answers
    assert singles and all(one.score is not None for one in singles)


def test_the_recipe_counts_what_is_shipped() -> None:
    recipe = json.loads((DATA / "recipe.json").read_text(encoding="utf-8"))
    assert recipe["lists"]["lists"] == len(_lines("lists.jsonl"))
    assert recipe["unpaired"]["answers"] == len(_lines("unpaired.jsonl"))
    assert recipe["prompts"] == {split: len(_lines(f"{split}_prompts.jsonl")) for split in tiny.PROMPTS}
    assert {name: counts["pairs"] for name, counts in recipe["pairs"].items()} == {
        name: len(_lines(f"{name}.jsonl")) for name in ("pairs", "heldout_pairs")
    }
    folders = {"models": MODEL, "data": DATA}
    for file, digest in recipe["sha256"].items():
        path = folders[file.split("/")[0]] / file.split("/")[-1]
        assert hashlib.sha256(path.read_bytes()).hexdigest() == digest, file


def test_the_shipped_start_model_is_small_and_imperfect() -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    rows = _lines("eval_prompts.jsonl")[:100]
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    model = AutoModelForCausalLM.from_pretrained(MODEL)
    assert model.num_parameters() <= 2_000_000
    assert sum(f.stat().st_size for f in MODEL.iterdir()) <= 5_000_000
    samples = tiny.answers(model, tokenizer, rows, **{**tiny.DECODING, "samples": 1})
    passes = tiny.pass_rates(rows, samples)["all"]
    assert passes["n"] == 100 and 0.3 < passes["value"] < 0.85
