"""How fast pairs become tokens, and in how much memory: rows of generated text are read, tokenised, split, stored, loaded and
put in order for an epoch, in a process of their own.

    python benchmarks/million_pairs.py 1000000 --model SmolLM2_FOLDER

The text has about 100 tokens a response. What was measured stands in benchmarks/NOTES.md.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

WORDS = (
    "the of and to in is that it was for on are with as his they be at one have this from or had by hot but some what there "
    "we can out other were all your when up use word how said an each she which do their time if will way about many then them "
    "would write like so these her long make thing see him two has look more day could go come did my sound no most number who"
)


def write_rows(file: Path, rows: int) -> None:
    """Preferences of random words, about 80 words a response and 20 a prompt; no two are alike."""
    rng, words = random.Random(0), WORDS.split()
    with file.open("w", encoding="utf-8") as stream:
        for i in range(rows):
            chosen, rejected = (" ".join(rng.choices(words, k=rng.randint(60, 130))) for _ in range(2))
            prompt = f"{' '.join(rng.choices(words, k=20))} {i}?"
            stream.write(json.dumps({"prompt": prompt, "chosen": chosen, "rejected": rejected}) + "\n")


def measure(file: Path, model: str, folder: Path) -> dict[str, float]:
    """Seconds of the processor and the highest resident memory so far, in GB, behind each part."""
    from pobench.data.order import data_order
    from pobench.data.pairs_folder import PairsFolder
    from pobench.data.prepare import prepare
    from pobench.settings.resolve import resolve

    found: dict[str, float] = {}
    started = time.process_time()

    def note(part: str) -> None:
        nonlocal started
        found[f"{part}_seconds"] = round(time.process_time() - started, 1)
        found[f"{part}_peak_gb"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2, 3)
        started = time.process_time()

    job = resolve("smollm2", "dpo", data=str(file), model=model)[0]
    note("imports")
    prepared = prepare(job)
    note("prepare")
    stored = PairsFolder(folder / "data")
    stored.store(prepared, {})
    note("store")
    loaded = stored.load()
    note("load")
    data_order(loaded.train, 42, 1)
    note("order")
    found["pairs"] = len(loaded.train) + len(loaded.heldout)
    found["tokens_a_pair"] = round(stored.about["tokens"], 1)
    found["file_gb"] = round(file.stat().st_size / 1e9, 3)
    found["stored_gb"] = round(sum(path.stat().st_size for path in stored.path.iterdir()) / 1e9, 3)
    found["pairs_a_second"] = round(found["pairs"] / found["prepare_seconds"], 1)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rows", type=int)
    parser.add_argument("--model", required=True, help="a model's folder; only its tokenizer is read")
    parser.add_argument("--file", type=Path, help="the rows, in the process that measures")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if options.file is not None:
            print(json.dumps(measure(options.file, options.model, Path(folder))))
            return
        file = Path(folder) / "rows.jsonl"
        write_rows(file, options.rows)
        command = [sys.executable, __file__, str(options.rows), "--model", options.model, "--file", str(file)]
        found = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
