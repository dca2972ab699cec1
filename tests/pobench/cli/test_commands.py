"""What people type: one plain message and exit status 2 for whatever is wrong, with nothing written."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

import pobench.runs.plan
from pobench.cli.analyze import drawn
from pobench.errors import UndrawnError
from pobench.judging.benchmarks import base
from pobench.judging.benchmarks.downstream import Downstream
from pobench.registry import benchmarks, losses


def test_a_report_with_a_figure_that_failed_is_printed_and_is_not_whole(tmp_path, capsys) -> None:
    def build() -> Path:
        raise UndrawnError(tmp_path / "report.html", {"mine": "Traceback …\nKeyError: '[b]x'"})

    assert drawn(build) == (tmp_path / "report.html", False)
    assert "mine could not be drawn: KeyError: '[b]x'" in capsys.readouterr().err
    assert drawn(lambda: tmp_path) == (tmp_path, True)


def written(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*"))


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("run", "--losses", "simp0,dpoo", "--setting", "smollm"), ("simpo", "dpo", "smollm2")),
        (("run", "--setting", "small.yaml", "--set", "train.lrr=1", "--set", "trian.lr=1"), ("'lr'", "'train'")),
        (("run", "--setting", "small.yaml", "--losses", "dpo", "--set", "dpo.gamma=1"), ("dpo has no 'gamma'",)),
        (("run", "--setting", "small.yaml", "--seeds", "one", "--stages", "trian"), ("--seeds 'one'", "'train'")),
        (("run", "--setting", "small.yaml", "--data", "no/such.jsonl"), ("no such file",)),
        (("run", "--setting", "small.yaml", "--plugin", "none.py", "--plugin", "nil.py"), ("'none.py'", "'nil.py'")),
        (
            ("analyze", "--figures", "margin-densty,kll", "--format", "htm"),
            ("no stored runs", "'margin-density'", "'kl'", "'html'"),
        ),
        (
            ("tune", "--losses", "dpoo", "--setting", "tyny", "--set", "x", "--seeds", "a", "--sampler", "gird"),
            ("'dpo'", "'tiny'", "--set 'x'", "--seeds 'a'", "'grid'"),
        ),
        (
            (
                "tune",
                "--setting",
                "tiny",
                "--trials",
                "0",
                "--metric",
                "pass",
                "--grid",
                "tini",
                "--set",
                "tune.pair=1",
            ),
            ("--trials: got 0", "'pass_rate'", "'tiny'", "tune has no 'pair'; did you mean 'pairs'?"),
        ),
        (
            (
                *("data", "onpolicy", "--out", "o.jsonl", "--setting", "tyny", "--ranker", "locall", "--samples", "1"),
                *("--ranker-set", "x", "--set", "data.foo=1", "--set", "onpolicy.top=1"),
            ),
            ("'tiny'", "--ranker: unknown judge", "onpolicy.samples", "--ranker-set 'x'", "no 'foo'", "'top_p'"),
        ),
        (("study", "margn", "--losses", "dpoo", "--setting", "tyny"), ("'margin'", "'dpo'", "'tiny'")),
        (
            ("judge", "check", "--judge", "local", "--set", "modle=x", "--set", "y", "--data", "no.jsonl"),
            ("--set modle", "did you mean 'model'?", "--set 'y'", "no.jsonl"),
        ),
        (("score", "alpaca_eval", "no.json", "--length-control", "nowhere"), ("'no.json'", "--length-control")),
        (
            ("run", "--losses", "dpo", "--setting", "tyny", "--seeds", ""),
            ("'tiny'", "--seeds '': expected whole numbers"),
        ),
        (("list", "loses"), ("did you mean 'losses'?",)),
        (("list", "settings", "--markdown"), ("--markdown is for `losses`, `keys`, `claims`, `stages`",)),
    ],
)
def test_a_wrong_command_is_one_plain_message_and_writes_nothing(
    arguments, expected, pobench_cli, setting, tmp_path
) -> None:
    before = written(tmp_path)
    status, out, err = pobench_cli(*arguments)
    assert status == 2 and "Traceback" not in err + out
    assert all(word in err for word in expected), err
    assert written(tmp_path) == before


BAD_ROWS = """\
{"prompt": "say w1", "chosen": "w1", "rejected": "w2"}
{"prompt": "say w2", "chosen": "w1"}
{"prompt": "say w3", "chosen": "", "rejected": "w2"}
{"prompt": "say w4", "chosen": "w2", "rejected": "w2"}
{"prompt": "say w5", "chosen": 5, "rejected": "w2"}
{"prompt": "", "chosen": "w1", "rejected": "w2"}
{"prompt": "say w6", "chosen": "w1", "rejected
{"prompt": null, "chosen": "w1", "rejected": "w2"}
{"prompt": "LONG", "chosen": "w1", "rejected": "w2"}
{"prompt": [{"role": "assistant", "content": "w1"}], "chosen": "w1", "rejected": "w2"}
[1, 2]
"""


def test_ten_kinds_of_bad_rows_are_listed_together(pobench_cli, setting, tmp_path) -> None:
    (tmp_path / "bad.jsonl").write_text(BAD_ROWS.replace("LONG", "w1 " * 50))
    before = written(tmp_path)
    status, _, err = pobench_cli(
        "run",
        "--setting",
        "small.yaml",
        "--data",
        "bad.jsonl",
        "--set",
        "data.max_length=40",
        "--set",
        "data.max_prompt_length=20",
    )
    assert status == 2 and "Traceback" not in err
    assert all(f"row {n}" in err for n in range(2, 12)), err
    assert written(tmp_path) == before


def test_a_disk_too_small_is_refused_before_anything_is_written(pobench_cli, setting, tmp_path, monkeypatch) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(pobench.runs.plan.shutil, "disk_usage", lambda path: usage._replace(free=1000))
    before = written(tmp_path)
    status, _, err = pobench_cli("run", "--setting", "small.yaml", "--losses", "simpo")
    assert status == 2 and "not enough disk space" in err and "--runs" in err
    assert "KiB needed" in err or "MiB needed" in err, "a small job needs no 0.0 GiB"
    assert "1.0 KiB free" in err
    assert written(tmp_path) == before


@pytest.mark.parametrize("runs", ["small.yaml", "small.yaml/below"])
@pytest.mark.parametrize("dry", [(), ("--dry-run",)])
def test_runs_that_would_lie_in_a_file_are_refused(runs, dry, pobench_cli, setting, tmp_path) -> None:
    before = written(tmp_path)
    status, _, err = pobench_cli("run", "--setting", "small.yaml", "--losses", "simpo", "--runs", runs, *dry)
    assert status == 2 and "--runs" in err and "small.yaml' is a file, and a folder is needed" in err
    assert written(tmp_path) == before


def test_runs_that_cannot_be_written_are_refused_before_anything_trains(pobench_cli, setting, monkeypatch) -> None:
    monkeypatch.setattr(pobench.runs.plan.os, "access", lambda path, mode: False)  # a test may run as root, who can
    status, _, err = pobench_cli("run", "--setting", "small.yaml", "--losses", "simpo")
    assert status == 2 and "--runs: the folder" in err and "cannot be written" in err


CHECKS = {
    '{"kind": "zzz"}': "unknown check 'zzz'",
    "5": "no mapping of `kind`",
    '{"kind": "at_most_words"}': "'n'",
    '{"kind": "at_most_words", "n": "three"}': "'<=' not supported",
}


@pytest.mark.parametrize("check", CHECKS)
def test_a_check_that_cannot_be_read_is_named_before_anything_trains(check, pobench_cli, setting, tmp_path) -> None:
    row = f'{{"id": "odd", "prompt": "say w1", "check": {check}}}\n'
    with (tmp_path / "prompts.jsonl").open("a") as file:
        file.write(row)
    status, _, err = pobench_cli("run", "--setting", "small.yaml", "--losses", "simpo", "--dry-run")
    assert status == 2 and "prompt 'odd': `check`: " in err and CHECKS[check] in err, err


@pytest.mark.parametrize("key", [".", ".beta", "simpo.", "losses.simpo", "losses.simpo.", "a"])
def test_a_set_without_a_section_or_a_key_says_what_is_expected(key, pobench_cli, setting) -> None:
    status, _, err = pobench_cli("run", "--setting", "small.yaml", "--dry-run", "--set", f"{key}=3")
    assert status == 2 and f"--set '{key}=3': expected SECTION.KEY=VALUE" in err


def test_pairs_of_its_own_answers_are_written_over_no_folder_and_into_no_file(pobench_cli, setting, tmp_path) -> None:
    before = written(tmp_path)
    for out, expected in (
        ("model", "'model' is a folder"),
        ("pairs.jsonl/x", "the folder 'pairs.jsonl' cannot be made"),
    ):
        status, _, err = pobench_cli("data", "onpolicy", "--setting", "small.yaml", "--out", out)
        assert status == 2 and expected in err and "Traceback" not in err
    assert written(tmp_path) == before


def test_brackets_in_a_path_are_letters(pobench_cli, setting, tmp_path) -> None:
    """A glob or rich's markup would read them."""
    folder = tmp_path / "a[0]"
    folder.mkdir()
    shutil.copytree(tmp_path / "model", folder / "m[red]")
    shutil.copy(tmp_path / "pairs.jsonl", folder / "p[1].jsonl")
    paths = ("--model", "a[0]/m[red]", "--data", "a[0]/p[1].jsonl")
    status, out, _ = pobench_cli("run", "--setting", "small.yaml", "--losses", "simpo", *paths, "--dry-run")
    assert status == 0 and "a[0]/m[red]" in out and "a[0]/p[1].jsonl" in out
    status, _, err = pobench_cli("run", "--setting", "small.yaml", "--dry-run", "--data", "a[0]/[/none].jsonl")
    assert status == 2 and "'a[0]/[/none].jsonl': no such file" in err


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (RuntimeError("boom"), "RuntimeError: boom\nthis is not foreseen; the same command with --debug"),
        (KeyError("x"), "KeyError: 'x'"),
        (MemoryError(), "MemoryError"),
        (RecursionError("deep"), "RecursionError: deep"),
        (PermissionError(13, "Permission denied", "/there"), "Permission denied: '/there'"),
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"), "UnicodeDecodeError"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_an_error_that_no_check_foresaw_is_one_message(error, expected, pobench_cli, setting, monkeypatch) -> None:
    def fail(*arguments: object, **settings: object) -> None:
        raise error

    monkeypatch.setattr(pobench.runs.plan, "make_plan", fail)
    status, out, err = pobench_cli("run", "--setting", "small.yaml", "--losses", "simpo")
    assert status == 2 and f"pobench: {expected}" in err and "Traceback" not in out + err
    monkeypatch.setenv("POBENCH_DEBUG", "")  # which --debug sets for child processes
    with pytest.raises(type(error)):
        pobench_cli("run", "--setting", "small.yaml", "--losses", "simpo", "--debug")


ABSENT = "benchmark downstream is left out: lm-eval not installed; pip install lm-eval"


@pytest.mark.parametrize(("named", "status"), [((), 0), (("--benchmarks", "downstream"), 1)])
def test_a_benchmark_whose_package_is_absent_is_left_out(named, status, pobench_cli, setting, monkeypatch) -> None:
    monkeypatch.setattr(Downstream, "absent", lambda self: ["lm-eval"])
    values = ("--set", "benchmarks.downstream.limit=1", "--dry-run")
    ended, out, _ = pobench_cli("run", "--setting", "small.yaml", "--losses", "simpo", *values, *named)
    assert ended == status and ABSENT in " ".join(out.split())
    ended, out, _ = pobench_cli("run", "--setting", "small.yaml", "--losses", "simpo", *values, *named, "--json")
    plan = json.loads(out)
    assert ended == status and plan["notes"][0] == ABSENT and plan["benchmarks"] == []
    assert not any("benchmarks" in job["left"] for job in plan["jobs"])


def test_packages_of_benchmarks_are_looked_for_by_the_names_that_are_imported(monkeypatch) -> None:
    monkeypatch.setattr(base.importlib.util, "find_spec", lambda name: None)
    judge = {"judge": {"model": "gpt-4-1106-preview"}}
    absent = {name: benchmarks.get(name)().absent() for name in benchmarks.names()}
    assert absent == {
        "alpaca_eval": [],  # its answers need nothing; its verdicts do
        "arena_hard": [],
        "arena_hard_v2": [],
        "downstream": ["lm-eval"],
        "mt_bench": ["fschat", "anthropic", "openai", "psutil"],
        "zeroeval": [],
    }
    judged = benchmarks.get("alpaca_eval")(**judge).absent()
    assert judged == ["openai", "alpaca-eval", "scikit-learn", "packaging"]
    assert benchmarks.get("arena_hard")(**judge).absent() == ["openai"]


def test_a_dry_run_prints_values_with_their_sources_and_touches_nothing(pobench_cli, setting, tmp_path) -> None:
    before = written(tmp_path)
    status, out, _ = pobench_cli(
        "run", "--setting", "small.yaml", "--losses", "simpo,dpo", "--dry-run", "--set", "simpo.beta=2.5"
    )
    assert status == 0 and "simpo.beta = 2.5" in out and "--set" in out and "dpo.beta = 0.1" in out and "default" in out
    status, out, _ = pobench_cli("run", "--setting", "small.yaml", "--dry-run", "--json")
    assert json.loads(out)["pairs"] > 0
    assert written(tmp_path) == before


def test_list_names_every_loss_in_a_line_and_one_in_full(pobench_cli) -> None:
    from pobench.registry import list_losses

    status, out, _ = pobench_cli("list", "losses", "--json")
    rows = {row["name"]: row for row in json.loads(out)}
    assert status == 0 and set(rows) == set(list_losses())
    assert all(row["formula"] and row["source"] for row in rows.values())
    assert rows["kto"]["needs"] == ["kl", "reference"] and rows["simpo"]["needs"] == []
    lines = [line.split() for line in pobench_cli("list", "losses")[1].splitlines()[1:] if line[:1].strip()]
    assert {line[0] for line in lines} >= set(list_losses())
    (kto,) = [line for line in lines if line[0] == "kto"]
    assert {"kl,", "reference", "beta"} <= set(kto)
    whole = pobench_cli("list", "losses", "R-DPO")[1]
    assert whole.startswith("rdpo  R-DPO") and "log sigmoid" in whole and "published" in whole and "length" in whole
    assert "rejected = beta * s" in pobench_cli("list", "losses", "dpo")[1]
    status, out, _ = pobench_cli("list", "losses", "dpo", "--json")
    assert [row["name"] for row in json.loads(out)] == ["dpo"] and "pass" in pobench_cli(
        "list", "figures", "pass-rate"
    )[1]
    status, _, err = pobench_cli("list", "losses", "simp0")
    assert status == 2 and "unknown name 'simp0'; did you mean 'simpo'?" in err


def test_list_keys_of_a_section_and_one_in_full(pobench_cli) -> None:
    rows = json.loads(pobench_cli("list", "keys", "train.adapter", "--json")[1])
    assert [row["name"] for row in rows][:2] == ["train.adapter.r", "train.adapter.alpha"]
    out = pobench_cli("list", "keys", "train.checkpoint_share")[1]
    assert "number > 0, ≤ 1" in out and "decides  False" in out and "The share of the time that saving takes" in out
    status, _, err = pobench_cli("list", "keys", "train.lrr")
    assert status == 2 and "did you mean 'train.lr'?" in err and "`pobench list keys` names" in err


def test_list_losses_as_a_page(pobench_cli) -> None:
    status, out, _ = pobench_cli("list", "losses", "--markdown")
    assert status == 0 and out.startswith("# The objectives\n") and "\n### SimPO\n" in out


PLUGIN = '''\
"""Mine.

    loss = -chosen / |chosen|
"""

from pobench import LossOutput, Pair, register_loss


@register_loss("mine", source="this test")
def mine(policy: Pair, *, weight: float = 1.0) -> LossOutput:
    return LossOutput(-weight * policy.chosen.mean, policy.chosen.mean.detach(), policy.rejected.mean.detach())
'''


SEQUENCE = "\x1b]0;owned\x07\x1b[31m\u202e"


def obeyed(text: str) -> set[str]:
    """The characters in printed text that a terminal would obey."""
    return set(text) & set(SEQUENCE + "\x9b") - set("0123456789;[]ownedm")


def test_a_row_that_holds_control_sequences_is_printed_as_signs(pobench_cli, setting, tmp_path) -> None:
    row = {"prompt": f"say {SEQUENCE}", "chosen": f"w1 {SEQUENCE}", "rejected": "w2", f"extra{SEQUENCE}": "x"}
    (tmp_path / "odd.jsonl").write_text(f"{json.dumps(row)}\n" * 3 + '{"prompt": "x"}\n')
    for command in (("audit", "odd.jsonl"), ("inspect", "odd.jsonl"), ("convert", "odd.jsonl", "--out", "o.jsonl")):
        status, out, err = pobench_cli("data", *command)
        assert (out + err).strip() and not obeyed(out + err), (command, status)


def test_a_settings_name_that_holds_control_sequences_is_printed_as_signs(pobench_cli, setting, tmp_path) -> None:
    (tmp_path / "odd.yaml").write_text(json.dumps({**setting, "name": f"odd {SEQUENCE}"}))  # JSON is YAML
    status, out, err = pobench_cli("run", "--setting", "odd.yaml", "--losses", "simpo", "--dry-run")
    assert status == 2 and "cannot be a name" in err and not obeyed(out + err)
    status, out, err = pobench_cli("run", "--setting", f"no{SEQUENCE}", "--losses", f"sim{SEQUENCE}")
    assert status == 2 and not obeyed(out + err)


def test_a_losss_exception_that_holds_control_sequences_is_printed_as_signs(pobench_cli, tmp_path, monkeypatch) -> None:
    for held in ("_items", "_aliases"):  # the plug-in's loss is forgotten again
        monkeypatch.setattr(losses, held, dict(getattr(losses, held)))
    body = PLUGIN.replace('"mine"', '"odd_one"').replace(
        "    return", f"    raise ValueError({SEQUENCE!r})\n    return"
    )
    (tmp_path / "odd.py").write_text(body)
    status, out, err = pobench_cli("check", "odd.py", "--quick")
    assert status == 2 and "ValueError: ⟨U+001B⟩" in err and not obeyed(out + err)
    (tmp_path / "broken.py").write_text(f"raise ValueError({SEQUENCE!r})\n")
    status, out, err = pobench_cli("run", "--plugin", "broken.py")
    assert status == 2 and "⟨U+001B⟩" in err and not obeyed(out + err)


@pytest.mark.slow
def test_from_training_to_the_report_then_nothing_left_to_do(pobench_cli, setting, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("POBENCH_CACHE", str(tmp_path / "cache"))
    (tmp_path / "my_loss.py").write_text(PLUGIN)
    command = ("run", "--setting", "small.yaml", "--losses", "simpo,kto,mine", "--plugin", "my_loss.py", "--json")
    status, out, _ = pobench_cli(*command)
    summary = json.loads(out)
    assert status == 0 and [o["status"] for o in summary["outcomes"]] == ["finished"] * 4
    assert "mine" in Path(summary["report"]).read_text()
    metrics = {row["metric"]: row for row in summary["scores"][summary["outcomes"][1]["run"]]}
    assert metrics["pass_rate"]["n"] == 3 and metrics["reward_accuracy"]["n"] > 0
    status, out, _ = pobench_cli(*command)
    assert [o["status"] for o in json.loads(out)["outcomes"]] == ["skipped"] * 4
    report = Path(summary["report"]).read_bytes()
    pobench_cli("analyze", "--plugin", "my_loss.py")
    assert Path(summary["report"]).read_bytes() == report
    _, out, _ = pobench_cli(*command[:-1])
    assert "done before: 4 of 4 runs" in out and "No verdict between these losses yet" in " ".join(out.split())


@pytest.mark.slow
def test_one_loss_that_fails_leaves_the_others_running(pobench_cli, setting, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("POBENCH_CACHE", str(tmp_path / "cache"))
    (tmp_path / "broken.py").write_text(
        PLUGIN.replace("-weight * policy.chosen.mean", "policy.chosen.mean * float('nan')").replace("mine", "broken")
    )
    status, out, err = pobench_cli(
        "run", "--setting", "small.yaml", "--losses", "broken,simpo", "--plugin", "broken.py"
    )
    assert status == 1, err
    assert "failed: broken" in err and "step 1: loss nan" in err
    assert (
        "SimPO" in out
        and "No verdict on SimPO yet: with one seed" in out
        and (tmp_path / "runs/report/report.html").is_file()
    )


@pytest.mark.parametrize("command", [["run"], ["tune"], ["study", "margin"]])
def test_an_option_that_is_called_something_else_is_found(command, pobench_cli) -> None:
    status, _, err = pobench_cli(*command, "--at-once", "2")
    assert status == 2 and "No such option: --at-once" in err and "--parallel" in err
