"""The SFT stage: what it learns from, what it computes, and that it learns."""

from __future__ import annotations

import copy

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from pobench.registry import PobenchError
from pobench.sft import sft, tokenise

WORDS = [
    "<pad>",
    "<unk>",
    "<|user|>",
    "<|assistant|>",
    "<|end|>",
    *["a", "b", "c", "d", "e", "f", "g", "h", "say", "then"],
]


@pytest.fixture
def tokenizer():
    words = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    made = PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token="<pad>",
        unk_token="<unk>",
        eos_token="<|end|>",
        additional_special_tokens=["<|user|>", "<|assistant|>"],
    )
    made.chat_template = (
        "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% if m.role == 'assistant' %}<|end|>{% endif %}"
        "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    return made


def make_model(seed: int = 0) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(WORDS),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=64,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=4,
            pad_token_id=0,
        )
    )


ROWS = [
    {"prompt": "say a b", "response": "a b"},
    {"prompt": "say c", "response": "c"},
    {"prompt": [{"role": "user", "content": "say d e f"}], "response": "d e f"},
    {
        "messages": [
            {"role": "user", "content": "say g"},
            {"role": "assistant", "content": "g"},
            {"role": "user", "content": "then h h h h"},
            {"role": "assistant", "content": "h h h h"},
        ]
    },
]


def ids(text: str) -> tuple[int, ...]:
    return tuple(WORDS.index(w) for w in text.split())


def test_every_assistant_turn_is_one_prompt_with_one_response(tokenizer) -> None:
    groups = tokenise(tokenizer, ROWS)
    assert len(groups) == 5
    assert groups[0].prompt == ids("<|user|> say a b <|assistant|>")
    assert groups[0].responses == (ids("a b <|end|>"),)
    # The second turn sees the first, and learns only its own tokens.
    assert groups[4].prompt == ids("<|user|> say g <|assistant|> g <|end|> <|user|> then h h h h <|assistant|>")
    assert groups[4].responses == (ids("h h h h <|end|>"),)


def reference_loss(model, groups) -> torch.Tensor:
    """Cross-entropy by the model's own logits, one conversation at a time, prompts masked, mean over all tokens."""
    total, learnt = torch.zeros(()), 0
    for group in groups:
        sequence = torch.tensor([group.prompt + group.responses[0]])
        labels = sequence.clone()
        labels[0, : len(group.prompt)] = -100
        logits = model(input_ids=sequence).logits[0, :-1]
        total = total + torch.nn.functional.cross_entropy(logits, labels[0, 1:], ignore_index=-100, reduction="sum")
        learnt += len(group.responses[0])
    return total / learnt


@pytest.mark.parametrize("layout", ["shared_prefix", "padded"])
@pytest.mark.parametrize("micro_tokens", [1, 24, 4096])
def test_a_step_is_that_of_a_token_mean_over_the_whole_batch_however_it_is_split(
    tokenizer, layout, micro_tokens
) -> None:
    trained, plain = make_model(), make_model()
    result = sft(
        trained, tokenizer, ROWS, lr=1e-2, batch_size=5, warmup_ratio=0.0, micro_tokens=micro_tokens, layout=layout
    )
    loss = reference_loss(plain, tokenise(tokenizer, ROWS))
    assert result.losses == pytest.approx([loss.item()], rel=1e-5)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(plain.parameters(), 1.0)
    torch.optim.AdamW(plain.parameters(), lr=1e-2, weight_decay=0.0).step()
    for (name, ours), theirs in zip(trained.named_parameters(), plain.parameters(), strict=True):
        # Adam's first step is ±lr: where a gradient is nothing but rounding, its sign is too.
        settled = theirs.grad.abs() > 1e-6
        assert torch.allclose(ours[settled], theirs[settled], atol=1e-5), name


def test_it_learns_and_the_same_seed_gives_the_same_weights(tokenizer) -> None:
    first, again, other = make_model(), make_model(), make_model()
    seen: list[tuple[int, int]] = []
    how = {"lr": 1e-2, "epochs": 20, "batch_size": 2, "layout": "shared_prefix"}
    result = sft(first, tokenizer, ROWS, **how, seed=1, progress=lambda done, steps: seen.append((done, steps)))
    sft(again, tokenizer, ROWS, **how, seed=1)
    sft(other, tokenizer, ROWS, **how, seed=2)
    assert sum(result.losses[-3:]) / 3 < 0.5 < 2 < result.losses[0]
    assert seen[0] == (1, 60) and seen[-1] == (60, 60)  # five turns in batches of two: three steps an epoch
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first.parameters(), other.parameters(), strict=True))


def test_unshuffled_rows_are_learnt_from_in_their_order(tokenizer) -> None:
    model, groups = make_model(), tokenise(tokenizer, ROWS)
    expected = [reference_loss(copy.deepcopy(model), [group]).item() for group in groups]
    result = sft(model, tokenizer, ROWS, lr=1e-12, batch_size=1, shuffle=False)
    assert result.losses == pytest.approx(expected, rel=1e-4)


def test_over_long_turns_are_left_out_and_counted(tokenizer) -> None:
    result = sft(make_model(), tokenizer, ROWS, lr=1e-3, max_length=10)
    assert (result.turns, result.over_long) == (4, 1)
    assert result.tokens == sum(g.tokens for g in tokenise(tokenizer, ROWS) if g.tokens <= 10)
    with pytest.raises(PobenchError, match="5 turns, all over 3 tokens"):
        sft(make_model(), tokenizer, ROWS, lr=1e-3, max_length=3)


def test_rows_without_anything_to_learn_are_refused_all_together(tokenizer) -> None:
    bad = [
        ROWS[0],
        {"prompt": "say a", "answer": "a"},
        {"messages": [{"role": "user", "content": "say a"}]},
        {"prompt": "say a", "response": " "},
    ]
    with pytest.raises(PobenchError) as error:
        tokenise(tokenizer, bad)
    said = str(error.value)
    assert "row 1:" not in said
    assert all(
        part in said for part in ("row 2: expected", "row 3: no assistant turn", "row 4: an assistant turn is empty")
    )


def test_weights_in_short_formats_are_refused(tokenizer) -> None:
    with pytest.raises(PobenchError, match="float32"):
        sft(make_model().to(torch.bfloat16), tokenizer, ROWS, lr=1e-3)


def test_a_loss_that_is_no_number_stops_at_its_step(tokenizer) -> None:
    # A first step of ±1e38 on every weight: products overflow in the second.
    with pytest.raises(PobenchError, match="step 2 of 5"):
        sft(make_model(), tokenizer, ROWS, lr=1e38, batch_size=1, warmup_ratio=0.0)
