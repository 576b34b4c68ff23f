"""Where a figure comes from: the processor or GPU, and the commit. Every benchmark prints them beside its figures."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

COMMIT_VARIABLE = "PREFIXBANK_COMMIT"
"""Says the commit where the sources travel without their history."""
FEATURES = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")
"""What decides the speed of a matrix product."""


def hardware() -> str:
    """The processor, which of `FEATURES` it has, and how many of its cores are ours."""
    info = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    names = [line.partition(":")[2].strip() for line in info.splitlines() if line.startswith("model name")]
    features = [name for name in FEATURES if f" {name} " in f"{info} "]
    cores = len(os.sched_getaffinity(0))
    return f"{names[0] if names else platform.machine()}, {' '.join(features)}, {cores} cores"


def device_name(device: torch.device) -> str:
    """The GPU, or the processor where the device is one."""
    if device.type != "cuda":
        return hardware()
    import torch

    about = torch.cuda.get_device_properties(device)
    memory = f"{about.total_memory / 2**30:.0f} GiB, {about.L2_cache_size / 2**20:.0f} MiB L2"
    return f"{about.name}, {about.multi_processor_count} multiprocessors, {memory}, CUDA {torch.version.cuda}"


def commit() -> str:
    """The commit of the checkout, marked when it has changes; outside one what `COMMIT_VARIABLE` says, or "unknown"."""
    root = Path(__file__).resolve().parent.parent
    command = ["git", "describe", "--always", "--dirty", "--abbrev=9", "--exclude=*"]
    try:
        done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    except FileNotFoundError:  # there is no git
        return os.environ.get(COMMIT_VARIABLE, "unknown")
    return done.stdout.strip() or os.environ.get(COMMIT_VARIABLE, "unknown")
