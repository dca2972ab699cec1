"""Chat templates: render a conversation to text and token ids, and find where an answer begins and ends."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from pobench.data.published import LLAMA3_TEMPLATE, ZEPHYR_TEMPLATE
from pobench.data.rows import Fault, Message, Prompt, messages, shared_start
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

CHECKED = 32  # `Chat.check_prompt` checks this many first rows of every run

SHIPPED_TEMPLATES = {"plain": PLAIN_TEMPLATE, "zephyr": ZEPHYR_TEMPLATE, "llama3": LLAMA3_TEMPLATE}

# Some templates write today's date into the system message. A fixed date keeps the tokens the same every day.
_FIXED_DATE = (
    "{% macro strftime_now(format) %}"
    "{{ {'%Y-%m-%d': '2024-07-26', '%d %B %Y': '26 July 2024', '%B %d, %Y': 'July 26, 2024'}"
    ".get(format, '26 Jul 2024') }}{% endmacro %}\n"
)


def chat_template(tokenizer: Any, template: str | None = None) -> str:
    """The Jinja text to render with: `template` (a shipped name, a file, or Jinja itself), else the tokenizer's own.

    Shipped: "plain" for base models (`User: …`, `Assistant: …` and the end-of-text token), and "zephyr" and "llama3", the
    templates of published SFT models. Raises PobenchError if there is no template, or the file is absent.
    """
    if template in SHIPPED_TEMPLATES:
        text = SHIPPED_TEMPLATES[template]
    elif template and "{" in template:
        text = template
    elif template:
        if not os.path.isfile(template):  # False for a name too long
            shipped = ", ".join(map(repr, SHIPPED_TEMPLATES))
            raise PobenchError(f"model.chat_template: no file {template!r}; give {shipped}, a file, or Jinja text")
        try:
            text = Path(template).read_text(encoding="utf-8")
        except (ValueError, OSError) as error:
            raise PobenchError(f"model.chat_template: {template!r} cannot be read: {error}") from None
    elif tokenizer.chat_template is None:
        raise PobenchError(
            "the tokenizer has no chat template, as is usual for a base model; set model.chat_template to 'plain' "
            "(User: … Assistant: …) or to a Jinja file"
        )
    else:
        text = tokenizer.get_chat_template()
    return _FIXED_DATE + text if "strftime_now" in text and _FIXED_DATE not in text else text


def with_values(template: str, system_message: str | None = None, arguments: Mapping[str, Any] | None = None) -> str:
    """The template with `arguments` set, and with a system message for conversations without one (None: add none).

    The values become part of the template's text, so every program that renders with it uses them: this package, lm-eval,
    a server that loads the stored tokenizer. A template that already starts with the same values stays unchanged.
    """
    front = "".join(f"{{% set {name} = {_literal(value)} %}}" for name, value in (arguments or {}).items())
    if system_message is not None:
        first = "{'role': 'system', 'content': " + _literal(system_message) + "}"
        front += "{% if messages[0]['role'] != 'system' %}{% set messages = [" + first + "] + messages %}{% endif %}"
    return template if template.startswith(front) else front + template


EMPTY_THOUGHT = re.compile(r"\s*<(think|thinking|thought|reasoning)>\s*</\1>\s*")
THOUGHT = re.compile(r"\s*<(think|thinking|thought|reasoning)>.*?</\1>\s*", re.DOTALL)


def with_thought(template: str, thought: str) -> str:
    """The template whose generation prompt ends with `thought`, the empty one that it writes before answers (Qwen 3)."""
    return template.removesuffix("\n") + "{% if add_generation_prompt %}{{ " + _literal(thought) + " }}{% endif %}"


def without_empty_thought(text: str) -> str:
    """An answer without the empty thought that it begins with."""
    matched = EMPTY_THOUGHT.match(text)
    return text[matched.end() :] if matched else text


def _literal(value: Any) -> str:
    """A plain value in Jinja's syntax: JSON, except that null is `none`."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_literal(str(k))}: {_literal(v)}" for k, v in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(_literal, value)) + "]"
    return "none" if value is None else json.dumps(value, ensure_ascii=False)


class Answered(NamedTuple):
    """A prompt and its answer as token ids, as the model is trained on them.

    prompt: the same ids as in generation. answer: ends with the end-of-turn token, or goes on behind it (`whole`). merged: the
    tokenizer would put the end of the prompt and the beginning of the answer into one token if they were one text.
    """

    prompt: tuple[int, ...]
    answer: tuple[int, ...]
    merged: bool


class Chat:
    """Turns conversations into token ids with a tokenizer and its chat template. Nothing else in the package does.

    Training, SFT, answers, on-policy sampling, local judges and benchmarks all use it, so a model is trained after exactly
    the prompt ids that it gets in generation. Models get token ids and render nothing.

    tokenizer: of transformers. template: replaces the tokenizer's own, see `chat_template`.
    end: the id of the end-of-turn token. after: text that the template writes after that token. bos: the id that every
    sequence starts with, or None. opening: text in the generation prompt that a rendered conversation lacks (`<think>`);
    in training the answer follows it. lead: text that a rendered conversation has between the generation prompt and the
    answer (the empty thought of Qwen 3); the model must generate it, so it belongs to the answer. unknown: the id that
    stands for text which the tokenizer does not know, or None.

    Raises PobenchError if there is no chat template, it cannot render one question and answer, or neither the template nor
    the tokenizer has an end-of-turn token.
    """

    def __init__(self, tokenizer: Any, template: str | None = None) -> None:
        self.tokenizer, self.template = tokenizer, chat_template(tokenizer, template)
        special = {t.content: i for i, t in tokenizer.added_tokens_decoder.items() if t.special}
        special |= dict(zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True))
        self.special = _any_of(special)
        self.special_ids = frozenset(special.values())
        self._interned = list(
            range(max(tokenizer.get_vocab().values()) + 1)
        )  # one int object per id: a third of the memory of a large set
        question, answer = (Message("user", "Ready?"),), "Quite ready."
        self.bos: int | None = None
        self.after = ""
        try:
            prompt, conversation = self.prompt(question), self.conversation(question, answer)
            if answer not in conversation:
                raise ValueError("it leaves the answer out")
            border = conversation.rindex(answer)
        except Exception as error:  # a template is a program: it may divide by zero
            raise PobenchError(f"the chat template cannot render one question and its answer: {error}") from error
        before, tail = conversation[:border], conversation[border + len(answer) :]
        self.opening = prompt[len(before) :] if prompt.startswith(before) else ""
        self.lead = before[len(prompt) :] if before.startswith(prompt) else ""
        self.end, self.after, self.adds_end = self._turn_end(tail, special)
        # what opens a thought marks no turn: an answer may bring it along, and a user may ask about it
        self.special = _any_of(special.keys() - set(self.special.findall(self.opening + self.lead)))
        starts = tokenizer("x", add_special_tokens=True)["input_ids"]
        bos = tokenizer.bos_token_id
        (ids,) = self.ids([prompt])
        if bos is not None and (starts[:1] == [bos] or ids[:1] == (bos,)):
            self.bos = bos
        if ids[:2] == (bos, bos):
            raise PobenchError(f"the chat template writes the beginning-of-text token {tokenizer.bos_token!r} twice")
        # where a tokenizer of bytes names one, it is its end-of-text token (gpt2)
        taken = (tokenizer.bos_token_id, tokenizer.eos_token_id, self.end)
        self.unknown: int | None = None if tokenizer.unk_token_id in taken else tokenizer.unk_token_id
        # in ChatML the "beginning-of-text" token may start every message, in Llama 2 it starts every turn of the user
        (ids,) = self.ids([conversation])
        self.opens_messages = bos is not None and ids.count(bos) > 1
        self.opens_turns = self.opens_messages or self._opens_second_turn(question, answer)

    def _opens_second_turn(self, question: tuple[Message, ...], answer: str) -> bool:
        """Whether a conversation of two turns holds several beginning-of-text tokens."""
        try:
            text = self.conversation((*question, Message("assistant", answer), *question), answer)
        except Exception:  # a template is a program: this one takes a single turn
            return False
        return self.bos is not None and self.ids([text])[0].count(self.bos) > 1

    @classmethod
    def of(cls, folder: Path, model: ModelConfig) -> Chat:
        """The chat of the model in `folder`, with the setting's template, system message and template arguments."""
        return cls(tokenizer_of(folder, model))

    @cached_property
    def digest(self) -> str:
        """Hex sha256 of everything that maps conversations to ids and ids to text: the template with its arguments and
        system message, and the tokenizer's content."""
        tokenizer = self.tokenizer
        return hashlib.sha256(
            json.dumps(
                {
                    "template": self.template,
                    "bos": self.bos,
                    "end": self.end,
                    "special": {k: str(v) for k, v in tokenizer.special_tokens_map.items()},
                    "clean_up": getattr(tokenizer, "clean_up_tokenization_spaces", None),
                    "tokenizer": _content(tokenizer),
                },
                sort_keys=True,
            ).encode()
        ).hexdigest()

    def _turn_end(self, tail: str, special: dict[str, int]) -> tuple[int, str, bool]:
        if match := self.special.search(tail):
            return special[match.group()], tail[match.end() :], False
        if self.tokenizer.eos_token_id is None:
            raise PobenchError("neither the chat template nor the tokenizer has an end-of-turn token")
        return self.tokenizer.eos_token_id, tail[len(tail.rstrip()) :], True

    # -- text

    def prompt(self, conversation: Prompt, *, ask: bool = True) -> str:
        """The text up to the answer. ask: append the generation prompt, usually the assistant's header."""
        text = self.tokenizer.apply_chat_template(
            messages(conversation), chat_template=self.template, tokenize=False, add_generation_prompt=ask
        )
        return str(text)

    def conversation(self, prompt: Sequence[Message], answer: str, *, whole: bool = False) -> str:
        """The text of prompt and answer, up to and including the end-of-turn token if the template writes one. whole: with
        what it writes after that token."""
        text = self.prompt((*prompt, Message("assistant", answer)), ask=False)
        return text.removesuffix(self.after) if self.after and not whole else text

    def behind(self, prompt: str, conversation: str) -> str | None:
        """The rendered `conversation` as training text: it starts with the whole rendered `prompt`, `opening` included. None
        if the template writes something else before an answer than the generation prompt."""
        if conversation.startswith(prompt):
            return conversation
        stem = prompt.removesuffix(self.opening)
        if self.opening and conversation.startswith(stem):
            return prompt + conversation[len(stem) :]
        return None

    def fault_of(
        self, row: int, asked: Sequence[Message], prompt: str, answered: Sequence[tuple[str, str, str]]
    ) -> Fault | None:
        """The first fault of a rendered row: special tokens in its text, lost text, or another prompt. prompt: `asked`,
        rendered with the generation prompt. answered: of each answer its field, its text, and the rendered conversation."""
        written = [(f"prompt[{i}]", m.content, prompt, m.role) for i, m in enumerate(asked)]
        answers = [(name, text, rendered, "") for name, text, rendered in answered]
        for name, raw, rendered, role in (*written, *answers):
            text = without_empty_thought(raw)  # a template may leave it out, or write it in another way
            if role == "assistant" and text.strip() not in rendered:
                text = THOUGHT.sub("", text, count=1) or text  # a template may drop the thoughts of earlier turns
            if match := self.special.search(text):
                return Fault(row, name, "holds a special token of the tokenizer as text", repr(match.group()))
            if text.strip() not in rendered:
                return Fault(row, name, "the chat template drops or changes text", repr(text.strip()[:40]))
        for _, _, rendered in answered:
            if self.behind(prompt, rendered) is None:
                at = shared_start(prompt, rendered)
                got = (
                    f"the generation prompt has {prompt[at : at + 40]!r}, a conversation {rendered[at : at + 40]!r}; set "
                    "model.template_arguments or model.empty_thought, or name another template with model.chat_template"
                )
                return Fault(
                    row, "prompt", "the chat template writes the prompt differently once an answer follows", got
                )
        return None

    # -- token ids

    def prompt_ids(self, conversation: Prompt, *, ask: bool = True) -> tuple[int, ...]:
        """The prompt's token ids, the same in generation and training. ask: append the generation prompt."""
        return self.ids([self.prompt(conversation, ask=ask)])[0]

    def whole_ids(self, conversation: Prompt) -> tuple[int, ...]:
        """The token ids of a conversation that ends with an answer, as a reward model reads them: with all text that the
        template writes after the answer."""
        return self.prompt_ids(conversation, ask=False)

    def ids(self, texts: Sequence[str]) -> list[tuple[int, ...]]:
        """Token ids of rendered texts. Adds the beginning-of-text token if the template did not write it."""
        ids = self._encoded(texts)
        return ids if self.bos is None else [s if s[:1] == (self.bos,) else (self.bos, *s) for s in ids]

    def _encoded(self, texts: Sequence[str]) -> list[tuple[int, ...]]:
        """Token ids of exactly these texts, without added special tokens."""
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
        return [tuple(map(intern, sequence)) for sequence in batch]

    def answered(self, texts: Sequence[tuple[str, str]], *, whole: bool = False) -> list[Answered | None]:
        """Token ids of (prompt, training text) pairs; None where no tokens spell the answer after the prompt's ids.

        texts: the rendered prompt, and the text that `behind` returns. A token that would cross the border between prompt
        and answer is split there, as in generation. whole: the texts are those of `conversation(…, whole=True)`; the
        end-of-text token is appended to each that does not end with it.
        """
        prompts = list(dict.fromkeys(prompt for prompt, _ in texts))
        ids = self.ids([*prompts, *(conversation for _, conversation in texts)])
        of_prompt = dict(zip(prompts, ids, strict=False))
        last = self.tokenizer.eos_token_id if whole else self.end if self.adds_end else None
        sequences: list[Answered | None] = []
        for (prompt, conversation), conversation_ids in zip(texts, ids[len(prompts) :], strict=True):
            prompt_tokens = of_prompt[prompt]
            merged = conversation_ids[: len(prompt_tokens)] != prompt_tokens
            answer = (
                self._apart(prompt_tokens, conversation_ids, conversation[len(prompt) :])
                if merged
                else conversation_ids[len(prompt_tokens) :]
            )
            if answer is not None and last is not None and not (whole and answer[-1:] == (last,)):
                answer = (*answer, last)
            sequences.append(None if answer is None else Answered(prompt_tokens, answer, merged))
        return sequences

    def _apart(self, prompt: tuple[int, ...], conversation: tuple[int, ...], answer: str) -> tuple[int, ...] | None:
        """Ids of `answer` that, after those of `prompt`, spell the same text as `conversation`; None if there are none."""
        text = self._spelled(conversation)
        anchor = self.tokenizer.convert_ids_to_tokens(
            self.end
        )  # some tokenizers add a space before the first word of a text
        alone, behind = self._encoded([answer, anchor + answer])
        candidates = [alone, behind[1:]] if behind[:1] == (self.end,) else [alone]
        return next((ids for ids in candidates if self._spelled((*prompt, *ids)) == text), None)

    def _spelled(self, ids: Sequence[int]) -> str:
        return str(self.tokenizer.decode(list(ids), clean_up_tokenization_spaces=False))

    def check_prompt(self, where: str, generated: Sequence[int], trained: Sequence[int]) -> None:
        """Raises PobenchError at the first token where the prompt in training differs from the prompt in generation.

        where: the row, for the message. generated: ids in generation. trained: ids in training.
        """
        if tuple(generated) == tuple(trained):
            return
        at = shared_start(tuple(generated), tuple(trained))
        sides = [repr(self._spelled(ids[at : at + 4])) if at < len(ids) else "nothing" for ids in (trained, generated)]
        raise PobenchError(
            f"{where}: the prompt in training differs from the prompt in generation: at token {at} of {len(generated)} "
            f"training has {sides[0]}, generation {sides[1]}. Does the chat template render the same conversation "
            "differently each time? Name another with model.chat_template, or set model.template_arguments"
        )


def _any_of(words: Iterable[str]) -> re.Pattern[str]:
    """Matches any of the words, the longest first, so that it matches whole tokens."""
    return re.compile("|".join(map(re.escape, sorted(filter(None, words), key=len, reverse=True))) or r"(?!)")


def _content(tokenizer: Any) -> str:
    """The tokenizer's rules, vocabulary and added tokens as text."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:  # a slow one
        return json.dumps([type(tokenizer).__name__, tokenizer.get_vocab()], sort_keys=True)
    text = str(backend.to_str())
    return text[text.find('"added_tokens"') :]  # skips truncation and padding, which calls change


def tokenizer_of(folder: Path, model: ModelConfig) -> Any:
    """The model's tokenizer, with the setting's chat template, system message and template arguments."""
    template = chat_template(None, model.chat_template) if model.chat_template else None
    tokenizer = load_tokenizer(folder, template, trust_remote_code=model.trust_remote_code)
    tokenizer.chat_template = with_values(chat_template(tokenizer), model.system_message, model.template_arguments)
    if model.empty_thought == "prompt" and "</" in tokenizer.chat_template:
        with contextlib.suppress(PobenchError):  # a template that cannot render is reported where it renders
            if EMPTY_THOUGHT.fullmatch(lead := Chat(tokenizer).lead):
                tokenizer.chat_template = with_thought(tokenizer.chat_template, lead)
    return tokenizer


def load_tokenizer(folder: Path, chat_template: str | None = None, *, trust_remote_code: bool = False) -> Any:
    """The tokenizer in `folder` with a pad token. chat_template: Jinja text that replaces its own.

    The pad token is an existing special token, so no text tokenises differently and no embedding is added.
    Raises PobenchError if the tokenizer cannot be loaded or has no chat template.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
    except Exception as error:  # transformers and tokenizers raise a dozen unrelated types
        raise PobenchError(
            f"the tokenizer in {str(folder)!r} cannot be loaded: {type(error).__name__}: {error}"
        ) from error
    if chat_template is not None:
        tokenizer.chat_template = chat_template
    if not tokenizer.chat_template:
        raise PobenchError(f"the tokenizer in {str(folder)!r} has no chat template; name one in the setting")
    if tokenizer.pad_token_id is None:
        special = [t.content for t in tokenizer.added_tokens_decoder.values() if t.special]
        pads = [t for t in special if "pad" in t.lower()] + [t for t in special if "reserved" in t.lower()]
        tokenizer.pad_token = pads[0] if pads else tokenizer.eos_token
    return tokenizer
