"""Values that stand on a command line."""

from __future__ import annotations

import json
import re
from typing import Any

import yaml


class _Words(yaml.SafeLoader):
    """YAML in which 1e-2 is a number, alone or in a list: YAML 1.1 asks for a point and a sign."""


_Words.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"),
    list("-+0123456789"),
)


def value_of(text: str) -> Any:
    """Give the value that stands on a command line: JSON or, for plain words, YAML.

    Args:
        text: such as ``3``, ``1e-2``, ``true``, ``glyphs`` or ``[0, 1]``.
    """
    try:
        return json.loads(text)
    except ValueError:
        return yaml.load(text, _Words)
