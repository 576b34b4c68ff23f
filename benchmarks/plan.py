"""What one batch costs the host before its first layer: building its index tensors, and copying them to the device.

    python -m benchmarks.plan [--device cuda]

It refuses to know what the rows hold.
"""

from __future__ import annotations

import random
import time
from statistics import median
from typing import Annotated

import torch
import typer

from benchmarks.environment import commit, hardware
from prefixbank.kernels.plan import BatchPlan, Capacity, Tiling

ROWS = (1, 32, 128, 256)
GOAL_US = 100
"""For 128 rows."""


def microseconds(rows: int, device: str, *, fixed: bool, repeats: int = 300) -> float:
    """The median time of a build for rows of 8 to 200 tokens that read up to 100 slots."""
    chance = random.Random(rows)
    lengths, slots = [chance.randint(8, 200) for _ in range(rows)], [chance.randrange(100) for _ in range(rows)]
    capacity = Capacity.of(256 * rows, rows, 64) if fixed else None
    spent = []
    for _ in range(repeats):
        began = time.perf_counter()
        BatchPlan.build(lengths, slots, device=device, tiling=Tiling(64), capacity=capacity)
        spent.append(time.perf_counter() - began)
    return median(spent) * 1e6


def main(device: Annotated[str, typer.Option(help="where the index tensors go")] = "cpu") -> None:
    """Time BatchPlan.build."""
    torch.set_num_threads(1)
    typer.echo(f"{hardware()}; to {device}; torch {torch.__version__}; commit {commit()}")
    typer.echo(f"{'rows':>6} {'us, exact':>10} {'us, fixed capacity':>20}")
    for rows in ROWS:
        exact, fixed = (microseconds(rows, device, fixed=fixed) for fixed in (False, True))
        goal = f"   goal: {GOAL_US}" if rows == 128 else ""
        typer.echo(f"{rows:6} {exact:10.0f} {fixed:20.0f}{goal}")


if __name__ == "__main__":
    typer.run(main)
