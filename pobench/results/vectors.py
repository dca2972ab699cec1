"""A run's numbers by prompt and by pair: all that metrics are computed from, without texts and without a row for each answer.

An answer's numbers are averaged over the samples of its prompt, so a run of any number of samples is a few vectors:

    pair        accuracy, margin, kl, chosen, rejected, chosen_shift, rejected_shift, chosen_length
    prompt      tokens, words, repeated, distinct_2, unfinished
    judge0, …   score, grade, flipped, longer of the first judge, of the second, …

Each of these UNITS has names in order, of pairs or prompts. Names are known by a digest of their content, so that runs that
answered the same prompts share one list of them.
"""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pobench.columns import FRAMES
from pobench.results import pair_values, stats
from pobench.results.arms import judges_of
from pobench.results.groups import labels, pair_groups, prompt_groups
from pobench.results.stats import Floats

NEEDS = {
    "heldout": (
        *("run", "pair", "chosen_logp", "rejected_logp", "chosen_length", "rejected_length", "reference_chosen_logp"),
        *("reference_rejected_logp", "chosen_reward", "rejected_reward"),
    ),
    "answers": ("run", "prompt", "sample", "kind", "topic", "text", "tokens", "finished"),
    "verdicts": ("run", "prompt", "sample", "judge", "score", "grade", "against", "flipped", "longer"),
}
_OF_PAIR: dict[str, Callable[[pd.DataFrame], Any]] = {
    "accuracy": lambda held: stats.outcomes(held["chosen_reward"], held["rejected_reward"]),
    "margin": pair_values.margin,
    "kl": pair_values.kl,
    "chosen": lambda held: pair_values.per_token(held, "chosen"),
    "rejected": lambda held: pair_values.per_token(held, "rejected"),
    "chosen_shift": lambda held: pair_values.change_per_token(held, "chosen"),
    "rejected_shift": lambda held: pair_values.change_per_token(held, "rejected"),
    "chosen_length": lambda held: held["chosen_length"],
}


class Names:
    """Names of pairs or prompts, or what a list of prompts is about; equal where their content is."""

    def __init__(self, digest: str, array: NDArray[np.str_]) -> None:
        self.digest, self.array = digest, array

    def __hash__(self) -> int:
        return hash(self.digest)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Names) and self.digest == other.digest


class Vectors:
    """One run's vectors. arrays: `<unit>/<name>` → (names,) numbers, and `<unit>/<list>-<digest>` → a list of names; they are
    taken from the mapping when they are asked for."""

    def __init__(self, run: str, arrays: Mapping[str, NDArray[Any]]) -> None:
        self.run, self._arrays = run, arrays
        listed = [key.rpartition("-") for key in arrays if "-" in key]
        self._lists = {name: digest for name, _, digest in listed}

    def __contains__(self, unit: str) -> bool:
        return f"{unit}/names" in self._lists

    def numbers(self, unit: str, name: str) -> Floats:
        """(names,) nan where there is none."""
        return np.asarray(self._arrays[f"{unit}/{name}"], dtype=float)

    def names(self, unit: str, of: str = "names") -> Names:
        """The unit's names; of the prompts also their `kind` and `topic`."""
        key = f"{unit}/{of}"
        digest = self._lists[key]
        if digest not in _SHARED:
            while len(_SHARED) >= 256:
                _SHARED.pop(next(iter(_SHARED)))
            _SHARED[digest] = Names(digest, self._arrays[f"{key}-{digest}"])
        return _SHARED[digest]

    @functools.cached_property
    def judges(self) -> list[str]:
        """By name, the main one first."""
        return list(self.names("judges").array) if "judges" in self else []

    def judged_by(self, judge: str) -> str | None:
        """The unit of a judge's verdicts, None where it gave none."""
        return f"judge{self.judges.index(judge)}" if judge in self.judges else None

    def compares(self, judge: str) -> bool:
        """Whether the judge set answers beside others."""
        unit = self.judged_by(judge)
        return unit is not None and bool(self._arrays[f"{unit}/compares"])


_SHARED: dict[str, Names] = {}  # digest → the list that runs share


def vectors_of(frames: Mapping[str, pd.DataFrame]) -> dict[str, NDArray[Any]]:
    """The arrays of `Vectors` of one run. frames: its `heldout`, `answers` and `verdicts`, by `typed`."""
    arrays: dict[str, NDArray[Any]] = {}
    held, answers, verdicts = (frames[name] for name in NEEDS)
    if len(held):
        place, n = _put_names(arrays, "pair", held["pair"])
        arrays |= {f"pair/{name}": _cells(value(held), place, n) for name, value in _OF_PAIR.items()}
    if len(answers):
        place, n = _put_names(arrays, "prompt", answers["prompt"])
        first = answers.drop_duplicates("prompt").set_index("prompt")
        for of in ("kind", "topic"):
            _put(arrays, f"prompt/{of}", first[of].loc[np.unique(answers["prompt"].to_numpy(object))])
        arrays |= {f"prompt/{name}": values for name, values in _of_answers(answers, place, n).items()}
    judges = judges_of(verdicts)
    if judges:
        _put(arrays, "judges/names", pd.Series(judges, dtype=object))
    for k, judge in enumerate(judges):
        own = verdicts[verdicts["judge"] == judge]
        place, n = _put_names(arrays, f"judge{k}", own["prompt"])
        arrays[f"judge{k}/score"] = own["score"].groupby(place).mean().to_numpy()
        arrays |= {f"judge{k}/{name}": _cells(own[name], place, n) for name in ("grade", "flipped", "longer")}
        arrays[f"judge{k}/compares"] = np.array(bool((own["against"] != "").any()))
    return arrays


def typed(frames: Mapping[str, pd.DataFrame], name: str) -> pd.DataFrame:
    """The frame with every column that vectors need; numbers as floats, infinities as missing."""
    stored = frames.get(name)
    frame = pd.DataFrame() if stored is None else stored.reset_index(drop=True)
    frame = frame.reindex(columns=list(NEEDS[name]))
    types = {column.name: column.type for column in FRAMES[name].columns}
    for column in frame.columns:
        if types[column] == "text":
            values = frame[column].to_numpy(object)
            texts = [value if type(value) is str else "" if pd.isna(value) else str(value) for value in values]
            frame[column] = pd.Series(texts, index=frame.index, dtype=object)  # text may be broken Unicode
        elif types[column] != "bool":
            frame[column] = (
                pd.to_numeric(frame[column], errors="coerce").astype(float).replace([np.inf, -np.inf], np.nan)
            )
    for length in ("chosen_length", "rejected_length"):
        if length in frame:
            frame[length] = frame[length].where(frame[length] > 0)
    return frame


def in_memory(frames: Mapping[str, pd.DataFrame]) -> dict[str, Vectors]:
    """run → its vectors, of frames that hold all of them."""
    of_frame = {name: typed(frames, name) for name in NEEDS}
    rows = {name: frame.groupby("run", sort=False).indices for name, frame in of_frame.items()}
    runs = dict.fromkeys(run for indices in rows.values() for run in indices)
    nothing = np.empty(0, dtype=int)

    def of_run(run: Any) -> dict[str, pd.DataFrame]:
        return {
            name: frame.iloc[rows[name].get(run, nothing)].reset_index(drop=True) for name, frame in of_frame.items()
        }

    return {str(run): Vectors(str(run), vectors_of(of_run(run))) for run in runs}


def _put(arrays: dict[str, NDArray[Any]], key: str, names: pd.Series) -> None:
    array = names.to_numpy(object).astype(str)
    digest = hashlib.sha256(array.tobytes() + str(array.dtype).encode()).hexdigest()[:16]
    arrays[f"{key}-{digest}"] = array


def _put_names(arrays: dict[str, NDArray[Any]], unit: str, members: pd.Series) -> tuple[NDArray[np.int_], int]:
    """Each row's place among the unit's names, and how many names there are."""
    names, place = np.unique(members.to_numpy(object).astype(str), return_inverse=True)
    _put(arrays, f"{unit}/names", pd.Series(names, dtype=object))
    return place, len(names)


def _cells(values: Any, place: NDArray[np.int_], n: int) -> Floats:
    """(n,) the mean of the values at each place; nan where none is there."""
    v = np.asarray(values, dtype=float)
    there = ~np.isnan(v)
    count = np.bincount(place[there], minlength=n).astype(float)
    total = np.bincount(place[there], v[there], minlength=n)
    return np.divide(total, count, out=np.full(n, np.nan), where=count > 0)


# ---------------------------------------------------------------- texts
def ngrams(words: list[str], n: int) -> list[tuple[str, ...]]:
    """Every n words that stand beside each other."""
    return list(zip(*(words[i:] for i in range(n)), strict=False))


def repeated_share(words: list[str]) -> float:
    """The share of 4-grams that stood earlier among the words; nan below four words."""
    grams = ngrams(words, 4)
    return 1 - len(set(grams)) / len(grams) if grams else math.nan


def _of_answers(answers: pd.DataFrame, place: NDArray[np.int_], n: int) -> dict[str, Floats]:
    words = [str(text).casefold().split() for text in answers["text"]]
    ended = pd.to_numeric(answers["finished"].astype("object").map({True: 1.0, False: 0.0}), errors="coerce")
    bigrams: list[list[tuple[str, ...]]] = [[] for _ in range(n)]
    for k, own in zip(place.tolist(), words, strict=True):
        bigrams[k] += ngrams(own, 2)
    return {
        "tokens": _cells(answers["tokens"], place, n),
        "words": _cells([len(own) for own in words], place, n),
        "repeated": _cells([repeated_share(own) for own in words], place, n),
        "distinct_2": np.array([len(set(grams)) / len(grams) if grams else math.nan for grams in bigrams]),
        "unfinished": _cells(1.0 - ended, place, n),
    }


# ---------------------------------------------------------------- of several runs
def table_of(
    columns: Sequence[tuple[Names, Floats]], groups: Callable[[Names], NDArray[np.int_] | None]
) -> tuple[Floats, NDArray[np.int_] | None]:
    """((names, runs) the numbers of several runs about the same names, without names and runs that have none, and the number
    of each name's group). columns: (names, numbers) of each run. groups: of all names."""
    columns = [(names, numbers) for names, numbers in columns if not np.isnan(numbers).all()]
    if not columns:
        return np.empty((0, 0)), None
    names = columns[0][0]
    if any(other != names for other, _ in columns):
        every = np.unique(np.concatenate([own.array for own, _ in columns]))
        names = Names(hashlib.sha256(every.tobytes() + str(every.dtype).encode()).hexdigest()[:16], every)
    table = np.full((len(names.array), len(columns)), np.nan)
    for k, (own, numbers) in enumerate(columns):
        table[slice(None) if own == names else np.searchsorted(names.array, own.array), k] = numbers
    kept = ~np.isnan(table).all(axis=1)
    group = groups(names)
    return table[kept], None if group is None else np.unique(group[kept], return_inverse=True)[1]


@functools.lru_cache(maxsize=64)
def groups_of_pairs(names: Names) -> NDArray[np.int_] | None:
    """The number of each pair's prompt, None where no two share one."""
    return _codes(names, pair_groups(names.array))


Asked = tuple[Names, Names, Names]  # prompts, their kinds, their topics


@functools.lru_cache(maxsize=64)
def topics_of(asked: tuple[Asked, ...]) -> pd.Series | None:
    """`prompt_groups` of several lists of prompts."""
    parts = (zip(*(names.array for names in lists), strict=True) for lists in asked)
    return prompt_groups(pd.DataFrame([row for part in parts for row in part], columns=["prompt", "kind", "topic"]))


@functools.lru_cache(maxsize=64)
def groups_of_prompts(names: Names, asked: tuple[Asked, ...]) -> NDArray[np.int_] | None:
    """The number of each prompt's topic, None where topics are no groups."""
    return _codes(names, topics_of(asked))


def asked_in(runs: Sequence[Vectors]) -> tuple[Asked, ...]:
    """What the runs answered, each list once."""
    lists: Iterator[Asked] = (
        (v.names("prompt"), v.names("prompt", "kind"), v.names("prompt", "topic")) for v in runs if "prompt" in v
    )
    return tuple(dict.fromkeys(lists))


def _codes(names: Names, groups: pd.Series | None) -> NDArray[np.int_] | None:
    of_names = labels(pd.Series(names.array.astype(object), dtype=object), groups)
    return None if of_names is None else np.unique(of_names.to_numpy(object).astype(str), return_inverse=True)[1]
