"""What a plan will cost, before anything is at hand, and from measured steps once there are some."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from pobench.model.load import count_parameters
from pobench.registry import get_loss
from pobench.runs import cost
from pobench.runs.cost import GIB, Counts, _Data, estimate_cost, sharding_faults, with_sharding
from pobench.runs.stages import MANY
from pobench.runs.task import Task
from pobench.settings.resolve import resolve

SMOLLM2 = {  # its config.json, which is in a package
    "model_type": "llama",
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "vocab_size": 49152,
    "tie_word_embeddings": True,
}


@pytest.fixture(autouse=True)
def nowhere(tmp_path, monkeypatch) -> None:
    """No model cache, no accelerate config, one process; nothing that has to be measured."""
    monkeypatch.setenv("POBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(cost, "layout_of_devices", lambda: (1, False))
    monkeypatch.setattr(cost, "peak_flops", lambda: 1e11)


def tasks(runs: Path, losses: str, setting: str, **overrides: Any) -> list[Task]:
    jobs = resolve(setting, losses, overrides={k.replace("__", "."): v for k, v in overrides.items()})
    evaluation = tuple(stage for stage in MANY if stage not in ("sft", "reference", "train"))
    start = [Task(jobs[0], "start", runs, f"{setting}/start", evaluation, runs)]
    return [*start, *(Task(job, "loss", runs, f"{setting}/{job.loss}", MANY, runs) for job in jobs)]


def test_the_papers_run_costs_what_the_paper_says_it_did(tmp_path) -> None:
    """60 minutes on eight H100s are 8 device hours for SimPO, 73 minutes 9.7 for DPO; no answers, a few held-out pairs."""
    found = estimate_cost(tasks(tmp_path, "simpo", "llama3-base", answers__source=None, data__max_held_out=1), None)
    assert found.device_hours == pytest.approx(8.0, rel=0.01) and found.pairs == 61135
    assert found.parameters == 8_030_261_248 and "SimPO paper" in found.basis
    found = estimate_cost(tasks(tmp_path, "dpo", "llama3-base", answers__source=None, data__max_held_out=1), None)
    assert found.device_hours == pytest.approx(8 * 73 / 60, rel=0.01)


def test_one_reference_pass_serves_all_losses_that_want_one(tmp_path) -> None:
    plain = {"answers__source": None, "data__max_held_out": 1}
    hours = {
        names: estimate_cost(tasks(tmp_path, names, "llama3-base", **plain), None).device_hours
        for names in ("dpo", "ipo", "dpo,ipo", "simpo")
    }
    reference = hours["dpo"] - hours["simpo"]
    assert hours["dpo,ipo"] == pytest.approx(hours["dpo"] + hours["ipo"] - reference, rel=0.01)
    assert get_loss("ipo").needs == {"reference"}


def test_a_reference_that_moves_is_a_second_model_in_memory_and_in_every_checkpoint(tmp_path) -> None:
    plain, moving = (estimate_cost(tasks(tmp_path, names, "llama3-base"), None) for names in ("dpo", "dpo, tr(dpo)"))
    assert plain.parts is not None and moving.parts is not None
    assert plain.parts["start_model"] == 0 and moving.parts["start_model"] == moving.parts["masters"]
    assert moving.disk - plain.disk == pytest.approx(
        (4 + 3 * 4) * plain.parameters
    )  # one more model; in three checkpoints
    led = estimate_cost(tasks(tmp_path, "dpo, bema(dpo)", "llama3-base"), None)  # with an average, and where it began
    assert led.parts is not None and led.parts["start_model"] == 3 * moving.parts["masters"]
    assert led.disk - plain.disk == pytest.approx((4 + 3 * 12) * plain.parameters)


def test_a_value_model_is_a_second_model_in_training_and_in_every_checkpoint(tmp_path, monkeypatch) -> None:
    plain, valued = (estimate_cost(tasks(tmp_path, name, "llama3-base"), None) for name in ("kto_unpaired", "dro_v"))
    assert plain.parts is not None and valued.parts is not None
    state = sum(valued.parts[name] for name in ("masters", "gradients", "moments"))
    assert plain.parts["value_model"] == 0 and state < valued.parts["value_model"] < 1.5 * state
    assert valued.disk - plain.disk == pytest.approx(3 * 12 * plain.parameters)  # in three checkpoints
    monkeypatch.setattr(cost, "layout_of_devices", lambda: (8, True))
    for sharding, chosen in (("auto", "none"), ("fsdp2", "fsdp2")):
        job = with_sharding(tasks(tmp_path, "dro_v", "llama3-base", train__sharding=sharding)[-1].job)
        assert job.train.sharding == chosen
        refused = ["train.sharding: dro_v trains a value model beside the policy, which fsdp2 does not split; use none"]
        assert sharding_faults(job) == (refused if chosen == "fsdp2" else [])


def test_answers_are_counted_at_their_longest(tmp_path) -> None:
    without = estimate_cost(tasks(tmp_path, "simpo", "llama3-base", answers__source=None), None)
    short = estimate_cost(tasks(tmp_path, "simpo", "llama3-base", answers__max_new_tokens=1024), None)
    long = estimate_cost(tasks(tmp_path, "simpo", "llama3-base", answers__max_new_tokens=4096), None)
    assert long.device_hours - without.device_hours == pytest.approx(4 * (short.device_hours - without.device_hours))


def test_weights_gradients_and_moments_are_split_over_devices_that_shard_them(tmp_path, monkeypatch) -> None:
    alone = estimate_cost(tasks(tmp_path, "simpo", "llama3-base"), None)
    monkeypatch.setattr(cost, "layout_of_devices", lambda: (8, True))
    shared = estimate_cost(tasks(tmp_path, "simpo", "llama3-base"), None)
    state = [sum(found.parts[name] for name in ("masters", "gradients", "moments")) for found in (alone, shared)]
    assert state[0] - state[1] == pytest.approx(16 * 8_030_261_248 * 7 / 8)
    assert shared.memory < 80 * GIB < alone.memory and shared.sharded
    assert alone.answering["weights"] == 2 * 8_030_261_248 and alone.micro_tokens == 8192
    assert shared.seconds < alone.seconds and shared.device_hours == pytest.approx(alone.device_hours)


def test_auto_splits_weights_where_a_copy_does_not_fit_a_device(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(cost, "layout_of_devices", lambda: (8, False))
    monkeypatch.setattr(cost, "device_memory", lambda: 80 * GIB)
    chosen = {}
    for name, changes in {
        "full": {}, "adapter": {"train__adapter": {"r": 16}}, "nf4": {"train__adapter": {"quantize": "nf4"}},
        "none": {"train__sharding": "none"}, "forced": {"train__adapter": {"r": 16}, "train__sharding": "fsdp2"},
    }.items():  # fmt: skip
        job = with_sharding(tasks(tmp_path, "simpo", "llama3-base", **changes)[-1].job)
        chosen[name] = job.train.sharding
        assert with_sharding(job) == job
    assert chosen == {"full": "fsdp2", "adapter": "none", "nf4": "none", "none": "none", "forced": "fsdp2"}
    monkeypatch.setattr(cost, "layout_of_devices", lambda: (1, False))
    assert with_sharding(tasks(tmp_path, "simpo", "llama3-base")[-1].job).train.sharding == "none"


def test_the_disk_holds_a_checkpoint_beside_the_two_that_are_kept(tmp_path) -> None:
    found = estimate_cost(tasks(tmp_path, "simpo", "llama3-base"), None)
    assert found.disk == pytest.approx((4 + 3 * 12) * 8_030_261_248)


def test_an_adapter_needs_no_moments_of_the_frozen_weights(tmp_path) -> None:
    full = estimate_cost(tasks(tmp_path, "simpo", "llama3-base"), None)
    adapted = estimate_cost(tasks(tmp_path, "simpo", "llama3-base", train__adapter={"r": 16}), None)
    assert adapted.memory < 0.4 * full.memory and adapted.disk < 0.05 * full.disk


def test_measured_steps_outrank_every_rule_of_thumb(tmp_path) -> None:
    before = estimate_cost(tasks(tmp_path, "simpo", "tiny"), None)
    assert "matrix-product rate" in before.basis
    run = tmp_path / "tiny" / "dpo-12345678"
    run.mkdir(parents=True)
    lines = [{"step": i, "seconds": 9.0 if i == 1 else 2.0, "pairs": 16} for i in (1, 2, 3)]  # the first warms up
    (run / "steps.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    after = estimate_cost(tasks(tmp_path, "simpo", "tiny", answers__source=None, data__max_held_out=1), None)
    assert after.basis == "the median of 2 measured steps of this setting"
    starting = cost.IMPORT_SECONDS + 2 * cost.START_SECONDS
    assert after.seconds - starting == pytest.approx(after.pairs * 2 * 2.0 / 16, rel=0.01), "two epochs"


def test_only_the_newest_runs_tell_the_pace(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(cost, "TIMED_RUNS", 1)
    for when, run in ((1, "dpo-12345678"), (3, "ipo-12345678"), (2, "kto-12345678")):
        steps = tmp_path / "tiny" / run / "steps.jsonl"
        steps.parent.mkdir(parents=True)
        steps.write_text("".join(json.dumps({"step": i, "seconds": when, "pairs": 1}) + "\n" for i in (1, 2)))
        os.utime(steps, (when, when))
    assert cost._measured(tasks(tmp_path, "simpo", "tiny")) == [3.0]


def test_without_measured_steps_the_estimate_is_near_what_runs_took(tmp_path, monkeypatch) -> None:
    """Recorded on two cores that multiply matrices at 85 gigaflops: `tiny`, 562 pairs in two epochs, 72 steps of 0.10 to
    0.15 s, 47 s with start model and evaluation of 178 held-out pairs and 4 answers a prompt; `smollm2`, 1.2 to 1.3 s a
    pair. The estimates were 7 s for the first, 2.2 s a pair for the second."""
    monkeypatch.setattr(cost, "peak_flops", lambda: 85e9)
    monkeypatch.setattr(cost.torch.cuda, "is_available", lambda: False)
    whole = estimate_cost(tasks(tmp_path, "simpo", "tiny", answers__samples=4), Counts(562, 178, 36.2))
    assert 47 / 2 < whole.seconds < 47 * 2
    for setting, tokens, low, high in (("tiny", 36.2, 0.10 / 16, 0.15 / 16), ("smollm2", 104.0, 1.2, 1.3)):
        job = resolve(setting, "simpo")[0]
        config = SMOLLM2 if setting == "smollm2" else cost.model_config(job)
        size = count_parameters(config)
        pace = cost._pace([Task(job, "loss", tmp_path, "a/b", MANY, tmp_path)], _Data(1, 1, tokens), size, config)
        assert low / 1.25 < pace.pair < high * 1.25, (setting, pace.pair)


def test_a_judge_that_is_asked_over_a_network_has_its_calls_counted(tmp_path) -> None:
    free = estimate_cost(tasks(tmp_path, "simpo", "tiny"), None)
    assert free.judge_calls == 0
    job = tasks(tmp_path, "simpo", "tiny")[0].job
    paid = job.judge.model_copy(update={"name": "someone"})
    made = [Task(job.__class__(**{**job.__dict__, "judge": paid}), "loss", tmp_path, "tiny/simpo", MANY, tmp_path)]
    found = estimate_cost(made, None)
    assert found.judge_calls == 300 * job.answers.samples
    assert found.judge_tokens == found.judge_calls * 2 * job.answers.max_new_tokens


def test_a_model_of_which_nothing_is_known_costs_nan_not_zero(tmp_path) -> None:
    job = resolve("tiny", "simpo", model="someone/a-model")[0]
    found = estimate_cost([Task(job, "loss", tmp_path, "tiny/simpo", MANY, tmp_path)], None)
    assert found.seconds != found.seconds and found.disk != found.disk and "not at hand" in found.basis
