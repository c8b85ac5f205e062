# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # BML: paper, code, here
#
# What the paper says, what its released code does, and what that means.
# Each disagreement is shown by a cell, not only told. The code was read at
# commit 0a56f01 of its repository; nothing of it is used here.

# %% tags=["parameters"]
profile: str = "quick"  # which profile these values belong to
dataset: str = "glyphs"  # trained and scored on
backbone: str = "conv4"  # conv4, resnet12_slim or resnet12
epochs: int = 3  # passes over the training images
augment: str = "none"  # mirrored letters would be other letters
seeds: list = [0]  # one run each
episodes: int = 2000  # tasks of every score
ablation_backbone: str = "conv4_32"  # of the comparisons with one change
ablation_epochs: int = 2  # passes over the images for each of them

# %%
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from fslib.evaluate import embed_images, evaluate
from fslib.losses.elastic import elastic_constraint
from fslib.losses.mutual import mutual_loss
from fslib.pages import gain_table, gains, in_words, table
from fslib.plots import interval_plot
from fslib.plots.style import use_book_style
from fslib.results import compare
from fslib.study import Study
from IPython.display import Markdown

use_book_style()
study = Study(
    dataset, backbone, epochs, augment, profile, tuple(seeds), episodes
)
small = study.but(
    backbone=ablation_backbone, epochs=ablation_epochs, seeds=seeds[:1]
)

# %% [markdown]
# ## In one table
#
# | | paper | released code | here |
# |---|---|---|---|
# | who is pushed | every query | only undecided ones (a gate) | code; `elastic_gate=False` for the paper |
# | prototypes | one for each position (Alg. 1) | one for all positions | code; `proto_per_position=True` |
# | probability with the push | push left out of the denominator (Eq. 5) | ordinary softmax | code |
# | distance | Euclidean | squared | code |
# | mutual loss | no temperature, no axis named | $T = 4$, factor $T^2$, over channels | code; `temperature` |
# | loss weights | 4 : 2 : 1 | 2 : 1 : 0.5 | code (half the size matters for a fixed rate) |
# | last learning rate | 1.2e-4 | 1.2e-3 | cosine schedule for all methods |
# | test features | flattened | rectified, square-rooted, flattened | code; `power=1` |
# | baselines | same settings | no point-wise loss, pooled features | both, below |
# | model selection | not stated | best of the log on **test** classes | last weights |

# %% [markdown]
# ## The gate that the paper does not mention
#
# How many query positions may be pushed at all? If the true distance of a
# query is smaller than the others by a few units, the true way holds more
# than half of the probability and the gate closes.

# %%
generator = torch.Generator().manual_seed(0)
rows = []
for lead in (0.0, 2.0, 3.0, 4.0, 6.0):
    distances = 20 + torch.randn(20_000, 15, generator=generator)
    distances[:, 0] -= lead
    truth = torch.zeros(20_000, dtype=torch.long)
    push, gate = elastic_constraint(distances, truth, 1.0)
    rows.append(
        {
            "true distance lower by": lead,
            "gate open (%)": 100 * float(gate.float().mean()),
            "mean push": float(push.mean()),
        }
    )
table(rows)

# %%
history = pd.DataFrame(study.records("bml")[0].history)
figure, panel = plt.subplots(figsize=(5.2, 2.5))
share = history["epoch"] / len(history)
panel.plot(
    history["epoch"], history["gate_open"], "o-", ms=3, label="gate open (%)"
)
panel.plot(
    history["epoch"],
    100 * share,
    "--",
    color="grey",
    label="length of the push (% of its end)",
)
panel.set(xlabel="Epoch", ylim=(0, 105))
_ = panel.legend()

# %% tags=["hide-input"]
effect = compare(
    small.records("bml", "ablation"),
    small.records("bml", "no_gate", elastic_gate=False),
    1,
)
Markdown(
    "The gate is open when the push is short and closes as the push grows. "
    "In training it was open for "
    f"{history['gate_open'].iloc[0]:.0f} % of the query positions in the "
    f"first epoch and {history['gate_open'].iloc[-1]:.0f} % in the last. At "
    "one shot, " + in_words("BML with the gate", "BML without it", effect) + "."
)

# %% [markdown]
# ## A divergence that is a squared error
#
# The paper argues for a divergence between distributions. On trained
# features, how far is it from a centred squared error?

# %%
net = study.run("bml").method
maps = embed_images(net, study.data["test"].subset(per_class=20))
first, second = maps.mean((2, 3)).chunk(2, dim=1)
spread = float(torch.cat([first, second]).std(1).mean())
divergence = float(mutual_loss(first, second))
squared = float((first - second).var(1, correction=0).mean())
Markdown(
    f"On {len(maps)} novel images the features spread by {spread:.2f} over "
    f"their channels. The mutual loss is {divergence:.4f}, the variance of "
    f"the difference {squared:.4f}: a ratio of {divergence / squared:.2f}. "
    "One would be a plain squared error, as for the even features of the "
    "method page; above one, the softmax looks harder at the strong channels, "
    "where the two views differ most."
)

# %% [markdown]
# ## What is in the gap to the baselines?
#
# The paper's gap between BML and its baselines holds more than the second
# view. The released baselines are scored on pooled features and BML on
# square-rooted flattened ones; they learn from one loss on the pooled
# feature, BML from one at every position; and BML has a block more. Taken
# apart, one step at a time:

# %%
pooled = small.records("ce", "ablation", head="euclid")
features = small.records("ce", "ablation", head="sqrt")
point_wise = small.records("ce", "point_wise", head="sqrt", point_wise=True)
view = small.records("bml", "ablation", head="global")
both = small.records("bml", "ablation")
taken_apart = {
    "BML's test features": (features, pooled),
    "point-wise loss": (point_wise, features),
    "trained beside the local view": (view, point_wise),
    "the local view votes": (both, view),
    "all together": (both, pooled),
}
figure = interval_plot(gains(taken_apart), "What each step brings (points)")

# %%
table(gain_table(taken_apart))

# %% tags=["hide-input"]
whole = compare(both, pooled, 1)
fair = compare(both, point_wise, 1)
Markdown(
    f"At one shot BML is {whole[0]:+.2f} ± {whole[1]:.2f} points from the "
    f"baseline as released, and {fair[0]:+.2f} ± {fair[1]:.2f} from the same "
    "baseline under BML's test features and point-wise loss. The difference "
    "between the two is what the comparison gave to BML for free."
)

# %% [markdown]
# ## Choosing on the test classes
#
# The released loop scores the **test** classes every twenty epochs and the
# log keeps the best. How much is that worth? From one network, draw five
# scores of 500 episodes and keep the best: no better model, a better
# number.

# %%
novel = study.data["test"]
maps = embed_images(net, novel)
draws = np.array(
    [
        evaluate(net, novel, 1, episodes=500, seed=s, maps=maps).mean
        for s in range(20)
    ]
)
best = draws.reshape(4, 5).max(1).mean() - draws.mean()
Markdown(
    f"The best of five scores of 500 episodes lies {best:.2f} points above "
    "the mean, with one and the same network. Choosing among networks adds "
    "their differences on top. In this book the last weights are kept."
)

# %% [markdown]
# ## To take away
#
# - The gate is the largest silent difference between text and code.
# - A fair baseline has the same test features and the same kind of loss.
# - The mutual loss is a squared error that looks at strong channels first;
#   nothing in it needs to be a distribution.
