"""The CPU route, backward: the gradients of q, k, v and of the prefixes, block by block as in the forward.

With weights `e / s`: `do' = do / s`, `dv = e^T do'`, `ds = e * (do' v^T - delta / s) * scale`, `dq = ds k`,
`dk = ds^T q`, so that what is divided is as wide as a head, not as the keys.
The rows of a slot are summed in the order of the buckets: the same batch gives the same bits.
It refuses to know the forward's memory; weights are computed anew.

Shape letters: see `cpu_groups`; N pool tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch

from prefixbank.kernels.cpu_groups import Width, read_groups
from prefixbank.kernels.cpu_weights import Room, Scratch, compute_dtype, contiguous, weigh
from prefixbank.kernels.operands import softmax_dtype

if TYPE_CHECKING:
    from torch import Tensor

    from prefixbank.kernels.cpu_groups import Block
    from prefixbank.kernels.operands import Needs, Operands, View


def backward(
    d_out_THD: Tensor, d_lse_TH: Tensor, out_THD: Tensor, operands: Operands, view: View, needs: Needs
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of q, k, v, pool_k, pool_v; one that is not needed is an empty tensor."""
    q_THD = operands.q_THD
    groups = read_groups(operands)  # not joined: a prefix's gradient is summed over the rows of its slot
    runs = Width(q_THD.shape[1], q_THD.shape[2], compute_dtype(q_THD).itemsize).runs(groups)
    room, (keys, values) = Room.over(q_THD, runs), Scratch.pair(operands, runs)
    has_gaps = sum(bucket.length * bucket.num_rows for bucket, _, _ in groups) < len(q_THD)
    d_owns = [_own_gradient(x, need, has_gaps) for x, need in zip(operands[:3], needs[:3], strict=True)]
    d_pools = [_pool_gradient(x, need) for x, need in zip(operands[3:5], needs[3:], strict=True)]
    step = Step(
        view,
        needs,
        q_THD.transpose(0, 1),
        d_out_THD.transpose(0, 1),
        _delta(d_out_THD, d_lse_TH, out_THD).transpose(0, 1),
        room,
        torch.empty_like(room.scores),
        d_owns[0],
        Sums(d_owns[1], d_pools[0]),
        Sums(d_owns[2], d_pools[1]),
    )
    for run in runs:
        k_EJD, v_EJD = keys.filled(run), values.filled(run)
        for block in run.blocks(len(operands.pool_k_HND)):
            step.take(block, block.part(k_EJD), block.part(v_EJD))
    d_pool_k, d_pool_v = (d.to(x.dtype) for d, x in zip(d_pools, operands[3:5], strict=True))
    d_q, d_k, d_v = (d.transpose(0, 1) if d.dim() == 3 else d for d in d_owns)
    return d_q, d_k, d_v, d_pool_k, d_pool_v


def _own_gradient(x_THD: Tensor, need: bool, has_gaps: bool) -> Tensor:
    """Memory [H, T, D] for the gradient of q, k or v: every token of a row will be written, one of no row has 0."""
    if not need:
        return x_THD.new_empty(0)
    own_THD = x_THD.new_zeros(x_THD.shape) if has_gaps else x_THD.new_empty(x_THD.shape)
    return own_THD.transpose(0, 1)


def _pool_gradient(pool_HND: Tensor, need: bool) -> Tensor:
    """Zeros in the softmax's dtype, in which rows are summed."""
    return pool_HND.new_zeros(pool_HND.shape if need else [0], dtype=softmax_dtype(pool_HND))


def _delta(d_out_THD: Tensor, d_lse_TH: Tensor, out_THD: Tensor) -> Tensor:
    """What the gradients of a query's weights are reduced by [T, H]: their weighted mean, less that of its lse."""
    wide = softmax_dtype(out_THD)
    delta_TH = (d_out_THD.to(wide) * out_THD.to(wide)).sum(-1)
    return delta_TH.sub_(d_lse_TH) if d_lse_TH.numel() else delta_TH


class Sums(NamedTuple):
    """Where the gradient of the keys (or of the values) goes: own tokens apart from the pool."""

    own_HTD: Tensor
    """Empty when not needed."""
    pool_HND: Tensor
    """Empty when not needed."""

    def add(self, block: Block, weights_EIJ: Tensor, x_EID: Tensor) -> None:
        """Add weights^T x, computing only the columns of keys that are needed."""
        prefix, keys = block.run.prefix, block.run.keys
        first = 0 if self.pool_HND.numel() else prefix
        stop = keys if self.own_HTD.numel() else prefix
        if first >= stop:
            return
        sums_EJD = torch.bmm(weights_EIJ.narrow(2, first, stop - first).mT, x_EID)
        if self.own_HTD.numel():
            self._add_own(block, sums_EJD.narrow(1, prefix - first, block.run.length))
        if self.pool_HND.numel() and prefix:
            lent_HPD = self.pool_HND.narrow(0, block.head, block.num_heads).narrow(1, block.run.loans[0].start, prefix)
            sums_HGPD = sums_EJD.narrow(1, 0, prefix).view(block.num_heads, -1, *lent_HPD.shape[1:])
            lent_HPD += sums_HGPD.sum(1, dtype=lent_HPD.dtype)

    def _add_own(self, block: Block, sums_ELD: Tensor) -> None:
        """The first block of queries finds no number there."""
        own = block._replace(query=0, num_queries=block.run.length).of(self.own_HTD)
        if block.query:
            own += sums_ELD.view(own.shape)
        else:
            own.copy_(sums_ELD.view(own.shape))


@dataclass(frozen=True, slots=True)
class Step:
    """What all blocks of a backward share."""

    view: View
    needs: Needs
    q_HTD: Tensor
    d_out_HTD: Tensor
    delta_HT: Tensor
    room: Room
    d_scores: Tensor
    """Memory for the gradients of one block's scores."""
    d_q_HTD: Tensor
    into_keys: Sums
    into_values: Sums

    def take(self, block: Block, k_EJD: Tensor, v_EJD: Tensor) -> None:
        """Add what one block contributes to each gradient."""
        q_EID = block.entries(self.q_HTD).to(k_EJD.dtype)
        weights = weigh(q_EID, k_EJD, block, self.view, self.room)
        inverse_EI1 = weights.sums_EI1.reciprocal()
        do_EID = (block.entries(self.d_out_HTD) * inverse_EI1).to(k_EJD.dtype)
        self.into_values.add(block, weights.powers_EIJ, do_EID)
        if not (self.needs.q or self.needs.k or self.needs.pool_k):
            return
        delta_EI1 = (block.entries(self.delta_HT)[..., None] * inverse_EI1).mul_(self.view.scale)
        ds_EIJ = contiguous(self.d_scores, *weights.powers_EIJ.shape)
        torch.baddbmm(ds_EIJ, do_EID, v_EJD.mT, beta=0, alpha=self.view.scale, out=ds_EIJ)
        ds_EIJ.sub_(delta_EI1.to(ds_EIJ.dtype)).mul_(weights.powers_EIJ)
        self.into_keys.add(block, ds_EIJ, q_EID)
        if self.needs.q:
            d_q = block.of(self.d_q_HTD)
            d_q.copy_(torch.bmm(ds_EIJ, k_EJD).view(d_q.shape))
