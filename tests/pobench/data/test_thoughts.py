"""An empty thought that a template writes before answers belongs to the prompt, in training and in generation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pobench.data.chat import Chat, tokenizer_of
from pobench.data.demonstrations import tokenise
from pobench.data.rows import Message, Preference
from pobench.data.tokens import tokenize
from pobench.errors import PobenchError
from pobench.settings.schema import ModelConfig
from tests.pobench.small_chat_model import character_tokenizer

EMPTY = "<think>\n\n</think>\n\n"
# As Qwen 3: thoughts of earlier turns are dropped, and the last turn has one in front of it, if only an empty one.
QWEN3 = """{%- for m in messages %}
    {%- set content = m.content.split('</think>')[-1].lstrip('\\n') %}
    {%- if m.role == 'assistant' and loop.last %}
        {%- set thought = m.content.split('</think>')[0].split('<think>')[-1].strip('\\n') if '</think>' in m.content else '' %}
        {{- '<|start|>assistant\\n<think>\\n' + thought + '\\n</think>\\n\\n' + content + '<|end|>\\n' }}
    {%- else %}
        {{- '<|start|>' + m.role + '\\n' + content + '<|end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}
"""


@pytest.fixture
def chat_of(tmp_path: Path) -> Any:
    tokenizer = character_tokenizer()
    tokenizer.add_tokens(["/"])
    tokenizer.chat_template = QWEN3
    tokenizer.save_pretrained(tmp_path)
    return lambda **model: Chat(tokenizer_of(tmp_path, ModelConfig(source=str(tmp_path), **model)))


def preference(*turns: tuple[str, str], chosen: str = "Yes.", rejected: str = "No.") -> Preference:
    return Preference("a", tuple(Message(*turn) for turn in turns or (("user", "Well?"),)), chosen, rejected, 1)


def text(chat: Chat, ids: Any) -> str:
    return str(chat.tokenizer.decode(list(ids)))


def test_no_token_of_an_empty_thought_counts_and_the_model_is_asked_behind_it(chat_of) -> None:
    chat = chat_of()
    (pair,), audit = tokenize([preference()], chat)
    assert text(chat, pair.chosen) == "Yes.<|end|>" and text(chat, pair.prompt).endswith(f"assistant\n{EMPTY}")
    assert chat.prompt_ids([Message("user", "Well?")]) == pair.prompt
    assert not audit.notes
    plainly = chat_of(template_arguments={"enable_thinking": False})
    assert tokenize([preference()], plainly)[0] == [pair]  # its own way to ask without a thought


def test_it_counts_on_request(chat_of) -> None:
    chat = chat_of(empty_thought="answer")
    (pair,), audit = tokenize([preference()], chat)
    assert text(chat, pair.chosen) == f"{EMPTY}Yes.<|end|>" and text(chat, pair.prompt).endswith("assistant\n")
    assert any("answers begin with" in note for note in audit.notes)


@pytest.mark.parametrize("where", ["prompt", "answer"])
def test_turns_and_answers_that_carry_an_empty_thought_are_no_bad_rows(chat_of, where: str) -> None:
    chat = chat_of(empty_thought=where)
    turns = (("user", "Well?"), ("assistant", f"{EMPTY}Hm."), ("user", "So?"))
    carried, plain = (
        tokenize([preference(*turns, chosen=f"{thought}Yes.", rejected=f"{thought}No.")], chat)[0]
        for thought in (EMPTY, "")
    )
    assert carried == plain
    assert "Hm." in text(chat, plain[0].prompt) and text(chat, plain[0].prompt).count("<think>") == (where == "prompt")


def test_a_thought_of_an_earlier_turn_that_the_template_drops_makes_no_bad_row(chat_of) -> None:
    def prompt(turn: str, template: str = QWEN3) -> str:
        chat = chat_of(chat_template=template)
        (pair,), _ = tokenize([preference(("user", "Well?"), ("assistant", turn), ("user", "So?"))], chat)
        return text(chat, pair.prompt)

    thoughtful = "<think>\nWait.\n</think>\n\nHm."
    assert prompt(thoughtful) == prompt("Hm.") and "Wait." not in prompt(thoughtful)
    keeps = QWEN3.replace("'<|start|>' + m.role + '\\n' + content", "'<|start|>' + m.role + '\\n' + m.content")
    assert keeps != QWEN3 and "Wait." in prompt(thoughtful, keeps)
    for lost in ("<think>\nWait.\n</think>\n\n", "Hm.</think>So"):  # nothing is left; no thought that is opened
        with pytest.raises(PobenchError, match="drops or changes text"):
            prompt(lost)


def test_answers_with_thoughts_of_their_own_name_the_option(chat_of) -> None:
    thoughtful = preference(chosen="<think>\nHm.\n</think>\n\nYes.", rejected="<think>\nOh.\n</think>\n\nNo.")
    with pytest.raises(PobenchError, match=r"writes the prompt differently.*model\.empty_thought"):
        tokenize([thoughtful], chat_of())
    chat = chat_of(empty_thought="answer")
    (pair,), _ = tokenize([thoughtful], chat)
    assert text(chat, pair.chosen) == "<think>\nHm.\n</think>\n\nYes.<|end|>"


def test_demonstrations_are_learnt_behind_it_turn_by_turn(chat_of) -> None:
    chat = chat_of()
    turns = [("user", "Well?"), ("assistant", f"{EMPTY}Hm."), ("user", "So?"), ("assistant", "Yes.")]
    row = {"messages": [{"role": role, "content": content} for role, content in turns]}
    groups = tokenise(chat, [(1, row)]).groups
    assert [text(chat, g.responses[0]) for g in groups] == ["Hm.<|end|>", "Yes.<|end|>"]
    assert all(text(chat, g.prompt).endswith(EMPTY) for g in groups)


def test_what_is_stored_with_a_model_asks_in_the_same_way(chat_of, tmp_path) -> None:
    chat = chat_of()
    chat.tokenizer.save_pretrained(tmp_path / "stored")
    again = Chat(tokenizer_of(tmp_path / "stored", ModelConfig(source="x")))
    assert again.template == chat.template and again.prompt([Message("user", "Well?")]).count("<think>") == 1
