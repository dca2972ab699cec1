"""The page of all keys of a setting, docs/keys.md, printed by `pobench list keys --markdown` from the schema."""

from __future__ import annotations

from pobench.settings.keys import Key, KeySection, key_sections

INTRODUCTION = """\
# Every key of a setting

<!-- Written by `make docs` from pobench/settings/schema.py; edit that file. -->

A setting is a YAML file ([settings.md](settings.md)). `--set KEY=VALUE` takes the keys as they stand here, those of the file
itself and of lists excepted. An unknown key, a wrong type and a value out of range are refused, all faults together.
`pobench list keys` prints these keys in the terminal, `pobench list keys train` those of a section, and
`pobench list keys train.lr` one in full.

A key that decides a result is part of what the result is named by ([results.md](results.md)): with another value another one
is made, beside the first. One that decides none changes how a job runs, or what is written about it, and may differ from one
command to the next. `tune`, `onpolicy` and `rounds` decide searches, made pairs and rounds; what comes of them names runs.

Where no default stands, the setting must say the value, or the key is a section, whose keys have their own. A whole number
whose upper end does not stand here is at most 1,000,000,000; a seed has 64 bits.

Beside these, `losses.NAME` takes the settings of that loss ([losses.md](losses.md)) and, for this loss alone, any key of
`train`; `benchmarks.NAME` takes those of a benchmark ([benchmarks.md](benchmarks.md)), and `judge.settings` those of a judge
([judges.md](judges.md))."""


def key_page() -> str:
    """The page as Markdown: a section of the page for each of a setting."""
    return "\n\n".join([INTRODUCTION, *map(_section, key_sections())]) + "\n"


def _section(section: KeySection) -> str:
    title = section.name or "The file itself"
    read_by = f"Read by {section.read_by}." if section.read_by else ""
    rows = ["| key | allowed | default | decides a result | meaning |", "| --- | --- | --- | --- | --- |"]
    return "\n\n".join(
        filter(None, [f"## {title}", section.about, read_by, "\n".join([*rows, *map(_row, section.keys)])])
    )


def _row(key: Key) -> str:
    default = f"`{key.default}`" if key.default else ""
    cells = (f"`{key.name}`", key.allowed, default, "yes" if key.decides else "no", key.meaning)
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') or '–' for cell in cells)} |"
