"""Which launch constants a kernel takes for a head dim, a dtype and a tile of queries: one small fixed table.

Nothing is tuned while serving: a launch never waits for a benchmark, and a row's bits depend on the table alone.
The constants were chosen from ahead-of-time compilation: no spills on sm_80, sm_90 and sm_100, and the same
`block_n` for all 16-bit tiles, so that the keys of a row are summed in the same steps whatever its tile.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton

SUPPORTED = (torch.float16, torch.bfloat16, torch.float32)
"""Dtypes of q, k and v that the Triton kernels take."""
LARGEST_HEAD_DIM = 128
VARYING = ("tokens", "rows", "window")
"""Integer arguments that change from batch to batch: never compiled in."""
INDICES = (
    "slot_start", "slot_length", "slot_scale", "row_start", "slot_of_row", "context_of_row",
    "tile", "num_tiles", "group",
)  # fmt: skip
"""Pointers of index tensors, read one number at a time: their alignment is nobody's business."""
LOG2_E = 1.4426950408889634


class Launch(NamedTuple):
    """Constants of one kernel launch."""

    block_m: int
    """Queries per program; the plan's tile, or a part of it."""
    block_n: int
    """Keys per step."""
    num_warps: int
    num_stages: int


def forward_launch(block_m: int, block_d: int, dtype: torch.dtype) -> Launch:
    """The forward's constants for a plan's tile and a padded head dim."""
    if dtype == torch.float32:
        return Launch(16, 16, 4, 2) if block_d > 64 else Launch(min(block_m, 32), 32, 2 if block_d < 64 else 4, 2)
    if block_m < 64:
        return Launch(block_m, 64, 4, 3) if block_d > 64 else Launch(block_m, 64, 2, 2)
    return Launch(64, 32, 4, 2) if block_d > 64 else Launch(64, 64, 4, 3)


def padded_head_dim(head_dim: int) -> int:
    """The power of two that holds a head, at least what one tensor-core step takes."""
    return max(16, triton.next_power_of_2(head_dim))


def interpreting() -> bool:
    """Whether kernels run in Triton's interpreter, where 16-bit arithmetic is wrong and has to be done in fp32."""
    return bool(triton.knobs.runtime.interpret)


def check_supported(q_THD: torch.Tensor) -> None:
    """Raise ValueError when the Triton route does not take this dtype or head dim."""
    if q_THD.dtype not in SUPPORTED:
        raise ValueError(f"the triton route was given {q_THD.dtype}, wanted one of {SUPPORTED}")
    if not 0 < q_THD.shape[2] <= LARGEST_HEAD_DIM:
        raise ValueError(f"the triton route was given heads of {q_THD.shape[2]}, wanted at most {LARGEST_HEAD_DIM}")
