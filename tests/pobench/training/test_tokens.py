"""Losses of single tokens: the model's own log-probabilities, in every layout, with gradient; a reference stored by token."""

from __future__ import annotations

import copy
import json

import pytest
import torch

from pobench.errors import CorruptError, PobenchError
from pobench.model.layouts import get_layout
from pobench.model.logps import ResponseLogps
from pobench.registry import get_loss
from pobench.results.run_folder import RunFolder
from pobench.training.objectives import PreferenceObjective
from pobench.training.reference import EveryStep, ReferenceSums, about_reference, compute_reference
from pobench.types import Group, Pair, SequenceLogps, TokenLogps


@pytest.fixture
def groups(pairs) -> list[Group]:
    return [Group.of(p) for p in pairs]


@pytest.mark.parametrize(
    ("layout", "how"), [("shared_prefix", {}), ("shared_prefix", {"one_row": True}), ("padded", {})]
)
def test_tokens_and_their_gradients_are_the_models_own(layout, how, start_model, groups) -> None:
    model, plain = copy.deepcopy(start_model).double(), copy.deepcopy(start_model).double()
    expected = []
    for group in groups:
        for response in group.responses:
            logits = plain(input_ids=torch.tensor([group.prompt + response])).logits[0, len(group.prompt) - 1 : -1]
            expected.append(logits.log_softmax(-1).gather(1, torch.tensor(response)[:, None])[:, 0])
    own = torch.cat(expected)
    policy = ResponseLogps(model, tile=7)
    batch = get_layout(layout, **how).collate(groups)
    logps = policy(batch, per_token=True)
    assert logps.dtype == torch.float32 and own.std() > 0.3
    torch.testing.assert_close(logps.double(), own, atol=1e-5, rtol=0)
    torch.testing.assert_close(policy(batch), torch.zeros(22).index_add(0, batch.sequence, logps), atol=0, rtol=0)
    slope = torch.linspace(-1, 1, len(own), dtype=torch.float64)
    (own * slope).sum().backward()
    (logps * slope).sum().backward()
    ours, theirs = (torch.cat([p.grad.flatten() for p in m.parameters()]) for m in (model, plain))
    torch.testing.assert_close(ours, theirs, atol=2e-6 * float(theirs.norm()), rtol=1e-5)


def test_every_response_has_a_row_of_its_own_tokens() -> None:
    tokens = TokenLogps.of(torch.tensor([[2, 1], [1, 3]]), -torch.arange(1.0, 8), None)
    assert tokens.policy.tolist() == [[[-1, -2, 0], [-3, 0, 0]], [[-4, 0, 0], [-5, -6, -7]]]
    assert tokens.mask.sum(-1).tolist() == [[2, 1], [1, 3]] and tokens.reference is None
    sides = (SequenceLogps(torch.tensor([-9.0, -4.0]), torch.tensor([3, 1])) for _ in range(2))
    spread = TokenLogps.spread(pair := Pair(*sides), pair)
    assert torch.allclose(spread.policy.sum(-1), torch.tensor([[-9.0, -9.0], [-4.0, -4.0]]))
    assert not torch.equal(spread.policy, spread.reference) and (spread.policy[spread.mask] < 0).all()


# ---------------------------------------------------------------- the stored reference
def test_what_is_stored_by_token_is_what_was_computed_and_gives_the_sums(
    groups, start_model, scorer_of, tmp_path
) -> None:
    scorer = scorer_of(copy.deepcopy(start_model), budget=8)  # 32 without gradient
    assert compute_reference(tmp_path / "t", groups, scorer, {"w": 1}, per_token=True) == 22
    stored = ReferenceSums.load(tmp_path / "t")
    file = tmp_path / "t" / about_reference(tmp_path / "t")["file"]
    assert file.name.startswith("tokens-") and len(list((tmp_path / "t").iterdir())) == 2
    assert torch.equal(stored.tokens(groups), scorer.tokens(groups)) and stored.responses == 22
    assert torch.equal(
        stored.tokens(groups[3:5]),
        stored.tokens(groups)[sum(g.learnt_tokens for g in groups[:3]) :][: sum(g.learnt_tokens for g in groups[3:5])],
    )
    assert torch.equal(stored.of(groups), scorer.sums(groups))  # to the bit
    assert torch.equal(ReferenceSums.of_groups(groups, scorer, per_token=True).tokens(groups), stored.tokens(groups))
    assert compute_reference(tmp_path / "t", groups, scorer, {"w": 1}, per_token=True) == 0
    compute_reference(tmp_path / "s", groups, scorer, {"w": 1})
    with pytest.raises(
        PobenchError, match="22 of 22 responses have no reference log-probabilities by token among the 0"
    ):
        ReferenceSums.load(tmp_path / "s").tokens(groups)
    file.write_bytes(file.read_bytes()[:-1] + b"\x01")
    with pytest.raises(CorruptError, match="its sha256 is"):
        ReferenceSums.load(tmp_path / "t")


def test_a_killed_pass_by_token_goes_on_with_what_is_missing(groups, start_model, scorer_of, tmp_path) -> None:
    scorer = scorer_of(copy.deepcopy(start_model), budget=8)  # 32 without gradient
    turns, done = scorer.turns, []

    def dying(groups, **how):
        for number, turn in enumerate(turns(groups, **how)):
            if number == 3:
                raise KeyboardInterrupt
            yield turn

    scorer.turns = dying
    with pytest.raises(KeyboardInterrupt):
        compute_reference(tmp_path / "t", groups, scorer, {}, per_token=True)
    scorer.turns = turns
    left = compute_reference(tmp_path / "t", groups, scorer, {}, done.append, per_token=True)
    assert 0 < left < 22 and sum(done) == 22
    assert torch.allclose(ReferenceSums.load(tmp_path / "t").tokens(groups), scorer.tokens(groups), atol=1e-5)


# ---------------------------------------------------------------- training
def test_a_loss_of_tokens_that_names_no_reference_reads_none(pairs, losses_that_ask) -> None:
    objective = PreferenceObjective(pairs, get_loss("t_worst"), {})
    assert objective.per_token and objective.known is None
    measured = objective.measure([2, 0], -torch.ones(sum(objective.groups[i].learnt_tokens for i in (2, 0))))
    assert measured.slope.shape == (sum(objective.groups[i].learnt_tokens for i in (2, 0)),)


def test_without_discount_it_is_dpo_step_for_step(fit, pairs, losses_that_ask) -> None:
    results = []
    for name, settings in (("dpo", {}), ("t_ld", {"alpha": 1.0}), ("t_ld", {"alpha": 0.2})):
        get_loss(name).settings.update(settings)
        results.append(fit(pairs, name, folder=f"{name}{settings}", epochs=2))
    (_, _, dpo), (_, trained, same), (_, _, other) = results
    for ours, theirs in zip(same, dpo, strict=True):
        for metric in ("loss", "rewards/margins", "logps/chosen", "grad_norm"):
            assert ours[metric] == pytest.approx(theirs[metric], rel=1e-5, abs=1e-6), metric
    assert [row["loss"] for row in other[1:]] != pytest.approx([row["loss"] for row in dpo[1:]], rel=1e-3)
    assert trained.step0_gap < 1e-5


def test_a_reference_of_every_step_gives_the_tokens_of_the_stored_one(
    fit, pairs, start_model, scorer_of, losses_that_ask
) -> None:
    _, _, stored = fit(pairs, "t_ld", epochs=2)
    _, trained, live = fit(
        pairs, "t_ld", epochs=2, folder="live", reference=EveryStep(scorer_of(copy.deepcopy(start_model)))
    )
    assert [row["loss"] for row in live] == pytest.approx([row["loss"] for row in stored], rel=1e-5)
    assert trained.step0_gap < 1e-5


def test_sums_alone_do_not_serve_a_loss_of_tokens(fit, pairs, reference_of, losses_that_ask) -> None:
    with pytest.raises(PobenchError, match="have no reference log-probabilities by token"):
        fit(pairs, "t_ld", reference=reference_of(pairs))


@pytest.mark.slow
def test_a_whole_job_stores_the_tokens_of_its_reference_once(work_here, losses_that_ask, tmp_path) -> None:
    folder = work_here("t_ld", ("train", "heldout"), plugins=[losses_that_ask])
    kinds = sorted(path.name.partition("-")[0] for path in tmp_path.glob("cache/reference/*/*.safetensors"))
    assert kinds == ["sums", "tokens"]  # of the held-out pairs, of the training pairs
    trained = RunFolder(folder.parent.parent, f"small/{folder.name}").trained
    assert trained is not None and trained["step0_gap"] < 1e-5
    (stored,) = folder.glob("heldout-*/heldout.parquet")
    held = RunFolder(folder.parent.parent, f"small/{folder.name}").node(stored.parent.name).read_frame("heldout")
    assert (
        held[["loss", "chosen_reward", "rejected_reward", "chosen_logp"]].notna().all(axis=None)
    )  # computed beside sums
    ratio = 0.1 * (held["chosen_logp"] - held["reference_chosen_logp"])
    whole = held["chosen_length"] <= held["rejected_length"]  # LD-DPO discounts no token of the shorter answer
    assert whole.any() and held["chosen_reward"][whole].to_numpy() == pytest.approx(ratio[whole].to_numpy(), abs=1e-5)
    assert json.loads((folder / "trained.json").read_text())["reference"] == "cached"
