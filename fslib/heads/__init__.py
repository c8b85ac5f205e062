"""What happens at test time after the backbone: test features and the classifier on top.

The five papers differ here as much as in their losses (pooled or flattened maps, normalised,
square-rooted, centred; nearest centroid or regression), so the head is one recorded setting that
every method can be scored with. This file holds the plain heads; those that fit or test something
of their own lie beside it, and `fslib.heads.registry` names them all.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from fslib.logistic import probabilities


def squared_distance(query: Tensor, prototypes: Tensor) -> Tensor:
    """Squared Euclidean distance of every query to every prototype.

    Both are shifted by the mean prototype first: distances stay, but the cancellation in
    ``|q|^2 + |c|^2 - 2 q.c`` becomes harmless in float32.

    Args:
        query: (..., Q, d).
        prototypes: (..., way, d).

    Returns:
        (..., Q, way), never negative.
    """
    shift = prototypes.mean(-2, keepdim=True)
    query, prototypes = query - shift, prototypes - shift
    # A norm is one pass without a temporary, and the short operand goes first in the product:
    # together half the time of squares, sums and query @ prototypes.
    of_query = torch.linalg.vector_norm(query, dim=-1).square().unsqueeze(-1)
    of_prototypes = torch.linalg.vector_norm(prototypes, dim=-1).square().unsqueeze(-2)
    # Autocast would round the product to bfloat16, 3 digits, before the subtraction.
    with torch.autocast(query.device.type, enabled=False):
        product = (prototypes @ query.transpose(-1, -2)).transpose(-1, -2)
    return (of_query + of_prototypes - 2 * product).clamp_(min=0)


@dataclass(frozen=True)
class Head:
    """A test-time classifier.

    Attributes:
        kind: `centroid` (nearest class mean) or `regression` (multinomial logistic regression
            fitted to the support, scikit-learn's default strength).
        pool: `mean` over positions, or `flatten` the map.
        power: Exponent applied to the rectified map; 0.5 is BML's square root.
        normalise: Scale features to unit length.
        centre: Subtract the mean feature of the base classes before normalising.
        metric: `euclidean` (negative squared distance) or `cosine`, for `centroid`.
    """

    kind: str = "centroid"
    pool: str = "mean"
    power: float = 1.0
    normalise: bool = True
    centre: bool = False
    metric: str = "euclidean"

    def __post_init__(self) -> None:
        """Refuse names that nothing here answers to."""
        for field, known in (
            ("kind", ("centroid", "regression")),
            ("pool", ("mean", "flatten")),
            ("metric", ("euclidean", "cosine")),
        ):
            if getattr(self, field) not in known:
                raise ValueError(
                    f"unknown {field} {getattr(self, field)!r}: choose one of {', '.join(known)}"
                )

    def raw_features(self, maps: Tensor) -> Tensor:
        """Features before centring and normalising: (N, C, h, w) to (N, C) or (N, C h w)."""
        if self.power != 1:
            maps = maps.clamp(min=0).pow(self.power)
        return maps.mean((2, 3)) if self.pool == "mean" else maps.flatten(1)

    def features(self, maps: Tensor, base_mean: Tensor | None = None) -> Tensor:
        """Test features, once per image.

        Args:
            maps: (N, C, h, w) from `Method.embed`.
            base_mean: (d,) mean of `raw_features` over base images; needed where `centre`.

        Returns:
            (N, d) with d = C or C h w.
        """
        features = self.raw_features(maps)
        if self.centre:
            if base_mean is None:
                raise ValueError("a centred head needs the mean feature of the base classes")
            features = features - base_mean
        return functional.normalize(features, dim=1) if self.normalise else features

    def score(self, support: Tensor, query: Tensor) -> Tensor:
        """Logits of every query for every way, all episodes at once.

        Args:
            support: (E, way, shot, d).
            query: (E, Q, d).

        Returns:
            (E, Q, way).
        """
        if self.kind == "regression":
            return _regression(support, query)
        prototypes = support.mean(2)
        if self.metric == "cosine":
            return functional.normalize(query, dim=-1) @ functional.normalize(
                prototypes, dim=-1
            ).transpose(-1, -2)
        return -squared_distance(query, prototypes)


# The test features of the five papers under short names, for records and for the command line.
HEADS: dict[str, Head] = {
    "euclid": Head(normalise=False),  # ProtoNet; BML's released baselines
    "l2n": Head(),  # SCL's and most recent baselines' unit vectors
    "centred": Head(centre=True),  # mean feature of the base classes taken off first
    "flat": Head(pool="flatten", normalise=False),
    "flat_l2n": Head(pool="flatten"),
    "sqrt": Head(pool="flatten", power=0.5, normalise=False),  # BML: relu, square root, flatten
    "cosine": Head(normalise=False, metric="cosine"),  # Negative Margin's centroid
    "regression": Head(kind="regression"),  # SCL's global features
    "flat_regression": Head(kind="regression", pool="flatten"),
}


def _regression(support: Tensor, query: Tensor) -> Tensor:
    """Log-probabilities of one logistic regression an episode, episodes spread over the cores."""
    import joblib  # most pages never fit a regression

    episodes, way, shot, _ = support.shape
    labels = torch.arange(way).repeat_interleave(shot).numpy()
    flat = support.flatten(1, 2)
    # The solution lies in the span of the support, so both sets are first projected onto it:
    # the same probabilities from at most way x shot dimensions instead of d.
    basis = torch.linalg.qr(flat.transpose(1, 2)).Q
    small, queries = (flat @ basis).double().numpy(), (query @ basis).double().numpy()

    def fit(e: int) -> Tensor:
        return torch.from_numpy(np.log(probabilities(small[e], labels, queries[e]))).float()

    jobs = joblib.Parallel(n_jobs=torch.get_num_threads(), prefer="threads")
    return torch.stack(jobs(joblib.delayed(fit)(e) for e in range(episodes)))
