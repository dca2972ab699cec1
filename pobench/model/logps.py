"""A causal language model as a function: batch → fp32 sum of log-probabilities of each response, or each token's. The label
shift is here and nowhere else: the hidden state at a token's predecessor predicts the token.

    log π(y | x) = Σ_t [ z_t[y_t] - logsumexp(z_t) ],   z_t = head(h_{t-1})

The head runs on response positions only, one tile of the vocabulary at a time, so the (tokens × vocabulary) matrix never
exists. Each micro-batch reads the weight once, and adds to its gradient once. Softmax and sums are fp32; the logsumexp over
the vocabulary is combined from those of the tiles. If the head's weight is trained, the backward pass needs every tile's
softmax: up to `KEPT_BYTES` of them are kept, the others are computed again. If the head is frozen (an adapter is trained),
one pass is enough. A token's log-probability depends on its own hidden state alone, so its gradient there,

    ∂ log π(y_t) / ∂ h = weight[y_t] - softmax(z_t) @ weight,

is one vector a token. The forward pass computes it from the softmax of each tile, and keeps it instead of the hidden state;
the backward pass only scales it.

What losses ask for of the whole vocabulary at each position is computed in the same tiles: `vocabulary.py`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from pobench.model import cpu
from pobench.model.attention import added_mask, base_kind, current_kind, use_matrices
from pobench.model.compiled import compile_layers, uncompiled
from pobench.model.dropout import switch_off_dropout
from pobench.model.flash import takes_flash, use_flash
from pobench.model.flex import BLOCK, block_mask, takes_blocks, use_blocks
from pobench.model.head import KEPT_BYTES, _Head, _TiledHead, tile_for
from pobench.model.layouts import WIDTH_STEP, Batch, Layout, get_layout
from pobench.model.liger import NAME as LIGER
from pobench.model.liger import drop_liger, takes_liger, use_kernels, without_liger
from pobench.model.products import Arithmetic
from pobench.model.value import PromptValue
from pobench.model.vocabulary import Beside, Positions, values_of

T = TypeVar("T")


class ResponseLogps(nn.Module):
    """A causal language model as a function from a batch to (responses,) fp32 summed log-probabilities in nats.

    Body and head both run inside `forward`, so that a data-parallel wrapper sees every gradient. Dropout is off.
    """

    def __init__(
        self, model: Any, tile: int | None = None, *, compiled: bool = False, device: torch.device | None = None
    ) -> None:
        """tile: vocabulary entries per tile of the head; None: chosen for the device and the number of positions. compiled: use
        torch.compile for the layers, and exchange none. device: where the model will compute; None: where it is.

        If `arithmetic.in_place` is set, head and linear layers add a weight's gradient to `weight.grad` themselves, instead
        of handing autograd a matrix of the same size.
        """
        super().__init__()
        self.model = model
        self.arithmetic = Arithmetic()
        self.autocast = True  # whether autocast chooses the type of products; false where the weights' own type does
        self.gathered_in: torch.dtype | None = None  # the type that sharded weights are gathered in, if not their own
        on_processor = (device or model.device).type == "cpu"
        self.dropout = switch_off_dropout(model)  # before layers are exchanged: a trial sees the model without it
        if compiled:
            cpu.restore_layers(model)
            compile_layers(model)
        else:
            self.use_exchanged_layers()
        if compiled and cpu.takes_parts(model):
            use_matrices(model)
        elif on_processor and not compiled:
            cpu.use_parts(model)
        self.value: PromptValue | None = None  # trained beside the policy, for a loss that asks for it
        self.tile = tile
        config = model.config.get_text_config()
        kinds = set(getattr(config, "layer_types", None) or ())
        self.mixed_windows = len(kinds) > 1
        window = getattr(config, "sliding_window", None)
        if kinds == {"full_attention"} or getattr(config, "use_sliding_window", True) is False:
            window = None
        self.window: int | None = window
        self.additive = base_kind(model) == "eager" or on_processor
        self.softcap: float | None = getattr(config, "final_logit_softcapping", None)
        self.scale: float = getattr(config, "logit_scale", None) or 1.0 / (
            getattr(config, "logits_scaling", None) or 1.0
        )

    @property
    def dtype(self) -> torch.dtype:
        """The type of the weights while they compute."""
        return self.gathered_in or self.model.dtype

    @property
    def vocabulary(self) -> int:
        """How many tokens the head chooses among."""
        return len(self.model.get_output_embeddings().weight)

    def within_forward(self, work: Callable[[], T]) -> T:
        """`work()`, done as a forward pass is: sharded weights of the policy's own unit are gathered meanwhile."""
        return work()

    def use_exchanged_layers(self) -> None:
        """Exchange the layers that pass a trial: they compute the same numbers with less memory."""
        cpu.exchange_layers(self.model.base_model, self.arithmetic)

    def use_own_layers(self) -> None:
        """Undo `use_exchanged_layers`."""
        cpu.restore_layers(self.model)

    def use_kernels(self, kernels: str) -> None:
        """Let norms and MLPs compute by other kernels than they do now: those of a name of `model.kernels`."""
        self.use_own_layers()
        drop_liger(self.model)
        use_kernels(self.model, kernels)
        self.use_exchanged_layers()

    @property
    def kernels(self) -> str:
        """Those that norms and MLPs compute by, as `model.kernels` names them."""
        return LIGER if takes_liger(self.model) else "none"

    @property
    def has_exchanged_layers(self) -> bool:
        """Whether any layer's own code is exchanged."""
        return any(map(cpu.is_exchanged, self.model.modules()))

    @property
    def attention(self) -> str:
        """How attention is computed: over shared-prefix rows by blocks, by parts or by matrices; over padded rows by flash, or
        by what the model has (matrices)."""
        if takes_flash(self.model):
            return "flash"
        return "blocks" if takes_blocks(self.model) else "parts" if cpu.takes_parts(self.model) else "matrices"

    def use_attention(self, kind: str) -> None:
        """Switch to a kind of attention: a value that `attention` had before `use_matrices`."""
        if kind == "blocks":
            use_blocks(self.model)
        elif kind == "parts":
            cpu.use_parts(self.model)
        elif kind == "flash":
            use_flash(self.model)
        else:
            use_matrices(self.model)

    @contextlib.contextmanager
    def untouched(self) -> Iterator[Any]:
        """Inside, the model computes by its own code: nothing is exchanged or compiled."""
        kind = current_kind(self.model)
        use_matrices(self.model)
        try:
            with cpu.own_layers(self.model), without_liger(self.model), uncompiled(self.model):
                yield self.model
        finally:
            if kind != current_kind(self.model):
                self.model.set_attn_implementation(kind)

    def layout(self, name: str) -> Layout:
        """The layout, configured for this model's attention."""
        kind = self.attention if name == "shared_prefix" else "matrices"
        # A value model reads every prompt whole, so with roots a micro-batch would have more of its tokens than the budget.
        rooted = self.value is None
        if kind == "blocks":
            return get_layout(name, width_step=BLOCK, one_row=True, rooted=rooted)
        return get_layout(name, one_row=True, rooted=rooted) if kind == "parts" else get_layout(name)

    def _mask(self, batch: Batch, window: int | None, dtype: torch.dtype) -> Any:
        """The mask in the form that the model's attention takes: blocks, parts, a matrix to add to the scores, or bool."""
        kind = self.attention
        if kind == "blocks":
            return block_mask(batch, window)
        if kind == "parts" and batch.places:
            return cpu.mask_of_parts(batch, window, dtype)
        return added_mask(batch.mask(window), dtype) if self.additive else batch.mask(window)

    def _masks(self, batch: Batch, dtype: torch.dtype) -> Any:
        """The masks of all layers: one, or one for each kind of layer, or None to let the model make its own."""
        if batch.member is None:
            return None
        if batch.window is None or not self.mixed_windows:
            return self._mask(batch, batch.window, dtype)
        kinds = {"full_attention": None, "sliding_attention": batch.window}
        return {kind: self._mask(batch, window, dtype) for kind, window in kinds.items()}

    def forward(
        self, batch: Batch, per_token: bool = False, beside: Beside | None = None, valued: bool = False
    ) -> Tensor | tuple[Tensor, Tensor]:
        """(responses,) sums; per_token: (tokens,) log-probabilities, response by response; beside: (1 + kinds, tokens), below
        the tokens' log-probabilities what it asks for. valued: and (responses,) `value` of each response's prompt."""
        logps = self._logps(batch, per_token, beside)
        if not valued:
            return logps
        assert self.value is not None
        return logps, self.value(batch)

    def _logps(self, batch: Batch, per_token: bool, beside: Beside | None) -> Tensor:
        here, target = self._positions(batch)
        with torch.autocast(batch.input_ids.device.type, enabled=False):
            if beside is not None:
                return values_of(here, target, beside)[:, : len(batch.target)]
            logp = _TiledHead.apply(here.states, here.weight, here.bias, target, here.head)[: len(batch.target)]
        if per_token:
            return logp
        return torch.zeros(batch.responses, device=logp.device).index_add(0, batch.sequence, logp)

    @torch.no_grad()
    def positions(self, batch: Batch) -> Positions:
        """The model at the response positions, without gradient, for a policy whose forward pass compares itself to it."""
        return self.within_forward(lambda: self._positions(batch)[0])

    def _positions(self, batch: Batch) -> tuple[Positions, Tensor]:
        """The model at the response positions, and the tokens that follow them; both with pads."""
        device_type = batch.input_ids.device.type
        weight = self.model.get_output_embeddings().weight
        product_weight = self.arithmetic.weight(weight).detach()
        hidden = self.model.base_model(
            input_ids=batch.input_ids,
            position_ids=batch.position_ids,
            attention_mask=self._masks(batch, product_weight.dtype),
            use_cache=False,
        ).last_hidden_state
        # Like the width of rows, the number of positions is a multiple of WIDTH_STEP, pads included, so that it recurs.
        pads = -len(batch.target) % WIDTH_STEP
        previous, target = (torch.nn.functional.pad(t, (0, pads)) for t in (batch.previous, batch.target))
        states = hidden.flatten(0, 1).index_select(0, previous)
        bias = getattr(self.model.get_output_embeddings(), "bias", None)
        grad = self.arithmetic.grad(weight)
        room = KEPT_BYTES.get(device_type, 0) if torch.is_grad_enabled() else 0
        tile = self.tile or tile_for(len(target), device_type)
        head = _Head(tile, self.scale, self.softcap, product_weight, grad, room, self.arithmetic)
        return Positions(states, weight, bias, head), target
