"""From prompts to preference pairs: resumable, in shares, and with the same bytes however it came about."""

from __future__ import annotations

import json
import sys
from dataclasses import replace

import pytest
import yaml
from small_chat_model import character_tokenizer, chat_model
from two_processes import in_two_processes

from pobench.data.chat import Chat
from pobench.data.shapes import load_preferences
from pobench.errors import PobenchError
from pobench.judging.armorm import ArmoRM
from pobench.judging.pairrm import PairRM
from pobench.model.generate import Decoding, generate
from pobench.registry import judges
from pobench.workflows import onpolicy
from pobench.workflows.onpolicy import Sampling, draw, make_pairs, recipe_of

ROWS = [{"id": f"p{i}", "prompt": text, "kind": "any"} for i, text in enumerate(("hi", "what is a bee?", "go on"))]


class ByShareOfLetters:
    """A random model's answers are mostly not words; some hold more letters than others."""

    name = "share-of-letters"

    def score(self, row, text, finished=True):
        return sum(c.isalpha() for c in text) / max(len(text), 1)


@pytest.fixture(scope="module")
def parts():
    return {"model": chat_model(), "chat": Chat(character_tokenizer()), "made_by": {"source": "random", "weights": "0"}}


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
    assert all((p["id"], p[side][-1]["content"]) in texts for p in pairs for side in ("chosen", "rejected"))
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
    (part,) = tmp_path.glob("broken.samples.0-of-1.jsonl")
    with part.open("a", encoding="utf-8") as stream:
        stream.write('{"id": "p0", "sample": 5, "te')  # cut off while writing a line
    seen = []
    make_pairs(
        ROWS, ByShareOfLetters(), broken, **parts, decoding=DRAWN, batch_size=4, progress=lambda d, n: seen.append(d)
    )
    assert seen[0] == 12  # eight were there
    assert not part.exists()
    for suffix in (".jsonl", ".samples.jsonl", ".recipe.json"):
        assert broken.with_suffix(suffix).read_bytes() == whole.with_suffix(suffix).read_bytes()


def test_shares_that_were_cut_off_are_taken_on_by_other_numbers_of_processes(tmp_path, parts):
    spoken = {"model": parts["model"], "chat": parts["chat"], "batch_size": 4}
    whole, shared = (Sampling(ROWS, tmp_path / f"{n}.jsonl", parts["made_by"], DRAWN) for n in ("whole", "shared"))
    draw(whole, **spoken)
    draw(shared, **spoken, share=(1, 3))  # the others were killed before their first batch
    assert 0 < len(shared.gather()) < shared.total
    draw(shared, **spoken, share=(0, 2))
    draw(shared, **spoken, share=(1, 2))
    assert whole.gather() == shared.gather() and len(shared.gather()) == shared.total
    assert shared.file.read_bytes() == whole.file.read_bytes()
    assert not list(tmp_path.glob("*-of-*"))


def test_an_answer_may_hold_any_line_end(tmp_path, parts):
    from pobench.judging.ranking import Sample

    sampling = Sampling(ROWS, tmp_path / "pairs.jsonl", parts["made_by"], DRAWN)
    sample = Sample("p0", 0, "a\u2028b\x85c\rd\ne", 3, True)
    sampling.append([sample], (0, 1))
    assert sampling.gather() == sampling.gather() == [sample]


def test_a_prompt_that_occurs_twice_is_asked_once(tmp_path, parts):
    rows = [*ROWS, {"id": "again", "prompt": [{"role": "user", "content": "Go  on"}]}]
    recipe = make_pairs(rows, ByShareOfLetters(), tmp_path / "pairs.jsonl", **parts, decoding=DRAWN)
    assert recipe["counts"]["repeated"] == 1 and recipe["prompts"]["count"] == 3


def test_held_out_prompts_go_to_a_file_of_their_own(tmp_path, parts):
    rows = [{"id": str(i), "prompt": f"what is {i}?"} for i in range(20)]
    out = tmp_path / "pairs.jsonl"
    recipe = make_pairs(rows, ByShareOfLetters(), out, **parts, decoding=DRAWN, held_out=0.3)
    train, held = (load_preferences(file).preferences for file in (out, out.with_suffix(".heldout.jsonl")))
    assert len(train) == recipe["held_out"]["train"] > len(held) == recipe["held_out"]["held_out"] > 0
    assert len(train) + len(held) == recipe["counts"]["pairs"]
    assert {p.prompt for p in train}.isdisjoint(p.prompt for p in held)


def test_no_pair_at_all_is_said_with_the_counts(tmp_path, parts):
    class Indifferent:
        name = "indifferent"

        def score(self, row, text, finished=True):
            return 0.5

    with pytest.raises(PobenchError, match=r"indifferent leaves no pair .*\"tied\": 3"):
        make_pairs(ROWS, Indifferent(), tmp_path / "pairs.jsonl", **parts, decoding=DRAWN)
    assert (tmp_path / "pairs.samples.jsonl").is_file() and not (tmp_path / "pairs.jsonl").exists()


def test_a_repeated_call_draws_nothing(tmp_path, parts):
    out = tmp_path / "pairs.jsonl"
    make_pairs(ROWS, ByShareOfLetters(), out, **parts, decoding=DRAWN)
    before = out.read_bytes()
    make_pairs(ROWS, ByShareOfLetters(), out, **parts, decoding=DRAWN, progress=lambda d, n: pytest.fail("drew again"))
    assert out.read_bytes() == before


def test_samples_drawn_otherwise_are_not_mixed_in(tmp_path, parts):
    out = tmp_path / "pairs.jsonl"
    make_pairs(ROWS, ByShareOfLetters(), out, **parts, decoding=DRAWN)
    other = replace(DRAWN, temperature=0.5)
    with pytest.raises(PobenchError, match="temperature") as error:
        make_pairs(ROWS, ByShareOfLetters(), out, **parts, decoding=other)
    assert "remove this one" in str(error.value)


def test_the_samples_are_those_that_generate_gives(tmp_path, parts):
    make_pairs(ROWS, ByShareOfLetters(), tmp_path / "pairs.jsonl", **parts, decoding=DRAWN)
    stored = {(s["id"], s["sample"]): s["text"] for s in pairs_of(tmp_path / "pairs.samples.jsonl")[1:]}
    chat = parts["chat"]
    answers = generate(parts["model"], chat, [chat.prompt_ids(row["prompt"]) for row in ROWS], DRAWN, batch_size=7)
    assert stored == {(ROWS[a.prompt]["id"], a.sample): a.text for a in answers}


def test_all_faulty_rows_are_listed(tmp_path, parts):
    rows = [{"id": "a", "prompt": "x"}, {"id": "a", "prompt": "y"}, {"id": "c"}]
    with pytest.raises(PobenchError) as error:
        make_pairs(rows, ByShareOfLetters(), tmp_path / "pairs.jsonl", **parts, decoding=DRAWN)
    assert "row 2: id 'a' occurs twice" in str(error.value)
    assert "row 3: no 'prompt'" in str(error.value)
    assert not list(tmp_path.iterdir())


# ---------------------------------------------------------------- the command

PAIRWISE_PLUGIN = """
from pobench.registry import register_judge


class MoreWords:
    name = "more_words"

    def judge(self, prompt, a, b):
        return 0.5 + 0.5 * (len(b.split()) - len(a.split())) / max(len(a.split()), len(b.split()), 1)


@register_judge("more_words", compares=True)
def more_words(*, sharpness: float = 1.0):
    return MoreWords()
"""


@pytest.fixture
def command(setting, tmp_path, monkeypatch):
    """Everything but the file to write; the prompts are the setting's, the ranker a plug-in that compares."""
    monkeypatch.setenv("POBENCH_CACHE", str(tmp_path / "cache"))
    (tmp_path / "more_words.py").write_text(PAIRWISE_PLUGIN)
    drawn = ("--samples", "6", "--temperature", "2", "--max-new-tokens", "40", "--held-out", "0.2")
    yield (
        "data", "onpolicy", "--setting", "small.yaml", "--plugin", "more_words.py", "--ranker", "more_words", *drawn
    )  # fmt: skip
    judges._items.pop("more_words", None)


def test_a_plug_in_that_compares_two_answers_ranks_them_and_run_reads_the_pairs(pobench_cli, command, tmp_path):
    status, out, err = pobench_cli(*command, "--out", "mine.jsonl")
    assert status == 0 and "to train on" in out and "comparisons of two answers" in out, err
    for pair in pairs_of(tmp_path / "mine.jsonl"):
        chosen, rejected = (pair[side][-1]["content"] for side in ("chosen", "rejected"))
        assert len(chosen.split()) > len(rejected.split())
        assert set(pair) >= {"prompt", "prompt_id", "all_generated_responses", "all_rm_scores"}
        assert len(pair["all_generated_responses"]) == len(pair["all_rm_scores"]) == 6
    status, out, err = pobench_cli(
        "run", "--setting", "small.yaml", "--data", "mine.jsonl", "--set", "data.held_out=mine.heldout.jsonl",
        "--dry-run", "--json",
    )  # fmt: skip
    assert status == 0 and json.loads(out)["pairs"] == len(pairs_of(tmp_path / "mine.jsonl")), err


def draw_a_share(file):
    sys.argv = ["pobench.workflows.onpolicy", str(file)]
    onpolicy.main()


@pytest.mark.parametrize("start", ["forked", pytest.param("launched", marks=pytest.mark.slow)])
def test_two_processes_write_the_bytes_of_one(start, pobench_cli, command, tmp_path, monkeypatch):
    if start == "forked":
        append, shares = Sampling.append, tmp_path / "shares"

        def noted(self, samples, share):
            with shares.open("a") as stream:
                stream.write(f"{share[0]} of {share[1]}\n")
            append(self, samples, share)

        monkeypatch.setattr(Sampling, "append", noted)
        monkeypatch.setattr(onpolicy, "launch", lambda module, file: in_two_processes(draw_a_share, file))
    for processes in ("1", "2"):
        monkeypatch.setenv("POBENCH_PROCESSES", processes)
        status, _, err = pobench_cli(*command, "--out", f"{processes}/mine.jsonl", "--set", "answers.batch_size=7")
        assert status == 0, err
    written = sorted(path.name for path in (tmp_path / "1").glob("mine*"))
    assert written == sorted(path.name for path in (tmp_path / "2").glob("mine*")) and len(written) == 4
    for name in written:
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "2" / name).read_bytes(), name
    assert start == "launched" or set(shares.read_text().splitlines()) == {"0 of 1", "0 of 2", "1 of 2"}


def test_the_setting_says_how_and_the_command_line_has_the_last_word(pobench_cli, command, setting, tmp_path):
    own = {"samples": 3, "temperature": 2.0, "max_new_tokens": 40, "held_out_fraction": 0, "prompts": "prompts.jsonl"}
    ranker = {"name": "more_words", "settings": {"sharpness": 2.0}}
    (tmp_path / "small.yaml").write_text(yaml.safe_dump({**setting, "onpolicy": {**own, "ranker": ranker}}))
    ours = ("data", "onpolicy", "--setting", "small.yaml", "--plugin", "more_words.py", "--json")
    status, out, err = pobench_cli(*ours, "--out", "mine.jsonl", "--samples", "9", "--seed", "3")
    recipe = json.loads(out)
    assert status == 0 and recipe["judge"] == "more_words" and "held_out" not in recipe, err
    assert recipe["decoding"] == {
        "samples": 9, "temperature": 2.0, "top_p": 0.95, "max_new_tokens": 40, "seed": 3, "precision": "fp32"
    } | {"precision": recipe["decoding"]["precision"]}  # fmt: skip
    assert recipe["prompts"]["count"] == 3 and recipe["judge_settings"] == {"sharpness": 2.0}


def test_everything_wrong_with_the_command_is_said_and_nothing_written(pobench_cli, setting, tmp_path):
    before = sorted(tmp_path.rglob("*"))
    command = ("data", "onpolicy", "--setting", "small.yaml", "--out", "mine.jsonl")
    status, _, err = pobench_cli(*command, "--samples", "1", "--top-p", "2", "--ranker", "reward_modl")
    assert status == 2 and all(word in err for word in ("onpolicy.samples", "onpolicy.top_p", "'reward_model'")), err
    status, _, err = pobench_cli(*command, "--ranker", "reward_model", "--ranker-set", "modle=x")
    assert status == 2 and "did you mean 'model'" in err
    assert sorted(tmp_path.rglob("*")) == before


def test_prompts_that_the_model_cannot_read_stop_before_anything_is_drawn(pobench_cli, command, tmp_path):
    (tmp_path / "prompts.jsonl").write_text('{"id": "e", "prompt": "Tell me something"}\n')
    long = ("--max-new-tokens", "9000")
    status, _, err = pobench_cli(*command, "--out", "mine.jsonl", *long, "--set", "onpolicy.prompts=prompts.jsonl")
    assert status == 2 and "onpolicy.prompts: " in err and "of the prompt tokens are unknown to the tokenizer" in err
    assert "the longest prompt and 9000 new tokens" in err and not list(tmp_path.glob("mine*"))


@pytest.mark.parametrize(
    ("setting", "judge", "model"),
    [
        ("mistral-instruct", PairRM, "PairRM-hf"),
        ("llama3-instruct", PairRM, "PairRM-hf"),
        ("llama3-instruct-v0.2", ArmoRM, "ArmoRM-Llama3-8B-v0.1"),
        ("gemma2-instruct", ArmoRM, "ArmoRM-Llama3-8B-v0.1"),
    ],
)
def test_the_papers_settings_rank_by_the_papers_rankers_and_run_no_code_of_theirs(setting, judge, model):
    recipe = recipe_of(setting)
    assert type(recipe.judge) is judge and recipe.judge.name == model and not recipe.judge.weights.trust_remote_code
