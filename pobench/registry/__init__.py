"""Registries of losses, judges, benchmarks, figures and layouts: registered by decorator, found by name or alias.

A loss is declared by its signature. Positional parameters name its inputs (`SUPPLIED`), and keyword parameters with defaults
are its settings.

named → signature → loss → expressions → declare, of losses and modifiers; shown, claim and factories, of everything else
"""

from pobench.registry.claim import SUBJECTS, Claim, claims, register_claim
from pobench.registry.declare import register_loss, register_modifier
from pobench.registry.expressions import NOT_A_LOSS, get_loss, list_losses, losses, modifiers, part_of
from pobench.registry.factories import (
    BenchmarkType,
    ExecutorType,
    JudgeType,
    NamedFunction,
    benchmarks,
    executors,
    judges,
    layouts,
    register_benchmark,
    register_executor,
    register_judge,
    register_layout,
)
from pobench.registry.loss import GRADIENT, STILL, Loss, Marker, Modifier, Move
from pobench.registry.named import Registry, load_plugin
from pobench.registry.shown import CHAPTERS, Figure, figures, register_figure, register_table
from pobench.registry.signature import INPUTS_OF, READ_AS, SUPPLIED, wrong_output

__all__ = [
    "CHAPTERS",
    "GRADIENT",
    "INPUTS_OF",
    "NOT_A_LOSS",
    "READ_AS",
    "STILL",
    "SUBJECTS",
    "SUPPLIED",
    "BenchmarkType",
    "Claim",
    "ExecutorType",
    "Figure",
    "JudgeType",
    "Loss",
    "Marker",
    "Modifier",
    "Move",
    "NamedFunction",
    "Registry",
    "benchmarks",
    "claims",
    "executors",
    "figures",
    "get_loss",
    "judges",
    "layouts",
    "list_losses",
    "load_plugin",
    "losses",
    "modifiers",
    "part_of",
    "register_benchmark",
    "register_claim",
    "register_executor",
    "register_figure",
    "register_judge",
    "register_layout",
    "register_loss",
    "register_modifier",
    "register_table",
    "wrong_output",
]
