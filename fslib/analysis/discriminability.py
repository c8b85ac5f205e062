"""How tight classes lie, how far apart, and over how many base classes a novel class spreads."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Discriminability:
    """Spread of unit features.

    Attributes:
        intra: Mean squared distance of an image to the mean of its class, averaged over classes.
        inter: Mean squared distance of two class means.
    """

    intra: float
    inter: float

    @property
    def ratio(self) -> float:
        """Inter over intra: large where classes are easy to tell apart."""
        return self.inter / self.intra


def _class_means(values: Tensor, labels: Tensor) -> Tensor:
    """Mean row of every class: (N, d), int64 (N,) with every class present, to (C, d)."""
    counts = torch.bincount(labels)
    if (counts == 0).any():
        missing = torch.nonzero(counts == 0).flatten().tolist()
        raise ValueError(f"classes {missing} have no images: renumber the labels 0 to C - 1")
    sums = values.new_zeros(len(counts), values.shape[1]).index_add_(0, labels, values)
    return sums / counts.unsqueeze(1)


def discriminability(features: Tensor, labels: Tensor) -> Discriminability:
    """Spread within and between classes, of features scaled to unit length.

    With unit features and class means mu_c both spreads have a closed form, so no pair is visited::

        D_intra = mean(1 - |mu_c|^2)
        D_inter = 2 C / (C - 1) (mean |mu_c|^2 - |mean mu_c|^2)

    Args:
        features: (N, d).
        labels: int64 (N,), 0 to C - 1, at least two classes.
    """
    # Tight classes: 1 - |mu|^2 is a small difference, float32 would keep half its digits.
    means = _class_means(F.normalize(features.double(), dim=1), labels)
    classes = len(means)
    if classes < 2:
        raise ValueError("discriminability compares classes: give at least two")
    squared = means.square().sum(1).mean()
    spread = squared - means.mean(0).square().sum()
    return Discriminability(float(1 - squared), float(2 * classes / (classes - 1) * spread))


def base_peaks(
    similarity: Tensor, labels: Tensor, scale: float = 1.0, hard: bool = False
) -> Tensor:
    """Where the base classifier sends the images of each novel class.

    Liu et al. (2020) compare how many base classes one novel class falls on. At the scale of
    training a single image is nearly always one-hot, so the table shows how the images are dealt
    out; at a scale of 1 it is nearly flat.

    Args:
        similarity: (N, K) of novel images to base classes, margin off.
        labels: int64 (N,), novel class of each image, 0 to J - 1.
        scale: s of the softmax.
        hard: Count the nearest base class of each image rather than average its softmax.

    Returns:
        (J, K), rows sum to 1.
    """
    if hard:
        shares = F.one_hot(similarity.argmax(1), similarity.shape[1]).to(similarity.dtype)
    else:
        shares = (scale * similarity).softmax(1)
    return _class_means(shares, labels)


def effective_peaks(peaks: Tensor) -> Tensor:
    """Number of equal peaks with the same entropy, exp(H): (..., K) to (...), from 1 to K."""
    return torch.special.entr(peaks).sum(-1).exp()
