"""A stored file with another digit, or a file that is gone, is named by whatever reads it, and made anew where it can be."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from stores import START, start_run, trained_run, unscored

from pobench.errors import CorruptError, PobenchError
from pobench.files import read_marker, sealed, sha256_of, write_json
from pobench.results.frame_files import read_frames, write_frames
from pobench.results.load import digest_file, load_frames, open_frames
from pobench.results.manifest import claim, finish
from pobench.results.run_folder import RunFolder
from pobench.runs.verify import verify
from pobench.training import checkpoint
from tests.faults.damage import DAMAGES, another_digit

RUN = "tiny/simpo-aaaaaaaaaaaa"
OTHER = "tiny/dpo-bbbbbbbbbbbb"


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("POBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("pobench.results.load.summary_of", lambda root, entry, start, check: unscored(entry.run))
    root = tmp_path / "runs"
    start_run(root)
    for run in (RUN, OTHER):
        trained_run(root, run.partition("/")[2])
    return root


SMALL = ("trained.json", "shown.json", "config.yaml", "answers-000000000001/node.json")


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("damage", [another_digit, Path.unlink], ids=["another digit", "gone"])
def test_a_run_with_a_damaged_small_file_is_left_out_and_named(
    name: str, damage: Callable[[Path], object], store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damage(store / RUN / name)
    frames = open_frames(store)
    if name == "trained.json" and damage is Path.unlink:  # as one that is not finished yet
        assert frames["runs"].set_index("run")["status"][RUN] == "unfinished"
        return
    assert set(frames["runs"]["run"]) == {START, OTHER} and frames.left_out == (RUN,)
    assert f"{RUN} is left out: {str(store / RUN / name)!r} is damaged" in capsys.readouterr().err
    assert [fault for fault in verify(store).faults if str(store / RUN / name) in fault]


def test_a_report_that_leaves_a_damaged_run_out_ends_with_status_1(store: Path, pobench_cli, short_report) -> None:  # type: ignore[no-untyped-def]
    arguments = ("analyze", "--runs", str(store), "--figures", "settings-table", "--format", "csv")
    assert pobench_cli(*arguments)[0] == 0
    another_digit(store / RUN / "config.yaml")
    status, _, err = pobench_cli(*arguments)
    assert status == 1 and err.count("left out") == err.count(f"{RUN} is left out: ") == 1


def test_a_site_that_leaves_a_damaged_run_out_ends_with_status_1_and_says_it_once(  # type: ignore[no-untyped-def]
    store: Path, pobench_cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pobench.workflows.share.chosen", lambda figures: [])
    another_digit(store / RUN / "config.yaml")
    status, _, err = pobench_cli("share", str(store), "--out", "site")
    assert status == 1 and err.count("left out") == 1 and Path("site/index.html").is_file()


def test_where_no_run_is_whole_the_message_says_so_and_not_that_there_is_none(store: Path) -> None:
    for path in store.glob("*/*/config.yaml"):
        path.write_text("")
    with pytest.raises(PobenchError, match=r"none of the 3 stored runs in .* is whole"):
        open_frames(store)


@pytest.mark.parametrize("damage", [another_digit, Path.unlink], ids=["another digit", "gone"])
def test_what_a_run_shows_is_made_anew_from_its_results(damage: Callable[[Path], object], store: Path) -> None:
    folder = RunFolder(store, RUN)
    shown = folder.shown
    damage(folder.path / "shown.json")
    with pytest.raises(CorruptError):
        _ = folder.shown
    folder.show({"answers": shown["answers"]})
    assert folder.shown == shown and verify(store).faults == []


def test_steps_that_are_gone_are_named(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (store / RUN / "steps.jsonl").unlink()
    assert set(load_frames(store)["steps"]["run"]) == {OTHER}
    assert f"the steps of {RUN} are left out" in capsys.readouterr().err


def test_a_seal_holds_for_any_value_that_json_holds_and_earlier_files_have_none(tmp_path: Path) -> None:
    value = {"nan": float("nan"), "list": (1, 2.5), "β": {"2": 1, "10": None}}
    write_json(tmp_path / "a.json", sealed(value))
    read = read_marker(tmp_path / "a.json")
    assert read["list"] == [1, 2.5] and read["β"] == value["β"] and "seal" not in read
    another_digit(tmp_path / "a.json")
    with pytest.raises(CorruptError, match="its bytes are not those that were written"):
        read_marker(tmp_path / "a.json")
    (tmp_path / "b.json").write_text(json.dumps({"old": 1}))
    assert read_marker(tmp_path / "b.json") == {"old": 1}


def test_a_seal_holds_for_half_a_character_which_no_file_can_hold(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", sealed({"text": "cut \ud83d", "β": "😀"}))
    assert read_marker(tmp_path / "a.json") == {"text": "cut ?", "β": "😀"}


def test_frames_as_files_are_refused_where_one_has_another_bit(store: Path, tmp_path: Path) -> None:
    write_frames(load_frames(store), tmp_path / "frames")
    assert len(read_frames(tmp_path / "frames")["runs"]) == 3
    another_digit(tmp_path / "frames" / "answers.parquet")
    with pytest.raises(CorruptError, match=r"answers\.parquet"):
        load_frames(tmp_path / "frames")


def test_trials_with_another_digit_are_left_out_and_named(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from pobench.columns import FRAMES
    from pobench.spreadsheet import csv_bytes

    path = store / "trials.csv"
    path.write_bytes(csv_bytes(FRAMES["tuning"].of(pd.DataFrame({"loss": ["dpo"], "lr": [0.125], "value": [0.5]}))))
    assert load_frames(store)["tuning"]["lr"].tolist() == [0.125]
    digest_file(path).write_text(f"{'0' * 64}  trials.csv\n")
    assert load_frames(store)["tuning"].empty and "trials are left out" in capsys.readouterr().err


def test_the_files_of_a_search_and_of_a_report_are_checked(store: Path) -> None:
    folder = store / "tiny/tuning"
    folder.mkdir()
    for name, digest in (("trials.csv", "{}  trials.csv\n"), ("optuna.log", "{}  optuna.log, of its bytes: 10\n")):
        (folder / name).write_text("0123456789")
        digest_file(folder / name).write_text(digest.format(sha256_of(folder / name)))
    with (folder / "optuna.log").open("a") as journal:
        journal.write("!")  # written since
    write_frames({"runs": load_frames(store)["runs"]}, store / "report/frames")
    assert verify(store).faults == []
    files = ["trials.csv", "trials.csv.sha256", "optuna.log", "optuna.log.sha256"]
    for file in [*(folder / name for name in files), *sorted((store / "report/frames").iterdir())]:
        content = file.read_bytes()
        for damage in ("a flipped byte", "another digit", "cut to half", "empty"):
            DAMAGES[damage](file)
            assert [fault for fault in verify(store).faults if file.name in fault], damage
            file.write_bytes(content)


def test_a_benchmark_whose_manifest_is_gone_is_named(store: Path) -> None:
    folder = store / RUN / "benchmarks/alpaca_eval/000000000001"
    claim(folder, {"judge": 1})
    (folder / "answers.jsonl").write_text("[]\n")
    finish(folder, "answers.jsonl")
    assert verify(store).faults == []
    (folder / "manifest.json").unlink()
    assert len([fault for fault in verify(store).faults if str(folder / "manifest.json") in fault]) == 1


def test_the_steps_of_a_training_end_before_one_with_another_digit(store: Path) -> None:
    folder = RunFolder(store, RUN)
    folder.rewind_steps(0)
    for step in range(1, 5):
        folder.log_step({"step": step, "loss": 0.5 + step, "accuracy": float("nan")})
    lines = (folder.path / "steps.jsonl").read_text().splitlines()
    (folder.path / "steps.jsonl").write_text("\n".join([*lines[:2], lines[2].replace("3.5", "3.6"), lines[3]]) + "\n")
    assert [row["loss"] for row in folder.logged()] == [1.5, 2.5] and "seal" not in folder.logged()[0]
    (folder.path / "steps.jsonl").write_text('{"step": 1, "loss": 2}\n[1]\n')  # the first is of an earlier version
    assert folder.logged() == [{"step": 1, "loss": 2}]
    (folder.path / "steps.jsonl").write_text('{"step": 1, "loss": 2}\n{}\n{"step": "two"}\n')
    assert folder.logged() == [{"step": 1, "loss": 2}]
    assert [fault for fault in verify(store).faults if "steps.jsonl" in fault]


def test_a_configuration_that_lost_its_last_lines_is_found(store: Path) -> None:
    path = store / RUN / "config.yaml"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[: len(lines) // 2]))
    with pytest.raises(CorruptError, match="not those that were written"):
        _ = RunFolder(store, RUN).config
    assert [fault for fault in verify(store).faults if str(path) in fault]
    path.write_text("".join(lines[1:-1]))  # of an earlier version
    assert RunFolder(store, RUN).config["kind"] == "loss"


@pytest.mark.parametrize("damage", [another_digit, Path.unlink], ids=["another digit", "gone"])
def test_damaged_vectors_beside_the_scores_are_named(damage: Callable[[Path], object], store: Path) -> None:
    folder = RunFolder(store, RUN)
    path = folder.path / "vectors.npz"
    path.write_bytes(b"0123456789")
    folder.write_json("scores.json", {"causes": {}, "rows": [], "vectors": sha256_of(path)})
    assert folder.unread == [] and verify(store).faults == []
    damage(path)
    assert [error.path for error in folder.unread] == [path] and [f for f in verify(store).faults if str(path) in f]


def test_what_an_interrupted_command_goes_on_from_is_checked(store: Path) -> None:
    part, saved = store / RUN / ".answers-000000000002.shards/0.json", store / RUN / "checkpoint-1"
    write_json(part, sealed({"rows": [1]}))
    saved.mkdir()
    weights = saved / "weights-1.safetensors"
    weights.write_bytes(b"0123456789")
    state = {"step": 1, "content": "", "files": {weights.name: sha256_of(weights)}}
    (saved / "state.json").write_text(json.dumps({"state": state, "sha256": checkpoint._digest(state)}))
    another_programs = store / "elsewhere" / "checkpoint-500"
    another_programs.mkdir(parents=True)
    write_json(part.with_name("made_from.json"), sealed({"weights": "0123"}))
    reply = store.parent / "cache/replies/00/00.json"
    write_json(reply, sealed({"text": "[[7]]"}))
    assert verify(store).faults == []
    for file in (part, part.with_name("made_from.json"), weights, saved / "state.json", reply):
        content = file.read_bytes()
        another_digit(file)
        assert len([fault for fault in verify(store).faults if str(file) in fault]) == 1
        file.write_bytes(content)
    part.with_name("made_from.json").unlink()
    assert len([fault for fault in verify(store).faults if "made_from.json" in fault]) == 1


def test_a_file_that_its_manifest_does_not_list_yet_is_not_used(tmp_path: Path) -> None:
    assert claim(tmp_path, {"judge": 1}) == []
    (tmp_path / "verdicts.jsonl").write_text("[]\n")
    (sentence,) = claim(tmp_path, {"judge": 1})
    assert "verdicts.jsonl" in sentence and not (tmp_path / "verdicts.jsonl").exists()
    (tmp_path / "verdicts.jsonl").write_text("[]\n")
    finish(tmp_path, "verdicts.jsonl")
    assert claim(tmp_path, {"judge": 1}) == [] and (tmp_path / "verdicts.jsonl").read_text() == "[]\n"


@pytest.mark.parametrize("files", [3, None, "x", [1]])
def test_a_marker_whose_list_of_files_is_none_is_damaged(files: object, store: Path) -> None:
    (store / RUN / "trained.json").write_text(json.dumps({"files": files}))
    assert open_frames(store).left_out == (RUN,)
    assert [fault for fault in verify(store).faults if "it lists no files" in fault]


def test_what_a_pair_of_losses_shows_is_checked(store: Path) -> None:
    pair = RunFolder(store, "tiny/pair-0123456789ab")
    pair.path.mkdir()
    pair.show({"compare": "compare-000000000001"})
    assert verify(store).faults == []
    another_digit(pair.path / "shown.json")
    assert [fault for fault in verify(store).faults if "pair-0123456789ab/shown.json" in fault]
