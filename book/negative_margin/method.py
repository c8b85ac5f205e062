# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Negative Margin: the method
#
# Face recognition trains with a **margin**: the true class has to win not
# by a hair but by a distance. *Negative Margin Matters*
# {cite}`liu2020negative` turns the sign around. In few-shot learning the
# base classes are only there to be learned from, and squeezing them into
# tight bunches may break up the novel classes that come later.
#
# On this page you will
#
# - see the idea in one picture and the whole method in two lines of code,
# - follow one image through the loss, with numbers,
# - meet the two quantities that put the paper's explanation to the test.
#
# ```{figure} ../_assets/negative_margin.svg
# :alt: Tight base classes break a novel class up, loose ones keep it whole.
# :width: 100%
#
# The paper's story. Left, a margin above zero: every base class is a tight
# peak, and the images of one novel class are dealt out to several of them.
# Right, a margin below zero: loose base classes leave the novel class
# whole. Whether it happens is measured on the pages that follow.
# ```

# %% tags=["parameters"]
scale: float = 30.0  # s, of the cosine
margin: float = -0.05  # m, of the worked example
seed: int = 0  # of the toy examples

# %%
import matplotlib.pyplot as plt
import torch
from fslib.analysis.discriminability import (
    base_peaks,
    discriminability,
    effective_peaks,
)
from fslib.heads.finetune import FineTuned
from fslib.losses.margin import add_margins, lower_true
from fslib.methods.negative_margin import NegativeMargin
from fslib.pages import show_source, table
from fslib.plots.style import use_book_style
from IPython.display import Markdown
from torch.nn.functional import cross_entropy

use_book_style()

# %% [markdown]
# ## A classifier without bias
#
# ```{figure} ../_assets/negative_margin_loss.svg
# :alt: From an image to the loss, and what is kept for the test.
# :width: 100%
#
# One linear layer on the feature, a margin on its true class, cross-entropy.
# At test the layer is thrown away.
# ```
#
# All base classes are told apart at once. A weight vector $w_c$ stands for
# each class $c$, and the similarity $S_c$ of the feature $z$ to it is a
# cosine (the paper's *neg-cosine*) or a dot product (*neg-softmax*):
#
# $$
# S_c = \frac{z^\top w_c}{\lVert z\rVert\,\lVert w_c\rVert}
# \qquad\text{or}\qquad S_c = z^\top w_c .
# $$
#
# The pages of this chapter call the two losses *cosines* and *dot products*,
# and keep the paper's names for the models with its margins. The paper's
# *softmax loss* is the one on dot products.

# %%
show_source(NegativeMargin.similarity)

# %% [markdown]
# ## The margin
#
# The margin $m$ is taken off the similarity of the **true** class $y$, and
# the scale $s$ turns similarities into logits ($[c = y]$ is one for the
# true class and zero for the others):
#
# $$
# L = -\log\operatorname{softmax}_c
#   \bigl(s\,(S_c - m\,[c = y])\bigr)_y .
# $$
#
# With $m > 0$ the true class is handicapped and has to be better than the
# others by $m$; on cosines that is CosFace {cite}`wang2018cosface`. With
# $m = 0$ this is a plain classifier. With $m < 0$ the true class gets a
# head start.

# %%
show_source(lower_true)

# %% [markdown]
# ### A worked example
#
# Three base classes, cosines 0.30, 0.25 and 0.10, and the second is the
# true one: the network is wrong, but not by much. The *pull* is the slope
# of the loss: how hard one step of descent lifts the true logit. On the
# cosine it is $s$ times as large.

# %%
cosines = torch.tensor([[0.30, 0.25, 0.10]])
truth = torch.tensor([1])
rows = []
for m in sorted({0.05, 0.0, -0.02, margin, -0.1}, reverse=True):
    logits = lower_true(cosines, truth, scale, m)
    leaf = cosines.clone().requires_grad_()
    cross_entropy(lower_true(leaf, truth, scale, m), truth).backward()
    rows.append(
        {
            "margin m": m,
            "s m": scale * m,
            "true logit": float(logits[0, 1]),
            "loss": float(cross_entropy(logits, truth)),
            "pull on the true logit": -float(leaf.grad[0, 1]) / scale,
            "counts as right": "yes" if int(logits.argmax()) == 1 else "no",
        }
    )
table(rows, digits=3)

# %% tags=["hide-input"]
at = {row["margin m"]: row for row in rows}
pull = {m: row["pull on the true logit"] for m, row in at.items()}
Markdown(
    f"Without a margin the loss is {at[0.0]['loss']:.2f} and the pull "
    f"{pull[0.0]:.2f}. A margin of {margin:g} leaves "
    f"{pull[margin] / pull[0.0]:.0%} of that pull and -0.1 leaves "
    f"{pull[-0.1] / pull[0.0]:.1%}: an image near the boundary pulls less. "
    + (
        "With -0.1 the wrong answer even counts as right. "
        if at[-0.1]["counts as right"] == "yes"
        else ""
    )
    + "So an accuracy computed from these logits flatters the network; this "
    "book logs the one without the margin."
)

# %% [markdown]
# ## What a margin counts
#
# Let $p$ be the probability of the true class without a margin. Then
#
# $$
# L = \log\Bigl(1 + e^{sm}\,\frac{1 - p}{p}\Bigr),
# $$
#
# so for one image only the product $s\,m$ counts, the margin in logits. The
# authors' settings for this paper lie between -1.5 and -0.025.

# %%
p = torch.linspace(0.005, 0.995, 199)
figure, axes = plt.subplots(1, 2, figsize=(6.9, 2.7))
for product, dash, colour in (
    (1.25, ":", "#56B4E9"),
    (0.0, "-", "#6b6b6b"),
    (-0.6, "--", "#D55E00"),
    (-1.5, "-.", "#D55E00"),
):
    odds = torch.exp(torch.tensor(product)) * (1 - p) / p
    label = f"$s\\,m$ = {product:g}".replace("-", "\N{MINUS SIGN}")
    axes[0].plot(p, torch.log1p(odds), dash, color=colour, label=label)
    axes[1].plot(p, odds / (1 + odds), dash, color=colour, label=label)
axes[0].set_title("Loss")
axes[1].set_title("Pull on the true logit")
axes[0].legend()
for axis in axes:
    axis.set_xlabel("Probability p of the true class, no margin")
    axis.grid(axis="y")

# %% tags=["hide-input"]
half = {
    product: float(2 * torch.sigmoid(torch.tensor(product)))
    for product in (-0.025, -0.6, -1.5, 1.25)
}
Markdown(
    "Left, a margin below zero lowers the loss by itself: losses of two "
    "margins cannot be compared. Right, the pull. Where the network is in two "
    f"minds ($p$ = 0.5), a product of -0.6 leaves {half[-0.6]:.0%} of the "
    f"pull of a plain classifier, -1.5 leaves {half[-1.5]:.0%}, and -0.025 "
    f"leaves {half[-0.025]:.0%}; 1.25 turns it up to {half[1.25]:.0%}."
)

# %% [markdown]
# The pulls on all logits of an image are multiplied by one factor,
# $e^{sm} / (p + e^{sm} (1 - p))$. So a margin does not change where an image
# pulls, only how hard: below zero the images that are already right lose up
# to $1 - e^{sm}$ of their weight and those that are quite wrong almost
# none. A margin below zero is a classifier that is content sooner.
#
# ## One table for all margins of this book
#
# A softmax does not care about a constant. Taking $m$ off the true
# similarity is therefore the same as adding $s\,m$ to every **wrong**
# logit. The chapter on adaptive margins {cite}`li2020traml` writes all its
# margins so: as a table with one number for each pair of a true and a wrong
# class. Here all its numbers are equal and negative, there its naive margin
# is positive; the [ablations](ablations) ask which of the two is right, and
# where.

# %%
generator = torch.Generator().manual_seed(seed)
scores = 2 * torch.rand((1000, 64), generator=generator) - 1
labels = torch.randint(64, (1000,), generator=generator)
one = cross_entropy(lower_true(scores, labels, scale, margin), labels)
tabled = add_margins(scale * scores, labels, scale * margin)
Markdown(
    f"The loss of 1,000 random images over 64 classes is {one:.5f} written "
    f"one way and {cross_entropy(tabled, labels):.5f} written the other."
)

# %% [markdown]
# ## How to see it: discriminability
#
# How tight are the classes, and how far apart? With features scaled to
# length one and class means $\mu_c$,
#
# $$
# D_\text{intra} = \operatorname*{mean}_c \operatorname*{mean}_{i \in c}
#   \lVert z_i - \mu_c \rVert^2 , \qquad
# D_\text{inter} = \operatorname*{mean}_{c \ne c'}
#   \lVert \mu_c - \mu_{c'} \rVert^2 ,
# $$
#
# and the **discriminability** is $D_\text{inter} / D_\text{intra}$. The
# paper's abstract names the quantity; this formula and the next are the
# book's reading of it. Both spreads have a closed form, so no pair of
# images is visited.

# %%
show_source(discriminability)

# %% [markdown]
# Two classes in the plane, one at 0 and 20 degrees, one at 90 and 110; then
# the same with the images of each class 40 degrees apart.

# %%
rows = []
for apart in (20, 40):
    middle = torch.tensor([10.0, 10.0, 100.0, 100.0])
    angles = torch.deg2rad(middle + apart / 2 * torch.tensor([-1, 1, -1, 1]))
    made = discriminability(
        torch.stack([angles.cos(), angles.sin()], 1),
        torch.tensor([0, 0, 1, 1]),
    )
    rows.append(
        {
            "degrees within a class": apart,
            "intra": made.intra,
            "inter": made.inter,
            "ratio": made.ratio,
        }
    )
table(rows, digits=4)

# %% [markdown]
# Twice the angle within a class, and the ratio falls from 64 to 15. The
# paper's claim in these terms: as $m$ falls, the ratio falls on **base**
# classes, and on **novel** ones it first rises.
#
# ## How to see it: peaks
#
# Send the images of a novel class $j$ through the base classifier, margin
# off. An author explains to a user that he looks at *how often* they fall on
# each base class $k$. The pages count that, and also average the softmax,
# which is the book's own variant:
#
# $$
# P_{jk} = \operatorname*{mean}_{i \in j}
#   \operatorname{softmax}(s\,S_i)_k , \qquad
# \text{effective peaks} = \exp\Bigl(-\sum_k P_{jk} \log P_{jk}\Bigr) .
# $$
#
# A novel class that falls on a single base class has one effective peak;
# dealt out evenly to four, it has four.

# %%
show_source(base_peaks, effective_peaks)

# %%
shares = [[1.0, 0, 0, 0], [0.5, 0.5, 0, 0], [0.9, 0.05, 0.05, 0], [0.25] * 4]
table(
    [
        {"shares of four base classes": str(share), "effective peaks": peaks}
        for share, peaks in zip(
            shares, effective_peaks(torch.tensor(shares)).tolist()
        )
    ]
)

# %% [markdown]
# ## At test
#
# The layer over the base classes is of no use for new ones. In this book a
# novel class is the mean of its support features, each scaled to length one
# first. The authors instead train a **fresh classifier** (a *head*) for each
# episode, of the same kind, with $s = 5$ and no margin: 100 times through
# the support in batches of four. Here hundreds of episodes are trained at
# once, with the same result as one after the other.

# %%
show_source(FineTuned.tune)

# %% [markdown]
# ## To take away
#
# - A classifier over all base classes; the true one is handicapped by $m$.
# - Below zero it is content sooner: images that are already right pull
#   less.
# - For one image only $s\,m$ counts. Watch the accuracy *without* margin.
# - Two numbers can confirm or refute the story: discriminability and
#   effective peaks.
#
# ## Try it
#
# 1. `margin = -0.5`: how much of the pull is left? What would a network
#    learn?
# 2. `scale = 10`: which margin is as large in logits as -0.05 is at 30?
