"""What fails in a task, and what is left of it: a diagnostic takes nothing else with it."""

from __future__ import annotations

import errno
import json
import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from pobench.errors import PobenchError
from pobench.locks import hold
from pobench.model.device import JOBS, PART_OF_A_MACHINE, make_accelerator
from pobench.results.run_folder import RunFolder
from pobench.runs import worker
from pobench.runs.context import Context
from pobench.runs.execute import SERVER_GONE, execute, why_failed
from pobench.runs.stages import BY_NAME
from pobench.training import checkpoint


def test_kto_runs_beside_a_held_out_set_of_one_pair_whose_own_loss_is_missing(work_here) -> None:
    folder = work_here("kto", data__max_held_out=1, train__evaluate_every=1)
    (stored,) = folder.glob("heldout-*/heldout.parquet")
    held = RunFolder(folder.parent.parent, f"small/{folder.name}").node(stored.parent.name).read_frame("heldout")
    assert len(held) == 1 and held["loss"].isna().all() and held["chosen_logp"].notna().all()


def test_kto_on_pairs_of_one_prompt_is_refused_before_anything_runs(plan_here, setting) -> None:
    rows = [{"prompt": "say w1", "chosen": f"w{i} w1", "rejected": f"w{i} w2 w3"} for i in range(4)]
    Path(setting["data"]["source"]).write_text("".join(json.dumps(r) + "\n" for r in rows))
    held_out = Path(setting["data"]["source"]).with_name("held.jsonl")
    held_out.write_text(json.dumps({"prompt": "say w2", "chosen": "w2 w1", "rejected": "w2 w2 w3"}) + "\n")
    with pytest.raises(PobenchError, match="kto: all training pairs share one prompt"):
        plan_here("kto", data__held_out=str(held_out))
    stored = plan_here("dpo", data__held_out=str(held_out)).pairs
    stored.store()
    with pytest.raises(PobenchError, match="kto: all training pairs share one prompt"):
        plan_here("kto", data__held_out=str(held_out))  # the pairs come from their folder now


def test_a_loss_that_needs_ratings_is_refused_without_them_and_named_by_them(
    plan_here, setting, losses_that_ask
) -> None:
    source = Path(setting["data"]["source"])
    rows = [json.loads(line) for line in source.read_text().splitlines()]

    def plans(*gaps: float) -> list[str]:
        rated = [{**r, "score_chosen": 5 + gap, "score_rejected": 5} for r, gap in zip(rows, gaps, strict=False)]
        source.write_text("".join(json.dumps(r) + "\n" for r in [*rated, *rows[len(rated) :]]))
        return [plan_here(loss, plugins=[losses_that_ask]).tasks[-1].run for loss in ("dpo", "t_offset")]

    for stored in (False, True):
        with pytest.raises(PobenchError, match=r"t_offset: needs the data's ratings .* 1 training pairs have none: 9;"):
            plans(*range(1, 10))
        if not stored:
            plan_here("dpo").pairs.store()
    first, second = plans(*range(1, 11)), plans(*range(2, 12))
    assert first[0] == second[0] and first[1] != second[1]  # a loss that does not ask keeps its name


def test_a_process_that_was_killed_behind_its_last_result_has_not_failed_once_the_command_is_repeated(
    work_here,
) -> None:
    folder = work_here("simpo")
    run = RunFolder(folder.parents[1], f"{folder.parent.name}/{folder.name}")
    run.fail("killed by signal 9")
    assert work_here("simpo") == folder and run.failure is None


@pytest.mark.slow
def test_a_loss_that_needs_ratings_trains_and_is_evaluated_by_them(work_here, setting, losses_that_ask) -> None:
    source = Path(setting["data"]["source"])
    rows = [json.loads(line) for line in source.read_text().splitlines()]
    rows = [{**row, "score_chosen": 5 + i, "score_rejected": 5} for i, row in enumerate(rows, start=1)]
    source.write_text("".join(json.dumps(r) + "\n" for r in rows))
    folder = work_here("t_offset", ("train", "heldout"), plugins=[losses_that_ask])
    (stored,) = folder.glob("heldout-*/heldout.parquet")
    held = RunFolder(folder.parent.parent, f"small/{folder.name}").node(stored.parent.name).read_frame("heldout")
    assert held["loss"].notna().all()
    assert (held["chosen_score"] == held["pair"].astype(int) + 6).all() and (held["rejected_score"] == 5).all()


def test_a_measurement_that_fails_while_training_is_named_and_training_goes_on(work_here, monkeypatch, capsys) -> None:
    measured = Context.heldout_frame

    def fails(context: Context, scorer: object = None) -> object:
        if scorer is not None:
            raise MemoryError
        return measured(context)

    monkeypatch.setattr(Context, "heldout_frame", fails)
    folder = work_here("dpo", ("train", "heldout"), train__evaluate_every=1)
    assert (folder / "trained.json").is_file() and list(folder.glob("heldout-*/heldout.parquet"))
    assert "the held-out pairs failed at this step: out of memory" in capsys.readouterr().err


@pytest.mark.parametrize(("broken", "lost"), [("heldout", {"heldout"}), ("answers", {"answers", "judge"})])
def test_a_stage_that_fails_leaves_those_that_do_not_read_it(broken, lost, plan_here, monkeypatch) -> None:
    def fails(context: Context) -> None:
        raise ValueError("no such thing")

    monkeypatch.setitem(BY_NAME, broken, replace(BY_NAME[broken], run=fails))
    plan = plan_here("simpo")
    outcome = execute(plan)[-1]
    assert (outcome.status, outcome.reason) == ("failed", f"{broken}: ValueError: no such thing")
    folder = RunFolder(plan.tasks[-1].runs, plan.tasks[-1].run)
    stored = {s for s in ("heldout", "answers", "judge") if folder.node(plan.tasks[-1].nodes[s].name).finished}
    assert stored == {"heldout", "answers", "judge"} - lost
    assert "no such thing" in (folder.path / "traceback.txt").read_text()


def test_a_run_that_another_process_writes_is_refused_with_its_holder_and_left_alone(plan_here, monkeypatch) -> None:
    monkeypatch.setattr(worker, "PATIENCE", 0.0)
    plan = plan_here("simpo", ("train",))
    task = plan.tasks[-1]
    folder = task.runs / task.run
    folder.mkdir(parents=True)
    with hold(folder / worker.LOCK):
        (outcome,) = [outcome for outcome in execute(plan) if outcome.status == "failed"]
    assert f"(process {os.getpid()} on " in outcome.reason and str(folder) in outcome.reason
    assert not (folder / "steps.jsonl").exists()
    assert execute(plan)[-1].status == "finished"
    assert not (folder / worker.LOCK).exists()


def test_a_server_that_was_killed_is_reported_as_what_it_was(plan_here) -> None:
    task = plan_here("simpo", ("train",)).tasks[-1]
    assert "the server that starts processes was killed" in (why_failed(task, SERVER_GONE) or "")


def test_a_full_disk_ends_a_training_in_one_sentence_and_with_room_it_goes_on(plan_here, monkeypatch, capsys) -> None:
    def full(path: Path, *_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    plan = plan_here("simpo", ("train",), train__checkpoint_seconds=0, train__epochs=2)
    folder = RunFolder(plan.tasks[-1].runs, plan.tasks[-1].run)
    save = checkpoint._save
    with monkeypatch.context() as patched:
        patched.setattr(
            checkpoint, "_save", lambda *given: full(given[1]) if len(folder.logged()) == 3 else save(*given)
        )
        patched.setattr(RunFolder, "fail", lambda *given: full(folder.path))
        execute(plan)
    assert "OSError: [Errno 28] No space left on device" in capsys.readouterr().err
    assert sorted(path.name for path in folder.path.glob("*checkpoint-*")) == ["checkpoint-1", "checkpoint-2"]
    assert execute(plan)[-1].status == "finished"
    assert [row["step"] for row in folder.steps()] == [1, 2, 3, 4]


def test_a_run_that_went_on_with_another_part_of_a_machine_stores_none(tmp_path: Path, monkeypatch) -> None:
    folder = RunFolder(tmp_path, "tiny/dpo-aaaaaaaaaaaa")
    folder.path.mkdir(parents=True)
    context = SimpleNamespace(folder=folder, accelerator=make_accelerator("fp32", cpu=True))

    def attempt(jobs: int) -> dict[str, object]:
        monkeypatch.setenv(JOBS, str(jobs))
        folder.write_json("environment.json", found := worker._of_all_attempts(context))  # type: ignore[arg-type]
        return found

    assert attempt(2)["jobs"] == 2 and attempt(1)["jobs"] == 1  # without a checkpoint it begins anew
    (folder.path / "checkpoint-3").mkdir()
    assert attempt(1)["jobs"] == 1
    for jobs in (2, 2):  # of the third attempt, too, nothing is known
        assert set(attempt(jobs)).isdisjoint(PART_OF_A_MACHINE)
    (folder.path / "environment.json").write_text("{")
    assert "jobs" not in attempt(2)  # what it had before cannot be read
