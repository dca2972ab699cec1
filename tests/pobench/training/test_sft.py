"""The SFT stage: what it learns from, what it computes, and that it learns."""

from __future__ import annotations

import copy

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from pobench.data.demonstrations import Demonstrations, tokenise
from pobench.errors import PobenchError
from pobench.settings.schema import SftConfig
from pobench.training.sft import batches, sft

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


def conversations(tokenizer, rows=ROWS, **how):
    return tokenise(tokenizer, list(enumerate(rows, start=1)), **how)


def test_a_conversation_is_one_sequence_of_which_the_assistants_turns_are_learnt(tokenizer) -> None:
    made = conversations(tokenizer)
    single, several = made.groups[0], made.groups[3]
    assert len(made.groups) == 4 and made.turns == 5
    assert single.prompt == ids("<|user|> say a b <|assistant|>")
    assert single.responses == (ids("a b <|end|>"),) and single.learnt_tokens == 3
    assert several.prompt == ids("<|user|> say g <|assistant|>")
    assert several.responses == (ids("g <|end|> <|user|> then h h h h <|assistant|> h h h h <|end|>"),)
    assert several.learnt == ((0, 2), (9, 14))  # `g <|end|>`, then `h h h h <|end|>`
    assert several.learnt_tokens == 7


def test_a_template_that_rewrites_earlier_turns_gives_each_turn_its_own_sequence(tokenizer) -> None:
    # The last question is marked, so the text in front of a later answer is no continuation of the earlier one.
    tokenizer.chat_template = (
        "{% for m in messages %}<|{{ m.role }}|>"
        "{{ 'then ' if m.role == 'user' and (loop.last or loop.revindex == 2) else '' }}{{ m.content }}"
        "{% if m.role == 'assistant' %}<|end|>{% endif %}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    first, second = conversations(tokenizer, [ROWS[3]]).groups
    assert first.prompt == ids("<|user|> then say g <|assistant|>") and first.responses == (ids("g <|end|>"),)
    assert second.prompt[:3] == ids("<|user|> say g") and second.responses == (ids("h h h h <|end|>"),)
    assert not first.learnt and not second.learnt


def test_demonstrations_survive_the_trip_through_a_folder(tokenizer, tmp_path) -> None:
    made = conversations(tokenizer, [*ROWS, {"no": 1}], on_bad_row="drop")
    made.save(tmp_path)
    assert Demonstrations.load(tmp_path) == made
    assert "1 rows left out as faulty" in made.text() and "row 5: expected" in made.text()


def test_packing_fills_a_batch_with_rows_of_the_maximum_length(tokenizer) -> None:
    groups = conversations(tokenizer, ROWS * 5).groups  # 8, 6, 10 and 18 tokens
    config = SftConfig(source="", lr=1.0, batch_size=2, max_length=25, packing=True, shuffle=False, epochs=2)
    steps = batches(groups, config)
    # 8 + 6 + 10 fit into a row of 25; then 18 alone, for the next 8 do not fit beside them.
    assert [b for _, b in steps[:2]] == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert sorted(i for epoch, b in steps if epoch <= 1 for i in b) == list(range(20))
    assert steps[-1][0] == 2


def reference_loss(model, groups) -> torch.Tensor:
    """Cross-entropy by the model's own logits, one conversation at a time, all but the assistant's turns masked, mean over
    all tokens."""
    total, learnt = torch.zeros(()), 0
    for group in groups:
        sequence = torch.tensor([group.prompt + group.responses[0]])
        labels = torch.full_like(sequence, -100)
        at = len(group.prompt)
        for start, stop in group.learnt or ((0, len(group.responses[0])),):
            labels[0, at + start : at + stop] = sequence[0, at + start : at + stop]
        logits = model(input_ids=sequence).logits[0, :-1]
        total = total + torch.nn.functional.cross_entropy(logits, labels[0, 1:], ignore_index=-100, reduction="sum")
        learnt += int((labels != -100).sum())
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
    loss = reference_loss(plain, conversations(tokenizer).groups)
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
    how = {"lr": 1e-2, "batch_size": 2, "layout": "shared_prefix"}
    report = {"progress": lambda done, steps: seen.append((done, steps))}
    result = sft(make_model(), tokenizer, ROWS, **how, epochs=20, seed=1, **report)
    for model, seed in ((first, 1), (again, 1), (other, 2)):
        sft(model, tokenizer, ROWS, **how, epochs=3, seed=seed)
    assert sum(result.losses[-3:]) / 3 < 0.5 < 2 < result.losses[0]
    assert seen[0] == (1, 40) and seen[-1] == (40, 40)  # four conversations in batches of two: two steps an epoch
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first.parameters(), other.parameters(), strict=True))


def test_unshuffled_rows_are_learnt_from_in_their_order(tokenizer) -> None:
    model, groups = make_model(), conversations(tokenizer).groups
    expected = [reference_loss(copy.deepcopy(model), [group]).item() for group in groups]
    result = sft(model, tokenizer, ROWS, lr=1e-12, batch_size=1, shuffle=False)
    assert result.losses == pytest.approx(expected, rel=1e-4)


def test_over_long_turns_are_left_out_and_counted(tokenizer) -> None:
    result = sft(make_model(), tokenizer, ROWS, lr=1e-3, max_length=10)
    assert (result.turns, result.over_long) == (4, 1)
    assert result.tokens == sum(g.tokens for g in conversations(tokenizer, max_length=10).groups)
    assert max(g.tokens for g in conversations(tokenizer, max_length=10).groups) <= 10
    with pytest.raises(PobenchError, match="5 turns, all over 3 tokens"):
        sft(make_model(), tokenizer, ROWS, lr=1e-3, max_length=3)


def test_rows_without_anything_to_learn_are_refused_all_together(tokenizer) -> None:
    bad = [
        ROWS[0],
        {"prompt": "say a", "answer": "a"},
        {"messages": [{"role": "user", "content": "say a"}]},
        {"prompt": "say a", "response": " "},
        {"messages": [{"role": "user", "content": "say <|end|>"}, {"role": "assistant", "content": "a"}]},
        {"messages": [{"from": "human", "value": "say a"}]},
        {"messages": [{"role": "assistant", "content": "a"}]},
        {"prompt": "say a", "response": "a", "system": "speak"},
        {"messages": [{"role": "user", "content": "say a", "images": ["p"]}, {"role": "assistant", "content": "a"}]},
        {"prompt": "[INST] say a [/INST]", "response": "a"},
        {"prompt": "say \ud800", "response": "a"},
        {"prompt": " ", "response": "a"},
    ]
    with pytest.raises(PobenchError) as error:
        conversations(tokenizer, bad)
    said = str(error.value)
    assert "row 1:" not in said
    assert all(
        part in said
        for part in (
            "row 2: expected `messages`, or `prompt` and `response`; got prompt, answer",
            "row 3: no assistant turn",
            "an assistant turn is empty",
            "holds a special token of the tokenizer as text; got '<|end|>'",
            "no `role` and `content` of text",
            "row 7: the assistant speaks before it is asked",
            "row 8, 'system': changes what is asked and is not read; put its words into the messages",
            "a message with `images`, which is not read",
            "text of the chat template [INST] inside a turn; store chat messages",
            "row 11, 'messages[0]': broken UTF-8",
            "row 12, 'messages[0]': a user turn is empty",
            "11 of 12 rows are bad (sft.on_bad_row: drop continues without them)",
        )
    )


def test_weights_in_short_formats_are_refused(tokenizer) -> None:
    with pytest.raises(PobenchError, match="float32"):
        sft(make_model().to(torch.bfloat16), tokenizer, ROWS, lr=1e-3)


def test_a_loss_that_is_no_number_stops_at_its_step(tokenizer) -> None:
    model = make_model()
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.clone())  # no longer the embeddings
    with torch.no_grad():  # a word of the third conversation alone
        model.model.embed_tokens.weight[WORDS.index("d")] = torch.nan
    with pytest.raises(PobenchError, match=r"step 3: loss .*conversations in the batch: "):
        sft(model, tokenizer, ROWS, lr=1e-3, batch_size=1, shuffle=False)
