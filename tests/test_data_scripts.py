"""The data scripts on tiny archives of the published layouts: CIFAR-FS and Flowers-102."""

import errno
import io
import json
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_archives import (
    CLASSES,
    accept,
    fails,
    make_pictures,
    make_split,
    png,
    write_cifar100,
    write_tar,
    write_zip,
)

from data_scripts import cifar_fs, common, fetch, flowers102
from fslib import data


@pytest.fixture
def pictures():
    return make_pictures()


@pytest.fixture
def split_file(tmp_path):
    return make_split(tmp_path)


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
