"""A job: one loss of one setting with one seed, fully resolved, and the digest that names its run."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pobench.errors import PobenchError
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

PROTOCOL = 1  # raised when stored results of two versions may no longer be compared

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
    ("model", "template_arguments"): {},
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
