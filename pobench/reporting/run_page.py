"""The page of one run in a shared site, and of an arm, whose runs differ in the seed alone: what it is, its values with their
sources, its scores, curves, results by digest, environment, answers, and the commands that make it again."""

from __future__ import annotations

import base64
import hashlib
import importlib.metadata
import importlib.resources
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from shlex import quote
from typing import Any, NamedTuple

import jinja2
import pandas as pd
from markupsafe import Markup

from pobench.files import nan_as_null
from pobench.reporting.looks import START, look_of
from pobench.reporting.run_facts import command_of, title_of, values_of, without_paths
from pobench.reporting.tables import clean, show_number
from pobench.results import metrics
from pobench.results.arms import Arm, json_object, judges_of, of_arm
from pobench.results.comparable import Comparable
from pobench.results.few_runs import timed_on
from pobench.results.run_folder import RunFolder, short_names

SHOWN_ANSWERS = 12
LONGEST_ANSWER = 2000  # characters on the page; the file beside it has all
MOST_POINTS = 240  # of a curve
WIDTH, HEIGHT, LEFT, BOTTOM = 320, 150, 46, 18  # of a curve, in its own units

CURVES = {  # title → (columns of the frame `steps`, unit)
    "Loss": (("loss",), ""),
    "Rewards": (("rewards/chosen", "rewards/rejected"), "own unit"),
    "Log-probability per token": (("logps/chosen_per_token", "logps/rejected_per_token"), "nats"),
    "Pairs with the higher reward on the chosen answer": (("rewards/accuracies",), "share"),
    "Length of the gradient": (("grad_norm",), ""),
    "Learning rate": (("lr",), ""),
    "KL on held-out winners": (("heldout/kl",), "nats/token"),
}


# ---------------------------------------------------------------- where a page lies
def page_of(name: str, prefix: str = "runs/") -> str:
    """The path of a run's or an arm's page in the site, of plain letters alone, whatever the name is made of."""
    setting, _, folder = name.partition("/")
    plain = [re.sub(r"[^A-Za-z0-9._~-]", "-", part).lstrip(".")[:100] for part in (setting, folder)]
    if plain != [setting, folder] or not all(plain):
        plain[1] += "-" + hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:12]
    return f"{prefix}{plain[0] or 'setting'}/{plain[1]}.html"


def page_of_arm(arm: Arm) -> str:
    """A single run stands for its arm."""
    return page_of(arm.runs[0] if len(arm.runs) == 1 else arm.id)


# ---------------------------------------------------------------- what a page says
class Text(NamedTuple):
    """text: for the page. full: what it stands for. href: where it leads."""

    text: str
    full: str = ""
    href: str = ""


class Score(NamedTuple):
    metric: str
    title: str
    value: str
    interval: str
    n: str
    better: str
    definition: str


class Result(NamedTuple):
    """A stage's stored result: its folder, what decided it, and the digests of its files."""

    stage: str
    folder: Text
    causes: list[tuple[str, Text]]
    files: list[tuple[str, Text]]


class Answer(NamedTuple):
    instruction: str
    text: str
    hidden: int
    mark: str


@dataclass
class RunPage:
    """What the template of a run's page reads; all text is plain and escaped there."""

    title: str
    colour: str
    name: str
    facts: list[tuple[str, Text]]
    formula: str
    scores: list[Score]
    curves: list[Markup]
    values: list[tuple[str, str, str]]  # key, value, where it comes from
    defaults: list[tuple[str, str, str]]  # likewise
    results: list[Result]
    others: int
    environment: list[tuple[str, str]]
    commands: list[tuple[str, str]]
    seeds: list[Text]
    answers: list[Answer]
    every_answer: str  # the address of the file with all, "" where there are none


@dataclass
class ArmPage:
    """What the template of an arm's page reads."""

    title: str
    colour: str
    heads: list[tuple[str, str]]  # metric, title
    rows: list[tuple[Text, list[tuple[str, str]]]]  # run, (value, interval) of each metric


@dataclass
class Pages:
    """The pages of a group of runs that may be compared. folder: of a run's name."""

    comparable: Comparable
    folder: Callable[[str], RunFolder]

    @cached_property
    def runs(self) -> dict[str, dict[Any, Any]]:
        return {str(row["run"]): row for row in self.comparable.frames["runs"].to_dict("records")}

    @cached_property
    def short(self) -> dict[str, str]:
        return short_names(self.runs)

    @cached_property
    def arm_of(self) -> dict[str, Arm]:
        return {run: arm for arm in self.comparable.every_arm.arms for run in arm.runs}

    @cached_property
    def scores(self) -> dict[str, list[dict[Any, Any]]]:
        """Run or arm → its rows of the frame `scores`."""
        frame = self.comparable.frames["scores"]
        return {str(run): rows.to_dict("records") for run, rows in frame.groupby("run", sort=False)}

    @cached_property
    def judge(self) -> str:
        return next(iter(judges_of(self.comparable.frames["verdicts"])), "")

    # -- a run
    def run(self, run: str) -> tuple[RunPage, list[dict[str, Any]]]:
        """A run's page, and all its answers as the rows of the file beside it."""
        row, folder, arm = self.runs[run], self.folder(run), self.arm_of.get(run)
        config = folder.config
        start = row["loss"] == "start"
        title, source, formula = ("Start model", "", []) if start else title_of(row["loss"])
        label = title if start else arm.label if arm else title
        answers = self._answers(run)
        values = [(clean(key), clean(value, 600), clean(where, 300)) for key, value, where in values_of(config)]
        firsts = [answer for answer in answers if answer["sample"] == answers[0]["sample"]]
        page = RunPage(
            title=clean(label if start else f"{label}, seed {row['seed']}"),
            colour=START.colour if start else look_of(row["loss"]).colour,
            name=clean(run),
            facts=[(name, text) for name, text in self._facts(row, folder, source) if text.text],
            formula=clean("\n".join(formula)),
            scores=[_score(row) for row in sorted(self.scores.get(run, []), key=_place) if row["n"]],
            curves=list(_curves(self._rows("steps", run), look_of(row["loss"]).colour)),
            values=[value for value in values if value[2] != "default"],
            defaults=[value for value in values if value[2] == "default"],
            results=list(_results(folder)),
            others=int(row["others"]) if not pd.isna(row["others"]) else 0,
            environment=[(clean(key), clean(value, 300)) for key, value in _flat(json_object(row["environment"]))],
            commands=_commands(config, self.short[run], start),
            seeds=[self._link(other) for other in (arm.runs if arm else ()) if other != run],
            answers=[_shown(answer) for answer in firsts[:SHOWN_ANSWERS]],
            every_answer=page_of(run, "").rpartition("/")[2].removesuffix(".html") + ".answers.json" if answers else "",
        )
        return page, answers

    def _link(self, run: str) -> Text:
        """To another run's page, if the site has one."""
        known = self.runs.get(run)
        if known is None:
            return Text(clean(run))
        seed = "" if known["loss"] == "start" else f", seed {known['seed']}"
        return Text(clean(f"{self.short[run]}{seed}"), clean(run), page_of(run, "../"))

    def _facts(self, row: Mapping[Any, Any], folder: RunFolder, source: str) -> Iterator[tuple[str, Text]]:
        trained = folder.trained or {}
        start = row["loss"] == "start"
        yield "setting", Text(clean(str(row["setting"])))
        yield "objective", Text("" if start else clean(f"{row['loss']} ({source})"))
        yield "state", Text(clean(f"{row['status']}: {row['reason']}" if row["reason"] else str(row["status"])))
        for name, column in (("start model", "start"), ("begins from", "begins")):
            known = isinstance(row[column], str) and row[column] != row["run"]
            yield name, self._link(row[column]) if known and row[column] else Text("")
        yield "protocol", Text(_number(row["protocol"]))
        yield f"training {row['trained_on'] or 'pairs'}", Text(_number(row["pairs"]))
        yield "steps", Text(_number(trained.get("steps", math.nan)))
        yield "tokens trained on", Text(_number(row["tokens"]))
        seconds, memory, (part,) = row["seconds"], row["peak_memory"], timed_on(pd.DataFrame([row]))
        yield "training took", Text("" if pd.isna(seconds) else clean(f"{seconds / 60:.1f} min {part}".strip()))
        yield "memory", Text("" if pd.isna(memory) else f"{memory / 2**30:.1f} GiB")
        tuned = json_object(row["tuned"])
        yield "values come from", Text(clean(f"{row['values'] or ''}{_search(tuned)}"))
        yield "note", Text(clean(str(row["note"]) if isinstance(row["note"], str) else ""))

    def _rows(self, frame: str, run: str) -> pd.DataFrame:
        rows = self.comparable.frames.rows(frame)
        return pd.DataFrame() if rows is None else rows.of([run])

    def _answers(self, run: str) -> list[dict[str, Any]]:
        """Every answer of a run with the main judge's score."""
        answers, verdicts = self._rows("answers", run), self._rows("verdicts", run)
        if answers.empty or answers["text"].isna().all():
            return []
        keys = ["prompt", "sample"]
        kept = answers[[*keys, "kind", "instruction", "text", "tokens", "finished"]]
        if not verdicts.empty:
            main = verdicts[verdicts["judge"] == self.judge].drop_duplicates(keys)
            kept = kept.merge(main[[*keys, "score"]], on=keys, how="left")
        rows = [{str(key): _plain(value) for key, value in row.items()} for row in kept.to_dict("records")]
        return [dict(nan_as_null(row)) for row in rows]

    # -- an arm
    def arm(self, arm: Arm) -> ArmPage:
        """The page of an arm of several runs: each seed's numbers, and those of all together."""
        shown = [name for name in MAIN if any(_of(self.scores.get(run, []), name) for run in (arm.id, *arm.runs))]
        members = of_arm(self.comparable.frames["runs"], arm).sort_values(["seed", "run"], kind="stable")
        lines = [(self._link(run), run) for run in members["run"]]
        if len(arm.runs) > 1 and arm.id in self.scores:
            lines.append((Text("all seeds together"), arm.id))
        rows = [(text, [_brief(_of(self.scores.get(name, []), metric)) for metric in shown]) for text, name in lines]
        titles = [(name, metrics.METRICS[name].title) for name in shown]
        return ArmPage(clean(arm.label), look_of(arm.loss).colour, titles, rows)


HASH = re.compile(r"[0-9a-f]{32,}")
MAIN = ("pass_rate", "pass_rate_gain", "win_rate", "reward_accuracy", "length_tokens")  # metrics of an arm's page


def answers_file(answers: Sequence[Mapping[str, Any]]) -> bytes:
    return (json.dumps(answers, indent=0, ensure_ascii=True) + "\n").encode()


# ---------------------------------------------------------------- scores
def _of(rows: Sequence[Mapping[Any, Any]], metric: str) -> Mapping[Any, Any] | None:
    return next((row for row in rows if row["metric"] == metric and row["n"]), None)


def _place(row: Mapping[Any, Any]) -> tuple[int, str]:
    """In the order in which metrics are declared."""
    names = list(metrics.METRICS)
    name = str(row["metric"]).partition("@")[0]
    return names.index(name) if name in names else len(names), str(row["metric"])


def _brief(row: Mapping[Any, Any] | None) -> tuple[str, str]:
    """(value, interval)."""
    if row is None:
        return "–", ""
    score = _score(row)
    return score.value, score.interval


def _score(row: Mapping[Any, Any]) -> Score:
    known = metrics.metric(row["metric"])
    show = known.show if known else show_number
    value, low, high = (float(row[key]) for key in ("value", "low", "high"))
    unit = f" {known.unit}" if known and known.unit else ""
    interval = f"[{show(low)}, {show(high)}]" if math.isfinite(low) else ""
    better = row["better"] if isinstance(row["better"], str) else ""
    title = clean(known.title if known else str(row["metric"]))
    return Score(
        clean(str(row["metric"])),
        title,
        f"{show(value)}{unit}",
        interval,
        str(row["n"]),
        better,
        known.definition if known else "",
    )


# ---------------------------------------------------------------- curves
def _curves(steps: pd.DataFrame, colour: str) -> Iterator[Markup]:
    for title, (names, unit) in CURVES.items():
        series = [(name.rpartition("/")[2].partition("_")[0], _points(steps, name)) for name in names]
        series = [(name, points) for name, points in series if len(points) > 1]
        if series:
            yield _curve(title, unit, series, colour)


Points = list[tuple[float, float]]


def _points(steps: pd.DataFrame, name: str) -> Points:
    """(step, value) of at most `MOST_POINTS` steps: of so many neighbours the mean."""
    if name not in steps:
        return []
    known = steps[["step", name]].dropna()
    together = math.ceil(len(known) / MOST_POINTS) or 1
    grouped = known.groupby([place // together for place in range(len(known))]).mean()
    points = list(zip(grouped["step"].astype(float), grouped[name].astype(float), strict=True))
    return [(x, y) for x, y in points if math.isfinite(y)]


def _curve(title: str, unit: str, series: Sequence[tuple[str, Points]], colour: str) -> Markup:
    """One small picture. The first line has the loss's colour, a second one is dashed."""
    xs, ys = ([point[k] for _, points in series for point in points] for k in (0, 1))
    low, high, first, last = min(ys), max(ys), min(xs), max(xs)

    def place(x: float, y: float) -> str:
        across = LEFT + (WIDTH - LEFT - 4) * (x - first) / ((last - first) or 1)
        down = 6 + (HEIGHT - BOTTOM - 12) * (1 - (y - low) / ((high - low) or 1))
        return f"{across:.1f},{down:.1f}"

    lines = [
        Markup('<polyline points="{}" fill="none" stroke="{}" stroke-width="1.5"{}/>').format(
            " ".join(place(x, y) for x, y in points),
            colour if not number else "currentColor",
            Markup(' stroke-dasharray="4 3"') if number else "",
        )
        for number, (_, points) in enumerate(series)
    ]
    said = "; ".join(f"{name}: {show_number(p[0][1])} to {show_number(p[-1][1])}" for name, p in series)
    words = f"{title}{f', {unit}' if unit else ''}"
    labels = Markup('<text x="{}" y="12" class="end">{}</text><text x="{}" y="{}" class="end">{}</text>').format(
        LEFT - 5, _tick(high), LEFT - 5, HEIGHT - BOTTOM - 4, _tick(low)
    ) + Markup('<text x="{}" y="{}">step {:.0f}</text><text x="{}" y="{}" class="end">{:.0f}</text>').format(
        LEFT, HEIGHT - 3, first, WIDTH - 4, HEIGHT - 3, last
    )
    key = " and ".join([series[0][0], *(f"{name} (dashed)" for name, _ in series[1:])]) if len(series) > 1 else ""
    drawn = Markup('<svg viewBox="0 0 {} {}" role="img"><title>{}</title><desc>{}</desc>').format(
        WIDTH, HEIGHT, words, said
    )
    caption = Markup("<figcaption>{}{}</figcaption>").format(words, f": {key}" if key else "")
    return (
        Markup('<figure class="curve">')
        + drawn
        + Markup("").join(lines)
        + labels
        + Markup("</svg>")
        + caption
        + Markup("</figure>")
    )


def _tick(value: float) -> str:
    return f"{value:.1g}".replace("-", "−") if 0 < abs(value) < 1e-3 else show_number(value)


# ---------------------------------------------------------------- results by digest
def _results(folder: RunFolder) -> Iterator[Result]:
    if (trained := folder.trained) is not None:
        yield _result("train", folder.run.rpartition("/")[2], trained)
    for stage, name in sorted(folder.shown.items()):
        node = folder.node(name)
        if node.finished:
            yield _result(stage, name, node.about)


def _result(stage: str, name: str, about: Mapping[str, Any]) -> Result:
    judged = stage in ("judge", "compare", "benchmarks")  # of a judge its name, and digests
    causes = [
        (key, _digest(str(value)))
        for key, value in dict(about.get("causes", {})).items()
        if not isinstance(value, Mapping | list | None)
        and key != "protocol"
        and not (judged and key not in ("judge", "benchmark", "answers") and not HASH.fullmatch(str(value)))
    ]
    files = [(clean(str(file)), _digest(str(digest))) for file, digest in sorted(dict(about.get("files", {})).items())]
    return Result(stage, Text(clean(name)), causes, files)


def _digest(text: str) -> Text:
    """A digest by its first twelve digits; anything else as it is."""
    return Text(text[:12], text) if HASH.fullmatch(text) else Text(clean(without_paths(text), 120))


# ---------------------------------------------------------------- words
def _commands(config: Mapping[str, Any], name: str, start: bool) -> list[tuple[str, str]]:
    if start:
        return []
    return [
        ("Train and measure it again", clean(command_of(config))),
        ("Send its weights to the hub", clean(f"pobench push {quote(name)} --repo USER/NAME")),
    ]


def _search(tuned: Mapping[str, Any]) -> str:
    if not tuned:
        return ""
    return f": the best of {tuned.get('trials')} trials by {tuned.get('metric')}"


def _number(value: Any) -> str:
    return "" if value is None or pd.isna(value) else show_number(float(value))


def _flat(tree: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flat(value)
        else:
            yield str(key), without_paths(str(value))


def _plain(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else value


def _shown(row: Mapping[str, Any]) -> Answer:
    text, score = str(row["text"] or ""), row.get("score")
    mark = "" if score is None else {1.0: "passes", 0.0: "fails"}.get(float(score), f"score {float(score):.2f}")
    hidden = max(0, len(text) - LONGEST_ANSWER)
    return Answer(
        clean(str(row["instruction"] or row["prompt"]), LONGEST_ANSWER), clean(text[:LONGEST_ANSWER]), hidden, mark
    )


# ---------------------------------------------------------------- the page itself
def render_page(page: RunPage | ArmPage) -> str:
    """The page as one string; it loads nothing, and runs no script but its own."""
    folder = importlib.resources.files("pobench.reports")
    read = {name: (folder / name).read_text("utf-8") for name in ("run.html", "report.css", "report.js")}
    template = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    ).from_string(read["run.html"])
    return template.render(
        page=page,
        is_arm=isinstance(page, ArmPage),
        version=importlib.metadata.version("pobench"),
        css=Markup(read["report.css"]),
        js=Markup(read["report.js"]),
        js_hash=base64.b64encode(hashlib.sha256(read["report.js"].encode()).digest()).decode(),
    )
