# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # SCL: paper, code, here
#
# What the paper's talk says on its slides, what the released code and its
# scripts do, and what that means. Seven points are shown by a cell. The code
# was read at commit e40409d of its repository; nothing of it is used here.

# %% tags=["parameters"]
profile: str = "quick"  # which profile these values belong to
dataset: str = "glyphs"  # trained and scored on
backbone: str = "conv4_32"  # conv4_32, conv4, resnet12_slim, resnet12
epochs: int = 3  # passes over the training images
augment: str = "none"  # mirrored letters would be other letters
seeds: list = [0]  # one run each
episodes: int = 2000  # tasks of every score
pools: list = [True, True, True, False]  # which blocks halve their map
share: float = 0.5  # of the epochs where every image comes in two views

# %%
import math

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from fslib.augment import augment as augmented
from fslib.episodes import draw_episodes
from fslib.evaluate import embed_images, interval
from fslib.heads.regression import features_of, projected
from fslib.logistic import probabilities
from fslib.losses.contrastive import contrastive_loss, loss_floor
from fslib.methods.scl import loss_row
from fslib.pages import in_words, show_source, table
from fslib.plots.style import use_book_style
from fslib.results import load_scores
from fslib.study import Study
from IPython.display import Markdown
from scipy.stats import binom

use_book_style()
study = Study(
    dataset,
    backbone,
    max(2, int(share * epochs)),
    augment,
    profile,
    tuple(seeds),
    episodes,
    {"pools": pools},
)
weight = 0.1 if dataset.startswith("glyphs") else 1.0  # see training
variant, options = loss_row("CE + SC", weight)
records = study.records("scl", variant, **options)
run = study.run("scl", variant, **options)
method, train, novel = run.method, study.data["train"], study.data["test"]

# A batch as in training: 64 base images, first all in one view, then all in
# the other.
generator = torch.Generator().manual_seed(0)
rows = torch.randperm(len(train), generator=generator)[:64]
batch = torch.cat(
    [
        augmented(train.images[rows], policy or augment, generator)
        for policy in method.batches.views
    ]
)
labels = train.labels[rows].repeat(2)
with torch.no_grad():
    maps = embed_images(method, batch)
    similarity = method.places(maps)  # (128, 128)

# %% [markdown]
# ## In one table
#
# | | talk | released code | here |
# |---|---|---|---|
# | temperature | one for GC, one for SC, no values | a factor of 10 named `temperature` | `tau = 0.1`, a divisor |
# | spatial similarity | sum of both directions | the same, a sum | a sum; `average=True` for the mean |
# | without labels | SS-GC, SS-SC | reads the labels before asking whether there are any: an error | both work |
# | weights of CE and SC | not said | scripts 1 and 1, on CIFAR-FS 0.5 and 0.5; CE 0 unless a flag is given | 1 and 1; on drawn letters 1 and 0.1 |
# | places at 32 pixels | not said | $2 \times 2$ | $4 \times 4$, the last pooling left out |
# | two sets of maps | not said | spatial similarity comes back transposed | rows are the first set |
# | views | two | view 1 padded crop and colours, view 2 as SimCLR, no blur | view 1 as all runs of this book, view 2 as the code |
# | distilled features | those of GC, perhaps projected | averaged map, unit length | as the code |
# | views of the student | not said | one | one |
# | training classes across domains | miniImageNet | 64 classes under 100 outputs, 36 of them dead | an output for each base class |
# | optimiser | not said | batch 64 in two views, rate 0.05, steps, 90 epochs (60 on tieredImageNet) | the same batch, rate 0.1, cosine, fewer epochs |
# | rate of distillation | not said | 0.01 | 0.1, as all; batches of 128, as CE |
# | episodes at test | not said | 600, no seed; workers repeat each other | seeded; 2,000 or 10,000 |
# | classifier at test | not said | two regressions on five copies | centroid, and the two regressions beside it |
# | training script | | imports a function that is not there: stops at the start | |
#
# ## The sum of two cosines
#
# A cosine lies in $[-1, 1]$; the spatial similarity adds two and lies in
# $[-2, 2]$. With the same $\tau = 0.1$ the spatial softmax is twice as sharp
# as if the two were averaged: on their mean the temperature is 0.05. Here is
# a batch of this chapter's network, CE + SC:

# %%
half = similarity / 2
forms = {
    "sum, tau 0.1 (released)": (similarity, 0.1),
    "mean, tau 0.05": (half, 0.05),
    "mean, tau 0.1": (half, 0.1),
    "sum, tau 0.2": (similarity, 0.2),
}
own = torch.eye(len(labels), dtype=torch.bool)
table(
    [
        {
            "form": name,
            "loss": float(contrastive_loss(s, labels, tau=tau)),
            "views that matter": float(
                torch.special.entr(
                    (s / tau).masked_fill(own, -torch.inf).softmax(1)
                )
                .sum(1)
                .exp()
                .mean()
            ),
        }
        for name, (s, tau) in forms.items()
    ],
    digits=3,
)

# %% [markdown]
# The rows come in pairs of equals. *Views that matter* is the exponential of
# the entropy of a view's softmax, out of 127. So whoever replaces the sum by
# a mean and keeps $\tau$ has changed the temperature. In the sweep of the
# ablations page $\tau = 0.2$, tried where `dense` is set, *is* the mean at 0.1.
#
# ## A floor that depends on the batch
#
# With $k$ other images of its class in the batch, a view has $2k + 1$
# positives and its row cannot fall below $\log(2k + 1)$. For $N$ images of
# $C$ equally likely classes $k$ is binomial, and the floor is its mean.


# %%
def floor_of(images: int, classes: int) -> float:
    k = np.arange(images)
    chance = binom.pmf(k, images - 1, 1 / classes)
    return float(chance @ np.log(2 * k + 1))


counts = np.unique(np.geomspace(5, 400, 40).astype(int))
figure, panel = plt.subplots(figsize=(5.6, 2.7))
for images, style in ((64, "-"), (128, "--")):
    panel.plot(
        counts,
        [floor_of(images, c) for c in counts],
        style,
        color="#CC79A7",
        label=f"batch of {images} images",
    )
for name, c in (
    ("FC100", 60),
    ("miniImageNet and CIFAR-FS", 64),
    ("tieredImageNet", 351),
):
    panel.plot(c, floor_of(64, c), "o", color="#222222", ms=4)
    panel.annotate(
        f"{name}, {c}",
        (c, floor_of(64, c)),
        xytext=(-6, -4 if c == 351 else -9 if c == 60 else -20),
        ha="right",
        textcoords="offset points",
        size=8,
    )
panel.set(
    xscale="log",
    xlabel="Base classes",
    ylabel="Lowest possible loss",
    ylim=(0, None),
)
panel.set_xticks((5, 20, 100, 400), ("5", "20", "100", "400"))
panel.minorticks_off()
_ = panel.legend()

# %%
history = pd.DataFrame(run.history)
at_batch = float(loss_floor(labels))
expected = floor_of(64, train.classes)
table(
    [
        {"": "equal similarities", "loss": math.log(2 * 64 - 1)},
        {"": "training, first epoch", "loss": history["sc"].iloc[0]},
        {"": "training, last epoch", "loss": history["sc"].iloc[-1]},
        {"": "this batch", "loss": float(contrastive_loss(similarity, labels))},
        {"": "floor of this batch", "loss": at_batch},
        {"": f"floor, {train.classes} classes on average", "loss": expected},
    ],
    digits=3,
)

# %% [markdown]
# The dots are the paper's data sets at its batch of 64 images. A loss of 0.9
# on miniImageNet is as good as it gets, while 0.9 on tieredImageNet is far
# from it. So losses of runs with other batches or numbers of classes cannot
# be compared.
#
# ## "Spatial" knows no positions
#
# Attention compares what is in a place, never where the place is. If the
# places of every map are shuffled, each map in its own way, the similarity
# stays what it was.

# %%
flat = maps.flatten(2)
order = torch.stack(
    [torch.randperm(flat.shape[2], generator=generator) for _ in flat]
)
shuffled = flat.gather(2, order[:, None].expand_as(flat)).view_as(maps)
with torch.no_grad():
    moved = method.places(shuffled)
change = {
    "spatial similarity": float((moved - similarity).abs().max()),
    "averaged feature": float(
        (features_of(shuffled)["global"] - features_of(maps)["global"])
        .norm(dim=1)
        .mean()
    ),
    "spatial feature at test": float(
        (features_of(shuffled)["spatial"] - features_of(maps)["spatial"])
        .norm(dim=1)
        .mean()
    ),
}
table(
    [{"": name, "changed by": f"{value:.1e}"} for name, value in change.items()]
)

# %% tags=["hide-input"]
first = float(
    (similarity.argmax(1) == torch.arange(len(labels))).float().mean()
)
Markdown(
    "The similarity moves by no more than rounding. Only the feature of the "
    "authors' *test*, the map pooled to a grid, knows where things are: it "
    f"moves by {change['spatial feature at test']:.2f} of its length of one."
    "\n\n"
    "Nothing makes a view most similar to itself, either: soft attention mixes "
    "its places before they are compared. In this batch "
    f"{100 * first:.0f} % of the views are their own best match. Never take "
    "the diagonal for a bound."
)

# %% [markdown]
# ## All of view 1, then all of view 2
#
# The labels are repeated, so the views must stand one set after the other.
# Interleaved views raise no error; they pair strangers.

# %%
interleaved = torch.arange(128).view(2, 64).T.flatten()
wrong = similarity[interleaved][:, interleaved]
table(
    [
        {"order of the views": name, "loss": float(contrastive_loss(s, labels))}
        for name, s in (
            ("one set after the other", similarity),
            ("interleaved, by mistake", wrong),
        )
    ],
    digits=3,
)

# %% [markdown]
# ## Half precision
#
# The released loss takes the exponential of everything and multiplies the
# diagonal away. If a view is most like itself, all others may have vanished
# by then, and the logarithm of nothing is infinite. Here the diagonal is
# taken out before the softmax, and half precision becomes single first.

# %%
alike = torch.full((4, 4), 0.0).fill_diagonal_(2.0)
pair = torch.tensor([0, 1, 0, 1])
scaled = (10 * alike).half()
shifted = scaled - scaled.amax(1, keepdim=True)
left = (shifted.exp() * (1 - torch.eye(4).half())).sum(1)
late = float(-(shifted[0, 2] - left[0].log()))  # row 0, whose match is 2
table(
    [
        {"diagonal taken out": "after the exponential", "loss": str(late)},
        {
            "diagonal taken out": "before (here)",
            "loss": f"{float(contrastive_loss(alike.half(), pair)):.4f}",
        },
    ]
)

# %% [markdown]
# ## Is the regression more than a centroid?
#
# scikit-learn's default regularisation ($C = 1$) is strong for vectors of unit
# length: it holds the weights short, and the shorter they are, the more it is
# the classes' means that decide.

# %%
plain = features_of(embed_images(method, novel))["global"]
task = draw_episodes(novel.labels, 60, 5, 5, 15, 0)
target = np.arange(5).repeat(15)
same, sure, right = [], [], {"regression": [], "centroid": []}
for e in range(len(task)):
    support = plain[task.support[e].flatten()]
    query = plain[task.query[e].flatten()]
    small, asked = projected(support, query)
    chances = probabilities(small, np.arange(5).repeat(5), asked)
    means = support.view(5, 5, -1).mean(1)
    nearest = torch.cdist(query, means).argmin(1).numpy()
    said = chances.argmax(1)
    same.append((said == nearest).mean())
    sure.append(chances.max(1).mean())
    right["regression"].append((said == target).mean())
    right["centroid"].append((nearest == target).mean())

# %% tags=["hide-input"]
ahead = 100 * np.subtract(right["regression"], right["centroid"])
Markdown(
    f"Over {len(task)} episodes of five shots, the regression (one clean copy) "
    f"answers like the nearest mean for {100 * np.mean(same):.1f} % of the "
    "queries. In accuracy, "
    + in_words("the regression", "the nearest mean", interval(ahead))
    + f". Its largest probability is {np.mean(sure):.2f} on average, where "
    "knowing nothing would be 0.20, and it is right for "
    f"{np.mean(right['regression']):.2f} of the queries"
    + (
        ": the probabilities that the authors' test adds up rank the classes, "
        "but they understate how sure one may be."
        if np.mean(sure) < np.mean(right["regression"]) - 0.1
        else "."
    )
)

# %% [markdown]
# ## The narrow interval of unseeded workers
#
# The released test draws its 600 episodes in three worker processes, without
# a seed. Before torch 1.9 every worker started from the same state of numpy,
# and the authors name torch 1.6. So, by our reading, each episode came three
# times: 600 scores, about 200 different ones. The mean stays fair, but the
# printed interval is that of 600 independent ones. Here both are simulated
# from the scores of a real record.

# %%
scores = load_scores(records[0], 1).accuracy
drawer = np.random.default_rng(0)
outcomes = {}
for name, different in (("600 different", 600), ("200, three times each", 200)):
    means, widths = [], []
    for _ in range(2000):
        drawn = drawer.choice(scores, different)
        drawn = np.tile(drawn, 600 // different)
        mean, width = interval(drawn)
        means.append(mean)
        widths.append(width)
    means, widths = np.array(means), np.array(widths)
    outcomes[name] = {
        "episodes": name,
        "printed interval (±)": widths.mean(),
        "true interval (±)": 1.96 * means.std(),
        "holds the truth (%)": 100
        * (abs(means - scores.mean()) <= widths).mean(),
    }
table(list(outcomes.values()))

# %% tags=["hide-input"]
clean, thrice = outcomes.values()
ratio = thrice["true interval (±)"] / thrice["printed interval (±)"]
Markdown(
    "Both print the same width. With repeated episodes the true one is "
    f"{ratio:.2f} times as wide (the square root of three is "
    f"{math.sqrt(3):.2f}), and the printed interval holds the truth in "
    f"{thrice['holds the truth (%)']:.0f} % of cases instead of 95. If the "
    "published numbers were made this way, their ± 0.5 to 0.9 stand for about "
    f"± {0.5 * ratio:.1f} to {0.9 * ratio:.1f}. The published steps from GC to "
    "SC are 0.1 to 1.0 points. Episodes here come from one seed, drawn before "
    "any worker starts."
)

# %%
show_source(draw_episodes)

# %% [markdown]
# ## What was left alone
#
# - What the slides show as figures only (tieredImageNet, the four other
#   domains, ProtoNet) is not read off the figures.
# - The released code stops after a fixed number of epochs without looking at
#   validation classes, and so does this book.
# - Dropout and DropBlock, which the released backbone has, are off here.
#
# ## To take away
#
# - A similarity and its temperature are one thing: halve one, halve the other.
# - Read a contrastive loss between its floor and its flat level.
# - An interval is only as good as the independence of what it averages.
