"""Arms: groups of runs that differ only in the seed. Labels, lines along one setting, and the home arm of each loss."""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from pobench.results.rows import Frame, Rows
from pobench.types import Estimate


# ---------------------------------------------------------------- what is pooled
class Arm(NamedTuple):
    """Runs that differ only in the seed: one row of a table, one dot of a figure.

    id: its name in the `scores` frame if it pools several runs. label: for readers, e.g. "SimPO (β = 2)".
    """

    id: str
    loss: str
    label: str
    runs: tuple[str, ...]

    @property
    def is_start(self) -> bool:
        return self.loss == "start"


GREEK = {"beta": "β", "gamma": "γ", "tau": "τ", "alpha": "α", "delta": "δ", "gamma_beta_ratio": "γ/β"}
GREEK |= {"length_bias": "length bias", "rounds_reference": "reference model"}


START_EMBEDS = "start model"  # where a setting names no `data.prompt_embedder`
_FIXED = ("lr", "epochs", "batch_size", "pairs", "length_bias", "reference")
_OF_ROUND = ("round", "rounds_reference", "recipe")  # of runs after the first round; `pairs` then differs between seeds
# of a run, by which arms are formed and named
_FACTS = (
    *("run", "setting", "loss", "title", "settings", "trained_on", "density_ratio", "begins", "status"),
    *_FIXED,
    *_OF_ROUND,
)


def arms_of(runs: pd.DataFrame, *, every_round: bool = False) -> list[Arm]:
    """The arms of the `runs` frame: the start model first, then the losses by name. Of losses that were trained in rounds the
    last round stands for all; every_round: each is an arm.

    A label is the loss's title. If the loss has several arms, the settings that differ are added, and after the first round
    which one it is.
    """
    rows = sorted(_facts(runs), key=lambda row: str(row["run"]))
    groups: dict[ArmKey, list[dict[Any, Any]]] = {}
    for row in rows:
        groups.setdefault(_arm_key(row), []).append(row)
    if not every_round:
        begun = begun_from(runs)
        groups = {k: own for k, own in groups.items() if begun.isdisjoint(str(row["run"]) for row in own)}
    shown = {key: _shown_facts(members[0]) for key, members in groups.items()}
    differing = _differing(shown)
    arms = []
    for key, members in groups.items():
        digest = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:8]
        loss, ids = str(members[0]["loss"]), tuple(str(row["run"]) for row in members)
        arm_id = f"{members[0]['setting']}/{loss}~{digest}"
        arms.append(Arm(arm_id, loss, _label(members[0], shown[key], differing[key[1]]), ids))
    return sorted(arms, key=lambda arm: (not arm.is_start, arm.loss, _natural(arm.label), arm.id))


def _facts(runs: pd.DataFrame) -> list[dict[Any, Any]]:
    """The facts of each run: a row of all columns costs several times as much, and every figure asks."""
    names = [name for name in _FACTS if name in runs]
    columns = [runs[name].to_numpy(object).tolist() for name in names]
    return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]


def _read_as(row: Mapping[Any, Any]) -> str:
    """What a run was trained on, if not on pairs as pairs; "" otherwise."""
    read = row.get("trained_on")
    return read if isinstance(read, str) and read != "pairs" else ""


def begun_from(runs: pd.DataFrame) -> set[str]:
    """The runs from whose models finished runs of a later round were trained."""
    if "begins" not in runs:
        return set()
    finished = runs[runs["status"] == "finished"] if "status" in runs else runs
    return {str(run) for run in finished["begins"].dropna()} - {""}


def round_of(row: Mapping[Any, Any]) -> int:
    """The round of one row of `runs`; earlier versions did not store it."""
    number = row.get("round")
    return 1 if number is None or pd.isna(number) else int(number)


# Setting, loss, its settings (JSON), the values of _FIXED, what was not read as pairs; of a start model its run too, of a later
# round those of _OF_ROUND.
ArmKey = tuple[str, ...]


def _arm_key(row: dict[Any, Any]) -> ArmKey:
    """The key that runs of one arm share: setting, loss, its settings and fixed facts."""
    fixed = [_shown_or_empty(row.get(name)) for name in _fixed(row)]
    key = (str(row["setting"]), str(row["loss"]), json.dumps(settings_of(row), sort_keys=True), *fixed)
    key = (*key, read) if (read := _read_as(row)) else key
    key = (*key, embedder) if (embedder := _embedder(row)) not in ("", START_EMBEDS) else key
    # only the run id tells two start models apart
    return (*key, str(row["run"])) if row["loss"] == "start" else key


def _fixed(row: Mapping[Any, Any]) -> tuple[str, ...]:
    """The facts that runs of one arm share, beside the loss's settings."""
    if round_of(row) == 1:
        return _FIXED
    return (*(name for name in _FIXED if name != "pairs"), *_OF_ROUND)


def _shown_facts(row: dict[Any, Any]) -> dict[str, str]:
    """The settings that the run was trained with, as text."""
    fixed = {name: show_setting(row.get(name)) for name in _fixed(row) if not pd.isna(row.get(name))}
    stored = row.get("trained_on")
    read = {"trained on": stored} if isinstance(stored, str) and stored else {}
    embedded = {"prompts embedded by": by} if (by := _embedder(row)) else {}
    return {**{name: show_setting(value) for name, value in settings_of(row).items()}, **fixed, **read, **embedded}


def _embedder(row: Mapping[Any, Any]) -> str:
    """The model that embedded prompts for the run's density ratios; "" where it read none."""
    ratios = json_object(row.get("density_ratio"))
    return str(ratios.get("embedder") or START_EMBEDS) if ratios else ""


def _differing(shown: Mapping[ArmKey, Mapping[str, str]]) -> dict[str, set[str]]:
    """Loss → the settings in which its arms differ."""
    values: dict[str, dict[str, set[str]]] = {}
    for key, facts in shown.items():
        of_loss = values.setdefault(key[1], {})
        for name, value in facts.items():
            of_loss.setdefault(name, set()).add(value)
    return {loss: {name for name, seen in of.items() if len(seen) > 1} for loss, of in values.items()}


def _label(row: dict[Any, Any], facts: dict[str, str], differing: set[str]) -> str:
    """The arm's title, with the settings in which the arms of its loss differ."""
    title = row.get("title")
    label = str(row["loss"]) if title is None or pd.isna(title) or not str(title) else str(title)
    label = label.encode("utf-8", "replace").decode()  # a frame of labels must be possible
    if row["loss"] == "start":
        return "Start model" if label.casefold() in ("start", "start model") else label
    values = [f"round {facts['round']}"] if "round" in facts else []
    named = [(name, value) for name, value in facts.items() if name in differing and name != "round"]
    values += [f"{GREEK.get(name, name)} = {value}" for name, value in named]
    return f"{label} ({', '.join(values)})" if values else label


class Line(NamedTuple):
    """Arms of one loss that differ only in one numeric setting, ordered by its value. setting: its name."""

    loss: str
    setting: str
    points: tuple[tuple[float, Arm], ...]

    @property
    def ends(self) -> tuple[Arm, Arm]:
        """The arms with the smallest and the largest value."""
        return self.points[0][1], self.points[-1][1]


def lines_of(runs: pd.DataFrame) -> list[Line]:
    """For every loss and every numeric setting, the longest line of two or more arms that differ only in it.

    Among lines of equal length, the one through the loss's home arm (`home_of`) is taken.
    """
    lines, sources = [], _sources(runs)
    for loss, members in _facts_by_loss(runs).items():
        through = _home(sources, members)
        for name in sorted({n for _, facts in members for n in facts} - {"round"}):
            groups: dict[str, list[tuple[float, Arm]]] = {}
            for arm, facts in members:
                value = facts.get(name)
                if isinstance(value, int | float | np.number) and not isinstance(value, bool):
                    others = json.dumps({k: _shown_or_empty(v) for k, v in facts.items() if k != name}, sort_keys=True)
                    groups.setdefault(others, []).append((float(value), arm))
            best = max(groups.values(), key=lambda g: (len(g), through in [arm for _, arm in g]), default=[])
            if len(best) > 1:
                lines.append(Line(loss, name, tuple(sorted(best, key=lambda point: point[0]))))
    return lines


def home_of(runs: pd.DataFrame, loss: str) -> Arm | None:
    """The arm that represents a loss with several arms. Preferred, in this order: unchanged labels, the setting's own values
    (by the column `sources`), the most seeds, and the most other arms that differ in only one value."""
    return _home(_sources(runs), _facts_by_loss(runs).get(loss, []))


def homes_of(runs: pd.DataFrame) -> dict[str, Arm]:
    """loss → the arm that represents it, see `home_of`."""
    sources = _sources(runs)
    homes = {loss: _home(sources, members) for loss, members in _facts_by_loss(runs).items()}
    return {loss: arm for loss, arm in homes.items() if arm is not None}


def _sources(runs: pd.DataFrame) -> dict[str, Any]:
    """run → the layer that each of its values came from, as JSON."""
    return dict(zip(runs["run"].astype(str), runs["sources"], strict=True)) if "sources" in runs else {}


def _home(sources: Mapping[str, Any], members: list[tuple[Arm, dict[str, Any]]]) -> Arm | None:
    beside = _beside([facts for _, facts in members])

    def rank(member: tuple[Arm, dict[str, Any]]) -> tuple[Any, ...]:
        arm, facts = member
        layers = json_object(sources.get(arm.runs[0])).values()
        varied = sum(str(layer).startswith(("--set", "study ")) for layer in layers)
        return bool(facts.get("length_bias")), varied, -len(arm.runs), -beside(facts), _natural(arm.label)

    return min(members, key=rank)[0] if members else None


def _beside(every: Sequence[Mapping[str, Any]]) -> Callable[[Mapping[str, Any]], int]:
    """Of how many of these facts do given ones differ in one value alone?"""
    names = sorted({name for facts in every for name in facts})

    def rest(facts: Mapping[str, Any], left_out: str) -> str:
        values = [facts.get(name) for name in names if name != left_out]
        return json.dumps([float(v) if isinstance(v, int | float | np.number) else v for v in values], default=str)

    same = Counter(rest(facts, "") for facts in every)
    alike = {name: Counter(rest(facts, name) for facts in every) for name in names}
    return lambda facts: sum(alike[name][rest(facts, name)] - same[rest(facts, "")] for name in names)


def _facts_by_loss(runs: pd.DataFrame) -> dict[str, list[tuple[Arm, dict[str, Any]]]]:
    """Each loss's arms with the settings that they were trained with, as far as known; without the start model."""
    rows = {str(row["run"]): row for row in _facts(runs)}
    facts_by_loss: dict[str, list[tuple[Arm, dict[str, Any]]]] = {}
    for arm in arms_of(runs):
        if not arm.is_start:
            row = rows[arm.runs[0]]
            facts = {**settings_of(row), **{k: row.get(k) for k in _fixed(row)}}
            known = {k: v for k, v in facts.items() if isinstance(v, list | dict) or not pd.isna(v)}
            facts_by_loss.setdefault(arm.loss, []).append((arm, known))
    return facts_by_loss


def settings_of(row: Any) -> dict[str, Any]:
    """The loss's settings of one row of `runs`; empty where there are none."""
    return json_object(row.get("settings"))


def json_object(text: Any) -> dict[str, Any]:
    """A mapping stored as JSON text (or left as one); empty where there is none, or it does not parse."""
    if isinstance(text, dict):
        return text
    try:
        parsed = json.loads(text) if isinstance(text, str) and text else {}
    except json.JSONDecodeError:
        return {}
    return parsed if isinstance(parsed, dict) else {}


def show_setting(value: Any) -> str:
    """A setting as text: floats short, everything else as JSON has it."""
    if isinstance(value, float | np.floating):
        return f"{float(value):g}"
    return str(value)


def _shown_or_empty(value: Any) -> str:
    return "" if value is None or pd.isna(value) else show_setting(value)


def _natural(label: str) -> tuple[Any, ...]:
    """β = 2 before β = 10."""
    parts: list[Any] = []
    for word in label.replace("(", " ").replace(")", " ").replace(",", " ").split():
        try:
            parts.append((0, float(word), ""))
        except ValueError:
            parts.append((1, 0.0, word))
    return tuple(parts)


def score_of(scores: Frame, arm: Arm, metric: str) -> Estimate:
    """The arm's estimate of `metric` from the `scores` frame.

    The pooled row if there is one, else the row of its only run; several runs without a pooled row give their mean
    without an interval, because runs share their prompts.
    """
    if isinstance(scores, Rows):
        estimate = _pooled(scores.of_metric([arm.id], metric))
        return _pooled(scores.of_metric(arm.runs, metric)) if math.isnan(estimate.value) else estimate
    rows = scores[(scores["metric"] == metric) & scores["run"].isin((arm.id, *arm.runs))]
    whole = rows["run"] == arm.id
    estimate = pooled(rows[whole])
    return pooled(rows[~whole]) if math.isnan(estimate.value) else estimate


def pooled(rows: pd.DataFrame) -> Estimate:
    """Of rows with value, low, high, n: the only one that has a value as it is; several seeds' mean without an interval,
    since they share their prompts or pairs."""
    return _pooled(() if rows.empty else rows[["value", "low", "high", "n"]].to_dict("records"))


def _pooled(rows: Sequence[Mapping[Any, Any]]) -> Estimate:
    known = [row for row in rows if not math.isnan(_float(row["value"]))]
    if not known:
        return Estimate.missing()
    if len(known) == 1:
        (row,) = known
        return Estimate(_float(row["value"]), _float(row["low"]), _float(row["high"]), int(row["n"]))
    mean = float(np.array([_float(row["value"]) for row in known]).mean())
    return Estimate(mean, math.nan, math.nan, min(int(row["n"]) for row in known))


def seed_values(scores: pd.DataFrame, arm: Arm, metric: str) -> list[float]:
    """The value of each of the arm's runs, where there are several."""
    rows = scores[(scores["metric"] == metric) & scores["run"].isin(arm.runs)].sort_values("run")
    values = [_float(v) for v in rows["value"]]
    return [v for v in values if not math.isnan(v)] if len(arm.runs) > 1 else []


def of_arm(frame: Frame, arm: Arm) -> pd.DataFrame:
    """The rows of a frame that belong to the arm's runs."""
    return frame.of(arm.runs) if isinstance(frame, Rows) else frame[frame["run"].isin(arm.runs)]


def judges_of(verdicts: Frame) -> list[str]:
    """The judges by name, the main one first: the verifiable judge where there is one. Judges are never averaged."""
    if isinstance(verdicts, Rows):
        verdicts = verdicts.distinct("judge")
    return sorted(verdicts["judge"].dropna().astype(str).unique(), key=main_first)


def main_judge(verdicts: Frame | None) -> str:
    """The name of the judge that decides; "" where nothing was judged."""
    return next(iter(judges_of(verdicts)), "") if verdicts is not None and len(verdicts) else ""


def by_main_judge(rows: pd.DataFrame, verdicts: Frame) -> pd.DataFrame:
    """The rows of the judge that decides. rows: of any frame that names judges."""
    return rows[rows["judge"].isin(judges_of(verdicts)[:1])]


def main_first(judge: str) -> tuple[bool, str]:
    """The key by which judges are ordered."""
    return judge != "verifiable", judge


def scores_by_prompt(verdicts: pd.DataFrame, arms: Sequence[Arm]) -> pd.DataFrame:
    """(prompts × arms) the main judge's mean score: over a prompt's samples, then over seeds. Columns are arm ids."""
    columns = {}
    verdicts = by_main_judge(verdicts, verdicts)
    for arm in arms:
        per_run = of_arm(verdicts, arm).groupby(["run", "prompt"], sort=True)["score"].mean()
        if len(per_run):
            columns[arm.id] = per_run.groupby("prompt", sort=True).mean()
    return pd.DataFrame(columns).sort_index()


def _float(value: Any) -> float:
    return math.nan if value is None or pd.isna(value) else float(value)
