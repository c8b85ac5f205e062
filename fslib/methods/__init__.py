"""One file a method, each reading like the method section of its paper."""

from __future__ import annotations

from typing import Any

from fslib.backbones import build_backbone
from fslib.methods.base import Batch, Episodic, Method, MixedClasses
from fslib.methods.ce import CrossEntropy
from fslib.methods.protonet import ProtoNet

METHODS: dict[str, type[Method]] = {"ce": CrossEntropy, "protonet": ProtoNet}


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
