"""What DMF does to a pair: sampled places, gain and votes, and tests with other alignments."""

import math

import matplotlib.pyplot as plt
import pytest
import torch
from torch.nn import functional

from fslib.backbones import BACKBONES, build_backbone
from fslib.evaluate import embed_images, evaluate
from fslib.heads.alignment import ALIGNMENT_TESTS, align_pairs, sampled_places, share_outside
from fslib.methods import build_method
from fslib.methods.dmf import usual_groups
from fslib.plots.images import sampling_panel
from fslib.plots.style import use_book_style

NET = {"width": 8, "pools": (True, True, False, False)}


def make(name="dmf", **options):
    torch.manual_seed(0)
    return build_method(name, "conv4", 6, NET, **options).eval()


def pair(count: int = 2):
    return torch.randn((2, count, 8, 4, 5), generator=torch.Generator().manual_seed(1)).unbind(0)


def test_the_window_lies_around_its_cell_until_the_offsets_move_it():
    query, prototype = pair()
    still = sampled_places(make(groups=4, sampling=False).metafilter, query, prototype)
    assert still.shape == (2, 4, 5, 9, 2)
    assert still[0, 2, 3, 4].tolist() == [2, 3]
    assert still[1, 2, 3, 1].tolist() == [1, 3]  # above, then ...
    assert still[1, 2, 3, 5].tolist() == [2, 4]  # ... to the right
    part = make(groups=4).metafilter
    moves = part.offsets(query, prototype)
    places = sampled_places(part, query, prototype)
    for j in (0, 7):
        expected = still[1, 1, 2, j] + moves[1, 2 * j : 2 * j + 2, 1, 2]
        torch.testing.assert_close(places[1, 1, 2, j], expected)


def test_a_share_of_the_plain_window_lies_outside():
    part = make(groups=4, sampling=False).metafilter
    share = share_outside(sampled_places(part, *pair(1)), (4, 5))
    inside = (4 * 3 - 2) * (5 * 3 - 2)
    assert share == pytest.approx(1 - inside / (9 * 4 * 5))
    assert share_outside(torch.tensor([[-0.9, 4.9], [3.9, 0]]), (4, 5)) == 0
    assert share_outside(torch.tensor([[-1.0, 0], [0, 5]]), (4, 5)) == 1


@pytest.mark.parametrize("alignments", [None, 0, 2])
def test_pairs_agree_with_the_equations(alignments):
    method = make(groups=4, alignments=alignments)
    query, prototype = pair(3)
    made = align_pairs(method, query, prototype)
    part = method.metafilter
    filters = part.filters(query, prototype)  # (M, g, 1, h, w)
    aligned = part.align(query, filters)
    torch.testing.assert_close(made.aligned, aligned.mean(1), rtol=1e-4, atol=1e-5)
    if alignments != 0:
        gain = part.gain(filters).squeeze(2).mean(1)
        torch.testing.assert_close(made.gain, gain, rtol=1e-4, atol=1e-5)
    else:
        assert (made.gain == 1).all()
    weights = functional.normalize(prototype, dim=1).mean((2, 3))
    votes = torch.einsum("mc,mchw->mhw", weights, aligned)
    torch.testing.assert_close(made.scores, votes, rtol=1e-4, atol=1e-5)


def test_other_alignments_at_test_change_the_gain_and_are_taken_back(coloured_sets):
    images = coloured_sets["test"]
    method, other = make(groups=4), make(groups=4, alignments=2)
    maps = embed_images(method, images)
    how = {"query": 5, "episodes": 30, "maps": maps}
    swapped = evaluate(method, images, head=ALIGNMENT_TESTS["align_2"], **how)
    assert (swapped.correct == evaluate(other, images, **how).correct).all()
    assert method.metafilter.alignments is None
    same = evaluate(method, images, head=ALIGNMENT_TESTS["align_ode"], **how)
    assert (same.correct == evaluate(method, images, **how).correct).all()
    with pytest.raises(ValueError, match="only dmf can be tested with"):
        evaluate(make("protonet"), images, head=ALIGNMENT_TESTS["align_1"], **how)


def test_the_panel_shows_both_images_of_every_pair():
    method = make(groups=4)
    query, prototype = pair(4)
    places = sampled_places(method.metafilter, query, prototype).detach()
    use_book_style()
    images = torch.zeros((4, 3, 16, 20), dtype=torch.uint8)
    figure = sampling_panel(images, images, torch.ones(4, 2).long(), places, ["a"] * 4)
    shown = [axis for axis in figure.axes if axis.get_visible()]
    assert len(shown) == 8
    dots = shown[1].lines[-1].get_xydata()
    expected = (float(places[0, 1, 1, 4, 1]) + 0.5) * 4 - 0.5
    assert dots.shape == (9, 2) and math.isclose(dots[4, 0], expected, rel_tol=1e-5)
    plt.close(figure)


@pytest.mark.parametrize(
    ("backbone", "channels", "few", "many"),
    [
        ("conv4_32", 32, 4, 8),
        ("conv4", 64, 8, 16),
        ("resnet12_slim", 192, 16, 32),
        ("resnet10", 512, 64, 128),
        ("resnet18", 512, 64, 128),
        ("resnet12", 640, 64, 160),
    ],
)
def test_the_usual_groups_hold_about_as_many_channels_as_the_papers(backbone, channels, few, many):
    assert build_backbone(backbone).channels == channels
    assert (usual_groups(backbone), usual_groups(backbone, shot=5)) == (few, many)
    assert channels % few == channels % many == 0
    assert 8 <= channels / few <= 12 and 4 <= channels / many <= 6


@pytest.mark.parametrize("shot", [1, 5])
@pytest.mark.parametrize("backbone", BACKBONES)
def test_every_backbone_takes_its_usual_groups_and_asking_draws_nothing(backbone, shot):
    before = torch.get_rng_state()
    groups = usual_groups(backbone, shot)
    assert torch.equal(torch.get_rng_state(), before)
    method = build_method("dmf", backbone, 6, shot=shot, groups=groups)
    assert method.metafilter.channels % groups == 0


def test_a_trained_model_may_be_tested_with_another_number_of_alignments():
    ode = make(groups=4)
    features = ode.test_features(torch.randn(20, 8, 4, 5))
    support, query = features[:12].unflatten(0, (2, 3, 2)), features[12:].unflatten(0, (2, 4))
    for alignments in (0, 2):
        ode.metafilter.alignments = alignments
        expected = make(groups=4, alignments=alignments).score(support, query)
        assert torch.equal(ode.score(support, query), expected)
    ode.metafilter.alignments = None
    assert not torch.equal(ode.score(support, query), expected)
