"""One job, start to end, in a process of its own: train → held-out log-probs → answers → verdicts → scores, and then
the benchmarks that its setting names.

Each stage writes one file of the run folder and is skipped where the file is there, so a repeated command continues.
Started by `plan.execute` as a forked child, or by `accelerate launch -m pobench.worker JOB.json` on several devices.
"""

from __future__ import annotations

import contextlib
import gc
import importlib.metadata
import importlib.util
import json
import logging
import math
import os
import platform
import sys
import traceback
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import transformers
from pydantic import BaseModel

from pobench import adapters, checkpoint
from pobench.attention import use_flex
from pobench.config import AnswersConfig, DataConfig, Job, JudgeConfig, ModelConfig, SftConfig, TrainConfig
from pobench.cross_loss import evaluate, view_of
from pobench.data import data_order, mismatch
from pobench.files import whole
from pobench.generate import Decoding, generate
from pobench.judging import PairwiseJudge, grades
from pobench.judging.benchmark import Benchmark, Speaker
from pobench.judging.longer import Longer
from pobench.judging.pairwise import Comparison, judge_many
from pobench.layouts import Group
from pobench.logps import ResponseLogps
from pobench.norms import MOST_PAIRS, gradient_norms
from pobench.objectives import Compute
from pobench.prepare import Prepared, eval_prompts, tokenizer_of
from pobench.progress import progress
from pobench.reference import ReferenceCache
from pobench.registry import Loss, PobenchError, benchmarks, get_loss, judges, load_plugin
from pobench.scores import score
from pobench.sources import cache_folder, weights_digest
from pobench.start_model import make_start_model, start_model
from pobench.stats import GREEK, show_setting
from pobench.store import RunFolder
from pobench.train import Scorer, Trained, arithmetic, bf16_pays, make_accelerator, scorer_for, train
from pobench.types import TokenPair
from pobench.vllm_engine import speaker_of

INTERRUPTED = 130
HOME_STAGES = ("sft", "train", "heldout", "answers", "judge")
STAGES = (*HOME_STAGES, "benchmarks")


@dataclass(frozen=True)
class Task:
    """A job and where it runs. kind: "sft" makes the start model, "start" evaluates it, "loss" trains from it."""

    job: Job
    kind: str
    runs: Path
    stages: tuple[str, ...]
    data: Path  # folder written by `prepare`; of an SFT stage: its own
    plugins: tuple[str, ...] = ()

    @property
    def run(self) -> str:
        return {"loss": self.job.run, "start": self.job.start_run, "sft": self.data.name}[self.kind]

    @property
    def title(self) -> str:
        named = {"start": "start model", "sft": f"SFT of {self.job.model.source}"}
        return named.get(self.kind, f"{self.job.loss}{self._varied()}, seed {self.job.seed}")

    def _varied(self) -> str:
        """What tells jobs of one loss apart: the values that a study, a search or the command line gave."""
        own = ("train.lr", *(f"{self.job.loss}.{name}" for name in self.job.loss_settings))
        given = [k for k, how in self.job.origin.items() if how.startswith("study ") or (how == "--set" and k in own)]
        others = {name: group for group in get_loss(self.job.loss).alternatives for name in group}
        values: dict[str, Any] = {}
        for key in given:
            name = key.rpartition(".")[2]
            values |= {n: self.job.value(key.removesuffix(name) + n) for n in others.get(name, (name,))}
        shown = [f"{GREEK.get(k, k)} = {show_setting(v)}" for k, v in values.items() if v is not None]
        return f" ({', '.join(shown)})" if shown else ""

    @property
    def benchmarks(self) -> list[Benchmark]:
        """Those that the stage runs; none where it is not asked for."""
        return [] if self.kind == "sft" else benchmarks_of(self.job, self.stages)

    @property
    def done(self) -> bool:
        """Whether nothing is left to do."""
        folder = RunFolder(self.runs, self.run)
        with contextlib.suppress(PobenchError):  # questions that cannot be read are no questions answered
            asked = "norms" in self.stages and self.kind != "sft" and not folder.has("norms.parquet")
            return folder.finished and not asked and all(b.done(folder.path) for b in self.benchmarks)
        return False

    def dump(self, path: Path) -> None:
        values = {**self.job.values(), "origin": dict(self.job.origin), "benchmarks": dict(self.job.benchmarks)}
        path.write_text(json.dumps({**asdict(self), "job": values, "runs": str(self.runs), "data": str(self.data)}))

    @classmethod
    def load(cls, path: Path) -> Task:
        values = json.loads(path.read_text())
        job = values["job"]
        sections: dict[str, type[BaseModel]] = {
            "model": ModelConfig,
            "data": DataConfig,
            "train": TrainConfig,
            "answers": AnswersConfig,
            "judge": JudgeConfig,
            **({"sft": SftConfig} if job.get("sft") else {}),
        }
        parsed = {name: schema.model_validate(job[name]) for name, schema in sections.items()}
        return cls(
            Job(**{**job, **parsed}),
            values["kind"],
            Path(values["runs"]),
            tuple(values["stages"]),
            Path(values["data"]),
            tuple(values["plugins"]),
        )


def benchmarks_of(job: Job, stages: Sequence[str]) -> list[Benchmark]:
    """Those that a job's setting names, if their stage is among `stages`."""
    named = job.benchmarks if "benchmarks" in stages else {}
    return [benchmarks.get(name)(**settings) for name, settings in named.items()]


def run(task: Task) -> int:
    """Do what is left of a task. Returns the exit status: 0, or 1 with the reason in the run folder's `failed.json`."""
    if not os.environ.get("POBENCH_DEBUG"):  # our own progress and messages are enough
        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()
        logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # peft imports it where it is installed
        warnings.filterwarnings("ignore")
    folder = RunFolder(task.runs, task.run)
    try:
        for plugin in task.plugins:
            load_plugin(plugin)
        if task.kind == "sft":
            make_start_model(task.job, folder, _say)
        else:
            _Worker(task, folder).work()
        return 0
    except KeyboardInterrupt:
        return INTERRUPTED
    except Exception as error:
        if not isinstance(error, PobenchError):
            (folder.path / "traceback.txt").write_text(traceback.format_exc())
        folder.fail(_reason(error))
        if os.environ.get("POBENCH_DEBUG"):
            traceback.print_exc()
        return 1


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in text:
        return (
            "out of memory; try --set train.micro_tokens=auto (or a smaller number) and "
            f"--set train.gradient_checkpointing=auto ({text[:200]})"
        )
    return text if isinstance(error, PobenchError) else f"{type(error).__name__}: {text}"


class _Worker:
    def __init__(self, task: Task, folder: RunFolder) -> None:
        self.task, self.folder, self.job = task, folder, task.job
        self.loss: Loss | None = get_loss(self.job.loss) if task.kind == "loss" else None
        self.prepared = Prepared.load(task.data)
        self.start_path = start_model(self.job)
        trackers = self.job.train.trackers if self.loss else []
        self.accelerator = make_accelerator(
            self.job.train.precision, log_with=trackers or None, project_dir=str(folder.path)
        )
        self.main = self.accelerator.is_main_process
        self.caches: dict[str, ReferenceCache] = {}

    # -- stages

    def work(self) -> None:
        folder, task = self.folder, self.task
        if self.main and not folder.finished:
            folder.path.mkdir(parents=True, exist_ok=True)
            folder.write_config(self.job, task.kind)
            folder.write_json("environment.json", environment(self.accelerator))
        if self.loss and "train" in task.stages and not folder.has("model"):
            self.train(self.loss)
        if self.loss and not folder.has("model"):
            return  # --stages without train, and nothing trained yet
        wants = {"heldout": "heldout.parquet", "answers": "answers.parquet", "norms": "norms.parquet"}
        if any(stage in task.stages and not folder.has(file) for stage, file in wants.items()):
            self.evaluate()
        if not self.main:
            return
        if "judge" in task.stages:
            self.judge()
        self.score()
        missing = [file for file in ("heldout.parquet", "answers.parquet") if not folder.has(file)]
        if self.job.answers.source is None:
            missing = [m for m in missing if m != "answers.parquet"]
        elif self.job.judge.name and not folder.has("verdicts.parquet"):
            missing.append("verdicts.parquet")
        if not missing:
            about = folder.read_json("trained.json") if folder.has("trained.json") else {}
            folder.finish({"title": self.loss.title if self.loss else "start model", **about})
        self.run_benchmarks()

    def model(self, path: Path) -> Any:
        """The model in `path`, with weights as an adapter of this run wants them below it."""
        model = adapters.load_base(
            path,
            self.job.train.adapter if self.loss else None,
            attention=adapters.attention_of(path, self.job.model.attention),
            trust_remote_code=self.job.model.trust_remote_code,
            device=self.accelerator.device,
        )
        use_flex(model, self.job.model.attention, self.accelerator.device)
        return model

    def references(self, arithmetic: str) -> ReferenceCache:
        if arithmetic not in self.caches:
            where = cache_folder() / "reference"
            self.caches[arithmetic] = ReferenceCache(where, weights_digest(self.start_path), arithmetic)
        return self.caches[arithmetic]

    def train(self, loss: Loss) -> None:
        job, folder, pairs = self.job, self.folder, self.prepared.train
        torch.manual_seed(job.seed)
        order = data_order(pairs, job.seed, job.train.epochs)
        steps = math.ceil(len(pairs) / job.train.batch_size) * job.train.epochs
        model = self.model(self.start_path)
        heldout = self._fill_heldout(model)
        adapter = job.train.adapter
        adapted = adapters.attach(model, adapter, job.seed) if adapter else None
        if job.train.trackers:
            named = {"name": self.task.run}
            kwargs = {"wandb": {**named, "dir": str(folder.path)}, "trackio": named}
            self.accelerator.init_trackers("pobench", config=_flat(job.values()), init_kwargs=kwargs)
        with progress(self.task.title, steps, "steps") as advance:

            def log(row: dict[str, Any]) -> None:
                folder.log_step(row)
                self.accelerator.log(
                    {k: v for k, v in row.items() if not (isinstance(v, float) and math.isnan(v))}, step=row["step"]
                )
                pace = f"{row['seconds'] / row['pairs']:.2f} s a pair"
                advance(
                    note=f"loss {row['loss']:.4g} · margin {row['rewards/margins']:+.3g} · {pace}", done=row["step"]
                )

            def watch(compute: Compute) -> dict[str, float]:
                return heldout_means(self._sums(self._heldout_groups(), heldout, compute))

            trained = train(
                self.accelerator,
                model,
                pairs,
                [epoch.tolist() for epoch in order.epochs],
                loss,
                job.loss_settings,
                job.train,
                folder=folder.path,
                references=self.references,
                mismatched=mismatch(pairs) if "kl" in loss.needs else None,
                log=log if self.main else lambda row: None,
                say=_say if self.main else lambda text: None,
                rewind=folder.rewind_steps if self.main else lambda step: None,
                watch=watch,
            )
        if job.train.trackers:
            self.accelerator.end_training()
        if self.main:
            self._save(model, adapted, trained, order.digest)
        self.accelerator.wait_for_everyone()
        del model, adapted
        gc.collect()

    def _save(self, model: Any, adapted: Any, trained: Trained, order: str) -> None:
        adapter, source = self.job.train.adapter, self.job.model
        self.folder.write_json("trained.json", {**asdict(trained), "pairs": len(self.prepared.train), "order": order})
        with whole(self.folder.path / "model") as partial:
            if adapter is not None and not adapter.merge:
                adapters.save(adapted, partial, source.source, source.revision)
            else:
                (adapters.merged(adapted) if adapter else model).save_pretrained(partial)
            tokenizer_of(self.start_path, source).save_pretrained(partial)
        checkpoint.clear(self.folder.path)

    def _fill_heldout(self, model: Any) -> torch.Tensor:
        """(pairs, 2 or 3) the reference's sums of the held-out pairs, for every loss: KL and shifts are reported for all."""
        config = self.job.train
        policy = ResponseLogps(model.to(self.accelerator.device), config.head_tile, compiled=config.compile)
        scorer, _ = self._scorer(policy)
        groups = self._heldout_groups()
        cache = self.references(arithmetic(self.accelerator, scorer, model))
        cache.fill(groups[self.accelerator.process_index :: self.accelerator.num_processes], scorer.compute)
        self.accelerator.wait_for_everyone()
        return cache.get(groups).view(len(groups), -1)

    def _scorer(self, policy: ResponseLogps) -> tuple[Scorer, str]:
        groups = [Group.of(p) for p in self.prepared.heldout[:2]]
        accelerator = self.accelerator
        say = _say if self.main else lambda text: None
        scorer, reason = scorer_for(policy, policy, groups, self.job.train, accelerator.device, say)

        def forward(batch: Any) -> torch.Tensor:
            with accelerator.autocast():
                return policy(batch)

        scorer.policy = forward  # type: ignore[assignment]
        return scorer, reason

    def _heldout_groups(self) -> list[Group]:
        """A pair's two answers, and one that belongs to another prompt: of the last, KTO's kl is made. It shares the row
        and so the prompt with the others, which makes it cheap enough to have it for every run, not for KTO's alone."""
        pairs = self.prepared.heldout
        try:
            borrowed = [(pairs[j].chosen,) for j in mismatch(pairs)]
        except PobenchError:  # all pairs share one prompt
            if self.loss is not None and "kl" in self.loss.needs:
                raise
            return [Group.of(p) for p in pairs]
        return [Group(p.prompt, (p.chosen, p.rejected, *more)) for p, more in zip(pairs, borrowed, strict=True)]

    def evaluate(self) -> None:
        """Held-out log-probabilities and answers of the trained (or start) model."""
        folder, stages = self.folder, self.task.stages
        if not self.main:  # one process evaluates; sharding generation over processes is not worth its bookkeeping here
            return
        model, adapted = self.final_model()
        if "heldout" in stages and not folder.has("heldout.parquet"):
            folder.write_frame("heldout", self.heldout(model, adapted))
        if "answers" in stages and not folder.has("answers.parquet") and self.job.answers.source:
            folder.write_frame("answers", self.answers(self._one_product(model, adapted)))
        if "norms" in stages and not folder.has("norms.parquet"):
            pairs = self.prepared.heldout
            with progress(f"{self.task.title}: gradients", min(len(pairs), MOST_PAIRS), "pairs") as advance:
                norms = gradient_norms(self._one_product(model, adapted), pairs, self.job.train.head_tile, advance)
            folder.write_frame("norms", norms)

    def final_model(self) -> tuple[Any, Any]:
        """The model that this run ends with, on its device, and the adapter that it is stored as, or None."""
        path = self.folder.path / "model" if self.loss else self.start_path
        whole_model = not adapters.stored_in(path)
        model = self.model(path if whole_model else self.start_path)
        adapted = None if whole_model else adapters.load(model, path)
        return model.to(self.accelerator.device).eval(), adapted

    def _one_product(self, model: Any, adapted: Any) -> Any:
        """The model to speak with: an adapter worked in where that loses nothing, for one product a layer, not three."""
        return model if adapted is None or model.dtype != torch.float32 else adapters.merged(adapted)

    def _precision(self, model: Any) -> str:
        """In which the model speaks."""
        if model.dtype != torch.float32:  # an adapter over narrower weights: they are spoken with as they are
            return "bf16"
        if self.job.answers.precision != "auto":
            return self.job.answers.precision
        return "bf16" if bf16_pays(self.accelerator.device) else "fp32"

    def heldout(self, model: Any, adapted: Any = None) -> pd.DataFrame:
        pairs = self.prepared.heldout
        policy = ResponseLogps(model, self.job.train.head_tile)
        scorer, _ = self._scorer(policy)
        cache = self.references(arithmetic(self.accelerator, scorer, model))
        groups = self._heldout_groups()
        if cache.missing(groups) and adapted is not None:
            with adapters.disabled(adapted):
                cache.fill(groups, scorer.compute)
        elif cache.missing(groups):
            start = model if self.loss is None else self.model(self.start_path).to(self.accelerator.device)
            cache.fill(groups, self._scorer(ResponseLogps(start, self.job.train.head_tile))[0].compute)
            if start is not model:
                del start
        reference = cache.get(groups).view(len(pairs), -1)
        if self.loss is None:
            return heldout_frame(pairs, reference, reference)
        with progress(f"{self.task.title}: held-out pairs", len(groups), "pairs") as advance:
            return self._sums(groups, reference, scorer.compute, advance)

    def _sums(
        self, groups: list[Group], reference: torch.Tensor, compute: Compute, advance: Any = lambda done: None
    ) -> pd.DataFrame:
        """The `heldout` frame of the policy behind `compute`, with the rewards of the run's loss."""
        assert self.loss is not None
        totals = reference.clone()
        for indices, sums in compute(groups):
            totals[indices] = torch.tensor(sums, dtype=torch.float64).view(len(indices), -1)
            advance(len(indices))
        frame = heldout_frame(self.prepared.heldout, totals, reference)
        output = evaluate(self.loss, self.job.loss_settings, view_of(frame))
        frame["loss"], frame["chosen_reward"], frame["rejected_reward"] = (t.double().numpy() for t in output)
        return frame

    def answers(self, model: Any) -> pd.DataFrame:
        config = self.job.answers
        tokenizer = tokenizer_of(self.start_path, self.job.model)
        rows = eval_prompts(config)
        drawn = config.model_dump(include={f.name for f in fields(Decoding)}) | {"precision": self._precision(model)}
        decoding = Decoding(**drawn)
        with (
            speaker_of(model, config.engine, decoding.precision, config.batch_size) as (speaker, batch_size),
            progress(f"{self.task.title}: answers", len(rows) * config.samples, "answers") as advance,
        ):
            answers = generate(
                speaker,
                tokenizer,
                [row["messages"] for row in rows],
                decoding,
                batch_size=batch_size,
                progress=lambda done, total: advance(done=done),
            )
        return pd.DataFrame(
            {
                "prompt": rows[a.prompt]["id"],
                "sample": a.sample,
                "kind": rows[a.prompt].get("kind", ""),
                "topic": rows[a.prompt].get("topic", ""),
                "instruction": rows[a.prompt]["messages"][-1]["content"],
                "text": a.text,
                "tokens": a.tokens,
                "finished": a.finished,
            }
            for a in answers
        )

    def judge(self) -> None:
        config, folder = self.job.judge, self.folder
        if config.name is None or folder.has("verdicts.parquet") or not folder.has("answers.parquet"):
            return
        judge = judges.get(config.name)(**config.settings)
        rows = {row["id"]: row for row in eval_prompts(self.job.answers)}
        answers = folder.read_frame("answers")
        verdicts = answers[["prompt", "sample"]]
        if grades(judge):
            scores = [judge.score(rows[a.prompt], a.text, a.finished) for a in answers.itertuples()]
            verdicts = verdicts.assign(judge=config.name, score=scores)
        elif self.loss is None:  # beside itself it wins half, by definition
            verdicts = verdicts.assign(judge=judge.name, score=0.5, against="start")
        else:
            verdicts = self._compared(judge, rows, answers)
        folder.write_frame("verdicts", verdicts)

    def _compared(self, judge: PairwiseJudge, rows: Mapping[str, Any], answers: pd.DataFrame) -> pd.DataFrame:
        """Verdicts on every answer beside the start model's answer to the same prompt, sample by sample."""
        start = RunFolder(self.task.runs, self.job.start_run)
        if not start.has("answers.parquet"):
            raise PobenchError(
                f"judge {judge.name!r} compares answers with the start model's, and {self.job.start_run} has none: "
                "run its stage `answers` first"
            )
        theirs = start.read_frame("answers")[["prompt", "sample", "text"]]
        both = answers.merge(theirs, on=["prompt", "sample"], suffixes=("", "_start"))
        shown = [Comparison(rows[b.prompt]["messages"], b.text_start, b.text) for b in both.itertuples()]
        if hasattr(judge, "estimate"):
            _say(f"{self.task.title}: {judge.name}: {judge.estimate(shown)}")
        with progress(f"{self.task.title}: verdicts", len(shown), "answers") as advance:
            verdicts = judge_many(judge, shown, lambda done, total: advance(done=len(shown) * done // max(total, 1)))
        return both[["prompt", "sample"]].assign(
            judge=judge.name,
            score=[v.probability for v in verdicts],
            against="start",
            forward=[v.forward for v in verdicts],
            backward=[v.backward for v in verdicts],
            flipped=[v.flipped for v in verdicts],
            longer=[Longer().judge(*comparison) for comparison in shown],
        )

    def run_benchmarks(self) -> None:
        """Each for itself: one that fails leaves the others. Raises PobenchError that lists those that failed."""

        def load() -> tuple[Any, Any, str]:
            model = self._one_product(*self.final_model())
            return model, tokenizer_of(self.start_path, self.job.model), self._precision(model)

        speaker = Speaker(self.task.run, load, self.job.answers.batch_size, _say)
        failed = []
        for benchmark in self.task.benchmarks:
            try:
                if not benchmark.done(self.folder.path):
                    benchmark.evaluate(self.folder.path, speaker)
            except Exception as error:
                if not isinstance(error, PobenchError):
                    (self.folder.path / "traceback.txt").write_text(traceback.format_exc())
                failed.append(f"{benchmark.name}: {_reason(error)}")
        if failed:
            raise PobenchError("\n".join(failed))

    def score(self) -> None:
        start = RunFolder(self.task.runs, self.job.start_run) if self.loss else None
        ours = _frames(self.folder)
        if not ours:
            return
        self.folder.write_json("scores.json", _plain(score(ours, _frames(start) if start else None)))


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _frames(folder: RunFolder) -> dict[str, pd.DataFrame]:
    names = ("heldout", "answers", "verdicts")
    return {n: folder.read_frame(n).assign(run=folder.run) for n in names if folder.has(f"{n}.parquet")}


def _plain(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{k: None if isinstance(v, float) and math.isnan(v) else v for k, v in row.items()} for row in rows]


def heldout_means(frame: pd.DataFrame) -> dict[str, float]:
    """What a step logs of the held-out pairs, means over them: KL(reference ‖ policy) on winners and their
    log-probability, both in nats per token; accuracy (a tie counts half) and margin of the loss's own reward."""
    per_token = frame["chosen_logp"] / frame["chosen_length"]
    gap = frame["chosen_reward"] - frame["rejected_reward"]
    return {
        "heldout/kl": float((frame["reference_chosen_logp"] / frame["chosen_length"] - per_token).mean()),
        "heldout/chosen_per_token": float(per_token.mean()),
        "heldout/accuracy": float(((gap > 0) + 0.5 * (gap == 0)).where(gap.notna()).mean()),
        "heldout/margin": float(gap.mean()),
    }


def heldout_frame(pairs: Sequence[TokenPair], totals: torch.Tensor, reference: torch.Tensor) -> pd.DataFrame:
    """One row a pair. totals, reference: (pairs, 2 or 3) nats of the chosen, the rejected and the mismatched answer, if
    there is one; rewards are nan until a loss gives them."""
    sums = ("chosen_logp", "rejected_logp", "mismatched_logp")
    blank = torch.full((len(pairs),), math.nan)
    policy_of, reference_of = (dict(zip(sums, [*t.T, blank], strict=False)) for t in (totals, reference))
    return pd.DataFrame(
        {
            "pair": [p.id for p in pairs],
            "chosen_logp": policy_of["chosen_logp"].numpy(),
            "rejected_logp": policy_of["rejected_logp"].numpy(),
            "chosen_length": [len(p.chosen) for p in pairs],
            "rejected_length": [len(p.rejected) for p in pairs],
            **{f"reference_{name}": reference_of[name].numpy() for name in sums},
            "mismatched_logp": policy_of["mismatched_logp"].numpy(),
            "loss": math.nan,
            "chosen_reward": math.nan,
            "rejected_reward": math.nan,
        }
    )


def environment(accelerator: Any) -> dict[str, Any]:
    """Packages, device and processes of this run; no host name, no path, no key."""
    packages = ["pobench", "torch", "transformers", "accelerate", "datasets", "tokenizers", "numpy", "pandas", "scipy"]
    packages += [p for p in ("peft", "bitsandbytes") if importlib.util.find_spec(p) is not None]
    device = accelerator.device
    return {
        "packages": {p: importlib.metadata.version(p) for p in packages},
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "processes": accelerator.num_processes,
        "distributed": str(accelerator.distributed_type.value),
        "precision": accelerator.mixed_precision,
    }


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value if isinstance(value, int | float | str | bool) else str(value)
    return flat


def main() -> None:
    """`accelerate launch -m pobench.worker TASK.json`."""
    sys.exit(run(Task.load(Path(sys.argv[1]))))


if __name__ == "__main__":
    main()
