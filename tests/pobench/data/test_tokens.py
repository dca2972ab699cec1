"""Token pairs: the cut, the special tokens, the length policy, the audit, and orders that depend on the data alone."""

from __future__ import annotations

import copy
import io
import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from pobench.cli.show_pairs import pieces, render_audit, render_inspection
from pobench.data.audit import Audit
from pobench.data.chat import Chat, with_values
from pobench.data.demonstrations import tokenise as demonstrations
from pobench.data.order import biased, data_digest, data_order, mismatch, split_by_prompt, subset, text_key
from pobench.data.published import ZEPHYR_TEMPLATE
from pobench.data.rows import Message, Preference
from pobench.data.shapes import load_preferences, recognise
from pobench.data.tokens import CUT_PROMPT, CUT_RESPONSE, CUT_TO_IDENTICAL, MERGED, check_prompt, inspected, tokenize
from pobench.errors import PobenchError
from pobench.settings.resolve import resolve
from pobench.types import TokenPair

SHARED = Path(__file__).parents[3] / "../shared/data"
TEXT = (
    "Why is the sky blue? Air scatters blue light most of all.\n\nSure, here is a list:\n- one\n- two\n\n\n"
    "The quick brown fox jumps over the lazy dog, doesn't it? Human readers like short answers. assistant user"
)

CHATML = (
    "{% if messages[0].role != 'system' %}<|im_start|>system\nBe kind.<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}<|head|>{{ m.role }}<|/head|>\n\n{{ m.content | trim }}<|eot|>{% endfor %}"
    "{% if add_generation_prompt %}<|head|>assistant<|/head|>\n\n{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}"
    "{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]{% else %} {{ m.content }}{{ eos_token }}{% endif %}"
    "{% endfor %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}{{ raise_exception('no system message here') }}{% endif %}"
    "{% for m in messages %}<turn>{{ 'model' if m.role == 'assistant' else m.role }}\n{{ m.content | trim }}</turn>\n"
    "{% endfor %}{% if add_generation_prompt %}<turn>model\n{% endif %}"
)
LLAMA2 = (
    "{% set system = messages[0].content if messages[0].role == 'system' else none %}"
    "{% for m in (messages if system is none else messages[1:]) %}"
    "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}"
    "{% if m.role == 'user' %}{{ bos_token }}[INST] "
    "{% if loop.first and system is not none %}<<SYS>>\n{{ system }}\n<</SYS>>\n\n{% endif %}"
    "{{ m.content.strip() }} [/INST]{% else %} {{ m.content.strip() }} {{ eos_token }}{% endif %}{% endfor %}"
)


def build(special: list[str], bos: str | None, eos: str, template: str | None, adds_bos: bool = False) -> Any:
    tokenizer = Tokenizer(models.BPE())
    words = Regex(r"\s*[\r\n]+| ?\w+| ?[^\s\w]+|\s+")  # line ends stay together, whatever follows
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(words, "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([TEXT] * 3, trainer)
    if adds_bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, tokenizer.token_to_id(bos))]
        )
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=bos, eos_token=eos, pad_token=eos)
    fast.add_special_tokens({"additional_special_tokens": special})
    fast.chat_template = template
    return fast


FAMILIES: dict[str, Callable[[], Any]] = {
    # the end-of-turn token, its header tokens and BOS differ in every way that the public families differ
    "chatml, its first token opens every turn": lambda: build(
        ["<|im_start|>", "<|im_end|>"], "<|im_start|>", "<|im_end|>", CHATML
    ),
    "llama 3, the tokenizer would add BOS again": lambda: build(
        ["<bot>", "<|head|>", "<|/head|>", "<|eot|>", "<eot>"], "<bot>", "<eot>", LLAMA3, adds_bos=True
    ),
    "llama 2, BOS opens every turn of the user": lambda: build(["<s>", "</s>"], "<s>", "</s>", LLAMA2, adds_bos=True),
    "mistral, no header": lambda: build(["<s>", "</s>"], "<s>", "</s>", MISTRAL, adds_bos=True),
    "gemma, another end of turn than end of text": lambda: build(
        ["<bos>", "<eos>", "<turn>", "</turn>"], "<bos>", "<eos>", GEMMA, adds_bos=True
    ),
    "no end of turn in the template, BOS by the tokenizer": lambda: build(
        ["<s>", "</s>"],
        "<s>",
        "</s>",
        "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant:{% endif %}",
        adds_bos=True,
    ),
    "no BOS at all": lambda: build(["<|im_start|>", "<|im_end|>"], None, "<|im_end|>", CHATML),
}
_BUILT: dict[str, Any] = {}


def family(name: str) -> Any:
    if name not in _BUILT:
        _BUILT[name] = FAMILIES[name]()
    return _BUILT[name]


@pytest.fixture(params=FAMILIES)
def any_tokenizer(request: pytest.FixtureRequest) -> Any:
    return family(request.param)


@pytest.fixture
def chatml() -> Any:
    return family("chatml, its first token opens every turn")


@pytest.fixture
def llama() -> Any:
    return family("llama 3, the tokenizer would add BOS again")


def preference(chosen: str, rejected: str, prompt: str = "Why is the sky blue?", row: int = 1) -> Preference:
    return Preference(f"p{row}", (Message("user", prompt),), chosen, rejected, row)


def one_pair(tokenizer: Any, chosen: str, rejected: str, **settings: Any) -> TokenPair:
    (pair,), _ = tokenize([preference(chosen, rejected)], tokenizer, **settings)
    return pair


def decoded(tokenizer: Any, ids: tuple[int, ...]) -> str:
    return tokenizer.decode(ids, clean_up_tokenization_spaces=False)


# ---------------------------------------------------------------- the cut

ANSWER = st.text(st.characters(codec="utf-8", exclude_characters="<>|/"), min_size=1, max_size=30).filter(
    lambda t: bool(t.strip()) and t == t.strip()
)


@given(name=st.sampled_from(list(FAMILIES)), prompt=ANSWER, first=ANSWER, second=ANSWER)
@settings(max_examples=120)
def test_prompt_and_responses_say_what_the_text_says(name: str, prompt: str, first: str, second: str) -> None:
    tokenizer = family(name)
    chat = Chat(tokenizer)
    asked = (Message("user", prompt),)
    chosen, rejected = f"{first} a", f"{second} b"
    (pair,), _ = tokenize([Preference("p", asked, chosen, rejected, 1)], chat)
    for text, response in ((chosen, pair.chosen), (rejected, pair.rejected)):
        whole = decoded(tokenizer, pair.prompt + response)
        end = tokenizer.convert_ids_to_tokens(chat.end)
        assert whole.endswith(end) and whole.removesuffix(end).rstrip(" ").endswith(text)  # Llama 2 writes a space
        assert text in decoded(tokenizer, response)  # nothing of the answer went to the prompt
        assert response.count(chat.end) == 1 and response[-1] == chat.end
    assert chat.prompt_ids(asked) == pair.prompt  # what a model is asked with


def test_both_answers_keep_the_words_they_begin_with_alike(any_tokenizer: Any) -> None:
    pair = one_pair(any_tokenizer, "Sure, here is one.", "Sure, here is two.")
    for response in (pair.chosen, pair.rejected):
        assert decoded(any_tokenizer, response).strip().startswith("Sure, here is")
    assert pair.prompt == Chat(any_tokenizer).prompt_ids([Message("user", "Why is the sky blue?")])


def test_there_is_one_beginning_of_text_token_and_one_end_of_turn(any_tokenizer: Any) -> None:
    chat = Chat(any_tokenizer)
    pair = one_pair(any_tokenizer, "Air scatters.", "It is not.")
    if chat.bos is not None:
        assert pair.prompt[0] == chat.bos and pair.prompt[1] != chat.bos
        if not chat.opens_turns:
            assert (pair.prompt + pair.chosen).count(chat.bos) == 1
    assert chat.opens_turns == (any_tokenizer.bos_token == "<|im_start|>" or chat.template == LLAMA2)


def test_what_the_template_writes_behind_the_end_of_turn_is_taken_off(chatml: Any) -> None:
    assert Chat(chatml).after == "\n"
    assert decoded(chatml, one_pair(chatml, "Yes.", "No.").chosen) == "Yes.<|im_end|>"
    gemma = family("gemma, another end of turn than end of text")
    assert decoded(gemma, one_pair(gemma, "Yes.", "No.").chosen) == "Yes.</turn>"  # not <eos>


def test_a_token_that_would_stand_on_both_sides_of_the_border_is_split_as_generation_splits_it(chatml: Any) -> None:
    # "\n" ends the header and "\n\n" begins the answer; the tokenizer knows "\n\n\n" as one token
    assert len(chatml("\n\n\n", add_special_tokens=False)["input_ids"]) == 1
    (pair,), audit = tokenize([preference("\n\n- one", "two")], chatml)
    assert audit.notes == {MERGED: [1]}
    assert pair.prompt == Chat(chatml).prompt_ids("Why is the sky blue?")
    assert decoded(chatml, pair.chosen) == "\n\n- one<|im_end|>"
    assert decoded(chatml, pair.rejected) == "two<|im_end|>"


def test_count_header_moves_the_header_into_the_response(llama: Any) -> None:
    plain = one_pair(llama, "Yes.", "No.")
    counted = one_pair(llama, "Yes.", "No.", count_header=True)
    assert (*plain.prompt, *plain.chosen, llama.eos_token_id) == counted.prompt + counted.chosen
    assert decoded(llama, counted.chosen) == "<|head|>assistant<|/head|>\n\nYes.<|eot|><eot>", (
        "Llama 3 Base ends its text"
    )
    assert decoded(llama, plain.chosen) == "Yes.<|eot|>"
    mistral = family("mistral, no header")
    assert one_pair(mistral, "Yes.", "No.") == one_pair(mistral, "Yes.", "No.", count_header=True)


SIMPO_FAMILIES: dict[str, tuple[list[str], str, str, str]] = {
    "mistral": (["<s>", "</s>"], "<s>", "</s>", ""),
    "zephyr": (["<s>", "</s>"], "<s>", "</s>", ZEPHYR_TEMPLATE),
    "llama 3 base": (["<bot>", "<|head|>", "<|/head|>", "<|eot|>", "<eot>"], "<bot>", "<eot>", LLAMA3),
    "llama 3 instruct": (["<bot>", "<|head|>", "<|/head|>", "<|eot|>", "<eot>"], "<bot>", "<|eot|>", LLAMA3),
    "gemma": (["<bos>", "<eos>", "<turn>", "</turn>"], "<bos>", "<eos>", GEMMA),
    "no end of turn": (
        ["<s>", "</s>"],
        "<s>",
        "</s>",
        "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}",
    ),
}


def as_simpo_trains(tokenizer: Any, prompt: list[dict[str, str]], answer: str) -> tuple[list[int], list[int]]:
    """(prompt ids, counted ids) of the SimPO repository's trainer: the prompt rendered without a generation prompt, the
    answer as a conversation of its own without BOS; cut where the prompt's tokens end, one earlier if the last of them
    changed; BOS in front and the end of the text behind, where they are not there yet."""
    before = tokenizer.apply_chat_template(prompt, tokenize=False)
    alone = [{"role": "assistant", "content": answer}]
    behind = tokenizer.apply_chat_template(alone, tokenize=False).removeprefix(tokenizer.bos_token)
    ids, asked = (tokenizer(t, add_special_tokens=False)["input_ids"] for t in (before + behind, before))
    border = len(asked) if ids[: len(asked)] == asked else len(asked) - 1
    start = [] if ids[0] == tokenizer.bos_token_id else [tokenizer.bos_token_id]
    stop = [] if ids[-1] == tokenizer.eos_token_id else [tokenizer.eos_token_id]
    return start + ids[:border], ids[border:] + stop


@pytest.mark.parametrize("name", SIMPO_FAMILIES)
@pytest.mark.parametrize("turns", [1, 2])
def test_count_header_counts_the_tokens_that_the_simpo_repository_counts(name: str, turns: int) -> None:
    tokenizer = build(*SIMPO_FAMILIES[name], adds_bos=True)
    if name == "mistral":
        tokenizer.chat_template = resolve("mistral-instruct", "simpo")[0].model.chat_template
    earlier = [Message("user", "Why?"), Message("assistant", "Because.")] * (turns - 1)
    asked = (*earlier, Message("user", "Why is the sky blue?"))
    answers = ("Sure, here is a list:\n- one\n- two", "No.")
    (pair,), _ = tokenize([Preference("p", asked, *answers, 1)], tokenizer, count_header=True)
    for answer, counted in zip(answers, (pair.chosen, pair.rejected), strict=True):
        theirs = as_simpo_trains(tokenizer, [m._asdict() for m in asked], answer)
        assert (list(pair.prompt), list(counted)) == theirs
    written = {"zephyr": "</s>\n</s>", "gemma": "</turn>\n<eos>", "llama 3 base": "<|eot|><eot>", "mistral": " </s>"}
    assert f"No.{written.get(name, '')}" in decoded(tokenizer, pair.rejected)
    (plain,), _ = tokenize([Preference("p", asked, *answers, 1)], tokenizer)
    whole = pair.prompt + pair.rejected
    assert whole[: len(plain.prompt)] == plain.prompt, "the prompt that generation asks with"
    (cut,), _ = tokenize(
        [Preference("p", asked, *answers, 1)],
        tokenizer,
        count_header=True,
        max_length=len(whole) + 1,
        max_prompt_length=len(pair.prompt),
        truncation="cut",
    )
    assert cut.rejected == pair.rejected and len(cut.chosen) == len(pair.rejected) + 1
    ending = cut.rejected[cut.rejected.index(Chat(tokenizer).end, 1) :]
    assert cut.chosen[-len(ending) :] == ending, "an answer that is cut ends as the others do"


@pytest.mark.parametrize("message", ["", 'Be "kind".\nÜberall, {{ always }}.'])
def test_a_system_message_is_put_where_there_is_none(llama: Any, message: str) -> None:
    template = with_values(llama.chat_template, message)
    put, own = (
        Chat(llama, t).prompt((*system, Message("user", "Q")))
        for t, system in ((template, ()), (llama.chat_template, (Message("system", message),)))
    )
    assert put == own and with_values(template) == template == with_values(template, message)
    theirs = (Message("system", "theirs"), Message("user", "Q"))
    assert Chat(llama, template).prompt(theirs) == Chat(llama).prompt(theirs)
    assert Chat(llama, with_values(template, message)).prompt(theirs[1:]) == put, "once, however often it is asked for"


def test_several_turns_and_a_default_system_message_are_part_of_the_prompt(chatml: Any) -> None:
    turns = (Message("user", "Why?"), Message("assistant", "Because."), Message("user", "Why though?"))
    (pair,), _ = tokenize([Preference("p", turns, "Yes.", "No.", 1)], chatml)
    text = decoded(chatml, pair.prompt)
    assert text.startswith("<|im_start|>system\nBe kind.") and "Because.<|im_end|>" in text


@pytest.mark.parametrize("turns", [1, 2, 3])
def test_a_bos_in_front_of_every_turn_of_the_user_is_no_fault(turns: int) -> None:
    tokenizer = family("llama 2, BOS opens every turn of the user")
    earlier = [Message(r, f"{t} {i}") for i in range(turns - 1) for r, t in (("user", "Why"), ("assistant", "So"))]
    asked = (Message("system", "Be kind."), *earlier, Message("user", "Why is the sky blue?"))
    row = Preference("p", asked, "Yes.", "No.", 1)
    chat = Chat(tokenizer)
    (pair,), audit = tokenize([row], chat)
    assert audit.faults == [] and pair.prompt.count(chat.bos) == turns
    text = tokenizer.apply_chat_template([m._asdict() for m in asked], tokenize=False)  # which writes every BOS itself
    assert pair.prompt == chat.prompt_ids(asked) == tuple(tokenizer(text, add_special_tokens=False)["input_ids"])
    assert decoded(tokenizer, pair.prompt + pair.chosen) == text + " Yes. </s>"
    (cut,), _ = tokenize([row], chat, max_prompt_length=20, max_length=60, truncation="cut")
    assert cut.prompt == (chat.bos, *pair.prompt[-19:]), "a prompt that is cut still begins with BOS"
    conversation = [m._asdict() for m in (*asked, Message("assistant", "Yes."))]
    (group,) = demonstrations(tokenizer, [(1, {"messages": conversation})]).groups
    assert (*group.prompt, *group.responses[0]) == pair.prompt + pair.chosen


def test_a_date_in_the_template_does_not_depend_on_the_day(chatml: Any) -> None:
    template = "{{ strftime_now('%d %b %Y') }}" + CHATML
    chat = Chat(chatml, template)
    assert chat.prompt([Message("user", "Hi")]).startswith("26 Jul 2024<|im_start|>system")
    assert Chat(chatml, chat.template).template == chat.template


# ---------------------------------------------------------------- templates that refuse or lose text


def test_a_base_model_without_a_template_gets_a_plain_one_on_request(tmp_path: Path) -> None:
    base = build(["<s>", "</s>"], "<s>", "</s>", None, adds_bos=True)
    with pytest.raises(PobenchError, match=r"model\.chat_template"):
        tokenize([preference("Yes.", "No.")], base)
    pair = one_pair(base, "Yes.", "No.", template="plain")
    assert decoded(base, pair.prompt) == "<s>User: Why is the sky blue?\n\nAssistant:"
    assert decoded(base, pair.chosen) == " Yes.</s>"
    (tmp_path / "mine.jinja").write_text(CHATML)
    assert decoded(base, one_pair(base, "Yes.", "No.", template=str(tmp_path / "mine.jinja")).chosen).endswith("</s>")
    with pytest.raises(PobenchError, match="no file"):
        one_pair(base, "Yes.", "No.", template="absent.jinja")


def test_a_template_that_takes_no_system_message_names_the_rows_that_have_one() -> None:
    row = Preference("p", (Message("system", "Be brief."), Message("user", "Why?")), "Yes.", "No.", 4)
    with pytest.raises(PobenchError, match=r"row 4, 'prompt': the chat template refuses .*no system message here"):
        tokenize([row, preference("a", "b")], family("gemma, another end of turn than end of text"))


def test_a_template_that_drops_text_is_refused(chatml: Any) -> None:
    thoughtless = CHATML.replace("{{ m.content }}", "{{ m.content.split('</think>')[-1] }}")
    with pytest.raises(PobenchError, match=r"'chosen': the chat template drops or changes text"):
        one_pair(chatml, "<think>Hm.</think>Yes.", "No.", template=thoughtless)
    systemless = "{% for m in messages if m.role != 'system' %}{{ m.role }}: {{ m.content }}{{ eos_token }}{% endfor %}"
    row = Preference("p", (Message("system", "Be brief."), Message("user", "Why?")), "Yes.", "No.", 4)
    with pytest.raises(PobenchError, match=r"'prompt\[0\]': the chat template drops"):
        tokenize([row], chatml, template=systemless)


def test_a_template_that_rewrites_the_prompt_once_an_answer_follows_is_refused(chatml: Any) -> None:
    numbered = "{{ messages | length }} " + CHATML
    with pytest.raises(PobenchError, match="writes the prompt differently"):
        one_pair(chatml, "Yes.", "No.", template=numbered)


def test_a_thought_that_the_generation_prompt_opens_is_trained_behind(chatml: Any) -> None:
    thinking = CHATML.replace("assistant\n{% endif %}", "assistant\n<think>\n{% endif %}")
    chat = Chat(chatml, thinking)
    (pair,), audit = tokenize([preference("Yes.", "<the>")], chat)
    assert pair.prompt == chat.prompt_ids("Why is the sky blue?")
    assert decoded(chatml, pair.prompt).endswith("<|im_start|>assistant\n<think>\n")
    assert decoded(chatml, pair.chosen) == "Yes.<|im_end|>"
    assert decoded(chatml, pair.rejected) == "<the><|im_end|>", "`<th` of the answer is not taken for the thought's"
    assert any("'<think>\\n', which only the generation prompt writes" in note for note in audit.notes)
    special = build(["<|im_start|>", "<|im_end|>", "<think>"], "<|im_start|>", "<|im_end|>", thinking)
    for tokenizer in (chatml, special):
        rows = [preference("<think>\nHm.</think>Yes.", "No.", "What does <think> mean?")]
        (whole,), _ = tokenize(rows, tokenizer, template=thinking)
        assert decoded(tokenizer, whole.chosen) == "Hm.</think>Yes.<|im_end|>", "an answer may bring its thought along"
        assert whole.prompt == Chat(tokenizer, thinking).prompt_ids(rows[0].prompt)


HYBRID = CHATML.replace(
    "{{ m.content }}", "{{ '<think>\n\n</think>\n\n' if m.role == 'assistant' }}{{ m.content }}"
).replace(
    "assistant\n{% endif %}",
    "assistant\n{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}",
)


def test_template_arguments_reach_every_rendering(chatml: Any) -> None:
    """As Qwen 3: an answer has an empty thought in front of it, and so has the generation prompt on request."""
    asked, thought = "Why is the sky blue?", "<think>\n\n</think>\n\n"
    (pair,), audit = tokenize([preference("Yes.", "No.")], Chat(chatml, HYBRID))
    assert decoded(chatml, pair.chosen) == thought + "Yes.<|im_end|>", "the model has to write it"
    assert any("which the generation prompt does not write" in note for note in audit.notes)
    template = with_values(HYBRID, None, {"enable_thinking": False})
    (pair,), audit = tokenize([preference("Yes.", "No.")], Chat(chatml, template))
    assert decoded(chatml, pair.prompt).endswith("assistant\n" + thought) and not audit.notes
    assert decoded(chatml, pair.chosen) == "Yes.<|im_end|>"
    # whoever renders with the tokenizer, a benchmark of somebody else's, gets the same
    chat = [{"role": "user", "content": asked}]
    by_hand = chatml.apply_chat_template(chat, chat_template=template, tokenize=False, add_generation_prompt=True)
    assert by_hand == decoded(chatml, pair.prompt)
    plain = {"a": None, "b": [1, "x"], "c": {"d": 0.5}}
    shown = with_values("{{ a }}{{ b[1] }}{{ c.d }}", None, plain)
    assert chatml.apply_chat_template(chat, chat_template=shown, tokenize=False) == "Nonex0.5"


@pytest.mark.parametrize("count_header", [False, True])
def test_what_is_trained_on_in_front_of_an_answer_is_what_generation_asks_with(
    any_tokenizer: Any, count_header: bool
) -> None:
    chat = Chat(any_tokenizer)
    rows = [preference("\n\n- one", "Sure, two.", row=1), preference("Yes.", "No. " * 9, "Is it? " * 20, row=2)]
    for how in ({}, {"max_prompt_length": 60, "max_length": 90, "truncation": "cut"}):
        pairs, _ = tokenize(rows, chat, count_header=count_header, **how)
        shown = inspected(pairs, rows, chat, count_header=count_header, cut_to=how.get("max_prompt_length"))
        for pair, one in zip(pairs, shown, strict=True):
            assert one.prompt == one.asked and one.counted_from == len(pair.prompt) <= len(one.prompt)
            assert one.prompt + one.responses[0] == pair.prompt + pair.chosen
            assert one.prompt + one.responses[1] == pair.prompt + pair.rejected
        assert shown[0].asked == chat.prompt_ids(rows[0].prompt)
    if count_header and Chat(any_tokenizer).template == LLAMA3:
        assert shown[0].counted_from < len(shown[0].prompt)


def test_a_template_that_opens_every_turn_with_bos_and_one_that_leaves_it_to_the_tokenizer() -> None:
    every = "{% for m in messages %}{{ bos_token }}[{{ m.role }}] {{ m.content }}{{ eos_token }}{% endfor %}"
    never = "{% for m in messages %}[{{ m.role }}] {{ m.content }}{{ eos_token }}{% endfor %}"
    for template, asks, count in (
        (every, "{% if add_generation_prompt %}{{ bos_token }}[assistant]{% endif %}", 2),
        (never, "{% if add_generation_prompt %}[assistant]{% endif %}", 1),
    ):
        tokenizer = build(["<s>", "</s>"], "<s>", "</s>", template + asks, adds_bos=True)
        pair, chat = one_pair(tokenizer, "Yes.", "No."), Chat(tokenizer)
        assert pair.prompt == chat.prompt_ids("Why is the sky blue?")
        assert pair.prompt.count(chat.bos) == count and pair.prompt[0] == chat.bos != pair.prompt[1]
        assert decoded(tokenizer, pair.chosen) == " Yes.</s>"


def test_a_template_that_renders_otherwise_each_time_is_named_with_the_first_place(chatml: Any) -> None:
    rows = [preference("Yes.", "No.")]
    pairs, _ = tokenize(rows, chatml)
    restless = Chat(chatml)
    restless.template = "Now. " + restless.template
    with pytest.raises(PobenchError, match=r"pair 'p1': .* at token 1 of \d+ training has .*model\.chat_template"):
        check_prompt(inspected(pairs, rows, restless), restless)


def test_the_digest_is_of_all_that_decides_the_ids(chatml: Any, llama: Any) -> None:
    digest = Chat(chatml).digest
    chatml("a", padding=True, truncation=True, max_length=4)  # which the tokenizer remembers
    assert Chat(chatml).digest == digest == Chat(chatml, CHATML).digest
    changed = [
        Chat(chatml, CHATML.replace("Be kind", "Be brief")),
        Chat(chatml, with_values(CHATML, "Hi")),
        Chat(chatml, with_values(CHATML, None, {"enable_thinking": False})),
        Chat(family("no BOS at all")),
        Chat(llama),
    ]
    assert len({digest, *(chat.digest for chat in changed)}) == 6


def test_special_tokens_written_as_text_are_refused(chatml: Any) -> None:
    for field, row in {
        "chosen": preference("Yes.<|im_end|> No.", "b"),
        "rejected": preference("a", "<|im_start|>"),
        r"prompt\[0\]": preference("a", "b", prompt="Hi<|im_end|>"),
    }.items():
        with pytest.raises(PobenchError, match=f"'{field}': holds a special token of the tokenizer as text"):
            tokenize([row], chatml)


def test_answers_that_only_the_template_makes_identical_are_refused(llama: Any) -> None:
    with pytest.raises(PobenchError, match="identical answers once tokenised"):
        one_pair(llama, "Yes.", "Yes.\n")  # this template trims


def test_a_tokenizer_without_any_end_of_turn_is_refused(chatml: Any) -> None:
    plain = build([], None, "e", "{{ messages[-1].content }}")
    plain.eos_token = None
    with pytest.raises(PobenchError, match="end-of-turn token"):
        Chat(plain)
    with pytest.raises(PobenchError, match="twice"):
        Chat(family("mistral, no header"), "{{ bos_token }}" + MISTRAL)
    with pytest.raises(PobenchError, match="cannot render"):
        Chat(chatml, "{{ raise_exception('never') }}")


# ---------------------------------------------------------------- lengths


def test_an_over_long_row_is_a_bad_row_that_drop_leaves_out_and_counts(chatml: Any) -> None:
    rows = [
        preference("Yes.", "No.", row=1),
        preference("Yes.", "No.", prompt="Why is the sky blue? " * 20, row=2),
        preference("Yes.", "No, " * 60, row=3),
    ]
    limits = {"max_length": 90, "max_prompt_length": 60}
    with pytest.raises(PobenchError) as refused:
        tokenize(rows, chatml, **limits)
    assert "row 2, 'prompt': over-long prompt" in str(refused.value)
    assert "row 3, 'rejected': over-long pair" in str(refused.value)
    pairs, audit = tokenize(rows, chatml, **limits, on_bad_row="drop")
    assert [p.id for p in pairs] == ["p1"]
    frame = audit.frame().set_index("fault")
    assert frame.loc["over-long prompt", "rows"] == "[2]" and frame.loc["over-long pair", "rows"] == "[3]"


def test_cutting_keeps_the_end_of_the_prompt_the_first_token_and_the_end_of_turn(llama: Any) -> None:
    full = one_pair(llama, "one " * 50, "two")
    rows = [preference("one " * 50, "two")]
    (pair,), audit = tokenize(rows, llama, max_length=40, max_prompt_length=12, truncation="cut")
    assert pair.prompt == full.prompt[:1] + full.prompt[-11:]
    assert pair.chosen == full.chosen[:27] + full.chosen[-1:]  # 12 + 28 = 40
    assert pair.rejected == full.rejected  # an answer that fits is not cut
    assert audit.notes == {CUT_PROMPT: [1], CUT_RESPONSE: [1]}


def test_answers_that_cutting_makes_identical_are_left_out_and_noted(chatml: Any) -> None:
    rows = [preference("one " * 50 + "a", "one " * 50 + "b", row=1), preference("Yes.", "No.", row=2)]
    pairs, audit = tokenize(rows, chatml, max_length=60, max_prompt_length=50, truncation="cut")
    assert [p.id for p in pairs] == ["p2"] and audit.notes == {CUT_TO_IDENTICAL: [1]}
    with pytest.raises(PobenchError, match="no pair is left"):
        tokenize(rows[:1], chatml, max_length=60, max_prompt_length=50, truncation="cut")


@pytest.mark.parametrize(("length", "prompt"), [(10, 10), (10, 9), (10, 0), (1, 1)])
def test_impossible_lengths_are_refused(chatml: Any, length: int, prompt: int) -> None:
    with pytest.raises(PobenchError, match="max_prompt_length"):
        one_pair(chatml, "Yes.", "No.", max_length=length, max_prompt_length=prompt)


# ---------------------------------------------------------------- audit


def test_bad_rows_of_reading_and_of_tokenising_stand_in_one_message(chatml: Any) -> None:
    rows = [
        {"prompt": "Why?", "chosen": "Yes.", "rejected": "No."},
        {"prompt": "Why?", "chosen": "Yes.", "rejected": ""},
        {"prompt": "Why? " * 99, "chosen": "Yes.", "rejected": "No."},
        {"prompt": "Why?", "chosen": "Yes.", "rejected": "Yes."},
    ]
    found = recognise(enumerate(rows, start=1), source="mine.jsonl")
    limits = {"max_length": 100, "max_prompt_length": 60}
    with pytest.raises(PobenchError) as refused:
        tokenize(found, chatml, **limits)
    message = str(refused.value)
    assert message.startswith("mine.jsonl: 3 of 4 rows are bad")
    problems = ("empty answer", "over-long prompt", "identical answers")
    places = [message.index(problem) for problem in problems]
    assert places == sorted(places)  # in the order of the rows
    pairs, audit = tokenize(found, chatml, **limits, on_bad_row="drop")
    assert len(pairs) == 1
    counts = dict(zip(audit.frame()["fault"], audit.frame()["count"], strict=True))
    assert counts == {"rows read": 4, "pairs kept": 1, **dict.fromkeys(problems, 1)}


def test_the_audit_tells_lengths_and_how_often_the_chosen_answer_is_longer(chatml: Any) -> None:
    rows = [preference("Yes, " * 4, "No.", row=1), preference("No.", "Yes, " * 4, row=2), preference("a", "b", row=3)]
    pairs, audit = tokenize(rows, chatml)
    assert audit.chosen_longer == pytest.approx(0.5)  # one longer, one shorter, one equal that counts half
    assert audit.lengths["chosen"].tolist() == [len(p.chosen) for p in pairs]
    table = audit.quantiles()
    assert table.loc["rejected", "max"] == len(pairs[1].rejected) and list(table.index) == [
        "prompt",
        "chosen",
        "rejected",
    ]
    assert "no row was left out" in audit.text() and "50.0%" in audit.text()
    nothing = Audit.of([], recognise([(1, {"prompt": "a", "chosen": "b", "rejected": "c"})]), [], {})
    assert np.isnan(nothing.chosen_longer) and nothing.quantiles().isna().all(axis=None) and "–" in nothing.text()


def test_an_audit_without_a_tokenizer_counts_characters() -> None:
    audit = Audit.of_file(recognise([(1, {"prompt": "abc", "chosen": "de", "rejected": "f"})]))
    assert audit.unit == "characters" and [int(audit.lengths[k][0]) for k in audit.lengths] == [3, 2, 1]


def test_row_numbers_of_the_frame_are_json(chatml: Any) -> None:
    rows = [{"prompt": "a", "chosen": "b", "rejected": "c"}] * 3
    _, audit = tokenize(recognise(enumerate(rows, start=1)), chatml)
    (line,) = audit.frame().query("fault == 'duplicated row'").itertuples()
    assert line.count == 2 and json.loads(line.rows) == [2, 3]


# ---------------------------------------------------------------- inspection


def rendered(renderable: Any, **console: Any) -> str:
    out = io.StringIO()
    Console(file=out, width=160, **console).print(renderable)
    return out.getvalue()


def test_inspection_shows_every_token_and_marks_the_special_ones(chatml: Any) -> None:
    pair = one_pair(chatml, "Say [bold]hé 😀[/] x\x1b[31m", "No.")
    text = rendered(render_inspection([pair, pair], chatml, rows=1))
    assert "pair 1 of 2" in text and "pair 2 of 2" not in text
    assert "[bold]hé 😀[/] x\\x1b[31m<|im_end|>" in text  # shown as text: no markup, no escape codes
    assert f"chosen, {len(pair.chosen)} tokens" in text
    coloured = rendered(render_inspection([pair], chatml), force_terminal=True, color_system="standard")
    assert "\x1b[1;33m<|im_end|>" in coloured or "\x1b[1;4;33m<|im_end|>" in coloured
    assert f"·{pair.rejected[-1]} " in rendered(render_inspection([pair], Chat(chatml), ids=True))


@given(text=ANSWER)
@settings(max_examples=50)
def test_the_pieces_of_inspection_add_up_to_the_text(text: str) -> None:
    tokenizer = family("no BOS at all")
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    parts = list(pieces(tokenizer, ids))
    assert [i for piece, _ in parts for i in piece] == ids
    assert "".join(word for _, word in parts) == text


def test_an_audit_is_drawn_with_its_reasons(chatml: Any) -> None:
    rows = [preference("Yes.", "No.", row=1), preference("Yes.", "No, " * 60, row=2)]
    _, audit = tokenize(rows, chatml, max_length=90, max_prompt_length=60, on_bad_row="drop")
    text = rendered(render_audit(audit))
    assert "over-long pair" in text and "2 rows, 1 pairs kept" in text
    assert "No row was left out" in rendered(render_audit(tokenize(rows[:1], chatml)[1]))


# ---------------------------------------------------------------- split, subset, order, mismatch


def token_pairs(prompts: list[int]) -> list[TokenPair]:
    """One pair per entry; equal entries share a prompt."""
    return [TokenPair(f"p{i}", (1, 2, prompt), (i + 3, 9), (i + 4, 8, 9)) for i, prompt in enumerate(prompts)]


def of_tokens(pair: TokenPair) -> str:
    return str(pair.prompt)


PROMPTS = st.lists(st.integers(0, 30), min_size=2, max_size=60).filter(lambda p: len(set(p)) > 1)


@given(prompts=PROMPTS, fraction=st.floats(0.01, 0.99), seed=st.integers(0, 9))
@settings(max_examples=80)
def test_no_prompt_stands_on_both_sides_and_neither_side_is_empty(
    prompts: list[int], fraction: float, seed: int
) -> None:
    training, heldout = split_by_prompt(token_pairs(prompts), fraction, seed, of_tokens)
    assert training and heldout and len(training) + len(heldout) == len(prompts)
    assert {p.prompt for p in training}.isdisjoint(p.prompt for p in heldout)


def test_the_split_moves_no_old_row_when_rows_are_added_or_reordered() -> None:
    pairs = token_pairs(list(range(400)))
    _, heldout = split_by_prompt(pairs, 0.25, 1, of_tokens)
    _, among_fewer = split_by_prompt(pairs[100:300][::-1], 0.25, 1, of_tokens)
    assert {p.id for p in among_fewer} == {p.id for p in heldout} & {p.id for p in pairs[100:300]}
    assert 0.18 < len(heldout) / 400 < 0.32  # 0.25 ± 3 standard errors
    assert {p.id for p in split_by_prompt(pairs, 0.25, 2, of_tokens)[1]} != {p.id for p in heldout}


def test_prompts_that_differ_in_case_and_space_only_stand_on_one_side() -> None:
    rows = [preference("a", "b", prompt=f"{p} {n}") for n in range(50) for p in ("Why is it", "why  is it")]
    training, heldout = split_by_prompt(rows, 0.5, 0, lambda row: text_key(row.prompt))
    numbers = [{row.prompt[0].content.split()[-1] for row in side} for side in (training, heldout)]
    assert numbers[0].isdisjoint(numbers[1])


def test_a_split_without_a_second_prompt_or_with_an_odd_share_is_refused() -> None:
    with pytest.raises(PobenchError, match="cannot be split"):
        split_by_prompt(token_pairs([1, 1]), 0.5, 0, of_tokens)
    for share in (0.0, 1.0, -1.0, float("nan")):
        with pytest.raises(PobenchError, match="share between 0 and 1"):
            split_by_prompt(token_pairs([1, 2]), share, 0, of_tokens)


def test_a_subset_is_part_of_every_larger_one_and_keeps_the_order() -> None:
    pairs = token_pairs(list(range(50)))
    chain = [[p.id for p in subset(pairs, n, seed=3)] for n in (5, 20, 50)]
    assert [len(ids) for ids in chain] == [5, 20, 50]
    for small, large in pairwise(chain):
        assert [i for i in large if i in small] == small
    assert chain[0] != [p.id for p in pairs[:5]]  # not the first of the file
    assert subset(pairs, None) == pairs


def test_the_order_is_a_permutation_fixed_by_data_and_seed() -> None:
    pairs = token_pairs(list(range(40)))
    order = data_order(pairs, seed=1, epochs=3)
    for epoch in order.epochs:
        assert sorted(epoch.tolist()) == list(range(40))
    assert not np.array_equal(order.epochs[0], order.epochs[1])
    again = data_order(pairs, seed=1, epochs=3)
    assert again.digest == order.digest
    assert np.array_equal(data_order(pairs, seed=1, epochs=1).epochs[0], order.epochs[0])
    others = (data_order(pairs, 2, 3), data_order(pairs[1:], 1, 3), data_order(pairs, 1, 2))
    assert len({order.digest, *(o.digest for o in others)}) == 4
    # pinned: the order must not change between versions, or runs could not be compared
    assert data_order(pairs[:6], 1, 1).epochs[0].tolist() == [0, 2, 1, 4, 5, 3]


def test_the_data_digest_reads_tokens_and_where_they_stand() -> None:
    base = TokenPair("a", (1, 2), (3,), (4,))
    same = base._replace(id="b")
    moved = TokenPair("a", (1,), (2, 3), (4,))
    assert data_digest([base]) == data_digest([same]) != data_digest([moved])
    assert data_digest([base, moved]) != data_digest([moved, base])


@given(prompts=PROMPTS)
@settings(max_examples=80)
def test_no_pair_meets_an_answer_to_its_own_prompt(prompts: list[int]) -> None:
    pairs = token_pairs(prompts)
    partners = mismatch(pairs)
    assert all(pairs[i].prompt != pairs[j].prompt for i, j in enumerate(partners))
    if 2 * max(prompts.count(p) for p in prompts) <= len(prompts):
        assert sorted(partners) == list(range(len(pairs)))  # every pair is a partner once


def test_partners_do_not_depend_on_the_order_of_rows() -> None:
    pairs = token_pairs([i % 7 for i in range(30)])
    by_id = {pairs[i].id: pairs[j].id for i, j in enumerate(mismatch(pairs))}
    turned = pairs[::-1]
    assert {turned[i].id: turned[j].id for i, j in enumerate(mismatch(turned))} == by_id


def test_mismatched_pairs_need_two_prompts() -> None:
    with pytest.raises(PobenchError, match="at least two prompts"):
        mismatch(token_pairs([1, 1, 1]))


def test_a_length_bias_makes_the_longer_answer_win_in_the_asked_share() -> None:
    rows = [preference("a", "a longer one", row=i) for i in range(400)]
    assert [biased(row, 0.0, seed=0) for row in rows] == rows
    assert all(biased(row, 1.0, seed=0).chosen == "a longer one" for row in rows)
    swapped = [biased(row, 0.3, seed=0).chosen != "a" for row in rows]
    assert 0.23 < np.mean(swapped) < 0.37  # 0.3 ± 3 standard errors
    more = [biased(row, 0.6, seed=0).chosen != "a" for row in rows]
    assert all(m for s, m in zip(swapped, more, strict=True) if s)  # a larger share keeps the smaller one's rows
    right = preference("a longer one", "a")
    assert biased(right, 1.0, seed=0) == right
    with pytest.raises(PobenchError, match="share in"):
        biased(right, 1.5, seed=0)


# ---------------------------------------------------------------- real data


@pytest.mark.parametrize("name", ["hh_helpful", "llmbar"])
def test_real_preferences_tokenise_without_a_bad_row(name: str, any_tokenizer: Any) -> None:
    path = SHARED / f"preferences/{name}.jsonl"
    if not path.is_file():
        pytest.skip(f"no shared data: {name}.jsonl")
    found = load_preferences(path)
    some = found.preferences[:80]
    pairs, audit = tokenize(some, any_tokenizer, max_length=100_000, max_prompt_length=90_000)
    assert len(pairs) == audit.pairs == 80 and audit.faults == []
    for one, pair in zip(some, pairs, strict=True):
        assert one.chosen.strip() in decoded(any_tokenizer, pair.chosen)
        assert one.rejected.strip() in decoded(any_tokenizer, pair.rejected)


# ---------------------------------------------------------------- unknown tokens


def some_unknown(known: int, unknown: int) -> list[Preference]:
    """Pairs whose chosen answers have this many known and unknown words each, the end of the turn among the known."""
    chosen = " ".join(["w1"] * (known - 1) + ["nowhere"] * unknown)
    return [preference(chosen, "w2 w3", "say w1", row) for row in (1, 2)]


def test_the_audit_says_how_many_tokens_the_tokenizer_does_not_know(word_tokenizer: Any) -> None:
    _, audit = tokenize(some_unknown(98, 2), word_tokenizer)
    assert audit.unknown == {"prompt": 0, "chosen": pytest.approx(0.02), "rejected": 0}
    assert "warning: 0.0% of the prompt tokens, 2.0% of the chosen tokens" in audit.text()
    assert audit.notes == {"tokens that the tokenizer does not know": [1, 2]}
    _, audit = tokenize(some_unknown(199, 1), word_tokenizer)
    assert audit.unknown["chosen"] == pytest.approx(0.005) and "warning" not in audit.text()


@pytest.mark.parametrize("on_bad_row", ["stop", "drop"])
def test_five_per_cent_of_unknown_tokens_stop(word_tokenizer: Any, on_bad_row: Any) -> None:
    with pytest.raises(PobenchError, match=r"5\.0% of the chosen tokens.*unknown.*--model"):
        tokenize(some_unknown(95, 5), word_tokenizer, on_bad_row=on_bad_row)


@pytest.mark.parametrize("on_bad_row", ["stop", "drop"])
def test_answers_that_the_tokenizer_makes_identical_say_that_it_does_not_know_them(
    word_tokenizer: Any, on_bad_row: Any
) -> None:
    with pytest.raises(PobenchError, match=r"3 tokens, 2 of them unknown to the tokenizer"):
        tokenize([preference("nowhere ever", "never there", "say w1")], word_tokenizer, on_bad_row=on_bad_row)


def test_an_end_of_turn_that_is_named_the_unknown_token_is_not_counted(word_tokenizer: Any) -> None:
    tokenizer = copy.deepcopy(word_tokenizer)
    tokenizer.unk_token = tokenizer.eos_token  # as gpt2's
    assert Chat(tokenizer).unknown is None
    _, audit = tokenize([preference("w1", "w2", "say w1")], tokenizer)
    assert audit.unknown == {}
