"""Folders of one's own images, and tables of word vectors."""

import json
import zipfile

import numpy as np
import pytest
from PIL import Image
from tiny_archives import CLASSES, fails, make_pictures, make_split, png, write_zip

from data_scripts import cifar_fs, common, glove, images, own_images
from fslib import data


@pytest.fixture
def pictures():
    return make_pictures()


@pytest.fixture
def split_file(tmp_path):
    return make_split(tmp_path)


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
        for name in ("../x", *data.GLYPHS, "Glyphs.2"):
            message = fails(own_images.main, folder, "--name", name, capsys=capsys)
            assert f"--name {name!r} cannot be used" in message

    @pytest.mark.parametrize("more", [[], ["--force"]])
    def test_the_photos_survive_a_pack_of_their_name(self, tmp_path, folder, more, capsys):
        before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
        line = [folder, "--name", folder.name, "--root", tmp_path, *more]
        message = fails(own_images.main, *line, capsys=capsys)
        assert "photos holds .cache, so it is no pack: choose another --name" in message
        assert {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()} == before

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
