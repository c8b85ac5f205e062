"""What every method offers to the harness: a loss for a batch, features for an image, scores."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fslib.augment import to_float
from fslib.backbones import Backbone
from fslib.data import ImageSet
from fslib.heads import Head


def _positive(form: MixedClasses | Episodic) -> None:
    for name, value in dataclasses.asdict(form).items():
        if name != "views" and value < 1:
            raise ValueError(f"{name} of a batch must be at least 1, not {value}")


@dataclass(frozen=True)
class MixedClasses:
    """Batches of images of any base class; an epoch goes once through all of them.

    Attributes:
        size: Images of a batch.
        views: Augmentation of each view of an image; "" is the one the run is configured with.
    """

    size: int = 128
    views: tuple[str, ...] = ("",)

    def __post_init__(self) -> None:
        """Refuse an empty batch."""
        _positive(self)

    @property
    def images(self) -> int:
        """Distinct images in a batch."""
        return self.size


@dataclass(frozen=True)
class Episodic:
    """Batches of whole episodes over base classes.

    Attributes:
        way: Classes of an episode.
        shot: Support images of a class.
        query: Query images of a class.
        count: Episodes of a batch.
        views: Augmentation of each view, as in `MixedClasses`.
    """

    way: int = 20
    shot: int = 5
    query: int = 10
    count: int = 1
    views: tuple[str, ...] = ("",)

    def __post_init__(self) -> None:
        """Refuse an empty batch."""
        _positive(self)

    @property
    def images(self) -> int:
        """Distinct images in a batch."""
        return self.count * self.way * (self.shot + self.query)


@dataclass
class Batch:
    """Augmented images with their labels.

    Attributes:
        images: float (V B, 3, H, W) in [0, 1], the V views one after the other.
        labels: int64 (B,), base class of each image.
        form: How it was drawn. An `Episodic` batch runs over (count, way, shot + query).
    """

    images: Tensor
    labels: Tensor
    form: MixedClasses | Episodic

    def episodes(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Cut per-image values (B, ...) into support and query.

        Returns:
            (count, way, shot, ...) and (count, way, query, ...).
        """
        form = self.form
        table = values.unflatten(0, (form.count, form.way, form.shot + form.query))
        return table[:, :, : form.shot], table[:, :, form.shot :]


@torch.no_grad()
def percent_right(logits: Tensor, target: Tensor) -> Tensor:
    """How often the largest logit is that of the target: (..., C) and int64 (...) to a scalar."""
    return (logits.argmax(-1) == target).float().mean() * 100


class Method(nn.Module):
    """A few-shot method: trained by `loss`, used through `embed` and `score`.

    Attributes:
        batches: How it wants its training batches.
        head: Its own test-time classifier; `evaluate` can swap in another.
        backbone: Images to feature maps.
        uses_semantics: Whether `score` needs the word vectors of the ways (AM3 does).
        teacher: The finished run that training learns from, if any; see `learn_from`.
    """

    batches: MixedClasses | Episodic
    uses_semantics: bool = False
    teacher: str = ""

    def __init__(self, backbone: Backbone, classes: int, head: Head) -> None:
        super().__init__()
        self.backbone, self.classes, self.head = backbone, classes, head
        # Channel statistics of the training images; they travel with the weights.
        self.register_buffer("mean", torch.full((3,), 0.5))
        self.register_buffer("std", torch.full((3,), 0.25))

    def prepare(self, images: ImageSet) -> None:
        """Take from the training images what the method needs to know, once before training.

        Here the channel statistics; a method may add, say, the word vectors of the base classes.
        What it keeps belongs into buffers, so that it travels with the weights.
        """
        rows = torch.linspace(0, len(images) - 1, min(len(images), 8192)).long()
        pixels = images.images.index_select(0, rows)
        # Counting the 256 levels is exact and needs no float copy of the images.
        level = torch.arange(256, dtype=torch.float64) / 255
        for channel in range(3):
            count = torch.bincount(pixels[:, channel].flatten(), minlength=256).double()
            mean = (count @ level) / count.sum()
            variance = (count @ (level - mean).square()) / (count.sum() - 1)
            self.mean[channel], self.std[channel] = mean, variance.sqrt()

    def learn_from(self, teacher: Method) -> None:
        """Take the method of the run `teacher`, which `fit` opens after `prepare`.

        A method knows no runs: those are built on methods.

        Args:
            teacher: Trained, on the processor.
        """
        raise NotImplementedError

    def normalise(self, images: Tensor) -> Tensor:
        """Map uint8 or [0, 1] images (B, 3, H, W) to zero mean and unit variance a channel."""
        images = (to_float(images) - self.mean.view(1, 3, 1, 1)) / self.std.view(1, 3, 1, 1)
        return images.contiguous(memory_format=torch.channels_last)

    def loss(self, batch: Batch, progress: float) -> dict[str, Tensor]:
        """The training loss of a batch.

        Args:
            batch: Images and labels, drawn as `batches` says.
            progress: Share of training done, 0 to 1; drives every ramp.

        Returns:
            `{"loss": scalar, part: scalar, ...}`.
        """
        raise NotImplementedError

    def embed(self, images: Tensor) -> Tensor:
        """Feature maps that depend on no episode, so each image is embedded once.

        Args:
            images: uint8 or float in [0, 1], (B, 3, H, W).

        Returns:
            (B, C, h, w).
        """
        return self.backbone(self.normalise(images))

    def test_features(self, maps: Tensor) -> Tensor:
        """What `score` takes of each image: maps (N, C, h, w) to features (N, d)."""
        return self.head.features(maps)

    def score(self, support: Tensor, query: Tensor, semantics: Tensor | None = None) -> Tensor:
        """Logits of every query for every way, all episodes at once.

        Args:
            support: (E, way, shot, d) of `test_features`.
            query: (E, Q, d).
            semantics: (E, way, w) word vectors of the ways, where `uses_semantics`.

        Returns:
            (E, Q, way).
        """
        return self.head.score(support, query)

    def branches(self) -> dict[str, Callable[[Tensor, Tensor], Tensor]]:
        """Parts that can be scored by themselves: name to a function like `score`."""
        return {}
