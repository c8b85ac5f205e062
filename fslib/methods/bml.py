"""Binocular Mutual Learning (Zhou, Qiu, Xie, Wu & Zhang, ICCV 2021).

Two eyes on one body. All blocks of the backbone but the last are shared; the last one exists
twice and makes two maps of every image::

                              +-- last block -- global map -- which of all base classes?
    image -- shared blocks ---+                     |  mutual loss: see alike
                              +-- last block -- local map --- which class of this episode?

The global view compares with all base classes and learns how they relate; the local view compares
with the few classes of an episode and learns to match. Matching is the easier task, so an elastic
constraint makes it harder as training goes on. At test both views vote.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from fslib.backbones import Backbone
from fslib.heads import Head, squared_distance
from fslib.losses.elastic import push_away
from fslib.losses.mutual import mutual_loss
from fslib.methods.base import Batch, Episodic, Method, percent_right


def second_block(block: nn.Module) -> nn.Module:
    """A copy of a block with weights of its own, drawn from the same distribution.

    The convolutions of all backbones start from a normal distribution around zero, so its width
    is all there is to copy. Batch norms start alike.
    """
    block = copy.deepcopy(block)
    for part in block.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.normal_(part.weight, std=float(part.weight.detach().std()))
    return block


def match_positions(support: Tensor, query: Tensor, proto_per_position: bool = False) -> Tensor:
    r"""Squared distance of every position of a query to every prototype.

    .. math:: D_{ipn} = \| F_i^p - c_n \|^2, \qquad c_n = \frac{1}{S P} \sum_{j, p} F_j^p

    Args:
        support: (E, way, shot, P, C), the features at all P positions.
        query: (E, way, query, P, C).
        proto_per_position: Match position p with the mean of the shots at p alone, as
            Algorithm 1 of the paper writes it, instead of the mean over all positions.

    Returns:
        (E, way x query, P, way).
    """
    if proto_per_position:
        prototypes = support.mean(2).transpose(1, 2)  # (E, P, way, C)
        queries = query.flatten(1, 2).transpose(1, 2)  # (E, P, way x query, C)
        return squared_distance(queries, prototypes).transpose(1, 2)
    distances = squared_distance(query.flatten(1, 3), support.mean((2, 3)))
    return distances.unflatten(1, (-1, query.shape[3]))


class BML(Method):
    """Binocular mutual learning: a global and a local view on a shared trunk teach each other.

    The options are set as in the released code; where the paper says otherwise, an option says
    what the paper says.

    Args:
        backbone: Images to maps; it becomes the trunk and the global view.
        classes: Number of base classes.
        way: Classes of a training episode.
        shot: Support images of a class.
        query: Query images of a class.
        count: Episodes of a batch; the released scripts average the gradients of 2.
        alpha1: Longest elastic push; 0 switches it off.
        alpha2: How it grows with the difficulty of a query.
        elastic_gate: Push only queries that no way holds with a probability above one half; the
            paper pushes all.
        proto_per_position: A prototype for every position, as Algorithm 1 of the paper has it.
        temperature: Of the softmax over channels in the mutual loss.
        detach_target: Let either view learn from one term of the mutual loss alone.
        global_weight: Of the global loss in the total.
        local_weight: Of the local loss.
        mutual_weight: Of the mutual loss.
        power: Exponent on the rectified maps at test; 1 leaves the maps alone, as the paper does.
        pool: `flatten` or `mean` at test.
    """

    def __init__(
        self,
        backbone: Backbone,
        classes: int,
        way: int = 15,
        shot: int = 5,
        query: int = 7,
        count: int = 1,
        alpha1: float = 5.5,
        alpha2: float = 0.1,
        elastic_gate: bool = True,
        proto_per_position: bool = False,
        temperature: float = 4.0,
        detach_target: bool = False,
        global_weight: float = 2.0,
        local_weight: float = 1.0,
        mutual_weight: float = 0.5,
        power: float = 0.5,
        pool: str = "flatten",
    ) -> None:
        if temperature <= 0:
            raise ValueError(f"the temperature must be above 0, not {temperature}")
        super().__init__(backbone, classes, Head(pool=pool, power=power, normalise=False))
        self.batches = Episodic(way, shot, query, count)
        self.local_block = second_block(backbone.blocks[-1])
        # A 1 x 1 convolution is the same linear layer at every position.
        self.classifier = nn.Conv2d(backbone.channels, classes, 1)
        nn.init.xavier_uniform_(self.classifier.weight)
        nn.init.zeros_(self.classifier.bias)
        self.alpha1, self.alpha2, self.elastic_gate = alpha1, alpha2, elastic_gate
        self.proto_per_position = proto_per_position
        self.temperature, self.detach_target = temperature, detach_target
        self.weights = {
            "global_loss": global_weight,
            "local_loss": local_weight,
            "mutual_loss": mutual_weight,
        }

    def views(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Section 3.2: the global and the local map (B, C, h, w) of images (B, 3, H, W)."""
        shared = self.backbone.blocks[:-1](self.normalise(images))
        return self.backbone.blocks[-1](shared), self.local_block(shared)

    def global_loss(self, maps: Tensor, labels: Tensor) -> dict[str, Tensor]:
        r"""Section 3.2.1: every position of every image names its base class.

        .. math:: L_{global} = \frac{1}{B P} \sum_{i, p} -\log
            \operatorname{softmax}(W F_i^p)_{y_i}

        Support and query alike, with one W for all positions. The softmax runs over the base
        classes, though the paper speaks of 640 dimensions.

        Args:
            maps: (B, C, h, w) of the global view.
            labels: int64 (B,), base classes.
        """
        logits = self.classifier(maps).float()
        target = labels[:, None, None].expand(-1, *logits.shape[2:])
        return {
            "global_loss": functional.cross_entropy(logits, target),
            "base_accuracy": percent_right(logits.mean((2, 3)), labels),
        }

    def local_loss(self, maps: Tensor, batch: Batch, progress: float) -> dict[str, Tensor]:
        r"""Section 3.2.2: every position of every query finds its class in the episode.

        .. math:: L_{local} = \frac{1}{N Q P} \sum_{i, p} -\log
            \operatorname{softmax}_n (-D_{ipn} - [n = t_i] \, d_{EL}^{ip})_{t_i}

        with the distances of `match_positions` and the push of `elastic_constraint`.

        Args:
            maps: (B, C, h, w) of the local view.
            batch: Says how the images make up episodes.
            progress: Share of training done, the e / E of the push.
        """
        support, query = batch.episodes(maps.float().flatten(2).transpose(1, 2))
        distances = match_positions(support, query, self.proto_per_position)
        truth = torch.arange(batch.form.way, device=maps.device)
        truth = truth.repeat_interleave(batch.form.query)  # (way x query,)
        target = truth[:, None].expand(distances.shape[:-1])
        pushed, undecided = push_away(
            distances, target, progress, self.alpha1, self.alpha2, self.elastic_gate
        )
        return {
            "local_loss": functional.cross_entropy(-pushed.flatten(0, 2), target.flatten()),
            "episode_accuracy": percent_right(-distances.mean(2), truth),
            "gate_open": undecided.float().mean() * 100,
        }

    def loss(self, batch: Batch, progress: float) -> dict[str, Tensor]:
        r"""Section 3.2.3: both views for themselves, and each as the other sees it.

        .. math:: L = 2 L_{global} + L_{local} + \tfrac{1}{2} L_{mutual}

        Returns:
            The total, its three parts without their weights, the accuracy of either view on the
            batch and the share of (query, position) pairs with an open gate, in percent.
        """
        global_maps, local_maps = self.views(batch.images)
        parts = self.global_loss(global_maps, batch.labels)
        parts |= self.local_loss(local_maps, batch, progress)
        # The mean over positions of either map is what the views compare.
        pooled = [maps.float().mean((2, 3)) for maps in (global_maps, local_maps)]
        parts["mutual_loss"] = mutual_loss(*pooled, self.temperature, self.detach_target)
        total = sum(weight * parts[name] for name, weight in self.weights.items())
        return {"loss": total, **parts}

    def embed(self, images: Tensor) -> Tensor:
        """Section 3.2.4: both maps, global then local, one after the other: (B, 2 C, h, w)."""
        return torch.cat(self.views(images), dim=1)

    def branches(self) -> dict[str, Callable[[Tensor, Tensor], Tensor]]:
        """The global and the local view alone.

        `score` is the sum of their logits and needs no code of its own: a squared distance adds
        up over features, so over both views together it is the sum of the two.
        """

        def alone(view: int) -> Callable[[Tensor, Tensor], Tensor]:
            def score(support: Tensor, query: Tensor) -> Tensor:
                own = [features.chunk(2, dim=-1)[view] for features in (support, query)]
                return self.head.score(*own)

            return score

        return {"global": alone(0), "local": alone(1)}
