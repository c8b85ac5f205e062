"""Let the .ipynb beside every page follow its .py: one way and without outputs."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import nbformat

from fslib.notebooks import pages_in, read_page

BOOK = Path(__file__).resolve().parents[1] / "book"


def twin_text(script: Path) -> str:
    """Give the notebook that belongs to a percent script, as the text of the file."""
    return nbformat.writes(read_page(script)) + "\n"


def main(arguments: list[str] | None = None) -> int:
    """Write the twins that differ, and name them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("scripts", nargs="*", type=Path, help="default: every page of the book")
    scripts = parser.parse_args(arguments).scripts or pages_in(BOOK)
    for script in scripts:
        twin, text = script.with_suffix(".ipynb"), twin_text(script)
        if not twin.exists() or twin.read_text() != text:
            twin.write_text(text)
            print(f"{twin} now follows {script.name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
