"""Scoring: the fast path against one forward pass an episode, and the statistics behind ±."""

import contextlib

import numpy as np
import pytest
import torch
from scipy import stats

from fslib import evaluate as evaluation
from fslib.episodes import TooFewImages, draw_episodes
from fslib.evaluate import (
    Scores,
    embed_images,
    evaluate,
    interval,
    paired_difference,
    score_episodes,
)
from fslib.heads import HEADS
from fslib.methods import build_method


@pytest.fixture(params=["ce", "protonet"])
def method(request):
    torch.manual_seed(0)
    made = build_method(request.param, backbone_options={"width": 8}, classes=5)
    # Running statistics that are not those of a fresh layer.
    made.train().backbone(torch.rand(16, 3, 16, 16))
    return made.eval()


def test_embedding_once_equals_a_forward_pass_an_episode(method, coloured_sets):
    images = coloured_sets["test"].resized(32)  # maps of 2 x 2
    table = draw_episodes(images.labels, 20, way=4, shot=3, query=5, seed=1)
    maps = embed_images(method, images, batch_size=50, precision="32-true")
    assert maps.shape == (120, 8, 2, 2) and maps.dtype == torch.float32
    fast = torch.cat(list(score_episodes(method, method.test_features(maps), table)))
    assert fast.shape == (20, 20, 4)
    correct = []
    for e in range(20):
        with torch.no_grad():
            alone = method.embed(images.images[table.index[e].flatten()])
        features = method.test_features(alone).view(4, 8, -1)
        slow = method.score(features[None, :, :3], features[:, 3:].flatten(0, 1)[None])[0]
        torch.testing.assert_close(fast[e], slow, atol=1e-4, rtol=1e-4)
        correct.append(int((slow.argmax(-1) == torch.arange(4).repeat_interleave(5)).sum()))
    scores = evaluate(method, images, 3, 4, 5, 20, seed=1, maps=maps)
    assert scores.correct.tolist() == correct
    assert (scores.queries, scores.way, scores.shot, scores.seed) == (20, 4, 3, 1)
    assert np.array_equal(scores.accuracy, np.array(correct) * 5.0)


@pytest.mark.parametrize("name", ["ce", "dmf", "am3", "dynamic_fsl"])
def test_a_method_on_another_device_is_given_all_it_scores_there(name, coloured_sets, monkeypatch):
    """The device `meta` holds no numbers, but like a GPU it refuses tensors of the CPU."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())  # not there
    images = coloured_sets["test"]
    options = {"am3": {"words": 7}, "dmf": {"groups": 4}}.get(name, {})
    away = build_method(name, backbone_options={"width": 8}, classes=5, **options).eval()
    maps = embed_images(away, images.resized(64), precision="32-true")
    away = away.to("meta")
    if name == "dynamic_fsl":
        away.stage = torch.tensor(2)  # it is asked for its value
    table = draw_episodes(images.labels, 20, way=4, shot=3, query=5, seed=1)
    features = evaluation._own_features(away, maps)
    logits = score_episodes(away, features, table, semantics=torch.rand(5, 7))
    assert [(part.device.type, part.shape[1:]) for part in logits] == [("meta", (20, 4))]


def test_stretches_of_any_length_give_the_same_scores(method, coloured_sets, monkeypatch):
    images = coloured_sets["test"]
    maps = embed_images(method, images)
    whole = evaluate(method, images, 2, 3, 4, 101, maps=maps)
    monkeypatch.setattr("fslib.evaluate.CHUNK", 18 * 8 * 10)  # 10 episodes at a time
    stretches = evaluate(method, images, 2, 3, 4, 101, maps=maps)
    assert np.array_equal(whole.correct, stretches.correct) and len(whole.correct) == 101


def test_embedding_leaves_the_method_as_it_was(method, coloured_sets):
    method.train()
    before = {key: value.clone() for key, value in method.state_dict().items()}
    maps = embed_images(method, coloured_sets["test"].images, batch_size=32)
    assert method.training and not maps.requires_grad and not maps.is_inference()
    assert all(torch.equal(before[k], v) for k, v in method.state_dict().items())
    method.eval()
    torch.testing.assert_close(maps, embed_images(method, coloured_sets["test"]))
    with pytest.raises(ValueError, match="no images to embed"):
        embed_images(method, coloured_sets["test"].images[:0])


def test_known_features_give_known_scores(method, coloured_sets):
    """Maps that are the class itself are always right; one class in the place of another never."""
    images = coloured_sets["test"]
    maps = torch.eye(5)[images.labels][:, :, None, None]
    assert evaluate(method, images, maps=maps, episodes=50).mean == 100
    assert evaluate(method, images, maps=maps, episodes=50).ci95 == 0
    maps[images.labels == 1] = maps[images.labels == 0][0]
    scores = evaluate(method, images, maps=maps, episodes=50)
    # A tie goes to the first way, so exactly one of the two classes is wrong.
    assert set(scores.accuracy.tolist()) == {80.0}


def test_another_head_and_a_centred_one(method, coloured_sets):
    images, base = coloured_sets["test"], coloured_sets["train"]
    maps = embed_images(method, images)
    own = evaluate(method, images, maps=maps, episodes=200)
    name = {"mean": "l2n", "flatten": "flat"}[method.head.pool]
    assert np.array_equal(
        evaluate(method, images, maps=maps, episodes=200, head=HEADS[name]).correct, own.correct
    )
    head = HEADS["centred"]
    mean = head.raw_features(embed_images(method, base)).mean(0)
    centred = evaluate(method, images, maps=maps, episodes=200, head=head, base_mean=mean)
    assert not np.array_equal(centred.correct, own.correct)
    with pytest.raises(ValueError, match="needs the mean feature"):
        evaluate(method, images, maps=maps, head=head)


def test_episodes_that_cannot_be_are_refused(method, coloured_sets):
    with pytest.raises(ValueError, match="6-way episode needs 6 classes and there are 5"):
        evaluate(method, coloured_sets["test"], way=6)
    with pytest.raises(TooFewImages, match=r"class test0 has 24 images, an episode needs 25 \(10"):
        evaluate(method, coloured_sets["test"], shot=10)


def test_the_interval_is_scipys(generator):
    values = torch.randn(37, generator=generator).numpy()
    mean, half = interval(values)
    low, high = stats.t.interval(0.95, 36, loc=values.mean(), scale=stats.sem(values))
    assert (mean - half, mean + half) == pytest.approx((low, high), rel=1e-5)
    assert interval([2.0, 4.0])[1] == pytest.approx(12.706204736)  # t of one degree of freedom
    mean, half = interval([3.0])
    assert mean == 3 and np.isnan(half)


def test_the_interval_holds_the_truth_95_times_in_100():
    draws = np.random.default_rng(0).binomial(15, 0.6, (2000, 40)) / 15
    held = [abs(mean - 0.6) <= half for mean, half in map(interval, draws)]
    assert np.mean(held) == pytest.approx(0.95, abs=0.015)


def scores(correct, **changes) -> Scores:
    settings = {"queries": 10, "way": 5, "shot": 1, "seed": 0} | changes
    return Scores(np.asarray(correct), **settings)


def test_a_paired_difference_is_the_interval_of_the_differences():
    rng = np.random.default_rng(1)
    hard = rng.integers(2, 8, 300)  # the episode's own difficulty, which both methods meet
    first, second = scores(hard + rng.integers(0, 3, 300)), scores(hard + rng.integers(0, 2, 300))
    difference, half = paired_difference(first, second)
    test = stats.ttest_rel(first.accuracy, second.accuracy).confidence_interval(0.95)
    assert (difference - half, difference + half) == pytest.approx((test.low, test.high))
    assert difference == pytest.approx(first.mean - second.mean)
    assert half < 0.6 * (first.ci95**2 + second.ci95**2) ** 0.5  # what unpaired would give
    assert paired_difference(second, first)[0] == pytest.approx(-difference)
    assert paired_difference(first, first) == (0, 0)


@pytest.mark.parametrize("other", [{"seed": 1}, {"shot": 5}, {"way": 2}, {"queries": 20}])
def test_other_episodes_are_never_paired(other):
    with pytest.raises(ValueError, match="scores of different episodes cannot be paired"):
        paired_difference(scores([1, 2]), scores([1, 2], **other))
    with pytest.raises(ValueError, match="cannot be paired"):
        paired_difference(scores([1, 2]), scores([1, 2, 3]))


def test_scores_print_as_the_literature_prints_them():
    assert str(scores([6, 8, 7, 7])) == f"70.00 ± {interval([60, 80, 70, 70])[1]:.2f}"


def test_a_network_is_asked_once_for_the_same_images(coloured_sets, monkeypatch):
    asked = []
    monkeypatch.setattr(
        evaluation, "embed_images", lambda *a, **k: asked.append(1) or torch.ones(9)
    )
    images = coloured_sets["test"]
    first = evaluation.embed_recent("run a", None, images)
    assert evaluation.embed_recent("run a", None, images) is first and len(asked) == 1
    evaluation.embed_recent("run b", None, images)
    evaluation.embed_recent("run a", None, images, "blur")
    evaluation.embed_recent("run a", None, coloured_sets["val"])
    evaluation.embed_recent("run a", None, images.subset(per_class=4))
    evaluation.embed_recent("run a", None, images.subset(classes=[0, 1, 2, 3]))
    evaluation.embed_recent("run a", None, images.subset(classes=[1, 2, 3, 4]))
    assert len(asked) == 7


def test_only_as_many_maps_are_remembered_as_fit(coloured_sets, monkeypatch):
    monkeypatch.setattr(evaluation, "RECENT_BYTES", 100)
    monkeypatch.setattr(evaluation, "embed_images", lambda *a, **k: torch.ones(20))  # 80 bytes
    images = coloured_sets["test"]
    first = evaluation.embed_recent("run c", None, images)
    evaluation.embed_recent("run d", None, images)
    assert len(evaluation._RECENT) == 1
    assert evaluation.embed_recent("run c", None, images) is not first
