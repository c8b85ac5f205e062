"""Where things lie: the same answer from whichever folder a page is started in."""

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def _place(variable: str, default: str) -> Path:
    return Path(os.environ.get(variable) or ROOT / default).expanduser().resolve()


def data_root() -> Path:
    """The folder of packed data sets: `$FSLIB_DATA`, else `data/` of this project."""
    return _place("FSLIB_DATA", "data")


def runs_root() -> Path:
    """The folder of training runs: `$FSLIB_RUNS`, else `runs/` of this project."""
    return _place("FSLIB_RUNS", "runs")


def results_root() -> Path:
    """The folder of committed records: `$FSLIB_RESULTS`, else `results/` of this project."""
    return _place("FSLIB_RESULTS", "results")


def networks_root() -> Path:
    """The folder of committed networks, `networks/` in that of the records."""
    return results_root() / "networks"
