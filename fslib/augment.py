"""Augmentation of whole batches, on the device that trains.

Images arrive as packed uint8 and leave as float32 in [0, 1]. The random numbers come from one
CPU generator, so a batch is the same on every device.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

Policy = Callable[[Tensor, torch.Generator], Tensor]


def _uniform(size: int, low: float, high: float, generator: torch.Generator) -> Tensor:
    return torch.rand(size, generator=generator) * (high - low) + low


def to_float(images: Tensor) -> Tensor:
    """Map uint8 0..255 to float32 0..1; float images pass through."""
    return images.float().div_(255) if images.dtype == torch.uint8 else images


def crop_flip(images: Tensor, generator: torch.Generator) -> Tensor:
    """Shift every image by a random padded crop and mirror half of them.

    The padding is 4 pixels at 32 x 32 and 8 at 84 x 84, as in the released code of BML and DMF.

    Args:
        images: uint8 or float (B, 3, H, W).
        generator: CPU generator.

    Returns:
        (B, 3, H, W), same type and device.
    """
    batch, channels, height, width = images.shape
    pad = max(4, min(height, width) // 10)
    padded = functional.pad(images, (pad, pad, pad, pad))
    down = torch.randint(2 * pad + 1, (batch, 1), generator=generator)
    right = torch.randint(2 * pad + 1, (batch, 1), generator=generator)
    mirror = torch.rand(batch, 1, generator=generator) < 0.5
    column = torch.arange(width)
    rows = down + torch.arange(height)
    columns = right + torch.where(mirror, width - 1 - column, column)
    # One gather for shift and mirror, by the number of the pixel in the padded image.
    pixel = (rows[:, :, None] * (width + 2 * pad) + columns[:, None, :]).to(images.device)
    picked = padded.flatten(2).gather(2, pixel.view(batch, 1, -1).expand(-1, channels, -1))
    return picked.view(images.shape)


def jitter(images: Tensor, generator: torch.Generator, strength: float = 0.4) -> Tensor:
    """Change brightness, contrast and saturation of every image by its own random factors.

    Args:
        images: float (B, 3, H, W) in [0, 1].
        generator: CPU generator.
        strength: Each factor is uniform in [1 - strength, 1 + strength].

    Returns:
        float (B, 3, H, W) in [0, 1].
    """
    brightness, contrast, saturation = (
        _uniform(len(images), 1 - strength, 1 + strength, generator)
        .view(-1, 1, 1, 1)
        .to(images.device)
        for _ in range(3)
    )
    # ITU-R BT.601 luma, the grey of torchvision's colour transforms.
    luma = torch.tensor([0.299, 0.587, 0.114], device=images.device).view(1, 3, 1, 1)
    images = (images * brightness).clamp_(0, 1)
    grey = (images * luma).sum(1, keepdim=True)
    images = torch.lerp(grey.mean((2, 3), keepdim=True), images, contrast).clamp_(0, 1)
    grey = (images * luma).sum(1, keepdim=True)
    return torch.lerp(grey, images, saturation).clamp_(0, 1)


def _none(images: Tensor, generator: torch.Generator) -> Tensor:
    return images


def _crop_flip_jitter(images: Tensor, generator: torch.Generator) -> Tensor:
    return jitter(to_float(crop_flip(images, generator)), generator)


POLICIES: dict[str, Policy] = {
    "none": _none,
    "crop_flip": crop_flip,
    "crop_flip_jitter": _crop_flip_jitter,
}


def augment(images: Tensor, policy: str, generator: torch.Generator) -> Tensor:
    """Apply a named policy to a batch.

    Args:
        images: uint8 (B, 3, H, W).
        policy: A key of `POLICIES`.
        generator: CPU generator; the batch is a function of its state alone.

    Returns:
        float32 (B, 3, H, W) in [0, 1], channels last in memory.

    Raises:
        ValueError: The policy is not known.
    """
    if policy not in POLICIES:
        raise ValueError(f"unknown augmentation {policy!r}: choose one of {', '.join(POLICIES)}")
    images = to_float(POLICIES[policy](images, generator))
    return images.contiguous(memory_format=torch.channels_last)
