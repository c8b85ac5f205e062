# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # DMF: ablations
#
# Which parts earn their place? The paper's Table 2 asks four times: do the
# nine cells have to move (a), does the larger map pay (b), how many groups
# (c), how many alignments (d)? Each row of this page is DMF with one thing
# changed, trained on as many images, and compared with the unchanged one
# **on the same episodes**.
#
# All rows are trained on 1-shot episodes, and a column at 5 shots comes
# from the same model. The paper's two columns come from two models. It
# prints Table 2 without intervals, for miniImageNet.

# %% tags=["parameters"]
profile: str = "quick"  # which profile these values belong to
dataset: str = "glyphs"  # trained and scored on
ablation_backbone: str = "conv4_32"  # conv4, resnet12_slim, resnet12
ablation_epochs: int = 2  # passes over the training images
augment: str = "none"  # mirrored letters would be other letters
seeds: list = [0]  # of the unchanged networks; the rest has the first
episodes: int = 2000  # tasks of every score
dense: bool = False  # every point of the paper's sweeps

# %%
import numpy as np
import pandas as pd
from fslib.backbones import build_backbone
from fslib.comparison import SeedSpread, compare, mean_over_seeds
from fslib.methods.dmf import usual_groups
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
from fslib.plots import grid_heat, interval_plot
from fslib.plots.style import use_book_style
from fslib.study import Study
from IPython.display import Markdown

use_book_style()
channels = build_backbone(ablation_backbone).channels
own = usual_groups(ablation_backbone)
many = usual_groups(ablation_backbone, shot=5)
tests = episodes if dense else min(episodes, 400)  # a short look
shots = (1, 5) if dense else (1,)
study = Study(
    dataset,
    ablation_backbone,
    ablation_epochs,
    augment,
    profile,
    seeds[:1],
    tests,
    {"pools": [True, True, False, False]},  # 8 x 8 cells at 32 pixels
)


def dmf(variant: str, where: Study = study, **how) -> list:
    how = {"groups": own, "shots": shots} | how
    return where.records("dmf", f"ablation{variant}", **how)


# %% [markdown]
# ## What the seed alone does
#
# Before anything is changed: how far apart do two runs of the same network
# lie? A smaller difference than that says nothing of a part. Where there are
# several seeds, the two baselines on their usual maps help to answer.

# %%
again = study.but(seeds=seeds)
whole = dmf("", again)
unchanged = {"DMF": whole}
if len(seeds) > 1:
    usual = again.but(backbone_options={}).records
    unchanged |= {
        "ProtoNet": usual("protonet", "ablation"),
        "CE": usual("ce", "ablation"),
    }
spread = SeedSpread(list(unchanged.values()))
table(accuracies(unchanged, shots))

# %% tags=["hide-input"]
Markdown(seeds_in_words(spread, shots))

# %% [markdown]
# Every table below has the paper's numbers, ours, and our paired difference
# from the unchanged model; each ± is a 95 % interval.

# %%
paper = published("miniImageNet", paper="dmf")
paper = paper.pivot_table("accuracy", "method", "setting")
paper.columns = paper.columns.str.removeprefix("5-way ")


def beside(rows: dict) -> pd.DataFrame:
    """Label to (row of the paper, records), as a table."""
    groups = {label: records for label, (_, records) in rows.items()}
    printed = paper.loc[[row for row, _ in rows.values()]].reset_index(
        drop=True
    )
    ours = accuracies(groups, shots).set_index("")[
        [f"{shot}-shot" for shot in shots]
    ]
    change = gain_table(
        {n: (g, whole) for n, g in groups.items()}, shots, spread=spread
    )
    change.loc[[g is whole for g in groups.values()]] = ""
    return pd.concat(
        [
            pd.DataFrame({"": list(groups)}),
            printed.map("{:.2f}".format).add_prefix("paper, "),
            ours.reset_index(drop=True).add_prefix("here, "),
            change.drop(columns="").add_prefix("change, "),
        ],
        axis=1,
    )


def effect(row: str, other: str) -> str:
    """The paper's differences at 1 and 5 shots."""
    change = paper.loc[row] - paper.loc[other]
    return f"{change['1-shot']:+.2f} and {change['5-shot']:+.2f}"


def claim(row: str, other: str, first: str, second: str, a, b) -> str:
    """A difference of Table 2, and ours at every shot."""
    return (
        f"{effect(row, other)} points in the paper (1 and 5 shots). Here, "
        f"{at_each_shot(first, second, a, b, shots, spread=spread)}."
    )


# %% [markdown]
# ## a. Do the nine cells have to move?
#
# Without offsets the filter is read by an ordinary $3 \times 3$
# convolution of the prototype's map. It is then the same for every query.

# %%
still = dmf("_no_sampling", again, sampling=False)
table(
    beside(
        {
            "cells that move": ("DMF dynamic sampling on", whole),
            "cells that stay": ("DMF dynamic sampling off", still),
        }
    )
)

# %% tags=["hide-input"]
Markdown(
    "Cells that move: "
    + claim(
        "DMF dynamic sampling on",
        "DMF dynamic sampling off",
        "DMF",
        "DMF with cells that stay",
        whole,
        still,
    )
)

# %% [markdown]
# ## b. Does the larger map pay?
#
# The paper keeps the last pooling ($6 \times 6$ cells) or drops it ($11
# \times 11$). Here it is the last two that are dropped ($8 \times 8$) or
# only the last ($4 \times 4$).

# %%
pooled = study.but(backbone_options={"pools": [True, True, True, False]})
small = dmf("_pooled", pooled.but(seeds=seeds))
table(
    beside(
        {
            "larger map": ("DMF last pooling removed", whole),
            "smaller map": ("DMF last pooling kept", small),
        }
    )
)

# %% tags=["hide-input"]
Markdown(
    "The larger map: "
    + claim(
        "DMF last pooling removed",
        "DMF last pooling kept",
        "DMF",
        "DMF with the smaller map",
        whole,
        small,
    )
    + " What a larger map does to the baselines stands on the page before."
)

# %% [markdown]
# ## c. How many groups?
#
# With one group the filter is a weight for each position, as in CAN; with
# as many groups as channels every channel has its own. The paper says that
# one group is worst, because positions alone cannot mend a bad channel
# (Fig. 1).

# %%
numbers = [1, own, many] if dense else [1, own]
of_paper = dict(zip([1, own, many], (1, 64, 160)))


def in_groups(g: int) -> str:
    return "one group" if g == 1 else f"{g} groups"


by_groups = {
    g: whole
    if g == own
    else dmf(f"_groups_{g}", again if g == 1 else study, groups=g)
    for g in numbers
}
table(
    beside(
        {
            f"{in_groups(g)} of {channels // g}": (
                f"DMF groups={of_paper[g]}",
                records,
            )
            for g, records in by_groups.items()
        }
    )
)

# %% tags=["hide-input"]
said = []
for shot in shots:
    best = max(numbers, key=lambda g: mean_over_seeds(by_groups[g], shot)[0])
    rivals = []
    for g in numbers:
        mean, ci95 = compare(by_groups[best], by_groups[g], shot, spread)
        rivals += [in_groups(g)] if g != best and mean <= ci95 else []
    said.append(
        f"{in_groups(best)} at {shots_in_words(shot)}, "
        + (f"not told apart from {', '.join(rivals)}" if rivals else "alone")
    )
rows = paper.filter(regex="^DMF groups=", axis=0)
tops = {k: rows[f"{k}-shot"].idxmax().split("=")[1] for k in (1, 5)}
Markdown(
    "Rows stand beside the paper's row with as many channels in a group, as "
    "nearly as the width allows (640, 10 and 4 of its 640; it also prints 320 "
    "and 640 groups). More than "
    "one group: "
    + claim(
        "DMF groups=64",
        "DMF groups=1",
        "DMF",
        "DMF with one group",
        whole,
        by_groups[1],
    )
    + f" The paper's best are {tops[1]} groups at 1 shot and {tops[5]} at 5 "
    "(where 320 prints the same). The highest mean here is that of "
    + "; ".join(said)
    + (
        "."
        if dense
        else ". This profile tries two numbers, `dense = True` three."
    )
)

# %% [markdown]
# ## d. How many alignments?
#
# No alignment leaves the query as it is; then the filter learns nothing, and
# of DMF the votes and the two losses are left. $T$ alignments multiply by
# $(1 + f)^T$, the ODE by $e^f$. The paper says that a fixed $T$ suits one
# number of shots and not the other, and that the ODE suits both.

# %%
counts = (0, 1, 2, 3) if dense else (0, 1)
aligned = {
    t: dmf(f"_align_{t}", again if t == 0 else study, alignments=t)
    for t in counts
}
aligned["ODE"] = whole
table(
    beside(
        {
            "no alignment" if t == 0 else "ODE" if t == "ODE" else f"T = {t}": (
                f"DMF align={t}",
                records,
            )
            for t, records in aligned.items()
        }
    )
)

# %% tags=["hide-input"]
steps = [("ODE", 0), ("ODE", 1)] + [(3, 1)] * dense
name = {
    "ODE": "the ODE",
    0: "no alignment",
    1: "one alignment",
    3: "three alignments",
}
Markdown(
    "\n".join(
        f"- DMF with {name[a]} over {name[b]}: "
        + claim(
            f"DMF align={a}",
            f"DMF align={b}",
            f"DMF with {name[a]}",
            f"DMF with {name[b]}",
            aligned[a],
            aligned[b],
        )
        for a, b in steps
    )
)

# %% [markdown]
# ## Trained one way, tested another
#
# If the number of alignments mattered as such, a model trained with the ODE
# should suffer when it is tested with another number. Only the gain
# function changes, so this costs nothing but the test. (A model trained
# without alignment is left out: its filter was never taught.) The frame is
# around the highest number.

# %%
first = dmf("")  # tests of one network, so its seed cancels
trained = [t for t in aligned if t != 0]
tested = (0, 1, 2, 3, "ODE")
cross = {
    (a, b): (first if a == "ODE" else aligned[a])
    if a == b
    else dmf(
        "" if a == "ODE" else f"_align_{a}",
        head=f"align_{str(b).lower()}",
        shots=(1,),
        **({} if a == "ODE" else {"alignments": a}),
    )
    for a in trained
    for b in tested
}
figure = grid_heat(
    np.array(
        [[mean_over_seeds(cross[a, b], 1)[0] for b in tested] for a in trained]
    ),
    [str(a) for a in trained],
    [str(b) for b in tested],
    "Alignments in training",
    "Alignments at test",
    "1-shot accuracy (%)",
    digits=2,
)

# %%
figure = interval_plot(
    gains(
        {
            f"trained with the ODE, tested with {b}": (cross["ODE", b], first)
            for b in tested
            if b != "ODE"
        },
        (1,),
    ),
    "Change against testing with the ODE (points)",
)

# %% tags=["hide-input"]
swap = {b: compare(cross["ODE", b], first, 1) for b in (0, 1, 2, 3)}
curve = max((1, 2, 3), key=lambda b: abs(swap[b][0]))
count = any(abs(swap[b][0]) > swap[b][1] for b in (0, curve))
gap = abs(swap[0][0]) - abs(swap[curve][0])
width = swap[0][1] + swap[curve][1]
Markdown(
    "The figure takes the lower row apart, in paired differences. For the "
    "model trained with the ODE, "
    + in_words("one alignment at test", "the ODE", swap[1])
    + "; "
    + in_words("three", "the ODE", swap[3])
    + ". Taking the filter away altogether moves the accuracy by "
    f"{swap[0][0]:+.2f} ± {swap[0][1]:.2f}. "
    + (
        "Neither the filter nor the curve it goes through can be shown to "
        "matter at test."
        if not count
        else "So the filter counts for more than the curve it goes through."
        if gap > width
        else "So the curve counts for more than the filter that feeds it."
        if gap < -width
        else "Whether filter or curve counts for more cannot be told."
    )
)

# %% [markdown]
# ## Which parts earn their place?
#
# All of the above: what each part brings to the DMF that has it, over the
# same without it.

# %% tags=["hide-input"]
Markdown(above_chance("DMF", whole))

# %%
parts = {
    "cells that move": (whole, still),
    "the larger map": (whole, small),
    f"{in_groups(own)}, not one": (whole, by_groups[1]),
    "the alignment": (whole, aligned[0]),
    "the ODE, not one alignment": (whole, aligned[1]),
}
figure = interval_plot(
    gains(parts, shots, spread=spread), "What the part brings (points)"
)

# %% tags=["hide-input"]
summary = verdicts(parts, shots, spread)
summary["paper, 1 and 5 shot"] = [
    effect("DMF dynamic sampling on", "DMF dynamic sampling off"),
    effect("DMF last pooling removed", "DMF last pooling kept"),
    effect("DMF groups=64", "DMF groups=1"),
    effect("DMF align=ODE", "DMF align=0"),
    effect("DMF align=ODE", "DMF align=1"),
]
table(summary)

# %% [markdown]
# "Yes" means that a part helps beyond its interval at one number of shots
# and hurts at none. Where the first table has several seeds, the intervals
# count what a seed does; where it has one, they count episodes alone. The
# paper finds that all five help.
#
# ## To take away
#
# - Each part is judged by its paired difference, not by two numbers side
#   by side.
# - The alignments of Table 2d are gain curves, and a trained model can be
#   moved from one to another without training.
# - A part that also helps the baselines, as the larger map may, is no
#   evidence for the idea.
