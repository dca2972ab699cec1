"""Packed weights: the same bits in less time, and nothing left of them behind."""

from __future__ import annotations

import contextlib
import copy
from typing import Any

import pytest
import torch
from architectures import tiny
from torch import nn

from pobench.model import packed, policy_sums
from pobench.model.device import make_accelerator
from pobench.model.generate import in_precision
from pobench.model.logps import ResponseLogps
from pobench.model.packed import pack, packed_layers, packs, product
from pobench.model.policy_sums import SumScorer
from pobench.model.products import Arithmetic
from pobench.types import Group

needs_packs = pytest.mark.skipif(not packs(), reason="this machine's torch has no packed products of the same bits")
GROUPS = [Group((1, 2, 3, 4 + i % 3), ((5, 6 + i), (7, 8, 9))) for i in range(12)]


@needs_packs
@pytest.mark.parametrize("rows", [1, 2, 7, 33, 130, 700])
def test_a_packed_product_is_that_of_the_plain_weight_to_the_bit(rows: int) -> None:
    draw = torch.Generator().manual_seed(rows)
    weight, x, bias = (torch.randn(*s, generator=draw).bfloat16() for s in ((72, 48), (rows, 48), (72,)))
    with torch.inference_mode():
        assert torch.equal(product(x, pack(weight)), x @ weight.T)
        assert torch.equal(product(x, pack(weight), bias), nn.functional.linear(x, weight, bias))


@needs_packs
def test_a_model_with_packed_layers_answers_the_same_and_has_its_own_forwards_again(monkeypatch) -> None:
    model = in_precision(tiny("llama"), "bf16").eval()
    ids = torch.arange(12).view(2, 6)
    before = [name for name, module in model.named_modules() if "forward" in module.__dict__]
    with torch.inference_mode():
        plain = model(input_ids=ids).logits
        with packed_layers(model):
            assert sum("forward" in module.__dict__ for module in model.modules()) > len(before)
            assert torch.equal(model(input_ids=ids).logits, plain)
    assert [name for name, module in model.named_modules() if "forward" in module.__dict__] == before
    monkeypatch.setattr(packed, "free_memory", lambda device: 1)
    with packed_layers(model):
        assert [name for name, module in model.named_modules() if "forward" in module.__dict__] == before


def test_only_plain_bf16_layers_on_a_processor_are_packed() -> None:
    class Scaled(nn.Linear):
        pass

    def replaced() -> nn.Linear:
        layer = nn.Linear(4, 4).bfloat16()
        layer.forward = lambda x: x  # type: ignore[method-assign]
        return layer

    suits = {"plain": nn.Linear(4, 4).bfloat16(), "fp32": nn.Linear(4, 4), "a subclass": Scaled(4, 4).bfloat16()}
    suits |= {"replaced": replaced(), "elsewhere": nn.Linear(4, 4, device="meta").bfloat16()}
    assert [name for name, layer in suits.items() if packed._suits(layer)] == ["plain"]


def test_without_such_operations_nothing_is_packed(monkeypatch) -> None:
    def none(*inputs: Any) -> Any:
        raise AttributeError("no such operation")

    monkeypatch.setattr(packed, "pack", none)
    assert not packs.__wrapped__()
    monkeypatch.setattr(packed, "pack", lambda weight: weight)
    monkeypatch.setattr(packed, "product", lambda x, weight, bias=None: nn.functional.linear(x, weight, bias) * 1.01)
    assert not packs.__wrapped__()  # other bits


@pytest.mark.parametrize("architecture", ["llama", "gemma2"])
def test_a_pass_without_gradient_narrows_every_weight_once_and_has_the_same_sums(
    architecture: str, monkeypatch
) -> None:
    def scored(model: Any) -> torch.Tensor:
        policy = ResponseLogps(model)
        accelerator = make_accelerator("bf16", cpu=True)
        return SumScorer(policy, policy.layout("shared_prefix"), accelerator, budget=6, alone=True).sums(GROUPS)

    model = tiny(architecture).eval()
    ours = scored(copy.deepcopy(model))
    monkeypatch.setattr(policy_sums, "PACKED_FROM", 10**9)
    assert torch.equal(scored(copy.deepcopy(model)), ours)
    monkeypatch.setattr(Arithmetic, "unchanged_weights", lambda self, **how: contextlib.nullcontext())
    assert torch.equal(scored(copy.deepcopy(model)), ours)
