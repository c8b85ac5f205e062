import matplotlib

matplotlib.use("agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch

from fslib import plots
from fslib.data import ImageSet
from fslib.episodes import draw_episodes
from fslib.plots.style import METHODS, WIDTH, mosaic, signed, to_pixels


@pytest.fixture(autouse=True)
def style():
    plots.use_book_style()
    yield
    plt.close("all")


def texts(figure):
    return [t.get_text() for t in figure.findobj(matplotlib.text.Text) if t.get_text()]


def test_white_background():
    assert plt.rcParams["savefig.facecolor"] == "white"
    assert plt.figure().get_facecolor() == (1, 1, 1, 1)


def test_colours_are_fixed_and_distinct():
    assert len({colour for _, colour in METHODS.values()}) == len(METHODS)
    assert plots.colour_of("bml") == plots.colour_of("bml_local") == METHODS["bml"][1]
    assert plots.colour_of("protonet_traml") != plots.colour_of("protonet")
    assert plots.colour_of("am3_traml") == METHODS["am3_traml"][1]
    assert plots.label_of("my own") == "my own"


def test_names_and_numbers():
    assert plots.short_name("LATIN CAPITAL LETTER A") == "Latin capital A"
    assert plots.short_name("LATIN SMALL LETTER A") == "Latin small a"
    assert plots.short_name("DIGIT FOUR") == "Digit four"
    assert plots.short_name("maple_tree") == "maple tree"
    assert plots.short_name("a very long name of a class in many lines", 12).count("\n") == 1
    assert signed(-1.234) == "\N{MINUS SIGN}1.23"
    assert signed(1.2, plus=True) == "+1.20"


def test_mosaic_puts_each_image_in_its_cell():
    images = torch.arange(6, dtype=torch.uint8).reshape(2, 3, 1, 1, 1).expand(2, 3, 3, 4, 4)
    picture = mosaic(images, gap=1)
    assert picture.shape == (9, 14, 3)
    assert picture[0, 0, 0] == 0 and picture[8, 13, 0] == 5 and picture[5, 5, 1] == 4
    assert (picture[4] == 255).all() and (picture[:, 4] == 255).all()
    assert to_pixels(torch.full((3, 2, 2), 1.5)).max() == 1


def test_episode_shows_its_own_images():
    images = torch.arange(40, dtype=torch.uint8).reshape(40, 1, 1, 1).expand(40, 3, 8, 8)
    labels = torch.arange(4).repeat_interleave(10)
    data = ImageSet("toy", "test", images, labels, ("oak", "ash", "elm", "fir"))
    episodes = draw_episodes(labels, episodes=3, way=3, shot=2, query=5)
    figure = plots.show_episode(data, episodes, 1, query=4)
    support, query = (axis.images[0].get_array() for axis in figure.axes)
    assert support[0, 0, 0] == episodes.support[1][0, 0]
    assert query[-1, -1, 0] == episodes.query[1][2, 3]
    names = [t.get_text() for t in figure.axes[0].get_yticklabels()]
    assert names == [data.class_names[c] for c in episodes.classes[1]]
    assert figure.axes[1].get_title("left") == "Query (4 of 5 a class)"


def test_learning_curve_leaves_out_missing_epochs():
    rows = [{"epoch": i, "loss": 1 / i, "val_1_shot": 50 + i if i % 2 else None} for i in (1, 2, 3)]
    figure = plots.learning_curve({"ce": rows, "bml": pd.DataFrame(rows)})
    left, right = figure.axes
    assert left.lines[0].get_ydata().tolist() == pytest.approx([1, 1 / 2, 1 / 3])
    assert right.lines[0].get_xdata().tolist() == [1, 3]
    assert right.get_title("left") == "Validation accuracy, 1 shot (%)"
    assert [line.get_color() for line in left.lines] == [METHODS[m][1] for m in ("ce", "bml")]
    without = plots.learning_curve({"ce": [{"epoch": 1, "loss": 2.0}]})
    assert len(without.axes) == 1


def test_runs_of_one_method_get_different_colours():
    rows = [{"epoch": 1, "loss": 1.0}, {"epoch": 2, "loss": 0.5}]
    figure = plots.learning_curve({"bml": rows, "bml_local": rows, "anything": rows})
    assert len({line.get_color() for line in figure.axes[0].lines}) == 3


def test_bars_show_mean_and_interval():
    table = pd.DataFrame(
        {"method": ["ce", "bml"] * 2, "shot": [1, 1, 5, 5], "mean": [60, 65, 75, 80], "ci95": 0.5}
    )
    figure = plots.accuracy_bars(table, group="shot", start=20)
    assert [axis.get_title("left") for axis in figure.axes] == ["1 shot", "5 shot"]
    bar = figure.axes[1].patches[1]
    assert (bar.get_x(), bar.get_width()) == (20, 60)
    assert "80.0 ± 0.5" in texts(figure)
    assert figure.get_size_inches()[0] <= WIDTH + 1e-6


def test_interval_plot_fills_clear_differences_only():
    table = pd.DataFrame({"label": ["a", "b", "c"], "mean": [1, 0.1, -2], "ci95": [0.5, 0.5, 0.5]})
    axis = plots.interval_plot(table).axes[0]
    points = [line for line in axis.lines if line.get_marker() == "o"]
    assert [p.get_markerfacecolor() == "white" for p in points] == [False, True, False]
    assert "\N{MINUS SIGN}2.00 ± 0.50" in texts(axis.figure)


def test_a_curve_draws_mean_and_interval():
    _, axis = plt.subplots()
    colour = plots.interval_curve(axis, (1, 5), [(40.0, 1.0, 0.3), (60.0, 2.0, 0.4)], label="here")
    (line,) = axis.containers[0].lines[2]
    assert colour == axis.lines[0].get_color()
    assert [segment[:, 1].tolist() for segment in line.get_segments()] == [[39, 41], [58, 62]]


def test_panels_share_a_legend_and_draw_intervals_as_bands():
    numbers = {"paper": ((0, 1), [1.0, 2.0], ":", "black")}
    figure = plots.curve_panels(
        {
            "1 shot": {"here": ((0, 1), [(1.0, 0.5), (2.0, 0.25, 9.0)], "o-", "red")} | numbers,
            "5 shots": {"here": ((0, 1), [(3.0, 0.5), (4.0, 0.5)], "o-", "red")},
        },
        "m",
        "points",
        zero="xy",
    )
    left, right = figure.axes
    assert (left.get_title("left"), left.get_xlabel(), left.get_ylabel()) == (
        "1 shot",
        "m",
        "points",
    )
    band = left.collections[0].get_paths()[0].vertices
    assert {(0, 0.5), (0, 1.5), (1, 1.75), (1, 2.25)} <= set(map(tuple, band.tolist()))
    assert [list(line.get_ydata()) for line in left.lines[:2]] == [[1, 2], [1, 2]]
    assert len(left.lines) == 4 and len(right.lines) == 3  # two of them mark zero
    assert [t.get_text() for t in figure.legends[0].get_texts()] == ["here", "paper"]


def test_many_learning_curves_have_their_legend_below():
    histories = {
        f"run {i}": [{"epoch": 1, "loss": 1.0}, {"epoch": 2, "loss": 0.5}] for i in range(5)
    }
    assert len(plots.learning_curve(histories).legends) == 1
    few = plots.learning_curve(dict(list(histories.items())[:4]))
    assert not few.legends and few.axes[0].get_legend()


def test_scatter_draws_every_class_once():
    labels = torch.arange(12).repeat_interleave(5)
    xy = np.random.default_rng(0).normal(size=(60, 2))
    axis = plots.scatter_embedding(xy, labels, [f"class {c}" for c in range(12)])
    assert [len(c.get_offsets()) for c in axis.collections] == [5] * 12
    looks = {
        (tuple(c.get_facecolor()[0]), c.get_paths()[0].vertices.tobytes()) for c in axis.collections
    }
    assert len(looks) == 12


def test_heatmap_overlay_grid():
    figure = plots.heatmap_overlay(
        torch.zeros(2, 3, 8, 8), torch.rand(2, 3, 8, 8), ["a", "b", "c"], ["x", "y"]
    )
    pictures = [axis for axis in figure.axes if axis.images]
    assert [len(axis.images) for axis in pictures] == [1, 2, 2, 2] * 2
    assert {"a", "b", "c", "x", "y", "low", "high"} <= set(texts(figure))


def test_ranking_panel_orders_by_score():
    logits = torch.tensor([[0.0, 2.0, 1.0]])
    shades = torch.tensor([10, 20, 30], dtype=torch.uint8).view(3, 1, 1, 1).expand(3, 3, 4, 4)
    figure = plots.ranking_panel(shades[:1], torch.tensor([0]), logits, shades, ["p", "q", "r"])
    shown = [int(a.images[0].get_array()[0, 0, 0]) for a in figure.axes if a.images]
    assert shown == [10, 20, 30, 10]  # the query, then the classes from best to worst
    labels = [a.get_xlabel() for a in figure.axes if a.images]
    assert labels[1:] == ["q\n2.00", "r\n1.00", "p\n0.00"]


def test_grid_heat_and_confusion_numbers():
    figure = plots.grid_heat([[1.0, 2.0], [float("nan"), 4.0]], [1, 2], [3, 4])
    assert [t.get_text() for t in figure.axes[0].texts] == ["1.0", "2.0", "4.0"]
    frame = figure.axes[0].patches[0]
    assert (round(frame.get_x()), round(frame.get_y())) == (1, 1)
    labels, predictions = torch.tensor([0, 0, 0, 0, 1]), torch.tensor([0, 0, 0, 1, 1])
    figure = plots.confusion(labels, predictions, ["a", "b"])
    assert [t.get_text() for t in figure.axes[0].texts] == ["75", "25", "0", "100"]
