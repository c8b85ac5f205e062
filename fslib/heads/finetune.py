"""Heads that are fine-tuned on the support of every episode, all episodes at a time.

The published test of Negative Margin (and of "A Closer Look at Few-shot Classification" before
it) trains a fresh linear or cosine classifier on the few support features of each episode, some
hundred steps of SGD. Here one step updates the heads of hundreds of episodes together.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from fslib.data import ImageSet
from fslib.evaluate import Scores, embed_images, evaluate
from fslib.heads import Head
from fslib.methods.base import Method


@dataclass(frozen=True)
class FineTuned(Head):
    """A fine-tuned head in place of a centroid: the defaults are the released protocol.

    Attributes:
        metric: `cosine`, or `dot` for a linear classifier without bias.
        scale: Of the logits.
        passes: Over the support; 100 with batches of 4 are 200 steps at 5-way 1-shot and 700 at
            5-shot.
        batch: Support images of a step; the last one of a pass takes what is left.
        lr: Learning rate.
        momentum: Share of the velocity that is kept.
        dampening: Share of a gradient that does not enter the velocity.
        weight_decay: Of the weights.
        seed: Of the first weights (uniform within 1 / sqrt(d)) and of the orders.
    """

    normalise: bool = False
    metric: str = "cosine"
    scale: float = 5.0
    passes: int = 100
    batch: int = 4
    lr: float = 0.01
    momentum: float = 0.9
    dampening: float = 0.9
    weight_decay: float = 1e-3
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse names that nothing here answers to."""
        if self.metric not in ("cosine", "dot") or self.pool not in ("mean", "flatten"):
            raise ValueError(
                "a fine-tuned head has metric cosine or dot and pool mean or flatten, "
                f"not {self.metric!r} and {self.pool!r}"
            )

    def tune(self, support: Tensor, labels: Tensor, weights: Tensor, orders: Tensor) -> Tensor:
        """Train one classifier an episode by SGD on its support.

        Cross-entropy of `scale * cos(z, w_k)` or `scale * z . w_k`, without margin. Every update is
        torch's SGD: decay added to the gradient, a velocity that starts as the first gradient.

        Args:
            support: (E, n, d) features.
            labels: int64 (n,), their ways, the same in every episode.
            weights: (E, way, d), where each classifier starts.
            orders: int64 (E, passes, n), the order of the support in every pass.

        Returns:
            (E, way, d).
        """
        cosine = self.metric == "cosine"
        support = functional.normalize(support, dim=-1) if cosine else support
        truth = functional.one_hot(labels, weights.shape[1]).to(support.dtype)
        velocity: Tensor | None = None
        steps = [(p, i) for p in range(orders.shape[1]) for i in range(0, len(labels), self.batch)]
        # The loop runs over steps, which follow one another; each takes all episodes.
        for one_pass, first in steps:
            chosen = orders[:, one_pass, first : first + self.batch]
            z = support.gather(1, chosen.unsqueeze(-1).expand(-1, -1, support.shape[-1]))
            length = weights.norm(dim=-1, keepdim=True).clamp(min=1e-12) if cosine else 1.0
            unit = weights / length
            error = (self.scale * z @ unit.transpose(1, 2)).softmax(-1) - truth[chosen]
            slope = error.transpose(1, 2) @ z * (self.scale / chosen.shape[1])
            if cosine:  # turning a direction: the part along it changes nothing
                slope = (slope - (slope * unit).sum(-1, keepdim=True) * unit) / length
            slope = slope + self.weight_decay * weights
            if velocity is None:
                velocity = slope
            else:
                velocity = self.momentum * velocity + (1 - self.dampening) * slope
            weights = weights - self.lr * velocity
        return weights

    def score(self, support: Tensor, query: Tensor) -> Tensor:
        """Logits of every query for every way: (E, way, shot, d), (E, Q, d) to (E, Q, way).

        Start and order of each episode come from `seed` and its place in the batch, so the same
        batch gives the same scores.
        """
        episodes, way, _, width = support.shape
        return _Batch(self, episodes, way, width).score(support, query)

    def evaluate(
        self,
        method: Method,
        images: ImageSet,
        maps: Tensor | None = None,
        way: int = 5,
        episodes: int = 10_000,
        **asked: int,
    ) -> Scores:
        """Scores of the test; arguments as those of `fslib.evaluate.evaluate`.

        All episodes are one batch, however many of them are scored at a time.
        """
        maps = embed_images(method, images) if maps is None else maps
        head = _Batch(self, episodes, way, self.features(maps[:1]).shape[1])
        return evaluate(method, images, way=way, episodes=episodes, head=head, maps=maps, **asked)


class _Batch:
    """A fine-tuned head for one batch of episodes, which may be scored a stretch at a time.

    The first weights of all episodes are drawn before the first order, so they are kept here.
    """

    def __init__(self, head: FineTuned, episodes: int, way: int, width: int) -> None:
        self.head, self.features, self.scored = head, head.features, 0
        self.generator = torch.Generator().manual_seed(head.seed)
        bound = width**-0.5
        self.starts = (2 * torch.rand((episodes, way, width), generator=self.generator) - 1) * bound

    def score(self, support: Tensor, query: Tensor) -> Tensor:
        """Logits of the next episodes, as those of `Head.score`."""
        head, (episodes, way, shot, _) = self.head, support.shape
        weights = self.starts[self.scored : self.scored + episodes].to(support)
        self.scored += episodes
        noise = torch.rand((episodes, head.passes, way * shot), generator=self.generator)
        flat = support.flatten(1, 2)
        # Steps only ever add support features, so a classifier stays in the span of those and of
        # its start: the same training in way x (shot + 1) dimensions instead of d.
        basis = torch.linalg.qr(torch.cat([flat, weights], 1).transpose(1, 2)).Q
        made = head.tune(
            flat @ basis,
            torch.arange(way, device=flat.device).repeat_interleave(shot),
            weights @ basis,
            noise.argsort(-1).to(flat.device),
        )
        if head.metric == "cosine":
            query, made = functional.normalize(query, dim=-1), functional.normalize(made, dim=-1)
        return head.scale * (query @ basis) @ made.transpose(1, 2)


FINE_TUNED: dict[str, Head] = {
    "tuned_cosine": FineTuned(),  # the released test of neg-cosine
    "tuned_dot": FineTuned(metric="dot"),  # of neg-softmax
}
"""Short names for records and for the command line, as in `fslib.heads.HEADS`."""
