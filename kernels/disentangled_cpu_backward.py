"""The CPU route of disentangled attention, backward: gradients of all operands, block by block.

With `ds` the gradient of a block's scores and `ds_W` the same by distance, each kind of score adds its own:
`dq = ds [Kp ; K] + ds_W PK`, `dk = ds^T q + (ds^T)_W PQ`, and `dPK = ds_W^T q`, `dPQ = (ds^T)_W^T k`, summed by entry.
Rows, blocks and distances are summed in one order: the same batch gives the same bits.
It refuses to know the forward's memory; weights are computed anew.

Shape letters: see `cpu_runs` and `disentangled_cpu_scores`; N pool tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch

from prefixbank.kernels.cpu_backward import Sums
from prefixbank.kernels.cpu_runs import read_slots, runs_of_slots
from prefixbank.kernels.cpu_weights import Scratch, compute_dtype
from prefixbank.kernels.disentangled_cpu_scores import Scorer, key_diagonals, query_diagonals
from prefixbank.kernels.operands import softmax_dtype

if TYPE_CHECKING:
    from torch import Tensor

    from prefixbank.kernels.cpu_runs import Block
    from prefixbank.kernels.disentangled_positions import DisentangledNeeds, Positions
    from prefixbank.kernels.operands import Operands


class Own(NamedTuple):
    """What a run brings along."""

    q_ELD: Tensor
    own_ELD: Tensor
    """Its own keys."""
    k_EJD: Tensor
    v_EJD: Tensor
    do_ELD: Tensor
    delta_EL1: Tensor
    dq_ELD: Tensor
    """To be written."""
    dk_ELD: Tensor
    """Zeros, to which its own keys' share of positions is added."""


def backward(
    d_out_THD: Tensor,
    d_lse_TH: Tensor,
    out_THD: Tensor,
    operands: Operands,
    positions: Positions,
    scale: float,
    needs: DisentangledNeeds,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of q, k, v, the two position tables and the two pools; [0] where not needed."""
    q_THD, k_THD, v_THD, *pools = operands.differentiable
    dtype, wide = compute_dtype(q_THD), softmax_dtype(q_THD)
    slots, layout = read_slots(operands, dtype.itemsize)
    # Not joined: a prefix's gradient is summed over the rows of its slot.
    runs = runs_of_slots(layout)
    d_q, d_k, d_v = (x.new_zeros(x.shape) for x in (q_THD, k_THD, v_THD))
    d_tables = [_zeros_like(x, need, wide) for x, need in zip(positions[:2], needs[3:5], strict=True)]
    d_pools = [_zeros_like(x, need, wide) for x, need in zip(pools, needs[5:], strict=True)]
    scorer, scratch = Scorer.over(q_THD, positions, scale, runs), Scratch.over(operands, slots, runs)
    sums = [
        Sums(need, d_pool, slots, torch.empty_like(side.flat))
        for need, d_pool, side in zip((needs.k, needs.v), d_pools, scratch.sides, strict=True)
    ]
    step = Step(scorer, wide, sums[0], sums[1], d_tables[0], d_tables[1])
    delta_TH1 = (d_out_THD.to(wide) * out_THD.to(wide)).sum(-1, keepdim=True)
    if d_lse_TH.numel():
        delta_TH1 -= d_lse_TH[..., None]
    views = (runs.split(x) for x in (q_THD, k_THD, v_THD, d_out_THD, delta_TH1, d_q, d_k, d_v))
    for run, q, k, v, do, delta, dq, dk, dv in zip(runs.each, *views, strict=False):
        k_EJD, v_EJD = scratch.filled(run, k, v)
        q_ELD, own_ELD, do_ELD, delta_EL1 = (x.reshape(run.entries, run.length, -1) for x in (q, k, do, delta))
        q_ELD, own_ELD, do_ELD = (x.to(dtype) for x in (q_ELD, own_ELD, do_ELD))
        own = Own(q_ELD, own_ELD, k_EJD, v_EJD, do_ELD, delta_EL1, torch.zeros_like(q_ELD), torch.zeros_like(own_ELD))
        for block in run.blocks:
            step.take(block, own)
        for side, d_own, need in zip(sums, (dk, dv), (needs.k, needs.v), strict=True):
            side.finish(run, d_own if need else None)
        dk += own.dk_ELD.view(dk.shape)
        dq.copy_(own.dq_ELD.view(dq.shape))
    found = (d_q, d_k, d_v, *d_tables, *d_pools)
    like = (q_THD, k_THD, v_THD, *positions[:2], *pools)
    d_q, d_k, d_v, d_pos_key, d_pos_query, d_pool_k, d_pool_v = (
        d.to(x.dtype) if need and d is not None and x is not None else q_THD.new_empty(0)
        for d, x, need in zip(found, like, needs, strict=True)
    )
    return d_q, d_k, d_v, d_pos_key, d_pos_query, d_pool_k, d_pool_v


def _zeros_like(x: Tensor | None, need: bool, dtype: torch.dtype) -> Tensor | None:
    """Memory for a gradient that many rows share, in the dtype in which they are summed."""
    return x.new_zeros(x.shape, dtype=dtype) if need and x is not None else None


@dataclass(frozen=True, slots=True)
class Step:
    """What all blocks of a backward share."""

    scorer: Scorer
    wide: torch.dtype
    into_keys: Sums
    into_values: Sums
    d_pos_key_QHD: Tensor | None
    d_pos_query_QHD: Tensor | None

    def take(self, block: Block, own: Own) -> None:
        """Add what one block contributes to each gradient."""
        q_EID, do_EID, dq_EID = (block.queries_of(x) for x in (own.q_ELD, own.do_ELD, own.dq_ELD))
        scores_EIJ = self.scorer.score(block, own.q_ELD, own.k_EJD, own.own_ELD)
        weights_EIJ = torch.softmax(scores_EIJ, -1)
        self.into_values.add(block, weights_EIJ.to(do_EID.dtype), do_EID)
        d_weights_EIJ = torch.bmm(do_EID, block.keys_of(own.v_EJD).mT).to(self.wide)
        ds_EIJ = d_weights_EIJ.sub_(block.queries_of(own.delta_EL1)).mul_(weights_EIJ).mul_(self.scorer.scale)
        ds_EIJ = ds_EIJ.to(do_EID.dtype)
        self.into_keys.add(block, ds_EIJ, q_EID)
        dq_EID += torch.bmm(ds_EIJ, block.keys_of(own.k_EJD))
        ds_own_EIL = ds_EIJ.narrow(2, block.run.prefix, block.run.length)
        if self.scorer.positions.pos_key_QHD is not None:
            self._add_of_queries(block, ds_own_EIL, q_EID, dq_EID)
        if self.scorer.positions.pos_query_QHD is not None:
            self._add_of_keys(block, ds_own_EIL, block.keys_of(own.own_ELD), block.keys_of(own.dk_ELD))

    def _add_of_queries(self, block: Block, ds_EIL: Tensor, q_EID: Tensor, dq_EID: Tensor) -> None:
        entries_W = self.scorer.entries_of(block)
        ds_EIW = q_EID.new_zeros(*q_EID.shape[:2], len(entries_W))
        query_diagonals(ds_EIW, block.run.length).copy_(ds_EIL)
        dq_EID += torch.bmm(ds_EIW, self.scorer.key_window(block, q_EID.dtype))
        if self.d_pos_key_QHD is not None:
            _add_by_entry(self.d_pos_key_QHD, entries_W.flip(0), torch.bmm(ds_EIW.mT, q_EID), block)

    def _add_of_keys(self, block: Block, ds_EIL: Tensor, own_ELD: Tensor, dk_ELD: Tensor) -> None:
        entries_W = self.scorer.entries_of(block)
        ds_ELW = own_ELD.new_zeros(*own_ELD.shape[:2], len(entries_W))
        key_diagonals(ds_ELW, block.num_queries).copy_(ds_EIL)
        dk_ELD += torch.bmm(ds_ELW, self.scorer.query_window(block, own_ELD.dtype))
        if self.d_pos_query_QHD is not None:
            _add_by_entry(self.d_pos_query_QHD, entries_W, torch.bmm(ds_ELW.mT, own_ELD), block)


def _add_by_entry(d_table_QHD: Tensor, entries_W: Tensor, d_window_EWD: Tensor, block: Block) -> None:
    """Add what the rows of a block say about the entries of its window."""
    shape = (block.num_heads, block.run.num_rows, *d_window_EWD.shape[1:])
    d_window_WhD = d_window_EWD.view(shape).sum(1, dtype=d_table_QHD.dtype).transpose(0, 1)
    d_table_QHD.narrow(1, block.head, block.num_heads).index_add_(0, entries_W, d_window_WhD)
