"""FlashAttention-2 over packed sequences as torch brings it, with the log-sum-exp; on a CPU, a loop that says the same.

It goes to the operator below `torch.nn.attention.varlen`, whose public function knows no `seqused_k` before torch 2.12.

Shape letters: T tokens, H heads, D head dim, R sequences.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

import torch

if TYPE_CHECKING:
    from torch import Tensor


class Sequences(NamedTuple):
    """Where each sequence's queries and keys lie."""

    q_start_R1: Tensor
    """int32: the queries of sequence r are rows `q_start[r] : q_start[r + 1]`."""
    k_start_R1: Tensor
    """int32: its keys begin at row `k_start[r]`, and end at `k_start[r + 1]` unless `k_used` says otherwise."""
    k_used_R: Tensor | None
    """int32: how many keys it has; its keys may then lie anywhere."""
    longest_q: int
    longest_k: int


def flash_attention(
    q_THD: Tensor, k_NHD: Tensor, v_NHD: Tensor, where: Sequences, scale: float
) -> tuple[Tensor, Tensor]:
    """Return output [T, H, D] and natural log-sum-exp [H, T]; a sequence without keys gives 0 and an infinity."""
    if q_THD.device.type != "cuda":
        return _loop(q_THD, k_NHD, v_NHD, where, scale)
    out, lse, *_ = torch.ops.aten._flash_attention_forward(
        q_THD,
        k_NHD,
        v_NHD,
        where.q_start_R1,
        where.k_start_R1,
        where.longest_q,
        where.longest_k,
        0.0,
        False,
        return_debug_mask=False,
        scale=scale,
        seqused_k=where.k_used_R,
    )
    return out, lse


def _loop(q: Tensor, k: Tensor, v: Tensor, where: Sequences, scale: float) -> tuple[Tensor, Tensor]:
    out, lse = torch.zeros_like(q), q.new_full((q.shape[1], q.shape[0]), torch.inf)
    q_bounds, k_bounds = where.q_start_R1.tolist(), where.k_start_R1.tolist()
    used = [end - begin for begin, end in pairwise(k_bounds)]
    if where.k_used_R is not None:
        used = where.k_used_R.tolist()
    for row, num_keys in enumerate(used):
        own, keys = slice(q_bounds[row], q_bounds[row + 1]), slice(k_bounds[row], k_bounds[row] + num_keys)
        if num_keys:
            scores_HIJ = torch.einsum("ihd,jhd->hij", q[own], k[keys]) * scale
            out[own] = torch.einsum("hij,jhd->ihd", scores_HIJ.softmax(-1), v[keys])
            lse[:, own] = scores_HIJ.logsumexp(-1)
    return out, lse
