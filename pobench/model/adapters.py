"""LoRA and QLoRA, through peft: train small matrices beside the frozen weights.

    y = W x + (alpha / r) · B A x        W frozen; A: (r, in) random, B: (out, r) zero at first
    Hu et al. 2021, arXiv 2106.09685; Dettmers et al. 2023, arXiv 2305.14314 (the frozen W as 4-bit NormalFloat)

peft puts its layers into the model in place, so the training loop sees a causal model with mostly frozen weights. The frozen
model is the reference: B = 0 changes no bit of any sum, and a trained adapter can be switched off. So no second model is
needed, and if the frozen weights are fp32, adapters and full training share the cache of reference sums.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch

from pobench.errors import PobenchError
from pobench.settings.schema import AdapterConfig


def missing(config: AdapterConfig | None) -> list[str]:
    """What this machine lacks for this adapter, one line each."""
    if config is None:
        return []
    faults = []
    if importlib.util.find_spec("peft") is None:
        faults.append("train.adapter: peft is not installed; pip install 'pobench[peft]'")
    if config.quantize != "none":
        if importlib.util.find_spec("bitsandbytes") is None:
            faults.append(
                f"train.adapter.quantize: {config.quantize}: bitsandbytes is not installed; pip install 'pobench[qlora]'"
            )
        if not torch.cuda.is_available():
            faults.append(
                f"train.adapter.quantize: {config.quantize} needs a GPU, and there is none; without it: "
                "--set train.adapter.quantize=none --set train.adapter.base_precision=bf16"
            )
    return faults


def attach(model: Any, config: AdapterConfig, seed: int) -> Any:
    """Freeze `model` and put fresh fp32 adapters into it, in place; returns peft's wrapper of it.

    The random factor depends on `seed` alone. Raises PobenchError if target_modules match no layer, or the output head.
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
    """Inside, the model computes as its frozen base does, which is the reference."""
    switched_off: AbstractContextManager[None] = adapted.disable_adapter()
    return switched_off


def save(
    adapted: Any,
    folder: Path,
    source: str,
    revision: str | None = None,
    *,
    state: Mapping[str, torch.Tensor] | None = None,
) -> None:
    """Write `adapter_model.safetensors` and `adapter_config.json`, in the format of peft, with `source` as the base.

    state: the adapter's weights, where the model has only shares of them."""
    about = adapted.peft_config["default"]
    about.base_model_name_or_path, about.revision = source, revision
    about.target_modules = sorted(about.target_modules)  # a set: its order changes from process to process
    given = {} if state is None else {"state_dict": dict(state)}
    adapted.save_pretrained(folder, safe_serialization=True, save_embedding_layers=False, **given)
    (folder / "README.md").unlink(missing_ok=True)  # peft's empty model card


def merged(adapted: Any) -> Any:
    """Merge the adapter into the weights, in place: W + (alpha / r) B A. Only for fp32 weights: narrower ones would round the
    product away."""
    return adapted.merge_and_unload()
