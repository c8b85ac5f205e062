"""Tiny archives of the published layouts, for the tests of the data scripts."""

import hashlib
import io
import json
import struct
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_scripts import cifar_fs, common, fetch

CLASSES = ("wolf", "pine_tree", "bee")
PER_CLASS = 4


def png(pixels: np.ndarray) -> bytes:
    """Encode uint8 (3, H, W)."""
    buffer = io.BytesIO()
    Image.fromarray(pixels.transpose(1, 2, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def make_pictures() -> dict[tuple[str, str], np.ndarray]:
    """(class, file) -> pixels: three classes of four; one wolf and one bee are identical."""
    generator = np.random.default_rng(0)
    made = {
        (c, f"{c}_s_{i:06d}.png"): generator.integers(0, 256, (3, 32, 32), dtype=np.uint8)
        for c in CLASSES
        for i in (7, 3, 11, 5)
    }
    made["bee", "bee_s_000011.png"] = made["wolf", "wolf_s_000003.png"]
    return made


def make_split(tmp_path: Path) -> Path:
    """A split of the three classes, with the table of the original test part."""
    table = {}
    for c in CLASSES:
        names = "\n".join(f"{c}_s_{i:06d}.png" for i in (3, 5, 7, 11))
        digest = hashlib.sha256(names.encode()).hexdigest()[:16]
        table[c] = {"names_sha256": digest, "mask": "40"}  # the second of four
    split = {
        "train": ["wolf"],
        "val": ["pine_tree"],
        "test": ["bee"],
        "per_class": PER_CLASS,
        "superclass": {"wolf": "large_carnivores", "pine_tree": "trees", "bee": "insects"},
        "original_part": table,
    }
    path = tmp_path / "split.json"
    path.write_text(json.dumps(split))
    return path


def write_zip(path: Path, pictures: dict[tuple[str, str], np.ndarray]) -> Path:
    """The CIFAR-FS layout."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("cifar100/splits/bertinetto/train.txt", "wolf\n")
        for (label, file), pixels in pictures.items():
            archive.writestr(f"cifar100/data/{label}/{file}", png(pixels))
    return path


def python2_pickle(value: object) -> bytes:
    """A pickle as Python 2 with its numpy wrote the CIFAR-100 batches (protocol 2)."""

    def encode(value: object) -> bytes:
        if isinstance(value, dict):
            items = b"".join(encode(k) + encode(v) for k, v in value.items())
            return b"}(" + items + b"u"
        if isinstance(value, list):
            return b"](" + b"".join(map(encode, value)) + b"e"
        if isinstance(value, (str, bytes)):
            raw = value.encode() if isinstance(value, str) else value
            return b"T" + struct.pack("<i", len(raw)) + raw
        if isinstance(value, bool):
            return b"\x88" if value else b"\x89"
        if isinstance(value, int):
            return b"J" + struct.pack("<i", value)
        if isinstance(value, np.ndarray):
            shape = b"(" + b"".join(encode(n) for n in value.shape) + b"t"
            kind = b"cnumpy\ndtype\n(" + encode("u1") + encode(0) + encode(1) + b"tR"
            kind += b"(" + encode(3) + encode("|") + b"NNN" + encode(-1) + encode(-1)
            kind += encode(0) + b"tb"
            new = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(" + encode(0)
            new += b"t" + encode("b") + b"tR"
            state = b"(" + encode(1) + shape + kind + encode(False) + encode(value.tobytes())
            return new + state + b"tb"
        raise TypeError(type(value))

    return b"\x80\x02" + encode(value) + b"."


def write_cifar100(path: Path, pictures: dict[tuple[str, str], np.ndarray]) -> Path:
    """The CIFAR-100 python archive: the second file by name of each class is in its test part."""
    names = sorted(CLASSES)
    second = {c: sorted(f for label, f in pictures if label == c)[1] for c in CLASSES}
    batches = {"meta": {"fine_label_names": names, "coarse_label_names": ["x"]}}
    for part in ("train", "test"):
        keys = [k for k in pictures if (second[k[0]] == k[1]) == (part == "test")]
        batches[part] = {
            "data": np.stack([pictures[k].reshape(-1) for k in keys]),
            "filenames": [f for _, f in keys],
            "fine_labels": [names.index(c) for c, _ in keys],
            "coarse_labels": [0 for _ in keys],
            "batch_label": f"{part} batch 1 of 1",
        }
    return write_tar(path, {f"cifar-100-python/{k}": python2_pickle(v) for k, v in batches.items()})


def write_tar(path: Path, files: dict[str, bytes]) -> Path:
    """A .tar.gz of files."""
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def accept(monkeypatch: pytest.MonkeyPatch, archive: Path) -> None:
    """Let the script take this file for the published archive."""
    monkeypatch.setattr(cifar_fs, "ARCHIVE", "md5:" + fetch.checksum(archive, "md5"))


def fails(main: object, *arguments: object, capsys: pytest.CaptureFixture[str]) -> str:
    """Run a script that must fail with one line; gives the line."""
    assert common.run(main, [str(a) for a in arguments]) == 1
    lines = capsys.readouterr().err.strip().splitlines()
    lines = [line for line in lines if "images/s" not in line and "B/s" not in line]
    assert len(lines) == 1 and lines[0].startswith("error: ")
    return lines[0]
