"""The CPU route, forward: packed rows, one scratch of keys and one of values, two products and one exp2 per block.

No padded batch: equally long neighbours meet in one product, and a prefix is written once for all rows that read it in
turn. Plain torch, so it serves any device and dtype; made for CPUs.
It refuses to know autograd, validation, and why the rows were put into these buckets.

Shape letters: see `cpu_groups`.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from prefixbank.kernels.cpu_groups import Width, joined, read_groups
from prefixbank.kernels.cpu_weights import Room, Scratch, compute_dtype, weigh
from prefixbank.kernels.operands import softmax_dtype

if TYPE_CHECKING:
    from torch import Tensor

    from prefixbank.kernels.operands import Operands, View


def forward(operands: Operands, view: View, *, with_lse: bool) -> tuple[Tensor, Tensor]:
    """Return the output [T, H, D] and, `with_lse`, the log-sum-exp [T, H] (else [0, H])."""
    q_THD = operands.q_THD
    tokens, heads, dim = q_THD.shape
    dtype = compute_dtype(q_THD)
    groups = joined(read_groups(operands))
    runs = Width(heads, dim, dtype.itemsize).runs(groups)
    out_THD = torch.empty(q_THD.shape, dtype=q_THD.dtype, device=q_THD.device)
    lse_TH = q_THD.new_empty((tokens if with_lse else 0, heads), dtype=softmax_dtype(q_THD))
    if sum(bucket.length * bucket.num_rows for bucket, _, _ in groups) < tokens:
        out_THD.zero_()
        lse_TH.fill_(-math.inf)
    room, (keys, values) = Room.over(q_THD, runs), Scratch.pair(operands, runs)
    q_HTD, out_HTD, lse_HT = q_THD.transpose(0, 1), out_THD.transpose(0, 1), lse_TH.transpose(0, 1)
    for run in runs:
        k_EJD, v_EJD = keys.filled(run), values.filled(run)
        for block in run.blocks(heads):
            q_EID = block.entries(q_HTD).to(dtype)
            weights = weigh(q_EID, block.part(k_EJD), block, view, room)
            o_EID, own_out = torch.bmm(weights.powers_EIJ, block.part(v_EJD)), block.of(out_HTD)
            torch.div(o_EID.view(own_out.shape), weights.sums_EI1.view(*own_out.shape[:-1], 1), out=own_out)
            if with_lse:
                own_lse = block.of(lse_HT)
                own_lse.copy_(weights.log_sum_exp().view(own_lse.shape))
    return out_THD, lse_TH
