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
# The paper's talk looks at plain cross-entropy in two ways. The nearest
# neighbours of a novel image share its background rather than its class, and
# a spectrum shows in how many directions the features lie. This page repeats
# both for CE, for CE with each contrast, and for ProtoNet, and adds the views
# that every chapter has. At its end you can ask a place of an image where it
# looks in another.

# %% tags=["parameters"]
profile: str = "quick"  # which profile these values belong to
dataset: str = "glyphs"  # trained and looked at
backbone: str = "conv4_32"  # conv4_32, conv4, resnet12_slim, resnet12
epochs: int = 3  # passes over the training images
augment: str = "none"  # mirrored letters would be other letters
seeds: list = [0]  # the first one is looked at
pools: list = [True, True, True, False]  # which blocks halve their map
share: float = 0.5  # of the epochs where every image comes in two views
classes: int = 10  # in each t-SNE picture
per_class: int = 20  # points of each class there
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
    silhouette_change,
    silhouette_table,
)
from fslib.analysis.neighbours import accuracy_against_k, nearest
from fslib.analysis.spectrum import (
    alignment,
    effective_rank,
    even_share,
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
    COLOURS,
    attention_panel,
    clickable_attention,
    neighbour_panel,
)
from fslib.plots.images import ranking_panel
from fslib.plots.style import colour_of, use_book_style
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


control = "CE, two views"
nets = {
    "CE": study.run("ce", "no_last_pool").method,
    control: net(control),
    "CE + GC": net("CE + GC"),
    "CE + SC": net("CE + SC"),
    "ProtoNet": base.run("protonet").method,
}
colours = COLOURS | {"ProtoNet": colour_of("protonet")}

# %% [markdown]
# ProtoNet is the shared baseline with all poolings, so its map is coarser.
# Everything below is measured on one network each (the first seed, the
# `backbone` of this run, not the full width) and on the same images: as many
# base as novel classes, as many images of each.

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
# The talk shows three images under CE, with their eight nearest neighbours
# among the novel images. By their vote a cuirass is a malamute, a golden
# retriever a vase and an hourglass an electric guitar. Here are three images
# of our own, chosen as the worst of three classes. A green frame marks a
# neighbour of the right class.

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
alone = {
    name: interval(100 * (share == 0).double().numpy())
    for name, share in own.items()
}
Markdown(
    "The images were chosen for failing under CE, which favours every other "
    f"network on them. Of all {len(novel):,} images, those without a single "
    "neighbour of their own class among eight are "
    + ", ".join(
        f"{mean:.1f} ± {ci95:.1f} % ({name})"
        for name, (mean, ci95) in alone.items()
    )
    + "."
)

# %% [markdown]
# ### Accuracy against the number of neighbours
#
# All novel images at once, each named by a vote of its $k$ nearest. A tie goes
# to the nearer, so two vote as one does. Whether neighbours share a background
# is left to the eye: nothing here measures it.

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
    f"There are {count} classes, so chance is {100 / count:.0f} %. At "
    f"$k = {k}$ the accuracy is "
    + ", ".join(f"{v[k]:.1f} % ({name})" for name, v in votes.items())
    + ". In the share of the eight neighbours that are of an image's own "
    "class, "
    + "; ".join(
        in_words("CE + SC", name, interval(g)) for name, g in gap.items()
    )
    + ". The talk shows CE alone."
)

# %% [markdown]
# ## What do the features match?
#
# A view has two kinds of positives: the other view of its own image, and the
# images of its class. The first shares what says nothing about the class,
# such as background, and may be easier to find. How often is each more
# similar than a stranger, an image of another class? Half would be chance.
# All images are base images, one pair a class; partners are strongly
# augmented. *CE, two views* has seen strong views too, but no contrast.

# %%
generator = torch.Generator().manual_seed(0)
train = base.data["train"]
pairs = choose_images(train.labels, list(range(train.classes)), 2)
mild, strong = (
    augmented(train.images[pairs], policy, generator)
    for policy in (augment, "strong")
)
stranger = ~torch.eye(train.classes, dtype=torch.bool)


def above_strangers(positive, similarity) -> torch.Tensor:
    """How often a class's positive is above a stranger, in percent."""
    above = (positive[:, None] > similarity) & stranger
    return 100 * above.double().sum(1) / stranger.sum(1)


matched = {}
for name, m in nets.items():
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
for kind, mark, fill in (
    ("other view", "D", "white"),
    ("class-mate", "o", None),
):
    for y, (name, found) in enumerate(matched.items()):
        colour = colours[name]
        mean, ci95 = interval(found[kind].numpy())
        look = {"color": colour, "mfc": fill or colour, "ms": 7, "capsize": 2}
        panel.errorbar(mean, y, xerr=ci95, fmt=mark, **look)
    panel.plot([], [], mark, color="k", mfc=fill or "k", label=kind)
panel.axvline(50, lw=0.8, color="grey")
panel.set(xlim=(45, 101), xlabel="More similar than a stranger (%)")
panel.set_yticks(range(len(matched)), list(matched))
panel.invert_yaxis()
panel.grid(axis="x")
_ = panel.legend(loc="center left", bbox_to_anchor=(1, 0.5))

# %% tags=["hide-input"]
lead = {n: f["other view"] - f["class-mate"] for n, f in matched.items()}
wider = {
    name: interval((lead[name] - lead[control]).numpy())
    for name in ("CE + GC", "CE + SC")
}
Markdown(
    "Paired over classes: "
    + "; ".join(
        f"for the {kind}, " + in_words(name, "CE with two views", gap)
        for name in wider
        for kind in ("other view", "class-mate")
        for gap in [
            interval((matched[name][kind] - matched[control][kind]).numpy())
        ]
    )
    + ". "
    + " ".join(
        f"{name} widens the gap between the two."
        if mean > ci95
        else f"{name} narrows the gap between the two."
        if mean < -ci95
        else f"Whether {name} changes the gap between the two cannot be told."
        for name, (mean, ci95) in wider.items()
    )
)

# %% [markdown]
# ## In how many directions?
#
# The squared singular values of centred features say how much of the variance
# lies in each direction. The talk shows their fall as a curve, without
# numbers. The **effective rank** {cite}`roy2007effective` sums it up: the
# number of equally strong directions with the same entropy. The curves are
# those of novel images; the table below has base images, too.

# %%
values = {
    name: {kind: singular_values(m.mean((2, 3))) for kind, m in sets.items()}
    for name, sets in maps.items()
}
figure, axes = plt.subplots(1, 2, figsize=(6.9, 2.8))
for name, sets in values.items():
    s = sets["novel"]
    steps = range(1, len(s) + 1)
    axes[0].plot(steps, s / s[0], color=colours[name], label=name)
    axes[1].plot(steps, 100 * explained_variance(s), color=colours[name])
axes[0].set(
    yscale="log",
    ylim=(1e-3, 1.3),
    xlabel="Direction",
    title="Singular value over the largest",
)
axes[1].set(xlabel="Directions", title="Variance explained (%)", xscale="log")
_ = axes[0].legend(loc="lower left")

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
    f"CE has an effective rank of {rank['CE']['base']:.1f} on base and "
    f"{rank['CE']['novel']:.1f} on novel images, of at most {width['CE']}. If "
    "a contrast keeps more of an image, as the paper argues, novel images "
    "should have a higher one with it. Against CE with two views it changes by "
    + " and ".join(
        f"{rank[name]['novel'] - rank[control]['novel']:+.1f} under {name}"
        for name in ("CE + GC", "CE + SC")
    )
    + ", and that of CE itself by "
    f"{rank[control]['novel'] - rank['CE']['novel']:+.1f} with the second "
    "view and half the epochs. These are numbers of one network each and "
    "have no interval."
)

# %% [markdown]
# The other two columns look at the unit sphere {cite}`wang2020alignment`.
# **Alignment** is the mean squared distance of two images of one class (small:
# tight classes). **Uniformity** is the logarithm of the mean of $e^{-2 d^2}$
# over all pairs, with $d$ their distance (small: images spread evenly). The
# contrast asks for both on base classes, but of its heads: the features need
# not follow. Read the two together: ProtoNet's features all point in similar
# directions (uniformity near 0), so all its distances are small. Distillation
# asks for neither; it copies the teacher.

# %% tags=["hide-input"]
tight = {
    name: alignment(unit[name]["base"], images["base"].labels)
    for name in ("CE", control, "CE + GC", "CE + SC")
}
Markdown(
    "The authors fear that a contrast packs base classes too tightly, and "
    "distil for that reason. On base classes alignment is "
    + ", ".join(f"{value:.3f} ({name})" for name, value in tight.items())
    + ": the contrast "
    + ("tightens" if tight["CE + SC"] < tight[control] else "does not tighten")
    + " them over CE with two views here"
    + (
        ", and they stay looser than those of CE."
        if tight["CE + SC"] > tight["CE"]
        else "."
    )
)

# %% [markdown]
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
figure = embedding_panel(
    {name.replace("CE, ", ""): made for name, made in few.items()}, samples
)

# %%
tight = silhouette_table(few, samples)
table(bracketed(tight))

# %% [markdown]
# Each colour with its marker is a class. t-SNE {cite}`maaten2008tsne` draws
# neighbours together; its larger distances mean nothing. The silhouette
# measures in the original space how tight classes lie (1 tight and apart, 0
# touching, below 0 nearer to another class), with a 95 % interval from
# resampling images.

# %% tags=["hide-input"]
Markdown(
    "Image by image, the silhouette of CE + SC less that of another is "
    + "; ".join(
        f"{silhouette_change(few, samples, 'CE + SC', name)} ({name})"
        for name in few
        if name != "CE + SC"
    )
    + "."
)

# %% [markdown]
# ## Where they look
#
# One query of each way of an episode; the warmer a place, the smaller its
# angle to the prototype of its own class.

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
# least similar. Below each way stands its logit; the true one is framed, in
# green where it comes first.

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
together = float(even_share(wide.mean(-2)).mean())  # all askers as one
Markdown(
    f"Over all pairs of {len(some)} novel images, a place spreads its "
    f"attention over {100 * spread:.0f} % of the {wide.shape[-1]} places "
    "(counted by entropy). "
    + (
        "That is close to even: in this run a place is compared with little "
        "more than the average of the other image."
        if spread > 0.9
        else "So a place does choose where it looks."
        if spread < 0.6
        else "That is a mild preference: a place weighs where it looks, and "
        "leaves out little."
    )
    + " Averaged over all places that ask, the attention to an image covers "
    f"{100 * together:.0f} %: the nearer the two shares, the less it matters "
    "who asks."
)

# %% [markdown]
# In JupyterLab the next cell shows the first image with all its places, to
# be clicked.

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
# - Three chosen images persuade; the curve over $k$ counts them all.
# - Rank, alignment and uniformity describe the features; whether more of
#   one is better shows only in the accuracy.
# - Attention that spreads evenly compares a place with an average. Measure
#   its spread before reading its maps.
