"""FlashAttention over padded rows, behind the same proof as every layout. A stand-in with its interface computes here; its own
kernels need a GPU."""

from __future__ import annotations

import copy
import sys
from types import ModuleType
from typing import Any

import pytest
import torch
from architectures import tiny
from torch.nn.functional import scaled_dot_product_attention

from pobench.errors import PobenchError
from pobench.model import flash
from pobench.model.choose_layout import choose_layout
from pobench.model.flex import use_flex
from pobench.model.logps import ResponseLogps
from pobench.runs.plan import make_plan
from pobench.settings.resolve import resolve
from pobench.types import Group


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> list[torch.dtype]:
    """A stand-in for `flash_attn_func`; the types of its calls."""
    calls: list[torch.dtype] = []

    def flash_attn_func(q: Any, k: Any, v: Any, softmax_scale: Any, causal: bool) -> Any:
        assert causal and q.dtype in (torch.bfloat16, torch.float16), "its kernels know no fp32"
        calls.append(q.dtype)
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))
        y = scaled_dot_product_attention(q, k, v, is_causal=True, scale=softmax_scale, enable_gqa=True)
        return y.transpose(1, 2)

    module = ModuleType("flash_attn")
    module.flash_attn_func = flash_attn_func  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "flash_attn", module)
    return calls


@pytest.fixture
def policy(start_model: Any) -> ResponseLogps:
    policy = ResponseLogps(copy.deepcopy(start_model))
    use_flex(policy.model, flash.NAME)  # behind the layers: a policy on a processor takes its attention by parts
    return policy


def test_padded_rows_go_through_its_kernels_once_they_are_proven(policy, pairs, kernel) -> None:
    groups = [*map(Group.of, pairs)]
    name, reason = choose_layout(policy, groups)
    assert name == "padded" and policy.attention == "flash" and kernel
    assert reason.startswith("by FlashAttention, equals one sequence at a time to ")
    del kernel[:]
    batch = policy.layout(name).collate(groups)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        by_flash = policy(batch)
    assert len(kernel) == policy.model.config.num_hidden_layers
    with torch.no_grad():
        exact = policy(batch)  # fp32: by the model's own kind
    assert len(kernel) == policy.model.config.num_hidden_layers
    tokens = torch.tensor([len(r) for g in groups for r in g.responses])
    assert ((by_flash - exact).abs() / tokens).max() < 5e-2


def test_kernels_that_compute_something_else_are_not_used_and_the_reason_says_so(policy, pairs, monkeypatch) -> None:
    module = ModuleType("flash_attn")
    module.flash_attn_func = lambda q, k, v, **how: q * 3  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "flash_attn", module)
    name, reason = choose_layout(policy, [*map(Group.of, pairs)])
    assert name == "padded" and policy.attention == "matrices" and "padded by flash: differs by" in reason


def test_kernels_that_fail_are_not_used(policy, pairs, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "flash_attn", None)  # an import that fails
    name, reason = choose_layout(policy, [*map(Group.of, pairs)])
    assert name == "padded" and policy.attention == "matrices" and "padded by flash: " in reason


def test_a_model_that_makes_a_mask_for_every_call_is_refused() -> None:
    with pytest.raises(PobenchError, match="this model's attention is eager"):
        use_flex(tiny("gemma2"), flash.NAME)


def test_what_this_machine_or_the_settings_lack_is_listed_before_anything_runs(setting, tmp_path) -> None:
    values = {"model.attention": "flash_attention_2", "train.layout": "shared_prefix", "train.precision": "fp32"}
    jobs = resolve(str(tmp_path / "small.yaml"), "simpo", overrides=values)
    with pytest.raises(PobenchError) as refused:
        make_plan(jobs, tmp_path / "runs")
    told = str(refused.value)
    assert "flash_attention_2 needs a GPU" in told or torch.cuda.is_available()
    assert "shared_prefix needs masks" in told and "computes in bf16; allowed here: auto, bf16" in told
