"""Liger's kernels behind the same proof as every layout. A stand-in with its interface computes here; its own need a GPU."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from types import MethodType, ModuleType
from typing import Any

import pytest
import torch
from transformers.models.llama import modeling_llama

from pobench.errors import PobenchError
from pobench.model import liger
from pobench.model.choose_layout import choose_layout
from pobench.model.device import make_accelerator
from pobench.model.logps import ResponseLogps
from pobench.model.policy_sums import sum_scorer
from pobench.runs.plan import make_plan
from pobench.settings.resolve import resolve
from pobench.settings.schema import ModelConfig, TrainConfig
from pobench.types import Group


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], list[int]]:
    """Installs a stand-in whose norms and MLPs are `factor` times too large; the number of their calls is the list's length."""

    def install(factor: float) -> list[int]:
        calls: list[int] = []

        def norm(self: Any, hidden: Any) -> Any:
            calls.append(1)
            return factor * type(self).forward(self, hidden)

        def mlp(self: Any, x: Any) -> Any:
            calls.append(1)
            return factor * self.down_proj(torch.nn.functional.silu(self.gate_proj(x)) * self.up_proj(x))

        norm.__module__, mlp.__module__ = "liger_kernel.transformers.rms_norm", "liger_kernel.transformers.swiglu"

        def apply(
            model: Any, rope: bool, cross_entropy: bool, fused_linear_cross_entropy: bool, rms_norm: bool
        ) -> None:
            assert rms_norm and not (rope or cross_entropy or fused_linear_cross_entropy)
            if model.config.model_type != "llama":
                return
            modeling_llama.LlamaRMSNorm = type("LigerRMSNorm", (), {})  # as the package does
            for module in model.modules():
                if (kind := type(module).__name__) in ("LlamaRMSNorm", "LlamaMLP"):
                    module.__dict__["forward"] = MethodType(norm if kind == "LlamaRMSNorm" else mlp, module)

        package, transformers = ModuleType("liger_kernel"), ModuleType("liger_kernel.transformers")
        transformers._apply_liger_kernel_to_instance = apply  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "liger_kernel", package)
        monkeypatch.setitem(sys.modules, "liger_kernel.transformers", transformers)
        return calls

    return install


def policy_of(start_model: Any) -> ResponseLogps:
    model = copy.deepcopy(start_model)
    liger.use_kernels(model, "liger")
    return ResponseLogps(model)


def test_norms_and_mlps_go_through_its_kernels_once_they_are_proven(start_model, pairs, kernels) -> None:
    calls, groups, own = kernels(1.0), [*map(Group.of, pairs)], modeling_llama.LlamaRMSNorm
    policy = policy_of(start_model)
    assert modeling_llama.LlamaRMSNorm is own, "models that are made later are of their own classes"
    name, reason = choose_layout(policy, groups)
    assert policy.kernels == "liger" and policy.has_exchanged_layers, "what it leaves is exchanged as ever"
    assert reason.startswith("with Liger's kernels, equals one sequence at a time to ")
    del calls[:]
    batch = policy.layout(name).collate(groups)
    sums = policy(batch)
    assert len(calls) == 3 * policy.model.config.num_hidden_layers + 1
    with torch.no_grad(), policy.untouched():
        policy.model(input_ids=batch.input_ids[:1])
    assert len(calls) == 3 * policy.model.config.num_hidden_layers + 1 and policy.kernels == "liger"
    assert torch.allclose(sums, ResponseLogps(copy.deepcopy(start_model))(batch), atol=1e-4)


def test_kernels_that_compute_something_else_are_not_used_and_a_sentence_says_so(start_model, pairs, kernels) -> None:
    kernels(1.1)
    policy, told = policy_of(start_model), list[str]()
    scorer = sum_scorer(policy, [*map(Group.of, pairs)], TrainConfig(lr=1), make_accelerator("fp32"), told.append)
    assert policy.kernels == "none" and policy.attention == "parts" and policy.has_exchanged_layers
    assert scorer.layout.name == "shared_prefix" and told[0].startswith(
        "the model's own norms and MLPs, not those of liger: "
    )
    assert "shared_prefix by parts with Liger's kernels: differs by" in told[0]


def test_an_architecture_without_kernels_is_refused(start_model, kernels) -> None:
    kernels(1.0)
    model = copy.deepcopy(start_model)
    model.config.model_type = "bloom"
    with pytest.raises(PobenchError, match="liger-kernel has none for 'bloom'"):
        liger.use_kernels(model, "liger")


def test_what_this_machine_lacks_for_kernels_is_listed_before_anything_runs(setting, tmp_path) -> None:
    values = {"model.kernels": "liger", "train.compile": True}
    with pytest.raises(PobenchError) as refused:
        make_plan(resolve(str(tmp_path / "small.yaml"), "simpo", overrides=values), tmp_path / "runs")
    told = str(refused.value)
    assert "model.kernels: liger needs a GPU" in told or torch.cuda.is_available()
    assert "train.compile: it compiles the layers that liger replaces" in told


def test_kernels_are_a_cause_of_results_where_they_are_named_and_else_leave_names_as_they_were() -> None:
    plain, named = ModelConfig(source="x"), ModelConfig(source="x", kernels="liger")
    assert plain.layers == {"attention": "auto"} and "kernels" not in plain.causes()
    assert named.layers == {"attention": "auto", "kernels": "liger"} and named.causes()["kernels"] == "liger"
