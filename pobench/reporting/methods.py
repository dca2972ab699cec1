"""What a paper says of runs: a paragraph on the methods, and references as BibTeX.

Each clause is made from what is stored; what is not stored is left out."""

from __future__ import annotations

import importlib.metadata
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import pandas as pd

from pobench.reporting.run_facts import shown_source, title_of, without_paths
from pobench.reporting.tables import clean, listing, markdown
from pobench.results.arms import GREEK, Arm, json_object, judges_of, of_arm, settings_of, show_setting
from pobench.results.comparable import Comparable
from pobench.results.crossed import LEVEL, VERDICT_SEEDS
from pobench.results.scores import DISTINCT

ARXIV = re.compile(r"arXiv[: ]*(\d{4}\.\d{4,5})")
WHERE = {
    "tuned": "chosen by a search",
    "paper": "those of the paper that the setting names",
    "default": "the defaults of losses and setting",
    "set": "set by hand",
}

Config = Mapping[str, Any]


def methods(comparable: Comparable, configs: Mapping[str, Config]) -> str:
    """A paragraph in Markdown. configs: run → its configuration."""
    runs = comparable.home.frames["runs"]
    trained = runs[(runs["loss"] != "start") & (runs["status"] == "finished")]
    own = [configs[run] for run in trained["run"] if run in configs]
    any_of_it = own or [configs[run] for run in runs["run"] if run in configs]
    sentences = [
        *_models(comparable, trained, any_of_it),
        *_training(trained, own),
        *_values(comparable.home.trained, trained),
        *_seeds(trained),
        *_measured(comparable, any_of_it),
        *_statistics(comparable, trained),
        *_machine(runs),
    ]
    return (
        f"## {markdown(comparable.title)}\n\n"
        + " ".join(markdown(clean(without_paths(sentence))) for sentence in sentences)
        + "\n"
    )


# ---------------------------------------------------------------- clause by clause
def _models(comparable: Comparable, trained: pd.DataFrame, configs: Sequence[Config]) -> Iterator[str]:
    start = _one(configs, "model", "source")
    losses = [f"{arm.label}{_cited(arm.loss)}" for arm in comparable.home.trained]
    if losses:
        from_start = f" from {shown_source(start)}" if start else ""
        yield f"We trained models{from_start} with {listing(losses)}, by pobench {importlib.metadata.version('pobench')}."
    if note := _one(configs, "model", "note"):
        yield str(note)
    counts = sorted({int(count) for count in trained["pairs"].dropna()})
    read = sorted({str(unit) for unit in trained["trained_on"].dropna()} - {""})
    source = _one(configs, "data", "source")
    if counts and len(read) == 1:
        amount = str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
        yield f"Training used {amount} preference {read[0]}{f' of {shown_source(source)}' if source else ''}."


def _cited(loss: str) -> str:
    numbers = ARXIV.findall(title_of(loss)[1])
    return f" (arXiv {listing(numbers)})" if numbers else ""


def _training(trained: pd.DataFrame, configs: Sequence[Config]) -> Iterator[str]:
    parts = []
    if (epochs := _one(configs, "train", "epochs")) is not None:
        parts.append(f"{show_setting(epochs)} epoch{'' if epochs == 1 else 's'}")
    if (batch := _one(configs, "train", "batch_size")) is not None:
        parts.append(f"batches of {batch}")
    if schedule := _one(configs, "train", "schedule"):
        warm = _one(configs, "train", "warmup_ratio")
        parts.append(
            f"a {schedule} schedule"
            + (f" behind a warm-up of {show_setting(100 * warm)} % of the steps" if warm else "")
        )
    if (decay := _one(configs, "train", "weight_decay")) is not None:
        parts.append(f"weight decay {show_setting(decay)}")
    if norm := _one(configs, "train", "max_grad_norm"):
        parts.append(f"gradients clipped at {show_setting(norm)}")
    if length := _one(configs, "data", "max_length"):
        parts.append(f"at most {length} tokens a sequence")
    if parts:
        yield f"Each run took {listing(parts)}."
    if _one(configs, "train", "adapter"):
        yield "Low-rank adapters were trained, not all weights."


def _values(arms: Sequence[Arm], trained: pd.DataFrame) -> Iterator[str]:
    """Of each loss its learning rate and settings, by where they come from."""
    by_source: dict[str, list[str]] = {}
    for arm in arms:
        rows = of_arm(trained, arm)
        if rows.empty:
            continue
        row = rows.iloc[0]
        source = WHERE.get(str(row["values"]), "")
        if row["values"] == "tuned" and not pd.isna(row["trials"]):
            source += f" of {int(row['trials'])} trials for each loss"
        values = {"learning rate": row["lr"], **settings_of(row)}
        named = [
            f"{GREEK.get(k, k)} = {show_setting(v)}" for k, v in values.items() if v is not None and not pd.isna(v)
        ]
        by_source.setdefault(source, []).append(f"{arm.label}: {', '.join(named)}")
    for source, texts in by_source.items():
        head = (
            f"Learning rates and the losses' own settings were {source}"
            if source
            else "Learning rates and settings were"
        )
        yield f"{head} ({'; '.join(texts)})."


def _seeds(trained: pd.DataFrame) -> Iterator[str]:
    by_loss = trained.groupby("loss")["seed"].unique()
    sets = {tuple(sorted(map(int, seeds))) for seeds in by_loss}
    if len(sets) == 1:
        (seeds,) = sets
        count = "one seed" if len(seeds) == 1 else f"{len(seeds)} seeds"
        yield f"Every loss was trained with {count} ({', '.join(map(str, seeds))})."
    elif sets:
        yield f"Losses were trained with {min(map(len, sets))} to {max(map(len, sets))} seeds each."


def _measured(comparable: Comparable, configs: Sequence[Config]) -> Iterator[str]:
    frames = comparable.home.frames
    if answers := frames.rows("answers"):
        count = answers.distinct(*DISTINCT["answers"][0])["prompt"].nunique()
        of = _one(configs, "answers", "source")
        text = f"Models answered {count} prompts{f' of {shown_source(of)}' if of else ''}"
        yield f"{text}{_decoding(configs)}."
    verdicts = frames.rows("verdicts")
    if judges := (judges_of(verdicts) if verdicts else []):
        yield f"Answers were judged by {listing(judges)}; gains are over the start model, paired by prompt."
    if heldout := frames.rows("heldout"):
        pairs = heldout.distinct(*DISTINCT["heldout"][0])["pair"].nunique()
        yield f"Rewards and log-probabilities were measured on {pairs} held-out pairs."


def _decoding(configs: Sequence[Config]) -> str:
    samples, temperature, top_p, longest = (
        _one(configs, "answers", name) for name in ("samples", "temperature", "top_p", "max_new_tokens")
    )
    parts = []
    if samples is not None:
        parts.append(f"{samples} sample{'' if samples == 1 else 's'} each")
    if temperature is not None:
        parts.append("greedily" if temperature == 0 else f"at temperature {show_setting(temperature)}")
    if top_p is not None and temperature != 0:
        parts.append(f"top-p {show_setting(top_p)}")
    if longest is not None:
        parts.append(f"at most {longest} new tokens")
    return f", {', '.join(parts)}" if parts else ""


def _statistics(comparable: Comparable, trained: pd.DataFrame) -> Iterator[str]:
    if comparable.frames["scores"].empty:
        return
    seeds = trained.groupby("loss")["seed"].nunique()
    confidence = f"{show_setting(100 * LEVEL)} %"
    if len(seeds) and seeds.min() > 1:
        yield f"Intervals hold at {confidence} for other prompts and other seeds, by analysis of variance."
    else:
        yield (
            f"Intervals of losses with one seed hold at {confidence} for other prompts alone, by a bootstrap of whole prompts; "
            "they do not cover the luck of training."
        )
    if len(seeds) > 1:
        yield (
            f"Two losses are called different only if both were tuned alike and have at least {VERDICT_SEEDS} seeds, and after "
            "Holm's correction over all pairs."
        )


def _machine(runs: pd.DataFrame) -> Iterator[str]:
    environments = [json_object(text) for text in runs["environment"]]
    packages = [
        f"{name} {version}" for name in ("torch", "transformers") if (version := _one(environments, "packages", name))
    ]
    facts = {name: {str(env[name]) for env in environments if name in env} for name in ("precision", "device")}
    known = {name: values.pop() for name, values in facts.items() if len(values) == 1}
    if packages or known:
        where = f" on {known['device']}" if "device" in known else ""
        how = f" in {known['precision']}" if "precision" in known else ""
        yield f"Everything was computed{how}{where}{f' with {listing(packages)}' if packages else ''}."
    protocols = {int(p) for p in runs["protocol"].dropna()}
    if len(protocols) == 1:
        yield f"Results are of pobench's protocol {protocols.pop()}."


def _one(configs: Iterable[Config], section: str, key: str) -> Any:
    """The value that all runs share; None where they differ or it is not stored."""
    values = [(config.get(section) or {}).get(key) for config in configs]
    return values[0] if values and all(value == values[0] for value in values) else None


# ---------------------------------------------------------------- references
def bibtex(losses: Iterable[str]) -> str:
    """pobench and the papers of the losses, by what their sources say; a source says no title, so none is there."""
    entries = [
        "@software{pobench,\n"
        "  title   = {pobench: a benchmark suite for preference-optimization losses},\n"
        f"  version = {{{importlib.metadata.version('pobench')}}}\n}}"
    ]
    papers: dict[str, list[str]] = {}
    others = []
    for loss in sorted(set(losses)):
        title, source, _ = title_of(loss)
        numbers = list(dict.fromkeys(ARXIV.findall(source)))
        for number in numbers:
            papers.setdefault(number, []).append(f"{title}: {source}")
        if not numbers:
            others.append(f"% {_tex(title)}: {_tex(source)}")
    for number, notes in sorted(papers.items()):
        entries.append(
            f"@misc{{arxiv:{number},\n  eprint        = {{{number}}},\n  archiveprefix = {{arXiv}},\n"
            f"  note          = {{{_tex('; '.join(notes))}}}\n}}"
        )
    return "\n\n".join(entries + (["\n".join(others)] if others else [])) + "\n"


def _tex(text: str) -> str:
    """On one line, without what would end an entry."""
    plain = re.sub(r"[{}\\@%\s]+", " ", clean(text)).strip()
    return re.sub(r"([&#_$])", r"\\\1", plain)
