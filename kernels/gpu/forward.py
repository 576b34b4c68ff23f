"""The forward: one launch per layer for all rows of a batch, whatever tasks they belong to.

A program owns one head of one tile of queries. It reads the tile's row, the row's slot, and where that slot's prefix
lies in this layer; then one loop runs over prefix and own keys. With splits, several programs share the keys of
a tile and a second launch puts their parts together. It refuses to know gradients and validation.

Shape letters: T packed tokens, H heads, D head dim, Z splits, Y tiles.
"""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl

from prefixbank.kernels.gpu.configuration import EVERY_TARGET, Configuration, pointer
from prefixbank.kernels.gpu.tile import (
    FULL,
    PRECISION,
    find_tile_if_any,
    is_visible,
    load_keys,
    load_rows,
    own_range,
    softmax_step,
    unmasked_keys,
    zero_tail,
)
from prefixbank.kernels.gpu.tiling import (
    INDICES,
    LOG2_E,
    SUPPORTED,
    VARYING,
    check_supported,
    forward_launch,
    interpreting,
    padded_head_dim,
)
from prefixbank.kernels.operands import QUANTISED

if TYPE_CHECKING:
    from collections.abc import Iterator

    from prefixbank.kernels.gpu.tiling import Launch
    from prefixbank.kernels.operands import Operands, View
    from prefixbank.kernels.plan import Tiling

COMBINE_TOKENS = 32
STRIDES = (
    "q_token", "q_head", "k_token", "k_head", "v_token", "v_head",
    "pool_k_head", "pool_k_token", "pool_v_head", "pool_v_token",
)  # fmt: skip


def forward(
    operands: Operands, view: View, tiling: Tiling, *, with_lse: bool, launch: Launch | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the output [T, H, D] and, `with_lse`, the natural log-sum-exp [T, H] in fp32 (else [0, H]).

    `launch` is for benchmarks that compare constants; by default the table's.
    """
    q, k, v, pool_k, pool_v = map(dense, operands.differentiable)
    check_supported(q)
    tokens, heads, dim = q.shape
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    # Always written: a form without it would be another one, with other registers, and save a hundredth of the bytes.
    lse = q.new_empty((tokens, heads), dtype=torch.float32)
    splits = tiling.num_splits
    part_out = out if splits == 1 else q.new_empty((splits, tokens, heads, dim), dtype=torch.float32)
    part_lse = lse if splits == 1 else q.new_empty((splits, tokens, heads), dtype=torch.float32)
    launch = launch or forward_launch(tiling.block_m, padded_head_dim(dim), q.dtype)
    # Without a row there is none to stand in for what lies beyond the tiles.
    parts = len(operands.tile_Y2) * (tiling.block_m // launch.block_m) if operands.slot_R.numel() else 0
    quantised = operands.slot_scale_S2H is not None
    attend[(heads * (parts + 1), splits)](
        q, k, v, pool_k, pool_v, part_out, part_lse,
        operands.slot_start_S, operands.slot_length_S, operands.slot_scale_S2H if quantised else operands.slot_start_S,
        operands.row_start_R1, operands.slot_R, operands.context_R, operands.tile_Y2, operands.num_tiles_1,
        view.scale * LOG2_E, view.window, heads, tokens, operands.slot_R.numel(),
        q.stride(0), q.stride(1), k.stride(0), k.stride(1), v.stride(0), v.stride(1),
        *pool_k.stride()[:2], *pool_v.stride()[:2],
        D=dim, BLOCK_D=padded_head_dim(dim), BLOCK_M=launch.block_m, BLOCK_N=launch.block_n,
        SUB=tiling.block_m // launch.block_m, SPLITS=splits, MODE=int(view.mode), WINDOWED=view.window > 0,
        QUANTISED=quantised, UPCAST=interpreting(),
        num_warps=launch.num_warps, num_stages=launch.num_stages,
    )  # fmt: skip
    if splits > 1:
        combine[(heads * max(1, triton.cdiv(tokens, COMBINE_TOKENS)),)](
            part_out, part_lse, out, lse, operands.row_start_R1, heads, tokens, operands.slot_R.numel(),
            D=dim, BLOCK_D=padded_head_dim(dim), BLOCK=COMBINE_TOKENS, SPLITS=splits, num_warps=4,
        )  # fmt: skip
    return out, lse if with_lse else lse.new_empty((0, heads))


def dense(x: torch.Tensor) -> torch.Tensor:
    """The tensor with its last dimension in one run, which is what a model's projections give."""
    return x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()


@triton.jit(do_not_specialize=VARYING, do_not_specialize_on_alignment=INDICES)
def attend(
    q, k, v, pool_k, pool_v, out, lse,
    slot_start, slot_length, slot_scale, row_start, slot_of_row, context_of_row, tile, num_tiles,
    scale_log2, window, heads, tokens, rows,
    q_token, q_head, k_token, k_head, v_token, v_head, pool_k_head, pool_k_token, pool_v_head, pool_v_token,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    SUB: tl.constexpr, SPLITS: tl.constexpr, MODE: tl.constexpr, WINDOWED: tl.constexpr,
    QUANTISED: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    # Heads run fastest: programs that run together read the same rows of q, k, v and, tile by tile, the same prefix.
    head = tl.program_id(0) % heads
    y = tl.program_id(0) // heads
    split = tl.program_id(1)
    offs_d = tl.arange(0, BLOCK_D)
    out += head * D
    lse += head
    if y == tl.num_programs(0) // heads - 1:
        if SPLITS == 1:
            begin = tl.load(row_start + rows)
            zero_tail(out, lse, begin, tokens, heads * D, heads, offs_d, D, BLOCK_M)
        return
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

    query = first + tl.arange(0, BLOCK_M)
    q_MD = load_rows(q + head * q_head + begin * q_token, q_token, query, length, offs_d, D, UPCAST)
    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    top = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)

    steps = tl.cdiv(tl.cdiv(num_keys, BLOCK_N), SPLITS)
    n_begin = split * steps * BLOCK_N
    n_end = tl.minimum(num_keys, n_begin + steps * BLOCK_N)
    n_plain = unmasked_keys(prefix, first, high, context, MODE, WINDOWED) // BLOCK_N * BLOCK_N
    n_plain = tl.maximum(n_begin, tl.minimum(n_plain, n_end // BLOCK_N * BLOCK_N))
    # A last step that is not full would wait for its own loads: then all are masked, in one pipeline. fp32 and tiles
    # whose keys are shared have no registers for that.
    IN_ONE: tl.constexpr = MODE == FULL and not WINDOWED and SPLITS == 1 and q.dtype.element_ty != tl.float32
    if IN_ONE:
        n_plain = tl.where(n_plain < n_end, n_begin, n_plain)
    for masked in tl.static_range(2):
        for n in tl.range(
            n_plain if masked else n_begin,
            n_end if masked else n_plain,
            BLOCK_N,
            # Else, without a window, a tile has one or two masked steps: nothing to pipeline.
            num_stages=1 if masked and not IN_ONE and not WINDOWED else None,
        ):
            key = n + tl.arange(0, BLOCK_N)
            of_prefix = key < prefix
            k_ND = load_keys(
                lent_k,
                own_k,
                key,
                prefix,
                num_keys,
                k_token,
                pool_k_token,
                offs_d,
                D,
                BLOCK_D,
                masked,
                QUANTISED,
                UPCAST,
            )
            scores = tl.dot(q_MD, k_ND.T, input_precision=PRECISION)
            v_ND = load_keys(
                lent_v,
                own_v,
                key,
                prefix,
                num_keys,
                v_token,
                pool_v_token,
                offs_d,
                D,
                BLOCK_D,
                masked,
                QUANTISED,
                UPCAST,
            )
            if QUANTISED:
                scores = scores * tl.where(of_prefix, times_k, 1.0)[None, :]
            if masked:
                own_key = tl.where(of_prefix, -1, key - prefix + low)[None, :]
                seen = is_visible(query[:, None], own_key, context, window, MODE, WINDOWED)
                scores = tl.where(seen & (key < num_keys)[None, :], scores, float("-inf"))
            times_N = tl.where(of_prefix, times_v, 1.0)
            acc, top, total = softmax_step(scores, v_ND, acc, top, total, scale_log2, times_N, QUANTISED, masked)

    has_keys = total > 0
    total = tl.where(has_keys, total, 1.0)
    token = begin + query
    inside = query < length
    # Parts of a tile lie [Z, T, H, D]; without splits Z is 1 and this is the output itself.
    at = out + (split.to(tl.int64) * tokens + token)[:, None] * (heads * D) + offs_d[None, :]
    tl.store(at, (acc / total[:, None]).to(out.dtype.element_ty), mask=inside[:, None] & (offs_d < D)[None, :])
    log_total = tl.where(has_keys, tl.log2(total) + top * scale_log2, float("-inf"))
    tl.store(lse + (split.to(tl.int64) * tokens + token) * heads, log_total * 0.6931471805599453, mask=inside)


@triton.jit(do_not_specialize=VARYING, do_not_specialize_on_alignment=INDICES)
def combine(
    part_out, part_lse, out, lse, row_start, heads, tokens, rows,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK: tl.constexpr, SPLITS: tl.constexpr,
):  # fmt: skip
    """Put the parts of every token together: a softmax over the parts' log-sum-exps."""
    head = tl.program_id(0) % heads
    token = (tl.program_id(0) // heads * BLOCK + tl.arange(0, BLOCK)).to(tl.int64)
    offs_d = tl.arange(0, BLOCK_D)
    of_a_row = token < tl.load(row_start + rows)
    stored = of_a_row[:, None] & (offs_d < D)[None, :]
    top = tl.full([BLOCK], float("-inf"), tl.float32)
    for split in tl.static_range(SPLITS):
        top = tl.maximum(
            top, tl.load(part_lse + (split * tokens + token) * heads + head, mask=of_a_row, other=float("-inf"))
        )
    anchor = tl.where(top == float("-inf"), 0.0, top)
    acc = tl.zeros([BLOCK, BLOCK_D], tl.float32)
    total = tl.zeros([BLOCK], tl.float32)
    for split in tl.static_range(SPLITS):
        part = tl.load(part_lse + (split * tokens + token) * heads + head, mask=of_a_row, other=float("-inf"))
        weight = tl.exp(part - anchor)
        at = part_out + ((split * tokens + token) * heads + head)[:, None] * D + offs_d[None, :]
        acc += weight[:, None] * tl.load(at, mask=stored, other=0.0)
        total += weight
    has_keys = total > 0
    total = tl.where(has_keys, total, 1.0)
    at = out + (token * heads + head)[:, None] * D + offs_d[None, :]
    tl.store(
        at, (acc / total[:, None]).to(out.dtype.element_ty), mask=(token < tokens)[:, None] & (offs_d < D)[None, :]
    )
    whole = tl.where(has_keys, tl.log(total) + anchor, float("-inf"))
    tl.store(lse + token * heads + head, whole, mask=token < tokens)


def configurations() -> Iterator[Configuration]:
    """Yield every compiled form that this module may launch, at the shapes that matter."""
    for dtype, dim, block_m in product(SUPPORTED, (32, 64, 128), (16, 32, 64, 128)):
        yield attend_form(dtype, dim, block_m)
    for dim, block_m in product((48, 80, 96), (64, 128)):
        yield attend_form(torch.bfloat16, dim, block_m)
    for block_m, mode, windowed in product((64, 128), (0, 1, 2), (False, True)):
        if mode or windowed:
            yield attend_form(torch.bfloat16, 64, block_m, MODE=mode, WINDOWED=windowed)
    for block_m, splits in product((16, 64), (2, 4)):
        yield attend_form(torch.bfloat16, 64, block_m, SPLITS=splits)
    for stored, block_m in product(QUANTISED, (16, 64, 128)):
        yield attend_form(torch.bfloat16, 64, block_m, stored=stored, QUANTISED=True)
    for dtype, dim, splits in product(SUPPORTED, (64, 128), (2, 4)):
        yield _combine_form(dtype, dim, splits)


def attend_form(
    dtype: torch.dtype,
    dim: int,
    block_m: int,
    *,
    launch: Launch | None = None,
    stored: torch.dtype | None = None,
    **differing: object,
) -> Configuration:
    """One compiled form of `attend`, for a plan's tile; `launch` is for benchmarks that compare constants."""
    launch = launch or forward_launch(block_m, padded_head_dim(dim), dtype)
    constants: dict[str, object] = {
        "D": dim, "BLOCK_D": padded_head_dim(dim), "BLOCK_M": launch.block_m, "BLOCK_N": launch.block_n,
        "SUB": block_m // launch.block_m, "SPLITS": 1, "MODE": 0, "WINDOWED": False, "QUANTISED": False,
        "UPCAST": False,
    }  # fmt: skip
    constants |= differing
    partial = torch.float32 if constants["SPLITS"] != 1 else dtype
    own, pool, index = pointer(dtype), pointer(stored or dtype), pointer(torch.int32, aligned=False)
    signature = {
        "q": own, "k": own, "v": own, "pool_k": pool, "pool_v": pool,
        "out": pointer(partial), "lse": pointer(torch.float32),
        **dict.fromkeys(INDICES[:8], index), "scale_log2": "fp32", "window": "i32", "heads": "i32:16",
        "tokens": "i32", "rows": "i32", **dict.fromkeys(STRIDES, "i32:16"),
    }  # fmt: skip
    if stored:
        signature["slot_scale"] = pointer(torch.float32, aligned=False)
    shape = " ".join(f"{name.lower()}={value}" for name, value in differing.items())
    name = f"forward {dtype} D{dim} m{block_m} {stored or ''} {shape}".replace("torch.", "").strip()
    matrix = dtype != torch.float32
    # fp8e4nv does not exist before compute capability 8.9.
    targets = (90, 100) if stored == torch.float8_e4m3fn else EVERY_TARGET
    return Configuration(
        name, attend, signature, constants, launch.num_warps, launch.num_stages, matrix, launch.num_stages > 1, targets
    )


def _combine_form(dtype: torch.dtype, dim: int, splits: int) -> Configuration:
    real = pointer(torch.float32)
    signature = {
        "part_out": real, "part_lse": real, "out": pointer(dtype), "lse": real,
        "row_start": pointer(torch.int32, aligned=False), "heads": "i32:16", "tokens": "i32", "rows": "i32",
    }  # fmt: skip
    constants = {"D": dim, "BLOCK_D": padded_head_dim(dim), "BLOCK": COMBINE_TOKENS, "SPLITS": splits}
    name = f"combine {dtype} D{dim} splits={splits}".replace("torch.", "")
    return Configuration(name, combine, signature, constants, 4, 3, False, False)
