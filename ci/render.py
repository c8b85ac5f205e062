"""Put the book's sources and the executed pages together, and render them with Jupyter Book.

    python ci/render.py --executed build/book          # what `make book` shows
    python ci/render.py --executed results/notebooks   # what `make site` shows: nothing is run

Executed pages get the prose of today. Where the code has changed since the run, the page says so.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import jupyter_server_mathjax
import nbformat

from fslib import notebooks

ROOT = Path(__file__).resolve().parents[1]
PAGES, HTML = ROOT / "build" / "pages", ROOT / "build" / "html"
# Of MathJax 2.7: TeX in, HTML with its own web fonts out. Nothing else is copied.
MATHJAX = (
    "LICENSE",
    "MathJax.js",
    "config/TeX-AMS-MML_HTMLorMML-full.js",
    "extensions/TeX",
    "extensions/HTML-CSS",
    "jax/element/mml/optable",
    "jax/output/HTML-CSS",
    "fonts/HTML-CSS",
)
STALE = """:::{warning}
The code of this page has changed since it was run under the profile `PROFILE`: the outputs below
belong to an earlier version. `make edition` runs it again.
:::"""
NOT_RUN = """:::{note}
This page has not been run for this edition: it shows code without outputs. `make book` runs it on
built-in images.
:::"""
RAN = """<p class="provenance">Run under the profile <code>PROFILE</code> in SECONDS.SMALL</p>"""
# What a reader of the small profiles has to know before the first number.
SMALL = (
    " Built-in images and a minute of training: the numbers show how the page works, not what the "
    "method is worth."
)


def page_for(source: Path, executed: Path) -> nbformat.NotebookNode:
    """Give the notebook to show for a page: with outputs where there are any, and their origin."""
    fresh = notebooks.read_page(source)
    if not executed.exists():
        return with_note(fresh, NOT_RUN)
    ran = nbformat.read(executed, as_version=4)
    note = ran.metadata.get("fslib", {})
    current = notebooks.refresh_prose(ran, fresh)
    seconds = float(note.get("seconds", 0))
    took = f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"
    text = (STALE if current is None else RAN).replace("SECONDS", took)
    text = text.replace("SMALL", SMALL if note.get("profile") in ("smoke", "quick") else "")
    return with_note(current or ran, text.replace("PROFILE", note.get("profile", "unknown")))


def with_note(page: nbformat.NotebookNode, text: str) -> nbformat.NotebookNode:
    """Put a line below the title of a page."""
    first = page.cells[0]
    title, _, rest = first.source.partition("\n")
    if first.cell_type == "markdown" and title.startswith("# "):
        first.source = f"{title}\n\n{text}\n{rest}"
    else:
        note = nbformat.v4.new_markdown_cell(text)
        note["id"] = "note"
        page.cells.insert(0, note)
    return page


def put(target: Path, content: bytes, kept: set[Path]) -> None:
    """Write a file only where it differs, so that Sphinx reads again only what changed."""
    kept.add(target)
    if not target.exists() or target.read_bytes() != content:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)


def assemble(book: Path, executed: Path, target: Path) -> None:
    """Fill ``target`` with what Jupyter Book reads: pages, prose, assets and MathJax."""
    kept: set[Path] = set()
    for file in sorted(p for p in book.rglob("*") if p.is_file()):
        relative = file.relative_to(book)
        if ".ipynb_checkpoints" in file.parts or file.suffix in (".ipynb", ".pyc"):
            continue
        if file.suffix == ".py":
            name = relative.with_suffix(".ipynb")
            text = nbformat.writes(page_for(file, executed / name)) + "\n"
            put(target / name, text.encode(), kept)
        else:
            put(target / relative, file.read_bytes(), kept)
    static = Path(jupyter_server_mathjax.__file__).parent / "static"
    for name in MATHJAX:
        whole = static / name
        for file in [whole] if whole.is_file() else [p for p in whole.rglob("*") if p.is_file()]:
            put(target / "_assets/mathjax" / file.relative_to(static), file.read_bytes(), kept)
    for old in [p for p in target.rglob("*") if p.is_file() and p not in kept]:
        old.unlink()


def render(pages: Path, html: Path, config: Path) -> int:
    """Run Jupyter Book with warnings as errors; ``html`` is replaced only by a whole site."""
    # api.md is made from fslib's docstrings, which Sphinx does not see change by itself.
    parts = [notebooks.tree_digest(pages, "*"), notebooks.tree_digest(ROOT / "fslib")]
    key = hashlib.sha256("".join([*parts, config.read_text()]).encode()).hexdigest()
    stamp = html / ".made-from"
    if stamp.exists() and stamp.read_text() == key:
        print("rendered pages: unchanged", flush=True)
        return 0
    started, work = time.monotonic(), pages.parent / "sphinx"
    command = [Path(sys.executable).parent / "jupyter-book", "build", pages, "--config", config]
    command += ["--path-output", work, "-W", "-n", "--keep-going", "-q"]
    shown = subprocess.run(
        command, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False
    )
    if shown.returncode:
        print(shown.stdout, file=sys.stderr)
        print("Jupyter Book did not render the pages: see its warnings above.", file=sys.stderr)
        return 1
    fresh = html.with_name(html.name + ".partial")
    shutil.rmtree(fresh, ignore_errors=True)
    shutil.copytree(work / "_build" / "html", fresh)
    (fresh / stamp.name).write_text(key)
    shutil.rmtree(html, ignore_errors=True)
    os.replace(fresh, html)
    print(f"rendered pages: {time.monotonic() - started:.0f} s", flush=True)
    return 0


def main(arguments: list[str] | None = None) -> int:
    """Assemble and render."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--executed", type=Path, default=ROOT / "build" / "book")
    parser.add_argument("--book", type=Path, default=ROOT / "book")
    parser.add_argument("--pages", type=Path, default=PAGES)
    parser.add_argument("--html", type=Path, default=HTML)
    parser.add_argument("--config", type=Path, default=ROOT / "_config.yml")
    given = parser.parse_args(arguments)
    assemble(given.book, given.executed, given.pages)
    return render(given.pages, given.html, given.config)


if __name__ == "__main__":
    sys.exit(main())
