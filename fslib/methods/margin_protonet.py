"""Adaptive margins on prototypical networks (Li, Huang, Lan, Feng, Li & Wang, CVPR 2020).

Picture the classes of an episode as islands. A dog and a wolf lie close together, a dog and a
truck do not, and the names of the classes already say so. Where two names are alike, training
asks for a wider strait between the islands; where they are not, hardly any.

A query's logit for class c is minus its squared distance to the prototype, D[i, c]. Training adds
the margin M[y, c] to every wrong logit (Eq. 2 to 6, `fslib.losses.margin`):

    loss = CE(D + M[y], y),      M from the cosines of the class names' word vectors

At test there is no margin, and with this host no word vector either: new classes need no names.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from fslib.backbones import Backbone
from fslib.data import ImageSet
from fslib.heads import Head, squared_distance
from fslib.losses.margin import OF_TRUE, MarginLoss, word_similarity
from fslib.methods.base import Batch, Episodic, Method, percent_right

METRICS = ("squared", "euclidean", "cosine")


def class_words(images: ImageSet, source: str = "names") -> Tensor:
    """Vectors that say how alike two classes are, (C, w).

    Args:
        images: The classes.
        source: `names`: the word vectors; `shuffled`: the same, dealt out to other classes;
            `superclass`: one-hot of the coarser class; `none`: every class unlike any other.

    Raises:
        ValueError: The data set does not have what is asked for, or a class lacks its vector.
    """
    if source == "none":
        return torch.eye(images.classes)
    if source == "superclass":
        if images.superclass is None:
            raise ValueError(f"{images.name} has no superclasses: choose another `semantics`")
        kinds = sorted(set(images.superclass))
        return functional.one_hot(torch.tensor([kinds.index(s) for s in images.superclass])).float()
    if source not in ("names", "shuffled"):
        raise ValueError(
            f"unknown semantics {source!r}: choose one of names, shuffled, superclass, none"
        )
    if images.semantics is None:
        raise ValueError(
            f"{images.name} has no word vectors: add them with `python -m data_scripts.glove "
            f"--pack data/{images.name} --from glove.6B.zip --dimension 100`"
        )
    words = images.semantics.float()
    missing = [images.class_names[c] for c in torch.nonzero((words == 0).all(1)).flatten()]
    if missing:
        raise ValueError(
            f"{images.name} has no word vector for {', '.join(missing)}: "
            "give these classes names that the table knows and add the vectors again"
        )
    # One place further round a fixed random circle, so that no class keeps its own vector.
    order = torch.randperm(len(words), generator=torch.Generator().manual_seed(0))
    if source == "shuffled":
        words = words.clone().index_copy_(0, order, words[order.roll(1)])
    return words


class MarginProtoNet(Method):
    """Nearest class mean, trained with a margin of any kind.

    Args:
        backbone: Images to maps.
        classes: Number of base classes.
        margin: `none`, `naive` (NAML), `class` (CRAML), `task` (TRAML), or on normalised features
            `angular` (ArcFace) and `cosine` (CosFace).
        metric: Logit of a class: minus the `squared` distance, minus the `euclidean` one, or
            `scale` times the `cosine`. The last two margins always use the cosine.
        scale: Of the cosine. Without it the loss of a 5-way episode could not fall below 0.43.
        learn_scale: Whether `scale` is only where it starts.
        semantics: Which vectors say how alike two classes are, see `class_words`.
        way: Classes of a training episode; a task-relevant margin is built for this many.
        shot: Support images of a class.
        query: Query images of a class.
        count: Episodes of a batch.
        pool: `mean` or `flatten` the map; the backbone's usual way where None.
        **options: Of `MarginLoss`: `mode`, `penalty`, `floor`, `size`; `alpha`, `beta`; `hidden`,
            `order`, `activation`.
    """

    def __init__(
        self,
        backbone: Backbone,
        classes: int,
        margin: str = "none",
        metric: str = "squared",
        scale: float = 10.0,
        learn_scale: bool = False,
        semantics: str = "names",
        way: int = 20,
        shot: int = 5,
        query: int = 10,
        count: int = 1,
        pool: str | None = None,
        **options: Any,
    ) -> None:
        if metric not in METRICS:
            raise ValueError(f"unknown metric {metric!r}: choose one of {', '.join(METRICS)}")
        metric = "cosine" if margin in OF_TRUE else metric
        # A nearest class is the same by the distance and by its square.
        at_test = "cosine" if metric == "cosine" else "euclidean"
        head = Head(pool=pool or backbone.pool, normalise=False, metric=at_test)
        super().__init__(backbone, classes, head)
        self.batches = Episodic(way, shot, query, count)
        self.metric, self.semantics = metric, semantics
        self.margin = MarginLoss(margin, way, **options)
        self.scale = nn.Parameter(torch.tensor(float(scale))) if learn_scale else scale
        # Only how alike the base classes are is kept, so vectors of any width will do.
        self.register_buffer("similarity", torch.zeros(classes, classes))

    def prepare(self, images: ImageSet) -> None:
        """Take the similarity of the base classes' names from the training images."""
        super().prepare(images)
        if self.margin.learned:  # the others do not depend on names
            self.similarity.copy_(word_similarity(class_words(images, self.semantics)))

    def prototypes(self, support: Tensor, classes: Tensor) -> Tensor:
        """Mean support feature of every way: (E, way, shot, d) to (E, way, d).

        Args:
            support: Features.
            classes: int64 (E, way), the base classes; of use to other hosts.
        """
        return support.mean(2)

    def compare(self, query: Tensor, prototypes: Tensor) -> Tensor:
        """Logits (E, Q, way) of queries (E, Q, d) for prototypes (E, way, d), without margin."""
        if self.metric == "cosine":
            query = functional.normalize(query, dim=-1)
            with torch.autocast(query.device.type, enabled=False):
                return self.scale * query @ functional.normalize(prototypes, dim=-1).mT
        distances = squared_distance(query, prototypes)
        # The slope of a square root is infinite at distance 0.
        return -distances if self.metric == "squared" else -(distances + 1e-12).sqrt()

    def margins_of(self, classes: Tensor) -> Tensor:
        """The margin tables of episodes over base classes (E, way): (E, way, way)."""
        if self.margin.table is None:
            raise ValueError(f"margin {self.margin.kind!r} has no table")
        return self.margin.table(self.similarity[classes.unsqueeze(-1), classes.unsqueeze(-2)])

    def loss(self, batch: Batch, progress: float) -> dict[str, Tensor]:
        """Cross-entropy of the queries over the ways, with margins on the wrong ones."""
        maps = self.backbone(self.normalise(batch.images)).float()
        support, query = batch.episodes(self.head.raw_features(maps))
        classes = batch.episodes(batch.labels)[0][:, :, 0]
        logits = self.compare(query.flatten(1, 2), self.prototypes(support, classes))
        way, queries = query.shape[1:3]
        target = torch.arange(way, device=maps.device).repeat_interleave(queries)
        target = target.expand(len(query), -1)
        made = self.margin(
            logits,
            target,
            self.similarity[classes.unsqueeze(-1), classes.unsqueeze(-2)],
            self.scale,
            # A look-ahead moves the last stage only: the slope of a slope through all would
            # triple the cost of a step.
            list(self.backbone.blocks[-1].parameters()),
        )
        return {**made, "episode_accuracy": percent_right(logits, target)}
