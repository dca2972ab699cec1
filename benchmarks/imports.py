"""What importing takes: memory that stays and seconds, of libraries and of parts of pobench, each in a process of its own.

    python benchmarks/imports.py

Prints a row a module as Markdown. A module's memory holds that of all that it imports; the seconds are a processor's, of the
second time, when Python has compiled it.
"""

from __future__ import annotations

import json
import subprocess
import sys

MODULES = (
    "numpy", "pyarrow", "pandas", "scipy.stats", "matplotlib.pyplot", "torch", "transformers", "accelerate", "datasets",
    "sklearn.linear_model", "lm_eval", "alpaca_eval", "fastchat.llm_judge.common", "pobench.cli.main", "pobench.data.prepare",
    "pobench.training.loop", "pobench.runs.worker", "pobench.results.stats", "pobench.reporting.page",
)  # fmt: skip
CHILD = """
import importlib, json, os, sys, time
def held():
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
before, began = held(), time.process_time()
importlib.import_module(sys.argv[1])
print(json.dumps({"bytes": held() - before, "seconds": time.process_time() - began, "modules": len(sys.modules)}))
"""


def measure(module: str) -> dict[str, float] | str:
    """bytes, seconds and modules of an import; why it fails, where it does."""
    for _ in range(2):
        child = subprocess.run([sys.executable, "-c", CHILD, module], capture_output=True, text=True, check=False)
    if child.returncode:
        return (child.stderr.strip().splitlines() or ["it ended without a word"])[-1]
    found: dict[str, float] = json.loads(child.stdout.splitlines()[-1])
    return found


def main() -> None:
    if sys.platform != "linux":
        sys.exit("the memory of a process is read where Linux shows it")
    print("| import | MB that stay | seconds | modules |\n|---|---:|---:|---:|")
    for module in MODULES:
        found = measure(module)
        if isinstance(found, str):
            cells = [found.replace("|", "/"), "", ""]
        else:
            cells = [f"{found['bytes'] / 1e6:.0f}", f"{found['seconds']:.1f}", f"{found['modules']}"]
        print(f"| `{module}` | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
