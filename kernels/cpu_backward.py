"""The CPU route, backward: the gradients of q, k, v and of the prefixes, block by block as in the forward.

With weights `e / s`: `do' = do / s`, `dv = e^T do'`, `ds = e * (do' v^T - delta / s) * scale`, `dq = ds k`,
`dk = ds^T q`, so that what is divided is as wide as a head, not as the keys.
The rows of a slot are summed in the order of the buckets: the same batch gives the same bits.
It refuses to know the forward's memory; weights are computed anew.

Shape letters: see `cpu_runs`; N pool tokens, C those of the J keys whose gradient is needed.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import repeat
from typing import TYPE_CHECKING, NamedTuple

import torch

from prefixbank.kernels.cpu_runs import Packed, layout_of, read_slots, runs_of_slots
from prefixbank.kernels.cpu_weights import Room, Scratch, compute_dtype, contiguous, weigh
from prefixbank.kernels.operands import softmax_dtype

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from prefixbank.kernels.cpu_runs import Block, Run, Slot
    from prefixbank.kernels.operands import Needs, Operands, View

LIMIT = 2.0**64
"""Of sums that need no shift. Gradients of outputs are divided by a sum, and keep their bits down to 2^-62."""


def backward(
    d_out_THD: Tensor, d_lse_TH: Tensor, out_THD: Tensor, operands: Operands, view: View, needs: Needs
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of q, k, v, pool_k, pool_v; one that is not needed is an empty tensor."""
    q_THD = operands.q_THD
    dtype, slots = compute_dtype(q_THD), read_slots(operands)
    # Not joined: a prefix's gradient is summed over the rows of its slot.
    runs = runs_of_slots(layout_of(operands, slots, dtype.itemsize))
    has_gaps = sum(run.num_rows * run.length for run in runs) < q_THD.shape[0]
    d_q, d_k, d_v = (_own_gradient(x, need, has_gaps) for x, need in zip(operands[:3], needs[:3], strict=True))
    scratch, room = Scratch.over(operands, slots, runs), Room.over(q_THD, runs, LIMIT)
    memory = (torch.empty_like(side.flat) for side in scratch.sides)
    d_pools = (_pool_gradient(x, need) for x, need in zip(operands[3:5], needs[3:], strict=True))
    into_keys, into_values = map(Sums, (d_k, d_v), d_pools, repeat(slots), memory)
    step = Step(view, room, torch.empty_like(room.scores), into_keys, into_values)
    delta_TH1 = _delta(d_out_THD, d_lse_TH, out_THD)
    queries, d_outs, deltas = (Packed.over(x) for x in (q_THD, d_out_THD, delta_TH1))
    for run in runs:
        q_ELD, do_ELD = queries.entries(run, dtype), d_outs.entries(run, d_out_THD.dtype)
        dq_ELD = torch.empty_like(q_ELD, memory_format=torch.contiguous_format) if needs.q else None
        k_EJD, v_EJD = scratch.filled(run)
        own = Own(q_ELD, k_EJD, v_EJD, do_ELD, deltas.entries(run, delta_TH1.dtype), dq_ELD)
        for block in run.blocks():
            step.take(block, own)
        into_keys.finish(run)
        into_values.finish(run)
        if dq_ELD is not None:
            own_HGLD = Packed.over(d_q).of(run)
            own_HGLD.copy_(dq_ELD.view(own_HGLD.shape))
    d_pool_k, d_pool_v = (sums.pool_HND.to(operands.pool_k_HND.dtype) for sums in (into_keys, into_values))
    return d_q, d_k, d_v, d_pool_k, d_pool_v


def _own_gradient(x_THD: Tensor, need: bool, has_gaps: bool) -> Tensor:
    """Memory for the gradient of q, k or v: every token of a row will be written, and one of no row has 0."""
    if not need:
        return x_THD.new_empty(0)
    return x_THD.new_zeros(x_THD.shape) if has_gaps else x_THD.new_empty(x_THD.shape)


def _pool_gradient(pool_HND: Tensor, need: bool) -> Tensor:
    """Zeros in the softmax's dtype, in which rows are summed."""
    return pool_HND.new_zeros(pool_HND.shape if need else 0, dtype=softmax_dtype(pool_HND))


def _delta(d_out_THD: Tensor, d_lse_TH: Tensor, out_THD: Tensor) -> Tensor:
    """What the gradients of a query's weights are reduced by [T, H, 1]: their weighted mean, less that of its lse."""
    wide = softmax_dtype(out_THD)
    delta_TH1 = (d_out_THD.to(wide) * out_THD.to(wide)).sum(-1, keepdim=True)
    return delta_TH1.sub_(d_lse_TH[..., None]) if d_lse_TH.numel() else delta_TH1


class Sums(NamedTuple):
    """Where the gradient of the keys (or of the values) goes."""

    own_THD: Tensor
    """[0] when not needed."""
    pool_HND: Tensor
    """[0] when not needed."""
    slots: Mapping[int, Slot]
    flat: Tensor
    """Memory for the sums of one run."""

    @property
    def is_needed(self) -> bool:
        return self.own_THD.dim() + self.pool_HND.dim() > 2

    def add(self, block: Block, weights_EIJ: Tensor, x_EID: Tensor) -> None:
        """Add weights^T x to the sums of the run, computing only the columns that are needed."""
        first, count = self._columns(block.run)
        if count:
            sums_ECD = block.keys_of(contiguous(self.flat, block.run.entries, count, block.run.dim))
            columns_ECI = weights_EIJ.narrow(2, first, count).mT
            torch.baddbmm(sums_ECD, columns_ECI, x_EID, beta=1 if block.query else 0, out=sums_ECD)

    def finish(self, run: Run) -> None:
        """Hand the sums of a run on: each row's own, and of the prefix that of all rows."""
        first, count = self._columns(run)
        if not count:
            return
        sums_HGCD = contiguous(self.flat, run.entries, count, run.dim).view(run.heads, run.num_rows, count, -1)
        if self.own_THD.dim() == 3:
            Packed.over(self.own_THD).of(run).copy_(sums_HGCD.narrow(2, run.prefix - first, run.length))
        if self.pool_HND.dim() == 3 and run.prefix:
            start = self.slots[run.loans[0].slot].start
            sums_HGPD = sums_HGCD.narrow(2, 0, run.prefix)
            self.pool_HND.narrow(1, start, run.prefix).add_(sums_HGPD.sum(1, dtype=self.pool_HND.dtype))

    def _columns(self, run: Run) -> tuple[int, int]:
        """The first needed column of keys, and how many are."""
        first = 0 if self.pool_HND.dim() == 3 else run.prefix
        return first, (run.keys if self.own_THD.dim() == 3 else run.prefix) - first


class Own(NamedTuple):
    """What a run brings along."""

    q_ELD: Tensor
    k_EJD: Tensor
    v_EJD: Tensor
    do_ELD: Tensor
    delta_EL1: Tensor
    dq_ELD: Tensor | None
    """Where the gradient of the queries goes; None when it is not needed."""


@dataclass(frozen=True, slots=True)
class Step:
    """What all blocks of a backward share."""

    view: View
    room: Room
    d_scores: Tensor
    """Memory for the gradients of one block's scores."""
    into_keys: Sums
    into_values: Sums

    def take(self, block: Block, own: Own) -> None:
        """Add what one block contributes to each gradient."""
        q_EID, k_EJD, v_EJD = block.queries_of(own.q_ELD), block.keys_of(own.k_EJD), block.keys_of(own.v_EJD)
        sums_EI1 = torch.empty_like(block.queries_of(own.delta_EL1), memory_format=torch.contiguous_format)
        powers_EIJ = weigh(q_EID, k_EJD, block, self.view, self.room, sums_EI1).powers_EIJ
        inverse_EI1 = sums_EI1.reciprocal_()
        do_EID = (block.queries_of(own.do_ELD) * inverse_EI1).to(k_EJD.dtype)
        self.into_values.add(block, powers_EIJ, do_EID)
        if own.dq_ELD is None and not self.into_keys.is_needed:
            return
        delta_EI1 = (block.queries_of(own.delta_EL1) * inverse_EI1).mul_(self.view.scale).to(k_EJD.dtype)
        ds_EIJ = contiguous(self.d_scores, *powers_EIJ.shape)
        torch.baddbmm(ds_EIJ, do_EID, v_EJD.mT, beta=0, alpha=self.view.scale, out=ds_EIJ)
        ds_EIJ.sub_(delta_EI1).mul_(powers_EIJ)
        self.into_keys.add(block, ds_EIJ, q_EID)
        if own.dq_ELD is not None:
            torch.bmm(ds_EIJ, k_EJD, out=block.queries_of(own.dq_ELD))
