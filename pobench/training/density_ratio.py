"""Density ratios of prompts: how much more often a prompt has a desirable answer than an undesirable one, as a classifier
estimates it from the prompt's embedding. BCO weighs undesirable answers by them (Jung et al. 2024, arXiv 2404.04656).

The classifier is a logistic regression in which both kinds of answers weigh the same, so that p / (1 - p) is the ratio of the
two densities of prompts. Each prompt's ratio is that of a classifier which was fit on other prompts: with hundreds of features,
one that has seen the prompt knows its label, whatever the densities. A folder holds the ratios of one data set:

    ratios-<digest>.safetensors   keys (prompts, 32) bytes, sorted, and log_ratios (prompts,) fp64 nats
    density_ratio.json            causes, facts (counts, the classifier's quality, quantiles), seconds, the file and its sha256;
                                  written last
"""

from __future__ import annotations

import hashlib
import json
import math
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load as tensors_of
from safetensors.torch import save as bytes_of
from torch import Tensor

from pobench.errors import CorruptError, PobenchError
from pobench.files import checked_bytes, marker_with, sealed, write_bytes
from pobench.training.reference import token_bytes
from pobench.types import TokenAnswer

MARKER = "density_ratio.json"
FOLDS = 5  # parts of the prompts; each part's ratios are those of a classifier of the others
MOST = 20_000  # prompts that a classifier is fit on
ITERATIONS = 1000  # of its optimiser
FAR = 30.0  # nats, beyond which a ratio is cut, so that it is finite in fp32
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
LOW, HIGH = 0.5, 10.0  # between which BCO clips, by TRL's defaults
ANEW = "delete its folder, and the ratios are computed anew"

Prompt = tuple[int, ...]  # token ids


def prompt_key(prompt: Sequence[int]) -> bytes:
    """sha256 over its token ids."""
    return hashlib.sha256(token_bytes(prompt)).digest()


class DensityRatios:
    """The ratios of a data set's prompts. facts: as the marker has them."""

    def __init__(self, log_ratios: Mapping[bytes, float], facts: Mapping[str, Any] | None = None) -> None:
        """log_ratios: by `prompt_key`, nats."""
        self._log_ratios, self.facts = log_ratios, dict(facts or {})

    @classmethod
    def load(cls, folder: Path) -> DensityRatios:
        """Raises CorruptError where the folder is not finished, or its bytes are not those that were stored."""
        about = about_density_ratio(folder)
        if about is None:
            raise CorruptError(folder / MARKER, "there is none: the density ratios were not computed")
        path = folder / about["file"]
        try:
            tensors = tensors_of(checked_bytes(path, about["sha256"]))
            keys, values = tensors["keys"].numpy().tobytes(), tensors["log_ratios"].tolist()
        except (SafetensorError, KeyError) as error:
            raise CorruptError(path, f"it holds no density ratios ({error}); {ANEW}") from None
        size = len(keys) // max(1, len(values))
        found = {keys[i * size : (i + 1) * size]: value for i, value in enumerate(values)}
        return cls(found, about["facts"])

    def of(self, prompts: Iterable[Sequence[int]]) -> Tensor:
        """(prompts,) fp64, above 0. Raises PobenchError for a prompt without one."""
        values = [self._log_ratios.get(prompt_key(prompt)) for prompt in prompts]
        if missing := values.count(None):
            raise PobenchError(
                f"{missing} of {len(values)} prompts have no density ratio among {len(self._log_ratios)}"
            )
        return torch.tensor(values, dtype=torch.float64).clamp(-FAR, FAR).exp()


def about_density_ratio(folder: Path) -> dict[str, Any] | None:
    """The marker of a finished folder; None if the ratios are not computed. Raises CorruptError for one that cannot be read."""
    needed = {"causes": dict, "facts": dict, "file": str, "sha256": str}
    return marker_with(folder / MARKER, needed, f"it does not describe density ratios; {ANEW}")


def facts_text(facts: Mapping[str, Any]) -> str:
    """What is known of a data set's density ratios, for people."""
    counts = (
        f"{facts['desirable']} desirable and {facts['undesirable']} undesirable answers to {facts['prompts']} prompts"
    )
    if facts["why_one"]:
        return f"{counts}: {facts['why_one']}, so every density ratio is 1"
    low, _, middle, _, high = facts["quantiles"]
    beyond = f"{facts['below']:.0%} below {LOW:g} and {facts['above']:.0%} above {HIGH:g}, where BCO clips by default"
    unfinished = "" if facts["converged"] else "; the classifier's optimiser had not converged"
    return (
        f"{counts}: the classifier of prompts tells them apart with AUC {facts['auc']:.3f} on prompts that it has not seen "
        f"({facts['folds']} folds, balanced accuracy {facts['accuracy']:.3f}); density ratios of undesirable answers have "
        f"median {middle:.2g}, 5 % to 95 % {low:.2g} to {high:.2g}, {beyond}{unfinished}"
    )


# ---------------------------------------------------------------- the classifier
class Counts(NamedTuple):
    """Distinct prompts in the order of their keys, and how many desirable and undesirable answers each has, (prompts,)."""

    prompts: list[Prompt]
    desirable: np.ndarray
    undesirable: np.ndarray

    @classmethod
    def of(cls, answers: Iterable[TokenAnswer]) -> Counts:
        counts: dict[Prompt, list[int]] = {}
        for answer in answers:
            counts.setdefault(tuple(answer.prompt), [0, 0])[int(not answer.label)] += 1
        prompts = sorted(counts, key=prompt_key)
        both = np.array([counts[prompt] for prompt in prompts], dtype=float).reshape(-1, 2)
        return cls(prompts, both[:, 0], both[:, 1])


def log_ratios(counts: Counts, embeddings: np.ndarray) -> tuple[np.ndarray, dict[str, Any]]:
    """(prompts,) nats, each from a classifier that was fit on other prompts, and the facts on them. embeddings: (prompts,
    features)."""
    folds = _folds(counts)
    values = np.zeros(len(counts.prompts))
    converged = True
    for fold in folds:
        others = np.setdiff1d(np.arange(len(values)), fold)[:MOST]  # the order of the keys is as good as a draw
        classifier = fitted(embeddings[others], counts.desirable[others], counts.undesirable[others])
        values[fold] = classifier.decision_function(embeddings[fold].astype(np.float64))
        converged &= int(classifier.n_iter_[0]) < ITERATIONS
    return values, {**_facts(counts, values, len(folds)), "features": embeddings.shape[1], "converged": converged}


def fitted(embeddings: np.ndarray, desirable: np.ndarray, undesirable: np.ndarray) -> Any:
    """scikit-learn's logistic regression at its defaults, of desirable against undesirable answers of which both kinds together
    weigh the same (`class_weight="balanced"` on a row an answer). desirable, undesirable: (prompts,) numbers of answers."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    sides = [counts * (desirable.sum() + undesirable.sum()) / (2 * counts.sum()) for counts in (desirable, undesirable)]
    weights, labels = np.concatenate(sides), np.repeat([1, 0], len(embeddings))
    rows = np.concatenate([embeddings, embeddings]).astype(np.float64)
    used = weights > 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # said in the facts
        return LogisticRegression(max_iter=ITERATIONS).fit(rows[used], labels[used], sample_weight=weights[used])


def _folds(counts: Counts) -> list[np.ndarray]:
    """Up to `FOLDS` parts of the prompts, each with its share of each kind; [] where the others of a part lack a kind of
    answer, so that no classifier can be fit on them."""
    kinds = (counts.desirable > 0) + 2 * (counts.undesirable > 0)
    part = np.zeros(len(kinds), dtype=int)
    for kind in (1, 2, 3):
        of_kind = np.flatnonzero(kinds == kind)
        part[of_kind] = np.arange(len(of_kind)) % FOLDS
    folds = [np.flatnonzero(part == k) for k in range(FOLDS)]

    def tells(fold: np.ndarray) -> bool:
        return bool(np.delete(counts.desirable, fold).sum() and np.delete(counts.undesirable, fold).sum())

    filled = [fold for fold in folds if len(fold)]
    return filled if all(map(tells, filled)) else []


def _facts(counts: Counts, values: np.ndarray, folds: int) -> dict[str, Any]:
    """values: (prompts,) log-ratios."""
    from sklearn.metrics import roc_auc_score

    sides = [counts.desirable, counts.undesirable]
    about: dict[str, Any] = {
        **dict(zip(("desirable", "undesirable"), (int(side.sum()) for side in sides), strict=True)),
        **{"prompts": len(values), "shared": int(((sides[0] > 0) & (sides[1] > 0)).sum()), "folds": folds},
    }
    if not folds:
        few = "there is one kind of answer alone" if 0 in (about["desirable"], about["undesirable"]) else ""
        return {**about, "why_one": few or "too few prompts to tell the kinds apart"}
    ratios = np.exp(np.clip(values, -FAR, FAR))
    weighed = np.repeat(ratios, counts.undesirable.astype(int))
    labels, scores = np.repeat([1, 0], len(values)), np.concatenate([values, values])
    hits = [np.average(right, weights=side) for right, side in zip((values > 0, values < 0), sides, strict=True)]
    ties = [np.average(values == 0, weights=side) / 2 for side in sides]
    return {
        **about,
        "why_one": "",
        "auc": float(roc_auc_score(labels, scores, sample_weight=np.concatenate(sides))),
        "accuracy": float(np.mean(hits) + np.mean(ties)),
        "quantiles": [float(q) for q in np.quantile(weighed, QUANTILES)],
        "below": float(np.mean(weighed < LOW)),
        "above": float(np.mean(weighed > HIGH)),
    }


# ---------------------------------------------------------------- the pass
def compute_density_ratios(
    folder: Path,
    answers: Iterable[TokenAnswer],
    embed: Callable[[Sequence[Prompt]], Tensor],
    causes: Mapping[str, Any],
) -> dict[str, Any]:
    """Fill `folder`, which the caller names after `causes`, with the ratios of all prompts; nothing where it is finished.
    embed: prompts → (prompts, features); it is not called where no classifier can be fit. Returns the facts."""
    if (about := about_density_ratio(folder)) is not None:
        return dict(about["facts"])
    started, counts = time.monotonic(), Counts.of(answers)
    embeddings = embed(counts.prompts).numpy() if _folds(counts) else np.zeros((len(counts.prompts), 0))
    values, facts = log_ratios(counts, embeddings)
    keys = b"".join(map(prompt_key, counts.prompts))
    data = bytes_of(
        {
            "keys": torch.frombuffer(bytearray(keys), dtype=torch.uint8).view(len(values), -1),
            "log_ratios": torch.from_numpy(values),
        }
    )
    sha256 = hashlib.sha256(data).hexdigest()
    file = f"ratios-{sha256[:12]}.safetensors"
    write_bytes(folder / file, data)
    seconds = math.ceil(10 * (time.monotonic() - started)) / 10
    marker = {"causes": dict(causes), "facts": facts, "seconds": seconds, "file": file, "sha256": sha256}
    write_bytes(folder / MARKER, json.dumps(sealed(marker), indent=1, sort_keys=True).encode())
    return facts
