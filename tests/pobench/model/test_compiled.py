"""Layers by torch.compile train to the losses of layers as they are."""

from __future__ import annotations

import shutil

import pytest
import torch
from architectures import some_groups, tiny

from pobench.errors import PobenchError
from pobench.model.compiled import compile_layers, is_compiled
from pobench.model.layouts import get_layout
from pobench.model.logps import ResponseLogps
from pobench.model.products import Arithmetic
from pobench.settings.schema import TrainConfig

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")


def test_every_layer_is_compiled_and_nothing_is_renamed() -> None:
    model = tiny("llama")
    names = list(model.state_dict())
    policy = ResponseLogps(model, compiled=True)
    assert is_compiled(model) and not is_compiled(tiny("llama"))
    assert [layer._compiled_call_impl is not None for layer in model.model.layers] == [True, True]
    assert list(model.state_dict()) == names
    assert type(policy.arithmetic) is Arithmetic and not any("forward" in m.__dict__ for m in model.modules())


def test_a_model_whose_layers_are_not_known_is_refused() -> None:
    with pytest.raises(PobenchError, match=r"train\.compile: true"):
        compile_layers(torch.nn.Linear(2, 2))


def test_compiled_layers_are_a_cause_of_a_result() -> None:
    assert TrainConfig(lr=1e-3).causes() != TrainConfig(lr=1e-3, compile=True).causes()


@pytest.mark.slow
@needs_compiler
def test_compiled_layers_train_to_the_same_losses(fit, pairs) -> None:
    torch.compiler.reset()
    runs = {on: fit(pairs, "dpo", folder=f"{on}", epochs=2, compile=on, micro_tokens=60)[2] for on in (False, True)}
    assert abs(runs[False][0]["loss"] - runs[False][-1]["loss"]) > 1e-2
    for ours, theirs in zip(runs[True], runs[False], strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=2e-5, abs=2e-5)
        assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-4)


@pytest.mark.slow
@needs_compiler
def test_one_compilation_serves_all_layers_and_all_widths() -> None:
    torch.compiler.reset()
    torch._dynamo.utils.counters.clear()
    policy = ResponseLogps(tiny("llama").train(), compiled=True)
    for seed in range(5):
        policy(get_layout("shared_prefix").collate(some_groups(3 + seed, seed))).sum().backward()
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 2
    assert not torch._dynamo.utils.counters["graph_break"]
