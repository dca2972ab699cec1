"""What LLM-Blender's own classes say of a tiny PairRM, stored in `pairrm.json`; and that tiny PairRM, for the test.

    pip install --no-deps --target SITE llm-blender==0.0.2 transformers==4.46.3 tokenizers==0.20.3 huggingface_hub==0.26.5 \
        dataclasses-json==0.6.7 marshmallow==3.23.1 typing-inspect mypy-extensions
    python tests/pobench/judging/pairrm_reference.py SITE        # in an environment that has torch; writes pairrm.json

The package needs a transformers of its time, so it has a folder of its own. Its `Blender` reads the layout of
llm-blender/PairRM, its `DebertaV2PairRM` that of llm-blender/PairRM-hf; all weights are drawn by their names.
"""

from __future__ import annotations

import hashlib
import json
import sys
import tempfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

STORED = Path(__file__).with_name("pairrm.json")
SPECIAL = ["[PAD]", "[CLS]", "[SEP]", "[UNK]"]
PREFIXES = ["<|source|>", "<|candidate1|>", "<|candidate2|>", "<|candidate|>"]
LIMITS = {"source_maxlength": 24, "candidate_maxlength": 11}  # so that short texts are cut

PROMPTS = [
    "Why is the sky blue?",
    "Name two rivers\nof  Europe, and say where they end.",
    "½ of a pie, the ﬁrst: how much is left? " + "Think about it, please. " * 4,
    "  Hi!  ",
]
ANSWERS = [
    "Air scatters blue light more than red light.",
    "Because.",
    "The Rhine ends in the North Sea [SEP] and the Danube in the Black Sea.",
    "  I do not know:\n\n1. no\n2. no\t ",
    "",
    "It is the sky, and the sky is blue, and that is all that there is to say about the sky. " * 3,
]
PAIRS = [(p, a, b) for i, p in enumerate(PROMPTS) for a, b in zip(ANSWERS[i:], ANSWERS[i + 1 :], strict=False)]
LONG = ("Say a word. " * 600, "A word, and another word. " * 300, "No. " * 700)  # longer than 1,224 and 412 tokens
FIVE = [ANSWERS[0], ANSWERS[1], ANSWERS[3], ANSWERS[0], ANSWERS[5]]  # a repeated answer among them
TURNS = [
    {"role": "user", "content": "Hello"},
    {"role": "assistant", "content": "Hello, who are you?"},
    {"role": "user", "content": "Say it again."},
]


def tokenizer() -> Any:
    """Unigrams in the pieces of DeBERTa-v3's tokenizer: outer white space off, NFKC, one space for several, `▁`."""
    from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, processors

    words = sorted({f"▁{w}" for t in (*PROMPTS, *ANSWERS) for w in t.split() if w.isalpha() and len(w) < 5})
    pieces = ["▁", *map(chr, range(33, 127)), *words]
    vocabulary = [*((t, 0.0) for t in SPECIAL), *((piece, -10.0 + len(piece)) for piece in pieces)]
    made = Tokenizer(models.Unigram(vocabulary, unk_id=SPECIAL.index("[UNK]"), byte_fallback=False))
    spaces = normalizers.Replace(Regex(" {2,}"), " ")
    made.normalizer = normalizers.Sequence([normalizers.Strip(), normalizers.NFKC(), spaces])
    made.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Metaspace("▁", prepend_scheme="always")])
    ends = [(t, SPECIAL.index(t)) for t in ("[CLS]", "[SEP]")]
    made.post_processor = processors.TemplateProcessing(
        single="[CLS]:0 $A:0 [SEP]:0", pair="[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1", special_tokens=ends
    )
    made.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in SPECIAL])
    made.add_tokens(["[MASK]"])
    return made


def body_config(rows: int) -> dict[str, Any]:
    """DeBERTa-v3-large's configuration with small sizes. rows: of its embeddings."""
    return {
        "model_type": "deberta-v2",
        "vocab_size": rows,
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 24,
        "hidden_act": "gelu",
        "max_position_embeddings": 24,
        "type_vocab_size": 0,
        "layer_norm_eps": 1e-7,
        "relative_attention": True,
        "max_relative_positions": -1,
        "position_buckets": 8,
        "norm_rel_ebd": "layer_norm",
        "share_att_key": True,
        "pos_att_type": ["p2c", "c2p"],
        "position_biased_input": False,
        "pad_token_id": 0,
        "pooler_hidden_size": 16,
    }


def fill(module: Any) -> Any:
    """Numbers for every weight of a PairRM, drawn by its name."""
    import torch

    for name, weight in module.named_parameters():
        drawn = np.random.RandomState(zlib.crc32(name.encode())).normal(0.0, 0.4, tuple(weight.shape))
        weight.data.copy_(torch.from_numpy(drawn) + float("LayerNorm.weight" in name))
    return module.eval()


def save(folder: Path, config: dict[str, Any], weights: dict[str, Any], pieces: Any = None) -> Path:
    """A checkpoint's folder. pieces: its tokenizer, if it has one."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file({k: v.contiguous() for k, v in weights.items()}, folder / "model.safetensors", {"format": "pt"})
    if pieces is not None:
        pieces.save(str(folder / "tokenizer.json"))
        roles = {f"{t.strip('[]').lower()}_token": t for t in (*SPECIAL, "[MASK]")}
        (folder / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": False, **roles}))
    return folder


def ranker_config(body: Path) -> dict[str, Any]:
    """The fields of llm-blender/PairRM's config.json. body: the folder of its DeBERTa."""
    kind = {"ranker_type": "pairranker", "model_type": "deberta", "model_name": str(body), "n_tasks": 1}
    return {**kind, **LIMITS, "drop_out": 0.05, "fp16": False, "device": "cpu", "load_checkpoint": None}


def hf_config(rows: int) -> dict[str, Any]:
    """The fields of llm-blender/PairRM-hf's config.json."""
    ids = {
        "source_prefix_id": rows - 4,
        "cand1_prefix_id": rows - 3,
        "cand2_prefix_id": rows - 2,
        "cand_prefix_id": rows - 1,
    }
    return {**body_config(rows), **ids, "n_tasks": 1, "drop_out": 0.05, "sep_token_id": 2}


def digest(ids: list[int]) -> str:
    """Of a row of token ids."""
    return hashlib.sha256(" ".join(map(str, ids)).encode()).hexdigest()


def reference(folder: Path) -> dict[str, Any]:
    """The package's numbers: of both layouts, with the first answer shown first unless said otherwise."""
    import torch
    import transformers
    from llm_blender.blender.blender import Blender
    from llm_blender.blender.blender_utils import tokenize_pair
    from llm_blender.pair_ranker.pairrm import DebertaV2PairRM

    pieces = tokenizer()
    bare = pieces.get_vocab_size()
    pieces.add_tokens(PREFIXES)
    rows = pieces.get_vocab_size()
    config = transformers.DebertaV2Config.from_dict(hf_config(rows))
    model = fill(DebertaV2PairRM(config))
    hf = save(folder / "hf", hf_config(rows), model.state_dict(), pieces)
    body = {k.removeprefix("pretrained_model."): v for k, v in model.state_dict().items() if "pretrained" in k}
    body["embeddings.word_embeddings.weight"] = body["embeddings.word_embeddings.weight"][:bare]
    deberta = save(folder / "deberta", body_config(bare), body, tokenizer())
    own = save(folder / "PairRM", ranker_config(deberta), model.state_dict())

    read = transformers.AutoTokenizer.from_pretrained(hf)
    loaded = DebertaV2PairRM.from_pretrained(hf).eval()
    blender = Blender()
    blender.loadranker(str(own), device="cpu")

    def hf_score(prompt: str, a: str, b: str) -> float:
        with torch.no_grad():
            return float(loaded(**tokenize_pair(read, [prompt], [a], [b])).logits[0])

    def compared(prompt: str, a: str, b: str) -> float:
        return float(blender.compare([prompt], [a], [b], return_logits=True, mode="[A,B]", batch_size=1)[0])

    def conversation(answer: str) -> list[dict[str, str]]:
        roles = {"user": "USER", "assistant": "ASSISTANT"}
        return [{**t, "role": roles[t["role"]]} for t in (*TURNS, {"role": "assistant", "content": answer})]

    several = blender.compare_conversations(
        [conversation(ANSWERS[0])], [conversation(ANSWERS[1])], return_logits=True, mode="[A,B]"
    )
    plain = [pair for pair in PAIRS if "[SEP]" not in "".join(pair)]
    return {
        "made_with": {"llm-blender": "0.0.2", "transformers": transformers.__version__},
        "hf": [hf_score(*pair) for pair in plain],
        "long": digest(tokenize_pair(read, *([text] for text in LONG))["input_ids"][0].tolist()),
        "compare": [compared(*pair) for pair in PAIRS],
        "rank": [blender.rank([p], [FIVE], return_scores=True, batch_size=1)[0].tolist() for p in PROMPTS],
        "several_turns": float(several[0]),
    }


if __name__ == "__main__":
    sys.path.insert(0, sys.argv[1])
    with tempfile.TemporaryDirectory() as temporary:
        numbers = reference(Path(temporary))
    STORED.write_text(json.dumps(numbers, indent=1) + "\n")
