"""The page and its files: the same bytes twice, nothing mixed, nothing executed, nothing hidden."""

from __future__ import annotations

import base64
import dataclasses
import gzip
import json
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest

from pobench import registry
from pobench.errors import PobenchError, UndrawnError
from pobench.reporting import items, page, plot
from pobench.reporting.items import build_item
from pobench.reporting.run_facts import title_of
from pobench.reporting.summary import summarise
from pobench.results import metrics
from pobench.results.arms import arms_of, score_of
from pobench.results.comparable import Comparable, ordered, split

FEW = ["main-table", "kl", "training-health", "settings-table"]


@pytest.fixture(scope="session")
def frames(synthetic) -> dict:
    """A start model, four losses that finished and one that failed. Do not change it."""
    made = synthetic.make_frames(prompts=64, samples=3, pairs=50, steps=12, failed=("ipo",))
    made["runs"]["note"] = "Weights are dequantised Q4_1."
    return {**made, "scores": metrics.complete(made)}


@pytest.fixture(scope="session")
def whole(frames, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("whole")
    page.build_report(frames, out)
    return out


class Page(HTMLParser):
    """Ids, links, sources, text and unclosed tags of a page."""

    VOID = ("meta", "img", "link", "br", "path", "use", "rect", "image", "circle", "line")

    def __init__(self, html: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.links: list[str] = []
        self.sources: list[str] = []
        self.tags: list[str] = []
        self.text: list[str] = []
        self.open: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag, attrs) -> None:
        self.tags.append(tag)
        found = dict(attrs)
        self.ids += [found["id"]] if found.get("id") else []
        self.links += [found["href"]] if tag == "a" and found.get("href") else []
        self.sources += [v for k, v in attrs if k in ("src", "xlink:href") or (k == "href" and tag != "a")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag) -> None:
        if tag not in self.VOID:
            assert self.open and self.open.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data) -> None:
        self.text.append(data)


def section_of(comparable: Comparable, names: list[str]) -> page.Section:
    return page.build_section(comparable, "x", [build_item(shown, comparable, "x") for shown in page.chosen(names)])


def read(out: Path) -> str:
    return (out / "report.html").read_text("utf-8")


def test_the_page_is_well_formed_and_its_links_lead_somewhere(whole) -> None:
    page = Page(read(whole))
    assert page.open == []
    assert len(page.ids) == len(set(page.ids))
    inside = {link[1:] for link in page.links if link.startswith("#")}
    assert inside and inside <= set(page.ids)


def test_the_page_asks_nothing_of_the_network(whole) -> None:
    page, html = Page(read(whole)), read(whole)
    assert all(s.startswith(("#", "data:")) for s in page.sources)
    assert all(link.startswith(("#", "data:", "https://arxiv.org/")) for link in page.links)
    assert not re.search(r"@import|url\((?!#)|<link", html)
    assert "default-src 'none'" in html


def test_the_one_script_is_the_one_the_policy_allows(whole) -> None:
    import hashlib

    html = read(whole)
    (script,) = re.findall(r"<script>(.*?)</script>", html, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in html


@pytest.fixture(scope="module")
def few(frames, tmp_path_factory) -> Path:
    """A report of few figures, drawn by several processes where there are several cores."""
    return page.build_report(frames, tmp_path_factory.mktemp("few"), figures=[*FEW, "cross-loss"]).parent


def assert_same_bytes(folder: Path, other: Path) -> None:
    files = sorted(p.relative_to(folder) for p in folder.rglob("*.*"))
    assert files == sorted(p.relative_to(other) for p in other.rglob("*.*")) and len(files) > 8
    for file in files:
        assert (folder / file).read_bytes() == (other / file).read_bytes(), file


def test_the_same_frames_in_any_order_by_one_process_or_several_give_the_same_bytes(
    frames, few, tmp_path, monkeypatch
) -> None:
    monkeypatch.setattr("pobench.reporting.items.MOST_PROCESSES", 1)
    shuffled = {k: f.sample(frac=1, random_state=3) for k, f in reversed(frames.items())}
    assert_same_bytes(few, page.build_report(shuffled, tmp_path, figures=[*FEW, "cross-loss"]).parent)


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="elsewhere one process draws")
def test_a_process_that_draws_and_is_killed_is_reported_as_that(frames, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1})
    monkeypatch.setattr("pobench.reporting.items._draw_waiting", killed)
    with pytest.raises(PobenchError, match="a process that draws the report was killed"):
        page.build_report(frames, tmp_path, figures=FEW)


def killed(place: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_table_says_which_runs_each_figure_was_made_from(synthetic, tmp_path) -> None:
    made = synthetic.make_frames(prompts=16, pairs=20, steps=4, seeds=(1, 2))
    path = page.build_report(made, tmp_path, figures=["both-rewards", "main-table", "heldout-accuracy", "tuning"])
    table = pd.read_csv(path.parent / "tiny/tables/made-from.csv").set_index("name")
    trained = set(made["runs"]["run"]) - {run for run in made["runs"]["run"] if "start" in run}
    assert set(table.loc["main-table", "Made from"].split()) == set(made["runs"]["run"])
    assert set(table.loc["both-rewards", "Made from"].split()) == trained  # a start model takes no step
    assert set(table.loc["heldout-accuracy", "Made from"].split()) == trained
    assert "start" in table.loc["main-table", "Made from"].split()[0]
    assert table.loc["both-rewards", "Seeds"] == "1 and 2" and table.loc["both-rewards", "Losses"] == 5
    assert pd.isna(table.loc["tuning", "Made from"])
    assert "No search has been made" in read(tmp_path)


def test_what_all_runs_made_says_so_and_what_some_made_names_them(whole, frames) -> None:
    html = read(whole)
    assert 'Made from <a href="#tiny-runs">all 5 finished runs</a>.' in html
    assert re.search(r"<summary>Made from \d runs?</summary>", html)
    runs = pd.read_csv(whole / "tiny/tables/runs.csv")
    assert sorted(runs["Run"]) == sorted(frames["runs"]["run"])
    assert all(f'data-full="{run}"' in html for run in frames["runs"]["run"])


def test_of_many_runs_the_page_names_some_and_the_csv_all(synthetic, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("pobench.reporting.items.MOST_RUNS", 3)
    made = synthetic.make_frames(seeds=(1, 2), prompts=4, samples=1, pairs=4, steps=2, failed=("ipo",))
    out = page.build_report(made, tmp_path, figures=["pass-rate"]).parent
    assert "8 more are in the CSV." in read(out) and len(pd.read_csv(out / "tiny/tables/runs.csv")) == 11
    assert len(set(re.findall(r'data-full="([^"]+)"', read(out)))) == 3


def test_nothing_of_where_it_was_written_is_on_the_page(whole) -> None:
    assert str(whole) not in read(whole)


def test_a_page_by_itself_may_load_nothing(whole) -> None:
    assert "connect-src" not in read(whole) and "data-beside=" not in read(whole)
    assert not list(whole.rglob("answers"))


def test_every_figure_has_a_picture_and_the_numbers_as_files(whole) -> None:
    pictures = {p.name for p in (whole / "tiny" / "figures").iterdir()}
    for name in ("kl", "pass-rate", "training-curves"):
        assert {f"{name}.png", f"{name}.svg", f"{name}.csv"} <= pictures
    assert (whole / "tiny/figures/kl.png").read_bytes().startswith(b"\x89PNG")
    tables = {p.name for p in (whole / "tiny" / "tables").iterdir()}
    assert {"main-table.md", "main-table.csv", "main-table.tex"} <= tables


def test_the_csv_of_a_figure_is_one_click_away_and_is_the_file(whole) -> None:
    packed = re.findall(r'data-kind="text/csv[^"]*" data-packed="([^"]+)"', read(whole))
    contents = {gzip.decompress(base64.b64decode(file)) for file in packed}
    assert (whole / "tiny/figures/kl.csv").read_bytes() in contents


def test_below_the_card_stands_what_failed(frames) -> None:
    (comparable,) = split(ordered(frames))
    said = {f.head: f.text for f in summarise(comparable)}
    assert said["Failed"] == "IPO: the loss became nan at step 14."


def test_settings_protocols_and_start_models_are_never_mixed(synthetic, tmp_path) -> None:
    few = {"dpo": synthetic.LOSSES["dpo"]}
    size = {"prompts": 6, "pairs": 8, "steps": 2}
    made = [
        synthetic.make_frames(few, **size),
        synthetic.make_frames(few, setting="smollm2", **size),
        synthetic.make_frames(few, setting="smollm2", protocol=2, rng_seed=8, **size),
        synthetic.make_frames(few, setting="smollm2", protocol=2, rng_seed=9, **size),
    ]
    for k, one in enumerate(made[2:]):
        for frame in one.values():
            if "run" in frame:
                frame["run"] = frame["run"].str.replace("dpo-", f"dpo-{k}")
    both = {k: pd.concat([m[k] for m in made], ignore_index=True) for k in made[0]}
    found = split(ordered(both))
    assert [p.title for p in found] == [
        "smollm2, protocol 1",
        "smollm2, protocol 2, start model start-00000008",
        "smollm2, protocol 2, start model start-00000009",
        "tiny",
    ]
    for comparable in found:
        assert len(comparable.frames["runs"]) == 2
        assert set(comparable.frames["answers"]["run"]) == set(comparable.frames["runs"]["run"])
    why = "Made by protocol {}: 2 runs of smollm2; not comparable with those of protocol {}, which are shown apart."
    assert [p.apart for p in found] == [why.format(1, 2), why.format(2, 1), why.format(2, 1), ""]
    html = read(page.build_report(both, tmp_path, figures=["main-table"]).parent)
    assert html.count(why.format(1, 2)) == 1 and html.count(why.format(2, 1)) == 2


def test_an_unfinished_run_is_told_and_not_compared(frames, synthetic) -> None:
    made = synthetic.make_frames(prompts=10, pairs=10, steps=4)
    made["runs"].loc[made["runs"]["loss"] == "kto", "status"] = "unfinished"
    (comparable,) = split(ordered(made))
    run = made["runs"].loc[made["runs"]["loss"] == "kto", "run"].iloc[0]
    assert run in set(comparable.frames["steps"]["run"])
    assert run not in set(comparable.frames["answers"]["run"]) | set(comparable.frames["scores"]["run"])
    assert "KTO." in {f.text for f in summarise(comparable) if f.head == "Not finished"}


def test_many_runs_that_did_not_finish_are_one_sentence(synthetic) -> None:
    several = {f"loss_{at}": (f"Loss {at}", {}, 0.1, *[0.0] * 3, 1.0) for at in range(6)}
    made = synthetic.make_frames(several, prompts=4, pairs=4, steps=2)
    made["runs"].loc[made["runs"]["loss"].isin([f"loss_{at}" for at in range(1, 6)]), "status"] = "unfinished"
    (comparable,) = split(ordered(made))
    said = [f.text for f in summarise(comparable) if f.head == "Not finished"]
    assert said == ["Loss 1; Loss 2; Loss 3 and 2 more."]


def test_hostile_answers_are_text(frames, tmp_path) -> None:
    hostile = {k: f.copy() for k, f in frames.items()}
    texts = [
        "<script>alert(1)</script><img src=x onerror=alert(2)>",
        "broken \udcff\ud800 \x00\x07 end",
        "\u202eevil\u202c שלום",
        "x" * 100_000,
        "</style></div>{{ 7*7 }}{% raw %}",
    ]
    answers = hostile["answers"]
    answers["text"] = pd.Series([texts[(i // 3) % 5] for i in range(len(answers))], index=answers.index, dtype=object)
    answers["instruction"] = "<b>bold</b> & <script>x</script>"
    hostile["runs"]["reason"] = "<i>out of memory</i>"
    hostile["runs"]["note"] = "<script>note()</script>"
    html = read(page.build_report(hostile, tmp_path, figures=FEW).parent)
    shown = Page(html)
    assert shown.open == [] and shown.tags.count("script") == 1 and "img" not in shown.tags and "b" in shown.tags
    assert "&lt;script&gt;alert(1)" in html and "onerror=alert(2)&gt;" in html
    assert "⟨U+202E⟩evil⟨U+202C⟩ שלום" in html and "\u202e" not in html and "\x00" not in html
    assert "98,800 more characters not shown" in html and "x" * 1201 not in html
    assert "{{ 7*7 }}" in html
    assert "&lt;i&gt;out of memory&lt;/i&gt;" in html


def test_samples_are_picked_by_rule_and_carry_their_verdict(frames) -> None:
    (comparable,) = split(ordered(frames))
    picked = page.sample_answers(comparable.home)
    import hashlib

    ids = sorted(frames["answers"]["prompt"].unique(), key=lambda p: hashlib.sha256(p.encode()).hexdigest())
    assert [p.prompt for p in picked] == ids[:4]
    assert [a.label for a in picked[0].answers] == ["Start model", "DPO", "KTO", "SimPO", "SimPO w/o LN"]
    judged = frames["verdicts"].set_index(["run", "prompt", "sample"])["score"]
    run = frames["runs"].loc[frames["runs"]["loss"] == "dpo", "run"].iloc[0]
    assert picked[0].answers[1].mark == ("pass" if judged[run, ids[0], 0] == 1 else "fail")


def test_notes_formulas_and_the_audit_are_shown(whole) -> None:
    text = " ".join(Page(read(whole)).text)
    assert "dequantised Q4_1" in text
    assert "sigmoid" in text and "arXiv 2405.14734" in text
    assert "identical answers" in text and "12, 40, 77" in text


def test_names_in_captions_are_code_and_stay_text(whole) -> None:
    html = read(whole)
    assert "<code>gradient-norm</code>" in html and "`gradient-norm`" not in html
    assert page._code("a `<b>` c") == "a <code>&lt;b&gt;</code> c"


def test_every_metric_on_the_page_is_explained(whole) -> None:
    html = read(whole)
    for name in ("pass_rate", "kl_winners", "repetition"):
        assert f'id="metric-{name}"' in html and metrics.METRICS[name].title in html


def test_missing_figures_say_why(frames, tmp_path) -> None:
    bare = {"runs": frames["runs"]}
    html = read(page.build_report(bare, tmp_path).parent)
    assert "No run has logged a training step." in html
    assert "No run has been scored." in html or "No run has" in html


def test_a_figure_whose_code_fails_says_so_in_its_place_and_costs_nothing_else(frames, tmp_path, monkeypatch) -> None:
    def broken(runs: pd.DataFrame) -> None:
        raise KeyError("<b>no such column</b>")

    table = registry.figures.get("settings-table")
    mine = dataclasses.replace(table, name="mine", title="My own table", function=broken, frames=("runs",), order=0)
    monkeypatch.setattr(page, "chosen", lambda _: [mine, table])
    with pytest.raises(UndrawnError, match="mine could not be drawn: KeyError: '<b>no such column</b>'") as failed:
        page.build_report(frames, tmp_path)
    html = failed.value.path.read_text("utf-8")
    assert "<b>My own table:</b> Its code failed: KeyError: &#39;&lt;b&gt;no such column" in html
    assert (tmp_path / "tiny/tables/settings-table.csv").is_file() and (tmp_path / "summary.md").is_file()
    assert "in broken" in failed.value.__notes__[0]  # where it failed, for --debug


def test_unknown_names_are_refused_with_the_nearest(frames, tmp_path) -> None:
    with pytest.raises(PobenchError, match="did you mean 'main-table'"):
        page.build_report(frames, tmp_path / "x", figures=["main-tabel"])
    with pytest.raises(PobenchError, match="did you mean 'tiny'"):
        page.build_report(frames, tmp_path / "x", setting="tinny")
    with pytest.raises(PobenchError, match="no run"):
        page.build_report({}, tmp_path / "x")
    with pytest.raises(PobenchError, match="unknown format 'pdf'"):
        page.build_report(frames, tmp_path / "x", formats=["pdf"])
    assert not (tmp_path / "x").exists()


# ---------------------------------------------------------------- the files beside the page


def test_the_markdown_summary_says_what_the_page_says(whole, frames) -> None:
    text = (whole / "summary.md").read_text("utf-8")
    assert text.startswith("## tiny\n\n5 losses · 1 seed · 320 training pairs")
    assert "**No verdict between these losses yet: with one seed a loss, the luck of training is not known.**" in text
    for finding in ("No verdict on the start model", "Failed", "How sure"):
        assert f"**{finding}.**" in text
    assert "> Weights are dequantised Q4_1." in text.replace("\\_", "_")
    assert (whole / "tiny/tables/main-table.md").read_text("utf-8") in text + "\n"


def test_a_hostile_title_stays_text_in_markdown(frames, tmp_path) -> None:
    hostile = {**frames, "runs": frames["runs"].assign(note="<script>x</script> [a](javascript:b) | *c*")}
    page.build_report(hostile, tmp_path, figures=["main-table"], formats=["md"])
    text = (tmp_path / "summary.md").read_text("utf-8")
    assert r"\<script\>x\</script\> \[a\](javascript:b) \| \*c\*" in text


@pytest.mark.skipif(not shutil.which("pdflatex"), reason="no pdflatex on this machine")
def test_the_document_of_all_tables_compiles(whole, tmp_path) -> None:
    command = ["pdflatex", "-halt-on-error", "-interaction=nonstopmode", f"-output-directory={tmp_path}"]
    done = subprocess.run([*command, whole / "tables.tex"], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-2000:]


def test_only_the_formats_asked_for_are_written(frames, tmp_path) -> None:
    where = page.build_report(frames, tmp_path, figures=["main-table", "kl"], formats=["md", "tex"])
    files = {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*.*")}
    assert where == tmp_path
    tables = {
        f"tiny/tables/{name}.{ending}" for name in ("main-table", "made-from", "runs") for ending in ("md", "tex")
    }
    assert files == {"summary.md", "tables.tex", *tables}


def unpacked(page: str) -> list[str]:
    """The pictures that the page's script draws, each with its hints."""
    return [gzip.decompress(base64.b64decode(text)).decode() for text in re.findall(r'data-drawing="([^"]+)"', page)]


def test_pictures_are_packed_but_beside_the_card(whole) -> None:
    """A page that opens holds one picture; every other is text for the script, which gives back the drawn one."""
    page = read(whole)
    before_first_fold = page[: page.index('<details class="fold"')]
    assert page.count("<svg ") == before_first_fold.count("<svg ") == 1
    held = unpacked(page)
    assert len(held) > 10 and all(text.startswith(("<svg ", "<img ")) for text in held)
    assert sum('class="hints"' in text for text in held) > 5


def test_a_page_that_grows_too_large_leaves_its_largest_pictures_out(frames, monkeypatch) -> None:
    (comparable,) = split(ordered(frames))
    section = section_of(comparable, ["kl", "both-rewards"])
    whole = len(page.render([section]).encode())
    monkeypatch.setattr(page, "LARGEST_PAGE", whole - 1)
    html = page.render([section])
    assert len(html.encode()) < whole
    assert f"Too large for this page: {section.folder}/figures/both-rewards.svg" in html
    assert html.count("Too large") == 1
    (left_out,) = (item for item in section.items if item.name == "both-rewards")
    assert left_out.files["svg"].startswith(b"<?xml"), "it stays a file"


def test_another_order_of_the_pairs_is_said_unless_more_epochs_are_the_reason(synthetic) -> None:
    made = synthetic.make_frames({"one": ("One", {}, 0.1, *[0.0] * 3, 1.0), "two": ("Two", {}, 0.1, *[0.0] * 3, 1.0)})
    two = made["runs"]["loss"] == "two"
    for epochs, heads in ((1.0, {"Data order"}), (3.0, set())):
        runs = made["runs"].assign(order=made["runs"]["order"].mask(two, "77aa"))
        runs["epochs"] = runs["epochs"].mask(two, epochs)
        (comparable,) = split(ordered({**made, "runs": runs}))
        assert {finding.head for finding in summarise(comparable)} & {"Data order"} == heads


def points_of(lines: str) -> Iterator[tuple[int, int, str]]:
    """What `hint_lines` has packed, as the page's script reads it."""
    x, y, words = 0, 0, ""
    for line in lines.splitlines():
        if line.startswith("="):
            words = line[1:]
        else:
            across, down, text = line.split(" ", 2)
            x, y = x + int(across), y + int(down)
            yield x, y, words + text


def test_hints_of_a_line_say_once_what_they_begin_with() -> None:
    texts = ["DPO, loss, step 1: 2", "DPO, loss, step 2: 3", "B", "IPO a", "IPO b"]
    hints = [plot.Hint(0.1 * n, 0.2 - 0.01 * n, text) for n, text in enumerate(texts)]
    packed = items.hint_lines(hints)
    assert packed.splitlines()[:3] == ["=DPO, loss, step ", "0 2000 1: 2", "1000 -100 2: 3"]
    assert list(points_of(packed)) == [(1000 * n, 2000 - 100 * n, text) for n, text in enumerate(texts)]
    assert items.hint_lines([]) == "", "a figure may have none"


def test_hints_and_words_of_a_picture_carry_its_numbers(frames, whole) -> None:
    (comparable,) = split(ordered(frames))
    (kl,) = [item for item in section_of(comparable, ["kl"]).items if item.name == "kl"]
    x, y, said = next(point for point in points_of(kl.hints) if "SimPO, default:" in point[2])
    assert 0 < x < 10_000 and 0 < y < 10_000
    simpo = next(arm for arm in arms_of(frames["runs"]) if arm.loss == "simpo")
    e = score_of(comparable.frames["scores"], simpo, "kl_winners")
    assert said == f"SimPO, default: {e.value:.3f} [{e.low:.3f}, {e.high:.3f}] n = {e.n}".replace("-", "−")
    assert said in str(kl.picture)  # what is seen, in words
    assert any("=DPO, loss, step \n" in text for text in unpacked(read(whole)))


@pytest.mark.parametrize("name", ["mine", "later(dpo)", "dpo + mine"])
def test_a_loss_or_modifier_that_is_not_registered_here_has_no_formula(frames, name) -> None:
    runs = frames["runs"].assign(loss=frames["runs"]["loss"].replace("kto", name))
    (comparable,) = split(ordered({**frames, "runs": runs}))
    assert [one.label for one in page.formulas(comparable.home) if not one.known] == ["KTO"]
    assert title_of(name) == (name, "a loss of the user's own", [])


def test_the_environment_is_printed_and_differences_stay_visible(frames) -> None:
    made = {**frames, "runs": frames["runs"].copy()}
    made["runs"]["environment"] = [
        json.dumps({"packages": {"torch": v}}) for v in ("2.13", "2.13", "2.12", "2.13", "2.13", "2.13")
    ]
    (comparable,) = split(ordered(made))
    assert page.environment(comparable.frames["runs"]) == [("packages · torch", "2.12 | 2.13")]


def test_what_shows_several_settings_has_a_section_of_its_own(synthetic, tmp_path) -> None:
    losses = {name: synthetic.LOSSES[name] for name in ("simpo", "dpo")}
    parts = [synthetic.make_frames(losses, setting=s, seeds=(1, 2, 3), prompts=6, pairs=5, steps=2) for s in ("a", "b")]
    both = {name: pd.concat([part[name] for part in parts], ignore_index=True) for name in parts[0]}
    names = ["gains-across-settings", "claims-across-settings", "main-table"]
    html = page.build_report(both, tmp_path / "both", figures=names, formats=["html", "csv"]).read_text("utf-8")
    assert "<h1>2 settings</h1>" in html and 'id="several-settings-gains-across-settings"' in html
    assert "a-gains-across-settings" not in html.replace("several-settings-gains", ""), "not once more for each setting"
    data = pd.read_csv(tmp_path / "both/several-settings/figures/gains-across-settings.csv")
    assert data[["setting", "loss"]].apply(tuple, axis=1).tolist() == [
        ("a", "simpo"), ("a", "start"), ("b", "simpo"), ("b", "start"),
    ]  # fmt: skip
    shown = ["gains-across-settings", "gains-over-dpo"]
    html = page.build_report(parts[0], tmp_path / "one", figures=shown, formats=["html", "csv"]).read_text("utf-8")
    assert "<h1>a</h1>" in html and "These are runs of one setting" in html
    own = pd.read_csv(tmp_path / "one/a/figures/gains-over-dpo.csv").query("of == 'all'").set_index("loss")["value"]
    here = data[data["setting"] == "a"].set_index("loss")["value"]
    assert here.to_dict() == pytest.approx(own.to_dict()), "as the setting's own figure has it"
