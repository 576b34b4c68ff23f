"""The gradient of prefixes: summed over all queries of all rows of a slot, in one fixed order, without atomics.

A job is one slot's block of prefix keys. For each head of a job, splits share the tiles of the slot's rows; each
sums its own in fp32, and a second launch adds the splits, first to last. How many there are depends on shapes alone,
so a batch gives the same bits each time. Every query sees every prefix key in every mode: nothing is masked here.

Slots of one batch must not overlap in the pool: two jobs would write the same tokens. It refuses to know own keys.

Shape letters: H heads, N pool tokens, D head dim, Z splits, G groups; in comments M keys of a job, N queries of a step.
"""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl

from prefixbank.kernels.gpu.configuration import Configuration, pointer
from prefixbank.kernels.gpu.forward import dense
from prefixbank.kernels.gpu.gradient_tiling import (
    COUNTS,
    MAIN_DIM,
    MAIN_DTYPE,
    MAIN_TILE,
    common_shapes,
    form,
    prefix_gradient_launch,
    prefix_splits,
)
from prefixbank.kernels.gpu.key_gradient import fold_queries, load_queries
from prefixbank.kernels.gpu.softmax_gradient import LOG2_E
from prefixbank.kernels.gpu.tile import find_tile, load_rows
from prefixbank.kernels.gpu.tiling import INDICES, SUPPORTED, Launch, interpreting, padded_head_dim

if TYPE_CHECKING:
    from collections.abc import Iterator

    from prefixbank.kernels.gpu.softmax_gradient import Saved
    from prefixbank.kernels.operands import Needs

ADD = Launch(block_m=16, block_n=0, num_warps=4, num_stages=1)
"""Adding splits: `block_m` prefix keys a program."""
GROUPS_AT_ONCE: tl.constexpr = tl.constexpr(64)


def differentiate_prefixes(saved: Saved, needs: Needs) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the gradients of the pools [H, N, D], 0 for tokens that no row reads; [0] where not needed."""
    operands = saved.operands
    pool_k, pool_v = dense(operands.pool_k_HND), dense(operands.pool_v_HND)
    heads, pool_tokens, dim = pool_k.shape
    tokens, groups = len(saved.q_THD), len(operands.group_G3)
    d_pool_k, d_pool_v = (pool_k.new_zeros(pool_k.shape if need else [0]) for need in needs[3:])
    if not (any(needs[3:]) and pool_tokens and groups):
        return d_pool_k, d_pool_v
    launch = prefix_gradient_launch(saved.tiling.block_m, padded_head_dim(dim), pool_k.dtype, pool_tokens)
    sub = saved.tiling.block_m // launch.block_n
    jobs = pool_tokens // launch.block_m + groups
    splits = prefix_splits(heads, triton.cdiv(pool_tokens, launch.block_m), groups, len(operands.tile_Y2) * sub)
    part_k, part_v = d_pool_k, d_pool_v
    if splits > 1:
        shape = (splits, heads, pool_tokens, dim)
        part_k, part_v = (pool_k.new_empty(shape if need else [0], dtype=torch.float32) for need in needs[3:])
    lent = (operands.slot_start_S, operands.slot_length_S, operands.group_G3)
    prefix_gradient[(heads * jobs, splits)](
        saved.q_THD, pool_k, pool_v, saved.d_out_THD, saved.statistics_2HT, part_k, part_v, *lent,
        operands.row_start_R1, operands.tile_Y2, saved.view.scale, heads, tokens, groups, pool_tokens,
        *saved.query_strides, *pool_k.stride()[:2], *pool_v.stride()[:2],
        D=dim, BLOCK_D=padded_head_dim(dim), BLOCK_M=launch.block_m, BLOCK_N=launch.block_n, SUB=sub,
        UPCAST=interpreting(), NEED_K=needs.pool_k, NEED_V=needs.pool_v,
        num_warps=launch.num_warps, num_stages=launch.num_stages,
    )  # fmt: skip
    if splits > 1:
        add_splits[(heads * (pool_tokens // ADD.block_m + groups),)](
            part_k, part_v, d_pool_k, d_pool_v, *lent, heads, splits, groups, pool_tokens,
            D=dim, BLOCK_D=padded_head_dim(dim), BLOCK_M=ADD.block_m,
            NEED_K=needs.pool_k, NEED_V=needs.pool_v, num_warps=ADD.num_warps, num_stages=ADD.num_stages,
        )  # fmt: skip
    return d_pool_k, d_pool_v


@triton.jit(do_not_specialize=COUNTS, do_not_specialize_on_alignment=INDICES)
def prefix_gradient(
    q, pool_k, pool_v, d_out, statistics, part_k, part_v, slot_start, slot_length, group, row_start, tile,
    scale, heads, tokens, groups, pool_tokens,
    q_token, q_head, d_out_token, d_out_head, pool_k_head, pool_k_token, pool_v_head, pool_v_token,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, SUB: tl.constexpr,
    UPCAST: tl.constexpr, NEED_K: tl.constexpr, NEED_V: tl.constexpr,
):  # fmt: skip
    head = tl.program_id(0) % heads
    split = tl.program_id(1)
    g, block = find_job(tl.program_id(0) // heads, group, slot_length, groups, BLOCK_M)
    if g >= groups:
        return
    slot = tl.load(group + g * 3)
    start = tl.load(slot_start + slot).to(tl.int64)
    prefix = tl.load(slot_length + slot)
    parts = tl.load(group + g * 3 + 2) * SUB
    each = tl.cdiv(parts, tl.num_programs(1))
    y_first = tl.load(group + g * 3 + 1) * SUB
    y_begin = y_first + split * each
    y_end = tl.minimum(y_begin + each, y_first + parts)

    offs_d = tl.arange(0, BLOCK_D)
    key = block * BLOCK_M + tl.arange(0, BLOCK_M)
    lent_k = pool_k + head.to(tl.int64) * pool_k_head + start * pool_k_token
    lent_v = pool_v + head.to(tl.int64) * pool_v_head + start * pool_v_token
    k_MD = load_rows(lent_k, pool_k_token, key, prefix, offs_d, D, UPCAST)
    v_MD = load_rows(lent_v, pool_v_token, key, prefix, offs_d, D, UPCAST)
    q += head * q_head
    d_out += head * d_out_head
    lse = statistics + head.to(tl.int64) * tokens
    delta = lse + heads.to(tl.int64) * tokens
    sum_k = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    sum_v = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    for y in range(y_begin, y_end):
        _, first, begin, length = find_tile(tile, row_start, y, SUB, BLOCK_N)
        q_ND, d_out_ND, lse_N, delta_N = load_queries(
            q + begin * q_token, d_out + begin * d_out_token, lse + begin, delta + begin,
            first + tl.arange(0, BLOCK_N), length, q_token, d_out_token, offs_d, D, UPCAST,
        )  # fmt: skip
        sum_k, sum_v = fold_queries(
            k_MD, v_MD, q_ND, d_out_ND, lse_N, delta_N, sum_k, sum_v, True, scale * LOG2_E, False, NEED_K, NEED_V
        )

    # [Z, H, N, D]; without splits Z is 1 and these are the gradients themselves.
    at = ((split * heads + head).to(tl.int64) * pool_tokens + start + key)[:, None] * D + offs_d[None, :]
    inside = (key < prefix)[:, None] & (offs_d < D)[None, :]
    if NEED_K:
        tl.store(part_k + at, (sum_k * scale).to(part_k.dtype.element_ty), mask=inside)
    if NEED_V:
        tl.store(part_v + at, sum_v.to(part_v.dtype.element_ty), mask=inside)


@triton.jit
def find_job(job, group, slot_length, groups, BLOCK_M: tl.constexpr):
    """Group and block of prefix keys of a job; jobs count the blocks of all groups that have tiles, in their order.

    The group is `groups` or more for a job beyond the last.
    """
    g = 0
    before = 0
    total = 0
    for first in range(0, groups, GROUPS_AT_ONCE):
        index = first + tl.arange(0, GROUPS_AT_ONCE)
        within = index < groups
        slot = tl.load(group + index * 3, mask=within, other=0)
        has_tiles = tl.load(group + index * 3 + 2, mask=within, other=0) > 0
        blocks = tl.cdiv(tl.load(slot_length + slot, mask=within & has_tiles, other=0), BLOCK_M)
        end = total + tl.cumsum(blocks, 0)
        g += tl.sum((end <= job).to(tl.int32))
        before += tl.sum(tl.where(end <= job, blocks, 0))
        total += tl.sum(blocks)
    return g, job - before


@triton.jit(do_not_specialize=COUNTS, do_not_specialize_on_alignment=INDICES)
def add_splits(
    part_k, part_v, d_pool_k, d_pool_v, slot_start, slot_length, group, heads, splits, groups, pool_tokens,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, NEED_K: tl.constexpr, NEED_V: tl.constexpr,
):  # fmt: skip
    """Sum the splits of every job, first to last."""
    head = tl.program_id(0) % heads
    g, block = find_job(tl.program_id(0) // heads, group, slot_length, groups, BLOCK_M)
    if g >= groups:
        return
    slot = tl.load(group + g * 3)
    key = block * BLOCK_M + tl.arange(0, BLOCK_M)
    offs_d = tl.arange(0, BLOCK_D)
    token = head.to(tl.int64) * pool_tokens + tl.load(slot_start + slot) + key
    at = token[:, None] * D + offs_d[None, :]
    inside = (key < tl.load(slot_length + slot))[:, None] & (offs_d < D)[None, :]
    step = heads.to(tl.int64) * pool_tokens * D
    if NEED_K:
        sum_k = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
        for split in range(splits):
            sum_k += tl.load(part_k + split * step + at, mask=inside, other=0.0)
        tl.store(d_pool_k + at, sum_k.to(d_pool_k.dtype.element_ty), mask=inside)
    if NEED_V:
        sum_v = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
        for split in range(splits):
            sum_v += tl.load(part_v + split * step + at, mask=inside, other=0.0)
        tl.store(d_pool_v + at, sum_v.to(d_pool_v.dtype.element_ty), mask=inside)


def configurations() -> Iterator[Configuration]:
    """Yield every compiled form that this module may launch, at the shapes that matter."""
    for dtype, dim, block_m in common_shapes():
        for part in {dtype, torch.float32}:
            yield _form(dtype, dim, block_m, part)
    for dtype, dim in product(SUPPORTED, (32, 64, 128)):
        yield _add_form(dtype, dim)
    for block_m in (16, 64):
        yield _form(MAIN_DTYPE, MAIN_DIM, block_m, torch.float32, pool_tokens=20)
    for one in ("NEED_K", "NEED_V"):
        yield _form(MAIN_DTYPE, MAIN_DIM, MAIN_TILE, torch.float32, **{one: False})


def _form(
    dtype: torch.dtype, dim: int, block_m: int, part: torch.dtype, pool_tokens: int = 128, **differing: object
) -> Configuration:
    launch = prefix_gradient_launch(block_m, padded_head_dim(dim), dtype, pool_tokens)
    constants = {
        "BLOCK_M": launch.block_m, "BLOCK_N": launch.block_n, "SUB": block_m // launch.block_n,
        "UPCAST": False, "NEED_K": True, "NEED_V": True,
    }  # fmt: skip
    types = {} if part == torch.float32 else {"part_k": pointer(part), "part_v": pointer(part)}
    tile = f"m{block_m} N{pool_tokens}"
    return form(prefix_gradient, dtype, dim, tile, launch, constants, differing=differing, types=types)


def _add_form(dtype: torch.dtype, dim: int) -> Configuration:
    constants = {"BLOCK_M": ADD.block_m, "NEED_K": True, "NEED_V": True}
    return form(add_splits, dtype, dim, f"m{ADD.block_m}", ADD, constants)
