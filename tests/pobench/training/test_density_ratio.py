"""Density ratios of prompts: the classifier, what is stored, and what a loss is given."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from sklearn.linear_model import LogisticRegression
from torch import Tensor
from transformers import BertConfig, BertForMaskedLM

from pobench.errors import CorruptError, PobenchError
from pobench.model import embeddings
from pobench.model.embeddings import embed, load_embedder
from pobench.registry import get_loss
from pobench.training.density_ratio import (
    MARKER,
    Counts,
    DensityRatios,
    compute_density_ratios,
    facts_text,
    fitted,
    log_ratios,
)
from pobench.training.objectives import PreferenceObjective
from pobench.types import TokenAnswer, TokenPair
from pobench.workflows.invariance import small_items, small_ratios, small_reference


def answers_of(labels: dict[int, str]) -> list[TokenAnswer]:
    """labels: prompt → its answers' labels, `+` and `-`."""
    each = [(prompt, label) for prompt, all_of in labels.items() for label in all_of]
    return [TokenAnswer(f"a{i}", (prompt, 7), (1, 2), label == "+") for i, (prompt, label) in enumerate(each)]


def by_place(counts: Counts, of_prompt: dict[int, Any]) -> np.ndarray:
    return np.array([of_prompt[prompt[0]] for prompt in counts.prompts], dtype=float)


def clouds(shift: float, seed: int = 0, n: int = 400, features: int = 1) -> tuple[Counts, np.ndarray]:
    """Prompts with one answer each; the embeddings of desirable ones lie `shift` further, in a normal cloud."""
    draw = np.random.default_rng(seed)
    counts = Counts.of(answers_of({i: "+" if i % 4 else "-" for i in range(n)}))  # three desirable to one
    points = draw.normal(size=(n, features)) + shift * (by_place(counts, {i: i % 4 > 0 for i in range(n)}))[:, None]
    return counts, points


def test_the_ratio_is_that_of_the_densities_whatever_the_numbers_of_answers() -> None:
    counts, points = clouds(1.0, n=4000)
    values, facts = log_ratios(counts, points)
    # of two normal densities, one shifted by 1: log N(x; 1) - log N(x; 0) = x - 1/2, not x - 1/2 + log 3
    np.testing.assert_allclose(values, points[:, 0] - 0.5, atol=0.35)
    assert facts["auc"] == pytest.approx(0.760, abs=0.03)  # Φ(1 / √2)
    assert facts["accuracy"] == pytest.approx(0.691, abs=0.03)  # Φ(1 / 2)
    assert (facts["desirable"], facts["undesirable"], facts["prompts"], facts["shared"]) == (3000, 1000, 4000, 0)
    assert "3000 desirable and 1000 undesirable answers to 4000 prompts" in facts_text(facts)


def test_the_classifier_is_that_of_trls_bco_trainer_on_a_row_an_answer() -> None:
    draw = np.random.default_rng(3)
    rows = {i: "+" * int(draw.integers(0, 4)) + "-" * int(draw.integers(0, 3)) for i in range(60)}
    counts = Counts.of(answers_of(rows))
    points = draw.normal(size=(len(counts.prompts), 5)) + 0.5 * counts.desirable[:, None]
    each = np.concatenate([np.repeat(points, side.astype(int), axis=0) for side in counts[1:]])
    labels = np.repeat([1, 0], [int(side.sum()) for side in counts[1:]])
    theirs = LogisticRegression(class_weight="balanced").fit(each, labels).predict_proba(points)[:, 1]
    ours = np.exp(fitted(points, *counts[1:]).decision_function(points))
    np.testing.assert_allclose(ours, theirs / (1 - theirs + 1e-8), rtol=1e-3)


def test_a_prompts_own_label_does_not_decide_its_ratio() -> None:
    counts, points = clouds(0.0, n=60, features=300)  # more features than prompts, and nothing to tell
    seen = fitted(points, *counts[1:]).decision_function(points)
    assert ((seen > 0) == (counts.desirable > 0)).all()  # a classifier that has seen them knows them by heart
    _, facts = log_ratios(counts, points)
    assert 0.25 < facts["auc"] < 0.75


def test_prompts_with_as_many_answers_of_both_kinds_have_the_ratio_1() -> None:
    counts = Counts.of(answers_of(dict.fromkeys(range(20), "+-")))
    values, facts = log_ratios(counts, np.random.default_rng(1).normal(size=(20, 4)))
    np.testing.assert_allclose(values, 0, atol=1e-6)
    assert facts["shared"] == 20 and facts["accuracy"] == pytest.approx(0.5, abs=0.3)


@pytest.mark.parametrize(
    ("labels", "why"),
    [(dict.fromkeys(range(9), "+"), "one kind of answer alone"), ({1: "+", 2: "-", 3: "-"}, "too few prompts")],
)
def test_without_anything_to_tell_apart_every_ratio_is_1_and_nothing_is_embedded(labels, why, tmp_path) -> None:
    answers = answers_of(labels)
    facts = compute_density_ratios(tmp_path, answers, lambda prompts: pytest.fail("embedded"), {})
    assert why in facts_text(facts) and "every density ratio is 1" in facts_text(facts)
    assert DensityRatios.load(tmp_path).of(a.prompt for a in answers).tolist() == [1.0] * len(answers)


def of_tokens(prompts: Any) -> Tensor:
    return torch.tensor([[prompt[0] % 5.0, 1.0] for prompt in prompts])


def test_what_is_stored_is_computed_once_and_read_whole(tmp_path) -> None:
    answers = answers_of({i: "+" if i % 5 > 2 else "-" for i in range(30)})
    facts = compute_density_ratios(tmp_path, answers, of_tokens, {"embedder": "e"})
    assert compute_density_ratios(tmp_path, [], lambda prompts: pytest.fail("embedded"), {}) == facts
    ratios = DensityRatios.load(tmp_path)
    low, high = ratios.of([(0, 7), (4, 7)]).tolist()
    assert low < 1 < high and ratios.facts == facts
    with pytest.raises(PobenchError, match="1 of 2 prompts have no density ratio among 30"):
        ratios.of([(0, 7), (99, 7)])
    stored = (tmp_path / MARKER).read_text()
    (tmp_path / MARKER).write_text(stored.replace('"prompts": 30', '"prompts": 31'))
    with pytest.raises(CorruptError):
        DensityRatios.load(tmp_path)
    (tmp_path / MARKER).write_text(stored)
    assert DensityRatios.load(tmp_path).facts == facts
    (file,) = tmp_path.glob("ratios-*.safetensors")
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    with pytest.raises(CorruptError):
        DensityRatios.load(tmp_path)
    (tmp_path / MARKER).write_text("{}")
    with pytest.raises(CorruptError, match="does not describe density ratios"):
        DensityRatios.load(tmp_path)


def test_an_embedding_is_the_mean_of_the_last_hidden_states_whatever_stands_beside_it(start_model, monkeypatch) -> None:
    prompts = [(3, 5, 8), (4,), (9, 2, 7, 1, 6), (3, 5)]
    alone = [start_model.model(torch.tensor([p])).last_hidden_state[0].mean(0).detach() for p in prompts]
    for tokens in (8192, 6):  # all in one batch, and in three
        monkeypatch.setattr(embeddings, "TOKENS", tokens)
        done: list[int] = []
        torch.testing.assert_close(embed(start_model.base_model, prompts, done.append), torch.stack(alone))
        assert sum(done) == 4 and len(done) == (1 if tokens > 6 else 3)
    with pytest.raises(PobenchError, match="gives no hidden states"):
        embed(start_model, prompts)  # of the head there are logits alone


@pytest.mark.filterwarnings("ignore")
def test_an_encoder_embeds_the_text_of_prompts_as_far_as_it_reads_and_needs_all_its_weights(
    word_tokenizer, tmp_path
) -> None:
    config = BertConfig(
        vocab_size=len(word_tokenizer), hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8,
        max_position_embeddings=5,
    )  # fmt: skip
    encoder = BertForMaskedLM(config).eval()  # which has no pooler
    encoder.save_pretrained(tmp_path)
    word_tokenizer.save_pretrained(tmp_path)
    model, tokenise = load_embedder(tmp_path, torch.device("cpu"))
    ids = tokenise(["w1 w2", "w1 w2 w3 w4 w5 w6 w7"])
    assert [len(row) for row in ids] == [2, 5] and ids[0] == ids[1][:2]
    alone = [encoder.bert(torch.tensor([row])).last_hidden_state[0].mean(0).detach() for row in ids]
    torch.testing.assert_close(embed(model, ids), torch.stack(alone))
    weights = load_file(tmp_path / "model.safetensors")
    weights.pop("bert.encoder.layer.0.output.dense.weight")
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(PobenchError, match=r"data.prompt_embedder: .*are missing"):
        load_embedder(tmp_path, torch.device("cpu"))


def objective(items: Any, ratios: DensityRatios | None) -> PreferenceObjective:
    loss = get_loss("bco_udm")
    reference = small_reference(loss, items, "shared_prefix")
    return PreferenceObjective(items, loss, loss.settings, reference, density_ratios=ratios)


def test_a_loss_gets_the_ratio_of_each_answers_prompt_and_1_of_pairs() -> None:
    items = small_items("answers")
    given = objective(items, small_ratios(items))
    values = torch.zeros(4)
    beside = given._beside([3, 0, 5, 4], values)
    expected = small_ratios(items).of(items[i].prompt for i in (3, 0, 5, 4)).float()
    torch.testing.assert_close(beside["density_ratio"], expected)
    assert expected[2] == expected[3] != expected[0]  # two answers to one prompt
    pairs = [item for item in small_items("pairs") if isinstance(item, TokenPair)]
    assert objective(pairs, None)._beside([0, 1], values)["density_ratio"].tolist() == [1.0] * 4
    with pytest.raises(PobenchError, match="bco_udm needs density_ratio; pass `density_ratios`"):
        objective(items, None)
