"""Margins: the worked examples by hand, the identities between papers, and the collapse."""

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from fslib.losses.margin import (
    ClassMargin,
    MarginLoss,
    NaiveMargin,
    TaskMargin,
    add_margins,
    lower_true,
    turn_true,
    word_similarity,
    wrong,
)

ROW = torch.tensor([[2.0, 1.0, 0.0, -1.0, -2.0]], dtype=torch.float64)
TRUE = torch.tensor([0])
COSINES = torch.tensor([[0.8, 0.3, 0.1, -0.2, 0.0]], dtype=torch.float64)


def loss(logits: Tensor, target: Tensor = TRUE) -> Tensor:
    return functional.cross_entropy(logits, target)


@pytest.mark.parametrize(
    ("margin", "expected"),
    [
        (-0.5, 0.297525),
        (0.0, 0.451914),
        (0.5, 0.663689),
        (1.0, 0.937270),
        (2.0, 1.652784),
        (5.0, 4.451914),
    ],
)
def test_the_naive_margin_by_hand_and_in_closed_form(margin, expected):
    made = loss(add_margins(ROW, TRUE, margin)).item()
    assert made == pytest.approx(expected, abs=1e-6)
    p = ROW.softmax(1)[0, 0].item()
    assert p == pytest.approx(0.636409, abs=1e-6)
    assert made == pytest.approx(math.log(1 + math.exp(margin) * (1 - p) / p))


def test_the_class_relevant_margin_and_its_gradients_by_hand():
    table = ClassMargin(5).double()
    similarity = torch.zeros(5, 5, dtype=torch.float64)
    similarity[0] = torch.tensor([9.0, 0.8, 0.4, 0.1, 0.0])  # the 9 on the diagonal is ignored
    made = table(similarity)
    assert made[0, 1:].tolist() == pytest.approx([0.9, 0.5, 0.2, 0.1])
    value = loss(add_margins(ROW, TRUE, made))
    value.backward()
    assert value.item() == pytest.approx(0.792549, abs=1e-6)
    assert table.alpha.grad.item() == pytest.approx(0.370845, abs=1e-6)
    assert table.beta.grad.item() == pytest.approx(0.547310, abs=1e-6)
    p = add_margins(ROW, TRUE, made).softmax(1)
    assert table.beta.grad.item() == pytest.approx(1 - p[0, 0].item())
    assert table.alpha.grad.item() == pytest.approx((p[0, 1:] * similarity[0, 1:]).sum().item())


def test_angular_and_cosine_margins_by_hand():
    assert loss(10 * COSINES).item() == pytest.approx(0.007999, abs=1e-6)
    cosface = loss(lower_true(COSINES, TRUE, 10, 0.35)).item()
    assert cosface == pytest.approx(0.235815, abs=1e-6)
    assert cosface == pytest.approx(loss(add_margins(10 * COSINES, TRUE, 3.5)).item())
    turned = turn_true(COSINES, TRUE, 10, 0.5)
    assert turned[0, 0].item() / 10 == pytest.approx(0.414411, abs=1e-6)
    assert loss(turned).item() == pytest.approx(0.321806, abs=1e-6)
    torch.testing.assert_close(turned[0, 1:], 10 * COSINES[0, 1:])


def test_a_wider_angle_never_pays_under_the_angular_margin():
    angles = torch.linspace(0.01, math.pi - 0.01, 500, dtype=torch.float64)
    cosines = torch.stack([angles.cos(), torch.zeros_like(angles)], 1)
    made = turn_true(cosines, torch.zeros(500, dtype=torch.long), 1.0, 0.5)[:, 0]
    assert (made.diff() < 0).all()
    # Without the guard it would rise: at 170 degrees the turned cosine is above that at 180.
    assert math.cos(math.radians(170) + 0.5) == pytest.approx(-0.9475, abs=1e-4)
    ends = torch.tensor([[1.0, -1.0]], requires_grad=True)
    turn_true(ends, TRUE, 10.0, 0.5).sum().backward()
    assert torch.isfinite(ends.grad).all()


def test_naive_cosine_and_negative_margin_are_one_loss(normal):
    """NAML at s m = CosFace at m = Negative Margin at (s, m), values and gradients."""
    cosines = torch.tanh(normal(6, 5)).double().requires_grad_()
    target = torch.tensor([0, 4, 2, 2, 1, 3])
    scale = 30.0
    for margin in (-0.3, -0.02, 0.0, 0.35):
        one_hot = functional.one_hot(target, 5).double()
        values = [
            loss(add_margins(scale * cosines, target, scale * margin), target),
            loss(
                add_margins(
                    scale * cosines, target, torch.full((5, 5), scale * margin, dtype=torch.float64)
                ),
                target,
            ),
            loss(lower_true(cosines, target, scale, margin), target),
            loss(scale * (cosines - margin * one_hot), target),
            MarginLoss("naive", 5, size=scale * margin)(scale * cosines[None], target[None])[
                "loss"
            ],
            MarginLoss("cosine", 5, size=margin)(scale * cosines[None], target[None], scale=scale)[
                "loss"
            ],
        ]
        slopes = [torch.autograd.grad(v, cosines)[0] for v in values]
        for value, slope in zip(values, slopes, strict=True):
            torch.testing.assert_close(value, values[0])
            torch.testing.assert_close(slope, slopes[0])


def test_a_table_without_margins_is_cross_entropy_and_its_diagonal_is_ignored(normal):
    logits, target = normal(4, 5), torch.tensor([1, 0, 4, 1])
    assert torch.equal(add_margins(logits, target, torch.zeros(5, 5)), logits)
    table = normal(5, 5)
    other = table + torch.diag(normal(5))
    assert torch.equal(add_margins(logits, target, table), add_margins(logits, target, other))
    by_hand = logits.clone()
    for i, y in enumerate(target):
        for c in range(5):
            by_hand[i, c] += table[y, c] if c != y else 0
    torch.testing.assert_close(add_margins(logits, target, table), by_hand)
    torch.testing.assert_close(  # several episodes, each with its own table
        add_margins(
            torch.stack([logits, logits]), target.expand(2, 4), torch.stack([table, -table])
        ),
        torch.stack([by_hand, 2 * logits - by_hand]),
    )


def test_the_gradient_in_a_margin_is_the_softmax_of_its_class(normal):
    logits, target = normal(1, 5).double(), torch.tensor([3])
    table = normal(5, 5).double().requires_grad_()
    z = add_margins(logits, target, table)
    loss(z, target).backward()
    expected = torch.zeros(5, 5, dtype=torch.float64)
    expected[3] = z.softmax(1)[0]
    expected[3, 3] = 0
    torch.testing.assert_close(table.grad, expected)
    assert (wrong(table.grad)[3] > 0).all()  # strictly increasing in every margin it uses
    torch.testing.assert_close(loss(z + 7, target), loss(z, target))


def test_no_similarity_leaves_the_naive_margin(normal):
    similarity = word_similarity(normal(5, 8))
    torch.testing.assert_close(
        ClassMargin(5, 0.0, 0.7)(similarity), NaiveMargin(5, 0.7)(similarity)
    )


def test_word_similarity_of_a_missing_word_is_zero():
    words = torch.tensor([[3.0, 4.0], [0.0, 0.0], [4.0, 3.0]], requires_grad=True)
    made = word_similarity(words)
    assert made.detach().flatten().tolist() == pytest.approx([1, 0, 0.96, 0, 0, 0, 0.96, 0, 1])
    made.sum().backward()
    assert torch.isfinite(words.grad).all()


def similarities(normal, episodes: int = 3, way: int = 5) -> Tensor:
    return word_similarity(normal(episodes, way, 8) + 0.5)


def test_the_generator_by_the_papers_layers(normal):
    torch.manual_seed(0)
    table = TaskMargin(5, hidden=16)
    assert sum(p.numel() for p in table.parameters()) == 188
    similarity = similarities(normal)
    made = table(similarity)
    first, norm1, _, second, norm2, _ = table.generator
    rows = torch.stack([s[y][torch.arange(5) != y] for s in similarity for y in range(5)])

    def normalised(x: Tensor, layer: nn.BatchNorm1d) -> Tensor:
        return (x - x.mean(0)) / (x.var(0, unbiased=False) + layer.eps).sqrt()

    hidden = normalised(rows @ first.weight.T + first.bias, norm1).relu()
    expected = normalised(hidden @ second.weight.T + second.bias, norm2).relu()
    torch.testing.assert_close(wrong(made).flatten(0, 1), expected, rtol=1e-4, atol=1e-5)
    assert (made.diagonal(dim1=1, dim2=2) == 0).all() and (made >= 0).all()
    assert wrong(made).max() <= math.sqrt(14)  # a standardised value of 15 rows


@pytest.mark.parametrize("order", ["literal", "sorted", "shared"])
def test_only_sorted_and_shared_inputs_follow_a_relabelling(normal, order):
    torch.manual_seed(0)
    table = TaskMargin(5, order=order)
    similarity = similarities(normal)
    to = torch.tensor([3, 0, 4, 1, 2])
    moved = table(similarity[:, to][:, :, to])
    expected = table(similarity)[:, to][:, :, to]
    if order == "literal":
        assert (moved - expected).abs().max() > 0.01
    else:
        torch.testing.assert_close(moved, expected, rtol=1e-4, atol=1e-5)


def test_equal_similarities_give_every_class_the_same_margins():
    torch.manual_seed(0)
    table = TaskMargin(5)
    similarity = torch.full((1, 5, 5), 0.3)
    made = table(similarity)
    assert made.abs().max() < 1e-5
    made.sum().backward()
    assert table.generator[0].weight.grad.abs().max() < 1e-5
    with torch.no_grad():
        table.generator[4].bias.copy_(torch.tensor([0.5, 0.1, -0.2, 0.3]))
    rows = wrong(table(similarity))[0]
    torch.testing.assert_close(
        rows, torch.tensor([0.5, 0.1, 0.0, 0.3]).expand(5, 4), rtol=0, atol=1e-5
    )


def test_softplus_keeps_the_margins_alive(normal):
    torch.manual_seed(0)
    assert (wrong(TaskMargin(5, activation="softplus")(similarities(normal))) > 0).all()


def test_the_loss_reports_what_a_margin_has_to_be_compared_with():
    logits = torch.tensor([[[3.0, 1.0, 0.0], [0.5, 0.0, 1.0], [2.0, 9.0, 1.0]]])
    target = torch.tensor([[0, 0, 1]])
    made = MarginLoss("naive", 3, size=2.0)(logits, target)
    assert made["mean_margin"] == 2 and made["gap"] == 2  # of 2, -0.5 and 7
    made = MarginLoss("class", 3, mode="floor", floor=0.4)(logits, target, torch.zeros(3, 3))
    assert made["mean_margin"].item() == pytest.approx(0.4) and {"alpha", "beta"} <= made.keys()
    assert MarginLoss("none", 3)(logits, target).keys() == {"loss"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "soft"}, "a margin is one of none, naive, class, task, angular, cosine"),
        ({"kind": "class", "mode": "up"}, "trained fixed, joint, reversal, bilevel, floor, not"),
        ({"kind": "task", "order": "random"}, "order is one of literal, sorted, shared"),
        ({"kind": "cosine", "alpha": 1}, "margin 'cosine' does not take the options alpha"),
    ],
)
def test_wrong_names_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        MarginLoss(**options, way=5)


@pytest.mark.parametrize(("others", "least"), [(-1.0, 0.433), (-0.25, 0.764)])
def test_cosines_without_a_scale_keep_the_loss_up(others, least):
    """Five ways, the right one at cosine 1: the others opposite, or corners of a simplex."""
    cosines = torch.tensor([[1.0, *[others] * 4]])
    assert loss(cosines).item() == pytest.approx(least, abs=1e-3)


def test_the_defaults_keep_learned_margins_from_running_away():
    """The penalty grows with the task; the generator is no narrower than what goes in."""
    assert MarginLoss("task", 20).penalty == 1.0
    assert MarginLoss("task", 64).penalty == 63 / 19
    assert MarginLoss("task", 20, penalty=0.1).penalty == 0.1
    assert TaskMargin(20).generator[0].weight.shape == (64, 19)
