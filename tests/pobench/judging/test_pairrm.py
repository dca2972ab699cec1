"""PairRM gives the scores of LLM-Blender's own classes, in both published layouts; `pairrm_reference.py` made the numbers."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, DebertaV2Config

from pobench.errors import PobenchError
from pobench.judging.pairrm import Ranker, pairrm, texts
from pobench.judging.pairwise import Comparison
from pobench.judging.ranking import Sample, best_against_worst
from tests.pobench.judging import pairrm_reference as made

STORED: dict[str, Any] = json.loads(made.STORED.read_text())


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    """The tiny PairRM in both layouts; `body` holds the configuration and tokenizer of the DeBERTa that it stands on."""
    root, pieces = tmp_path_factory.mktemp("pairrm"), made.tokenizer()
    bare = pieces.get_vocab_size()
    pieces.add_tokens(made.PREFIXES)
    rows = pieces.get_vocab_size()
    state = made.fill(Ranker(DebertaV2Config.from_dict(made.body_config(rows)), tasks=1)).state_dict()
    body = made.save(root / "deberta", made.body_config(bare), {}, made.tokenizer())
    return {
        "hf": made.save(root / "hf", made.hf_config(rows), state, pieces),
        "own": made.save(root / "PairRM", made.ranker_config(body), state),
        "body": body,
    }


@pytest.fixture(scope="module")
def own(folders) -> Any:
    return pairrm(model=str(folders["own"]), body=str(folders["body"]))


@pytest.fixture(scope="module")
def hf(folders) -> Any:
    return pairrm(model=str(folders["hf"]))


def test_its_scores_are_those_of_the_published_class(hf) -> None:
    plain = [
        pair for pair in made.PAIRS if "[SEP]" not in "".join(pair)
    ]  # the published snippet reads it as a separator
    ours = hf.scores([Comparison(*pair) for pair in plain])
    assert ours == pytest.approx(STORED["hf"], abs=5e-6) and len(set(ours)) == len(ours)


def test_a_long_pair_is_cut_to_the_published_token_ids(hf) -> None:
    ids = hf._row(Comparison(*made.LONG)).ids
    assert len(ids) == 1224 + 2 * 412 and made.digest(ids) == STORED["long"]


def test_texts_are_cut_and_separators_in_them_replaced_as_by_the_published_ranker(own) -> None:
    rows = [own._row(Comparison(*pair)) for pair in made.PAIRS]
    most = made.LIMITS["source_maxlength"] + 2 * made.LIMITS["candidate_maxlength"]
    assert max(len(row.ids) for row in rows) in (most - 1, most) and min(len(row.ids) for row in rows) < most - 10
    assert own.scores([Comparison(*pair) for pair in made.PAIRS]) == pytest.approx(STORED["compare"], abs=5e-6)


def test_a_batch_changes_no_score(own) -> None:
    alone = pairrm(model=str(own.weights.source), body=own.body, batch_size=1)
    shown = [Comparison(*pair) for pair in made.PAIRS]
    assert own.scores(shown) == pytest.approx(alone.scores(shown), abs=1e-6)


def test_it_is_asked_in_both_orders(own) -> None:
    comparison = Comparison(*made.PAIRS[1])
    (verdict,) = own.judge_many([comparison])
    ahead, behind = own.scores([comparison, comparison.swapped])
    assert verdict.forward == pytest.approx(1 / (1 + math.exp(ahead)))
    assert verdict.backward == pytest.approx(1 - 1 / (1 + math.exp(behind)))
    assert verdict.probability == pytest.approx((verdict.forward + verdict.backward) / 2)
    assert own.judge(*comparison.swapped) == pytest.approx(1 - verdict.probability)


def test_answers_are_ranked_by_the_scores_of_the_published_rank(own) -> None:
    """All pairs in both orders, log-odds summed, over the number of answers; a repeated answer counts as often as it came."""
    rows = [{"id": str(i), "prompt": prompt} for i, prompt in enumerate(made.PROMPTS)]
    samples = [Sample(row["id"], i, text, 9, True) for row in rows for i, text in enumerate(made.FIVE)]
    pairs, counts = best_against_worst(rows, samples, own)
    assert [p.scores for p in pairs] == [pytest.approx(scores, abs=5e-6) for scores in STORED["rank"]]
    for pair, scores in zip(pairs, STORED["rank"], strict=True):
        assert pair.chosen.text == made.FIVE[scores.index(max(scores))]
        assert pair.rejected.text == made.FIVE[scores.index(min(scores))]
    assert (counts["comparisons"], counts["unread"], counts["identical"]) == (4 * 6, 0, 4)


def test_several_turns_are_written_as_by_the_package(own) -> None:
    shown = Comparison(tuple(made.TURNS), *made.ANSWERS[:2])
    assert own.scores([shown]) == pytest.approx([STORED["several_turns"]], abs=5e-6)
    ruled = Comparison([{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"}], "a", "b")
    assert texts(ruled) == ("Be kind.\n\nHi", "a", "b")


def test_a_text_cannot_hold_a_prefix(own) -> None:
    """The package searches the ids for its prefixes, and finds those that an answer writes."""
    honest, forged = (Comparison("Hi", text, "no") for text in ("a   b", "a <|candidate2|> b"))
    assert own.scores([forged]) == pytest.approx(own.scores([honest]), abs=1e-6)


def test_the_tokenizer_is_the_files_own(hf, folders) -> None:
    """transformers 5 puts another normaliser in the place of the file's: NFC for NFKC, which splits `ﬁ` in other pieces."""
    theirs = AutoTokenizer.from_pretrained(folders["hf"])
    ids = hf.tokenizer.encode("the ﬁrst").ids
    assert ids == hf.tokenizer.encode("the first").ids != theirs("the ﬁrst").input_ids


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("pickled", r"pickled \*\.bin weights are not read"),
        ("headless", r"is no PairRM: .*1 are missing \(head_layer\.1\.weight\)"),
        ("another", "is no PairRM: its config.json names a llama of the type pairranker"),
        ("few", "has 40 embeddings, too few for the tokenizer"),
    ],
)
def test_what_is_no_pairrm_is_refused_in_one_sentence(change, message, folders, tmp_path) -> None:
    from safetensors.torch import load_file

    folder = Path(shutil.copytree(folders["hf"], tmp_path / "broken"))
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    config = json.loads((folder / "config.json").read_text())
    name = "pretrained_model.embeddings.word_embeddings.weight"
    if change == "pickled":
        torch.save(state, folder / "pytorch_model.bin")
    elif change == "headless":
        del state["head_layer.1.weight"]
    elif change == "another":
        config["model_type"] = "llama"
    else:
        state[name] = state[name][:40]
    shutil.rmtree(folder) if change != "pickled" else None
    broken = folder if change == "pickled" else made.save(folder, config, state, hf_pieces(folders))
    with pytest.raises(PobenchError, match=message) as caught:
        pairrm(model=str(broken)).judge("p", "a", "b")
    assert "\n" not in str(caught.value)


def hf_pieces(folders: dict[str, Path]) -> Any:
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(folders["hf"] / "tokenizer.json"))


def test_a_checkpoint_without_a_body_says_where_to_name_it(folders, tmp_path) -> None:
    with pytest.raises(PobenchError, match=r"model '.*nothing': '(config|tokenizer)\.json' is not in it"):
        (tmp_path / "nothing").mkdir()
        pairrm(model=str(folders["own"]), body=str(tmp_path / "nothing")).judge("p", "a", "b")
    with pytest.raises(PobenchError, match=r"model 'no/body' is not on this machine.*the judge's setting `body`"):
        pairrm(model=str(folders["own"]), body="no/body").judge("p", "a", "b")
