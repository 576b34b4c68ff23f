"""What every launch of the backward shares: the operands made ready, and two numbers per query and head.

With `p` the softmax, its gradient needs the log-sum-exp (to compute `p` anew from a score) and
`delta = rowsum(out * d_out) - d_lse`. Both lie [2, H, T] here, so that a tile of queries of one head is one run.
Tokens of no row get their zero gradients here too. It refuses to know keys.

Shape letters: T packed tokens, H heads, D head dim.
"""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING, NamedTuple

import torch
import triton
import triton.language as tl

from prefixbank.kernels.gpu.forward import dense
from prefixbank.kernels.gpu.gradient_tiling import COUNTS, form
from prefixbank.kernels.gpu.tiling import INDICES, SUPPORTED, Launch, padded_head_dim

if TYPE_CHECKING:
    from collections.abc import Iterator

    from prefixbank.kernels.gpu.configuration import Configuration
    from prefixbank.kernels.operands import Needs, Operands, View
    from prefixbank.kernels.plan import Tiling

LOG2_E: tl.constexpr = tl.constexpr(1.4426950408889634)
PREPARE = Launch(block_m=32, block_n=0, num_warps=4, num_stages=1)
"""Statistics: `block_m` tokens a program."""


class Saved(NamedTuple):
    """What the forward left, made ready for the kernels that differentiate it."""

    q_THD: torch.Tensor
    k_THD: torch.Tensor
    v_THD: torch.Tensor
    d_out_THD: torch.Tensor
    statistics_2HT: torch.Tensor
    """fp32: log-sum-exp in base 2; delta. Undefined for tokens of no row."""
    operands: Operands
    view: View
    tiling: Tiling

    @property
    def dim(self) -> int:
        return self.q_THD.shape[2]

    @property
    def query_strides(self) -> tuple[int, ...]:
        """Strides of token and head of q, then of d_out."""
        return (*self.q_THD.stride()[:2], *self.d_out_THD.stride()[:2])

    @property
    def key_strides(self) -> tuple[int, ...]:
        """Strides of token and head of k, then of v."""
        return (*self.k_THD.stride()[:2], *self.v_THD.stride()[:2])


class OwnGradients(NamedTuple):
    """Gradients of q, k and v, to be written; [0] where not needed."""

    q_THD: torch.Tensor
    k_THD: torch.Tensor
    v_THD: torch.Tensor


def save(
    d_out_THD: torch.Tensor,
    d_lse_TH: torch.Tensor,
    out_THD: torch.Tensor,
    lse_TH: torch.Tensor,
    operands: Operands,
    view: View,
    tiling: Tiling,
    needs: Needs,
) -> tuple[Saved, OwnGradients]:
    """Compute the statistics of each softmax; return gradients whose tokens of no row are written, and no other."""
    q, k, v, d_out = (dense(x) for x in (*operands[:3], d_out_THD))
    tokens, heads, dim = q.shape
    own = OwnGradients(*(q.new_empty(q.shape if need else [0]) for need in needs[:3]))
    statistics = q.new_empty((2, heads, tokens), dtype=torch.float32)
    with_d_lse = d_lse_TH.numel() > 0
    if tokens:
        prepare[(heads * triton.cdiv(tokens, PREPARE.block_m),)](
            d_out, out_THD.contiguous(), d_lse_TH, lse_TH.contiguous(), statistics, *own,
            operands.row_start_R1, heads, tokens, operands.slot_R.numel(),
            *d_out.stride()[:2], *d_lse_TH.stride(),
            D=dim, BLOCK_D=padded_head_dim(dim), BLOCK=PREPARE.block_m, WITH_D_LSE=with_d_lse,
            NEED_Q=needs.q, NEED_K=needs.k, NEED_V=needs.v,
            num_warps=PREPARE.num_warps, num_stages=PREPARE.num_stages,
        )  # fmt: skip
    return Saved(q, k, v, d_out, statistics, operands, view, tiling), own


@triton.jit(do_not_specialize=COUNTS, do_not_specialize_on_alignment=INDICES)
def prepare(
    d_out, out, d_lse, lse, statistics, d_q, d_k, d_v, row_start, heads, tokens, rows,
    d_out_token, d_out_head, d_lse_token, d_lse_head,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK: tl.constexpr,
    WITH_D_LSE: tl.constexpr, NEED_Q: tl.constexpr, NEED_K: tl.constexpr, NEED_V: tl.constexpr,
):  # fmt: skip
    """Statistics of a block of tokens and a head; zero gradients for those of its tokens that belong to no row."""
    head = tl.program_id(0) % heads
    token = (tl.program_id(0) // heads * BLOCK + tl.arange(0, BLOCK)).to(tl.int64)
    offs_d = tl.arange(0, BLOCK_D)
    of_a_row = token < tl.load(row_start + rows)
    inside = (offs_d < D)[None, :]
    at = ((token * heads + head) * D)[:, None] + offs_d[None, :]
    from_d_out = d_out + (token * d_out_token + head * d_out_head)[:, None] + offs_d[None, :]
    d_out_MD = tl.load(from_d_out, mask=of_a_row[:, None] & inside, other=0.0).to(tl.float32)
    out_MD = tl.load(out + at, mask=of_a_row[:, None] & inside, other=0.0).to(tl.float32)
    delta = tl.sum(d_out_MD * out_MD, 1)
    if WITH_D_LSE:
        delta -= tl.load(d_lse + token * d_lse_token + head * d_lse_head, mask=of_a_row, other=0.0)
    log_total = tl.load(lse + token * heads + head, mask=of_a_row, other=0.0)
    into = statistics + head.to(tl.int64) * tokens + token
    tl.store(into, log_total * LOG2_E, mask=of_a_row)
    tl.store(into + heads.to(tl.int64) * tokens, delta, mask=of_a_row)

    of_no_row = ((token < tokens) & (token >= tl.load(row_start + rows)))[:, None] & inside
    nothing = tl.zeros([BLOCK, BLOCK_D], d_q.dtype.element_ty)
    if NEED_Q:
        tl.store(d_q + at, nothing, mask=of_no_row)
    if NEED_K:
        tl.store(d_k + at, nothing, mask=of_no_row)
    if NEED_V:
        tl.store(d_v + at, nothing, mask=of_no_row)


def configurations() -> Iterator[Configuration]:
    """Yield every compiled form that this module may launch, at the shapes that matter."""
    for dtype, dim in product(SUPPORTED, (32, 64, 128)):
        constants = {"BLOCK": PREPARE.block_m, "WITH_D_LSE": True, "NEED_Q": True, "NEED_K": True, "NEED_V": True}
        yield form(prepare, dtype, dim, f"m{PREPARE.block_m}", PREPARE, constants)
