"""A layer is exchanged where a trial of that very layer agrees, and what is wrong in spite of it is found out."""

from __future__ import annotations

import ast
import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from architectures import some_groups, tiny
from torch import nn

import pobench
from pobench.model import cpu
from pobench.model.choose_layout import choose_layout, plain_logps
from pobench.model.cpu import exchange
from pobench.model.cpu.exchange import exchange_layers, own_layers, restore_layers
from pobench.model.cpu.layers import Candidate, is_exchanged
from pobench.model.logps import ResponseLogps
from pobench.model.products import Arithmetic


class MadeUpMLP(nn.Module):
    """A gated MLP that can do more than one: each attribute changes what its forward computes."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__()
        self.gate_proj, self.up_proj = nn.Linear(8, 16, bias=False), nn.Linear(8, 16, bias=False)
        self.down_proj, self.act_fn = nn.Linear(16, 8, bias=False), nn.SiLU()
        self.top, self.clamp, self.power, self.layer_idx, self.options = 0, None, 1.0, 0, {"residual": False}
        self.dropout = nn.Dropout(0.0)
        for name, value in attributes.items():
            setattr(self, name, value)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        middle = self.dropout(self.act_fn(self.gate_proj(x)) * self.up_proj(x))
        if self.top:
            least = middle.abs().topk(self.top, dim=-1).values[..., -1:]
            middle = middle * (middle.abs() >= least)
        if self.clamp is not None:
            middle = middle.clamp(-self.clamp, self.clamp)
        if self.layer_idx == 3:
            middle = 2 * middle
        y = self.down_proj(middle if self.power == 1 else middle.sign() * middle.abs() ** self.power)
        return x + y if self.options["residual"] else y


class MadeUpRMSNorm(nn.Module):
    """A norm that adds its epsilon inside of the root or outside."""

    def __init__(self, outside: bool) -> None:
        super().__init__()
        self.weight, self.eps, self.outside = nn.Parameter(torch.ones(8)), 1e-6, outside

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mean_square = x.pow(2).mean(-1, keepdim=True)
        rms = mean_square.sqrt() + self.eps if self.outside else (mean_square + self.eps).sqrt()
        return x / rms * self.weight


def exchanged(*modules: nn.Module) -> list[bool]:
    body = nn.Sequential(*modules)
    exchange_layers(body, Arithmetic())
    return [is_exchanged(m) for m in body]


def same_values_and_gradients(module: nn.Module, size: float = 1.0) -> None:
    """As with the module's own layers."""
    found = []
    for layers in (cpu.own_layers, lambda module: torch.enable_grad()):
        x = (size * torch.randn(3, 4, 8, generator=torch.Generator().manual_seed(1))).requires_grad_()
        with layers(module):
            y = module(x)
        found.append([y.detach(), *torch.autograd.grad(y.square().sum(), [x, *module.parameters()])])
    assert found[0][0].std() > 0
    for got, want in zip(found[1], found[0], strict=True):
        torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    "difference",
    [
        {"top": 4},
        {"clamp": 5.0},
        {"power": 2.0},
        {"layer_idx": 3},
        {"options": {"residual": True}},
        {"act_fn": nn.GELU()},
        {"act_fn": nn.LeakyReLU(0.3)},
    ],
    ids=str,
)
def test_a_second_instance_of_a_class_is_judged_by_what_it_computes_itself(difference: dict[str, Any]) -> None:
    torch.manual_seed(0)
    first, second, third = MadeUpMLP(), MadeUpMLP(**difference), MadeUpMLP()
    agrees = "act_fn" in difference  # every activation is computed by the module's own function
    assert exchanged(first, second, third) == [True, agrees, True]
    for module in (first, second, third):
        same_values_and_gradients(module, size=5.0)


@pytest.mark.parametrize("outside_first", [False, True])
def test_norms_that_differ_in_their_epsilon_alone_are_told_apart(outside_first: bool) -> None:
    norms = [MadeUpRMSNorm(outside_first), MadeUpRMSNorm(not outside_first)]
    assert exchanged(*norms) == [not outside_first, outside_first]
    for norm in norms:
        same_values_and_gradients(norm, size=1e-3)


def test_dropout_of_training_is_not_lost_where_layers_are_exchanged_in_evaluation() -> None:
    quiet, noisy = MadeUpMLP().eval(), MadeUpMLP(dropout=nn.Dropout(0.5)).eval()
    state = torch.get_rng_state()
    assert exchanged(quiet, noisy) == [True, False]
    assert torch.equal(torch.get_rng_state(), state)  # a trial leaves the random numbers of a run as they were


def test_a_module_with_tensors_besides_its_weights_keeps_its_forward() -> None:
    with_buffer, with_tensor = MadeUpMLP(), MadeUpMLP(scale=torch.ones(()))
    with_buffer.register_buffer("scale", torch.ones(()))
    assert exchanged(with_buffer, MadeUpMLP(), with_tensor) == [False, True, False]


def test_an_attribute_without_a_value_to_compare_means_a_trial_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []
    agrees = exchange._agrees
    monkeypatch.setattr(exchange, "_agrees", lambda m, c: tried.append(m) or agrees(m, c))
    odd = [MadeUpMLP(helper=object()), MadeUpMLP(helper=object(), top=4)]
    assert exchanged(*odd) == [True, False] and tried == odd


# Each changes a module after its layers were exchanged, or before.
def hook_child(m: MadeUpMLP) -> None:
    m.gate_proj.register_forward_hook(lambda module, given, output: 2 * output)


def hook_child_before(m: MadeUpMLP) -> None:
    m.up_proj.register_forward_pre_hook(lambda module, given: (2 * given[0],))


def replace_childs_forward(m: MadeUpMLP) -> None:
    own = m.gate_proj.forward
    m.gate_proj.forward = lambda x: 2 * own(x)


def wrap_child(m: MadeUpMLP) -> None:
    class Wrapped(nn.Module):
        def __init__(self, base: nn.Module) -> None:
            super().__init__()
            self.base, self.weight = base, base.weight

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 2 * self.base(x)

    m.gate_proj = Wrapped(m.gate_proj)


def parametrise_child(m: MadeUpMLP) -> None:
    class Twice(nn.Module):
        def forward(self, w: torch.Tensor) -> torch.Tensor:
            return 2 * w

    nn.utils.parametrize.register_parametrization(m.gate_proj, "weight", Twice())


def replace_activation(m: MadeUpMLP) -> None:
    m.act_fn = nn.Tanh()


@pytest.mark.parametrize("earlier", [False, True])
@pytest.mark.parametrize(
    "change",
    [hook_child, hook_child_before, replace_childs_forward, wrap_child, parametrise_child, replace_activation],
)
def test_a_change_by_somebody_else_counts_whether_it_comes_before_or_after(
    change: Callable[[MadeUpMLP], None], earlier: bool
) -> None:
    torch.manual_seed(0)
    module, x = MadeUpMLP(), torch.randn(3, 8)
    before = module(x).detach()
    if earlier:
        change(module)
    exchange_layers(nn.Sequential(module), Arithmetic())
    if not earlier:
        torch.testing.assert_close(module(x).detach(), before)
        change(module)
    with own_layers(module):
        want = module(x).detach()
    assert not torch.allclose(want, before)
    torch.testing.assert_close(module(x).detach(), want)


def test_a_forward_that_somebody_else_replaced_is_left_alone_and_not_lost() -> None:
    module, layer = MadeUpMLP(), nn.Linear(8, 8)
    for m in (module, layer):
        m.forward = lambda x: torch.zeros_like(x)
    body = nn.Sequential(module, layer)
    exchange_layers(body, Arithmetic())
    assert not is_exchanged(module) and not is_exchanged(layer)
    restore_layers(body)
    assert not body(torch.randn(2, 8)).any()


def test_a_mask_that_differs_between_heads_or_serves_all_rows_goes_the_attentions_own_way() -> None:
    model = tiny("llama")
    twin = copy.deepcopy(model)
    exchange_layers(model.base_model, Arithmetic())
    own, ours = twin.model.layers[0].self_attn, model.model.layers[0].self_attn
    assert is_exchanged(ours)
    x = torch.randn(2, 5, 32)
    positions = torch.arange(5)[None].expand(2, 5)
    rotation = model.model.rotary_emb(x, positions)
    causal = torch.full((5, 5), torch.finfo(torch.float32).min).triu(1)
    for mask in (
        causal.expand(1, 1, 5, 5),
        causal * torch.arange(4)[:, None, None] / 4 + causal.expand(2, 4, 5, 5) / 8,
    ):
        got, want = (m(x, position_embeddings=rotation, attention_mask=mask)[0] for m in (ours, own))
        torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)


def test_a_class_is_tried_once_in_a_process_for_all_that_is_equal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchange, "_outcomes", {})
    tried = []
    agrees = exchange._agrees
    monkeypatch.setattr(exchange, "_agrees", lambda m, c: tried.append(type(m).__name__) or agrees(m, c))
    model = tiny("llama")
    ResponseLogps(model)
    assert sorted(tried) == ["LlamaAttention", "LlamaAttention", "LlamaMLP", "LlamaRMSNorm"]  # attentions are numbered
    model.config._name_or_path = "elsewhere"
    ResponseLogps(model), ResponseLogps(copy.deepcopy(model))
    assert len(tried) == 4


# ---------------------------------------------------------------- the yardstick
def wrong(kind: str) -> Callable[..., Any]:
    """A maker of candidates for modules whose class ends so, which double what they should return."""

    def make(module: nn.Module, arithmetic: Arithmetic) -> Any:
        if not type(module).__name__.endswith(kind):
            return

        def forward(self: Any, *given: Any, **named: Any) -> Any:
            y = type(self).forward(self, *given, **named)
            return (2 * y[0], *y[1:]) if isinstance(y, tuple) else 2 * y

        yield Candidate(forward, suits=lambda self, *given, attention_mask="", **named: attention_mask is not None)

    return make


@pytest.mark.parametrize("kind", ["MLP", "Attention"])
def test_a_wrong_exchange_is_found_and_the_models_own_layers_are_taken(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exchange, "TRIED", (wrong(kind),))
    monkeypatch.setattr(exchange, "_outcomes", {})
    monkeypatch.setattr(exchange, "_agrees", lambda module, candidate: True)
    groups, model = some_groups(), tiny("llama")
    plain = torch.cat([plain_logps(model, g) for g in groups])
    policy = ResponseLogps(model)
    assert policy.has_exchanged_layers
    name, why = choose_layout(policy, groups)
    assert name == "shared_prefix" and why.startswith("with the model's own layers, equals one sequence at a time")
    assert "shared_prefix by parts: differs by" in why and not policy.has_exchanged_layers
    assert policy.attention == "parts"
    with torch.no_grad():
        sums = policy(policy.layout(name).collate(groups, policy.window))
    torch.testing.assert_close(sums.double(), plain, atol=1e-4, rtol=0)


def test_a_right_exchange_is_kept_where_the_layout_is_what_fails() -> None:
    model = tiny("llama")
    inner = model.model.forward
    model.model.forward = lambda attention_mask=None, **inputs: inner(**inputs)
    policy = ResponseLogps(model)
    name, why = choose_layout(policy, some_groups())
    assert name == "padded" and policy.has_exchanged_layers
    assert why.startswith("equals") and "shared_prefix with the model's own layers: differs by" in why


def test_the_yardstick_is_measured_on_the_untouched_model(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny("llama")
    policy = ResponseLogps(model)
    seen = []

    def measured(model: Any, group: Any) -> torch.Tensor:
        seen.append((any(map(is_exchanged, model.modules())), model.config._attn_implementation))
        return plain_logps(model, group)

    monkeypatch.setattr("pobench.model.choose_layout.plain_logps", measured)
    choose_layout(policy, some_groups())
    assert seen == [(False, "sdpa")] * 4  # two groups as they are, and two that begin alike
    assert policy.has_exchanged_layers and policy.attention == "parts"


def test_untouched_puts_everything_back_after_a_fault() -> None:
    policy = ResponseLogps(tiny("llama"))
    before = [is_exchanged(m) for m in policy.model.modules()]
    with pytest.raises(KeyError), policy.untouched() as model:
        assert not any(map(is_exchanged, model.modules()))
        raise KeyError
    assert [is_exchanged(m) for m in policy.model.modules()] == before and policy.attention == "parts"


# ---------------------------------------------------------------- the door
def test_nothing_imports_inside_of_cpu_from_outside() -> None:
    root = Path(pobench.__file__).parent
    inside = root / "model" / "cpu"
    entered = set()
    for path in root.rglob("*.py"):
        if inside in path.parents:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            assert not [n for n in names if n.startswith("pobench.model.cpu.")], path
            if "pobench.model.cpu" in names or (
                names == ["pobench.model"] and any(alias.name == "cpu" for alias in node.names)
            ):
                entered.add(path.relative_to(root).as_posix())
    assert entered == {"model/logps.py"}
