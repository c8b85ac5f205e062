"""Where in an image a decision comes from: maps of similarity and of class evidence."""

import torch
import torch.nn.functional as F
from torch import Tensor


def similarity_map(query: Tensor, prototypes: Tensor, metric: str = "euclidean") -> Tensor:
    """Similarity of each position of each query map to each prototype.

    Args:
        query: Maps (Q, C, h, w).
        prototypes: (way, C).
        metric: "euclidean" gives the negative squared distance, "cosine" the cosine.

    Returns:
        (Q, way, h, w). For "euclidean" these are the position-wise scores of BML, Eq. 2.
    """
    if query.shape[1] != prototypes.shape[1]:
        raise ValueError(
            f"query maps have {query.shape[1]} channels, prototypes {prototypes.shape[1]}: "
            "both must come from the same backbone."
        )
    if metric == "cosine":
        query, prototypes = F.normalize(query, dim=1), F.normalize(prototypes, dim=1)
    elif metric != "euclidean":
        raise ValueError(f'metric={metric!r}: choose "euclidean" or "cosine".')
    inner = torch.einsum("qchw,kc->qkhw", query, prototypes)
    if metric == "cosine":
        return inner
    squares = query.square().sum(1)[:, None] + prototypes.square().sum(1)[None, :, None, None]
    return 2 * inner - squares


def class_activation(maps: Tensor, weight: Tensor) -> Tensor:
    """Evidence for each class at each position, for a linear classifier on mean-pooled maps.

    The mean of the result over positions is the classifier's logit without its bias.

    Args:
        maps: (N, C, h, w).
        weight: (classes, C), the rows of the classifier.

    Returns:
        (N, classes, h, w).

    Source:
        Zhou et al., Learning Deep Features for Discriminative Localization, CVPR 2016.
    """
    return torch.einsum("nchw,kc->nkhw", maps, weight)


def upsample(maps: Tensor, size: int | tuple[int, int]) -> Tensor:
    """Bring maps (N, K, h, w) to the size of the images, bilinearly: (N, K) + size."""
    size = (size, size) if isinstance(size, int) else size
    return F.interpolate(maps, size=size, mode="bilinear", align_corners=False)


def to_unit_range(maps: Tensor, together: bool = False) -> Tensor:
    """Stretch maps to [0, 1] for display; a constant map becomes 0.

    Args:
        maps: (N, K, h, w).
        together: Stretch the K maps of one image by the same two numbers, so that the classes
            can be compared with each other; otherwise each map by its own.

    Returns:
        (N, K, h, w).
    """
    over = (1, 2, 3) if together else (2, 3)
    low, high = maps.amin(over, keepdim=True), maps.amax(over, keepdim=True)
    span = high - low
    return torch.where(span > 0, (maps - low) / span.clamp_min(1e-12), torch.zeros_like(maps))
