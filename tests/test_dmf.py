"""The dynamic meta-filter: invariants, worked examples, and the fast head against the plain one."""

import math

import pytest
import torch
from torch import Tensor

from fslib.evaluate import embed_images, evaluate
from fslib.metafilter import MetaFilter, class_weights
from fslib.metafilter.fast import fast_scores, sample_taps
from fslib.methods import Batch, build_method

SMALL = {"way": 3, "shot": 2, "query": 2, "count": 2, "groups": 4}
NET = {"width": 8, "pools": (True, True, False, False)}


def make(**options):
    torch.manual_seed(0)
    return build_method("dmf", "conv4", 6, NET, **(SMALL | options)).eval()


def task(method, dtype=torch.float32, size=(5, 6)) -> tuple[Tensor, Tensor, Tensor]:
    """Random maps, and their features as support (2, 3, 2, ...) and query (2, 4, ...)."""
    maps = torch.randn((2 * 3 * 2 + 8, 8, *size), generator=torch.Generator().manual_seed(1))
    maps = maps.to(dtype).requires_grad_()
    features = method.test_features(maps)
    return maps, features[:12].unflatten(0, (2, 3, 2)), features[12:].unflatten(0, (2, 4))


def batch_of(method, side: int = 24) -> Batch:
    count = method.batches.images
    images = torch.rand((count, 3, side, side), generator=torch.Generator().manual_seed(2))
    return Batch(images, torch.arange(count) % 6, method.batches)


# --- the fast head is the plain head ---

OPTIONS = [
    {},
    {"sampling": False},
    {"alignments": 0},
    {"alignments": 2},
    {"solver": "rk4"},
    {"solver": "dopri5", "tolerance": 1e-10},
    {"linear_field": True},
    {"zero_init_offset": True},
    {"normalise_positions": False, "scale": 0.5},
    {"groups": 1},
    {"groups": 8},
    {"kernel": 3},
    {"kernel": 3, "sampling": False},
    {"kernel": 3, "alignments": 2, "linear_field": True},
    {"kernel": 3, "solver": "dopri5"},
]


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.float64, 1e-9)], ids=["f32", "f64"]
)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_both_heads_give_the_same_filters_scores_and_gradients(options, dtype, tolerance):
    results = []
    for fast in (True, False):
        method = make(**options, fast=fast).to(dtype)
        maps, support, query = task(method, dtype)
        filters, scores = method.match(support, query)
        assert scores.shape == (2, 3, 4, 5, 6)
        draw = torch.randn(scores.shape, generator=torch.Generator().manual_seed(3)).to(dtype)
        wanted = [maps, *method.metafilter.parameters()]
        made = torch.autograd.grad((scores * draw).sum(), wanted, allow_unused=True)
        made = [torch.zeros_like(w) if g is None else g for w, g in zip(wanted, made, strict=True)]
        # Without alignment the fast head makes no filters.
        shown = [] if options.get("alignments") == 0 else [filters.expand(2, 3, 4, 5, 6, -1)]
        results.append([scores, *shown, *made])
    for fast, plain in zip(*results, strict=True):
        torch.testing.assert_close(fast, plain, rtol=tolerance, atol=tolerance)
    if options.get("alignments") != 0:
        assert all(gradient.abs().sum() > 0 for gradient in results[0][2:])


@pytest.mark.parametrize(
    "options", [{}, {"global_on_aligned": True}, {"kernel": 3, "global_on_aligned": True}], ids=str
)
def test_both_heads_train_alike(options):
    found = []
    for fast in (True, False):
        method = make(**options, fast=fast)
        made = method.loss(batch_of(method), 0.5)
        gradients = torch.autograd.grad(made["loss"], list(method.parameters()))
        found.append([*made.values(), *gradients])
    for fast, plain in zip(*found, strict=True):
        torch.testing.assert_close(fast, plain, rtol=1e-3, atol=1e-4)


def test_scores_equal_the_equations_written_as_loops():
    method = make(groups=2).double()
    maps, support, query = task(method, torch.float64, (3, 3))
    got = method.match(support, query)[1]
    psi, offset = method.metafilter.psi, method.metafilter.offset
    s, q = maps[:2].mean(0), maps[12]  # first way and first query of the first episode

    def value(y: float, x: float) -> Tensor:
        """Bilinear, zero outside, (C,)."""
        total = torch.zeros(8, dtype=torch.float64)
        for row in range(3):
            for column in range(3):
                share = max(0, 1 - abs(y - row)) * max(0, 1 - abs(x - column))
                total = total + share * s[:, row, column]
        return total

    moves = offset(torch.cat([q, s])[None])[0]
    w = torch.stack([s[:, y, x] / s[:, y, x].norm() for y in range(3) for x in range(3)]).mean(0)
    for y in range(3):
        for x in range(3):
            score = 0
            for c in range(8):
                inner = 0
                for j in range(9):
                    at = (
                        y + j // 3 - 1 + moves[2 * j, y, x],
                        x + j % 3 - 1 + moves[2 * j + 1, y, x],
                    )
                    inner = inner + psi[c // 4, :, j // 3, j % 3] @ value(*(v.item() for v in at))
                rate = 1 / (1 + math.exp(-inner.item()))
                score += w[c] * q[c, y, x] * (math.exp(rate) if q[c, y, x] > 0 else 1)
            assert got[0, 0, 0, y, x].item() == pytest.approx(score.item(), abs=1e-9)


def test_the_sampler_has_the_right_gradients():
    generator = torch.Generator().manual_seed(0)
    taps = torch.randn((2, 3, 4, 9, 2), generator=generator, dtype=torch.float64)
    places = [
        torch.rand((2, 5, 9), generator=generator, dtype=torch.float64) * 5 - 1.5 for _ in range(2)
    ]
    inputs = [x.requires_grad_() for x in (taps, *places)]
    assert torch.autograd.gradcheck(sample_taps, inputs)


# --- offsets and sampling ---


def test_zero_offsets_are_an_ordinary_convolution():
    still, plain = make(zero_init_offset=True).double(), make(sampling=False).double()
    plain.metafilter.psi = still.metafilter.psi
    assert still.metafilter.offset.weight.abs().max() == 0 and plain.metafilter.offset is None
    a, b = (method.match(*task(method, torch.float64)[1:])[1] for method in (still, plain))
    torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize(("axis", "seen"), [(0, [[3, 4], [0, 0]]), (1, [[2, 0], [4, 0]])])
def test_offsets_are_vertical_then_horizontal(fast, axis, seen):
    """A query of ones moves the window's centre by one cell, off the map at the last."""
    method = make(groups=1, fast=fast)
    part = method.metafilter
    with torch.no_grad():
        part.offset.weight.zero_()
        part.psi.zero_()
        part.offset.weight[2 * 4 + axis, 0, 2, 2] = 1  # cell 4, moved by channel 0 of the query
        part.psi[0, 1, 1, 1] = 1  # reads channel 1 of the prototype there
    query, support = torch.zeros(1, 8, 2, 2), torch.zeros(1, 8, 2, 2)
    query[:, 0] = 1
    support[:, 1] = torch.tensor([[1.0, 2], [3, 4]])
    features = method.test_features(torch.cat([support, query]))
    filters, _ = method.match(features[None, :1, None], features[None, 1:])
    torch.testing.assert_close(filters[0, 0, 0, ..., 0], torch.tensor(seen).float().sigmoid())


def test_a_sample_far_outside_is_zero_and_pulls_at_nothing():
    taps = torch.ones(1, 3, 3, 9, 1)
    vertical = torch.tensor([-1.5, -0.5, 1.0, 2.5, 3.5]).view(1, 5, 1).repeat(1, 1, 9)
    horizontal = torch.ones_like(vertical)
    vertical.requires_grad_()
    made = sample_taps(taps, vertical, horizontal)
    torch.testing.assert_close(made.flatten(), torch.tensor([0, 4.5, 9, 4.5, 0]))
    (gradient,) = torch.autograd.grad(made.sum(), vertical)
    assert gradient[0, :, 0].tolist() == [0, 1, 0, -1, 0]


# --- scores ---


def test_ways_queries_and_shots_may_come_in_any_order():
    method = make()
    _, support, query = task(method)
    scores = method.score(support, query)
    assert scores.shape == (2, 4, 3)
    assert torch.equal(method.score(support[:, [2, 0, 1]], query), scores[..., [2, 0, 1]])
    torch.testing.assert_close(method.score(support, query[:, 1:2]), scores[:, 1:2])
    torch.testing.assert_close(method.score(support[:1], query[:1]), scores[:1])
    torch.testing.assert_close(method.score(support.flip(2), query), scores)


def test_scores_grow_with_the_query_and_one_shot_is_its_own_prototype():
    part = MetaFilter(8, 4)
    filters, query = torch.rand(1, 3, 2, 4, 4, 4), torch.randn(1, 2, 4, 4, 8)
    weights = torch.randn(1, 3, 8)
    once, thrice = (fast_scores(part, filters, a * query, weights) for a in (1, 3))
    torch.testing.assert_close(thrice, 3 * once)
    method = make(alignments=0)
    _, support, query = task(method)
    w = class_weights(support[:, :, 0, ..., :8].flatten(2, 3))
    expected = torch.einsum("ekc,eqhwc->eqk", w, query[..., :8]) / 30
    torch.testing.assert_close(method.score(support[:, :, :1], query), expected)


def test_evaluation_uses_the_scores_of_single_episodes(coloured_sets):
    method = make(shot=1)
    images = coloured_sets["test"]
    maps = embed_images(method, images)
    assert maps.shape[1:] == (8, 4, 4)
    got = evaluate(method, images, shot=1, query=5, episodes=40, maps=maps)
    reference = make(shot=1, fast=False)
    assert (got.correct == evaluate(reference, images, 1, query=5, episodes=40).correct).all()


# --- losses ---


def test_the_loss_is_the_sum_of_both_dense_losses():
    for options, weights in (
        ({}, (1, 0.5)),
        ({"few_shot_weight": 1, "global_weight": 0.5}, (0.5, 1)),
    ):
        method = make(**options)
        batch = batch_of(method)
        made = method.loss(batch, 0.5)
        total = weights[0] * made["global"] + weights[1] * made["few_shot"]
        torch.testing.assert_close(made["loss"], total)
        maps = method.embed(batch.images).unflatten(0, (2, 3, 4))
        features = method.test_features(maps.flatten(0, 2)).unflatten(0, (2, 3, 4))
        scores = method.match(features[:, :, :2], features[:, :, 2:].flatten(1, 2))[1]
        terms = []
        for episode in scores:
            for number in range(6):
                at = episode[:, number]  # (way, h, w)
                terms.append((at.logsumexp(0) - at[number // 2]).mean())
        torch.testing.assert_close(
            made["few_shot"], torch.stack(terms).mean(), rtol=1e-4, atol=1e-5
        )
        logits = method.classifier(maps[:, :, 2:].flatten(0, 2)).log_softmax(1)
        labels = batch.labels.view(2, 3, 4)[:, :, 2:].flatten()
        expected = torch.stack([-one[y].mean() for one, y in zip(logits, labels, strict=True)])
        torch.testing.assert_close(made["global"], expected.mean(), rtol=1e-4, atol=1e-5)


def test_the_global_loss_may_see_the_map_aligned_with_its_own_way():
    method = make(global_on_aligned=True)
    batch = batch_of(method)
    maps = method.embed(batch.images)
    features = method.test_features(maps).unflatten(0, (2, 3, 4))
    filters, _ = method.match(features[:, :, :2], features[:, :, 2:].flatten(1, 2))
    terms = []
    for e, labels in enumerate(batch.labels.view(2, 3, 4)):
        for way in range(3):
            for number in (0, 1):
                q = maps.unflatten(0, (2, 3, 4))[e, way, 2 + number]
                rate = filters[e, way, 2 * way + number].movedim(-1, 0).repeat_interleave(2, 0)
                logits = method.classifier(torch.where(q > 0, q * rate.exp(), q)[None])[0]
                terms.append(-logits.log_softmax(0)[labels[way, 2 + number]].mean())
    expected = torch.stack(terms).mean()
    torch.testing.assert_close(method.loss(batch, 0)["global"], expected, rtol=1e-4, atol=1e-5)


def test_the_border_adds_its_share_of_ln_way_and_no_gradient():
    plain, framed = make(), make(border_compat=True)
    a, b = (method.loss(batch_of(method), 0)["few_shot"] for method in (plain, framed))
    cells, border = 36, 28  # a 6 x 6 map in an 8 x 8 frame
    expected = (cells * a + border * math.log(3)) / (cells + border)
    torch.testing.assert_close(b, expected)
    gradients = [
        torch.autograd.grad(loss, method.metafilter.psi)[0]
        for loss, method in ((a, plain), (b, framed))
    ]
    torch.testing.assert_close(gradients[1], gradients[0] * cells / (cells + border))


def test_ways_that_look_alike_cost_ln_way():
    method = make(count=1)
    batch = batch_of(method)
    batch.images.view(3, 4, 3, 24, 24)[:, :2] = batch.images[0]
    assert method.loss(batch, 0)["few_shot"].item() == pytest.approx(math.log(3), abs=1e-5)


def test_what_each_loss_teaches():
    method = make()
    made = method.loss(batch_of(method), 0)
    names = dict(method.named_parameters())
    for key, taught in (("few_shot", "metafilter"), ("global", "classifier")):
        found = torch.autograd.grad(
            made[key], list(names.values()), allow_unused=True, retain_graph=True
        )
        pulled = [n for n, g in zip(names, found, strict=True) if g is not None and g.any()]
        assert {name.split(".")[0] for name in pulled} == {"backbone", taught}
        if taught == "metafilter":
            assert {"metafilter.psi", "metafilter.offset.weight"} <= set(pulled)


def test_the_loss_keeps_its_digits_in_mixed_precision():
    method = make()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = method.loss(batch_of(method), 0)
    full = method.loss(batch_of(method), 0)
    assert mixed["loss"].dtype == torch.float32
    for key in ("few_shot", "global"):
        assert mixed[key].item() == pytest.approx(full[key].item(), rel=0.02)


# --- sizes and bad input ---


def test_the_published_model_has_as_many_parameters_and_an_11_by_11_map():
    options = {"pools": (True, True, True, False), "ceil_pool": True}
    method = build_method("dmf", "resnet12", 64, options).eval()
    assert sum(p.numel() for p in method.parameters()) == 13_409_984
    slim = build_method("dmf", "resnet12_slim", 64, options).eval()
    assert slim.embed(torch.zeros(1, 3, 84, 84)).shape == (1, 192, 11, 11)
    options = {"pools": (True, True, False, False)}
    kept = build_method("dmf", "resnet12_slim", 64, options).eval()
    assert kept.embed(torch.zeros(1, 3, 32, 32)).shape == (1, 192, 8, 8)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"groups": 3}, "3 groups do not divide the 8 channels"),
        ({"groups": 0}, "0 groups do not divide"),
        ({"kernel": 2}, "kernel must be odd, to have a centre, not 2"),
        ({"solver": "euler"}, "unknown solver 'euler': choose one of auto, exact, rk4, dopri5"),
        ({"solver": "exact", "kernel": 3}, "only a kernel of 1 has an exact solution"),
        ({"alignments": -1}, "alignments must be 0 or more, or None for the ODE, not -1"),
    ],
)
def test_bad_options_are_refused_in_a_sentence(options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)


def test_a_map_smaller_than_the_kernel_is_refused():
    method = make(kernel=5)
    with pytest.raises(ValueError, match="a map of 4 x 4 cells is smaller than the kernel of 5"):
        method.loss(batch_of(method, side=16), 0)
