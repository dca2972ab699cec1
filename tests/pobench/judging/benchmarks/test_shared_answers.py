"""Answers to benchmarks by two processes are those of one, row for row, and a killed command's shards stay."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from small_chat_model import character_tokenizer, chat_model
from two_processes import SECONDS, in_two_processes

from pobench import shards
from pobench.data.chat import Chat
from pobench.errors import PobenchError
from pobench.judging.benchmarks.base import Asking, Benchmark, Speaker, Spoken
from pobench.judging.benchmarks.downstream import Downstream
from pobench.model.generate import Decoding, generate
from pobench.registry import benchmarks
from pobench.runs.verify import verify
from pobench.shards import ALONE, Share
from tests.faults.damage import another_digit

ASKING = ("alpaca_eval", "arena_hard", "mt_bench", "zeroeval")
SPOKEN = Spoken("a template", "fp32", "some weights")


@pytest.fixture(scope="module")
def speaks() -> tuple[Any, Chat]:
    return chat_model(max_position_embeddings=4096), Chat(character_tokenizer())


@pytest.fixture
def speaker_of(speaks: Any) -> Callable[[Share], Speaker]:
    return lambda share: Speaker("a/run", lambda: speaks, SPOKEN, 2, share=share)


@pytest.fixture
def small(tmp_path: Path, monkeypatch: Any) -> Callable[[str], Benchmark]:
    """A benchmark with a few invented questions, and a judge's stored replies."""

    def make(name: str) -> Benchmark:
        if name != "downstream":
            return benchmarks.get(name)().rehearsed(tmp_path / "asked", 7, 4)
        from lm_eval.models.huggingface import HFLM

        monkeypatch.setattr(HFLM, "max_gen_toks", 4)
        made = Downstream(tasks=["truthfulqa_mc2", "gsm8k_zero_shot"], batch_size=1).rehearsed(tmp_path / "asked", 7, 4)
        return made.model_copy(update={"limit": 10})

    return make


def stored(run: Path) -> dict[str, Any]:
    """Path → what a benchmark has stored, but for times."""
    found = {p.relative_to(run).as_posix(): p.read_text() for p in run.rglob("*.jsonl")}
    for path in run.rglob("*.json"):
        if path.name != "manifest.json":
            value = json.loads(path.read_text())
            found[path.relative_to(run).as_posix()] = {**value, "made": ""} if path.name == "score.json" else value
    return found


def half(benchmark: Benchmark, run: Path, speaker_of: Callable[[Share], Speaker], makers: Path) -> None:
    """The part of one of two processes. Its first shard waits for the other's."""
    share = Share(int(os.environ["RANK"]), 2)
    write = shards._write

    def together(folder: Path, k: int, *more: Any) -> bool:
        (makers / f"{folder.name} {share.rank}").touch()
        end = time.monotonic() + SECONDS
        while len([*makers.glob(f"{folder.name} ?")]) < 2 and time.monotonic() < end:
            time.sleep(0.01)
        return write(folder, k, *more)

    shards._write = together  # in this process, which is a test's child
    benchmark.evaluate(run, speaker_of(share))


@pytest.mark.parametrize("name", [*ASKING, "downstream"])
def test_two_processes_store_what_one_stores(name, small, speaker_of, tmp_path) -> None:
    benchmark = small(name)
    benchmark.evaluate(tmp_path / "one", speaker_of(ALONE))
    assert benchmark.done(tmp_path / "one", SPOKEN)
    makers = tmp_path / "makers"
    makers.mkdir()
    in_two_processes(half, benchmark, tmp_path / "two", speaker_of, makers)
    assert benchmark.done(tmp_path / "two", SPOKEN)
    assert stored(tmp_path / "two") == stored(tmp_path / "one") != {}
    results = 2 if name == "downstream" else 1
    assert len([*makers.iterdir()]) == 2 * results and not [*(tmp_path / "two").glob(".*")]


def test_answers_of_one_turn_are_those_of_one_call_and_a_second_turn_stands_behind_its_first(
    small, speaks, speaker_of, tmp_path
) -> None:
    model, chat = speaks
    for name in ("alpaca_eval", "mt_bench"):
        benchmark = small(name)
        benchmark.evaluate(tmp_path / "run", speaker_of(ALONE))
        questions = benchmark.questions()
        folder = benchmark.answers_folder(tmp_path / "run", questions, SPOKEN)
        rows = [json.loads(line) for line in (folder / "answers.jsonl").read_text().splitlines()]
        assert [row["id"] for row in rows] == [q.id for q in questions]
        for heat in {q.temperature for q in questions}:
            own = [(q, row) for q, row in zip(questions, rows, strict=True) if q.temperature == heat]
            decoding = Decoding(4, heat, seed=benchmark.draw_seed)
            for turn in range(len(questions[0].turns)):
                said = [
                    [
                        message
                        for t in range(turn)
                        for message in (
                            {"role": "user", "content": q.turns[t]},
                            {"role": "assistant", "content": row["text"][t]},
                        )
                    ]
                    for q, row in own
                ]
                prompts = [
                    chat.prompt_ids([*before, {"role": "user", "content": q.turns[turn]}])
                    for before, (q, _) in zip(said, own, strict=True)
                ]
                texts = [a.text for a in generate(model, chat, prompts, decoding, batch_size=2)]
                assert [row["text"][turn] for _, row in own] == texts


@pytest.mark.parametrize("name", ["mt_bench", "downstream"])
def test_the_finished_shards_of_a_killed_command_stay(name, small, speaker_of, tmp_path, monkeypatch) -> None:
    benchmark, run = small(name), tmp_path / "run"
    made: list[Path] = []
    write = shards._write

    def killed(folder: Path, k: int, *more: Any) -> bool:
        if len(made) == 2:
            raise KeyboardInterrupt
        made.append(folder / f"{k}.json")
        return write(folder, k, *more)

    with monkeypatch.context() as patch:
        patch.setattr(shards, "_write", killed)
        with pytest.raises(KeyboardInterrupt):
            benchmark.evaluate(run, speaker_of(ALONE))
    assert all(path.is_file() for path in made)
    with monkeypatch.context() as patch:
        patch.setattr(
            shards, "_write", lambda folder, k, *more: made.append(folder / f"{k}.json") or write(folder, k, *more)
        )
        benchmark.evaluate(run, speaker_of(ALONE))
    assert len(made) == len(set(made)) > 3, "no shard is made twice"
    benchmark.evaluate(tmp_path / "whole", speaker_of(ALONE))
    assert stored(run) == stored(tmp_path / "whole")


def test_a_task_that_fails_in_one_of_two_processes_is_named_and_leaves_the_others(
    small, speaker_of, tmp_path, monkeypatch
) -> None:
    from lm_eval.models.huggingface import HFLM

    generate_until = HFLM.generate_until

    def fails(self: Any, requests: Any, **keywords: Any) -> Any:
        if os.environ["RANK"] == "1":
            raise RuntimeError("no room")
        return generate_until(self, requests, **keywords)

    def work(*arguments: Any) -> None:
        try:
            half(*arguments)
        except PobenchError as error:
            assert os.environ["RANK"] == "0"
            (tmp_path / "why").write_text(str(error))

    monkeypatch.setattr(HFLM, "generate_until", fails)
    (tmp_path / "makers").mkdir()
    benchmark, run = small("downstream"), tmp_path / "run"
    in_two_processes(work, benchmark, run, speaker_of, tmp_path / "makers")
    assert "gsm8k_zero_shot: RuntimeError: no room" in (tmp_path / "why").read_text()
    assert isinstance(benchmark, Downstream)
    score = json.loads((benchmark.folder(run, SPOKEN) / "score.json").read_text())
    assert score["tasks"] == ["truthfulqa_mc2"]


def test_every_asking_benchmark_is_tried_here() -> None:
    kinds = {name: benchmarks.get(name).function for name in benchmarks.names()}
    asking = {name for name, kind in kinds.items() if issubclass(kind, Asking)}
    assert asking == {*ASKING, "arena_hard_v2"}, "arena_hard_v2 differs in its judge alone"


@pytest.mark.parametrize("file", ["manifest.json", "config.yaml", "answers.jsonl"])
@pytest.mark.parametrize("part", ["answers", "verdicts"])
def test_what_is_damaged_of_a_benchmark_is_found_and_made_anew(
    file, part, small, speaker_of, tmp_path, monkeypatch
) -> None:
    monkeypatch.setenv("POBENCH_CACHE", str(tmp_path / "cache"))
    benchmark, run = small("alpaca_eval"), tmp_path / "run"
    benchmark.evaluate(run, speaker_of(ALONE))
    before, questions = stored(run), benchmark.questions()
    folder = getattr(benchmark, f"{part}_folder")(run, questions, SPOKEN)
    path = folder / (file if part == "answers" else file.replace("answers", "beside"))
    another_digit(path)
    assert any(path.name in fault for fault in verify(run).faults) and not benchmark.done(run, SPOKEN)
    benchmark.evaluate(run, speaker_of(ALONE))
    assert benchmark.done(run, SPOKEN) and stored(run) == before and not verify(run).faults
