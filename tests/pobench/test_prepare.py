"""From a job to training and held-out pairs: which prompt goes where is a matter of its text."""

from __future__ import annotations

from pobench.config import resolve
from pobench.prepare import prepare
from pobench.sources import load_tokenizer


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


def test_a_prompt_that_is_held_out_in_another_spelling_is_not_trained_on(setting, tmp_path) -> None:
    rows = '{"prompt": "Say  W3", "chosen": "w1", "rejected": "w2"}\n'
    (tmp_path / "held.jsonl").write_text(rows)
    job = resolve(str(tmp_path / "small.yaml"), "simpo", overrides={"data.held_out": str(tmp_path / "held.jsonl")})[0]
    prepared = prepare(job)
    assert len(prepared.heldout) == 1 and "3" not in {p.id for p in prepared.train}
    assert "1 training pairs left out" in prepared.text()
