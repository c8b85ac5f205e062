"""BML: matching and elastic term against a loop; a step and its memory against cross-entropy.

python -m benchmarks.bml [--quick]
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.common import Clock, Row, main, pictures, row
from benchmarks.memory import peak_memory
from benchmarks.training import CLASSES, _sgd
from fslib.device import autocast
from fslib.methods import Batch, Episodic, build_method
from fslib.methods.bml import BML

FORM = Episodic(way=15, shot=5, query=7)
MAPS = (640, 5, 5)  # of ResNet-12 for images of 84 pixels, as in the paper
QUICK = {"rounds": 1, "maps": (64, 2, 2), "images": 1_280}


def looped_loss(maps: Tensor, form: Episodic, progress: float, method: BML) -> Tensor:
    """`BML.local_loss` for one episode, one query and one position at a time.

    Args:
        maps: (B, C, h, w), laid out class by class as `form` says.
        form: Of one episode.
        progress: Share of training done.
        method: Its options are used, none of its code.
    """
    table = maps.flatten(2).unflatten(0, (form.way, form.shot + form.query))  # (way, n, C, P)
    shots = table[:, : form.shot].mean(1)  # (way, C, P)
    terms = []
    for true in range(form.way):
        for query in table[true, form.shot :]:
            for p in range(query.shape[1]):
                prototypes = shots[:, :, p] if method.proto_per_position else shots.mean(2)
                distances = (prototypes - query[:, p]).square().sum(1)
                chances = (-distances).softmax(0).tolist()
                values = distances.tolist()
                wrong = min((n for n in range(form.way) if n != true), key=values.__getitem__)
                push = 0.0
                if not method.elastic_gate or max(chances[true], chances[wrong]) <= 0.5:
                    delta = values[true] - values[wrong]
                    push = method.alpha1 * progress / (1 + math.exp(-method.alpha2 * delta))
                logits = -distances
                logits[true] = logits[true] - push
                terms.append(functional.cross_entropy(logits, torch.tensor(true)))
    return torch.stack(terms).mean()


def against_loop(maps: tuple[int, int, int], rounds: int) -> tuple[float, float]:
    """How many times faster than the loop, forward and backward, and how far the losses differ.

    Args:
        maps: Channels, height and width.
        rounds: Turns of either.
    """
    torch.manual_seed(0)
    method = build_method("bml", "resnet12_slim", CLASSES)
    # Wide enough for gates that are open and gates that are closed.
    values = 0.5 * torch.randn((FORM.images, *maps))
    values = values.to(memory_format=torch.channels_last).requires_grad_()
    batch = Batch(values, torch.zeros(FORM.images, dtype=torch.long), FORM)
    fast, slow = Clock(), Clock()
    for turn in range(rounds + 1):
        with fast:
            one = method.local_loss(values, batch, 0.5)["local_loss"]
            one.backward()
        with slow:
            other = looped_loss(values, FORM, 0.5, method)
            other.backward()
        if turn == 0:  # to warm up
            fast, slow = Clock(), Clock()
    return slow.cpu / fast.cpu, (one - other).abs().item() / other.item()


def step_of(method: torch.nn.Module, batch: Batch) -> Callable[[], None]:
    """A function that takes one training step as `fslib.train.fit` does."""
    method = method.to(memory_format=torch.channels_last)
    optimiser = _sgd(method.parameters())

    def step() -> None:
        with autocast(torch.device("cpu")):
            loss = method.loss(batch, 0.5)["loss"]
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        loss.item()

    return step


def against_cross_entropy(backbone: str, rounds: int) -> dict[str, Clock]:
    """Processor seconds of steps of both, and of BML's local loss alone, turn by turn."""
    pixels, labels = pictures(FORM.images, FORM.way)
    batch = Batch(pixels / 255, labels, FORM)
    torch.manual_seed(0)
    bml = build_method("bml", backbone, CLASSES)
    with torch.no_grad():
        maps = bml.views(batch.images)[1]
    maps = maps.detach().requires_grad_()
    turns = {
        "ce": step_of(build_method("ce", backbone, CLASSES), batch),
        "bml": step_of(bml, batch),
        "local": lambda: bml.local_loss(maps, batch, 0.5)["local_loss"].backward(),
    }
    for step in turns.values():
        step()
    clocks = {name: Clock() for name in turns}
    for _ in range(rounds):
        for name, step in turns.items():
            with clocks[name]:
                step()
    return clocks


def measure(
    backbone: str = "resnet12_slim",
    rounds: int = 5,
    maps: tuple[int, int, int] = MAPS,
    images: int = 3_600,
) -> Row:
    """One episode of 15 ways, 5 + 7 images each.

    Args:
        backbone: Of the steps.
        rounds: Turns of everything.
        maps: Channels, height and width that the loop works on.
        images: The runs whose memory is compared go through so many.
    """
    faster, difference = against_loop(maps, rounds)
    clocks = against_cross_entropy(backbone, rounds)
    ratio, share = clocks["bml"].cpu / clocks["ce"].cpu, clocks["local"].cpu / clocks["bml"].cpu
    peaks = {"bml": peak_memory("bml", images), "ce": peak_memory("ce", images, batch=FORM.images)}
    memory = peaks["bml"] / peaks["ce"]
    size = "x".join(map(str, maps))
    rows = [
        row(f"loop over positions and queries / fslib, {size}", faster, "", ">= 20", faster >= 20),
        row("difference of their losses", difference, "", "at most 1e-5", difference <= 1e-5),
        row(f"{backbone}: matching, elastic", 100 * share, "% of a step", "<= 5", share <= 0.05),
        row(f"{backbone}: step / step of cross-entropy", ratio, "", "<= 1.5", ratio <= 1.5),
        row("slim ResNet-12: memory / cross-entropy's", memory, "", "<= 1.6", memory <= 1.6),
    ]
    raw = {name: clock.rate(rounds * FORM.images) for name, clock in clocks.items()}
    return {"rows": rows, "raw": raw | {"peak_gigabytes": peaks}, "batch": FORM.images}


if __name__ == "__main__":
    main("bml", measure, QUICK)
