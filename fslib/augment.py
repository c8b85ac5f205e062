"""Augmentation of whole batches, on the device that trains.

Images arrive as packed uint8 and leave as float32 in [0, 1]. The random numbers come from one
CPU generator, so a batch is the same on every device.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

Policy = Callable[[Tensor, torch.Generator], Tensor]

LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, the grey of torchvision's colour transforms


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
    luma = torch.tensor(LUMA, device=images.device).view(1, 3, 1, 1)
    images = (images * brightness).clamp_(0, 1)
    grey = (images * luma).sum(1, keepdim=True)
    images = torch.lerp(grey.mean((2, 3), keepdim=True), images, contrast).clamp_(0, 1)
    grey = (images * luma).sum(1, keepdim=True)
    return torch.lerp(grey, images, saturation).clamp_(0, 1)


def resized_crop(images: Tensor, boxes: Tensor, mirror: Tensor) -> Tensor:
    """Cut a box out of every image, stretch it to the image's size and mirror it if asked.

    Args:
        images: float (B, 3, H, W).
        boxes: float (B, 4), top, left, height and width in pixels, inside the image.
        mirror: bool (B,).

    Returns:
        float (B, 3, H, W), bilinear.
    """

    def places(start: Tensor, length: Tensor, side: int) -> Tensor:
        """Where the `side` new pixels lie along one axis, -1 and 1 the outer pixels' centres."""
        steps = (torch.arange(side) + 0.5) / side * length[:, None] - 0.5
        # Not beyond the outer pixels of the box, as if it were cut out before it is stretched.
        steps = torch.minimum(steps.clamp(min=0), (length[:, None] - 1).clamp(min=0))
        return (start[:, None] + steps) * 2 / max(side - 1, 1) - 1

    top, left, height, width = boxes.unbind(1)
    down, right = places(top, height, images.shape[2]), places(left, width, images.shape[3])
    right = torch.where(mirror[:, None], right.flip(1), right)
    size = (-1, images.shape[2], images.shape[3])
    grid = torch.stack([right[:, None].expand(size), down[:, :, None].expand(size)], -1)
    grid = grid.to(images.device, images.dtype)
    return functional.grid_sample(images, grid, padding_mode="border", align_corners=True)


def random_boxes(
    size: int,
    height: int,
    width: int,
    generator: torch.Generator,
    scale: tuple[float, float] = (0.2, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> Tensor:
    """Boxes of random area, shape and place: float (B, 4), top, left, height, width.

    Args:
        size: B.
        height: Of the image, in pixels.
        width: Of the image, in pixels.
        generator: CPU generator.
        scale: Share of the image's area, uniform.
        ratio: Width over height, log-uniform; a box that would stick out is cut to the image.
    """
    area = _uniform(size, *scale, generator) * height * width
    shape = _uniform(size, math.log(ratio[0]), math.log(ratio[1]), generator).exp()
    tall = (area / shape).sqrt().clamp(1, height)
    wide = (area * shape).sqrt().clamp(1, width)
    top = torch.rand(size, generator=generator) * (height - tall)
    left = torch.rand(size, generator=generator) * (width - wide)
    return torch.stack([top, left, tall, wide], 1)


def turn_hue(images: Tensor, turns: Tensor) -> Tensor:
    """Turn the hue of every image, leaving saturation and value (of HSV) as they are.

    Args:
        images: float (B, 3, H, W) in [0, 1].
        turns: (B,) share of a full turn.
    """
    red, green, blue = images.unbind(1)
    value, chroma = images.amax(1), images.amax(1) - images.amin(1)
    # The largest channel says on which third of the colour circle the hue lies, in sixths of it.
    hue = torch.where(value == green, 2 * chroma + blue - red, 4 * chroma + red - green)
    hue = torch.where(value == red, green - blue, hue) / chroma.clamp(min=1e-12)
    hue = hue + 6 * turns.view(-1, 1, 1).to(images)
    # Each channel falls from the value by up to the chroma, depending on the hue's distance.
    sixth = (hue.unsqueeze(1) + hue.new_tensor([5, 3, 1]).view(1, 3, 1, 1)) % 6
    fall = torch.minimum(sixth, 4 - sixth).clamp(0, 1)
    return value.unsqueeze(1) - chroma.unsqueeze(1) * fall


def strong(images: Tensor, generator: torch.Generator) -> Tensor:
    """The augmentation of contrastive learning (Chen et al. 2020, SimCLR), without its blur.

    A random box of 20 to 100 % of the area, a mirror, with chance 0.8 a change of brightness,
    contrast, saturation (up to 0.4) and hue (up to a tenth of a turn), with chance 0.2 grey.

    Args:
        images: uint8 or float (B, 3, H, W).
        generator: CPU generator.

    Returns:
        float (B, 3, H, W) in [0, 1].
    """
    size = len(images)

    def chance(share: float) -> Tensor:
        return torch.rand(size, generator=generator) < share

    boxes = random_boxes(size, *images.shape[2:], generator)
    images = resized_crop(to_float(images), boxes, chance(0.5)).clamp(0, 1)
    coloured = turn_hue(jitter(images, generator), _uniform(size, -0.1, 0.1, generator))
    use, drop = (chance(share).view(-1, 1, 1, 1).to(images.device) for share in (0.8, 0.2))
    images = torch.where(use, coloured, images)
    luma = torch.tensor(LUMA, device=images.device).view(1, 3, 1, 1)
    return torch.where(drop, (images * luma).sum(1, keepdim=True), images).clamp(0, 1)


def _none(images: Tensor, generator: torch.Generator) -> Tensor:
    return images


def _crop_flip_jitter(images: Tensor, generator: torch.Generator) -> Tensor:
    return jitter(to_float(crop_flip(images, generator)), generator)


POLICIES: dict[str, Policy] = {
    "none": _none,
    "crop_flip": crop_flip,
    "crop_flip_jitter": _crop_flip_jitter,
    "strong": strong,
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
