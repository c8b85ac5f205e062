# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # The data
#
# Two data sets carry this book. **CIFAR-FS** {cite}`bertinetto2019cifarfs` is
# CIFAR-100 cut by classes: small photographs, 600 of each class, the set on
# which all five papers can be compared at a laptop's cost. **Oxford
# Flowers** {cite}`nilsback2008flowers` is what a network meets that never
# saw a flower bed: the cross-domain test. A third one, the **glyphs**, is
# drawn from the fonts that come with matplotlib, so that every page runs on
# a fresh machine without a download.
#
# On this page you will
#
# - look at all of them,
# - see how classes are split, and why not images,
# - count the images that stand on both sides of a split.

# %% tags=["parameters"]
dataset: str = "glyphs"  # the main data set
transfer: str = ""  # a second one for the cross-domain test, "" for none
seed: int = 0  # chooses the pictures shown

# %%
import pandas as pd
import torch
from fslib.data import ImageSet, open_dataset
from fslib.packs import check_pack
from fslib.pages import show_source, table
from fslib.paths import data_root
from fslib.plots.images import show_images
from fslib.plots.style import short_name, use_book_style
from IPython.display import Markdown

use_book_style()
names = [name for name in (dataset, transfer) if name]
sets = {name: open_dataset(name) for name in names}

# %% [markdown]
# ## The pictures
#
# One image of each of 16 classes from every split.

# %%
generator = torch.Generator().manual_seed(seed)
for name, splits in sets.items():
    for split, images in splits.items():
        order = torch.randperm(images.classes, generator=generator)
        chosen = [images.rows_of(int(c))[0] for c in order[:16]]
        titles = [
            short_name(images.class_names[int(c)], 13) for c in order[:16]
        ]
        figure = show_images(
            images.images[torch.stack(chosen)],
            titles,
            8,
            f"{name}, {split}",
        )
        figure.set_dpi(90)  # small pictures gain nothing from more

# %% [markdown]
# The three groups look alike and share no class. That is the point: what a
# network learned on the base classes helps on the novel ones only through
# features that both need.

# %%
rows = []
for name, splits in sets.items():
    for split, images in splits.items():
        counts = images.counts
        rows.append(
            {
                "data set": name,
                "split": split,
                "classes": images.classes,
                "images": len(images),
                "of a class": f"{counts.min()} to {counts.max()}",
                "pixels": "{} x {}".format(*images.size),
                "word vectors": ""
                if images.semantics is None
                else f"{images.semantics.shape[1]} wide",
            }
        )
table(rows)

# %% [markdown]
# ## Packed, not filed
#
# A split is one array of bytes on disk, opened in milliseconds and read
# through the operating system's memory. A page never decodes a file, and a
# training step spends about one per cent of its time on data.

# %%
show_source(ImageSet.take, ImageSet.subset)

# %%
images = sets[dataset]["train"]
print(images)
print(
    "mean of each channel:",
    [
        round(float(v), 4)
        for v in images.images[::7].float().div(255).mean((0, 2, 3))
    ],
)

# %% [markdown]
# ## Why classes are split, and where it leaks
#
# A novel class must be new. Splits by class make sure of the label, but not
# of the picture: CIFAR-100 holds some photographs twice, under two labels,
# and sometimes the two labels lie on different sides of the split.

# %%
leaks = []
for name in names:
    folder = data_root() / name
    notes = check_pack(folder)["notes"] if folder.exists() else {}
    groups = notes.get("identical_images", [])
    across = [g for g in groups if len({m["split"] for m in g}) > 1]
    leaks.append(
        {
            "data set": name,
            "groups of identical images": len(groups),
            "of them across splits": len(across),
        }
    )
    if across:
        shown = across[:12]
        pixels = [sets[name][g[0]["split"]].images[g[0]["row"]] for g in shown]
        titles = [
            "\n".join(f"{m['class']} ({m['split']})" for m in g) for g in shown
        ]
        figure = show_images(torch.stack(pixels), titles, 6)
table(leaks)

# %% tags=["hide-input"]
novel = sets[dataset]["test"]
test_rows = {
    m["row"]
    for name in names[:1]
    for g in (
        check_pack(data_root() / name)["notes"].get("identical_images", [])
        if (data_root() / name).exists()
        else []
    )
    if len({m["split"] for m in g}) > 1
    for m in g
    if m["split"] == "test"
}
share = 100 * len(test_rows) / len(novel)
Markdown(
    f"Of the {len(novel):,} novel images of {dataset}, {len(test_rows)} also "
    f"occur among the base or validation classes, that is {share:.2f} %. "
    "Even if every one of them were sorted rightly for that reason alone, the "
    f"accuracy could move by at most {share:.2f} points. The published "
    "splits are kept as they are, so that numbers stay comparable; the list "
    "travels with the pack."
)

# %% [markdown]
# ## Names that mean something
#
# The margin chapters ask whether two classes that *mean* similar things
# should be kept further apart. That needs a vector for each class name:
# GloVe {cite}`pennington2014glove` for words, and for a glyph the words of
# its Unicode name.

# %% tags=["hide-input"]
base = sets[dataset]["train"]
if base.semantics is not None and base.superclass is not None:
    vectors = torch.nn.functional.normalize(base.semantics, dim=1)
    cosine = vectors @ vectors.T
    group = pd.Series(base.superclass).factorize()[0]
    same = torch.tensor(group[:, None] == group[None])
    pairs = ~torch.eye(len(cosine), dtype=torch.bool)
    inside = float(cosine[same & pairs].mean())
    outside = float(cosine[~same].mean())
    text = (
        f"In {dataset} the names of two classes of one superclass have a mean "
        f"cosine of {inside:.2f}, of different superclasses {outside:.2f}: "
        "the vectors know something about the classes that no image told "
        "them."
    )
else:
    text = f"{dataset} carries no word vectors."
Markdown(text)

# %% [markdown]
# ## Get them
#
# ```bash
# python -m data_scripts.cifar_fs --root data      # downloads 169 MB
# python -m data_scripts.flowers102 --root data    # downloads 345 MB
# ```
#
# Both resume a broken download, check it, and leave either a whole data set
# or none. Images you already have are taken with `--from`. Your own photos
# are a data set too: see {doc}`../own_images`.
