"""Which classes a model takes for similar, and whether the names of the classes agree.

BML's last section looks at a ranking of classes by eye. Here it becomes a number: the rank
correlation of visual similarity with a class hierarchy or with word vectors.
"""

from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from scipy.stats import kendalltau
from torch import Tensor


@dataclass(frozen=True)
class RankCorrelation:
    """Agreement of two similarity matrices over all pairs of classes.

    Attributes:
        tau: Kendall's tau-b in [-1, 1]; 0 where the orders have nothing in common.
        tau_interval: Lower and upper end of its 95 % interval.
        tau_draws: Tau of every bootstrap sample, (draws,); NaN where a sample ranks nothing. Two
            results over the same classes with the same seed were resampled alike, so their
            differences are paired.
    """

    tau: float
    tau_interval: tuple[float, float]
    tau_draws: np.ndarray = field(repr=False, compare=False)


def hierarchy_similarity(superclass: tuple[str, ...]) -> Tensor:
    """1 for two classes of one superclass, else 0: float32 (C, C)."""
    number = {name: i for i, name in enumerate(dict.fromkeys(superclass))}
    group = torch.tensor([number[name] for name in superclass])
    return (group[:, None] == group[None, :]).float()


def visual_similarity(features: Tensor, labels: Tensor) -> Tensor:
    """Cosine of every two class means.

    Args:
        features: (N, d).
        labels: int64 (N,), 0 to C - 1, every class present.

    Returns:
        float32 (C, C).
    """
    members = F.one_hot(labels).float()
    counts = members.sum(0)
    if (counts == 0).any():
        missing = torch.nonzero(counts == 0).flatten().tolist()
        raise ValueError(f"classes {missing} have no images: renumber the labels 0 to C - 1.")
    means = F.normalize(members.T @ features.float() / counts[:, None], dim=1)
    return means @ means.T


def rank_correlation(
    visual: Tensor, reference: Tensor, draws: int = 500, seed: int = 0
) -> RankCorrelation:
    """Do pairs of classes that look alike also stand close in the reference?

    Pairs share classes and are not independent, so the percentile bootstrap draws whole classes
    and leaves out the pairs of a class with itself.

    Args:
        visual: Symmetric similarities (C, C); the diagonal is ignored.
        reference: Symmetric similarities (C, C), such as `hierarchy_similarity`.
        draws: Number of bootstrap samples.
        seed: Seed of the bootstrap.

    Raises:
        ValueError: If the shapes differ, there are fewer than 3 classes, or one of the matrices
            is the same for all pairs, which leaves nothing to rank.
    """
    if visual.shape != reference.shape or visual.ndim != 2 or len(visual) < 3:
        raise ValueError(
            f"shapes {tuple(visual.shape)} and {tuple(reference.shape)}: give two square matrices "
            "over the same 3 or more classes."
        )
    a, b = visual.double().numpy(), reference.double().numpy()
    classes = len(a)
    first, second = np.triu_indices(classes, 1)

    def tau_of(chosen: np.ndarray) -> float:
        i, j = chosen[first], chosen[second]
        i, j = i[i != j], j[i != j]
        x, y = a[i, j], b[i, j]
        if len(x) < 2 or (x == x[0]).all() or (y == y[0]).all():
            return np.nan
        return kendalltau(x, y).statistic

    tau = tau_of(np.arange(classes))
    if np.isnan(tau):
        raise ValueError("one of the matrices is the same for all pairs: there is no order in it.")
    generator = np.random.default_rng(seed)
    drawn = generator.integers(classes, size=(draws, classes))
    spread = np.array([tau_of(chosen) for chosen in drawn])
    low, high = np.nanpercentile(spread, [2.5, 97.5]).tolist()
    return RankCorrelation(float(tau), (low, high), spread)


def highest_tau(reference: Tensor) -> float:
    """The largest tau-b that an order without ties can reach with a reference that has some.

    A hierarchy says of two classes only whether they belong together, so most pairs of pairs are
    tied in it. Tau-b divides by the geometric mean of the untied ones in both orders, which
    leaves the root of the share that the reference does not tie.

    Args:
        reference: Symmetric similarities (C, C); the diagonal is ignored.
    """
    first, second = np.triu_indices(len(reference), 1)
    _, counts = np.unique(reference.numpy()[first, second], return_counts=True)
    total = len(first) * (len(first) - 1) / 2
    tied = (counts * (counts - 1) / 2).sum()
    return float(np.sqrt((total - tied) / total))


def query_rank_correlation(logits: Tensor, labels: Tensor, reference: Tensor) -> Tensor:
    """Kendall's tau-b of each query's ranking of the wrong classes with a reference.

    The true class is left out: that it comes first is accuracy, not a sense of similarity.

    Args:
        logits: (Q, way).
        labels: int64 (Q,), the true way of each query.
        reference: Similarities of the ways, (way, way), or (Q, way, way) where each query comes
            from an episode of its own.

    Returns:
        float32 (Q,); NaN where the reference or the logits rank nothing (all ties). Its
        `nanmean()` is the number to report.
    """
    if reference.ndim == 2:
        wanted = reference[labels]
    else:
        wanted = reference[torch.arange(len(labels)), labels]
    wrong = torch.arange(logits.shape[1]) != labels[:, None]
    pair = (wrong[:, :, None] & wrong[:, None, :]).float()
    x = torch.sign(logits[:, :, None] - logits[:, None, :]) * pair
    y = torch.sign(wanted[:, :, None] - wanted[:, None, :]) * pair
    total = (x * y).sum((1, 2))
    scale = x.square().sum((1, 2)) * y.square().sum((1, 2))
    return torch.where(scale > 0, total / scale.clamp_min(1).sqrt(), torch.nan)
