import unicodedata

import pytest
import torch

from fslib.glyphs import FACES, _font, character_pool, name_vectors, render_glyphs, superclass_of


@pytest.fixture(scope="module")
def small():
    return render_glyphs(classes=25, per_class=8, side=32, seed=3)


def test_sizes_types_and_split(small):
    assert {k: v.classes for k, v in small.items()} == {"train": 16, "val": 4, "test": 5}
    for part in small.values():
        assert part.images.shape == (part.classes * 8, 3, 32, 32)
        assert part.images.dtype == torch.uint8
        assert part.counts.tolist() == [8] * part.classes
        assert part.labels.tolist() == sorted(part.labels.tolist())
        assert len(part.digest) == 64
    names = [name for part in small.values() for name in part.class_names]
    assert len(set(names)) == 25


def test_default_split_is_64_16_20():
    parts = render_glyphs(per_class=1)
    assert [parts[k].classes for k in ("train", "val", "test")] == [64, 16, 20]


def test_repeatable_in_any_order_of_calls(small):
    torch.rand(7)  # torch's own generator plays no part
    render_glyphs(classes=10, per_class=2, seed=9)
    again = render_glyphs(classes=25, per_class=8, side=32, seed=3)
    for split, part in small.items():
        assert torch.equal(part.images, again[split].images)
        assert part.digest == again[split].digest
    other = render_glyphs(classes=25, per_class=8, side=32, seed=4)
    assert other["train"].digest != small["train"].digest


def test_pool_has_no_two_alike_and_every_face_has_it():
    pool = character_pool()
    assert len(pool) == len(set(pool)) >= 150
    for face in FACES:
        assert {ord(c) for c in pool} <= set(_font(face).get_charmap())
    alike = ("AΑА", "BВ", "Cc", "Oo", "HН", "PР", "Xx")  # noqa: RUF001
    for group in alike:
        assert sum(c in pool for c in group) <= 1, group
    scripts = {unicodedata.name(c).split()[0] for c in pool}
    assert {"LATIN", "GREEK", "CYRILLIC", "ARMENIAN", "GEORGIAN", "DIGIT"} <= scripts


def test_word_vectors():
    vectors = name_vectors(["LATIN SMALL LETTER A", "LATIN SMALL LETTER B", "INFINITY"])
    assert vectors.dtype == torch.float32
    # words A, B, INFINITY, LATIN, LETTER, SMALL; two names share three of four words
    assert vectors.shape == (3, 6)
    expected = torch.tensor([[1, 0.75, 0], [0.75, 1, 0], [0, 0, 1]])
    torch.testing.assert_close(vectors @ vectors.T, expected)


def test_vectors_share_columns_over_splits(small):
    assert len({part.semantics.shape[1] for part in small.values()}) == 1
    for part in small.values():
        torch.testing.assert_close(part.semantics.norm(dim=1), torch.ones(part.classes))


def test_superclass():
    assert superclass_of("LATIN SMALL LETTER A WITH ACUTE") == "latin small"
    assert superclass_of("GEORGIAN LETTER ANI") == "georgian"
    assert superclass_of("DIGIT FOUR") == "digit"
    assert superclass_of("INFINITY") == "symbol"


def test_classes_differ_more_than_their_images():
    """The character itself is in the pictures: class means differ beyond chance."""
    part = render_glyphs(classes=5, per_class=200, side=16)["train"]
    light = part.images.float().mean(1).flatten(1)
    light = light - light.mean(1, keepdim=True)
    halves = [
        torch.stack([light[part.rows_of(c)[start::2]].mean(0) for c in range(part.classes)])
        for start in (0, 1)
    ]
    similarity = (
        torch.nn.functional.normalize(halves[0], dim=1)
        @ torch.nn.functional.normalize(halves[1], dim=1).T
    )
    assert similarity.argmax(1).tolist() == list(range(part.classes))


@pytest.mark.parametrize("wrong", [{"classes": 4}, {"classes": 10_000}, {"per_class": 0}])
def test_bad_sizes(wrong):
    with pytest.raises(ValueError, match="choose"):
        render_glyphs(**wrong)
