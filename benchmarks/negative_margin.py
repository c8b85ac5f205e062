"""Negative Margin: heads fine-tuned for many episodes at once; the analysis of a network.

python -m benchmarks.negative_margin [--quick]
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.common import Clock, Row, main, row
from fslib.analysis.margins import look_at
from fslib.heads.finetune import FineTuned
from fslib.methods import build_method

EPISODES, WIDTH, SHOT = 600, 640, 5
QUICK = {"episodes": 100, "slow_episodes": 1}


def one_episode(
    support: Tensor, labels: Tensor, start: Tensor, order: Tensor, cosine: bool
) -> Tensor:
    """The usual path: one head, torch's own SGD, a loop over its batches.

    Args:
        support: (n, d).
        labels: int64 (n,).
        start: (way, d).
        order: int64 (passes, n).
        cosine: Of the head.
    """
    weight = nn.Parameter(start.clone())
    sgd = torch.optim.SGD([weight], lr=0.01, momentum=0.9, dampening=0.9, weight_decay=1e-3)
    unit = functional.normalize(support, dim=1) if cosine else support
    for one_pass in order:
        for chosen in one_pass.split(4):
            used = functional.normalize(weight, dim=1) if cosine else weight
            loss = functional.cross_entropy(5 * unit[chosen] @ used.T, labels[chosen])
            sgd.zero_grad()
            loss.backward()
            sgd.step()
    return weight.detach()


def heads(episodes: int, slow_episodes: int, passes: int) -> list[Row]:
    """Both heads against the usual path, over features as long as ResNet-12's."""
    generator = torch.Generator().manual_seed(0)
    # A step is as long as the memory of evaluation allows, see `fslib.evaluate.CHUNK`.
    step = max(1, 4_000_000 // (5 * (SHOT + 15) * WIDTH))
    centres = torch.randn((episodes, 5, 1, WIDTH), generator=generator)
    support = torch.randn((episodes, 5, SHOT, WIDTH), generator=generator)
    support = (centres + 2 * support).relu()
    query = torch.randn((episodes, 5, 15, WIDTH), generator=generator)
    query = (centres + 2 * query).relu().flatten(1, 2)
    labels = torch.arange(5).repeat_interleave(SHOT)
    bound = WIDTH**-0.5
    starts = (2 * torch.rand((slow_episodes, 5, WIDTH), generator=generator) - 1) * bound
    orders = torch.rand((slow_episodes, passes, 5 * SHOT), generator=generator).argsort(-1)
    rows = []
    for metric in ("cosine", "dot"):
        head, fast, slow = FineTuned(metric=metric, passes=passes), Clock(), Clock()
        with fast:
            for start in range(0, episodes, step):
                head.score(support[start : start + step], query[start : start + step])
        few = support[:slow_episodes].flatten(1, 2)
        with slow:
            one_by_one = [
                one_episode(few[e], labels, starts[e], orders[e], metric == "cosine")
                for e in range(slow_episodes)
            ]
        together = head.tune(few, labels, starts, orders)
        apart = (together - torch.stack(one_by_one)).abs().max().item()
        seconds = fast.cpu * EPISODES / episodes
        usual = slow.cpu * EPISODES / slow_episodes
        rows += [
            row(
                f"{EPISODES} episodes, 5 shots, {7 * passes} steps, {metric} head",
                seconds,
                "CPU-s",
                "at most 60 (30 s on 2 cores)",
                seconds <= 60,
            ),
            row(f"{metric} head: one episode at a time / fslib", usual / seconds, ""),
            row(
                f"{metric} head: largest difference of a weight",
                apart,
                "",
                "at most 1e-5",
                apart <= 1e-5,
            ),
        ]
    return rows


def analysis(images: int) -> Row:
    """Discriminability of base and novel classes and all peaks of one network."""
    generator = torch.Generator().manual_seed(0)
    method = build_method("negative_margin", "resnet12", 64).eval()
    base, novel = torch.randn((2, images, WIDTH), generator=generator).relu()
    number = torch.arange(images)
    clock = Clock()
    with clock:
        seen = look_at(method, (base, number % 64), (novel, number % 20))
        seen.effective.mean().item()
    what = f"discriminability and peaks, {images:,} base and as many novel images"
    return row(what, clock.cpu, "CPU-s", "at most 5", clock.cpu <= 5)


def measure(
    episodes: int = EPISODES, slow_episodes: int = 4, passes: int = 100, images: int = 12_000
) -> dict[str, list[Row]]:
    """The published test, then the chapter's analysis.

    Args:
        episodes: Trained together.
        slow_episodes: Trained one after the other.
        passes: Over the support, seven steps each.
        images: Of either kind in the analysis.
    """
    return {"rows": [*heads(episodes, slow_episodes, passes), analysis(images)]}


if __name__ == "__main__":
    main("negative_margin", measure, QUICK)
