"""From a conversation to text and token ids: the chat template, and where an answer begins and ends."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import TemplateError

from pobench.data.published import LLAMA3_TEMPLATE, ZEPHYR_TEMPLATE
from pobench.data.rows import Fault, Message, Preference
from pobench.errors import PobenchError
from pobench.settings.schema import ModelConfig

# ---------------------------------------------------------------- chat templates
PLAIN_TEMPLATE = (
    "{{ bos_token if bos_token and bos_token != eos_token else '' }}"
    "{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{ message['content'] + '\n\n' }}"
    "{% elif message['role'] == 'user' %}{{ 'User: ' + message['content'] + '\n\n' }}"
    "{% else %}{{ 'Assistant: ' + message['content'] + eos_token + '\n\n' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)

SHIPPED_TEMPLATES = {"plain": PLAIN_TEMPLATE, "zephyr": ZEPHYR_TEMPLATE, "llama3": LLAMA3_TEMPLATE}

# Some templates write today's date into the system message, so the same data would give other tokens tomorrow.
_FIXED_DATE = (
    "{% macro strftime_now(format) %}"
    "{{ {'%Y-%m-%d': '2024-07-26', '%d %B %Y': '26 July 2024', '%B %d, %Y': 'July 26, 2024'}"
    ".get(format, '26 Jul 2024') }}{% endmacro %}\n"
)


def chat_template(tokenizer: Any, template: str | None = None) -> str:
    """The Jinja text to render with: `template` (a shipped name, a file, or Jinja itself), else the tokenizer's own.

    Shipped, for base models: "plain" (`User: …`, `Assistant: …` and the end-of-text token), and those that SFT models
    were made with, "zephyr" and "llama3". Raises PobenchError if there is none, or the file is absent.
    """
    if template in SHIPPED_TEMPLATES:
        text = SHIPPED_TEMPLATES[template]
    elif template and "{" in template:
        text = template
    elif template:
        if not Path(template).is_file():
            shipped = ", ".join(map(repr, SHIPPED_TEMPLATES))
            raise PobenchError(f"model.chat_template: no file {template!r}; give {shipped}, a file, or Jinja text")
        text = Path(template).read_text(encoding="utf-8")
    elif tokenizer.chat_template is None:
        raise PobenchError(
            "the tokenizer has no chat template, as is usual for a base model; set model.chat_template to 'plain' "
            "(User: … Assistant: …) or to a Jinja file"
        )
    else:
        text = tokenizer.get_chat_template()
    return _FIXED_DATE + text if "strftime_now" in text and not text.startswith(_FIXED_DATE) else text


def with_system(template: str, message: str | None) -> str:
    """The template with a system message in front of every conversation that has none; None: as it is."""
    if message is None:
        return template
    first = "{'role': 'system', 'content': " + json.dumps(message, ensure_ascii=False) + "}"
    put = "{% set messages = [" + first + "] + messages %}"
    return "{% if messages[0]['role'] != 'system' %}" + put + "{% endif %}" + template


class Renderer:
    """A tokenizer and its chat template, probed once: how a turn ends, and which tokens stand in front.

    Training and generation use the same instance, so that the model answers the prompts it was trained on.
    end: the id of the end-of-turn token. after: text that the template writes behind it. bos: the id that every
    sequence starts with, or None.

    Raises PobenchError if there is no chat template, it cannot render one question and answer, or neither template nor
    tokenizer knows an end-of-turn token.
    """

    def __init__(self, tokenizer: Any, template: str | None = None) -> None:
        self.tokenizer, self.template = tokenizer, chat_template(tokenizer, template)
        special = {t.content: i for i, t in tokenizer.added_tokens_decoder.items() if t.special}
        special |= dict(zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True))
        # longest first, so that the pattern names the whole token
        words = "|".join(re.escape(word) for word in sorted(special, key=len, reverse=True) if word)
        self.special = re.compile(words or r"(?!)")
        self.special_ids = frozenset(special.values())
        self._interned = list(
            range(max(tokenizer.get_vocab().values()) + 1)
        )  # one int object per id: a third of the memory of a large set
        question, answer = (Message("user", "Ready?"),), "Quite ready."
        self.bos: int | None = None
        self.after = ""
        try:
            prompt, whole = self.prompt(question), self.conversation(question, answer)
            tail = whole[whole.rindex(answer) + len(answer) :]
        except (TemplateError, ValueError) as error:
            raise PobenchError(f"the chat template cannot render one question and its answer: {error}") from error
        self.end, self.after, self.adds_end = self._turn_end(tail, special)
        starts = tokenizer("x", add_special_tokens=True)["input_ids"]
        bos = tokenizer.bos_token_id
        (ids,) = self.ids([prompt])
        if bos is not None and (starts[:1] == [bos] or ids[:1] == (bos,)):
            self.bos = bos
        if ids[:2] == (bos, bos):
            raise PobenchError(f"the chat template writes the beginning-of-text token {tokenizer.bos_token!r} twice")
        # in ChatML the "beginning-of-text" token may open every turn; then it cannot be counted
        (ids,) = self.ids([whole])
        self.opens_turns = bos is not None and ids.count(bos) > 1

    def _turn_end(self, tail: str, special: dict[str, int]) -> tuple[int, str, bool]:
        if found := self.special.search(tail):
            return special[found.group()], tail[found.end() :], False
        if self.tokenizer.eos_token_id is None:
            raise PobenchError("neither the chat template nor the tokenizer has an end-of-turn token")
        return self.tokenizer.eos_token_id, tail[len(tail.rstrip()) :], True

    def prompt(self, messages: Sequence[Message], *, ask: bool = True) -> str:
        """The text up to the answer; ask: with the generation prompt, usually the assistant's header."""
        turns = [{"role": m.role, "content": m.content} for m in messages]
        return self.tokenizer.apply_chat_template(
            turns, chat_template=self.template, tokenize=False, add_generation_prompt=ask
        )

    def conversation(self, messages: Sequence[Message], answer: str) -> str:
        """The text of prompt and answer, up to and including the end-of-turn token where the template writes one."""
        text = self.prompt((*messages, Message("assistant", answer)), ask=False)
        return text.removesuffix(self.after) if self.after else text

    def prompt_ids(self, messages: Sequence[Message]) -> tuple[int, ...]:
        """The token ids a model is asked with: exactly what `tokenize` puts before an answer."""
        return self.ids([self.prompt(messages)])[0]

    def ids(self, texts: Sequence[str]) -> list[tuple[int, ...]]:
        """Token ids; special tokens are those of the template, and the beginning-of-text token where it wrote none."""
        if not texts:
            return []
        batch = self.tokenizer(
            list(texts),
            add_special_tokens=False,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,
        )["input_ids"]
        intern = self._interned.__getitem__
        ids = [tuple(map(intern, sequence)) for sequence in batch]
        return ids if self.bos is None else [s if s[:1] == (self.bos,) else (self.bos, *s) for s in ids]

    def pair_ids(self, texts: Sequence[tuple[str, str, str]]) -> list[tuple[tuple[int, ...], ...]]:
        """(prompt, prompt + chosen, prompt + rejected) as texts -> the same as ids, answers closed by `end`."""
        prompts = list(dict.fromkeys(prompt for prompt, _, _ in texts))
        ids = iter(self.ids([*prompts, *(t for _, *both in texts for t in both)]))
        of_prompt = dict(zip(prompts, ids, strict=False))
        end = (self.end,) if self.adds_end else ()
        return [(of_prompt[prompt], next(ids) + end, next(ids) + end) for prompt, _, _ in texts]

    def fault_of(self, preference: Preference, prompt: str, chosen: str, rejected: str) -> Fault | None:
        """What the rendering did to the text that must not happen to it."""
        row, ask = preference.row, preference.prompt[-1].content.strip()
        written = [(f"prompt[{i}]", m.content, prompt) for i, m in enumerate(preference.prompt)]
        for name, text, whole in (
            *written,
            ("chosen", preference.chosen, chosen),
            ("rejected", preference.rejected, rejected),
        ):
            if found := self.special.search(text):
                return Fault(row, name, "holds a special token of the tokenizer as text", repr(found.group()))
            if text.strip() not in whole:
                return Fault(row, name, "the chat template drops or changes text", repr(text.strip()[:40]))
        asked = prompt.rindex(ask) + len(ask)
        if not (chosen.startswith(prompt[:asked]) and rejected.startswith(prompt[:asked])):
            return Fault(row, "prompt", "the chat template writes the prompt differently once an answer follows", "")
        return None


def tokenizer_of(folder: Path, model: ModelConfig) -> Any:
    """The model's tokenizer with the one chat template that training and generation share."""
    given = chat_template(None, model.chat_template) if model.chat_template else None
    tokenizer = load_tokenizer(folder, given, trust_remote_code=model.trust_remote_code)
    tokenizer.chat_template = with_system(chat_template(tokenizer), model.system_message)
    return tokenizer


def load_tokenizer(folder: Path, chat_template: str | None = None, *, trust_remote_code: bool = False) -> Any:
    """The tokenizer in `folder`, with a pad token, and with `chat_template` (Jinja text) in place of its own.

    The pad token is one that the tokenizer already treats as special, so no text tokenises differently and no
    embedding is added. Raises PobenchError when there is no chat template at all.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
    except (ImportError, ValueError, OSError) as error:
        raise PobenchError(f"the tokenizer in {str(folder)!r} cannot be loaded: {error}") from error
    if chat_template is not None:
        tokenizer.chat_template = chat_template
    if not tokenizer.chat_template:
        raise PobenchError(f"the tokenizer in {str(folder)!r} has no chat template; name one in the setting")
    if tokenizer.pad_token_id is None:
        special = [t.content for t in tokenizer.added_tokens_decoder.values() if t.special]
        pads = [t for t in special if "pad" in t.lower()] + [t for t in special if "reserved" in t.lower()]
        tokenizer.pad_token = pads[0] if pads else tokenizer.eos_token
    return tokenizer
