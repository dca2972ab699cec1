"""Start a module as each process of a job, and say which process failed: `python -m pobench.runs.processes N MODULE FILE`.

PyTorch's own launcher starts the processes and ends the others as soon as one is gone. On GPUs, with an `accelerate config` or
several machines, `accelerate launch` calls it, so that ports and devices are the user's. Where a process was killed, a sentence
is left beside FILE. `--any-port`: its processes meet at a port that is free, not at the usual one.

Of a job on several machines, an executor writes into `POBENCH_MACHINES`, as JSON: their `count`, the `rank` of this one, the
name of the `main` one and the `port` at which the processes meet. N is of one machine.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

from pobench.orphans import STARTER, watch_starter
from pobench.training.leaving import INTERRUPTED

RANK = "pobench.runs.rank"  # each process
SECONDS_TO_LEAVE = 120  # of processes that are asked to end: for a step and a checkpoint


def end_with_starter() -> None:
    """End this process as soon as the one that started it is gone, however that ended."""
    gone = watch_starter()

    def watch() -> None:
        while not gone():
            time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGKILL)  # any moment is a good one: files appear whole

    threading.Thread(target=watch, daemon=True).start()


def ended_file(file: Path) -> Path:
    """Where the sentence on the process that was killed is written."""
    return file.with_name(f"{file.name}.ended")


def machines() -> dict[str, Any] | None:
    """Those of a job on several; None where it has this one."""
    text = os.environ.get("POBENCH_MACHINES")
    return dict(json.loads(text)) if text else None


def main() -> None:
    """Exits with status 0, or 1 where a process failed."""
    # SLURM sends it to all processes of a job. This one would end and leave its own behind; they inherit that, and listen.
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    count, module, file = int(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
    end_with_starter()
    os.environ[STARTER] = str(os.getpid())

    import torch
    from accelerate.commands.config import default_config_file
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", str(SECONDS_TO_LEAVE))
    if not os.environ.get("POBENCH_DEBUG"):
        logging.getLogger("torch.distributed").setLevel(logging.CRITICAL)
    on_gpus = torch.cuda.is_available()
    if not on_gpus:
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // count)))
    try:
        followed = on_gpus and (os.path.isfile(default_config_file) or machines() is not None)
        if followed:
            accelerate_launch(accelerate_options(count, any_port="--any-port" in sys.argv), module, file)
        else:
            torch_launch(torch_options(count), module, file)
    except ChildFailedError as error:
        if error.get_first_failure()[1].exitcode == INTERRUPTED:  # one alone was asked to leave, and all left
            sys.exit(INTERRUPTED)
        if why := _killed(error, count):
            ended_file(file).write_text(why, encoding="utf-8")
        sys.exit(1)
    except (SignalException, KeyboardInterrupt):
        sys.exit(INTERRUPTED)


def accelerate_options(count: int, *, any_port: bool) -> list[str]:
    """Of `accelerate launch`, for `count` processes on this machine; the rest is the user's configuration."""
    if (all_of := machines()) is None:
        several = ["--multi_gpu"] if count > 1 else []
        return ["--num_processes", str(count), *several, *(["--main_process_port", "0"] if any_port else [])]
    where = ["--num_machines", str(all_of["count"]), "--machine_rank", str(all_of["rank"])]
    meeting = ["--main_process_ip", all_of["main"], "--main_process_port", str(all_of["port"])]
    return ["--num_processes", str(count * all_of["count"]), "--multi_gpu", *where, *meeting]


def torch_options(count: int) -> list[str]:
    """Of PyTorch's launcher; on one machine the processes meet at a free port."""
    if (all_of := machines()) is None:
        return ["--standalone", "--nproc-per-node", str(count)]
    where = ["--nnodes", str(all_of["count"]), "--node-rank", str(all_of["rank"])]
    return [
        *where,
        "--master-addr",
        all_of["main"],
        "--master-port",
        str(all_of["port"]),
        "--nproc-per-node",
        str(count),
    ]


def accelerate_launch(options: list[str], module: str, file: Path) -> None:
    from accelerate.commands.launch import launch_command, launch_command_parser

    launch_command(launch_command_parser().parse_args([*options, "-m", RANK, module, str(file)]))


def torch_launch(options: list[str], module: str, file: Path) -> None:
    """On processors `accelerate launch` needs MPI, and this does not."""
    from torch.distributed.run import get_args_parser, run

    run(get_args_parser().parse_args([*options, "-m", RANK, module, str(file)]))


def _killed(error: Any, count: int) -> str:
    """Which process was killed, in words; "" where the first that ended gave a status of its own."""
    rank, failure = error.get_first_failure()
    if failure.exitcode >= 0:
        return ""
    hint = ": the system may have run out of memory" if failure.exitcode == -9 else ""
    return (
        f"process {rank + 1} of {count} was killed by signal {-failure.exitcode}{hint}; the others were ended, and the same "
        "command continues from the last checkpoint"
    )


if __name__ == "__main__":
    main()
