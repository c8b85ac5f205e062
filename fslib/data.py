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
        # Beside the scripts of data sets lie tools such as `images`, which pack none by their name.
        file = ROOT / "data_scripts" / f"{name}.py"
        known = file.exists() and f'NAME = "{name}"' in file.read_text(encoding="utf-8")
        script = name if known else f"own_images FOLDER --name {name}"
        raise DataMissing(
            f"no data set {name!r} at {folder}: make it with "
            f"`python -m data_scripts.{script} --root {root}`"
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
