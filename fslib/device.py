"""Which arithmetic is fast and right on this machine."""

from __future__ import annotations

import contextlib
import os
import platform
from contextlib import AbstractContextManager
from pathlib import Path

import torch


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


def cpu_flags() -> frozenset[str]:
    """Instruction sets of the first processor; empty where the system does not say."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return frozenset()
    flags = next((line for line in lines if line.lower().startswith(("flags", "features"))), ":")
    return frozenset(flags.split(":", 1)[1].split())


def autocast(device: torch.device, precision: str = "auto") -> AbstractContextManager:
    """The context of a forward pass outside training."""
    if resolve_precision(precision, device) == "bf16-mixed":
        return torch.autocast(device.type, dtype=torch.bfloat16)
    return contextlib.nullcontext()


def describe_machine() -> dict[str, str | int]:
    """Processor, cores, threads and versions, for records."""
    name = platform.processor() or platform.machine()
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(x.split(":")[1].strip() for x in lines if x.startswith("model name"))
    machine: dict[str, str | int] = {
        "processor": name,
        "cores": os.cpu_count() or 1,
        "threads": torch.get_num_threads(),
        "bf16": resolve_precision("auto") == "bf16-mixed",
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
    if torch.cuda.is_available():
        machine["gpu"] = torch.cuda.get_device_name()
    return machine
