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

# %%
show_source(BML.global_loss)

# %% [markdown]
# ## The local view
#
# The prototype $c_n$ of a way is the mean over its shots and positions; each
# position of a query is matched by itself,
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
axis = torch.linspace(-2, 5, 141)
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
    "the farther a query lies on the wrong side. With the gate only a narrow "
    f"seam between the classes is left, {float(opened.float().mean()):.0%} "
    "of this plane: queries that are clearly right are let be, and so are "
    "those that are clearly wrong."
)

# %% [markdown]
# ## The mutual loss
#
# Both maps are averaged over positions, and a softmax over the **channels**
# turns each into something like a distribution. Each view is drawn towards
# the other by the Kullback-Leibler divergence, in both directions:
#
# $$
# L_\text{mutual} = \frac{T^2}{B} \sum_i
#   D(q_i \,\Vert\, r_i) + D(r_i \,\Vert\, q_i) .
# $$

# %%
show_source(mutual_loss)

# %% [markdown]
# Channels are no classes. What does this loss really ask for? At
# $T = 4$ the softmax is nearly flat, and then the loss is nearly the
# variance over channels of the difference of the two features.

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
    ylim=(0.5, 1.1),
    ylabel="Mutual loss /\nvariance of difference",
)
figure.tight_layout()

# %% tags=["hide-input"]
Markdown(
    f"Up to a spread of one the ratio is {ratio[2]:.3f}: the mutual loss is "
    "a centred squared error in the dress of a divergence. It asks the two "
    "views for the same feature up to a constant. Only features that spread "
    f"by ten are treated otherwise (ratio {ratio[-1]:.2f})."
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
# mutual loss reaches both views, because the released code detaches
# nothing. Through the shared blocks each view teaches the other anyway.
#
# ## At test
#
# Both maps are rectified, square-rooted and flattened, prototypes are means
# over shots, and the logits of the two views are added. Squared distances
# add up over features, so the sum is one distance over both maps.

# %%
show_source(BML.branches)

# %% [markdown]
# ## To take away
#
# - Two last blocks on a shared trunk; one classifies, one matches.
# - The elastic push makes episodes harder as training goes on; the gate,
#   which only the code knows, restricts it to undecided queries.
# - The mutual loss is in effect a centred squared error between two maps.
#
# ## Try it
#
# 1. `temperature = 0.5`: where does the ratio leave one now?
# 2. `alpha2 = 2`: how does the seam change in the paper's version?
