"""The dynamic filter's equations: worked examples of the alignment, and what each part means."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional

from fslib.metafilter import MetaFilter, class_weights


def filter_of(**options) -> MetaFilter:
    return MetaFilter(2, groups=1, **options)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"alignments": 0}, 2.0),
        ({"alignments": 1}, 3.0),
        ({"alignments": 2}, 4.5),
        ({"alignments": 3}, 6.75),
        ({"solver": "rk4"}, 3.296875),
        ({"solver": "exact"}, 3.2974425),
        ({}, 3.2974425),
        ({"solver": "dopri5", "tolerance": 1e-8}, 3.2974425),
    ],
)
def test_the_worked_example(options, expected):
    """With q = (2, -1) and f = 1/2: the gain works on the positive value only."""
    part = filter_of(**options)
    query, half = torch.tensor([2.0, -1]).view(1, 2, 1, 1), torch.full((1, 1, 1, 1, 1), 0.5)
    assert part.align(query, half).flatten().tolist() == pytest.approx([expected, -1], abs=2e-6)
    assert 2 * part.gain(half).item() == pytest.approx(expected, abs=2e-6)


def test_a_linear_field_moves_negative_values_too():
    query, half = torch.tensor([2.0, -1]).view(1, 2, 1, 1), torch.full((1, 1, 1, 1, 1), 0.5)
    for options, gain in (({}, math.exp(0.5)), ({"alignments": 2}, 2.25)):
        made = filter_of(linear_field=True, **options).align(query, half)
        assert made.flatten().tolist() == pytest.approx([2 * gain, -gain], rel=1e-6)


def test_gains_of_the_solvers_over_the_filter():
    at = torch.tensor([0, 0.25, 0.5, 0.75, 1])
    rk4, exact = filter_of(solver="rk4").gain(at), filter_of().gain(at)
    assert rk4.tolist() == pytest.approx([1, 1.284017, 1.648438, 2.114746, 2.708333], abs=1e-6)
    assert exact.tolist() == pytest.approx([1, 1.284025, 1.648721, 2.117000, 2.718282], abs=1e-6)
    assert ((exact - rk4) / exact).max() < 0.0037
    assert filter_of(alignments=1).gain(at).tolist() == [1, 1.25, 1.5, 1.75, 2]


@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize(
    "options", [{"alignments": 2}, {}, {"solver": "rk4"}, {"solver": "dopri5"}]
)
def test_a_filter_of_zeros_leaves_the_query(kernel, options):
    query = torch.randn(3, 2, 4, 4)
    made = filter_of(kernel=kernel, **options).align(query, torch.zeros(3, 1, kernel**2, 4, 4))
    torch.testing.assert_close(made, query, rtol=1e-5, atol=0)


@pytest.mark.parametrize(("solver", "least", "most"), [("rk4", 4, 4), ("dopri5", 7, 40)])
def test_rk4_is_one_step_whatever_the_tolerance(solver, least, most):
    part, calls = filter_of(kernel=3, solver=solver), []
    field = part.field
    part.field = lambda *pair: calls.append(1) or field(*pair)
    results = []
    for part.tolerance in (1e-2, 1e-5):
        calls.clear()
        results.append(part.align(torch.ones(1, 2, 4, 4), torch.full((1, 1, 9, 4, 4), 0.1)))
        assert least <= len(calls) <= most
    assert torch.equal(*results) == (solver == "rk4")


def test_the_field_filters_a_window_with_the_taps_of_its_own_position():
    part = MetaFilter(4, groups=2, kernel=3)
    query, filters = torch.randn(1, 4, 3, 3), torch.rand(1, 2, 9, 3, 3)
    padded = functional.pad(query, (1, 1, 1, 1))
    made = part.field(query, filters)
    for c in range(4):
        for y in range(3):
            for x in range(3):
                window = padded[0, c, y : y + 3, x : x + 3].flatten()
                expected = (window * filters[0, c // 2, :, y, x]).sum().clamp(min=0)
                torch.testing.assert_close(made[0, c, y, x], expected)


def test_groups_are_contiguous_blocks_of_channels():
    query, rate = torch.rand(1, 4, 2, 2), torch.rand(1, 4, 1, 2, 2)
    for groups in (1, 2, 4):
        ratio = MetaFilter(4, groups).align(query, rate[:, :groups]) / query
        for c in range(4):
            torch.testing.assert_close(ratio[0, c], rate[0, c * groups // 4, 0].exp())
    # The order of channels inside a group does not matter to what the group does.
    part = MetaFilter(4, 2)
    inside = [1, 0, 3, 2]
    made = part.align(query, rate[:, :2])[:, inside]
    torch.testing.assert_close(part.align(query[:, inside], rate[:, :2]), made)


def test_raising_the_filter_raises_positive_activations_only():
    part, query = filter_of(), torch.tensor([0.5, -0.5]).view(1, 2, 1, 1)
    low, high = (part.align(query, torch.full((1, 1, 1, 1, 1), f)).flatten() for f in (0.2, 0.3))
    assert high[0] > low[0] > 0.5 and high[1] == low[1] == -0.5


def test_class_weights_normalise_every_position_before_the_mean():
    prototypes = torch.tensor([[3.0, 4], [0, 2]])
    assert class_weights(prototypes).tolist() == pytest.approx([0.3, 0.9])
    assert class_weights(prototypes, normalise=False).tolist() == [1.5, 3]


def test_weights_start_as_published():
    part = MetaFilter(640, 64)
    assert part.psi.abs().max() <= 1 / math.sqrt(5760)
    assert part.psi.std().item() == pytest.approx(1 / math.sqrt(3 * 5760), rel=0.02)
    assert isinstance(part.offset, nn.Conv2d) and part.offset.weight.shape == (18, 1280, 5, 5)
    assert part.offset.weight.abs().max() > 0 and part.offset.bias is None


def test_the_query_comes_first_in_the_offset_convolution():
    part = MetaFilter(8, 4)
    q, s = torch.randn(2, 1, 8, 5, 5).unbind(0)
    weight = part.offset.weight
    expected = functional.conv2d(q, weight[:, :8], padding=2)
    torch.testing.assert_close(part.offsets(q, torch.zeros_like(s)), expected)
    assert part.offsets(q, s).shape == (1, 18, 5, 5)
