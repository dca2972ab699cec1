"""Train with TRL, on the same pairs as pobench, and search its options.

TRL's installed trainers are changed in a few places, none of them in their step: they get token ids instead of text; the
sampler puts the warm-up batches first; the sampler that groups by length gets the lengths (the column filter would drop
them); KTO's mismatched answers are those that pobench takes; and the reference pass is timed. While losses are compared, and
only then, ORPO's likelihood term is pobench's too (`Orpo`).
"""

from __future__ import annotations

import importlib.util
import math
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from children import TookTooLongError, in_child
from peers import (
    Shape,
    StepClock,
    Work,
    libraries_memory,
    load_pairs,
    measured,
    now,
    say,
    training_order,
    warm_up_order,
)
from trl_variants import IN_ANY_ORDER, TWINS, WITH_REFERENCE, Variant, changes

from pobench.data.order import mismatch
from pobench.errors import PobenchError
from pobench.loss_math import absolute_gamma
from pobench.training.objectives import mismatched_groups
from pobench.training.reference import sequence_keys
from pobench.types import Group, TokenPair

TRIAL_PAIRS = 32
WORTH = 0.99  # a change is kept if it takes less than this share of the time, the machine's rate divided out


def need_trl() -> None:
    """Raises PobenchError if TRL is not installed."""
    if importlib.util.find_spec("trl") is None:
        raise PobenchError("TRL is not installed, and there is nothing to compare with; pip install trl==1.16.0")


# ---------------------------------------------------------------- data, as TRL's own preparation leaves it


def columns_of(trainer: str, pairs: Sequence[TokenPair], *, by_length: bool = False) -> dict[str, list[Any]]:
    """The columns of a trainer's data set. `length` is what its sampler that groups by length asks for; by_length: KTO has no
    such sampler, so its rows are in that order."""
    if trainer == "kto":
        return _single_answers(pairs, by_length)
    lengths = {"length": [len(p.prompt) + max(len(p.chosen), len(p.rejected)) for p in pairs]}
    if trainer == "dpo":
        ids = {f"{part}_ids": [list(getattr(p, part)) for p in pairs] for part in ("prompt", "chosen", "rejected")}
        return ids | lengths
    found: dict[str, list[Any]] = {"prompt_input_ids": [list(p.prompt) for p in pairs]}
    found["prompt_attention_mask"] = [[1] * len(p.prompt) for p in pairs]
    for part in ("chosen", "rejected"):
        answers = [getattr(p, part) for p in pairs]
        found[f"{part}_input_ids"] = [[*p.prompt, *a] for p, a in zip(pairs, answers, strict=True)]
        found[f"{part}_attention_mask"] = [[1] * len(ids) for ids in found[f"{part}_input_ids"]]
        found[f"{part}_labels"] = [[-100] * len(p.prompt) + [*a] for p, a in zip(pairs, answers, strict=True)]
    return found | lengths


def _single_answers(pairs: Sequence[TokenPair], by_length: bool) -> dict[str, list[Any]]:
    """KTO's rows, two a pair. For the estimate of kl each has an answer of another pair: the one that pobench takes, twice. The
    longest come first, as in transformers' sampler: memory that does not suffice fails at once."""
    borrowed = [group.responses[0] for group in mismatched_groups(pairs, mismatch(pairs))]
    lent = list(zip(pairs, borrowed, strict=True))
    if by_length:
        lent.sort(key=lambda one: -(len(one[0].prompt) + max(map(len, one[0].responses))))
    rows = [
        (p.prompt, getattr(p, part), part == "chosen", other) for p, other in lent for part in ("chosen", "rejected")
    ]
    prompts, answers, labels, others = zip(*rows, strict=True)
    return {
        "prompt_ids": [list(ids) for ids in prompts],
        "completion_ids": [list(ids) for ids in answers],
        "label": list(labels),
        "KL_completion_ids": [list(ids) for ids in others],
    }


def shown_in(inputs: dict[str, Any]) -> Iterator[tuple[list[int], list[int]]]:
    """(prompt, response) token ids of every sequence that a trainer's batch shows the model."""
    if "chosen_labels" in inputs:
        for part in ("chosen", "rejected"):
            ids, held, labels = (inputs[f"{part}_{key}"] for key in ("input_ids", "attention_mask", "labels"))
            answer = labels != -100
            for row, kept, kind in zip(ids, held.bool(), answer, strict=True):
                yield row[kept & ~kind].tolist(), row[kept & kind].tolist()
        return
    rows = zip(inputs["input_ids"], inputs["attention_mask"].bool(), inputs["completion_mask"].bool(), strict=True)
    for row, kept, kind in rows:
        yield row[kept & ~kind].tolist(), row[kept & kind].tolist()


# ---------------------------------------------------------------- the trainers


def config_of(work: Work, folder: str) -> Any:
    """TRL's settings for the same work, as the variant changes its defaults."""
    import torch
    import trl

    twin, variant = TWINS[work.loss], work.variant
    rows = 2 if twin.trainer == "kto" else 1  # of a pair
    common: dict[str, Any] = {
        "output_dir": folder,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "per_device_train_batch_size": variant.micro * rows,
        "gradient_accumulation_steps": work.batch_size // variant.micro,
        "learning_rate": work.lr,
        "num_train_epochs": work.epochs,
        "max_length": work.max_length,
        "bf16": work.precision == "bf16",
        "use_cpu": not torch.cuda.is_available(),  # or it refuses bf16
        "beta": work.settings[twin.setting],
        "dataloader_num_workers": variant.workers,
        "torch_compile": variant.compiled,
        "use_liger_kernel": variant.liger,
        **({} if variant.optimiser is None else {"optim": variant.optimiser}),
        **({} if variant.checkpointing is None else {"gradient_checkpointing": variant.checkpointing}),
        **({"train_sampling_strategy": "group_by_length"} if variant.grouped and twin.trainer in IN_ANY_ORDER else {}),
    }
    if twin.trainer in WITH_REFERENCE:
        common["precompute_ref_log_probs"] = variant.precomputed
    if twin.trainer == "dpo":
        return trl.DPOConfig(loss_type=[twin.loss_type], **common)
    if twin.trainer == "kto":
        return trl.KTOConfig(loss_type=twin.loss_type, train_sampling_strategy="sequential", **common)
    if twin.trainer == "cpo":
        from trl.experimental.cpo import CPOConfig

        settings = (work.settings.get(name) for name in ("gamma", "gamma_beta_ratio"))
        gamma = absolute_gamma(work.settings["beta"], *settings, default_ratio=0.5)
        return CPOConfig(loss_type=twin.loss_type, cpo_alpha=0.0, simpo_gamma=gamma, **common)
    from trl.experimental.orpo import ORPOConfig

    return ORPOConfig(**common)


def trainer_class(trainer: str) -> Any:
    """TRL's class, which takes a data set of token ids."""
    import trl

    if trainer in WITH_REFERENCE:
        base: Any = trl.DPOTrainer if trainer == "dpo" else trl.KTOTrainer

        class Reads(base):
            def _prepare_dataset(self, dataset: Any, *args: Any) -> Any:
                return dataset

        return Reads
    from trl.experimental.cpo import CPOTrainer
    from trl.experimental.orpo import ORPOTrainer

    old: Any = CPOTrainer if trainer == "cpo" else ORPOTrainer

    class Tokenized(old):
        @staticmethod
        def tokenize_row(feature: Any, model: Any = None) -> dict[str, Any]:
            return {}

    return Tokenized


class Orpo:
    """In front of ORPOTrainer while losses are compared: the likelihood term is the mean over each chosen response, as in the
    paper's Eq. 6 and pobench. TRL's own counts the prompt's tokens, and weighs long responses more."""

    def concatenated_forward(self, model: Any, batch: Any) -> Any:
        chosen, *rest = super().concatenated_forward(model, batch)  # type: ignore[misc]
        rest[3] = -chosen.mean()
        return (chosen, *rest)


class Heard:
    """What a run of a trainer leaves: seconds of the reference pass, and where it is watched the losses of every step and the
    keys of the sequences that the model was shown."""

    def __init__(self) -> None:
        self.reference: list[float] = []
        self.losses: list[list[float]] = [[]]
        self.shown: set[str] = set()


def peer_class(work: Work, warm: Sequence[int], heard: Heard, watched: bool) -> Any:
    """The trainer of the work's loss. warm: rows that come first."""
    from torch.utils.data import Sampler

    trainer = TWINS[work.loss].trainer
    ahead = (Orpo,) if watched and trainer == "orpo" else ()
    base: Any = type("Trainer", (*ahead, trainer_class(trainer)), {})

    class WarmFirst(Sampler):
        def __init__(self, then: Any) -> None:
            self.then = then

        def __iter__(self) -> Iterator[int]:
            yield from warm
            yield from self.then

        def __len__(self) -> int:
            return len(warm) + len(self.then)

    class Peer(base):
        def _set_signature_columns_if_needed(self) -> None:
            super()._set_signature_columns_if_needed()
            self._signature_columns = list(dict.fromkeys([*self._signature_columns, "length"]))

        def _get_train_sampler(self, *args: Any, **kwargs: Any) -> Any:
            return WarmFirst(super()._get_train_sampler(*args, **kwargs))

        def _precompute_ref_logps(self, *args: Any, **kwargs: Any) -> Any:
            started = now(self.args.device)
            dataset = super()._precompute_ref_logps(*args, **kwargs)
            heard.reference.append(now(self.args.device) - started)
            return dataset

    class Watched(Peer):
        def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            loss = super().compute_loss(model, inputs, *args, **kwargs)
            heard.losses[-1].append(float(loss.detach()))
            heard.shown |= {sequence_keys(Group(tuple(p), (tuple(r),)))[0].hex() for p, r in shown_in(inputs)}
            return loss

    return Watched if watched else Peer


def data_of(work: Work, pairs: Sequence[TokenPair]) -> Any:
    """The trainer's data set. It lies on disk, so that TRL finds its own cache of reference sums again, another for each
    precision."""
    from datasets import Dataset, load_from_disk

    trainer = TWINS[work.loss].trainer
    grouped = work.variant.grouped
    table = Path(work.place) / f"trl-{trainer}-{'grouped' if grouped else 'as-is'}-{len(pairs)}-{work.precision}"
    if not table.exists():
        Dataset.from_dict(columns_of(trainer, pairs, by_length=grouped)).save_to_disk(str(table))
    found = load_from_disk(str(table))
    return found if grouped or "length" not in found.column_names else found.remove_columns("length")


def run_trl(work: Work, watched: bool = False) -> dict[str, Any]:
    """Train with TRL: see `measured`. watched: also the loss of every step, and the keys of the token sequences that the model
    was shown; it costs time, so timed runs go without."""
    import torch
    from accelerate import Accelerator
    from transformers import AutoModelForCausalLM, PrinterCallback, TrainerCallback

    torch.set_num_threads(work.threads)
    pairs = load_pairs(Path(work.pairs))[: work.count]
    order = training_order(pairs)
    warm = warm_up_order(order, work.warm_up * work.batch_size)
    if TWINS[work.loss].trainer == "kto":
        warm = [row for i in warm for row in (2 * i, 2 * i + 1)]
    device = Accelerator(cpu=not torch.cuda.is_available()).device
    libraries = 0 if device.type == "cuda" else libraries_memory(work.model)
    heard = Heard()

    class Clock(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            clock()
            heard.losses.append([])
            control.should_training_stop = clock.is_enough(work) or control.should_training_stop

    attention = {} if work.variant.attention is None else {"attn_implementation": work.variant.attention}
    clock = StepClock(work.precision, device, multiplies=work.warm_up > 0)
    with tempfile.TemporaryDirectory() as folder:
        config = config_of(work, folder)
        model = AutoModelForCausalLM.from_pretrained(work.model, dtype=torch.float32, **attention)
        trainer = peer_class(work, warm, heard, watched)(
            model=model, args=config, train_dataset=data_of(work, pairs), callbacks=[Clock()]
        )
        trainer.remove_callback(PrinterCallback)
        shape = Shape.of(trainer.model)
        trainer.train()
    return {
        **measured(work, Accelerator(), shape, libraries, clock, pairs, mismatched=work.loss == "kto"),
        "losses": [statistics.mean(step) for step in heard.losses if step],
        "shown": sorted(heard.shown),
        "reference_seconds": sum(heard.reference),
        "checkpointing": bool(config.gradient_checkpointing),
    }


# ---------------------------------------------------------------- the fastest options


def gpu_packages() -> list[str]:
    """Installed packages that only a GPU can use; none where there is no GPU."""
    import torch

    names = ("liger_kernel", "flash_attn") if torch.cuda.is_available() else ()
    return [name for name in names if importlib.util.find_spec(name) is not None]


def micro_sizes(work: Work) -> list[int]:
    """Pairs a forward pass that are tried, the largest first."""
    return [n for n in (8, 4, 2, 1) if work.batch_size % n == 0]


def fastest_micro(work: Work, pairs: int = TRIAL_PAIRS) -> tuple[int, dict[int, dict[str, Any]]]:
    """(pairs a forward pass, what every size that was tried gave) of TRL at its best, on a few pairs."""
    trials = {}
    for size in micro_sizes(work):
        trials[size] = in_child(run_trl, replace(work, count=pairs, variant=Variant.best(size)))
        say(f"trl_best with micro-batches of {size}: {trials[size]['seconds_per_pair']:.3g} s a pair")
    return min(trials, key=lambda size: products_of(trials[size])), trials


def products_of(run: dict[str, Any]) -> float:
    """FLOPs that the machine could have multiplied in the time of a pair: seconds, with the machine's rate divided out."""
    return float(run["seconds_per_pair"] * run["matmul_flops"])


def search(
    work: Work, start: Variant, *, seconds: float, pairs: int = TRIAL_PAIRS
) -> tuple[Variant, list[dict[str, Any]]]:
    """(the fastest variant, a row for each that was tried). One option after the other is changed, and kept if that pays.

    seconds: of the whole search; what does not fit is listed as not tried.
    """
    deadline = time.monotonic() + seconds
    best, least, rows = start, math.inf, []
    options = changes(
        start, micro_sizes(work), reference=TWINS[work.loss].trainer in WITH_REFERENCE, gpu=gpu_packages()
    )
    for name in ["as at the start", *options]:
        # From the best so far: an option that pays stays on while the next is tried.
        wanted = start if name == "as at the start" else _changed(best, start, options[name])
        row: dict[str, Any] = {"option": name}
        rows.append(row)
        left = deadline - time.monotonic()
        if left <= 0:
            row["fault"] = "not tried: no time left"
            continue
        try:
            run = in_child(run_trl, replace(work, count=pairs, variant=wanted), seconds=left)
        except TookTooLongError:
            row["fault"] = "not finished: no time left"
            continue
        except PobenchError as error:
            row["fault"] = str(error)
            continue
        row |= {key: run[key] for key in ("seconds_per_pair", "matmul_flops", "peak_memory", "mfu")}
        took = products_of(run)
        if took < WORTH * least:
            best, least, row["kept"] = wanted, took, True
        say(f"trl_best, {name}: {run['seconds_per_pair']:.3g} s a pair{', kept' if row.get('kept') else ''}")
    rows.append({"option": "padding_free", "fault": padding_free_fault()})
    return best, rows


def _changed(best: Variant, start: Variant, wanted: Variant) -> Variant:
    """`best` with that which tells `wanted` from `start`."""
    differing = {name: value for name, value in vars(wanted).items() if value != getattr(start, name)}
    return replace(best, **differing)


def padding_free_fault() -> str:
    """Why `padding_free` is not among the options: what the installed TRL says of it."""
    import trl

    text = " ".join((trl.DPOConfig.__doc__ or "").split())
    if "padding_free" not in text:
        return f"TRL {trl.__version__} has no such option"
    if "Temporarily unavailable" in text:
        return f"not available: TRL {trl.__version__} warns and falls back to padding"
    return "needs FlashAttention; not tried"


def reference_cost(runs: Sequence[dict[str, Any]], pairs: int) -> float:
    """Seconds of TRL's reference pass over all pairs: of the first run that made it, since the others find its cache."""
    return max((run["reference_seconds"] for run in runs if run["pairs"] == pairs), default=0.0)
