"""Figures of the chapter on spatial contrast: neighbours, and where a location looks.

`clickable_attention` is the live form of `attention_panel`: a table of coloured cells in plain
HTML, switched by style sheets alone, so it needs neither a widget nor a running kernel.
"""

from __future__ import annotations

import base64
import io
import uuid
from collections.abc import Sequence

import matplotlib.pyplot as plt
from IPython.display import HTML
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from fslib.data import ImageSet
from fslib.plots.style import INK, QUIET, RIGHT, WIDTH, WRONG, picture_grid, short_name, to_pixels

PLACE = "#56B4E9"  # frame of the location that is asked about
COLOURS = {
    "CE": QUIET,
    "CE, two views": "#009E73",
    "CE + GC": "#E69F00",
    "CE + SC": "#CC79A7",
}
"""Of the rows that the chapter's pages share."""


def neighbour_panel(images: ImageSet, queries: Tensor, neighbours: Tensor) -> Figure:
    """Images with their nearest neighbours, each framed by whether it is of the same class.

    Args:
        images: Pictures, labels and class names.
        queries: int64 (Q,) rows of the images asked about.
        neighbours: int64 (Q, k) rows, nearest first; eight fit the page.
    """
    count, k = neighbours.shape
    cell = WIDTH / (k + 1.3)
    size, ratios = (WIDTH, (cell + 0.3) * count + 0.2), (1, 0.3, *[1] * k)
    figure, grid = picture_grid(count, k + 2, size, (0.01, 0.03, 0.02, 0.02), ratios)
    for line, row, found in zip(grid, queries.tolist(), neighbours.tolist(), strict=True):
        line[1].set_visible(False)
        for axis, shown in zip(line[[0, *range(2, k + 2)]], [row, *found], strict=True):
            axis.imshow(to_pixels(images.images[shown]))
            label = int(images.labels[shown])
            axis.set_xlabel(short_name(images.class_names[label], 12), size=6.2, labelpad=2)
            if axis is not line[0]:
                colour = RIGHT if label == int(images.labels[row]) else WRONG
                axis.spines[:].set(visible=True, color=colour, linewidth=2)
                axis.xaxis.label.set_color(colour)
    grid[0, 0].set_title("Image", size=8, loc="center")
    for place in range(k):
        grid[0, place + 2].set_title(str(place + 1), size=8, loc="center")
    return figure


def _cells(attention: Tensor, shape: tuple[int, int]) -> Tensor:
    """Attention over h x w places as multiples of an even spread, (..., h, w)."""
    return (attention * attention.shape[-1]).unflatten(-1, shape)


def attention_panel(
    images: Tensor,
    place: tuple[int, int],
    others: Tensor,
    attention: Tensor,
    titles: Sequence[str],
    row_titles: Sequence[str],
) -> Figure:
    """Where one location of an image looks in other images.

    Args:
        images: (N, 3, H, W), a row each.
        place: Row and column of the location, framed.
        others: (N, K, 3, H, W), a column each.
        attention: (N, K, h, w, h w), the attention of every location; see
            `SpatialSimilarity.attention`.
        titles: K column titles.
        row_titles: N titles left of the rows.
    """
    height, width = attention.shape[2:4]
    seen = _cells(attention[:, :, place[0], place[1]], (height, width))  # (N, K, h, w)
    count, kinds = seen.shape[:2]
    cell = min(1.3, (WIDTH - 1.6) / (kinds + 1))
    size = (cell * (kinds + 1) + 1.6, cell * count + 0.4)
    figure, grid = picture_grid(count, kinds + 1, size)
    sides = images.shape[-2:]
    extent = (-0.5, sides[1] - 0.5, sides[0] - 0.5, -0.5)
    step = (sides[1] / width, sides[0] / height)
    top = max(float(seen.max()), 1.0)
    for i in range(count):
        grid[i, 0].imshow(to_pixels(images[i]))
        corner = (place[1] * step[0] - 0.5, place[0] * step[1] - 0.5)
        for colour, line in (("white", 4), (PLACE, 2)):
            grid[i, 0].add_patch(Rectangle(corner, *step, fill=False, ec=colour, lw=line))
        grid[i, 0].set_ylabel(short_name(row_titles[i], 14), rotation=0, ha="right", va="center")
        for axis, other, heat in zip(grid[i, 1:], others[i], seen[i], strict=True):
            axis.imshow(to_pixels(other).mean(-1), cmap="gray")
            shown = axis.imshow(
                heat.numpy(), cmap="inferno", vmin=0, vmax=top, alpha=0.6, extent=extent
            )
    for axis, title in zip(grid[0], ("the location", *titles), strict=True):
        axis.set_title(title, size=8, loc="center", weight="normal")
    bar = figure.colorbar(shown, ax=grid, shrink=min(1.0, 1.7 / count), aspect=18)
    bar.set_label("attention\n(1: spread evenly)", size=8)
    bar.solids.set_alpha(1)
    bar.outline.set_visible(False)
    return figure


def _picture(image: Tensor) -> str:
    """A picture as an address that holds the picture itself."""
    buffer = io.BytesIO()
    plt.imsave(buffer, to_pixels(image), format="png")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def clickable_attention(image: Tensor, others: Tensor, attention: Tensor, side: int = 160) -> HTML:
    """An image whose locations can be clicked, and what each of them attends to in others.

    Args:
        image: (3, H, W).
        others: (K, 3, H, W).
        attention: (K, h, w, h w), as in `attention_panel`.
        side: Of a picture on the page, in pixels.

    Returns:
        A piece of HTML without scripts: a hidden choice a location, and a rule that shows its maps.
    """
    height, width = attention.shape[1:3]
    name = f"a{uuid.uuid4().hex[:8]}"
    seen = _cells(attention, (height, width))  # (K, h, w, h, w)
    colours = plt.get_cmap("inferno")((seen / max(float(seen.max()), 1.0)).numpy())
    box = f"width:{side}px;height:{side}px"
    grid = f"display:grid;grid-template:repeat({height},1fr)/repeat({width},1fr);{box}"
    rules, choices, labels = [f"#{name} .map{{visibility:hidden}}"], [], []
    maps: list[list[str]] = [[] for _ in others]
    for place in range(height * width):
        row, column = divmod(place, width)
        key = f"{name}-{place}"
        checked = " checked" if place == 0 else ""
        choices.append(f'<input type="radio" name="{name}" id="{key}"{checked} hidden>')
        labels.append(f'<label for="{key}" class="l{place}" style="cursor:pointer"></label>')
        rules.append(
            f"#{key}:checked~div .m{place}{{visibility:visible}}"
            f"#{key}:checked~div .l{place}{{outline:3px solid {PLACE};outline-offset:-3px}}"
        )
        for k, pieces in enumerate(maps):
            cells = "".join(
                f'<i style="background:rgb({",".join(str(int(255 * c)) for c in colour[:3])})"></i>'
                for colour in colours[k, row, column].reshape(height * width, -1)
            )
            pieces.append(
                f'<div class="map m{place}" style="{grid};position:absolute;inset:0;opacity:.6">'
                f"{cells}</div>"
            )
    place_style = f"position:relative;{box};background-size:100% 100%;image-rendering:pixelated"
    pictures = [f'<div style="{place_style};{_ground(image)};{grid}">{"".join(labels)}</div>']
    for other, pieces in zip(others, maps, strict=True):
        grey = other.float().mean(0, keepdim=True).expand(3, -1, -1).to(other.dtype)
        pictures.append(f'<div style="{place_style};{_ground(grey)}">{"".join(pieces)}</div>')
    return HTML(
        f'<div id="{name}" style="color:{INK};background:white;padding:6px">'
        f"<style>{''.join(rules)}</style>{''.join(choices)}"
        f'<div style="display:flex;gap:10px;flex-wrap:wrap">{"".join(pictures)}</div></div>'
    )


def _ground(image: Tensor) -> str:
    return f"background-image:url({_picture(image)})"
