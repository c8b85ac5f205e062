"""Seeded episodes: which classes and which images, drawn once and the same for every method."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


class TooFewImages(ValueError):
    """A class holds fewer images than an episode needs."""


@dataclass(frozen=True)
class Episodes:
    """E few-shot tasks as tables of row numbers.

    Attributes:
        index: int64 (E, way, shot + query), rows of an `ImageSet`; the first `shot` of the last
            axis are the support.
        classes: int64 (E, way), the class index behind each way.
        shot: Support images of a class.
    """

    index: Tensor
    classes: Tensor
    shot: int

    def __len__(self) -> int:
        """The number of episodes E."""
        return len(self.index)

    @property
    def way(self) -> int:
        """Classes of an episode."""
        return self.index.shape[1]

    @property
    def support(self) -> Tensor:
        """Rows of the support images, (E, way, shot)."""
        return self.index[..., : self.shot]

    @property
    def query(self) -> Tensor:
        """Rows of the query images, (E, way, query)."""
        return self.index[..., self.shot :]

    def __getitem__(self, item: slice) -> Episodes:
        """A stretch of the episodes."""
        return Episodes(self.index[item], self.classes[item], self.shot)


def _distinct(generator: np.random.Generator, population: np.ndarray, draws: int) -> np.ndarray:
    """For each entry n of `population`, `draws` distinct numbers below n in random order.

    Floyd's algorithm (Bentley, CACM 1987) for all rows at once: its loop runs over the draws,
    never over the rows.

    Args:
        generator: Source of randomness.
        population: int64 (R,), each at least `draws`.
        draws: How many numbers a row.

    Returns:
        int64 (R, draws).
    """
    chosen = np.empty((len(population), draws), dtype=np.int64)
    for j in range(draws):
        last = population - draws + j
        candidate = generator.integers(0, last + 1)
        taken = (chosen[:, :j] == candidate[:, None]).any(1)
        chosen[:, j] = np.where(taken, last, candidate)
    # Floyd's set is uniform but its order is not, and the order parts support from query.
    return generator.permuted(chosen, axis=1)


def draw_episodes(
    labels: Tensor,
    episodes: int = 10_000,
    way: int = 5,
    shot: int = 1,
    query: int = 15,
    seed: int | Sequence[int] = 0,
    class_names: Sequence[str] | None = None,
) -> Episodes:
    """Draw episodes: `way` classes without replacement, then distinct images of each.

    Args:
        labels: int64 (N,), the class of every image.
        episodes: How many tasks E.
        way: Classes of a task.
        shot: Support images of a class.
        query: Query images of a class.
        seed: One number, or several that together name a stream (seed, epoch, ...).
        class_names: For the error message only.

    Returns:
        The index tables, the same for the same arguments on every machine.

    Raises:
        ValueError: `way` is above the number of classes, or a number is not positive.
        TooFewImages: A class cannot fill support and query.
    """
    if min(episodes, way, shot, query) < 1:
        raise ValueError(
            f"episodes, way, shot and query must be at least 1, not {(episodes, way, shot, query)}"
        )
    of_class = labels.numpy()
    counts = np.bincount(of_class)
    present = np.flatnonzero(counts)
    if way > len(present):
        raise ValueError(
            f"a {way}-way episode needs {way} classes and there are {len(present)}: lower `way`"
        )
    need = shot + query
    for c in present[counts[present] < need][:1]:
        name = class_names[c] if class_names else f"number {c}"
        raise TooFewImages(
            f"class {name} has {counts[c]} images, an episode needs {need} "
            f"({shot} support + {query} query): lower `shot` or `query`, or add images"
        )
    generator = np.random.default_rng(seed)
    drawn = _distinct(generator, np.full(episodes, len(present)), way)
    classes = present[drawn]
    order = np.argsort(of_class, kind="stable")
    start = np.cumsum(counts) - counts
    flat = classes.reshape(-1)
    inside = _distinct(generator, counts[flat], need)
    index = order[start[flat][:, None] + inside].reshape(episodes, way, need)
    return Episodes(torch.from_numpy(index), torch.from_numpy(classes), shot)
