"""Fair tuning: equal budgets, on data neither trained on nor reported, the whole grid kept, nothing repeated."""

from __future__ import annotations

import json
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

from pobench.errors import PobenchError
from pobench.registry import figures, get_loss, load_plugin, losses
from pobench.reporting.draw import draw
from pobench.results.load import load_frames, read_trials
from pobench.runs import execute
from pobench.runs.plan import make_plan
from pobench.runs.stages import MANY
from pobench.runs.worker import run
from pobench.settings.read import list_settings, read_setting
from pobench.settings.resolve import resolve
from pobench.workflows import search
from pobench.workflows.chosen import Best, write_into
from pobench.workflows.grid import Grid, grid_folder, points_of, read_grid, search_space
from pobench.workflows.search import tune
from pobench.workflows.trials import made_before
from pobench.workflows.tune import describe_tuning, plan_tuning, study_causes, study_name

GRID = {"lr": [1.0e-3, 1.0e-2], "losses": {"simpo": {"beta": [2.0]}, "dpo": {"beta": [0.1]}}}


@pytest.fixture
def tunable(setting, tmp_path, monkeypatch) -> dict[str, Any]:
    """The small setting with a grid and tuning prompts of its own."""
    monkeypatch.setenv("POBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    prompts = [
        {"id": f"t{i}", "prompt": f"say w{i}", "check": {"kind": "at_most_words", "n": 3}} for i in range(20, 23)
    ]
    (tmp_path / "tune.jsonl").write_text("".join(json.dumps(r) + "\n" for r in prompts))
    # the fixture's reported prompts are its training prompts; here all three are apart
    reported = [{**p, "id": f"e{i}", "prompt": f"say w{i + 30}"} for i, p in enumerate(prompts)]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(r) + "\n" for r in reported))
    (tmp_path / "grid.yaml").write_text(yaml.safe_dump(GRID))
    values = {**setting, "tune": {"prompts": "tune.jsonl", "grid": "grid.yaml", "metric": "reward_accuracy"}}
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(values))
    return values


def change(tmp_path: Path, values: dict[str, Any], **tuning: Any) -> str:
    (tmp_path / "other.yaml").write_text(yaml.safe_dump({**values, "tune": {**values["tune"], **tuning}}))
    return "other.yaml"


# ---------------------------------------------------------------- what is refused


def test_tuning_prompts_that_are_reported_or_trained_on_are_refused(tunable, tmp_path) -> None:
    plan_tuning("simpo", "small.yaml")  # disjoint
    with pytest.raises(PobenchError, match=r"3 of 3 prompts are among the reported prompts.*'say w30'"):
        plan_tuning("simpo", change(tmp_path, tunable, prompts="prompts.jsonl"))
    (tmp_path / "seen.jsonl").write_text(json.dumps({"id": "x", "prompt": "Say  W3"}) + "\n")
    with pytest.raises(PobenchError, match="1 of 1 prompts are among the training pairs"):
        plan_tuning("simpo", change(tmp_path, tunable, prompts="seen.jsonl"))


def test_tuning_pairs_from_the_file_that_held_out_pairs_come_from_are_refused(tunable, tmp_path) -> None:
    with pytest.raises(PobenchError, match="10 of 10 prompts are among the pairs to train on or hold out"):
        plan_tuning("simpo", change(tmp_path, tunable, prompts=None, pairs="pairs.jsonl"))


def test_a_grid_smaller_than_the_budget_is_refused_since_every_loss_gets_the_same(tunable) -> None:
    with pytest.raises(PobenchError, match=r"the grid of dpo has 2 cells.*ask for at most 2"):
        plan_tuning("simpo,dpo", "small.yaml", trials=3)
    assert plan_tuning("simpo,dpo", "small.yaml").trials == 2
    assert plan_tuning("simpo,dpo", "small.yaml", trials=3, sampler="tpe").trials == 3


def test_faults_of_a_search_are_listed_together(tunable, tmp_path, pobench_cli) -> None:
    (tmp_path / "bad.yaml").write_text(yaml.safe_dump({"lr": [1e-3], "losses": {"dpo": {"betta": [1]}}}))
    status, _, err = pobench_cli(
        "tune", "--losses", "dpo,simp0", "--setting", "small.yaml", "--sampler", "gird", "--grid", "bad.yaml",
        "--metric", "pas_rate",
    )  # fmt: skip
    assert status == 2 and "Traceback" not in err
    for words in ("did you mean 'simpo'?", "did you mean 'grid'?", "dpo has no 'betta'", "did you mean 'pass_rate'?"):
        assert words in err
    assert not (tmp_path / "runs").exists()


def test_a_setting_without_a_tuning_split_is_refused(setting, tmp_path) -> None:
    with pytest.raises(PobenchError, match=r"names no tuning split(.|\n)*tune.grid: missing"):
        plan_tuning("simpo", str(tmp_path / "small.yaml"))


# ---------------------------------------------------------------- grids


@pytest.mark.parametrize("name", ["paper", "smollm2", "tiny", "tiny-long"])
def test_a_shipped_grid_holds_values_that_every_loss_takes(name) -> None:
    grid = read_grid(name)
    for loss in map(get_loss, grid.losses):
        for point in points_of(search_space(loss, grid), loss.name):
            resolve("tiny", loss.name, overrides={f"{loss.name}.{k}": v for k, v in point.items()})


EQUAL = 8  # trials of every loss by `make tuning`


@pytest.mark.parametrize(
    "name", [name for name in losses.names() if get_loss(name).function.__module__.startswith("pobench.")]
)
def test_every_shipped_loss_has_cells_for_an_equal_search_on_tiny(name) -> None:
    grid = read_grid("tiny")
    assert name in grid.losses, f"{name}: put its values into experiments/grids/tiny.yaml"
    cells = points_of(search_space(get_loss(name), grid), name)
    assert len({json.dumps(cell) for cell in cells}) == len(cells) >= EQUAL


@pytest.mark.parametrize("name", sorted(map(str, read_grid("tiny").losses)))
def test_every_loss_of_the_grid_of_tiny_has_eight_cells_on_tiny_long(name) -> None:
    cells = points_of(search_space(get_loss(name), read_grid("tiny-long")), name)
    assert len({json.dumps(cell) for cell in cells}) == len(cells) == EQUAL


def test_make_tuning_asks_for_as_many_trials_of_every_loss() -> None:
    recipe = (Path(__file__).parents[3] / "Makefile").read_text().partition("TUNE =")[2].partition("\n\n")
    assert f"--trials {EQUAL}" in recipe[0] and "--setting tiny --losses all" in recipe[2].partition("\n\n")[0]


@pytest.mark.parametrize("name", ["tiny", "tiny-long"])
def test_every_list_of_the_grid_of_a_world_says_where_it_is_from(name) -> None:
    lines = (grid_folder() / f"{name}.yaml").read_text().splitlines()
    bare = [line for line in lines if ("[" in line or "*" in line) and len(line.partition("#")[2]) < 5]
    assert not bare


def test_a_loss_of_ones_own_can_be_searched_on_tiny_as_often_as_the_others() -> None:
    own = replace(get_loss("simpo"), name="own", ranges={})
    assert len(points_of(search_space(own, read_grid("tiny")), "own")) >= EQUAL


@pytest.mark.parametrize("world", ["tiny", "tiny-long"])
@pytest.mark.parametrize("loss", losses.names())
def test_the_record_of_a_search_on_a_world_is_one_of_its_committed_trials(loss, world) -> None:
    (job,) = resolve(world, loss)
    if job.tuned is not None:
        trials = made_before(f"builtin:{world}/tuning.csv")
        trials = trials[trials["study"] == job.tuned.study]
        (best,) = trials[trials["chosen"]].to_dict("records")
        assert best["lr"] == job.train.lr and best["value"] == pytest.approx(job.tuned.value, rel=1e-4)
        assert json.loads(best["settings"]) == {k: v for k, v in job.loss_settings.items() if v is not None}
        assert len(trials) <= job.tuned.trials == EQUAL


def test_a_loss_without_an_entry_is_searched_over_its_published_range() -> None:
    space = search_space(get_loss("orpo"), Grid(lr=[1e-6]))
    assert space == {"lr": [1e-6], "odds_weight": [0.1, 0.5, 1.0, 2.0]}
    cells = points_of(space, "orpo")
    assert len(cells) == 4 and cells[:2] == points_of(space, "orpo")[:2]
    assert cells != sorted(cells, key=str), "the first few are a sample, not a corner"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "holds no mapping of `lr` and `losses`"),
        ("[]", "holds no mapping"),
        ("lr: [fast]", "lr.0: got 'fast'"),
        ("lr: [1e9]", "lr.0: got 1000000000.0"),
        ("lr: [1e-3]\nlosses: {dpo: {beta: []}}", "losses.dpo.beta: got []"),
        ("lr: [1e-3]\nlosses: {dpo: {beta: 3}}", "losses.dpo.beta: got 3"),
    ],
)
def test_a_grid_that_is_none_is_one_message(text, expected, tmp_path) -> None:
    (tmp_path / "own.yaml").write_text(text)
    with pytest.raises(PobenchError) as refused:
        read_grid(str(tmp_path / "own.yaml"))
    assert expected in str(refused.value) and "own.yaml" in str(refused.value)


def test_the_papers_grid_has_the_papers_learning_rates() -> None:
    assert read_grid("paper").lr == [3e-7, 5e-7, 6e-7, 1e-6]


@pytest.mark.parametrize("name", ["smollm2", "tiny", "tiny-lists", "tiny-long", "tiny-spin", "tiny-unpaired"])
def test_the_shipped_tuning_prompts_are_neither_trained_on_nor_reported(name) -> None:
    assert plan_tuning("simpo,dpo,orpo,cpo", name, trials=4).trials == 4


@pytest.mark.parametrize("name", [n for n in list_settings() if n != "smollm2" and not n.startswith("tiny")])
def test_a_paper_setting_can_be_searched_for_all_of_the_papers_losses(name) -> None:
    tuning = plan_tuning("paper", name, trials=12, dry=True)
    assert {s.space["lr"][0] for s in tuning.searches} == {3e-7} and len(tuning.searches) == 12
    held_out = tuning.searches[0].base.data
    assert held_out.held_out_split == f"{held_out.split}[-2000:]", "the end of the training split, left out of training"


# ---------------------------------------------------------------- a setting that extends another


def test_a_setting_extends_another_key_by_key(tmp_path) -> None:
    text = (
        "name: mine\nextends: tiny\ntrain:\n  lr: 0.5  # mine\nlosses:\n  simpo:\n    gamma_beta_ratio: 0.25  # mine\n"
    )
    (tmp_path / "mine.yaml").write_text(text)
    values, comments = read_setting(str(tmp_path / "mine.yaml"))
    tiny, _ = read_setting("tiny")
    assert values["train"] == {**tiny["train"], "lr": 0.5} and comments["train.lr"] == "mine"
    kept = {key: value for key, value in tiny["losses"]["simpo"].items() if key not in ("gamma", "tuned", "lr")}
    assert values["losses"]["simpo"] == {**kept, "gamma_beta_ratio": 0.25}, (
        "the other name of the margin gives way, and the record of a search that did not choose this"
    )
    assert values["losses"]["dpo"] == {"beta": tiny["losses"]["dpo"]["beta"]}, "the later file's rate is everybody's"
    (job,) = resolve(str(tmp_path / "mine.yaml"), "simpo")
    assert job.loss_settings["gamma"] == 0.5 and job.setting == "mine"


# ---------------------------------------------------------------- the search itself


@pytest.mark.slow
def test_a_killed_search_goes_on_and_gives_every_loss_the_same_trials(tunable, tmp_path) -> None:
    tuning = plan_tuning("simpo,dpo", "small.yaml")
    said: list[str] = []

    def until_the_third(text: str) -> None:
        said.append(text)
        if len(said) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tune(tuning, announce=until_the_third)
    finished = {p: p.stat().st_mtime_ns for p in tuning.folder.glob("small/*/*/node.json")}
    assert len({p.parent.parent for p in finished}) == 3, "the start model and one trial of each loss"
    tuned = tune(tuning)
    assert tuned.made == 2 and not tuned.failed
    assert all(p.stat().st_mtime_ns == at for p, at in finished.items()), "finished trials are not repeated"
    assert tune(tuning).made == 0

    trials = load_frames(tuning.folder)["tuning"]
    assert trials.groupby("loss").size().to_dict() == {"dpo": 2, "simpo": 2}
    assert trials.groupby("loss")["chosen"].sum().to_dict() == {"dpo": 1, "simpo": 1}
    assert trials["value"].between(0, 1).all() and (trials["n"] > 0).all() and trials["low"].notna().all()
    assert not list(tuning.folder.glob("small/*/model"))

    fewer = tune(plan_tuning("simpo,dpo", "small.yaml", trials=1))
    assert fewer.made == 0 and [b.trials for b in fewer.best] == [1, 1], (
        "no loss is chosen from more trials than another"
    )
    assert tune(tuning).best == tuned.best

    for best in tuned.best:
        mine = trials[trials["loss"] == best.loss]
        assert best.value == mine["value"].max() and best.lr in GRID["lr"]
        (job,) = resolve(str(tuned.chosen), best.loss)
        assert job.setting == "small-tuned" and job.train.lr == best.lr
        assert {k: v for k, v in job.loss_settings.items() if v is not None} == best.settings
        assert best.run in job.origin[f"{best.loss}.lr"], "the source of a value is the trial that chose it"
        assert job.values_from == "tuned" and job.tuned.trials == best.trials == best.tried == 2
        assert job.tuned.study == best.study and job.tuned.value == pytest.approx(best.value, rel=1e-4)

    frames = {"tuning": trials}
    drawing = draw(figures.get("tuning"), frames)
    assert len(drawing.data) == 4 and drawing.data["chosen"].sum() == 2
    table = draw(figures.get("tuning-table"), frames)
    assert list(table["Loss"]) == ["dpo", "simpo"] and list(table["Trials"]) == [2, 2]


@pytest.mark.slow
def test_trials_are_kept_apart_from_runs_and_shown_in_their_report(tunable, tmp_path, pobench_cli) -> None:
    command = ("tune", "--losses", "simpo", "--setting", "small.yaml", "--trials", "2", "--sampler", "random", "--json")
    status, out, err = pobench_cli(*command)
    assert status == 0, err
    summary = json.loads(out)
    assert 1e-3 <= summary["best"]["simpo"]["lr"] <= 1e-2
    assert (tmp_path / summary["report"]).is_file()
    assert len(pd.read_csv(tmp_path / summary["trials"])) == 2
    with pytest.raises(PobenchError, match="no stored runs"):
        load_frames("runs")
    status, out, _ = pobench_cli("tune", "--losses", "simpo", "--setting", "small.yaml", "--trials", "2",
                                 "--sampler", "random", "--dry-run", "--json")  # fmt: skip
    assert json.loads(out)["losses"][0]["done"] == 2


# ---------------------------------------------------------------- what names a search

PLUGIN = """
from pobench.registry import register_loss
from pobench.types import LossOutput, Pair

@register_loss("edited", source="a test")
def edited(policy: Pair, *, beta: float = 1.0) -> LossOutput:
    margin = beta * (policy.chosen.total - policy.rejected.total)
    return LossOutput(1.0 - margin, policy.chosen.total, policy.rejected.total)  # a comment
"""


def names_of(losses: str = "simpo,dpo", **options: Any) -> dict[str, str]:
    """Loss → the name of its search, as the files are now."""
    tuning = plan_tuning(losses, "small.yaml", **options)
    plan = make_plan([s.base for s in tuning.searches], tuning.folder, MANY, tuning.plugins)
    return {s.loss: study_name(tuning, s, study_causes(tuning, s, plan)) for s in tuning.searches}


def move(tmp_path: Path, values: dict[str, Any], name: str, to: str) -> None:
    """Rename a file or folder, and name the new path in the setting."""
    (tmp_path / name).rename(tmp_path / to)
    text = json.dumps(values).replace(str(tmp_path / name), str(tmp_path / to)).replace(f': "{name}"', f': "{to}"')
    (tmp_path / "small.yaml").write_text(text)


def swap_labels(path: Path) -> None:
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows = [{**row, "chosen": row["rejected"], "rejected": row["chosen"]} for row in rows]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.mark.parametrize(
    "name, to", [("pairs.jsonl", "moved.jsonl"), ("tune.jsonl", "prompts2.jsonl"), ("model", "weights")]
)
def test_a_moved_file_with_the_same_bytes_is_the_same_search(name, to, tunable, tmp_path) -> None:
    before = names_of()
    move(tmp_path, tunable, name, to)
    assert names_of() == before and len(set(before.values())) == 2


def spoken(path: Path) -> None:
    path.write_text(path.read_text().replace("say w20", "tell w20"))


def heavier(path: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(path.parent)
    model.lm_head.weight.data.mul_(1.5)
    model.save_pretrained(path.parent)


@pytest.mark.parametrize(
    "name, edit", [("pairs.jsonl", swap_labels), ("tune.jsonl", spoken), ("model/model.safetensors", heavier)]
)
def test_an_edited_file_is_another_search_of_every_loss(name, edit, tunable, tmp_path) -> None:
    before = names_of()
    edit(tmp_path / name)
    assert not set(names_of().values()) & set(before.values())


def test_values_that_decide_a_trial_are_part_of_its_search_and_those_that_are_searched_are_not(tunable) -> None:
    before = names_of()
    assert names_of(overrides={"train.epochs": 2}) != before and names_of(seeds=[7]) != before
    assert names_of(metric="pass_rate") != before and names_of(overrides={"answers.temperature": 0.5}) != before
    assert names_of(overrides={"train.lr": 0.5, "dpo.beta": 3.0, "answers.batch_size": 2}) == before


def test_an_edited_loss_is_another_search_and_an_edited_comment_is_not(tunable, tmp_path) -> None:
    def name_with(text: str) -> str:
        (tmp_path / "edited.py").write_text(text)
        load_plugin(tmp_path / "edited.py")
        return names_of("edited,dpo", plugins=("edited.py",), trials=2)["edited"]

    grid = {**GRID, "losses": {**GRID["losses"], "edited": {"beta": [1.0]}}}
    (tmp_path / "grid.yaml").write_text(yaml.safe_dump(grid))
    try:
        first = name_with(PLUGIN)
        assert name_with(PLUGIN.replace("# a comment", "# another")) == first
        assert name_with(PLUGIN.replace("1.0 -", "2.0 -")) != first
    finally:
        losses._items.pop("edited", None), losses._aliases.pop("edited", None)
        sys.modules.pop("pobench_plugin_edited", None)


def test_edited_labels_make_the_trials_again_and_a_moved_file_makes_none(tunable, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(execute, "_fork", run)
    lines: list[str] = []

    def search() -> Any:
        return tune(plan_tuning("simpo", "small.yaml", trials=1), announce=lines.append)

    assert search().made == 1 and search().made == 0
    move(tmp_path, tunable, "pairs.jsonl", "moved.jsonl")
    assert search().made == 0 and not [line for line in lines if "changed" in line]
    (first,) = load_frames(tmp_path / "runs/small/tuning")["tuning"].to_dict("records")
    swap_labels(tmp_path / "moved.jsonl")
    assert describe_tuning(plan_tuning("simpo", "small.yaml", trials=1))["losses"][0]["done"] == 0
    assert search().made == 1
    note = f"simpo: the held-out pairs and the training pairs changed since the search {first['study']}"
    assert [line for line in lines if "changed" in line] == [f"{note}; its trials stay, and a new search begins"]
    trials = load_frames(tmp_path / "runs/small/tuning")["tuning"]
    assert len(trials) == 2 and trials["runs"].nunique() == 2 and first["runs"] in set(trials["runs"])
    for stored in trials["runs"]:
        assert (tmp_path / "runs/small/tuning" / stored / "trained.json").is_file(), "the runs are those of the plan"
    swap_labels(tmp_path / "moved.jsonl")
    assert search().made == 0, "the first search is found again"
    assert describe_tuning(plan_tuning("simpo", "small.yaml", trials=1))["losses"][0]["done"] == 1


# ---------------------------------------------------------------- trials that are not made again, and where choices go


def test_trials_that_a_file_holds_are_not_made_again(tunable, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(execute, "_fork", run)
    first = tune(plan_tuning("dpo", "small.yaml", trials=1))
    (tmp_path / "committed.csv").write_text(first.csv.read_text())
    setting = change(tmp_path, tunable, trials="committed.csv")
    tuning = plan_tuning("dpo", setting, trials=1, runs="elsewhere")
    assert describe_tuning(tuning)["losses"][0]["done"] == 1
    again = tune(tuning)
    assert first.made == 1 and again.made == 0 and again.best == first.best
    assert again.csv.read_text() == first.csv.read_text() and not list(tuning.folder.glob("small/*/trained.json"))
    swap_labels(tmp_path / "pairs.jsonl")
    assert tune(plan_tuning("dpo", setting, trials=1, runs="elsewhere")).made == 1, "of other pairs it holds no trial"


def test_a_file_of_trials_that_is_not_there_is_a_fault(tunable, tmp_path) -> None:
    with pytest.raises(PobenchError, match="no such file"):
        plan_tuning("simpo", change(tmp_path, tunable, trials="none.csv"))


def test_a_choice_by_verdicts_asks_for_no_held_out_pairs(tunable, tmp_path) -> None:
    assert "heldout" in plan_tuning("simpo", "small.yaml").stages
    judged = plan_tuning("simpo", change(tmp_path, tunable, metric="pass_rate"))
    assert "heldout" not in judged.stages and "judge" in judged.stages


BEST = Best(
    "simpo", {"beta": 5.0, "gamma": 1.25}, ("beta", "gamma"), 5e-4, 0.7, 0.6, 0.8, 0.5, 120, 7, 8, "t/simpo-0", "s-1"
)
FILE = """\
name: mine
losses:  # of single losses
  orpo:
    odds_weight: 0.2  # mine
  simpo:
    gamma_beta_ratio: 0.4  # mine
    epochs: 3  # mine
    lr: 1.0e-4  # mine
answers:
  samples: 2  # mine
"""


def test_chosen_values_take_the_place_of_those_that_were_searched_and_the_rest_of_the_file_stays() -> None:
    once = write_into(FILE, "pass_rate", [BEST], "mine.yaml")
    values = yaml.safe_load(once)["losses"]["simpo"]
    tuned = values.pop("tuned")
    assert values == {"lr": 5e-4, "beta": 5.0, "gamma": 1.25, "epochs": 3}
    assert tuned == {
        "trials": 8,
        "metric": "pass_rate",
        "value": 0.7,
        "low": 0.6,
        "high": 0.8,
        "n": 120,
        "study": "s-1",
    }
    assert set(FILE.splitlines()) - set(once.splitlines()) == {FILE.splitlines()[5], FILE.splitlines()[7]}
    assert write_into(once, "pass_rate", [BEST], "mine.yaml") == once, "the same choice again is the same bytes"


def test_a_loss_that_the_file_does_not_name_is_put_behind_the_others() -> None:
    cpo = replace(BEST, loss="cpo", settings={"beta": 0.1}, searched=("beta",))
    lines = write_into(FILE, "pass_rate", [cpo, BEST], "mine.yaml").splitlines()
    assert (
        lines.index("  simpo:") < lines.index("  cpo:") < lines.index("answers:")
        and lines[-2:] == FILE.splitlines()[-2:]
    )
    bare = write_into(
        "name: mine\nlosses:\n  orpo: {}\n".replace(" {}", "\n    lr: 1.0"), "pass_rate", [cpo], "mine.yaml"
    )
    assert list(yaml.safe_load(bare)["losses"]) == ["orpo", "cpo"]


@pytest.mark.parametrize("text", ["name: mine\n", "losses: {simpo: {beta: 2.0}}\n", "losses:\n  simpo: {beta: 2.0}\n"])
def test_a_file_whose_losses_are_no_block_is_not_written_into(text) -> None:
    with pytest.raises(PobenchError, match=r"mine.yaml: its section `losses` must be a block"):
        write_into(text, "pass_rate", [BEST], "mine.yaml")


def test_a_margin_that_was_searched_by_its_ratio_names_no_search(tunable, tmp_path) -> None:
    (tmp_path / "grid.yaml").write_text(
        yaml.safe_dump({"lr": [1e-3], "losses": {"simpo": {"beta": [2.0], "gamma_beta_ratio": [0.5, 0.25]}}})
    )
    before = names_of("simpo", trials=2)
    chosen = {**tunable, "losses": {"simpo": {"beta": 2.0, "gamma": 0.5, "lr": 1e-3}}}
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(chosen))
    assert names_of("simpo", trials=2) == before, "or the choice, once written, would begin another search"


@pytest.mark.slow
def test_two_trials_at_once_are_interrupted_go_on_and_come_to_what_one_after_the_other_does(tunable, tmp_path) -> None:
    tuning = plan_tuning("simpo,dpo", "small.yaml", runs="elsewhere")
    begun: list[str] = []

    def until_the_third(text: str) -> None:
        begun.append(text)
        if len(begun) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tune(tuning, parallel=2, announce=until_the_third)
    # a trial is stored behind those that began before it: where the second ended first, none is stored yet
    stored = read_trials(tuning.csv)["status"].tolist() if tuning.csv.is_file() else []
    assert stored in ([], ["finished"], ["finished"] * 2), "what was cut short is no failed trial"
    trained = {path: path.stat().st_mtime_ns for path in tuning.runs_folder.glob("*/trained.json")}
    assert trained, "the third began as one of the first two had ended"
    two = tune(tuning, parallel=2)
    assert two.made == 4 - len(stored) and not two.failed
    assert {path: path.stat().st_mtime_ns for path in trained} == trained, "what had been trained is not trained again"
    one = tune(plan_tuning("simpo,dpo", "small.yaml"))
    assert one.best == two.best
    columns = ["loss", "study", "lr", "settings", "value", "low", "high", "chosen", "runs"]
    first, second = (pd.read_csv(t.csv)[columns].sort_values("runs", ignore_index=True) for t in (one, two))
    pd.testing.assert_frame_equal(first, second)


# ---------------------------------------------------------------- trials side by side


class Scripted:
    """Trials whose results are a function of their values, and which end in an order of one's choosing: a trial ends once
    those behind it that `ends_after` names have begun. begun: the values of each trial, as it began."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, ends_after: dict[int, int] | None = None) -> None:
        self.begun: list[dict[str, Any]] = []
        self.ends_after = ends_after or {}
        self.more = threading.Condition()
        monkeypatch.setattr(search._Tuner, "_prepare", lambda tuner: None)
        monkeypatch.setattr(search._Tuner, "_make", lambda tuner, trial: self.make(trial))

    def make(self, trial: Any) -> Any:
        with self.more:
            number = len(self.begun)
            self.begun.append({"loss": trial.search.loss, **trial.asked.params})
            self.more.notify_all()
            self.more.wait_for(lambda: len(self.begun) > self.ends_after.get(number, 0))
        lr = trial.asked.params["lr"]
        return search._Made({"value": 1 - lr, "low": 0.0, "high": 1.0, "n": 3, "start": 0.0}, [])


def planned(tmp_path: Path, sampler: str, trials: int, runs: str) -> Any:
    (tmp_path / "wide.yaml").write_text(yaml.safe_dump({**GRID, "lr": [1e-5, 1e-4, 1e-3, 1e-2]}))
    return plan_tuning("simpo,dpo", "small.yaml", grid="wide.yaml", sampler=sampler, trials=trials, runs=runs)


@pytest.mark.parametrize("sampler", ["grid", "tpe"])
def test_the_values_that_are_tried_do_not_depend_on_which_trial_ends_first(
    sampler, tunable, tmp_path, monkeypatch
) -> None:
    tried = {}
    for name, ends_after in {"in turn": {}, "the second first": {0: 1, 2: 3}}.items():
        scripted = Scripted(monkeypatch, ends_after)
        tuning = planned(tmp_path, sampler, 4, f"runs {name}")
        tune(tuning, parallel=2)
        rows = read_trials(tuning.csv)
        tried[name] = rows[["loss", "trial", "lr", "value", "chosen"]].to_dict("records")
        assert len(scripted.begun) == 8 and rows.groupby("loss").size().to_dict() == {"dpo": 4, "simpo": 4}
    assert tried["in turn"] == tried["the second first"]


@pytest.mark.slow
@pytest.mark.parametrize("sampler", ["grid", "random", "tpe"])
def test_a_search_that_was_killed_at_any_trial_tries_the_same_values_and_none_twice(
    sampler, tunable, tmp_path, monkeypatch
) -> None:
    whole = Scripted(monkeypatch)
    undisturbed = planned(tmp_path, sampler, 3, "undisturbed")
    tune(undisturbed, parallel=2)
    expected = read_trials(undisturbed.csv)[["loss", "lr", "value"]].to_dict("records")
    assert len(whole.begun) == 6
    for moment in (2, 5):  # killed as this trial begins: it and the one beside it have no result yet
        tuning = planned(tmp_path, sampler, 3, f"killed {moment}")
        said: list[str] = []

        def announce(text: str, said=said, moment=moment) -> None:
            said.append(text)
            if len(said) == moment:
                raise KeyboardInterrupt

        Scripted(monkeypatch)
        with pytest.raises(KeyboardInterrupt):
            tune(tuning, parallel=2, announce=announce)
        rest = Scripted(monkeypatch)
        tune(tuning, parallel=2)
        assert read_trials(tuning.csv)[["loss", "lr", "value"]].to_dict("records") == expected
        assert len(rest.begun) <= 8 - moment and tune(tuning, parallel=2).made == 0


@pytest.mark.slow
def test_trials_run_as_jobs_of_an_executor_and_are_chosen_from_as_on_this_machine(
    tunable, monkeypatch, pobench_cli
) -> None:
    pytest.importorskip("submitit")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[3]))
    monkeypatch.setattr("pobench.runs.executors.slurm.Slurm.seconds", 0.1)
    command = ["tune", "--losses", "simpo", "--setting", "small.yaml", "--json", "--parallel", "2"]
    status, out, err = pobench_cli(*command, "--executor", "slurm", "--executor-set", "cluster=local")
    assert status == 0, err
    found = json.loads(out)
    assert found["made"] == 2 and not found["failed"]
    rows = json.loads(pobench_cli("status", "--json")[1])
    assert [row["stages"] for row in rows].count(["train"]) == 2 and len({row["run"] for row in rows}) == 4
    assert {(row["state"], row["executor"], row["times"]) for row in rows} == {("finished", "slurm", 1)}
    status, again, _ = pobench_cli(*command)
    assert status == 0 and json.loads(again) == {**found, "made": 0}
