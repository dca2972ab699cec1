"""Token pairs, lists and answers, and audits, drawn for a terminal: what the model will see.

The prompt is dim, the chosen answer green, the rejected one red, those between them plain; special tokens are yellow; a bar
marks the cut, behind which every token counts towards |y|. Data is shown as text, never as markup, and control characters are
escaped.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from pobench.data.audit import Audit, unknown_text
from pobench.data.chat import Chat
from pobench.data.order import unit_of
from pobench.types import Item, TokenAnswer, TokenPair

CUT = "▌"
_SPECIAL = "bold yellow"
_UNDECODED = "\ufffd"


def render_inspection(items: Sequence[Item], tokenizer: Any, *, rows: int = 3, ids: bool = False) -> RenderableType:
    """The first `rows` items, token by token, neighbouring tokens told apart by an underline.

    tokenizer: of transformers, or a `Chat` around one. ids: show each token's id behind it.
    """
    tokenizer = tokenizer.tokenizer if isinstance(tokenizer, Chat) else tokenizer
    shown = list(items[: max(rows, 0)])
    parts: list[RenderableType] = [_legend()]
    for number, item in enumerate(shown, start=1):
        unit = unit_of(items).removesuffix("s")
        parts += [Rule(Text(f"{unit} {number} of {len(items)} · {_safe(item.id)}"), align="left"), Text("")]
        for name, sequence, style in [("prompt", item.prompt, "dim"), *_answers(item)]:
            head = Text(f"{name}, {len(sequence)} tokens", style=f"bold {style}")
            cut = Text("" if name == "prompt" else CUT, style=style)
            body = Text.assemble(cut, *token_texts(tokenizer, sequence, style, ids))
            if name == "prompt":
                body.append(CUT, style="bold")
            parts += [head, Padding(body, (0, 0, 1, 2))]
    return Group(*parts)


def _answers(item: Item) -> list[tuple[str, tuple[int, ...], str]]:
    """(name, token ids, style) of each answer."""
    if isinstance(item, TokenPair):
        return [("chosen", item.chosen, "green"), ("rejected", item.rejected, "red")]
    if isinstance(item, TokenAnswer):
        rated = "" if item.score is None else f", score {item.score:g}"
        good = item.label
        return [(("desirable" if good else "undesirable") + rated, item.response, "green" if good else "red")]
    styles = {max(item.ranks): "red", min(item.ranks): "green"}
    scores = [""] * len(item.ranks) if item.scores is None else [f", score {score:g}" for score in item.scores]
    return [
        (f"rank {rank}{score}", response, styles.get(rank, "default"))
        for response, rank, score in zip(item.responses, item.ranks, scores, strict=True)
    ]


def token_texts(tokenizer: Any, sequence: Sequence[int], style: str, ids: bool) -> Iterator[Text]:
    """One piece per token; tokens that are parts of one character share a piece."""
    special = set(tokenizer.all_special_ids) | {i for i, t in tokenizer.added_tokens_decoder.items() if t.special}
    for number, (piece, word) in enumerate(pieces(tokenizer, sequence)):
        marked = _SPECIAL if piece[0] in special else style
        text = Text(_safe(word), style=marked if number % 2 else f"{marked} underline")
        if ids:
            text.append("·" + "·".join(map(str, piece)) + " ", style="dim")
        yield text
        if word.endswith("\n"):
            yield Text("\n")


def pieces(tokenizer: Any, sequence: Sequence[int]) -> Iterator[tuple[tuple[int, ...], str]]:
    """(token ids, the text they add): each decoded behind a few earlier tokens, as its spaces depend on them."""
    start = 0
    for stop in range(1, len(sequence) + 1):
        behind = list(sequence[max(0, start - 4) : start])
        before = tokenizer.decode(behind) if behind else ""
        word = tokenizer.decode([*behind, *sequence[start:stop]])[len(before) :]
        if _UNDECODED in word and stop < len(sequence) and stop - start < 4:
            continue  # the first bytes of a longer character
        yield tuple(sequence[start:stop]), word
        start = stop


def render_audit(audit: Audit) -> RenderableType:
    """The audit as tables: lengths, then what was left out or changed, with the first row numbers."""
    lengths = Table(title=f"Lengths in {audit.unit}", title_justify="left", box=None, pad_edge=False)
    lengths.add_column("")
    for name in audit.quantiles().columns:
        lengths.add_column(name, justify="right")
    for name, row in audit.quantiles().iterrows():
        lengths.add_row(str(name), *("–" if value != value else f"{value:.0f}" for value in row))
    share = f"{audit.chosen_longer:.1%}" if audit.pairs else "–"
    parts: list[RenderableType] = [
        Text(f"{_safe(audit.source)}: {audit.rows} rows, {audit.pairs} pairs kept", style="bold"),
        *(Text(f"{line[:1].upper()}{line[1:]}.") for line in audit.beside),
        Text(f"The chosen answer is the longer one in {share} of {audit.pairs} pairs.\n"),
        lengths,
    ]
    if warning := unknown_text(audit.unknown):
        parts.append(Text(f"\nWarning: {warning}.", style="yellow"))
    if audit.unread:
        parts.append(Text(f"\nColumns not read: {_safe(', '.join(audit.unread))}", style="yellow"))
    frame = audit.left_out()
    if frame.empty:
        return Group(*parts, Text("\nNo row was left out.", style="green"))
    kinds = Table(title="\nLeft out or changed", title_justify="left", box=None, pad_edge=False)
    kinds.add_column("rows", justify="right")
    kinds.add_column("why")
    kinds.add_column("row numbers", overflow="fold")
    faults = {fault.problem for fault in audit.faults}
    for kind, count, numbers in frame.itertuples(index=False):
        first = json.loads(numbers)
        row_numbers = ", ".join(map(str, first[:8])) + (", …" if len(first) > 8 else "")
        kinds.add_row(str(count), Text(kind, style="red" if kind in faults else "yellow"), row_numbers)
    return Group(*parts, kinds)


def _legend() -> Text:
    return Text.assemble(
        ("prompt ", "dim"), ("chosen ", "green"), ("rejected ", "red"), ("special token ", _SPECIAL),
        (CUT, "bold"), " the cut: what follows counts towards |y|\n",
    )  # fmt: skip


def _safe(text: str) -> str:
    """The text without control characters: line ends become a sign, other unprintable characters their escapes."""
    signs = {"\n": "⏎", "\t": "⇥"}
    return "".join(signs.get(c) or (c if c.isprintable() else c.encode("unicode_escape").decode()) for c in text)
