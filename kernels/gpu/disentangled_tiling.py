"""Which launch constants the kernels of disentangled attention take: as in `tiling`, one small fixed table.

Chosen by ahead-of-time compilation. Steps of 32 prefix keys rather than 64: a short prefix wastes less, and with 64
one program of the 64-query tile fits at once on sm_100 instead of two. Four stages of them, for with three a model
without content to position spills there.
"""

from __future__ import annotations

import functools
from itertools import product
from typing import TYPE_CHECKING, NamedTuple

import torch

from prefixbank.kernels.gpu.gradient_tiling import PROGRAMS_TO_FILL
from prefixbank.kernels.gpu.tiling import SUPPORTED, VARYING, check_supported, padded_head_dim

if TYPE_CHECKING:
    from collections.abc import Iterator

LARGEST_FP32_HEAD_DIM = 64
"""fp32 keeps three times as many numbers for its products: wider heads would spill."""
PROGRAMS_PER_MULTIPROCESSOR = 6
"""A multiple of the two or three that fit at once, so that none is left to run alone."""
PROGRAMS_WITHOUT_GPU = 3
"""In the interpreter: few enough that a program takes several tiles, one after the other."""
ALL_REGISTERS, REGISTERS_OF_THREE = 255, 168
"""Of a thread: so many that two programs of four warps fit at once, or three."""

COUNTS = (*VARYING, "heads", "reach", "blocks", "splits", "entries", "distances")
"""Integer arguments that no kernel compiles in, even where they are 1."""


class DisentangledLaunch(NamedTuple):
    """Constants of one launch."""

    block_m: int
    """Queries of a tile and own keys of a step: as many, so that the window of distances is a power of two."""
    block_p: int
    """Prefix keys of a step."""
    num_warps: int
    num_stages: int
    """Of the loop over prefix keys; loops with barriers have one."""
    max_registers: int | None = None
    """Of a thread. `None`: the compiler guesses how many programs should fit at once, and may spill to reach it."""


def disentangled_launch(block_m: int, head_dim: int, dtype: torch.dtype, capability: int) -> DisentangledLaunch:
    """The forward's constants for a plan's tile.

    Args:
        capability: of the GPU, times ten; before 9.0 a tile of 64 would keep all its operands in registers.
    """
    if block_m < 64 or capability < 90 or dtype == torch.float32 or padded_head_dim(head_dim) > 64:
        return small_launch(block_m, head_dim, dtype)
    return DisentangledLaunch(64, 32, 8, 4)


def small_launch(block_m: int, head_dim: int, dtype: torch.dtype) -> DisentangledLaunch:
    """The forward's constants for small tiles, on which those of the gradients are built."""
    if dtype == torch.float32:
        return DisentangledLaunch(16, 16, 4, 2, ALL_REGISTERS)
    return DisentangledLaunch(min(block_m, 32 if padded_head_dim(head_dim) <= 64 else 16), 32, 4, 2)


def query_side_launch(
    block_m: int, head_dim: int, dtype: torch.dtype, capability: int, *, quantised: bool = False
) -> DisentangledLaunch:
    """The constants of the gradient of own queries; before 9.0, or over quantised keys, the guess would spill."""
    launch = small_launch(block_m, head_dim, dtype)
    return launch._replace(max_registers=ALL_REGISTERS) if capability < 90 or quantised else launch


def key_side_launch(block_m: int, head_dim: int, dtype: torch.dtype, capability: int) -> DisentangledLaunch:
    """The constants of the gradients of own keys and values: two sums, so more warps to hold them."""
    launch = query_side_launch(block_m, head_dim, dtype, capability)
    return launch._replace(num_warps=8) if launch.block_m == 32 else launch


def distance_launch(block_m: int, head_dim: int, dtype: torch.dtype, capability: int) -> DisentangledLaunch:
    """The constants of the gradient of a position table by distance: the compiler's guess would spill everywhere."""
    launch = query_side_launch(block_m, head_dim, dtype, capability)
    return launch if launch.max_registers else launch._replace(max_registers=REGISTERS_OF_THREE)


FOLD = DisentangledLaunch(block_m=16, block_p=32, num_warps=4, num_stages=2)
"""Summing distances: entries of a program, and distances of a step."""


def position_splits(programs: int, parts: int) -> int:
    """How many programs share the tiles of a block of distances: from shapes alone."""
    return max(1, min(-(-PROGRAMS_TO_FILL // max(1, programs)), parts))


@functools.cache
def capability_of(device: torch.device) -> int:
    """Compute capability of a GPU, times ten; of no GPU, that of the one which kernels are made for."""
    if device.type != "cuda":
        return 90
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


def common_shapes() -> Iterator[tuple[torch.dtype, int, int]]:
    """Dtypes, head dims and tiles at which kernels are declared."""
    yield from product(SUPPORTED, (64,), (16, 32, 64, 128))
    yield from ((dtype, 32, 128) for dtype in SUPPORTED)
    yield from product((torch.bfloat16,), (48, 80, 96, 128), (128,))


def scratch_dtype(dtype: torch.dtype) -> torch.dtype:
    """Positional scores in base 2: fp16 holds them eight times as finely as bf16, up to 65,504."""
    return torch.float32 if dtype == torch.float32 else torch.float16


@functools.cache
def resident_programs(device: torch.device) -> int:
    """Programs of one launch: about what a GPU holds at once, so that their scratch stays in its cache."""
    if device.type != "cuda":
        return PROGRAMS_WITHOUT_GPU
    return int(torch.cuda.get_device_properties(device).multi_processor_count) * PROGRAMS_PER_MULTIPROCESSOR


def check_disentangled(q_THD: torch.Tensor) -> None:
    """Raise ValueError when the Triton route does not take this dtype or head dim."""
    check_supported(q_THD)
    if q_THD.dtype == torch.float32 and q_THD.shape[2] > LARGEST_FP32_HEAD_DIM:
        found = f"fp32 heads of {q_THD.shape[2]}"
        raise ValueError(f"disentangled attention was given {found}, wanted at most {LARGEST_FP32_HEAD_DIM} on triton")
