"""docs/losses.md and docs/frames.md are what the losses and `pobench.columns` say, today."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from pobench.columns import FRAMES
from pobench.registry import Registry, get_loss, list_losses, register_loss
from pobench.reporting import loss_page as page
from pobench.reporting.frame_page import frame_page
from pobench.types import LossOutput, Pair

WRITTEN = Path(__file__).parents[1] / "docs/losses.md"
LOSSES = list_losses()


@pytest.fixture(scope="module")
def text() -> str:
    return page.loss_page()


@pytest.fixture
def empty(monkeypatch: pytest.MonkeyPatch) -> Registry[Any]:
    fresh: Registry[Any] = Registry("loss", "pobench.losses")
    fresh._loaded = True
    monkeypatch.setattr("pobench.registry.losses", fresh)
    monkeypatch.setattr(page, "losses", fresh)
    return fresh


def section(text: str, title: str) -> str:
    return text.partition(f"### {title}\n")[2].partition("\n### ")[0]


def test_the_written_page_is_todays(text) -> None:
    written = WRITTEN.read_text(encoding="utf-8") if WRITTEN.exists() else ""
    assert written == text, "docs/losses.md is stale: run `make docs`"


def test_the_written_page_of_frames_is_todays() -> None:
    written = WRITTEN.with_name("frames.md").read_text(encoding="utf-8")
    assert written == frame_page(), "docs/frames.md is stale: run `make docs`"
    for frame in FRAMES.values():
        assert f"\n## {frame.name}\n" in written and all(f"\n| `{name}` | " in written for name in frame.names)


def test_the_page_is_the_same_twice(text) -> None:
    assert page.loss_page() == text


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_has_its_section(name, text) -> None:
    loss = get_loss(name)
    found = section(text, loss.title)
    assert loss.gradient in found
    for part in (f"`{name}`", "**Reward:**", "**Elsewhere:**", "**Beware:**", *loss.formula.splitlines()):
        assert part in found, f"{name}: the page lacks {part!r}"
    assert "TRL" in found, f"{name}: say in its docstring how TRL's version differs, or that TRL has none"


@pytest.mark.parametrize("name", LOSSES)
def test_every_setting_is_explained(name) -> None:
    loss = get_loss(name)
    unexplained = [s for s in loss.settings if s not in loss.meanings and s not in page.MEANINGS]
    assert not unexplained, f"{name}: give `meanings` of {', '.join(unexplained)} to register_loss"
    without_source = [s for s in loss.settings if s not in loss.defaults]
    assert not without_source, f"{name}: say in `defaults` where those of {', '.join(without_source)} come from"


def test_the_papers_losses_come_first(text) -> None:
    names = {get_loss(name).title: name for name in LOSSES}
    ours = [names[title] for title in re.findall(r"^### (.*)$", text, re.MULTILINE)]
    assert sorted(ours) == LOSSES
    last = max(ours.index(n) for n in LOSSES if get_loss(n).in_paper)
    assert set(ours[: last + 1]) == {*(n for n in LOSSES if get_loss(n).in_paper), "simpo_sft"}


def test_every_row_of_a_table_has_its_columns(text) -> None:
    width = None
    for line in text.splitlines():
        if not line.startswith("| "):
            width = None
            continue
        cells = len(re.split(r"(?<!\\)\|", line))
        assert width in (None, cells), line
        width = cells


def test_links_of_the_summary_lead_to_sections(text) -> None:
    headings = {page._anchor(h) for h in re.findall(r"^#+ (.*)$", text, re.MULTILINE)}
    links = re.findall(r"\]\(#(.*?)\)", text)
    assert len(links) == len(LOSSES) and set(links) <= headings


def test_the_weights_are_the_slopes_at_the_defaults() -> None:
    short, rightly, wrongly = page.TYPICAL
    # DPO, β = 0.1: -β σ(-β Δ) with Δ = 0, 40, -40 nats
    assert page.weights(get_loss("dpo"), short) == pytest.approx((-0.05, 0.05))
    assert page.weights(get_loss("dpo"), rightly) == pytest.approx((-0.1 * 0.0179862, 0.1 * 0.0179862), rel=1e-5)
    # SimPO, β = 2, γ = 1: the margin is 0, so -β σ(γ) / |w| = -2 · 0.7310586 / 30, and 2 · 0.7310586 / 150
    assert page.weights(get_loss("simpo"), short) == pytest.approx((-0.0487372, 0.0097474), rel=1e-5)
    # KTO at kl = 0: -β σ(2) σ(-2) = -0.1 · 0.1049936 a side at β · 20 nats
    assert page.weights(get_loss("kto"), wrongly) == pytest.approx((-0.0104994, 0.0104994), rel=1e-5)


def test_a_loss_of_a_users_own_gets_a_section_of_what_it_has(empty) -> None:
    @register_loss("mine", source="my | notebook")
    def mine(policy: Pair, *, steepness: float = 1.0) -> LossOutput:
        """Mine: as simple as can be.

            loss = -chosen

        Of no use.
        """
        return LossOutput(-steepness * policy.chosen.total, policy.chosen.mean, policy.rejected.mean)

    text = page.loss_page()
    assert "my \\| notebook |" in text
    found = section(text, "mine")
    assert "As simple as can be." in found and "Of no use." in found and "Gradient" not in found
    assert "| `steepness` | – | – | 1 | – | – |" in found
    assert "| ranked wrongly | 80 / 80 | -100 / -60 | – | -1 | 0 |" in found


def test_the_papers_page_names_figures_and_studies_that_exist() -> None:
    from pobench.registry import figures
    from pobench.workflows.study_file import list_studies

    rows = [
        line.split("|")[1:-1] for line in (WRITTEN.parent / "paper.md").read_text("utf-8").splitlines() if "|" in line
    ]
    named = [re.findall(r"`([a-z][a-z-]+)`", cell) for _, *cells in rows for cell in cells]
    drawn, made_by = {n for names in named[0::2] for n in names}, {n for names in named[1::2] for n in names}
    assert len(drawn) > 15 and drawn <= set(figures.names())
    assert len(made_by) > 6 and made_by <= set(list_studies())
