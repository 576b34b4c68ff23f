"""The gradients of position tables: needed only when a whole model is trained. Two launches per table.

First by distance: a program owns a head, a block of distances and a share of the tiles; it computes anew the scores of
the two tiles that meet a tile at those distances, and sums what they say in fp32. Then by entry: the distances of
an entry are summed, one after the other. Nothing is summed by atomics. Half of what the first launch computes it
throws away: other distances of the same tiles. It refuses to know the other gradients.

How many distances there are it reads from the plan's buckets, on the host.

Shape letters: H heads, D head dim, Q entries, Z shares of the tiles, W distances; in comments M rows or columns.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl

from prefixbank.kernels.gpu.disentangled_forms import forms
from prefixbank.kernels.gpu.disentangled_sides import scratch_of
from prefixbank.kernels.gpu.disentangled_tile import (
    load_band,
    load_both_ways,
    positional_scores,
    score_gradients,
    store_diagonals,
    tokens_of,
)
from prefixbank.kernels.gpu.disentangled_tiling import (
    COUNTS,
    FOLD,
    capability_of,
    common_shapes,
    distance_launch,
    position_splits,
    resident_programs,
)
from prefixbank.kernels.gpu.softmax_gradient import LOG2_E
from prefixbank.kernels.gpu.tile import PRECISION, find_tile, load_rows
from prefixbank.kernels.gpu.tiling import INDICES, interpreting, padded_head_dim

if TYPE_CHECKING:
    from collections.abc import Iterator

    from prefixbank.kernels.gpu.configuration import Configuration
    from prefixbank.kernels.gpu.disentangled_sides import Sides
    from prefixbank.kernels.gpu.softmax_gradient import Saved


def differentiate_positions(saved: Saved, sides: Sides, distance_W: torch.Tensor) -> torch.Tensor:
    """Return the gradient of the rows' position table [Q, H, D]."""
    operands, dim, heads, table = saved.operands, saved.dim, saved.q_THD.shape[1], sides.rows.table_QHD
    assert table is not None, "there is no table to differentiate. This is a bug."
    launch = distance_launch(saved.tiling.block_m, dim, saved.q_THD.dtype, capability_of(table.device))
    sub = saved.tiling.block_m // launch.block_m
    lengths = operands.bucket_B5[:, 1]
    # Tiles of the longest row, from either side, are at most so many apart.
    blocks = 2 * triton.cdiv(int(lengths.max()), launch.block_m) if lengths.numel() else 0
    d_table = torch.empty(table.shape, dtype=table.dtype, device=table.device)
    parts = len(operands.tile_Y2) * sub
    splits = position_splits(heads * blocks, parts)
    sums = saved.q_THD.new_empty((splits, heads, blocks * launch.block_m, dim), dtype=torch.float32)
    if blocks:
        programs = min(resident_programs(table.device), heads * blocks * splits)
        distance_gradient[(programs,)](
            *sides.tensors, saved.statistics_2HT, *scratch_of(programs, launch.block_m, saved.q_THD), sums,
            operands.row_start_R1, operands.tile_Y2, operands.num_tiles_1, distance_W,
            saved.view.scale, heads, len(saved.q_THD), len(distance_W) // 2, blocks, splits, *sides.strides,
            D=dim, BLOCK_D=padded_head_dim(dim), BLOCK_M=launch.block_m, SUB=sub, **sides.flags,
            UPCAST=interpreting(),
            num_warps=launch.num_warps, num_stages=launch.num_stages, maxnreg=launch.max_registers,
        )  # fmt: skip
    fold_distances[(heads * triton.cdiv(len(table), FOLD.block_m),)](
        sums, d_table, distance_W, saved.view.scale, heads, len(distance_W) // 2, blocks * launch.block_m, splits,
        len(table), D=dim, BLOCK_D=padded_head_dim(dim), BLOCK_M=FOLD.block_m, BLOCK_N=FOLD.block_p,
        num_warps=FOLD.num_warps, num_stages=FOLD.num_stages,
    )  # fmt: skip
    return d_table


@triton.jit(do_not_specialize=COUNTS, do_not_specialize_on_alignment=(*INDICES, "distance"))
def distance_gradient(
    x, x_other, x_table, y, y_other, y_table, statistics, scratch, d_scratch, sums,
    row_start, tile, num_tiles, distance, scale, heads, tokens, reach, blocks, splits,
    x_token, x_head, x_other_token, x_other_head, x_entry, x_table_head,
    y_token, y_head, y_other_token, y_other_head, y_entry, y_table_head,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, SUB: tl.constexpr,
    OF_X: tl.constexpr, OF_Y: tl.constexpr, KEYS: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    offs_d = tl.arange(0, BLOCK_D)
    scratch += program * (4 * BLOCK_M * BLOCK_M)
    d_scratch += program * (2 * BLOCK_M * BLOCK_M)
    scale_log2 = scale * LOG2_E
    parts = tl.load(num_tiles) * SUB
    each = tl.cdiv(parts, splits)
    for item in range(program, heads * blocks * splits, tl.num_programs(0)):
        head = item % heads
        block = item // heads % blocks
        split = item // heads // blocks
        sum_WD = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
        from_x = x + head * x_head
        of_x = x_table + head * x_table_head
        of_y = y_table + head * y_table_head if OF_Y else y_table
        lse = statistics + head.to(tl.int64) * tokens
        delta = lse + heads.to(tl.int64) * tokens
        for y_part in tl.range(split * each, tl.minimum(parts, (split + 1) * each), num_stages=1):
            _row, first, begin, length = find_tile(tile, row_start, y_part, SUB, BLOCK_M)
            x_index = tokens_of(first, KEYS, BLOCK_M)
            x_MD = load_rows(from_x + begin * x_token, x_token, x_index, length, offs_d, D, UPCAST)
            from_x_other = x_other + head * x_other_head + begin * x_other_token
            x_other_MD = load_rows(from_x_other, x_other_token, x_index, length, offs_d, D, UPCAST)
            from_y = y + head * y_head + begin * y_token
            from_y_other = y_other + head * y_other_head + begin * y_other_token
            for half in tl.range(0, 2, num_stages=1):
                # These distances are one half of the window of two tiles that begin so far apart, query less key.
                apart = (block - blocks // 2 + 1 - half) * BLOCK_M
                n = first + apart if KEYS else first - apart
                if (first < length) & (n >= 0) & (n < length):
                    y_index = tokens_of(n, not KEYS, BLOCK_M)
                    _y_other_MD, y_other_DM = load_both_ways(
                        from_y_other, y_other_token, y_index, length, offs_d, D, BLOCK_M, UPCAST
                    )
                    d_weights = tl.dot(x_other_MD, y_other_DM, input_precision=PRECISION)
                    y_MD, y_DM = load_both_ways(from_y, y_token, y_index, length, offs_d, D, BLOCK_M, UPCAST)
                    positional = positional_scores(
                        x_MD, y_MD, of_x, of_y, x_entry, y_entry, distance, reach, apart - (BLOCK_M - 1),
                        scratch, scale_log2, offs_d, D, BLOCK_D, BLOCK_M, OF_X, OF_Y, UPCAST,
                    )  # fmt: skip
                    seen = (x_index < length)[:, None] & (y_index < length)[None, :]
                    query = y_index if KEYS else x_index
                    _weights, d_scores = score_gradients(
                        x_MD,
                        y_DM,
                        positional,
                        d_weights,
                        lse + begin,
                        delta + begin,
                        query,
                        length,
                        seen,
                        scale_log2,
                        KEYS,
                    )
                    store_diagonals(d_scores, d_scratch, BLOCK_M)
                    band = load_band(d_scratch, half, True, BLOCK_M, UPCAST)
                    sum_WD = tl.dot(band, x_MD, sum_WD, input_precision=PRECISION)
        # [Z, H, W, D]
        w = block * BLOCK_M + tl.arange(0, BLOCK_M)
        at = sums + ((split * heads + head).to(tl.int64) * blocks * BLOCK_M + w)[:, None] * D + offs_d[None, :]
        tl.store(at, sum_WD, mask=(offs_d < D)[None, :])


@triton.jit(do_not_specialize=COUNTS, do_not_specialize_on_alignment=(*INDICES, "distance"))
def fold_distances(
    sums, d_table, distance, scale, heads, reach, distances, splits, entries,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Sum the distances [W] of all splits that take an entry; number `distances // 2 - 1` of them is distance 0."""
    head = tl.program_id(0) % heads
    entry = tl.program_id(0) // heads * BLOCK_M + tl.arange(0, BLOCK_M)
    offs_d = tl.arange(0, BLOCK_D)
    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    for split in range(splits):
        of_head = sums + (split * heads + head).to(tl.int64) * distances * D
        for begin in range(0, distances, BLOCK_N):
            w = begin + tl.arange(0, BLOCK_N)
            away = tl.minimum(tl.maximum(w - (distances // 2 - 1), -reach), reach)
            taken = tl.load(distance + reach + away, mask=w < distances, other=-1)
            is_taken = (taken[None, :] == entry[:, None]).to(tl.float32)
            inside = (w < distances)[:, None] & (offs_d < D)[None, :]
            sum_ND = tl.load(of_head + w[:, None] * D + offs_d[None, :], mask=inside, other=0.0)
            acc = tl.dot(is_taken, sum_ND, acc, input_precision=PRECISION)
    at = d_table + (entry.to(tl.int64) * heads + head)[:, None] * D + offs_d[None, :]
    tl.store(at, (acc * scale).to(d_table.dtype.element_ty), mask=(entry < entries)[:, None] & (offs_d < D)[None, :])


def configurations() -> Iterator[Configuration]:
    """Yield every compiled form that this module may launch, at the shapes that matter."""
    for keys in (False, True):
        for dtype, dim, block_m in common_shapes():
            yield from _forms(dtype, dim, block_m, keys)
        yield from _forms(torch.bfloat16, 64, 64, keys, alone=True)
    for dtype, dim in dict.fromkeys(shape[:2] for shape in common_shapes()):
        yield from forms(fold_distances, lambda *_: FOLD, dtype, dim, FOLD.block_m, {"BLOCK_N": FOLD.block_p})


def _forms(dtype: torch.dtype, dim: int, block_m: int, keys: bool, *, alone: bool = False) -> Iterator[Configuration]:
    there = {"OF_X": True, "OF_Y": not alone, "KEYS": keys}
    title = ("of keys" if keys else "of queries") + (" alone" if alone else "")
    return forms(distance_gradient, distance_launch, dtype, dim, block_m, there, title=title)
