"""How a CPU's products are made so that a row has the same bits in any company.

With AMX, oneDNN cuts a 16-bit product of more than 32 rows and a thousand columns otherwise than one of fewer rows. On
Intel's CPUs, MKL cuts the sums of a 32-bit product of few rows between threads. Either sums in another order: the bits
of a row then depended on who shared its batch (docs/decisions/0016). It refuses to know what is multiplied.
"""

from __future__ import annotations

import os
from pathlib import Path

MOST = "AVX512_CORE_BF16"
"""The newest instructions whose products were found to keep a row's bits. Older CPUs use what they have."""
EVERY = "ALL"
ISA_VARIABLE = "ONEDNN_MAX_CPU_ISA"
"""Read once, at the process's first 16-bit product."""

STRICT = "AUTO,STRICT"
"""The best instructions the CPU has, and sums whose order does not depend on threads."""
SUMS_VARIABLE = "MKL_CBWR"
"""Read once, at the process's first 32-bit product."""
INTEL = "GenuineIntel"


def keep_bits_of_rows() -> None:
    """Leave AMX aside, and sums whole on an Intel CPU, unless the environment says otherwise."""
    os.environ.setdefault(ISA_VARIABLE, MOST)
    if vendor() == INTEL:
        os.environ.setdefault(SUMS_VARIABLE, STRICT)


def allow_every_instruction() -> None:
    """AMX too, unless the environment says otherwise: for a process that trains and answers nobody."""
    os.environ.setdefault(ISA_VARIABLE, EVERY)


def amx_is_allowed() -> bool:
    """What the environment says; a CPU without AMX uses what it has."""
    said = os.environ.get(ISA_VARIABLE, EVERY).upper()
    return said in {EVERY, "DEFAULT"} or "AMX" in said


def vendor(facts: Path = Path("/proc/cpuinfo")) -> str:
    """Who made the first CPU; empty where the system does not say."""
    lines = facts.read_text().splitlines() if facts.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("vendor_id")), "")
