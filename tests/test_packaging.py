"""Five folders install as one name, and a wheel holds all that the program needs and nothing else."""

from __future__ import annotations

import ensurepip
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CONTENT = ("losses", "experiments", "analysis", "reports")
BUILD = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """The wheel of a copy of the sources, so that building leaves nothing behind here."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    junk = shutil.ignore_patterns("__pycache__", ".*")
    for folder in ("pobench", *CONTENT):
        shutil.copytree(ROOT / folder, source / folder, ignore=junk)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    built = subprocess.run([sys.executable, "-c", BUILD, str(out)], cwd=source, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr[-2000:]
    return zipfile.ZipFile(next(out.glob("*.whl")))


def test_the_packages_listed_are_the_folders_on_disk() -> None:
    setuptools = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    inner = {".".join(p.parent.relative_to(ROOT).parts) for p in (ROOT / "pobench").rglob("__init__.py")}
    packages = {f"pobench.{folder}" for folder in CONTENT} | {"pobench.losses.modifiers"}
    assert set(setuptools["packages"]) == inner | packages
    assert setuptools["package-dir"] == {"pobench": "pobench", **{f"pobench.{folder}": folder for folder in CONTENT}}
    assert all((ROOT / folder / "__init__.py").is_file() for folder in CONTENT)


@pytest.mark.parametrize("program", ["alpaca_eval.main", "lm_eval.__main__", "fastchat.llm_judge.show_result"])
def test_the_benchmarks_own_programs_start_without_pobench(program: str) -> None:
    started = subprocess.run([sys.executable, "-c", f"import {program}"], capture_output=True, text=True)
    assert started.returncode == 0, started.stderr[-2000:]


def test_a_wheel_installs_one_name(wheel) -> None:
    tops = {name.partition("/")[0] for name in wheel.namelist()}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"pobench"}
    assert not [name for name in wheel.namelist() if "test" in name or "recipes" in name]
    (metadata,) = (name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
    found = re.findall(r"^Provides-Extra: (.+)$", wheel.read(metadata).decode(), re.MULTILINE)
    assert found == list(extras()), "as they are asked for; pip of Python 3.11 finds no other spelling"


def test_a_wheel_holds_every_module_and_every_shipped_file(wheel) -> None:
    shipped = [p for folder in ("pobench", "losses", "analysis") for p in (ROOT / folder).rglob("*.py")]
    for folder in ("settings", "grids", "studies", "data", "models"):
        shipped += [p for p in (ROOT / "experiments" / folder).rglob("*") if p.is_file()]
    shipped += [p for p in (ROOT / "reports").glob("*") if p.suffix in (".html", ".css", ".js", ".md")]
    shipped += (ROOT / "pobench").rglob("*.txt")
    inside = set(wheel.namelist())
    names = [str(p.relative_to(ROOT)) for p in shipped if not p.name.startswith(".") and "__pycache__" not in p.parts]
    wanted = {name if name.startswith("pobench/") else f"pobench/{name}" for name in names}
    assert sorted(wanted - inside) == []
    assert any(name.endswith(".yaml") for name in wanted)


def test_an_unpacked_wheel_finds_its_content(wheel, tmp_path) -> None:
    wheel.extractall(tmp_path)
    code = (
        "import pobench, pobench.registry as r, pobench.settings.read as c\n"
        "print(pobench.__file__, r.get_loss('dpo').function.__code__.co_filename, c.setting_folder())\n"
        "print(','.join(r.list_losses()), ','.join(c.list_settings()))"
    )
    run = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr[-2000:]
    places, names = run.stdout.splitlines()
    assert all(Path(place).is_relative_to(tmp_path) for place in places.split())
    losses, settings = (set(part.split(",")) for part in names.split())
    assert losses == {p.stem for p in (ROOT / "losses").glob("[!_]*.py")}
    assert settings == {p.stem for p in (ROOT / "experiments/settings").glob("*.yaml")}


def extras() -> dict[str, list[str]]:
    """Extra → what it installs."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return dict(project["optional-dependencies"])


def test_every_extra_that_is_named_exists_and_is_spelled_with_hyphens() -> None:
    """Python 3.11's own pip installs nothing for `alpaca_eval` where the package says `alpaca-eval`."""
    texts = [*(ROOT / "pobench").rglob("*.py"), *(ROOT / "docs").glob("*.md"), ROOT / "README.md"]
    named = {
        extra.strip()
        for path in texts
        for listed in re.findall(r"pobench\[([^\]\n]+)\]['\"]", path.read_text(encoding="utf-8"))
        for extra in listed.split(",")
        if "{" not in extra  # a value of the program
    }
    assert named >= {"peft", "qlora", "trackers"} and named <= extras().keys()
    assert [name for name in extras() if name != re.sub(r"[-_.]+", "-", name).lower()] == []
    assert [extras()[name] for name in ("alpaca-eval", "mt-bench", "downstream", "endpoint")] == [[]] * 4  # core now


@pytest.mark.slow
def test_pythons_own_pip_finds_every_extra(wheel) -> None:
    bundled = next((Path(ensurepip.__file__).parent / "_bundled").glob("pip-*.whl"), None)
    if bundled is None:
        pytest.skip("this Python brings no pip along")
    asked = f"pobench[{','.join(extras())}] @ {Path(str(wheel.filename)).as_uri()}"
    options = ("--dry-run", "--no-deps", "--no-index", "--no-cache-dir", "--disable-pip-version-check")
    run = subprocess.run([sys.executable, f"{bundled}/pip", "install", *options, asked], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-2000:]
    assert "does not provide the extra" not in run.stdout + run.stderr


def test_the_dockerfile_is_without_a_fault_and_copies_what_the_package_is_made_of() -> None:
    run = subprocess.run([str(Path(sys.executable).with_name("hadolint")), "Dockerfile"], cwd=ROOT, capture_output=True)
    assert run.returncode == 0, run.stdout.decode()
    copied = re.findall(r"^COPY (.+) \S+$", (ROOT / "Dockerfile").read_text(encoding="utf-8"), re.MULTILINE)
    let_in = {line[1:] for line in (ROOT / ".dockerignore").read_text("utf-8").splitlines() if line.startswith("!")}
    assert {name for names in copied for name in names.split()} == let_in
    assert let_in == {"pobench", *CONTENT, "constraints.txt", "pyproject.toml", "README.md", "LICENSE"}
