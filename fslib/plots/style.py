"""One look for all figures of the book.

Figures have an opaque white background, also on a dark page: pictures of images and heat maps
need a ground of known colour, and the book's theme leaves white figures as they are. They are 6.9
inches wide, the text column of the book, so a font of 9 points reads like the page's own text.
Colours are those of Okabe and Ito, told apart by colour-blind readers; a method has the same
colour in every chapter.
"""

import textwrap
from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

WIDTH = 6.9
INK, QUIET, HAIR = "#222222", "#6b6b6b", "#d9d9d9"
RIGHT, WRONG = "#009E73", "#D55E00"
CYCLE = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#8C6D1F", "#6b6b6b")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
METHODS = {
    "ce": ("Cross-entropy", "#6b6b6b"),
    "protonet": ("ProtoNet", "#0072B2"),
    "bml": ("BML", "#E69F00"),
    "dmf": ("DMF", "#009E73"),
    "am3": ("AM3", "#56B4E9"),
    "dynamic_fsl": ("Dynamic FSL", "#8C6D1F"),
    "scl": ("SCL", "#CC79A7"),
    "negative_margin": ("Negative margin", "#D55E00"),
    "protonet_naml": ("ProtoNet + NAML", "#7FB2D9"),
    "protonet_craml": ("ProtoNet + CRAML", "#3A8FC4"),
    "protonet_traml": ("ProtoNet + TRAML", "#004B75"),
    "am3_traml": ("AM3 + TRAML", "#1F7FB0"),
}
"""Label and colour of each method."""


def use_book_style() -> None:
    """Set matplotlib's defaults for every figure that follows; call it once a page."""
    plt.rcdefaults()
    plt.rcParams.update(
        {
            "figure.figsize": (WIDTH, 3.4),
            "figure.dpi": 144,
            "figure.facecolor": "white",
            "savefig.facecolor": "white",
            "savefig.bbox": "tight",
            "figure.constrained_layout.use": True,
            "font.size": 9,
            "axes.titlesize": 9.5,
            "axes.titleweight": "bold",
            "axes.titlelocation": "left",
            "axes.labelcolor": INK,
            "axes.edgecolor": QUIET,
            "axes.linewidth": 0.7,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.axisbelow": True,
            "axes.prop_cycle": plt.cycler(color=CYCLE),
            "grid.color": HAIR,
            "grid.linewidth": 0.6,
            "xtick.color": QUIET,
            "ytick.color": QUIET,
            "xtick.labelcolor": INK,
            "ytick.labelcolor": INK,
            "xtick.labelsize": 8.5,
            "ytick.labelsize": 8.5,
            "legend.frameon": False,
            "legend.fontsize": 8.5,
            "lines.linewidth": 1.6,
            "image.interpolation": "nearest",
        }
    )


def label_of(method: str) -> str:
    """The name of a method as the pages print it; unknown names stay as they are."""
    return METHODS.get(method, (method, ""))[0]


def colour_of(method: str) -> str:
    """The colour of a method; that of the longest known prefix ("bml_local": BML's), else grey."""
    known = [name for name in METHODS if method == name or method.startswith(f"{name}_")]
    return METHODS[max(known, key=len)][1] if known else QUIET


def short_name(name: str, width: int = 18) -> str:
    """A class name for a figure: no underscores, Unicode names in lower case, lines wrapped."""
    if name.isupper():  # a Unicode name: "LATIN CAPITAL LETTER A" becomes "Latin capital A"
        kind, _, letter = name.lower().partition(" letter ")
        letter = letter.capitalize() if kind.endswith("capital") else letter
        name = f"{kind.capitalize()} {letter}".rstrip()
    lines = textwrap.wrap(name.replace("_", " "), width) or [""]
    return "\n".join(lines if len(lines) < 3 else [lines[0], lines[1][: width - 1] + "…"])


def signed(value: float, digits: int = 2, plus: bool = False) -> str:
    """A number with a true minus sign, which is as wide as a plus."""
    return f"{value:{'+' if plus else ''}.{digits}f}".replace("-", "\N{MINUS SIGN}")


def to_pixels(images: Tensor) -> np.ndarray:
    """Images (..., 3, H, W), uint8 or float in [0, 1], as (..., H, W, 3) for matplotlib."""
    pixels = images.detach().cpu().movedim(-3, -1)
    return (pixels if pixels.dtype == torch.uint8 else pixels.clamp(0, 1)).numpy()


def mosaic(images: Tensor, gap: int = 2) -> np.ndarray:
    """Join images (rows, columns, 3, H, W) with white gaps to one picture (height, width, 3)."""
    pixels = to_pixels(images)
    rows, columns, height, width, _ = pixels.shape
    white = 255 if pixels.dtype == np.uint8 else 1.0
    full = np.full((rows, columns, height + gap, width + gap, 3), white, pixels.dtype)
    full[:, :, :height, :width] = pixels
    full = full.transpose(0, 2, 1, 3, 4).reshape(rows * (height + gap), columns * (width + gap), 3)
    return full[: rows * (height + gap) - gap, : columns * (width + gap) - gap]


def bare(axes: Axes) -> None:
    """Take ticks and frame off a picture."""
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)


def picture_grid(
    rows: int,
    columns: int,
    size: tuple[float, float],
    pads: tuple[float, float, float, float] = (0.02, 0.02, 0.02, 0.02),
    width_ratios: Sequence[float] | None = None,
) -> tuple[Figure, np.ndarray]:
    """A figure of bare axes for pictures, close to each other.

    Args:
        rows: Of the grid.
        columns: Of the grid.
        size: Width and height in inches.
        pads: `w_pad`, `h_pad`, `wspace` and `hspace` of matplotlib's constrained layout.
        width_ratios: Of the columns; equal where None.

    Returns:
        The figure and its axes, (rows, columns).
    """
    figure, grid = plt.subplots(
        rows, columns, figsize=size, width_ratios=width_ratios, squeeze=False
    )
    figure.get_layout_engine().set(
        **dict(zip(("w_pad", "h_pad", "wspace", "hspace"), pads, strict=True))
    )
    for axis in grid.flat:
        bare(axis)
    return figure, grid
