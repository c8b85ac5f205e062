"""Make the records of the published edition: every line of `ci/edition.txt`, several at a time.

python ci/records.py --jobs 2              # all that is not there yet
python ci/records.py --only protonet       # lines that contain a word

Each run uses one thread: several side by side do more work than one run with all threads, and
suffer less from busy neighbours. What is interrupted goes on where it stopped.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import hashlib
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

from execute import ALLOCATOR

ROOT = Path(__file__).resolve().parents[1]


def commands(only: str = "") -> list[str]:
    """The lines of the edition, in order."""
    lines = (ROOT / "ci" / "edition.txt").read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line and not line.startswith("#") and only in line]


def make(line: str, log: Path) -> tuple[int, float]:
    """Run one command; its output goes to `log`. Gives exit status and seconds."""
    started = time.monotonic()
    words = [sys.executable, "-m", "fslib.measure", *shlex.split(line)]
    environment = {**os.environ, **ALLOCATOR, "OMP_NUM_THREADS": "1"}
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w") as output:
        done = subprocess.run(words, cwd=ROOT, env=environment, stdout=output, stderr=output)
    return done.returncode, time.monotonic() - started


def main(arguments: list[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--only", default="", help="lines that contain this")
    given = parser.parse_args(arguments)
    lines = commands(given.only)
    names = [hashlib.sha256(line.encode()).hexdigest()[:8] for line in lines]
    logs = [
        ROOT / "runs" / "logs" / f"{line.split()[0]}-{name}.log"
        for line, name in zip(lines, names, strict=True)
    ]
    print(f"{len(lines)} commands, {given.jobs} at a time; what they print: runs/logs")
    failed = 0
    with concurrent.futures.ThreadPoolExecutor(given.jobs) as pool:
        jobs = {
            pool.submit(make, line, log): (line, log) for line, log in zip(lines, logs, strict=True)
        }
        try:
            for done, job in enumerate(concurrent.futures.as_completed(jobs), 1):
                status, seconds = job.result()
                line, log = jobs[job]
                failed += status != 0
                said = f"{seconds / 60:6.1f} min" if status == 0 else f"FAILED, see {log}"
                print(f"[{done:2}/{len(lines)}] {said}  {line}", flush=True)
        except KeyboardInterrupt:  # else the pool would begin all that still waits
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    print("all records are in results/runs" if not failed else f"{failed} commands failed")
    return 1 if failed else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit("Stopped; records that had finished are kept, and the next call goes on.")
