"""Spatial contrastive loss: exact Gram-matrix form against the plain one; regression episodes.

python -m benchmarks.scl [--quick]
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.common import Clock, Row, main, row
from fslib.episodes import draw_episodes
from fslib.heads.regression import features_of, regression_scores
from fslib.losses.contrastive import SpatialSimilarity, contrastive_loss

WIDTH, CLASSES, EPISODES = 80, 64, 600
CHUNK = 16  # images of the chunked form
QUICK = {"views": 32, "rounds": 1, "episodes": 10}


def plain_aligned_cosine(query: Tensor, value: Tensor, key: Tensor, other_value: Tensor) -> Tensor:
    """`aligned_cosine` as the equations are written, every aligned and normalised vector made."""
    scores = torch.einsum("ard,bsd->abrs", query, key) / query.shape[-1] ** 0.5
    aligned = torch.einsum("abrs,bsd->abrd", scores.softmax(-1), other_value)
    aligned, value = (functional.normalize(x, dim=-1) for x in (aligned, value))
    return torch.einsum("abrd,ard->abr", aligned, value)


def saved_bytes(run: Callable[[], Tensor]) -> tuple[Tensor, int]:
    """What `run` returns, and the bytes it keeps for the backward pass (each storage once)."""
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        result = run()
    return result, sum(kept.values())


def usual_aligned_cosine(query: Tensor, value: Tensor, key: Tensor, other_value: Tensor) -> Tensor:
    """The same with torch's own function for the cosine, which takes more time and memory."""
    scores = torch.einsum("ard,bsd->abrs", query, key) / query.shape[-1] ** 0.5
    aligned = torch.einsum("abrs,bsd->abrd", scores.softmax(-1), other_value)
    return functional.cosine_similarity(value[:, None], aligned, dim=-1)


def _plain(projected: list[Tensor], labels: Tensor, cosine: Callable[..., Tensor]) -> Tensor:
    query, key, value = projected
    there = cosine(query, value, key, value).mean(-1)
    return contrastive_loss(there + there.T, labels)


def _ours(projected: list[Tensor], labels: Tensor, chunk: int) -> Tensor:
    # The projections are the same in all forms, so they are left out here.
    module = SpatialSimilarity(1, 1, chunk=chunk)
    there = module._directed(tuple(projected), tuple(projected))
    return contrastive_loss(there + there.T, labels)


def spatial_loss(views: int, places: int, rounds: int) -> list[Row]:
    """Time, memory and value of the spatial loss in two plain and two fast forms.

    Args:
        views: Images of a batch in all views.
        places: Locations of a map.
        rounds: Turns of each form.
    """
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(views // 2).remainder(CLASSES).repeat(2)
    projected = [
        torch.randn((views, places, WIDTH), generator=generator).requires_grad_() for _ in range(3)
    ]
    forms = {
        "plain": functools.partial(_plain, cosine=plain_aligned_cosine),
        "cosine_similarity": functools.partial(_plain, cosine=usual_aligned_cosine),
        "Gram matrices": functools.partial(_ours, chunk=0),
        f"Gram matrices, {CHUNK} images at a time": functools.partial(_ours, chunk=CHUNK),
    }
    clocks, kept, values = {name: Clock() for name in forms}, {}, {}
    for _ in range(rounds):
        for name, form in forms.items():
            with clocks[name]:
                loss, kept[name] = saved_bytes(lambda form=form: form(projected, labels))
                gradients = torch.autograd.grad(loss, projected)
            values[name] = [loss.detach(), *gradients]
    title, rows = f"{views} views, {places} locations", []
    for name, clock in clocks.items():
        memory = kept[name] / 1e6
        ours = name.startswith("Gram")
        aim = ("at most 800", memory <= 800) if ours else ("", None)
        rows += [
            row(f"{title}, {name}: forward and backward", clock.cpu / rounds, "CPU-s"),
            row(f"{title}, {name}: kept for backward", memory, "MB", *aim),
        ]
        if ours:
            error = max(
                ((a - b).abs().max() / b.abs().max()).item()
                for a, b in zip(values[name], values["plain"], strict=True)
            )
            for other in ("plain", "cosine_similarity"):
                ratio = clocks[other].cpu / clock.cpu
                rows.append(
                    row(f"{title}, {name}: {other} / it", ratio, "", "at least 4", ratio >= 4)
                )
            rows.append(row(f"{title}, {name}: largest relative difference", error, ""))
    return rows


def regression(episodes: int) -> Row:
    """Five-shot episodes with two regressions and 5 copies, from cached features.

    Args:
        episodes: How many are measured.
    """
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(20).repeat_interleave(30)
    table = draw_episodes(labels, episodes, 5, 5, 15)
    centres = torch.randn((20, 640, 1, 1), generator=generator)
    noise = torch.randn((6 * len(labels), 640, 2, 2), generator=generator)
    # As long as ResNet-12's: 640 and 2,560 numbers; the image itself stands before its 5 copies.
    features = {
        kind: values.unflatten(0, (-1, 6))
        for kind, values in features_of(
            (centres[labels.repeat_interleave(6)] + 4 * noise).relu()
        ).items()
    }

    def support(e: int) -> dict[str, Tensor]:
        return {kind: f[table.support[e].flatten(), 1:] for kind, f in features.items()}

    def query(e: int) -> dict[str, Tensor]:
        return {kind: f[table.query[e].flatten(), 0] for kind, f in features.items()}

    regression_scores(table[:1], support, query, jobs=1)  # imports what it needs
    clock = Clock()
    with clock:
        regression_scores(table, support, query, jobs=1)
    seconds = clock.cpu * EPISODES / episodes
    what = f"{EPISODES} episodes, 2 regressions, 5 copies, on one core"
    return row(what, seconds, "CPU-s", "at most 120 (60 s on 2 cores)", seconds <= 120)


def measure(
    views: int = 256, places: int = 25, rounds: int = 2, episodes: int = EPISODES
) -> dict[str, list[Row]]:
    """The spatial loss at the paper's 25 locations and 80 wide, then the test."""
    return {"rows": [*spatial_loss(views, places, rounds), regression(episodes)]}


if __name__ == "__main__":
    main("scl", measure, QUICK)
