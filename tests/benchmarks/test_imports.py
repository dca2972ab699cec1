"""What an import takes."""

from __future__ import annotations

import sys

import pytest


@pytest.mark.skipif(sys.platform != "linux", reason="memory is read where Linux shows it")
def test_an_import_is_weighed_by_itself_and_what_is_not_installed_is_told() -> None:
    import imports

    small, large = (imports.measure(name) for name in ("colorsys", "asyncio"))
    assert 0 <= small["bytes"] < large["bytes"] and small["modules"] < large["modules"] and large["seconds"] > 0
    assert imports.measure("no_such_package") == "ModuleNotFoundError: No module named 'no_such_package'"
