"""A folder that peft has written: an adapter, which means something only with its base below it.

Where such a folder is a start model, `pobench.sources` merges it into its base once and stores the whole model, so that
everything behind it (training, reference, answers, an adapter on top) sees a plain model.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pobench.errors import PobenchError

CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"
TOKENIZER_FILES = (
    "tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt", "spiece.model", "*.jinja",
    "*.tiktoken",
)  # fmt: skip


def is_adapter(folder: Path) -> bool:
    """Whether `folder` holds an adapter, not a whole model. Some trainers store the base's config.json beside it."""
    return (folder / CONFIG_FILE).is_file() and not any(folder.glob("model*.safetensors"))


def base_name(adapter: Path, about: Mapping[str, Any]) -> str:
    """The base that an adapter names: a path as it stands or seen from the adapter's folder, else a name on the hub.

    about: the adapter's configuration.
    """
    name = about.get("base_model_name_or_path")
    if not isinstance(name, str) or not name:
        raise PobenchError(f"{CONFIG_FILE} names none; name it with model.base")
    named = Path(name).expanduser()
    return next((str(path) for path in (named, adapter / named) if path.exists()), name)


def refuse_kind(about: Mapping[str, Any]) -> None:
    """Raises PobenchError for an adapter that is no change of a causal language model's weights."""
    kind, task = str(about.get("peft_type")), about.get("task_type")
    if task not in (None, "CAUSAL_LM"):
        raise PobenchError(f"it was trained for {task}, not for a causal language model (CAUSAL_LM)")
    if kind in ("PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING", "MULTITASK_PROMPT_TUNING", "ADAPTION_PROMPT", "CPT"):
        raise PobenchError(f"{kind} adds tokens to the prompt and cannot be merged into weights")


def put_in(model: Any, folder: Path) -> Any:
    """Put the stored adapter into `model`, its base, in place; returns peft's wrapper in evaluation mode.

    Embeddings that were trained with more rows than the base has (added tokens) make room for them. Raises PobenchError if
    adapter and base do not fit, to the last weight.
    """
    if importlib.util.find_spec("peft") is None:
        raise PobenchError("peft is not installed, which adapters need; pip install 'pobench[peft]'")
    from peft import PeftModel
    from peft.utils import get_peft_model_state_dict
    from safetensors import SafetensorError, safe_open

    if not (folder / WEIGHTS_FILE).is_file():
        pickled = " (pickled *.bin weights are not read; save them as safetensors)" if any(folder.glob("*.bin")) else ""
        raise PobenchError(f"{str(folder)!r} is not whole; missing: {WEIGHTS_FILE}{pickled}")
    try:
        with safe_open(folder / WEIGHTS_FILE, "pt") as file:
            shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118 (no mapping)
        _make_room(model, shapes)
        adapted = PeftModel.from_pretrained(model, str(folder)).eval()
    except (ValueError, RuntimeError, KeyError, TypeError, SafetensorError, json.JSONDecodeError) as error:
        raise PobenchError(f"the adapter in {str(folder)!r} does not fit its base: {error}") from error
    own = set(get_peft_model_state_dict(adapted, save_embedding_layers=False))
    missing, unknown = own - set(shapes), set(shapes) - own - set(adapted.state_dict())
    for names, fault in ((missing, "are missing"), (unknown, "are unknown to the base")):
        if names:
            first = ", ".join(sorted(names)[:3])
            raise PobenchError(
                f"the adapter in {str(folder)!r} does not fit its base: {len(names)} of its weights {fault} ({first})"
            )
    return adapted


def _make_room(model: Any, shapes: Mapping[str, list[int]]) -> None:
    """Resize the embeddings to those that are stored beside the adapter. shapes: of the stored weights."""
    embeddings = model.get_input_embeddings()
    name = next(name for name, module in model.named_modules() if module is embeddings)
    rows = next((shape[0] for key, shape in shapes.items() if key.endswith(f"{name}.weight")), None)
    if rows is not None and rows != embeddings.weight.shape[0]:
        model.resize_token_embeddings(rows)


def tokenizer_files(adapter: Path, base: Path) -> dict[str, Path]:
    """Name → file of the tokenizer and chat template that the adapter was trained with; the base's, where none is stored
    beside it."""
    own = (adapter / "tokenizer_config.json").is_file()
    folders = (adapter,) if own else (base, adapter)
    found = {
        f.name: f for folder in folders for pattern in TOKENIZER_FILES for f in folder.glob(pattern) if f.is_file()
    }
    return dict(sorted(found.items()))
