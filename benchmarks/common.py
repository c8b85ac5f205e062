"""What the benchmarks share: a clock, test pictures, the usual data set, the result file."""

from __future__ import annotations

import argparse
import json
import os
import resource
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torchvision import transforms
from torchvision.datasets import ImageFolder
from torchvision.transforms.functional import to_pil_image

from fslib.device import describe_machine
from fslib.paths import ROOT

MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)  # those of an untrained `Method`
Row = dict[str, Any]


@dataclass
class Clock:
    """Adds up wall and processor seconds of `with` blocks, finished child processes included."""

    wall: float = 0.0
    cpu: float = 0.0

    @staticmethod
    def _now() -> tuple[float, float]:
        usage = [resource.getrusage(w) for w in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        return time.perf_counter(), sum(u.ru_utime + u.ru_stime for u in usage)

    def __enter__(self) -> Clock:
        """Start."""
        self._start = self._now()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop and add."""
        wall, cpu = self._now()
        self.wall += wall - self._start[0]
        self.cpu += cpu - self._start[1]

    def rate(self, count: float) -> Row:
        """`count` things in this time: a second of processor time and a second on the wall."""
        return {
            "per_cpu_second": count / self.cpu,
            "per_second": count / self.wall,
            "cpu_seconds": self.cpu,
            "seconds": self.wall,
        }


def row(what: str, value: float, unit: str, target: str = "", met: bool | None = None) -> Row:
    """One line of the table: quantity, value, unit, aim in words, whether it is reached."""
    return {"what": what, "value": float(value), "unit": unit, "target": target, "met": met}


def pictures(count: int, classes: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Smooth random pictures whose PNG files are about as large as those of CIFAR (2.4 kB).

    Args:
        count: N.
        classes: Labels run over them in order; images of a class share some of their colours.
        seed: Of the pictures.

    Returns:
        uint8 (N, 3, 32, 32) and int64 (N,), sorted.
    """
    generator = torch.Generator().manual_seed(seed)
    labels = (torch.arange(count) * classes // count).long()
    coarse = torch.rand((count, 3, 8, 8), generator=generator)
    coarse = 0.6 * coarse + 0.4 * torch.rand((classes, 3, 8, 8), generator=generator)[labels]
    images = torch.empty((count, 3, 32, 32), dtype=torch.uint8)
    for start in range(0, count, 1024):
        fine = functional.interpolate(coarse[start : start + 1024], size=32, mode="bilinear")
        fine += 0.02 * torch.randn(fine.shape, generator=generator)
        images[start : start + 1024] = (fine.clamp(0, 1) * 255).round().to(torch.uint8)
    return images, labels


def png_folder(images: Tensor, labels: Tensor, folder: Path, augmented: bool) -> ImageFolder:
    """The usual data set: one PNG a picture, opened and transformed one at a time.

    Args:
        images: uint8 (N, 3, H, W).
        labels: int64 (N,), sorted, so that item n of the folder is image n.
        folder: Written to, `<class>/<number>.png`.
        augmented: Padded crop and mirror before scaling.
    """
    for number, (image, label) in enumerate(zip(images, labels.tolist(), strict=True)):
        place = folder / f"{label:04d}"
        place.mkdir(exist_ok=True, parents=True)
        to_pil_image(image).save(place / f"{number:06d}.png")
    steps: list[Callable] = [transforms.ToTensor(), transforms.Normalize(MEAN, STD)]
    if augmented:
        side = images.shape[-1]
        steps = [transforms.RandomCrop(side, 4), transforms.RandomHorizontalFlip(), *steps]
    return ImageFolder(str(folder), transforms.Compose(steps))


def main(
    name: str,
    measure: Callable[..., Row],
    quick: Row,
    words: Sequence[str] | None = None,
    flags: Sequence[str] = (),
) -> None:
    """The command line of one benchmark: measure on one thread, write `<output>/<name>.json`.

    Args:
        name: Of the benchmark and its file.
        measure: Returns `{"rows": [...], ...}`.
        quick: Its arguments under `--quick`.
        words: The command line.
        flags: Names of further path options, handed to `measure`.
    """
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{name}")
    parser.add_argument("--quick", action="store_true", help="half a minute, rough numbers")
    parser.add_argument("--output", type=Path, help="folder of the result")
    for flag in flags:
        parser.add_argument(f"--{flag}", dest="place", type=Path, metavar="PATH")
    given = parser.parse_args(words)
    output = given.output or ROOT / ("build/benchmarks" if given.quick else "benchmarks/results")
    torch.set_num_threads(1)
    load = os.getloadavg()[0]
    with Clock() as clock:
        result = measure(
            **(quick if given.quick else {}), **({"place": given.place} if flags else {})
        )
    machine = describe_machine() | {"torchvision": version("torchvision"), "load_before": load}
    facts = {"benchmark": name, "quick": given.quick, "machine": machine, "seconds": clock.wall}
    output.mkdir(parents=True, exist_ok=True)
    (output / f"{name}.json").write_text(json.dumps(facts | result, indent=1) + "\n")
    for line in result["rows"]:
        print(f"{line['what']}: {line['value']:.4g} {line['unit']}".rstrip(), flush=True)
