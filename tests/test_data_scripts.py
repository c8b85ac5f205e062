"""The data scripts on tiny archives of the published layouts, and their faults."""

import errno
import hashlib
import http.server
import io
import json
import pickle
import struct
import tarfile
import threading
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_scripts import archives, cifar_fs, common, fetch, flowers102, glove, images, own_images
from fslib import data

CLASSES = ("wolf", "pine_tree", "bee")
PER_CLASS = 4


def png(pixels: np.ndarray) -> bytes:
    """Encode uint8 (3, H, W)."""
    buffer = io.BytesIO()
    Image.fromarray(pixels.transpose(1, 2, 0)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def pictures() -> dict[tuple[str, str], np.ndarray]:
    """(class, file) -> pixels: three classes of four; one wolf and one bee are identical."""
    generator = np.random.default_rng(0)
    made = {
        (c, f"{c}_s_{i:06d}.png"): generator.integers(0, 256, (3, 32, 32), dtype=np.uint8)
        for c in CLASSES
        for i in (7, 3, 11, 5)
    }
    made["bee", "bee_s_000011.png"] = made["wolf", "wolf_s_000003.png"]
    return made


@pytest.fixture
def split_file(tmp_path: Path) -> Path:
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


class TestCifar:
    """Three sources, one pack."""

    def test_order_labels_and_pixels(self, tmp_path, pictures, split_file):
        source = write_zip(tmp_path / "cifar100.zip", pictures)
        cifar_fs.build(tmp_path / "root", source, split_file=split_file)
        opened = data.open_dataset("cifar_fs", tmp_path / "root")
        assert [s.class_names for s in opened.values()] == [("wolf",), ("pine_tree",), ("bee",)]
        assert opened["val"].superclass == ("trees",)
        for split in opened.values():
            label = split.class_names[0]
            files = sorted(f for c, f in pictures if c == label)
            assert files[0].endswith("000003.png")
            expected = np.stack([pictures[label, f] for f in files])
            np.testing.assert_array_equal(split.images.numpy(), expected)
            assert split.original_part.tolist() == [False, True, False, False]

    def test_three_sources_give_the_same_arrays(self, tmp_path, pictures, split_file, monkeypatch):
        whole = write_zip(tmp_path / "cifar100.zip", pictures)
        parts = tmp_path / "parts"
        parts.mkdir()
        for c in CLASSES:
            write_zip(parts / f"{c}.zip", {k: v for k, v in pictures.items() if k[0] == c})
        archive = write_cifar100(tmp_path / "cifar-100-python.tar.gz", pictures)
        accept(monkeypatch, archive)
        unpacked = tmp_path / "unpacked"
        zipfile.ZipFile(whole).extractall(unpacked)
        files = []
        for i, source in enumerate((whole, parts, archive, unpacked)):
            folder = cifar_fs.build(tmp_path / str(i), source, split_file=split_file)
            content = data.check_pack(folder, thorough=True)
            content["notes"].pop("read_from")
            files.append(content)
        assert files[0] == files[1] == files[2] == files[3]
        assert "original_part" in files[0]["splits"]["test"]["files"]

    def test_notes_tell_identical_images_and_channels(self, tmp_path, pictures, split_file):
        source = write_zip(tmp_path / "cifar100.zip", pictures)
        folder = cifar_fs.build(tmp_path / "root", source, split_file=split_file)
        notes = json.loads((folder / "pack.json").read_text())["notes"]
        assert notes["identical_images"] == [
            [
                {"split": "train", "class": "wolf", "row": 0},
                {"split": "test", "class": "bee", "row": 3},
            ]
        ]
        wolves = np.stack([p for (c, _), p in pictures.items() if c == "wolf"]) / 255.0
        expected = wolves.mean((0, 2, 3)), wolves.std((0, 2, 3))
        np.testing.assert_allclose(notes["train_channels"]["mean"], expected[0], atol=1e-6)
        np.testing.assert_allclose(notes["train_channels"]["std"], expected[1], atol=1e-6)

    def test_word_vectors_beside_the_source(self, tmp_path, pictures, split_file):
        (tmp_path / "source").mkdir()
        (tmp_path / "glove").mkdir()
        write_zip(tmp_path / "source" / "a.zip", pictures)
        vectors = np.arange(6, dtype=np.float32).reshape(3, 2)
        np.savez(tmp_path / "glove" / "t.npz", names=np.array(CLASSES), vectors=vectors)
        cifar_fs.build(tmp_path / "root", tmp_path / "source", split_file=split_file)
        opened = data.open_dataset("cifar_fs", tmp_path / "root")
        assert opened["val"].semantics.tolist() == [[2.0, 3.0]]

    def test_a_finished_pack_stays(self, tmp_path, pictures, split_file, capsys):
        source = write_zip(tmp_path / "cifar100.zip", pictures)
        line = ["--from", source, "--root", tmp_path / "root", "--split", split_file]
        line = [str(a) for a in line]
        assert common.run(cifar_fs.main, line) == 0
        last = capsys.readouterr().out.strip().splitlines()[-1]
        assert 'open_dataset("cifar_fs"' in last and "train 1 classes / 4 images" in last
        pack = tmp_path / "root" / "cifar_fs" / "pack.json"
        before = pack.stat().st_mtime_ns
        source.unlink()  # it must not even be looked at
        assert common.run(cifar_fs.main, line) == 0
        assert pack.stat().st_mtime_ns == before
        assert "already there" in capsys.readouterr().out
        message = fails(cifar_fs.main, *line, "--force", capsys=capsys)
        assert str(source) in message
        assert pack.stat().st_mtime_ns == before  # a failed rebuild leaves the old pack

    def test_wrong_count_names_class_and_need(self, tmp_path, pictures, split_file, capsys):
        del pictures["bee", "bee_s_000003.png"]
        source = write_zip(tmp_path / "cifar100.zip", pictures)
        line = ["--from", source, "--root", tmp_path / "root", "--split", split_file]
        message = fails(cifar_fs.main, *line, capsys=capsys)
        assert "class bee has 3 images" in message and "4 are needed" in message
        assert not (tmp_path / "root" / "cifar_fs").exists()

    def test_truncated_image_is_named(self, tmp_path, pictures, split_file, capsys):
        path = tmp_path / "cifar100.zip"
        with zipfile.ZipFile(path, "w") as archive:
            for (label, file), pixels in pictures.items():
                content = png(pixels)
                cut = content[:900] if file == "bee_s_000007.png" else content
                archive.writestr(f"cifar100/data/{label}/{file}", cut)
        line = ["--from", path, "--root", tmp_path / "root", "--split", split_file]
        assert "bee/bee_s_000007.png" in fails(cifar_fs.main, *line, capsys=capsys)

    def test_archive_with_another_checksum_is_not_read(
        self, tmp_path, pictures, split_file, capsys
    ):
        archive = write_cifar100(tmp_path / "cifar-100-python.tar.gz", pictures)
        line = ["--from", archive, "--root", tmp_path / "root", "--split", split_file]
        message = fails(cifar_fs.main, *line, capsys=capsys)
        assert "md5 is not eb9058c3a382ffc7106e4002c42a8d85" in message

    def test_pickle_that_calls_something_is_refused(
        self, tmp_path, split_file, monkeypatch, capsys
    ):
        marker = tmp_path / "was_run"

        class Evil:
            def __reduce__(self):
                return (Path.touch, (marker,))

        files = {"cifar-100-python/meta": pickle.dumps({"fine_label_names": Evil()}, protocol=2)}
        archive = write_tar(tmp_path / "cifar-100-python.tar.gz", files)
        accept(monkeypatch, archive)
        line = ["--from", archive, "--root", tmp_path / "root", "--split", split_file]
        assert "is refused" in fails(cifar_fs.main, *line, capsys=capsys)
        assert not marker.exists()

    def test_published_split_is_whole(self):
        split = common.read_split(common.SPLIT_FILES / "cifar_fs.json")
        assert [len(split[s]) for s in common.SPLITS] == [64, 16, 20]
        classes = {c for s in common.SPLITS for c in split[s]}
        assert len(classes) == 100 and set(split["original_part"]) == classes
        assert len(set(split["superclass"].values())) == 20
        for entry in split["original_part"].values():
            assert int(entry["mask"], 16).bit_count() == 100


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
        threading.Thread(target=running.serve_forever, daemon=True).start()
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


def test_full_disk_while_packing(tmp_path, pictures, split_file, monkeypatch, capsys):
    """The message says how much is needed where; nothing half-written stays."""
    source = write_zip(tmp_path / "cifar100.zip", pictures)
    line = ["--from", source, "--root", tmp_path / "root", "--split", split_file]
    with monkeypatch.context() as patch:
        save = np.save

        def full(path, *arguments, **options):
            if "val" in str(path):
                raise OSError(errno.ENOSPC, "No space left on device")
            save(path, *arguments, **options)

        patch.setattr(np, "save", full)
        message = fails(cifar_fs.main, *line, capsys=capsys)
        assert "MB" in message and str(tmp_path / "root") in message
    assert [p.name for p in (tmp_path / "root").iterdir()] == [".cifar_fs.lock"]
    with monkeypatch.context() as patch:
        usage = common.shutil.disk_usage(tmp_path)._replace(free=10)
        patch.setattr(common.shutil, "disk_usage", lambda path: usage)
        message = fails(cifar_fs.main, *line, capsys=capsys)
        assert "needs about 0 MB and 0 MB are free" in message


class TestFlowers:
    """Both layouts, and squares."""

    NAMES = ("001.pink_primrose", "002.hard_leaved_pocket_orchid", "003.canterbury_bells")

    def write(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        """The original archive and labels: six images, two of each class; gives the split."""
        from scipy.io import savemat

        folder.mkdir()
        files = {}
        for i in range(1, 7):
            buffer = io.BytesIO()
            Image.new("RGB", (60, 40), (40 * i, 0, 0)).save(buffer, "JPEG")
            files[f"jpg/image_{i:05d}.jpg"] = buffer.getvalue()
        archive = write_tar(folder / "102flowers.tgz", files)
        labels = folder / "imagelabels.mat"
        savemat(labels, {"labels": np.array([[3, 1, 2, 1, 2, 3]], dtype=np.uint8)})
        for path in (archive, labels):
            known = "md5:" + fetch.checksum(path, "md5")
            monkeypatch.setitem(flowers102.KNOWN, path.name, known)
        split = folder / "split.json"
        split.write_text(
            json.dumps({s: [n] for s, n in zip(common.SPLITS, self.NAMES, strict=True)})
        )
        return split

    def test_original(self, tmp_path, monkeypatch):
        split = self.write(tmp_path / "f", monkeypatch)
        flowers102.build(tmp_path / "root", tmp_path / "f", 20, split_file=split)
        opened = data.open_dataset("flowers102", tmp_path / "root")
        assert opened["test"].class_names == (self.NAMES[2],)
        assert opened["test"].size == (20, 20)
        # Class 3 has images 1 and 6, known by their redness.
        red = opened["test"].images[:, 0].float().mean((1, 2)).round().tolist()
        np.testing.assert_allclose(red, [40, 240], atol=2)

    def test_class_folders_in_a_zip(self, tmp_path, monkeypatch):
        split = self.write(tmp_path / "f", monkeypatch)
        pixels = np.random.default_rng(0).integers(0, 256, (3, 12, 12), dtype=np.uint8)
        with zipfile.ZipFile(tmp_path / "flowers.zip", "w") as archive:
            for name in self.NAMES:
                # PNG content under the .jpg name: the pixels come back unchanged.
                archive.writestr(f"flowers102/images/{name}/image_00001.jpg", png(pixels))
        line = ["--from", tmp_path / "flowers.zip", "--root", tmp_path / "root", "--side", "12"]
        line = [str(a) for a in [*line, "--split", split]]
        assert common.run(flowers102.main, line) == 0
        opened = data.open_dataset("flowers102", tmp_path / "root")
        np.testing.assert_array_equal(opened["val"].images[0].numpy(), pixels)

    def test_other_options_are_not_passed_over(self, tmp_path, monkeypatch, capsys):
        split = self.write(tmp_path / "f", monkeypatch)
        line = ["--from", tmp_path / "f", "--root", tmp_path / "root", "--split", split]
        assert common.run(flowers102.main, [str(a) for a in [*line, "--side", "20"]]) == 0
        capsys.readouterr()
        message = fails(flowers102.main, *line, "--side", "16", capsys=capsys)
        assert "side 20, not 16" in message and "--force" in message

    def test_labels_missing(self, tmp_path, monkeypatch, capsys):
        self.write(tmp_path / "f", monkeypatch)
        (tmp_path / "f" / "imagelabels.mat").unlink()
        line = ["--from", tmp_path / "f", "--root", tmp_path / "root"]
        assert "imagelabels.mat is missing" in fails(flowers102.main, *line, capsys=capsys)

    def test_split_has_102_classes(self):
        split = common.read_split(common.SPLIT_FILES / "flowers102.json")
        assert [len(split[s]) for s in common.SPLITS] == [51, 26, 25]
        numbers = sorted(int(c.split(".")[0]) for s in common.SPLITS for c in split[s])
        assert numbers == list(range(1, 103))


class TestOwnImages:
    """Folders as users have them."""

    @pytest.fixture
    def folder(self, tmp_path):
        """Three classes of two images; hidden files, a text file, several formats."""
        place = tmp_path / "photos"
        for i, (label, suffix) in enumerate((("ash", "jpg"), ("birch", "webp"), ("oak", "BMP"))):
            (place / label).mkdir(parents=True)
            for j in range(2):
                image = Image.new("RGB", (50 + j, 40), (80 * i, 0, 100 * j))
                image.save(place / label / f"{j}.{suffix}")
        (place / "ash" / ".hidden.jpg").write_bytes(b"x")
        (place / ".cache").mkdir()
        (place / "oak" / "notes.txt").write_text("x")
        return place

    def pack(self, tmp_path, folder, *more):
        """Run the script and open what it made."""
        line = [folder, "--name", "mine", "--root", tmp_path / "root", "--side", "16", *more]
        assert common.run(own_images.main, [str(a) for a in line]) == 0
        return data.open_dataset("mine", tmp_path / "root")

    def test_all_classes_are_novel(self, tmp_path, folder, capsys):
        opened = self.pack(tmp_path, folder)
        assert list(opened) == ["test"]
        assert opened["test"].class_names == ("ash", "birch", "oak")
        assert opened["test"].labels.tolist() == [0, 0, 1, 1, 2, 2]
        assert opened["test"].images.shape == (6, 3, 16, 16)
        assert opened["test"].images[4].float().mean((1, 2)).tolist() == [160, 0, 0]
        assert "notes.txt" in capsys.readouterr().out

    def test_exif_orientation_transparency_and_grey(self, tmp_path):
        place = tmp_path / "photos"
        (place / "a").mkdir(parents=True)
        turned = Image.new("RGB", (20, 20), "black")
        turned.paste("white", (0, 0, 20, 10))  # the upper half, which orientation 6 puts right
        exif = Image.Exif()
        exif[0x0112] = 6
        turned.save(place / "a" / "1.jpg", exif=exif, quality=100)
        Image.new("RGBA", (20, 20), (255, 0, 0, 0)).save(place / "a" / "2.png")
        grey = np.full((20, 20), 257 * 50, dtype=np.uint16)
        Image.fromarray(grey).save(place / "a" / "3.png")
        pixels = self.pack(tmp_path, place)["test"].images.float()
        assert pixels[0, :, :, 12:].mean() > 245 and pixels[0, :, :, :4].mean() < 10
        assert (pixels[1] == 255).all()
        assert (pixels[2] == 50).all()

    def test_split_files_and_fractions(self, tmp_path, folder):
        (tmp_path / "train.txt").write_text("oak\n")
        (tmp_path / "test.txt").write_text("birch\nash\n")
        lists = ["--split", tmp_path / "train.txt", tmp_path / "test.txt"]
        opened = self.pack(tmp_path, folder, *lists)
        assert opened["train"].class_names == ("oak",)
        assert opened["test"].class_names == ("birch", "ash")
        (tmp_path / "s.json").write_text(json.dumps({"val": ["ash"], "test": ["oak"]}))
        opened = self.pack(tmp_path, folder, "--split", tmp_path / "s.json", "--force")
        assert {s: p.class_names for s, p in opened.items()} == {"val": ("ash",), "test": ("oak",)}
        opened = self.pack(tmp_path, folder, "--val", "0.34", "--test", "0.34", "--force")
        assert sorted(c for p in opened.values() for c in p.class_names) == ["ash", "birch", "oak"]
        assert [p.classes for p in opened.values()] == [1, 1, 1]

    def test_folders_train_and_test(self, tmp_path, folder):
        (folder / "train").mkdir()
        (folder / "test").mkdir()
        (folder / "ash").rename(folder / "train" / "ash")
        (folder / "oak").rename(folder / "test" / "oak")
        (folder / "birch").rename(folder / "test" / "birch")
        opened = self.pack(tmp_path, folder)
        assert opened["train"].class_names == ("ash",)
        assert opened["test"].class_names == ("birch", "oak")

    def test_errors(self, tmp_path, folder, capsys):
        line = [folder, "--name", "mine", "--root", tmp_path / "root"]
        message = fails(own_images.main, *line, "--at-least", "6", capsys=capsys)
        assert "class ash has 2 readable images and 6 are needed" in message
        message = fails(own_images.main, folder / "ash", *line[1:], capsys=capsys)
        assert "no class folders" in message and "FOLDER/oak/1.jpg" in message
        message = fails(own_images.main, tmp_path / "nothing", *line[1:], capsys=capsys)
        assert "there is no folder" in message
        (tmp_path / "s.json").write_text(json.dumps({"test": ["elm"]}))
        message = fails(own_images.main, *line, "--split", tmp_path / "s.json", capsys=capsys)
        assert "elm" in message and "ash, birch, oak" in message
        message = fails(own_images.main, *line, "--test", "1.5", capsys=capsys)
        assert "add up to 1" in message
        message = fails(own_images.main, folder, "--name", "../x", capsys=capsys)
        assert "cannot be used" in message

    def test_broken_images_are_named_or_skipped(self, tmp_path, folder, capsys):
        noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
        path = folder / "birch" / "cut.jpg"
        Image.fromarray(noise).save(path)
        path.write_bytes(path.read_bytes()[:1500])
        (folder / "birch" / "text.png").write_text("not an image")
        line = [folder, "--name", "mine", "--root", tmp_path / "root"]
        message = fails(own_images.main, *line, capsys=capsys)
        assert str(path) in message and "--skip-broken" in message
        assert not (tmp_path / "root" / "mine").exists()
        opened = self.pack(tmp_path, folder, "--skip-broken")
        assert opened["test"].counts.tolist() == [2, 2, 2]
        told = capsys.readouterr().out
        assert "cut.jpg" in told and "text.png" in told


class TestGlove:
    """Tables cut for class names."""

    TEXT = "the 9 9 9\npine 1 2 3\ntree 3 2 1\nbee 0 1 0\nwolf 5 5 5\n"

    @pytest.fixture
    def table(self, tmp_path):
        """GloVe's zip with two dimensions."""
        path = tmp_path / "glove.6B.zip"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("glove.6B.50d.txt", "pine 0 0\n")
            archive.writestr("glove.6B.300d.txt", self.TEXT)
        return path

    def test_words_are_averaged(self, tmp_path, table):
        (tmp_path / "names.txt").write_text("\n".join(CLASSES))
        out = tmp_path / "cut.npz"
        line = ["--classes", tmp_path / "names.txt", "--from", table, "--out", out]
        assert common.run(glove.main, [str(a) for a in line]) == 0
        cut = glove.Table.read(out, CLASSES).cut(CLASSES)
        assert cut.dtype == np.float32
        assert cut.tolist() == [[5, 5, 5], [2, 2, 2], [0, 1, 0]]
        assert glove.words_of("012.colt_s Foot") == ["colt", "s", "foot"]

    def test_missing_words_are_named(self, tmp_path, table, capsys):
        names = tmp_path / "names.txt"
        names.write_text("bee\npine_cone\n")
        line = ["--classes", names, "--from", table, "--out", tmp_path / "o.npz"]
        message = fails(glove.main, *line, capsys=capsys)
        assert "1 of 2 classes: pine_cone (cone)" in message
        assert not (tmp_path / "o.npz").exists()
        table = glove.Table.read(table, ["pine_cone"])
        assert table.cut(["pine_cone"], partial=True).tolist() == [[1, 2, 3]]

    def test_added_to_a_pack_and_replaced(self, tmp_path, table, pictures, split_file):
        source = write_zip(tmp_path / "cifar100.zip", pictures)
        folder = cifar_fs.build(tmp_path / "root", source, split_file=split_file)
        assert common.run(glove.main, ["--pack", str(folder), "--from", str(table)]) == 0
        opened = data.open_dataset("cifar_fs", tmp_path / "root")
        assert opened["val"].semantics.tolist() == [[2, 2, 2]]
        other = {c: np.array([i, 0], dtype=np.float32) for i, c in enumerate(CLASSES)}
        glove.add_to_pack(folder, glove.Table(other, "other"))
        opened = data.open_dataset("cifar_fs", tmp_path / "root")
        assert opened["test"].semantics.tolist() == [[2, 0]]
        data.check_pack(folder, thorough=True)
        assert len(list(folder.glob("*semantics*"))) == 3
        with pytest.raises(common.ScriptError, match="no vector for 1 of 1"):
            glove.add_to_pack(folder, glove.Table({"wolf": np.zeros(2, np.float32)}, "small"))
        assert data.open_dataset("cifar_fs", tmp_path / "root")["test"].semantics.shape == (1, 2)

    def test_objects_in_a_table_are_not_unpickled(self, tmp_path):
        path = tmp_path / "t.npz"
        np.savez(path, names=np.array(["a"], dtype=object), vectors=np.zeros((1, 2)))
        with pytest.raises(common.ScriptError, match="not a table"):
            glove.Table.read(path, ["a"])


def test_square_keeps_the_centre():
    """The wide image loses its sides, the shorter side fills the square."""
    pixels = np.zeros((3, 8, 16), dtype=np.uint8)
    pixels[0, :, 4:12] = 200
    square = images.decode_square(png(pixels), "x", 8)
    assert (square[0] == 200).all() and (square[1:] == 0).all()
