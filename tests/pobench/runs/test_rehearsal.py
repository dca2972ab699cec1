"""A rehearsal runs what the real run would, and names what would have cost it its hours: one message a fault."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
import yaml

from pobench.data.chat import Chat, tokenizer_of
from pobench.data.prepare import prepare
from pobench.data.published import DATASETS, MODELS
from pobench.data.rows import Message
from pobench.data.shapes import load_preferences
from pobench.errors import PobenchError
from pobench.model.load import count_parameters
from pobench.runs.rehearsal import rehearse
from pobench.runs.stand_ins import NOTE, small_tokenizer
from pobench.settings.read import list_settings
from pobench.settings.resolve import resolve
from pobench.sources import fetch_rows

PAPER = (
    "mistral-base",
    "mistral-instruct",
    "llama3-base",
    "llama3-instruct",
    "llama3-instruct-v0.2",
    "gemma2-instruct",
)
BILLIONS = {  # as the hub pages print the size of the safetensors files
    "alignment-handbook/zephyr-7b-sft-full": 7_241_732_096,
    "mistralai/Mistral-7B-Instruct-v0.2": 7_241_732_096,
    "princeton-nlp/Llama-3-Base-8B-SFT": 8_030_261_248,
    "meta-llama/Meta-Llama-3-8B-Instruct": 8_030_261_248,
    "google/gemma-2-9b-it": 9_241_705_984,
}


@pytest.fixture(scope="module")
def stand_ins(tmp_path_factory) -> Path:
    """Where the stand-ins are kept: they are named by what they are made from, so that tests of one setting share them."""
    return tmp_path_factory.mktemp("stand-ins")


@pytest.fixture(autouse=True)
def own_cache(stand_ins, monkeypatch) -> None:
    monkeypatch.setenv("POBENCH_CACHE", str(stand_ins))


@pytest.mark.parametrize(("name", "parameters"), BILLIONS.items())
def test_the_sizes_of_a_published_model_give_its_published_number_of_parameters(name, parameters) -> None:
    assert count_parameters(MODELS[name].config) == parameters


@pytest.mark.parametrize("setting", PAPER)
def test_a_paper_setting_is_rehearsed_with_its_own_values_on_rows_in_its_own_columns(setting) -> None:
    real = resolve(setting, "simpo,dpo,kto")
    jobs = rehearse(real)
    for job, meant in zip(jobs, real, strict=True):
        assert (job.loss, job.loss_settings, job.train.lr) == (meant.loss, meant.loss_settings, meant.train.lr)
        assert (job.data.max_length, job.data.count_header, job.data.truncation) == (
            meant.data.max_length,
            meant.data.count_header,
            meant.data.truncation,
        )
        assert job.model.note == NOTE and job.judge.name == "replay" and job.key != meant.key
        assert job.setting == f"{setting}-rehearsal"
    published = DATASETS[real[0].data.source]
    for source in (jobs[0].data.source, jobs[0].data.held_out):
        assert list(pd.read_parquet(source).columns) == list(published.columns)
    prepared = prepare(jobs[0])
    assert len(prepared.train) == 24 and len(prepared.heldout) == 8
    kinds = set(prepared.audit["fault"])
    assert "over-long pair" in kinds  # the real sets hold pairs that do not fit, and ties
    assert kinds & {"identical answers", "tie"}
    longest = max(len(p.prompt) + max(len(p.chosen), len(p.rejected)) for p in [*prepared.train, *prepared.heldout])
    assert 0.6 * jobs[0].data.max_length < longest <= jobs[0].data.max_length


def test_mistral_base_is_asked_with_the_empty_system_message_of_the_authors_prompts(tmp_path) -> None:
    (job,) = rehearse(resolve("mistral-base", "simpo"))
    chat = Chat.of(Path(job.model.source), job.model)
    # SimPO repository, eval/alpacaeval2/templates/mistral_base.txt
    asked = "<|system|>\n</s>\n<|user|>\nQ</s>\n<|assistant|>\n"
    assert chat.prompt((Message("user", "Q"),)) == asked
    assert chat.tokenizer.decode(chat.prompt_ids("Q")) == "<s>" + asked, "its template begins so, too"
    rendered = [{"role": "user", "content": "Q"}]  # as others render it
    assert chat.tokenizer.apply_chat_template(rendered, tokenize=False, add_generation_prompt=True) == asked


def test_every_shipped_setting_trains_behind_the_ids_that_it_asks_with(pobench_cli) -> None:
    status, out, err = pobench_cli("data", "inspect", "--rehearse", "--rows", "12", "--json")
    assert status == 0, err
    rows = json.loads(out)
    assert {row["setting"] for row in rows} == set(list_settings())
    assert all(row["prompt"] == row["asked"] and row["chosen"] != row["rejected"] for row in rows)
    headers = {row["setting"] for row in rows if row["counted_from"] < len(row["prompt"])}
    counted = {name for name in list_settings() if resolve(name, "simpo")[0].data.count_header}
    assert headers == counted - {"mistral-instruct"}, "whose template writes no header"
    for setting in {row["setting"] for row in rows}:  # as generation does it, from a tokenizer loaded anew
        (job,) = rehearse(resolve(setting, "simpo"))
        row = next(row for row in rows if row["setting"] == setting)
        source = load_preferences(fetch_rows(job.data.source, split=job.data.split)).preferences
        prompt = next(p.prompt for p in source if p.id == row["id"])
        assert list(Chat.of(Path(job.model.source), job.model).prompt_ids(prompt)) == row["prompt"]


@pytest.mark.parametrize(
    ("name", "written"),
    [
        ("alignment-handbook/zephyr-7b-sft-full", "<s><|user|>\nQ</s>\n<|assistant|>\nA</s>"),
        ("mistralai/Mistral-7B-Instruct-v0.2", "<s>[INST] Q [/INST]A</s>"),
        (
            "meta-llama/Meta-Llama-3-8B-Instruct",
            "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nQ<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\nA<|eot_id|>",
        ),
        (
            "google/gemma-2-9b-it",
            "<bos><start_of_turn>user\nQ<end_of_turn>\n<start_of_turn>model\nA<end_of_turn>",
        ),
    ],
)
def test_a_family_writes_its_own_turns_and_one_beginning_of_text(name, written) -> None:
    tokenizer = small_tokenizer(name)
    chat = Chat(tokenizer)
    asked = (Message("user", "Q"),)
    (found,) = chat.answered([(chat.prompt(asked), chat.conversation(asked, "A"))])
    ids = found.prompt + found.answer
    assert tokenizer.decode(ids) == written
    assert ids.count(tokenizer.bos_token_id) == 1 and not chat.adds_end
    assert chat.unknown is None, "an invented tokenizer knows every byte, and so each question that a rehearsal invents"


# ---------------------------------------------------------------- five planted faults


def fault_of(pobench_cli, tmp_path: Path, *arguments: str) -> str:
    status, out, err = pobench_cli("run", "--rehearse", "--losses", "simpo", *arguments)
    assert status == 2 and "Traceback" not in out + err
    assert not (tmp_path / "runs").exists(), "a fault is said before anything is run"
    return err


def with_template(tmp_path: Path, setting: str, template: str) -> str:
    """The path of the setting with another chat template."""
    (tmp_path / "other.jinja").write_text(template)
    given = {"extends": setting, "model": {"chat_template": str(tmp_path / "other.jinja")}}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(given))
    return "mine.yaml"


def test_a_wrong_column_name_is_caught(pobench_cli, tmp_path) -> None:
    real = {"prompt": "Why?", "chosen": "Because.", "rejects": "No."}
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps({**real, "prompt": f"Why {i}?"}) + "\n" for i in range(9)))
    err = fault_of(pobench_cli, tmp_path, "--setting", "llama3-instruct", "--data", "mine.jsonl")
    assert "'rejected' is missing; did you mean 'rejects'?" in err


def test_a_split_that_the_data_set_does_not_have_is_caught(pobench_cli, tmp_path) -> None:
    err = fault_of(pobench_cli, tmp_path, "--setting", "mistral-base", "--set", "data.split=train_pref")
    assert "has no split 'train_pref'; did you mean 'train_prefs'?" in err


CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def test_another_familys_template_is_caught(pobench_cli, tmp_path) -> None:
    err = fault_of(pobench_cli, tmp_path, "--setting", with_template(tmp_path, "mistral-instruct", CHATML))
    assert err.count("\n") == 1 and "wrong template: it writes <|im_end|>, <|im_start|>" in err
    assert "The model's own marks are </s>, <s>, [/INST], [INST]" in err


def test_a_sequence_that_does_not_fit_is_caught(pobench_cli, tmp_path) -> None:
    err = fault_of(pobench_cli, tmp_path, "--setting", "llama3-base", "--set", "data.max_length=9000")
    assert "data.max_length: 9000 tokens do not fit; the context of princeton-nlp/Llama-3-Base-8B-SFT is 8192" in err
    err = fault_of(pobench_cli, tmp_path, "--setting", "gemma2-instruct", "--set", "answers.max_new_tokens=8000")
    assert err.count("\n") == 1 and "an answer of 8000 do not fit" in err


def test_a_missing_stop_token_is_caught(pobench_cli, tmp_path) -> None:
    endless = MODELS["meta-llama/Meta-Llama-3-8B-Instruct"].template.replace(" + '<|eot_id|>'", "")
    err = fault_of(pobench_cli, tmp_path, "--setting", with_template(tmp_path, "llama3-instruct", endless))
    assert err.count("\n") == 1 and "missing stop token" in err and "the model's own template writes <|eot_id|>" in err


def test_a_bad_hyperparameter_is_caught(pobench_cli, tmp_path) -> None:
    err = fault_of(
        pobench_cli, tmp_path, "--setting", "llama3-base", "--set", "simpo.beta=0.1", "--set", "simpo.lr=6e-4"
    )
    assert "simpo.beta: 0.1 is more than ten times outside the published range (2 to 2.5)" in err
    assert "train.lr: 0.0006 (for simpo) is more than ten times outside the published range (3e-07 to 1e-06)" in err
    assert "simpo.beta" in fault_of(pobench_cli, tmp_path, "--setting", "llama3-base", "--set", "simpo.beta=-1")


# ---------------------------------------------------------------- the whole of it


def test_a_model_of_which_nothing_is_known_is_refused_with_the_remedy() -> None:
    changes = {"simpo.beta": 900, "answers.source": "someone/prompts"}
    with pytest.raises(PobenchError, match="name a local folder with --model") as error:
        rehearse(resolve("mistral-base", "simpo", model="someone/a-model", overrides=changes))
    assert "simpo.beta: 900 is more than ten times outside" in str(error.value), "all faults at once"
    assert "--set answers.source=FILE" in str(error.value)


def test_a_model_at_hand_is_rehearsed_thin_with_its_own_tokenizer(setting, tmp_path) -> None:
    name = str(tmp_path / "small.yaml")
    with pytest.raises(PobenchError, match=r"2048 tokens do not fit; the context of .* is 64"):
        rehearse(resolve(name, "simpo"))
    (job,) = rehearse(resolve(name, "simpo", overrides={"data.max_length": 64, "data.max_prompt_length": 50}))
    assert tokenizer_of(Path(job.model.source), job.model).eos_token == "<|im_end|>"
    assert job.judge.name == "verifiable", "a judge that is free and offline stays"
    assert prepare(job).train


@pytest.mark.slow
def test_a_rehearsal_goes_from_training_to_a_report_of_its_own(pobench_cli, tmp_path) -> None:
    command = ("run", "--rehearse", "--losses", "simpo,kto", "--setting", "gemma2-instruct", "--json")
    status, out, err = pobench_cli(*command)
    assert status == 0, err
    summary = json.loads(out)
    assert [o["status"] for o in summary["outcomes"]] == ["finished"] * 3
    assert Path(summary["report"]) == Path("runs/rehearsal/report/report.html")
    folder = tmp_path / "runs/rehearsal" / summary["outcomes"][1]["run"]
    assert {p.name for p in folder.iterdir()} >= {"steps.jsonl", "trained.json", "shown.json", "scores.json"}
    (verdicts,) = map(pd.read_parquet, folder.glob("judge-*/verdicts.parquet"))
    assert (verdicts["judge"] == "replay").all()
    status, _, err = pobench_cli("analyze")
    assert status == 2 and "no stored runs" in err, "rehearsals are no runs of the report"
