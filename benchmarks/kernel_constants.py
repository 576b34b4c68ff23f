"""Which launch constants make the forward fastest on a GPU: the table of `kernels/gpu/tiling.py` and its neighbours.

    python -m benchmarks.kernel_constants [--seconds 60] [--processes 14] [--rehearse]

Forms are built first, side by side, and found again in Triton's cache; those that spill are left out. Every answer is
compared with the table's before it is timed. It refuses to change the table: a row's bits depend on it.
"""

from __future__ import annotations

import functools
import itertools
import os
import time
from concurrent.futures import ProcessPoolExecutor
from typing import TYPE_CHECKING, Annotated

import torch
import typer

from benchmarks.environment import commit, device_name
from benchmarks.kernel import rehearse
from benchmarks.kernel_clock import measure, sets_to_rotate
from benchmarks.kernel_workloads import Shape, make_batches
from prefixbank.kernels.plan import BatchPlan, Mode, Tiling

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from torch import Tensor

    from benchmarks.kernel_workloads import Batch
    from prefixbank.kernels.gpu.tiling import Launch

SHAPES = (Shape(16384, 128, 128), Shape(16384, 128, 0), Shape(16384, 512, 0), Shape(16384, 128, 20))
SMALL = (Shape(48, 16, 20, heads=2, dim=16, dtype=torch.float32),)
FAR = 1e-2
"""Largest distance of an answer from the table's, as a share of it: both are rounded to 16 bits."""


def candidates() -> Iterator[Launch]:
    """Tiles of 64 and 128 queries, steps of 32 to 128 keys, warps and stages that may hold them."""
    from prefixbank.kernels.gpu.tiling import Launch

    for block_m, block_n, warps, stages in itertools.product((64, 128), (32, 64, 128), (4, 8), (2, 3, 4)):
        if block_m == 128 or warps == 4:
            yield Launch(block_m, block_n, warps, stages)


def fits(launch: Launch, target: int) -> bool:
    """Build the form for a compute capability, times ten, and say whether it spills nothing."""
    from benchmarks.compiled import compile_for
    from prefixbank.kernels.gpu.forward import attend_form

    form = attend_form(torch.bfloat16, 64, launch.block_m, launch=launch)
    return not compile_for(form, target).faults


def target_of_device() -> int:
    """The target that this GPU's forms are gated for: its own capability, times ten, or the next one below."""
    from benchmarks.compiled import LIMITS

    major, minor = torch.cuda.get_device_capability()
    return max(target for target in LIMITS if target <= 10 * major + minor)


def calls_of(batches: Sequence[Batch], plan: BatchPlan, launch: Launch) -> list[Callable[[], Tensor]]:
    """The forward over every batch, with these constants."""
    from prefixbank.kernels.gpu.forward import forward
    from prefixbank.kernels.operands import Operands, View

    def call(batch: Batch) -> Tensor:
        case = batch.case
        tables = (case.prefix.slot_start_S, case.prefix.slot_length_S, case.prefix.slot_scale_S2H)
        operands = Operands(*case.differentiated, *tables, *plan.indices)
        return forward(operands, View(case.scale, Mode.FULL, 0), plan.tiling, with_lse=False, launch=launch)[0]

    return [lambda batch=batch: call(batch) for batch in batches]  # type: ignore[misc]


def measure_shape(shape: Shape, launches: Sequence[Launch], device: torch.device, ends: float) -> dict[Launch, float]:
    """Microseconds of each launch; those that are wrong, fail or come too late are absent."""
    [first] = make_batches(shape, device, 1)
    batches = make_batches(shape, device, min(8, sets_to_rotate(first.bytes_moved, device)))
    wanted = batches[0].case.run().float()
    found: dict[Launch, float] = {}
    for launch in launches:
        if time.monotonic() > ends:
            break
        plan = BatchPlan.build(first.lengths, first.slots, device=device, tiling=Tiling(launch.block_m))
        calls = calls_of(batches, plan, launch)
        far = float((calls[0]().float() - wanted).norm() / wanted.norm())
        if far > FAR:
            typer.echo(f"{shape.name}, {_said(launch)}: {far:.1e} from the table's answer")
            continue
        found[launch] = measure(calls, device).best_us
    return found


def _said(launch: Launch) -> str:
    return f"{launch.block_m}x{launch.block_n}, {launch.num_warps} warps, {launch.num_stages} stages"


def main(
    seconds: Annotated[float, typer.Option(help="after which nothing further is timed")] = 60.0,
    processes: Annotated[int, typer.Option(help="compilers at once")] = max(1, (os.cpu_count() or 1) - 2),
    rehearsed: Annotated[bool, typer.Option("--rehearse", help="on a CPU, interpreted, small, without speeds")] = False,
) -> None:
    """Time every candidate at every shape, the fastest first; the table's own stands before them."""
    if rehearsed:
        rehearse()
    from prefixbank.kernels.gpu.tiling import Launch, forward_launch

    device = torch.device("cpu" if rehearsed else "cuda")
    typer.echo(f"{device_name(device)}; torch {torch.__version__}; commit {commit()}")
    launches = [Launch(16, 16, 1, 1)] if rehearsed else list(candidates())
    if not rehearsed:
        with ProcessPoolExecutor(processes) as pool:
            held = pool.map(functools.partial(fits, target=target_of_device()), launches)
            launches = [launch for launch, holds in zip(launches, held, strict=True) if holds]
    ends = time.monotonic() + seconds
    for shape in SMALL if rehearsed else SHAPES:
        found = measure_shape(shape, launches, device, ends)
        own = found.get(forward_launch(64, 64, shape.dtype))
        if rehearsed:
            typer.echo(f"rehearsal: no speeds; {len(found)} of {len(launches)} agree")
            continue
        best = "; ".join(
            f"{_said(launch)} {us:.1f}" for launch, us in sorted(found.items(), key=lambda one: one[1])[:8]
        )
        typer.echo(f"{shape.name}: the table's {'-' if own is None else f'{own:.1f}'} us; {best}")


if __name__ == "__main__":
    typer.run(main)
