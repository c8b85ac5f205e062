"""Augmentation against one image at a time, and as a function of its generator alone."""

import pytest
import torch
from torchvision.transforms.v2 import functional as transforms

from fslib.augment import POLICIES, augment, crop_flip, jitter, to_float


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
