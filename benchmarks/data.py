"""Data: packing, opening, drawing episodes, augmenting.

    python -m benchmarks.data [--from FOLDER] [--quick]

Packing CIFAR-FS is measured where `--from` names its archive or zips.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import torch

from benchmarks.common import Clock, Row, main, pictures, row
from data_scripts.cifar_fs import build
from fslib.augment import POLICIES, augment
from fslib.data import PackSplit, open_dataset, write_pack
from fslib.episodes import draw_episodes

# The size of CIFAR-FS: what is opened where there is no `--from`.
CLASSES = {"train": 64, "val": 16, "test": 20}
QUICK = {"per_class": 30, "batches": 20}


def _random_pack(root: Path, per_class: int) -> None:
    splits = {}
    for number, (split, classes) in enumerate(CLASSES.items()):
        images, labels = pictures(classes * per_class, classes, seed=number)
        names = [f"{split} {c}" for c in range(classes)]
        splits[split] = PackSplit(images.numpy(), labels.numpy().astype(np.int64), names)
    write_pack(root, "cifar_fs", splits, licence="none", source="random")


def measure(place: Path | None = None, per_class: int = 600, batches: int = 100) -> Row:
    """Pack, open, draw, augment.

    Args:
        place: The source of CIFAR-FS, as `python -m data_scripts.cifar_fs --from` takes it.
        per_class: Images of a class of the random pack that stands in for it.
        batches: Batches of 128 for each augmentation.
    """
    rows, raw, clock = [], {}, Clock()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        if place is None:
            _random_pack(root, per_class)
        else:
            with clock:
                build(root, place)
            raw["pack"] = {"cpu_seconds": clock.cpu, "seconds": clock.wall}
            rows.append(row("packing CIFAR-FS", clock.wall, "s", "under 20", clock.wall < 20))
            rows.append(row("packing CIFAR-FS, processor", clock.cpu, "CPU-s"))
        open_dataset("cifar_fs", root)  # imports
        with Clock() as opening:
            data = open_dataset("cifar_fs", root)
        rows.append(row("opening", opening.wall, "s", "under 0.1", opening.wall < 0.1))
        with Clock() as drawing:
            draw_episodes(data["test"].labels, 10_000, 5, 5, 15)
        rows.append(row("drawing 10,000 episodes", drawing.cpu, "CPU-s"))
        pixels = data["train"].images
        generator = torch.Generator().manual_seed(0)
        clocks = {policy: Clock() for policy in POLICIES}
        for _ in range(batches):
            chosen = torch.randint(len(pixels), (128,), generator=generator)
            for policy, each in clocks.items():
                with each:
                    augment(pixels[chosen], policy, generator)
        for policy, each in clocks.items():
            rate = each.rate(128 * batches)
            raw[policy] = rate
            rows.append(row(f"images taken, augmented: {policy}", rate["per_cpu_second"], "/CPU-s"))
    return {"rows": rows, "raw": raw, "images": {s: len(d) for s, d in data.items()}}


if __name__ == "__main__":
    main("data", measure, QUICK, flags=["from"])
