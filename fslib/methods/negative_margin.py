"""Negative Margin (Liu, Cao, Lin, Li, Zhang, Long & Hu, ECCV 2020).

Picture every base class as a bunch of points around its weight vector. A large margin squeezes the
bunches, and the images of one novel class then break up over several of them. A negative margin
does the opposite: it lets go of an image as soon as it lies roughly right, so bunches stay loose
and a novel class stays in one piece.

A linear layer on the backbone's feature z, without bias, gives the similarity S_c to every base
class c, a cosine or a dot product, and with scale s and margin m the loss is cross-entropy of

    logit_c = s (S_c - m [c = y])

m > 0 is the large-margin softmax of face recognition, m = 0 a plain classifier, m < 0 the paper.
With p the probability of the true class at m = 0 the loss is log(1 + e^(s m) (1 - p) / p): a margin
of m counts s m in logits. At test the layer is thrown away.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from fslib.backbones import Backbone
from fslib.heads import Head
from fslib.losses.margin import lower_true
from fslib.methods.base import Batch, Method, MixedClasses, percent_right

SCALES = {"cosine": 30.0, "dot": 5.0}
"""The released scale of each similarity."""


class NegativeMargin(Method):
    """Classify base classes with a margin of any sign; compare with centroids at test.

    Args:
        backbone: Images to maps.
        classes: Number of base classes.
        similarity: `cosine` (the paper's neg-cosine) or `dot` (neg-softmax).
        margin: m, taken off the similarity of the true class. The released models lie at s m from
            -1.5 to -0.025, each tuned to its data set, shot and loss.
        scale: s; 30 for cosines and 5 for dot products where None.
        batch: Images of a batch.
    """

    def __init__(
        self,
        backbone: Backbone,
        classes: int,
        similarity: str = "cosine",
        margin: float = -0.02,
        scale: float | None = None,
        batch: int = 128,
    ) -> None:
        if similarity not in SCALES:
            raise ValueError(
                f"unknown similarity {similarity!r}: choose one of {', '.join(SCALES)}"
            )
        super().__init__(backbone, classes, Head())
        self.batches = MixedClasses(batch)
        self.kind, self.margin = similarity, margin
        self.scale = SCALES[similarity] if scale is None else scale
        self.weight = nn.Parameter(torch.empty(classes, backbone.channels))
        bound = backbone.channels**-0.5
        nn.init.uniform_(self.weight, -bound, bound)

    def similarity(self, features: Tensor) -> Tensor:
        """Features (B, C) of pooled maps to their similarity S with every base class (B, K)."""
        if self.kind == "cosine":
            return functional.linear(
                functional.normalize(features, dim=1), functional.normalize(self.weight, dim=1)
            )
        return functional.linear(features, self.weight)

    def loss(self, batch: Batch, progress: float) -> dict[str, Tensor]:
        """Cross-entropy over the base classes; the accuracy is the true one, without margin."""
        features = self.backbone(self.normalise(batch.images)).float().mean((2, 3))
        # Autocast would round a cosine to 3 digits, and margins are that small.
        with torch.autocast(features.device.type, enabled=False):
            similarity = self.similarity(features)
        logits = lower_true(similarity, batch.labels, self.scale, self.margin)
        return {
            "loss": functional.cross_entropy(logits, batch.labels),
            "base_accuracy": percent_right(similarity, batch.labels),
            "accuracy_with_margin": percent_right(logits, batch.labels),
        }
