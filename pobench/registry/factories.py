"""What is made by a registered factory or class: judges, benchmarks, executors and layouts."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from pobench.errors import PobenchError
from pobench.registry.named import Registry, settings_of

Kind = TypeVar("Kind")


@dataclass(frozen=True)
class NamedFunction:
    """A registered factory of a judge or a layout; `settings` are its keyword defaults."""

    name: str
    function: Callable[..., Any]
    settings: Mapping[str, Any]
    doc: str

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(*args, **kwargs)


@dataclass(frozen=True)
class JudgeType(NamedFunction):
    """A registered factory of a judge. runtime: settings that change no verdict. free: a verdict costs nothing. compares: a
    verdict is about two answers. offline: it needs neither a network nor a second model. canonical: settings -> the same as
    they count in a result's name."""

    runtime: frozenset[str] = frozenset()
    canonical: Callable[[Mapping[str, Any]], dict[str, Any]] = dict
    free: bool = False
    compares: bool = False
    offline: bool = False

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The judge. Raises PobenchError if it lacks the method that its registration promises."""
        judge = self.function(*args, **kwargs)
        if self.compares and not hasattr(judge, "judge"):
            raise PobenchError(f"judge {self.name!r} is registered with compares=True, but has no method `judge`")
        if not self.compares and not hasattr(judge, "score"):
            remedy = "; if it compares two answers, register it with compares=True" if hasattr(judge, "judge") else ""
            raise PobenchError(f"judge {self.name!r} has no method `score`{remedy}")
        return judge


@dataclass(frozen=True)
class BenchmarkType:
    """A registered benchmark: a pydantic class whose fields are its settings."""

    name: str
    function: type[Any]

    def __call__(self, **settings: Any) -> Any:
        return self.function(**settings)


@dataclass(frozen=True)
class ExecutorType:
    """A registered executor: a pydantic class whose fields are its settings."""

    name: str
    function: type[Any]


executors: Registry[ExecutorType] = Registry("executor", "pobench.runs.executors")
benchmarks: Registry[BenchmarkType] = Registry("benchmark", "pobench.judging.benchmarks")
judges: Registry[JudgeType] = Registry("judge", "pobench.judging")
layouts: Registry[NamedFunction] = Registry("layout", "pobench.model.layouts")


def register_judge(
    name: str,
    *,
    aliases: Iterable[str] = (),
    runtime: Iterable[str] = (),
    canonical: Callable[[Mapping[str, Any]], dict[str, Any]] = dict,
    free: bool = False,
    compares: bool = False,
    offline: bool = False,
) -> Callable[..., Any]:
    """Register a judge factory: `f(**settings) -> Judge`; see `pobench.judging`.

    runtime: settings that change no verdict (time-outs, prices); runs that differ only in these are the same run.
    canonical: brings the other settings into the form that counts in a result's name. free: a verdict costs nothing, so
    cost estimates leave it out. compares: the judge compares two answers to one prompt instead of scoring one. offline: it
    needs neither a network nor a second model, so a rehearsal uses it unchanged; implies free.
    """

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        settings, doc = settings_of(function), inspect.getdoc(function) or ""
        facts = (frozenset(runtime), canonical, free or offline, compares, offline)
        judge = JudgeType(name, function, settings, doc, *facts)
        judges.add(judge, aliases)
        return function

    return register


def register_benchmark(name: str, *, aliases: Iterable[str] = ()) -> Callable[[type[Kind]], type[Kind]]:
    """Register a benchmark: a subclass of `pobench.judging.benchmarks.base.Benchmark`; its fields are its settings."""

    def register(kind: type[Kind]) -> type[Kind]:
        kind.name = name  # type: ignore[attr-defined]
        benchmarks.add(BenchmarkType(name, kind), aliases)
        return kind

    return register


def register_executor(name: str, *, aliases: Iterable[str] = ()) -> Callable[[type[Kind]], type[Kind]]:
    """Register an executor: a subclass of `pobench.runs.executor.Executor`; its fields are its settings."""

    def register(kind: type[Kind]) -> type[Kind]:
        kind.name = name  # type: ignore[attr-defined]
        executors.add(ExecutorType(name, kind), aliases)
        return kind

    return register


def register_layout(name: str, *, aliases: Iterable[str] = ()) -> Callable[..., Any]:
    """Register a layout: a class whose instances turn TokenPairs into a batch; see `pobench.model.layouts`."""

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        settings, doc = settings_of(function), inspect.getdoc(function) or ""
        layouts.add(NamedFunction(name, function, settings, doc), aliases)
        return function

    return register
