"""All figures of the book, in one look (`style`); those made of images are in `images`.

Every function returns the matplotlib figure, or the axes where it can draw into a given one.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from fslib.plots.images import heatmap_overlay, ranking_panel, show_episode, show_images
from fslib.plots.style import (
    CYCLE,
    HAIR,
    INK,
    MARKERS,
    METHODS,
    QUIET,
    RIGHT,
    WIDTH,
    WRONG,
    bare,
    colour_of,
    label_of,
    short_name,
    signed,
    use_book_style,
)

__all__ = [
    "accuracy_bars",
    "colour_of",
    "confusion",
    "curve_panels",
    "grid_heat",
    "heatmap_overlay",
    "interval_curve",
    "interval_plot",
    "label_of",
    "learning_curve",
    "ranking_panel",
    "scatter_embedding",
    "short_name",
    "show_episode",
    "show_images",
    "use_book_style",
]


def _column_title(column: str) -> str:
    """The title of a column of a training history."""
    if column.startswith("val_"):
        return f"Validation accuracy, {column[4:].replace('_', ' ')} (%)"
    return column.replace("_", " ").capitalize()


def learning_curve(
    histories: Mapping[str, Sequence[Mapping] | pd.DataFrame],
    left: str = "loss",
    right: str = "val_1_shot",
    colours: Mapping[str, str] | None = None,
) -> Figure:
    """Two columns of training histories against the epoch, one line for each run.

    Args:
        histories: For each run (a method's name gives its label and colour) the rows of its
            history, each with "epoch".
        left: Column of the left panel.
        right: Column of the right panel; epochs without a value are left out, and without any
            value there is no right panel.
        colours: Of the runs that are no method's main row, such as its ablations.
    """
    tables = {name: pd.DataFrame(history) for name, history in histories.items()}
    columns = [c for c in (left, right) if any(c in table for table in tables.values())]
    figure, grid = plt.subplots(
        1, len(columns), figsize=(WIDTH if len(columns) > 1 else 4.6, 2.7), squeeze=False
    )
    used: set[str] = set()
    given = colours or {}
    for i, (name, table) in enumerate(tables.items()):
        known = name in given or name in METHODS
        colour = given.get(name, colour_of(name))
        if colour in used or (colour == QUIET and not known):
            free = [c for c in CYCLE if c not in used]
            colour = free[0] if free else CYCLE[i % len(CYCLE)]
        used.add(colour)
        for axis, column in zip(grid[0], columns, strict=True):
            if column not in table:
                continue
            line = table.dropna(subset=[column])
            dots = "o" if len(line) < 25 else ""
            axis.plot(
                line["epoch"], line[column], dots + "-", ms=3, color=colour, label=label_of(name)
            )
    for axis, column in zip(grid[0], columns, strict=True):
        axis.set(xlabel="Epoch", title=_column_title(column))
        axis.grid(axis="y")
        axis.xaxis.get_major_locator().set_params(integer=True)
    if len(tables) > 4:  # more lines than a panel has room for beside its curves
        entries = grid[0, 0].get_legend_handles_labels()
        figure.legend(*entries, loc="outside lower center", ncols=3)
    elif len(tables) > 1:
        grid[0, -1].legend()
    return figure


def accuracy_bars(
    table: pd.DataFrame, group: str | None = None, start: float = 0.0, unit: str = "%"
) -> Figure:
    """Mean accuracies as horizontal bars, each with its 95 % interval and its numbers.

    Args:
        table: Columns "method" (a method's name or any label), "mean" and "ci95"; bars appear in
            the order of the rows.
        group: A column, such as "shot": one panel for each of its values, with the title "5 shot",
            or with the value itself where that is text.
        start: Where the axis starts; chance (20 for 5 ways) is a fair choice.
        unit: Written after the axis label.
    """
    parts = [("", table)] if group is None else list(table.groupby(group, sort=False))
    methods = list(dict.fromkeys(table["method"]))
    figure, grid = plt.subplots(
        1, len(parts), figsize=(WIDTH, 0.34 * len(methods) + 0.75), squeeze=False, sharey=True
    )
    top = (table["mean"] + table["ci95"]).max()
    for axis, (value, part) in zip(grid[0], parts, strict=True):
        for row in part.itertuples():
            y = methods.index(row.method)
            axis.barh(y, row.mean - start, left=start, height=0.66, color=colour_of(row.method))
            axis.errorbar(row.mean, y, xerr=row.ci95, color=INK, lw=1, capsize=2)
            axis.annotate(
                f"{row.mean:.1f} ± {row.ci95:.1f}",
                (row.mean + row.ci95, y),
                xytext=(4, 0),
                textcoords="offset points",
                va="center",
                size=8,
                color=INK,
            )
        axis.set_xlim(start, top + 0.38 * len(parts) * (top - start) / 2)
        axis.set_xticks([t for t in axis.get_xticks() if start <= t <= top])
        axis.set(
            xlabel=f"Accuracy ({unit})",
            title=value if isinstance(value, str) else f"{value} {group}",
        )
        axis.grid(axis="x")
        axis.tick_params(axis="y", length=0)
    grid[0, 0].set_yticks(range(len(methods)), [label_of(m) for m in methods])
    grid[0, 0].invert_yaxis()
    return figure


def interval_plot(
    table: pd.DataFrame, xlabel: str = "Paired difference (percentage points)"
) -> Figure:
    """Paired differences with their 95 % intervals against zero.

    Filled where the interval leaves zero out, hollow where it does not.

    Args:
        table: Columns "label", "mean" and "ci95" (half-width), one row for each comparison.
        xlabel: Label of the axis.
    """
    figure, axis = plt.subplots(figsize=(WIDTH, 0.32 * len(table) + 0.75))
    for y, row in enumerate(table.itertuples()):
        clear = abs(row.mean) > row.ci95
        colour = (RIGHT if row.mean > 0 else WRONG) if clear else QUIET
        axis.errorbar(row.mean, y, xerr=row.ci95, color=colour, lw=1.6, capsize=3)
        axis.plot(row.mean, y, "o", ms=6, color=colour, mfc=colour if clear else "white")
        axis.annotate(
            f"{signed(row.mean, plus=True)} ± {row.ci95:.2f}",
            (1.02, y),
            xycoords=("axes fraction", "data"),
            va="center",
            size=8,
            color=INK,
        )
    axis.axvline(0, color=INK, lw=0.8, zorder=0)
    axis.set(ylim=(len(table) - 0.4, -0.6), xlabel=xlabel)
    axis.set_yticks(range(len(table)), table["label"])
    axis.tick_params(axis="y", length=0)
    axis.grid(axis="x")
    return figure


def interval_curve(
    axis: Axes, x: Sequence[float], values: Sequence[Sequence[float]], fmt: str = "o-", **look: Any
) -> str:
    """A line of means with their 95 % intervals.

    Args:
        axis: Where to draw.
        x: Places of the points.
        values: For each of them its mean and the half-width of its interval; what follows these
            two is left out, so the triples of `mean_over_seeds` will do.
        fmt: Marker and line.
        **look: Of `Axes.errorbar`, such as `label` and `color`.

    Returns:
        The colour of the line.
    """
    mean, ci95 = zip(*(value[:2] for value in values), strict=True)
    drawn = axis.errorbar(x, mean, yerr=ci95, fmt=fmt, ms=3.5, capsize=2, **look)
    return drawn[0].get_color()


def curve_panels(
    panels: Mapping[str, Mapping[str, tuple[Sequence[float], Sequence, str, str]]],
    xlabel: str = "",
    ylabel: str = "",
    zero: str = "",
    sharey: bool = True,
) -> Figure:
    """Curves with their intervals as bands, a panel for each group and one legend below.

    Args:
        panels: Title of a panel to its curves, and the label of a curve to its places x, its
            values, its marker and line (such as "o-") and its colour. A value is a number, or a
            mean and the half-width of its interval; what follows these two is left out.
        xlabel: Of every panel.
        ylabel: Of the first.
        zero: "x", "y" or both: where a thin line marks zero.
        sharey: Whether the panels have one scale.
    """
    figure, grid = plt.subplots(1, len(panels), figsize=(WIDTH, 3.1), squeeze=False, sharey=sharey)
    for axis, (title, curves) in zip(grid[0], panels.items(), strict=True):
        for label, (x, values, fmt, colour) in curves.items():
            pairs = [(*np.atleast_1d(value), np.nan)[:2] for value in values]
            mean, ci95 = np.array(pairs, dtype=float).T
            axis.plot(x, mean, fmt, ms=3.5, color=colour, label=label)
            axis.fill_between(x, mean - ci95, mean + ci95, color=colour, alpha=0.14, lw=0)
        for name, line in (("x", axis.axvline), ("y", axis.axhline)):
            if name in zero:
                line(0, lw=0.6, color=INK, zorder=0)
        axis.set(xlabel=xlabel, title=title)
        axis.grid(axis="y")
        axis.locator_params(axis="x", nbins=6)
    grid[0, 0].set_ylabel(ylabel)
    entries = {}  # a curve that is in several panels stands in the legend once
    for axis in grid[0]:
        entries |= dict(zip(*reversed(axis.get_legend_handles_labels()), strict=True))
    figure.legend(entries.values(), entries, loc="outside lower center", ncols=3)
    return figure


def scatter_embedding(
    xy: np.ndarray, labels: Tensor, names: Sequence[str], title: str = "", axis: Axes | None = None
) -> Axes:
    """Points (N, 2) coloured by class; colour and marker together tell up to 64 classes apart.

    Args:
        xy: The layout, such as that of `analysis.embedding.tsne`.
        labels: int64 (N,), positions in `names`.
        names: Class names for the legend.
        title: Title of the panel.
        axis: Where to draw; a new figure without it. In a shared figure the legend is the
            caller's: `axis.get_legend_handles_labels()`.
    """
    alone = axis is None
    if alone:
        _, axis = plt.subplots(figsize=(WIDTH, 4.2))
    for c, name in enumerate(names):
        points = xy[labels.numpy() == c]
        axis.scatter(
            *points.T,
            s=14,
            color=CYCLE[c % len(CYCLE)],
            marker=MARKERS[(c + c // len(CYCLE)) % len(MARKERS)],
            linewidths=0.3,
            edgecolors="white",
            label=short_name(name, 26),
        )
    bare(axis)
    axis.spines[:].set(visible=True, color=HAIR)
    axis.set_title(title)
    axis.set_aspect("equal", "datalim")
    if alone:
        axis.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), markerscale=1.4)
    return axis


def grid_heat(
    values: np.ndarray | pd.DataFrame,
    rows: Sequence,
    columns: Sequence,
    ylabel: str = "",
    xlabel: str = "",
    colour_label: str = "Accuracy (%)",
    digits: int = 1,
    mark_best: bool = True,
) -> Figure:
    """A table of numbers (R, C) as a heat map, for a sweep over two parameters.

    Missing values (NaN) stay white; the largest number is framed if `mark_best`.
    """
    table = np.asarray(values, dtype=float)
    height, width = table.shape
    size = min(0.62, (WIDTH - 1.8) / width)
    figure, axis = plt.subplots(figsize=(size * width + 1.8, max(0.36, size * 0.62) * height + 0.8))
    shown = axis.imshow(table, cmap="cividis", aspect="auto")
    low, high = np.nanmin(table), np.nanmax(table)
    letters = len(f"{high:.{digits}f}")
    font = min(8.5, 0.8 * 72 * size / (0.62 * letters))
    for i, j in np.argwhere(np.isfinite(table)):
        dark = table[i, j] < (low + high) / 2
        axis.text(
            j,
            i,
            f"{table[i, j]:.{digits}f}",
            ha="center",
            va="center",
            size=font,
            color="white" if dark else "black",
        )
    if mark_best:
        i, j = np.unravel_index(np.nanargmax(table), table.shape)
        axis.add_patch(plt.Rectangle((j - 0.48, i - 0.46), 0.96, 0.92, fill=False, ec=WRONG, lw=2))
    turn = max(len(str(c)) for c in columns) * 0.075 > size
    slant = {"rotation": 45, "ha": "right"} if turn else {}
    axis.set_xticks(range(width), columns, **slant)
    axis.set_yticks(range(height), rows)
    axis.set(xlabel=xlabel, ylabel=ylabel)
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)
    bar = figure.colorbar(shown, ax=axis, label=colour_label, aspect=18)
    bar.outline.set_visible(False)
    return figure


def confusion(labels: Tensor, predictions: Tensor, names: Sequence[str]) -> Figure:
    """Which true class (row) is called what (column), in percent of the row."""
    classes = len(names)
    counts = torch.bincount(labels * classes + predictions, minlength=classes**2)
    counts = counts.reshape(classes, classes).double()
    share = 100 * counts / counts.sum(1, keepdim=True)
    shown = [short_name(name, 40) for name in names]
    return grid_heat(
        share.numpy(), shown, shown, "True", "Predicted", "% of the true class", 0, mark_best=False
    )
