"""Damages every kind of stored file in five ways, and looks who finds it and whether the repeated command makes it anew.

    python -m tests.faults.damage                       about a second of one core a case
    python -m tests.faults.damage --only model          kinds whose name holds a word
    python -m tests.faults.damage --place search,sft    some of the folders alone
    python -m tests.faults.damage --list                the kinds of each folder, no case
    python -m tests.faults.damage --json FILE           the cases as JSON, too

A folder is what one command leaves: runs and a cache. Its kinds of files are what lies in it, and what lay in it while the
command ran: for these the command is interrupted where such a file is there. A kind is tried in the first folder that has it,
and in others where a command behind it reads it in another way (`Place.of`). A case copies the folder, damages one file, and
asks three: `doctor --verify`, a report (all frames are read), and the repeated command. Each has to name the file, to do
without it, or to make it anew; the command must end with the results of the undamaged folder or refuse in one sentence, and
`doctor --verify` must find nothing after it.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import re
import shutil
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import yaml

from pobench.cli.analyze import write_report
from pobench.errors import PobenchError
from pobench.judging.benchmarks.base import Benchmark
from pobench.judging.benchmarks.downstream import Downstream, write_stand_ins
from pobench.registry import benchmarks
from pobench.results.load import load_frames
from pobench.results.run_folder import RunFolder
from pobench.runs import execute
from pobench.runs.plan import make_plan
from pobench.runs.stages import ALL, DEFAULT
from pobench.runs.verify import verify
from pobench.runs.worker import run
from pobench.settings.resolve import resolve
from pobench.training import reference
from pobench.workflows.search import tune
from pobench.workflows.tune import plan_tuning
from tests.faults.world import digest_of, make_world, results, save_reward_model
from tests.pobench.openai_server import Body, OpenAIServer, says
from tests.pobench.small_chat_model import save_chat_model


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 0xFF
    file.write_bytes(data)


def another_digit(file: Path) -> None:
    """A digit of text becomes another, which a parser does not see; else a bit flips. None so far behind in its number
    that both may be the same number to a computer."""
    data = bytearray(file.read_bytes())
    half = len(data) // 2
    places = [match.start() for match in re.finditer(rb"(?<![0-9.]{8})[0-9]", data)]
    data[min(places, key=lambda at: (abs(at - half), at), default=half)] ^= 1
    file.write_bytes(data)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "a flipped byte": flip,
    "another digit": another_digit,
    "cut to half": lambda file: file.write_bytes(file.read_bytes()[: file.stat().st_size // 2]),
    "empty": lambda file: file.write_bytes(b""),
    "gone": Path.unlink,
}
REPLIES = "cache/replies/…/….json"
LM_EVAL = ("truthfulqa_mc2", "winogrande")  # whose requests share a context, and have shots
OF_A_MODEL = ("model.safetensors", "config.json", "tokenizer.json")  # its other files are checked by the same code
# Of a name: files that differ in these are of one kind.
DIGITS = re.compile(
    r"[0-9a-f]{64}|[0-9a-f]{24}|[0-9a-f]{12}|(?<=checkpoint-)\d+|\d+-of-\d+|(?<=\.shards/)\d+|(?<=replies/)\w\w(?=/)"
)
REPORT = "/report/"
PASSING = (".lease", ".partial", ".taken")  # endings of files that are not stored
# What a finished training logged, and samples whose pairs are made: nothing reads them, and to make them anew costs as much as
# all of the stage. `doctor --verify` names them.
NOT_AGAIN = ("steps.jsonl", ".samples.jsonl")
# What has to be as before, besides weights and frames.
ALIKE = (
    "runs/*/onpolicy-*/**/*.jsonl", "runs/*/data-*/*.arrow", "runs/*/*/benchmarks/**/*.jsonl",
    "cache/density_ratio/*/*.safetensors",
)  # fmt: skip


class Case(NamedTuple):
    """place: the folder. verify, report: "named", "" (nothing was noticed), or "crashed: …". again: of the repeated command:
    "anew" (results as before), "refused: …", "failed: …", "differs: …" or "crashed: …". after: what `doctor --verify` says
    behind it. seconds: of a processor, for the repeated command."""

    place: str
    kind: str
    damage: str
    verify: str
    report: str
    again: str
    after: str
    seconds: float = 0.0

    @property
    def stays(self) -> bool:
        """Whether it is named, and not made anew."""
        named = self.verify == self.after == "named"
        return self.kind.endswith(NOT_AGAIN) and named and not self.again.startswith("crashed")

    @property
    def fault(self) -> bool:
        """Whether somebody crashed, or a wrong result was taken for a right one, or damage stays that nobody may mend."""
        accepted = self.stays or self.again.startswith("refused") or (self.again == "anew" and not self.after)
        return not accepted or any(found.startswith("crashed") for found in (self.verify, self.report))


# ---------------------------------------------------------------- folders, and the commands that make them
Again = Callable[
    [Path], list[str]
]  # does what is left of the command in a folder, in this process; why its runs failed


class Place(NamedTuple):
    """again: the command. begin: makes the folder that is damaged; None: the command does. of: a pattern of kinds that are
    tried here though an earlier folder has them. within: a pattern of those that are tried at all."""

    again: Again
    begin: Again | None = None
    of: str = "$^"
    within: str = ""

    def takes(self, kind: str, seen: Collection[str]) -> bool:
        """Whether a kind is tried here. seen: those of earlier folders."""
        if not re.search(self.within, kind) or (REPORT in kind and REPORT not in self.within):
            return False
        return kind not in seen or re.search(self.of, kind) is not None


def planned(setting: Path, losses: str, stages: tuple[str, ...], **options: Any) -> Again:
    """`pobench run`."""

    def again(folder: Path) -> list[str]:
        here(folder)
        jobs = resolve(str(setting), losses)
        outcomes = execute.plan_and_execute(lambda: make_plan(jobs, folder / "runs", stages, **options))[1]
        return [outcome.reason for outcome in outcomes if outcome.status == "failed"]

    return again


def here(folder: Path) -> None:
    os.environ["POBENCH_CACHE"] = str(folder / "cache")
    execute._fork = lambda *tasks: max(map(run, tasks))
    reference.SECONDS_BETWEEN_PARTS = 0.0  # each turn of a pass leaves a part


def interrupted(again: Again) -> Again:
    """The command, until its sixth step."""

    def begin(folder: Path) -> list[str]:
        log = RunFolder.log_step

        def until(run_folder: RunFolder, row: Any) -> None:
            log(run_folder, row)
            if row["step"] == 6:
                raise KeyboardInterrupt

        with mock.patch.object(RunFolder, "log_step", until), contextlib.suppress(KeyboardInterrupt):
            again(folder)
        return []

    return begin


def stopped(again: Again, kind: str, count: int = 1) -> Again:
    """The command, until so many files of a kind lie there."""

    def begin(folder: Path) -> list[str]:
        until(again, folder, kind, count)
        return []

    return begin


def changed(setting: Path, name: str, **sections: Any) -> Path:
    """A setting beside another, with other sections."""
    values = yaml.safe_load(setting.read_text()) | {"name": name} | sections
    path = setting.with_name(f"{name}.yaml")
    path.write_text(yaml.safe_dump(values))
    return path


def lines(path: Path, rows: list[Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def asks(world: Path, name: str, numbers: range, **more: Any) -> str:
    """A file of prompts."""
    return lines(world / f"{name}.jsonl", [{"id": f"{name}{i}", "prompt": f"say w{i}", **more} for i in numbers])


def places(world: Path) -> dict[str, Place]:
    """Folder → how it is made."""
    setting = make_world(world, epochs=1)
    whole_run = planned(setting, "dpo", DEFAULT)
    compared = changed(setting, "compared", judge={"name": "rehearsed"}, answers=_answers(setting, batch_size=1))
    stages = tuple(name for name in ALL if name not in ("sft", "onpolicy", "benchmarks"))

    def report(folder: Path) -> list[str]:
        here(folder)
        whole_run(folder)
        with contextlib.redirect_stderr(io.StringIO()):
            write_report(folder / "runs", None, "settings-table", None, "parquet")
        return []

    return {
        "runs": Place(planned(compared, "dpo,simpo", stages, opponents="all")),
        "interrupted": Place(whole_run, interrupted(whole_run), of="steps.jsonl|environment|trained|config.yaml"),
        **_before_runs(world, setting),
        **_of_other_data(world, setting),
        **_judged(world, setting),
        "search": Place(_search(world, setting), within="/tuning/[^/]*$"),
        "report": Place(report, within=f"{REPORT}|/looks/"),
    }


def _answers(setting: Path, **changes: Any) -> dict[str, Any]:
    return {**yaml.safe_load(setting.read_text())["answers"], **changes}


def _before_runs(world: Path, setting: Path) -> dict[str, Place]:
    """Of stages that stand before the runs: rounds on the model's own pairs, pairs that a reward model ranks, a start model."""
    asked = asks(world, "ask", range(30))
    own = {"prompts": asked, "samples": 6, "temperature": 2.0, "max_new_tokens": 40, "precision": "fp32"}
    own["held_out_fraction"] = 0.3
    rounds = changed(setting, "rounds", onpolicy={**own, "ranker": {"name": "rehearsed"}})
    judge = {"name": "reward_model"}
    judge["settings"] = {"model": str(save_reward_model(world)), "batch_size": 1, "precision": "fp32"}
    answered = _answers(setting, source=asks(world, "late", range(30, 50)), batch_size=4)
    ranked = changed(setting, "ranked", onpolicy={**own, "ranker": judge}, judge=judge, answers=answered)
    turns = [
        [{"role": r, "content": f"{c} w{i}"} for r, c in (("user", "say"), ("assistant", "w1"))] for i in range(12)
    ]
    chats = lines(world / "chats.jsonl", [{"messages": messages} for messages in turns])
    values = {"source": chats, "lr": 1e-3, "batch_size": 4, "precision": "fp32", "checkpoint_seconds": 0.0}
    read_again = "onpolicy|loss.*/(trained.json|model/model|config.yaml)"  # a round begins from the one before
    return {
        "rounds": Place(planned(rounds, "dpo", ("onpolicy", "train", "heldout"), rounds=2), of=read_again),
        "ranked": Place(planned(ranked, "dpo", ("onpolicy", "train", "answers", "judge"))),
        "sft": Place(planned(changed(setting, "sft", sft=values), "dpo", ("sft", "train", "heldout")), of="cache/sft"),
    }


def _of_other_data(world: Path, setting: Path) -> dict[str, Place]:
    """Of single answers, with density ratios and a value model, and of lists from two sources, with sums by token."""
    single = [
        {"prompt": f"say w{i % 15}", "completion": f"w{i} w1", "label": i % 3 > 0, "score": i % 3} for i in range(40)
    ]
    listed = [
        [
            {"prompt": f"say w{i}", "responses": [f"w{i} w1", f"w{i} w2 w3", f"w{i} w4"], "scores": [3, 1, 2]}
            for i in part
        ]
        for part in (range(20), range(20, 40))
    ]
    sources = [
        {"source": lines(world / f"lists-{i}.jsonl", rows), "name": f"part-{i}"} for i, rows in enumerate(listed)
    ]
    data = {"held_out_fraction": 0.3, "pairs_from": "all"}
    answers = changed(setting, "answers", data={**data, "source": lines(world / "answers.jsonl", single)})
    lists = changed(setting, "lists", data={**data, "sources": sources})
    return {
        "single answers": Place(planned(answers, "bco_udm,dro_v", ("train",))),
        "lists": Place(planned(lists, "plackett_luce,ld(dpo)", ("train", "heldout"))),
    }


def _judged(world: Path, setting: Path) -> dict[str, Place]:
    """Of benchmarks, one of each way to a score: a judge compares with a baseline, grades by reference answers of its own, the
    text is read, lm-eval asks; and of a judge behind an address. The two with a judge that writes are interrupted."""
    names = ("alpaca_eval", "zeroeval", "mt_bench")
    asked: dict[str, Benchmark] = {name: benchmarks.get(name)().rehearsed(world / "asked", 5, 4) for name in names}
    for path in (world / "asked/zeroeval").glob("*.jsonl"):  # with more of the signs that the model knows
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        lines(path, [{**row, "question": row["question"] + " and so on" * 20} for row in rows])
    for task in LM_EVAL:
        write_stand_ins(world / "items", task)
    asked["downstream"] = Downstream(tasks=[*LM_EVAL], data=str(world / "items"), limit=12, batch_size=1)
    section = {name: one.model_dump(mode="json", exclude_defaults=True) for name, one in asked.items()}
    model = {"source": str(save_chat_model(world / "characters", max_position_embeddings=4096))}
    answers = _answers(setting, batch_size=2)

    def benchmark(name: str, *names: str) -> Again:
        chosen = {name: section[name] for name in names}
        values = changed(setting, name, model=model, benchmarks=chosen, answers=answers)
        return planned(values, "dpo", ("train", "benchmarks"))

    server = OpenAIServer(_letter).__enter__()  # as long as the process
    judge = {"name": "endpoint", "settings": {"model": "tester", "base_url": server.url, "concurrency": 1}}
    answered = _answers(setting, source=asks(world, "served", range(30, 40)))
    compared = planned(changed(setting, "served", judge=judge, answers=answered), "dpo", ("train", "answers", "judge"))
    graded, verdicts = benchmark("graded", "mt_bench"), "runs/setting/loss-…/benchmarks/mt_bench/…/…/verdicts.jsonl"
    return {
        "benchmarks": Place(benchmark("asked", "alpaca_eval", "zeroeval")),
        "downstream": Place(benchmark("tasks", "downstream")),
        "graded": Place(graded, stopped(graded, verdicts)),
        "replies": Place(compared, stopped(compared, REPLIES, 3)),
    }


def _letter(body: Body) -> Body:
    """A judge that prefers by what it is shown."""
    second = digest_of(json.dumps(body["messages"]).encode())[0] < "8"
    return says("B" if second else "A", A=-0.1 - second, B=-1.1 + second)


def _search(world: Path, setting: Path) -> Again:
    (world / "grid.yaml").write_text(yaml.safe_dump({"lr": [1e-3, 1e-2], "losses": {"dpo": {"beta": [0.1]}}}))
    prompts = asks(world, "tune", range(45, 48), check={"kind": "at_most_words", "n": 3})
    values = {"prompts": prompts, "grid": str(world / "grid.yaml"), "metric": "reward_accuracy"}
    tuned = changed(setting, "tuned", tune=values)

    def search(folder: Path) -> list[str]:
        here(folder)
        return list(tune(plan_tuning("dpo", str(tuned), runs=folder / "runs")).failed)

    return search


# ---------------------------------------------------------------- kinds of files
def stored_files(folder: Path) -> dict[str, list[Path]]:
    """Kind → the files of that kind, below the folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    names = _names(folder, files)
    found: dict[str, list[Path]] = {}
    for file in files:
        part = file.relative_to(folder)
        of_a_model = file.parent.name == "model" and file.name not in OF_A_MODEL
        if of_a_model or any(name.endswith(PASSING) for name in part.parts):
            continue
        own = names if part.parts[0] == "runs" else {}
        kind = DIGITS.sub("…", "/".join(own.get(name, name) for name in part.parts))
        found.setdefault(kind, []).append(part)
    return found


def _names(folder: Path, files: Sequence[Path]) -> dict[str, str]:
    """The folder of a setting or a trained model → what is the same of all; rounds after the first are told apart."""
    names: dict[str, str] = {}
    for setting in (folder / "runs").glob("*/"):
        names[setting.name] = setting.name if setting.name == "report" else "setting"
    for path in files:
        if path.name == "config.yaml" and re.search("^kind: loss$", text := path.read_text(), re.M):
            later = re.search(r"^round: ([2-9])$", text, re.M)
            names[path.parent.name] = f"loss-… of round {later[1]}" if later else "loss-…"
    return names


@contextlib.contextmanager
def at_each_write(look: Callable[[], object]) -> Iterator[None]:
    """Call `look` behind every file that is renamed to its name or synced."""

    def behind(function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*arguments: Any, **named: Any) -> Any:
            made = function(*arguments, **named)
            look()
            return made

        return wrapped

    with mock.patch.object(os, "replace", behind(os.replace)), mock.patch.object(os, "fsync", behind(os.fsync)):
        yield


def passing_kinds(again: Again, folder: Path) -> dict[str, int]:
    """Kind → how many files of it lay in the folder at one time, of kinds that are gone when the command has ended. The command
    is done here."""
    most: Counter[str] = Counter()

    def look() -> None:
        most.update({kind: max(0, len(files) - most[kind]) for kind, files in stored_files(folder).items()})

    with at_each_write(look):
        if failed := again(folder):
            raise RuntimeError(f"the undisturbed command failed: {failed}")
    return {kind: count for kind, count in most.items() if kind not in stored_files(folder)}


def until(again: Again, folder: Path, kind: str, count: int) -> None:
    """Do the command until so many files of a kind lie in the folder."""

    def look() -> None:
        if len(stored_files(folder).get(kind, ())) >= count:
            raise KeyboardInterrupt

    with at_each_write(look), contextlib.suppress(KeyboardInterrupt):
        again(folder)


# ---------------------------------------------------------------- cases
class Tried(NamedTuple):
    """A folder with files to damage. kinds: of which one each. base: the folder, which is copied. expected: the results of the
    undisturbed command."""

    place: str
    again: Again
    kinds: Mapping[str, Path]
    base: Path
    expected: Mapping[str, str]


def tried(base: Path, chosen: Callable[[str], bool] = lambda place: True) -> Iterator[Tried]:
    """Every folder with the kinds that are tried there; it lies at `base/whole` while the command makes it."""
    seen: set[str] = set()
    whole, intact = base / "whole", base / "intact"
    made = places(base / "world")
    last = max((number for number, name in enumerate(made) if chosen(name)), default=-1)
    for name, place in [*made.items()][: last + 1]:
        narrow = bool(place.within or place.begin)
        passing = passing_kinds(place.again, whole)
        expected = found_in(whole)
        if place.begin is not None:
            shutil.rmtree(whole)
            place.begin(whole)
        kinds = {kind: files[0] for kind, files in stored_files(whole).items() if place.takes(kind, seen)}
        shutil.move(whole, intact)
        if chosen(name):
            yield Tried(name, place.again, kinds, intact, expected)
        shutil.rmtree(intact)
        seen.update(kinds)
        left = {} if narrow else {kind: count for kind, count in passing.items() if kind not in seen}
        if not chosen(name):
            seen.update(left)
            continue
        while left:
            kind = next(iter(left))
            until(place.again, whole, kind, min(2, left[kind]))
            there = {k: files[0] for k, files in stored_files(whole).items() if k in left}
            shutil.move(whole, intact)
            yield Tried(name, place.again, there, intact, expected)
            shutil.rmtree(intact)
            left = {k: count for k, count in left.items() if k not in there and k != kind}
            seen.update(there)


def cases(only: str = "", place: str = "", damage: str = "") -> Iterator[Case]:
    """One for each folder, each kind of stored file and each damage, of those whose names hold these words. place: several
    names, separated by commas."""
    names = [name for name in place.split(",") if name]
    with tempfile.TemporaryDirectory() as temporary:
        base = Path(temporary)
        for one in tried(base, lambda name: not names or name in names):
            for kind, file in one.kinds.items():
                for done, do in DAMAGES.items():
                    if only in kind and damage in done:
                        shutil.copytree(one.base, base / "whole")  # paths are as they were
                        do(base / "whole" / file)
                        yield Case(one.place, kind, done, *ask(base / "whole", file, one.again, one.expected))
                        shutil.rmtree(base / "whole")


def ask(place: Path, file: Path, again: Again, expected: Mapping[str, str]) -> tuple[str, str, str, str, float]:
    """What `doctor --verify`, a report, the repeated command, and `doctor --verify` behind it make of it, and the processor's
    seconds of the command."""
    here(place)

    def named(found: Callable[[], str]) -> str:
        try:
            text = found()
        except PobenchError as error:
            text = str(error)
        except Exception as error:
            return f"crashed: {type(error).__name__}: {error}"
        return "named" if file.name in text else text and f"said: {text[:200]}"

    def report() -> str:
        with contextlib.redirect_stderr(io.StringIO()) as printed:
            try:
                load_frames(place / "runs/report/frames" if "report" in file.parts else stored_in(place))
            except PobenchError as error:
                return printed.getvalue() + str(error)
        return printed.getvalue()

    def repeated() -> str:
        if failed := again(place):
            return f"failed: {failed[0][:200]}"
        found = found_in(place)
        # sums and ratios of what is trained already are not needed again
        unread = {name for name in expected if name.startswith(("reference/", "density_ratio/"))} - set(found)
        differing = [n for n in sorted({*found, *expected} - unread) if found.get(n) != expected.get(n)]
        return f"differs: {', '.join(differing)}" if differing else "anew"

    def verified() -> str:
        return "\n".join(verify(place / "runs").faults)

    told, began = (named(verified), named(report)), time.process_time()
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            done = repeated()
    except PobenchError as error:
        done = f"refused: {str(error)[:200]}"
    except Exception as error:
        done = f"crashed: {type(error).__name__}: {str(error)[:200]}"
    seconds = time.process_time() - began
    return *told, done, named(verified), seconds


def found_in(folder: Path) -> dict[str, str]:
    found = results(stored_in(folder), folder / "cache")
    for pattern in ALIKE:
        paths = (path for path in folder.glob(pattern) if ".damaged" not in str(path))
        found |= {str(path.relative_to(folder)).removeprefix("cache/"): digest_of(path.read_bytes()) for path in paths}
    frames = [path for path in (folder / "runs/report/frames").glob("*.parquet") if path.name != "looks.parquet"]
    return found | {f"report {path.name}": digest_of(path.read_bytes()) for path in frames}


def stored_in(folder: Path) -> Path:
    """Where its runs lie: a search keeps those of its trials apart."""
    return next((folder / "runs").glob("*/tuning"), folder / "runs")


def table(done: list[Case]) -> str:
    """Folder × file × damage × who finds it × what the repeated command makes of it, in Markdown; alike damages in one row."""
    rows: dict[tuple[str, ...], list[str]] = {}
    for case in done:
        rows.setdefault((case.place, case.kind, case.verify, case.report, case.again), []).append(case.damage)
    lines = ["| folder | file | damage | `doctor --verify` | report | repeated command |", "|---|---|---|---|---|---|"]
    lines += [
        f"| {place} | `{kind}` | {', '.join(damages)} | {found or '–'} | {report or '–'} | {again} |"
        for (place, kind, found, report, again), damages in rows.items()
    ]
    return "\n".join(lines)


def counts(done: list[Case]) -> str:
    """By folder: how many files, cases, and what came of them, in Markdown."""
    lines = [
        "| folder | kinds of files | cases | named by `doctor --verify` | made anew | refused | named, and left | lost "
        "| seconds to recover |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for place in dict.fromkeys(case.place for case in done):
        own = [case for case in done if case.place == place]
        left = [case for case in own if case.stays]
        ends = [case.again.partition(":")[0] for case in own if case not in left]
        cells = (
            len({case.kind for case in own}), len(own), sum(case.verify == "named" for case in own), ends.count("anew"),
            ends.count("refused"), len(left), sum(case.fault for case in own),
            f"{statistics.median(case.seconds for case in own):.1f}",
        )  # fmt: skip
        lines.append(f"| {place} | " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def main() -> None:
    """Exits with status 1 where somebody crashed or took a wrong result for a right one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="")
    parser.add_argument("--place", default="")
    parser.add_argument("--damage", default="", help="those whose name holds a word")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--list", action="store_true")
    given = parser.parse_args()
    if given.list:
        with tempfile.TemporaryDirectory() as temporary:
            for one in tried(Path(temporary)):
                print("".join(f"{one.place}: {kind}\n" for kind in one.kinds), end="", flush=True)
        return
    done = []
    for case in cases(given.only, given.place, given.damage):
        done.append(case)
        print(f"{len(done)}: {' · '.join(str(found or '–') for found in case)}", file=sys.stderr, flush=True)
        if given.json is not None:  # also of a campaign that is stopped
            given.json.write_text(json.dumps([case._asdict() for case in done], indent=1) + "\n", encoding="utf-8")
    print(f"{table(done)}\n\n{counts(done)}")
    faults = [case for case in done if case.fault]
    print(f"{len(done)} cases, {len(faults)} faults")
    for case in faults:
        print(f"fault: {case}", file=sys.stderr)
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()
