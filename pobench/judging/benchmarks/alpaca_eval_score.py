"""AlpacaEval 2 from stored annotations: raw and length-controlled (LC) win rate, by alpaca_eval's own code.

    score(annotations.json)      805 rows: instruction, output_1, generator_1, output_2, generator_2, preference
    write_answers(outputs.json)  instruction, output, generator: what a judge of AlpacaEval 2 reads

preference: 1 if the baseline wins, 2 if the model wins, 1.5 (or 0) for a tie; values between 1 and 2 are probabilities. null
or nan: the judge's reply could not be read; the row is dropped and counted. Rates are in percent, as on the leaderboard.

LC (Dubois and others 2024, arXiv 2404.04475) looks up the difficulty of an instruction BY ITS PLACE among the 805. So the
texts, their order and the baseline's answers are checked against fingerprints, and other files are refused: they would give
a wrong number without an error. For other prompts or opponents use `length_only`, which is not labelled LC.
"""

from __future__ import annotations

import functools
import importlib
import json
import logging
import math
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pobench.errors import PobenchError
from pobench.files import write_text
from pobench.judging.benchmarks.verdict_files import (
    Faults,
    Line,
    Scored,
    fingerprint,
    fingerprints,
    number_of,
    numbers,
    one_of,
    read,
    short,
    text_of,
)
from pobench.results import stats
from pobench.types import Estimate

BASELINE = "gpt4_1106_preview"
# The annotator of AlpacaEval 2, and the model behind it as OpenAI and alpaca_eval name it. No other verdicts get the name.
JUDGES = ("weighted_alpaca_eval_gpt4_turbo", "gpt-4-1106-preview", "gpt4_1106_preview")
FIELDS = ("instruction", "output_1", "generator_1", "output_2", "generator_2", "preference")
HUB = "tatsu-lab/alpaca_eval"  # a data set repository
GAMED, DIFFICULTY = "df_gamed.csv", "instruction_difficulty.csv"
STAND_INS = ("_recovered", "_surrogate")  # endings of a file's stem that mark an unofficial copy
_GAMED_COLUMNS = ("preference", "std_delta_len", "instruction_difficulty", "not_gamed_baseline", "index", "model")


# ---------------------------------------------------------------- scoring
def score(annotations: Path | str, *, length_control: Path | None = None, length_only: bool = False) -> Scored:
    """The score of one model's annotations.

    length_control: a folder with df_gamed.csv and optionally instruction_difficulty.csv, which is checked against it;
    default: the hub. Names that end in `_recovered` or `_surrogate` are accepted, and the result says "reconstructed". If
    the hub cannot be reached, LC is missing and a note says so. length_only: any prompts and any opponent, without LC.
    Raises PobenchError with all faults of the file and the folder.
    """
    if length_only:
        return _length_only(*_annotations(annotations, length_only=True))
    wrong: list[str] = []
    control = None
    try:
        control = _length_control(length_control)
    except PobenchError as error:
        wrong.append(str(error))
    try:
        frame, about = _annotations(annotations)
    except PobenchError as error:
        raise PobenchError("\n".join([str(error), *wrong])) from None
    if control is None:
        raise PobenchError("\n".join(wrong))
    return _official(frame, about, *control)


def _annotations(file: Path | str, *, length_only: bool = False) -> tuple[pd.DataFrame, dict[str, str]]:
    frame, about, faults = _read(file)
    if not length_only:
        _check_places(frame, about, faults)
    faults.refuse()
    return frame, about


def _official(
    frame: pd.DataFrame, about: Mapping[str, str], gamed: Path | None, stand_ins: Sequence[str], notes: list[str]
) -> Scored:
    glm = module("metrics.glm_winrate")
    if gamed is None or frame["preference"].isna().all():
        found = glm.get_winrate(frame)
    else:
        found = _length_controlled(glm, frame, gamed)
    lc, error = (float(found.get(k, math.nan)) for k in ("length_controlled_winrate", "lc_standard_error"))
    missing = math.isnan(lc)
    adjusted = Estimate.missing() if missing else Estimate(lc, lc - 1.96 * error, lc + 1.96 * error, len(frame))
    if not missing:
        notes += ["LC's interval is ± 1.96 of alpaca_eval's standard error: instructions vary in it, the fit does not"]
    if stand_ins and not missing:
        notes += [f"reconstructed: {' and '.join(stand_ins)} in place of the official file"]
    name = "AlpacaEval 2" + (" (reconstructed)" if stand_ins and not missing else "")
    if about["judge"] not in JUDGES:
        name = f"AlpacaEval 2's prompts, judged by {about['judge'] or 'an unnamed judge'}: not AlpacaEval 2"
    common, values = _common(frame, about, notes)
    values = {
        "win_rate": float(found["win_rate"]),
        "lc_win_rate": lc,
        "standard_error": float(found["standard_error"]),
        "lc_standard_error": error,
        **values,
        "discrete_win_rate": float(found["discrete_win_rate"]),
        "reconstructed": bool(stand_ins) and not missing,
    }
    lines = (Line("LC win rate, %", adjusted, note=_error(error), metric="lc_win_rate"), *common)
    return Scored(name, about["model"], about["judge"], lines, values, tuple(notes))


def _length_only(frame: pd.DataFrame, about: Mapping[str, str]) -> Scored:
    notes = ["prompts and opponent are not checked; the length-only win rate is not AlpacaEval's LC win rate"]
    lines, values = _common(frame, about, notes)
    there = frame["preference"].dropna() - 1
    values = {
        "win_rate": float(there.mean()) * 100,
        "lc_win_rate": math.nan,
        "standard_error": float(there.sem()) * 100,
        "lc_standard_error": math.nan,
        **values,
    }
    return Scored("Length-only win rate", about["model"], about["judge"], lines, values, tuple(notes))


def _common(frame: pd.DataFrame, about: Mapping[str, str], notes: list[str]) -> tuple[tuple[Line, ...], dict[str, Any]]:
    """The lines and values that do not need the package alpaca_eval."""
    won = frame["preference"].to_numpy(float) - 1
    lengths, baseline_lengths = (frame[f"output_{i}"].str.len().to_numpy(float) for i in (2, 1))
    prompts = frame["instruction"].map(fingerprint)  # untrusted text is no label
    raw = stats.mean(won, prompts, bounds=stats.UNIT).scaled(100)
    only = stats.length_controlled_win_rate(won, lengths, baseline_lengths, prompts).scaled(100)
    length = stats.mean(lengths, prompts)
    dropped = int(np.isnan(won).sum())
    if dropped:
        notes.append(f"{dropped} of {len(frame)} rows have no preference: dropped")
    one_sided = (
        min(float((lengths > baseline_lengths).mean()), float((lengths < baseline_lengths).mean()))
        if len(frame)
        else 1.0
    )
    if one_sided < 0.1 and (lengths != baseline_lengths).any():
        side = "longer" if lengths.mean() > baseline_lengths.mean() else "shorter"
        notes.append(f"nearly all answers are {side} than the baseline's: the length-only win rate is an extrapolation")
    read_ = won[~np.isnan(won)]
    error = float(pd.Series(read_).sem()) * 100
    lines = (
        Line("Win rate, %", raw, note=_error(error), metric="win_rate"),
        Line("Length-only win rate, %", only, note="of length alone: not LC", metric="length_only_win_rate"),
        Line("Length, characters", length, ".0f", metric="length"),
    )
    values = {
        "n": len(read_),
        "dropped": dropped,
        "avg_length": int(length.value) if length.n else math.nan,  # cut off, as the leaderboard has it
        "baseline": about["baseline"],
        "win_rate_interval": [raw.low, raw.high],
        "length_only_win_rate": only,
    }
    return lines, values


def _error(error: float) -> str:
    return "" if math.isnan(error) else f"standard error {error:.2f}"


# ---------------------------------------------------------------- reading
def _read(path: Path | str) -> tuple[pd.DataFrame, dict[str, str], Faults]:
    """The annotations with preferences as floats in [1, 2] or nan; the names of model, baseline and judge; the faults."""
    rows, faults = read(
        path, FIELDS, ("annotator", "dataset", "time_per_example", "price_per_example", "raw_completion")
    )
    table: dict[str, list[Any]] = {name: [] for name in FIELDS}
    for row in rows:
        for name in FIELDS[:-1]:
            table[name].append(text_of(row, name, faults))
        table["preference"].append(_preference(row, faults))
    named = [(row["#row"], row.get("annotator") or "") for row in rows]
    about = {
        "model": one_of(_numbered(rows, table["generator_2"]), "generator_2", faults),
        "baseline": one_of(_numbered(rows, table["generator_1"]), "generator_1", faults),
        "judge": one_of([(n, a) for n, a in named if isinstance(a, str)], "annotator", faults),
    }
    return pd.DataFrame(table).assign(row=[row["#row"] for row in rows]), about, faults


def _numbered(rows: Sequence[Mapping[str, Any]], values: Sequence[str]) -> list[tuple[int, str]]:
    return [(row["#row"], value) for row, value in zip(rows, values, strict=True)]


def _preference(row: Mapping[str, Any], faults: Faults) -> float:
    number = number_of(row.get("preference"))
    if math.isnan(number) or 1 <= number <= 2:
        return number
    if number == 0:  # older versions of alpaca_eval write a tie as 0
        return 1.5
    faults.add(
        row["#row"],
        "preference",
        "a number from 1 (baseline wins) to 2 (model wins) is needed, or null",
        row["preference"],
    )
    return math.nan


def _check_places(frame: pd.DataFrame, about: Mapping[str, str], faults: Faults) -> None:
    """The 805 instructions in their order, beside the baseline's own answers."""
    table = fingerprints("alpaca_eval")
    place = {instruction: i for i, (instruction, _) in enumerate(table, start=1)}
    other = "; for other prompts or another opponent: --length-only"
    if about["baseline"] and about["baseline"] != BASELINE:
        faults.add(0, "generator_1", f"the baseline is {BASELINE!r}{other}", about["baseline"])
    if "instruction" in {name for name, _ in faults.found}:
        return
    there = [place.get(fingerprint(text)) for text in frame["instruction"]]
    found = list(zip(frame["row"], there, strict=True))
    unknown = [row for row, p in found if p is None]
    if unknown:
        first = frame.loc[frame["row"] == unknown[0], "instruction"].iloc[0]
        faults.add(0, "instruction", f"{numbers('row', unknown)}: none of AlpacaEval's 805{other}", first)
    absent = sorted(set(place.values()) - set(there))
    first_row = {p: row for row, p in reversed(found)}
    repeated = [row for row, p in found if p is not None and first_row[p] != row]
    if len(frame) != len(table) or absent or repeated:
        wrong = f"805 rows are needed, one for each instruction; got {len(frame)}"
        wrong += f"; absent: {numbers('instruction', absent)}" if absent else ""
        wrong += f"; repeated: {numbers('row', repeated)}" if repeated else ""
        faults.add(0, "", wrong)
        return
    moved = [(row, p) for place_, (row, p) in enumerate(found, start=1) if p != place_]
    if moved:
        row, p = moved[0]
        faults.add(0, "instruction", f"{len(moved)} rows are out of order (row {row} holds instruction {p} of 805)")
    elif about["baseline"] == BASELINE:
        changed = [i for i, text in enumerate(frame["output_1"]) if fingerprint(text) != table[i][1]]
        if changed:
            where = numbers("row", [frame["row"][i] for i in changed])
            problem = f"{where}: not the leaderboard's answer of {BASELINE}{other}"
            faults.add(0, "output_1", problem, frame["output_1"][changed[0]])


# ---------------------------------------------------------------- the two files of the GLM
def _length_control(folder: Path | None) -> tuple[Path | None, list[str], list[str]]:
    """df_gamed.csv, the names of unofficial copies in use, and notes. The file is None if the hub cannot be reached."""
    if folder is None:
        try:
            found = _from_hub()
        except Exception as error:  # the hub client raises a dozen unrelated types
            why = f"{GAMED} could not be fetched from the hub ({type(error).__name__})"
            return None, [], [f"no LC: {why}; --length-control DIR names a folder with a copy"]
        _check_gamed(found)
        return found, [], []
    gamed, difficulty = _in_folder(folder, GAMED), _in_folder(folder, DIFFICULTY)
    if gamed is None:
        names = ", ".join(GAMED.replace(".", f"{s}.") for s in ("", *STAND_INS))
        raise PobenchError(f"--length-control: no {GAMED} in {str(folder)!r} (one of {names})")
    used = [p.name for p in (gamed, difficulty) if p is not None and p.name not in (GAMED, DIFFICULTY)]
    difficulties = _check_gamed(gamed)["instruction_difficulty"][:805]
    if difficulty is None or np.allclose(_numbers(_table(difficulty).iloc[:, -1])[:805], difficulties, atol=1e-4):
        return gamed, used, []
    return gamed, used, [f"{difficulty.name} disagrees with {gamed.name}, whose difficulties alpaca_eval uses"]


def _from_hub() -> Path:
    """The official df_gamed.csv, without the hub client's log messages about retries."""
    from huggingface_hub import hf_hub_download

    client = logging.getLogger("huggingface_hub")
    level = client.level
    client.setLevel(logging.ERROR)
    try:
        return Path(hf_hub_download(repo_id=HUB, filename=GAMED, repo_type="dataset"))
    finally:
        client.setLevel(level)


def _in_folder(folder: Path, name: str) -> Path | None:
    names = [name, *(name.replace(".", f"{s}.") for s in STAND_INS)]  # the official one first
    return next((folder / n for n in names if (folder / n).is_file()), None)


def _check_gamed(path: Path) -> pd.DataFrame:
    """Check and return the table of the baseline at other lengths. alpaca_eval takes the difficulties from its first 805
    rows by place, and drops rows without a preference."""
    faults = Faults(path.name)
    frame = _table(path)
    for column in _GAMED_COLUMNS:
        if column not in frame:
            faults.add(0, column, "missing; the columns are", list(frame.columns)[:8])
    faults.refuse()
    if frame["index"][:805].tolist() != [*range(805)] or not frame["index"].isin(range(805)).all():
        faults.add(0, "index", "0 to 804 in this order is needed in the first 805 rows, and no others below")
    for column in ("std_delta_len", "instruction_difficulty"):
        for row in np.flatnonzero(~np.isfinite(_numbers(frame[column]))):
            faults.add(int(row) + 2, column, "a number is needed", frame[column].iloc[row])
    preferences = _numbers(frame["preference"])
    for row in np.flatnonzero(frame["preference"].notna() & ~((preferences >= 0) & (preferences <= 1))):
        faults.add(int(row) + 2, "preference", "a number from 0 to 1 is needed", frame["preference"].iloc[row])
    if frame["not_gamed_baseline"].dtype != bool or frame["not_gamed_baseline"].any():
        faults.add(0, "not_gamed_baseline", "False is needed in all rows")
    faults.refuse()
    return frame


def _numbers(column: pd.Series) -> np.ndarray:
    return pd.to_numeric(column, errors="coerce").to_numpy(float)


def _table(path: Path) -> pd.DataFrame:
    try:
        frame = pd.read_csv(path)
    except (OSError, ValueError) as error:
        raise PobenchError(f"{path.name} cannot be read: {short(str(error))}") from error
    if len(frame) < 805:
        raise PobenchError(f"{path.name} has {len(frame)} rows; 805 instructions need at least as many")
    return frame


# ---------------------------------------------------------------- calling alpaca_eval
def _length_controlled(glm: Any, frame: pd.DataFrame, gamed: Path) -> dict[str, Any]:
    """alpaca_eval's own metric on a local df_gamed.csv, without writing files or changing sklearn's settings."""
    import sklearn

    download = glm.hf_hub_download
    glm.hf_hub_download = lambda **_: str(gamed)
    try:
        with sklearn.config_context(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found: dict[str, Any] = glm.get_length_controlled_winrate(
                frame, save_weights_dir=None, is_add_glm_preference_inplace=False, is_warn_extreme_changes=False
            )
    finally:
        glm.hf_hub_download = download
    return found


@functools.cache
def module(name: str) -> Any:
    """Import a module of alpaca_eval, and restore the root logger, which the import sets to INFO."""
    root = logging.getLogger()
    level, handlers = root.level, list(root.handlers)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return importlib.import_module(f"alpaca_eval.{name}")
    finally:
        root.setLevel(level)
        root.handlers[:] = handlers


# ---------------------------------------------------------------- answers, for a judge
def write_answers(path: Path, answers: Mapping[str, str], *, model: str) -> None:
    """Write a model's answers in AlpacaEval's own format, in the order of the 805 instructions.

    answers: instruction → output. Raises PobenchError unless all 805 instructions and no others have an answer.
    """
    order = {instruction: i for i, (instruction, _) in enumerate(fingerprints("alpaca_eval"))}
    placed = {order.get(fingerprint(instruction)): instruction for instruction in answers}
    absent = [i + 1 for i in order.values() if i not in placed]
    strangers = [instruction for instruction in answers if fingerprint(instruction) not in order]
    faults = Faults(f"AlpacaEval's answers of {model!r}")
    if absent:
        faults.add(0, "", f"no answer to {numbers('instruction', absent)} of 805")
    for instruction in strangers:
        faults.add(0, "instruction", "none of AlpacaEval's 805", instruction)
    faults.refuse()
    rows = [{"instruction": placed[i], "output": answers[placed[i]], "generator": model} for i in range(len(order))]
    write_text(path, json.dumps(rows, indent=1, ensure_ascii=False) + "\n")
