"""Split text that holds several turns: transcripts (Human: … Assistant: …) and text around which a chat template stands."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

from pobench.data.rows import Message

ROLES = {"human": "user", **dict.fromkeys(("gpt", "bot", "model", "chatgpt", "ai"), "assistant")}


class Markup(NamedTuple):
    """How a text marks its turns. turn: matches a turn's beginning, with the speaker in group 1. end: matches what stands
    behind a turn. roles: speaker → role, beside `ROLES`. start: what the text begins with, if not a turn."""

    name: str
    turn: re.Pattern[str]
    end: str = ""
    roles: Mapping[str, str] | None = None
    start: str = ""

    def speaker(self, word: str) -> str:
        word = word.lower()
        return (self.roles or ROLES).get(word, ROLES.get(word, word))


_INSTRUCTION = {"instruction": "user", "response": "assistant"}
TEMPLATES = (
    Markup("ChatML", re.compile(r"<\|im_start\|>(\w+)(?:<\|im_sep\|>|\n)?"), r"<\|im_end\|>|<\|endoftext\|>"),
    Markup("Llama 3", re.compile(r"<\|start_header_id\|>(\w+)<\|end_header_id\|>"), r"<\|eot_id\|>|<\|end_of_text\|>"),
    Markup("Gemma", re.compile(r"<start_of_turn>(\w+)\n?"), r"<end_of_turn>|<eos>"),
    Markup("Zephyr", re.compile(r"<\|(system|user|assistant)\|>\n?"), r"</s>|<\|end\|>|<\|endoftext\|>"),
    Markup("NeMo", re.compile(r"<extra_id_[01]>(System|User|Assistant)\n?"), r"<extra_id_1>"),
    Markup("Vicuna", re.compile(r"(?:\A|\s|</s>)(USER|ASSISTANT):"), r"</s>", start=r"A chat between .*?(?=USER:)"),
    Markup("[INST]", re.compile(r"(?:<s>\s*)?(\[/?INST\])"), r"</s>", {"[inst]": "user", "[/inst]": "assistant"}),
)
TRANSCRIPTS = (
    Markup("HH-RLHF", re.compile(r"(?:\A|\n\n)\s*(Human|Assistant):", re.I)),
    Markup("Human and Assistant", re.compile(r"(?:\A|\n)\s*(Human|Assistant|AI):", re.I)),
    Markup("User and Assistant", re.compile(r"(?:\A|\n)\s*(System|User|Assistant|AI):", re.I)),
    Markup("### Human", re.compile(r"(?:\A|\n)\s*### ?(Human|User|Assistant):", re.I)),
    Markup(
        "### Instruction",
        re.compile(r"(?:\A|\n)\s*### ?(Instruction|Response):", re.I),
        "",
        _INSTRUCTION,
        r"Below is an instruction[^\n]*\n+",
    ),
)
_NEMO = "<extra_id_1>User\n"
_BOS = re.compile(r"\s*(?:<s>(?!\s*\[INST\])|<\|begin_of_text\|>|<bos>|<\|startoftext\|>)?\s*")
_ENDS = (
    *(
        f"<|{name}|>"
        for name in ("im_end", "eot_id", "eot", "end_of_text", "endoftext", "end", "end_of_turn", "return")
    ),
    *("<end_of_turn>", "<eos>", "<｜end▁of▁sentence｜>", "</s>"),
)
# marks of templates that are not among TEMPLATES: <｜Assistant｜>, <|CHATBOT_TOKEN|>, <|start|>assistant, [|assistant|]
_ASKED = re.compile(r"(?:[<\[][|｜]|[|｜]>)\s*(?:user|human|prompter)", re.I)
_ANSWERED = re.compile(r"(?:[<\[][|｜]|[|｜]>)\s*(?:assistant|chatbot|model)", re.I)
_LABEL, _LAST_LABEL = re.compile(r"\b(?:user|human)>?:", re.I), re.compile(r"\b(?:assistant|ai|bot)>?:\Z", re.I)
_SYSTEM = re.compile(r"\s*<<SYS>>(.*?)<</SYS>>\s*", re.DOTALL)


class Split(NamedTuple):
    """The turns of a text. template: the name of the chat template that had been put around it; "" for a transcript."""

    turns: tuple[Message, ...]
    template: str = ""


def split_turns(text: str, *, keep_open: bool = False) -> Split | None:
    """The turns of a transcript, or of text around which a known chat template stands; None for any other text.

    An empty last turn of the assistant, with which a prompt ends, is dropped unless `keep_open`. A transcript must have a
    turn of the assistant; a line that only begins with `User:` stays text.
    """
    body = text[_BOS.match(text).end() :]  # type: ignore[union-attr]  # matches any text
    for markup in (*TEMPLATES, *TRANSCRIPTS):
        start = re.match(markup.start, body, re.DOTALL) if markup.start else None
        inside = body[start.end() :] if start else body
        if markup.name == "NeMo" and not markup.turn.match(inside) and markup_inside(f"{_NEMO}{inside}") == "NeMo":
            inside = _NEMO + inside  # HelpSteer2 begins without a mark, with the user's text
        if not markup.turn.match(inside):
            continue
        turns = _turns(inside, markup)
        if markup in TEMPLATES or "assistant" in [turn.role for turn in turns]:
            if not keep_open and len(turns) > 1 and turns[-1] == ("assistant", ""):
                turns.pop()
            return Split(tuple(turns), markup.name if markup in TEMPLATES else "")
    return None


def markup_inside(text: str) -> str:
    """The name of a chat template whose marks for a user and an assistant both stand in the text, `(unknown)` for one that is
    not known here; "" if there is none."""
    for markup in TEMPLATES:
        if {"user", "assistant"} <= {markup.speaker(word) for word in markup.turn.findall(text)}:
            return markup.name
    return "(unknown)" if (_ASKED.search(text) and _ANSWERED.search(text)) or _is_labelled(text) else ""


def _is_labelled(text: str) -> bool:
    """Whether a user's label stands before an assistant's, which ends the text."""
    last = _LAST_LABEL.search(text.rstrip())
    return last is not None and _LABEL.search(text, 0, last.start()) is not None


def template_around(text: str) -> str:
    """The name of the chat template, or "of a transcript", that stands around a text as around a prompt; "" for plain words."""
    split = split_turns(text, keep_open=True)
    if split and (split.template or split.turns[-1] == ("assistant", "")):
        return split.template or "of a transcript"
    return markup_inside(text)


def without_end(text: str) -> str:
    """An answer without the end-of-turn tokens, written as text, that templates put behind it (`</s>`, `<|im_end|>`, …)."""
    bare = text.rstrip()
    end = next((mark for mark in _ENDS if bare.endswith(mark)), "")
    if not end or (end == "</s>" and "<s>" in bare):  # struck-through words of HTML
        return text
    return without_end(bare.removesuffix(end)).rstrip()


def continued(text: str) -> tuple[Message, ...]:
    """The turns of an answer to a transcript's prompt: one, or more where the transcript goes on in it."""
    split = split_turns(f"\n\nAssistant: {text}")
    return split.turns if split else (Message("assistant", text),)


def _turns(text: str, markup: Markup) -> list[Message]:
    parts = markup.turn.split(text)[1:]
    turns = list[Message]()
    for word, content in zip(parts[::2], parts[1::2], strict=True):
        if markup.end:
            content = re.sub(rf"(?:{markup.end})\s*\Z", "", content)
        role = markup.speaker(word)
        if role == "user" and not turns and markup.name == "[INST]" and (system := _SYSTEM.match(content)):
            turns.append(Message("system", system[1].strip()))
            content = content[system.end() :]
        turns.append(Message(role, content.strip()))
    return turns


def is_valid(text: str) -> bool:
    """Whether a text can be encoded."""
    return not any("\ud800" <= c <= "\udfff" for c in text)
