"""All benchmarks one after the other, then the table: `python -m benchmarks`."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

from benchmarks.report import write_report
from fslib.paths import ROOT

NAMES = (
    "data",
    "evaluation",
    "training",
    "memory",
    "bml",
    "dmf",
    "margins",
    "scl",
    "negative_margin",
)


def run() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="rough numbers, into build/")
    parser.add_argument("--from", dest="place", type=Path, help="source of CIFAR-FS, to pack it")
    given = parser.parse_args()
    output = ROOT / ("build/benchmarks" if given.quick else "benchmarks/results")
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    for name in NAMES:
        words = [sys.executable, "-m", f"benchmarks.{name}", "--output", str(output)]
        words += ["--quick"] * given.quick
        if name == "data" and given.place:
            words += ["--from", str(given.place.resolve())]
        print(f"# {name}", flush=True)
        subprocess.run(words, cwd=ROOT, env=environment, check=True)
    target = output / "README.md" if given.quick else ROOT / "benchmarks/README.md"
    write_report([output / f"{name}.json" for name in NAMES], target)
    print(f"the table is in {target}")


if __name__ == "__main__":
    run()
