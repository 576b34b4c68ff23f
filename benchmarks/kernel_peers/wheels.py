"""Peers F and G: two wheels that need not be there, FlashAttention-4 and FlashInfer, each in two calls and a merge.

Neither reads prefix and own keys in one launch. They are written against their published interfaces, and what they
compute is compared with the definition before it is timed, like any other peer's.
"""

from __future__ import annotations

import importlib
import importlib.util
from typing import TYPE_CHECKING, Any

import torch

from benchmarks.kernel_peers.prepared import Absent, Prepared
from benchmarks.kernel_peers.two_calls import prepare_with
from benchmarks.kernel_workloads import PAGE

if TYPE_CHECKING:
    from torch import Tensor

    from benchmarks.kernel_peers.flash import Sequences
    from benchmarks.kernel_workloads import Batch

WORKSPACE_BYTES = 256 * 2**20


def prepare_flash_attention_4(batch: Batch) -> Prepared:
    """Peer B, with the kernels of the `flash-attn-4` wheel."""
    varlen = _module("flash_attn.cute.interface", "flash-attn-4").flash_attn_varlen_func

    def attend(q: Tensor, k: Tensor, v: Tensor, where: Sequences, scale: float) -> tuple[Tensor, Tensor]:
        lengths = {"max_seqlen_q": where.longest_q, "max_seqlen_k": where.longest_k, "seqused_k": where.k_used_R}
        starts = {"cu_seqlens_q": where.q_start_R1, "cu_seqlens_k": where.k_start_R1}
        out, lse, *_ = varlen(q, k, v, **starts, **lengths, softmax_scale=scale, causal=False, return_lse=True)
        # It says -inf where there are no keys.
        return out, lse.masked_fill(lse == -torch.inf, torch.inf) if where.k_used_R is not None else lse

    return prepare_with(batch, attend)


def prepare_flashinfer(batch: Batch) -> Prepared:
    """Own keys ragged, prefixes in pages of 16, states merged in place."""
    flashinfer = _module("flashinfer", "flashinfer-python")
    case, heads, dim = batch.case, batch.shape.heads, batch.shape.dim
    pages = tuple(_paged(pool) for pool in case.prefix[:2])
    workspace = torch.empty(2, WORKSPACE_BYTES, dtype=torch.uint8, device=batch.device)
    sizes = {"q_data_type": batch.shape.dtype, "causal": False, "sm_scale": case.scale}
    own = flashinfer.BatchPrefillWithRaggedKVCacheWrapper(workspace[0], "NHD")
    starts = case.plan.row_start_R1
    own.plan(starts, starts, heads, heads, dim, **sizes)
    lent = flashinfer.BatchPrefillWithPagedKVCacheWrapper(workspace[1], "NHD")
    lent.plan(starts, *_page_lists(batch), heads, heads, dim, PAGE, **sizes)

    def run() -> Tensor:
        q, k, v = case.packed
        out, lse = own.run_return_lse(q, k, v)
        if max(batch.lent):
            flashinfer.merge_state_in_place(out, lse, *lent.run_return_lse(q, pages))
        result: Tensor = out
        return result

    return Prepared(run)


def _paged(pool_HND: Tensor) -> Tensor:
    """The pool as this peer would keep it: pages [N / 16, 16, H, D]."""
    heads, tokens, dim = pool_HND.shape
    padded = torch.nn.functional.pad(pool_HND.transpose(0, 1), (0, 0, 0, 0, 0, -tokens % PAGE))
    return padded.reshape(-1, PAGE, heads, dim).contiguous()


def _page_lists(batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """Where each row's pages are listed, their numbers, and how many tokens are in the last one."""
    listed = [
        list(range(batch.slot_start[slot] // PAGE, -(-(batch.slot_start[slot] + lent) // PAGE)))
        for slot, lent in zip(batch.slots, batch.lent, strict=True)
    ]
    starts = [0]
    for pages in listed:
        starts.append(starts[-1] + len(pages))
    numbers = [page for pages in listed for page in pages]
    last = [(lent - 1) % PAGE + 1 for lent in batch.lent]
    first, second, third = (
        torch.tensor(each, dtype=torch.int32, device=batch.device) for each in (starts, numbers, last)
    )
    return first, second, third


def _module(name: str, wheel: str) -> Any:
    if importlib.util.find_spec(name.split(".")[0]) is None:
        raise Absent(f"the wheel {wheel} is not installed")
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise Absent(f"the wheel {wheel} is not whole: {error}") from error
