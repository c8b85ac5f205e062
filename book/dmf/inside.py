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
# repeats the paper's two figures, the sampled points and the aligned maps,
# and puts numbers under them. Before that comes the look that every chapter
# takes: classes as clouds, heat maps and rankings, beside CE and ProtoNet
# **on the same** $8 \times 8$ **maps**.

# %% tags=["parameters"]
profile: str = "quick"  # which profile these values belong to
dataset: str = "glyphs"  # trained and looked at
backbone: str = "conv4"  # conv4, resnet12_slim or resnet12
epochs: int = 3  # passes over the training images
ablation_backbone: str = "conv4_32"  # of the models with 0, 1, 2 alignments
ablation_epochs: int = 2  # passes over the images for these
augment: str = "none"  # mirrored letters would be other letters
seeds: list = [0]  # the first one is looked at
dense: bool = False  # train the model with two alignments, too
classes: int = 10  # in each t-SNE picture
per_class: int = 40  # points of each class

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
    silhouette_table,
)
from fslib.episodes import draw_episodes
from fslib.evaluate import embed_images
from fslib.heads.alignment import (
    align_pairs,
    sampled_places,
    share_outside,
    usual_groups,
)
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
# original space how tight classes lie (1 tight and apart, 0 touching).

# %%
samples = class_samples(study.data, classes, per_class)
maps = embed_samples(nets, samples)
figure = embedding_panel(maps, samples)

# %% [markdown]
# Each colour is a class. Base classes (upper row) part because they were
# taught; what matters is how much of that order new classes inherit.

# %%
tight = silhouette_table(maps, samples)
table(bracketed(tight))

# %% tags=["hide-input"]
value = tight.set_index("method")
order = {
    kind: ", ".join(value[kind].sort_values(ascending=False).index)
    for kind in ("base", "novel")
}
lost = value["base"] - value["novel"]
Markdown(
    f"From tightest to loosest: {order['base']} on base classes, "
    f"{order['novel']} on novel ones. On the way from base to novel classes "
    "the silhouette changes by "
    + ", ".join(f"{-fall:+.3f} for {name}" for name, fall in lost.items())
    + ". DMF compares by a product in which a long feature has a loud "
    "voice; tight clouds are not what it is trained for."
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
# ways from most to least similar.

# %%
dmf = nets["DMF"]
with torch.no_grad():
    features = dmf.test_features(whole["DMF"])
    logits = dmf.score(
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
# over all pairs of classes, with a 95 % interval from resampling classes.

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
# Six pairs of novel images of one class. The green dot is the position of
# the query that votes loudest for its class; the ring is the same position
# of the support image, and the orange dots are the nine places its filter
# is read from. White margins lie outside the image.

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

# %%
many = draw_episodes(novel.labels, 60, 5, 1, 15, 12)
own = (many.query[:, :, 0], many.support[:, :, 0])
other = (many.query[:, :, 0], many.support[:, :, 0].roll(1, 1))
lengths, outside, seen = {}, {}, {}
for kind, (q, s) in (("same class", own), ("another class", other)):
    q, s = whole["DMF"][q.flatten()], whole["DMF"][s.flatten()]
    with torch.no_grad():
        moves = dmf.metafilter.offsets(q, s).unflatten(1, (9, 2))
        outside[kind] = share_outside(
            sampled_places(dmf.metafilter, q, s), q.shape[2:]
        )
    lengths[kind] = moves.norm(dim=2).flatten()
    seen[kind] = moves
# Maps of zeros move nothing, as the offset convolution has no bias.
window = sampled_places(dmf.metafilter, 0 * q[:1], 0 * s[:1]).detach()
resting = share_outside(window, q.shape[2:])
figure, panel = plt.subplots(figsize=(5.2, 2.6))
top = float(torch.quantile(lengths["same class"][:100_000], 0.995))
bins = np.linspace(0, top, 41)
for (kind, values), colour in zip(lengths.items(), (RIGHT, QUIET)):
    shown = panel.hist(
        values.numpy(),
        bins,
        histtype="step",
        density=True,
        lw=1.8,
        color=colour,
        label=kind,
    )
panel.set(xlabel="Length of an offset (cells)", ylabel="Density")
legend = panel.legend()

# %% tags=["hide-input"]
middle = {kind: float(values.median()) for kind, values in lengths.items()}
fixed = seen["same class"].mean((0, 3, 4)).norm(dim=-1).mean()
turns = (seen["same class"] - seen["another class"]).norm(
    dim=2
).mean() / lengths["same class"].mean()
Markdown(
    f"Half of the offsets are longer than {middle['same class']:.2f} cells "
    f"for pairs of one class and than {middle['another class']:.2f} for "
    f"pairs of two. {outside['same class']:.1%} of the samples fall outside "
    f"the map and read zero; of an unmoved window it would be {resting:.1%}, "
    "all of them at the border. The mean offset of a tap over all pairs and "
    f"positions is {float(fixed):.2f} cells long, a habit rather than a "
    "look. And when the support image is exchanged for one of another "
    f"class, an offset changes by {float(turns):.0%} of its length. That is "
    "the prototype's share: the convolution is linear, so an offset is a "
    "query's part plus a prototype's part, without a term of both."
)

# %% [markdown]
# The paper's Fig. 3 shows points that gather on the object. Whether ours do
# can be judged by eye above; the numbers say how far they go and how much
# they care about the partner.
#
# ## What the filter does (paper: Fig. 4)
#
# Three one-shot pairs. The paper lays aligned query maps of five models
# side by side: none, one and two alignments, the ODE, and CAN
# {cite}`hou2019can`. CAN weighs positions but not channels, which is what
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


figure = heatmap_overlay(
    novel.images[left],
    to_unit_range(maps_of("aligned")),
    list(models),
    title,
)

# %% [markdown]
# Above, the channel mean of the aligned map, as in the paper. Below, the
# **votes** for the right way, which is what the answer is made of. Each map
# is stretched to its own range.

# %%
figure = heatmap_overlay(
    novel.images[left],
    to_unit_range(maps_of("scores")),
    list(models),
    title,
)

# %%
net = models["ODE"]
alone = [embed_images(net, novel.images[rows.flatten()]) for rows in own]
after = align_pairs(net, *alone).scores.flatten(1)
net.metafilter.alignments = 0
before = align_pairs(net, *alone).scores.flatten(1)
net.metafilter.alignments = None
standard = [
    (v - v.mean(1, keepdim=True)) / v.std(1, keepdim=True)
    for v in (before, after)
]
alike = (standard[0] * standard[1]).sum(1) / (before.shape[1] - 1)

# %% tags=["hide-input"]
Markdown(
    f"{'Five' if dense else 'Four'} networks, each with a backbone of its "
    "own: what differs between them need not be the alignment. Within *one* "
    "network it can be "
    f"asked directly. Over {len(alike)} pairs of one class, the votes of the "
    "ODE model before and after its own alignment correlate over positions "
    f"with r = {float(alike.mean()):.3f} (lowest pair "
    f"{float(alike.min()):.3f}). "
    + (
        "The alignment hardly moves where the votes are loud, so the figure "
        "shows mostly what separate trainings made of the image, not what "
        "the alignment does to it."
        if alike.mean() > 0.9
        else "The alignment does move where the votes are loud."
    )
)

# %% [markdown]
# What the alignment really does is the **gain**, the factor on the positive
# features. On one scale for all, from 1 (dark: untouched) to 4 (bright: two
# alignments at $f = 1$):

# %%
figure = heatmap_overlay(
    novel.images[left],
    ((maps_of("gain") - 1) / 3).clamp(0, 1),
    list(models),
    title,
)


# %%
def habit(gain: torch.Tensor) -> float:
    """Spread over the groups of what is the same in all pairs and places."""
    mean = gain.mean((0, 1, 2))
    return float(mean.std()) if len(mean) > 1 else 0.0


pairs = [rows.flatten() for rows in own]
rows = []
for name, net in models.items():
    q = embed_images(net, novel.images[pairs[0]])
    s = embed_images(net, novel.images[pairs[1]])
    t = s.unflatten(0, (-1, 5)).roll(1, 1).flatten(0, 1)
    same, different = align_pairs(net, q, s), align_pairs(net, q, t)
    gain = net.metafilter.gain(same.filters)
    cut = gain.mean((1, 2))  # (pairs, groups)
    rows.append(
        {
            "": name,
            "gain": float(gain.mean()),
            "over positions": float(same.gain.flatten(1).std(1).mean()),
            "over groups": float(cut.std(1).mean())
            if cut.shape[1] > 1
            else 0.0,
            "over pairs": float(same.gain.mean((1, 2)).std()),
            "groups, all pairs alike": habit(gain),
            "same class": float(same.gain.mean()),
            "another class": float(different.gain.mean()),
        }
    )
table(rows, digits=3)

# %% tags=["hide-input"]
ode = next(row for row in rows if row[""] == "ODE")
spread = {k: ode[k] for k in ("over positions", "over groups", "over pairs")}
strongest = max(spread, key=spread.get)
Markdown(
    "The first column is the mean gain, the next three its standard "
    "deviations, the fifth the fixed part of the one over groups, the last two "
    "means over pairs of one class and of two. "
    f"In the ODE model the gain differs most **{strongest}** "
    f"({spread[strongest]:.3f}), against "
    + " and ".join(f"{v:.3f} {k}" for k, v in spread.items() if k != strongest)
    + ". The paper argues that channels matter more than positions; these "
    + (
        "spreads agree."
        if spread["over groups"] > spread["over positions"]
        else "spreads do not agree."
    )
    + f" But of the spread over groups, {ode['groups, all pairs alike']:.3f} "
    "is the same for every pair and place: to that extent the filter is a "
    "fixed list of channel weights, which any layer could have learned."
    + " Between a partner of the same class and of another the mean gain "
    f"differs by {ode['same class'] - ode['another class']:+.4f}: "
    "the filter decides "
    + (
        "mainly *where and which channels*, hardly *whether*, to amplify."
        if abs(ode["same class"] - ode["another class"]) < max(spread.values())
        else "also *whether* to amplify."
    )
    + (
        ""
        if dense
        else " (In this profile the column T = 2 is the ODE model with its "
        "gain swapped.)"
    )
)

# %% [markdown]
# ## To take away
#
# - Offsets can be drawn, but also counted: length, share outside, and how
#   much they change with the partner.
# - Maps of separately trained networks differ for many reasons. The gain
#   map shows what the alignment itself does.
# - "One group" keeps positions and gives up channels; the ablation page
#   says what that costs.
