"""Density ratios of the training prompts: how much more often each has a desirable answer than an undesirable one, estimated
once for every loss that asks for `density_ratio`, seed and learning rate.

Prompts are embedded by the start model, or by the model that `data.prompt_embedder` names. Data of pairs need none: the two
answers of a pair share their prompt, so its ratio is 1.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pobench.registry import get_loss
from pobench.runs.stage import Content, Node, Stage
from pobench.settings.job import Job
from pobench.sources import cache_folder

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from pobench.runs.context import Context
    from pobench.training.density_ratio import Prompt

NAME = "density_ratio"
NODE = f"{NAME}:answers"  # among a task's nodes


def node_of(job: Job, content: Content) -> Node | None:
    """The ratios that the job's loss is given; None where it asks for none, or the data have no single answers."""
    from pobench.training.density_ratio import FOLDS

    if NAME not in get_loss(job.loss).needs or "answers" not in content.own:
        return None
    embedder = content.embedder(job.data.prompt_embedder) if job.data.prompt_embedder else content.weights
    arithmetic = {"precision": content.precise(job.train.precision), "folds": FOLDS}
    return Node(NAME, {"embedder": embedder, "answers": content.own["answers"][0], **arithmetic})


def folder_of(node: Node) -> Path:
    """In the cache."""
    return cache_folder() / NAME / node.name.rpartition("-")[2]


def run(context: Context) -> None:
    """Compute the ratios that the task names, and say what became of them."""
    from pobench.progress import progress
    from pobench.training.density_ratio import compute_density_ratios, facts_text
    from pobench.types import TokenAnswer

    folder, causes = Path(context.task.references[NAME]), context.task.nodes[NODE].causes
    answers = (item for item in context.prepared.items("answers") if isinstance(item, TokenAnswer))

    def embed(prompts: Sequence[Prompt]) -> Tensor:
        with progress("density ratios: prompts", len(prompts), "prompts", shown=context.main) as advance:
            return _embeddings(context, prompts, advance)

    context.say(f"density ratios: {facts_text(compute_density_ratios(folder, answers, embed, causes))}")


def _embeddings(context: Context, prompts: Sequence[Prompt], advance: Callable[[int], None]) -> Tensor:
    import torch

    from pobench.model.embeddings import embed, load_embedder
    from pobench.model.load import attention_of, load_model
    from pobench.runs.content import embedder_folder

    job, accelerator = context.job, context.accelerator
    if job.data.prompt_embedder:
        model, tokenise = load_embedder(embedder_folder(job.data.prompt_embedder), accelerator.device)
        texts = [context.chat.tokenizer.decode(prompt, skip_special_tokens=True) for prompt in prompts]
        return embed(model, tokenise(texts), advance, accelerator.autocast)
    model = load_model(
        context.start_path,
        dtype=torch.float32,
        attention=attention_of(context.start_path),
        trust_remote_code=job.model.trust_remote_code,
        length=job.data.max_length,
    )
    return embed(model.base_model.to(accelerator.device), prompts, advance, accelerator.autocast)


STAGE = Stage(
    name=NAME,
    does="density ratios of the training prompts, for losses of single answers that ask for `density_ratio`; shared by all of "
    "them, by seeds and learning rates",
    reads=("sft", "onpolicy"),
    writes=("ratios-<digest>.safetensors", "density_ratio.json"),
    decided_by="start weights or the weights of `data.prompt_embedder`, the answers' prompts and labels, precision",
    run=run,
    per_run=False,
)
