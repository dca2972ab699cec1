"""The edges of a plan: which task reads what another makes, and what becomes of it where that could not be made."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from pobench.runs.task import Task


def may_need(task: Task, other: Task) -> bool:
    """Whether a task may read what an earlier one makes: what all share, its own model, or the answers of its sides."""
    return is_shared_by_runs(other) or other.run in (task.run, *task.sides)


def is_shared_by_runs(task: Task) -> bool:
    """Whether it makes what all runs of a plan may read."""
    return task.kind in ("sft", "reference", "start")


def ready(waiting: Sequence[Task], running: Iterable[Task]) -> Task | None:
    """The first task that needs none of those which run or stand before it."""
    before = list(running)
    for task in waiting:
        if not any(may_need(task, other) for other in before):
            return task
        before.append(task)
    return None


def lacking(task: Task, failed: Sequence[tuple[Task, str]]) -> str | None:
    """Why the task cannot run, if something that it reads could not be made; else None. failed: tasks, and why each did."""
    for other, why in failed:
        if other.kind == "sft":
            return f"its start model could not be made: {why}"
        if other.kind == "reference" and set(other.references.values()) & set(task.references.values()):
            ratios = "density_ratio" in other.references
            return f"its {'density ratios could not be made' if ratios else 'reference pass failed'}: {why}"
        if other.run == task.run and "train" in other.stages:
            return why
        if other.run in task.sides and "train" in other.stages:
            return f"{other.title}: {why}"
    return None


def stages_of(task: Task) -> str:
    """`: heldout, answers` behind a title; "" where the title says it."""
    return "" if task.kind in ("sft", "onpolicy", "reference") else f": {', '.join(task.stages)}"
