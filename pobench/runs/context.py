"""What the stages of one process share: the run's folder, the pairs, the models, the reference sums."""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from pobench import shards
from pobench.adapter_folder import is_adapter, put_in
from pobench.data.capacity import Capacity, Extent
from pobench.data.chat import Chat
from pobench.data.order import mismatch, subset
from pobench.data.pairs_folder import PairsFolder
from pobench.data.prepare import Prepared
from pobench.data.spool import Mapped
from pobench.errors import PobenchError
from pobench.model import adapters
from pobench.model.device import make_accelerator
from pobench.model.flex import use_flex
from pobench.model.liger import use_kernels
from pobench.model.load import attention_of, load_base, load_outline
from pobench.model.logps import ResponseLogps
from pobench.model.policy_sums import SumScorer, empty_values, sum_scorer
from pobench.model.sharding import RowFiles, shard
from pobench.printing import say
from pobench.progress import Advance, progress
from pobench.registry import Loss, get_loss
from pobench.results.cross_loss import evaluate, inputs_of
from pobench.results.run_folder import RunFolder
from pobench.runs.pair_frames import pairs_frame
from pobench.runs.start_model import start_model
from pobench.runs.task import Task
from pobench.training.objectives import mismatched_groups
from pobench.training.reference import EveryStep, ReferenceSums, compute_reference
from pobench.training.token_inputs import TokenValues, by_token, compares_tokens, evaluate_by_token, token_values
from pobench.types import Group, TokenPair, Unit

_SETS = {
    "heldout": "held-out pairs",
    "pairs": "training pairs",
    "mismatched": "mismatched pairs",
    "tokens": "tokens of the training pairs",
    "lists": "lists",
    "list_tokens": "tokens of the lists",
    "answers": "answers",
    "answer_tokens": "tokens of the answers",
    "mismatched_answers": "mismatched answers",
}
_UNITS: dict[str, Unit] = {
    **{"lists": "lists", "list_tokens": "lists"},
    **dict.fromkeys(("answers", "answer_tokens", "mismatched_answers"), "answers"),
}


class Context:
    """Of one task. Models are loaded when a stage asks for them, and one at a time is held."""

    def __init__(self, task: Task) -> None:
        self.task, self.job = task, task.job
        self.folder = RunFolder(task.runs, task.run)
        self.loss: Loss | None = get_loss(self.job.loss) if task.kind == "loss" else None
        self._held: tuple[str, Any] | None = None  # how it was loaded, and what

    # -- what is at hand

    @cached_property
    def accelerator(self) -> Any:
        trackers = self.job.train.trackers if self.loss and "train" in self.task.stages else []
        where = str(self.folder.path)
        return make_accelerator(self.job.train.precision, log_with=trackers or None, project_dir=where)

    @property
    def main(self) -> bool:
        return self.task.share.first and bool(self.accelerator.is_main_process)

    @cached_property
    def prepared(self) -> Prepared:
        """The token pairs. Raises CorruptError where the stored bytes are not those that were written."""
        return PairsFolder(self.task.data).load()

    @cached_property
    def start_path(self) -> Path:
        return start_model(self.job)

    @cached_property
    def begin_path(self) -> Path:
        """The model that training begins from: the start model, or the last round's."""
        return Path(self.job.round.model) if self.job.round.model else self.start_path

    @property
    def reference_path(self) -> Path:
        """The model that training is compared with."""
        last = self.task.kind == "reference" or self.job.rounds.reference == "last"
        return self.begin_path if last else self.start_path

    @cached_property
    def chat(self) -> Chat:
        return Chat.of(self.start_path, self.job.model)

    def say(self, text: str) -> None:
        """A sentence for the terminal, once for all processes."""
        if self.main:
            say(text)

    # -- results of stages

    def store(
        self, stage: str, frames: Mapping[str, pd.DataFrame | None], read: Mapping[str, str | None] | None = None
    ) -> None:
        """A stage's result, whole, with its causes and the digests of the weights and of the results that it was made from. Of
        several processes that evaluate a run, the first stores it."""
        node = self.task.nodes[stage]
        if self.task.share.first:
            made = {name: frame for name, frame in frames.items() if frame is not None}
            self.folder.node(node.name).write(made, node.causes, model=self.folder.weights, read=dict(read or {}))
            shards.remove(self._shards(stage))

    def stands(self, stage: str, read: Mapping[str, str | None]) -> bool:
        """Whether a stage's result is stored, whole, and made from these weights and results."""
        node = self.folder.node(self.task.nodes[stage].name)
        return node.finished and not node.faults() and node.made_from(self.folder.weights, read)

    def cut(
        self,
        stage: str,
        cut: shards.Cut,
        make: Callable[[int], list[Any]],
        advance: Callable[[int], None],
        read: Mapping[str, str | None] | None = None,
    ) -> list[Any] | None:
        """A stage's rows, shard by shard, each computed by one of the processes that evaluate the run; see `shards.compute`."""
        made_from = {"weights": self.folder.weights, "read": dict(read or {})}
        return shards.compute(
            self._shards(stage),
            made_from,
            cut,
            make,
            self.task.share,
            advance,
            lambda: self.stands(stage, read or {}),
        )

    def _shards(self, stage: str) -> Path:
        return self.folder.path / f".{self.task.nodes[stage].name}.shards"

    def progress(self, title: str, total: float, unit: str) -> AbstractContextManager[Advance]:
        """Of the rows that all processes have done, shown by the first."""
        return progress(f"{self.task.title}: {title}", total, unit, shown=self.task.share.first)

    def read(self, stage: str, frame: str) -> pd.DataFrame:
        return self.folder.node(self.task.nodes[stage].name).read_frame(frame)

    def start_answers(self) -> pd.DataFrame:
        """The start model's answers to the same prompts, by the same decoding and `START_SEED`. Raises PobenchError where there
        are none."""
        node = RunFolder(self.task.runs, self.task.start).node(self.task.nodes["start:answers"].name)
        if not node.finished:
            raise PobenchError(
                f"verdicts compare with the start model's answers, and {self.task.start} has none: "
                "run its stage `answers` first"
            )
        return node.read_frame("answers")

    # -- models

    def load(self, path: Path, dtype: torch.dtype | None = None) -> Any:
        """The model in `path`. dtype: None, as an adapter of this run wants the weights below it; the reference of an adapter
        is the very base that it is trained over."""
        narrow = self.loss is not None or self.task.kind == "reference"
        model = load_base(
            path,
            self.job.train.adapter if narrow else None,
            dtype=dtype,
            attention=attention_of(path, self.job.model.attention),
            trust_remote_code=self.job.model.trust_remote_code,
            length=self.job.data.max_length,
            device=self.accelerator.device,
        )
        use_flex(model, self.job.model.attention, self.accelerator.device)
        return model

    @property
    def splits(self) -> bool:
        """Whether the processes of this task hold a share each of a model's weights."""
        shared = self.task.kind == "reference" or "train" in self.task.stages
        return shared and self.job.train.sharding == "fsdp2" and self.accelerator.num_processes > 1

    @property
    def rounds(self) -> bool:
        """Whether each weight is rounded to bf16 before it computes, as where weights are split; not so under autocast."""
        return bool(self.job.train.sharding == "fsdp2" and self.accelerator.mixed_precision == "bf16")

    def trainable(self, path: Path) -> tuple[Any, RowFiles | None]:
        """The model in `path`, and what fills it, if its weights are split over processes and no process needs all of them."""
        model, rows = self._trainable(path)
        use_kernels(model, self.job.model.kernels)
        return model, rows

    def _trainable(self, path: Path) -> tuple[Any, RowFiles | None]:
        if not self.splits:
            return self.load(path), None
        adapter = self.job.train.adapter
        narrow = adapter is not None and adapter.base_precision == "bf16"
        outline = load_outline(
            path,
            dtype=torch.bfloat16 if narrow else torch.float32,
            attention=attention_of(path, self.job.model.attention),
            trust_remote_code=self.job.model.trust_remote_code,
            length=self.job.data.max_length,
        )
        if outline is None:
            return self.load(path), None
        use_flex(outline.model, self.job.model.attention, self.accelerator.device)
        return outline

    def reference_policy(self) -> ResponseLogps:
        """The reference as it computes sums, on its device or split over processes."""
        model, rows = self.trainable(self.reference_path)
        device, config = self.accelerator.device, self.job.train
        if not self.splits:
            model.to(device)
        policy = ResponseLogps(model.eval(), config.head_tile, compiled=config.compile, device=device)
        if self.splits:
            shard(policy, device, torch.bfloat16 if self.rounds else torch.float32, rows)
        return policy

    def release(self) -> None:
        """Give back the model that is held, if there is one."""
        if self._held is None:
            return
        self._held = None
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _hold(self, how: str, make: Any) -> Any:
        if self._held is None or self._held[0] != how:
            self.release()
            self._held = (how, make())
        return self._held[1]

    def final_model(self, dtype: torch.dtype | None = None) -> tuple[Any, Any]:
        """The model that this run ends with, on its device, and the adapter that it is stored as, or None.

        Raises CorruptError where the stored weights are not those that training wrote."""
        path = self.start_path
        if self.loss is not None:
            for fault in self.folder.corrupt_weights():
                raise fault
            path = self.folder.path / "model"
        whole_model = not is_adapter(path)
        model = self.load(path if whole_model else self.start_path, dtype)
        adapted = None if whole_model else put_in(model, path)
        return model.to(self.accelerator.device).eval(), adapted

    def scoring_policy(self) -> ResponseLogps:
        """The final model, its adapter in place, as it computes sums in the arithmetic of training."""
        return self._hold("scoring", self._scoring)  # type: ignore[no-any-return]

    def _scoring(self) -> ResponseLogps:
        return self._scored(self.final_model()[0])

    def _scored(self, model: Any) -> ResponseLogps:
        config = self.job.train
        if self.rounds:  # buffers, such as rotary frequencies, stay as they are
            for weight in model.parameters():
                weight.data = weight.data.to(torch.bfloat16)
        use_kernels(model, self.job.model.kernels)
        policy = ResponseLogps(model, config.head_tile, compiled=config.compile)
        policy.autocast = not self.rounds
        return policy

    def merged_model(self) -> Any:
        """The final model for one product a layer: the adapter is merged, if the base is fp32."""
        return self._hold("merged", lambda: self._merged(*self.final_model()))

    def speaking_model(self) -> tuple[Any, str]:
        """The final model in the precision it speaks, with its name; no wider copy is held beside it."""
        precision = self.task.precision
        return self._hold(f"speaking {precision}", lambda: self._speaking(precision)), precision

    @property
    def stored_weights(self) -> Path | None:
        """The folder with the final model's weights; None where an adapter is stored, whose base lies elsewhere."""
        path = self.start_path if self.loss is None else self.folder.path / "model"
        return None if is_adapter(path) else path

    def _speaking(self, precision: str) -> Any:
        dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        if self.loss is None or not is_adapter(self.folder.path / "model"):
            return self.final_model(dtype)[0]
        return self._merged(*self.final_model()).to(dtype)

    @staticmethod
    def _merged(model: Any, adapted: Any) -> Any:
        return model if adapted is None or model.dtype != torch.float32 else adapters.merged(adapted)

    # -- sums of log-probabilities

    def scorer(self, policy: ResponseLogps) -> SumScorer:
        """Sums without gradient, in the layout that this model and these pairs take."""
        held = self.prepared.heldout
        groups = Mapped(Group.of, held) if len(held) else list(self.prepared.groups)
        alone = self.task.kind != "reference"  # one process evaluates
        return sum_scorer(policy, groups, self.job.train, self.accelerator, self.say, alone=alone)

    def groups(self, which: str) -> Sequence[Group]:
        """The sequences of one set. "lists", "answers": of the training pairs where the data have none. "heldout": a pair's two
        answers, and one that belongs to another prompt; of the last, KTO's kl is made. It shares the row and so the prompt
        with the others, which makes it cheap enough for every run."""
        if which != "heldout":
            items = self.prepared.items(_UNITS.get(which, "pairs"))
            borrowed = which.startswith("mismatched")
            return self._readable(mismatched_groups(items, mismatch(items))) if borrowed else Mapped(Group.of, items)
        pairs = self.prepared.heldout
        try:
            lent = [(pairs[j].chosen,) for j in mismatch(pairs)]
        except PobenchError:  # all pairs share one prompt
            return [Group.of(p) for p in pairs]
        groups = [Group(p.prompt, (p.chosen, p.rejected, *more)) for p, more in zip(pairs, lent, strict=True)]
        return self._readable(groups)

    def _readable(self, groups: Sequence[Group]) -> Sequence[Group]:
        """The groups, if the model can read them: a prompt with a borrowed answer may be longer than any pair is."""
        capacity = Capacity.of(
            self.start_path, self.job.data.max_length, trust_remote_code=self.job.model.trust_remote_code
        )
        what, remedy = "a prompt with another row's answer (for the kl)", "set a smaller data.max_length"
        if faults := capacity.faults(Extent.of(groups), what, self.chat, remedy):
            raise PobenchError("\n".join(faults))
        return groups

    def fill_reference(self, which: str, folder: Path) -> None:
        """Compute what is missing of one set of reference sums."""
        groups = self.groups(which)
        scorer = self.scorer(self._hold("reference", self.reference_policy))
        causes = self.task.nodes[f"reference:{which}"].causes
        responses = sum(len(g.responses) for g in groups)
        with progress(f"reference: {_SETS[which]}", responses, "responses", shown=self.main) as advance:
            compute_reference(folder, groups, scorer, causes, advance, per_token=which.endswith("tokens"))

    def references(self, *sets: str) -> ReferenceSums:
        """The stored sums of these sets, those that the task has."""
        return ReferenceSums.load(*(Path(self.task.references[s]) for s in sets if s in self.task.references))

    @cached_property
    def _heldout_reference(self) -> tuple[Sequence[Group], torch.Tensor]:
        groups = self.groups("heldout")
        return groups, self.references("heldout").of(groups).view(len(groups), -1)

    def heldout_frame(self, scorer: SumScorer | None = None) -> pd.DataFrame | None:
        """The frame `heldout` of the scorer's policy; None: of the run's final model, in the first process."""
        groups, reference = self._heldout_reference
        return self._frame("heldout", "held-out pairs", self.prepared.heldout, groups, reference, scorer)

    def trainpairs_frame(self, most: int) -> pd.DataFrame | None:
        """The frame `trainpairs`, in the first process."""
        pairs = subset(self.prepared.train, most)
        groups = [Group.of(p) for p in pairs]
        reference = self.references("pairs").of(groups).view(len(groups), -1)
        return self._frame("trainpairs", "training pairs", pairs, groups, reference, None)

    def _cut_sums(self, stage: str, title: str, groups: Sequence[Group]) -> torch.Tensor | None:
        """The sums of the run's final model, in the micro-batches of one process, whichever process computes each."""
        scorer = self.scorer(self.scoring_policy())
        totals, places = empty_values(groups)
        (batches,) = scorer.plan(groups)
        cut = shards.deal(batches)

        def sums(k: int) -> list[Any]:
            rows: list[Any] = []
            for batch in cut[k]:
                of_batch = iter(scorer.sums_of([groups[i] for i in batch]).tolist())
                rows += [[i, [next(of_batch) for _ in places[i]]] for i in batch]
            return rows

        with self.progress(title, len(groups), "pairs") as advance, scorer.unchanged(len(batches)):
            rows = self.cut(stage, cut, sums, lambda done: advance(done=done))
        if rows is None:
            return None
        for i, of_group in rows:
            totals[list(places[i])] = torch.tensor(of_group, dtype=torch.float64)
        return totals

    def _token_values(self, loss: Loss, title: str, pairs: Sequence[TokenPair]) -> TokenValues:
        """Of the run's final model and, where the loss asks for them, of the start model, by this process alone."""
        reference = None
        if compares_tokens(loss):
            start = self._scored(self.load(self.start_path).to(self.accelerator.device).eval())
            reference = EveryStep(self.scorer(start))
        groups = [Group.of(pair) for pair in pairs]
        with self.progress(f"{title} by token", len(groups), "pairs") as advance:
            return token_values(loss, groups, self.scorer(self.scoring_policy()), reference, advance)

    def _frame(
        self,
        stage: str,
        title: str,
        pairs: Sequence[TokenPair],
        groups: Sequence[Group],
        reference: torch.Tensor,
        scorer: SumScorer | None,
    ) -> pd.DataFrame | None:
        """One row a pair, with the run's own loss and rewards; while training, a loss that asks for single tokens has none."""
        if self.loss is None:
            return pairs_frame(pairs, reference, reference)
        totals = self._cut_sums(stage, title, groups) if scorer is None else scorer.sums(groups)
        if totals is None:
            return None
        frame = pairs_frame(pairs, totals.view(len(groups), -1), reference, rated="scores" in self.loss.needs)
        if scorer is None and by_token(self.loss):
            values = self._token_values(self.loss, title, pairs)
            output = evaluate_by_token(self.loss, self.job.loss_settings, inputs_of(frame), values)
        else:
            output = evaluate(self.loss, self.job.loss_settings, inputs_of(frame))
        frame["loss"], frame["chosen_reward"], frame["rejected_reward"] = (t.double().numpy() for t in output)
        return frame
