"""The margins that the Negative Margin chapter sweeps, and what it looks at in each network.

Several pages ask for the same runs; here each has one name and one set of options, so that a run
is trained once whichever page comes first.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fslib.analysis.discriminability import (
    Discriminability,
    base_peaks,
    discriminability,
    effective_peaks,
)
from fslib.data import ImageSet
from fslib.evaluate import embed_images
from fslib.methods.negative_margin import SCALES, NegativeMargin
from fslib.pages import published
from fslib.results import Record

DENSE: dict[str, tuple[float, ...]] = {
    # Those of the published curve.
    "dot": (-0.35, -0.3, -0.25, -0.2, -0.15, -0.1, -0.05, 0.0, 0.05, 0.1, 0.15, 0.2, 0.25),
    # As many on the cosine, to both sides of the released -0.05 to -0.01.
    "cosine": (-0.12, -0.09, -0.07, -0.05, -0.04, -0.03, -0.02, -0.01, 0.0, 0.01, 0.02, 0.03, 0.04),
}
"""Margins of a full sweep, for each similarity."""

AUTHORS: dict[str, Any] = {"optimiser": "adam", "lr": 0.003, "weight_decay": 1e-4}
"""The authors' optimiser. Adam's steps do not grow with the scale of the loss."""

FEW: dict[str, tuple[float, ...]] = {"dot": (-0.3, 0.0, 0.2), "cosine": (-0.03, 0.0, 0.03)}
"""One negative, none, one positive: a short sweep, and the networks that are looked into."""

PUBLISHED: dict[str, tuple[str, str]] = {
    "mini, 1": ("miniImageNet", "5-way 1-shot"),
    "mini, 5": ("miniImageNet", "5-way 5-shot"),
    "CUB, 1": ("CUB", "5-way 1-shot"),
    "CUB, 5": ("CUB", "5-way 5-shot"),
    "mini to CUB, 5": ("miniImageNet->CUB", "5-way 5-shot"),
}
"""Columns of the paper's main table: data set and setting of each."""


def published_gain(column: str, first: str, second: str) -> tuple[float, float]:
    """How far two published rows lie apart in a column of the paper's main table (ResNet-18).

    Args:
        column: A key of `PUBLISHED`.
        first: A method as `results/published.csv` names it, such as `Neg-Cosine`.
        second: What it is compared with.

    Returns:
        Points, and the half-width of the 95 % interval of two unpaired scores.
    """
    dataset, setting = PUBLISHED[column]
    rows = published(dataset, [setting], "negative_margin")
    rows = rows[rows["backbone"].eq("ResNet18") & rows["ci95"].notna()].set_index("method")
    one, other = rows.loc[first], rows.loc[second]
    return one["accuracy"] - other["accuracy"], math.hypot(one["ci95"], other["ci95"])


def swept(similarity: str, dense: bool) -> tuple[float, ...]:
    """The margins of a sweep over `cosine` or `dot`, from negative to positive."""
    return (DENSE if dense else FEW)[similarity]


def signed_name(product: float) -> str:
    """A margin in logits as part of a label: `minus_1_500` for -1.5, `plus_0_000` for none."""
    sign = "minus" if product < 0 else "plus"
    return f"{sign}_{abs(product):.3f}".replace(".", "_")


def network(
    similarity: str, margin: float, scale: float | None = None, trained: str = ""
) -> dict[str, Any]:
    """How a page asks for one network: `study.records(**network("dot", -0.3))`.

    Options at their default are left out, so that the same network is the same run. The label
    holds similarity, scale and the margin in logits, s m: `dot_scale_5_minus_1_500`.

    Args:
        similarity: `cosine` or `dot`.
        margin: m.
        scale: s; the released one where None.
        trained: What is special about the training, such as `adam`; the label begins with it.
    """
    asked: dict[str, Any] = {}
    if similarity != "cosine":
        asked["similarity"] = similarity
    if margin != -0.02:
        asked["margin"] = margin
    if scale is not None and scale != SCALES[similarity]:
        asked["scale"] = scale
    scale = SCALES[similarity] if scale is None else scale
    label = f"{similarity}_scale_{scale:g}_{signed_name(scale * margin)}"
    label = f"{trained}_{label}" if trained else label
    return {"method": "negative_margin", "variant": label, **asked}


def by_sign(
    made: Mapping[float, Sequence[Record]],
) -> dict[str, tuple[list[Record], Sequence[Record]]]:
    """A sweep as three comparisons with no margin: the lowest, all below zero, all above.

    One network says little, for another seed would have given another number. Taken together, the
    networks of one sign say more, as several seeds of one network do.

    Args:
        made: Margin to records, zero among them.

    Returns:
        Label to (records, those without margin), as `fslib.comparison.compare` takes them.
    """
    lowest = min(made)
    sides = {
        f"the lowest, {lowest:g}": [lowest],
        "all below zero": [m for m in made if m < 0],
        "all above zero": [m for m in made if m > 0],
    }
    return {
        label: ([record for m in margins for record in made[m]], made[0.0])
        for label, margins in sides.items()
        if margins
    }


@dataclass(frozen=True)
class Look:
    """What one trained network does to base and novel classes.

    Attributes:
        base: Spread of the base features.
        novel: Spread of the novel features.
        peaks: (J, K), share of each base class in the softmax of each novel class at the scale of
            training, margin off.
        nearest: (J, K), share of the images of a novel class nearest to each base class.
    """

    base: Discriminability
    novel: Discriminability
    peaks: Tensor
    nearest: Tensor

    @property
    def effective(self) -> Tensor:
        """Effective number of base classes that each novel class falls on, (J,)."""
        return effective_peaks(self.peaks)


@torch.no_grad()
def look_at(
    method: NegativeMargin, base: tuple[Tensor, Tensor], novel: tuple[Tensor, Tensor]
) -> Look:
    """Discriminability and peaks of one network, in one pass over its cached features.

    Args:
        method: Trained.
        base: Pooled features (N, d) of base images, and their labels (N,).
        novel: The same of novel images.
    """
    similarity = method.similarity(novel[0])
    return Look(
        discriminability(*base),
        discriminability(*novel),
        base_peaks(similarity, novel[1], method.scale),
        base_peaks(similarity, novel[1], hard=True),
    )


def pooled(method: NegativeMargin, images: ImageSet) -> tuple[Tensor, Tensor]:
    """Pooled features (N, d) of images, as the classifier sees them, and their labels."""
    return embed_images(method, images).mean((2, 3)), images.labels


def top1(method: NegativeMargin, images: ImageSet) -> Tensor:
    """Whether each image of a base class is classified rightly, margin off: 0 or 100, (N,)."""
    features, labels = pooled(method, images)
    with torch.no_grad():
        return 100.0 * (method.similarity(features).argmax(1) == labels)
