"""The arithmetic of the benchmarks, and that each of them starts. No time is asserted, and TRL is not needed."""

from __future__ import annotations

import argparse
import importlib
import json
import runpy
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from pobench.data.rows import Message, Preference
from pobench.errors import PobenchError
from pobench.registry import get_loss
from pobench.settings.schema import TrainConfig
from pobench.types import Pair, SequenceLogps, TokenPair

FOLDER = Path(__file__).parents[2] / "benchmarks"
SCRIPTS = ("vs_trl", "scaling", "suite", "gpu", "page", "training_step", "two_processes")


@pytest.fixture(autouse=True)
def on_path(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Scripts import their neighbours by bare names, as they do when started."""
    before = set(sys.modules)
    monkeypatch.syspath_prepend(str(FOLDER))
    yield
    for name in set(sys.modules) - before:
        if name in (*SCRIPTS, "peers"):
            del sys.modules[name]


def script(name: str) -> Any:
    return importlib.import_module(name)


class Small(torch.nn.Module):
    """Two body matrices of 3 × 3, a norm of 3, an embedding of 7 × 3, and a head: its own, or the embedding."""

    def __init__(self, tied: bool) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(7, 3)
        self.body = torch.nn.ModuleList([torch.nn.Linear(3, 3, bias=False) for _ in range(2)])
        self.norm = torch.nn.LayerNorm(3, bias=False)
        self.head = torch.nn.Linear(3, 7, bias=False)
        if tied:
            self.head.weight = self.embedding.weight

    def get_input_embeddings(self) -> torch.nn.Module:
        return self.embedding

    def get_output_embeddings(self) -> torch.nn.Module:
        return self.head


@pytest.mark.parametrize("tied, parameters", [(True, 18 + 3 + 21), (False, 18 + 3 + 42)])
def test_the_body_is_neither_embedding_nor_head_nor_norm(tied: bool, parameters: int) -> None:
    assert script("peers").Shape.of(Small(tied)) == (18, 3, 7, parameters)


def test_limit_flops_are_those_of_the_formula() -> None:
    peers = script("peers")
    pair = TokenPair("a", (1,) * 5, (2,) * 3, (3,) * 4)
    shape = peers.Shape(body=100, hidden=10, vocabulary=50, parameters=0)
    # 6 · 100 · (5 + 3 + 4) = 7 200; 6 · 10 · 50 · (3 + 4) = 21 000; the head once more: 2 · 10 · 50 · 7 = 7 000
    assert peers.limit_flops(shape, pair) == 28_200
    assert peers.limit_flops(shape, pair, recomputed_head=True) == 35_200


def test_a_ratio_is_taken_round_by_round() -> None:
    ratios = script("peers").ratios
    # 4/2, 30/10, 9/9: a slow second round moves both sides
    assert ratios([4.0, 30.0, 9.0], [2.0, 10.0, 9.0]) == {"median": 2.0, "min": 1.0, "max": 3.0, "n": 3}
    with pytest.raises(ValueError):
        ratios([1.0], [1.0, 2.0])
    with pytest.raises(ValueError):
        ratios([], [])


def test_equal_losses_pass_and_others_do_not() -> None:
    check = script("peers").check_same_loss
    ours = [0.693147, 0.6, 0.5]
    assert check({"pobench": ours, "peer": [0.693147, 0.6, 0.5 * (1 + 5e-6)]}) == pytest.approx(5e-6, rel=1e-3)
    with pytest.raises(PobenchError, match="peer by 2e-05"):
        check({"pobench": ours, "peer": [0.693147, 0.6, 0.5 * (1 + 2e-5)]})
    with pytest.raises(PobenchError, match="not finite"):
        check({"pobench": ours, "peer": [0.693147, float("nan"), 0.5]})


def test_a_loss_that_stays_at_ln_2_proves_nothing() -> None:
    with pytest.raises(PobenchError, match="prove nothing"):
        script("peers").check_same_loss({"pobench": [0.693147, 0.693148], "peer": [0.693147, 0.693148]})


def test_memory_ratios_leave_out_what_both_must_hold() -> None:
    run = {
        "seconds_per_pair": 1.0,
        "useful_tokens_per_second": 1.0,
        "mfu": 0.5,
        "mfu_with_recomputed_head": 0.5,
        "matmul_flops": 1.0,
        "state_memory": 4,
    }
    runs = {
        "pobench": [{**run, "peak_memory": 10, "libraries_memory": 2}],
        "trl_best": [{**run, "peak_memory": 20, "libraries_memory": 8, "seconds_per_pair": 3.0}],
        "trl_default": [{**run, "peak_memory": 40, "libraries_memory": 8, "seconds_per_pair": 6.0}],
    }
    found = script("vs_trl").summary(runs)
    medians = {key: value["median"] for key, value in found.items() if key != "sides"}
    assert medians == {
        "ratio_default": 6.0,
        "ratio_best": 3.0,
        "memory_ratio": 0.5,  # 10 / 20
        "memory_ratio_default": 0.25,  # 10 / 40
        "activation_ratio": 6 / 16,  # (10 - 4) / (20 - 4)
        "activation_ratio_beyond_libraries": 0.5,  # (10 - 4 - 2) / (20 - 4 - 8)
    }


def test_a_wrong_command_line_lists_all_its_faults() -> None:
    given = argparse.Namespace(
        losses="dpo,simpo,dpp", rounds=0, warm_up=1, batch_size=8, threads=1, pairs=12, best_micro=3
    )
    with pytest.raises(PobenchError) as caught:
        script("vs_trl").check(given)
    told = str(caught.value)
    for words in ("no 'simpo'", "did you mean", "--rounds 0", "--pairs 12", "--best-micro 3"):
        assert words in told


@pytest.mark.parametrize("name", ["dpo", "dpo_ln", "ipo"])
def test_a_twin_names_settings_that_the_loss_has(name: str) -> None:
    twin, loss = script("peers").TWINS[name], get_loss(name)
    assert {twin.setting, *twin.settings} <= set(loss.settings)


def test_twins_are_the_formulas_that_trl_documents() -> None:
    # chosen log-ratio 2 over 4 tokens, rejected -3 over 6: per token 0.5 and -0.5
    policy = Pair(
        SequenceLogps(torch.tensor([2.0]), torch.tensor([4])), SequenceLogps(torch.tensor([-3.0]), torch.tensor([6]))
    )
    zero = torch.zeros(1)
    reference = Pair(SequenceLogps(zero, policy.chosen.length), SequenceLogps(zero, policy.rejected.length))
    wanted = {
        "dpo": torch.log1p(torch.exp(torch.tensor(-0.1 * 5.0))),  # sigmoid
        "dpo_ln": torch.log1p(torch.exp(torch.tensor(-0.1 * 1.0))),  # sigmoid_norm
        "ipo": torch.tensor((1.0 - 1 / (2 * 0.1)) ** 2),  # ipo, per token
    }
    for name, twin in script("peers").TWINS.items():
        loss = get_loss(name)
        output = loss(policy, reference, **{**loss.settings, **twin.settings, twin.setting: 0.1})
        assert output.loss.item() == pytest.approx(float(wanted[name]), rel=1e-6), name


def test_both_sides_train_at_trls_own_values() -> None:
    # what run_pobench leaves to TrainConfig's defaults must be what TRL's defaults are
    defaults = TrainConfig(lr=1e-6)
    assert (defaults.weight_decay, defaults.max_grad_norm, defaults.adam_beta1, defaults.adam_beta2) == (
        0,
        1,
        0.9,
        0.999,
    )
    assert defaults.adam_epsilon == 1e-8


def test_warm_up_goes_round_where_pairs_are_few() -> None:
    assert script("peers").warm_up_order([2, 0, 1], 5) == [2, 0, 1, 2, 0]


def test_pairs_survive_their_file(tmp_path: Path) -> None:
    peers = script("peers")
    pairs = [TokenPair("a", (1, 2), (3,), (4, 5)), TokenPair("ü", (1,), (2,), (3,))]
    peers.save_pairs(tmp_path / "pairs.json", pairs)
    assert peers.load_pairs(tmp_path / "pairs.json") == pairs


def preferences(n: int) -> list[Preference]:
    return [Preference(f"p{i}", (Message("user", f"ask {i}"),), f"good {i}", f"bad {i}", i) for i in range(n)]


def test_crossed_rows_are_distinct_and_every_size_holds_each_answer_equally_often() -> None:
    crossed = script("scaling").crossed
    rows = crossed(preferences(5), 20)
    assert rows[0] == {
        "id": "p0-0",
        "prompt": [{"role": "user", "content": "ask 0"}],
        "chosen": "good 0",
        "rejected": "bad 0",
    }
    assert len({(r["prompt"][0]["content"], r["chosen"]) for r in rows}) == len({r["id"] for r in rows}) == 20
    for size in (5, 10, 20):
        for part in (lambda r: r["prompt"][0]["content"], lambda r: r["chosen"], lambda r: r["rejected"]):
            held = [part(r) for r in rows[:size]]
            assert {held.count(x) for x in held} == {size // 5}
    with pytest.raises(PobenchError, match="25 distinct"):
        crossed(preferences(5), 26)


def test_growth_is_from_the_smallest_size_to_the_largest() -> None:
    runs = {
        2: {"pairs": 2, "tokens": 10, "seconds": 1.0, "train_seconds": 0.5, "peak_memory": 100},
        16: {"pairs": 16, "tokens": 80, "seconds": 8.5, "train_seconds": 4.0, "peak_memory": 110},
        4: {"pairs": 4, "tokens": 20, "seconds": 99.0, "train_seconds": 99.0, "peak_memory": 999},
    }
    assert script("scaling").growth(runs) == {
        "pairs_ratio": 8.0,
        "tokens_ratio": 8.0,
        "growth_ratio": 8.5,
        "training_growth_ratio": 8.0,
        "memory_growth_ratio": 1.1,
    }


def test_sizes_must_grow() -> None:
    scaling = script("scaling")
    assert scaling.sizes_of("1000,8000") == [1000, 8000]
    for wrong in ("8000,1000", "1000", "1000,x", "0,5", "5,5", ""):
        with pytest.raises(PobenchError, match="--sizes"):
            scaling.sizes_of(wrong)
    assert scaling.largest_divisor(1000, 560) == 500
    with pytest.raises(PobenchError, match="no pair fits"):
        scaling.largest_divisor(1000, 0)


def test_the_estimate_of_a_suite_charges_the_reference_only_where_it_is_needed() -> None:
    step = {"default": 10.0, "default_without_reference": 7.0, "best": 4.0}
    # three losses with a reference, two without: 3 · 10 + 2 · 7; 5 · 4 + 3 · 1.5; 5 · 4 + 1.5
    assert script("suite").estimates(step, 1.5, 3, 2) == {"default": 44.0, "best": 24.5, "best_reference_kept": 21.5}


def results() -> dict[str, dict[str, Any]]:
    """One result a benchmark, as small as the page takes them."""
    spread = {"median": 2.0, "min": 1.5, "max": 2.5, "n": 3}
    common = {
        "model": "tiny | <b>",
        "data": "pairs.jsonl",
        "dtype": "fp32",
        "batch_size": 8,
        "pairs": 16,
        "environment": {
            "packages": {"torch": "2", "transformers": "5", "trl": "1"},
            "cpu": "a processor",
            "device": "cpu",
            "threads": 1,
            "python": "3.11",
        },
    }
    ratios = ("ratio_default", "ratio_best", "memory_ratio", "activation_ratio", "activation_ratio_beyond_libraries")
    side = {key: spread for key in ("seconds_per_pair", "peak_memory", "mfu")}
    sizes = {
        str(n): {
            "pairs": n, "tokens": 10 * n, "seconds": n / 9, "data_seconds": 0.1, "reference_seconds": 0.2,
            "peak_memory": 5e8,
        }
        for n in (8, 16)
    }  # fmt: skip
    totals = {"default": 9.0, "best": 6.0, "best_reference_kept": 5.0}
    return {
        "vs_trl": {
            **common,
            "losses": {
                "dpo": {
                    **dict.fromkeys(ratios, spread),
                    "sides": dict.fromkeys(("pobench", "trl_best", "trl_default"), side),
                    "agreement": {"largest_relative_difference": 3e-7},
                }
            },
        },
        "gpu": {
            **common,
            "parameters": 1.2e9,
            "sides": dict.fromkeys(("lean layers", "compiled layers"), side),
            "agreement": {"largest_relative_difference": 3e-7},
        },
        "scaling": {
            **common, "loss": "dpo", "sizes": sizes, "growth_ratio": 2.0, "pairs_ratio": 2.0, "memory_growth_ratio": 1.0,
        },
        "suite": {
            **common, "losses": {"dpo": 1.0, "kto": 2.0}, "pobench_seconds": 3.0, "trl_seconds": totals,
            "time_ratio": {k: 3.0 / v for k, v in totals.items()}, "reference_passes": 1.0,
        },
    }  # fmt: skip


@pytest.mark.slow  # four pictures in two formats, twice
def test_the_page_draws_every_result_and_is_the_same_twice(tmp_path: Path) -> None:
    page = script("page")
    for name, result in results().items():
        (tmp_path / f"{name}.json").write_text(json.dumps({"benchmark": name, **result}))
    page.build(tmp_path)
    names = {f"{name}.{suffix}" for name in results() for suffix in ("json", "png", "svg")}
    assert {p.name for p in tmp_path.iterdir()} == names | {"README.md"}
    first = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    page.build(tmp_path)
    assert first == {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    text = first["README.md"].decode()
    assert "2.0 [1.5, 2.5] (n = 3)" in text
    assert "tiny | <b>" not in text.split("## ", 1)[1]  # a cell's bar is escaped


def test_the_page_names_every_file_that_is_no_result(tmp_path: Path) -> None:
    page = script("page")
    with pytest.raises(PobenchError, match="holds no"):
        page.build(tmp_path)
    for name, content in {"a": "{", "b": "[]", "c": '{"benchmark": "other"}'}.items():
        (tmp_path / f"{name}.json").write_text(content)
    with pytest.raises(PobenchError) as caught:
        page.build(tmp_path)
    assert all(f"{name}.json" in str(caught.value) for name in "abc")
    assert not (tmp_path / "README.md").exists()


def test_the_page_says_that_no_gpu_was_measured_until_one_is(tmp_path: Path) -> None:
    page = script("page")
    found = results()
    (tmp_path / "a.json").write_text(json.dumps({"benchmark": "scaling", **found["scaling"]}))
    assert "Not measured: no GPU at hand" in page.build(tmp_path).read_text()
    (tmp_path / "b.json").write_text(json.dumps({"benchmark": "gpu", **found["gpu"]}))
    text = page.build(tmp_path).read_text()
    assert "Not measured" not in text and "| compiled |" in text


def test_random_pairs_have_ultrafeedbacks_proportions() -> None:
    pairs = script("gpu").random_pairs(2000, 100, 1)
    means = script("peers").lengths_of(pairs)
    # uniform over ±50 %: a standard deviation of 0.5 / √3 = 0.29 of the mean, so 0.0065 of it for the mean of 2000
    assert means == pytest.approx({"prompt": 150, "chosen": 300, "rejected": 250}, rel=0.03)
    assert len({len(p.chosen) for p in pairs}) > 100


def test_the_gpu_benchmark_names_all_that_it_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = script("gpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    wrong = argparse.Namespace(
        small=False, loss="dpo", pairs=10, batch_size=4, micro_tokens=1, warm_up=1, rounds=1, threads=1
    )
    with pytest.raises(PobenchError) as caught:
        gpu.check(wrong)
    for word in ("multiple of --batch-size 4", "dpo: it needs reference", "there is none"):
        assert word in str(caught.value)


def test_a_graph_that_is_compiled_after_the_warm_up_stops_the_gpu_benchmark() -> None:
    gpu = script("gpu")
    given = argparse.Namespace(small=False, warm_up=2)
    run = {"graphs": [1, 2, 2, 2], "layout": "shared_prefix", "layout_reason": "by blocks of attention, equals …"}
    gpu.refuse(run, given)
    with pytest.raises(PobenchError, match="1 graphs were compiled after the warm-up of 2 steps, in steps 4"):
        gpu.refuse({**run, "graphs": [1, 2, 2, 3]}, given)
    with pytest.raises(PobenchError, match="attention by blocks was not used: padded"):
        gpu.refuse({**run, "layout": "padded", "layout_reason": "equals one sequence at a time"}, given)


def test_the_gpu_benchmark_scores_and_answers(tmp_path: Path) -> None:
    gpu, peers = script("gpu"), script("peers")
    gpu.make_model(tmp_path / "model", gpu.SHAPES["random-small"])
    peers.save_pairs(tmp_path / "pairs.json", gpu.random_pairs(8, 512, 20))
    work = peers.Work(str(tmp_path / "model"), str(tmp_path / "pairs.json"), "simpo", {}, 1e-6, str(tmp_path))
    found = gpu.evaluate(work, 3, 4)
    assert found["answers"] == 3 and min(found.values()) > 0


def test_results_are_printed_with_their_spread() -> None:
    flat = dict(script("peers")._flat({"a": {"b": {"median": 2.0, "min": 1.0, "max": 3.0, "n": 3}}, "c": "x"}))
    assert flat == {"a.b": "2  [1, 3]  n = 3", "c": "x"}


@pytest.mark.slow  # the child imports torch and TRL
def test_a_fault_in_a_child_is_a_plain_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("POBENCH_DEBUG", raising=False)
    peers = script("peers")
    with pytest.raises(PobenchError, match="load_pairs: FileNotFoundError"):
        peers.in_child(peers.load_pairs, tmp_path / "absent.json")


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_tells_its_options(name: str, monkeypatch, capsys) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))
    monkeypatch.setattr(sys, "argv", [f"{name}.py", "--help"])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(FOLDER / f"{name}.py"), run_name="__main__")
    assert end.value.code == 0 and "usage:" in capsys.readouterr().out
