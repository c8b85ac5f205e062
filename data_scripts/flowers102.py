"""Oxford 102 Flowers (Nilsback and Zisserman 2008): 8,189 images of 102 classes.

Read from the original 102flowers.tgz with imagelabels.mat (downloaded where no --from is given)
or from a zip with images/<class>/<file>.jpg. The book uses it as the foreign data set of the
cross-domain tests. No split of it is published for few-shot learning; the one here takes every
other class as base and the rest in turn as validation and novel classes.
"""

from __future__ import annotations

import functools
import io
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from scipy.io import loadmat

from data_scripts import archives, common, fetch, images
from data_scripts.common import ScriptError, say
from fslib.packs import SPLITS, write_pack

URL = "https://www.robots.ox.ac.uk/~vgg/data/flowers/102/"
IMAGES, LABELS = "102flowers.tgz", "imagelabels.mat"
# The checksums that torchvision's Flowers102 keeps, too.
KNOWN = {
    IMAGES: "md5:52808999861908f626f3c1f4e79d11fa",
    LABELS: "md5:e0620be6f572b9609742df49c70aed4d",
}
LICENCE = "no formal licence; cite Nilsback and Zisserman 2008"
SOURCE = "Oxford 102 Flowers (https://www.robots.ox.ac.uk/~vgg/data/flowers/102/)"
MEMBER = re.compile(r"(?:^|/)images/([^/]+)/([^/]+\.jpe?g)$", re.IGNORECASE)
ORIGINAL = re.compile(r"(?:^|/)jpg/(image_(\d{5})\.jpg)$")
NAME = "flowers102"


def _labels(path: Path, classes: Sequence[str]) -> list[str]:
    """The class name of each image of the original archive, in the order of its numbers."""
    fetch.verify(path, KNOWN[LABELS])
    try:
        # MATLAB 5 files hold arrays; scipy runs no code from them.
        numbers = loadmat(io.BytesIO(path.read_bytes()))["labels"].ravel().tolist()
    except Exception as error:  # scipy raises nearly anything on a damaged file
        raise ScriptError(f"{path} is not the file of labels ({error!r})") from None
    by_number = {int(c.split(".", 1)[0]): c for c in classes}
    return [by_number.get(int(n), "") for n in numbers]


def _original(
    archive: Path, labels: Path, classes: Sequence[str]
) -> tuple[Iterator[tuple[str, str, bytes]], int]:
    say(f"compare the checksum of {archive.name}")
    fetch.verify(archive, KNOWN[IMAGES])
    names = _labels(labels, classes)

    def wanted(name: str) -> bool:
        match = ORIGINAL.search(name)
        return bool(match) and 0 < int(match[2]) <= len(names) and names[int(match[2]) - 1] != ""

    def found() -> Iterator[tuple[str, str, bytes]]:
        for name, content in archives.members(archive, wanted):
            file, number = ORIGINAL.search(name).groups()
            yield names[int(number) - 1], file, content

    return found(), sum(n != "" for n in names)


def _class_folders(
    source: Path, classes: Sequence[str]
) -> tuple[Iterator[tuple[str, str, bytes]], int | None]:
    known = set(classes)

    def wanted(name: str) -> bool:
        match = MEMBER.search(name)
        return bool(match) and match[1] in known

    manifest = source.parent / "manifest.json"
    total = None
    if manifest.exists():
        entry = json.loads(manifest.read_text(encoding="utf-8")).get("zip", {})
        if entry.get("name") == source.name:
            fetch.verify(source, "sha256:" + entry["sha256"])
            total = entry.get("images")

    def found() -> Iterator[tuple[str, str, bytes]]:
        for name, content in archives.members(source, wanted):
            label, file = MEMBER.search(name).groups()
            yield label, file, content

    return found(), total


def _source(
    place: Path, classes: Sequence[str]
) -> tuple[Path, Iterator[tuple[str, str, bytes]], int | None]:
    if not place.exists():
        raise ScriptError(f"there is nothing at {place}: --from takes a file or a folder")
    folder = place if place.is_dir() else place.parent
    archive = folder / IMAGES if place.is_dir() else place
    if archive.name == IMAGES and archive.exists():
        labels = folder / LABELS
        if not labels.exists():
            raise ScriptError(f"{labels} is missing: put it beside {IMAGES} ({URL}{LABELS})")
        return archive, *_original(archive, labels, classes)
    zips = [p for p in archives.find_archives(place, ("*.zip",)) if p.suffix == ".zip"]
    if len(zips) == 1:
        return zips[0], *_class_folders(zips[0], classes)
    if place.is_dir() and not zips and any(place.glob("**/images/*/*.jpg")):
        return place, *_class_folders(place, classes)
    raise ScriptError(
        f"{place} is no source of Flowers-102: give {IMAGES} (with {LABELS} beside it), one zip "
        "with images/<class>/<file>.jpg, or a folder that holds one of them"
    )


def build(
    root: Path,
    place: Path | None = None,
    side: int = 84,
    name: str = NAME,
    split_file: Path | None = None,
    url: str = URL,
) -> Path:
    """Make the pack.

    Args:
        root: Folder of the packs.
        place: An archive or a folder; the original is downloaded where None.
        side: Height and width in pixels.
        name: Name of the pack.
        split_file: JSON with class names such as `001.pink_primrose` under train, val, test;
            the book's split where None.
        url: Folder of the original files.

    Returns:
        The folder of the pack.

    Raises:
        ScriptError: Something is missing or damaged; says what to do.
    """
    split = common.read_split(split_file or common.SPLIT_FILES / "flowers102.json")
    classes = [c for part in SPLITS for c in split.get(part, [])]
    need = 80 * len(classes) * 3 * side * side  # 80 images a class on average
    if place is None:
        common.need_space(root, need + 345_000_000, "download and pack")
        for file in (LABELS, IMAGES):
            place = fetch.download(url.rstrip("/") + "/" + file, KNOWN[file], root / "downloads")
    common.need_space(root, need, f"packing {name}")
    source, found, total = _source(place, classes)
    decode = functools.partial(images.decode_square, side=side)
    records = images.decode_all(found, decode, total)
    splits = images.assemble(records, split, str(place))
    notes: dict[str, Any] = {
        "read_from": [source.name],
        "settings": _settings(side, split_file),
        "processing": f"shorter side to {side} (Lanczos), centre cut out",
        "identical_images": images.identical_groups(splits),
    }
    if "train" in splits:
        notes["train_channels"] = images.channel_statistics(splits["train"].images)
    return write_pack(root, name, splits, licence=LICENCE, source=SOURCE, notes=notes)


def _settings(side: int, split_file: Path | None) -> dict[str, Any]:
    return {"side": side, "split": split_file.name if split_file else "book"}


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = common.parser(__doc__, NAME)
    parser.add_argument(
        "--from",
        dest="place",
        type=Path,
        metavar="PATH",
        help=f"{IMAGES} with {LABELS} beside it, a zip with images/<class>/<file>.jpg, or a "
        "folder with one of them; without it the original (345 MB) is downloaded",
    )
    parser.add_argument(
        "--side",
        type=common.positive,
        default=84,
        help="height and width in pixels (default: %(default)s)",
    )
    parser.add_argument("--split", type=Path, metavar="JSON", help="another split of the classes")
    parser.add_argument("--url", default=URL, help="another folder of the original files")
    options = parser.parse_args(argv)
    settings = _settings(options.side, options.split)
    with common.locked(options.root, options.name):
        if common.finished(options.root, options.name, settings, options.force):
            return
        folder = build(
            options.root, options.place, options.side, options.name, options.split, options.url
        )
        say(f"packed {common.summary(folder)}")


if __name__ == "__main__":
    raise SystemExit(common.run(main))
