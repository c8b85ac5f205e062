"""Packed image sets: every image of a split as one uint8 array, opened in milliseconds.

How a pack lies on disk is the business of `fslib.packs`. Reading goes through the operating
system's page cache, so a training step never decodes a file.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor
from torch.nn import functional

from fslib.packs import DataCorrupt, PackSplit, check_pack, write_pack
from fslib.paths import data_root

# The built-in data sets: classes and images of a class. The small one is for tests of the pages.
GLYPHS = {"glyphs": (100, 120), "glyphs_small": (40, 40)}


class DataMissing(FileNotFoundError):
    """A data set is not on this machine; the message names the command that makes it."""


class TooFewImages(ValueError):
    """A class holds fewer images than an episode needs."""


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
        digest: sha256 of the packed images, kept in every record and part of a run's name; of
            images and labels where the set was made in memory.
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


def _open_split(folder: Path, name: str, split: str, entry: dict[str, Any]) -> ImageSet:
    def array(key: str) -> Tensor | None:
        if key not in entry["files"]:
            return None
        # Copy-on-write: torch wants writable memory, the file itself is never changed.
        mode = "c" if key == "images" else None
        path = folder / entry["files"][key]["file"]
        try:
            return torch.from_numpy(np.load(path, mmap_mode=mode, allow_pickle=False))
        except ValueError as error:
            raise DataCorrupt(f"{path} cannot be read ({error}): pack it again") from None

    images, labels = array("images"), array("labels")
    superclass = entry.get("superclass")
    return ImageSet(
        name=name,
        split=split,
        images=images,
        labels=labels,
        class_names=tuple(entry["class_names"]),
        superclass=None if superclass is None else tuple(superclass),
        semantics=array("semantics"),
        original_part=array("original_part"),
        digest=entry["files"]["images"]["sha256"],
    )


def open_dataset(name: str, root: str | os.PathLike[str] | None = None) -> dict[str, ImageSet]:
    """Open a packed data set, or render the built-in one.

    Args:
        name: `glyphs` or `glyphs_small` (built in, nothing to download), or a packed data set.
        root: Folder of the packs; `$FSLIB_DATA` or `data/` of the project where None.

    Returns:
        The splits: `train` (base classes), `val`, `test` (novel classes), as far as there are.

    Raises:
        DataMissing: There is no such pack; the message names the command that makes it.
        DataCorrupt: The pack is damaged.
    """
    root = data_root() if root is None else Path(root)
    folder = root / name
    if name in GLYPHS:
        return _open_glyphs(name, root)
    if not folder.exists():
        scripts = ("cifar_fs", "flowers102")
        script = f"data_scripts.{name}" if name in scripts else "data_scripts.own_images FOLDER"
        extra = "" if name in scripts else f" --name {name}"
        raise DataMissing(
            f"no data set {name!r} at {folder}: make it with "
            f"`python -m {script}{extra} --root {root}`"
        )
    return _open_pack(folder)


def _open_pack(folder: Path) -> dict[str, ImageSet]:
    content = check_pack(folder)
    return {
        split: _open_split(folder, content["name"], split, entry)
        for split, entry in content["splits"].items()
    }


def _open_glyphs(name: str, root: Path) -> dict[str, ImageSet]:
    """The built-in data set: rendered once, then opened from its pack like any other."""
    from fslib import glyphs

    version = hashlib.sha256(Path(glyphs.__file__).read_bytes()).hexdigest()
    try:
        root.mkdir(parents=True, exist_ok=True)
        with FileLock(root / f".{name}.lock"):
            folder = root / name
            with contextlib.suppress(DataCorrupt):  # a damaged or absent pack is drawn again
                if check_pack(folder)["notes"].get("version") == version:
                    return _open_pack(folder)
            splits = glyphs.render_glyphs(*GLYPHS[name])
            packs = {
                key: PackSplit(
                    part.images.numpy(),
                    part.labels.numpy(),
                    part.class_names,
                    part.superclass,
                    semantics=None if part.semantics is None else part.semantics.numpy(),
                )
                for key, part in splits.items()
            }
            notes = {"version": version}
            write_pack(root, name, packs, licence="MIT", source="fslib.glyphs", notes=notes)
            return _open_pack(folder)
    except PermissionError:  # a read-only data folder: render every time
        return glyphs.render_glyphs(*GLYPHS[name])
