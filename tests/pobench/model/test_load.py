"""A model is loaded whole or not at all: no weight is random, and none that its file holds is left out."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from pobench.errors import PobenchError
from pobench.model.choose_layout import choose_layout, plain_logps
from pobench.model.load import attention_of, load_model
from pobench.model.logps import ResponseLogps
from tests.pobench.architectures import some_groups
from tests.pobench.small_chat_model import chat_model, save_chat_model

Q = "model.layers.0.self_attn.q_proj.weight"


def changed(folder: Path, change: Callable[[dict[str, Tensor]], object], **config: object) -> Path:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    about = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**about, **config}))
    return folder


def test_a_weight_that_is_missing_is_no_random_one(tmp_path) -> None:
    folder = changed(save_chat_model(tmp_path), lambda weights: weights.pop(Q))
    with pytest.raises(PobenchError, match=rf"not those of its config\.json: 1 are missing \({Q}\)"):
        load_model(folder, dtype=torch.float32)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_weight_that_is_not_finite_is_named(value, tmp_path) -> None:
    folder = changed(save_chat_model(tmp_path), lambda weights: weights[Q].__setitem__((1, 2), value))
    with pytest.raises(PobenchError, match=rf"weights hold nan or infinity: {Q}"):
        load_model(folder, dtype=torch.float32)


@pytest.mark.parametrize(
    ("layers", "count"), [(5, "27 are missing"), (1, "9 are unknown to the model")], ids=["five layers", "one layer"]
)
def test_a_configuration_of_other_layers_is_not_that_of_two(tmp_path, layers, count) -> None:
    folder = changed(save_chat_model(tmp_path), lambda weights: None, num_hidden_layers=layers)
    with pytest.raises(PobenchError, match=rf"{count} \(model\.layers\..*, …\)"):
        load_model(folder, dtype=torch.float32)


def test_a_weight_of_another_shape_is_named_with_both_shapes(tmp_path) -> None:
    folder = changed(save_chat_model(tmp_path), lambda weights: weights.update({Q: torch.zeros(16, 32)}))
    with pytest.raises(PobenchError, match=rf"1 are of another shape \({Q} \[16, 32\], not \[32, 32\]\)"):
        load_model(folder, dtype=torch.float32)


def test_a_head_that_the_model_does_not_have_is_not_dropped(tmp_path) -> None:
    extra = {"v_head.summary.weight": torch.zeros(1, 32)}
    with pytest.raises(PobenchError, match="1 are unknown to the model"):
        load_model(changed(save_chat_model(tmp_path), lambda weights: weights.update(extra)), dtype=torch.float32)


def test_tied_weights_and_constants_of_old_files_are_no_fault(tmp_path) -> None:
    tied = save_chat_model(tmp_path / "tied", tie_word_embeddings=True)
    assert "lm_head.weight" not in load_file(tied / "model.safetensors")
    read = load_model(tied, dtype=torch.float32)
    assert torch.equal(read.lm_head.weight, chat_model(tie_word_embeddings=True).lm_head.weight)
    old = {
        "transformer.h.0.attn.bias": torch.ones(1, 1, 256, 256),
        "transformer.h.0.attn.masked_bias": torch.tensor(-1e4),
    }
    gpt2 = changed(save_chat_model(tmp_path / "gpt2", architecture="gpt2"), lambda weights: weights.update(old))
    assert load_model(gpt2, dtype=torch.float32).transformer.h[0].attn.c_attn.weight.any()


# ---------------------------------------------------------------- models without sdpa
WITHOUT_SDPA = {
    "gptj": {"rotary_dim": 4},
    "bloom": {"n_head": 4, "n_layer": 2},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "window_size": 8, "num_heads": 4, "num_layers": 2},
    "gpt_oss": {"head_dim": 8, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 8},
}


@pytest.mark.parametrize("architecture", WITHOUT_SDPA)
def test_a_model_that_knows_no_sdpa_is_loaded_and_scored_as_one_sequence_at_a_time(tmp_path, architecture) -> None:
    folder = save_chat_model(tmp_path, architecture=architecture, loud=4.0, vocab_size=97, **WITHOUT_SDPA[architecture])
    model = load_model(folder, dtype=torch.float32, attention=attention_of(folder)).train()
    assert model.config._attn_implementation == "eager"
    groups = some_groups(3)
    policy = ResponseLogps(model)
    name, _ = choose_layout(policy, groups)
    model.eval()
    plain = torch.cat([plain_logps(model, group) for group in groups])
    with torch.no_grad():
        got = policy(policy.layout(name).collate(groups, policy.window if name == "shared_prefix" else None))
    assert plain.std() > 1
    torch.testing.assert_close(got.double(), plain, atol=1e-3, rtol=0)


def test_sdpa_by_name_is_refused_where_a_model_has_none(tmp_path) -> None:
    folder = save_chat_model(tmp_path, architecture="gptj", rotary_dim=4)
    with pytest.raises(PobenchError, match=r"GPTJ.*does not support"):
        load_model(folder, dtype=torch.float32, attention=attention_of(folder, "sdpa"))
