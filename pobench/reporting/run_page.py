"""The page of one run in a shared site: what it is, its values with their sources, its scores, curves, results by digest,
environment, answers, and the commands that make it again. An arm, whose runs differ in the seed alone, has a page that lists
them, and so have runs that are too many for a page each."""

from __future__ import annotations

import base64
import hashlib
import importlib.metadata
import importlib.resources
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from shlex import quote
from typing import Any, NamedTuple

import jinja2
import numpy as np
import pandas as pd
from markupsafe import Markup

from pobench.printing import size
from pobench.reporting.answers import INDEX, file_of
from pobench.reporting.looks import START, look_of
from pobench.reporting.run_facts import command_of, title_of, values_of, without_paths
from pobench.reporting.tables import clean, show_number
from pobench.results import metrics
from pobench.results.arms import Arm, arms_of, json_object, main_judge, of_arm
from pobench.results.comparable import Comparable
from pobench.results.few_runs import timed_on
from pobench.results.run_folder import RunFolder, short_names

SHOWN_ANSWERS = 12
LONGEST_ANSWER = 2000  # characters on the page; the file of all answers has all
LONGEST_LIST = 1000  # runs on a page that lists them
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
CURVE_COLUMNS = ("step", *(name for names, _ in CURVES.values() for name in names))


# ---------------------------------------------------------------- where a page lies
def page_of(name: str) -> str:
    """The path of the page of a run, an arm or a list in the site, of plain letters alone, whatever the name is made of."""
    setting, _, folder = name.partition("/")
    plain = [re.sub(r"[^A-Za-z0-9._~-]", "-", part).lstrip(".")[:100] for part in (setting, folder)]
    if plain != [setting, folder] or not all(plain):
        plain[1] += "-" + hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:12]
    return f"runs/{plain[0] or 'setting'}/{plain[1]}.html"


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
    every_answer: str  # the address of the file that has all, and those of its other seeds
    prompts: str  # the address of the file of their prompts
    kicker: str = "One run"


class Row(NamedTuple):
    """A run on a page of several. words: behind its name. cells: (value, interval). id: its anchor."""

    run: Text
    words: list[str]
    cells: list[tuple[str, str]]
    id: str = ""


@dataclass
class ListPage:
    """What the template of a page of several runs reads."""

    kicker: str
    title: str
    colour: str
    words: list[str]  # heads of the words of each row
    heads: list[tuple[str, str]]  # of its cells: metric, title
    rows: list[Row]
    note: str


@dataclass
class Pages:
    """The pages of a group of runs that may be compared.

    folder: of a run's name. configs: run → its configuration, of the runs that have a page; the others are rows of pages that
    list them. scored: rows of the frame `scores`. answers: the folder of the files of all answers, seen from the site's; ""
    where there is none. number: the group's, by which its lists are called.
    """

    comparable: Comparable
    folder: Callable[[str], RunFolder]
    configs: Mapping[str, Mapping[str, Any]]
    scored: pd.DataFrame
    answers: str = ""
    number: int = 1

    @cached_property
    def runs(self) -> dict[str, dict[Any, Any]]:
        return {str(row["run"]): row for row in self.comparable.frames["runs"].to_dict("records")}

    @cached_property
    def short(self) -> dict[str, str]:
        return short_names(self.runs)

    @cached_property
    def arm_of(self) -> dict[str, Arm]:
        arms = arms_of(self.comparable.frames["runs"], every_round=True)
        return {run: arm for arm in arms for run in arm.runs}

    @cached_property
    def scores(self) -> dict[str, list[dict[Any, Any]]]:
        """Run or arm → its rows."""
        return {str(run): rows.to_dict("records") for run, rows in self.scored.groupby("run", sort=False)}

    @cached_property
    def judge(self) -> str:
        verdicts = self.comparable.frames.rows("verdicts")
        return main_judge(verdicts)

    # -- which pages there are, and where a run stands
    @cached_property
    def lists(self) -> dict[str, list[str]]:
        """Path of a page → its runs: those without a page of their own, arm by arm."""
        listed = [run for run in dict.fromkeys([*self.arm_of, *self.runs]) if run not in self.configs]
        parts = [listed[at : at + LONGEST_LIST] for at in range(0, len(listed), LONGEST_LIST)]
        return {
            page_of(f"{self.comparable.setting}/~others-{self.number}-{n}"): part for n, part in enumerate(parts, 1)
        }

    @cached_property
    def addresses(self) -> dict[str, str]:
        """Run → where it stands, seen from the site's folder."""
        rows = {run: f"{page}#{_anchor(run)}" for page, listed in self.lists.items() for run in listed}
        return {run: page_of(run) for run in self.configs if run in self.runs} | rows

    def address_of_arm(self, arm: Arm) -> str:
        """A single run stands for its arm, and for one whose runs have no page the first does."""
        alone = len(arm.runs) == 1 or arm.runs[0] not in self.configs
        return self.addresses[arm.runs[0]] if alone else page_of(arm.id)

    def written(self) -> Iterator[tuple[str, RunPage | ListPage]]:
        """(path, page) of every page."""
        for run in self.runs:
            if run in self.configs:
                yield page_of(run), self.run(run)
        for arm in self.comparable.every_arm.arms:
            if len(arm.runs) > 1 and arm.runs[0] in self.configs:
                yield page_of(arm.id), self.arm(arm)
        for page, listed in self.lists.items():
            yield page, self.listing(listed)

    # -- a run
    def run(self, run: str) -> RunPage:
        row, folder, arm = self.runs[run], self.folder(run), self.arm_of.get(run)
        config = self.configs[run]
        start = row["loss"] == "start"
        title, source, formula = ("Start model", "", []) if start else title_of(row["loss"])
        label = title if start else arm.label if arm else title
        values = [(clean(key), clean(value, 600), clean(where, 300)) for key, value, where in values_of(config)]
        answers = self._answers(run)
        beside = f"../../{self.answers}/" if answers and arm and self.answers else ""
        trained = folder.trained
        return RunPage(
            title=clean(label if start else f"{label}, seed {row['seed']}"),
            colour=START.colour if start else look_of(row["loss"]).colour,
            name=clean(run),
            facts=[(name, text) for name, text in self._facts(row, trained or {}, source) if text.text],
            formula=clean("\n".join(formula)),
            scores=[_score(row) for row in sorted(self.scores.get(run, []), key=_place) if row["n"]],
            curves=list(_curves(self._rows("steps", run, CURVE_COLUMNS), look_of(row["loss"]).colour)),
            values=[value for value in values if value[2] != "default"],
            defaults=[value for value in values if value[2] == "default"],
            results=list(_results(folder, trained)),
            others=int(row["others"]) if not pd.isna(row["others"]) else 0,
            environment=[(clean(key), clean(value, 300)) for key, value in _flat(json_object(row["environment"]))],
            commands=_commands(config, self.short[run], start),
            seeds=[self._link(other) for other in (arm.runs if arm else ()) if other != run],
            answers=answers,
            every_answer=f"{beside}{file_of(arm)}" if beside and arm else "",
            prompts=f"{beside}{INDEX}" if beside else "",
        )

    def _link(self, run: str) -> Text:
        """To another run's page or row, if the site has one."""
        known = self.runs.get(run)
        if known is None:
            return Text(clean(run))
        seed = "" if known["loss"] == "start" else f", seed {known['seed']}"
        return Text(clean(f"{self.short[run]}{seed}"), clean(run), f"../{self.addresses[run].removeprefix('runs/')}")

    def _facts(self, row: Mapping[Any, Any], trained: Mapping[str, Any], source: str) -> Iterator[tuple[str, Text]]:
        start = row["loss"] == "start"
        yield "setting", Text(clean(str(row["setting"])))
        yield "objective", Text("" if start else clean(f"{row['loss']} ({source})"))
        yield "state", Text(clean(_state(row)))
        for name, column in (("start model", "start"), ("begins from", "begins")):
            known = isinstance(row[column], str) and row[column] != row["run"]
            yield name, self._link(row[column]) if known and row[column] else Text("")
        yield "protocol", Text(_number(row["protocol"]))
        yield f"training {row['trained_on'] or 'pairs'}", Text(_number(row["pairs"]))
        yield "steps", Text(_number(trained.get("steps", math.nan)))
        yield "tokens trained on", Text(_number(row["tokens"]))
        seconds, memory, (part,) = row["seconds"], row["peak_memory"], timed_on(pd.DataFrame([row]))
        yield "training took", Text("" if pd.isna(seconds) else clean(f"{seconds / 60:.1f} min {part}".strip()))
        yield "memory", Text("" if pd.isna(memory) else size(memory))
        tuned = json_object(row["tuned"])
        yield "values come from", Text(clean(f"{row['values'] or ''}{_search(tuned)}"))
        yield "note", Text(clean(str(row["note"]) if isinstance(row["note"], str) else ""))

    def _rows(self, frame: str, run: str, columns: Sequence[str]) -> pd.DataFrame:
        rows = self.comparable.frames.rows(frame)
        return pd.DataFrame() if rows is None else rows.of([run], columns)

    def _answers(self, run: str) -> list[Answer]:
        """The first answers of a run, with the main judge's score."""
        answers = self._rows("answers", run, ("prompt", "sample", "instruction", "text"))
        if answers.empty or answers["text"].isna().all():
            return []
        shown = answers[answers["sample"] == answers["sample"].iloc[0]].head(SHOWN_ANSWERS)
        verdicts = self._rows("verdicts", run, ("prompt", "sample", "judge", "score"))
        scores: dict[tuple[Any, Any], float] = {}
        if len(verdicts):
            own = verdicts[(verdicts["judge"] == self.judge) & verdicts["prompt"].isin(shown["prompt"])]
            for prompt, sample, score in zip(own["prompt"], own["sample"], own["score"], strict=True):
                scores.setdefault((prompt, sample), float(score))
        rows = shown.to_dict("records")
        return [_shown(row, scores.get((row["prompt"], row["sample"]), math.nan)) for row in rows]

    # -- several runs
    def arm(self, arm: Arm) -> ListPage:
        """The page of an arm of several runs: each seed's numbers, and those of all together."""
        members = of_arm(self.comparable.frames["runs"], arm).sort_values(["seed", "run"], kind="stable")
        lines = [(self._link(run), run) for run in members["run"]]
        if arm.id in self.scores:
            lines.append((Text("all seeds together"), arm.id))
        heads = self._heads([arm.id, *arm.runs])
        rows = [Row(text, [], self._cells(name, heads)) for text, name in lines]
        note = "In brackets: 95 % interval; of a single run for other prompts or pairs alone."
        return ListPage("A loss, seed by seed", clean(arm.label), look_of(arm.loss).colour, [], heads, rows, note)

    def listing(self, listed: Sequence[str]) -> ListPage:
        """A page of runs that have none of their own."""
        heads, rows = self._heads(listed), []
        for run in listed:
            row, arm = self.runs[run], self.arm_of.get(run)
            label = clean(arm.label if arm else str(row["title"]))
            seed = "–" if row["loss"] == "start" else str(row["seed"])
            name = Text(clean(self.short[run]), clean(run))
            rows.append(Row(name, [label, seed, clean(_state(row))], self._cells(run, heads), _anchor(run)))
        note = (
            "This site has a page for each loss with its setting’s own values; these runs have others. Their values, where "
            "those come from, and their environments are in data/runs.parquet. In brackets: 95 % interval, for other prompts "
            "or pairs."
        )
        title = f"Further runs of {clean(self.comparable.title, 120)}"
        return ListPage("Runs", title, START.colour, ["Loss", "Seed", "State"], heads, rows, note)

    def _heads(self, names: Sequence[str]) -> list[tuple[str, str]]:
        """(metric, title) of the main metrics that one of these runs or arms has."""
        shown = [name for name in MAIN if any(_of(self.scores.get(run, []), name) for run in names)]
        return [(name, metrics.METRICS[name].title) for name in shown]

    def _cells(self, name: str, heads: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
        return [_brief(_of(self.scores.get(name, []), metric)) for metric, _ in heads]


HASH = re.compile(r"[0-9a-f]{32,}")
MAIN = (
    "pass_rate",
    "pass_rate_gain",
    "win_rate",
    "reward_accuracy",
    "length_tokens",
)  # metrics of a page of several runs


def _anchor(run: str) -> str:
    return page_of(run).rpartition("/")[2].removesuffix(".html")


def _state(row: Mapping[Any, Any]) -> str:
    return f"{row['status']}: {row['reason']}" if row["reason"] else str(row["status"])


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
    known = steps[["step", name]].dropna().to_numpy(float)  # (steps, 2)
    together = math.ceil(len(known) / MOST_POINTS) or 1
    firsts = np.arange(0, len(known), together)
    if not len(known):
        return []
    counts = np.diff(firsts, append=len(known))
    means = np.add.reduceat(known, firsts) / counts[:, None]
    return [(x, y) for x, y in means.tolist() if math.isfinite(y)]


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
def _results(folder: RunFolder, trained: Mapping[str, Any] | None) -> Iterator[Result]:
    if trained is not None:
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


def _shown(row: Mapping[Any, Any], score: float) -> Answer:
    """score: nan where there is none."""
    text, instruction = ("" if pd.isna(row[name]) else str(row[name]) for name in ("text", "instruction"))
    mark = "" if math.isnan(score) else {1.0: "passes", 0.0: "fails"}.get(score, f"score {score:.2f}")
    hidden = max(0, len(text) - LONGEST_ANSWER)
    asked = clean(instruction or str(row["prompt"]), LONGEST_ANSWER)
    return Answer(asked, clean(text[:LONGEST_ANSWER]), hidden, mark)


# ---------------------------------------------------------------- the page itself
def render_page(page: RunPage | ListPage) -> str:
    """The page as one string; it loads nothing, and runs no script but its own."""
    return _template().render(page=page, is_list=isinstance(page, ListPage))


@cache
def _template() -> jinja2.Template:
    """Compiled once for all pages, with what they share."""
    folder = importlib.resources.files("pobench.reports")
    read = {name: (folder / name).read_text("utf-8") for name in ("run.html", "report.css", "report.js")}
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    shared = {
        "version": importlib.metadata.version("pobench"),
        "css": Markup(read["report.css"]),
        "js": Markup(read["report.js"]),
        "js_hash": base64.b64encode(hashlib.sha256(read["report.js"].encode()).digest()).decode(),
    }
    return environment.from_string(read["run.html"], globals=shared)
