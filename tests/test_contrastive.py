"""Contrastive losses: numbers worked out by hand, bounds, invariants, and the plain form."""

import math

import pytest
import torch
from scipy.stats import binom
from torch import nn
from torch.nn import functional

from benchmarks.scl import plain_aligned_cosine, saved_bytes
from fslib.losses.contrastive import (
    AGGREGATES,
    GlobalSimilarity,
    SpatialSimilarity,
    aggregate,
    aligned_cosine,
    contrastive_loss,
    cosine_similarity,
    loss_floor,
)


def naive_loss(similarity, labels, tau=0.1):
    """The equation, one row, positive and negative at a time."""
    rows, n = [], len(labels)
    for i in range(n):
        others = [k for k in range(n) if k != i]
        bottom = sum(math.exp(similarity[i, k].item() / tau) for k in others)
        positives = [j for j in others if labels[j] == labels[i]]
        shares = [math.log(math.exp(similarity[i, j].item() / tau) / bottom) for j in positives]
        rows.append(-sum(shares) / len(positives) if positives else 0.0)
    return sum(rows) / n


# ---- the loss of a matrix


def test_the_loss_equals_the_equation(normal):
    labels = torch.tensor([0, 0, 1, 2, 1, 0, 3])
    similarity = normal(7, 7)  # not symmetric
    made = contrastive_loss(similarity, labels, tau=0.3)
    assert made.item() == pytest.approx(naive_loss(similarity, labels, 0.3), rel=1e-5)


@pytest.mark.parametrize(
    ("classes", "expected"),
    [([0, 1], math.log(1 + 2 * math.exp(-10))), ([0, 0, 1, 1], math.log(3 + 4 * math.exp(-10)))],
)
def test_perfect_one_hot_features(classes, expected):
    """9.0796e-5 with one image a class, 1.098673 with two: positives share the probability."""
    labels = torch.tensor(classes).repeat(2)
    similarity = cosine_similarity(torch.eye(2)[labels], torch.eye(2)[labels])
    images = torch.arange(len(classes)).repeat(2)
    assert contrastive_loss(similarity, labels).item() == pytest.approx(expected, rel=2e-3)
    assert contrastive_loss(similarity.double(), labels).item() == pytest.approx(expected)
    # Without labels the value is the same: each view still has as many equal rivals.
    assert contrastive_loss(similarity.double(), images).item() == pytest.approx(expected)


@pytest.mark.parametrize("count", [4, 6, 128])
def test_a_flat_matrix_gives_the_uniform_level(count):
    """log(M - 1): 1.0986 for 4 rows, 4.844 for 128; so do identical views of coinciding images."""
    labels = torch.arange(count // 2).repeat(2)
    flat = torch.full((count, count), 1.3)
    assert contrastive_loss(flat, labels).item() == pytest.approx(math.log(count - 1), rel=1e-5)
    distinct = torch.eye(count // 2).repeat(2, 1)  # identical views of different images
    assert contrastive_loss(distinct @ distinct.T, labels) < math.log(count - 1) - 0.5


@pytest.mark.parametrize(
    ("batch", "classes", "expected"),
    [(64, 64, 0.853), (64, 60, 0.899), (128, 64, 1.407), (64, 351, 0.189)],
)
def test_the_floor_of_a_random_batch(batch, classes, expected, generator):
    """An image has 2 k + 1 positives, k the number of others of its class in the batch."""
    k = torch.arange(batch).double()
    chance = torch.from_numpy(binom.pmf(k.numpy(), batch - 1, 1 / classes))
    assert (chance * (2 * k + 1).log()).sum().item() == pytest.approx(expected, abs=1.5e-3)
    drawn = torch.randint(classes, (200, batch), generator=generator)
    mean = torch.stack([loss_floor(labels.repeat(2)) for labels in drawn]).mean()
    assert mean.item() == pytest.approx(expected, abs=0.03)


@pytest.mark.parametrize(("shot", "expected"), [(1, 2.708), (5, 2.944)])
def test_the_floor_of_an_episode(shot, expected):
    """log(shot + query - 1) where each image comes once."""
    labels = torch.arange(5).repeat_interleave(shot + 15)
    assert loss_floor(labels).item() == pytest.approx(math.log(shot + 14))
    assert loss_floor(labels).item() == pytest.approx(expected, abs=5e-4)


def test_no_matrix_gets_below_the_floor_and_the_best_one_reaches_it(normal):
    labels = torch.tensor([0, 0, 0, 1, 1, 2]).repeat(2)
    best = (labels[:, None] == labels).float() * 4 - 2
    assert contrastive_loss(best, labels).item() == pytest.approx(loss_floor(labels).item())
    for _ in range(20):
        assert contrastive_loss(normal(12, 12), labels, tau=0.5) > loss_floor(labels)


def test_the_order_of_the_rows_does_not_matter_but_labels_have_to_follow(normal):
    labels = torch.tensor([0, 1, 2, 2]).repeat(2)
    x = functional.normalize(normal(8, 5), dim=1)
    order = torch.tensor([3, 1, 7, 0, 2, 6, 5, 4])
    loss, shuffled = (contrastive_loss(x[o] @ x[o].T, labels[o]) for o in (torch.arange(8), order))
    torch.testing.assert_close(loss, shuffled)
    # Views interleaved instead of one after the other: silently other pairs.
    twins = torch.arange(4).repeat_interleave(2)
    assert (
        abs(contrastive_loss(x @ x.T, torch.arange(4).repeat(2)) - contrastive_loss(x @ x.T, twins))
        > 0.1
    )


def test_without_labels_is_the_supervised_loss_of_images_that_are_all_of_other_classes(normal):
    similarity, classes = normal(10, 10), torch.tensor([7, 3, 9, 1, 0])
    with_labels = contrastive_loss(similarity, classes.repeat(2))
    assert torch.equal(with_labels, contrastive_loss(similarity, torch.arange(5).repeat(2)))


def test_a_row_without_positives_adds_nothing_but_counts(normal):
    similarity = normal(3, 3).requires_grad_()
    loss = contrastive_loss(similarity, torch.tensor([0, 0, 1]), tau=1)
    loss.backward()
    assert (similarity.grad[2] == 0).all() and (similarity.grad[:2] != 0).sum() == 4
    assert (similarity.grad.diagonal() == 0).all()
    (_, b, c), (d, _, f), _ = similarity.tolist()
    expected = (math.log(1 + math.exp(c - b)) + math.log(1 + math.exp(f - d))) / 3
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    assert contrastive_loss(similarity, torch.arange(3)) == 0


def test_two_different_sets_mask_nothing(normal):
    similarity = normal(2, 3)
    made = contrastive_loss(similarity, torch.tensor([0, 1]), torch.tensor([1, 1, 0]), tau=0.5)
    share = (similarity / 0.5).log_softmax(1)
    torch.testing.assert_close(made, -(share[0, 2] + (share[1, 0] + share[1, 1]) / 2) / 2)


def test_labels_that_do_not_fit_are_refused(normal):
    with pytest.raises(ValueError, match=r"matrix of \(6, 6\) needs .* not 3 and 3: repeat them"):
        contrastive_loss(normal(6, 6), torch.arange(3))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_extreme_similarities_stay_finite(dtype):
    """exp(-20) is 0 in half precision; the row maximum is the image itself."""
    similarity = torch.full((4, 4), -2.0, dtype=dtype).fill_diagonal_(2).requires_grad_()
    loss = contrastive_loss(similarity, torch.tensor([0, 1, 0, 1]), tau=0.01)
    loss.backward()
    assert loss.item() == pytest.approx(math.log(3), rel=1e-4)
    assert torch.isfinite(similarity.grad).all()


# ---- global similarity


def test_global_similarity_is_the_cosine_of_the_projections(normal):
    torch.manual_seed(0)
    module, a, b = GlobalSimilarity(6, 4), normal(3, 6), normal(5, 6)
    assert [tuple(w.shape) for w in module.parameters()] == [(6, 6), (4, 6)]  # no biases
    first, second = module.head[0].weight, module.head[2].weight
    x, y = ((v @ first.T).relu() @ second.T for v in (a, b))
    expected = [torch.stack([functional.cosine_similarity(i, j, dim=0) for j in y]) for i in x]
    torch.testing.assert_close(module(a, b), torch.stack(expected))
    torch.testing.assert_close(module(a), module(a, a))
    torch.testing.assert_close(module(7 * a, 0.1 * b), module(a, b))  # lengths do not count
    assert torch.isfinite(module(torch.zeros(2, 6))).all()


# ---- spatial similarity


def by_hand(x, y):
    """S of two maps given as lists of locations, with query = key = value = the map."""
    x, y = (torch.tensor(v, dtype=torch.float64)[None] for v in (x, y))
    there = aligned_cosine(x, x, y, y).mean(-1)
    return (there + aligned_cosine(y, y, x, x).mean(-1).T).item()


A, SWAPPED, C = [[1, 0], [0, 1]], [[0, 1], [1, 0]], [[1, 0], [1, 0]]


@pytest.mark.parametrize(
    ("x", "y", "expected"),
    [
        (A, A, 1.793800),
        (A, SWAPPED, 1.793800),
        (A, C, 1.396900),
        (C, C, 2),
        (A, [[-1, 0], [0, -1]], -0.884467),
        ([[10, 0], [0, 10]], [[10, 0], [0, 10]], 2.000000),
    ],
)
def test_spatial_similarity_by_hand(x, y, expected):
    assert by_hand(x, y) == pytest.approx(expected, abs=1e-6)


def plain_similarity(module, a, b):
    """`SpatialSimilarity.forward` with the plain form."""
    (qa, ka, va), (qb, kb, vb) = module.project(a), module.project(b)
    there = aggregate(plain_aligned_cosine(qa, va, kb, vb), module.aggregate)
    back = aggregate(plain_aligned_cosine(qb, vb, ka, va), module.aggregate)
    return (there + back.T) / (2 if module.average else 1)


def build(*arguments, dtype=torch.float32, **options):
    torch.manual_seed(0)
    return SpatialSimilarity(*arguments, **options).to(dtype)


@pytest.mark.parametrize(("dtype", "close"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
@pytest.mark.parametrize("options", [{}, {"chunk": 2}, {"aggregate": "max", "average": True}])
def test_gram_form_equals_the_plain_form_with_its_gradients(normal, dtype, close, options):
    module = build(12, 8, dtype=dtype, **options)
    a = normal(5, 12, 3, 3).to(dtype).requires_grad_()
    b = normal(3, 12, 2, 1).to(dtype).requires_grad_()  # another number of maps and locations
    weights = normal(5, 3).to(dtype)
    made, plain = module(a, b), plain_similarity(module, a, b)
    assert made.shape == (5, 3)
    torch.testing.assert_close(made, plain, rtol=0, atol=close)
    inputs = [a, b, *module.parameters()]
    for ours, theirs in zip(
        torch.autograd.grad((made * weights).sum(), inputs),
        torch.autograd.grad((plain * weights).sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=close * theirs.abs().max().item())
    torch.testing.assert_close(module(a), plain_similarity(module, a, a), rtol=0, atol=close)


def test_chunks_keep_no_attention_for_the_backward_pass(normal):
    maps = normal(16, 6, 5, 5)
    whole, kept_whole = saved_bytes(lambda: build(6, 4)(maps))
    parts, kept_parts = saved_bytes(lambda: build(6, 4, chunk=5)(maps))
    torch.testing.assert_close(whole, parts, rtol=0, atol=1e-6)
    attention = 4 * 16 * 16 * 25 * 25
    assert kept_parts < 0.3 * attention < attention < kept_whole < 4 * attention


def test_symmetric_bounded_and_blind_to_positions(normal):
    module, a = build(12, 8), normal(6, 12, 3, 3)
    made = module(a)
    torch.testing.assert_close(made, made.T)
    assert made.abs().max() <= 2 + 1e-6
    shuffled = a.flatten(2)[:, :, torch.randperm(9)].view_as(a)
    torch.testing.assert_close(module(a, shuffled), made, rtol=0, atol=1e-5)
    torch.testing.assert_close(module(shuffled, a), made, rtol=0, atol=1e-5)
    assert made.diagonal().max() < 2  # attention mixes an image with itself
    torch.testing.assert_close(build(12, 8, average=True)(a), made / 2)


def test_an_image_need_not_be_most_similar_to_itself():
    rich, plain = [[3, 0], [0, 3]], [[3, 3], [3, 3]]
    assert by_hand([[1, 0], [0.9, 0.1]], [[1, 0], [1, 0]]) > by_hand(A, A)
    assert by_hand([[1, 0.2], [1, -0.2]], [[1, 0], [1, 0]]) > by_hand(
        [[1, 0.2], [1, -0.2]], [[1, 0.2], [1, -0.2]]
    )
    assert by_hand(rich, rich) < by_hand(plain, plain)


def test_constant_maps_give_two(normal):
    maps = normal(1, 12, 1, 1).expand(3, 12, 4, 2)
    torch.testing.assert_close(build(12, 8)(maps), torch.full((3, 3), 2.0))


def test_sharp_attention_finds_each_location_again(normal):
    x = functional.normalize(normal(4, 9, 16), dim=-1)
    made = aligned_cosine(1000 * x, x, x, x)
    torch.testing.assert_close(made.diagonal().T, torch.ones(4, 9))


def test_values_that_cancel_or_vanish_do_no_harm():
    value = torch.tensor([[[1.0, 0.0], [-1.0, 0.0]]]).requires_grad_()
    zeros = torch.zeros(1, 2, 2)
    for other in (value, zeros):
        made = aligned_cosine(zeros, value, zeros, other)  # no query: the mean of all values
        assert made.abs().max() <= 1
        assert torch.isfinite(torch.autograd.grad(made.sum(), value)[0]).all()


def test_attention_rows_sum_to_one_and_give_the_aligned_values(normal):
    module, a, b = build(6, 4), normal(2, 6, 2, 2), normal(3, 6, 1, 3)
    attention = module.attention(a, b)
    assert attention.shape == (2, 3, 4, 3)
    torch.testing.assert_close(attention.sum(-1), torch.ones(2, 3, 4))
    (qa, _, va), (_, kb, vb) = module.project(a), module.project(b)
    aligned = torch.einsum("abrs,bsd->abrd", attention, vb)
    expected = functional.cosine_similarity(va[:, None], aligned, dim=-1)
    torch.testing.assert_close(aligned_cosine(qa, va, kb, vb), expected, rtol=0, atol=1e-5)


def test_aggregates():
    cosines = torch.tensor([[0.5, -0.5, 0.2]])
    expected = {"mean": 0.2 / 3, "max": 0.5}
    assert set(expected) == set(AGGREGATES)
    for how, value in expected.items():
        assert aggregate(cosines, how).item() == pytest.approx(value, abs=1e-6)
    with pytest.raises(ValueError, match="unknown aggregate 'median': choose one of mean, max"):
        SpatialSimilarity(4, aggregate="median")


def test_at_the_start_similarity_is_high_and_flat(normal):
    """Maps of rectified noise, 640 to 80.

    One set of weights gives 1.339 (deviation 0.016) between images and 1.400 of an image with
    itself; from one set to the next the level moves by some hundredths, the rest hardly.
    """
    maps = normal(24, 640, 5, 5).relu()
    with torch.no_grad():
        module = build(640, 80)
        made = module(maps)
    assert sum(p.numel() for p in module.parameters()) == 1_382_400
    others = made[~torch.eye(24, dtype=torch.bool)]
    assert others.mean().item() == pytest.approx(1.339, abs=0.15)
    assert others.std().item() == pytest.approx(0.016, abs=0.008)
    lead = made.diagonal().mean() - others.mean()
    assert lead.item() == pytest.approx(1.400 - 1.339, abs=0.02)
    loss = contrastive_loss(made, torch.arange(12).repeat(2))
    assert loss.item() == pytest.approx(math.log(23), abs=0.05)


def test_similarities_keep_their_digits_in_mixed_precision(normal):
    module = build(12, 8)
    module.query = module.key = module.value = nn.Identity()
    maps = normal(4, 12, 2, 2)
    exact = module(maps)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        made = module(maps)
        cosines = cosine_similarity(maps[:, :, 0, 0], maps[:, :, 0, 0])
    assert made.dtype == cosines.dtype == torch.float32
    torch.testing.assert_close(made, exact)
