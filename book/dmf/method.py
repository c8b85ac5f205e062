# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # DMF: the method
#
# A query is usually compared with a prototype as if the two had been made
# for each other. They have not: the bird has turned its head, and many
# channels speak of its branch. The *Dynamic Meta-filter* (DMF)
# {cite}`xu2021dmf` looks at both first and then decides, for **this pair**,
# at every position and for every group of channels, how much louder the
# query's feature should be. Only then are the two compared.
#
# On this page you will
#
# - follow a pair through offsets, filter, alignment and vote,
# - see why the "neural ODE" in the middle is an exponential function,
# - check a faster head against the one that follows the equations.
#
# ```{figure} ../_assets/dmf.svg
# :alt: A query map and a prototype map make offsets, a filter and a score.
# :width: 100%
#
# One pair: a query and one way. Every way asks for another filter, so a
# query has as many aligned maps as there are ways.
# ```

# %% tags=["parameters"]
channels: int = 128  # of the maps in the comparison of the two heads
groups: int = 16  # groups of channels that share a filter
side: int = 8  # cells along a map
seed: int = 0  # of the examples

# %%
import math
import time

import matplotlib.pyplot as plt
import torch
from fslib.heads.alignment import sampled_places
from fslib.metafilter import MetaFilter, class_weights
from fslib.metafilter.fast import fast_filters, fast_scores
from fslib.methods import Batch, build_method
from fslib.methods.dmf import DynamicMetaFilter
from fslib.pages import show_source, table
from fslib.plots.style import QUIET, RIGHT, WRONG, use_book_style
from IPython.display import Markdown

torch.manual_seed(seed)
use_book_style()

# %% [markdown]
# ## Where to look: offsets
#
# The backbone makes a map of every image, $h \times w$ cells (positions) of
# $c$ channels. The maps of a way's shots are averaged to one, $s$. The query
# map $q$ and $s$ are stacked, channel on channel. One $5 \times 5$
# convolution reads from them, for every position, how the nine cells of a
# $3 \times 3$ window on $s$ should move (Eq. 4 and 5 of the paper):
#
# $$
# o = \mathrm{conv}_{5\times5}\,[\,q\,;\,s\,] \in \mathbb{R}^{18\times h
# \times w} .
# $$

# %%
show_source(MetaFilter.offsets)

# %% [markdown]
# Eighteen numbers a position: for each cell of the window, row by row, how
# far down and how far right. Below, one position of a small map. Only the
# middle cell of the window is told to move, by one cell down and half a
# cell right; the others stay.

# %%
toy = MetaFilter(2, groups=1)
with torch.no_grad():
    toy.offset.weight.zero_()
    toy.offset.weight[8, 0, 2, 2] = 1.0  # cell 4, down
    toy.offset.weight[9, 0, 2, 2] = 0.5  # cell 4, right
    ones = torch.ones(1, 2, 5, 5)
    places = sampled_places(toy, ones, ones)[0, 2, 2]
figure, panel = plt.subplots(figsize=(2.6, 2.6))
panel.set(xlim=(-0.5, 4.5), ylim=(4.5, -0.5), xlabel="column", ylabel="row")
panel.set_xticks(range(5))
panel.set_yticks(range(5))
for line in (x + 0.5 for x in range(-1, 5)):
    panel.axhline(line, color="#d9d9d9", lw=0.8, zorder=0)
    panel.axvline(line, color="#d9d9d9", lw=0.8, zorder=0)
frame = panel.plot(2, 2, "s", ms=22, mfc="none", mec=RIGHT, mew=1.6)
dots = panel.plot(places[:, 1], places[:, 0], "o", ms=7, color=WRONG)

# %% [markdown]
# The green frame is the query position, the orange dots are where $s$ is
# read. Between cells it is read bilinearly; outside the map it is zero.
#
# ## What to do: the filter
#
# What stands at the nine places is mixed by one learned convolution $\Psi$,
# a deformable one {cite}`dai2017deformable`, and squeezed into $(0, 1)$ by
# the sigmoid $\sigma$ (Eq. 6):
#
# $$
# f = \sigma\bigl(\mathrm{deformconv}_{3\times3}(s, o; \Psi)\bigr) \in
# (0, 1)^{g k^2 \times h \times w} .
# $$
#
# There are $g$ filters of $k \times k$ numbers (taps) at every position. The
# channels are cut into $g$ groups in their order, and a group shares a
# filter. All published numbers have $k = 1$: **one number for a position
# and a group**.

# %%
show_source(MetaFilter.filters)

# %% [markdown]
# ## Doing it: the alignment
#
# The query is filtered ($f * q$; at $k = 1$ each channel times the number of
# its group), rectified, and added to itself. This happens either $T$ times
# (Eq. 7) or continuously for one unit of time (Eq. 9). The second is a
# neural ODE {cite}`chen2018neuralode`: a layer whose output is the solution
# of a differential equation. The rectifier is in the released code only;
# without it negative features grow, too.
#
# $$
# F(q) = \max(f * q, 0), \qquad
# q \leftarrow q + F(q) \quad\text{or}\quad
# \frac{dq}{dt} = F(q),\; t = 0 \ldots 1 .
# $$

# %%
show_source(MetaFilter.field, MetaFilter.align)

# %% [markdown]
# ### A worked example
#
# Two channels, $q = (2, -1)$, and $f = \tfrac12$. Of the two solvers, *rk4*
# takes one step of a Runge-Kutta rule, and *dopri5* as many steps as its
# tolerance asks for.

# %%
query = torch.tensor([2.0, -1.0]).view(1, 2, 1, 1)
half = torch.full((1, 1, 1, 1, 1), 0.5)
ways = {
    "no alignment": {"alignments": 0},
    "one": {"alignments": 1},
    "two": {"alignments": 2},
    "three": {"alignments": 3},
    "ODE, one step of rk4": {"solver": "rk4"},
    "ODE, dopri5 to 1e-8": {"solver": "dopri5", "tolerance": 1e-8},
    "exp(f), no solver": {"solver": "exact"},
}
results = {
    name: MetaFilter(2, groups=1, **how).align(query, half).flatten()
    for name, how in ways.items()
}
table(
    [
        {"alignment": name, "q1": float(made[0]), "q2": float(made[1])}
        for name, made in results.items()
    ],
    digits=6,
)

# %% [markdown]
# The negative channel never moves: its product is negative, and the
# rectifier stops it. The positive one grows and stays positive. So at
# $k = 1$ the differential equation is $\dot q = f q$ wherever $q > 0$, with
# a filter that does not change on the way. Its solution is the exponential
# function:
#
# $$
# \hat q = q \cdot e^{f} \;\text{ where } q > 0, \qquad
# \hat q = q \;\text{ elsewhere.}
# $$
#
# $T$ recursions give $(1 + f)^T$ in place of $e^f$. So the paper's Table 2d,
# read by its Eq. 7 and 9, compares these curves:

# %%
f = torch.linspace(0, 1, 101)
curves = {
    "no alignment": {"alignments": 0},
    "T = 1": {"alignments": 1},
    "T = 2": {"alignments": 2},
    "T = 3": {"alignments": 3},
    "ODE": {},
}
figure, panel = plt.subplots(figsize=(5.2, 2.9))
for name, how in curves.items():
    gain = MetaFilter(2, groups=1, **how).gain(f)
    bold = {"lw": 2.8, "color": RIGHT} if name == "ODE" else {"color": QUIET}
    panel.plot(f, gain, label=name, **bold)
    panel.annotate(
        name,
        (1.0, float(gain[-1])),
        xytext=(5, 0),
        textcoords="offset points",
        va="center",
        size=8.5,
    )
panel.set(
    xlabel="Filter f",
    ylabel="Factor on positive features",
    xlim=(0, 1.0),
    ylim=(0.5, 8.3),
)
panel.grid(axis="y")

# %% tags=["hide-input"]
middle = {
    name: float(MetaFilter(2, groups=1, **how).gain(torch.tensor(0.5)))
    for name, how in curves.items()
}
Markdown(
    "At an undecided filter, $f = 0.5$, one alignment multiplies by "
    f"{middle['T = 1']:.2f}, the ODE by {middle['ODE']:.2f}, two alignments "
    f"by {middle['T = 2']:.2f}. The ODE lies between one and two recursions "
    f"all the way; it can never exceed $e$ = {math.e:.2f}. What the network "
    "learns is $f$: wherever their ranges overlap, two curves can give the "
    "same factor by different $f$. Only the end differs: 2, $e$, 4 or 8. The "
    "ablations page has what the choice is worth in accuracy."
)

# %% [markdown]
# ## The vote: a classifier without weights of its own
#
# The weights $w_n$ of way $n$ come from its map $s_n$: unit length at every
# position $p$, then averaged. Every position of the aligned query $\hat q_n$
# votes by a plain product, $r_n^p$; the image's score is the mean vote.
#
# $$
# w_n = \frac{1}{hw}\sum_p \frac{s_n^p}{\lVert s_n^p \rVert}, \qquad
# r_n^p = w_n^\top \hat q_n^{\,p} .
# $$

# %%
show_source(class_weights)

# %% [markdown]
# Two positions, two channels: a loud position $(3, 4)$ and a quiet one
# $(0, 2)$.

# %%
cells = torch.tensor([[3.0, 4.0], [0.0, 2.0]])
table(
    [
        {"weights": name, "channel 1": float(w[0]), "channel 2": float(w[1])}
        for name, w in (
            ("as released: unit length first", class_weights(cells)),
            ("as written: plain mean", class_weights(cells, False)),
        )
    ]
)

# %% [markdown]
# With unit length first, the quiet position has as much say as the loud
# one. The query keeps its length: a louder position of the query has the
# louder vote, and that is the handle by which the filter works.
#
# ## The two losses
#
# At every position two questions are asked. Which way of the episode
# ($\ell_f$, on the aligned maps; $y$ is the query's own way)? Which of all
# base classes ($\ell_g$, cross-entropy after a $1 \times 1$ convolution of
# the query map *before* alignment)? Map and weights are the released code's;
# the paper aligns first and halves $\ell_g$ instead (Eq. 10 to 12).
#
# $$
# \ell_f = -\frac1{hw}\sum_p \log\frac{\exp r_y^p}{\sum_n \exp r_n^p},
# \qquad L = \ell_g + \tfrac12 \ell_f .
# $$

# %%
show_source(DynamicMetaFilter.loss)

# %%
net = build_method(
    "dmf",
    "conv4",
    classes=6,
    backbone_options={"width": 8, "pools": (True, True, False, False)},
    way=3,
    query=2,
    count=1,
    groups=4,
)
images = torch.rand(net.batches.images, 3, 32, 32)
batch = Batch(images, torch.arange(3).repeat_interleave(3), net.batches)
parts = {
    "backbone": list(net.backbone.parameters()),
    "offset convolution": list(net.metafilter.offset.parameters()),
    "Ψ": [net.metafilter.psi],
    "global classifier": list(net.classifier.parameters()),
}
rows = []
for name, label in (("few_shot", "few-shot loss"), ("global", "global loss")):
    net.zero_grad()
    net.loss(batch, progress=1.0)[name].backward()
    rows.append(
        {"": label}
        | {
            part: "x"
            if any(p.grad is not None and p.grad.any() for p in weights)
            else ""
            for part, weights in parts.items()
        }
    )
table(rows)

# %% [markdown]
# Only the few-shot loss teaches the filter. The backbone hears both.
#
# ## The same numbers, faster
#
# Followed to the letter, the equations form whole maps of every pair. A
# training step has 4 episodes of 30 queries and 5 ways, 600 pairs, each of
# 640 channels at the paper's size. Four identities spare all that:
#
# 1. The offset convolution is linear: once an image, then added for a pair.
# 2. Sampling commutes with mixing channels: mix by $\Psi$ once a way, and
#    sample only $g$ channels for a pair.
# 3. At $k = 1$ the ODE is the factor $e^f$.
# 4. A score needs only each group's share of $w^\top q$, so no aligned map
#    is formed.

# %%
show_source(fast_filters, fast_scores)

# %%
form = {"way": 5, "shot": 1, "query": 6, "count": 1, "groups": groups}
maps = torch.randn(35, channels, side, side).requires_grad_()
votes, seconds = {}, {}
for name, fast in (("plain", False), ("fast", True)):
    torch.manual_seed(seed)
    head = build_method("dmf", "conv4", 64, {"width": channels}, **form)
    head.fast = fast
    for _ in range(2):  # the first time is to warm up
        start = time.process_time()
        features = head.test_features(maps)
        support = features[:5].view(1, 5, 1, *features.shape[1:])
        scores = head.match(support, features[None, 5:])[1]
        scores.square().mean().backward()
        votes[name] = scores.detach()
        seconds[name] = time.process_time() - start
size = float(votes["plain"].abs().max())
apart = float((votes["plain"] - votes["fast"]).abs().max()) / size

# %% tags=["hide-input"]
Markdown(
    f"Forward and back through 150 pairs of {channels} x {side} x {side} "
    f"maps: {1000 * seconds['plain']:.0f} ms of processor time for the plain "
    f"head, {1000 * seconds['fast']:.0f} ms for the fast one, a ratio of "
    f"{seconds['plain'] / max(seconds['fast'], 1e-9):.1f}. The scores differ "
    f"by {apart:.0e} of the largest at most. The fast head is the default "
    "here; the plain one stays as the reference that the tests hold it "
    "against. `benchmarks/README.md` has time and memory at the paper's "
    "shapes."
)

# %% [markdown]
# ## To take away
#
# - A number in $(0, 1)$ for every pair, position and group of channels,
#   read from nine moved cells of the prototype's map.
# - With the published kernel the ODE *is* the factor $e^f$ on positive
#   features; recursions are $(1 + f)^T$. Nothing is solved.
# - The classifier has no weights of its own; every position votes.
#
# ## Try it
#
# 1. In the worked example, give `MetaFilter` `linear_field=True`: what
#    happens to the negative channel?
# 2. `groups = 128` (as many as `channels`): how much of the fast head's lead
#    is left when every channel has a filter of its own?
# 3. Move another cell of the toy window: which two channels of the offset
#    convolution are those of cell 7?
