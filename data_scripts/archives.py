"""Read the files of a zip, a tar archive or a folder, without ever unpacking to disk.

Members are read into memory and given on by name, so no archive decides where a file is written.
Names are checked all the same: an archive with an absolute name, a `..` or a link is not one of
those that these scripts know, and is refused as a whole.
"""

from __future__ import annotations

import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath

from data_scripts.common import ScriptError

BROKEN = (zipfile.BadZipFile, tarfile.TarError, EOFError, zlib.error, OSError, NotImplementedError)


def is_archive(path: Path) -> bool:
    """Whether the name is that of a zip or a tar archive."""
    return path.name.lower().endswith((".zip", ".tgz", ".tar.gz", ".tar"))


def _check_name(source: Path, name: str) -> None:
    parts = PurePosixPath(name.replace("\\", "/"))
    if parts.is_absolute() or ".." in parts.parts or name[1:2] == ":":
        raise ScriptError(f"{source} is refused: its member {name!r} points out of the archive")


def _zip_members(source: Path, wanted: Callable[[str], bool]) -> Iterator[tuple[str, bytes]]:
    with zipfile.ZipFile(source) as archive:
        for member in archive.infolist():
            _check_name(source, member.filename)
            if stat.S_ISLNK(member.external_attr >> 16):
                raise ScriptError(f"{source} is refused: its member {member.filename!r} is a link")
            if member.flag_bits & 1:
                raise ScriptError(f"{source} is encrypted: unpack it and give the folder instead")
            if not member.is_dir() and wanted(member.filename):
                yield member.filename, archive.read(member)


def _tar_members(source: Path, wanted: Callable[[str], bool]) -> Iterator[tuple[str, bytes]]:
    with tarfile.open(source, mode="r|*") as archive:
        for member in archive:
            try:
                # Python's own rules for safe members; here they judge, nothing is extracted.
                tarfile.data_filter(member, "unpacked")
            except tarfile.FilterError as error:
                raise ScriptError(f"{source} is refused: {error}") from None
            if member.islnk() or member.issym():
                raise ScriptError(f"{source} is refused: its member {member.name!r} is a link")
            if member.isfile() and wanted(member.name):
                file = archive.extractfile(member)
                content = b"" if file is None else file.read()
                if len(content) != member.size:
                    raise EOFError(f"{member.name} ends early")
                yield member.name, content


def members(source: Path, wanted: Callable[[str], bool]) -> Iterator[tuple[str, bytes]]:
    """The wanted files of an archive or folder, in the order in which they are stored.

    Args:
        source: A .zip, .tar, .tar.gz, .tgz, or a folder.
        wanted: Says by its name (with forward slashes) whether a file is read.

    Yields:
        Name and content.

    Raises:
        ScriptError: The archive is damaged or cut off, or a member points out of it.
    """
    if source.is_dir():
        for path in sorted(source.rglob("*")):
            name = path.relative_to(source).as_posix()
            if wanted(name) and path.is_file():
                yield name, path.read_bytes()
        return
    if not source.exists():
        raise ScriptError(f"there is no file {source}")
    read = _zip_members if source.suffix.lower() == ".zip" else _tar_members
    try:
        yield from read(source, wanted)
    except BROKEN as error:
        reason = str(error) or type(error).__name__
        raise ScriptError(
            f"{source} is damaged or cut off ({reason}): fetch it again or delete it"
        ) from None


def find_archives(place: Path, patterns: tuple[str, ...]) -> list[Path]:
    """The archives in a folder by file-name pattern, sorted; the file itself where it is one."""
    if place.is_file():
        return [place]
    return sorted({p for pattern in patterns for p in place.glob(pattern) if p.is_file()})
