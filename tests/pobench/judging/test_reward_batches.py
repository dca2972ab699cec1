"""An answer's reward is the model's own number, alone and in any batch, whatever the architecture."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForSequenceClassification

from pobench.errors import PobenchError
from pobench.judging.pairwise import Comparison
from pobench.judging.reward_model import RewardModel
from pobench.judging.weights import Weights
from tests.pobench.small_chat_model import SIZES, character_tokenizer

ENCODER = {"num_key_value_heads": 4, "cls_token_id": 1, "sep_token_id": 2, "bos_token_id": 1}
LONGROPE = {
    "rope_type": "longrope", "rope_theta": 1e4, "original_max_position_embeddings": 48,
    "short_factor": [1.0] * 4, "long_factor": [1.0, 2.0, 4.0, 8.0],
}  # fmt: skip
KINDS: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {},
    "mistral": {"sliding_window": 16},
    "gemma2": {"head_dim": 8, "sliding_window": 16, "attn_logit_softcapping": 5.0},
    "gpt2": {"n_positions": 256},
    "gpt_neox": {},
    "phi3": {"rope_parameters": LONGROPE, "original_max_position_embeddings": 48},  # the answers lie on both sides
    "bert": ENCODER,
    "modernbert": {**ENCODER, "local_attention": 16},
    "deberta-v2": {**ENCODER, "relative_attention": True, "pos_att_type": ["p2c", "c2p"]},
}
ANSWERS = [("Say hello.", "hello"), ("Say hello.", "go away, please" * 3), ("Hi", "Hi."), ("Hm", "one two " * 9)]


def saved(folder: Path, kind: str) -> Path:
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **{**SIZES, **KINDS[kind]}, num_labels=1)
    model = AutoModelForSequenceClassification.from_config(config)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(6.0 if weight.ndim > 1 else 1.0)
    model.save_pretrained(folder)
    character_tokenizer().save_pretrained(folder)
    return folder


@pytest.mark.parametrize("kind", KINDS)
def test_a_reward_alone_is_the_reward_in_a_batch(tmp_path, kind) -> None:
    weights = Weights(str(saved(tmp_path, kind)), precision="fp32")
    alone, together = (
        RewardModel(weights, batch_size=1).rewards(ANSWERS),
        RewardModel(weights, batch_size=4).rewards(ANSWERS),
    )
    assert len(set(alone)) == len(ANSWERS)
    assert together == pytest.approx(alone, abs=1e-4, rel=1e-4)


def test_a_model_whose_rewards_depend_on_the_batch_is_refused(tmp_path, monkeypatch) -> None:
    judge = RewardModel(Weights(str(saved(tmp_path, "llama")), precision="fp32"), batch_size=4)
    own = judge._batch
    monkeypatch.setattr(judge, "_batch", lambda rows: [reward + len(rows) for reward in own(rows)])
    with pytest.raises(PobenchError, match=r"alone and .* beside longer ones.*batch_size=1"):
        judge.rewards(ANSWERS)


def test_a_reward_that_overflows_decides_nothing_and_is_called_what_it_is(tmp_path) -> None:
    judge = RewardModel(Weights(str(saved(tmp_path, "llama")), precision="fp32"))
    comparison = Comparison("Say hello.", "hello", "go away")
    assert math.isfinite(judge.judge(*comparison))
    (long,) = judge.judge_many([comparison._replace(b="x" * 600)])
    assert "the model reads 256" in long.error
    with torch.no_grad():
        judge.model.score.weight.fill_(3e38)
    (verdict,) = judge.judge_many([comparison])
    assert math.isnan(verdict.probability) and "computes a reward of" in verdict.error
    assert all(map(math.isnan, judge.rewards(ANSWERS)))


def test_a_reward_model_with_a_weight_that_is_nan_is_refused(tmp_path) -> None:
    folder = saved(tmp_path, "llama")
    state = load_file(folder / "model.safetensors")
    state["score.weight"][0, 3] = math.nan
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(PobenchError, match=r"weights hold nan or infinity: score\.weight"):
        RewardModel(Weights(str(folder), precision="fp32")).rewards(ANSWERS)
