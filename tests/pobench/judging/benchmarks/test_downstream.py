"""Downstream tasks through lm-eval: its own numbers, on local items, in memory, resumable, with every limit shown."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch
from small_chat_model import character_tokenizer, chat_model

from pobench.data.chat import Chat
from pobench.errors import PobenchError
from pobench.judging.benchmarks import downstream
from pobench.judging.benchmarks.base import Speaker, Spoken
from pobench.judging.benchmarks.downstream import (
    PASSAGE,
    TASKS,
    Downstream,
    _score,
    evaluate,
    passage_of,
    task_faults,
    write_stand_ins,
)

REAL = Path(__file__).parents[4] / "../shared/data/downstream"
with_real_items = pytest.mark.skipif(not REAL.is_dir(), reason="../shared/data/downstream is absent")
THERE = ["mmlu", "arc_challenge", "truthfulqa_mc2", "winogrande", "gsm8k", "mmlu_zero_shot", "gsm8k_zero_shot"]


@pytest.fixture(scope="module")
def speaks():
    return chat_model(max_position_embeddings=512), character_tokenizer()


@pytest.fixture
def items(tmp_path) -> Path:
    for name in TASKS:
        write_stand_ins(tmp_path / "items", name)
    return tmp_path / "items"


def test_the_papers_tasks_have_the_leaderboards_shots() -> None:
    shots = {name: task.shots for name, task in TASKS.items()}
    assert shots == {
        "mmlu": 5,
        "arc_challenge": 25,
        "hellaswag": 10,
        "truthfulqa_mc2": 0,
        "winogrande": 5,
        "gsm8k": 5,
        "mmlu_zero_shot": 0,
        "gsm8k_zero_shot": 0,
    }


def test_every_task_runs_on_items_in_its_columns(speaks, items) -> None:
    scores = evaluate(*speaks, limit=2, data=items)
    assert [s.task for s in scores if not s.metric.endswith("flexible-extract")] == list(TASKS)
    assert all((s.n, s.limit) == (2, 2) and 0 <= s.low <= s.value <= s.high <= 1 for s in scores)
    assert {s.task: s.shots for s in scores} == {name: task.shots for name, task in TASKS.items()}
    assert all(not s.note or "exceed 512 tokens" in s.note for s in scores)  # a token is a letter here


@with_real_items
def test_the_values_are_those_that_lm_eval_itself_gives(speaks, monkeypatch) -> None:
    from lm_eval import evaluator

    seen = {}
    original = evaluator.evaluate

    def watched(*arguments, **keywords):
        result = original(*arguments, **keywords)
        seen.update({name: row for name, row in result["results"].items() if "alias" in row})
        return result

    monkeypatch.setattr(evaluator, "evaluate", watched)
    scores = evaluate(*speaks, tasks=["truthfulqa_mc2", "winogrande", "mmlu_zero_shot"], limit=6, data=REAL)
    ours = {s.task: s for s in scores}
    assert ours["truthfulqa_mc2"].value == pytest.approx(seen["truthfulqa_mc2"]["acc,none"])
    assert ours["winogrande"].value == pytest.approx(seen["winogrande"]["acc,none"])
    subjects = [seen[f"mmlu_{s}"]["acc,none"] for s in ("abstract_algebra", "anatomy", "astronomy")]
    assert ours["mmlu_zero_shot"].value == pytest.approx(sum(subjects) / 3) and ours["mmlu_zero_shot"].n == 18
    # There are no training items of WinoGrande: its shots come from the validation items, and the result says so.
    assert ours["winogrande"].note.startswith("shots are drawn from the validation items")


def test_answers_in_shards_are_those_of_one_call_of_lm_eval_shots_included(speaks, items, monkeypatch) -> None:
    tasks = ["winogrande", "truthfulqa_mc2"]  # shots are drawn for one of them, choices share a context in the other
    cuts, cut = [], downstream._cut
    monkeypatch.setattr(downstream, "_cut", lambda requests, size: cuts.append(cut(requests, size)) or cuts[-1])
    of_shards = evaluate(*speaks, tasks=tasks, limit=12, data=items, batch_size=1)
    assert [len(shards) for shards in cuts] == [3, 4], "24 requests in eights, 36 in nines"
    for shards, count in zip(cuts, (24, 36), strict=True):
        assert sorted(place for shard in shards for block in shard for place in block) == [*range(count)]
    monkeypatch.setattr(downstream, "_cut", lambda requests, size: [[[*range(len(requests))]]])
    assert evaluate(*speaks, tasks=tasks, limit=12, data=items, batch_size=1) == of_shards


def test_shots_stand_before_the_question_and_never_hold_it(speaks, items, monkeypatch) -> None:
    (items / "winogrande_train.jsonl").unlink()
    asked = []
    from lm_eval.models.huggingface import HFLM

    original = HFLM._loglikelihood_tokens

    def watched(self, requests, **keywords):
        asked.extend(request[0] for request in requests)
        return original(self, requests, **keywords)

    monkeypatch.setattr(HFLM, "_loglikelihood_tokens", watched)
    evaluate(*speaks, tasks=["winogrande"], limit=12, data=items)
    contexts = {context for context, _ in asked}
    assert all(context.count("because the") == 6 for context in contexts)  # five shots and the question
    for context in contexts:
        numbers = [part.split()[0] for part in context.split("The cup held ")[1:]]
        assert len(set(numbers)) == 6


def test_the_benchmark_stores_task_by_task_and_resumes(speaks, items, tmp_path) -> None:
    benchmark = Downstream(tasks=["truthfulqa_mc2", "gsm8k_zero_shot"], data=str(items), limit=2)
    loads = []
    spoken = Spoken("a template", "fp32", "some weights")
    speaker = Speaker("a/run", lambda: loads.append(1) or (speaks[0], Chat(speaks[1])), spoken)
    run = tmp_path / "run"
    Downstream(tasks=["truthfulqa_mc2"], data=str(items), limit=2).evaluate(run, speaker)
    assert not benchmark.done(run, spoken)
    stored = benchmark.folder(run, spoken) / "truthfulqa_mc2.json"
    before = stored.stat().st_mtime_ns
    benchmark.evaluate(run, speaker)
    assert benchmark.done(run, spoken) and stored.stat().st_mtime_ns == before
    score = json.loads((benchmark.folder(run, spoken) / "score.json").read_text())
    assert [row["metric"] for row in score["rows"]] == [
        "truthfulqa_mc2",
        "gsm8k_zero_shot",
        "gsm8k_zero_shot_flexible_extract",
    ]
    assert score["limit"] == 2 and score["name"] == "downstream tasks (at most 2 items a task)"
    assert all(row["n"] == 2 and 0 <= row["value"] <= 100 for row in score["rows"])
    by_question = pd.DataFrame(score["questions"])
    means = by_question.groupby("metric")["score"].mean()
    assert means.to_dict() == pytest.approx({row["metric"]: row["value"] for row in score["rows"]})
    assert set(by_question["question"]) == {f"{task}/{k}" for task in ("truthfulqa_mc2", "gsm8k") for k in (0, 1)}
    assert len(loads) == 1
    assert not Downstream(tasks=["truthfulqa_mc2"], data=str(items)).done(run, spoken)  # no limit: other items


def test_items_about_one_passage_or_video_are_one_unit() -> None:
    about = f"{PASSAGE}\n“To be.”\nShakespeare, Hamlet\n"
    assert passage_of("mmlu", {"question": f"{about}Who?"}) == passage_of(
        "mmlu_zero_shot", {"question": f"{about}When?"}
    )
    assert passage_of("mmlu", {"question": "Who\nwrote it?"}) == "" == passage_of("gsm8k", {"question": "How many?"})
    assert passage_of("hellaswag", {"source_id": "activitynet~v_1"}) == "activitynet~v_1"

    def half_width(sources: int) -> float:
        asked = [
            (
                f"hellaswag/{k}",
                {"acc_norm": float(k % 10 > 4), "filter": "none", "doc": {"source_id": f"v{k % sources}"}},
            )
            for k in range(100)
        ]
        scored = _score("hellaswag", asked, "acc_norm", "none", None, "")
        assert len(scored.items) == scored.n == 100 and scored.value == 0.5
        return (scored.high - scored.low) / 2

    assert half_width(10) > 2.5 * half_width(100), "ten sources, each all right or all wrong, are ten units"


def test_requests_that_lose_their_beginning_are_counted(items) -> None:
    short = chat_model(max_position_embeddings=300), character_tokenizer()
    cut, whole = (evaluate(*short, tasks=[task], limit=2, data=items)[0] for task in ("winogrande", "truthfulqa_mc2"))
    assert (
        cut.note == "4 of 4 requests exceed 300 tokens and lost their beginning"
    )  # two items of two options, five shots
    assert not whole.note or "requests exceed" in whole.note


def test_a_failing_task_is_named_and_leaves_the_others(speaks, items, tmp_path, monkeypatch) -> None:
    from lm_eval.models.huggingface import HFLM

    names = ["gsm8k_zero_shot", "truthfulqa_mc2"]
    benchmark, run = Downstream(tasks=names, data=str(items), limit=2), tmp_path / "run"
    speaker = Speaker("a/run", lambda: (speaks[0], Chat(speaks[1])), Spoken("a template", "fp32", "some weights"))
    with monkeypatch.context() as patch:

        def fails(self, requests, **keywords):
            raise RuntimeError("out of memory")

        patch.setattr(HFLM, "generate_until", fails)
        with pytest.raises(
            PobenchError, match=r"1 of 2 tasks failed; 1 others(.|\n)*gsm8k_zero_shot: RuntimeError: out of"
        ):
            benchmark.evaluate(run, speaker)
    score = benchmark.folder(run, speaker.spoken) / "score.json"
    assert json.loads(score.read_text())["tasks"] == ["truthfulqa_mc2"] and not benchmark.done(run, speaker.spoken)
    benchmark.evaluate(run, speaker)
    assert benchmark.done(run, speaker.spoken)


def test_with_the_chat_template_questions_are_turns_and_the_name_says_so(speaks, items, tmp_path, monkeypatch) -> None:
    from lm_eval.models.huggingface import HFLM

    asked, original = [], HFLM._loglikelihood_tokens

    def watched(self, requests, **keywords):
        asked.extend(request[0][0] for request in requests)
        return original(self, requests, **keywords)

    monkeypatch.setattr(HFLM, "_loglikelihood_tokens", watched)
    plain, turns = (
        Downstream(tasks=["truthfulqa_mc2"], data=str(items), limit=1, chat_template=c) for c in (False, True)
    )
    speaker = Speaker("a/run", lambda: (speaks[0], Chat(speaks[1])), Spoken("a template", "fp32", "some weights"))
    plain.evaluate(tmp_path, speaker)
    turns.evaluate(tmp_path, speaker)
    assert asked[0] != asked[-1] and asked[0].strip() in asked[-1]
    folder = turns.folder(tmp_path, speaker.spoken)
    assert folder != plain.folder(tmp_path, speaker.spoken)
    assert json.loads((folder / "score.json").read_text())["name"].startswith("downstream tasks with the chat template")


def test_a_task_of_other_weights_or_with_other_bytes_is_found_and_done_anew(speaks, items, tmp_path) -> None:
    benchmark, run, told = Downstream(tasks=["truthfulqa_mc2"], data=str(items), limit=2), tmp_path / "run", []
    first, second = (Spoken("a template", "fp32", weights) for weights in ("first", "second"))
    speaker = Speaker(
        "a/run", lambda: (speaks[0], Chat(speaks[1])), first, say=lambda t: None if "exceed" in t else told.append(t)
    )
    benchmark.evaluate(run, speaker)
    stored = benchmark.folder(run, first) / "truthfulqa_mc2.json"
    assert benchmark.done(run, first) and not benchmark.done(run, second) and not told
    assert not benchmark.done(run, first._replace(precision="bf16"))
    text = stored.read_text()
    stored.write_text("[]")
    assert not benchmark.done(run, first)
    benchmark.evaluate(run, speaker)
    assert benchmark.done(run, first) and stored.read_text() == text and len(told) == 1 and stored.name in told[0]
    assert stored.with_name("truthfulqa_mc2.json.damaged").read_text() == "[]"
    benchmark.evaluate(run, replace(speaker, spoken=second))
    assert benchmark.done(run, second) and not benchmark.done(run, first)
    assert len(told) == 3 and all(
        "made by other weights" in sentence for sentence in told[1:]
    )  # of the task and the score


def test_what_is_missing_is_said_before_anything_runs(items) -> None:
    assert task_faults(["gsm8k"], items) == []
    (items / "hellaswag_validation.jsonl").unlink()
    faults = Downstream(tasks="hellaswag, gsm8k, mmul", data=str(items)).faults()
    assert len(faults) == 2
    assert "unknown task 'mmul'; did you mean 'mmlu'?" in faults[0]
    assert "hellaswag: no file hellaswag_validation.jsonl" in faults[1]
    assert "--set benchmarks.downstream.tasks=gsm8k" in faults[1]
    assert "no folder" in Downstream(data=str(items / "none")).faults()[0]


def test_without_hub_and_without_files_there_is_one_plain_message(speaks, monkeypatch) -> None:
    import datasets

    def offline(*arguments, **keywords):
        raise ConnectionError("Couldn't reach the hub\nand a long story")

    monkeypatch.setattr(datasets, "load_dataset", offline)
    with pytest.raises(
        PobenchError, match=r"^truthfulqa_mc2: its items cannot be fetched .*benchmarks\.downstream\.data$"
    ):
        evaluate(*speaks, tasks=["truthfulqa_mc2"], limit=1)


def test_the_callers_random_numbers_are_left_alone(speaks, items) -> None:
    random.seed(7)
    torch.manual_seed(7)
    expected = random.random(), torch.rand(1).item()
    random.seed(7)
    torch.manual_seed(7)
    evaluate(*speaks, tasks=["truthfulqa_mc2"], limit=1, data=items)
    assert (random.random(), torch.rand(1).item()) == expected


def test_a_rehearsal_has_items_of_its_own(speaks, tmp_path) -> None:
    benchmark = Downstream().rehearsed(tmp_path / "stand-ins", 1, 8)
    assert benchmark.faults() == [] and benchmark.limit == 1
    spoken = Spoken("a template", "fp32")
    benchmark.evaluate(tmp_path / "run", Speaker("a/run", lambda: (speaks[0], Chat(speaks[1])), spoken))
    assert benchmark.done(tmp_path / "run", spoken)


@pytest.mark.slow
@with_real_items
def test_every_local_task_runs_on_smollm2() -> None:
    from pobench.data.chat import tokenizer_of
    from pobench.model.load import load_model
    from pobench.runs.start_model import start_model
    from pobench.settings.resolve import resolve

    (job,) = resolve("smollm2", "simpo")
    folder = start_model(job)
    model, tokenizer = load_model(folder, dtype=torch.float32), tokenizer_of(folder, job.model)
    scores = evaluate(model, tokenizer, tasks=THERE, limit=3, data=REAL, precision="bf16")
    print("\n".join(map(str, scores)))
    assert [s.task for s in scores if not s.metric.endswith("flexible-extract")] == THERE
    assert all(s.limit == 3 for s in scores)


def test_the_hub_is_asked_before_any_item_is_fetched(monkeypatch) -> None:
    """Without network lm-eval's own downloads try again for minutes."""

    def ask() -> None:
        raise PobenchError("asked")

    monkeypatch.setattr(downstream, "ask_hub", ask)
    with pytest.raises(PobenchError, match="asked"):
        downstream._scores(None, "gsm8k", None, None, False)
