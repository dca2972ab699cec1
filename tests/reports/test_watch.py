"""The page of `pobench watch` in a browser: which job it is, its alarms, hostile names as text, and in the end the report."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pobench.runs.command import Command, Entry
from pobench.workflows.watch import make_server

webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.support.ui import WebDriverWait  # noqa: E402

BROWSER, DRIVER = shutil.which("chromium") or shutil.which("google-chrome"), shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(not (BROWSER and DRIVER), reason="no chromium with chromedriver on this machine")
HOSTILE = "<img src=x onerror=\"document.title='broken into'\">"


@pytest.fixture
def browser(tmp_path) -> Iterator[Any]:
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for word in (
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-background-networking",
        "--window-size=390,900",
    ):
        options.add_argument(word)
    options.add_argument(f"--user-data-dir={tmp_path / 'profile'}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


def write(runs: Path, *states: str) -> None:
    """A command of three jobs: the second trains, and its title is markup."""
    run = runs / "tiny" / "simpo-000000000001"
    run.mkdir(parents=True, exist_ok=True)
    facts = [("start model", ("answers",), "start.evaluate"), (HOSTILE, ("train",), "simpo.train"),
             ("simpo, seed 1", ("answers", "judge"), "simpo.evaluate")]  # fmt: skip
    jobs = [
        Entry(str(runs / place), "tiny/simpo-000000000001", title, "loss", stages, str(run), {}, 40.0, state, 1.0, 30.0)
        for (title, stages, place), state in zip(facts, states, strict=True)
    ]
    Command(runs / "tiny" / "command.json", tuple(jobs), began=1.0).write()


def test_the_page_shows_job_and_alarms_and_becomes_the_report(browser, tmp_path) -> None:
    runs = tmp_path / "runs"
    write(runs, "finished", "running", "waiting")
    rows = (f'{{"step": {k}, "loss": {1 / k}, "grad_norm": {99 if k == 40 else 2}}}\n' for k in range(1, 61))
    (runs / "tiny" / "simpo-000000000001" / "steps.jsonl").write_text("".join(rows))

    def text(name: str) -> str:
        return str(browser.find_element(By.ID, name).text)

    with make_server(runs) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        wait = WebDriverWait(browser, 600, poll_frequency=0.05)
        browser.get(f"http://127.0.0.1:{server.server_port}/")
        wait.until(lambda _: len(browser.find_elements(By.CSS_SELECTOR, ".curves svg")) == 2)
        assert text("now") == f"job 2 of 3 · {HOSTILE}" and browser.title == "job 2 of 3 · pobench"
        assert "of step 40 was 99, 50 times its median" in text("alarms") and "left of all jobs" in text("left")
        assert [row.text.split()[0] for row in browser.find_elements(By.CSS_SELECTOR, "#jobs tr")] == ["1", "2", "3"]
        wider = "return document.documentElement.scrollWidth - document.documentElement.clientWidth"
        assert browser.execute_script(wider) <= 0, "a narrow window need not scroll sideways"
        assert browser.get_log("browser") == [], "no error, and nothing that the policy forbids"
        write(runs, "finished", "finished", "finished")
        (runs / "report").mkdir()
        (runs / "report" / "report.html").write_text("<title>the report</title>")
        wait.until(lambda _: browser.title == "the report")
        server.shutdown()
