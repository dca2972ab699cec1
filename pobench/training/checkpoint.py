"""Save and resume, bit for bit: weights and Adam's moments in safetensors (no pickle), everything else in `state.json`.
Where the reference model moves, the weights that move are a part of the checkpoint. A value model is trained, so it is among
the weights.

A checkpoint is a folder that appears whole (`pobench.files.whole`); all but the newest few are removed after that. Weights
that are split over processes are written by all of them, each its own rows (`torch.distributed.checkpoint`); any number of
processes resumes from either form. The data order and the learning rate are functions of the step, so they need no saving.
`state.json` holds the step, the name of the job's content, the sha256 of every file of tensors, and a sha256 of its own. A job
resumes only from a checkpoint of its own content whose bytes are those that were written.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import math
import shutil
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from safetensors.torch import load as tensors_of
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.staging import BlockingAsyncStager
from torch.distributed.tensor import DTensor

from pobench.errors import CorruptError, PobenchError
from pobench.files import OTHER_BYTES, corrupt_files, refuse_corrupt, sha256_of, sync_file, whole
from pobench.results.run_folder import step_fault

SHARD_BYTES = 64 * 1024**2
STATE = "state.json"
MOVING = "reference"  # the kind of the tensors of a reference that moves
NOTHING: Mapping[str, Tensor] = MappingProxyType({})
ROWS = "shard-"  # the beginning of files that hold one process's rows, as `HuggingFaceStorageWriter` names them


def latest(folder: Path, content: str = "") -> Path | None:
    """The newest checkpoint of this content in `folder` whose `state.json` is intact, or None. It reads no tensors."""
    return next(_newest_first(folder, content=content), None)


class Saving:
    """A checkpoint on its way: `checkpoint-<step>`, in place of one of that name. Where weights are split over processes, all
    of them make one and finish it alike.

    facts: small values that `about` and `load` return. content: the name of what the job is made from. beside: a thread writes
    a copy of weights and moments in the processor's memory, while the steps go on; else they are written before this returns.
    group: of processes, for what the thread exchanges. moving: weights beside the model's that the steps move, by names that
    the model's do not have. keep: how many checkpoints of this content stand when it is whole, itself included.
    """

    def __init__(
        self,
        folder: Path,
        step: int,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        facts: Mapping[str, Any],
        content: str = "",
        *,
        beside: bool = False,
        group: dist.ProcessGroup | None = None,
        moving: Mapping[str, Tensor] = NOTHING,
        keep: int = 1,
    ) -> None:
        self._keep = keep
        self._target, self._state = folder / f"checkpoint-{step}", {"step": step, "content": content, **facts}
        self._split = _is_split(model)
        self._main = not self._split or dist.get_rank() == 0
        tensors = {"weights": _weights(model), "adam": _moments(model, optimizer), MOVING: dict(moving)}
        if beside:
            tensors = BlockingAsyncStager().stage(tensors)
        with contextlib.ExitStack() as place:
            self._partial = place.enter_context(whole(self._target)) if self._main else None
            if self._partial is not None:
                self._partial.mkdir(parents=True)
            into = _from_first(self._partial)[0] if self._split else self._partial
            assert isinstance(into, Path)
            write = partial(_save_rows, {key: t for named in tensors.values() for key, t in named.items()}, into, group)
            if not self._split:
                write = partial(_save_whole, tensors, into)
            self._files: Future[dict[str, str]] = Future()
            if beside:
                threading.Thread(target=_settle, args=(self._files, write), name="checkpoint", daemon=True).start()
            else:
                _settle(self._files, write)
            self._place = place.pop_all()

    @property
    def written(self) -> bool:
        """Whether this process has written its bytes, or failed to."""
        return self._files.done()

    def finish(self) -> None:
        """Wait until the bytes of all processes are on their disks; then the checkpoint appears, and old ones are removed.
        Raises in every process what went wrong in one."""
        with self._place:
            error = self._files.exception()
            files = {} if error else self._files.result()
            everyone = _of_all((files, repr(error) if error else "")) if self._split else []
            if error is not None:
                raise error
            if others := [why for _, why in everyone if why]:
                raise PobenchError(f"another process could not write its rows of the checkpoint: {others[0]}")
            files = {name: digest for of_one, _ in everyone or [(files, "")] for name, digest in of_one.items()}
            if self._partial is None:
                return
            state = {**self._state, "files": files}
            (self._partial / STATE).write_text(json.dumps({"state": state, "sha256": _digest(state)}))
        before = _newest_first(self._target.parent, below=self._state["step"], content=self._state["content"])
        clear(self._target.parent, keep=[self._target, *itertools.islice(before, self._keep - 1)])


def resume(
    folder: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    content: str = "",
    say: Callable[[str], None] = lambda text: None,
    moving: Mapping[str, Tensor] = NOTHING,
) -> dict[str, Any] | None:
    """Load the newest checkpoint of this content that is intact; returns its state, or None where there is none.

    say: takes one sentence for each newer checkpoint that is not used. moving: as of `Saving`.
    """
    faults, state = [], None
    for path in _newest_first(folder):
        try:
            state = load(path, model, optimizer, content, moving)
            break
        except PobenchError as error:
            faults.append(str(error))
    start = "from the beginning" if state is None else f"from the checkpoint of step {state['step']}"
    for fault in faults:
        say(f"{fault}; training starts {start}")
    return state


def load(
    path: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    content: str = "",
    moving: Mapping[str, Tensor] = NOTHING,
) -> dict[str, Any]:
    """Put weights and moments in place; returns the state: `step`, `content`, `files`, and the facts that `save` was given.

    Raises CorruptError for bytes other than those that were written, PobenchError for a checkpoint of other content. Model
    and optimiser are unchanged then: every file is checked before the first tensor is copied. Where weights are split over
    processes, all of them call it, and all raise.
    """
    state = about(path)
    if state["content"] != content:
        raise PobenchError(
            f"checkpoint {str(path)!r} is ignored: it is of the content {state['content']!r}, and this job's is {content!r}"
        )
    if _is_split(model) or any(name.startswith(ROWS) for name in state["files"]):
        _load_rows(path, state["files"], model, optimizer, moving)
        return state
    tensors = {name: _read(path / name, digest) for name, digest in state["files"].items()}
    weights, moments, others = (dict(_of_kind(tensors, kind)) for kind in ("weights", "adam", MOVING))
    with torch.no_grad():
        for name, parameter in _trained(model).items():
            parameter.copy_(weights[name])
        for name, weight in moving.items():
            weight.copy_(others[name])
    of_optimizer = {}
    for i, (name, parameter) in enumerate(_in_order(model, optimizer)):
        of_optimizer[i] = {
            key: moments[f"{key}/{name}"].to(
                torch.device("cpu") if key == "step" and not _fused(optimizer) else parameter.device
            )
            for key in ("step", "exp_avg", "exp_avg_sq")
        }
    fresh = optimizer.state_dict()
    optimizer.load_state_dict({"state": of_optimizer, "param_groups": fresh["param_groups"]})
    return state


def about(path: Path) -> dict[str, Any]:
    """The state of the checkpoint in `path`, as `load` returns it. Raises CorruptError where it is not what was written."""
    file = path / STATE
    try:
        stored = json.loads(file.read_bytes())
        state, digest = stored["state"], stored["sha256"]
    except FileNotFoundError:
        raise CorruptError(file, "the file is gone") from None
    except (ValueError, KeyError, TypeError):
        raise CorruptError(file, "it does not describe a checkpoint of this version") from None
    if digest != _digest(state):
        raise CorruptError(file, OTHER_BYTES)
    return dict(state)


def state_bytes(model: nn.Module, moving: Mapping[str, Tensor] = NOTHING) -> int:
    """Of the trained weights and their moments that this process holds, and of the weights that move beside them."""
    held: list[Tensor] = [*(3 * [*_trained(model).values()]), *moving.values()]
    return sum((p.to_local() if isinstance(p, DTensor) else p).nbytes for p in held)


def clear(folder: Path, keep: Collection[Path] = ()) -> None:
    """Remove checkpoints and half-written ones."""
    for path in [*folder.glob("checkpoint-*"), *folder.glob(".checkpoint-*.partial")]:
        if path not in keep:
            shutil.rmtree(path, ignore_errors=True)


def refuse_holes(folder: Path, content: str, steps: Sequence[int], say: Callable[[str], None]) -> None:
    """Remove the checkpoints if a step before the newest is missing among the logged ones, or stands there twice: a training
    that went on from them would store a log that is not its own. steps: the logged ones, in order. say: takes a sentence."""
    newest = latest(folder, content)
    if newest is None:
        return
    done = int(about(newest)["step"])
    if fault := step_fault([step for step in steps if step <= done], done):
        say(f"{str(folder / 'steps.jsonl')!r} is damaged: {fault}; training starts from the beginning")
        clear(folder)


def _newest_first(folder: Path, below: float = math.inf, content: str | None = None) -> Iterator[Path]:
    """Checkpoints of fewer steps than `below`; with `content`, intact ones of that content."""
    numbers = {path: path.name.rpartition("-")[2] for path in folder.glob("checkpoint-*")}
    paths = [path for path, number in numbers.items() if number.isdigit() and int(number) < below]
    for path in sorted(paths, key=lambda path: -int(numbers[path])):
        with contextlib.suppress(CorruptError):
            if content is None or about(path)["content"] == content:
                yield path


def _digest(state: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()


def _settle(future: Future[dict[str, str]], work: Callable[[], dict[str, str]]) -> None:
    """Give the future what the work returns or raises."""
    try:
        future.set_result(work())
    except BaseException as error:
        future.set_exception(error)


def _save_whole(tensors: Mapping[str, dict[str, Tensor]], folder: Path) -> dict[str, str]:
    """Write weights and moments. Returns file → sha256."""
    for kind, named in tensors.items():
        _save(named, folder, kind)
    return _synced(folder.iterdir())


def _synced(files: Iterable[Path]) -> dict[str, str]:
    """File → sha256, once its bytes are on the disk. Only the machine that wrote a file can see to that."""
    found = sorted(files)
    for file in found:
        sync_file(file)
    return {file.name: sha256_of(file) for file in found}


def _save(tensors: dict[str, Tensor], folder: Path, kind: str) -> None:
    """Write the tensors in shards: safetensors copies all that it is handed at once, and a whole model would take twice its
    memory."""
    shard: dict[str, Tensor] = {}
    for i, (key, tensor) in enumerate(tensors.items(), start=1):
        shard[key] = tensor
        if i == len(tensors) or sum(t.nbytes for t in shard.values()) > SHARD_BYTES:
            save_file(shard, folder / f"{kind}-{i}.safetensors")
            shard = {}


def _read(file: Path, digest: str) -> dict[str, Tensor]:
    """The tensors of a shard, on the CPU. Its bytes are read once: the sha256 and the tensors come from the same read."""
    try:
        data = file.read_bytes()
    except FileNotFoundError:
        raise CorruptError(file, "the file is gone") from None
    if hashlib.sha256(data).hexdigest() != digest:
        raise CorruptError(file, OTHER_BYTES)
    return dict(tensors_of(data))


def _of_kind(files: Mapping[str, dict[str, Tensor]], kind: str) -> Iterator[tuple[str, Tensor]]:
    for name, tensors in files.items():
        if name.startswith(f"{kind}-"):
            yield from tensors.items()


# ---------------------------------------------------------------- split over processes
def _is_split(model: nn.Module) -> bool:
    return any(isinstance(p, DTensor) for p in model.parameters())


def _save_rows(tensors: Mapping[str, Tensor], folder: Path, group: dist.ProcessGroup | None) -> dict[str, str]:
    """Write this process's rows of all tensors. Returns file → sha256, of its own files."""
    sizes, file_of = 0, {}
    for name, tensor in tensors.items():
        sizes += tensor.nbytes // dist.get_world_size()
        file_of[name] = 1 + sizes // SHARD_BYTES
    writer = dcp.HuggingFaceStorageWriter(str(folder), file_of, save_distributed=True)
    try:
        dcp.save(dict(tensors), storage_writer=writer, process_group=group)
    except CheckpointException as error:  # a BaseException, of all processes' failures
        rank, (cause, _) = next(iter(error.failures.items()))
        raise PobenchError(f"process {rank + 1} could not write its rows of the checkpoint: {cause!r}") from error
    return _synced(folder.glob(f"{ROWS}{dist.get_rank() + 1:05d}-*"))


def _load_rows(
    path: Path,
    files: Mapping[str, str],
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    moving: Mapping[str, Tensor],
) -> None:
    """Check all files, then copy this process's rows into the weights and into fresh moments. Each of several processes checks
    its share of the files."""
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    faulty = [
        fault.path.name for fault in corrupt_files(path, {name: files[name] for name in sorted(files)[rank::world]})
    ]
    faulty = faulty if world == 1 else sorted(name for of_one in _of_all(faulty) for name in of_one)
    refuse_corrupt(path, {name: files[name] for name in faulty})
    moments = {
        f"{key}/{name}": torch.zeros_like(parameter, requires_grad=False)
        for name, parameter in _in_order(model, optimizer)
        for key in ("exp_avg", "exp_avg_sq")
    }
    steps = {f"step/{name}": torch.zeros(()) for name, _ in _in_order(model, optimizer)}
    tensors = {**_weights(model), **moments, **steps, **moving}
    dcp.load(tensors, storage_reader=dcp.HuggingFaceStorageReader(str(path)))
    for name, parameter in _in_order(model, optimizer):
        step = steps[f"step/{name}"].to(parameter.device if _fused(optimizer) else "cpu")
        of_parameter = {key: moments[f"{key}/{name}"] for key in ("exp_avg", "exp_avg_sq")}
        optimizer.state[parameter] = {"step": step, **of_parameter}


def _from_first(*values: Any) -> list[Any]:
    """The first process's values, in all processes."""
    held = list(values)
    dist.broadcast_object_list(held)
    return held


def _of_all(value: Any) -> list[Any]:
    """Every process's value, in all processes."""
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def _fused(optimizer: torch.optim.Optimizer) -> bool:
    return any(group.get("fused") for group in optimizer.param_groups)


def _trained(model: nn.Module) -> dict[str, nn.Parameter]:
    """Trainable parameters by name; a tied weight appears once."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def _weights(model: nn.Module) -> dict[str, Tensor]:
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
