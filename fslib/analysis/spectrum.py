"""How features fill their space: singular values, effective rank, alignment, uniformity.

A network trained on base classes may give novel images features that lie in few directions. The
singular values of the centred features show it as a curve, the effective rank as a number.
Alignment and uniformity (Wang & Isola 2020) look at the unit sphere instead: how near images of
one class lie, and how evenly all images are spread. `even_share` asks the same of an attention.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from fslib.analysis.discriminability import effective_peaks


def singular_values(features: Tensor) -> Tensor:
    """Singular values of centred features (n, d), largest first: float64 (min(n, d),)."""
    features = features.double()
    return torch.linalg.svdvals(features - features.mean(0))


def explained_variance(values: Tensor) -> Tensor:
    """Share of the variance in the first 1, 2, ... directions, from singular values (k,)."""
    variance = values.square()
    return variance.cumsum(0) / variance.sum()


def effective_rank(values: Tensor) -> float:
    """How many directions the variance is spread over: exp of the entropy of its shares.

    k for k equal singular values, 1 where a single direction holds everything.

    Args:
        values: Singular values (k,), not all 0.
    """
    return effective_peaks(values.square() / values.square().sum()).item()


def even_share(attention: Tensor) -> Tensor:
    """How many places an attention (..., S) is spread over, as a share of all S: 1 is evenly.

    The exponential of its entropy over S, so that 1 / S is a single place.
    """
    return effective_peaks(attention.clamp(min=0)) / attention.shape[-1]


def alignment(features: Tensor, labels: Tensor) -> float:
    """Mean squared distance of two different images of one class, on the unit sphere.

    0 where each class is a point, 2 where its images are orthogonal.

    Args:
        features: (n, d), normalised here.
        labels: int64 (n,), with at least one class of two images.
    """
    _, labels = labels.unique(return_inverse=True)
    unit = functional.normalize(features.double(), dim=1)
    counts = labels.bincount().double()
    sums = unit.new_zeros(len(counts), unit.shape[1]).index_add_(0, labels, unit)
    # Over the ordered pairs of a class, the sum of |x - y|^2 is 2 n sum |x|^2 - 2 |sum x|^2.
    total = 2 * (counts.square() - sums.square().sum(1)).sum()
    return (total / (counts * (counts - 1)).sum()).item()


def uniformity(features: Tensor, sharpness: float = 2.0) -> float:
    """Log of the mean of ``exp(-sharpness |x - y|^2)`` over pairs of different images.

    0 where all features coincide; lower is more even, about -4 at best for a sharpness of 2.

    Args:
        features: (n, d), normalised here.
        sharpness: How fast a pair's share falls with its distance.
    """
    unit = functional.normalize(features.double(), dim=1)
    # Of exp(-s (2 - 2 x.y)), with the pairs of an image with itself, n of them, taken off.
    total = sum((2 * sharpness * (part @ unit.T - 1)).exp().sum() for part in unit.split(1024))
    return torch.log((total - len(unit)) / (len(unit) * (len(unit) - 1))).item()
