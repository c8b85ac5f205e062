"""What several test modules share: one thread, and a data set of a few kilobytes."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
from torch import Tensor

from fslib.data import ImageSet

torch.set_num_threads(1)


def coloured(
    split: str = "train", classes: int = 5, per_class: int = 24, side: int = 16, seed: int = 0
) -> ImageSet:
    """Every class is a pattern of 4 x 4 colours under noise: easy, but not trivial."""
    generator = torch.Generator().manual_seed(seed)
    patterns = torch.rand((classes, 3, 4, 4), generator=generator)
    labels = torch.arange(classes).repeat_interleave(per_class)
    images = torch.nn.functional.interpolate(patterns, size=side)[labels]
    images = images + 0.25 * torch.randn(images.shape, generator=generator)
    return ImageSet(
        name="coloured",
        split=split,
        images=(images.clamp(0, 1) * 255).to(torch.uint8),
        labels=labels,
        class_names=tuple(f"{split}{c}" for c in range(classes)),
    )


@pytest.fixture(scope="session")
def coloured_sets() -> dict[str, ImageSet]:
    """Three splits of 5 classes with 24 images of 16 x 16 pixels each."""
    return {split: coloured(split, seed=i) for i, split in enumerate(("train", "val", "test"))}


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.fixture
def normal(generator: torch.Generator):
    """Normal numbers of a shape, the same in every run."""

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    return draw
