"""PairRM, which reads two answers to a prompt side by side, as a judge. No code that comes with a model is run.

    [CLS] <|source|> prompt [SEP] [CLS] <|candidate1|> a [SEP] [CLS] <|candidate2|> b [SEP]        → DeBERTa
    s(a, b) = mean over tasks of head(source, a) − head(source, b),   P(b is better, a shown first) = σ(−s(a, b))

head: two linear layers with tanh between them, on the encodings of the prompt's prefix token and of an answer's. A prompt is
cut behind 1,224 tokens and each answer behind 412 and half of what the prompt leaves, special tokens included; in a batch
of several prompts the package lets the longest of them decide for all, here each prompt decides for its own answers. A
conversation of several turns is written as the package's `compare_conversations` does; it has no form for a system message,
which stands here in front of the prompt.

Sources: Jiang, Ren and Lin 2023, arXiv 2306.02561; the card of llm-blender/PairRM; the package llm-blender 0.0.2
(`CrossCompareReranker`, `CrossCompareCollator`, `tokenize_pair`, `get_scores_from_cmps`), with whose scores
`tests/pobench/judging/test_pairrm.py` compares.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch

from pobench.data.rows import messages
from pobench.errors import PobenchError
from pobench.judging.pairwise import Comparison, Progress, Read, TwoOrders
from pobench.judging.weights import Precision, Weights, batches, read_weights
from pobench.registry import register_judge
from pobench.settings.schema import Count
from pobench.sources import fetch_file, read_config

PUBLISHED = "llm-blender/PairRM-hf"
SOURCE_TOKENS, ANSWER_TOKENS = 1224, 412  # the card of llm-blender/PairRM
PREFIXES = ("<|source|>", "<|candidate1|>", "<|candidate2|>", "<|candidate|>")  # in the order of their ids
# llm-blender 0.0.2, `compare_conversations`, its spelling included
INSTRUCTION = "Finish the following coversation in each i-th turn by filling in <Response i> with your response."
EMBEDDINGS = "pretrained_model.embeddings.word_embeddings.weight"


class Ranker(torch.nn.Module):
    """DeBERTa and PairRM's head; the weights have the names of both published checkpoints. config: of DeBERTa."""

    def __init__(self, config: Any, tasks: int) -> None:
        from transformers import DebertaV2Model

        super().__init__()
        width, dropped = config.hidden_size, 0.0  # dropout, in training alone
        self.config = config
        self.pretrained_model = DebertaV2Model(config)
        self.head_layer = torch.nn.Sequential(
            torch.nn.Dropout(dropped),
            torch.nn.Linear(2 * width, width),
            torch.nn.Tanh(),
            torch.nn.Dropout(dropped),
            torch.nn.Linear(width, tasks),
        )

    def forward(self, ids: torch.Tensor, mask: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        """s(a, b), (pairs,), above 0 where a is better. ids, mask: (pairs, tokens). places: of the prefixes, (pairs, 3)."""
        encodings = self.pretrained_model(input_ids=ids, attention_mask=mask).last_hidden_state
        source, a, b = encodings.gather(1, places[..., None].expand(-1, -1, encodings.shape[-1])).unbind(1)
        left, right = (self.head_layer(torch.cat([source, answer], dim=-1)) for answer in (a, b))
        scores: torch.Tensor = (left - right).mean(-1)
        return scores


class Row(NamedTuple):
    """Token ids, and the places of the three prefixes among them."""

    ids: list[int]
    places: tuple[int, int, int]


class PairRM(TwoOrders):
    """Compares by σ of PairRM's score. body: where DeBERTa's config.json and tokenizer.json are, if not beside the weights."""

    def __init__(self, weights: Weights, body: str = PUBLISHED, batch_size: int = 8) -> None:
        self.weights, self.body, self.batch_size, self.name = weights, body, batch_size, weights.name

    @cached_property
    def about(self) -> dict[str, Any]:
        """The checkpoint's config.json: DeBERTa's with PairRM's fields, or, in llm-blender's own layout, a `RankerConfig`."""
        about = read_config(self.weights.folder)
        kind = about.get("ranker_type", "pairranker"), str(about.get("model_type"))
        if kind[0] != "pairranker" or not kind[1].startswith("deberta"):
            raise PobenchError(f"{self.name!r} is no PairRM: its config.json names a {kind[1]} of the type {kind[0]}")
        return about

    @cached_property
    def model(self) -> Any:
        from transformers import DebertaV2Config

        values = self.about
        if "ranker_type" in values:
            values = read_config(self._beside("config.json").parent)

        def make(state: dict[str, torch.Tensor]) -> Ranker:
            rows = {"vocab_size": len(state[EMBEDDINGS])} if EMBEDDINGS in state else {}
            return Ranker(DebertaV2Config.from_dict({**values, **rows}), self.about.get("n_tasks", 1))

        model = read_weights(self.weights, make, "PairRM")
        if max(map(self.tokenizer.token_to_id, PREFIXES)) >= model.config.vocab_size:
            raise PobenchError(
                f"{self.name!r} has {model.config.vocab_size} embeddings, too few for the tokenizer and {', '.join(PREFIXES)}"
            )
        return model

    @cached_property
    def tokenizer(self) -> Any:
        """A `tokenizers.Tokenizer` with the prefixes: as the file says, while transformers 5 replaces DeBERTa's normaliser."""
        from tokenizers import Tokenizer

        own = self.weights.folder / "tokenizer.json"
        tokenizer = Tokenizer.from_file(str(own if own.is_file() else self._beside("tokenizer.json")))
        tokenizer.no_padding()
        tokenizer.no_truncation()
        tokenizer.add_tokens(list(PREFIXES))
        if any(len(ids := tokenizer.encode(p).ids) != 3 or ids[1] != tokenizer.token_to_id(p) for p in PREFIXES):
            raise PobenchError(f"{self.name!r}: its tokenizer does not write {PREFIXES[0]} between two special tokens")
        return tokenizer

    @cached_property
    def separator(self) -> str:
        """The token at the end of every text, [SEP]."""
        return str(self.tokenizer.id_to_token(self.tokenizer.encode("").ids[-1]))

    def _beside(self, name: str) -> Path:
        return fetch_file(self.body, name, option="the judge's setting `body`", kind="model")

    @torch.inference_mode()
    def scores(self, shown: Sequence[Comparison], progress: Progress | None = None) -> list[float]:
        """s(a, b) in nats for each comparison, with a shown first."""
        rows, scores = [self._row(c) for c in shown], [0.0] * len(shown)
        width, device = max((len(row.ids) for row in rows), default=0), self.weights.device
        # DeBERTa's positions are relative and far ones share a bucket, so its config's maximum is no limit
        for places in batches([row.ids for row in rows], self.batch_size, self.model, progress, limit=width):
            batch = [rows[i] for i in places]
            longest = max(len(row.ids) for row in batch)
            ids = torch.tensor([row.ids + [0] * (longest - len(row.ids)) for row in batch], device=device)
            mask = torch.tensor([[i < len(row.ids) for i in range(longest)] for row in batch], device=device).long()
            prefixes = torch.tensor([row.places for row in batch], device=device)
            for i, score in zip(places, self.model(ids, mask, prefixes).double().tolist(), strict=True):
                scores[i] = score
        return scores

    def read(self, shown: Sequence[Comparison], progress: Progress | None = None) -> list[Read]:
        scores = torch.tensor(self.scores(shown, progress), dtype=torch.float64)
        return [*map(Read, torch.sigmoid(-scores).tolist())]

    def margins(self, comparisons: Sequence[Comparison], progress: Progress | None = None) -> list[float]:
        """s(b, a) − s(a, b): the log-odds in nats that b is better, summed over both orders."""
        both = self.scores([one for c in comparisons for one in (c, c.swapped)], progress)
        return [backward - forward for forward, backward in zip(both[::2], both[1::2], strict=True)]

    def _row(self, shown: Comparison) -> Row:
        prompt, a, b = texts(shown)
        most = self.about.get("source_maxlength") or SOURCE_TOKENS
        source = self._segment(PREFIXES[0], prompt, most)
        left = (self.about.get("candidate_maxlength") or ANSWER_TOKENS) + (most - len(source)) // 2
        one, two = self._segment(PREFIXES[1], a, left), self._segment(PREFIXES[2], b, left)
        return Row([*source, *one, *two], (1, 1 + len(source), 1 + len(source) + len(one)))

    def _segment(self, prefix: str, text: str, most: int) -> list[int]:
        """[CLS] prefix text [SEP], cut to `most` tokens. What a text has of the marks between segments becomes a space."""
        for mark in (self.separator, *PREFIXES):
            text = text.replace(mark, " ")
        ids: list[int] = self.tokenizer.encode(prefix + text).ids
        return ids if len(ids) <= most else [*ids[: most - 1], ids[-1]]


def texts(shown: Comparison) -> tuple[str, str, str]:
    """The prompt and both answers as PairRM reads them."""
    turns = messages(shown.prompt)
    before = "".join(turn["content"] + "\n\n" for turn in turns if turn["role"] == "system")
    asked = [turn["content"] for turn in turns if turn["role"] == "user"]
    if len(asked) == 1:
        return before + asked[0], shown.a, shown.b
    said = [turn["content"] for turn in turns if turn["role"] == "assistant"]
    prompt = "\n".join(f"USER: {text}\nAssistant: <Response {i}>" for i, text in enumerate(asked, start=1))
    a, b = (
        "\n".join(f"<Response {i}>: {text}" for i, text in enumerate([*said, answer], start=1))
        for answer in (shown.a, shown.b)
    )
    return before + INSTRUCTION + prompt, a, b


@register_judge("pairrm", runtime=("batch_size",), free=True, compares=True)
def pairrm(
    *,
    model: str = PUBLISHED,
    revision: str | None = None,
    body: str = PUBLISHED,
    batch_size: Count = 8,
    precision: Precision = "fp32",
) -> PairRM:
    """PairRM on this machine: compares two answers by σ of its score, both orders averaged; ranks by the sum of its scores.

    model: a folder or hub name, llm-blender/PairRM-hf or llm-blender/PairRM, whose weights are the same. body: where
    DeBERTa's config.json and tokenizer.json are, for a checkpoint that has none, as llm-blender/PairRM.
    """
    return PairRM(Weights(model, revision, precision), body, batch_size)
