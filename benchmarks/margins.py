"""Margins: what one adds to a training step of ProtoNet, and stage 2 of Dynamic FSL.

python -m benchmarks.margins [--quick]
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.common import Clock, Row, main, pictures, row
from fslib.device import autocast
from fslib.episodes import draw_episodes
from fslib.generalised import train_stage_two
from fslib.losses.margin import word_similarity
from fslib.methods import Batch, Method, build_method

CLASSES, PER_CLASS = 64, 20
WAY, SHOT, QUERY = 20, 5, 10
KINDS = {
    "naive": "protonet_naml",
    "class-relevant": "protonet_craml",
    "task-relevant": "protonet_traml",
}
QUICK = {"rounds": 2, "turns": 50, "episodes": 200}


def _prepared(name: str, backbone: str) -> Method:
    """A method whose base classes have random names."""
    method = build_method(name, backbone, CLASSES)
    if hasattr(method, "similarity"):
        words = torch.randn(CLASSES, 100, generator=torch.Generator().manual_seed(0)) + 0.5
        method.similarity.copy_(word_similarity(words))
    return method.to(memory_format=torch.channels_last)


def step_seconds(backbone: str, rounds: int) -> float:
    """Processor seconds of a training step of ProtoNet, the fastest of `rounds`."""
    images, labels = pictures(CLASSES * PER_CLASS, CLASSES)
    rows = draw_episodes(labels, 1, WAY, SHOT, QUERY).index.flatten()
    method = _prepared("protonet", backbone)
    batch = Batch(images[rows] / 255, labels[rows], method.batches)
    optimiser = torch.optim.SGD(method.parameters(), 0.01, momentum=0.9, nesterov=True)
    seconds = []
    for _ in range(rounds + 1):
        clock = Clock()
        with clock:
            with autocast(torch.device("cpu")):
                loss = method.loss(batch, 0.5)["loss"]
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
        seconds.append(clock.cpu)
    return min(seconds[1:])


def margin_seconds(turns: int) -> dict[str, float]:
    """Processor seconds that each margin adds to the loss of a step, forward and backward.

    Measured by itself: a few milliseconds drown in the spread of whole steps.

    Args:
        turns: Losses of each kind, taken in turns.
    """
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(1, WAY * QUERY, WAY, generator=generator).requires_grad_()
    target = torch.arange(WAY).repeat_interleave(QUERY)[None]
    classes = torch.arange(WAY)
    methods = {kind: _prepared(name, "conv4") for kind, name in KINDS.items()}

    def plain() -> Tensor:
        return functional.cross_entropy(logits.flatten(0, 1), target[0])

    def with_margin(method: Method) -> Tensor:
        similar = method.similarity[classes[None, :, None], classes[None, None]]
        return method.margin(logits, target, similar)["loss"]

    losses = {"none": plain}
    losses |= {kind: functools.partial(with_margin, m) for kind, m in methods.items()}
    clocks = {}
    for turn in range(turns + 5):
        if turn == 5:  # warm
            clocks = {}
        for kind, loss in losses.items():
            with clocks.setdefault(kind, Clock()):
                loss().backward()
    return {kind: (clocks[kind].cpu - clocks["none"].cpu) / turns for kind in KINDS}


def training(rounds: int, turns: int) -> list[Row]:
    """What each margin adds to a step of ProtoNet, on two backbones."""
    added, rows = margin_seconds(turns), []
    for kind, seconds in added.items():
        rows.append(row(f"a {kind} margin, forward and backward", 1e3 * seconds, "ms"))
    for backbone in ("conv4", "resnet12_slim"):
        step = step_seconds(backbone, rounds)
        images = WAY * (SHOT + QUERY)
        rows.append(row(f"{backbone}: a step of ProtoNet, {images} images", 1e3 * step, "ms"))
        for kind, seconds in added.items():
            share = 100 * seconds / step
            what = f"{backbone}: added by a {kind} margin"
            rows.append(row(what, share, "% of a step", "at most 2", share <= 2))
    return rows


def stage_two(width: int, shot: int, episodes: int, name: str) -> Row:
    """Episodes of stage 2 a second, from cached features.

    Args:
        width: Of a feature.
        shot: Support images of a class.
        episodes: How many are measured.
        name: `dynamic_fsl` or `dynamic_fsl_traml`.
    """
    # A network as wide as the features; it never sees an image.
    method = build_method(name, "conv4", CLASSES, {"width": width})
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(CLASSES).repeat_interleave(100)
    features = torch.randn(CLASSES, width, generator=generator)[labels]
    features += torch.randn(features.shape, generator=generator)
    method.similarity.copy_(torch.eye(CLASSES))
    train_stage_two(method, features, labels, shot, episodes=8, progress=False)
    clock = Clock()
    with clock:
        train_stage_two(method, features, labels, shot, episodes=episodes, progress=False)
    rate = clock.rate(episodes)["per_cpu_second"]
    what = f"stage 2 of {name}, {CLASSES} base classes, {width} wide, {shot} shot"
    return row(what, rate, "episodes/CPU-s", "at least 50 (100/s on 2 cores)", rate >= 50)


def measure(rounds: int = 5, turns: int = 500, episodes: int = 1000) -> dict[str, list[Row]]:
    """What a margin adds to a step, then stage 2 from features as wide as a slim ResNet-12's."""
    rows = training(rounds, turns)
    rows += [
        stage_two(192, shot, episodes, name)
        for name in ("dynamic_fsl", "dynamic_fsl_traml")
        for shot in (1, 5, 20)
    ]
    return {"rows": rows}


if __name__ == "__main__":
    main("margins", measure, QUICK)
