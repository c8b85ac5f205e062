# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Adaptive margins: the method
#
# A dog and a wolf are easily mixed up, a dog and a truck are not, and you
# knew that from their **names**, before you saw a single image. *Boosting
# Few-Shot Learning with Adaptive Margin Loss* {cite}`li2020traml` uses this
# in training: where two names are alike, the true class has to win by more.
# By how much more is the **margin**. The hope is that
# features which part like base classes part like novel ones, too.
#
# On this page you will
#
# - see what a margin does to a softmax, in a picture and in numbers,
# - fill the table of margins in three ways,
# - meet the two methods that carry it, its **hosts** ProtoNet and AM3, and
#   its cousins from face recognition,
# - find out why plain descent cannot hold a margin up,
# - see it where old and new classes are asked about at once.
#
# ```{figure} ../_assets/margins.svg
# :alt: Similar names get a wide margin; it is added to the wrong logits.
# :width: 100%
#
# Classes are islands in the space of features. Training asks for a wider
# strait between two of them where their names are alike. At test there is
# no margin.
# ```

# %% tags=["parameters"]
dataset: str = "glyphs"  # whose class names are used
naive: float = 1.0  # the margin m of the naive loss
alpha: float = 1.0  # class-relevant margin: how much a likeness counts
beta: float = 0.1  # class-relevant margin: what every pair gets
scale: float = 10.0  # s, of the cosines
seed: int = 0  # of the generator and the toy examples

# %%
import math

import matplotlib.pyplot as plt
import torch
from fslib.data import open_dataset
from fslib.losses.margin import (
    MODES,
    ClassMargin,
    NaiveMargin,
    TaskMargin,
    add_margins,
    held,
    lower_true,
    turn_true,
    word_similarity,
    wrong,
)
from fslib.methods.am3 import AM3
from fslib.methods.dynamic_fsl import WeightGenerator
from fslib.methods.margin_protonet import MarginProtoNet
from fslib.pages import show_source, table
from fslib.plots.style import short_name, use_book_style
from IPython.display import Markdown
from torch.nn.functional import cross_entropy

use_book_style()
_ = torch.manual_seed(seed)

# %% [markdown]
# ## A margin in a softmax
#
# Let $D_{ic}$ be the logit of query $i$ for class $c$ and $y$ its true
# class. A **margin table** $M$ holds a number for every pair of classes. It
# is added to the logits of the wrong classes, and then all goes on as usual,
# averaged over the set $Q$ of queries:
#
# $$
# L = -\frac{1}{|Q|} \sum_i \log
#   \frac{e^{D_{iy}}}{e^{D_{iy}} + \sum_{c \ne y} e^{D_{ic} + M_{yc}}} .
# $$
#
# To be as sure as before, the true class has to lead by $M_{yc}$ more. With
# $M = 0$ this is plain cross-entropy.

# %%
show_source(add_margins)

# %% [markdown]
# ### A worked example
#
# Five logits, the first one true. The query is right, and fairly sure.

# %%
logits = torch.tensor([[2.0, 1.0, 0.0, -1.0, -2.0]])
true = torch.tensor([0])
p = float(logits.softmax(1)[0, 0])
rows = [
    {
        "margin m": m,
        "loss": float(cross_entropy(add_margins(logits, true, m), true)),
        "log(1 + e^m (1 - p) / p)": math.log(1 + math.exp(m) * (1 - p) / p),
    }
    for m in (-0.5, 0.0, 0.5, 1.0, 2.0, 5.0)
]
table(rows, digits=4)

# %% tags=["hide-input"]
Markdown(
    f"Without a margin the true class holds the probability p = {p:.3f}. "
    "Where all pairs have the same margin the loss has a closed form, the "
    "last column. A margin of one doubles the loss of this query "
    f"({rows[1]['loss']:.2f} to {rows[3]['loss']:.2f}); the larger it is, the "
    "closer one more unit comes to adding one to the loss. A negative margin "
    "makes the task easier, which has a chapter of its own."
)

# %% [markdown]
# ### Whom does it push?
#
# Take two classes. The **gap** is the true logit minus the wrong one. Left
# the loss, right the force with which it widens the gap (minus its slope).

# %%
gap = torch.linspace(-4, 8, 121)
figure, axes = plt.subplots(1, 2, figsize=(6.9, 2.6))
for m, line in ((-1.0, ":"), (0.0, "-"), (1.0, "--"), (3.0, "-.")):
    axes[0].plot(gap, (m - gap).exp().log1p(), line, label=f"m = {m:+.0f}")
    axes[1].plot(gap, (m - gap).sigmoid(), line)
for axis, title in zip(axes, ("Loss", "Force on the gap")):
    axis.axvline(0, color="grey", lw=0.8, zorder=0)
    axis.set(xlabel="Gap (true minus wrong logit)", title=title)
_ = axes[0].legend()

# %% tags=["hide-input"]
Markdown(
    "A margin m shifts both curves by m to the right. Right of zero the "
    "query is answered rightly; without a margin a gap of 3 feels a force of "
    f"{1 / (1 + math.exp(3)):.2f}, with a margin of 3 it feels 0.50. So a "
    "margin matters *in comparison with the gaps* that training has reached: "
    "far below them it changes next to nothing, far above them it pushes "
    "every query alike."
)

# %% [markdown]
# ## Three ways to fill the table (paper: Eq. 2, 3 and 5)
#
# A **word vector** $e_c$ is a list of numbers for the name of class $c$;
# names that are used alike point in like directions, so $\cos(e_y, e_c)$
# says how alike two classes are. Photographs get GloVe vectors, learned from
# texts; for the built-in glyphs they are made of the words of the Unicode
# name, such as *Latin small letter a*.
#
# $$
# \begin{aligned}
# \text{naive (NAML)} \quad & M_{yc} = m \\
# \text{class-relevant (CRAML)} \quad
#   & M_{yc} = \alpha \cos(e_y, e_c) + \beta \\
# \text{task-relevant (TRAML)} \quad
#   & M_{y\cdot} = G\big(\{\cos(e_y, e_c)\}_{c \ne y}\big)
# \end{aligned}
# $$
#
# AML is the paper's *additive margin loss*. The first knows nothing, the
# second one pair, the third all classes of the task: a likeness of 0.5 may be
# the largest of one task and the smallest of another.

# %%
show_source(ClassMargin.forward)

# %% [markdown]
# The **generator** $G$ is two times linear, batch normalisation, ReLU, and
# its batch is one row for each class $y$ of an episode. The paper does not
# give its width; here it is 64, more than the 19 numbers that go in.

# %%
show_source(TaskMargin)

# %% [markdown]
# ### Five names
#
# One class of the data set with its two nearest neighbours by name, one in
# the middle and the farthest, and what each loss would do with them.

# %%
train = open_dataset(dataset)["train"]
similar = word_similarity(train.semantics)
others = similar - 2 * torch.eye(len(similar))
first = int(others.max(1).values.argmax())
order = others[first].argsort(descending=True)[:-1].tolist()
chosen = [first, order[0], order[1], order[len(order) // 2], order[-1]]
cosines = similar[chosen][:, chosen]
with torch.no_grad():
    tables = {
        "naive": NaiveMargin(5, naive)(cosines),
        "class-relevant": ClassMargin(5, alpha, beta)(cosines),
        "task-relevant, untrained": TaskMargin(5)(cosines),
    }
rows = [
    {
        f"margin to {short_name(train.class_names[first], 60)}": short_name(
            train.class_names[c], 60
        ),
        "cosine": float(cosines[0, i]),
        **{name: float(values[0, i]) for name, values in tables.items()},
    }
    for i, c in enumerate(chosen)
    if i
]
table(rows)

# %% [markdown]
# The naive margin is the same for all, the class-relevant one follows the
# cosine. An untrained generator knows nothing of likeness yet: its margins
# are arbitrary, and the last ReLU keeps them at zero or above. No margin of a
# fresh generator can exceed $\sqrt{n - 1}$ for $n$ rows: batch normalisation
# makes no larger number.
#
# ## Two hosts
#
# **ProtoNet** {cite}`snell2017protonet`: with $f(x)$ the feature of an image,
# class $c$ is the mean $r_c$ of its support features, its **prototype**, and
# the logit is $D_{ic} = -\lVert f(x_i) - r_c \rVert^2$.

# %%
show_source(MarginProtoNet.loss)

# %% [markdown]
# **AM3** {cite}`xing2019am3` mixes the mean $\bar f_c$ of the support with a
# second prototype that a small network $g$ makes of the *name*; a second
# network $h$, through a sigmoid $\sigma$, says how much the images count:
#
# $$
# w_c = g(e_c), \qquad \lambda_c = \sigma(h(w_c)), \qquad
# r_c = \lambda_c \bar f_c + (1 - \lambda_c)\, w_c .
# $$

# %%
show_source(AM3.mixed)

# %%
visual, word, share = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0]), 0.25
distance = torch.tensor([1.0, 1.5, 2.0, 2.5, 3.0])
plain, squared = (-distance).softmax(0), (-distance.square()).softmax(0)
Markdown(
    f"With the image at {visual.tolist()}, the name at {word.tolist()} and "
    f"lambda = {share}, the prototype is "
    f"{(share * visual + (1 - share) * word).tolist()}. The released AM3 "
    "takes the plain distance for its logit, not the squared one. For "
    "distances 1, 1.5, 2, 2.5, 3 the nearest class then holds "
    f"{plain[0]:.2f} of the probability, squared {squared[0]:.2f}: the same "
    "answer, but the plain distance is the softer lesson, and the same margin "
    "counts for more in it."
)

# %% [markdown]
# With ProtoNet as host, new classes need no names at test. AM3 needs them:
# its prototypes are made of them.
#
# ## The cousins from face recognition
#
# CosFace {cite}`wang2018cosface` and ArcFace {cite}`deng2019arcface` work on
# cosines, scaled by $s$, and touch the **true** logit alone. With $\theta$
# the angle between a feature and the prototype of its own class, the one takes
# $s\,(\cos\theta - m)$ and the other $s \cos(\theta + m)$.

# %%
angle = torch.linspace(0.01, math.pi - 0.01, 200)
cosine = torch.stack([angle.cos(), torch.zeros_like(angle)], 1)
zeros = torch.zeros(len(angle), dtype=torch.long)
figure, panel = plt.subplots(figsize=(5.2, 2.7))
degrees = torch.rad2deg(angle)
panel.plot(degrees, angle.cos(), label="no margin")
panel.plot(
    degrees,
    lower_true(cosine, zeros, 1.0, 0.35)[:, 0],
    "--",
    label="cosine margin 0.35",
)
panel.plot(
    degrees,
    turn_true(cosine, zeros, 1.0, 0.5)[:, 0],
    "-.",
    label="angular margin 0.5 (radians)",
)
panel.set(xlabel="Angle to the own prototype (degrees)")
panel.set(ylabel="True logit, s = 1")
_ = panel.legend()

# %% [markdown]
# The cosine margin takes the same from every image; the angular one takes
# little near 0 degrees and most at $\pi/2 - m/2$, here 76 degrees. Past
# $\pi - m$, here 151 degrees, the turned cosine would rise again and reward a
# *wrong* angle; from there on the plain cosine, lowered by $m \sin m$, takes
# its place (the step).
#
# ### Three papers, one loss
#
# A softmax does not notice a constant. Adding $m$ to all wrong logits is
# taking $m$ from the true one. So the naive margin at $s\,m$, CosFace at $m$
# and the *Negative Margin* {cite}`liu2020negative` at the same $m$ and $s$
# are one and the same loss:

# %%
row = torch.tensor([[0.8, 0.3, 0.1, -0.2, 0.0]])
table(
    [
        {
            "m": m,
            "naive margin s m": float(
                cross_entropy(add_margins(scale * row, true, scale * m), true)
            ),
            "CosFace / Negative Margin": float(
                cross_entropy(lower_true(row, true, scale, m), true)
            ),
        }
        for m in (-0.3, 0.0, 0.1, 0.35)
    ],
    digits=4,
)

# %% [markdown]
# ## Who learns the margins?
#
# The paper speaks of learned $\alpha$, $\beta$ and $G$, trained with the
# network on the same loss. Take the derivative:
#
# $$
# \frac{\partial L_i}{\partial M_{yc}} = \operatorname{softmax}(Z_i)_c \ge 0,
# \qquad Z_i = D_i + M_{y\cdot} .
# $$
#
# It is a probability, so it is never negative, and descent **lowers every
# free margin**. Where margins share parameters ($\alpha$, $G$), a small step
# still lowers their mean, weighted by these probabilities. Something else has
# to keep them up. The book compares five modes, joint descent among them:
#
# - `fixed`: the margins are given, not learned.
# - `joint`: descent on the same loss, as the paper's text has it.
# - `reversal`: *ascent* on the same loss, held back by a penalty $\kappa$ on
#   the mean of their squares.
# - `bilevel`: moved so that a step of the network *with* margins lowers the
#   loss *without* margins on another episode.
# - `floor`: joint, but none falls below a floor (0.5).

# %%
show_source(held)

# %%
values = ClassMargin(5, alpha, beta)(cosines).detach()
rows = []
for mode in MODES:
    leaf = values.clone().requires_grad_()
    used = held(leaf, mode)
    slope = torch.zeros(())
    if used.requires_grad:
        z = add_margins(logits, true, used)
        (slope,) = torch.autograd.grad(cross_entropy(z, true), leaf)
    moves = {0: "stays", 1: "goes down", -1: "goes up"}
    rows.append(
        {
            "mode": mode,
            "mean margin in the loss": float(wrong(used.detach()).mean()),
            "gradient, summed": float(slope.sum()),
            "a step of descent": moves[int(slope.sum().sign())],
        }
    )
table(rows, digits=3)

# %% [markdown]
# The class-relevant margins of the five names (the mean is over all 20
# pairs), on the one query of the worked example, whose true class is *girl*;
# the gradient is summed over its row (`bilevel` gets its own from a second
# episode, not from this loss).
# The default here is **reversal**: the margins climb where the network
# descends, and the penalty holds them. A margin then settles the higher, the
# more its pair is confused. If like names are the confused ones, they get the
# wide straits, as the paper wants. *Paper, code, here* shows all five at work.
#
# ## Old and new classes at once
#
# ```{figure} ../_assets/margins_generalised.svg
# :alt: A shelf of weight vectors, old ones trained, new ones written.
# :width: 100%
#
# Dynamic FSL keeps a weight vector for each old class and writes one for
# each new class, from a few images and from the old vectors.
# ```
#
# In **generalised** few-shot learning an image may be of any class, old
# (base) or new (novel). The paper puts its margin into Dynamic FSL
# {cite}`gidaris2018dynamic`. It has a vector for each class, and the logit is
# $s$ times the cosine of vector and feature. The vector $w$ of a new class is
# written by a small network: partly the mean $\bar z$ of its $n$ support
# features $z_i$ (of length 1), partly a blend of old vectors $w_b$, chosen by
# attention $a$:
#
# $$
# a_{ib} = \operatorname{softmax}_b\big(\gamma \cos(\phi z_i, k_b)\big),
# \qquad
# w = u_1 \odot \bar z + u_2 \odot \tfrac1n \sum_{i,b} a_{ib}
#   \frac{w_b}{\lVert w_b \rVert} .
# $$
#
# Learned are a linear map $\phi$, a key $k_b$ for each old class, the
# sharpness $\gamma$ and, number by number ($\odot$), the weights $u_1$, $u_2$.

# %%
show_source(WeightGenerator.attention, WeightGenerator.forward)

# %%
rows = []
for gamma in (10.0, 30.0):
    net = WeightGenerator(2, 3, gamma)
    with torch.no_grad():
        net.phi.weight.copy_(torch.eye(3))
        net.keys.copy_(torch.eye(3)[:2])
        image = torch.tensor([0.6, 0.8, 0.0]).view(1, 1, 1, 3)
        blend = net.attention(image).flatten()
        vector = net(image, torch.eye(3)[:2]).flatten()
    rows.append(
        {
            "gamma": gamma,
            "attention": ", ".join(f"{v:.4f}" for v in blend),
            "new vector": ", ".join(f"{v:.4f}" for v in vector),
        }
    )
table(rows)

# %% [markdown]
# Two old classes along the first two axes and one image at (0.6, 0.8, 0):
# the sharper the attention, the more the new vector leans to the old class
# that is nearer. Training comes in two stages: first backbone and old
# vectors, then, on stored features, what writes new ones, by playing some
# old classes as if they were new.
#
# ## To take away
#
# - A margin is a table added to the wrong logits in training; at test it is
#   gone.
# - Naive: one number. Class-relevant: a line in the likeness of two names.
#   Task-relevant: a small network that sees all names of the task.
# - It matters only in comparison with the gaps between logits.
# - On cosines of one scale, CosFace, Negative Margin and the naive margin are
#   one loss.
# - Descent on their own loss lowers margins; something else must hold them up.
#
# ## Try it
#
# 1. `alpha = -1`: which pairs get the wide strait now?
# 2. `scale = 30`: what does the same cosine margin weigh?
# 3. Put `order="sorted"` into `TaskMargin(5)`: whose margins change?
