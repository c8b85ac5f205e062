"""Downloads from a server on localhost, damaged and hostile archives."""

import errno
import hashlib
import http.server
import tarfile
import threading
import zipfile

import numpy as np
import pytest
from tiny_archives import (
    PER_CLASS,
    accept,
    make_pictures,
    make_split,
    write_cifar100,
    write_tar,
    write_zip,
)

from data_scripts import archives, cifar_fs, common, fetch
from fslib import data


@pytest.fixture
def pictures():
    return make_pictures()


@pytest.fixture
def split_file(tmp_path):
    return make_split(tmp_path)


class TestArchives:
    """Damaged and hostile archives."""

    @pytest.mark.parametrize("keep", [0.3, 0.9])
    def test_cut_off(self, tmp_path, pictures, keep):
        for path in (
            write_zip(tmp_path / "a.zip", pictures),
            write_cifar100(tmp_path / "b.tar.gz", pictures),
        ):
            content = path.read_bytes()
            path.write_bytes(content[: int(len(content) * keep)])
            with pytest.raises(common.ScriptError, match="damaged or cut off"):
                list(archives.members(path, lambda name: True))

    def test_one_flipped_byte(self, tmp_path, pictures):
        path = write_zip(tmp_path / "a.zip", pictures)
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 255
        path.write_bytes(content)
        with pytest.raises(common.ScriptError, match="damaged or cut off"):
            list(archives.members(path, lambda name: True))

    @pytest.mark.parametrize("name", ["../outside.png", "/etc/outside.png", "a/../../b.png"])
    def test_members_that_point_outside(self, tmp_path, name):
        path = tmp_path / "a.zip"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(name, b"x")
        with pytest.raises(common.ScriptError, match="refused"):
            list(archives.members(path, lambda name: True))
        if not name.startswith("/"):  # the filter makes absolute names relative
            tar = write_tar(tmp_path / "a.tar.gz", {name: b"x"})
            with pytest.raises(common.ScriptError, match="refused"):
                list(archives.members(tar, lambda name: True))

    def test_links(self, tmp_path):
        path = tmp_path / "a.tar.gz"
        with tarfile.open(path, "w:gz") as archive:
            member = tarfile.TarInfo("inside")
            member.type, member.linkname = tarfile.SYMTYPE, "other"
            archive.addfile(member)
        with pytest.raises(common.ScriptError, match="link"):
            list(archives.members(path, lambda name: True))


class Server(http.server.ThreadingHTTPServer):
    """Serves one file with Range and drops the connection after `drop` bytes, `drops` times."""

    content = bytes(np.random.default_rng(1).integers(0, 256, 700_000, dtype=np.uint8))
    drop, drops, ranges_work = 300_000, 1, True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[str | None] = []


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers of `Server`."""

    def do_GET(self) -> None:
        wanted = self.headers.get("Range")
        self.server.asked.append(wanted)
        if self.path == "/missing.bin":
            self.send_error(404)
            return
        content, start = self.server.content, 0
        if wanted and self.server.ranges_work:
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
            if start >= len(content):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(content)}")
                self.end_headers()
                return
            self.send_response(206)
            last = len(content) - 1
            self.send_header("Content-Range", f"bytes {start}-{last}/{len(content)}")
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        rest = content[start:]
        if self.server.drops:
            self.server.drops -= 1
            self.wfile.write(rest[: self.server.drop])
            self.wfile.flush()
            self.connection.close()
            return
        self.wfile.write(rest)

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch):
    """A running server; downloads wait no time before they try again."""
    monkeypatch.setattr(fetch, "PAUSE", 0.0)
    for variable in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(variable, raising=False)
    with Server() as running:
        threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True).start()
        yield running
        running.shutdown()


def address(server: Server, name: str = "file.bin") -> str:
    """The server's file."""
    return f"http://127.0.0.1:{server.server_address[1]}/{name}"


KNOWN = "md5:" + hashlib.md5(Server.content).hexdigest()


class TestDownload:
    """Against a server on localhost."""

    def test_broken_connection_is_resumed(self, tmp_path, server):
        path = fetch.download(address(server), KNOWN, tmp_path)
        assert path.read_bytes() == server.content
        assert server.asked[0] is None and len(server.asked) == 2
        start = int(server.asked[1].removeprefix("bytes=").removesuffix("-"))
        assert 0 < start <= 300_000
        assert [p.name for p in tmp_path.iterdir()] == ["file.bin"]

    def test_a_later_call_resumes_and_the_next_asks_nothing(self, tmp_path, server):
        server.drops = 0
        (tmp_path / "file.bin.part").write_bytes(server.content[:123_456])
        fetch.download(address(server), KNOWN, tmp_path)
        assert server.asked == ["bytes=123456-"]
        assert fetch.download(address(server), KNOWN, tmp_path).read_bytes() == server.content
        assert len(server.asked) == 1

    def test_all_bytes_there_but_not_renamed(self, tmp_path, server):
        (tmp_path / "file.bin.part").write_bytes(server.content)
        path = fetch.download(address(server), KNOWN, tmp_path)
        assert path.read_bytes() == server.content

    def test_server_without_ranges_starts_over(self, tmp_path, server):
        server.ranges_work, server.drops = False, 0
        (tmp_path / "file.bin.part").write_bytes(b"old" * 10)
        assert fetch.download(address(server), KNOWN, tmp_path).read_bytes() == server.content

    def test_part_of_another_version_is_fetched_again(self, tmp_path, server):
        server.drops = 0
        (tmp_path / "file.bin.part").write_bytes(bytes(100_000))
        assert fetch.download(address(server), KNOWN, tmp_path).read_bytes() == server.content
        assert server.asked == ["bytes=100000-", None]

    def test_wrong_checksum(self, tmp_path, server):
        server.drops = 0
        with pytest.raises(common.ScriptError, match="does not have the checksum"):
            fetch.download(address(server), "md5:" + "0" * 32, tmp_path)
        assert list(tmp_path.iterdir()) == []

    def test_missing_file_and_silent_server(self, tmp_path, server):
        with pytest.raises(common.ScriptError, match="answered 404"):
            fetch.download(address(server, "missing.bin"), KNOWN, tmp_path)
        server.drop, server.drops = 0, 1000
        with pytest.raises(common.ScriptError, match="run the same command again"):
            fetch.download(address(server), KNOWN, tmp_path)

    def test_full_disk_keeps_what_came(self, tmp_path, server, monkeypatch):
        server.drops = 0
        write = fetch._write

        def full(file, chunk):
            if file.tell() >= fetch.CHUNK:
                raise OSError(errno.ENOSPC, "No space left on device")
            write(file, chunk)

        monkeypatch.setattr(fetch, "_write", full)
        with pytest.raises(common.ScriptError, match=r"no space left under .* needs \d MB more"):
            fetch.download(address(server), KNOWN, tmp_path)
        assert (tmp_path / "file.bin.part").stat().st_size == fetch.CHUNK
        monkeypatch.setattr(fetch, "_write", write)
        assert fetch.download(address(server), KNOWN, tmp_path).read_bytes() == server.content
        assert server.asked[-1] == f"bytes={fetch.CHUNK}-"

    def test_cifar_from_the_net(self, tmp_path, pictures, split_file, server, monkeypatch):
        archive = write_cifar100(tmp_path / "cifar-100-python.tar.gz", pictures)
        accept(monkeypatch, archive)
        server.content, server.drop = archive.read_bytes(), 5_000
        line = ["--root", tmp_path / "root", "--split", split_file]
        line += ["--url", address(server, "cifar-100-python.tar.gz")]
        assert common.run(cifar_fs.main, [str(a) for a in line]) == 0
        opened = data.open_dataset("cifar_fs", tmp_path / "root")
        assert len(opened["train"]) == PER_CLASS and len(server.asked) == 2
