"""The settings schema: one YAML file says what is trained on what, and how; `--set KEY=VALUE` changes it.

Strict: an unknown key, a wrong type or a value out of range is a fault, and all faults are listed together.
A value's source is the comment behind it in the YAML; it travels with the value into every run's `config.yaml`.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

MICRO_TOKENS = 2048  # of a micro-batch, where a setting does not say, and of evaluation where it says `auto`


class _Runtime:
    """Marks a field that says how a job runs, not what it computes: no cause of a result."""


RUNTIME = _Runtime()


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    def causes(self) -> dict[str, Any]:
        """Every value that decides a result, as plain data. (The layout and the micro-batch change results only below
        rounding, but they do change the bits, so they count.)"""
        runtime = {name for name, field in type(self).model_fields.items() if RUNTIME in field.metadata}
        return self.model_dump(mode="json", exclude=runtime)


_RENDERING = ("messages", "add_generation_prompt", "chat_template", "tokenize", "bos_token", "eos_token")


def _plain_arguments(value: dict[str, Any]) -> dict[str, Any]:
    wrong = [name for name in value if not name.isidentifier() or name in _RENDERING]
    if wrong:
        raise ValueError(
            f"allowed: names that the chat template reads, such as enable_thinking; {wrong[0]!r} is "
            + ("what rendering itself sets" if wrong[0] in _RENDERING else "no name")
        )
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError):
        raise ValueError("allowed: plain values (text, numbers, true, false, null, lists and maps of them)") from None
    return value


class ModelConfig(_Strict):
    """The start model."""

    source: str  # local path, hub name, `builtin:NAME`, or `package:NAME==VERSION/FILE`
    revision: str | None = None
    sha256: str | None = None  # of the package, when the source is one
    trust_remote_code: bool = False
    # flex: training by FlexAttention, on a GPU; auto: that where it proves itself, else sdpa, or eager for capped scores
    attention: Literal["auto", "flex", "sdpa", "eager"] = "auto"
    chat_template: str | None = None  # a Jinja file, or the name of a shipped one; None: the tokenizer's own
    system_message: str | None = None  # put before every conversation that has none; "": one without words
    # of the chat template, wherever it renders: {enable_thinking: false}
    template_arguments: Annotated[dict[str, Any], AfterValidator(_plain_arguments)] = {}
    note: Annotated[str, RUNTIME] = ""  # what a reader of the report must know about these weights


class DataConfig(_Strict):
    """Preference pairs, and how they become tokens."""

    source: str  # local file, hub name, or `builtin:FILE`
    split: str | None = None
    revision: str | None = None
    held_out: str | None = None  # a source of held-out pairs; None: a part of `source`, split by prompt
    held_out_split: str | None = None
    held_out_fraction: float = Field(0.1, gt=0, lt=1)  # used where held_out and held_out_split are None
    max_pairs: int | None = Field(None, ge=1)
    max_held_out: int | None = Field(None, ge=1)
    max_length: int = Field(2048, ge=2)  # tokens, prompt + response
    max_prompt_length: int = Field(1800, ge=1)  # tokens
    truncation: Literal["drop", "cut"] = "drop"
    on_bad_row: Literal["stop", "drop"] = "stop"
    count_header: bool = False  # count the assistant header into |y|, as the SimPO repository does
    length_bias: float = Field(0.0, ge=0, le=1)  # share of labels replaced by "the longer answer wins"
    seed: int = 0  # of the split, the subset and the bias


def _module_names(value: Any) -> Any:
    if value == "all-linear":
        return value
    names = [name.strip() for name in value.split(",")] if isinstance(value, str) else value
    if not (isinstance(names, list) and names and all(isinstance(name, str) and name for name in names)):
        raise ValueError("allowed: all-linear, or names of layers such as q_proj,v_proj")
    return names


class AdapterConfig(_Strict):
    """LoRA: the model stays frozen; low-rank matrices beside its linear layers are trained. See `pobench.model.adapters`."""

    r: int = Field(16, ge=1)  # rank; a common choice, none is published for these losses
    alpha: int = Field(32, ge=1)  # the matrices' product is scaled by alpha / r
    dropout: float = 0.0
    target_modules: Annotated[str | list[str], BeforeValidator(_module_names)] = "all-linear"  # the head never
    quantize: Literal["none", "nf4"] = "none"  # of the frozen weights; nf4 is QLoRA, on a GPU, by bitsandbytes
    base_precision: Literal["fp32", "bf16"] = "fp32"  # of the frozen weights; trained ones are fp32 always
    merge: bool = False  # store the whole model with the adapter worked in, not the adapter alone

    @field_validator("dropout")
    @classmethod
    def _no_dropout(cls, value: float) -> float:
        if value != 0:
            raise ValueError(
                "allowed: 0. The reference has no dropout, and a policy with it would differ from the start"
            )
        return value

    @model_validator(mode="after")
    def _mergeable(self) -> AdapterConfig:
        if self.merge and (self.quantize != "none" or self.base_precision != "fp32"):
            raise ValueError(
                "merge: true needs base_precision fp32 and quantize none: narrower weights would round it away"
            )
        return self


def _tokens_or_auto(value: Any) -> Any:
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if value != "auto" and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
        raise ValueError("allowed: a whole number of tokens, at least 1, or auto")
    return value


def _switch_or_auto(value: Any) -> Any:
    if value != "auto" and not isinstance(value, bool):
        raise ValueError("allowed: true, false, auto")
    return value


class LoopConfig(_Strict):
    """The loop. `batch_size` counts items per optimiser step, whatever the layout, devices and accumulation."""

    lr: float = Field(gt=0)
    epochs: int = Field(1, ge=1)
    batch_size: int = Field(128, ge=1)
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup_ratio: float = Field(0.1, ge=0, lt=1)
    weight_decay: float = Field(0.0, ge=0)
    max_grad_norm: float = Field(1.0, gt=0)
    adam_beta1: float = Field(0.9, ge=0, lt=1)
    adam_beta2: float = Field(0.999, ge=0, lt=1)
    adam_epsilon: float = Field(1e-8, gt=0)
    precision: Literal["auto", "bf16", "fp32"] = "auto"  # of the arithmetic; trained weights are fp32 always
    layout: Literal["auto", "shared_prefix", "padded"] = "auto"
    # tokens of a micro-batch, pads included; auto: by a probe of the memory
    micro_tokens: Annotated[int | Literal["auto"], BeforeValidator(_tokens_or_auto)] = MICRO_TOKENS
    head_tile: int | None = Field(None, ge=1)  # vocabulary entries per tile of the output head; None: by device
    # auto: only where one pair does not fit without it
    gradient_checkpointing: Annotated[bool | Literal["auto"], BeforeValidator(_switch_or_auto)] = False
    compile: bool = False  # torch.compile of every layer: for a GPU, and a run long enough to win the minutes back
    checkpoint_seconds: Annotated[float, RUNTIME] = Field(60.0, ge=0)


class TrainConfig(LoopConfig):
    """Training on pairs: `batch_size` counts them."""

    adapter: AdapterConfig | None = None  # None: every weight is trained
    trackers: Annotated[list[Literal["tensorboard", "wandb", "trackio"]], RUNTIME] = []
    evaluate_every: Annotated[int, RUNTIME] = Field(
        0, ge=0
    )  # steps between measurements on the held-out pairs; 0: none


class SftConfig(LoopConfig):
    """The stage that makes the start model from a base model, by demonstrations. Every weight is trained."""

    source: str  # conversations (`messages`, or `prompt` and `response`): local file, hub name, or `builtin:FILE`
    split: str | None = None
    revision: str | None = None
    max_conversations: int | None = Field(None, ge=1)
    max_length: int = Field(2048, ge=2)  # tokens of a conversation; turns beyond it are left out
    on_bad_row: Literal["stop", "drop"] = "stop"
    # batch_size counts rows of max_length tokens, each filled with whole conversations; false: it counts conversations
    packing: bool = False
    shuffle: bool = True  # false: the order of the rows, for a curriculum
    seed: int = 42  # of the order and of the subset


class AnswersConfig(_Strict):
    """Prompts answered after training, and the decoding."""

    source: str | None = None  # None: no answers
    split: str | None = None
    max_prompts: int | None = Field(None, ge=1)
    max_new_tokens: int = Field(512, ge=1)
    temperature: float = Field(0.0, ge=0)  # 0: greedy
    top_p: float = Field(1.0, gt=0, le=1)
    samples: int = Field(1, ge=1)
    seed: int = 0
    batch_size: Annotated[int, RUNTIME] = Field(64, ge=1)
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    # auto: vLLM on a GPU where it is installed; it does not promise the answers of transformers, not even greedy ones
    engine: Literal["auto", "transformers", "vllm"] = "auto"


class JudgeConfig(_Strict):
    """Who scores the answers."""

    name: str | None = None  # None: answers are stored unjudged
    settings: dict[str, Any] = {}


class TuneConfig(_Strict):
    """How `pobench tune` chooses values: by which metric, on a split that is neither trained on nor reported."""

    metric: str = "pass_rate"
    prompts: str | None = None  # answered by every trial in place of `answers.source`
    prompts_split: str | None = None
    max_prompts: int | None = Field(None, ge=1)
    pairs: str | None = None  # held out by every trial in place of `data.held_out`, and left out of its training
    pairs_split: str | None = None
    max_pairs: int | None = Field(None, ge=1)
    grid: str | None = None  # a name in experiments/grids, or a YAML path


class OnPolicyConfig(_Strict):
    """How `pobench data onpolicy` samples the start model's own answers and ranks them."""

    prompts: str | None = None  # None: those of `data.source`
    prompts_split: str | None = None
    samples: int = Field(5, ge=2)  # SimPO repository, on_policy_data_gen, as are the next two
    temperature: float = Field(0.8, gt=0)
    top_p: float = Field(0.95, gt=0, le=1)
    max_new_tokens: int | None = Field(None, ge=1)  # None: as in `answers`
    seed: int = 0  # an answer's random numbers follow from it, the answer's place among its prompt's, and the prompt
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    ranker: JudgeConfig = JudgeConfig()  # no name: the setting's judge
    held_out_fraction: float = Field(0.1, ge=0, lt=1)  # of the prompts; 0: no held-out file


class Setting(_Strict):
    """One YAML of experiments/settings."""

    name: str
    description: str = ""
    seeds: list[int] = Field([42], min_length=1)
    model: ModelConfig
    data: DataConfig
    train: TrainConfig
    answers: AnswersConfig = AnswersConfig()
    judge: JudgeConfig = JudgeConfig()
    tune: TuneConfig = TuneConfig()
    onpolicy: OnPolicyConfig = OnPolicyConfig()
    sft: SftConfig | None = (
        None  # None: `model` names a finished start model; else it names the base model of this stage
    )
    losses: dict[str, dict[str, Any]] = {}  # loss name -> its settings, and train fields of its own (lr, …)
    benchmarks: dict[str, dict[str, Any]] = {}  # benchmark name -> its settings, see `pobench.judging.benchmarks.base`


SECTIONS: dict[str, type[_Strict]] = {
    "model": ModelConfig,
    "data": DataConfig,
    "train": TrainConfig,
    "answers": AnswersConfig,
    "judge": JudgeConfig,
    "sft": SftConfig,
}
# Sections of a setting that decide no run: what the commands named like them read.
COMMANDS: dict[str, type[_Strict]] = {"tune": TuneConfig, "onpolicy": OnPolicyConfig}
