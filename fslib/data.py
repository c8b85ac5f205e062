"""Packed image sets: every image of a split as one uint8 array, opened in milliseconds.

A data set is a folder `<root>/<name>/` with a few `.npy` files a split and `pack.json`, which is
written last and says how large each file must be. Reading goes through the operating system's
page cache, so a training step never decodes a file.
"""

from __future__ import annotations

import dataclasses
import errno
import functools
import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor
from torch.nn import functional

from fslib.paths import data_root

SPLITS = ("train", "val", "test")
FORMAT = 1
# The built-in data sets: classes and images of a class. The small one is for tests of the pages.
GLYPHS = {"glyphs": (100, 120), "glyphs_small": (40, 40)}


class DataMissing(FileNotFoundError):
    """A data set is not on this machine; the message names the command that makes it."""


class DataCorrupt(RuntimeError):
    """A packed data set is damaged or half-written; the message names file and remedy."""


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


@dataclass(frozen=True)
class PackSplit:
    """What `write_pack` stores for one split; shapes as in `ImageSet`."""

    images: np.ndarray
    labels: np.ndarray
    class_names: Sequence[str]
    superclass: Sequence[str] | None = None
    original_part: np.ndarray | None = None
    semantics: np.ndarray | None = None


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_pack(
    root: str | os.PathLike[str],
    name: str,
    splits: dict[str, PackSplit],
    *,
    licence: str,
    source: str,
    notes: dict[str, Any] | None = None,
) -> Path:
    """Write a data set to `<root>/<name>/`; it appears whole or not at all.

    Args:
        root: Folder of all packed data sets.
        name: Name of this one, later given to `open_dataset`.
        splits: Some of `train`, `val`, `test`.
        licence: Under which terms the images may be used.
        source: Where they came from.
        notes: Anything else worth keeping, as JSON.

    Returns:
        The folder.

    Raises:
        OSError: The disk is full; says how many MB were needed. Nothing is left behind.
    """
    if unknown := set(splits) - set(SPLITS):
        raise ValueError(f"splits are {', '.join(SPLITS)}, not {', '.join(sorted(unknown))}")
    folder = Path(root) / name
    partial = folder.with_name(f".{name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    content: dict[str, Any] = {"format": FORMAT, "name": name, "licence": licence}
    content |= {"source": source, "splits": {}, "notes": notes or {}}
    try:
        partial.mkdir(parents=True)
        for split, part in splits.items():
            arrays = {
                "images": np.ascontiguousarray(part.images, dtype=np.uint8),
                "labels": np.asarray(part.labels, dtype=np.int64),
                "original_part": part.original_part,
                "semantics": part.semantics,
            }
            files = {}
            for key, array in arrays.items():
                if array is not None:
                    path = partial / f"{split}_{key}.npy"
                    np.save(path, array, allow_pickle=False)
                    files[key] = {
                        "file": path.name,
                        "bytes": path.stat().st_size,
                        "sha256": _sha256(path),
                    }
            content["splits"][split] = {
                "class_names": list(part.class_names),
                "superclass": None if part.superclass is None else list(part.superclass),
                "count": len(part.labels),
                "size": list(part.images.shape[-2:]),
                "files": files,
            }
        (partial / "pack.json").write_text(json.dumps(content, indent=1))
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        # numpy tells of a short write without an error number.
        if error.errno in (errno.ENOSPC, None):
            need = sum(part.images.nbytes for part in splits.values()) / 1e6
            raise OSError(
                errno.ENOSPC,
                f"no space left under {Path(root)}: packing {name} needs about {need:.0f} MB "
                "there; free some space or choose another --root",
            ) from error
        raise
    return folder


def check_pack(folder: str | os.PathLike[str], thorough: bool = False) -> dict[str, Any]:
    """Read `pack.json` and hold the files against it.

    Args:
        folder: The folder of one data set.
        thorough: Also compare every file's sha256 (reads everything; sizes are always compared).

    Returns:
        The content of `pack.json`.

    Raises:
        DataCorrupt: A file is missing, cut off or changed; the message says how to mend it.
    """
    folder = Path(folder)
    mend = f"delete {folder} and pack the data set again"
    try:
        content = json.loads((folder / "pack.json").read_text(encoding="utf-8"))
        entries = [e for s in content["splits"].values() for e in s["files"].values()]
    except FileNotFoundError:
        raise DataCorrupt(f"{folder} is half-written (no pack.json): {mend}") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataCorrupt(f"{folder / 'pack.json'} cannot be read ({error}): {mend}") from None
    if content.get("format") != FORMAT:
        raise DataCorrupt(
            f"{folder} has pack format {content.get('format')}, this fslib reads {FORMAT}: {mend}"
        )
    for entry in entries:
        path = folder / entry["file"]
        size = path.stat().st_size if path.exists() else 0
        if size != entry["bytes"]:
            raise DataCorrupt(f"{path} has {size} of {entry['bytes']} bytes: {mend}")
        if thorough and _sha256(path) != entry["sha256"]:
            raise DataCorrupt(f"{path} was changed after packing: {mend}")
    return content


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
            if folder.exists() and check_pack(folder)["notes"].get("version") == version:
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
