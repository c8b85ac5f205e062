"""Download a file with a progress bar, a checksum, and resume where the connection broke."""

from __future__ import annotations

import errno
import hashlib
import os
import time
from pathlib import Path
from typing import Any, BinaryIO

import pooch
import requests
from tqdm import tqdm

from data_scripts.common import ScriptError, say

ATTEMPTS = 5  # in a row without a single new byte
PAUSE = 1.0  # seconds before the second attempt, doubled after each
CHUNK = 1 << 18


class _Retry(Exception):
    """The connection broke or the server is busy; the part that came is kept."""


def _write(file: BinaryIO, chunk: bytes) -> None:
    file.write(chunk)


class ResumingDownloader:
    """A downloader for pooch that goes on where an earlier attempt ended.

    pooch compares the checksum and puts the file in place, but its own downloaders begin at the
    first byte each time, and the archives here have hundreds of megabytes. This one keeps what
    came in `<file>.part` and asks for the rest with a Range header.

    Args:
        part: Where the bytes are kept until they are all there.
    """

    def __init__(self, part: Path) -> None:
        """Nothing is opened or asked for yet."""
        self.part = part
        self.resumed = False  # some bytes are from an earlier answer

    def __call__(self, url: str, output_file: str, pooch: Any = None) -> None:
        """Bring the file of `url` to `output_file`.

        Raises:
            ScriptError: It cannot be had; says what to do.
        """
        failures, pause = 0, PAUSE
        while True:
            before = self._size()
            try:
                self._once(url)
                os.replace(self.part, output_file)
                return
            except (_Retry, requests.RequestException) as error:
                if self._size() > before:
                    failures, pause = 0, PAUSE
                failures += 1
                if failures >= ATTEMPTS:
                    raise ScriptError(
                        f"{url} could not be downloaded ({_reason(error)}); "
                        f"{self._size() / 1e6:.0f} MB are kept in {self.part}: run the same "
                        "command again to go on from there, or give a file with --from"
                    ) from None
                time.sleep(pause)
                pause *= 2

    def _size(self) -> int:
        return self.part.stat().st_size if self.part.exists() else 0

    def _once(self, url: str) -> None:
        have = self._size()
        headers = {"Accept-Encoding": "identity"}  # Range counts bytes as they are sent
        if have:
            headers["Range"] = f"bytes={have}-"
        with requests.get(url, headers=headers, stream=True, timeout=30) as answer:
            if answer.status_code == 416:
                # Nothing after the last byte we have: all is there, or it is another file.
                if answer.headers.get("Content-Range", "").endswith(f"/{have}"):
                    self.resumed = True
                    return
                self.part.unlink()
                raise _Retry("the server has another file now")
            if answer.status_code in (408, 425, 429) or answer.status_code >= 500:
                raise _Retry(f"the server answered {answer.status_code}")
            if answer.status_code >= 400:
                raise ScriptError(
                    f"the server answered {answer.status_code} for {url}: give another address "
                    "with --url, or a file that you fetched yourself with --from"
                )
            starts_at = f"bytes {have}-"
            resumes = answer.status_code == 206 and answer.headers.get(
                "Content-Range", ""
            ).startswith(starts_at)
            if have and resumes:
                self.resumed = True
            else:
                have = 0  # the server sends the whole file: begin again
            length = answer.headers.get("Content-Length")
            self._receive(answer, have, None if length is None else have + int(length))

    def _receive(self, answer: requests.Response, have: int, total: int | None) -> None:
        bar = tqdm(
            total=total,
            initial=have,
            unit="B",
            unit_scale=True,
            desc=self.part.stem,
            disable=None,
        )
        try:
            with bar, self.part.open("ab" if have else "wb") as file:
                for chunk in answer.iter_content(CHUNK):
                    _write(file, chunk)
                    bar.update(len(chunk))
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            rest = "" if total is None else f" {(total - self._size()) / 1e6:.0f} MB more"
            raise ScriptError(
                f"no space left under {self.part.parent}: {self.part.stem} needs{rest} there; "
                "free some space and run the same command again, it goes on from what came"
            ) from None
        if total is not None and self._size() < total:
            raise _Retry("the connection was closed early")


def _reason(error: Exception) -> str:
    return "no connection" if isinstance(error, requests.ConnectionError) else str(error)


def checksum(path: Path, kind: str) -> str:
    """The checksum of a file: `kind` is an algorithm's name such as md5 or sha256."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, kind).hexdigest()


def verify(path: Path, known: str) -> None:
    """Compare a file's checksum with the known one, written as `md5:...` or `sha256:...`.

    Raises:
        ScriptError: They differ.
    """
    kind, _, digest = known.partition(":")
    if checksum(path, kind) != digest:
        raise ScriptError(
            f"{path} is damaged, cut off or another version (its {kind} is not {digest}): "
            "fetch it again"
        )


def download(url: str, known: str, folder: Path) -> Path:
    """Download a file, or find it where an earlier call has put it.

    Args:
        url: Address.
        known: Its checksum, `md5:...` or `sha256:...`.
        folder: Where it is kept, under the address's last part.

    Returns:
        The file, whole and with the right checksum.

    Raises:
        ScriptError: It cannot be had, or the disk is full; what came is kept and resumed.
    """
    pooch.get_logger().setLevel("WARNING")
    folder.mkdir(parents=True, exist_ok=True)
    name = url.rsplit("/", 1)[-1].partition("?")[0]
    downloader = ResumingDownloader(folder / f"{name}.part")
    for _ in range(2):
        downloader.resumed = False
        if not (folder / name).exists():
            say(f"download {url} to {folder / name}")
        try:
            return Path(
                pooch.retrieve(
                    url, known_hash=known, fname=name, path=folder, downloader=downloader
                )
            )
        except ValueError:
            # pooch has thrown the file away. A file glued together from two answers may be of
            # two versions: try once from the first byte.
            if not downloader.resumed:
                break
    raise ScriptError(
        f"what {url} sends does not have the checksum {known}: it is damaged or another version; "
        "give another address with --url or a file with --from"
    )
