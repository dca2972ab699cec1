"""The run folder: written while a job runs, read as frames. Nothing else holds state.

    runs/<setting>/<loss>-<8 hex>/     one training job: config.yaml, environment.json, steps.jsonl,
                                       heldout.parquet, answers.parquet, verdicts.parquet, scores.json,
                                       model/, finished.json (written last: its presence means complete)
    runs/<setting>/start-<8 hex>/      the start model on the same evaluation, without steps
    runs/<setting>/data-<8 hex>/       the token pairs that jobs share, and their audit

Frames (tidy, one row each; `run` is `<setting>/<folder>` and joins them all):

runs      run, setting, kind ("start" | "loss"), loss (name, "start"), title (as a table prints it), seed (int, -1 for
          start), settings (JSON: the loss's settings), lr, epochs, batch_size, start (run id of its start model), pairs
          (trained on), seconds (training wall time), peak_memory (bytes), tokens (useful tokens trained on), status
          ("finished" | "failed" | "unfinished"), reason (of a failure), order (hash of the data order), protocol (int),
          note (on the weights), environment (JSON), sources (JSON: setting → where its value comes from), length_bias
          (share of training labels decided by length; nan for start)
steps     run, step (1..), epoch (float), loss, lr, grad_norm, rewards/chosen, rewards/rejected, rewards/margins,
          rewards/accuracies, logps/chosen, logps/rejected (mean over pairs of summed nats), logps/chosen_per_token,
          logps/rejected_per_token, saturated (share of pairs whose |gradient weight| < 1e-4), kl (nan unless used), seconds;
          at the steps of `train.evaluate_every`, means over held-out pairs: heldout/kl (reference from policy, on winners)
          and heldout/chosen_per_token (nats per token), heldout/accuracy, heldout/margin (of the run's own reward)
heldout   run, pair (id), chosen_logp, rejected_logp (summed nats), chosen_length, rejected_length (tokens),
          reference_chosen_logp, reference_rejected_logp, loss, chosen_reward, rejected_reward (the run's own loss; nan
          for start), mismatched_logp, reference_mismatched_logp (of an answer to another prompt; nan where not stored)
answers   run, prompt (id), sample (0..), kind (of demand, or ""), topic, instruction (text), text (untrusted), tokens,
          finished (bool: ended by itself)
verdicts  run, prompt, sample, judge, score (in [0, 1]; nan where the judge gave none). Of a judge that compares, score is
          P(better than the start model's answer), a half for the start model itself, beside against ("start"), forward
          and backward (the same with the start's answer shown first, and last), flipped (1: the order decided), longer
          (1: this answer is, 0.5: equally long)
scores    run, metric, value, low, high, n, better ("higher" | "lower" | "")
norms     run, pair, chosen_norm, rejected_norm (length of ∇ log π(answer) by all weights, per nat), product (of both)
audit     setting, fault, count, rows (JSON list of row numbers), data (which token pairs, by digest)
tuning    setting, loss, study (a search by its digest), sampler, trial, lr, settings (JSON), metric (the objective),
          better, value, low, high, n (nan where the trial failed), start (the start model's value), chosen (bool),
          status ("finished" | "failed"), reason, runs (ids below runs/<setting>/tuning, by spaces)
benchmarks  run, setting, loss ("start" for the start model), seed (-1 for it), benchmark (alpaca_eval, arena_hard, mt_bench,
          downstream, …), metric, value, low, high, n, judge ("" where none is asked), name (what the result may be
          called: "AlpacaEval 2" only where it is that), limit (prompts asked of a part; nan: all). One row a metric, of
          the result on most prompts by each judge; units are the benchmark's own (rates in %, MT-Bench 1 to 10)
          alpaca_eval: lc_win_rate, win_rate, length_only_win_rate, length (characters) · arena_hard: win_rate,
          position_flips · mt_bench: score, turn_1, turn_2, and one for each category · downstream: its tasks

Made from these when first asked for (`pobench.results.derived`):

cross_loss  run, trained (its loss, or "start"), evaluated (a registered loss), title, settings (JSON: those it was
          evaluated with), metric ("loss" | "reward_accuracy" | "margin"), value, low, high, n; see `pobench.results.cross_loss`
gradients   run, evaluated, pair, chosen_length, rejected_length, chosen_weight, rejected_weight (∂loss/∂ sum, per nat),
          norm (of the pair's gradient by all weights; nan without `norms`); see `pobench.results.gradients`
paper       what the SimPO paper's tables print; see `pobench.data.published.paper_results`
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from pobench.columns import COLUMNS
from pobench.errors import PobenchError, nearest
from pobench.registry import losses
from pobench.results.derived import Frames
from pobench.results.run_folder import STAGE_OF, RunFolder
from pobench.results.scores import scores_of


def load_frames(runs: str | Path = "runs", setting: str | None = None) -> Frames:
    """Every stored run as tidy frames; see this module's docstring for their columns.

    setting: only the runs of this one. Raises PobenchError where no run is stored.
    """
    root = Path(runs)
    folders = sorted(p.parent for p in root.glob("*/*/config.yaml") if setting in (None, p.parent.parent.name))
    if not folders:
        stored = sorted({p.parent.parent.name for p in root.glob("*/*/config.yaml")})
        if setting and stored:
            said = f"{nearest(setting, stored)} Known: {', '.join(stored)}"
            raise PobenchError(f"no stored runs in {str(root)!r} for setting {setting!r}{said}")
        raise PobenchError(f"no stored runs in {str(root)!r}; `pobench run` makes some")
    parts: dict[str, list[pd.DataFrame]] = {name: [] for name in COLUMNS}
    for path in folders:
        folder = RunFolder(root, f"{path.parent.name}/{path.name}")
        parts["runs"].append(pd.DataFrame([_run_row(folder)]))
        if rows := folder.steps():
            parts["steps"].append(pd.DataFrame(rows).assign(run=folder.run))
        for name in STAGE_OF:
            if name in parts and folder.has_frame(name):
                parts[name].append(folder.read_frame(name).assign(run=folder.run))
        parts["benchmarks"] += _benchmark_rows(folder, parts["runs"][-1])
        if rows := scores_of(root, folder.run):
            parts["scores"].append(pd.DataFrame(rows).assign(run=folder.run))
    for name in sorted({p.parent.name for p in folders}):
        for audit in sorted((root / name).glob("data-*/audit.json")):
            rows = pd.DataFrame(json.loads(audit.read_text()))
            parts["audit"].append(rows.assign(setting=name, data=audit.parent.name.removeprefix("data-")))
    for trials in (root / "trials.csv", *sorted(root.glob("*/tuning/trials.csv"))):
        if trials.is_file():
            parts["tuning"].append(pd.read_csv(trials, keep_default_na=False, na_values=[""]))
    return Frames({name: _frame(parts[name], columns.split()) for name, columns in COLUMNS.items()})


def _frame(parts: Iterable[pd.DataFrame], columns: list[str]) -> pd.DataFrame:
    parts = [p for p in parts if len(p)]
    frame = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()
    return frame.reindex(columns=[*columns, *(c for c in frame.columns if c not in columns)])


def _benchmark_rows(folder: RunFolder, run: pd.DataFrame) -> list[pd.DataFrame]:
    named = run[["run", "setting", "loss", "seed"]].iloc[0].to_dict()
    kept = ("benchmark", "judge", "name", "limit")
    return [
        pd.DataFrame(result["rows"]).assign(**named, **{k: result[k] for k in kept})
        for result in folder.benchmark_results()
    ]


def _run_row(folder: RunFolder) -> dict[str, Any]:
    config = yaml.safe_load((folder.path / "config.yaml").read_text(encoding="utf-8"))
    start = config["kind"] == "start"
    about = folder.trained or (folder.read_json("finished.json") if folder.has("finished.json") else {})
    failure = folder.failure
    name = "start" if start else config["loss"]
    try:
        title = "start model" if start else losses.get(name).title
    except PobenchError:  # a plug-in that is not loaded now
        title = about.get("title", name)
    return {
        "run": folder.run,
        "setting": config["setting"],
        "kind": config["kind"],
        "loss": name,
        "title": title,
        "seed": -1 if start else config["seed"],
        "settings": json.dumps({} if start else config["loss_settings"]),
        "lr": math.nan if start else config["train"]["lr"],
        "epochs": math.nan if start else config["train"]["epochs"],
        "batch_size": math.nan if start else config["train"]["batch_size"],
        "start": config["start"],
        "pairs": about.get("pairs", math.nan),
        "seconds": about.get("seconds", math.nan),
        "peak_memory": about.get("peak_memory", math.nan),
        "tokens": about.get("tokens", math.nan),
        "status": "failed" if failure else "finished" if _finished(folder, start) else "unfinished",
        "reason": failure or "",
        "order": about.get("order", ""),
        "protocol": config["protocol"],
        "note": config["model"].get("note", ""),
        "environment": json.dumps(folder.read_json("environment.json") if folder.has("environment.json") else {}),
        "sources": json.dumps({} if start else _sources(config["origin"], config["loss"])),
        "length_bias": math.nan if start else config["data"].get("length_bias", 0.0),
    }


def _finished(folder: RunFolder, start: bool) -> bool:
    """Whether the model is trained, and every result that the newest command named and a plain run makes is there."""
    if not folder.shown:
        return folder.has("finished.json")
    needed = [name for stage, name in folder.shown.items() if stage in ("heldout", "answers", "judge")]
    return (start or folder.trained is not None) and all(folder.node(name).finished for name in needed)


def _sources(origin: Mapping[str, str], loss: str) -> dict[str, str]:
    """Setting → source, for the loss's own settings and the training fields a reader asks about."""
    named = {key.removeprefix(f"{loss}."): where for key, where in origin.items() if key.startswith(f"{loss}.")}
    return {**{f: origin[f"train.{f}"] for f in ("lr", "epochs", "batch_size") if f"train.{f}" in origin}, **named}
