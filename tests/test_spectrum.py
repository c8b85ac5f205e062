"""Spectra, alignment and uniformity of features with known answers and against all pairs."""

import math

import pytest
import torch
from torch.nn import functional

from fslib.analysis.spectrum import (
    alignment,
    effective_rank,
    even_share,
    explained_variance,
    singular_values,
    uniformity,
)


def test_singular_values_are_those_of_the_covariance(normal):
    features = normal(40, 6) * torch.tensor([3.0, 1, 1, 1, 0.1, 0]) + 5
    values = singular_values(features)
    covariance = torch.cov(features.double().T) * 39
    expected = torch.linalg.eigvalsh(covariance).flip(0).clamp(min=0).sqrt()
    torch.testing.assert_close(values, expected, rtol=1e-6, atol=1e-5)
    shares = explained_variance(values)
    assert (shares.diff() >= 0).all() and shares[-1].item() == pytest.approx(1)
    assert shares[0].item() == pytest.approx((values[0] ** 2 / (values**2).sum()).item())


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([2, 2, 2, 2], 4),
        ([5, 0, 0], 1),
        # Variances 1/2, 1/4, 1/4: an entropy of 1.5 log 2.
        ([math.sqrt(2), 1, 1], 2**1.5),
    ],
)
def test_effective_rank(values, expected):
    values = torch.tensor(values, dtype=torch.float64)
    assert effective_rank(values) == pytest.approx(expected)
    assert effective_rank(100 * values) == pytest.approx(expected)


def test_even_share():
    attention = torch.tensor([[0.25] * 4, [1.0, 0, 0, 0], [0.5, 0.5, 0, 0]])
    torch.testing.assert_close(even_share(attention), torch.tensor([1.0, 0.25, 0.5]))


def test_alignment_is_the_mean_over_pairs_of_a_class(normal):
    features, labels = normal(12, 5), torch.tensor([7, 7, 3, 3, 3, 0, 0, 0, 0, 7, 2, 7])
    unit = functional.normalize(features, dim=1)
    pairs = [
        (unit[i] - unit[j]).square().sum()
        for i in range(12)
        for j in range(12)
        if i != j and labels[i] == labels[j]
    ]
    assert alignment(features, labels) == pytest.approx(torch.stack(pairs).mean().item(), rel=1e-5)
    assert alignment(torch.eye(4), torch.zeros(4, dtype=torch.long)) == pytest.approx(2)
    twins = normal(1, 5) * torch.rand(3, 1)
    assert alignment(twins, torch.zeros(3, dtype=torch.long)) == pytest.approx(0, abs=1e-6)


def test_uniformity_is_over_all_pairs(normal):
    features = normal(1100, 3)  # more than one stretch
    unit = functional.normalize(features.double(), dim=1)
    expected = (-2 * torch.pdist(unit).square()).exp().mean().log()
    assert uniformity(features) == pytest.approx(expected.item())
    assert uniformity(torch.ones(5, 3)) == pytest.approx(0)
    assert uniformity(torch.eye(5), sharpness=3) == pytest.approx(-6)
    spread = uniformity(normal(500, 64))
    assert -4 < spread < uniformity(features) < uniformity(features + 3) < 0
