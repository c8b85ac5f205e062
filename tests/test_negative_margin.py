"""Negative Margin: the worked example, the identities of its loss, and what is thrown away."""

import math

import pytest
import torch
from test_methods import SMALL, maps_of, mixed
from torch.nn import functional

from fslib.losses.margin import lower_true
from fslib.methods import build_method

COSINES = torch.tensor([[0.30, 0.25, 0.10]], dtype=torch.float64)
TRUE = torch.tensor([1])


@pytest.mark.parametrize(
    ("margin", "expected"),
    [(0.05, 3.050946), (0.0, 1.703438), (-0.05, 0.694386), (-0.10, 0.201865), (-0.30, 0.000554)],
)
def test_the_loss_by_hand_and_in_closed_form(margin, expected):
    logits = lower_true(COSINES, TRUE, 30, margin)
    made = functional.cross_entropy(logits, TRUE).item()
    assert made == pytest.approx(expected, abs=1e-6)
    p = (30 * COSINES).softmax(1)[0, 1].item()
    assert made == pytest.approx(math.log(1 + math.exp(30 * margin) * (1 - p) / p))
    # With m = -0.10 a wrong answer counts as right in a log of training with margin.
    assert (logits.argmax().item() == 1) == (margin <= -0.1)


def test_a_negative_margin_saturates_earlier():
    """Factor of the true logit's gradient against m = 0, at p = 0.5."""
    for product, factor in [(-1.5, 0.365), (-0.6, 0.709), (-0.3, 0.851), (1.25, 1.555)]:
        similarity = torch.zeros(1, 2, dtype=torch.float64, requires_grad=True)
        logits = lower_true(similarity, TRUE, 1.0, product)
        functional.cross_entropy(logits, TRUE).backward()
        assert -similarity.grad[0, 1].item() / 0.5 == pytest.approx(factor, abs=1e-3)
        assert similarity.grad.sum().item() == pytest.approx(0, abs=1e-12)


def test_far_below_zero_nothing_is_learned():
    similarity = COSINES.clone().requires_grad_()
    value = functional.cross_entropy(lower_true(similarity, TRUE, 30, -5.0), TRUE)
    value.backward()
    assert value.item() < 1e-12 and similarity.grad.abs().max() < 1e-12


@pytest.mark.parametrize("kind", ["cosine", "dot"])
def test_the_methods_loss_and_its_true_accuracy(kind):
    torch.manual_seed(0)
    method = build_method("negative_margin", **SMALL, similarity=kind, margin=-0.3)
    batch = mixed()
    made = method.loss(batch, 0.5)
    z, w = maps_of(method, batch.images).mean((2, 3)), method.weight
    scale = {"cosine": 30, "dot": 5}[kind]
    s = functional.normalize(z, dim=1) @ functional.normalize(w, dim=1).T
    s = s if kind == "cosine" else z @ w.T
    shifted = torch.stack([row + 0.3 * (torch.arange(6) == y) for row, y in zip(s, batch.labels)])  # noqa: B905
    expected = -(scale * shifted).log_softmax(1)[torch.arange(5), batch.labels].mean()
    torch.testing.assert_close(made["loss"], expected)
    assert made["base_accuracy"] == 100 * (s.argmax(1) == batch.labels).float().mean()
    assert made["accuracy_with_margin"] >= made["base_accuracy"]
    made["loss"].backward()
    assert method.backbone.blocks[0][0].weight.grad.abs().sum() > 0
    assert method.weight.abs().max() <= 4**-0.5


def test_cosines_ignore_the_length_of_a_feature_and_dot_products_do_not(normal):
    features = normal(3, 4)
    for kind in ("cosine", "dot"):
        method = build_method("negative_margin", **SMALL, similarity=kind)
        once, twice = method.similarity(features), method.similarity(2 * features)
        if kind == "cosine":
            torch.testing.assert_close(once, twice)
            assert once.abs().max() <= 1
        else:
            torch.testing.assert_close(2 * once, twice)


def test_the_scores_do_not_depend_on_the_margin(normal):
    support, query = normal(2, 5, 1, 4), normal(2, 6, 4)
    scores = []
    for margin in (-0.5, 0.0, 0.5):
        torch.manual_seed(0)
        method = build_method("negative_margin", **SMALL, margin=margin)
        scores.append(method.score(support, query))
    assert torch.equal(scores[0], scores[1]) and torch.equal(scores[0], scores[2])


def test_an_unknown_similarity_is_refused():
    with pytest.raises(ValueError, match="choose one of cosine, dot"):
        build_method("negative_margin", **SMALL, similarity="softmax")
