"""Means over seeds, paired differences and how far seeds lie apart, against hand-made numbers."""

import dataclasses

import numpy as np
import pytest
from scipy import stats
from test_results import EPISODES, measured

from fslib.comparison import SeedSpread, compare, mean_over_seeds
from fslib.evaluate import interval
from fslib.results import RecordMissing


def test_seeds_are_averaged_episode_by_episode(tmp_path):
    pairs = [measured(tmp_path, seed) for seed in (0, 1, 2)]
    mean, ci95, spread = mean_over_seeds([record for record, _ in pairs], 5)
    values = np.stack([scores[5].accuracy for _, scores in pairs])
    assert (mean, ci95) == pytest.approx(interval(values.mean(0)))
    assert spread == pytest.approx(np.std(values.mean(1), ddof=1))
    assert np.isnan(mean_over_seeds([pairs[0][0]], 5)[2])


def test_two_groups_are_compared_in_pairs_over_their_seeds(tmp_path):
    first = [measured(tmp_path, seed, shift=3) for seed in (0, 1)]
    second = [measured(tmp_path, seed, method="protonet") for seed in (0, 1)]
    groups = [[record for record, _ in side] for side in (first, second)]
    # The same episodes with three more right answers of 75: the interval closes.
    assert compare(*groups, 1) == pytest.approx((4.0, 0.0), abs=1e-9)
    other = [measured(tmp_path, seed, method="x") for seed in (5, 6, 7)]
    difference = np.mean([s[5].accuracy for _, s in first], 0)
    difference = difference - np.mean([s[5].accuracy for _, s in other], 0)
    assert compare(groups[0], [r for r, _ in other], 5) == pytest.approx(interval(difference))


@pytest.mark.parametrize(
    "other",
    [
        {"episodes": {**EPISODES, "seed": 1}},
        {"episodes": {**EPISODES, "episodes": 30}},
        {"episodes": {**EPISODES, "way": 4}},
        {"evaluated_digest": "xyz"},
    ],
)
def test_records_of_other_episodes_or_images_are_not_compared(tmp_path, other):
    first, _ = measured(tmp_path)
    second, _ = measured(tmp_path, method="x", **other)
    with pytest.raises(ValueError, match="different episodes or images cannot be paired"):
        compare([first], [second], 1)


def test_an_empty_side_names_the_command_that_fills_it(tmp_path):
    record, _ = measured(tmp_path)
    with pytest.raises(RecordMissing, match="one side has no records: measure it with `python"):
        compare([record], [], 1)


def of_seeds(record, *means):
    """A record a seed, with these means at one shot."""
    return [
        dataclasses.replace(record, seed=seed, accuracy={"1": {"mean": mean, "ci95": 0.1}})
        for seed, mean in enumerate(means)
    ]


def test_the_deviation_between_seeds_is_pooled_over_groups(tmp_path):
    record, _ = measured(tmp_path)
    # Squares around the means of the groups: 2 + 0.5, over 2 + 1 degrees of freedom.
    spread = SeedSpread(
        [of_seeds(record, 50, 51, 52), of_seeds(record, 60, 61), of_seeds(record, 9)]
    )
    assert spread.degrees == 3
    assert spread.deviation(1) == pytest.approx(np.sqrt(2.5 / 3))
    t = stats.t.ppf(0.975, 3)
    assert spread.half_width(1) == pytest.approx(t * np.sqrt(2.5 / 3 * 2))
    assert spread.half_width(1, 3, 6) == pytest.approx(t * np.sqrt(2.5 / 3 / 2))


def test_the_interval_of_the_seeds_holds_nineteen_of_twenty_differences(tmp_path):
    record, _ = measured(tmp_path)
    rng, inside = np.random.default_rng(0), 0
    for _ in range(2000):
        groups = [of_seeds(record, *rng.normal(50, 0.4, 3)) for _ in range(2)]
        inside += abs(np.diff(rng.normal(50, 0.4, 2))) <= SeedSpread(groups).half_width(1)
    assert inside / 2000 == pytest.approx(0.95, abs=0.015)


def test_one_seed_says_nothing_of_the_spread(tmp_path):
    record, _ = measured(tmp_path)
    alone = SeedSpread([[record]])
    assert alone.degrees == 0 and np.isnan(alone.deviation(1)) and alone.half_width(1) == 0


def test_a_difference_counts_the_seeds_beside_the_episodes(tmp_path):
    first, _ = measured(tmp_path, 5, method="x", config={"method": "ce", "seed": 5})
    second, _ = measured(tmp_path)
    spread = SeedSpread([of_seeds(second, 50.0, 51.0)])
    mean, ci95 = compare([first], [second], 1)
    assert compare([first], [second], 1, spread) == pytest.approx(
        (mean, np.hypot(ci95, spread.half_width(1)))
    )
    both = compare([first], [second, measured(tmp_path, 1)[0]], 1, spread)[1]
    plain = compare([first], [second, measured(tmp_path, 1)[0]], 1)[1]
    assert both == pytest.approx(np.hypot(plain, spread.half_width(1, 1, 2)))


def test_two_tests_of_one_network_share_its_seed(tmp_path):
    own, _ = measured(tmp_path)
    other, _ = measured(tmp_path, head="l2n", shift=2)
    spread = SeedSpread([of_seeds(own, 50.0, 51.0)])
    assert compare([other], [own], 1, spread) == compare([other], [own], 1)
