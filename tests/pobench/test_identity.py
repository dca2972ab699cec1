"""A name follows what decides a result, and nothing else."""

from __future__ import annotations

import importlib.util
import sys
import textwrap
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pobench.identity import MATH, _file_of, _imported, _shipped_files, changed, code_digest, meaning, name_of
from pobench.registry import get_loss, list_losses

plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-9, 9)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(max_size=4), plain, max_size=5))
def test_a_name_is_twelve_hex_digits_and_ignores_the_order_of_causes(causes) -> None:
    name = name_of(causes)
    assert len(name) == 12 and int(name, 16) >= 0
    assert name == name_of(dict(reversed(causes.items())))


@given(st.dictionaries(st.text(min_size=1, max_size=4), plain, min_size=1, max_size=5), st.data())
def test_a_changed_cause_changes_the_name_and_is_named(causes, data) -> None:
    key = data.draw(st.sampled_from(sorted(causes)))
    other = {**causes, key: ["something", "else", causes[key]]}
    assert name_of(other) != name_of(causes)
    assert changed(causes, other) == [key]


def test_nested_causes_are_named_by_their_path() -> None:
    assert changed({"train": {"lr": 1, "epochs": 1}}, {"train": {"lr": 2, "epochs": 1}}) == ["train.lr"]
    assert changed({"a": 1}, {"a": 1, "b": None}) == []  # absent and none are the same


# ---------------------------------------------------------------- source
LOSS = '''
"""Mine."""
import helper
from beside import scale

def mine(policy):
    """What it does."""
    return scale(policy) - 1.0  # a margin
'''


def registered(folder: Path, name: str = "loss_file"):
    """The function `mine` of a plug-in, imported as `load_plugin` does."""
    spec = importlib.util.spec_from_file_location(name, folder / "mine.py")
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(folder))
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(folder))
        for loaded in ("helper", "beside", "deeper"):
            sys.modules.pop(loaded, None)
    return module.mine


@pytest.fixture
def plugin(tmp_path) -> Path:
    (tmp_path / "mine.py").write_text(LOSS)
    (tmp_path / "helper.py").write_text("import deeper\n")
    (tmp_path / "deeper.py").write_text("CONSTANT = 1\n")
    (tmp_path / "beside.py").write_text("def scale(x):\n    return 2 * x\n")
    (tmp_path / "stranger.py").write_text("UNUSED = 1\n")
    return tmp_path


def test_words_and_layout_of_a_plugin_do_not_count(plugin) -> None:
    before = code_digest(registered(plugin))
    text = (
        LOSS.replace("Mine.", "Mine, said better.").replace("# a margin", "# the margin").replace("What it", "How it")
    )
    (plugin / "mine.py").write_text(text + "\n\n\n")
    (plugin / "stranger.py").write_text("UNUSED = 2\n")
    assert code_digest(registered(plugin)) == before


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [("mine.py", "1.0", "1.5"), ("beside.py", "2 * x", "3 * x"), ("helper.py", "import deeper", "import deeper, json"),
     ("deeper.py", "= 1", "= 2")],
)  # fmt: skip
def test_the_formula_counts_and_so_does_what_it_imports_from_its_folder(plugin, file, old, new) -> None:
    before = code_digest(registered(plugin))
    (plugin / file).write_text((plugin / file).read_text().replace(old, new))
    meaning.cache_clear()
    assert code_digest(registered(plugin)) != before


def test_a_plugin_may_be_moved_to_another_folder(plugin, tmp_path_factory) -> None:
    other = tmp_path_factory.mktemp("other")
    for path in plugin.glob("*.py"):
        (other / path.name).write_text(path.read_text())
    assert code_digest(registered(other, "another_name")) == code_digest(registered(plugin))


def test_a_function_without_a_file_counts_by_its_byte_code() -> None:
    made: dict = {}
    exec("def one(x):\n    return x + 1\ndef other(x):\n    return x + 2", made)
    assert code_digest(made["one"]) != code_digest(made["other"])


def test_shipped_losses_count_by_their_own_file() -> None:
    digests = {name: code_digest(get_loss(name).function) for name in ("simpo", "dpo", "ipo")}
    assert len(set(digests.values())) == 3


def test_a_shipped_loss_counts_by_all_that_it_computes_with() -> None:
    files = {name: [p.name for p in _shipped_files(_path(name))] for name in list_losses()}
    assert files["dpo"] == ["dpo.py"] and files["pro"] == ["pro.py", "loss_math.py", "list_math.py"]
    ours = {
        name.split(".")[1] for loss in list_losses() for name in _imported(_path(loss)) if name.startswith("pobench.")
    }
    assert ours <= {
        "types",
        "registry",
        *(name.removeprefix("pobench.") for name in MATH),
    }  # types and registry compute nothing


def _path(loss: str) -> Path:
    path = _file_of(get_loss(loss).function)
    assert path is not None
    return path


def test_what_a_registration_says_for_readers_does_not_count() -> None:
    shown = '@register_loss("x", source="a", colour="red", title="X", {})\ndef x(policy): return policy'
    one, other = shown.format("runtime=('a',)"), shown.format("runtime=('a',)").replace("red", "blue")
    assert meaning(one) == meaning(other) != meaning(shown.format("runtime=('b',)"))


def test_meaning_keeps_everything_but_words() -> None:
    source = textwrap.dedent(
        '''
        """Doc."""
        def f(x):
            """Only words."""
        class A:
            """Doc."""
            y = "a string that is no docstring"
        '''
    )
    assert meaning(source) == "def f(x):\n    pass\n\nclass A:\n    y = 'a string that is no docstring'"
