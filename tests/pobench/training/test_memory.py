"""A micro-batch as large as memory allows, by measurement; the choice changes no result, and a resumed run keeps it."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

from pobench.data.spool import Mapped
from pobench.model import device
from pobench.model.layouts import get_layout
from pobench.settings.schema import MICRO_TOKENS, TrainConfig
from pobench.training import memory
from pobench.types import Group

CPU = torch.device("cpu")
ROWS = get_layout("shared_prefix")
A_TOKEN = 1000  # bytes that a token costs in these tests; a tenth of it with checkpointing


@pytest.fixture
def choose(monkeypatch):
    """The choice for random groups, the longest of 96 tokens, where memory is as free as said and costs what is said."""
    rng = random.Random(0)
    groups = [Group((1,) * rng.randint(8, 30), ((2,) * rng.randint(4, 20),) * 2) for _ in range(20)]
    groups.append(Group((1,) * 32, ((2,) * 32, (3,) * 32)))

    def run(free: int | None, later: int = 0, layout=ROWS, groups=groups, a_target=0, **changes):
        seen, on = [], []
        monkeypatch.setattr(memory, "free_memory", lambda device: free)

        def held_by(work, device) -> int:
            work()
            return seen[-1] * A_TOKEN // (10 if on[-1] else 1)

        monkeypatch.setattr(memory, "held_by", held_by)
        config = TrainConfig(lr=1, **{"micro_tokens": "auto", "gradient_checkpointing": "auto", **changes})

        def step(batch) -> None:
            seen.append(batch.input_ids.numel() + a_target * len(batch.target))

        found = memory.choose(config, groups, layout, None, CPU, step, on.append, later)
        assert on[-1] == found.gradient_checkpointing
        return found

    return run


def test_of_padded_lists_the_group_of_most_tokens_is_probed_not_the_widest(choose) -> None:
    widest, most = Group((1,) * 60, ((2,) * 40,)), Group((1,) * 50, ((2,) * 40,) * 8)
    row = 8 * 90 * A_TOKEN / memory.SHARE  # what a micro-batch of its own takes
    found = choose(int(1.5 * row), layout=get_layout("padded"), groups=[widest, most])
    assert found[:2] == (8 * 90, False)
    assert choose(int(0.9 * row), layout=get_layout("padded"), groups=[widest, most]).gradient_checkpointing


def test_less_memory_gives_smaller_micro_batches_and_only_the_least_gives_checkpointing(choose) -> None:
    row = 96 * A_TOKEN / memory.SHARE  # free memory that one row of the longest pair needs
    assert choose(int(1000 * row))[:2] == (MICRO_TOKENS, False)  # no more than a processor has use for
    assert choose(int(9 * row))[:2] == (8 * 96, False)
    assert choose(int(3 * row))[:2] == (2 * 96, False)
    assert choose(int(1.1 * row))[:2] == (96, False)
    assert choose(int(0.9 * row))[:2] == (8 * 96, True)
    assert choose(int(0.11 * row))[:2] == (96, True)
    least = choose(int(0.05 * row))
    assert least[:2] == (96, True) and "may not fit" in least.reason


def test_of_many_groups_the_longest_are_held_and_no_others(choose, monkeypatch) -> None:
    monkeypatch.setattr(memory, "PROBED", 8)
    lengths = [20] * 300 + [40] + [20] * 300
    held: list[int] = []

    class Counted(tuple):
        """A prompt that is counted while it lives."""

        def __del__(self) -> None:
            held.pop()

    def group(length: int) -> Group:
        prompt = Counted((1,) * length)
        held.append(length)
        most.append(len(held))
        return Group(prompt, ((2,) * 8, (3,) * 8))

    most: list[int] = []
    row = (40 + 16) * A_TOKEN / memory.SHARE
    assert choose(int(2.5 * row), groups=Mapped(group, lengths))[:2] == (2 * 64, False)  # 56 tokens in a row of 64
    assert len(most) == 601 and max(most) <= 8 + 2  # and the one at hand


def test_under_a_common_beginning_micro_batches_are_smaller_as_more_of_them_are_answers(choose) -> None:
    """A group alone is a sixth answers, which here cost ten times as much as prompts."""
    groups = [Group((*(1,) * 79, 10 + i), ((2,) * 8, (3,) * 8)) for i in range(20)]
    row = (96 + 10 * 16) * A_TOKEN / memory.SHARE
    for rooted, tokens in ((False, 8 * 96), (True, 2 * 96)):
        layout = get_layout("shared_prefix", one_row=True, rooted=rooted)
        assert choose(int(8.1 * row), layout=layout, groups=groups, a_target=10)[:2] == (tokens, False)


def test_what_the_optimiser_will_take_is_not_counted_as_free(choose) -> None:
    row = int(96 * A_TOKEN / memory.SHARE)
    assert choose(9 * row, later=6 * row)[:2] == choose(3 * row)[:2] == (2 * 96, False)


def test_a_number_that_was_given_stays_and_the_other_is_chosen_for_it(choose) -> None:
    row = 96 * A_TOKEN / memory.SHARE
    assert choose(int(9 * row), micro_tokens=500)[:2] == (500, False)
    assert choose(int(3 * row), micro_tokens=500)[:2] == (500, True)
    assert choose(int(1.1 * row), gradient_checkpointing=True)[:2] == (8 * 96, True)
    assert choose(int(1.1 * row), gradient_checkpointing=False)[:2] == (96, False)
    assert choose(int(0.5 * row), gradient_checkpointing=False)[:2] == (96, False)


def test_the_padded_layout_counts_its_repeated_prompts(choose) -> None:
    row = 128 * A_TOKEN / memory.SHARE  # two rows of 32 + 32
    assert choose(int(2.1 * row), layout=get_layout("padded"))[:2] == (2 * 128, False)


def test_where_the_system_does_not_say_the_usual_number_stands(choose) -> None:
    assert choose(None)[:2] == (MICRO_TOKENS, False)
    assert choose(None, gradient_checkpointing=True)[:2] == (MICRO_TOKENS, True)


def test_a_peak_that_is_gone_again_is_measured(monkeypatch) -> None:
    if not memory._resident():
        pytest.skip("this system does not say what a process holds")
    megabytes, resident, sampled = 96, memory._resident, threading.Semaphore(0)
    monkeypatch.setattr(memory, "_resident", lambda: (resident(), sampled.release())[0])

    def work() -> None:
        _ = torch.ones(megabytes * 2**18)
        while sampled.acquire(blocking=False):  # the samples of before
            pass
        assert sampled.acquire(timeout=600) and sampled.acquire(
            timeout=600
        )  # the second began after the tensor was there

    held = memory.held_by(work, CPU)
    assert 0.9 * megabytes < held / 2**20 < 2 * megabytes


@pytest.mark.parametrize("version", [1, 2])
def test_a_containers_limit_counts_and_so_does_the_one_around_it(version, tmp_path) -> None:
    names = ("memory.max", "memory.current", "inactive_file")
    top, line = tmp_path, "0::/outer/inner\n"
    if version == 1:
        names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        top, line = tmp_path / "memory", "4:cpu,memory:/outer/inner\n3:cpuset:/\n"

    def group(folder: Path, limit: str, used: int, cached: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / names[0]).write_text(limit)
        (folder / names[1]).write_text(f"{used}\n")
        (folder / "memory.stat").write_text(f"anon 5\n{names[2]} {cached}\n")

    group(top / "outer" / "inner", "1000\n", 700, 200)
    group(top / "outer", "2000\n", 1900, 0)
    group(top, "max\n", 5000, 0)
    (tmp_path / "groups").write_text(line)
    assert sorted(device._room_in_containers(tmp_path, tmp_path / "groups")) == [100, 500]
    assert device._room_in_containers(tmp_path, tmp_path / "absent") == []


def test_this_machine_has_memory_left() -> None:
    free = memory.free_memory(CPU)
    assert free is None or 0 < free < 2**50


# ---------------------------------------------------------------- in a run

AUTO = {"micro_tokens": "auto", "gradient_checkpointing": "auto"}


def test_a_real_probe_leaves_the_step_as_it_is(fit, pairs, monkeypatch) -> None:
    _, fixed, rows = fit(pairs, "dpo", folder="fixed", batch_size=8, micro_tokens=10_000)
    for i, (free, tokens, checkpointing) in enumerate(((2**40, MICRO_TOKENS, False), (0, 32, True))):
        monkeypatch.setattr(memory, "free_memory", lambda device, free=free: free)
        _, result, found = fit(pairs, "dpo", folder=f"auto{i}", batch_size=8, **AUTO)
        assert (result.micro_tokens, result.gradient_checkpointing) == (tokens, checkpointing)
        assert "longest rows take" in result.memory_reason
        for row, first in zip(found, rows, strict=True):
            for name in ("loss", "grad_norm", "logps/chosen"):
                assert row[name] == pytest.approx(first[name], rel=2e-5, abs=2e-5), name
    assert fixed.memory_reason == "as the setting says"


def test_a_resumed_run_keeps_what_it_began_with_bit_for_bit(fit, pairs, monkeypatch) -> None:
    def weights(model) -> torch.Tensor:
        return torch.cat([p.detach().flatten() for p in model.parameters()])

    class Killed(BaseException):
        pass

    def log(row) -> None:
        if row["step"] == 3:
            raise Killed

    options = {"epochs": 2, "checkpoint_seconds": 0, **AUTO}
    monkeypatch.setattr(memory, "free_memory", lambda device: 0)
    undisturbed, before, _ = fit(pairs, folder="a", **options)
    with pytest.raises(Killed):
        fit(pairs, folder="b", log=log, **options)
    monkeypatch.setattr(memory, "free_memory", lambda device: 2**40)
    resumed, after, _ = fit(pairs, folder="b", **options)
    assert before.micro_tokens == after.micro_tokens == 32 and after.gradient_checkpointing
    assert torch.equal(weights(undisturbed), weights(resumed))


def test_the_choice_is_said_and_stored(work_here, capsys) -> None:
    folder = work_here("simpo", ("train",), train__micro_tokens="auto")
    stored = json.loads((folder / "trained.json").read_text())
    assert (
        f"micro-batches of {stored['micro_tokens']} tokens, without activation checkpointing" in capsys.readouterr().err
    )
    assert stored["memory_reason"] and stored["gradient_checkpointing"] is False


MEASURED = """
import json, os, torch
from pobench.training.memory import _resident, keep_few_kernels, keep_large_tensors_apart

def freed_between_kept(apart):
    if apart:
        keep_large_tensors_apart()
    del (large := [torch.ones(30 * 2**18)])[:]  # 30 MiB freed: glibc would take what is smaller from its heap henceforth
    tensors = [torch.ones(2**20) for _ in range(40)]  # 4 MiB each
    before = _resident()
    del tensors[::2]
    return before - _resident()

def grown_by_shapes(few):
    if few:
        keep_few_kernels()
    weight, x = torch.randn(64, 64).bfloat16(), torch.randn(900, 64).bfloat16()
    x @ weight
    before = _resident()
    for tokens in range(100, 900, 2):
        x[:tokens] @ weight
    return _resident() - before

def in_a_child(measure, change):
    out, into = os.pipe()
    if not (child := os.fork()):
        os.write(into, str(measure(change)).encode())
        os._exit(0)
    os.waitpid(child, 0)
    return int(os.read(out, 100))

print(json.dumps([in_a_child(m, change) for m in (freed_between_kept, grown_by_shapes) for change in (True, False)]))
"""


@pytest.fixture(scope="module")
def measured() -> list[int]:
    """Bytes freed with and without our change to glibc's heap; bytes grown with and without our limit on kernels. Each in a
    process that has computed nothing before."""
    if not sys.platform.startswith("linux"):
        pytest.skip("resident memory is read from /proc, and the heap is glibc's")
    free = {k: v for k, v in os.environ.items() if k not in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY")}
    done = subprocess.run([sys.executable, "-c", MEASURED], capture_output=True, text=True, check=True, env=free)
    return list(json.loads(done.stdout))


def test_freed_tensors_between_kept_ones_go_back_to_the_system(measured) -> None:
    apart, together, *_ = measured
    assert apart > 70 * 2**20, (apart, together)
    assert apart > together  # else glibc does as much unasked, and the call is for nothing


def test_narrow_products_of_ever_other_shapes_do_not_fill_the_memory(measured) -> None:
    *_, few, every = measured
    if every < 50 * 2**20:
        pytest.skip("this processor's narrow products are not compiled shape by shape")
    assert few < 0.5 * every, (few, every)
