"""Disentangled attention in plain torch: the definition that every other implementation is tested against.

One loop over rows; all scores of the position table are written out, and each pair takes the one of its distance.
Differentiable. It refuses to know speed, and runs only where somebody asked for it by name.

Shape letters: T packed tokens, Q entries of the position table, H heads, D head dim; in subscripts i queries, j keys.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from prefixbank.kernels.operands import softmax_dtype

if TYPE_CHECKING:
    from torch import Tensor

    from prefixbank.kernels.disentangled_positions import Positions
    from prefixbank.kernels.plan import BatchPlan, LayerPrefix


def reference_disentangled(
    q_THD: Tensor,
    k_THD: Tensor,
    v_THD: Tensor,
    positions: Positions,
    prefix: LayerPrefix,
    plan: BatchPlan,
    *,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """Return the attention output [T, H, D] and the log of each softmax's denominator [T, H].

    Tokens that belong to no row give output 0 and log-sum-exp -inf. Computes in fp64 for fp64 inputs, else in fp32.
    """
    compute = softmax_dtype(q_THD)
    q, k, v, pool_k, pool_v = (x.to(compute) for x in (q_THD, k_THD, v_THD, prefix.pool_k_HND, prefix.pool_v_HND))
    wide = positions._replace(
        pos_key_QHD=None if positions.pos_key_QHD is None else positions.pos_key_QHD.to(compute),
        pos_query_QHD=None if positions.pos_query_QHD is None else positions.pos_query_QHD.to(compute),
    )
    scales = None if prefix.slot_scale_S2H is None else prefix.slot_scale_S2H.to(compute)
    bounds, slots = plan.row_start_R1.tolist(), plan.slot_R.tolist()
    starts, lengths = prefix.slot_start_S.tolist(), prefix.slot_length_S.tolist()
    outs, lses = [], []
    for row, slot in enumerate(slots):
        own = slice(bounds[row], bounds[row + 1])
        lent = slice(starts[slot], starts[slot] + lengths[slot])
        times_k, times_v = (1.0, 1.0) if scales is None else scales[slot, :, :, None, None].unbind()
        of_prefix = torch.einsum("ihd,hjd->hij", q[own], pool_k[:, lent] * times_k)
        of_own = torch.einsum("ihd,jhd->hij", q[own], k[own]) + positional_scores(q[own], k[own], wide)
        scores = torch.cat([of_prefix, of_own], -1) * scale
        values_HJD = torch.cat([pool_v[:, lent] * times_v, v[own].transpose(0, 1)], 1)
        outs.append(torch.einsum("hij,hjd->ihd", scores.softmax(-1), values_HJD))
        lses.append(scores.logsumexp(-1).transpose(0, 1))
    beyond = q[bounds[-1] :]
    out = torch.cat([*outs, torch.zeros_like(beyond)])
    lse = torch.cat([*lses, torch.full_like(beyond[..., 0], -math.inf)])
    return out.to(q_THD.dtype), lse


def positional_scores(q_IHD: Tensor, k_JHD: Tensor, positions: Positions) -> Tensor:
    """What one row's scores [H, I, J] gain from positions, unscaled."""
    length, heads, reach = len(q_IHD), q_IHD.shape[1], len(positions.distance_W) // 2
    token = torch.arange(length, device=q_IHD.device)
    distance_IJ = (token[:, None] - token[None, :]).clamp(-reach, reach)
    entry_HIJ = positions.distance_W[distance_IJ + reach].long().expand(heads, -1, -1)
    scores = q_IHD.new_zeros(heads, length, length)
    if positions.pos_key_QHD is not None:
        scores = scores + torch.einsum("ihd,qhd->hiq", q_IHD, positions.pos_key_QHD).gather(2, entry_HIJ)
    if positions.pos_query_QHD is not None:
        scores = scores + torch.einsum("jhd,qhd->hqj", k_JHD, positions.pos_query_QHD).gather(1, entry_HIJ)
    return scores
