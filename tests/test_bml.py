"""BML against loops over episodes, queries and positions, and what reaches which view."""

import math

import pytest
import torch
from torch import Tensor

from benchmarks.bml import against_loop, looped_loss
from fslib.backbones import build_backbone
from fslib.evaluate import evaluate
from fslib.losses.mutual import mutual_loss
from fslib.methods import Batch, Episodic, build_method
from fslib.methods.bml import match_positions
from fslib.runs import Config
from fslib.train import fit

SMALL = {"backbone": "conv4", "backbone_options": {"width": 4}, "classes": 6}
FORM = {"way": 3, "shot": 2, "query": 2}


def made(**options):
    torch.manual_seed(0)
    return build_method("bml", **SMALL, **(FORM | options))


def batch_of(form: Episodic, side: int = 32) -> Batch:
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(form.images, 3, side, side, generator=generator)
    episode = torch.arange(form.way).repeat_interleave(form.shot + form.query)
    return Batch(images, (episode + 2).repeat(form.count), form)


def reached(method, value: Tensor) -> dict[str, bool]:
    """Which parts a term sends a gradient to."""
    method.zero_grad()
    value.backward(retain_graph=True)
    parts = {
        "shared": method.backbone.blocks[:-1],
        "global": method.backbone.blocks[-1],
        "local": method.local_block,
        "classifier": method.classifier,
    }
    return {
        name: any(p.grad is not None and bool(p.grad.any()) for p in part.parameters())
        for name, part in parts.items()
    }


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"elastic_gate": False},
        {"proto_per_position": True},
        {"alpha1": 0.0},
        {"alpha1": 4.0, "alpha2": 0.25, "proto_per_position": True, "elastic_gate": False},
    ],
)
def test_the_local_loss_equals_the_loop_over_episodes_queries_and_positions(options, normal):
    method = made(count=2, **options)
    form, batch = method.batches, batch_of(method.batches)
    maps = normal(form.images, 5, 2, 3).requires_grad_()
    parts = method.local_loss(maps, batch, 0.8)
    naive = torch.stack([looped_loss(m, form, 0.8, method) for m in maps.chunk(2)]).mean()
    torch.testing.assert_close(parts["local_loss"], naive)
    ours, theirs = (torch.autograd.grad(v, maps)[0] for v in (parts["local_loss"], naive))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)
    assert ours.any() and 0 < parts["gate_open"] < 100


def test_the_benchmark_compares_the_same_losses():
    faster, difference = against_loop((8, 1, 1), rounds=1)
    assert faster > 0 and 0 <= difference < 1e-5


def test_the_loss_is_the_weighted_sum_of_its_parts():
    method = made(temperature=2.0, global_weight=3.0, local_weight=0.25, mutual_weight=7.0)
    batch = batch_of(method.batches)
    parts = method.loss(batch, 0.5)
    maps = method.views(batch.images)
    weight, bias = method.classifier.weight[:, :, 0, 0], method.classifier.bias
    terms = []
    for image, label in zip(maps[0], batch.labels, strict=True):
        for point in image.flatten(1).T:
            logits = weight @ point + bias
            terms.append(logits.logsumexp(0) - logits[label])
    expected = {
        "global_loss": torch.stack(terms).mean(),
        "local_loss": looped_loss(maps[1], method.batches, 0.5, method),
        "mutual_loss": mutual_loss(*(m.mean((2, 3)) for m in maps), 2.0),
    }
    for name, value in expected.items():
        torch.testing.assert_close(parts[name], value, rtol=1e-4, atol=1e-5)
    total = sum(w * v for w, v in zip((3.0, 0.25, 7.0), expected.values(), strict=True))
    torch.testing.assert_close(parts["loss"], total, rtol=1e-4, atol=1e-4)
    assert {"base_accuracy", "episode_accuracy", "gate_open"} <= parts.keys()
    assert all(v.ndim == 0 for v in parts.values())


def test_each_part_of_the_loss_reaches_what_it_should():
    method = made()
    batch = batch_of(method.batches)
    parts = method.loss(batch, 0.5)
    everything = dict.fromkeys(("shared", "global", "local", "classifier"), True)
    assert reached(method, parts["loss"]) == everything
    assert reached(method, parts["global_loss"]) == everything | {"local": False}
    assert reached(method, parts["local_loss"]) == everything | {
        "global": False,
        "classifier": False,
    }
    assert reached(method, parts["mutual_loss"]) == everything | {"classifier": False}


def test_permuting_the_ways_permutes_the_distances_and_leaves_the_loss(normal):
    method, order = made(), [2, 0, 1]
    support, query = normal(1, 3, 2, 4, 5), normal(1, 3, 2, 4, 5)
    distances = match_positions(support, query)
    assert distances.shape == (1, 6, 4, 3)
    torch.testing.assert_close(match_positions(support[:, order], query), distances[..., order])
    batch = batch_of(method.batches)
    images = batch.images.unflatten(0, (3, 4))[order].flatten(0, 1)
    labels = batch.labels.view(3, 4)[order].flatten()
    one, two = method.loss(batch, 0.5), method.loss(Batch(images, labels, batch.form), 0.5)
    for name in one:
        torch.testing.assert_close(one[name], two[name], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("per_position", [False, True])
def test_where_a_query_shows_its_parts_does_not_matter_to_pooled_prototypes(normal, per_position):
    method = made(proto_per_position=per_position)
    batch = batch_of(method.batches)
    maps = normal(12, 5, 2, 2)
    moved = maps.unflatten(0, (3, 4)).clone()
    moved[:, 2:] = moved[:, 2:].flip(-1)
    one = method.local_loss(maps, batch, 0.5)["local_loss"]
    two = method.local_loss(moved.flatten(0, 1), batch, 0.5)["local_loss"]
    assert torch.allclose(one, two) == (not per_position)
    # flattened matching at test does mind
    features = [method.test_features(torch.cat([m, m], 1)) for m in (maps, maps.flip(-1))]
    scores = [method.score(features[0][None, :3, None], f[None, 3:]) for f in features]
    assert not torch.allclose(*scores)


def test_constant_features_are_a_tie_with_the_gate_open():
    method = made()
    parts = method.local_loss(torch.ones(12, 5, 2, 2), batch_of(method.batches), 0.5)
    push = 5.5 * 0.5 / 2
    assert parts["gate_open"].item() == 100
    assert parts["local_loss"].item() == pytest.approx(math.log(2 + math.exp(-push)) + push)
    without = made(alpha1=0.0).local_loss(torch.ones(12, 5, 2, 2), batch_of(method.batches), 0.5)
    assert without["local_loss"].item() == pytest.approx(math.log(3))


def test_the_views_share_all_blocks_but_the_last():
    method, plain = made(), build_method("ce", **SMALL)
    last = sum(p.numel() for p in plain.backbone.blocks[-1].parameters())
    assert sum(p.numel() for p in method.parameters()) == last + sum(
        p.numel() for p in plain.parameters()
    )
    twins = zip(
        method.backbone.blocks[-1].parameters(), method.local_block.parameters(), strict=True
    )
    assert all(a.shape == b.shape and a.data_ptr() != b.data_ptr() for a, b in twins)
    torch.manual_seed(0)
    weights = [
        block[0].weight.detach()
        for wide in (build_method("bml", classes=6),)
        for block in (wide.backbone.blocks[-1], wide.local_block)
    ]
    assert weights[0].std().item() == pytest.approx(weights[1].std().item(), rel=0.02)
    assert abs(torch.corrcoef(torch.stack([w.flatten() for w in weights]))[0, 1]) < 0.02
    same = Config("bml", backbone_options={"width": 4}, seed=3)
    for a, b in zip(same.build(6).parameters(), same.build(6).parameters(), strict=True):
        assert torch.equal(a, b)


def test_the_paper_sized_network_has_the_released_number_of_weights():
    with torch.device("meta"):
        sizes = [
            sum(p.numel() for p in block.parameters())
            for block in build_backbone("resnet12").blocks
        ]
    assert sum(sizes[:3]) == 2_998_400 and sizes[3] == 9_425_920
    assert sum(sizes) + sizes[3] + 641 * 64 == 21_891_264


@pytest.mark.parametrize(("pool", "power"), [("flatten", 0.5), ("flatten", 1.0), ("mean", 0.5)])
def test_at_test_both_views_vote_with_equal_weight(pool, power):
    method = made(pool=pool, power=power).eval()
    pixels = torch.randint(0, 256, (9, 3, 32, 32), dtype=torch.uint8)
    maps = method.embed(pixels).detach()
    views = [v.detach() for v in method.views(pixels)]
    assert maps.shape == (9, 8, 2, 2)
    torch.testing.assert_close(maps, torch.cat(views, 1))
    torch.testing.assert_close(maps[2:3], method.embed(pixels[2:3]), rtol=1e-4, atol=1e-5)
    features = method.test_features(maps)
    assert features.shape == (9, 32 if pool == "flatten" else 8)
    support, query = features[None, :6].reshape(1, 3, 2, -1), features[None, 6:]
    single = {}
    for name, view in zip(("global", "local"), views, strict=True):
        view = view.clamp(min=0).sqrt() if power == 0.5 else view
        view = view.flatten(1) if pool == "flatten" else view.mean((2, 3))
        means = view[:6].reshape(3, 2, -1).mean(1)
        single[name] = -(view[6:, None] - means).square().sum(2)
        logits = method.branches()[name](support, query)[0]
        torch.testing.assert_close(logits, single[name], rtol=1e-4, atol=1e-5)
    merged = method.score(support, query)[0]
    torch.testing.assert_close(merged, single["global"] + single["local"], rtol=1e-4, atol=1e-5)


def test_the_released_transform_by_hand():
    head = made().head
    first, second = torch.tensor([4.0, -1.0, 0.0, 9.0]), torch.tensor([1.0, 2.0, -3.0, 4.0])
    a, b = head.features(torch.stack([first, second]).view(2, 4, 1, 1))
    assert (first - second).square().sum() == 52
    assert (a - b).square().sum().item() == pytest.approx(1 + 2 + 0 + 1)


def test_small_maps_and_dropblock_train():
    """Side 16 leaves one cell for a block of five, which the released code divides by zero on."""
    torch.manual_seed(0)
    options = {"widths": (2, 2, 2, 2), "drop_rate": 0.1}
    method = build_method("bml", "resnet12", 6, options, **FORM)
    parts = method.loss(batch_of(method.batches, side=16), 0.5)
    parts["loss"].backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in method.parameters())


def test_a_run_logs_every_part_and_scores_its_branches(coloured_sets, tmp_path):
    options = {"way": 4, "shot": 1, "query": 2}
    config = Config("bml", "coloured", options=options, backbone_options={"width": 8}, epochs=3)
    run = fit(config, coloured_sets, runs=tmp_path, progress=False)
    last = run.history[-1]
    assert 0 <= last["gate_open"] <= 100
    total = 2 * last["global_loss"] + last["local_loss"] + 0.5 * last["mutual_loss"]
    assert last["loss"] == pytest.approx(total, rel=1e-5)
    assert last["loss"] < run.history[0]["loss"]
    test = {"shot": 1, "query": 5, "episodes": 50}
    for branch in ("", "global", "local"):
        assert evaluate(run.method, coloured_sets["test"], branch=branch, **test).mean > 40


@pytest.mark.parametrize("gate", [False, True])
def test_protonet_takes_the_elastic_constraint(gate):
    losses = {}
    for alpha1 in (0.0, 5.5):
        torch.manual_seed(0)
        options = FORM | {"count": 2, "point_wise": True, "alpha1": alpha1, "elastic_gate": gate}
        method = build_method("protonet", **SMALL, **options)
        batch = batch_of(method.batches)
        losses[alpha1] = method.loss(batch, 0.9)
    assert "gate_open" not in losses[0.0] and "gate_open" in losses[5.5]
    assert losses[5.5]["loss"] > losses[0.0]["loss"]
    assert losses[5.5]["episode_accuracy"] == losses[0.0]["episode_accuracy"]
    # the same as BML's local loss on the same maps
    maps = method.backbone((batch.images - 0.5) / 0.25)
    bml = made(count=2, elastic_gate=gate).local_loss(maps, batch, 0.9)
    torch.testing.assert_close(losses[5.5]["loss"], bml["local_loss"], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(losses[5.5]["gate_open"], bml["gate_open"])


def test_a_temperature_of_zero_is_refused():
    with pytest.raises(ValueError, match="temperature must be above 0, not 0"):
        made(temperature=0)
