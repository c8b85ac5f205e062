"""Every test-time classifier under its short name: plain, fine-tuned, and the papers' own tests."""

from __future__ import annotations

from fslib.heads import HEADS, Head
from fslib.heads.alignment import ALIGNMENT_TESTS
from fslib.heads.finetune import FINE_TUNED
from fslib.heads.regression import REGRESSION_TESTS

ALL_HEADS: dict[str, Head] = {**HEADS, **FINE_TUNED, **REGRESSION_TESTS, **ALIGNMENT_TESTS}
"""What `head` of a record may name, beside the branches of a method."""
