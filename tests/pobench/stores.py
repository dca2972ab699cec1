"""A small folder of runs, written file by file as `pobench run` writes it, without training anything."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pobench.results.run_folder import RunFolder
from pobench.results.scores import Facts, Summary
from pobench.results.vectors import Vectors
from pobench.settings.resolve import resolve

START = "tiny/start-000000000000"
PROMPTS = ("p1", "p2", "p3")


def trained_run(
    root: Path, name: str, *, seed: int = 1, weights: str = "w", judge: str = "judge-000000000001", passed: float = 1.0
) -> RunFolder:
    """`tiny/<name>`: a finished run of the loss that the name begins with. weights: the text that its weights file holds."""
    folder = RunFolder(root, f"tiny/{name}")
    (folder.path / "model").mkdir(parents=True)
    (folder.path / "model" / "model.safetensors").write_text(weights)
    folder.log_step({"step": 1, "loss": 0.5, "seconds": float(np.random.default_rng().random())})
    folder.write_json("environment.json", {"packages": {}})
    folder.finish_training({"loss": name}, {"pairs": 3, "steps": 1, "seconds": 1.0, "order": "o"})
    _evaluated(folder, judge, passed)
    (job,) = resolve("tiny", name.partition("-")[0], seeds=[seed])
    folder.write_config(job, "loss", START)
    return folder


def start_run(root: Path, *, passed: float = 0.0) -> RunFolder:
    folder = RunFolder(root, START)
    folder.write_json("environment.json", {"packages": {}})
    _evaluated(folder, "judge-00000000000a", passed)
    (job,) = resolve("tiny", "simpo")
    folder.write_config(job.of_start(), "start", START)
    return folder


def _evaluated(folder: RunFolder, judge: str, passed: float) -> None:
    rows = [{"prompt": p, "sample": 0, "text": f"{p} {folder.run}", "tokens": 3, "complete": True} for p in PROMPTS]
    verdicts = [{"prompt": p, "sample": 0, "judge": "verifiable", "score": passed} for p in PROMPTS]
    frames: dict[str, tuple[str, Any]] = {"answers": ("answers-000000000001", rows), judge: (judge, verdicts)}
    for name, (node, values) in frames.items():
        frame = "answers" if name == "answers" else "verdicts"
        causes = {"prompts": "p", "seed": 1}
        folder.node(node).write({frame: pd.DataFrame(values)}, causes, model=folder.weights, read={})
    folder.show({"answers": "answers-000000000001", "judge": judge})


def unscored(run: str) -> Summary:
    """The summary of a run whose scores nobody asks for."""
    return Summary([], Facts(), lambda: Vectors(run, {}))
