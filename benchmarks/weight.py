"""Weigh report pages: bytes, elements when opened, and time to the first screen in Chromium.

    python benchmarks/weight.py report.html …

Prints a row a page as Markdown. Times are medians of five loads from disk; they hold for this machine. Needs Chromium, its
driver and selenium (the extra `dev`).
"""

from __future__ import annotations

import argparse
import shutil
import statistics
from pathlib import Path
from typing import Any

from selenium import webdriver

LOADS = 5
MEASURE = """
const done = arguments[0];
const [load] = performance.getEntriesByType("navigation");
const told = (list, watching) => {
  const [paint] = list.getEntriesByName("first-contentful-paint");
  if (!paint) return;
  watching.disconnect();
  done([document.getElementsByTagName("*").length, paint.startTime, load.domContentLoadedEventEnd]);
};
new PerformanceObserver(told).observe({ type: "paint", buffered: true });
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pages", nargs="+", type=Path)
    pages = parser.parse_args().pages
    browser = open_browser()
    try:
        print("| page | MB | elements | first paint, ms | script done, ms |")
        print("| :--- | ---: | ---: | ---: | ---: |")
        for page in pages:
            nodes, paint, done = weigh(browser, page)
            print(f"| {page} | {page.stat().st_size / 1e6:.2f} | {nodes:,.0f} | {paint:.0f} | {done:.0f} |", flush=True)
    finally:
        browser.quit()


def open_browser() -> Any:
    """Chromium without a window, 1400 pixels wide."""
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or shutil.which("google-chrome") or ""
    for argument in ("--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"):
        options.add_argument(argument)
    options.add_argument("--window-size=1400,1000")
    return webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))


def weigh(browser: Any, page: Path) -> tuple[float, float, float]:
    """(elements when opened, ms to the first paint, ms until the page's script has run): medians of `LOADS` loads."""
    found = []
    for _ in range(LOADS):
        browser.get("about:blank")
        browser.get(page.resolve().as_uri())
        found.append(browser.execute_async_script(MEASURE))
    nodes, paint, done = map(statistics.median, zip(*found, strict=True))
    return nodes, paint, done


if __name__ == "__main__":
    main()
