"""Several data sets are mixed by their weights, and a pair keeps its source."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pobench.cli.data import audit
from pobench.data.mixture import interleaved, mixture
from pobench.data.pairs_folder import PairsFolder
from pobench.data.prepare import prepare, read_sources
from pobench.data.token_rows import TokenRows
from pobench.errors import PobenchError
from pobench.runs.cost import estimate_cost
from pobench.runs.plan import make_plan
from pobench.settings.resolve import parse_overrides, resolve
from pobench.types import TokenPair

SOURCES = st.lists(st.tuples(st.integers(1, 60), st.floats(0.2, 5)), min_size=1, max_size=4)
STOPPING = st.sampled_from(["first_exhausted", "all_exhausted"])


@given(sources=SOURCES, stopping=STOPPING)
@settings(max_examples=100)
def test_after_any_number_of_pairs_each_share_is_the_weights_to_one_pair(sources: Any, stopping: Any) -> None:
    sizes, weights = zip(*sources, strict=True)
    taken, numbers = interleaved(sizes, weights, stopping)
    counts = [np.cumsum(taken == source) for source in range(len(sizes))]
    for source, weight in enumerate(weights):
        exact = np.arange(1, len(taken) + 1) * weight / sum(weights)
        assert (np.abs(counts[source] - exact) <= len(sizes)).all()
        assert numbers[taken == source].tolist() == list(range(int(counts[source][-1]) if len(taken) else 0))
    last = [int(count[-1]) if len(taken) else 0 for count in counts]
    if stopping == "first_exhausted":
        assert all(n <= size for n, size in zip(last, sizes, strict=True))
        assert any(n == size for n, size in zip(last, sizes, strict=True))
    else:
        assert all(n >= size for n, size in zip(last, sizes, strict=True))


@pytest.mark.parametrize("stopping", ["first_exhausted", "all_exhausted"])
def test_as_many_are_taken_as_by_the_library_that_draws(stopping: Any) -> None:
    from datasets import Dataset, interleave_datasets

    sizes, weights = [400, 300], [3.0, 1.0]
    drawn = interleave_datasets(
        [Dataset.from_dict({"source": [i] * size}) for i, size in enumerate(sizes)],
        probabilities=[0.75, 0.25],
        seed=0,
        stopping_strategy=stopping,
    )["source"]
    taken, _ = interleaved(sizes, weights, stopping)
    for source, weight in enumerate((0.75, 0.25)):
        error = (
            4 * math.sqrt(0.75 * 0.25 * len(taken)) + 4 * math.sqrt(len(taken)) * weight
        )  # of a draw, and where it stops
        assert abs(list(drawn).count(source) - int((taken == source).sum())) < error


def rows_of(counts: dict[str, int]) -> TokenRows[TokenPair]:
    rows = [
        TokenPair(f"{name}/{i}", (1, i), (2, i), (3,), None, name)
        for name, count in counts.items()
        for i in range(count)
    ]
    return TokenRows.of(TokenPair, rows)


@given(a=st.integers(1, 30), b=st.integers(1, 30), weight=st.floats(0.2, 5), stopping=STOPPING, most=st.integers(1, 30))
@settings(max_examples=60)
def test_a_smaller_mixture_is_part_of_a_larger_one_and_ids_stay_different(
    a: int, b: int, weight: float, stopping: Any, most: int
) -> None:
    rows, weights = rows_of({"a": a, "b": b}), {"a": weight, "b": 1.0}
    whole, part = (mixture(rows, weights, stopping, n, 0) for n in (None, most))
    ids = list(whole.ids)
    assert len(set(ids)) == len(ids) and set(part.ids) <= set(ids) and len(part) == min(most, len(whole))
    assert all(pair.id.partition("/")[0] == pair.source for pair in whole)
    if stopping == "all_exhausted":
        assert {pair.prompt for pair in whole} == {pair.prompt for pair in rows}
    other = mixture(rows, weights, stopping, most, 1)
    assert Counter(other.column("source")) == Counter(part.column("source"))  # the seed decides which, not how many


# ---------------------------------------------------------------- from settings to pairs


@pytest.fixture
def sources(setting: Any, tmp_path: Path) -> str:
    """Two files of 24 and 12 pairs, of which two prompts are the same; the text of `data.sources`. The second has another
    column for its prompt."""
    row = {"chosen": "w1 w2", "rejected": "w3"}
    for name, count, column in (("web", 24, "prompt"), ("books", 12, "question_asked")):
        start = {"web": 0, "books": 22}[name]
        rows = [{"id": str(i), column: f"say w{start + i}", **row} for i in range(count)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    web, books = (tmp_path / f"{name}.jsonl" for name in ("web", "books"))
    return f"[{{source: {web}, weight: 1}}, {{source: {books}, weight: 1, columns: {{prompt: question_asked}}}}]"


def job_of(tmp_path: Path, *sets: str) -> Any:
    return resolve(str(tmp_path / "small.yaml"), "simpo", overrides=parse_overrides(sets))[0]


def test_a_pair_keeps_its_source_from_the_file_to_the_folder(sources: str, tmp_path: Path) -> None:
    job = job_of(tmp_path, f"data.sources={sources}")
    prepared = prepare(job)
    PairsFolder(tmp_path / "stored").store(prepared, {})
    loaded = PairsFolder(tmp_path / "stored").load()
    assert loaded.train == prepared.train and loaded.heldout == prepared.heldout
    everything = [*prepared.train, *prepared.heldout]
    texts = {read.name: {p.id: p.prompt for p in read.items.pairs} for read in read_sources(job)}
    assert all(
        pair.prompt == texts[pair.source][pair.id] and pair.id.startswith(f"{pair.source}/") for pair in everything
    )
    counts = Counter(prepared.train.column("source"))
    assert abs(counts["web"] - counts["books"]) <= 1 and set(counts) == {"web", "books"}
    assert {p.prompt for p in prepared.train}.isdisjoint(p.prompt for p in prepared.heldout)  # of both sources
    lines = prepared.audit.set_index("fault")["count"]
    assert (lines["web: rows read"], lines["books: rows read"]) == (24, 12)
    assert lines["books: used for training"] == counts["books"]
    assert f"web 1: {counts['web']} pairs of" in prepared.text()


def test_sources_without_weights_give_all_their_pairs(sources: str, tmp_path: Path) -> None:
    text = sources.replace(", weight: 1", "")
    prepared = prepare(job_of(tmp_path, f"data.sources={text}"))
    assert len(prepared.train) + len(prepared.heldout) == 36
    some = prepare(job_of(tmp_path, f"data.sources={text}", "data.max_pairs=10"))
    assert len(some.train) == 10 and set(some.train.ids) <= set(prepared.train.ids)


def test_weights_name_the_pairs_and_places_do_not(sources: str, tmp_path: Path) -> None:
    def names(text: str) -> tuple[str, str]:
        plan = make_plan([job_of(tmp_path, f"data.sources={text}")], tmp_path / "runs", ("train",))
        assert plan.pairs is not None and estimate_cost(plan.tasks, None).memory is not None
        return plan.pairs.folder.path.name, plan.tasks[-1].run

    (tmp_path / "moved").mkdir()
    (tmp_path / "moved" / "web.jsonl").write_bytes((tmp_path / "web.jsonl").read_bytes())
    moved = sources.replace(str(tmp_path / "web.jsonl"), str(tmp_path / "moved" / "web.jsonl"))
    heavier = sources.replace("weight: 1", "weight: 3", 1)
    assert names(sources) == names(moved)
    assert names(heavier)[0] != names(sources)[0] and names(heavier)[1] != names(sources)[1]


def test_faults_of_sources_are_listed_together_with_the_nearest_names(sources: str, tmp_path: Path) -> None:
    given = {
        "[{sorce: a.jsonl}]": [
            "data.sources.0.source: missing",
            "data.sources.0.sorce: unknown key; did you mean 'source'?",
        ],
        "[{source: a.jsonl, columns: {promt: x}}]": ["data.sources.0.columns", "did you mean 'prompt'?"],
        "[{source: x/a.jsonl}, {source: y/a.jsonl}]": ["two sources are called 'a'; give each a name"],
        "[{source: a.jsonl, weight: 1}, {source: b.jsonl}]": ["no weight of b"],
        "[{source: a.jsonl, weight: -1}]": ["data.sources.0.weight: got -1"],
        "[{source: a.jsonl, name: 'x/y'}]": ["'x/y' cannot be a name"],
    }
    for text, expected in given.items():
        with pytest.raises(PobenchError) as error:
            job_of(tmp_path, f"data.sources={text}")
        assert all(part in str(error.value) for part in expected), error.value
    with pytest.raises(PobenchError, match=r"data\.source: got 'a\.jsonl'; `data\.sources` names the data already"):
        job_of(tmp_path, f"data.sources={sources}", "data.source=a.jsonl")
    with pytest.raises(PobenchError, match=r"data\.split: got 'test'; `data\.sources` names several data sets"):
        job_of(tmp_path, f"data.sources={sources}", "data.split=test")
    with pytest.raises(PobenchError, match=r"(?s)'none\.jsonl': no such file.*'no\.jsonl': no such file"):
        read_sources(job_of(tmp_path, "data.sources=[{source: none.jsonl}, {source: no.jsonl}]"))


def test_one_source_takes_the_place_of_several_and_several_of_one(sources: str, tmp_path: Path) -> None:
    several = json.dumps({"data": {"sources": [{"source": "a.jsonl"}, {"source": "b.jsonl"}]}, "extends": "small.yaml"})
    (tmp_path / "several.yaml").write_text(several)
    job = resolve(str(tmp_path / "several.yaml"), "simpo")[0]
    assert [part.name for part in job.data.parts] == ["a", "b"] and job.data.source == ""
    one = resolve(str(tmp_path / "several.yaml"), "simpo", overrides={"data.source": "c.jsonl"})[0]
    again = resolve(str(tmp_path / "several.yaml"), "simpo", data="c.jsonl")[0]
    assert [part.source for job in (one, again) for part in job.data.parts] == ["c.jsonl", "c.jsonl"]


def test_the_audit_of_a_setting_shows_every_source(sources: str, tmp_path: Path, capsys: Any) -> None:
    audit(None, setting=str(tmp_path / "small.yaml"), model=None, characters=True, sets=[f"data.sources={sources}"])
    printed = capsys.readouterr().out
    assert "web, weight 1:" in printed and "books, weight 1:" in printed and "12 rows" in printed
