# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Adaptive margins: ablations
#
# Does a margin have to be adaptive? To what? Who has to train it? And what
# are the names worth? Every row of this page differs from the one it is
# compared with in one thing, on as many images and the same episodes. To
# afford so many runs they are smaller than those of the training page.

# %% tags=["parameters"]
profile: str = "quick"  # which profile these values belong to
dataset: str = "glyphs"  # trained and scored on
ablation_backbone: str = "conv4_32"  # conv4, resnet12_slim, resnet12
ablation_epochs: int = 2  # passes over the training images for each run
augment: str = "none"  # mirrored letters would be other letters
seeds: list = [0]  # of the hosts; the rest has the first
episodes: int = 2000  # tasks of every score
dense: bool = False  # all points, or a few
penalty: float = 1.0  # holds the learned margins back

# %%
import math

import pandas as pd
from fslib.comparison import SeedSpread, compare, mean_over_seeds
from fslib.measure import part_of
from fslib.pages import (
    accuracies,
    at_each_shot,
    beside_published,
    earned,
    gain_table,
    gains,
    in_words,
    published,
    seeds_in_words,
    shots_in_words,
    table,
    verdicts,
)
from fslib.plots import accuracy_bars, curve_panels, interval_plot
from fslib.plots.style import use_book_style
from fslib.study import Study
from IPython.display import Markdown

use_book_style()
study = Study(
    dataset,
    ablation_backbone,
    ablation_epochs,
    augment,
    profile,
    tuple(seeds[:1]),
    episodes,
)
record = study.records
words = {"words": study.data["train"].semantics.shape[1]}
held = {"penalty": penalty}

# %% [markdown]
# ## What the seed alone does
#
# Before any margin: how far apart do two runs of the same host lie? A smaller
# difference than that says nothing of a margin.

# %%
again = study.but(seeds=seeds).records
unchanged = {
    "AM3": again("am3", "ablation", **words),
    "ProtoNet": again("protonet", "ablation"),
}
if len(seeds) > 1:  # one network more, for a surer number
    unchanged["CE"] = again("ce", "ablation")
spread = SeedSpread(list(unchanged.values()))
table(accuracies(unchanged))

# %% tags=["hide-input"]
Markdown(seeds_in_words(spread))

# %% [markdown]
# ## The loss ladder (paper: Table 3)
#
# Four losses on AM3, as in the paper, and the same four on ProtoNet: without
# margin, with the same for all pairs (naive, m = 1), with one that grows with
# the likeness of the two names (class-relevant), with one that sees all names
# of the task (task-relevant). The last two are learned by reversal. In balance
# their mean cannot exceed 1 / (2 x penalty), 0.5 for a penalty of 1: the step
# from naive to class-relevant is also one to smaller margins.

# %%
ladder = {
    "none": unchanged["AM3"],
    "naive": again("am3_naml", "ablation", **words),
    "class-relevant": again("am3_craml", "ablation", **words, **held),
    "task-relevant": again("am3_traml", "ablation", **words, **held),
}
on_protonet = {
    "none": unchanged["ProtoNet"],
    "naive": again("protonet_naml", "ablation"),
    "class-relevant": again("protonet_craml", "ablation", **held),
    "task-relevant": again("protonet_traml", "ablation", **held),
}
hosts = {"AM3": ladder, "ProtoNet": on_protonet}
bars = pd.DataFrame(
    [
        (f"{host}, {name}", shot, *mean_over_seeds(group, shot)[:2])
        for host, rungs in hosts.items()
        for name, group in rungs.items()
        for shot in (1, 5)
    ],
    columns=["method", "shot", "mean", "ci95"],
)
figure = accuracy_bars(bars, "shot", start=20)

# %% tags=["hide-input"]
learned = {
    host: mean_over_seeds(rungs["none"], 5)[0] for host, rungs in hosts.items()
}
Markdown(
    "The axes start at chance, 20 %. At five shots the hosts without margin "
    "stand at "
    + " and ".join(f"{v:.1f} % ({host})" for host, v in learned.items())
    + ". "
    + (
        "So at least one of them has hardly begun to learn in so short a "
        "training: its rows cannot tell one margin from another."
        if min(learned.values()) < 30
        else "Both have learned enough to be compared."
    )
)

# %%
steps = list(ladder)
figure = interval_plot(
    gains(
        {
            f"{host}: {name} - none": (rungs[name], rungs["none"])
            for host, rungs in hosts.items()
            for name in steps[1:]
        },
        spread=spread,
    ),
    "Change against the host without margin (points)",
)

# %% tags=["hide-input"]
paper = published("miniImageNet", ("5-way 1-shot", "5-way 5-shot"), "margins")
table_3 = paper[paper["source"].eq("TRAML Table 3")]
in_paper = {
    "none": "Original classification loss",
    "naive": "Naive additive margin",
    "class-relevant": "Class-relevant additive margin",
    "task-relevant": "Full model (task-relevant)",
}
table(
    beside_published(
        table_3.set_index("method").loc[list(in_paper.values())].reset_index(),
        {
            f"{host}, {name}": group
            for host, rungs in hosts.items()
            for name, group in rungs.items()
        },
        f"here, {dataset}",
    )
)

# %% tags=["hide-input"]
printed = paper.set_index(["source", "method", "setting"])["accuracy"]
printed = printed.sort_index()


def told(source: str, first: str, second: str) -> dict[str, str]:
    """The lead of one row over another in a table of the paper."""
    lead = printed[source, first] - printed[source, second]
    return {f"{n}-shot": f"{lead[f'5-way {n}-shot']:+.2f}" for n in (1, 5)}


rungs = {f"{low} to {high}": (high, low) for low, high in zip(steps, steps[1:])}
climbs = {
    f"{rung}, {host} here": (of[high], of[low])
    for host, of in hosts.items()
    for rung, (high, low) in rungs.items()
}
rows = pd.DataFrame(
    {"": f"{rung}, AM3 in the paper"}
    | told("TRAML Table 3", in_paper[high], in_paper[low])
    for rung, (high, low) in rungs.items()
)
table(pd.concat([rows, gain_table(climbs, spread=spread)]))

# %% tags=["hide-input"]
rises = {
    host: sum(
        earned(of[high], of[low], spread=spread) == "yes"
        for high, low in rungs.values()
    )
    for host, of in hosts.items()
}
Markdown(
    "The paper's ladder rises at all three rungs. Here, of three, "
    + " and ".join(f"{n} on {host}" for host, n in rises.items())
    + " rise beyond the interval at one number of shots and fall at none. A "
    "rung lower than "
    + " and ".join(
        "{:.1f} points ({})".format(
            compare(ladder["naive"], ladder["none"], shot, spread)[1],
            shots_in_words(shot),
        )
        for shot in (1, 5)
    )
    + " would not be seen here; the paper's are 0.2 to 2.3 high."
)

# %% [markdown]
# ## Against the margins of face recognition (paper: Table 4)
#
# All on AM3 and with cosines at scale 10, prototypes in the place of weights:
# no margin, an additive angular margin (0.3 radians, and 0.1 where `dense` is
# set), an additive cosine margin (0.1) and the task-relevant margin. The last
# row is the task-relevant margin with distances, as in the ladder.

# %%
others = {
    "no margin, cosine": record("am3", "cosine_none", metric="cosine", **words),
    "angular (ArcFace)": record("am3_arcface", "ablation", **words),
    "cosine (CosFace)": record("am3_cosface", "ablation", **words),
    "task-relevant, cosine": record(
        "am3_traml", "cosine", metric="cosine", **words, **held
    ),
    "task-relevant, Euclidean": ladder["task-relevant"],
}
if dense:
    others["angular, 0.1 radians"] = record(
        "am3_arcface", "size_0.1", size=0.1, **words
    )
figure = interval_plot(
    gains(
        {
            f"against {name}": (others["task-relevant, cosine"], others[name])
            for name in others
            if name != "task-relevant, cosine"
        },
        spread=spread,
    ),
    "Lead of the task-relevant margin with cosines (points)",
)

# %% tags=["hide-input"]
table_4 = paper[paper["source"].eq("TRAML Table 4")]
table(
    beside_published(
        table_4, {f"AM3, {n}": g for n, g in others.items()}, f"here, {dataset}"
    )
)

# %% tags=["hide-input"]
# The loss of 20 ways where all features are parallel: s = 10, m = 0.3.
collapsed = math.log(1 + 19 * math.exp(10 * (1 - math.cos(0.3))))
ends_at = others["angular (ArcFace)"][0].history[-1]["loss"]
in_table_4 = {
    "angular (ArcFace)": "Additive angular margin",
    "angular, 0.1 radians": "Additive angular margin",
    "cosine (CosFace)": "Additive cosine margin",
    "task-relevant, Euclidean": "Full model (euclidean)",
}
ours = others["task-relevant, cosine"]
Markdown(
    "\n".join(
        f"- Against {name} the paper prints "
        + " and ".join(
            told("TRAML Table 4", "Full model (cosine)", row).values()
        )
        + " points for the task-relevant margin with cosines, at one and five "
        "shots. Here, "
        + at_each_shot("that margin", name, ours, others[name], spread=spread)
        + "."
        for name, row in in_table_4.items()
        if name in others
    )
    + (
        "\n\nThe angular margin of 0.3 radians has **collapsed**: its loss "
        f"ends at {ends_at:.2f}, and it is {collapsed:.2f} where all "
        "features point the same way. The cosine is flat at its top, so "
        "there a small step apart gains nothing on the wrong ways, while "
        "every step closer to the true one gains sin(m). Fixed class weights "
        "cannot all move "
        "together, prototypes can. That row says how this margin fails on "
        "prototypes, and nothing of the task-relevant one."
        if abs(ends_at - collapsed) < 0.05
        else ""
    )
    + "\n\nOver no margin at all, "
    + at_each_shot(
        "the task-relevant one",
        "none",
        ours,
        others["no margin, cosine"],
        spread=spread,
    )
    + ". Neither the scale nor the sizes of these margins are in the paper; "
    "ours are first choices, and the order of the rows may depend on them."
)

# %% [markdown]
# ## How large a naive margin?
#
# The paper gives no value of $m$. On ProtoNet, whose own loss is $m = 0$: how
# the accuracy changes on novel classes and, dashed, on the base classes that
# were trained on. Bands are 95 % intervals.

# %%
sizes = (-2.0, -1.0, 0.0, 0.5, 1.0, 2.0, 3.0, 5.0) if dense else (1.0, 3.0)
base_classes = part_of(study.data, "train")


def naive(size: float, **how) -> list:
    if size == 1:  # the default
        return again("protonet_naml", "ablation", **how)
    if size == 0:
        return again("protonet", "ablation", **how)
    return record("protonet_naml", f"size_{size}", size=size, **how)


shown = sorted({0.0, *sizes})
swept = {size: naive(size) for size in shown}
known = {size: naive(size, images=base_classes) for size in shown}
base_spread = SeedSpread([known[0.0]])
figure = curve_panels(
    {
        shots_in_words(shot): {
            name: (
                shown,
                [
                    compare(group[size], group[0.0], shot, counted)
                    for size in shown
                ],
                style,
                colour,
            )
            for name, group, counted, style, colour in (
                ("novel classes", swept, spread, "o-", "#009E73"),
                ("base classes", known, base_spread, "s--", "#8C6D1F"),
            )
        }
        for shot in (1, 5)
    },
    "Margin m",
    "Change against no margin (points)",
    zero="xy",
)

# %%
gap = {size: r[0].history[-1].get("gap") for size, r in swept.items()}
best = {
    shot: max(shown, key=lambda m: mean_over_seeds(swept[m], shot)[0])
    for shot in (1, 5)
}
lines = [
    f"At {shots_in_words(shot)} the highest point of the novel classes is "
    f"m = {m:g}"
    + (
        ": no margin beats none. "
        if m == 0
        else ". There "
        + in_words("it", "m = 0", compare(swept[m], swept[0.0], shot, spread))
        + "; on base classes, "
        + in_words(
            "it", "m = 0", compare(known[m], known[0.0], shot, base_spread)
        )
        + ". "
    )
    for shot, m in best.items()
]
most = shown[-1]
Markdown(
    "".join(lines)
    + "The best of several points is a little too good; its interval does not "
    "know that it was chosen.\n\nThe median gap between true and best wrong "
    "logit ends at "
    + ", ".join(f"{g:.1f} (m = {m:g})" for m, g in gap.items() if g is not None)
    + f" on the training episodes: m = {most:g} has "
    + ("" if gap[most] > gap[1.0] + 0.1 else "not ")
    + "stretched the logits more than m = 1."
)

# %% [markdown]
# ## Who trains the margins?
#
# TRAML on ProtoNet, its margins trained in three modes (*method*), or all five
# where `dense` is set. `bilevel` needs two episodes a step, so it takes half
# as many steps. How the margins move in each mode, step by step, is on
# *paper, code, here*.

# %%
modes = {
    "reversal": on_protonet["task-relevant"],
    "joint (the paper's text)": record("protonet_traml", "joint", mode="joint"),
    "floor": record("protonet_traml", "floor", mode="floor"),
}
if dense:
    modes["fixed (random G)"] = record("protonet_traml", "fixed", mode="fixed")
    modes["bilevel"] = record(
        "protonet_traml", "bilevel", mode="bilevel", count=2
    )
shown_modes = accuracies(modes)
for column in ("mean_margin", "gap"):
    shown_modes[column.replace("_", " ")] = [
        group[0].history[-1][column] for group in modes.values()
    ]
table(shown_modes)

# %%
figure = interval_plot(
    gains(
        {
            f"{name} - no margin": (group, on_protonet["none"])
            for name, group in modes.items()
        },
        spread=spread,
    )
)

# %% tags=["hide-input"]
literal = modes["joint (the paper's text)"][0].history
Markdown(
    "\n".join(
        f"- {name}: "
        + at_each_shot(
            "TRAML", "no margin", group, on_protonet["none"], spread=spread
        )
        + "."
        for name, group in modes.items()
    )
    + "\n\nTrained jointly, the mean margin of the first epoch is "
    f"{literal[0]['mean_margin']:.3f} and that of the last "
    f"{literal[-1]['mean_margin']:.3f}; reversal ends at "
    f"{modes['reversal'][0].history[-1]['mean_margin']:.3f}. Where the margins "
    "are gone, the loss is that of ProtoNet."
)

# %% [markdown]
# ## The order of the generator's inputs
#
# A footnote of the paper says that the order of the similarities "has little
# impact on the performance". The literal generator meets its 19 inputs in the
# random order of the classes, each with weights of its own. `sorted` lines
# them up by size; `shared` (where `dense` is set) asks one small net for each
# pair.

# %%
orders = {
    name: record("protonet_traml", f"order_{name}", order=name, **held)
    for name in (("sorted", "shared") if dense else ("sorted",))
}
figure = interval_plot(
    gains(
        {
            f"{name} - literal order": (group, on_protonet["task-relevant"])
            for name, group in orders.items()
        },
        spread=spread,
    )
)

# %% tags=["hide-input"]
Markdown(
    " ".join(
        "Here, "
        + at_each_shot(
            f"the {name} order",
            "the literal one",
            group,
            on_protonet["task-relevant"],
            spread=spread,
        )
        + "."
        for name, group in orders.items()
    )
)

# %% [markdown]
# ## Are the names needed?
#
# The control that the paper does not have: the same generator, fed with the
# names dealt out to the wrong classes. Where `dense` is set, also with
# nothing: every class is then unlike any other, all rows of the table are
# equal, and the margins that are learned do not depend on the classes.

# %%
sources = {"names of other classes": ("words_shuffled", "shuffled")}
if dense:
    sources["no likeness at all"] = ("words_none", "none")
meaning = {
    name: again("protonet_traml", variant, semantics=source, **held)
    for name, (variant, source) in sources.items()
}
figure = interval_plot(
    gains(
        {
            f"true names - {name}": (on_protonet["task-relevant"], group)
            for name, group in meaning.items()
        },
        spread=spread,
    ),
    "What the true names bring (points)",
)

# %% tags=["hide-input"]
shuffled = meaning["names of other classes"]
Markdown(
    "\n".join(
        "- "
        + at_each_shot(
            "TRAML with the true names",
            f"TRAML with {name}",
            on_protonet["task-relevant"],
            group,
            spread=spread,
        )
        + "."
        for name, group in meaning.items()
    )
    + "\n\n"
    + (
        "True names beat those of other classes; whether they beat no margin "
        "is in the ladder above."
        if earned(on_protonet["task-relevant"], shuffled, spread=spread)
        == "yes"
        else "That true names beat those of other classes is not shown by this "
        "run: if any names do as well, it is not their meaning that counts."
    )
)

# %% [markdown]
# ## The share of the image in AM3
#
# AM3 learns for each class a share $\lambda$ of the images in its prototype.
# Fixed at 1 the names are never read: ProtoNet, with AM3's plain distance and
# pooled map. Fixed at 0 the support images are never seen. Where `dense` is
# set, a last row squares the distance.

# %%
ends = {
    "learned": ladder["none"],
    "1 (images only)": record("am3", "image_only", mix=1.0, **words),
    "0 (names only)": record("am3", "name_only", mix=0.0, **words),
}
if dense:
    ends["learned, squared distance"] = record(
        "am3", "squared", metric="squared", **words
    )
table(accuracies({f"lambda {name}": group for name, group in ends.items()}))

# %%
figure = interval_plot(
    gains(
        {
            f"lambda learned - {name}": (ends["learned"], group)
            for name, group in ends.items()
            if name != "learned"
        },
        spread=spread,
    )
)

# %% tags=["hide-input"]
Markdown(
    "From names alone {:.1f} ± {:.1f} % are right at one shot (chance is "
    "20 %), and more shots cannot help. ".format(
        *mean_over_seeds(ends["0 (names only)"], 1)[:2]
    )
    + "Here, "
    + at_each_shot(
        "AM3",
        "the same with images only",
        ends["learned"],
        ends["1 (images only)"],
        spread=spread,
    )
    + "."
)

# %% [markdown]
# ## Which parts earn their place?
#
# Each row is a run with the part, less the same run without it. A part earns
# its place (*yes*) where it is better at one number of shots and worse at
# none; *both ways* is better at one and worse at the other.

# %% tags=["hide-input"]
parts = {}
for host, of in hosts.items():
    parts |= {
        f"{name}, on {host}": (of[high], of[low])
        for name, low, high in (
            ("a naive margin", "none", "naive"),
            ("learned, by pair (smaller, too)", "naive", "class-relevant"),
            ("by task", "class-relevant", "task-relevant"),
            ("all of TRAML", "none", "task-relevant"),
        )
    }
literal = modes["joint (the paper's text)"]
parts |= {
    "reversal, not joint training": (modes["reversal"], literal),
    **{
        f"true names, not {name}": (on_protonet["task-relevant"], group)
        for name, group in meaning.items()
    },
    "names in AM3's prototypes": (ends["learned"], ends["1 (images only)"]),
}
table(verdicts(parts, spread=spread))

# %% [markdown]
# "Yes" means that a part helps beyond its interval at one number of shots and
# hurts at none. Where the first table has several seeds, the intervals count
# what a seed does; where it has one, they count episodes alone.
#
# ## To take away
#
# - A size for the naive margin has to be looked for, and means little without
#   the gap.
# - Names of other classes are the control for every claim about meaning.
# - Trust what holds at both shots and on both hosts.
