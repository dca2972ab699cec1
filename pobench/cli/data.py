"""pobench data: audit and inspect preference data, or make pairs from a model's own answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from pobench.cli.group import STYLE, Group
from pobench.cli.options import (
    Debug,
    Json,
    ModelName,
    Plugins,
    Sets,
    SettingName,
    load_plugins,
    parse_each,
    raise_faults,
)
from pobench.cli.terminal import escape, out
from pobench.errors import PobenchError, or_fault
from pobench.printing import say, say_json

Units = Literal["pairs", "lists", "answers"]
app = typer.Typer(cls=Group, **STYLE)

PairsFile = Annotated[
    str | None,
    typer.Argument(help="A file, folder, pattern, `builtin:…` or hub name; default: the setting's own data."),
]
AsUnit = Annotated[
    Units | None,
    typer.Option("--unit", help="Pairs, the ranked lists or the labelled answers; default: pairs, or what there is."),
]


@app.callback()
def data() -> None:
    """Look at preference data, or make pairs from a model's own answers."""


def _job(setting: str, data: str | None, model: str | None, sets: list[str] | None) -> Any:
    """A job of the setting; its data and model do not depend on the loss."""
    from pobench.registry import list_losses
    from pobench.settings.resolve import parse_overrides, resolve

    return resolve(setting, list_losses()[0], data=data, model=model, overrides=parse_overrides(sets or []))[0]


@app.command()
def audit(
    file: PairsFile = None,
    setting: SettingName = "smollm2",
    model: ModelName = None,
    characters: Annotated[
        bool, typer.Option("--characters", help="Measure lengths in characters, without a tokenizer.")
    ] = False,
    sets: Sets = None,
    debug: Debug = False,
) -> None:
    """Count and list what is wrong with preference data. Nothing is trained or written."""
    from pobench.cli.show_pairs import render_audit
    from pobench.data.audit import Audit
    from pobench.data.prepare import read_preferences, read_sources

    job = _job(setting, file, model, [*(sets or []), "data.on_bad_row=drop"])
    audits = (
        map(Audit.of_file, read_preferences(job)) if characters else (read.items.audit for read in read_sources(job))
    )
    for part, audit in zip(job.data.parts, audits, strict=True):
        if part.name:
            weight = "" if part.weight is None else f", weight {part.weight:g}"
            out.print(f"{part.name}{weight}:", highlight=False, markup=False)
        out.print(render_audit(audit))


@app.command()
def convert(
    file: Annotated[str, typer.Argument(help="A file, folder, pattern, `builtin:…` or hub name.")],
    to: Annotated[
        Path, typer.Option("--out", help="JSONL file for the rows, such as id, prompt, chosen, rejected, row.")
    ],
    setting: SettingName = "smollm2",
    unit: AsUnit = None,
    sets: Sets = None,
    debug: Debug = False,
) -> None:
    """Write preference data as it is read, in one plain shape. No tokenizer is needed."""
    from pobench.data.audit import Audit
    from pobench.data.prepare import of_unit, read_preferences, source_files
    from pobench.data.rows import preference_lines, refuse
    from pobench.files import write_text

    job = _job(setting, file, None, sets)
    (loaded,) = read_preferences(job)
    if job.data.on_bad_row == "stop":
        refuse(loaded.faults, source=loaded.source, rows=loaded.rows)
    if not (loaded.preferences or loaded.answers):
        raise PobenchError(f"{Audit.of_file(loaded).text()}\nno pair is left; {str(to)!r} is not written")
    unit = unit or ("pairs" if loaded.preferences else "answers")
    there: dict[Units, Any] = {"pairs": loaded.preferences, "lists": loaded.lists, "answers": loaded.answers}
    rows = of_unit(loaded.source, there, unit)
    if to.is_dir() or not to.parent.is_dir():
        raise PobenchError(
            f"--out {str(to)!r}: {'a folder; name a file' if to.is_dir() else 'its folder does not exist'}"
        )
    if to.resolve() in [path.resolve() for path in source_files(job)["pairs"].paths]:
        raise PobenchError(f"--out {str(to)!r}: the data themselves; name another file")
    write_text(to, preference_lines(rows))
    out.print(Audit.of_file(loaded).text(), highlight=False, markup=False)
    if own := "lists" if loaded.lists else "answers" if loaded.answers else "":
        other = f"; --unit {own} writes the {own} themselves" if unit == "pairs" else ""
        out.print(f"{len(rows)} {unit} written{other}", highlight=False, markup=False)
    out.print(f"{unit}: {to}", highlight=False, markup=False)


@app.command()
def inspect(
    file: PairsFile = None,
    rows: Annotated[
        int | None, typer.Option(min=1, help="How many pairs; default: 3, with --json or --rehearse all.")
    ] = None,
    unit: AsUnit = None,
    ids: Annotated[bool, typer.Option("--ids", help="Show token ids.")] = False,
    setting: Annotated[
        str | None,
        typer.Option(help="A shipped setting or a YAML path; default: smollm2, with --rehearse every shipped one."),
    ] = None,
    model: ModelName = None,
    rehearse: Annotated[
        bool, typer.Option("--rehearse", help="Offline, with a stand-in tokenizer and rows like the real ones.")
    ] = False,
    sets: Sets = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Token ids for machines: id, prompt, chosen, rejected, asked, counted_from.")
    ] = False,
    debug: Debug = False,
) -> None:
    """Show what the model will see: tokens, the cut between prompt and response, both responses in colour.

    With --rehearse: check that each shipped setting trains on the prompt tokens that generation asks with.
    """
    from pobench.cli.show_pairs import render_inspection
    from pobench.data.prepare import inspect_items, read_sources

    sets = [*(sets or []), "data.on_bad_row=drop"]
    if rehearse:
        _inspect_rehearsed(setting, file, model, sets, rows, as_json)
    elif as_json:
        _print_rows([row.row() for row in inspect_items(_job(setting or "smollm2", file, model, sets), rows, unit)])
    else:
        for read in read_sources(_job(setting or "smollm2", file, model, sets)):
            if read.name:
                out.print(f"{read.name}:", highlight=False, markup=False)
            out.print(render_inspection(read.of_unit(unit), read.chat, rows=rows or 3, ids=ids))


def _inspect_rehearsed(
    setting: str | None, file: str | None, model: str | None, sets: list[str], rows: int | None, as_json: bool
) -> None:
    """Inspect one setting, or all that ship, over stand-ins. Raises PobenchError that names those whose prompts are not what
    generation asks with."""
    from pobench.data.prepare import inspect_items
    from pobench.runs.rehearsal import rehearse
    from pobench.settings.read import list_settings

    faults: list[str] = []
    inspected_rows: list[dict[str, Any]] = []
    for name in [setting] if setting else list_settings():

        def inspected(name: str = name) -> Any:
            return inspect_items(rehearse([_job(name, file, model, sets)])[0], rows)

        pairs = or_fault(faults, inspected)
        if pairs is None:
            faults[-1] = f"{name}: {faults[-1]}"
            continue
        different = [pair.id for pair in pairs if pair.prompt != pair.asked]
        if different:
            faults.append(
                f"{name}: {len(different)} pairs are trained on other prompt tokens than generation asks with; "
                f"the first is {different[0]}"
            )
        inspected_rows += [{"setting": name, **pair.row()} if setting is None else pair.row() for pair in pairs]
        if not as_json:
            tokens = sum(len(pair.prompt) for pair in pairs)
            out.print(f"{name:<24}{len(pairs):>4} pairs, {tokens:>6} prompt tokens, as asked", highlight=False)
    raise_faults(faults)
    if as_json:
        _print_rows(inspected_rows)


def _print_rows(rows: list[dict[str, Any]]) -> None:
    """A JSON list, a row a line."""
    say("[" + ",\n".join(json.dumps(row) for row in rows) + "]", out=True)


@app.command()
def onpolicy(
    to: Annotated[
        Path,
        typer.Option("--out", help="JSONL file for the pairs; held-out pairs, samples and recipe lie beside it."),
    ],
    setting: SettingName = "smollm2",
    prompts: Annotated[
        str | None, typer.Option(help="Prompt rows: a file, `builtin:…` or a hub name; default: the setting's.")
    ] = None,
    prompts_split: Annotated[str | None, typer.Option(help="Split of a hub data set of prompts.")] = None,
    ranker: Annotated[str | None, typer.Option(help="The judge that ranks, see `pobench list judges`.")] = None,
    ranker_set: Annotated[
        list[str] | None, typer.Option("--ranker-set", metavar="KEY=VALUE", help="A setting of the ranker; repeatable.")
    ] = None,
    samples: Annotated[
        int | None,
        typer.Option(help="Answers to each prompt. Defaults are the setting's."),
    ] = None,
    temperature: Annotated[float | None, typer.Option(help="Sampling temperature.")] = None,
    top_p: Annotated[float | None, typer.Option(help="Probability mass that is sampled from.")] = None,
    max_new_tokens: Annotated[int | None, typer.Option(help="Most tokens of an answer.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the sampling.")] = None,
    precision: Annotated[str | None, typer.Option(help="auto, fp32 or bf16.")] = None,
    held_out: Annotated[
        float | None, typer.Option(help="Share of the prompts whose pairs are held out; 0: none.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="Another model instead of the setting's.")] = None,
    sets: Sets = None,
    plugin: Plugins = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Make preference pairs from the model's own answers: sample, rank, best against worst. Resumable."""
    from pobench.runs.onpolicy import make_pairs_of, recipe_for
    from pobench.settings.resolve import nested, parse_overrides, parse_settings

    load_plugins(plugin)
    faults: list[str] = []
    overrides = parse_each(faults, sets, parse_overrides)
    chosen = nested(parse_each(faults, ranker_set, lambda text: parse_settings(text, "--ranker-set")))
    options = {
        "prompts": prompts,
        "prompts_split": prompts_split,
        "samples": samples,
        "temperature": temperature,
        "top_p": top_p,
        "max_new_tokens": max_new_tokens,
        "seed": seed,
        "precision": precision,
        "held_out_fraction": held_out,
    }
    changes = {key: value for key, value in options.items() if value is not None}
    planned: Any = or_fault(
        faults,
        lambda: recipe_for(setting, ranker=ranker, ranker_settings=chosen, model=model, overrides=overrides, **changes),
    )
    raise_faults(faults)
    recipe = make_pairs_of(planned, to)
    if as_json:
        say_json(recipe)
        return
    _print_made(recipe)
    out.print(escape(f"pairs: {to}"), highlight=False)


def _print_made(recipe: dict[str, Any]) -> None:
    """Counts of prompts, answers and pairs, a line each."""
    counts = recipe["counts"]
    labels = {
        "prompts": "prompts",
        "repeated": "prompts left out because they repeat an earlier one",
        "answers": "answers",
        "unfinished": "answers cut off at the maximum length, not used",
        "empty": "empty answers, not used",
        "identical": "answers left out because they repeat another to the same prompt",
        "unscored": "answers without a score",
        "comparisons": "comparisons of two answers",
        "unread": "comparisons without a readable verdict",
        "tied": "prompts without a pair because all their answers tie",
        "pairs": "pairs",
    }
    for key, text in labels.items():
        if counts.get(key) or key in ("prompts", "answers", "pairs"):
            out.print(f"{counts[key]:>8}  {text}", highlight=False)
    if "held_out" in recipe:
        held = recipe["held_out"]
        out.print(f"          {held['train']} to train on, {held['held_out']} held out by prompt", highlight=False)
