"""The CPU route, forward: packed rows, one scratch of keys and values, two products and one exp2 per block.

No padded batch: equally long neighbours meet in one product, and a prefix is written once for all rows that read it in
turn. Plain torch, so it serves any device and dtype; made for CPUs.
It refuses to know autograd, validation, and why the rows were put into these buckets.

Shape letters: see `cpu_runs`.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from prefixbank.kernels.cpu_runs import Packed, joined_runs, layout_of, read_slots
from prefixbank.kernels.cpu_weights import Room, Scratch, compute_dtype, contiguous, weigh
from prefixbank.kernels.operands import softmax_dtype

if TYPE_CHECKING:
    from torch import Tensor

    from prefixbank.kernels.operands import Operands, View

LIMIT = 2.0**80
"""Of sums that need no shift. A weighted sum of values overflows only where values are beyond 2^46."""


def forward(operands: Operands, view: View, *, with_lse: bool) -> tuple[Tensor, Tensor]:
    """Return the output [T, H, D] and, `with_lse`, the log-sum-exp [T, H] (else [0, H])."""
    q_THD = operands.q_THD
    (tokens, heads, dim), dtype, wide = q_THD.shape, compute_dtype(q_THD), softmax_dtype(q_THD)
    slots = read_slots(operands)
    runs = joined_runs(layout_of(operands, slots, dtype.itemsize))
    out_THD = torch.empty(q_THD.shape, dtype=q_THD.dtype, device=q_THD.device)
    lse_TH1 = q_THD.new_empty((tokens if with_lse else 0, heads, 1), dtype=wide)
    if sum(run.num_rows * run.length for run in runs) < tokens:
        out_THD.zero_()
        lse_TH1.fill_(-math.inf)
    room, scratch = Room.over(q_THD, runs, LIMIT), Scratch.over(operands, slots, runs)
    most = max((run.entries * run.length for run in runs), default=0)
    flat_sums, flat_out = q_THD.new_empty(most, dtype=wide), q_THD.new_empty(most * dim, dtype=dtype)
    queries, outs, lses = Packed.over(q_THD), Packed.over(out_THD), Packed.over(lse_TH1)
    for run in runs:
        q_ELD, (k_EJD, v_EJD) = queries.entries(run, dtype), scratch.filled(run)
        sums_EL1 = contiguous(flat_sums, run.entries, run.length, 1)
        o_ELD = contiguous(flat_out, run.entries, run.length, dim)
        logs_EL1 = torch.empty_like(sums_EL1) if with_lse else None
        for block in run.blocks():
            sums_EI1 = block.queries_of(sums_EL1)
            weights = weigh(block.queries_of(q_ELD), block.keys_of(k_EJD), block, view, room, sums_EI1)
            torch.bmm(weights.powers_EIJ, block.keys_of(v_EJD), out=block.queries_of(o_ELD))
            if logs_EL1 is not None:
                block.queries_of(logs_EL1).copy_(weights.log_sum_exp())
        out_HGLD = outs.of(run)
        torch.div(o_ELD.view(out_HGLD.shape), sums_EL1.view(*out_HGLD.shape[:3], 1), out=out_HGLD)
        if logs_EL1 is not None:
            lses.of(run).copy_(logs_EL1.view(*out_HGLD.shape[:3], 1))
    return out_THD, lse_TH1[:, :, 0]
