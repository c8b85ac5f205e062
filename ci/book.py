"""Check, run, render and check again, in one process: what `make book` and `make site` do.

python ci/book.py --profile quick       # run what changed, then render build/book
python ci/book.py --edition             # render results/notebooks; nothing is run

The last line says which page to open.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import check
import execute
import render

ROOT = Path(__file__).resolve().parents[1]


def main(arguments: list[str] | None = None) -> int:
    """Do the steps in turn, and stop at the first that fails."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--profile", default="quick")
    parser.add_argument("--jobs")
    parser.add_argument("--edition", action="store_true", help="show results/notebooks")
    given = parser.parse_args(arguments)
    executed = ROOT / ("results/notebooks" if given.edition else "build/book")
    html = ROOT / "build/html"
    if check.main(["--sources"]):
        return 1
    if not given.edition:
        jobs = ["--jobs", given.jobs] if given.jobs else []
        if execute.main(["--profile", given.profile, "--output", str(executed), *jobs]):
            return 1
    if render.main(["--executed", str(executed), "--html", str(html)]):
        return 1
    # An edition may lack pages, and may be older than its source: the pages then say so.
    copies = [] if given.edition else ["--executed", str(executed)]
    if check.main([*copies, "--html", str(html)]):
        return 1
    print(f"The {'site' if given.edition else 'book'} is ready; open {html / 'index.html'}")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit("Stopped; pages that had finished are kept.")
