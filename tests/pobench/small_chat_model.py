"""A chat model small enough for any test: random weights, a tokenizer of single characters, a chat template."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

CHARACTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789 .,!?\n\"'-:<>|_"
SPECIAL = ["<unk>", "<|start|>", "<|end|>", "<|pad|>"]
TEMPLATE = (
    "{% for message in messages %}<|start|>{{ message['role'] }}\n{{ message['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)
SIZES = {
    "vocab_size": len(SPECIAL) + len(CHARACTERS),
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "eos_token_id": SPECIAL.index("<|end|>"),
    "pad_token_id": SPECIAL.index("<|pad|>"),
    "bos_token_id": None,
}


def character_tokenizer(pad: str | None = "<|pad|>") -> Any:
    vocabulary = {token: i for i, token in enumerate([*SPECIAL, *CHARACTERS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in SPECIAL])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", eos_token="<|end|>", pad_token=pad, chat_template=TEMPLATE
    )


def chat_model(architecture: str = "llama", seed: int = 0, loud: float = 8.0, **settings: Any) -> Any:
    """`loud` scales the weights, so that a random model prefers some tokens clearly."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(architecture, **{**SIZES, **settings}))
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1:
                weight.mul_(loud)
    return model.eval()


def save_chat_model(folder: Path, **settings: Any) -> Path:
    chat_model(**settings).save_pretrained(folder)
    character_tokenizer().save_pretrained(folder)
    return folder
