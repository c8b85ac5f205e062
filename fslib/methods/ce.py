"""The plain classifier over the base classes, the first yardstick of every chapter.

A linear layer on the backbone's features, trained with cross-entropy; afterwards the layer is
thrown away and a novel class is the mean of its normalised support features. Chen et al. (2019)
call it a baseline, Tian et al. (2020) found it hard to beat, and BML's released
"baseline-global" is it without the normalising.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from fslib.backbones import Backbone
from fslib.heads import Head
from fslib.methods.base import Batch, Method, MixedClasses, percent_right


class CrossEntropy(Method):
    """Classify base classes; compare with centroids at test.

    Args:
        backbone: Images to maps.
        classes: Number of base classes.
        batch: Images of a batch.
        point_wise: Classify every position of the map by itself (BML section 3.2.1, DMF Eq. 11)
            rather than its mean.
    """

    def __init__(
        self, backbone: Backbone, classes: int, batch: int = 128, point_wise: bool = False
    ) -> None:
        super().__init__(backbone, classes, Head())
        self.batches = MixedClasses(batch)
        self.point_wise = point_wise
        # A 1 x 1 convolution is the same linear layer at every position.
        self.classifier = nn.Conv2d(backbone.channels, classes, 1)
        nn.init.xavier_uniform_(self.classifier.weight)
        nn.init.zeros_(self.classifier.bias)

    def classify(self, maps: Tensor) -> Tensor:
        """Map (B, C, h, w) to logits (B, classes, h, w), or (B, classes, 1, 1) of the mean."""
        return self.classifier(maps if self.point_wise else maps.mean((2, 3), keepdim=True))

    def loss(self, batch: Batch, progress: float) -> dict[str, Tensor]:
        """Cross-entropy over the base classes, averaged over positions and images."""
        logits = self.classify(self.backbone(self.normalise(batch.images))).float()
        target = batch.labels[:, None, None].expand(-1, *logits.shape[2:])
        return {
            "loss": functional.cross_entropy(logits, target),
            "base_accuracy": percent_right(logits.mean((2, 3)), batch.labels),
        }
