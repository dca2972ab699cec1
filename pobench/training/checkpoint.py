"""Save and resume, bit for bit: weights and Adam's moments in safetensors (no pickle), the step in JSON.

A checkpoint is a folder that appears whole (written beside, then renamed); the one before it goes away afterwards.
The data order and the learning rate are pure functions of the step, so nothing else needs saving.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

SHARD_BYTES = 64 * 1024**2


def latest(folder: Path) -> Path | None:
    """The newest whole checkpoint in `folder`, or None."""
    found = [p for p in folder.glob("checkpoint-*") if p.name.rpartition("-")[2].isdigit()]
    return max(found, key=lambda p: int(p.name.rpartition("-")[2]), default=None)


def save(folder: Path, step: int, model: nn.Module, optimizer: torch.optim.Optimizer, facts: dict[str, Any]) -> None:
    """Write `checkpoint-<step>` and drop the older ones. facts: small ones, to return at resume."""
    target = folder / f"checkpoint-{step}"
    if target.exists():
        return
    partial = folder / f"partial-{step}"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    _save(_named(model), partial, "weights")
    _save(_moments(model, optimizer), partial, "adam")
    (partial / "state.json").write_text(json.dumps({"step": step, **facts}))
    partial.rename(target)
    clear(folder, keep=target)


def load(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Put weights and moments back in place; returns what `save` was told, with `step`."""
    device = next(model.parameters()).device
    weights = _load(path, "weights", str(device))
    with torch.no_grad():
        for name, parameter in _trained(model).items():
            parameter.copy_(weights[name])
    moments = _load(path, "adam")
    state = {}
    for i, (name, parameter) in enumerate(_in_order(model, optimizer)):
        state[i] = {
            key: moments[f"{key}/{name}"].to(
                torch.device("cpu") if key == "step" and not _fused(optimizer) else parameter.device
            )
            for key in ("step", "exp_avg", "exp_avg_sq")
        }
    fresh = optimizer.state_dict()
    optimizer.load_state_dict({"state": state, "param_groups": fresh["param_groups"]})
    return about(path)


def about(path: Path) -> dict[str, Any]:
    """What `save` was told, with `step`."""
    return dict(json.loads((path / "state.json").read_text()))


def clear(folder: Path, keep: Path | None = None) -> None:
    """Remove checkpoints and half-written ones."""
    for path in [*folder.glob("checkpoint-*"), *folder.glob("partial-*")]:
        if path != keep:
            shutil.rmtree(path, ignore_errors=True)


def _save(tensors: dict[str, Tensor], folder: Path, name: str) -> None:
    """In shards: safetensors copies all that it is handed at once, and a whole model's worth would double the memory."""
    shard: dict[str, Tensor] = {}
    for i, (key, tensor) in enumerate(tensors.items(), start=1):
        shard[key] = tensor
        if i == len(tensors) or sum(t.nbytes for t in shard.values()) > SHARD_BYTES:
            save_file(shard, folder / f"{name}-{i}.safetensors")
            shard = {}


def _load(folder: Path, name: str, device: str = "cpu") -> dict[str, Tensor]:
    return {
        k: t for file in sorted(folder.glob(f"{name}-*.safetensors")) for k, t in load_file(file, device=device).items()
    }


def _fused(optimizer: torch.optim.Optimizer) -> bool:
    return any(group.get("fused") for group in optimizer.param_groups)


def _trained(model: nn.Module) -> dict[str, nn.Parameter]:
    """Trainable parameters by name; a tied weight appears once."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def _named(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().contiguous() for name, p in _trained(model).items()}


def _in_order(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[tuple[str, nn.Parameter]]:
    names = {id(p): name for name, p in _trained(model).items()}
    return [(names[id(p)], p) for group in optimizer.param_groups for p in group["params"]]


def _moments(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    tensors = {}
    for name, parameter in _in_order(model, optimizer):
        for key, value in optimizer.state[parameter].items():
            tensors[f"{key}/{name}"] = value.detach().contiguous()
    return tensors
