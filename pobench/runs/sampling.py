"""Makes preference pairs from a model's own answers: sample several, rank them, and pair the best with the worst; or pair each
with a human answer.

    prompts → samples, a share for each process → `pobench.judging.ranking` → pairs, split by prompt

The samples are stored beside the pairs in `<name>.samples.jsonl`, so pairs can be made again without a model. Each process
appends finished batches to its own part file; gathering then merges all parts in the order of the prompts. So an
interrupted command continues where it stopped, with any number of processes, and ends in the same bytes.
`<name>.recipe.json` records how samples and pairs were made.
Every line of samples holds a digest of its own: one that is damaged is drawn again, and no other.
"""

from __future__ import annotations

import contextlib
import glob
import hashlib
import json
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from operator import methodcaller
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from pobench.data.chat import Chat
from pobench.data.order import split_by_prompt, text_key
from pobench.data.rows import Message, messages
from pobench.errors import CorruptError, PobenchError
from pobench.files import sealed, unsealed, write_text
from pobench.judging import PairwiseJudge, PointwiseJudge
from pobench.judging.pairwise import Progress
from pobench.judging.ranking import HumanOverOwn, Ranked, ReadAll, Row, Sample, best_against_worst, human_over_own
from pobench.locks import HeldError, hold
from pobench.model.generate import Decoding, generate_batches
from pobench.printing import say
from pobench.progress import progress
from pobench.settings.schema import ANSWERED_TOGETHER

Judge = PointwiseJudge | PairwiseJudge
GATHERED = ".samples.jsonl"  # the ending of the file of all samples, which is written whole
Made = TypeVar("Made", Ranked, HumanOverOwn)


class Sampling:
    """The prompts and the decoding of a sampling, and the files of its samples.

    rows: each with `id` and `prompt` (text or messages); of several rows with one prompt the first is kept. made_by: the
    model's source and digest for the recipe. Raises PobenchError that lists the faulty rows.
    """

    def __init__(self, rows: Sequence[Row], out: Path, made_by: Mapping[str, Any], decoding: Decoding) -> None:
        _check_rows(rows)
        distinct = {prompt_key(row["prompt"]): row for row in reversed(rows)}
        self.rows = [row for row in rows if distinct[prompt_key(row["prompt"])] is row]
        self.repeated = len(rows) - len(self.rows)
        self.out, self.decoding = out, decoding
        prompts = [(row["id"], messages(row["prompt"])) for row in self.rows]
        self.origin = {
            "model": dict(made_by),
            "decoding": asdict(decoding),
            "prompts": {"count": len(prompts), "sha256": digest_of(prompts)},
        }

    @property
    def file(self) -> Path:
        return self.out.with_suffix(GATHERED)

    @property
    def total(self) -> int:
        """The number of answers to draw."""
        return len(self.rows) * self.decoding.samples

    def read(self) -> list[Sample]:
        """The gathered samples, in the order of the prompts."""
        return _of_origin(_Stored.read(self.file), self.file, self.origin) if self.file.is_file() else []

    def gather(self) -> list[Sample]:
        """Merge the part files of all processes into one file; returns all samples.

        Lines that are not what was written are left out, with a sentence, and drawn again. Raises PobenchError for a file
        without samples, or with samples of another model, other prompts or settings.
        """
        parts = sorted(self.out.parent.glob(f"{glob.escape(self.out.stem)}.samples.*-of-*.jsonl"))
        gathered = [self.file] if self.file.is_file() else []
        read = [_mended(file, self.origin) for file in [*parts, *gathered]]
        by_key = {(s.id, s.sample): s for found, _ in read for s in found}
        place = {row["id"]: i for i, row in enumerate(self.rows)}
        samples = sorted(by_key.values(), key=lambda s: (place[s.id], s.sample))
        if parts or not self.file.is_file() or any(damaged for _, damaged in read):
            lines = [{"samples_of": self.origin, "answers": len(samples)}, *(s._asdict() for s in samples)]
            write_text(self.file, "".join(_line(sealed(line)) for line in lines))
        for part in parts:
            part.unlink(missing_ok=True)
        return samples

    def answers(self) -> list[tuple[Row, Sample]]:
        """The gathered samples, each with the row of its prompt."""
        rows = {row["id"]: row for row in self.rows}
        return [(rows[sample.id], sample) for sample in self.read()]

    def append(self, samples: Iterable[Sample], share: tuple[int, int]) -> None:
        """Append samples to the part file of this share."""
        part = self.out.with_suffix(f".samples.{share[0]}-of-{share[1]}.jsonl")
        lines = [] if part.is_file() else [{"samples_of": self.origin}]
        with part.open("a", encoding="utf-8") as stream:
            stream.write("".join(_line(sealed(line)) for line in [*lines, *(sample._asdict() for sample in samples)]))
            stream.flush()
            os.fsync(stream.fileno())


def draw(
    sampling: Sampling,
    model: Any,
    chat: Chat,
    *,
    batch_size: int = ANSWERED_TOGETHER,
    share: tuple[int, int] = (0, 1),
    progress: Progress | None = None,
) -> None:
    """Draw this process's share of the samples that are left. progress(done, total): in answers, over all shares."""
    have = {(s.id, s.sample) for s in sampling.read()}
    ids = [row["id"] for row in sampling.rows]
    batches = generate_batches(
        model,
        chat,
        [chat.prompt_ids(row["prompt"]) for row in sampling.rows],
        sampling.decoding,
        batch_size=batch_size,
        skip=lambda prompt, sample: (ids[prompt], sample) in have,
        share=share,
    )
    done = len(have)
    for batch in batches:
        sampling.append([Sample(ids[a.prompt], a.sample, a.text, a.tokens, a.finished) for a in batch], share)
        done += len(batch) * share[1]  # assume that the other processes are as far
        if progress is not None:
            progress(min(done, sampling.total), sampling.total)


def write_pairs(
    sampling: Sampling,
    judge: Judge | None,
    *,
    out: Path | None = None,
    held_out: float = 0.0,
    evaluated: Collection[str] = (),
    shape: Callable[[Any], dict[str, Any]] = methodcaller("published"),
    judge_settings: Mapping[str, Any] | None = None,
    read_all: ReadAll | None = None,
) -> dict[str, Any]:
    """Rank the samples, and write pairs and recipe; returns the recipe. judge: None: nothing is ranked, and each sample stands
    below the `human_answer` of its prompt's row. read_all: as in `best_against_worst`.

    out: the file of the pairs; None: the sampling's. held_out: the share of prompts whose pairs go to
    `<name>.heldout.jsonl`; evaluated: keys (`prompt_key`) of prompts that are asked later, whose pairs all go there.
    Raises PobenchError when no pair is left.
    """
    out = out or sampling.out
    samples = sampling.gather()
    pairs, counts = _paired(sampling, samples, judge, read_all)
    counts["repeated"] = sampling.repeated
    who = "onpolicy.pairs: human_over_own" if judge is None else judge.name
    if not pairs:
        raise PobenchError(f"{who} leaves no pair to learn from: {json.dumps(counts)}")
    how = {"rule": "a human answer over each of the model's own"}
    if judge is not None:
        how = {"judge": judge.name, "rule": "best against worst, closest in length"}
    recipe: dict[str, Any] = {**sampling.origin, **how, "counts": counts}
    if judge_settings:
        recipe["judge_settings"] = dict(judge_settings)
    seed = sampling.decoding.seed
    files: dict[Path, Sequence[Any]] = {out: pairs}
    files[out], held_out_pairs = _split(pairs, held_out, seed, frozenset(evaluated))
    if held_out_pairs:
        files[out.with_suffix(".heldout.jsonl")] = held_out_pairs
        recipe["held_out"] = {
            "fraction": held_out,
            "seed": seed,
            "train": len(files[out]),
            "held_out": len(held_out_pairs),
        }
    for file, ranked in files.items():
        write_text(file, "".join(_line(shape(pair)) for pair in ranked))
    write_text(out.with_suffix(".recipe.json"), json.dumps(recipe, indent=2, ensure_ascii=False) + "\n")
    return recipe


def _paired(
    sampling: Sampling, samples: Sequence[Sample], judge: Judge | None, read_all: ReadAll | None
) -> tuple[list[Any], dict[str, Any]]:
    if judge is None:
        return human_over_own(sampling.rows, samples)
    with progress(f"ranked by {judge.name}", len(samples), "answers") as advance:
        made = best_against_worst(
            sampling.rows, samples, judge, lambda done, total: advance(done=done / total * len(samples)), read_all
        )
        advance(done=len(samples))
    return made


def _split(pairs: list[Made], fraction: float, seed: int, evaluated: frozenset[str]) -> tuple[list[Made], list[Made]]:
    """(training, held-out): no prompt that is evaluated is trained on; of the others, as many are held out as the fraction
    still lacks. Raises PobenchError where no pair is left to train on."""
    keys = [prompt_key(pair.row["prompt"]) for pair in pairs]
    others = [pair for pair, key in zip(pairs, keys, strict=True) if key not in evaluated]
    asked = [pair for pair, key in zip(pairs, keys, strict=True) if key in evaluated]
    if not others:
        raise PobenchError(f"all {len(pairs)} pairs have prompts of answers.source, which are never trained on")
    lacking = (fraction * len(pairs) - len(asked)) / len(others)
    if lacking <= 0:
        return others, asked
    training, _ = split_by_prompt(others, lacking, seed, lambda pair: prompt_key(pair.row["prompt"]))
    trained = {pair.row["id"] for pair in training}
    return training, [pair for pair in pairs if pair.row["id"] not in trained]


def make_pairs(
    rows: Sequence[Row],
    judge: Judge,
    out: Path,
    *,
    model: Any,
    chat: Chat,
    made_by: Mapping[str, Any],
    decoding: Decoding,
    batch_size: int = ANSWERED_TOGETHER,
    progress: Progress | None = None,
    **written: Any,
) -> dict[str, Any]:
    """Sample, rank and write in this process; returns the recipe. written: options of `write_pairs`.

    Raises PobenchError as `Sampling`, `Sampling.gather` and `write_pairs` do.
    """
    sampling = Sampling(rows, out, made_by, decoding)
    with only_writer(out):
        sampling.gather()
        draw(sampling, model, chat, batch_size=batch_size, progress=progress)
        return write_pairs(sampling, judge, **written)


@contextlib.contextmanager
def only_writer(out: Path) -> Iterator[None]:
    """Lock the samples. Raises PobenchError while another command writes them, and for a folder."""
    if out.is_dir():
        raise PobenchError(
            f"--out: {str(out)!r} is a folder; name a JSONL file for the pairs, such as pairs.jsonl in it"
        )
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:  # a file stands in the way, or nobody may write there
        raise PobenchError(f"--out: the folder {str(out.parent)!r} cannot be made: {error.strerror}") from None
    try:
        with hold(out.with_name(f".{out.name}.lease")):
            yield
    except HeldError as held:
        raise PobenchError(
            f"another command is at work on {str(out)!r} ({held.holder}); wait for it, or write to another file"
        ) from None


# ---------------------------------------------------------------- rows and lines
def _check_rows(rows: Sequence[Row]) -> None:
    faults = []
    seen: set[str] = set()
    for number, row in enumerate(rows, start=1):
        missing = [key for key in ("id", "prompt") if not row.get(key)]
        faults += [f"row {number}: no {key!r}" for key in missing]
        if not missing and row["id"] in seen:
            faults.append(f"row {number}: id {row['id']!r} occurs twice")
        seen.add(row.get("id", ""))
    if not rows:
        faults.append("there are none")
    if faults:
        raise PobenchError("prompts to sample from:\n" + "\n".join(f"  {f}" for f in faults))


def prompt_key(prompt: Any) -> str:
    """Equal for prompts, text or messages, of the same words."""
    return text_key(Message(m["role"], m["content"]) for m in messages(prompt))


class _Stored(NamedTuple):
    """What a file of samples holds. origin: {} where its first line is damaged or absent. faults: one where lines are not what
    was written, and one where some are gone."""

    origin: Mapping[str, Any]
    samples: list[Sample]
    faults: list[CorruptError]

    @classmethod
    def read(cls, file: Path) -> _Stored:
        """Without a last line that a killed process left incomplete. Raises CorruptError for another kind of file."""
        lines = file.read_bytes().split(b"\n")[:-1]  # an answer may contain other line ends
        if lines and b'"samples_of"' not in lines[0]:
            raise CorruptError(file, "it is no file of samples; remove it to start again")
        if not lines:
            return cls({}, [], [CorruptError(file, "it holds no line")] if file.name.endswith(GATHERED) else [])
        header, *rows = (_row(line, file) for line in lines)
        origin, answers = header.get("samples_of"), header.get("answers", 0)
        if not (isinstance(origin, dict) and isinstance(answers, int)):
            origin, answers = {}, 0
        read = [_sample(row) for row in rows]
        damaged = ([] if origin else [1]) + [number for number, sample in enumerate(read, start=2) if sample is None]
        faults = []
        if damaged:
            faults.append(
                CorruptError(file, f"{len(damaged)} of its lines are not what was written, line {damaged[0]} first")
            )
        if answers > len(rows):
            faults.append(CorruptError(file, f"{answers - len(rows)} of its lines are gone"))
        return cls(origin, [sample for sample in read if sample is not None], faults)


def _sample(row: Mapping[str, Any]) -> Sample | None:
    """None for a row that is none."""
    kinds = {"id": str, "sample": int, "text": str, "tokens": int, "finished": bool}
    if row.keys() != kinds.keys() or not all(type(row[name]) is kind for name, kind in kinds.items()):
        return None
    return Sample(**row)


def _row(line: bytes, file: Path) -> dict[str, Any]:
    """The mapping in a line; {} where it is not what was written. Earlier versions wrote no seals."""
    try:
        row = json.loads(line)
        return unsealed(row, file) if isinstance(row, dict) else {}
    except (ValueError, RecursionError, CorruptError):
        return {}


def line_faults(file: Path) -> list[CorruptError]:
    """What is damaged of a file of samples."""
    try:
        return _Stored.read(file).faults
    except CorruptError as error:
        return [error]


def _mended(file: Path, origin: Mapping[str, Any]) -> tuple[list[Sample], bool]:
    """(the samples that can be used, whether some cannot). Says what cannot; a file whose first line is damaged is set
    aside."""
    stored = _Stored.read(file)
    for fault in stored.faults:
        say(f"{fault}; what it lacks is drawn again")
    if stored.faults and not stored.origin:
        file.replace(file.with_name(f"{file.name}.damaged"))
    return _of_origin(stored, file, origin), bool(stored.faults)


def _of_origin(stored: _Stored, file: Path, origin: Mapping[str, Any]) -> list[Sample]:
    """The stored samples. Raises PobenchError where they were drawn otherwise."""
    if not stored.origin:
        return []
    samples, header_origin = stored.samples, stored.origin
    differing = sorted(k for k in origin if json.loads(json.dumps(origin[k])) != header_origin.get(k))
    if differing:
        was, now = ({k: side.get(k) for k in differing} for side in (header_origin, origin))
        raise PobenchError(
            f"{str(file)!r} holds samples that were drawn differently ({', '.join(differing)}):\n  then {json.dumps(was)}\n"
            f"  now  {json.dumps(now)}\nWrite to another file, or remove this one to start again"
        )
    return samples


def _line(value: Mapping[str, Any]) -> str:
    return json.dumps(value, ensure_ascii=False) + "\n"


def digest_of(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()
