"""Hidden states → fp32 sums of log-probabilities per response. The only file that knows the label shift:
the hidden state at a token's predecessor predicts the token.

    log π(y | x) = Σ_t [ z_t[y_t] - logsumexp(z_t) ],   z_t = head(h_{t-1})

The head runs on response positions alone, a tile of the vocabulary at a time, so that the (tokens × vocabulary) matrix
never exists, and a micro-batch reads the weight, and adds to its gradient, once. The softmax and the sums are fp32; the
logsumexp of all tiles is made of those of each. Where the head's weight is trained, the backward pass needs every tile's
softmax: the first ones are kept, `KEPT_BYTES` of them, and the others computed again. A frozen head (an adapter is trained)
is passed once: a token's log-probability depends on its own hidden state alone, so its slope there,

    ∂ log π(y_t) / ∂ h = weight[y_t] - softmax(z_t) @ weight,

is one vector a token, made in the forward pass while the tiles' softmax is at hand and kept in the hidden state's place.
The backward pass only scales it: no weight gradient, nothing recomputed.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from pobench.model.compiled import compile_layers
from pobench.model.cpu.attention import BLOCK, block_mask, kind_of, take_matrices, take_parts, takes_blocks, takes_parts
from pobench.model.cpu.layers import Arithmetic, make_lean
from pobench.model.cpu.prefix_attention import added_mask, parts_of, standing_for
from pobench.model.head import KEPT_BYTES, _Head, _TiledHead, tile_for
from pobench.model.layouts import WIDTH_STEP, Batch, Layout, get_layout


class ResponseLogps(nn.Module):
    """A causal language model as a function from a batch to (responses,) fp32 summed log-probabilities in nats.

    Body and head run inside this one forward, so that a data-parallel wrapper sees every gradient.
    """

    def __init__(self, model: Any, tile: int | None = None, *, compiled: bool = False) -> None:
        """tile: vocabulary entries per tile of the head; None: what suits the device and the number of positions. compiled:
        layers by torch.compile, in place of the lean ones.

        `arithmetic.in_place`: head and linear layers add a weight's gradient to the one that is there, instead of handing
        autograd a matrix of the same size to add.
        """
        super().__init__()
        self.model = model
        self.arithmetic = Arithmetic() if compiled else make_lean(model.base_model)
        if compiled:
            compile_layers(model)
        if compiled and takes_parts(model):
            take_matrices(model)
        elif model.device.type == "cpu" and not compiled:
            take_parts(model)
        self.tile = tile
        config = model.config.get_text_config()
        kinds = set(getattr(config, "layer_types", None) or ())
        self.mixed_windows = len(kinds) > 1
        window = getattr(config, "sliding_window", None)
        if kinds == {"full_attention"} or getattr(config, "use_sliding_window", True) is False:
            window = None
        self.window: int | None = window
        self.additive = kind_of(model) == "eager" or model.device.type == "cpu"
        self.softcap: float | None = getattr(config, "final_logit_softcapping", None)
        self.scale: float = getattr(config, "logit_scale", None) or 1.0 / (
            getattr(config, "logits_scaling", None) or 1.0
        )

    def layout(self, name: str) -> Layout:
        """The layout as this model takes it best."""
        if name == "shared_prefix" and takes_blocks(self.model):
            return get_layout(name, width_step=BLOCK, one_row=True)
        if name == "shared_prefix" and takes_parts(self.model):
            return get_layout(name, one_row=True)
        return get_layout(name)

    def _mask(self, batch: Batch, window: int | None, dtype: torch.dtype) -> Any:
        """Blocks, parts, truth values, or what is added to the scores."""
        if takes_blocks(self.model):
            return block_mask(batch, window)
        if takes_parts(self.model) and batch.places:
            rows, width = batch.input_ids.shape
            parts = parts_of(batch.places, window)
            return standing_for(parts, lambda: added_mask(batch.mask(window), dtype), (rows, 1, width, width), dtype)
        return added_mask(batch.mask(window), dtype) if self.additive else batch.mask(window)

    def _masks(self, batch: Batch, dtype: torch.dtype) -> Any:
        """Made once for all layers: one mask, one for each kind of layer, or None where the model's own serves."""
        if batch.member is None:
            return None
        if batch.window is None or not self.mixed_windows:
            return self._mask(batch, batch.window, dtype)
        kinds = {"full_attention": None, "sliding_attention": batch.window}
        return {kind: self._mask(batch, window, dtype) for kind, window in kinds.items()}

    def forward(self, batch: Batch) -> Tensor:
        device_type = batch.input_ids.device.type
        weight = self.model.get_output_embeddings().weight
        product_weight = self.arithmetic.weight(weight).detach()
        hidden = self.model.base_model(
            input_ids=batch.input_ids,
            position_ids=batch.position_ids,
            attention_mask=self._masks(batch, product_weight.dtype),
            use_cache=False,
        ).last_hidden_state
        # As rows' widths do, the number of positions recurs: it is a multiple of WIDTH_STEP, pads included.
        pads = -len(batch.target) % WIDTH_STEP
        previous, target = (torch.nn.functional.pad(t, (0, pads)) for t in (batch.previous, batch.target))
        wanted = hidden.flatten(0, 1).index_select(0, previous)
        bias = getattr(self.model.get_output_embeddings(), "bias", None)
        grad = self.arithmetic.grad(weight)
        room = KEPT_BYTES.get(device_type, 0) if torch.is_grad_enabled() else 0
        tile = self.tile or tile_for(len(target), device_type)
        head = _Head(tile, self.scale, self.softcap, product_weight, grad, room)
        with torch.autocast(device_type, enabled=False):
            logp = _TiledHead.apply(wanted, weight, bias, target, head)[: len(batch.target)]
        return torch.zeros(batch.responses, device=logp.device).index_add(0, batch.sequence, logp)
