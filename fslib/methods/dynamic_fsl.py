"""Dynamic few-shot learning without forgetting (Gidaris & Komodakis, CVPR 2018), with margins.

Generalised few-shot learning asks for the old classes and the new ones at once. Picture a
classifier as a shelf of weight vectors, one a class. For a new class, a small network writes one
more vector from a few images: partly their mean, partly a blend of vectors that already stand on
the shelf, chosen by how much the images resemble each base class::

    logit_c = s cos(z, w_c)                                                  (cosine classifier)
    a_ib    = softmax_b( gamma cos(phi z_i, key_b) )                         (attention, image i)
    w_novel = u1 * mean_i z_i  +  u2 * mean_i sum_b a_ib w_b / |w_b|         (z_i of unit length)

Stage 1 trains backbone and base vectors on all base images. Stage 2 (`fslib.generalised`) keeps the
features, plays some base classes as new in every episode and trains what writes their vectors. Li
et al. (2020) put their task-relevant margin into both losses; every base class is in every
episode, so the table runs over the base classes and a class is found by its number.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from fslib.backbones import Backbone
from fslib.data import ImageSet
from fslib.heads import Head
from fslib.losses.margin import MarginLoss, word_similarity
from fslib.methods.base import Batch, Method, MixedClasses, percent_right
from fslib.methods.margin_protonet import class_words


class WeightGenerator(nn.Module):
    """Writes the classifier's vector of a new class from its support.

    Args:
        classes: Number of base classes C.
        width: Features d.
        sharpness: Where gamma starts.
    """

    def __init__(self, classes: int, width: int, sharpness: float = 10.0) -> None:
        super().__init__()
        self.phi = nn.Linear(width, width)
        with torch.no_grad():
            self.phi.weight.copy_(torch.eye(width) + 1e-3 * torch.randn(width, width))
            self.phi.bias.zero_()
        self.keys = nn.Parameter(torch.randn(classes, width) * (2 / width) ** 0.5)
        self.gamma = nn.Parameter(torch.tensor(float(sharpness)))
        self.of_mean = nn.Parameter(torch.ones(width))
        self.of_memory = nn.Parameter(torch.ones(width))

    def attention(self, support: Tensor, allowed: Tensor | None = None) -> Tensor:
        """Attention of every support image to every base class.

        Args:
            support: (E, N, k, d) of unit length.
            allowed: bool (E, C), base classes that may be looked at; all where None.

        Returns:
            (E, N, k, C), sums to 1 over C.
        """
        asked = functional.normalize(self.phi(support), dim=-1)
        likeness = self.gamma * asked @ functional.normalize(self.keys, dim=-1).T
        if allowed is not None:
            likeness = likeness.masked_fill(~allowed[:, None, None], -torch.inf)
        return likeness.softmax(-1)

    def forward(self, support: Tensor, base: Tensor, allowed: Tensor | None = None) -> Tensor:
        """Weight vectors of new classes.

        Args:
            support: (E, N, k, d).
            base: (C, d), the classifier's vectors.
            allowed: bool (E, C), see `attention`.

        Returns:
            (E, N, d).
        """
        support = functional.normalize(support, dim=-1)
        # The mean over the images first: one product for all of them.
        memory = self.attention(support, allowed).mean(2) @ functional.normalize(base, dim=-1)
        return self.of_mean * support.mean(2) + self.of_memory * memory


class DynamicFSL(Method):
    """A cosine classifier whose vectors for new classes are written by a network.

    Args:
        backbone: Images to maps.
        classes: Number of base classes.
        margin: A kind of `MarginLoss`: `none`, or for instance `task`.
        scale: Where s starts.
        sharpness: Where the attention's gamma starts (10; 30 for ImageNet).
        semantics: Which vectors say how alike two classes are, see `class_words`.
        batch: Images of a batch in stage 1.
        **options: Of `MarginLoss`, as in `MarginProtoNet`.
    """

    def __init__(
        self,
        backbone: Backbone,
        classes: int,
        margin: str = "none",
        scale: float = 10.0,
        sharpness: float = 10.0,
        semantics: str = "names",
        batch: int = 128,
        **options: Any,
    ) -> None:
        super().__init__(backbone, classes, Head(normalise=False, metric="cosine"))
        self.batches = MixedClasses(batch)
        width = backbone.channels
        self.weight = nn.Parameter(torch.randn(classes, width) * (2 / width) ** 0.5)
        self.scale = nn.Parameter(torch.tensor(float(scale)))
        self.margin, self.semantics = MarginLoss(margin, classes, **options), semantics
        if self.margin.mode == "bilevel":
            raise ValueError("dynamic_fsl has no second episode to look ahead on: not bilevel")
        # Stage 1 does not use it, so until stage 2 it has no gradient and no weight decay.
        self.generator = WeightGenerator(classes, width, sharpness).requires_grad_(False)
        self.register_buffer("stage", torch.tensor(1))
        self.register_buffer("similarity", torch.zeros(classes, classes))

    def prepare(self, images: ImageSet) -> None:
        """Take the similarity of the base classes' names from the training images."""
        super().prepare(images)
        if self.margin.learned:  # the others do not depend on names
            self.similarity.copy_(word_similarity(class_words(images, self.semantics)))

    def compare(self, features: Tensor, weights: Tensor) -> Tensor:
        """Logits s cos(z, w): (..., Q, d) and (..., C, d) to (..., Q, C)."""
        with torch.autocast(features.device.type, enabled=False):
            directions = functional.normalize(weights.float(), dim=-1).mT
            return self.scale * functional.normalize(features.float(), dim=-1) @ directions

    def loss(self, batch: Batch, progress: float) -> dict[str, Tensor]:
        """Stage 1: cross-entropy over the base classes."""
        features = self.backbone(self.normalise(batch.images)).float().mean((2, 3))
        logits = self.compare(features, self.weight)
        made = self.margin(logits[None], batch.labels[None], self.similarity, self.scale)
        return {**made, "base_accuracy": percent_right(logits, batch.labels)}

    def episode_loss(
        self, support: Tensor, novel: Tensor, query: Tensor, target: Tensor
    ) -> dict[str, Tensor]:
        """Stage 2: the same loss with the vectors of some base classes written anew.

        Args:
            support: (E, N, k, d), features of the classes that are played as new.
            novel: int64 (E, N), their numbers.
            query: (E, Q, d), of any base class.
            target: int64 (E, Q).
        """
        every = torch.ones(len(novel), self.classes, dtype=torch.bool, device=novel.device)
        written = self.generator(support, self.weight, every.scatter(1, novel, False))
        # In the place of their class, so that logits, targets and margins keep their numbers.
        weights = self.weight.expand(len(novel), -1, -1)
        weights = weights.scatter(1, novel.unsqueeze(-1).expand_as(written), written)
        logits = self.compare(query, weights)
        made = self.margin(logits, target, self.similarity, self.scale)
        return {**made, "accuracy": percent_right(logits, target)}

    def write(self, support: Tensor) -> Tensor:
        """Vectors of new classes: (E, N, k, d) to (E, N, d); the mean direction in stage 1."""
        if int(self.stage) == 1:
            return functional.normalize(support, dim=-1).mean(2)
        return self.generator(support, self.weight)

    def score(self, support: Tensor, query: Tensor, semantics: Tensor | None = None) -> Tensor:
        """Logits of every query for every way, see `Method.score`."""
        return self.compare(query, self.write(support))

    def branches(self) -> dict[str, Callable[[Tensor, Tensor], Tensor]]:
        """`mean`: the mean direction of the support, without the generator."""
        return {"mean": lambda s, q: self.compare(q, functional.normalize(s, dim=-1).mean(2))}
