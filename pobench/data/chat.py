"""From a conversation to text and token ids: the chat template, and where an answer begins and ends."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import TemplateError

from pobench.data.published import LLAMA3_TEMPLATE, ZEPHYR_TEMPLATE
from pobench.data.rows import Fault, Message, Preference, Prompt, messages, shared_start
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

CHECKED = 32  # first rows of every run that `Chat.check_asked` looks at

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
    return _FIXED_DATE + text if "strftime_now" in text and _FIXED_DATE not in text else text


def with_values(template: str, system_message: str | None = None, arguments: Mapping[str, Any] | None = None) -> str:
    """The template with `arguments` set, and a system message in front of every conversation that has none (None: as is).

    The values become part of the template's text, so whoever renders with it gets them: this package, lm-eval, a server
    that loads the stored tokenizer. A template that has the same values in front already stays as it is.
    """
    front = "".join(f"{{% set {name} = {_literal(value)} %}}" for name, value in (arguments or {}).items())
    if system_message is not None:
        first = "{'role': 'system', 'content': " + _literal(system_message) + "}"
        front += "{% if messages[0]['role'] != 'system' %}{% set messages = [" + first + "] + messages %}{% endif %}"
    return template if template.startswith(front) else front + template


def _literal(value: Any) -> str:
    """A plain value as Jinja writes it: JSON, but for `none`."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_literal(str(k))}: {_literal(v)}" for k, v in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(_literal, value)) + "]"
    return "none" if value is None else json.dumps(value, ensure_ascii=False)


class Answered(NamedTuple):
    """A prompt and its answer as a model is trained on them, in token ids.

    prompt: what generation is asked with. answer: closed by the end-of-turn token. merged: rendered as one text, the end
    of the prompt and the beginning of the answer would have shared a token.
    """

    prompt: tuple[int, ...]
    answer: tuple[int, ...]
    merged: bool


class Chat:
    """The one way from a conversation to token ids: a tokenizer and its chat template, probed once.

    Training, SFT, answers, on-policy sampling, judges with weights and benchmarks all ask it, so a model is trained behind
    the very ids that it is asked with. The model itself is given token ids and renders nothing.

    tokenizer: of transformers. template: in place of the tokenizer's own, as `chat_template` takes it.
    end: the id of the end-of-turn token. after: text that the template writes behind it. bos: the id that every sequence
    starts with, or None. opening: text that the generation prompt writes and a rendered conversation lacks (`<think>`);
    answers are trained behind it. lead: text that a rendered conversation has between the generation prompt and an answer
    (the empty thought of Qwen 3); a model has to generate it, so it belongs to the answer.

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
            border = whole.rindex(answer)
        except (TemplateError, ValueError) as error:
            raise PobenchError(f"the chat template cannot render one question and its answer: {error}") from error
        before, tail = whole[:border], whole[border + len(answer) :]
        self.opening = prompt[len(before) :] if prompt.startswith(before) else ""
        self.lead = before[len(prompt) :] if before.startswith(prompt) else ""
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

    @classmethod
    def of(cls, folder: Path, model: ModelConfig) -> Chat:
        """The chat of the model in `folder`, with the template, system message and arguments of the setting."""
        return cls(tokenizer_of(folder, model))

    @cached_property
    def digest(self) -> str:
        """Hex sha256 of everything that decides which ids a conversation becomes, and what text ids become: the template
        with its arguments and system message, and the tokenizer's content."""
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
        if found := self.special.search(tail):
            return special[found.group()], tail[found.end() :], False
        if self.tokenizer.eos_token_id is None:
            raise PobenchError("neither the chat template nor the tokenizer has an end-of-turn token")
        return self.tokenizer.eos_token_id, tail[len(tail.rstrip()) :], True

    # -- text

    def prompt(self, conversation: Prompt, *, ask: bool = True) -> str:
        """The text up to the answer; ask: with the generation prompt, usually the assistant's header."""
        text = self.tokenizer.apply_chat_template(
            messages(conversation), chat_template=self.template, tokenize=False, add_generation_prompt=ask
        )
        return str(text)

    def conversation(self, prompt: Sequence[Message], answer: str) -> str:
        """The text of prompt and answer, up to and including the end-of-turn token where the template writes one."""
        text = self.prompt((*prompt, Message("assistant", answer)), ask=False)
        return text.removesuffix(self.after) if self.after else text

    def behind(self, prompt: str, conversation: str) -> str | None:
        """The rendered `conversation` as it is trained on: behind all that the rendered `prompt` asks with, `opening`
        included. None where the template writes something else in front of an answer than the generation prompt does."""
        if conversation.startswith(prompt):
            return conversation
        stem = prompt.removesuffix(self.opening)
        if self.opening and conversation.startswith(stem):
            return prompt + conversation[len(stem) :]
        return None

    def fault_of(self, preference: Preference, prompt: str, chosen: str, rejected: str) -> Fault | None:
        """What the rendering did to the text that must not happen to it. prompt: with the generation prompt."""
        row = preference.row
        written = [(f"prompt[{i}]", m.content, prompt) for i, m in enumerate(preference.prompt)]
        answers = [("chosen", preference.chosen, chosen), ("rejected", preference.rejected, rejected)]
        for name, text, whole in (*written, *answers):
            if found := self.special.search(text):
                return Fault(row, name, "holds a special token of the tokenizer as text", repr(found.group()))
            if text.strip() not in whole:
                return Fault(row, name, "the chat template drops or changes text", repr(text.strip()[:40]))
        for whole in (chosen, rejected):
            if self.behind(prompt, whole) is None:
                at = shared_start(prompt, whole)
                got = (
                    f"it asks with {prompt[at : at + 40]!r} and writes {whole[at : at + 40]!r} in front of an answer; set "
                    "its model.template_arguments, or name another with model.chat_template"
                )
                return Fault(
                    row, "prompt", "the chat template writes the prompt differently once an answer follows", got
                )
        return None

    # -- token ids

    def prompt_ids(self, conversation: Prompt, *, ask: bool = True) -> tuple[int, ...]:
        """The token ids that a model is asked with, and trained behind. ask: with the generation prompt."""
        return self.ids([self.prompt(conversation, ask=ask)])[0]

    def whole_ids(self, conversation: Prompt) -> tuple[int, ...]:
        """The token ids of a conversation that ends with an answer, all that the template writes behind it included: what
        a reward model reads."""
        return self.prompt_ids(conversation, ask=False)

    def ids(self, texts: Sequence[str]) -> list[tuple[int, ...]]:
        """Token ids; special tokens are those of the template, and the beginning-of-text token where it wrote none."""
        ids = self._encoded(texts)
        return ids if self.bos is None else [s if s[:1] == (self.bos,) else (self.bos, *s) for s in ids]

    def _encoded(self, texts: Sequence[str]) -> list[tuple[int, ...]]:
        """Token ids of exactly these texts."""
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

    def answered(self, texts: Sequence[tuple[str, str]]) -> list[Answered | None]:
        """(prompt, `behind` it) as texts -> the same as ids; None where no tokens spell the answer behind the prompt's.

        A token that would stand on both sides of the border is split there, as generation splits it.
        """
        prompts = list(dict.fromkeys(prompt for prompt, _ in texts))
        ids = self.ids([*prompts, *(whole for _, whole in texts)])
        of_prompt = dict(zip(prompts, ids, strict=False))
        end = (self.end,) if self.adds_end else ()
        found: list[Answered | None] = []
        for (prompt, whole), whole_ids in zip(texts, ids[len(prompts) :], strict=True):
            asked = of_prompt[prompt]
            merged = whole_ids[: len(asked)] != asked
            answer = self._apart(asked, whole_ids, whole[len(prompt) :]) if merged else whole_ids[len(asked) :]
            found.append(None if answer is None else Answered(asked, answer + end, merged))
        return found

    def _apart(self, prompt: tuple[int, ...], whole: tuple[int, ...], answer: str) -> tuple[int, ...] | None:
        """The ids of `answer` behind those of `prompt`, which together spell what `whole` spells."""
        text = self._spelled(whole)
        anchor = self.tokenizer.convert_ids_to_tokens(
            self.end
        )  # some tokenizers put a space in front of a text's first word
        alone, behind = self._encoded([answer, anchor + answer])
        candidates = [alone, behind[1:]] if behind[:1] == (self.end,) else [alone]
        return next((ids for ids in candidates if self._spelled((*prompt, *ids)) == text), None)

    def _spelled(self, ids: Sequence[int]) -> str:
        return str(self.tokenizer.decode(list(ids), clean_up_tokenization_spaces=False))

    def check_asked(self, where: str, asked: Sequence[int], trained: Sequence[int]) -> None:
        """Raises PobenchError naming the first place where the ids in front of an answer, as they are trained on, are not
        those that generation is asked with. where: names the row."""
        if tuple(asked) == tuple(trained):
            return
        at = shared_start(tuple(asked), tuple(trained))
        sides = [repr(self._spelled(ids[at : at + 4])) if at < len(ids) else "nothing" for ids in (trained, asked)]
        raise PobenchError(
            f"{where}: the model would be trained behind other tokens than it is asked with: at token {at} of {len(asked)} "
            f"training has {sides[0]}, generation {sides[1]}. Does the chat template render the same conversation "
            "otherwise each time? Name another with model.chat_template, or set its model.template_arguments"
        )


def _content(tokenizer: Any) -> str:
    """What a tokenizer is made of, as text: rules, vocabulary and added tokens."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:  # a slow one
        return json.dumps([type(tokenizer).__name__, tokenizer.get_vocab()], sort_keys=True)
    text = str(backend.to_str())
    return text[text.find('"added_tokens"') :]  # in front of it stand truncation and padding, which calls change


def tokenizer_of(folder: Path, model: ModelConfig) -> Any:
    """The model's tokenizer with the one chat template that training and generation share, the setting's values in it."""
    given = chat_template(None, model.chat_template) if model.chat_template else None
    tokenizer = load_tokenizer(folder, given, trust_remote_code=model.trust_remote_code)
    tokenizer.chat_template = with_values(chat_template(tokenizer), model.system_message, model.template_arguments)
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
