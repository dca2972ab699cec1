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

Made from these when first asked for (`pobench.frames`):

cross_loss  run, trained (its loss, or "start"), evaluated (a registered loss), title, settings (JSON: those it was
          evaluated with), metric ("loss" | "reward_accuracy" | "margin"), value, low, high, n; see `pobench.cross_loss`
gradients   run, evaluated, pair, chosen_length, rejected_length, chosen_weight, rejected_weight (∂loss/∂ sum, per nat),
          norm (of the pair's gradient by all weights; nan without `norms`); see `pobench.gradients`
paper       what the SimPO paper's tables print; see `pobench.published.paper_results`
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from pobench.config import PROTOCOL, Job
from pobench.files import whole, write_text
from pobench.frames import Frames
from pobench.registry import PobenchError, losses, nearest

COLUMNS = {
    "runs": "run setting kind loss title seed settings lr epochs batch_size start pairs seconds peak_memory tokens status "
    "reason order protocol note environment sources length_bias",
    "steps": "run step epoch loss lr grad_norm rewards/chosen rewards/rejected rewards/margins rewards/accuracies logps/chosen "
    "logps/rejected logps/chosen_per_token logps/rejected_per_token saturated kl seconds "
    "heldout/kl heldout/chosen_per_token heldout/accuracy heldout/margin",
    "heldout": "run pair chosen_logp rejected_logp chosen_length rejected_length reference_chosen_logp reference_rejected_logp "
    "loss chosen_reward rejected_reward mismatched_logp reference_mismatched_logp",
    "norms": "run pair chosen_norm rejected_norm product",
    "answers": "run prompt sample kind topic instruction text tokens finished",
    "verdicts": "run prompt sample judge score",
    "scores": "run metric value low high n better",
    "audit": "setting fault count rows data",
    "benchmarks": "run setting loss seed benchmark metric value low high n judge name limit",
    "tuning": "setting loss study sampler trial lr settings metric better value low high n start chosen status reason runs",
}


class RunFolder:
    """One job's folder. Every file appears whole, except `steps.jsonl`, which grows a line a step."""

    def __init__(self, runs: Path, run: str) -> None:
        self.path = runs / run
        self.run = run

    # -- state

    @property
    def finished(self) -> bool:
        """Whether every stage is done."""
        return (self.path / "finished.json").is_file()

    @property
    def failure(self) -> str | None:
        """Why the last attempt failed, or None."""
        path = self.path / "failed.json"
        return str(json.loads(path.read_text())["reason"]) if path.is_file() else None

    def fail(self, reason: str) -> None:
        self.write_json("failed.json", {"reason": reason})

    def finish(self, about: Mapping[str, Any]) -> None:
        """The completion marker, written last."""
        (self.path / "failed.json").unlink(missing_ok=True)
        self.write_json("finished.json", {"protocol": PROTOCOL, **about})

    def has(self, name: str) -> bool:
        return (self.path / name).exists()

    # -- files

    def write_config(self, job: Job, kind: str) -> None:
        """`config.yaml`: every value, and where each that is no default comes from."""
        values = {
            **job.values(),
            "kind": kind,
            "protocol": PROTOCOL,
            "start": job.start_run,
            "origin": dict(job.origin),
        }
        write_text(self.path / "config.yaml", yaml.safe_dump(values, sort_keys=False, allow_unicode=True))

    def write_json(self, name: str, value: Any) -> None:
        write_text(self.path / name, json.dumps(value, indent=1, ensure_ascii=False) + "\n")

    def read_json(self, name: str) -> Any:
        return json.loads((self.path / name).read_text(encoding="utf-8"))

    def write_frame(self, name: str, frame: pd.DataFrame) -> None:
        with whole(self.path / f"{name}.parquet") as partial:
            frame.to_parquet(partial, index=False)

    def read_frame(self, name: str) -> pd.DataFrame:
        return pd.read_parquet(self.path / f"{name}.parquet")

    def benchmark_results(self) -> list[dict[str, Any]]:
        """The stored `score.json` of each benchmark by each judge: that of most questions, and of these the latest."""
        best: dict[tuple[str, str], dict[str, Any]] = {}
        for path in sorted(self.path.glob("benchmarks/**/score.json")):
            result = json.loads(path.read_text(encoding="utf-8"))
            key = result["benchmark"], result["judge"]
            best[key] = max(best.get(key, result), result, key=lambda r: (r["asked"], r["made"]))
        return [best[key] for key in sorted(best)]

    # -- steps

    def log_step(self, row: Mapping[str, Any]) -> None:
        with (self.path / "steps.jsonl").open("a") as file:
            file.write(
                json.dumps({k: None if isinstance(v, float) and math.isnan(v) else v for k, v in row.items()}) + "\n"
            )

    def rewind_steps(self, step: int) -> None:
        """Forget what was logged after `step`, and a line cut short by a kill."""
        kept = [json.dumps(row) for row in self.steps() if row["step"] <= step]
        write_text(self.path / "steps.jsonl", "".join(line + "\n" for line in kept))

    def steps(self) -> list[dict[str, Any]]:
        path = self.path / "steps.jsonl"
        rows = []
        for line in path.read_text().splitlines() if path.is_file() else ():
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError:  # the last line of a killed run
                break
        return rows


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
        for name in ("heldout", "norms", "answers", "verdicts"):
            if folder.has(f"{name}.parquet"):
                parts[name].append(folder.read_frame(name).assign(run=folder.run))
        parts["benchmarks"] += _benchmark_rows(folder, parts["runs"][-1])
        if folder.has("scores.json"):
            parts["scores"].append(pd.DataFrame(folder.read_json("scores.json")).assign(run=folder.run))
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
    about = folder.read_json("finished.json") if folder.finished else {}
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
        "status": "finished" if about else "failed" if failure else "unfinished",
        "reason": failure or "",
        "order": about.get("order", ""),
        "protocol": config["protocol"],
        "note": config["model"].get("note", ""),
        "environment": json.dumps(folder.read_json("environment.json") if folder.has("environment.json") else {}),
        "sources": json.dumps({} if start else _sources(config["origin"], config["loss"])),
        "length_bias": math.nan if start else config["data"].get("length_bias", 0.0),
    }


def _sources(origin: Mapping[str, str], loss: str) -> dict[str, str]:
    """Setting → source, for the loss's own settings and the training fields a reader asks about."""
    named = {key.removeprefix(f"{loss}."): where for key, where in origin.items() if key.startswith(f"{loss}.")}
    return {**{f: origin[f"train.{f}"] for f in ("lr", "epochs", "batch_size") if f"train.{f}" in origin}, **named}
