"""A look inside: the pictures and numbers that every chapter shows of its method and the baselines.

Everything here works on feature maps that were embedded once, by name of the method (or of a part
of it, such as one view of BML), so a chapter compares whatever it likes on the same images.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn import functional

from fslib.analysis import embedding, heatmaps, ranking
from fslib.data import ImageSet
from fslib.episodes import Episodes, draw_episodes
from fslib.evaluate import embed_images, interval
from fslib.losses.margin import word_similarity
from fslib.methods import Method
from fslib.plots import scatter_embedding
from fslib.plots.images import heatmap_overlay
from fslib.plots.style import WIDTH, short_name


def class_samples(
    data: Mapping[str, ImageSet], classes: int = 10, per_class: int = 40, seed: int = 0
) -> dict[str, ImageSet]:
    """Some images of some base and some novel classes, few enough for a picture.

    Args:
        data: Splits of a data set.
        classes: Of each kind; the first ones.
        per_class: Images of each class.
        seed: Of the choice of images.

    Returns:
        `{"base": ..., "novel": ...}`.
    """
    samples = {}
    for kind, split in (("base", "train"), ("novel", "test")):
        images = data[split]
        chosen = list(range(min(classes, images.classes)))
        samples[kind] = images.take(embedding.choose_images(images.labels, chosen, per_class, seed))
    return samples


def embed_samples(
    networks: Mapping[str, Method], samples: Mapping[str, ImageSet]
) -> dict[str, dict[str, Tensor]]:
    """Maps (N, C, h, w) of every network for every sample: name to (kind to maps)."""
    return {
        name: {kind: embed_images(network, images) for kind, images in samples.items()}
        for name, network in networks.items()
    }


def embedding_panel(
    maps: Mapping[str, Mapping[str, Tensor]], samples: Mapping[str, ImageSet], seed: int = 0
) -> Figure:
    """t-SNE of several networks, a column each, and of several samples, a row each.

    Args:
        maps: Name to (kind to maps), as `embed_samples` gives them.
        samples: Kind to images, as `class_samples` gives them.
        seed: Of t-SNE.
    """
    figure, axes = plt.subplots(
        len(samples), len(maps), figsize=(WIDTH, 2.3 * len(samples)), squeeze=False
    )
    for column, (name, kinds) in enumerate(maps.items()):
        for row, (kind, images) in enumerate(samples.items()):
            axis = scatter_embedding(
                embedding.tsne(kinds[kind], seed),
                images.labels,
                images.class_names,
                f"{name}, {kind}",
                axes[row, column],
            )
            if legend := axis.get_legend():
                legend.remove()  # the classes are the same in every panel and need no names
    return figure


def silhouette_table(
    maps: Mapping[str, Mapping[str, Tensor]], samples: Mapping[str, ImageSet], draws: int = 500
) -> pd.DataFrame:
    """How tight the classes lie, as a number with its interval.

    Args:
        maps: Name to (kind to maps).
        samples: Kind to images.
        draws: Of the bootstrap over images.

    Returns:
        Columns method and, for each kind, mean, low and high of the silhouette: `base`,
        `base low`, `base high`, ...
    """
    rows = []
    for name, kinds in maps.items():
        row: dict[str, Any] = {"method": name}
        for kind, images in samples.items():
            found = embedding.silhouette(kinds[kind], images.labels, draws=draws)
            row |= dict(zip((kind, f"{kind} low", f"{kind} high"), found, strict=True))
        rows.append(row)
    return pd.DataFrame(rows)


def silhouette_change(
    maps: Mapping[str, Mapping[str, Tensor]],
    samples: Mapping[str, ImageSet],
    ours: str,
    other: str,
    draws: int = 500,
) -> str:
    """How much larger one network's silhouettes are, as part of a sentence for the page.

    Args:
        maps: Name to (kind to maps).
        samples: Kind to images.
        ours: A name.
        other: The name it is compared with.
        draws: Of the bootstrap over images, both networks with the same ones.

    Returns:
        Such as `+0.020 [+0.012, +0.029] on base classes and -0.001 [-0.006, +0.004] on novel
        classes`.
    """
    return " and ".join(
        "{:+.3f} [{:+.3f}, {:+.3f}]".format(
            *embedding.silhouette(maps[ours][kind], images.labels, draws, less=maps[other][kind])
        )
        + f" on {kind} classes"
        for kind, images in samples.items()
    )


def ranking_table(
    features: Mapping[str, Tensor], images: ImageSet, draws: int = 200
) -> pd.DataFrame:
    """Do the classes a method finds similar also belong together, or mean similar things?

    Args:
        features: Method to (N, d), a feature for every image.
        images: Their labels, superclasses and word vectors.
        draws: Of the bootstrap over classes.

    Returns:
        Columns method and, for `superclasses` and `word vectors` where the set has them, Kendall's
        tau-b of the similarities of all class pairs with it: tau, low and high.
    """
    rows = []
    for method, values in features.items():
        visual = ranking.visual_similarity(values, images.labels)
        row: dict[str, Any] = {"method": method}
        for name, reference in _references(images).items():
            found = ranking.rank_correlation(visual, reference, draws)
            low, high = found.tau_interval
            row |= {name: found.tau, f"{name} low": low, f"{name} high": high}
        rows.append(row)
    return pd.DataFrame(rows)


def _references(images: ImageSet) -> dict[str, Tensor]:
    """What a ranking of classes can be held against, where the set has it."""
    references = {}
    if images.superclass is not None:
        references["superclasses"] = ranking.hierarchy_similarity(images.superclass)
    if images.semantics is not None:
        references["word vectors"] = word_similarity(images.semantics)
    return references


def order_words(
    features: Mapping[str, Tensor], images: ImageSet, ours: str, draws: int = 200
) -> str:
    """What `ranking_table` says: one method against each other one, as sentences for the page.

    All methods rank the same classes, so their intervals may overlap and a difference be clear
    all the same; here the differences themselves are resampled.

    Args:
        features: Method to (N, d), a feature for every image.
        images: Their labels, superclasses and word vectors.
        ours: The method that is compared with all others.
        draws: Of the bootstrap over classes.
    """
    visual = {m: ranking.visual_similarity(f, images.labels) for m, f in features.items()}
    said = ["A tau of zero means that looks and meaning share no order."]
    for name, reference in _references(images).items():
        found = {m: ranking.rank_correlation(v, reference, draws) for m, v in visual.items()}
        top = ranking.highest_tau(reference)
        if top < 0.99:
            said.append(
                f"With {name}, which tie most pairs, even a perfect order reaches only {top:.2f} "
                "(more or less among resampled classes, which widens the intervals)."
            )
        differences, apart = [], []
        for other in (m for m in found if m != ours):
            gap = found[ours].tau - found[other].tau
            drawn = found[ours].tau_draws - found[other].tau_draws
            low, high = np.nanpercentile(drawn, [2.5, 97.5])
            differences.append(f"{gap:+.3f} [{low:+.3f}, {high:+.3f}] ({other})")
            apart += [other] if low > 0 or high < 0 else []
        said.append(
            f"With {name}, {ours} less each of the others is {', '.join(differences)}: it is told "
            f"apart from {' and '.join(apart) or 'none of them'}."
        )
    return " ".join(said)


def bracketed(rows: pd.DataFrame, digits: int = 3) -> pd.DataFrame:
    """A table with columns `x`, `x low`, `x high` as one column `x` of `value [low, high]`."""
    shown = rows.copy()
    for column in [c for c in rows.columns if f"{c} low" in rows.columns]:
        triples = rows[[column, f"{column} low", f"{column} high"]].itertuples(index=False)
        shown[column] = [
            f"{value:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"
            for value, low, high in triples
        ]
        shown = shown.drop(columns=[f"{column} low", f"{column} high"])
    return shown


def heat_panel(
    maps: Mapping[str, Tensor], images: ImageSet, episodes: Episodes, e: int = 0
) -> Figure:
    """One query of each way of an episode, and where each method finds it like its own class.

    Args:
        maps: Method to (N, C, h, w), a map for every image.
        images: The images themselves.
        episodes: Index tables.
        e: Which episode.
    """
    queries = episodes.query[e, :, 0]  # the first query of each way
    own = torch.arange(len(queries))
    heats = []
    for values in maps.values():
        prototypes = values[episodes.support[e]].mean((1, 3, 4))  # (way, C)
        similar = heatmaps.similarity_map(values[queries], prototypes)[own, own]
        heats.append(heatmaps.upsample(similar[:, None], images.size))
    shown = heatmaps.to_unit_range(torch.cat(heats, 1))
    titles = [images.class_names[int(c)] for c in episodes.classes[e]]
    return heatmap_overlay(images.images[queries], shown, list(maps), titles)


def places_won(
    maps: Mapping[str, Tensor], images: ImageSet, episodes: int = 100, seed: int = 11
) -> dict[str, tuple[float, float]]:
    """At how many of its places is a query more like its own class than like any other?

    The heat of `heat_panel` as a number, over many 1-shot episodes of five queries a way.

    Args:
        maps: Method to (N, C, h, w), a map for every image.
        images: Their labels.
        episodes: How many.
        seed: Of the episodes.

    Returns:
        Method to the share in percent and the half-width of its 95 % interval over episodes.
    """
    way = min(5, images.classes)
    drawn = draw_episodes(images.labels, episodes, way, 1, 5, seed)
    target = torch.arange(way).repeat_interleave(5)[:, None]
    won = {}
    for name, values in maps.items():
        prototypes = functional.normalize(values[drawn.support].mean((2, 4, 5)), dim=-1)
        queries = values[drawn.query].flatten(4).flatten(1, 2)  # (E, way x 5, C, places)
        # A place's own length changes none of its comparisons.
        best = torch.einsum("eqcp,ewc->eqpw", queries, prototypes).argmax(-1)
        won[name] = interval(100 * (best == target).float().mean((1, 2)).numpy())
    return won


def heat_words(maps: Mapping[str, Tensor], images: ImageSet) -> str:
    """What `heat_panel` shows of four queries, said of many: a sentence for the page."""
    won = places_won(maps, images)
    best = max(won, key=lambda name: won[name][0])
    floor = won[best][0] - won[best][1]
    rivals = [name for name, (mean, ci95) in won.items() if name != best and mean + ci95 >= floor]
    shares = ", ".join(f"{mean:.1f} ± {ci95:.1f} % ({name})" for name, (mean, ci95) in won.items())
    return (
        "Each picture is stretched to its own range, so it shows where the likeness lies and not "
        "how much there is. Over 100 other episodes of five ways, one shot, the share of a "
        f"query's places that are more like its own class than like any other is {shares}; chance "
        f"is {100 / min(5, images.classes):.0f} %. The highest is that of {best}"
        + (f", not told apart by these intervals from {' and '.join(rivals)}." if rivals else ".")
    )


def ranking_words(logits: Tensor, names: Sequence[str], target: Sequence[int]) -> str:
    """What `ranking_panel` shows, as a sentence for the page.

    Args:
        logits: (Q, way) of the queries in the picture.
        names: Of the ways.
        target: The right way of each query.
    """
    names = [short_name(name, 40) for name in names]
    places = logits.argsort(dim=-1, descending=True).tolist()
    right = sum(order[0] == way for order, way in zip(places, target, strict=True))
    said = [
        f"*{names[way]}* is taken for *{names[order[0]]}* and its own class comes at place "
        f"{order.index(way) + 1}"
        for order, way in zip(places, target, strict=True)
        if order[0] != way
    ]
    mistakes = f": {'; '.join(said)}" if said else ""
    return (
        f"The right class comes first for {right} of {len(places)} queries{mistakes}. One episode "
        "is an illustration; the next number measures what follows the first place for all classes."
    )
