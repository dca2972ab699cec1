"""A reward model (sequence classification with one output) as a judge.

Its score of one answer is the raw reward. A reward has no bounds and no zero, so it ranks the answers to one prompt but
does not grade them (`bounded` is False). Two answers are compared by the Bradley-Terry model, with which reward models are
trained: P(b is better) = σ(r_b − r_a). The model reads one answer at a time, so there are no two orders to average.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import torch

from pobench.data.chat import Chat, load_tokenizer
from pobench.data.rows import Prompt, messages
from pobench.errors import PobenchError
from pobench.judging.pairwise import Comparison, Progress, Verdict
from pobench.judging.weights import Precision, Weights, batches, longest
from pobench.model.load import refuse_not_finite
from pobench.registry import register_judge
from pobench.settings.schema import Count
from pobench.sources import read_config, weights_fault

KIND = "AutoModelForSequenceClassification"


class Reward(NamedTuple):
    """value: in the model's own unit; nan where there is none. error: why."""

    value: float
    error: str = ""


class RewardModel:
    """Scores answers by the model's reward, in the model's own unit."""

    bounded = False

    def __init__(self, weights: Weights, batch_size: int = 8) -> None:
        self.weights, self.batch_size, self.name = weights, batch_size, weights.name
        self._trusted = False  # whether a reward was the same alone and in a batch

    @cached_property
    def model(self) -> Any:
        from transformers import AutoModelForSequenceClassification

        w = self.weights
        about = read_config(w.folder)
        if KIND in about.get("auto_map", {}) and not w.trust_remote_code:
            # transformers would load its own class of the same family, with a randomly initialised head
            raise PobenchError(
                f"reward model {self.name!r} brings code of its own, which pobench does not run by default: read it, then set "
                "trust_remote_code=true in the judge's settings; for ArmoRM take the judge `armorm`, which needs none"
            )
        try:
            model, loading_info = AutoModelForSequenceClassification.from_pretrained(
                w.folder,
                dtype=w.dtype,
                attn_implementation=w.attention,
                trust_remote_code=w.trust_remote_code,
                output_loading_info=True,
                ignore_mismatched_sizes=True,
            )
        except (ImportError, ValueError, OSError) as error:
            raise PobenchError(f"reward model {self.name!r} cannot be loaded: {error}") from error
        # A classifier was often made from a language model, and its file may still hold that model's head.
        unknown = {name for name in loading_info["unexpected_keys"] if not name.startswith("lm_head.")}
        if fault := weights_fault({**loading_info, "unexpected_keys": unknown}):
            raise PobenchError(f"{self.name!r} is no reward model: {fault}")
        refuse_not_finite(model, f"reward model {self.name!r}")
        if model.config.pad_token_id is None:
            model.config.pad_token_id = self.chat.tokenizer.pad_token_id
        return model.to(w.device).eval()

    @cached_property
    def chat(self) -> Chat:
        return Chat(load_tokenizer(self.weights.folder, trust_remote_code=self.weights.trust_remote_code))

    def score(self, row: Mapping[str, Any], text: str, finished: bool = True) -> float:
        """The raw reward of one answer; nan if prompt and answer are longer than the model reads, or its numbers
        overflow."""
        return self.rewards([(row["prompt"], text)])[0]

    def rewards(self, answers: Sequence[tuple[Prompt, str]], progress: Progress | None = None) -> list[float]:
        """The raw reward of each (prompt, answer), in order: `score` for many answers at once."""
        return [reward.value for reward in self._read(answers, progress)]

    @torch.inference_mode()
    def _read(self, answers: Sequence[tuple[Prompt, str]], progress: Progress | None = None) -> list[Reward]:
        rows = [self._tokens(prompt, text) for prompt, text in answers]
        limit = longest(self.model)
        found = [Reward(math.nan, f"{len(row)} tokens; the model reads {limit}") for row in rows]
        for places in batches(rows, self.batch_size, self.model, progress):
            rewards = self._batch([rows[i] for i in places])
            if not self._trusted and len(places) > 1:
                self._trusted = self._check_batch([rows[i] for i in places], rewards)
            for i, reward in zip(places, rewards, strict=True):
                found[i] = _finite(reward)
        return found

    def _batch(self, rows: Sequence[tuple[int, ...]]) -> list[float]:
        """The rewards of one batch, padded on the right: a token then has the position that it has alone, and no token of a
        causal model sees a pad."""
        width, device = max(map(len, rows)), self.weights.device
        pad = self.model.config.pad_token_id
        ids = torch.tensor([[*row, *[pad] * (width - len(row))] for row in rows], device=device)
        mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows], device=device)
        output = self.model(input_ids=ids, attention_mask=mask)
        scores = getattr(output, "score", None)  # models with several objectives return their sum under this name
        scores = (output.logits if scores is None else scores).float().reshape(len(rows), -1)
        if scores.shape[1] != 1:
            raise PobenchError(f"{self.name!r} gives {scores.shape[1]} numbers an answer; a reward model gives one")
        rewards: list[float] = scores[:, 0].tolist()
        return rewards

    def _check_batch(self, rows: Sequence[tuple[int, ...]], together: Sequence[float]) -> bool:
        """True. Raises PobenchError where an answer's reward alone is another than in this batch."""
        shortest = sorted(range(len(rows)), key=lambda i: len(rows[i]))[:2]  # these have the most pads
        allowed = 1e-3 if self.weights.dtype == torch.float32 else 0.1
        for i in shortest:
            (alone,) = self._batch([rows[i]])
            if abs(alone - together[i]) > allowed * max(1.0, abs(alone)):
                raise PobenchError(
                    f"reward model {self.name!r}: an answer's reward is {alone:.4g} alone and {together[i]:.4g} beside longer "
                    "ones: this model does not leave pads out; set batch_size=1 in the judge's settings"
                )
        return True

    def judge_many(self, comparisons: Sequence[Comparison], progress: Progress | None = None) -> list[Verdict]:
        """The verdict σ(r_b − r_a) of each comparison; the same in both orders."""
        distinct = {_key(c.prompt, text): (c.prompt, text) for c in comparisons for text in (c.a, c.b)}
        reward = dict(zip(distinct, self._read(list(distinct.values()), progress), strict=True))
        return [_verdict(reward[_key(c.prompt, c.a)], reward[_key(c.prompt, c.b)]) for c in comparisons]

    def judge(self, prompt: Prompt, a: str, b: str) -> float:
        """P(b is better)."""
        return self.judge_many([Comparison(prompt, a, b)])[0].probability

    def _tokens(self, prompt: Prompt, text: str) -> tuple[int, ...]:
        return self.chat.whole_ids([*messages(prompt), {"role": "assistant", "content": text}])


def _key(prompt: Prompt, text: str) -> str:
    return repr((messages(prompt), text))


def _finite(value: float) -> Reward:
    if math.isfinite(value):
        return Reward(value)
    return Reward(math.nan, f"the model computes a reward of {value}; another precision may hold its numbers")


def _verdict(a: Reward, b: Reward) -> Verdict:
    if error := a.error or b.error:
        return Verdict(math.nan, error=error)
    difference = b.value - a.value
    p = 1 / (1 + math.exp(-difference)) if difference >= 0 else 1 - 1 / (1 + math.exp(difference))
    return Verdict(p, p, p)


@register_judge("reward_model", runtime=("batch_size",), free=True, compares=True)
def reward_model(
    *,
    model: str = "",
    revision: str | None = None,
    batch_size: Count = 8,
    precision: Precision = "auto",
    trust_remote_code: bool = False,
) -> RewardModel:
    """A reward model on this machine: ranks answers by raw reward, and compares two by σ of the difference.

    model: a folder or hub name of a sequence classifier with one output and a chat template. trust_remote_code: run code
    that comes with the model.
    """
    return RewardModel(Weights(model, revision, precision, trust_remote_code), batch_size)
