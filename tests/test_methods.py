"""The baselines' losses against loops over episodes, queries and positions."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fslib.methods import Batch, Episodic, MixedClasses, build_method
from fslib.methods.base import percent_right

SMALL = {"backbone": "conv4", "backbone_options": {"width": 4}, "classes": 6}


def maps_of(method, images: Tensor) -> Tensor:
    """Feature maps in training mode, as the loss computes them."""
    return method.backbone((images - method.mean[:, None, None]) / method.std[:, None, None])


def gradients(method, loss: Tensor) -> dict[str, Tensor]:
    parameters = dict(method.named_parameters())
    found = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
    return {k: g for k, g in zip(parameters, found, strict=True) if g is not None}


def same_gradients(method, first: Tensor, second: Tensor) -> None:
    a, b = gradients(method, first), gradients(method, second)
    assert a.keys() == b.keys() and any(k.startswith("backbone") for k in a)
    assert a["backbone.blocks.0.0.weight"].abs().sum() > 0  # the first layer learns
    for key in a:
        torch.testing.assert_close(a[key], b[key], rtol=1e-3, atol=2e-5)


def mixed(side: int = 32, batch: int = 5) -> Batch:
    images = torch.rand(batch, 3, side, side, generator=torch.Generator().manual_seed(0))
    return Batch(images, torch.tensor([0, 5, 2, 2, 1])[:batch], MixedClasses(batch))


def test_the_largest_logit_is_right_or_not():
    logits = torch.tensor([[[2.0, 1], [0, 1], [3, 0], [1, 0]]], requires_grad=True)
    right = percent_right(logits, torch.tensor([[0, 1, 1, 0]]))
    assert right == 75 and not right.requires_grad


@pytest.mark.parametrize("point_wise", [False, True])
def test_cross_entropy_is_the_mean_over_images_and_positions(point_wise):
    torch.manual_seed(0)
    method = build_method("ce", **SMALL, point_wise=point_wise)
    batch = mixed()
    made = method.loss(batch, 0.5)
    maps = maps_of(method, batch.images)
    assert maps.shape == (5, 4, 2, 2)
    weight, bias = method.classifier.weight[:, :, 0, 0], method.classifier.bias
    terms, right = [], 0
    for one, label in zip(maps, batch.labels, strict=True):
        points = one.flatten(1).T if point_wise else one.mean((1, 2))[None]
        logits = [weight @ point + bias for point in points]
        for z in logits:
            terms.append(z.logsumexp(0) - z[label])
        right += int(sum(logits).argmax() == label)
    naive = torch.stack(terms).mean()
    torch.testing.assert_close(made["loss"], naive)
    assert made["base_accuracy"].item() == pytest.approx(100 * right / 5)
    same_gradients(method, made["loss"], naive)


def test_point_wise_on_a_single_position_is_plain_cross_entropy():
    losses = []
    for point_wise in (False, True):
        torch.manual_seed(0)
        method = build_method("ce", **SMALL, point_wise=point_wise)
        losses.append(method.loss(mixed(side=16), 0.0)["loss"])
    assert losses[0].item() == pytest.approx(losses[1].item(), rel=1e-6)


def test_an_untrained_classifier_is_near_chance_and_starts_without_bias():
    torch.manual_seed(0)
    method = build_method("ce", **SMALL)
    assert (method.classifier.bias == 0).all()
    nn.init.zeros_(method.classifier.weight)
    assert method.loss(mixed(), 0.0)["loss"].item() == pytest.approx(math.log(6))


def episodes(form: Episodic, side: int = 32) -> Batch:
    images = torch.rand(form.images, 3, side, side, generator=torch.Generator().manual_seed(1))
    return Batch(images, torch.zeros(form.images, dtype=torch.long), form)


def naive_protonet(maps: Tensor, form: Episodic, mode: str) -> tuple[Tensor, float]:
    """Loss and accuracy, one episode, query and position at a time."""
    table = maps.reshape(form.count, form.way, form.shot + form.query, *maps.shape[1:])
    terms, right = [], []
    for episode in table:
        prototypes = []
        for w in range(form.way):
            shots = [episode[w, s] for s in range(form.shot)]
            vectors = [s.flatten() if mode == "flatten" else s.mean((1, 2)) for s in shots]
            prototypes.append(sum(vectors) / form.shot)
        for w in range(form.way):
            for q in range(form.query):
                image = episode[w, form.shot + q]
                if mode == "points":
                    points = list(image.flatten(1).T)
                else:
                    points = [image.flatten() if mode == "flatten" else image.mean((1, 2))]
                logits = [
                    torch.stack([-((point - p) ** 2).sum() for p in prototypes]) for point in points
                ]
                terms += [z.logsumexp(0) - z[w] for z in logits]
                right.append(int(sum(logits).argmax()) == w)
    return torch.stack(terms).mean(), 100 * sum(right) / len(right)


@pytest.mark.parametrize("mode", ["mean", "flatten", "points"])
def test_protonets_loss_equals_the_loop_over_several_episodes(mode):
    torch.manual_seed(0)
    form = {"way": 3, "shot": 2, "query": 2, "count": 2}
    options = {"point_wise": True} if mode == "points" else {"pool": mode}
    method = build_method("protonet", **SMALL, **form, **options)
    batch = episodes(method.batches)
    assert method.batches.images == 24 == len(batch.images)
    made = method.loss(batch, 0.5)
    naive, accuracy = naive_protonet(maps_of(method, batch.images), method.batches, mode)
    torch.testing.assert_close(made["loss"], naive, rtol=1e-4, atol=1e-5)
    assert made["episode_accuracy"].item() == pytest.approx(accuracy)
    same_gradients(method, made["loss"], naive)


def test_permuting_the_ways_of_an_episode_leaves_protonets_loss():
    torch.manual_seed(0)
    method = build_method("protonet", **SMALL, way=3, shot=1, query=2, point_wise=True)
    batch = episodes(method.batches)
    table = batch.images.unflatten(0, (3, 3))[[2, 0, 1]].flatten(0, 1)
    permuted = Batch(table, batch.labels, batch.form)
    torch.testing.assert_close(
        method.loss(batch, 0)["loss"], method.loss(permuted, 0)["loss"], rtol=1e-5, atol=1e-5
    )


def test_the_losses_keep_their_digits_in_mixed_precision():
    """Distances are differences of large numbers; only the convolutions may be rounded."""
    torch.manual_seed(0)
    method = build_method("protonet", **SMALL, way=3, shot=2, query=2)
    batch = episodes(method.batches)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        made = method.loss(batch, 0)["loss"]
        maps = maps_of(method, batch.images).float()
    naive, _ = naive_protonet(maps, method.batches, "flatten")
    assert made.dtype == torch.float32
    torch.testing.assert_close(made, naive, rtol=1e-4, atol=1e-5)


def test_a_batch_is_cut_into_support_and_query():
    form = Episodic(way=3, shot=2, query=1, count=2)
    support, query = Batch(torch.empty(0), torch.empty(0), form).episodes(torch.arange(18))
    assert support.tolist() == [[[0, 1], [3, 4], [6, 7]], [[9, 10], [12, 13], [15, 16]]]
    assert query.tolist() == [[[2], [5], [8]], [[11], [14], [17]]]


@pytest.mark.parametrize(("name", "pool"), [("ce", "mean"), ("protonet", "flatten")])
def test_features_are_embedded_alone_and_scored_by_the_methods_own_head(name, pool):
    torch.manual_seed(0)
    method = build_method(name, **SMALL).eval()
    pixels = torch.randint(0, 256, (7, 3, 32, 32), dtype=torch.uint8)
    maps = method.embed(pixels)
    assert maps.shape == (7, 4, 2, 2) and method.head.pool == pool
    assert method.head.normalise == (name == "ce")
    torch.testing.assert_close(maps[2:3], method.embed(pixels[2:3]), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(maps, method.embed(pixels.float() / 255), rtol=1e-4, atol=1e-5)
    features = method.test_features(maps).detach().numpy()
    support, query = features[None, :4].reshape(1, 2, 2, -1), features[None, 4:]
    logits = method.score(torch.from_numpy(support), torch.from_numpy(query)).numpy()
    means = support[0].mean(1)
    expected = [[-((q - m) ** 2).sum() for m in means] for q in query[0]]
    np.testing.assert_allclose(logits[0], expected, rtol=1e-4, atol=1e-5)


def test_protonet_pools_as_its_backbone_does_unless_told():
    assert build_method("protonet", **SMALL).head.pool == "flatten"
    slim = {"backbone": "resnet12", "backbone_options": {"widths": (2, 2, 2, 2)}}
    assert build_method("protonet", **slim).head.pool == "mean"
    assert build_method("protonet", **slim, pool="flatten").head.pool == "flatten"


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("maml", {}, "unknown method 'maml': choose one of ce, protonet"),
        ("ce", {"way": 5}, "method 'ce' does not take these options: .*'way'"),
        ("dmf", {"depth": 3}, "method 'dmf' does not take these options: .*'depth'"),
        ("ce", {"backbone": "vgg"}, "unknown backbone 'vgg'"),
        ("ce", {"backbone_options": {"depth": 3}}, "backbone 'conv4' does not take these"),
        ("protonet", {"pool": "max"}, "unknown pool 'max'"),
    ],
)
def test_wrong_names_and_options_are_refused(name, options, message):
    with pytest.raises(ValueError, match=message):
        build_method(name, **options)
