"""The CPU route, forward: packed rows, one scratch of keys and values, two products and one exp2 per block.

No padded batch: equally long neighbours meet in one product, and a prefix is written once for all rows that read it in
turn. Plain torch, so it serves any device and dtype; made for CPUs.
It refuses to know autograd, validation, and why the rows were put into these buckets.

Shape letters: see `cpu_runs`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch

from prefixbank.kernels.cpu_runs import joined_runs, read_slots
from prefixbank.kernels.cpu_weights import Room, Scratch, compute_dtype, contiguous, weigh, weigh_shifted
from prefixbank.kernels.operands import softmax_dtype

if TYPE_CHECKING:
    from torch import Tensor

    from prefixbank.kernels.cpu_runs import Run, Runs
    from prefixbank.kernels.operands import Operands, View

LIMIT = 2.0**80
"""Of sums that need no shift of the scores. A weighted sum of values overflows only where values are beyond 2^46."""


class Rows(NamedTuple):
    """What one run reads and writes."""

    run: Run
    q_HXD: Tensor
    k_HXD: Tensor
    v_HXD: Tensor
    out_HXD: Tensor
    sums_X: Tensor
    """Of the weights, [E * L]."""


def forward(operands: Operands, view: View, *, with_lse: bool) -> tuple[Tensor, Tensor]:
    """Return the output [T, H, D] and, `with_lse`, the log-sum-exp [T, H] (else [0, H])."""
    q_THD, k_THD, v_THD, _, _ = operands.differentiable
    tokens, heads, dim = q_THD.shape
    dtype = compute_dtype(q_THD)
    slots, layout = read_slots(operands, dtype.itemsize)
    runs = joined_runs(layout)
    out_THD = torch.empty(q_THD.shape, dtype=q_THD.dtype, device=q_THD.device)
    if runs.all_tokens < tokens:
        out_THD.zero_()
    sums = q_THD.new_empty(heads * runs.all_tokens, dtype=softmax_dtype(q_THD))
    views = (runs.split(x) for x in (q_THD, k_THD, v_THD, out_THD))
    batch = list(map(Rows, runs.each, *views, runs.split_flat(sums, heads)))
    room = Room.over(q_THD, runs, dtype, LIMIT)
    memory = q_THD.new_empty(runs.most_tokens * dim, dtype=dtype)
    attention = Attention(view, Scratch.over(operands, slots, runs), room, memory)
    for rows in batch:
        attention.attend(rows)
    shifts = None if room.can_keep(sums) else torch.zeros_like(sums)
    if shifts is not None:
        for rows, shifts_X in zip(batch, runs.split_flat(shifts, heads), strict=True):
            if not room.can_keep(rows.sums_X):
                attention.attend(rows, shifts_X)
    lse_TH = sums.new_empty(tokens if with_lse else 0, heads)
    if with_lse:
        _write_lse(lse_TH, runs, sums, shifts)
    return out_THD, lse_TH


@dataclass(frozen=True, slots=True)
class Attention:
    """What all runs of a forward share."""

    view: View
    scratch: Scratch
    room: Room
    memory: Tensor
    """For the output of one run."""

    def attend(self, rows: Rows, shifts_X: Tensor | None = None) -> None:
        """Write a run's output and sums; with room for shifts also these, where the sums are of no use."""
        run, room, view = rows.run, self.room, self.view
        k_EJD, v_EJD = self.scratch.filled(run, rows.k_HXD, rows.v_HXD)
        q_ELD = rows.q_HXD.reshape(run.entries, run.length, run.dim).to(k_EJD.dtype)
        sums_EL1 = rows.sums_X.view(run.entries, run.length, 1)
        o_ELD = contiguous(self.memory, run.entries, run.length, run.dim)
        for block in run.blocks:
            q_EID, own_k_EJD, sums_EI1 = block.queries_of(q_ELD), block.keys_of(k_EJD), block.queries_of(sums_EL1)
            if shifts_X is None:
                powers_EIJ = weigh(q_EID, own_k_EJD, block, view, room, sums_EI1)
            else:
                shifts_EI1 = block.queries_of(shifts_X.view(sums_EL1.shape))
                powers_EIJ = weigh_shifted(q_EID, own_k_EJD, block, view, room, sums_EI1, shifts_EI1)
            torch.bmm(powers_EIJ, block.keys_of(v_EJD), out=block.queries_of(o_ELD))
        o_HXD, sums_HX1 = o_ELD.view(rows.out_HXD.shape), rows.sums_X.view(run.heads, run.num_tokens, 1)
        torch.div(o_HXD, sums_HX1, out=rows.out_HXD)


def _write_lse(lse_TH: Tensor, runs: Runs, sums: Tensor, shifts: Tensor | None) -> None:
    """Natural logs of the softmax's denominators; a token of no row has none."""
    logs = sums.log() if shifts is None else sums.log().add_(shifts, alpha=math.log(2))
    lse_TH.fill_(-math.inf)
    for lse_HX, logs_X in zip(runs.split(lse_TH), runs.split_flat(logs, lse_TH.shape[1]), strict=False):
        lse_HX.copy_(logs_X.view(lse_HX.shape))
