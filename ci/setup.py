"""Make .venv from requirements.lock, or do nothing where it is already made from it.

Runs under the system's Python, with nothing but the standard library.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
STAMP = VENV / "made-from"


def key() -> str:
    """Give a hash of all that the environment is made from: lock, package, Python, place."""
    total = hashlib.sha256()
    for file in ("requirements.lock", "pyproject.toml"):
        total.update((ROOT / file).read_bytes())
    total.update(f"{sys.version_info[:3]} {ROOT}".encode())
    return total.hexdigest()


def step(what: str, *command: object) -> None:
    """Say what happens, do it, and stop with one sentence where it fails."""
    print(f"environment: {what}", flush=True)
    done = subprocess.run([str(c) for c in command], cwd=ROOT, check=False)
    if done.returncode:
        sys.exit(f"environment: {what} failed (see above); once that is repaired, run make again.")


def main() -> None:
    """Make the environment where the stamp does not match."""
    if STAMP.exists() and STAMP.read_text() == key():
        return
    started = time.monotonic()
    STAMP.unlink(missing_ok=True)
    try:
        import ensurepip  # noqa: F401  (Debian and Ubuntu ship it apart)
    except ImportError:
        sys.exit(
            "Python has no venv module: install it (Debian, Ubuntu: apt install python3-venv)."
        )
    step(f"a virtual environment in {VENV}", sys.executable, "-m", "venv", "--clear", VENV)
    step("uv, which installs the rest", PYTHON, "-m", "pip", "install", "--quiet", "uv>=0.5")
    uv = VENV / "bin" / "uv"
    step(
        "the packages of requirements.lock (3 GB to fetch, 5 GB on disk; minutes at first)",
        *(uv, "pip", "sync", "--python", PYTHON, "--require-hashes", "requirements.lock"),
    )
    step("fslib itself", uv, "pip", "install", "--python", PYTHON, "--no-deps", "-q", "-e", ".")
    STAMP.write_text(key())
    print(f"environment: ready after {time.monotonic() - started:.0f} s", flush=True)


if __name__ == "__main__":
    main()
