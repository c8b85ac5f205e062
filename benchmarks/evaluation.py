"""Evaluation: 2,000 episodes from cached features against one forward pass an episode.

python -m benchmarks.evaluation [--quick]
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.datasets import ImageFolder

from benchmarks.common import Clock, Row, main, pictures, png_folder, row
from fslib.device import resolve_precision
from fslib.episodes import Episodes, draw_episodes
from fslib.evaluate import embed_images, score_episodes
from fslib.heads import HEADS
from fslib.methods import Method, build_method

CLASSES, SHOT, IMAGES, EPISODES = 20, 5, 12_000, 2_000
HEAD = HEADS["l2n"]
QUICK = {"images": 400, "rounds": 1, "embedded": 256, "slow_episodes": 1, "repeats": 2}


@torch.no_grad()
def usual_logits(net: nn.Module, files: ImageFolder, episodes: Episodes, number: int) -> Tensor:
    """Logits (way x query, way) of one episode: open its files, embed them, compare.

    Support and query go through the network, fp32 and NCHW, for this episode alone.
    """

    def features(rows: Tensor) -> Tensor:
        images = torch.stack([files[int(n)][0] for n in rows.flatten()])
        return functional.normalize(net(images).mean((2, 3)), dim=1)

    support = features(episodes.support[number]).view(episodes.way, SHOT, -1)
    query = features(episodes.query[number])
    return -(query[:, None] - support.mean(1)[None]).square().sum(2)


def _settled(method: Method, images: Tensor) -> Method:
    """Batch norm with the statistics of the pictures, as after training."""
    method.train()
    with torch.no_grad():
        for _ in range(8):
            method.embed(images[:: max(1, len(images) // 64)])
    return method.eval()


def scoring(repeats: int) -> Clock:
    """The best of `repeats` times of 2,000 episodes over 640 numbers an image."""
    generator = torch.Generator().manual_seed(0)
    features = functional.normalize(torch.randn((IMAGES, 640), generator=generator), dim=1)
    labels = torch.arange(CLASSES).repeat_interleave(IMAGES // CLASSES)
    table = draw_episodes(labels, EPISODES, 5, SHOT, 15)
    method, clocks = build_method("ce"), []
    for _ in range(repeats):
        with Clock() as clock, torch.inference_mode():
            for logits in score_episodes(method, features, table, HEAD):
                logits.argmax(-1)
        clocks.append(clock)
    return min(clocks, key=lambda c: c.cpu)


def measure(
    backbone: str = "resnet12",
    images: int = IMAGES,
    rounds: int = 6,
    embedded: int = IMAGES // 6,
    slow_episodes: int = 2,
    repeats: int = 5,
) -> Row:
    """Alternate between embedding a stretch of the images and a few episodes of the usual path.

    Args:
        backbone: Of both.
        images: Pictures to draw episodes from, at least 20 a class.
        rounds: Turns of either path.
        embedded: Images our path embeds in a turn.
        slow_episodes: Episodes the usual path scores in a turn.
        repeats: Of scoring alone.
    """
    pixels, labels = pictures(images, CLASSES)
    table = draw_episodes(labels, rounds * slow_episodes, 5, SHOT, 15)
    torch.manual_seed(0)
    ours = _settled(build_method("ce", backbone).to(memory_format=torch.channels_last), pixels)
    plain = build_method("ce", backbone)
    plain.load_state_dict(ours.state_dict())
    net = plain.to(memory_format=torch.contiguous_format).eval().backbone
    embed, usual, draw = Clock(), Clock(), Clock()
    slow = []
    with tempfile.TemporaryDirectory() as folder:
        files = png_folder(pixels, labels, Path(folder), augmented=False)
        for turn in range(rounds):
            start = turn * embedded % max(1, images - embedded + 1)
            with usual:
                for number in range(turn * slow_episodes, (turn + 1) * slow_episodes):
                    slow.append(usual_logits(net, files, table, number))
            with embed:
                embed_images(ours, pixels[start : start + embedded])
    # The same episodes from features that were computed once, in fp32.
    used, place = table.index.unique(return_inverse=True)
    once = HEAD.features(embed_images(ours, pixels[used], precision="32-true"))
    fast = torch.cat(list(score_episodes(ours, once, Episodes(place, table.classes, SHOT), HEAD)))
    reference = torch.stack(slow)
    difference = ((fast - reference).abs().max() / reference.abs().max()).item()
    with draw:
        draw_episodes(torch.arange(CLASSES).repeat_interleave(600), EPISODES, 5, SHOT, 15)
    score = scoring(repeats)
    all_usual = usual.cpu * EPISODES / len(slow)
    all_ours = embed.cpu * IMAGES / (rounds * embedded) + draw.cpu + score.cpu
    rate = EPISODES / score.cpu
    ratio = all_usual / all_ours
    rows = [
        row("2,000 episodes, usual path (extrapolated)", all_usual, "CPU-s"),
        row("2,000 episodes, fslib: 12,000 images once, then scores", all_ours, "CPU-s"),
        row("evaluation: fslib / usual path", ratio, "", "at least 35 (bf16)", ratio >= 35),
        row("scoring alone, 640 features", rate, "episodes/CPU-s", "at least 4,000", rate >= 4000),
        row(
            "logits: largest difference / largest logit, fp32",
            difference,
            "",
            "at most 1e-4",
            difference <= 1e-4,
        ),
    ]
    raw = {
        "usual": usual.rate(len(slow)) | {"episodes": len(slow)},
        "embedding": embed.rate(rounds * embedded) | {"images": rounds * embedded},
        "scoring": score.rate(EPISODES),
        "precision": resolve_precision("auto"),
    }
    return {"rows": rows, "raw": raw, "backbone": backbone}


if __name__ == "__main__":
    main("evaluation", measure, QUICK)
