"""The documentation's site: MkDocs builds it without a warning, and its pages quote what the code says."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    folder = tmp_path_factory.mktemp("site")
    build(load_config(str(ROOT / "mkdocs.yml"), site_dir=str(folder)))  # strict: a warning is an error
    return folder


def test_the_site_has_every_page_and_the_readme_in_front(site) -> None:
    pages = {path.name.replace(".md", ".html") for path in (ROOT / "docs").glob("*.md")}
    assert len(pages) >= 20 and pages <= {path.name for path in site.glob("*.html")}
    front = (site / "index.html").read_text(encoding="utf-8")
    assert "Which preference-optimization objective is really better" in front and 'href="start.html"' in front
    assert (site / "reports/examples/smollm2/report.html").stat().st_size > 100_000


def test_a_page_of_the_site_loads_nothing_from_elsewhere(site) -> None:
    loaded = re.findall(r"<(?:script|img|iframe)[^>]*\ssrc=\"([^\"]+)\"", (site / "start.html").read_text("utf-8"))
    styles = re.findall(r"<link[^>]*rel=\"stylesheet\"[^>]*href=\"([^\"]+)\"", (site / "start.html").read_text("utf-8"))
    assert loaded and styles and not [address for address in loaded + styles if re.match(r"(?:https?:)?//", address)]


def texts_of_the_code() -> str:
    """Every text in the instrument, those in pieces put together, `…` for a value."""
    found = []
    for path in (ROOT / "pobench").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                found.append("".join(str(v.value) if isinstance(v, ast.Constant) else "…" for v in node.values))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return "\n".join(found)


def test_the_messages_on_their_page_are_in_the_code() -> None:
    quoted = re.findall(r'^## "(.*)"$', (ROOT / "docs/messages.md").read_text(encoding="utf-8"), re.MULTILINE)
    said = texts_of_the_code()
    assert len(quoted) > 10 and [text for text in quoted if text not in said] == []


def test_the_figures_that_the_questions_name_are_drawn() -> None:
    from pobench.registry import figures, losses

    text = (ROOT / "docs/questions.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`([a-z]+(?:-[a-z]+)+)`", text))
    assert len(named) >= 4 and named <= set(figures.names())
    assert {"dpop", "caldpo", "apo_zero", "kto_unpaired"} <= set(losses.names())
