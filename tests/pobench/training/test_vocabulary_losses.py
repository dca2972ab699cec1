"""Losses of the whole vocabulary in training: the gradient of whole softmaxes, a reference beside the policy, the same steps in
every layout."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.nn.functional import logsigmoid

from pobench.errors import PobenchError
from pobench.model.layouts import get_layout
from pobench.model.logps import ResponseLogps
from pobench.registry import get_loss
from pobench.results.run_folder import RunFolder
from pobench.settings.resolve import resolve
from pobench.training import token_inputs
from pobench.training.objectives import PreferenceObjective
from pobench.training.reference import EveryStep
from pobench.types import Group, Inputs
from pobench.units import pair_of
from pobench.workflows.invariance import SPLITS, WHOLE, difference, take_steps, take_steps_in_two_processes

NAMES = ["tdpo1", "tdpo2", "mallows_dpo", "wpo(dpo)"]


def whole_softmaxes(name: str, model, reference, pair) -> torch.Tensor:
    """The loss of one pair at the defaults, as the authors' programs compute it."""
    ratio, divergence, entropy, aligned = [], [], [], []
    for response in pair.responses:
        ids, at = torch.tensor([pair.prompt + response]), torch.tensor(response)[:, None]
        p = model(input_ids=ids).logits[0, len(pair.prompt) - 1 : -1].log_softmax(-1)
        with torch.no_grad():
            q = reference(input_ids=ids).logits[0, len(pair.prompt) - 1 : -1].log_softmax(-1)
        ratio.append((p - q).gather(1, at).sum())
        divergence.append((q.exp() * (q - p)).sum())
        entropy.append(-(q.exp() * q).sum(1).mean() / torch.log(torch.tensor(float(q.shape[1]))))
        aligned.append((p.gather(1, at)[:, 0] - (p.exp() ** 2).sum(1).log()).mean())
    margin = ratio[0] - ratio[1]
    if name == "tdpo1":
        return -logsigmoid(0.1 * (margin - (divergence[1] - divergence[0])))
    if name == "tdpo2":
        return -logsigmoid(0.1 * (margin - 0.5 * (divergence[1] - divergence[0].detach())))
    if name == "mallows_dpo":
        return -logsigmoid(0.1 * -0.29 * torch.log((entropy[0] + entropy[1]) / 2) * margin)
    return torch.exp(aligned[0] + aligned[1]).clamp(max=1).detach() * -logsigmoid(0.1 * margin)


def moved(start_model):
    """Another model than the start model."""
    model = copy.deepcopy(start_model)
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for weight in model.parameters():
            weight += 0.2 * weight.std() * torch.randn_like(weight) if weight.ndim > 1 else 0.0
    return model


@pytest.mark.parametrize("layout", ["shared_prefix", "padded"])
@pytest.mark.parametrize("name", NAMES)
def test_a_micro_batch_has_the_gradient_of_whole_softmaxes(
    name, layout, pairs, start_model, scorer_of, reference_of
) -> None:
    model = moved(start_model)
    plain, items, loss = copy.deepcopy(model).double(), [2, 0, 5], get_loss(name)
    expected = torch.stack([whole_softmaxes(name, plain, copy.deepcopy(start_model).double(), pairs[i]) for i in items])
    expected.sum().backward()
    theirs = torch.cat([p.grad.flatten() for p in plain.parameters()])

    reference = EveryStep(scorer_of(copy.deepcopy(start_model))) if loss.runs_reference else reference_of(pairs)
    objective = PreferenceObjective(pairs, loss, loss.settings, reference)
    objective.start(scorer_of(copy.deepcopy(start_model)), [0], exact=True)
    policy = ResponseLogps(model, tile=7)
    batch = get_layout(layout).collate([objective.groups[i] for i in items])
    values = policy(batch, objective.per_token, objective.vocabulary(batch))
    slope, logged, _ = objective.measure(items, values)
    (values * slope).sum().backward()
    ours = torch.cat([p.grad.flatten() for p in model.parameters()]).double()
    assert float(logged[0]) == pytest.approx(expected.sum().item(), rel=2e-6)
    assert float((ours - theirs).norm() / theirs.norm()) < 5e-6
    assert values.shape == (1 + len(objective.kinds), sum(Group.of(pairs[i]).learnt_tokens for i in items))


@pytest.mark.parametrize("name", NAMES)
def test_pairs_that_are_measured_have_the_loss_of_whole_softmaxes(
    name, pairs, start_model, scorer_of, monkeypatch
) -> None:
    monkeypatch.setattr(token_inputs, "PAIRS_AT_ONCE", 2)  # of five
    model, some, loss = moved(start_model), pairs[:5], get_loss(name)
    scorer, frozen = scorer_of(model), EveryStep(scorer_of(copy.deepcopy(start_model)))
    groups = [Group.of(pair) for pair in some]
    lengths = torch.tensor([len(response) for pair in some for response in pair.responses])
    sums = Inputs(*(pair_of(of.sums(groups).float(), lengths) for of in (scorer, frozen.scorer)))
    reference = frozen if token_inputs.compares_tokens(loss) else None
    values = token_inputs.token_values(loss, groups, scorer, reference)
    output = token_inputs.evaluate_by_token(loss, loss.settings, sums, values)
    plain, plain_start = copy.deepcopy(model).double(), copy.deepcopy(start_model).double()
    with torch.no_grad():
        expected = torch.stack([whole_softmaxes(name, plain, plain_start, pair) for pair in some])
    assert output.loss.double() == pytest.approx(expected.numpy(), rel=1e-5)
    assert len({round(float(x), 4) for x in output.loss}) > 1 and output.chosen_reward.isfinite().all()


def test_a_loss_pays_for_what_it_reads_alone(pairs, start_model, scorer_of, reference_of) -> None:
    frozen = EveryStep(scorer_of(copy.deepcopy(start_model)))
    of = {name: PreferenceObjective(pairs, get_loss(name), {}, frozen).kinds for name in ("dpo", *NAMES)}
    assert of == {
        "dpo": (),
        "tdpo1": ("reference", "forward_kl"),
        "tdpo2": ("reference", "forward_kl"),
        "mallows_dpo": ("entropy", "reference", "reference_entropy"),
        "wpo(dpo)": ("collision",),
    }
    batch = get_layout("padded").collate([Group.of(pairs[0])])
    assert PreferenceObjective(pairs, get_loss("dpo"), {}, frozen).vocabulary(batch) is None
    assert PreferenceObjective(pairs, get_loss("wpo(dpo)"), {}, frozen).vocabulary(batch).reference is None
    with pytest.raises(PobenchError, match="tdpo1 compares whole distributions with the reference's, which are not"):
        PreferenceObjective(pairs, get_loss("tdpo1"), {}, reference_of(pairs))


def test_tdpo2_without_its_divergences_is_dpo_step_for_step(fit, pairs, monkeypatch) -> None:
    monkeypatch.setitem(get_loss("tdpo2").settings, "alpha", 0.0)
    (_, _, dpo), (_, trained, same) = (fit(pairs, name, folder=name, epochs=2) for name in ("dpo", "tdpo2"))
    for ours, theirs in zip(same, dpo, strict=True):
        for metric in ("loss", "logps/chosen", "grad_norm"):
            assert ours[metric] == pytest.approx(theirs[metric], rel=1e-5, abs=1e-6), metric
    assert trained.step0_gap < 1e-5


def test_the_first_step_of_tdpo1_starts_at_log_2(fit, pairs) -> None:
    _, _, rows = fit(pairs, "tdpo1", epochs=3)
    assert rows[0]["loss"] == pytest.approx(0.693147, abs=1e-6) and rows[-1]["loss"] < 0.69
    assert rows[0]["rewards/chosen"] == pytest.approx(0, abs=1e-6)


def test_a_reference_in_another_layout_is_refused(pairs, start_model, scorer_of) -> None:
    frozen, policy = (scorer_of(copy.deepcopy(start_model)) for _ in range(2))
    frozen.layout = get_layout("padded")
    objective = PreferenceObjective(pairs, get_loss("tdpo1"), {}, EveryStep(frozen))
    with pytest.raises(
        PobenchError, match=r"their layouts differ: shared_prefix by parts, padded; set train\.layout: padded"
    ):
        objective.start(policy, [0], exact=True)


def test_a_reference_in_rows_for_another_attention_is_refused(pairs, start_model, scorer_of) -> None:
    frozen, policy = (scorer_of(copy.deepcopy(start_model)) for _ in range(2))
    frozen.policy.use_attention("matrices")
    objective = PreferenceObjective(pairs, get_loss("tdpo1"), {}, EveryStep(frozen))
    with pytest.raises(
        PobenchError, match="their layouts differ: shared_prefix by parts, shared_prefix by matrices; set"
    ):
        objective.start(policy, [0], exact=True)


def test_where_distributions_are_compared_the_reference_runs_in_every_step() -> None:
    jobs = resolve("tiny", "dpo,wpo(dpo),tdpo1,mallows_dpo")
    assert {job.loss: job.train.reference for job in jobs} == {
        "dpo": "cached",
        "wpo(dpo)": "cached",
        "tdpo1": "every_step",
        "mallows_dpo": "every_step",
    }


@pytest.mark.parametrize("name", ["tdpo1", "wpo(dpo)"])
def test_a_batch_may_be_cut_in_any_way(name, tmp_path) -> None:
    loss = get_loss(name)
    whole = take_steps(loss, loss.settings, WHOLE, tmp_path)
    for split in SPLITS[1:4]:
        assert difference(take_steps(loss, loss.settings, split, tmp_path), whole) < 1e-5, split.name


@pytest.mark.slow
def test_two_processes_train_as_one() -> None:
    for one, two in take_steps_in_two_processes(NAMES).values():
        assert difference(two, one) < 1e-5


@pytest.mark.slow
def test_a_whole_job_runs_the_reference_beside_the_policy(work_here) -> None:
    folder = work_here("tdpo2", ("train", "heldout"))
    trained = RunFolder(folder.parent.parent, f"small/{folder.name}").trained
    assert trained is not None and trained["reference"] == "every_step" and trained["step0_gap"] < 1e-5
    (stored,) = folder.glob("heldout-*/heldout.parquet")
    held = RunFolder(folder.parent.parent, f"small/{folder.name}").node(stored.parent.name).read_frame("heldout")
    assert held[["loss", "chosen_reward", "rejected_reward", "chosen_logp"]].notna().all(axis=None)
    assert held["chosen_reward"].nunique() > 1
