"""Which launch constants the kernels of the backward take, one small fixed table, and how a compiled form is declared.

Nothing is tuned while training. It refuses to know what the kernels compute.
"""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING, Any

import torch
import triton

from prefixbank.kernels.gpu.configuration import EVERY_TARGET, Configuration, pointer
from prefixbank.kernels.gpu.tiling import INDICES, SUPPORTED, VARYING, Launch, padded_head_dim

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

MAIN_DTYPE, MAIN_DIM, MAIN_TILE = torch.bfloat16, 64, 128
"""At which modes and needs are declared one by one."""
REAL = ("lse", "d_lse", "statistics", "part_k", "part_v")
"""Pointers to fp32, whatever the operands are."""

COUNTS = (*VARYING, "heads", "groups", "splits", "pool_tokens", "d_lse_token", "d_lse_head")
"""Integer arguments that no kernel of the backward compiles in, even where they are 1."""
PROGRAMS_TO_FILL = 264
"""Programs that occupy a large GPU: two per multiprocessor of an H200."""
LEAST_PARTS = 2
"""Tiles that a split of a prefix's gradient is worth."""
MOST_SPLITS = 64


def query_gradient_launch(block_m: int, block_d: int, dtype: torch.dtype) -> Launch:
    """`block_m` queries, a plan's tile or a part of it, over `block_n` keys a step."""
    if dtype == torch.float32:
        return Launch(min(block_m, 32) if block_d == 64 else 16, 32, 4, 2)
    return Launch(min(block_m, 64), 32 if block_d > 64 else 64, 4, 2)


def key_gradient_launch(block_m: int, block_d: int, dtype: torch.dtype) -> Launch:
    """`block_m` own keys, a plan's tile or a part of it, over `block_n` queries a step."""
    if dtype != torch.float32:
        return Launch(min(block_m, 64), 32, 8 if block_d > 64 else 4, 2)
    if block_d == 64:
        return Launch(min(block_m, 32), 32, 8, 2)
    return Launch(16, 16 if block_d > 64 else 32, 4, 2)


def prefix_gradient_launch(block_m: int, block_d: int, dtype: torch.dtype, pool_tokens: int) -> Launch:
    """`block_m` prefix keys over `block_n` queries a step, a plan's tile or a part of it.

    Of the three stages, one fetches where the next tile lies.
    """
    block_n = min(block_m, 32 if block_d > 32 else 64)
    if dtype != torch.float32:
        return Launch(64, block_n, 8, 3) if block_d > 64 else Launch(32 if pool_tokens <= 32 else 64, block_n, 4, 3)
    if block_d == 64:
        return Launch(32, block_n, 8, 3)
    return Launch(16, 16 if block_d > 64 else block_n, 4, 3)


def prefix_splits(heads: int, key_blocks: int, groups: int, parts: int) -> int:
    """How many programs share the tiles of one slot: from shapes alone, so that no batch is summed in two ways."""
    programs = heads * max(key_blocks, groups)
    return max(1, min(triton.cdiv(PROGRAMS_TO_FILL, programs), parts // (LEAST_PARTS * groups), MOST_SPLITS))


def common_shapes() -> Iterator[tuple[torch.dtype, int, int]]:
    """Dtypes, head dims and tiles at which every kernel of the backward is declared."""
    yield from product(SUPPORTED, (64,), (16, 32, 64, 128))
    yield from product((torch.bfloat16,), (16, 32, 48, 80, 96, 128), (128,))
    yield from product((torch.float32,), (32, 96, 128), (128,))


def form(
    kernel: Any,
    dtype: torch.dtype,
    dim: int,
    tile: str,
    launch: Launch,
    constants: Mapping[str, object],
    *,
    differing: Mapping[str, object] | None = None,
    types: Mapping[str, str] | None = None,
    targets: tuple[int, ...] = EVERY_TARGET,
) -> Configuration:
    """Declare a kernel of the backward for operands of a dtype and head dim.

    Args:
        differing: of the constants, those that are not as usual: they go into the name.
        types: of the arguments whose names alone do not say it.
    """
    differing = differing or {}
    given = {"D": dim, "BLOCK_D": padded_head_dim(dim), **constants, **differing}
    found = {name: _type_of(name, dtype) for name in kernel.arg_names if name not in given} | dict(types or {})
    pipelined = launch.num_stages > 1
    what = [f"{name.lower()}={value}" for name, value in differing.items()]
    title = " ".join([kernel.__name__, str(dtype), f"D{dim}", tile, *what, *sorted({*(types or {}).values()})])
    return Configuration(
        title.replace("torch.", ""), kernel, found, given, launch.num_warps, launch.num_stages,
        tensor_cores=pipelined and dtype != torch.float32, async_copies=pipelined, targets=targets,
    )  # fmt: skip


def _type_of(argument: str, dtype: torch.dtype) -> str:
    """What an argument of this name is in every kernel of the backward."""
    if argument in INDICES:
        return pointer(torch.int32, aligned=False)
    if argument in REAL:
        return pointer(torch.float32)
    if argument == "scale":
        return "fp32"
    if argument in COUNTS:
        return "i32"
    return "i32:16" if argument.endswith(("_token", "_head")) else pointer(dtype)
