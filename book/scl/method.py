# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # SCL: the method
#
# A network that is only asked to tell base classes apart may keep what
# separates *them* and forget the rest, and novel classes need some of the
# rest. *Spatial Contrastive Learning* {cite}`ouali2021scl` therefore asks a
# second question beside "which class?": **which images of this batch belong
# together?** And it asks it place by place: a lawn
# should not be enough to make a dog and a sheep alike.
#
# What this chapter calls *the talk* are the slides of the authors' conference
# talk: its numbers and formulas are taken from them, the rest from the
# released code.
#
# On this page you will
#
# - see the losses in one picture and in code,
# - compare three little images by hand, as wholes and place by place,
# - put the loss into a loop of your own.
#
# ```{figure} ../_assets/scl.svg
# :alt: Two views, one network, a classifier and two ways to compare images.
# :width: 100%
#
# Every image comes in two views, two random changes of the same picture. The
# classifier names each view (CE, cross-entropy); the contrastive losses
# compare all views of the batch with each other, as wholes (GC) or place by
# place (SC). The three pink boxes are thrown away after training.
# ```

# %% tags=["parameters"]
tau: float = 0.1  # temperature of the contrastive losses
batch: int = 64  # images of a batch, in two views each
base_classes: int = 64  # of the batches whose floor is drawn
sharpness: float = 10.0  # of the attention in the worked example
seed: int = 0  # of the toy examples

# %%
import math

import matplotlib.pyplot as plt
import torch
from fslib.losses.contrastive import (
    GlobalSimilarity,
    Projection,
    SpatialSimilarity,
    aligned_cosine,
    contrastive_loss,
    cosine_similarity,
    loss_floor,
)
from fslib.methods.scl import ContrastiveDistillation, SpatialContrastive
from fslib.pages import show_source, table
from fslib.plots.style import use_book_style
from IPython.display import Markdown

use_book_style()
generator = torch.Generator().manual_seed(seed)

# %% [markdown]
# ## Which images belong together?
#
# A batch of $N$ images has $2N$ views. Let $S_{ij}$ be the similarity of the
# views $i$ and $j$, one number a pair. The other views that belong with $i$
# are its **positives** $P_i$, and the loss is
#
# $$
# L = -\frac{1}{2N} \sum_i \frac{1}{|P_i|} \sum_{j \in P_i}
#   \log \frac{\exp(S_{ij} / \tau)}{\sum_{k \neq i} \exp(S_{ik} / \tau)} .
# $$
#
# Read it as a classifier: view $i$ must pick a positive out of all other
# views. The temperature $\tau$ sets how sharply it picks. The choices are the
# views of the batch, so the rule itself has no weights to learn.
# **Supervised** (GC, SC), all views of the same class are positives;
# **self-supervised** (SS-GC, SS-SC), only the other view of the same image.

# %%
show_source(contrastive_loss)

# %% [markdown]
# ### It does not go to zero
#
# The probabilities of a view add up to one. With $|P_i|$ positives it has to
# share them, so its part of the loss cannot fall below $\log |P_i|$. Equal
# similarities, which say nothing, give $\log(2N - 1)$. The floor cannot be
# passed; that level can, by a bad order, and untrained heads may start above
# it. Read a curve against both. The fewer classes there are, the more
# positives a view has, and the higher the floor:

# %%
show_source(loss_floor)

# %%
rows = []
for classes in (base_classes, 5):
    drawn = torch.randint(classes, (200, batch), generator=generator)
    floors = torch.stack([loss_floor(y.repeat(2)) for y in drawn])
    rows.append(
        {
            "images in a batch": batch,
            "classes": classes,
            "floor, supervised": float(floors.mean()),
            "floor, self-supervised": 0.0,
            "level of equal similarities": math.log(2 * batch - 1),
        }
    )
table(rows, digits=3)

# %% [markdown]
# ## Global: one vector an image
#
# The network's map is averaged over its places, a small head projects the
# average to 80 numbers, and the cosine compares. The head stands between the
# loss and the features: it may forget what the contrast does not need, so
# that the features need not.

# %%
show_source(Projection, GlobalSimilarity)

# %% [markdown]
# ## Spatial: place by place
#
# The average mixes the dog with the lawn before anything is compared. So
# the spatial similarity compares locations, and first lets each location
# look for its match, by attention. Three small heads turn every location
# into a query $q$, a key $k$ and a value $v$ of 80 numbers. For a location
# $r$ of image $x$, one of $R$, and the locations $s$ of image $y$,
#
# $$
# P_{rs} = \operatorname{softmax}_s \frac{q^x_r \cdot k^y_s}{\sqrt{80}},
# \qquad \hat v_r = \sum_s P_{rs} v^y_s,
# \qquad T(x, y) = \frac1R \sum_r \cos(v^x_r, \hat v_r),
# $$
#
# In words: $r$ looks at all of $y$ ($P$), gathers what it found
# ($\hat v_r$), and is compared with it. $T$ is the mean over $r$. It has a
# direction, so both are added:
#
# $$ S(x, y) = T(x, y) + T(y, x) \in [-2, 2] . $$

# %%
show_source(SpatialSimilarity.forward)

# %% [markdown]
# ### A worked example
#
# Three images of four places, without heads. Each kind of place is a
# direction of its own, and queries, keys and values are the places
# themselves (queries sharpened, as a trained attention may be). Here $S$ is
# halved, so 1 is the most; the last column keeps the best place instead of
# the mean.

# %%
kinds = {"dog": 0, "sheep": 1, "lawn": 2, "street": 3}
pictures = {
    "dog on a lawn": ["dog", "lawn", "lawn", "lawn"],
    "dog on a street": ["dog", "street", "street", "street"],
    "sheep on a lawn": ["sheep", "lawn", "lawn", "lawn"],
}
shown = torch.tensor([[kinds[k] for k in p] for p in pictures.values()])
places = torch.eye(4)[shown]  # (3 images, 4 places, 4)
whole = cosine_similarity(places.mean(1), places.mean(1))
found = aligned_cosine(sharpness * places, places, places, places)
spatial = found.mean(-1) + found.mean(-1).T
best = found.amax(-1) + found.amax(-1).T
names = list(pictures)
table(
    [
        {
            "pair": f"{names[0]}, {names[j]}",
            "global": float(whole[0, j]),
            "place by place, mean": float(spatial[0, j]) / 2,
            "place by place, best place": float(best[0, j]) / 2,
        }
        for j in (1, 2)
    ]
)

# %%
figure, axes = plt.subplots(1, 2, figsize=(6.9, 2.3))
for axis, other in zip(axes, (1, 2)):
    axis.bar(range(4), found[0, other], color="#CC79A7", width=0.7)
    axis.set_xticks(range(4), pictures[names[0]])
    axis.set(ylim=(0, 1.1), title=f"found in: {names[other]}")
    axis.set_xlabel(f"the places of: {names[0]}")
_ = axes[0].set_ylabel("Cosine with what\nthe location found")

# %% tags=["hide-input"]
Markdown(
    "Left, only the dog finds itself; right, the three lawns do. As wholes, "
    "the pair with the lawn is "
    f"{float(whole[0, 2] / whole[0, 1]):.0f} times as alike as the pair with "
    "the dog, because the average counts a place by its share *squared*. "
    "Place by place each location counts once, and the lawn leads by "
    f"{float(spatial[0, 2] / spatial[0, 1]):.1f} times only. It still leads, "
    "covering three places of four: aligning places does *not* by itself tell "
    "object from background. The learned values can, by making one lawn "
    "unlike another. If only the best place counts, the two pairs are "
    f"{float(best[0, 1]) / 2:.2f} (dog) and {float(best[0, 2]) / 2:.2f} "
    "(lawn) alike."
)

# %% [markdown]
# ### Two maps by hand
#
# With two locations, two numbers each and no sharpening, the similarities can
# be checked on paper. $A$ has a different thing in each of its two places,
# $C$ the same in both.

# %%
a = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
c = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
maps = {"A": a, "A swapped": a.flip(0), "C": c, "-A": -a, "10 A": 10 * a}
rows = []
for first, second in (
    ("A", "A"),
    ("A", "A swapped"),
    ("A", "C"),
    ("C", "C"),
    ("A", "-A"),
    ("10 A", "10 A"),
):
    x, y = maps[first][None], maps[second][None]
    there, back = aligned_cosine(x, x, y, y), aligned_cosine(y, y, x, x)
    rows.append(
        {
            "pair": f"S({first}, {second})",
            "S": float(there.mean() + back.mean()),
        }
    )
table(rows, digits=4)

# %% [markdown]
# Swapping the places changes nothing: no position enters, a map is a *bag* of
# places. An image is not fully similar to itself, because soft attention
# mixes its places; with sharper queries and keys (`10 A`) it is. A constant
# map (`C`) always matches itself.
#
# ## The same numbers in less memory
#
# Written as above, the gathered vectors $\hat v_r$ of all pairs of views are
# $(2N)^2 R \cdot 80$ numbers. The cosine does not need them. Products of
# values, as small as the attention itself, give both of its parts:
#
# $$
# v^x_r \cdot \hat v_r = \sum_s P_{rs} (v^x_r \cdot v^y_s), \qquad
# \lVert \hat v_r \rVert^2 = \sum_{st} P_{rs} (v^y_s \cdot v^y_t) P_{rt} .
# $$

# %%
show_source(aligned_cosine)

# %% tags=["hide-input"]
table(
    [
        {
            "views": views,
            "places": places,
            "attention (MB)": views**2 * places**2 * 4 / 1e6,
            "gathered (MB), not made": views**2 * places * 80 * 4 / 1e6,
        }
        for views, places in ((128, 4), (128, 16), (128, 25), (256, 25))
    ],
    digits=0,
)

# %% [markdown]
# The table counts one tensor of each kind; a backward pass keeps several of
# them. `benchmarks/scl.py` measures both forms whole: 256 views of 25 places
# keep 520 MB instead of 1,398, and a step is 5.8 times as fast. A larger batch
# fits with `chunk=16`, which works on 16 views at a time and computes their
# part once more in the backward pass.
#
# ## The whole loss
#
# $$
# L = \lambda_{CE} L_{CE} + \lambda_{GC} L_{GC} + \lambda_{SC} L_{SC}
# $$
#
# Here $L_{CE}$ is the mean over both views. The released scripts give CE and
# SC a weight $\lambda$ of one each (0.5 each on CIFAR-FS); in the rows with
# GC of this book, GC has the weight that SC has elsewhere. The first view has
# the augmentation of every other run in this book; the second is cut,
# coloured and greyed as in SimCLR {cite}`chen2020simclr`, without blur.

# %%
show_source(SpatialContrastive.loss)

# %% [markdown]
# ## A second stage: distillation
#
# The contrast pulls the images of a class together and pushes all others
# away. The authors argue that the features of a class may then cluster more
# tightly than novel classes can use. So a **student**, a fresh network of the
# same kind, learns to have the unit features $u$ of the first network, its
# **teacher**, image by image: a pull without a push. The second part are the
# teacher's answers $p$, softened by a temperature $T = 4$
# {cite}`hinton2015distilling`:
#
# $$
# L = 10\, \lVert u^t - u^s \rVert^2 + T^2 KL(p^t_T \Vert p^s_T) .
# $$
#
# Two more parts are in the code below, with a weight of zero by default: the
# same distance place by place (`local`) and the labels' cross-entropy (`ce`).

# %%
show_source(ContrastiveDistillation.loss)

# %% [markdown]
# ## At test
#
# Heads, attention and classifier are thrown away; the network gives
# features. In this book's common protocol a novel class is the mean of its
# unit features, as for all other methods. The authors fit two logistic
# regressions to each episode instead, one on the averaged map and one on the
# map pooled to $2 \times 2$. Both tests appear on the next page.
#
# ## In a loop of your own
#
# Nothing in the losses knows of episodes or of this book. Two sets of maps
# may differ in number and in size:

# %%
similar = SpatialSimilarity(inputs=32, width=16)
first = torch.randn(6, 32, 3, 3, generator=generator)
second = torch.randn(4, 32, 2, 5, generator=generator)
scores = similar(first, second)  # (6, 4)
labels, other_labels = torch.arange(6) % 3, torch.arange(4) % 3
loss = contrastive_loss(scores, labels, other_labels, tau)
print(tuple(scores.shape), f"loss {loss:.3f}")

views = torch.cat([first, first.flip(3)])  # a batch with itself, two views
loss = contrastive_loss(similar(views), labels.repeat(2), tau=tau)
loss.backward()
print(
    f"loss {loss:.3f}, floor {loss_floor(labels.repeat(2)):.3f}, "
    f"equal similarities {math.log(len(views) - 1):.3f}"
)

# %% [markdown]
# ## To take away
#
# - Cross-entropy names classes; the contrastive loss sorts the images of a
#   batch, with heads that are thrown away afterwards.
# - The spatial form lets each place find its match before comparing. It
#   counts each place once: a large shared background weighs less than in an
#   average, a small shared object more. What a place says is left to the
#   learned values.
# - The supervised loss has a floor in place of zero, $\log |P_i|$ a view.
#
# ## Try it
#
# 1. `sharpness = 1.0`: does the dog still find the dog?
# 2. `base_classes = 351`, as in tieredImageNet: where is the floor?
# 3. In the worked example, give the lawn a direction halfway to the
#    street's. Which pair is more alike now?
