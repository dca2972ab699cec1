"""The exact judge of setting `tiny-long`, the authors drawn from it, and what is shipped."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import math
import random
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pobench.errors import PobenchError
from pobench.judging.tiny_long_world import (
    BELIEFS,
    END,
    SUBJECTS,
    VALUES,
    WORDING,
    Sentence,
    TinyLongWorldJudge,
    find,
    parse,
    quality,
)
from pobench.model.word_level import word_tokenizer
from pobench.registry import judges

ROOT = Path(__file__).parents[3]
DATA, MODEL = ROOT / "experiments/data/tiny-long", ROOT / "experiments/models/tiny-long"


def _recipe():
    spec = importlib.util.spec_from_file_location("tiny_long_recipe", ROOT / "experiments/recipes/tiny_long.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


recipe = _recipe()
REMARK = "the answer is plain to most people who read it."

JUDGED = [  # answer to "describe fox, owl" (the fox is neat, the owl mild), its quality
    ("the fox is neat. the owl is mild.", 1.0),
    ("the owl is mild. the fox is neat.", 1.0),  # in any order
    ("clearly that fox seems very neat . the owl is mild .", 1.0),  # in any wording; white space does not matter
    (f"{REMARK} the fox is neat. the owl is mild.", 1.0),  # a remark costs nothing
    (
        f"{REMARK} the fox is neat. the owl is mild. now our answer looks quite clear for all folk who read it.",
        0.875,
    ),  # said twice
    (
        f"{REMARK} the fox is neat. the list is plain to most people who read it. the owl is mild.",
        1.0,
    ),  # about another subject
    ("the fox is neat.", 0.5),
    ("the fox is neat. the fox is neat.", 0.375),  # right once, repeated once
    ("the fox is neat. the owl is dark.", 0.0),  # one right, one myth
    ("the fox is neat. the owl is mild. the fox is young.", 0.375),  # 2 right, 1 false, 1 repeated
    ("the fox is neat. the cat is tall.", 0.5),  # true, and nobody asked
    ("the fox is neat. the owl is mild. the cat is mild.", 0.5),  # false, and nobody asked
    ("the fox is neat. the owl is mild", 0.0),  # the last sentence has no end, which is no form
    ("the fox is neat. the owl mild.", 0.0),
    ("the fox is neat. Owl is mild.", 0.0),  # case matters
    ("the fox is neat to most people. the owl is mild.", 0.0),  # a fact ends with its value
    ("the answer is plain. the fox is neat. the owl is mild.", 0.5),  # a remark does not
    (".", 0.0),
    ("", 0.0),
]


@pytest.mark.parametrize(("answer", "worth"), JUDGED, ids=[a for a, _ in JUDGED])
def test_quality_is_what_is_right_less_what_is_false_and_repeated(answer, worth) -> None:
    row = {"id": "r", "check": {"asked": ["fox", "owl"]}}
    assert judges.get("tiny_long_world")().score(row, answer) == worth
    assert TinyLongWorldJudge().score(row, answer, finished=False) == 0.0


def test_the_sentences_are_counted_by_kind() -> None:
    text = f"{REMARK} the fox is neat. the fox is young. the owl. {REMARK}"
    assert find(["fox", "owl"], text) == (1, 2, 2, 2, 5)  # right, false, repeated, remarks, sentences
    assert parse(text)[:2] == [Sentence("answer", ""), Sentence("fox", "neat")] and parse(text)[3] is None


def test_a_row_without_a_check_has_no_score_and_a_faulty_one_is_refused() -> None:
    judge = TinyLongWorldJudge()
    assert math.isnan(judge.score({"id": "r", "prompt": "hello"}, "the fox is neat."))
    for check, part in (
        ({"asked": ["fx"]}, "'fox'"),
        ({"asked": []}, "a list of animals"),
        ({"asked": ["fox", "fox"]}, "twice"),
        ({"askd": ["fox"]}, "did you mean 'asked'"),
    ):
        with pytest.raises(PobenchError, match="'r7'") as error:
            judge.score({"id": "r7", "check": check}, "the fox is neat.")
        assert part in str(error.value)


def test_no_word_has_two_meanings() -> None:
    assert len(BELIEFS) == 40 and len(set(VALUES)) == len(VALUES) == 32
    meanings = [*BELIEFS, *VALUES, *SUBJECTS, *END, *(word for slot in WORDING.values() for word in slot if word)]
    assert len(meanings) == len(set(meanings))
    assert all(truth != myth and {truth, myth} <= set(VALUES) for truth, myth in BELIEFS.values())


asked = st.lists(st.sampled_from(sorted(BELIEFS)), min_size=2, max_size=4, unique=True)
authors = st.builds(recipe.Author, st.floats(0, 1), st.floats(0, 1), st.floats(0, 1))


@settings(max_examples=30)
@given(asked, authors, st.integers(0, 2**32))
def test_what_authors_write_is_well_formed_and_its_quality_lies_between_0_and_1(animals, author, seed) -> None:
    text = author.write(random.Random(seed), animals)
    assert None not in parse(text)
    assert 0 <= quality(animals, text) <= 1


@settings(max_examples=30)
@given(asked, authors, st.integers(0, 2**32))
def test_saying_an_answer_twice_is_never_better_and_costs_every_sentence(animals, author, seed) -> None:
    text = author.write(random.Random(seed), animals)
    once, twice = find(animals, text), find(animals, f"{text} {text}")
    assert twice.right == once.right and twice.false == 2 * once.false
    assert twice.repeated == once.repeated + once.sentences
    assert quality(animals, f"{text} {text}") <= quality(animals, text)


@settings(max_examples=30)
@given(asked, authors.map(lambda a: a._replace(skill=1.0)), st.integers(0, 2**32))
def test_an_author_of_skill_one_makes_no_mistake(animals, author, seed) -> None:
    found = find(animals, author.write(random.Random(seed), animals))
    assert found.right == len(animals) and found.false == 0


# ---------------------------------------------------------------- the recipe


def test_the_dials_make_the_skilled_verbose_and_rich_in_words() -> None:
    def correlations(longer: float, richer: float) -> list[float]:
        rng = random.Random(3)
        authors = np.array([recipe.draw_author(rng, "pairs", longer, richer) for _ in range(2_000)])
        assert authors[:, 0].std() > 0.2 and authors[:, 1].max() <= recipe.REMARKS["pairs"] and authors[:, 2].max() <= 1
        return [float(np.corrcoef(authors[:, 0], authors[:, i])[0, 1]) for i in (1, 2)]

    assert correlations(1, 0) == [pytest.approx(1), pytest.approx(0, abs=0.1)]
    assert correlations(0, 1) == [pytest.approx(0, abs=0.1), pytest.approx(1)]
    assert correlations(0.5, 0.5) == [pytest.approx(0.5**0.5, abs=0.05)] * 2  # two equal independent parts


def test_a_verbose_author_makes_more_remarks_and_a_rich_one_uses_rarer_words() -> None:
    def mean(author, count) -> float:
        rng = random.Random(3)
        return sum(count(author.write(rng, ["fox", "owl"])) for _ in range(100)) / 100

    def rare(text: str) -> int:  # determiners that are not the commonest
        return sum(word in WORDING["determiner"][1:] for word in text.split())

    plain = recipe.Author(1, 0, 0)
    assert mean(plain, lambda text: find(["fox"], text).remarks) == 0
    assert mean(plain._replace(remarks=1), lambda text: find(["fox"], text).remarks) == pytest.approx(
        3, abs=0.6
    )  # 3 gaps
    assert mean(plain._replace(richness=1), rare) == pytest.approx(2 * 5 / 6, abs=0.2)  # of six words, all alike
    assert mean(plain, rare) < 0.5


def test_better_answers_win_more_often_and_not_always(monkeypatch) -> None:
    monkeypatch.setattr(recipe, "PAIRS", {"train": 200})
    pairs = recipe.draw_pairs(random.Random(3), set())["train"]
    right = sum(p["meta"]["chosen_quality"] > p["meta"]["rejected_quality"] for p in pairs) / len(pairs)
    assert 0.85 < right < 1


def test_the_same_seed_draws_the_same_world_without_repeating_a_prompt() -> None:
    def world(seed):
        taken: set[str] = set()
        return recipe.prompts(random.Random(seed), taken), taken

    (first, taken), (second, _), (other, _) = world(1), world(1), world(2)
    assert first == second and first != other
    assert len(taken) == sum(recipe.PROMPTS.values())


def test_a_dial_changes_answers_and_no_prompt(monkeypatch) -> None:
    monkeypatch.setattr(recipe, "PAIRS", {"train": 50})  # so that the stored model has seen none of them, at any dial

    def column(key: str, *dials: float) -> list[str]:
        return [str(pair[key]) for pair in recipe.draw_pairs(random.Random(3), set(), *dials)["train"]]

    assert column("prompt", 0, 0) == column("prompt", 1, 1)
    assert column("chosen", 0, 0) != column("chosen", 1, 1)


def test_every_prompt_and_answer_is_made_of_known_words() -> None:
    tokenizer, rng = word_tokenizer(recipe.words(), recipe.CONTEXT), random.Random(11)
    longest = 0
    for row in recipe.demonstrations(rng, set()):
        ids = tokenizer(f"{row['prompt']} {row['response']}", add_special_tokens=False)["input_ids"]
        assert tokenizer.unk_token_id not in ids
        longest = max(longest, len(ids))
        if rng.random() < 0.01:
            break
    assert longest > 20


# ---------------------------------------------------------------- what is shipped


def _lines(name: str) -> list[dict]:
    return [json.loads(line) for line in (DATA / name).read_text(encoding="utf-8").splitlines()]


def test_shipped_prompts_and_pairs_are_those_of_the_recipe(monkeypatch) -> None:
    taken: set[str] = set()
    for split, rows in recipe.prompts(random.Random(recipe.SEED), taken).items():
        assert _lines(f"{split}_prompts.jsonl") == rows
    monkeypatch.setattr(recipe, "PAIRS", {"train": 300})  # the first of them
    assert recipe.draw_pairs(random.Random(recipe.SEED + 1), taken)["train"] == _lines("pairs.jsonl")[:300]


@pytest.mark.slow
def test_all_shipped_pairs_are_those_of_the_recipe_and_no_demonstration_has_their_prompts() -> None:
    taken: set[str] = set()
    recipe.prompts(random.Random(recipe.SEED), taken)
    pairs = recipe.draw_pairs(random.Random(recipe.SEED + 1), taken)
    assert _lines("pairs.jsonl") == pairs["train"] and _lines("heldout_pairs.jsonl") == pairs["heldout"]
    prompts = [p["prompt"][0]["content"] for rows in pairs.values() for p in rows]
    assert len(set(prompts)) == len(prompts) and set(prompts) <= taken
    assert not taken & {row["prompt"] for row in recipe.demonstrations(random.Random(recipe.SEED + 2), set(taken))}


def test_the_recipe_counts_what_is_shipped() -> None:
    made = json.loads((DATA / "recipe.json").read_text(encoding="utf-8"))
    assert made["dials"] == {"longer": recipe.LONGER, "richer": recipe.RICHER}
    folders = {"models": MODEL, "data": DATA}
    files = {f"{top}/{folder.name}/{p.name}" for top, folder in folders.items() for p in folder.iterdir()}
    assert {*made["sha256"], "data/tiny-long/recipe.json", "data/tiny-long/tuning.csv"} == files  # the last by a search
    for file, digest in made["sha256"].items():
        path = folders[file.split("/")[0]] / file.split("/")[-1]
        assert hashlib.sha256(path.read_bytes()).hexdigest() == digest, file
    assert sum(f.stat().st_size for f in (*MODEL.iterdir(), *DATA.iterdir())) <= 6_000_000


def _start_model():
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from pobench.data.chat import Chat

    return AutoModelForCausalLM.from_pretrained(MODEL).eval(), Chat(AutoTokenizer.from_pretrained(MODEL))


def test_the_world_is_set_by_its_start_model() -> None:
    made = json.loads((DATA / "recipe.json").read_text(encoding="utf-8"))["start_model"]
    pairs = made["heldout_pairs"]
    assert 0.25 <= pairs["rho"] <= 0.35, "about the paper's SFT model: longer answers are likelier by the token"
    assert 0.45 <= pairs["ranked_right_by_mean"] <= 0.55
    assert 0.2 < made["answers"]["quality"] < 0.6 and made["answers"]["finished"] > 0.99


def test_winners_are_longer_than_losers_in_the_shipped_pairs() -> None:
    def tokens(answer: str) -> int:
        return len(re.findall(r"\w+|[^\w\s]", answer))

    for name, low in (
        ("pairs.jsonl", 0.54),
        ("heldout_pairs.jsonl", 0.5),
    ):  # some two standard errors or more below .588 and .547
        rows = _lines(name)
        longer = sum(tokens(row["chosen"]) > tokens(row["rejected"]) for row in rows) / len(rows)
        assert low < longer < 0.66, name


def test_the_shipped_start_model_ranks_half_of_the_pairs_right_and_half_knows_the_truths() -> None:
    model, chat = _start_model()
    found = recipe.pair_figures(model, chat, _lines("heldout_pairs.jsonl")[:70])
    assert 0.4 < found["ranked_right_by_mean"] < 0.6 and 0.1 < found["rho"] < 0.5
    answers = recipe.answer_figures(model, chat, _lines("eval_prompts.jsonl")[:20])
    assert 0.2 < answers["quality"] < 0.6 and answers["finished"] == 1


@pytest.mark.slow
def test_the_recipe_records_the_shipped_start_model() -> None:
    made = json.loads((DATA / "recipe.json").read_text(encoding="utf-8"))["start_model"]
    found = recipe.pair_figures(*_start_model(), _lines("heldout_pairs.jsonl"))
    assert found == pytest.approx(made["heldout_pairs"], abs=0.01)  # another processor sums in another order
