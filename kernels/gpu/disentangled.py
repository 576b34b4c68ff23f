"""The forward of disentangled attention: one launch per layer, own keys scored by content and distance.

About as many programs as a GPU holds at once share the items, a head of a tile of queries, among them; each skews
positional scores in scratch of its own (`disentangled_tile`). A program loops over the prefix, which has no distances,
then over own keys in blocks that begin at the row's first. It refuses to know gradients and validation.

Shape letters: T packed tokens, H heads, D head dim; in comments M queries of a tile and own keys of a step.
"""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl

from prefixbank.kernels.gpu.disentangled_forms import forms
from prefixbank.kernels.gpu.disentangled_tile import load_both_ways, positional_scores, tokens_of
from prefixbank.kernels.gpu.disentangled_tiling import (
    COUNTS,
    capability_of,
    check_disentangled,
    common_shapes,
    disentangled_launch,
    resident_programs,
    scratch_dtype,
)
from prefixbank.kernels.gpu.forward import dense
from prefixbank.kernels.gpu.tile import PRECISION, find_tile, load_rows, softmax_step, zero_tail
from prefixbank.kernels.gpu.tiling import INDICES, LOG2_E, interpreting, padded_head_dim
from prefixbank.kernels.operands import QUANTISED

if TYPE_CHECKING:
    from collections.abc import Iterator

    from prefixbank.kernels.disentangled_positions import Positions
    from prefixbank.kernels.gpu.configuration import Configuration
    from prefixbank.kernels.operands import Operands
    from prefixbank.kernels.plan import Tiling


def forward(
    operands: Operands, positions: Positions, scale: float, tiling: Tiling, *, with_lse: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the output [T, H, D] and, `with_lse`, the natural log-sum-exp [T, H] in fp32 (else [0, H]).

    The keys of a tile are not split among programs, whatever the tiling says.
    """
    q, k, v = (dense(x) for x in operands[:3])
    check_disentangled(q)
    tokens, heads, dim = q.shape
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    lse = q.new_empty((tokens, heads), dtype=torch.float32)  # always written, as in plain attention
    pool_k, pool_v = dense(operands.pool_k_HND), dense(operands.pool_v_HND)
    pos_key, pos_query = (None if x is None else dense(x) for x in positions[:2])
    launch = disentangled_launch(tiling.block_m, dim, q.dtype, capability_of(q.device))
    sub = tiling.block_m // launch.block_m
    programs = min(resident_programs(q.device), heads * max(1, len(operands.tile_Y2) * sub))
    scratch = q.new_empty(programs * 4 * launch.block_m**2, dtype=scratch_dtype(q.dtype))
    attend_disentangled[(programs,)](
        q, k, v, pool_k, pool_v, pos_key, pos_query, scratch, out, lse,
        operands.slot_start_S, operands.slot_length_S, operands.slot_scale_S2H,
        operands.row_start_R1, operands.slot_R, operands.tile_Y2, operands.num_tiles_1, positions.distance_W,
        scale * LOG2_E, heads, tokens, operands.slot_R.numel(), len(positions.distance_W) // 2,
        *q.stride()[:2], *k.stride()[:2], *v.stride()[:2], *pool_k.stride()[:2], *pool_v.stride()[:2],
        *strides_of(pos_key), *strides_of(pos_query),
        D=dim, BLOCK_D=padded_head_dim(dim), BLOCK_M=launch.block_m, BLOCK_P=launch.block_p, SUB=sub,
        C2P=pos_key is not None, P2C=pos_query is not None, QUANTISED=operands.slot_scale_S2H is not None,
        UPCAST=interpreting(),
        num_warps=launch.num_warps, num_stages=launch.num_stages, maxnreg=launch.max_registers,
    )  # fmt: skip
    return out, lse if with_lse else lse.new_empty((0, heads))


def strides_of(table: torch.Tensor | None) -> tuple[int, int]:
    """Strides of entry and head of a position table; those of none are never read."""
    return (0, 0) if table is None else (table.stride(0), table.stride(1))


@triton.jit(do_not_specialize=COUNTS, do_not_specialize_on_alignment=(*INDICES, "distance"))
def attend_disentangled(
    q, k, v, pool_k, pool_v, pos_key, pos_query, scratch, out, lse,
    slot_start, slot_length, slot_scale, row_start, slot_of_row, tile, num_tiles, distance,
    scale_log2, heads, tokens, rows, reach,
    q_token, q_head, k_token, k_head, v_token, v_head, pool_k_head, pool_k_token, pool_v_head, pool_v_token,
    pos_key_entry, pos_key_head, pos_query_entry, pos_query_head,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_P: tl.constexpr, SUB: tl.constexpr,
    C2P: tl.constexpr, P2C: tl.constexpr, QUANTISED: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    offs_d = tl.arange(0, BLOCK_D)
    scratch += program * (4 * BLOCK_M * BLOCK_M)
    for head in range(program, heads, tl.num_programs(0)):
        end = tl.load(row_start + rows)
        zero_tail(out + head * D, lse + head, end, tokens, heads * D, heads, offs_d, D, BLOCK_M)
    for item in range(program, tl.load(num_tiles) * SUB * heads, tl.num_programs(0)):
        # Heads run fastest: programs that run together read the same rows and, tile by tile, the same prefix.
        head = item % heads
        row, first, begin, length = find_tile(tile, row_start, item // heads, SUB, BLOCK_M)
        if first < length:
            query = tokens_of(first, False, BLOCK_M)
            q_MD = load_rows(q + head * q_head + begin * q_token, q_token, query, length, offs_d, D, UPCAST)
            acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
            top = tl.full([BLOCK_M], float("-inf"), tl.float32)
            total = tl.zeros([BLOCK_M], tl.float32)

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
                k_PD = load_rows(lent_k, pool_k_token, key, prefix, offs_d, D, UPCAST).to(q_MD.dtype)
                scores = tl.dot(q_MD, k_PD.T, input_precision=PRECISION) * (scale_log2 * times_k)
                scores = tl.where((key < prefix)[None, :], scores, float("-inf"))
                v_PD = load_rows(lent_v, pool_v_token, key, prefix, offs_d, D, UPCAST).to(q_MD.dtype)
                acc, top, total = softmax_step(scores, v_PD, acc, top, total, 1.0, 1.0, False, True)
            acc *= times_v

            own_k = k + head * k_head + begin * k_token
            own_v = v + head * v_head + begin * v_token
            from_key = pos_key + head * pos_key_head if C2P else pos_key
            from_query = pos_query + head * pos_query_head if P2C else pos_query
            for n in tl.range(0, length, BLOCK_M, num_stages=1):
                key = tokens_of(n, True, BLOCK_M)
                k_MD, k_DM = load_both_ways(own_k, k_token, key, length, offs_d, D, BLOCK_M, UPCAST)
                v_MD = load_rows(own_v, v_token, key, length, offs_d, D, UPCAST)
                scores = positional_scores(
                    q_MD, k_MD, from_key, from_query, pos_key_entry, pos_query_entry, distance, reach,
                    first - n - (BLOCK_M - 1), scratch, scale_log2, offs_d, D, BLOCK_D, BLOCK_M, C2P, P2C, UPCAST,
                )  # fmt: skip
                scores = tl.dot(q_MD, k_DM, scores, input_precision=PRECISION) * scale_log2
                scores = tl.where((key < length)[None, :], scores, float("-inf"))
                acc, top, total = softmax_step(scores, v_MD, acc, top, total, 1.0, 1.0, False, True)

            # A query sees its own key at least: the total is positive.
            at = out + ((begin + query) * heads + head)[:, None] * D + offs_d[None, :]
            values = (acc / total[:, None]).to(out.dtype.element_ty)
            tl.store(at, values, mask=(query < length)[:, None] & (offs_d < D)[None, :])
            at = lse + (begin + query) * heads + head
            tl.store(at, (tl.log2(total) + top) * 0.6931471805599453, mask=query < length)


def configurations() -> Iterator[Configuration]:
    """Yield every compiled form that this module may launch, at the shapes that matter."""
    kernel, both = attend_disentangled, {"C2P": True, "P2C": True}
    for dtype, dim, block_m in common_shapes():
        yield from forms(kernel, disentangled_launch, dtype, dim, block_m, both)
    main = (kernel, disentangled_launch, torch.bfloat16, 64)
    for block_m, without in product((64, 128), ("C2P", "P2C")):
        yield from forms(*main, block_m, both | {without: False}, title=f"without {without.lower()}")
    for stored in QUANTISED:
        yield from forms(*main, 64, both, stored=stored)
