"""Few-shot accuracy by logistic regression on augmented copies of the support (SCL's test).

Each support image enters as several augmented copies. Two regressions are fitted to an episode,
one on the global feature (the mean of the map) and one on the spatial one (the map pooled to a
grid), both of unit length; their probabilities are added. Images and copies are embedded once
and shared by all episodes.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from fslib.augment import augment
from fslib.data import ImageSet
from fslib.episodes import Episodes, draw_episodes
from fslib.evaluate import Scores, embed_images
from fslib.heads import Head
from fslib.logistic import probabilities
from fslib.methods.base import Method

GRID = 2  # cells along a side of the spatial feature
KINDS = ("global", "spatial")


def features_of(maps: Tensor) -> dict[str, Tensor]:
    """Both test features of maps (N, C, h, w), of unit length: (N, C) and (N, 4 C)."""
    grid = functional.adaptive_max_pool2d(maps, GRID).flatten(1)
    return {
        "global": functional.normalize(maps.mean((2, 3)), dim=1),
        "spatial": functional.normalize(grid, dim=1),
    }


def embed_copies(
    method: Method,
    images: ImageSet,
    rows: Tensor,
    copies: int = 5,
    policy: str = "crop_flip_jitter",
    seed: int = 0,
    batch_size: int = 512,
) -> dict[str, Tensor]:
    """Test features of augmented copies.

    Args:
        method: A trained method.
        images: The image set.
        rows: int64 (n,) images to copy.
        copies: Of each image; 0 for the image as it is.
        policy: A key of `fslib.augment.POLICIES`; with `none` all copies are equal.
        seed: Of the copies.
        batch_size: Images at a time.

    Returns:
        (n, copies, d) of each kind of `features_of`; (n, 1, d) for no copies.
    """
    generator = torch.Generator().manual_seed(seed)
    different = 0 if policy == "none" else copies  # equal copies are embedded once
    parts: list[dict[str, Tensor]] = []
    for some in rows.split(batch_size):
        pixels = images.images.index_select(0, some)
        views = [augment(pixels, policy, generator) for _ in range(different)] or [pixels]
        parts += [features_of(embed_images(method, view, batch_size)) for view in views]
    each = max(1, different)
    made = {
        kind: torch.cat(
            [
                torch.stack([p[kind] for p in parts[i : i + each]], 1)
                for i in range(0, len(parts), each)
            ]
        )
        for kind in parts[0]
    }
    if copies > each:
        made = {kind: values.expand(-1, copies, -1) for kind, values in made.items()}
    return made


def projected(support: Tensor, query: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Both sets in the span of the support, where the solution lies: (n, k) and (Q, k).

    The regression gives the same probabilities from k <= n numbers an image instead of d.

    Args:
        support: (n, d).
        query: (Q, d).
    """
    basis = torch.linalg.qr(support.double().T).Q
    return (support.double() @ basis).numpy(), (query.double() @ basis).numpy()


def regression_scores(
    table: Episodes,
    support: Callable[[int], dict[str, Tensor]],
    query: Callable[[int], dict[str, Tensor]],
    jobs: int | None = None,
) -> dict[str, np.ndarray]:
    """Right answers of the regressions and of their probabilities joined.

    Args:
        table: Episodes.
        support: Number of an episode to the features of its support, of each kind
            (way x shot, copies, d).
        query: Number of an episode to the features of its queries, (way x query, d).
        jobs: Processes; as many as there are processors where None, fewer for few episodes.

    Returns:
        int64 (E,) for each kind, and for both joined by `sum` and by `max`.
    """
    import joblib
    from threadpoolctl import threadpool_limits

    episodes, way = table.classes.shape
    shots = np.arange(way).repeat(table.shot)

    def fits() -> Iterator[tuple]:
        for e in range(episodes):
            queries = query(e)
            for kind, features in support(e).items():
                small, asked = projected(features.flatten(0, 1), queries[kind])
                labels = shots.repeat(features.shape[1])
                yield joblib.delayed(probabilities)(small, labels, asked)

    # A process costs seconds to start, a fit some hundredths; threads would wait for each other.
    jobs = jobs or min(os.cpu_count() or 1, 1 + episodes // 200)
    # The matrices are so small that a second thread within a fit only slows it.
    with threadpool_limits(1), joblib.parallel_config("loky", inner_max_num_threads=1):
        found = np.stack(joblib.Parallel(n_jobs=jobs)(fits()))
    both = found.reshape(episodes, len(KINDS), -1, way).swapaxes(0, 1)
    answers = dict(zip(KINDS, both, strict=True)) | {
        "sum": both.sum(0),
        "max": both.max(0),
    }
    target = np.arange(way).repeat(both.shape[2] // way)
    return {name: (p.argmax(-1) == target).sum(1) for name, p in answers.items()}


def evaluate_regression(
    method: Method,
    images: ImageSet,
    shot: int = 1,
    way: int = 5,
    query: int = 15,
    episodes: int = 600,
    seed: int = 0,
    copies: int = 5,
    policy: str = "crop_flip_jitter",
    maps: Tensor | None = None,
    jobs: int | None = None,
) -> dict[str, Scores]:
    """Accuracy of the two regressions and of their probabilities joined.

    Args:
        method: A trained method.
        images: Usually the novel classes.
        shot: Support images of a class.
        way: Classes of an episode.
        query: Query images of a class.
        episodes: How many.
        seed: Of the episodes (as in `evaluate`) and of the copies.
        copies: Augmented copies of a support image; 0 for the image as it is.
        policy: Their augmentation.
        maps: Cached result of `embed_images(method, images)`.
        jobs: Processes, see `regression_scores`.

    Returns:
        Scores under `global`, `spatial`, `sum` (the paper's test) and `max`.
    """
    table = draw_episodes(images.labels, episodes, way, shot, query, seed, images.class_names)
    rows, place = table.support.unique(return_inverse=True)
    copied = embed_copies(method, images, rows, copies, policy, seed)
    plain = features_of(embed_images(method, images) if maps is None else maps)
    correct = regression_scores(
        table,
        lambda e: {kind: copied[kind][place[e].flatten()] for kind in KINDS},
        lambda e: {kind: plain[kind][table.query[e].flatten()] for kind in KINDS},
        jobs,
    )
    return {name: Scores(c, way * query, way, shot, seed) for name, c in correct.items()}


# The last few tests that were fitted: one fit answers for all four ways of joining.
_FITTED: dict[tuple[Hashable, ...], dict[str, Scores]] = {}


@dataclass(frozen=True)
class RegressionTest(Head):
    """SCL's test as a head: `evaluate` hands it the images, because it copies the support.

    Attributes:
        join: `global` or `spatial` alone, or the probabilities of both joined by `sum` or `max`.
        copies: Augmented copies of a support image; 0 for the image as it is.
        policy: Their augmentation; `none` for equal copies, which only loosen the regression.
    """

    kind: str = "regression"
    join: str = "sum"
    copies: int = 5
    policy: str = "crop_flip_jitter"

    def evaluate(
        self, method: Method, images: ImageSet, maps: Tensor | None = None, **asked: int
    ) -> Scores:
        """Scores of the test; arguments as those of `fslib.evaluate.evaluate`."""
        maps = embed_images(method, images) if maps is None else maps
        # Equal maps: the same network and images. Known without asking who embedded them.
        content = hashlib.sha256(maps.contiguous().numpy()).hexdigest()
        key = (content, *sorted(asked.items()), self.copies, self.policy)
        if key not in _FITTED:
            while len(_FITTED) >= 16:
                _FITTED.pop(next(iter(_FITTED)))
            _FITTED[key] = evaluate_regression(
                method, images, copies=self.copies, policy=self.policy, maps=maps, **asked
            )
        return _FITTED[key][self.join]


REGRESSION_TESTS: dict[str, Head] = {
    # The released test: both features, 5 augmented copies, probabilities added.
    **{f"scl_{join}": RegressionTest(join=join) for join in (*KINDS, "sum", "max")},
    # The same with equal copies: as strong a regression, but nothing new to see.
    **{f"scl_{join}_same": RegressionTest(join=join, policy="none") for join in (*KINDS, "sum")},
    **{f"scl_sum_{n}": RegressionTest(copies=n) for n in (0, 1, 10, 25)},
}
"""Short names for records and for the command line, as in `fslib.heads.HEADS`."""
