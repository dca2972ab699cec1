"""Makes preference pairs from a model's own answers: sample several, rank them, and pair the best with the worst.

    prompts → samples, a share for each process → `pobench.judging.ranking` → pairs, split by prompt

The samples are stored beside the pairs in `<name>.samples.jsonl`, so pairs can be made again without a model. Each process
appends finished batches to its own part file; gathering then merges all parts in the order of the prompts. So an
interrupted command continues where it stopped, with any number of processes, and ends in the same bytes.
`<name>.recipe.json` records how samples and pairs were made.
"""

from __future__ import annotations

import contextlib
import glob
import hashlib
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import pydantic
import torch
import transformers
from accelerate import PartialState
from filelock import FileLock, Timeout

from pobench.data.audit import unknown_fault, unknown_shares, unknown_text
from pobench.data.capacity import Capacity, Extent
from pobench.data.chat import Chat
from pobench.data.order import split_by_prompt, text_key
from pobench.data.prompts import prompt_rows
from pobench.data.rows import Message, messages
from pobench.errors import PobenchError
from pobench.files import write_text
from pobench.judging import PairwiseJudge, PointwiseJudge
from pobench.judging.pairwise import Progress
from pobench.judging.ranking import Ranked, Row, Sample, best_against_worst, comparisons
from pobench.model.device import bf16_pays, layout_of_devices
from pobench.model.generate import PRECISIONS, Decoding, generate_batches
from pobench.model.load import attention_of, load_model
from pobench.progress import progress
from pobench.registry import judges
from pobench.runs.execute import launch
from pobench.runs.start_model import start_model
from pobench.settings.faults import explain, judge_faults
from pobench.settings.job import Job
from pobench.settings.read import read_setting
from pobench.settings.resolve import resolve, section_of
from pobench.settings.schema import ModelConfig, OnPolicyConfig
from pobench.sources import weights_digest

Judge = PointwiseJudge | PairwiseJudge


class Sampling:
    """The prompts and the decoding of a sampling, and the files of its samples.

    rows: each with `id` and `prompt` (text or messages); of several rows with one prompt the first is kept. made_by: the
    model's source and digest for the recipe. Raises PobenchError that lists the faulty rows.
    """

    def __init__(self, rows: Sequence[Row], out: Path, made_by: Mapping[str, Any], decoding: Decoding) -> None:
        _check_rows(rows)
        distinct = {_key(row["prompt"]): row for row in reversed(rows)}
        self.rows = [row for row in rows if distinct[_key(row["prompt"])] is row]
        self.repeated = len(rows) - len(self.rows)
        self.out, self.decoding = out, decoding
        prompts = [(row["id"], messages(row["prompt"])) for row in self.rows]
        self.origin = {
            "model": dict(made_by),
            "decoding": asdict(decoding),
            "prompts": {"count": len(prompts), "sha256": _digest(prompts)},
        }

    @property
    def file(self) -> Path:
        return self.out.with_suffix(".samples.jsonl")

    @property
    def total(self) -> int:
        """The number of answers to draw."""
        return len(self.rows) * self.decoding.samples

    def read(self) -> list[Sample]:
        """The gathered samples, in the order of the prompts."""
        return _read(self.file, self.origin) if self.file.is_file() else []

    def gather(self) -> list[Sample]:
        """Merge the part files of all processes into one file; returns all samples.

        Raises PobenchError for a file without samples, or with samples of another model, other prompts or settings.
        """
        parts = sorted(self.out.parent.glob(f"{glob.escape(self.out.stem)}.samples.*-of-*.jsonl"))
        by_key = {(s.id, s.sample): s for file in parts for s in _read(file, self.origin)} | {
            (s.id, s.sample): s for s in self.read()
        }
        place = {row["id"]: i for i, row in enumerate(self.rows)}
        samples = sorted(by_key.values(), key=lambda s: (place[s.id], s.sample))
        if parts or not self.file.is_file():
            lines = [{"samples_of": self.origin}, *(sample._asdict() for sample in samples)]
            write_text(self.file, "".join(map(_line, lines)))
        for part in parts:
            part.unlink()
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
            stream.write("".join(map(_line, [*lines, *(sample._asdict() for sample in samples)])))
            stream.flush()
            os.fsync(stream.fileno())


def draw(
    sampling: Sampling,
    model: Any,
    chat: Chat,
    *,
    batch_size: int = 64,
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
    judge: Judge,
    *,
    held_out: float = 0.0,
    shape: Callable[[Ranked], dict[str, Any]] = Ranked.published,
    judge_settings: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Rank the samples, and write pairs and recipe; returns the recipe.

    held_out: the share of prompts whose pairs go to `<name>.heldout.jsonl`. Raises PobenchError when no pair is left.
    """
    out = sampling.out
    samples = sampling.gather()
    with progress(f"ranked by {judge.name}", len(samples), "answers") as advance:
        pairs, counts = best_against_worst(
            sampling.rows, samples, judge, lambda done, total: advance(done=done / total * len(samples))
        )
        advance(done=len(samples))
    counts["repeated"] = sampling.repeated
    if not pairs:
        raise PobenchError(f"{judge.name} leaves no pair to learn from: {json.dumps(counts)}")
    recipe = {**sampling.origin, "judge": judge.name, "rule": "best against worst, closest in length", "counts": counts}
    if judge_settings:
        recipe["judge_settings"] = dict(judge_settings)
    files = {out: pairs}
    if held_out > 0:
        seed = sampling.decoding.seed
        files[out], held_out_pairs = split_by_prompt(pairs, held_out, seed, lambda pair: _key(pair.row["prompt"]))
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


def make_pairs(
    rows: Sequence[Row],
    judge: Judge,
    out: Path,
    *,
    model: Any,
    chat: Chat,
    made_by: Mapping[str, Any],
    decoding: Decoding,
    batch_size: int = 64,
    progress: Progress | None = None,
    **written: Any,
) -> dict[str, Any]:
    """Sample, rank and write in this process; returns the recipe. written: options of `write_pairs`.

    Raises PobenchError as `Sampling`, `Sampling.gather` and `write_pairs` do.
    """
    sampling = Sampling(rows, out, made_by, decoding)
    with _alone(out):
        sampling.gather()
        draw(sampling, model, chat, batch_size=batch_size, progress=progress)
        return write_pairs(sampling, judge, **written)


class Recipe(NamedTuple):
    """The checked arguments of `pobench data onpolicy`. settings: of the judge."""

    job: Job
    config: OnPolicyConfig
    judge: Judge
    settings: Mapping[str, Any]


def recipe_of(
    setting: str,
    *,
    ranker: str | None = None,
    ranker_settings: Mapping[str, Any] | None = None,
    model: str | None = None,
    overrides: Mapping[str, Any] | None = None,
    **values: Any,
) -> Recipe:
    """The recipe of a setting's `onpolicy` section and its start model; only settings are read.

    values: replace those of the section. ranker: a judge's name, replaces the section's or the setting's judge;
    ranker_settings: added to that judge's settings if the name is the same. overrides: as `--set`. Raises PobenchError
    that lists every fault of names and values.
    """
    config, faults, job = OnPolicyConfig(), list[str](), None
    try:
        (job,) = resolve(setting, "simpo", seeds=[0], model=model, overrides=overrides)
    except PobenchError as error:
        faults.append(str(error))
    section: dict[str, Any] = {}
    with contextlib.suppress(PobenchError):  # an unknown setting, which `resolve` has reported
        section = section_of(read_setting(setting)[0], "onpolicy", overrides or {})
    try:
        config = OnPolicyConfig.model_validate({**section, **values})
    except pydantic.ValidationError as error:
        faults += explain(error, "onpolicy.", OnPolicyConfig)
    own = config.ranker if config.ranker.name or job is None else job.judge
    name = ranker or own.name
    settings = {**(own.settings if name == own.name else {}), **(ranker_settings or {})}
    if name is not None:
        faults += judge_faults(name, settings, "--ranker" if ranker else "onpolicy.ranker.name", "--ranker-set ")
    elif job is not None:
        faults.append(f"setting {setting!r} names no judge to rank by; give --ranker NAME (`pobench list judges`)")
    if faults or job is None or name is None:
        raise PobenchError("\n".join(dict.fromkeys(line for fault in faults for line in fault.splitlines())))
    return Recipe(job, config, judges.get(name)(**settings), settings)


def make_pairs_of(recipe: Recipe, out: Path) -> dict[str, Any]:
    """Make the pairs of a recipe, with as many processes as `pobench run` trains with; shows progress."""
    job, config, judge, settings = recipe
    subset, split = (None if config.prompts else job.data.subset), config.prompts_split or job.data.split
    rows = prompt_rows(config.prompts or job.data.source, split, "onpolicy.prompts", subset)
    rows = [{**row, "prompt": row["messages"]} for row in rows]
    folder = start_model(job)
    chat, decoding = Chat.of(folder, job.model), _decoding(config, job)
    asked = [chat.prompt_ids(row["messages"]) for row in rows]
    shares, extent = unknown_shares({"prompt": asked}, chat.unknown), Extent.of_prompts(asked, decoding.max_new_tokens)
    what = f"onpolicy.prompts: the longest prompt and {decoding.max_new_tokens} new tokens"
    remedy = "set a smaller onpolicy.max_new_tokens, or leave out the longest prompts"
    capacity = Capacity.of(folder, job.data.max_length, trust_remote_code=job.model.trust_remote_code)
    unknown = unknown_fault("onpolicy.prompts", shares)
    if faults := [*filter(None, [unknown]), *capacity.faults(extent, what, chat, remedy)]:
        raise PobenchError("\n".join(faults))
    if warning := unknown_text(shares):
        print(f"onpolicy.prompts: {warning}", file=sys.stderr)
    made_by: dict[str, Any] = {"source": job.model.source, "digest": weights_digest(folder), "rendering": chat.digest}
    made_by |= {} if capacity.reach is None else {"rope_reach": capacity.reach}
    sampling = Sampling(rows, out, made_by, decoding)
    with _alone(out):
        if len(sampling.gather()) < sampling.total:
            _draw_in_processes(sampling, folder, job.model, job.data.max_length, job.answers.batch_size)
        if hasattr(judge, "estimate"):
            print(judge.estimate([two for _, two in comparisons(sampling.answers())]), file=sys.stderr)
        written = write_pairs(sampling, judge, held_out=config.held_out_fraction, judge_settings=settings)
    for note in getattr(judge, "notes", ()):
        print(note, file=sys.stderr)
    return written


def _decoding(config: OnPolicyConfig, job: Job) -> Decoding:
    precision = config.precision
    if precision == "auto":
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        precision = "bf16" if bf16_pays(device) else "fp32"
    length = config.max_new_tokens or job.answers.max_new_tokens
    return Decoding(length, config.temperature, config.top_p, config.samples, config.seed, precision)


# ---------------------------------------------------------------- processes
def _draw_in_processes(sampling: Sampling, folder: Path, model: ModelConfig, length: int, batch_size: int) -> None:
    if layout_of_devices()[0] == 1:
        return _draw_share(sampling, folder, model, length, batch_size)
    prompts = [{"id": row["id"], "prompt": messages(row["prompt"])} for row in sampling.rows]
    call = {
        "rows": prompts,
        "out": str(sampling.out),
        "made_by": sampling.origin["model"],
        "decoding": asdict(sampling.decoding),
        "folder": str(folder),
        "model": model.model_dump(),
        "length": length,
        "batch_size": batch_size,
    }
    with tempfile.TemporaryDirectory() as temporary:
        file = Path(temporary) / "call.json"
        file.write_text(json.dumps(call), encoding="utf-8")
        status = launch("pobench.workflows.onpolicy", file)
    if status:
        raise PobenchError(
            f"a process that drew answers ended with status {status}, see above; its samples are kept, and the same "
            "command continues from there"
        )


def _draw_share(sampling: Sampling, folder: Path, model: ModelConfig, length: int, batch_size: int) -> None:
    """Draw one process's share, on its device."""
    transformers.logging.disable_progress_bar()  # our own progress bar is enough
    state = PartialState(cpu=not torch.cuda.is_available())
    share = (state.process_index, state.num_processes)
    speaker = load_model(
        folder,
        dtype=PRECISIONS[sampling.decoding.precision],
        attention=attention_of(folder, model.attention),
        trust_remote_code=model.trust_remote_code,
        length=length,
    ).to(state.device)
    title = "answers" if share[1] == 1 else f"answers, {share[1]} processes"
    quiet = contextlib.nullcontext(lambda **_: None)
    with progress(title, sampling.total, "answers") if state.is_main_process else quiet as advance:
        draw(
            sampling,
            speaker,
            Chat.of(folder, model),
            batch_size=batch_size,
            share=share,
            progress=lambda done, total: advance(done=done),
        )


def main() -> None:
    """`python -m pobench.workflows.onpolicy CALL.json`: one process's share, in each process of a job."""
    call = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    sampling = Sampling(call["rows"], Path(call["out"]), call["made_by"], Decoding(**call["decoding"]))
    try:
        _draw_share(sampling, Path(call["folder"]), ModelConfig(**call["model"]), call["length"], call["batch_size"])
    except PobenchError as error:
        sys.exit(f"pobench: {error}")


@contextlib.contextmanager
def _alone(out: Path) -> Iterator[None]:
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
        with FileLock(out.with_name(f".{out.name}.lock"), blocking=False):
            yield
    except Timeout:
        raise PobenchError(
            f"another command is at work on {str(out)!r}; wait for it, or write to another file"
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


def _key(prompt: Any) -> str:
    return text_key(Message(m["role"], m["content"]) for m in messages(prompt))


def _read(file: Path, origin: Mapping[str, Any]) -> list[Sample]:
    """The samples of one file, without a last line that a killed process left incomplete."""
    complete_lines = file.read_text(encoding="utf-8").rpartition("\n")[0]
    if not complete_lines:
        return []
    try:
        header, *rows = map(json.loads, complete_lines.split("\n"))  # an answer may contain other line separators
        header_origin = header["samples_of"]
        samples = [Sample(**row) for row in rows]
    except (ValueError, KeyError, TypeError) as error:
        raise PobenchError(f"{str(file)!r} is no file of samples ({error}); remove it to start again") from error
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


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


if __name__ == "__main__":
    main()
