"""Packed image sets: every image of a split as one uint8 array, opened in milliseconds.

How a pack lies on disk is the business of `fslib.packs`, what an opened split can do that of
`fslib.image_set`. Reading goes through the operating system's page cache, so a training step never
decodes a file.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor

from fslib.image_set import ImageSet
from fslib.packs import DataCorrupt, PackSplit, check_pack, write_pack
from fslib.paths import ROOT, data_root

# The built-in data sets: classes and images of a class. The small one is for tests of the pages.
GLYPHS = {"glyphs": (100, 120), "glyphs_small": (40, 40)}


class DataMissing(FileNotFoundError):
    """A data set is not on this machine; the message names the command that makes it."""


def _command(name: str, root: Path, options: str = "") -> str:
    """What makes a data set; `options` are those of the script for folders of one's own."""
    # Beside the scripts of data sets lie tools such as `images`, which pack none by their name.
    file = ROOT / "data_scripts" / f"{name}.py"
    known = file.exists() and f'NAME = "{name}"' in file.read_text(encoding="utf-8")
    script = name if known else f"own_images FOLDER --name {name}{options}"
    return f"`python -m data_scripts.{script} --root {root}`"


class Splits(dict[str, ImageSet]):
    """The splits of a packed data set; one that it lacks is refused with the way to make it.

    Args:
        splits: Those that are there.
        name: Of the data set.
        root: Folder of the packs.
    """

    def __init__(self, splits: Mapping[str, ImageSet], name: str, root: Path) -> None:
        super().__init__(splits)
        self.name, self.root = name, root

    def __missing__(self, split: str) -> ImageSet:
        """Refuse a split that is not there."""
        # Own photos are all novel classes unless their script is told otherwise.
        command = _command(self.name, self.root, " --val 0.2 --test 0.2 --force")
        raise DataMissing(
            f"data set {self.name!r} at {self.root / self.name} has no split {split!r}, only "
            f"{', '.join(self)}: pack it again with {command}"
        )


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
        The splits: `train` (base classes), `val`, `test` (novel classes), as far as there are;
        asking for another raises `DataMissing` too.

    Raises:
        DataMissing: There is no such pack; the message names the command that makes it.
        DataCorrupt: The pack is damaged.
    """
    root = data_root() if root is None else Path(root)
    folder = root / name
    if name in GLYPHS:
        return _open_glyphs(name, root)
    if not folder.exists():
        raise DataMissing(f"no data set {name!r} at {folder}: make it with {_command(name, root)}")
    return _open_pack(folder)


def _open_pack(folder: Path) -> dict[str, ImageSet]:
    content = check_pack(folder)
    splits = {
        split: _open_split(folder, content["name"], split, entry)
        for split, entry in content["splits"].items()
    }
    return Splits(splits, folder.name, folder.parent)


def _open_glyphs(name: str, root: Path) -> dict[str, ImageSet]:
    """The built-in data set: rendered once, then opened from its pack like any other."""
    from fslib import glyphs  # only here: no other data set needs matplotlib

    version, folder = hashlib.sha256(Path(glyphs.__file__).read_bytes()).hexdigest(), root / name

    def opened() -> dict[str, ImageSet] | None:
        with contextlib.suppress(DataCorrupt):  # a damaged or absent pack is drawn again
            if check_pack(folder)["notes"].get("version") == version:
                return _open_pack(folder)
        return None

    try:
        if there := opened():  # before the lock, for which the folder must be writable
            return there
        root.mkdir(parents=True, exist_ok=True)
        with FileLock(root / f".{name}.lock"):
            if there := opened():
                return there
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
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise
        return glyphs.render_glyphs(*GLYPHS[name])  # a read-only data folder: every time
