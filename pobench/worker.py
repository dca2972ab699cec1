"""One job, start to end, in a process of its own: train → held-out log-probs → answers → verdicts → scores.

Each stage writes one file of the run folder and is skipped where the file is there, so a repeated command continues.
Started by `plan.execute` as a forked child, or by `accelerate launch -m pobench.worker JOB.json` on several devices.
"""

from __future__ import annotations

import gc
import importlib.metadata
import json
import math
import os
import platform
import sys
import traceback
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import transformers
from pydantic import BaseModel

from pobench import checkpoint
from pobench.config import AnswersConfig, DataConfig, Job, JudgeConfig, ModelConfig, TrainConfig
from pobench.data import data_order, mismatch
from pobench.files import whole
from pobench.generate import generate
from pobench.layouts import Group
from pobench.logps import ResponseLogps
from pobench.prepare import Prepared, eval_prompts, tokenizer_of
from pobench.progress import progress
from pobench.reference import ReferenceCache
from pobench.registry import Loss, PobenchError, get_loss, judges, load_plugin
from pobench.scores import score
from pobench.sources import cache_folder, fetch_model, load_model, weights_digest
from pobench.store import RunFolder
from pobench.train import (
    Scorer,
    Trained,
    bf16_pays,
    evaluate_loss,
    make_accelerator,
    pair_of,
    scorer_for,
    train,
)
from pobench.types import Pair, TokenPair

INTERRUPTED = 130
STAGES = ("train", "heldout", "answers", "judge")


@dataclass(frozen=True)
class Task:
    """A job and where it runs. kind: "loss" trains; "start" evaluates the start model."""

    job: Job
    kind: str
    runs: Path
    stages: tuple[str, ...]
    data: Path  # folder written by `prepare`
    plugins: tuple[str, ...] = ()

    @property
    def run(self) -> str:
        return self.job.run if self.kind == "loss" else self.job.start_run

    @property
    def title(self) -> str:
        return f"{self.job.loss}, seed {self.job.seed}" if self.kind == "loss" else "start model"

    def dump(self, path: Path) -> None:
        values = {**self.job.values(), "origin": dict(self.job.origin)}
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


def run(task: Task) -> int:
    """Do what is left of a task. Returns the exit status: 0, or 1 with the reason in the run folder's `failed.json`."""
    if not os.environ.get("POBENCH_DEBUG"):  # our own progress and messages are enough
        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()
        warnings.filterwarnings("ignore")
    folder = RunFolder(task.runs, task.run)
    try:
        for plugin in task.plugins:
            load_plugin(plugin)
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
        return f"out of memory; try --set train.micro_tokens=… (smaller) or train.gradient_checkpointing=true ({text[:200]})"
    return text if isinstance(error, PobenchError) else f"{type(error).__name__}: {text}"


class _Worker:
    def __init__(self, task: Task, folder: RunFolder) -> None:
        self.task, self.folder, self.job = task, folder, task.job
        self.loss: Loss | None = get_loss(self.job.loss) if task.kind == "loss" else None
        self.prepared = Prepared.load(task.data)
        self.start_path = fetch_model(
            self.job.model.source,
            revision=self.job.model.revision,
            sha256=self.job.model.sha256,
            trust_remote_code=self.job.model.trust_remote_code,
        )
        trackers = self.job.train.trackers if self.loss else []
        self.accelerator = make_accelerator(
            self.job.train.precision, log_with=trackers or None, project_dir=str(folder.path)
        )
        self.main = self.accelerator.is_main_process
        self.caches: dict[str, ReferenceCache] = {}

    # -- stages

    def work(self) -> None:
        folder, task = self.folder, self.task
        if self.main:
            folder.path.mkdir(parents=True, exist_ok=True)
            folder.write_config(self.job, task.kind)
            folder.write_json("environment.json", environment(self.accelerator))
        if self.loss and "train" in task.stages and not folder.has("model"):
            self.train(self.loss)
        if self.loss and not folder.has("model"):
            return  # --stages without train, and nothing trained yet
        wants = {"heldout": "heldout.parquet", "answers": "answers.parquet"}
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

    def model(self, path: Path) -> Any:
        attention = self.job.model.attention
        config = json.loads((path / "config.json").read_text())
        if attention == "auto":  # soft-capped attention exists in the eager form alone
            attention = "eager" if config.get("attn_logit_softcapping") else "sdpa"
        return load_model(
            path, dtype=torch.float32, attention=attention, trust_remote_code=self.job.model.trust_remote_code
        )

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
        self._fill_heldout(model)
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
                rewind=folder.rewind_steps if self.main else lambda step: None,
            )
        if job.train.trackers:
            self.accelerator.end_training()
        if self.main:
            self._save(model, trained, order.digest)
        self.accelerator.wait_for_everyone()
        del model
        gc.collect()

    def _save(self, model: Any, trained: Trained, order: str) -> None:
        self.folder.write_json("trained.json", {**asdict(trained), "pairs": len(self.prepared.train), "order": order})
        with whole(self.folder.path / "model") as partial:
            model.save_pretrained(partial)
            tokenizer_of(self.start_path, self.job.model).save_pretrained(partial)
        checkpoint.clear(self.folder.path)

    def _fill_heldout(self, model: Any) -> None:
        """The reference's sums of the held-out pairs, for every loss: KL and shifts are reported for all."""
        policy = ResponseLogps(model.to(self.accelerator.device), self.job.train.head_tile)
        scorer, _ = self._scorer(policy)
        groups = self._heldout_groups()
        self.references(self._arithmetic(scorer)).fill(
            groups[self.accelerator.process_index :: self.accelerator.num_processes], scorer.compute
        )
        self.accelerator.wait_for_everyone()

    def _arithmetic(self, scorer: Scorer) -> str:
        return f"{self.accelerator.mixed_precision} {scorer.layout.name}"

    def _scorer(self, policy: ResponseLogps) -> tuple[Scorer, str]:
        scorer, reason = scorer_for(policy, policy, self.prepared.heldout, self.job.train, self.accelerator.device)
        accelerator = self.accelerator

        def forward(batch: Any) -> torch.Tensor:
            with accelerator.autocast():
                return policy(batch)

        scorer.policy = forward  # type: ignore[assignment]
        return scorer, reason

    def _heldout_groups(self) -> list[Group]:
        groups = [Group.of(p) for p in self.prepared.heldout]
        return groups + self._borrowed()

    def _borrowed(self) -> list[Group]:
        if self.loss is None or "kl" not in self.loss.needs:
            return []
        pairs = self.prepared.heldout
        return [Group(p.prompt, (pairs[j].chosen,)) for p, j in zip(pairs, mismatch(pairs), strict=True)]

    def evaluate(self) -> None:
        """Held-out log-probabilities and answers of the trained (or start) model."""
        folder, stages = self.folder, self.task.stages
        path = folder.path / "model" if self.loss else self.start_path
        if not self.main:  # one process evaluates; sharding generation over processes is not worth its bookkeeping here
            return
        model = self.model(path).to(self.accelerator.device).eval()
        if "heldout" in stages and not folder.has("heldout.parquet"):
            folder.write_frame("heldout", self.heldout(model))
        if "answers" in stages and not folder.has("answers.parquet") and self.job.answers.source:
            folder.write_frame("answers", self.answers(model))

    def heldout(self, model: Any) -> pd.DataFrame:
        pairs = self.prepared.heldout
        policy = ResponseLogps(model, self.job.train.head_tile)
        scorer, _ = self._scorer(policy)
        cache = self.references(self._arithmetic(scorer))
        groups = self._heldout_groups()
        if cache.missing(groups):
            start = model if self.loss is None else self.model(self.start_path).to(self.accelerator.device)
            cache.fill(groups, self._scorer(ResponseLogps(start, self.job.train.head_tile))[0].compute)
            if start is not model:
                del start
        reference = cache.get(groups)
        totals = reference.clone()
        if self.loss is not None:
            at = [0]
            for group in groups:
                at.append(at[-1] + len(group.responses))
            with progress(f"{self.task.title}: held-out pairs", len(groups), "pairs") as advance:
                for indices, sums in scorer.compute(groups):
                    where = [at[i] + k for i in indices for k in range(len(groups[i].responses))]
                    totals[where] = torch.tensor(sums, dtype=torch.float64)
                    advance(len(indices))
        n = 2 * len(pairs)
        lengths = torch.tensor([len(r) for p in pairs for r in (p.chosen, p.rejected)])
        frame = heldout_frame(pairs, pair_of(totals[:n], lengths), pair_of(reference[:n], lengths))
        if self.loss is not None:
            kl = (totals[n:] - reference[n:]).mean().float() if len(groups) > len(pairs) else None
            view, known = pair_of(totals[:n].float(), lengths), pair_of(reference[:n].float(), lengths)
            output = evaluate_loss(self.loss, self.job.loss_settings, view, known, kl)
            frame["loss"], frame["chosen_reward"], frame["rejected_reward"] = (
                t.detach().double().numpy() for t in output
            )
        return frame

    def answers(self, model: Any) -> pd.DataFrame:
        config = self.job.answers
        tokenizer = tokenizer_of(self.start_path, self.job.model)
        rows = eval_prompts(config)
        precision = config.precision
        if precision == "auto":
            precision = "bf16" if bf16_pays(self.accelerator.device) else "fp32"
        with progress(f"{self.task.title}: answers", len(rows) * config.samples, "answers") as advance:
            answers = generate(
                model,
                tokenizer,
                [row["messages"] for row in rows],
                max_new_tokens=config.max_new_tokens,
                temperature=config.temperature,
                top_p=config.top_p,
                samples=config.samples,
                seed=config.seed,
                batch_size=config.batch_size,
                precision=precision,
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
        scores = [judge.score(rows[a.prompt], a.text, a.finished) for a in answers.itertuples()]
        folder.write_frame("verdicts", answers[["prompt", "sample"]].assign(judge=config.name, score=scores))

    def score(self) -> None:
        start = RunFolder(self.task.runs, self.job.start_run) if self.loss else None
        ours = _frames(self.folder)
        if not ours:
            return
        self.folder.write_json("scores.json", _plain(score(ours, _frames(start) if start else None)))


def _frames(folder: RunFolder) -> dict[str, pd.DataFrame]:
    names = ("heldout", "answers", "verdicts")
    return {n: folder.read_frame(n).assign(run=folder.run) for n in names if folder.has(f"{n}.parquet")}


def _plain(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{k: None if isinstance(v, float) and math.isnan(v) else v for k, v in row.items()} for row in rows]


def heldout_frame(pairs: Sequence[TokenPair], policy: Pair, reference: Pair) -> pd.DataFrame:
    """One row a pair; rewards are nan until a loss gives them."""
    return pd.DataFrame(
        {
            "pair": [p.id for p in pairs],
            "chosen_logp": policy.chosen.total.numpy(),
            "rejected_logp": policy.rejected.total.numpy(),
            "chosen_length": policy.chosen.length.numpy(),
            "rejected_length": policy.rejected.length.numpy(),
            "reference_chosen_logp": reference.chosen.total.numpy(),
            "reference_rejected_logp": reference.rejected.total.numpy(),
            "loss": math.nan,
            "chosen_reward": math.nan,
            "rejected_reward": math.nan,
        }
    )


def environment(accelerator: Any) -> dict[str, Any]:
    """Packages, device and processes of this run; no host name, no path, no key."""
    packages = ("pobench", "torch", "transformers", "accelerate", "datasets", "tokenizers", "numpy", "pandas", "scipy")
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
