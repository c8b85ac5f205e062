"""The images of one split, packed: what data sets are made of and methods are trained on."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class ImageSet:
    """The images of one split, packed.

    Attributes:
        name: Data set, such as `cifar_fs`.
        split: `train` (base classes), `val` or `test` (novel classes).
        images: uint8 (N, 3, H, W), memory-mapped where it comes from disk.
        labels: int64 (N,), 0 to C - 1.
        class_names: C names.
        superclass: The coarser class of each class (C,), if the data set has one.
        semantics: float32 (C, d) word vectors of the class names, if there are any.
        original_part: bool (N,), True for images of the original data set's own test part.
        digest: sha256 of the pack's file of images, without the labels; of both where the set was
            made in memory. Kept in every record and part of a run's name.
    """

    name: str
    split: str
    images: Tensor
    labels: Tensor
    class_names: tuple[str, ...]
    superclass: tuple[str, ...] | None = None
    semantics: Tensor | None = None
    original_part: Tensor | None = None
    digest: str = ""

    def __post_init__(self) -> None:
        """Refuse arrays that do not fit together."""
        if self.images.dtype != torch.uint8 or self.images.ndim != 4 or self.images.shape[1] != 3:
            raise ValueError(
                f"images must be uint8 (N, 3, H, W), not {self.images.dtype} "
                f"{tuple(self.images.shape)}"
            )
        if len(self.labels) != len(self.images):
            raise ValueError(f"{len(self.images)} images but {len(self.labels)} labels")
        if len(self.labels) and not 0 <= int(self.labels.min()) <= int(self.labels.max()) < len(
            self.class_names
        ):
            raise ValueError(f"labels must lie in 0..{len(self.class_names) - 1}")
        if not self.digest:
            content = hashlib.sha256(self.images.contiguous().numpy())
            content.update(self.labels.contiguous().numpy())
            object.__setattr__(self, "digest", content.hexdigest())

    def __len__(self) -> int:
        """The number of images."""
        return len(self.labels)

    def __repr__(self) -> str:
        """One line: name, split, classes, images, size."""
        height, width = self.size
        return (
            f"ImageSet({self.name}/{self.split}: {self.classes} classes, "
            f"{len(self):,} images of {height} x {width})"
        )

    @property
    def classes(self) -> int:
        """The number of classes C."""
        return len(self.class_names)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.images.shape[-2], self.images.shape[-1]

    @functools.cached_property
    def counts(self) -> Tensor:
        """Images of each class, int64 (C,)."""
        return torch.bincount(self.labels, minlength=self.classes)

    @functools.cached_property
    def semantics_digest(self) -> str | None:
        """sha256 of the word vectors, None where there are none.

        A run's name does not say which vectors it learned from, so its facts do.
        """
        if self.semantics is None:
            return None
        return hashlib.sha256(self.semantics.contiguous().numpy()).hexdigest()

    def rows_of(self, label: int) -> Tensor:
        """The rows that hold the images of one class, in order."""
        return torch.nonzero(self.labels == label).flatten()

    def take(self, rows: Tensor) -> ImageSet:
        """The same classes with only these images (the labels keep their meaning)."""
        return dataclasses.replace(
            self,
            images=self.images[rows],
            labels=self.labels[rows],
            original_part=None if self.original_part is None else self.original_part[rows],
            digest="",  # other images: another set for runs and records
        )

    def subset(
        self, classes: Sequence[int] | None = None, per_class: int | None = None
    ) -> ImageSet:
        """Fewer classes (renumbered 0, 1, ... in the order given), or fewer images of each.

        Args:
            classes: The class indices to keep; all of them where None.
            per_class: Keep the first images of each class only.
        """
        chosen = list(range(self.classes)) if classes is None else list(classes)
        rows = [self.rows_of(c)[:per_class] for c in chosen]
        sizes = torch.tensor([len(r) for r in rows])
        return dataclasses.replace(
            self.take(torch.cat(rows)),
            labels=torch.repeat_interleave(torch.arange(len(chosen)), sizes),
            class_names=tuple(self.class_names[c] for c in chosen),
            superclass=self.superclass and tuple(self.superclass[c] for c in chosen),
            semantics=None if self.semantics is None else self.semantics[chosen],
            digest="",
        )

    def resized(self, side: int) -> ImageSet:
        """All images at side x side pixels (bilinear, antialiased)."""
        if self.size == (side, side):
            return self
        parts = [
            functional.interpolate(part, size=(side, side), mode="bilinear", antialias=True)
            for part in self.images.split(1024)
        ]
        # Named rather than hashed: resizing may differ by a grey level between processors.
        return dataclasses.replace(self, images=torch.cat(parts), digest=f"{self.digest}@{side}")
