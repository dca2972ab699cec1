"""The arithmetic of the benchmarks, and that each of them starts. No time is asserted, and TRL is not needed."""

from __future__ import annotations

import argparse
import importlib
import json
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from pobench.data.rows import Message, Preference
from pobench.errors import PobenchError
from pobench.registry import get_loss
from pobench.settings.schema import TrainConfig
from pobench.types import Pair, SequenceLogps, TokenPair

FOLDER = Path(__file__).parents[2] / "benchmarks"
SCRIPTS = (
    *("vs_trl", "against_trl", "scaling", "suite", "gpu", "page", "training_step", "two_processes"),
    *("answers", "first_hour"),
)


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
    # half of the answers once more without gradient: 100 · (3 + 4) = 700; 10 · 50 · (3 + 4) = 3 500
    assert peers.limit_flops(shape, pair, mismatched=True) == 32_400


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
        "state_memory": 4,
    }
    runs = {
        "pobench": [{**run, "peak_memory": 10, "libraries_memory": 2, "matmul_flops": 2.0}],
        "trl_best": [{**run, "peak_memory": 20, "libraries_memory": 8, "seconds_per_pair": 3.0, "matmul_flops": 2.0}],
        "trl_default": [
            {**run, "peak_memory": 40, "libraries_memory": 8, "seconds_per_pair": 6.0, "matmul_flops": 1.0}
        ],
    }
    found = script("vs_trl").summary(runs)
    medians = {key: value["median"] for key, value in found.items() if key != "sides"}
    assert medians == {
        "ratio_default": 6.0,
        "ratio_best": 3.0,
        "ratio_default_at_equal_rate": 3.0,  # TRL met the machine at half the rate
        "ratio_best_at_equal_rate": 3.0,
        "memory_ratio": 0.5,  # 10 / 20
        "memory_ratio_default": 0.25,  # 10 / 40
        "activation_ratio": 6 / 16,  # (10 - 4) / (20 - 4)
        "activation_ratio_beyond_libraries": 0.5,  # (10 - 4 - 2) / (20 - 4 - 8)
    }


def test_a_wrong_command_line_lists_all_its_faults() -> None:
    given = argparse.Namespace(
        trainer="dpo", losses="dpo,simpo,dpp", rounds=0, warm_up=1, batch_size=8, threads=1, pairs=12, best_micro=3,
        trial_pairs=8, tokens=3,
    )  # fmt: skip
    with pytest.raises(PobenchError) as caught:
        script("vs_trl").check(given)
    told = str(caught.value)
    for words in ("no 'simpo'", "did you mean", "--rounds 0", "--pairs 12", "--best-micro 3", "--tokens 3"):
        assert words in told


@pytest.mark.parametrize("name", ["dpo", "dpo_ln", "ipo", "bco_pair", "simpo", "kto", "orpo"])
def test_a_twin_names_settings_that_the_loss_has(name: str) -> None:
    twin, loss = script("trl_variants").TWINS[name], get_loss(name)
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
        "bco_pair": torch.log1p(torch.exp(torch.tensor([-0.1 * 2.0, 0.1 * -3.0]))).sum(),
    }
    variants = script("trl_variants")
    assert variants.losses_of("dpo") == list(wanted) and variants.losses_of("bco") == ["bco_pair"]
    for name in wanted:
        loss, twin = get_loss(name), variants.TWINS[name]
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
        2: {"pairs": 2, "tokens": 10, "seconds": 1.0, "train_seconds": 0.5, "peak_memory": 100, "mean_flops": 4.0},
        16: {"pairs": 16, "tokens": 80, "seconds": 8.5, "train_seconds": 4.0, "peak_memory": 110, "mean_flops": 3.0},
        4: {"pairs": 4, "tokens": 20, "seconds": 99.0, "train_seconds": 99.0, "peak_memory": 999, "mean_flops": 9.0},
    }
    assert script("scaling").growth(runs) == {
        "pairs_ratio": 8.0,
        "tokens_ratio": 8.0,
        "growth_ratio": 8.5,
        "training_growth_ratio": 8.0,
        "growth_ratio_at_equal_rate": 8.5 * 3 / 4,  # the machine was slower at the end
        "memory_growth_ratio": 1.1,
    }


def test_a_size_that_was_measured_under_the_same_options_is_not_measured_again(tmp_path: Path) -> None:
    scaling, file, about = script("scaling"), tmp_path / "scaling.json", {"benchmark": "scaling", "lr": 1e-5}
    run = {"pairs": 2, "tokens": 9, "seconds": 1.0, "train_seconds": 1.0, "peak_memory": 9, "environment": {"cpu": "x"}}
    runs = {8: {**run, "mean_flops": 1.0}}
    file.write_text(json.dumps(scaling.result_of(about, runs)))
    assert scaling.stored(file, about) == runs
    assert scaling.stored(file, {**about, "lr": 2e-5}) == {} == scaling.stored(tmp_path / "absent", about)
    file.write_text(json.dumps(scaling.result_of(about, runs)).replace("mean_flops", "other"))  # of an older code
    assert scaling.stored(file, about) == {}


def test_sizes_must_grow() -> None:
    scaling = script("scaling")
    assert scaling.sizes_of("1000,8000") == [1000, 8000]
    for wrong in ("8000,1000", "1000", "1000,x", "0,5", "5,5", ""):
        with pytest.raises(PobenchError, match="--sizes"):
            scaling.sizes_of(wrong)
    assert scaling.largest_divisor(1000, 560) == 500
    with pytest.raises(PobenchError, match="no pair fits"):
        scaling.largest_divisor(1000, 0)


def test_a_suite_takes_the_losses_that_stored_sums_and_a_batch_serve() -> None:
    suited = set(script("suite").suited())
    assert {"dpo", "simpo", "kto", "beta_dpo"} <= suited
    assert not suited & {"dro_v", "mallows_dpo", "tdpo1", "plackett_luce", "kto_unpaired", "tr"}


def test_the_estimate_of_a_suite_charges_the_reference_only_where_it_is_needed() -> None:
    step = {"default": 10.0, "default_without_reference": 7.0, "best": 4.0}
    # three losses with a reference, two without: 3 · 10 + 2 · 7; 5 · 4 + 3 · 1.5; 5 · 4 + 1.5
    assert script("suite").estimates(step, 1.5, 3, 2) == {"default": 44.0, "best": 24.5, "best_reference_kept": 21.5}


def gpu_rows() -> list[dict[str, Any]]:
    """Rows of `gpu.py`: of the machine, of pobench and TRL, of answers, and of what was not measured."""
    machine = {"packages": {"torch": "2"}, "device": "a GPU", "threads": 16, "python": "3.12", "cpu": "a processor"}
    trained = {
        "part": "dpo", "status": "measured", "loss": "dpo", "model": "random-1b", "parameters": 1.2e9, "step_seconds": [1.0],
        "useful_tokens_per_second": 1e5, "mfu": 0.5, "peak_memory": 5e10, "compile_seconds": 30.0, "graphs_after_warm_up": 0,
    }  # fmt: skip
    seconds = {"median": 0.01, "min": 0.01, "max": 0.02, "n": 6}
    theirs = {**seconds, "median": 0.03}
    return [
        {"part": "machine", "status": "failed", "why": "the first try"},
        {"part": "machine", "status": "measured", "trial": False, "environment": machine,
         "asked": {"dtype": "bf16", "batch_size": 64}},
        {**trained, "program": "pobench", "variant": "pobench", "seconds_per_pair": seconds},
        {**trained, "program": "TRL", "variant": "TRL at its best", "seconds_per_pair": theirs, "graphs_after_warm_up": None},
        {"part": "answers", "status": "measured", "program": "generate", "model": "random-1b", "answers": 128,
         "tokens_per_second": 9876.5, "ready_seconds": 2.0},
        {"part": "agreement", "status": "measured", "loss": "dpo", "largest_relative_difference": 2e-7},
        {"part": "answers", "status": "not installed", "program": "vllm", "why": "pip install"},
    ]  # fmt: skip


def write_gpu_rows(file: Path, rows: list[dict[str, Any]]) -> None:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"part": "cut o')


def results() -> dict[str, dict[str, Any]]:
    """One result a benchmark, as small as the page takes them."""
    spread = {"median": 2.0, "min": 1.5, "max": 2.5, "n": 3}
    common = {
        "model": "tiny | <b>",
        "data": "pairs.jsonl",
        "dtype": "fp32",
        "batch_size": 8,
        "pairs": 16,
        "micro_tokens": 384,
        "mean_tokens": {"prompt": 40.0, "chosen": 60.5, "rejected": 59.5},
        "environment": {
            "packages": {"torch": "2", "transformers": "5", "trl": "1"},
            "cpu": "a processor",
            "device": "cpu",
            "threads": 1,
            "python": "3.11",
        },
    }
    ratios = (
        "ratio_default", "ratio_best", "memory_ratio", "activation_ratio", "activation_ratio_beyond_libraries",
        "ratio_default_at_equal_rate", "ratio_best_at_equal_rate",
    )  # fmt: skip
    side = {key: spread for key in ("seconds_per_pair", "peak_memory", "mfu")}
    sizes = {
        str(n): {
            "pairs": n, "tokens": 10 * n, "seconds": n / 9, "data_seconds": 0.1, "reference_seconds": 0.2,
            "peak_memory": 5e8,
        }
        for n in (8, 16)
    }  # fmt: skip
    totals = {"default": 9.0, "best": 6.0, "best_reference_kept": 5.0}
    options = {
        "micro": 2, "precomputed": True, "checkpointing": False, "grouped": True, "compiled": False, "liger": False,
        "workers": 2, "optimiser": None, "attention": None,
        "search": [
            {"option": "a", "seconds_per_pair": 3.0, "matmul_flops": 2e11, "kept": True},
            {"option": "b", "seconds_per_pair": 4.0, "matmul_flops": 1e11},
            {"option": "c", "fault": "no time left"},
        ],
    }  # fmt: skip
    against = {
        **common,
        "losses": {
            "dpo": {
                **dict.fromkeys(ratios, spread),
                "sides": dict.fromkeys(("pobench", "trl_best", "trl_default"), side),
                "agreement": {"largest_relative_difference": 3e-7},
                "trl_best": options,
            }
        },
    }
    cells = {
        "dpo-160-fp32": {"trainer": "dpo", "tokens": 160, "dtype": "fp32", "result": against},
        "kto-300-bf16": {"trainer": "kto", "tokens": 300, "dtype": "bf16", "fault": "ended after 9 s"},
    }
    answered = {
        "ratio_at_equal_rate": spread, "tokens_per_second": spread, "same_answers": 0.5, "peak_memory": 9e8,
    }  # fmt: skip
    return {
        "vs_trl": against,
        "answers": {
            **common, "prompts": 9, "answered_together": 9, "sides": {"pobench": answered, "generate": answered},
            "faults": {"continuous": "none"},
        },
        "against_trl": {**common, "cells": cells},
        "scaling": {
            **common, "loss": "dpo", "sizes": sizes, "growth_ratio": 2.0, "pairs_ratio": 2.0, "memory_growth_ratio": 1.0,
        },
        "suite": {
            **common, "losses": {"dpo": 1.0, "kto": 2.0}, "pobench_seconds": 3.0, "trl_seconds": totals,
            "time_ratio": {k: 3.0 / v for k, v in totals.items()}, "reference_passes": 1.0,
        },
        "first_hour": {
            "setting": "tiny", "installed": True, "seconds": 9.0,
            "steps": [{"name": "clone", "command": "git clone", "limit": 60.0, "seconds": 9.0, "ended": "done"}],
            "site": {"pages": 3, "files": 9, "bytes": 100, "absent": []}, "environment": common["environment"],
        },
    }  # fmt: skip


@pytest.mark.slow  # five pictures in two formats, twice
def test_the_page_draws_every_result_and_is_the_same_twice(tmp_path: Path) -> None:
    page = script("page")
    for name, result in results().items():
        (tmp_path / f"{name}.json").write_text(json.dumps({"benchmark": name, **result}))
    write_gpu_rows(tmp_path / "gpu.jsonl", gpu_rows())
    page.build(tmp_path)
    names = {f"{name}.{suffix}" for name in results() for suffix in ("json", "png", "svg")}
    assert {p.name for p in tmp_path.iterdir()} == names | {"README.md", "gpu.jsonl", "gpu.png", "gpu.svg"}
    first = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    page.build(tmp_path)
    assert first == {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    text = first["README.md"].decode()
    assert "2.0 [1.5, 2.5] (n = 3)" in text
    assert "tiny | <b>" not in text.split("## ", 1)[1]  # a cell's bar is escaped
    assert "micro-batches of 2, precomputed, grouped, workers 2; 2 variants tried" in text and "ended after 9 s" in text
    assert (
        "| dpo-160-fp32 | a | 3 | 3 | kept |" in text and "| dpo-160-fp32 | b | 4 | 2 |" in text
    )  # a machine half as fast
    assert "| dpo-160-fp32 | c | – | – | no time left |" in text


def test_a_measurement_names_the_commit_and_whether_code_differs_from_it(tmp_path: Path) -> None:
    commit_of, below = script("peers").commit_of, tmp_path / "below"
    below.mkdir()
    assert commit_of(below) is None

    def git(*words: str) -> str:
        who = ("-c", "user.name=a", "-c", "user.email=a@b.c")
        return subprocess.run(["git", "-C", tmp_path, *who, *words], capture_output=True, text=True, check=True).stdout

    git("init", "-q")
    code, result = tmp_path / "code.py", tmp_path / "result.json"
    code.write_text("1")
    result.write_text("1")
    git("add", ".")
    git("commit", "-qm", "first")
    head = git("rev-parse", "HEAD")[:12]
    result.write_text("2")
    assert commit_of(below) == head
    code.write_text("2")
    assert commit_of(below) == f"{head} + changes"


def test_a_single_round_has_no_interval() -> None:
    from pobench.reporting.tables import make_table, to_markdown

    cells = [script("drawn").estimate({"median": 2.0, "min": 2.0, "max": 2.0, "n": n}) for n in (1, 2)]
    text = to_markdown(make_table(pd.DataFrame({"ratio": cells})))
    assert "2 (n = 1)" in text and "2 [2, 2] (n = 2)" in text


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
    gpu_page = script("gpu_page")
    docs = tmp_path / "docs.md"
    docs.write_text(f"before\n{gpu_page.GPU_BLOCK[0]}\nold\n{gpu_page.GPU_BLOCK[1]}\nafter\n")
    gpu_page.write_gpu_block(tmp_path, docs)
    assert "Not measured: no GPU at hand" in docs.read_text() and "old" not in docs.read_text()
    write_gpu_rows(tmp_path / "gpu.jsonl", gpu_rows())
    gpu_page.write_gpu_block(tmp_path, docs)
    text = docs.read_text()
    assert text.startswith("before\n") and text.endswith("after\n") and "Not measured" not in text
    assert "Measured on a GPU:" in text and "| TRL at its best |" in text
    (row,) = [line for line in text.splitlines() if "TRL at its best" in line]
    assert row.endswith("| 3 |")  # times pobench's time
    docs.write_text("no marks")
    with pytest.raises(PobenchError, match="no place"):
        gpu_page.write_gpu_block(tmp_path, docs)


def test_rows_of_a_trial_are_no_measurement(tmp_path: Path) -> None:
    page, rows = script("page"), gpu_rows()
    write_gpu_rows(tmp_path / "gpu.jsonl", [{**row, "trial": True} for row in rows])
    with pytest.raises(PobenchError, match=r"gpu\.jsonl"):
        page.build(tmp_path)


def test_docs_say_of_a_gpu_what_the_results_say() -> None:
    page, gpu_page = script("page"), script("gpu_page")
    assert gpu_page.gpu_block(page.RESULTS) in gpu_page.DOCS.read_text(encoding="utf-8")


def test_only_cells_that_are_missing_failed_or_asked_otherwise_are_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    against, measured = script("against_trl"), []
    stored = results()["against_trl"]["cells"]
    whole = {**stored["dpo-160-fp32"]["result"], "model": "tiny", "data": "pairs.jsonl"}

    def one_cell(given: argparse.Namespace, cell: dict[str, Any]) -> dict[str, Any]:
        measured.append("-".join(map(str, cell.values())))
        return {"fault": "no memory"} if cell["trainer"] == "kto" else {"result": whole}

    monkeypatch.setattr(against, "one_cell", one_cell)
    monkeypatch.setattr(against, "need_trl", lambda: None)
    monkeypatch.setattr(against.page, "build", lambda folder: folder)
    passed = dict.fromkeys(against.PASSED, 1) | {"model": "tiny"}
    values = {"trainers": "dpo,kto", "tokens": "160", "dtypes": "fp32", "out": tmp_path / "against.json", **passed}
    for again in (False, True):
        measured.clear()
        found = against.measure(argparse.Namespace(**values))
        assert measured == (["kto-160-fp32"] if again else ["dpo-160-fp32", "kto-160-fp32"])
    assert found["model"] == "tiny" and set(found["cells"]) == {"dpo-160-fp32", "kto-160-fp32"}
    assert json.loads((tmp_path / "against.json").read_text()) == found
    measured.clear()
    against.measure(argparse.Namespace(**{**values, "rounds": 2}))
    assert measured == ["dpo-160-fp32", "kto-160-fp32"]
    with pytest.raises(PobenchError) as caught:
        against.measure(argparse.Namespace(**{**values, "trainers": "grpo", "tokens": "x", "dtypes": "fp8"}))
    assert all(words in str(caught.value) for words in ("grpo", "'x'", "fp8"))


@pytest.mark.slow  # commands that start Python
def test_a_cell_ends_with_its_time_and_says_why_it_failed(tmp_path: Path) -> None:
    against = script("against_trl")
    given = argparse.Namespace(
        **dict.fromkeys(against.PASSED, 1) | {"model": "absent", "search": "micro", "cell_seconds": 600.0}
    )
    cell = {"trainer": "dpo", "tokens": 3, "dtype": "fp32"}
    assert "--tokens 3" in against.one_cell(given, cell)["fault"]
    given.cell_seconds = 0.1
    assert against.one_cell(given, cell) == {"fault": "ended after 0 s"}


def test_results_are_printed_with_their_spread() -> None:
    flat = dict(script("peers")._flat({"a": {"b": {"median": 2.0, "min": 1.0, "max": 3.0, "n": 3}}, "c": "x"}))
    assert flat == {"a.b": "2  [1, 3]  n = 3", "c": "x"}


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_tells_its_options(name: str, monkeypatch, capsys) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))
    monkeypatch.setattr(sys, "argv", [f"{name}.py", "--help"])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(FOLDER / f"{name}.py"), run_name="__main__")
    assert end.value.code == 0 and "usage:" in capsys.readouterr().out


def test_an_answer_ends_with_the_token_that_ends_it() -> None:
    ended = script("answers")._ended
    assert ended([5, 6, 2, 0, 0], [2]) == [5, 6, 2]
    assert ended([5, 6, 0, 7], [2]) == [5, 6, 0, 7]  # cut off; what is a pad elsewhere is a token here


@pytest.mark.slow
def test_answers_of_all_programs_are_the_same_in_fp32(tmp_path: Path) -> None:
    out = tmp_path / "answers.json"
    command = [
        sys.executable,
        "benchmarks/answers.py",
        "--model",
        "tiny",
        "--dtype",
        "fp32",
        "--prompts",
        "20",
        "--rounds",
        "1",
    ]
    subprocess.run([*command, "--new-tokens", "8", "--out", str(out)], cwd=FOLDER.parent, check=True)
    found = json.loads(out.read_text())
    assert {side: of["same_answers"] for side, of in found["sides"].items()} == dict.fromkeys(found["sides"], 1.0)
    assert {"pobench", "generate", "generate_static"} <= set(found["sides"]) and set(found["faults"]) <= {"continuous"}
