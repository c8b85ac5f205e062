"""Figures of the spatial contrast: what is framed, what is coloured, what can be clicked."""

import re

import matplotlib.pyplot as plt
import pytest
import torch
from matplotlib.colors import to_hex

from fslib.data import ImageSet
from fslib.plots.contrast import attention_panel, clickable_attention, neighbour_panel
from fslib.plots.style import RIGHT, WRONG, use_book_style


@pytest.fixture(autouse=True)
def style():
    use_book_style()
    yield
    plt.close("all")
    plt.rcdefaults()


@pytest.fixture
def images(generator):
    pixels = torch.randint(256, (6, 3, 8, 8), dtype=torch.uint8, generator=generator)
    labels = torch.tensor([0, 0, 1, 1, 2, 2])
    return ImageSet("toy", "test", pixels, labels, ("cat", "dog", "a_rather_long_name"))


def test_neighbours_are_framed_by_their_class(images):
    figure = neighbour_panel(images, torch.tensor([0, 3]), torch.tensor([[1, 2, 4], [4, 2, 0]]))
    figure.draw_without_rendering()
    shown = [a for a in figure.axes if a.images and a.spines["left"].get_visible()]
    frames = [to_hex(a.spines["left"].get_edgecolor(), keep_alpha=False).upper() for a in shown]
    assert frames == [RIGHT, WRONG, WRONG, WRONG, RIGHT, WRONG]
    assert [a.get_xlabel() for a in figure.axes if a.images][:3] == ["cat", "cat", "dog"]


def test_the_panel_shows_the_attention_of_the_place_that_is_asked(images, generator):
    attention = torch.rand(2, 2, 2, 3, 6, generator=generator).softmax(-1)
    others = images.images[torch.tensor([[1, 2], [4, 5]])]
    figure = attention_panel(
        images.images[:2], (1, 2), others, attention, ["first", "second"], ["cat", "cat"]
    )
    figure.draw_without_rendering()
    heats = [a.images[1].get_array() for a in figure.axes if len(a.images) == 2]
    assert len(heats) == 4
    expected = 6 * attention[0, 1, 1, 2].view(2, 3)
    torch.testing.assert_close(torch.as_tensor(heats[1].data), expected)
    frame = figure.axes[0].patches[0]
    assert frame.get_xy() == pytest.approx((2 * 8 / 3 - 0.5, 3.5))


def test_every_place_can_be_clicked_and_shows_its_own_maps(images, generator):
    attention = torch.rand(2, 2, 2, 4, generator=generator).softmax(-1)
    made = clickable_attention(images.images[0], images.images[1:3], attention).data
    assert made.count('<input type="radio"') == 4 and made.count(" checked") == 1
    name = re.search(r'<div id="(\w+)"', made)[1]
    for place in range(4):
        assert f'id="{name}-{place}"' in made and f'for="{name}-{place}"' in made
        assert f"#{name}-{place}:checked~div .m{place}{{visibility:visible}}" in made
        # In the style sheet: a hidden map of its own style could not be shown by a rule.
        assert "visibility" not in made.split("</style>")[1]
        assert made.count(f'<div class="map m{place}"') == 2  # one in each other image
    assert made.count("<i ") == 2 * 4 * 4 and "<script" not in made
    assert made.count("data:image/png;base64,") == 3


def test_two_tables_on_one_page_do_not_answer_for_each_other(images):
    attention = torch.full((1, 2, 2, 4), 0.25)
    first, second = (
        re.search(r'id="(\w+)"', clickable_attention(*pair, attention).data)[1]
        for pair in [(images.images[0], images.images[:1])] * 2
    )
    assert first != second
