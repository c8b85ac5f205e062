"""Features of many images, seen in two dimensions and judged in all of them."""

import numpy as np
import torch
from sklearn.manifold import TSNE
from sklearn.metrics import silhouette_samples
from torch import Tensor


def choose_images(labels: Tensor, classes: list[int], per_class: int, seed: int = 0) -> Tensor:
    """Draw the same number of images from each of some classes.

    Args:
        labels: int64 (N,), the class of each image.
        classes: The classes wanted.
        per_class: Images of each class.
        seed: Chooses the images.

    Returns:
        int64 (len(classes) * per_class,) row numbers, class after class in the order given.

    Raises:
        ValueError: If a class holds fewer than `per_class` images.
    """
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for label in classes:
        own = torch.nonzero(labels == label).flatten()
        if len(own) < per_class:
            raise ValueError(
                f"class {label} holds {len(own)} images, {per_class} are wanted: ask for fewer."
            )
        rows.append(own[torch.randperm(len(own), generator=generator)[:per_class]])
    return torch.cat(rows)


def tsne(features: Tensor, seed: int = 0, perplexity: float = 30.0) -> np.ndarray:
    """Lay features out in the plane with t-SNE, which keeps near neighbours near.

    The start is the plane of the two largest principal components, not a random one: the picture
    then keeps more of the coarse order of the classes and depends little on the seed. Distances
    between far clusters and the sizes of clusters still mean nothing; `silhouette` measures what
    the picture suggests.

    Args:
        features: (N, d), or maps (N, C, h, w), which are averaged over their positions.
        seed: Seed of the gradient descent.
        perplexity: About how many neighbours each point listens to; lowered to (N - 1) / 3 for
            few points, the largest value that makes sense.

    Returns:
        float32 (N, 2).

    Source:
        van der Maaten and Hinton, Visualizing Data using t-SNE, JMLR 2008; start by principal
        components: Kobak and Berens, The art of using t-SNE, Nature Communications 2019.
    """
    points = _flat(features)
    perplexity = min(perplexity, (len(points) - 1) / 3)
    layout = TSNE(perplexity=perplexity, init="pca", learning_rate="auto", random_state=seed)
    return layout.fit_transform(points)


def silhouette(
    features: Tensor,
    labels: Tensor,
    draws: int = 1000,
    seed: int = 0,
    less: Tensor | None = None,
) -> tuple[float, float, float]:
    """How tight and far apart the classes lie, in the original space, with a 95 % interval.

    The silhouette of an image is (b - a) / max(a, b): a is its mean distance to its own class, b
    that to the nearest other class. The mean over images lies in [-1, 1].

    The interval is a percentile bootstrap over the images' silhouettes, each computed once, within
    each class: would other images of the same classes say the same? With `less` it is that of the
    differences, image by image, which is narrower than two intervals held against each other.

    Args:
        features: (N, d), or maps (N, C, h, w), which are averaged over their positions.
        labels: int64 (N,).
        draws: Number of bootstrap samples.
        seed: Seed of the bootstrap.
        less: Features of the same images in another network, whose silhouettes are subtracted.

    Returns:
        Mean, lower and upper end of the interval.
    """
    values = silhouette_samples(_flat(features), labels.numpy())
    if less is not None:
        values = values - silhouette_samples(_flat(less), labels.numpy())
    own = [values[labels.numpy() == label] for label in labels.unique().tolist()]
    generator = np.random.default_rng(seed)
    sums = sum(part[generator.integers(len(part), size=(draws, len(part)))].sum(1) for part in own)
    low, high = np.percentile(sums.astype(np.float64) / len(values), [2.5, 97.5])
    return float(values.mean()), float(low), float(high)


def _flat(features: Tensor) -> np.ndarray:
    if features.ndim == 4:
        features = features.mean(dim=(2, 3))
    if features.ndim != 2:
        raise ValueError(
            f"features have shape {tuple(features.shape)}: give (N, d) or maps (N, C, h, w)."
        )
    return features.detach().float().cpu().numpy()
