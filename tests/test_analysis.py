import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.stats import kendalltau
from torchvision.transforms.v2 import functional as transforms

from fslib.analysis import corruption, embedding, heatmaps, neighbours, ranking
from fslib.data import ImageSet


def seeded(number=0):
    return torch.Generator().manual_seed(number)


# Embedding


def clusters(gap, classes=4, per_class=20, size=8):
    noise = torch.randn(classes * per_class, size, generator=seeded())
    labels = torch.arange(classes).repeat_interleave(per_class)
    return noise + gap * torch.eye(size)[labels], labels


def test_choose_images():
    labels = torch.tensor([0, 1, 2] * 10)
    rows = embedding.choose_images(labels, [2, 0], 6, seed=1)
    assert labels[rows].tolist() == [2] * 6 + [0] * 6
    assert len(set(rows.tolist())) == 12
    assert torch.equal(rows, embedding.choose_images(labels, [2, 0], 6, seed=1))
    with pytest.raises(ValueError, match="class 1 holds 10 images, 11 are wanted"):
        embedding.choose_images(labels, [1], 11)


def test_silhouette_worked_example():
    # 0, 1 | 5, 6: for 0, a = 1 and b = 5.5; for 1, a = 1 and b = 4.5; the rest by symmetry.
    features = torch.tensor([[0.0], [1.0], [5.0], [6.0]])
    mean, low, high = embedding.silhouette(features, torch.tensor([0, 0, 1, 1]))
    assert mean == pytest.approx((4.5 / 5.5 + 3.5 / 4.5) / 2)
    assert low <= mean <= high


def test_silhouette_orders_clusters_and_keeps_its_interval():
    tight, loose, none = (embedding.silhouette(*clusters(gap)) for gap in (20.0, 4.0, 0.0))
    assert tight[0] > 0.8 > loose[0] > 0.1 > none[0]
    assert tight[1] > loose[2] and loose[1] > none[2]
    assert tight == embedding.silhouette(*clusters(20.0))  # the same seed, the same interval
    features, labels = clusters(4.0)
    order = torch.randperm(len(labels), generator=seeded(5))
    assert embedding.silhouette(features[order], labels[order])[0] == pytest.approx(loose[0], 1e-5)


def test_a_difference_of_silhouettes_is_taken_image_by_image():
    (loose, labels), (tight, _) = clusters(4.0), clusters(20.0)
    mean, low, high = embedding.silhouette(tight, labels, less=loose)
    alone = [embedding.silhouette(features, labels) for features in (tight, loose)]
    assert mean == pytest.approx(alone[0][0] - alone[1][0])
    assert low < mean < high
    assert embedding.silhouette(loose, labels, less=loose) == (0.0, 0.0, 0.0)


def test_maps_are_pooled():
    features, labels = clusters(4.0)
    maps = features[:, :, None, None].expand(-1, -1, 2, 3)
    assert embedding.silhouette(maps, labels)[0] == pytest.approx(
        embedding.silhouette(features, labels)[0]
    )


def test_tsne_keeps_clusters_apart():
    features, labels = clusters(20.0)
    xy = embedding.tsne(features, seed=0, perplexity=10)
    assert xy.shape == (80, 2)
    assert embedding.silhouette(torch.from_numpy(xy), labels)[0] > 0.5
    assert np.array_equal(xy, embedding.tsne(features, seed=0, perplexity=10))
    assert embedding.tsne(features[:7], perplexity=30).shape == (7, 2)


# Heat maps


def test_similarity_map_worked_example():
    query = torch.tensor([[[[3.0, 0.0]], [[4.0, 2.0]]]])  # positions (3, 4) and (0, 2)
    prototypes = torch.tensor([[0.0, 1.0], [3.0, 4.0]])
    cosine = heatmaps.similarity_map(query, prototypes)
    torch.testing.assert_close(cosine, torch.tensor([[[[0.8, 1.0]], [[1.0, 0.8]]]]))
    with pytest.raises(ValueError, match="3 channels"):
        heatmaps.similarity_map(torch.zeros(1, 3, 2, 2), prototypes)


def test_similarity_map_permutes_with_ways_and_positions():
    query, prototypes = torch.randn(2, 5, 3, 4, generator=seeded()), torch.randn(3, 5)
    maps = heatmaps.similarity_map(query, prototypes)
    assert maps.shape == (2, 3, 3, 4)
    flipped = heatmaps.similarity_map(query.flip(3), prototypes[[2, 0, 1]])
    torch.testing.assert_close(flipped, maps[:, [2, 0, 1]].flip(3))


def test_upsample_and_unit_range():
    maps = torch.tensor([[[[1.0, 3.0]], [[5.0, 5.0]]]])
    assert heatmaps.upsample(maps, (2, 8)).shape == (1, 2, 2, 8)
    torch.testing.assert_close(heatmaps.upsample(maps, 4).mean((2, 3)), maps.mean((2, 3)))
    assert heatmaps.to_unit_range(maps).tolist() == [[[[0.0, 1.0]], [[0.0, 0.0]]]]


# Ranking


def test_similarity_matrices():
    assert ranking.hierarchy_similarity(("tree", "fish", "tree")).tolist() == [
        [1, 0, 1],
        [0, 1, 0],
        [1, 0, 1],
    ]
    features = torch.tensor([[1.0, 0.0], [3.0, 0.0], [2.0, 4.0], [4.0, 2.0]])
    visual = ranking.visual_similarity(features, torch.tensor([0, 0, 1, 1]))
    torch.testing.assert_close(visual, torch.tensor([[1.0, 0.5**0.5], [0.5**0.5, 1.0]]))
    with pytest.raises(ValueError, match=r"classes \[1\] have no images"):
        ranking.visual_similarity(features, torch.tensor([0, 0, 2, 2]))


def random_similarity(classes, seed):
    matrix = torch.rand(classes, classes, generator=seeded(seed))
    return matrix + matrix.T


def test_rank_correlation_of_same_and_reversed_order():
    matrix = random_similarity(8, 0)
    same = ranking.rank_correlation(matrix, 3 * matrix + 1, draws=50)
    assert same.tau == pytest.approx(1)
    assert same.tau_interval == pytest.approx((1, 1))
    reversed_ = ranking.rank_correlation(matrix, -matrix, draws=50)
    assert reversed_.tau == pytest.approx(-1)


def test_rank_correlation_ignores_diagonal_and_order_of_classes():
    visual, reference = random_similarity(9, 0), random_similarity(9, 1)
    result = ranking.rank_correlation(visual, reference, draws=100)
    assert result.tau_interval[0] < 0 < result.tau_interval[1]
    changed = ranking.rank_correlation(visual + 9 * torch.eye(9), reference, draws=10)
    assert changed.tau == result.tau
    order = torch.randperm(9, generator=seeded(2))
    moved = ranking.rank_correlation(visual[order][:, order], reference[order][:, order], draws=10)
    assert moved.tau == pytest.approx(result.tau)


def test_the_highest_tau_is_reached_by_an_order_that_agrees():
    """Pairs of the same group first, in any order among themselves: nothing can agree more."""
    reference = ranking.hierarchy_similarity(("a", "a", "b", "b", "c"))
    perfect = reference + 0.1 * random_similarity(5, 3)
    top = ranking.highest_tau(reference)
    assert top == pytest.approx(np.sqrt(2 * 2 * 8 / (10 * 9)))  # 2 of 10 pairs share a group
    assert ranking.rank_correlation(perfect, reference, draws=10).tau == pytest.approx(top)
    assert ranking.highest_tau(random_similarity(5, 3)) == 1


def test_resampled_taus_of_two_methods_are_paired():
    reference = random_similarity(9, 1)
    first = ranking.rank_correlation(random_similarity(9, 0), reference, draws=40)
    again = ranking.rank_correlation(2 * random_similarity(9, 0), reference, draws=40)
    np.testing.assert_allclose(first.tau_draws, again.tau_draws)
    assert first.tau_draws.shape == (40,) and first.tau_draws.std() > 0


def test_rank_correlation_needs_an_order():
    with pytest.raises(ValueError, match="no order"):
        ranking.rank_correlation(random_similarity(4, 0), torch.ones(4, 4))
    with pytest.raises(ValueError, match="3 or more"):
        ranking.rank_correlation(torch.ones(2, 2), torch.ones(2, 2))


def test_query_rank_correlation_equals_scipy():
    logits = torch.randn(6, 5, generator=seeded())
    labels = torch.tensor([0, 1, 2, 3, 4, 0])
    reference = (random_similarity(5, 1) * 3).round()  # with ties
    taus = ranking.query_rank_correlation(logits, labels, reference)
    for q, label in enumerate(labels.tolist()):
        wrong = [c for c in range(5) if c != label]
        expected = kendalltau(logits[q, wrong].numpy(), reference[label, wrong].numpy()).statistic
        assert taus[q].item() == pytest.approx(expected, nan_ok=True)
    own = reference[None].expand(6, -1, -1)
    torch.testing.assert_close(
        ranking.query_rank_correlation(logits, labels, own), taus, equal_nan=True
    )


def test_query_rank_correlation_leaves_the_true_class_out():
    reference = torch.tensor([[9.0, 3, 2, 1], [0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]])
    logits = torch.tensor([[-5.0, 3, 2, 1], [9, 1, 2, 3], [1, 2, 3, 4]])
    taus = ranking.query_rank_correlation(logits, torch.tensor([0, 0, 1]), reference)
    assert taus[:2].tolist() == [1, -1]
    assert taus[2].isnan()  # the reference says nothing about class 1


# Neighbours


def test_nearest_worked_example():
    gallery = torch.tensor([[1.0, 0.0], [0.0, 1.0], [3.0, 3.0]])
    rows, values = neighbours.nearest(torch.tensor([[2.0, 1.0]]), gallery, 3)
    assert rows.tolist() == [[2, 0, 1]]
    torch.testing.assert_close(values, torch.tensor([[3 / 10**0.5, 2 / 5**0.5, 1 / 5**0.5]]))


def test_skip_self_over_chunks():
    points = torch.randn(1500, 4, generator=seeded())
    rows, _ = neighbours.nearest(points, points, 3, skip_self=True)
    assert not (rows == torch.arange(1500)[:, None]).any()
    with pytest.raises(ValueError, match="smaller k"):
        neighbours.nearest(points[:3], points[:3], 3, skip_self=True)


def test_votes_and_ties():
    gallery = torch.tensor([[4.0, 0.0], [4.0, 1.0], [4.0, 2.0], [4.0, 3.0]])
    labels = torch.tensor([1, 0, 0, 1])
    accuracy = neighbours.accuracy_against_k(
        torch.tensor([[4.0, -1.0]]), torch.tensor([1]), gallery, labels, [1, 2, 3, 4]
    )
    # k = 2 and k = 4 are ties, which the nearest neighbour decides; k = 3 outvotes it.
    assert accuracy == {1: 100.0, 2: 100.0, 3: 0.0, 4: 100.0}


# Corruption


@pytest.fixture
def photos():
    images = torch.randint(0, 256, (40, 3, 32, 24), generator=seeded(), dtype=torch.uint8)
    return ImageSet("toy", "test", images, torch.arange(4).repeat_interleave(10), tuple("abcd"))


@pytest.mark.parametrize("name", list(corruption.CORRUPTIONS))
def test_corruptions_repeat_and_leave_the_original_alone(photos, name):
    before = photos.images.clone()
    damaged = corruption.corrupt(photos, name, seed=1)
    assert torch.equal(photos.images, before)
    assert damaged.images.dtype == torch.uint8 and damaged.name == f"toy+{name}"
    assert torch.equal(damaged.labels, photos.labels)
    again = corruption.corrupt(photos, name, seed=1)
    assert torch.equal(damaged.images, again.images) and damaged.digest == again.digest
    if name != "enlarge":
        other = corruption.corrupt(photos, name, seed=2)
        assert damaged.digest != other.digest != photos.digest


def test_blur_equals_torchvision_image_by_image(photos):
    ours = corruption.gaussian_blur(photos.images, seeded(3)).float()
    sigma = 0.1 + 1.9 * torch.rand(40, generator=seeded(3))
    theirs = torch.stack(
        [
            transforms.gaussian_blur(image, [13, 13], [s, s])
            for image, s in zip(photos.images.float(), sigma.tolist(), strict=True)
        ]
    )
    assert (ours - theirs).abs().max() <= 0.51  # ours is rounded
    flat = torch.full((2, 3, 9, 9), 77, dtype=torch.uint8)
    assert torch.equal(corruption.gaussian_blur(flat, seeded()), flat)


def test_pepper_blackens_whole_pixels_at_its_rate():
    white = torch.full((50, 3, 32, 32), 255, dtype=torch.uint8)
    damaged = corruption.pepper(white, seeded())
    black = (damaged == 0).all(1)
    assert torch.equal(black, (damaged == 0).any(1))
    assert black.float().mean().item() == pytest.approx(0.01, abs=0.002)
    assert corruption.pepper(white, seeded(), rate=0.0).min() == 255


def test_brightness_equals_torchvision_image_by_image(photos):
    ours = corruption.brightness(photos.images, seeded(4))
    factor = 0.2 + 1.6 * torch.rand(40, 1, 1, 1, generator=seeded(4))
    theirs = torch.stack(
        [
            transforms.adjust_brightness(image, f)
            for image, f in zip(photos.images, factor.flatten().tolist(), strict=True)
        ]
    )
    assert (ours.int() - theirs.int()).abs().max() <= 1
    assert (ours != theirs).float().mean() < 0.001
    assert torch.equal(corruption.brightness(photos.images, seeded(), 0.0), photos.images)


def test_enlarge_size(photos):
    assert corruption.corrupt(photos, "enlarge").size == (85, 64)
    assert corruption.corrupt(photos, "enlarge", factor=2).size == (64, 48)
    plain = F.interpolate(photos.images.float(), scale_factor=2, mode="bilinear")
    twice = corruption.corrupt(photos, "enlarge", factor=2).images.float()
    assert (twice - plain).abs().max() <= 1
    usual = transforms.resize(photos.images, [85, 64], antialias=True)
    assert torch.equal(corruption.corrupt(photos, "enlarge").images, usual)


def test_pages_start_without_torchvision():
    code = "import sys, fslib.measure; sys.exit('torchvision' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_unknown_corruption(photos):
    with pytest.raises(ValueError, match="choose one of blur, pepper"):
        corruption.corrupt(photos, "snow")
