"""What DMF does to a pair of images: sampled cells, gain, aligned map; and its tests with other T.

A *pair* is a query image with a support image, or with the prototype map of a way.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fslib.data import ImageSet
from fslib.evaluate import Scores, evaluate
from fslib.heads import Head
from fslib.metafilter import TAPS, MetaFilter
from fslib.methods.base import Method
from fslib.methods.dmf import DynamicMetaFilter


def sampled_places(part: MetaFilter, query: Tensor, prototype: Tensor) -> Tensor:
    """Where on the prototype's map the nine cells of every window lie.

    Args:
        part: Predicts the offsets; without sampling the window lies where it is.
        query: (M, C, h, w), one a pair.
        prototype: (M, C, h, w).

    Returns:
        (M, h, w, 9, 2), row and column in cells; 0 is the centre of the first.
    """
    height, width = query.shape[2:]
    window = torch.cartesian_prod(torch.arange(3) - 1, torch.arange(3) - 1)
    cells = torch.stack(torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij"), 2)
    home = (cells.unsqueeze(2) + window).to(query)  # (h, w, 9, 2)
    if part.offset is None:
        return home.expand(len(query), *home.shape)
    moves = part.offsets(query, prototype).unflatten(1, (TAPS, 2))
    return home + moves.permute(0, 3, 4, 1, 2)


def share_outside(places: Tensor, size: tuple[int, int]) -> float:
    """Share of the samples that see none of the map and so are zero.

    Args:
        places: (..., 2), row and column in cells.
        size: Height and width of the map.
    """
    last = torch.tensor(size).to(places)
    return float(((places <= -1) | (places >= last)).any(-1).float().mean())


@dataclass(frozen=True)
class AlignedPairs:
    """What becomes of M query maps.

    Attributes:
        filters: (M, h, w, g), in (0, 1).
        gain: (M, h, w), factor on the positive activations, averaged over the groups.
        aligned: (M, h, w), mean over the channels of the aligned map.
        scores: (M, h, w), each position's vote for the pair's way.
    """

    filters: Tensor
    gain: Tensor
    aligned: Tensor
    scores: Tensor


@torch.no_grad()
def align_pairs(method: DynamicMetaFilter, query: Tensor, prototype: Tensor) -> AlignedPairs:
    """Filters, gain, aligned map and votes of pairs, for a kernel of 1.

    Args:
        method: A trained DMF.
        query: Maps (M, C, h, w), one a pair.
        prototype: Maps (M, C, h, w).
    """
    features = method.test_features(torch.cat([prototype, query]))
    support, queries = features.unflatten(0, (2, len(query), 1))
    filters, scores = method.match(support.unsqueeze(1), queries)
    filters = filters[:, 0, 0]  # (M, h, w, g)
    part = method.metafilter
    aligned = part.align(query, filters.movedim(-1, 1).unsqueeze(2))
    return AlignedPairs(filters, part.gain(filters).mean(-1), aligned.mean(1), scores[:, 0, 0])


@dataclass(frozen=True)
class TestedWith(Head):
    """Test a trained DMF with another number of alignments; only the gain changes.

    Attributes:
        alignments: Recursions of Eq. 7, or None for the ODE.
    """

    alignments: int | None = None

    def evaluate(self, method: Method, images: ImageSet, **asked: Any) -> Scores:
        """Scores of the test; arguments as those of `fslib.evaluate.evaluate`."""
        if not isinstance(method, DynamicMetaFilter):
            raise ValueError("a number of alignments is something only dmf can be tested with")
        trained = method.metafilter.alignments
        method.metafilter.alignments = self.alignments
        try:
            return evaluate(method, images, **asked)
        finally:
            method.metafilter.alignments = trained


ALIGNMENT_TESTS: dict[str, Head] = {
    **{f"align_{count}": TestedWith(alignments=count) for count in range(4)},
    "align_ode": TestedWith(),
}
"""Short names for records and for the command line, as in `fslib.heads.HEADS`."""
