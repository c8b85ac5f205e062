# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Your own images
#
# Put a handful of photos of each of your classes into folders, and let a
# trained network sort the rest. Nothing is trained here: the network has
# never seen your classes, and an answer takes seconds.
#
# ```
# my_photos/
#   mug/      IMG_1.jpg  IMG_2.jpg  ...
#   teapot/   IMG_7.jpg  ...
#   glass/    ...
# ```
#
# Set `folder` to yours and run the page, in JupyterLab or with
#
# ```bash
# papermill book/own_images.ipynb mine.ipynb -p folder ~/my_photos
# ```

# %% tags=["parameters"]
folder: str = ""  # your folder of class folders; "" for a sample made here
shot: int = 5  # labelled images of a class; the rest is sorted
profile: str = "quick"  # which profile these values belong to
dataset: str = "glyphs"  # what the network was trained on
backbone: str = "conv4_32"  # conv4_32, conv4, resnet12_slim, resnet12
epochs: int = 3  # passes over the training images
augment: str = "none"  # mirrored letters would be other letters
seed: int = 0  # of the network, and of who becomes support

# %%
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from fslib.data import open_dataset
from fslib.episodes import draw_episodes
from fslib.evaluate import embed_images, evaluate
from fslib.plots import confusion
from fslib.plots.style import short_name, to_pixels, use_book_style
from fslib.runs import Config
from fslib.train import fit
from IPython.display import Markdown

use_book_style()
data = open_dataset(dataset)
side = data["train"].size[0]

# %% [markdown]
# ## From a folder to a data set
#
# Your photos are read once, turned upright as the camera meant them,
# squared, and packed like every other data set of this book. Without a
# folder of your own, the page makes one from classes the network has never
# seen.

# %%
from data_scripts.own_images import build, plan


def sample_folder(place: Path) -> Path:
    """Twenty images of each of six novel classes, as PNG files."""
    from torchvision.io import write_png

    novel = data["test"]
    step = novel.classes // 6
    for c in range(0, step * 6, step):
        name = novel.class_names[c].replace("/", " ").lower()
        target = place / name
        target.mkdir(parents=True)
        for i, row in enumerate(novel.rows_of(c)[:20].tolist()):
            write_png(novel.images[row], str(target / f"{i}.png"))
    return place


work = Path(tempfile.mkdtemp())
photos = Path(folder).expanduser() if folder else sample_folder(work / "sample")
build(plan(photos, side=side), work / "data", "mine")
mine = open_dataset("mine", work / "data")["test"]
print(mine)

# %% [markdown]
# ## The network
#
# CE on the base classes of the data set named above: the run is opened if
# it exists and trained if not.

# %%
run = fit(
    Config(
        "ce",
        dataset=dataset,
        backbone=backbone,
        epochs=epochs,
        augment=augment,
        seed=seed,
        profile=profile,
    ),
    data,
)

# %% [markdown]
# ## Sort them
#
# The first `shot` images of each class are its support. Each other image is
# compared with the class means; a softmax over the scaled cosines gives a
# confidence.

# %%
smallest = int(mine.counts.min())
task = draw_episodes(
    mine.labels,
    1,
    mine.classes,
    shot,
    max(1, smallest - shot),
    seed,
    mine.class_names,
)
maps = embed_images(run.method, mine)
features = run.method.test_features(maps)
rest = torch.ones(len(mine), dtype=torch.bool)
rest[task.support.flatten()] = False
query = torch.nonzero(rest).flatten()

logits = run.method.score(features[task.support], features[query][None])[0]
# Squared distance of unit vectors is 2 - 2 cos; 10 is the usual scale.
confidence, predicted = (5 * logits).softmax(1).max(1)
names = [mine.class_names[int(c)] for c in task.classes[0]]
truth = torch.stack(
    [
        torch.nonzero(task.classes[0] == mine.labels[q]).flatten()[0]
        for q in query
    ]
)
right = predicted == truth

# %%
shown = torch.randperm(
    len(query), generator=torch.Generator().manual_seed(seed)
)[:18]
figure, axes = plt.subplots(3, 6, figsize=(6.9, 4.4))
for axis in axes.flat:
    axis.axis("off")
for axis, i in zip(axes.flat, shown.tolist()):
    axis.imshow(to_pixels(mine.images[query[i]]))
    colour = "#009E73" if right[i] else "#D55E00"
    said = short_name(names[int(predicted[i])].upper(), 16)
    axis.set_title(f"{said}\n{confidence[i]:.0%}", fontsize=7, color=colour)
figure.tight_layout()

# %% tags=["hide-input"]
Markdown(
    f"Green is right, orange is wrong. {int(right.sum())} of {len(query)} "
    f"images were sorted rightly, {100 * float(right.float().mean()):.1f} %; "
    f"chance is {100 / mine.classes:.0f} %. When right, the mean confidence "
    f"was {float(confidence[right].mean()):.0%}"
    + (
        "."
        if bool(right.all())
        else f", when wrong {float(confidence[~right].mean()):.0%}."
    )
)

# %%
figure = confusion(truth, predicted, names)

# %% [markdown]
# ## How sure can you be?
#
# One support set is one draw of luck. Drawing it anew many times, with the
# same photos, shows what you may expect.

# %%
left = smallest - shot
scores = evaluate(
    run.method,
    mine,
    shot,
    mine.classes,
    min(15, left),
    1000,
    seed,
    maps=maps,
)
low, high = np.percentile(scores.accuracy, [2.5, 97.5])
Markdown(
    f"{mine.classes}-way {shot}-shot: {scores} % over 1,000 supports. "
    f"A single support gives something between {low:.0f} and {high:.0f} % "
    "in 95 of 100 cases."
)

# %% [markdown]
# ## When there are too few
#
# A class needs at least one image more than `shot`. The message says which
# class, how many it has and how many it needs:

# %%
from fslib.episodes import TooFewImages

try:
    draw_episodes(
        mine.labels, 1, mine.classes, smallest, 1, seed, mine.class_names
    )
except TooFewImages as error:
    message = str(error)
Markdown(f"> {message}")

# %% [markdown]
# ## Better answers
#
# - More images of a class help most from one to five.
# - A network trained on photographs (`dataset = "cifar_fs"`) suits
#   photographs; the glyph network of the `quick` profile is a toy.
# - Images are squared to the training size. Crop to the object first if it
#   is small.
