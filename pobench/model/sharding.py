"""Weights, gradients and moments of a policy split over the processes of a job, by PyTorch's FSDP2 (`fully_shard`).

Every decoder layer is a unit: its weights are gathered when it computes, and given back behind it. Embedding, last norm and
head stay in the policy's own unit, because the head's weight is read without a call of the head. A forward pass is therefore
something that all processes do together, also where it has no gradient, and also where one of them has nothing to score.

    model → frozen or adapted → policy → shard (units, then rows of the weights) → layout proof → optimiser → checkpoint

An optimiser that is made before `shard` would train nothing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from safetensors import safe_open
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor

from pobench.errors import PobenchError

if TYPE_CHECKING:
    from pobench.model.logps import ResponseLogps

FILE, INDEX = "model.safetensors", "model.safetensors.index.json"
WEIGHTS_A_FILE = "5GB"


class RowFiles:
    """The safetensors of a model's folder, read by name and by rows. Nothing is read before it is asked for."""

    def __init__(self, folder: Path) -> None:
        index = folder / INDEX
        names = set(json.loads(index.read_text())["weight_map"].values()) if index.is_file() else {FILE}
        self._file_of: dict[str, Any] = {}
        for name in sorted(names):
            if (folder / name).is_file():
                file = safe_open(folder / name, "pt")
                self._file_of |= dict.fromkeys(file.keys(), file)

    def __contains__(self, name: str) -> bool:
        return name in self._file_of

    def holds(self, name: str, shape: torch.Size) -> bool:
        """Whether there is a tensor of this name and shape."""
        return name in self._file_of and self._slice(name).get_shape() == list(shape)

    def rows(self, name: str, start: int, stop: int) -> Tensor:
        """Rows `start` to `stop` of a tensor."""
        part: Tensor = self._slice(name)[start:stop]
        return part

    def _slice(self, name: str) -> Any:
        return self._file_of[name].get_slice(name)


def stored_name(name: str) -> str:
    """A weight's name in the files of its model, where an adapter has been put around its layer."""
    return name.replace(".base_layer.", ".")


# ---------------------------------------------------------------- outlines
def as_outline(model: nn.Module, dtype: torch.dtype) -> None:
    """Replace every weight, on whatever device, by one zero that is seen at every place: it has a shape, and no memory."""
    for module in model.modules():
        for name, weight in module._parameters.items():
            if weight is not None:
                module._parameters[name] = nn.Parameter(torch.zeros((), dtype=dtype).expand(weight.shape))


def _is_outline(weight: Tensor) -> bool:
    return weight.ndim > 0 and not any(weight.stride())


# ---------------------------------------------------------------- sharding
def shard(policy: ResponseLogps, device: torch.device, dtype: torch.dtype, files: RowFiles | None = None) -> None:
    """Split the policy's weights over all processes, in place; every process calls it with the same policy.

    dtype: of the weights while they compute. In float32 it is the arithmetic of one process. In bfloat16 each weight is rounded
    when it is gathered, and gradients are added up in float32: another arithmetic than autocast over float32 weights.
    files: fill a model that is an outline; each process reads its own rows. None: the model holds its weights.
    Raises PobenchError for a model that does not name its layers.
    """
    layers = layers_of(policy.model)
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    narrow = dtype != torch.float32
    precision = (
        MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32) if narrow else MixedPrecisionPolicy()
    )
    for unit in [*layers, policy]:
        for weight in unit.parameters():
            if _is_outline(weight):  # whole, but for one unit at a time
                weight.data = torch.empty(weight.shape, dtype=weight.dtype, device=device)
        if unit is policy:  # kept gathered between forward and backward
            fully_shard(unit, mesh=mesh, mp_policy=precision)
        else:
            fully_shard(unit, mesh=mesh, mp_policy=precision, reshard_after_forward=True)
    register_fsdp_forward_method(policy, policy.within_forward.__name__)
    policy.autocast, policy.gathered_in = False, dtype if narrow else None
    if files is not None:
        _fill(policy.model, files)


def layers_of(model: Any) -> list[nn.Module]:
    """The decoder layers, by the class names that the model declares. Raises PobenchError if there are none."""
    names = set(model._no_split_modules or ())
    layers = [module for module in model.modules() if type(module).__name__ in names]
    inner = {id(child) for layer in layers for child in layer.modules() if child is not layer}
    layers = [layer for layer in layers if id(layer) not in inner]
    if not layers:
        raise PobenchError(
            f"{type(model).__name__} does not name its layers (`_no_split_modules`), so its weights cannot be split over "
            "devices; use --set train.sharding=none"
        )
    return layers


@torch.no_grad()
def _fill(model: nn.Module, files: RowFiles) -> None:
    """Read this process's rows of every weight that the files hold; an adapter's own weights are not among them."""
    rank, world = dist.get_rank(), dist.get_world_size()
    for name, weight in model.named_parameters():
        if not files.holds(stored_name(name), weight.shape):
            continue
        assert isinstance(weight, DTensor)
        local = weight.to_local()
        start = min(rank * -(-weight.shape[0] // world), weight.shape[0])
        if len(local):
            local.copy_(files.rows(stored_name(name), start, start + len(local)))


def is_sharded(policy: nn.Module) -> bool:
    return isinstance(policy, FSDPModule)


def give_back(policy: nn.Module) -> None:
    """After passes without gradient: what is still gathered goes back to its shards. While it is gathered, an optimiser
    would not find it, and a state would be stale."""
    if isinstance(policy, FSDPModule):
        policy.reshard()


def forget(policy: nn.Module) -> None:
    """After an exception inside a pass that is caught, in all processes alike: the next pass starts afresh."""
    if isinstance(policy, FSDPModule):
        reset = getattr(policy, "reset_iter_state", None)
        if reset is None:
            raise PobenchError(
                "this version of torch cannot go on after a failed pass over sharded weights; torch 2.13 can"
            )
        reset()
        policy.reshard()


# ---------------------------------------------------------------- whole weights
def whole_weights(model: Any, *, trained: bool = False) -> dict[str, Tensor]:
    """Name → weight, whole, on the CPU of the first process; nothing in the others. Every process calls it.

    trained: without frozen weights. A tied weight appears once.
    """
    options = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=trained)
    state: dict[str, Any] = get_model_state_dict(model, options=options)
    for name in getattr(model, "all_tied_weights_keys", None) or {}:
        state.pop(name, None)
    return state


def save_model(model: Any, folder: Path, state: Mapping[str, Tensor] | None) -> None:
    """Write a model as transformers does. state: its `whole_weights`; None: the model holds them itself."""
    if state is None:
        model.save_pretrained(folder)
    else:
        model.save_pretrained(folder, state_dict=dict(state), max_shard_size=WEIGHTS_A_FILE)
