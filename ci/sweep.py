"""Run one page with many settings: in processes, on Dask, or on a Slurm cluster.

    python ci/sweep.py book/start/protocol.ipynb --grid shots=1,5 seed=0,1,2 --jobs 2
    python ci/sweep.py book/start/protocol.py --grid seed=0,1,2 --executor slurm --minutes 120

Each setting has its own output file below build/sweep, and is not run again until the code of the
page changes. The work is one call of `fslib.notebooks.run`, which any other scheduler can make as
well.
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
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import joblib
from execute import noted, overrides, profile_parameters

from fslib import notebooks
from fslib.values import value_of

ROOT = Path(__file__).resolve().parents[1]
SLURM_CORES = 4  # of one job


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
        axes[name] = value_of(text if text.startswith("[") else f"[{text}]")
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
            workers.update_parameters(cpus_per_task=SLURM_CORES, slurm_array_parallelism=jobs)
        with workers.batch() if name == "slurm" else nullcontext():
            yield workers


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
    parser.add_argument("--output", type=Path, help="default: build/sweep/<part>/<page>")
    given = parser.parse_args(arguments)
    if given.executor not in ("processes", "dask", "slurm", "local"):
        raise SystemExit(f"There is no executor {given.executor}: processes, dask, slurm, local.")
    path = given.notebook.resolve()
    page = notebooks.read_page(path)
    known = notebooks.parameters_of(page)
    base = profile_parameters(given.profile) if given.profile else {}
    fixed = {k: v for k, v in base.items() if k in known} | overrides(given.pairs)
    settings = settings_of(given.grid, fixed)
    if refusal := notebooks.unknown_parameters(
        given.notebook, known, (name for s in settings for name in s)
    ):
        raise SystemExit(refusal)
    usual = ROOT / "build" / "sweep" / path.parent.name / path.stem
    folder = (given.output or usual).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    # A Slurm job takes the variable along to a node where this one's cores say nothing.
    shared = max(1, joblib.cpu_count() // given.jobs)
    os.environ["OMP_NUM_THREADS"] = str(SLURM_CORES if given.executor == "slurm" else shared)
    outputs = {folder / f"{label(s)}.ipynb": s for s in settings}
    note = {"profile": given.profile or "none", "source": notebooks.code_digest(page)}
    waiting = [p for p in outputs if noted(p).get("source") != note["source"]]
    failed: dict[Path, str] = {}
    with pool(given.executor, given.jobs, folder, given.minutes, given.gpus) as workers:
        tasks = {p: workers.submit(runner, path, p, outputs[p], ROOT, note) for p in waiting}
        if given.executor != "slurm":  # a Slurm batch is sent when the block ends
            failed = wait(tasks)
    if given.executor == "slurm":
        failed = wait(tasks)
    for output in outputs:
        state = "failed" if output in failed else "done" if output in waiting else "was there"
        took = f"{'':9}" if output in failed else f"{noted(output).get('seconds', 0):7.1f} s"
        print(f"{output.stem:40} {state:9} {took}  {os.path.relpath(output)}")
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
