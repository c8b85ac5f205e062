"""Hold the book's sources, the executed copies and the rendered site against each other.

    python ci/check.py --sources                             # before a commit
    python ci/check.py --executed build/book --html build/html

One line a fault; exit 1 if there is any. Sphinx publishes a traceback without a warning, papermill
lets a misspelt parameter pass, and neither sees two twins drift apart: this does.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag

import nbformat
from sphinx_external_toc.parsing import parse_toc_yaml
from twins import twin_text

from fslib import notebooks

ROOT = Path(__file__).resolve().parents[1]
WIDTH = 80  # longer lines scroll sideways on the page
REMOTE = re.compile(r"^\s*(https?:)?//", re.IGNORECASE)
REMOTE_CSS = re.compile(
    r"(?:@import\s*|url\()\s*['\"]?\s*((?:https?:)?//[^'\")\s]+)", re.IGNORECASE
)
# What a browser fetches by itself when it opens a page; other links wait for a click.
LOADED = {
    "script": ("src",),
    "img": ("src", "srcset"),
    "iframe": ("src",),
    "embed": ("src",),
    "object": ("data",),
    "source": ("src", "srcset"),
    "video": ("src", "poster"),
    "audio": ("src",),
    "link": ("href",),
}
NOT_LOADED = {
    "canonical",
    "author",
    "license",
    "next",
    "prev",
    "search",
    "index",
    "help",
    "alternate",
}


def toc_pages(book: Path) -> list[str]:
    """Give the names of all pages of the table of contents."""
    return list(parse_toc_yaml(book / "_toc.yml"))


def source_faults(book: Path) -> Iterator[str]:
    """Say what is wrong with the pages as they are committed."""
    for name in toc_pages(book):
        if not any((book / name).with_suffix(s).exists() for s in (".py", ".md")):
            yield f"{book.name}/_toc.yml: there is no page {name}"
    for twin in notebooks.pages_in(book, "*.ipynb"):
        if not twin.with_suffix(".py").exists():
            yield f"{twin}: no .py beside it, which is the source of a page"
    for script in notebooks.pages_in(book):
        page, twin = notebooks.read_page(script), script.with_suffix(".ipynb")
        if not twin.exists():
            yield f"{script}: no .ipynb beside it: run `make twins`"
        else:
            held = nbformat.read(twin, as_version=4)
            cells = [c for c in held.cells if c.cell_type == "code"]
            if any(c.outputs or c.execution_count for c in cells):
                yield f"{twin}: committed with outputs: run `make twins`"
            elif twin.read_text() != twin_text(script):
                yield f"{twin}: differs from {script.name}: run `make twins`"
        marked = sum("parameters" in c.metadata.get("tags", []) for c in page.cells)
        if marked != 1:
            yield f"{script}: needs exactly one cell tagged `parameters`, has {marked}"
        if page.metadata.get("kernelspec", {}).get("name") != "python3":
            yield f"{script}: its kernel must be python3"
        for number, cell in enumerate(page.cells, 1):
            wide = [x for x in cell.source.splitlines() if len(x) > WIDTH]
            if cell.cell_type == "code" and wide:
                yield f"{script}, cell {number}: a line of {len(wide[0])} columns ({WIDTH} at most)"


BARE = re.compile(r"\[?<[^>]* at 0x[0-9a-f]+>|Text\(")
RICHER = {"text/html", "text/markdown", "image/png"}


def executed_faults(executed: Path, book: Path) -> Iterator[str]:
    """Say what is wrong with executed copies: not there, of other code, errors, widgets."""
    for script in notebooks.pages_in(book):
        copy = (executed / script.relative_to(book)).with_suffix(".ipynb")
        if not copy.exists():
            yield f"{copy}: not there; {script.name} has not been executed"
            continue
        ran = nbformat.read(copy, as_version=4)
        if notebooks.code_digest(ran) != notebooks.code_digest(notebooks.read_page(script)):
            yield f"{copy}: older than {script}"
    for copy in notebooks.pages_in(executed, "*.ipynb"):
        if copy.name.endswith(".partial.ipynb"):
            continue
        ran = nbformat.read(copy, as_version=4)
        for number, cell in enumerate(ran.cells, 1):
            for shown in cell.get("outputs", []):
                if shown.output_type == "error":
                    yield f"{copy}, cell {number}: an error: {shown.ename}: {shown.evalue}"
                if any("widget-view" in kind for kind in shown.get("data", {})):
                    yield f"{copy}, cell {number}: a widget, which loads scripts from the network"
                if shown.get("name") == "stderr":
                    yield f"{copy}, cell {number}: standard error, which belongs to no page"
                if BARE.match("".join(shown.get("data", {}).get("text/plain", ""))) and not (
                    RICHER & set(shown["data"])
                ):
                    yield f"{copy}, cell {number}: an object shown as its address: begin with `_ =`"


class Page(HTMLParser):
    """Collects what a page loads, where it links to, and the anchors it offers."""

    def __init__(self, text: str) -> None:
        """Read the page."""
        super().__init__(convert_charrefs=True)
        self.loads: list[str] = []
        self.links: list[str] = []
        self.anchors: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note one element."""
        values = {name: value or "" for name, value in attrs}
        self.anchors.update(values[n] for n in ("id", "name") if values.get(n))
        if tag == "a" and values.get("href"):
            self.links.append(values["href"])
        if tag == "link" and set(values.get("rel", "").split()) <= NOT_LOADED:
            return
        for name in LOADED.get(tag, ()):
            if values.get(name):
                self.loads += [values[name]] if name != "srcset" else values[name].split(",")


def html_faults(html: Path, book: Path) -> Iterator[str]:
    """Say what is wrong with the site: pages missing, network requests, broken links."""
    for name in ["index", *toc_pages(book)]:
        if not (html / f"{name}.html").exists():
            yield f"{html / name}.html: not rendered"
    files = [p for p in sorted(html.rglob("*.html")) if "_static" not in p.parts]
    pages = {p.resolve(): Page(p.read_text()) for p in files}
    for path, page in pages.items():
        shown = path.relative_to(html.resolve())
        for address in page.loads:
            if REMOTE.match(address):
                yield f"{html.name}/{shown}: loads {address} from the network"
        for address in {*page.links, *page.loads}:
            place, anchor = urldefrag(address)
            if re.match(r"^([a-z][a-z0-9+.-]*:|//)", address, re.IGNORECASE):
                continue
            target = path if not place else (path.parent / unquote(place.split("?")[0])).resolve()
            if not target.exists():
                yield f"{html.name}/{shown}: a broken link to {address}"
            elif anchor and target in pages and unquote(anchor) not in pages[target].anchors:
                yield f"{html.name}/{shown}: a link to {address}, where nothing has that name"
    for sheet in sorted(html.rglob("*.css")):
        for address in REMOTE_CSS.findall(sheet.read_text(errors="replace")):
            yield f"{html.name}/{sheet.relative_to(html)}: loads {address} from the network"


def main(arguments: list[str] | None = None) -> int:
    """Print the faults of what was named."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sources", action="store_true", help="the committed pages and twins")
    parser.add_argument("--executed", type=Path, metavar="FOLDER", help="executed copies")
    parser.add_argument("--html", type=Path, metavar="FOLDER", help="the rendered site")
    parser.add_argument("--book", type=Path, default=ROOT / "book")
    given = parser.parse_args(arguments)
    faults: list[str] = []
    if given.sources:
        faults += source_faults(given.book)
    if given.executed:
        faults += executed_faults(given.executed, given.book)
    if given.html:
        faults += html_faults(given.html, given.book)
    print("\n".join(faults), end="\n" if faults else "", file=sys.stderr)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
