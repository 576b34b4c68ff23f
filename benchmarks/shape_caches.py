"""How much a process grows by what the CPU's 16-bit products remember of shapes, with our bound and without.

    python -m benchmarks.shape_caches [--lengths 300]

A random backbone of MiniLM's shape in bf16 runs one batch of each length, from 100 tokens on, in a process of its own
for each way. Linux only: it reads /proc. It refuses to know what is cached where.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
import torch
import typer

from benchmarks.environment import commit, hardware
from benchmarks.random_backbone import make_backbone
from benchmarks.train_memory import MIB, process_bytes
from prefixbank.model_store.backbones.load import load_backbone
from prefixbank.model_store.backbones.packing import PackRow
from prefixbank.model_store.backbones.shape_caches import KEPT_SHAPES, VARIABLES

SHORTEST = 100
DEFAULT_CAPACITY = 1024
"""Of either cache, where nobody says."""


class Growth(NamedTuple):
    """Of one process over its batches."""

    mib: float
    seconds: float


def growth(folder: Path, lengths: int, capacity: int | None = None) -> Growth:
    """What a new process grows by; `capacity` is what the environment says of both caches, None leaves it to us."""
    inherited = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    said = {} if capacity is None else dict.fromkeys(VARIABLES, str(capacity))
    command = [sys.executable, "-m", "benchmarks.shape_caches", "--lengths", str(lengths), "--of", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=inherited | said)
    return Growth(*map(float, done.stdout.split()))


@torch.inference_mode()
def _run(folder: Path, lengths: int) -> Growth:
    torch.set_num_threads(1)
    backbone = load_backbone(str(folder), dtype=torch.bfloat16)

    def forward(length: int) -> None:
        ones = np.ones(length, dtype=np.int64)
        backbone.forward(backbone.pack([PackRow(ones, ones * 0, 0)]), backbone.no_prefixes())

    forward(SHORTEST + lengths)  # the longest first: activations are not what is asked for
    before, began = process_bytes("VmRSS"), time.perf_counter()
    for length in range(SHORTEST, SHORTEST + lengths):
        forward(length)
    return Growth((process_bytes("VmRSS") - before) / MIB, time.perf_counter() - began)


def main(
    lengths: Annotated[int, typer.Option(help="batches, each of another length")] = 300,
    of: Annotated[Path | None, typer.Option(hidden=True)] = None,
) -> None:
    """Print how much a process grows with the default caches, and with ours."""
    if of is not None:
        typer.echo(" ".join(map(str, _run(of, lengths))))
        return
    typer.echo(f"{hardware()}; 1 thread; torch {torch.__version__}; commit {commit()}")
    with tempfile.TemporaryDirectory() as parent:
        folder = make_backbone(Path(parent), small=False)
        for capacity in (DEFAULT_CAPACITY, None):
            grown = growth(folder, lengths, capacity)
            kept = f"{capacity} as by default" if capacity else f"{KEPT_SHAPES} as bounded"
            typer.echo(
                f"shapes kept: {kept:18} {grown.mib:6.0f} MiB more after {lengths} lengths, {grown.seconds:.1f} s"
            )


if __name__ == "__main__":
    typer.run(main)
