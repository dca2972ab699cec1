"""One reference pass serves every loss, rate and seed, and is stored as whole files; a damaged one is never used."""

from __future__ import annotations

import math
import random
import shutil
from pathlib import Path

import pytest
import torch

from pobench.data.order import mismatch
from pobench.errors import CorruptError, PobenchError
from pobench.files import sealed, write_json
from pobench.registry import losses
from pobench.training import reference as module
from pobench.training.objectives import mismatched_groups
from pobench.training.reference import (
    MARKER,
    ReferenceSums,
    about_reference,
    compute_reference,
    old_caches,
    reference_causes,
    reference_folder,
    sequence_keys,
)
from pobench.types import Group

CAUSES = {"weights": "w"}


class Counting:
    """Stands for a scorer: the sum of a response is made from its tokens, and what was asked for is kept."""

    def __init__(self, scorer, *, dies_after: int | None = None, nan_from: int | None = None) -> None:
        self.scorer, self.dies_after, self.nan_from = scorer, dies_after, nan_from
        self.computed: list[tuple[tuple[int, ...], tuple[int, ...]]] = []
        inner = scorer.turns
        scorer.turns = lambda groups, **how: self._turns(inner, groups, how)

    def _turns(self, inner, groups, how):
        for number, turn in enumerate(inner(groups, **how)):
            if self.dies_after is not None and number >= self.dies_after:
                raise KeyboardInterrupt
            self.computed += [(groups[i].prompt, r) for i in turn.indices for r in groups[i].responses]
            bad = self.nan_from is not None and number >= self.nan_from
            yield turn._replace(values=turn.values * math.nan) if bad else turn


@pytest.fixture
def groups(pairs) -> list[Group]:
    return [Group.of(p) for p in pairs]


@pytest.fixture
def counting(scorer_of, start_model):
    return lambda **how: Counting(scorer_of(start_model, budget=8), **how)  # 32 tokens without gradient


@pytest.mark.slow
def test_losses_of_sums_two_rates_and_two_seeds_read_exactly_one_pass(fit, pairs, counting, tmp_path) -> None:
    of_sums = {"reference", "kl", "batch"}  # others ask for single tokens, or for what these pairs lack
    known = {name: losses.get(name) for name in losses.names()}
    needing = [name for name, loss in known.items() if loss.unit == "pairs" and "reference" in loss.needs <= of_sums]
    assert len(needing) >= 20
    pass_ = counting()
    groups = [*map(Group.of, pairs), *mismatched_groups(pairs, mismatch(pairs))]
    folder = tmp_path / "reference"
    for i, (loss, lr, seed) in enumerate((n, lr, s) for n in needing for lr in (1e-4, 1e-3) for s in (1, 2)):
        compute_reference(folder, groups, pass_.scorer, CAUSES)
        fit(pairs, loss, folder=f"run{i}", lr=lr, seed=seed, reference=ReferenceSums.load(folder))
    responses = {(g.prompt, r) for g in groups for r in g.responses}
    assert len(pass_.computed) == len(set(pass_.computed)) == len(responses) == 3 * len(pairs)


def test_what_is_stored_is_what_was_computed_to_the_bit(groups, counting, tmp_path) -> None:
    scorer = counting().scorer
    done: list[int] = []
    assert compute_reference(tmp_path / "r", groups, scorer, CAUSES, done.append) == 2 * len(groups)
    assert sum(done) == 2 * len(groups)
    stored = ReferenceSums.load(tmp_path / "r")
    assert torch.equal(stored.of(groups), scorer.sums(groups)) and stored.of(groups).dtype == torch.float64
    assert torch.equal(stored.of(groups[3:5]), stored.of(groups)[6:10])
    assert stored.arithmetic == scorer.arithmetic == "no shared_prefix" and stored.responses == 2 * len(groups)
    assert about_reference(tmp_path / "r")["causes"] == CAUSES
    assert {p.name for p in (tmp_path / "r").iterdir()} == {MARKER, about_reference(tmp_path / "r")["file"]}
    assert compute_reference(tmp_path / "r", groups, scorer, CAUSES) == 0
    assert torch.equal(ReferenceSums.of_groups(groups, scorer).of(groups), stored.of(groups))


def test_a_response_that_is_there_twice_is_computed_once(counting, tmp_path) -> None:
    pass_ = counting()
    twice = [Group((1, 2), ((3, 4), (3, 4), (5,)))]
    assert compute_reference(tmp_path / "r", twice, pass_.scorer, CAUSES) == len(pass_.computed) == 2
    first, second, _ = ReferenceSums.load(tmp_path / "r").of(twice).tolist()
    assert first == second


def test_the_border_between_prompt_and_response_is_part_of_the_key() -> None:
    keys = {sequence_keys(Group(p, (r,)))[0] for p, r in (((1, 2), (3,)), ((1,), (2, 3)), ((1, 2), (3, 0)))}
    assert len(keys) == 3
    assert sequence_keys(Group((1, 2), ((4,), (3,))))[1] in keys


def test_every_cause_of_other_sums_names_another_folder(groups, tmp_path) -> None:
    names = {
        reference_folder(tmp_path, reference_causes(g, weights, arithmetic)).name
        for g, weights, arithmetic in (
            (groups, "w", "fp32"),
            (groups, "w", "bf16"),
            (groups, "other", "fp32"),
            (groups[1:], "w", "fp32"),
        )
    }
    assert len(names) == 4 and all(len(n) == 12 for n in names)
    shuffled = random.Random(0).sample(groups, len(groups))
    assert reference_folder(tmp_path, reference_causes(shuffled, "w", "fp32")).name in names


@pytest.mark.parametrize("seconds", [0.0, 1e9])
def test_a_killed_pass_goes_on_with_what_is_missing(groups, counting, tmp_path, monkeypatch, seconds) -> None:
    monkeypatch.setattr(module, "SECONDS_BETWEEN_PARTS", seconds)
    killed = counting(dies_after=3)
    with pytest.raises(KeyboardInterrupt):
        compute_reference(tmp_path / "r", groups, killed.scorer, CAUSES)
    assert about_reference(tmp_path / "r") is None and killed.computed
    with pytest.raises(PobenchError, match="no finished reference sums"):
        ReferenceSums.load(tmp_path / "r")
    again = counting()
    assert compute_reference(tmp_path / "r", groups, again.scorer, CAUSES) == len(again.computed)
    assert not set(killed.computed) & set(again.computed)
    assert len(killed.computed) + len(again.computed) == 2 * len(groups)
    assert not list((tmp_path / "r").glob("part-*"))


def test_a_part_with_other_bytes_is_computed_anew(groups, counting, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(module, "SECONDS_BETWEEN_PARTS", 1e9)
    killed = counting(dies_after=3)
    with pytest.raises(KeyboardInterrupt):
        compute_reference(tmp_path / "r", groups, killed.scorer, CAUSES)
    (part,) = (tmp_path / "r").glob("part-*")
    part.write_bytes(part.read_bytes()[:-1] + b"\x00")
    assert compute_reference(tmp_path / "r", groups, counting().scorer, CAUSES) == 2 * len(groups)


def test_a_sum_that_is_no_number_is_never_stored(groups, counting, tmp_path) -> None:
    broken = counting(nan_from=2)
    with pytest.raises(ValueError, match=r"gives \d+ log-probabilities that are not finite"):
        compute_reference(tmp_path / "r", groups, broken.scorer, CAUSES)
    assert about_reference(tmp_path / "r") is None
    again = counting()
    compute_reference(tmp_path / "r", groups, again.scorer, CAUSES)
    assert 0 < len(again.computed) < 2 * len(groups)  # what was finite was kept
    assert ReferenceSums.load(tmp_path / "r").of(groups).isfinite().all()


def test_a_damaged_file_is_named_and_refused(groups, counting, tmp_path) -> None:
    scorer = counting().scorer
    compute_reference(tmp_path / "r", groups, scorer, CAUSES)
    sums = tmp_path / "r" / about_reference(tmp_path / "r")["file"]
    for damaged, how in (
        (sums, lambda data: data[:-1] + bytes([data[-1] ^ 1])),
        (sums, lambda data: data[: len(data) // 2]),
        (tmp_path / "r" / MARKER, lambda data: data[:10]),
        (tmp_path / "r" / MARKER, lambda data: b"[]"),
    ):
        whole = damaged.read_bytes()
        damaged.write_bytes(how(whole))
        for use in (ReferenceSums.load, lambda folder: compute_reference(folder, groups, scorer, CAUSES)):
            with pytest.raises(CorruptError, match=damaged.name) as caught:
                use(tmp_path / "r")
            assert caught.value.path == damaged
        damaged.write_bytes(whole)
    sums.unlink()
    with pytest.raises(CorruptError, match="is gone"):
        ReferenceSums.load(tmp_path / "r")


def test_what_is_missing_is_told(groups, counting, tmp_path) -> None:
    scorer = counting().scorer
    compute_reference(tmp_path / "r", groups[:4], scorer, CAUSES)
    sums = ReferenceSums.load(tmp_path / "r")
    with pytest.raises(PobenchError, match=r"4 of 8 responses have no reference sum among the 8 .* group 3 of 4"):
        sums.of(groups[2:6])
    with pytest.raises(PobenchError, match="have no reference sum"):
        compute_reference(tmp_path / "r", groups, scorer, CAUSES)
    with pytest.raises(PobenchError, match="of other causes"):
        compute_reference(tmp_path / "r", groups[:4], scorer, {"weights": "others"})


def test_several_folders_are_read_as_one_but_not_of_different_arithmetic(groups, counting, tmp_path) -> None:
    scorer = counting().scorer
    for name, part in (("a", groups[:4]), ("b", groups[4:])):
        compute_reference(tmp_path / name, part, scorer, CAUSES)
    both = ReferenceSums.load(tmp_path / "a", tmp_path / "b")
    assert both.seconds_apart == sum(about_reference(tmp_path / name)["seconds"] for name in "ab") > 0
    assert both.responses == 2 * len(groups) and both.of(groups).isfinite().all()
    about = about_reference(tmp_path / "b")
    write_json(tmp_path / "b" / MARKER, sealed({**about, "arithmetic": "bf16"}))
    with pytest.raises(
        PobenchError, match=r"one arithmetic are needed; the folders hold \['bf16', 'no shared_prefix'\]"
    ):
        ReferenceSums.load(tmp_path / "a", tmp_path / "b")


def test_two_jobs_may_make_the_same_pass_at_once(groups, counting, tmp_path) -> None:
    """The second looks before the first has finished, and finishes after it; its sums differ in a last digit."""
    first, second = counting().scorer, counting()
    inner = second.scorer.turns

    def turns(lacking, **how):
        compute_reference(tmp_path / "r", groups, first, CAUSES)
        yield from (turn._replace(values=turn.values * (1 + 2**-40)) for turn in inner(lacking, **how))

    second.scorer.turns = turns
    assert compute_reference(tmp_path / "r", groups, second.scorer, CAUSES) == 2 * len(groups)
    assert torch.allclose(ReferenceSums.load(tmp_path / "r").of(groups), first.sums(groups), rtol=1e-9)
    assert not list((tmp_path / "r").glob("*.partial"))


def test_an_old_cache_is_named_and_not_read(groups, counting, tmp_path) -> None:
    (tmp_path / "0123456789abcdef.sqlite").write_bytes(b"SQLite format 3\x00")
    folder = reference_folder(tmp_path, CAUSES)
    assert compute_reference(folder, groups, counting().scorer, CAUSES) == 2 * len(groups)
    assert old_caches(tmp_path) == ["0123456789abcdef.sqlite"] and old_caches(tmp_path / "none") == []


@pytest.mark.slow
def test_the_sums_of_60_000_pairs_are_found_by_one_key_each(tmp_path: Path, monkeypatch) -> None:
    draw = random.Random(0)
    tokens = [draw.randrange(50_000) for _ in range(2_000)]

    def some(n: int) -> tuple[int, ...]:
        at = draw.randrange(len(tokens) - n)
        return tuple(tokens[at : at + n])

    groups = [Group((i, *some(150)), (some(300), some(300))) for i in range(60_000)]
    totals = {key: -float(i) for i, group in enumerate(groups) for key in sequence_keys(group)}
    module._finish(tmp_path / "r", totals, {"causes": CAUSES, "arithmetic": "fp32"})
    keyed = []
    monkeypatch.setattr(module, "sequence_keys", lambda group: (keyed.append(group), sequence_keys(group))[1])
    sums = ReferenceSums.load(tmp_path / "r").of(groups)
    assert torch.equal(sums, torch.arange(60_000, dtype=torch.float64).neg().repeat_interleave(2))
    assert keyed == groups
    shutil.rmtree(tmp_path / "r")
