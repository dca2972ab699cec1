"""A sum does not depend on the length of what lies beside it, where rotary frequencies are chosen by length."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, Phi3Config, PhimoeConfig

from pobench.data.capacity import Capacity, Extent
from pobench.errors import PobenchError
from pobench.model.choose_layout import choose_layout, plain_logps
from pobench.model.generate import Decoding, generate
from pobench.model.layouts import get_layout
from pobench.model.load import load_model
from pobench.model.logps import ResponseLogps
from pobench.model.rope import fix_rope
from pobench.model.vllm import speaker_of
from pobench.positions import rope_reach
from pobench.types import Group
from tests.pobench.architectures import SMALL, some_groups

LONG = {
    "rope_type": "longrope", "rope_theta": 1e4, "original_max_position_embeddings": 16,
    "short_factor": [1.0] * 4, "long_factor": [1.0, 2.0, 4.0, 8.0],
}  # fmt: skip
CONFIGS: dict[str, Any] = {
    "longrope": lambda: Phi3Config(
        **SMALL, rope_parameters=dict(LONG), original_max_position_embeddings=16, pad_token_id=0, eos_token_id=1
    ),
    "longrope, with code of its own": lambda: PhimoeConfig(
        **SMALL, num_local_experts=4, rope_parameters={**LONG, "short_mscale": 1.1, "long_mscale": 1.3, "factor": 8.0}
    ),
    "dynamic": lambda: LlamaConfig(
        **{**SMALL, "max_position_embeddings": 16},
        rope_parameters={"rope_type": "dynamic", "factor": 8.0, "rope_theta": 1e4},
    ),
}
SHORT = Group((5, 6, 7), ((8, 9, 10, 11), (12, 13)))
LONGER = Group(tuple(range(20, 50)), ((60, 61, 62), (63, 64, 65, 66)))


def model_of(kind: str) -> Any:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIGS[kind]()).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(4.0 if weight.ndim > 1 else 1.0)
    return model


@torch.no_grad()
def sums(model: Any, layout: str, *groups: Group) -> torch.Tensor:
    """Of the first group's responses."""
    return ResponseLogps(model)(get_layout(layout).collate(groups))[: len(groups[0].responses)]


@pytest.mark.parametrize("layout", ["padded", "shared_prefix"])
@pytest.mark.parametrize("kind", CONFIGS)
def test_a_pair_alone_has_the_sums_that_it_has_beside_a_longer_one(kind: str, layout: str) -> None:
    model = model_of(kind)
    loose = copy.deepcopy(model)
    assert (sums(loose, layout, SHORT) - sums(loose, layout, SHORT, LONGER)).abs().max() > 1e-3  # left to itself
    fix_rope(model, 64)
    alone = sums(model, layout, SHORT)
    torch.testing.assert_close(sums(model, layout, SHORT, LONGER), alone, atol=1e-4, rtol=0)
    torch.testing.assert_close(sums(model, layout, SHORT), alone, atol=0, rtol=0)  # nor on what came before


@pytest.mark.parametrize("kind", ["longrope", "dynamic"])
def test_the_frequencies_are_those_that_the_model_has_at_the_length(kind: str) -> None:
    model, held = model_of(kind), model_of(kind)
    fix_rope(held, 40)
    exact = Group(LONGER.prompt, (tuple(range(60, 70)),))  # 40 tokens
    torch.testing.assert_close(sums(held, "padded", exact), sums(model, "padded", exact), atol=1e-5, rtol=0)
    short = model_of(kind)
    fix_rope(short, 16)
    torch.testing.assert_close(sums(short, "padded", SHORT), sums(model_of(kind), "padded", SHORT), atol=0, rtol=0)


@pytest.mark.parametrize("kind", ["longrope", "dynamic"])
def test_layouts_are_proven_on_groups_on_both_sides_of_the_border(kind: str) -> None:
    groups = [SHORT, *some_groups(3), LONGER]
    with pytest.raises(PobenchError, match="cannot be computed exactly"):
        choose_layout(ResponseLogps(model_of(kind)), groups, "padded")
    held = model_of(kind)
    fix_rope(held, 64)
    policy = ResponseLogps(held)
    name, why = choose_layout(policy, groups)
    assert "differs" not in why and name in ("shared_prefix", "padded")
    plain = torch.cat([plain_logps(held, group) for group in groups])
    with torch.no_grad():
        torch.testing.assert_close(policy(policy.layout(name).collate(groups)).double(), plain, atol=1e-4, rtol=0)


@pytest.mark.parametrize("kind", ["longrope", "dynamic"])
def test_an_answer_does_not_depend_on_the_prompts_beside_its_own(kind: str) -> None:
    class Ends:
        tokenizer, end = type("T", (), {"eos_token_id": 0, "decode": lambda self, ids, **_: str(ids)})(), 0

    model = model_of(kind)
    fix_rope(model, 64)
    model.generation_config.eos_token_id = 0
    prompts, greedy = [(5, 6, 7, 8), tuple(range(20, 44))], Decoding(max_new_tokens=16)
    together = generate(model, Ends(), prompts, greedy)
    assert [a.text for a in together] == [generate(model, Ends(), [p], greedy)[0].text for p in prompts]


def test_what_lies_beyond_the_frequencies_of_a_run_is_named(tmp_path: Path) -> None:
    CONFIGS["longrope"]().save_pretrained(tmp_path)
    assert [Capacity.of(tmp_path, length).reach for length in (8, 16, 17, 64)] == [16, 16, 128, 128]
    (fault,) = Capacity.of(tmp_path, 8).faults(Extent(3, 20), "answers.source", None, "set a smaller one")
    assert fault == (
        "answers.source: 20 tokens, and the rotary frequencies that max_length chooses reach 16; "
        "set a smaller one, or a max_length of 20"
    )
    assert not Capacity.of(tmp_path, 64).faults(Extent(3, 20), "answers.source", None, "")
    assert [rope_reach(CONFIGS["dynamic"](), length) for length in (8, 16, 64)] == [16, 16, 64]
    assert rope_reach(LlamaConfig(**SMALL), 64) is None


def test_a_model_that_cannot_be_held_is_refused_by_name(tmp_path: Path) -> None:
    model = model_of("longrope")
    model.model.rotary_emb.forward = lambda x, ids, inner=model.model.rotary_emb.forward: inner(x, ids)
    with pytest.raises(
        PobenchError, match=r"Phi3ForCausalLM chooses its rotary frequencies by the longest.*max_length=16"
    ):
        fix_rope(model, 17)
    fix_rope(model, 16)  # no batch is longer than the border


def test_loading_holds_the_frequencies_and_vllm_is_not_asked(tmp_path: Path) -> None:
    model_of("longrope").save_pretrained(tmp_path)
    model = load_model(tmp_path, dtype=torch.float32, length=64)
    torch.testing.assert_close(sums(model, "padded", SHORT, LONGER), sums(model, "padded", SHORT), atol=1e-4, rtol=0)
    with (
        pytest.raises(PobenchError, match="vllm chooses this model's rotary frequencies"),
        speaker_of(model, "vllm", "fp32", 2),
    ):
        pass
