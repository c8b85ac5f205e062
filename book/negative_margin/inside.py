# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Negative Margin: a look inside
#
# The paper explains itself with a picture: a margin above zero packs base
# classes tightly, and novel classes then break up over several of them.
# This page looks for that in the networks themselves, as clouds, as
# numbers, and in two dimensions where nothing has to be projected; and it
# lays Negative Margin beside the two baselines as every chapter does.

# %% tags=["parameters"]
profile: str = "quick"  # which profile these values belong to
dataset: str = "glyphs"  # trained and looked at
backbone: str = "conv4"  # of the networks beside the baselines
epochs: int = 3  # passes over the training images
ablation_backbone: str = "conv4_32"  # of the sweep over the margin
ablation_epochs: int = 2  # passes over the training images, sweep
augment: str = "none"  # mirrored letters would be other letters
seeds: list = [0]  # the first one is looked at
dense: bool = False  # all 13 margins
classes: int = 10  # in each t-SNE picture
per_class: int = 40  # points of each class
plane_classes: int = 6  # base classes of the two-dimensional networks
plane_epochs: int = 12  # passes over their images

# %%
import matplotlib.pyplot as plt
import numpy as np
import torch
from fslib.analysis.discriminability import effective_peaks, shared_peaks
from fslib.analysis.inside import (
    bracketed,
    class_samples,
    embed_samples,
    embedding_panel,
    heat_panel,
    heat_words,
    order_words,
    ranking_table,
    ranking_words,
    silhouette_table,
)
from fslib.analysis.margins import (
    AUTHORS,
    FEW,
    look_at,
    network,
    pooled,
    swept,
)
from fslib.episodes import draw_episodes
from fslib.evaluate import embed_images, interval
from fslib.pages import table
from fslib.plots.images import ranking_panel
from fslib.plots.style import CYCLE, MARKERS, short_name, use_book_style
from fslib.study import Study
from fslib.train import fit
from IPython.display import Markdown
from scipy.stats import spearmanr

use_book_style()
BELOW, NONE, ABOVE = "#D55E00", "#6b6b6b", "#0072B2"
study = Study(dataset, backbone, epochs, augment, profile, (seeds[0],))
small = study.but(backbone=ablation_backbone, epochs=ablation_epochs)
data = study.data
nets = {
    "m = -0.02": study.run(**network("cosine", -0.02) | {"variant": ""}).method,
    "m = 0": study.run(
        **network("cosine", 0.0) | {"variant": "cosine_zero"}
    ).method,
    "CE": study.run("ce").method,
    "ProtoNet": study.run("protonet").method,
}

# %% [markdown]
# ## Classes as clouds
#
# t-SNE {cite}`maaten2008tsne` draws the features in the plane, neg-cosine
# ($m = -0.02$) beside the same classifier without a margin and the two
# baselines. The **silhouette** measures in the original space how tight
# classes lie (1 tight and apart, 0 touching).

# %%
samples = class_samples(data, classes, per_class)
maps = embed_samples(nets, samples)
figure = embedding_panel(maps, samples)

# %%
tight = silhouette_table(maps, samples)
table(bracketed(tight))

# %% tags=["hide-input"]
value = tight.set_index("method")


def change(kind: str) -> str:
    """What the margin does to one kind of classes, as far as it can be told."""
    with_it, without = value.loc["m = -0.02"], value.loc["m = 0"]
    found = with_it[kind] - without[kind]
    width = (without[f"{kind} high"] - without[f"{kind} low"]) / 2
    word = "rises" if found > 0 else "falls"
    if abs(found) <= width:
        word = "does not change beyond its interval"
    return f"that of the {kind} classes {word} ({found:+.3f})"


Markdown(
    "Each colour is a class, to learn from (upper row) or new (lower row). "
    "The paper's story asks for a silhouette that falls on base classes and "
    "rises on novel ones. With the negative margin, here, "
    f"{change('base')} and {change('novel')}."
)

# %% [markdown]
# ## Discriminability against the margin
#
# Between-class over within-class spread, for the classes trained on and for
# novel ones, in the networks of the sweep. The paper: as the margin falls,
# base classes are told apart less and less well, novel ones at first
# better.

# %%
base_set = data["train"].subset(per_class=100)
looks = {}
for kind in ("dot", "cosine"):
    for m in swept(kind, dense):
        net = small.run(**network(kind, m)).method
        looks[kind, m] = look_at(
            net, pooled(net, base_set), pooled(net, data["test"])
        )
figure, axes = plt.subplots(1, 2, figsize=(6.9, 2.8))
for panel, (kind, title) in zip(
    axes, (("dot", "dot products"), ("cosine", "cosines"))
):
    margins = swept(kind, dense)
    for part, style, colour in (("base", "^-", NONE), ("novel", "o-", BELOW)):
        panel.plot(
            margins,
            [getattr(looks[kind, m], part).ratio for m in margins],
            style,
            ms=4,
            color=colour,
            label=part,
        )
    panel.axvline(0, lw=0.6, color="black")
    panel.set(xlabel="Margin m", title=title)
    panel.set_ylim(0)
    panel.grid(axis="y")
axes[0].set_ylabel("Inter / intra")
_ = axes[1].legend()

# %% tags=["hide-input"]
table(
    [
        {"similarity": kind, "m": f"{m:+.2f}"}
        | {
            f"{part}: {name}": getattr(getattr(seen, part), name)
            for part in ("base", "novel")
            for name in ("intra", "inter", "ratio")
        }
        for (kind, m), seen in looks.items()
        if m in FEW[kind]
    ],
    digits=3,
)


# %% tags=["hide-input"]
def told(kind: str, part: str) -> str:
    """How the ratio of one part changes from the lowest margin on."""
    margins = swept(kind, dense)
    ratio = [getattr(looks[kind, m], part).ratio for m in margins]
    trend = spearmanr(margins, ratio).statistic
    change = ratio[0] / ratio[margins.index(0.0)] - 1
    return (
        f"on {part} classes the ratio at m = {margins[0]:g} is {change:+.0%} "
        f"against m = 0 (rank correlation with the margin {trend:+.2f})"
    )


Markdown(
    "\n".join(
        f"- {title}: {told(kind, 'base')}; {told(kind, 'novel')}."
        for kind, title in (("dot", "Dot products"), ("cosine", "Cosines"))
    )
    + "\n\nThe paper's story is a positive correlation on base classes. On "
    "novel ones the ratio first rises as m falls below zero, and may fall "
    "again at the lowest margins: for those look at the curve."
)

# %% [markdown]
# ## One novel class on many base peaks?
#
# Images of one novel class go through the base classifier, margin off. The
# bars are the shares of the base classes that they fall on, largest first.
# Shown is the novel class that spreads most where there is no margin.

# %%
three = FEW["dot"]
spread = looks["dot", 0.0].effective
shown = int(spread.argmax())
figure, axes = plt.subplots(1, 3, figsize=(6.9, 2.6), sharey=True)
for panel, m, colour in zip(axes, three, (BELOW, NONE, ABOVE)):
    shares, order = looks["dot", m].peaks[shown].sort(descending=True)
    panel.bar(range(8), 100 * shares[:8], color=colour)
    panel.set_xticks(
        range(8),
        [
            short_name(data["train"].class_names[int(k)], 40)[:18]
            for k in order[:8]
        ],
        rotation=60,
        ha="right",
        size=6.5,
    )
    effective = float(looks["dot", m].effective[shown])
    panel.set_title(f"m = {m:g}: {effective:.1f} peaks", size=8.5)
    panel.grid(axis="y")
axes[0].set_ylabel("Share of the images (%)")
print("Novel class:", data["test"].class_names[shown])

# %% [markdown]
# ### All novel classes
#
# The same as one number for each novel class, averaged: effective peaks of
# the softmax at the scale of training, and of plain counts (how many images
# are *nearest* to each base class).


# %%
def peaks_of(kind: str, m: float, way: str) -> torch.Tensor:
    """Effective peaks of each novel class, (J,)."""
    return effective_peaks(getattr(looks[kind, m], way))


figure, axes = plt.subplots(1, 2, figsize=(6.9, 2.8))
for panel, (kind, title) in zip(
    axes, (("dot", "dot products"), ("cosine", "cosines"))
):
    margins = swept(kind, dense)
    for way, label, style in (
        ("peaks", "softmax", "o-"),
        ("nearest", "counts", "s--"),
    ):
        mean, ci95 = np.array(
            [interval(peaks_of(kind, m, way)) for m in margins]
        ).T
        panel.errorbar(
            margins, mean, ci95, fmt=style, ms=4, capsize=2, label=label
        )
    panel.axvline(0, lw=0.6, color="black")
    panel.set(xlabel="Margin m", title=title)
    panel.set_ylim(0)
    panel.grid(axis="y")
axes[0].set_ylabel("Effective base classes\nof a novel class")
_ = axes[1].legend()

# %% tags=["hide-input"]
lines = []
for kind, title in (("dot", "Dot products"), ("cosine", "Cosines")):
    low, none, high = FEW[kind]
    parts = []
    for m in (low, high):
        change = interval(
            peaks_of(kind, m, "nearest") - peaks_of(kind, none, "nearest")
        )
        overlap = [
            float(shared_peaks(looks[kind, x].nearest).triu(1).sum())
            for x in (m, none)
        ]
        parts.append(
            f"m = {m:g} changes the effective number by {change[0]:+.2f} ± "
            f"{change[1]:.2f} (by counts, over {len(spread)} novel classes) "
            "and what two novel classes share by "
            f"{overlap[0] / overlap[1] - 1:+.0%}"
        )
    lines.append(f"- {title}: " + "; ".join(parts) + ".")
Markdown(
    "\n".join(lines)
    + "\n\nThe paper's claim is that a larger margin gives *more* peaks and "
    "a negative one fewer. Softmax shares are also flattened whenever the "
    "network is less sure, which a negative margin makes it; counts are not, "
    "so they are the fairer witness."
)

# %% [markdown]
# ## In two dimensions
#
# Here the feature itself has two numbers, so it can be drawn without t-SNE:
# a Conv-4 with a last layer of width two, trained on a few base classes
# with three margins (dot products, $s = 5$, Adam as the authors have it). Lines
# are the classifier's weight vectors. Black crosses are images of one novel
# class.

# %%
flat = Study(
    dataset,
    "conv4",
    plane_epochs,
    augment,
    profile,
    (seeds[0],),
    backbone_options={"project": 2},
    training=AUTHORS,
)
some = data["train"].subset(range(plane_classes))
stranger = data["test"].rows_of(0)[:60]
flat_looks = {}
figure, axes = plt.subplots(1, 3, figsize=(6.9, 2.7))
for panel, m in zip(axes, FEW["dot"]):
    asked = flat.config(**network("dot", m, trained="plane"), batch=32)
    net = fit(asked, {"train": some}).method
    z, own = pooled(net, some)
    new = pooled(net, data["test"])
    flat_looks[m] = look_at(net, (z, own), new)
    for c in range(plane_classes):
        panel.scatter(
            *z[own == c][:120].T,
            s=5,
            color=CYCLE[c % len(CYCLE)],
            marker=MARKERS[c % len(MARKERS)],
            linewidths=0,
        )
    reach = float(z.norm(dim=1).max())
    for w in torch.nn.functional.normalize(net.weight.detach(), dim=1):
        panel.plot(
            *zip((0, 0), (0.8 * reach * w).tolist()), color="black", lw=0.7
        )
    panel.scatter(
        *new[0][stranger].T, s=18, color="black", marker="x", linewidths=0.8
    )
    panel.set(
        xlim=(-1.05 * reach, 1.05 * reach), ylim=(-1.05 * reach, 1.05 * reach)
    )
    panel.set_title(f"m = {m:g}")
    panel.set_aspect("equal")

# %% tags=["hide-input"]
table(
    [
        {
            "m": f"{m:+.1f}",
            "intra, base": seen.base.intra,
            "inter, base": seen.base.inter,
            "ratio, base": seen.base.ratio,
            "effective base classes of a novel one": float(
                effective_peaks(seen.nearest).mean()
            ),
        }
        for m, seen in flat_looks.items()
    ]
)

# %% tags=["hide-input"]
low, none, high = (flat_looks[m].base for m in FEW["dot"])
Markdown(
    "In the plane the ratio of the base classes is "
    f"{low.ratio:.1f}, {none.ratio:.1f} and {high.ratio:.1f} from the "
    "negative to the positive margin, "
    + (
        "rising with the margin: the bunches get tighter, as the drawing on "
        "the first page of this chapter has it."
        if low.ratio < none.ratio < high.ratio
        else "not simply rising with the margin as the drawing on the first "
        "page of this chapter has it."
    )
    + " One network each, so read it as an illustration."
)

# %% [markdown]
# ## Where they look
#
# One query of each way of an episode; the warmer a place, the more it looks
# like the prototype of its own class.

# %%
novel_set = data["test"]
task = draw_episodes(novel_set.labels, 1, 4, 1, 15, 3)
whole = {name: embed_images(net, novel_set) for name, net in nets.items()}
figure = heat_panel(whole, novel_set, task)

# %% tags=["hide-input"]
Markdown(heat_words(whole, novel_set))

# %% [markdown]
# ## What looks like what
#
# The same episode as a ranking: each query with the ways from most to least
# similar, by neg-cosine.

# %%
mine = nets["m = -0.02"]
features = mine.test_features(whole["m = -0.02"])
logits = mine.score(
    features[task.support], features[task.query[:, :, :1].flatten(1)]
)[0]
figure = ranking_panel(
    novel_set.images[task.query[0, :, 0]],
    torch.arange(4),
    logits,
    novel_set.images[task.support[0, :, 0]],
    [novel_set.class_names[int(c)] for c in task.classes[0]],
)

# %% tags=["hide-input"]
Markdown(
    ranking_words(
        logits,
        [novel_set.class_names[int(c)] for c in task.classes[0]],
        range(4),
    )
)

# %% [markdown]
# ### The ranking as a number
#
# Are the pairs of novel classes that a method finds similar also pairs of
# one superclass, or pairs whose names mean similar things? Kendall's tau-b
# over all pairs, with a 95 % interval from resampling classes.

# %%
similar = {
    name: torch.nn.functional.normalize(values.mean((2, 3)), dim=1)
    for name, values in whole.items()
}
table(bracketed(ranking_table(similar, novel_set)))

# %% tags=["hide-input"]
Markdown(order_words(similar, novel_set, "m = -0.02"))

# %% [markdown]
# ## To take away
#
# - Discriminability and peaks turn the paper's picture into numbers that
#   can fail.
# - A softmax that is less sure spreads more by itself: count images too.
# - In two dimensions one sees what a margin does to base classes; novel
#   classes have to be measured.
