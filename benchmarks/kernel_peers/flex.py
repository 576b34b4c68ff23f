"""Peer D: FlexAttention, compiled, with a mask built by hand over one buffer of pool and own keys.

FlexAttention reads one tensor of keys, so the pool's end is where each layer's own keys are copied to; that is timed.
The block mask says which blocks to visit and which need no mask at all; building it is timed apart, as `mask_us`.
Compiling costs seconds for each new shape: ask for few.

Shape letters: T tokens, N pool tokens, J = N + T keys, Q and K blocks of queries and keys, H heads, D head dim.
"""

from __future__ import annotations

import functools
import warnings
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from benchmarks.kernel_peers.prepared import Absent, Prepared

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from benchmarks.kernel_workloads import Batch
    from prefixbank.kernels.plan import BatchPlan

BLOCK = 128
NOBODY = -1


def prepare(batch: Batch) -> Prepared:
    """Build the mask and lay pool and own keys side by side."""
    if batch.device.type == "cuda" and batch.shape.dim < 16:
        raise Absent("FlexAttention takes head dims from 16")
    case = batch.case
    q, k, v = (x.transpose(0, 1)[None] for x in case.packed)
    pool = case.prefix.pool_k_HND.shape[1]
    keys, values = (torch.cat([lent[None], own], 2) for lent, own in zip(case.prefix[:2], (k, v), strict=True))
    mask = _mask_of(batch)
    attend = _compiled() if batch.device.type == "cuda" else _uncompiled

    def run() -> Tensor:
        keys[:, :, pool:] = k
        values[:, :, pool:] = v
        out: Tensor = attend(q, keys, values, block_mask=mask, scale=case.scale)
        return out

    return Prepared(run, lambda out_1HTD: out_1HTD[0].transpose(0, 1))


_latest: dict[int, tuple[BatchPlan, BlockMask]] = {}
"""By identity of its plan, the mask of the latest batch: batches that share a plan share it, as layers do."""


def _mask_of(batch: Batch) -> BlockMask:
    plan = batch.case.plan
    if id(plan) not in _latest:
        mask = block_mask(batch)
        _latest.clear()
        _latest[id(plan)] = (plan, mask)
    return _latest[id(plan)][1]


def block_mask(batch: Batch) -> BlockMask:
    """Build the mask: a query sees the keys of its row and of its row's slot."""
    row_T, slot_T, row_J, slot_J = owners(batch)

    def sees(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return (row_T[i] == row_J[j]) | (slot_T[i] == slot_J[j])

    some_QK, all_QK = _blocks(row_T, row_J), _blocks(slot_T, slot_J)
    visited = some_QK[0] | all_QK[0]
    full = some_QK[1] | all_QK[1]
    partial = _listed(visited & ~full)
    whole = _listed(full)
    sizes = (len(row_T), len(row_J))
    return BlockMask.from_kv_blocks(*partial, *whole, BLOCK_SIZE=BLOCK, mask_mod=sees, seq_lengths=sizes)


def owners(batch: Batch) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Row and slot of each query; row and slot of each key, `NOBODY` in what it is not."""
    device, pool = batch.device, batch.case.prefix.pool_k_HND.shape[1]
    rows = torch.arange(len(batch.lengths), device=device)
    row_T = rows.repeat_interleave(torch.tensor(batch.lengths, device=device))
    slot_T = torch.tensor(batch.slots, device=device)[row_T]
    slot_N = torch.full((pool,), NOBODY, device=device)
    for slot in set(batch.slots):
        slot_N[batch.slot_start[slot] :][: batch.slot_length[slot]] = slot
    row_J = torch.cat([torch.full((pool,), NOBODY, device=device), row_T])
    slot_J = torch.cat([slot_N, torch.full_like(row_T, NOBODY)])
    return row_T, slot_T, row_J, slot_J


def _blocks(query_T: Tensor, key_J: Tensor) -> tuple[Tensor, Tensor]:
    """Which blocks [Q, K] hold a pair that is equal, at least; and in which every pair is.

    Owners ascend along the queries, so a block of queries has all between its first and last.
    """
    first_Q, last_Q = _extremes(query_T, NOBODY)
    first_K, last_K = _extremes(key_J, NOBODY)
    some = (first_Q[:, None] <= last_K) & (first_K <= last_Q[:, None]) & (last_K >= 0)
    one = (first_Q == last_Q)[:, None] & (first_K == last_K) & (first_Q[:, None] == first_K)
    return some, one & _filled(key_J) & _filled(query_T)[:, None]


def _extremes(owner: Tensor, nobody: int) -> tuple[Tensor, Tensor]:
    """Least and largest owner of each block, of those that are somebody."""
    short = -len(owner) % BLOCK
    blocks = torch.nn.functional.pad(owner, (0, short), value=nobody).view(-1, BLOCK)
    least = blocks.masked_fill(blocks == nobody, torch.iinfo(blocks.dtype).max).amin(1)
    return least, blocks.amax(1)


def _filled(owner: Tensor) -> Tensor:
    """Whether each block is complete, and nobody's nowhere."""
    short = -len(owner) % BLOCK
    return torch.nn.functional.pad(owner, (0, short), value=NOBODY).view(-1, BLOCK).amin(1) > NOBODY


def _listed(wanted_QK: Tensor) -> tuple[Tensor, Tensor]:
    """Numbers of wanted blocks [1, 1, Q], and the blocks [1, 1, Q, K], wanted ones first."""
    order = wanted_QK.int().argsort(dim=1, descending=True, stable=True).int()
    return wanted_QK.sum(1).int()[None, None], order[None, None]


@functools.cache
def _compiled() -> Callable[..., Any]:
    return torch.compile(flex_attention, dynamic=False)


def _uncompiled(q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # it says that it is slow
        return flex_attention(q, k, v, **options)
