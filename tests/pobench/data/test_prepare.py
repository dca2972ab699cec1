"""From a job to training and held-out pairs: which prompt goes where is a matter of its text."""

from __future__ import annotations

import errno
import json

import pytest

from pobench.data.chat import load_tokenizer
from pobench.data.demonstrations import tokenise
from pobench.data.order import Ratings, items_digest
from pobench.data.pairs_folder import PairsFolder
from pobench.data.prepare import prepare, read_sources, source_faults
from pobench.errors import PobenchError
from pobench.runs.plan import make_plan
from pobench.runs.stages import DEFAULT
from pobench.settings.resolve import resolve


def test_a_file_that_is_not_there_is_named_before_a_model_is_fetched(monkeypatch, tmp_path) -> None:
    def fetch(*arguments: object, **settings: object) -> None:
        raise AssertionError("the model was fetched first")

    monkeypatch.setattr("pobench.data.prepare.fetch_model", fetch)
    monkeypatch.setenv("POBENCH_CACHE", str(tmp_path / "cache"))
    (tmp_path / "junk.jsonl").write_text("[1]\n")
    for name, expected in (("none.jsonl", "no such file"), (str(tmp_path / "junk.jsonl"), "not a row")):
        with pytest.raises(PobenchError, match=expected):
            read_sources(resolve("smollm2", "dpo", data=name)[0])


def test_two_tokenizers_split_a_file_alike(setting, tmp_path) -> None:
    def split(**changes):
        prepared = prepare(resolve(str(tmp_path / "small.yaml"), "simpo", overrides=changes)[0])
        return {p.id: p for p in prepared.train}, {p.id: p for p in prepared.heldout}

    train, heldout = split()
    assert train and heldout
    other = load_tokenizer(tmp_path / "model")
    other.chat_template = "say say " + other.chat_template
    other.save_pretrained(tmp_path / "model")
    other_train, other_heldout = split()
    assert other_train.keys() == train.keys() and other_heldout.keys() == heldout.keys()
    assert all(other_train[i].prompt != train[i].prompt for i in train)  # it does write the prompts otherwise
    assert split(**{"data.seed": 1})[1].keys() != heldout.keys()


def test_ratings_are_stored_with_their_pairs_and_change_no_name(setting, tmp_path) -> None:
    job = resolve(str(tmp_path / "small.yaml"), "simpo", overrides={"data.length_bias": 1.0})[0]
    plain = prepare(job)
    rows = [json.loads(line) for line in (tmp_path / "pairs.jsonl").read_text().splitlines()]
    rated = [{**row, "score_chosen": i, "score_rejected": 0.1} for i, row in enumerate(rows) if row["id"] != "4"]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(r) + "\n" for r in [*rated, rows[4]]))
    scored = prepare(job)
    folders = [PairsFolder(tmp_path / name) for name in ("plain", "scored")]
    for folder, prepared in zip(folders, (plain, scored), strict=True):
        folder.store(prepared, {})
        assert folder.load().train == prepared.train and folder.load().heldout == prepared.heldout
    assert {p.id: p.sequences for p in plain.train} == {p.id: p.sequences for p in scored.train}
    # every label was swapped, as the rejected answer is the longer one; the ratings went with their answers
    assert {p.id: p.scores for p in scored.train} == {
        p.id: None if p.id == "4" else (0.1, float(p.id)) for p in scored.train
    }
    known = [Ratings(*folder.about["ratings"]["train"]) for folder in folders]
    assert (known[0].missing, known[1].missing, list(known[1].first_missing)) == (len(plain.train), 1, ["4"])
    assert known[0].digest != known[1].digest
    assert items_digest(scored.train) == items_digest([p._replace(scores=None) for p in scored.train])


def test_a_prompt_that_is_held_out_in_another_spelling_is_not_trained_on(setting, tmp_path) -> None:
    row = '{"prompt": "%s", "chosen": "w1", "rejected": "w2"}\n'
    rows = "".join(row % prompt for prompt in ("Say  W3", *(f"say w{i}" for i in range(20, 30))))
    (tmp_path / "held.jsonl").write_text(rows)
    job = resolve(str(tmp_path / "small.yaml"), "simpo", overrides={"data.held_out": str(tmp_path / "held.jsonl")})[0]
    prepared = prepare(job)
    assert len(prepared.heldout) == 11 and "3" not in {p.id for p in prepared.train}
    assert "1 training pairs left out" in prepared.text()


def test_every_source_that_cannot_be_had_is_named_before_anything_is_read(setting, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    given = {"model.source": "no/model", "data.source": "no.jsonl", "data.held_out": "held.jsonl"}
    changes = {**given, "answers.source": "prompts.csv", "sft.source": "talk.jsonl", "sft.lr": 1e-5}
    (job,) = resolve(str(tmp_path / "small.yaml"), "simpo", overrides=changes)
    named = ["'no/model'", "'talk.jsonl'", "'no.jsonl'", "'held.jsonl'", "'prompts.csv'"]
    with pytest.raises(PobenchError) as error:
        make_plan([job], tmp_path / "runs", DEFAULT)
    lines = str(error.value).splitlines()
    assert [next(n for n in named if n in line) for line in lines] == named
    assert [len(source_faults(job, stages)) for stages in (("sft",), ("train",), ("train", "answers"))] == [2, 3, 4]
    assert not (tmp_path / "runs").exists()


def test_a_full_disk_for_temporary_files_has_a_remedy(setting, tmp_path, monkeypatch) -> None:
    def full() -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("tempfile.TemporaryFile", full)
    with pytest.raises(PobenchError, match=r"the disk is full: .*set TMPDIR"):
        prepare(resolve(str(tmp_path / "small.yaml"), "simpo")[0])


def test_prompts_that_the_tokenizer_does_not_know_stop_a_plan(setting, tmp_path) -> None:
    (tmp_path / "prompts.jsonl").write_text('{"id": "e", "prompt": "Tell me something"}\n')
    with pytest.raises(PobenchError, match=r"prompts\.jsonl: .*% of the prompt tokens are unknown to the tokenizer"):
        make_plan(resolve(str(tmp_path / "small.yaml"), "simpo"), tmp_path / "runs", DEFAULT)


def test_conversations_that_the_tokenizer_does_not_know_stop_fine_tuning(word_tokenizer) -> None:
    rows = [(1, {"prompt": "say w1", "response": "w1 w2"}), (2, {"prompt": "say w1", "response": "Nowhere known"})]
    with pytest.raises(PobenchError, match="% of the conversation tokens are unknown"):
        tokenise(word_tokenizer, rows)
