"""Peer A: gather each row's prefix, write prefix and own keys into one packed tensor, FlashAttention-2 over that.

The indices are built once per batch; gathering and writing are done in every layer, because every layer has its own
keys. Buffers are allocated once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from benchmarks.kernel_peers.flash import Sequences, flash_attention
from benchmarks.kernel_peers.prepared import Prepared

if TYPE_CHECKING:
    from torch import Tensor

    from benchmarks.kernel_workloads import Batch


def prepare(batch: Batch) -> Prepared:
    """Build indices and buffers."""
    case, device = batch.case, batch.device
    q, k, v = case.packed
    pools = [pool.transpose(0, 1) for pool in case.prefix[:2]]
    key_start = np.cumsum([0, *(own + lent for own, lent in zip(batch.lengths, batch.lent, strict=True))])
    from_pool, to_prefix, to_own = (index.to(device) for index in _indices(batch, key_start.tolist()))
    k_all, v_all = (x.new_empty(int(key_start[-1]), *x.shape[1:]) for x in (k, v))
    where = Sequences(
        case.plan.row_start_R1,
        torch.from_numpy(key_start).int().to(device),
        None,
        max(batch.lengths),
        max(np.diff(key_start).tolist()),
    )

    def run() -> Tensor:
        for pool, own, together in zip(pools, (k, v), (k_all, v_all), strict=True):
            together.index_copy_(0, to_own, own)
            if len(from_pool):
                together.index_copy_(0, to_prefix, pool.index_select(0, from_pool))
        return flash_attention(q, k_all, v_all, where, case.scale)[0]

    return Prepared(run)


def _indices(batch: Batch, key_start: list[int]) -> tuple[Tensor, Tensor, Tensor]:
    """Pool tokens to read, where they go, and where the own tokens go."""
    from_pool, to_prefix, to_own = ([np.empty(0, dtype=np.int64)] for _ in range(3))
    for begin, own, lent, slot in zip(key_start, batch.lengths, batch.lent, batch.slots, strict=False):
        from_pool.append(batch.slot_start[slot] + np.arange(lent))
        to_prefix.append(begin + np.arange(lent))
        to_own.append(begin + lent + np.arange(own))
    first, second, third = (torch.from_numpy(np.concatenate(each)) for each in (from_pool, to_prefix, to_own))
    return first, second, third
