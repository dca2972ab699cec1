"""A pair read as a list of two answers, or as two labelled answers: what losses of lists and of answers get of pairs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from pobench.types import AnswerOutput, ListOutput, LossOutput, Pair, Responses, SequenceLogps


def as_list(pair: Pair) -> Responses:
    """Each pair as a list of two: chosen, of rank 1, and rejected, of rank 2."""
    total, length = (torch.stack(sides, dim=1) for sides in zip(*pair, strict=True))
    rank = torch.tensor([1, 2], device=total.device).expand(total.shape)
    return Responses(total, length, rank, torch.ones_like(rank, dtype=torch.bool))


def as_answers(pair: Pair) -> SequenceLogps:
    """(2 × pairs,) answers in the order chosen, rejected, chosen, …"""
    return SequenceLogps(*(torch.stack(sides, dim=1).flatten() for sides in zip(*pair, strict=True)))


def given_in(unit: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """The inputs of a loss of lists or of answers, made of those of pairs.

    unit: "lists" or "answers". given: the fields of `pobench.types.Inputs` by their names.
    """
    read = as_list if unit == "lists" else as_answers
    first, frozen = read(given["policy"]), given.get("reference")
    reference = None if frozen is None else read(frozen)
    if unit == "lists":
        return {"responses": first, "reference": reference, "scores": given.get("scores")}
    label = torch.tensor([True, False], device=first.total.device).repeat(len(first.total) // 2)
    return {"response": first, "label": label, "reference": reference, "kl": given.get("kl")}


def of_pairs(output: ListOutput | AnswerOutput) -> LossOutput:
    """What a loss of lists or of answers gave, by pair: a list's loss, or the mean of the two answers' losses."""
    if isinstance(output, ListOutput):
        return LossOutput(output.loss, *output.rewards.unbind(1))
    return LossOutput(output.loss.view(-1, 2).mean(1), output.reward[0::2], output.reward[1::2])
