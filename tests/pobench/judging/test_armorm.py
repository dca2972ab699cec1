"""ArmoRM's reward is its published formula: 19 objectives, weighed by a network that reads the prompt's last token."""

from __future__ import annotations

import json
import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaModel

from pobench.errors import PobenchError
from pobench.judging import grades
from pobench.judging.armorm import armorm
from pobench.judging.pairwise import Comparison
from pobench.judging.reward_model import reward_model
from pobench.model.load import _config
from pobench.runs.stand_ins import small_tokenizer

OBJECTIVES, HIDDEN, TEMPERATURE = 19, 32, 10.0
ANSWERS = [
    ("Why is the sky blue?", "Air scatters blue light more than red light."),
    ("Why is the sky blue?", "No."),
    (
        [*({"role": r, "content": c} for r, c in (("user", "Hi"), ("assistant", "Hello"), ("user", "Go on.")))],
        "Gladly. " * 9,
    ),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Random weights by the names of the published file, some of them in bf16, in two files."""
    made = tmp_path_factory.mktemp("armorm") / "tiny-armorm"
    tokenizer = small_tokenizer("meta-llama/Meta-Llama-3-8B-Instruct")
    tokenizer.save_pretrained(made)
    config = {
        **{"model_type": "llama", "vocab_size": len(tokenizer), "hidden_size": HIDDEN, "intermediate_size": 48},
        **{"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512},
        **{
            "rope_theta": 500000.0,
            "pad_token_id": None,
            "num_objectives": OBJECTIVES,
            "gating_temperature": TEMPERATURE,
        },
        **{"gating_hidden_dim": 24, "gating_n_hidden": 3, "architectures": ["LlamaForRewardModelWithGating"]},
        "auto_map": {"AutoModelForSequenceClassification": "modeling_custom.LlamaForRewardModelWithGating"},
    }
    (made / "config.json").write_text(json.dumps(config))
    torch.manual_seed(0)
    body = LlamaModel(_config({k: v for k, v in config.items() if k != "auto_map"})).state_dict()
    weights = {f"model.{name}": torch.randn_like(t) * 0.3 + ("norm" in name) for name, t in body.items()}
    sizes = [HIDDEN, 24, 24, 24, OBJECTIVES]
    for i, (wide, narrow) in enumerate(pairwise(sizes)):
        weights[f"gating.layers.{i}.weight"], weights[f"gating.layers.{i}.bias"] = (
            torch.randn(narrow, wide),
            torch.randn(narrow),
        )
    weights["gating.logit_scale"] = torch.tensor([1.5])
    weights["regression_layer.weight"] = torch.randn(OBJECTIVES, HIDDEN).bfloat16()
    weights["reward_transform_matrix"] = torch.eye(OBJECTIVES) - 0.1 * torch.rand(OBJECTIVES, OBJECTIVES)
    names = sorted(weights)
    for i in (0, 1):
        save_file({n: weights[n] for n in names[i::2]}, made / f"model-0000{i + 1}-of-00002.safetensors")
    index = {"weight_map": {n: f"model-0000{i % 2 + 1}-of-00002.safetensors" for i, n in enumerate(names)}}
    (made / "model.safetensors.index.json").write_text(json.dumps(index))
    return made


def by_hand(folder: Path, prompt: Any, answer: str) -> float:
    """The reward of one answer by the published formula, in float64 behind Llama's encodings."""
    state = {k: v for file in folder.glob("*.safetensors") for k, v in load_file(file).items()}
    judge = armorm(model=str(folder))
    body = LlamaModel(
        _config({k: v for k, v in json.loads((folder / "config.json").read_text()).items() if k != "auto_map"})
    )
    body.load_state_dict({k.removeprefix("model."): v for k, v in state.items() if k.startswith("model.")})
    turns = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    tokenizer = judge.chat.tokenizer
    text = tokenizer.apply_chat_template([*turns, {"role": "assistant", "content": answer}], tokenize=False)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    before = tokenizer.apply_chat_template(turns, tokenize=False)  # ends with the user's <|eot_id|>
    with torch.no_grad():
        encodings = body.eval()(torch.tensor([ids])).last_hidden_state[0].double()
    h = encodings[len(tokenizer(before, add_special_tokens=False)["input_ids"]) - 1]
    for i in range(4):
        h = state[f"gating.layers.{i}.weight"].double() @ h + state[f"gating.layers.{i}.bias"].double()
        h = h.clamp(min=0) if i < 3 else h
    weights = (h / TEMPERATURE).exp() / (h / TEMPERATURE).exp().sum() * 1.5
    rewards = (state["regression_layer.weight"].double() @ encodings[-1]) @ state["reward_transform_matrix"].double()
    return float(weights @ rewards)


def test_its_reward_is_the_published_formula_alone_and_in_a_batch(folder) -> None:
    expected = [by_hand(folder, *answer) for answer in ANSWERS]
    assert armorm(model=str(folder)).rewards(ANSWERS) == pytest.approx(expected, rel=1e-4)
    assert armorm(model=str(folder), batch_size=1).rewards(ANSWERS) == pytest.approx(expected, rel=1e-4)
    assert len({round(value, 3) for value in expected}) == len(ANSWERS)


def test_it_ranks_by_its_reward_and_compares_by_the_difference(folder) -> None:
    judge = armorm(model=str(folder))
    (a, b) = judge.rewards(ANSWERS[:2])
    prompt, text = ANSWERS[0]
    assert judge.judge(prompt, text, ANSWERS[1][1]) == pytest.approx(
        1 / (1 + torch.tensor(a - b).exp().item()), rel=1e-5
    )
    assert judge.score({"id": "1", "prompt": prompt}, text) == pytest.approx(a, rel=1e-5) and not grades(judge)
    (verdict,) = judge.judge_many([Comparison(prompt, text, text)])
    assert verdict.probability == 0.5


def test_the_objectives_are_weighed_by_the_prompt_alone(folder) -> None:
    judge, seen = armorm(model=str(folder)), []
    judge.model.gating.register_forward_hook(lambda module, inputs, output: seen.extend(output.tolist()))
    judge.rewards(ANSWERS)
    several_turns, one, same = seen[:3]  # a batch begins with the longest; the second and the third answer one prompt
    assert one == pytest.approx(same, rel=1e-4) and several_turns != pytest.approx(one, rel=0.01)
    assert [sum(weights) for weights in seen] == pytest.approx([1.5] * len(seen), rel=1e-5)


def test_what_is_no_armorm_is_refused_in_one_sentence(folder, tmp_path) -> None:
    broken = Path(shutil.copytree(folder, tmp_path / "broken"))
    for file in broken.glob("*.safetensors"):
        save_file({k: v for k, v in load_file(file).items() if k != "gating.logit_scale"}, file)
    with pytest.raises(PobenchError, match=r"is no ArmoRM: .*1 are missing \(gating\.logit_scale\)"):
        armorm(model=str(broken)).rewards(ANSWERS)
    with pytest.raises(PobenchError, match="ArmoRM finds no answer in a conversation"):
        armorm(model=str(folder)).model._prompt_end([1, 2, 3])
    with pytest.raises(PobenchError, match="take the judge `armorm`, which needs none"):
        reward_model(model=str(folder)).rewards(ANSWERS)
