"""The gradients of own queries, keys and values under disentangled attention: one launch per side.

One kernel serves both sides: rows x are queries and columns y own keys, or the other way round; a distance is the same
number from both. Only queries see the prefix, and only keys have values. It refuses to know the gradients of position
tables and prefixes.

Shape letters in comments: M rows of a tile, or columns of a step, D head dim, P prefix keys of a step.
"""

from __future__ import annotations

import functools
from itertools import product
from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl

from prefixbank.kernels.gpu.disentangled_forms import forms
from prefixbank.kernels.gpu.disentangled_sides import scratch_of
from prefixbank.kernels.gpu.disentangled_tile import (
    entries_of,
    load_band,
    load_both_ways,
    load_entries,
    positional_scores,
    score_gradients,
    store_diagonals,
    tokens_of,
)
from prefixbank.kernels.gpu.disentangled_tiling import (
    COUNTS,
    capability_of,
    common_shapes,
    key_side_launch,
    query_side_launch,
    resident_programs,
)
from prefixbank.kernels.gpu.forward import dense
from prefixbank.kernels.gpu.softmax_gradient import LOG2_E
from prefixbank.kernels.gpu.tile import PRECISION, find_tile, load_rows
from prefixbank.kernels.gpu.tiling import INDICES, interpreting, padded_head_dim
from prefixbank.kernels.operands import QUANTISED

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from prefixbank.kernels.gpu.configuration import Configuration
    from prefixbank.kernels.gpu.disentangled_forms import LaunchOf
    from prefixbank.kernels.gpu.disentangled_sides import Sides
    from prefixbank.kernels.gpu.softmax_gradient import Saved


def differentiate_own(
    saved: Saved, sides: Sides, distance_W: torch.Tensor, d_x_THD: torch.Tensor, d_value_THD: torch.Tensor
) -> None:
    """Write the gradients of the rows of all rows of the batch; [0] where not needed."""
    operands, dim, heads = saved.operands, saved.dim, saved.q_THD.shape[1]
    launch_of = _launch_of(sides.are_keys, quantised=operands.slot_scale_S2H is not None)
    launch = launch_of(saved.tiling.block_m, dim, saved.q_THD.dtype, capability_of(saved.q_THD.device))
    sub = saved.tiling.block_m // launch.block_m
    programs = min(resident_programs(saved.q_THD.device), heads * max(1, len(operands.tile_Y2) * sub))
    pool_k, pool_v = dense(operands.pool_k_HND), dense(operands.pool_v_HND)
    own_gradient[(programs,)](
        *sides.tensors, pool_k, pool_v, saved.statistics_2HT,
        *scratch_of(programs, launch.block_m, saved.q_THD), d_x_THD, d_value_THD,
        operands.slot_start_S, operands.slot_length_S, operands.slot_scale_S2H,
        operands.row_start_R1, operands.slot_R, operands.tile_Y2, operands.num_tiles_1, distance_W,
        saved.view.scale, heads, len(saved.q_THD), len(distance_W) // 2,
        *sides.strides, *pool_k.stride()[:2], *pool_v.stride()[:2],
        D=dim, BLOCK_D=padded_head_dim(dim), BLOCK_M=launch.block_m, BLOCK_P=launch.block_p, SUB=sub,
        **sides.flags, NEED_X=d_x_THD.numel() > 0, NEED_VALUE=d_value_THD.numel() > 0,
        QUANTISED=operands.slot_scale_S2H is not None, UPCAST=interpreting(),
        num_warps=launch.num_warps, num_stages=launch.num_stages, maxnreg=launch.max_registers,
    )  # fmt: skip


def _launch_of(are_keys: bool, *, quantised: bool) -> LaunchOf:
    """Which launch constants; own keys meet no prefix."""
    return key_side_launch if are_keys else functools.partial(query_side_launch, quantised=quantised)


@triton.jit(do_not_specialize=COUNTS, do_not_specialize_on_alignment=(*INDICES, "distance"))
def own_gradient(
    x, x_other, x_table, y, y_other, y_table, pool_k, pool_v, statistics, scratch, d_scratch, d_x, d_value,
    slot_start, slot_length, slot_scale, row_start, slot_of_row, tile, num_tiles, distance,
    scale, heads, tokens, reach,
    x_token, x_head, x_other_token, x_other_head, x_entry, x_table_head,
    y_token, y_head, y_other_token, y_other_head, y_entry, y_table_head,
    pool_k_head, pool_k_token, pool_v_head, pool_v_token,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_P: tl.constexpr, SUB: tl.constexpr,
    OF_X: tl.constexpr, OF_Y: tl.constexpr, KEYS: tl.constexpr, NEED_X: tl.constexpr, NEED_VALUE: tl.constexpr,
    QUANTISED: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    offs_d = tl.arange(0, BLOCK_D)
    scratch += program * (4 * BLOCK_M * BLOCK_M)
    d_scratch += program * (2 * BLOCK_M * BLOCK_M)
    scale_log2 = scale * LOG2_E
    for item in range(program, tl.load(num_tiles) * SUB * heads, tl.num_programs(0)):
        head = item % heads
        row, first, begin, length = find_tile(tile, row_start, item // heads, SUB, BLOCK_M)
        if first < length:
            x_index = tokens_of(first, KEYS, BLOCK_M)
            x_MD = load_rows(x + head * x_head + begin * x_token, x_token, x_index, length, offs_d, D, UPCAST)
            from_other = x_other + head * x_other_head + begin * x_other_token
            x_other_MD = load_rows(from_other, x_other_token, x_index, length, offs_d, D, UPCAST)
            lse = statistics + head.to(tl.int64) * tokens + begin
            delta = lse + heads.to(tl.int64) * tokens
            sum_x = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
            sum_value = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
            if not KEYS:
                lse_M1 = tl.load(lse + x_index, mask=x_index < length, other=0.0)[:, None]
                delta_M1 = tl.load(delta + x_index, mask=x_index < length, other=0.0)[:, None]
                slot = tl.load(slot_of_row + row)
                prefix = tl.load(slot_length + slot)
                start = tl.load(slot_start + slot).to(tl.int64)
                lent_k = pool_k + head.to(tl.int64) * pool_k_head + start * pool_k_token
                lent_v = pool_v + head.to(tl.int64) * pool_v_head + start * pool_v_token
                times_k, times_v = 1.0, 1.0
                if QUANTISED:
                    times_k = tl.load(slot_scale + (slot * 2).to(tl.int64) * heads + head)
                    times_v = tl.load(slot_scale + (slot * 2 + 1).to(tl.int64) * heads + head)
                for n in range(0, prefix, BLOCK_P):
                    key = n + tl.arange(0, BLOCK_P)
                    k_PD = load_rows(lent_k, pool_k_token, key, prefix, offs_d, D, UPCAST).to(x_MD.dtype)
                    v_PD = load_rows(lent_v, pool_v_token, key, prefix, offs_d, D, UPCAST).to(x_MD.dtype)
                    scores = tl.dot(x_MD, k_PD.T, input_precision=PRECISION) * (scale_log2 * times_k)
                    weights = tl.where((key < prefix)[None, :], tl.exp2(scores - lse_M1), 0.0)
                    d_weights = tl.dot(x_other_MD, v_PD.T, input_precision=PRECISION) * times_v
                    d_scores = (weights * (d_weights - delta_M1)).to(k_PD.dtype)
                    sum_x = tl.dot(d_scores, k_PD, sum_x, input_precision=PRECISION)
                sum_x *= times_k

            own_y = y + head * y_head + begin * y_token
            own_other = y_other + head * y_other_head + begin * y_other_token
            of_x = x_table + head * x_table_head if OF_X else x_table
            of_y = y_table + head * y_table_head if OF_Y else y_table
            for n in tl.range(0, length, BLOCK_M, num_stages=1):
                y_index = tokens_of(n, not KEYS, BLOCK_M)
                nearest = (n - first if KEYS else first - n) - (BLOCK_M - 1)
                y_MD, y_DM = load_both_ways(own_y, y_token, y_index, length, offs_d, D, BLOCK_M, UPCAST)
                y_other_MD, y_other_DM = load_both_ways(
                    own_other, y_other_token, y_index, length, offs_d, D, BLOCK_M, UPCAST
                )
                d_weights = tl.dot(x_other_MD, y_other_DM, input_precision=PRECISION)
                positional = positional_scores(
                    x_MD, y_MD, of_x, of_y, x_entry, y_entry, distance, reach, nearest, scratch, scale_log2,
                    offs_d, D, BLOCK_D, BLOCK_M, OF_X, OF_Y, UPCAST,
                )  # fmt: skip
                seen = (x_index < length)[:, None] & (y_index < length)[None, :]
                query = y_index if KEYS else x_index
                weights, d_scores = score_gradients(
                    x_MD, y_DM, positional, d_weights, lse, delta, query, length, seen, scale_log2, KEYS
                )
                if NEED_VALUE:
                    sum_value = tl.dot(weights.to(y_MD.dtype), y_other_MD, sum_value, input_precision=PRECISION)
                if NEED_X:
                    sum_x = tl.dot(d_scores.to(y_MD.dtype), y_MD, sum_x, input_precision=PRECISION)
                    if OF_X:
                        store_diagonals(d_scores, d_scratch, BLOCK_M)
                        for half in tl.range(0, 2, num_stages=1):
                            band = load_band(d_scratch, half, False, BLOCK_M, UPCAST)
                            entry = entries_of(distance, reach, nearest + half * BLOCK_M, BLOCK_M)
                            window = load_entries(of_x, (entry * x_entry)[:, None], offs_d[None, :], D, BLOCK_D, UPCAST)
                            sum_x = tl.dot(band, window, sum_x, input_precision=PRECISION)

            at = ((begin + x_index) * heads + head)[:, None] * D + offs_d[None, :]
            inside = (x_index < length)[:, None] & (offs_d < D)[None, :]
            if NEED_X:
                tl.store(d_x + at, (sum_x * scale).to(d_x.dtype.element_ty), mask=inside)
            if NEED_VALUE:
                tl.store(d_value + at, sum_value.to(d_value.dtype.element_ty), mask=inside)


def configurations() -> Iterator[Configuration]:
    """Yield every compiled form that this module may launch, at the shapes that matter."""
    for keys, (dtype, dim, block_m) in product((False, True), common_shapes()):
        yield from _forms(dtype, dim, block_m, keys)
    for keys, without in product((False, True), ("OF_X", "OF_Y")):
        yield from _forms(torch.bfloat16, 64, 64, keys, {without: False})
    for without in ("NEED_X", "NEED_VALUE"):
        yield from _forms(torch.bfloat16, 64, 64, True, {without: False})
    for stored in QUANTISED:
        yield from _forms(torch.bfloat16, 64, 64, False, stored=stored)


def _forms(
    dtype: torch.dtype,
    dim: int,
    block_m: int,
    keys: bool,
    differing: Mapping[str, bool] | None = None,
    stored: torch.dtype | None = None,
) -> Iterator[Configuration]:
    all_there = {"OF_X": True, "OF_Y": True, "KEYS": keys, "NEED_X": True, "NEED_VALUE": keys}
    title = " ".join(["of keys" if keys else "of queries", *(f"without {name.lower()}" for name in differing or {})])
    constants = all_there | dict(differing or {})
    launch_of = _launch_of(keys, quantised=stored is not None)
    return forms(own_gradient, launch_of, dtype, dim, block_m, constants, stored=stored, title=title)
