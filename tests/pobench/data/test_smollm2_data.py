"""The data that setting `smollm2` ships: what its recipe writes, and what its judge says of it."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections import Counter
from pathlib import Path

import pytest

from pobench.judging.verifiable import checks
from pobench.registry import judges

ROOT = Path(__file__).parents[3]
DATA = ROOT / "experiments" / "data" / "smollm2"
SPLITS = ("train", "heldout", "tune", "eval")
PAIRS = {"pairs": "train", "heldout_pairs": "heldout"}


def rows(name: str) -> list[dict]:
    path = DATA / f"{name}.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def recipe():
    spec = importlib.util.spec_from_file_location("smollm2_recipe", ROOT / "experiments" / "recipes" / "smollm2.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_the_recipe_writes_the_shipped_prompts(recipe, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["smollm2.py", "--out", str(tmp_path)])
    recipe.main()
    for split in SPLITS:
        assert (tmp_path / f"{split}_prompts.jsonl").read_bytes() == (DATA / f"{split}_prompts.jsonl").read_bytes()


def test_no_topic_and_no_prompt_is_in_two_splits():
    topics = {split: {r["topic"] for r in rows(f"{split}_prompts")} for split in SPLITS}
    prompts = {split: {r["prompt"] for r in rows(f"{split}_prompts")} for split in SPLITS}
    for i, one in enumerate(SPLITS):
        for other in SPLITS[i + 1 :]:
            assert not topics[one] & topics[other]
            assert not prompts[one] & prompts[other]
    assert len(topics["train"]) >= 60
    assert len(topics["eval"]) >= 40


def test_unseen_wordings_are_seen_in_no_other_split(recipe):
    for kind in recipe.KINDS.values():
        assert len(set(kind.wordings)) == len(kind.wordings) == 6
    unseen = [r for r in rows("eval_prompts") if r["wording"] == "unseen"]
    assert 0.25 < len(unseen) / len(rows("eval_prompts")) < 0.4
    for row in unseen:
        wordings = recipe.KINDS[row["kind"]].wordings
        parameters = {k: v for k, v in row["check"].items() if k not in ("kind", "about", "sentences")}
        assert row["prompt"] in [recipe.fill(w, row["topic"], parameters) for w in wordings[4:]]
        assert row["prompt"] not in [recipe.fill(w, row["topic"], parameters) for w in wordings[:4]]


@pytest.mark.parametrize("split", SPLITS)
def test_prompts_are_short_complete_and_of_every_kind(recipe, split):
    found = rows(f"{split}_prompts")
    assert len({r["id"] for r in found}) == len(found)
    assert len({r["prompt"] for r in found}) == len(found)
    kinds = Counter(r["kind"] for r in found)
    assert set(kinds) == set(recipe.KINDS) and len(set(kinds.values())) == 1
    for row in found:
        assert row["check"]["kind"] in checks and row["check"]["about"]
        assert row["topic"].casefold() in row["prompt"].casefold()
        assert len(row["prompt"].split()) <= 30
        assert "{" not in row["prompt"]


def test_a_wording_that_states_a_number_of_sentences_puts_it_into_the_check(recipe):
    assert recipe.stated("Use {n} words, but in no more than two sentences.") == {"sentences": [1, 2]}
    assert recipe.stated("Describe {topic} in one short sentence.") == {"sentences": [1, 1]}
    assert recipe.stated("A sentence or two about {topic}.") == {"sentences": [1, 2]}
    for kind in recipe.KINDS.values():
        for wording in kind.wordings:
            states = "sentence" in wording.replace("{sentences}", "")
            assert ("sentences" in recipe.stated(wording)) == states, wording


@pytest.mark.parametrize(("name", "split"), PAIRS.items())
def test_the_judge_passes_every_chosen_answer_and_fails_every_rejected_one(name, split):
    judge = judges.get("verifiable")()
    prompts = {r["id"]: r for r in rows(f"{split}_prompts")}
    found = rows(name)
    assert len({p["id"] for p in found}) == len(found) >= 60
    for pair in found:
        row = prompts[pair["id"]]
        assert pair["prompt"] == [{"role": "user", "content": row["prompt"]}]
        assert judge.score(row, pair["chosen"]) == 1
        assert judge.score(row, pair["rejected"]) == 0


def test_length_does_not_tell_chosen_from_rejected():
    longer = [
        (p["meta"]["chosen_tokens"] > p["meta"]["rejected_tokens"])
        - (p["meta"]["chosen_tokens"] < p["meta"]["rejected_tokens"])
        for p in rows("pairs")
    ]
    assert abs(sum(longer)) / len(longer) < 0.15
    means = [sum(p["meta"][f"{side}_tokens"] for p in rows("pairs")) for side in ("chosen", "rejected")]
    assert means[0] == pytest.approx(means[1], rel=0.1)


@pytest.mark.parametrize(("name", "split"), PAIRS.items())
def test_the_recipe_tells_how_the_pairs_came_about(recipe, name, split):
    from pobench.data.rows import messages
    from pobench.runs.sampling import digest_of

    told = json.loads((DATA / f"{name}.recipe.json").read_text(encoding="utf-8"))
    assert told["model"]["source"] == recipe.MODEL and told["model"]["sha256"] == recipe.WHEEL_SHA256
    assert told["decoding"] == recipe.DECODING
    assert told["judge"] == "verifiable"
    prompts = rows(f"{split}_prompts")
    assert told["prompts"]["sha256"] == digest_of([(r["id"], messages(r["prompt"])) for r in prompts])
    counts = told["counts"]
    assert counts["pairs"] == len(rows(name)) == sum(k["pairs"] for k in counts["by_kind"].values())
    assert counts["answers"] == len(prompts) * recipe.DECODING["samples"]
    assert counts["prompts"] == counts["pairs"] + counts["tied"]
