"""Where a figure comes from: the processor and the commit. Every benchmark prints both beside its figures."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path

FEATURES = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")
"""What decides the speed of a matrix product."""


def hardware() -> str:
    """The processor, which of `FEATURES` it has, and how many of its cores are ours."""
    info = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    names = [line.partition(":")[2].strip() for line in info.splitlines() if line.startswith("model name")]
    features = [name for name in FEATURES if f" {name} " in f"{info} "]
    cores = len(os.sched_getaffinity(0))
    return f"{names[0] if names else platform.machine()}, {' '.join(features)}, {cores} cores"


def commit() -> str:
    """The commit of the checkout, marked when it has changes; "unknown" outside one."""
    root = Path(__file__).resolve().parent.parent
    command = ["git", "describe", "--always", "--dirty", "--abbrev=9", "--exclude=*"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"
