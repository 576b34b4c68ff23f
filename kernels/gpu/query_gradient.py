"""The gradient of the queries: one launch, a program per head and tile, over the same keys as the forward.

It refuses to know the gradients of keys and values.

Shape letters in comments: M queries of a tile, N keys of a step, D head dim.
"""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl

from prefixbank.kernels.gpu.configuration import EVERY_TARGET, Configuration, pointer
from prefixbank.kernels.gpu.forward import dense
from prefixbank.kernels.gpu.gradient_tiling import (
    COUNTS,
    MAIN_DIM,
    MAIN_DTYPE,
    MAIN_TILE,
    common_shapes,
    form,
    query_gradient_launch,
)
from prefixbank.kernels.gpu.softmax_gradient import LOG2_E
from prefixbank.kernels.gpu.tile import (
    PRECISION,
    find_tile_if_any,
    is_visible,
    load_keys,
    load_rows,
    own_range,
    unmasked_keys,
)
from prefixbank.kernels.gpu.tiling import INDICES, interpreting, padded_head_dim
from prefixbank.kernels.operands import QUANTISED

if TYPE_CHECKING:
    from collections.abc import Iterator

    from prefixbank.kernels.gpu.softmax_gradient import Saved


def differentiate_queries(saved: Saved, d_q_THD: torch.Tensor) -> None:
    """Write the gradient of the queries of all rows."""
    operands, view = saved.operands, saved.view
    if not len(operands.tile_Y2):
        return
    tokens, heads, dim = saved.q_THD.shape
    launch = query_gradient_launch(saved.tiling.block_m, padded_head_dim(dim), saved.q_THD.dtype)
    sub = saved.tiling.block_m // launch.block_m
    pool_k, pool_v = dense(operands.pool_k_HND), dense(operands.pool_v_HND)
    quantised = operands.slot_scale_S2H is not None
    query_gradient[(heads * len(operands.tile_Y2) * sub,)](
        saved.q_THD, saved.k_THD, saved.v_THD, pool_k, pool_v, saved.d_out_THD, saved.statistics_2HT, d_q_THD,
        operands.slot_start_S, operands.slot_length_S, operands.slot_scale_S2H if quantised else operands.slot_start_S,
        operands.row_start_R1, operands.slot_R, operands.context_R, operands.tile_Y2, operands.num_tiles_1,
        view.scale, view.window, heads, tokens,
        *saved.query_strides, *saved.key_strides, *pool_k.stride()[:2], *pool_v.stride()[:2],
        D=dim, BLOCK_D=padded_head_dim(dim), BLOCK_M=launch.block_m, BLOCK_N=launch.block_n, SUB=sub,
        MODE=int(view.mode), WINDOWED=view.window > 0, QUANTISED=quantised, UPCAST=interpreting(),
        num_warps=launch.num_warps, num_stages=launch.num_stages,
    )  # fmt: skip


@triton.jit(do_not_specialize=COUNTS, do_not_specialize_on_alignment=INDICES)
def query_gradient(
    q, k, v, pool_k, pool_v, d_out, statistics, d_q,
    slot_start, slot_length, slot_scale, row_start, slot_of_row, context_of_row, tile, num_tiles,
    scale, window, heads, tokens,
    q_token, q_head, d_out_token, d_out_head, k_token, k_head, v_token, v_head,
    pool_k_head, pool_k_token, pool_v_head, pool_v_token,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, SUB: tl.constexpr,
    MODE: tl.constexpr, WINDOWED: tl.constexpr, QUANTISED: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    head = tl.program_id(0) % heads
    y = tl.program_id(0) // heads
    row, first, begin, length = find_tile_if_any(tile, num_tiles, row_start, y, SUB, BLOCK_M)
    slot = tl.load(slot_of_row + row)
    context = tl.load(context_of_row + row)
    prefix = tl.load(slot_length + slot)
    start = tl.load(slot_start + slot).to(tl.int64)
    if first >= length:
        return
    low, high = own_range(first, length, context, window, BLOCK_M, MODE, WINDOWED)
    num_keys = prefix + high - low

    # Key number n lies at lent + n while n < prefix, and at own + n after that.
    lent_k = pool_k + head.to(tl.int64) * pool_k_head + start * pool_k_token
    lent_v = pool_v + head.to(tl.int64) * pool_v_head + start * pool_v_token
    own_k = k + head * k_head + (begin + low - prefix) * k_token
    own_v = v + head * v_head + (begin + low - prefix) * v_token
    times_k, times_v = 1.0, 1.0
    if QUANTISED:
        times_k = tl.load(slot_scale + (slot * 2).to(tl.int64) * heads + head)
        times_v = tl.load(slot_scale + (slot * 2 + 1).to(tl.int64) * heads + head)

    offs_d = tl.arange(0, BLOCK_D)
    query = first + tl.arange(0, BLOCK_M)
    q_MD = load_rows(q + head * q_head + begin * q_token, q_token, query, length, offs_d, D, UPCAST)
    from_d_out = d_out + head * d_out_head + begin * d_out_token
    d_out_MD = load_rows(from_d_out, d_out_token, query, length, offs_d, D, UPCAST)
    lse = statistics + head.to(tl.int64) * tokens + begin
    lse_M = tl.load(lse + query, mask=query < length, other=0.0)
    delta_M = tl.load(lse + heads.to(tl.int64) * tokens + query, mask=query < length, other=0.0)
    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)

    n_plain = unmasked_keys(prefix, first, high, context, MODE, WINDOWED) // BLOCK_N * BLOCK_N
    for masked in tl.static_range(2):
        for n in range(n_plain if masked else 0, num_keys if masked else n_plain, BLOCK_N):
            key = n + tl.arange(0, BLOCK_N)
            of_prefix = key < prefix
            k_ND = load_keys(
                lent_k, own_k, key, prefix, num_keys, k_token, pool_k_token, offs_d,
                D, BLOCK_D, masked, QUANTISED, UPCAST,
            )  # fmt: skip
            v_ND = load_keys(
                lent_v, own_v, key, prefix, num_keys, v_token, pool_v_token, offs_d,
                D, BLOCK_D, masked, QUANTISED, UPCAST,
            )  # fmt: skip
            own_key = tl.where(of_prefix, -1, key - prefix + low)[None, :]
            seen = is_visible(query[:, None], own_key, context, window, MODE, WINDOWED) & (key < num_keys)[None, :]
            acc = fold_keys(
                q_MD, d_out_MD, lse_M, delta_M, k_ND, v_ND, acc, seen, scale * LOG2_E,
                tl.where(of_prefix, times_k, 1.0), tl.where(of_prefix, times_v, 1.0), masked, QUANTISED,
            )  # fmt: skip

    at = d_q + ((begin + query) * heads + head)[:, None] * D + offs_d[None, :]
    tl.store(at, (acc * scale).to(d_q.dtype.element_ty), mask=(query < length)[:, None] & (offs_d < D)[None, :])


@triton.jit
def fold_keys(
    q_MD, d_out_MD, lse_M, delta_M, k_ND, v_ND, acc, seen, scale_log2, times_k_N, times_v_N,
    MASKED: tl.constexpr, QUANTISED: tl.constexpr,
):  # fmt: skip
    """Add what keys and values [N] say about queries [M] to their gradient [M, D], which lacks the scale."""
    scores = tl.dot(q_MD, k_ND.T, input_precision=PRECISION)
    d_weights = tl.dot(d_out_MD, v_ND.T, input_precision=PRECISION)
    if QUANTISED:
        scores = scores * times_k_N[None, :]
        d_weights = d_weights * times_v_N[None, :]
    weights = tl.exp2(scores * scale_log2 - lse_M[:, None])
    if MASKED:
        weights = tl.where(seen, weights, 0.0)
    d_scores = weights * (d_weights - delta_M[:, None])
    if QUANTISED:
        d_scores = d_scores * times_k_N[None, :]
    return tl.dot(d_scores.to(k_ND.dtype), k_ND, acc, input_precision=PRECISION)


def configurations() -> Iterator[Configuration]:
    """Yield every compiled form that this module may launch, at the shapes that matter."""
    for dtype, dim, block_m in common_shapes():
        yield _form(dtype, dim, block_m)
    for mode, windowed in product((0, 1, 2), (False, True)):
        if mode or windowed:
            yield _form(MAIN_DTYPE, MAIN_DIM, MAIN_TILE, MODE=mode, WINDOWED=windowed)
    for stored in QUANTISED:
        yield _form(MAIN_DTYPE, MAIN_DIM, MAIN_TILE, stored=stored, QUANTISED=True)


def _form(
    dtype: torch.dtype, dim: int, block_m: int, *, stored: torch.dtype | None = None, **differing: object
) -> Configuration:
    launch = query_gradient_launch(block_m, padded_head_dim(dim), dtype)
    constants = {
        "BLOCK_M": launch.block_m, "BLOCK_N": launch.block_n, "SUB": block_m // launch.block_m,
        "MODE": 0, "WINDOWED": False, "QUANTISED": False, "UPCAST": False,
    }  # fmt: skip
    types = {}
    if stored:
        types = dict.fromkeys(("pool_k", "pool_v"), pointer(stored))
        types["slot_scale"] = pointer(torch.float32, aligned=False)
    # fp8e4nv does not exist before compute capability 8.9.
    targets = (90, 100) if stored == torch.float8_e4m3fn else EVERY_TARGET
    tile = f"m{block_m}"
    return form(query_gradient, dtype, dim, tile, launch, constants, differing=differing, types=types, targets=targets)
