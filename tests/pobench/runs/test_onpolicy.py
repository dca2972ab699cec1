"""From prompts to preference pairs: resumable, in shares, and with the same bytes however it came about."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace

import pytest
import torch
import yaml
from small_chat_model import character_tokenizer, chat_model
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer
from two_processes import in_two_processes

from pobench.data.chat import Chat
from pobench.data.shapes import load_preferences
from pobench.errors import PobenchError
from pobench.judging.armorm import ArmoRM
from pobench.judging.pairrm import PairRM
from pobench.judging.reward_model import RewardModel
from pobench.model.generate import Decoding, generate
from pobench.registry import judges
from pobench.runs import onpolicy
from pobench.runs.execute import execute
from pobench.runs.onpolicy import recipe_for
from pobench.runs.plan import make_plan
from pobench.runs.rehearsal import rehearse
from pobench.runs.sampling import Sampling, draw, line_faults, make_pairs
from pobench.runs.worker import run as work
from pobench.settings.resolve import resolve
from pobench.sources import weights_digest
from tests.faults.damage import DAMAGES

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


@pytest.mark.parametrize("damage", DAMAGES)
def test_samples_that_are_damaged_are_drawn_again_and_no_others(damage, tmp_path, parts, capsys):
    out, spoken = tmp_path / "pairs.jsonl", {"model": parts["model"], "chat": parts["chat"], "batch_size": 1}
    sampling = Sampling(ROWS, out, parts["made_by"], DRAWN)
    draw(sampling, **spoken)
    sampling.gather()
    whole = sampling.file.read_bytes()
    DAMAGES[damage](sampling.file)
    assert damage == "gone" or line_faults(sampling.file)
    kept = len(sampling.gather())
    assert damage == "gone" or "drawn again" in capsys.readouterr().err
    assert kept == 29 if damage in ("a flipped byte", "another digit") else kept < 29
    draw(sampling, **spoken)
    sampling.gather()
    assert sampling.file.read_bytes() == whole and not line_faults(sampling.file)


def test_samples_of_an_earlier_version_which_hold_no_digests_are_read(tmp_path, parts):
    sampling = Sampling(ROWS, tmp_path / "pairs.jsonl", parts["made_by"], DRAWN)
    sample = {"id": "p0", "sample": 0, "text": "a", "tokens": 1, "finished": True}
    sampling.file.write_text("".join(json.dumps(row) + "\n" for row in ({"samples_of": sampling.origin}, sample)))
    assert [one._asdict() for one in sampling.gather()] == [sample] and not line_faults(sampling.file)


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

    def __init__(self, sharpness):
        self.sharpness = sharpness

    def judge(self, prompt, a, b):
        return 0.5 + 0.5 * (len(b.split()) - len(a.split())) / max(len(a.split()), len(b.split()), 1 / self.sharpness)


@register_judge("more_words", compares=True)
def more_words(*, sharpness: float = 1.0):
    return MoreWords(sharpness)
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
    sys.argv = ["pobench.runs.onpolicy", str(file)]
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


@pytest.mark.parametrize("start", ["forked", pytest.param("launched", marks=pytest.mark.slow)])
def test_two_processes_rank_by_a_reward_model_as_one_does(start, pobench_cli, command, tmp_path, monkeypatch):
    torch.manual_seed(0)
    config = AutoConfig.from_pretrained(tmp_path / "model", num_labels=1)
    model = AutoModelForSequenceClassification.from_config(config)
    for weight in model.parameters():
        weight.data *= 4  # so that answers differ
    model.save_pretrained(tmp_path / "reward")
    AutoTokenizer.from_pretrained(tmp_path / "model").save_pretrained(tmp_path / "reward")
    ranker = ("--ranker", "reward_model", "--ranker-set", "model=reward", "--ranker-set", "batch_size=1")
    if start == "forked":
        rewards, ranks = RewardModel.rewards, tmp_path / "ranks"

        def noted(self, *arguments):
            with ranks.open("a") as stream:
                stream.write(f"{os.environ.get('POBENCH_PROCESSES')} {os.environ.get('RANK')}\n")
            return rewards(self, *arguments)

        monkeypatch.setattr(RewardModel, "rewards", noted)
        monkeypatch.setattr(onpolicy, "launch", lambda module, file: in_two_processes(draw_a_share, file))
    for processes in ("1", "2"):
        monkeypatch.setenv("POBENCH_PROCESSES", processes)
        status, _, err = pobench_cli(*command, *ranker, "--out", f"{processes}/mine.jsonl")
        assert status == 0, err
    written = {path.name: path.read_bytes() for path in (tmp_path / "1").iterdir()}
    assert written == {path.name: path.read_bytes() for path in (tmp_path / "2").iterdir()} and len(written) >= 3
    if start == "forked":
        one, two = (
            [line for line in ranks.read_text().splitlines() if line.startswith(count)] for count in ("1 ", "2 ")
        )
        assert {*one} == {"1 None"} and {*two} <= {"2 0", "2 1"}, "the command joins what its processes have read"
        assert len(one) == len(two) > 2, "each shard once"


def test_the_setting_says_how_and_the_command_line_has_the_last_word(pobench_cli, command, setting, tmp_path):
    rows = [{"id": f"q{i}", "prompt": f"say w{i}"} for i in (7, 8, 9)]  # none that `answers.source` asks
    (tmp_path / "ask.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    own = {"samples": 3, "temperature": 2.0, "max_new_tokens": 40, "held_out_fraction": 0, "prompts": "ask.jsonl"}
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
    recipe = recipe_for(setting)
    assert type(recipe.judge) is judge and recipe.judge.name == model and not recipe.judge.weights.trust_remote_code


# ---------------------------------------------------------------- the stage


@pytest.fixture
def run_here(pobench_cli, setting, tmp_path, monkeypatch):
    """`pobench run` on pairs on policy in this process: (status, what --json prints, standard error)."""
    monkeypatch.setenv("POBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("pobench.runs.execute._fork", work)
    (tmp_path / "more_words.py").write_text(PAIRWISE_PLUGIN)
    rows = [{"id": f"q{i}", "prompt": f"say w{i}"} for i in range(12)]
    (tmp_path / "ask.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    ranker = {"name": "more_words", "settings": {"sharpness": 2.0}}
    own = {"samples": 6, "temperature": 2.0, "max_new_tokens": 40, "prompts": "ask.jsonl", "ranker": ranker}
    (tmp_path / "small.yaml").write_text(yaml.safe_dump({**setting, "onpolicy": {**own, "held_out_fraction": 0.4}}))

    def run(stages, *more):
        command = ("run", "--setting", "small.yaml", "--losses", "simpo", "--plugin", "more_words.py", "--json")
        status, out, err = pobench_cli(*command, "--stages", stages, *more)
        return status, json.loads(out) if out else {}, err

    yield run
    judges._items.pop("more_words", None)


def test_one_command_goes_from_prompts_to_pairs_to_runs(run_here, tmp_path):
    status, said, err = run_here("onpolicy,train,heldout")
    assert status == 0 and {o["status"] for o in said["outcomes"]} == {"finished"}, err
    (made,) = (tmp_path / "runs/small").glob("onpolicy-*/pairs-*")
    train, held = pairs_of(made / "pairs.jsonl"), pairs_of(made / "pairs.heldout.jsonl")
    (trained,) = (tmp_path / "runs/small").glob("simpo-*/trained.json")
    (data,) = (tmp_path / "runs/small").glob("data-*/data.json")
    about = json.loads(data.read_text())
    assert about["pairs"] == {"train": len(train), "heldout": len(held)}
    assert json.loads(trained.read_text())["causes"]["pairs"] == about["digests"]["train"]  # of any data: by content
    assert about["ratings"]["train"][1] == about["ratings"]["heldout"][1] == 0  # none lacks the ranker's scores
    status, said, err = run_here("onpolicy,train", "--losses", "odpo,plackett_luce", "--dry-run")
    assert status == 0 and [job["state"] for job in said["jobs"] if job["kind"] == "loss"] == ["to do"] * 2, err
    # say w0, say w1 and say w2 are what `answers.source` asks
    asked = {f"say w{i}" for i in range(3)}
    assert {p["prompt"] for p in train}.isdisjoint(asked) and {p["prompt"] for p in held} & asked
    again = run_here("onpolicy,train,heldout")
    assert again[0] == 0 and {o["status"] for o in again[1]["outcomes"]} == {"skipped"}, again[2]


def test_another_ranker_ranks_the_same_samples_and_trains_a_model_of_its_own(run_here, short_report, tmp_path):
    assert run_here("onpolicy,train")[0] == 0
    (samples,) = (tmp_path / "runs/small").glob("onpolicy-*/pairs.samples.jsonl")
    before = samples.stat().st_mtime_ns
    status, _, err = run_here("onpolicy,train", "--set", "onpolicy.ranker.settings.sharpness=3.0")
    assert status == 0, err
    assert len(list((tmp_path / "runs/small").glob("onpolicy-*/pairs-*"))) == 2
    assert samples.stat().st_mtime_ns == before and len(list(samples.parent.parent.glob("onpolicy-*"))) == 1


SELF_PLAY = ("--set", "onpolicy.pairs=human_over_own", "--set", "onpolicy.samples=1")


def test_answers_of_the_data_stand_over_the_models_own_and_no_judge_is_needed(run_here, short_report, tmp_path):
    values = yaml.safe_load((tmp_path / "small.yaml").read_text())
    del values["judge"], values["onpolicy"]["ranker"]
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(values))
    status, said, err = run_here("onpolicy,train", *SELF_PLAY)
    assert status == 0 and {o["status"] for o in said["outcomes"] if o["run"].startswith("small/simpo-")} == {
        "finished"
    }, err
    assert "2 of 12 prompts have no human answer in data.source" in " ".join(err.split())  # say w10 and say w11
    (made,) = (tmp_path / "runs/small").glob("onpolicy-*/pairs-*")
    train, held = pairs_of(made / "pairs.jsonl"), pairs_of(made / "pairs.heldout.jsonl")
    answers = {sample["id"]: sample["text"] for sample in pairs_of(made.parent / "pairs.samples.jsonl")[1:]}
    assert len(answers) == 10 and train and held
    for pair in (*train, *held):
        number = pair["prompt"].removeprefix("say w")
        assert pair["chosen"][-1]["content"] == f"w{number} w1"
        assert pair["rejected"][-1]["content"] == answers[pair["id"]]
    again = run_here("onpolicy,train", *SELF_PLAY, "--dry-run")
    assert again[0] == 0 and {job["kind"]: job["state"] for job in again[1]["jobs"]}["onpolicy"] == "done", again[2]


def test_other_human_answers_make_other_pairs(run_here, tmp_path):
    assert run_here("onpolicy", *SELF_PLAY)[0] == 0
    rows = [{"prompt": f"say w{i}", "response": f"w{i} w5"} for i in range(3, 10)]
    (tmp_path / "people.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    status, _, err = run_here("onpolicy", *SELF_PLAY, "--set", "onpolicy.human_answers=people.jsonl")
    assert status == 0, err
    made = [pairs_of(path) for path in (tmp_path / "runs/small").glob("onpolicy-*/pairs-*/pairs*.jsonl")]
    said = {pair["chosen"][-1]["content"] for pairs in made for pair in pairs}
    assert said & {f"w{i} w5" for i in range(3, 10)} and said & {f"w{i} w1" for i in range(10)}


@pytest.mark.parametrize(
    "changes, message",
    [
        (
            ("onpolicy.human_answers=others.jsonl",),
            "none of the 12 prompts has a human answer in onpolicy.human_answers",
        ),
        (("onpolicy.human_answers=bad.jsonl",), "it has no better, desirable or demonstrated answer"),
        (("onpolicy.human_answers=broken.jsonl",), "row 2: expected `messages`, or `prompt` and `response`"),
        (("onpolicy.human_answers=nowhere.jsonl",), "no such file"),
        (("onpolicy.pairs=ranked",), "two answers or more are ranked"),
        (("onpolicy.pairs=own",), "'ranked' or 'human_over_own'"),
    ],
)
def test_what_cannot_be_put_over_the_models_own_is_refused_in_a_sentence(run_here, tmp_path, changes, message):
    rows = {
        "others": [{"prompt": "say nothing", "response": "w1"}],
        "bad": [{"prompt": f"say w{i}", "completion": "w1", "label": False} for i in range(3)],
        "broken": [{"prompt": "say w1", "response": "w1"}, {"prompt": "say w2"}],
    }
    for name, some in rows.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in some))
    status, _, err = run_here("onpolicy", *SELF_PLAY, *(word for change in changes for word in ("--set", change)))
    assert status == 2 and message in " ".join(err.split()), err
    assert not (tmp_path / "runs").exists()


def test_a_loss_of_ratings_is_refused_before_a_human_answer_is_put_over_any(run_here, tmp_path):
    status, _, err = run_here("onpolicy,train", *SELF_PLAY, "--losses", "odpo,simpo")
    assert status == 2 and "odpo: needs ratings of both answers" in " ".join(err.split()), err
    assert not (tmp_path / "runs").exists()


def test_damaged_pairs_are_made_anew_from_their_samples_and_stay_beside(run_here, tmp_path):
    assert run_here("onpolicy")[0] == 0
    (file,) = (tmp_path / "runs/small").glob("onpolicy-*/pairs-*/pairs.jsonl")
    whole = file.read_bytes()
    file.write_bytes(whole[:-9])
    status, said, err = run_here("onpolicy")
    assert status == 0 and "it is made anew" in err and file.read_bytes() == whole
    assert (file.parent.with_name(f"{file.parent.name}.damaged") / file.name).read_bytes() == whole[:-9]
    assert said["pairs"] == [
        {
            "train": {"file": str(file.relative_to(tmp_path)), "pairs": whole.count(b"\n")},
            "held_out": {"file": said["pairs"][0]["held_out"]["file"], "pairs": said["pairs"][0]["held_out"]["pairs"]},
        }
    ]


def test_fine_tuning_sampling_and_training_are_one_command(run_here, short_report, tmp_path):
    turns = [{"role": "user", "content": "say w1"}, {"role": "assistant", "content": "w1 w1"}]
    (tmp_path / "chats.jsonl").write_text("".join(json.dumps({"messages": turns}) + "\n" for _ in range(4)))
    values = yaml.safe_load((tmp_path / "small.yaml").read_text())
    sft = {"source": "chats.jsonl", "lr": 1e-4, "batch_size": 4, "precision": "fp32"}
    (tmp_path / "small.yaml").write_text(yaml.safe_dump({**values, "sft": sft}))
    status, said, err = run_here("sft,onpolicy,train")
    assert status == 0, err
    kinds = [o["run"].rpartition("/")[2].partition("-")[0] for o in said["outcomes"] if o["status"] == "finished"]
    assert sorted(kinds) == ["onpolicy", "simpo", "start"]
    (recipe,) = (tmp_path / "runs/small").glob("onpolicy-*/pairs-*/pairs.recipe.json")
    made = next((tmp_path / "cache/sft").glob("start-*/model"))
    assert json.loads(recipe.read_text())["model"]["digest"] == weights_digest(made)


def test_a_ranker_that_fails_leaves_the_runs_unplanned_and_the_samples_stored(run_here, tmp_path):
    status, said, err = run_here("onpolicy,train", "--set", "onpolicy.ranker.settings.sharpness=0")
    assert status == 1 and [o["title"] for o in said["failed"]] == ["pairs of the start model's own answers"], err
    assert list((tmp_path / "runs/small").glob("onpolicy-*/pairs.samples.jsonl"))
    assert not list((tmp_path / "runs/small").glob("simpo-*"))


def test_a_dry_run_names_the_pairs_to_come_and_counts_their_tokens(run_here, tmp_path):
    status, said, err = run_here("onpolicy,train", "--dry-run")
    assert status == 0 and not (tmp_path / "runs").exists(), err
    assert [(job["kind"], job["left"]) for job in said["jobs"]][:1] == [("onpolicy", ["onpolicy"])]
    assert said["jobs"][0]["values"]["onpolicy.samples"] == 6 and said["cost"]["seconds"] > 0


@pytest.mark.parametrize("name", ["llama3-instruct", pytest.param("gemma2-instruct", marks=pytest.mark.slow)])
def test_a_papers_setting_rehearses_from_prompts_to_pairs(name, tmp_path, monkeypatch):
    monkeypatch.setenv("POBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("pobench.runs.execute._fork", work)
    jobs = rehearse(resolve(name, "simpo"), ("onpolicy", "train"))
    plan = make_plan(jobs, tmp_path / "runs", ("onpolicy", "train"))
    assert plan.waits and [task.kind for task in plan.tasks] == ["onpolicy"]
    (outcome,) = execute(plan)
    assert outcome.status == "finished", outcome.reason
    after = make_plan(jobs, tmp_path / "runs", ("onpolicy", "train"))
    assert after.counts is not None and min(after.counts.train, after.counts.heldout) > 0
