"""The common look inside: samples, panels and tables."""

import dataclasses

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch

from fslib.analysis import inside
from fslib.data import ImageSet
from fslib.episodes import draw_episodes
from fslib.plots.style import use_book_style


@pytest.fixture
def samples(coloured_sets):
    return inside.class_samples(coloured_sets, classes=4, per_class=12)


@pytest.fixture
def maps(samples):
    """Features that know the class, and features that are noise."""
    noise = torch.Generator().manual_seed(1)
    made = {"knows": {}, "noise": {}}
    for kind, images in samples.items():
        one_hot = torch.nn.functional.one_hot(images.labels, 8).float()[:, :, None, None]
        jitter = 0.01 * torch.randn(len(images), 8, 1, 1, generator=noise)
        made["knows"][kind] = one_hot + jitter
        made["noise"][kind] = torch.randn(len(images), 8, 1, 1, generator=noise)
    return made


def test_samples_hold_as_many_images_of_every_class(samples):
    assert list(samples) == ["base", "novel"]
    for images in samples.values():
        assert torch.bincount(images.labels).tolist() == [12] * 4


def test_a_silhouette_tells_classes_from_noise(maps, samples):
    table = inside.silhouette_table(maps, samples, draws=20).set_index("method")
    assert (table.loc["knows", ["base", "novel"]] > 0.9).all()
    assert (table.loc["noise", ["base", "novel"]] < 0.1).all()
    assert (table["base low"] <= table["base"]).all()


def test_a_change_of_silhouette_is_paired(maps, samples):
    said = inside.silhouette_change(maps, samples, "knows", "noise", draws=20)
    table = inside.silhouette_table(maps, samples, draws=20).set_index("method")
    for kind in ("base", "novel"):
        change = table.loc["knows", kind] - table.loc["noise", kind]
        assert f"{change:+.3f} [" in said and f"] on {kind} classes" in said
    zero = "+0.000 [+0.000, +0.000]"
    said = inside.silhouette_change(maps, samples, "noise", "noise", draws=20)
    assert said == f"{zero} on base classes and {zero} on novel classes"


def test_the_panel_has_a_column_a_network_and_a_row_a_sample(maps, samples):
    figure = inside.embedding_panel(maps, samples)
    titles = [axis.get_title(loc="left") or axis.get_title() for axis in figure.axes]
    assert titles == ["knows, base", "noise, base", "knows, novel", "noise, novel"]
    plt.close(figure)


def test_a_ranking_that_is_the_reference_has_a_tau_of_one(coloured_sets):
    images = coloured_sets["test"]
    vectors = torch.randn(images.classes, 6, generator=torch.Generator().manual_seed(0))
    images = dataclasses.replace(images, semantics=vectors, superclass=None)
    table = inside.ranking_table({"same": vectors[images.labels]}, images, draws=20)
    assert table.loc[0, "word vectors"] == pytest.approx(1.0)
    assert "superclasses" not in table


def test_brackets_keep_the_numbers():
    shown = inside.bracketed(pd.DataFrame({"a": ["x"], "b": [0.5], "b low": [0.25], "b high": [1]}))
    assert list(shown.columns) == ["a", "b"] and shown.loc[0, "b"] == "0.500 [0.250, 1.000]"


def test_the_heat_is_where_the_class_is(coloured_sets):
    """The class stands in the last position of each map, something common in the first."""
    use_book_style()
    images = coloured_sets["test"]
    maps = torch.zeros(len(images), 8, 2, 2)
    maps[torch.arange(len(images)), images.labels, 1, 1] = 2.0
    maps[:, 7, 0, 0] = 1.0
    task = draw_episodes(images.labels, 1, 3, 1, 4, 0)
    figure = inside.heat_panel({"net": maps}, images, task)
    heats = [
        axis.get_images()[-1].get_array() for axis in figure.axes if len(axis.get_images()) > 1
    ]
    assert len(heats) == 3  # one query of each way
    for heat in heats:
        heat = heat if heat.ndim == 2 else heat[..., 0]
        assert np.unravel_index(heat.argmax(), heat.shape)[0] > heat.shape[0] // 2
    plt.close(figure)


def test_a_place_is_won_where_its_own_class_is_nearest(coloured_sets):
    """Half of the places know the class, the others show the next one: one half is won."""
    images = coloured_sets["test"]
    maps = torch.zeros(len(images), 8, 2, 2)
    rows = torch.arange(len(images))
    for place, shift in ((0, 0), (1, 1)):
        maps[rows, (images.labels + shift) % 5, place, :] = 1.0 + 0.5 * (shift == 0)
    noise = torch.randn(maps.shape, generator=torch.Generator().manual_seed(0))
    won = inside.places_won({"half": maps, "noise": noise}, images)
    # The prototype of a class holds 1.5 of itself and 1 of the next one, so both places are clear.
    assert won["half"] == pytest.approx((50.0, 0.0), abs=1e-6)
    assert won["noise"][0] == pytest.approx(20, abs=3) and 0 < won["noise"][1] < 3
    said = inside.heat_words({"half": maps, "noise": noise}, images)
    assert "50.0 ± 0.0 % (half)" in said and said.endswith("The highest is that of half.")


def test_a_method_is_told_apart_from_another_order_and_not_from_its_own():
    draw = torch.Generator().manual_seed(0)
    words = torch.randn(14, 16, generator=draw)
    images = ImageSet(
        "letters",
        "test",
        torch.zeros(28, 3, 4, 4, dtype=torch.uint8),
        torch.arange(14).repeat(2),
        tuple("abcdefghijklmn"),
        semantics=words,
        superclass=tuple("aabbccddeeffgg"),
    )
    own = words[images.labels]
    other = torch.randn(own.shape, generator=draw)
    said = inside.order_words({"ours": own, "twin": 3 * own, "noise": other}, images, "ours")
    told = said.partition("With word vectors, ours less each of the others is ")[2]
    assert told.startswith("+0.000 [+0.000, +0.000] (twin), ")
    assert told.endswith("apart from noise.")
    # 7 of 91 pairs share a superclass: the root of 2 x 7 x 84 / (91 x 90).
    assert "With superclasses, which tie most pairs, even a perfect order reaches only 0.38" in said


def test_a_place_is_compared_with_all_ways_as_a_loop_would(coloured_sets):
    images = coloured_sets["test"]
    maps = torch.randn((len(images), 3, 2, 1), generator=torch.Generator().manual_seed(2))
    drawn = draw_episodes(images.labels, 4, 5, 1, 5, 11)
    shares = []
    for e in range(4):
        prototypes = maps[drawn.support[e, :, 0]].mean((2, 3))
        hits = [
            int(torch.cosine_similarity(prototypes, maps[i][:, y, 0]).argmax()) == way
            for way in range(5)
            for i in drawn.query[e, way].tolist()
            for y in range(2)
        ]
        shares.append(100 * np.mean(hits))
    mean, ci95 = inside.places_won({"net": maps}, images, episodes=4)["net"]
    assert mean == pytest.approx(np.mean(shares), abs=1e-4) and ci95 > 0


def test_mistakes_of_a_ranking_are_named():
    logits = torch.tensor([[3.0, 1.0, 2.0], [5.0, 1.0, 3.0], [0.0, 1.0, 2.0]])
    said = inside.ranking_words(logits, ["cat", "cup", "fox"], [0, 1, 2])
    assert "first for 2 of 3 queries" in said
    assert "*cup* is taken for *cat* and its own class comes at place 3" in said
    assert "first for 1 of 1 queries. " in inside.ranking_words(
        logits[:1], ["cat", "cup", "fox"], [0]
    )
