"""Peer B: FlashAttention-2 twice without a copy, and one kernel that merges by log-sum-exp.

The first call lets all queries of a task attend to the prefix where it lies in the pool, addressed by start and
length; the second lets each row attend to its own keys. The strongest that torch alone can do.
"""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING

import numpy as np
import torch

from benchmarks.kernel_peers.flash import Sequences, flash_attention
from benchmarks.kernel_peers.prepared import Prepared

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from benchmarks.kernel_workloads import Batch


def prepare(batch: Batch) -> Prepared:
    """Build both calls' indices."""
    return prepare_with(batch, flash_attention)


def prepare_with(batch: Batch, attend: Callable[..., tuple[Tensor, Tensor]]) -> Prepared:
    """Build both calls' indices, for a function that takes and gives what `flash_attention` does."""
    from benchmarks.kernel_peers.merge import merge  # Triton is imported when a route that needs it is asked for

    case = batch.case
    q, k, v = case.packed
    pool_k, pool_v = (pool.transpose(0, 1) for pool in case.prefix[:2])
    starts, longest = case.plan.row_start_R1, max(batch.lengths)
    own = Sequences(starts, starts, None, longest, longest)
    lent = _by_task(batch)

    def run() -> Tensor:
        own_out, own_lse = attend(q, k, v, own, case.scale)
        if not lent.longest_k:
            return own_out
        lent_out, lent_lse = attend(q, pool_k, pool_v, lent, case.scale)
        return merge(own_out, own_lse, lent_out, lent_lse)

    return Prepared(run)


def _by_task(batch: Batch) -> Sequences:
    """One sequence per task: its rows lie side by side."""
    slots, tokens = [], []
    for slot, rows in groupby(zip(batch.slots, batch.lengths, strict=True), key=lambda row: row[0]):
        slots.append(slot)
        tokens.append(sum(length for _, length in rows))
    used = [batch.slot_length[slot] for slot in slots]
    starts = [batch.slot_start[slot] for slot in slots]
    q_start, k_start, k_used = (
        torch.tensor(values, dtype=torch.int32, device=batch.device)
        for values in (np.cumsum([0, *tokens]).tolist(), [*starts, starts[-1] + used[-1]], used)
    )
    return Sequences(q_start, k_start, k_used, max(tokens), max(used))
