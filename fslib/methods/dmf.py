"""Dynamic Meta-filter (Xu et al., CVPR 2021): align a query with a class before comparing them.

The picture: a query map q lies beside the map s of one way, the mean of its support maps::

    q, s -- 5 x 5 convolution --> offsets: where nine cells of s around a position really lie
    s sampled there -- Psi, sigmoid --> f: one filter for each position and group of channels
    q -- dq/dt = relu(f * q), t = 0 .. 1 --> q aligned with this way
    score at a position = w . aligned q,  w = mean over positions of s / |s|

In words: the two images are compared before the query's features are final. Each way asks for
another filter, so a query has as many aligned maps as there are ways, and each way scores its own.
Every position votes; the image's logit is the mean of the votes.

    L = l_g + l_f / 2 (released code; the paper's Eq. 10 halves l_g instead)

l_f: cross-entropy of the scores over the ways, at each position of the query (Eq. 12).
l_g: cross-entropy over the base classes, at each position, on the map before alignment (Eq. 11).

With the published kernel of one cell the "neural ODE" multiplies each positive activation by
exp(f), between 1 and e, and leaves the others alone: see `fslib.metafilter.MetaFilter.gain`.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from fslib.backbones import Backbone, build_backbone
from fslib.heads import Head
from fslib.metafilter import MetaFilter, class_weights, plain_scores
from fslib.metafilter.fast import fast_filters, fast_scores, offset_parts
from fslib.methods.base import Batch, Episodic, Method, percent_right


def usual_groups(backbone: str, shot: int = 1) -> int:
    """Groups of channels for a backbone.

    The paper gives ten channels of 640 a filter in common at 1 shot and four at 5 shots (64 and 160
    groups, Table 2c). Another network takes the largest power of two that leaves a group at least
    8 channels at 1 shot and 4 at more.

    Args:
        backbone: A key of `fslib.backbones.BACKBONES`.
        shot: Of the training episodes.
    """
    with torch.device("meta"):  # only its width is asked: no memory and no random numbers
        channels = build_backbone(backbone).channels
    if channels == 640:
        return 64 if shot == 1 else 160
    return 2 ** int(math.log2(channels // (8 if shot == 1 else 4)))


class DynamicMetaFilter(Method):
    """Few-shot classification with a filter for each pair of query and way.

    Defaults follow the released code where it differs from the paper, except that the score maps
    have no border (`border_compat`).

    Args:
        backbone: Images to maps; the paper leaves out the last pooling, 11 x 11 cells at 84 pixels.
        classes: Number of base classes.
        way: Classes of a training episode.
        shot: Support images of a class; the paper trains a model for each number of shots.
        query: Query images of a class.
        count: Episodes of a batch.
        few_shot_weight: Factor on l_f; the paper's Eq. 10 has 1.
        global_weight: Factor on l_g; the paper's Eq. 10 has 0.5.
        global_on_aligned: Classify the map aligned with the true way (paper's Eq. 11, Fig. 2).
        normalise_positions: Off: w is the plain mean of s, as the paper writes.
        scale: Factor on the scores.
        border_compat: Surround the score map with a ring of zeros in l_f, as a padding of the
            released code does: each cell of the ring adds ln(way) to the sum and no gradient.
        fast: Off: the reference that forms whole maps of every pair.
        **options: Of `MetaFilter`: `groups`, `kernel`, `sampling`, `alignments`, `solver`,
            `tolerance`, `linear_field`, `zero_init_offset`.
    """

    def __init__(
        self,
        backbone: Backbone,
        classes: int,
        way: int = 5,
        shot: int = 1,
        query: int = 6,
        count: int = 4,
        few_shot_weight: float = 0.5,
        global_weight: float = 1.0,
        global_on_aligned: bool = False,
        normalise_positions: bool = True,
        scale: float = 1.0,
        border_compat: bool = False,
        fast: bool = True,
        **options: Any,
    ) -> None:
        super().__init__(backbone, classes, Head())
        self.batches = Episodic(way, shot, query, count)
        self.metafilter = MetaFilter(backbone.channels, **options)
        self.classifier = nn.Conv2d(backbone.channels, classes, 1)
        self.few_shot_weight, self.global_weight = few_shot_weight, global_weight
        self.global_on_aligned, self.normalise_positions = global_on_aligned, normalise_positions
        self.scale, self.border_compat, self.fast = scale, border_compat, fast

    def test_features(self, maps: Tensor) -> Tensor:
        """Maps (N, C, h, w), channels last, with their parts of the offsets: (N, h, w, C + 36).

        The reference head takes the maps alone, (N, h, w, C).
        """
        if min(maps.shape[2:]) < self.metafilter.kernel:
            raise ValueError(
                f"a map of {maps.shape[2]} x {maps.shape[3]} cells is smaller than the kernel of "
                f"{self.metafilter.kernel}: leave out a pooling or take larger images"
            )
        last = maps.permute(0, 2, 3, 1)
        return torch.cat([last, offset_parts(self.metafilter, maps)], -1) if self.fast else last

    def match(self, support: Tensor, query: Tensor) -> tuple[Tensor, Tensor]:
        """Filters and scores of every pair, at every position.

        Args:
            support: (E, way, shot, h, w, C + 36) of `test_features`.
            query: (E, Q, h, w, C + 36).

        Returns:
            Filters (E, way, Q, h, w, g k k), Q being 1 where all queries share them and zeros
            where there is no alignment, and scores (E, way, Q, h, w).
        """
        part, channels = self.metafilter, self.metafilter.channels
        # Everything linear in the map may be averaged over the shots, the offset parts too.
        sizes = channels, query.shape[-1] - channels
        s, s_moves = support.mean(2).split(sizes, -1)
        q, q_moves = query.split(sizes, -1)
        weights = class_weights(s.flatten(2, 3), self.normalise_positions) * self.scale
        if not self.fast:
            return plain_scores(part, s.movedim(-1, 2), q.movedim(-1, 2), weights)
        if part.alignments == 0:
            filters = s.new_zeros((*s.shape[:2], 1, *s.shape[2:4], len(part.psi)))
            return filters, torch.einsum("ekc,eqhwc->ekqhw", weights, q)
        filters = fast_filters(part, s, s_moves, q_moves)
        if part.kernel == 1:
            return filters, fast_scores(part, filters, q, weights)
        aligned = self._aligned(q.unsqueeze(1), filters)
        return filters, torch.einsum("ekc,ekqchw->ekqhw", weights, aligned)

    def _aligned(self, query: Tensor, filters: Tensor) -> Tensor:
        """Aligned maps (..., C, h, w) of query maps (..., h, w, C), by broadcasting."""
        lead = torch.broadcast_shapes(query.shape[:-3], filters.shape[:-3])
        query, filters = (x.expand(*lead, *x.shape[-3:]).movedim(-1, -3) for x in (query, filters))
        filters = filters.reshape(-1, *filters.shape[-3:])
        filters = filters.unflatten(1, (self.metafilter.groups, -1))
        query = query.reshape(-1, *query.shape[-3:])
        return self.metafilter.align(query, filters).unflatten(0, lead)

    def loss(self, batch: Batch, progress: float) -> dict[str, Tensor]:
        """Dense losses of the queries, over the ways and over the base classes."""
        maps = self.backbone(self.normalise(batch.images))
        # A convolution like those of the backbone: autocast may round the offset parts as well.
        features = self.test_features(maps.float())
        with torch.autocast(maps.device.type, enabled=False):
            support, query = batch.episodes(features.float())
            query = query.flatten(1, 2)
            filters, scores = self.match(support, query)
            _, way, queries, _, _ = scores.shape
            truth = torch.arange(way, device=maps.device).repeat_interleave(queries // way)

            # l_f: every position votes for a way.
            votes = scores.transpose(1, 2).flatten(0, 1)  # (E Q, way, h, w)
            framed = functional.pad(votes, (1, 1, 1, 1)) if self.border_compat else votes
            target = truth.repeat(len(scores))
            few_shot = functional.cross_entropy(framed, _spread(target, framed))

            # l_g: every position names its base class.
            q = query[..., : maps.shape[1]]
            if self.global_on_aligned:
                own = filters.expand(-1, -1, queries, -1, -1, -1)
                own = own[:, truth, torch.arange(queries, device=maps.device)]
                seen = self._aligned(q, own)
            else:
                seen = q.movedim(-1, 2)
            logits = self.classifier(seen.flatten(0, 1))
            base = batch.episodes(batch.labels)[1].flatten()
            over_classes = functional.cross_entropy(logits, _spread(base, logits))
        return {
            "loss": self.global_weight * over_classes + self.few_shot_weight * few_shot,
            "few_shot": few_shot,
            "global": over_classes,
            "episode_accuracy": percent_right(votes.mean((2, 3)), target),
        }

    def score(self, support: Tensor, query: Tensor, semantics: Tensor | None = None) -> Tensor:
        """Mean vote of the positions of every query: (E, Q, way)."""
        return self.match(support, query)[1].mean((3, 4)).transpose(1, 2)


def _spread(target: Tensor, logits: Tensor) -> Tensor:
    """One target for all positions: (B,) to (B, h, w)."""
    return target[:, None, None].expand(-1, *logits.shape[2:])
