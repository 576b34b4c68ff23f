"""What an implementation of prefix attention is handed, in one piece: tensors, view, and what is asked for.

It refuses to know which implementation. What `check_operands` has seen is trusted below.

Shape letters: T packed tokens, H heads, D head dim, N pool tokens, S slots, R rows, Y tiles, G groups, B buckets.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch

if TYPE_CHECKING:
    from torch import Tensor

    from prefixbank.kernels.plan import BatchPlan, LayerPrefix, Mode

QUANTISED = (torch.int8, torch.float8_e4m3fn)
"""What a pool may store instead of the dtype of q, with a scale per slot and head."""


class Operands(NamedTuple):
    """The tensors of one call, in the order of the operator's arguments."""

    q_THD: Tensor
    k_THD: Tensor
    v_THD: Tensor
    pool_k_HND: Tensor
    pool_v_HND: Tensor
    slot_start_S: Tensor
    slot_length_S: Tensor
    slot_scale_S2H: Tensor | None
    row_start_R1: Tensor
    slot_R: Tensor
    context_R: Tensor
    tile_Y2: Tensor
    num_tiles_1: Tensor
    group_G3: Tensor
    bucket_B5: Tensor

    @property
    def differentiable(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """What may ask for a gradient: q, k, v and the pools."""
        return self[:5]


class View(NamedTuple):
    """What every query of the batch is told: its scale, and which own keys it may see."""

    scale: float
    mode: Mode
    window: int


class Needs(NamedTuple):
    """Which gradients are asked for."""

    q: bool
    k: bool
    v: bool
    pool_k: bool
    pool_v: bool


def softmax_dtype(x: Tensor) -> torch.dtype:
    """The dtype of scores, probabilities and log-sum-exp: fp64 for fp64, else fp32."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def check_operands(
    q: Tensor, k: Tensor, v: Tensor, prefix: LayerPrefix, plan: BatchPlan, *, scale: float, window: int
) -> None:
    """Raise ValueError when shapes, dtypes or devices do not fit each other."""
    pool_k, pool_v, start, length, _ = prefix
    if not (q.dim() == 3 and q.shape == k.shape == v.shape):
        raise ValueError(f"q, k, v are {[*q.shape]}, {[*k.shape]}, {[*v.shape]}, wanted one shape [T, H, D]")
    if q.shape[0] < plan.num_tokens:
        raise ValueError(f"q has {q.shape[0]} tokens, wanted the {plan.num_tokens} of the plan's rows or more")
    if not (pool_k.dim() == 3 and pool_k.shape == pool_v.shape and pool_k.shape[::2] == q.shape[1:]):
        heads, dim = q.shape[1:]
        raise ValueError(f"the pools are {[*pool_k.shape]} and {[*pool_v.shape]}, wanted one shape [{heads}, N, {dim}]")
    if not (q.is_floating_point() and q.dtype == k.dtype == v.dtype):
        raise ValueError(f"q, k, v are {(q.dtype, k.dtype, v.dtype)}, wanted one floating dtype")
    if not (start.dim() == 1 and start.shape == length.shape and start.dtype == length.dtype == torch.int32):
        tables = (start.dtype, [*start.shape], length.dtype, [*length.shape])
        raise ValueError(f"the slot tables are {tables}, wanted two int32 tables of one length")
    _check_stored(q, prefix)
    tensors = [x for x in (q, k, v, *prefix, plan.slot_R) if x is not None]
    if len({x.device for x in tensors}) > 1:
        devices = tuple(str(x.device) for x in tensors)
        raise ValueError(f"q, k, v, the prefix and the plan are on {devices}, wanted one device")
    if not scale > 0:
        raise ValueError(f"scale is {scale}, wanted a positive number")
    if window < 0:
        raise ValueError(f"window is {window}, wanted 0 for none or a positive width")


def _check_stored(q: Tensor, prefix: LayerPrefix) -> None:
    """A pool holds q's own dtype, or a narrow one and what it is times."""
    pool_k, pool_v, start, _, scale = prefix
    if scale is None:
        if not pool_k.dtype == pool_v.dtype == q.dtype:
            raise ValueError(f"the pools are {(pool_k.dtype, pool_v.dtype)}, wanted {q.dtype} as q, or slot scales")
        return
    if pool_k.dtype not in QUANTISED or pool_v.dtype != pool_k.dtype:
        raise ValueError(f"pools with slot scales are {(pool_k.dtype, pool_v.dtype)}, wanted one of {QUANTISED}")
    wanted = [start.numel(), 2, q.shape[1]]
    if scale.dtype != torch.float32 or [*scale.shape] != wanted:
        raise ValueError(f"the slot scales are {scale.dtype} {[*scale.shape]}, wanted torch.float32 {wanted}")
    if pool_k.requires_grad or pool_v.requires_grad:
        raise ValueError("a quantised pool takes no gradient: train the prefix in a floating dtype")
