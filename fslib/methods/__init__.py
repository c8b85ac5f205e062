"""One file a method, each reading like the method section of its paper."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from fslib.backbones import build_backbone
from fslib.methods.am3 import AM3
from fslib.methods.base import Batch, Episodic, Method, MixedClasses
from fslib.methods.bml import BML
from fslib.methods.ce import CrossEntropy
from fslib.methods.dmf import DynamicMetaFilter
from fslib.methods.dynamic_fsl import DynamicFSL
from fslib.methods.margin_protonet import MarginProtoNet
from fslib.methods.negative_margin import NegativeMargin
from fslib.methods.protonet import ProtoNet
from fslib.methods.scl import ContrastiveDistillation, ProtoNetContrastive, SpatialContrastive

METHODS: dict[str, Callable[..., Method]] = {
    "ce": CrossEntropy,
    "protonet": ProtoNet,
    "bml": BML,
    "scl": SpatialContrastive,
    "scl_distilled": ContrastiveDistillation,
    "protonet_scl": ProtoNetContrastive,
    "am3": AM3,
    "dynamic_fsl": DynamicFSL,
    "dynamic_fsl_traml": partial(DynamicFSL, margin="task", hidden=128),
    "negative_margin": NegativeMargin,
    "dmf": DynamicMetaFilter,
}

# Both hosts of the adaptive margins, with every margin.
METHODS |= {
    f"{host}_{name}": partial(method, margin=kind)
    for host, method in (("protonet", MarginProtoNet), ("am3", AM3))
    for name, kind in (
        ("naml", "naive"),
        ("craml", "class"),
        ("traml", "task"),
        ("arcface", "angular"),
        ("cosface", "cosine"),
    )
}


def build_method(
    name: str,
    backbone: str = "conv4",
    classes: int = 64,
    backbone_options: dict[str, Any] | None = None,
    **options: Any,
) -> Method:
    """Make an untrained method by name.

    Args:
        name: A key of `METHODS`.
        backbone: A key of `fslib.backbones.BACKBONES`.
        classes: Number of base classes.
        backbone_options: Arguments of the backbone.
        **options: Arguments of the method.

    Raises:
        ValueError: A name or an option is not known.
    """
    if name not in METHODS:
        raise ValueError(f"unknown method {name!r}: choose one of {', '.join(METHODS)}")
    net = build_backbone(backbone, **(backbone_options or {}))
    try:
        return METHODS[name](net, classes, **options)
    except TypeError as error:
        raise ValueError(f"method {name!r} does not take these options: {error}") from None


__all__ = ["METHODS", "Batch", "Episodic", "Method", "MixedClasses", "build_method"]
