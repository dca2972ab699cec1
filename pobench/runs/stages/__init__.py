"""The stages of a run, one file each, found by name, in the order in which they happen.

    start model ─┬─ reference, density_ratio ── train ─┬─ heldout
                 │                                     ├─ trainpairs
                 │                                     ├─ gradient_norms
                 │                                     ├─ answers ─┬─ judge
                 │                                     │           └─ compare, with the answers of another loss
                 │                                     └─ benchmarks
                 └─ the same stages, of the start model itself

A new stage is a new file in this folder that sets `STAGE`. The files import neither torch nor transformers at the top: the
command line reads the stages to explain itself.
"""

from __future__ import annotations

from graphlib import TopologicalSorter
from importlib import import_module
from pkgutil import iter_modules

from pobench.runs.stage import Stage


def _ordered(stages: list[Stage]) -> tuple[Stage, ...]:
    """Every stage behind those it reads. Of those that could be next, first what every run does, last what is optional."""
    by_name = {stage.name: stage for stage in stages}
    graph = TopologicalSorter({stage.name: stage.reads for stage in stages})
    graph.prepare()
    ordered: list[Stage] = []
    ready: list[Stage] = []
    while graph.is_active():
        ready += [by_name[name] for name in graph.get_ready()]
        ready.sort(key=lambda stage: (stage.optional, not stage.many, stage.name))
        ordered.append(ready.pop(0))
        graph.done(ordered[-1].name)
    return tuple(ordered)


STAGES = _ordered([import_module(f"{__name__}.{module.name}").STAGE for module in iter_modules(__path__)])
BY_NAME = {stage.name: stage for stage in STAGES}

ALL = tuple(stage.name for stage in STAGES)
DEFAULT = tuple(stage.name for stage in STAGES if not stage.optional)  # of `pobench run`
PREPARING = frozenset(stage.name for stage in STAGES if stage.prepares)  # before the runs
MANY = tuple(stage.name for stage in STAGES if not stage.optional and stage.many)  # of a study's and a search's jobs
