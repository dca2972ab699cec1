"""LoRA: a small part is trained, the frozen rest is the reference, and nothing is computed for what does not move."""

from __future__ import annotations

import copy
import json
import math
import shutil

import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM

from pobench.errors import PobenchError
from pobench.model import adapters, logps
from pobench.model.choose_layout import choose_layout, plain_logps
from pobench.model.head import _Head
from pobench.model.layouts import get_layout
from pobench.model.load import load_base
from pobench.model.logps import ResponseLogps
from pobench.results.load import load_frames
from pobench.runs.plan import make_plan
from pobench.settings.resolve import resolve
from pobench.settings.schema import AdapterConfig, TrainConfig
from pobench.training import checkpoint, reference
from pobench.types import Group

pytest.importorskip("peft", reason="pip install 'pobench[peft]'")
SMALL = {"r": 4, "alpha": 8}


def sums(model, pairs) -> torch.Tensor:
    with torch.no_grad():
        return ResponseLogps(model)(get_layout("shared_prefix").collate([Group.of(p) for p in pairs]))


def trained(model) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


def frozen(model) -> dict[str, torch.Tensor]:
    return {n.replace(".base_layer", ""): p.detach() for n, p in model.named_parameters() if not p.requires_grad}


def test_a_fresh_adapter_leaves_every_sum_as_it_was_to_the_bit(start_model, pairs) -> None:
    before = sums(start_model, pairs)
    model = copy.deepcopy(start_model)
    adapters.attach(model, AdapterConfig(**SMALL), seed=1)
    assert torch.equal(sums(model, pairs), before) and before.std() > 1


def test_a_trained_adapter_gives_the_sums_of_the_models_own_logits_and_switched_off_the_references(
    start_model, pairs
) -> None:
    model = copy.deepcopy(start_model)
    adapted = adapters.attach(model, AdapterConfig(**SMALL), seed=1)
    torch.manual_seed(2)
    with torch.no_grad():
        for parameter in trained(model):
            model.get_parameter(parameter).normal_(std=0.2)
    groups = [Group.of(p) for p in pairs]
    assert choose_layout(ResponseLogps(model), groups)[0] == "shared_prefix"
    plain = torch.cat([plain_logps(model, g) for g in groups])
    torch.testing.assert_close(sums(model, pairs).double(), plain, atol=1e-4, rtol=0)
    before = sums(start_model, pairs)
    assert (sums(model, pairs) - before).abs().mean() > 0.1
    with adapters.disabled(adapted):
        assert torch.equal(sums(model, pairs), before)


@pytest.mark.parametrize("loss", ["simpo", "dpo", "kto", "orpo"])
def test_neither_micro_batches_nor_layout_change_a_step_of_an_adapter(loss, fit, pairs) -> None:
    changes = ({"micro_tokens": 10_000}, {"micro_tokens": 40}, {"micro_tokens": 60, "layout": "padded"})
    results = [
        fit(pairs, loss, folder=f"run{i}", batch_size=8, max_grad_norm=1e9, lr=1e-2, adapter=SMALL, **change)[2]
        for i, change in enumerate(changes)
    ]
    for rows in results[1:]:
        for row, first in zip(rows, results[0], strict=True):
            for name in ("loss", "rewards/margins", "logps/chosen", "grad_norm"):
                assert row[name] == pytest.approx(first[name], rel=2e-5, abs=2e-5), name


def test_nothing_but_the_adapter_moves(fit, pairs, start_model) -> None:
    model, _, rows = fit(pairs, "dpo", epochs=4, lr=1e-2, adapter=SMALL)
    assert all(".lora_" in name for name in trained(model))
    start = {name: p.detach() for name, p in start_model.named_parameters()}
    assert frozen(model).keys() == start.keys()
    assert all(torch.equal(p, start[name]) for name, p in frozen(model).items())
    assert rows[-1]["loss"] < rows[0]["loss"]


def test_policy_and_reference_are_one_before_the_first_step(fit, pairs) -> None:
    _, result, rows = fit(pairs, "dpo", adapter=SMALL)
    assert result.step0_gap < 1e-6
    assert rows[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)


def test_the_random_factor_depends_on_the_seed_alone(start_model) -> None:
    found = []
    for seed, elsewhere in ((1, 5), (1, 6), (2, 5)):
        torch.manual_seed(elsewhere)
        model = copy.deepcopy(start_model)
        adapters.attach(model, AdapterConfig(**SMALL), seed)
        found.append(torch.cat([p.flatten() for p in trained(model).values()]))
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])


def test_a_killed_adapter_run_resumes_bit_for_bit_from_its_few_weights(fit, pairs, tmp_path) -> None:
    options = {"epochs": 3, "checkpoint_seconds": 0, "adapter": SMALL, "lr": 1e-2}
    undisturbed, _, _ = fit(pairs, "dpo", folder="a", **options)

    class Killed(BaseException):
        pass

    def log(row):
        if row["step"] == 5:
            raise Killed

    with pytest.raises(Killed):
        fit(pairs, "dpo", folder="b", log=log, **options)
    saved = checkpoint.latest(tmp_path / "b")
    names = [name for file in saved.glob("weights-*.safetensors") for name in load_file(file)]
    assert names and all(".lora_" in name for name in names)
    resumed, _, rows = fit(pairs, "dpo", folder="b", **options)
    assert len(rows) < 9
    assert all(torch.equal(p, trained(resumed)[name]) for name, p in trained(undisturbed).items())


def test_a_frozen_head_is_passed_once_and_pulls_as_a_trained_one_does(start_model, pairs, monkeypatch) -> None:
    passes = []
    logits = _Head.logits

    def counted(self, *arguments, **how):
        passes.append(1)
        return logits(self, *arguments, **how)

    monkeypatch.setattr(_Head, "logits", counted)
    monkeypatch.setattr(logps, "KEPT_BYTES", {})  # a trained head keeps nothing and passes every tile again
    batch = get_layout("shared_prefix").collate([Group.of(p) for p in pairs])
    tiles = math.ceil(start_model.config.vocab_size / 16)
    weight = torch.linspace(-1, 1, batch.responses)
    grads = []
    for freeze in (False, True):
        model = copy.deepcopy(start_model)
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())  # untied
        model.lm_head.weight.requires_grad_(not freeze)
        passes.clear()
        (ResponseLogps(model, tile=16)(batch) * weight).sum().backward()
        assert len(passes) == (tiles if freeze else 2 * tiles)
        assert (model.lm_head.weight.grad is None) == freeze
        grads.append(torch.cat([p.grad.flatten() for p in model.model.parameters()]))
    assert grads[0].norm() > 1e-2
    torch.testing.assert_close(grads[1], grads[0], rtol=1e-4, atol=1e-5 * float(grads[0].norm()))


def test_frozen_weights_may_be_bf16_while_the_trained_ones_are_fp32(setting, tmp_path, pairs) -> None:
    config = AdapterConfig(**SMALL, base_precision="bf16")
    model = load_base(tmp_path / "model", config)
    adapters.attach(model, config, seed=0)
    assert {p.dtype for p in frozen(model).values()} == {torch.bfloat16}
    assert {p.dtype for p in trained(model).values()} == {torch.float32}
    total = ResponseLogps(model)(get_layout("shared_prefix").collate([Group.of(p) for p in pairs]))
    total.sum().backward()
    assert total.dtype == torch.float32 and all(p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)


def test_four_bit_weights_stay_as_they_are_while_their_adapter_learns(tmp_path, pairs) -> None:
    pytest.importorskip("bitsandbytes", reason="pip install 'pobench[qlora]'")
    wide = LlamaConfig(vocab_size=61, hidden_size=64, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2)
    LlamaForCausalLM(wide).save_pretrained(tmp_path / "wide")
    config = AdapterConfig(**SMALL, quantize="nf4")
    model = load_base(tmp_path / "wide", config).train()
    before = sums(model, pairs)
    adapters.attach(model, config, seed=0)
    model.train()
    assert torch.equal(sums(model, pairs), before)
    assert any(type(p).__name__ == "Params4bit" for p in model.parameters())
    total = ResponseLogps(model)(get_layout("shared_prefix").collate([Group.of(p) for p in pairs]))
    total.sum().backward()
    moved = [p for p in model.parameters() if p.requires_grad]
    assert {p.dtype for p in moved} == {torch.float32}
    assert all(p.grad.isfinite().all() for p in moved) and any(p.grad.abs().max() > 0 for p in moved)


# ---------------------------------------------------------------- whole jobs


def test_an_adapter_job_takes_the_reference_that_full_training_left(work_here, monkeypatch) -> None:
    stored = []
    finish = reference._finish
    monkeypatch.setattr(
        reference, "_finish", lambda folder, sums, *about: (stored.append(len(sums)), finish(folder, sums, *about))
    )
    work_here("dpo", ("train", "heldout"))
    assert sum(stored) > 0
    stored.clear()
    folder = work_here("dpo", ("train", "heldout"), train__adapter__r=4, train__lr=1e-2)
    assert stored == []
    assert {p.name for p in (folder / "model").glob("*adapter*")} == {
        "adapter_config.json",
        "adapter_model.safetensors",
    }
    assert not (folder / "model" / "model.safetensors").exists()
    folder = work_here("dpo", ("train", "heldout"), train__adapter__r=4, train__adapter__base_precision="bf16")
    assert sum(stored) > 0  # other arithmetic, other sums
    # a fresh adapter changes no bit of its base's sums, so the policy starts at its reference
    assert json.loads((folder / "trained.json").read_text())["step0_gap"] < 1e-6


def test_what_is_stored_computes_what_was_trained(work_here, tmp_path, start_model) -> None:
    merged = work_here("simpo", train__adapter__merge=True, train__adapter__r=2, train__lr=1e-2, train__epochs=3)
    small = work_here("simpo", train__adapter__merge=False, train__adapter__r=2, train__lr=1e-2, train__epochs=3)
    frames = load_frames(tmp_path / "runs")
    held = {run: rows.set_index("pair")["chosen_logp"] for run, rows in frames["heldout"].groupby("run")}
    a, b = (held[f"small/{folder.name}"] for folder in (merged, small))
    start = held[frames["runs"].loc[frames["runs"]["kind"] == "start", "run"].iloc[0]]
    assert a.to_numpy() == pytest.approx(b.to_numpy(), abs=1e-4)
    assert (a - start).abs().min() > 1e-3
    about = json.loads((small / "model/adapter_config.json").read_text())
    assert about["base_model_name_or_path"] == str(tmp_path / "model") and about["r"] == 2
    assert (merged / "model/model.safetensors").is_file() and len(list(small.glob("answers-*/answers.parquet"))) == 1
    whole = sum(p.numel() for p in start_model.parameters())
    assert sum(t.numel() for t in load_file(small / "model/adapter_model.safetensors").values()) < whole


def test_a_lost_cache_is_filled_by_the_same_model_with_its_adapter_off(work_here, tmp_path, monkeypatch) -> None:
    from pobench.runs import context

    folder = work_here("dpo", ("train",), train__adapter__r=4, train__lr=1e-2)
    shutil.rmtree(tmp_path / "cache" / "reference")
    loaded = []
    monkeypatch.setattr(context, "load_base", lambda *a, **k: (loaded.append(a[0]), load_base(*a, **k))[1])
    work_here("dpo", ("heldout",), train__adapter__r=4, train__lr=1e-2)
    assert len(loaded) == 2  # the reference pass, and this run's base: no second one beside it
    frames = load_frames(tmp_path / "runs")
    start = frames["runs"].loc[frames["runs"]["kind"] == "start", "run"].iloc[0]
    held = {run: rows.set_index("pair") for run, rows in frames["heldout"].groupby("run")}
    mine = held[f"small/{folder.name}"]
    assert mine["reference_chosen_logp"].to_numpy() == pytest.approx(held[start]["chosen_logp"].to_numpy(), abs=1e-5)
    assert (mine["chosen_logp"] - mine["reference_chosen_logp"]).abs().max() > 1e-3


# ---------------------------------------------------------------- faults


def test_every_fault_of_an_adapter_is_named_in_one_message(setting, tmp_path) -> None:
    overrides = {
        "train.adapter.r": 0,
        "train.adapter.dropout": 0.1,
        "train.adapter.quantise": "nf4",
        "train.adapter.target_modules": 3,
        "train.micro_tokens": "many",
        "train.gradient_checkpointing": "perhaps",
    }
    with pytest.raises(PobenchError) as caught:
        resolve(str(tmp_path / "small.yaml"), "dpo", overrides=overrides)
    for expected in (
        "train.adapter.r: got 0",
        "train.adapter.dropout: got 0.1; allowed: 0.",
        "train.adapter.quantise: unknown key; did you mean 'quantize'? (Of the frozen weights.) Known: r, alpha",
        "train.adapter.target_modules: got 3; allowed: all-linear, or names",
        "train.micro_tokens: got 'many'; allowed: a whole number of tokens, from 1 to 1,000,000,000, or auto",
        "train.gradient_checkpointing: got 'perhaps'; allowed: true, false, auto",
    ):
        assert expected in str(caught.value)
    assert len(str(caught.value).splitlines()) == len(overrides)


def test_what_an_adapter_needs_is_said_before_anything_is_written(setting, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(adapters.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    jobs = resolve(str(tmp_path / "small.yaml"), "dpo", overrides={"train.adapter.quantize": "nf4"})
    with pytest.raises(PobenchError) as caught:
        make_plan(jobs, tmp_path / "runs", ("train",))
    for expected in ("pip install 'pobench[peft]'", "pip install 'pobench[qlora]'", "needs a GPU"):
        assert expected in str(caught.value)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("targets", "said"), [(["nothing"], "linear layers are .*q_proj"), (["lm_head"], "head stays")]
)
def test_layers_that_cannot_be_adapted_are_named(targets, said, start_model) -> None:
    with pytest.raises(PobenchError, match=said):
        adapters.attach(copy.deepcopy(start_model), AdapterConfig(target_modules=targets), seed=0)


def test_an_adapter_is_a_cause_of_a_result() -> None:
    assert TrainConfig(lr=1e-5).causes() != TrainConfig(lr=1e-5, adapter=AdapterConfig()).causes()
