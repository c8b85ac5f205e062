"""Augmentation against one image at a time, and as a function of its generator alone."""

import pytest
import torch
from torchvision.transforms.v2 import functional as transforms

from fslib.augment import (
    POLICIES,
    augment,
    crop_flip,
    jitter,
    random_boxes,
    resized_crop,
    strong,
    to_float,
    turn_hue,
)


@pytest.fixture
def images(generator):
    return torch.randint(1, 256, (200, 3, 12, 10), dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize("policy", sorted(POLICIES))
def test_a_batch_is_a_function_of_the_generator_alone(images, policy):
    first, second, third = (
        augment(images, policy, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)
    )
    assert first.shape == images.shape and first.dtype == torch.float32
    assert 0 <= first.min() and first.max() <= 1
    assert torch.equal(first, second)
    assert torch.equal(first, third) == (policy == "none")
    assert first.is_contiguous(memory_format=torch.channels_last)


def test_none_only_changes_the_type(images, generator):
    before = images.clone()
    assert torch.equal(augment(images, "none", generator), images.float() / 255)
    assert torch.equal(images, before)
    already = torch.rand(2, 3, 4, 4)
    assert to_float(already) is already


def test_crop_flip_is_a_shifted_crop_of_the_padded_image_or_its_mirror(images, generator):
    """Every result is found among the 2 x 9 x 9 crops there are, and all kinds turn up."""
    made = crop_flip(images, generator)
    shifts, mirrored = [], 0
    for image, result in zip(images, made, strict=True):
        padded = torch.nn.functional.pad(image, (4, 4, 4, 4))
        found = [
            (down, right, mirror)
            for down in range(9)
            for right in range(9)
            for mirror in (False, True)
            if torch.equal(
                result,
                (lambda crop, mirror: crop.flip(-1) if mirror else crop)(
                    padded[:, down : down + 12, right : right + 10], mirror
                ),
            )
        ]
        assert len(found) == 1
        shifts.append(found[0][:2])
        mirrored += found[0][2]
    assert {down for down, _ in shifts} == {right for _, right in shifts} == set(range(9))
    assert 70 < mirrored < 130  # four standard deviations around 100


def test_the_padding_grows_with_the_image(generator):
    images = torch.full((300, 3, 84, 84), 9, dtype=torch.uint8)
    filled = (crop_flip(images, generator)[:, 0] > 0).any(2).sum(1)  # rows not from the padding
    assert filled.min() == 76 and filled.max() == 84


def test_jitter_equals_torchvision_one_image_at_a_time(generator):
    images = torch.rand((6, 3, 5, 5), generator=generator)
    made = jitter(images, torch.Generator().manual_seed(4))
    same = torch.Generator().manual_seed(4)
    factors = [torch.rand(6, generator=same) * 0.8 + 0.6 for _ in range(3)]
    for i, image in enumerate(images):
        expected = transforms.adjust_brightness(image, float(factors[0][i]))
        expected = transforms.adjust_contrast(expected, float(factors[1][i]))
        expected = transforms.adjust_saturation(expected, float(factors[2][i]))
        torch.testing.assert_close(made[i], expected, atol=1e-3, rtol=0)


def test_an_unknown_policy_names_the_known_ones(images, generator):
    with pytest.raises(ValueError, match="unknown augmentation 'blurr': choose one of none, crop"):
        augment(images, "blurr", generator)


def test_a_resized_crop_equals_torchvisions_one_image_at_a_time(generator):
    images = torch.rand((4, 3, 12, 10), generator=generator)
    boxes = torch.tensor([[0, 0, 12, 10], [2, 3, 7, 5], [11, 9, 1, 1], [0, 4, 6, 6]]).float()
    mirror = torch.tensor([False, True, False, True])
    made = resized_crop(images, boxes, mirror)
    for image, box, flip, result in zip(images, boxes.int().tolist(), mirror, made, strict=True):
        expected = transforms.resized_crop(image, *box, [12, 10], antialias=False)
        expected = expected.flip(-1) if flip else expected
        torch.testing.assert_close(result, expected, atol=1e-5, rtol=0)


def test_boxes_lie_inside_and_have_the_asked_areas_and_shapes(generator):
    top, left, height, width = random_boxes(4000, 32, 32, generator).unbind(1)
    assert min(top.min(), left.min()) >= 0
    assert max((top + height).max(), (left + width).max()) <= 32 + 1e-4
    share = height * width / 32**2
    assert 0.2 - 1e-4 <= share.min() < 0.21 and share.max() > 0.97
    ratio = width / height
    assert 3 / 4 - 1e-4 <= ratio.min() < 0.76 and 1.32 < ratio.max() <= 4 / 3 + 1e-4
    small = share < 0.5  # not cut at the image's edge: uniform over places
    assert (left / (32 - width))[small].mean().item() == pytest.approx(0.5, abs=0.03)


@pytest.mark.parametrize("turn", [-0.5, -0.1, 0.0, 0.07, 0.3])
def test_hue_equals_torchvision(generator, turn):
    images = torch.rand((3, 3, 6, 5), generator=generator)
    images[0, :, 0] = images[0, :1, 0]  # a grey row has no hue
    images[1, 0], images[2, 1] = images[1, 2], images[2, 0]  # ties between channels
    made = turn_hue(images, torch.full((3,), turn))
    torch.testing.assert_close(made, transforms.adjust_hue(images, turn), atol=1e-5, rtol=0)
    assert torch.equal(made[0, :, 0], images[0, :, 0])


def test_strong_mirrors_colours_and_greys_the_share_of_images_it_should(generator):
    """A red ramp from left to right on blue: everything that is done to it can be read off."""
    ramp = torch.linspace(0.2, 0.8, 16).expand(1000, 16, 16)
    images = torch.stack([ramp, torch.full_like(ramp, 0.1), torch.full_like(ramp, 0.5)], 1)
    made = strong(images, generator)
    grey = (made.amax(1) - made.amin(1)).amax((1, 2)) < 1e-6
    luma = (made * torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)).sum(1)
    mirrored = luma[:, 0, 0] > luma[:, 0, -1]
    untouched = ((made[:, 2] - 0.5).abs().amax((1, 2)) < 1e-6) & ~grey
    # Four standard deviations of a share among 1000 are at most 0.063.
    assert grey.float().mean().item() == pytest.approx(0.2, abs=0.06)
    assert mirrored.float().mean().item() == pytest.approx(0.5, abs=0.07)
    assert untouched.float().mean().item() == pytest.approx(0.2 * 0.8, abs=0.06)


def test_the_draws_of_the_older_policies_never_change():
    """Finished runs were trained on these very pixels."""
    images = torch.arange(3 * 3 * 64).remainder(256).to(torch.uint8).view(3, 3, 8, 8)
    sums = {}
    for policy in ("crop_flip", "crop_flip_jitter"):
        generator = torch.Generator().manual_seed(5)
        sums[policy] = augment(images, policy, generator).sum().item()
        sums[policy + " next"] = torch.rand(1, generator=generator).item()
    assert sums == pytest.approx(
        {
            "crop_flip": 119.0,
            "crop_flip next": 0.9941847,
            "crop_flip_jitter": 136.90576,
            "crop_flip_jitter next": 0.0566339,
        },
        rel=1e-5,
    )
