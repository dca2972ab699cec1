"""A job: one loss of one setting with one seed, fully resolved."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pobench.errors import PobenchError
from pobench.identity import name_of
from pobench.registry import judges
from pobench.settings.schema import (
    SECTIONS,
    AnswersConfig,
    DataConfig,
    JudgeConfig,
    ModelConfig,
    SftConfig,
    TrainConfig,
)


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
        if self.sft is not None:
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
    def key(self) -> str:
        """12 hex over the values that decide a result. Two jobs with one key are one job; a stored result is named by
        its content besides (`pobench.runs.plan`)."""
        sections = {s: getattr(self, s).causes() for s in ("model", "data", "train", "answers")}
        judge = {"name": self.judge.name, "settings": self.judge_causes()}
        sft = None if self.sft is None else self.sft.causes()
        named = {
            "setting": self.setting,
            "loss": self.loss,
            "seed": self.seed,
            "loss_settings": dict(self.loss_settings),
        }
        return name_of({**named, **sections, "judge": judge, "sft": sft})

    def judge_causes(self) -> dict[str, Any]:
        """The judge's settings without those that change no verdict (time-outs, prices)."""
        try:
            runtime = judges.get(self.judge.name or "").runtime
        except PobenchError:  # a plug-in that is not loaded now
            runtime = frozenset()
        return {k: v for k, v in self.judge.settings.items() if k not in runtime}
