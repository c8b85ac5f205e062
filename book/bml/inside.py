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
backbone: str = "conv4_32"  # conv4_32, conv4, resnet12_slim, resnet12
epochs: int = 3  # passes over the training images
augment: str = "none"  # mirrored letters would be other letters
seeds: list = [0]  # the first one is looked at
classes: int = 10  # in each t-SNE picture
per_class: int = 20  # points of each class
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
    order_words,
    ranking_table,
    ranking_words,
    silhouette_change,
    silhouette_table,
)
from fslib.episodes import draw_episodes
from fslib.evaluate import embed_images
from fslib.pages import table
from fslib.plots.images import ranking_panel
from fslib.plots.style import short_name, use_book_style
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
    "small BML": small.run("bml").method,
    "no mutual loss": small.run("bml", mutual_weight=0.0).method,
}

# %% [markdown]
# ## Classes as clouds (paper: Fig. 4)
#
# The paper says that with the mutual loss the base classes lie *looser*
# and the novel ones fare better. t-SNE {cite}`maaten2008tsne` draws the
# features in the plane; the **silhouette** measures in the original space
# how tight classes lie (1 tight and apart, 0 touching, below 0 nearer to
# another class). Both views of BML are joined and averaged over positions.

# %%
samples = class_samples(data, classes, per_class)
maps = embed_samples(nets | pair, samples)
figure = embedding_panel({name: maps[name] for name in nets}, samples)

# %% tags=["hide-input"]
tight = silhouette_table(maps, samples)
value = tight.set_index("method")
Markdown(
    f"Each colour with its marker is a class, {classes} of the "
    f"{data['train'].classes} that were learned (upper row) or of the "
    f"{data['test'].classes} new ones (lower row). Base classes part because "
    "they were taught; what matters is how much of that order new classes "
    "inherit. Their silhouette is "
    + ", ".join(f"{value.loc[name, 'novel']:.3f} ({name})" for name in nets)
    + "."
)

# %% [markdown]
# Now a pair of smaller networks, those of the ablations page, that differ in
# the mutual loss alone; below, the silhouettes of all, with 95 % intervals
# from resampling images.

# %%
figure = embedding_panel({name: maps[name] for name in pair}, samples)

# %%
table(bracketed(tight))

# %% tags=["hide-input"]
Markdown(
    "With the mutual loss the silhouette changes by "
    f"{silhouette_change(maps, samples, 'small BML', 'no mutual loss')}. "
    "The paper sees looser clusters of base classes, which would be a fall, "
    "and a better accuracy on novel ones; for that see the ablations page."
)

# %% [markdown]
# ## Where they look (paper: Fig. 7)
#
# One query of each way of an episode; the warmer a place, the smaller its
# angle to the prototype of its own class. (By distance the emptiest places
# would look most alike.) The paper says that the map of both views is the
# better one. With four
# poolings a 32-pixel image has only 2 x 2 places, which the pictures smooth.

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
    f"over the image, {'as fine as' if high >= 5 else 'coarser than'} the "
    "paper's 5 x 5 at 84 pixels. BML's map joins both views; the one with "
    "the longer features counts more."
)

# %% [markdown]
# ## What looks like what
#
# The same episode as a ranking: each query with the ways from most to least
# similar, for BML as a picture, then for its views alone. Below each way stands
# its logit; the true one is framed, in green where it comes first.

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

# %%
names = [short_name(novel_set.class_names[int(c)]) for c in task.classes[0]]
asked = features[task.query[:, :, :1].flatten(1)]
orders = {"BML": logits} | {
    f"{view} view": score(features[task.support], asked)[0]
    for view, score in nets["BML"].branches().items()
}
table(
    [
        {"query": names[q]}
        | {
            name: " > ".join(
                names[way] for way in made[q].argsort(descending=True).tolist()
            )
            for name, made in orders.items()
        }
        for q in range(4)
    ]
)

# %% tags=["hide-input"]
same = {
    name: int((made.argsort() == logits.argsort()).all(1).sum())
    for name, made in orders.items()
}
Markdown(
    f"The global view gives BML's whole order for {same['global view']} of 4 "
    f"queries, the local view for {same['local view']}. The paper shows one "
    "task in which both single views rank wrongly and BML rightly."
)

# %% [markdown]
# ### The ranking as a number
#
# The paper ends on the hope that a better ranking of *all* classes, not
# only of the right one, shows a better understanding. So we ask: are the
# pairs of novel classes that a method finds similar also pairs of one
# superclass, or pairs whose names mean similar things? Kendall's tau-b over
# all pairs, with a 95 % interval from resampling classes. The likeness of
# two classes is here the cosine of their mean features, averaged over
# positions, for all methods alike.

# %%
pooled = {
    name: torch.nn.functional.normalize(values.mean((2, 3)), dim=1)
    for name, values in views.items()
}
table(bracketed(ranking_table(pooled, novel_set)))

# %% tags=["hide-input"]
Markdown(order_words(pooled, novel_set, "BML"))

# %% [markdown]
# ## To take away
#
# - Look at silhouettes, not at clouds: t-SNE's distances mean little.
# - Heat maps show where a network finds likeness, not why it answers.
# - Whether a ranking makes sense can be measured.
