"""A job: one loss of one setting with one seed, all values resolved. `resolve.py` makes jobs, a plan runs them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from pobench.errors import PobenchError
from pobench.identity import name_of
from pobench.registry import get_loss, judges
from pobench.settings.schema import (
    SECTIONS,
    START_SEED,
    AnswersConfig,
    DataConfig,
    JudgeConfig,
    ModelConfig,
    OnPolicyConfig,
    RoundsConfig,
    SftConfig,
    TrainConfig,
    TunedConfig,
)


@dataclass(frozen=True)
class Round:
    """Which round of iterative training a job is; the plan says it.

    number: from 1, `of` so many. run, model, weights: the last round's run, the folder of its model, and a digest of that;
    held_out: the file of the pairs that no round trains on; recipe: a digest of how this round's pairs are made, without the
    weights that answer. These are "" in the first round.
    """

    number: int = 1
    of: int = 1
    run: str = ""
    model: str = ""
    weights: str = ""
    held_out: str = ""
    recipe: str = ""


@dataclass(frozen=True)
class Job:
    """One training run, fully resolved. Code that gets a job reads no setting file and no default."""

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
    )  # key -> where its value comes from; keys at their default are absent
    sft: SftConfig | None = None
    benchmarks: Mapping[str, Mapping[str, Any]] = field(
        default_factory=dict
    )  # evaluated later on the run, so not in `values`
    values_from: str = "default"  # the learning rate and the loss's own settings: tuned, paper, default or set
    tuned: TunedConfig | None = None  # the search behind tuned values
    onpolicy: OnPolicyConfig = field(
        default_factory=OnPolicyConfig
    )  # how the stage makes pairs; these count by content, so not in `values`
    rounds: RoundsConfig = field(default_factory=RoundsConfig)
    round: Round = Round()  # weights and pairs of its round count by content, too

    def values(self) -> dict[str, Any]:
        """Every value, nested, as `config.yaml` stores it."""
        sections = {s: getattr(self, s).model_dump(mode="json") for s in ("model", "data", "train", "answers", "judge")}
        if self.sft is not None:
            sections["sft"] = self.sft.model_dump(mode="json")
        return {
            "setting": self.setting,
            "loss": self.loss,
            "seed": self.seed,
            "loss_settings": dict(self.loss_settings),
            **sections,
        }

    def provenance(self) -> dict[str, Any]:
        """Where the values come from, as `config.yaml` stores it. It decides no result, so it is in neither `values` nor
        `key`."""
        return {"values_from": self.values_from, "tuned": self.tuned.model_dump(mode="json") if self.tuned else None}

    def facts_of_round(self) -> dict[str, Any]:
        """From round 2 on, for `config.yaml`: which round it is, the run that it begins from, the reference of training, and
        how its pairs are made."""
        if self.round.number == 1:
            return {}
        reference = self.rounds.reference if get_loss(self.loss).reads_reference else ""
        facts = {"round": self.round.number, "begins": self.round.run, "rounds_reference": reference}
        return {**facts, "recipe": self.round.recipe}

    def value(self, key: str) -> Any:
        """The resolved value of `key` ("train.lr", "simpo.beta"); None if there is no such key."""
        if key in self.loss_settings:  # of an expression
            return self.loss_settings[key]
        section, _, name = key.rpartition(".")
        return getattr(getattr(self, section), name, None) if section in SECTIONS else self.loss_settings.get(name)

    @property
    def decoding(self) -> AnswersConfig:
        """How answers are drawn: the section `answers`, its seed the run's own where the setting names none. All losses of one
        seed draw by the same numbers, so that they pair; runs of other seeds draw by other numbers, so that the spread over
        seeds holds the luck of decoding too."""
        return self.answers if self.answers.seed is not None else self.answers.model_copy(update={"seed": self.seed})

    def of_start(self) -> Job:
        """The start model's part of this job: it was trained with no seed, so its answers are drawn by `START_SEED`."""
        return replace(self, seed=START_SEED)

    @property
    def key(self) -> str:
        """12 hex digits of a hash over the values that decide a result. Jobs with equal keys are one job. A stored run is
        named by the content of its data and weights instead of their paths (`pobench.runs.plan`)."""
        sections = {s: getattr(self, s).causes() for s in ("model", "data", "train", "answers")}
        judge = {"name": self.judge.name, "settings": self.judge_causes()}
        sft = None if self.sft is None else self.sft.causes()
        choices = {
            "setting": self.setting,
            "loss": self.loss,
            "seed": self.seed,
            "loss_settings": dict(self.loss_settings),
        }
        return name_of({**choices, **sections, "judge": judge, "sft": sft})

    def judge_causes(self) -> dict[str, Any]:
        """The judge's settings that can change a verdict; time-outs and prices are left out."""
        try:
            judge = judges.get(self.judge.name or "")
        except PobenchError:  # the judge of a plug-in that is not loaded
            return dict(self.judge.settings)
        return judge.canonical({k: v for k, v in self.judge.settings.items() if k not in judge.runtime})
