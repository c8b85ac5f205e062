# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Adaptive margins: paper, code, here
#
# We know of no released code of the paper. So "code" below means that of its
# hosts, AM3 and Dynamic FSL, and the rest is read off the text. Where the
# text cannot be taken literally, a cell shows why.

# %% tags=["parameters"]
profile: str = "quick"  # which profile these values belong to
dataset: str = "glyphs"  # trained and scored on
backbone: str = "conv4_32"  # conv4_32, conv4, resnet12_slim, resnet12
epochs: int = 3  # passes over the training images
augment: str = "none"  # mirrored letters would be other letters
seeds: list = [0]  # the first one is used
dense: bool = False  # longer traces, all numbers of shots
penalty: float = 1.0  # holds the learned margins back

# %%
import math

import matplotlib.pyplot as plt
import numpy as np
import torch
from fslib.comparison import compare
from fslib.episodes import draw_episodes
from fslib.evaluate import embed_images
from fslib.heads import squared_distance
from fslib.losses.margin import (
    MODES,
    MarginLoss,
    TaskMargin,
    add_margins,
    word_similarity,
    wrong,
)
from fslib.methods.margin_protonet import class_words
from fslib.pages import accuracies, in_words, published, table
from fslib.plots.style import use_book_style
from fslib.study import Study, generalised_records
from IPython.display import Markdown
from torch import nn
from torch.nn.functional import cross_entropy

use_book_style()
study = Study(dataset, backbone, epochs, augment, profile, tuple(seeds))
train = study.data["train"]

# %% [markdown]
# ## In one table
#
# | | paper | code of the host | here |
# |---|---|---|---|
# | margins | "learned", with the network | none | `mode`: five ways; reversal by default |
# | size of the naive margin | not given | none | 1, and a sweep |
# | generator | FC, BN, ReLU twice; width not given | none | as the text, width 64 (Dynamic FSL: 128) |
# | order of its inputs | "little impact" | none | literal; `sorted`, `shared` |
# | ways in training | not given (5 at test) | AM3: 5 | 20, as ProtoNet in this book |
# | distance | "euclidean" | AM3: plain | ProtoNet squared, AM3 plain; `metric` |
# | cosine | no scale | none | $s = 10$; `scale`, `learn_scale` |
# | face margins | no $s$, no $m$ | none | $s = 10$, $m = 0.3$ and $0.1$; `size` |
# | $\lambda$ of AM3 | not described | from the transformed name, dropout 0.7 | as the code |
# | word vectors | GloVe | mean over the words of a name | GloVe, 100 numbers, one vector a name; glyphs: mean over the words of the Unicode name |
# | schedule of AM3 | not given | 30,000 steps, rate 0.1, clipped | the one of all methods here |
# | backbone of AM3 | max pooling after all four blocks | after three | that of all methods here |
# | Dynamic FSL | margin in both stages; ResNet-10, ImageNet | last block without ReLU | both stages; backbone of all methods here |
# | its stage 2 | not given | rate 0.1 and dropout 0.5 configured, 0.01 and none in effect | 0.01, no dropout; 4,000 or 1,000 episodes, not 24,000 |
# | draws of its support | 5 | 100 | 100, or 20 |
# | interval of AM3 | ± 0.49, ± 0.36 | | see below |
# | "novel" accuracy | new classes only | the same | both ways of counting |
#
# ## Margins cannot be learned by descent
#
# $\partial L / \partial M_{yc}$ is the probability of a wrong class. First
# the sign, on real logits: features of a trained classifier, 20-way
# episodes, every entry of the margin table a free parameter.

# %%
net = study.run("ce").method
images = train.subset(per_class=60)
features = embed_images(net, images).mean((2, 3))
features = (features - features.mean(0)) / (features.std(0) + 1e-6)
way, shot, query = min(20, train.classes), 5, 10
similar = {
    source: word_similarity(class_words(train, source))
    for source in ("names", "shuffled")
}
target = torch.arange(way).repeat_interleave(query)


def episode_logits(layer, rows):
    """Scaled squared distances, (E, way x query, way)."""
    support = layer(features[rows.support]).mean(2)
    asked = layer(features[rows.query.flatten(1)])
    return -3 / features.shape[1] * squared_distance(asked, support)


drawn = draw_episodes(images.labels, 50, way, shot, query, 1)
logits = episode_logits(nn.Identity(), drawn)
free = torch.zeros(50, way, way, requires_grad=True)
moved = add_margins(logits, target.expand(50, -1), free)
(slope,) = torch.autograd.grad(
    cross_entropy(moved.mT, target.expand(50, -1), reduction="sum"), free
)
slope = wrong(slope)
Markdown(
    f"Of {slope.numel():,} entries of 50 margin tables "
    f"{int((slope < 0).sum())} have a negative gradient; the smallest is "
    f"{float(slope.min()):.1e}. Descent raises none of them."
)

# %% [markdown]
# Now let them learn: one linear layer on these features, trained together
# with the margins, on the same episodes and with the book's own loss, in
# each of the five modes (*method*).


# %%
def trace(kind, mode, names="names", start=1.0, rate=1.0, hold=penalty):
    """The parts of the loss at every step; `rate`: of the margins."""
    torch.manual_seed(seeds[0])
    layer = nn.Linear(features.shape[1], features.shape[1])
    nn.init.eye_(layer.weight)
    nn.init.zeros_(layer.bias)
    options = {"alpha": start} if kind == "class" else {}
    loss = MarginLoss(kind, way, mode, penalty=hold, **options)
    optimiser = torch.optim.SGD(
        [
            {"params": layer.parameters()},
            {"params": loss.parameters(), "lr": 0.1 * rate},
        ],
        lr=0.1,
        momentum=0.9,
        nesterov=True,
    )
    steps = 300 if dense else 150
    drawn = draw_episodes(images.labels, 2 * steps, way, shot, query, 7)
    table_of = similar[names]
    rows = []
    for step in range(steps):
        part = drawn[2 * step : 2 * step + 2]
        pairs = part.classes.unsqueeze(-1), part.classes.unsqueeze(-2)
        made = loss(
            episode_logits(layer, part),
            target.expand(2, -1),
            table_of[pairs],
            network=list(layer.parameters()),
        )
        optimiser.zero_grad()
        made["loss"].backward()
        optimiser.step()
        rows.append({key: value.item() for key, value in made.items()})
    return {key: np.array([row[key] for row in rows]) for key in rows[0]}


traces = {(k, m): trace(k, m) for k in ("class", "task") for m in MODES}
figure, axes = plt.subplots(2, 2, figsize=(6.9, 4.4), sharex=True)
styles = dict(zip(MODES, (":", "-", "--", "-.", (0, (1, 1)))))
for axis, (kind, column, title) in zip(
    axes.flat,
    (
        ("class", "mean_margin", "class-relevant: mean margin"),
        ("task", "mean_margin", "task-relevant: mean margin"),
        ("class", "alpha", "class-relevant: alpha"),
        ("class", "beta", "class-relevant: beta"),
    ),
):
    for mode in MODES:
        axis.plot(traces[kind, mode][column], ls=styles[mode], label=mode)
    axis.axhline(0, color="grey", lw=0.8, zorder=0)
    axis.set_title(title)
    low = min(traces[kind, m][column].min() for m in MODES if m != "joint")
    high = max(traces[kind, m][column].max() for m in MODES)
    axis.set_ylim(min(low, 0) - 0.6 * (high - low), high + 0.1 * (high - low))
for axis in axes[1]:
    axis.set_xlabel("Step")
_ = axes[0, 0].legend(ncols=2)

# %% tags=["hide-input"]
ends = {
    key: {n: v[-20:].mean() for n, v in t.items()} for key, t in traces.items()
}
fallen = np.flatnonzero(traces["class", "joint"]["mean_margin"] < 0)
dead = traces["task", "joint"]["mean_margin"]
gone = np.flatnonzero(dead < 0.1 * dead[0])
joint, literal = ends["class", "joint"], ends["task", "joint"]["mean_margin"]
Markdown(
    "Means of the last 20 steps:\n\n- **joint**, class-relevant: "
    + (
        f"the mean margin is negative after {fallen[0]} steps and "
        if len(fallen)
        else "the mean margin "
    )
    + f"ends at {joint['mean_margin']:.2f} (below the picture if it is not to "
    f"be seen), with alpha = {joint['alpha']:.2f} and beta = "
    f"{joint['beta']:.2f}. A falling margin lowers the loss without any better "
    "feature.\n"
    "- **joint**, task-relevant: the last ReLU stops the fall at zero. "
    + (
        f"After {gone[0]} steps a tenth of the margin is left"
        if len(gone)
        else "A tenth of the margin is not reached here"
    )
    + f", at the end {literal:.4f}"
    + (": the loss has become plain cross-entropy" if literal < 0.01 else "")
    + ".\n- **fixed** keeps its margins; **floor** ends at "
    f"{ends['class', 'floor']['mean_margin']:.2f} (class-relevant; its floor "
    "is 0.5).\n"
    "- **bilevel** moves the margins for the good of another episode, the "
    "class-relevant ones from "
    f"{traces['class', 'bilevel']['mean_margin'][0]:.2f} to "
    f"{ends['class', 'bilevel']['mean_margin']:.2f}.\n"
    "- **reversal** ends at "
    f"{ends['class', 'reversal']['mean_margin']:.2f} (class-relevant) and "
    f"{ends['task', 'reversal']['mean_margin']:.2f} (task-relevant)."
)

# %% [markdown]
# ### What the reported alpha > 0 can mean
#
# The paper observes "that the learned coefficient $\alpha$ in Eq. (3) is
# positive, which verifies our intuition" (section 4.3.1). When does training
# end with $\alpha > 0$?

# %%
cases = [
    ("joint", "names", 1.0, 1.0),
    ("joint", "names", 1.0, 0.01),
    ("joint", "names", -1.0, 1.0),
    ("reversal", "names", 1.0, 1.0),
    ("reversal", "names", -1.0, 1.0),
    ("reversal", "shuffled", 1.0, 1.0),
    ("bilevel", "names", 1.0, 1.0),
    ("bilevel", "names", -1.0, 1.0),
]
ended = {}
for case in cases:
    mode, *how = case
    known = how == ["names", 1.0, 1.0]
    made = traces["class", mode] if known else trace("class", *case)
    ended[case] = tuple(float(made[k][-20:].mean()) for k in ("alpha", "beta"))
table(
    [
        {
            "mode": mode,
            "names": names,
            "rate of the margins": f"{rate:g} x the network's",
            "alpha at the start": start,
            "alpha at the end": ended[mode, names, start, rate][0],
            "beta at the end": ended[mode, names, start, rate][1],
        }
        for mode, names, start, rate in cases
    ]
)

# %% tags=["hide-input"]
slow = ended["joint", "names", 1.0, 0.01]
fast = ended["joint", "names", 1.0, 1.0]
up, down = (ended["reversal", "names", s, 1.0][0] for s in (1.0, -1.0))
mixed = ended["reversal", "shuffled", 1.0, 1.0][0]
agree = up > 0 and down > 0
Markdown(
    "By descent alpha falls as long as the cosines of confused pairs are "
    "mostly positive. "
    f"At the network's own rate it ends at {fast[0]:.2f}, from a start at -1 "
    f"at {ended['joint', 'names', -1.0, 1.0][0]:.2f}, and from 1 at a "
    f"hundredth of the rate at {slow[0]:.2f}: "
    + (
        "still positive, because it started at 1 and had no time to fall. "
        if slow[0] > 0
        else "even then below zero. "
    )
    + (
        "So a positive alpha after joint training says where it *started* and "
        "how slowly it was trained, not that like names need wide margins.\n\n"
        if slow[0] > 0
        else "A positive alpha after joint training would need a slower rate "
        "or a shorter training yet.\n\n"
    )
    + "Reversal can answer the question, since there a margin settles where "
    "its pair is confused: from a start at 1 and at -1 alpha comes to "
    f"{up:.2f} and {down:.2f}. "
    + (
        "It is positive from both sides: here classes with like names *are* "
        "confused more. "
        if agree
        else "It is not positive from both sides, so here like names are not "
        "clearly confused more. "
    )
    + f"With shuffled names it comes to {mixed:.2f}"
    + (
        ", so it is their meaning that does it."
        if agree and mixed < 0.5 * min(up, down)
        else ", so the meaning of the names is not what decides."
    )
    + " The paper gives neither start nor rates, so its own alpha cannot be "
    "placed in this table."
)

# %% [markdown]
# ## The order of the inputs
#
# "The order of input similarities has little impact", says a footnote.
# Deal the classes of an episode out in another order: by how much do the
# margins of the same pairs change?

# %%
trained = study.run("protonet_traml", penalty=penalty).method
tasks = draw_episodes(train.labels, 50, way, 1, 1, 5).classes
turned = torch.randperm(way, generator=torch.Generator().manual_seed(1))
back = turned.argsort()
torch.manual_seed(seeds[0])
generators = {
    f"untrained, {order}": TaskMargin(way, order=order).eval()
    for order in ("literal", "sorted", "shared")
}
generators["trained, literal"] = trained.margin.table
rows = []
for name, generator in generators.items():

    def margins(classes, generator=generator):
        pairs = classes.unsqueeze(-1), classes.unsqueeze(-2)
        with torch.no_grad():
            return generator(trained.similarity[pairs])

    before, after = margins(tasks), margins(tasks[:, turned])
    after = after[:, back][:, :, back]
    rows.append(
        {
            "generator": name,
            "mean margin": float(wrong(before).mean()),
            "mean change": float(wrong((after - before).abs()).mean()),
            "largest change": float((after - before).abs().max()),
        }
    )
table(rows, digits=4)

# %% tags=["hide-input"]
literal = rows[-1]
Markdown(
    "The trained literal generator changes its margins by "
    f"{literal['mean change']:.3f} on average, beside a mean margin of "
    f"{literal['mean margin']:.3f}: "
    + (
        "more than half of it. "
        if literal["mean change"] > 0.5 * literal["mean margin"]
        else "less than half of it. "
    )
    + "The shared order changes nothing, by construction. "
    + (
        "The sorted one does only where two names are alike to the last "
        "digit: then their place decides. "
        if rows[1]["largest change"] > 1e-3
        else "Neither does the sorted one. "
    )
    + "What the order does to accuracy is on the ablations page."
)

# %% [markdown]
# ## How much of a margin is penalty
#
# Reversal needs its penalty. A wide margin confuses its pair more, and a
# confused pair asks for a wider margin: with too weak a penalty the margins
# run away.

# %%
rows = []
for strength in (0.1, 0.3, 1.0, 3.0):
    made = (
        traces["task", "reversal"]
        if strength == penalty
        else trace("task", "reversal", hold=strength)
    )
    rows.append(
        {
            "penalty": strength,
            "mean margin": float(made["mean_margin"][-20:].mean()),
            "median gap": float(made["gap"][-20:].mean()),
            "loss": float(made["loss"][-20:].mean()),
        }
    )
table(rows)

# %% [markdown]
# In balance a margin is $(n - 1)\, p_{yc} / (2 \kappa)$ in a task of $n$
# ways, with $p_{yc}$ the probability that $y$ is taken for $c$ (margins
# included) and $\kappa$ the penalty: the generator learns to predict
# confusions from names. Summed over $c$, the mean margin is then
# $(1 - p_{yy}) / (2 \kappa)$: never above 0.5 with the penalty of 1 for 20
# ways, nor above 0.1 with that of 5 where all base classes are one task.
# Nothing was tuned on novel classes.
#
# ## A cosine without a scale
#
# The paper's cosine has no scale. How far can the loss of five ways then
# fall?


# %% tags=["hide-input"]
def smallest(scale: float, cosine: float) -> float:
    """Loss with every wrong prototype at this cosine to the true one."""
    return math.log(1 + 4 * math.exp(scale * (cosine - 1)))


Markdown(
    "Five prototypes are farthest apart at the corners of a simplex, with a "
    "cosine of -1/4 between them. A query at its own prototype then has a "
    f"loss of {smallest(1, -0.25):.3f}, never less ({smallest(1, -1):.3f} if "
    "all others could lie opposite). With a scale of 10 it is "
    f"{smallest(10, -0.25):.6f}."
)

# %% [markdown]
# ## Whose interval is it?
#
# The AM3 row of Table 1, beside the AM3 paper's own rows (as a third paper
# quotes them):

# %%
paper = published("miniImageNet", paper="margins")
rows = paper[
    paper["method"].isin(
        ["AM3 (Prototypical Network)", "AM3-ProtoNets++", "AM3-TADAM"]
    )
]
table(rows[["method", "setting", "accuracy", "ci95", "source"]])

# %% tags=["hide-input"]
value = paper.drop_duplicates(["method", "setting"]).set_index(
    ["method", "setting"]
)["accuracy"]
full = value["AM3 (Prototypical Network) + TRAML", "5-way 5-shot"]
Markdown(
    "The means are those of AM3-ProtoNets++, the intervals those of "
    "AM3-TADAM. And AM3-TADAM is the better model at five shots: against "
    f"it the full model gains "
    f"{full - value['AM3-TADAM', '5-way 5-shot']:+.2f} points, not "
    f"{full - value['AM3 (Prototypical Network)', '5-way 5-shot']:+.2f}."
)

# %% [markdown]
# ## Names at test
#
# "We don't need to use semantic vectors of novel classes during the test
# stage" (section 3.4). True for ProtoNet. Asked without names, AM3 says:

# %%
width = train.semantics.shape[1]
am3 = study.run("am3", words=width).method
some = torch.zeros(1, 5, 1, am3.backbone.channels)
try:
    am3.score(some, some[:, :, 0])
    answer = "nothing"
except ValueError as error:
    answer = str(error)
Markdown(f"> {answer}")

# %% [markdown]
# So the rows "AM3 + TRAML" do use names at test. Names that the table of
# word vectors does not know are an error here, never a vector of zeros.
#
# ## Novel among novel, novel among all
#
# "Novel" in Table 2 admits only new classes as answers. The same images,
# with the old classes admitted too:

# %%
numbers = (1, 2, 5, 10, 20) if dense else (1, 5, 20)
found = generalised_records(
    study.but(seeds=seeds[:1]),
    "dynamic_fsl",
    shots=numbers,
    lessons=4000 if dense else 1000,
    draws=100 if dense else 20,
)
table(
    accuracies(
        {
            "new classes only, first answer": found["generalised_novel"],
            "all classes, first answer": found["generalised_novel_joint"],
            "new classes only, first five": found["generalised_novel_top5"],
            "all classes, first five": found["generalised_novel_joint_top5"],
        },
        numbers,
    )
)

# %% tags=["hide-input"]
Markdown(
    "First answers: "
    + "; ".join(
        f"at n = {n}, "
        + in_words(
            "the accuracy among new classes only",
            "that among all classes",
            compare(
                found["generalised_novel"], found["generalised_novel_joint"], n
            ),
        )
        for n in (numbers[0], numbers[-1])
    )
    + ". The tables of the benchmark's own repository count among all classes "
    "and call that novel too, so 'novel' can be compared only where the "
    "counting is known."
)

# %% [markdown]
# ## To take away
#
# - Descent cannot hold a margin up: jointly trained margins fall, to zero
#   behind a ReLU and below without one.
# - A reported alpha > 0 is a statement about start and rate unless
#   something other than descent trains it.
# - The literal generator changes its margins with the order of the classes;
#   how much of that a training leaves has to be measured.
# - Ask of every "novel" which answers were admitted.
