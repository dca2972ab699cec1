"""One optimiser batch, cut in every way: every registered loss gives the same loss and the same gradient."""

from __future__ import annotations

import pytest
import torch

from pobench.registry import get_loss, list_losses
from pobench.types import Group
from pobench.workflows.invariance import (
    BATCH,
    PAIRS,
    SPLITS,
    TOLERANCE,
    WHOLE,
    _budget,
    difference,
    layout_of,
    small_pairs,
    take_steps,
    take_steps_in_two_processes,
)

LOSSES = list_losses()
FEW = ("dpo", "kto", "simpo")  # with a reference, with a kl, with neither
ONE_BY_ONE = next(s for s in SPLITS if s.layout == "padded" and s.micro_batches == BATCH)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return {name: tmp_path_factory.mktemp(name) for name in LOSSES}


def test_the_splits_are_what_their_names_say() -> None:
    groups = [Group.of(p) for p in small_pairs()[:BATCH]]
    for split in (WHOLE, *SPLITS):
        batches = layout_of(split).plan(groups, _budget(split, small_pairs()[:BATCH]))
        assert len(batches) == split.micro_batches
        if split.layout == "shared_prefix" and split.micro_batches < BATCH:
            assert all(layout_of(split).collate([groups[i] for i in batch]).root for batch in batches)
    assert {s.layout for s in SPLITS} == {"shared_prefix", "padded"} and {s.micro_batches for s in SPLITS} == {1, 2, 8}
    assert 0 < PAIRS % BATCH < BATCH  # the last batch is short


def test_the_pairs_are_of_many_lengths_one_token_too() -> None:
    lengths = [len(r) for p in small_pairs() for r in (p.chosen, p.rejected)]
    assert min(lengths) == 1 and len(set(lengths)) > 5


def assert_alike(name, splits, folder) -> None:
    loss = get_loss(name)
    whole = take_steps(loss, loss.settings, WHOLE, folder)
    assert whole.gradient.shape[0] == 2 and (whole.gradient.norm(dim=1) > 0).all()
    for split in splits:
        steps = take_steps(loss, loss.settings, split, folder)
        assert difference(steps, whole) <= TOLERANCE, split.name


@pytest.mark.parametrize("name", LOSSES)
def test_a_batch_may_be_cut_pair_by_pair(name, folders) -> None:
    assert_alike(name, [ONE_BY_ONE], folders[name])


@pytest.mark.parametrize("name", [n if n in FEW else pytest.param(n, marks=pytest.mark.slow) for n in LOSSES])
def test_a_batch_may_be_cut_in_any_way(name, folders) -> None:
    assert_alike(name, [split for split in SPLITS if split != ONE_BY_ONE], folders[name])


def test_the_policy_has_left_the_reference(folders) -> None:
    steps = take_steps(get_loss("dpo"), get_loss("dpo").settings, WHOLE, folders["dpo"])
    assert (steps.loss - 0.693147).abs().min() > 1e-3


@pytest.mark.slow
def test_two_processes_train_every_loss_as_one() -> None:
    for name, (one, two) in take_steps_in_two_processes(LOSSES).items():
        assert difference(two, one) <= TOLERANCE, name
        assert (one.gradient.norm(dim=1) > 0).all(), name


def test_a_difference_is_seen() -> None:
    loss = get_loss("simpo")
    import tempfile
    from pathlib import Path

    with tempfile.TemporaryDirectory() as temporary:
        whole = take_steps(loss, loss.settings, WHOLE, Path(temporary))
    other = whole._replace(gradient=whole.gradient + 1e-4 * torch.randn(whole.gradient.shape))
    assert difference(other, whole) > TOLERANCE
    assert not difference(whole._replace(loss=whole.loss * float("nan")), whole) <= TOLERANCE
