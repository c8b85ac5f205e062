"""Prototypical networks (Snell, Swersky & Zemel, NeurIPS 2017), the second yardstick.

Training repeats the test: in every episode a class is the mean of its support features, and a
query belongs to the class whose mean is nearest. BML's "baseline-local" is this method with
episodes of 15 ways, 5 shots and 7 queries.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from fslib.backbones import Backbone
from fslib.heads import Head, squared_distance
from fslib.losses.elastic import push_away
from fslib.methods.base import Batch, Episodic, Method, percent_right


class ProtoNet(Method):
    """Nearest class mean, learned on episodes.

    Args:
        backbone: Images to maps.
        classes: Number of base classes (only for reports).
        way: Classes of a training episode; more ways make a harder and better lesson
            (Snell et al., section 3.2).
        shot: Support images of a class.
        query: Query images of a class.
        count: Episodes of a batch.
        pool: `mean` or `flatten` the map; the backbone's usual way where None.
        point_wise: Match every position of the query map with the class mean by itself (BML
            section 3.2.2) rather than one feature an image.
        alpha1: Longest push of BML's elastic constraint (5.5 there); 0 leaves it out.
        alpha2: How the push grows with the difficulty of a query.
        elastic_gate: Push only queries that no way holds with a probability above one half.
    """

    def __init__(
        self,
        backbone: Backbone,
        classes: int,
        way: int = 20,
        shot: int = 5,
        query: int = 10,
        count: int = 1,
        pool: str | None = None,
        point_wise: bool = False,
        alpha1: float = 0.0,
        alpha2: float = 0.1,
        elastic_gate: bool = True,
    ) -> None:
        super().__init__(backbone, classes, Head(pool=pool or backbone.pool, normalise=False))
        self.batches = Episodic(way, shot, query, count)
        self.point_wise = point_wise
        self.alpha1, self.alpha2, self.elastic_gate = alpha1, alpha2, elastic_gate

    def loss(self, batch: Batch, progress: float) -> dict[str, Tensor]:
        """The episode's loss, by one feature an image or by one a position."""
        maps = self.backbone(self.normalise(batch.images)).float()
        if self.point_wise:
            features = maps.flatten(2).transpose(1, 2)  # (B, P, C)
        else:
            features = self.head.raw_features(maps).unsqueeze(1)  # (B, 1, d)
        return self.episode_loss(features, batch, progress)

    def episode_loss(self, features: Tensor, batch: Batch, progress: float) -> dict[str, Tensor]:
        """Cross-entropy of the queries over the ways, logits = -squared distance (Eq. 2).

        Args:
            features: (B, P, d), of P positions of every image.
            batch: Says how the images make up episodes.
            progress: Share of training done.
        """
        support, query = batch.episodes(features)
        prototypes = support.mean((2, 3))
        count, way, queries, positions, _ = query.shape
        distances = squared_distance(query.flatten(1, 3), prototypes)  # (count, way Q P, way)
        truth = torch.arange(way, device=features.device).repeat_interleave(queries)
        target = truth.repeat_interleave(positions)
        pushed, parts = distances, {}
        if self.alpha1:
            pushed, undecided = push_away(
                distances,
                target.expand(count, -1),
                progress,
                self.alpha1,
                self.alpha2,
                self.elastic_gate,
            )
            parts = {"gate_open": undecided.float().mean() * 100}
        loss = functional.cross_entropy(-pushed.flatten(0, 1), target.repeat(count))
        votes = -distances.view(count, way * queries, positions, way).mean(2)
        return {"loss": loss, "episode_accuracy": percent_right(votes, truth), **parts}
