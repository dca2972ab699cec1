"""One reference pass serves every loss, rate and seed; a cause of other sums is another cache."""

from __future__ import annotations

import pytest

from pobench.registry import losses
from pobench.training.reference import ReferenceCache, sequence_key
from pobench.types import Group


def test_six_losses_two_rates_and_two_seeds_cause_exactly_one_pass(fit, pairs, monkeypatch) -> None:
    computed = []
    put = ReferenceCache.put

    def counted(self, groups, totals):
        computed.extend((g.prompt, r) for g in groups for r in g.responses)
        return put(self, groups, totals)

    monkeypatch.setattr(ReferenceCache, "put", counted)
    needing = [name for name in losses.names() if "reference" in losses.get(name).needs]
    assert len(needing) >= 6
    kl_first = sorted(needing, key=lambda name: "kl" not in losses.get(name).needs)
    for i, (loss, lr, seed) in enumerate((n, lr, s) for n in kl_first for lr in (1e-4, 1e-3) for s in (1, 2)):
        fit(pairs, loss, folder=f"run{i}", lr=lr, seed=seed)
    responses = {(p.prompt, r) for p in pairs for r in (p.chosen, p.rejected)}
    borrowed = len(pairs)  # KTO's mismatched (prompt, response), one a pair
    assert len(computed) == len(set(computed)) == len(responses) + borrowed


def test_what_is_cached_is_what_was_computed(tmp_path) -> None:
    cache = ReferenceCache(tmp_path, "w", "fp32")
    groups = [Group((1, 2), ((3,), (4, 5))), Group((1, 2, 3), ((4, 5),))]

    def fill(lacking):
        for i, g in enumerate(lacking):
            yield [i], [-float(sum(g.prompt) * 100 + sum(r)) for r in g.responses]

    assert cache.fill(groups, fill) == 3
    assert cache.get(groups).tolist() == [-303.0, -309.0, -609.0]
    assert ReferenceCache(tmp_path, "w", "fp32").fill(groups, fill) == 0
    assert ReferenceCache(tmp_path, "w", "bf16").fill(groups, fill) == 3
    assert ReferenceCache(tmp_path, "other weights", "fp32").fill(groups, fill) == 3


def test_the_border_between_prompt_and_response_is_part_of_the_key() -> None:
    assert sequence_key((1, 2), (3,)) != sequence_key((1,), (2, 3))


def test_a_killed_pass_keeps_what_it_had(tmp_path) -> None:
    groups = [Group((i,), ((1,), (2,))) for i in range(1, 6)]

    def dies(lacking):
        yield [0], [-1.0, -2.0]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ReferenceCache(tmp_path, "w", "fp32").fill(groups, dies)
    again = ReferenceCache(tmp_path, "w", "fp32")
    assert again.fill(groups, lambda lacking: (([i], [-3.0, -3.0]) for i in range(len(lacking)))) == 8
    assert again.get(groups[:1]).tolist() == [-1.0, -2.0]


def test_a_sum_that_is_no_number_is_never_cached(tmp_path) -> None:
    cache = ReferenceCache(tmp_path, "w", "fp32")
    with pytest.raises(ValueError, match="not finite"):
        cache.put([Group((1,), ((2,),))], [float("nan")])
    assert cache.missing([Group((1,), ((2,),))])
    with pytest.raises(KeyError):
        cache.get([Group((1,), ((2,),))])
