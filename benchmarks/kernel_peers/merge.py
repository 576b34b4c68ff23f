"""Two attentions of the same queries over different keys, put together by their log-sum-exps in one launch.

Shape letters: T tokens, H heads, D head dim.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

BLOCK = 64


def merge(a_THD: torch.Tensor, a_lse_HT: torch.Tensor, b_THD: torch.Tensor, b_lse_HT: torch.Tensor) -> torch.Tensor:
    """Return the attention over both; +inf says, as FlashAttention-2 does, that there were no keys."""
    tokens, heads, dim = a_THD.shape
    out = torch.empty_like(a_THD, memory_format=torch.contiguous_format)
    a, b = a_THD.contiguous(), b_THD.contiguous()
    grid = (triton.cdiv(tokens, BLOCK), heads)
    _merge[grid](a, a_lse_HT, b, b_lse_HT, out, tokens, D=dim, BLOCK_D=triton.next_power_of_2(dim), BLOCK=BLOCK)
    return out


@triton.jit(do_not_specialize=["tokens"])
def _merge(a, a_lse, b, b_lse, out, tokens, D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK: tl.constexpr):
    # a, b, out [T, H, D]; a_lse, b_lse [H, T]
    head, heads = tl.program_id(1), tl.num_programs(1)
    token = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    offs_d = tl.arange(0, BLOCK_D)
    mask = (token < tokens)[:, None] & (offs_d < D)[None, :]
    at = (token.to(tl.int64)[:, None] * heads + head) * D + offs_d[None, :]
    first = tl.load(a_lse + head.to(tl.int64) * tokens + token, mask=token < tokens, other=0.0)
    second = tl.load(b_lse + head.to(tl.int64) * tokens + token, mask=token < tokens, other=0.0)
    first = tl.where(first == float("inf"), float("-inf"), first)
    second = tl.where(second == float("inf"), float("-inf"), second)
    top = tl.maximum(first, second)
    first, second = tl.exp(first - top), tl.exp(second - top)
    share = (first / (first + second))[:, None]
    mine = tl.load(a + at, mask=mask, other=0.0).to(tl.float32)
    theirs = tl.load(b + at, mask=mask, other=0.0).to(tl.float32)
    tl.store(out + at, (mine * share + theirs * (1 - share)).to(out.dtype.element_ty), mask=mask)
