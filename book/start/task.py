# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # The task
#
# A child who has seen one okapi recognises the next one. Few-shot learning
# asks the same of a machine: here are five new classes and one picture of
# each, now sort these other pictures.
#
# On this page you will
#
# - see such a task drawn, before any model exists,
# - learn the six words that the rest of the book speaks in,
# - score the simplest thing that could work, and read its interval.

# %% tags=["parameters"]
dataset: str = "glyphs"  # a packed data set, or the built-in glyphs
way: int = 5  # classes of an episode
shot: int = 1  # labelled images of a class
query: int = 15  # images of a class to be sorted
episodes: int = 2000  # tasks to score
seed: int = 0  # draws the episodes

# %%
import math

import torch
from fslib.data import open_dataset
from fslib.episodes import Episodes, draw_episodes
from fslib.evaluate import evaluate, interval
from fslib.heads import Head, squared_distance
from fslib.pages import show_source
from fslib.plots.images import show_episode
from fslib.plots.style import use_book_style
from IPython.display import Markdown

use_book_style()
splits = open_dataset(dataset)
novel = splits["test"]
for split in splits.values():
    print(split)

# %% [markdown]
# ## One episode
#
# The classes of the data set are parted into three groups that share
# nothing: **base** classes to train on, validation classes to make choices
# with, and **novel** classes that are looked at only in the end. An
# **episode** is a small task over a few classes of one group.

# %%
tasks = draw_episodes(
    novel.labels, episodes, way, shot, query, seed, novel.class_names
)
figure = show_episode(novel, tasks, e=0, query=8)

# %% [markdown]
# Each row is one of the **ways**, the classes of this episode. Left of the
# gap stand its **support** images, as many as there are **shots**: they come
# with their label. Right of it stand some of its **query** images, whose
# label the model has to find. Here is the next episode; its classes are
# others, and what was learned about the first five is of no use.

# %%
figure = show_episode(novel, tasks, e=1, query=8)

# %% [markdown]
# ## An episode is a table of row numbers
#
# Nothing is copied and nothing is decoded: an episode names rows of one
# packed array. Thousands of them are drawn at once, from one seed, so every
# method in this book meets exactly the same tasks.

# %%
show_source(Episodes)

# %%
print("all episodes :", tuple(tasks.index.shape), "(episode, way, image)")
print("support      :", tuple(tasks.support.shape))
print("query        :", tuple(tasks.query.shape))
print("first support:", tasks.support[0].flatten().tolist())

# %% tags=["hide-input"]
images = novel.counts[: novel.classes].tolist()
ways = math.comb(novel.classes, way)
supports = math.comb(images[0], shot) ** way
Markdown(
    f"{novel.classes} novel classes give {ways:,} ways to choose {way} of them"
    f", and each choice about $10^{{{math.log10(supports):.0f}}}$ supports. "
    f"No list of episodes is complete, so an accuracy is always an estimate "
    f"from a sample, and belongs with an interval."
)

# %% [markdown]
# ## The simplest answer: the nearest mean
#
# Take the mean of each class's support, the **prototype**, and give a query
# to the nearest one. With features $z$ and support set $S_k$ of class $k$,
#
# $$
# c_k = \frac{1}{|S_k|}\sum_{i \in S_k} z_i, \qquad
# \hat{y} = \arg\min_k \lVert z - c_k \rVert^2 .
# $$
#
# Almost every method of this book ends in this line. What they differ in is
# how they come by the features. Here they are the raw pixels, so nothing is
# learned at all.

# %%
show_source(squared_distance)

# %% [markdown]
# All episodes are scored in one go. A pixel is a feature map of three
# channels, so the harness that scores trained networks scores this one too.

# %%
from fslib.methods import Method


class Pixels(Method):
    """No training, no network: an image is its own feature map."""

    def __init__(self) -> None:
        super().__init__(torch.nn.Identity(), 0, Head(pool="flatten"))


pixels = Pixels()
scores = evaluate(pixels, novel, shot, way, query, episodes, seed)
print(f"{way}-way {shot}-shot accuracy: {scores} %, chance {100 / way:.0f} %")

# %% [markdown]
# ## What the interval means
#
# Some episodes are easy, some are not. The accuracy of a method is the mean
# over episodes, and its **95 % interval** is 1.96 standard errors of that
# mean to either side.

# %% tags=["hide-input"]
import matplotlib.pyplot as plt

figure, axes = plt.subplots(1, 2, figsize=(6.9, 2.4))
axes[0].hist(scores.accuracy, bins=30)
axes[0].set(xlabel="Accuracy of one episode (%)", ylabel="Episodes")
sizes = [
    n for n in (50, 100, 200, 500, 1000, 2000, 5000, 10000) if n <= episodes
]
means, halves = zip(*(interval(scores.accuracy[:n]) for n in sizes))
axes[1].errorbar(sizes, means, yerr=halves, fmt="o", capsize=3)
axes[1].set(xscale="log", xlabel="Episodes", ylabel="Mean accuracy (%)")
figure.tight_layout()

# %% tags=["hide-input"]
spread = scores.accuracy.std(ddof=1)
Markdown(
    f"Left: single episodes spread by {spread:.1f} points, so one episode "
    f"says next to nothing. Right: the same accuracy from more and more "
    f"episodes. {sizes[0]} of them leave ± {halves[0]:.1f} points, "
    f"{sizes[-1]:,} leave ± {halves[-1]:.2f}. Many differences that papers "
    f"report are smaller than one point, which is why this book scores "
    f"10,000 episodes wherever a number matters, and compares two methods "
    f"on the same episodes."
)

# %% [markdown]
# ## To take away
#
# - An episode has *way* classes, *shot* support images of each, and queries.
# - Base classes train, validation classes choose, novel classes judge.
# - An accuracy is a mean over episodes; without its interval it is half a
#   number.
#
# ## Try it
#
# 1. Set `shot = 5`. How far does averaging alone carry raw pixels?
# 2. Set `way = 20`. Chance falls to 5 %; how does the nearest mean fare?
# 3. Change `seed`. By how much does the accuracy move, and is that what the
#    interval promised?
