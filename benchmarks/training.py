"""Training: images a processor second against the usual path, share of the data path.

python -m benchmarks.training [--quick]
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader

from benchmarks.common import Clock, Row, main, pictures, png_folder, row
from fslib.augment import augment
from fslib.backbones import build_backbone
from fslib.device import autocast
from fslib.methods import Batch, MixedClasses, build_method

CLASSES = 64
# Of the usual path's images a processor second; measured where bfloat16 is in hardware.
TARGETS = {"resnet12": 2.0, "resnet12_slim": 2.5, "conv4": 3.3}
QUICK = {"batch": 32, "rounds": 1, "steps": 1}


def _sgd(parameters) -> torch.optim.SGD:
    return torch.optim.SGD(parameters, 0.01, momentum=0.9, nesterov=True, weight_decay=5e-4)


def usual_steps(backbone: str, loader: DataLoader) -> Callable[[], None]:
    """A function that takes one training step of the usual path: fp32, NCHW, eager."""
    trunk = build_backbone(backbone)
    net = nn.Sequential(
        trunk, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(trunk.channels, CLASSES)
    )
    optimiser, batches = _sgd(net.parameters()), iter(loader)

    def step() -> None:
        nonlocal batches
        try:
            images, labels = next(batches)
        except StopIteration:
            batches = iter(loader)
            images, labels = next(batches)
        loss = functional.cross_entropy(net(images), labels)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        loss.item()

    return step


def our_steps(
    backbone: str, images: Tensor, labels: Tensor, batch: int, data_path: Clock
) -> Callable[[], None]:
    """A function that takes one step as `fslib.train.fit` does; `data_path` times the images."""
    method = build_method("ce", backbone, CLASSES, batch=batch).to(
        memory_format=torch.channels_last
    )
    optimiser, form = _sgd(method.parameters()), MixedClasses(batch)
    generator = torch.Generator().manual_seed(0)

    def step() -> None:
        with data_path:
            chosen = torch.randperm(len(images), generator=generator)[:batch]
            views = augment(images.index_select(0, chosen), "crop_flip", generator)
        with autocast(torch.device("cpu")):
            loss = method.loss(Batch(views, labels[chosen], form), 0.5)["loss"]
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        loss.item()

    return step


def measure(
    backbones: Sequence[str] = ("conv4", "resnet12_slim", "resnet12"),
    batch: int = 128,
    rounds: int = 5,
    steps: int = 2,
) -> Row:
    """Alternate `rounds` times between `steps` steps of either path, after one step to warm up."""
    images, labels = pictures(max(1280, 2 * batch), CLASSES)
    rows, raw = [], {}
    with tempfile.TemporaryDirectory() as folder:
        files = png_folder(images, labels, Path(folder), augmented=True)
        for name in backbones:
            # No workers: on one core they only add the cost of passing batches on.
            loader = DataLoader(files, batch, shuffle=True, drop_last=True)
            usual, ours, data_path = Clock(), Clock(), Clock()
            paths = [
                (usual_steps(name, loader), usual),
                (our_steps(name, images, labels, batch, data_path), ours),
            ]
            for step, _ in paths:
                step()
            data_path.cpu = data_path.wall = 0.0
            for _ in range(rounds):
                for step, clock in paths:
                    with clock:
                        for _ in range(steps):
                            step()
            count = rounds * steps * batch
            raw[name] = {"usual": usual.rate(count), "ours": ours.rate(count)}
            ratio, share = usual.cpu / ours.cpu, 100 * data_path.cpu / ours.cpu
            aim = TARGETS[name]
            rows += [
                row(f"{name}: usual path", count / usual.cpu, "images/CPU-s"),
                row(f"{name}: fslib", count / ours.cpu, "images/CPU-s"),
                row(
                    f"{name}: fslib / usual path", ratio, "", f"at least {aim} (bf16)", ratio >= aim
                ),
                row(f"{name}: data path", share, "% of a step", "at most 2", share <= 2),
            ]
    return {"rows": rows, "raw": raw, "batch": batch, "steps": rounds * steps}


if __name__ == "__main__":
    main("training", measure, QUICK)
