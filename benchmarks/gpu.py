"""pobench on one GPU, beside TRL, transformers and vLLM where they are installed: ten minutes, one command.

    python benchmarks/gpu.py                    appends rows to benchmarks/results/gpu.jsonl; call it again for what is missing
    python benchmarks/page.py                   the table and the figures, here or elsewhere, from that file
    python benchmarks/gpu.py --small            tries every part on any machine; its numbers mean nothing

Nothing is downloaded: models are random, of Llama-3.2-1B's shape and of eight of Mistral-7B's layers, and so are tokenizers and
pairs, whose lengths are spread as UltraFeedback's. A part that has no time left, a package that is not installed and a process
that fails are rows too, and never end the run. Programs that are compared are processes of their own, and take one step each
in turn. Compiling is stated apart: what the warm-up took beyond as many later steps, and the graphs made after it.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import from_checkout  # noqa: F401  # first: it lets the others find pobench
import peers
import torch
from children import ENDED, FAULT, TookTooLongError, in_child, in_turn
from gpu_answers import AT_ONCE, answer
from peers import Work, run_pobench, say, spread
from random_inputs import SHAPES, make_model, random_pairs
from trl_side import gpu_packages, padding_free_fault, run_trl
from trl_variants import TRAINERS, TWINS, Variant, changes

from pobench.errors import PobenchError
from pobench.model.device import make_accelerator, version_of
from pobench.model.shape import shape_of
from pobench.registry import get_loss
from pobench.training.memory_parts import LIBRARIES, Step, training_memory
from pobench.types import TokenPair

CHECKED_STEPS = 3
LEAVING = 30  # seconds before a part's end, after which its programs end with the steps that they have done
TRIAL = 80  # seconds of one option of TRL, at most
# Pairs a forward pass of TRL at its best: eight rows of up to 1,900 tokens take 30 GB without checkpointing, and the other
# programs hold 70 meanwhile. `search`, with the GPU to itself, tries larger ones.
MICRO_PAIRS = 4
Row = dict[str, Any]


@dataclass
class Setup:
    """What all parts share. rows: of this call and of earlier ones."""

    given: argparse.Namespace
    place: Path
    rows: list[Row] = field(default_factory=list)

    @property
    def main(self) -> str:
        return "random-tiny" if self.given.small else "random-1b"

    @property
    def larger(self) -> str:
        return "random-small" if self.given.small else "random-7b-cut"

    def model(self, name: str) -> Path:
        """Its folder, made at the first call."""
        folder = self.place / name
        if not (folder / "config.json").is_file():
            in_child(write_inputs, name, folder, self.given)
        return folder

    def work(self, name: str, loss: str, **changes: Any) -> Work:
        given, settings = self.given, {**get_loss(loss).settings, **(TWINS[loss].settings if loss in TWINS else {})}
        folder = self.model(name)
        values: dict[str, Any] = {
            "model": str(folder),
            "pairs": str(folder / "pairs.json"),
            "loss": loss,
            "settings": settings,
            "lr": 1e-6,
            "place": str(self.place),
            "precision": given.dtype,
            "batch_size": given.batch_size,
            "micro_tokens": given.micro_tokens,
            "threads": given.threads,
            "warm_up": given.warm_up,
            "variant": Variant(min(8, given.batch_size)),
        }
        return Work(**{**values, **changes})

    def faster_layers(self) -> bool:
        """Whether compiled layers took less time than lean ones, as measured; lean ones where nothing was."""
        seconds = {
            row["variant"]: row["seconds_per_pair"]["median"]
            for row in self.rows
            if row["part"] == "layers" and row["status"] == "measured" and row["model"] == self.main
        }
        return seconds.get("compiled layers", 1e9) < seconds.get("lean layers", 1e9)


class Part(NamedTuple):
    """seconds: it is ended after these. least: it does not begin with less time left. rows: its rows, as they come."""

    name: str
    seconds: float
    least: float
    rows: Callable[[Setup, float], Iterator[Row]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="tiny models and short pairs, on any device")
    parser.add_argument("--seconds", type=float, default=540.0, help="of the whole run, at most")
    parser.add_argument("--parts", help=f"comma-separated, of {', '.join(part.name for part in PARTS)}; default: all")
    parser.add_argument("--pairs", type=int, help="timed, a multiple of --batch-size; default: six steps")
    parser.add_argument("--batch-size", type=int, help="pairs per optimiser step; default: 64")
    parser.add_argument("--micro-tokens", type=int, default=8192, help="of pobench's micro-batches")
    parser.add_argument("--warm-up", type=int, default=3, help="steps before the clock starts; kernels compile in them")
    parser.add_argument("--dtype", choices=["bf16", "fp32"], default="bf16", help="of the arithmetic; weights are fp32")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--out", type=Path, help="the file of rows; default: benchmarks/results/gpu.jsonl")
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # as an exception it reaches the children
    try:
        run(complete(given))
    except PobenchError as error:
        say(str(error))
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)


def complete(given: argparse.Namespace) -> argparse.Namespace:
    """Fill in what depends on other options. Raises PobenchError that lists all faults of the command line or the machine."""
    given.batch_size = given.batch_size or (4 if given.small else 64)
    given.pairs = given.pairs or given.batch_size * (2 if given.small else 6)
    if given.out is None:
        given.out = Path(tempfile.gettempdir()) / "gpu-trial.jsonl" if given.small else peers.RESULTS / "gpu.jsonl"
    faults = [
        f"--{option.replace('_', '-')} {getattr(given, option)}: at least 1"
        for option in ("pairs", "batch_size", "micro_tokens", "warm_up", "threads")
        if getattr(given, option) < 1
    ]
    if not faults and given.pairs % given.batch_size:
        faults.append(f"--pairs {given.pairs}: a multiple of --batch-size {given.batch_size} is needed")
    known = [part.name for part in PARTS]
    given.parts = known if given.parts is None else [name.strip() for name in given.parts.split(",")]
    faults += [f"--parts: no {name!r}; known: {', '.join(known)}" for name in given.parts if name not in known]
    if not (given.small or torch.cuda.is_available()):
        faults.append("this benchmark measures a GPU, and there is none; --small tries it without")
    if faults:
        raise PobenchError("\n".join(faults))
    return given


# ---------------------------------------------------------------- rows


def run(given: argparse.Namespace) -> None:
    """Every part in its turn, as long as there is time; each row is written when it is known."""
    os.environ.setdefault(
        "PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True"
    )  # sizes of rows change from step to step
    peers.pin_threads(given.threads)
    ends = time.monotonic() + given.seconds
    rows = read_rows(given.out)
    with tempfile.TemporaryDirectory(dir=roomy_folder(given.small)) as folder:
        setup = Setup(given, Path(folder), [row for row in rows if row.get("asked") == asked(given)])
        for part in PARTS:
            if part.name not in given.parts or is_done(part.name, setup.rows):
                continue
            left = ends - time.monotonic()
            say(f"{part.name}: {left:.0f} s left")
            started = time.monotonic()
            for row in rows_of(part, setup, left):
                whole = {
                    "part": part.name,
                    "asked": asked(given),
                    "at_second": round(time.monotonic() - started, 1),
                    **row,
                }
                append_row(given.out, whole)
                setup.rows.append(whole)
                say(f"  {line_of(whole)}")
    say(f"rows are in {given.out}")
    if not given.small:
        print(tables(given.out))


def tables(file: Path) -> str:
    """What the page will say, as Markdown; a fault of the drawing is no reason to fail, since the rows are there."""
    try:
        from gpu_page import gpu_more, gpu_result, gpu_rows, table

        result = gpu_result(file)
        more = [f"{about}\n\n{table(rows)}" for about, rows in gpu_more(result).items()]
        return "\n\n".join([table(gpu_rows(result)), *more])
    except Exception as error:
        return f"no table: {type(error).__name__}: {error}"


def rows_of(part: Part, setup: Setup, left: float) -> Iterator[Row]:
    """A part's rows; a fault is a row too."""
    needed = part.least * (0.05 if setup.given.small else 1)
    if left < needed:
        yield {"status": "no time left", "why": f"{left:.0f} s were left, {needed:.0f} s are needed"}
        return
    try:
        yield from part.rows(setup, left if setup.given.small else min(part.seconds, left))
    except TookTooLongError as error:
        yield {"status": "no time left", "why": str(error)}
    except Exception as error:  # one part's fault is no reason to lose the others
        yield {"status": "failed", "why": f"{type(error).__name__}: {error}"[:500]}


def asked(given: argparse.Namespace) -> Row:
    """What must be equal for a stored row to stand."""
    return {key: getattr(given, key) for key in ("small", "pairs", "batch_size", "micro_tokens", "warm_up", "dtype")}


def is_done(part: str, rows: Sequence[Row]) -> bool:
    """Whether an earlier call measured all of a part."""
    mine = [row for row in rows if row["part"] == part]
    return bool(mine) and all(row["status"] in ("measured", "not installed") for row in mine)


def append_row(file: Path, row: Row) -> None:
    """One whole line, on the disk when this returns; a line that was cut off before is closed first."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with open(file, "a+b") as out:
        out.seek(0, os.SEEK_END)
        if out.tell():
            out.seek(-1, os.SEEK_END)
            if out.read(1) != b"\n":
                out.write(b"\n")
        out.write(json.dumps(row).encode() + b"\n")
        out.flush()
        os.fsync(out.fileno())


def read_rows(file: Path) -> list[Row]:
    """The rows of earlier calls; what was cut off is left out."""
    found = []
    for line in file.read_text(encoding="utf-8").splitlines() if file.is_file() else ():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict) and {"part", "status"} <= set(row):
            found.append(row)
    return found


def line_of(row: Row) -> str:
    """A row for people."""
    shown = [str(row[key]) for key in ("program", "variant", "loss", "model") if row.get(key)]
    if row["status"] != "measured":
        return f"{' · '.join(shown)}: {row['status']}: {row.get('why', '')}"
    if "mfu" in row:
        seconds = row["seconds_per_pair"]["median"]
        return f"{' · '.join(shown)}: {seconds:.4g} s a pair, MFU {row['mfu']:.2f}, {row['peak_memory'] / 1e9:.1f} GB"
    numbers = [f"{key} {value:.4g}" for key, value in row.items() if isinstance(value, float) and key != "at_second"]
    return f"{' · '.join(shown)}: {', '.join(numbers)}"


def roomy_folder(small: bool) -> str | None:
    """Memory as a folder, where it has room for both models: a GPU's machine may have a slow disk. None: the usual one."""
    shared = Path("/dev/shm")
    if small or not shared.is_dir():
        return None
    try:
        room = os.statvfs(shared)
    except OSError:
        return None
    return str(shared) if room.f_bavail * room.f_frsize > 20e9 else None


# ---------------------------------------------------------------- what is measured


def write_inputs(name: str, folder: Path, given: argparse.Namespace) -> Row:
    """A model, its tokenizer, and pairs for it."""
    parameters = make_model(folder, SHAPES[name])
    peers.save_pairs(
        folder / "pairs.json", random_pairs(given.pairs, SHAPES[name]["vocab_size"], 20 if given.small else 1)
    )
    return {"parameters": parameters}


def machine_rows(setup: Setup, seconds: float) -> Iterator[Row]:
    yield in_child(about, setup.given, seconds=seconds)


def about(given: argparse.Namespace) -> Row:
    """The device, how fast it multiplies, and what is installed."""
    accelerator = make_accelerator(given.dtype)
    device = accelerator.device
    size, times = (512, 6) if given.small else (8192, 20)
    rates = {
        f"{precision}_flops": statistics.median(peers.matmul_rates(precision, device, times, size)[times // 2 :])
        for precision in ("bf16", "fp32")
    }
    packages = ("trl", "liger-kernel", "flash-attn", "vllm", "triton")
    found = peers.about_machine(accelerator)
    found["packages"] |= {name: version_of(name) for name in packages}
    memory = torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else None
    return {"status": "measured", "environment": found, "memory": memory, **rates, "trial": given.small}


def agreement_rows(setup: Setup, seconds: float) -> Iterator[Row]:
    """A small model takes steps in fp32 on the processor and on the device."""
    name, losses = "random-small", ("dpo", "simpo", "kto", "orpo", "bco_pair")
    works = [
        setup.work(name, loss, lr=1e-3, precision="fp32", batch_size=4, count=4, epochs=CHECKED_STEPS, warm_up=0)
        for loss in losses
    ]
    works = [replace(work, pairs=str(setup.place / "few.json")) for work in works]
    peers.save_pairs(setup.place / "few.json", random_pairs(4, SHAPES[name]["vocab_size"], 10))
    ends = time.monotonic() + seconds
    found = {}
    for where in ("processor", "device"):
        place = str(setup.place / where)
        Path(place).mkdir()
        own = [replace(work, place=place) for work in works]
        found[where] = in_child(losses_of, own, where == "processor", seconds=ends - time.monotonic())
    for loss in losses:
        ours = {where: run[loss] for where, run in found.items()}
        row: Row = {"status": "measured", "loss": loss, "losses": ours}
        try:
            row["largest_relative_difference"] = peers.check_same_loss(ours)
        except PobenchError as error:
            row |= {"status": "failed", "why": str(error)}
        yield row


def losses_of(works: list[Work], on_processor: bool) -> dict[str, list[float]]:
    """The loss of every step, by loss."""
    if on_processor:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # read when the GPU is first asked for
    return {work.loss: run_pobench(work)["losses"] for work in works}


def layers_rows(setup: Setup, seconds: float) -> Iterator[Row]:
    """pobench's layers, the same by torch.compile, and these with larger micro-batches."""
    sides = both_layers(setup, setup.main)
    function, compiled = sides["compiled layers"]
    larger = replace(compiled, micro_tokens=2 * compiled.micro_tokens)
    sides["compiled layers, twice the micro-batch"] = (function, larger)
    yield from compared(setup, setup.main, "simpo", sides, seconds)


def larger_rows(setup: Setup, seconds: float) -> Iterator[Row]:
    yield from compared(setup, setup.larger, "simpo", both_layers(setup, setup.larger), seconds)


def both_layers(setup: Setup, name: str) -> dict[str, Any]:
    """pobench's own layers and compiled ones."""
    work = setup.work(name, "simpo")
    return {"lean layers": (run_pobench, work), "compiled layers": (run_pobench, replace(work, compile=True))}


def trainer_rows(trainer: str) -> Callable[[Setup, float], Iterator[Row]]:
    """pobench beside a trainer of TRL, as it comes and with its fastest options."""

    def rows(setup: Setup, seconds: float) -> Iterator[Row]:
        name, loss = setup.main, TRAINERS[trainer][1]
        ours = replace(setup.work(name, loss), compile=setup.faster_layers())
        sides: dict[str, Any] = {"pobench": (run_pobench, ours)}
        if importlib.util.find_spec("trl") is None:
            yield {"status": "not installed", "program": "TRL", "loss": loss, "model": name, "why": "pip install trl"}
        else:
            theirs = replace(ours, compile=False)
            sides["TRL at its best"] = (run_trl, replace(theirs, variant=best_on_gpu(setup)))
            sides["TRL as it comes"] = (run_trl, theirs)
        yield from compared(setup, name, loss, sides, seconds)

    return rows


def best_on_gpu(setup: Setup) -> Variant:
    """No checkpointing, the reference ahead, like lengths together, and the kernels that are installed."""
    packages, batch = gpu_packages(), setup.given.batch_size
    micro = max(size for size in range(1, MICRO_PAIRS + 1) if batch % size == 0)
    attention = "flash_attention_2" if "flash_attn" in packages else None
    return replace(Variant.best(micro), liger="liger_kernel" in packages, attention=attention)


def search_rows(setup: Setup, seconds: float) -> Iterator[Row]:
    """TRL's DPO trainer with one option changed at a time."""
    if importlib.util.find_spec("trl") is None:
        yield {"status": "not installed", "program": "TRL", "why": "pip install trl"}
        return
    yield {"status": "not installed", "program": "TRL", "variant": "padding_free", "why": padding_free_fault()}
    ends = time.monotonic() + seconds
    batch, best = setup.given.batch_size, best_on_gpu(setup)
    sizes = [size for size in (16, 8, 2) if batch % size == 0]
    for label, variant in changes(best, sizes, reference=True).items():
        left = ends - time.monotonic()
        if left < 5:
            yield {"status": "no time left", "program": "TRL", "variant": label}
            continue
        work = replace(setup.work(setup.main, "dpo"), variant=variant)
        yield from compared(setup, setup.main, "dpo", {f"TRL, {label}": (run_trl, work)}, min(left, TRIAL))


def compared(setup: Setup, model: str, loss: str, sides: dict[str, Any], seconds: float) -> Iterator[Row]:
    """A row for every side; they take their steps in turn. Where memory does not suffice for all at once, those that failed run
    again, each by itself."""
    ends = time.monotonic() + seconds
    stop_at = time.time() + seconds - min(LEAVING, seconds / 4)
    sides = {name: (function, replace(work, stop_at=stop_at)) for name, (function, work) in sides.items()}
    calls = {name: (function, (work,)) for name, (function, work) in sides.items()}
    found = in_turn(calls, seconds=seconds, load_together=torch.cuda.is_available())
    for name, (function, work) in sides.items():
        run, alone = found[name], False
        if FAULT in run and len(sides) > 1 and "memory" in run[FAULT] and ends - time.monotonic() > 20:
            alone = True
            run = in_turn({name: (function, (work,))}, seconds=ends - time.monotonic())[name]
        label: Row = {
            "model": model,
            "loss": loss,
            "program": "pobench" if function is run_pobench else "TRL",
            "variant": name,
        }
        if FAULT in run:
            status = "no time left" if run[FAULT].startswith(ENDED) else "failed"
            yield {"status": status, **label, "why": run[FAULT][:500]}
        else:
            yield {"status": "measured", **label, "interleaved": not alone, **training_row(run, work)}


def training_row(run: Row, work: Work) -> Row:
    """What a run measured, from its steps' median: a step in which something compiles counts in `graphs_after_warm_up`."""
    warm, timed = run["step_seconds"][: work.warm_up], run["step_seconds"][work.warm_up :]
    median = statistics.median(timed)
    faster = run["seconds_per_pair"] / (median / work.batch_size)  # than the mean of the steps
    graphs = run.get("graphs")
    row: Row = {
        "parameters": run["shape"][-1],
        "batch_size": work.batch_size,
        "seconds_per_pair": spread([seconds / work.batch_size for seconds in timed]),
        "step_seconds": run["step_seconds"],
        "compile_seconds": max(0.0, sum(warm) - len(warm) * median),
        "graphs_in_warm_up": graphs[work.warm_up - 1] if graphs else None,
        "graphs_after_warm_up": graphs[-1] - graphs[work.warm_up - 1] if graphs else None,
        "useful_tokens_per_second": run["useful_tokens_per_second"] * faster,
        "mfu": run["mfu"] * faster,
        "matmul_flops": run["matmul_flops"],
        "peak_memory": run["peak_memory"],
        "reference_seconds": run["reference_seconds"],
    }
    if "layout_reason" in run:
        row |= {"layout": run["layout"], "layout_reason": run["layout_reason"], "compiled": work.compile}
        row["estimated_memory"] = estimated_memory(work)
    else:
        row["options"] = asdict(work.variant)
    return row


def estimated_memory(work: Work) -> float:
    """Bytes, as `--dry-run` estimates them for a GPU."""
    pairs: list[TokenPair] = peers.load_pairs(Path(work.pairs))
    longest = max(len(p.prompt) + len(p.chosen) + len(p.rejected) for p in pairs)
    tokens = max(work.micro_tokens, longest)
    step = Step(tokens, tokens, gpu=torch.cuda.is_available(), narrow=work.precision == "bf16")
    config = json.loads((Path(work.model) / "config.json").read_text())
    return training_memory(shape_of(config), step).total - LIBRARIES


def answer_rows(setup: Setup, seconds: float) -> Iterator[Row]:
    ends, small = time.monotonic() + seconds, setup.given.small
    work = setup.work(setup.main, "simpo")
    for engine in ("pobench", "generate", "vllm"):
        label = {"program": engine, "model": setup.main}
        if engine == "vllm" and (importlib.util.find_spec("vllm") is None or not torch.cuda.is_available()):
            yield {"status": "not installed", **label, "why": "pip install 'pobench[vllm]', and a GPU"}
            continue
        counts = (4, 8) if small else (2 * AT_ONCE, 256)
        try:
            left = max(1.0, ends - time.monotonic())
            yield {"status": "measured", **label, **in_child(answer, work, engine, *counts, seconds=left)}
        except TookTooLongError as error:
            yield {"status": "no time left", **label, "why": str(error)}
        except PobenchError as error:
            yield {"status": "failed", **label, "why": str(error)[:500]}


PARTS = (  # what matters most comes first
    Part("machine", 60, 5, machine_rows),
    Part("layers", 150, 45, layers_rows),
    Part("dpo", 170, 45, trainer_rows("dpo")),
    Part("agreement", 90, 30, agreement_rows),
    Part("answers", 90, 25, answer_rows),
    Part("cpo", 100, 45, trainer_rows("cpo")),
    Part("kto", 110, 45, trainer_rows("kto")),
    Part("orpo", 100, 45, trainer_rows("orpo")),
    Part("larger", 120, 50, larger_rows),
    Part("bco", 100, 45, trainer_rows("bco")),
    Part("search", 300, 40, search_rows),
)


if __name__ == "__main__":
    main()
