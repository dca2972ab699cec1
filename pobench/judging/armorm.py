"""ArmoRM, a reward model of 19 objectives whose weights depend on the prompt, as a judge. No code that comes with it is run.

    r = (W h_last) T,   g = scale · softmax(MLP(h_prompt) / temperature),   reward = Σ_k g_k r_k

h_last: Llama's encoding of the conversation's last token; h_prompt: of the prompt's last token, where
`<|eot_id|><|start_header_id|>assistant<|end_header_id|>` and two line ends begin for the last time. W: one row an objective; T
takes the objectives' share of verbosity away. MLP: linear layers with ReLU between them.

Sources: Wang, Xiong, Xie, Zhao and Zhang 2024, arXiv 2406.12845; `modeling_custom.py` of RLHFlow/ArmoRM-Llama3-8B-v0.1, whose
names the weights have. SimPO's `on_policy_data_gen/reward_model_annotate.py` ranks by this number, in bf16.
"""

from __future__ import annotations

from functools import cached_property
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import torch

from pobench.errors import PobenchError
from pobench.judging.reward_model import RewardModel
from pobench.judging.weights import Precision, Weights, read_weights
from pobench.registry import register_judge
from pobench.settings.schema import Count
from pobench.sources import read_config

PUBLISHED = "RLHFlow/ArmoRM-Llama3-8B-v0.1"
ANSWER_BEGINS = "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"


class Gating(torch.nn.Module):
    """The objectives' weights for a prompt. The configuration's defaults are those of the published class."""

    def __init__(self, config: Any, objectives: int) -> None:
        super().__init__()
        self.temperature = getattr(config, "gating_temperature", 10)
        hidden = [getattr(config, "gating_hidden_dim", 1024)] * getattr(config, "gating_n_hidden", 3)
        sizes = [config.hidden_size, *hidden, objectives]
        self.layers = torch.nn.ModuleList(torch.nn.Linear(*two) for two in pairwise(sizes))
        self.logit_scale = torch.nn.Parameter(torch.ones(1))

    def forward(self, prompts: torch.Tensor) -> torch.Tensor:
        """prompts: (answers, hidden). Returns (answers, objectives)."""
        *inner, last = self.layers
        for layer in inner:
            prompts = torch.relu(layer(prompts))
        weights: torch.Tensor = torch.softmax(last(prompts) / self.temperature, dim=1) * self.logit_scale
        return weights


class GatedReward(torch.nn.Module):
    """Llama, the objectives' rewards and their weights. answer_begins: the token ids of `ANSWER_BEGINS`."""

    def __init__(self, config: Any, answer_begins: list[int]) -> None:
        from transformers import LlamaModel

        super().__init__()
        objectives = getattr(config, "num_objectives", 19)
        self.config, self.answer_begins = config, answer_begins
        self.model = LlamaModel(config)
        self.regression_layer = torch.nn.Linear(config.hidden_size, objectives, bias=False)
        self.reward_transform_matrix = torch.nn.Parameter(torch.empty(objectives, objectives))
        self.gating = Gating(config, objectives)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> SimpleNamespace:
        """`score`: the rewards, (answers,). input_ids, attention_mask: (answers, tokens), padded on the right."""
        encodings = self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        rows = torch.arange(len(input_ids), device=input_ids.device)
        prompt_ends = torch.tensor([self._prompt_end(ids) for ids in input_ids.tolist()], device=input_ids.device)
        rewards = self.regression_layer(encodings[rows, attention_mask.sum(1) - 1]) @ self.reward_transform_matrix
        return SimpleNamespace(score=(self.gating(encodings[rows, prompt_ends]) * rewards).sum(1))

    def _prompt_end(self, ids: list[int]) -> int:
        length = len(self.answer_begins)
        for place in range(len(ids) - length, -1, -1):
            if ids[place : place + length] == self.answer_begins:
                return place
        raise PobenchError(f"ArmoRM finds no answer in a conversation: its tokens for {ANSWER_BEGINS!r} are not there")


class ArmoRM(RewardModel):
    """Scores answers by ArmoRM's reward."""

    @cached_property
    def model(self) -> Any:
        from transformers import LlamaConfig

        config = LlamaConfig.from_dict(read_config(self.weights.folder))
        config._attn_implementation = self.weights.attention or "sdpa"
        tokenizer = self.chat.tokenizer
        if config.pad_token_id is None:
            config.pad_token_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
        begins = tokenizer(ANSWER_BEGINS, add_special_tokens=False)["input_ids"]
        return read_weights(self.weights, lambda _: GatedReward(config, begins), "ArmoRM")


@register_judge("armorm", runtime=("batch_size",), free=True, compares=True)
def armorm(
    *, model: str = PUBLISHED, revision: str | None = None, batch_size: Count = 8, precision: Precision = "auto"
) -> ArmoRM:
    """ArmoRM on this machine: ranks answers by its reward, and compares two by σ of the difference.

    model: a folder or hub name of a model in the layout of RLHFlow/ArmoRM-Llama3-8B-v0.1.
    """
    return ArmoRM(Weights(model, revision, precision), batch_size)
