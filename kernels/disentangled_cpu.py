"""The CPU route of disentangled attention, forward: rows meet as in `cpu`, in four products per block instead of two.

It refuses to know autograd and validation.

Shape letters: see `cpu_runs`.
"""

from __future__ import annotations

import math
from itertools import repeat
from typing import TYPE_CHECKING

import torch

from prefixbank.kernels.cpu_runs import joined_runs, read_slots
from prefixbank.kernels.cpu_weights import Scratch, compute_dtype
from prefixbank.kernels.disentangled_cpu_scores import Scorer
from prefixbank.kernels.operands import softmax_dtype

if TYPE_CHECKING:
    from torch import Tensor

    from prefixbank.kernels.disentangled_positions import Positions
    from prefixbank.kernels.operands import Operands


def forward(operands: Operands, positions: Positions, scale: float, *, with_lse: bool) -> tuple[Tensor, Tensor]:
    """Return the output [T, H, D] and, `with_lse`, the log-sum-exp [T, H] (else [0, H])."""
    q_THD, k_THD, v_THD, _, _ = operands.differentiable
    tokens, heads, _ = q_THD.shape
    slots, layout = read_slots(operands, compute_dtype(q_THD).itemsize)
    runs = joined_runs(layout)
    out_THD = torch.empty(q_THD.shape, dtype=q_THD.dtype, device=q_THD.device)
    lse_TH = q_THD.new_empty((tokens if with_lse else 0, heads), dtype=softmax_dtype(q_THD))
    if runs.all_tokens < tokens:
        out_THD.zero_()
        lse_TH.fill_(-math.inf)
    scorer, scratch = Scorer.over(q_THD, positions, scale, runs), Scratch.over(operands, slots, runs)
    views = [runs.split(x) for x in (q_THD, k_THD, v_THD, out_THD)]
    for run, q, k, v, out, lse in zip(
        runs.each, *views, runs.split(lse_TH) if with_lse else repeat(None), strict=False
    ):
        k_EJD, v_EJD = scratch.filled(run, k, v)
        q_ELD, own_ELD = (x.reshape(run.entries, run.length, run.dim).to(k_EJD.dtype) for x in (q, k))
        out_ELD = torch.empty_like(q_ELD)
        for block in run.blocks:
            scores_EIJ = scorer.score(block, q_ELD, k_EJD, own_ELD)
            weights_EIJ = torch.softmax(scores_EIJ, -1)
            torch.bmm(weights_EIJ.to(v_EJD.dtype), block.keys_of(v_EJD), out=block.queries_of(out_ELD))
            if lse is not None:
                # The largest weight is 1 / (the softmax's denominator relative to the largest score).
                lse_EI = scores_EIJ.amax(-1) - weights_EIJ.amax(-1).log()
                block.queries_of(lse.view(run.entries, run.length)).copy_(lse_EI)
        out.copy_(out_ELD.view(out.shape))
    return out_THD, lse_TH
