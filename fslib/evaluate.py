"""Few-shot accuracy: embed every image once, then score thousands of episodes at a time."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from scipy.special import stdtrit
from torch import Tensor
from tqdm import tqdm

from fslib.data import ImageSet
from fslib.device import autocast
from fslib.episodes import Episodes, draw_episodes
from fslib.heads import Head
from fslib.methods.base import Method

# Features gathered at a time, in numbers: 4 M float32 (16 MB). Larger pieces leave the cache (half
# the speed at 64 MB), smaller ones pay for their calls.
CHUNK = 4_000_000


def interval(values: np.ndarray | Tensor) -> tuple[float, float]:
    """Mean and half-width of its 95 % interval (Student's t over independent values).

    Args:
        values: (E,), such as the accuracy of every episode.

    Returns:
        Mean and half-width, in the unit of the values.
    """
    values = np.asarray(values, dtype=np.float64)
    if len(values) < 2:
        return float(values.mean()), float("nan")
    error = values.std(ddof=1) / np.sqrt(len(values))
    return float(values.mean()), float(error * stdtrit(len(values) - 1, 0.975))


@dataclass(frozen=True)
class Scores:
    """Right answers of every episode.

    Attributes:
        correct: int64 (E,), queries answered rightly.
        queries: Queries of an episode, way x query.
        way: Classes of an episode.
        shot: Support images of a class.
        seed: The seed of the episodes; two scores are paired only where it agrees.
    """

    correct: np.ndarray
    queries: int
    way: int
    shot: int
    seed: int | None = None

    @property
    def accuracy(self) -> np.ndarray:
        """Accuracy of every episode (E,), in percent."""
        return self.correct * (100 / self.queries)

    @property
    def mean(self) -> float:
        """Mean accuracy in percent."""
        return interval(self.accuracy)[0]

    @property
    def ci95(self) -> float:
        """Half-width of its 95 % interval, in percentage points."""
        return interval(self.accuracy)[1]

    def __str__(self) -> str:
        """Such as `67.90 ± 0.22`."""
        return f"{self.mean:.2f} ± {self.ci95:.2f}"


def paired_difference(first: Scores, second: Scores) -> tuple[float, float]:
    """How much better `first` is on the same episodes, with its 95 % interval.

    Both methods meet the same classes and images, so the spread between episodes cancels and the
    interval is far narrower than that of either mean.

    Returns:
        Mean difference and half-width, in percentage points.

    Raises:
        ValueError: The two were not scored on the same episodes.
    """
    keys = [(len(s.correct), s.queries, s.way, s.shot, s.seed) for s in (first, second)]
    if keys[0] != keys[1]:
        raise ValueError(f"scores of different episodes cannot be paired: {keys[0]} and {keys[1]}")
    return interval(first.accuracy - second.accuracy)


def embed_images(
    method: Method,
    images: ImageSet | Tensor,
    batch_size: int = 512,
    progress: bool = False,
    precision: str = "auto",
) -> Tensor:
    """Feature maps of every image, each computed once.

    Args:
        method: Its `embed` is called on its own device.
        images: An `ImageSet` or uint8 (N, 3, H, W).
        batch_size: Images at a time.
        progress: Show a bar.
        precision: `auto`, `bf16-mixed` or `32-true`.

    Returns:
        float32 (N, C, h, w) on the CPU.
    """
    pixels = images.images if isinstance(images, ImageSet) else images
    device = method.mean.device
    was_training = method.training
    method.eval()
    starts = range(0, len(pixels), batch_size)
    maps: Tensor | None = None
    # Not inference mode: its tensors could never be trained on (cached features).
    with torch.no_grad(), autocast(device, precision):
        for start in tqdm(starts, "embedding", disable=not progress, leave=False):
            part = method.embed(pixels[start : start + batch_size].to(device)).float().cpu()
            if maps is None:
                maps = part.new_empty((len(pixels), *part.shape[1:]))
            maps[start : start + len(part)] = part
    method.train(was_training)
    if maps is None:
        raise ValueError("there are no images to embed")
    return maps


_RECENT: OrderedDict[tuple[Hashable, ...], Tensor] = OrderedDict()
RECENT_BYTES = 500_000_000
"""How much `embed_recent` remembers."""


def embed_recent(weights: Hashable, method: Method, images: ImageSet, note: str = "") -> Tensor:
    """`embed_images`, remembered while one network is asked for one score after another.

    Args:
        weights: What names the trained weights, such as the folder of a run.
        method: The network with these weights.
        images: Images to embed.
        note: What was done to them, such as a corruption.
    """
    key = (weights, images.digest, images.split, len(images), images.size, note)
    if key not in _RECENT:
        _RECENT[key] = embed_images(method, images, progress=True)
    _RECENT.move_to_end(key)
    while len(_RECENT) > 1 and sum(m.nbytes for m in _RECENT.values()) > RECENT_BYTES:
        _RECENT.popitem(last=False)
    return _RECENT[key]


def _own_features(method: Method, maps: Tensor) -> Tensor:
    """`method.test_features(maps)` on the method's device, where its `score` needs them."""
    device = method.mean.device
    if maps.device == device:
        return method.test_features(maps)
    # A batch at a time: all maps never lie on the device beside their features.
    return torch.cat([method.test_features(part.to(device)) for part in maps.split(512)])


def _gather(features: Tensor, rows: Tensor) -> Tensor:
    """`features[rows]`, copied row by row: twice as fast as general indexing."""
    flat = rows.flatten().to(features.device)
    return features.index_select(0, flat).view(*rows.shape, *features.shape[1:])


def _chunks(episodes: Episodes, width: int) -> Iterator[Episodes]:
    step = max(1, CHUNK // (episodes.index[0].numel() * width))
    return (episodes[start : start + step] for start in range(0, len(episodes), step))


def score_episodes(
    method: Method,
    features: Tensor,
    episodes: Episodes,
    head: Head | None = None,
    branch: str = "",
    semantics: Tensor | None = None,
) -> Iterator[Tensor]:
    """Logits of all queries, a stretch of episodes at a time.

    Args:
        method: Gives `score`, unless `head` does.
        features: (N, d), one row an image; for the method's own `score` on the method's device.
        episodes: Index tables.
        head: A classifier in place of the method's own.
        branch: One of `method.branches()` in place of the whole.
        semantics: (C, w) word vectors of the classes, for a method that uses them.

    Yields:
        (e, way x query, way) logits on the device of the features; queries run class by class.

    Raises:
        ValueError: The method needs word vectors and there are none.
    """
    score = method.branches()[branch] if branch else method.score
    words = method.uses_semantics and not branch and head is None
    if words and semantics is None:
        raise ValueError(
            "this method compares word vectors and these classes have none: "
            "add them with `python -m data_scripts.glove --pack data/NAME --from glove.6B.zip "
            "--dimension 100`"
        )
    for part in _chunks(episodes, features[0].numel()):
        support = _gather(features, part.support)
        query = _gather(features, part.query.flatten(1))
        if head is not None:
            yield head.score(support, query)
        elif words:
            yield score(support, query, semantics[part.classes].to(features.device))
        else:
            yield score(support, query)


def evaluate(
    method: Method,
    images: ImageSet,
    shot: int = 1,
    way: int = 5,
    query: int = 15,
    episodes: int = 10_000,
    seed: int = 0,
    head: Head | None = None,
    maps: Tensor | None = None,
    base_mean: Tensor | None = None,
    branch: str = "",
) -> Scores:
    """Accuracy on seeded episodes over the classes of an image set.

    Args:
        method: A trained method.
        images: Usually the novel classes, `open_dataset(...)["test"]`.
        shot: Support images of a class.
        way: Classes of an episode.
        query: Query images of a class.
        episodes: How many; 10,000 give an interval of about 0.2 points at 1 shot.
        seed: The same seed draws the same episodes for every method.
        head: A test-time classifier in place of the method's own.
        maps: Cached result of `embed_images(method, images)`.
        base_mean: For a centred head, see `Head.features`.
        branch: Score one of `method.branches()` by itself.

    Returns:
        The scores of every episode.
    """
    own = getattr(head, "evaluate", None)
    if own:  # a test that changes the images themselves, such as one with augmented support
        asked = {"shot": shot, "way": way, "query": query, "episodes": episodes, "seed": seed}
        return own(method, images, maps=maps, **asked)
    table = draw_episodes(images.labels, episodes, way, shot, query, seed, images.class_names)
    if maps is None:
        maps = embed_images(method, images)
    with torch.inference_mode():
        # A head has no weights, so it works where the maps lie.
        features = _own_features(method, maps) if head is None else head.features(maps, base_mean)
        target = torch.arange(way, device=features.device).repeat_interleave(query)
        correct = [
            (logits.argmax(-1) == target).sum(1)
            for logits in score_episodes(method, features, table, head, branch, images.semantics)
        ]
    return Scores(torch.cat(correct).cpu().numpy(), way * query, way, shot, seed)
