"""The settings schema: a YAML file states the model, the data and the training; `--set KEY=VALUE` changes a value.

The schema is strict: an unknown key, a wrong type or a value out of range is a fault, and all faults are listed together.
Every number has two ends: one far beyond them is a slip of the keyboard that would cost memory or time.
The comment behind a value in the YAML is its source; it is copied with the value into every run's `config.yaml`.
"""

from __future__ import annotations

import json
import re
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticKnownError

from pobench.errors import nearest
from pobench.files import name_fault

MICRO_TOKENS = 2048  # of a micro-batch by default, and of evaluation when the setting says `auto`


class _Runtime:
    """Marks a field that changes how a job runs but no result."""


RUNTIME = _Runtime()
Seed = Annotated[int, Field(ge=-(2**63), lt=2**63)]  # what torch's generators take
# Of the start model's sampled answers. It was trained with no seed of ours, so one set of its answers stands beside the runs of
# every seed. The luck of that set differs from prompt to prompt, so it is part of the spread over prompts that an interval
# measures; the luck of a run's own answers is drawn anew with each seed.
START_SEED = 0
OF_DRAWS = ("seed", "top_p")  # decide nothing where decoding is greedy
Count = Annotated[int, Field(ge=1, le=10**9)]  # of pairs, prompts or tokens
Rate = Annotated[float, Field(gt=0, le=10)]  # a learning rate


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    def causes(self) -> dict[str, Any]:
        """The values that decide a result, as plain data. The layout and the micro-batch count too: they change the last
        bits."""
        runtime = {name for name, field in type(self).model_fields.items() if RUNTIME in field.metadata}
        return self.model_dump(mode="json", exclude=runtime)


_RENDERING = ("messages", "add_generation_prompt", "chat_template", "tokenize", "bos_token", "eos_token")


def _plain_arguments(value: dict[str, Any]) -> dict[str, Any]:
    wrong = [name for name in value if not name.isidentifier() or name in _RENDERING]
    if wrong:
        raise ValueError(
            f"allowed: names that the chat template reads, such as enable_thinking; {wrong[0]!r} is "
            + ("set by the rendering itself" if wrong[0] in _RENDERING else "not a name")
        )
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError):
        raise ValueError("allowed: plain values (text, numbers, true, false, null, lists and maps of them)") from None
    return value


class ModelConfig(_Strict):
    """The start model."""

    source: (
        str  # local path, hub name, `builtin:NAME`, or `package:NAME==VERSION/FILE`; a whole model, or a peft adapter
    )
    base: str | None = None  # the base of an adapter, where it is not at the place that its adapter_config.json names
    revision: str | None = None
    sha256: str | None = None  # of the package, when the source is one
    trust_remote_code: bool = False
    # flex: FlexAttention in training, on a GPU; auto: flex if a check passes, else sdpa, or eager for capped scores
    # flash_attention_2: over padded rows, in bf16, on a GPU with flash-attn; if a check passes, else as auto
    attention: Literal["auto", "flex", "flash_attention_2", "sdpa", "eager"] = "auto"
    # liger: norms and MLPs of training and scoring by liger-kernel, on a GPU, if a check passes
    kernels: Literal["none", "liger"] = "none"
    chat_template: str | None = None  # a Jinja file, or the name of a shipped one; None: the tokenizer's own
    system_message: str | None = None  # added to every conversation without one; "": an empty system message
    # passed to the chat template in training and generation: {enable_thinking: false}
    template_arguments: Annotated[dict[str, Any], AfterValidator(_plain_arguments)] = {}
    # where the empty thought counts that a template writes before answers and not behind a question (Qwen 3): in training and
    # generation to the prompt, or to |y|
    empty_thought: Literal["prompt", "answer"] = "prompt"
    note: Annotated[str, RUNTIME] = ""  # a remark about these weights, printed in the report

    @property
    def layers(self) -> dict[str, str]:
        """What computes the layers, as causes of a result. `kernels` is one where any are named: results keep the names that
        they had before there was a choice."""
        return {"attention": self.attention, **({} if self.kernels == "none" else {"kernels": self.kernels})}

    def causes(self) -> dict[str, Any]:
        """`kernels` as in `layers`."""
        return {k: v for k, v in super().causes().items() if (k, v) != ("kernels", "none")}


# pobench's names of columns, which `data.columns` may give to a file's own
_COLUMNS = """
prompt chosen rejected system history input instruction label completion responses scores preference output_1 output_2
score_chosen score_rejected score ranks status id
messages rejected_response query response preferred_output non_preferred_output response_0 response_1 response_2
better_response_id human_ref_A human_ref_B labels preference_strength context response1 response2 overall_preference
question answer_0 answer_1 score_0 score_1 conversation_a conversation_b winner response_a response_b winner_model_a
winner_model_b answers completions chosen_response response_j response_k data annotations generations output kto_tag
answer1 answer2 annotation_id
"""  # the second part: of public layouts
COLUMNS = tuple(_COLUMNS.split())


def _column_names(value: Any) -> Any:
    if unknown := [name for name in value if name not in COLUMNS] if isinstance(value, dict) else []:
        raise ValueError(f"got {unknown[0]!r}{nearest(str(unknown[0]), COLUMNS)} Allowed: {', '.join(COLUMNS)}")
    return value


def _names(value: Any) -> Any:
    return [name.strip() for name in value.split(",")] if isinstance(value, str) else value


_Columns = Annotated[dict[str, str | list[str]], BeforeValidator(_column_names)]
_Ignored = Annotated[list[str], BeforeValidator(_names)]


class SourceConfig(_Strict):
    """One of several data sets that are mixed."""

    source: str  # local file, hub name, or `builtin:FILE`
    name: str = ""  # stands before its pairs' ids, in the audit and in tables; default: the last part of `source`
    # its share of the training pairs, relative to the others'; given for all sources or for none, which takes all pairs
    weight: float | None = Field(None, gt=0, le=1e6)
    subset: str | None = None  # this and the next four as in `data`, of this source alone
    split: str | None = None
    revision: str | None = None
    columns: _Columns = {}
    ignore: _Ignored = []


def _named(sources: list[SourceConfig]) -> list[SourceConfig]:
    """The sources, each with its name. Raises ValueError for names that cannot be, and for weights of some."""
    named = [s.model_copy(update={"name": s.name or _short_name(s.source)}) for s in sources]
    for place, source in enumerate(named):
        if fault := name_fault(source.name):
            raise ValueError(f"name: {fault}")
        if source.name in (other.name for other in named[:place]):
            raise ValueError(f"two sources are called {source.name!r}; give each a name")
    if len({source.weight is None for source in named}) > 1:
        without = ", ".join(source.name for source in named if source.weight is None)
        raise ValueError(f"no weight of {without}; give all sources one, or none, which takes all pairs of all")
    return named


def _short_name(source: str) -> str:
    """The last part of a path or hub name that is more than a pattern, without its endings."""
    words = (re.sub(r"[^\w+-]+", "-", part.partition(".")[0]).strip("-+") for part in re.split(r"[/:]", source)[::-1])
    return next(filter(None, words), "source")[:64]


# of `data`; each of several sources has its own
OF_ONE_SOURCE = tuple(name for name in SourceConfig.model_fields if name not in ("source", "name", "weight"))
PairsFrom = Literal["best_worst", "all", "adjacent"]


class DataConfig(_Strict):
    """Preference pairs, ranked lists or labelled answers, and how they become tokens."""

    # several data sets instead of `source`: [{source: A, weight: 3}, {source: B, weight: 1}]
    sources: Annotated[list[SourceConfig], AfterValidator(_named)] = []
    # where sources have weights, training takes pairs in their proportion. first_exhausted: until one source has no further
    # pair; all_exhausted: until every pair was taken, some of smaller sources several times
    stopping: Literal["first_exhausted", "all_exhausted"] = "first_exhausted"
    source: str = Field("", validate_default=True)  # local file, hub name, or `builtin:FILE`
    subset: str | None = None  # the configuration of a hub data set
    split: str | None = None
    revision: str | None = None
    # pobench's name of a column → the file's, dots lead into objects; texts of a list are joined: {prompt: [context, prompt]}
    columns: _Columns = {}
    ignore: _Ignored = []  # columns to leave out; scores too, which would find ties
    held_out: str | None = None  # a source of held-out pairs; None: split `source` by prompt
    held_out_split: str | None = None
    held_out_fraction: float = Field(0.1, gt=0, lt=1)  # used if held_out and held_out_split are None
    # of a ranked list: the best answer against the worst, every two, or each with those of the next worse rank; ties make none
    pairs_from: PairsFrom = "best_worst"
    max_pairs: Count | None = None  # of lists as many, of single answers twice as many
    max_held_out: Count | None = None
    # scored after training by the stage `trainpairs`, picked by the hash of their ids; a cause of that stage alone
    max_trainpairs: Annotated[Count, RUNTIME] = 10_000
    max_length: int = Field(2048, ge=2, le=10**9)  # tokens, prompt + response
    max_prompt_length: Count = 1800  # tokens
    truncation: Literal["drop", "cut"] = "drop"
    on_bad_row: Literal["stop", "drop"] = "stop"
    count_header: bool = False  # |y| as in the SimPO repository: with header, what follows the end of turn, end of text
    length_bias: float = Field(0.0, ge=0, le=1)  # share of labels replaced by "the longer answer wins"
    seed: Seed = 0  # of the split, the subset, the mixture and the bias

    @field_validator("source")
    @classmethod
    def _one_or_several(cls, source: str, info: ValidationInfo) -> str:
        several = info.data.get("sources")
        if several is not None and not (source or several):
            raise PydanticKnownError("missing")
        if source and several:
            raise ValueError("`data.sources` names the data already; one of the two is needed")
        return source

    @field_validator(*OF_ONE_SOURCE)
    @classmethod
    def _of_its_source(cls, value: Any, info: ValidationInfo) -> Any:
        if value and info.data.get("sources"):
            raise ValueError("`data.sources` names several data sets; it stands in each of them")
        return value

    @property
    def parts(self) -> list[SourceConfig]:
        """The sources; a single one has no name."""
        return self.sources or [self.part(self.source, self.split)]

    @property
    def held_out_parts(self) -> list[SourceConfig]:
        """The sources of held-out pairs; [] where `parts` are split by prompt."""
        if self.held_out is not None:
            part = self.part(self.held_out, self.held_out_split or self.split)
            return [part.model_copy(update={"name": _short_name(self.held_out)}) if self.sources else part]
        if self.held_out_split is not None:
            return [part.model_copy(update={"split": self.held_out_split}) for part in self.parts]
        return []

    def part(self, source: str, split: str | None) -> SourceConfig:
        """Another source, read as `source` is."""
        own = {name: getattr(self, name) for name in OF_ONE_SOURCE if name != "split"}
        return SourceConfig.model_construct(source=source, split=split, **own)

    def causes(self) -> dict[str, Any]:
        """What is not used is no cause, and neither is the default of `pairs_from`: data have the names that they had before
        there was a choice."""
        values = super().causes()
        unused = () if self.sources else ("sources", "stopping")
        return {k: v for k, v in values.items() if k not in unused and (k, v) != ("pairs_from", "best_worst")}


def _module_names(value: Any) -> Any:
    if value == "all-linear":
        return value
    names = [name.strip() for name in value.split(",")] if isinstance(value, str) else value
    if not (isinstance(names, list) and names and all(isinstance(name, str) and name for name in names)):
        raise ValueError("allowed: all-linear, or names of layers such as q_proj,v_proj")
    return names


class AdapterConfig(_Strict):
    """LoRA: train low-rank matrices beside the linear layers of a frozen model. See `pobench.model.adapters`."""

    r: int = Field(16, ge=1, le=10**5)  # rank; a common choice, none is published for these losses
    alpha: int = Field(32, ge=1, le=10**6)  # the matrices' product is scaled by alpha / r
    dropout: float = Field(0.0, ge=0, le=1)
    target_modules: Annotated[str | list[str], BeforeValidator(_module_names)] = "all-linear"  # never the output head
    quantize: Literal["none", "nf4"] = "none"  # of the frozen weights; nf4: QLoRA, needs a GPU and bitsandbytes
    base_precision: Literal["fp32", "bf16"] = "fp32"  # of the frozen weights; trained weights are always fp32
    merge: bool = False  # store the whole model with the adapter merged, instead of the adapter alone

    @field_validator("dropout")
    @classmethod
    def _no_dropout(cls, value: float) -> float:
        if value != 0:
            raise ValueError(
                "allowed: 0. The reference has no dropout, so a policy with dropout would differ from it at the start"
            )
        return value

    @model_validator(mode="after")
    def _mergeable(self) -> AdapterConfig:
        if self.merge and (self.quantize != "none" or self.base_precision != "fp32"):
            raise ValueError(
                "merge: true needs base_precision fp32 and quantize none: narrower weights would round the adapter away"
            )
        return self


def _tokens_or_auto(value: Any) -> Any:
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if value != "auto" and (isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= 10**9):
        raise ValueError("allowed: a whole number of tokens, from 1 to 1,000,000,000, or auto")
    return value


def _switch_or_auto(value: Any) -> Any:
    if value != "auto" and not isinstance(value, bool):
        raise ValueError("allowed: true, false, auto")
    return value


Tracker = Literal["aim", "clearml", "comet_ml", "dvclive", "mlflow", "swanlab", "tensorboard", "trackio", "wandb"]


class LoopConfig(_Strict):
    """The training loop. `batch_size` is items per optimiser step, for any layout, number of devices and accumulation."""

    lr: Rate
    epochs: int = Field(1, ge=1, le=1000)
    batch_size: Count = 128
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup_ratio: float = Field(0.1, ge=0, lt=1)
    weight_decay: float = Field(0.0, ge=0, le=100)
    max_grad_norm: float = Field(1.0, gt=0, allow_inf_nan=True)  # .inf: no clipping
    adam_beta1: float = Field(0.9, ge=0, lt=1)
    adam_beta2: float = Field(0.999, ge=0, lt=1)
    adam_epsilon: float = Field(1e-8, gt=0, le=1)
    precision: Literal["auto", "bf16", "fp32"] = "auto"  # of the arithmetic; trained weights are always fp32
    layout: Literal["auto", "shared_prefix", "padded"] = "auto"
    # tokens of a micro-batch, padding included; auto: measured by a memory probe
    micro_tokens: Annotated[Count | Literal["auto"], BeforeValidator(_tokens_or_auto)] = MICRO_TOKENS
    head_tile: Count | None = None  # vocabulary entries per tile of the output head; None: by device
    # auto: only if one pair does not fit into memory without it
    gradient_checkpointing: Annotated[bool | Literal["auto"], BeforeValidator(_switch_or_auto)] = False
    compile: bool = False  # torch.compile every layer; takes minutes, so for long runs on a GPU
    # fsdp2: the processes of a job hold a share each of weights, gradients and moments; none: a copy each; auto: shares where
    # the estimate of a copy does not fit a device
    sharding: Annotated[Literal["auto", "none", "fsdp2"], RUNTIME] = "auto"
    checkpoint_seconds: Annotated[float, RUNTIME] = Field(
        60.0, ge=0, allow_inf_nan=True
    )  # at least between two; 0: after every step; .inf: none
    checkpoint_share: Annotated[float, RUNTIME] = Field(0.05, gt=0, le=1)  # of the time, at most, that saving takes
    # newest ones that are kept, so that a damaged one costs only the steps since the one before; 1 where weights are split
    keep_checkpoints: Annotated[int, RUNTIME] = Field(2, ge=1, le=1000)
    # between the signal to leave and the end, where the scheduler's own time is not known: a checkpoint that takes longer is
    # not begun
    grace_seconds: Annotated[float, RUNTIME] = Field(30.0, ge=0, allow_inf_nan=True)
    # true: steps go on while a checkpoint is written, from a copy in the processor's memory; auto: on GPUs, where it has room
    checkpoint_async: Annotated[bool | Literal["auto"], BeforeValidator(_switch_or_auto), RUNTIME] = "auto"


class TrainConfig(LoopConfig):
    """Training on pairs: `batch_size` counts pairs; or as many lists, or twice as many single answers."""

    adapter: AdapterConfig | None = None  # None: every weight is trained
    # where a loss's reference sums come from. cached: one pass of the start model over the pairs, stored and shared by losses
    # and seeds. every_step: a frozen start model beside the policy computes the same sums in every step, as the paper ran it;
    # for measuring what a reference costs, and always where a loss compares whole distributions
    reference: Literal["cached", "every_step"] = "cached"
    # those of Accelerate, each by the name of its package; they see steps and settings, no judge and no key
    trackers: Annotated[list[Tracker], RUNTIME] = []
    evaluate_every: Annotated[int, RUNTIME] = Field(
        0, ge=0, le=10**9
    )  # steps between measurements on the held-out pairs; 0: none

    def causes(self) -> dict[str, Any]:
        """`reference` is a cause only as `every_step`: a batch's micro-batches may then have other widths than the stored pass
        had, which changes last bits of its sums. Such a run has a name, time and memory of its own; runs with stored sums
        keep the names that they had before there was a choice."""
        return {k: v for k, v in super().causes().items() if (k, v) != ("reference", "cached")}


class SftConfig(LoopConfig):
    """Supervised fine-tuning, which makes the start model from a base model. All weights are trained."""

    source: str  # conversations (`messages`, or `prompt` and `response`): local file, hub name, or `builtin:FILE`
    subset: str | None = None  # the configuration of a hub data set
    split: str | None = None
    revision: str | None = None
    max_conversations: Count | None = None
    max_length: int = Field(2048, ge=2, le=10**9)  # tokens of a conversation; later turns are left out
    on_bad_row: Literal["stop", "drop"] = "stop"
    # true: batch_size counts rows of max_length tokens, each filled with whole conversations; false: conversations
    packing: bool = False
    shuffle: bool = True  # false: keep the file's order, for a curriculum
    seed: Seed = 42  # of the order and of the subset


class AnswersConfig(_Strict):
    """The prompts to answer after training, and the decoding."""

    source: str | None = None  # None: no answers
    subset: str | None = None  # the configuration of a hub data set
    split: str | None = None
    max_prompts: Count | None = None
    max_new_tokens: Count = 512
    temperature: float = Field(0.0, ge=0, le=100)  # 0: greedy
    top_p: float = Field(1.0, gt=0, le=1)
    samples: int = Field(1, ge=1, le=10_000)
    # of the draws. None: the run's own seed, the same for all losses of that seed; START_SEED for the start model
    seed: Seed | None = None
    batch_size: Annotated[Count, RUNTIME] = 64
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    # auto: vLLM if it is installed and there is a GPU; its answers may differ from transformers', even greedy ones
    engine: Literal["auto", "transformers", "vllm"] = "auto"
    # of the GPU's whole memory, for vLLM's weights and cache
    vllm_memory_share: Annotated[float, RUNTIME] = Field(0.9, gt=0, le=1)

    def causes(self) -> dict[str, Any]:
        """Without the seed and the nucleus where decoding is greedy: nothing is drawn, so they decide nothing."""
        return {k: v for k, v in super().causes().items() if self.temperature > 0 or k not in OF_DRAWS}


class JudgeConfig(_Strict):
    """The judge of the answers."""

    name: str | None = None  # None: answers are stored without verdicts
    settings: dict[str, Any] = {}


class TuneConfig(_Strict):
    """How `pobench tune` chooses values: the metric, and a split that is neither trained on nor reported."""

    metric: str = "pass_rate"
    prompts: str | None = None  # every trial answers these instead of `answers.source`
    prompts_split: str | None = None
    max_prompts: Count | None = None
    pairs: str | None = None  # every trial holds these out instead of `data.held_out`, and does not train on them
    pairs_split: str | None = None
    max_pairs: Count | None = None
    grid: str | None = None  # a name in experiments/grids, or a YAML path
    trials: str | None = (
        None  # a CSV of trials made before (`trials.csv`); those of the same content are not made again
    )


class TunedConfig(_Strict):
    """What `pobench tune` writes beside the values that it chose for a loss: how they were chosen. It decides no result.

    trials: how many were made for the loss, failed ones among them. metric: the objective. value, low, high, n: what the
    best trial reached on the tuning split, with its 95 % interval. study: the search, as the file of its trials names it.
    """

    trials: Count
    metric: str
    value: float
    low: float | None = None
    high: float | None = None
    n: Count
    study: str


class OnPolicyConfig(_Strict):
    """How the stage `onpolicy` makes pairs: it samples the start model's own answers and ranks them. Pairs of prompts that
    `answers.source` asks are held out."""

    prompts: str | None = None  # None: those of `data.source`
    prompts_split: str | None = None
    max_prompts: Count | None = None
    samples: int = Field(5, ge=2, le=10_000)  # SimPO repository, on_policy_data_gen; also the next two
    temperature: float = Field(0.8, gt=0, le=100)
    top_p: float = Field(0.95, gt=0, le=1)
    max_new_tokens: Count | None = None  # None: as in `answers`
    seed: Seed = 0  # with the prompt and the answer's number, it decides the answer's random numbers
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    ranker: JudgeConfig = JudgeConfig()  # no name: the setting's judge
    # of the prompts, those of `answers.source` among them; 0: none but these
    held_out_fraction: float = Field(0.1, ge=0, lt=1)


class RoundsConfig(_Strict):
    """How `--rounds N` trains: each round answers, ranks and trains from the last round's model. It names no run by itself."""

    # what losses with a reference compare with after round 1. last: the model of the round before, as in SPPO (arXiv
    # 2405.00675) and REBEL (arXiv 2404.16767); start: the start model in every round, as in RLHFlow's iterative DPO
    # (arXiv 2405.07863)
    reference: Literal["last", "start"] = "last"
    # split: round r of N asks every Nth prompt, from the r-th on, as SPPO and Snorkel-Mistral-PairRM-DPO ask a third of
    # UltraFeedback in each of three rounds; all: every round asks all of them
    prompts: Literal["split", "all"] = "split"


class Setting(_Strict):
    """One YAML of experiments/settings."""

    name: str
    description: str = ""
    seeds: list[Seed] = Field([42], min_length=1)
    model: ModelConfig
    data: DataConfig
    train: TrainConfig
    answers: AnswersConfig = AnswersConfig()
    judge: JudgeConfig = JudgeConfig()
    tune: TuneConfig = TuneConfig()
    onpolicy: OnPolicyConfig = OnPolicyConfig()
    rounds: RoundsConfig = RoundsConfig()
    sft: SftConfig | None = (
        None  # None: `model` names a finished start model; else `model` is the base model that SFT starts from
    )
    losses: dict[str, dict[str, Any]] = {}  # loss name -> its settings, train fields (lr, …), where they come from
    benchmarks: dict[str, dict[str, Any]] = {}  # benchmark name -> its settings, see `pobench.judging.benchmarks.base`


SECTIONS: dict[str, type[_Strict]] = {
    "model": ModelConfig,
    "data": DataConfig,
    "train": TrainConfig,
    "answers": AnswersConfig,
    "judge": JudgeConfig,
    "sft": SftConfig,
}
# Sections that do not name a run; the command or the stage of the same name reads them.
COMMANDS: dict[str, type[_Strict]] = {"tune": TuneConfig, "onpolicy": OnPolicyConfig, "rounds": RoundsConfig}
