"""Backbones: images in, feature maps out. Pooling is left to the method and the test features."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import numpy as np
import torch
from scipy.optimize import brentq
from torch import Tensor, nn
from torch.nn import functional


@functools.lru_cache(maxsize=4096)
def dropblock_gamma(size: tuple[int, int], block: int, rate: float) -> float:
    """Chance that a position starts a dropped block, so that `rate` of the cells fall on average.

    Ghiasi et al. (2018, Eq. 1) ignore that blocks overlap; here the expectation is solved
    exactly: a cell that n block positions cover survives with probability (1 - gamma)^n.

    Args:
        size: Height and width of the map, each at least `block`.
        block: Side of a block.
        rate: Expected share of dropped cells, in [0, 1).
    """
    if rate <= 0:
        return 0.0
    along = [np.convolve(np.ones(side - block + 1), np.ones(block)) for side in size]
    covering = np.outer(*along)
    return float(brentq(lambda g: 1 - rate - ((1 - g) ** covering).mean(), 0.0, 1.0))


class DropBlock(nn.Module):
    """Drop square blocks of a feature map, each channel of each image by itself.

    The block is clipped to the map, so small inputs work. `progress` (0 to 1, set by `fit`)
    ramps the drop rate up linearly, as in the released code of MetaOptNet, BML and DMF.
    """

    def __init__(self, rate: float, block: int = 5) -> None:
        super().__init__()
        if not 0 <= rate < 1 or block < 1:
            raise ValueError(
                f"DropBlock needs a rate in [0, 1) and a block of 1 or more, not {rate}, {block}"
            )
        self.rate, self.block, self.progress = rate, block, 1.0

    def forward(self, maps: Tensor) -> Tensor:
        """Map (B, C, h, w) to the same shape, rescaled by cells / kept cells."""
        # Rounded so that a long ramp meets the cache; 1e-4 of a cell is far below what matters.
        rate = round(self.rate * self.progress, 4)
        if not self.training or rate == 0:
            return maps
        batch, channels, height, width = maps.shape
        block = min(self.block, height, width)
        gamma = dropblock_gamma((height, width), block, rate)
        start = torch.rand(
            (batch, channels, height - block + 1, width - block + 1), device=maps.device
        )
        seeds = functional.pad((start < gamma).to(maps.dtype), (block - 1,) * 4)
        keep = 1 - functional.max_pool2d(seeds, block, stride=1)
        return maps * (keep * (keep.numel() / keep.sum().clamp(min=1)))


def set_progress(module: nn.Module, progress: float) -> None:
    """Tell every part with a ramp how far training is (0 to 1)."""
    for part in module.modules():
        if isinstance(part, DropBlock):
            part.progress = progress


def _kaiming(module: nn.Module, slope: float) -> None:
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.kaiming_normal_(part.weight, a=slope, mode="fan_out", nonlinearity="leaky_relu")


class Residual(nn.Module):
    """One stage of ResNet-12: three 3 x 3 convolutions, a 1 x 1 shortcut, pooling, dropping."""

    def __init__(
        self, inputs: int, outputs: int, pool: bool, ceil_pool: bool, drop: nn.Module
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for i in range(3):
            layers += [
                nn.Conv2d(outputs if i else inputs, outputs, 3, padding=1, bias=False),
                nn.BatchNorm2d(outputs),
                nn.LeakyReLU(0.1, inplace=True),
            ]
        self.convolutions = nn.Sequential(*layers[:-1])
        self.shortcut = nn.Sequential(
            nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs)
        )
        self.pool = nn.MaxPool2d(2, ceil_mode=ceil_pool) if pool else nn.Identity()
        self.drop = drop

    def forward(self, maps: Tensor) -> Tensor:
        """Map (B, inputs, h, w) to (B, outputs, h/2, w/2), or to (B, outputs, h, w) unpooled."""
        summed = self.convolutions(maps) + self.shortcut(maps)
        # A rising function commutes with taking the largest, and is cheaper afterwards.
        return self.drop(functional.leaky_relu(self.pool(summed), 0.1, inplace=True))


class Backbone(nn.Module):
    """Stages in a row.

    Attributes:
        blocks: The stages; a method may share some and copy others.
        channels: C of the last feature map.
        pool: How features are usually made from the map, `mean` or `flatten`.
    """

    def __init__(self, blocks: Sequence[nn.Module], channels: int, pool: str = "mean") -> None:
        super().__init__()
        self.blocks = nn.Sequential(*blocks)
        self.channels, self.pool = channels, pool

    def forward(self, images: Tensor) -> Tensor:
        """Map normalised images (B, 3, H, W) to feature maps (B, C, h, w)."""
        return self.blocks(images)


def resnet12(
    widths: Sequence[int] = (64, 160, 320, 640),
    drop_rate: float = 0.0,
    block_size: int = 5,
    pools: Sequence[bool] = (True, True, True, True),
    ceil_pool: bool = False,
) -> Backbone:
    """ResNet-12 of the few-shot literature (Lee et al. 2019), with free widths.

    Args:
        widths: Channels of the four stages.
        drop_rate: Plain dropout in stages 1 and 2, DropBlock in 3 and 4 (as released).
        block_size: Side of a dropped block, clipped to the map.
        pools: Which stages halve their map; DMF leaves the last one out.
        ceil_pool: Round the halved side up (84 -> 42 -> 21 -> 11), as DMF does.
    """
    if len(widths) != 4 or len(pools) != 4:
        raise ValueError(
            f"ResNet-12 has 4 stages: give 4 widths and 4 pools, not {widths} and {pools}"
        )
    drops = [nn.Dropout(drop_rate), nn.Dropout(drop_rate)]
    drops += [DropBlock(drop_rate, block_size), DropBlock(drop_rate, block_size)]
    inputs = (3, *widths[:-1])
    blocks = [
        Residual(i, o, pool, ceil_pool, drop if drop_rate else nn.Identity())
        for i, o, pool, drop in zip(inputs, widths, pools, drops, strict=True)
    ]
    backbone = Backbone(blocks, widths[-1])
    _kaiming(backbone, 0.1)
    return backbone


def conv4(
    width: int = 64,
    pools: Sequence[bool] = (True, True, True, True),
    drop_rate: float = 0.0,
    project: int = 0,
) -> Backbone:
    """Four convolutions of 64 filters (Snell et al. 2017); features are the flattened map.

    Finn et al. (2017) take 32: `conv4_32`, the quick network of this book.

    Args:
        width: Channels.
        pools: Which blocks halve their map.
        drop_rate: Dropping after every block, of the kinds that `resnet12` has there.
        project: Channels of a last 1 x 1 convolution without rectifier; 2 make features that can
            be drawn. None of it where 0.
    """
    blocks = [
        nn.Sequential(
            nn.Conv2d(width if i else 3, width, 3, padding=1),
            nn.BatchNorm2d(width),
            # Before the rectifier, not after: the same maps from a quarter of its work.
            nn.MaxPool2d(2) if pool else nn.Identity(),
            nn.ReLU(inplace=True),
        )
        for i, pool in enumerate(pools)
    ]
    if drop_rate:
        for i, block in enumerate(blocks):
            block.append(nn.Dropout(drop_rate) if i < 2 else DropBlock(drop_rate))
    if project:
        blocks.append(nn.Conv2d(width, project, 1))
    backbone = Backbone(blocks, project or width, pool="flatten")
    _kaiming(backbone, 0.0)
    return backbone


def _basic_blocks(layers: Sequence[int], small_stem: bool, last_pool: bool) -> Backbone:
    # torchvision takes seconds to import, and most pages use neither of these nets.
    from torchvision.models.resnet import BasicBlock
    from torchvision.models.resnet import ResNet as VisionResNet

    net = VisionResNet(BasicBlock, list(layers))
    stem: list[nn.Module] = [net.conv1, net.bn1, net.relu, net.maxpool]
    if small_stem:
        stem = [nn.Conv2d(3, 64, 3, padding=1, bias=False), net.bn1, net.relu]
        nn.init.kaiming_normal_(stem[0].weight, mode="fan_out", nonlinearity="relu")
    last = [net.layer4, nn.MaxPool2d(2)] if last_pool else [net.layer4]
    blocks = [nn.Sequential(*stem, net.layer1), net.layer2, net.layer3, nn.Sequential(*last)]
    return Backbone(blocks, 512)


def resnet18(small_stem: bool = True, last_pool: bool = False) -> Backbone:
    """ResNet-18 of torchvision; the small stem is one 3 x 3 convolution of stride 1.

    Args:
        small_stem: For inputs of 32 to 84 pixels; the usual stem is for 224.
        last_pool: Halve the last map once more, as in BML's released code.
    """
    return _basic_blocks((2, 2, 2, 2), small_stem, last_pool)


def resnet10(small_stem: bool = True, last_pool: bool = False) -> Backbone:
    """One basic block a stage, as in generalised few-shot learning (Gidaris & Komodakis 2018)."""
    return _basic_blocks((1, 1, 1, 1), small_stem, last_pool)


BACKBONES: dict[str, Callable[..., Backbone]] = {
    "conv4": conv4,
    "conv4_32": functools.partial(conv4, width=32),
    "resnet12": resnet12,
    "resnet12_slim": functools.partial(resnet12, widths=(24, 48, 96, 192)),
    "resnet10": resnet10,
    "resnet18": resnet18,
}


def build_backbone(name: str, **options) -> Backbone:
    """Make a backbone by name.

    Args:
        name: A key of `BACKBONES`.
        **options: Arguments of its function.

    Raises:
        ValueError: The name or an option is not known.
    """
    if name not in BACKBONES:
        raise ValueError(f"unknown backbone {name!r}: choose one of {', '.join(BACKBONES)}")
    try:
        return BACKBONES[name](**options)
    except TypeError as error:
        raise ValueError(f"backbone {name!r} does not take these options: {error}") from None
