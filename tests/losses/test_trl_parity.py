"""The losses against TRL's own trainers, end to end: the same model, the same tokens, the same value and gradient.

TRL tokenises, collates, runs the model and computes its loss as it does in training; ours is handed the log-probabilities
that `pobench.model.logps` computes for the tokens TRL arrived at. `pytest -s` prints how far apart they are.
"""

from __future__ import annotations

import copy
import string
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState, PartialState
from tokenizers import AddedToken, Regex, Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from pobench.model.layouts import get_layout
from pobench.model.logps import ResponseLogps
from pobench.model.vocabulary import Beside
from pobench.registry import get_loss
from pobench.types import Group, Pair, Responses, SequenceLogps, TokenLogps, by_token

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),  # names that TRL uses and transformers will drop
    pytest.mark.filterwarnings("ignore:.*trl.experimental.*"),
]

PAIRS = [
    ("name a sea", "the baltic", "a sea is a large body of salt water"),
    ("count to three", "one two three", "no"),
    ("hi", "hello there", "go away now"),
    ("what is red", "a colour of long waves that we see in roses", "blue"),
    ("say b", "b", "c"),
    ("is it so", "it may be so", "it may not be so at all"),
]
VALUE, GRADIENT = 5e-5, 1e-4  # relative; both sides compute in fp32, where a sum of 100 nats is known to 1e-5


class Match(NamedTuple):
    """A loss of ours at some settings, TRL's name for it, and the factor from ours to TRL's."""

    name: str
    settings: dict[str, Any]
    trainer: str
    options: dict[str, Any]
    factor: float = 1.0


MATCHES = [
    Match("dpo", {"beta": 0.1}, "DPO", {"loss_type": ["sigmoid"], "beta": 0.1}),
    Match("dpo", {"beta": 0.01}, "DPO", {"loss_type": ["sigmoid"], "beta": 0.01}),
    Match("ipo", {"tau": 0.1, "average": True}, "DPO", {"loss_type": ["ipo"], "beta": 0.1}),
    Match("dpo_ln", {"beta": 5.0}, "DPO", {"loss_type": ["sigmoid_norm"], "beta": 5.0}),
    # TRL calls γ `simpo_gamma`, absolute; its SFT term is on unless the weight is 0
    Match(
        "simpo",
        {"beta": 2.0, "gamma": 1.0},
        "CPO",
        {"loss_type": "simpo", "beta": 2.0, "simpo_gamma": 1.0, "cpo_alpha": 0.0},
    ),
    Match(
        "simpo",
        {"beta": 2.5, "gamma_beta_ratio": 0.1},
        "CPO",
        {"loss_type": "simpo", "beta": 2.5, "simpo_gamma": 0.25, "cpo_alpha": 0.0},
    ),
    # TRL's likelihood term is a mean over the tokens of a micro-batch: with one pair in it, each response's own mean
    Match(
        "simpo_sft",
        {"beta": 2.0, "gamma": 1.0, "sft_weight": 0.5, "sft_reduction": "mean"},
        "CPO",
        {"loss_type": "simpo", "beta": 2.0, "simpo_gamma": 1.0, "cpo_alpha": 0.5},
    ),
    Match(
        "cpo",
        {"beta": 0.1, "sft_weight": 1.0, "sft_reduction": "mean"},
        "CPO",
        {"loss_type": "sigmoid", "beta": 0.1, "cpo_alpha": 1.0},
    ),
    Match("cpo", {"beta": 0.05, "sft_weight": 0.0}, "CPO", {"loss_type": "sigmoid", "beta": 0.05, "cpo_alpha": 0.0}),
    Match(
        "ipo_no_reference",
        {"tau": 0.1, "sft_weight": 0.5},
        "CPO",
        {"loss_type": "ipo", "beta": 0.1, "cpo_alpha": 0.5},
    ),
    # max(0, 1 - β (w - l)) = β max(0, 1/β - (w - l)), and so is the weight of the second term
    Match(
        "slic_hf",
        {"delta": 20.0, "sft_weight": 10.0, "sft_reduction": "mean"},
        "CPO",
        {"loss_type": "hinge", "beta": 0.05, "cpo_alpha": 0.5},
        factor=0.05,
    ),
    Match("orpo", {"odds_weight": 0.1}, "ORPO", {"beta": 0.1}),
    Match("orpo", {"odds_weight": 2.0}, "ORPO", {"beta": 2.0}),
    Match("rso", {"beta": 1.0}, "DPO", {"loss_type": ["hinge"], "beta": 1.0}),
    Match(
        "robust_dpo",
        {"beta": 0.1, "label_smoothing": 0.2},
        "DPO",
        {"loss_type": ["robust"], "beta": 0.1, "label_smoothing": 0.2},
    ),
    Match(
        "exo_pair",
        {"beta": 0.1, "label_smoothing": 0.001},
        "DPO",
        {"loss_type": ["exo_pair"], "beta": 0.1, "label_smoothing": 0.001},
    ),
    # TRL's AOT sorts the log-ratios of a micro-batch; with one pair in it cDPO is left
    Match(
        "cdpo",
        {"beta": 0.1, "label_smoothing": 0.1},
        "DPO",
        {"loss_type": ["aot"], "beta": 0.1, "label_smoothing": 0.1},
    ),
    Match("nca_pair", {"beta": 0.1}, "DPO", {"loss_type": ["nca_pair"], "beta": 0.1}),
    Match("bco_pair", {"beta": 0.1}, "DPO", {"loss_type": ["bco_pair"], "beta": 0.1}),
    Match("apo_zero", {"beta": 0.1}, "DPO", {"loss_type": ["apo_zero"], "beta": 0.1}),
    Match("apo_down", {"beta": 0.1}, "DPO", {"loss_type": ["apo_down"], "beta": 0.1}),
    Match("sppo_hard", {"beta": 0.1}, "DPO", {"loss_type": ["sppo_hard"], "beta": 0.1}),
    Match(
        "discopop",
        {"beta": 0.1, "tau": 0.05},
        "DPO",
        {"loss_type": ["discopop"], "beta": 0.1, "discopop_tau": 0.05},
    ),
    Match(
        "rpo",
        {"beta": 0.1, "sft_weight": 0.5, "sft_reduction": "mean"},
        "DPO",
        {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.5], "beta": 0.1},
    ),
    Match(
        "dpo + 0.8*bco_pair + sft",
        {"dpo.beta": 0.1, "bco_pair.beta": 0.1},
        "DPO",
        {"loss_type": ["sigmoid", "bco_pair", "sft"], "loss_weights": [1.0, 0.8, 1.0], "beta": 0.1},
    ),
    Match(
        "f_divergence(dpo)",
        {"f_divergence.divergence": "forward_kl", "dpo.beta": 0.1},
        "DPO",
        {"loss_type": ["sigmoid"], "f_divergence_type": "forward_kl", "beta": 0.1},
    ),
    Match(
        "f_divergence(exo_pair)",
        {"f_divergence.divergence": "jensen_shannon", "exo_pair.beta": 0.1, "exo_pair.label_smoothing": 0.001},
        "DPO",
        {
            "loss_type": ["exo_pair"],
            "f_divergence_type": "js_divergence",
            "beta": 0.1,
            "label_smoothing": 0.001,
        },
    ),
    # TRL's coefficient is 1 - alpha
    Match(
        "f_divergence(dpo)",
        {"f_divergence.divergence": "alpha", "f_divergence.alpha": 0.3, "dpo.beta": 0.1},
        "DPO",
        {
            "loss_type": ["sigmoid"],
            "f_divergence_type": "alpha_divergence",
            "f_alpha_divergence_coef": 0.7,
            "beta": 0.1,
        },
    ),
    Match(
        "alphapo",
        {"alpha": 0.25, "beta": 2.5, "gamma": 0.1},
        "CPO",
        {"loss_type": "alphapo", "alpha": 0.25, "beta": 2.5, "simpo_gamma": 0.1},
    ),
]
# TRL's value for these depends on what else is in the micro-batch
TOGETHER = [
    m
    for m in MATCHES
    if m.trainer == "ORPO" or m.options.get("cpo_alpha") or m.name in ("cdpo", "rpo") or "sft" in m.name
]


# ---------------------------------------------------------------- a model, a tokenizer, TRL's trainers


def small_llama(seed: int) -> Any:
    """Two layers of 32. Scaled up, so that a random model prefers some tokens clearly."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=32,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=128,
        bos_token_id=None,
        eos_token_id=1,
        pad_token_id=2,
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1:
                weight.mul_(4)
    return model.eval()


def letters() -> Any:
    special = ["<unk>", "<end>", "<pad>"]
    tokens = {token: i for i, token in enumerate([*special, *string.ascii_lowercase, " "])}
    tokenizer = Tokenizer(models.WordLevel(tokens, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in special])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", eos_token="<end>", pad_token="<pad>", padding_side="left"
    )


@pytest.fixture(scope="module")
def trl() -> Any:
    """TRL's classes: importing them takes seconds, so it is done once and only where a test asks for it."""
    pytest.importorskip("trl", minversion="1.16", reason="TRL 1.16 is not installed: pip install -e '.[test]'")
    from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer
    from trl.experimental.cpo import CPOConfig, CPOTrainer
    from trl.experimental.orpo import ORPOConfig, ORPOTrainer
    from trl.experimental.tpo import TPOConfig, TPOTrainer

    return SimpleNamespace(
        DPO=(DPOTrainer, DPOConfig),
        CPO=(CPOTrainer, CPOConfig),
        ORPO=(ORPOTrainer, ORPOConfig),
        KTO=(KTOTrainer, KTOConfig),
        TPO=(TPOTrainer, TPOConfig),
    )


@pytest.fixture(scope="module")
def start() -> tuple[Any, Any]:
    """(policy, reference): the reference is the policy, moved a little."""
    policy, other = small_llama(0), small_llama(1)
    reference = copy.deepcopy(policy)
    with torch.no_grad():
        for a, b in zip(reference.parameters(), other.parameters(), strict=True):
            a.lerp_(b, 0.1)
    return policy, reference


@pytest.fixture(autouse=True)
def fresh_accelerate() -> Iterator[None]:
    yield
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()


@pytest.fixture
def trainer(trl, start, tmp_path: Path) -> Callable[..., Any]:
    """`trainer("DPO", rows, beta=0.1, …)`: TRL's trainer on a copy of the policy, built the way users build it."""

    def build(kind: str, rows: list[dict[str, Any]], *, swapped: bool = False, **options: Any) -> Any:
        from datasets import Dataset

        policy, reference = reversed(start) if swapped else start
        trainer_class, config_class = getattr(trl, kind)
        config = config_class(
            output_dir=str(tmp_path),
            report_to="none",
            use_cpu=True,
            bf16=False,
            remove_unused_columns=False,
            disable_tqdm=True,
            per_device_train_batch_size=len(rows),
            **options,
        )
        referenced = {"ref_model": copy.deepcopy(reference)} if kind in ("DPO", "KTO") else {}
        return trainer_class(
            copy.deepcopy(policy),
            args=config,
            train_dataset=Dataset.from_list(rows),
            processing_class=letters(),
            **referenced,
        )

    return build


@pytest.fixture(scope="module")
def table() -> Iterator[list[tuple[str, str, str, float, float]]]:
    """Rows of what was compared; printed at the end."""
    rows: list[tuple[str, str, str, float, float]] = []
    yield rows
    name, ours, theirs = (max(len(row[i]) for row in rows) for i in range(3)) if rows else (0, 0, 0)
    print(f"\n\nlargest relative difference\n{'loss':<{name}}  {'here':<{ours}}  {'TRL':<{theirs}}    value gradient")
    for row in rows:
        print(f"{row[0]:<{name}}  {row[1]:<{ours}}  {row[2]:<{theirs}}  {row[3]:7.1e}  {row[4]:7.1e}")


def paired_rows() -> list[dict[str, Any]]:
    return [{"prompt": p, "chosen": f" {c}", "rejected": f" {r}"} for p, c, r in PAIRS]


def show(settings: dict[str, Any]) -> str:
    return ", ".join(f"{k}={'+'.join(map(str, v)) if isinstance(v, list) else v}" for k, v in settings.items())


# ---------------------------------------------------------------- both sides


def tokens_of(row: dict[str, Any]) -> Group:
    """What TRL made of a row: the older trainers keep whole sequences with the prompt's labels at -100."""
    if "prompt_ids" in row:
        return Group(tuple(row["prompt_ids"]), (tuple(row["chosen_ids"]), tuple(row["rejected_ids"])))
    first = row["chosen_labels"].count(-100)
    return Group(
        tuple(row["chosen_input_ids"][:first]),
        (tuple(row["chosen_input_ids"][first:]), tuple(row["rejected_input_ids"][first:])),
    )


def logps(model: Any, groups: list[Group]) -> Tensor:
    """(responses,) nats, by the code under test."""
    return ResponseLogps(model)(get_layout("padded").collate(groups))


def pair_of(model: Any, groups: list[Group]) -> Pair:
    totals = logps(model, groups)
    lengths = torch.tensor([len(r) for g in groups for r in g.responses])
    return Pair(SequenceLogps(totals[0::2], lengths[0::2]), SequenceLogps(totals[1::2], lengths[1::2]))


def gradient_of(loss: Tensor, model: Any) -> Tensor:
    """(parameters,) of the model's, in one row."""
    found = torch.autograd.grad(loss, [p for p in model.parameters()], materialize_grads=True)
    return torch.cat([g.flatten() for g in found])


def apart(ours: Tensor, theirs: Tensor) -> float:
    """Relative to the larger; of vectors, the length of the difference."""
    return ((ours - theirs).norm() / torch.maximum(ours.norm(), theirs.norm())).item()


def theirs_at(trainer: Any, rows: list[int]) -> Tensor:
    """TRL's loss of a micro-batch of these rows of its data set."""
    batch = trainer.data_collator([trainer.train_dataset[i] for i in rows])
    return trainer.compute_loss(trainer.model, batch)


def whole_sequence_nll(model: Any, groups: list[Group]) -> Tensor:
    """(pairs,) the likelihood term of TRL's ORPO for one chosen response: every token but the first, prompt and all."""
    whole = [Group(g.prompt[:1], (g.prompt[1:] + g.responses[0],)) for g in groups]
    return -logps(model, whole) / torch.tensor([len(g.responses[0]) for g in whole])


def tokens_of_pairs(model: Any, reference: Any, groups: list[Group]) -> TokenLogps:
    """By a forward pass of each response alone."""

    def logps_of(of: Any) -> Tensor:
        found = []
        for prompt, response in [(g.prompt, r) for g in groups for r in g.responses]:
            logits = of(torch.tensor([[*prompt, *response]])).logits[0, len(prompt) - 1 : -1]
            found.append(logits.log_softmax(-1).gather(1, torch.tensor(response)[:, None])[:, 0])
        return torch.cat(found)

    with torch.no_grad():
        known = logps_of(reference)
    return TokenLogps.of(torch.tensor([[len(r) for r in g.responses] for g in groups]), logps_of(model), known)


# ---------------------------------------------------------------- the tests


@pytest.mark.parametrize("match", MATCHES, ids=lambda m: f"{m.name}-{m.trainer}-{show(m.options)}")
def test_a_pair_has_trls_loss_and_gradient(match, trainer, start, table) -> None:
    theirs = trainer(match.trainer, paired_rows(), **match.options)
    groups = [tokens_of(row) for row in theirs.train_dataset]
    model, loss = theirs.model, get_loss(match.name)

    policy = pair_of(model, groups)
    with torch.no_grad():
        reference = pair_of(start[1], groups)
    ours = match.factor * loss.evaluate(policy, reference, **match.settings).loss
    if match.trainer == "ORPO":  # by design: the likelihood of the response alone
        ours = ours + policy.chosen.mean + whole_sequence_nll(model, groups)
    values = torch.stack([theirs_at(theirs, [i]) for i in range(len(groups))])

    assert len({round(v, 4) for v in values.tolist()}) > 2, "the pairs do not differ: nothing is compared"
    off = ((ours - values).abs() / torch.maximum(ours.abs(), values.abs()).clamp(min=1e-3)).max().item()
    by = apart(gradient_of(ours.sum(), model), gradient_of(values.sum(), model))
    table.append((match.name, show(match.settings), f"{type(theirs).__name__} {show(match.options)}", off, by))
    assert off < VALUE, (ours, values)
    assert by < GRADIENT
    if match not in TOGETHER:
        together = theirs_at(theirs, list(range(len(groups))))
        assert together.item() == pytest.approx(values.mean().item(), rel=VALUE), (
            "a micro-batch is the mean of its pairs"
        )


def test_wpo_weighs_as_trl_does_a_pair_that_is_less_likely_than_the_policys_own_samples(trainer, start, table) -> None:
    options = {"loss_type": ["sigmoid"], "use_weighting": True, "beta": 0.1}
    theirs = trainer("DPO", paired_rows(), **options)
    model, groups = theirs.model, [tokens_of(row) for row in theirs.train_dataset]
    batch = get_layout("padded").collate(groups)
    lengths = torch.tensor([[len(r) for r in g.responses] for g in groups])
    collision = by_token(lengths, ResponseLogps(model)(batch, beside=Beside(("collision",)))[1].detach())
    policy = pair_of(model, groups)
    with torch.no_grad():
        reference = pair_of(start[1], groups)
    settings = {"dpo.beta": 0.1}
    weighed = get_loss("wpo(dpo)").evaluate(policy, reference, collision=collision, **settings).loss
    weight = (weighed / get_loss("dpo").evaluate(policy, reference, beta=0.1).loss).detach()
    below = [i for i, w in enumerate(weight.tolist()) if w < 0.999]  # TRL's has no upper end
    assert len(below) > 2 and weight.max() <= 1 and weight.std() > 0.01
    values = torch.stack([theirs_at(theirs, [i]) for i in below])
    off = ((weighed[below] - values).abs() / values.abs()).max().item()
    by = apart(gradient_of(weighed[below].sum(), model), gradient_of(values.sum(), model))
    table.append(("wpo(dpo)", show(settings), f"{type(theirs).__name__} {show(options)}", off, by))
    assert off < VALUE, (weighed[below], values)
    assert by < GRADIENT


def test_trls_likelihood_term_depends_on_the_split_and_ours_does_not(trainer) -> None:
    theirs = trainer("CPO", paired_rows(), loss_type="sigmoid", beta=0.1, cpo_alpha=1.0)
    policy = pair_of(theirs.model, [tokens_of(row) for row in theirs.train_dataset])
    contrast = get_loss("cpo")(policy, beta=0.1, sft_weight=0.0).loss.mean()
    ours = get_loss("cpo")(policy, beta=0.1, sft_weight=1.0, sft_reduction="mean").loss.mean()
    by_tokens = contrast - policy.chosen.total.sum() / policy.chosen.length.sum()
    value = theirs_at(theirs, list(range(len(PAIRS))))
    assert value.item() == pytest.approx(by_tokens.item(), rel=VALUE)
    assert value.item() != pytest.approx(ours.item(), rel=1e-3)


@pytest.mark.parametrize("swapped", [False, True], ids=["drift", "other-drift"])
@pytest.mark.parametrize("weights", [(1.0, 1.0), (1.0, 2.0)])
def test_kto_is_twice_trls_mean_over_responses(swapped, weights, trainer, start, table) -> None:
    rows = [
        {"prompt": p, "completion": f" {answer}", "label": label}
        for p, chosen, rejected in PAIRS
        for answer, label in ((chosen, True), (rejected, False))
    ]
    given = {"beta": 0.1, "desirable_weight": weights[0], "undesirable_weight": weights[1]}
    theirs = trainer("KTO", rows, swapped=swapped, **given)
    model, reference = theirs.model, start[0] if swapped else start[1]
    data = list(theirs.train_dataset)
    groups = [
        Group(tuple(a["prompt_ids"]), (tuple(a["completion_ids"]), tuple(b["completion_ids"])))
        for a, b in zip(data[0::2], data[1::2], strict=True)
    ]
    mismatched = [Group(tuple(r["prompt_ids"]), (tuple(r["KL_completion_ids"]),)) for r in data]
    with torch.no_grad():
        kl = (logps(model, mismatched) - logps(reference, mismatched)).mean()
        drift = pair_of(reference, groups)
    ours = get_loss("kto")(pair_of(model, groups), drift, kl, **given).loss.mean() / 2
    value = theirs_at(theirs, list(range(len(data))))

    off, by = apart(ours, value), apart(gradient_of(ours, model), gradient_of(value, model))
    table.append(("kto", f"{show(given)}, kl={kl:.2f}", f"{type(theirs).__name__} {show(given)}", off, by))
    assert off < VALUE
    assert by < GRADIENT


@pytest.mark.parametrize(
    ("name", "settings", "options"),
    [
        ("kto_unpaired", {"beta": 0.1, "desirable_weight": 0.5, "undesirable_weight": 2.0}, {"loss_type": "kto"}),
        ("apo_zero_unpaired", {"beta": 0.1}, {"loss_type": "apo_zero_unpaired"}),
    ],
)
@pytest.mark.parametrize("swapped", [False, True], ids=["drift", "other-drift"])
def test_unbalanced_single_answers_have_trls_loss_and_gradient(
    name, settings, options, swapped, trainer, start, table
) -> None:
    rows = [{"prompt": p, "completion": f" {chosen}", "label": True} for p, chosen, _ in PAIRS]
    rows[2:2] = [{"prompt": p, "completion": f" {rejected}", "label": False} for p, _, rejected in PAIRS[::3]]
    theirs = trainer("KTO", rows, swapped=swapped, **settings, **options)
    model, reference, data = theirs.model, start[0] if swapped else start[1], list(theirs.train_dataset)
    groups = [Group(tuple(row["prompt_ids"]), (tuple(row["completion_ids"]),)) for row in data]
    lengths, label = torch.tensor([len(g.responses[0]) for g in groups]), torch.tensor([r["label"] for r in data])
    with torch.no_grad():
        known = SequenceLogps(logps(reference, groups), lengths)
        if options["loss_type"] == "kto":  # TRL's answers of other prompts
            other = [Group(tuple(row["prompt_ids"]), (tuple(row["KL_completion_ids"]),)) for row in data]
            settings = {**settings, "kl": (logps(model, other) - logps(reference, other)).mean()}
    ours = get_loss(name)(SequenceLogps(logps(model, groups), lengths), label, known, **settings).loss.mean()
    value = theirs_at(theirs, list(range(len(data))))

    assert sorted(label.tolist()) == [False] * 2 + [True] * 6
    off, by = apart(ours, value), apart(gradient_of(ours, model), gradient_of(value, model))
    table.append((name, "two undesirable of eight", f"{type(theirs).__name__} {show(options)}", off, by))
    assert off < VALUE
    assert by < GRADIENT


@pytest.mark.parametrize(
    ("name", "settings", "options"),
    [
        ("tpo", {"beta": 0.1, "sft_weight": 0.5}, {"loss_type": "sigmoid", "beta": 0.1, "tpo_alpha": 0.5}),
        (
            "tpo_l",
            {"beta": 2.0, "gamma": 0.7, "sft_weight": 0.05},
            {"loss_type": "tpo-l", "beta": 2.0, "tpo_l_gamma": 0.7, "tpo_alpha": 0.05},
        ),
        ("tpo_hinge", {"beta": 0.1, "sft_weight": 0.5}, {"loss_type": "hinge", "beta": 0.1, "tpo_alpha": 0.5}),
        ("tpo_ipo", {"tau": 0.2, "sft_weight": 0.5}, {"loss_type": "ipo", "beta": 0.2, "tpo_alpha": 0.5}),
    ],
)
def test_a_list_of_three_has_trls_loss_and_gradient(name, settings, options, trainer, table) -> None:
    best = [f" {chosen} {p}" for p, chosen, _ in PAIRS]
    theirs = trainer("TPO", [{**row, "reference": r} for row, r in zip(paired_rows(), best, strict=True)], **options)
    data, model = list(theirs.train_dataset), theirs.model
    names = ("reference_ids", "chosen_ids", "rejected_ids")  # best, second, worst
    groups = [Group(tuple(row["prompt_ids"]), tuple(tuple(row[name]) for name in names)) for row in data]
    lengths = torch.tensor([[len(r) for r in g.responses] for g in groups])
    rank = torch.tensor([1, 2, 3]).expand(lengths.shape)
    lists = Responses(logps(model, groups).view(lengths.shape), lengths, rank, rank > 0)
    ours = get_loss(name)(lists, **settings).loss
    values = torch.stack([theirs_at(theirs, [i]) for i in range(len(data))])

    assert len({round(v, 4) for v in values.tolist()}) > 2, "the lists do not differ: nothing is compared"
    off = ((ours - values).abs() / torch.maximum(ours.abs(), values.abs())).max().item()
    by = apart(gradient_of(ours.sum(), model), gradient_of(values.sum(), model))
    table.append((name, show(settings), f"{type(theirs).__name__} {show(options)}", off, by))
    assert off < VALUE
    assert by < GRADIENT


def beside_trl(name: str, theirs: Any, reference: Any, rows: list[Any], **settings: float) -> float:
    """The mean loss of all rows as one batch; compares value and gradient with TRL's and adds a row to the table."""
    groups = [tokens_of(row) for row in theirs.train_dataset]
    loss, policy = get_loss(name), pair_of(theirs.model, groups)
    with torch.no_grad():
        known = pair_of(reference, groups)
    tokens = tokens_of_pairs(theirs.model, reference, groups) if "tokens" in loss.needs else None
    batch = loss.batch_of(policy, known, settings)
    ours = loss.evaluate(policy, known, None, tokens, None, batch, **settings).loss.mean()
    whole = theirs_at(theirs, list(range(len(groups))))
    slopes = apart(gradient_of(ours, theirs.model), gradient_of(whole, theirs.model))
    value = apart(ours.detach(), whole.detach())
    rows.append((name, show(settings), "the same, a whole batch", value, slopes))
    assert value < VALUE and slopes < GRADIENT
    return ours.item()


def test_a_longer_answer_that_counts_less_has_trls_loss_and_gradient(trainer, start, table) -> None:
    theirs = trainer("DPO", paired_rows(), loss_type=["sigmoid"], beta=0.1, ld_alpha=0.3)
    got = beside_trl("ld(dpo)", theirs, start[1], table, **{"ld.alpha": 0.3, "dpo.beta": 0.1})
    plain = trainer("DPO", paired_rows(), loss_type=["sigmoid"], beta=0.1)
    assert abs(got - theirs_at(plain, list(range(len(PAIRS)))).item()) > 10 * VALUE, "the weight changes nothing"


@pytest.mark.parametrize("name", ["aot", "aot_unpaired"])
def test_a_whole_batch_has_trls_loss_and_gradient(name, trainer, start, table) -> None:
    beside_trl(name, trainer("DPO", paired_rows(), loss_type=[name], beta=0.1), start[1], table, beta=0.1)
