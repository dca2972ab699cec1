"""What MkDocs reads besides `docs/`: the README as the first page, the changelog, and the reports of reports/examples.

Every page stays where it is in the repository, where its links work too. Here the files take a place in the site, and links
that leave `docs/` lead there.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
SHOWN = (".md", ".html", ".png", ".csv")  # of reports/examples; their frames stay in the repository


def on_files(files: Files, config: Any) -> Files:
    """Give the pages outside `docs/` their places."""
    places = {
        "index.md": ROOT / "README.md",
        "CHANGELOG.md": ROOT / "CHANGELOG.md",
        "SECURITY.md": ROOT / "SECURITY.md",
    }
    for folder in ("reports/examples", "benchmarks"):
        for path in sorted((ROOT / folder).rglob("*")):
            if path.suffix in SHOWN and "frames" not in path.parts:
                places[path.relative_to(ROOT).as_posix()] = path
    for place, path in places.items():
        files.append(File.generated(config, place, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Links out of the README lead to pages beside it, and links out of `docs/` to the places above."""
    if page.file.src_uri == "index.md":
        return markdown.replace("](docs/", "](")
    if "/" in page.file.src_uri:
        return markdown.replace("](../../docs/", "](../../").replace("](../../README.md", "](../../index.md")
    return re.sub(r"\]\(\.\./README\.md", "](index.md", markdown).replace("](../", "](").replace("](docs/", "](")
