"""Load a causal language model from a folder, with the weight type and the attention that a run needs."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from pobench.errors import PobenchError
from pobench.model.rope import fix_rope
from pobench.model.sharding import RowFiles, as_outline
from pobench.progress import without_bars
from pobench.settings.schema import AdapterConfig
from pobench.sources import read_config, weights_fault


def attention_of(folder: Path, attention: str = "auto") -> str | None:
    """The kind of attention to load the model in `folder` with; None: `sdpa`, or `eager` for a model that has no other (GPT-J,
    BLOOM, gpt-oss). Soft-capped attention exists only as `eager`."""
    if attention not in ("auto", "flex", "flash_attention_2"):
        return attention
    return "eager" if read_config(folder).get("attn_logit_softcapping") else None


def load_base(
    folder: Path,
    config: AdapterConfig | None,
    *,
    dtype: torch.dtype | None = None,
    attention: str | None = None,
    trust_remote_code: bool = False,
    length: int | None = None,
    device: torch.device | None = None,
) -> Any:
    """The model in `folder`. Its weights have the type that the adapter's settings give for the base; fp32 without an adapter.

    dtype: overrides that type for weights that are not quantised. length: see `load_model`. device: where 4-bit weights are
    made.
    Raises PobenchError if the model cannot be loaded.
    """
    if config is None or config.quantize == "none":
        own = torch.bfloat16 if config is not None and config.base_precision == "bf16" else torch.float32
        return load_model(
            folder, dtype=dtype or own, attention=attention, trust_remote_code=trust_remote_code, length=length
        )
    from transformers import BitsAndBytesConfig

    four_bits = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=config.quantize,
        bnb_4bit_use_double_quant=True,  # arXiv 2305.14314, Section 3
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    return load_model(
        folder,
        dtype=torch.bfloat16,
        attention=attention,
        trust_remote_code=trust_remote_code,
        length=length,
        quantization_config=four_bits,
        device_map={"": device or torch.device("cpu")},
    )


def outline(config: Mapping[str, Any]) -> Any:
    """A causal language model with this configuration, on the meta device: its weights have shapes and no memory."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(_config(config))


def count_parameters(config: Mapping[str, Any]) -> int:
    """The number of parameters of a causal language model with this configuration. No weights are allocated."""
    return sum(p.numel() for p in outline(config).parameters())


def _config(values: Mapping[str, Any]) -> Any:
    from transformers import AutoConfig

    rest = {k: v for k, v in values.items() if k not in ("model_type", "architectures", "transformers_version")}
    return AutoConfig.for_model(values["model_type"], **rest)


def load_model(
    folder: Path,
    *,
    dtype: Any,
    attention: str | None = None,
    trust_remote_code: bool = False,
    length: int | None = None,
    **quantized: Any,
) -> Any:
    """The causal language model in `folder`, in evaluation mode. dtype: a torch.dtype. attention: see `attention_of`.

    length: tokens for which rotary frequencies that depend on a length are chosen; None: the longest sequence of each batch.
    quantized: `quantization_config` and `device_map`, for weights that are quantised while they are read.
    Raises PobenchError if the model cannot be loaded, or if its weights are not those of its configuration, or not finite.
    """
    model = _loaded(
        folder, dtype=dtype, attn_implementation=attention, trust_remote_code=trust_remote_code, **quantized
    )
    refuse_not_finite(model, f"model {str(folder)!r}")
    if length is not None:
        fix_rope(model, length)
    return model.eval()


def refuse_not_finite(model: Any, name: str) -> None:
    """Raises PobenchError that names the weights which hold nan or infinity. name: of the model, for the message."""
    held = ((key, weight.detach()) for key, weight in model.named_parameters() if weight.is_floating_point())
    # a sum is fast, and not finite where a weight is not; it may also overflow
    bad = [key for key, weight in held if not bool(weight.sum().isfinite()) and not bool(weight.isfinite().all())]
    if bad:
        more = f" and {len(bad) - 3} more" if bad[3:] else ""
        raise PobenchError(f"{name}: weights hold nan or infinity: {', '.join(bad[:3])}{more}")


class Outline(NamedTuple):
    """A model without memory for its weights, and the files that hold them."""

    model: Any
    files: RowFiles


def load_outline(
    folder: Path,
    *,
    dtype: torch.dtype,
    attention: str | None = None,
    trust_remote_code: bool = False,
    length: int | None = None,
) -> Outline | None:
    """The model in `folder` as `sharding.shard` fills it, so that no process ever holds all of its weights; options as of
    `load_model`. None where the folder has no safetensors with the names and shapes of the model's own weights (GGUF, pickles,
    names that transformers translates): such a model is loaded whole."""
    from accelerate import init_empty_weights
    from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

    files = RowFiles(folder)
    config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
    with init_empty_weights(include_buffers=False):
        model = AutoModelForCausalLM.from_config(
            config, dtype=dtype, attn_implementation=attention, trust_remote_code=trust_remote_code
        )
    as_outline(model, dtype)
    model.tie_weights()
    if not all(files.holds(name, weight.shape) for name, weight in model.named_parameters()):
        return None
    if any(name in files for name, _ in model.named_buffers()):
        return None  # stored beside the weights, and not made by the model's own code
    if (folder / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(folder)
    if length is not None:
        fix_rope(model, length)
    return Outline(model.eval(), files)


def check_model(folder: Path, *, trust_remote_code: bool = False) -> None:
    """Raises PobenchError, as `load_model` would, for a configuration or weights that are not those of one model.

    Of the weights only the headers are read (names, shapes, sizes), so this takes no time and no memory.
    """
    if "quantization_config" in read_config(folder):
        return  # its packages need not be here, where it is planned
    with without_bars():
        _loaded(
            folder,
            dtype=torch.float32,
            attn_implementation=attention_of(folder),
            trust_remote_code=trust_remote_code,
            device_map="meta",
        )


def _loaded(folder: Path, **options: Any) -> Any:
    from transformers import AutoModelForCausalLM
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    try:
        read: Any = AutoModelForCausalLM.from_pretrained(
            folder,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are found and refused by name below
            **options,
        )
    except Exception as error:  # transformers and safetensors raise a dozen unrelated types
        about = read_config(folder)
        kind = about.get("model_type")
        if "auto_map" not in about and str(kind) not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
            raise PobenchError(
                f"model {str(folder)!r}: the model_type in its config.json is {kind!r}, which is no causal language model "
                f"that transformers {importlib.metadata.version('transformers')} knows"
            ) from error
        reason = f"{type(error).__name__}: {error}" if isinstance(error, LookupError) or not str(error) else error
        raise PobenchError(f"model {str(folder)!r} cannot be loaded: {reason}") from error
    model, found = read
    if fault := weights_fault(found):
        raise PobenchError(f"model {str(folder)!r}: {fault}")
    return model
