r"""Spatial contrastive learning (Ouali, Hudelot & Tami, ECML-PKDD 2021).

A network that is only asked to tell base classes apart keeps what separates them and forgets the
rest, and novel classes need some of the rest. So beside the cross-entropy a second loss asks
which images of the batch belong together. Every image comes in two views that are augmented
differently, and all 2 N views are compared with each other:

.. math:: L = \lambda_{CE} L_{CE} + \lambda_{GC} L_{GC} + \lambda_{SC} L_{SC}

GC compares images by one vector each; SC aligns their maps by attention and compares them place
by place, so that a shared background counts less. SS-GC and SS-SC are the same two losses with
the labels ignored: only the other view of an image is its match. The comparison's own layers are
thrown away after training, like the classifier.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from fslib.augment import POLICIES
from fslib.backbones import Backbone
from fslib.data import ImageSet
from fslib.losses.contrastive import (
    GlobalSimilarity,
    SpatialSimilarity,
    contrastive_loss,
    feature_distance,
    soft_label_loss,
)
from fslib.methods.base import Batch, Episodic, Method, MixedClasses, percent_right
from fslib.methods.ce import CrossEntropy
from fslib.methods.protonet import ProtoNet

# The rows of the paper's loss table in two views: label to variant of the record and weights.
LOSSES: dict[str, tuple[str, dict[str, float]]] = {
    "CE, two views": ("ce_two_views", {"sc": 0.0}),
    "CE + SS-GC": ("ce_ss_gc", {"sc": 0.0, "ss_gc": 1.0}),
    "CE + SS-SC": ("ce_ss_sc", {"sc": 0.0, "ss_sc": 1.0}),
    "CE + SS-GC + SS-SC": ("ce_ss_gc_ss_sc", {"sc": 0.0, "ss_gc": 1.0, "ss_sc": 1.0}),
    "CE + GC": ("ce_gc", {"sc": 0.0, "gc": 1.0}),
    "CE + SC": ("ce_sc", {}),
    "CE + GC + SC": ("ce_gc_sc", {"gc": 1.0}),
}


def loss_row(label: str, weight: float = 1.0) -> tuple[str, dict[str, float]]:
    """One row of `LOSSES` as the arguments of a run.

    Args:
        label: A key of `LOSSES`.
        weight: Of every contrastive loss of the row, beside a cross-entropy of weight 1.

    Returns:
        Variant of the record and options of `scl`; those at their default are left out.
    """
    variant, weights = LOSSES[label]
    scaled = {name: weight * value for name, value in ({"sc": 1.0} | weights).items()}
    return variant, {k: v for k, v in scaled.items() if v != (1.0 if k == "sc" else 0.0)}


def _views(second: str | None) -> tuple[str, ...]:
    """The run's own augmentation for the first view, `second` for the second if there is one."""
    if second and second not in POLICIES:
        raise ValueError(f"unknown view {second!r}: choose one of {', '.join(POLICIES)}")
    return ("",) if second is None else ("", second)


class SpatialContrastive(CrossEntropy):
    """Cross-entropy and contrastive losses over two views.

    Args:
        backbone: Images to maps.
        classes: Number of base classes.
        batch: Images of a batch, each in two views.
        ce: Weight of the cross-entropy, the mean over views.
        gc: Weight of the global contrastive loss.
        sc: Weight of the spatial contrastive loss.
        ss_gc: Weight of the global one without labels.
        ss_sc: Weight of the spatial one without labels.
        second: Augmentation of the second view; None for a single view.
        tau: Temperature of all contrastive losses.
        width: Length of projected features, queries, keys and values.
        aggregate: `mean` or `max` over locations in the spatial similarity.
        average: Halve the spatial similarity, see there.
        chunk: Images of which the spatial similarity is computed at a time; 0 for all.
    """

    def __init__(
        self,
        backbone: Backbone,
        classes: int,
        batch: int = 64,
        ce: float = 1.0,
        gc: float = 0.0,
        sc: float = 1.0,
        ss_gc: float = 0.0,
        ss_sc: float = 0.0,
        second: str | None = "strong",
        tau: float = 0.1,
        width: int = 80,
        aggregate: str = "mean",
        average: bool = False,
        chunk: int = 0,
    ) -> None:
        super().__init__(backbone, classes, batch)
        if second is None and (ss_gc or ss_sc):
            raise ValueError("without labels the only match is another view: give a `second` one")
        self.batches = MixedClasses(batch, _views(second))
        self.weights = {"ce": ce, "gc": gc, "sc": sc, "ss_gc": ss_gc, "ss_sc": ss_sc}
        self.tau = tau
        channels = backbone.channels
        if gc or ss_gc:
            self.whole = GlobalSimilarity(channels, width)
        if sc or ss_sc:
            self.places = SpatialSimilarity(channels, width, aggregate, average, chunk)

    def loss(self, batch: Batch, progress: float) -> dict[str, Tensor]:
        """The weighted sum of whichever losses have a weight."""
        maps = self.backbone(self.normalise(batch.images))
        views = len(batch.form.views)
        classes = batch.labels.repeat(views)
        images = torch.arange(len(batch.labels), device=maps.device).repeat(views)

        logits = self.classify(maps).flatten(1).float()
        parts = {"ce": functional.cross_entropy(logits, classes)}
        weight = self.weights
        if weight["gc"] or weight["ss_gc"]:
            similarity = self.whole(maps.mean((2, 3)))
            parts["gc"] = contrastive_loss(similarity, classes, tau=self.tau)
            parts["ss_gc"] = contrastive_loss(similarity, images, tau=self.tau)
        if weight["sc"] or weight["ss_sc"]:
            similarity = self.places(maps)
            parts["sc"] = contrastive_loss(similarity, classes, tau=self.tau)
            parts["ss_sc"] = contrastive_loss(similarity, images, tau=self.tau)

        used = {name: part for name, part in parts.items() if weight[name]}
        total = sum(weight[name] * part for name, part in used.items())
        return {"loss": total, **used, "base_accuracy": percent_right(logits, classes)}


class ContrastiveDistillation(CrossEntropy):
    r"""A second network of the same kind learns to see as the first one does.

    The contrastive losses pull an image's features to those of its class and push all others
    away; the push also packs base classes more tightly than novel ones can use. The student is
    pulled only, each image to its teacher's unit feature, with the teacher's softened answers
    beside it:

    .. math:: L = \lambda_{CD} \| u^t - u^s \|^2 + \lambda_{KD} T^2 KL(p^t_T \| p^s_T)

    Args:
        backbone: Images to maps.
        classes: Number of base classes.
        teacher: A finished run of `ce`, `scl` or a student: the name of its folder
            (`run.folder.name`) in the folder of runs, or a whole path.
        batch: Images of a batch, one view each.
        cd: Weight of the distance between features.
        local: Weight of the same distance location by location.
        kd: Weight of the softened answers.
        ce: Weight of the cross-entropy on the labels.
        temperature: Of the softened answers.
    """

    def __init__(
        self,
        backbone: Backbone,
        classes: int,
        teacher: str = "",
        batch: int = 64,
        cd: float = 10.0,
        local: float = 0.0,
        kd: float = 1.0,
        ce: float = 0.0,
        temperature: float = 4.0,
    ) -> None:
        super().__init__(backbone, classes, batch)
        self.weights = {"cd": cd, "local": local, "kd": kd, "ce": ce}
        self.teacher, self.temperature = teacher, temperature
        # In a list, so that it is no part of the student: neither trained nor saved with it.
        self._frozen: list[Method] = []

    def prepare(self, images: ImageSet) -> None:
        """Refuse to be trained without a teacher."""
        super().prepare(images)
        if not self.teacher:
            raise ValueError("distillation needs a teacher: give the option `teacher`")

    def learn_from(self, teacher: Method) -> None:
        """Keep the teacher, which only training needs."""
        if not isinstance(teacher, CrossEntropy) or teacher.classes != self.classes:
            raise ValueError(
                f"the run {self.teacher} has no classifier over these {self.classes} base "
                "classes: name a run of ce or scl on the same data set"
            )
        self._frozen = [teacher.eval().requires_grad_(False)]

    def loss(self, batch: Batch, progress: float) -> dict[str, Tensor]:
        """The weighted sum; the teacher sees the same augmented images."""
        teacher = self._frozen[0].to(batch.images.device)
        with torch.no_grad():
            taught = teacher.embed(batch.images)
            answers = teacher.classify(taught).mean((2, 3)).float()
        maps = self.backbone(self.normalise(batch.images))
        logits = self.classify(maps).flatten(1).float()

        weight = self.weights
        parts = {
            "cd": feature_distance(taught.float().mean((2, 3)), maps.float().mean((2, 3))),
            "kd": soft_label_loss(answers, logits, self.temperature),
            "ce": functional.cross_entropy(logits, batch.labels),
        }
        if weight["local"]:
            parts["local"] = feature_distance(taught, maps)
        total = sum(weight[name] * part for name, part in parts.items())
        return {"loss": total, **parts, "base_accuracy": percent_right(logits, batch.labels)}


class ProtoNetContrastive(ProtoNet):
    """Prototypical networks with a contrastive loss over the images of the episode.

    Support and query are compared with each other like any other batch; the test is ProtoNet's.

    Args:
        backbone: Images to maps.
        classes: Number of base classes.
        way: Classes of a training episode.
        shot: Support images of a class.
        query: Query images of a class.
        count: Episodes of a batch.
        pool: `mean` or `flatten` the map; the backbone's usual way where None.
        gc: Weight of the global contrastive loss.
        sc: Weight of the spatial contrastive loss.
        second: Augmentation of a second view, which only the contrastive losses see; None for
            a single view.
        tau: Temperature of the contrastive losses.
        width: Length of projected features, queries, keys and values.
        chunk: Images of which the spatial similarity is computed at a time; 0 for all.
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
        gc: float = 0.0,
        sc: float = 1.0,
        second: str | None = None,
        tau: float = 0.1,
        width: int = 80,
        chunk: int = 0,
    ) -> None:
        super().__init__(backbone, classes, way, shot, query, count, pool)
        self.batches = Episodic(way, shot, query, count, _views(second))
        self.weights, self.tau = {"gc": gc, "sc": sc}, tau
        if gc:
            self.whole = GlobalSimilarity(backbone.channels, width)
        if sc:
            self.places = SpatialSimilarity(backbone.channels, width, chunk=chunk)

    def loss(self, batch: Batch, progress: float) -> dict[str, Tensor]:
        """ProtoNet's cross-entropy on the first view, contrastive losses on all."""
        maps = self.backbone(self.normalise(batch.images))
        first = self.head.raw_features(maps[: len(batch.labels)].float()).unsqueeze(1)
        made = self.episode_loss(first, batch, progress)

        # The base class of every image: two episodes of a batch may share classes.
        classes = batch.labels.repeat(len(batch.form.views))
        parts = {"prototypes": made["loss"]}
        if self.weights["gc"]:
            parts["gc"] = contrastive_loss(self.whole(maps.mean((2, 3))), classes, tau=self.tau)
        if self.weights["sc"]:
            parts["sc"] = contrastive_loss(self.places(maps), classes, tau=self.tau)
        total = sum(self.weights.get(name, 1.0) * part for name, part in parts.items())
        return {"loss": total, **parts, "episode_accuracy": made["episode_accuracy"]}
