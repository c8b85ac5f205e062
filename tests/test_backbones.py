"""Backbones: shapes, parameters, initial weights, and a drop rate that is the one asked for."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional

from fslib.backbones import DropBlock, Residual, build_backbone, dropblock_gamma, set_progress

NARROW = {"widths": (2, 3, 4, 5)}


def shape_of(name: str, side: int, **options) -> tuple[int, ...]:
    """Output shape of one image."""
    net, image = build_backbone(name, **options).eval(), torch.zeros(1, 3, side, side)
    with torch.no_grad():
        return tuple(net(image).shape[1:])


def parameters(name: str, **options) -> int:
    return sum(p.numel() for p in build_backbone(name, **options).parameters())


@pytest.mark.parametrize(
    ("name", "side", "options", "shape"),
    [
        ("resnet12", 84, NARROW, (5, 5, 5)),
        ("resnet12", 32, NARROW, (5, 2, 2)),
        ("resnet12", 84, {**NARROW, "ceil_pool": True}, (5, 6, 6)),
        (
            "resnet12",
            84,
            {**NARROW, "ceil_pool": True, "pools": (True, True, True, False)},
            (5, 11, 11),
        ),
        ("resnet12_slim", 32, {"drop_rate": 0.1}, (192, 2, 2)),
        ("resnet12", 80, {**NARROW, "pools": (True, False, True, True)}, (5, 10, 10)),
        ("conv4", 84, {}, (64, 5, 5)),
        ("conv4", 32, {}, (64, 2, 2)),
        ("conv4", 32, {"width": 8, "pools": (True, True, False, False)}, (8, 8, 8)),
        ("conv4", 32, {"width": 8, "project": 2}, (2, 2, 2)),
        ("resnet10", 84, {}, (512, 11, 11)),
        ("resnet10", 84, {"last_pool": True}, (512, 5, 5)),
        ("resnet18", 32, {}, (512, 4, 4)),
        ("resnet18", 32, {"last_pool": True}, (512, 2, 2)),
        ("resnet18", 96, {"small_stem": False}, (512, 3, 3)),
    ],
)
def test_shapes(name, side, options, shape):
    assert shape_of(name, side, **options) == shape
    assert build_backbone(name, **options).channels == shape[0]


def test_conv4_drops_in_training_only_and_has_no_more_weights_for_it():
    plain, dropping = (
        build_backbone("conv4", width=4),
        build_backbone("conv4", drop_rate=0.5, width=4),
    )
    assert list(plain.state_dict()) == list(dropping.state_dict())
    dropping.load_state_dict(plain.state_dict())
    images = torch.rand(2, 3, 32, 32)
    assert torch.equal(plain.eval()(images), dropping.eval()(images))
    assert not torch.equal(plain.train()(images), dropping.train()(images))


def test_a_projected_feature_may_be_negative():
    net = build_backbone("conv4", width=4, project=2).eval()
    images = torch.rand(8, 3, 32, 32)
    with torch.no_grad():
        net.blocks[-1].weight.fill_(-1.0)
        net.blocks[-1].bias.zero_()
        assert net(images).max() < 0  # the maps before it are positive


def test_parameter_counts():
    assert parameters("resnet12") == 12_424_320  # as counted in the released code
    # A stage: three convolutions and a shortcut, each followed by batch normalisation.
    stages = zip((3, 24, 48, 96), (24, 48, 96, 192), strict=True)
    slim = sum(9 * (i * o + 2 * o * o) + i * o + 4 * 2 * o for i, o in stages)
    assert parameters("resnet12_slim") == slim
    assert parameters("conv4") == 113_088  # Snell et al.: 9 (3 + 3 x 64) 64 + 4 x 3 x 64
    # torchvision's 11,689,512 without the classifier; the stem is 3 x 3 in place of 7 x 7.
    assert parameters("resnet18", small_stem=False) == 11_689_512 - 513_000
    assert parameters("resnet18") == 11_689_512 - 513_000 - 3 * 64 * (49 - 9)
    # ResNet-10 lacks the second block of each stage: two convolutions and their normalisation.
    second = sum(2 * 9 * w * w + 2 * 2 * w for w in (64, 128, 256, 512))
    assert parameters("resnet10") == parameters("resnet18") - second


@pytest.mark.parametrize(("name", "slope"), [("resnet12_slim", 0.1), ("conv4", 0.0)])
def test_convolutions_start_with_kaimings_variance(name, slope):
    torch.manual_seed(0)
    for part in build_backbone(name).modules():
        if isinstance(part, nn.Conv2d) and part.weight.numel() > 5000:
            fan_out = part.out_channels * part.kernel_size[0] ** 2
            expected = math.sqrt(2 / (1 + slope**2) / fan_out)
            assert part.weight.std().item() == pytest.approx(expected, rel=0.04)
            assert abs(part.weight.mean().item()) < 4 * expected / part.weight.numel() ** 0.5


def test_a_residual_stage_is_its_equation(normal):
    torch.manual_seed(0)
    stage = Residual(3, 4, pool=True, ceil_pool=False, drop=nn.Identity()).eval()
    for norm in (m for m in stage.modules() if isinstance(m, nn.BatchNorm2d)):
        norm.running_mean, norm.weight.data = torch.rand(4), torch.rand(4)
    images = normal(2, 3, 7, 7)
    x = images
    c1, b1, _, c2, b2, _, c3, b3 = stage.convolutions
    x = functional.leaky_relu(b1(functional.conv2d(x, c1.weight, padding=1)), 0.1)
    x = functional.leaky_relu(b2(functional.conv2d(x, c2.weight, padding=1)), 0.1)
    x = b3(functional.conv2d(x, c3.weight, padding=1))
    x = functional.leaky_relu(x + stage.shortcut[1](stage.shortcut[0](images)), 0.1)
    torch.testing.assert_close(stage(images), functional.max_pool2d(x, 2))


SIZES = [(1, 1), (2, 2), (5, 5), (10, 10), (3, 7), (6, 2)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("block", "rate"), [(5, 0.1), (5, 0.4), (3, 0.2), (1, 0.1)])
def test_the_drop_rate_is_the_one_asked_for(size, block, rate):
    torch.manual_seed(0)
    kept = DropBlock(rate, block)(torch.ones(64, 100, *size)) > 0
    dropped = (~kept).float().mean((2, 3)).flatten()  # independent maps
    error = dropped.std() / len(dropped) ** 0.5
    assert abs(dropped.mean() - rate) < 4.5 * error


@pytest.mark.parametrize("size", SIZES)
def test_whole_blocks_fall_and_the_rest_is_scaled_up(size):
    torch.manual_seed(1)
    out = DropBlock(0.3, 3)(torch.ones(20, 10, *size))
    assert out.mean().item() == pytest.approx(1, abs=1e-5)  # the rescale keeps the mean
    values = out.unique()
    assert len(values) == 2 and values[0] == 0
    assert values[1].item() == pytest.approx(out.numel() / (out > 0).sum().item(), rel=1e-5)
    side = min(3, *size)
    fallen = (out == 0).float()
    # Windows that fell whole, spread out again, must give back every fallen cell.
    whole = 1 - functional.max_pool2d(1 - fallen, side, stride=1)
    again = functional.max_pool2d(functional.pad(whole, (side - 1,) * 4), side, stride=1)
    assert torch.equal(again, fallen)
    assert (fallen.mean((2, 3)) > 0).any()  # channels of an image differ
    assert not torch.equal(fallen[:, 0], fallen[:, 1])


def test_dropping_is_no_part_of_evaluation_and_follows_the_ramp(normal):
    maps = normal(8, 50, 5, 5)
    drop = DropBlock(0.4, 2)
    assert drop.eval()(maps) is maps
    drop.train()
    shares = []
    for progress in (0.0, 0.25, 0.5, 1.0):
        set_progress(nn.Sequential(nn.Identity(), drop), progress)
        shares.append((drop(torch.ones(64, 100, 5, 5)) == 0).float().mean().item())
    assert shares == pytest.approx([0, 0.1, 0.2, 0.4], abs=0.01)


def test_the_gradient_passes_where_the_map_was_kept():
    torch.manual_seed(0)
    maps = torch.rand(4, 6, 5, 5, requires_grad=True)
    out = DropBlock(0.3, 2)(maps)
    out.sum().backward()
    torch.testing.assert_close(maps.grad, (out / maps).detach())


def test_gamma_by_hand():
    assert dropblock_gamma((5, 5), 5, 0.1) == pytest.approx(0.1)  # one block covers all
    assert dropblock_gamma((4, 7), 1, 0.1) == pytest.approx(0.1)
    assert dropblock_gamma((9, 9), 3, 0.0) == 0
    # On 2 x 3 cells a block of 2 starts at two places: the columns are covered 1, 2, 1 times.
    gamma = dropblock_gamma((2, 3), 2, 0.2)
    assert (2 * (1 - gamma) + (1 - gamma) ** 2) / 3 == pytest.approx(0.8)


def test_resnet12_drops_in_training_only_and_every_stage_gets_a_gradient(normal):
    torch.manual_seed(0)
    net = build_backbone("resnet12", drop_rate=0.3, **NARROW)
    kinds = [type(block.drop) for block in net.blocks]
    assert kinds == [nn.Dropout, nn.Dropout, DropBlock, DropBlock]
    images = normal(4, 3, 32, 32)
    assert not torch.equal(net(images), net(images))
    net(images).square().sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in net.parameters())
    net.eval()
    assert torch.equal(net(images), net(images))
    plain = build_backbone("resnet12", **NARROW)
    assert all(isinstance(block.drop, nn.Identity) for block in plain.blocks)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("resnet13", {}, "unknown backbone 'resnet13': choose one of conv4, conv4_32"),
        ("conv4", {"depth": 3}, "backbone 'conv4' does not take these options: .*'depth'"),
        ("resnet12", {"widths": (2, 3)}, "ResNet-12 has 4 stages: give 4 widths"),
        ("resnet12", {"drop_rate": 1.0}, r"rate in \[0, 1\)"),
    ],
)
def test_wrong_names_and_options_are_refused(name, options, message):
    with pytest.raises(ValueError, match=message):
        build_backbone(name, **options)
