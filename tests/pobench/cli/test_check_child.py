"""A plug-in is tried in a process of its own: it may loop, end the program or crash, and `check` says so."""

from __future__ import annotations

import pytest

from pobench.cli.child import in_child
from pobench.errors import PobenchError


def test_a_plugin_that_does_not_return_is_stopped(pobench_cli, tmp_path) -> None:
    (tmp_path / "loops.py").write_text("while True:\n    pass\n")
    status, _, err = pobench_cli("check", "loops.py", "--limit", "1")
    assert status == 2 and "'loops.py' did not end within 1 s and was stopped; --limit SECONDS gives it longer" in err


def test_what_ends_the_process_is_said(pobench_cli, tmp_path) -> None:
    (tmp_path / "ends.py").write_text("import os\nos._exit(0)\n")
    status, _, err = pobench_cli("check", "ends.py")
    assert status == 2 and "'ends.py' ended the process in which it was tried" in err


def test_values_come_one_by_one_and_a_fault_behind_them_is_raised() -> None:
    def some():
        yield {"law": "first"}
        raise PobenchError("no more")

    given = in_child(some, 600, "some")
    assert next(given) == {"law": "first"}
    with pytest.raises(PobenchError, match=r"^no more$"):
        next(given)
