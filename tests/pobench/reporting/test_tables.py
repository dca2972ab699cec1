"""Tables as files: every format shows value, interval and n, and text from data does nothing but stand there."""

from __future__ import annotations

import io
import re
import shutil
import subprocess

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pobench.reporting import plot, tables
from pobench.types import Estimate

LABELS = ["SimPO|x", "R&D_50%", "[a] \\b {c} ~^#$", "* star", "β → ⟨U+202E⟩ 漢字", "a\nb\\\\", '"quoted" <b>']


def table(labels=("SimPO|x", "R&D_50%")) -> tables.Table:
    few = [Estimate(0.5, 0.4, 0.6, 10), Estimate.missing()]
    gains = [Estimate(-0.1, -0.2, -0.05, 10), Estimate(0.1, -0.05, 0.2, 10)]
    count = len(labels)
    frame = pd.DataFrame(
        {
            "Loss": list(labels),
            "pass_rate": (few * count)[:count],
            "pass_rate_gain": (gains * count)[:count],
            "Seconds": ([1234.5, float("nan")] * count)[:count],
        }
    )
    return tables.make_table(frame)


def latex_faults(text: str) -> list[str]:
    """What would stop LaTeX, or print something else than was meant, in a `tabular`."""
    faults = [f"character {c!r}" for c in set(text) if not (c.isascii() or "À" <= c <= "ÿ")]
    body = re.sub(r"^%.*\n", "", text)
    (columns,) = re.findall(r"\\begin\{tabular\}\{([lr]+)\}", body)
    rows = [line for line in body.splitlines() if not re.match(r"\\(begin|end|toprule|midrule|bottomrule)", line)]
    for row in rows:
        if not row.endswith(r" \\") or row.startswith(("[", "*")):
            faults.append(f"row {row!r}")
        bare = re.sub(r"\\[a-zA-Z]+|\\[&%$#_{},]|\$\\[a-zA-Z]+\$|\$-\$|\$\\\|\$", "", row.removesuffix(r" \\"))
        if bare.count("&") != len(columns) - 1:
            faults.append(f"{bare.count('&')} cells in {row!r}")
        faults += [f"{c!r} in {row!r}" for c in "%$#_^~\\" if c in bare]
        depth = 0
        for c in bare:
            depth += (c == "{") - (c == "}")
            if depth < 0:
                faults.append(f"brace in {row!r}")
        if depth:
            faults.append(f"brace in {row!r}")
    return faults


def test_markdown_shows_value_interval_and_n() -> None:
    lines = tables.to_markdown(table()).splitlines()
    assert lines[0] == "| Loss | Pass rate, % | Gain over start, points | Seconds |"
    assert lines[2] == "| SimPO\\|x | 50.0 [40.0, 60.0] (n = 10) | −10.0 [−20.0, −5.0] (n = 10) | 1\u202f234 |"
    assert "| – |" in lines[3]


@given(st.text())
def test_markdown_of_any_text_is_one_line_without_a_bare_sign(text) -> None:
    said = tables.markdown(tables.clean(text))
    bare = re.sub(r"`[^`]+`", "", re.sub(r"\\.", "", said))  # code needs no escape
    assert "\n" not in said and not re.search(r"[*`<>|\[\]]", bare)


def test_commands_and_names_are_code_in_markdown() -> None:
    assert (
        tables.markdown("A verdict needs `--seeds 42,43`; a*b, ` alone")
        == "A verdict needs `--seeds 42,43`; a\\*b, \\` alone"
    )
    assert tables.markdown("`<b>|`") == r"\`\<b\>\|\`", "what would break a table or be HTML is no code"


def test_latex_escapes_and_csv_keeps_raw_numbers() -> None:
    tex = tables.to_latex(table())
    assert r"R\&D\_50\%" in tex and r"$-$10.0" in tex and tex.count(r"\\") == 3
    raw = pd.read_csv(io.BytesIO(plot.csv(tables.numbers(table().frame))))
    assert raw.loc[0, "pass_rate_low"] == 0.4 and raw.loc[1, "pass_rate_n"] == 0
    assert raw["pass_rate"].isna().tolist() == [False, True]


def test_latex_has_nothing_that_stops_latex() -> None:
    assert latex_faults(tables.to_latex(table(LABELS))) == []


@given(st.lists(st.text(min_size=1), min_size=1, max_size=4))
def test_no_label_breaks_latex(labels) -> None:
    assert latex_faults(tables.to_latex(table(labels))) == []


def test_the_check_of_latex_finds_faults() -> None:
    good = tables.to_latex(table())
    for bad in (good.replace(r"\%", "%"), good.replace(r"\_", "_"), good.replace("SimPO", "[SimPO"), good + "漢"):
        assert latex_faults(bad), bad
    assert latex_faults(good.replace("SimPO", "{SimPO")) and latex_faults(good.replace("SimPO", "&SimPO"))


@pytest.mark.skipif(not shutil.which("pdflatex"), reason="no pdflatex on this machine")
def test_latex_compiles(tmp_path) -> None:
    needs, text = "".join(tables.TEX_NEEDS), tables.to_latex(table(LABELS))
    (tmp_path / "t.tex").write_text(f"\\documentclass{{article}}{needs}\\begin{{document}}\n{text}\\end{{document}}\n")
    command = ["pdflatex", "-halt-on-error", "-interaction=nonstopmode", "t.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-2000:]


def test_only_an_interval_without_zero_gets_a_sign() -> None:
    rows = table().rows
    assert [row[2].sign for row in rows] == ["down", ""]
    assert rows[1][1].text == "–" and rows[1][1].n == ""


def test_an_end_that_only_nearly_touches_a_bound_shows_the_digit_that_tells() -> None:
    frame = pd.DataFrame(
        {"Ours": pd.Series([Estimate(0.31, 0.0996, 0.52, 9), Estimate(0.31, 0.0996, 0.52, 9)], dtype=object)}
    )
    frame.attrs["bounds"] = [(0.1,), (0.0,)]
    beside, elsewhere = (row[0].interval for row in tables.make_table(frame).rows)
    assert (beside, elsewhere) == ("[0.0996, 0.5200]", "[0.10, 0.52]")
    gains = pd.DataFrame(
        {"pass_rate_gain": pd.Series([Estimate(0.02, 0.0002, 0.04, 9), Estimate(0.02, 0.01, 0.03, 9)])}
    )
    assert [row[0].interval for row in tables.make_table(gains).rows] == ["[+0.02, +4.00]", "[+1.0, +3.0]"]
