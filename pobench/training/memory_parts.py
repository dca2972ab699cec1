"""What one device holds while it trains or answers, part by part, in bytes: arithmetic alone, so it can be asked before
anything runs. `docs/scaling.md` gives each formula, and how far it is from what was measured.

P parameters, of which T are trained; n devices that share weights; H, I features of the stream and of an MLP; Q, K features of
all query and of all key heads; V vocabulary; t tokens of a micro-batch. A product's type has w bytes: 2 in bf16, 4 in fp32.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from pobench.model.head import KEPT_BYTES, tile_for
from pobench.model.products import ROWS
from pobench.model.shape import ModelShape
from pobench.settings.schema import MICRO_TOKENS, AdapterConfig, LoopConfig
from pobench.training.memory import MOST_TOKENS

GIB = 1024**3
LIBRARIES = 1.0 * GIB  # a process's own: torch and its kernels; on a GPU the CUDA context and its communication buffers
USABLE = 0.92  # of a device's memory: the rest is lost between blocks of the allocator
# bytes a frozen weight: NormalFloat with quantised constants, 4 + 0.127 bits (arXiv 2305.14314, Section 3)
FROZEN_BYTES = {"nf4": 4.127 / 8, "bf16": 2.0, "fp32": 4.0}


@dataclass(frozen=True)
class TrainingMemory:
    """Bytes on one device at the peak of a training step.

    masters: weights. gradients: of the trained ones. moments: Adam's two. copies: weights in the type of the product.
    activations: kept for the backward pass. start_model: beside the policy, frozen or moved. value_model: beside the policy,
    with gradients, moments and activations of its own. staged: a processor's copy of what a checkpoint is written from beside
    the steps; that of a GPU lies in its machine's memory. Three kinds of work come one after the other, so only the largest of
    them counts. logits: of a tile of the vocabulary, with the head's gradient. layer: what a layer's backward pass takes.
    buckets: of a layer's gradients on their way between devices.
    """

    masters: float
    gradients: float
    moments: float
    copies: float
    activations: float
    start_model: float
    value_model: float
    staged: float
    libraries: float
    logits: float
    layer: float
    buckets: float

    @property
    def total(self) -> float:
        work = (self.logits, self.layer, self.buckets)
        return sum(self.parts.values()) - sum(work) + max(work)

    @property
    def parts(self) -> dict[str, float]:
        """Name → bytes, in the order in which they are named above."""
        return dict(self.__dict__)


@dataclass(frozen=True)
class Step:
    """How a step computes, as far as memory goes. tokens: of the largest micro-batch, pads included. responses: those of them
    that the head reads. shards: devices that share weights, gradients and moments. narrow: whether products are bf16. staged: a
    checkpoint is written from a copy in the device's memory. moving: copies of the trained weights that steps move, which are
    in that copy: the start model, and two more where a reference is led. valued: a value model is trained beside the policy."""

    tokens: int
    responses: int
    shards: int = 1
    gpu: bool = True
    narrow: bool = True
    checkpointing: bool = False
    adapter: AdapterConfig | None = None
    head_tile: int | None = None
    start_model: bool = False
    staged: bool = False
    moving: int = 0
    valued: bool = False

    @classmethod
    def of(
        cls, config: LoopConfig, longest: int, *, shards: int = 1, gpu: bool = True, narrow: bool | None = None
    ) -> Step:
        """Of a training's settings. longest: tokens of the longest item, which may be more than a micro-batch's budget. narrow:
        what `precision: auto` becomes; None: bf16 on a GPU."""
        auto = MOST_TOKENS["cuda" if gpu else "cpu"]
        budget = auto if config.micro_tokens == "auto" else config.micro_tokens
        tokens = max(budget, longest)
        bf16 = (gpu if narrow is None else narrow) if config.precision == "auto" else config.precision == "bf16"
        return cls(
            tokens, tokens, shards, gpu, bf16, config.gradient_checkpointing is True,
            getattr(config, "adapter", None), config.head_tile, getattr(config, "reference", "") == "every_step",
            config.checkpoint_async is True and not gpu,
            valued=getattr(config, "value_learning_rate", None) is not None,
        )  # fmt: skip

    @property
    def width(self) -> int:
        """Bytes of a number in a product."""
        return 2 if self.narrow else 4

    @property
    def base(self) -> str:
        """How frozen weights are stored: nf4, bf16, fp32."""
        if self.adapter is None:
            return "fp32"
        return self.adapter.quantize if self.adapter.quantize != "none" else self.adapter.base_precision

    @property
    def stream(self) -> int:
        """Bytes of a number in the stream between layers: that of the weights while they compute."""
        return 2 if self.base != "fp32" or (self.narrow and self.shards > 1) else 4


def training_memory(shape: ModelShape, step: Step) -> TrainingMemory:
    """Of one device at the peak of a step. Masters, gradients and moments are fp32 and cost 16 bytes a trained weight, over the
    devices that share them."""
    adapter, shards = step.adapter, step.shards
    trained = shape.parameters if adapter is None else shape.adapter_parameters(adapter.r, adapter.target_modules)
    frozen = 0.0 if adapter is None else _frozen_bytes(shape, step.base)
    return TrainingMemory(
        masters=(4.0 * trained + frozen) / shards,
        gradients=4.0 * trained / shards,
        moments=8.0 * trained / shards,
        copies=_copies(shape, step),
        activations=_activations(shape, step),
        start_model=_start_model(shape, step, trained) / shards if step.start_model else 0.0,
        value_model=_value_model(shape, step) if step.valued else 0.0,
        staged=_staged_bytes(step) * trained / shards,
        libraries=LIBRARIES,
        logits=_logits(shape, step),
        layer=_layer_at_work(shape, step),
        buckets=_buckets(shape, step),
    )


def _staged_bytes(step: Step) -> float:
    """Of a trained weight."""
    return 12.0 * (1 + step.valued) + 4.0 * step.moving if step.staged else 0.0


def _start_model(shape: ModelShape, step: Step, trained: float) -> float:
    """Its weights, and what is kept beside them where steps move them."""
    return _frozen_bytes(shape, step.base) + 4.0 * trained * max(0, step.moving - 1)


def _value_model(shape: ModelShape, step: Step) -> float:
    """16 bytes a weight, as of the policy; copies in the type of the product; and what its own code keeps of the prompts, which
    are at most a micro-batch's tokens."""
    return 16.0 * shape.parameters + _copies(shape, step) + _activations(shape, replace(step, gpu=True))


def _frozen_bytes(shape: ModelShape, base: str) -> float:
    """Only linear modules of the layers are quantised; all else of such a model is bf16."""
    if base == "nf4":
        return FROZEN_BYTES["nf4"] * shape.linear + 2.0 * (shape.parameters - shape.linear)
    return FROZEN_BYTES[base] * shape.parameters


# ---------------------------------------------------------------- weights while they compute
def _copies(shape: ModelShape, step: Step) -> float:
    """Weights in the type of the product, beside the masters.

    One device: a layer's are kept from its forward to its backward pass, so all at the end of the forward pass; with
    checkpointing those of one layer. Shared weights: all that is outside the layers stays gathered; a layer's: `_gathered`.
    """
    if step.shards > 1:
        return float(step.width * shape.outside)
    if not step.narrow or step.base == "bf16":
        return 0.0
    if step.base == "nf4":  # made again from four bits wherever one is read
        return 2.0 * shape.hidden * shape.inner
    layers = 1 if step.checkpointing and step.gpu else shape.layers  # on a processor they are kept for a whole step
    return 2.0 * (shape.vocabulary * shape.hidden + layers * shape.linear / shape.layers)


def _gathered(shape: ModelShape, step: Step, layers: int) -> float:
    """Shared weights of so many layers while they are whole."""
    return 0.0 if step.shards == 1 else float(step.width * layers * shape.layer)


def _waiting(shape: ModelShape, step: Step) -> float:
    """The head's gradient, which is shared out at the end of the backward pass."""
    return 0.0 if step.shards == 1 else float(step.width * shape.vocabulary * shape.hidden)


def _buckets(shape: ModelShape, step: Step) -> float:
    """A layer's gradients on their way, beside the next layer's weights. One copy on each device: they lie in the buckets that
    are exchanged, so nothing. Shared weights: as they were computed, and twice in fp32: a sum on its way, the next packed; what
    that layer kept of the forward pass is free by then."""
    if step.shards == 1 or step.adapter is not None:
        return 0.0
    moved = (step.width + 8.0) * shape.layer + _gathered(shape, step, layers=1) + _waiting(shape, step)
    return max(0.0, moved - step.tokens * _kept(shape, step))


# ---------------------------------------------------------------- activations
def _activations(shape: ModelShape, step: Step) -> float:
    """Kept for the backward pass: what every layer keeps of every token, or its input alone with checkpointing; the cosines and
    sines of positions; behind the layers the input of the last norm, and the states that the head reads."""
    around = 8.0 * shape.query / shape.heads + 4 * shape.hidden
    return step.tokens * (shape.layers * _kept(shape, step) + around) + step.responses * shape.hidden * step.stream


def _kept(shape: ModelShape, step: Step) -> float:
    """Bytes that a layer keeps of a token until its backward pass."""
    return shape.hidden * step.stream if step.checkpointing else _kept_by_a_layer(shape, step)


def _kept_by_a_layer(shape: ModelShape, step: Step) -> float:
    """Bytes a token. Which tensors: `pobench/model/cpu/layers.py` for layers that are exchanged, else the model's own code."""
    w, h, q, k = step.width, shape.hidden, shape.query, shape.key
    own_norm = step.stream == 2  # its class computes in fp32 what it is given in bf16
    norm = 4.0 * h + 4 + (2 * h if own_norm and step.adapter is None else 0)
    attention = w * (2 * q + 2 * k)
    if step.gpu or step.adapter is not None:  # its own code: input, attended values once more, sums of the softmax
        attention += w * (h + q) + 4 * shape.heads
    mlp = w * (2 * shape.inner + (h if own_norm else 0))
    if step.adapter is not None:  # its own code: the gate's activation, and the product twice, too; and the input
        mlp = w * (5 * shape.inner + h)
        if own_norm:  # every matrix beside a narrow weight casts its own input
            mlp += w * (5 * h + q)
    return 2 * norm + attention + mlp


# ---------------------------------------------------------------- at work
def _tile(shape: ModelShape, step: Step) -> int:
    """Vocabulary entries that the head reads at a time."""
    return min(shape.vocabulary, step.head_tile or tile_for(step.responses, "cuda" if step.gpu else "cpu"))


def _logits(shape: ModelShape, step: Step) -> float:
    """A tile's logits and their gradient, the softmax that is kept, the gradient of the states, and that of the head, which one
    process on a processor adds in place; split: the last layer's weights, fetched before they are needed."""
    device, tile = "cuda" if step.gpu else "cpu", _tile(shape, step)
    states = 4.0 * step.responses * shape.hidden
    if step.adapter is not None:  # one pass: the logits as product and in fp32; the states' gradient from two parts
        product = step.responses * tile * (6.0 if step.narrow else 4.0)
        return product + 2 * states + _gathered(shape, step, layers=1) + _scratch_of_layers(shape, step)
    softmax = step.width * step.responses * shape.vocabulary
    kept = min(KEPT_BYTES[device], softmax)
    # from a softmax that is kept, only its gradient (in bf16 beside a copy in fp32); else logits and gradient
    each = (8.0 if step.narrow else 4.0) if kept == softmax else (10.0 if step.narrow else 8.0)
    head = 4.0 * shape.vocabulary * shape.hidden if step.gpu or step.shards > 1 else 0.0
    own = step.responses * tile * each + states + kept + head
    return own + _gathered(shape, step, layers=1) + _scratch_of_layers(shape, step)


def _layer_at_work(shape: ModelShape, step: Step) -> float:
    """The backward pass of an MLP: its activation and product again, and the gradients of four such tensors; the gradient of
    the stream; the gradients of its three matrices, which one process on a processor adds in place; with checkpointing all that
    the layer keeps, made again."""
    each = 5.0 * step.width * shape.inner + (4 + step.width) * shape.hidden
    again = _kept_by_a_layer(shape, step) if step.checkpointing else 0.0
    apart = step.adapter is None and (step.gpu or step.shards > 1)
    weights = (4 if step.shards == 1 else step.width) * 3.0 * shape.hidden * shape.inner if apart else 0.0
    own_and_next = _gathered(shape, step, layers=2)
    own = step.tokens * (each + again) + weights + _scratch_of_head(shape, step)
    return own + own_and_next + _waiting(shape, step)


# What a processor gives out again (`pobench.model.scratch`) stays while other work is done.
def _scratch_of_layers(shape: ModelShape, step: Step) -> float:
    """An MLP's activation and its gradient, and two fp32 tensors of a norm."""
    if step.gpu:
        return 0.0
    middle = 2.0 * step.width * shape.inner if step.adapter is None else 0.0
    return step.tokens * (middle + (8.0 * shape.hidden if step.stream == 4 else 0.0))


def _scratch_of_head(shape: ModelShape, step: Step) -> float:
    """A tile's logits in fp32; in bf16, where the head is trained, their gradient, and rows of the head's, which one process
    adds in place."""
    if step.gpu:
        return 0.0
    logits = step.responses * _tile(shape, step)
    if step.adapter is not None or not step.narrow:
        return 4.0 * logits
    return 6.0 * logits + (2.0 * min(ROWS, _tile(shape, step)) * shape.hidden if step.shards == 1 else 0.0)


# ---------------------------------------------------------------- answers
@dataclass(frozen=True)
class AnsweringMemory:
    """Bytes on one device while it answers. cache: keys and values of `rows` answers at their longest. reading: what the
    prompts of these rows take while they are read, and a token's logits."""

    weights: float
    cache: float
    reading: float
    libraries: float
    rows: int

    @property
    def total(self) -> float:
        return sum(self.parts.values())

    @property
    def parts(self) -> dict[str, float]:
        """Name → bytes."""
        return {k: v for k, v in self.__dict__.items() if k != "rows"}


def answering_memory(shape: ModelShape, rows: int, prompt: int, new: int, weight_bytes: float = 2.0) -> AnsweringMemory:
    """Of a batch of `rows` answers of `new` tokens to prompts of `prompt` tokens.

    weight_bytes: of a weight, 2 in bf16. A token's keys and values take 2 · layers · K numbers; see
    `pobench.model.generate.row_bytes`, which decides in a run how many rows fit.
    """
    w = 4 if weight_bytes == 4 else 2
    cache = 2.0 * shape.layers * shape.key * w * (prompt + new)
    states = prompt * (8 * shape.hidden + 3 * shape.inner) * w + prompt * (prompt + new) * w + 16 * shape.vocabulary
    return AnsweringMemory(weight_bytes * shape.parameters, rows * cache, rows * states, LIBRARIES, rows)


def fitting_tokens(shape: ModelShape, step: Step, device_bytes: float, longest: int) -> int | None:
    """The largest power of two of micro-batch tokens, at most `step.tokens`, that fits a device; None if not even the longest
    item does."""
    tokens = 1 << (step.tokens.bit_length() - 1)
    while tokens >= MICRO_TOKENS // 8:
        at = max(tokens, longest)
        if training_memory(shape, replace(step, tokens=at, responses=at)).total <= USABLE * device_bytes:
            return at
        tokens //= 2
    return None
