from __future__ import annotations

import copy
from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_chat_model import character_tokenizer, chat_model
from transformers import BloomForCausalLM, FalconForCausalLM, GPTNeoForCausalLM, LlamaForCausalLM

from pobench.data.chat import Chat
from pobench.errors import PobenchError
from pobench.model import generate as generation
from pobench.model.generate import (
    Decoding,
    cache_bytes,
    generate,
    generate_batches,
    in_precision,
    pick,
    row_bytes,
    stop_tokens,
)
from pobench.model.load import load_model
from pobench.model.roomy_cache import RoomyLayer


@given(st.lists(st.integers(1, 40_000), max_size=60), st.integers(1, 8))
def test_a_batch_of_long_prompts_has_fewer_rows(lengths, batch_size) -> None:
    lengths = sorted(lengths)
    asked = [(i, 0) for i in range(len(lengths))]
    batches = generation._batches(asked, lengths, batch_size)
    assert [answer for batch in batches for answer in batch] == asked
    for batch in batches:
        assert len(batch) <= batch_size
        assert len(batch) == 1 or len(batch) * lengths[batch[-1][0]] <= generation.MOST_TOKENS
    for first, second in pairwise(batches):  # no batch ends without a reason
        assert len(first) == batch_size or (len(first) + 1) * lengths[second[0][0]] > generation.MOST_TOKENS


CHAT = Chat(character_tokenizer())
TOKENIZER = CHAT.tokenizer
PROMPTS = [CHAT.prompt_ids(text) for text in ("hi", "what is a bee?", "name one river in Europe", "no")]


@pytest.fixture(scope="module")
def model():
    return chat_model()


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_logits_that_overflow_end_the_answers_in_a_message(temperature: float) -> None:
    overflowing = chat_model()
    with torch.no_grad():
        overflowing.get_output_embeddings().weight.mul_(1e38)
        overflowing.model.norm.weight.mul_(1e3)
    with pytest.raises(PobenchError, match="token 1 of an answer has no finite logits in fp32"):
        generate(overflowing, CHAT, PROMPTS, Decoding(3, temperature=temperature))


@pytest.mark.parametrize(
    ("architecture", "settings"),
    [
        ("llama", {}),
        ("mistral", {"sliding_window": 8}),
        ("qwen2", {}),
        ("gemma2", {"head_dim": 8, "sliding_window": 8, "query_pre_attn_scalar": 8}),
    ],
)
def test_greedy_answers_equal_those_of_transformers(architecture, settings):
    model = chat_model(architecture, seed=3, **settings)
    ours = generate(model, CHAT, PROMPTS, Decoding(24), batch_size=3)
    assert len({a.text for a in ours}) > 1
    for answer in ours:
        ids = torch.tensor([PROMPTS[answer.prompt]])
        theirs = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=24, do_sample=False)[0]
        said = theirs[ids.shape[1] :].tolist()
        ended = TOKENIZER.eos_token_id in said
        assert answer.finished is ended
        assert answer.tokens == len(said)
        assert answer.text == TOKENIZER.decode(said, skip_special_tokens=True)


@pytest.mark.parametrize(
    ("architecture", "settings"),
    [("llama", {}), ("gemma2", {"head_dim": 8, "sliding_window": 8, "query_pre_attn_scalar": 8})],
)
def test_a_cache_with_room_for_all_from_the_start_gives_the_same_answers(monkeypatch, architecture, settings):
    model = chat_model(architecture, seed=3, **settings)
    drawn = Decoding(40, temperature=1.5, samples=6, seed=5)
    growing = generate(model, CHAT, PROMPTS, drawn)
    assert len({a.tokens for a in growing}) > 4  # rows leave the batch
    made, cache = [], generation._cache
    monkeypatch.setattr(generation, "_cache", lambda c, n, static: made.append(cache(c, n, True)) or made[-1])
    assert generate(model, CHAT, PROMPTS, drawn) == growing
    assert [type(c).__name__ for c in made] == ["StaticCache"]


@pytest.mark.parametrize("together", [1, 2, 5])
def test_prompts_that_are_read_in_parts_of_similar_length_get_the_same_answers(model, monkeypatch, together) -> None:
    drawn = Decoding(12, temperature=1.5, samples=3, seed=5)
    asked = [*PROMPTS, PROMPTS[0] + PROMPTS[1], PROMPTS[1] + PROMPTS[2]]
    at_once, reads = generate(model, CHAT, asked, drawn), []
    part = generation._read_together
    monkeypatch.setattr(generation, "READ_TOGETHER", together)
    monkeypatch.setattr(generation, "_read_together", lambda *a: reads.append(len(a[1])) or part(*a))
    assert generate(model, CHAT, asked, drawn) == at_once
    assert max(reads) == together and sum(reads) == 3 * len(asked)


def test_answers_that_end_early_change_nothing_for_the_others(model):
    drawn = Decoding(30, temperature=2.0, samples=6, seed=5)
    together = generate(model, CHAT, PROMPTS, drawn, batch_size=24)
    assert len({a.tokens for a in together}) > 4  # they do end at different times
    assert together == generate(model, CHAT, PROMPTS, drawn, batch_size=1)


def test_a_prompt_is_answered_the_same_whatever_else_is_asked(model):
    drawn = Decoding(12, temperature=1.0, samples=2, seed=5)
    among = [a.text for a in generate(model, CHAT, PROMPTS, drawn) if a.prompt == 2]
    alone = [a.text for a in generate(model, CHAT, PROMPTS[2:3], drawn)]
    assert alone == among
    other = [a.text for a in generate(model, CHAT, PROMPTS[2:3], replace(drawn, seed=6))]
    assert other != alone
    assert alone[0] != alone[1]


def read_tokens(model, monkeypatch) -> list[tuple[int, int]]:
    """(rows, tokens) of every forward pass from now on."""
    shapes: list[tuple[int, int]] = []
    own = type(model).forward

    def forward(self, *args, **kwargs):
        shapes.append(tuple(kwargs["input_ids"].shape))
        return own(self, *args, **kwargs)

    monkeypatch.setattr(type(model), "forward", forward)
    return shapes


@pytest.mark.parametrize("static", [False, True])
def test_what_prompts_begin_with_alike_is_read_once_and_so_is_a_prompt_that_is_asked_often(model, monkeypatch, static):
    begins = generation._common_beginning(PROMPTS)
    longest = max(map(len, PROMPTS))
    assert begins > 4
    monkeypatch.setattr(generation, "LEAST_SHARED", 4)
    cache = generation._cache
    monkeypatch.setattr(generation, "_cache", lambda config, tokens, **how: cache(config, tokens, static=static))
    decoding = Decoding(6, temperature=0.7, samples=3)
    shapes = read_tokens(model, monkeypatch)
    together = generate(model, CHAT, PROMPTS, decoding)
    assert shapes[:3] == [(1, begins), (len(PROMPTS), longest - begins), (3 * len(PROMPTS), 1)] and len(shapes) == 1 + 6
    monkeypatch.setattr(generation, "LEAST_SHARED", 10**6)
    assert generate(model, CHAT, PROMPTS, decoding) == together
    alone = [generate(model, CHAT, [prompt], decoding) for prompt in PROMPTS]
    assert [answer.text for one in alone for answer in one] == [answer.text for answer in together]


@given(st.lists(st.lists(st.integers(0, 1), min_size=1, max_size=6), min_size=1, max_size=5))
def test_every_prompt_keeps_a_token_behind_what_all_begin_with(prompts) -> None:
    begins = generation._common_beginning(prompts)
    assert all(prompt[:begins] == prompts[0][:begins] and len(prompt) > begins for prompt in prompts)
    if len(prompts) > 1 and min(map(len, prompts)) > begins + 1:
        assert len({prompt[begins] for prompt in prompts}) > 1  # it ends where they differ


@given(st.lists(st.booleans(), min_size=1, max_size=40).filter(lambda ended: not all(ended)))
def test_rows_that_are_left_keep_their_places_or_take_those_of_rows_that_have_ended(ended) -> None:
    source = generation._closed_up(torch.tensor(ended)).tolist()
    assert sorted(source) == [row for row, over in enumerate(ended) if not over]
    assert all(row == place or row >= len(source) for place, row in enumerate(source))
    one, other = RoomyLayer(9), RoomyLayer(9)
    for layer in (one, other):
        layer.update(*torch.arange(len(ended) * 2 * 2 * 3 * 5.0).reshape(2, len(ended), 2, 3, 5))
        layer.update(*torch.ones(2, len(ended), 2, 1, 5))
    kept = [states[source] for states in (one.keys, one.values)]
    one.batch_select_indices(torch.tensor(source, dtype=torch.long))
    assert all(map(torch.equal, (one.keys, one.values), kept))
    further = torch.full((2, len(source), 2, 1, 5), 7.0)
    assert all(
        torch.equal(t[:, :, :4], k) and bool((t[:, :, 4:] == 7).all())
        for t, k in zip(one.update(*further), kept, strict=True)
    )
    back = torch.tensor([0, 0, *range(len(ended))])  # in another order, and a row twice: all are copied
    kept = [states[back] for states in (other.keys, other.values)]
    other.batch_select_indices(back)
    assert all(map(torch.equal, (other.keys, other.values), kept))


def test_skipped_answers_are_left_out_and_the_rest_stays(model):
    drawn = Decoding(8, temperature=1.0, samples=2, seed=1)
    whole = set(generate(model, CHAT, PROMPTS, drawn))
    batches = generate_batches(model, CHAT, PROMPTS, drawn, batch_size=2, skip=lambda p, s: s == 0 or p == 3)
    rest = {a for batch in batches for a in batch}
    assert {(a.prompt, a.sample) for a in rest} == {(0, 1), (1, 1), (2, 1)}
    assert rest <= whole


def test_shares_and_skipped_answers_leave_every_batch_its_shape(model, monkeypatch):
    drawn = Decoding(8, temperature=1.0, samples=3, seed=1)
    shapes = []
    decode = generation._decode
    monkeypatch.setattr(generation, "_decode", lambda m, rows, *a: shapes.append(rows) or decode(m, rows, *a))
    whole = list(generate_batches(model, CHAT, PROMPTS, drawn, batch_size=5))
    laid_out = list(shapes)
    assert [len(rows) for rows in laid_out] == [5, 5, 2]
    shares = [list(generate_batches(model, CHAT, PROMPTS, drawn, batch_size=5, share=(i, 2))) for i in range(2)]
    assert shares == [whole[::2], whole[1::2]]
    shapes.clear()
    have = {(a.prompt, a.sample) for a in [*whole[0], *whole[1][:2]]}  # cut off within the second batch
    rest = list(generate_batches(model, CHAT, PROMPTS, drawn, batch_size=5, skip=lambda p, s: (p, s) in have))
    assert rest == [whole[1][2:], whole[2]] and shapes == laid_out[1:]


def test_the_end_of_turn_token_is_counted_but_not_shown(model):
    answers = generate(model, CHAT, PROMPTS, Decoding(40, temperature=3.0, samples=4, seed=2))
    finished = [a for a in answers if a.finished]
    cut = [a for a in answers if not a.finished]
    assert finished and all("<|end|>" not in a.text and a.tokens <= 40 for a in finished)
    assert all(a.tokens == 40 for a in cut)
    plain = [a for a in finished if a.text.isalnum()]
    assert all(a.tokens == len(a.text) + 1 for a in plain)


def test_a_model_speaks_in_the_type_of_its_weights_and_no_other(model):
    with pytest.raises(PobenchError, match=r"(?s)float32, not bf16; .*in_precision"):
        generate(model, CHAT, PROMPTS, Decoding(4, precision="bf16"))
    model.train()
    assert len(generate(model, CHAT, PROMPTS, Decoding(4))) == 4
    assert model.training, "as it was"
    model.eval()


def test_weights_cast_in_place_are_those_that_are_read_in_that_type(tmp_path):
    model = chat_model(seed=3)
    model.save_pretrained(tmp_path)
    model.lm_head.weight.grad = torch.ones_like(model.lm_head.weight)
    weights = [id(weight) for weight in model.parameters()]
    assert in_precision(model, "bf16") is model
    assert [id(weight) for weight in model.parameters()] == weights, "in place"
    assert all(weight.grad is None for weight in model.parameters())
    read = load_model(tmp_path, dtype=torch.bfloat16)
    theirs = dict(read.named_parameters()) | dict(read.named_buffers())
    ours = dict(model.named_parameters()) | dict(model.named_buffers())
    assert ours.keys() == theirs.keys() and {t.dtype for t in ours.values()} == {torch.bfloat16, torch.float32}
    assert all(t.dtype == theirs[k].dtype and torch.equal(t, theirs[k]) for k, t in ours.items())
    drawn = Decoding(12, temperature=1.0, samples=2, seed=5, precision="bf16")
    assert generate(model, CHAT, PROMPTS, drawn) == generate(read, CHAT, PROMPTS, drawn)


def test_a_batch_that_memory_does_not_hold_is_decoded_in_parts_with_the_same_answers(model, monkeypatch):
    drawn = Decoding(30, temperature=2.0, samples=6, seed=5)
    sizes = []
    decode = generation._decode
    monkeypatch.setattr(generation, "_decode", lambda m, rows, *a: sizes.append(len(rows)) or decode(m, rows, *a))
    whole = generate(model, CHAT, PROMPTS, drawn)
    row = row_bytes(model.config, torch.float32, max(map(len, PROMPTS)), 30)
    monkeypatch.setattr(generation, "free_memory", lambda device: int(11.5 * row / generation.SHARE))
    assert generate(model, CHAT, PROMPTS, drawn) == whole
    monkeypatch.setattr(generation, "free_memory", lambda device: 0)
    assert generate(model, CHAT, PROMPTS[:1], Decoding(2, samples=2)), "one row is tried whatever is free"
    assert sizes == [24, 8, 8, 8, 1, 1], "eleven fit, so eight, the next lower power of two"


def test_eager_attention_under_another_name_counts_its_scores_too(model):
    config = copy.deepcopy(model.config)
    rows = {}
    for name in ("sdpa", "eager", "flex_over_eager", "flex_over_sdpa"):
        config._attn_implementation_internal = name
        rows[name] = row_bytes(config, torch.bfloat16, 100, 10)
    assert rows["flex_over_eager"] == rows["eager"] > rows["flex_over_sdpa"] == rows["sdpa"]


@pytest.mark.parametrize("kind", ["llama", "gpt_neo", "bloom", "falcon with alibi"])
def test_a_static_cache_is_for_models_that_read_it_as_it_is_meant(kind) -> None:
    name, _, alibi = kind.partition(" with ")
    classes = {
        "llama": LlamaForCausalLM,
        "gpt_neo": GPTNeoForCausalLM,
        "bloom": BloomForCausalLM,
        "falcon": FalconForCausalLM,
    }
    config = SimpleNamespace(model_type=name, **({"alibi": True} if alibi else {}))
    on_gpu = SimpleNamespace(
        config=config, device=torch.device("cuda"), _can_compile_fullgraph=classes[name]._can_compile_fullgraph
    )
    assert generation._takes_static(on_gpu) == (kind == "llama")
    on_gpu.device = torch.device("cpu")
    assert not generation._takes_static(on_gpu)


def test_new_tokens_count_towards_the_memory_of_a_batch(model):
    # 2 layers x keys and values x 2 heads x 8 wide x 4 bytes
    assert cache_bytes(model.config, torch.float32) == 2 * 2 * 2 * 8 * 4
    assert cache_bytes(model.config, torch.bfloat16) == 2 * 2 * 2 * 8 * 2
    longer, shorter = (row_bytes(model.config, torch.float32, 10, new) for new in (110, 10))
    assert longer - shorter == 100 * (256 + 10 * 4)  # of each: its keys and values, a column of the mask


def test_progress_reaches_the_number_of_answers(model):
    seen = []
    generate(model, CHAT, PROMPTS, Decoding(2, samples=2), batch_size=3, progress=lambda d, n: seen.append((d, n)))
    assert seen == [(3, 8), (6, 8), (8, 8)]


def test_the_turn_ending_token_of_the_template_stops_an_answer(model):
    # The model's own settings name another token; the template closes each turn with <|end|>.
    tokenizer = character_tokenizer()
    tokenizer.eos_token = "<unk>"
    ids = stop_tokens(model, Chat(tokenizer))
    assert tokenizer.convert_tokens_to_ids("<|end|>") in ids
    assert tokenizer.convert_tokens_to_ids("<unk>") in ids


def test_all_faulty_settings_are_listed_together():
    with pytest.raises(PobenchError) as error:
        Decoding(max_new_tokens=0, temperature=-1, top_p=0, precision="fp8")
    for word in ("max_new_tokens", "temperature", "top_p", "fp8"):
        assert word in str(error.value)


def test_no_prompts_give_no_answers(model):
    assert generate(model, CHAT, [], Decoding(4)) == []


# ---------------------------------------------------------------- drawing one token


def test_the_nucleus_is_the_smallest_set_that_reaches_top_p():
    # probabilities 0.5, 0.3, 0.15, 0.05: 0.8 is reached by the first two, so only these are drawn
    logits = torch.tensor([[0.15, 0.5, 0.05, 0.3]]).log()
    uniform = torch.linspace(0, 0.999, 1000)
    drawn = pick(logits.expand(1000, -1), 1.0, 0.79, uniform)
    # within the nucleus 0.5 : 0.3 becomes 0.625 : 0.375
    assert drawn.unique().tolist() == [1, 3]
    assert (drawn == 1).float().mean().item() == pytest.approx(0.625, abs=2e-3)


def test_temperature_sharpens():
    logits = torch.tensor([[0.6, 0.4]]).log()
    uniform = torch.linspace(0, 0.999, 1000)
    # at temperature 0.5 the odds are squared: 0.36 : 0.16, so 0.36 / 0.52 = 0.6923
    drawn = pick(logits.expand(1000, -1), 0.5, 1.0, uniform)
    assert (drawn == 0).float().mean().item() == pytest.approx(0.6923, abs=2e-3)


def test_a_flat_distribution_over_a_large_vocabulary_is_drawn_from_entirely():
    # 4096 equal tokens: the 1024 likeliest hold a quarter of the probability, far from top_p
    uniform = torch.linspace(0, 0.9999, 512)
    drawn = pick(torch.zeros(512, 4096), 1.0, 0.9, uniform)
    assert len(drawn.unique()) == 512
    everything = pick(torch.zeros(512, 4096), 1.0, 1.0, uniform)
    assert len(everything.unique()) == 512


@settings(max_examples=50)
@given(st.lists(st.integers(-200, 200), min_size=2, max_size=12), st.integers(1, 100), st.integers(0, 999))
def test_what_is_drawn_lies_in_the_nucleus(logits, percent, mill):
    row = torch.tensor([logits]) / 10
    drawn = int(pick(row, 1.0, percent / 100, torch.tensor([mill / 1000])))
    probability = row.double().softmax(-1)[0]
    likelier = probability[probability > probability[drawn]].sum()
    assert likelier < percent / 100 + 1e-5
