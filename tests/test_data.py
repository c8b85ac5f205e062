"""Packed image sets: round trip, selection, and every way a pack can be broken."""

import errno
import hashlib
import json
import os
import shutil

import numpy as np
import pytest
import torch
from conftest import coloured

from fslib import data, glyphs
from fslib.data import DataCorrupt, DataMissing, ImageSet, PackSplit, open_dataset, write_pack


@pytest.fixture
def pack(tmp_path):
    """A pack of two splits, with everything a split can hold in the first."""
    rng = np.random.default_rng(0)
    train = PackSplit(
        images=rng.integers(0, 256, (6, 3, 8, 10), dtype=np.uint8),
        labels=np.array([0, 1, 2, 0, 1, 2]),
        class_names=("a", "b", "ç"),
        superclass=("x", "x", "y"),
        original_part=np.array([True, False] * 3),
        semantics=rng.normal(size=(3, 4)).astype(np.float32),
    )
    test = PackSplit(rng.integers(0, 256, (2, 3, 8, 10), dtype=np.uint8), np.array([0, 0]), ("d",))
    splits = {"train": train, "test": test}
    folder = write_pack(tmp_path, "toy", splits, licence="free", source="here", notes={"n": 1})
    return folder, splits


def test_a_pack_opens_as_it_was_written(pack):
    folder, splits = pack
    opened = open_dataset("toy", folder.parent)
    assert list(opened) == ["train", "test"]
    train, source = opened["train"], splits["train"]
    assert torch.equal(train.images, torch.from_numpy(source.images))
    assert train.images.dtype == torch.uint8
    assert train.labels.tolist() == [0, 1, 2, 0, 1, 2] and train.labels.dtype == torch.int64
    assert train.class_names == ("a", "b", "ç") and train.superclass == ("x", "x", "y")
    assert torch.equal(train.semantics, torch.from_numpy(source.semantics))
    assert train.original_part.tolist() == [True, False] * 3
    assert (train.classes, train.size, len(train)) == (3, (8, 10), 6)
    assert train.counts.tolist() == [2, 2, 2] and train.rows_of(1).tolist() == [1, 4]
    saved = (folder / "train_images.npy").read_bytes()
    assert train.digest == hashlib.sha256(saved).hexdigest()
    assert opened["test"].superclass is None and opened["test"].semantics is None
    content = json.loads((folder / "pack.json").read_text())
    assert (content["licence"], content["source"], content["notes"]) == ("free", "here", {"n": 1})
    assert content["splits"]["train"]["size"] == [8, 10]


def test_changing_opened_images_never_reaches_the_file(pack):
    folder, splits = pack
    open_dataset("toy", folder.parent)["train"].images.zero_()
    again = open_dataset("toy", folder.parent)["train"].images
    assert torch.equal(again, torch.from_numpy(splits["train"].images))


def test_packing_again_replaces_the_pack(pack):
    folder, splits = pack
    write_pack(folder.parent, "toy", {"test": splits["test"]}, licence="", source="")
    assert list(open_dataset("toy", folder.parent)) == ["test"]
    assert [p.name for p in folder.parent.iterdir()] == ["toy"]
    assert not (folder / "train_images.npy").exists()


def test_subset_renumbers_the_classes_and_keeps_what_belongs_to_them(pack):
    folder, _ = pack
    train = open_dataset("toy", folder.parent)["train"]
    part = train.subset(classes=[2, 0])
    assert part.class_names == ("ç", "a") and part.superclass == ("y", "x")
    assert part.labels.tolist() == [0, 0, 1, 1]
    assert torch.equal(part.images, train.images[[2, 5, 0, 3]])
    assert torch.equal(part.semantics, train.semantics[[2, 0]])
    assert part.original_part.tolist() == train.original_part[[2, 5, 0, 3]].tolist()
    first = train.subset(per_class=1)
    assert torch.equal(first.images, train.images[:3]) and first.classes == 3


def test_other_images_have_another_digest():
    whole = coloured()
    parts = [
        whole.subset(per_class=3),
        whole.subset(per_class=4),
        whole.subset(classes=[1, 0]),
        whole.take(torch.arange(10)),
        whole.resized(8),
    ]
    digests = {whole.digest, *(part.digest for part in parts)}
    assert len(digests) == 6 and "" not in digests
    assert whole.subset(per_class=3).digest == parts[0].digest
    names = whole.class_names
    relabelled = ImageSet("coloured", "train", whole.images, whole.labels.flip(0), names)
    assert relabelled.digest != whole.digest


def test_resizing_averages_where_it_shrinks():
    image = torch.zeros(2, 3, 4, 4, dtype=torch.uint8)
    image[1, :, :2] = 200
    small = ImageSet("x", "train", image, torch.zeros(2).long(), ("a",)).resized(2)
    assert small.size == (2, 2) and small.images[0].max() == 0
    # A triangular kernel of 2 pixels to either side: 1/7 of the upper cell is the lower half.
    assert small.images[1, 0, :, 0].tolist() == pytest.approx([171, 29], abs=1)
    assert small.resized(2) is small


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (torch.zeros(2, 3, 4, 4), [0, 0], "must be uint8"),
        (torch.zeros(2, 1, 4, 4, dtype=torch.uint8), [0, 0], "must be uint8"),
        (torch.zeros(2, 3, 4, 4, dtype=torch.uint8), [0], "2 images but 1 labels"),
        (torch.zeros(2, 3, 4, 4, dtype=torch.uint8), [0, 1], r"must lie in 0\.\.0"),
        (torch.zeros(2, 3, 4, 4, dtype=torch.uint8), [0, -1], r"must lie in 0\.\.0"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(images, labels, message):
    with pytest.raises(ValueError, match=message):
        ImageSet("x", "train", images, torch.tensor(labels), ("a",))


def test_missing_data_names_file_and_command(tmp_path):
    with pytest.raises(DataMissing) as error:
        open_dataset("cifar_fs", tmp_path)
    assert str(tmp_path / "cifar_fs") in str(error.value)
    assert f"`python -m data_scripts.cifar_fs --root {tmp_path}`" in str(error.value)
    with pytest.raises(DataMissing, match=r"`python -m data_scripts\.flowers102 --root"):
        open_dataset("flowers102", tmp_path)
    for name in ("birds", "images", "own_images"):
        with pytest.raises(DataMissing, match=rf"own_images FOLDER --name {name} --root"):
            open_dataset(name, tmp_path)


def test_a_missing_split_is_named_with_the_command_that_makes_it(pack):
    folder, _ = pack
    opened = open_dataset("toy", folder.parent)
    assert "val" not in opened and opened.get("val") is None
    with pytest.raises(DataMissing) as error:
        opened["val"]
    assert str(error.value) == (
        f"data set 'toy' at {folder} has no split 'val', only train, test: pack it again with "
        "`python -m data_scripts.own_images FOLDER --name toy --val 0.2 --test 0.2 --force "
        f"--root {folder.parent}`"
    )


@pytest.mark.parametrize("code", [errno.EACCES, errno.EPERM, errno.EROFS])
def test_a_read_only_folder_is_no_hindrance_to_the_built_in_images(tmp_path, monkeypatch, code):
    drawn = []

    def draw(classes, per_class):
        drawn.append((classes, per_class))
        return {"train": coloured()}

    def refuse(path):
        raise OSError(code, os.strerror(code), str(path))

    monkeypatch.setattr(glyphs, "render_glyphs", draw)
    with monkeypatch.context() as patch:
        patch.setattr(data, "FileLock", refuse)
        for _ in range(2):
            assert len(open_dataset("glyphs_small", tmp_path)["train"]) == 120
        assert len(drawn) == 2 and list(tmp_path.iterdir()) == []
    open_dataset("glyphs_small", tmp_path)
    assert len(drawn) == 3
    monkeypatch.setattr(data, "FileLock", refuse)
    opened = open_dataset("glyphs_small", tmp_path)["train"]
    assert len(drawn) == 3 and torch.equal(opened.images, coloured().images)


def test_other_failures_of_the_data_folder_are_told(tmp_path, monkeypatch):
    def full(path):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(data, "FileLock", full)
    with pytest.raises(OSError, match="Input/output error"):
        open_dataset("glyphs_small", tmp_path)


def cut(folder):
    path = folder / "train_images.npy"
    path.write_bytes(path.read_bytes()[:-5])


def flip(folder):
    path = folder / "train_images.npy"
    path.write_bytes(b"garbage" + path.read_bytes()[7:])


def pack_json(text):
    return lambda folder: (folder / "pack.json").write_text(text)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (cut, r"train_images\.npy has 1563 of 1568 bytes"),
        (lambda folder: (folder / "train_labels.npy").unlink(), r"has 0 of \d+ bytes"),
        (flip, r"train_images\.npy cannot be read"),
        (lambda folder: (folder / "pack.json").unlink(), r"or no pack \(no pack\.json\)"),
        (pack_json('{"format": 1, "spl'), r"pack\.json cannot be read"),
        (pack_json("[]"), r"pack\.json cannot be read"),
        (pack_json('{"format": 1, "splits": {"train": {}}}'), r"pack\.json cannot be read"),
        (pack_json('{"format": 9, "splits": {}}'), "has pack format 9, this fslib reads 1"),
    ],
)
def test_a_damaged_pack_says_what_and_how_to_mend_it(pack, damage, message):
    folder, _ = pack
    damage(folder)
    with pytest.raises(DataCorrupt, match=message) as error:
        open_dataset("toy", folder.parent)
    assert "pack" in str(error.value) and "again" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_changed_byte_is_found_by_the_thorough_check_only(pack):
    folder, _ = pack
    path = folder / "train_images.npy"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    data.check_pack(folder)
    with pytest.raises(DataCorrupt, match="was changed after packing"):
        data.check_pack(folder, thorough=True)


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), OSError("30 requested and 2 written")]
)
def test_a_full_disk_leaves_the_old_pack_and_nothing_half_written(pack, monkeypatch, error):
    folder, splits = pack
    written = []

    def save(path, array, **options):
        if written:
            raise error
        written.append(path.write_bytes(b"half"))

    monkeypatch.setattr(np, "save", save)
    with pytest.raises(OSError, match=r"no space left under .* needs about 0 MB .* free some"):
        write_pack(folder.parent, "toy", splits, licence="", source="")
    monkeypatch.undo()
    assert [p.name for p in folder.parent.iterdir()] == ["toy"]
    assert len(open_dataset("toy", folder.parent)["train"]) == 6


def test_a_pack_left_half_written_by_a_kill_is_no_pack(pack):
    folder, splits = pack
    shutil.move(folder, folder.with_name(".toy.partial"))
    (folder.with_name(".toy.partial") / "pack.json").unlink()
    with pytest.raises(DataMissing):
        open_dataset("toy", folder.parent)
    write_pack(folder.parent, "toy", splits, licence="", source="")
    assert [p.name for p in folder.parent.iterdir()] == ["toy"]


@pytest.mark.parametrize("name", ["oak", "holiday.npy", "IMG_1.jpg"])
def test_a_folder_of_something_else_is_never_replaced(pack, name):
    folder, splits = pack
    (folder / "pack.json").unlink()
    (folder / name).mkdir()
    before = sorted(p.name for p in folder.iterdir())
    message = f"holds {name}, so it is no pack: choose another --name or --root"
    with pytest.raises(FileExistsError, match=message):
        write_pack(folder.parent, "toy", splits, licence="", source="")
    assert sorted(p.name for p in folder.iterdir()) == before
    assert [p.name for p in folder.parent.iterdir()] == ["toy"]


def test_unknown_splits_are_refused(tmp_path, pack):
    with pytest.raises(ValueError, match="splits are train, val, test, not dev"):
        write_pack(tmp_path, "x", {"dev": pack[1]["test"]}, licence="", source="")
