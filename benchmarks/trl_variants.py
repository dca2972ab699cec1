"""Which loss of pobench equals which of TRL's trainers, and how a TRL trainer may be configured. Imports neither."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple


class Twin(NamedTuple):
    """A loss of a TRL trainer that equals one of pobench's. trainer: a key of `TRAINERS`. setting: pobench's name for TRL's
    `beta`. settings: those under which the two are equal."""

    loss_type: str
    setting: str
    settings: dict[str, Any]
    trainer: str = "dpo"


TWINS = {
    "dpo": Twin("sigmoid", "beta", {}),
    "dpo_ln": Twin("sigmoid_norm", "beta", {}),
    "ipo": Twin("ipo", "tau", {"average": True}),
    "bco_pair": Twin("bco_pair", "beta", {}),
    "simpo": Twin("simpo", "beta", {}, "cpo"),  # with cpo_alpha 0
    # TRL takes the mean over responses, pobench over pairs of two; kl is one number for the batch if that is not cut.
    "kto": Twin("kto", "beta", {"desirable_weight": 0.5, "undesirable_weight": 0.5}, "kto"),
    # TRL's likelihood term counts the prompt too and is a mean over the tokens of a micro-batch: see `trl_side.Orpo`.
    "orpo": Twin("", "odds_weight", {}, "orpo"),
}
# What `--trainer` takes → (TRL's class, the loss that is compared where none is named). TRL 1.16 has no trainer for BCO; its
# DPO trainer has the loss on pairs.
TRAINERS = {
    "dpo": ("DPOTrainer", "dpo"),
    "cpo": ("CPOTrainer", "simpo"),
    "kto": ("KTOTrainer", "kto"),
    "orpo": ("ORPOTrainer", "orpo"),
    "bco": ("DPOTrainer", "bco_pair"),
}
WITH_REFERENCE = ("dpo", "kto")  # trainers that take a reference, and can compute its sums ahead
IN_ANY_ORDER = (
    "dpo",
    "cpo",
    "orpo",
)  # trainers that can have batches of like lengths: KTO's kl belongs to batches in a fixed order


def losses_of(trainer: str) -> list[str]:
    """The losses that a value of `--trainer` can be compared on."""
    return ["bco_pair"] if trainer == "bco" else [name for name, twin in TWINS.items() if twin.trainer == trainer]


@dataclass(frozen=True)
class Variant:
    """A configuration of TRL's trainer. By default all is TRL's own, with `micro` pairs a forward pass."""

    micro: int = 8
    precomputed: bool = False
    checkpointing: bool | None = None  # None: TRL's own default
    grouped: bool = False  # batches of like lengths
    workers: int = 0  # processes that load data
    optimiser: str | None = None  # transformers' name for it; None: its default, which is AdamW in one kernel
    attention: str | None = None  # None: transformers' choice
    compiled: bool = False  # torch.compile
    liger: bool = False  # Liger's kernels, on a GPU

    @classmethod
    def best(cls, micro: int) -> Variant:
        """What is fastest nearly everywhere, of what the trainer takes; `changes` are tried from here."""
        return cls(micro, precomputed=True, checkpointing=False, grouped=True)


def changes(best: Variant, sizes: Sequence[int], *, reference: bool, gpu: Sequence[str] = ()) -> dict[str, Variant]:
    """Variants that differ from `best` in one option each, by what they change. sizes: other micro-batches. reference: whether
    the trainer has one. gpu: the packages at hand that only a GPU can use: "liger_kernel", "flash_attn"."""
    found = {f"micro-batches of {size}": replace(best, micro=size) for size in sizes if size != best.micro}
    found["checkpointing of activations"] = replace(best, checkpointing=True)
    if reference:
        found["reference computed in every step"] = replace(best, precomputed=False)
    found["batches in random order"] = replace(best, grouped=False)
    found["two processes that load data"] = replace(best, workers=2)
    found["AdamW tensor by tensor"] = replace(best, optimiser="adamw_torch")
    if "liger_kernel" in gpu:
        found["Liger's kernels"] = replace(best, liger=True)
    if "flash_attn" in gpu:
        found["FlashAttention 2"] = replace(best, attention="flash_attention_2")
    found["torch.compile"] = replace(best, compiled=True)
    return found
