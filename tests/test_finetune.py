"""Batched fine-tuning against torch's own SGD, one episode at a time."""

import time

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from fslib import evaluate as evaluation
from fslib.heads.finetune import FINE_TUNED, FineTuned
from fslib.methods import build_method


def one_by_one(
    support: Tensor, labels: Tensor, weights: Tensor, orders: Tensor, cosine: bool
) -> Tensor:
    made = []
    for z, start, order in zip(support, weights, orders, strict=True):
        w = nn.Parameter(start.clone())
        sgd = torch.optim.SGD([w], lr=0.01, momentum=0.9, dampening=0.9, weight_decay=1e-3)
        for one_pass in order:
            for chosen in one_pass.split(4):
                logits = 5 * (
                    functional.normalize(z[chosen], dim=1) @ functional.normalize(w, dim=1).T
                    if cosine
                    else z[chosen] @ w.T
                )
                sgd.zero_grad()
                functional.cross_entropy(logits, labels[chosen]).backward()
                sgd.step()
        made.append(w.detach())
    return torch.stack(made)


@pytest.mark.parametrize("cosine", [True, False])
@pytest.mark.parametrize("shot", [1, 2])  # batches of 4 + 1, and of 4 + 4 + 2
def test_batched_training_equals_one_episode_at_a_time(normal, cosine, shot):
    episodes, n = 2, 5 * shot
    support, weights = normal(episodes, n, 30).relu(), 0.2 * normal(episodes, 5, 30)
    orders = torch.stack([torch.stack([torch.randperm(n) for _ in range(8)]) for _ in range(2)])
    labels = torch.arange(5).repeat_interleave(shot)
    head = FineTuned(metric="cosine" if cosine else "dot")
    made = head.tune(support, labels, weights, orders)
    expected = one_by_one(support, labels, weights, orders, cosine)
    torch.testing.assert_close(made, expected, rtol=0, atol=1e-5)
    assert (made - weights).abs().max() > 0.01


@pytest.mark.parametrize("metric", ["cosine", "dot"])
def test_the_scores_are_those_of_training_in_all_dimensions(normal, metric):
    head = FineTuned(metric=metric, passes=5)
    support, query = normal(2, 3, 2, 40).relu(), normal(2, 4, 40).relu()
    scores = head.score(support, query)
    generator = torch.Generator().manual_seed(0)
    weights = (2 * torch.rand((2, 3, 40), generator=generator) - 1) / 40**0.5
    orders = torch.rand((2, 5, 6), generator=generator).argsort(-1)
    labels = torch.arange(3).repeat_interleave(2)
    w = head.tune(support.flatten(1, 2), labels, weights, orders)
    if metric == "cosine":
        w, query = functional.normalize(w, dim=-1), functional.normalize(query, dim=-1)
        assert scores.abs().max() <= 5
    torch.testing.assert_close(scores, 5 * query @ w.transpose(1, 2), rtol=1e-4, atol=1e-4)
    again = head.score(support, query if metric == "dot" else 3 * query)
    torch.testing.assert_close(again, scores)


def test_scores_do_not_depend_on_how_many_episodes_are_scored_at_a_time(
    normal, coloured_sets, monkeypatch
):
    images = coloured_sets["test"]
    method, maps = build_method("ce", classes=4), normal(len(images), 6, 1, 1)
    head = FineTuned(passes=2)
    table = evaluation.draw_episodes(images.labels, 7, 3, 2, 4)
    features = head.features(maps)
    together = head.score(features[table.support], features[table.query.flatten(1)])
    right = together.argmax(-1) == torch.arange(3).repeat_interleave(4)
    for chunk in (10**6, 3 * 18 * 6):  # all seven episodes, or three
        monkeypatch.setattr(evaluation, "CHUNK", chunk)
        scores = evaluation.evaluate(method, images, 2, 3, 4, 7, head=head, maps=maps)
        assert scores.correct.tolist() == right.sum(1).tolist()


def test_dampening_starts_without_a_lag():
    """A constant gradient moves the weights as plain SGD would: 50 steps of 0.01."""
    w = nn.Parameter(torch.zeros(1))
    sgd = torch.optim.SGD([w], lr=0.01, momentum=0.9, dampening=0.9)
    for _ in range(50):
        sgd.zero_grad()
        w.sum().backward()
        sgd.step()
    assert w.item() == pytest.approx(-0.5, abs=1e-5)


def test_the_heads_learn_their_support_and_refuse_unknown_names(normal):
    support = functional.one_hot(torch.arange(5), 8).float().view(1, 5, 1, 8)
    for head in FINE_TUNED.values():
        assert head.score(support, support[:, :, 0]).argmax(-1).tolist() == [[0, 1, 2, 3, 4]]
        assert head.features(normal(2, 3, 4, 4)).shape == (2, 3)
    with pytest.raises(ValueError, match="metric cosine or dot"):
        FineTuned(metric="euclidean")


def test_hundreds_of_episodes_take_a_second(normal):
    support, query = normal(100, 5, 1, 64), normal(100, 5, 64)
    begin = time.process_time()
    FineTuned().score(support, query)
    assert time.process_time() - begin < 5
