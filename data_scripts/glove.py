"""Word vectors of class names, cut out of GloVe (Pennington et al. 2014, public domain).

GloVe is at https://nlp.stanford.edu/projects/glove/ (glove.6B.zip, 862 MB: fetch it once and
give it with --from). The vector of a name of several words is the mean of the words' vectors.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import io
import json
import os
import re
import tempfile
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from data_scripts import archives, common
from data_scripts.common import ScriptError, say
from fslib.packs import DataCorrupt, PackSplit, check_pack


def words_of(name: str) -> list[str]:
    """The words of a class name: `012.Maple_tree` gives `maple`, `tree`."""
    return re.findall(r"[^\W_]+", re.sub(r"^\d+\.", "", name).lower())


@dataclass(frozen=True)
class Table:
    """Word vectors.

    Attributes:
        vectors: float32 (d,) of each word or whole class name.
        source: The file's name, for messages.
    """

    vectors: dict[str, np.ndarray]
    source: str

    @classmethod
    def read(cls, path: Path, names: Iterable[str], dimension: int = 300) -> Table:
        """Read what the class names need from a table.

        Args:
            path: .npz with `names` (C,) and `vectors` (C, d), GloVe's .txt (a word and its
                numbers a line), or its .zip.
            names: Class names.
            dimension: Which of a zip's tables to read.

        Raises:
            ScriptError: The file is missing, damaged or something else.
        """
        if not path.exists():
            raise ScriptError(f"there is no table of word vectors at {path}")
        if path.suffix == ".npz":
            return cls(_read_npz(path), path.name)
        wanted = {w for name in names for w in [*words_of(name), name.lower()]}
        if path.suffix == ".zip":
            try:
                with zipfile.ZipFile(path) as archive:
                    member = _member(archive, path, dimension)
                    with archive.open(member) as lines:
                        return cls(_read_lines(lines, wanted, path, member.file_size), path.name)
            except archives.BROKEN as error:
                raise ScriptError(f"{path} is damaged or cut off ({error})") from None
        with path.open("rb") as lines:
            return cls(_read_lines(lines, wanted, path, path.stat().st_size), path.name)

    def cut(self, names: Sequence[str], partial: bool = False) -> np.ndarray:
        """The vectors of class names.

        Args:
            names: C class names; each is looked up whole, then word by word.
            partial: A name with some unknown words gets the mean of the others.

        Returns:
            float32 (C, d).

        Raises:
            ScriptError: Names have no vector; lists them and the words that are missing.
        """
        rows, missing = [], []
        for name in names:
            whole = self.vectors.get(name, self.vectors.get(name.lower()))
            if whole is not None:
                rows.append(whole)
                continue
            words = words_of(name)
            known = [self.vectors[w] for w in words if w in self.vectors]
            if known and (partial or len(known) == len(words)):
                rows.append(np.mean(known, axis=0, dtype=np.float64).astype(np.float32))
            else:
                absent = [w for w in words if w not in self.vectors]
                missing.append(f"{name} ({', '.join(absent)})" if words else name)
        if missing:
            more = f" and {len(missing) - 10} more" if len(missing) > 10 else ""
            raise ScriptError(
                f"{self.source} has no vector for {len(missing)} of {len(names)} classes: "
                f"{'; '.join(missing[:10])}{more}; rename them or take a larger table"
                + ("" if partial else ", or --partial to average over the known words")
            )
        return np.stack(rows)


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as table:
            names, vectors = table["names"], table["vectors"].astype(np.float32)
        if vectors.ndim != 2 or len(names) != len(vectors) or not np.isfinite(vectors).all():
            raise ValueError(f"names {names.shape} and vectors {vectors.shape} do not fit")
    except (ValueError, KeyError, TypeError, AttributeError, *archives.BROKEN) as error:
        raise ScriptError(f"{path} is not a table with names and vectors: {error}") from None
    return dict(zip((str(n) for n in names), vectors, strict=True))


def _member(archive: zipfile.ZipFile, path: Path, dimension: int) -> zipfile.ZipInfo:
    texts = [m for m in archive.infolist() if m.filename.endswith(".txt")]
    for member in texts:
        if f".{dimension}d." in member.filename or len(texts) == 1:
            return member
    there = ", ".join(m.filename for m in texts) or "no text file"
    raise ScriptError(f"{path} has no table of dimension {dimension} (it has {there})")


def _read_lines(lines: Any, wanted: set[str], path: Path, size: int) -> dict[str, np.ndarray]:
    """The wanted rows of GloVe's text: a word and its numbers a line, blanks between them."""
    vectors: dict[str, np.ndarray] = {}
    with tqdm(total=size, unit="B", unit_scale=True, desc=path.name, disable=None) as bar:
        for line in lines:
            bar.update(len(line))
            word, _, numbers = line.partition(b" ")
            key = word.decode("utf-8", errors="replace")
            if key in wanted:
                try:
                    vectors[key] = np.array(numbers.split(), dtype=np.float32)
                except ValueError:
                    raise ScriptError(f"{path} is not GloVe's text at word {key!r}") from None
    if len({len(v) for v in vectors.values()}) > 1:
        raise ScriptError(f"{path} is damaged or cut off: its rows differ in length")
    return vectors


def with_semantics(
    splits: dict[str, PackSplit], table: Table, partial: bool = False
) -> dict[str, PackSplit]:
    """The same splits with the word vectors of their classes."""
    return {
        name: dataclasses.replace(part, semantics=table.cut(part.class_names, partial))
        for name, part in splits.items()
    }


def _write(path: Path, content: bytes) -> None:
    """Write a file so that it is there whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as f:
        try:
            f.write(content)
            f.close()
            os.chmod(f.name, 0o644)  # the temporary file is private, its successor is not
            os.replace(f.name, path)
        except BaseException:
            f.close()
            Path(f.name).unlink(missing_ok=True)
            raise


def add_to_pack(folder: Path, table: Table, partial: bool = False) -> None:
    """Give an existing pack the word vectors of its classes.

    The new files have names of their own; the pack changes in the moment in which pack.json is
    replaced, so whoever opens it meanwhile finds the old state or the new one.

    Args:
        folder: The pack.
        table: Word vectors.
        partial: See `Table.cut`.

    Raises:
        ScriptError: A class has no vector; nothing was changed then.
    """
    content = _checked(folder)
    arrays = {s: table.cut(e["class_names"], partial) for s, e in content["splits"].items()}
    old = []
    for split, array in arrays.items():
        files = content["splits"][split]["files"]
        if "semantics" in files:
            old.append(folder / files["semantics"]["file"])
        buffer = io.BytesIO()
        np.save(buffer, array, allow_pickle=False)
        digest = hashlib.sha256(buffer.getvalue()).hexdigest()
        path = folder / f"{split}_semantics_{digest[:8]}.npy"
        _write(path, buffer.getvalue())
        files["semantics"] = {
            "file": path.name,
            "bytes": len(buffer.getvalue()),
            "sha256": digest,
        }
    content["notes"]["semantics_from"] = table.source
    text = json.dumps(content, indent=1, ensure_ascii=False)
    _write(folder / "pack.json", text.encode())
    kept = {folder / e["files"]["semantics"]["file"] for e in content["splits"].values()}
    for path in set(old) - kept:
        path.unlink(missing_ok=True)


def _checked(folder: Path) -> dict[str, Any]:
    """What pack.json says, in one error of ours if the pack is damaged or missing."""
    if not folder.is_dir():
        raise ScriptError(f"there is no pack at {folder}: make it first")
    try:
        return check_pack(folder)
    except DataCorrupt as error:
        raise ScriptError(str(error)) from None


def class_names(folder: Path) -> list[str]:
    """The class names of a pack, over all its splits."""
    return [c for entry in _checked(folder)["splits"].values() for c in entry["class_names"]]


def _names(options: argparse.Namespace) -> list[str]:
    if options.pack is not None:
        return class_names(options.pack)
    if not options.classes.exists():
        raise ScriptError(f"there is no list of classes at {options.classes}")
    lines = options.classes.read_text(encoding="utf-8").splitlines()
    names = [line.strip() for line in lines if line.strip()]
    if not names:
        raise ScriptError(f"{options.classes} is empty: write one class name a line")
    return names


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    group = parser.add_mutually_exclusive_group(required=True)
    group.add_argument("--classes", type=Path, metavar="TXT", help="one class name a line")
    group.add_argument(
        "--pack",
        type=Path,
        metavar="FOLDER",
        help="a packed data set: its classes; the vectors are put into it",
    )
    parser.add_argument(
        "--from",
        dest="table",
        type=Path,
        required=True,
        metavar="TABLE",
        help="glove.6B.zip, glove.6B.300d.txt, or .npz with names and vectors",
    )
    parser.add_argument(
        "--out", type=Path, metavar="NPZ", help="write the cut table here (needed with --classes)"
    )
    parser.add_argument(
        "--dimension",
        type=int,
        default=300,
        help="which table of a zip: 50, 100, 200 or 300 numbers a word (default: %(default)s)",
    )
    parser.add_argument(
        "--partial",
        action="store_true",
        help="average over the known words of a name where some are unknown",
    )
    options = parser.parse_args(argv)
    if options.pack is None and options.out is None:
        raise ScriptError("say with --out where the table for these classes is to be written")
    names = _names(options)
    table = Table.read(options.table, names, options.dimension)
    vectors = table.cut(names, options.partial)
    if options.out is not None:
        buffer = io.BytesIO()
        np.savez(buffer, names=np.array(names), vectors=vectors)
        _write(options.out, buffer.getvalue())
        say(
            f"wrote {options.out} ({len(names)} classes, {vectors.shape[1]} numbers each): "
            f"use it with --semantics {options.out}"
        )
    if options.pack is not None:
        add_to_pack(options.pack, table, options.partial)
        say(
            f"{options.pack} has word vectors of {vectors.shape[1]} numbers now: "
            f'{common.opening_line(options.pack)}["train"].semantics'
        )


if __name__ == "__main__":
    raise SystemExit(common.run(main))
