"""The settings schema: one YAML file says what is trained on what, and how; `--set KEY=VALUE` changes it.

Strict: an unknown key, a wrong type or a value out of range is a fault, and all faults are listed together.
A value's source is the comment behind it in the YAML; it travels with the value into every run's `config.yaml`.
"""

from __future__ import annotations

import hashlib
import importlib.resources
import json
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
import torch
import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from pobench.registry import Loss, NamedFunction, PobenchError, benchmarks, get_loss, judges, losses, nearest
from pobench.types import Pair, SequenceLogps

PROTOCOL = 1  # raised when stored results of two versions may no longer be compared
MICRO_TOKENS = 2048  # of a micro-batch, where a setting does not say, and of evaluation where it says `auto`


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


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
    note: str = ""  # what a reader of the report must know about these weights


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
    """LoRA: the model stays frozen; low-rank matrices beside its linear layers are trained. See `pobench.adapters`."""

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
    checkpoint_seconds: float = Field(60.0, ge=0)


class TrainConfig(LoopConfig):
    """Training on pairs: `batch_size` counts them."""

    adapter: AdapterConfig | None = None  # None: every weight is trained
    trackers: list[Literal["tensorboard", "wandb", "trackio"]] = []
    evaluate_every: int = Field(0, ge=0)  # steps between measurements on the held-out pairs; 0: none


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
    batch_size: int = Field(64, ge=1)
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
    benchmarks: dict[str, dict[str, Any]] = {}  # benchmark name -> its settings, see `pobench.judging.benchmark`


# How a job runs, not what it computes: no part of its identity. (The layout and the micro-batch change results only
# below rounding, but they do change the bits, so they count.)
RUNTIME = {
    ("sft", "checkpoint_seconds"),
    ("train", "checkpoint_seconds"),
    ("train", "trackers"),
    ("train", "evaluate_every"),
    ("model", "note"),
    ("answers", "batch_size"),
}
# Absent from the identity while they are this: runs that were stored before these existed keep their folders.
LATER: dict[tuple[str, str], Any] = {
    ("model", "system_message"): None,
    ("train", "adapter"): None,
    ("train", "compile"): False,
    ("sft", "compile"): False,
    ("answers", "engine"): "auto",
}


@dataclass(frozen=True)
class Job:
    """One training run, fully resolved: nothing below this line reads a setting or a default."""

    setting: str
    loss: str
    seed: int
    loss_settings: Mapping[str, Any]
    model: ModelConfig
    data: DataConfig
    train: TrainConfig
    answers: AnswersConfig
    judge: JudgeConfig
    origin: Mapping[str, str] = field(
        default_factory=dict
    )  # key -> where its value comes from; defaults are not listed
    sft: SftConfig | None = None
    benchmarks: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # layered on the run: no part of `values`

    def values(self) -> dict[str, Any]:
        """Every value, nested, as `config.yaml` stores it."""
        sections = {s: getattr(self, s).model_dump(mode="json") for s in ("model", "data", "train", "answers", "judge")}
        if self.sft is not None:  # absent otherwise: a setting without the stage keeps the folders of its runs
            sections["sft"] = self.sft.model_dump(mode="json")
        return {
            "setting": self.setting,
            "loss": self.loss,
            "seed": self.seed,
            "loss_settings": dict(self.loss_settings),
            **sections,
        }

    def value(self, key: str) -> Any:
        """What `key` ("train.lr", "simpo.beta") has come to; None where there is no such value."""
        section, _, name = key.rpartition(".")
        return getattr(getattr(self, section), name, None) if section in SECTIONS else self.loss_settings.get(name)

    @property
    def digest(self) -> str:
        """8 hex of the resolved configuration: the same job has the same folder."""
        return digest({**self.values(), "protocol": PROTOCOL})

    @property
    def run(self) -> str:
        """`<setting>/<loss>-<digest>`."""
        return f"{self.setting}/{self.loss}-{self.digest}"

    @property
    def start_run(self) -> str:
        """The run id of the start model on the same evaluation: training has no part in its identity."""
        values = self.values()
        for key in ("loss", "loss_settings", "seed"):
            values.pop(key)
        values["train"] = {"precision": self.train.precision}
        values["data"]["length_bias"] = 0.0  # of training labels alone; held-out labels stay as they are
        return f"{self.setting}/start-{digest({**values, 'protocol': PROTOCOL})}"


def digest(values: Mapping[str, Any]) -> str:
    """8 hex of sha256 over the values that decide a result."""
    kept = {
        k: (
            {f: x for f, x in v.items() if (k, f) not in RUNTIME and not ((k, f) in LATER and x == LATER[k, f])}
            if isinstance(v, dict)
            else v
        )
        for k, v in values.items()
    }
    if (kept.get("judge") or {}).get("settings"):
        kept["judge"] = {**kept["judge"], "settings": _deciding(**kept["judge"])}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:8]


def _deciding(name: str | None, settings: Mapping[str, Any]) -> dict[str, Any]:
    """A judge's settings without those that change no verdict."""
    try:
        runtime = judges.get(name or "").runtime
    except PobenchError:  # a plug-in that is not loaded now
        runtime = frozenset()
    return {k: v for k, v in settings.items() if k not in runtime}


# ---------------------------------------------------------------- reading


def setting_folder() -> Path:
    """Where the shipped settings stand."""
    return Path(str(importlib.resources.files("pobench.experiments"))) / "settings"


def list_settings() -> list[str]:
    """Names of the shipped settings, sorted."""
    return sorted(p.stem for p in setting_folder().glob("*.yaml"))


def read_setting(name: str) -> tuple[dict[str, Any], dict[str, str]]:
    """The raw values of a setting (a shipped name or a YAML path), and key → the comment behind its value.

    Raises PobenchError for an unknown name, naming the nearest, or for YAML that does not parse.
    """
    path = Path(name)
    if path.suffix not in (".yaml", ".yml"):
        path = setting_folder() / f"{name}.yaml"
        if not path.is_file():
            known = list_settings()
            raise PobenchError(
                f"unknown setting {name!r}{nearest(name, known)} Known: {', '.join(known)}; or a path to a YAML file"
            )
    if not path.is_file():
        raise PobenchError(f"--setting: no file {str(path)!r}")
    try:
        text = path.read_text(encoding="utf-8")
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        values = yaml.safe_load(text)
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        raise PobenchError(f"--setting: {str(path)!r} cannot be read: {error}") from None
    if not isinstance(values, dict) or node is None:
        raise PobenchError(f"--setting: {str(path)!r} holds no mapping of sections")
    values.setdefault("name", path.stem)
    comments = _comments(node, text.splitlines())
    if "extends" not in values:
        return values, comments
    base = str(values.pop("extends"))
    if Path(base).suffix in (".yaml", ".yml"):
        base = str(path.parent / base)
    return _extended(*read_setting(base), values, comments)


def _extended(
    base: dict[str, Any], base_comments: dict[str, str], values: dict[str, Any], comments: dict[str, str]
) -> tuple[dict[str, Any], dict[str, str]]:
    """`base` with `values` in place of its own, key by key in sections and losses."""
    merged = dict(base)
    replaced = set()
    for section, mine in values.items():
        theirs = merged.get(section)
        if section == "losses" and isinstance(mine, dict):
            kept = dict(theirs or {})
            for name, given in mine.items():
                other_names = _other_names(name, given or {})
                kept[name] = {k: v for k, v in (kept.get(name) or {}).items() if k not in other_names} | (given or {})
                replaced |= {f"losses.{name}.{key}" for key in (*(given or {}), *other_names)}
            merged[section] = kept
        elif isinstance(mine, dict) and isinstance(theirs, dict):
            dropped = _of_another_judge(theirs, mine) if section == "judge" else set()
            merged[section] = {k: v for k, v in theirs.items() if k not in dropped} | mine
            replaced |= {f"{section}.{key}" for key in (*mine, *dropped)}
        else:
            merged[section] = mine
            replaced.add(section)
    return merged, {k: v for k, v in base_comments.items() if k not in replaced} | comments


def _other_names(loss: str, given: Mapping[str, Any]) -> set[str]:
    """The other names of the numbers that are given (gamma, gamma_beta_ratio)."""
    try:
        groups = get_loss(loss).alternatives
    except PobenchError:  # `resolve` says it
        return set()
    return {name for group in groups for name in group if name not in given and any(g in given for g in group)}


def _of_another_judge(theirs: Mapping[str, Any], mine: Mapping[str, Any]) -> set[str]:
    """Keys of a judge section that mean nothing to the judge that `mine` names in place of theirs."""
    same = "name" not in mine or judges.canonical(mine["name"]) == judges.canonical(theirs.get("name"))
    return set() if same else {"settings"}


def _comments(node: yaml.Node, lines: list[str], prefix: str = "") -> dict[str, str]:
    found: dict[str, str] = {}
    if not isinstance(node, yaml.MappingNode):
        return found
    for key, value in node.value:
        path = f"{prefix}{key.value}"
        if isinstance(value, yaml.MappingNode) and not value.flow_style:
            found |= _comments(value, lines, f"{path}.")
            continue
        rest = lines[value.end_mark.line][value.end_mark.column :] if value.end_mark.line < len(lines) else ""
        comment = rest.partition("#")[2].strip()
        if comment:
            found[path] = comment
            if isinstance(value, yaml.MappingNode):
                found |= {f"{path}.{k.value}": comment for k, _ in value.value}
    return found


def parse_overrides(pairs: Sequence[str]) -> dict[str, Any]:
    """`["train.lr=5e-6", …]` → {"train.lr": 5e-06, …}. Raises PobenchError naming every one that is no KEY=VALUE."""
    return _parsed(pairs, "--set", "SECTION.KEY=VALUE, such as train.lr=5e-6 or simpo.beta=2.5", dotted=True)


def parse_settings(pairs: Sequence[str], option: str) -> dict[str, Any]:
    """`["model=NAME", …]`, of a judge, as `option` gives them → {"model": "NAME", …}. Raises as `parse_overrides`."""
    return _parsed(pairs, option, "KEY=VALUE, such as model=NAME", dotted=False)


def _parsed(pairs: Sequence[str], option: str, expected: str, *, dotted: bool) -> dict[str, Any]:
    found: dict[str, Any] = {}
    faults = []
    for text in pairs:
        key, equals, value = text.partition("=")
        if not equals or not key.strip() or (dotted and "." not in key):
            faults.append(f"{option} {text!r}: expected {expected}")
            continue
        found[key.strip()] = _scalar(value)
    if faults:
        raise PobenchError("\n".join(faults))
    return found


def _scalar(text: str) -> Any:
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        return text
    if isinstance(value, str):  # YAML 1.1 reads 5e-6 as text
        try:
            return float(value)
        except ValueError:
            return value
    return value


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


def resolve_names(names: str | Iterable[str]) -> tuple[list[str], list[str]]:
    """`"simpo, r-dpo"`, `"paper"` or `"all"` → (registered names in order, a fault for every unknown one)."""
    asked = [n.strip() for n in names.split(",")] if isinstance(names, str) else list(names)
    resolved: list[str] = []
    faults = []
    for name in asked:
        if name == "all":
            resolved += losses.names()
        elif name == "paper":
            resolved += [n for n in losses.names() if losses.get(n).in_paper]
        elif name:
            try:
                resolved.append(get_loss(name).name)
            except PobenchError as error:
                faults.append(str(error))
    if not resolved and not faults:
        faults.append("--losses: name at least one loss, or `paper`, or `all`")
    return list(dict.fromkeys(resolved)), faults


def resolve(
    setting: str,
    loss_names: str | Iterable[str],
    *,
    seeds: Sequence[int] | None = None,
    overrides: Mapping[str, Any] | None = None,
    data: str | None = None,
    model: str | None = None,
    benchmark_names: str | None = None,
) -> list[Job]:
    """Jobs for every loss × seed. benchmark_names: comma-separated, in place of those that the setting names; "none".

    Raises PobenchError that lists every fault of names, keys and values together.
    """
    names, faults = resolve_names(loss_names)
    values: dict[str, Any] = {}
    comments: dict[str, str] = {}
    try:
        values, comments = read_setting(setting)
    except PobenchError as error:
        faults.append(str(error))
    origin = {key: f"{setting}: {comment}" for key, comment in comments.items()}
    values = json.loads(json.dumps(values))  # a deep copy, and proof that it is plain data

    def put(section: str, key: str, value: Any, where: str) -> None:
        values.setdefault(section, {})[key] = value
        origin[f"{section}.{key}"] = where

    if model is not None:
        values["model"] = {"source": model}
        values.pop("sft", None)  # what is named is a finished start model
        origin["model.source"] = "--model"
    if data is not None:
        kept = {
            k: v
            for k, v in values.get("data", {}).items()
            if k not in ("split", "revision", "held_out", "held_out_split")
        }
        values["data"] = {**kept, "source": data}
        origin["data.source"] = "--data"

    per_loss: dict[str, dict[str, Any]] = {}
    given_losses = values.get("losses") or {}
    if isinstance(given_losses, dict):
        for name, given in given_losses.items():
            try:
                registered = get_loss(name).name
            except PobenchError as error:
                faults.append(f"losses.{name}: {error}")
                continue
            per_loss[registered] = dict(given or {})
            for key in given or {}:
                origin.setdefault(
                    f"{registered}.{key}",
                    comments.get(f"losses.{name}.{key}", "") and f"{setting}: {comments[f'losses.{name}.{key}']}",
                )
    values["losses"] = per_loss

    judge = values.get("judge")
    judge = judge if isinstance(judge, dict) else {}  # what it is instead, `Setting` says
    for key in _of_another_judge(judge, _below("judge", overrides or {})):
        judge.pop(key, None)
        origin = {k: v for k, v in origin.items() if not k.startswith(f"judge.{key}")}

    sections = {**SECTIONS, **COMMANDS}
    forced: dict[str, Any] = {}  # train fields from the command line outrank a loss's own
    for key, value in (overrides or {}).items():
        section, _, rest = key.removeprefix("losses.").partition(".")
        if section == "benchmarks":
            _put_inside(values, key.split("."), value)
        elif section in sections:
            fields = sections[section].model_fields
            if rest.partition(".")[0] not in fields:
                faults.append(
                    f"--set {key}: {section} has no {rest!r}{nearest(rest, fields)} Known: {', '.join(fields)}"
                )
            elif "." in rest:
                outer, inner = rest.split(".", 1)
                inside = values.setdefault(section, {}).get(outer)
                values[section][outer] = {**(inside if isinstance(inside, dict) else {}), inner: value}
                origin[key] = "--set"
            else:
                put(section, rest, value, "--set")
                if section == "train":
                    forced[rest] = value
        else:
            try:
                loss = get_loss(section)
            except PobenchError:
                known = [*sections, "benchmarks", *losses.names()]
                faults.append(f"--set {key}: {section!r} is neither a section nor a loss{nearest(section, known)}")
                continue
            mine = per_loss.setdefault(loss.name, {})
            for group in loss.alternatives:  # of two names of one number (gamma, gamma_beta_ratio) the YAML's gives way
                for other in group if rest in group else ():
                    if origin.get(f"{loss.name}.{other}") != "--set":
                        mine.pop(other, None)
            mine[rest] = value
            origin[f"{loss.name}.{rest}"] = "--set"
            faults += _unknown_loss_key(f"--set {key}", loss, rest)

    parsed: Setting | None = None
    if values.get("name"):
        try:
            parsed = Setting.model_validate(values)
        except pydantic.ValidationError as error:
            faults += explain(error)
    chosen: dict[str, dict[str, Any]] = {}
    if parsed is not None:
        chosen, wrong = _benchmarks(parsed.benchmarks, benchmark_names)
        faults += wrong
    jobs: list[Job] = []
    for name in names:
        loss = get_loss(name)
        given = per_loss.get(name, {})
        mine = {k: v for k, v in given.items() if k in loss.settings}
        faults += [
            f
            for k in given
            for f in _unknown_loss_key(f"losses.{name}.{k}", loss, k)
            if f"--set {name}.{k}" not in " ".join(faults)
        ]
        checked = check_loss_settings(loss, mine)
        faults += checked
        if parsed is None or checked:
            continue
        own = {k: v for k, v in given.items() if k in TrainConfig.model_fields and k not in forced}
        train_values = {**parsed.train.model_dump(), **own, **forced}
        try:
            train = TrainConfig.model_validate(train_values)
        except pydantic.ValidationError as error:
            faults += explain(error, f"losses.{name}.")
            continue
        keep = {k: v for k, v in origin.items() if v and (k.partition(".")[0] in SECTIONS or k.startswith(f"{name}."))}
        keep |= {f"train.{k}": origin.get(f"{name}.{k}") or f"{setting}: of {name}" for k in own}
        settings = loss.canonical({**loss.settings, **mine})
        jobs += [
            Job(
                parsed.name,
                name,
                seed,
                settings,
                parsed.model,
                parsed.data,
                train,
                parsed.answers,
                parsed.judge,
                keep,
                parsed.sft,
                chosen,
            )
            for seed in (seeds or parsed.seeds)
        ]
    if parsed is not None and parsed.judge.name is not None:
        faults += judge_faults(parsed.judge.name, parsed.judge.settings)
    if faults:
        raise PobenchError("\n".join(dict.fromkeys(faults)))
    return jobs


def section_of(values: Mapping[str, Any], name: str, overrides: Mapping[str, Any]) -> dict[str, Any]:
    """The section `name`, one of `COMMANDS`, of a setting's raw values, with what `--set` says of it.

    Keys that the section does not have are left to `resolve`, which names them.
    """
    section = json.loads(json.dumps(values.get(name) or {}))
    for key, value in _below(name, overrides).items():
        if key.partition(".")[0] in COMMANDS[name].model_fields:
            _put_inside(section, key.split("."), value)
    return dict(section)


def _below(section: str, overrides: Mapping[str, Any]) -> dict[str, Any]:
    prefix = f"{section}."
    return {key.removeprefix(prefix): value for key, value in overrides.items() if key.startswith(prefix)}


def _put_inside(values: dict[str, Any], path: Sequence[str], value: Any) -> None:
    """values[path[0]][path[1]]… = value, with the mappings on the way."""
    *outer, last = path
    for key in outer:
        inside = values.get(key)
        values[key] = values = dict(inside) if isinstance(inside, dict) else {}
    values[last] = value


def _benchmarks(
    given: Mapping[str, Mapping[str, Any]], names: str | None
) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """Benchmark → every setting of it, for those that are given or, in their place, named; and the faults."""
    wanted = list(given) if names is None else [n.strip() for n in names.split(",") if n.strip() not in ("", "none")]
    chosen, faults = {}, []
    settings: dict[str, Mapping[str, Any]] = {}
    for name in dict.fromkeys([*given, *wanted]):
        try:
            settings[benchmarks.get(name).name] = given.get(name, settings.get(benchmarks.get(name).name, {}))
        except PobenchError as error:
            faults.append(f"{'benchmarks' if name in given else '--benchmarks'}: {error}")
    asked = {benchmarks.get(name).name for name in wanted} if not faults else set()
    for name, values in settings.items():
        kind = benchmarks.get(name).function
        try:
            parsed = kind(**values)
        except pydantic.ValidationError as error:
            faults += explain(error, f"benchmarks.{name}.", kind)
            continue
        if name in asked:
            chosen[name] = parsed.model_dump(mode="json")
    return chosen, faults


def _unknown_loss_key(where: str, loss: Loss, key: str) -> list[str]:
    if key in loss.settings or key in TrainConfig.model_fields:
        return []
    takes = ", ".join(loss.settings) or "no setting"
    close = nearest(key, [*loss.settings, *TrainConfig.model_fields])
    return [f"{where}: {loss.name} has no {key!r}{close} It takes {takes}, and fields of train"]


def check_loss_settings(loss: Loss, given: Mapping[str, Any]) -> list[str]:
    """Faults of a loss's settings: by the annotations of its signature, then by calling it on one harmless pair."""
    faults = _annotation_faults(loss, given, f"{loss.name}.")
    if faults:
        return faults
    zero, ten = torch.full((1,), -10.0), torch.full((1,), 10.0)
    pair = Pair(SequenceLogps(zero, ten), SequenceLogps(zero, ten))
    try:
        loss(*loss.asked(pair, pair, torch.zeros(())), **{**loss.settings, **given})
    except PobenchError as error:
        return [f"{loss.name}: {line}" if not line.startswith(loss.name) else line for line in str(error).splitlines()]
    except Exception as error:
        return [f"{loss.name} with {dict(given)}: {type(error).__name__}: {error}"]
    return []


def judge_faults(
    name: str, given: Mapping[str, Any], where: str = "judge.name", prefix: str = "judge.settings."
) -> list[str]:
    """Faults of a judge's name and settings: by the annotations of its factory, then by making it, which asks nobody.

    where, prefix: what the user gives the name and the settings by.
    """
    try:
        judge = judges.get(name)
    except PobenchError as error:
        return [f"{where}: {error}"]
    known = ", ".join(judge.settings) or "none"
    faults = [
        f"{prefix}{k}: {judge.name} has no such setting{nearest(k, judge.settings)} Known: {known}"
        for k in given
        if k not in judge.settings
    ] or _annotation_faults(judge, given, prefix)
    if not faults:
        try:
            judge(**given)
        except PobenchError as error:
            faults.append(str(error))
    return faults


def _annotation_faults(declared: Loss | NamedFunction, given: Mapping[str, Any], prefix: str) -> list[str]:
    """Of settings whose values are not what the signature's annotations allow."""
    try:
        hints = typing.get_type_hints(declared.function, include_extras=True)
    except Exception:  # a plug-in's annotation may name what cannot be looked up; the trial call still checks it
        hints = {}
    fields: dict[str, Any] = {name: (hints.get(name, Any), default) for name, default in declared.settings.items()}
    config = ConfigDict(extra="ignore", protected_namespaces=())
    try:
        pydantic.create_model(f"{declared.name} settings", __config__=config, **fields)(**given)
    except pydantic.ValidationError as error:
        return explain(error, prefix)
    return []


def explain(error: pydantic.ValidationError, prefix: str = "", schema: type[BaseModel] = Setting) -> list[str]:
    """Of a pydantic error: one plain line a fault: where, what was got, what is allowed, the nearest known key.

    prefix: of where; schema: what was validated.
    """
    lines = []
    for fault in error.errors():
        where = prefix + ".".join(str(part) for part in fault["loc"])
        if fault["type"] == "extra_forbidden":
            known = _schema_at(schema, fault["loc"][:-1]).model_fields
            lines.append(f"{where}: unknown key{nearest(str(fault['loc'][-1]), known)} Known: {', '.join(known)}")
        elif fault["type"] == "missing":
            lines.append(f"{where}: missing; this setting must say it")
        else:
            said = fault["msg"].removeprefix("Value error, ")
            lines.append(f"{where}: got {fault['input']!r}; {said[0].lower()}{said[1:]}")
    return lines


def _schema_at(schema: type[BaseModel], path: Sequence[str | int]) -> type[BaseModel]:
    """The schema of a section within a section."""
    for part in path:
        declared = schema.model_fields[str(part)].annotation
        kinds = [k for k in (declared, *typing.get_args(declared)) if isinstance(k, type) and issubclass(k, BaseModel)]
        schema = kinds[0] if kinds else schema
    return schema
