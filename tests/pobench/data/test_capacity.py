"""What a model cannot read stops a command before anything trains: ids beyond its embeddings, positions beyond its context."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, BloomConfig, GPT2Config, LlamaConfig

from pobench.data.capacity import Capacity, Extent
from pobench.errors import PobenchError
from pobench.files import SEAL
from pobench.runs.plan import make_plan
from pobench.settings.resolve import resolve
from pobench.types import Group

DYNAMIC = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 1e4}


def small_model(folder: Path, **values: Any) -> None:
    about = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**about, **values}))


def plan(tmp_path: Path, *stages: str, **overrides: Any) -> Any:
    (job,) = resolve(str(tmp_path / "small.yaml"), "simpo", overrides=overrides)
    return make_plan([job], tmp_path / "runs", stages)


def test_an_extent_is_the_largest_id_and_the_longest_sequence() -> None:
    assert Extent.of([Group((1, 9), ((3,), (4, 5, 6))), Group((1,), ((2,),))]) == (9, 5)
    assert Extent.of_prompts([(1, 2, 3), (7,)], 10) == (7, 13)
    assert Extent.of_prompts([], 10) == (-1, 0)


@pytest.mark.parametrize(
    ("config", "positions"),
    [
        (GPT2Config(n_positions=64), 64),
        (LlamaConfig(max_position_embeddings=64), 64),
        (LlamaConfig(max_position_embeddings=64, rope_parameters=DYNAMIC), 256),
        (BloomConfig(), None),
    ],
    ids=["learnt", "rotary", "stretched", "without positions"],
)
def test_the_context_is_that_of_the_configuration(tmp_path, config, positions) -> None:
    config.save_pretrained(tmp_path)
    vocabulary = AutoConfig.from_pretrained(tmp_path).vocab_size
    assert Capacity.of(tmp_path, 200)[:2] == (vocabulary, positions)


def test_a_token_beyond_the_embeddings_is_named_before_anything_trains(setting, tmp_path) -> None:
    plan(tmp_path, "train")
    weights = tmp_path / "model" / "model.safetensors"
    cut = {name: t[:7].clone() if "embed" in name or "head" in name else t for name, t in load_file(weights).items()}
    save_file(cut, weights, {"format": "pt"})
    small_model(tmp_path / "model", vocab_size=7)
    with pytest.raises(PobenchError, match=r"data\.source: token '\S+' has the id \d+, and the model has 7 embeddings"):
        plan(tmp_path, "train")
    assert not (tmp_path / "runs").exists()


def test_pairs_and_prompts_beyond_the_context_are_named_with_their_lengths(setting, tmp_path) -> None:
    longest = plan(tmp_path, "train").pairs.extent.longest
    small_model(tmp_path / "model", max_position_embeddings=longest - 1)
    with pytest.raises(PobenchError) as error:
        plan(tmp_path, "train", "answers", **{"answers.max_new_tokens": 100})
    pairs, prompts = str(error.value).splitlines()
    assert pairs == (
        f"data.source: {longest} tokens, and the model reads {longest - 1}; set data.max_length={longest - 1}"
    )
    assert prompts.startswith("answers.source: the longest prompt and 100 new tokens: 1")
    small_model(tmp_path / "model", max_position_embeddings=longest)
    assert plan(tmp_path, "train", **{"answers.max_new_tokens": 100})  # nothing is answered


def test_rotary_frequencies_that_max_length_chooses_name_the_run(setting, tmp_path) -> None:
    def run(length: int, *stages: str, **overrides: Any) -> str:
        return plan(tmp_path, "train", *stages, **{"data.max_length": length, **overrides}).tasks[-1].run

    assert run(2000) == run(2001)
    small_model(tmp_path / "model", max_position_embeddings=2000, rope_parameters=DYNAMIC)
    assert run(1999) == run(2000) != run(2001)
    with pytest.raises(PobenchError, match=r"new tokens: 20\d\d tokens, and the rotary frequencies .* reach 2009;"):
        run(2009, "answers", **{"answers.max_new_tokens": 2009})


def test_stored_pairs_of_a_larger_model_are_checked_for_a_smaller_one(setting, tmp_path) -> None:
    made = plan(tmp_path, "train")
    made.pairs.store()
    assert made.pairs.folder.extent == made.pairs.extent
    small_model(tmp_path / "model", max_position_embeddings=3)
    with pytest.raises(PobenchError, match="the model reads 3"):
        plan(tmp_path, "train")
    about = json.loads((made.pairs.folder.path / "data.json").read_text())
    of_before = {k: v for k, v in about.items() if k not in ("extent", SEAL)}
    (made.pairs.folder.path / "data.json").write_text(json.dumps(of_before))
    assert made.pairs.folder.extent == made.pairs.extent  # a folder of an earlier version
