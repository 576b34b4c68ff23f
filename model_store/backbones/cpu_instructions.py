"""Which instructions the CPU's 16-bit products may use: those with which a row has the same bits in any company.

With AMX, oneDNN cuts a product of more than 32 rows and a thousand columns otherwise than one of fewer rows, and sums
in another order: the bits of a row then depended on who shared its batch (docs/decisions/0016). It refuses to know what
is multiplied.
"""

from __future__ import annotations

import os

MOST = "AVX512_CORE_BF16"
"""The newest instructions whose products were found to keep a row's bits. Older CPUs use what they have."""
EVERY = "ALL"
VARIABLE = "ONEDNN_MAX_CPU_ISA"
"""Read once, at the process's first such product."""


def bound_instructions() -> None:
    """Leave AMX aside, unless the environment says otherwise."""
    os.environ.setdefault(VARIABLE, MOST)


def allow_every_instruction() -> None:
    """AMX too, unless the environment says otherwise: for a process that trains and answers nobody."""
    os.environ.setdefault(VARIABLE, EVERY)


def amx_is_allowed() -> bool:
    """What the environment says; a CPU without AMX uses what it has."""
    said = os.environ.get(VARIABLE, EVERY).upper()
    return said in {EVERY, "DEFAULT"} or "AMX" in said
