"""A shared site leads everywhere it says, is the same twice, names no key and no path, and overwrites only itself."""

from __future__ import annotations

import html
import json
import re
import shutil
from pathlib import Path
from urllib.parse import unquote, urldefrag

import pandas as pd
import pytest
import yaml
from stores import START, start_run, trained_run
from typer.testing import CliRunner

from pobench.cli.share import app
from pobench.errors import PobenchError
from pobench.reporting.methods import bibtex
from pobench.reporting.run_facts import without_paths
from pobench.reporting.run_page import page_of
from pobench.results import comparable
from pobench.results.frame_files import is_frames
from pobench.results.load import load_frames
from pobench.results.run_folder import RunFolder, find_run, short_names
from pobench.workflows.share import share

FIGURES = ["main-table", "gains"]
RUNS = ("simpo-0123456789ab", "simpo-01234567aaaa", "dpo-bbbbbbbbbbbb")
HOSTILE = "<script>alert(1)</script>\u202e</style>{{ 7*7 }}"
SECRETS = ("sk-planted0123456789abcdef", "hunter2", "10.0.0.1", "MY_KEY", "secret-project", "/home/")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two losses, one with two seeds; answers are hostile, and the configuration of a run names what must not leave."""
    root = tmp_path_factory.mktemp("secret-project") / "runs"
    start_run(root)
    for place, name in enumerate(RUNS):
        trained_run(root, name, seed=1 + place % 2, passed=0.5 + place / 10)
    for name in (START, *(f"tiny/{name}" for name in RUNS)):
        _hostile(RunFolder(root, name))
    config = yaml.safe_load((root / "tiny" / RUNS[0] / "config.yaml").read_text())
    config["data"]["source"] = "https://me:hunter2@host/secret-project/pairs.jsonl"
    config["judge"] = {"name": "endpoint", "settings": {"base_url": "http://10.0.0.1/v1", "key_variable": "MY_KEY"}}
    config["origin"] |= {"data.source": "/home/me/secret-project/my.yaml: mine", "judge.settings.base_url": "--set"}
    (root / "tiny" / RUNS[0] / "config.yaml").write_text(yaml.safe_dump(config))
    failed = trained_run(root, "kto-cccccccccccc")
    _hostile(failed)
    failed.fail("out of memory: /home/me/secret-project/x.py, sk-planted0123456789abcdef")
    return root


def _hostile(folder: RunFolder) -> None:
    """Hostile answers, an instruction that a spreadsheet would compute, and a note with a path and a key."""
    config = yaml.safe_load((folder.path / "config.yaml").read_text())
    config["model"]["note"] = "Read from '/home/some one/secret-project/model' with sk-planted0123456789abcdef."
    (folder.path / "config.yaml").write_text(yaml.safe_dump(config))
    node = folder.node("answers-000000000001")
    frame, about = node.read_frame("answers"), node.about
    frame = frame.assign(text=HOSTILE, instruction="=cmd|' /C calc'!A0", kind="+1+1", topic="sea", finished=True)
    node.write({"answers": frame}, about["causes"], model=about["model"], read=about["read"])


@pytest.fixture(scope="module")
def site(runs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return share(runs, tmp_path_factory.mktemp("sites") / "site", figures=FIGURES).parent


def test_every_link_of_the_site_leads_somewhere(site: Path) -> None:
    pages = {path: path.read_text("utf-8") for path in site.rglob("*.html")}
    ids = {path: set(re.findall(r' id="([^"]+)"', text)) for path, text in pages.items()}
    followed = set()
    for path, text in pages.items():
        for address in re.findall(r'<a [^>]*href="([^"]+)"', text):
            if address.startswith("https://arxiv.org/"):
                continue
            where, anchor = urldefrag(html.unescape(address))
            target = (path.parent / unquote(where)).resolve() if where else path
            assert target.is_file() and target.is_relative_to(site), f"{path.name}: {address}"
            assert not anchor or anchor in ids[target], f"{path.name}: {address}"
            followed.add(target)
    assert set(pages) <= followed  # no page is alone
    assert len(list((site / "runs/tiny").glob("simpo*.html"))) == 3 and (site / "card.png") not in followed


def test_a_losss_row_leads_to_its_seeds_or_its_only_run(site: Path) -> None:
    index = (site / "index.html").read_text("utf-8")
    (arm,) = [path.name for path in (site / "runs/tiny").glob("simpo~*.html")]
    assert f'<a href="runs/tiny/{arm}">SimPO</a>' in index
    assert '<a href="runs/tiny/dpo-bbbbbbbbbbbb.html">DPO</a>' in index
    seeds = (site / "runs/tiny" / arm).read_text("utf-8")
    assert all(f"../tiny/{name}.html" in seeds for name in RUNS[:2]) and "all seeds together" in seeds


def test_the_same_runs_give_the_same_bytes_and_the_site_replaces_itself(runs: Path, site: Path, tmp_path: Path) -> None:
    out = tmp_path / "again"
    shutil.copytree(site, out)
    before = out.stat().st_ino
    share(runs, out, figures=FIGURES)
    files = sorted(path.relative_to(site) for path in site.rglob("*") if path.is_file())
    assert files == sorted(path.relative_to(out) for path in out.rglob("*") if path.is_file())
    assert [str(file) for file in files if (site / file).read_bytes() != (out / file).read_bytes()] == []
    assert out.stat().st_ino != before and [path.name for path in tmp_path.iterdir()] == ["again"]


def test_no_key_no_path_and_nothing_of_the_judge_leaves_the_machine(site: Path, runs: Path, monkeypatch) -> None:
    for path in site.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert not [word for word in (*SECRETS, str(runs)) if word.encode() in content], path
    kept = pd.read_parquet(site / "data/runs.parquet").astype(str).to_csv()  # Parquet is compressed
    assert not [word for word in (*SECRETS, str(runs)) if word in kept] and "out of memory: x.py, …" in kept
    page = (site / page_of(f"tiny/{RUNS[0]}")).read_text("utf-8")
    assert "pairs.jsonl" in page and "my.yaml: mine" in page and "endpoint" in page


def test_an_answer_is_text_in_its_page_and_whole_in_the_file_of_its_loss(site: Path) -> None:
    page = (site / page_of(f"tiny/{RUNS[0]}")).read_text("utf-8")
    assert (
        "&lt;script&gt;alert(1)&lt;/script&gt;⟨U+202E⟩&lt;/style&gt;{{ 7*7 }}" in page and "<script>alert" not in page
    )
    (where,) = {path for path in re.findall(r'href="([^"]*answers/simpo[^"]*)"', page)}
    beside = json.loads((site / page_of(f"tiny/{RUNS[0]}")).parent.joinpath(where).read_text("utf-8"))["answers"]
    (own,) = [entry for entry in beside if entry["run"] == f"tiny/{RUNS[0]}"]
    assert own["text"] == [HOSTILE] * 3 and own["score"] == [0.5] * 3
    assert "default-src 'none'" in page and page.count("<script>") == 1


def test_answers_are_written_once(site: Path) -> None:
    text = json.dumps(HOSTILE, ensure_ascii=False).strip('"')
    found = [path for path in site.rglob("*.json") if text in path.read_text("utf-8")]
    assert sorted(path.name.partition("-")[0] for path in found) == ["dpo", "simpo", "start"]


def test_of_many_runs_those_with_their_settings_own_values_have_a_page_and_the_others_a_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(comparable, "MOST_ARMS", 1)
    monkeypatch.setattr("pobench.workflows.share.MOST_PAGES", 3)
    root = tmp_path / "runs"
    start_run(root)
    for name in ("dpo-aaaaaaaaaaaa", "simpo-aaaaaaaaaaaa", "simpo-bbbbbbbbbbbb"):
        trained_run(root, name)
    file = root / "tiny/simpo-bbbbbbbbbbbb/config.yaml"
    config = yaml.safe_load(file.read_text())
    config["train"]["lr"] *= 2
    config["origin"]["train.lr"] = "--set"
    file.write_text(yaml.safe_dump(config))
    site = share(root, tmp_path / "site", figures=["settings-table"]).parent
    pages = {path.stem for path in (site / "runs/tiny").iterdir()}
    assert pages == {"start-000000000000", "dpo-aaaaaaaaaaaa", "simpo-aaaaaaaaaaaa", "~others-1-1"}
    others = (site / "runs/tiny/~others-1-1.html").read_text("utf-8")
    assert '<tr id="simpo-bbbbbbbbbbbb">' in others and others.count("<tr id=") == 1 and "finished" in others
    index = (site / "index.html").read_text("utf-8")
    assert 'href="runs/tiny/~others-1-1.html#simpo-bbbbbbbbbbbb"' in index and "1 further runs of tiny" in index
    data = load_frames(site / "data")
    assert len(data["runs"]) == 4 and set(data["scores"]["run"]) == set(data["runs"]["run"])
    assert set(data["answers"]["run"]) == set(data["runs"]["run"]) - {"tiny/simpo-bbbbbbbbbbbb"}
    assert len(list((site / "tiny/answers").glob("simpo*.json"))) == 1


def test_no_cell_of_a_csv_is_a_formula_and_the_frames_are_read_as_runs_are(site: Path, runs: Path) -> None:
    assert (
        "'=cmd|" in (site / "data/answers.csv").read_text() and ",=cmd" not in (site / "data/answers.csv").read_text()
    )
    assert ",'+1+1," in (site / "data/answers.csv").read_text()
    assert is_frames(site / "data")
    stored, shared = load_frames(runs)["verdicts"], load_frames(site / "data")["verdicts"]
    assert sorted(shared["score"]) == sorted(stored["score"]) and len(shared) == 15


def test_what_share_did_not_write_is_never_overwritten(runs: Path, site: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.tex").write_text("years")
    with pytest.raises(PobenchError, match="did not write it"):
        share(runs, mine, figures=FIGURES)
    copied = tmp_path / "site"
    shutil.copytree(site, copied)
    (copied / "CNAME").write_text("example.org")
    (copied / "methods.md").write_text("edited by hand")
    with pytest.raises(PobenchError, match=r"'CNAME', 'methods\.md'"):
        share(runs, copied, figures=FIGURES)
    assert (mine / "thesis.tex").read_text() == "years" and (copied / "CNAME").is_file()
    with pytest.raises(PobenchError, match="holds frames"):
        share(site / "data", tmp_path / "other")
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    "name", ["a/b", "a/../../etc", "../x", "é/simpo", "a/dpo + 0.2*sft-0123", "a/<b>", "./.git", f"a/{'x' * 300}"]
)
def test_no_name_leads_out_of_the_site(name: str) -> None:
    path = page_of(name)
    assert re.fullmatch(r"runs/[A-Za-z0-9_~-][A-Za-z0-9._~-]*/[A-Za-z0-9_~-][A-Za-z0-9._~-]*\.html", path), path
    assert ".." not in path.split("/") and len(path) < 250
    assert page_of(name + "*") != path and page_of(name + "?") != page_of(name + "*")


def test_the_methods_say_what_was_done_and_leave_out_what_is_not_known(site: Path) -> None:
    text = (site / "methods.md").read_text("utf-8")
    assert "with DPO (arXiv 2305.18290) and SimPO (arXiv 2405.14734)" in text.replace(", KTO (arXiv 2402.01306)", "")
    assert "Read from 'model' with …." in text and "3 prompts" in text and "judged by verifiable" in text
    assert "by a bootstrap of whole prompts" in text and "held-out pairs" not in text and "torch" not in text
    assert "nan" not in text and "None" not in text


def test_references_say_only_what_the_sources_say() -> None:
    text = bibtex(["simpo", "dpo", "apo_zero", "apo_down", "never-registered"])
    assert text.count("@misc{") == 3 and text.count("eprint        = {2408.06266}") == 1
    assert "Eq. 7" in text and "% never-registered: a loss of the user's own" in text
    assert "title" not in text.partition("@misc")[2] and "author" not in text
    assert all(entry.count("{") == entry.count("}") for entry in text.split("\n\n"))


def test_the_card_has_the_size_that_networks_ask_for(site: Path) -> None:
    content = (site / "card.png").read_bytes()
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    assert [int.from_bytes(content[at : at + 4], "big") for at in (16, 20)] == [1200, 630]
    assert '<meta property="og:image" content="card.png">' in (site / "index.html").read_text("utf-8")


def test_with_its_address_the_card_has_whole_ones(runs: Path, tmp_path: Path) -> None:
    index = share(runs, tmp_path / "site", figures=["main-table"], address="https://example.org/a/index.html")
    text = index.read_text("utf-8")
    assert '<meta property="og:image" content="https://example.org/a/card.png">' in text
    assert '<meta property="og:url" content="https://example.org/a/">' in text
    for address in ("example.org/a", "file:///a", "https://me:pw@example.org", "https://example.org/?a", "https://[a/"):
        with pytest.raises(PobenchError, match="is no address"):
            share(runs, tmp_path / "other", address=address)
    assert not (tmp_path / "other").exists()


def test_a_digest_is_as_short_as_tells_it_from_others_and_commands_take_it(runs: Path) -> None:
    names = [START, *(f"tiny/{name}" for name in RUNS)]
    short = short_names(names)
    assert list(short.values()) == ["start-000000", "simpo-012345678", "simpo-01234567a", "dpo-bbbbbb"]
    assert all(find_run(runs, text) == name for name, text in short.items())
    assert short_names(["a/mine"]) == {"a/mine": "mine"}


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("cannot read '/home/some one/x.jsonl': gone", "cannot read 'x.jsonl': gone"),
        ("~/x/y, ../z/q.py; C:\\a\\b.txt", "y, q.py; b.txt"),
        ("https://me:pw@host/x?y", "https://host/x?y"),
        ("γ/β, a / b, run tiny/simpo-1a2b and bf16/fp32", "γ/β, a / b, run tiny/simpo-1a2b and bf16/fp32"),
        ("Bearer hf_abcdefghijklmnopqrstuv", "Bearer …"),
    ],
)
def test_a_path_is_shown_by_its_last_name_and_a_key_not_at_all(text: str, shown: str) -> None:
    assert without_paths(text) == shown


def test_the_command_says_where_the_site_is_and_that_it_was_looked_at(runs: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("pobench.workflows.share.chosen", lambda figures: [])
    printed = CliRunner().invoke(app, [str(runs), "--out", str(tmp_path / "site")])
    assert printed.exit_code == 0 and "index.html (" in printed.output.replace("\n", "")
    assert list((runs / "tiny/looks").glob("*.json"))
