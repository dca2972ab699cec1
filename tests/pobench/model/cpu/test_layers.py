"""Exchanged layers give the numbers of the layers that they replace, keep less, and leave alone what they do not know."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from architectures import CONFIGS, some_groups, tiny
from torch import nn
from transformers import AutoModelForCausalLM, Phi3Config

from pobench.model.cpu.exchange import exchange_layers
from pobench.model.cpu.layers import NormFactors, _GatedMlp, kept_input, mark_as_norm
from pobench.model.layouts import get_layout
from pobench.model.logps import ResponseLogps
from pobench.model.products import Arithmetic
from pobench.training.memory import checkpoint_activations

EXCHANGED = {  # of the modules of one layer and of the last norm: linear layers, MLPs, attentions, norms
    "llama": (7, 1, 1, 3),
    "mistral with a sliding window": (7, 1, 1, 3),
    "mistral without": (7, 1, 1, 3),
    "gemma2": (7, 1, 0, 5),  # its scores are capped
    "qwen2": (7, 1, 0, 3),  # queries, keys and values have a bias
    "qwen2 with a sliding window": (7, 1, 0, 3),
    "gpt2": (0, 0, 0, 0),  # its layers are no nn.Linear, its norm subtracts the mean
    "granite": (7, 1, 1, 3),
    "cohere": (7, 1, 0, 0),  # neighbours, not halves, are turned together
}


def exchanged_arithmetic(body: nn.Module) -> Arithmetic:
    """Of a body whose layers are exchanged."""
    arithmetic = Arithmetic()
    exchange_layers(body, arithmetic)
    return arithmetic


def exchanged(model: nn.Module) -> list[str]:
    return [type(m).__name__ for m in model.modules() if "forward" in m.__dict__]


def body(model: Any, rows: int = 2) -> torch.Tensor:
    """Hidden states under a mask that is added to the scores, as shared-prefix rows have it: the second row's last five
    tokens do not see the four before them."""
    ids = torch.arange(1, rows * 12 + 1).view(rows, 12)
    least = torch.finfo(torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else torch.float32).min
    mask = torch.full((rows, 1, 12, 12), least).triu(1)
    mask[-1, 0, 7:, 3:7] = least
    return model.base_model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state


def hidden_and_gradients(model: Any, in_place: bool, autocast: bool = False) -> tuple[torch.Tensor, dict[str, Any]]:
    for p in model.parameters():
        p.grad = torch.zeros_like(p) if in_place else None
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        hidden = body(model)
    slope = torch.randn(hidden.shape, generator=torch.Generator().manual_seed(1))
    (hidden * slope).sum().backward()
    return hidden.detach(), {n: p.grad.clone() for n, p in model.base_model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", CONFIGS)
def test_what_is_exchanged_on_each_architecture(name: str) -> None:
    model = tiny(name)
    exchanged_arithmetic(model.base_model)
    found = exchanged(model)
    linear, mlp, attention, norm = EXCHANGED[name]
    norms = [n for n in found if n.endswith("RMSNorm")]
    assert found.count("Linear") == 2 * linear
    assert sum(n.endswith("MLP") for n in found) == 2 * mlp
    assert sum(n.endswith("Attention") for n in found) == 2 * attention
    assert len(norms) == (2 * (norm - 1) + 1 if norm else 0)


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("name", CONFIGS)
def test_values_and_every_gradient_equal_those_of_the_untouched_model(name: str, in_place: bool) -> None:
    plain = tiny(name)
    ours = copy.deepcopy(plain)
    exchanged_arithmetic(ours.base_model).in_place = in_place
    (want, wants), (got, gots) = (
        hidden_and_gradients(plain, in_place=False),
        hidden_and_gradients(ours, in_place=in_place),
    )
    assert want.std() > 1e-2
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)
    assert wants.keys() <= gots.keys()
    for parameter, grad in wants.items():
        assert grad.norm() > 0
        assert (gots[parameter] - grad).norm() <= 2e-5 * grad.norm(), parameter


def test_gradients_added_in_place_add_up_over_micro_batches() -> None:
    model = tiny("llama").train()
    arithmetic = exchanged_arithmetic(model.base_model)
    arithmetic.in_place = True
    _, once = hidden_and_gradients(model, in_place=True)
    hidden = body(model)
    (hidden * torch.randn(hidden.shape, generator=torch.Generator().manual_seed(1))).sum().backward()
    for name, parameter in model.base_model.named_parameters():
        torch.testing.assert_close(parameter.grad, 2 * once[name], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("in_place", [False, True])
def test_bf16_products_round_no_worse_than_autocasts_own(in_place: bool) -> None:
    plain = tiny("llama").train()
    ours = copy.deepcopy(plain)
    exchanged_arithmetic(ours.base_model).in_place = in_place
    exact, exacts = hidden_and_gradients(plain, in_place=False)
    own, owns = hidden_and_gradients(plain, in_place=False, autocast=True)
    got, gots = hidden_and_gradients(ours, in_place=in_place, autocast=True)
    assert (own - exact).norm() > 1e-4 * exact.norm()  # there is rounding to compare
    assert (got - exact).norm() <= 1.5 * (own - exact).norm()

    def far(grads: dict[str, torch.Tensor]) -> float:
        return float(torch.stack([(grads[n] - exacts[n]).norm() / exacts[n].norm() for n in exacts]).norm())

    assert far(gots) <= 1.5 * far(owns)


def test_an_optimisers_step_is_seen_by_the_next_narrow_product() -> None:
    model = tiny("llama")
    exchanged_arithmetic(model.base_model)
    before, _ = hidden_and_gradients(model, in_place=False, autocast=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, fused=True)
    optimizer.step()
    after, _ = hidden_and_gradients(model, in_place=False, autocast=True)
    fresh, _ = hidden_and_gradients(_exchanged_copy(model), in_place=False, autocast=True)
    assert not torch.equal(before, after)
    torch.testing.assert_close(after, fresh, atol=0, rtol=0)


def test_a_weight_is_narrowed_once_for_all_micro_batches_and_anew_after_them() -> None:
    arithmetic = exchanged_arithmetic(nn.Sequential())
    weight = nn.Parameter(torch.randn(3, 4))
    with torch.autocast("cpu", torch.bfloat16):
        with arithmetic.unchanged_weights(kept=True):
            first = arithmetic.weight(weight)
            assert arithmetic.weight(weight) is first and first.dtype == torch.bfloat16
        weight.data.mul_(2)
        with arithmetic.unchanged_weights(kept=True):
            assert torch.equal(arithmetic.weight(weight), weight.bfloat16())
        assert torch.equal(arithmetic.weight(weight), weight.bfloat16())
    with torch.autocast("cpu", torch.bfloat16), arithmetic.unchanged_weights(kept=False):
        assert arithmetic.weight(weight) is not arithmetic.weight(weight)


def _exchanged_copy(model: Any) -> Any:
    twin = AutoModelForCausalLM.from_config(model.config)
    twin.load_state_dict(model.state_dict())
    exchanged_arithmetic(twin.base_model)
    return twin.eval()


def test_a_deep_copy_computes_with_its_own_weights() -> None:
    model = tiny("llama")
    exchanged_arithmetic(model.base_model)
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for p in twin.parameters():
            p.mul_(0.5)
        one, other = body(model), body(twin)
    assert not torch.allclose(one, other)


def test_a_frozen_weight_gets_no_gradient_and_the_others_keep_theirs() -> None:
    plain = tiny("llama").train()
    frozen = "model.layers.0.mlp.gate_proj.weight"
    ours = copy.deepcopy(plain)
    for model in (plain, ours):
        dict(model.named_parameters())[frozen].requires_grad_(False)
    exchanged_arithmetic(ours.base_model)
    (_, wants), (_, gots) = (hidden_and_gradients(m, in_place=False) for m in (plain, ours))
    assert wants.keys() == gots.keys() and frozen.removeprefix("model.") not in gots
    for name in wants:
        torch.testing.assert_close(gots[name], wants[name], atol=1e-4, rtol=1e-4)


def test_adapters_that_come_later_are_not_passed_by() -> None:
    from pobench.model.adapters import attach
    from pobench.settings.schema import AdapterConfig

    model = tiny("llama")
    exchanged_arithmetic(model.base_model)
    adapted = attach(model, AdapterConfig(r=2), seed=0)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:  # zero at the start, where no gradient reaches its partner
            parameter.data.normal_()
    body(adapted.get_base_model()).sum().backward()
    trained = {n: p for n, p in adapted.named_parameters() if p.requires_grad}
    assert any("gate_proj" in n for n in trained) and any("q_proj" in n for n in trained)
    assert [n for n, p in trained.items() if p.grad is None or not p.grad.any()] == []


def test_activation_checkpointing_gives_the_same_gradients() -> None:
    plain = tiny("llama").train()
    ours = copy.deepcopy(plain)
    exchanged_arithmetic(ours.base_model).in_place = True
    checkpoint_activations(ours, True)
    (_, wants), (_, gots) = hidden_and_gradients(plain, in_place=False), hidden_and_gradients(ours, in_place=True)
    for name in wants:
        torch.testing.assert_close(gots[name], wants[name], atol=1e-4, rtol=1e-4)


def test_an_mlp_that_computes_something_else_keeps_its_own_forward() -> None:
    class OddMLP(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gate_proj, self.up_proj = nn.Linear(8, 16, bias=False), nn.Linear(8, 16, bias=False)
            self.down_proj, self.act_fn = nn.Linear(16, 8, bias=False), nn.SiLU()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x)) + x

    odd = nn.Sequential(OddMLP())
    exchanged_arithmetic(odd)
    assert exchanged(odd) == ["Linear", "Linear", "Linear"]


def test_an_attention_whose_scores_are_scaled_another_way_keeps_its_own_forward(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = tiny("llama")
    kind = type(model.model.layers[0].self_attn)
    own = kind.forward

    def twice_as_sharp(self: Any, *given: Any, **named: Any) -> Any:
        self.scaling *= 2
        try:
            return own(self, *given, **named)
        finally:
            self.scaling /= 2

    monkeypatch.setattr(kind, "forward", twice_as_sharp)
    exchanged_arithmetic(model.base_model)
    assert "LlamaAttention" not in exchanged(model) and "LlamaMLP" in exchanged(model)


def test_answers_and_padded_rows_go_through_the_attentions_own_forward(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny("llama").eval()
    exchanged_arithmetic(model.base_model)
    monkeypatch.setattr("pobench.model.cpu.layers._Attention", None)
    ids = torch.arange(1, 9)[None]
    assert model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=2, do_sample=False).shape[1] > 8
    model.base_model(input_ids=ids).last_hidden_state.sum().backward()
    with pytest.raises(AttributeError):
        body(model)


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("padding", [None, 3])
def test_an_embedding_adds_to_the_rows_of_its_tokens_alone(in_place: bool, padding: int | None) -> None:
    torch.manual_seed(0)
    plain = nn.Embedding(7, 4, padding_idx=padding)
    ours = copy.deepcopy(plain)
    exchanged_arithmetic(nn.Sequential(ours)).in_place = in_place
    ids = torch.tensor([[1, 3, 1], [5, 1, 3]])
    slope = torch.randn(2, 3, 4)
    for layer in (plain, ours):
        layer.weight.grad = torch.ones_like(layer.weight)
        y = layer(ids)
        (y * slope).sum().backward()
    assert torch.equal(ours(ids), plain(ids))
    torch.testing.assert_close(ours.weight.grad, plain.weight.grad)
    assert (plain.weight.grad[1] - 1).abs().sum() > 1 and torch.equal(plain.weight.grad[2], torch.ones(4))


def test_a_norms_output_is_computed_again_unless_it_was_changed_since() -> None:
    """Queries, keys, values, gate and up read a norm's output; what another layer made in between is kept as it is."""
    draw = torch.Generator().manual_seed(0)
    x, scale = torch.randn(2, 3, 4, generator=draw), torch.randn(4, generator=draw)
    factors = NormFactors(x, x.pow(2).mean(-1, keepdim=True).rsqrt(), scale, 0.0)
    output = factors.product()
    mark_as_norm(output, factors)
    kept = kept_input(output, output.flatten(0, 1))
    assert [a is b for a, b in zip(kept.tensors, factors[:3], strict=True)] == [True] * 3
    assert torch.equal(kept.restore(*kept.tensors), output.flatten(0, 1))
    other = output.clone()
    assert kept_input(other, other.flatten(0, 1)).tensors[0].data_ptr() == other.data_ptr()
    output.mul_(2)
    kept = kept_input(output, output.flatten(0, 1))
    assert torch.equal(kept.restore(*kept.tensors), output.flatten(0, 1))


def test_an_input_is_cast_once_and_again_after_a_change_in_place() -> None:
    arithmetic, x = Arithmetic(), torch.randn(2, 3, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.bfloat16):
        first = arithmetic.input(x)
        assert arithmetic.input(x) is first and first.dtype == torch.bfloat16
        x.mul_(2)
        assert torch.equal(arithmetic.input(x), x.bfloat16())


def test_a_model_with_fused_gate_and_up_keeps_its_mlp() -> None:
    config = Phi3Config(
        vocab_size=97,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        pad_token_id=0,
    )
    model = AutoModelForCausalLM.from_config(config)
    exchanged_arithmetic(model.base_model)
    assert "Phi3MLP" not in exchanged(model) and "Phi3RMSNorm" in exchanged(model)


def test_a_layer_keeps_less_for_the_backward_pass() -> None:
    plain = tiny("llama").train()
    ours = copy.deepcopy(plain)
    exchanged_arithmetic(ours.base_model)
    kept = {}
    for name, model in (("plain", plain), ("exchanged", ours)):
        storages: dict[int, int] = {}
        weights = {p.untyped_storage().data_ptr() for p in model.parameters()}

        def pack(x: torch.Tensor, storages: dict[int, int] = storages, weights: set[int] = weights) -> torch.Tensor:
            storage = x.untyped_storage()
            if storage.data_ptr() not in weights:
                storages[storage.data_ptr()] = storage.nbytes()
            return x

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            body(model, rows=8).sum().backward()
        kept[name] = sum(storages.values())
    assert kept["exchanged"] < 0.65 * kept["plain"], kept


def test_the_kept_softmax_changes_neither_value_nor_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    import pobench.model.logps

    results = []
    for room in (0, 32 * 4 * 15 * 2, 2**20):  # none, some, all of the tiles of fifteen entries
        monkeypatch.setattr(pobench.model.logps, "KEPT_BYTES", {"cpu": room})
        model = tiny("llama")
        total = ResponseLogps(model, tile=15)(get_layout("shared_prefix").collate(some_groups(4)))
        total.sum().backward()
        results.append((total.detach(), model.lm_head.weight.grad, model.model.embed_tokens.weight.grad))
    for result in results[1:]:
        for got, want in zip(result, results[0], strict=True):
            torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)


def test_the_attentions_gradient_is_that_of_finite_differences() -> None:
    """Three heads of two features, of which one key's and value's serves all."""
    from pobench.model.cpu.layers import _Attention

    draw = torch.Generator().manual_seed(0)
    shapes = (2, 4, 5), (6, 5), (2, 5), (2, 5), (5, 6)  # x, and the weights of queries, keys, values, output
    inputs = [torch.randn(s, generator=draw, dtype=torch.float64).requires_grad_() for s in shapes]
    angle = torch.randn(2, 4, 1, generator=draw, dtype=torch.float64).repeat(1, 1, 2)
    mask = torch.full((2, 1, 4, 4), -1e9, dtype=torch.float64).triu(1)
    mask[1, 0, 3, 1] = -1e9
    assert torch.autograd.gradcheck(
        lambda *args: _Attention.apply(*args, (angle.cos(), angle.sin()), mask, (2, 0.7), Arithmetic()), inputs
    )


def test_the_mlps_gradient_is_that_of_finite_differences() -> None:
    draw = torch.Generator().manual_seed(0)
    x, gate, up = (torch.randn(s, generator=draw, dtype=torch.float64) for s in ((2, 3, 4), (5, 4), (5, 4)))
    down = torch.randn(4, 5, generator=draw, dtype=torch.float64)
    inputs = [t.requires_grad_() for t in (x, gate, up, down)]
    assert torch.autograd.gradcheck(
        lambda *args: _GatedMlp.apply(*args, torch.nn.functional.silu, Arithmetic()), inputs
    )
