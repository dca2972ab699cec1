"""Two folders of runs become one by content names: nothing twice, nothing half, nothing overwritten."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import optuna
import pytest
from optuna.distributions import CategoricalDistribution
from optuna.trial import TrialState, create_trial
from stores import START, start_run, trained_run, unscored

from pobench.errors import PobenchError
from pobench.files import digests_of, write_json
from pobench.identity import name_of
from pobench.locks import hold
from pobench.results import manifest
from pobench.results.earlier_looks import stored_looks
from pobench.results.load import load_frames, read_trials
from pobench.results.run_folder import RunFolder
from pobench.runs.execute import LOCK
from pobench.workflows.merge import merge
from pobench.workflows.trials import open_trials, write_trials


@pytest.fixture
def stores(tmp_path: Path) -> tuple[Path, Path]:
    """A holds SimPO, B holds DPO and SimPO's other seed; both hold the start model."""
    a, b = tmp_path / "A", tmp_path / "B"
    for root in (a, b):
        start_run(root)
    trained_run(a, "simpo-aaaaaaaaaaaa")
    trained_run(b, "dpo-bbbbbbbbbbbb")
    trained_run(b, "simpo-cccccccccccc", seed=2)
    return a, b


def test_what_is_lacking_is_copied_and_what_is_there_stays(stores, pobench_cli) -> None:
    a, b = stores
    before, theirs = digests_of(a), digests_of(b)
    status, out, _ = pobench_cli("merge", str(a), str(b))
    assert status == 0 and "6 results copied (2 runs are new), 2 were there" in out
    after = digests_of(a)
    assert {**theirs, **before} == after and digests_of(b) == theirs
    frames = load_frames(a)
    assert sorted(frames["runs"]["loss"]) == ["dpo", "simpo", "simpo", "start"]
    assert set(frames["runs"]["status"]) == {"finished"} and frames["verdicts"]["run"].nunique() == 4
    again = merge(a, b)
    assert again.copied == 0 and again.there == 8 and digests_of(a).keys() >= after.keys()


def test_a_run_that_was_asked_for_its_training_alone_is_finished_in_both(stores) -> None:
    a, b = stores
    for run in ("tiny/dpo-bbbbbbbbbbbb",):
        folder = RunFolder(b, run)
        for node in folder.shown.values():
            shutil.rmtree(folder.path / node)
        folder.write_json("shown.json", {})
    merge(a, b)
    assert RunFolder(a, "tiny/dpo-bbbbbbbbbbbb").shown == {} and RunFolder(a, "tiny/dpo-bbbbbbbbbbbb").has("shown.json")
    runs = load_frames(a)["runs"].set_index("loss")
    assert runs.loc["dpo", "status"] == "finished"


def test_results_of_one_name_that_differ_are_refused_all_at_once_and_nothing_is_written(stores) -> None:
    a, b = stores
    trained_run(b, "simpo-aaaaaaaaaaaa", weights="other")
    shutil.rmtree(b / START)
    start_run(b, passed=1.0)
    before = digests_of(a)
    with pytest.raises(PobenchError) as refused:
        merge(a, b)
    told = str(refused.value)
    assert "2 results have one name" in told and "nothing was written" in told
    assert "tiny/simpo-aaaaaaaaaaaa: weights.model/model.safetensors" in told
    assert f"{START}/judge-00000000000a: files.verdicts.parquet" in told
    assert "simpo-aaaaaaaaaaaa/" not in told, "what stands behind other weights is not named again"
    assert digests_of(a) == before


def test_a_damaged_file_is_refused_by_name(stores) -> None:
    a, b = stores
    (b / "tiny" / "dpo-bbbbbbbbbbbb" / "model" / "model.safetensors").write_text("rotten")
    before = digests_of(a)
    with pytest.raises(PobenchError, match=r"dpo-bbbbbbbbbbbb/model/model.safetensors' is damaged"):
        merge(a, b)
    assert digests_of(a) == before


@pytest.mark.parametrize("which", [0, 1])
def test_no_folder_is_merged_in_which_a_command_is_at_work(stores, which) -> None:
    a, b = stores
    with hold(stores[which] / "tiny" / LOCK), pytest.raises(PobenchError, match=r"command is at work in .*process \d+"):
        merge(a, b)
    assert merge(a, b).copied == 6


def test_a_merge_that_was_killed_at_any_moment_leaves_a_readable_folder_and_is_repeated(stores, tmp_path, monkeypatch):
    """Killed before each rename in turn; readers see whole runs alone, and the repeated merge ends as an undisturbed one."""
    a, b = stores
    shutil.copytree(a, tmp_path / "undisturbed")
    merge(tmp_path / "undisturbed", b)
    rename = os.replace
    monkeypatch.setattr("pobench.results.load.summary_of", lambda root, entry, start, check: unscored(entry.run))
    for moment in range(100):
        root = tmp_path / f"killed-{moment}"
        shutil.copytree(a, root)
        left = [moment]

        def killed(source, target, left=left) -> None:
            if left[0] == 0:
                raise KeyboardInterrupt
            left[0] -= 1
            rename(source, target)

        monkeypatch.setattr(os, "replace", killed)
        try:
            merge(root, b)
            break
        except KeyboardInterrupt:
            monkeypatch.setattr(os, "replace", rename)
            assert set(load_frames(root)["runs"]["status"]) == {"finished"}
            merge(root, b)
            assert digests_of(root).keys() - {"x"} >= digests_of(tmp_path / "undisturbed").keys()
    assert moment > 10, "every rename was a moment to be killed at"


def test_a_run_that_another_judge_has_seen_keeps_what_it_shows(stores) -> None:
    a, b = stores
    trained_run(b, "simpo-aaaaaaaaaaaa", judge="judge-000000000002")
    merged = merge(a, b)
    ours = RunFolder(a, "tiny/simpo-aaaaaaaaaaaa")
    assert merged.shown == ["tiny/simpo-aaaaaaaaaaaa"] and ours.shown["judge"] == "judge-000000000001"
    assert ours.node("judge-000000000002").finished and ours.others("judge") == 1


def test_an_unfinished_run_is_finished_by_the_others_and_an_untrained_one_stays_there(stores) -> None:
    a, b = stores
    here = RunFolder(a, "tiny/dpo-bbbbbbbbbbbb")
    (here.path / "checkpoint-3").mkdir(parents=True)
    shutil.copy2(b / "tiny/dpo-bbbbbbbbbbbb/config.yaml", here.path)
    here.log_step({"step": 1})
    here.fail("killed by signal 9")
    for name in ("trained.json", "model"):
        path = b / "tiny/simpo-cccccccccccc" / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    shutil.rmtree(b / "tiny/simpo-cccccccccccc/answers-000000000001")
    shutil.rmtree(b / "tiny/simpo-cccccccccccc/judge-000000000001")
    merged = merge(a, b)
    assert merged.unfinished == ["tiny/simpo-cccccccccccc"] and not (a / "tiny/simpo-cccccccccccc").exists()
    runs = load_frames(a)["runs"].set_index("run")
    assert runs.loc["tiny/dpo-bbbbbbbbbbbb", "status"] == "finished" and not (here.path / "checkpoint-3").exists()


def test_looks_and_a_benchmarks_later_files_are_added(stores) -> None:
    a, b = stores
    look = {"runs": ["tiny/dpo-bbbbbbbbbbbb", "tiny/simpo-cccccccccccc"]}
    write_json(b / "tiny" / "looks" / f"{name_of(look)}.json", look)
    trained_run(b, "simpo-aaaaaaaaaaaa")
    for root in stores:
        folder = root / "tiny/simpo-aaaaaaaaaaaa/benchmarks/own/0123/4567"
        folder.mkdir(parents=True)
        manifest.claim(folder, {"judge": "j"})
        (folder / "verdicts.jsonl").write_text("{}\n")
        manifest.finish(folder, "verdicts.jsonl")
    (folder / "score.json").write_text(json.dumps({"made": "in B"}))
    manifest.finish(folder, "score.json")
    merge(a, b)
    assert [row["run"] for row in stored_looks(a, "tiny")] == look["runs"]
    ours = a / folder.relative_to(b)
    assert manifest.holds(ours, {"judge": "j"}, "verdicts.jsonl", "score.json")


# ---------------------------------------------------------------- trials
def search(root: Path, values: dict[float, float | None]) -> Path:
    """A stored search below `root`. values: learning rate → value; None for a trial that failed."""
    folder = root / "tiny" / "tuning"
    folder.mkdir(parents=True, exist_ok=True)
    storage = open_trials(folder)
    study = optuna.create_study(storage=storage, study_name="tiny simpo 1", direction="maximize", load_if_exists=True)
    for key, value in {"setting": "tiny", "loss": "simpo", "metric": "pass_rate", "sampler": "grid"}.items():
        study.set_user_attr(key, value)
    for lr, value in values.items():
        attrs = {"point": {"lr": lr}, "lr": lr, "settings": {}, "measured": {"value": value}, "runs": []}
        state = TrialState.COMPLETE if value is not None else TrialState.FAIL
        attrs |= {} if value is not None else {"reason": "out of memory"}
        lrs = {"lr": CategoricalDistribution([1e-5, 1e-4, 1e-3])}
        study.add_trial(create_trial(state=state, value=value, params={"lr": lr}, distributions=lrs, user_attrs=attrs))
    write_trials(folder / "trials.csv", storage)
    return folder


def test_trials_of_one_study_come_together_and_the_best_of_all_is_marked(stores) -> None:
    a, b = stores
    ours = search(a, {1e-5: 0.2, 1e-4: None})
    search(b, {1e-5: 0.2, 1e-4: 0.5, 1e-3: None})
    assert merge(a, b).trials == 2 and merge(a, b).trials == 0
    rows = read_trials(ours / "trials.csv").set_index(["lr", "status"])
    assert rows["value"].dropna().to_dict() == {(1e-5, "finished"): 0.2, (1e-4, "finished"): 0.5}
    assert rows[rows["chosen"]].index.tolist() == [(1e-4, "finished")] and len(rows) == 4


def test_a_trial_that_came_to_another_value_is_refused_by_name(stores) -> None:
    a, b = stores
    search(a, {1e-5: 0.2})
    search(b, {1e-5: 0.3})
    with pytest.raises(PobenchError, match=r"tiny simpo 1, trial at \{\"lr\": 1e-05\}: value 0.2 and 0.3"):
        merge(a, b)


def test_a_search_of_an_earlier_version_is_read_once_and_its_file_stays(tmp_path) -> None:
    folder = search(tmp_path / "new", {1e-5: 0.2, 1e-4: None})
    old = tmp_path / "old"
    old.mkdir()
    database = optuna.storages.RDBStorage(f"sqlite:///{old / 'optuna.db'}")
    optuna.copy_study(from_study_name="tiny simpo 1", from_storage=open_trials(folder), to_storage=database)
    write_trials(old / "trials.csv", open_trials(old))
    assert (old / "trials.csv").read_bytes() == (folder / "trials.csv").read_bytes()
    assert (old / "optuna.db").is_file() and (old / "optuna.log").is_file()
    (old / "optuna.db").write_bytes(b"not read again")
    assert optuna.get_all_study_names(open_trials(old)) == ["tiny simpo 1"]


def test_a_line_that_a_killed_command_left_incomplete_is_left_out(tmp_path) -> None:
    folder = search(tmp_path, {1e-5: 0.2})
    journal = folder / "optuna.log"
    whole = journal.read_bytes()
    journal.write_bytes(whole + b'{"op_code": 4, "wor')
    study = optuna.load_study(study_name="tiny simpo 1", storage=open_trials(folder))
    study.set_user_attr("after", "the kill")
    assert optuna.load_study(study_name="tiny simpo 1", storage=open_trials(folder)).user_attrs["after"] == "the kill"
