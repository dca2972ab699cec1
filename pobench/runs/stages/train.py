"""Training: the run's own model, from the start model or the last round's and the pairs, by one loss with one seed."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pobench.errors import reason_of
from pobench.registry import Loss, get_loss
from pobench.runs.stage import Content, Stage
from pobench.runs.stages import density_ratio
from pobench.runs.stages.reference import TOKENS
from pobench.settings.job import Job

if TYPE_CHECKING:
    from pobench.model.policy_sums import SumScorer
    from pobench.runs.context import Context
    from pobench.training.density_ratio import DensityRatios
    from pobench.training.reference import EveryStep, ReferenceSums
    from pobench.types import Unit

_ONE = {"pairs": "a pair", "lists": "a list", "answers": "an answer"}


def causes(job: Job, content: Content) -> Mapping[str, Any]:
    """`pairs` is the digest of the items of the loss's unit, which are lists or answers where the data have them. `reference`
    is a cause of its own where it is not the model that training begins from."""
    loss = get_loss(job.loss)
    other_reference = content.begins and loss.reads_reference and content.compared_to(job) != content.begins
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
        "weights": content.begins or content.weights,
        **({"reference": content.weights} if other_reference else {}),
        **({"scores": content.scores_of(loss.unit)} if "scores" in loss.needs else {}),
        **({"density_ratio": ratios.name} if (ratios := density_ratio.node_of(job, content)) else {}),
    }


def run(context: Context) -> None:
    """Train, and store the model with the digests of its files; `trained.json` is written last."""
    import torch

    from pobench.data.order import data_order, mismatch, unit_of
    from pobench.identity import name_of
    from pobench.model import adapters
    from pobench.progress import progress
    from pobench.training import checkpoint, leaving
    from pobench.training.loop import train
    from pobench.units import in_a_batch

    job, folder, loss, accelerator = context.job, context.folder, context.loss, context.accelerator
    assert loss is not None
    items = context.prepared.items(loss.unit)
    unit = unit_of(items)
    torch.manual_seed(job.seed)
    order = data_order(items, job.seed, job.train.epochs)
    steps = math.ceil(len(items) / in_a_batch(items, job.train.batch_size)) * job.train.epochs
    content = name_of(context.task.causes)
    if context.main:
        checkpoint.refuse_holes(folder.path, content, [row["step"] for row in folder.logged()], context.say)
    accelerator.wait_for_everyone()
    model, rows = context.trainable(context.begin_path)
    reference, ratios = _reference(context), _density_ratios(context)
    if loss.moves_reference:
        context.say(f"{context.task.title}: {_how_it_moves(loss, job, steps)}")
    adapter = job.train.adapter
    adapted = adapters.attach(model, adapter, job.seed) if adapter else None
    if job.train.trackers:
        init_trackers(accelerator, job, context.task.run, folder.path)
    with progress(context.task.title, steps, "steps", shown=context.main) as advance:
        shown = _Shown(context, unit, steps, advance)
        trained = train(
            accelerator,
            model,
            items,
            [epoch.tolist() for epoch in order.epochs],
            loss,
            job.loss_settings,
            job.train,
            folder=folder.path,
            reference=reference,
            mismatched=mismatch(items) if "kl" in loss.needs else None,
            seed=job.seed,
            begins_elsewhere=context.reference_path != context.begin_path,
            density_ratios=ratios,
            log=shown.log if context.main else lambda row: None,
            say=context.say,
            rewind=shown.rewind if context.main else lambda step: None,
            content=content,
            watch=shown.watch if job.train.evaluate_every and context.prepared.heldout else None,
            rows=rows,
        )
    if job.train.trackers:
        accelerator.end_training()
    facts = {unit: len(items), "order": order.digest, **_cost_of(reference)}
    if ratios:
        facts["density_ratio"] = {**ratios.facts, "embedder": Path(job.data.prompt_embedder or "").name}
    with leaving.held():  # the last steps have no checkpoint
        _store(context, model, adapted, {**asdict(trained), **facts})
    accelerator.wait_for_everyone()


@dataclass
class _Shown:
    """What is stored and shown of the steps. unit: of an item. advance: of the progress bar."""

    context: Context
    unit: Unit
    steps: int
    advance: Callable[..., None]

    def log(self, row: dict[str, Any]) -> None:
        """Store a step's row, hand its finite values to the trackers, and show its loss and pace."""
        context = self.context
        context.folder.log_step(row)
        finite = {k: v for k, v in row.items() if not (isinstance(v, float) and math.isnan(v))}
        _beside(context, "the tracker's row", lambda: context.accelerator.log(finite, step=row["step"]))
        pace = f"{row['seconds'] / row[self.unit]:.2f} s {_ONE[self.unit]}"
        self.advance(note=f"loss {row['loss']:.4g} · margin {row['rewards/margins']:+.3g} · {pace}", done=row["step"])

    def watch(self, scorer: SumScorer) -> dict[str, float]:
        """The means over the held-out pairs; {} where they failed."""
        measured = _beside(self.context, "the held-out pairs", lambda: _heldout_means(self.context, scorer))
        return measured or {}

    def rewind(self, step: int) -> None:
        """Training goes on behind `step`: later rows are dropped."""
        if step:
            self.context.say(f"{self.context.task.title}: goes on from step {step} of {self.steps}")
            self.advance(done=step, resumed=True)
        self.context.folder.rewind_steps(step)


def _heldout_means(context: Context, scorer: SumScorer) -> dict[str, float]:
    from pobench.runs.pair_frames import heldout_means

    frame = context.heldout_frame(scorer)
    assert frame is not None  # only shards are another process's
    return heldout_means(frame)


def _reference(context: Context) -> ReferenceSums | EveryStep | None:
    """The stored reference sums of what is trained on, or a start model that computes them in every step, frozen or moved by
    the loss; None for a loss that reads none."""
    from pobench.model.policy_sums import sum_scorer
    from pobench.training.reference import EveryStep, Moving

    config, loss = context.job.train, context.loss
    if loss is None or not loss.reads_reference:
        return None
    if config.reference == "cached":
        return context.references(loss.unit, TOKENS[loss.unit], *("mismatched", "mismatched_answers"))
    policy = context.reference_policy()
    policy.requires_grad_(False)
    kind = Moving if loss.moves_reference else EveryStep
    return kind(sum_scorer(policy, context.groups(loss.unit), config, context.accelerator, context.say))


def _density_ratios(context: Context) -> DensityRatios | None:
    """The stored density ratios of the training prompts; None where the loss asks for none, or trains on pairs."""
    from pobench.training.density_ratio import DensityRatios

    folder = context.task.references.get(density_ratio.NAME)
    return None if folder is None else DensityRatios.load(Path(folder))


def _how_it_moves(loss: Loss, job: Job, steps: int) -> str:
    """A sentence on a reference that moves. A move behind the last step changes nothing."""
    moves = sum(loss.move_of_reference(step, job.loss_settings).share > 0 for step in range(1, steps))
    if not moves:
        return f"its reference moves behind none of {steps} steps, so it trains as it would without; see {loss.name}'s settings"
    return f"its reference moves behind {moves} of {steps} steps, so a second model computes it in every step"


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
    begin = context.begin_path
    whole_source = begin == context.start_path and context.job.sft is None and "base" not in origin(begin)
    base = (model.source, model.revision) if whole_source else (str(begin), None)
    if not adapter.merge:
        adapters.save(adapted, folder, *base, state=state)
        return
    if state is not None:
        with tempfile.TemporaryDirectory() as temporary:
            adapters.save(adapted, Path(temporary), *base, state=state)
            adapted = put_in(context.load(begin), Path(temporary))
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
    does="train every loss from the start model, or from the last round's",
    reads=("sft", "onpolicy", "reference", "density_ratio"),
    writes=("model/", "steps.jsonl", "trained.json"),
    decided_by="pairs (their ratings and density ratios, if the loss asks for them), the weights that it begins from and is "
    "compared with, the loss's source and settings, the train section, seed",
    run=run,
    causes=causes,
    shared=True,
)
