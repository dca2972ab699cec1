"""What the start model of a generated world is made of: a word-level tokenizer with a chat template, and a small Llama."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

SPECIAL = ("<pad>", "<unk>", "<|user|>", "<|assistant|>", "<|end|>")
TEMPLATE = (
    "{% for message in messages %}"
    "{% if message.role == 'assistant' %}<|assistant|>{% generation %}{{ message.content }}<|end|>{% endgeneration %}"
    "{% elif message.role == 'user' %}<|user|>{{ message.content }}"
    "{% else %}{{ raise_exception('the template knows the roles user and assistant') }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def vocabulary(texts: Iterable[str]) -> list[str]:
    """Every word and mark of the texts, sorted, behind the special tokens."""
    return [*SPECIAL, *sorted({word for text in texts for word in re.findall(r"\w+|[^\w\s]", text)})]


def word_tokenizer(texts: Iterable[str], longest: int) -> Any:
    """A tokenizer of transformers whose tokens are the words and marks of `texts`. longest: tokens of its model's context."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    ids = {word: i for i, word in enumerate(vocabulary(texts))}
    words = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token="<pad>",
        unk_token="<unk>",
        eos_token="<|end|>",
        additional_special_tokens=["<|user|>", "<|assistant|>"],
        model_max_length=longest,
        clean_up_tokenization_spaces=True,
    )
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def small_llama(tokenizer: Any, seed: int) -> Any:
    """A Llama of 128 × 3 layers and 4 heads with random weights, whose context is the tokenizer's `model_max_length`."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=128,
            intermediate_size=320,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=4,
            max_position_embeddings=tokenizer.model_max_length,
            rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
            tie_word_embeddings=True,
            initializer_range=0.1,  # larger than usual, so that the model learns to copy sooner
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
