"""Studies expand to the jobs that `pobench run` would make, say everything that is wrong at once, and share what ran."""

from __future__ import annotations

import json

import pytest
import yaml

from pobench.columns import FRAMES
from pobench.data.prepare import prepare
from pobench.errors import PobenchError
from pobench.results.run_folder import RunFolder
from pobench.runs.plan import make_plan
from pobench.runs.stages import ALL, BY_NAME, MANY
from pobench.settings.read import list_settings
from pobench.settings.resolve import resolve
from pobench.workflows.study import describe_study, expand, make_plans
from pobench.workflows.study_file import Entry, Study, list_studies, read_study

STUDIES = (
    "main-table", "kl-vs-beta", "margin", "length-normalisation", "dpo-variants", "learning-rate", "sft-regularisation",
    "efficiency", "batch-and-epochs", "length-bias", "seeds",
)  # fmt: skip


def study(*grid: Entry, **more) -> Study:
    return Study(name="mine", title="Mine", question="Which?", figures=["main-table"], grid=list(grid), **more)


@pytest.mark.parametrize("name", STUDIES)
def test_every_shipped_study_makes_jobs_under_every_setting(name) -> None:
    found = read_study(name)
    assert found.name == name and found.title and found.question.endswith("?")
    for setting in ("tiny", "smollm2", "mistral-base", "gemma2-instruct"):
        jobs = expand(found, setting, seeds=[42])
        assert len({job.key for job in jobs}) == len(jobs) > 1
        assert {job.setting for job in jobs} == {setting}
    assert set(found.settings) <= set(list_settings())


@pytest.mark.parametrize("name", STUDIES)
def test_a_study_has_three_seeds_or_more_for_every_loss_of_every_setting(name) -> None:
    """With fewer, a verdict over seeds has one degree of freedom or none."""
    found = read_study(name)
    for seeds in (found.seeds, *(variant.seeds for variant in found.settings.values() if variant.seeds is not None)):
        assert seeds is not None and len(set(seeds)) >= 3


def test_a_study_names_the_further_stages_of_its_runs_and_a_wrong_one_is_said(tmp_path) -> None:
    assert read_study("main-table").every_stage == tuple(s for s in ALL if s in (*MANY, "trainpairs"))
    assert read_study("margin").every_stage == MANY
    (tmp_path / "mine.yaml").write_text(
        yaml.safe_dump({**study(Entry(losses="dpo")).model_dump(), "stages": ["trainpair"]})
    )
    with pytest.raises(PobenchError, match="stages: no stage 'trainpair'; did you mean 'trainpairs'"):
        read_study(str(tmp_path / "mine.yaml"))


def test_every_study_is_listed() -> None:
    assert set(list_studies()) == set(STUDIES)


def test_a_study_asks_registered_claims_alone(tmp_path) -> None:
    grid = [{"losses": ["simpo"]}]
    values = {"title": "T", "question": "Q?", "figures": ["claims"], "grid": grid, "claims": ["simpo-above-dop"]}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(values))
    with pytest.raises(PobenchError, match=r"unknown claim 'simpo-above-dop'.*simpo-above-dpo"):
        read_study(str(tmp_path / "mine.yaml"))


def test_a_job_of_two_studies_is_the_same_job() -> None:
    runs = {name: {job.key for job in expand(read_study(name), "tiny", seeds=[42])} for name in STUDIES}
    assert runs["efficiency"] > runs["main-table"] > runs["length-normalisation"]
    for name in ("kl-vs-beta", "margin", "learning-rate", "batch-and-epochs", "sft-regularisation", "length-bias"):
        assert runs[name] & runs["main-table"], name
    assert {job.key for job in resolve("tiny", "simpo,dpo")} <= runs["main-table"]


def test_what_a_study_sets_holds_for_all_its_jobs_and_measuring_makes_no_other_job() -> None:
    jobs = expand(read_study("kl-vs-beta"), "tiny")
    assert {job.train.evaluate_every for job in jobs} == {8}
    assert {job.train.evaluate_every for job in expand(read_study("kl-vs-beta"), "mistral-base")} == {40}
    (given,) = {
        job.train.evaluate_every
        for job in expand(read_study("kl-vs-beta"), "tiny", overrides={"train.evaluate_every": 3})
    }
    assert given == 3
    assert {job.key for job in resolve("tiny", "simpo,dpo")} <= {job.key for job in jobs}


def test_times_multiplies_what_the_setting_gives_loss_by_loss() -> None:
    jobs = expand(study(Entry(losses=["simpo", "dpo"], times={"beta": [1, 5], "train.lr": [0.5]})), "tiny")
    own = {job.loss: job for job in resolve("tiny", "simpo,dpo")}
    for job in jobs:
        assert job.train.lr == own[job.loss].train.lr / 2
    betas = [(job.loss, job.loss_settings["beta"] / own[job.loss].loss_settings["beta"]) for job in jobs]
    assert betas == [("simpo", 1), ("simpo", 5), ("dpo", 1), ("dpo", 5)]


def test_a_value_says_that_the_study_gave_it_unless_the_setting_gives_it_too() -> None:
    first, second = expand(study(Entry(losses=["simpo"], times={"gamma": [1, 2]})), "tiny")
    assert first == resolve("tiny", "simpo")[0] and "tuning" in first.origin["simpo.gamma"]
    assert second.origin["simpo.gamma"] == "study mine"


def test_a_setting_may_have_a_grid_and_seeds_of_its_own() -> None:
    other = {"tiny": {"seeds": [7, 8], "grid": [{"losses": "dpo", "values": {"beta": [0.3]}}]}}
    mine = study(Entry(losses="simpo"), settings=other, seeds=[5])
    assert [(j.loss, j.seed, j.loss_settings["beta"]) for j in expand(mine, "tiny")] == [
        ("dpo", 7, 0.3),
        ("dpo", 8, 0.3),
    ]
    assert [(j.loss, j.seed) for j in expand(mine, "smollm2")] == [("simpo", 5)]
    assert [j.seed for j in expand(mine, "tiny", seeds=[1])] == [1]


def test_losses_leave_others_out_and_add_where_the_grid_asks_nothing_of_them() -> None:
    grid = [Entry(losses=["simpo", "dpo"], values={"beta": [1.0]}), Entry(losses=["simpo"])]
    jobs = expand(study(*grid), "tiny", losses="dpo")
    assert [(j.loss, j.loss_settings["beta"]) for j in jobs] == [("dpo", 1.0), ("dpo", 0.5)]
    with pytest.raises(PobenchError, match="no grid for kto"):
        expand(study(grid[0]), "tiny", losses="kto")


def test_everything_wrong_with_a_command_is_said_at_once(pobench_cli, setting, tmp_path) -> None:
    status, out, err = pobench_cli(
        "study", "marginn", "--setting", "small", "--seeds", "one", "--set", "lr=1", "--set", "train.lrr=1"
    )
    assert status == 2 and "Traceback" not in err + out
    assert all(
        words in err for words in ("did you mean 'margin'?", "unknown setting 'small'", "--seeds 'one'", "'lr=1'")
    )
    status, _, err = pobench_cli(
        "study",
        "kl-vs-beta",
        "--setting",
        "small.yaml",
        "--losses",
        "kto,simp",
        "--set",
        "train.lrr=1",
        "--set",
        "dpo.bta=1",
    )
    assert status == 2 and all(words in err for words in ("no grid for kto", "'simp'", "'lrr'", "'bta'"))
    assert not (tmp_path / "runs").exists()


def test_everything_wrong_with_a_study_is_said_at_once(tmp_path) -> None:
    grid = [
        {"losses": "simpo,dpoo", "values": {"beta": [], "trian.lr": [1]}},
        {"losses": "dpo", "values": {"beta": [1]}, "times": {"beta": [1]}},
    ]
    values = {"title": "Bad", "question": "?", "figures": ["swep"], "grid": grid}
    (tmp_path / "bad.yaml").write_text(yaml.safe_dump(values))
    with pytest.raises(PobenchError) as fault:
        read_study(str(tmp_path / "bad.yaml"))
    expected = ("'sweep'", "'dpo'", "beta has no value", "'trian'", "both `values` and `times`")
    assert all(words in str(fault.value) for words in expected), fault.value
    (tmp_path / "bad.yaml").write_text(yaml.safe_dump({**values, "figurs": 1, "grid": []}))
    with pytest.raises(PobenchError, match=r"figurs: unknown key; did you mean 'figures'"):
        read_study(str(tmp_path / "bad.yaml"))


def test_what_a_study_varies_cannot_be_set_but_what_it_multiplies_can() -> None:
    with pytest.raises(PobenchError, match=r"--set dpo.beta: the study mine varies it"):
        expand(study(Entry(losses=["dpo"], values={"beta": [0.1, 1.0]})), "tiny", overrides={"dpo.beta": 2.0})
    jobs = expand(study(Entry(losses=["dpo"], times={"beta": [1, 10]})), "tiny", overrides={"dpo.beta": 0.2})
    assert [job.loss_settings["beta"] for job in jobs] == [0.2, 2.0]


def test_a_loss_without_the_number_to_multiply_is_named() -> None:
    with pytest.raises(PobenchError, match="orpo has no number 'beta'"):
        expand(study(Entry(losses=["orpo"], times={"beta": [1, 10]})), "tiny")


# ---------------------------------------------------------------- a length bias of the labels


def test_a_length_bias_changes_training_labels_and_nothing_else(setting, tmp_path) -> None:
    bias = Entry(losses=["dpo"], values={"data.length_bias": [0.0, 1.0]})
    plain, biased = expand(study(bias), str(tmp_path / "small.yaml"))
    assert plain.key != biased.key
    before, after = prepare(plain), prepare(biased)
    assert before.heldout == after.heldout and before.train != after.train
    swapped = [(a, b) for a, b in zip(before.train, after.train, strict=True) if a != b]
    assert swapped and all(len(b.chosen) > len(b.rejected) and b.chosen == a.rejected for a, b in swapped)
    counts = after.audit.set_index("fault")["count"]
    assert counts["label decided by length"] == len(after.train)
    assert counts["label swapped, as the loser was longer"] == len(swapped)
    assert "held-out labels are true" in after.text() and "length" not in before.text()


def test_data_of_each_bias_are_prepared_once_and_the_start_model_is_shared(setting, tmp_path) -> None:
    bias = Entry(losses=["dpo", "simpo"], values={"data.length_bias": [0.0, 1.0]})
    jobs = expand(study(bias), str(tmp_path / "small.yaml"))
    plans = make_plans(jobs, tmp_path / "runs", ("train", "heldout"))
    assert [len(plan.runs) for plan in plans] == [4, 4], "a reference pass, the start model, two losses"
    assert len({plan.tasks[-1].data for plan in plans}) == 2
    assert len({task.run for plan in plans for task in plan.tasks if task.kind == "start"}) == 1
    described = describe_study(study(bias), plans)
    assert described["count"] == {"jobs": 6, "finished": 0, "to do": 6, "failed before": 0}
    assert [job["varied"] for job in described["jobs"]] == [{}, {}, {}, {}, *[{"data.length_bias": 1.0}] * 2]
    assert not (tmp_path / "runs").exists()


# ---------------------------------------------------------------- the command


def test_a_dry_run_counts_what_is_done_and_touches_nothing(pobench_cli, setting, tmp_path) -> None:
    command = ("study", "sft-regularisation", "--setting", "small.yaml", "--seeds", "42", "--runs", "r", "--dry-run")
    status, out, err = pobench_cli(*command, "--json")
    assert status == 0, err
    plan = json.loads(out)
    assert plan["count"] == {"jobs": 6, "finished": 0, "to do": 6, "failed before": 0}
    assert not (tmp_path / "r").exists()
    jobs = expand(read_study("sft-regularisation"), "small.yaml", seeds=[42])
    (start,) = [task for task in make_plan(jobs, tmp_path / "r", MANY, dry=True).tasks if task.kind == "start"]
    for stage in start.stages:
        node, names = start.nodes[stage], [file.removesuffix(".parquet") for file in BY_NAME[stage].writes]
        frames, read = {name: FRAMES[name].of() for name in names}, BY_NAME[stage].read(start)
        RunFolder(start.runs, start.run).node(node.name).write(frames, node.causes, model=None, read=read)
    status, out, err = pobench_cli(*command)
    assert status == 0 and "6 jobs, 1 finished" in " ".join(out.split()) and "time: about" in out, err
    assert "simpo_sft (sft_weight = 0.1)" in out


def test_studies_are_listed(pobench_cli) -> None:
    status, out, _ = pobench_cli("list", "studies", "--json")
    assert status == 0 and {row["name"] for row in json.loads(out)} == set(STUDIES)


@pytest.mark.slow
def test_a_study_runs_once_and_is_reported_with_its_claims(pobench_cli, setting, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("POBENCH_CACHE", str(tmp_path / "cache"))
    grid = [{"losses": ["simpo", "dpo"], "values": {"data.length_bias": [0.0, 1.0]}}]
    values = {"title": "Bias", "question": "What?", "figures": ["claims", "length-bias", "data-audit"], "grid": grid}
    (tmp_path / "bias.yaml").write_text(
        yaml.safe_dump({**values, "claims": ["simpo-above-dpo", "bias-lengthens-dpo-more"]})
    )
    command = ("study", "bias.yaml", "--setting", "small.yaml", "--json")
    status, out, err = pobench_cli(*command)
    assert status == 0, err
    first = json.loads(out)
    assert first["counts"] == {"finished": 5, "skipped": 0, "failed": 0}
    assert [row["name"] for row in first["claims"]] == ["simpo-above-dpo", "bias-lengthens-dpo-more"]
    assert all(row["n"] == 3 for row in first["claims"])
    page = (tmp_path / first["report"]).read_bytes()
    status, out, _ = pobench_cli(*command)
    assert json.loads(out)["counts"] == {"finished": 0, "skipped": 5, "failed": 0}
    assert (tmp_path / first["report"]).read_bytes() == page
    jobs = expand(read_study(str(tmp_path / "bias.yaml")), str(tmp_path / "small.yaml"))
    assert not make_plan(jobs[:1], tmp_path / "runs", ("train",)).left
