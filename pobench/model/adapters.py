"""LoRA and QLoRA, through peft: small matrices beside frozen ones are trained, and nothing else.

    y = W x + (alpha / r) · B A x        W frozen; A: (r, in) random, B: (out, r) zero at first
    Hu et al. 2021, arXiv 2106.09685; Dettmers et al. 2023, arXiv 2305.14314 (the frozen W as 4-bit NormalFloat)

peft puts its layers into the model in place, so the loop sees a causal model most of whose weights ask for no gradient.
The frozen model IS the reference: B = 0 leaves every sum as it was, to the bit, and a trained adapter can be switched off.
No second model is ever held, and where the frozen weights are fp32 the cache of reference sums is the one that full
training fills.
"""

from __future__ import annotations

import importlib.util
import json
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch

from pobench.errors import PobenchError
from pobench.settings.schema import AdapterConfig

CONFIG_FILE = "adapter_config.json"


def missing(config: AdapterConfig | None) -> list[str]:
    """What this machine lacks for such an adapter, one plain line each."""
    if config is None:
        return []
    lacking = []
    if importlib.util.find_spec("peft") is None:
        lacking.append("train.adapter: peft is not installed; pip install 'pobench[peft]'")
    if config.quantize != "none":
        if importlib.util.find_spec("bitsandbytes") is None:
            lacking.append(
                f"train.adapter.quantize: {config.quantize}: bitsandbytes is not installed; pip install 'pobench[qlora]'"
            )
        if not torch.cuda.is_available():
            lacking.append(
                f"train.adapter.quantize: {config.quantize} needs a GPU, and there is none; without it: "
                "--set train.adapter.quantize=none --set train.adapter.base_precision=bf16"
            )
    return lacking


def attach(model: Any, config: AdapterConfig, seed: int) -> Any:
    """Freeze `model` and put fresh fp32 adapters into it, in place; returns peft's wrapper of it.

    The random factor depends on `seed` alone. Raises PobenchError where target_modules name nothing, or the output head.
    """
    from peft import LoraConfig, get_peft_model
    from peft.tuners.tuners_utils import BaseTunerLayer

    targets = config.target_modules
    lora = LoraConfig(
        task_type="CAUSAL_LM",
        r=config.r,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        target_modules=targets if isinstance(targets, str) else list(targets),
        bias="none",
    )
    try:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            adapted = get_peft_model(model, lora)
    except ValueError as error:
        linear = sorted(
            {name.rpartition(".")[2] for name, m in model.named_modules() if isinstance(m, torch.nn.Linear)}
        )
        raise PobenchError(
            f"train.adapter.target_modules: got {targets!r}; the model's linear layers are {', '.join(linear)} ({error})"
        ) from None
    if isinstance(model.get_output_embeddings(), BaseTunerLayer):
        raise PobenchError("train.adapter.target_modules: the output head stays frozen; leave it out")
    return adapted


def disabled(adapted: Any) -> AbstractContextManager[None]:
    """Inside, the model computes what its frozen base computes: the reference."""
    found: AbstractContextManager[None] = adapted.disable_adapter()
    return found


def save(adapted: Any, folder: Path, source: str, revision: str | None = None) -> None:
    """`adapter_model.safetensors` and `adapter_config.json`, which names `source` as its base: what peft, and what
    reads its files, can load."""
    about = adapted.peft_config["default"]
    about.base_model_name_or_path, about.revision = source, revision
    about.target_modules = sorted(about.target_modules)  # a set, whose order is another in every process
    adapted.save_pretrained(folder, safe_serialization=True, save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)  # peft's form for a model card, not filled in


def stored_in(folder: Path) -> bool:
    """Whether `folder` holds an adapter, not a whole model."""
    return (folder / CONFIG_FILE).is_file()


def load(model: Any, folder: Path) -> Any:
    """Put the stored adapter into `model`, its base, in place; returns peft's wrapper. Raises PobenchError."""
    from peft import PeftModel

    if not (folder / "adapter_model.safetensors").is_file():
        raise PobenchError(f"{str(folder)!r} is not whole; missing: adapter_model.safetensors")
    try:
        return PeftModel.from_pretrained(model, str(folder)).eval()
    except (ValueError, RuntimeError, KeyError, json.JSONDecodeError) as error:
        raise PobenchError(f"the adapter in {str(folder)!r} does not fit its base: {error}") from error


def merged(adapted: Any) -> Any:
    """The plain model that computes the same: W + (alpha / r) B A, in place. Only of fp32 weights, which can hold it."""
    return adapted.merge_and_unload()
