"""Pack a folder of your own images: one folder a class.

    photos/
        oak/    IMG_0001.jpg  IMG_0002.png  ...
        birch/  ...

Without --split every class is a novel one (split `test`); --val and --test give the fraction of
the classes in these splits, the rest becomes base classes (`train`). A folder that holds just
train/, val/ and test/ with class folders in them brings its split along.
"""

from __future__ import annotations

import argparse
import collections
import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from data_scripts import common, images
from data_scripts.common import ScriptError, say
from fslib.packs import SPLITS, write_pack

LAYOUT = (
    "put the images of each class into a folder of its own: FOLDER/oak/1.jpg, FOLDER/birch/1.jpg"
)


def _visible(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if not p.name.startswith("."))


def _suffixes() -> set[str]:
    Image.init()
    return {s for s, form in Image.registered_extensions().items() if form in Image.OPEN}


def find(folder: Path) -> tuple[dict[str, list[Path]], dict[str, list[str]] | None, list[str]]:
    """Find the class folders and their images.

    Args:
        folder: What the user gave.

    Returns:
        The image files of each class in the order of their names; the split, if the folder is
        laid out as train/, val/, test/; the files left aside because they are no images.

    Raises:
        ScriptError: There is no such folder, or no class folder with an image in it.
    """
    if not folder.is_dir():
        raise ScriptError(f"there is no folder {folder}: {LAYOUT}")
    tops = [p for p in _visible(folder) if p.is_dir()]
    split: dict[str, list[str]] | None = None
    places = tops
    # A class may be called "train" (CIFAR-FS has one): only folders of folders are splits.
    if tops and all(p.name in SPLITS and any(q.is_dir() for q in _visible(p)) for p in tops):
        places = [q for p in tops for q in _visible(p) if q.is_dir()]
        split = {p.name: [q.name for q in _visible(p) if q.is_dir()] for p in tops}
        names = [c for classes in split.values() for c in classes]
        if twice := sorted({c for c in names if names.count(c) > 1}):
            raise ScriptError(
                f"the classes {', '.join(twice)} are in several of {folder}'s train, val and "
                "test: in few-shot learning the splits have different classes"
            )
    suffixes = _suffixes()
    classes: dict[str, list[Path]] = {}
    aside = [str(p) for p in _visible(folder) if p.is_file() and p.suffix.lower() in suffixes]
    for place in places:
        files = [
            p
            for p in sorted(place.rglob("*"))
            if p.is_file() and not any(q.startswith(".") for q in p.relative_to(place).parts)
        ]
        classes[place.name] = [p for p in files if p.suffix.lower() in suffixes]
        aside += [str(p) for p in files if p.suffix.lower() not in suffixes]
    empty = [c for c, files in classes.items() if not files]
    if len(empty) == len(classes):
        raise ScriptError(f"{folder} holds no class folders with images: {LAYOUT}")
    return classes, split, aside


def split_from_lists(paths: Sequence[Path], classes: Sequence[str]) -> dict[str, Any]:
    """Read a split: one JSON file, or text files train.txt, val.txt, test.txt of class names.

    Raises:
        ScriptError: A file is missing or something else, or names an unknown class.
    """
    if len(paths) == 1 and paths[0].suffix == ".json":
        split = common.read_split(paths[0])
    else:
        split = {}
        for path in paths:
            if path.stem not in SPLITS or path.suffix != ".txt":
                raise ScriptError(
                    f"--split takes one .json or files train.txt, val.txt, test.txt, not {path}"
                )
            if not path.exists():
                raise ScriptError(f"there is no split file {path}")
            lines = path.read_text(encoding="utf-8").splitlines()
            split[path.stem] = [line.strip() for line in lines if line.strip()]
    names = [c for s in SPLITS for c in split.get(s, [])]
    if not names:
        raise ScriptError(f"{paths[0]} names no class")
    if twice := sorted({c for c in names if names.count(c) > 1}):
        raise ScriptError(f"the split lists classes more than once: {', '.join(twice)}")
    if unknown := [c for c in names if c not in classes]:
        raise ScriptError(
            f"the split names {', '.join(unknown[:5])}, but the class folders are "
            f"{', '.join(list(classes)[:10])}{', ...' if len(classes) > 10 else ''}"
        )
    return split


def split_by_fraction(
    classes: Sequence[str], val: float, test: float, seed: int
) -> dict[str, list[str]]:
    """Deal the classes out at random; the same seed gives the same split.

    Raises:
        ScriptError: The fractions are impossible.
    """
    if not (0 <= val <= 1 and 0 <= test <= 1 and val + test <= 1 + 1e-9):
        raise ScriptError(f"--val {val} and --test {test} must lie in 0..1 and add up to 1 at most")
    order = np.random.default_rng(seed).permutation(len(classes))
    first = round(test * len(classes))
    second = min(len(classes), first + round(val * len(classes)))
    parts = {"train": order[second:], "val": order[first:second], "test": order[:first]}
    return {s: [classes[i] for i in sorted(rows)] for s, rows in parts.items() if len(rows)}


@dataclass(frozen=True)
class Plan:
    """What is going to be packed.

    Attributes:
        folder: What the user gave.
        classes: The image files of each class.
        split: Class names under train, val, test.
        side: Height and width in pixels.
    """

    folder: Path
    classes: dict[str, list[Path]]
    split: dict[str, list[str]]
    side: int

    @property
    def files(self) -> list[tuple[str, Path]]:
        """Class and file of every image, split by split."""
        return [(c, p) for s in SPLITS for c in self.split.get(s, []) for p in self.classes[c]]

    @property
    def settings(self) -> dict[str, Any]:
        """What must agree for a finished pack to be the wanted one."""
        size = sum(path.stat().st_size for _, path in self.files)
        sizes = [f"{len(self.split[s])} {s}" for s in SPLITS if self.split.get(s)]
        names = json.dumps([self.split.get(s, []) for s in SPLITS])
        return {
            "side": self.side,
            "images": f"{len(self.files)} files of {size:,} bytes",
            "classes": f"{', '.join(sizes)} ({hashlib.sha256(names.encode()).hexdigest()[:8]})",
        }


def plan(
    folder: Path,
    side: int = 84,
    split_files: Sequence[Path] = (),
    val: float = 0.0,
    test: float = 1.0,
    seed: int = 0,
) -> Plan:
    """Look through the folder and decide what goes where; no image is opened yet.

    Args:
        folder: One folder a class.
        side: Height and width in pixels.
        split_files: See `split_from_lists`.
        val: Fraction of the classes in the split `val`.
        test: Fraction of the classes in the split `test`.
        seed: Of dealing the classes out.

    Raises:
        ScriptError: There are no class folders, or the split does not fit them.
    """
    classes, split, aside = find(folder)
    if aside:
        more = f" and {len(aside) - 5} more" if len(aside) > 5 else ""
        say(f"note: left aside, as no image of a class: {', '.join(aside[:5])}{more}")
    if split_files:
        split = split_from_lists(split_files, list(classes))
    elif split is None:
        split = split_by_fraction(list(classes), val, test, seed)
    return Plan(folder, classes, split, side)


def build(plan: Plan, root: Path, name: str, at_least: int = 1, skip_broken: bool = False) -> Path:
    """Make the pack.

    Args:
        plan: What goes where.
        root: Folder of the packs.
        name: Name of the pack.
        at_least: The smallest permitted number of images in a class.
        skip_broken: Leave unreadable images out, with a note, where the first one would stop.

    Returns:
        The folder of the pack.

    Raises:
        ScriptError: A class has too few images, or an image cannot be read.
    """
    folder, side, files = plan.folder, plan.side, plan.files
    _check_counts(collections.Counter(c for c, _ in files), plan, at_least)  # before the work
    common.need_space(root, len(files) * 3 * side * side, f"packing {name}")

    def found() -> Iterator[tuple[str, str, bytes]]:
        for label, path in files:
            yield label, path.relative_to(folder).as_posix(), path.read_bytes()

    def decode(blob: bytes, file: str) -> np.ndarray:
        # decode_all writes class/file; the path below the folder has the class in it already.
        return images.decode_square(blob, str(folder / file.split("/", 1)[1]), side, fast=True)

    broken: list[str] | None = [] if skip_broken else None
    try:
        records = images.decode_all(found(), decode, len(files), broken)
    except images.BrokenImage as error:
        raise ScriptError(f"{error}: mend or remove it, or add --skip-broken") from None
    for line in broken or []:
        say(f"skipped: {line}")
    _check_counts(collections.Counter(r[0] for r in records), plan, at_least)
    splits = images.assemble(records, plan.split, str(folder))
    by_class: dict[str, list[str]] = collections.defaultdict(list)
    for label, file, _ in records:
        by_class[label].append(file)
    notes: dict[str, Any] = {
        "settings": plan.settings,
        "processing": f"shorter side to {side} (Lanczos), centre cut out",
        "files": {s: [f for c in plan.split[s] for f in sorted(by_class[c])] for s in splits},
        "skipped": broken or [],
        "identical_images": images.identical_groups(splits),
    }
    return write_pack(
        root, name, splits, licence="the user's own", source="own images", notes=notes
    )


def _check_counts(counts: collections.Counter[str], plan: Plan, need: int) -> None:
    for label in (c for s in SPLITS for c in plan.split.get(s, [])):
        if counts[label] < need:
            raise ScriptError(
                f"class {label} has {counts[label]} readable images and {need} are needed: add "
                f"{need - counts[label]} to {plan.folder / label}, remove the class, or lower "
                "--at-least"
            )


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = common.parser(__doc__, None)
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="one folder a class")
    parser.add_argument(
        "--side",
        type=common.positive,
        default=84,
        help="height and width in pixels (default: %(default)s)",
    )
    parser.add_argument(
        "--split",
        type=Path,
        nargs="+",
        default=[],
        metavar="FILE",
        help="one JSON with class names under train, val, test; or train.txt val.txt test.txt "
        "with a class name a line; classes that they do not name are left out",
    )
    parser.add_argument("--val", type=float, default=0.0, help="fraction of the classes for val")
    parser.add_argument(
        "--test", type=float, default=1.0, help="fraction of the classes for test, the novel ones"
    )
    parser.add_argument("--seed", type=int, default=0, help="of dealing out the classes")
    parser.add_argument(
        "--at-least",
        type=common.positive,
        default=1,
        metavar="N",
        help="stop if a class has fewer images; an episode needs shots + queries of each",
    )
    parser.add_argument(
        "--skip-broken",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="leave unreadable images out and list them",
    )
    options = parser.parse_args(argv)
    with common.locked(options.root, options.name):
        wanted = plan(
            options.folder, options.side, options.split, options.val, options.test, options.seed
        )
        if common.finished(options.root, options.name, wanted.settings, options.force):
            return
        folder = build(wanted, options.root, options.name, options.at_least, options.skip_broken)
        say(f"packed {common.summary(folder)}")


if __name__ == "__main__":
    raise SystemExit(common.run(main))
