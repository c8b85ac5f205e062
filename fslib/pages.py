"""Small things that every page of the book needs: showing code, quoting papers, one table style."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import pandas as pd
from IPython.display import HTML, Markdown

from fslib.paths import ROOT


def show_source(*things: Any) -> Markdown:
    """The source of functions, methods or classes, so that a page never holds a second copy.

    Args:
        *things: What `inspect.getsource` understands.

    Returns:
        Highlighted code, in JupyterLab and in the rendered book.
    """
    blocks = []
    for thing in things:
        file = inspect.getsourcefile(thing) or ""
        lines, start = inspect.getsourcelines(thing)
        indent = len(lines[0]) - len(lines[0].lstrip())
        code = "".join(line[indent:] if line.strip() else line for line in lines).rstrip()
        place = file[file.rfind("fslib") :]
        blocks.append(f"`{place}`, line {start}:\n\n```python\n{code}\n```")
    return Markdown("\n\n".join(blocks))


def table(rows: pd.DataFrame | Sequence[dict[str, Any]], digits: int = 2) -> HTML:
    """A table without row numbers.

    Args:
        rows: A frame, or one dictionary a row.
        digits: Decimals of plain numbers.
    """
    frame = pd.DataFrame(rows)
    return HTML(
        frame.to_html(index=False, border=0, na_rep="", float_format=f"{{:.{digits}f}}".format)
    )


def published(dataset: str, settings: Sequence[str] = (), paper: str | None = None) -> pd.DataFrame:
    """Numbers that the papers print, with the table each stands in.

    Args:
        dataset: As the papers write it, such as `CIFAR-FS`.
        settings: Only these, such as `5-way 1-shot`; all where empty.
        paper: `bml`, `dmf`, `margins`, `scl` or `negative_margin`; all where None.

    Returns:
        Columns paper, method, backbone, dataset, setting, accuracy, ci95, source.
    """
    table = pd.read_csv(ROOT / "results" / "published.csv")
    keep = table["dataset"].eq(dataset)
    if settings:
        keep &= table["setting"].isin(list(settings))
    if paper:
        keep &= table["paper"].eq(paper)
    return table[keep].reset_index(drop=True)


def in_words(first: str, second: str, difference: tuple[float, float], unit: str = "points") -> str:
    """A paired difference as a sentence that claims no more than its interval allows.

    Args:
        first: What is compared.
        second: With what.
        difference: Mean of first - second and the half-width of its 95 % interval.
        unit: Of both numbers.
    """
    mean, ci95 = difference
    if abs(mean) <= ci95:
        return f"{first} and {second} cannot be told apart here ({mean:+.2f} ± {ci95:.2f} {unit})"
    side = "above" if mean > 0 else "below"
    return f"{first} is {abs(mean):.2f} ± {ci95:.2f} {unit} {side} {second}"
