"""A LoRA adapter as the start model: training, reference, answers and an adapter on top see the base with it."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from pobench.errors import PobenchError
from pobench.model import adapters
from pobench.model.layouts import get_layout
from pobench.model.load import load_model
from pobench.model.logps import ResponseLogps
from pobench.results.load import load_frames
from pobench.settings.schema import AdapterConfig
from pobench.sources import cached_model, fetch_model, weights_digest
from pobench.types import Group

pytest.importorskip("peft", reason="pip install 'pobench[peft]'")


def sums(model: Any, pairs: list[Any]) -> torch.Tensor:
    with torch.no_grad():
        return ResponseLogps(model)(get_layout("shared_prefix").collate([Group.of(p) for p in pairs]))


@pytest.fixture
def adapter(setting: Any, start_model: Any, tmp_path: Path, monkeypatch: Any) -> Path:
    """A trained adapter over the small setting's model."""
    monkeypatch.setenv("POBENCH_CACHE", str(tmp_path / "cache"))
    return stored(start_model, tmp_path / "adapter", seed=1)


def stored(start_model: Any, folder: Path, seed: int, base: str = "../model") -> Path:
    adapted = adapters.attach(copy.deepcopy(start_model), AdapterConfig(r=4, alpha=8), seed)
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if ".lora_" in name:
                weight.normal_(std=0.2)
    adapters.save(adapted, folder, base)
    return folder


def about(adapter: Path, **changes: Any) -> None:
    file = adapter / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def test_the_start_model_is_the_base_with_the_adapter_merged(adapter, start_model, pairs, tmp_path) -> None:
    assert cached_model(str(adapter)) is None  # a dry run makes nothing
    folder = fetch_model(str(adapter))
    model = load_model(folder, dtype=torch.float32)
    beside = copy.deepcopy(start_model)
    from peft import PeftModel

    torch.testing.assert_close(
        sums(model, pairs), sums(PeftModel.from_pretrained(beside, adapter).base_model.model, pairs), atol=1e-4, rtol=0
    )
    assert (sums(model, pairs) - sums(start_model, pairs)).abs().mean() > 0.1
    assert (folder / "tokenizer.json").is_file()
    assert fetch_model(str(adapter)) == folder == cached_model(str(adapter))
    other = fetch_model(str(stored(start_model, tmp_path / "other", seed=2)))
    assert len({weights_digest(f) for f in (folder, other, tmp_path / "model")}) == 3
    on_top = stored(start_model, tmp_path / "second", seed=3, base="../adapter")
    assert weights_digest(fetch_model(str(on_top))) != weights_digest(folder)


def test_the_reference_is_the_start_model_with_its_adapter(adapter, work_here, pairs, tmp_path) -> None:
    whole = work_here("dpo", ("train", "heldout", "answers"), model__source=str(adapter))
    small = work_here("dpo", ("train", "heldout"), model__source=str(adapter), train__adapter__r=2)
    plain = work_here("dpo", ("train", "heldout"))
    for folder in (whole, small):
        first = json.loads((folder / "steps.jsonl").read_text().splitlines()[0])
        assert first["loss"] == pytest.approx(math.log(2), abs=1e-5)
    held = {run: rows.set_index("pair") for run, rows in load_frames(tmp_path / "runs")["heldout"].groupby("run")}
    a, b, c = (held[f"small/{folder.name}"]["reference_chosen_logp"] for folder in (whole, small, plain))
    assert a.to_numpy() == pytest.approx(b.to_numpy(), abs=1e-5)
    assert (a - c).abs().min() > 1e-3
    assert list(whole.glob("answers-*/answers.parquet"))
    base = json.loads((small / "model/adapter_config.json").read_text())["base_model_name_or_path"]
    assert base == str(fetch_model(str(adapter)))  # what the new adapter was trained on, whole
    fetch_model(str(small / "model"))


def test_a_dry_run_plans_an_adapter_that_was_never_merged_and_writes_nothing(adapter, pobench_cli, tmp_path) -> None:
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    model = ("--model", str(adapter))
    status, out, err = pobench_cli("run", "--setting", "small.yaml", "--losses", "dpo", *model, "--dry-run")
    assert status == 0, err
    assert "train" in out and "not known" not in out, "the base has as many weights as the model merged from it"
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_a_base_that_is_elsewhere_is_asked_for_and_can_be_named(adapter, tmp_path) -> None:
    about(adapter, base_model_name_or_path="/home/somebody/models/base")
    with pytest.raises(PobenchError, match=r"is an adapter \(base '/home/somebody/.*name the base with model\.base"):
        fetch_model(str(adapter))
    assert fetch_model(str(adapter), base=str(tmp_path / "model")).is_dir()
    about(adapter, base_model_name_or_path=str(adapter))
    with pytest.raises(PobenchError, match="is the adapter itself"):
        fetch_model(str(adapter))
    with pytest.raises(PobenchError, match=r"model\.base: .* is a whole model, no adapter"):
        fetch_model(str(tmp_path / "model"), base=str(tmp_path / "model"))


def test_an_adapter_that_does_not_fit_its_base_is_refused(adapter) -> None:
    file = adapter / "adapter_model.safetensors"
    weights = load_file(file)
    first = next(iter(weights))
    save_file({k: v for k, v in weights.items() if k != first}, file)
    with pytest.raises(PobenchError, match="1 of its weights are missing"):
        fetch_model(str(adapter))
    save_file({**weights, "base_model.model.model.layers.9.q.lora_A.weight": torch.zeros(4, 4)}, file)
    with pytest.raises(PobenchError, match="1 of its weights are unknown to the base"):
        fetch_model(str(adapter))
    save_file({**weights, first: torch.zeros(3, 3)}, file)
    with pytest.raises(PobenchError, match="does not fit its base"):
        fetch_model(str(adapter))
    file.unlink()
    with pytest.raises(PobenchError, match=r"missing: adapter_model\.safetensors"):
        fetch_model(str(adapter))


def test_the_template_beside_the_adapter_counts_and_a_whole_model_beside_it_is_refused(adapter, tmp_path) -> None:
    before = fetch_model(str(adapter))
    (adapter / "chat_template.jinja").write_text("{{ messages[0].content }}")
    (adapter / "config.json").write_text(
        (tmp_path / "model/config.json").read_text()
    )  # of the base, as some trainers do
    after = fetch_model(str(adapter))
    assert after != before and (after / "chat_template.jinja").read_text() == "{{ messages[0].content }}"
    (adapter / "model.safetensors").write_bytes((tmp_path / "model/model.safetensors").read_bytes())
    with pytest.raises(PobenchError, match="a whole model and an adapter"):
        fetch_model(str(adapter))


@pytest.mark.parametrize(
    ("changes", "fault"),
    [({"task_type": "SEQ_CLS"}, "trained for SEQ_CLS"), ({"peft_type": "PROMPT_TUNING"}, "cannot be merged")],
)
def test_an_adapter_of_another_kind_is_refused_by_name(adapter, changes, fault) -> None:
    about(adapter, **changes)
    with pytest.raises(PobenchError, match=fault):
        fetch_model(str(adapter))


def test_embeddings_that_were_trained_beside_it_make_room_for_added_tokens(adapter, start_model) -> None:
    file = adapter / "adapter_model.safetensors"
    rows = start_model.get_input_embeddings().weight
    added = torch.cat([rows.detach(), torch.ones(2, rows.shape[1])])
    names = ["base_model.model.model.embed_tokens.weight", "base_model.model.lm_head.weight"]
    save_file({**load_file(file), **{name: added.clone() for name in names}}, file)
    model = load_model(fetch_model(str(adapter)), dtype=torch.float32)
    assert torch.equal(model.get_input_embeddings().weight, added) and model.config.vocab_size == len(added)
