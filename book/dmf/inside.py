# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # DMF: a look inside
#
# Where does the filter look, and what does it do to the query? This page
# repeats two figures of the paper, the sampled points (Fig. 3) and the
# aligned maps (Fig. 4), and puts numbers under them. Before that comes the
# look that every chapter takes: classes as clouds, heat maps and rankings,
# beside CE and ProtoNet **on the same** $8 \times 8$ **maps**.

# %% tags=["parameters"]
profile: str = "quick"  # which profile these values belong to
dataset: str = "glyphs"  # trained and looked at
backbone: str = "conv4_32"  # conv4_32, conv4, resnet12_slim, resnet12
epochs: int = 3  # passes over the training images
ablation_backbone: str = "conv4_32"  # of the models with 0, 1, 2 alignments
ablation_epochs: int = 2  # passes over the images for these
augment: str = "none"  # mirrored letters would be other letters
seeds: list = [0]  # the first one is looked at
dense: bool = False  # train the model with two alignments, too
classes: int = 10  # in each t-SNE picture
per_class: int = 20  # points of each class

# %%
import matplotlib.pyplot as plt
import numpy as np
import torch
from fslib.analysis.heatmaps import to_unit_range, upsample
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
    silhouette_change,
    silhouette_table,
)
from fslib.episodes import draw_episodes
from fslib.evaluate import embed_images, interval
from fslib.heads.alignment import align_pairs, sampled_places, share_outside
from fslib.methods.dmf import usual_groups
from fslib.pages import table
from fslib.plots.images import heatmap_overlay, ranking_panel, sampling_panel
from fslib.plots.style import QUIET, RIGHT, use_book_style
from fslib.study import Study
from IPython.display import Markdown

use_book_style()
pools = {"pools": [True, True, False, False]}  # 8 x 8 cells at 32 pixels
study = Study(dataset, backbone, epochs, augment, profile, seeds[:1], 0, pools)
sweep = study.but(backbone=ablation_backbone, epochs=ablation_epochs)
nets = {
    "DMF": study.run("dmf", groups=usual_groups(backbone)).method,
    "CE": study.run("ce", "maps_8").method,
    "ProtoNet": study.run("protonet", "maps_8", pool="mean").method,
}

# %% [markdown]
# ## Classes as clouds
#
# t-SNE {cite}`maaten2008tsne` draws the features before any alignment, the
# mean of each map, in the plane; the **silhouette** measures in the
# original space how tight classes lie (1 tight and apart, 0 touching, below
# 0 nearer to another class).

# %%
samples = class_samples(study.data, classes, per_class)
maps = embed_samples(nets, samples)
figure = embedding_panel(maps, samples)

# %% [markdown]
# Each colour with its marker is a class. Base classes (upper row) part
# because they were taught; what matters is how much of that order new
# classes (lower row) inherit. In numbers, with 95 % intervals from
# resampling images:

# %%
tight = silhouette_table(maps, samples)
table(bracketed(tight))

# %% tags=["hide-input"]
Markdown(
    "Image by image, the silhouette of DMF less that of another is "
    + "; ".join(
        f"{silhouette_change(maps, samples, 'DMF', name)} ({name})"
        for name in ("CE", "ProtoNet")
    )
    + ". DMF compares by a product in which a long feature has a loud voice, "
    "so nothing in its loss asks for tight clouds."
)

# %% [markdown]
# ## Where they look
#
# One query of each way of an episode; the warmer a place, the more its
# feature resembles the prototype of its own class (by the cosine, the same
# for all three).

# %%
novel = study.data["test"]
task = draw_episodes(novel.labels, 1, 4, 1, 15, 3)
whole = {name: embed_images(net, novel) for name, net in nets.items()}
figure = heat_panel(whole, novel, task)

# %% tags=["hide-input"]
Markdown(heat_words(whole, novel))

# %% [markdown]
# ## What looks like what
#
# The same episode as a ranking, by DMF's own votes: each query with the
# ways from most to least similar. Below each way stands its logit; the true
# one is framed, in green where it comes first.

# %%
dmf = nets["DMF"]
with torch.no_grad():
    features = dmf.test_features(whole["DMF"])
    logits = dmf.score(
        features[task.support], features[task.query[:, :, :1].flatten(1)]
    )[0]
names = [novel.class_names[int(c)] for c in task.classes[0]]
figure = ranking_panel(
    novel.images[task.query[0, :, 0]],
    torch.arange(4),
    logits,
    novel.images[task.support[0, :, 0]],
    names,
)

# %% tags=["hide-input"]
Markdown(ranking_words(logits, names, range(4)))

# %% [markdown]
# ### The ranking as a number
#
# Are the pairs of novel classes that a method finds similar also pairs of
# one superclass, or pairs whose names mean similar things? Kendall's tau-b
# over all pairs of classes, with a 95 % interval from resampling classes.
# The likeness of two classes is here the cosine of their mean features,
# averaged over positions, for all methods alike.

# %%
unit = {
    name: torch.nn.functional.normalize(values.mean((2, 3)), dim=1)
    for name, values in whole.items()
}
table(bracketed(ranking_table(unit, novel)))

# %% tags=["hide-input"]
Markdown(order_words(unit, novel, "DMF"))

# %% [markdown]
# ## Where the filter is read from (paper: Fig. 3)
#
# Six pairs, each of two novel images of one class. The green dot is the
# position of the query that votes loudest for its class. The ring is the
# same position of the support image, and the orange dots are the nine places
# that its filter is read from. White margins lie outside the image.

# %%
several = draw_episodes(novel.labels, 6, 5, 1, 15, 11)
left, right = several.query[:, 0, 0], several.support[:, 0, 0]
query, support = whole["DMF"][left], whole["DMF"][right]
with torch.no_grad():
    places = sampled_places(dmf.metafilter, query, support)
votes = align_pairs(dmf, query, support).scores
width = votes.shape[-1]
loudest = votes.flatten(1).argmax(1)
cells = torch.stack([loudest // width, loudest % width], 1)
figure = sampling_panel(
    novel.images[left],
    novel.images[right],
    cells,
    places,
    [novel.class_names[int(c)] for c in several.classes[:, 0]],
)

# %% [markdown]
# The paper says that the points go to the truly informative places. Whether
# ours gather on the object can be judged by eye; how far they go, and how
# much they care about the partner, can be measured. So we take 300 pairs of
# one class, and the same queries with a support image of another class.

# %%
many = draw_episodes(novel.labels, 60, 5, 1, 15, 12)
asked = many.query[:, :, 0].flatten()
partners = {
    "same class": many.support[:, :, 0].flatten(),
    "another class": many.support[:, :, 0].roll(1, 1).flatten(),
}
q, part = whole["DMF"][asked], dmf.metafilter
moves, outside = {}, {}
with torch.no_grad():
    for kind, rows in partners.items():
        s = whole["DMF"][rows]
        moves[kind] = part.offsets(q, s).unflatten(1, (9, 2))
        outside[kind] = share_outside(sampled_places(part, q, s), q.shape[2:])
    # Maps of zeros move nothing, as the offset convolution has no bias.
    window = sampled_places(part, 0 * q[:1], 0 * q[:1])
resting = share_outside(window, q.shape[2:])
lengths = {kind: move.norm(dim=2).flatten() for kind, move in moves.items()}
figure, panel = plt.subplots(figsize=(5.2, 2.6))
top = float(torch.quantile(lengths["same class"][:100_000], 0.995))
bins = np.linspace(0, top, 41)
for (kind, values), colour in zip(lengths.items(), (RIGHT, QUIET)):
    how = {"histtype": "step", "density": True, "lw": 1.8, "color": colour}
    shown = panel.hist(values.numpy(), bins, label=kind, **how)
panel.set(xlabel="Length of an offset (cells)", ylabel="Density")
legend = panel.legend()

# %% tags=["hide-input"]
middle = {kind: float(values.median()) for kind, values in lengths.items()}
fixed = float(moves["same class"].mean((0, 3, 4)).norm(dim=-1).mean())
turns = float(
    (moves["same class"] - moves["another class"]).norm(dim=2).mean()
    / lengths["same class"].mean()
)
Markdown(
    f"Half of the offsets are longer than {middle['same class']:.2f} cells "
    f"for pairs of one class and than {middle['another class']:.2f} for "
    f"pairs of two, on a map of {q.shape[-1]} cells a side. (The paper's Sec. "
    "5.4 names its limit: an object in the opposite corner is out of reach.) "
    f"{outside['same class']:.1%} of the samples fall outside the map and "
    f"read zero; of a window that stays it would be {resting:.1%}, all at "
    "the border. Averaged over all pairs and positions, the offset of a cell "
    f"of the window is still {fixed:.2f} cells long: that part is a habit, "
    "not a look at the pair. From a partner of the same class to one of "
    f"another an offset changes by {turns:.0%} of the mean length. The "
    "convolution is linear: an offset is a query's part plus a prototype's "
    "part, and only the "
    "second can change with the partner."
)

# %% [markdown]
# ## What the filter does (paper: Fig. 4)
#
# Three one-shot pairs. The paper lays aligned query maps of five models
# side by side: none, one and two alignments, the ODE, and CAN
# {cite}`hou2019can`. It says that aligned maps focus on the object and those
# of no alignment and of CAN do so less, and that only the ODE highlights it
# in all three pairs. CAN weighs positions but not channels, which is what
# DMF does with **one group**; so that model stands here for it.

# %%
few = {"alignments": 2} if dense else {}
groups = usual_groups(ablation_backbone)
models = {
    "none": sweep.run("dmf", "ablation_align_0", groups=groups, alignments=0),
    "T = 1": sweep.run("dmf", "ablation_align_1", groups=groups, alignments=1),
    "T = 2": sweep.run(
        "dmf", "ablation_align_2" if dense else "ablation", groups=groups, **few
    ),
    "ODE": sweep.run("dmf", "ablation", groups=groups),
    "one group": sweep.run("dmf", "ablation_groups_1", groups=1),
}
models = {name: run.method for name, run in models.items()}
if not dense:  # the model of the ODE, tested with two alignments
    models["T = 2"].metafilter.alignments = 2

left, right = several.query[:3, 0, 0], several.support[:3, 0, 0]
both = torch.cat([left, right])
aligned = {}
for name, net in models.items():
    q, s = embed_images(net, novel.images[both]).chunk(2)
    aligned[name] = align_pairs(net, q, s)
title = [novel.class_names[int(c)] for c in several.classes[:3, 0]]


def maps_of(what: str) -> torch.Tensor:
    """One kind of map of every model, upsampled: (pairs, models, H, W)."""
    stacked = torch.stack([getattr(a, what) for a in aligned.values()], 1)
    return upsample(stacked, novel.size)


images = novel.images[left]
shown = to_unit_range(maps_of("aligned"))
figure = heatmap_overlay(images, shown, list(models), title)

# %% [markdown]
# Above, the mean of the aligned map over channels, as in the paper. Below,
# the **votes** for the right way, which the answer is made of. Each map is
# stretched to its own range.

# %%
shown = to_unit_range(maps_of("scores"))
figure = heatmap_overlay(images, shown, list(models), title)

# %%
net = models["ODE"]
rows = torch.cat([asked, *partners.values()])
trios = {
    name: embed_images(each, novel.images[rows]).chunk(3)
    for name, each in models.items()
}
after = align_pairs(net, *trios["ODE"][:2]).scores.flatten(1)
net.metafilter.alignments = 0
before = align_pairs(net, *trios["ODE"][:2]).scores.flatten(1)
net.metafilter.alignments = None
alike = [np.corrcoef(b, a)[0, 1] for b, a in zip(before, after)]
r, r_width = interval(alike)

# %% tags=["hide-input"]
Markdown(
    f"These are {'five' if dense else 'four'} networks, each with a backbone "
    "of its own: what differs between their maps need not be the alignment. "
    "Within *one* network it can be asked directly. Over "
    f"{len(alike)} pairs of one class, the votes of the ODE model before and "
    "after its own alignment correlate over positions with r = "
    f"{r:.4f} ± {r_width:.4f} (lowest pair {min(alike):.3f}). "
    + (
        "The alignment hardly moves where the votes are loud, so the figures "
        "show mostly what separate trainings made of the image, and are no "
        "evidence for the alignment."
        if r > 0.9
        else "The alignment does move where the votes are loud."
    )
    + (
        ""
        if dense
        else " (In this profile the column T = 2 is the ODE model, tested "
        "with two alignments.)"
    )
)

# %% [markdown]
# What the alignment really does is the **gain**, the factor on the positive
# features. On one scale for all, from 1 (dark: untouched) to 4 (bright: two
# alignments at $f = 1$):

# %%
shown = ((maps_of("gain") - 1) / 3).clamp(0, 1)
figure = heatmap_overlay(images, shown, list(models), title)

# %% [markdown]
# How much does the gain of a model differ over positions, groups and pairs?
# *Over positions* is the standard deviation within a pair after a mean over
# groups, *over groups* after a mean over positions; both are means over pairs.
# What the groups differ by in *all* pairs and places is
# no look at the pair: a fixed list of channel weights, which any layer could
# have learned.

# %%
rows, told, leads = [], {}, {}
for name, each in models.items():
    q, *others = trios[name]
    same, other = (align_pairs(each, q, s) for s in others)
    gain = each.metafilter.gain(same.filters)  # (pairs, h, w, groups)
    told[name] = interval((same.gain - other.gain).mean((1, 2)))
    over_groups = gain.mean((1, 2)).std(1, correction=0)
    over_places = same.gain.flatten(1).std(1, correction=0)
    leads[name] = interval(over_groups - over_places)
    rows.append(
        {
            "": name,
            "mean gain": float(gain.mean()),
            "over positions": float(over_places.mean()),
            "over groups": float(over_groups.mean()),
            "of it in all pairs": float(gain.mean((0, 1, 2)).std(correction=0)),
            "over pairs": float(same.gain.mean((1, 2)).std()),
            "same - another class": "{:+.4f} ± {:.4f}".format(*told[name]),
        }
    )
table(rows, digits=3)

# %% tags=["hide-input"]
ode = next(row for row in rows if row[""] == "ODE")
gap, width = told["ODE"]
lead, about = leads["ODE"]
Markdown(
    "The paper (Fig. 1) argues that positions alone are not enough and "
    "channels have to be weighed. In the ODE model the gain differs by "
    f"{ode['over groups']:.3f} over groups, {ode['of it in all pairs']:.3f} "
    "of it a fixed list for all pairs, and by "
    f"{ode['over positions']:.3f} over positions: "
    + (
        "the two are not told apart"
        if abs(lead) <= about
        else "more over groups"
        if lead > 0
        else "more over positions"
    )
    + f" ({lead:+.3f} ± {about:.3f} over pairs; the mean over a few groups "
    "leaves more chance in the places than that over many places in the "
    "groups). With a partner of the same class the mean gain is "
    + (
        "not told apart from that with another"
        if abs(gap) <= width
        else "higher than with another"
        if gap > 0
        else "lower than with another"
    )
    + f" ({gap:+.4f} ± {width:.4f})."
)

# %% [markdown]
# ## To take away
#
# - Offsets can be drawn, but also measured: their length, the share outside
#   and how much they change with the partner.
# - Maps of separately trained networks differ for many reasons. The gain
#   map shows what the alignment itself does.
# - "One group" keeps positions and gives up channels; the ablation page
#   says what that costs.
