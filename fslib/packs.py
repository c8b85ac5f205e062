"""Packs: how a data set lies on disk.

A pack is a folder `<root>/<name>/` with a few `.npy` files a split and `pack.json`, which is
written last and says how large each file must be. Nothing here needs torch.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

SPLITS = ("train", "val", "test")
FORMAT = 1
BUILT_IN = "glyphs"
"""Names of built-in data sets begin with this, and no others do."""


class DataCorrupt(RuntimeError):
    """A packed data set is damaged or half-written; the message names file and remedy."""


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


def refuse_foreign(folder: str | os.PathLike[str]) -> None:
    """Refuse to replace a folder that holds anything but the files of a pack.

    Args:
        folder: Where a pack is to be written; it need not be there.

    Raises:
        FileExistsError: It holds something else, such as the photos that are to be packed.
    """
    folder = Path(folder)
    for path in sorted(folder.iterdir()) if folder.exists() else []:
        array = path.suffix == ".npy" and path.name.startswith(tuple(f"{s}_" for s in SPLITS))
        if not (array or path.name == "pack.json"):
            raise FileExistsError(
                f"{folder} holds {path.name}, so it is no pack: choose another --name or --root"
            )


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
        FileExistsError: The folder is there and no pack; it is left as it is.
        OSError: The disk is full; says how many MB were needed. Nothing is left behind.
    """
    if unknown := set(splits) - set(SPLITS):
        raise ValueError(f"splits are {', '.join(SPLITS)}, not {', '.join(sorted(unknown))}")
    folder = Path(root) / name
    refuse_foreign(folder)
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
    # Not "delete it": a folder without pack.json may be somebody's photos.
    mend = "pack the data set again"
    try:
        content = json.loads((folder / "pack.json").read_text(encoding="utf-8"))
        entries = [e for s in content["splits"].values() for e in s["files"].values()]
    except FileNotFoundError:
        raise DataCorrupt(f"{folder} is half-written or no pack (no pack.json): {mend}") from None
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
