"""Models, tokenizers and pairs made on the spot: nothing is downloaded, and no file is needed.

Weights and tokens are random, so nothing is learned; what a step costs does not depend on that.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from pobench.model.word_level import SPECIAL, word_tokenizer
from pobench.types import TokenPair

PROPORTIONS = {"prompt": 150, "chosen": 300, "rejected": 250}  # mean tokens of a pair of UltraFeedback
# Of the logarithm of a part's length. Not published; chosen so that the longest of a hundred parts is five times their median.
SCATTER = 0.6
LONGEST = {"prompt": 900, "chosen": 1000, "rejected": 1000}  # a prompt with an answer fits the models' 2,048 positions
SHAPES: dict[str, dict[str, Any]] = {
    "random-1b": {  # Llama-3.2-1B's, 1.24 billion parameters
        "vocab_size": 128_256, "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,
        "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 64, "tie_word_embeddings": True,
    },
    "random-7b-cut": {  # eight of Mistral-7B's 32 layers, 2.0 billion parameters
        "vocab_size": 32_000, "hidden_size": 4096, "intermediate_size": 14_336, "num_hidden_layers": 8,
        "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128, "tie_word_embeddings": False,
    },
    "random-small": {
        "vocab_size": 512, "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32, "tie_word_embeddings": True,
    },
    "random-tiny": {
        "vocab_size": 512, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "tie_word_embeddings": True,
    },
}  # fmt: skip


def make_model(folder: Path, shape: dict[str, Any]) -> int:
    """Write a Llama with random weights, the same every time on one kind of device, and a tokenizer; returns the parameters."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    words = " ".join(f"w{i}" for i in range(shape["vocab_size"] - len(SPECIAL)))
    tokenizer = word_tokenizer([words], 2048)
    ids = {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    config = LlamaConfig(**shape, **ids, max_position_embeddings=2048, dtype="float32")
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):  # a billion draws take a GPU no time
        model = LlamaForCausalLM(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return sum(p.numel() for p in model.parameters())


def random_pairs(count: int, vocabulary: int, shrink: float = 1) -> list[TokenPair]:
    """Pairs of random tokens. A part's length is log-normal, of mean `PROPORTIONS` / shrink, at most `LONGEST` / shrink."""
    draw = random.Random(0)

    def part(name: str) -> tuple[int, ...]:
        length = min(spread_length(draw, PROPORTIONS[name] / shrink), round(LONGEST[name] / shrink))
        return tuple(draw.randrange(len(SPECIAL), vocabulary) for _ in range(max(1, length)))

    return [TokenPair(f"{i}", part("prompt"), part("chosen"), part("rejected")) for i in range(count)]


def spread_length(draw: random.Random, mean: float) -> int:
    """A log-normal length of this mean."""
    return round(draw.lognormvariate(math.log(mean) - SCATTER**2 / 2, SCATTER))


def cut_to(pairs: Sequence[TokenPair], count: int, tokens: int, longest: int) -> list[TokenPair]:
    """`count` pairs of `tokens` tokens in the mean, made of the given pairs' own tokens: each part is cut from the run of all
    prompts, of all chosen or of all rejected answers, which begins again where it ends. UltraFeedback's proportions and
    spread; a prompt with an answer has at most `longest` tokens."""
    draw = random.Random(0)
    share = tokens / sum(PROPORTIONS.values())
    runs = {name: [token for pair in pairs for token in getattr(pair, name)] for name in PROPORTIONS}
    starts = dict.fromkeys(runs, 0)

    def part(name: str) -> tuple[int, ...]:
        length = max(2, min(spread_length(draw, PROPORTIONS[name] * share), longest // 2))
        run, start = runs[name], starts[name]
        starts[name] += length
        return tuple(run[(start + i) % len(run)] for i in range(length))

    return [TokenPair(f"{i}", part("prompt"), part("chosen"), part("rejected")) for i in range(count)]
