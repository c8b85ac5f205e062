"""The common look inside: samples, panels and tables."""

import dataclasses

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch

from fslib.analysis import inside
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
