"""Reference sums: the start model's log-probabilities of responses, computed once and read by every run that needs them.

A reference sum depends on the weights, the arithmetic and the tokens alone. Losses, learning rates and seeds share one
pass over the pairs. A folder holds one pass:

    part-<digest>.safetensors   sums of an unfinished pass; the next attempt computes the rest
    sums-<digest>.safetensors   keys (responses, 32) bytes, sorted, and totals (responses,) fp64 nats
    reference.json              causes, arithmetic, number of responses, wall time, the file of sums and its sha256; written
                                last

A pass for losses that ask for `tokens` keeps each token's log-probability instead of their sum:

    tokens-<digest>.safetensors   keys, lengths (responses,) and logps (tokens,) fp32 nats; it is memory-mapped, not read

Every file appears whole and never changes, and the names of sums and parts are digests of their bytes. So the folder needs
no lock and may lie on a network file system, and two jobs may compute the same pass at the same time.
"""

from __future__ import annotations

import hashlib
import json
import math
import sys
import time
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as tensors_of
from safetensors.torch import load_file as mapped_tensors
from safetensors.torch import save as bytes_of
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from pobench.errors import CorruptError, PobenchError
from pobench.files import marker_with, sealed, sha256_of, write_bytes
from pobench.model.layouts import Batch
from pobench.model.policy_sums import SumScorer, empty_values
from pobench.model.vocabulary import Positions
from pobench.registry import Move
from pobench.types import Group

Value = float | Tensor  # of a response: its sum in nats, or its tokens' log-probabilities, (tokens,) fp32

MARKER = "reference.json"
TOKENS = "tokens-"  # the beginning of the name of a file by token
ANEW = "delete its folder, and the sums are computed anew"
REFERENCE, AVERAGE, START = "reference/", "average/", "start/"  # the beginnings of the names of weights that move
SECONDS_BETWEEN_PARTS = 30.0  # a killed pass loses no more than this
TURNS_BETWEEN_CHECKS = 16  # then all processes learn of a sum that is not finite


# ---------------------------------------------------------------- keys
def sequence_keys(group: Group) -> list[bytes]:
    """One key a response: sha256 over the prompt's length, the prompt's token ids and the response's token ids."""
    of_prompt = hashlib.sha256(token_bytes([len(group.prompt)]) + token_bytes(group.prompt))
    keys = []
    for response in group.responses:
        sequence = of_prompt.copy()
        sequence.update(token_bytes(response))
        keys.append(sequence.digest())
    return keys


def token_bytes(tokens: Sequence[int]) -> bytes:
    """Little-endian."""
    numbers = array("i", tokens)
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers.tobytes()


# ---------------------------------------------------------------- reading
class ReferenceSums:
    """Reference sums in nats, looked up by token ids; of a pass by token, their parts too. arithmetic: the precision and layout
    they were computed in. seconds_apart: what they cost beside the training steps."""

    def __init__(self, values: Mapping[bytes, Value], arithmetic: str, seconds: float = math.nan) -> None:
        """values: by `sequence_keys`. seconds: wall time of the passes that computed them; nan where it is not known."""
        self._tokens = {key: value for key, value in values.items() if isinstance(value, Tensor)}
        self._totals = {key: value for key, value in values.items() if not isinstance(value, Tensor)}
        self._totals |= _summed(self._tokens)
        self.arithmetic, self.seconds_apart = arithmetic, seconds

    @classmethod
    def load(cls, *folders: Path) -> ReferenceSums:
        """All sums of these finished folders. Raises CorruptError for a file whose bytes are not those that were stored,
        PobenchError for a folder that is not finished and for folders of different arithmetic."""
        values: dict[bytes, Value] = {}
        arithmetics, seconds = set(), 0.0
        for folder in folders:
            about = about_reference(folder)
            if about is None:
                raise PobenchError(f"{str(folder)!r} holds no finished reference sums: {MARKER} is not there")
            arithmetics.add(about["arithmetic"])
            took = about.get("seconds")
            seconds += took if isinstance(took, int | float) else math.nan
            values.update(_stored(folder / about["file"], about["sha256"]))
        if len(arithmetics) != 1:
            raise PobenchError(
                f"reference sums of one arithmetic are needed; the folders hold {sorted(arithmetics) or 'none'}"
            )
        return cls(values, arithmetics.pop(), seconds)

    @classmethod
    def of_groups(cls, groups: Sequence[Group], scorer: SumScorer, *, per_token: bool = False) -> ReferenceSums:
        """Computed now and kept in memory alone; called by all processes alike."""
        values = _by_response(groups, scorer.tokens(groups) if per_token else scorer.sums(groups), per_token)
        return cls(dict(zip([key for g in groups for key in sequence_keys(g)], values, strict=True)), scorer.arithmetic)

    @property
    def keys(self) -> set[bytes]:
        """`sequence_keys` of all that is stored."""
        return set(self._totals)

    @property
    def responses(self) -> int:
        """How many (prompt, response) there are."""
        return len(self._totals)

    def of(self, groups: Sequence[Group]) -> Tensor:
        """(responses,) fp64 nats, group by group. Raises PobenchError where some are missing."""
        return torch.tensor(self._found(groups, self._totals, "reference sum"), dtype=torch.float64)

    def tokens(self, groups: Sequence[Group]) -> Tensor:
        """(tokens,) fp32 nats, response by response. Raises PobenchError where some are missing."""
        return torch.cat(self._found(groups, self._tokens, "reference log-probabilities by token"))

    def _found(self, groups: Sequence[Group], stored: Mapping[bytes, Any], what: str) -> list[Any]:
        keys = [key for group in groups for key in sequence_keys(group)]
        values = [stored.get(key) for key in keys]
        missing = sum(value is None for value in values)
        if missing:
            first = next(i for i, g in enumerate(groups) if any(k not in stored for k in sequence_keys(g)))
            raise PobenchError(
                f"{missing} of {len(keys)} responses have no {what} among the {len(stored)} that are stored; "
                f"the first belongs to group {first + 1} of {len(groups)}, "
                f"whose prompt has {len(groups[first].prompt)} tokens"
            )
        return values


class EveryStep:
    """Reference sums that a frozen start model computes whenever they are asked for; used as `ReferenceSums` are."""

    seconds_apart = 0.0  # their time is part of the steps'

    def __init__(self, scorer: SumScorer) -> None:
        """scorer: of the frozen start model, in the arithmetic of training."""
        self.scorer, self.arithmetic = scorer, scorer.arithmetic

    def of(self, groups: Sequence[Group]) -> Tensor:
        """(responses,) fp64 nats, group by group; called by all processes alike."""
        return self.scorer.sums(groups)

    def tokens(self, groups: Sequence[Group]) -> Tensor:
        """(tokens,) fp32 nats, response by response; called by all processes alike."""
        return self.scorer.tokens(groups)

    def positions(self, batch: Batch) -> Positions:
        """The start model at the response positions of a micro-batch; called by all processes alike."""
        with self.scorer.autocast():
            return self.scorer.policy.positions(batch)


class Moving(EveryStep):
    """Reference sums of a model that begins as the start model and that moves behind some steps. weights: those that move,
    under names that no weight of the policy has; a checkpoint stores them."""

    def __init__(self, scorer: SumScorer) -> None:
        super().__init__(scorer)
        self.weights: dict[str, Tensor] = {}

    def follow(self, policy: nn.Module, *, leads: bool) -> None:
        """Called before step 1, with the policy that the steps will train. leads: an average of the policy's weights and their
        start are kept, too."""
        own = dict(self.scorer.policy.named_parameters())
        followed = {name: w.detach() for name, w in policy.named_parameters() if w.requires_grad and name in own}
        self.weights = {f"{REFERENCE}{name}": own[name].detach() for name in followed}
        for kept in (AVERAGE, START) if leads else ():
            self.weights |= {f"{kept}{name}": weight.clone() for name, weight in followed.items()}

    @torch.no_grad()
    def take(self, policy: nn.Module, move: Move) -> None:
        """Move by the policy's weights. Where weights are split, every process moves its rows."""
        for name, weight in policy.named_parameters():
            if (mine := self.weights.get(f"{REFERENCE}{name}")) is None:  # frozen, or a value model's
                continue
            reference, of_policy = _local(mine), _local(weight.detach())
            if f"{START}{name}" not in self.weights:
                reference.mul_(1 - move.share).add_(of_policy, alpha=move.share)
                continue
            average, start = (_local(self.weights[f"{kept}{name}"]) for kept in (AVERAGE, START))
            if move.restarts:
                average.copy_(of_policy)
                start.copy_(of_policy)
                continue
            average.mul_(1 - move.share).add_(of_policy, alpha=move.share)
            reference.copy_(average + move.lead * (of_policy - start))


def _local(weight: Tensor) -> Tensor:
    return weight.to_local() if isinstance(weight, DTensor) else weight


def about_reference(folder: Path) -> dict[str, Any] | None:
    """The marker of a finished folder: causes, arithmetic, responses, file, sha256, and seconds, which earlier versions did
    not write; None if the pass is not finished.

    Raises CorruptError for a marker that cannot be read.
    """
    needed = {"causes": dict, "arithmetic": str, "responses": int, "file": str, "sha256": str}
    return marker_with(folder / MARKER, needed, f"it does not describe reference sums; {ANEW}")


def old_caches(folder: Path) -> list[str]:
    """Names of the SQLite caches of protocol 1 in a cache's `reference` folder. Nothing reads them any more."""
    return sorted(path.name for path in folder.glob("*.sqlite"))


def _stored(path: Path, sha256: str) -> dict[bytes, Value]:
    """What a file holds. Raises CorruptError if it is gone or its bytes have changed."""
    mapped = path.name.startswith(TOKENS)
    try:
        data = None if mapped else path.read_bytes()
        digest = sha256_of(path) if data is None else hashlib.sha256(data).hexdigest()
    except FileNotFoundError:
        raise CorruptError(path, f"it is gone; {ANEW}") from None
    if digest != sha256:
        raise CorruptError(path, f"its sha256 is {digest[:12]}…, and {sha256[:12]}… was stored; {ANEW}")
    try:
        tensors = mapped_tensors(path) if data is None else tensors_of(data)
        keys, values = tensors["keys"], _unpacked(tensors)
    except (SafetensorError, KeyError) as error:
        raise CorruptError(path, f"it holds no reference sums ({error}); {ANEW}") from None
    joined, size = keys.numpy().tobytes(), keys.shape[1]
    return dict(zip((joined[at : at + size] for at in range(0, len(joined), size)), values, strict=True))


def _unpacked(tensors: Mapping[str, Tensor]) -> Sequence[Value]:
    if "totals" in tensors:
        return tensors["totals"].double().tolist()  # type: ignore[no-any-return]
    return tensors["logps"].split(tensors["lengths"].tolist())  # views of the mapped file


def _summed(tokens: Mapping[bytes, Tensor]) -> dict[bytes, float]:
    """The sums of each response's tokens, added up as the policy adds its own."""
    if not tokens:
        return {}
    lengths = torch.tensor([len(logps) for logps in tokens.values()])
    owner = torch.repeat_interleave(lengths)
    totals = torch.zeros(len(lengths)).index_add(0, owner, torch.cat([*tokens.values()]))
    return dict(zip(tokens, totals.double().tolist(), strict=True))


def _by_response(groups: Sequence[Group], values: Tensor, per_token: bool) -> Sequence[Value]:
    """The value of each response. values: (responses,) sums, or (tokens,)."""
    if not per_token:
        return values.tolist()  # type: ignore[no-any-return]
    return values.split([len(response) for group in groups for response in group.responses])


# ---------------------------------------------------------------- names
def reference_causes(groups: Sequence[Group], weights: str, arithmetic: str) -> dict[str, str]:
    """The causes of the sums of these groups. weights: the digest of the model's. arithmetic: `SumScorer.arithmetic`."""
    keys = sorted({key for group in groups for key in sequence_keys(group)})
    return {"weights": weights, "arithmetic": arithmetic, "responses": hashlib.sha256(b"".join(keys)).hexdigest()}


def reference_folder(cache: Path, causes: Mapping[str, Any]) -> Path:
    """The folder of one pass below `cache`, named by 12 hex digits of its causes."""
    return cache / hashlib.sha256(json.dumps(causes, sort_keys=True).encode()).hexdigest()[:12]


# ---------------------------------------------------------------- the pass
def compute_reference(
    folder: Path,
    groups: Sequence[Group],
    scorer: SumScorer,
    causes: Mapping[str, Any],
    advance: Callable[[int], None] = lambda responses: None,
    *,
    per_token: bool = False,
) -> int:
    """Fill `folder` with the sums of all responses of `groups`. All processes that share the scorer's work call it alike.
    Returns how many responses were computed; 0 if the folder was finished.

    folder: the caller names it after `causes`. causes: stored beside the sums. advance: called with the number of responses
    done since the last call; the first call counts those of an earlier, killed pass. per_token: keep each token's
    log-probability.
    Raises ValueError if a sum is not finite (such a sum is never stored), CorruptError if a finished folder's bytes have
    changed, PobenchError if it has other causes or lacks some of these responses.
    """
    finished = scorer.from_first(torch.tensor(about_reference(folder) is not None, dtype=torch.uint8))
    if finished:
        _check_finished(folder, groups, causes)
        return 0
    sums, unscored, keys = _what_is_left(folder, groups, scorer)
    values, places = empty_values(unscored, per_token=per_token)
    computed = sum(map(len, keys))
    advance(sum(len(g.responses) for g in groups) - computed)
    not_finite, started = 0, time.monotonic()
    with _Part(folder) as part:
        for number, turn in enumerate(scorer.turns(unscored, per_token=per_token), start=1):
            values[[k for i in turn.indices for k in places[i]]] = turn.values
            not_finite += int((~turn.values.isfinite()).sum())
            of_turn = _by_response([unscored[i] for i in turn.indices], turn.values, per_token)
            part.add([key for i in turn.indices for key in keys[i]], of_turn)
            if number % TURNS_BETWEEN_CHECKS == 0:
                _refuse_not_finite(scorer, not_finite)
            advance(sum(len(unscored[i].responses) for i in turn.everywhere))
        _refuse_not_finite(scorer, not_finite)
        of_all = _by_response(unscored, scorer.together(values), per_token)
        if scorer.rank == 0:
            for key, value in zip([key for of_group in keys for key in of_group], of_all, strict=True):
                sums.setdefault(key, value)
            # what an earlier, killed pass computed took as long per response
            seconds = (time.monotonic() - started) * len(sums) / computed if computed else None
            _finish(folder, sums, {"causes": causes, "arithmetic": scorer.arithmetic, "seconds": seconds})
    scorer.from_first(finished)  # nobody reads before the first process has written
    return computed


def _what_is_left(
    folder: Path, groups: Sequence[Group], scorer: SumScorer
) -> tuple[dict[bytes, Value], list[Group], list[list[bytes]]]:
    """(sums of an earlier pass, groups reduced to the responses that are still to be computed, their keys).

    Only the first process reads the folder, and tells the others: a network file system may show them fewer files.
    """
    sums = dict(_parts(folder)) if scorer.rank == 0 else {}
    keys = [sequence_keys(group) for group in groups]
    done = torch.tensor([key in sums for of_group in keys for key in of_group], dtype=torch.uint8)
    answers = iter(scorer.from_first(done).tolist())
    unscored, unscored_keys = [], []
    for group, of_group in zip(groups, keys, strict=True):
        responses: dict[bytes, tuple[int, ...]] = {}
        for key, response in zip(of_group, group.responses, strict=True):
            if not next(answers):
                responses.setdefault(key, response)  # a repeated response is computed once
        if responses:
            unscored.append(Group(group.prompt, tuple(responses.values())))
            unscored_keys.append(list(responses))
    return sums, unscored, unscored_keys


def _refuse_not_finite(scorer: SumScorer, count: int) -> None:
    """Raises ValueError in all processes together, so that none is left waiting."""
    everywhere = int(scorer.together(torch.tensor(count)))
    if everywhere:
        raise ValueError(f"the reference model gives {everywhere} log-probabilities that are not finite")


def _check_finished(folder: Path, groups: Sequence[Group], causes: Mapping[str, Any]) -> None:
    about = about_reference(folder)
    if about is None:
        raise PobenchError(f"{str(folder)!r}: one process sees finished reference sums there and another does not")
    if about["causes"] != json.loads(json.dumps(causes)):
        raise PobenchError(f"{str(folder)!r} holds reference sums of other causes: {json.dumps(about['causes'])}")
    ReferenceSums.load(folder).of(groups)


# ---------------------------------------------------------------- writing
class _Part:
    """The sums that this process has computed since its last part was written, without those that are not finite.

    A pass that ends by an exception writes them as a last part.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.written = folder, time.monotonic()
        self.sums: dict[bytes, Value] = {}

    def __enter__(self) -> _Part:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            self.write()

    def add(self, keys: Sequence[bytes], values: Sequence[Value]) -> None:
        self.sums.update((key, value) for key, value in zip(keys, values, strict=True) if _is_finite(value))
        if time.monotonic() - self.written >= SECONDS_BETWEEN_PARTS:
            self.write()

    def write(self) -> None:
        if self.sums:
            data = _packed(self.sums)
            write_bytes(self.folder / f"part-{hashlib.sha256(data).hexdigest()}.safetensors", data)
        self.sums, self.written = {}, time.monotonic()


def _is_finite(value: Value) -> bool:
    return bool(value.isfinite().all()) if isinstance(value, Tensor) else math.isfinite(value)


def _parts(folder: Path) -> Iterator[tuple[bytes, Value]]:
    """The sums of all parts. A part whose bytes do not match the digest in its name is skipped, and computed anew."""
    for path in sorted(folder.glob("part-*.safetensors")):
        try:
            yield from _stored(path, path.stem.removeprefix("part-")).items()
        except CorruptError:
            continue


def _packed(sums: Mapping[bytes, Value]) -> bytes:
    """The bytes of a file of sums, or of tokens; equal ones give equal bytes."""
    keys = sorted(sums)
    tensors = {"keys": torch.frombuffer(bytearray(b"".join(keys)), dtype=torch.uint8).view(len(keys), -1)}
    values = [sums[key] for key in keys]
    if tokens := [value for value in values if isinstance(value, Tensor)]:
        tensors |= {"lengths": torch.tensor([len(logps) for logps in tokens]), "logps": torch.cat(tokens)}
    else:
        tensors["totals"] = torch.tensor(values, dtype=torch.float64)
    data: bytes = bytes_of(tensors)
    return data


def _finish(folder: Path, sums: Mapping[bytes, Value], about: Mapping[str, Any]) -> None:
    """Write the file of sums, then the marker with `about`; remove the parts."""
    data = _packed(sums)
    sha256 = hashlib.sha256(data).hexdigest()
    kind = TOKENS if any(isinstance(value, Tensor) for value in sums.values()) else "sums-"
    file = f"{kind}{sha256[:12]}.safetensors"
    write_bytes(folder / file, data)
    marker = {**about, "responses": len(sums), "file": file, "sha256": sha256}
    write_bytes(folder / MARKER, json.dumps(sealed(marker), indent=1, sort_keys=True).encode())
    for path in folder.glob("part-*.safetensors"):
        path.unlink(missing_ok=True)
