"""The gradients of heads: of vectors, and of the arena rows that heads of the batch read.

One program owns a block of columns of a bunch's or tile's vectors, or a block of arena rows and columns, whose vectors
it goes through in the order of the tables: nothing is summed by atomics, and the same batch gives the same bits.
It refuses to know validation, autograd and how the index tensors came about.

Shape letters: N vectors, M model width, C columns of the logits, Q arena rows; K, B, Y, G as in `head_plan`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import triton
import triton.language as tl

from prefixbank.kernels.gpu.head_tiling import (
    BUNCH_ROWS,
    INDICES,
    VARYING,
    check_supported,
    d_head_launch,
    d_x_launch,
    declared,
    form,
    load_entry,
    multiply,
)
from prefixbank.kernels.gpu.tiling import interpreting
from prefixbank.kernels.head_plan import TILE_VECTORS

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch

    from prefixbank.kernels.gpu.configuration import Configuration
    from prefixbank.kernels.head_plan import HeadIndices


def write_d_x(d_x_NM: torch.Tensor, d_logits_NC: torch.Tensor, weight_QM: torch.Tensor, indices: HeadIndices) -> None:
    """Write the gradient of every vector that has classes; the others' stay what they are."""
    check_supported(weight_QM)
    d_logits_NC, columns, width = d_logits_NC.contiguous(), d_logits_NC.shape[1], weight_QM.shape[1]
    for table, block_r, order in ((indices.bunch_B4, BUNCH_ROWS, 0), (indices.tile_Y4, TILE_VECTORS, 1)):
        if not len(table) or not columns:
            continue
        launch = d_x_launch(width, block_r)
        differentiate_x[(len(table) * triton.cdiv(width, launch.block_w),)](
            d_logits_NC, weight_QM, d_x_NM, indices.total_3, table, indices.single_K, columns,
            OF_TILES=order, M=width, BLOCK_R=block_r, BLOCK_C=launch.block_c, BLOCK_W=launch.block_w,
            UPCAST=interpreting(), num_warps=launch.num_warps, num_stages=launch.num_stages,
        )  # fmt: skip


def write_d_head(
    d_weight_QM: torch.Tensor,
    d_bias_Q: torch.Tensor,
    d_logits_NC: torch.Tensor,
    x_NM: torch.Tensor,
    indices: HeadIndices,
) -> None:
    """Write the gradients of all arena rows that heads of the batch read; the others' stay what they are."""
    check_supported(d_weight_QM)
    d_logits_NC, x_NM = d_logits_NC.contiguous(), x_NM.contiguous()
    columns, width, groups = d_logits_NC.shape[1], x_NM.shape[1], len(indices.group_G6)
    if not groups or not columns:
        return
    launch = d_head_launch(width, x_NM.dtype)
    parts = triton.cdiv(columns, launch.block_c)
    differentiate_heads[(groups * parts * triton.cdiv(width, launch.block_w),)](
        d_logits_NC, x_NM, d_weight_QM, d_bias_Q, indices.group_G6, indices.bunch_B4, indices.tile_Y4,
        indices.single_K, columns, M=width, BUNCH_R=BUNCH_ROWS, TILE_R=launch.block_r, BLOCK_C=launch.block_c,
        BLOCK_W=launch.block_w, UPCAST=interpreting(), num_warps=launch.num_warps, num_stages=launch.num_stages,
    )  # fmt: skip


@triton.jit(do_not_specialize=VARYING, do_not_specialize_on_alignment=INDICES)
def differentiate_x(
    d_logits, weight, d_x, total, tile, single, columns,
    OF_TILES: tl.constexpr, M: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_W: tl.constexpr,
    UPCAST: tl.constexpr,
):  # fmt: skip
    """A block of columns of the gradient of a bunch's (OF_TILES 0) or a tile's (1) vectors: d_logits times the head."""
    blocks = tl.cdiv(M, BLOCK_W)
    y = tl.program_id(0) // blocks
    if y >= tl.load(total + OF_TILES):
        return
    start, count, first, number = load_entry(tile, y)
    offs_w = tl.program_id(0) % blocks * BLOCK_W + tl.arange(0, BLOCK_W)
    n_R, inside = find_vectors(single, first, number, OF_TILES, BLOCK_R)
    acc = tl.zeros([BLOCK_R, BLOCK_W], tl.float32)
    for c in range(0, count, BLOCK_C):
        offs_c = c + tl.arange(0, BLOCK_C)
        d_RC = load_d_logits(d_logits, n_R, inside, offs_c, offs_c < count, columns)
        at = weight + (start + offs_c).to(tl.int64)[:, None] * M + offs_w[None, :]
        w_CM = tl.load(at, mask=(offs_c < count)[:, None] & (offs_w < M)[None, :], other=0.0)
        acc = multiply(d_RC, w_CM, acc, UPCAST)
    at = d_x + n_R[:, None] * M + offs_w[None, :]
    tl.store(at, acc.to(d_x.dtype.element_ty), mask=inside[:, None] & (offs_w < M)[None, :])


@triton.jit(do_not_specialize=VARYING, do_not_specialize_on_alignment=INDICES)
def differentiate_heads(
    d_logits, x, d_weight, d_bias, group, bunch, tile, single, columns,
    M: tl.constexpr, BUNCH_R: tl.constexpr, TILE_R: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_W: tl.constexpr,
    UPCAST: tl.constexpr,
):  # fmt: skip
    """Gradients of a block of arena rows [C, M]: d_logits transposed times x, over the bunches and tiles of a group.

    Overlapping heads make a group wider than the logits: then a program owns several blocks, one after the other.
    """
    blocks = tl.cdiv(M, BLOCK_W)
    parts = tl.cdiv(columns, BLOCK_C)
    entry = group + tl.program_id(0) // (blocks * parts) * 6
    begin = tl.load(entry)
    end = tl.load(entry + 1)
    block = tl.program_id(0) % blocks
    offs_w = block * BLOCK_W + tl.arange(0, BLOCK_W)
    for row in range(begin + tl.program_id(0) // blocks % parts * BLOCK_C, end, parts * BLOCK_C):
        q_C = row + tl.arange(0, BLOCK_C)
        acc = tl.zeros([BLOCK_C, BLOCK_W], tl.float32)
        sum_C = tl.zeros([BLOCK_C], tl.float32)
        acc, sum_C = add_vectors(
            acc, sum_C, d_logits, x, bunch, tl.load(entry + 2), tl.load(entry + 3), single, q_C, offs_w, columns,
            0, M, BUNCH_R, UPCAST,
        )  # fmt: skip
        acc, sum_C = add_vectors(
            acc, sum_C, d_logits, x, tile, tl.load(entry + 4), tl.load(entry + 5), single, q_C, offs_w, columns,
            1, M, TILE_R, UPCAST,
        )  # fmt: skip
        at = d_weight + q_C.to(tl.int64)[:, None] * M + offs_w[None, :]
        tl.store(at, acc.to(d_weight.dtype.element_ty), mask=(q_C < end)[:, None] & (offs_w < M)[None, :])
        tl.store(d_bias + q_C, sum_C.to(d_bias.dtype.element_ty), mask=(q_C < end) & (block == 0))


@triton.jit
def add_vectors(
    acc, sum_C, d_logits, x, table, first_entry, entries, single, q_C, offs_w, columns,
    OF_TILES: tl.constexpr, M: tl.constexpr, BLOCK_R: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """Add what the vectors of some bunches or tiles say about arena rows q, in the order of the table."""
    for y in range(first_entry, first_entry + entries):
        start, count, first, number = load_entry(table, y)
        n_R, inside = find_vectors(single, first, number, OF_TILES, BLOCK_R)
        offs_c = q_C - start
        d_RC = load_d_logits(d_logits, n_R, inside, offs_c, (offs_c >= 0) & (offs_c < count), columns)
        at = x + n_R[:, None] * M + offs_w[None, :]
        x_RM = tl.load(at, mask=inside[:, None] & (offs_w < M)[None, :], other=0.0)
        acc = multiply(d_RC.T, x_RM, acc, UPCAST)
        sum_C += tl.sum(d_RC.to(tl.float32), 0)
    return acc, sum_C


@triton.jit
def find_vectors(single, first, number, OF_TILES: tl.constexpr, BLOCK_R: tl.constexpr):
    """The vectors of a bunch, listed in `single`, or of a tile, end to end; and which of the block there are."""
    offs_r = tl.arange(0, BLOCK_R)
    inside = offs_r < number
    if OF_TILES:
        n_R = first + offs_r
    else:
        n_R = tl.load(single + first + offs_r, mask=inside, other=0)
    return n_R.to(tl.int64), inside


@triton.jit
def load_d_logits(d_logits, n_R, inside, offs_c, is_own, columns):
    """The gradient [R, C] of some vectors' own classes; zero elsewhere, whatever the gradient of -inf may be."""
    at = d_logits + n_R[:, None] * columns + offs_c[None, :]
    return tl.load(at, mask=inside[:, None] & is_own[None, :], other=0.0)


def configurations() -> Iterator[Configuration]:
    """Yield every compiled form that this module may launch, at the widths that matter."""
    for dtype, width in declared():
        yield from (_d_x_form(dtype, width, of_tiles) for of_tiles in (0, 1))
        yield _d_head_form(dtype, width)


def _d_x_form(dtype: torch.dtype, width: int, of_tiles: int) -> Configuration:
    launch = d_x_launch(width, TILE_VECTORS if of_tiles else BUNCH_ROWS)
    arguments = "d_logits weight d_x total tile single columns"
    constants = {"OF_TILES": of_tiles, "BLOCK_R": launch.block_r, "UPCAST": False}
    return form(f"d_x {of_tiles}", differentiate_x, dtype, width, launch, arguments, **constants)


def _d_head_form(dtype: torch.dtype, width: int) -> Configuration:
    launch = d_head_launch(width, dtype)
    arguments = "d_logits x d_weight d_bias group bunch tile single columns"
    constants = {"BUNCH_R": BUNCH_ROWS, "TILE_R": launch.block_r, "UPCAST": False}
    return form("d_head", differentiate_heads, dtype, width, launch, arguments, **constants)
