"""Damaged images: the degradations of BML, Table 6, on whole batches of uint8 images.

Only test images are damaged. Every function takes uint8 (B, 3, H, W) and a generator and gives
uint8 back; its default strength is the paper's. Lengths are in pixels, so the same blur is a
stronger one on a 32-pixel image than on the paper's 84 pixels.
"""

import dataclasses
import hashlib
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from fslib.data import ImageSet


def gaussian_blur(
    images: Tensor, generator: torch.Generator, low: float = 0.1, high: float = 2.0
) -> Tensor:
    """Blur each image by a Gaussian whose standard deviation is uniform in [low, high] pixels.

    The kernel reaches three standard deviations of the strongest blur to either side; the image
    is mirrored at its border, as torchvision does it.
    """
    sigma = low + (high - low) * torch.rand(len(images), generator=generator)
    height, width = images.shape[-2:]
    # A blur along one axis is a matrix; so images with different blurs need no loop.
    blurred = _blur_matrix(height, sigma, high) @ images.float()
    blurred = blurred @ _blur_matrix(width, sigma, high).mT
    return blurred.round_().clamp_(0, 255).to(torch.uint8)


def _blur_matrix(side: int, sigma: Tensor, strongest: float) -> Tensor:
    """Matrices (B, 1, side, side) that blur a column of `side` pixels."""
    reach = min(max(1, round(3 * strongest)), side - 1)
    offset = torch.arange(-reach, reach + 1)
    weight = torch.exp(-0.5 * (offset / sigma[:, None]) ** 2)
    weight = weight / weight.sum(1, keepdim=True)  # (B, offsets)
    source = (torch.arange(side)[:, None] + offset).abs()
    source = torch.where(source > side - 1, 2 * (side - 1) - source, source)  # mirrored
    takes = F.one_hot(source, side).float()  # (side, offsets, side)
    return torch.einsum("bo,ios->bis", weight, takes)[:, None]


def pepper(images: Tensor, generator: torch.Generator, rate: float = 0.01) -> Tensor:
    """Turn each pixel black, in all three channels, with probability `rate`."""
    shape = (len(images), 1, *images.shape[-2:])
    return images.masked_fill(torch.rand(shape, generator=generator) < rate, 0)


def brightness(images: Tensor, generator: torch.Generator, strength: float = 0.8) -> Tensor:
    """Multiply each image by a factor uniform in [1 - strength, 1 + strength], cut at white."""
    low = max(0.0, 1 - strength)
    factor = low + (1 + strength - low) * torch.rand(len(images), 1, 1, 1, generator=generator)
    return (images * factor).clamp_(0, 255).to(torch.uint8)


def enlarge(images: Tensor, generator: torch.Generator, factor: float = 224 / 84) -> Tensor:
    """Scale the image up, bilinearly; the paper goes from 84 to 224 pixels. Nothing is random."""
    size = [round(side * factor) for side in images.shape[-2:]]
    return F.interpolate(images, size=size, mode="bilinear", antialias=True)


CORRUPTIONS: dict[str, Callable[..., Tensor]] = {
    "blur": gaussian_blur,
    "pepper": pepper,
    "brightness": brightness,
    "enlarge": enlarge,
}
"""The degradations by name, in the order in which the pages show them."""


def corrupt(imageset: ImageSet, name: str, seed: int = 0, **strength: float) -> ImageSet:
    """Damage all images of a split; the same arguments give the same images.

    Args:
        imageset: The images, which stay as they are.
        name: A key of `CORRUPTIONS`.
        seed: Seed of every random choice.
        **strength: Parameters of that function, such as `rate=0.05` for "pepper".

    Returns:
        A new `ImageSet` called "<name of the data set>+<corruption>", with a digest of its own.

    Raises:
        ValueError: If there is no such corruption.
    """
    if name not in CORRUPTIONS:
        raise ValueError(f"no corruption {name!r}: choose one of {', '.join(CORRUPTIONS)}.")
    generator = torch.Generator().manual_seed(seed)
    damage = CORRUPTIONS[name]
    images = torch.cat(
        [damage(part, generator, **strength) for part in imageset.images.split(1024)]
    )
    return dataclasses.replace(
        imageset,
        name=f"{imageset.name}+{name}",
        images=images,
        digest=hashlib.sha256(images.numpy().tobytes()).hexdigest(),
    )
