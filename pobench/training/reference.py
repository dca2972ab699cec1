"""Reference sums: the start model's log-probabilities of responses, computed once and read by every run that needs them.

A reference sum depends on the weights, the arithmetic and the tokens alone. Losses, learning rates and seeds share one
pass over the pairs. A folder holds one pass:

    part-<digest>.safetensors   sums of an unfinished pass; the next attempt computes the rest
    sums-<digest>.safetensors   keys (responses, 32) bytes, sorted, and totals (responses,) fp64 nats
    reference.json              causes, arithmetic, number of responses, wall time, the file of sums and its sha256; written
                                last

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
from safetensors.torch import save as bytes_of
from torch import Tensor

from pobench.errors import CorruptError, PobenchError
from pobench.files import write_bytes
from pobench.model.policy_sums import SumScorer, empty_sums
from pobench.types import Group

MARKER = "reference.json"
ANEW = "delete its folder, and the sums are computed anew"
SECONDS_BETWEEN_PARTS = 30.0  # a killed pass loses no more than this
TURNS_BETWEEN_CHECKS = 16  # then all processes learn of a sum that is not finite


# ---------------------------------------------------------------- keys
def sequence_keys(group: Group) -> list[bytes]:
    """One key a response: sha256 over the prompt's length, the prompt's token ids and the response's token ids."""
    of_prompt = hashlib.sha256(_int32([len(group.prompt)]) + _int32(group.prompt))
    keys = []
    for response in group.responses:
        sequence = of_prompt.copy()
        sequence.update(_int32(response))
        keys.append(sequence.digest())
    return keys


def _int32(tokens: Sequence[int]) -> bytes:
    """Little-endian."""
    numbers = array("i", tokens)
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers.tobytes()


# ---------------------------------------------------------------- reading
class ReferenceSums:
    """Reference sums in nats, looked up by token ids. arithmetic: the precision and layout they were computed in.
    seconds_apart: what they cost beside the training steps."""

    def __init__(self, totals: Mapping[bytes, float], arithmetic: str, seconds: float = math.nan) -> None:
        """totals: nats by `sequence_keys`. seconds: wall time of the passes that computed them; nan where it is not known."""
        self._totals, self.arithmetic, self.seconds_apart = totals, arithmetic, seconds

    @classmethod
    def load(cls, *folders: Path) -> ReferenceSums:
        """All sums of these finished folders. Raises CorruptError for a file whose bytes are not those that were stored,
        PobenchError for a folder that is not finished and for folders of different arithmetic."""
        totals: dict[bytes, float] = {}
        arithmetics, seconds = set(), 0.0
        for folder in folders:
            about = about_reference(folder)
            if about is None:
                raise PobenchError(f"{str(folder)!r} holds no finished reference sums: {MARKER} is not there")
            arithmetics.add(about["arithmetic"])
            seconds += math.nan if about.get("seconds") is None else about["seconds"]
            path = folder / about["file"]
            totals.update(_stored(path, _read(path, about["sha256"])))
        if len(arithmetics) != 1:
            raise PobenchError(
                f"reference sums of one arithmetic are needed; the folders hold {sorted(arithmetics) or 'none'}"
            )
        return cls(totals, arithmetics.pop(), seconds)

    @classmethod
    def of_groups(cls, groups: Sequence[Group], scorer: SumScorer) -> ReferenceSums:
        """Computed now and kept in memory alone; called by all processes alike."""
        sums = scorer.sums(groups).tolist()
        return cls(dict(zip([key for g in groups for key in sequence_keys(g)], sums, strict=True)), scorer.arithmetic)

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
        keys = [key for group in groups for key in sequence_keys(group)]
        totals = [self._totals.get(key) for key in keys]
        missing = sum(total is None for total in totals)
        if missing:
            first = next(i for i, g in enumerate(groups) if any(k not in self._totals for k in sequence_keys(g)))
            raise PobenchError(
                f"{missing} of {len(keys)} responses have no reference sum among the {self.responses} that are stored; "
                f"the first belongs to group {first + 1} of {len(groups)}, "
                f"whose prompt has {len(groups[first].prompt)} tokens"
            )
        return torch.tensor(totals, dtype=torch.float64)


class EveryStep:
    """Reference sums that a frozen start model computes whenever they are asked for; used as `ReferenceSums` are."""

    seconds_apart = 0.0  # their time is part of the steps'

    def __init__(self, scorer: SumScorer) -> None:
        """scorer: of the frozen start model, in the arithmetic of training."""
        self.scorer, self.arithmetic = scorer, scorer.arithmetic

    def of(self, groups: Sequence[Group]) -> Tensor:
        """(responses,) fp64 nats, group by group; called by all processes alike."""
        return self.scorer.sums(groups)


def about_reference(folder: Path) -> dict[str, Any] | None:
    """The marker of a finished folder: causes, arithmetic, responses, file, sha256, and seconds, which earlier versions did
    not write; None if the pass is not finished.

    Raises CorruptError for a marker that cannot be read.
    """
    path = folder / MARKER
    try:
        text = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        about = json.loads(text)
    except ValueError:
        about = None
    if not isinstance(about, dict) or not {"causes", "arithmetic", "responses", "file", "sha256"} <= about.keys():
        raise CorruptError(path, f"it does not describe reference sums; {ANEW}")
    return about


def old_caches(folder: Path) -> list[str]:
    """Names of the SQLite caches of protocol 1 in a cache's `reference` folder. Nothing reads them any more."""
    return sorted(path.name for path in folder.glob("*.sqlite"))


def _read(path: Path, sha256: str) -> bytes:
    """The bytes of the file. Raises CorruptError if it is gone or its bytes have changed."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise CorruptError(path, f"it is gone; {ANEW}") from None
    digest = hashlib.sha256(data).hexdigest()
    if digest != sha256:
        raise CorruptError(path, f"its sha256 is {digest[:12]}…, and {sha256[:12]}… was stored; {ANEW}")
    return data


def _stored(path: Path, data: bytes) -> dict[bytes, float]:
    try:
        tensors = tensors_of(data)
        keys, totals = tensors["keys"], tensors["totals"]
    except (SafetensorError, KeyError) as error:
        raise CorruptError(path, f"it holds no reference sums ({error}); {ANEW}") from None
    joined, size = keys.numpy().tobytes(), keys.shape[1]
    return dict(
        zip((joined[at : at + size] for at in range(0, len(joined), size)), totals.double().tolist(), strict=True)
    )


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
) -> int:
    """Fill `folder` with the sums of all responses of `groups`. All processes that share the scorer's work call it alike.
    Returns how many responses were computed; 0 if the folder was finished.

    folder: the caller names it after `causes`. causes: stored beside the sums. advance: called with the number of responses
    done since the last call; the first call counts those of an earlier, killed pass.
    Raises ValueError if a sum is not finite (such a sum is never stored), CorruptError if a finished folder's bytes have
    changed, PobenchError if it has other causes or lacks some of these responses.
    """
    finished = scorer.from_first(torch.tensor(about_reference(folder) is not None, dtype=torch.uint8))
    if finished:
        _check_finished(folder, groups, causes)
        return 0
    sums, unscored, keys = _what_is_left(folder, groups, scorer)
    totals, places = empty_sums(unscored)
    advance(sum(len(g.responses) for g in groups) - len(totals))
    not_finite, started = 0, time.monotonic()
    with _Part(folder) as part:
        for number, turn in enumerate(scorer.turns(unscored), start=1):
            totals[[k for i in turn.indices for k in places[i]]] = turn.sums
            not_finite += int((~turn.sums.isfinite()).sum())
            part.add([key for i in turn.indices for key in keys[i]], turn.sums)
            if number % TURNS_BETWEEN_CHECKS == 0:
                _refuse_not_finite(scorer, not_finite)
            advance(sum(len(unscored[i].responses) for i in turn.everywhere))
        _refuse_not_finite(scorer, not_finite)
        totals = scorer.together(totals)
        if scorer.rank == 0:
            for key, total in zip([key for of_group in keys for key in of_group], totals.tolist(), strict=True):
                sums.setdefault(key, total)
            # what an earlier, killed pass computed took as long per response
            seconds = (time.monotonic() - started) * len(sums) / len(totals) if len(totals) else None
            _finish(folder, sums, {"causes": causes, "arithmetic": scorer.arithmetic, "seconds": seconds})
    scorer.from_first(finished)  # nobody reads before the first process has written
    return len(totals)


def _what_is_left(
    folder: Path, groups: Sequence[Group], scorer: SumScorer
) -> tuple[dict[bytes, float], list[Group], list[list[bytes]]]:
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
        self.sums: dict[bytes, float] = {}

    def __enter__(self) -> _Part:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            self.write()

    def add(self, keys: Sequence[bytes], sums: Tensor) -> None:
        self.sums.update((key, total) for key, total in zip(keys, sums.tolist(), strict=True) if math.isfinite(total))
        if time.monotonic() - self.written >= SECONDS_BETWEEN_PARTS:
            self.write()

    def write(self) -> None:
        if self.sums:
            data = _packed(self.sums)
            write_bytes(self.folder / f"part-{hashlib.sha256(data).hexdigest()}.safetensors", data)
        self.sums, self.written = {}, time.monotonic()


def _parts(folder: Path) -> Iterator[tuple[bytes, float]]:
    """The sums of all parts. A part whose bytes do not match the digest in its name is skipped, and computed anew."""
    for path in sorted(folder.glob("part-*.safetensors")):
        try:
            yield from _stored(path, _read(path, path.stem.removeprefix("part-"))).items()
        except CorruptError:
            continue


def _packed(sums: Mapping[bytes, float]) -> bytes:
    """The bytes of a file of sums; equal sums give equal bytes."""
    keys = sorted(sums)
    data: bytes = bytes_of(
        {
            "keys": torch.frombuffer(bytearray(b"".join(keys)), dtype=torch.uint8).view(len(keys), -1),
            "totals": torch.tensor([sums[key] for key in keys], dtype=torch.float64),
        }
    )
    return data


def _finish(folder: Path, sums: Mapping[bytes, float], about: Mapping[str, Any]) -> None:
    """Write the file of sums, then the marker with `about`; remove the parts."""
    data = _packed(sums)
    sha256 = hashlib.sha256(data).hexdigest()
    file = f"sums-{sha256[:12]}.safetensors"
    write_bytes(folder / file, data)
    marker = {**about, "responses": len(sums), "file": file, "sha256": sha256}
    write_bytes(folder / MARKER, json.dumps(marker, indent=1, sort_keys=True).encode())
    for path in folder.glob("part-*.safetensors"):
        path.unlink(missing_ok=True)
