"""Prefix attention in plain torch: the definition that every other implementation is tested against.

One loop over rows; keys are written out as prefix, then own tokens; one mask; one softmax. Differentiable.
It refuses to know speed, and runs only where somebody asked for it by name.

Shape letters: T packed tokens, R rows, S slots, H heads, N pool tokens, P prefix tokens of a row, L own tokens
of a row, D head dim.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from prefixbank.kernels.plan import Mode

if TYPE_CHECKING:
    from torch import Tensor

    from prefixbank.kernels.plan import BatchPlan, LayerPrefix


def reference_attention(
    q_THD: Tensor,
    k_THD: Tensor,
    v_THD: Tensor,
    prefix: LayerPrefix,
    plan: BatchPlan,
    *,
    scale: float,
    window: int = 0,
) -> tuple[Tensor, Tensor]:
    """Return the attention output [T, H, D] and the log of each softmax's denominator [T, H].

    Tokens that belong to no row give output 0 and log-sum-exp -inf. Computes in fp64 for fp64 inputs, else in fp32.
    """
    compute = torch.float64 if q_THD.dtype == torch.float64 else torch.float32
    q, k, v, pool_k, pool_v = (x.to(compute) for x in (q_THD, k_THD, v_THD, prefix.pool_k_HND, prefix.pool_v_HND))
    bounds, slots, contexts = plan.row_start_R1.tolist(), plan.slot_R.tolist(), plan.context_R.tolist()
    scales = None if prefix.slot_scale_S2H is None else prefix.slot_scale_S2H.to(compute)
    starts, lengths = prefix.slot_start_S.tolist(), prefix.slot_length_S.tolist()
    outs, lses = [], []
    for row, slot in enumerate(slots):
        own = slice(bounds[row], bounds[row + 1])
        lent = slice(starts[slot], starts[slot] + lengths[slot])
        times_k, times_v = (1.0, 1.0) if scales is None else scales[slot, :, :, None, None].unbind()
        keys_HJD = torch.cat([pool_k[:, lent] * times_k, k[own].transpose(0, 1)], dim=1)
        values_HJD = torch.cat([pool_v[:, lent] * times_v, v[own].transpose(0, 1)], dim=1)
        visible = visible_own(own.stop - own.start, plan.mode, contexts[row], window).to(q.device)
        visible = torch.cat([visible.new_ones(visible.shape[0], lengths[slot]), visible], dim=1)
        scores = torch.einsum("ihd,hjd->hij", q[own], keys_HJD) * scale
        scores = scores.masked_fill(~visible, -math.inf)
        outs.append(torch.einsum("hij,hjd->ihd", scores.softmax(-1), values_HJD))
        lses.append(scores.logsumexp(-1).transpose(0, 1))
    beyond = q[bounds[-1] :]
    out = torch.cat([*outs, torch.zeros_like(beyond)])
    lse = torch.cat([*lses, torch.full_like(beyond[..., 0], -math.inf)])
    return out.to(q_THD.dtype), lse


def visible_own(length: int, mode: Mode, context: int, window: int) -> Tensor:
    """Say which own key (column) each own query (row) sees: bool [L, L]."""
    query, key = torch.arange(length)[:, None], torch.arange(length)[None, :]
    visible = torch.ones(length, length, dtype=torch.bool)
    if mode == Mode.CAUSAL:
        visible &= key <= query
    if mode == Mode.PREFIX_LM:
        visible &= (key <= query) | (key < context)
    if window > 0:
        visible &= (query - key).abs() <= window
    return visible
