"""Peak memory of a training run with the slim ResNet-12, in a process of its own.

python -m benchmarks.memory [--quick]
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from typing import Any

import torch

from benchmarks.common import Row, main, pictures, row
from fslib.data import ImageSet
from fslib.paths import ROOT
from fslib.runs import Config
from fslib.train import fit

CLASSES = 64
TARGET = 2.0  # GB
QUICK = {"methods": ("ce",), "images": 640}


def peak_memory(method: str, images: int, **options: Any) -> float:
    """Largest resident size in GB (10^9 bytes) of one epoch, libraries included.

    Args:
        method: A key of `fslib.methods.METHODS`.
        images: The epoch goes through this many of 38,400 that lie in memory.
        **options: Of the method.
    """
    command = [sys.executable, "-m", "benchmarks.memory", "--train", method, str(images)]
    command.append(json.dumps(options))
    done = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    return int(done.stdout.splitlines()[-1]) / 1e9


def _train_and_tell(method: str, images: int, options: dict[str, Any] | None = None) -> None:
    torch.set_num_threads(1)
    pixels = torch.full((600 * CLASSES, 3, 32, 32), 128, dtype=torch.uint8)
    pixels[:images], labels = pictures(images, CLASSES)
    names = tuple(f"class {c}" for c in range(CLASSES))
    data = {"train": ImageSet("random", "train", pixels[:images], labels, names)}
    with tempfile.TemporaryDirectory() as runs:
        config = Config(method, "random", "resnet12_slim", options or {}, epochs=1)
        fit(config, data, runs=runs, progress=False)
    unit = 1 if sys.platform == "darwin" else 1024
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)


def measure(methods: Sequence[str] = ("ce", "protonet"), images: int = 12_800) -> Row:
    """One epoch of each method, in its own process and batch size."""
    rows = []
    for method in methods:
        peak = peak_memory(method, images)
        aim = f"under {TARGET:g}"
        rows.append(row(f"{method}, slim ResNet-12: peak memory", peak, "GB", aim, peak < TARGET))
    return {"rows": rows, "images": images}


if __name__ == "__main__":
    if sys.argv[1:2] == ["--train"]:
        _train_and_tell(sys.argv[2], int(sys.argv[3]), json.loads(sys.argv[4]))
    else:
        main("memory", measure, QUICK)
