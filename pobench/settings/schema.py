"""The settings schema: a YAML file states the model, the data and the training; `--set KEY=VALUE` changes a value.

The schema is strict: an unknown key, a wrong type or a value out of range is a fault, and all faults are listed together.
Every number has two ends: one far beyond them is a slip of the keyboard that would cost memory or time.
The comment behind a value in the YAML is its source; it is copied with the value into every run's `config.yaml`.

The text below a field says what it is; `pobench list keys` and docs/keys.md print it.
"""

from __future__ import annotations

import json
import re
from typing import Annotated, Any, ClassVar, Literal

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

ANSWERED_TOGETHER = 256  # prompts, by default; fewer where memory is short
# Of a micro-batch by default, and of evaluation when the setting says `auto`. A smaller micro-batch is not multiplied beyond it
# for passes without gradient.
MICRO_TOKENS = 2048


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


class Section(BaseModel):
    """A section of a setting."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)

    read_by: ClassVar[str] = ""  # for people: the commands and stages that read it

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


class ModelConfig(Section):
    """The start model."""

    read_by: ClassVar[str] = "every stage that loads the start model, or the model that `sft` begins with"

    source: str
    """A folder, a hub name, `builtin:NAME`, or `package:NAME==VERSION/FILE`; a whole model, or a peft adapter."""
    base: str | None = None
    """The base of an adapter, where it is not at the place that its adapter_config.json names."""
    revision: str | None = None
    """Of a hub name: the branch, tag or commit. null: its main branch."""
    sha256: str | None = None
    """Of the package, when the source is one."""
    trust_remote_code: bool = False
    """Whether code that comes with the model may run."""
    attention: Literal["auto", "flex", "flash_attention_2", "sdpa", "eager"] = "auto"
    """Attention in training. flex: FlexAttention, on a GPU. flash_attention_2: over padded rows, in bf16, on a GPU with
    flash-attn, if a check passes, else the model's own. auto: flex if a check passes, else sdpa, or eager for capped scores."""
    kernels: Literal["none", "liger"] = "none"
    """liger: norms and MLPs of training and scoring by liger-kernel, on a GPU, if a check passes."""
    chat_template: str | None = None
    """A Jinja file, or the name of a shipped template. null: the tokenizer's own."""
    system_message: str | None = None
    """Added to every conversation without one; "": an empty system message."""
    template_arguments: Annotated[dict[str, Any], AfterValidator(_plain_arguments)] = {}
    """Passed to the chat template in training and generation: `{enable_thinking: false}`."""
    empty_thought: Literal["prompt", "answer"] = "prompt"
    """Where the empty thought counts that a template writes before answers and not behind a question (Qwen 3): in training and
    generation to the prompt, or to |y|."""
    note: Annotated[str, RUNTIME] = ""
    """A remark about these weights, printed in the report."""

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


class SourceConfig(Section):
    """One of several data sets that are mixed."""

    source: str
    """A local file, a hub name, or `builtin:FILE`."""
    name: str = ""
    """Stands before its pairs' ids, in the audit and in tables. "": the last part of `source`."""
    weight: float | None = Field(None, gt=0, le=1e6)
    """Its share of the training pairs, relative to the others'. Given for all sources, or for none, which takes all pairs."""
    subset: str | None = None
    """As in `data`, of this source alone; so are the next four."""
    split: str | None = None
    """Of a hub data set."""
    revision: str | None = None
    """Of a hub data set: the branch, tag or commit."""
    columns: _Columns = {}
    """pobench's name of a column → the file's."""
    ignore: _Ignored = []
    """Columns to leave out."""


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


class DataConfig(Section):
    """Preference pairs, ranked lists or labelled answers, and how they become tokens."""

    read_by: ClassVar[str] = "`pobench data`, and every stage that reads pairs"

    sources: Annotated[list[SourceConfig], AfterValidator(_named)] = []
    """Several data sets instead of `source`: `[{source: A, weight: 3}, {source: B, weight: 1}]`."""
    stopping: Literal["first_exhausted", "all_exhausted"] = "first_exhausted"
    """Where sources have weights, training takes pairs in their proportion. first_exhausted: until one source has no further
    pair. all_exhausted: until every pair was taken, some of smaller sources several times."""
    source: str = Field("", validate_default=True)
    """A local file, a hub name, or `builtin:FILE`. This or `sources` must be given."""
    subset: str | None = None
    """The configuration of a hub data set."""
    split: str | None = None
    """Of a hub data set: the split of the training pairs."""
    revision: str | None = None
    """Of a hub data set: the branch, tag or commit. null: its main branch."""
    columns: _Columns = {}
    """pobench's name of a column → the file's. Dots lead into objects, texts of a list are joined:
    `{prompt: [context, prompt]}`."""
    ignore: _Ignored = []
    """Columns to leave out. Of scores too, which would find ties."""
    held_out: str | None = None
    """A source of held-out pairs. null: those of `held_out_split`, or of `source` split by prompt."""
    held_out_split: str | None = None
    """The split of the held-out pairs, of `held_out` or of `source`."""
    held_out_fraction: float = Field(0.1, gt=0, lt=1)
    """The share of prompts whose pairs are held out, where neither `held_out` nor `held_out_split` is given."""
    pairs_from: PairsFrom = "best_worst"
    """The pairs of a ranked list: the best answer against the worst, all of two, or each with those of the next worse rank.
    Ties make none."""
    max_pairs: Count | None = None
    """Training pairs at most; of lists as many, of single answers twice as many. null: all."""
    max_held_out: Count | None = None
    """Held-out pairs at most. null: all."""
    max_trainpairs: Annotated[Count, RUNTIME] = 10_000
    """Training pairs that the stage `trainpairs` scores after training, at most; picked by the hash of their ids.
    It names the result of that stage alone."""
    max_length: int = Field(2048, ge=2, le=10**9)
    """Tokens of prompt and response, at most."""
    max_prompt_length: Count = Field(default_factory=lambda given: _longest_prompt(given.get("max_length", 2048)))
    """Tokens of a prompt, at most. By itself 1800; as large a share of a `max_length` below 2048."""
    truncation: Literal["drop", "cut"] = "drop"
    """drop: a longer pair is a bad row. cut: the end of its prompt and the beginning of a response are kept."""
    on_bad_row: Literal["stop", "drop"] = "stop"
    """Whether a row that cannot be read stops the command, or is left out and counted."""
    count_header: bool = False
    """Whether |y| counts as in the SimPO repository: with header, what follows the end of turn, end of text."""
    prompt_embedder: Annotated[str | None, RUNTIME] = None
    """A folder or hub name of the model that embeds prompts for losses that ask for `density_ratio`, by the mean of its last
    hidden states. null: the start model. Its weights name the density ratios, and the runs that read them."""
    length_bias: float = Field(0.0, ge=0, le=1)
    """The share of labels replaced by "the longer answer wins"."""
    seed: Seed = 0
    """Of the split, the subset, the mixture and the bias."""

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

    @field_validator("max_prompt_length")
    @classmethod
    def _leaves_room(cls, longest: int, info: ValidationInfo) -> int:
        whole = info.data.get("max_length")
        if whole is not None and longest >= whole - 1:
            raise ValueError(f"at most {whole - 2}: of data.max_length, {whole}, two tokens are left for the response")
        return longest

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


def _longest_prompt(max_length: int) -> int:
    """1,800 tokens of 2,048, as in the SimPO repository; as large a share of fewer, with room for two tokens of a response."""
    return max(1, min(1800, 1800 * max_length // 2048, max_length - 2))


def _module_names(value: Any) -> Any:
    if value == "all-linear":
        return value
    names = [name.strip() for name in value.split(",")] if isinstance(value, str) else value
    if not (isinstance(names, list) and names and all(isinstance(name, str) and name for name in names)):
        raise ValueError("allowed: all-linear, or names of layers such as q_proj,v_proj")
    return names


class AdapterConfig(Section):
    """LoRA: train low-rank matrices beside the linear layers of a frozen model. See `pobench.model.adapters`."""

    r: int = Field(16, ge=1, le=10**5)  # a common choice, none is published for these losses
    """The rank of the matrices."""
    alpha: int = Field(32, ge=1, le=10**6)
    """The matrices' product is scaled by alpha / r."""
    dropout: float = Field(0.0, ge=0, le=1)
    """Must be 0: the reference has no dropout."""
    target_modules: Annotated[str | list[str], BeforeValidator(_module_names)] = "all-linear"
    """The layers that get matrices: all-linear, or names such as q_proj,v_proj. Never the output head."""
    quantize: Literal["none", "nf4"] = "none"
    """Of the frozen weights. nf4: QLoRA, needs a GPU and bitsandbytes."""
    base_precision: Literal["fp32", "bf16"] = "fp32"
    """Of the frozen weights; trained weights are always fp32."""
    merge: bool = False
    """Whether the whole model with the adapter merged is stored, instead of the adapter alone."""

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


class LoopConfig(Section):
    """The training loop."""

    lr: Rate
    """The learning rate behind the warm-up."""
    epochs: int = Field(1, ge=1, le=1000)
    """How often each item is trained on."""
    batch_size: Count = 128
    """Items of an optimiser step, for any layout, number of devices and accumulation."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """How the learning rate falls behind the warm-up."""
    warmup_ratio: float = Field(0.1, ge=0, lt=1)
    """The share of the steps in which the learning rate rises from 0."""
    weight_decay: float = Field(0.0, ge=0, le=100)
    """AdamW's, on matrices."""
    max_grad_norm: float = Field(1.0, gt=0, allow_inf_nan=True)
    """A gradient of a larger norm is scaled down to it. .inf: no clipping."""
    adam_beta1: float = Field(0.9, ge=0, lt=1)
    """The decay of the mean gradient."""
    adam_beta2: float = Field(0.999, ge=0, lt=1)
    """The decay of the mean squared gradient."""
    adam_epsilon: float = Field(1e-8, gt=0, le=1)
    """Added to the root of the mean squared gradient."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """Of the arithmetic; trained weights are always fp32."""
    layout: Literal["auto", "shared_prefix", "padded"] = "auto"
    """How items lie in rows: answers of one prompt behind it once, and what all prompts of a row begin with once; or each
    sequence in a row of its own."""
    micro_tokens: Annotated[Count | Literal["auto"], BeforeValidator(_tokens_or_auto)] = MICRO_TOKENS
    """Tokens of a micro-batch, padding included. Passes without gradient take four times as many if that is at most 2048, and
    never fewer. auto: measured by a memory probe."""
    head_tile: Count | None = None
    """Vocabulary entries per tile of the output head. null: by device."""
    gradient_checkpointing: Annotated[bool | Literal["auto"], BeforeValidator(_switch_or_auto)] = False
    """Whether activations are computed again in the backward pass. auto: only if one pair does not fit into memory
    otherwise."""
    compile: bool = False
    """Whether torch.compile compiles every layer; it takes minutes, so for long runs on a GPU."""
    sharding: Annotated[Literal["auto", "none", "fsdp2"], RUNTIME] = "auto"
    """fsdp2: the processes of a job hold a share each of weights, gradients and moments. none: a copy each. auto: shares where
    the estimate of a copy does not fit a device."""
    checkpoint_seconds: Annotated[float, RUNTIME] = Field(60.0, ge=0, allow_inf_nan=True)
    """Seconds between two checkpoints, at least. 0: one after every step. .inf: none."""
    checkpoint_share: Annotated[float, RUNTIME] = Field(0.05, gt=0, le=1)
    """The share of the time that saving takes, at most."""
    keep_checkpoints: Annotated[int, RUNTIME] = Field(2, ge=1, le=1000)
    """The newest checkpoints that are kept, so that a damaged one costs only the steps since the one before; 1 where weights
    are split over devices."""
    grace_seconds: Annotated[float, RUNTIME] = Field(30.0, ge=0, le=10**6)
    """Seconds between the signal to leave and the end, where the scheduler's own time is not known. A checkpoint that takes
    longer is not begun."""
    checkpoint_async: Annotated[bool | Literal["auto"], BeforeValidator(_switch_or_auto), RUNTIME] = "auto"
    """true: steps go on while a checkpoint is written, from a copy in the processor's memory. auto: on GPUs, where there is
    room."""


class TrainConfig(LoopConfig):
    """Training on pairs: `batch_size` counts pairs; or as many lists, or twice as many single answers."""

    read_by: ClassVar[str] = "the stages `reference` and `train`; a loss may have values of its own, in `losses`"

    adapter: AdapterConfig | None = None
    """LoRA. null: every weight is trained."""
    reference: Literal["cached", "every_step"] = "cached"
    """Where a loss's reference sums come from. cached: one pass of the start model over the pairs, stored and shared by losses
    and seeds. every_step: a frozen start model beside the policy computes the same sums in every step, as the paper ran it; for
    measuring what a reference costs, and always where a loss compares whole distributions."""
    value_learning_rate: Rate | None = None
    """Of the value model that a loss such as DRO trains beside the policy; it falls as `lr` does. null: `lr`."""
    trackers: Annotated[list[Tracker], RUNTIME] = []
    """Those of Accelerate, each by the name of its package; they see steps and settings, no judge and no key."""
    evaluate_every: Annotated[int, RUNTIME] = Field(0, ge=0, le=10**9)
    """Steps between measurements on the held-out pairs. 0: none."""

    def causes(self) -> dict[str, Any]:
        """`reference` is a cause only as `every_step`: a batch's micro-batches may then have other widths than the stored pass
        had, which changes last bits of its sums. Such a run has a name, time and memory of its own; runs with stored sums
        keep the names that they had before there was a choice. So do runs without a value model's own rate."""
        unused = (("reference", "cached"), ("value_learning_rate", None))
        return {k: v for k, v in super().causes().items() if (k, v) not in unused}


class SftConfig(LoopConfig):
    """Supervised fine-tuning, which makes the start model from a base model. All weights are trained."""

    read_by: ClassVar[str] = "the stage `sft`"

    source: str
    """Conversations (`messages`, or `prompt` and `response`): a local file, a hub name, or `builtin:FILE`."""
    subset: str | None = None
    """The configuration of a hub data set."""
    split: str | None = None
    """Of a hub data set."""
    revision: str | None = None
    """Of a hub data set: the branch, tag or commit. null: its main branch."""
    max_conversations: Count | None = None
    """Conversations at most. null: all."""
    max_length: int = Field(2048, ge=2, le=10**9)
    """Tokens of a conversation, at most; later turns are left out."""
    on_bad_row: Literal["stop", "drop"] = "stop"
    """Whether a row that cannot be read stops the command, or is left out and counted."""
    packing: bool = False
    """true: `batch_size` counts rows of `max_length` tokens, each filled with whole conversations. false: conversations."""
    shuffle: bool = True
    """false: the file's order is kept, for a curriculum."""
    seed: Seed = 42
    """Of the order and of the subset."""


class AnswersConfig(Section):
    """The prompts to answer after training, and the decoding."""

    read_by: ClassVar[str] = "the stage `answers`"

    source: str | None = None
    """A file or data set of prompts. null: no answers."""
    subset: str | None = None
    """The configuration of a hub data set."""
    split: str | None = None
    """Of a hub data set."""
    max_prompts: Count | None = None
    """Prompts at most. null: all."""
    max_new_tokens: Count = 512
    """Tokens of an answer, at most."""
    temperature: float = Field(0.0, ge=0, le=100)
    """Of the draws. 0: greedy."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Draws are among the likeliest tokens that have this probability together."""
    samples: int = Field(1, ge=1, le=10_000)
    """Answers to each prompt."""
    seed: Seed | None = None
    """Of the draws. null: the run's own seed, the same for all losses of that seed; 0 for the start model."""
    batch_size: Annotated[Count, RUNTIME] = ANSWERED_TOGETHER
    """Prompts that are answered together."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """Of the arithmetic."""
    engine: Literal["auto", "transformers", "vllm"] = "auto"
    """auto: vLLM if it is installed and there is a GPU; its answers may differ from transformers', even greedy ones."""
    vllm_memory_share: Annotated[float, RUNTIME] = Field(0.9, gt=0, le=1)
    """The share of a GPU's whole memory that vLLM takes for weights and cache."""

    def causes(self) -> dict[str, Any]:
        """Without the seed and the nucleus where decoding is greedy: nothing is drawn, so they decide nothing."""
        return {k: v for k, v in super().causes().items() if self.temperature > 0 or k not in OF_DRAWS}


class JudgeConfig(Section):
    """The judge of the answers."""

    read_by: ClassVar[str] = "the stage `judge`"

    name: str | None = None
    """One of `pobench list judges`. null: answers are stored without verdicts."""
    settings: dict[str, Any] = {}
    """Those of the judge, which `pobench list judges NAME` names."""


class TuneConfig(Section):
    """How `pobench tune` chooses values: the metric, and a split that is neither trained on nor reported."""

    read_by: ClassVar[str] = "`pobench tune`; it names no run"

    metric: str = "pass_rate"
    """The metric by which the best trial is chosen."""
    prompts: str | None = None
    """Every trial answers these instead of `answers.source`."""
    prompts_split: str | None = None
    """Of a hub data set."""
    max_prompts: Count | None = None
    """Prompts at most. null: all."""
    pairs: str | None = None
    """Every trial holds these out instead of `data.held_out`, and does not train on them."""
    pairs_split: str | None = None
    """Of a hub data set."""
    max_pairs: Count | None = None
    """Pairs at most. null: all."""
    grid: str | None = None
    """A name in experiments/grids, or a YAML path."""
    trials: str | None = None
    """A CSV of trials made before (`trials.csv`); those of the same content are not made again."""


class TunedConfig(Section):
    """What `pobench tune` writes beside the values that it chose for a loss: how they were chosen."""

    read_by: ClassVar[str] = "the report; it decides no result"

    trials: Annotated[Count, RUNTIME]
    """How many were made for the loss, failed ones among them."""
    metric: Annotated[str, RUNTIME]
    """The objective of the search."""
    value: Annotated[float, RUNTIME]
    """What the best trial reached on the tuning split."""
    low: Annotated[float | None, RUNTIME] = None
    """The lower end of the 95 % interval of `value`."""
    high: Annotated[float | None, RUNTIME] = None
    """Its upper end."""
    n: Annotated[Count, RUNTIME]
    """What `value` is a mean of: prompts or pairs."""
    study: Annotated[str, RUNTIME]
    """The search, as the file of its trials names it."""


class RankerConfig(JudgeConfig):
    """The judge that ranks the answers of which pairs are made."""

    read_by: ClassVar[str] = "the stage `onpolicy`"

    name: str | None = None
    """One of `pobench list judges`. null: the setting's judge."""


class OnPolicyConfig(Section):
    """How the stage `onpolicy` makes pairs: it samples the start model's own answers and ranks them, or puts a human answer
    over each. Pairs of prompts that `answers.source` asks are held out."""

    read_by: ClassVar[str] = "the stage `onpolicy`, so with `--rounds` too; runs are named by the pairs that it makes"

    prompts: str | None = None
    """A file or data set of prompts. null: those of `data.source`."""
    prompts_split: str | None = None
    """Of a hub data set."""
    max_prompts: Count | None = None
    """Prompts at most. null: all."""
    pairs: Literal["ranked", "human_over_own"] = "ranked"
    """ranked: the ranker's best of the model's answers against the worst. human_over_own: a human answer against each of the
    model's answers, as in SPIN; no judge ranks."""
    human_answers: str | None = None
    """A file or data set with the human answers of `human_over_own`: the better answers of pairs, lists or labelled answers, or
    demonstrations. null: those of the section `data`."""
    human_answers_split: str | None = None
    """Of a hub data set."""
    samples: int = Field(5, ge=1, le=10_000)  # SimPO repository, on_policy_data_gen; also the next two
    """Answers to each prompt; two or more where they are ranked."""
    temperature: float = Field(0.8, gt=0, le=100)
    """Of the draws."""
    top_p: float = Field(0.95, gt=0, le=1)
    """Draws are among the likeliest tokens that have this probability together."""
    max_new_tokens: Count | None = None
    """Tokens of an answer, at most. null: as in `answers`."""
    seed: Seed = 0
    """With the prompt and the answer's number, it decides the answer's random numbers."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """Of the arithmetic."""
    ranker: RankerConfig = RankerConfig()
    """What ranks the answers."""
    held_out_fraction: float = Field(0.1, ge=0, lt=1)
    """The share of prompts that are held out, those of `answers.source` among them. 0: none but these."""

    @field_validator("samples")
    @classmethod
    def _enough_to_rank(cls, samples: int, info: ValidationInfo) -> int:
        if samples < 2 and info.data.get("pairs") == "ranked":
            raise ValueError("two answers or more are ranked; one is enough for onpolicy.pairs=human_over_own")
        return samples


class RoundsConfig(Section):
    """How `--rounds N` trains: each round answers, ranks and trains from the last round's model. It names no run by itself."""

    read_by: ClassVar[str] = "`pobench run --rounds N`"

    # as in SPPO (arXiv 2405.00675) and REBEL (arXiv 2404.16767); start: as in RLHFlow's iterative DPO (arXiv 2405.07863)
    reference: Literal["last", "start"] = "last"
    """What losses with a reference compare with after round 1: the model of the round before, or the start model."""
    # a third of UltraFeedback in each of three rounds: SPPO, Snorkel-Mistral-PairRM-DPO
    prompts: Literal["split", "all"] = "split"
    """split: round r of N asks every Nth prompt, from the r-th on. all: every round asks all of them."""


class Setting(Section):
    """One YAML of experiments/settings."""

    read_by: ClassVar[str] = "every command that takes `--setting`"

    name: Annotated[str, RUNTIME]
    """The folder of its runs below `runs/`. Where a file does not say it: the file's name."""
    description: Annotated[str, RUNTIME] = ""
    """One line for `pobench list settings`."""
    seeds: list[Seed] = Field([42], min_length=1)
    """One run of each loss for each. `--seeds` replaces them."""
    model: ModelConfig
    """The start model."""
    data: DataConfig
    """The pairs."""
    train: TrainConfig
    """The training loop."""
    answers: AnswersConfig = AnswersConfig()
    """Prompts and decoding."""
    judge: JudgeConfig = JudgeConfig()
    """The judge of the answers."""
    tune: TuneConfig = TuneConfig()
    """How values are chosen."""
    onpolicy: OnPolicyConfig = OnPolicyConfig()
    """How pairs are made from the start model's answers."""
    rounds: RoundsConfig = RoundsConfig()
    """How rounds follow each other."""
    sft: SftConfig | None = None
    """Supervised fine-tuning of `model`, which is then a base model. null: `model` is a finished start model."""
    losses: dict[str, dict[str, Any]] = {}
    """Name of a loss → its own settings, its own values of `train` (lr, …), and where they come from (`values`, `tuned`)."""
    benchmarks: dict[str, dict[str, Any]] = {}
    """Name of a benchmark → its settings; docs/benchmarks.md lists them."""


SECTIONS: dict[str, type[Section]] = {
    "model": ModelConfig,
    "data": DataConfig,
    "train": TrainConfig,
    "answers": AnswersConfig,
    "judge": JudgeConfig,
    "sft": SftConfig,
}
# Sections that do not name a run; the command or the stage of the same name reads them.
COMMANDS: dict[str, type[Section]] = {"tune": TuneConfig, "onpolicy": OnPolicyConfig, "rounds": RoundsConfig}
