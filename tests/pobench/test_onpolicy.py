from __future__ import annotations

import json
import math

import pytest
from small_chat_model import character_tokenizer, chat_model

from pobench.generate import generate
from pobench.onpolicy import Decoding, Sample, best_against_worst, make_pairs, messages
from pobench.registry import PobenchError

ROWS = [{"id": f"p{i}", "prompt": text, "kind": "any"} for i, text in enumerate(("hi", "what is a bee?", "go on"))]


class ByFirstLetter:
    """Scores by the answer's first letter: a is 1, z is 0; no letter, no opinion."""

    name = "first-letter"

    def score(self, row, text, finished=True):
        letter = text[:1].lower()
        return 1 - (ord(letter) - ord("a")) / 25 if letter.isascii() and letter.isalpha() else math.nan


def of(prompt: str, *answers: tuple[str, int], finished: bool = True) -> list[Sample]:
    return [Sample(prompt, i, text, tokens, finished) for i, (text, tokens) in enumerate(answers)]


def test_the_best_answer_is_chosen_against_the_worst():
    pairs, counts = best_against_worst(ROWS[:1], of("p0", ("man", 3), ("zoo", 3), ("ant", 3)), ByFirstLetter())
    assert [(p["chosen"], p["rejected"]) for p in pairs] == [("ant", "zoo")]
    assert pairs[0]["prompt"] == [{"role": "user", "content": "hi"}]
    assert pairs[0]["meta"]["chosen_score"] == 1 and pairs[0]["meta"]["rejected_score"] == 0
    assert counts["pairs"] == 1 and counts["answers"] == 3


def test_among_equals_the_pair_closest_in_length_is_taken_then_the_first_drawn():
    answers = of("p0", ("a1", 9), ("a2", 5), ("z1", 20), ("z2", 6), ("z3", 4))
    pairs, _ = best_against_worst(ROWS[:1], answers, ByFirstLetter())
    # |9 - 6| = 3, |5 - 6| = 1, |5 - 4| = 1: of the last two, z2 was drawn first
    assert (pairs[0]["chosen"], pairs[0]["rejected"]) == ("a2", "z2")


def test_ties_and_identical_answers_make_no_pair_and_are_counted():
    samples = of("p0", ("ant", 3), ("ant", 3), ("ape", 3)) + of("p1", ("zoo", 3), ("zoo", 3))
    pairs, counts = best_against_worst(ROWS, samples, ByFirstLetter())
    assert pairs == []
    assert counts["identical"] == 2
    assert counts["tied"] == counts["prompts"] == 3  # the third prompt has no answers at all


def test_answers_that_were_cut_off_are_in_no_pair():
    samples = [*of("p0", ("ant", 3), ("zoo", 3), finished=False), Sample("p0", 2, "man", 3, True)]
    pairs, counts = best_against_worst(ROWS[:1], samples, ByFirstLetter())
    assert pairs == []
    assert counts["unfinished"] == 2


def test_answers_without_a_score_are_left_out_and_counted():
    pairs, counts = best_against_worst(ROWS[:1], of("p0", ("?", 1), ("ant", 3), ("bee", 3)), ByFirstLetter())
    assert (pairs[0]["chosen"], pairs[0]["rejected"]) == ("ant", "bee")
    assert counts["unscored"] == 1
    assert counts["mean_score"] == pytest.approx((1 + 0.96) / 2)


def test_nothing_scored_has_no_mean():
    _, counts = best_against_worst(ROWS[:1], of("p0", ("?", 1)), ByFirstLetter())
    assert counts["mean_score"] is None


# ---------------------------------------------------------------- the whole of it, with a model


class ByShareOfLetters:
    """A random model's answers are mostly not words; some hold more letters than others."""

    name = "share-of-letters"

    def score(self, row, text, finished=True):
        return sum(c.isalpha() for c in text) / max(len(text), 1)


@pytest.fixture(scope="module")
def parts():
    return {"model": chat_model(), "tokenizer": character_tokenizer(), "made_by": {"source": "random", "weights": "0"}}


DRAWN = Decoding(samples=10, temperature=3.0, top_p=1.0, max_new_tokens=30, seed=4, precision="fp32")


def pairs_of(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_pairs_come_with_their_recipe_and_samples(tmp_path, parts):
    out = tmp_path / "pairs.jsonl"
    recipe = make_pairs(ROWS, ByShareOfLetters(), out, **parts, decoding=DRAWN)
    pairs = pairs_of(out)
    assert len(pairs) == recipe["counts"]["pairs"] > 0
    assert recipe == json.loads((tmp_path / "pairs.recipe.json").read_text(encoding="utf-8"))
    assert recipe["model"]["source"] == "random" and recipe["judge"] == "share-of-letters"
    samples = pairs_of(tmp_path / "pairs.samples.jsonl")[1:]
    assert len(samples) == recipe["counts"]["answers"] == 30
    texts = {(s["id"], s["text"]) for s in samples if s["finished"]}
    assert all((p["id"], p["chosen"]) in texts and (p["id"], p["rejected"]) in texts for p in pairs)
    assert not list(tmp_path.glob(".*.partial"))


def test_an_interrupted_call_goes_on_and_ends_with_the_same_bytes(tmp_path, parts):
    whole, broken = tmp_path / "whole.jsonl", tmp_path / "broken.jsonl"
    make_pairs(ROWS, ByShareOfLetters(), whole, **parts, decoding=DRAWN, batch_size=4)

    class Interrupted(Exception):
        pass

    def interrupt(done, total):
        if done >= 8:
            raise Interrupted

    with pytest.raises(Interrupted):
        make_pairs(ROWS, ByShareOfLetters(), broken, **parts, decoding=DRAWN, batch_size=4, progress=interrupt)
    assert not broken.exists()
    samples = broken.with_suffix(".samples.jsonl")
    with samples.open("a", encoding="utf-8") as stream:
        stream.write('{"id": "p0", "sample": 5, "te')  # cut off while writing a line
    seen = []
    make_pairs(
        ROWS, ByShareOfLetters(), broken, **parts, decoding=DRAWN, batch_size=4, progress=lambda d, n: seen.append(d)
    )
    assert seen[0] == 12  # eight were there
    assert broken.read_bytes() == whole.read_bytes()
    assert sorted(samples.read_text().splitlines()) == sorted(
        whole.with_suffix(".samples.jsonl").read_text().splitlines()
    )


def test_a_repeated_call_draws_nothing(tmp_path, parts):
    out = tmp_path / "pairs.jsonl"
    make_pairs(ROWS, ByShareOfLetters(), out, **parts, decoding=DRAWN)
    before = out.read_bytes()
    make_pairs(ROWS, ByShareOfLetters(), out, **parts, decoding=DRAWN, progress=lambda d, n: pytest.fail("drew again"))
    assert out.read_bytes() == before


def test_samples_drawn_otherwise_are_not_mixed_in(tmp_path, parts):
    out = tmp_path / "pairs.jsonl"
    make_pairs(ROWS, ByShareOfLetters(), out, **parts, decoding=DRAWN)
    other = Decoding(**{**vars(DRAWN), "temperature": 0.5})
    with pytest.raises(PobenchError, match="temperature") as error:
        make_pairs(ROWS, ByShareOfLetters(), out, **parts, decoding=other)
    assert "remove this one" in str(error.value)


def test_the_samples_are_those_that_generate_gives(tmp_path, parts):
    make_pairs(ROWS, ByShareOfLetters(), tmp_path / "pairs.jsonl", **parts, decoding=DRAWN)
    stored = {(s["id"], s["sample"]): s["text"] for s in pairs_of(tmp_path / "pairs.samples.jsonl")[1:]}
    answers = generate(
        parts["model"], parts["tokenizer"], [messages(row["prompt"]) for row in ROWS], **vars(DRAWN), batch_size=7
    )
    assert stored == {(ROWS[a.prompt]["id"], a.sample): a.text for a in answers}


def test_all_faulty_rows_are_listed(tmp_path, parts):
    rows = [{"id": "a", "prompt": "x"}, {"id": "a", "prompt": "y"}, {"id": "c"}]
    with pytest.raises(PobenchError) as error:
        make_pairs(rows, ByShareOfLetters(), tmp_path / "pairs.jsonl", **parts)
    assert "row 2: id 'a' occurs twice" in str(error.value)
    assert "row 3: no 'prompt'" in str(error.value)
    assert not list(tmp_path.iterdir())
