"""No dropout in policy and reference, however a model applies it; stored configurations keep their rates."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    FalconConfig,
    GPT2Config,
    GPTJConfig,
    LlamaConfig,
    MixtralConfig,
    OPTConfig,
    PhimoeConfig,
)

from pobench.model.layouts import get_layout
from pobench.model.logps import ResponseLogps
from pobench.workflows.invariance import small_model
from tests.pobench.architectures import SMALL, some_groups

SIZES = {"vocab_size": 97, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128}
CONFIGS = {
    "llama, a number of its attention": LlamaConfig(**SMALL, attention_dropout=0.5),
    "gpt2, modules and numbers": GPT2Config(**SIZES, attn_pdrop=0.5, resid_pdrop=0.5, embd_pdrop=0.5),
    "gptj, read from the configuration": GPTJConfig(**SIZES, rotary_dim=4, attn_pdrop=0.5, resid_pdrop=0.5),
    "falcon, read from the configuration": FalconConfig(
        vocab_size=97, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, attention_dropout=0.5, hidden_dropout=0.5
    ),
    "opt, layers left out": OPTConfig(
        vocab_size=97, hidden_size=32, ffn_dim=64, num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=128,
        word_embed_proj_dim=32, dropout=0.5, attention_dropout=0.5, layerdrop=0.5,
    ),
    "phimoe, a router's draws": PhimoeConfig(**SMALL, num_local_experts=4, router_jitter_noise=0.5),
    "mixtral, a router's jitter": MixtralConfig(**SMALL, router_jitter_noise=0.5, num_local_experts=4),
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "attention"),
    [(name, kind) for name in CONFIGS for kind in ("sdpa", "eager") if (name[:4], kind) != ("gptj", "sdpa")],
)
def test_two_passes_of_training_give_the_sums_of_evaluation(name: str, attention: str) -> None:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIGS[name], attn_implementation=attention).train()
    ids = torch.arange(1, 30)[None]
    assert not torch.equal(model(ids).logits, model(ids).logits)  # by itself the model draws
    rates = model.config.to_dict()
    policy = ResponseLogps(model)
    batch = get_layout("padded").collate(some_groups(3))
    first, second = policy(batch), policy(batch)
    assert torch.equal(first, second)
    assert torch.equal(first, policy.eval()(batch))
    policy.dropout.restore()
    assert model.config.to_dict() == rates


def test_the_rates_that_are_switched_off_are_named() -> None:
    model = AutoModelForCausalLM.from_config(LlamaConfig(**SMALL, attention_dropout=0.5))
    assert ResponseLogps(model).dropout.note.endswith("as it is in the reference: attention_dropout 0.5")
    assert not ResponseLogps(AutoModelForCausalLM.from_config(LlamaConfig(**SMALL))).dropout.note


@pytest.fixture
def start_model() -> Any:
    model = small_model()
    model.config.attention_dropout = 0.5
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 0.5
    return model.eval()


def test_policy_and_reference_are_one_before_step_1_of_a_model_with_attention_dropout(fit, pairs) -> None:
    model, trained, rows = fit(pairs, "dpo", lr=1e-30, epochs=2)
    assert trained.step0_gap == 0
    assert [row["loss"] for row in rows[:3]] == [row["loss"] for row in rows[3:]]  # the same pairs, the same weights
    assert model.config.attention_dropout == 0.5  # it is stored as it came
