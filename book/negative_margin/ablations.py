# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Negative Margin: sweeps and ablations
#
# One number, turned from below zero to above it: what happens to novel
# classes, to base classes, and is it the margin that does it? All networks
# here are small and trained for a short time, so that there can be many. The
# verdict stands in the last table.

# %% tags=["parameters"]
profile: str = "quick"  # which profile these values belong to
dataset: str = "glyphs"  # trained and scored on
ablation_backbone: str = "conv4_32"  # of every network on this page
ablation_epochs: int = 2  # passes over the training images
augment: str = "none"  # mirrored letters would be other letters
seeds: list = [0]  # of the networks without margin; the rest has the first
episodes: int = 2000  # tasks of every score
fitted_episodes: int = 600  # of heads that are fine-tuned, as in the paper
dense: bool = False  # all 13 margins, and the full tables

# %%
import pandas as pd
from fslib.analysis.margins import (
    AUTHORS,
    FEW,
    by_sign,
    network,
    swept,
    top1,
)
from fslib.comparison import SeedSpread, compare, mean_over_seeds
from fslib.evaluate import interval
from fslib.generalised import hold_out
from fslib.measure import part_of
from fslib.pages import (
    above_chance,
    accuracies,
    at_each_shot,
    gain_table,
    gains,
    in_words,
    published,
    seeds_in_words,
    shots_in_words,
    table,
    verdicts,
)
from fslib.plots import curve_panels, grid_heat, interval_plot
from fslib.plots.style import colour_of, signed, use_book_style
from fslib.study import Study, usual_rate
from fslib.train import fit
from IPython.display import Markdown, display

use_book_style()
study = Study(
    dataset,
    ablation_backbone,
    ablation_epochs,
    augment,
    profile,
    seeds[:1],
    episodes,
)
again = study.but(seeds=seeds)
brief = study.but(epochs=ablation_epochs // 2) if dense else study
adam = brief.but(training=AUTHORS)

# %% [markdown]
# ## What the seed alone does
#
# Before any margin: how far apart do two runs of the same network lie? A
# smaller difference than that says nothing of a margin. Two losses are
# asked, the softmax over *dot products* ($s = 5$) and over *cosines*
# ($s = 30$). *Base* are the training images themselves. The *short* networks
# are those of the parts on $s\,m$, on other knobs and on learning rates: in
# a dense edition they are so many that each is trained for half as long.
# Their seeds have a say too, and so have the two baselines.

# %%
parts = {
    "novel": None,
    "validation": part_of(study.data, "val"),
    "base": part_of(study.data, "train"),
}
kinds = {"dot": "dot products", "cosine": "cosines"}
no_margin = {
    (kind, part): again.records(**network(kind, 0.0), images=images)
    for kind in kinds
    for part, images in parts.items()
}
short = brief.but(seeds=seeds)
plain = short.records(**network("dot", 0.0, trained="brief"))
plain_adam = short.but(training=AUTHORS).records(
    **network("cosine", 0.0, trained="adam")
)
table(
    accuracies(
        {
            f"{kinds[kind]}, {part} classes": made
            for (kind, part), made in no_margin.items()
        }
        | {
            "dot products, short, novel classes": plain,
            "cosines, short, Adam, novel classes": plain_adam,
        }
    )
)

# %% tags=["hide-input"]
spreads = {
    part: SeedSpread([no_margin[kind, part] for kind in kinds])
    for part in parts
}
spread = SeedSpread(
    [
        *spreads["novel"].groups,
        plain,
        plain_adam,
        *(again.records(host, "ablation") for host in ("ce", "protonet")),
    ]
)
spreads["novel"] = spread
Markdown(
    above_chance("the classifier on dot products", no_margin["dot", "novel"])
    + " "
    + seeds_in_words(spread)
    + " Every other network has the first seed alone."
)

# %% [markdown]
# ## The sweep over the margin (paper: Fig. 1)
#
# The paper's first figure has two kinds of few-shot accuracy: on the
# classes that the network was **trained** on and on validation classes. As
# the margin falls below zero the first falls and the second rises. The
# curve was digitised to a tenth of a point; it belongs to dot products and,
# going by its numbers, to miniImageNet.
#
# Drawn is the **change** against $m = 0$, so that paper and book can share
# an axis, and the novel classes too. Bands are 95 % intervals; those of the
# novel classes count the seeds of more networks.

# %%
sweep = {
    (kind, part): {
        m: study.records(**network(kind, m), images=images)
        if m
        else no_margin[kind, part]
        for m in swept(kind, dense)
    }
    for kind in kinds
    for part, images in parts.items()
}
curve = published("miniImageNet (inferred)", paper="negative_margin")
curve = curve.assign(margin=curve["method"].str.split().str[-1].astype(float))
curve = curve.pivot(index="margin", columns="setting", values="accuracy")
colours = {"novel": "#009E73", "validation": "#E69F00", "base": "#8C6D1F"}
looks = {
    "novel": ("o-", colours["novel"]),
    "validation": ("s-", colours["validation"]),
    "base": ("^-", colours["base"]),
    "classifier": ("o-", colour_of("negative_margin")),
    "ProtoNet": ("s--", colour_of("protonet")),
}


def changes(lines: dict, shot: int) -> dict:
    """Curves of the change against no margin, for `curve_panels`."""
    return {
        name: (
            list(made),
            [
                compare(of_m, made[0.0], shot, spreads.get(name, spread))
                for of_m in made.values()
            ],
            *looks[name],
        )
        for name, made in lines.items()
    }


def told(shot: int) -> dict:
    """The same of the paper's curves."""
    return {
        f"{part}, paper": (
            list(curve.index),
            list(line - line[0.0]),
            ":",
            colours[part],
        )
        for part, key in (("validation", "val"), ("base", "base"))
        for line in [curve[f"{key} classes {shot}-shot"]]
    }


def draw(lines: dict, xlabel: str, with_paper: bool = False) -> None:
    """Changes against the margin, a panel for each number of shots."""
    curve_panels(
        {
            shots_in_words(shot): changes(lines, shot)
            | (told(shot) if with_paper else {})
            for shot in (1, 5)
        },
        xlabel,
        "Change against no margin (points)",
        zero="xy",
    )


draw({part: sweep["dot", part] for part in parts}, "Margin m", True)

# %% [markdown]
# One network is moved by its seed, all networks of one sign together much
# less. So the change against $m = 0$ for the lowest margin, and for the mean
# of the networks on each side of zero:


# %% tags=["hide-input"]
def sides(kind: str) -> pd.DataFrame:
    """What a margin of either sign does to each part of the data."""
    return pd.concat(
        gain_table(
            {
                f"{part} classes, {label}": pair
                for label, pair in by_sign(sweep[kind, part]).items()
            },
            spread=spreads[part],
        )
        for part in parts
    )


def pattern(kind: str) -> str:
    """What margins below zero do to new and to old classes, in words."""
    said = []
    for shot in (1, 5):
        verbs = []
        for part in ("novel", "base"):
            pair = by_sign(sweep[kind, part])["all below zero"]
            mean, ci95 = compare(*pair, shot, spreads[part])
            verb = "gain" if mean > 0 else "lose"
            if abs(mean) <= ci95:
                verb = "do not clearly change"
            verbs.append(f"{part} classes {verb} ({mean:+.2f} ± {ci95:.2f})")
        said.append(f"at {shots_in_words(shot)} " + " and ".join(verbs))
    return "Margins below zero, all together: " + "; ".join(said) + "."


table(sides("dot"))

# %% tags=["hide-input"]
paper = []
for shot in (1, 5):
    val, base = (curve[f"{key} classes {shot}-shot"] for key in ("val", "base"))
    paper.append(
        f"at {shots_in_words(shot)} validation classes gain "
        f"{val.max() - val[0.0]:.1f} points at m = {val.idxmax():g} and base "
        f"classes lose {base[0.0] - base.iloc[0]:.1f} at m = {base.index[0]:g}"
    )
Markdown(f"{pattern('dot')} In the paper {'; '.join(paper)}.")

# %% [markdown]
# ### The same on cosines

# %%
draw({part: sweep["cosine", part] for part in parts}, "Margin m")

# %% tags=["hide-input"]
display(table(sides("cosine")))
Markdown(pattern("cosine"))

# %% [markdown]
# ## Telling all base classes apart
#
# And the classifier itself: how often does it name the right one of all
# base classes? The training log tells it for (augmented) training images,
# with and without the margin. For dot products two networks more are
# trained on part of the images and asked about those that were **held
# out**.

# %%
kept, set_aside = hold_out(study.data["train"])
right = {}
for m in FEW["dot"][: 3 if dense else 2]:
    asked = study.config(**network("dot", m, trained="held_out"))
    run = fit(asked, {**study.data, "train": kept})
    right[m] = top1(run.method, set_aside)
table(
    [
        {
            "": f"{kinds[kind]}, m = {m:g}",
            "training images": f"{last['base_accuracy']:.1f}",
            "with margin": f"{last['accuracy_with_margin']:.1f}",
            "held out": "{:.2f} ± {:.2f}".format(*interval(right[m]))
            if kind == "dot" and m in right
            else "",
        }
        for kind in kinds
        for m in sorted({min(swept(kind, dense)), *FEW[kind]})
        for last in [sweep[kind, "novel"][m][0].history[-1]]
    ]
)

# %% tags=["hide-input"]
Markdown(
    f"On {len(set_aside):,} held-out images: "
    + "; ".join(
        in_words(f"m = {m:g}", "m = 0", interval(right[m] - right[0.0]))
        for m in right
        if m
    )
    + " (one network each; the intervals are over images). The accuracy with "
    "the margin is what the released code logs: it follows the margin, not "
    "the network."
)

# %% [markdown]
# ## Is it the product that counts? (s x m)
#
# For one image only $s\,m$ matters. But the scale also decides how sharp
# the softmax is, with or without a margin. Each column holds the product
# fixed. These networks are trained with Adam, as the authors do: its steps
# do not grow with the scale, which would be a second effect of the same
# number.

# %%
scales = (10, 30, 90) if dense else (10, 30)
products = (-2.7, -0.9, -0.3, 0.0, 0.9) if dense else (-0.9, 0.0)
cells = {
    (s, p): plain_adam
    if (s, p) == (30, 0.0)
    else adam.records(**network("cosine", round(p / s, 6), s, "adam"))
    for s in scales
    for p in products
}
names = [f"s = {s}" for s in scales], [signed(p, 1) for p in products]
figure = grid_heat(
    [[mean_over_seeds(cells[s, p], 5)[0] for p in products] for s in scales],
    *names,
    xlabel="Product s m",
    colour_label="5-shot (%)",
)

# %% tags=["hide-input"]
gained = {
    f"s = {s}, s m = {p:g}": compare(cells[s, p], cells[s, 0.0], 5, spread)
    for s in scales
    for p in products
    if p
}
clear = [
    f"{name} ({mean:+.2f} ± {ci95:.2f})"
    for name, (mean, ci95) in gained.items()
    if abs(mean) > ci95
]
ranked = sorted(scales, key=lambda s: mean_over_seeds(cells[s, 0.0], 5)[0])
Markdown(
    f"Against the same scale without a margin, at five shots, {len(clear)} of "
    f"the {len(gained)} changes are clear of their intervals (up to ± "
    f"{max(ci95 for _, ci95 in gained.values()):.2f} points)"
    + (f": {'; '.join(clear)}" if clear else "")
    + ". Without any margin, "
    + in_words(
        f"s = {ranked[-1]}",
        f"s = {ranked[0]}",
        compare(cells[ranked[-1], 0.0], cells[ranked[0], 0.0], 5, spread),
    )
    + ", and the largest change that a margin makes is "
    f"{max(abs(mean) for mean, _ in gained.values()):.2f}. A table over $s$ "
    "and $m$ shows the scale before it shows the margin."
)

# %% [markdown]
# ## What else could it be? The knobs at m = 0
#
# In the released settings weight decay, scale and drop rate (the share of
# features dropped in training) are tuned together with the margin, for each
# data set, loss and number of shots. So here they are turned one at a time
# **without** a margin, on dot products; the last row is the margin alone.

# %%
lowest = FEW["dot"][0]
margin_alone = brief.records(**network("dot", lowest, trained="brief"))
knobs = {
    f"weight decay {d:g}": brief.but(training={"weight_decay": d}).records(
        **network("dot", 0.0, trained=f"decay_{d * 1e5:g}")
    )
    for d in ((1e-4, 1e-3, 3e-3) if dense else (3e-3,))
}
knobs |= {
    f"scale {s:g}": brief.records(**network("dot", 0.0, s, trained="brief"))
    for s in ((1.0, 10.0) if dense else ())
}
knobs |= {
    f"drop rate {r:g}": brief.but(backbone_options={"drop_rate": r}).records(
        **network("dot", 0.0, trained=f"drop_{r * 10:g}")
    )
    for r in ((0.1, 0.2) if dense else ())
}
turned = {
    name: (made, plain)
    for name, made in {**knobs, f"margin {lowest:g}": margin_alone}.items()
}
figure = interval_plot(
    gains(turned, spread=spread),
    "Change against m = 0, weight decay 5e-4, scale 5 (points)",
)

# %% tags=["hide-input"]
best = max(knobs, key=lambda name: mean_over_seeds(knobs[name], 5)[0])
lead, ci95 = compare(margin_alone, knobs[best], 5, spread)
left_out = ""
if dense:
    steep = brief.records(**network("dot", 0.0, 30.0, trained="brief"))
    left_out = (
        " Not drawn is a scale of 30 on dot products: with the same rate its "
        "steps are six times as long, and "
        + at_each_shot("it", "the plain network", steep, plain, spread=spread)
        + "."
    )
Markdown(
    f"Of the other knobs *{best}* does best at five shots: "
    + at_each_shot(
        "the margin alone",
        f"the network with {best}",
        margin_alone,
        knobs[best],
        spread=spread,
    )
    + ". "
    + (
        "The margin does more than any other knob here. "
        if lead > ci95
        else "So the margin does less than another knob, and two models tuned "
        "apart do not show what the margin did. "
        if lead < -ci95
        else "The margin is not clearly above it, so two models tuned apart do "
        "not show what the margin did. "
    )
    + "(The best knob is found on the episodes that judge it, which flatters "
    "it.)" + left_out
)

# %% [markdown]
# ## Is it only a shorter step?
#
# A margin below zero makes gradients smaller, and a smaller learning rate
# makes steps shorter. If the margin helps where the rate is too high and not
# where it is right, it was the step and not the margin. So both are turned:
# each row is the effect of $m = -0.3$ on dot products under another way to
# take steps.

# %%
usual = usual_rate("negative_margin", dataset)
by_rate = {usual: (margin_alone, plain)}
for rate in (0.4, 0.2, 0.05, 0.02) if dense else (0.1,):
    if rate != usual:
        by_rate[rate] = tuple(
            brief.but(training={"lr": rate}).records(
                **network("dot", m, trained=f"rate_{rate * 1e3:g}")
            )
            for m in (lowest, 0.0)
        )
steps = {
    f"SGD, rate {rate:g}" + ", as above" * (rate == usual): by_rate[rate]
    for rate in sorted(by_rate, reverse=True)
}
if dense:
    steps["Adam, rate 0.003"] = tuple(
        adam.records(**network("dot", m, trained="adam")) for m in (lowest, 0.0)
    )
figure = interval_plot(
    gains(steps, spread=spread), "What the margin brings (points)"
)

# %% tags=["hide-input"]
chosen = [
    max(steps, key=lambda name: mean_over_seeds(steps[name][side], 5)[0])
    for side in (0, 1)
]
at_best = steps[chosen[0]][0], steps[chosen[1]][1]
reached = [
    f"{mean_over_seeds(made, 5)[0]:.1f} % ({name})"
    for made, name in zip(at_best, chosen)
]
effect = {rate: compare(*pair, 5, spread) for rate, pair in by_rate.items()}
helps = [rate for rate, (mean, ci95) in effect.items() if mean > ci95]
hurts = [rate for rate, (mean, ci95) in effect.items() if mean < -ci95]
like_a_step = bool(helps and hurts and min(helps) > max(hurts))
at_rates = [
    "at rates of " + " and ".join(f"{rate:g}" for rate in sorted(rates))
    if rates
    else "at no rate"
    for rates in (helps, hurts)
]
Markdown(
    f"At five shots the margin clearly helps {at_rates[0]} and clearly hurts "
    f"{at_rates[1]}"
    + (
        ": it makes up for steps that are too long and costs where they are "
        "short, as a shorter step would. "
        if like_a_step
        else ". "
    )
    + f"m = -0.3 does best with {reached[0]} and m = 0 with {reached[1]}. Each "
    "at its best step, "
    + at_each_shot("m = -0.3", "m = 0", *at_best, spread=spread)
    + ". That is the fair comparison: a gain that is gone when both choose "
    "their step was the step's. (Both choose on the episodes that judge "
    "them.)"
)

# %% [markdown]
# ## The head at test
#
# The authors fine-tune a cosine or a linear head in every episode; this
# book takes centroids, the means of the support of each class. Does what
# the margin brings depend on that choice? Four networks of the sweep under
# six heads: the two fine-tuned ones, centroids by cosine, by distance, and
# by distance after features are scaled to length one, and logistic
# regression. Fitted heads are slow, so all are scored on fewer episodes.

# %%
heads = {
    "tuned_cosine": "fine-tuned cosine",
    "tuned_dot": "fine-tuned linear",
    "cosine": "centroid, cosine",
    "euclid": "centroid, Euclid",
    "l2n": "centroid, unit length",
    "regression": "logistic regression",
}
few = study.but(episodes=min(episodes, fitted_episodes))
by_head = {
    f"{kinds[kind]}: {label}": tuple(
        few.records(**network(kind, m), head=head) for m in FEW[kind][:2]
    )
    for kind in kinds
    for head, label in heads.items()
}
scored = accuracies({label: pair[1] for label, pair in by_head.items()})
change = gain_table(by_head, spread=spread).drop(columns="")
table(
    scored.rename(columns=lambda column: column and f"m = 0, {column}").join(
        change.rename(columns="change by m < 0, {}".format)
    )
)

# %% tags=["hide-input"]
span = []
for kind in kinds:
    effect = [
        compare(*pair, 5, spread)[0]
        for label, pair in by_head.items()
        if label.startswith(kinds[kind])
    ]
    span.append(
        f"between {min(effect):+.2f} and {max(effect):+.2f} points "
        f"(m = {FEW[kind][0]:g} on {kinds[kind]})"
    )
Markdown(
    f"Over {few.episodes:,} episodes at five shots the effect of the margin "
    f"lies {' and '.join(span)}. All heads test the same networks, so they are "
    "one vote and not six. On the network of cosines, "
    + at_each_shot(
        "the cosine centroid",
        "the fine-tuned cosine head",
        by_head["cosines: centroid, cosine"][1],
        by_head["cosines: fine-tuned cosine"][1],
        spread=spread,
    )
    + ". Why a fitted head is noisy with one image a class stands on the page "
    "[paper, code, here](paper_code_here)."
)

# %% [markdown]
# ## Positive there, negative here: which sign, and where?
#
# The chapter on adaptive margins {cite}`li2020traml` *adds* margins to the
# wrong logits of networks that learn from episodes; this one gives the true
# class of a classifier a margin below zero. Both papers report gains, and
# both margins are one number in the same table, so both signs can be tried
# in both places: a classifier over all base classes at once (dot products,
# $s = 5$) and ProtoNet on episodes of 20 ways, whose margins the
# [other chapter](../margins/ablations) discusses. The margin is given in
# logits, $s\,m$.

# %%
dots, cosines = (sweep[kind, "novel"] for kind in kinds)
hosts = {
    "classifier": {round(5 * m, 2): made for m, made in dots.items()},
    "ProtoNet": {
        size: study.records("protonet_naml", f"size_{size}", size=size)
        for size in ((-2.0, -1.0, 0.5, 2.0) if dense else (-1.0,))
    },
}
hosts["ProtoNet"][0.0] = again.records("protonet", "ablation")
hosts["ProtoNet"][1.0] = study.records("protonet_naml", "ablation")
hosts["ProtoNet"] = dict(sorted(hosts["ProtoNet"].items()))
draw(hosts, "Margin in logits, s m")

# %% tags=["hide-input"]
signs = {
    f"{host}, {label}": pair
    for host, made in hosts.items()
    for label, pair in by_sign(made).items()
    if label.startswith("all")
}
table(verdicts(signs, spread=spread))

# %% [markdown]
# ## Which parts earn their place?
#
# What each part of the method brings to the networks of this page, over the
# same without it. *Yes*: it helps beyond its interval at one number of shots
# at least and hurts at none; *no*: it hurts at one and helps at none; *both
# ways*: one of each.

# %% tags=["hide-input"]
brought = {
    f"m = {FEW['dot'][0]:g} on dot products": (dots[lowest], dots[0.0]),
    "the same, each at its best step (short)": at_best,
    "all m < 0 on dot products": by_sign(dots)["all below zero"],
    "all m < 0 on cosines": by_sign(cosines)["all below zero"],
    "cosines (s = 30), not dot products (s = 5), m = 0": (
        cosines[0.0],
        dots[0.0],
    ),
}
for kind, head in (("cosines", "cosine"), ("dot products", "linear")):
    brought[f"fine-tuned {head} head, not a centroid, {kind}, m = 0"] = (
        by_head[f"{kind}: fine-tuned {head}"][1],
        by_head[f"{kind}: centroid, unit length"][1],
    )
table(verdicts(brought, spread=spread))

# %% tags=["hide-input"]
base = by_sign(sweep["dot", "base"])["all below zero"]
Markdown(
    "In short, on dot products: on novel classes "
    + at_each_shot(
        "a margin below zero",
        "none",
        *by_sign(dots)["all below zero"],
        spread=spread,
    )
    + "; on base classes "
    + at_each_shot("it", "none", *base, spread=spreads["base"])
    + "."
)

# %% [markdown]
# ## To take away
#
# - Turn one knob at a time: scale, weight decay and learning rate move an
#   accuracy too, and a margin below zero also shortens the steps.
# - For one image only the product counts; for a network the scale matters
#   by itself, so compare margins at one scale.
# - One network says little about one margin; the networks of one sign
#   together say more.
