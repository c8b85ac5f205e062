"""Spread and peaks against the worked examples and against loops over pairs."""

import time

import pytest
import torch
from torch.nn import functional

from fslib.analysis.discriminability import base_peaks, discriminability, effective_peaks


def test_two_classes_of_two_angles_by_hand():
    angles = torch.deg2rad(torch.tensor([0.0, 20.0, 90.0, 110.0], dtype=torch.float64))
    features = torch.stack([angles.cos(), angles.sin()], 1)
    made = discriminability(5 * features, torch.tensor([0, 0, 1, 1]))  # length does not count
    assert made.inter == pytest.approx(1.939693, abs=1e-6)
    assert made.intra == pytest.approx(0.030154, abs=1e-6)
    assert made.ratio == pytest.approx(64.3269, abs=1e-3)


def test_the_closed_forms_equal_the_loops_for_classes_of_any_size(normal):
    features, labels = normal(17, 6), torch.tensor([0] * 4 + [2] * 10 + [1] * 3)
    unit = functional.normalize(features, dim=1)
    means = [unit[labels == c].mean(0) for c in range(3)]
    intra = sum(
        sum((z - means[c]).square().sum() for z in unit[labels == c]) / (labels == c).sum()
        for c in range(3)
    )
    pairs = [(a - b).square().sum() for a in means for b in means if a is not b]
    made = discriminability(features, labels)
    assert made.intra == pytest.approx(float(intra) / 3, rel=1e-5)
    assert made.inter == pytest.approx(float(sum(pairs)) / 6, rel=1e-5)


def test_classes_without_images_and_a_single_class_are_refused(normal):
    with pytest.raises(ValueError, match=r"classes \[1\] have no images"):
        discriminability(normal(3, 4), torch.tensor([0, 2, 2]))
    with pytest.raises(ValueError, match="at least two"):
        discriminability(normal(3, 4), torch.tensor([0, 0, 0]))


def test_effective_peaks_by_hand():
    peaks = torch.tensor([[0.5, 0.5, 0, 0], [0.9, 0.05, 0.05, 0], [0.25, 0.25, 0.25, 0.25]])
    assert effective_peaks(peaks).tolist() == pytest.approx([2, 1.4835, 4], abs=1e-4)


def test_peaks_are_mean_shares_of_the_base_classes():
    similarity = torch.tensor([[2.0, 0.0, 0.0], [0.0, 2.0, 0.0], [0.0, 0.0, 2.0]])
    labels = torch.tensor([0, 0, 1])
    assert base_peaks(similarity, labels, hard=True).tolist() == [[0.5, 0.5, 0], [0, 0, 1]]
    soft = base_peaks(similarity, labels, scale=1.5)
    expected = (1.5 * similarity).softmax(1)
    torch.testing.assert_close(soft, torch.stack([expected[:2].mean(0), expected[2]]))
    torch.testing.assert_close(soft.sum(1), torch.ones(2))
    torch.testing.assert_close(
        base_peaks(similarity, labels, scale=100), base_peaks(similarity, labels, hard=True)
    )


def test_the_analysis_of_a_test_set_takes_seconds(normal):
    features, labels = normal(12_000, 192), torch.arange(12_000) % 20
    begin = time.process_time()
    discriminability(features, labels)
    effective_peaks(base_peaks(features @ normal(192, 64), labels, 30))
    assert time.process_time() - begin < 5
