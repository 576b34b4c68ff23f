"""Heads read by index where they lie: rows of one vector as products on the vector unit, longer rows as tiles.

A program owns one block of classes of one bunch (vectors of rows that have one each, one head) or of one tile
(vectors of one longer row). Bunches load their block of the head once, whole, and are as fast as memory gives the
heads; tiles multiply. What a row meets is decided by its own number of vectors, so its bits never depend on others.
It refuses to know validation, autograd and how the index tensors came about.

Shape letters: N vectors, M model width, C columns of the logits, Q arena rows; K, B, Y as in `head_plan`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl

from prefixbank.kernels.gpu.head_tiling import (
    INDICES,
    VARYING,
    bunch_launch,
    check_supported,
    declared,
    form,
    load_entry,
    multiply,
    tile_launch,
)
from prefixbank.kernels.gpu.tiling import interpreting

if TYPE_CHECKING:
    from collections.abc import Iterator

    from prefixbank.kernels.gpu.configuration import Configuration
    from prefixbank.kernels.head_plan import HeadIndices

FILL = 1024
"""Logits of no row that a program writes at a time."""


def forward(
    x_NM: torch.Tensor, weight_QM: torch.Tensor, bias_Q: torch.Tensor, indices: HeadIndices, num_classes: int
) -> torch.Tensor:
    """Return the logits [N, C], in one launch for rows of one vector and one for longer rows, where there are any."""
    check_supported(weight_QM)
    x_NM, (vectors, width) = x_NM.contiguous(), x_NM.shape
    logits_NC = weight_QM.new_empty((vectors, num_classes))
    if logits_NC.numel() == 0:
        return logits_NC
    heads = (weight_QM, bias_Q.contiguous(), logits_NC, indices.total_3)
    bunches, tiles = len(indices.bunch_B4), len(indices.tile_Y4)
    if bunches:
        launch = bunch_launch(width, x_NM.dtype)
        multiply_bunches[(bunches * triton.cdiv(num_classes, launch.block_c),)](
            x_NM, *heads, indices.bunch_B4, indices.single_K, num_classes, 0 if tiles else vectors,
            M=width, BLOCK_C=launch.block_c, BLOCK_W=launch.block_w, FILL=FILL,
            num_warps=launch.num_warps, num_stages=launch.num_stages,
        )  # fmt: skip
    if tiles or not bunches:
        launch = tile_launch(width, x_NM.dtype)
        multiply_tiles[(max(1, tiles) * triton.cdiv(num_classes, launch.block_c),)](
            x_NM, *heads, indices.tile_Y4, num_classes, vectors,
            M=width, BLOCK_R=launch.block_r, BLOCK_C=launch.block_c, BLOCK_W=launch.block_w, FILL=FILL,
            UPCAST=interpreting(), num_warps=launch.num_warps, num_stages=launch.num_stages,
        )  # fmt: skip
    return logits_NC


@triton.jit(do_not_specialize=VARYING, do_not_specialize_on_alignment=INDICES)
def multiply_bunches(
    x, weight, bias, logits, total, bunch, single, columns, vectors,
    M: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_W: tl.constexpr, FILL: tl.constexpr,
):  # fmt: skip
    """Logits of rows of one vector: the block of a head [C, M] is loaded once for all of a bunch."""
    fill_tail(logits, total, vectors, columns, FILL)
    parts = tl.cdiv(columns, BLOCK_C)
    b = tl.program_id(0) // parts
    if b >= tl.load(total):
        return
    start, count, first, number = load_entry(bunch, b)
    offs_c = tl.program_id(0) % parts * BLOCK_C + tl.arange(0, BLOCK_C)
    offs_w = tl.arange(0, BLOCK_W)
    is_own = offs_c < count
    in_head = (tl.program_id(0) % parts * BLOCK_C < count) & (offs_w < M)
    at = weight + start.to(tl.int64) * M + offs_c[:, None] * M + offs_w[None, :]
    w_CM = tl.load(at, mask=is_own[:, None] & in_head[None, :], other=0.0).to(tl.float32)
    bias_C = tl.load(bias + start + offs_c, mask=is_own, other=0.0).to(tl.float32)
    for k in range(first, first + number):
        n = tl.load(single + k).to(tl.int64)
        x_M = tl.load(x + n * M + offs_w, mask=in_head, other=0.0).to(tl.float32)
        y_C = tl.where(is_own, tl.sum(w_CM * x_M[None, :], 1) + bias_C, float("-inf"))
        tl.store(logits + n * columns + offs_c, y_C.to(logits.dtype.element_ty), mask=offs_c < columns)


@triton.jit(do_not_specialize=VARYING, do_not_specialize_on_alignment=INDICES)
def multiply_tiles(
    x, weight, bias, logits, total, tile, columns, vectors,
    M: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_W: tl.constexpr, FILL: tl.constexpr,
    UPCAST: tl.constexpr,
):  # fmt: skip
    """Logits of rows of several vectors: [R, M] of one row times [M, C] of its head."""
    fill_tail(logits, total, vectors, columns, FILL)
    parts = tl.cdiv(columns, BLOCK_C)
    y = tl.program_id(0) // parts
    if y >= tl.load(total + 1):
        return
    start, count, first, number = load_entry(tile, y)
    offs_c = tl.program_id(0) % parts * BLOCK_C + tl.arange(0, BLOCK_C)
    offs_r = tl.arange(0, BLOCK_R)
    n_R = (first + offs_r).to(tl.int64)
    is_own, inside = offs_c < count, offs_r < number
    x_R = x + n_R[:, None] * M
    w_C = weight + (start + offs_c).to(tl.int64)[:, None] * M
    acc = tl.zeros([BLOCK_R, BLOCK_C], tl.float32)
    # A block beyond the row's own classes has nothing to multiply.
    width = tl.where(tl.program_id(0) % parts * BLOCK_C < count, M, 0)
    for m in range(0, width, BLOCK_W):
        offs_w = m + tl.arange(0, BLOCK_W)[None, :]
        x_RM = tl.load(x_R + offs_w, mask=inside[:, None] & (offs_w < M), other=0.0)
        w_CM = tl.load(w_C + offs_w, mask=is_own[:, None] & (offs_w < M), other=0.0)
        acc = multiply(x_RM, w_CM.T, acc, UPCAST)
    bias_C = tl.load(bias + start + offs_c, mask=is_own, other=0.0).to(tl.float32)
    y_RC = tl.where(is_own[None, :], acc + bias_C[None, :], float("-inf"))
    at = logits + n_R[:, None] * columns + offs_c[None, :]
    tl.store(at, y_RC.to(logits.dtype.element_ty), mask=inside[:, None] & (offs_c < columns)[None, :])


@triton.jit
def fill_tail(logits, total, vectors, columns, FILL: tl.constexpr):
    """Logits of vectors that belong to no row: -inf. All programs share them; none does when `vectors` is 0."""
    end = vectors.to(tl.int64) * columns
    begin = tl.load(total + 2).to(tl.int64) * columns
    nothing = tl.full([FILL], float("-inf"), tl.float32).to(logits.dtype.element_ty)
    step = tl.num_programs(0).to(tl.int64) * FILL
    for element in range(begin + tl.program_id(0).to(tl.int64) * FILL, end, step):
        at = element + tl.arange(0, FILL)
        tl.store(logits + at, nothing, mask=at < end)


def configurations() -> Iterator[Configuration]:
    """Yield every compiled form that this module may launch, at the widths that matter."""
    for dtype, width in declared():
        yield _bunch_form(dtype, width)
        yield _tile_form(dtype, width)
    yield _bunch_form(torch.float32, 4096)


def _bunch_form(dtype: torch.dtype, width: int) -> Configuration:
    arguments = "x weight bias logits total bunch single columns vectors"
    return form("bunches", multiply_bunches, dtype, width, bunch_launch(width, dtype), arguments, FILL=FILL)


def _tile_form(dtype: torch.dtype, width: int) -> Configuration:
    launch, arguments = tile_launch(width, dtype), "x weight bias logits total tile columns vectors"
    constants = {"BLOCK_R": launch.block_r, "FILL": FILL, "UPCAST": False}
    return form("tiles", multiply_tiles, dtype, width, launch, arguments, **constants)
