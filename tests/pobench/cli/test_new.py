"""`pobench new`: files that work as they stand, and names that are refused."""

from __future__ import annotations

import shlex

import pytest

from pobench.registry import judges, load_plugin, losses
from pobench.settings.faults import judge_faults
from pobench.settings.resolve import resolve
from pobench.workflows.new import KINDS
from pobench.workflows.study import expand
from pobench.workflows.study_file import read_study

pytestmark = pytest.mark.usefixtures("forget")


def holds_the_laws(name: str, pobench_cli) -> None:
    status, printed, err = pobench_cli("check", "--quick", f"{name}.py")
    assert status == 0 and " 0 fail" in printed, printed + err
    load_plugin(f"{name}.py")  # `check` tries it in a process of its own
    assert losses.get(name).source == "not published" and "- margin )" in losses.get(name).formula


def resolves(name: str, pobench_cli) -> None:
    simpo, dpo = resolve(f"{name}.yaml", "simpo,dpo")
    assert simpo.setting == dpo.setting == name and simpo.seed == 42


def spans_a_grid(name: str, pobench_cli) -> None:
    study = read_study(f"{name}.yaml")
    assert study.name == name and len(expand(study, "tiny", losses=None, seeds=[1], overrides={})) == 6


def scores(name: str, pobench_cli) -> None:
    load_plugin(f"{name}.py")
    assert judge_faults(name, {"most_words": 2}, "--judge", "--set ") == []
    judge = judges.get(name)(most_words=2)
    assert [judge.score({"prompt": "p"}, text) for text in ("two words", "now three words", "")] == [1, 0, 0]


WORKS = {"loss": holds_the_laws, "setting": resolves, "study": spans_a_grid, "judge": scores}


@pytest.mark.parametrize("kind", KINDS)
def test_a_new_file_works_as_it_stands_and_is_not_written_over(kind, pobench_cli, tmp_path) -> None:
    name = f"new-{kind}.of_mine"
    status, printed, err = pobench_cli("new", kind, name)
    (file,) = tmp_path.iterdir()
    assert status == 0 and file.stem == name and printed.startswith(f"{file.name}; next:\n"), err
    WORKS[kind](name, pobench_cli)
    before = file.read_bytes()
    status, _, err = pobench_cli("new", kind, name)
    assert status == 2 and "exists already" in err and file.read_bytes() == before


def test_the_commands_to_type_next_are_of_the_file_where_it_lies(pobench_cli, tmp_path) -> None:
    (tmp_path / "two words").mkdir()
    _, printed, _ = pobench_cli("new", "study", "FILE", "--out", "two words")
    first = shlex.split(printed.splitlines()[1])
    assert first[:3] == ["pobench", "study", "two words/FILE.yaml"]
    assert pobench_cli("new", "study", "FILE", "--out", "none")[0] == 2


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("los", "x"), "did you mean 'loss'?"),
        (("loss", "../x"), "cannot be a name"),
        (("loss", "a\x1b[31m"), r"'a\x1b[31m' cannot be a name"),
        (("loss", "paper"), "a name that pobench uses itself"),
        (("loss", "r-dpo"), "'r-dpo' is a name that pobench uses already"),
        (("loss", "a+b"), "reads as a sum of losses"),
        (("setting", "report"), "a name that pobench uses itself"),
        (("setting", "tiny"), "'tiny' is a name that pobench uses already"),
        (("study", "margin"), "'margin' is a name that pobench uses already"),
        (("judge", "verifiable"), "'verifiable' is a name that pobench uses already"),
    ],
)
def test_a_name_that_cannot_be_is_one_sentence(arguments, expected, pobench_cli, tmp_path) -> None:
    status, _, err = pobench_cli("new", *arguments)
    assert status == 2 and expected in err and len(err.splitlines()) == 1, err
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_new_loss_keeps_every_law_of_training_steps(pobench_cli) -> None:
    pobench_cli("new", "loss", "new-loss-in-steps")
    status, printed, err = pobench_cli("check", "new-loss-in-steps.py")
    assert status == 0 and " 0 fail" in printed, printed + err
