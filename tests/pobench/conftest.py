"""A random two-layer Llama and a handful of random pairs: enough for everything that is arithmetic."""

from __future__ import annotations

import copy
import json
import shutil
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from accelerate.state import AcceleratorState, GradientState, PartialState

from pobench.cli.main import main
from pobench.data.order import data_order, mismatch
from pobench.model import adapters
from pobench.model.device import make_accelerator
from pobench.model.logps import ResponseLogps
from pobench.model.policy_sums import SumScorer
from pobench.registry import get_loss, judges, load_plugin, losses
from pobench.settings.schema import AdapterConfig, TrainConfig
from pobench.training.loop import Trained, train
from pobench.training.objectives import mismatched_groups
from pobench.training.reference import EveryStep, Moving, ReferenceSums
from pobench.types import Group, TokenPair
from pobench.workflows.invariance import small_model, small_pairs


@pytest.fixture(autouse=True)
def fresh_accelerate():
    yield
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()


@pytest.fixture
def forget() -> Any:
    """Take the losses and judges out of their registries that a test has put in."""
    before = [(registry, set(registry.names())) for registry in (losses, judges)]
    yield
    for registry, names in before:
        for name in set(registry.names()) - names:
            registry._items.pop(name)
            for alias in [a for a, owner in registry._aliases.items() if owner == name]:
                registry._aliases.pop(alias)


@pytest.fixture
def losses_that_ask(forget: Any) -> str:
    """The plug-in of losses that ask for more than sums, loaded; its path."""
    path = str(Path(__file__).with_name("losses_that_ask.py"))
    load_plugin(path)
    return path


@pytest.fixture(scope="session")
def start_model() -> Any:
    return small_model().eval()


@pytest.fixture
def pairs() -> list[TokenPair]:
    return small_pairs(11, seed=0)


@pytest.fixture(scope="session")
def scorer_of() -> Callable[..., SumScorer]:
    """A scorer of a model as it stands, in fp32 packed rows."""

    def make(model: Any, **changes: Any) -> SumScorer:
        policy = ResponseLogps(model)
        return SumScorer(policy, policy.layout("shared_prefix"), make_accelerator("fp32"), **changes)

    return make


@pytest.fixture
def reference_of(start_model: Any, scorer_of: Any) -> Callable[..., ReferenceSums]:
    """The start model's sums of some pairs and of their mismatched answers, in memory; computed once, for all losses."""
    return lambda pairs, per_token=False: _reference(start_model, scorer_of, tuple(pairs), per_token)


@cache
def _reference(start_model: Any, scorer_of: Any, pairs: tuple[TokenPair, ...], per_token: bool) -> ReferenceSums:
    groups = [*map(Group.of, pairs), *mismatched_groups(pairs, mismatch(pairs))]
    return ReferenceSums.of_groups(groups, scorer_of(copy.deepcopy(start_model)), per_token=per_token)


def _reference_for(loss: Any, pairs: list[TokenPair], start_model: Any, scorer_of: Any, reference_of: Any) -> Any:
    """What the loss reads as reference, if it reads one: sums, or the start model itself."""
    if loss.moves_reference or loss.runs_reference:
        return (Moving if loss.moves_reference else EveryStep)(
            scorer_of(copy.deepcopy(start_model).requires_grad_(False))
        )
    return reference_of(pairs, "tokens" in loss.needs) if loss.reads_reference else None


@pytest.fixture
def moving(start_model: Any, scorer_of: Any) -> Callable[[], Moving]:
    """A reference model that may move, as the start model yet."""
    return lambda: Moving(scorer_of(copy.deepcopy(start_model).requires_grad_(False)))


@pytest.fixture
def fit(
    start_model: Any, scorer_of: Any, reference_of: Any, tmp_path: Path
) -> Callable[..., tuple[Any, Trained, list[dict[str, Any]]]]:
    """Train a copy of the start model, or an adapter in it: (model, Trained, logged rows)."""

    def run(
        pairs: list[TokenPair],
        loss: str = "simpo",
        *,
        folder: str = "run",
        log: Any = None,
        epochs: int = 1,
        seed: int | None = None,
        adapter: dict[str, Any] | None = None,
        watch: Any = None,
        reference: ReferenceSums | EveryStep | None = None,
        content: str = "",
        say: Any = lambda text: None,
        dtype: torch.dtype = torch.float32,
        settings: dict[str, Any] | None = None,
        **changes: Any,
    ) -> tuple[Any, Trained, list[dict[str, Any]]]:
        model = copy.deepcopy(start_model).to(dtype)
        if adapter is not None:
            adapters.attach(model, AdapterConfig(**adapter), seed or 0)
        rows: list[dict[str, Any]] = []
        values = {"lr": 1e-3, "batch_size": 4, "precision": "fp32", "warmup_ratio": 0.0, **changes}
        (tmp_path / folder).mkdir(exist_ok=True)
        registered = get_loss(loss)
        in_order = [list(range(len(pairs)))] * epochs
        order = in_order if seed is None else [epoch.tolist() for epoch in data_order(pairs, seed, epochs).epochs]
        trained = train(
            make_accelerator("fp32"),
            model,
            pairs,
            order,
            registered,
            {**registered.settings, **(settings or {})},
            TrainConfig(**values),
            folder=tmp_path / folder,
            reference=reference or _reference_for(registered, pairs, start_model, scorer_of, reference_of),
            mismatched=mismatch(pairs),
            seed=seed or 0,
            log=log or rows.append,
            watch=watch,
            content=content,
            say=say,
        )
        return model, trained, rows

    return run


@pytest.fixture(scope="session")
def word_tokenizer() -> Any:
    """Words split at spaces, a chat template in ChatML's style."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["<pad>", "<|im_start|>", "<|im_end|>", "<unk>", "user", "assistant", "say", *(f"w{i}" for i in range(50))]
    inner = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token="<pad>",
        eos_token="<|im_end|>",
        unk_token="<unk>",
        additional_special_tokens=["<|im_start|>"],
    )
    tokenizer.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m['role'] }} {{ m['content'] }}<|im_end|>{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant {% endif %}"
    )
    return tokenizer


@pytest.fixture
def pobench_cli(monkeypatch, capsys, tmp_path) -> Callable[..., tuple[int, str, str]]:
    """Call the command: (exit status, standard output, standard error)."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["pobench", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        captured = capsys.readouterr()
        return int(ended.value.code or 0), captured.out, captured.err

    return call


@pytest.fixture
def short_report(monkeypatch) -> None:
    """The report that `pobench run` ends with has one table. What all figures make of frames is tested on synthetic ones."""
    from pobench.cli import run

    def write(runs: Path, setting: str | None, figures: str, folder: Path | None) -> tuple[Path, bool]:
        return write_whole(runs, setting, "settings-table", folder)

    write_whole = run.write_report
    monkeypatch.setattr(run, "write_report", write)


@pytest.fixture(scope="session")
def stored_model(tmp_path_factory: pytest.TempPathFactory, start_model: Any, word_tokenizer: Any) -> Path:
    """The start model and the word tokenizer on disk. Do not change them."""
    folder = tmp_path_factory.mktemp("stored") / "model"
    start_model.save_pretrained(folder)
    word_tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def setting(tmp_path: Path, stored_model: Path) -> dict[str, Any]:
    """A whole setting on disk: a random model, a word tokenizer, ten preference rows, three prompts."""
    shutil.copytree(stored_model, tmp_path / "model", copy_function=shutil.copy)
    rows = [{"id": str(i), "prompt": f"say w{i}", "chosen": f"w{i} w1", "rejected": f"w{i} w2 w3"} for i in range(10)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    prompts = [{"id": f"e{i}", "prompt": f"say w{i}", "check": {"kind": "at_most_words", "n": 3}} for i in range(3)]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(r) + "\n" for r in prompts))
    values = {
        "name": "small",
        "model": {"source": str(tmp_path / "model")},
        "data": {"source": str(tmp_path / "pairs.jsonl"), "held_out_fraction": 0.3},
        "train": {"lr": 1e-3, "batch_size": 4, "precision": "fp32", "micro_tokens": 200},
        "answers": {"source": str(tmp_path / "prompts.jsonl"), "max_new_tokens": 4, "precision": "fp32"},
        "judge": {"name": "verifiable"},
    }
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(values))
    return values


@pytest.fixture
def plan_here(setting, tmp_path: Path, monkeypatch) -> Callable[..., Any]:
    """The plan of a job of the small setting, whose tasks `execute` will do in this process."""
    from pobench.runs import execute, stages
    from pobench.runs.plan import make_plan
    from pobench.runs.worker import run
    from pobench.settings.resolve import resolve

    monkeypatch.setenv("POBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(execute, "_fork", lambda *tasks: max(map(run, tasks)))  # one after the other

    def plan(loss: str, names: Any = stages.DEFAULT, runs: str = "runs", plugins: Any = (), **overrides: Any) -> Any:
        values = {key.replace("__", "."): value for key, value in overrides.items()}
        jobs = resolve(str(tmp_path / "small.yaml"), loss, overrides=values)
        return make_plan(jobs, tmp_path / runs, names, plugins)

    return plan


@pytest.fixture
def work_here(plan_here) -> Callable[..., Path]:
    """Do a whole job of the small setting in this process, start model first; returns the job's run folder."""
    from pobench.runs.execute import execute

    def work(*arguments: Any, **overrides: Any) -> Path:
        plan = plan_here(*arguments, **overrides)
        failed = [outcome.reason for outcome in execute(plan) if outcome.status == "failed"]
        assert not failed, failed
        return plan.tasks[-1].runs / plan.tasks[-1].run

    return work


@pytest.fixture
def save(tmp_path: Path) -> Callable[[list[dict[str, Any]]], Path]:
    """Stored judgments, one JSON object a line."""

    def write(rows: list[dict[str, Any]]) -> Path:
        path = tmp_path / "judgments.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path

    return write
