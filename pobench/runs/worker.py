"""One job, start to end, in a process of its own: train → held-out log-probs → answers → verdicts → scores, and then
the benchmarks that its setting names.

Each stage writes one file of the run folder and is skipped where the file is there, so a repeated command continues.
Started by `plan.execute` as a forked child, or by `accelerate launch -m pobench.runs.worker JOB.json` on several devices.
"""

from __future__ import annotations

import gc
import logging
import math
import os
import sys
import traceback
import warnings
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import transformers

from pobench.data.chat import tokenizer_of
from pobench.data.order import data_order, mismatch
from pobench.data.prepare import Prepared
from pobench.data.prompts import eval_prompts
from pobench.errors import PobenchError
from pobench.files import whole
from pobench.judging import PairwiseJudge, grades
from pobench.judging.benchmarks.base import Speaker
from pobench.judging.pairwise import Comparison, Longer, judge_many
from pobench.model import adapters
from pobench.model.device import bf16_pays, environment, make_accelerator
from pobench.model.flex import use_flex
from pobench.model.generate import Decoding, generate
from pobench.model.load import attention_of, load_base
from pobench.model.logps import ResponseLogps
from pobench.model.policy_sums import Scorer, arithmetic, scorer_for
from pobench.model.vllm import speaker_of
from pobench.progress import progress
from pobench.registry import Loss, get_loss, judges, load_plugin
from pobench.results.cross_loss import evaluate, view_of
from pobench.results.metrics import score
from pobench.results.run_folder import RunFolder
from pobench.runs.context import _say
from pobench.runs.stages.gradient_norms import MOST_PAIRS, gradient_norms
from pobench.runs.stages.heldout import heldout_frame, heldout_means
from pobench.runs.stages.score import _frames, _plain
from pobench.runs.stages.train import _flat
from pobench.runs.start_model import make_start_model, start_model
from pobench.runs.task import INTERRUPTED, Task
from pobench.sources import cache_folder, weights_digest
from pobench.training import checkpoint
from pobench.training.loop import Trained, train
from pobench.training.objectives import Compute
from pobench.training.reference import ReferenceCache
from pobench.types import Group


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
        model = load_base(
            path,
            self.job.train.adapter if self.loss else None,
            attention=attention_of(path, self.job.model.attention),
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


def main() -> None:
    """`accelerate launch -m pobench.runs.worker TASK.json`."""
    sys.exit(run(Task.load(Path(sys.argv[1]))))


if __name__ == "__main__":
    main()
