"""Does the stages of one task, in order, in a process of its own.

Started by `execute` as a forked child, or by `accelerate launch -m pobench.runs.worker TASK.json` on several devices.
"""

from __future__ import annotations

import logging
import os
import sys
import traceback
import warnings
from pathlib import Path

import transformers

from pobench.errors import PobenchError
from pobench.model.device import environment
from pobench.registry import load_plugin
from pobench.results.run_folder import RunFolder
from pobench.results.scores import scores_of
from pobench.runs.context import Context
from pobench.runs.stages import BY_NAME
from pobench.runs.task import INTERRUPTED, Task


def run(task: Task) -> int:
    """Do the stages of a task. Returns the exit status: 0, or 1 with the reason in the run folder's `failed.json`."""
    if not os.environ.get("POBENCH_DEBUG"):  # pobench prints its own progress and messages
        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()
        logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # peft imports it where it is installed
        warnings.filterwarnings("ignore")
    folder = RunFolder(task.runs, task.run)
    try:
        for plugin in task.plugins:
            load_plugin(plugin)
        _work(task)
        return 0
    except KeyboardInterrupt:
        return INTERRUPTED
    except Exception as error:
        folder.path.mkdir(parents=True, exist_ok=True)
        if not isinstance(error, PobenchError):
            (folder.path / "traceback.txt").write_text(traceback.format_exc())
        folder.fail(Context.reason(error))
        if os.environ.get("POBENCH_DEBUG"):
            traceback.print_exc()
        return 1


def _work(task: Task) -> None:
    context = Context(task)
    if "train" in task.stages and context.main:
        context.folder.path.mkdir(parents=True, exist_ok=True)
        context.folder.write_json("environment.json", environment(context.accelerator))
    for name in task.stages:
        BY_NAME[name].run(context)
    context.release()
    if task.kind in ("start", "loss") and "train" not in task.stages:
        if not context.folder.has("environment.json"):
            context.folder.write_json("environment.json", environment(context.accelerator))
        scores_of(task.runs, task.run)  # stored, so that a report need not compute them


def main() -> None:
    """`accelerate launch -m pobench.runs.worker TASK.json`."""
    sys.exit(run(Task.load(Path(sys.argv[1]))))


if __name__ == "__main__":
    main()
