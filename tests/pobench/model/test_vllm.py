"""vLLM behind `generate`: a stand-in with its interface answers from the stored weights, token ids in, token ids out."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from small_chat_model import CHARACTERS, character_tokenizer, chat_model
from transformers import AutoModelForCausalLM

from pobench.data.chat import Chat
from pobench.errors import PobenchError
from pobench.model import vllm as vllm_engine
from pobench.model.generate import Decoding, generate
from pobench.model.vllm import Served, missing, speaker_of
from pobench.settings.schema import AnswersConfig

CHAT = Chat(character_tokenizer())
TOKENIZER = CHAT.tokenizer
PROMPTS = [CHAT.prompt_ids(text) for text in ("hi", "what is a bee?", "name one river in Europe", "no")]


@dataclass
class SamplingParams:
    """The fields of vLLM's class that are set here."""

    temperature: float = 1.0
    top_p: float = 1.0
    max_tokens: int = 16
    seed: int | None = None
    stop_token_ids: list[int] = field(default_factory=list)
    detokenize: bool = True


class LLM:
    """Greedy answers by the plainest loop; what it was asked is kept."""

    asked: ClassVar[list[tuple[list[int], SamplingParams]]] = []

    def __init__(
        self, model: str, dtype: str, skip_tokenizer_init: bool, generation_config: str, gpu_memory_utilization: float
    ) -> None:
        assert skip_tokenizer_init and generation_config == "vllm"
        self.folder, self.share = model, gpu_memory_utilization
        self.model = AutoModelForCausalLM.from_pretrained(model, dtype=getattr(torch, dtype)).eval()

    def generate(self, prompts: Any, sampling_params: Any, use_tqdm: bool = True) -> list[Any]:
        said = []
        for prompt, how in zip(prompts, sampling_params, strict=True):
            LLM.asked.append((prompt["prompt_token_ids"], how))
            ids = list(prompt["prompt_token_ids"])
            spoken: list[int] = []
            while len(spoken) < how.max_tokens and not (spoken and spoken[-1] in how.stop_token_ids):
                with torch.no_grad():
                    spoken.append(int(self.model(input_ids=torch.tensor([ids + spoken])).logits[0, -1].argmax()))
            said.append(SimpleNamespace(outputs=[SimpleNamespace(token_ids=tuple(spoken))]))
        return said


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> type[LLM]:
    module = ModuleType("vllm")
    module.LLM, module.SamplingParams = LLM, SamplingParams  # type: ignore[attr-defined]
    module.__spec__ = importlib.machinery.ModuleSpec("vllm", None)
    monkeypatch.setitem(sys.modules, "vllm", module)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    LLM.asked = []
    return LLM


@pytest.mark.parametrize("engine", ["auto", "vllm"])
def test_greedy_answers_come_through_with_their_lengths_and_ends(engine: str, stand_in: type[LLM]) -> None:
    model = chat_model(seed=3)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    texts = [a.text for a in generate(model, CHAT, PROMPTS, Decoding(24))]
    # A letter that some say and some do not is made a stop.
    letter = next(c for c in CHARACTERS if 0 < sum(c in text for text in texts) < len(texts))
    model.generation_config.eos_token_id = [TOKENIZER.convert_tokens_to_ids(letter)]
    ours = generate(model, CHAT, PROMPTS, Decoding(24))
    with speaker_of(model, engine, "fp32", 64) as (served, batch_size):
        assert isinstance(served, Served) and batch_size == vllm_engine.AT_ONCE
        theirs = generate(served, CHAT, PROMPTS, Decoding(24), batch_size=batch_size)
    assert theirs == ours
    assert {a.finished for a in ours} == {True, False}
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_every_prompt_and_sample_has_a_seed_of_its_own_that_comes_again(stand_in: type[LLM]) -> None:
    model, drawn = chat_model(), Decoding(2, temperature=0.8, top_p=0.9, samples=3, seed=7)
    seeds = []
    for asked in (PROMPTS, PROMPTS[::-1]):
        stand_in.asked.clear()
        with speaker_of(model, "vllm", "fp32", 64) as (served, batch_size):
            generate(served, CHAT, asked, drawn, batch_size=batch_size)
        assert {(how.temperature, how.top_p, how.max_tokens, how.detokenize) for _, how in stand_in.asked} == {
            (0.8, 0.9, 2, False)
        }
        assert all(TOKENIZER.eos_token_id in how.stop_token_ids for _, how in stand_in.asked)
        seeds.append({how.seed for _, how in stand_in.asked})
    assert len(seeds[0]) == len(PROMPTS) * 3 and seeds[0] == seeds[1]
    assert all(0 <= seed < 2**31 for seed in seeds[0])


def test_weights_reach_vllm_in_the_precision_asked_for(stand_in: type[LLM]) -> None:
    with speaker_of(chat_model(), "vllm", "bf16", 64) as (served, _):
        assert served._llm.model.dtype == torch.bfloat16


def test_vllm_reads_stored_weights_where_they_lie_and_takes_its_share_of_memory(
    stand_in: type[LLM], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = chat_model()
    model.save_pretrained(tmp_path)
    monkeypatch.setattr(model, "save_pretrained", None)  # no copy is written
    with speaker_of(model, "vllm", "bf16", 64, folder=tmp_path, memory_share=0.4) as (served, _):
        assert (served._llm.folder, served._llm.share) == (str(tmp_path), 0.4)
        assert served._llm.model.dtype == torch.bfloat16


def test_auto_without_vllm_or_gpu_is_transformers_and_vllm_is_refused() -> None:
    model = chat_model()
    with speaker_of(model, "auto", "fp32", 5) as (speaker, batch_size):
        assert speaker is model and batch_size == 5
    lacking = missing("vllm")
    assert any("GPU" in fault for fault in lacking) or torch.cuda.is_available()
    assert any("not installed" in fault for fault in lacking) or importlib.util.find_spec("vllm")
    assert missing("auto") == missing("transformers") == []
    if lacking:
        with pytest.raises(PobenchError, match=r"answers\.engine"), speaker_of(model, "vllm", "fp32", 5):
            pass


def test_an_adapter_that_cannot_be_worked_in_is_spoken_by_transformers(stand_in: type[LLM]) -> None:
    model = chat_model()
    model.model.layers[0].self_attn.q_proj.lora_A = torch.nn.Linear(2, 2)
    with speaker_of(model, "auto", "fp32", 5) as (speaker, _):
        assert speaker is model
    with pytest.raises(PobenchError, match="takes no adapter"), speaker_of(model, "vllm", "fp32", 5):
        pass


def test_the_model_comes_back_when_vllm_fails(stand_in: type[LLM], monkeypatch: pytest.MonkeyPatch) -> None:
    model = chat_model()
    moves: list[Any] = []
    monkeypatch.setattr(model, "to", lambda device: moves.append(str(device)) or model)

    def fail(*args: Any, **how: Any) -> None:
        raise RuntimeError("no room")

    monkeypatch.setattr(LLM, "generate", fail)
    with pytest.raises(RuntimeError), speaker_of(model, "vllm", "fp32", 5) as (served, _):
        generate(served, CHAT, PROMPTS, Decoding(2))
    assert moves == ["cpu", "cpu"]
    monkeypatch.setattr(LLM, "__init__", fail)
    with pytest.raises(RuntimeError), speaker_of(model, "vllm", "fp32", 5):
        pass
    assert len(moves) == 4


def test_the_engine_is_a_cause_of_a_result() -> None:
    assert AnswersConfig().causes() != AnswersConfig(engine="vllm").causes()
