"""The CPU route, backward: the gradients of q, k, v and of the prefixes, block by block as in the forward.

With weights `e / s`: `do' = do / s`, `dv = e^T do'`, `ds = e * (do' v^T - delta / s) * scale`, `dq = ds k`,
`dk = ds^T q`, so that what is divided is as wide as a head, not as the keys.
The rows of a slot are summed in the order of the buckets: the same batch gives the same bits.
It refuses to know the forward's memory; weights are computed anew.

Shape letters: see `cpu_runs`; N pool tokens, C keys of one sum: P or L.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import repeat
from typing import TYPE_CHECKING, NamedTuple

import torch

from prefixbank.kernels.cpu_runs import read_slots, runs_of_slots
from prefixbank.kernels.cpu_weights import Room, Scratch, compute_dtype, contiguous, weigh, weigh_shifted
from prefixbank.kernels.operands import softmax_dtype

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from torch import Tensor

    from prefixbank.kernels.cpu_runs import Block, Run, Runs, Slot
    from prefixbank.kernels.operands import Needs, Operands, View

LIMIT = 2.0**64
"""Of sums that need no shift of the scores. Gradients of outputs, divided by a sum, keep their bits down to 2^-62."""

FEW_SCORES = 400_000
"""A run of fewer scores than this is multiplied in fp32: a bf16 product costs more to call than to do. Each run is
judged alone: what shares its batch must not show in its numbers."""


def backward(
    d_out_THD: Tensor, d_lse_TH: Tensor, out_THD: Tensor, operands: Operands, view: View, needs: Needs
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of q, k, v, pool_k, pool_v; one that is not needed is an empty tensor."""
    q_THD, k_THD, v_THD, pool_k_HND, pool_v_HND = operands.differentiable
    slots, layout = read_slots(operands, compute_dtype(q_THD).itemsize)
    # Not joined: a prefix's gradient is summed over the rows of its slot.
    runs = runs_of_slots(layout)
    dtypes = [_dtype_of(run, q_THD) for run in runs.each]
    d_q, d_k, d_v = (_own_gradient(x, need, runs) for x, need in zip(operands[:3], needs[:3], strict=True))
    d_pool_k, d_pool_v = (_pool_gradient(x, need) for x, need in zip(operands[3:5], needs[3:], strict=True))
    steps = {
        dtype: Step.over(operands, view, runs, Lenders(slots, (d_pool_k, d_pool_v), (needs.k, needs.v)), dtype)
        for dtype in dict.fromkeys(dtypes)
    }
    read = (runs.split(x) for x in (q_THD, k_THD, v_THD, d_out_THD, _delta(d_out_THD, d_lse_TH, out_THD)))
    written = (_split(runs, d_THD) for d_THD in (d_q, d_k, d_v))
    for run, dtype, q, k, v, do, delta, dq, dk, dv in zip(runs.each, dtypes, *read, *written, strict=False):
        step = steps[dtype]
        k_EJD, v_EJD = step.scratch.filled(run, k, v)
        q_ELD, do_ELD, delta_EL1 = (x.reshape(run.entries, run.length, -1) for x in (q, do, delta))
        dq_ELD = None if dq is None else k_EJD.new_empty(q_ELD.shape)
        own = Own(q_ELD.to(k_EJD.dtype), k_EJD, v_EJD, do_ELD, delta_EL1, dq_ELD)
        for block in run.blocks:
            step.take(block, own)
        step.into_keys.finish(run, dk)
        step.into_values.finish(run, dv)
        if dq is not None and dq_ELD is not None:
            dq.copy_(dq_ELD.view(dq.shape))
    d_q, d_k, d_v = (q_THD.new_empty(0) if d is None else d for d in (d_q, d_k, d_v))
    pools = ((pool_k_HND, d_pool_k), (pool_v_HND, d_pool_v))
    d_pool_k, d_pool_v = (x.new_empty(0) if d is None else d.to(x.dtype) for x, d in pools)
    return d_q, d_k, d_v, d_pool_k, d_pool_v


def _dtype_of(run: Run, q_THD: Tensor) -> torch.dtype:
    """In which a run is multiplied."""
    return softmax_dtype(q_THD) if run.entries * run.length * run.keys < FEW_SCORES else compute_dtype(q_THD)


def _own_gradient(x_THD: Tensor, need: bool, runs: Runs) -> Tensor | None:
    """Memory for the gradient of q, k or v: every token of a row will be written, and one of no row has 0."""
    if not need:
        return None
    has_gaps = runs.all_tokens < x_THD.shape[0]
    return x_THD.new_zeros(x_THD.shape) if has_gaps else x_THD.new_empty(x_THD.shape)


def _pool_gradient(pool_HND: Tensor, need: bool) -> Tensor | None:
    """Zeros in the softmax's dtype, in which rows are summed."""
    return pool_HND.new_zeros(pool_HND.shape, dtype=softmax_dtype(pool_HND)) if need else None


def _split(runs: Runs, d_THD: Tensor | None) -> Iterable[Tensor | None]:
    return repeat(None) if d_THD is None else runs.split(d_THD)


def _delta(d_out_THD: Tensor, d_lse_TH: Tensor, out_THD: Tensor) -> Tensor:
    """What the gradients of a query's weights are reduced by [T, H, 1]: their weighted mean, less that of its lse."""
    wide = softmax_dtype(out_THD)
    delta_TH1 = (d_out_THD.to(wide) * out_THD.to(wide)).sum(-1, keepdim=True)
    return delta_TH1.sub_(d_lse_TH[..., None]) if d_lse_TH.numel() else delta_TH1


class Sums(NamedTuple):
    """The gradient of the keys (or of the values) of one run, and where it goes."""

    needs_own: bool
    """Whether it is wanted for the rows' own tokens."""
    pool_HND: Tensor | None
    """None when it is not wanted for prefixes."""
    slots: Mapping[int, Slot]
    memory: Tensor

    @property
    def is_needed(self) -> bool:
        return self.needs_own or self.pool_HND is not None

    def add(self, block: Block, weights_EIJ: Tensor, x_EID: Tensor) -> None:
        """Add weights^T x. The first queries of a row find no number there."""
        weights_EJI = weights_EIJ.mT
        for first, sums_ECD in zip((0, block.run.prefix), self._sums(block.run), strict=True):
            if sums_ECD is not None:
                sums_ECD = block.keys_of(sums_ECD)
                weights_ECI = weights_EJI.narrow(1, first, sums_ECD.shape[1])
                torch.baddbmm(sums_ECD, weights_ECI, x_EID, beta=1 if block.query else 0, out=sums_ECD)

    def finish(self, run: Run, own_HXD: Tensor | None) -> None:
        """Hand the sums on: each row's own, and of the prefix those of all rows together."""
        sums_EPD, sums_ELD = self._sums(run)
        if own_HXD is not None and sums_ELD is not None:
            own_HXD.copy_(sums_ELD.view(own_HXD.shape))
        if self.pool_HND is not None and sums_EPD is not None:
            start = self.slots[run.loans[0].slot].start
            sums_HGPD = sums_EPD.view(run.heads, run.num_rows, run.prefix, run.dim)
            self.pool_HND.narrow(1, start, run.prefix).add_(sums_HGPD.sum(1, dtype=self.pool_HND.dtype))

    def _sums(self, run: Run) -> tuple[Tensor | None, Tensor | None]:
        """Where those of the prefix and those of the rows' own keys lie; None where they are not needed.

        Two products and not one: what the prefix gets must not depend on whether its company needs the others.
        """
        sums_EPD = sums_ELD = None
        if self.pool_HND is not None and run.prefix:
            sums_EPD = contiguous(self.memory, run.entries, run.prefix, run.dim)
        if self.needs_own:
            beyond = self.memory[run.entries * run.prefix * run.dim :]
            sums_ELD = contiguous(beyond, run.entries, run.length, run.dim)
        return sums_EPD, sums_ELD


class Own(NamedTuple):
    """What a run brings along."""

    q_ELD: Tensor
    k_EJD: Tensor
    v_EJD: Tensor
    do_ELD: Tensor
    delta_EL1: Tensor
    dq_ELD: Tensor | None
    """Where the gradient of the queries goes; None when it is not needed."""


class Lenders(NamedTuple):
    """Prefixes, and the gradients that are wanted of keys and values."""

    slots: Mapping[int, Slot]
    d_pools: tuple[Tensor | None, Tensor | None]
    """Where those of prefixes are summed up."""
    needs_own: tuple[bool, bool]
    """Whether those of the rows' own tokens are wanted."""


@dataclass(frozen=True, slots=True)
class Step:
    """What all blocks of a backward that are multiplied in one dtype share."""

    view: View
    scratch: Scratch
    room: Room
    d_scores: Tensor
    """Memory for the gradients of one block's scores."""
    into_keys: Sums
    into_values: Sums

    @classmethod
    def over(cls, operands: Operands, view: View, runs: Runs, lenders: Lenders, dtype: torch.dtype) -> Step:
        scratch = Scratch.over(operands, lenders.slots, runs, dtype)
        room = Room.over(operands.q_THD, runs, dtype, LIMIT)
        into_keys, into_values = (
            Sums(needs_own, d_pool_HND, lenders.slots, torch.empty_like(side.flat))
            for needs_own, d_pool_HND, side in zip(lenders.needs_own, lenders.d_pools, scratch.sides, strict=True)
        )
        return cls(view, scratch, room, torch.empty_like(room.scores), into_keys, into_values)

    def take(self, block: Block, own: Own) -> None:
        """Add what one block contributes to each gradient."""
        q_EID, k_EJD, v_EJD = block.queries_of(own.q_ELD), block.keys_of(own.k_EJD), block.keys_of(own.v_EJD)
        delta_EI1 = block.queries_of(own.delta_EL1)
        sums_EI1 = delta_EI1.new_empty(delta_EI1.shape)
        powers_EIJ = weigh(q_EID, k_EJD, block, self.view, self.room, sums_EI1)
        if not self.room.can_keep(sums_EI1):
            shifts_EI1 = torch.empty_like(sums_EI1)
            powers_EIJ = weigh_shifted(q_EID, k_EJD, block, self.view, self.room, sums_EI1, shifts_EI1)
        inverse_EI1 = sums_EI1.reciprocal_()
        do_EID = (block.queries_of(own.do_ELD) * inverse_EI1).to(k_EJD.dtype)
        self.into_values.add(block, powers_EIJ, do_EID)
        if own.dq_ELD is None and not self.into_keys.is_needed:
            return
        ds_EIJ = contiguous(self.d_scores, *powers_EIJ.shape)
        mean_EI1 = (delta_EI1 * inverse_EI1).mul_(self.view.scale).to(ds_EIJ.dtype)
        torch.baddbmm(mean_EI1.expand_as(ds_EIJ), do_EID, v_EJD.mT, beta=-1, alpha=self.view.scale, out=ds_EIJ)
        ds_EIJ.mul_(powers_EIJ)
        self.into_keys.add(block, ds_EIJ, q_EID)
        if own.dq_ELD is not None:
            torch.bmm(ds_EIJ, k_EJD, out=block.queries_of(own.dq_ELD))
