"""A trained run as a model card of the Hugging Face hub: what it was trained on, its scores with intervals, how to repeat it.

A card leaves the machine, so it names no path of it, and of the judge the name alone.
"""

from __future__ import annotations

import importlib.metadata
import importlib.resources
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2

from pobench.reporting.run_facts import command_of, on_hub, shown_source, title_of, values_of
from pobench.reporting.tables import markdown, show_number
from pobench.results import metrics
from pobench.results.run_folder import RunFolder, run_names
from pobench.results.scores import scores_of

# What a card says of the training, by the section and key of a run's configuration.
TRAINING = (
    ("start weights", "model", "source"),
    ("pairs from", "data", "source"),
    ("held-out pairs from", "data", "held_out"),
    ("prompts answered", "answers", "source"),
    ("judge", "judge", "name"),
)


def model_card(runs: Path, run: str, repo: str, licence: str | None = None) -> str:
    """The text of a card, with the metadata that the hub reads: scores stand there as `model-index`.

    run: `<setting>/<folder>`, whose training has finished. licence: its identifier on the hub; None: not stated.
    """
    from huggingface_hub import ModelCardData

    folder = RunFolder(runs, run)
    config = folder.config
    title = f"{title_of(config['loss'])[0]} on {config['setting']}"
    scores = [row for row in scores_of(runs, run) if row["n"] and row["value"] is not None]
    adapter = config["train"]["adapter"] is not None and not config["train"]["adapter"]["merge"]
    base, data = config["model"]["source"], config["data"]["source"]
    about = ModelCardData(
        base_model=base if on_hub(base) else None,
        datasets=[data] if on_hub(data) else None,
        eval_results=_results(scores, config) or None,
        library_name="peft" if adapter else "transformers",
        license=licence,
        model_name=title,
        pipeline_tag="text-generation",
        tags=["pobench", "preference-optimization", config["loss"].split("(")[0].strip()],
    )
    text = _template().render(
        title=markdown(title), about={**_about(runs, run, config, scores), "repo": repo, "adapter": adapter}
    )
    return f"---\n{about.to_yaml()}\n---\n\n{text}"


def _template() -> jinja2.Template:
    source = (importlib.resources.files("pobench.reports") / "model_card.md").read_text("utf-8")
    pages = jinja2.Environment(undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True, autoescape=False)  # nosec B701
    return pages.from_string(source)


def _about(runs: Path, run: str, config: Mapping[str, Any], scores: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The facts of the page, as Markdown that says what it says: every value from a file is escaped."""
    trained = RunFolder(runs, run).trained or {}
    title, source, formula = title_of(config["loss"])
    facts = [(name, shown_source(config[section][key])) for name, section, key in TRAINING if config[section][key]]
    facts.append(("training pairs, steps", f"{trained['pairs']}, {trained['steps']}"))
    return {
        "title": markdown(title),
        "source": markdown(source),
        "formula": formula,
        "version": importlib.metadata.version("pobench"),
        "seed": config["seed"],
        "start": markdown(shown_source(config["model"]["source"])),
        "training": [(name, markdown(value)) for name, value in facts],
        "settings": _values(config),
        "measured": _measured(config, scores),
        "scores": [_row(row) for row in scores],
        "luck": _luck(runs, run, config),
        "command": command_of(config),
        "repeat": "The digits depend on the kind of processor; the setting's other values are those that ship under its name.",
    }


def _values(config: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Learning rate, batch and the loss's own settings, each with its source as the setting or the command gave it."""
    shared = ("train.lr", "train.epochs", "train.batch_size")
    shown = [row for row in values_of(config) if row[0] in shared or row[0].startswith(f"{config['loss']}.")]
    return [(name, markdown(value), markdown(where)) for name, value, where in shown]


def _measured(config: Mapping[str, Any], scores: Sequence[Mapping[str, Any]]) -> str:
    if not scores:
        return "Nothing was measured."
    judge = config["judge"]["name"]
    asked = (
        f"the prompts of {shown_source(config['answers']['source'])}" if config["answers"]["source"] else "no prompts"
    )
    text = f"Answers to {asked}" + (f", scored by the judge `{judge}`." if judge else ", not judged.")
    return f"{markdown(text)} Gains are over the start model, paired by prompt."


def _row(row: Mapping[str, Any]) -> dict[str, str]:
    """A score as the report prints it."""
    known = metrics.metric(row["metric"])
    show = known.show if known else show_number
    value, low, high = (math.nan if row[k] is None else float(row[k]) for k in ("value", "low", "high"))
    unit = f" {known.unit}" if known and known.unit else ""
    return {
        "title": markdown(known.title if known else row["metric"]),
        "value": f"{show(value)}{unit}",
        "interval": f"[{show(low)}, {show(high)}]" if math.isfinite(low) else "–",
        "n": str(row["n"]),
        "better": row["better"] or "–",
    }


def _luck(runs: Path, run: str, config: Mapping[str, Any]) -> str:
    """What the intervals do not cover, and how many other seeds lie beside the run."""
    alike = ("setting", "loss", "loss_settings")
    others = 0
    for name in run_names(runs):
        if name != run and name.partition("/")[0] == run.partition("/")[0]:
            other = RunFolder(runs, name)
            others += other.trained is not None and all(other.config[key] == config[key] for key in alike)
    text = (
        "The intervals are over prompts or pairs. They do not cover what another seed of the same training would give"
    )
    return (
        f"{text}; {others} other run{'' if others == 1 else 's'} of this loss with these values exist."
        if others
        else f"{text}."
    )


def _results(scores: Sequence[Mapping[str, Any]], config: Mapping[str, Any]) -> list[Any]:
    """The scores as the hub's `model-index` has them. It knows no intervals; those stand in the name."""
    from huggingface_hub import EvalResult

    name = shown_source(config["answers"]["source"] or config["data"]["source"])
    results = []
    for row in scores:
        known, shown = metrics.metric(row["metric"]), _row(row)
        results.append(
            EvalResult(
                task_type="text-generation",
                task_name="Preference optimisation",
                dataset_type=re.sub(r"[^\w./-]+", "-", name),
                dataset_name=name,
                metric_type=row["metric"],
                metric_name=f"{known.title if known else row['metric']}, 95 % {shown['interval']}, n = {row['n']}",
                metric_value=row["value"],
            )
        )
    return results
