"""The word-level tokenizers and small models of the generated worlds: what is made now is what is shipped."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from pobench.model.word_level import SPECIAL, small_llama, vocabulary, word_tokenizer

EXPERIMENTS = Path(__file__).parents[3] / "experiments"


def test_the_vocabulary_is_every_word_and_mark_once_behind_the_special_tokens() -> None:
    assert vocabulary(["b a, b", "a."]) == [*SPECIAL, ",", ".", "a", "b"]


@pytest.mark.parametrize("world", ["tiny", "tiny-long"])
def test_the_shipped_tokenizers_are_made_byte_for_byte(world, tmp_path) -> None:
    path = EXPERIMENTS / "recipes" / f"{world.replace('-', '_')}.py"
    spec = importlib.util.spec_from_file_location(f"recipe_of_{path.stem}", path)
    recipe = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(recipe)
    word_tokenizer(recipe.words(), recipe.CONTEXT).save_pretrained(tmp_path)
    made = sorted(file.name for file in tmp_path.iterdir())
    assert made == ["chat_template.jinja", "tokenizer.json", "tokenizer_config.json"]
    assert all((tmp_path / name).read_bytes() == (EXPERIMENTS / "models" / world / name).read_bytes() for name in made)


def test_a_small_llama_is_decided_by_its_seed_and_fits_its_tokenizer() -> None:
    tokenizer = word_tokenizer(["a b c"], 32)
    first, second, other = (small_llama(tokenizer, seed) for seed in (1, 1, 2))
    weights = [model.model.embed_tokens.weight for model in (first, second, other)]
    assert weights[0].shape == (len(SPECIAL) + 3, 128) and first.config.max_position_embeddings == 32
    assert bool((weights[0] == weights[1]).all()) and not bool((weights[0] == weights[2]).all())
