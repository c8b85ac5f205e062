"""Run one page with many settings: in processes, on Dask, or on a Slurm cluster.

    python ci/sweep.py book/start/protocol.ipynb --grid shots=1,5 seed=0,1,2 --jobs 2
    python ci/sweep.py book/start/protocol.py --grid seed=0,1,2 --executor slurm --minutes 120

Each setting has its own output file below build/sweep; those that are there are not run again. The
work is one call of `fslib.notebooks.run`, which any other scheduler can make as well.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import hashlib
import itertools
import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import joblib
import nbformat
import yaml
from execute import overrides, profile_parameters

from fslib import notebooks

ROOT = Path(__file__).resolve().parents[1]


def settings_of(grid: list[str], fixed: dict[str, Any]) -> list[dict[str, Any]]:
    """Give every combination of a grid: `shots=1,5 seed=0,1` is four settings.

    A value that holds commas itself is written as YAML, the values in one more pair of brackets:
    `seeds=[[0],[1,2]]`.
    """
    axes: dict[str, list[Any]] = {}
    for axis in grid:
        name, equals, text = axis.partition("=")
        if not (name.isidentifier() and equals and text):
            raise SystemExit(f"--grid takes name=value,value, not {axis!r}.")
        values = yaml.safe_load(text if text.startswith("[") else f"[{text}]")
        axes[name] = values
    rows = itertools.product(*axes.values())
    return [{**fixed, **dict(zip(axes, row, strict=True))} for row in rows]


def label(setting: dict[str, Any]) -> str:
    """Give a setting's file name: readable, and a hash where it would be long or odd."""
    text = "-".join(f"{k}={v}" for k, v in setting.items()) or "default"
    plain = len(text) <= 80 and all(c.isalnum() or c in "=-_." for c in text)
    if plain:
        return text
    return hashlib.sha256(json.dumps(setting, sort_keys=True).encode()).hexdigest()[:16]


@contextmanager
def pool(name: str, jobs: int, folder: Path, minutes: int, gpus: int) -> Iterator[Any]:
    """Open what runs the settings; `local` is submitit without a cluster."""
    if name == "processes":
        with concurrent.futures.ProcessPoolExecutor(jobs) as workers:
            yield workers
    elif name == "dask":
        from distributed import Client, LocalCluster

        address = os.environ.get("DASK_SCHEDULER_ADDRESS")
        cluster = address or LocalCluster(jobs, threads_per_worker=1, dashboard_address=None)
        with Client(cluster) as client:
            yield client.get_executor()
        if not address:
            cluster.close()
    else:
        import submitit

        workers = submitit.AutoExecutor(folder=folder / "log", cluster=name)
        workers.update_parameters(timeout_min=minutes, gpus_per_node=gpus)
        if name == "slurm":
            workers.update_parameters(cpus_per_task=4, slurm_array_parallelism=jobs)
        with workers.batch() if name == "slurm" else _nothing():
            yield workers


@contextmanager
def _nothing() -> Iterator[None]:
    yield


def seconds_of(output: Path) -> float:
    """Give the seconds that an executed setting notes."""
    return nbformat.read(output, as_version=4).metadata.get("fslib", {}).get("seconds", 0.0)


def main(arguments: list[str] | None = None, runner: Callable[..., str] = notebooks.run) -> int:
    """Run the grid and print a table of outputs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("notebook", type=Path)
    parser.add_argument("--grid", nargs="+", default=[], metavar="NAME=V,V")
    parser.add_argument("-p", dest="pairs", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--profile", help="start from a profile's parameters")
    parser.add_argument("--executor", default="processes", help="processes, dask, slurm or local")
    parser.add_argument("--jobs", type=int, default=2, help="settings at a time")
    parser.add_argument("--minutes", type=int, default=240, help="limit of one Slurm job")
    parser.add_argument("--gpus", type=int, default=0, help="devices of one Slurm job")
    parser.add_argument("--output", type=Path, help="default: build/sweep/<page>")
    given = parser.parse_args(arguments)
    if given.executor not in ("processes", "dask", "slurm", "local"):
        raise SystemExit(f"There is no executor {given.executor}: processes, dask, slurm, local.")
    known = notebooks.parameters_of(notebooks.read_page(given.notebook))
    base = profile_parameters(given.profile) if given.profile else {}
    fixed = {k: v for k, v in base.items() if k in known} | overrides(given.pairs)
    settings = settings_of(given.grid, fixed)
    if unknown := sorted({name for s in settings for name in s} - set(known)):
        raise SystemExit(
            f"{given.notebook} has no parameter {', '.join(unknown)}; "
            f"its parameters are: {', '.join(known) or 'none'}."
        )
    folder = (given.output or ROOT / "build" / "sweep" / given.notebook.stem).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    os.environ["OMP_NUM_THREADS"] = str(max(1, joblib.cpu_count() // given.jobs))
    outputs = {folder / f"{label(s)}.ipynb": s for s in settings}
    waiting = [path for path in outputs if not path.exists()]
    failed: dict[Path, str] = {}
    note = {"profile": given.profile or "none"}
    page = given.notebook.resolve()
    with pool(given.executor, given.jobs, folder, given.minutes, given.gpus) as workers:
        tasks = {p: workers.submit(runner, page, p, outputs[p], ROOT, note) for p in waiting}
        if given.executor != "slurm":  # a Slurm batch is sent when the block ends
            failed = wait(tasks)
    if given.executor == "slurm":
        failed = wait(tasks)
    for path in outputs:
        state = "failed" if path in failed else "done" if path in waiting else "was there"
        took = f"{seconds_of(path):7.1f} s" if path.exists() else f"{'':9}"
        print(f"{path.stem:40} {state:9} {took}  {os.path.relpath(path)}")
    for message in failed.values():
        print(f"\nFailed: {message}", file=sys.stderr)
    return 1 if failed else 0


def wait(tasks: dict[Path, Any]) -> dict[Path, str]:
    """Wait for every setting and give the messages of those that failed."""
    failed = {}
    for path, task in tasks.items():
        try:
            task.result()
        except Exception as error:
            failed[path] = str(error)
    return failed


if __name__ == "__main__":
    sys.exit(main())
