"""The Dynamic Meta-filter's head: fast against plain, a training step, 2,000 test episodes.

python -m benchmarks.dmf [--quick]
"""

from __future__ import annotations

import contextlib
import json
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.common import Clock, Row, main, pictures, row
from fslib.backbones import Backbone
from fslib.device import autocast
from fslib.episodes import draw_episodes
from fslib.evaluate import score_episodes
from fslib.methods import Batch, Method, build_method
from fslib.methods.dmf import DynamicMetaFilter
from fslib.paths import ROOT

# The published training step at 84 x 84: 4 episodes of 5 ways with 30 queries, 600 pairs.
PAPER = {"channels": 640, "groups": 64, "side": 11, "count": 4, "way": 5, "queries": 30}
SMALL = PAPER | {"channels": 64, "groups": 8, "count": 2}
TINY = {"channels": 8, "groups": 2, "side": 5, "count": 1, "way": 2, "queries": 2}
QUICK = {"shapes": SMALL, "rounds": 1, "steps": 2, "images": 400, "episodes": 20}
SLIM = {
    "backbone": "resnet12_slim",
    "classes": 64,
    "backbone_options": {"pools": (True, True, False, False)},  # 8 x 8 cells at 32 pixels
}


def head_step(shapes: dict[str, int], fast: bool) -> Callable[[], tuple[Tensor, Tensor]]:
    """A function that runs one head forward and backward on random maps.

    Args:
        shapes: As `PAPER`.
        fast: Which head.

    Returns:
        Its results: scores (E, way, Q, h, w) and the gradient of their squares to the maps.
    """
    torch.manual_seed(0)
    channels, side = shapes["channels"], shapes["side"]
    net = Backbone([], channels)
    # The released code's solver, a step of rk4; to the fast head it is a polynomial.
    method = DynamicMetaFilter(net, 64, groups=shapes["groups"], solver="rk4", fast=fast)
    supports = shapes["count"] * shapes["way"]
    images = supports + shapes["count"] * shapes["queries"]
    maps = torch.randn((images, channels, side, side)).requires_grad_()

    def step() -> tuple[Tensor, Tensor]:
        features = method.test_features(maps)
        support = features[:supports].unflatten(0, (shapes["count"], shapes["way"], 1))
        query = features[supports:].unflatten(0, (shapes["count"], shapes["queries"]))
        scores = method.match(support, query)[1]
        wanted = [maps, *method.metafilter.parameters()]
        gradients = torch.autograd.grad(scores.square().mean(), wanted)
        return scores.detach(), gradients[0]

    return step


def _peak() -> int:
    """Largest resident size so far, in bytes."""
    with contextlib.suppress(OSError, StopIteration):
        # Linux hands `ru_maxrss` on from the parent process, this number not.
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * int(next(x for x in lines if x.startswith("VmHWM")).split()[1])
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _tell_peak(shapes: dict[str, int], fast: bool) -> None:
    torch.set_num_threads(1)
    # A tiny step first, so that libraries and their buffers are not counted.
    head_step(TINY, fast)()
    step = head_step(shapes, fast)
    before = _peak()
    step()
    print(_peak() - before)


def peak_memory(shapes: dict[str, int], fast: bool) -> float:
    """Growth of the largest resident size by one step of a head, in GB, in its own process."""
    words = [sys.executable, "-m", "benchmarks.dmf", "--peak", json.dumps([shapes, fast])]
    done = subprocess.run(words, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    return int(done.stdout.splitlines()[-1]) / 1e9


def training_step(method: Method) -> Callable[[], None]:
    """A function that takes the forward and backward pass of one training batch of 32 x 32."""
    method.to(memory_format=torch.channels_last).train()
    images, _ = pictures(method.batches.images, 20)
    labels = torch.arange(len(images)) % 64

    def step() -> None:
        with autocast(torch.device("cpu")):
            loss = method.loss(Batch(images.float() / 255, labels, method.batches), 0.5)["loss"]
        method.zero_grad(set_to_none=True)
        loss.backward()

    return step


def _alternate(rounds: int, steps: int, first: Callable, second: Callable) -> tuple[Clock, Clock]:
    """`rounds` turns of `steps` calls each; call either once before, to warm up."""
    clocks = Clock(), Clock()
    for _ in range(rounds):
        for clock, step in zip(clocks, (first, second), strict=True):
            with clock:
                for _ in range(steps):
                    step()
    return clocks


def evaluation(images: int, episodes: int) -> Clock:
    """Test features of cached maps (20 classes, 192 channels, 8 x 8) and all episodes of them."""
    method = build_method("dmf", **SLIM).eval()
    maps = torch.randn((images, 192, 8, 8), generator=torch.Generator().manual_seed(0))
    labels = torch.arange(20).repeat_interleave(images // 20)
    table = draw_episodes(labels, episodes, 5, 1, 15)
    with Clock() as clock, torch.inference_mode():
        features = method.test_features(maps)
        for logits in score_episodes(method, features, table):
            logits.argmax(-1)
    return clock


def measure(
    shapes: dict[str, int] = PAPER,
    rounds: int = 2,
    steps: int = 4,
    images: int = 12_000,
    episodes: int = 2_000,
) -> Row:
    """Heads turn by turn, each head's memory, steps turn by turn, then evaluation.

    Args:
        shapes: Of the comparison of the heads.
        rounds: Turns.
        steps: Training steps of a turn.
        images: Cached maps to draw test episodes from.
        episodes: Test episodes.
    """
    fast, plain = head_step(shapes, fast=True), head_step(shapes, fast=False)
    differences = [
        ((a - b).abs().max() / b.abs().max()).item() for a, b in zip(fast(), plain(), strict=True)
    ]
    of_fast, of_plain = _alternate(rounds, 1, fast, plain)
    ratio = of_plain.cpu / of_fast.cpu
    memory: dict[str, Any] = {
        "fast": peak_memory(shapes, True),
        "plain": peak_memory(shapes, False),
    }
    share = memory["fast"] / memory["plain"]
    form = {"way": 5, "shot": 1, "query": 6, "count": 4}
    pair = [training_step(build_method(name, **SLIM, **form)) for name in ("dmf", "protonet")]
    for step in pair:
        step()
    ours, proto = _alternate(rounds, steps, *pair)
    cost, tested = ours.cpu / proto.cpu, evaluation(images, episodes)
    pairs = shapes["count"] * shapes["way"] * shapes["queries"]
    what = f"{pairs} pairs, {shapes['channels']} channels, {shapes['side']} x {shapes['side']}"
    rows = [
        row(f"plain head, {what}", of_plain.cpu / rounds, "CPU-s"),
        row("fast head, the same", of_fast.cpu / rounds, "CPU-s"),
        row("plain / fast head, forward and backward", ratio, "", "at least 10", ratio >= 10),
        row("plain head: memory of a step", memory["plain"], "GB"),
        row("fast head: memory of a step", memory["fast"], "GB"),
        row("fast / plain head, memory", share, "", "at most 0.2", share <= 0.2),
        row(
            "scores and gradients: largest difference / largest value, fp32",
            max(differences),
            "",
            "at most 1e-4",
            max(differences) <= 1e-4,
        ),
        row("training step / ProtoNet's, slim ResNet-12", cost, "", "at most 1.5", cost <= 1.5),
        row(
            f"{episodes:,} test episodes from {images:,} cached maps",
            tested.cpu,
            "CPU-s",
            "under 120 (60 s on 2 cores)",
            tested.cpu < 120,
        ),
    ]
    raw = {"fast": of_fast.rate(rounds), "plain": of_plain.rate(rounds), "memory": memory}
    raw |= {"dmf_step": ours.rate(rounds * steps), "protonet_step": proto.rate(rounds * steps)}
    raw["evaluation"] = tested.rate(episodes)
    return {"rows": rows, "raw": raw, "shapes": shapes}


if __name__ == "__main__":
    if sys.argv[1:2] == ["--peak"]:
        _tell_peak(*json.loads(sys.argv[2]))
    else:
        main("dmf", measure, QUICK)
