"""Small models of every architecture that the settings use, and groups of random tokens for them."""

from __future__ import annotations

import random

import torch
from transformers import (
    AutoModelForCausalLM,
    CohereConfig,
    Gemma2Config,
    GPT2Config,
    GraniteConfig,
    LlamaConfig,
    MistralConfig,
    Qwen2Config,
)

from pobench.types import Group

SMALL = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}
CONFIGS = {
    "llama": LlamaConfig(**SMALL),
    "mistral with a sliding window": MistralConfig(**SMALL, sliding_window=8),
    "mistral without": MistralConfig(**SMALL, sliding_window=None),
    "gemma2": Gemma2Config(
        **SMALL, head_dim=8, sliding_window=8, attn_logit_softcapping=5.0, final_logit_softcapping=3.0
    ),
    "qwen2": Qwen2Config(**SMALL),
    "qwen2 with a sliding window": Qwen2Config(**SMALL, use_sliding_window=True, sliding_window=8, max_window_layers=1),
    "gpt2": GPT2Config(vocab_size=97, n_embd=32, n_layer=2, n_head=4, n_positions=128),
    "granite": GraniteConfig(**SMALL, logits_scaling=3.0),
    "cohere": CohereConfig(**SMALL, logit_scale=0.5),
}


def tiny(name: str, attention: str = "sdpa"):
    torch.manual_seed(0)
    attention = "eager" if name == "gemma2" else attention
    model = AutoModelForCausalLM.from_config(CONFIGS[name], attn_implementation=attention)
    with torch.no_grad():  # fresh weights give near-uniform predictions; spread them so that a wrong token shows
        for p in model.parameters():
            p.mul_(4.0) if p.ndim > 1 else p
    return model.eval()


def some_groups(n: int = 7, seed: int = 0, root: int = 0) -> list[Group]:
    """root: how many tokens all prompts begin with. Then the last group's prompt is these alone."""
    rng = random.Random(seed)

    def ids(low: int, high: int) -> tuple[int, ...]:
        return tuple(rng.randrange(1, 97) for _ in range(rng.randint(low, high)))

    groups = [Group(ids(1, 20), tuple(ids(1, 15) for _ in range(rng.randint(1, 3)))) for _ in range(n)]
    if root:
        begin = tuple(rng.randrange(1, 97) for _ in range(root))
        groups = [g._replace(prompt=begin + (() if g is groups[-1] else g.prompt)) for g in groups]
    return groups
