"""How margins are trained: the gradient of every mode, the look ahead, collapse and balance."""

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from fslib.losses import margin as margins
from fslib.losses.margin import ClassMargin, MarginLoss, add_margins, word_similarity, wrong


def test_each_mode_grants_its_gradient(normal):
    table = normal(5, 5).double().requires_grad_()
    used = {mode: margins.held(table, mode, floor=0.2) for mode in margins.MODES}
    for mode, value in used.items():
        expected = table.clamp(min=0.2) if mode == "floor" else table
        torch.testing.assert_close(value, expected)
    assert not used["fixed"].requires_grad and not used["bilevel"].requires_grad
    weights = normal(5, 5).double()
    slope = {
        m: torch.autograd.grad((used[m] * weights).sum(), table)[0] for m in used if m[0] in "jr"
    }
    torch.testing.assert_close(slope["joint"], weights)
    torch.testing.assert_close(slope["reversal"], -weights)


def test_the_look_ahead_is_the_slope_of_the_exam_after_a_small_step(normal):
    """Against a finite difference of: one step on the lesson, then the exam."""
    x, y = normal(8, 4).double(), normal(8, 4).double()
    target = torch.arange(8) % 5
    weight = normal(4, 5).double().requires_grad_()
    table = ClassMargin(5, 0.7, 0.3).double()
    similarity = word_similarity(normal(5, 6)).double()

    def lesson() -> Tensor:
        return functional.cross_entropy(add_margins(x @ weight, target, table(similarity)), target)

    def exam(w: Tensor) -> Tensor:
        return functional.cross_entropy(y @ w, target)

    extra = margins.look_ahead(lesson(), exam(weight), [weight], list(table.parameters()))
    assert extra.item() == 0
    made = torch.autograd.grad(extra, [table.alpha, table.beta, weight], allow_unused=True)
    assert made[2] is None or (made[2] == 0).all()
    rate, change = 1e-4, 1e-3
    for parameter, slope in zip((table.alpha, table.beta), made, strict=False):
        values = []
        for sign in (1, -1):
            with torch.no_grad():
                parameter += sign * change
            after = weight - rate * torch.autograd.grad(lesson(), weight)[0]
            values.append(exam(after).item() / rate)
            with torch.no_grad():
                parameter -= sign * change
        assert slope.item() == pytest.approx((values[0] - values[1]) / (2 * change), rel=1e-3)


def test_a_look_ahead_needs_a_second_episode(normal):
    with pytest.raises(ValueError, match="set `count` to 2"):
        MarginLoss("class", 5, mode="bilevel")(normal(1, 4, 5), torch.zeros(1, 4, dtype=torch.long))


def trained(kind: str, mode: str, steps: int = 60) -> tuple[dict[str, float], dict[str, float]]:
    """Margins at the start and at the end of learning to tell synthetic classes apart."""
    torch.manual_seed(0)
    words = functional.normalize(torch.randn(20, 8) + 0.5, dim=1)
    centres = 1.2 * (words @ torch.randn(8, 16) + 0.3 * torch.randn(20, 16))
    network = nn.Linear(16, 16)
    nn.init.orthogonal_(network.weight)
    criterion = MarginLoss(kind, 5, mode)
    optimiser = torch.optim.Adam(
        [
            {"params": network.parameters(), "lr": 1e-3},
            {"params": criterion.parameters(), "lr": 2e-2},
        ]
    )
    target = torch.arange(5).repeat_interleave(6).expand(4, 30)
    trace = []
    for _ in range(steps):
        classes = torch.rand(4, 20).argsort(1)[:, :5]
        images = centres[classes][:, :, None] + torch.randn(4, 5, 7, 16)
        features = network(images)
        prototypes, query = features[:, :, 0], features[:, :, 1:].flatten(1, 2)
        logits = -torch.cdist(query, prototypes).square() / 4
        parts = criterion(logits, target, word_similarity(words[classes]), network=[network.weight])
        optimiser.zero_grad()
        parts["loss"].backward()
        optimiser.step()
        trace.append({k: v.item() for k, v in parts.items()})
    return trace[0], trace[-1]


def test_plain_descent_lowers_the_margins_and_reversal_keeps_them_up():
    """No margin survives joint training, whatever it depends on (signs, not values)."""
    first, last = trained("class", "joint")
    assert first["mean_margin"] > 0 > last["mean_margin"] and last["beta"] < 0
    assert last["alpha"] < first["alpha"]
    first, last = trained("task", "joint", 100)
    assert first["mean_margin"] > 0.2 and 0 <= last["mean_margin"] < 0.5 * first["mean_margin"]
    for kind in ("class", "task"):
        assert trained(kind, "reversal")[1]["mean_margin"] > 0.2
    first, last = trained("class", "fixed", 3)
    assert (last["alpha"], last["beta"]) == (first["alpha"], first["beta"])
    assert trained("class", "floor")[1]["mean_margin"] == pytest.approx(0.5, abs=0.01)
    assert math.isfinite(trained("class", "bilevel", 5)[1]["loss"])


def test_reversed_margins_settle_where_pairs_are_confused(normal):
    """In balance a margin is (ways - 1) x (chance of that wrong class) / (2 x penalty)."""
    logits = 2 * normal(1, 30, 5).double()
    target, penalty = torch.arange(5).repeat_interleave(6)[None], 2.0
    table = torch.zeros(1, 5, 5, dtype=torch.float64)
    for _ in range(200):
        chances = add_margins(logits, target, table).softmax(-1).view(1, 5, 6, 5).mean(2)
        table = 4 * chances / (2 * penalty)
    table = (table - torch.diag_embed(table.diagonal(dim1=1, dim2=2))).requires_grad_()
    moved = add_margins(logits, target, margins.held(table, "reversal"))
    total = functional.cross_entropy(moved[0], target[0]) + penalty * wrong(table).square().mean()
    (slope,) = torch.autograd.grad(total, table)
    assert wrong(slope).abs().max() < 1e-9
    assert wrong(table).min() > 0 and wrong(table).std() > 0.01
