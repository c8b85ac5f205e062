"""The elastic constraint and the mutual loss: worked examples, bounds, gradients."""

import math

import pytest
import torch
from torch.nn import functional

from fslib.losses.elastic import elastic_constraint, push_away
from fslib.losses.mutual import mutual_loss

# --- the elastic constraint ---------------------------------------------------------------------

OPEN, TRUE_HOLDS, WRONG_HOLDS = (
    torch.tensor([first, second, 10.4 if second > 8 else 12.0, 12.0, 12.0])
    for first, second in ((10.0, 10.2), (9.0, 10.2), (12.0, 7.0))
)
FIRST = torch.tensor(0)


def test_the_worked_example_of_an_open_gate():
    chances = (-OPEN).softmax(0)
    assert chances[:2].tolist() == pytest.approx([0.3624, 0.2967], abs=1e-4)
    for epoch, push in ((0, 0.0), (1, 0.027225), (50, 1.361250), (100, 2.722501)):
        found, undecided = elastic_constraint(OPEN, FIRST, epoch / 100)
        assert found.item() == pytest.approx(push, abs=2e-6) and undecided.item()
    for progress, loss in ((0.0, 1.015130), (1.0, 3.324317)):
        pushed, _ = push_away(OPEN, FIRST, progress)
        assert functional.cross_entropy(-pushed, FIRST).item() == pytest.approx(loss, abs=2e-6)


def test_eq_5_without_the_push_in_its_denominator_would_be_something_else():
    push, _ = elastic_constraint(OPEN, FIRST, 1.0)
    assert (OPEN[0] + push + (-OPEN).logsumexp(0)).item() == pytest.approx(3.737631, abs=2e-6)


@pytest.mark.parametrize(
    ("distances", "chance", "way", "ungated"),
    [(TRUE_HOLDS, 0.607, 0, 2.5852), (WRONG_HOLDS, 0.974, 1, 3.4235)],
)
def test_a_closed_gate_pushes_nothing(distances, chance, way, ungated):
    assert (-distances).softmax(0)[way].item() == pytest.approx(chance, abs=1e-3)
    push, undecided = elastic_constraint(distances, FIRST, 1.0)
    assert push.item() == 0 and not undecided.item()
    push, undecided = elastic_constraint(distances, FIRST, 1.0, gate=False)
    assert push.item() == pytest.approx(ungated, abs=1e-4) and not undecided.item()


def test_the_push_is_bounded_grows_with_difficulty_and_with_training():
    delta = torch.linspace(-200, 200, 401)
    distances = torch.stack([delta, torch.zeros(401), torch.full((401,), 300.0)], 1)
    target = torch.zeros(401, dtype=torch.long)
    for progress in (0.25, 1.0):
        push, _ = elastic_constraint(distances, target, progress, gate=False)
        assert (push >= 0).all() and (push <= 5.5 * progress).all()
        assert (push.diff() >= 0).all() and push[-1] > push[0]
        # no difference, half the push
        assert push[200].item() == pytest.approx(5.5 * progress / 2)
    assert not elastic_constraint(distances, target, 0.0, gate=False)[0].any()
    assert not elastic_constraint(distances, target, 1.0, alpha1=0.0)[0].any()


def test_only_the_true_column_is_lengthened_and_the_loss_never_falls(normal):
    distances, target = normal(50, 7, 5).square(), torch.arange(50)[:, None].expand(50, 7) % 5
    pushed, undecided = push_away(distances, target, 0.7)
    change = pushed - distances
    true = functional.one_hot(target, 5).bool()
    assert not change[~true].any()
    assert torch.equal(change[true].view(50, 7) > 0, undecided) and 0 < undecided.sum() < 350
    plain, elastic = (
        functional.cross_entropy(-d.flatten(0, 1), target.flatten(), reduction="none")
        for d in (distances, pushed)
    )
    assert (elastic >= plain).all() and elastic.sum() > plain.sum()


def test_no_gradient_passes_through_the_push(normal):
    distances = normal(6, 4).square().requires_grad_()
    target = torch.tensor([0, 1, 2, 3, 0, 1])
    push, undecided = elastic_constraint(distances, target, 1.0)
    assert not push.requires_grad and undecided.any()
    functional.cross_entropy(-push_away(distances, target, 1.0)[0], target).backward()
    # that of a constant added to the logits: (truth - softmax) / rows
    one_hot = functional.one_hot(target, 4)
    chances = (-distances.detach() - one_hot * push[:, None]).softmax(1)
    torch.testing.assert_close(distances.grad, (one_hot - chances) / 6)


def test_ties_and_exact_zeros_are_nothing_special():
    distances = torch.tensor([[0.0, 0.0, 0.0], [0.0, 1.0, 1.0]])
    push, undecided = elastic_constraint(distances, torch.tensor([1, 1]), 1.0)
    assert undecided.tolist() == [True, False]  # 1/3 each; the first way has 0.576
    assert push[0].item() == pytest.approx(2.75)


@pytest.mark.parametrize(
    ("lead", "share"), [(0, 0.97), (2, 0.84), (3, 0.53), (4, 0.19), (6, 0.003)]
)
def test_the_gate_closes_as_the_true_way_takes_the_lead(normal, lead, share):
    distances = normal(100_000, 15)
    distances[:, 0] -= lead
    _, undecided = elastic_constraint(distances, torch.zeros(100_000, dtype=torch.long), 1.0)
    assert undecided.float().mean().item() == pytest.approx(share, abs=0.01)


# --- the mutual loss ----------------------------------------------------------------------------


def test_the_worked_example_of_the_mutual_loss():
    first, second = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 2.0]])
    p = 1 / (1 + math.exp(-0.5))
    one_way = 16 * (2 * p - 1) * 0.5  # by hand: T^2 sum_c q log(q / r)
    assert one_way == pytest.approx(1.959349, abs=1e-6)
    assert mutual_loss(first, second).item() == pytest.approx(2 * one_way, rel=1e-6)
    assert (first - second).var(1, unbiased=False).item() == 4  # what it comes close to


def test_the_mutual_loss_equals_the_loop_over_images_and_channels(normal):
    first, second = normal(3, 5), normal(3, 5)
    total = 0.0
    for f, g in zip(first, second, strict=True):
        q, r = (f / 2.5).softmax(0).tolist(), (g / 2.5).softmax(0).tolist()
        for a, b in zip(q, r, strict=True):
            total += a * math.log(a / b) + b * math.log(b / a)
    assert mutual_loss(first, second, 2.5).item() == pytest.approx(2.5**2 * total / 3, rel=1e-5)


def test_the_mutual_loss_is_symmetric_and_blind_to_a_constant_of_an_image(normal):
    first, second = normal(8, 40), normal(8, 40)
    value = mutual_loss(first, second)
    assert value > 0
    assert mutual_loss(first, first).item() == pytest.approx(0, abs=1e-6)
    assert mutual_loss(first, first + normal(8, 1)).item() == pytest.approx(0, abs=1e-5)
    torch.testing.assert_close(mutual_loss(second, first), value)
    torch.testing.assert_close(mutual_loss(first + normal(8, 1), second), value)


@pytest.mark.parametrize("spread", [0.3, 1.0])
def test_at_its_temperature_the_mutual_loss_is_nearly_a_variance(normal, spread):
    first, second = spread * normal(100, 640), spread * normal(100, 640)
    variance = (first - second).var(1, unbiased=False).mean()
    assert mutual_loss(first, second).item() == pytest.approx(variance.item(), rel=5e-3)


@pytest.mark.parametrize("detach", [False, True])
def test_each_view_learns_from_its_own_term_where_targets_are_detached(normal, detach):
    first, second = normal(2, 6).requires_grad_(), normal(2, 6).requires_grad_()
    value = mutual_loss(first, second, detach_target=detach)
    torch.testing.assert_close(value, mutual_loss(first, second))
    value.backward()
    q, r = (first / 4).softmax(1), (second / 4).softmax(1)
    if detach:  # T^2 / B times (softmax - target) / T
        torch.testing.assert_close(first.grad, 2 * (q - r).detach())
        torch.testing.assert_close(second.grad, 2 * (r - q).detach())
    else:
        terms = 8 * ((q - r) * (q.log() - r.log())).sum()
        for grad, other in zip(
            (first.grad, second.grad), torch.autograd.grad(terms, (first, second)), strict=True
        ):
            torch.testing.assert_close(grad, other)
            assert not torch.allclose(grad, 2 * (q - r).detach(), rtol=1e-2)
