"""CIFAR-FS (Bertinetto et al. 2019): 100 classes of 600 images at 32 x 32, split 64/16/20.

Three sources give the same pack: the CIFAR-100 python archive (downloaded where no --from is
given), the CIFAR-FS zip, or a folder with one or several zips of its layout.
"""

from __future__ import annotations

import hashlib
import io
import json
import pickle
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data_scripts import archives, common, fetch, glove, images
from data_scripts.common import ScriptError, say
from fslib.packs import SPLITS, write_pack

URL = "https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz"
ARCHIVE = "md5:eb9058c3a382ffc7106e4002c42a8d85"
LICENCE = "no formal licence; cite Krizhevsky 2009 (CIFAR-100) and Bertinetto et al. 2019 (split)"
SOURCE = "CIFAR-100 (https://www.cs.toronto.edu/~kriz/cifar.html), classes split as in CIFAR-FS"
MEMBER = re.compile(r"(?:^|/)data/([^/]+)/([^/]+\.png)$")
NAME = "cifar_fs"


class _ArraysOnly(pickle.Unpickler):
    """Unpickle lists, dictionaries, strings and numpy arrays, and nothing that acts.

    The archive's batches are pickles, and a pickle can call any function. The archive is read
    only after its checksum has been compared; even then nothing but the three names that a
    numpy array consists of is looked up. (The archive's binary edition has no file names, which
    the order of the images and a comparison with the CIFAR-FS zip need.)
    """

    def find_class(self, module: str, name: str) -> Any:
        """Give the parts of a numpy array, refuse everything else."""
        if name == "_reconstruct" and module in (
            "numpy.core.multiarray",
            "numpy._core.multiarray",
        ):
            return np._core.multiarray._reconstruct
        if module == "numpy" and name in ("ndarray", "dtype"):
            return getattr(np, name)
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")


def _unpickle(source: Path, member: str, content: bytes) -> dict[str, Any]:
    try:
        # The batches were written by Python 2: latin1 keeps every byte.
        batch = _ArraysOnly(io.BytesIO(content), encoding="latin1").load()
        if not isinstance(batch, dict):
            raise pickle.UnpicklingError("it is not a dictionary")
        return batch
    except Exception as error:  # a damaged pickle raises nearly anything
        raise ScriptError(f"{member} in {source} is refused: {error}") from None


def _from_archive(
    source: Path, classes: set[str]
) -> tuple[list[images.Record], dict[tuple[str, str], bool]]:
    """Read the CIFAR-100 python archive: the records, and which come from its test part."""
    fetch.verify(source, ARCHIVE)
    batches = {}
    for name, content in archives.members(
        source, lambda n: n.rsplit("/", 1)[-1] in ("train", "test", "meta")
    ):
        key = name.rsplit("/", 1)[-1]
        say(f"read {name}")
        batches[key] = _unpickle(source, name, content)
    records: list[images.Record] = []
    flags = {}
    try:
        names = batches["meta"]["fine_label_names"]
        for part in ("train", "test"):
            batch = batches[part]
            pixels = np.asarray(batch["data"], dtype=np.uint8).reshape(-1, 3, 32, 32)
            for file, label, image in zip(
                batch["filenames"], batch["fine_labels"], pixels, strict=True
            ):
                if names[label] in classes:
                    records.append((names[label], file, image))
                    flags[names[label], file] = part == "test"
    except (KeyError, IndexError, ValueError, TypeError) as error:
        raise ScriptError(f"{source} is not the CIFAR-100 python archive ({error!r})") from None
    return records, flags


def _from_zips(
    sources: Sequence[Path], classes: set[str], total: int | None
) -> list[images.Record]:
    """Read images of the layout data/<class>/<file>.png from zips or an unpacked folder."""

    def wanted(name: str) -> bool:
        match = MEMBER.search(name)
        return bool(match) and match[1] in classes

    def found() -> Iterator[tuple[str, str, bytes]]:
        for source in sources:
            for name, content in archives.members(source, wanted):
                label, file = MEMBER.search(name).groups()
                yield label, file, content

    records = images.decode_all(found(), images.decode_small, total)
    seen = set()
    for label, file, _ in records:
        if (label, file) in seen:
            raise ScriptError(
                f"{label}/{file} is there twice in {', '.join(str(s) for s in sources)}: "
                "give one zip or folder of them with --from"
            )
        seen.add((label, file))
    return records


def _known_flags(
    records: list[images.Record], split: dict[str, Any]
) -> dict[tuple[str, str], bool] | None:
    """Which images came from CIFAR-100's test part, by the table in the split file.

    The CIFAR-FS zip does not say. The table holds one bit a file of each class, in the order
    of the names, and a checksum of the names; None where a class has other files.
    """
    table = split.get("original_part")
    if table is None:
        return None
    files: dict[str, list[str]] = {}
    for label, file, _ in records:
        files.setdefault(label, []).append(file)
    flags = {}
    for label, names in files.items():
        names.sort()
        entry = table.get(label, {})
        digest = hashlib.sha256("\n".join(names).encode()).hexdigest()
        if not digest.startswith(entry.get("names_sha256", "-")):
            say(f"note: the files of class {label} have other names; original_part is left out")
            return None
        bits = np.unpackbits(np.frombuffer(bytes.fromhex(entry["mask"]), dtype=np.uint8))
        flags |= {(label, name): bool(bit) for name, bit in zip(names, bits, strict=False)}
    return flags


def _check_against_manifest(zips: Sequence[Path]) -> None:
    """Compare the zips with the sha256 in a manifest.json beside them, if there is one."""
    manifest = zips[0].parent / "manifest.json"
    if manifest.exists():
        known = json.loads(manifest.read_text(encoding="utf-8")).get("zips", {})
        for path in zips:
            if path.name in known:
                fetch.verify(path, "sha256:" + known[path.name]["sha256"])


def _sources(place: Path) -> tuple[str, list[Path]]:
    """Say what kind of source a path is: ("archive" | "zips", files)."""
    if not place.exists():
        raise ScriptError(f"there is nothing at {place}: --from takes a file or a folder")
    if zips := [p for p in archives.find_archives(place, ("*.zip",)) if p.suffix == ".zip"]:
        _check_against_manifest(zips)
        return "zips", zips
    found = archives.find_archives(place, ("cifar-100-python.tar.gz",))
    if found and archives.is_archive(found[0]):
        return "archive", found[:1]
    if place.is_dir() and (any(place.glob("data/*/*.png")) or any(place.glob("*/data/*/*.png"))):
        return "zips", [place]
    raise ScriptError(
        f"{place} is no source of CIFAR-FS: give cifar-100-python.tar.gz, the CIFAR-FS zip "
        "(cifar100/data/<class>/<file>.png), or a folder that holds one of them"
    )


def _word_vectors(given: Path | None, place: Path | None) -> Path | None:
    """The table of word vectors: the given one, else one in ../glove beside the source."""
    if given is not None or place is None:
        return given
    folder = place if place.is_dir() else place.parent
    tables = sorted((folder.resolve().parent / "glove").glob("*.npz"))
    return tables[0] if tables else None


def build(
    root: Path,
    place: Path | None = None,
    name: str = NAME,
    split_file: Path | None = None,
    semantics: Path | None = None,
    url: str = URL,
) -> Path:
    """Make the pack.

    Args:
        root: Folder of the packs.
        place: An archive, a zip or a folder; the archive is downloaded where None.
        name: Name of the pack.
        split_file: JSON with class names under train, val, test, and possibly `superclass`,
            `per_class`, `original_part`; the published split where None.
        semantics: Table of word vectors (.npz with `names` and `vectors`, or GloVe's text).
        url: Address of the archive.

    Returns:
        The folder of the pack.

    Raises:
        ScriptError: Something is missing or damaged; says what to do.
    """
    split = common.read_split(split_file or common.SPLIT_FILES / "cifar_fs.json")
    classes = [c for part in SPLITS for c in split.get(part, [])]
    per_class = split.get("per_class")
    need = len(classes) * (per_class or 0) * 3 * 32 * 32
    if place is None:
        common.need_space(root, need + 170_000_000, "download and pack")
        place = fetch.download(url, ARCHIVE, root / "downloads")
    kind, files = _sources(place)
    common.need_space(root, need, f"packing {name}")
    if kind == "archive":
        records, flags = _from_archive(files[0], set(classes))
    else:
        total = len(classes) * per_class if per_class else None
        records = _from_zips(files, set(classes), total)
        flags = _known_flags(records, split)
    splits = images.assemble(records, split, str(place), per_class, flags=flags)
    table = _word_vectors(semantics, place)
    if table is not None:
        splits = glove.with_semantics(splits, glove.Table.read(table, classes))
        say(f"word vectors from {table}")
    notes: dict[str, Any] = {"read_from": [p.name for p in files]}
    notes["settings"] = {"split": split_file.name if split_file else "published"}
    notes["identical_images"] = images.identical_groups(splits)
    if "train" in splits:
        notes["train_channels"] = images.channel_statistics(splits["train"].images)
    return write_pack(root, name, splits, licence=LICENCE, source=SOURCE, notes=notes)


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = common.parser(__doc__, NAME)
    parser.add_argument(
        "--from",
        dest="place",
        type=Path,
        metavar="PATH",
        help="cifar-100-python.tar.gz, the CIFAR-FS zip, or a folder with one of them or with "
        "several zips of that layout; without it the archive (169 MB) is downloaded",
    )
    parser.add_argument(
        "--semantics",
        type=Path,
        metavar="TABLE",
        help="word vectors of the class names: .npz or GloVe's .zip or .txt (default: a .npz in "
        "../glove beside the source, if there is one)",
    )
    parser.add_argument("--split", type=Path, metavar="JSON", help="another split of the classes")
    parser.add_argument(
        "--url",
        default=URL,
        help="another address of the archive; its checksum is compared all the same",
    )
    options = parser.parse_args(argv)
    settings = {"split": options.split.name if options.split else "published"}
    with common.locked(options.root, options.name):
        if common.finished(options.root, options.name, settings, options.force):
            if options.semantics is not None:
                folder = options.root / options.name
                names = glove.class_names(folder)
                glove.add_to_pack(folder, glove.Table.read(options.semantics, names))
                say(f"put word vectors from {options.semantics} into it")
            return
        folder = build(
            options.root,
            options.place,
            options.name,
            options.split,
            options.semantics,
            options.url,
        )
        say(f"packed {common.summary(folder)}")


if __name__ == "__main__":
    raise SystemExit(common.run(main))
