"""Completion: the names that a shell offers behind an option. No loss is imported, nor is torch."""

from __future__ import annotations

from collections.abc import Iterable


def complete(names: Iterable[str], incomplete: str) -> list[str]:
    """The names that begin with the text typed so far."""
    return [name for name in names if name.startswith(incomplete)]


def complete_losses(incomplete: str) -> list[str]:
    """`"simpo,dp"` → "simpo,dpo", "simpo,dpo_ln", …: the last name of the list is completed."""
    from pobench.registry import losses

    before, comma, started = incomplete.rpartition(",")
    names = ["paper", "all", *(path.stem for path in losses.files())]
    return [f"{before}{comma}{name}" for name in complete(names, started)]


def complete_names(incomplete: str) -> list[str]:
    """Names of losses, behind `pobench list losses`."""
    from pobench.registry import losses

    return complete([path.stem for path in losses.files()], incomplete)


def complete_executors(incomplete: str) -> list[str]:
    """Names of shipped executors."""
    from pobench.registry import executors

    return complete([path.stem for path in executors.files()], incomplete)


def complete_settings(incomplete: str) -> list[str]:
    """Names of shipped settings."""
    from pobench.settings.read import list_settings

    return complete(list_settings(), incomplete)


def complete_stages(incomplete: str) -> list[str]:
    """The last name of the list is completed."""
    from pobench.runs.stages import ALL

    before, comma, started = incomplete.rpartition(",")
    return [f"{before}{comma}{name}" for name in complete(ALL, started)]


def complete_studies(incomplete: str) -> list[str]:
    """Names of shipped studies."""
    from pobench.workflows.study_file import list_studies

    return complete(list_studies(), incomplete)
