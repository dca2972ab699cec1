"""Two processes end, whatever is left for each of them to do, and give what one gives."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from two_processes import in_two_processes

from pobench.data.order import mismatch
from pobench.model.device import make_accelerator
from pobench.model.logps import ResponseLogps
from pobench.model.policy_sums import SumScorer
from pobench.registry import get_loss, list_losses
from pobench.settings.schema import TrainConfig
from pobench.training import reference
from pobench.training.loop import train
from pobench.training.objectives import STEP_METRICS, mismatched_groups
from pobench.types import Group
from pobench.workflows.invariance import small_items, small_model, small_pairs, small_ratios

PAIRS = 9  # in batches of 8: the second has nothing for the second process


def work(folder: Path, names: tuple[str, ...]) -> None:
    """Compute reference sums and train each loss; one of the processes writes the rows that it logged."""
    accelerator = make_accelerator("fp32", cpu=True)
    pairs = small_pairs(PAIRS)
    groups = [*map(Group.of, pairs), *mismatched_groups(pairs, mismatch(pairs))]
    policy = ResponseLogps(small_model())
    scorer = SumScorer(policy, policy.layout("shared_prefix"), accelerator, budget=64)
    results: dict[str, Any] = {
        "processes": accelerator.num_processes,
        "computed": reference.compute_reference(folder / "reference", groups, scorer, {}),
        "left": reference.compute_reference(folder / "part", groups, scorer, {}) if (folder / "part").is_dir() else 0,
    }
    sums = {"pairs": reference.ReferenceSums.load(folder / "reference")}
    for name in names:
        rows: list[dict[str, Any]] = []
        loss = get_loss(name)
        items = small_items(loss.unit, PAIRS)
        if loss.unit not in sums:
            of_items = [*map(Group.of, items), *mismatched_groups(items, mismatch(items))]
            sums[loss.unit] = reference.ReferenceSums.of_groups(of_items, scorer)
        config = TrainConfig(
            lr=1e-3, batch_size=8, precision="fp32", warmup_ratio=0.0, micro_tokens=64, evaluate_every=1
        )
        train(
            accelerator,
            small_model(),
            items,
            [range(len(items))],
            loss,
            loss.settings,
            config,
            folder=folder / name,
            reference=reference.EveryStep(scorer) if loss.runs_reference else sums[loss.unit],
            mismatched=mismatch(items),
            density_ratios=small_ratios(items),
            log=rows.append,
            watch=lambda scorer: {"watched": float(scorer.sums(groups[:1]).sum())},
        )
        results[name] = rows
    if accelerator.is_main_process:
        (folder / "results.json").write_text(json.dumps(results))


def run(folder: Path, processes: int, *names: str) -> dict[str, Any]:
    """What `work` writes, in this process or in two."""
    folder.mkdir(exist_ok=True)
    if processes == 1:
        work(folder, names)
    else:
        in_two_processes(work, folder, names)
    return dict(json.loads((folder / "results.json").read_text()))


def assert_alike(one: dict[str, Any], two: dict[str, Any], *names: str) -> None:
    assert (one["processes"], two["processes"]) == (1, 2)
    assert one["computed"] == two["computed"] == 3 * PAIRS
    for name in names:
        unit = get_loss(name).unit
        assert [row[unit] for row in two[name]] == ([16, 2] if unit == "answers" else [8, 1])
        for row, alone in zip(two[name], one[name], strict=True):
            compared = {*STEP_METRICS, "grad_norm", "value", "value_grad_norm", "watched", "kl"} & row.keys()
            assert {k: row[k] for k in compared} == pytest.approx(
                {k: alone[k] for k in compared}, rel=1e-4, abs=1e-5, nan_ok=True
            ), name


def test_nine_pairs_in_batches_of_eight_and_a_reference_pass_with_one_pair_left_end(tmp_path) -> None:
    pairs, names = small_pairs(PAIRS), ("kto", "dpo", "simpo", "plackett_luce", "kto_unpaired", "bco_udm", "dro_v")
    groups = [*map(Group.of, pairs), *mismatched_groups(pairs, mismatch(pairs))]
    part = reference._Part(tmp_path / "two" / "part")
    part.sums = {key: -1.0 for group in groups[1:] for key in reference.sequence_keys(group)}
    part.write()
    one, two = run(tmp_path / "one", 1, *names), run(tmp_path / "two", 2, *names)
    assert_alike(one, two, *names)
    assert two["left"] == 2  # the two answers of one pair, by one of the processes
    sums = reference.ReferenceSums.load(tmp_path / "two" / "part").of(groups)
    assert (sums[:2] != -1.0).all() and (sums[2:] == -1.0).all()


@pytest.mark.slow
def test_nine_pairs_in_batches_of_eight_end_for_every_loss(tmp_path) -> None:
    names = list_losses()
    assert_alike(run(tmp_path / "one", 1, *names), run(tmp_path / "two", 2, *names), *names)
