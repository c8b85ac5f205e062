"""Where in an image a decision comes from: maps of similarity, made ready for display."""

import torch
import torch.nn.functional as F
from torch import Tensor


def similarity_map(query: Tensor, prototypes: Tensor) -> Tensor:
    """Cosine of each position of each query map with each prototype.

    A distance would find the emptiest positions most like everything.

    Args:
        query: Maps (Q, C, h, w).
        prototypes: (way, C).

    Returns:
        (Q, way, h, w).
    """
    if query.shape[1] != prototypes.shape[1]:
        raise ValueError(
            f"query maps have {query.shape[1]} channels, prototypes {prototypes.shape[1]}: "
            "both must come from the same backbone."
        )
    query, prototypes = F.normalize(query, dim=1), F.normalize(prototypes, dim=1)
    return torch.einsum("qchw,kc->qkhw", query, prototypes)


def upsample(maps: Tensor, size: int | tuple[int, int]) -> Tensor:
    """Bring maps (N, K, h, w) to the size of the images, bilinearly: (N, K) + size."""
    return F.interpolate(maps, size=size, mode="bilinear", align_corners=False)


def to_unit_range(maps: Tensor) -> Tensor:
    """Stretch each map of (N, K, h, w) to [0, 1] for display; a constant map becomes 0."""
    low, high = maps.amin((2, 3), keepdim=True), maps.amax((2, 3), keepdim=True)
    span = high - low
    return torch.where(span > 0, (maps - low) / span.clamp_min(1e-12), torch.zeros_like(maps))
