# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Adaptive margins: a look inside
#
# What did the generator make of the likeness of names? Where does AM3 trust
# the image? And do classes lie differently once a margin has pushed them
# apart? This page opens the runs of the training page.

# %% tags=["parameters"]
profile: str = "quick"  # which profile these values belong to
dataset: str = "glyphs"  # trained and looked at
backbone: str = "conv4_32"  # conv4_32, conv4, resnet12_slim, resnet12
epochs: int = 3  # passes over the training images
augment: str = "none"  # mirrored letters would be other letters
seeds: list = [0]  # the first one is looked at
penalty: float = 1.0  # holds the learned margins back
classes: int = 10  # in each t-SNE picture
per_class: int = 20  # points of each class

# %%
import matplotlib.pyplot as plt
import numpy as np
import torch
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
from fslib.analysis.ranking import query_rank_correlation
from fslib.episodes import draw_episodes
from fslib.evaluate import (
    embed_images,
    evaluate,
    interval,
    paired_difference,
)
from fslib.losses.margin import wrong
from fslib.pages import in_words, shots_in_words, table
from fslib.plots import interval_curve
from fslib.plots.images import ranking_panel
from fslib.plots.style import short_name, use_book_style
from fslib.study import Study
from IPython.display import Markdown
from scipy.stats import spearmanr
from torch.nn.functional import normalize

use_book_style()
study = Study(dataset, backbone, epochs, augment, profile, tuple(seeds))
train, novel_set = study.data["train"], study.data["test"]
words = {"words": train.semantics.shape[1]}
nets = {
    "CE": study.run("ce").method,
    "ProtoNet": study.run("protonet").method,
    "ProtoNet + TRAML": study.run("protonet_traml", penalty=penalty).method,
    "AM3": study.run("am3", **words).method,
    "AM3 + TRAML": study.run("am3_traml", **words, penalty=penalty).method,
}

# %% [markdown]
# ## Likeness and margin, side by side (paper: Fig. 1 and 3)
#
# Twelve base classes of one training episode, those of one superclass side by
# side. Left how alike their names are (cosine of their word vectors), right
# the margin that the trained generator asks for: a row is the true class, a
# column a wrong one. The left table is symmetric, the right one need not be.

# %%
host = nets["ProtoNet + TRAML"]
way = min(host.batches.way, train.classes)
tasks = draw_episodes(train.labels, 50, way, 1, 1, 5).classes
kinds = train.superclass or train.class_names
shown = sorted(range(way), key=lambda i: kinds[int(tasks[0, i])])[:12]
with torch.no_grad():
    margins = host.margins_of(tasks)
alike = host.similarity[tasks.unsqueeze(-1), tasks.unsqueeze(-2)]
names = [
    short_name(train.class_names[int(tasks[0, i])], 30).split("\n")[0]
    for i in shown
]
figure, axes = plt.subplots(1, 2, figsize=(6.9, 3.6), sharey=True)
for axis, values, title in zip(
    axes,
    (alike[0], margins[0]),
    ("Likeness of names", "Margin of ProtoNet + TRAML"),
):
    part = values[shown][:, shown].clone()
    part.fill_diagonal_(float("nan"))
    image = axis.imshow(part, cmap="cividis")
    axis.set_xticks(range(len(shown)), names, rotation=90, size=6.5)
    axis.set_yticks(range(len(shown)), names, size=6.5)
    axis.set_title(title)
    axis.tick_params(length=0)
    figure.colorbar(image, ax=axis, shrink=0.6)
_ = axes[0].set_ylabel("True class")

# %% tags=["hide-input"]
both = wrong(margins[0])
turned = wrong((margins[0] - margins[0].mT).abs())
Markdown(
    f"In this whole episode of {way} classes the margins run from "
    f"{both.min():.2f} to {both.max():.2f}, with a mean of "
    f"{both.mean():.2f}; the two directions of a pair differ by "
    f"{turned.mean():.2f} on average. Over 50 episodes, every third pair as a "
    "point:"
)

# %%
figure, axes = plt.subplots(1, 2, figsize=(6.9, 2.7), sharey=True)
found = {}
for axis, name in zip(axes, ("ProtoNet + TRAML", "AM3 + TRAML")):
    with torch.no_grad():
        y = wrong(nets[name].margins_of(tasks)).flatten(1)
    x = wrong(alike).flatten(1)
    axis.plot(x.flatten()[::3], y.flatten()[::3], ".", ms=2, alpha=0.35)
    axis.set(xlabel="Likeness of the two names (cosine)", title=name)
    ranks = [
        spearmanr(a, b).statistic if b.std() > 0 else 0.0 for a, b in zip(x, y)
    ]
    found[name] = (*interval(np.array(ranks)), float((y == 0).float().mean()))
_ = axes[0].set_ylabel("Margin (logit)")

# %% tags=["hide-input"]
Markdown(
    "The rank correlation of likeness and margin within an episode is "
    + " and ".join(
        f"{rho:+.2f} ± {ci95:.2f} with {name}, where {zero:.0%} of the margins "
        "are zero"
        for name, (rho, ci95, zero) in found.items()
    )
    + ". The paper wants larger margins for like names, a positive "
    "correlation; here it is positive with "
    + (
        " and ".join(n for n, (rho, ci95, _) in found.items() if rho > ci95)
        or "neither host"
    )
    + ". A cloud that is wide at one likeness is the work of the context: the "
    "same pair gets another margin in another task and, with the literal "
    "order, in another place of the row."
)

# %% [markdown]
# ## Where AM3 trusts the image
#
# AM3 learns a share $\lambda$ of the images in the prototype of a class, from
# its name alone. Left its value for every class, right what happens when one
# $\lambda$ is forced on all novel classes at test (dotted: the learned one).

# %%
am3 = nets["AM3"]
with torch.no_grad():
    shares = {
        "base": am3.image_share(am3.words).flatten(),
        "novel": am3.image_share(novel_set.semantics).flatten(),
    }
maps_of_am3 = embed_images(am3, novel_set)
forced = (0.0, 0.25, 0.5, 0.75, 1.0)
curves, own = {}, {}
for shot in (1, 5):
    how = {"shot": shot, "episodes": 1000, "maps": maps_of_am3}
    own[shot] = evaluate(am3, novel_set, **how)
    curves[shot] = []
    for share in forced:
        am3.mix = share
        curves[shot].append(evaluate(am3, novel_set, **how))
        am3.mix = None
figure, axes = plt.subplots(1, 2, figsize=(6.9, 2.6))
axes[0].hist(
    list(shares.values()),
    bins=torch.linspace(0, 1, 26).tolist(),
    weights=[torch.full_like(v, 100 / len(v)) for v in shares.values()],
    label=list(shares),
)
axes[0].set(xlabel="lambda (share of the image)", ylabel="Classes (%)")
axes[0].set_xlim(0, 1)
axes[0].legend()
for (shot, scores), style in zip(curves.items(), ("o-", "s--")):
    values = [(score.mean, score.ci95) for score in scores]
    colour = interval_curve(
        axes[1], forced, values, style, label=f"{shot} shot"
    )
    axes[1].axhline(own[shot].mean, ls=":", color=colour)
axes[1].set(xlabel="lambda, forced at test", ylabel="Accuracy (%)")
_ = axes[1].legend()

# %% tags=["hide-input"]
best = {
    shot: max(zip(forced, scores), key=lambda pair: pair[1].mean)
    for shot, scores in curves.items()
}
Markdown(
    f"The mean lambda is {shares['base'].mean():.2f} on base and "
    f"{shares['novel'].mean():.2f} on novel classes, where it runs from "
    f"{shares['novel'].min():.2f} to {shares['novel'].max():.2f}. Over 1000 "
    "episodes, "
    + "; ".join(
        f"at {shots_in_words(shot)} the best of five forced values is "
        f"{share:g}, and "
        + in_words(
            "the learned lambda", "it", paired_difference(own[shot], score)
        )
        for shot, (share, score) in best.items()
    )
    + ". Lambda does not know how many shots there are: the network that makes "
    "it sees only the name."
)

# %% [markdown]
# ## Classes as clouds
#
# t-SNE {cite}`maaten2008tsne` draws the features in the plane; the
# **silhouette** measures in the original space how tight classes lie
# (1 tight and apart, 0 touching, below 0 nearer to another class). Each colour
# with its marker is a class, learned (upper row) or new (lower row); a plus
# stands for TRAML.

# %%
samples = class_samples(study.data, classes, per_class)
maps = embed_samples(nets, samples)
figure = embedding_panel(
    {name.replace(" + TRAML", " +"): made for name, made in maps.items()},
    samples,
)

# %%
tight = silhouette_table(maps, samples)
table(bracketed(tight))

# %% tags=["hide-input"]
Markdown(
    " ".join(
        f"The margin changes the silhouette of {name} by "
        f"{silhouette_change(maps, samples, f'{name} + TRAML', name)}."
        for name in ("ProtoNet", "AM3")
    )
    + " A wider strait would be a rise. Both networks are resampled with the "
    "same images. Each is one network: the intervals do not count what "
    "another seed would do, here and below."
)

# %% [markdown]
# ## Where they look
#
# One query of each way of an episode; the warmer a place, the smaller its
# angle to the prototype of its own class, made of images alone for AM3 too.
# With four poolings a 32-pixel image has only 2 x 2 places, which the pictures
# smooth.

# %%
task = draw_episodes(novel_set.labels, 1, 4, 1, 15, 3)
whole = {
    name: maps_of_am3 if name == "AM3" else embed_images(net, novel_set)
    for name, net in nets.items()
}
figure = heat_panel(whole, novel_set, task)

# %% tags=["hide-input"]
Markdown(heat_words(whole, novel_set))

# %% [markdown]
# ## What looks like what
#
# The same episode as a ranking of ProtoNet + TRAML: each query with the
# ways from most to least similar. Below each way stands its logit; the true
# one is framed, in green where it comes first.

# %%
features = {n: nets[n].test_features(m) for n, m in whole.items()}
asked = task.query[:, :, :1].flatten(1)
values = features["ProtoNet + TRAML"]
logits = host.score(values[task.support], values[asked])[0]
figure = ranking_panel(
    novel_set.images[asked[0]],
    torch.arange(4),
    logits,
    novel_set.images[task.support[0, :, 0]],
    [novel_set.class_names[int(c)] for c in task.classes[0]],
)

# %% tags=["hide-input"]
Markdown(
    ranking_words(
        logits,
        [novel_set.class_names[int(c)] for c in task.classes[0]],
        range(4),
    )
)

# %% [markdown]
# ### The ranking as a number
#
# Are the pairs of novel classes that a network finds similar also pairs of
# one superclass, or pairs whose names are alike? Kendall's tau-b over all
# pairs, with a 95 % interval from resampling classes. All five networks see
# images only.

# %%
pooled = {
    name: normalize(values.mean((2, 3)), dim=1)
    for name, values in whole.items()
}
table(bracketed(ranking_table(pooled, novel_set)))

# %% tags=["hide-input"]
Markdown(order_words(pooled, novel_set, "ProtoNet + TRAML"))

# %% [markdown]
# And within single tasks: the wrong ways of a query, ranked by the network
# and by likeness of name to the true way: Kendall's tau-b again, with a 95 %
# interval over 300 episodes. Here AM3 may read the names, as it does at test.

# %%
many = draw_episodes(novel_set.labels, 300, 5, 1, 3, 11)
target = torch.arange(5).repeat_interleave(3).repeat(300)
meaning = normalize(novel_set.semantics[many.classes].float(), dim=-1)
reference = (meaning @ meaning.mT).repeat_interleave(15, 0)
rows, taus = [], {}
for name, net in nets.items():
    values = features[name]
    extra = [novel_set.semantics[many.classes]] if net.uses_semantics else []
    with torch.no_grad():
        answers = net.score(
            values[many.support], values[many.query.flatten(1)], *extra
        )
    tau = query_rank_correlation(answers.flatten(0, 1), target, reference)
    taus[name] = tau.view(300, -1).nanmean(1)
    mean, ci95 = interval(taus[name][taus[name].isfinite()])
    rows.append({"method": name, "tau with names": f"{mean:.3f} ± {ci95:.3f}"})
table(rows)

# %% tags=["hide-input"]
lines, lower = [], []
for name in ("ProtoNet", "AM3"):
    change_of_tau = 100 * (taus[f"{name} + TRAML"] - taus[name])
    step = interval(change_of_tau[change_of_tau.isfinite()])
    lower += [name] if step[0] < -step[1] else []
    lines.append(
        in_words(
            f"the tau of {name} + TRAML",
            f"that of {name}",
            step,
            "hundredths",
        )
    )
Markdown(
    " ".join(f"{line[0].upper()}{line[1:]}." for line in lines)
    + " A margin that parts like names should *lower* this number: it works "
    "against the confusions that follow the names. Beyond its interval it "
    f"does so on {' and '.join(lower) or 'neither host'}."
)

# %% [markdown]
# ## To take away
#
# - A margin table can be read: rows, columns, and how it goes with the
#   likeness of names.
# - AM3's lambda depends on the name and not on the number of shots.
# - Silhouettes and rank correlations are numbers with intervals; pictures
#   are not.
