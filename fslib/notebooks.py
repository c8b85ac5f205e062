"""Read a page of the book, know its parameters, and run it with one setting.

A page is a percent script (``book/start/task.py``); the ``.ipynb`` beside it follows. Everything
here takes either. :func:`run` is one importable function, so that every kind of pool can call it:
a process pool, Dask, or Slurm through submitit.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jupytext
import nbformat
import papermill
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbformat import NotebookNode
from papermill.exceptions import PapermillExecutionError
from papermill.translators import PythonTranslator
from traitlets import default

REPOSITORY = Path(__file__).resolve().parents[1]
INJECTED = "injected-parameters"
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
_PAPERMILL_TAGS = {INJECTED, "papermill-error-cell-tag"}


class UnknownParameter(ValueError):
    """A parameter was given that the page does not declare."""


class CellFailed(RuntimeError):
    """A cell of a page raised an error; the message names page and cell."""


class KernelSockets(AsyncKernelManager):
    """A kernel manager on Unix sockets, so that parallel kernels never race for a TCP port.

    It also looks for the kernel ``python3`` in this environment only: a user's own kernel of that
    name, which may lack everything the book needs, is not taken instead.
    """

    @default("transport")
    def _transport_default(self) -> str:
        return "ipc"

    @default("ip")
    def _ip_default(self) -> str:
        return tempfile.mkdtemp(prefix="kernel") + "/s"

    @default("kernel_spec_manager")
    def _kernel_spec_manager_default(self) -> KernelSpecManager:
        return KernelSpecManager(kernel_dirs=[str(Path(sys.prefix, "share/jupyter/kernels"))])

    async def _async_cleanup_resources(self, restart: bool = False) -> None:
        await super()._async_cleanup_resources(restart=restart)
        if not restart and self.transport == "ipc":
            shutil.rmtree(Path(self.ip).parent, ignore_errors=True)

    cleanup_resources = _async_cleanup_resources


def pages_in(folder: str | Path, pattern: str = "*.py") -> list[Path]:
    """Give the pages below a folder in order, without the copies that JupyterLab keeps of them."""
    found = Path(folder).rglob(pattern)
    return sorted(p for p in found if ".ipynb_checkpoints" not in p.parts)


def read_page(path: str | Path) -> NotebookNode:
    """Read a page from its percent script or its notebook.

    The identity of a cell is made from its text, so that the same script always gives the same
    notebook, byte for byte, and an edit changes nothing but the cells it touches.

    Args:
        path: a ``.py`` in the percent format, or an ``.ipynb``.

    Returns:
        The notebook, without outputs where it came from a script.
    """
    path = Path(path)
    if path.suffix == ".ipynb":
        return nbformat.read(path, as_version=4)
    page = jupytext.read(path)
    # The headers of both twins then say the same, whatever the installed jupytext's number is.
    page.metadata.get("jupytext", {}).pop("text_representation", None)
    if not page.metadata.get("jupytext"):
        page.metadata.pop("jupytext", None)
    page.nbformat, page.nbformat_minor = 4, 5
    seen: dict[str, int] = {}
    for cell in page.cells:
        text = f"{cell.cell_type}\n{cell.source}"
        seen[text] = seen.get(text, 0) + 1
        cell["id"] = _digest(f"{text}\n{seen[text]}")[:8]
    return page


def parameters_of(page: NotebookNode) -> dict[str, Any]:
    """Give the parameters that a page declares, with their default values as text.

    Args:
        page: a notebook with one cell tagged ``parameters``.

    Returns:
        Name to default (as written in the cell), in the order of the cell.
    """
    cells = [c for c in page.cells if "parameters" in c.metadata.get("tags", [])]
    if not cells:
        return {}
    return {p.name: p.default for p in PythonTranslator.inspect(cells[0])}


def unknown_parameters(page: str | Path, known: Iterable[str], given: Iterable[str]) -> str:
    """Say in one sentence which of the names given are no parameters of a page.

    Args:
        page: for the message.
        known: what the page declares, see :func:`parameters_of`.
        given: names.

    Returns:
        The sentence, which also says what there is; "" where all are known.
    """
    unknown = ", ".join(sorted(set(given) - set(known)))
    there = ", ".join(known) or "none"
    return f"{page} has no parameter {unknown}; its parameters are: {there}." if unknown else ""


def code_of(page: NotebookNode) -> list[tuple[str, tuple[str, ...]]]:
    """Give the code cells of a page as (source, tags), without what papermill put in."""
    cells = [(c, sorted(c.metadata.get("tags", []))) for c in page.cells if c.cell_type == "code"]
    return [(c.source, tuple(tags)) for c, tags in cells if not _PAPERMILL_TAGS & set(tags)]


def code_digest(page: NotebookNode) -> str:
    """Give a hash of all that decides what a page computes: its code cells and their tags."""
    return _digest(json.dumps(code_of(page)))


def tree_digest(folder: str | Path, pattern: str = "*.py") -> str:
    """Give a hash of the files below a folder, by relative name and content."""
    total = hashlib.sha256()
    for file in sorted(p for p in Path(folder).rglob(pattern) if p.is_file()):
        total.update(file.relative_to(folder).as_posix().encode() + b"\0")
        total.update(hashlib.sha256(file.read_bytes()).digest())
    return total.hexdigest()


def run(
    notebook: str | Path,
    output: str | Path,
    parameters: Mapping[str, Any] | None = None,
    cwd: str | Path | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> str:
    """Execute one page with one setting; ``output`` is only ever written whole.

    Cells are saved to ``<output>.partial.ipynb`` as they finish, so a long run can be watched. That
    file becomes ``output`` at the end. Where a cell failed it stays, and so does an older
    ``output``.

    Args:
        notebook: the page, ``.py`` or ``.ipynb``.
        output: the executed notebook to write.
        parameters: values for names that the page's ``parameters`` cell declares.
        cwd: folder to run in; the repository's root by default, so that a page sees the same
            surroundings whoever starts it.
        metadata: what to note in the executed notebook under ``fslib``; ``seconds`` is added. With
            it (even empty) the copy is also made fit to publish, see :func:`tidy`.

    Returns:
        The path of the executed notebook.

    Raises:
        UnknownParameter: a name is not declared by the page; nothing has run.
        CellFailed: a cell raised, or its kernel died.
    """
    parameters = dict(parameters or {})
    page = read_page(notebook)
    if refusal := unknown_parameters(notebook, parameters_of(page), parameters):
        raise UnknownParameter(refusal)
    output = Path(output).resolve()
    partial = output.with_suffix(".partial.ipynb")
    partial.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(page, partial)
    started = time.monotonic()
    _execute(notebook, partial, parameters, Path(cwd or REPOSITORY).resolve())
    if metadata is not None:
        done = tidy(nbformat.read(partial, as_version=4))
        done.metadata["fslib"] = {**metadata, "seconds": round(time.monotonic() - started, 1)}
        nbformat.write(done, partial)
    os.replace(partial, output)
    return str(output)


def _execute(notebook: str | Path, partial: Path, parameters: dict[str, Any], cwd: Path) -> None:
    """Run the cells of ``partial`` in place, and say which one failed."""
    # Windows has no Unix sockets for ZeroMQ; there the default manager's TCP ports have to do.
    manager = {"kernel_manager_class": KernelSockets} if os.name == "posix" else {}
    try:
        papermill.execute_notebook(
            str(partial),
            str(partial),
            parameters,
            kernel_name="python3",
            cwd=str(cwd),
            progress_bar=False,
            extra_arguments=["--IPKernelApp.log_level=CRITICAL"],  # it logs its own shutdown
            **manager,
        )
    except PapermillExecutionError as error:
        # papermill adds cells of its own (parameters, error marks): count the page's cells only.
        cells = nbformat.read(partial, as_version=4).cells
        cells = [c for c in cells if not _PAPERMILL_TAGS & set(c.metadata.get("tags", []))]
        failed = (i for i, c in enumerate(cells, 1) if c.source == error.source and _has_error(c))
        cell = next(failed, "?")
        trace = _COLOURS.sub("", "\n".join(error.traceback)).splitlines()[-12:]
        raise CellFailed(
            f"{notebook}, cell {cell} (In [{error.exec_count}]): {error.ename}: {error.evalue}\n"
            + "".join(f"    {line}\n" for line in trace)
            + f"    The cells up to there, with their outputs: {partial}"
        ) from None
    except Exception as error:  # the kernel died (no memory left, a crash) or never started
        ran = [c for c in nbformat.read(partial, as_version=4).cells if c.get("execution_count")]
        raise CellFailed(
            f"{notebook}, after {len(ran)} code cells: {type(error).__name__}: {error}"
        ) from None


def _has_error(cell: NotebookNode) -> bool:
    return any(shown.output_type == "error" for shown in cell.get("outputs", []))


def tidy(page: NotebookNode, root: str | Path = REPOSITORY) -> NotebookNode:
    """Take out of an executed notebook what belongs to one machine and one moment.

    Removes papermill's paths and times, the standard error stream (progress bars, library
    warnings), and the repository's and the home folder's place from text outputs.

    Args:
        page: the executed notebook; changed in place.
        root: the folder whose absolute path is written as ``.``.

    Returns:
        The same notebook.
    """
    page.metadata.pop("papermill", None)
    for cell in page.cells:
        cell.metadata.pop("papermill", None)
        cell.metadata.pop("execution", None)
        if not cell.metadata.get("tags"):
            cell.metadata.pop("tags", None)
        if cell.cell_type != "code":
            continue
        if INJECTED in cell.metadata.get("tags", []):
            cell.source = cell.source.replace("# Parameters\n", "# Given for this run\n", 1)
        cell.outputs = [o for o in cell.outputs if o.get("name") != "stderr"]
        for shown in cell.outputs:
            if "text" in shown:
                shown["text"] = _anywhere(shown["text"], root)
            for kind, value in shown.get("data", {}).items():
                if kind.startswith("text/") and isinstance(value, str):
                    shown["data"][kind] = _anywhere(value, root)
    return page


def refresh_prose(executed: NotebookNode, source: NotebookNode) -> NotebookNode | None:
    """Give the source's prose with the outputs of an executed copy.

    A better sentence needs no new run: only code decides the outputs.

    Args:
        executed: a copy that ran.
        source: the page as it is now.

    Returns:
        A new notebook, or None where the code has changed since the run.
    """
    if code_digest(executed) != code_digest(source):
        return None
    page = NotebookNode(nbformat.from_dict(json.loads(json.dumps(source))))
    ran = iter([c for c in executed.cells if c.cell_type == "code"])
    cells = []
    for cell in page.cells:
        if cell.cell_type == "code":
            done = next(ran)
            if INJECTED in done.metadata.get("tags", []):
                cells.append(done)
                done = next(ran)
            cell.outputs, cell.execution_count = done.outputs, done.execution_count
        cells.append(cell)
    page.cells = cells
    page.metadata.update(executed.metadata)
    return page


def _anywhere(text: str, root: str | Path) -> str:
    home = str(Path.home()).rstrip("/")
    text = text.replace(f"{root}/", "").replace(str(root), ".")
    return text.replace(f"{home}/", "~/") if home else text


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
