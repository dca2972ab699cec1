"""Memory by part: the arithmetic, on shapes of published models. `tests/benchmarks/test_memory.py` compares it with steps."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pobench.data.published import MODELS
from pobench.model.shape import shape_of
from pobench.settings.schema import AdapterConfig, TrainConfig
from pobench.training.memory_parts import GIB, Step, answering_memory, fitting_tokens, training_memory

MISTRAL = shape_of(MODELS["alignment-handbook/zephyr-7b-sft-full"].config)
LLAMA = shape_of(MODELS["princeton-nlp/Llama-3-Base-8B-SFT"].config)
STEP = Step(tokens=4096, responses=4096, checkpointing=True)


def test_the_sizes_of_a_model_come_from_its_configuration() -> None:
    assert MISTRAL.parameters == 7_241_732_096 and MISTRAL.layers == 32
    assert MISTRAL.layer == 218_112_000  # 2·4096² + 2·4096·1024 + 3·4096·14336, and two norms
    assert MISTRAL.outside == 2 * 32000 * 4096 + 4096
    assert (MISTRAL.query, MISTRAL.key, MISTRAL.heads) == (4096, 1024, 32)
    # q, k, v, o and the three of the MLP: inputs and outputs of each, 32 layers
    whole = 32 * (2 * 8192 + 2 * 5120 + 3 * (4096 + 14336))
    assert MISTRAL.adapter_parameters(16, "all-linear") == 16 * whole
    assert MISTRAL.adapter_parameters(16, ["q_proj", "v_proj"]) == 16 * 32 * (8192 + 5120)


def test_masters_gradients_and_moments_are_sixteen_bytes_a_weight_over_the_devices() -> None:
    for shards in (1, 8):
        parts = training_memory(MISTRAL, replace(STEP, shards=shards)).parts
        state = parts["masters"] + parts["gradients"] + parts["moments"]
        assert state == pytest.approx(16 * MISTRAL.parameters / shards)


def test_a_checkpoint_beside_the_steps_takes_a_copy_of_masters_and_moments_on_a_processor() -> None:
    config = TrainConfig(lr=1, checkpoint_async=True)
    copies = [training_memory(MISTRAL, Step.of(config, 4096, shards=8, gpu=gpu)).staged for gpu in (True, False)]
    assert copies == [0, pytest.approx(12 * MISTRAL.parameters / 8)]
    moved = replace(Step.of(config, 4096, shards=8, gpu=False), moving=1)
    assert training_memory(MISTRAL, moved).staged == pytest.approx(16 * MISTRAL.parameters / 8)  # the reference, too
    valued = Step.of(TrainConfig(lr=1, checkpoint_async=True, value_learning_rate=1), 4096, gpu=False)
    assert training_memory(MISTRAL, valued).staged == pytest.approx(24 * MISTRAL.parameters)


def test_eight_devices_of_eighty_hold_seven_billion_and_one_does_not() -> None:
    alone, shared = (training_memory(MISTRAL, replace(STEP, shards=n)).total for n in (1, 8))
    assert alone > 110 * GIB and shared < 30 * GIB


def test_only_the_largest_of_head_layer_and_buckets_counts() -> None:
    memory = training_memory(MISTRAL, replace(STEP, shards=8))
    work = [memory.logits, memory.layer, memory.buckets]
    assert memory.total == pytest.approx(sum(memory.parts.values()) - sum(work) + max(work))
    assert training_memory(MISTRAL, STEP).buckets == 0, "one copy's gradients lie in their buckets"


@pytest.mark.parametrize(("gpu", "kept"), [(False, 1), (True, 0)])
def test_what_a_processor_gives_out_again_stays_while_other_work_is_done(gpu: bool, kept: int) -> None:
    step = Step(tokens=4096, responses=4096, gpu=gpu, head_tile=1000)
    most, fewer_tokens, fewer_responses = (
        training_memory(MISTRAL, replace(step, **less)) for less in ({}, {"tokens": 2048}, {"responses": 2048})
    )
    # in bf16: an MLP's activation and its gradient, two fp32 tensors of a norm; a tile's logits in fp32 and their gradient
    assert most.logits - fewer_tokens.logits == kept * 2048 * (2 * 2 * 14336 + 2 * 4 * 4096)
    assert most.layer - fewer_responses.layer == kept * 2048 * 1000 * (4 + 2)


def test_checkpointing_keeps_a_layers_input_instead_of_all_that_it_computes() -> None:
    without, with_it = (training_memory(MISTRAL, replace(STEP, shards=8, checkpointing=on)) for on in (False, True))
    assert with_it.activations < without.activations / 8 and with_it.layer > without.layer


def test_a_frozen_base_takes_two_bytes_or_half_a_byte_a_weight() -> None:
    lora = replace(STEP, adapter=AdapterConfig(base_precision="bf16"))
    qlora = replace(STEP, adapter=AdapterConfig(quantize="nf4"))
    trained = MISTRAL.adapter_parameters(16, "all-linear")
    assert training_memory(MISTRAL, lora).masters == pytest.approx(2 * MISTRAL.parameters + 4 * trained)
    # embedding and head stay bf16; 0.516 bytes of every other matrix
    narrow = 4.127 / 8 * MISTRAL.linear + 2 * (MISTRAL.parameters - MISTRAL.linear)
    assert training_memory(MISTRAL, qlora).masters == pytest.approx(narrow + 4 * trained)
    assert training_memory(MISTRAL, qlora).total < 20 * GIB


def test_the_cache_of_answers_is_counted_in_tokens() -> None:
    """Llama-3-8B: 32 layers × 1024 key features × 2 × 2 bytes = 131 kB a token; 64 answers of 4,608 tokens take 38.7 GB."""
    memory = answering_memory(LLAMA, rows=64, prompt=512, new=4096)
    assert memory.cache == 64 * 4608 * 131_072
    assert memory.weights == 2 * LLAMA.parameters


def test_the_largest_micro_batch_that_fits_is_a_power_of_two_and_holds_the_longest_pair() -> None:
    step = replace(STEP, tokens=32_768, shards=8)
    large = fitting_tokens(MISTRAL, step, 80e9, longest=2048)
    small = fitting_tokens(MISTRAL, step, 24e9, longest=2048)
    assert large is not None and large & (large - 1) == 0 and large >= 8192
    assert small is None or small < large
    assert fitting_tokens(MISTRAL, replace(STEP, shards=1), 80e9, longest=2048) is None
