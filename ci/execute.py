"""Run the pages of the book with papermill under one profile, and only those that changed.

    python ci/execute.py --profile quick --output build/book
    python ci/execute.py --only start/task -p episodes=500

A page runs again when its code, anything in fslib, its parameters, the pack of a data set that they
name, the committed records of its data set or the published numbers changed. An executed copy notes
what it was made from; one that notes something else is run again, but stays as good to render and
check as it was.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import hashlib
import json
import os
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import joblib
import nbformat
import yaml

from fslib import notebooks
from fslib.packs import BUILT_IN
from fslib.paths import data_root, results_root
from fslib.values import value_of

ROOT = Path(__file__).resolve().parents[1]
PROFILES = ROOT / "ci" / "profiles"
MEMORY_A_PAGE = 2.5e9  # bytes: torch, a data set and one training run
# Large buffers kept instead of given back to the system at each step: up to a quarter faster.
ALLOCATOR = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": "17179869184",
    "MALLOC_TOP_PAD_": "134217728",
}


def profile_parameters(name: str) -> dict[str, Any]:
    """Read a profile's parameters; an unknown name is an error that gives the known ones."""
    file = PROFILES / f"{name}.yaml"
    if not file.exists():
        known = ", ".join(sorted(p.stem for p in PROFILES.glob("*.yaml")))
        raise SystemExit(f"There is no profile {name}; the profiles are: {known}.")
    return yaml.safe_load(file.read_text())


def overrides(pairs: list[str]) -> dict[str, Any]:
    """Read `name=value` pairs; 3 and 1e-2 are numbers, [0, 1] is a list."""
    values = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not (name.isidentifier() and equals):
            raise SystemExit(f"-p takes name=value, not {pair!r}.")
        values[name] = value_of(value)
    return values


def pages(book: Path, only: list[str]) -> list[Path]:
    """Give the book's pages in order, or those named (`start/task`, or a folder: `start`)."""
    found = notebooks.pages_in(book)
    if not only:
        return found
    names = {p: p.relative_to(book).with_suffix("").as_posix() for p in found}
    wanted = [o.removeprefix("book/").removesuffix(".py").removesuffix(".ipynb") for o in only]
    for name in wanted:
        if not any(n == name or n.startswith(name + "/") for n in names.values()):
            raise SystemExit(
                f"There is no page {name}; the pages are: {', '.join(names.values())}."
            )
    return [p for p, n in names.items() if any(n == w or n.startswith(w + "/") for w in wanted)]


def packs_of(values: Iterable[Any]) -> list[str]:
    """Give the tables of contents of the packs that values name.

    Those of the built-in sets do not count: a page may make them, and fslib decides what they hold.
    """
    names = {str(value).strip("'\"") for value in values}  # a default is as the cell writes it
    packs = [p for p in sorted(data_root().glob("*/pack.json")) if p.parent.name in names]
    return [p.read_text(encoding="utf-8") for p in packs if not p.parent.name.startswith(BUILT_IN)]


def key_of(page: Any, parameters: dict[str, Any], fslib: str) -> str:
    """Give a hash of everything that an executed copy depends on."""
    parts = [notebooks.code_digest(page), sorted(parameters.items()), fslib]
    parts += packs_of({**notebooks.parameters_of(page), **parameters}.values())
    # Where `fslib.pages.published` reads them, whatever folder the records are in.
    parts.append(notebooks.tree_digest(ROOT / "results", "published.csv"))
    if "dataset" in parameters:
        own = f"{parameters['dataset']}--*.json"
        parts.append(notebooks.tree_digest(results_root() / "runs", own))
    return hashlib.sha256(json.dumps(parts, default=str).encode()).hexdigest()


def noted(output: Path) -> dict[str, Any]:
    """Give what an executed copy says of itself; empty where there is none."""
    if not output.exists():
        return {}
    return dict(nbformat.read(output, as_version=4).metadata.get("fslib", {}))


def crew(jobs: int | None, pages: int) -> tuple[int, int]:
    """Choose how many pages run side by side and how many threads each has.

    Small nets gain more from a second run than from a second thread, so pages come first.
    """
    cores = joblib.cpu_count()
    if jobs is None:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        jobs = min(cores, int(memory // MEMORY_A_PAGE))
    jobs = max(1, min(jobs, pages))
    return jobs, max(1, cores // jobs)


def execute(source: Path, output: Path, parameters: dict[str, Any], note: dict[str, Any]) -> float:
    """Run one page and give its seconds; a worker process calls this."""
    started = time.monotonic()
    try:
        notebooks.run(source, output, parameters, cwd=ROOT, metadata=note)
    except KeyboardInterrupt:
        os._exit(130)  # a worker that lived on would begin the next page in its queue
    return time.monotonic() - started


def main(arguments: list[str] | None = None) -> int:
    """Run what has to run; 1 if a cell failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--profile", default="quick", help="a file in ci/profiles (quick)")
    parser.add_argument("--output", type=Path, default=ROOT / "build" / "book")
    parser.add_argument("--book", type=Path, default=ROOT / "book")
    parser.add_argument("--only", nargs="+", default=[], metavar="PAGE")
    parser.add_argument("--jobs", type=int, help="pages at a time (default: one a core)")
    parser.add_argument("--force", action="store_true", help="run unchanged pages too")
    parser.add_argument("-p", dest="pairs", action="append", default=[], metavar="NAME=VALUE")
    given = parser.parse_args(arguments)
    profile, extra = profile_parameters(given.profile), overrides(given.pairs)
    fslib = notebooks.tree_digest(ROOT / "fslib")

    plan, unchanged = [], 0
    for source in pages(given.book, given.only):
        page = notebooks.read_page(source)
        known = notebooks.parameters_of(page)
        if refusal := notebooks.unknown_parameters(source, known, extra):
            raise SystemExit(refusal)
        values = {k: v for k, v in {**profile, **extra}.items() if k in known}
        output = (given.output / source.relative_to(given.book)).with_suffix(".ipynb")
        before = noted(output)
        key = key_of(page, values, fslib)
        if before.get("key") == key and not given.force:
            unchanged += 1
            continue
        note = {
            "profile": given.profile,
            "fslib": fslib[:16],
            "source": notebooks.code_digest(page),
            "key": key,
        }
        plan.append((-before.get("seconds", 0), source, output, values, note))
    plan.sort(key=lambda row: row[:2])  # the longest first
    jobs, threads = crew(given.jobs, len(plan))
    print(
        f"profile {given.profile}: pages to run: {len(plan)}, unchanged: {unchanged}"
        + (f"; {jobs} at a time, threads each: {threads}" if plan else ""),
        flush=True,
    )
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[name] = str(threads)
    os.environ.update(ALLOCATOR)  # the kernels are started with it
    os.environ["PYDEVD_DISABLE_FILE_VALIDATION"] = "1"  # else a warning from every kernel

    failures, done = [], 0
    with concurrent.futures.ProcessPoolExecutor(jobs) as pool:
        tasks = {pool.submit(execute, *row[1:]): row[1] for row in plan}
        try:
            for task in concurrent.futures.as_completed(tasks):
                done += 1
                name = tasks[task].relative_to(given.book).with_suffix("").as_posix()
                try:
                    print(f"[{done:2}/{len(plan)}] {name:40} {task.result():7.1f} s", flush=True)
                except Exception as error:
                    failures.append(str(error))
                    print(f"[{done:2}/{len(plan)}] {name:40}  FAILED", flush=True)
        except KeyboardInterrupt:  # else the pool would begin all that still waits
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    for failure in failures:
        print(f"\nFailed: {failure}", file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit("Stopped; pages that had finished are kept.")
