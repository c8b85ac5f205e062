"""From encoded images to one packed array: parallel decoding, squaring, sorting, splitting."""

from __future__ import annotations

import collections
import hashlib
import io
import itertools
import os
import warnings
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
from PIL import Image, ImageOps
from tqdm import tqdm

from data_scripts.common import ScriptError
from fslib.packs import SPLITS, PackSplit

ORIENTATION = 0x0112  # the EXIF tag
A = TypeVar("A")
B = TypeVar("B")
# An image on its way into the pack: class name, file name, pixels uint8 (3, H, W).
Record = tuple[str, str, np.ndarray]


class BrokenImage(ScriptError):
    """A file that is named like an image cannot be read as one."""


def in_parallel(function: Callable[[A], B], items: Iterable[A], window: int = 8) -> Iterator[B]:
    """Like `map`, on all cores and in order, with at most `window` items a core waiting.

    Threads suffice: the decoders let go of Python's lock. `Executor.map` would first read the
    whole archive into memory.
    """
    workers = os.cpu_count() or 1
    waiting: collections.deque[Any] = collections.deque()
    with ThreadPoolExecutor(workers) as pool:
        try:
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) >= window * workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16") or image.mode == "I":
        # Pillow clips 16-bit grey at 255 where the upper byte is meant.
        wide = np.asarray(image, dtype=np.float64)
        image = Image.fromarray((wide / 257).clip(0, 255).round().astype(np.uint8))
    if "A" in image.getbands() or "transparency" in image.info:
        # What lies under a transparent pixel is arbitrary: show it on white.
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image if image.mode == "RGB" else image.convert("RGB")


def _open(blob: bytes, file: str, draft: int | None = None) -> Image.Image:
    try:
        with Image.open(io.BytesIO(blob)) as opened:
            if draft:
                opened.draft("RGB", (draft, draft))
            opened.load()
            # Asking costs as much as decoding a small image: not where there is no metadata.
            turned = opened.info and opened.getexif().get(ORIENTATION, 1) != 1
            return _to_rgb(ImageOps.exif_transpose(opened) if turned else opened)
    except Exception as error:  # Pillow's decoders raise nearly anything on damaged files
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        if "cannot identify image file" in reason:
            reason = "its content is no known image format"
        raise BrokenImage(f"the image {file} is cut off or unreadable ({reason})") from None


def decode_small(blob: bytes, file: str) -> np.ndarray:
    """Decode an image as it is, uint8 (3, H, W).

    torchvision's decoder is faster on 32 x 32 pixels (0.6 of the time), but importing it takes
    as long as decoding all of CIFAR-FS.

    Raises:
        BrokenImage: It is cut off or unreadable.
    """
    return np.ascontiguousarray(np.asarray(_open(blob, file)).transpose(2, 0, 1))


def decode_square(blob: bytes, file: str, side: int, fast: bool = False) -> np.ndarray:
    """Decode an image, bring its shorter side to `side` (Lanczos) and cut out the centre.

    Args:
        blob: The encoded image; its EXIF orientation is respected, transparency becomes white.
        file: Its name, for the message.
        side: Pixels.
        fast: Let the JPEG decoder shrink large photos to about four times the side first.

    Returns:
        uint8 (3, side, side).

    Raises:
        BrokenImage: It is cut off or unreadable.
    """
    image = _open(blob, file, draft=4 * side if fast else None)
    width, height = image.size
    if min(width, height) != side:
        scale = side / min(width, height)
        size = (max(side, round(width * scale)), max(side, round(height * scale)))
        image = image.resize(size, Image.Resampling.LANCZOS)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    image = image.crop((left, top, left + side, top + side))
    return np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))


def decode_all(
    found: Iterable[tuple[str, str, bytes]],
    decode: Callable[[bytes, str], np.ndarray],
    total: int | None,
    broken: list[str] | None = None,
) -> list[Record]:
    """Decode images on all cores, with a progress bar.

    Args:
        found: Class, file name and content of each.
        decode: Makes uint8 (3, H, W) of content and name, such as `decode_small`.
        total: How many there are, if known.
        broken: If given, broken images are left out and described here; otherwise the first
            one ends the work.

    Returns:
        Class, file name and pixels of each image, in the order of `found`.
    """

    def decode_some(batch: tuple[tuple[str, str, bytes], ...]) -> list[Record]:
        done = []
        for label, file, blob in batch:
            try:
                done.append((label, file, decode(blob, f"{label}/{file}")))
            except BrokenImage as error:
                if broken is None:
                    raise
                broken.append(str(error))
        return done

    def batches() -> Iterator[tuple[tuple[str, str, bytes], ...]]:
        rest = iter(found)
        while batch := tuple(itertools.islice(rest, 64)):
            yield batch

    records: list[Record] = []
    # disable=None: no bar where the output is a file.
    with (
        tqdm(total=total, unit=" images", desc="decode", disable=None) as bar,
        warnings.catch_warnings(),
    ):
        # Pillow warns of very large pictures and refuses enormous ones: refuse both. Set here,
        # because filters belong to the process and not to a thread.
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        for part in in_parallel(decode_some, batches()):
            records += part
            bar.update(len(part))
    return records


def assemble(
    records: Iterable[Record],
    split: dict[str, Any],
    source: str,
    per_class: int | None = None,
    at_least: int = 1,
    flags: dict[tuple[str, str], bool] | None = None,
) -> dict[str, PackSplit]:
    """Sort images into the splits: classes in the split's order, then by file name.

    The order does not depend on where the images came from, so equal images give equal packs.

    Args:
        records: Class, file name, pixels; classes outside the split are left out.
        split: Class names under train, val, test; `superclass` may name the coarser class.
        source: Where they came from, for messages.
        per_class: The exact number of images of each class, where it is known.
        at_least: The smallest permitted number.
        flags: `original_part` of each (class, file), if known.

    Returns:
        The splits that have classes.

    Raises:
        ScriptError: A class is missing or has too few images; names class, count and need.
    """
    by_class: dict[str, list[Record]] = collections.defaultdict(list)
    for record in records:
        by_class[record[0]].append(record)
    wanted = [c for name in SPLITS for c in split.get(name, [])]
    if missing := [c for c in wanted if c not in by_class]:
        more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
        raise ScriptError(f"{source} has no images of class {', '.join(missing[:5])}{more}")
    for label in wanted:
        count = len(by_class[label])
        if per_class is not None and count != per_class:
            raise ScriptError(
                f"class {label} has {count} images in {source} where {per_class} are needed: "
                "the source is incomplete or not the published one"
            )
        if count < at_least:
            raise ScriptError(
                f"class {label} has {count} images and {at_least} are needed: add "
                f"{at_least - count} or leave the class out of the split"
            )
    superclass = split.get("superclass")
    result = {}
    for name in SPLITS:
        if classes := split.get(name, []):
            rows = [r for c in classes for r in sorted(by_class[c], key=lambda r: r[1])]
            labels = [i for i, c in enumerate(classes) for _ in by_class[c]]
            result[name] = PackSplit(
                images=np.stack([pixels for _, _, pixels in rows]),
                labels=np.array(labels, dtype=np.int64),
                class_names=list(classes),
                superclass=[superclass[c] for c in classes] if superclass else None,
                original_part=np.array([flags[c, f] for c, f, _ in rows]) if flags else None,
            )
    return result


def identical_groups(splits: dict[str, PackSplit]) -> list[list[dict[str, Any]]]:
    """Groups of images that agree in every pixel, over all splits.

    Returns:
        One list a group, of {"split", "class", "row"}: where each of the images lies.
    """
    places: dict[bytes, list[dict[str, Any]]] = collections.defaultdict(list)
    for name, part in splits.items():
        for row, pixels in enumerate(part.images):
            digest = hashlib.sha256(pixels.tobytes()).digest()
            label = part.class_names[int(part.labels[row])]
            places[digest].append({"split": name, "class": label, "row": row})
    return [group for group in places.values() if len(group) > 1]


def channel_statistics(images: np.ndarray) -> dict[str, list[float]]:
    """Mean and standard deviation of each channel, in units of [0, 1], over uint8 (N, 3, H, W)."""
    mean, std = [], []
    for channel in range(3):
        # Counted by grey level: exact, and no copy of the images in floating point.
        counts = np.zeros(256, dtype=np.int64)
        for start in range(0, len(images), 4096):
            part = images[start : start + 4096, channel]
            counts += np.bincount(part.ravel(), minlength=256)
        levels = np.arange(256) / 255
        average = (counts * levels).sum() / counts.sum()
        mean.append(round(float(average), 6))
        std.append(
            round(float(np.sqrt((counts * (levels - average) ** 2).sum() / counts.sum())), 6)
        )
    return {"mean": mean, "std": std}
