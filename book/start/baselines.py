# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Two baselines
#
# Every chapter claims to be better than something. In this book that
# something is always one of two methods, trained on the same images, with
# the same backbone and the same schedule, and scored on the same episodes:
#
# - **CE**, a plain classifier over the base classes whose last layer is
#   thrown away {cite}`chen2019closer,tian2020rfs`,
# - **ProtoNet**, which trains on episodes {cite}`snell2017protonet`.
#
# They are also the two halves of Binocular Mutual Learning, where they are
# called the global and the local view.

# %% tags=["parameters"]
profile: str = "quick"  # which profile these values belong to
dataset: str = "glyphs"  # trained and scored on
backbone: str = "conv4_32"  # conv4_32, conv4, resnet12_slim, resnet12
epochs: int = 3  # passes over the training images
augment: str = "none"  # mirrored letters would be other letters
seeds: list = [0]  # one run each
episodes: int = 2000  # tasks of every score

# %%
import numpy as np
import pandas as pd
from fslib.comparison import SeedSpread, compare, mean_over_seeds
from fslib.data import open_dataset
from fslib.measure import measured
from fslib.methods import ce, protonet
from fslib.pages import in_words, published, shots_in_words, show_source, table
from fslib.plots import accuracy_bars, interval_plot, learning_curve
from fslib.plots.style import use_book_style
from fslib.results import load_records, load_scores
from fslib.runs import Config
from fslib.study import usual_rate
from IPython.display import Markdown

use_book_style()
data = open_dataset(dataset)
print(data["train"])

# %% [markdown]
# ## CE: learn to tell the base classes apart
#
# With feature $z$ and one weight vector $w_c$ for each base class,
#
# $$
# L = -\log \frac{\exp(w_y^\top z + b_y)}{\sum_c \exp(w_c^\top z + b_c)} .
# $$
#
# At test the weights are useless, since the classes are new. A novel class
# is the mean of its support features, each scaled to length one.

# %%
show_source(ce.CrossEntropy)

# %% [markdown]
# ## ProtoNet: practise the test
#
# Every step draws an episode of base classes and asks for the nearest mean,
#
# $$
# L = -\log \frac{\exp(-\lVert z - c_y\rVert^2)}
#               {\sum_k \exp(-\lVert z - c_k\rVert^2)} ,
# $$
#
# with $c_k$ the mean of the support of class $k$. More ways make a harder
# lesson: 20 here, 5 at the test.

# %%
show_source(protonet.ProtoNet.loss, protonet.ProtoNet.episode_loss)

# %% [markdown]
# ## Training
#
# One loop trains every method in this book. An epoch is as many images as
# the training split holds, so both methods see the same number of images.
# The learning rate is 0.1 for both; only on the built-in letters, where a
# few hundred steps have to do, it is 0.2 for CE and 0.01 for ProtoNet.


# %%
def config(method: str, seed: int) -> Config:
    return Config(
        method,
        dataset=dataset,
        backbone=backbone,
        epochs=epochs,
        augment=augment,
        seed=seed,
        lr=usual_rate(method, dataset),
        profile=profile,
    )


methods = ("ce", "protonet")
records = {
    method: [
        measured(config(method, seed), data, episodes=episodes)
        for seed in seeds
    ]
    for method in methods
}
figure = learning_curve({m: records[m][0].history for m in methods})

# %% tags=["hide-input"]
last = {m: records[m][0].history[-1] for m in methods}
Markdown(
    "Left the loss, which is not comparable between the two: one tells "
    f"{data['train'].classes} classes apart, the other 20 ways. Right the "
    "accuracy on validation classes, which is. It ends at "
    f"{last['ce']['val_1_shot']:.1f} % for CE and "
    f"{last['protonet']['val_1_shot']:.1f} % for ProtoNet at one shot, after "
    f"{last['ce']['images']:,} and {last['protonet']['images']:,} images. "
    "The last weights are kept; nothing was chosen by looking at novel "
    "classes."
)

# %% [markdown]
# ## Accuracy on novel classes

# %%
rows = [
    {"method": m, "shot": shot, "mean": mean, "ci95": ci95, "seeds": spread}
    for shot in (1, 5)
    for m in methods
    for mean, ci95, spread in [mean_over_seeds(records[m], shot)]
]
results = pd.DataFrame(rows)
figure = accuracy_bars(results, group="shot", start=20)

# %% tags=["hide-input"]
sentences = []
seeds_too = SeedSpread([records[m] for m in methods])
for shot in (1, 5):
    difference = compare(records["ce"], records["protonet"], shot, seeds_too)
    sentences.append(
        f"at {shots_in_words(shot)} " + in_words("CE", "ProtoNet", difference)
    )
spread = results["seeds"].max()
about = (
    "one seed each"
    if np.isnan(spread)
    else (
        f"{len(seeds)} seeds each, whose standard deviation is up to "
        f"{spread:.2f} points"
    )
)
Markdown(
    f"Measured over {episodes:,} episodes and {about}: "
    + "; ".join(sentences)
    + ". Bars start at chance, 20 %. The intervals of the bars are over "
    "episodes"
    + (
        "; those of the differences also count what a seed does."
        if seeds_too.degrees
        else "."
    )
)

# %% [markdown]
# ## Seeds
#
# An interval over episodes says how well *this network* is known. Another
# seed is another network. So wherever two networks are compared, the book
# measures how far seeds lie apart and counts that in the interval of the
# difference. Small networks that train for a short time are the worst, as the
# first table of [BML's ablations](../bml/ablations) shows.

# %% tags=["hide-input"]
table(
    [
        {
            "method": r.method,
            "seed": r.seed,
            "1-shot": f"{r.accuracy['1']['mean']:.2f} ± "
            f"{r.accuracy['1']['ci95']:.2f}",
            "5-shot": f"{r.accuracy['5']['mean']:.2f} ± "
            f"{r.accuracy['5']['ci95']:.2f}",
            "images seen": f"{r.facts['images_seen']:,}",
            "core-minutes": round(r.facts["cpu_seconds"] / 60, 1),
        }
        for m in methods
        for r in records[m]
    ]
)

# %% [markdown]
# ## Why compare in pairs
#
# Episodes differ in difficulty, and they do so for both methods alike. The
# difference episode by episode is therefore much better known than either
# mean.

# %% tags=["hide-input"]
one, other = (load_scores(records[m][0], 1).accuracy for m in methods)
correlation = np.corrcoef(one, other)[0, 1]
separate = 1.96 * np.sqrt((one.var(ddof=1) + other.var(ddof=1)) / len(one))
difference = compare(records["ce"][:1], records["protonet"][:1], 1)
figure = interval_plot(
    pd.DataFrame(
        [
            {
                "label": "as if independent",
                "mean": difference[0],
                "ci95": separate,
            },
            {
                "label": "paired by episode",
                "mean": difference[0],
                "ci95": difference[1],
            },
        ]
    ),
    "CE minus ProtoNet, 1 shot (points)",
)

# %% tags=["hide-input"]
Markdown(
    f"The two methods' accuracies correlate with {correlation:.2f} over "
    f"episodes. Pairing shrinks the interval from ± {separate:.2f} to "
    f"± {difference[1]:.2f}, as if {(separate / difference[1]) ** 2:.1f} "
    "times as many episodes had been scored, for nothing."
)

# %% [markdown]
# ## Published beside measured

# %% tags=["hide-input"]
paper = published("CIFAR-FS", ("5-way 1-shot", "5-way 5-shot"), "bml")
paper = paper[
    paper["method"].isin(["Baseline-global", "Baseline-local", "ProtoNet"])
]
paper = (
    paper.assign(
        shown=paper["accuracy"].map("{:.2f}".format)
        + " ± "
        + paper["ci95"].map("{:.2f}".format)
    )
    .pivot(
        index=["method", "backbone", "source"],
        columns="setting",
        values="shown",
    )
    .reset_index()
)
first = load_records(
    method="protonet", variant="conv4_adam", evaluated_on=dataset
)
rows = [(m, backbone, records[m]) for m in methods]
rows += [("protonet, with Adam", "conv4", first)] if first else []
ours = pd.DataFrame(
    [
        {
            "method": name,
            "backbone": trunk,
            "source": f"here, {dataset}",
            **{
                f"5-way {s}-shot": "{:.2f} ± {:.2f}".format(
                    *mean_over_seeds(made, s)[:2]
                )
                for s in (1, 5)
            },
        }
        for name, trunk, made in rows
    ]
)
table(pd.concat([paper, ours]))

# %% tags=["hide-input"]
told = published("CIFAR-FS", paper="bml")
told = told[told["method"] == "ProtoNet"].set_index("setting")["accuracy"]
Markdown(
    "Is this a fair ProtoNet? With a Conv-4 and Adam, as it was first "
    "published, it reaches "
    + " and ".join(
        f"{first[0].accuracy[str(s)]['mean']:.2f} ± "
        f"{first[0].accuracy[str(s)]['ci95']:.2f} % at {s} shot, where "
        f"{told[f'5-way {s}-shot']:.2f} are quoted for it"
        for s in (1, 5)
    )
    + f" ({first[0].facts['images_seen']:,} images, "
    f"{first[0].facts['cpu_seconds'] / 60:.0f} core-minutes; the rate was "
    "chosen on the validation classes)."
    if first
    else "This data set has no record of ProtoNet as it was first published."
)

# %% [markdown]
# BML's *Baseline-global* is CE and *Baseline-local* is ProtoNet, both with
# a full-width ResNet-12 (12.4 million weights) trained for many GPU hours
# on images enlarged to 84 pixels. The slim ResNet-12 of the `cpu` profile
# has 1.1 million weights, sees 32 pixels and about a fifth of the images.
# Numbers on other data sets, such as the glyphs, stand beside the paper's
# only to show the pattern of the page, not to be compared.
#
# ## To take away
#
# - Two yardsticks, the same images, backbone, schedule and episodes.
# - Compare in pairs, report every seed, choose on validation classes.
# - Each of these numbers has a record with the command that repeats it:

# %% tags=["hide-input"]
Markdown(
    "```bash\n"
    + "\n".join(
        r.command.replace(" --", " \\\n  --", 1)
        for group in [*records.values(), first]
        for r in group
    )
    + "\n```"
)
