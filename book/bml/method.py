# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # BML: the method
#
# *Binocular Mutual Learning* {cite}`zhou2021bml` looks at every image with
# two eyes. One compares it with **all** base classes and learns how they
# relate; the other compares it with the **few** classes of an episode and
# learns to match. Each then learns to see as the other does.
#
# On this page you will
#
# - see the network in one picture and its three losses in code,
# - follow the elastic constraint through a worked example,
# - find out which loss moves which weights.
#
# ```{figure} ../_assets/bml.svg
# :alt: Shared blocks, two last blocks, and three losses on their maps.
# :width: 100%
#
# Blocks 1 to 3 are shared; block 4 exists twice. The global map answers to
# a classifier, the local map to an episode, and the mutual loss ties them.
# ```

# %% tags=["parameters"]
alpha1: float = 5.5  # longest elastic push
alpha2: float = 0.1  # how it grows with the difficulty of a query
temperature: float = 4.0  # of the mutual loss
seed: int = 0  # of the toy examples

# %%
import matplotlib.pyplot as plt
import numpy as np
import torch
from fslib.heads import Head
from fslib.losses.elastic import elastic_constraint, push_away
from fslib.losses.mutual import mutual_loss
from fslib.methods import Batch, build_method
from fslib.methods.bml import BML, match_positions
from fslib.pages import show_source, table
from fslib.plots.style import use_book_style
from IPython.display import Markdown

use_book_style()
generator = torch.Generator().manual_seed(seed)

# %% [markdown]
# ## The global view
#
# One linear layer $W$ names the base class at **every position** of the
# map, for support and query images alike:
#
# $$
# L_\text{global} = \frac{1}{BP} \sum_{i,p}
#   -\log \operatorname{softmax}(W F_i^p)_{y_i}.
# $$
#
# Here $F_i^p$ is the feature of image $i$ at position $p$ of the global map
# and $y_i$ its base class; there are $B$ images of $P$ positions.

# %%
show_source(BML.global_loss)

# %% [markdown]
# ## The local view
#
# From here on $F$ is the local map. The prototype $c_n$ of a way is the mean
# over its shots and positions; each position of a query is matched by
# itself,
#
# $$
# D_{ipn} = \lVert F_i^p - c_n \rVert^2 .
# $$

# %%
show_source(match_positions)

# %% [markdown]
# ## The elastic constraint
#
# Matching one of a few classes is soon easy, and an easy lesson teaches
# nothing. So the distance to the *true* way is lengthened before the
# softmax, by a push that grows with training ($e/E$) and with how hard the
# query is ($\Delta$, true distance minus the nearest wrong one):
#
# $$
# d_{EL} = \frac{\alpha_1\, e/E}{1 + \exp(-\alpha_2 \Delta)} .
# $$
#
# Of $E$ epochs $e$ are done; $\alpha_1$ is the longest push, and $\alpha_2$
# says how fast it grows with $\Delta$. The loss is then ordinary
# cross-entropy over the $Q$ queries of each of the $N$ ways, with $t$ the true
# way of a query:
#
# $$
# L_\text{local} = \frac{1}{NQP} \sum_{i,p} -\log
#   \operatorname{softmax}_n(-D_{ipn} - [n = t]\, d_{EL})_t .
# $$

# %%
show_source(elastic_constraint)

# %% [markdown]
# ### A worked example
#
# Five distances, the first one true. Nothing is decided yet: the true way
# holds 36 % of the probability, the nearest wrong one 30 %.

# %%
distances = torch.tensor([[10.0, 10.2, 10.4, 12.0, 12.0]])
truth = torch.tensor([0])
rows = []
for share in (0.0, 0.01, 0.5, 1.0):
    push, gate = elastic_constraint(distances, truth, share, alpha1, alpha2)
    pushed, _ = push_away(distances, truth, share, alpha1, alpha2)
    loss = torch.nn.functional.cross_entropy(-pushed, truth)
    rows.append(
        {
            "training done": f"{share:.0%}",
            "push": float(push),
            "cross-entropy": float(loss),
            "gate": "open" if bool(gate) else "closed",
        }
    )
table(rows, digits=4)

# %% tags=["hide-input"]
Markdown(
    "At the start the push is nothing; at the end it raises the loss of this "
    f"query from {rows[0]['cross-entropy']:.2f} to "
    f"{rows[-1]['cross-entropy']:.2f}. No feature was moved: one distance is "
    "written longer than it is, and the gradient has to make up for it."
)

# %% [markdown]
# ### Whom does it push?
#
# Three prototypes in the plane. The colour of each point is the push a
# query of the first class would get there, at the end of training. The
# released code adds a **gate** that the paper does not mention: a query is
# pushed only while no way holds more than half of the probability.

# %%
corners = torch.tensor([[0.0, 0.0], [3.0, 0.0], [1.5, 2.6]])
axis = torch.linspace(-2, 5, 140)  # no point exactly on a border
plane = torch.stack(torch.meshgrid(axis, axis, indexing="xy"), -1)
apart = (plane[..., None, :] - corners).square().sum(-1)
first = torch.zeros(apart.shape[:2], dtype=torch.long)
figure, axes = plt.subplots(1, 2, figsize=(6.9, 3.0), sharey=True)
for panel, gate, title in zip(
    axes, (False, True), ("paper: every query", "code: with the gate")
):
    push, _ = elastic_constraint(apart, first, 1.0, alpha1, alpha2, gate)
    image = panel.imshow(
        push,
        extent=(-2, 5, -2, 5),
        origin="lower",
        vmin=0,
        vmax=alpha1,
        cmap="cividis",
    )
    panel.scatter(*corners.T, c="white", edgecolors="black", s=60)
    panel.scatter(*corners[:1].T, c="#D55E00", edgecolors="black", s=60)
    panel.set_title(title)
_ = figure.colorbar(image, ax=axes, label="push", shrink=0.9)

# %% tags=["hide-input"]
every, _ = elastic_constraint(apart, first, 1.0, alpha1, alpha2, False)
gated, opened = elastic_constraint(apart, first, 1.0, alpha1, alpha2, True)
Markdown(
    "The orange point is the true prototype. Without the gate the push grows "
    f"smoothly, from {float(every.min()):.1f} to {float(every.max()):.1f}, "
    "the farther a query lies on the wrong side. With the gate a small patch "
    f"is left, {float(opened.float().mean()):.1%} of this plane, where all "
    "three classes compete: between two classes alone, one always holds more "
    "than half. Queries that are clearly right are let be, and so are those "
    "that are clearly wrong. With fifteen ways there are more rivals, and the "
    "gate is open more often; the last page of this chapter counts."
)

# %% [markdown]
# ## The mutual loss
#
# Both maps are averaged over positions, and a softmax over the **channels**
# turns each into something like a distribution:
# $q_i = \operatorname{softmax}(f_i / T)$ and
# $r_i = \operatorname{softmax}(g_i / T)$ for the averaged features $f_i$ and
# $g_i$ of image $i$. Each view is drawn towards the other by the
# Kullback-Leibler divergence, in both directions:
#
# $$
# L_\text{mutual} = \frac{T^2}{B} \sum_i
#   \mathrm{KL}(q_i \,\Vert\, r_i) + \mathrm{KL}(r_i \,\Vert\, q_i) .
# $$

# %%
show_source(mutual_loss)

# %% [markdown]
# Channels are no classes. What does this loss really ask for? In the sum of
# both directions the constants cancel, and what is left is exactly
# $T \sum_c (q_c - r_c)(f_c - g_c)$ for each image. At $T = 4$ the softmax is
# nearly flat. Then $q_c - r_c$ is nearly $(f_c - g_c - m) / CT$, with $m$ the
# mean of $f - g$ over the $C$ channels, and the sum becomes the **variance**
# over channels of the difference of the two features. Where the softmax is
# not flat, strong channels weigh more.

# %%
scales = np.array([0.1, 0.3, 1.0, 3.0, 10.0])
ratio = []
for scale in scales:
    g, h = scale * torch.randn(2, 64, 640, generator=generator)
    centred = (g - h).var(1, correction=0).mean()
    ratio.append(float(mutual_loss(g, h, temperature) / centred))
figure, panel = plt.subplots(figsize=(4.4, 2.4))
panel.semilogx(scales, ratio, "o-")
panel.axhline(1, lw=0.8, color="grey")
panel.set(
    xlabel="Spread of the features",
    ylim=(0, max(1.1, 1.1 * max(ratio))),
    ylabel="Mutual loss /\nvariance of difference",
)
figure.tight_layout()

# %% tags=["hide-input"]
apart = [f"{s:g}" for s, r in zip(scales, ratio) if abs(r - 1) > 0.05]
Markdown(
    f"At a spread of one the ratio is {ratio[2]:.3f}. "
    + (
        f"It leaves one by more than 5 % at a spread of {', '.join(apart)} "
        f"(down to {min(ratio):.2f}, up to {max(ratio):.2f}); elsewhere"
        if apart
        else "At every spread drawn here"
    )
    + " the loss is a centred squared error in the dress of a divergence. "
    "Such an error asks the two views for the same feature up to a constant."
)

# %% [markdown]
# ## The total, and what it reaches
#
# $$ L = 2 L_\text{global} + L_\text{local} + \tfrac12 L_\text{mutual} $$

# %%
show_source(BML.loss)

# %%
net = build_method(
    "bml",
    "conv4",
    classes=6,
    backbone_options={"width": 8},
    way=3,
    shot=1,
    query=2,
)
images = torch.rand(9, 3, 32, 32, generator=generator)
batch = Batch(images, torch.arange(3).repeat_interleave(3), net.batches)
groups = {
    "shared blocks": net.backbone.blocks[:-1],
    "global block": net.backbone.blocks[-1],
    "local block": net.local_block,
    "classifier": net.classifier,
}
rows = []
for part in ("global_loss", "local_loss", "mutual_loss"):
    net.zero_grad()
    net.loss(batch, progress=1.0)[part].backward()
    rows.append(
        {"loss": part}
        | {
            name: "x"
            if any(
                p.grad is not None and bool(p.grad.abs().sum() > 0)
                for p in group.parameters()
            )
            else ""
            for name, group in groups.items()
        }
    )
table(rows)

# %% [markdown]
# The first two losses reach their own view and the shared blocks; the
# mutual loss reaches both views and the shared blocks. The released code
# detaches nothing, so each of its two terms moves both views; with
# `detach_target` each term moves one, and the sum still both. Through the
# shared blocks each view teaches the other anyway.
#
# ## At test
#
# Both maps are rectified, square-rooted and flattened, prototypes are means
# over shots, and the logits of the two views are added. Squared distances
# add up over features, so the sum is one distance over both maps.

# %%
show_source(Head.raw_features, BML.branches)

# %% [markdown]
# ## To take away
#
# - Two last blocks on a shared trunk; one classifies, one matches.
# - The elastic push makes episodes harder as training goes on; the gate,
#   which only the code knows, restricts it to undecided queries.
# - While the softmax over channels is nearly flat, the mutual loss is a
#   centred squared error between two features.
#
# ## Try it
#
# 1. `temperature = 0.5`: where does the ratio leave one now?
# 2. `alpha2 = 2`: how does the push change across the border between two
#    classes in the paper's version?
