"""The gradients of own keys and values: one launch, a program per head and tile of keys, over the queries that see it.

The tile map of the queries is one of keys as well: a row's own tokens are both. It refuses to know prefixes,
which have gone into the log-sum-exp.

Shape letters in comments: M keys of a tile, N queries of a step, D head dim.
"""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING

import triton
import triton.language as tl

from prefixbank.kernels.gpu.gradient_tiling import (
    COUNTS,
    MAIN_DIM,
    MAIN_DTYPE,
    MAIN_TILE,
    common_shapes,
    form,
    key_gradient_launch,
)
from prefixbank.kernels.gpu.softmax_gradient import LOG2_E
from prefixbank.kernels.gpu.tile import CAUSAL, FULL, PRECISION, PREFIX_LM, find_tile_if_any, is_visible, load_rows
from prefixbank.kernels.gpu.tiling import INDICES, interpreting, padded_head_dim

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch

    from prefixbank.kernels.gpu.configuration import Configuration
    from prefixbank.kernels.gpu.softmax_gradient import OwnGradients, Saved


def differentiate_keys(saved: Saved, own: OwnGradients) -> None:
    """Write the gradients of the own keys and values of all rows, those of them that are needed."""
    operands, view = saved.operands, saved.view
    if not len(operands.tile_Y2):
        return
    tokens, heads, dim = saved.q_THD.shape
    launch = key_gradient_launch(saved.tiling.block_m, padded_head_dim(dim), saved.q_THD.dtype)
    sub = saved.tiling.block_m // launch.block_m
    key_gradient[(heads * len(operands.tile_Y2) * sub,)](
        saved.q_THD, saved.k_THD, saved.v_THD, saved.d_out_THD, saved.statistics_2HT, own.k_THD, own.v_THD,
        operands.row_start_R1, operands.context_R, operands.tile_Y2, operands.num_tiles_1,
        view.scale, view.window, heads, tokens, *saved.query_strides, *saved.key_strides,
        D=dim, BLOCK_D=padded_head_dim(dim), BLOCK_M=launch.block_m, BLOCK_N=launch.block_n, SUB=sub,
        MODE=int(view.mode), WINDOWED=view.window > 0, UPCAST=interpreting(),
        NEED_K=own.k_THD.numel() > 0, NEED_V=own.v_THD.numel() > 0,
        num_warps=launch.num_warps, num_stages=launch.num_stages,
    )  # fmt: skip


@triton.jit(do_not_specialize=COUNTS, do_not_specialize_on_alignment=INDICES)
def key_gradient(
    q, k, v, d_out, statistics, d_k, d_v, row_start, context_of_row, tile, num_tiles,
    scale, window, heads, tokens,
    q_token, q_head, d_out_token, d_out_head, k_token, k_head, v_token, v_head,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, SUB: tl.constexpr,
    MODE: tl.constexpr, WINDOWED: tl.constexpr, UPCAST: tl.constexpr, NEED_K: tl.constexpr, NEED_V: tl.constexpr,
):  # fmt: skip
    head = tl.program_id(0) % heads
    y = tl.program_id(0) // heads
    row, first, begin, length = find_tile_if_any(tile, num_tiles, row_start, y, SUB, BLOCK_M)
    context = tl.load(context_of_row + row)
    if first >= length:
        return
    low, high = query_range(first, length, context, window, BLOCK_M, MODE, WINDOWED)

    offs_d = tl.arange(0, BLOCK_D)
    key = first + tl.arange(0, BLOCK_M)
    k_MD = load_rows(k + head * k_head + begin * k_token, k_token, key, length, offs_d, D, UPCAST)
    v_MD = load_rows(v + head * v_head + begin * v_token, v_token, key, length, offs_d, D, UPCAST)
    q += head * q_head + begin * q_token
    d_out += head * d_out_head + begin * d_out_token
    lse = statistics + head.to(tl.int64) * tokens + begin
    delta = lse + heads.to(tl.int64) * tokens
    sum_k = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    sum_v = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    for n in range(low, high, BLOCK_N):
        query = n + tl.arange(0, BLOCK_N)
        q_ND, d_out_ND, lse_N, delta_N = load_queries(
            q, d_out, lse, delta, query, length, q_token, d_out_token, offs_d, D, UPCAST
        )
        seen = is_visible(query[None, :], key[:, None], context, window, MODE, WINDOWED)
        sum_k, sum_v = fold_queries(
            k_MD, v_MD, q_ND, d_out_ND, lse_N, delta_N, sum_k, sum_v, seen, scale * LOG2_E,
            MODE != FULL or WINDOWED, NEED_K, NEED_V,
        )  # fmt: skip

    at = ((begin + key) * heads + head)[:, None] * D + offs_d[None, :]
    inside = (key < length)[:, None] & (offs_d < D)[None, :]
    if NEED_K:
        tl.store(d_k + at, (sum_k * scale).to(d_k.dtype.element_ty), mask=inside)
    if NEED_V:
        tl.store(d_v + at, sum_v.to(d_v.dtype.element_ty), mask=inside)


@triton.jit
def query_range(first, length, context, window, BLOCK_M: tl.constexpr, MODE: tl.constexpr, WINDOWED: tl.constexpr):
    """The queries [low, high) that see any of the own keys first .. first + BLOCK_M."""
    low = 0
    high = length
    if MODE == CAUSAL:
        low = first
    if MODE == PREFIX_LM:
        low = tl.where(first < context, 0, first)
    if WINDOWED:
        low = tl.maximum(low, first - window)
        high = tl.minimum(high, first + BLOCK_M + window)
    return low, high


@triton.jit
def load_queries(
    q, d_out, lse, delta, query, length, q_token, d_out_token, offs_d, D: tl.constexpr, UPCAST: tl.constexpr
):
    """Queries [N, D] of a row, gradients of their outputs [N, D], and their statistics [N]; zeros beyond length."""
    q_ND = load_rows(q, q_token, query, length, offs_d, D, UPCAST)
    d_out_ND = load_rows(d_out, d_out_token, query, length, offs_d, D, UPCAST)
    lse_N = tl.load(lse + query, mask=query < length, other=0.0)
    delta_N = tl.load(delta + query, mask=query < length, other=0.0)
    return q_ND, d_out_ND, lse_N, delta_N


@triton.jit
def fold_queries(
    k_MD, v_MD, q_ND, d_out_ND, lse_N, delta_N, sum_k, sum_v, seen, scale_log2,
    MASKED: tl.constexpr, NEED_K: tl.constexpr, NEED_V: tl.constexpr,
):  # fmt: skip
    """Add what queries [N] say about keys and values [M] to their gradients [M, D]; that of the keys lacks the scale.

    A query of zeros, as beyond a row's end, adds nothing: its output's gradient and delta are zero.
    """
    weights = tl.exp2(tl.dot(k_MD, q_ND.T, input_precision=PRECISION) * scale_log2 - lse_N[None, :])
    if MASKED:
        weights = tl.where(seen, weights, 0.0)
    if NEED_V:
        sum_v = tl.dot(weights.to(d_out_ND.dtype), d_out_ND, sum_v, input_precision=PRECISION)
    if NEED_K:
        d_weights = tl.dot(v_MD, d_out_ND.T, input_precision=PRECISION)
        d_scores = weights * (d_weights - delta_N[None, :])
        sum_k = tl.dot(d_scores.to(q_ND.dtype), q_ND, sum_k, input_precision=PRECISION)
    return sum_k, sum_v


def configurations() -> Iterator[Configuration]:
    """Yield every compiled form that this module may launch, at the shapes that matter."""
    for dtype, dim, block_m in common_shapes():
        yield _form(dtype, dim, block_m)
    for mode, windowed in product((0, 1, 2), (False, True)):
        if mode or windowed:
            yield _form(MAIN_DTYPE, MAIN_DIM, MAIN_TILE, MODE=mode, WINDOWED=windowed)
    for one in ("NEED_K", "NEED_V"):
        yield _form(MAIN_DTYPE, MAIN_DIM, MAIN_TILE, **{one: False})


def _form(dtype: torch.dtype, dim: int, block_m: int, **differing: object) -> Configuration:
    launch = key_gradient_launch(block_m, padded_head_dim(dim), dtype)
    constants = {
        "BLOCK_M": launch.block_m, "BLOCK_N": launch.block_n, "SUB": block_m // launch.block_m,
        "MODE": 0, "WINDOWED": False, "UPCAST": False, "NEED_K": True, "NEED_V": True,
    }  # fmt: skip
    return form(key_gradient, dtype, dim, f"m{block_m}", launch, constants, differing=differing)
