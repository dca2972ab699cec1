"""Shared by the benchmarks: run one training of pobench, measure it, and compute with the results.

pobench and its peers (`trl_side`) get the same token ids, batch size, learning rate (linear decay, no warm-up, AdamW without
decay, gradients clipped at 1: TRL's defaults) and number of steps. pobench goes through `pobench.training.loop.train`. Saving,
reporting and progress bars are off.

Time covers the steps after the warm-up, with collation. Memory is the peak of the whole process (on a GPU, of its memory),
libraries included.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import math
import os
import resource
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from children import pass_turn, wait_for_turn
from processor import cores, cpu_name
from trl_variants import Variant

from pobench.data.order import data_order, mismatch, subset
from pobench.data.prepare import read_sources
from pobench.errors import PobenchError
from pobench.files import write_text
from pobench.model.device import make_accelerator, version_of
from pobench.model.flex import use_flex
from pobench.model.load import load_model
from pobench.model.logps import ResponseLogps
from pobench.model.policy_sums import sum_scorer
from pobench.registry import get_loss
from pobench.settings.job import Job
from pobench.settings.read import list_settings
from pobench.settings.resolve import resolve
from pobench.settings.schema import TrainConfig
from pobench.sources import fetch_model, weights_digest
from pobench.training.loop import train
from pobench.training.memory import peak_memory
from pobench.training.objectives import mismatched_groups
from pobench.training.reference import (
    ReferenceSums,
    compute_reference,
    reference_causes,
    reference_folder,
)
from pobench.types import Group, TokenPair

RESULTS = Path(__file__).parent / "results"
TOLERANCE = 1e-5  # relative difference of two losses that count as the same, fp32
MOVED = 1e-3  # relative change of the loss below which equal losses would prove nothing
STATE_BYTES = 16  # a parameter's share of weights, gradients and two moments, all fp32


@dataclass(frozen=True)
class Work:
    """One training run. pairs: a JSON file of token pairs, of which the first `count` are taken (None: all).

    trained: so many of them are trained on (None: all), the others only need their reference. warm_up: steps before the
    clock starts, on the first pairs again. place: folder for caches, shared by the runs of one comparison. rated: the machine's
    rate is measured between the steps, without a warm-up too. stop_at: by `time.time`, after which a run ends with the steps
    that it has done, of which one at least is behind the warm-up.
    """

    model: str
    pairs: str
    loss: str
    settings: dict[str, Any]
    lr: float
    place: str
    precision: str = "fp32"
    count: int | None = None
    trained: int | None = None
    epochs: int = 1
    warm_up: int = 0
    batch_size: int = 8
    max_length: int = 2048
    micro_tokens: int = 2048
    threads: int = 1
    variant: Variant = field(default_factory=Variant)
    compile: bool = False
    rated: bool = False
    stop_at: float | None = None


# ---------------------------------------------------------------- arithmetic


class Shape(NamedTuple):
    """Sizes that decide the work. body: matrix parameters without embedding and head. parameters: all that are trained."""

    body: int
    hidden: int
    vocabulary: int
    parameters: int

    @classmethod
    def of(cls, model: Any) -> Shape:
        head, embedding = model.get_output_embeddings().weight, model.get_input_embeddings().weight
        outside = {id(head): head.numel(), id(embedding): embedding.numel()}  # one, where they are tied
        body = sum(p.numel() for p in model.parameters() if p.ndim >= 2) - sum(outside.values())
        return cls(body, head.shape[1], head.shape[0], sum(p.numel() for p in model.parameters() if p.requires_grad))


def limit_flops(shape: Shape, pair: TokenPair, *, recomputed_head: bool = False, mismatched: bool = False) -> int:
    """The least FLOPs of a training step for one pair by itself: 6N(P + C + R) + 6HV(C + R), without the products between
    queries, keys and values, which grow with the square of the length. recomputed_head: + 2HV(C + R). mismatched: + N(C + R) +
    HV(C + R), for KTO's one answer a pair, chosen or rejected, behind another pair's prompt, whose keys and values are there.
    Pairs whose prompts begin alike can be trained with less, as what they share is then computed once."""
    responses = len(pair.chosen) + len(pair.rejected)
    head = (8 if recomputed_head else 6) + mismatched
    body = 6 * (len(pair.prompt) + responses) + mismatched * responses
    return body * shape.body + head * shape.hidden * shape.vocabulary * responses


def spread(values: Sequence[float]) -> dict[str, float]:
    """The median, minimum and maximum over rounds. Raises ValueError if there is no round."""
    if not values:
        raise ValueError("a spread of no values")
    return {"median": statistics.median(values), "min": min(values), "max": max(values), "n": len(values)}


def ratios(over: Sequence[float], under: Sequence[float]) -> dict[str, float]:
    """The spread of the quotients within each round, so that a slow phase of the machine affects both sides."""
    return spread([a / b for a, b in zip(over, under, strict=True)])


def largest_difference(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """The greatest relative difference of two runs' losses, step by step."""
    return max(abs(a - b) / abs(b) for a, b in zip(ours, theirs, strict=True))


def check_same_loss(runs: dict[str, Sequence[float]]) -> float:
    """The greatest relative difference of any run's losses from the first's.

    Raises PobenchError when it exceeds `TOLERANCE`, or when the loss has not moved enough for equality to mean anything.
    """
    (first, ours), *others = runs.items()
    if not all(math.isfinite(x) for losses in runs.values() for x in losses):
        raise PobenchError(f"no timing: a loss is not finite: {runs}")
    moved = max(abs(x - ours[0]) / abs(ours[0]) for x in ours)
    if moved < MOVED:
        raise PobenchError(
            f"no timing: over {len(ours)} steps the loss of {first} changed by {moved:.1g} of itself (at least {MOVED:g} "
            "is needed), so equal losses would prove nothing; give a larger --lr"
        )
    off = {name: largest_difference(losses, ours) for name, losses in others}
    if any(not x <= TOLERANCE for x in off.values()):
        told = "; ".join(f"{name} by {x:.2g}" for name, x in off.items())
        raise PobenchError(f"no timing: losses differ from those of {first}: {told} (allowed {TOLERANCE:g} relative)")
    return max(off.values())


# ---------------------------------------------------------------- a process of its own


def pin_threads(threads: int) -> None:
    """For this process's children: libraries read these once, when they are loaded."""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[name] = str(threads)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TQDM_DISABLE", "1")


def libraries_memory(model: str) -> int:
    """Bytes that this process holds before it trains: the model is loaded once and dropped, because that imports the rest."""
    import torch

    load_model(Path(model), dtype=torch.float32)
    gc.collect()
    status = Path("/proc/self/status")
    return _status_bytes(status, "VmRSS") if status.is_file() else 0


def highest_memory(device: Any) -> int:
    """Bytes, the most that this process has held (GPU memory where it trains on one).

    A child's `ru_maxrss` starts at its parent's size on Linux; the kernel's high-water mark does not.
    """
    status = Path("/proc/self/status")
    if device.type == "cuda" or not status.is_file():
        return peak_memory(device)
    return _status_bytes(status, "VmHWM") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _status_bytes(status: Path, key: str) -> int:
    lines = (line.split() for line in status.read_text().splitlines())
    return next((int(words[1]) * 1024 for words in lines if words[0] == f"{key}:"), 0)


def now(device: Any) -> float:
    """Seconds, with the device's queue empty."""
    if device.type == "cuda":
        import torch

        torch.cuda.synchronize(device)
    return time.perf_counter()


def matmul_rates(precision: str, device: Any, times: int, size: int) -> list[float]:
    """FLOP/s of a square matrix product in this process, product by product."""
    import torch

    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    product = torch.empty(size, size, device=device, dtype=dtype)
    rates = []
    for _ in range(times):
        started = now(device)
        torch.mm(a, b, out=product)
        rates.append(2 * size**3 / (now(device) - started))
    return rates


PRODUCT = {"cpu": 1024, "cuda": 8192}  # a processor is at its peak with 1024 already; 12 MB do not show in its memory


class Enough(Exception):
    """A run has reached its `stop_at`."""


class StepClock:
    """When each step began and ended. Between steps, off the clock, a few matrix products tell how fast the machine
    multiplies just then: a shared processor's rate may halve within a minute, and a share of its peak would be the
    neighbours' doing. On a GPU, whose memory the products would count in, they follow the last step (`rate`).

    multiplies: False where the time of the whole run is taken.
    """

    def __init__(self, precision: str, device: Any, multiplies: bool) -> None:
        self.precision, self.device, self.multiplies = precision, device, multiplies and device.type != "cuda"
        wait_for_turn()
        self.begun: list[float] = [now(device)]  # of the step after so many
        self.ended: list[float] = []
        self._rates: list[float] = []

    def __call__(self) -> None:
        """A step has ended, and the next begins."""
        self.ended.append(now(self.device))
        if self.multiplies:
            self._rates += matmul_rates(self.precision, self.device, 4, PRODUCT["cpu"])[1:]
        pass_turn()
        self.begun.append(now(self.device))

    def is_enough(self, work: Work) -> bool:
        """Whether the run should end with the steps that it has done."""
        return work.stop_at is not None and time.time() > work.stop_at and len(self.ended) > work.warm_up

    def steps(self) -> list[float]:
        """Seconds of every step, those of the warm-up too."""
        return [ended - begun for begun, ended in zip(self.begun, self.ended, strict=False)]

    def seconds(self, warm_up: int) -> float:
        """Of all steps after the first `warm_up`."""
        return sum(self.steps()[warm_up:])

    def between(self) -> float:
        """Seconds off the clock, between steps."""
        return sum(begun - ended for ended, begun in zip(self.ended, self.begun[1:], strict=False))

    def mean_rate(self) -> float:
        """FLOP/s, the mean over the steps: seconds times it are the products that the machine could have made in them."""
        return statistics.fmean(self._rates or [self.rate()])

    def rate(self) -> float:
        """FLOP/s, the median."""
        rates = self._rates or matmul_rates(self.precision, self.device, 12, PRODUCT[self.device.type])[3:]
        return statistics.median(rates)


def about_machine(accelerator: Any) -> dict[str, Any]:
    """The environment of a measurement: code, packages, processor, threads."""
    from pobench.model.device import environment

    found = environment(accelerator)
    found["packages"]["trl"] = version_of("trl")
    return {**found, "commit": commit_of(Path(__file__).parent), "cpu": cpu_name(), "cores": cores()}


def commit_of(folder: Path) -> str | None:
    """The commit of the checkout around a folder, twelve digits, and `+ changes` if a tracked file of Python differs from it.
    None: it is not git's."""

    def git(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(["git", "-C", str(folder), *words], capture_output=True, text=True)

    try:
        head = git("rev-parse", "--short=12", "HEAD")
        changed = git("diff", "--quiet", "HEAD", "--", ":(top)*.py").returncode
    except OSError:
        return None
    return None if head.returncode else head.stdout.strip() + (" + changes" if changed else "")


# ---------------------------------------------------------------- pobench


class ReferencePass(NamedTuple):
    """The reference sums, the number of responses that were computed for them, and the seconds that it took."""

    sums: ReferenceSums | None
    computed: int
    seconds: float


NO_PASS = ReferencePass(None, 0, 0.0)


def reference_of(
    work: Work, model: Any, pairs: Sequence[TokenPair], others: list[int] | None, config: TrainConfig, accelerator: Any
) -> ReferencePass:
    """The model's sums of all pairs, and of the mismatched answers where `others` says whose they are. Each of the two has
    a folder in the cache of `work.place`, and is computed if that is missing."""
    passes = [[Group.of(p) for p in pairs], *([mismatched_groups(pairs, others)] if others else [])]
    weights, cache = weights_digest(Path(work.model)), Path(work.place) / "reference"
    policy = ResponseLogps(model.to(accelerator.device), config.head_tile, compiled=config.compile)
    scorer = sum_scorer(policy, passes[0], config, accelerator)
    started, computed, folders = time.perf_counter(), 0, []
    for groups in passes:
        causes = reference_causes(groups, weights, scorer.arithmetic)
        folders.append(reference_folder(cache, causes))
        computed += compute_reference(folders[-1], groups, scorer, causes)
    return ReferencePass(ReferenceSums.load(*folders), computed, time.perf_counter() - started)


def train_config(work: Work) -> TrainConfig:
    """TRL's defaults where the two differ, and no checkpoint on the clock."""
    return TrainConfig(
        lr=work.lr,
        batch_size=work.batch_size,
        schedule="linear",
        warmup_ratio=0.0,
        precision=work.precision,
        micro_tokens=work.micro_tokens,
        compile=work.compile,
        checkpoint_seconds=1e9,
    )


class _Steps:
    """What is measured of each step: its time, its loss, and how many graphs there are behind it."""

    def __init__(self, work: Work, device: Any) -> None:
        self.work, self.losses, self.graphs = work, list[float](), list[int]()
        self.clock = StepClock(work.precision, device, multiplies=work.warm_up > 0 or work.rated)

    def __call__(self, row: dict[str, Any]) -> None:
        """A step has ended; its row. Raises Enough at `work.stop_at`."""
        self.clock()
        self.losses.append(row["loss"])
        self.graphs.append(compiled_graphs())
        if self.clock.is_enough(self.work):
            raise Enough


def run_pobench(work: Work) -> dict[str, Any]:
    """Train with pobench: see `measured`; reference_seconds and reference_computed (responses) tell the cost of the
    reference pass, 0 where the cache had it all; train_seconds is all that `train` took, that pass included."""
    import torch

    torch.set_num_threads(work.threads)
    accelerator = make_accelerator(work.precision)
    pairs = load_pairs(Path(work.pairs))[: work.count]
    order = training_order(pairs[: work.trained])
    warm = warm_up_order(order, work.warm_up * work.batch_size)
    config = train_config(work)
    libraries = 0 if accelerator.device.type == "cuda" else libraries_memory(work.model)
    model = load_model(Path(work.model), dtype=torch.float32)
    use_flex(model, device=accelerator.device)
    shape, loss = Shape.of(model), get_loss(work.loss)
    steps = _Steps(work, accelerator.device)
    started = now(accelerator.device)
    others = mismatch(pairs) if "kl" in loss.needs else None
    reference = reference_of(work, model, pairs, others, config, accelerator) if loss.reads_reference else NO_PASS
    trained = None
    with tempfile.TemporaryDirectory() as folder, contextlib.suppress(Enough):
        trained = train(
            accelerator,
            model,
            pairs,
            [*([warm] if warm else []), *[order] * work.epochs],
            loss,
            work.settings,
            config,
            folder=Path(folder),
            reference=reference.sums,
            mismatched=others,
            log=steps,
        )
    whole = now(accelerator.device) - started - steps.clock.between()
    return {
        **measured(work, accelerator, shape, libraries, steps.clock, pairs, mismatched=others is not None),
        "losses": steps.losses,
        "graphs": steps.graphs,
        "layout": trained.layout if trained else None,
        "layout_reason": trained.layout_reason if trained else "not known: ended before its time",
        "train_seconds": whole,
        "mean_flops": steps.clock.mean_rate() if work.rated else None,
        "reference_seconds": reference.seconds,
        "reference_computed": reference.computed,
    }


def compiled_graphs() -> int:
    """How many graphs torch.compile has made in this process."""
    module = sys.modules.get("torch._dynamo.utils")  # not imported where nothing was compiled
    return int(module.counters["stats"]["unique_graphs"]) if module is not None else 0


def measured(
    work: Work,
    accelerator: Any,
    shape: Shape,
    libraries: int,
    clock: StepClock,
    pairs: Sequence[TokenPair],
    *,
    mismatched: bool = False,
) -> dict[str, Any]:
    """Times in seconds, memory in bytes. libraries: held before training. mismatched: see `limit_flops`."""
    device = accelerator.device
    peak = highest_memory(device)
    values: dict[str, Any] = {
        "peak_memory": peak,
        "libraries_memory": libraries,
        "state_memory": STATE_BYTES * shape.parameters,
        "steps": len(clock.ended),
        "step_seconds": clock.steps(),
        "pairs": len(pairs),
        "shape": list(shape),
        "environment": about_machine(accelerator),
    }
    counted = pairs[: work.trained]
    if work.warm_up:
        seconds = clock.seconds(work.warm_up)
        done = (len(clock.ended) - work.warm_up) * work.batch_size
        passes = min(work.epochs, done / len(counted))  # a run that ends before its time has done a part of one
        tokens = passes * sum(Group.of(p).tokens for p in counted)
        flops = passes * sum(limit_flops(shape, p, mismatched=mismatched) for p in counted)
        rate = clock.rate()
        recomputed = passes * sum(limit_flops(shape, p, recomputed_head=True, mismatched=mismatched) for p in counted)
        values |= {
            "seconds": seconds,
            "seconds_per_pair": seconds / (passes * len(counted)),
            "useful_tokens_per_second": tokens / seconds,
            "mfu": flops / seconds / rate,
            "mfu_with_recomputed_head": recomputed / seconds / rate,
            "matmul_flops": rate,
        }
    return values


# ---------------------------------------------------------------- data


def training_order(pairs: Sequence[TokenPair]) -> list[int]:
    """In pobench's order for an epoch of seed 0."""
    return data_order(pairs, 0, 1).epochs[0].tolist()


def warm_up_order(order: Sequence[int], pairs: int) -> list[int]:
    """The first `pairs` indices, repeated from the start if there are fewer."""
    return [order[i % len(order)] for i in range(pairs)]


def save_pairs(path: Path, pairs: Sequence[TokenPair]) -> None:
    write_text(path, json.dumps([[p.id, *p.sequences] for p in pairs]))


def load_pairs(path: Path) -> list[TokenPair]:
    return [TokenPair(i, *map(tuple, ids)) for i, *ids in json.loads(path.read_text())]


def job_of(
    model: str, loss: str, *, data: str | None = None, lr: float | None = None, max_length: int | None = None
) -> Job:
    """The job behind a command line. model: the name of a shipped setting, whose data and values then serve, or a folder
    or hub name with the values of `smollm2`. Bad and over-long rows are left out."""
    named = model in list_settings()
    overrides: dict[str, Any] = {"data.on_bad_row": "drop"}
    if lr is not None:
        overrides["train.lr"] = lr
    if max_length is not None:
        overrides |= {"data.max_length": max_length, "data.max_prompt_length": max(1, max_length - 2)}
    setting = model if named else "smollm2"
    return resolve(setting, loss, data=data, model=None if named else model, overrides=overrides)[0]


def pairs_of(job: Job, count: int) -> list[TokenPair]:
    """`count` token pairs of the job's data. Raises PobenchError where it has fewer."""
    (read,) = read_sources(job)
    pairs = read.of_unit("pairs")
    if len(pairs) < count:
        raise PobenchError(f"--pairs {count}: {job.data.source} has {len(pairs)} that fit {job.data.max_length} tokens")
    return subset(pairs, count)


def model_folder(job: Job) -> str:
    return str(fetch_model(job.model.source, revision=job.model.revision, sha256=job.model.sha256))


def lengths_of(pairs: Sequence[TokenPair]) -> dict[str, float]:
    """The mean tokens of a pair's parts."""
    return {part: statistics.mean(len(getattr(p, part)) for p in pairs) for part in ("prompt", "chosen", "rejected")}


# ---------------------------------------------------------------- command lines


def parser_of(doc: str | None, *, model: str, pairs: int | None = None) -> argparse.ArgumentParser:
    """The options that every benchmark has. doc: what `--help` says first."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--model", default=model, help="a shipped setting (its model, data and values), a folder, a name"
    )
    parser.add_argument("--data", help="a preference file; default: the setting's own")
    if pairs is not None:
        parser.add_argument("--pairs", type=int, default=pairs)
    parser.add_argument("--dtype", choices=["fp32", "bf16"], default="fp32", help="of the arithmetic; weights are fp32")
    parser.add_argument("--lr", type=float, help="default: the setting's")
    parser.add_argument("--batch-size", type=int, default=8, help="pairs per optimiser step")
    parser.add_argument("--micro-tokens", type=int, help="of pobench's micro-batches; default: the setting's")
    parser.add_argument("--max-length", type=int, help="tokens; longer pairs are left out; default: the setting's")
    parser.add_argument("--threads", type=int, default=int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count() or 1))
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    parser.add_argument("--out", type=Path, help="also write that object to a file")
    return parser


def say(text: str) -> None:
    """A line about what goes on, beside the result."""
    print(text, file=sys.stderr, flush=True)


def lines_of(result: dict[str, Any]) -> str:
    """A result as plain lines."""
    return "\n".join(f"{key:<44} {value}" for key, value in _flat(result))


def run_script(
    measure: Callable[[argparse.Namespace], dict[str, Any]],
    parser: argparse.ArgumentParser,
    show: Callable[[dict[str, Any]], str] = lines_of,
) -> None:
    """Parse, measure, print and write; a fault is one plain message and exit status 2. show: what is printed for people."""
    given = parser.parse_args()
    pin_threads(given.threads)
    # As an exception it reaches `in_child`, which ends the child.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        result = measure(given)
    except PobenchError as error:
        say(str(error))
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
    text = json.dumps(result, indent=1)
    if given.out:
        write_text(given.out, text + "\n")
    print(text if given.json else show(result))


def _flat(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in tree.items():
        if isinstance(value, dict) and set(value) == {"median", "min", "max", "n"}:
            yield prefix + key, f"{value['median']:.4g}  [{value['min']:.4g}, {value['max']:.4g}]  n = {value['n']}"
        elif isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, f"{value:.4g}" if isinstance(value, float) else str(value)


def common(given: argparse.Namespace, job: Job) -> dict[str, Any]:
    """What every result says about its conditions; file names without their folders."""
    return {
        "model": Path(given.model).name if os.path.sep in given.model else given.model,
        "data": Path(job.data.source).name,
        "dtype": given.dtype,
        "batch_size": given.batch_size,
        "lr": job.train.lr,
        "max_length": job.data.max_length,
        "micro_tokens": given.micro_tokens or job.train.micro_tokens,
        "threads": given.threads,
    }


def work_of(given: argparse.Namespace, job: Job, pairs: Path, place: Path, **changes: Any) -> Work:
    """The run that a command line asks for."""
    values: dict[str, Any] = {
        "model": model_folder(job),
        "pairs": str(pairs),
        "loss": job.loss,
        "settings": dict(job.loss_settings),
        "lr": job.train.lr,
        "place": str(place),
        "precision": given.dtype,
        "batch_size": given.batch_size,
        "max_length": job.data.max_length,
        "micro_tokens": given.micro_tokens or job.train.micro_tokens,
        "threads": given.threads,
    }
    return Work(**{**values, **changes})
