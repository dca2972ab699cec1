"""The smallest whole world: a random model of two layers, a word tokenizer, forty preference rows, three prompts, an exact
judge; and what may not differ between two runs of one command in it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForSequenceClassification, PreTrainedTokenizerFast

from pobench.columns import FRAMES
from pobench.results.load import load_frames
from pobench.workflows.invariance import small_model

SPECIAL = ["<pad>", "<|im_start|>", "<|im_end|>", "<unk>", "user", "assistant", "say"]
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }} {{ m['content'] }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant {% endif %}"
)


def tokenizer() -> Any:
    """Words split at spaces, a chat template in ChatML's style."""
    words = [*SPECIAL, *(f"w{i}" for i in range(50))]
    inner = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made = PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", eos_token="<|im_end|>", unk_token="<unk>",
        additional_special_tokens=["<|im_start|>"],
    )  # fmt: skip
    made.chat_template = TEMPLATE
    return made


def make_world(
    folder: Path,
    *,
    epochs: int = 4,
    rows: Sequence[Mapping[str, str]] = (),
    train: Mapping[str, Any] | None = None,
) -> Path:
    """Write the world; returns its setting. A checkpoint is saved behind every step. epochs: of nine steps each. rows: others
    than the forty. train: further keys of that section."""
    small_model().save_pretrained(folder / "model")
    tokenizer().save_pretrained(folder / "model")
    rows = rows or [
        {"id": str(i), "prompt": f"say w{i}", "chosen": f"w{i} w1", "rejected": f"w{i} w2 w3"} for i in range(40)
    ]
    prompts = [{"id": f"e{i}", "prompt": f"say w{i}", "check": {"kind": "at_most_words", "n": 3}} for i in range(3)]
    for name, lines in (("pairs", rows), ("prompts", prompts)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    usual = {
        "lr": 1e-3,
        "batch_size": 4,
        "precision": "fp32",
        "micro_tokens": 200,
        "epochs": epochs,
        "checkpoint_seconds": 0,
    }
    setting = {
        "name": "small",
        "model": {"source": str(folder / "model")},
        "data": {"source": str(folder / "pairs.jsonl"), "held_out_fraction": 0.3},
        "train": {**usual, **(train or {})},
        "answers": {"source": str(folder / "prompts.jsonl"), "max_new_tokens": 4, "precision": "fp32"},
        "judge": {"name": "verifiable"},
    }
    (folder / "small.yaml").write_text(yaml.safe_dump(setting))
    return folder / "small.yaml"


def save_reward_model(world: Path) -> Path:
    """A reward model with the world's tokenizer and random weights; its folder."""
    config = small_model().config
    config.num_labels, config.pad_token_id = 1, 0
    torch.manual_seed(1)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(world / "rewards")
    tokenizer().save_pretrained(world / "rewards")
    return world / "rewards"


def results(runs: Path, cache: Path) -> dict[str, str]:
    """Name → digest, of all that two runs of one command must have alike: trained weights, every frame but its measured columns
    and the looks, the names of reference sums, which are digests of their bytes, and the numbers of the logged steps."""
    found = {str(path.relative_to(runs)): digest_of(path.read_bytes()) for path in runs.rglob("model/*.safetensors")}
    sums = (path for path in cache.glob("reference/*/sums-*") if path.parent.suffix != ".damaged")
    found |= {str(path.relative_to(cache)): "" for path in sums}
    for path in runs.glob("*/*/steps.jsonl"):
        try:
            steps = [json.loads(line)["step"] for line in path.read_text().splitlines()]
        except ValueError:
            steps = ["a line that cannot be read"]
        found[str(path.relative_to(runs))] = ",".join(map(str, steps))
    for name, frame in load_frames(runs).items():
        if name == "looks":  # which reports were made on the way
            continue
        measured = [column.name for column in FRAMES[name].columns if column.measured]
        found[f"frame {name}"] = digest_of(frame.drop(columns=measured, errors="ignore").to_csv(index=False).encode())
    return found


def digest_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]
