"""Searches the learning rates and settings of smollm2.yaml: four trials for each loss, scored on the tuning prompts.

    python experiments/recipes/tune_smollm2.py [--runs runs-tuning]        run again to continue

Topics of the tuning prompts occur neither in the training pairs nor in the evaluation prompts. Every trial, not only
the best, goes into experiments/data/smollm2/tuning.csv.
"""

from __future__ import annotations

import argparse
import itertools
import json
from pathlib import Path

import pandas as pd

from pobench import load_frames, run

GRID = {
    "simpo": {"train.lr": (1e-5, 2e-5), "simpo.gamma_beta_ratio": (0.5, 1.0)},
    "dpo": {"train.lr": (1e-5, 2e-5), "dpo.beta": (0.05, 0.1)},
}
TUNE = {"answers.source": "builtin:smollm2/tune_prompts.jsonl"}
OUT = Path(__file__).resolve().parents[1] / "data" / "smollm2" / "tuning.csv"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=Path, default=Path("runs-tuning"))
    folder = parser.parse_args().runs
    for loss, grid in GRID.items():
        for values in itertools.product(*grid.values()):
            trial = dict(zip(grid, values, strict=True))
            outcomes = run(loss, "smollm2", overrides={**TUNE, **trial}, runs=folder)
            print(loss, trial, outcomes[-1].status, outcomes[-1].reason, flush=True)
    frames = load_frames(folder, "smollm2")
    scores = frames["scores"].pivot(index="run", columns="metric", values=["value", "low", "high", "n"])
    rows = []
    for trial in frames["runs"].sort_values(["loss", "lr", "settings"]).itertuples():
        row = {"loss": trial.loss, "lr": trial.lr, **json.loads(trial.settings), "epochs": trial.epochs}
        for metric in ("pass_rate", "pass_rate_gain", "kl_winners", "reward_accuracy", "length_tokens"):
            for part in ("value", "low", "high", "n"):
                row[metric if part == "value" else f"{metric}_{part}"] = scores.get((part, metric), pd.Series()).get(
                    trial.run
                )
        rows.append(row)
    pd.DataFrame(rows).round(5).to_csv(OUT, index=False)
    print(f"{len(rows)} trials: {OUT}")


if __name__ == "__main__":
    main()
