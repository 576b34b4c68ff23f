"""Peer C: what transformers does with past_key_values: a padded batch, keys concatenated per layer, SDPA with a mask.

q, k, v and the prompts come padded, as a padded model has them, and padding them is not timed. Where no row is shorter
than another there is no mask, as transformers leaves it out.

Shape letters: B rows, H heads, L longest row, P longest prefix, D head dim.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn.functional import scaled_dot_product_attention

from benchmarks.kernel_peers.prepared import Absent, Prepared

if TYPE_CHECKING:
    from torch import Tensor

    from benchmarks.kernel_workloads import Batch

MOST_BYTES = 24 * 2**30
"""More than this for one padded batch is not tried."""


def prepare(batch: Batch) -> Prepared:
    """Pad everything, and build the mask."""
    longest, most_lent = max(batch.lengths), max(batch.lent)
    elements = len(batch.lengths) * batch.shape.heads * batch.shape.dim * (4 * longest + 4 * (longest + most_lent))
    if elements * batch.case.q_THD.element_size() > MOST_BYTES:
        raise Absent(f"a padded batch would take more than {MOST_BYTES // 2**30} GiB")
    own, lent = (torch.tensor(lengths, device=batch.device)[:, None] for lengths in (batch.lengths, batch.lent))
    real_BL = torch.arange(longest, device=batch.device) < own
    q, k, v = (_pad_own(x, real_BL) for x in batch.case.packed)
    lent_k, lent_v = (_pad_lent(pool, batch, most_lent) for pool in batch.case.prefix[:2])
    seen_BJ = torch.cat([torch.arange(most_lent, device=batch.device) < lent, real_BL], 1)
    uniform = min(batch.lengths) == longest and min(batch.lent) == most_lent
    mask = None if uniform else seen_BJ[:, None, None, :].expand(-1, 1, longest, -1)

    def run() -> Tensor:
        keys, values = (torch.cat([lent_k, k], 2), torch.cat([lent_v, v], 2)) if most_lent else (k, v)
        return scaled_dot_product_attention(q, keys, values, attn_mask=mask, scale=batch.case.scale)

    return Prepared(run, lambda out_BHLD: out_BHLD.transpose(1, 2)[real_BL])


def _pad_own(x_THD: Tensor, real_BL: Tensor) -> Tensor:
    padded = x_THD.new_zeros(*real_BL.shape, *x_THD.shape[1:])
    padded[real_BL] = x_THD
    return padded.transpose(1, 2)


def _pad_lent(pool_HND: Tensor, batch: Batch, longest: int) -> Tensor:
    heads, _, dim = pool_HND.shape
    padded = pool_HND.new_zeros(len(batch.slots), heads, longest, dim)
    for row, (slot, length) in enumerate(zip(batch.slots, batch.lent, strict=True)):
        start = batch.slot_start[slot]
        padded[row, :, :length] = pool_HND[:, start : start + length]
    return padded
