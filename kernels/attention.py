"""The one public attention: own queries over [prefix keys read from a pool ; own keys], one softmax.

Picks the implementation for a device explicitly, once, and logs which. It refuses to know models, tasks and
how a batch was chosen; shapes are validated here and trusted below.

Shape letters: T packed tokens, R rows, S slots, H heads, N pool tokens, D head dim, B buckets.
"""

from __future__ import annotations

import enum
import functools
import logging
import os
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from prefixbank.kernels import cpu
from prefixbank.kernels.plan import Mode
from prefixbank.kernels.reference import reference_attention

if TYPE_CHECKING:
    from prefixbank.kernels.plan import BatchPlan, LayerPrefix

logger = logging.getLogger(__name__)

ROUTE_VARIABLE = "PREFIXBANK_ATTENTION"
"""Environment variable that asks for a route by name; read once per device."""


class Route(enum.Enum):
    """An implementation of prefix attention."""

    CPU = "grouped-bmm"
    REFERENCE = "reference"


@functools.cache
def route_of(device: torch.device) -> Route:
    """Return the implementation that serves `device`: the one asked for by name, else the fastest there is.

    Raises:
        ValueError: when `PREFIXBANK_ATTENTION` names no route.
    """
    asked = os.environ.get(ROUTE_VARIABLE, Route.CPU.value)
    names = [route.value for route in Route]
    if asked not in names:
        raise ValueError(f"{ROUTE_VARIABLE} is {asked!r}, wanted one of {names}")
    logger.info("prefix attention on %s runs the %s route", device, asked)
    return Route(asked)


def prefix_attention(
    q_THD: Tensor,
    k_THD: Tensor,
    v_THD: Tensor,
    prefix: LayerPrefix,
    plan: BatchPlan,
    *,
    scale: float,
    window: int = 0,
    route: Route | None = None,
) -> Tensor:
    """Return softmax(scale * q [prefix_k ; k]^T + mask) [prefix_v ; v] for every row: [T, H, D].

    Differentiable in q, k, v and the two pools. Tokens that belong to no row give 0.

    Args:
        window: when positive, a query sees own keys at most this far away; prefix keys are always seen.
        route: ask for an implementation by name; by default `route_of` the device.

    Raises:
        ValueError: when shapes, dtypes or devices do not fit each other.
    """
    _validate(q_THD, k_THD, v_THD, prefix, plan, window)
    if (route or route_of(q_THD.device)) is Route.REFERENCE:
        return reference_attention(q_THD, k_THD, v_THD, prefix, plan, scale=scale, window=window)[0]
    indices = (plan.row_start_R1, plan.slot_R, plan.context_R, plan.bucket_B6)
    # No log-sum-exp: the backward of the one route there is takes its softmax anew.
    out, _ = torch.ops.prefixbank.prefix_attention(
        q_THD, k_THD, v_THD, *prefix, *indices, scale, int(plan.mode), window, False
    )
    return out  # type: ignore[no-any-return]


def _validate(q: Tensor, k: Tensor, v: Tensor, prefix: LayerPrefix, plan: BatchPlan, window: int) -> None:
    pool_k, pool_v, start, length = prefix
    if not (q.dim() == 3 and q.shape == k.shape == v.shape):
        raise ValueError(f"q, k, v are {[*q.shape]}, {[*k.shape]}, {[*v.shape]}, wanted one shape [T, H, D]")
    if q.shape[0] < plan.num_tokens:
        raise ValueError(f"q has {q.shape[0]} tokens, wanted the {plan.num_tokens} of the plan's rows or more")
    if not (pool_k.dim() == 3 and pool_k.shape == pool_v.shape and pool_k.shape[::2] == q.shape[1:]):
        heads, dim = q.shape[1:]
        raise ValueError(f"the pools are {[*pool_k.shape]} and {[*pool_v.shape]}, wanted one shape [{heads}, N, {dim}]")
    if not (q.is_floating_point() and q.dtype == k.dtype == v.dtype == pool_k.dtype == pool_v.dtype):
        dtypes = (q.dtype, k.dtype, v.dtype, pool_k.dtype, pool_v.dtype)
        raise ValueError(f"q, k, v and the pools are {dtypes}, wanted one floating dtype")
    if not (start.dim() == 1 and start.shape == length.shape and start.dtype == length.dtype == torch.int32):
        tables = (start.dtype, [*start.shape], length.dtype, [*length.shape])
        raise ValueError(f"the slot tables are {tables}, wanted two int32 tables of one length")
    if not (q.device == k.device == v.device == pool_k.device == pool_v.device == start.device == length.device):
        devices = (q.device, k.device, v.device, pool_k.device, pool_v.device, start.device, length.device)
        raise ValueError(f"q, k, v, pools and slot tables are on {devices}, wanted one device")
    if window < 0:
        raise ValueError(f"window is {window}, wanted 0 for none or a positive width")


@torch.library.custom_op("prefixbank::prefix_attention", mutates_args=())
def _forward(
    q_THD: Tensor,
    k_THD: Tensor,
    v_THD: Tensor,
    pool_k_HND: Tensor,
    pool_v_HND: Tensor,
    slot_start_S: Tensor,
    slot_length_S: Tensor,
    row_start_R1: Tensor,
    slot_R: Tensor,
    context_R: Tensor,
    bucket_B6: Tensor,
    scale: float,
    mode: int,
    window: int,
    with_lse: bool,
) -> tuple[Tensor, Tensor]:
    view = cpu.View(scale, Mode(mode), window)
    tensors = (q_THD, k_THD, v_THD, pool_k_HND, pool_v_HND, slot_start_S, slot_length_S, bucket_B6)
    return cpu.forward(*tensors, view, with_lse=with_lse)


@_forward.register_fake
def _forward_shapes(q_THD: Tensor, k_THD: Tensor, v_THD: Tensor, *rest: Tensor | float | bool) -> tuple[Tensor, Tensor]:
    tokens, heads, _ = q_THD.shape
    out = torch.empty(q_THD.shape, dtype=q_THD.dtype, device=q_THD.device)
    return out, q_THD.new_empty((tokens if rest[-1] else 0, heads), dtype=cpu.softmax_dtype(q_THD))


@torch.library.custom_op("prefixbank::prefix_attention_backward", mutates_args=())
def _backward(
    d_out_THD: Tensor,
    d_lse_TH: Tensor,
    out_THD: Tensor,
    lse_TH: Tensor,
    q_THD: Tensor,
    k_THD: Tensor,
    v_THD: Tensor,
    pool_k_HND: Tensor,
    pool_v_HND: Tensor,
    slot_start_S: Tensor,
    slot_length_S: Tensor,
    row_start_R1: Tensor,
    slot_R: Tensor,
    context_R: Tensor,
    bucket_B6: Tensor,
    scale: float,
    mode: int,
    window: int,
    needs: list[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    view = cpu.View(scale, Mode(mode), window)
    tensors = (q_THD, k_THD, v_THD, pool_k_HND, pool_v_HND, slot_start_S, slot_length_S, bucket_B6)
    return cpu.backward(d_out_THD, d_lse_TH, out_THD, *tensors, view, cpu.Needs(*needs))


@_backward.register_fake
def _backward_shapes(
    d_out_THD: Tensor,
    d_lse_TH: Tensor,
    out_THD: Tensor,
    lse_TH: Tensor,
    q_THD: Tensor,
    k_THD: Tensor,
    v_THD: Tensor,
    pool_k_HND: Tensor,
    pool_v_HND: Tensor,
    *rest: Tensor | float | list[bool],
) -> tuple[Tensor, ...]:
    needs = rest[-1]
    assert isinstance(needs, list | tuple)
    return tuple(
        torch.empty(x.shape if need else [0], dtype=x.dtype, device=x.device)
        for x, need in zip((q_THD, k_THD, v_THD, pool_k_HND, pool_v_HND), needs, strict=True)
    )


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, scale, mode, window, _ = inputs
    ctx.save_for_backward(*output, *tensors)
    ctx.scalars = (scale, mode, window)


def _differentiate(ctx: Any, d_out_THD: Tensor, d_lse_TH: Tensor) -> tuple[Tensor | None, ...]:
    needs = list(ctx.needs_input_grad[:5])
    grads = torch.ops.prefixbank.prefix_attention_backward(d_out_THD, d_lse_TH, *ctx.saved_tensors, *ctx.scalars, needs)
    return *(grad if need else None for grad, need in zip(grads, needs, strict=True)), *[None] * 10


_forward.register_autograd(_differentiate, setup_context=_save)
