"""Test features and classifiers, each against a loop over episodes and queries."""

import dataclasses

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from fslib.heads import HEADS, Head, squared_distance


def features_of(head: Head, maps: Tensor, base_mean: np.ndarray | None = None) -> np.ndarray:
    """Test features one image at a time in float64."""
    rows = []
    for one in maps.double().numpy():
        if head.power != 1:
            one = np.maximum(one, 0) ** head.power
        row = one.mean((1, 2)) if head.pool == "mean" else one.reshape(-1)
        if head.centre:
            row = row - base_mean
        rows.append(row / np.linalg.norm(row) if head.normalise else row)
    return np.stack(rows)


def scores_of(head: Head, support: np.ndarray, query: np.ndarray) -> np.ndarray:
    """Logits one episode, query and way at a time."""
    episodes, way, shot, d = support.shape
    logits = np.zeros((episodes, query.shape[1], way))
    for e in range(episodes):
        if head.kind == "regression":
            model = LogisticRegression(max_iter=5000, tol=1e-8)
            model.fit(support[e].reshape(way * shot, d), np.repeat(np.arange(way), shot))
            logits[e] = model.predict_log_proba(query[e])
            continue
        for i, q in enumerate(query[e]):
            for w in range(way):
                mean = support[e, w].mean(0)
                if head.metric == "cosine":
                    logits[e, i, w] = q @ mean / np.linalg.norm(q) / np.linalg.norm(mean)
                else:
                    logits[e, i, w] = -((q - mean) ** 2).sum()
    return logits


@pytest.fixture
def maps(normal):
    """Maps of 4 episodes x 3 ways x (2 support + 3 query) images, and the mean of others."""
    return normal(4 * 3 * 5, 6, 2, 3) + 0.3, normal(40, 6, 2, 3)


@pytest.mark.parametrize("name", sorted(HEADS))
def test_every_head_equals_its_loop(maps, name):
    head, (images, others) = HEADS[name], maps
    mean = head.raw_features(others).mean(0) if head.centre else None
    made = head.features(images, mean)
    plain = dataclasses.replace(head, normalise=False, centre=False)
    base = features_of(plain, others).mean(0) if head.centre else None
    naive = features_of(head, images, base)
    np.testing.assert_allclose(made.numpy(), naive, atol=2e-6)

    table = made.unflatten(0, (4, 3, 5))
    logits = head.score(table[:, :, :2], table[:, :, 2:].flatten(1, 2))
    expected = scores_of(
        head,
        naive.reshape(4, 3, 5, -1)[:, :, :2],
        naive.reshape(4, 3, 5, -1)[:, :, 2:].reshape(4, 9, -1),
    )
    assert logits.shape == (4, 9, 3)
    # The fit stops at scikit-learn's usual tolerance; everything else is arithmetic.
    tolerance = 5e-3 if head.kind == "regression" else 1e-5
    np.testing.assert_allclose(logits.numpy(), expected, atol=tolerance, rtol=1e-5)
    np.testing.assert_array_equal(logits.argmax(-1).numpy(), expected.argmax(-1))


@pytest.mark.parametrize("name", sorted(HEADS))
def test_permuting_the_ways_permutes_the_logits(maps, name, generator):
    head, (images, others) = HEADS[name], maps
    made = head.features(images, head.raw_features(others).mean(0)).unflatten(0, (4, 3, 5))
    support, query = made[:, :, :2], made[:, :, 2:].flatten(1, 2)
    order = torch.tensor([2, 0, 1])
    tolerance = 5e-3 if head.kind == "regression" else 1e-5
    torch.testing.assert_close(
        head.score(support[:, order], query),
        head.score(support, query)[..., order],
        atol=tolerance,
        rtol=1e-4,
    )


@pytest.mark.parametrize("shape", [(4, 1, 50), (3, 5, 4), (2, 2, 9)])
def test_regression_in_the_span_of_the_support_is_regression(normal, shape):
    """Also where there are more support images than dimensions, and where some coincide."""
    way, shot, d = shape
    support, query = normal(2, way, shot, d), normal(2, 7, d)
    support[0, 0, 0] = support[0, 1, 0]
    logits = Head("regression").score(support, query)
    expected = scores_of(Head("regression"), support.double().numpy(), query.double().numpy())
    np.testing.assert_allclose(logits.exp().numpy(), np.exp(expected), atol=2e-3)
    assert torch.allclose(logits.exp().sum(-1), torch.ones(2, 7), atol=1e-5)


@pytest.mark.parametrize("offset", [0.0, 1000.0])
@pytest.mark.parametrize("d", [3, 16_000])
def test_squared_distance_equals_float64(normal, offset, d):
    """Far from the origin |q|^2 + |c|^2 - 2 q.c alone would lose every digit."""
    query, prototypes = normal(2, 6, d) + offset, normal(2, 4, d) + offset
    made = squared_distance(query, prototypes)
    exact = (query.double()[:, :, None] - prototypes.double()[:, None]).square().sum(-1)
    torch.testing.assert_close(made.double(), exact, rtol=1e-5, atol=1e-4)


def test_squared_distance_keeps_its_digits_under_autocast(normal):
    """Mixed precision rounds products to 3 digits, which a difference would not survive."""
    query, prototypes = normal(20, 64), normal(5, 64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        made = squared_distance(query, prototypes)
    exact = (query.double()[:, None] - prototypes.double()).square().sum(-1)
    torch.testing.assert_close(made.double(), exact, rtol=1e-5, atol=1e-4)


def test_squared_distance_of_a_point_to_itself_is_zero_and_has_a_gradient(normal):
    prototypes = normal(3, 8).requires_grad_()
    distance = squared_distance(prototypes.detach().clone(), prototypes)
    assert (distance.diagonal() < 1e-5).all() and (distance >= 0).all()
    double = normal(2, 5, 4).double().requires_grad_(), normal(2, 3, 4).double().requires_grad_()
    assert torch.autograd.gradcheck(squared_distance, double)


def test_the_square_root_worked_by_hand():
    """From x = (4, -1, 0, 9) and y = (1, 2, -3, 4) to a squared distance of 4 (raw 52)."""
    maps = torch.tensor([[4.0, -1, 0, 9], [1, 2, -3, 4]]).view(2, 4, 1, 1)
    root = HEADS["sqrt"].features(maps)
    torch.testing.assert_close(root[0], torch.tensor([2.0, 0, 0, 3]))
    torch.testing.assert_close(root[1], torch.tensor([1.0, 2**0.5, 0, 2]))
    assert squared_distance(root[:1], root[1:]).item() == pytest.approx(4, abs=1e-5)
    raw = HEADS["flat"].features(maps)
    assert squared_distance(raw[:1], raw[1:]).item() == pytest.approx(52)


def test_on_unit_vectors_the_nearest_and_the_most_similar_of_one_shot_agree(normal):
    support = torch.nn.functional.normalize(normal(3, 4, 1, 6), dim=-1)
    query = torch.nn.functional.normalize(normal(3, 5, 6), dim=-1)
    squared, cosine = Head().score(support, query), HEADS["cosine"].score(support, query)
    torch.testing.assert_close(squared, 2 * cosine - 2)


def test_wrong_names_and_a_missing_mean_are_refused(normal):
    with pytest.raises(ValueError, match="unknown kind 'svm': choose one of centroid, regression"):
        Head("svm")
    with pytest.raises(ValueError, match="unknown pool 'max'"):
        Head(pool="max")
    with pytest.raises(ValueError, match="unknown metric 'l1'"):
        Head(metric="l1")
    with pytest.raises(ValueError, match="needs the mean feature of the base classes"):
        HEADS["centred"].features(normal(2, 3, 1, 1))
