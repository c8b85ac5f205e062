"""What this machine computes with: device, arithmetic, and the processes of a `torchrun`."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import platform
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import torch
from torch import nn

LEADER = "leader.json"  # in the folder of a run in training: which job holds its lock


def resolve_precision(precision: str, device: torch.device | str = "cpu") -> str:
    """Turn `auto` into `bf16-mixed` where the hardware multiplies bfloat16, else `32-true`.

    Emulated bfloat16 is slower than float32, so a CPU without the instructions keeps float32.
    """
    if precision != "auto":
        return precision
    if torch.device(device).type == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        # The question `lscpu` answers with avx512_bf16, amx_bf16 or (Arm) bf16.
        fast = any(flag in cpu_flags() for flag in ("avx512_bf16", "amx_bf16", "bf16"))
    return "bf16-mixed" if fast else "32-true"


@functools.cache
def _processor() -> dict[str, str]:
    """What the system says of the first processor; empty where it says nothing."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return {}
    pairs = [line.split(":", 1) for line in reversed(lines) if ":" in line]  # the first one stays
    return {key.strip().lower(): value.strip() for key, value in pairs}


def cpu_flags() -> frozenset[str]:
    """Instruction sets of the first processor; empty where the system does not say."""
    known = _processor()
    return frozenset(known.get("flags", known.get("features", "")).split())


def usual_device() -> str:
    """Where this machine trains and scores: `cuda` where it has a GPU, else `cpu`."""
    return "cuda" if torch.cuda.is_available() else "cpu"


@contextlib.contextmanager
def on_usual_device(network: nn.Module) -> Iterator[None]:
    """Let a network work on the GPU, where there is one, and put it back where it was."""
    home = next(network.parameters()).device
    try:
        network.to(usual_device())
        yield
    finally:
        network.to(home)


def autocast(device: torch.device, precision: str = "auto") -> AbstractContextManager:
    """The context of a forward pass outside training."""
    if resolve_precision(precision, device) == "bf16-mixed":
        return torch.autocast(device.type, dtype=torch.bfloat16)
    return contextlib.nullcontext()


def describe_machine() -> dict[str, str | int]:
    """Processor, cores, threads and versions, for records."""
    machine: dict[str, str | int] = {
        "processor": _processor().get("model name") or platform.processor() or platform.machine(),
        "cores": os.cpu_count() or 1,
        "threads": torch.get_num_threads(),
        "bf16": resolve_precision("auto") == "bf16-mixed",
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
    if torch.cuda.is_available():
        machine["gpu"] = torch.cuda.get_device_name()
    return machine


def first_process() -> bool:
    """Whether this is the first process of its `torchrun`, or the only one."""
    return int(os.environ.get("RANK", 0)) == 0


def this_job() -> str:
    """The address at which the processes of one `torchrun` meet."""
    return f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"


def first_process_trains(folder: Path) -> bool:
    """Wait until the first process of this job trains the run; False where it is there instead.

    The first process may have to wait for another job that trains the same run. To join it sooner
    would mean to wait for it at an address where it never comes.
    """
    leader = folder / LEADER
    while not (folder / "run.json").exists():
        with contextlib.suppress(FileNotFoundError):  # the other job may end at any moment
            if json.loads(leader.read_text()) == this_job():
                return True
        time.sleep(0.05)
    return False
