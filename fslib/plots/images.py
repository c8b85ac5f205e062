"""Figures made of images: episodes, grids, heat maps, rankings. Import them from `fslib.plots`."""

import textwrap
from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from fslib.data import ImageSet
from fslib.episodes import Episodes
from fslib.plots.style import (
    RIGHT,
    WIDTH,
    WRONG,
    bare,
    mosaic,
    picture_grid,
    short_name,
    signed,
    to_pixels,
)


def show_episode(imageset: ImageSet, episodes: Episodes, e: int = 0, query: int = 8) -> Figure:
    """One episode, a row for each way: support images left, the first `query` queries right."""
    support = imageset.images[episodes.support[e]]
    queries = imageset.images[episodes.query[e][:, :query]]
    way, shot = support.shape[:2]
    shown = queries.shape[1]
    cell = min(0.62, (WIDTH - 1.6) / (shot + shown + 0.5))
    figure, axes = plt.subplots(
        1,
        2,
        figsize=(WIDTH, cell * way + 0.35),
        width_ratios=(shot, shown),
        gridspec_kw={"wspace": 0.04},
    )
    total = episodes.query.shape[2]
    titles = (
        "Support",
        f"Query ({shown} of {total} a class)" if shown < total else "Query",
    )
    for axis, images, title in zip(axes, (support, queries), titles, strict=True):
        axis.imshow(mosaic(images))
        axis.set_title(title)
        bare(axis)
    step = imageset.size[0] + 2
    names = [short_name(imageset.class_names[c], 20) for c in episodes.classes[e].tolist()]
    axes[0].set_yticks(np.arange(way) * step + step / 2 - 1, names)
    axes[0].tick_params(length=0)
    return figure


def show_images(
    images: Tensor, titles: Sequence[str] | None = None, columns: int = 8, title: str = ""
) -> Figure:
    """Images (N, 3, H, W) in a grid, each with its own title if there are `titles`."""
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    cell = min(1.0, WIDTH / columns)
    height = cell + (0.34 if titles else 0)
    size = (cell * columns, height * rows + 0.25 * bool(title))
    figure, grid = picture_grid(rows, columns, size)
    for i, (axis, pixels) in enumerate(zip(grid.flat, to_pixels(images), strict=False)):
        axis.imshow(pixels)
        if titles:
            axis.set_title(short_name(titles[i], 15), size=7, weight="normal", loc="center", pad=2)
    if title:
        figure.suptitle(title, x=0.01, ha="left", size=9.5, weight="bold")
    return figure


def heatmap_overlay(
    images: Tensor,
    maps: Tensor,
    titles: Sequence[str],
    row_titles: Sequence[str] | None = None,
) -> Figure:
    """Each image, and beside it the image under each of its heat maps.

    Args:
        images: (N, 3, H, W), one row each.
        maps: (N, K, H, W) in [0, 1] (`analysis.heatmaps.to_unit_range`), one column each.
        titles: K column titles.
        row_titles: N titles left of the rows.
    """
    count, kinds = maps.shape[:2]
    cell = min(1.25, (WIDTH - 1.8) / (kinds + 1))
    size = (cell * (kinds + 1) + 1.8, cell * count + 0.4)
    figure, grid = picture_grid(count, kinds + 1, size)
    pixels = to_pixels(images)
    for i in range(count):
        for k, axis in enumerate(grid[i]):
            # The colours lie over a grey image: its own would mix with those of the map.
            axis.imshow(pixels[i] if k == 0 else pixels[i].mean(-1), cmap="gray")
            if k:
                shown = axis.imshow(
                    maps[i, k - 1].cpu().numpy(), cmap="inferno", vmin=0, vmax=1, alpha=0.6
                )
            if i == 0:
                text = textwrap.fill(titles[k - 1], 13) if k else "Image"
                axis.set_title(text, size=7.5, loc="center", weight="normal")
        if row_titles:
            grid[i, 0].set_ylabel(
                short_name(row_titles[i], 14), rotation=0, ha="right", va="center", size=8
            )
    bar = figure.colorbar(shown, ax=grid, shrink=min(1.0, 1.6 / count), aspect=18, ticks=[0, 1])
    bar.ax.set_yticklabels(["low", "high"])
    bar.solids.set_alpha(1)
    bar.outline.set_visible(False)
    return figure


def ranking_panel(
    queries: Tensor,
    labels: Tensor,
    logits: Tensor,
    prototypes: Tensor,
    names: Sequence[str],
) -> Figure:
    """Queries of one episode, each with the classes from most to least similar.

    A class is shown by a support image, its name and its score; the true one is framed.

    Args:
        queries: Images (Q, 3, H, W); about five fit a page.
        labels: int64 (Q,), the true way.
        logits: (Q, way).
        prototypes: One support image of each way, (way, 3, H, W).
        names: Names of the ways.
    """
    count, way = logits.shape
    cell = min(1.15, WIDTH / (way + 1.25))
    size = (cell * (way + 1.25), (cell + 0.34) * count + 0.3)
    ratios = (1, 0.15, *[1] * way)
    figure, grid = picture_grid(count, way + 2, size, (0.03, 0.03, 0, 0.02), ratios)
    query_pixels, class_pixels = to_pixels(queries), to_pixels(prototypes)
    order = logits.argsort(dim=1, descending=True, stable=True).tolist()
    for q in range(count):
        true = int(labels[q])
        grid[q, 1].set_visible(False)
        grid[q, 0].imshow(query_pixels[q])
        grid[q, 0].set_xlabel(short_name(names[true], 15), size=7, labelpad=2)
        for place, way_index in enumerate(order[q]):
            axis = grid[q, place + 2]
            axis.imshow(class_pixels[way_index])
            name = short_name(names[way_index], 15)
            axis.set_xlabel(f"{name}\n{signed(logits[q, way_index])}", size=7, labelpad=2)
            if way_index == true:
                colour = RIGHT if place == 0 else WRONG
                axis.spines[:].set(visible=True, color=colour, linewidth=2.5)
                axis.xaxis.label.set(color=colour, weight="bold")
            if q == 0:
                axis.set_title(f"{place + 1}", size=8, loc="center")
    grid[0, 0].set_title("Query", size=8, loc="center")
    return figure


def sampling_panel(
    queries: Tensor, supports: Tensor, cells: Tensor, places: Tensor, names: Sequence[str]
) -> Figure:
    """Pairs of images, a cell of the query and the nine places that DMF makes its filter from.

    Args:
        queries: Images (M, 3, H, W).
        supports: Images (M, 3, H, W).
        cells: int64 (M, 2), row and column of the cell.
        places: (M, h, w, 9, 2) of `fslib.heads.alignment.sampled_places`.
        names: Titles of the pairs.
    """
    count, columns = len(queries), min(3, len(queries))
    rows = -(-count // columns)
    size, pads = (WIDTH, 1.3 * rows + 0.1), (0.02, 0.03, 0.01, 0.02)
    figure, grid = picture_grid(rows, 2 * columns, size, pads)
    for axis in grid.flat:
        axis.set_visible(False)
    for i, pair in enumerate(zip(to_pixels(queries), to_pixels(supports), strict=True)):
        side = queries.shape[2:]
        scale = torch.tensor(side) / torch.tensor(places.shape[1:3])  # pixels a cell
        row, column = cells[i].tolist()
        here = (cells[i] + 0.5) * scale - 0.5
        dots = (places[i, row, column].cpu() + 0.5) * scale - 0.5
        for axis, pixels, title in zip(
            grid[i // columns, 2 * (i % columns) :], pair, ("query", "support"), strict=False
        ):
            axis.set_visible(True)
            axis.imshow(pixels)
            # A margin, so that points outside the image can be seen.
            axis.set(xlim=(-4, side[1] + 3), ylim=(side[0] + 3, -4))
            if i < columns:
                axis.set_title(title, size=7.5, weight="normal", loc="center", pad=1)
            filled = RIGHT if title == "query" else "none"
            axis.plot(here[1], here[0], "o", ms=6, mfc=filled, mec=RIGHT, mew=1.4)
        axis.plot(dots[:, 1], dots[:, 0], "o", ms=3.5, color=WRONG, mec="white", mew=0.4)
        name = short_name(names[i], 26).replace("\n", " ")
        grid[i // columns, 2 * (i % columns)].set_xlabel(name, size=7.5, loc="left", labelpad=1)
    return figure
