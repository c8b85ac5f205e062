"""Episodes: uniform, distinct, repeatable, and refused with numbers where they cannot be."""

import itertools

import numpy as np
import pytest
import torch
from scipy import stats

from fslib.episodes import TooFewImages, draw_episodes

# Four classes of 6, 10, 20 and 40 images, shuffled, so a row number says nothing of its class.
SIZES = (6, 10, 20, 40)
LABELS = torch.from_numpy(np.random.default_rng(3).permutation(np.repeat(range(4), SIZES)))


def uniform(counts) -> bool:
    """Whether a chi-square test sees no difference from equal counts (seeds are fixed)."""
    return stats.chisquare(counts).pvalue > 0.005


def test_shapes_labels_and_distinct_rows():
    drawn = draw_episodes(LABELS, episodes=500, way=3, shot=2, query=4, seed=1)
    assert drawn.index.shape == (500, 3, 6) and drawn.index.dtype == torch.int64
    assert drawn.support.shape == (500, 3, 2) and drawn.query.shape == (500, 3, 4)
    assert (len(drawn), drawn.way, drawn.shot) == (500, 3, 2)
    assert torch.equal(torch.cat([drawn.support, drawn.query], -1), drawn.index)
    assert torch.equal(LABELS[drawn.index], drawn.classes[..., None].expand(-1, -1, 6))
    for episode, classes in zip(drawn.index.tolist(), drawn.classes.tolist(), strict=True):
        assert len(set(itertools.chain(*episode))) == 18
        assert len(set(classes)) == 3
    part = drawn[10:20]
    assert torch.equal(part.index, drawn.index[10:20]) and part.shot == 2


def test_classes_are_uniform_in_every_place_whatever_their_size():
    drawn = draw_episodes(LABELS, episodes=20_000, way=2, shot=1, query=2, seed=0)
    for place in range(2):
        assert uniform(torch.bincount(drawn.classes[:, place], minlength=4))
    pairs = drawn.classes[:, 0] * 4 + drawn.classes[:, 1]
    assert uniform(torch.bincount(pairs, minlength=16)[[1, 2, 3, 4, 6, 7, 8, 9, 11, 12, 13, 14]])


@pytest.mark.parametrize("label", range(4))
def test_images_of_a_class_are_uniform_in_every_place(label):
    drawn = draw_episodes(LABELS, episodes=20_000, way=2, shot=1, query=2, seed=5)
    rows = drawn.index[drawn.classes == label]  # (times drawn, 3)
    of_class = torch.nonzero(LABELS == label).flatten()
    for place in range(3):
        assert uniform(torch.bincount(rows[:, place], minlength=len(LABELS))[of_class])


def test_every_ordered_choice_is_equally_likely():
    drawn = draw_episodes(LABELS, episodes=30_000, way=2, shot=1, query=2, seed=2)
    rows = drawn.index[drawn.classes == 0].tolist()
    of_class = torch.nonzero(LABELS == 0).flatten().tolist()
    choices = {key: 0 for key in itertools.permutations(of_class, 3)}
    for row in rows:
        choices[tuple(row)] += 1
    assert len(choices) == 120 and uniform(list(choices.values()))


def test_an_episode_can_take_a_class_whole():
    drawn = draw_episodes(LABELS, episodes=50, way=4, shot=1, query=5, seed=0)
    whole = drawn.index[drawn.classes == 0].sort(-1).values
    assert torch.equal(whole, torch.nonzero(LABELS == 0).flatten().expand(50, 6))


def test_the_same_seed_draws_the_same_and_another_seed_does_not():
    again = [draw_episodes(LABELS, 100, 2, 1, 2, seed).index for seed in (7, 7, 8, [7, 1])]
    assert torch.equal(again[0], again[1])
    assert not torch.equal(again[0], again[2]) and not torch.equal(again[0], again[3])
    state = torch.get_rng_state()
    draw_episodes(LABELS, 100, 2, 1, 2)
    assert torch.equal(state, torch.get_rng_state())


def test_classes_without_images_are_never_drawn():
    labels = torch.tensor([0, 0, 3, 3, 5, 5])
    drawn = draw_episodes(labels, 200, way=2, shot=1, query=1)
    assert set(drawn.classes.unique().tolist()) == {0, 3, 5}


def test_too_many_ways_and_too_few_images_are_named():
    with pytest.raises(ValueError, match=r"5-way episode needs 5 classes and there are 4: lower"):
        draw_episodes(LABELS, way=5)
    message = r"class wren has 6 images, an episode needs 8 \(1 support \+ 7 query\): lower"
    with pytest.raises(TooFewImages, match=message):
        draw_episodes(LABELS, way=2, shot=1, query=7, class_names=("wren", "owl", "rook", "jay"))
    with pytest.raises(TooFewImages, match="class number 0 has 6 images"):
        draw_episodes(LABELS, way=2, shot=3, query=4)


@pytest.mark.parametrize("wrong", [{"way": 0}, {"shot": 0}, {"query": -1}, {"episodes": 0}])
def test_numbers_below_one_are_refused(wrong):
    with pytest.raises(ValueError, match="must be at least 1"):
        draw_episodes(LABELS, **wrong)
