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
# changed, trained from the same seed on as many images, and compared with
# the unchanged one **on the same episodes**.
#
# The rows are trained as 1-shot models. The paper's columns $K = 1$ and
# $K = 5$ come from two models each; a column at 5 shots here comes from the
# same model as the one at 1 shot.

# %% tags=["parameters"]
profile: str = "quick"  # which profile these values belong to
dataset: str = "glyphs"  # trained and scored on
ablation_backbone: str = "conv4_32"  # conv4, resnet12_slim, resnet12
ablation_epochs: int = 2  # passes over the training images
augment: str = "none"  # mirrored letters would be other letters
seeds: list = [0]  # the first one is used
episodes: int = 2000  # tasks of every score
dense: bool = False  # every point of the paper's sweeps

# %%
import numpy as np
import pandas as pd
from fslib.backbones import build_backbone
from fslib.heads.alignment import usual_groups
from fslib.pages import gains, in_words, published, table
from fslib.plots import grid_heat, interval_plot
from fslib.plots.style import use_book_style
from fslib.results import compare, mean_over_seeds
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


whole = dmf("")

# %% [markdown]
# One table shows it all: the paper's numbers, ours, and our paired
# difference from the unchanged model.

# %%
paper = published("miniImageNet", paper="dmf")
paper = paper.pivot_table("accuracy", "method", "setting").rename(
    columns=lambda setting: setting.removeprefix("5-way ").replace("-", " ")
)


def beside(rows: dict) -> pd.DataFrame:
    """Label to (row of the paper, records), as a table."""
    made = []
    for label, (printed, records) in rows.items():
        row = {"": label}
        for shot in (1, 5):
            known = printed in paper.index
            row[f"paper, {shot} shot"] = (
                f"{paper.loc[printed, f'{shot} shot']:.2f}" if known else ""
            )
        for shot in shots:
            mean, ci95, _ = mean_over_seeds(records, shot)
            row[f"here, {shot} shot"] = f"{mean:.2f} ± {ci95:.2f}"
            mean, ci95 = compare(records, whole, shot)
            row[f"change, {shot} shot"] = (
                "" if records is whole else f"{mean:+.2f} ± {ci95:.2f}"
            )
        made.append(row)
    return pd.DataFrame(made)


def sentences(first: str, second: str, a: list, b: list) -> str:
    """The paired difference at every shot, in words."""
    return "; ".join(
        f"at {shot} shot, " + in_words(first, second, compare(a, b, shot))
        for shot in shots
    )


def effect(row: str, other: str) -> str:
    """The paper's differences at 1 and 5 shots."""
    change = paper.loc[row] - paper.loc[other]
    return f"{change['1 shot']:+.2f} and {change['5 shot']:+.2f} points"


# %% [markdown]
# ## a. Do the nine cells have to move?
#
# Without offsets the filter is read by an ordinary $3 \times 3$
# convolution of the prototype's map. It is then the same for every query.

# %%
still = dmf("_no_sampling", sampling=False)
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
    "The paper gains "
    + effect("DMF dynamic sampling on", "DMF dynamic sampling off")
    + " by moving them. Here, "
    + sentences("DMF", "DMF with cells that stay", whole, still)
    + "."
)

# %% [markdown]
# ## b. Does the larger map pay?
#
# The paper keeps the last pooling ($6 \times 6$ cells) or drops it ($11
# \times 11$). Here one more pooling makes $4 \times 4$ cells of $8 \times
# 8$.

# %%
pooled = study.but(backbone_options={"pools": [True, True, True, False]})
small = dmf("_pooled", pooled)
table(
    beside(
        {
            "last pooling dropped": ("DMF last pooling removed", whole),
            "last pooling kept": ("DMF last pooling kept", small),
        }
    )
)

# %% tags=["hide-input"]
Markdown(
    "The paper gains "
    + effect("DMF last pooling removed", "DMF last pooling kept")
    + " from the larger map. Here, "
    + sentences("DMF", "DMF with the smaller map", whole, small)
    + ". Whether a plain baseline gains as much is asked on the page before: "
    "a larger map is not an idea of DMF alone."
)

# %% [markdown]
# ## c. How many groups?
#
# With one group the filter is a weight for each position, as in CAN; with
# as many groups as channels every channel has its own.

# %%
numbers = [1, own, many, 2 * many, channels] if dense else [1, own]
of_paper = dict(zip([1, own, many, 2 * many, channels], (1, 64, 160, 320, 640)))


def in_groups(g: int) -> str:
    return "one group" if g == 1 else f"{g} groups"


by_groups = {
    g: whole if g == own else dmf(f"_groups_{g}", groups=g) for g in numbers
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
best = {
    shot: max(numbers, key=lambda g: mean_over_seeds(by_groups[g], shot)[0])
    for shot in shots
}
rows = paper.filter(regex="^DMF groups=", axis=0)
tops = {k: rows[f"{k} shot"].idxmax().split("=")[1] for k in (1, 5)}
Markdown(
    "Rows stand beside the paper's row with as many channels in a group, as "
    "nearly as the width allows (640, 10, 4, 2 and 1 of its 640). The "
    f"paper's best are {tops[1]} groups at 1 shot and {tops[5]} at 5 (where "
    "320 prints the same), and it gains "
    + effect("DMF groups=64", "DMF groups=1")
    + " over one group. Here, "
    + sentences("DMF", "DMF with one group", whole, by_groups[1])
    + ". The highest mean is that of "
    + ", ".join(f"{in_groups(g)} at {shot} shot" for shot, g in best.items())
    + (
        "."
        if dense
        else "; this profile tries two points, `dense = True` all five."
    )
)

# %% tags=["hide-input"]
if dense:
    five = {
        g: dmf(f"_five_shot_groups_{g}", shot=5, groups=g) for g in (own, many)
    }
    printed = paper["5 shot"]
    text = (
        "At 5 shots the paper takes more groups. Two models trained on "
        "5-shot episodes, tested at 5 shots: "
        + in_words(
            f"the model with {many} groups",
            f"the one with {own}",
            compare(five[many], five[own], 5),
        )
        + f" (in the paper, 160 against 64: "
        f"{printed['DMF groups=160'] - printed['DMF groups=64']:+.2f}"
        ")."
    )
else:
    text = "Models trained at 5 shots are compared under `dense = True`."
Markdown(text)

# %% [markdown]
# ## d. How many alignments?
#
# No alignment leaves the query as it is; then the filter learns nothing and
# DMF is a dense classifier with two losses. $T$ alignments multiply by
# $(1 + f)^T$, the ODE by $e^f$.

# %%
counts = (0, 1, 2, 3) if dense else (0, 1)
aligned = {t: dmf(f"_align_{t}", alignments=t) for t in counts}
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
Markdown(
    "- The filter as such: the paper gains "
    + effect("DMF align=ODE", "DMF align=0")
    + ". Here, "
    + sentences("DMF", "DMF without alignment", whole, aligned[0])
    + ".\n- The ODE against one alignment: the paper gains "
    + effect("DMF align=ODE", "DMF align=1")
    + ". Here, "
    + sentences("the ODE", "one alignment", whole, aligned[1])
    + "."
)

# %% [markdown]
# ## Everything at a glance

# %%
changes = {
    "cells that stay": still,
    "last pooling kept": small,
    **{in_groups(g): records for g, records in by_groups.items() if g != own},
    **{
        "no alignment" if t == 0 else f"T = {t}": records
        for t, records in aligned.items()
        if t != "ODE"
    },
}
figure = interval_plot(
    gains({name: (group, whole) for name, group in changes.items()}, shots),
    "Change against DMF (points)",
)

# %% tags=["hide-input"]
hurts, helps, nothing = [], [], []
for name, group in changes.items():
    mean, ci95 = compare(group, whole, 1)
    place = nothing if abs(mean) <= ci95 else hurts if mean < 0 else helps
    place.append(f"*{name}*")
Markdown(
    "At one shot, these changes cost accuracy: "
    + (", ".join(hurts) or "none")
    + ". These gain: "
    + (", ".join(helps) or "none")
    + ". These cannot be told from nothing: "
    + (", ".join(nothing) or "none")
    + ". One seed a row: of a difference below about a point nobody knows "
    "whether another seed would turn it round."
)

# %% [markdown]
# ## Trained one way, tested another
#
# If the number of alignments mattered as such, a model trained with the ODE
# should suffer when it is tested with another number. Only the gain
# function changes, so this costs nothing but the test. (A model trained
# without alignment is left out: its filter was never taught.)

# %%
trained = [t for t in aligned if t != 0]
tested = (0, 1, 2, 3, "ODE")
cross = {
    (a, b): aligned[a]
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
    "Trained with",
    "Tested with",
    "1-shot accuracy (%)",
    digits=2,
)

# %%
figure = interval_plot(
    gains(
        {
            f"trained with the ODE, tested with {b}": (cross["ODE", b], whole)
            for b in tested
            if b != "ODE"
        },
        (1,),
    ),
    "Change against testing with the ODE (points)",
)

# %% tags=["hide-input"]
swap = {b: compare(cross["ODE", b], whole, 1) for b in (0, 1, 2, 3)}
largest = max(abs(swap[b][0]) for b in (1, 2, 3))
Markdown(
    "For the model trained with the ODE, "
    + in_words("one alignment at test", "the ODE", swap[1])
    + "; "
    + in_words("three", "the ODE", swap[3])
    + f". Swapping the curve moves the accuracy by {largest:.2f} points at "
    "most; taking the filter away altogether moves it by "
    f"{swap[0][0]:+.2f} ± {swap[0][1]:.2f}. "
    + (
        "The latter cannot be told from nothing, so neither can be ranked."
        if abs(swap[0][0]) <= swap[0][1]
        else "So the filter counts for more than the curve it goes through."
        if largest < abs(swap[0][0]) - swap[0][1]
        else "The curve moves it about as much as the filter does."
    )
)

# %% [markdown]
# ## To take away
#
# - Four parts, four paired differences: offsets, larger map, groups,
#   alignment. The figure *everything at a glance* says which of them can be
#   told from nothing here.
# - The alignments of Table 2d are gain curves, and a trained model can be
#   moved from one to another without training.
# - A part that also helps the baselines (the larger map) is no evidence
#   for the idea.
