# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # BML: a look inside
#
# Numbers say that a method works; pictures may say how. This page lays the
# features of BML beside those of its two baselines, and of BML trained
# without the mutual loss: as a map of classes, as heat maps on images, and
# as a ranking of what looks like what.

# %% tags=["parameters"]
profile: str = "quick"  # which profile these values belong to
dataset: str = "glyphs"  # trained and looked at
backbone: str = "conv4"  # conv4, resnet12_slim or resnet12
epochs: int = 3  # passes over the training images
augment: str = "none"  # mirrored letters would be other letters
seeds: list = [0]  # the first one is looked at
classes: int = 10  # in each t-SNE picture
per_class: int = 40  # points of each class
ablation_backbone: str = "conv4_32"  # of the pair with and without mutual loss
ablation_epochs: int = 2  # passes over the images for each of the two

# %%
import torch
from fslib.analysis.inside import (
    bracketed,
    class_samples,
    embed_samples,
    embedding_panel,
    heat_panel,
    heat_words,
    ranking_table,
    ranking_words,
    silhouette_table,
)
from fslib.episodes import draw_episodes
from fslib.evaluate import embed_images
from fslib.pages import table
from fslib.plots.images import ranking_panel
from fslib.plots.style import use_book_style
from fslib.study import Study
from IPython.display import Markdown

use_book_style()
study = Study(dataset, backbone, epochs, augment, profile, tuple(seeds))
small = study.but(backbone=ablation_backbone, epochs=ablation_epochs)
data = study.data
nets = {
    "BML": study.run("bml").method,
    "CE": study.run("ce").method,
    "ProtoNet": study.run("protonet").method,
}
pair = {
    "with mutual loss": small.run("bml").method,
    "without": small.run("bml", mutual_weight=0.0).method,
}

# %% [markdown]
# ## Classes as clouds (paper: Fig. 4)
#
# The paper says that with the mutual loss the base classes lie *looser*
# and the novel ones fare better. t-SNE {cite}`maaten2008tsne` draws the
# features in the plane; the **silhouette** measures in the original space
# how tight classes lie (1 tight and apart, 0 touching).

# %%
samples = class_samples(data, classes, per_class)
maps = embed_samples(nets | pair, samples)
figure = embedding_panel({name: maps[name] for name in nets}, samples)

# %% [markdown]
# Each colour is a class, of 64 to learn from (upper row) or new (lower row).
# Base classes part because they were taught; what matters is how much of
# that order new classes inherit. Now the pair that differs in the mutual
# loss alone:

# %%
figure = embedding_panel({name: maps[name] for name in pair}, samples)

# %%
tight = silhouette_table(maps, samples)
table(bracketed(tight))

# %% tags=["hide-input"]
value = tight.set_index("method")
base, novel = (
    value.loc["with mutual loss", kind] - value.loc["without", kind]
    for kind in ("base", "novel")
)
Markdown(
    f"With the mutual loss the silhouette of the base classes changes by "
    f"{base:+.3f}, of the novel ones by {novel:+.3f}. The paper's story "
    "asks for a fall on base and a rise on novel classes; here it is "
    + {
        (True, True): "both.",
        (True, False): "only the fall.",
        (False, True): "only the rise.",
        (False, False): "neither.",
    }[bool(base < 0), bool(novel > 0)]
)

# %% [markdown]
# ## Where they look (paper: Fig. 7)
#
# One query of each way of an episode; the warmer a place, the more it looks
# like the prototype of its own class.

# %%
novel_set = data["test"]
task = draw_episodes(novel_set.labels, 1, 4, 1, 15, 3)
whole = {name: embed_images(net, novel_set) for name, net in nets.items()}
channels = whole["BML"].shape[1] // 2
views = {
    "BML": whole["BML"],
    "global view": whole["BML"][:, :channels],
    "local view": whole["BML"][:, channels:],
    "CE": whole["CE"],
    "ProtoNet": whole["ProtoNet"],
}
figure = heat_panel(views, novel_set, task)

# %% tags=["hide-input"]
Markdown(heat_words(views, novel_set))

# %% tags=["hide-input"]
high, wide = whole["BML"].shape[2:]
Markdown(
    f"The maps of this backbone have {high} x {wide} places, drawn smoothly "
    "over the image: coarser than the paper's 5 x 5 at 84 pixels. BML's map "
    "is both views together, so it lies between the next two columns."
)

# %% [markdown]
# ## What looks like what
#
# The same episode as a ranking: each query with the ways from most to least
# similar.

# %%
features = nets["BML"].test_features(whole["BML"])
logits = nets["BML"].score(
    features[task.support], features[task.query[:, :, :1].flatten(1)]
)[0]
figure = ranking_panel(
    novel_set.images[task.query[0, :, 0]],
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
# The paper ends on the hope that a better ranking of *all* classes, not
# only of the right one, shows a better understanding. So we ask: are the
# pairs of novel classes that a method finds similar also pairs of one
# superclass, or pairs whose names mean similar things? Kendall's tau-b over
# all pairs, with a 95 % interval from resampling classes.

# %%
pooled = {
    name: torch.nn.functional.normalize(values.mean((2, 3)), dim=1)
    for name, values in views.items()
}
order = ranking_table(pooled, novel_set)
table(bracketed(order))

# %% [markdown]
# A tau of zero means that looks and meaning have nothing to do with each
# other; one, that they order all pairs alike.

# %% tags=["hide-input"]
asked = [name for name in order.columns[1:] if f"{name} low" in order]
both = order.set_index("method")
Markdown(
    " ".join(
        f"With {name}, BML's tau is {both.loc['BML', name]:.3f}, CE's "
        f"{both.loc['CE', name]:.3f}, ProtoNet's "
        f"{both.loc['ProtoNet', name]:.3f}: "
        + (
            "the intervals overlap, so the methods are not told apart."
            if both.loc["BML", f"{name} low"] < both.loc["CE", f"{name} high"]
            and both.loc["CE", f"{name} low"] < both.loc["BML", f"{name} high"]
            else "BML and CE lie apart by more than their intervals."
        )
        for name in asked
    )
)

# %% [markdown]
# ## To take away
#
# - Look at silhouettes, not at clouds: t-SNE's distances mean little.
# - Heat maps show where a network finds likeness, not why it answers.
# - Whether a ranking makes sense can be measured.
