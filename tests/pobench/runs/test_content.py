"""A result is named by its content: what was changed decides what runs again, and nothing else does."""

from __future__ import annotations

import json
import shutil
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from safetensors.torch import load_file, save_file
from stores import trained_run

from pobench import identity
from pobench.data import prepare
from pobench.errors import PobenchError
from pobench.reporting.draw import table
from pobench.results.index import read_entry
from pobench.results.load import load_frames
from pobench.results.run_folder import RunFolder, find_run
from pobench.runs import content, stages
from pobench.runs.execute import _point_to, execute
from pobench.runs.plan import Plan
from pobench.runs.stage import Node
from pobench.runs.task import Task
from pobench.runs.verify import verify
from pobench.settings.resolve import resolve

PLUGIN = '''
"""A loss for a test."""
from pobench import LossOutput, Pair, register_loss

@register_loss("edited", source="a test")
def edited(policy: Pair, reference: Pair, *, beta: float = 0.1) -> LossOutput:
    """The margin, linear."""
    chosen = beta * (policy.chosen.total - reference.chosen.total)
    rejected = beta * (policy.rejected.total - reference.rejected.total)
    return LossOutput(1.0 - chosen + rejected, chosen, rejected)  # a comment
'''


def ran(plan: Plan) -> Counter:
    """Do what is left, and count it: `loss: train`, `start: answers`, …"""
    counts = Counter(f"{task.kind}: {stage}" for task in plan.left for stage in task.stages)
    failed = [outcome.reason for outcome in execute(plan) if outcome.status == "failed"]
    assert not failed, failed
    return counts


EVERYTHING = {
    "reference: reference": 1,
    **{f"{kind}: {stage}": 1 for kind in ("start", "loss") for stage in ("heldout", "answers", "judge")},
    "loss: train": 1,
}


def rewrite(path: Path, change: Callable[[list[dict[str, Any]]], None]) -> None:
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    change(rows)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def swap_labels(rows: list[dict[str, Any]]) -> None:
    for row in rows:
        row["chosen"], row["rejected"] = row["rejected"], row["chosen"]


def other_prompt(rows: list[dict[str, Any]]) -> None:
    rows[0]["prompt"] = "say w9"


def other_check(rows: list[dict[str, Any]]) -> None:
    rows[0]["check"] = {"kind": "at_most_words", "n": 1}


def edit_template(folder: Path) -> None:
    (path,) = folder.glob("model/chat_template.jinja")
    path.write_text(path.read_text().replace("{{ m['content'] }}", "say {{ m['content'] }}"))


def edit_weights(folder: Path) -> None:
    path = folder / "model" / "model.safetensors"
    tensors = load_file(path)
    tensors["model.norm.weight"] += 0.5
    save_file(tensors, path, metadata={"format": "pt"})


EDITS = {
    "a prompt that is answered": (
        lambda folder: rewrite(folder / "prompts.jsonl", other_prompt),
        {f"{kind}: {stage}": 1 for kind in ("start", "loss") for stage in ("answers", "judge")},
    ),
    "what the judge reads of a prompt": (
        lambda folder: rewrite(folder / "prompts.jsonl", other_check),
        {"start: judge": 1, "loss: judge": 1},
    ),
    "the labels": (
        lambda folder: rewrite(folder / "pairs.jsonl", swap_labels),
        {"reference: reference": 1, "start: heldout": 1, "loss: train": 1}
        | {f"loss: {stage}": 1 for stage in ("heldout", "answers", "judge")},
    ),
    "the chat template": (edit_template, EVERYTHING),
    "the start weights": (edit_weights, EVERYTHING),
}


def slow_but(names: Any, quick: set[str]) -> list[Any]:
    """Each runs a whole job twice or thrice: the fast suite takes some, `make test-all` the others."""
    return [name if name in quick else pytest.param(name, marks=pytest.mark.slow) for name in names]


@pytest.mark.parametrize("edit", slow_but(EDITS, {"the labels", "what the judge reads of a prompt"}))
def test_what_is_edited_in_place_makes_what_stands_behind_it_anew(edit, plan_here, tmp_path) -> None:
    assert ran(plan_here("dpo")) == EVERYTHING
    assert ran(plan_here("dpo")) == {}
    before = {p.relative_to(tmp_path): p.read_bytes() for p in tmp_path.glob("runs/small/*/*/*.parquet")}
    change, expected = EDITS[edit]
    change(tmp_path)
    plan = plan_here("dpo")
    assert {k: 1 for k in ran(plan)} == {k: 1 for k in expected}
    assert all((tmp_path / path).read_bytes() == content for path, content in before.items())  # the old stays
    assert ran(plan_here("dpo")) == {}
    assert plan.notes, "one sentence says what changed"


VALUES = {
    "another decoding": (
        {"answers__max_new_tokens": 3},
        {f"{kind}: {stage}": 1 for kind in ("start", "loss") for stage in ("answers", "judge")},
    ),
    "another β": (
        {"dpo__beta": 0.7},
        {"loss: train": 1, "loss: heldout": 1, "loss: answers": 1, "loss: judge": 1},
    ),
    "the interval of checkpoints": ({"train__checkpoint_seconds": 1.0}, {}),
    "how many rows a batch of answers has": ({"answers__batch_size": 2}, {}),
}


@pytest.mark.parametrize("change", slow_but(VALUES, {"another decoding", "another β"}))
def test_a_changed_value_makes_anew_what_it_decides_and_nothing_else(change, plan_here) -> None:
    values, expected = VALUES[change]
    assert ran(plan_here("dpo")) == EVERYTHING
    assert ran(plan_here("dpo", **values)) == expected
    assert ran(plan_here("dpo", **values)) == {}
    assert ran(plan_here("dpo")) == {}, "what was there before is there still"


@pytest.mark.slow
def test_another_judge_judges_again_and_nothing_else(plan_here) -> None:
    from pobench.registry import judges, register_judge

    class Content:
        name = "content"

        def score(self, row: Any, text: str, finished: bool = True) -> float:
            return 1.0

    register_judge("content")(lambda: Content())
    try:
        assert ran(plan_here("dpo")) == EVERYTHING
        assert ran(plan_here("dpo", judge__name="content")) == {"start: judge": 1, "loss: judge": 1}
        assert ran(plan_here("dpo")) == ran(plan_here("dpo", judge__name="content")) == {}
    finally:
        judges._items.pop("content", None), judges._aliases.pop("content", None)


@pytest.mark.slow
def test_another_held_out_file_scores_again_and_trains_nothing(plan_here, setting, tmp_path) -> None:
    rows = [{"id": f"h{i}", "prompt": f"say w{40 + i}", "chosen": f"w{i}", "rejected": f"w{i} w4"} for i in range(4)]
    for name, part in (("one.jsonl", rows[:2]), ("two.jsonl", rows[2:])):
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in part))
    assert ran(plan_here("dpo", data__held_out=str(tmp_path / "one.jsonl"))) == EVERYTHING
    again = ran(plan_here("dpo", data__held_out=str(tmp_path / "two.jsonl")))
    assert again == {"reference: reference": 1, "start: heldout": 1, "loss: heldout": 1}


@pytest.mark.slow
def test_one_reference_pass_serves_losses_seeds_and_learning_rates(plan_here, tmp_path) -> None:
    assert ran(plan_here("dpo"))["reference: reference"] == 1
    made = {p.name for p in (tmp_path / "cache/reference").iterdir()}
    for loss, values in (("ipo", {}), ("dpo", {"train__lr": 1e-4}), ("dpo", {"dpo__beta": 0.9})):
        assert "reference: reference" not in ran(plan_here(loss, **values)), (loss, values)
    assert {p.name for p in (tmp_path / "cache/reference").iterdir()} == made


def test_an_edited_plugin_trains_anew_and_an_edited_comment_does_not(plan_here, tmp_path) -> None:
    from pobench.registry import load_plugin, losses

    def again(text: str) -> Counter:
        (tmp_path / "edited.py").write_text(text)
        load_plugin(tmp_path / "edited.py")
        return ran(plan_here("edited", plugins=(str(tmp_path / "edited.py"),)))

    try:
        assert again(PLUGIN) == EVERYTHING
        assert again(PLUGIN.replace("# a comment", "# another").replace("linear", "a line")) == {}
        (first,) = tmp_path.glob("runs/small/edited-*")
        assert again(PLUGIN.replace("1.0 -", "2.0 -"))["loss: train"] == 1
        assert len(list(tmp_path.glob("runs/small/edited-*"))) == 2 and (first / "model").is_dir()
    finally:
        losses._items.pop("edited", None), losses._aliases.pop("edited", None)
        sys.modules.pop("pobench_plugin_edited", None)


# ---------------------------------------------------------------- bytes that do not match
def test_verdicts_stay_while_the_answers_come_out_the_same_and_go_with_other_ones(plan_here, tmp_path) -> None:
    ran(plan_here("dpo"))
    (answers,) = tmp_path.glob("runs/small/dpo-*/answers-*")
    (verdicts,) = tmp_path.glob("runs/small/dpo-*/judge-*")
    made, written = (verdicts / "node.json").stat().st_mtime_ns, (verdicts / "node.json").read_text()
    spoil(answers / "answers.parquet")
    ran(plan_here("dpo"))
    assert (verdicts / "node.json").stat().st_mtime_ns == made, "the same answers keep their verdicts"
    stored = RunFolder(tmp_path / "runs", f"small/{answers.parent.name}").node(answers.name)
    about, frame = stored.about, stored.read_frame("answers")
    stored.write({"answers": frame.assign(text="w1 w2 w3 w4 w5 w6")}, about["causes"], model=about["model"])
    plan = plan_here("dpo")
    assert ran(plan) == {"loss: judge": 1} and "other weights or answers" in " ".join(plan.notes)
    assert (verdicts / "node.json").read_text() != written


@pytest.mark.slow
def test_a_marker_that_cannot_be_read_is_damage_like_any_other(plan_here, tmp_path, capsys) -> None:
    ran(plan_here("dpo"))
    (marker,) = tmp_path.glob("runs/small/dpo-*/heldout-*/node.json")
    marker.write_text(marker.read_text()[:40])
    assert list(load_frames(tmp_path / "runs")["runs"]["loss"]) == ["start"]
    assert "is left out" in (said := capsys.readouterr().err) and "node.json" in said
    plan = plan_here("dpo")
    assert "cannot be read" in " ".join(plan.notes)
    assert ran(plan) == {"loss: heldout": 1} and ran(plan_here("dpo")) == {}


def spoil(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(bytes(data))


def test_damaged_results_are_found_named_and_made_anew(plan_here, tmp_path, capsys) -> None:
    ran(plan_here("dpo"))
    whole = verify(tmp_path / "runs")
    assert whole.faults == [] and whole.files > len(list((tmp_path / "runs").rglob("*.parquet"))) > 5
    (damaged,) = tmp_path.glob("runs/small/dpo-*/heldout-*/heldout.parquet")
    spoil(damaged)
    left = load_frames(tmp_path / "runs")["runs"]["loss"]
    assert list(left) == ["start"] and "dpo" in (said := capsys.readouterr().err) and "heldout.parquet" in said
    assert any("heldout.parquet" in fault for fault in verify(tmp_path / "runs").faults)
    plan = plan_here("dpo")
    assert any("heldout.parquet" in note for note in plan.notes)
    assert ran(plan) == {"loss: heldout": 1}
    assert verify(tmp_path / "runs").faults == []
    load_frames(tmp_path / "runs")
    # sums that nothing which is left reads
    sums = next(tmp_path.glob("cache/reference/*/sums-*"))
    spoil(sums)
    assert any(sums.name in fault for fault in verify(tmp_path / "runs").faults)
    plan = plan_here("dpo")
    assert any(sums.name in note and "set aside" in note for note in plan.notes)
    assert ran(plan) == {} and verify(tmp_path / "runs").faults == []


@pytest.mark.slow
def test_damaged_weights_are_not_evaluated_but_trained_again(plan_here, tmp_path) -> None:
    ran(plan_here("dpo"))
    (weights,) = tmp_path.glob("runs/small/dpo-*/model/model.safetensors")
    spoil(weights)
    assert ran(plan_here("dpo", answers__max_new_tokens=2))["loss: train"] == 1


@pytest.mark.slow
def test_damaged_reference_sums_are_computed_again(plan_here, tmp_path) -> None:
    ran(plan_here("dpo"))
    for file in tmp_path.glob("cache/reference/*/*"):
        if file.suffix == ".safetensors":
            spoil(file)
    plan = plan_here("ipo")
    assert "damaged" in " ".join(plan.notes)
    assert ran(plan)["reference: reference"] == 1


@pytest.mark.slow
def test_damaged_token_pairs_are_read_again(plan_here, tmp_path) -> None:
    ran(plan_here("dpo"))
    (pairs,) = tmp_path.glob("runs/small/data-*/train.arrow")
    before = pairs.read_bytes()
    spoil(pairs)
    assert ran(plan_here("dpo")) == {}
    assert pairs.read_bytes() == before


def test_other_code_that_reads_rows_reads_them_again_and_trains_nothing_again(plan_here, tmp_path, monkeypatch) -> None:
    assert ran(plan_here("dpo")) == EVERYTHING
    (old,) = tmp_path.glob("runs/small/data-*")
    monkeypatch.setattr(content, "reader_digest", lambda: "of another release")
    assert ran(plan_here("dpo")) == {}
    (new,) = set(tmp_path.glob("runs/small/data-*")) - {old}
    audit = load_frames(tmp_path / "runs")["audit"]
    assert set(audit["data"]) == {new.name.removeprefix("data-")} and not audit.duplicated(["setting", "fault"]).any()


def test_the_code_that_reads_rows_is_every_module_between_a_file_and_its_token_pairs() -> None:
    names = {path.stem for path in identity._files(Path(prepare.__file__))}
    assert {
        "prepare",
        "rows",
        "shapes",
        "public_shapes",
        "annotation_shapes",
        "column_map",
        "row_reader",
        "turns",
        "chat",
        "tokens",
    } <= names


# ---------------------------------------------------------------- edges, names, and what is shown
@pytest.mark.slow
def test_scores_without_the_start_model_are_not_final(plan_here, tmp_path) -> None:
    ran(plan_here("dpo"))
    (start,) = tmp_path.glob("runs/small/start-*")
    (run,) = tmp_path.glob("runs/small/dpo-*")

    def compared() -> int:
        scores = load_frames(tmp_path / "runs")["scores"]
        return int(scores.set_index(["run", "metric"]).loc[(f"small/{run.name}", "pass_rate_gain"), "n"])

    away = start.rename(tmp_path / "away")
    assert compared() == 0
    away.rename(start)
    assert compared() == 3


def test_a_command_shows_what_it_makes_and_what_is_there_and_not_what_it_leaves_out(tmp_path) -> None:
    stored = trained_run(tmp_path, "dpo-0123456789ab")
    (job,) = resolve("tiny", "dpo", seeds=[1])
    nodes = {stage: Node(stage, {"of": "other values"}) for stage in ("heldout", "answers", "judge")}
    task = Task(job, "loss", tmp_path, stored.run, ("heldout",), tmp_path / "data", nodes)
    _point_to(Plan((task,)))
    assert stored.shown == {"heldout": nodes["heldout"].name}, "the command judges nothing, and has other answers"
    assert read_entry(stored).row["status"] == "unfinished"
    stored.node(nodes["heldout"].name).write(
        {"heldout": pd.DataFrame({"pair": ["a"]})}, {}, model=stored.weights, read={}
    )
    row = read_entry(stored).row
    assert row["status"] == "finished" and row["others"] == 2, "answers and verdicts of other values"
    _point_to(Plan((replace(task, stages=()),)))
    assert stored.shown == {"heldout": nodes["heldout"].name}


@pytest.mark.slow
def test_frames_show_the_results_that_the_newest_command_named(plan_here, tmp_path) -> None:
    ran(plan_here("dpo"))
    ran(plan_here("dpo", answers__max_new_tokens=2))
    assert load_frames(tmp_path / "runs")["answers"]["tokens"].max() <= 2
    ran(plan_here("dpo"))
    assert load_frames(tmp_path / "runs")["answers"]["tokens"].max() > 2
    (run,) = tmp_path.glob("runs/small/dpo-*")
    assert RunFolder(tmp_path / "runs", f"small/{run.name}").others("answers") == 1


@pytest.mark.slow
def test_a_run_of_some_stages_is_finished_and_of_one_that_was_killed_it_is_not(plan_here, tmp_path) -> None:
    def states() -> list[str]:
        return list(load_frames(tmp_path / "runs")["runs"].sort_values("loss")["status"])

    ran(plan_here("dpo", ("train",)))
    assert states() == ["finished"]
    ran(plan_here("dpo", ("train", "heldout")))
    assert states() == ["finished", "finished"]
    _point_to(plan_here("dpo"))
    assert states() == ["unfinished", "unfinished"], "a command began all stages, and was killed"
    assert ran(plan_here("dpo", ("train", "heldout"))) == {} and states() == ["finished", "finished"]
    assert ran(plan_here("dpo")) == {
        f"{kind}: {stage}": 1 for kind in ("start", "loss") for stage in ("answers", "judge")
    }
    assert states() == ["finished", "finished"]


@pytest.mark.slow
def test_results_beside_those_shown_are_counted_and_the_table_of_settings_says_so(plan_here, tmp_path) -> None:
    ran(plan_here("dpo"))
    frames = load_frames(tmp_path / "runs")
    assert list(frames["runs"]["others"]) == [0, 0] and "notes" not in table("settings-table", frames).attrs
    ran(plan_here("dpo", answers__max_new_tokens=2))
    frames = load_frames(tmp_path / "runs")
    assert list(frames["runs"]["others"]) == [2, 2], "answers and verdicts, of the start model and of the trained one"
    note = "4 results of other settings are stored beside those shown."
    assert table("settings-table", frames).attrs["notes"] == note


def test_runs_of_protocol_1_are_read_and_not_touched(plan_here, tmp_path) -> None:
    ran(plan_here("dpo"))
    (run,) = tmp_path.glob("runs/small/dpo-*")
    old = run.with_name("dpo-12345678")
    old.mkdir()
    config = yaml.safe_load((run / "config.yaml").read_text()) | {"protocol": 1}
    (old / "config.yaml").write_text(yaml.safe_dump(config))
    (old / "finished.json").write_text(json.dumps({"protocol": 1, "seconds": 1.0, "pairs": 7}))
    shutil.copy(next(run.glob("heldout-*")) / "heldout.parquet", old / "heldout.parquet")
    frames = load_frames(tmp_path / "runs")
    row = frames["runs"].set_index("run").loc["small/dpo-12345678"]
    assert row["protocol"] == 1 and row["status"] == "finished" and row["pairs"] == 7
    assert "small/dpo-12345678" in set(frames["heldout"]["run"])
    assert find_run(tmp_path / "runs", run.name[:8]) == f"small/{run.name}", "a unique beginning names a run"
    with pytest.raises(PobenchError, match="begins the names of 2 runs"):
        find_run(tmp_path / "runs", "small/dpo")
    assert len(verify(tmp_path / "runs").unsigned) == 1


def test_stages_name_what_they_read_and_only_stages_that_come_before() -> None:
    for i, stage in enumerate(stages.STAGES):
        assert set(stage.reads) <= set(stages.ALL[:i]), stage.name
        assert stage.does and stage.decided_by and stage.writes, stage.name
