"""The page in a real browser: it opens from disk in silence, can be read by everyone, and shows hostile text as text."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from stores import start_run, trained_run

from pobench.data.rows import read_rows
from pobench.reporting.looks import look_of
from pobench.reporting.page import build_report
from pobench.results import metrics
from pobench.workflows.share import share

webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
from selenium.webdriver.common.action_chains import ActionChains  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402
from selenium.webdriver.support.ui import Select, WebDriverWait  # noqa: E402

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(not (BROWSER and DRIVER), reason="no chromium with chromedriver on this machine")

SHOWN = [
    "main-table",
    "who-beats-whom",
    "claims",
    "pass-rate",
    "training-health",
    "both-rewards",
    "settings-table",
    "data-audit",
    "cost",
]
HOSTILE = [
    "<script>document.title = 'broken into'</script><img src=x onerror=\"document.title='broken into'\">",
    "broken \udcff\ud800 \x00\x07 end",
    "\u202eevil\u202c שלום",
    "x" * 100_000,
    "</style></script></div>{{ 7*7 }}",
]


@pytest.fixture(scope="module")
def page(synthetic, tmp_path_factory) -> Path:
    """A report of hostile answers, labels and notes."""
    frames = synthetic.make_frames(prompts=24, samples=2, pairs=30, steps=12, failed=("ipo",))
    frames["scores"] = metrics.complete(frames)
    runs, answers = frames["runs"], frames["answers"]
    answers["text"] = pd.Series([HOSTILE[i % 5] for i in range(len(answers))], index=answers.index, dtype=object)
    frames["verdicts"]["reason"] = "no \u202edemand <b>met</b>"
    beside = {"benchmark": "arena_hard", "judge": "gpt", "kind": "", "prompt": "Why?", "baseline": "It is so."}
    frames["benchmark_answers"] = pd.DataFrame(
        [
            {"run": run, "question": f"u{n}", "text": "So it is.", "score": 1.0, "reason": "B is wordy", **beside}
            for run in runs["run"]
            for n in range(2)
        ]
    )
    runs["note"] = "<script>document.title = 'broken into'</script>"
    runs["environment"] = json.dumps({"python": "3.11", "packages": {"torch": "2.13"}})
    runs.loc[runs["loss"] == "kto", "title"] = "<b onclick=alert(1)>KTO</b>"
    return build_report(frames, tmp_path_factory.mktemp("page"), figures=SHOWN)


@pytest.fixture(scope="module")
def browser(tmp_path_factory) -> Iterator[Any]:
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    profile = tmp_path_factory.mktemp("profile")
    for said in (
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-background-networking",
        "--window-size=1300,1000",
    ):
        options.add_argument(said)
    options.add_argument(f"--user-data-dir={profile}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture
def fresh(browser, page) -> Any:
    """The page as it is when it has loaded."""
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    like(browser, "light")
    browser.get(page.as_uri())
    browser.execute_script("try { localStorage.clear(); } catch {}")
    browser.get(page.as_uri())
    return browser


@pytest.fixture
def opened(fresh) -> Any:
    """The page with every chapter open and every picture drawn, as its button for printing leaves it to the printer."""
    script = """
        const done = arguments[0];
        document.querySelectorAll("details.fold").forEach((fold) => (fold.open = true));
        window.print = () => done(document.querySelectorAll("[data-drawing]").length);
        document.querySelector("button.print").click();"""
    assert fresh.execute_async_script(script) == 0
    return fresh


def sized(browser: Any, width: int, *, mobile: bool = False) -> None:
    """Make the window `width` CSS pixels wide."""
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": mobile}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)


def like(browser: Any, theme: str, media: str = "") -> None:
    """Set the system's preference for light or dark (and for stillness), and the screen or print medium."""
    wishes = {"prefers-color-scheme": theme, "prefers-reduced-motion": "reduce"}
    features = [{"name": name, "value": value} for name, value in wishes.items()]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": media, "features": features})


def unpacked(browser: Any) -> Any:
    """The reader of answers, once it is there: a script makes it when it comes near the screen."""
    browser.execute_script("document.querySelector('.held').scrollIntoView({behavior: 'instant'})")
    WebDriverWait(browser, 600).until(lambda b: b.find_elements(By.CSS_SELECTOR, ".reader .list .one"))
    return browser.find_element(By.CSS_SELECTOR, ".reader")


def choose(reader: Any, label: str, option: str) -> None:
    path = f".//label[span[starts-with(text(), '{label}')]]/select"
    Select(reader.find_element(By.XPATH, path)).select_by_visible_text(option)


def column(browser: Any, place: int) -> list[str]:
    """The sort keys of a column of the first table, from top to bottom."""
    script = "return [...document.querySelector('table.sortable').tBodies[0].rows].map((r) => r.children[%d].%s)"
    return browser.execute_script(script % (place, "dataset.sort ?? ''" if place else "textContent.trim()"))


def test_it_opens_without_a_word_on_the_console_and_asks_for_nothing(opened) -> None:
    assert opened.get_log("browser") == []
    assert opened.execute_script("return performance.getEntriesByType('resource').map((r) => r.name)") == []


def test_hostile_text_is_shown_as_text(opened) -> None:
    assert opened.title.startswith("Preference objectives compared")
    texts = opened.execute_script("return [...document.querySelectorAll('.answers .text')].map((e) => e.textContent)")
    assert any("<script>document.title" in t for t in texts) and any("⟨U+202E⟩evil" in t for t in texts)
    assert any("broken � ⟨U+0000⟩" in t or "broken ��" in t for t in texts)
    assert any("{{ 7*7 }}" in t for t in texts) and all(len(t) <= 1300 for t in texts)
    assert "<b onclick=alert(1)>KTO</b>" in opened.find_element(By.TAG_NAME, "main").text
    assert opened.find_elements(By.CSS_SELECTOR, "[onclick], [onerror]") == []


def test_a_column_head_sorts_and_says_so(opened) -> None:
    head = opened.find_element(By.CSS_SELECTOR, "table.sortable thead th:nth-child(3)")
    head.find_element(By.TAG_NAME, "button").click()
    falling = column(opened, 2)
    assert head.get_attribute("aria-sort") == "descending"
    assert [float(v) for v in falling if v] == sorted((float(v) for v in falling if v), reverse=True)
    head.find_element(By.TAG_NAME, "button").send_keys(Keys.ENTER)  # by keyboard
    assert head.get_attribute("aria-sort") == "ascending"
    rising = column(opened, 2)
    assert [float(v) for v in rising if v] == sorted(float(v) for v in rising if v) and rising != falling
    gains = opened.find_element(By.CSS_SELECTOR, "table.sortable thead th:nth-child(4)")
    for _ in range(2):  # the start model has no gain: its dash stays last in both directions
        gains.find_element(By.TAG_NAME, "button").click()
        assert column(opened, 3)[-1] == ""
    assert len(opened.find_elements(By.CSS_SELECTOR, "th[aria-sort]")) == 1


def test_the_button_changes_light_and_dark_and_is_remembered(opened) -> None:
    paper = "return getComputedStyle(document.body).backgroundColor"
    light = opened.execute_script(paper)
    like(opened, "dark")
    dark = opened.execute_script(paper)
    assert dark != light  # as the system has it
    button = opened.find_element(By.CSS_SELECTOR, "button.theme")
    assert button.text == "Light page"
    button.click()
    assert opened.execute_script(paper) == light and button.text == "Dark page"
    opened.refresh()
    assert opened.execute_script(paper) == light  # though the system is dark


def test_a_pointer_and_the_arrow_keys_find_the_numbers(opened) -> None:
    picture = opened.find_element(By.CSS_SELECTOR, "[id$='-pass-rate'] .picture")
    tip = picture.find_element(By.CSS_SELECTOR, ".tip")
    opened.execute_script("arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})", picture)
    points = "return pointsOf(arguments[0].querySelector('.hints').textContent)"
    first = opened.execute_script(points, picture)[0]
    text = first["text"]
    assert "[" in text and "n = 24" in text
    box = opened.execute_script("return arguments[0].querySelector('svg').getBoundingClientRect().toJSON()", picture)
    across, down = box["x"] + first["x"] * box["width"], box["y"] + first["y"] * box["height"]
    pointer = ActionChains(opened, duration=0)
    pointer.w3c_actions.pointer_action.move_to_location(int(across), int(down))
    pointer.perform()
    assert tip.text == text
    pointer.w3c_actions.pointer_action.move_to_location(2, 2)
    pointer.perform()
    assert tip.text == ""
    opened.execute_script("arguments[0].focus()", picture)
    said = []
    for _ in range(2):
        picture.send_keys(Keys.ARROW_RIGHT)
        said.append(tip.text)
    assert said[0] == text and said[1] not in ("", text)
    picture.send_keys(Keys.ESCAPE)
    assert tip.text == ""


def test_hints_stand_on_their_markers(opened) -> None:
    """The row of a dot plot: the hint's height is that of the row's own tick label, SimPO's by its name."""
    script = """
        const picture = document.querySelector("[id$='-pass-rate'] .picture"), svg = picture.querySelector("svg");
        const box = svg.getBoundingClientRect();
        const points = pointsOf(picture.querySelector(".hints").textContent);
        const at = points.find(({ text }) => text.includes("SimPO, default:"));
        const here = [box.x + at.x * box.width, box.y + at.y * box.height];
        const own = [...svg.querySelectorAll("[style]")].filter((e) => e.getAttribute("style").includes(arguments[0]));
        return Math.min(...own.map((e) => { const b = e.getBoundingClientRect();
            return Math.hypot(b.x + b.width / 2 - here[0], b.y + b.height / 2 - here[1]); }));"""
    assert opened.execute_script(script, look_of("simpo").colour) < 2


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_all_text_stands_out_from_its_ground(opened, theme) -> None:
    """WCAG 2.2, 1.4.3: a contrast of 4.5 between text and what is behind it."""
    like(opened, theme)
    opened.execute_script("document.querySelectorAll('details').forEach((d) => (d.open = true))")
    script = """
        const probe = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
        const rgba = (c) => { probe.clearRect(0, 0, 1, 1); probe.fillStyle = c; probe.fillRect(0, 0, 1, 1);
            return [...probe.getImageData(0, 0, 1, 1).data]; };
        const light = (c) => c.slice(0, 3).map((v) => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
            .reduce((s, v, i) => s + v * [0.2126, 0.7152, 0.0722][i], 0);
        const ground = (e) => { for (; e; e = e.parentElement) { const c = rgba(getComputedStyle(e).backgroundColor);
            if (c[3] === 255) return c; } return [255, 255, 255, 255]; };
        const poor = {};
        const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
        while (walk.nextNode()) {
            const e = walk.currentNode.parentElement;
            if (!walk.currentNode.data.trim() || !e.getClientRects().length || e.closest("script, style")) continue;
            const [a, b] = [light(rgba(getComputedStyle(e).color)), light(ground(e))].sort((x, y) => y - x);
            const ratio = (a + 0.05) / (b + 0.05);
            if (ratio < 4.5) poor[`${e.tagName}.${e.className}: ${walk.currentNode.data.trim().slice(0, 30)}`] = ratio;
        }
        return poor;"""
    assert opened.execute_script(script) == {}


def test_a_click_unpacks_the_file_that_lies_beside_the_page(opened, page) -> None:
    script = """
        const [file, done] = arguments, make = URL.createObjectURL;
        URL.createObjectURL = (blob) => { blob.text().then(done); return make.call(URL, blob); };
        document.querySelector(`button[data-file="${file}"]`).click();"""
    assert opened.execute_async_script(script, "pass-rate.csv") == next(page.parent.rglob("pass-rate.csv")).read_text()


def test_a_telephone_scrolls_tables_and_pictures_not_the_page(opened) -> None:
    sized(opened, 390, mobile=True)
    too_wide = """return [...document.querySelectorAll("main *, nav")].filter((e) =>
        !e.closest(".scroll > *, .picture > *, nav > *") && e.getBoundingClientRect().right > 390).map((e) =>
         `${e.tagName}.${e.className}: ${e.textContent.slice(0, 40)}`)"""
    assert opened.execute_script(too_wide) == []
    assert opened.execute_script("return document.documentElement.scrollWidth") == 390


def test_print_shows_every_answer_and_no_navigation(opened) -> None:
    like(opened, "dark", media="print")
    seen = "return [...document.querySelectorAll(%r)].map((e) => e.checkVisibility({ contentVisibilityAuto: true }))"
    # what a chapter shows without scripts is there shortly after it opens
    WebDriverWait(opened, 60).until(lambda b: all(b.execute_script(seen % ".answers .text")))
    assert not any(opened.execute_script(seen % "nav, .downloads"))
    assert opened.execute_script("return getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    too_wide = """return [...document.querySelectorAll("table")].filter((t) => t.scrollWidth > innerWidth * 1.35)
        .map((t) => [t.caption.textContent, t.scrollWidth])"""
    for width in (700, 1017):  # A4 within its margins, upright and across; a browser shrinks what is a third too wide
        sized(opened, width)
        assert opened.execute_script(too_wide) == []


def test_chapters_are_folded_and_a_picture_is_drawn_when_it_comes_near(fresh) -> None:
    folds = fresh.execute_script("return [...document.querySelectorAll('details.fold')].map((d) => d.open)")
    assert folds[0] and len(folds) > 4 and not any(folds[1:])
    picture = fresh.find_element(By.CSS_SELECTOR, "[id$='-both-rewards'] .picture")
    assert picture.find_elements(By.TAG_NAME, "svg") == []
    height = "return arguments[0].getBoundingClientRect().height"
    script = """
        const [picture, done] = arguments;
        picture.addEventListener("drawn", () => done(picture.querySelector("svg").getAttribute("aria-label")));
        picture.closest("details").open = true;
        picture.scrollIntoView({ behavior: "instant" });"""
    assert "SimPO" in fresh.execute_async_script(script, picture)
    assert fresh.execute_script(height, picture) > 100
    fresh.execute_script("arguments[0].focus()", picture)
    picture.send_keys(Keys.ARROW_RIGHT)
    assert "step 1:" in picture.find_element(By.CSS_SELECTOR, ".tip").text


def test_answers_for_readers_without_scripts_are_no_elements_until_their_chapter_is_opened(fresh) -> None:
    articles = "return document.querySelectorAll('.picked article').length"
    assert fresh.execute_script(articles) == 0
    script = """
        const fold = document.querySelector("noscript").closest("details"), done = arguments[0];
        document.addEventListener("drawn", () => done(fold.querySelectorAll(".picked article").length), { once: true });
        fold.open = true;"""
    assert fresh.execute_async_script(script) > 4
    assert fresh.find_elements(By.TAG_NAME, "noscript") == []
    fresh.refresh()
    fresh.execute_script("dispatchEvent(new Event('beforeprint'))")
    assert fresh.execute_script(articles) > 4, "paper has them"


def test_an_undrawn_picture_has_the_size_of_the_drawn_one(fresh) -> None:
    script = """
        const done = arguments[0], picture = document.querySelector("[id$='-both-rewards'] .picture");
        picture.closest("details").open = true;
        const before = picture.getBoundingClientRect().height;
        picture.addEventListener("drawn", () => done([before, picture.getBoundingClientRect().height]));
        picture.scrollIntoView({ behavior: "instant" });"""
    before, after = fresh.execute_async_script(script)
    assert after == pytest.approx(before, rel=0.02)


def test_a_link_into_a_folded_chapter_opens_it(fresh, page) -> None:
    shown = "return document.querySelector(arguments[0]).checkVisibility({ contentVisibilityAuto: true })"
    for selector in ("[id$='-settings-table']", "[id$='-formulas'] ~ p, details:has([id$='-formulas']) .formulas"):
        assert not fresh.execute_script(shown, selector)
    fresh.execute_script("document.querySelector(\"nav a[href$='-settings-table']\").click()")
    assert fresh.execute_script(shown, "[id$='-settings-table']")
    name = fresh.execute_script("return document.querySelector(\"[id$='-cost']\").id")
    fresh.get("about:blank")
    fresh.get(f"{page.as_uri()}#{name}")
    assert fresh.execute_script(shown, f"#{name}")


@pytest.mark.parametrize(("width", "mobile"), [(390, True), (1400, False)])
def test_what_one_taps_is_large_enough_and_intervals_are_smaller_than_values(opened, width, mobile) -> None:
    """WCAG 2.2, 2.5.8: targets of 24 by 24 CSS pixels, on a telephone."""
    sized(opened, width, mobile=mobile)
    small = """return [...document.querySelectorAll("a, button, summary, input")].filter((e) => e.getClientRects().length)
        .map((e) => [e, e.getBoundingClientRect()]).filter(([, b]) => b.width < 24 || b.height < 24)
        .map(([e, b]) => `${e.outerHTML.slice(0, 80)}: ${b.width} by ${b.height}`)"""
    if mobile:
        assert opened.execute_script(small) == []
    size = """const size = (e) => parseFloat(getComputedStyle(e).fontSize);
        return [...document.querySelectorAll("table.data td small")].map((e) => size(e) / size(e.parentElement))"""
    for media in ("", "print"):
        like(opened, "light", media=media)
        ratios = opened.execute_script(size)
        assert len(ratios) > 10 and max(ratios) < 0.9


def test_the_losses_stay_in_sight_while_a_table_scrolls(opened) -> None:
    sized(opened, 390, mobile=True)
    script = """
        const box = document.querySelector("table.data").closest(".scroll"), head = box.querySelector("tbody th");
        box.scrollLeft = 300;
        const [b, h] = [box.getBoundingClientRect(), head.getBoundingClientRect()];
        return [box.scrollLeft, Math.abs(h.left - b.left), h.width / b.width];"""
    scrolled, away, share = opened.execute_script(script)
    assert scrolled == 300 and away < 1 and share < 0.5
    like(opened, "light", media="print")
    assert opened.execute_script("return getComputedStyle(document.querySelector('tbody th')).position") == "static"


def test_print_opens_chapters_and_closes_them_again(opened) -> None:
    opened.execute_script("document.querySelectorAll('details').forEach((d) => (d.open = false))")
    closed = (
        "dispatchEvent(new Event(%r)); return [...document.querySelectorAll('details')].filter((d) => !d.open).length"
    )
    folds = len(opened.find_elements(By.TAG_NAME, "details"))
    assert opened.execute_script(closed % "beforeprint") == 0 and opened.execute_script(closed % "afterprint") == folds
    like(opened, "light", media="print")
    link = opened.execute_script(
        "return getComputedStyle(document.querySelector('main a[href^=http]'), '::after').content"
    )
    assert "http" in link
    assert not any(
        opened.execute_script(
            "return [...document.querySelectorAll('.tools, .downloads')].map((e) => e.checkVisibility())"
        )
    )


def test_the_keyboard_reaches_the_answer_first(opened) -> None:
    body = opened.find_element(By.TAG_NAME, "body")
    body.send_keys(Keys.TAB)
    skip = opened.switch_to.active_element
    assert skip.text == "Skip to the answer" and skip.rect["x"] >= 0
    outline = opened.execute_script("return getComputedStyle(arguments[0]).outlineStyle", skip)
    assert outline == "solid"
    skip.send_keys(Keys.ENTER)
    assert opened.switch_to.active_element.tag_name == "main"


def test_screen_readers_find_names_levels_and_landmarks(opened) -> None:
    levels = opened.execute_script("return [...document.querySelectorAll('h1, h2, h3, h4')].map((h) => +h.tagName[1])")
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(b - a <= 1 for a, b in pairwise(levels))
    for landmark in ("main", "nav[aria-label]", ".card[role=region][aria-label]", "html[lang=en]"):
        assert len(opened.find_elements(By.CSS_SELECTOR, landmark)) == 1, landmark
    pictures = opened.execute_script(
        "return [...document.querySelectorAll('.picture > svg, img')].map((e) => e.getAttribute('aria-label') ?? e.alt)"
    )
    assert pictures and all(len(alt) > 40 for alt in pictures)
    assert any("SimPO, default: " in alt and "n = 24" in alt for alt in pictures)  # it says what is seen
    tables = opened.find_elements(By.CSS_SELECTOR, "table")
    assert tables and all(t.find_elements(By.TAG_NAME, "caption") for t in tables)
    assert opened.find_elements(By.CSS_SELECTOR, "th:not([scope])") == []
    names = "return [...document.querySelectorAll('a, button')].map((e) => (e.ariaLabel ?? e.textContent).trim())"
    assert all(opened.execute_script(names))


# ---------------------------------------------------------------- answers


def test_picked_models_stand_side_by_side_and_what_is_sought_is_found(opened) -> None:
    reader = unpacked(opened)
    for label, option in (("First", "SimPO"), ("Second", "DPO"), ("Third", "–")):
        choose(reader, label, option)
    heads = [e.text for e in reader.find_elements(By.CSS_SELECTOR, ".one:first-child header b")]
    assert heads == ["SimPO", "DPO"] and reader.find_element(By.TAG_NAME, "output").text == "1 to 5 of 24 prompts"
    choose(reader, "Judge", "first better than second")
    marks = [e.text for e in reader.find_elements(By.CSS_SELECTOR, "header .mark")]
    assert marks and marks == ["✓ passes", "✗ fails"] * (len(marks) // 2)
    choose(reader, "Judge", "any")
    reader.find_element(By.CSS_SELECTOR, "input[type=search]").send_keys("document.title")
    texts = reader.find_elements(By.CSS_SELECTOR, ".one")
    assert (
        texts
        and all("<script>document.title" in text.text for text in texts)
        and not opened.find_elements(By.CSS_SELECTOR, ".reader script, .reader img")
    )


def test_the_judges_reason_is_read_beside_its_verdict_and_a_baselines_answers_beside_a_models(opened) -> None:
    reader = unpacked(opened)
    reason = reader.find_element(By.CSS_SELECTOR, "details.reason")
    reason.find_element(By.TAG_NAME, "summary").click()
    assert "no ⟨U+202E⟩demand <b>met</b>" in reason.text
    script = "document.querySelectorAll('.held')[1].scrollIntoView({behavior: 'instant'})"
    opened.execute_script(script)
    WebDriverWait(opened, 60).until(lambda b: len(b.find_elements(By.CSS_SELECTOR, ".reader .list .one")) > 5)
    beside = opened.find_elements(By.CSS_SELECTOR, ".reader")[1]
    heads = [e.text for e in beside.find_elements(By.CSS_SELECTOR, ".one:first-child header b")]
    texts = [e.text for e in beside.find_elements(By.CSS_SELECTOR, ".one:first-child article > .text")]
    assert heads[0] == "Baseline of arena_hard" and texts[:2] == ["It is so.", "So it is."]
    assert beside.find_element(By.CSS_SELECTOR, "header .mark").text == "P(beats the baseline) 1.00"
    choose(beside, "Judge", "first better than second")
    assert beside.find_element(By.TAG_NAME, "output").text == "No prompt fits."


def test_words_that_differ_are_marked_in_both_answers(opened) -> None:
    reader = unpacked(opened)
    choose(reader, "First", "SimPO")
    choose(reader, "Second", "DPO")
    reader.find_element(By.CSS_SELECTOR, "label.tick input").click()
    script = """const shown = document.querySelector('.reader').querySelectorAll('.one .shown');
        return [...shown].map((e) => [...e.children].slice(0, 2).map((a) => {
        const text = a.querySelector('.text'), kept = text.cloneNode(true);
        kept.querySelectorAll('ins, del').forEach((mark) => mark.remove());
        return [text.textContent, kept.textContent.split(/\\s+/).filter(Boolean).join(' ')]; }))"""
    for (one, kept), (other, also_kept) in opened.execute_script(script):
        assert kept == also_kept, "what is not marked is the same in both"
        assert (kept == " ".join(one.split())) == (one.split() == other.split())


def test_votes_are_blind_compared_with_the_judge_and_saved_as_pairs_that_pobench_reads(opened, tmp_path) -> None:
    reader = unpacked(opened)
    choose(reader, "First", "SimPO")
    choose(reader, "Second", "DPO")
    reader.find_element(By.XPATH, ".//button[text()='Vote blind']").click()
    assert [e.text for e in reader.find_elements(By.CSS_SELECTOR, ".ballot header")] == ["Answer 1", "Answer 2"]
    shown = []
    for key in "120":
        shown.append([e.text for e in reader.find_elements(By.CSS_SELECTOR, ".ballot .text")])
        opened.switch_to.active_element.send_keys(key)
    opened.switch_to.active_element.send_keys(Keys.ESCAPE)
    said = reader.find_element(By.CSS_SELECTOR, ".result").text
    assert "3 votes, 1 without a preference." in said and "n = 2." in said and "judge" in said
    script = """
        const done = arguments[0], make = URL.createObjectURL;
        URL.createObjectURL = (blob) => { blob.text().then(done); return make.call(URL, blob); };
        [...document.querySelectorAll(".reader .result button")].at(-1).click();"""
    file = tmp_path / "votes.jsonl"
    file.write_text(opened.execute_async_script(script), "utf-8")
    saved = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
    assert [set(pair) for pair in saved] == [{"prompt", "chosen", "rejected"}] * 2
    assert len(list(read_rows(file))) == 2
    first, second = (pair["chosen"].strip()[:40] for pair in saved)
    assert shown[0][0].startswith(first[:8]) and shown[1][1].startswith(second[:8])


# ---------------------------------------------------------------- narrowing
SEEN = "return [...document.querySelectorAll(%r)].filter((e) => e.checkVisibility({ visibilityProperty: true })).length"


def test_a_loss_without_its_tick_leaves_tables_figures_and_answers(opened) -> None:
    rows = """return [...document.querySelectorAll('[id$=main-table] tbody th')].filter((e) => e.checkVisibility())
        .map((e) => e.textContent)"""
    assert "SimPO" in opened.execute_script(rows)
    marks = "[id$=pass-rate] svg [data-loss=simpo]"
    assert opened.execute_script(SEEN % marks) > 1
    opened.find_element(By.CSS_SELECTOR, ".narrow summary").click()
    opened.find_element(By.XPATH, "//*[contains(@class, 'narrow')]//label[text()='SimPO']").click()
    left = opened.execute_script(rows)
    assert "SimPO" not in left and "DPO" in left and "Start model" in left
    assert opened.execute_script(SEEN % marks) == 0 and opened.execute_script(SEEN % marks.replace("simpo", "dpo")) > 1
    assert opened.current_url.endswith("#not=simpo")
    opened.refresh()  # the choice stands in the address
    assert opened.execute_script(rows) == left


def test_two_pinned_losses_are_compared_with_their_interval(opened, page) -> None:
    opened.find_element(By.CSS_SELECTOR, ".narrow summary").click()
    for title in ("SimPO", "DPO"):
        opened.find_element(By.CSS_SELECTOR, f"[aria-label='pin {title} to compare it']").click()
    versus = opened.find_element(By.CSS_SELECTOR, ".versus")
    WebDriverWait(opened, 600).until(lambda _: "points" in versus.text)
    pairs = pd.read_csv(next(page.parent.rglob("who-beats-whom.csv"))).set_index(["row", "column"])
    e = pairs.loc["SimPO", "DPO"]
    signed = [f"{number:+.1f}".replace("-", "−") for number in (e["value"], e["low"], e["high"])]
    assert f"SimPO − DPO: {signed[0]} points [{signed[1]}, {signed[2]}], n = 24 prompts: no verdict" in versus.text
    assert "Pass rate" in versus.text
    reader = unpacked(opened)
    assert [e.text for e in reader.find_elements(By.CSS_SELECTOR, ".one:first-child header b")][:2] == ["SimPO", "DPO"]


def test_a_number_leads_to_its_losss_runs(opened) -> None:
    row = opened.find_element(By.XPATH, "//table[contains(@class, 'sortable')]//tr[th[starts-with(., 'DPO')]]")
    script = "arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})"
    cell = row.find_element(By.CSS_SELECTOR, "td.num")
    opened.execute_script(script, cell)
    cell.click()
    reached = opened.find_element(By.CSS_SELECTOR, "tr:target")
    assert "-runs--" in reached.get_attribute("id") and reached.text.startswith("DPO")
    assert opened.get_log("browser") == []


@pytest.mark.slow
def test_a_shared_site_that_is_served_loads_answers_takes_votes_and_leads_from_a_number_to_its_run(
    browser, tmp_path
) -> None:
    root = tmp_path / "runs"
    start_run(root)
    for seed, name in enumerate(("simpo-0123456789ab", "simpo-aaaaaaaaaaaa", "dpo-bbbbbbbbbbbb")):
        trained_run(root, name, seed=seed, passed=seed / 2)
    share(root, tmp_path / "site", figures=["main-table"])
    serve = [sys.executable, "-u", "-m", "http.server", "0", "--bind", "127.0.0.1", "--directory", tmp_path / "site"]
    with subprocess.Popen(serve, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as server:
        try:
            port = re.search(r"port (\d+)", server.stdout.readline())[1]
            browser.get(f"http://127.0.0.1:{port}/")
            browser.execute_script("document.querySelectorAll('details.fold').forEach((fold) => (fold.open = true))")
            reader = unpacked(browser)
            WebDriverWait(browser, 60).until(lambda b: "More seeds and samples" in reader.text)
            choose(reader, "More seeds", "SimPO")
            reader.find_element(By.XPATH, ".//button[text()='Load all its answers']").click()
            WebDriverWait(browser, 60).until(lambda b: "SimPO, seed 1, sample 1" in reader.text)
            choose(reader, "First", "SimPO, seed 1, sample 1")
            choose(reader, "Second", "DPO")
            assert "tiny/simpo-aaaaaaaaaaaa" in reader.find_element(By.CSS_SELECTOR, ".text").text
            reader.find_element(By.XPATH, ".//button[text()='Vote blind']").click()
            browser.switch_to.active_element.send_keys("1", Keys.ESCAPE)
            assert "1 vote" in reader.find_element(By.CSS_SELECTOR, ".result").text
            number = browser.find_element(By.XPATH, "//tr[th[starts-with(., 'DPO')]]/td[contains(., 'n =')]")
            browser.execute_script("arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})", number)
            number.click()
            WebDriverWait(browser, 60).until(lambda b: "/runs/tiny/dpo-bbbbbbbbbbbb.html#metric-" in b.current_url)
            assert browser.find_element(By.CSS_SELECTOR, ":target").is_displayed()
            said = [entry for entry in browser.get_log("browser") if f":{port}/" in entry["message"]]
            assert [entry["message"] for entry in said if "favicon" not in entry["message"]] == []
        finally:
            server.terminate()


def test_a_short_digest_shows_itself_whole_and_a_heading_has_a_link_of_its_own(opened) -> None:
    run = opened.find_element(By.CSS_SELECTOR, "[id$='-runs'] [data-full]")
    short, whole = run.text, run.get_attribute("data-full")
    assert whole.rpartition("/")[2].startswith(short) and len(short) < len(whole.rpartition("/")[2])
    opened.execute_script("arguments[0].focus()", run)
    ActionChains(opened).send_keys(Keys.ENTER).perform()
    assert run.text == whole and opened.execute_script("return getSelection().toString()") == whole
    heading = opened.find_element(By.CSS_SELECTOR, "[id$='-main-table'] .head > *")
    anchor = heading.find_element(By.CSS_SELECTOR, "a.anchor")
    ActionChains(opened).move_to_element(heading).perform()
    assert opened.execute_script("return getComputedStyle(arguments[0]).opacity", anchor) == "1"
    anchor.click()
    assert opened.current_url.endswith("-main-table")
    rows = opened.execute_script("return [...document.querySelectorAll('tr[id]')].map((row) => row.id)")
    assert len(rows) == len(set(rows)) > 20
