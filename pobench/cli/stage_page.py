"""The page of all stages, docs/stages.md, printed by `pobench list stages --markdown` from the list of stages."""

from __future__ import annotations

from pobench.runs import stages
from pobench.runs.stage import Stage
from pobench.runs.stages import STAGES

INTRODUCTION = """\
# The stages of a run

<!-- Written by `make docs` from pobench/runs/stages; edit those files. -->

A stage makes one kind of result: a trained model, answers, verdicts. It has a name, which `--stages` takes, and one file
in `pobench/runs/stages`. Its result is named by what decides it, and is made anew when that changes
([results.md](results.md)). `pobench list stages` prints this list.

```
{graph}
```

Two stages stand before them. `sft` makes the start model of a setting that names a base model; `onpolicy` makes the pairs
from the start model's own answers. Runs are named by the content of both. With `--rounds N` these two stages are a chain
for every loss and seed: `train` of one round → `onpolicy` of the next → its `train`
([data.md](data.md#rounds-answer-rank-train-again)). The start model is evaluated as every trained
model is, so that each result has something to be compared with. Scores, figures and the report are computed from what is
stored; they are no stages."""


def stage_page() -> str:
    """The page as Markdown: an overview, then a section a stage."""
    overview = [
        "| stage | what it does | reads | writes |",
        "| --- | --- | --- | --- |",
        *(f"| [{s.name}](#{s.name}) | {s.does} | {_names(s.reads)} | {_names(s.writes)} |" for s in STAGES),
    ]
    lines = (stages.__doc__ or "").splitlines()
    graph = "\n".join(line.removeprefix("    ") for line in lines if line.startswith("    "))
    return "\n\n".join([INTRODUCTION.format(graph=graph), "\n".join(overview), *map(_section, STAGES)]) + "\n"


def _section(stage: Stage) -> str:
    if stage.optional:
        when = f"optional: it runs where `{stage.named_by}` names it"
    else:
        when = "in every `pobench run`" + ("" if stage.many else "; not in studies and searches")
    lines = {
        "reads": _names(stage.reads),
        "writes": _names(stage.writes),
        "decided by": stage.decided_by,
        "made": "for each run" if stage.per_run else "once, for all runs that need it",
        "processes": _processes(stage),
        "runs": when,
    }
    return f"## {stage.name}\n\n{stage.does[0].upper()}{stage.does[1:]}.\n\n" + "\n".join(
        f"- {what}: {text}" for what, text in lines.items()
    )


def _names(names: tuple[str, ...]) -> str:
    return ", ".join(f"`{name}`" for name in names) or "–"


def _processes(stage: Stage) -> str:
    if stage.cut:
        return "one a device, each with shards of the rows"
    return "all processes of a training job share it" if stage.shared else "one"
