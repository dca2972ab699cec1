"""Where a job's start model comes from: the finished model that its setting names, or its SFT stage over a base model.

A stage's folder lies in the cache, named by what decides its result (base weights, rows and the code that reads them,
settings), so that every loss, β and seed starts from the same one, made once. It is a run folder of its own: demonstrations,
`steps.jsonl`, checkpoints while it runs, `model/`, and `trained.json` written last.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from pobench.data.capacity import Capacity, Extent
from pobench.data.chat import Chat, tokenizer_of
from pobench.data.demonstrations import Demonstrations, reader_digest, tokenise
from pobench.data.prepare import demonstration_rows
from pobench.data.rows import read_rows
from pobench.errors import CorruptError, PobenchError, reason_of
from pobench.files import corrupt_files, read_marker, refuse_corrupt, sha256_of, whole
from pobench.identity import PROTOCOL, name_of
from pobench.model.device import make_accelerator
from pobench.model.flex import use_flex
from pobench.model.liger import use_kernels
from pobench.model.load import attention_of, load_model, load_outline
from pobench.model.sharding import save_model, whole_weights
from pobench.printing import say as say_to_terminal
from pobench.progress import progress
from pobench.results.run_folder import RunFolder
from pobench.settings.job import Job
from pobench.settings.schema import SftConfig
from pobench.sources import cache_folder, cached_model, fetch_model, file_digest, rows_digest, weights_digest
from pobench.training import checkpoint, leaving
from pobench.training.sft import batches, learn

STAGES_ROOT = "sft"  # of the stages' folders, below the cache folder
READ = "read.json"  # beside a stage's demonstrations: the digests of their files
SOURCES = ("source", "subset", "split", "revision", "on_bad_row")  # of the sft section: the rows count by content


def start_model(job: Job) -> Path:
    """The folder of the model that every loss starts from. Raises PobenchError where its stage is not finished."""
    if job.sft is None:
        return base_model(job)
    folder = stage_folder(job)
    if folder.trained is None:
        raise PobenchError(not_made(job))
    for fault in folder.corrupt_weights():
        raise fault
    return folder.path / "model"


def stage_faults(folder: RunFolder) -> list[CorruptError]:
    """Why a finished stage is none: its marker, or weights other than it wrote. Digests of large files are remembered."""
    try:
        return folder.corrupt_weights(read=False)
    except CorruptError as error:
        return [error]


def is_made(folder: RunFolder) -> bool:
    """Whether the stage has finished, and its model is what it wrote."""
    return not stage_faults(folder) and folder.trained is not None


def not_made(job: Job) -> str:
    return (
        f"setting {job.setting!r} starts from a model that its SFT stage makes of {job.model.source}, and it is not made yet: "
        "add the stage (--stages sft,train,…), or name a finished start model with --model"
    )


def base_model(job: Job) -> Path:
    """The folder of the model that the setting names."""
    model = job.model
    return fetch_model(
        model.source,
        revision=model.revision,
        sha256=model.sha256,
        trust_remote_code=model.trust_remote_code,
        base=model.base,
    )


def model_at_hand(job: Job) -> Path | None:
    """The folder of the model that the setting names; None where it would have to be fetched."""
    return cached_model(job.model.source, revision=job.model.revision, sha256=job.model.sha256, base=job.model.base)


def _config(job: Job) -> SftConfig:
    """Of a job that has the stage."""
    assert job.sft is not None
    return job.sft


def stage_folder(job: Job, *, remember: bool = True) -> RunFolder:
    """Of a job with an SFT stage, named by `stage_causes`."""
    return RunFolder(cache_folder() / STAGES_ROOT, f"start-{name_of(stage_causes(job, remember=remember))}")


def stage_causes(job: Job, *, remember: bool = True) -> dict[str, Any]:
    """Rows, weights, rendering and the code that reads rows count by content. remember: digests of large files."""
    config = _config(job)
    base = base_model(job)
    settings = {k: v for k, v in config.causes().items() if k not in SOURCES}
    return {
        "protocol": PROTOCOL,
        "weights": weights_digest(base, remember=remember),
        "rows": rows_digest(demonstration_rows(config), remember=remember),
        "rendering": Chat.of(base, job.model).digest,
        "reader": reader_digest(),
        "sft": settings,
        **job.model.layers,
    }


def read_demonstrations(job: Job) -> Demonstrations:
    """Read and tokenise a stage's conversations. Raises PobenchError that lists what is wrong with them, or if the model cannot
    read them."""
    config = _config(job)
    rows = read_rows(demonstration_rows(config))[: config.max_conversations]
    base = base_model(job)
    chat = Chat.of(base, job.model)
    made = tokenise(chat, rows, source=config.source, max_length=config.max_length, on_bad_row=config.on_bad_row)
    capacity = Capacity.of(base, config.max_length, trust_remote_code=job.model.trust_remote_code)
    extent, remedy = Extent.of(made.groups), f"set sft.max_length={capacity.positions}"
    if faults := capacity.faults(extent, "sft.source", chat, remedy):
        raise PobenchError("\n".join(faults))
    return made


def prepare_stage(job: Job) -> tuple[RunFolder, Demonstrations]:
    """The stage's folder and its demonstrations, stored there by the first call."""
    folder = stage_folder(job)
    if folder.has("demonstrations.json"):
        try:
            return folder, stored_demonstrations(folder)
        except CorruptError as error:
            say_to_terminal(f"{error}; the conversations are read again")
    made = read_demonstrations(job)
    folder.path.mkdir(parents=True, exist_ok=True)
    made.save(folder.path)
    digests = {path.name: sha256_of(path) for path in sorted(folder.path.glob("demonstrations.*"))}
    folder.write_json(READ, {"files": digests})
    return folder, made


def mend_demonstrations(job: Job, folder: RunFolder) -> None:
    """Read the conversations of a finished stage again, where what is stored of them is damaged."""
    if not folder.has(READ):  # of earlier versions
        return
    try:
        faults = corrupt_files(folder.path, read_marker(folder.path / READ)["files"], file_digest)
    except CorruptError as error:
        faults = [error]
    if faults:
        prepare_stage(job)


def stored_demonstrations(folder: RunFolder) -> Demonstrations:
    """Those of a stage's folder. Raises CorruptError where they are not what was written; earlier versions stored no digest."""
    if folder.has(READ):
        refuse_corrupt(folder.path, read_marker(folder.path / READ)["files"])
    try:
        return Demonstrations.load(folder.path)
    except (ValueError, TypeError, OSError) as error:
        raise CorruptError(folder.path / "demonstrations.parquet", f"it cannot be read ({reason_of(error)})") from error


def make_start_model(job: Job, folder: RunFolder, say: Callable[[str], None] = lambda text: None) -> None:
    """Do what is left of the stage that `prepare_stage` has laid out. say, and what is raised: as for training."""
    config, base = _config(job), base_model(job)
    accelerator = make_accelerator(config.precision)
    main = accelerator.is_main_process
    demonstrations = stored_demonstrations(folder)
    options: Any = {
        "attention": attention_of(base, job.model.attention),
        "trust_remote_code": job.model.trust_remote_code,
        "length": config.max_length,
    }
    if main:
        checkpoint.refuse_holes(folder.path, folder.path.name, [row["step"] for row in folder.logged()], say)
    accelerator.wait_for_everyone()
    split = config.sharding == "fsdp2" and accelerator.num_processes > 1
    outline = load_outline(base, dtype=torch.float32, **options) if split else None
    model, rows = outline or (load_model(base, dtype=torch.float32, **options), None)
    use_flex(model, job.model.attention, accelerator.device)
    use_kernels(model, job.model.kernels)
    with progress("SFT", len(batches(demonstrations.groups, config)), "steps", shown=main) as advance:

        def log(row: dict[str, Any]) -> None:
            folder.log_step(row)
            advance(note=f"loss {row['loss']:.4g} · {row['tokens'] / row['seconds']:.0f} tokens/s", done=row["step"])

        trained = learn(
            accelerator,
            model,
            demonstrations,
            config,
            folder=folder.path,
            log=log if main else lambda row: None,
            say=say if main else lambda text: None,
            rewind=folder.rewind_steps if main else lambda step: None,
            content=folder.path.name,
            rows=rows,
        )
    state = whole_weights(model) if split else None
    if main:
        with leaving.held(), whole(folder.path / "model") as partial:
            save_model(model, partial, state)
            tokenizer_of(base, job.model).save_pretrained(partial)
        checkpoint.clear(folder.path)
        folder.finish_training(stage_causes(job), {"turns": demonstrations.turns, **asdict(trained)})
    accelerator.wait_for_everyone()
