"""Training: the run's own model, from the start model and the pairs, by one loss with one seed."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pobench.errors import reason_of
from pobench.registry import get_loss
from pobench.runs.stage import Content, Stage
from pobench.settings.job import Job

if TYPE_CHECKING:
    from pobench.model.policy_sums import SumScorer
    from pobench.runs.context import Context
    from pobench.training.reference import EveryStep, ReferenceSums


def causes(job: Job, content: Content) -> Mapping[str, Any]:
    """`pairs` is the digest of the items of the loss's unit, which are lists or answers where the data have them."""
    loss = get_loss(job.loss)
    return {
        "loss": job.loss,
        "source": content.source("loss", job.loss),
        "settings": dict(job.loss_settings),
        "seed": job.seed,
        "train": {
            **job.train.causes(),
            "precision": content.precise(job.train.precision),
            **content.rounding(job.train),
        },
        **job.model.layers,
        "pairs": content.items_of(loss.unit),
        "weights": content.weights,
        **({"scores": content.scores_of(loss.unit)} if "scores" in loss.needs else {}),
    }


def run(context: Context) -> None:
    """Train, and store the model with the digests of its files; `trained.json` is written last."""
    import torch

    from pobench.data.order import data_order, mismatch
    from pobench.identity import name_of
    from pobench.model import adapters
    from pobench.progress import progress
    from pobench.training import leaving
    from pobench.training.loop import train

    job, folder, pairs, accelerator = context.job, context.folder, context.prepared.train, context.accelerator
    loss = context.loss
    assert loss is not None
    torch.manual_seed(job.seed)
    order = data_order(pairs, job.seed, job.train.epochs)
    steps = math.ceil(len(pairs) / job.train.batch_size) * job.train.epochs
    model, rows = context.trainable(context.start_path)
    reference = _reference(context)
    adapter = job.train.adapter
    adapted = adapters.attach(model, adapter, job.seed) if adapter else None
    if job.train.trackers:
        init_trackers(accelerator, job, context.task.run, folder.path)
    with progress(context.task.title, steps, "steps", shown=context.main) as advance:

        def log(row: dict[str, Any]) -> None:
            folder.log_step(row)
            finite = {k: v for k, v in row.items() if not (isinstance(v, float) and math.isnan(v))}
            _beside(context, "the tracker's row", lambda: accelerator.log(finite, step=row["step"]))
            pace = f"{row['seconds'] / row['pairs']:.2f} s a pair"
            advance(note=f"loss {row['loss']:.4g} · margin {row['rewards/margins']:+.3g} · {pace}", done=row["step"])

        def watch(scorer: SumScorer) -> dict[str, float]:
            measured = _beside(context, "the held-out pairs", lambda: _heldout_means(context, scorer))
            return measured or {}

        trained = train(
            accelerator,
            model,
            pairs,
            [epoch.tolist() for epoch in order.epochs],
            loss,
            job.loss_settings,
            job.train,
            folder=folder.path,
            reference=reference,
            mismatched=mismatch(pairs) if "kl" in loss.needs else None,
            log=log if context.main else lambda row: None,
            say=context.say,
            rewind=folder.rewind_steps if context.main else lambda step: None,
            content=name_of(context.task.causes),
            watch=watch if job.train.evaluate_every and context.prepared.heldout else None,
            rows=rows,
        )
    if job.train.trackers:
        accelerator.end_training()
    facts = {"pairs": len(pairs), "order": order.digest, **_cost_of(reference)}
    with leaving.held():  # the last steps have no checkpoint
        _store(context, model, adapted, {**asdict(trained), **facts})
    accelerator.wait_for_everyone()


def _heldout_means(context: Context, scorer: SumScorer) -> dict[str, float]:
    from pobench.runs.pair_frames import heldout_means

    frame = context.heldout_frame(scorer)
    assert frame is not None  # only shards are another process's
    return heldout_means(frame)


def _reference(context: Context) -> ReferenceSums | EveryStep | None:
    """The stored reference sums of the pairs, or a frozen start model that computes them in every step; None for a loss that
    reads none."""
    from pobench.model.policy_sums import sum_scorer
    from pobench.training.reference import EveryStep

    config, loss = context.job.train, context.loss
    if loss is None or not loss.reads_reference:
        return None
    if config.reference == "cached":
        return context.references("pairs", "lists", "answers", "mismatched", "mismatched_answers", "tokens")
    policy = context.start_policy()
    policy.requires_grad_(False)
    return EveryStep(sum_scorer(policy, context.groups("pairs"), config, context.accelerator, context.say))


def _cost_of(reference: ReferenceSums | EveryStep | None) -> dict[str, Any]:
    """How the reference sums came about, and the seconds that they took beside the training steps; None: not known."""
    from pobench.training.reference import EveryStep

    if reference is None:
        return {"reference": "", "reference_seconds": 0.0}
    seconds = reference.seconds_apart
    how = "every_step" if isinstance(reference, EveryStep) else "cached"
    return {"reference": how, "reference_seconds": None if math.isnan(seconds) else seconds}


def _beside(context: Context, what: str, measure: Callable[[], Any]) -> Any:
    """What training is measured by and does not depend on. Where it fails, a sentence says so, and training goes on.

    With several processes the error passes through: the others would wait for the one that failed.
    """
    try:
        return measure()
    except Exception as error:
        if context.accelerator.num_processes > 1:
            raise
        context.say(f"{context.task.title}: {what} failed at this step: {reason_of(error)}")
        return None


def _store(context: Context, model: Any, adapted: Any, facts: Mapping[str, Any]) -> None:
    """The model with its tokenizer, by the first process; of weights that are split every process gives its share."""
    from pobench.files import whole
    from pobench.model.sharding import save_model, whole_weights
    from pobench.training import checkpoint

    state = whole_weights(adapted or model, trained=adapted is not None) if context.splits else None
    if not context.main:
        return
    with whole(context.folder.path / "model") as partial:
        if adapted is None:
            save_model(model, partial, state)
        else:
            _store_adapter(context, adapted, partial, state)
        context.chat.tokenizer.save_pretrained(partial)
    context.folder.finish_training(context.task.causes, facts)
    checkpoint.clear(context.folder.path)


def _store_adapter(context: Context, adapted: Any, folder: Path, state: Mapping[str, Any] | None) -> None:
    """The adapter alone, or merged into its base, which is read once more where only shares of it are at hand."""
    import tempfile

    from pobench.adapter_folder import put_in
    from pobench.model import adapters
    from pobench.sources import origin

    adapter, model = context.job.train.adapter, context.job.model
    assert adapter is not None
    whole_source = context.job.sft is None and "base" not in origin(context.start_path)
    base = (model.source, model.revision) if whole_source else (str(context.start_path), None)
    if not adapter.merge:
        adapters.save(adapted, folder, *base, state=state)
        return
    if state is not None:
        with tempfile.TemporaryDirectory() as temporary:
            adapters.save(adapted, Path(temporary), *base, state=state)
            adapted = put_in(context.load(context.start_path), Path(temporary))
    adapters.merged(adapted).save_pretrained(folder)


def init_trackers(accelerator: Any, job: Job, run: str, folder: Path) -> None:
    """Begin a run of the project `pobench` in each tracker, called like the run; its files lie in the run's folder. A tracker
    is told what trains. It is not told the judge, whose settings may hold what is private."""
    named = {
        "clearml": {"task_name": run},
        "dvclive": {"dir": str(folder / "dvclive"), "save_dvc_exp": False},
        "mlflow": {"run_name": run},
        "swanlab": {"experiment_name": run, "logdir": str(folder / "swanlab")},
        "trackio": {"name": run},
        "wandb": {"name": run, "dir": str(folder)},
    }
    told = {name: section for name, section in job.values().items() if name != "judge"}
    init_kwargs = {name: how for name, how in named.items() if name in job.train.trackers}
    accelerator.init_trackers("pobench", config={"run": run, **_flat(told)}, init_kwargs=init_kwargs)


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested values as `section.key`, for trackers."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value if isinstance(value, int | float | str | bool) else str(value)
    return flat


STAGE = Stage(
    name="train",
    does="train every loss from the start model",
    reads=("sft", "onpolicy", "reference"),
    writes=("model/", "steps.jsonl", "trained.json"),
    decided_by="pairs (their ratings, if the loss asks for them), start weights, the loss's source and settings, the train "
    "section, seed",
    run=run,
    causes=causes,
    shared=True,
)
