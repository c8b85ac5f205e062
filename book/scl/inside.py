# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # SCL: a look inside
#
# The paper starts from two observations about plain cross-entropy: the
# nearest neighbours of a novel image share its background rather than its
# class, and the features of novel images lie in few directions. This page
# repeats both for CE, for CE with the two contrasts, and for ProtoNet, and
# adds the views that every chapter has. At its end you can ask a place of an
# image where it looks in another.

# %% tags=["parameters"]
profile: str = "quick"  # which profile these values belong to
dataset: str = "glyphs"  # trained and looked at
backbone: str = "conv4"  # conv4, resnet12_slim or resnet12
epochs: int = 3  # passes over the training images
augment: str = "none"  # mirrored letters would be other letters
seeds: list = [0]  # the first one is looked at
pools: list = [True, True, True, False]  # which blocks halve their map
share: float = 0.5  # of the epochs where every image comes in two views
classes: int = 10  # in each t-SNE picture
per_class: int = 30  # points of each class there
place: list = [1, 2]  # row and column of the location that is asked

# %%
import os

import matplotlib.pyplot as plt
import torch
from fslib.analysis.embedding import choose_images
from fslib.analysis.inside import (
    bracketed,
    embedding_panel,
    heat_panel,
    heat_words,
    order_words,
    ranking_table,
    ranking_words,
    silhouette_table,
)
from fslib.analysis.neighbours import accuracy_against_k, nearest
from fslib.analysis.spectrum import (
    alignment,
    effective_rank,
    explained_variance,
    singular_values,
    uniformity,
)
from fslib.augment import augment as augmented
from fslib.episodes import draw_episodes
from fslib.evaluate import embed_images, interval
from fslib.methods.scl import loss_row
from fslib.pages import in_words, table
from fslib.plots.contrast import (
    attention_panel,
    clickable_attention,
    even_share,
    neighbour_panel,
)
from fslib.plots.images import ranking_panel
from fslib.plots.style import use_book_style
from fslib.study import Study
from IPython.display import Markdown

use_book_style()
base = Study(dataset, backbone, epochs, augment, profile, tuple(seeds))
study = base.but(backbone_options={"pools": pools})
two_views = study.but(epochs=max(2, int(share * epochs)))
weight = 0.1 if dataset.startswith("glyphs") else 1.0  # see training


def net(label: str):
    variant, options = loss_row(label, weight)
    return two_views.run("scl", variant, **options).method


nets = {
    "CE": study.run("ce", "no_last_pool").method,
    "CE + GC": net("CE + GC"),
    "CE + SC": net("CE + SC"),
    "ProtoNet": base.run("protonet").method,
}
colours = dict(zip(nets, ("#6b6b6b", "#E69F00", "#CC79A7", "#0072B2")))
colours["CE, two views"] = "#009E73"

# %% [markdown]
# Everything below is measured on the same images: as many base as novel
# classes, as many images of each.

# %%
parts = {"base": base.data["train"], "novel": base.data["test"]}
count = min(p.classes for p in parts.values())
each = min(100, *(int(p.counts.min()) for p in parts.values()))
images = {
    kind: part.take(choose_images(part.labels, list(range(count)), each))
    for kind, part in parts.items()
}
maps = {
    name: {kind: embed_images(m, part) for kind, part in images.items()}
    for name, m in nets.items()
}
unit = {
    name: {
        kind: torch.nn.functional.normalize(values.mean((2, 3)), dim=1)
        for kind, values in sets.items()
    }
    for name, sets in maps.items()
}
novel = images["novel"]

# %% [markdown]
# ## Whom does a novel image lie next to?
#
# Three novel images with their eight nearest neighbours among the novel
# images, under CE. They are chosen as the paper's must have been: hardly any
# of their neighbours is of their own class (green frame).

# %%
near = {
    name: nearest(u["novel"], u["novel"], 8, skip_self=True)[0]
    for name, u in unit.items()
}
own = {
    name: (novel.labels[rows] == novel.labels[:, None]).float().mean(1)
    for name, rows in near.items()
}
worst = own["CE"].argsort(stable=True)
missed = []
for row in worst.tolist():
    if novel.labels[row] not in novel.labels[missed]:
        missed.append(row)
missed = torch.tensor(missed[:3])
figure = neighbour_panel(novel, missed, near["CE"][missed])

# %% [markdown]
# The same three under CE + SC:

# %%
figure = neighbour_panel(novel, missed, near["CE + SC"][missed])

# %% tags=["hide-input"]
alone = {name: float((s == 0).float().mean()) for name, s in own.items()}
Markdown(
    "A panel of failures is chosen to show failures, and any other network "
    "will look better on it. Counted over all "
    f"{len(novel):,} images, those without a single neighbour of their own "
    "class among eight are "
    + ", ".join(f"{100 * v:.1f} % under {name}" for name, v in alone.items())
    + "."
)

# %% [markdown]
# ### Accuracy against the number of neighbours
#
# All novel images at once, each named by a vote of its $k$ nearest.

# %%
ks = [k for k in (1, 2, 4, 8, 16, 32) if k < each]
votes = {
    name: accuracy_against_k(
        u["novel"], novel.labels, u["novel"], novel.labels, ks, skip_self=True
    )
    for name, u in unit.items()
}
figure, panel = plt.subplots(figsize=(5.4, 2.7))
for name, found in votes.items():
    panel.plot(
        ks, list(found.values()), "o-", ms=4, color=colours[name], label=name
    )
panel.set(xscale="log", xlabel="Neighbours that vote", ylabel="Accuracy (%)")
panel.set_xticks(ks, [str(k) for k in ks])
panel.minorticks_off()
panel.grid(axis="y")
_ = panel.legend()

# %% tags=["hide-input"]
k = 8
gap = {
    name: (100 * (own["CE + SC"] - own[name])).numpy()
    for name in nets
    if name != "CE + SC"
}
Markdown(
    f"Of {count} classes, so that chance is {100 / count:.0f} %. At $k = {k}$ "
    + ", ".join(f"{name} reaches {v[k]:.1f} %" for name, v in votes.items())
    + ". In the share of neighbours that are of an image's own class, "
    + "; ".join(
        in_words("CE + SC", name, interval(g)) for name, g in gap.items()
    )
    + "."
)

# %% [markdown]
# ## What does the contrast match?
#
# A view has two kinds of positives: the other view of its own image, and the
# images of its class. The first is easier, because it shares what says
# nothing about the class, such as colour and background. How often is each
# more similar than a stranger, an image of another class? Half would be
# chance. All images are base images, all partners strongly augmented.

# %%
generator = torch.Generator().manual_seed(0)
train = base.data["train"]
pairs = choose_images(train.labels, list(range(train.classes)), 2)
mild, strong = (
    augmented(train.images[pairs], policy, generator)
    for policy in (augment, "strong")
)
stranger = ~torch.eye(train.classes, dtype=torch.bool)


def above_strangers(positive, similarity) -> float:
    """How often a positive is more similar than a stranger, in percent."""
    return 100 * float(
        (positive[:, None] > similarity)[stranger].float().mean()
    )


matched = {}
control = "CE, two views"  # has seen strong views, but no contrast
for name, m in (nets | {control: net(control)}).items():
    asked, partner = (
        torch.nn.functional.normalize(
            embed_images(m, pixels).mean((2, 3)), dim=1
        ).view(train.classes, 2, -1)
        for pixels in (mild, strong)
    )
    similarity = asked[:, 0] @ partner[:, 0].T
    matched[name] = {
        "other view": above_strangers(similarity.diag(), similarity),
        "class-mate": above_strangers(
            (asked[:, 0] * partner[:, 1]).sum(1), similarity
        ),
    }
figure, panel = plt.subplots(figsize=(5.4, 2.3))
for y, (name, found) in enumerate(matched.items()):
    for kind, mark in (("other view", "D"), ("class-mate", "o")):
        panel.plot(
            found[kind],
            y,
            mark,
            ms=7,
            color=colours[name],
            mfc="white" if kind == "other view" else colours[name],
        )
for kind, mark, fill in (
    ("other view", "D", "white"),
    ("class-mate", "o", "k"),
):
    panel.plot([], [], mark, color="k", mfc=fill, label=kind)
panel.axvline(50, lw=0.8, color="grey")
panel.set(xlim=(45, 101), xlabel="More similar than a stranger (%)")
panel.set_yticks(range(len(matched)), list(matched))
panel.invert_yaxis()
panel.grid(axis="x")
_ = panel.legend(loc="center left", bbox_to_anchor=(1, 0.5))

# %% tags=["hide-input"]
lead = {n: f["other view"] - f["class-mate"] for n, f in matched.items()}
Markdown(
    "The other view comes before a stranger in "
    + ", ".join(f"{f['other view']:.0f} % for {n}" for n, f in matched.items())
    + "; a class-mate in "
    + ", ".join(f"{f['class-mate']:.0f} % for {n}" for n, f in matched.items())
    + ". "
    + (
        "Under the contrast the gap between the two is wider than under CE "
        "with two views: what it has learned first is to find the same "
        "*image* again. On images whose colours and background say nothing "
        "about their class, a short run may get no further."
        if min(lead["CE + GC"], lead["CE + SC"]) > lead[control]
        else "Not both contrasts widen the gap between the two against CE with "
        "two views."
    )
)

# %% [markdown]
# ## In how many directions?
#
# Centred features have singular values; squared, they say how much of the
# variance lies in each direction. The paper shows their fall as a curve.
# The **effective rank** {cite}`roy2007effective` sums it up: the number of
# equally strong directions with the same entropy.

# %%
values = {
    name: {kind: singular_values(m.mean((2, 3))) for kind, m in sets.items()}
    for name, sets in maps.items()
}
figure, axes = plt.subplots(1, 2, figsize=(6.9, 2.8))
for name, sets in values.items():
    for kind, style in (("base", "--"), ("novel", "-")):
        s = sets[kind]
        steps = range(1, len(s) + 1)
        for axis, line in (
            (axes[0], s / s[0]),
            (axes[1], 100 * explained_variance(s)),
        ):
            axis.plot(
                steps,
                line,
                style,
                lw=1.4,
                color=colours[name],
                label=name if kind == "novel" else None,
            )
axes[0].set(
    yscale="log",
    ylim=(1e-3, 1.3),
    xlabel="Direction",
    title="Singular value over the largest",
)
axes[1].set(xlabel="Directions", title="Variance explained (%)", xscale="log")
_ = axes[1].legend(loc="lower right")

# %%
rows = []
for name, sets in values.items():
    row = {"method": name}
    for kind, s in sets.items():
        features, labels = unit[name][kind], images[kind].labels
        row[f"rank, {kind}"] = f"{effective_rank(s):.1f}"
        row[f"alignment, {kind}"] = f"{alignment(features, labels):.3f}"
        row[f"uniformity, {kind}"] = f"{uniformity(features):.2f}"
    rows.append(row)
table(rows)

# %% tags=["hide-input"]
rank = {
    n: {k: effective_rank(s) for k, s in v.items()} for n, v in values.items()
}
width = {name: m["novel"].shape[1] for name, m in maps.items()}
Markdown(
    "Solid lines are novel images, dashed ones base images. "
    + " ".join(
        f"{name} spreads novel images over {r['novel']:.1f} of {width[name]} "
        f"directions, base images over {r['base']:.1f}."
        for name, r in rank.items()
    )
    + " The paper's argument asks for a higher rank on novel images with the "
    "contrast than without: "
    + "; ".join(
        f"{name} has {rank[name]['novel'] - rank['CE']['novel']:+.1f} against "
        "CE"
        for name in ("CE + GC", "CE + SC")
    )
    + "."
)

# %% [markdown]
# The other two columns look at the unit sphere {cite}`wang2020alignment`.
# **Alignment** is the mean squared distance of two images of one class
# (small: tight classes). **Uniformity** is the logarithm of
# the mean of $e^{-2 d^2}$ over all pairs (small: images spread out evenly).
# The contrast asks for both at once, on base classes. Whether the *novel*
# ones follow is seen in their columns; distillation rests on the guess that
# they are better off with less of the second.
#
# ## Classes as clouds

# %%
few_classes = range(min(classes, count))
clouds = {
    kind: choose_images(part.labels, list(few_classes), min(per_class, each))
    for kind, part in images.items()
}
samples = {kind: images[kind].take(rows) for kind, rows in clouds.items()}
few = {
    name: {kind: values[clouds[kind]] for kind, values in sets.items()}
    for name, sets in maps.items()
}
figure = embedding_panel(few, samples)

# %%
tight = silhouette_table(few, samples)
table(bracketed(tight))

# %% [markdown]
# t-SNE {cite}`maaten2008tsne` draws neighbours together and means nothing at
# larger distances; the silhouette measures in the original space how tight
# classes lie (1 tight and apart, 0 touching), with a 95 % interval.

# %% tags=["hide-input"]
novel_tight = tight.set_index("method")["novel"]
best = novel_tight.idxmax()
Markdown(
    f"The tightest novel classes here are those of {best} "
    f"({novel_tight[best]:.3f}); CE has {novel_tight['CE']:.3f} and CE + SC "
    f"{novel_tight['CE + SC']:.3f}."
)

# %% [markdown]
# ## Where they look
#
# One query of each way of an episode; the warmer a place, the more it looks
# like the prototype of its own class. ProtoNet is the shared baseline with
# all poolings, so its map is coarser.

# %%
task = draw_episodes(novel.labels, 1, 4, 1, 15, 3)
novel_maps = {name: sets["novel"] for name, sets in maps.items()}
figure = heat_panel(novel_maps, novel, task)

# %% tags=["hide-input"]
Markdown(heat_words(novel_maps, novel))

# %% [markdown]
# ## What looks like what
#
# The same episode as CE + SC ranks it: each query with the ways from most to
# least similar.

# %%
method = nets["CE + SC"]
features = method.test_features(novel_maps["CE + SC"])
logits = method.score(
    features[task.support], features[task.query[:, :, :1].flatten(1)]
)[0]
figure = ranking_panel(
    novel.images[task.query[0, :, 0]],
    torch.arange(4),
    logits,
    novel.images[task.support[0, :, 0]],
    [novel.class_names[int(c)] for c in task.classes[0]],
)

# %% tags=["hide-input"]
Markdown(
    ranking_words(
        logits,
        [novel.class_names[int(c)] for c in task.classes[0]],
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
unit_novel = {name: u["novel"] for name, u in unit.items()}
table(bracketed(ranking_table(unit_novel, novel)))

# %% tags=["hide-input"]
Markdown(order_words(unit_novel, novel, "CE + SC"))

# %% [markdown]
# ## Ask a place
#
# SC is trained to let each place of one image find its match in another.
# The framed place of the left image is asked; the colours show where it
# looks, in two images of the same class and one of another. Attention is
# given as a multiple of an even spread.

# %%
asked = [0, min(5, count - 1)]
rows = torch.stack([novel.rows_of(c)[:3] for c in asked])
strange = novel.rows_of(count - 1 if asked[1] != count - 1 else 1)[:1]
others = torch.cat([rows[:, 1:], strange.expand(len(asked), 1)], 1)
sc_maps = maps["CE + SC"]["novel"]
side = tuple(sc_maps.shape[2:])
with torch.no_grad():
    attention = torch.stack(
        [
            method.places.attention(sc_maps[[a]], sc_maps[o])[0]
            for a, o in zip(rows[:, 0].tolist(), others)
        ]
    ).unflatten(2, side)  # (images, others, h, w, h w)
figure = attention_panel(
    novel.images[rows[:, 0]],
    (place[0] % side[0], place[1] % side[1]),
    novel.images[others],
    attention,
    ["same class", "same class", "another class"],
    [novel.class_names[c] for c in asked],
)

# %% tags=["hide-input"]
with torch.no_grad():
    some = torch.arange(0, len(novel), max(1, len(novel) // 60))
    wide = method.places.attention(sc_maps[some], sc_maps[some])
spread = float(even_share(wide).mean())
Markdown(
    f"Over all pairs of {len(some)} novel images, a place spreads its "
    f"attention over {100 * spread:.0f} % of the {wide.shape[-1]} places "
    "(counted by entropy). "
    + (
        "That is close to even: in this run the attention mostly averages, "
        "and the spatial loss compares places with an average."
        if spread > 0.9
        else "So it does choose, and the maps above show what."
    )
)

# %% [markdown]
# In JupyterLab the next cell shows the first image with all its places, to
# be clicked; it is a table of colours and needs no widget.

# %%
if "JPY_SESSION_NAME" in os.environ:  # a kernel of JupyterLab
    live = clickable_attention(
        novel.images[rows[0, 0]], novel.images[others[0]], attention[0]
    )
else:
    live = Markdown("Open this page in JupyterLab to click a place.")
live

# %% [markdown]
# ## To take away
#
# - Pictures of neighbours persuade; the curve over $k$ decides.
# - Rank, alignment and uniformity describe the features; whether more of
#   one is better shows only in the accuracy.
# - Attention that spreads evenly compares a place with an average. Measure
#   its spread before reading its maps.
