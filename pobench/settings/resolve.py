"""Setting + losses + seeds + `--set` → jobs. All faults are collected and raised as one message."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pydantic

from pobench.composition import MARKS, split
from pobench.errors import PobenchError, nearest
from pobench.registry import Loss, benchmarks, get_loss, losses, modifiers, part_of
from pobench.settings.faults import check_loss_settings, explain, judge_faults, unknown_loss_key
from pobench.settings.job import Job
from pobench.settings.keys import meanings
from pobench.settings.plain_yaml import plain_yaml
from pobench.settings.read import OF_SOURCES, OF_VALUES, of_another_judge, of_other_sources, read_setting, sources_of
from pobench.settings.schema import COMMANDS, SECTIONS, JudgeConfig, Setting, TrainConfig, TunedConfig

SETTABLE = {**SECTIONS, **COMMANDS}


def parse_overrides(pairs: Sequence[str]) -> dict[str, Any]:
    """`["train.lr=5e-6", …]` → {"train.lr": 5e-06, …}. Raises PobenchError that lists every text that is not KEY=VALUE."""
    return _parsed(pairs, "--set", "SECTION.KEY=VALUE, such as train.lr=5e-6 or simpo.beta=2.5", dotted=True)


def parse_settings(pairs: Sequence[str], option: str) -> dict[str, Any]:
    """A judge's settings: `["model=NAME", …]` → {"model": "NAME", …}. option: the command-line option, for messages.

    Raises as `parse_overrides`.
    """
    return _parsed(pairs, option, "KEY=VALUE, such as model=NAME", dotted=False)


def nested(settings: Mapping[str, Any]) -> dict[str, Any]:
    """A judge's settings with dots in their names taken apart: {"extra.effort": "low"} → {"extra": {"effort": "low"}}."""
    values: dict[str, Any] = {}
    for key, value in settings.items():
        _put_inside(values, key.split("."), value)
    return values


def _parsed(pairs: Sequence[str], option: str, expected: str, *, dotted: bool) -> dict[str, Any]:
    values: dict[str, Any] = {}
    faults = []
    for text in pairs:
        key, equals, value = text.partition("=")
        whole = all(key.strip().removeprefix("losses.").partition(".")) if dotted else key.strip()
        if not equals or not whole:
            faults.append(f"{option} {text!r}: expected {expected}")
            continue
        values[key.strip()] = _scalar(value)
    if faults:
        raise PobenchError("\n".join(faults))
    return values


def _scalar(text: str) -> Any:
    try:
        return plain_yaml(text, "")[0]
    except PobenchError:  # no YAML: text
        return text


def resolve_names(names: str | Iterable[str]) -> tuple[list[str], list[str]]:
    """`"simpo, r-dpo"`, `"paper"`, `"all"`, `"rated"`, `"dpo + 0.2*sft"` → (registered names and expressions in order, a
    fault for every unknown one). all: every loss that plain pairs can train; rated: those that read the pairs' ratings."""
    requested = split(names) if isinstance(names, str) else list(names)
    resolved: list[str] = []
    faults = []
    for name in requested:
        if name == "all":
            resolved += [n for n in losses.names() if "scores" not in losses.get(n).needs]
        elif name == "rated":
            resolved += [n for n in losses.names() if "scores" in losses.get(n).needs]
        elif name == "paper":
            resolved += [n for n in losses.names() if losses.get(n).in_paper]
        elif name:
            try:
                resolved.append(get_loss(name).name)
            except PobenchError as error:
                faults.append(str(error))
    if not resolved and not faults:
        faults.append("--losses: name at least one loss, or `paper`, `all`, `rated`")
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
    """One job for every loss and seed. benchmark_names: comma-separated, replaces the setting's benchmarks; "none" for none.

    Raises PobenchError that lists every fault of names, keys and values together, each once.
    """
    names, faults = resolve_names(loss_names)
    draft = _Draft.of_setting(setting, faults)
    draft.use_model_and_data(model, data)
    draft.read_losses()
    draft.drop_settings_of_another_judge(overrides or {})
    draft.drop_other_sources(overrides or {})
    for key, value in (overrides or {}).items():
        draft.override(key, value)

    if seeds:
        draft.values["seeds"] = list(seeds)
    parsed = draft.parse()
    chosen = draft.choose_benchmarks(benchmark_names)
    draft.check_judge()
    checked = {name: draft.check_loss(name, parsed) for name in names}
    if draft.faults or parsed is None:
        raise PobenchError("\n".join(dict.fromkeys(draft.faults)))
    return [draft.job(parsed, name, seed, *checked[name], chosen) for name in names for seed in parsed.seeds]


@dataclass
class _Draft:
    """A setting before it is resolved: its raw values, the origin of each value, and the faults so far.

    losses: loss → its own values, both settings of the loss and fields of `train`. forced: fields of `train` from the
    command line; they override a loss's own. file: the setting as it is written. own, provenance: loss → its values
    there, and where they come from. Every step adds to faults and goes on.
    """

    setting: str
    faults: list[str]
    values: dict[str, Any] = field(default_factory=dict)
    origin: dict[str, str] = field(default_factory=dict)  # key → where its value comes from
    losses: dict[str, dict[str, Any]] = field(default_factory=dict)
    forced: dict[str, Any] = field(default_factory=dict)
    file: Mapping[str, Any] = field(default_factory=dict)
    own: dict[str, dict[str, Any]] = field(default_factory=dict)
    provenance: dict[str, tuple[str, TunedConfig | None]] = field(default_factory=dict)

    @classmethod
    def of_setting(cls, setting: str, faults: list[str]) -> _Draft:
        try:
            values, comments = read_setting(setting)
        except PobenchError as error:
            faults.append(str(error))
            return cls(setting, faults)
        origin = {key: f"{setting}: {comment}" for key, comment in comments.items()}
        text = json.dumps(values)  # proof that it is plain data
        return cls(setting, faults, json.loads(text), origin, file=json.loads(text))

    def use_model_and_data(self, model: str | None, data: str | None) -> None:
        """Replace the setting's model and data by those of --model and --data."""
        if model is not None:
            self.values["model"] = {"source": model}
            self.values.pop("sft", None)  # --model names a finished start model
            self.origin["model.source"] = "--model"
        if data is not None:
            section = self._section("data") or {}
            remaining = {key: value for key, value in section.items() if key not in OF_SOURCES}
            self.values["data"] = {**remaining, "source": data}
            self.origin["data.source"] = "--data"

    def read_losses(self) -> None:
        """Read the section `losses`: values of single losses, by registered name."""
        section = self.values.pop("losses", None)
        section = {} if section is None else section
        if not isinstance(section, dict):
            self.faults.append(f"losses: got {section!r}; expected a mapping of losses to their values")
            return
        for name, values in section.items():
            try:
                loss = part_of(name)
            except PobenchError as error:
                self.faults.append(f"losses.{name}: {error}")
                continue
            if values is not None and not isinstance(values, dict):
                self.faults.append(f"losses.{name}: got {values!r}; expected a mapping of settings to values")
                continue
            own = {key: value for key, value in (values or {}).items() if key not in OF_VALUES}
            self.own[loss.name], self.losses[loss.name] = own, dict(own)
            self.provenance[loss.name] = self._provenance(f"losses.{name}", values or {})
            for key in own:
                self.faults += unknown_loss_key(f"losses.{name}.{key}", loss, key)
                self.origin.setdefault(f"{loss.name}.{key}", self.origin.get(f"losses.{name}.{key}", ""))

    def _provenance(self, where: str, values: Mapping[str, Any]) -> tuple[str, TunedConfig | None]:
        """Where a loss's values in the file come from: `tuned` and the search, `paper`, or `default`."""
        said = values.get("values", "default")
        if said not in ("default", "paper") or ("values" in values and "tuned" in values):
            self.faults.append(f"{where}.values: got {said!r}; allowed: default, paper, and neither beside `tuned`")
        if values.get("tuned") is None:
            return str(said), None
        try:
            return "tuned", TunedConfig.model_validate(values["tuned"])
        except pydantic.ValidationError as error:
            self.faults += explain(error, f"{where}.tuned.", TunedConfig)
            return "default", None

    def drop_settings_of_another_judge(self, overrides: Mapping[str, Any]) -> None:
        """Drop the settings of the YAML's judge if the command line names another judge; so with the ranker."""
        for section in ("judge", "onpolicy.ranker"):
            judge: Any = self.values
            for part in section.split("."):
                judge = judge.get(part) if isinstance(judge, dict) else None
            judge = judge if isinstance(judge, dict) else {}  # `parse` reports the wrong type
            for key in of_another_judge(judge, _below(section, overrides)):
                judge.pop(key, None)
                self.origin = {k: v for k, v in self.origin.items() if not f"{k}.".startswith(f"{section}.{key}.")}

    def drop_other_sources(self, overrides: Mapping[str, Any]) -> None:
        """Drop what the YAML says of its data if the command line names one source instead of several, or several instead of
        one."""
        section = self._section("data") or {}
        for key in of_other_sources(section, _below("data", overrides)):
            section.pop(key, None)
            self.origin = {k: v for k, v in self.origin.items() if not f"{k}.".startswith(f"data.{key}.")}

    def override(self, key: str, value: Any) -> None:
        """One `--set KEY=VALUE`."""
        section, name = _owner(key.removeprefix("losses."))
        if section == "benchmarks":
            if self._section(section) is not None:
                _put_inside(self.values, key.split("."), value)
        elif section in SETTABLE:
            self._override_section(section, name, value)
        else:
            self._override_loss(section, name, value, f"--set {key}")

    def _override_section(self, section: str, name: str, value: Any) -> None:
        key, schema = f"{section}.{name}", SETTABLE[section]
        fields = schema.model_fields
        if name.partition(".")[0] not in fields:
            known = ", ".join(fields)
            close = nearest(name, fields, meanings(schema))
            self.faults.append(f"--set {key}: {section} has no {name!r}{close} Known: {known}")
        elif self._section(section) is not None:
            # the last part of a column's or a template argument's name may hold dots, that of a judge's setting does not
            _put_inside(self.values, key.split(".", -1 if section in ("judge", "onpolicy") else 2), value)
            self.origin[key] = "--set"
            if section == "train" and "." not in name:
                self.forced[name] = value

    def _override_loss(self, loss_name: str, name: str, value: Any, option: str) -> None:
        try:
            loss = part_of(loss_name)
        except PobenchError:
            known = [*SETTABLE, "benchmarks", *losses.names(), *modifiers.names()]
            self.faults.append(f"{option}: {loss_name!r} is neither a section nor a loss{nearest(loss_name, known)}")
            return
        own = self.losses.setdefault(loss.name, {})
        for group in (
            loss.alternatives if isinstance(loss, Loss) else ()
        ):  # two names of one number (gamma, gamma_beta_ratio): --set wins over the YAML
            for other in group if name in group else ():
                if self.origin.get(f"{loss.name}.{other}") != "--set":
                    own.pop(other, None)
        own[name] = value
        self.origin[f"{loss.name}.{name}"] = "--set"
        self.faults += unknown_loss_key(option, loss, name)

    def _section(self, name: str) -> dict[str, Any] | None:
        """The values of a section, {} if it is empty; None if it is not a mapping, which `parse` reports."""
        if self.values.get(name) is None:
            self.values[name] = {}
        section = self.values[name]
        return section if isinstance(section, dict) else None

    def parse(self) -> Setting | None:
        """The setting checked against the schema; None if it has faults."""
        if "name" not in self.values:  # the file could not be read, and that is a fault already
            return None
        try:
            return Setting.model_validate({**self.values, "losses": self.losses})
        except pydantic.ValidationError as error:
            self.faults += explain(error)
            return None

    def choose_benchmarks(self, names: str | None) -> dict[str, dict[str, Any]]:
        """Benchmark → all its settings."""
        section = self.values.get("benchmarks") or {}
        if not isinstance(section, dict):  # `parse` reports it
            return {}
        chosen, faults = _benchmarks({k: v for k, v in section.items() if isinstance(v, dict)}, names)
        self.faults += faults
        return chosen

    def check_judge(self) -> None:
        """Check the judge's settings with its factory."""
        try:
            judge = JudgeConfig.model_validate(self.values.get("judge") or {})
        except pydantic.ValidationError:  # `parse` reports it
            return
        if judge.name is not None:
            self.faults += judge_faults(judge.name, judge.settings)

    def check_loss(self, name: str, parsed: Setting | None) -> tuple[dict[str, Any], TrainConfig]:
        """A loss's settings in canonical form, and its training section: the loss's own values, else the setting's.

        If there are faults, the returned values are placeholders and are not used.
        """
        loss = get_loss(name)
        settings = self._settings_of(loss, self.losses)
        faults = check_loss_settings(loss, settings)
        shared = parsed.train.model_dump() if parsed is not None else {"lr": 1.0}
        train = TrainConfig(lr=1.0)
        try:
            train = TrainConfig.model_validate({**shared, **self._own_training(name)})
            if not loss.reads_reference:  # it reads no reference sums, so where they come from makes no other run
                train = train.model_copy(update={"reference": "cached"})
            if loss.runs_reference or loss.moves_reference:
                train = train.model_copy(update={"reference": "every_step"})
            own_rate = (train.value_learning_rate or train.lr) if loss.trains_value else None
            train = train.model_copy(update={"value_learning_rate": own_rate})
            faults += _adapter_faults(loss, train)
        except pydantic.ValidationError as error:
            self.faults += explain(error, f"losses.{name}.")
        self.faults += faults
        return ({} if faults else loss.canonical({**loss.settings, **settings})), train

    def job(
        self,
        parsed: Setting,
        loss: str,
        seed: int,
        loss_settings: dict[str, Any],
        train: TrainConfig,
        chosen_benchmarks: dict[str, dict[str, Any]],
    ) -> Job:
        values_from, tuned = self._values_from(loss, loss_settings, train.lr)
        return Job(
            setting=parsed.name,
            loss=loss,
            seed=seed,
            loss_settings=loss_settings,
            model=parsed.model,
            data=parsed.data,
            train=train,
            answers=parsed.answers,
            judge=parsed.judge,
            origin=self._origin_for(loss),
            sft=parsed.sft,
            benchmarks=chosen_benchmarks,
            values_from=values_from,
            tuned=tuned,
            onpolicy=parsed.onpolicy,
            rounds=parsed.rounds,
        )

    def _values_from(self, name: str, settings: Mapping[str, Any], lr: float) -> tuple[str, TunedConfig | None]:
        """Where the learning rate and the loss's own settings come from, and the search behind them if there was one.

        A value of the command line that is the file's own changes nothing. A search for another start model or other pairs
        is none for these.
        """
        loss, own = get_loss(name), self.own.get(name, {})
        before = self._settings_of(loss, self.own)
        if before != self._settings_of(loss, self.losses) and (
            check_loss_settings(loss, before, result=False) or loss.canonical({**loss.settings, **before}) != settings
        ):
            return "set", None
        if lr != own.get("lr", self.file["train"]["lr"]):
            return "set", None
        if loss.parts and name not in self.provenance and before:  # its parts' own values, which were not chosen for it
            return "set", None
        values_from, tuned = self.provenance.get(name, ("default", None))
        if tuned is not None and sources_of(self.values) != sources_of(self.file):
            return "default", None
        return values_from, tuned

    def _settings_of(self, loss: Loss, values: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
        """The settings of a loss among `values` (loss or modifier → its own values). An expression has those of its parts,
        which its own entry in the file replaces and `--set` of a part replaces again."""
        own = {key: value for key, value in values.get(loss.name, {}).items() if key in loss.settings}
        for part in loss.parts:
            for name, value in values.get(part.name, {}).items():
                key = f"{part.name}.{name}"
                rivals = next((group for group in loss.alternatives if key in group), (key,))
                if name in part.settings and (self.origin.get(key) == "--set" or not set(rivals) & set(own)):
                    own = {k: v for k, v in own.items() if k not in rivals} | {key: value}
        return own

    def _own_training(self, name: str) -> dict[str, Any]:
        """Fields of `train` that the setting gives this loss alone, without those that the command line sets."""
        own = self.losses.get(name, {})
        return {key: own[key] for key in own if key in TrainConfig.model_fields and key not in self.forced}

    def _origin_for(self, name: str) -> dict[str, str]:
        """Key → where its value comes from, for the sections and this loss. A loss's own lr is listed as `train.lr`."""
        sections = {*SECTIONS, "onpolicy", "rounds", name, *(part.name for part in get_loss(name).parts)}
        shown = {key: where for key, where in self.origin.items() if where and _owner(key)[0] in sections}
        own = self._own_training(name)
        shown |= {f"train.{k}": self.origin.get(f"{name}.{k}") or f"{self.setting}: of {name}" for k in own}
        return shown | ({"train.reference": f"{name}: its reference moves"} if get_loss(name).moves_reference else {})


def _adapter_faults(loss: Loss, train: TrainConfig) -> list[str]:
    """The faults of an adapter beside a reference that moves, or beside a value model."""
    if train.adapter is None:
        return []
    faults = []
    if loss.moves_reference:
        faults.append(
            f"train.adapter: {loss.name} moves its reference weight by weight, and the mean of two adapters' factors is not "
            "the adapter of the mean of their weights; leave the adapter out, and all weights are trained"
        )
    if loss.trains_value:
        faults.append(
            f"train.adapter: {loss.name} trains a value model beside the policy, a copy of it whose weights are all trained; "
            "leave the adapter out, and the policy's are too"
        )
    return faults


def _owner(key: str) -> tuple[str, str]:
    """`"simpo.beta"` → ("simpo", "beta"). An expression may hold dots: `"0.5*dpo + sft.lr"` is `lr` of `0.5*dpo + sft`."""
    parts = key.split(".")
    for i in range(1, len(parts)) if MARKS & set(key) else ():
        try:
            return get_loss(".".join(parts[:i])).name, ".".join(parts[i:])
        except PobenchError:
            continue
    return parts[0], ".".join(parts[1:])


def section_of(values: Mapping[str, Any], name: str, overrides: Mapping[str, Any]) -> dict[str, Any]:
    """The section `name` (one of `COMMANDS`) of a setting's raw values, with `--set` applied.

    Ignores unknown keys; `resolve` reports them.
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
    """Set values[path[0]][path[1]]… = value, and make the mappings on the way."""
    *outer, last = path
    for key in outer:
        inside = values.get(key)
        values[key] = values = dict(inside) if isinstance(inside, dict) else {}
    values[last] = value


def _benchmarks(
    section: Mapping[str, Mapping[str, Any]], names: str | None
) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """Benchmark → all its settings, and the faults. section: the YAML's section. names: replace its list; None: keep it."""
    requested = (
        list(section) if names is None else [n.strip() for n in names.split(",") if n.strip() not in ("", "none")]
    )
    chosen, faults = {}, []
    settings: dict[str, Mapping[str, Any]] = {}
    for name in dict.fromkeys([*section, *requested]):
        try:
            settings[benchmarks.get(name).name] = section.get(name, settings.get(benchmarks.get(name).name, {}))
        except PobenchError as error:
            faults.append(f"{'benchmarks' if name in section else '--benchmarks'}: {error}")
    canonical = {benchmarks.get(name).name for name in requested} if not faults else set()
    for name, values in settings.items():
        kind = benchmarks.get(name).function
        try:
            parsed = kind(**values)
        except pydantic.ValidationError as error:
            faults += explain(error, f"benchmarks.{name}.", kind)
            continue
        if name in canonical:
            chosen[name] = parsed.model_dump(mode="json")
    return chosen, faults
