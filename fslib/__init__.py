"""fslib: few-shot methods, losses and one harness, behind the pages of the few-shot book."""

__version__ = "0.1.0"
