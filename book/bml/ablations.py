# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # BML: ablations
#
# Which parts earn their place? Every row of this page is BML, or one of its
# baselines, with one thing changed: same seed, as many images, and compared
# with the unchanged one on the same episodes. To afford so many runs they
# are smaller than those of the training page.

# %% tags=["parameters"]
profile: str = "quick"  # which profile these values belong to
dataset: str = "glyphs"  # trained and scored on
ablation_backbone: str = "conv4_32"  # conv4, resnet12_slim, resnet12
ablation_epochs: int = 2  # passes over the training images for each run
augment: str = "none"  # mirrored letters would be other letters
seeds: list = [0]  # the first one is used
episodes: int = 2000  # tasks of every score
dense: bool = False  # all points of the paper's grids, or a few

# %%
import matplotlib.pyplot as plt
import numpy as np
from fslib.pages import accuracies, gains, in_words, published, table
from fslib.plots import grid_heat, interval_plot
from fslib.plots.style import use_book_style
from fslib.results import compare
from fslib.study import Study
from IPython.display import Markdown

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
record = study.records

# %% [markdown]
# ## One thing at a time

# %%
whole = record("bml", "ablation")
changed = {
    "no mutual loss": record("bml", "no_mutual", mutual_weight=0.0),
    "no elastic push": record("bml", "no_elastic", alpha1=0.0),
    "push without the gate": record("bml", "no_gate", elastic_gate=False),
    "weights 1 : 1 : 1": record(
        "bml", "equal_weights", global_weight=1.0, mutual_weight=1.0
    ),
    "weights 4 : 2 : 1 (paper)": record(
        "bml",
        "paper_weights",
        global_weight=4.0,
        local_weight=2.0,
        mutual_weight=1.0,
    ),
}
figure = interval_plot(
    gains({name: (other, whole) for name, other in changed.items()}),
    "Change against BML (points)",
)

# %%
table(accuracies({"BML (2 : 1 : 0.5)": whole} | changed))

# %% tags=["hide-input"]
paper = published("miniImageNet", paper="bml").set_index("method")["accuracy"]
mutual = paper["BML w/ L_mutual"] - paper["BML w/o L_mutual"]
Markdown(
    f"The paper gives the mutual loss {mutual:+.2f} points at five shots on "
    "miniImageNet. Here, "
    + "; ".join(
        f"at {shot} shot "
        + in_words(
            "BML",
            f"the same with {name}",
            compare(whole, changed[name], shot),
        )
        for name in ("no mutual loss", "no elastic push")
        for shot in (1, 5)
    )
    + "."
)

# %% [markdown]
# ## Each view alone, with and without the mutual loss
#
# The paper's stronger claim: the local view *alone* gains from having been
# trained beside the other.

# %%
alone = {
    view: (
        record("bml", "ablation", head=view),
        record("bml", "no_mutual", head=view, mutual_weight=0.0),
    )
    for view in ("global", "local")
}
figure = interval_plot(
    gains({f"{view} view": pair for view, pair in alone.items()}),
    "What the mutual loss brings to each view (points)",
)

# %% tags=["hide-input"]
taught = paper["BML-Local w/ L_mutual"] - paper["BML-Local w/o L_mutual"]
Markdown(
    f"The paper measures {taught:+.2f} points for the local view. Here, "
    + "; ".join(
        f"at {shot} shot "
        + in_words(
            f"the {view} view trained with the mutual loss",
            "the same view without it",
            compare(*pair, shot),
        )
        for view, pair in alone.items()
        for shot in (1, 5)
    )
    + "."
)

# %% [markdown]
# ## The elastic push on the local baseline
#
# ProtoNet with the push and nothing else of BML, as in the paper's inline
# table.

# %%
plain = record("protonet", "ablation")
pushed = record("protonet", "elastic", alpha1=5.5)
elastic = paper["baseline-Local w/ ELloss"] - paper["baseline-Local w/o ELloss"]
Markdown(
    f"The paper measures {elastic:+.2f} points. Here, "
    + "; ".join(
        f"at {shot} shot "
        + in_words(
            "ProtoNet with the elastic push",
            "plain ProtoNet",
            compare(pushed, plain, shot),
        )
        for shot in (1, 5)
    )
    + "."
)

# %% [markdown]
# ## Test features
#
# The square root of the rectified, flattened map is BML's own choice at
# test. What does it bring?

# %%
others = {
    "pooled": "euclid",
    "pooled, unit length": "l2n",
    "flat": "flat",
    "flat, unit length": "flat_l2n",
}
figure = interval_plot(
    gains(
        {
            name: (record("bml", "ablation", head=head), whole)
            for name, head in others.items()
        }
    ),
    "Change against BML's own test features (points)",
)

# %% [markdown]
# Both maps are joined first in every row; only what is made of them
# differs. A row left of zero says that BML's choice is the better one.
#
# ## Damaged images (paper: Table 6)
#
# Only the test images are damaged: blurred, peppered with black pixels,
# made darker or brighter and, where `dense` is set, enlarged as from 84 to
# 224 pixels.

# %%
damages = ["", "blur", "pepper", "brightness"] + ["enlarge"] * dense
rivals = {"BML": ("bml", "ablation"), "CE": ("ce", "ablation")}
scored = {
    name: {d: record(*which, corruption=d) for d in damages}
    for name, which in rivals.items()
}
table(
    [
        {"images": damage or "clean"}
        | {
            name: "{mean:.2f} ± {ci95:.2f}".format(
                **scores[damage][0].accuracy["5"]
            )
            for name, scores in scored.items()
        }
        | {
            "BML - CE": "{:+.2f} ± {:.2f}".format(
                *compare(scored["BML"][damage], scored["CE"][damage], 5)
            )
        }
        for damage in damages
    ]
)

# %% tags=["hide-input"]
lost = {
    name: {
        d: scores[""][0].accuracy["5"]["mean"]
        - scores[d][0].accuracy["5"]["mean"]
        for d in damages[1:]
    }
    for name, scores in scored.items()
}
blurred = published("miniImageNet", paper="bml")
blurred = blurred[blurred["source"].str.startswith("BML Table 6 (Gauss")]
sharp = blurred.set_index("method")["accuracy"]
after = published(
    "miniImageNet",
    ["5-way 5-shot degraded: GaussianBlur sigma in [0.1;2]"],
    "bml",
).set_index("method")["accuracy"]
theirs = sharp - after
Markdown(
    f"On miniImageNet blur costs the BML of the paper {theirs['BML']:.1f} "
    f"points, a distilled classifier {theirs['Rethink-Distill']:.1f}. Here BML "
    "loses "
    + ", ".join(
        f"{lost['BML'][d]:.1f} to {d} (CE {lost['CE'][d]:.1f})"
        for d in damages[1:]
    )
    + ". The same blur is a stronger one on a smaller image."
)

# %% [markdown]
# ## How long a push? (paper: Fig. 5)
#
# The length $\alpha_1$ and slope $\alpha_2$ of the push, on the local
# baseline; half as many images a run here and below.

# %%
grids = study.but(epochs=max(1, ablation_epochs // 2)).records
lengths = (4.0, 4.5, 5.0, 5.5, 6.0) if dense else (4.0, 6.0)
slopes = (0.05, 0.1, 0.15, 0.2, 0.25) if dense else (0.05, 0.25)
cells = [
    [
        grids("protonet", f"push_{a}_{b}", alpha1=a, alpha2=b)[0].accuracy["5"]
        for b in slopes
    ]
    for a in lengths
]
grid = np.array([[cell["mean"] for cell in row] for row in cells])
figure = grid_heat(grid, lengths, slopes, "alpha1", "alpha2")

# %% tags=["hide-input"]
Markdown(
    f"Over the grid the 5-shot accuracy ranges by {np.ptp(grid):.2f} points; "
    f"each cell is known to ± {cells[0][0]['ci95']:.2f}, and each is one seed."
)

# %% [markdown]
# ## How many ways? (paper: Fig. 6)
#
# The push makes an episode harder; so do more ways. Is one the poor man's
# version of the other?

# %%
ways = (5, 10, 15, 20, 30) if dense else (10, 20)
figure, panel = plt.subplots(figsize=(5.2, 2.6))
curves = {}
for name, alpha in (("without the push", 0.0), ("with the push", 5.5)):
    made = [
        grids("protonet", f"way{way}_push{alpha}", way=way, alpha1=alpha)
        for way in ways
    ]
    curves[name] = made
    panel.errorbar(
        ways,
        [r[0].accuracy["5"]["mean"] for r in made],
        yerr=[r[0].accuracy["5"]["ci95"] for r in made],
        fmt="o-",
        ms=3,
        capsize=2,
        label=name,
    )
panel.set(xlabel="Ways in training", ylabel="5-shot accuracy (%)")
_ = panel.legend()

# %% tags=["hide-input"]
few, many = (
    compare(curves["with the push"][i], curves["without the push"][i], 5)
    for i in (0, -1)
)
Markdown(
    f"At {ways[0]} ways the push changes the accuracy by {few[0]:+.2f} ± "
    f"{few[1]:.2f} points, at {ways[-1]} ways by {many[0]:+.2f} ± "
    f"{many[1]:.2f}."
)

# %% [markdown]
# ## To take away
#
# - Each part is judged by its paired difference, not by two numbers side
#   by side.
# - One seed a row: a difference below about a point may be the seed.
